/* worker/sums.h: sums over the tensor ranks, see sums.c.  For the files of worker/ alone. */
#ifndef SHEAF_WORKER_SUMS_H
#define SHEAF_WORKER_SUMS_H
#include "base/status.h"
#include "comm/reduce.h"

struct sf_worker;
sf_status sf_sums_take(struct sf_worker *);     /* its memory, after the other buffers */
void      sf_sums_give(struct sf_worker *);
/* Collective over the tensor group, then over the column; mine: how opening went so far here. */
sf_status sf_sums_open(struct sf_worker *, sf_status mine);
/* failed: the links are given up, and nobody is waited for. */
void      sf_sums_close(struct sf_worker *, int failed);
/* Waits for the device before the host takes a result from it.  The device may wait for another
 * rank's, so this wait has the links' deadline, which a plain download has not. */
sf_status sf_sums_settle(struct sf_worker *);
/* Where this rank's leaves go: device, [leaves_max] of [tile_rows][d_model], so far apart. */
float    *sf_sums_leaf(struct sf_worker *);
size_t    sf_sums_leaf_stride(const struct sf_worker *);
/* x[r] += the sum of all leaves, on every rank of the tensor group. */
sf_status sf_sums_add(struct sf_worker *, int32_t rows, const struct sf_leaf *, int32_t leaves,
                      float *x);
/* The columns that a tensor rank passes to the next stage where a link does: how many, equal on
 * all. */
int32_t   sf_sums_block(const struct sf_worker *, int32_t tensor_rank, int32_t *first_out);

#endif
