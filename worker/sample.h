/* worker/sample.h: a token from a row of logits on the host, as kernels.h defines a choice (struct
 * sf_choose_job): bit for bit what a device's entry `choose` gives for the same logits.  One row at
 * a time: what is drawn depends on the row, the tokens seen and u alone. */
#ifndef SHEAF_WORKER_SAMPLE_H
#define SHEAF_WORKER_SAMPLE_H
#include <stdint.h>
#include "base/status.h"
#include "kernels/kernels.h"

struct sf_sampler;                      /* scratch of one worker, for rows of `vocab` logits */
sf_status sf_sampler_create(int32_t vocab, struct sf_sampler **out);
void      sf_sampler_destroy(struct sf_sampler *);
int64_t   sf_sampler_bytes(int32_t vocab);

/* Changes logits[vocab].  -1 if a logit is NaN or +inf or all are -inf.  Of the row are not read:
 * row, sample, score and tops. */
int32_t sf_sample(struct sf_sampler *, const struct sf_choose_row *, float *logits);
#endif
