/* kernels/cuda/attend.h: how attention is cut, for both of its kernels.
 *
 *   vector  one query head of one row (lanes.h)
 *   tile    up to SF_TILE_VECTORS successive vectors of a lane
 *   split   SF_SPLIT_SLOTS slots of a lane or of one of its parts, always at the same places
 *   unit    vectors of a tile and one split: leaves the split's state for each vector
 *   state   out_e = sum e^(l - max) v_e for e < v_dim, then max, then sum, filled up to 16 bytes
 *
 * The states of a vector lie side by side, split by split: first the lane's own, then its parts'.
 * attend_tensor.cu takes units of 16-bit slots, basis.cu those of parts with factors, attend.cu all
 * others, those of picked slots of ordinary pages too; it also merges the states.  Where a part has
 * picks, splits are cut from their list. */
#ifndef SHEAF_KERNELS_CUDA_ATTEND_H
#define SHEAF_KERNELS_CUDA_ATTEND_H
#include "kernels/cuda/lanes.h"

enum { SF_TILE_VECTORS = 16 };

struct sf_unit {
    int32_t lane, part, from;           /* part -1: the lane itself; the split's first slot */
    int32_t first, vectors;
    int32_t state, stride;              /* of the first vector; to the next vector's, in states */
    int32_t lanes;                      /* 1; basis.cu: as many from `lane` on, whose parts have one
                                           basis, and that many vectors of each, lane by lane */
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
    struct sf_unit unit = { word[0], word[1], word[2], word[3], word[4], word[5], word[6],
                            word[7] };
    return unit;
}

/* Turns the logits [vectors][SF_SPLIT_SLOTS] of each vector into weights e^(l - max); leaves max
 * and sum in its state.  `state`: of the unit's first vector. */
static __device__ __forceinline__ void sf_weights_make(const struct sf_unit &unit, int32_t v_dim,
                                                       int32_t count, sf_shared<float> logits,
                                                       sf_global<float> state, size_t state_floats)
{
    int32_t lane = (int32_t)(threadIdx.x % SF_WARP), warp = (int32_t)(threadIdx.x / SF_WARP);
    for (int32_t j = warp; j < unit.vectors; j += (int32_t)(blockDim.x / SF_WARP)) {
        sf_shared<float> logit = logits + (size_t)j * SF_SPLIT_SLOTS;
        float most = -INFINITY, sum = 0;
        for (int32_t s = lane; s < count; s += SF_WARP) most = fmaxf(most, logit[s]);
        most = sf_warp_max(most);
        for (int32_t s = lane; s < count; s += SF_WARP) {
            float weight = most == -INFINITY ? 0 : expf(logit[s] - most);
            logit[s] = weight;
            sum += weight;
        }
        sum = sf_warp_sum(sum);
        if (lane < 2)
            state[(size_t)j * (size_t)unit.stride * state_floats + (size_t)(v_dim + lane)] =
                lane == 0 ? most : sum;
    }
}

/* Whether the tensor cores can take slots of this layout. */
int  sf_tensor_takes(const struct sf_layout *, const unsigned char *pool, size_t page_bytes);
void sf_tensor_launch(struct sf_cuda *, const struct sf_cuda_view *, enum sf_dtype,
                      const int32_t *units, size_t count, float *states);

/* Vectors of a unit of a part with factors, and the shared memory that its block takes. */
struct sf_basis_cut { int32_t vectors; size_t shared_bytes; };
struct sf_basis_cut sf_basis_cut_of(const struct sf_layout *, const struct sf_lane_part *);
/* `count` units of slots of one dtype, all of parts with picks or all of parts without. */
struct sf_basis_units { enum sf_dtype dtype; bool picked; const int32_t *units; size_t count; };
void sf_basis_launch(struct sf_cuda *, const struct sf_cuda_view *, const struct sf_basis_units *,
                     size_t shared_bytes, float *states);

#endif
