/* kernels/cuda/lanes.h: the lanes of a job on the device, and the logits of one slot.
 *
 * A vector is one query head of one row; those of a lane are numbered row * q_heads + head.  A tile
 * is up to SF_VECTORS successive vectors of a lane: they share each key and value that is loaded.
 *
 * A logit is one chain of fused products over k_dim in order, in int8 of codes and then the key's
 * scale, then scale and bias, whatever the tile and whoever asks: attend and columns get the same
 * bits. */
#ifndef SHEAF_KERNELS_CUDA_LANES_H
#define SHEAF_KERNELS_CUDA_LANES_H
#include "kernels/cuda/block.h"

enum {
    SF_VECTORS = 8,
    SF_SHARED_FLOATS = 48 * 1024 / 4    /* of a block, without asking the driver for more */
};

/* sf_lane_job with its pages and its parts as places in arrays, at first turned to its own slots
 * (sf_lane_turn). */
struct sf_cuda_lane {
    int32_t pages_first, slots, row_first, rows, q_first, q_heads, part_first, parts;
    bool whole;                         /* turned to a part: every row sees all slots */
};
/* A part: page of the first, slots, dtype, slots of a page; of one with factors also k_dim and
 * v_dim of its pages, page of the first row of factors, rows of a page there, rank_k, rank_v,
 * rope_dim, page of the first value where rank_v is 0, of those values dtype and slots of a page,
 * whether the lane before has the same basis (sf_cuda_basis_shared), and the address of the turns.
 * Of one with picks: as slots how many, and last their address. */
enum { SF_LANE_WORDS = 8, SF_PART_WORDS = 20, SF_PART_SHARED = 14, SF_PART_TURNS = 16,
       SF_PART_PICKS = 18 };
/* What kernels know of a job, by value. */
struct sf_cuda_view {
    struct sf_layout layout;
    sf_global<const unsigned char> pool;
    size_t page_bytes;
    sf_global<const float> q;
    size_t q_stride;
    float scale;
    int32_t window;
    sf_global<const int32_t> lanes;     /* [][SF_LANE_WORDS] */
    sf_global<const int32_t> parts;     /* [][SF_PART_WORDS] */
    sf_global<const int32_t> pages;
    sf_global<const int32_t> row_pos;   /* only read if window != 0 */
};

/* The lanes, pages and positions of a job in one block of the ring, with room for `extra` bytes
 * behind them; the view of it.  A job that is too long for the ring is refused by an assertion.
 * The words of lanes, up to parts_at, and then of parts, in all words_bytes from the block's begin
 * on, say all of the lanes but which pages those are. */
struct sf_cuda_packed {
    struct sf_cuda_block block;
    size_t parts_at, parts, words_bytes, extra_at;
    struct sf_cuda_view view;
};
void sf_cuda_pack(struct sf_cuda *, const struct sf_attend_job *, size_t extra,
                  struct sf_cuda_packed *out);
/* The same, without extra, of a job whose lanes, and pages with the words of parts, are no more
 * than so many; else false and nothing is done. */
bool sf_cuda_pack_whole(struct sf_cuda *, const struct sf_attend_job *, int32_t lanes_most,
                        size_t pages_most, struct sf_cuda_packed *out);
/* Whether the words of another job, of as many lanes and parts, say the same of them, addresses
 * apart: of those only whether there are picks. */
bool sf_cuda_words_alike(const struct sf_cuda_packed *, const unsigned char *words);
/* Whether one unit can read a part's basis for lane i of the job and for the one before it: the
 * part is the same but for its factors' and values' pages, none of it is picked, and both lanes
 * have as many rows, heads and slots, in all parts. */
bool sf_cuda_basis_shared(const struct sf_attend_job *, int32_t i, int32_t part);
/* Pages of a lane and its parts, as many as packing it takes. */
size_t sf_cuda_lane_pages(const struct sf_attend_job *, const struct sf_lane_job *);

static __device__ __forceinline__ struct sf_cuda_lane sf_lane_at(const struct sf_cuda_view &view,
                                                                 int32_t i)
{
    sf_global<const int32_t> word = view.lanes + (size_t)i * SF_LANE_WORDS;
    struct sf_cuda_lane lane = { word[0], word[1], word[2], word[3], word[4],
                                 word[5], word[6], word[7], false };
    return lane;
}

/* Turns a lane, and the view's layout with it, to one of its parts; part -1: they stay as they
 * are. */
static __device__ __forceinline__ void sf_lane_turn(struct sf_cuda_view &view,
                                                    struct sf_cuda_lane &lane, int32_t part)
{
    if (part < 0) return;
    sf_global<const int32_t> word = view.parts + (size_t)(lane.part_first + part) * SF_PART_WORDS;
    lane.pages_first = word[0];
    lane.slots = word[1];
    lane.whole = true;
    view.layout.dtype = (enum sf_dtype)(int32_t)word[2];
    view.layout.page_slots = word[3];
}

/* The picks of a part that has some. */
static __device__ __forceinline__ sf_global<const int32_t> sf_picks_of(
    const struct sf_cuda_view &view, const struct sf_cuda_lane &lane, int32_t part)
{
    sf_global<const int32_t> word = view.parts + (size_t)(lane.part_first + part) * SF_PART_WORDS;
    uint64_t address = (uint64_t)(uint32_t)(int32_t)word[SF_PART_PICKS] |
                       (uint64_t)(uint32_t)(int32_t)word[SF_PART_PICKS + 1] << 32;
    return reinterpret_cast<const int32_t *>((uintptr_t)address);
}

/* Physical slots that a row sees at most, counted from slot 0. */
static __device__ __forceinline__ int32_t sf_row_end(const struct sf_cuda_lane &lane, int32_t row)
{
    return lane.whole ? lane.slots : lane.slots - lane.rows + row + 1;
}

/* One slot of a lane: its page and its number there. */
struct sf_cuda_slot { sf_global<const unsigned char> page; int32_t slot; };

static __device__ __forceinline__ struct sf_cuda_slot sf_slot_at(const struct sf_cuda_view &view,
                                                                 const struct sf_cuda_lane &lane,
                                                                 int32_t s)
{
    int32_t page = view.pages[lane.pages_first + s / view.layout.page_slots];
    struct sf_cuda_slot at = { view.pool + (size_t)page * view.page_bytes,
                               s % view.layout.page_slots };
    return at;
}

static __device__ __forceinline__ float sf_bias_of(const struct sf_layout &layout,
                                                   const struct sf_cuda_slot &at)
{
    return sf_as<const float>(at.page)[sf_bias_word(layout) + (size_t)at.slot];
}

static __device__ __forceinline__ int32_t sf_pos_of(const struct sf_layout &layout,
                                                    const struct sf_cuda_slot &at)
{
    size_t word = sf_bias_word(layout) + (size_t)layout.page_slots + (size_t)at.slot;
    return sf_as<const int32_t>(at.page)[word];
}

/* Copies the queries of a tile, [vectors][k_dim], to shared memory; the caller waits. */
static __device__ __forceinline__ void sf_queries_stage(const struct sf_cuda_view &view,
                                                        const struct sf_cuda_lane &lane,
                                                        int32_t first, int32_t vectors,
                                                        sf_shared<float> q)
{
    int32_t k_dim = view.layout.k_dim;
    for (int32_t i = (int32_t)threadIdx.x; i < vectors * k_dim; i += (int32_t)blockDim.x) {
        int32_t vector = first + i / k_dim, row = lane.row_first + vector / lane.q_heads;
        int32_t head = lane.q_first + vector % lane.q_heads;
        q[i] = view.q[(size_t)row * view.q_stride + (size_t)head * (size_t)k_dim +
                      (size_t)(i % k_dim)];
    }
}

/* Elements e .. e + N - 1 of a slot's key; lanes of a warp hold neighbouring slots, whose elements
 * lie side by side.  `block`: the first element of the slot's block. */
template <enum sf_dtype D, int N>
static __device__ __forceinline__ void sf_key_load(const struct sf_cuda_slot &at, size_t block,
                                                   int32_t e, float (&key)[N])
{
    size_t lane = (size_t)(at.slot % SF_BLOCK_SLOTS);
    SF_UNROLL
    for (int i = 0; i < N; i += D == SF_BF16 ? 2 : 1) {
        if (D == SF_BF16) {
            size_t word = block / 2 + (size_t)((e + i) / 2) * SF_BLOCK_SLOTS + lane;
            uint32_t pair = sf_as<const uint32_t>(at.page)[word];
            key[i] = sf_bf16_widen((uint16_t)pair);
            key[i + 1] = sf_bf16_widen((uint16_t)(pair >> 16));
        } else {
            key[i] = sf_get(D, at.page, block + (size_t)(e + i) * SF_BLOCK_SLOTS + lane);
        }
    }
}

/* dot[j] = q_j . k of the slot, j < vectors.  Each key element is loaded once for all vectors, 16
 * (int8: 4, for want of registers) at a time where k_dim lets queries be read in fours. */
template <enum sf_dtype D>
static __device__ __forceinline__ void sf_dots(int32_t k_dim, const struct sf_cuda_slot &at,
                                               sf_shared<const float> q, int32_t vectors,
                                               float *dot)
{
    enum { STEP = D == SF_INT8 ? 4 : 16, LAST = D == SF_BF16 ? 2 : 1 };
    size_t block = (size_t)(at.slot / SF_BLOCK_SLOTS) * SF_BLOCK_SLOTS * (size_t)k_dim;
    int32_t whole = k_dim % 4 == 0 ? k_dim / STEP * STEP : 0;
    SF_UNROLL
    for (int j = 0; j < SF_VECTORS; j++) dot[j] = 0;
    for (int32_t e = 0; e < whole; e += STEP) {
        float key[STEP];
        sf_key_load<D>(at, block, e, key);
        SF_UNROLL
        for (int j = 0; j < SF_VECTORS; j++) {
            if (j >= vectors) continue;
            sf_shared<const sf_quad_f> four = sf_as<const sf_quad_f>(q + (j * k_dim + e));
            SF_UNROLL
            for (int i = 0; i < STEP / 4; i++) {
                sf_quad_f some = four[i];
                SF_UNROLL
                for (int w = 0; w < 4; w++) dot[j] = fmaf(some.word[w], key[4 * i + w], dot[j]);
            }
        }
    }
    for (int32_t e = whole; e < k_dim; e += LAST) {
        float key[LAST];
        sf_key_load<D>(at, block, e, key);
        SF_UNROLL
        for (int j = 0; j < SF_VECTORS; j++) {
            if (j >= vectors) continue;
            SF_UNROLL
            for (int i = 0; i < LAST; i++) dot[j] = fmaf(q[j * k_dim + e + i], key[i], dot[j]);
        }
    }
}

/* INT8: whether slots may be in int8, which takes registers of all others. */
template <bool INT8>
static __device__ __forceinline__ void sf_dots_any(const struct sf_layout &layout,
                                                   const struct sf_cuda_slot &at,
                                                   sf_shared<const float> q, int32_t vectors,
                                                   float *dot)
{
    if (layout.dtype == SF_F32) sf_dots<SF_F32>(layout.k_dim, at, q, vectors, dot);
    else if (layout.dtype == SF_F16) sf_dots<SF_F16>(layout.k_dim, at, q, vectors, dot);
    else if (!INT8 || layout.dtype == SF_BF16)
        sf_dots<SF_BF16>(layout.k_dim, at, q, vectors, dot);
    else {
        sf_dots<SF_INT8>(layout.k_dim, at, q, vectors, dot);
        float scale = sf_scale_of(layout, at.page, at.slot, false);
        SF_UNROLL
        for (int j = 0; j < SF_VECTORS; j++) dot[j] *= scale;
    }
}

#endif
