/* kernels/cuda/attend.cu: attention over paged lanes: the cut (attend.h), units of any layout, and
 * the merge of their states.
 *
 *   unit    one block: up to SF_VECTORS vectors and one split; threads are slots for the logits,
 *           warps are vectors for the softmax, and for the values threads are elements, so that
 *           keys and values are read in whole lines, once for all vectors
 *   merge   one block a vector: adds the states of its splits in order, by log-sum-exp
 *
 * Units of 16-bit slots go to the tensor cores (attend_tensor.cu) where their dims allow, those of
 * parts with factors to basis.cu; what is left here are f32 slots, which hold little, odd dims, and
 * int8, which is half the bytes but not yet for the tensor cores.
 *
 * Why a vector's bits depend on nothing but itself and the slots that it sees: slots are cut by
 * their physical number; a logit is one chain (lanes.h); masked slots have the logit -inf, weigh 0
 * and are passed over in the sum of values; sums run over the same threads at the same places; a
 * split that the vector does not see has the sum 0 and is passed over by the merge.
 *
 * Bytes read per slot and unit: one key and one value, and bias and pos; per split and vector
 * a state is written and read again.  Measured: docs/performance.md. */
#include "base/memory.h"
#include "kernels/backend.h"
#include "kernels/cuda/attend.h"
#include "kernels/cuda/entries.h"

enum { THREADS = 128, WARPS = THREADS / SF_WARP, SUMS = 8, V_DIM_MAX = SUMS * THREADS };
static_assert((int)V_DIM_MAX == (int)SF_CUDA_V_DIM_MAX, "what a plan refuses");

/* `state`: of the first vector's first split; `splits` states on is the next vector's. */
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

/* ---- one split ------------------------------------------------------------------------------ */

/* logits[j][s] of the split's slots for every vector of the unit, -inf where it does not see; the
 * slots are those that `picks` names, if PICKED. */
template <bool PICKED>
static __device__ __forceinline__ void logits_make(const struct sf_cuda_view &view,
                                                   const struct sf_cuda_lane &lane,
                                                   const struct sf_unit &unit, int32_t count,
                                                   sf_global<const int32_t> picks,
                                                   sf_shared<const float> q,
                                                   sf_shared<float> logits)
{
    for (int32_t s = (int32_t)threadIdx.x; s < count; s += THREADS) {
        int32_t number = unit.from + s, pos = 0;
        if (PICKED) number = picks[s];
        bool hole = number < 0;
        struct sf_cuda_slot at = { view.pool, 0 };
        float dot[SF_VECTORS], bias = 0;
        if (!hole) {
            at = sf_slot_at(view, lane, number);
            bias = sf_bias_of(view.layout, at);
            pos = view.window != 0 ? sf_pos_of(view.layout, at) : 0;
            hole = bias == -INFINITY;
        }
        if (!hole) sf_dots_any<true>(view.layout, at, q, unit.vectors, dot);
        SF_UNROLL
        for (int j = 0; j < SF_VECTORS; j++) {
            if (j >= unit.vectors) continue;
            bool seen = !hole && unit.from + s < end_of(lane, unit.first + j);
            if (seen && view.window != 0) {
                int32_t row = lane.row_first + (unit.first + j) / lane.q_heads;
                seen = (int64_t)pos > (int64_t)(int32_t)view.row_pos[row] - view.window;
            }
            logits[j * SF_SPLIT_SLOTS + s] = seen ? fmaf(dot[j], view.scale, bias) : -INFINITY;
        }
    }
}

/* An element of the values of `there` slots from `from` on; `element`: that of the page's first. */
static __device__ __forceinline__ void whole_load(const struct sf_cuda_view &view,
                                                  const struct sf_cuda_lane &lane, int32_t from,
                                                  int32_t there, size_t element,
                                                  float (&value)[SF_BLOCK_SLOTS])
{
    struct sf_cuda_slot at = sf_slot_at(view, lane, from);
    size_t v_dim = (size_t)view.layout.v_dim, row = element + (size_t)at.slot * v_dim;
    SF_UNROLL
    for (int s = 0; s < SF_BLOCK_SLOTS; s++)
        value[s] = s < there ? sf_get(view.layout.dtype, at.page, row + (size_t)s * v_dim) : 0;
    SF_UNROLL
    for (int s = 0; s < SF_BLOCK_SLOTS; s++)
        if (view.layout.dtype == SF_INT8 && s < there)
            value[s] *= sf_scale_of(view.layout, at.page, at.slot + s, true);
}

/* Element e of the values of the picks from `block` on, of which `there` are. */
static __device__ __forceinline__ void picked_load(const struct sf_cuda_view &view,
                                                   const struct sf_cuda_lane &lane,
                                                   sf_global<const int32_t> picks, int32_t block,
                                                   int32_t there, int32_t e,
                                                   float (&value)[SF_BLOCK_SLOTS])
{
    size_t first = (size_t)view.layout.page_slots * (size_t)view.layout.k_dim + (size_t)e;
    SF_UNROLL
    for (int s = 0; s < SF_BLOCK_SLOTS; s++) {
        int32_t number = -1;
        if (s < there) number = picks[block + s];
        value[s] = 0;
        if (number < 0) continue;
        struct sf_cuda_slot at = sf_slot_at(view, lane, number);
        value[s] = sf_get(view.layout.dtype, at.page,
                          first + (size_t)at.slot * (size_t)view.layout.v_dim);
    }
}

/* out_e of every vector: a thread takes elements, goes over the slots, and loads each value once
 * for all vectors. */
template <bool PICKED>
static __device__ __forceinline__ void values_sum(const struct sf_cuda_view &view,
                                                  const struct sf_cuda_lane &lane,
                                                  const struct sf_unit &unit, int32_t count,
                                                  sf_global<const int32_t> picks,
                                                  sf_shared<const float> weights,
                                                  sf_global<float> state, size_t state_floats)
{
    int32_t v_dim = view.layout.v_dim;
    size_t values = (size_t)view.layout.page_slots * (size_t)view.layout.k_dim;
    for (int32_t e = (int32_t)threadIdx.x; e < v_dim; e += THREADS) {
        float sum[SF_VECTORS] = {};
        for (int32_t block = 0; block < count; block += SF_BLOCK_SLOTS) {
            int32_t slots = count - block < SF_BLOCK_SLOTS ? count - block : SF_BLOCK_SLOTS;
            float value[SF_BLOCK_SLOTS];
            if (PICKED) picked_load(view, lane, picks, block, slots, e, value);
            else whole_load(view, lane, unit.from + block, slots, values + (size_t)e, value);
            SF_UNROLL
            for (int j = 0; j < SF_VECTORS; j++) {
                if (j >= unit.vectors) continue;
                SF_UNROLL
                for (int s = 0; s < SF_BLOCK_SLOTS; s++) {
                    if (s >= slots) continue;
                    float weight = weights[j * SF_SPLIT_SLOTS + block + s];
                    if (weight != 0) sum[j] = fmaf(weight, value[s], sum[j]);
                }
            }
        }
        SF_UNROLL
        for (int j = 0; j < SF_VECTORS; j++)
            if (j < unit.vectors)
                state[(size_t)j * (size_t)unit.stride * state_floats + (size_t)e] = sum[j];
    }
}

template <bool PICKED>
static __global__ void __launch_bounds__(THREADS, 5)
attend_split(struct sf_cuda_view view, sf_global<const int32_t> units, sf_global<float> states)
{
    SF_SHARED_DYNAMIC(float, room);     /* [vectors][k_dim], then [vectors][SF_SPLIT_SLOTS] */
    struct sf_unit unit = sf_unit_at(units, blockIdx.x);
    struct sf_cuda_lane lane = sf_lane_at(view, unit.lane);
    sf_global<const int32_t> picks;
    if (PICKED) picks = sf_picks_of(view, lane, unit.part) + unit.from;
    sf_lane_turn(view, lane, unit.part);
    sf_shared<float> logits = room + (size_t)unit.vectors * (size_t)view.layout.k_dim;
    int32_t count = end_of(lane, unit.first + unit.vectors - 1) - unit.from;
    if (count > SF_SPLIT_SLOTS) count = SF_SPLIT_SLOTS;
    size_t state_floats = (size_t)sf_state_floats(view.layout.v_dim);
    sf_global<float> state = states + (size_t)unit.state * state_floats;
    sf_queries_stage(view, lane, unit.first, unit.vectors, room);
    __syncthreads();
    logits_make<PICKED>(view, lane, unit, count, picks, room, logits);
    __syncthreads();
    sf_weights_make(unit, (int32_t)view.layout.v_dim, count, logits, state, state_floats);
    __syncthreads();
    values_sum<PICKED>(view, lane, unit, count, picks, logits, state, state_floats);
}

/* ---- merge ---------------------------------------------------------------------------------- */

struct output {
    sf_global<unsigned char> out;
    size_t stride, head_stride;
    enum sf_dtype dtype;
    sf_global<float> lse;
    size_t lse_stride;
};

/* Splits are weighed THREADS at a time, a thread each; the sums over them go in their order. */
static __global__ void __launch_bounds__(THREADS)
attend_merge(struct sf_cuda_view view, sf_global<const int32_t> tiles,
             sf_global<const float> states, struct output to)
{
    SF_SHARED(float, part, WARPS);
    SF_SHARED(float, weight, THREADS);
    SF_SHARED(float, share, THREADS);   /* of the total */
    struct tile tile = tile_at(tiles, blockIdx.x);
    int32_t j = (int32_t)blockIdx.y, v_dim = view.layout.v_dim, thread = (int32_t)threadIdx.x;
    if (j >= tile.vectors) return;
    struct sf_cuda_lane lane = sf_lane_at(view, tile.lane);
    size_t state_floats = (size_t)sf_state_floats(v_dim);
    sf_global<const float> state =
        states + ((size_t)tile.state + (size_t)j * (size_t)tile.splits) * state_floats;
    float most = -INFINITY, total = 0, sum[SUMS] = {};
    for (int32_t s = thread; s < tile.splits; s += THREADS)
        most = fmaxf(most, state[(size_t)s * state_floats + (size_t)v_dim]);
    most = sf_block_max(most, part);
    for (int32_t first = 0; first < tile.splits; first += THREADS) {
        int32_t count = tile.splits - first < THREADS ? tile.splits - first : THREADS;
        __syncthreads();
        if (thread < count) {
            size_t at = (size_t)(first + thread) * state_floats + (size_t)v_dim;
            float own = state[at + 1], factor = own > 0 ? expf(state[at] - most) : 0;
            weight[thread] = factor;
            share[thread] = own * factor;
        }
        __syncthreads();
        for (int32_t s = 0; s < count; s++) {
            float factor = weight[s];
            total += share[s];
            if (factor == 0) continue;
            SF_UNROLL
            for (int i = 0; i < SUMS; i++) {
                int32_t e = thread + i * THREADS;
                if (e < v_dim)
                    sum[i] = fmaf(state[(size_t)(first + s) * state_floats + (size_t)e], factor,
                                  sum[i]);
            }
        }
    }
    size_t row = (size_t)(lane.row_first + (tile.first + j) / lane.q_heads);
    size_t head = (size_t)(lane.q_first + (tile.first + j) % lane.q_heads);
    SF_UNROLL
    for (int i = 0; i < SUMS; i++) {
        int32_t e = thread + i * THREADS;
        if (e < v_dim)
            sf_put(to.dtype, to.out, row * to.stride + head * to.head_stride + (size_t)e,
                   total > 0 ? sum[i] / total : 0);
    }
    if (to.lse && thread == 0)
        to.lse[row * to.lse_stride + head] = total > 0 ? most + logf(total) : -INFINITY;
}

/* ---- the cut -------------------------------------------------------------------------------- */

/* Who computes a split: the tensor cores, by type of slot, the kernel above, or basis.cu, by type
 * of slot again; the last two of picked slots too. */
enum kind { BF16, F16, PLAIN, PICKED, BASIS, BASIS_PICKED = BASIS + 3, KINDS = BASIS_PICKED + 3 };

/* Of one launch: lanes lane_first .. lane_end - 1 of the job, from one vector of the first on. */
struct piece {
    int32_t lane_first, lane_end, tiles, splits_most, vectors_most;
    size_t units[KINDS], states, basis_bytes;   /* shared memory of basis.cu's blocks */
};
/* A place among the vectors of a job. */
struct cursor { int32_t lane, vector; };

/* In tiles, units and pages a piece fits into half a ring (4 MiB) with room for lanes and rows.
 * The words of a part count as so many pages: at most 1 MiB of both. */
enum { TILES_MOST = 1 << 15, UNITS_MOST = 1 << 15, PAGES_MOST = 1 << 18 };

static int32_t splits_of(int32_t slots)
{
    return slots <= 0 ? 0 : (slots + SF_SPLIT_SLOTS - 1) / SF_SPLIT_SLOTS;
}

static enum kind kind_of(const struct sf_attend_job *job, const struct sf_lane_job *lane,
                         int32_t part)
{
    const struct sf_layout *layout = part < 0 ? &job->layout : lane->part[part].layout;
    bool picked = part >= 0 && lane->part[part].pick;
    SF_ASSERT(!picked || layout->dtype != SF_INT8);
    if (part >= 0 && lane->part[part].factors) {
        SF_ASSERT(layout->dtype != SF_INT8);
        return (enum kind)((picked ? BASIS_PICKED : BASIS) + (int)layout->dtype);
    }
    if (picked) return PICKED;
    if (!sf_tensor_takes(layout, job->pool, job->page_bytes)) return PLAIN;
    return layout->dtype == SF_BF16 ? BF16 : F16;
}

/* Vectors of a plain unit, whose queries and logits fit into the shared memory of a block. */
static int32_t plain_vectors(const struct sf_layout *layout)
{
    int32_t fits = SF_SHARED_FLOATS / (layout->k_dim + SF_SPLIT_SLOTS);
    SF_ASSERT(fits >= 1);
    return fits < SF_VECTORS ? fits : SF_VECTORS;
}

/* Vectors of a unit of this kind. */
static int32_t unit_vectors(const struct sf_attend_job *job, const struct sf_lane_job *lane,
                            int32_t part, enum kind kind)
{
    if (kind >= BASIS) return sf_basis_cut_of(&job->layout, &lane->part[part]).vectors;
    return kind >= PLAIN ? plain_vectors(&job->layout) : SF_TILE_VECTORS;
}

/* How many lanes, from the tile's on and before lane_end, share a unit of the tile in this part; 0:
 * one of a lane before is also for this one.  Lanes of more vectors than a unit has share none. */
static int32_t unit_lanes(const struct sf_attend_job *job, const struct tile *tile, int32_t part,
                          int32_t lane_first, int32_t lane_end)
{
    const struct sf_lane_job *lane = &job->lane[tile->lane];
    enum kind kind = kind_of(job, lane, part);
    if (kind < BASIS || tile->vectors != lane->rows * lane->q_heads) return 1;
    int32_t most = unit_vectors(job, lane, part, kind) / tile->vectors, before = 0, lanes = 1;
    if (most < 2) return 1;
    while (tile->lane - before > lane_first &&
           sf_cuda_basis_shared(job, tile->lane - before, part)) before++;
    if (before % most != 0) return 0;
    while (lanes < most && tile->lane + lanes < lane_end &&
           sf_cuda_basis_shared(job, tile->lane + lanes, part)) lanes++;
    return lanes;
}

/* Splits of a tile in one part of its lane: as many as its last row sees. */
static int32_t tile_splits(const struct sf_lane_job *lane, const struct tile *tile, int32_t part)
{
    int32_t row = (tile->first + tile->vectors - 1) / lane->q_heads;
    return splits_of(sf_lane_part_seen(lane, part, row));
}

/* The tile at the cursor, but for its state; 0: there is none. */
static int tile_next(const struct sf_attend_job *job, struct cursor *at, struct tile *tile)
{
    for (; at->lane < job->lanes; at->lane++, at->vector = 0) {
        const struct sf_lane_job *lane = &job->lane[at->lane];
        int32_t left = lane->rows * lane->q_heads - at->vector;
        if (left <= 0) continue;
        *tile = { at->lane, at->vector, left < SF_TILE_VECTORS ? left : SF_TILE_VECTORS, 0, 0 };
        for (int32_t p = -1; p < lane->parts; p++) tile->splits += tile_splits(lane, tile, p);
        at->vector += tile->vectors;
        return 1;
    }
    return 0;
}

static size_t units_of(const struct piece *piece)
{
    size_t units = 0;
    for (int kind = 0; kind < KINDS; kind++) units += piece->units[kind];
    return units;
}

/* Units that a tile adds to the piece. */
static void tile_count(const struct sf_attend_job *job, const struct tile *tile,
                       struct piece *piece)
{
    const struct sf_lane_job *lane = &job->lane[tile->lane];
    for (int32_t p = -1; p < lane->parts; p++) {
        enum kind kind = kind_of(job, lane, p);
        int32_t step = unit_vectors(job, lane, p, kind);
        int32_t each = (tile->vectors + step - 1) / step;
        if (unit_lanes(job, tile, p, piece->lane_first, tile->lane + 1) == 0) each = 0;
        piece->units[kind] += (size_t)(tile_splits(lane, tile, p) * each);
        if (kind < BASIS) continue;
        size_t bytes = sf_basis_cut_of(&job->layout, &lane->part[p]).shared_bytes;
        if (bytes > piece->basis_bytes) piece->basis_bytes = bytes;
    }
    piece->tiles++;
    piece->states += (size_t)(tile->vectors * tile->splits);
    if (tile->splits > piece->splits_most) piece->splits_most = tile->splits;
    if (tile->vectors > piece->vectors_most) piece->vectors_most = tile->vectors;
    piece->lane_end = tile->lane + 1;
}

/* The tiles from the cursor on that fit; the cursor moves behind them. */
static struct piece piece_take(const struct sf_attend_job *job, struct cursor *at)
{
    size_t state_bytes = (size_t)sf_state_floats(job->layout.v_dim) * sizeof(float), pages = 0;
    struct piece piece = {};
    struct tile tile;
    struct cursor next = *at;
    for (int32_t last = -1; tile_next(job, &next, &tile); *at = next) {
        struct piece more = piece;
        if (piece.tiles == 0) more.lane_first = tile.lane;
        tile_count(job, &tile, &more);
        const struct sf_lane_job *lane = &job->lane[tile.lane];
        if (tile.lane != last)
            pages += sf_cuda_lane_pages(job, lane) + (size_t)lane->parts * SF_PART_WORDS;
        last = tile.lane;
        bool fits = more.tiles <= TILES_MOST && pages <= PAGES_MOST &&
                    more.states * state_bytes <= SF_CUDA_SCRATCH_BYTES &&
                    units_of(&more) <= UNITS_MOST;
        if (!fits && piece.tiles > 0) return piece;
        SF_ASSERT(fits);
        piece = more;
    }
    *at = next;
    return piece;
}

static size_t tiles_fill(const struct sf_attend_job *job, struct cursor at,
                         const struct piece *piece, struct tile *tiles)
{
    size_t states = 0;
    for (int32_t i = 0; i < piece->tiles; i++) {
        tile_next(job, &at, &tiles[i]);
        tiles[i].state = (int32_t)states;
        states += (size_t)(tiles[i].vectors * tiles[i].splits);
    }
    return states;
}

/* One split of one tile; `before`: the tile's splits in front of the part; `lanes` share it. */
static size_t split_fill(const struct sf_attend_job *job, const struct tile *tile, int32_t part,
                         int32_t split, int32_t before, enum kind kind, int32_t lane_first,
                         int32_t lanes, struct sf_unit *units)
{
    int32_t step = unit_vectors(job, &job->lane[tile->lane], part, kind);
    size_t n = 0;
    for (int32_t v = 0; lanes > 0 && v < tile->vectors; v += step) {
        int32_t count = tile->vectors - v < step ? tile->vectors - v : step;
        units[n++] = { tile->lane - lane_first, part, split * SF_SPLIT_SLOTS, tile->first + v,
                       count, tile->state + v * tile->splits + before + split, tile->splits,
                       lanes };
    }
    return n;
}

/* Units of one kind.  Up to four tiles of a lane go through the splits together: their units read
 * the same slots, and they are in one block or near it. */
static size_t units_fill(const struct sf_attend_job *job, const struct piece *piece,
                         const struct tile *tiles, enum kind kind, struct sf_unit *units)
{
    size_t n = 0;
    for (int32_t i = 0, end; i < piece->tiles; i = end) {
        const struct sf_lane_job *lane = &job->lane[tiles[i].lane];
        int32_t before[4] = { 0 };
        for (end = i + 1; end < piece->tiles && end - i < 4; end++)
            if (tiles[end].lane != tiles[i].lane) break;
        for (int32_t p = -1; p < lane->parts; p++) {
            int32_t most = tile_splits(lane, &tiles[end - 1], p);
            int32_t lanes = unit_lanes(job, &tiles[i], p, piece->lane_first, piece->lane_end);
            for (int32_t s = 0; kind_of(job, lane, p) == kind && s < most; s++)
                for (int32_t t = i; t < end; t++)
                    if (s < tile_splits(lane, &tiles[t], p))
                        n += split_fill(job, &tiles[t], p, s, before[t - i], kind,
                                        piece->lane_first, lanes, units + n);
            for (int32_t t = i; t < end; t++) before[t - i] += tile_splits(lane, &tiles[t], p);
        }
    }
    SF_ASSERT(n == piece->units[kind]);
    return n;
}

/* ---- host ----------------------------------------------------------------------------------- */

/* Tiles, numbered within the piece's lanes, and units by kind are on the device. */
static void piece_launch(struct sf_cuda *cuda, const struct sf_attend_job *job,
                         const struct piece *piece, const struct sf_cuda_view *view,
                         const unsigned char *tiles_at, const unsigned char *units_at)
{
    const int32_t *tiles = (const int32_t *)(const void *)tiles_at;
    const int32_t *units = (const int32_t *)(const void *)units_at;
    const int32_t *f16 = units + piece->units[BF16] * SF_UNIT_WORDS;
    const int32_t *plain = f16 + piece->units[F16] * SF_UNIT_WORDS;
    const int32_t *picked = plain + piece->units[PLAIN] * SF_UNIT_WORDS;
    const int32_t *basis = picked + piece->units[PICKED] * SF_UNIT_WORDS;
    float *states = (float *)(void *)cuda->scratch;
    size_t each = (size_t)(job->layout.k_dim + SF_SPLIT_SLOTS) * sizeof(float);
    size_t room = (size_t)plain_vectors(&job->layout) * each;
    struct output to = { (unsigned char *)job->out, job->out_stride, job->out_head_stride,
                         job->out_dtype, job->lse, job->lse_stride };
    sf_tensor_launch(cuda, view, SF_BF16, units, piece->units[BF16], states);
    sf_tensor_launch(cuda, view, SF_F16, f16, piece->units[F16], states);
    if (piece->units[PLAIN] > 0)
        SF_LAUNCH(attend_split<false>, (unsigned)piece->units[PLAIN], THREADS, room, cuda->stream,
                  *view, plain, states);
    if (piece->units[PICKED] > 0)
        SF_LAUNCH(attend_split<true>, (unsigned)piece->units[PICKED], THREADS, room, cuda->stream,
                  *view, picked, states);
    for (int kind = BASIS; kind < KINDS; kind++) {
        struct sf_basis_units some = { (enum sf_dtype)((kind - BASIS) % 3), kind >= BASIS_PICKED,
                                       basis, piece->units[kind] };
        sf_basis_launch(cuda, view, &some, piece->basis_bytes, states);
        basis += piece->units[kind] * SF_UNIT_WORDS;
    }
    SF_LAUNCH(attend_merge, dim3((unsigned)piece->tiles, (unsigned)piece->vectors_most), THREADS, 0,
              cuda->stream, *view, tiles, states, to);
}

/* Fills both arrays, of the tiles from the cursor on. */
static void piece_fill(const struct sf_attend_job *job, struct cursor at, const struct piece *piece,
                       struct tile *tile, struct sf_unit *unit)
{
    size_t n = 0, states = tiles_fill(job, at, piece, tile);
    SF_ASSERT(states == piece->states);
    for (int kind = 0; kind < KINDS; kind++)
        if (piece->units[kind] > 0)
            n += units_fill(job, piece, tile, (enum kind)kind, unit + n);
    for (int32_t i = 0; i < piece->tiles; i++) tile[i].lane -= piece->lane_first;
}

/* ---- jobs that are cut alike -----------------------------------------------------------------
 * How a job is cut depends on its layout and pool and on what the words of its lanes and parts say
 * (lanes.h), not on which pages, rows, turns and picks these name.  In a step that decodes they are
 * the same in every layer, as a rule, so tiles and units stay on the device, and only the first
 * layer makes and sends them.
 *
 *     device    | tiles, TILES_MOST | units, UNITS_MOST |       of the job with these words */
enum { KEY_MOST = 1 << 20, CUT_LANES_MOST = KEY_MOST / 2 / (SF_LANE_WORDS * 4),
       CUT_TILES_BYTES = TILES_MOST * (int)sizeof(struct tile) };
static_assert(CUT_TILES_BYTES + UNITS_MOST * sizeof(struct sf_unit) <= SF_CUDA_CUT_BYTES,
              "tiles and units of a piece have room");

struct sf_cuda_cut {
    unsigned char *device;
    unsigned char *key;                 /* [KEY_MOST] the words; host */
    size_t key_bytes, parts_at;         /* 0 bytes: no job yet */
    struct sf_layout layout;
    const unsigned char *pool;
    size_t page_bytes;
    struct piece piece;
};

sf_status sf_cuda_cut_create(struct sf_cuda *cuda)
{
    void *block = NULL;
    SF_TRY(sf_alloc(sizeof *cuda->cut, "the cut of attention", &block));
    cuda->cut = (struct sf_cuda_cut *)block;
    SF_TRY(sf_alloc(KEY_MOST, "the cut of attention", &block));
    cuda->cut->key = (unsigned char *)block;
    SF_TRY(sf_cuda_take(SF_CUDA_CUT_BYTES, "the cut of attention", &block));
    cuda->cut->device = (unsigned char *)block;
    return SF_OK;
}

void sf_cuda_cut_destroy(struct sf_cuda *cuda)
{
    if (!cuda->cut) return;
    cudaFree(cuda->cut->device);
    sf_free(cuda->cut->key);
    sf_free(cuda->cut);
}

static bool cut_serves(const struct sf_cuda_cut *cut, const struct sf_attend_job *job,
                       const struct sf_cuda_packed *packed)
{
    const struct sf_layout *a = &cut->layout, *b = &job->layout;
    return cut->key_bytes == packed->words_bytes && cut->parts_at == packed->parts_at &&
           cut->pool == job->pool && cut->page_bytes == job->page_bytes && a->dtype == b->dtype &&
           a->page_slots == b->page_slots && a->k_dim == b->k_dim && a->v_dim == b->v_dim &&
           sf_cuda_words_alike(packed, cut->key);
}

/* Cuts a job, whose block has been sent; false if it takes more than one launch. */
static bool cut_make(struct sf_cuda *cuda, const struct sf_attend_job *job,
                     const struct sf_cuda_packed *packed)
{
    struct sf_cuda_cut *cut = cuda->cut;
    struct cursor begin = { 0, 0 }, end = begin, rest;
    struct tile more;
    cut->key_bytes = 0;
    cut->piece = piece_take(job, &end);
    rest = end;
    if (packed->words_bytes > KEY_MOST || tile_next(job, &rest, &more)) return false;
    cut->layout = job->layout;
    cut->pool = job->pool;
    cut->page_bytes = job->page_bytes;
    cut->key_bytes = packed->words_bytes;
    cut->parts_at = packed->parts_at;
    memcpy(cut->key, packed->block.host, cut->key_bytes);
    cut->piece.lane_first = 0;
    size_t tiles_bytes = sf_cuda_part((size_t)cut->piece.tiles * sizeof(struct tile));
    size_t units_bytes = units_of(&cut->piece) * sizeof(struct sf_unit);
    struct sf_cuda_block block = sf_cuda_stage(cuda, tiles_bytes + units_bytes);
    piece_fill(job, begin, &cut->piece, (struct tile *)(void *)block.host,
               (struct sf_unit *)(void *)(block.host + tiles_bytes));
    SF_CUDA_MUST(cudaMemcpyAsync(cut->device, block.host, tiles_bytes, cudaMemcpyHostToDevice,
                                 cuda->stream));
    SF_CUDA_MUST(cudaMemcpyAsync(cut->device + CUT_TILES_BYTES, block.host + tiles_bytes,
                                 units_bytes, cudaMemcpyHostToDevice, cuda->stream));
    return true;
}

/* Attends by one launch with a cut that stays; false if the job is too long for that. */
static bool attend_whole(struct sf_cuda *cuda, const struct sf_attend_job *job)
{
    const struct sf_cuda_cut *cut = cuda->cut;
    struct sf_cuda_packed packed;
    if (!sf_cuda_pack_whole(cuda, job, CUT_LANES_MOST, PAGES_MOST, &packed)) return false;
    sf_cuda_send(cuda, &packed.block);
    if (!cut_serves(cut, job, &packed) && !cut_make(cuda, job, &packed)) return false;
    if (cut->piece.tiles > 0)
        piece_launch(cuda, job, &cut->piece, &packed.view, cut->device,
                     cut->device + CUT_TILES_BYTES);
    return true;
}

void sf_cuda_attend(struct sf_device *device, const struct sf_attend_job *job)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    struct cursor at = { 0, 0 };
    SF_ASSERT(job->layout.v_dim <= V_DIM_MAX);
    if (attend_whole(cuda, job)) return;
    for (;;) {
        struct cursor begin = at;
        struct piece piece = piece_take(job, &at);
        struct sf_attend_job lanes = *job;
        struct sf_cuda_packed packed;
        size_t tiles_bytes = sf_cuda_part((size_t)piece.tiles * sizeof(struct tile));
        if (piece.tiles == 0) return;
        lanes.lane = job->lane + piece.lane_first;
        lanes.lanes = piece.lane_end - piece.lane_first;
        sf_cuda_pack(cuda, &lanes, tiles_bytes + units_of(&piece) * sizeof(struct sf_unit),
                     &packed);
        size_t units_at = packed.extra_at + tiles_bytes;
        piece_fill(job, begin, &piece, (struct tile *)(void *)(packed.block.host + packed.extra_at),
                   (struct sf_unit *)(void *)(packed.block.host + units_at));
        sf_cuda_send(cuda, &packed.block);
        piece_launch(cuda, job, &piece, &packed.view, packed.block.device + packed.extra_at,
                     packed.block.device + units_at);
    }
}
