/* kernels/cuda/basis.h: a part with factors, as the kernels of basis.cu see it. */
#ifndef SHEAF_KERNELS_CUDA_BASIS_H
#define SHEAF_KERNELS_CUDA_BASIS_H
#include "kernels/cuda/attend.h"

enum { SF_BASIS_THREADS = 128 };        /* of a block */

struct sf_basis {
    struct sf_layout layout, factors, values;   /* values: read for rank_v 0 */
    int32_t pages_first, slots, factor_first, value_first, rank_k, rank_v, rope_dim;
    sf_global<const float> turns;
};

/* The words of a part, and of a lane, are read in fours: each load is a sector for every warp. */
static_assert(SF_PART_WORDS % 4 == 0 && SF_PART_TURNS % 4 == 0 && SF_LANE_WORDS == 8, "in fours");

/* Lane l of those that share a unit. */
static __device__ __forceinline__ struct sf_cuda_lane sf_basis_lane(
    const struct sf_cuda_view &view, const struct sf_unit &unit, int32_t l)
{
    sf_global<const sf_quad> four = sf_as<const sf_quad>(view.lanes) + (size_t)(unit.lane + l) * 2;
    sf_quad a = four[0], b = four[1];
    struct sf_cuda_lane lane = { (int32_t)a.word[0], (int32_t)a.word[1], (int32_t)a.word[2],
                                 (int32_t)a.word[3], (int32_t)b.word[0], (int32_t)b.word[1],
                                 (int32_t)b.word[2], (int32_t)b.word[3], false };
    return lane;
}

static __device__ __forceinline__ struct sf_basis sf_basis_at(const struct sf_cuda_view &view,
                                                              const struct sf_cuda_lane &lane,
                                                              int32_t part)
{
    sf_global<const sf_quad> four = sf_as<const sf_quad>(view.parts) +
                                    (size_t)(lane.part_first + part) * (SF_PART_WORDS / 4);
    sf_quad a = four[0], b = four[1], c = four[2], d = four[3], e = four[SF_PART_TURNS / 4];
    struct sf_basis basis;
    basis.pages_first = (int32_t)a.word[0];
    basis.slots = (int32_t)a.word[1];
    basis.layout.dtype = (enum sf_dtype)(int32_t)a.word[2];
    basis.layout.page_slots = (int32_t)a.word[3];
    basis.layout.k_dim = (int32_t)b.word[0];
    basis.layout.v_dim = (int32_t)b.word[1];
    basis.factors = view.layout;
    basis.factors.dtype = basis.layout.dtype;
    basis.factor_first = (int32_t)b.word[2];
    basis.factors.page_slots = (int32_t)b.word[3];
    basis.rank_k = (int32_t)c.word[0];
    basis.rank_v = (int32_t)c.word[1];
    basis.rope_dim = (int32_t)c.word[2];
    basis.value_first = (int32_t)c.word[3];
    basis.values.dtype = (enum sf_dtype)(int32_t)d.word[0];
    basis.values.page_slots = (int32_t)d.word[1];
    basis.values.k_dim = 0;
    basis.values.v_dim = view.layout.v_dim;
    uint64_t turns = (uint64_t)e.word[0] | (uint64_t)e.word[1] << 32;
    basis.turns = reinterpret_cast<const float *>((uintptr_t)turns);
    return basis;
}

/* Of lane l: the page of its first factors, or of its first value where rank_v is 0 (`values`).
 * `first`: lane 0; all have as many parts. */
static __device__ __forceinline__ int32_t sf_basis_page(const struct sf_cuda_view &view,
                                                        const struct sf_cuda_lane &first,
                                                        int32_t part, int32_t l, bool values)
{
    return view.parts[(size_t)(first.part_first + l * first.parts + part) * SF_PART_WORDS +
                      (values ? 11 : 6)];
}

/* Slots from .. from + slots - 1 of the part, or those that `picks` names. */
struct sf_piece { int32_t from, slots; sf_global<const int32_t> picks; };

/* The number of one of them; -1: there is none. */
template <bool PICKED>
static __device__ __forceinline__ int32_t sf_piece_slot(const struct sf_piece &piece, int32_t s)
{
    if (s >= piece.slots) return -1;
    if (PICKED) return piece.picks[s];
    return piece.from + s;
}

#endif
