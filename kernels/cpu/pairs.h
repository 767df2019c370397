/* kernels/cpu/pairs.h: matrices of bf16 whose products are pairs of bf16 added up in f32: how they
 * lie, and the product of some rows with one strip of columns.  For processors with AVX-512 BF16
 * and without AMX; mat.c hands its calls on to here and keeps all others.
 *
 * A strip is 64 columns, the last one narrower (a multiple of 16), k rounded up to 2; what is
 * rounded up holds zeros:
 *
 *   strip 0                 strip 1
 *   | slice 0 | slice 1 |   | slice 0 | ...      slice: [k / 2][columns of the strip][2] bf16
 *
 * What a row's bits depend on: the instruction adds pair after pair to a sum, from the first k of a
 * slice to the last, whatever is computed beside it; slices are added one after the other.  So
 * neither the number of rows, nor their places, nor the threads count, be the matrix fixed or
 * not. */
#ifndef SHEAF_KERNELS_CPU_PAIRS_H
#define SHEAF_KERNELS_CPU_PAIRS_H
#include <stddef.h>
#include <stdint.h>
#include "kernels/device.h"

struct sf_pairs;
struct sf_mat_call;                     /* cpu.h */

enum sf_pairs_out { SF_PAIRS_STORE, SF_PAIRS_GO_ON, SF_PAIRS_ADD };
struct sf_pairs_tile {
    const uint16_t *x; size_t x_stride; /* [rows][x_stride], k of each are read */
    const uint16_t *w;                  /* [k / 2, rounded up][w_cols][2], the first `cols` of it */
    const uint16_t *ahead;              /* what will be wanted next, as w: sent for */
    int32_t w_cols;
    int32_t rows, k, cols;              /* cols at most 64; need not be a multiple of 16 */
    float *out; size_t out_stride;      /* [rows][out_stride], `cols` of each */
    enum sf_pairs_out how;              /* out = sum; the sum goes on from out; out = sum + out */
};
#if defined(__x86_64__)
void sf_pairs_dot(const struct sf_pairs_tile *);        /* AVX-512 BF16 */
#endif

/* Whether this machine takes them. */
int       sf_pairs_pay(enum sf_isa);
int64_t   sf_pairs_bytes(const struct sf_mat_shape *);
sf_status sf_pairs_create(struct sf_device *, const struct sf_mat_shape *, struct sf_pairs **out);
void      sf_pairs_destroy(struct sf_device *, struct sf_pairs *);
/* As mat_pack. */
void      sf_pairs_pack(struct sf_device *, struct sf_pairs *, int32_t panel, int32_t slice,
                        const float *tile);
void      sf_pairs_multiply(struct sf_device *, const struct sf_pairs *,
                            const struct sf_mat_call *);

#endif
