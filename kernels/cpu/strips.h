/* kernels/cpu/strips.h: where weights of our own kernels lie (int8.c, pairs.c):
 *
 *     [strips of 64 columns][slices][k of a slice][columns of the strip]
 *
 * in an order inside a tile that is the kernel's; the last strip may be narrower. */
#ifndef SHEAF_KERNELS_CPU_STRIPS_H
#define SHEAF_KERNELS_CPU_STRIPS_H
#include <stddef.h>
#include <stdint.h>

enum { SF_STRIP = 64 };

/* Columns of a strip, of `cols` in all. */
static inline int32_t sf_strip_cols(int32_t cols, int32_t strip)
{
    int32_t left = cols - strip * SF_STRIP;
    return left < SF_STRIP ? left : SF_STRIP;
}

/* Elements before the tile of a strip and slice. */
static inline size_t sf_strip_tile(int32_t cols, int32_t k, int32_t slices, int32_t strip,
                                   int32_t slice)
{
    return (size_t)k * ((size_t)strip * SF_STRIP * (size_t)slices +
                        (size_t)slice * (size_t)sf_strip_cols(cols, strip));
}

#endif
