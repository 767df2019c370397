/* kernels/cuda/pick.cu: the chunks of a lane that its queries want (kernels.h: sf_pick_job), queued
 * like all else: what is chosen stays on the device.
 *
 *   logits  one block: up to SF_VECTORS vectors (lanes.h) and SF_SPLIT_SLOTS landmarks of a lane,
 *           a thread a landmark, whose key it loads once for all vectors
 *   sums    one block a vector: the greatest logit, and the sum of e^(l - max)
 *   choose  one block a lane: s of every landmark; then the least s that is taken, digit by digit
 *           of its bits, which order as the numbers do since none is negative; then each thread
 *           has successive landmarks, and a sum over the threads before it says where its own go
 *
 *   scratch of a lane   | logits [vectors][landmarks] | max, sum [vectors][2] | s [landmarks] |
 *
 * A vector with a logit that is not a number, or infinite, has no shares, as in ref: its sum is not
 * a number either, and no comparison takes what is divided by that.  Counts are of integers and the
 * sums go over the same threads at the same places, so the choice is the lane's own.
 *
 * Bytes read: of each landmark its key, once for SF_VECTORS vectors, and 12 B for each vector.
 * Nothing here was measured on a GPU. */
#include <string.h>
#include "kernels/backend.h"
#include "kernels/cuda/entries.h"
#include "kernels/cuda/lanes.h"

enum { THREADS = 128, WARPS = THREADS / SF_WARP, CHOOSE = 512, DIGITS = 256, WORDS = 4,
       LANES_MOST = 256 };              /* of one launch */
static_assert((int)SF_LANDMARKS_MAX <= 1 << 15 && (int)CHOOSE >= (int)DIGITS,
              "two counts of landmarks in 32 bits; a thread a digit");

/* What a lane has beside its words: where its scratch begins, in floats, and where the slots go. */
struct choice { int32_t chunks, scratch; sf_global<int32_t> slot_out; };

static __device__ __forceinline__ struct choice choice_at(sf_global<const int32_t> choices,
                                                          unsigned i)
{
    sf_global<const int32_t> word = choices + (size_t)i * WORDS;
    uint64_t out = (uint64_t)(uint32_t)(int32_t)word[2] |
                   (uint64_t)(uint32_t)(int32_t)word[3] << 32;
    struct choice choice;
    choice.chunks = word[0];
    choice.scratch = word[1];
    choice.slot_out = reinterpret_cast<int32_t *>((uintptr_t)out);
    return choice;
}

static __global__ void __launch_bounds__(THREADS, 5)
pick_logits(struct sf_cuda_view view, sf_global<const int32_t> choices, sf_global<float> scratch)
{
    SF_SHARED_DYNAMIC(float, q);        /* [vectors][k_dim] */
    struct sf_cuda_lane lane = sf_lane_at(view, (int32_t)blockIdx.x);
    struct choice choice = choice_at(choices, blockIdx.x);
    int32_t from = (int32_t)blockIdx.y * SF_SPLIT_SLOTS, first = (int32_t)blockIdx.z * SF_VECTORS;
    int32_t vectors = lane.rows * lane.q_heads - first, end = from + SF_SPLIT_SLOTS;
    if (choice.chunks == 0 || from >= lane.slots || vectors <= 0) return;
    if (vectors > SF_VECTORS) vectors = SF_VECTORS;
    if (end > lane.slots) end = lane.slots;
    sf_queries_stage(view, lane, first, vectors, q);
    __syncthreads();
    for (int32_t c = from + (int32_t)threadIdx.x; c < end; c += THREADS) {
        float dot[SF_VECTORS];
        sf_dots_any<true>(view.layout, sf_slot_at(view, lane, c), q, vectors, dot);
        SF_UNROLL
        for (int j = 0; j < SF_VECTORS; j++)
            if (j < vectors)
                scratch[(size_t)choice.scratch + (size_t)(first + j) * (size_t)lane.slots +
                        (size_t)c] = dot[j] * view.scale;
    }
}

static __global__ void __launch_bounds__(THREADS)
pick_sums(struct sf_cuda_view view, sf_global<const int32_t> choices, sf_global<float> scratch)
{
    SF_SHARED(float, part, WARPS);
    struct sf_cuda_lane lane = sf_lane_at(view, (int32_t)blockIdx.x);
    struct choice choice = choice_at(choices, blockIdx.x);
    int32_t vector = (int32_t)blockIdx.y, vectors = lane.rows * lane.q_heads;
    if (choice.chunks == 0 || vector >= vectors) return;
    size_t n = (size_t)lane.slots;
    sf_global<const float> logit = scratch + ((size_t)choice.scratch + (size_t)vector * n);
    float most = -INFINITY, sum = 0;
    for (size_t c = threadIdx.x; c < n; c += THREADS) most = fmaxf(most, logit[c]);
    most = sf_block_max(most, part);
    for (size_t c = threadIdx.x; c < n; c += THREADS) sum += expf(logit[c] - most);
    sum = sf_block_sum(sum, part);
    if (threadIdx.x < 2)
        scratch[(size_t)choice.scratch + (size_t)vectors * n + 2 * (size_t)vector +
                threadIdx.x] = threadIdx.x == 0 ? most : sum;
}

/* ---- choose --------------------------------------------------------------------------------- */

/* s of every landmark of the lane. */
static __device__ __forceinline__ void shares_make(int32_t n, int32_t vectors,
                                                   sf_global<const float> logits,
                                                   sf_global<const float> sums, sf_global<float> s)
{
    for (int32_t c = (int32_t)threadIdx.x; c < n; c += CHOOSE) {
        float most = 0;
        for (int32_t v = 0; v < vectors; v++) {
            float share = expf(logits[(size_t)v * (size_t)n + (size_t)c] - sums[2 * v]) /
                          sums[2 * v + 1];
            most = share > most ? share : most;
        }
        s[c] = most;
    }
}

/* sum[t] becomes sum[0] + .. + sum[t]; all threads wait before and behind it. */
static __device__ __forceinline__ void sums_run(sf_shared<uint32_t> sum)
{
    unsigned thread = threadIdx.x;
    for (unsigned step = 1; step < CHOOSE; step *= 2) {
        uint32_t before = thread >= step ? sum[thread - step] : 0;
        __syncthreads();
        sum[thread] += before;
        __syncthreads();
    }
}

/* The least key that is among the `chunks` greatest, and how many of those are equal to it. */
struct bound { uint32_t key, equal; };

static __device__ __forceinline__ struct bound bound_find(int32_t n, int32_t chunks,
                                                          sf_global<const uint32_t> keys,
                                                          sf_shared<uint32_t> sum,
                                                          sf_shared<uint32_t> found)
{
    struct bound bound = { 0, (uint32_t)chunks };
    uint32_t mask = 0;
    unsigned thread = threadIdx.x;
    for (int shift = 24; shift >= 0; shift -= 8) {
        sum[thread] = 0;                /* digits from the greatest on */
        __syncthreads();
        for (int32_t c = (int32_t)thread; c < n; c += CHOOSE) {
            uint32_t key = keys[c];
            if ((key & mask) == bound.key)
                atomicAdd(sum + (DIGITS - 1 - (key >> shift & (DIGITS - 1))), (uint32_t)1);
        }
        __syncthreads();
        sums_run(sum);
        uint32_t before = thread > 0 ? sum[thread - 1] : 0;
        if (sum[thread] >= bound.equal && before < bound.equal) {
            found[0] = DIGITS - 1 - thread;
            found[1] = bound.equal - before;
        }
        __syncthreads();
        bound.key |= (uint32_t)found[0] << shift;
        bound.equal = found[1];
        mask |= (uint32_t)(DIGITS - 1) << shift;
    }
    return bound;
}

static __global__ void __launch_bounds__(CHOOSE)
pick_choose(struct sf_cuda_view view, sf_global<const int32_t> choices, sf_global<float> scratch,
            int32_t chunk_slots)
{
    SF_SHARED(uint32_t, sum, CHOOSE);
    SF_SHARED(uint32_t, found, 2);
    struct sf_cuda_lane lane = sf_lane_at(view, (int32_t)blockIdx.x);
    struct choice choice = choice_at(choices, blockIdx.x);
    int32_t n = lane.slots, vectors = lane.rows * lane.q_heads, thread = (int32_t)threadIdx.x;
    if (choice.chunks == 0) return;
    sf_global<const float> logits = scratch + (size_t)choice.scratch;
    sf_global<float> sums = scratch + ((size_t)choice.scratch + (size_t)vectors * (size_t)n);
    sf_global<float> s = sums + 2 * vectors;
    shares_make(n, vectors, logits, sums, s);
    sf_global<const uint32_t> keys = sf_as<const uint32_t>(s);
    __syncthreads();
    struct bound bound = bound_find(n, choice.chunks, keys, sum, found);
    int32_t each = (n + CHOOSE - 1) / CHOOSE, first = thread * each, end = first + each;
    if (end > n) end = n;
    uint32_t above = 0, equal = 0;
    for (int32_t c = first; c < end; c++) {
        above += keys[c] > bound.key;
        equal += keys[c] == bound.key;
    }
    __syncthreads();
    sum[thread] = above | equal << 16;
    __syncthreads();
    sums_run(sum);
    uint32_t before = thread > 0 ? sum[thread - 1] : 0;
    above = before & 0xffff;
    equal = before >> 16;
    for (int32_t c = first; c < end; c++) {
        uint32_t key = keys[c], at = above + (equal < bound.equal ? equal : bound.equal);
        bool same = key == bound.key, taken = key > bound.key || (same && equal < bound.equal);
        above += key > bound.key;
        equal += same;
        if (!taken) continue;
        int32_t chunk = sf_pos_of(view.layout, sf_slot_at(view, lane, c));
        for (int32_t j = 0; j < chunk_slots; j++)
            choice.slot_out[(size_t)at * (size_t)chunk_slots + (size_t)j] = chunk * chunk_slots + j;
    }
}

/* ---- host ----------------------------------------------------------------------------------- */

/* Some lanes of a job that go together, as lanes of attention. */
struct piece {
    struct sf_lane_job lane[LANES_MOST];
    int32_t lanes, landmarks_most, vectors_most;
    size_t floats;                      /* of scratch */
};

static size_t lane_floats(const struct sf_pick_lane *lane)
{
    size_t vectors = (size_t)(lane->rows * lane->q_heads), n = (size_t)lane->landmarks;
    return (vectors + 1) * n + 2 * vectors;
}

/* The lanes from `first` on that fit. */
static void piece_take(const struct sf_pick_job *job, int32_t first, struct piece *piece)
{
    piece->lanes = piece->landmarks_most = piece->vectors_most = 0;
    piece->floats = 0;
    for (int32_t l = first; l < job->lanes && piece->lanes < LANES_MOST; l++) {
        const struct sf_pick_lane *lane = &job->lane[l];
        int32_t vectors = lane->rows * lane->q_heads;
        SF_ASSERT(lane->landmarks <= SF_LANDMARKS_MAX && lane->chunks <= lane->landmarks);
        bool fits = (piece->floats + lane_floats(lane)) * sizeof(float) <= SF_CUDA_SCRATCH_BYTES;
        if (!fits && piece->lanes > 0) return;
        SF_ASSERT(fits);                /* 500 vectors and the most landmarks do */
        piece->floats += lane_floats(lane);
        if (lane->landmarks > piece->landmarks_most) piece->landmarks_most = lane->landmarks;
        if (vectors > piece->vectors_most) piece->vectors_most = vectors;
        struct sf_lane_job *as = &piece->lane[piece->lanes++];
        memset(as, 0, sizeof *as);
        as->pages = lane->pages;
        as->slots = lane->landmarks;
        as->row_first = lane->row_first;
        as->rows = lane->rows;
        as->q_first = lane->q_first;
        as->q_heads = lane->q_heads;
    }
}

static void choices_fill(const struct sf_pick_lane *lane, int32_t lanes, int32_t *words)
{
    size_t scratch = 0;
    for (int32_t l = 0; l < lanes; l++, words += WORDS) {
        words[0] = lane[l].chunks;
        words[1] = (int32_t)scratch;
        memcpy(words + 2, &lane[l].slot_out, sizeof lane[l].slot_out);
        scratch += lane_floats(&lane[l]);
    }
}

void sf_cuda_pick(struct sf_device *device, const struct sf_pick_job *job)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    struct sf_attend_job as;
    struct piece piece;
    memset(&as, 0, sizeof as);
    as.layout = job->layout;
    as.pool = job->pool;
    as.page_bytes = job->page_bytes;
    as.q = job->q;
    as.q_stride = job->q_stride;
    as.scale = job->scale;
    SF_ASSERT(job->layout.k_dim * SF_VECTORS <= SF_SHARED_FLOATS);
    for (int32_t first = 0; first < job->lanes; first += piece.lanes) {
        struct sf_cuda_packed packed;
        piece_take(job, first, &piece);
        if (piece.landmarks_most == 0) continue;
        as.lane = piece.lane;
        as.lanes = piece.lanes;
        sf_cuda_pack(cuda, &as, (size_t)piece.lanes * WORDS * sizeof(int32_t), &packed);
        choices_fill(job->lane + first, piece.lanes,
                     (int32_t *)(void *)(packed.block.host + packed.extra_at));
        sf_cuda_send(cuda, &packed.block);
        const int32_t *choices =
            (const int32_t *)(const void *)(packed.block.device + packed.extra_at);
        float *scratch = (float *)(void *)cuda->scratch;
        unsigned lanes = (unsigned)piece.lanes, vectors = (unsigned)piece.vectors_most;
        dim3 blocks(lanes, sf_blocks((size_t)piece.landmarks_most, SF_SPLIT_SLOTS),
                    sf_blocks(vectors, SF_VECTORS));
        size_t q_bytes = (size_t)job->layout.k_dim * SF_VECTORS * sizeof(float);
        SF_LAUNCH(pick_logits, blocks, THREADS, q_bytes, cuda->stream, packed.view, choices,
                  scratch);
        SF_LAUNCH(pick_sums, dim3(lanes, vectors), THREADS, 0, cuda->stream, packed.view, choices,
                  scratch);
        SF_LAUNCH(pick_choose, lanes, CHOOSE, 0, cuda->stream, packed.view, choices, scratch,
                  job->chunk_slots);
    }
}
