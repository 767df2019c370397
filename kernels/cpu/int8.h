/* kernels/cpu/int8.h: matrices of 8-bit codes (kernels.h): how they lie, and the product of some
 * rows with one strip of columns.  mat.c hands its calls on to here; int8.inc is compiled once per
 * instruction set, and once more for those with VNNI.
 *
 * Codes of the weights are kept with 128 added, because VNNI multiplies bytes without a sign by
 * bytes with one, and the one that it repeats over all columns is x:
 *
 *   sum of x w = sum of x (w + 128) - 128 * sum of x
 *
 * A strip is 64 columns, the last one narrower (a multiple of 16), k rounded up to 4:
 *
 *   strip 0                 strip 1
 *   | slice 0 | slice 1 |   | slice 0 | ...      slice: [k / 4][columns of the strip][4] bytes
 *
 * Scales lie behind all strips: [slices][columns, rounded up to 16] f32. */
#ifndef SHEAF_KERNELS_CPU_INT8_H
#define SHEAF_KERNELS_CPU_INT8_H
#include <stddef.h>
#include <stdint.h>
#include "kernels/kernels.h"

struct sf_cpu;
struct sf_int8;
struct sf_mat_call;                     /* cpu.h */

struct sf_int8_row { float scale; int32_t sum; };       /* of one slice of a row; sum: its codes */
struct sf_int8_tile {
    const int8_t *x; size_t x_stride;   /* [rows][x_stride] codes, k of each */
    const struct sf_int8_row *row;      /* [rows] */
    const uint8_t *w;                   /* [k / 4][cols][4] codes + 128 */
    const float *scale;                 /* [cols] */
    int32_t rows, k, cols;              /* k a multiple of 4, cols of 16, at most 64 */
    float *out; size_t out_stride;      /* written: [rows][out_stride], cols of each */
};
#if defined(__x86_64__)
void sf_int8_dot_vnni(const struct sf_int8_tile *);
#endif

int64_t   sf_int8_bytes(const struct sf_mat_shape *);
sf_status sf_int8_create(struct sf_device *, const struct sf_mat_shape *, struct sf_int8 **out);
void      sf_int8_destroy(struct sf_device *, struct sf_int8 *);
/* As mat_pack. */
void      sf_int8_pack(struct sf_device *, struct sf_int8 *, int32_t panel, int32_t slice,
                       const float *tile);
void      sf_int8_multiply(struct sf_device *, const struct sf_int8 *, const struct sf_mat_call *);

#endif
