/* kernels/cpu/attend.c: cuts attention into pieces for the threads; the arithmetic is attend.inc.
 *
 *   vector   one query head of one row (tile.h)
 *   tile     up to SF_TILE_VECTORS vectors of one lane: they share each key and value loaded
 *   split    SF_SPLIT_SLOTS slots of a lane, always at the same places
 *   unit     a tile and a range of its splits: what a thread takes, longest first
 *
 * A tile whose unit would be longer than its share of the work (decode of a few long contexts) is
 * cut into several units; they leave the state of every split in the scratch, and a second pass
 * merges those.  A tile in one piece merges its splits as it goes.  Both merge the same states in
 * the same order, so the bits are the same whatever the threads, the tiles and the cut
 * (attend.inc tells why a split's state depends on the vector alone).  Parts of a lane in other
 * layouts are further splits behind its own. */
#include <math.h>
#include <string.h>
#include "kernels/backend.h"
#include "kernels/cpu/ahead.h"
#include "kernels/cpu/basis.h"

/* ---- one tile ----------------------------------------------------------------------------------
 * */

/* What a thread holds of the tile that it works on. */
struct work {
    float *logits;
    struct sf_partial split, total;
    struct sf_gathered gathered;
    float *more;                        /* of basis.c */
};

static int32_t out_width(const struct sf_layout *layout)
{
    return (layout->v_dim + SF_OUT_ALIGN - 1) / SF_OUT_ALIGN * SF_OUT_ALIGN;
}

/* Floats of a state of `vectors`: [vectors][width] out, [vectors] max, [vectors] sum. */
static size_t state_size(const struct sf_layout *layout, int32_t vectors)
{
    return (size_t)vectors * ((size_t)out_width(layout) + 2);
}

static struct sf_partial state_at(const struct sf_layout *layout, float *floats, int32_t vectors)
{
    float *max = floats + (size_t)vectors * (size_t)out_width(layout);
    return (struct sf_partial){ floats, max, max + vectors };
}

/* Vectors of a tile that fit into a thread's floats. */
static int32_t tile_vectors(const struct sf_attend_job *job, const struct sf_lane_job *lane)
{
    const struct sf_layout *layout = &job->layout;
    size_t each = (size_t)layout->k_dim + SF_SPLIT_SLOTS + 2 * state_size(layout, 1) +
                  sf_basis_vector_floats(lane);
    size_t more = sf_basis_thread_floats(job, lane);
    SF_ASSERT(more < SF_THREAD_FLOATS);
    int32_t fits = (int32_t)((SF_THREAD_FLOATS - more) / each);
    SF_ASSERT(fits >= 1);
    return fits < SF_TILE_VECTORS ? fits : SF_TILE_VECTORS;
}

static void state_clear(const struct sf_layout *layout, struct sf_partial state, int32_t vectors)
{
    memset(state.out, 0, (size_t)vectors * (size_t)out_width(layout) * sizeof(float));
    for (int32_t j = 0; j < vectors; j++) {
        state.max[j] = -INFINITY;
        state.sum[j] = 0;
    }
}

/* Cuts the thread's floats and gathers the tile's queries. */
static void work_begin(const struct sf_cpu_isa *isa, const struct sf_attend_job *job,
                       const struct sf_tile *tile, float *floats, struct work *work)
{
    const struct sf_layout *layout = &job->layout;
    size_t n = (size_t)tile->vectors;
    work->logits = floats;
    work->split = state_at(layout, floats + n * SF_SPLIT_SLOTS, tile->vectors);
    work->total = state_at(layout, work->split.out + state_size(layout, tile->vectors),
                           tile->vectors);
    work->gathered.q = work->total.out + state_size(layout, tile->vectors);
    work->more = work->gathered.q + n * (size_t)layout->k_dim;
    sf_tile_gather(isa, job, tile, &work->gathered);
}

/* Where the split's logits are to be left; those of blocks that are not listed are -inf at once. */
static void split_leave(const struct sf_tile *tile, int32_t part, int32_t split, struct sf_split *s)
{
    const struct sf_lane_job *lane = tile->lane;
    size_t first = sf_lane_logit_first(lane, part) + (size_t)split * SF_SPLIT_SLOTS;
    size_t slots = sf_lane_logit_first(lane, part + 1) - first;
    SF_ASSERT(lane->rows == 1 && sf_lane_logit_first(lane, lane->parts) <= lane->logit_stride);
    if (slots > SF_SPLIT_SLOTS) slots = SF_SPLIT_SLOTS;
    s->left_stride = lane->logit_stride;
    s->left = lane->logit + (size_t)tile->vector * s->left_stride + first;
    if ((size_t)s->blocks * SF_BLOCK_SLOTS == slots) return;
    for (int32_t j = 0; j < tile->vectors; j++)
        for (size_t i = 0; i < slots; i++)
            s->left[(size_t)j * s->left_stride + i] = -INFINITY;
}

/* A split of the tile of the queue's first unit. */
static void split_run(const struct sf_cpu_isa *isa, const struct sf_attend_job *job,
                      const struct sf_attention *attention, const struct sf_queue *queue,
                      struct work *work, int32_t number, struct sf_partial into)
{
    struct sf_split s;
    struct sf_ahead ahead;
    const struct sf_tile *tile = &attention->tile[queue->unit[0]->tile];
    int32_t split = number;
    s.logits = work->logits;
    s.partial = into;
    int32_t part = tile->lane->parts > 0 ? sf_tile_part(tile, &split) : -1;
    if (part >= 0 && (tile->lane->part[part].factors || tile->lane->part[part].pick)) {
        SF_ASSERT(!tile->lane->logit);  /* columns takes no such part */
        sf_basis_split(isa, job, tile, part, &work->gathered, split * SF_SPLIT_SLOTS,
                       (split + 1) * SF_SPLIT_SLOTS, work->logits, work->more, into);
        return;
    }
    sf_tile_blocks(job, tile, part, &work->gathered, split * SF_SPLIT_SLOTS,
                   (split + 1) * SF_SPLIT_SLOTS, &s);
    s.left = NULL;
    if (tile->lane->logit) split_leave(tile, part, split, &s);
    sf_ahead_point(job, attention, queue, number, &ahead, &s);
    isa->split(&s);
}

static void tile_finish(const struct sf_cpu_isa *isa, const struct sf_attend_job *job,
                        const struct sf_tile *tile, struct sf_partial total)
{
    size_t element = sf_dtype_bytes(job->out_dtype), width = (size_t)out_width(&job->layout);
    for (int32_t j = 0; j < tile->vectors; j++) {
        size_t row = (size_t)(tile->lane->row_first + sf_tile_row(tile, j));
        size_t head = (size_t)sf_tile_head(tile, j);
        unsigned char *out = job->out;
        isa->finish(job->layout.v_dim, total.out + (size_t)j * width, total.sum[j], job->out_dtype,
                    out + (row * job->out_stride + head * job->out_head_stride) * element);
        if (job->lse)
            job->lse[row * job->lse_stride + head] =
                total.sum[j] == 0 ? -INFINITY : total.max[j] + logf(total.sum[j]);
    }
}

/* The queue's first unit. */
static void unit_run(const struct sf_cpu_isa *isa, const struct sf_attend_job *job,
                     const struct sf_attention *attention, const struct sf_queue *queue,
                     float *floats)
{
    struct work work;
    const struct sf_layout *layout = &job->layout;
    const struct sf_unit *unit = queue->unit[0];
    const struct sf_tile *tile = &attention->tile[unit->tile];
    size_t size = state_size(layout, tile->vectors);
    work_begin(isa, job, tile, floats, &work);
    if (tile->kept) {
        for (int32_t s = unit->first; s < unit->end; s++)
            split_run(isa, job, attention, queue, &work, s,
                      state_at(layout, tile->kept + (size_t)s * size, tile->vectors));
        return;
    }
    state_clear(layout, work.total, tile->vectors);
    for (int32_t s = unit->first; s < unit->end; s++) {
        split_run(isa, job, attention, queue, &work, s, work.split);
        isa->merge(tile->vectors, out_width(layout), work.total, work.split);
    }
    tile_finish(isa, job, tile, work.total);
}

static void tile_merge(const struct sf_cpu_isa *isa, const struct sf_attend_job *job,
                       const struct sf_tile *tile, float *floats)
{
    const struct sf_layout *layout = &job->layout;
    size_t size = state_size(layout, tile->vectors);
    struct sf_partial total = state_at(layout, floats, tile->vectors);
    state_clear(layout, total, tile->vectors);
    for (int32_t s = 0; s < tile->splits; s++)
        isa->merge(tile->vectors, out_width(layout), total,
                   state_at(layout, tile->kept + (size_t)s * size, tile->vectors));
    tile_finish(isa, job, tile, total);
}

/* ---- the cut into units ------------------------------------------------------------------------
 * */

/* Of one split of a tile, in arbitrary units: loading a slot costs about as much as 2 vectors. */
static int64_t split_cost(const struct sf_tile *tile) { return tile->vectors + 2; }

/* Adds tiles from vector *vector of lane *lane on until there are SF_TILES_MAX or no more lanes. */
static void tiles_take(struct sf_attention *attention, const struct sf_attend_job *job,
                       int32_t *lane, int32_t *vector)
{
    attention->tiles = 0;
    while (*lane < job->lanes && attention->tiles < SF_TILES_MAX) {
        const struct sf_lane_job *at = &job->lane[*lane];
        int32_t left = at->rows * at->q_heads - *vector, most = tile_vectors(job, at);
        if (left <= 0) {
            *lane += 1;
            *vector = 0;
            continue;
        }
        struct sf_tile *tile = &attention->tile[attention->tiles++];
        *tile = (struct sf_tile){ at, *vector, left < most ? left : most, 0, -1, NULL };
        int32_t last = sf_tile_row(tile, tile->vectors - 1);
        tile->splits = sf_splits_of(sf_lane_part_seen(at, -1, last));
        for (int32_t p = 0; p < at->parts; p++)
            tile->splits += sf_splits_of(sf_lane_part_seen(at, p, 0));
        *vector += tile->vectors;
    }
}

/* The most that a unit should cost: its share of the work, but so much at least that the states of
 * the tiles that are cut fit into the scratch. */
static int64_t unit_cost_most(const struct sf_attention *attention, const struct sf_layout *layout)
{
    int64_t total = 0, most;
    for (int32_t i = 0; i < attention->tiles; i++)
        total += attention->tile[i].splits * split_cost(&attention->tile[i]);
    if (attention->threads == 1) return INT64_MAX;
    for (most = total / (attention->threads * SF_UNITS_PER_THREAD) + 1;; most *= 2) {
        size_t floats = 0;
        for (int32_t i = 0; i < attention->tiles; i++) {
            const struct sf_tile *tile = &attention->tile[i];
            if (tile->splits > 1 && tile->splits * split_cost(tile) > most)
                floats += (size_t)tile->splits * state_size(layout, tile->vectors);
        }
        if (floats <= (size_t)attention->threads * SF_KEPT_FLOATS) return most;
    }
}

static void units_cut(struct sf_attention *attention, const struct sf_layout *layout)
{
    int64_t most = unit_cost_most(attention, layout);
    float *states = attention->kept_floats;
    attention->units = 0;
    for (int32_t i = 0; i < attention->tiles; i++) {
        struct sf_tile *tile = &attention->tile[i];
        int64_t each = split_cost(tile);
        int32_t step = tile->splits;
        if (tile->splits > 1 && tile->splits * each > most) {
            step = most / each > 0 ? (int32_t)(most / each) : 1;
            /* A pass has at most SF_TILES_MAX tiles; the cut may add as many units again. */
            int32_t room = SF_UNITS_MAX - attention->units - (attention->tiles - i) + 1;
            int32_t least = (tile->splits + room - 1) / room;
            if (step < least) step = least;
            tile->kept = states;
            states += (size_t)tile->splits * state_size(layout, tile->vectors);
        }
        for (int32_t s = 0; s == 0 || s < tile->splits; s += step > 0 ? step : 1) {
            int32_t end = tile->splits - s < step ? tile->splits : s + step;
            SF_ASSERT(attention->units < SF_UNITS_MAX);
            attention->unit[attention->units++] = (struct sf_unit){ i, s, end, (end - s) * each };
        }
    }
}

/* What the threads of a pass share. */
struct pass {
    const struct sf_cpu_isa *isa;
    const struct sf_attend_job *job;
    struct sf_attention *attention;
    int32_t taken;                      /* units */
};

static float *floats_of(const struct pass *pass, int32_t thread)
{
    return pass->attention->thread_floats + (size_t)thread * SF_THREAD_FLOATS;
}

/* A thread that has begun takes units until none is left. */
static void take_units(void *context, int32_t first, int32_t end, int32_t thread)
{
    struct pass *pass = context;
    struct sf_queue queue = { .count = 0 };
    (void)first;
    (void)end;
    sf_queue_fill(pass->attention, &pass->taken, &queue);
    sf_queue_begin(pass->job, pass->attention, &queue);
    while (queue.count > 0) {
        unit_run(pass->isa, pass->job, pass->attention, &queue, floats_of(pass, thread));
        sf_queue_drop(&queue);
        sf_queue_fill(pass->attention, &pass->taken, &queue);
    }
}

static void merge_tiles(void *context, int32_t first, int32_t end, int32_t thread)
{
    struct pass *pass = context;
    for (int32_t i = first; i < end; i++)
        if (pass->attention->tile[i].kept)
            tile_merge(pass->isa, pass->job, &pass->attention->tile[i], floats_of(pass, thread));
}

static void units_run(struct sf_device *device, const struct sf_attend_job *job)
{
    struct sf_attention *attention = sf_cpu_of(device)->attention;
    struct pass pass = { sf_cpu_of(device)->isa, job, attention, 0 };
    int64_t cost = 0;
    int cut = 0;
    for (int32_t i = 0; i < attention->units; i++) cost += attention->unit[i].cost;
    for (int32_t i = 0; i < attention->tiles; i++) cut |= attention->tile[i].kept != NULL;
    int64_t operations = attention->units > 1
                       ? cost * (job->layout.k_dim + job->layout.v_dim) * 32 : 0;
    sf_cpu_share(device, operations, device->threads, 1, take_units, &pass);
    if (cut) sf_cpu_share(device, operations, attention->tiles, 1, merge_tiles, &pass);
}

void sf_cpu_attend(struct sf_device *device, const struct sf_attend_job *job)
{
    struct sf_attention *attention = sf_cpu_of(device)->attention;
    SF_ASSERT(job->layout.page_slots % SF_BLOCK_SLOTS == 0);
    SF_ASSERT(job->layout.dtype != SF_BF16 || job->layout.k_dim % 2 == 0);
    int32_t lane = 0, vector = 0;
    for (;;) {
        tiles_take(attention, job, &lane, &vector);
        if (attention->tiles == 0) return;
        units_cut(attention, &job->layout);
        sf_units_order(attention);
        units_run(device, job);
    }
}
