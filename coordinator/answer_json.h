/* coordinator/answer_json.h: the body of an answered record as OpenAI's completion object, with
 * sheaf's receipt (interface.md section 4).
 *
 *   id object created model    of the record and the run
 *   prompt_token_ids           if return_token_ids
 *   prompt_logprobs            if asked for, of a chat; of a completion it stands in the choice, as
 *                              in vLLM
 *   choices                    index, message or text, logprobs (null if not asked for),
 *                              finish_reason; prompt_logprobs; token_ids if return_token_ids
 *   usage                      prompt_tokens count once, completion_tokens over all choices
 *   sheaf                      methods and what became of the cache
 *
 * The end-of-sequence token that ends an answer is one of its tokens: it counts, it is in token_ids
 * and has a log probability, but no text.  So are the tokens that a stop string cuts off.
 *
 * text_offset counts characters of the choice's text, echo and all: where the text stood when the
 * token came, which for one in the middle of a character is that character's beginning, and for one
 * without text, or of text that was cut off, the end.  Of an echoed text each token's offset is
 * where its bytes stand in it. */
#ifndef SHEAF_COORDINATOR_ANSWER_JSON_H
#define SHEAF_COORDINATOR_ANSWER_JSON_H
#include <stdint.h>
#include "base/json.h"
#include "base/status.h"
#include "coordinator/request.h"
#include "coordinator/scores.h"
#include "kvshard/stack.h"
#include "model/tokenizer.h"
#include "proto/wire.h"
SF_C_BEGIN

struct sf_choice_out {                  /* one of the n answers to a record */
    const char *text; size_t text_bytes;/* valid UTF-8; what the model wrote, without an echo */
    const int32_t *token; int32_t tokens;
    int stopped;                        /* by an end-of-sequence token or text; else by length */
    const struct sf_scores *scores;     /* of its tokens, where the record asks for them */
};
struct sf_answer_out {                  /* one finished record */
    const struct sf_record *request;
    uint64_t number;                    /* of the request within the job, for its ids */
    const struct sf_choice_out *choice; int32_t choices;
    const struct sf_scores *prompt_scores;      /* of prompt tokens 1 .., where asked for */
    struct sf_wire_receipt receipt;     /* summed over ranks and choices */
    const int32_t *tightened; int32_t tightenings;      /* tokens that a choice had when memory
                                           pressure made its cache smaller, each time in order */
};
struct sf_body_facts {                  /* of the run */
    const char *id, *model;
    const struct sf_stack *stack;
    const struct sf_setup *setup;               /* of the plan; NULL: receipts give no reasons */
    const struct sf_tokenizer *tokenizer;       /* NULL: tokens are written token_id:123 */
};
/* Tokens that the longest of its sequences had in the cache; the last one sampled never is. */
int32_t sf_answer_cached(const struct sf_answer_out *);
/* Of a record with no_answer text, tokens and scores of the choices are not looked at. */
sf_status sf_answer_body(const struct sf_answer_out *, const struct sf_body_facts *,
                         struct sf_json **body_out);

SF_C_END
#endif
