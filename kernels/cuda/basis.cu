/* kernels/cuda/basis.cu: slots that are rows of a basis: one split of attention over them.
 *
 *   unit    one block: one split of a part with factors, and up to VECTORS vectors of a lane, or of
 *           several lanes of a layer that share the basis: each its own factors and queries
 *   keys    16-bit slots, if k_dim is a multiple of 16: by the tensor cores, up to logits
 *           (basis_tensor.h).  Else PIECE slots at a time: a_k [STEP][PIECE] is staged in shared
 *           memory, f32; a thread has element e of all SLOTS slots in registers and loads row by
 *           row of b_k, 16 at once, each element once a piece: 16 SLOTS fused products for 16
 *           elements of b_k and 4 SLOTS loads of four.  The keys are then turned to their positions
 *           in shared memory
 *   values  a_v is weighed for all vectors of the unit at once, two elements a thread where a row
 *           has an even number; the product with each lane's b_v comes once a split.  With rank_v 0
 *           each lane's values lie as they are
 *
 *     shared   | logits [vectors][SF_SPLIT_SLOTS] | q [vectors][k_dim] | room of basis_tensor.h, or
 *              | a_k [STEP][PIECE] | bias [PIECE] | pos [PIECE] | keys [k_dim][PIECE + 1] |
 *              behind the logits later          | latent [vectors][rank_v] | places of picks |
 *
 * Where the part has picks, the slots of a unit are those that their list names; where in the pool
 * the values of them lie is worked out once a split.  A pick of no slot is a hole.  Such a unit is
 * of one lane, for each lane has picks of its own.
 *
 * Sums go over the rank in its order; over the slots in one that depends on their number in the
 * split and on rank_v; over a key's elements in f32 in theirs, else in one that depends on k_dim
 * and rope_dim.  So the bits of a vector are its own, whatever the unit.  Products of 16-bit
 * numbers are exact in f32, so both ways differ in how sums are rounded alone.  Where keys are made
 * in f32, a unit is bound by their 2 rank_k k_dim operations a slot and lane; else by the 2 rank_v
 * operations a slot and vector of the values, in f32.
 *
 * Bytes read, per slot of a unit: a_v, bias and position once; a_k once a pass (of 64 elements of
 * two lanes, or 128 of one); a row of the turns for every two lanes; of b_k of each lane a 128th
 * part; per split b_v of each lane.  In f32 each lane reads turns and a_k, and of b_k a PIECE-th
 * part.  tests/kernels/traffic.c counts it; whole steps: docs/performance.md.  Nothing here was
 * measured on a GPU. */
#include <string.h>
#include "kernels/backend.h"
#include "kernels/cuda/basis_tensor.h"

enum { THREADS = SF_BASIS_THREADS, WARPS = THREADS / SF_WARP, PIECE = 32, STEP = SF_BLOCK_SLOTS,
       VECTORS = SF_TILE_VECTORS };

/* ---- keys in f32 ----------------------------------------------------------------------------- */

/* a_k of the piece's slots, rows first .. first + STEP - 1 of the rank: a[i][slot], 0 where there
 * is none. */
template <enum sf_dtype D, bool PICKED>
static __device__ __forceinline__ void basis_stage(const struct sf_cuda_view &view,
                                                   const struct sf_cuda_lane &lane,
                                                   const struct sf_basis &basis,
                                                   const struct sf_piece &piece, int32_t first,
                                                   sf_shared<float> a)
{
    enum { ONCE = D == SF_BF16 ? 2 : 1 };
    for (int32_t n = (int32_t)threadIdx.x; n < STEP / ONCE * PIECE; n += THREADS) {
        int32_t s = n % PIECE, i = n / PIECE * ONCE;
        float value[ONCE] = {};
        int32_t number = sf_piece_slot<PICKED>(piece, s);
        if (number >= 0 && first + i < basis.rank_k) {
            struct sf_cuda_slot at = sf_slot_at(view, lane, number);
            size_t element = sf_key_at(basis.layout, at.slot, (size_t)(first + i));
            if (D == SF_BF16) {
                uint32_t pair = sf_as<const uint32_t>(at.page)[element / 2];
                value[0] = sf_bf16_widen((uint16_t)pair);
                if (first + i + 1 < basis.rank_k)
                    value[ONCE - 1] = sf_bf16_widen((uint16_t)(pair >> 16));
            } else {
                value[0] = sf_get(D, at.page, element);
            }
        }
        SF_UNROLL
        for (int w = 0; w < ONCE; w++) a[(i + w) * PIECE + s] = value[w];
    }
}

/* b_k: element e of rows first .. first + STEP - 1, which lie side by side; 0 where there is
 * none. */
template <enum sf_dtype D>
static __device__ __forceinline__ void factors_load(const struct sf_cuda_view &view,
                                                    const struct sf_basis &basis, int32_t first,
                                                    int32_t e, float (&b)[STEP])
{
    enum { QUADS = D == SF_F16 ? 2 : 4, EACH = STEP / QUADS };
    int32_t slot = first % basis.factors.page_slots;
    int32_t number = view.pages[basis.factor_first + first / basis.factors.page_slots];
    sf_global<const unsigned char> page = view.pool + (size_t)number * view.page_bytes;
    size_t element = sf_key_at(basis.factors, slot, (size_t)(D == SF_BF16 ? e / 2 * 2 : e));
    sf_global<const sf_quad> quad = sf_as<const sf_quad>(page) + element / (D == SF_F32 ? 4 : 8);
    SF_UNROLL
    for (int q = 0; q < QUADS; q++) {
        sf_quad some = quad[q];
        SF_UNROLL
        for (int i = 0; i < EACH; i++) {
            uint32_t word = some.word[D == SF_F16 ? i / 2 : i];
            float value;
            if (D == SF_F32) memcpy(&value, &word, sizeof value);
            else if (D == SF_F16) value = sf_f16_widen((uint16_t)(i % 2 ? word >> 16 : word));
            else value = sf_bf16_widen((uint16_t)(e % 2 ? word >> 16 : word));
            b[q * EACH + i] = first + q * EACH + i < basis.rank_k ? value : 0;
        }
    }
}

/* keys[e][slot] of the piece, not yet turned; THREADS * SLOTS / PIECE elements at a time. */
template <enum sf_dtype D, int SLOTS, bool PICKED>
static __device__ __forceinline__ void keys_make(const struct sf_cuda_view &view,
                                                 const struct sf_cuda_lane &lane,
                                                 const struct sf_basis &basis,
                                                 const struct sf_piece &piece, sf_shared<float> a,
                                                 sf_shared<float> keys)
{
    enum { WIDTH = THREADS * SLOTS / PIECE };
    int32_t k_dim = view.layout.k_dim, mine = (int32_t)threadIdx.x / WIDTH * SLOTS;
    for (int32_t wide = 0; wide < k_dim; wide += WIDTH) {
        int32_t e = wide + (int32_t)threadIdx.x % WIDTH;
        float sum[SLOTS] = {}, b[STEP];
        for (int32_t first = 0; first < basis.rank_k; first += STEP) {
            __syncthreads();
            basis_stage<D, PICKED>(view, lane, basis, piece, first, a);
            __syncthreads();
            if (e >= k_dim) continue;
            factors_load<D>(view, basis, first, e, b);
            SF_UNROLL
            for (int i = 0; i < STEP; i++) {
                sf_shared<const sf_quad_f> four = sf_as<const sf_quad_f>(a + (i * PIECE + mine));
                SF_UNROLL
                for (int q = 0; q < SLOTS / 4; q++) {
                    sf_quad_f some = four[q];
                    SF_UNROLL
                    for (int w = 0; w < 4; w++)
                        sum[4 * q + w] = fmaf(b[i], some.word[w], sum[4 * q + w]);
                }
            }
        }
        if (e >= k_dim) continue;
        SF_UNROLL
        for (int s = 0; s < SLOTS; s++) keys[e * (PIECE + 1) + mine + s] = sum[s];
    }
}

/* ---- logits --------------------------------------------------------------------------------- */

/* Pairs (i, i + half) of an element; a hole has no position and is turned as if it were at 0. */
static __device__ __forceinline__ void keys_turn(const struct sf_basis &basis, int32_t slots,
                                                 sf_shared<const int32_t> pos,
                                                 sf_shared<float> keys)
{
    int32_t half = basis.rope_dim / 2;
    for (int32_t n = (int32_t)threadIdx.x; n < half * slots; n += THREADS) {
        int32_t i = n % half, s = n / half, at = pos[s];
        sf_global<const float> turn = basis.turns + (size_t)(at < 0 ? 0 : at) *
                                                    (size_t)basis.rope_dim;
        float cos = turn[i], sin = turn[half + i];
        float low = keys[i * (PIECE + 1) + s], high = keys[(i + half) * (PIECE + 1) + s];
        keys[i * (PIECE + 1) + s] = low * cos - high * sin;
        keys[(i + half) * (PIECE + 1) + s] = high * cos + low * sin;
    }
}

/* A warp takes a vector of the lane, its threads the slots. */
static __device__ __forceinline__ void logits_make(const struct sf_cuda_view &view,
                                                   const struct sf_cuda_lane &lane,
                                                   const struct sf_unit &unit, int32_t slots,
                                                   sf_shared<const float> q,
                                                   sf_shared<const float> keys,
                                                   sf_shared<const float> bias,
                                                   sf_shared<const int32_t> pos,
                                                   sf_shared<float> logits)
{
    int32_t s = (int32_t)(threadIdx.x % SF_WARP), k_dim = view.layout.k_dim;
    for (int32_t j = (int32_t)(threadIdx.x / SF_WARP); s < slots && j < unit.vectors; j += WARPS) {
        float dot = 0, added = bias[s];
        for (int32_t e = 0; e < k_dim; e++)
            dot = fmaf(q[j * k_dim + e], keys[e * (PIECE + 1) + s], dot);
        bool seen = added != -INFINITY;
        if (seen && view.window != 0) {
            int32_t row = lane.row_first + (unit.first + j) / lane.q_heads;
            seen = (int64_t)(int32_t)pos[s] > (int64_t)(int32_t)view.row_pos[row] - view.window;
        }
        logits[j * SF_SPLIT_SLOTS + s] = seen ? fmaf(dot, view.scale, added) : -INFINITY;
    }
}

/* Where a block has what it needs for keys in f32. */
struct room {
    sf_shared<float> logits, q, a, bias;
    sf_shared<int32_t> pos;
    sf_shared<float> keys;
};

/* Logits of `count` slots of the unit's split, lane by lane; `lane` is turned to the part. */
template <enum sf_dtype D, int SLOTS, bool PICKED>
static __device__ __forceinline__ void logits_of(const struct sf_cuda_view &view,
                                                 const struct sf_cuda_lane &lane,
                                                 const struct sf_unit &unit, int32_t count,
                                                 sf_global<const int32_t> picks,
                                                 const struct room &room)
{
    int32_t thread = (int32_t)threadIdx.x;
    for (int32_t s = 0; s < count; s += PIECE) {
        int32_t slots = count - s < PIECE ? count - s : PIECE;
        struct sf_piece piece = { unit.from + s, slots, picks };
        if (PICKED) piece.picks = picks + s;
        for (int32_t l = 0; l < unit.lanes; l++) {
            struct sf_cuda_lane one = sf_basis_lane(view, unit, l);
            struct sf_basis basis = sf_basis_at(view, one, unit.part);
            __syncthreads();
            if (l == 0 && thread < slots) {
                int32_t number = sf_piece_slot<PICKED>(piece, thread);
                room.bias[thread] = -INFINITY;
                room.pos[thread] = -1;
                if (number >= 0) {
                    struct sf_cuda_slot at = sf_slot_at(view, lane, number);
                    room.bias[thread] = sf_bias_of(basis.layout, at);
                    room.pos[thread] = sf_pos_of(basis.layout, at);
                }
            }
            keys_make<D, SLOTS, PICKED>(view, lane, basis, piece, room.a, room.keys);
            __syncthreads();
            keys_turn(basis, slots, room.pos, room.keys);
            __syncthreads();
            logits_make(view, one, unit, slots, room.q + l * unit.vectors * view.layout.k_dim,
                        room.keys, room.bias, room.pos,
                        room.logits + (l * unit.vectors * SF_SPLIT_SLOTS + s));
        }
    }
}

/* ---- values --------------------------------------------------------------------------------- */

/* Values of slots from .. from + count - 1 of some pages, or of picks: those that begin at `places`
 * in the pool, in bytes; all ones there: a pick of no slot. */
struct rows {
    sf_global<const int32_t> pages;
    struct sf_layout layout;
    int32_t from, count;
    sf_shared<const uint64_t> places;
};

static __device__ __forceinline__ void places_find(const struct sf_cuda_view &view,
                                                   const struct rows &rows,
                                                   sf_global<const int32_t> picks,
                                                   sf_shared<uint64_t> places)
{
    size_t keys = (size_t)rows.layout.page_slots * (size_t)rows.layout.k_dim;
    size_t width = rows.layout.dtype == SF_F32 ? 4 : 2;
    for (int32_t s = (int32_t)threadIdx.x; s < rows.count; s += THREADS) {
        int32_t number = picks[s];
        uint64_t place = ~(uint64_t)0;
        if (number >= 0) {
            size_t page = (size_t)(int32_t)rows.pages[number / rows.layout.page_slots];
            size_t slot = (size_t)(number % rows.layout.page_slots);
            place = page * view.page_bytes + (keys + slot * (size_t)rows.layout.v_dim) * width;
        }
        places[s] = place;
    }
}

/* Elements `at` .. at + WIDE - 1 of an array.  Two of them, at an even place, are one load. */
template <int WIDE>
static __device__ __forceinline__ void elements_get(enum sf_dtype dtype,
                                                    sf_global<const unsigned char> array, size_t at,
                                                    float (&value)[WIDE])
{
    if (WIDE == 1) {
        value[0] = sf_get(dtype, array, at);
    } else if (dtype == SF_F32) {
        sf_two two = sf_as<const sf_two>(array)[at / 2];
        memcpy(value, two.word, sizeof value);
    } else {
        uint32_t pair = sf_as<const uint32_t>(array)[at / 2];
        bool wide = dtype == SF_BF16;
        value[0] = wide ? sf_bf16_widen((uint16_t)pair) : sf_f16_widen((uint16_t)pair);
        value[WIDE - 1] = wide ? sf_bf16_widen((uint16_t)(pair >> 16))
                               : sf_f16_widen((uint16_t)(pair >> 16));
    }
}

/* sum[w][j] = sum over every `step`-th block of rows from `block` on of weight[j][row] * element
 * e + w of the row.  FILLED: there are weights up to the end of the last block, 0 behind the rows.
 * To be said where threads of a block have other rows: else a branch, whose threads have to meet
 * again, stands around each product. */
template <int WIDE, bool PICKED, bool FILLED>
static __device__ __forceinline__ void rows_weigh(const struct sf_cuda_view &view,
                                                  const struct rows &rows, int32_t block,
                                                  int32_t step, int32_t e, int32_t vectors,
                                                  sf_shared<const float> weights, int32_t stride,
                                                  float (&sum)[WIDE][VECTORS])
{
    size_t width = (size_t)rows.layout.v_dim;
    size_t values = (size_t)rows.layout.page_slots * (size_t)rows.layout.k_dim;
    SF_UNROLL
    for (int i = 0; i < WIDE * VECTORS; i++) sum[i / VECTORS][i % VECTORS] = 0;
    for (block *= SF_BLOCK_SLOTS; block < rows.count; block += step * SF_BLOCK_SLOTS) {
        int32_t there = rows.count - block < SF_BLOCK_SLOTS ? rows.count - block : SF_BLOCK_SLOTS;
        float value[SF_BLOCK_SLOTS][WIDE] = {};
        sf_global<const unsigned char> page = view.pool;
        size_t first = 0;
        if (!PICKED) {
            int32_t slot = rows.from + block, number = rows.pages[slot / rows.layout.page_slots];
            page = view.pool + (size_t)number * view.page_bytes;
            first = values + (size_t)(slot % rows.layout.page_slots) * width + (size_t)e;
        }
        SF_UNROLL
        for (int s = 0; s < SF_BLOCK_SLOTS; s++) {
            if (s >= there) continue;
            if (!PICKED) {
                elements_get<WIDE>(rows.layout.dtype, page, first + (size_t)s * width, value[s]);
                continue;
            }
            uint64_t place = rows.places[block + s];
            if (place != ~(uint64_t)0)
                elements_get<WIDE>(rows.layout.dtype, view.pool + place, (size_t)e, value[s]);
        }
        SF_UNROLL
        for (int j = 0; j < VECTORS; j++) {
            if (j >= vectors) continue;
            SF_UNROLL
            for (int s = 0; s < SF_BLOCK_SLOTS; s++) {
                if (!FILLED && s >= there) continue;
                float weight = weights[j * stride + block + s];
                SF_UNROLL
                for (int w = 0; w < WIDE; w++)
                    if (weight != 0) sum[w][j] = fmaf(weight, value[s][w], sum[w][j]);
            }
        }
    }
}

/* Puts elements `at` .. at + WIDE - 1 of vector j, or adds them to what is there; in one access, so
 * that a warp's go to all banks. */
template <int WIDE>
static __device__ __forceinline__ void elements_add(sf_shared<float> array, int32_t at, bool add,
                                                    int j, const float (&sum)[WIDE][VECTORS])
{
    struct alignas(4 * WIDE) some { float element[WIDE]; } some = {};
    if (add) some = sf_as<const struct some>(array)[at / WIDE];
    SF_UNROLL
    for (int w = 0; w < WIDE; w++)
        some.element[w] = add ? some.element[w] + sum[w][j] : sum[w][j];
    sf_as<struct some>(array)[at / WIDE] = some;
}

/* latent[j] = sum over the slots of weight[j][slot] a_v, for all vectors at once.  WIDE elements
 * are a thread's; where few threads have some, others take other blocks of slots, and what they
 * have is added in order. */
template <int WIDE, bool PICKED>
static __device__ __forceinline__ void latents_make(const struct sf_cuda_view &view,
                                                    const struct rows &rows, int32_t rank,
                                                    int32_t vectors,
                                                    sf_shared<const float> weights,
                                                    sf_shared<float> latent)
{
    int32_t wide = SF_WARP;             /* threads that take other elements */
    while (wide < THREADS && wide * WIDE < rank) wide *= 2;
    int32_t groups = THREADS / wide, group = (int32_t)threadIdx.x / wide;
    for (int32_t first = 0; first < rank; first += wide * WIDE) {
        int32_t e = first + (int32_t)threadIdx.x % wide * WIDE;
        float sum[WIDE][VECTORS];
        if (e < rank)
            rows_weigh<WIDE, PICKED, true>(view, rows, group, groups, e, vectors, weights,
                                           SF_SPLIT_SLOTS, sum);
        for (int32_t g = 0; g < groups; g++) {
            if (g > 0) __syncthreads();
            if (g != group || e >= rank) continue;
            SF_UNROLL
            for (int j = 0; j < VECTORS; j++)
                if (j < vectors) elements_add<WIDE>(latent, j * rank + e, g > 0, j, sum);
        }
    }
}

/* out_e of the unit's vectors, lane by lane: of latents with the lane's b_v, or of values that lie
 * as they are. */
template <bool PICKED>
static __device__ __forceinline__ void values_put(const struct sf_cuda_view &view,
                                                  const struct sf_cuda_lane &lane,
                                                  const struct sf_unit &unit, struct rows rows,
                                                  bool plain, sf_shared<const float> weights,
                                                  int32_t stride,
                                                  sf_global<float> state, size_t state_floats)
{
    int32_t v_dim = view.layout.v_dim;
    for (int32_t n = (int32_t)threadIdx.x; n < unit.lanes * v_dim; n += THREADS) {
        int32_t l = n / v_dim, e = n % v_dim;
        rows.pages = view.pages + sf_basis_page(view, lane, unit.part, l, plain);
        float sum[1][VECTORS];
        rows_weigh<1, PICKED, false>(view, rows, 0, 1, e, unit.vectors,
                                     weights + l * unit.vectors * stride, stride, sum);
        SF_UNROLL
        for (int j = 0; j < VECTORS; j++) {
            size_t at = (size_t)(l * unit.vectors + j) * (size_t)unit.stride;
            if (j < unit.vectors) state[at * state_floats + (size_t)e] = sum[0][j];
        }
    }
}

/* ---- a unit --------------------------------------------------------------------------------- */

/* Logits behind the `count` of a split, up to the end of their last block, so that weights there
 * are 0; their end. */
static __device__ __forceinline__ int32_t logits_fill(int32_t count, int32_t vectors,
                                                      sf_shared<float> logits)
{
    int32_t end = (count + SF_BLOCK_SLOTS - 1) / SF_BLOCK_SLOTS * SF_BLOCK_SLOTS;
    for (int32_t n = (int32_t)threadIdx.x; n < vectors * SF_BLOCK_SLOTS; n += THREADS) {
        int32_t s = count + n % SF_BLOCK_SLOTS;
        if (s < end) logits[n / SF_BLOCK_SLOTS * SF_SPLIT_SLOTS + s] = -INFINITY;
    }
    return end;
}

/* Values of the split, weighed. */
template <bool PICKED>
static __device__ __forceinline__ void values_of(const struct sf_cuda_view &view,
                                                 const struct sf_cuda_lane &lane,
                                                 const struct sf_unit &unit,
                                                 const struct sf_basis &basis, struct rows rows,
                                                 sf_global<const int32_t> picks,
                                                 sf_shared<const float> weights,
                                                 sf_shared<float> latent, sf_global<float> state)
{
    int32_t all = unit.vectors * unit.lanes, latents = (all * basis.rank_v + 1) / 2 * 2;
    size_t state_floats = (size_t)sf_state_floats(view.layout.v_dim);
    sf_shared<uint64_t> places = sf_as<uint64_t>(latent + latents);
    rows.places = places;
    if (PICKED) {
        places_find(view, rows, picks, places);
        __syncthreads();
    }
    if (basis.rank_v == 0) {
        values_put<PICKED>(view, lane, unit, rows, true, weights, SF_SPLIT_SLOTS, state,
                           state_floats);
        return;
    }
    if (basis.rank_v % 2 == 0 && rows.layout.v_dim % 2 == 0)
        latents_make<2, PICKED>(view, rows, basis.rank_v, all, weights, latent);
    else latents_make<1, PICKED>(view, rows, basis.rank_v, all, weights, latent);
    __syncthreads();
    struct rows factors = { view.pages, basis.factors, 0, basis.rank_v, places };
    values_put<false>(view, lane, unit, factors, false, latent, basis.rank_v, state, state_floats);
}

template <enum sf_dtype D, int SLOTS, bool PICKED>
static __global__ void __launch_bounds__(THREADS, SLOTS == 0 ? 2 : 3)
attend_basis(struct sf_cuda_view view, sf_global<const int32_t> units, sf_global<float> states)
{
    SF_SHARED_DYNAMIC(float, logits);
    struct sf_unit unit = sf_unit_at(units, blockIdx.x);
    struct sf_cuda_lane lane = sf_basis_lane(view, unit, 0);
    struct sf_basis basis = sf_basis_at(view, lane, unit.part);
    int32_t k_dim = view.layout.k_dim, v_dim = view.layout.v_dim;
    sf_global<const int32_t> picks;
    if (PICKED) picks = sf_picks_of(view, lane, unit.part) + unit.from;
    struct sf_unit whole = unit;
    whole.vectors *= unit.lanes;
    sf_shared<float> q = logits + whole.vectors * SF_SPLIT_SLOTS;
    sf_shared<float> a = q + (whole.vectors * k_dim + 3) / 4 * 4;
    for (int32_t l = 0; l < unit.lanes; l++)
        sf_queries_stage(view, l == 0 ? lane : sf_basis_lane(view, unit, l), unit.first,
                         unit.vectors, q + l * unit.vectors * k_dim);
    lane.pages_first = basis.pages_first;           /* as sf_lane_turn does */
    lane.slots = basis.slots;
    lane.whole = true;
    view.layout.dtype = basis.layout.dtype;
    view.layout.page_slots = basis.layout.page_slots;
    int32_t count = lane.slots - unit.from < SF_SPLIT_SLOTS ? lane.slots - unit.from
                                                            : SF_SPLIT_SLOTS;
    if constexpr (SLOTS == 0) {
        sf_shared<float> behind = a + 2 * SF_PASS_WORDS;
        struct sf_pass_room room = { logits, q, sf_as<uint32_t>(a), sf_as<uint64_t>(behind),
                                     behind + 2 * THREADS, sf_as<int32_t>(behind + 3 * THREADS) };
        sf_basis_logits<D, PICKED>(view, lane, unit, basis, count, picks, room);
    } else {
        sf_shared<float> bias = a + STEP * PIECE;
        struct room room = { logits, q, a, bias, sf_as<int32_t>(bias + PIECE), bias + 2 * PIECE };
        logits_of<D, SLOTS, PICKED>(view, lane, unit, count, picks, room);
    }
    int32_t end = logits_fill(count, whole.vectors, logits);
    __syncthreads();
    size_t state_floats = (size_t)sf_state_floats(v_dim);
    sf_global<float> state = states + (size_t)unit.state * state_floats;
    sf_weights_make(whole, v_dim, end, logits, state, state_floats);
    __syncthreads();
    struct rows rows = { view.pages + lane.pages_first, basis.layout, unit.from, count, {} };
    if (basis.rank_v == 0) {
        rows.pages = view.pages + basis.value_first;
        rows.layout = basis.values;
    }
    values_of<PICKED>(view, lane, unit, basis, rows, picks, logits, q, state);
}

/* Floats of a block before its latents, with the queries of `vectors`. */
static constexpr size_t early_floats(size_t vectors, size_t k_dim)
{
    return vectors * k_dim + STEP * PIECE + 2 * PIECE + k_dim * (PIECE + 1) + 3;
}
static_assert(SF_SPLIT_SLOTS + early_floats(1, SF_CUDA_BASIS_K_DIM_MAX) <= SF_SHARED_FLOATS &&
              SF_SPLIT_SLOTS + early_floats(1, SF_CUDA_BASIS_K_DIM_MAX + 1) > SF_SHARED_FLOATS,
              "what a plan refuses");

/* Whether the tensor cores make the keys. */
static bool multiplied(const struct sf_layout *layout, enum sf_dtype dtype)
{
    return dtype != SF_F32 && layout->k_dim % 16 == 0;
}

struct sf_basis_cut sf_basis_cut_of(const struct sf_layout *layout,
                                    const struct sf_lane_part *part)
{
    size_t k_dim = (size_t)layout->k_dim, rank_v = (size_t)part->factors->rank_v;
    size_t places = part->pick ? 1 + 2 * SF_SPLIT_SLOTS : 0;
    struct sf_basis_cut cut = { VECTORS, 0 };
    for (; cut.vectors > 0; cut.vectors--) {
        size_t n = (size_t)cut.vectors, late = n * rank_v + places;
        size_t early = multiplied(layout, part->layout->dtype)
                           ? n * k_dim + SF_PASS_ROOM_FLOATS + 3 : early_floats(n, k_dim);
        size_t floats = n * SF_SPLIT_SLOTS + (early > late ? early : late);
        cut.shared_bytes = floats * sizeof(float);
        if (floats <= SF_SHARED_FLOATS) break;
    }
    SF_ASSERT(cut.vectors > 0);
    return cut;
}

template <enum sf_dtype D, bool PICKED>
static void launch(struct sf_cuda *cuda, const struct sf_cuda_view *view,
                   const struct sf_basis_units *some, size_t shared_bytes, float *states)
{
    if constexpr (D != SF_F32)
        if (multiplied(&view->layout, D)) {
            SF_LAUNCH((attend_basis<D, 0, PICKED>), (unsigned)some->count, THREADS, shared_bytes,
                      cuda->stream, *view, some->units, states);
            return;
        }
    if (view->layout.k_dim <= THREADS / 2)
        SF_LAUNCH((attend_basis<D, PIECE / 2, PICKED>), (unsigned)some->count, THREADS,
                  shared_bytes, cuda->stream, *view, some->units, states);
    else
        SF_LAUNCH((attend_basis<D, PIECE, PICKED>), (unsigned)some->count, THREADS, shared_bytes,
                  cuda->stream, *view, some->units, states);
}

template <enum sf_dtype D>
static void launch(struct sf_cuda *cuda, const struct sf_cuda_view *view,
                   const struct sf_basis_units *some, size_t shared_bytes, float *states)
{
    if (some->picked) launch<D, true>(cuda, view, some, shared_bytes, states);
    else launch<D, false>(cuda, view, some, shared_bytes, states);
}

void sf_basis_launch(struct sf_cuda *cuda, const struct sf_cuda_view *view,
                     const struct sf_basis_units *some, size_t shared_bytes, float *states)
{
    if (some->count == 0) return;
    SF_ASSERT(view->page_bytes % 16 == 0);
    if (some->dtype == SF_F32) launch<SF_F32>(cuda, view, some, shared_bytes, states);
    else if (some->dtype == SF_F16) launch<SF_F16>(cuda, view, some, shared_bytes, states);
    else launch<SF_BF16>(cuda, view, some, shared_bytes, states);
}
