/* kernels/cuda/attend_tensor.cu: one split of attention over 16-bit slots, by the tensor cores.
 *
 * A unit is a warp's: up to 16 vectors against 512 slots, in chunks of 32 slots with a running max
 * and sum.  Keys and values go from the page to registers in 16-byte loads (8-byte ones for f16
 * keys) and are read once for all vectors; nothing is staged in shared memory but the queries, and
 * there each thread keeps what only it reads.  Four warps of a block are units side by side: splits
 * of a lane in decode, tiles at the same split in prefill, which meet in the first-level cache.
 *
 * Why keys need no shuffle: in a page a pair of elements of 16 slots lies side by side, and a word
 * of it is what a thread gives to a product (tensor.h, b).  A thread loads the pair of four
 * neighbouring slots; they are columns of four products.
 *
 *     chunk       slots 0 .. 31; column c of product i (0 .. 3) is slot 4c + i
 *     thread t    r = t / 4, q = t % 4: loads elements 4q .. 4q + 3 of each 16 for slots 4r ..
 *                 4r + 3, gets logits of vectors r, r + 8 and slots 8q .. 8q + 7.  (Elements 4q and
 *                 4q + 1 are rows 2q and 2q + 1 of a product, the others 2q + 8 and 2q + 9.)
 *     values      thread t loads elements 8r .. 8r + 7 of slots 8q .. 8q + 7; column c of product
 *                 d (0 .. 7) is element 8c + d, rows are slots as the logits lie
 *
 * Precision: a query is a sum of two or three 16-bit numbers (f16: 22 bits, after scaling by a
 * power of two; bf16: all 24), a weight of two (at least 16 bits); slots are what they are.  Sums
 * are f32.  So a vector's bits depend on itself and the slots alone: a chunk that it does not see
 * adds zeros to it and leaves its max.  Values must be finite, also where nobody sees them.
 *
 * Two paths, the same bits; which one runs take is chosen when this is compiled
 * (SHEAF_CUDA_ASYNC_COPY).  The portable one has loads into registers, as above.  In the other,
 * ASYNC, keys and values go through shared memory by asynchronous copies (async.h), ahead of their
 * use.  A thread copies what only it reads, so it waits for its own copies and no barrier.  One
 * buffer for keys and one for values do, since each is free when its products have been made:
 *
 *     products of           keys 0   | values 0 | keys 1   | values 1 | keys 2 ..
 *     under way   keys 0  | values 0 | keys 1   | values 1 | keys 2   | values 2 ..
 *
 * A warp's room is then 28 KiB at bf16 and dims of 128, of which 12 are queries; a block has as
 * many warps, one to four, as find room in 48 KiB, which every GPU gives unasked.  Copies of 16
 * bytes go past the first-level cache, so tiles of a prefill do not meet there: each reads its
 * slots from the second.
 *
 * Bytes read per slot and unit: key, value, bias; per split and vector a state is written.  Bound
 * by memory in decode (about 160 products per 16.6 KB at k_dim 128), by products and the softmax in
 * prefill.  Measured, of the portable path: docs/performance.md. */
#include "kernels/cuda/async.h"
#include "kernels/cuda/attend.h"
#include "kernels/cuda/plugin.h"
#include "kernels/cuda/tensor.h"
#if !defined(SF_CUDA_ASYNC_COPY)
#define SF_CUDA_ASYNC_COPY 0
#endif

enum { WARPS = 4, THREADS = WARPS * SF_WARP, CHUNK = 32, STEPS = 4, K_DIM_MAX = 128 };
#define LOG2_E 1.44269504f

/* Numbers that a query is split into. */
template <enum sf_dtype D> struct terms { enum { count = D == SF_BF16 ? 3 : 2 }; };

/* What a thread knows of the two vectors whose logits it gets, r and r + 8. */
struct rows {
    int32_t end[2], pos[2];             /* slots seen at most; position less window */
    float scale[2], max[2], sum[2];     /* sum: this thread's slots */
};

/* ---- queries -------------------------------------------------------------------------------- */

static __device__ __forceinline__ sf_global<const float> query_at(const struct sf_cuda_view &view,
                                                                  const struct sf_cuda_lane &lane,
                                                                  int32_t vector)
{
    int32_t row = lane.row_first + vector / lane.q_heads;
    int32_t head = lane.q_first + vector % lane.q_heads;
    return view.q + ((size_t)row * view.q_stride + (size_t)head * (size_t)view.layout.k_dim);
}

/* Elements e .. e + 3 of a query. */
static __device__ __forceinline__ sf_quad_f query_load(sf_global<const float> q, int32_t e,
                                                       bool aligned)
{
    if (aligned) return sf_as<const sf_quad_f>(q)[e / 4];
    sf_quad_f four = { { q[e], q[e + 1], q[e + 2], q[e + 3] } };
    return four;
}

/* The power of two that brings a query into (-2, 2): f16 has no room for more, and loses what is
 * much smaller.  The same in all four threads of a row. */
static __device__ __forceinline__ float power_of(sf_global<const float> q, int32_t k_dim,
                                                 bool aligned)
{
    float most = 0;
    for (int32_t e = (int32_t)(threadIdx.x % 4) * 4; e < k_dim; e += 16) {
        sf_quad_f four = query_load(q, e, aligned);
        SF_UNROLL
        for (int i = 0; i < 4; i++) most = fmaxf(most, fabsf(four.word[i]));
    }
    most = fmaxf(most, __shfl_xor_sync(SF_FULL_MASK, most, 1));
    most = fmaxf(most, __shfl_xor_sync(SF_FULL_MASK, most, 2));
    uint32_t bits;
    memcpy(&bits, &most, sizeof bits);
    bits &= 0x7f800000u;
    if (bits == 0 || bits >= 0x7f000000u) return 1;
    memcpy(&most, &bits, sizeof most);
    return most;
}

/* This thread's parts of the queries, [k_dim / 16][terms] at its own places.  A vector that is not
 * there is zero. */
template <enum sf_dtype D>
static __device__ __forceinline__ void queries_stage(const struct sf_cuda_view &view,
                                                     const struct sf_cuda_lane &lane,
                                                     const struct sf_unit &unit,
                                                     struct rows &rows, sf_shared<sf_quad> mine)
{
    int32_t r = (int32_t)(threadIdx.x % SF_WARP / 4), q = (int32_t)(threadIdx.x % 4);
    int32_t k_dim = view.layout.k_dim;
    bool aligned = view.q_stride % 4 == 0 && sf_aligned(view.q, 16);
    sf_global<const float> query[2];
    float shrink[2];
    SF_UNROLL
    for (int i = 0; i < 2; i++) {
        bool there = r + 8 * i < unit.vectors;
        query[i] = query_at(view, lane, unit.first + (there ? r + 8 * i : 0));
        float power = D == SF_F16 ? power_of(query[i], k_dim, aligned) : 1;
        shrink[i] = there ? 1 / power : 0;
        rows.scale[i] = view.scale * power;
    }
    for (int32_t step = 0; step < k_dim / 16; step++) {
        sf_quad_f part[2] = {};
        SF_UNROLL
        for (int i = 0; i < 2; i++) {
            if (shrink[i] != 0) part[i] = query_load(query[i], step * 16 + 4 * q, aligned);
            SF_UNROLL
            for (int e = 0; e < 4; e++) part[i].word[e] *= shrink[i];
        }
        SF_UNROLL
        for (int term = 0; term < terms<D>::count; term++) {
            sf_quad quad;
            SF_UNROLL
            for (int w = 0; w < 4; w++) {
                float &low = part[w % 2].word[w / 2 * 2], &high = part[w % 2].word[w / 2 * 2 + 1];
                quad.word[w] = sf_pack_two<D>(low, high);
                low -= sf_widen<D>((uint16_t)quad.word[w]);
                high -= sf_widen<D>((uint16_t)(quad.word[w] >> 16));
            }
            mine[(step * terms<D>::count + term) * SF_WARP] = quad;
        }
    }
}

/* ---- logits --------------------------------------------------------------------------------- */

/* The keys of a chunk: the block of this thread's slots, if it is there, and in ASYNC this thread's
 * places for what it copies of them, [k_dim / 16][2] quads, of f16 twice as many halves of one. */
struct keys {
    sf_global<const unsigned char> block;
    bool there;
    sf_shared<sf_quad> room;
};

/* Where one half of a quad of f16 lies: the halves of a warp side by side, for the banks. */
static __device__ __forceinline__ sf_shared<sf_two> half_room(const struct keys &keys, int32_t quad,
                                                              int32_t half)
{
    int32_t thread = (int32_t)(threadIdx.x % SF_WARP);
    return sf_as<sf_two>(keys.room) + ((2 * quad + half) * SF_WARP - thread);
}

/* Words b[0], b[1] of the four products for elements 16 step .. of slots 4r .. 4r + 3; zeros if the
 * block is not there. */
template <enum sf_dtype D, bool ASYNC>
static __device__ __forceinline__ void keys_load(const struct keys &keys, int32_t step,
                                                 sf_quad (&pair)[2])
{
    int32_t quad = (int32_t)(threadIdx.x % 16 / 4), q = (int32_t)(threadIdx.x % 4);
    SF_UNROLL
    for (int i = 0; i < 2; i++) {
        int32_t word = step * 8 + q * 2 + i;            /* pair of elements */
        pair[i] = {};
        if (!keys.there) continue;
        if (D == SF_BF16) {
            if (ASYNC) pair[i] = keys.room[(step * 2 + i) * SF_WARP];
            else pair[i] = sf_as<const sf_quad>(keys.block)[word * 4 + quad];
        } else {
            sf_two half[2];
            SF_UNROLL
            for (int h = 0; h < 2; h++) {
                if (ASYNC) half[h] = half_room(keys, step * 2 + i, h)[0];
                else half[h] = sf_as<const sf_two>(keys.block)[word * 8 + 4 * h + quad];
            }
            pair[i].word[0] = sf_lows(half[0].word[0], half[1].word[0]);
            pair[i].word[1] = sf_highs(half[0].word[0], half[1].word[0]);
            pair[i].word[2] = sf_lows(half[0].word[1], half[1].word[1]);
            pair[i].word[3] = sf_highs(half[0].word[1], half[1].word[1]);
        }
    }
}

/* ASYNC: sends for what keys_load then gives, which must not be under way or wanted any more. */
template <enum sf_dtype D>
static __device__ __forceinline__ void keys_send(int32_t steps, const struct keys &keys)
{
    int32_t quad = (int32_t)(threadIdx.x % 16 / 4), q = (int32_t)(threadIdx.x % 4);
    for (int32_t step = 0; keys.there && step < steps; step++)
        SF_UNROLL
        for (int i = 0; i < 2; i++) {
            int32_t word = step * 8 + q * 2 + i, at = step * 2 + i;
            if (D == SF_BF16)
                sf_copy_send<sf_quad>(keys.room + at * SF_WARP,
                                      sf_as<const sf_quad>(keys.block) + (word * 4 + quad));
            else
                SF_UNROLL
                for (int h = 0; h < 2; h++)
                    sf_copy_send<sf_two>(half_room(keys, at, h),
                                         sf_as<const sf_two>(keys.block) +
                                             (word * 8 + 4 * h + quad));
        }
}

/* q . k of the chunk: dots[i] of product i. */
template <enum sf_dtype D, bool ASYNC>
static __device__ __forceinline__ void dots_make(int32_t steps, const struct keys &keys,
                                                 sf_shared<sf_quad> mine, float (&dots)[4][4])
{
    SF_UNROLL
    for (int i = 0; i < 4; i++)
        SF_UNROLL
        for (int c = 0; c < 4; c++) dots[i][c] = 0;
    for (int32_t first = 0; first < steps; first += STEPS) {
        sf_quad pair[STEPS][2];
        SF_UNROLL
        for (int s = 0; s < STEPS; s++)
            if (first + s < steps) keys_load<D, ASYNC>(keys, first + s, pair[s]);
        SF_UNROLL
        for (int s = 0; s < STEPS; s++) {
            if (first + s >= steps) break;
            SF_UNROLL
            for (int term = 0; term < terms<D>::count; term++) {
                sf_quad a = mine[((first + s) * terms<D>::count + term) * SF_WARP];
                SF_UNROLL
                for (int i = 0; i < 4; i++)
                    sf_mma<D>(dots[i], a, pair[s][0].word[i], pair[s][1].word[i]);
            }
        }
    }
}

/* Words 4 half + i of eight that begin at `first`, half 0 and 1.  A thread loads one half and gets
 * the other from the thread beside it, so that the warp asks for each sector once. */
static __device__ __forceinline__ sf_quad eight_own(sf_global<const unsigned char> page,
                                                    size_t first)
{
    return sf_as<const sf_quad>(page)[first / 4 + (size_t)(threadIdx.x / 4 % 2)];
}

static __device__ __forceinline__ void eight_share(const sf_quad &mine, sf_quad (&eight)[2])
{
    int32_t own = (int32_t)(threadIdx.x / 4 % 2);
    SF_UNROLL
    for (int i = 0; i < 4; i++) {
        uint32_t other = __shfl_xor_sync(SF_FULL_MASK, mine.word[i], 4);
        eight[0].word[i] = own == 0 ? mine.word[i] : other;
        eight[1].word[i] = own == 0 ? other : mine.word[i];
    }
}

/* The values of a chunk: the page of this thread's slots, the first of their block there, whether
 * there is one, and in ASYNC this thread's places for them, [halves][8]. */
struct values {
    sf_global<const unsigned char> page;
    int32_t in_page;
    bool there;
    sf_shared<sf_quad> room;
};

/* The word of the page where the biases of this thread's slots begin. */
static __device__ __forceinline__ size_t bias_word(const struct sf_layout &layout,
                                                   const struct values &values)
{
    return sf_bias_word(layout) + (size_t)(values.in_page + (int32_t)(threadIdx.x % 2) * 8);
}

/* Logits of the chunk that begins at slot s, in place; -inf where a vector does not see.  `early`:
 * in ASYNC this thread's biases. */
template <bool ASYNC>
static __device__ __forceinline__ void logits_make(const struct sf_cuda_view &view,
                                                   const struct values &values,
                                                   const sf_quad &early, int32_t s,
                                                   const struct rows &rows, float (&dots)[4][4])
{
    s += (int32_t)(threadIdx.x % 4) * 8;
    size_t word = bias_word(view.layout, values);
    sf_quad bias[2], pos[2] = {};
    eight_share(ASYNC ? early : eight_own(values.page, word), bias);
    if (view.window != 0)
        eight_share(eight_own(values.page, word + (size_t)view.layout.page_slots), pos);
    SF_UNROLL
    for (int half = 0; half < 2; half++)                /* slots 8q + 4 half + i */
        SF_UNROLL
        for (int i = 0; i < 4; i++) {
            float added;
            memcpy(&added, &bias[half].word[i], sizeof added);
            SF_UNROLL
            for (int v = 0; v < 2; v++) {
                float &dot = dots[i][2 * v + half];
                bool seen = s + 4 * half + i < rows.end[v];
                if (view.window != 0) seen = seen && (int32_t)pos[half].word[i] > rows.pos[v];
                dot = seen ? fmaf(dot, rows.scale[v], added) : -INFINITY;
            }
        }
}

/* ---- weights -------------------------------------------------------------------------------- */

/* Turns logits into weights e^(l - max) for the new max; the factor for what was summed before. */
static __device__ __forceinline__ float weights_make(struct rows &rows, int v, float (&dots)[4][4])
{
    float most = rows.max[v], sum = 0;
    SF_UNROLL
    for (int i = 0; i < 4; i++) most = fmaxf(most, fmaxf(dots[i][2 * v], dots[i][2 * v + 1]));
    most = fmaxf(most, __shfl_xor_sync(SF_FULL_MASK, most, 1));
    most = fmaxf(most, __shfl_xor_sync(SF_FULL_MASK, most, 2));
    bool none = most == -INFINITY;
    float factor = none ? 1 : exp2f((rows.max[v] - most) * LOG2_E);
    SF_UNROLL
    for (int i = 0; i < 4; i++)
        SF_UNROLL
        for (int half = 0; half < 2; half++) {
            float &dot = dots[i][2 * v + half];
            dot = none ? 0 : exp2f((dot - most) * LOG2_E);
            sum += dot;
        }
    rows.max[v] = most;
    rows.sum[v] = fmaf(rows.sum[v], factor, sum);
    return factor;
}

/* The weights of products i and i + 1 as two tiles that add up to them. */
template <enum sf_dtype D>
static __device__ __forceinline__ void weights_pack(const float (&dots)[4][4], int i,
                                                    sf_quad (&tile)[2])
{
    SF_UNROLL
    for (int w = 0; w < 4; w++) {
        float low = dots[i + w / 2][w % 2 * 2], high = dots[i + w / 2][w % 2 * 2 + 1];
        uint32_t first = sf_pack_two<D>(low, high);
        tile[0].word[w] = first;
        tile[1].word[w] = sf_pack_two<D>(low - sf_widen<D>((uint16_t)first),
                                         high - sf_widen<D>((uint16_t)(first >> 16)));
    }
}

/* ---- values --------------------------------------------------------------------------------- */

/* Elements 64 half + 8r .. of slots 8q .. 8q + 7; zeros beyond v_dim and where the block is
 * not there. */
template <bool ASYNC>
static __device__ __forceinline__ void values_load(const struct sf_layout &layout,
                                                   const struct values &values, int32_t half,
                                                   sf_quad (&value)[8])
{
    int32_t at = values.in_page + (int32_t)(threadIdx.x % 2) * 8;
    int32_t e = half * 64 + (int32_t)(threadIdx.x % SF_WARP / 4) * 8;
    bool there = values.there && e < layout.v_dim;
    size_t v_dim = (size_t)layout.v_dim, keys = (size_t)layout.page_slots * (size_t)layout.k_dim;
    size_t first = keys + (size_t)at * v_dim + (size_t)e;
    SF_UNROLL
    for (int s = 0; s < 8; s++) {
        value[s] = {};
        if (!there) continue;
        if (ASYNC) value[s] = values.room[(half * 8 + s) * SF_WARP];
        else value[s] = sf_as<const sf_quad>(values.page)[(first + (size_t)s * v_dim) / 8];
    }
}

/* ASYNC: sends for what values_load then gives, as keys_send. */
template <int HALVES>
static __device__ __forceinline__ void values_send(const struct sf_layout &layout,
                                                   const struct values &values)
{
    int32_t at = values.in_page + (int32_t)(threadIdx.x % 2) * 8;
    size_t v_dim = (size_t)layout.v_dim, keys = (size_t)layout.page_slots * (size_t)layout.k_dim;
    SF_UNROLL
    for (int half = 0; half < HALVES; half++) {
        int32_t e = half * 64 + (int32_t)(threadIdx.x % SF_WARP / 4) * 8;
        size_t first = keys + (size_t)at * v_dim + (size_t)e;
        if (!values.there || e >= layout.v_dim) continue;
        SF_UNROLL
        for (int s = 0; s < 8; s++)
            sf_copy_send<sf_quad>(values.room + (half * 8 + s) * SF_WARP,
                                  sf_as<const sf_quad>(values.page) +
                                      (first + (size_t)s * v_dim) / 8);
    }
}

/* out += weights times values, for eight products of one half. */
template <enum sf_dtype D>
static __device__ __forceinline__ void values_add(const sf_quad (&tile)[2][2],
                                                  const sf_quad (&value)[8], float (&out)[8][4])
{
    SF_UNROLL
    for (int step = 0; step < 2; step++) {              /* slots 8q + 2 step, + 1, and 4 further */
        const sf_quad &a = value[2 * step], &b = value[2 * step + 4];
        const sf_quad &c = value[2 * step + 1], &d = value[2 * step + 5];
        SF_UNROLL
        for (int w = 0; w < 4; w++) {
            uint32_t low0 = sf_lows(a.word[w], b.word[w]), low1 = sf_lows(c.word[w], d.word[w]);
            uint32_t high0 = sf_highs(a.word[w], b.word[w]), high1 = sf_highs(c.word[w], d.word[w]);
            SF_UNROLL
            for (int term = 0; term < 2; term++) {
                sf_mma<D>(out[2 * w], tile[step][term], low0, low1);
                sf_mma<D>(out[2 * w + 1], tile[step][term], high0, high1);
            }
        }
    }
}

/* ---- a unit --------------------------------------------------------------------------------- */

static __device__ __forceinline__ void rows_begin(const struct sf_cuda_view &view,
                                                  const struct sf_cuda_lane &lane,
                                                  const struct sf_unit &unit, struct rows &rows)
{
    SF_UNROLL
    for (int i = 0; i < 2; i++) {
        int32_t j = (int32_t)(threadIdx.x % SF_WARP / 4) + 8 * i;
        int32_t row = (unit.first + j) / lane.q_heads;
        bool there = j < unit.vectors;
        rows.end[i] = there ? sf_row_end(lane, row) : 0;
        rows.pos[i] = there && view.window != 0
                          ? (int32_t)view.row_pos[lane.row_first + row] - view.window : 0;
        rows.max[i] = -INFINITY;
        rows.sum[i] = 0;
    }
}

/* A thread has 16 successive elements of each of its vectors in each half. */
template <int HALVES>
static __device__ __forceinline__ void state_store(const struct sf_cuda_view &view,
                                                   const struct sf_unit &unit,
                                                   const struct rows &rows,
                                                   const float (&out)[HALVES][8][4],
                                                   sf_global<float> states)
{
    int32_t q = (int32_t)(threadIdx.x % 4), v_dim = view.layout.v_dim;
    SF_UNROLL
    for (int v = 0; v < 2; v++) {
        int32_t j = (int32_t)(threadIdx.x % SF_WARP / 4) + 8 * v;
        float sum = rows.sum[v];
        sum += __shfl_xor_sync(SF_FULL_MASK, sum, 1);
        sum += __shfl_xor_sync(SF_FULL_MASK, sum, 2);
        if (j >= unit.vectors) continue;
        size_t at = (size_t)unit.state + (size_t)j * (size_t)unit.stride;
        sf_global<float> state = states + at * (size_t)sf_state_floats(v_dim);
        SF_UNROLL
        for (int half = 0; half < HALVES; half++)
            SF_UNROLL
            for (int part = 0; part < 4; part++) {      /* elements 64 half + 16q + 4 part .. */
                int32_t e = half * 64 + q * 16 + part * 4;
                sf_quad_f four;
                SF_UNROLL
                for (int i = 0; i < 4; i++)
                    four.word[i] = out[half][part % 2 * 4 + i][2 * v + part / 2];
                if (e < v_dim) sf_as<sf_quad_f>(state)[e / 4] = four;
            }
        if (q < 2) state[v_dim + q] = q == 0 ? rows.max[v] : sum;
    }
}

/* Where a block of slots lies. */
struct place { int32_t page, in_page; };

/* Thread i looks up block i of the split; behind the last slot it is the first. */
static __device__ __forceinline__ struct place place_find(const struct sf_cuda_view &view,
                                                          const struct sf_cuda_lane &lane,
                                                          int32_t from)
{
    int32_t page_slots = view.layout.page_slots;
    int32_t block = from + (int32_t)(threadIdx.x % SF_WARP) * SF_BLOCK_SLOTS;
    if (block >= lane.slots) block = from;
    return { view.pages[lane.pages_first + block / page_slots], block % page_slots };
}

/* Block `block` of the split, found by that thread. */
static __device__ __forceinline__ struct place place_of(const struct place &found, int32_t block)
{
    return { __shfl_sync(SF_FULL_MASK, found.page, block),
             __shfl_sync(SF_FULL_MASK, found.in_page, block) };
}

/* Keys of the chunk that begins with block `first` of the split, `left` slots before the lane's
 * end. */
static __device__ __forceinline__ struct keys keys_of(const struct sf_cuda_view &view,
                                                      const struct place &found, int32_t first,
                                                      int32_t left, sf_shared<sf_quad> room)
{
    int32_t block = (int32_t)(threadIdx.x % SF_WARP) / 16;
    struct place at = place_of(found, first + block);
    return { view.pool + ((size_t)at.page * view.page_bytes +
                          (size_t)at.in_page * (size_t)view.layout.k_dim * 2),
             block * SF_BLOCK_SLOTS < left, room };
}

static __device__ __forceinline__ struct values values_of(const struct sf_cuda_view &view,
                                                          const struct place &found, int32_t first,
                                                          int32_t left, sf_shared<sf_quad> room)
{
    int32_t block = (int32_t)(threadIdx.x % 4) / 2;
    struct place at = place_of(found, first + block);
    return { view.pool + (size_t)at.page * view.page_bytes, at.in_page,
             block * SF_BLOCK_SLOTS < left, room };
}

/* Quads of shared memory that a thread has: queries; in ASYNC keys, then values too. */
static __host__ __device__ __forceinline__ int32_t quads_of(int32_t steps, int32_t terms,
                                                            int32_t halves, bool async)
{
    return steps * terms + (async ? 2 * steps + 8 * halves : 0);
}

template <enum sf_dtype D, int HALVES, bool ASYNC>
static __global__ void __launch_bounds__(THREADS, 2)
attend_tensor(struct sf_cuda_view view, sf_global<const int32_t> units, int32_t count,
              sf_global<float> states)
{
    SF_SHARED_DYNAMIC(sf_quad, room);   /* [warps][quads_of][threads] */
    int32_t warp = (int32_t)(threadIdx.x / SF_WARP), thread = (int32_t)(threadIdx.x % SF_WARP);
    int32_t warps = ASYNC ? (int32_t)(blockDim.x / SF_WARP) : WARPS;
    int32_t number = (int32_t)blockIdx.x * warps + warp, steps = view.layout.k_dim / 16;
    if (number >= count) return;
    struct sf_unit unit = sf_unit_at(units, (size_t)number);
    struct sf_cuda_lane lane = sf_lane_at(view, unit.lane);
    sf_shared<sf_quad> mine =
        room + (warp * quads_of(steps, terms<D>::count, HALVES, ASYNC) * SF_WARP + thread);
    sf_shared<sf_quad> keys_room = mine + steps * terms<D>::count * SF_WARP;
    sf_shared<sf_quad> values_room = keys_room + 2 * steps * SF_WARP;
    struct rows rows;
    sf_lane_turn(view, lane, unit.part);
    rows_begin(view, lane, unit, rows);
    queries_stage<D>(view, lane, unit, rows, mine);

    struct place found = place_find(view, lane, unit.from);
    int32_t end = sf_row_end(lane, (unit.first + unit.vectors - 1) / lane.q_heads);
    if (end > unit.from + SF_SPLIT_SLOTS) end = unit.from + SF_SPLIT_SLOTS;

    float out[HALVES][8][4];
    struct keys keys;
    SF_UNROLL
    for (int i = 0; i < HALVES * 32; i++) out[i / 32][i / 4 % 8][i % 4] = 0;
    if (ASYNC) {
        keys = keys_of(view, found, 0, lane.slots - unit.from, keys_room);
        keys_send<D>(steps, keys);
        sf_copy_commit();
    }
    for (int32_t s = unit.from; s < end; s += CHUNK) {
        int32_t first = (s - unit.from) / SF_BLOCK_SLOTS, left = lane.slots - s;
        float dots[4][4], factor[2];
        sf_quad value[8], tile[2][2], early = {};
        if (!ASYNC) keys = keys_of(view, found, first, left, keys_room);
        struct values values = values_of(view, found, first, left, values_room);
        if (ASYNC) {
            values_send<HALVES>(view.layout, values);
            sf_copy_commit();
            early = eight_own(values.page, bias_word(view.layout, values));
            sf_copy_wait<1>();          /* for the keys */
        }
        dots_make<D, ASYNC>(steps, keys, mine, dots);
        if (ASYNC) {
            if (s + CHUNK < end) {
                keys = keys_of(view, found, first + CHUNK / SF_BLOCK_SLOTS, left - CHUNK,
                               keys_room);
                keys_send<D>(steps, keys);
            }
            sf_copy_commit();
        } else {
            values_load<ASYNC>(view.layout, values, 0, value);
        }
        logits_make<ASYNC>(view, values, early, s, rows, dots);
        factor[0] = weights_make(rows, 0, dots);
        factor[1] = weights_make(rows, 1, dots);
        weights_pack<D>(dots, 0, tile[0]);
        weights_pack<D>(dots, 2, tile[1]);
        if (ASYNC) sf_copy_wait<1>();   /* for the values */
        SF_UNROLL
        for (int half = 0; half < HALVES; half++) {
            if (ASYNC || half > 0) values_load<ASYNC>(view.layout, values, half, value);
            SF_UNROLL
            for (int i = 0; i < 32; i++) out[half][i / 4][i % 4] *= factor[i % 4 / 2];
            values_add<D>(tile, value, out[half]);
        }
    }
    state_store<HALVES>(view, unit, rows, out, states);
}

/* ---- host ----------------------------------------------------------------------------------- */

int sf_tensor_takes(const struct sf_layout *layout, const unsigned char *pool, size_t page_bytes)
{
    return (layout->dtype == SF_BF16 || layout->dtype == SF_F16) && layout->k_dim % 16 == 0 &&
           layout->k_dim <= K_DIM_MAX && layout->v_dim % 8 == 0 && layout->v_dim <= 128 &&
           (size_t)pool % 16 == 0 && page_bytes % 16 == 0;
}

/* For what runs take; tests and kernel_bench set it, so that they have both paths of one build. */
int sf_cuda_async_copy = SF_CUDA_ASYNC_COPY;

template <enum sf_dtype D, int HALVES, bool ASYNC>
static void launch(struct sf_cuda *cuda, const struct sf_cuda_view *view, const int32_t *units,
                   size_t count, float *states)
{
    size_t room = sizeof(sf_quad) * SF_WARP *
                  (size_t)quads_of(view->layout.k_dim / 16, terms<D>::count, HALVES, ASYNC);
    size_t fit = SF_SHARED_FLOATS * sizeof(float) / room;
    unsigned warps = ASYNC && fit < WARPS ? (unsigned)fit : (unsigned)WARPS;
    SF_ASSERT(warps > 0 && warps <= fit);
    SF_LAUNCH((attend_tensor<D, HALVES, ASYNC>), sf_blocks(count, warps), warps * SF_WARP,
              warps * room, cuda->stream, *view, units, (int32_t)count, states);
}

template <enum sf_dtype D, int HALVES>
static void launch_either(struct sf_cuda *cuda, const struct sf_cuda_view *view,
                          const int32_t *units, size_t count, float *states)
{
    if (sf_cuda_async_copy) launch<D, HALVES, true>(cuda, view, units, count, states);
    else launch<D, HALVES, false>(cuda, view, units, count, states);
}

void sf_tensor_launch(struct sf_cuda *cuda, const struct sf_cuda_view *view, enum sf_dtype dtype,
                      const int32_t *units, size_t count, float *states)
{
    bool wide = view->layout.v_dim > 64;
    if (count == 0) return;
    if (dtype == SF_BF16 && wide) launch_either<SF_BF16, 2>(cuda, view, units, count, states);
    else if (dtype == SF_BF16) launch_either<SF_BF16, 1>(cuda, view, units, count, states);
    else if (wide) launch_either<SF_F16, 2>(cuda, view, units, count, states);
    else launch_either<SF_F16, 1>(cuda, view, units, count, states);
}
