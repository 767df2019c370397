/* kernels/cpu/attend.c: cuts attention into pieces for the threads; the arithmetic is attend.inc.
 *
 *   vector   one query head of one row; a lane of r rows and h heads has r h of them, row by row
 *   tile     up to TILE_VECTORS vectors of one lane: they share each key and value that is loaded
 *   split    SF_SPLIT_SLOTS slots of a lane, always at the same places
 *   unit     a tile and a range of its splits: what a thread takes, longest first
 *
 * A tile whose unit would be longer than its share of the work (decode of a few long contexts) is
 * cut into several units; they leave the state of every split in the scratch, and a second pass
 * merges those.  A tile in one piece merges its splits as it goes.  Both merge the same states in
 * the same order, so the bits are the same whatever the threads, the tiles and the cut
 * (attend.inc tells why a split's state depends on the vector alone).
 *
 * All scratch is made when the device is opened; a batch that has more tiles than fit is worked off
 * in several passes. */
#include <math.h>
#include <omp.h>
#include <string.h>
#include "base/memory.h"
#include "kernels/cpu/cpu.h"

enum {
    TILE_VECTORS = 24,
    TILES_MAX = 8192,                   /* of one pass */
    UNITS_MAX = 2 * TILES_MAX,
    BUCKETS = 64,                       /* of cost, for the order */
    UNITS_PER_THREAD = 4,               /* aimed at where tiles are cut */
    THREAD_FLOATS = 128 << 10,          /* a thread's tile: queries, logits, states */
    STATE_FLOATS = 256 << 10            /* states of cut tiles, per thread */
};

struct tile {
    const struct sf_lane_job *lane;
    int32_t vector, vectors;            /* first of the lane, count */
    int32_t splits;
    float *states;                      /* of a cut tile: [splits] blocks of state_floats */
};
struct unit {
    int32_t tile, split_first, split_end;
    int64_t cost;
};

struct sf_attention {
    int32_t threads;
    struct tile *tile;                  /* [TILES_MAX] */
    struct unit *unit;                  /* [UNITS_MAX] */
    int32_t *order;                     /* [UNITS_MAX] */
    float *thread_floats;               /* [threads][THREAD_FLOATS] */
    float *state_floats;                /* [threads][STATE_FLOATS] */
    int32_t tiles, units;               /* of this pass */
};

/* ---- one tile ----------------------------------------------------------------------------------
 * */

/* What a thread holds of the tile that it works on. */
struct work {
    float *q, *logits;
    struct sf_partial split, total;
    int32_t seen[TILE_VECTORS];         /* slots of the lane that a vector may see */
    int32_t end[TILE_VECTORS], pos_min[TILE_VECTORS];
    int32_t seen_most, pos_least;       /* of the tile */
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
static int32_t tile_vectors(const struct sf_layout *layout)
{
    size_t each = (size_t)layout->k_dim + SF_SPLIT_SLOTS + 2 * state_size(layout, 1);
    int32_t fits = (int32_t)(THREAD_FLOATS / each);
    SF_ASSERT(fits >= 1);
    return fits < TILE_VECTORS ? fits : TILE_VECTORS;
}

static int32_t row_of(const struct tile *tile, int32_t j)
{
    return (tile->vector + j) / tile->lane->q_heads;
}

static int32_t head_of(const struct tile *tile, int32_t j)
{
    return tile->lane->q_first + (tile->vector + j) % tile->lane->q_heads;
}

static void state_clear(const struct sf_layout *layout, struct sf_partial state, int32_t vectors)
{
    memset(state.out, 0, (size_t)vectors * (size_t)out_width(layout) * sizeof(float));
    for (int32_t j = 0; j < vectors; j++) {
        state.max[j] = -INFINITY;
        state.sum[j] = 0;
    }
}

/* Gathers the tile's queries, scaled, and what each may see. */
static void work_begin(const struct sf_cpu_isa *isa, const struct sf_attend_job *job,
                       const struct tile *tile, float *floats, struct work *work)
{
    const struct sf_layout *layout = &job->layout;
    size_t n = (size_t)tile->vectors, k_dim = (size_t)layout->k_dim;
    work->logits = floats;
    work->split = state_at(layout, floats + n * SF_SPLIT_SLOTS, tile->vectors);
    work->total = state_at(layout, work->split.out + state_size(layout, tile->vectors),
                           tile->vectors);
    work->q = work->total.out + state_size(layout, tile->vectors);
    work->seen_most = 0;
    work->pos_least = INT32_MAX;
    for (int32_t j = 0; j < tile->vectors; j++) {
        const struct sf_lane_job *lane = tile->lane;
        int32_t row = row_of(tile, j), row_global = lane->row_first + row;
        isa->scale(k_dim, job->scale,
                   job->q + (size_t)row_global * job->q_stride + (size_t)head_of(tile, j) * k_dim,
                   work->q + (size_t)j * k_dim);
        work->seen[j] = lane->slots - lane->rows + row + 1;
        if (work->seen[j] > work->seen_most) work->seen_most = work->seen[j];
        if (job->window == 0) continue;
        int64_t least = (int64_t)job->row_pos[row_global] - job->window + 1;
        work->pos_min[j] = least < INT32_MIN ? INT32_MIN : (int32_t)least;
        if (work->pos_min[j] < work->pos_least) work->pos_least = work->pos_min[j];
    }
}

/* Whether any of `slots` slots is no hole and inside the window. */
static int block_lives(const float *bias, const int32_t *pos, int32_t slots, int window,
                       int32_t pos_least)
{
    for (int32_t i = 0; i < slots; i++)
        if (bias[i] > -INFINITY && (!window || pos[i] >= pos_least)) return 1;
    return 0;
}

/* Lists the blocks of a split in which the tile sees something. */
static void blocks_list(const struct sf_attend_job *job, const struct tile *tile,
                        const struct work *work, int32_t split, struct sf_split *s)
{
    const struct sf_layout *layout = &job->layout;
    size_t width = sf_dtype_bytes(layout->dtype), v_offset = sf_layout_v_offset(layout);
    size_t bias_offset = sf_layout_bias_offset(layout), pos_offset = sf_layout_pos_offset(layout);
    int32_t slot = split * SF_SPLIT_SLOTS, end = slot + SF_SPLIT_SLOTS;
    if (end > work->seen_most) end = work->seen_most;
    s->blocks = 0;
    for (int32_t at = slot; at < end; at += SF_BLOCK_SLOTS) {
        int32_t inside = at % layout->page_slots, b = s->blocks;
        const unsigned char *page =
            job->pool + (size_t)tile->lane->pages[at / layout->page_slots] * job->page_bytes;
        s->bias[b] = (const float *)(const void *)(page + bias_offset) + inside;
        s->pos[b] = (const int32_t *)(const void *)(page + pos_offset) + inside;
        if (!block_lives(s->bias[b], s->pos[b], end - at < SF_BLOCK_SLOTS ? end - at :
                SF_BLOCK_SLOTS,
                         job->window != 0, work->pos_least))
            continue;
        s->keys[b] = page + (size_t)inside * (size_t)layout->k_dim * width;
        s->values[b] = page + v_offset + (size_t)inside * (size_t)layout->v_dim * width;
        s->first[b] = at - slot;
        s->blocks++;
    }
}

static void split_run(const struct sf_cpu_isa *isa, const struct sf_attend_job *job,
                      const struct tile *tile, struct work *work, int32_t split,
                      struct sf_partial into)
{
    struct sf_split s;
    s.dtype = job->layout.dtype;
    s.k_dim = job->layout.k_dim;
    s.v_dim = job->layout.v_dim;
    s.vectors = tile->vectors;
    s.q = work->q;
    s.logits = work->logits;
    s.end = work->end;
    s.pos_min = job->window != 0 ? work->pos_min : NULL;
    s.partial = into;
    for (int32_t j = 0; j < tile->vectors; j++) work->end[j] =
            work->seen[j] - split * SF_SPLIT_SLOTS;
    blocks_list(job, tile, work, split, &s);
    isa->split(&s);
}

static void tile_finish(const struct sf_cpu_isa *isa, const struct sf_attend_job *job,
                        const struct tile *tile, struct sf_partial total)
{
    size_t element = sf_dtype_bytes(job->out_dtype), width = (size_t)out_width(&job->layout);
    for (int32_t j = 0; j < tile->vectors; j++) {
        size_t row = (size_t)(tile->lane->row_first + row_of(tile, j));
        size_t head = (size_t)head_of(tile, j);
        unsigned char *out = job->out;
        isa->finish(job->layout.v_dim, total.out + (size_t)j * width, total.sum[j], job->out_dtype,
                    out + (row * job->out_stride + head * job->out_head_stride) * element);
        if (job->lse)
            job->lse[row * job->lse_stride + head] =
                total.sum[j] == 0 ? -INFINITY : total.max[j] + logf(total.sum[j]);
    }
}

static void unit_run(const struct sf_cpu_isa *isa, const struct sf_attend_job *job,
                     const struct tile *tile, const struct unit *unit, float *floats)
{
    struct work work;
    const struct sf_layout *layout = &job->layout;
    work_begin(isa, job, tile, floats, &work);
    if (tile->states) {
        size_t size = state_size(layout, tile->vectors);
        for (int32_t s = unit->split_first; s < unit->split_end; s++)
            split_run(isa, job, tile, &work, s,
                      state_at(layout, tile->states + (size_t)s * size, tile->vectors));
        return;
    }
    state_clear(layout, work.total, tile->vectors);
    for (int32_t s = unit->split_first; s < unit->split_end; s++) {
        split_run(isa, job, tile, &work, s, work.split);
        isa->merge(tile->vectors, out_width(layout), work.total, work.split);
    }
    tile_finish(isa, job, tile, work.total);
}

static void tile_merge(const struct sf_cpu_isa *isa, const struct sf_attend_job *job,
                       const struct tile *tile, float *floats)
{
    const struct sf_layout *layout = &job->layout;
    size_t size = state_size(layout, tile->vectors);
    struct sf_partial total = state_at(layout, floats, tile->vectors);
    state_clear(layout, total, tile->vectors);
    for (int32_t s = 0; s < tile->splits; s++)
        isa->merge(tile->vectors, out_width(layout), total,
                   state_at(layout, tile->states + (size_t)s * size, tile->vectors));
    tile_finish(isa, job, tile, total);
}

/* ---- the cut into units ------------------------------------------------------------------------
 * */

/* Of one split of a tile, in arbitrary units: loading a slot costs about as much as 2 vectors. */
static int64_t split_cost(const struct tile *tile) { return tile->vectors + 2; }

/* Adds tiles from vector *vector of lane *lane on until there are TILES_MAX or no more lanes. */
static void tiles_take(struct sf_attention *attention, const struct sf_attend_job *job,
                       int32_t *lane, int32_t *vector)
{
    int32_t most = tile_vectors(&job->layout);
    attention->tiles = 0;
    while (*lane < job->lanes && attention->tiles < TILES_MAX) {
        const struct sf_lane_job *at = &job->lane[*lane];
        int32_t left = at->rows * at->q_heads - *vector;
        if (left <= 0) {
            *lane += 1;
            *vector = 0;
            continue;
        }
        struct tile *tile = &attention->tile[attention->tiles++];
        *tile = (struct tile){ at, *vector, left < most ? left : most, 0, NULL };
        int32_t seen = at->slots - at->rows + row_of(tile, tile->vectors - 1) + 1;
        tile->splits = seen <= 0 ? 0 : (seen + SF_SPLIT_SLOTS - 1) / SF_SPLIT_SLOTS;
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
    for (most = total / (attention->threads * UNITS_PER_THREAD) + 1;; most *= 2) {
        size_t floats = 0;
        for (int32_t i = 0; i < attention->tiles; i++) {
            const struct tile *tile = &attention->tile[i];
            if (tile->splits > 1 && tile->splits * split_cost(tile) > most)
                floats += (size_t)tile->splits * state_size(layout, tile->vectors);
        }
        if (floats <= (size_t)attention->threads * STATE_FLOATS) return most;
    }
}

static void units_cut(struct sf_attention *attention, const struct sf_layout *layout)
{
    int64_t most = unit_cost_most(attention, layout);
    float *states = attention->state_floats;
    attention->units = 0;
    for (int32_t i = 0; i < attention->tiles; i++) {
        struct tile *tile = &attention->tile[i];
        int64_t each = split_cost(tile);
        int32_t step = tile->splits;
        if (tile->splits > 1 && tile->splits * each > most) {
            step = most / each > 0 ? (int32_t)(most / each) : 1;
            /* A pass has at most TILES_MAX tiles; the cut may add as many units again. */
            int32_t room = UNITS_MAX - attention->units - (attention->tiles - i) + 1;
            int32_t least = (tile->splits + room - 1) / room;
            if (step < least) step = least;
            tile->states = states;
            states += (size_t)tile->splits * state_size(layout, tile->vectors);
        }
        for (int32_t s = 0; s == 0 || s < tile->splits; s += step > 0 ? step : 1) {
            int32_t end = tile->splits - s < step ? tile->splits : s + step;
            SF_ASSERT(attention->units < UNITS_MAX);
            attention->unit[attention->units++] = (struct unit){ i, s, end, (end - s) * each };
        }
    }
}

/* Longest first, by counting into buckets of cost; inside a bucket as they come. */
static void units_order(struct sf_attention *attention)
{
    int32_t count[BUCKETS + 1] = { 0 };
    int64_t most = 1;
    for (int32_t i = 0; i < attention->units; i++)
        if (attention->unit[i].cost > most) most = attention->unit[i].cost;
    for (int32_t i = 0; i < attention->units; i++)
        count[BUCKETS - attention->unit[i].cost * (BUCKETS - 1) / most]++;
    for (int32_t b = 1; b <= BUCKETS; b++) count[b] += count[b - 1];
    for (int32_t i = attention->units - 1; i >= 0; i--)
        attention->order[--count[BUCKETS - attention->unit[i].cost * (BUCKETS - 1) / most]] = i;
}

static void units_run(struct sf_device *device, const struct sf_attend_job *job)
{
    const struct sf_cpu_isa *isa = sf_cpu_of(device)->isa;
    struct sf_attention *attention = sf_cpu_of(device)->attention;
    int64_t cost = 0;
    for (int32_t i = 0; i < attention->units; i++) cost += attention->unit[i].cost;
    int pays = attention->units > 1 &&
               sf_cpu_threads_pay(device, cost * (job->layout.k_dim + job->layout.v_dim) * 32);
#pragma omp parallel num_threads(device->threads) if (pays)
    {
        float *floats =
            attention->thread_floats + (size_t)omp_get_thread_num() * THREAD_FLOATS;
#pragma omp for schedule(dynamic, 1)
        for (int32_t i = 0; i < attention->units; i++) {
            const struct unit *unit = &attention->unit[attention->order[i]];
            unit_run(isa, job, &attention->tile[unit->tile], unit, floats);
        }
#pragma omp for schedule(dynamic, 1)
        for (int32_t i = 0; i < attention->tiles; i++)
            if (attention->tile[i].states) tile_merge(isa, job, &attention->tile[i], floats);
    }
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
        units_order(attention);
        units_run(device, job);
    }
}

/* ---- scratch -----------------------------------------------------------------------------------
 * */

enum {
    LIST_BYTES = TILES_MAX * (int)sizeof(struct tile) +
                 UNITS_MAX * (int)(sizeof(struct unit) + sizeof(int32_t)),
    THREAD_BYTES = (THREAD_FLOATS + STATE_FLOATS) * (int)sizeof(float)
};

int64_t sf_cpu_attention_bytes(int32_t threads)
{
    return LIST_BYTES + (int64_t)threads * THREAD_BYTES;
}

sf_status sf_cpu_attention_create(int32_t threads, struct sf_attention **out)
{
    struct sf_attention *attention;
    SF_TRY(sf_alloc(sizeof *attention, "attention", (void **)&attention));
    attention->threads = threads;
    sf_status status = sf_alloc(TILES_MAX * sizeof *attention->tile, "tiles of attention",
                                (void **)&attention->tile);
    if (status == SF_OK)
        status = sf_alloc(UNITS_MAX * sizeof *attention->unit, "units of attention",
                          (void **)&attention->unit);
    if (status == SF_OK)
        status = sf_alloc(UNITS_MAX * sizeof *attention->order, "order of attention",
                          (void **)&attention->order);
    if (status == SF_OK)
        status = sf_map((size_t)threads * THREAD_BYTES, 0, "scratch of attention",
                        (void **)&attention->thread_floats);
    if (status != SF_OK) {
        sf_cpu_attention_destroy(attention);
        return status;
    }
    attention->state_floats = attention->thread_floats + (size_t)threads * THREAD_FLOATS;
    *out = attention;
    return SF_OK;
}

void sf_cpu_attention_destroy(struct sf_attention *attention)
{
    if (!attention) return;
    if (attention->thread_floats)
        sf_unmap(attention->thread_floats, (size_t)attention->threads * THREAD_BYTES);
    sf_free(attention->order);
    sf_free(attention->unit);
    sf_free(attention->tile);
    sf_free(attention);
}
