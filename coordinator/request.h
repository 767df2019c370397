/* coordinator/request.h: one line of the input becomes one request, or an error of that record.
 *
 * What is read of body: model (ignored), messages or prompt, max_tokens or max_completion_tokens,
 * temperature, top_p, top_k, min_p, presence_penalty, frequency_penalty, repetition_penalty,
 * logit_bias, seed, stop, ignore_eos, return_token_ids.  A field that would change the answer and
 * is not built is an error of the record; at the value that means "nothing" (n: 1, logprobs: false,
 * ...) it is accepted. */
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
    int32_t answer_max;
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
