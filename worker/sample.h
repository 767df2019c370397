/* worker/sample.h: from a row of logits to a token: biases, penalties, temperature, filters, draw.
 *
 * The order is that of the field's engines:
 *
 *   l_i += logit_bias_i
 *   l_i  = l_i > 0 ? l_i / r : l_i r       tokens of prompt or answer  (repetition_penalty r)
 *   l_i -= f count_i + q [count_i > 0]     count_i in the answer   (frequency f, presence q)
 *   temperature 0: the greatest l_i, ties to the lower token; else p = softmax(l / temperature)
 *   keep p_i >= min_p max p, then the top_k greatest, then the fewest greatest that hold top_p of
 *   what top_k left; ties to the lower token
 *   the first kept token, in the order of the vocabulary, whose cumulative p exceeds u of the kept
 *
 * All in f64, and one row at a time: what is drawn depends on the row, the history and u alone. */
#ifndef SHEAF_WORKER_SAMPLE_H
#define SHEAF_WORKER_SAMPLE_H
#include <stdint.h>
#include "base/status.h"
#include "proto/wire.h"

/* The tokens of one sequence so far, its answer last. */
struct sf_history { const int32_t *token; int32_t tokens, prompt; };

struct sf_sampler;                      /* scratch of one worker, for rows of `vocab` logits */
sf_status sf_sampler_create(int32_t vocab, struct sf_sampler **out);
void      sf_sampler_destroy(struct sf_sampler *);
int64_t   sf_sampler_bytes(int32_t vocab);

/* Whether this choice needs the whole row of logits, or the greatest one is enough. */
int sf_sampling_needs_row(const struct sf_wire_sampling *);
/* Changes logits[vocab].  u in [0, 1).  -1 if a logit is NaN or all are -inf. */
int32_t sf_sample(struct sf_sampler *, const struct sf_wire_sampling *, const struct sf_history *,
                  float *logits, double u);
#endif
