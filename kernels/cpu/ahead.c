/* kernels/cpu/ahead.c: a thread's queue of units, and the blocks behind a split. */
#include "kernels/backend.h"
#include "kernels/cpu/ahead.h"

static void send(const unsigned char *from, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

/* ---- the queue ---------------------------------------------------------------------------------
 * */

/* Whether a tile reads from memory what nobody has sent for. */
static int is_sent_for(const struct sf_tile *tile) { return tile->vectors <= SF_FEW_VECTORS; }

/* Blocks that a unit reads, or SF_AHEAD where its lane has parts, which may be of any kind. */
static int32_t blocks_of(const struct sf_attention *attention, const struct sf_unit *unit)
{
    const struct sf_tile *tile = &attention->tile[unit->tile];
    int32_t slots = sf_lane_part_seen(tile->lane, -1, sf_tile_row(tile, tile->vectors - 1));
    int32_t first = unit->first * SF_SPLIT_SLOTS, end = unit->end * SF_SPLIT_SLOTS;
    if (tile->lane->parts > 0) return SF_AHEAD;
    if (slots > end) slots = end;
    return slots <= first ? 0 : (slots - first + SF_BLOCK_SLOTS - 1) / SF_BLOCK_SLOTS;
}

/* Whether there is a unit for each thread still. */
static int are_enough(const struct sf_attention *attention, const int32_t *taken)
{
    return attention->units - __atomic_load_n(taken, __ATOMIC_RELAXED) >= attention->threads;
}

static const struct sf_unit *take(const struct sf_attention *attention, int32_t *taken)
{
    int32_t mine = __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
    return mine < attention->units ? &attention->unit[attention->order[mine]] : NULL;
}

void sf_queue_fill(const struct sf_attention *attention, int32_t *taken, struct sf_queue *queue)
{
    int32_t waiting = 0;
    for (int32_t i = 1; i < queue->count; i++) waiting += blocks_of(attention, queue->unit[i]);
    while (queue->count <= SF_UNITS_AHEAD) {
        int more = waiting < SF_AHEAD && queue->count > 0 &&
                   is_sent_for(&attention->tile[queue->unit[queue->count - 1]->tile]) &&
                   are_enough(attention, taken);
        const struct sf_unit *unit = queue->count == 0 || more ? take(attention, taken) : NULL;
        if (!unit) return;
        if (queue->count > 0) waiting += blocks_of(attention, unit);
        queue->unit[queue->count++] = unit;
    }
}

void sf_queue_drop(struct sf_queue *queue)
{
    queue->count--;
    for (int32_t i = 0; i < queue->count; i++) queue->unit[i] = queue->unit[i + 1];
}

/* ---- the blocks --------------------------------------------------------------------------------
 * */

/* Blocks in the order in which they are read. */
struct list {
    const struct sf_attend_job *job;
    int32_t blocks;
    const unsigned char *keys[SF_AHEAD], *values[SF_AHEAD];
};

/* The blocks of a split: those that a window hides are sent for in vain.  Marks, by which blocks
 * are listed, are sent for at once, and so are scales, which nothing else sends for. */
static void list_split(struct list *list, const struct sf_tile *tile, int32_t split)
{
    int32_t part = sf_tile_part(tile, &split), first = split * SF_SPLIT_SLOTS;
    struct sf_lane_part from = sf_lane_part_of(&list->job->layout, tile->lane, part);
    const struct sf_layout *layout = from.layout;
    size_t element = sf_dtype_bytes(layout->dtype), v_offset = sf_layout_v_offset(layout);
    size_t key = (size_t)layout->k_dim * element, value = (size_t)layout->v_dim * element;
    size_t marks = sf_layout_bias_offset(layout), scales = sf_layout_k_scale_offset(layout);
    size_t mark = (size_t)layout->page_slots * sizeof(float);       /* all slots' bias, or scale */
    int32_t slots = sf_lane_part_seen(tile->lane, part, sf_tile_row(tile, tile->vectors - 1));
    if (from.factors || from.pick) return;
    if (slots > first + SF_SPLIT_SLOTS) slots = first + SF_SPLIT_SLOTS;
    for (int32_t at = first; at < slots; at += SF_BLOCK_SLOTS) {
        int32_t inside = at % layout->page_slots;
        const unsigned char *page =
            list->job->pool + (size_t)from.pages[at / layout->page_slots] * list->job->page_bytes;
        for (size_t m = scales; m <= marks; m += mark)
            send(page + m + (size_t)inside * sizeof(float), sizeof(float));
        if (list->blocks == SF_AHEAD) continue;
        list->keys[list->blocks] = page + (size_t)inside * key;
        list->values[list->blocks++] = page + v_offset + (size_t)inside * value;
    }
}

static void list_add(struct list *list, const struct sf_tile *tile, int32_t split, int32_t end)
{
    for (; is_sent_for(tile) && split < end && list->blocks < SF_AHEAD; split++)
        list_split(list, tile, split);
}

void sf_queue_begin(const struct sf_attend_job *job, const struct sf_attention *attention,
                    const struct sf_queue *queue)
{
    struct list list = { .job = job };
    if (queue->count == 0) return;
    const struct sf_unit *unit = queue->unit[0];
    list_add(&list, &attention->tile[unit->tile], unit->first, unit->end);
    size_t keys = SF_BLOCK_SLOTS * (size_t)job->layout.k_dim * sf_dtype_bytes(job->layout.dtype);
    for (int32_t b = 0; b < list.blocks; b++) send(list.keys[b], keys);
}

void sf_ahead_within(struct sf_ahead *ahead, struct sf_split *s)
{
    if (s->blocks == 0) return;
    for (int32_t b = 0; b < s->blocks; b++) {
        int32_t next = b + SF_AHEAD < s->blocks ? b + SF_AHEAD : s->blocks - 1;
        ahead->keys[b] = s->keys[next];
        ahead->values[b] = s->values[next];
    }
    for (int32_t b = s->blocks; b < SF_SPLIT_BLOCKS; b++) ahead->keys[b] = ahead->keys[0];
    s->key_next = ahead->keys;
    s->value_next = ahead->values;
}

void sf_ahead_point(const struct sf_attend_job *job, const struct sf_attention *attention,
                    const struct sf_queue *queue, int32_t split, struct sf_ahead *ahead,
                    struct sf_split *s)
{
    struct list list = { .job = job };
    const struct sf_unit *unit = queue->unit[0];
    const struct sf_tile *tile = &attention->tile[unit->tile];
    if (!is_sent_for(tile) || s->blocks == 0) return;
    sf_ahead_within(ahead, s);
    list_add(&list, tile, split + 1, unit->end);
    for (int32_t i = 1; i < queue->count; i++)
        list_add(&list, &attention->tile[queue->unit[i]->tile], queue->unit[i]->first,
                 queue->unit[i]->end);
    int32_t first = s->blocks < SF_AHEAD ? 0 : s->blocks - SF_AHEAD;
    for (int32_t b = first; b < s->blocks; b++) {
        int32_t behind = b + SF_AHEAD - s->blocks;
        if (behind >= list.blocks) break;
        ahead->keys[b] = list.keys[behind];
        ahead->values[b] = list.values[behind];
    }
}
