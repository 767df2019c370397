/* kernels/cpu/ahead.c: a thread's queue of units, and the blocks behind a split. */
#include "kernels/backend.h"
#include "kernels/cpu/ahead.h"

enum { FEW = 6 };                       /* vectors at most, of a tile that memory binds */

static void send(const unsigned char *from, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

/* ---- the queue ---------------------------------------------------------------------------------
 * */

/* Slots of the lane itself that a tile reads; those of its parts are left out. */
static int32_t own_slots(const struct sf_tile *tile)
{
    return sf_lane_part_seen(tile->lane, -1, sf_tile_row(tile, tile->vectors - 1));
}

static int32_t blocks_of(const struct sf_attention *attention, const struct sf_unit *unit)
{
    int32_t slots = own_slots(&attention->tile[unit->tile]), first = unit->first * SF_SPLIT_SLOTS;
    if (slots > unit->end * SF_SPLIT_SLOTS) slots = unit->end * SF_SPLIT_SLOTS;
    return slots <= first ? 0 : (slots - first + SF_BLOCK_SLOTS - 1) / SF_BLOCK_SLOTS;
}

static const struct sf_unit *take(const struct sf_attention *attention, int32_t *taken)
{
    int32_t mine;
#pragma omp atomic capture
    mine = (*taken)++;
    return mine < attention->units ? &attention->unit[attention->order[mine]] : NULL;
}

void sf_queue_fill(const struct sf_attention *attention, int32_t *taken, struct sf_queue *queue)
{
    int32_t waiting = 0;
    for (int32_t i = 1; i < queue->count; i++) waiting += blocks_of(attention, queue->unit[i]);
    while (queue->count <= SF_UNITS_AHEAD && (queue->count == 0 || waiting < SF_AHEAD)) {
        const struct sf_unit *unit = take(attention, taken);
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

/* The tile's blocks from split `split` on: those that a window hides are sent for in vain.  Marks,
 * by which blocks are listed, are sent for at once, up to the end of that split, and so are scales,
 * which nothing else sends for. */
static void list_add(struct list *list, const struct sf_tile *tile, int32_t split, int32_t end)
{
    const struct sf_layout *layout = &list->job->layout;
    size_t element = sf_dtype_bytes(layout->dtype), v_offset = sf_layout_v_offset(layout);
    size_t key = (size_t)layout->k_dim * element, value = (size_t)layout->v_dim * element;
    size_t marks = sf_layout_bias_offset(layout), scales = sf_layout_k_scale_offset(layout);
    size_t mark = (size_t)layout->page_slots * sizeof(float);       /* all slots' bias, or scale */
    int32_t first = split * SF_SPLIT_SLOTS, slots = own_slots(tile);
    if (tile->vectors > FEW) return;
    if (slots > end * SF_SPLIT_SLOTS) slots = end * SF_SPLIT_SLOTS;
    for (int32_t at = first; at < slots; at += SF_BLOCK_SLOTS) {
        int32_t inside = at % layout->page_slots, marked = at < first + SF_SPLIT_SLOTS;
        const unsigned char *page = list->job->pool +
            (size_t)tile->lane->pages[at / layout->page_slots] * list->job->page_bytes;
        if (!marked && list->blocks == SF_AHEAD) return;
        for (size_t m = scales; marked && m <= marks; m += mark)
            send(page + m + (size_t)inside * sizeof(float), sizeof(float));
        if (list->blocks == SF_AHEAD) continue;
        list->keys[list->blocks] = page + (size_t)inside * key;
        list->values[list->blocks++] = page + v_offset + (size_t)inside * value;
    }
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

void sf_ahead_point(const struct sf_attend_job *job, const struct sf_attention *attention,
                    const struct sf_queue *queue, int32_t split, struct sf_ahead *ahead,
                    struct sf_split *s)
{
    struct list list = { .job = job };
    const struct sf_unit *unit = queue->unit[0];
    if (attention->tile[unit->tile].vectors > FEW || s->blocks == 0) return;
    if (split + 1 < unit->end)
        list_add(&list, &attention->tile[unit->tile], split + 1, unit->end);
    for (int32_t i = 1; i < queue->count && list.blocks < SF_AHEAD; i++)
        list_add(&list, &attention->tile[queue->unit[i]->tile], queue->unit[i]->first,
                 queue->unit[i]->end);
    for (int32_t b = 0; b < SF_SPLIT_BLOCKS; b++) {
        int32_t own = b + SF_AHEAD < s->blocks ? b + SF_AHEAD : s->blocks - 1;
        int32_t behind = b + SF_AHEAD - s->blocks;
        int in_list = behind >= 0 && behind < list.blocks;
        ahead->keys[b] = in_list ? list.keys[behind] : s->keys[own];
        ahead->values[b] = in_list ? list.values[behind] : s->values[own];
    }
    s->key_next = ahead->keys;
    s->value_next = ahead->values;
}
