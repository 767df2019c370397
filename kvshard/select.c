/* kvshard/select.c: what attention reads of a sequence that decodes, where its method picks.
 *
 *   select(), all sequences of the layer --> picks by landmarks --> one call of the backend for all
 *   lanes: slot numbers, on the device --> parts of the attention jobs name them (tier.c)
 *
 * Nothing waits for the device and nothing here grows with the slots of a lane: how many are picked
 * is known before which.  A lane's pick lies with its sequence (group.h) and holds until the next;
 * raw slots, so all that is generated, are read whatever is picked.  The arrays are step memory, of
 * the same size in every warm step. */
#include "kvshard/store_impl.h"

#include <string.h>

static int is_due(const struct sf_store *store, int32_t layer, const struct sf_kv_step *step,
                  int32_t i)
{
    const struct sf_seq *seq = step->item[i].seq;
    return store->rows[i] > 0 && seq->tokens[layer] >= seq->prompt;
}

/* One lane, without anything of its slots but how many they are. */
static void show_lane(const struct sf_answer *answer, const struct sf_view *view,
                      struct sf_lane *shown)
{
    const struct sf_store *store = answer->store;
    const struct sf_store_lane *spec = &store->layer[view->layer].spec.lane[view->lane_index];
    const struct sf_layer *layer = &store->setup.layer[store->layer_first + view->layer];
    const struct sf_kv_lane *marks = sf_group_marks(store, view->seq, view->layer,
                                                    view->lane_index);
    *shown = (struct sf_lane){
        .layer = store->layer_first + view->layer, .head = view->lane_index,
        .head_global = spec->head_global,
        .head_class = answer->method->entry->shape.head_class[layer->lane_first +
                                                              spec->head_global],
        .replica = (uint8_t)spec->replica, .replicas = (uint8_t)spec->replicas,
        .slots = sf_lane_total(view->lane), .slots_trigger = view->lane->slots_trigger,
        .slots_keep = view->lane->slots_keep, .marks = marks ? marks->live : 0, .store = store };
}

/* A span for each sequence that decodes a row in this round and has lanes of the method. */
static sf_status show(struct sf_answer *answer, const struct sf_kv_step *step, int32_t method)
{
    struct sf_store *store = answer->store;
    const struct sf_layer_state *state = &store->layer[answer->layer];
    size_t items = (size_t)step->items, lanes = items * (size_t)state->spec.lanes, heads = 0;
    int32_t *lane_ptr;
    struct sf_buf *q;
    SF_TRY(sf_scratch_items(&store->host, items, sizeof *answer->span, &answer->span));
    SF_TRY(sf_scratch_items(&store->host, items, sizeof *q, &q));
    SF_TRY(sf_scratch_items(&store->host, 2 * items, sizeof *lane_ptr, &lane_ptr));
    SF_TRY(sf_scratch_items(&store->host, lanes, sizeof *answer->shown, &answer->shown));
    SF_TRY(sf_scratch_items(&store->host, lanes, sizeof *answer->view, &answer->view));
    for (int32_t l = 0; l < state->spec.lanes; l++) heads += (size_t)state->spec.lane[l].q_heads;
    for (int32_t i = 0; i < step->items; i++) {
        struct sf_seq *seq = step->item[i].seq;
        int32_t before = answer->views, row = step->item[i].row_first + store->done[i];
        if (!is_due(store, answer->layer, step, i)) continue;
        for (int32_t l = 0; l < state->spec.lanes; l++) {
            if (state->method[l] != method) continue;
            struct sf_view *view = &answer->view[answer->views];
            *view = (struct sf_view){ .seq = seq, .layer = answer->layer, .lane_index = l,
                                      .lane = sf_store_lane_of(store, seq, answer->layer, l),
                                      .tokens = seq->tokens[answer->layer], .due = (uint8_t)1 };
            show_lane(answer, view, &answer->shown[answer->views++]);
        }
        if (answer->views == before) continue;
        SF_ASSERT(store->rows[i] == 1);     /* event.c */
        q[answer->spans] = (struct sf_buf){ step->q + (size_t)row * step->q_stride,
                                            heads * (size_t)state->layout.k_dim * sizeof(float) };
        lane_ptr[2 * answer->spans] = 0;
        lane_ptr[2 * answer->spans + 1] = answer->views - before;
        answer->span[answer->spans] = (struct sf_span){
            .seq_id = seq->id, .prompt = seq->prompt, .tokens = seq->tokens[answer->layer],
            .layers = 1, .lanes = answer->views - before, .rows = 1, .q = &q[answer->spans],
            .lane_ptr = lane_ptr + 2 * answer->spans, .lane = &answer->shown[before] };
        answer->spans++;
    }
    return SF_OK;
}

sf_status sf_pick_chunks(struct sf_answer *answer, const struct sf_lane *lane, int32_t chunks)
{
    const struct sf_plan *plan = &answer->method->entry->plan;
    const char *name = answer->method->entry->method->name;
    sf_status status = SF_OK;
    if (!answer->selects || lane < answer->shown || lane >= answer->shown + answer->views) {
        status = SF_FAIL(SF_INVALID, "%s: pick outside of select(), or of a lane that it was not"
                         " shown", name);
    } else {
        struct sf_view *view = &answer->view[lane - answer->shown];
        int32_t most = sf_picks_most(plan, view->seq->tokens_max);
        if (view->chunks > 0 || chunks < 1 || chunks > lane->marks ||
            (int64_t)chunks * plan->mark_slots > most)
            status = SF_FAIL(SF_INVALID, "%s: %s pick of %d chunks of layer %d head %d, which has"
                             " %d landmarks and room for %d slots", name,
                             view->chunks > 0 ? "second" : "a", chunks, lane->layer,
                             lane->head_global, lane->marks, most);
        else view->chunks = chunks;
    }
    if (status != SF_OK && answer->refused == SF_OK) answer->refused = status;
    return status;
}

/* All picks of the answer by one call; from here on the lanes are read so. */
static sf_status run_picks(const struct sf_answer *answer, const struct sf_kv_step *step)
{
    struct sf_store *store = answer->store;
    const struct sf_layer_state *state = &store->layer[answer->layer];
    int32_t mark_slots = answer->method->entry->plan.mark_slots;
    struct sf_pick_lane *pick;
    struct sf_pick_job job = { .layout = sf_marks_layout(&state->layout), .pool = store->pool.base,
                               .page_bytes = store->pool.page_bytes, .q = step->q,
                               .q_stride = step->q_stride, .scale = state->spec.scale,
                               .chunk_slots = mark_slots };
    SF_TRY(sf_scratch_items(&store->host, (size_t)answer->views, sizeof *pick, &pick));
    for (int32_t s = 0; s < answer->spans; s++) {
        const struct sf_span *span = &answer->span[s];
        int32_t row = (int32_t)((size_t)((const float *)span->q->data - step->q) / step->q_stride);
        for (int32_t l = 0; l < span->lanes; l++) {
            struct sf_view *view = &answer->view[span->lane + l - answer->shown];
            const struct sf_store_lane *spec = &state->spec.lane[view->lane_index];
            if (view->chunks == 0) continue;
            const struct sf_kv_lane *marks = sf_group_marks(store, view->seq, view->layer,
                                                            view->lane_index);
            pick[job.lanes++] = (struct sf_pick_lane){
                .pages = marks->page, .landmarks = marks->live, .chunks = view->chunks,
                .row_first = row, .rows = 1, .q_first = spec->q_first, .q_heads = spec->q_heads,
                .slot_out = view->lane->pick };
            view->lane->picks = view->chunks * mark_slots;
            view->lane->picked = 1;
        }
    }
    job.lane = pick;
    if (job.lanes > 0) store->device->k->pick(store->device, &job);
    return SF_OK;
}

/* A lane without a pick would read twice what it has raw as well. */
static sf_status check_read(const struct sf_answer *answer)
{
    for (int32_t i = 0; i < answer->views; i++)
        if (answer->view[i].lane->hidden > 0 && !answer->view[i].lane->picked)
            return SF_FAIL(SF_INVALID, "%s: no pick of layer %d head %d, which has slots raw that"
                           " its group has too", answer->method->entry->method->name,
                           answer->shown[i].layer, answer->shown[i].head_global);
    return SF_OK;
}

static sf_status select_by(struct sf_store *store, int32_t layer, const struct sf_kv_step *step,
                           int32_t method)
{
    struct sf_store_method *m = &store->method[method];
    struct sf_answer answer = { .store = store, .method = m, .layer = layer, .selects = 1 };
    sf_scratch_reset(&store->host);
    sf_scratch_reset(&store->dev);
    SF_TRY(show(&answer, step, method));
    if (answer.views == 0) return SF_OK;
    struct sf_batch batch = { answer.span, answer.spans };
    m->scratch_left = m->entry->plan.scratch_bytes;
    store->answer = &answer;
    sf_status status = m->entry->method->policy->select(&m->env, &batch, &answer);
    store->answer = NULL;
    m->scratch_left = 0;
    SF_TRY(status);
    if (answer.refused != SF_OK) return answer.refused;
    SF_TRY(run_picks(&answer, step));
    return check_read(&answer);
}

sf_status sf_select_run(struct sf_store *store, int32_t layer, const struct sf_kv_step *step)
{
    int due = 0;
    for (int32_t i = 0; i < step->items; i++) due |= is_due(store, layer, step, i);
    for (int32_t m = 0; due && m < store->methods; m++)
        if (store->method[m].entry->plan.needs & SF_NEED_SELECT_DECODE)
            SF_TRY(select_by(store, layer, step, m));
    return SF_OK;
}
