/* kvshard/store.c: sequences, and one layer of one step: append, attend, events.
 *
 * A step is cut into rounds where events fall due (event.c).  In each round the new rows of all
 * sequences are appended by one call of the backend and attended by one more, whatever the number
 * of sequences and lanes; both jobs are built in arrays that were sized when the store was made. */
#include "kvshard/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "kvshard/watch.h"

/* ---- one layer of one step ------------------------------------------------------------------ */
static void check_step(struct sf_store *store, int32_t layer, const struct sf_kv_step *step)
{
    SF_ASSERT(layer >= 0 && layer < store->layers);
    SF_ASSERT(step->items >= 0 && step->items <= store->seqs_max);
    for (int32_t i = 0; i < step->items; i++) {
        const struct sf_kv_item *item = &step->item[i];
        SF_ASSERT(item->rows >= 0 && item->row_first >= 0);
        SF_ASSERT(item->row_first + item->rows <= store->rows_max);
        SF_ASSERT(item->pos_first == item->seq->tokens[layer]);
        SF_ASSERT(item->pos_first + item->rows <= item->seq->tokens_max);
        /* The layers of a group are encoded together, so none of them may run ahead. */
        SF_ASSERT(item->rows <= sf_events_apart(store, item->seq, item->pos_first));
        for (int32_t r = 0; r < item->rows; r++)
            store->row_pos[item->row_first + r] = item->pos_first + r;
        store->done[i] = 0;
    }
}

/* Rows of each item that run before its next event; returns how many in all. */
static int64_t plan_round(struct sf_store *store, int32_t layer, const struct sf_kv_step *step)
{
    int64_t rows = 0;
    for (int32_t i = 0; i < step->items; i++) {
        int32_t left = step->item[i].rows - store->done[i];
        store->rows[i] = left > 0 ? sf_events_rows(store, layer, step->item[i].seq, left) : 0;
        rows += store->rows[i];
    }
    return rows;
}

/* All pages of the round are there, or the round does not begin. */
static sf_status check_pages(const struct sf_store *store, int32_t layer,
                             const struct sf_kv_step *step)
{
    int64_t needed = 0;
    for (int32_t i = 0; i < step->items; i++)
        for (int32_t l = 0; store->rows[i] > 0 && l < store->layer[layer].spec.lanes; l++)
            needed += sf_lane_pages_needed(sf_store_lane_of(store, step->item[i].seq, layer, l),
                                           store->rows[i]);
    if (needed <= sf_pages_free(&store->pool)) return SF_OK;
    char why[128] = "";
    if (store->left_raw > 0)
        snprintf(why, sizeof why, "; sequences whose keys or values are not finite, %d of them,"
                 " hold more than was planned", store->left_raw);
    return SF_FAIL(SF_NO_PAGES, "layer %d needs %lld more pages, %d of %d are free%s",
                   store->layer_first + layer, (long long)needed, sf_pages_free(&store->pool),
                   store->pool.pages, why);
}

struct sf_held sf_store_held(const struct sf_store *store, const struct sf_seq *seq, int32_t layer,
                             int32_t lane_index)
{
    const struct sf_kv_lane *lane = sf_store_lane_of(store, seq, layer, lane_index);
    const int64_t *slot_bytes = &store->layer[layer].slot_bytes[lane_index * SF_TIERS];
    struct sf_held held = { lane->live * slot_bytes[0], lane->pages };
    for (int32_t t = 1; t < lane->tiers; t++) {
        if (lane->more[t - 1]->shared) continue;
        held.bytes += lane->more[t - 1]->live * slot_bytes[t];
        held.pages += lane->more[t - 1]->pages;
    }
    struct sf_held shared = sf_group_held(store, seq, layer, lane_index);
    held.bytes += shared.bytes;
    held.pages += shared.pages;
    return held;
}

void sf_store_book(struct sf_store *store, struct sf_seq *seq, int32_t layer, int32_t lane,
                   struct sf_held before)
{
    struct sf_held now = sf_store_held(store, seq, layer, lane);
    if (store->layer[layer].spec.lane[lane].replica > 0) return;
    store->bytes_stored += now.bytes - before.bytes;
    seq->pages += now.pages - before.pages;
    if (seq->pages > seq->pages_peak) seq->pages_peak = seq->pages;
}

void sf_store_tokens(struct sf_store *store, int32_t layer, int32_t tokens)
{
    const struct sf_layer_state *state = &store->layer[layer];
    int64_t exact = tokens * (int64_t)sf_layout_slot_bytes(&state->layout);
    for (int32_t l = 0; l < state->spec.lanes; l++)
        if (state->spec.lane[l].replica == 0) store->bytes_exact += exact;
    SF_ASSERT(store->bytes_exact >= 0);
}

/* Makes room for the round's rows in every lane and writes the lanes of both jobs. */
static sf_status extend_lanes(struct sf_store *store, int32_t layer, const struct sf_kv_step *step,
                              int32_t *lanes_out)
{
    const struct sf_layer_state *state = &store->layer[layer];
    struct sf_lane_ctx ctx = sf_store_ctx(store, layer);
    int32_t n = 0;
    for (int32_t i = 0; i < step->items; i++) {
        struct sf_seq *seq = step->item[i].seq;
        int32_t rows = store->rows[i], row_first = step->item[i].row_first + store->done[i];
        if (rows == 0) continue;
        for (int32_t l = 0; l < state->spec.lanes; l++, n++) {
            struct sf_kv_lane *lane = sf_store_lane_of(store, seq, layer, l);
            struct sf_held before = sf_store_held(store, seq, layer, l);
            int32_t slot_first = lane->slots;
            SF_TRY(sf_lane_extend(&ctx, lane, seq->tokens[layer], rows));
            sf_store_book(store, seq, layer, l, before);
            if (seq->tokens[layer] < seq->prompt)
                sf_blocks_fill(store, seq, layer, l, seq->tokens[layer]);
            store->append[n] = (struct sf_append_lane){
                .pages = lane->page, .slot_first = slot_first, .row_first = row_first,
                .rows = rows, .head = l };
            store->job[n] = (struct sf_lane_job){
                .pages = lane->page, .slots = lane->slots, .row_first = row_first, .rows = rows,
                .q_first = state->spec.lane[l].q_first, .q_heads = state->spec.lane[l].q_heads };
            if (lane->tiers == 1) continue;
            struct sf_lane_part *part = store->part + (size_t)n * (size_t)store->parts_max;
            store->job[n].part = part;
            store->job[n].parts = sf_lane_parts(lane, part);
        }
        seq->tokens[layer] += rows;
        sf_store_tokens(store, layer, rows);
    }
    *lanes_out = n;
    return SF_OK;
}

/* The rows of the round, sequence by sequence, to who looks on. */
static sf_status show_rows(struct sf_store *store, int32_t layer, const struct sf_kv_step *step)
{
    for (int32_t i = 0; i < step->items; i++) {
        const struct sf_seq *seq = step->item[i].seq;
        size_t first = (size_t)(step->item[i].row_first + store->done[i]);
        if (store->rows[i] == 0) continue;
        const struct sf_store_rows rows = {
            .store = store, .device = store->device, .seq = seq, .seq_id = seq->id,
            .layer_local = layer, .prompt = seq->prompt, .rows = store->rows[i],
            .pos_first = seq->tokens[layer] - store->rows[i],
            .q = step->q + first * step->q_stride, .q_stride = step->q_stride,
            .lse = store->lse + first * store->lse_stride, .lse_stride = store->lse_stride };
        SF_TRY(store->tap.rows(store->tap.arg, &rows));
    }
    return SF_OK;
}

static sf_status run_round(struct sf_store *store, int32_t layer, const struct sf_kv_step *step)
{
    const struct sf_layer_state *state = &store->layer[layer];
    int64_t start = sf_now_ns();
    SF_TRY(sf_events_before(store, layer, step));
    store->seconds.edit += sf_seconds_since(start);
    SF_TRY(sf_select_run(store, layer, step));
    SF_TRY(check_pages(store, layer, step));
    int32_t lanes;
    SF_TRY(extend_lanes(store, layer, step, &lanes));
    struct sf_append_job append = {
        .layout = state->layout, .pool = store->pool.base, .page_bytes = store->pool.page_bytes,
        .k = step->k, .v = step->v, .k_stride = step->k_stride, .v_stride = step->v_stride,
        .pos = store->row_pos, .lane = store->append, .lanes = lanes };
    struct sf_attend_job attend = {
        .layout = state->layout, .pool = store->pool.base, .page_bytes = store->pool.page_bytes,
        .q = step->q, .q_stride = step->q_stride, .out = step->out, .out_stride = step->out_stride,
        .out_head_stride = step->out_head_stride, .out_dtype = step->out_dtype,
        .scale = state->spec.scale, .window = state->spec.window, .row_pos = store->row_pos,
        .lane = store->job, .lanes = lanes, .lse = store->lse, .lse_stride = store->lse_stride };
    if (store->logit) sf_watches_leave(store, layer, step);
    store->device->k->kv_append(store->device, &append);
    store->device->k->attend(store->device, &attend);
    if (store->lse && store->methods > 0)
        SF_TRY(sf_watches_run(store, layer, step, &attend));
    sf_blocks_note(store, layer, step);
    if (store->tap.rows) SF_TRY(show_rows(store, layer, step));
    start = sf_now_ns();
    sf_status status = sf_events_after(store, layer, step);
    store->seconds.edit += sf_seconds_since(start);
    return status;
}

sf_status sf_store_layer(struct sf_store *store, int32_t layer_local, const struct sf_kv_step *step)
{
    check_step(store, layer_local, step);
    if (sf_encodings_cover(store, layer_local)) SF_TRY(sf_store_settle(store)); /* a new step */
    if (store->layer[layer_local].spec.lanes == 0) {
        for (int32_t i = 0; i < step->items; i++)
            step->item[i].seq->tokens[layer_local] += step->item[i].rows;
        return SF_OK;
    }
    while (plan_round(store, layer_local, step) > 0) {
        SF_TRY(run_round(store, layer_local, step));
        for (int32_t i = 0; i < step->items; i++) store->done[i] += store->rows[i];
    }
    return SF_OK;
}

sf_status sf_store_settle(struct sf_store *store)
{
    int64_t start = sf_now_ns();
    sf_status status = sf_encodings_finish(store);
    store->seconds.edit += sf_seconds_since(start);
    return status;
}

/* ---- sequences ------------------------------------------------------------------------------ */
static void seq_free(struct sf_store *store, struct sf_seq *seq)
{
    sf_groups_free(store, seq);
    sf_kept_close(seq);
    sf_free(seq->block);
    sf_free(seq->page_tables);
    sf_free(seq->orders);
    sf_free(seq->more);
    sf_free(seq->tiers);
    sf_free(seq->lane);
    sf_free(seq->tokens);
    sf_free(seq);
}

static sf_status seq_alloc(struct sf_store *store, struct sf_seq *seq)
{
    void *block;
    SF_TRY(sf_alloc((size_t)store->layers * sizeof *seq->tokens, "token counts", &block));
    seq->tokens = block;
    SF_TRY(sf_groups_open(store, seq));
    return sf_seq_lanes_alloc(store, seq);
}

static sf_status seq_budgets(const struct sf_store *store, struct sf_seq *seq)
{
    for (int32_t layer = 0; layer < store->layers; layer++) {
        const struct sf_layer_state *state = &store->layer[layer];
        for (int32_t l = 0; l < state->spec.lanes; l++) {
            if (state->method[l] < 0) continue;
            struct sf_kv_lane *lane = sf_store_lane_of(store, seq, layer, l);
            struct sf_foot foot;
            SF_TRY(sf_seq_budget(store, seq, layer, l, &foot));
            lane->slots_trigger = foot.slots_trigger;
            lane->slots_keep = foot.slots_keep;
            lane->mirrored = store->method[state->method[l]].entry->plan.whens != 0;
        }
    }
    return SF_OK;
}

sf_status sf_seq_open(struct sf_store *store, int64_t seq_id, int32_t prompt, int32_t tokens_max,
                      struct sf_seq **out)
{
    SF_ASSERT(prompt >= 1 && tokens_max >= prompt);
    SF_ASSERT(store->seqs < store->seqs_max);
    void *block;
    SF_TRY(sf_alloc(sizeof(struct sf_seq), "a sequence", &block));
    struct sf_seq *seq = block;
    seq->id = seq_id;
    seq->prompt = prompt;
    seq->tokens_max = tokens_max;
    sf_status status = seq_alloc(store, seq);
    if (status == SF_OK) status = seq_budgets(store, seq);
    if (status == SF_OK) status = sf_kept_open(store, seq);
    if (status != SF_OK) {
        seq_free(store, seq);
        return status;
    }
    store->seqs++;
    *out = seq;
    return SF_OK;
}

void sf_seq_receipt(const struct sf_store *store, const struct sf_seq *seq,
                    struct sf_receipt *receipt)
{
    SF_ASSERT(store->encodings == 0);
    *receipt = (struct sf_receipt){ .slots_evicted = seq->evicted, .slots_merged = seq->merged,
                                    .slots_requantised = seq->recoded, .edits = seq->edits,
                                    .changed = seq->changed,
                                    .tokens = seq->tokens[0],
                                    .bytes_peak = seq->pages_peak *
                                                  (int64_t)store->pool.page_bytes };
    for (int32_t layer = 0; layer < store->layers; layer++) {
        const struct sf_layer_state *state = &store->layer[layer];
        int64_t exact = (int64_t)sf_layout_slot_bytes(&state->layout);
        for (int32_t l = 0; l < state->spec.lanes; l++) {
            if (state->spec.lane[l].replica > 0) continue;
            receipt->bytes_exact += seq->tokens[layer] * exact;
            receipt->bytes_stored += sf_store_held(store, seq, layer, l).bytes;
        }
    }
}

void sf_seq_close(struct sf_store *store, struct sf_seq *seq, struct sf_receipt *receipt_out)
{
    SF_ASSERT(store->seqs > 0);
    if (store->encodings > 0) sf_encodings_drop(store); /* a step has failed */
    if (receipt_out) sf_seq_receipt(store, seq, receipt_out);
    for (int32_t layer = 0; layer < store->layers; layer++) {
        for (int32_t l = 0; l < store->layer[layer].spec.lanes; l++) {
            struct sf_held before = sf_store_held(store, seq, layer, l);
            sf_lane_free(&store->pool, sf_store_lane_of(store, seq, layer, l));
            sf_store_book(store, seq, layer, l, before);
        }
        sf_store_tokens(store, layer, -seq->tokens[layer]);
    }
    sf_groups_close(store, seq);
    sf_blocks_leave(store, seq);
    store->seqs--;
    store->left_raw -= seq->left_raw;
    seq_free(store, seq);
}

/* ---- looking in ----------------------------------------------------------------------------- */
int64_t sf_store_pages_free(const struct sf_store *store) { return sf_pages_free(&store->pool); }
int64_t sf_store_pages(const struct sf_store *store) { return store->pool.pages; }
int64_t sf_store_bytes_stored(const struct sf_store *store) { return store->bytes_stored; }
int64_t sf_store_bytes_exact(const struct sf_store *store) { return store->bytes_exact; }
struct sf_store_seconds sf_store_seconds(const struct sf_store *store) { return store->seconds; }
int64_t sf_store_bytes_held(const struct sf_store *store)
{
    return store->pool.used * (int64_t)store->pool.page_bytes;
}

int32_t sf_seq_lane_slots(const struct sf_store *store, const struct sf_seq *seq,
                          int32_t layer_local, int32_t lane)
{
    return sf_lane_total(sf_store_lane_of(store, seq, layer_local, lane));
}

void sf_seq_lane_tiers(const struct sf_store *store, const struct sf_seq *seq, int32_t layer_local,
                       int32_t lane_index, uint8_t *tier_out)
{
    const struct sf_kv_lane *lane = sf_store_lane_of(store, seq, layer_local, lane_index);
    size_t total = (size_t)sf_lane_total(lane);
    for (size_t i = 0; i < total; i++)
        tier_out[i] = lane->order ? lane->order[i] & SF_ORDER_TIER : 0;
}

/* pos and bias as the pages have them: a lane that no method edits has no mirror. */
static void read_marks(const struct sf_store *store, const struct sf_slots *slots, int32_t n,
                       int32_t *pos, float *bias)
{
    for (int32_t i = 0; i < n; i++) {
        int32_t slot;
        const struct sf_kv_lane *list = sf_slots_at(slots, i, &slot);
        struct sf_slot_list one = { list->page, &slot, 1 };
        store->device->k->kv_read(store->device, list->layout, store->pool.base,
                                  store->pool.page_bytes, &one, NULL, NULL,
                                  bias ? bias + i : NULL, pos ? pos + i : NULL);
    }
}

/* `room`: n slot numbers, n indices, n tiers. */
static void read_lane(const struct sf_store *store, const struct sf_seq *seq, int32_t layer,
                      int32_t lane_index, int32_t *room, float *dev, float *k, float *v,
                      int32_t *pos, float *bias)
{
    struct sf_kv_lane *lane = sf_store_lane_of(store, seq, layer, lane_index);
    const struct sf_layout *layout = &store->layer[layer].layout;
    const struct sf_kernels *kernels = store->device->k;
    int32_t total = sf_lane_total(lane), *ids = room + total;
    uint8_t *tier = (uint8_t *)(ids + total);
    size_t n = (size_t)total, k_dim = (size_t)layout->k_dim, v_dim = (size_t)layout->v_dim;
    float *dev_v = dev + n * k_dim;
    sf_lane_live_all(&store->pool, lane, room, tier);
    for (int32_t i = 0; i < total; i++) ids[i] = i;
    struct sf_slots all = { layer, lane_index, lane, room, tier };
    sf_slots_decode(store, &all, ids, total, k ? dev : NULL, v ? dev_v : NULL);
    read_marks(store, &all, total, pos, bias);
    if (k) kernels->download(store->device, k, dev, n * k_dim * sizeof(float));
    if (v) kernels->download(store->device, v, dev_v, n * v_dim * sizeof(float));
    kernels->sync(store->device);
}

sf_status sf_seq_lane_read(const struct sf_store *store, const struct sf_seq *seq,
                           int32_t layer_local, int32_t lane_index, float *k, float *v,
                           int32_t *pos, float *bias)
{
    const struct sf_kv_lane *lane = sf_store_lane_of(store, seq, layer_local, lane_index);
    const struct sf_layout *layout = &store->layer[layer_local].layout;
    size_t n = (size_t)sf_lane_total(lane);
    if (n == 0) return SF_OK;
    size_t floats = n * (size_t)(layout->k_dim + layout->v_dim);
    void *slot, *dev;
    SF_TRY(sf_alloc(n * (2 * sizeof(int32_t) + 1), "slot numbers", &slot));
    sf_status status = store->device->k->alloc(store->device, floats * sizeof(float),
                                               "slots to be read", &dev);
    if (status == SF_OK) {
        read_lane(store, seq, layer_local, lane_index, slot, dev, k, v, pos, bias);
        store->device->k->free(store->device, dev);
    }
    sf_free(slot);
    return status;
}
