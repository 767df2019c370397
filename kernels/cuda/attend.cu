/* kernels/cuda/attend.cu: attention over paged lanes.
 *
 *   split   SF_SPLIT_SLOTS slots of a lane, always at the same places
 *   block   one tile of vectors (lanes.h) and one split: leaves the split's state for each vector,
 *           out_e = sum e^(l - max) v_e, max, sum, in the scratch
 *   merge   one block a vector: adds the states of its splits in order, by log-sum-exp
 *
 * Parts of a lane in other layouts are further splits behind its own.
 *
 * In a block, threads are slots for the logits, warps are vectors for the softmax, and for the
 * values threads are (vector, element) pairs, so that keys and values are read in whole lines.
 *
 * Why a vector's bits depend on nothing but itself and the slots that it sees: slots are cut by
 * their physical number; a logit is one chain (lanes.h); masked slots have the logit -inf, weigh 0
 * and are passed over in the sum of values; sums run over the same threads at the same places; a
 * split that the vector does not see has the sum 0 and is passed over by the merge.
 *
 * Bytes read per slot and tile: one key and one value, and bias and pos; per split and vector
 * v_dim + 2 floats are written and read again.  Bound by memory for decode.  Not measured on a
 * device yet; prefill makes no use of the tensor cores. */
#include "kernels/backend.h"
#include "kernels/cuda/lanes.h"

enum { THREADS = 128, WARPS = THREADS / SF_WARP };

struct tile { int32_t lane, first, vectors, splits, state; };
enum { TILE_WORDS = 5 };

static __device__ __forceinline__ struct tile tile_at(sf_global<const int32_t> tiles, unsigned i)
{
    sf_global<const int32_t> word = tiles + (size_t)i * TILE_WORDS;
    struct tile tile = { word[0], word[1], word[2], word[3], word[4] };
    return tile;
}

/* Physical slots that a vector of a lane sees at most, counted from slot 0. */
static __device__ __forceinline__ int32_t end_of(const struct sf_cuda_lane &lane, int32_t vector)
{
    return sf_row_end(lane, vector / lane.q_heads);
}

static __host__ __device__ __forceinline__ int32_t splits_of(int32_t slots)
{
    return slots <= 0 ? 0 : (slots + SF_SPLIT_SLOTS - 1) / SF_SPLIT_SLOTS;
}

/* Turns a lane to where split number *split of the tile lies, and *split to its number there. */
static __device__ __forceinline__ void lane_turn(struct sf_cuda_view &view,
                                                 struct sf_cuda_lane &lane,
                                                 const struct tile &tile, int32_t *split)
{
    int32_t own = splits_of(end_of(lane, tile.first + tile.vectors - 1));
    for (int32_t part = 0; *split >= own; part++) {
        *split -= own;
        sf_lane_turn(view, lane, part);
        own = splits_of(lane.slots);
    }
}

/* ---- one split ------------------------------------------------------------------------------ */

/* logits[j][s] of the split's slots for every vector of the tile, -inf where it does not see. */
static __device__ __forceinline__ void logits_make(const struct sf_cuda_view &view,
                                                   const struct sf_cuda_lane &lane,
                                                   const struct tile &tile, int32_t from,
                                                   int32_t count, sf_shared<const float> q,
                                                   sf_shared<float> logits)
{
    for (int32_t s = (int32_t)threadIdx.x; s < count; s += THREADS) {
        struct sf_cuda_slot at = sf_slot_at(view, lane, from + s);
        float dot[SF_VECTORS], bias = sf_bias_of(view.layout, at);
        int32_t pos = view.window != 0 ? sf_pos_of(view.layout, at) : 0;
        bool hole = bias == -INFINITY;
        if (!hole) sf_dots_any(view.layout, at, q, tile.vectors, dot);
        for (int32_t j = 0; j < tile.vectors; j++) {
            bool seen = !hole && from + s < end_of(lane, tile.first + j);
            if (seen && view.window != 0) {
                int32_t row = lane.row_first + (tile.first + j) / lane.q_heads;
                seen = (int64_t)pos > (int64_t)(int32_t)view.row_pos[row] - view.window;
            }
            logits[j * SF_SPLIT_SLOTS + s] = seen ? fmaf(dot[j], view.scale, bias) : -INFINITY;
        }
    }
}

/* Turns the logits of each vector into weights e^(l - max); leaves max and sum in its state. */
static __device__ __forceinline__ void weights_make(const struct tile &tile, int32_t count,
                                                    sf_shared<float> logits,
                                                    sf_global<float> state, size_t state_floats)
{
    int32_t lane = (int32_t)(threadIdx.x % SF_WARP), warp = (int32_t)(threadIdx.x / SF_WARP);
    for (int32_t j = warp; j < tile.vectors; j += WARPS) {
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
            state[(size_t)j * (size_t)tile.splits * state_floats + state_floats - 2 + lane] =
                lane == 0 ? most : sum;
    }
}

/* out_e of every vector: a thread takes pairs (vector, element) and goes over the slots. */
static __device__ __forceinline__ void values_sum(const struct sf_cuda_view &view,
                                                  const struct sf_cuda_lane &lane,
                                                  const struct tile &tile, int32_t from,
                                                  int32_t count, sf_shared<const float> weights,
                                                  sf_global<float> state, size_t state_floats)
{
    int32_t v_dim = view.layout.v_dim;
    size_t values = (size_t)view.layout.page_slots * (size_t)view.layout.k_dim;
    for (int32_t i = (int32_t)threadIdx.x; i < tile.vectors * v_dim; i += THREADS) {
        int32_t j = i / v_dim, e = i % v_dim, end = end_of(lane, tile.first + j) - from;
        float sum = 0;
        if (end > count) end = count;
        for (int32_t block = 0; block < end; block += SF_BLOCK_SLOTS) {
            struct sf_cuda_slot at = sf_slot_at(view, lane, from + block);
            for (int32_t s = block; s < block + SF_BLOCK_SLOTS && s < end; s++) {
                float weight = weights[j * SF_SPLIT_SLOTS + s];
                size_t row = values + (size_t)(at.slot + s - block) * (size_t)v_dim;
                if (weight != 0)
                    sum = fmaf(weight, sf_get(view.layout.dtype, at.page, row + (size_t)e), sum);
            }
        }
        state[(size_t)j * (size_t)tile.splits * state_floats + (size_t)e] = sum;
    }
}

static __global__ void __launch_bounds__(THREADS)
attend_split(struct sf_cuda_view view, sf_global<const int32_t> tiles, sf_global<float> states)
{
    SF_SHARED_DYNAMIC(float, room);     /* [vectors][k_dim], then [vectors][SF_SPLIT_SLOTS] */
    struct tile tile = tile_at(tiles, blockIdx.x);
    if ((int32_t)blockIdx.y >= tile.splits) return;
    struct sf_cuda_lane lane = sf_lane_at(view, tile.lane);
    sf_shared<float> logits = room + (size_t)tile.vectors * (size_t)view.layout.k_dim;
    int32_t split = (int32_t)blockIdx.y;
    lane_turn(view, lane, tile, &split);
    int32_t from = split * SF_SPLIT_SLOTS;
    int32_t count = end_of(lane, tile.first + tile.vectors - 1) - from;
    if (count > SF_SPLIT_SLOTS) count = SF_SPLIT_SLOTS;
    size_t state_floats = (size_t)view.layout.v_dim + 2;
    sf_global<float> state = states + ((size_t)tile.state + blockIdx.y) * state_floats;
    sf_queries_stage(view, lane, tile.first, tile.vectors, room);
    __syncthreads();
    logits_make(view, lane, tile, from, count, room, logits);
    __syncthreads();
    weights_make(tile, count, logits, state, state_floats);
    __syncthreads();
    values_sum(view, lane, tile, from, count, logits, state, state_floats);
}

/* ---- merge ---------------------------------------------------------------------------------- */

struct output {
    sf_global<unsigned char> out;
    size_t stride, head_stride;
    enum sf_dtype dtype;
    sf_global<float> lse;
    size_t lse_stride;
};

static __global__ void __launch_bounds__(THREADS)
attend_merge(struct sf_cuda_view view, sf_global<const int32_t> tiles,
             sf_global<const float> states, struct output to)
{
    struct tile tile = tile_at(tiles, blockIdx.x);
    int32_t j = (int32_t)blockIdx.y, v_dim = view.layout.v_dim;
    if (j >= tile.vectors) return;
    struct sf_cuda_lane lane = sf_lane_at(view, tile.lane);
    size_t state_floats = (size_t)v_dim + 2;
    sf_global<const float> state =
        states + ((size_t)tile.state + (size_t)j * (size_t)tile.splits) * state_floats;
    float most = -INFINITY, total = 0;
    for (int32_t s = 0; s < tile.splits; s++)
        most = fmaxf(most, state[(size_t)s * state_floats + (size_t)v_dim]);
    for (int32_t s = 0; s < tile.splits; s++) {
        size_t at = (size_t)s * state_floats + (size_t)v_dim;
        float sum = state[at + 1];
        if (sum > 0) total = fmaf(sum, expf(state[at] - most), total);
    }
    size_t row = (size_t)(lane.row_first + (tile.first + j) / lane.q_heads);
    size_t head = (size_t)(lane.q_first + (tile.first + j) % lane.q_heads);
    for (int32_t e = (int32_t)threadIdx.x; e < v_dim; e += THREADS) {
        float sum = 0;
        for (int32_t s = 0; s < tile.splits; s++) {
            size_t at = (size_t)s * state_floats;
            if (state[at + (size_t)v_dim + 1] > 0)
                sum = fmaf(state[at + (size_t)e], expf(state[at + (size_t)v_dim] - most), sum);
        }
        sf_put(to.dtype, to.out, row * to.stride + head * to.head_stride + (size_t)e,
               total > 0 ? sum / total : 0);
    }
    if (to.lse && threadIdx.x == 0)
        to.lse[row * to.lse_stride + head] = total > 0 ? most + logf(total) : -INFINITY;
}

/* ---- host ----------------------------------------------------------------------------------- */

/* Vectors of a tile whose queries and logits fit into the shared memory of a block. */
static int32_t tile_vectors(const struct sf_layout *layout)
{
    int32_t fits = SF_SHARED_FLOATS / (layout->k_dim + SF_SPLIT_SLOTS);
    SF_ASSERT(fits >= 1);
    return fits < SF_VECTORS ? fits : SF_VECTORS;
}

/* Fills up to `most` tiles, from vector *vector of lane *lane on, as long as their states fit into
 * the scratch; both are moved on. */
static size_t tiles_fill(const struct sf_attend_job *job, int32_t *lane, int32_t *vector,
                         size_t most, struct tile *tiles, int32_t *splits_most)
{
    int32_t width = tile_vectors(&job->layout);
    size_t state_bytes = ((size_t)job->layout.v_dim + 2) * sizeof(float);
    size_t states = SF_CUDA_SCRATCH_BYTES / state_bytes, used = 0, n = 0;
    *splits_most = 0;
    for (; *lane < job->lanes; (*lane)++, *vector = 0) {
        const struct sf_lane_job *of = &job->lane[*lane];
        int32_t vectors = of->rows * of->q_heads;
        while (*vector < vectors) {
            int32_t count = vectors - *vector < width ? vectors - *vector : width;
            int32_t last = (*vector + count - 1) / of->q_heads;
            int32_t splits = splits_of(sf_lane_part_seen(of, -1, last));
            for (int32_t p = 0; p < of->parts; p++) splits += splits_of(of->part[p].slots);
            size_t needed = (size_t)count * (size_t)splits;
            SF_ASSERT(needed <= states);
            if (n == most || used + needed > states) return n;
            tiles[n++] = (struct tile){ *lane, *vector, count, splits, (int32_t)used };
            if (splits > *splits_most) *splits_most = splits;
            used += needed;
            *vector += count;
        }
    }
    return n;
}

static void tiles_launch(struct sf_cuda *cuda, const struct sf_attend_job *job,
                         const struct sf_cuda_packed *packed, size_t n, int32_t splits)
{
    const int32_t *tiles = (const int32_t *)(const void *)(packed->block.device +
                                                           packed->extra_at);
    float *states = (float *)(void *)cuda->scratch;
    int32_t vectors = tile_vectors(&job->layout);
    size_t room = (size_t)vectors * (size_t)(job->layout.k_dim + SF_SPLIT_SLOTS) * sizeof(float);
    struct output to = { (unsigned char *)job->out, job->out_stride, job->out_head_stride,
                         job->out_dtype, job->lse, job->lse_stride };
    if (splits > 0)
        SF_LAUNCH(attend_split, dim3((unsigned)n, (unsigned)splits), THREADS, room, cuda->stream,
                  packed->view, tiles, states);
    SF_LAUNCH(attend_merge, dim3((unsigned)n, (unsigned)vectors), THREADS, 0, cuda->stream,
              packed->view, tiles, states, to);
}

void sf_cuda_attend(struct sf_device *device, const struct sf_attend_job *job)
{
    const size_t tiles_most = 1 << 16;
    struct sf_cuda *cuda = sf_cuda_of(device);
    size_t left = 0;
    int32_t width = tile_vectors(&job->layout), lane = 0, vector = 0, splits;
    for (int32_t i = 0; i < job->lanes; i++)
        left += (size_t)((job->lane[i].rows * job->lane[i].q_heads + width - 1) / width);
    while (left > 0) {
        size_t most = left < tiles_most ? left : tiles_most;
        struct sf_cuda_packed packed;
        sf_cuda_pack(cuda, job, most * sizeof(struct tile), &packed);
        size_t n = tiles_fill(job, &lane, &vector, most,
                              (struct tile *)(void *)(packed.block.host + packed.extra_at),
                              &splits);
        sf_cuda_send(cuda, &packed.block);
        tiles_launch(cuda, job, &packed, n, splits);
        left -= n;
    }
}
