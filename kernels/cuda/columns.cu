/* kernels/cuda/columns.cu: what attention gives to each slot (the formulas are in kernels.h).
 *
 *   block    SLOTS successive slots of one lane; a thread is a slot and keeps its mass
 *   rows     one after the other, in their order: the queries of up to SF_VECTORS heads are staged
 *            in shared memory, the slot's weights folded over the heads in order, the mass changed
 *
 * So a mass is one chain over its rows, in one thread, whatever the other slots and lanes do.
 * BELOW_MEAN needs to know how many slots a row sees: a warp counts them before.
 *
 * Bytes read per row: one key a slot for each group of heads (the second and later rows find it in
 * the cache).  Measured: docs/performance.md. */
#include "kernels/backend.h"
#include "kernels/cuda/entries.h"
#include "kernels/cuda/lanes.h"

enum { SLOTS = 128, WARPS = SLOTS / SF_WARP, UNIT_WORDS = 3 };

/* What a job of columns has beside the view. */
struct fold {
    sf_global<const float> lse;
    size_t lse_stride;
    enum sf_row_fold rows;
    enum sf_head_fold heads;
    float decay;
    sf_global<float> mass;
    int32_t mass_slots;
    sf_global<const int32_t> seen;      /* [lanes][rows_most] slots that a row sees, BELOW_MEAN */
    int32_t rows_most;
};

/* Rows of a lane in front of this one see nothing. */
static __host__ __device__ __forceinline__ int32_t first_row(int32_t slots, int32_t rows,
                                                             int32_t parts)
{
    return parts == 0 && rows > slots ? rows - slots : 0;
}

static __device__ __forceinline__ bool in_window(const struct sf_cuda_view &view, int32_t row,
                                                 int32_t pos)
{
    return view.window == 0 || (int64_t)pos > (int64_t)(int32_t)view.row_pos[row] - view.window;
}

/* ---- slots that a row sees ------------------------------------------------------------------ */

/* A warp counts for one row; grid (rows of the longest lane / WARPS, lanes). */
static __global__ void count_seen(struct sf_cuda_view view, int32_t rows_most,
                                  sf_global<int32_t> seen)
{
    struct sf_cuda_lane lane = sf_lane_at(view, (int32_t)blockIdx.y);
    int32_t number = (int32_t)(blockIdx.x * WARPS + threadIdx.x / SF_WARP), count = 0;
    int32_t r = first_row(lane.slots, lane.rows, lane.parts) + number;
    if (r >= lane.rows) return;
    for (int32_t part = -1; part < lane.parts; part++) {
        sf_lane_turn(view, lane, part);
        for (int32_t s = (int32_t)(threadIdx.x % SF_WARP); s < sf_row_end(lane, r); s += SF_WARP) {
            struct sf_cuda_slot at = sf_slot_at(view, lane, s);
            if (sf_bias_of(view.layout, at) == -INFINITY) continue;
            count += in_window(view, lane.row_first + r,
                               view.window == 0 ? 0 : sf_pos_of(view.layout, at));
        }
    }
    count = sf_warp_count(count);
    if (threadIdx.x % SF_WARP == 0) seen[(size_t)blockIdx.y * (size_t)rows_most + number] = count;
}

/* ---- masses --------------------------------------------------------------------------------- */

/* The slot's weight of a row: heads in groups, each group's queries staged for the whole block. */
template <bool INT8>
static __device__ __forceinline__ float weight_of(const struct sf_cuda_view &view,
                                                  const struct sf_cuda_lane &lane,
                                                  const struct fold &fold, int32_t r,
                                                  const struct sf_cuda_slot &at, float bias,
                                                  bool seen, int32_t group, sf_shared<float> q)
{
    float folded = 0, dot[SF_VECTORS];
    for (int32_t h = 0; h < lane.q_heads; h += group) {
        int32_t heads = lane.q_heads - h < group ? lane.q_heads - h : group;
        __syncthreads();
        sf_queries_stage(view, lane, r * lane.q_heads + h, heads, q);
        __syncthreads();
        if (!seen) continue;
        sf_dots_any<INT8>(view.layout, at, q, heads, dot);
        SF_UNROLL
        for (int j = 0; j < SF_VECTORS; j++) {
            if (j >= heads) continue;
            size_t row = (size_t)(lane.row_first + r), head = (size_t)(lane.q_first + h + j);
            float lse = fold.lse[row * fold.lse_stride + head];
            float w = lse == -INFINITY ? 0 : expf(fmaf(dot[j], view.scale, bias) - lse);
            folded = fold.heads == SF_HEADS_MAX ? fmaxf(folded, w) : folded + w;
        }
    }
    return fold.heads == SF_HEADS_MEAN ? folded / (float)lane.q_heads : folded;
}

static __device__ __forceinline__ float mass_change(const struct fold &fold, float mass, float w,
                                                    int32_t seen)
{
    switch (fold.rows) {
    case SF_ROWS_SUM: return mass + w;
    case SF_ROWS_MAX: return fmaxf(mass, w);
    case SF_ROWS_DECAY: return fmaf(mass, fold.decay, w);
    case SF_ROWS_BELOW_MEAN: return w < 1 / (float)seen ? mass + 1 : mass;
    }
    return mass;
}

/* Is there a head of the row that weighs anything?  The same answer in every thread. */
static __device__ __forceinline__ bool row_lives(const struct sf_cuda_lane &lane,
                                                 const struct fold &fold, int32_t r)
{
    size_t at = (size_t)(lane.row_first + r) * fold.lse_stride + (size_t)lane.q_first;
    if (fold.rows == SF_ROWS_DECAY) return true;
    for (int32_t h = 0; h < lane.q_heads; h++)
        if (fold.lse[at + (size_t)h] > -INFINITY) return true;
    return false;
}

/* units: [blocks][UNIT_WORDS], a lane, one of its parts or -1, and the first of its slots. */
template <bool INT8>
__global__ void __launch_bounds__(SLOTS, INT8 ? 5 : 6)
columns_slots(struct sf_cuda_view view, sf_global<const int32_t> units, struct fold fold,
              int32_t group)
{
    SF_SHARED_DYNAMIC(float, q);        /* [group][k_dim] */
    sf_global<const int32_t> unit = units + (size_t)blockIdx.x * UNIT_WORDS;
    int32_t lane_number = unit[0], first = unit[2];
    struct sf_cuda_lane lane = sf_lane_at(view, lane_number);
    int32_t s = first + (int32_t)threadIdx.x;
    int32_t row_first = first_row(lane.slots, lane.rows, lane.parts);
    sf_lane_turn(view, lane, unit[1]);
    bool inside = s < lane.slots;
    struct sf_cuda_slot at = sf_slot_at(view, lane, inside ? s : first);
    float bias = sf_bias_of(view.layout, at), mass = 0;
    int32_t pos = view.window != 0 ? sf_pos_of(view.layout, at) : 0;
    int32_t page = view.pages[lane.pages_first + (inside ? s : first) / view.layout.page_slots];
    size_t place = (size_t)page * (size_t)fold.mass_slots + (size_t)at.slot;
    if (inside) mass = fold.mass[place];
    inside = inside && bias > -INFINITY;
    for (int32_t r = row_first; r < lane.rows; r++) {
        int32_t end = sf_row_end(lane, r);
        if (first >= end || !row_lives(lane, fold, r)) continue;
        bool there = inside && s < end;
        bool seen = there && in_window(view, lane.row_first + r, pos);
        float w = weight_of<INT8>(view, lane, fold, r, at, bias, seen, group, q);
        int32_t count = fold.rows != SF_ROWS_BELOW_MEAN ? 0
                      : (int32_t)fold.seen[(size_t)lane_number * (size_t)fold.rows_most +
                                           (size_t)(r - row_first)];
        if (seen || (there && fold.rows == SF_ROWS_DECAY))
            mass = mass_change(fold, mass, w, count);
    }
    if (inside) fold.mass[place] = mass;
}

/* ---- host ----------------------------------------------------------------------------------- */

/* Lanes first .. end - 1 of a job as a job of their own. */
struct batch {
    struct sf_attend_job view;
    size_t units;
    int32_t rows_most;
};

static int32_t rows_of(const struct sf_lane_job *lane)
{
    return lane->rows - first_row(lane->slots, lane->rows, lane->parts);
}

/* Blocks for the slots of a lane and its parts. */
static size_t units_of(const struct sf_lane_job *lane)
{
    size_t units = 0;
    for (int32_t p = 0; p < lane->parts; p++) SF_ASSERT(!lane->part[p].pick);
    for (int32_t p = -1; rows_of(lane) > 0 && p < lane->parts; p++)
        units += (size_t)(((p < 0 ? lane->slots : lane->part[p].slots) + SLOTS - 1) / SLOTS);
    return units;
}

/* The lanes from `first` on that fit into one launch. */
static struct batch batch_of(const struct sf_columns_job *job, int32_t first)
{
    const size_t units_most = 1 << 16, counts_most = SF_CUDA_SCRATCH_BYTES / sizeof(int32_t);
    struct batch batch = { sf_columns_view(job), 0, 0 };
    int32_t end = first;
    for (; end < job->lanes && end - first < 1 << 15; end++) {
        const struct sf_lane_job *lane = &job->lane[end];
        int32_t rows = rows_of(lane), most = rows > batch.rows_most ? rows : batch.rows_most;
        size_t units = units_of(lane);
        bool counts = (size_t)most * (size_t)(end - first + 1) <= counts_most;
        if (end > first && (batch.units + units > units_most || !counts)) break;
        SF_ASSERT(counts);
        batch.units += units;
        batch.rows_most = most;
    }
    batch.view.lane = job->lane + first;
    batch.view.lanes = end - first;
    return batch;
}

static void units_fill(const struct batch *batch, int32_t *units)
{
    size_t used = 0;
    for (int32_t i = 0; i < batch->view.lanes; i++) {
        const struct sf_lane_job *lane = &batch->view.lane[i];
        for (int32_t p = -1; rows_of(lane) > 0 && p < lane->parts; p++) {
            int32_t slots = p < 0 ? lane->slots : lane->part[p].slots;
            for (int32_t s = 0; s < slots; s += SLOTS) {
                units[used++] = i;
                units[used++] = p;
                units[used++] = s;
            }
        }
    }
    SF_ASSERT(used == UNIT_WORDS * batch->units);
}

static bool has_int8(const struct sf_attend_job *job)
{
    bool any = job->layout.dtype == SF_INT8;
    for (int32_t i = 0; i < job->lanes; i++)
        for (int32_t p = 0; p < job->lane[i].parts; p++)
            any = any || job->lane[i].part[p].layout->dtype == SF_INT8;
    return any;
}

static void batch_launch(struct sf_cuda *cuda, const struct sf_columns_job *job,
                         const struct batch *batch, const struct sf_cuda_packed *packed)
{
    const int32_t *units = (const int32_t *)(const void *)(packed->block.device +
                                                           packed->extra_at);
    int32_t *seen = (int32_t *)(void *)cuda->scratch, k_dim = job->layout.k_dim;
    int32_t group = SF_SHARED_FLOATS / k_dim;
    SF_ASSERT(group >= 1);
    if (group > SF_VECTORS) group = SF_VECTORS;
    struct fold fold = { job->lse, job->lse_stride, job->fold, job->head_fold, job->decay,
                         job->mass, job->mass_slots ? job->mass_slots : job->layout.page_slots,
                         seen, batch->rows_most };
    if (job->fold == SF_ROWS_BELOW_MEAN)
        SF_LAUNCH(count_seen, dim3(sf_blocks((size_t)batch->rows_most, WARPS),
                                   (unsigned)batch->view.lanes), SLOTS, 0, cuda->stream,
                  packed->view, batch->rows_most, seen);
    size_t shared_bytes = (size_t)group * (size_t)k_dim * sizeof(float);
    if (has_int8(&batch->view))
        SF_LAUNCH(columns_slots<true>, (unsigned)batch->units, SLOTS, shared_bytes, cuda->stream,
                  packed->view, units, fold, group);
    else
        SF_LAUNCH(columns_slots<false>, (unsigned)batch->units, SLOTS, shared_bytes, cuda->stream,
                  packed->view, units, fold, group);
}

void sf_cuda_columns(struct sf_device *device, const struct sf_columns_job *job)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    for (int32_t first = 0; first < job->lanes; ) {
        struct batch batch = batch_of(job, first);
        struct sf_cuda_packed packed;
        first += batch.view.lanes;
        if (batch.units == 0) continue;
        sf_cuda_pack(cuda, &batch.view, UNIT_WORDS * batch.units * sizeof(int32_t), &packed);
        units_fill(&batch, (int32_t *)(void *)(packed.block.host + packed.extra_at));
        sf_cuda_send(cuda, &packed.block);
        batch_launch(cuda, job, &batch, &packed);
    }
}
