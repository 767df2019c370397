/* kernels/cpu/tile.c: gathers the queries of a tile, lists the blocks of slots that it sees, sorts
 * units, and holds the scratch of attention. */
#include <math.h>
#include "base/memory.h"
#include "kernels/backend.h"
#include "kernels/cpu/tile.h"

enum { BUCKETS = 64 };                  /* of cost, for the order */

int32_t sf_tile_part(const struct sf_tile *tile, int32_t *split)
{
    const struct sf_lane_job *lane = tile->lane;
    int32_t row = sf_tile_row(tile, tile->vectors - 1);
    int32_t part = -1, own = sf_splits_of(sf_lane_part_seen(lane, -1, row));
    while (*split >= own) {
        *split -= own;
        part++;
        SF_ASSERT(part < lane->parts);
        own = sf_splits_of(sf_lane_part_seen(lane, part, 0));
    }
    return part;
}

void sf_tile_gather(const struct sf_cpu_isa *isa, const struct sf_attend_job *job,
                    const struct sf_tile *tile, struct sf_gathered *gathered)
{
    const struct sf_lane_job *lane = tile->lane;
    size_t k_dim = (size_t)job->layout.k_dim;
    gathered->seen_most = 0;
    gathered->pos_least = INT32_MAX;
    for (int32_t j = 0; j < tile->vectors; j++) {
        int32_t row = sf_tile_row(tile, j), row_global = lane->row_first + row;
        isa->scale(k_dim, job->scale,
                   job->q + (size_t)row_global * job->q_stride +
                   (size_t)sf_tile_head(tile, j) * k_dim,
                   gathered->q + (size_t)j * k_dim);
        gathered->seen[j] = lane->slots - lane->rows + row + 1;
        if (gathered->seen[j] > gathered->seen_most) gathered->seen_most = gathered->seen[j];
        if (job->window == 0) continue;
        int64_t least = (int64_t)job->row_pos[row_global] - job->window + 1;
        gathered->pos_min[j] = least < INT32_MIN ? INT32_MIN : (int32_t)least;
        if (gathered->pos_min[j] < gathered->pos_least)
            gathered->pos_least = gathered->pos_min[j];
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

void sf_tile_split(const struct sf_attend_job *job, const struct sf_tile *tile,
                   struct sf_gathered *gathered, struct sf_split *split)
{
    split->vectors = tile->vectors;
    split->q = gathered->q;
    split->key_next = split->keys;
    split->value_next = split->values;
    split->end = gathered->end;
    split->pos_min = job->window != 0 ? gathered->pos_min : NULL;
}

void sf_tile_blocks(const struct sf_attend_job *job, const struct sf_tile *tile, int32_t part,
                    struct sf_gathered *gathered, int32_t first, int32_t end,
                    struct sf_split *split)
{
    struct sf_lane_part from = sf_lane_part_of(&job->layout, tile->lane, part);
    const struct sf_layout *layout = from.layout;
    int32_t seen = part < 0 ? gathered->seen_most : from.slots;
    size_t width = sf_dtype_bytes(layout->dtype), v_offset = sf_layout_v_offset(layout);
    size_t bias_offset = sf_layout_bias_offset(layout), pos_offset = sf_layout_pos_offset(layout);
    size_t k_scale_offset = sf_layout_k_scale_offset(layout);
    size_t v_scale_offset = sf_layout_v_scale_offset(layout);
    split->dtype = split->v_dtype = layout->dtype;
    split->k_dim = layout->k_dim;
    split->v_dim = layout->v_dim;
    sf_tile_split(job, tile, gathered, split);
    split->blocks = 0;
    for (int32_t j = 0; j < tile->vectors; j++)
        gathered->end[j] = (part < 0 ? gathered->seen[j] : from.slots) - first;
    if (end > seen) end = seen;
    for (int32_t at = first; at < end; at += SF_BLOCK_SLOTS) {
        int32_t inside = at % layout->page_slots, b = split->blocks;
        int32_t slots = end - at < SF_BLOCK_SLOTS ? end - at : SF_BLOCK_SLOTS;
        const unsigned char *page =
            job->pool + (size_t)from.pages[at / layout->page_slots] * job->page_bytes;
        split->bias[b] = (const float *)(const void *)(page + bias_offset) + inside;
        split->pos[b] = (const int32_t *)(const void *)(page + pos_offset) + inside;
        if (!block_lives(split->bias[b], split->pos[b], slots, job->window != 0,
                         gathered->pos_least))
            continue;
        split->keys[b] = page + (size_t)inside * (size_t)layout->k_dim * width;
        split->values[b] = page + v_offset + (size_t)inside * (size_t)layout->v_dim * width;
        split->k_scale[b] = (const float *)(const void *)(page + k_scale_offset) + inside;
        split->v_scale[b] = (const float *)(const void *)(page + v_scale_offset) + inside;
        split->first[b] = at - first;
        split->blocks++;
    }
}

/* By counting into buckets of cost; inside a bucket as they come. */
void sf_units_order(struct sf_attention *attention)
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

/* ---- scratch -----------------------------------------------------------------------------------
 * */

enum {
    LIST_BYTES = SF_TILES_MAX * (int)sizeof(struct sf_tile) +
                 SF_UNITS_MAX * (int)(sizeof(struct sf_unit) + sizeof(int32_t)),
    THREAD_BYTES = (SF_THREAD_FLOATS + SF_KEPT_FLOATS) * (int)sizeof(float)
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
    sf_status status = sf_alloc(SF_TILES_MAX * sizeof *attention->tile, "tiles of attention",
                                (void **)&attention->tile);
    if (status == SF_OK)
        status = sf_alloc(SF_UNITS_MAX * sizeof *attention->unit, "units of attention",
                          (void **)&attention->unit);
    if (status == SF_OK)
        status = sf_alloc(SF_UNITS_MAX * sizeof *attention->order, "order of attention",
                          (void **)&attention->order);
    if (status == SF_OK)
        status = sf_map((size_t)threads * THREAD_BYTES, 0, "scratch of attention",
                        (void **)&attention->thread_floats);
    if (status != SF_OK) {
        sf_cpu_attention_destroy(attention);
        return status;
    }
    attention->kept_floats = attention->thread_floats + (size_t)threads * SF_THREAD_FLOATS;
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
