/* kernels/cuda/attend.h: how attention is cut, for both of its kernels.
 *
 *   vector  one query head of one row (lanes.h)
 *   tile    up to SF_TILE_VECTORS successive vectors of a lane
 *   split   SF_SPLIT_SLOTS slots of a lane or of one of its parts, always at the same places
 *   unit    vectors of a tile and one split: leaves the split's state for each vector
 *   state   out_e = sum e^(l - max) v_e for e < v_dim, then max, then sum, filled up to 16 bytes
 *
 * The states of a vector lie side by side, split by split: first the lane's own, then its parts'.
 * attend_tensor.cu takes units of 16-bit slots, attend.cu all others; it also merges the states. */
#ifndef SHEAF_KERNELS_CUDA_ATTEND_H
#define SHEAF_KERNELS_CUDA_ATTEND_H
#include "kernels/cuda/lanes.h"

enum { SF_TILE_VECTORS = 16 };

struct sf_unit {
    int32_t lane, part, from;           /* part -1: the lane itself; the split's first slot */
    int32_t first, vectors;
    int32_t state, stride;              /* of the first vector; to the next vector's, in states */
    int32_t none;
};
enum { SF_UNIT_WORDS = 8 };

static __host__ __device__ __forceinline__ int32_t sf_state_floats(int32_t v_dim)
{
    return (v_dim + 2 + 3) / 4 * 4;
}

static __device__ __forceinline__ struct sf_unit sf_unit_at(sf_global<const int32_t> units,
                                                            size_t i)
{
    sf_global<const int32_t> word = units + i * SF_UNIT_WORDS;
    struct sf_unit unit = { word[0], word[1], word[2], word[3], word[4], word[5], word[6], 0 };
    return unit;
}

/* Whether the tensor cores can take slots of this layout. */
int  sf_tensor_takes(const struct sf_layout *, const unsigned char *pool, size_t page_bytes);
void sf_tensor_launch(struct sf_cuda *, const struct sf_cuda_view *, enum sf_dtype,
                      const int32_t *units, size_t count, float *states);

#endif
