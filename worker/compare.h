/* worker/compare.h: how far rows of logits are from those of another sequence: a stack of methods
 * beside the exact cache, fed the same tokens (`sheaf eval`).
 *
 *   p_i  = e^(l_i) / sum_j e^(l_j)          of the row compared with (the reference)
 *   q_i  = e^(m_i) / sum_j e^(m_j)          of the row at hand
 *   KL   = sum_i p_i ln(p_i / q_i)
 *        = sum_i p_i (l_i - m_i) - ln sum_j e^(l_j) + ln sum_j e^(m_j)
 *
 * Exponentials in f32, sums in f64; a row compared with its own bits gives exactly 0.  A step has
 * the reference's rows before those that are compared with them, so what is kept is one item: its
 * logits and its p, 8 x vocabulary bytes a row, in memory that grows to the longest item. */
#ifndef SHEAF_WORKER_COMPARE_H
#define SHEAF_WORKER_COMPARE_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"

struct sf_kept_rows {                   /* starts zeroed */
    uint64_t seq;                       /* whose; 0: nobody's */
    int32_t pos, rows;                  /* positions pos .. pos + rows - 1 */
    int32_t vocab;
    float *logits; size_t logits_room;  /* [rows][vocab] */
    float *share; size_t share_room;    /* [rows][vocab] p */
    double *log_sum; size_t sum_room;   /* [rows] */
};
void      sf_kept_rows_free(struct sf_kept_rows *);
/* A new step: nothing of the one before is compared with any more.  Memory stays. */
void      sf_kept_rows_restart(struct sf_kept_rows *);
/* Keeps the row at `pos`: the next one of the same sequence, or the first of another.  SF_INTERNAL
 * if the row has no finite sum. */
sf_status sf_kept_rows_add(struct sf_kept_rows *, uint64_t seq, int32_t pos, const float *logits,
                           int32_t vocab);
/* KL of the row against the one kept of sequence `against` at `pos`.  SF_INTERNAL where that is not
 * there, or the divergence is not finite. */
sf_status sf_kept_rows_kl(const struct sf_kept_rows *, uint64_t against, int32_t pos,
                          const float *logits, double *kl_out);
#endif
