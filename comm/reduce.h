/* comm/reduce.h: the sum of a row-parallel layer over a tensor group.
 *
 * Each rank has computed some of the leaves of a sum, each [rows][cols] in f32.  Leaves have a
 * fixed order (that of the model: query heads, FFN chunks), whichever rank holds them; every
 * element is added up in that order, so its bits do not depend on the layout.  Rank r of p sums
 * the columns [cols r / p, cols (r + 1) / p) (a column block); then all ranks add all blocks to
 * their copy of the residual x.  On one node the leaves lie in a shared window: two barriers, no
 * copies.  Over nodes the blocks are exchanged by messages, with the same bits. */
#ifndef SHEAF_COMM_REDUCE_H
#define SHEAF_COMM_REDUCE_H
#include <stddef.h>
#include <stdint.h>
#include "comm/comm.h"
SF_C_BEGIN

struct sf_reduce;
struct sf_reduce_spec {
    int32_t rows_max, cols;             /* of one call */
    int32_t leaves_max;                 /* most leaves of any one rank of the group */
    uint8_t exchange;                   /* 1: by messages even on one node (tests) */
    struct sf_crew *crew;               /* adds (base/crew.h); NULL: the caller alone */
};
/* Where the leaves of one kind of layer are: leaf i is leaf `local` of rank `owner`. */
struct sf_leaf { int32_t owner, local; };

/* Collective over `group`.  Group stays the caller's. */
sf_status sf_reduce_create(struct sf_comm *group, const struct sf_reduce_spec *,
                           struct sf_reduce **out);
void      sf_reduce_destroy(struct sf_reduce *);
/* Bytes of window and buffers that this rank takes; pure. */
int64_t   sf_reduce_bytes(const struct sf_reduce_spec *, int32_t group_size, int one_node);
/* Where this rank writes its leaf `local`: [rows_max][cols]; leaves lie leaf_stride floats apart,
 * each row padded to nothing.  Valid until destroy. */
float    *sf_reduce_leaf(struct sf_reduce *, int32_t local);
size_t    sf_reduce_leaf_stride(const struct sf_reduce *);
/* x[r][c] += sum over leaves in order, on every rank.  Collective; x [rows][x_stride]. */
sf_status sf_reduce_add(struct sf_reduce *, int32_t rows, const struct sf_leaf *leaf,
                        int32_t leaves, float *x, size_t x_stride);

/* The columns [first, first + count) that rank r of p owns. */
void sf_reduce_block(int32_t cols, int32_t ranks, int32_t rank, int32_t *first_out,
                     int32_t *count_out);

SF_C_END
#endif
