/* kernels/cpu/columns.c: cuts column sums of attention weights into pieces for the threads; the
 * arithmetic is attend.inc (logits) and columns.inc.
 *
 *   tile     in the list: all rows of a lane in this pass, once for each layout of its slots; in a
 *            unit: as many vectors of them as are gathered at a time
 *   unit     a range of slots of a lane, alone in changing their mass: it goes over the rows in
 *            order, tile by tile, while the keys of its slots stay in the cache
 *
 * So there are no sums to merge and nothing depends on the cut.  Keys are read once per range, the
 * queries of the rows that see it once per range too; memory beyond q, lse and mass is the scratch
 * of attention (tile.h).  A lane with more rows than the scratch has means for is worked off in
 * several passes, in the order of its rows.
 *
 * Bound by maths in prefill and by reading keys in decode.  Measured beside attend of the same rows
 * (AMD EPYC, AVX-512, one thread, d 64, 3 query heads, bf16 and f32): 0.61 to 0.68 of its time for
 * 2,048 rows, 0.58 to 0.64 for 64 lanes of 2,048 slots; BELOW_MEAN up to 0.77
 * (tests/kernels/columns.c).
 *
 * Where attend has left the logits of a lane of one row, they are read in place of its keys, 4
 * bytes a slot and query head: 0.20 to 0.23 ms in place of 1.6 for 64 lanes of 1,152 slots,
 * measured as above; attend takes up to 5 % longer for it (tests/kernels/left.c).
 *
 * A window keeps blocks that no row of a tile sees out of the work, but for DECAY, whose slots all
 * change with every row: that costs what it would without a window. */
#include <math.h>
#include "kernels/backend.h"
#include "kernels/cpu/tile.h"

enum { WIDTH_MIN = 64 };                /* slots of a unit, where lanes are few and threads many */

/* A job with the view that the tiles take. */
struct columns {
    const struct sf_columns_job *job;
    struct sf_attend_job view;
    const struct sf_cpu_isa *isa;
    struct sf_attention *attention;
    int32_t vectors_most;               /* of a gathered tile */
};

/* What a thread holds of the tile that it works on. */
struct work {
    float *logits, *weight;
    float lse[SF_TILE_VECTORS];
    struct sf_gathered gathered;
};

/* ---- one unit ----------------------------------------------------------------------------------
 * */

static int32_t tile_vectors(const struct sf_layout *layout)
{
    size_t each = (size_t)layout->k_dim + SF_SPLIT_SLOTS;
    int32_t fits = (int32_t)((SF_THREAD_FLOATS - SF_SPLIT_SLOTS) / each);
    SF_ASSERT(fits >= 1);
    return fits < SF_TILE_VECTORS ? fits : SF_TILE_VECTORS;
}

static void lse_gather(const struct sf_columns_job *job, const struct sf_tile *tile, float *out)
{
    for (int32_t j = 0; j < tile->vectors; j++) {
        size_t row = (size_t)(tile->lane->row_first + sf_tile_row(tile, j));
        float lse = job->lse[row * job->lse_stride + (size_t)sf_tile_head(tile, j)];
        out[j] = lse == -INFINITY ? INFINITY : lse;
    }
}

/* All blocks of slots first .. end - 1, whose logits attend has left. */
static void blocks_left(const struct columns *c, const struct sf_tile *tile, int32_t first,
                        int32_t end, struct work *work, struct sf_split *s)
{
    const struct sf_lane_job *lane = tile->lane;
    struct sf_lane_part from = sf_lane_part_of(&c->job->layout, lane, tile->part);
    int32_t page_slots = from.layout->page_slots;
    s->vectors = tile->vectors;
    s->left_stride = lane->logit_stride;
    s->left = lane->logit + (size_t)tile->vector * s->left_stride +
              sf_lane_logit_first(lane, tile->part) + (size_t)first;
    s->end = work->gathered.end;
    for (int32_t j = 0; j < tile->vectors; j++) work->gathered.end[j] = from.slots - first;
    s->blocks = 0;
    for (int32_t at = first; at < end; at += SF_BLOCK_SLOTS, s->blocks++) {
        const unsigned char *page =
            c->job->pool + (size_t)from.pages[at / page_slots] * c->job->page_bytes;
        s->bias[s->blocks] = (const float *)(const void *)(page +
                                                           sf_layout_bias_offset(from.layout)) +
                             at % page_slots;
        s->first[s->blocks] = at - first;
    }
}

/* Slots first .. end - 1, at most SF_SPLIT_SLOTS, for the vectors of one tile; `mean` of its first
 * row. */
static void tile_run(const struct columns *c, const struct sf_tile *tile, const float *mean,
                     int32_t first, int32_t end, struct work *work)
{
    const struct sf_columns_job *job = c->job;
    const struct sf_lane_job *lane = tile->lane;
    struct sf_lane_part from = sf_lane_part_of(&job->layout, lane, tile->part);
    int32_t page_slots = from.layout->page_slots;
    size_t mass_slots = (size_t)(job->mass_slots ? job->mass_slots : job->layout.page_slots);
    struct sf_split s;
    struct sf_columns columns = {
        .fold = job->fold, .head_fold = job->head_fold, .decay = job->decay,
        .q_heads = lane->q_heads, .head = tile->vector % lane->q_heads, .lse = work->lse,
        .mean = mean, .weight = work->weight, .left = lane->logit != NULL
    };
    if (columns.left) blocks_left(c, tile, first, end, work, &s);
    else {
        sf_tile_gather(c->isa, &c->view, tile, &work->gathered);
        if (job->fold == SF_ROWS_DECAY) work->gathered.pos_least = INT32_MIN;
        sf_tile_blocks(&c->view, tile, tile->part, &work->gathered, first, end, &s);
    }
    if (s.blocks == 0) return;
    lse_gather(job, tile, work->lse);
    s.logits = work->logits;
    for (int32_t b = 0; b < s.blocks; b++) {
        int32_t slot = first + s.first[b];
        columns.mass[b] = job->mass + (size_t)from.pages[slot / page_slots] * mass_slots +
                          slot % page_slots;
    }
    c->isa->columns(&s, &columns);
}

/* The first of a tile's rows that has `slot` behind it. */
static int32_t row_from(const struct sf_tile *tile, int32_t slot)
{
    int32_t row = slot - (tile->lane->slots - tile->lane->rows), least = sf_tile_row(tile, 0);
    return tile->part < 0 && row > least ? row : least;
}

static void unit_run(const struct columns *c, const struct sf_tile *all,
                     const struct sf_unit *unit, float *floats)
{
    int32_t heads = all->lane->q_heads, most = c->vectors_most, last = all->vector + all->vectors;
    struct work work;
    work.weight = floats;
    work.logits = floats + SF_SPLIT_SLOTS;
    work.gathered.q = work.logits + (size_t)most * SF_SPLIT_SLOTS;
    for (int32_t first = unit->first; first < unit->end; first += SF_SPLIT_SLOTS) {
        int32_t end = unit->end - first < SF_SPLIT_SLOTS ? unit->end : first + SF_SPLIT_SLOTS;
        struct sf_tile tile = *all;
        for (tile.vector = row_from(all, first) * heads; tile.vector < last;
             tile.vector += tile.vectors) {
            int32_t left = last - tile.vector, whole = most / heads * heads;
            if (heads > most) {
                left = heads - tile.vector % heads;
                whole = most;
            }
            tile.vectors = left < whole ? left : whole;
            tile_run(c, &tile, all->kept + (sf_tile_row(&tile, 0) - sf_tile_row(all, 0)), first,
                     end, &work);
        }
    }
}

/* ---- means -------------------------------------------------------------------------------------
 * */

/* 1 / slots that a row sees; 0 if it sees none or weighs nothing. */
static float mean_of(const struct columns *c, const struct sf_lane_job *lane, int32_t row)
{
    const struct sf_columns_job *job = c->job;
    int32_t live = 0, heads = 0;
    size_t global = (size_t)(lane->row_first + row);
    int64_t least = job->window != 0 ? (int64_t)job->row_pos[global] - job->window + 1 : INT32_MIN;
    for (int32_t h = 0; h < lane->q_heads; h++)
        heads += job->lse[global * job->lse_stride + (size_t)(lane->q_first + h)] > -INFINITY;
    if (heads == 0) return 0;
    for (int32_t p = -1; p < lane->parts; p++) {
        struct sf_lane_part from = sf_lane_part_of(&job->layout, lane, p);
        const struct sf_layout *layout = from.layout;
        int32_t seen = sf_lane_part_seen(lane, p, row);
        for (int32_t first = 0; first < seen; first += layout->page_slots) {
            const unsigned char *page =
                job->pool + (size_t)from.pages[first / layout->page_slots] * job->page_bytes;
            live += c->isa->live(
                seen - first < layout->page_slots ? seen - first : layout->page_slots,
                (const float *)(const void *)(page + sf_layout_bias_offset(layout)),
                (const int32_t *)(const void *)(page + sf_layout_pos_offset(layout)),
                least < INT32_MIN ? INT32_MIN : (int32_t)least);
        }
    }
    return live > 0 ? 1 / (float)live : 0;
}

/* The means first .. end - 1, those of all tiles being one after the other. */
static void means_fill(void *context, int32_t first, int32_t end, int32_t thread)
{
    const struct columns *c = context;
    (void)thread;
    for (int32_t i = 0; i < c->attention->tiles; i++) {
        const struct sf_tile *tile = &c->attention->tile[i];
        int32_t row = sf_tile_row(tile, 0), rows = tile->vectors / tile->lane->q_heads;
        int64_t at = tile->kept - c->attention->kept_floats;
        for (int64_t r = at < first ? first - at : 0; r < rows && at + r < end; r++)
            tile->kept[r] = mean_of(c, tile->lane, row + (int32_t)r);
    }
}

static int32_t means_of(const struct sf_attention *attention)
{
    const struct sf_tile *last = &attention->tile[attention->tiles - 1];
    return (int32_t)(last->kept - attention->kept_floats) + last->vectors / last->lane->q_heads;
}

/* ---- the cut into units ------------------------------------------------------------------------
 * */

static int32_t tile_seen(const struct sf_tile *tile)
{
    int32_t seen = sf_lane_part_seen(tile->lane, tile->part, sf_tile_row(tile, tile->vectors - 1));
    return seen > 0 ? seen : 0;
}

/* Takes rows from row *row of lane *lane, for the slots of *part, on until the lists or the means
 * are full. */
static void tiles_take(const struct columns *c, int32_t *lane, int32_t *part, int32_t *row)
{
    struct sf_attention *attention = c->attention;
    int64_t room = (int64_t)attention->threads * SF_KEPT_FLOATS;
    float *means = attention->kept_floats;
    attention->tiles = 0;
    while (*lane < c->job->lanes && attention->tiles < SF_TILES_MAX && room > 0) {
        const struct sf_lane_job *at = &c->job->lane[*lane];
        int32_t left = at->q_heads > 0 ? at->rows - *row : 0;
        if (left <= 0) {
            if (++*part >= at->parts) *part = -1, *lane += 1;
            *row = 0;
            continue;
        }
        int32_t rows = left < room ? left : (int32_t)room;
        struct sf_tile *tile = &attention->tile[attention->tiles++];
        *tile = (struct sf_tile){ at, *row * at->q_heads, rows * at->q_heads, 0, *part, means };
        means += rows;
        room -= rows;
        *row += rows;
    }
}

/* Units of `width` slots. */
static int64_t units_of(const struct sf_attention *attention, int32_t width)
{
    int64_t units = 0;
    for (int32_t i = 0; i < attention->tiles; i++)
        units += (tile_seen(&attention->tile[i]) + width - 1) / width;
    return units;
}

static void units_cut(struct sf_attention *attention)
{
    int32_t width = SF_SPLIT_SLOTS;
    while (units_of(attention, width) > SF_UNITS_MAX) width *= 2;
    while (attention->threads > 1 && width > WIDTH_MIN &&
           units_of(attention, width) < (int64_t)attention->threads * SF_UNITS_PER_THREAD)
        width /= 2;
    attention->units = 0;
    for (int32_t i = 0; i < attention->tiles; i++) {
        const struct sf_tile *tile = &attention->tile[i];
        int32_t seen = tile_seen(tile);
        for (int32_t first = 0; first < seen; first += width) {
            int32_t end = seen - first < width ? seen : first + width;
            int64_t vectors = tile->vector + tile->vectors -
                              row_from(tile, first) * tile->lane->q_heads;
            attention->unit[attention->units++] =
                (struct sf_unit){ i, first, end, (vectors + 2) * (end - first) };
        }
    }
}

static void units_sum(void *context, int32_t first, int32_t end, int32_t thread)
{
    const struct columns *c = context;
    struct sf_attention *attention = c->attention;
    float *floats = attention->thread_floats + (size_t)thread * SF_THREAD_FLOATS;
    for (int32_t i = first; i < end; i++) {
        const struct sf_unit *unit = &attention->unit[attention->order[i]];
        unit_run(c, &attention->tile[unit->tile], unit, floats);
    }
}

static void units_run(const struct sf_device *device, struct columns *c)
{
    const struct sf_attention *attention = c->attention;
    int64_t cost = 0;
    for (int32_t i = 0; i < attention->units; i++) cost += attention->unit[i].cost;
    int64_t operations = attention->units > 1 ? cost * c->job->layout.k_dim / 16 : 0;
    if (c->job->fold == SF_ROWS_BELOW_MEAN)
        sf_cpu_share(device, operations, means_of(attention), 0, means_fill, c);
    sf_cpu_share(device, operations, attention->units, 1, units_sum, c);
}

void sf_cpu_columns(struct sf_device *device, const struct sf_columns_job *job)
{
    struct columns c = { job, sf_columns_view(job), sf_cpu_of(device)->isa,
                         sf_cpu_of(device)->attention, tile_vectors(&job->layout) };
    SF_ASSERT(job->layout.page_slots % SF_BLOCK_SLOTS == 0);
    SF_ASSERT(job->layout.dtype != SF_BF16 || job->layout.k_dim % 2 == 0);
    int32_t lane = 0, part = -1, row = 0;
    for (;;) {
        tiles_take(&c, &lane, &part, &row);
        if (c.attention->tiles == 0) return;
        units_cut(c.attention);
        sf_units_order(c.attention);
        units_run(device, &c);
    }
}
