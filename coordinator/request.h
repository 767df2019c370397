/* coordinator/request.h: one line of the input becomes one request, or an error of that record.
 *
 * What is read of body: messages or prompt, max_tokens or max_completion_tokens, temperature,
 * top_p, top_k, min_p, presence_penalty, frequency_penalty, repetition_penalty, logit_bias, seed,
 * stop, ignore_eos, return_token_ids, n, logprobs, top_logprobs, echo, prompt_logprobs.  model,
 * user and metadata are accepted and ignored.  A field that would change the answer and is not
 * built is an error of the record; at the value that means "nothing" (stream: false, best_of: n)
 * it is accepted.
 *
 * Log probabilities, asked for in OpenAI's way and in vLLM's:
 *
 *   /v1/chat/completions   logprobs: true, top_logprobs: 0 to 20   of each token of the answer
 *   /v1/completions        logprobs: 0 to 20                       the same; with echo, of the
 *                                                                  prompt, too
 *   both                   prompt_logprobs: 0 to 20                of each token of the prompt
 *
 * With echo or prompt_logprobs, max_tokens of /v1/completions may be 0: the prompt alone is scored.
 * One record gets 2^22 log probabilities at most, over all its choices. */
#ifndef SHEAF_COORDINATOR_REQUEST_H
#define SHEAF_COORDINATOR_REQUEST_H
#include <stddef.h>
#include <stdint.h>
#include "base/lines.h"
#include "base/status.h"
#include "coordinator/answer_text.h"
#include "model/tokenizer.h"
#include "proto/wire.h"
SF_C_BEGIN

struct sf_record_limits {
    const struct sf_tokenizer *tokenizer;   /* NULL: token ids only */
    int32_t vocab, tokens_max;              /* prompt + answer at most */
    int64_t text_bytes_max;                 /* a longer text is refused without being encoded */
    double temperature;                     /* defaults of the run */
    int64_t seed;
};
struct sf_record {
    char *custom_id; size_t custom_id_bytes;    /* owned; may hold NULs */
    int64_t line;
    uint8_t chat, ignore_eos, return_token_ids;
    struct sf_tokens prompt;                    /* owned */
    char *echo_text; size_t echo_text_bytes;    /* owned; the prompt's text where echo is asked for;
                                                   NULL for a prompt of token ids */
    int32_t answer_max;
    int32_t choices;                            /* answers wanted (n), at least 1 */
    /* How many of the likeliest tokens are shown beside each token of the answer (and the echo), of
     * the prompt; -1: no log probabilities. */
    int32_t logprobs, prompt_logprobs;
    uint8_t echo;
    uint8_t score_prompt;                       /* every token of the prompt but its first */
    uint8_t no_answer;                          /* max_tokens 0: answer_max is 1, to be dropped */
    struct sf_wire_sampling sampling;           /* its biases are owned */
    struct sf_stop *stop; size_t stops;         /* owned */
    char code[32];                              /* of a refusal: "invalid_json", ... */
};

/* Nothing but blanks and tabs: no record, and no error. */
int       sf_record_is_blank(const struct sf_line *);
/* SF_OK, or SF_INVALID: code holds the kind, sf_error_text() the words, and custom_id what could be
 * read of it (NULL if nothing).  Free in both cases. */
sf_status sf_record_parse(const struct sf_record_limits *, const char *text, size_t bytes,
                           int64_t line, struct sf_record *out);
void      sf_record_free(struct sf_record *);

SF_C_END
#endif
