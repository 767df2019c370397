/* worker/compare.c: rows that are kept, and what is compared with them (compare.h). */
#include "worker/compare.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

static float greatest(const float *logits, int32_t vocab)
{
    float highest = -INFINITY;
    for (int32_t i = 0; i < vocab; i++) highest = logits[i] > highest ? logits[i] : highest;
    return highest;
}

void sf_kept_rows_free(struct sf_kept_rows *kept)
{
    free(kept->logits);
    free(kept->share);
    free(kept->log_sum);
    memset(kept, 0, sizeof *kept);
}

void sf_kept_rows_restart(struct sf_kept_rows *kept)
{
    kept->seq = 0;
    kept->rows = 0;
}

sf_status sf_kept_rows_add(struct sf_kept_rows *kept, uint64_t seq, int32_t pos,
                           const float *logits, int32_t vocab)
{
    SF_ASSERT(seq != 0 && vocab > 0);
    if (kept->seq != seq || kept->pos + kept->rows != pos || kept->vocab != vocab) {
        kept->seq = seq;
        kept->pos = pos;
        kept->rows = 0;
        kept->vocab = vocab;
    }
    size_t n = (size_t)vocab, at = (size_t)kept->rows * n;
    SF_TRY(sf_grow((void **)&kept->logits, &kept->logits_room, at + n, sizeof *kept->logits));
    SF_TRY(sf_grow((void **)&kept->share, &kept->share_room, at + n, sizeof *kept->share));
    SF_TRY(sf_grow((void **)&kept->log_sum, &kept->sum_room, (size_t)kept->rows + 1,
                   sizeof *kept->log_sum));
    float highest = greatest(logits, vocab), *share = kept->share + at;
    double sum = 0.0;
    for (int32_t i = 0; i < vocab; i++) sum += (double)(share[i] = expf(logits[i] - highest));
    if (!isfinite(highest) || !isfinite(sum))
        return SF_FAIL(SF_INTERNAL, "the logits of sequence %llu at position %d are not finite",
                       (unsigned long long)seq, pos);
    float scale = (float)(1.0 / sum);
    for (int32_t i = 0; i < vocab; i++) share[i] *= scale;
    memcpy(kept->logits + at, logits, n * sizeof *logits);
    kept->log_sum[kept->rows++] = (double)highest + log(sum);
    return SF_OK;
}

sf_status sf_kept_rows_kl(const struct sf_kept_rows *kept, uint64_t against, int32_t pos,
                          const float *logits, double *kl_out)
{
    int32_t row = pos - kept->pos;
    if (against == 0 || kept->seq != against || row < 0 || row >= kept->rows)
        return SF_FAIL(SF_INTERNAL, "a row at position %d is compared with sequence %llu, which "
                       "has none there", pos, (unsigned long long)against);
    const float *l = kept->logits + (size_t)row * (size_t)kept->vocab;
    const float *p = kept->share + (size_t)row * (size_t)kept->vocab;
    float highest = greatest(logits, kept->vocab);
    double sum = 0.0, apart = 0.0;
    for (int32_t i = 0; i < kept->vocab; i++) {
        sum += (double)expf(logits[i] - highest);
        if (p[i] > 0.0f) apart += (double)p[i] * ((double)l[i] - (double)logits[i]);
    }
    double log_sum = (double)highest + log(sum);        /* equal rows: equal bits, and 0 */
    double kl = apart + (log_sum - kept->log_sum[row]);
    if (!isfinite(kl))
        return SF_FAIL(SF_INTERNAL, "the divergence from sequence %llu at position %d is not "
                       "finite", (unsigned long long)against, pos);
    *kl_out = kl > 0.0 ? kl : 0.0;      /* it is below 0 by rounding alone */
    return SF_OK;
}
