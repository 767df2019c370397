/* tests/kernels/lanes.h: the table of cases for everything that reads paged lanes: ragged lanes
 * around page, block and split edges, holes, biases, windows, large logits, denormals, odd dims and
 * all cache types. */
#ifndef SHEAF_TESTS_KERNELS_LANES_H
#define SHEAF_TESTS_KERNELS_LANES_H
#include <stddef.h>
#include <stdint.h>
#include "kernels/device.h"

#define EPS 1.2e-7                      /* of f32, between neighbours */

enum { LANES_MAX = 6 };

struct shape {
    const char *text;
    enum sf_dtype dtype, out_dtype;
    int32_t page_slots, k_dim, v_dim, q_heads, lanes;
    int32_t slots[LANES_MAX], rows[LANES_MAX];
    int32_t holes_percent, window;
    float amplitude, bias, k_amplitude;
};
extern const struct shape shapes[];
extern const int shapes_count;

/* A shape made real: all lanes' slots in one pool of scattered pages. */
struct problem {
    const struct shape *shape;
    struct sf_device *ref;              /* fills pages */
    struct sf_layout layout;
    size_t page_bytes, rows, q_stride, out_bytes, elements;
    unsigned char *pool;
    int32_t *pages;                     /* of all lanes */
    int32_t pool_pages;                 /* with page 0, which is nobody's */
    float *q;
    int32_t *row_pos;
    struct sf_lane_job lane[LANES_MAX];
    double logit_bound, lse_bound, bound; /* of rounding: a logit, attend's lse and out */
};

/* What products in bf16, or of bytes in int8, may change beside: a logit (and so lse), an output; 0
 * where a device makes none of them for the problem. */
struct rounding { double logit, out; };
struct rounding rounding_of(const struct problem *, const struct sf_device *);

void problem_make(struct problem *, const struct shape *, struct sf_device *ref);
void problem_free(struct problem *);
/* Prepared pages of a problem, without slots; the caller frees them. */
unsigned char *pool_make(const struct problem *);
/* Appends slots 0 .. slots - 1 of a lane, then makes holes. */
void lane_fill(const struct problem *, unsigned char *pool, int lane, int32_t slots);

#endif
