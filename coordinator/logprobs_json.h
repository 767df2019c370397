/* coordinator/logprobs_json.h: log probabilities as the APIs write them.
 *
 *   chat          {"content": [{"token": " a", "logprob": -0.5, "bytes": [32, 97],
 *                               "top_logprobs": [{"token", "logprob", "bytes"}, ...]}, ...],
 *                  "refusal": null}                                        OpenAI, chat completions
 *   completions   {"tokens": [" a", ...], "token_logprobs": [-0.5, ...],
 *                  "top_logprobs": [{" a": -0.5, ...}, ...], "text_offset": [0, ...]}
 *                                                                               OpenAI, completions
 *   prompt        [null, {"261": {"logprob": -0.5, "rank": 1, "decoded_token": " a"}, ...}, ...]
 *                                                                             vLLM, prompt_logprobs
 *
 * A token is written as its text, control tokens as theirs.  One that is not made of whole UTF-8
 * characters, or holds a NUL, is written as OpenAI does, "bytes:\xe2\x80": printable ASCII as it
 * is but for the backslash, which is doubled.  One that has no bytes, and every token of a model
 * without a tokenizer, is written "token_id:123".
 *
 * Tokens that are different and look alike meet in the objects of completions, whose keys are
 * texts: there the second is written "token_id:123", so that none is lost.  Such an object holds
 * the likeliest tokens and behind them the token itself, where it is none of them.
 *
 * A number is the shortest that reads back as the same f32. */
#ifndef SHEAF_COORDINATOR_LOGPROBS_JSON_H
#define SHEAF_COORDINATOR_LOGPROBS_JSON_H
#include <stdint.h>
#include "base/json.h"
#include "coordinator/scores.h"
#include "model/tokenizer.h"
SF_C_BEGIN

struct sf_scored {                      /* tokens and what is known of them */
    const int32_t *token; int32_t tokens;
    int32_t unscored;                   /* the first tokens, which have no score: 0 or 1 */
    const struct sf_scores *scores;     /* of the others; there is one for each */
    int32_t tops;                       /* likeliest shown of each; more may be there */
    const int32_t *offset;              /* [tokens] where they begin in the text, in characters; for
                                           completions alone */
};

/* NULL where there is no memory, as from base/json.h.  tokenizer may be NULL. */
struct sf_json *sf_logprobs_chat(const struct sf_tokenizer *, const struct sf_scored *answer);
/* echo: of the prompt, which comes first; NULL: none. */
struct sf_json *sf_logprobs_completion(const struct sf_tokenizer *, const struct sf_scored *echo,
                                       const struct sf_scored *answer);
struct sf_json *sf_logprobs_prompt(const struct sf_tokenizer *, const struct sf_scored *prompt);

SF_C_END
#endif
