/* kernels/cuda/basis.cu: slots that are rows of a basis: one split of attention over them.
 *
 *   unit    one block: up to SF_VECTORS vectors and one split of a part with factors
 *   keys    PIECE slots at a time: a_k [STEP][PIECE] is staged in shared memory, f32; a thread has
 *           element e of all SLOTS slots in registers and loads row by row of b_k, 16 at once, each
 *           element once a piece: 16 SLOTS fused products for 16 elements of b_k and 4 SLOTS loads
 *           of four.  16-bit slots go to the tensor cores instead (SLOTS 0), if k_dim is a multiple
 *           of 16: a warp takes 16 elements of all slots, and what it multiplies comes from the
 *           pages to registers as it lies, for a word of them is what a thread gives to a product
 *           (tensor.h).  The keys are then turned to their positions in shared memory
 *   values  as in attend.cu, but what is weighed is a_v; the product with b_v comes once a split.
 *           With rank_v 0 values lie as they are
 *
 *     shared   | logits [vectors][SF_SPLIT_SLOTS] | q [vectors][k_dim] | keys [k_dim][PIECE + 1] |
 *              | a_k [STEP][PIECE] | bias [PIECE] | pos [PIECE] |
 *              behind the logits later          | latent [vectors][rank_v] | places of picks |
 *
 * Where the part has picks, the slots of a unit are those that their list names; where in the pool
 * the values of them lie is worked out once a split.  A pick of no slot is a hole.
 *
 * Sums go over the rank, and over the slots, in their order, each element in one thread; so the
 * bits of a vector are its own, whatever the unit.  Products of 16-bit numbers are exact in f32, so
 * both ways differ in how sums are rounded alone.  Where keys are made in f32, a unit is bound by
 * their 2 rank_k k_dim operations a slot; else by the 2 rank_v operations a slot and vector of the
 * values, in f32.  Bytes read per slot and unit: a row of the basis, and of b_k a PIECE-th part.
 * Nothing here was measured on a GPU. */
#include <string.h>
#include "kernels/backend.h"
#include "kernels/cuda/attend.h"
#include "kernels/cuda/tensor.h"

enum { THREADS = 128, WARPS = THREADS / SF_WARP, PIECE = 32, STEP = SF_BLOCK_SLOTS };

/* A part with factors. */
struct basis {
    struct sf_layout layout, factors, values;   /* values: read for rank_v 0 */
    int32_t factor_first, value_first, rank_k, rank_v, rope_dim;
    sf_global<const float> turns;
};

static __device__ __forceinline__ struct basis basis_at(const struct sf_cuda_view &view,
                                                        const struct sf_cuda_lane &lane,
                                                        int32_t part)
{
    sf_global<const int32_t> word = view.parts + (size_t)(lane.part_first + part) * SF_PART_WORDS;
    struct basis basis;
    basis.layout.dtype = (enum sf_dtype)(int32_t)word[2];
    basis.layout.page_slots = word[3];
    basis.layout.k_dim = word[4];
    basis.layout.v_dim = word[5];
    basis.factors = view.layout;
    basis.factors.dtype = basis.layout.dtype;
    basis.factors.page_slots = word[7];
    basis.factor_first = word[6];
    basis.value_first = word[11];
    basis.values.dtype = (enum sf_dtype)(int32_t)word[12];
    basis.values.page_slots = word[13];
    basis.values.k_dim = 0;
    basis.values.v_dim = view.layout.v_dim;
    basis.rank_k = word[8];
    basis.rank_v = word[9];
    basis.rope_dim = word[10];
    uint64_t turns = (uint64_t)(uint32_t)(int32_t)word[SF_PART_TURNS] |
                     (uint64_t)(uint32_t)(int32_t)word[SF_PART_TURNS + 1] << 32;
    basis.turns = reinterpret_cast<const float *>((uintptr_t)turns);
    return basis;
}

/* ---- keys ----------------------------------------------------------------------------------- */

/* Slots from .. from + slots - 1 of the part, or those that `picks` names. */
struct piece { int32_t from, slots; sf_global<const int32_t> picks; };

/* The number of one of them; -1: there is none. */
template <bool PICKED>
static __device__ __forceinline__ int32_t piece_slot(const struct piece &piece, int32_t s)
{
    if (s >= piece.slots) return -1;
    if (PICKED) return piece.picks[s];
    return piece.from + s;
}

/* a_k of the piece's slots, rows first .. first + STEP - 1 of the rank: a[i][slot], 0 where there
 * is none. */
template <enum sf_dtype D, bool PICKED>
static __device__ __forceinline__ void basis_stage(const struct sf_cuda_view &view,
                                                   const struct sf_cuda_lane &lane,
                                                   const struct basis &basis,
                                                   const struct piece &piece, int32_t first,
                                                   sf_shared<float> a)
{
    enum { ONCE = D == SF_BF16 ? 2 : 1 };
    for (int32_t n = (int32_t)threadIdx.x; n < STEP / ONCE * PIECE; n += THREADS) {
        int32_t s = n % PIECE, i = n / PIECE * ONCE;
        float value[ONCE] = {};
        int32_t number = piece_slot<PICKED>(piece, s);
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
                                                    const struct basis &basis, int32_t first,
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
                                                 const struct basis &basis,
                                                 const struct piece &piece, sf_shared<float> a,
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

/* ---- keys by the tensor cores --------------------------------------------------------------- */

/* A thread's words of a product, with r and q as in tensor.h: rows 2q and 2q + 1 of the rank from
 * `first` on, and 8 further.  What lies behind the rank is 0. */
static __device__ __forceinline__ uint32_t within(uint32_t pair, int32_t i, int32_t rank)
{
    return i + 1 < rank ? pair : i < rank ? pair & 0xffffu : 0;
}

/* a_k of one slot; `slot`: its first element, NULL for none. */
template <enum sf_dtype D>
static __device__ __forceinline__ void slot_words(sf_global<const uint16_t> slot, int32_t first,
                                                  int32_t rank, uint32_t (&b)[2])
{
    SF_UNROLL
    for (int h = 0; h < 2; h++) {
        int32_t i = first + 2 * (int32_t)(threadIdx.x % 4) + 8 * h;
        b[h] = 0;
        if (!slot || i >= rank) continue;
        if (D == SF_BF16) {
            b[h] = within(sf_as<const uint32_t>(slot)[i / 2 * SF_BLOCK_SLOTS], i, rank);
        } else {
            b[h] = slot[i * SF_BLOCK_SLOTS];
            if (i + 1 < rank)
                b[h] |= (uint32_t)(uint16_t)slot[(i + 1) * SF_BLOCK_SLOTS] << 16;
        }
    }
}

/* b_k: row r of the product is element 2r of the 16 from e on, row r + 8 is element 2r + 1. */
template <enum sf_dtype D>
static __device__ __forceinline__ void factor_words(const struct sf_cuda_view &view,
                                                    const struct basis &basis, int32_t first,
                                                    int32_t e, sf_quad &a)
{
    int32_t number = view.pages[basis.factor_first + first / basis.factors.page_slots];
    size_t row = (size_t)(first % basis.factors.page_slots), k_dim = (size_t)basis.factors.k_dim;
    sf_global<const unsigned char> block =
        view.pool + ((size_t)number * view.page_bytes + row * k_dim * 2);
    int32_t q = (int32_t)(threadIdx.x % 4), r = (int32_t)(threadIdx.x % SF_WARP / 4);
    int32_t at = (e / 2 + r) * SF_BLOCK_SLOTS + 2 * q; /* bf16: word of two elements of row 2q */
    SF_UNROLL
    for (int h = 0; h < 2; h++) {
        int32_t i = first + 2 * q + 8 * h;
        uint32_t even, odd;
        if (D == SF_BF16) {
            sf_two two = sf_as<const sf_two>(block)[at / 2 + 4 * h];
            even = sf_lows(two.word[0], two.word[1]);
            odd = sf_highs(two.word[0], two.word[1]);
        } else {
            even = sf_as<const uint32_t>(block)[(e + 2 * r) * (SF_BLOCK_SLOTS / 2) + q + 4 * h];
            odd = sf_as<const uint32_t>(block)[(e + 2 * r + 1) * (SF_BLOCK_SLOTS / 2) + q + 4 * h];
        }
        a.word[2 * h] = within(even, i, basis.rank_k);
        a.word[2 * h + 1] = within(odd, i, basis.rank_k);
    }
}

/* keys[e][slot] of the piece, not yet turned.  Column r of product n is slot 8n + r. */
template <enum sf_dtype D, bool PICKED>
static __device__ __forceinline__ void keys_multiply(const struct sf_cuda_view &view,
                                                     const struct sf_cuda_lane &lane,
                                                     const struct basis &basis,
                                                     const struct piece &piece,
                                                     sf_shared<float> keys)
{
    enum { PRODUCTS = PIECE / 8 };
    int32_t r = (int32_t)(threadIdx.x % SF_WARP / 4), q = (int32_t)(threadIdx.x % 4);
    sf_global<const uint16_t> slot[PRODUCTS] = {};
    SF_UNROLL
    for (int n = 0; n < PRODUCTS; n++) {
        int32_t number = piece_slot<PICKED>(piece, 8 * n + r);
        if (number < 0) continue;
        struct sf_cuda_slot at = sf_slot_at(view, lane, number);
        slot[n] = sf_as<const uint16_t>(at.page) + sf_key_at(basis.layout, at.slot, 0);
    }
    int32_t k_dim = view.layout.k_dim, warp = (int32_t)(threadIdx.x / SF_WARP);
    for (int32_t e = warp * 16; e < k_dim; e += WARPS * 16) {
        float sum[PRODUCTS][4];
        SF_UNROLL
        for (int i = 0; i < PRODUCTS * 4; i++) sum[i / 4][i % 4] = 0;
        for (int32_t first = 0; first < basis.rank_k; first += 16) {
            sf_quad a;
            uint32_t b[PRODUCTS][2];
            factor_words<D>(view, basis, first, e, a);
            SF_UNROLL
            for (int n = 0; n < PRODUCTS; n++) slot_words<D>(slot[n], first, basis.rank_k, b[n]);
            __syncwarp();               /* threads without a slot took another way */
            SF_UNROLL
            for (int n = 0; n < PRODUCTS; n++) sf_mma<D>(sum[n], a, b[n][0], b[n][1]);
        }
        SF_UNROLL
        for (int n = 0; n < PRODUCTS; n++)
            SF_UNROLL
            for (int i = 0; i < 4; i++)
                keys[(e + 2 * r + i / 2) * (PIECE + 1) + 8 * n + 2 * q + i % 2] = sum[n][i];
    }
}

/* ---- logits --------------------------------------------------------------------------------- */

/* Pairs (i, i + half) of an element; a hole has no position and is turned as if it were at 0. */
static __device__ __forceinline__ void keys_turn(const struct basis &basis, int32_t slots,
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

/* A warp takes a vector, its threads the slots. */
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

/* ---- values --------------------------------------------------------------------------------- */

/* Values of slots from .. from + count - 1 of some pages. */
struct rows {
    sf_global<const int32_t> pages;
    struct sf_layout layout;
    int32_t from, count;
};

/* sum[j] = sum over the rows of weight[j][row] * element e of the row. */
static __device__ __forceinline__ void rows_weigh(const struct sf_cuda_view &view,
                                                  const struct rows &rows, int32_t e,
                                                  int32_t vectors, sf_shared<const float> weights,
                                                  int32_t stride, float (&sum)[SF_VECTORS])
{
    size_t width = (size_t)rows.layout.v_dim;
    size_t values = (size_t)rows.layout.page_slots * (size_t)rows.layout.k_dim;
    SF_UNROLL
    for (int j = 0; j < SF_VECTORS; j++) sum[j] = 0;
    for (int32_t block = 0; block < rows.count; block += SF_BLOCK_SLOTS) {
        int32_t slot = rows.from + block;
        int32_t number = rows.pages[slot / rows.layout.page_slots];
        sf_global<const unsigned char> page = view.pool + (size_t)number * view.page_bytes;
        size_t first = values + (size_t)(slot % rows.layout.page_slots) * width + (size_t)e;
        int32_t there = rows.count - block < SF_BLOCK_SLOTS ? rows.count - block : SF_BLOCK_SLOTS;
        float value[SF_BLOCK_SLOTS];
        SF_UNROLL
        for (int s = 0; s < SF_BLOCK_SLOTS; s++)
            value[s] = s < there ? sf_get(rows.layout.dtype, page, first + (size_t)s * width) : 0;
        SF_UNROLL
        for (int j = 0; j < SF_VECTORS; j++) {
            if (j >= vectors) continue;
            SF_UNROLL
            for (int s = 0; s < SF_BLOCK_SLOTS; s++) {
                if (s >= there) continue;
                float weight = weights[j * stride + block + s];
                if (weight != 0) sum[j] = fmaf(weight, value[s], sum[j]);
            }
        }
    }
}

/* Where in the pool the values of picks begin, in bytes; all ones: a pick of no slot. */
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

/* rows_weigh of picks: sum[j] = sum over them of weight[j][s] * element e of the value there. */
static __device__ __forceinline__ void picks_weigh(const struct sf_cuda_view &view,
                                                   const struct rows &rows, int32_t e,
                                                   int32_t vectors, sf_shared<const float> weights,
                                                   sf_shared<const uint64_t> places,
                                                   float (&sum)[SF_VECTORS])
{
    SF_UNROLL
    for (int j = 0; j < SF_VECTORS; j++) sum[j] = 0;
    for (int32_t block = 0; block < rows.count; block += SF_BLOCK_SLOTS) {
        int32_t there = rows.count - block < SF_BLOCK_SLOTS ? rows.count - block : SF_BLOCK_SLOTS;
        float value[SF_BLOCK_SLOTS];
        SF_UNROLL
        for (int s = 0; s < SF_BLOCK_SLOTS; s++) {
            uint64_t place = ~(uint64_t)0;
            if (s < there) place = places[block + s];
            value[s] = 0;
            if (place != ~(uint64_t)0)
                value[s] = sf_get(rows.layout.dtype, view.pool + place, (size_t)e);
        }
        SF_UNROLL
        for (int j = 0; j < SF_VECTORS; j++) {
            if (j >= vectors) continue;
            SF_UNROLL
            for (int s = 0; s < SF_BLOCK_SLOTS; s++) {
                if (s >= there) continue;
                float weight = weights[j * SF_SPLIT_SLOTS + block + s];
                if (weight != 0) sum[j] = fmaf(weight, value[s], sum[j]);
            }
        }
    }
}

/* ---- a unit --------------------------------------------------------------------------------- */

template <enum sf_dtype D, int SLOTS, bool PICKED>
static __global__ void __launch_bounds__(THREADS, 3)
attend_basis(struct sf_cuda_view view, sf_global<const int32_t> units, sf_global<float> states)
{
    SF_SHARED_DYNAMIC(float, logits);
    struct sf_unit unit = sf_unit_at(units, blockIdx.x);
    struct sf_cuda_lane lane = sf_lane_at(view, unit.lane);
    struct basis basis = basis_at(view, lane, unit.part);
    int32_t k_dim = view.layout.k_dim, v_dim = view.layout.v_dim, thread = (int32_t)threadIdx.x;
    sf_global<const int32_t> picks;
    if (PICKED) picks = sf_picks_of(view, lane, unit.part) + unit.from;
    sf_lane_turn(view, lane, unit.part);
    sf_shared<float> q = logits + unit.vectors * SF_SPLIT_SLOTS, latent = q;
    sf_shared<float> a = q + (unit.vectors * k_dim + 3) / 4 * 4, bias = a + STEP * PIECE;
    sf_shared<int32_t> pos = sf_as<int32_t>(bias + PIECE);
    sf_shared<float> keys = bias + 2 * PIECE;
    int32_t count = lane.slots - unit.from < SF_SPLIT_SLOTS ? lane.slots - unit.from
                                                            : SF_SPLIT_SLOTS;
    sf_queries_stage(view, lane, unit.first, unit.vectors, q);
    for (int32_t s = 0; s < count; s += PIECE) {
        int32_t slots = count - s < PIECE ? count - s : PIECE;
        struct piece piece = { unit.from + s, slots, picks };
        if (PICKED) piece.picks = picks + s;
        __syncthreads();
        if (thread < slots) {
            int32_t number = piece_slot<PICKED>(piece, thread);
            bias[thread] = -INFINITY;
            pos[thread] = -1;
            if (number >= 0) {
                struct sf_cuda_slot at = sf_slot_at(view, lane, number);
                bias[thread] = sf_bias_of(basis.layout, at);
                pos[thread] = sf_pos_of(basis.layout, at);
            }
        }
        if constexpr (SLOTS == 0) keys_multiply<D, PICKED>(view, lane, basis, piece, keys);
        else keys_make<D, SLOTS, PICKED>(view, lane, basis, piece, a, keys);
        __syncthreads();
        keys_turn(basis, slots, pos, keys);
        __syncthreads();
        logits_make(view, lane, unit, slots, q, keys, bias, pos, logits + s);
    }
    __syncthreads();
    size_t state_floats = (size_t)sf_state_floats(v_dim);
    sf_global<float> state = states + (size_t)unit.state * state_floats;
    sf_weights_make(unit, v_dim, count, logits, state, state_floats);
    __syncthreads();
    struct rows rows = { view.pages + lane.pages_first, basis.layout, unit.from, count };
    bool plain = basis.rank_v == 0;     /* values lie as they are */
    if (plain) rows = { view.pages + basis.value_first, basis.values, unit.from, count };
    float sum[SF_VECTORS];
    int32_t latents = (unit.vectors * basis.rank_v + 1) / 2 * 2;
    sf_shared<uint64_t> places = sf_as<uint64_t>(latent + latents);
    if (PICKED) {
        places_find(view, rows, picks, places);
        __syncthreads();
    }
    for (int32_t e = thread; e < basis.rank_v; e += THREADS) {
        if (PICKED) picks_weigh(view, rows, e, unit.vectors, logits, places, sum);
        else rows_weigh(view, rows, e, unit.vectors, logits, SF_SPLIT_SLOTS, sum);
        SF_UNROLL
        for (int j = 0; j < SF_VECTORS; j++)
            if (j < unit.vectors) latent[j * basis.rank_v + e] = sum[j];
    }
    __syncthreads();
    if (!plain) rows = { view.pages + basis.factor_first, basis.factors, 0, basis.rank_v };
    for (int32_t e = thread; e < v_dim; e += THREADS) {
        if (PICKED && plain) picks_weigh(view, rows, e, unit.vectors, logits, places, sum);
        else
            rows_weigh(view, rows, e, unit.vectors, plain ? logits : latent,
                       plain ? SF_SPLIT_SLOTS : basis.rank_v, sum);
        SF_UNROLL
        for (int j = 0; j < SF_VECTORS; j++)
            if (j < unit.vectors)
                state[(size_t)j * (size_t)unit.stride * state_floats + (size_t)e] = sum[j];
    }
}

/* Floats of a block before its latents, with the queries of `vectors`. */
static constexpr size_t early_floats(size_t vectors, size_t k_dim)
{
    return vectors * k_dim + STEP * PIECE + 2 * PIECE + k_dim * (PIECE + 1) + 3;
}
static_assert(SF_SPLIT_SLOTS + early_floats(1, SF_CUDA_BASIS_K_DIM_MAX) <= SF_SHARED_FLOATS &&
              SF_SPLIT_SLOTS + early_floats(1, SF_CUDA_BASIS_K_DIM_MAX + 1) > SF_SHARED_FLOATS,
              "what a plan refuses");

struct sf_basis_cut sf_basis_cut_of(const struct sf_layout *layout,
                                    const struct sf_lane_part *part)
{
    size_t k_dim = (size_t)layout->k_dim, rank_v = (size_t)part->factors->rank_v;
    size_t places = part->pick ? 1 + 2 * SF_SPLIT_SLOTS : 0;
    struct sf_basis_cut cut = { SF_VECTORS, 0 };
    for (; cut.vectors > 0; cut.vectors--) {
        size_t n = (size_t)cut.vectors, early = early_floats(n, k_dim), late = n * rank_v + places;
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
        if (view->layout.k_dim % 16 == 0) {
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
