/* kvshard/event.c: which hooks fall due in a layer, what they are shown, and the default answer.
 *
 * Order in decode: append, attend over the lane with the new token, then events; an edit shows from
 * the next token on.  So a call with several rows is cut into rounds (store.c): a round ends where
 * an event falls due, and one call with n rows does exactly what n calls with one row do.
 *
 *   rows of one call:   p p p p | p p . d d d | d d        p prompt, d decode
 *                            chunk ^  end ^     ^ lane full or interval */
#include <float.h>
#include <math.h>
#include <string.h>

#include "kvshard/copies.h"
#include "kvshard/watch.h"

/* ---- what is due ---------------------------------------------------------------------------- */
static int wants(const struct sf_store_method *method, enum sf_when when)
{
    return (method->entry->plan.whens & (1u << when)) != 0;
}

/* The method answers with the store's own rule: slots_keep best by score, or the newest. */
static int by_default(const struct sf_store_method *method)
{
    return method->entry->method->policy->compress == NULL;
}

static int32_t to_interval(const struct sf_plan *plan, const struct sf_seq *seq, int32_t tokens)
{
    int32_t run = plan->every_from_prompt ? tokens - seq->prompt : tokens;
    return plan->every_tokens - run % plan->every_tokens;
}

int32_t sf_events_apart(const struct sf_store *store, const struct sf_seq *seq, int32_t pos)
{
    int32_t rows = INT32_MAX;
    if (store->groups.groups > 0 && pos < seq->prompt) return seq->prompt - pos;
    for (int32_t g = 0; g < store->groups.groups; g++) {
        const struct sf_store_method *method = &store->method[store->groups.group[g].method];
        if (!wants(method, SF_AT_INTERVAL)) continue;
        int32_t due = to_interval(&method->entry->plan, seq, pos);
        if (due < rows) rows = due;
    }
    return rows;
}

int32_t sf_events_rows(const struct sf_store *store, int32_t layer, const struct sf_seq *seq,
                       int32_t left)
{
    const struct sf_layer_state *state = &store->layer[layer];
    int32_t tokens = seq->tokens[layer], rows = left;
    SF_ASSERT(left >= 1);
    if (tokens < seq->prompt && rows > seq->prompt - tokens) rows = seq->prompt - tokens;
    if (tokens < seq->prompt) rows = sf_blocks_rows(store, layer, seq, rows);
    for (int32_t i = 0; i < state->spec.lanes; i++) {
        if (state->method[i] < 0) continue;
        const struct sf_store_method *method = &store->method[state->method[i]];
        const struct sf_plan *plan = &method->entry->plan;
        const struct sf_kv_lane *lane = sf_store_lane_of(store, seq, layer, i);
        int32_t due = rows;
        if (tokens < seq->prompt) {
            if (wants(method, SF_AT_PREFILL_CHUNK))
                due = plan->chunk_tokens - tokens % plan->chunk_tokens;
        } else {
            if (wants(method, SF_AT_FULL) && lane->slots_trigger > 0)
                due = lane->slots_trigger - sf_lane_total(lane);
            if (wants(method, SF_AT_INTERVAL) && due > to_interval(plan, seq, tokens))
                due = to_interval(plan, seq, tokens);
            if (plan->needs & SF_NEED_SELECT_DECODE) due = 1; /* by each row's query */
        }
        if (due < rows) rows = due < 1 ? 1 : due;
    }
    return rows;
}

static int lane_is_due(const struct sf_store_method *method, const struct sf_kv_lane *lane,
                       enum sf_when when)
{
    int32_t slots = sf_lane_total(lane);
    if (when == SF_AT_PRESSURE) return lane->slots_keep > 0 && slots > lane->slots_keep;
    if (by_default(method)) {
        int32_t more = when == SF_AT_FULL ? lane->slots_trigger : lane->slots_trigger + 1;
        if (lane->slots_trigger == 0) more = when == SF_AT_FULL ? INT32_MAX : 0;
        return lane->slots_keep > 0 && slots >= more && slots > lane->slots_keep;
    }
    return when != SF_AT_FULL || (lane->slots_trigger > 0 && slots >= lane->slots_trigger);
}

/* Whether `when` falls due for item i, of which `rows[i]` rows have run (chunk: are about to). */
static int seq_is_due(const struct sf_store *store, int32_t layer, const struct sf_seq *seq,
                      const struct sf_store_method *method, enum sf_when when, int32_t i)
{
    const struct sf_plan *plan = &method->entry->plan;
    int32_t tokens = seq->tokens[layer];
    if (store->rows[i] == 0) return 0;
    switch (when) {
    case SF_AT_PREFILL_CHUNK:
        if (tokens == 0 || tokens >= seq->prompt) return 0;
        return tokens % plan->chunk_tokens == 0;
    case SF_AT_PREFILL_END: return tokens == seq->prompt;
    case SF_AT_FULL: return tokens > seq->prompt;
    case SF_AT_INTERVAL:
        return tokens > seq->prompt && to_interval(plan, seq, tokens) == plan->every_tokens;
    case SF_AT_PRESSURE: return tokens >= seq->prompt;
    default: return 0;                  /* refused by sf_stack_check */
    }
}

static int span_is_due(const struct sf_store *store, int32_t layer, const struct sf_seq *seq,
                       int32_t method, enum sf_when when, int32_t i)
{
    const struct sf_layer_state *state = &store->layer[layer];
    if (!seq_is_due(store, layer, seq, &store->method[method], when, i)) return 0;
    for (int32_t l = 0; l < state->spec.lanes; l++)
        if (state->method[l] == method &&
            lane_is_due(&store->method[method], sf_store_lane_of(store, seq, layer, l), when))
            return 1;
    return 0;
}

/* ---- views ---------------------------------------------------------------------------------- */
/* Fills one lane of a view: its live slots side by side. */
static sf_status show_lane(struct sf_answer *answer, struct sf_lane *shown, struct sf_view *view)
{
    struct sf_store *store = answer->store;
    const struct sf_page_pool *pool = &store->pool;
    const struct sf_store_lane *spec = &store->layer[view->layer].spec.lane[view->lane_index];
    const struct sf_layer *layer = &store->setup.layer[store->layer_first + view->layer];
    const struct sf_kv_lane *lane = view->lane;
    size_t slots = (size_t)sf_lane_total(lane);
    size_t aux_bytes = (size_t)answer->method->entry->plan.aux_bytes;
    int32_t *pos;
    float *bias;
    unsigned char *aux = NULL;
    float *mass[2] = { NULL, NULL };
    SF_TRY(sf_scratch_items(&store->host, slots, sizeof *view->slot, &view->slot));
    SF_TRY(sf_scratch_items(&store->host, slots, sizeof *pos, &pos));
    SF_TRY(sf_scratch_items(&store->host, slots, sizeof *bias, &bias));
    SF_TRY(sf_scratch_items(&store->host, slots, sizeof *view->tier, &view->tier));
    if (aux_bytes) SF_TRY(sf_scratch_items(&store->host, slots, aux_bytes, &aux));
    for (int w = 0; w < 2; w++)
        if (sf_is_watched(&answer->method->entry->plan, w))
            SF_TRY(sf_scratch_items(&store->host, slots, sizeof *mass[w], &mass[w]));
    sf_lane_live_all(pool, lane, view->slot, view->tier);
    struct sf_slots all = sf_view_slots(view);
    for (size_t s = 0; s < slots; s++) {
        size_t at = sf_slots_mirror(pool, &all, (int32_t)s);
        pos[s] = pool->pos[at];
        bias[s] = pool->bias[at];
        if (aux_bytes)
            memcpy(aux + s * aux_bytes, pool->aux + at * (size_t)pool->aux_bytes, aux_bytes);
        for (int w = 0; w < 2; w++)
            if (mass[w]) mass[w][s] = sf_watch_shown(pool, &answer->method->entry->plan, w, at);
    }
    *shown = (struct sf_lane){
        .layer = store->layer_first + view->layer, .head = view->lane_index,
        .head_global = spec->head_global,
        .head_class = answer->method->entry->shape.head_class[layer->lane_first +
                                                              spec->head_global],
        .replica = (uint8_t)spec->replica, .replicas = (uint8_t)spec->replicas,
        .slots = (int32_t)slots, .slots_trigger = lane->slots_trigger,
        .slots_keep = lane->slots_keep, .pos = pos, .bias = bias, .tier = view->tier,
        .aux = aux,
        .mass = { mass[0], mass[1] },
        .store = store };
    const struct sf_kv_lane *marks = sf_group_marks(store, view->seq, view->layer,
                                                    view->lane_index);
    if (marks) shown->marks = marks->live;
    return SF_OK;
}

/* Layers whose lanes an event of `layer` shows: its own, or, at the end of a prompt and at
 * intervals, those of its group, which has to wait for its last layer: 0. */
static int layers_shown(const struct sf_store *store, int32_t layer, int32_t method,
                        enum sf_when when, int32_t *first_out)
{
    int together = when == SF_AT_PREFILL_END || when == SF_AT_INTERVAL;
    *first_out = layer;
    for (int32_t l = 0; l < store->layer[layer].spec.lanes && together; l++) {
        int32_t g = sf_group_of(store, layer, l);
        if (g < 0 || store->groups.group[g].method != method) continue;
        *first_out = store->groups.group[g].layer_first;
        return store->groups.group[g].layer_last == layer;
    }
    return 1;
}

/* Adds the views of one layer's lanes that the method owns, still without their slots. */
static sf_status show_layer(struct sf_answer *answer, struct sf_seq *seq, int32_t layer,
                            int32_t method, enum sf_when when)
{
    struct sf_store *store = answer->store;
    const struct sf_layer_state *state = &store->layer[layer];
    for (int32_t l = 0; l < state->spec.lanes; l++) {
        if (state->method[l] != method) continue;
        struct sf_view *view = &answer->view[answer->views];
        memset(view, 0, sizeof *view);
        view->seq = seq;
        view->lane = sf_store_lane_of(store, seq, layer, l);
        view->layer = layer;
        view->lane_index = l;
        view->tokens = seq->tokens[layer];
        for (int w = 0; w < 2; w++)
            if (store->method[method].entry->plan.watch[w].flags & SF_WATCH_STORED)
                SF_TRY(sf_kept_score(store, seq, layer, l, w));
        view->due = (uint8_t)lane_is_due(&store->method[method], view->lane, when);
        sf_masses_pull(&store->pool, view->lane);
        answer->views++;
    }
    return SF_OK;
}

/* The spans for which `when` is due, from sequence *next on: one a sequence, of the lanes in layers
 * `first` to the answer's that the method owns.  No more than a hook takes at once (event.h); how
 * many there are is the same on all tensor ranks. */
static sf_status show(struct sf_answer *answer, const struct sf_kv_step *step, int32_t first,
                      int32_t method, enum sf_when when, int32_t *next)
{
    struct sf_store *store = answer->store;
    int32_t left = step->items - *next, layers = answer->layer - first + 1, *lane_ptr, i = *next;
    size_t items = (size_t)(left < SF_HOOK_SPANS ? left : SF_HOOK_SPANS), lanes = 0;
    int64_t tokens = 0;
    for (int32_t l = first; l <= answer->layer; l++)
        lanes += items * (size_t)store->layer[l].spec.lanes;
    SF_TRY(sf_scratch_items(&store->host, items, sizeof *answer->span, &answer->span));
    SF_TRY(sf_scratch_items(&store->host, items, sizeof *answer->group, &answer->group));
    SF_TRY(sf_scratch_items(&store->host, lanes, sizeof *answer->shown, &answer->shown));
    SF_TRY(sf_scratch_items(&store->host, lanes, sizeof *answer->view, &answer->view));
    SF_TRY(sf_scratch_items(&store->host, ((size_t)layers + 1) * items, sizeof *lane_ptr,
                            &lane_ptr));
    for (; i < step->items && answer->spans < SF_HOOK_SPANS && tokens < SF_HOOK_TOKENS; i++) {
        struct sf_seq *seq = step->item[i].seq;
        if (!span_is_due(store, answer->layer, seq, method, when, i)) continue;
        int32_t before = answer->views;
        tokens += seq->tokens[answer->layer];
        lane_ptr[0] = 0;
        for (int32_t l = 0; l < layers; l++) {
            SF_ASSERT(seq->tokens[first + l] == seq->tokens[answer->layer]);
            SF_TRY(show_layer(answer, seq, first + l, method, when));
            lane_ptr[l + 1] = answer->views - before;
        }
        answer->group[answer->spans] = (struct sf_group_edit){ .tier = 0 };
        answer->span[answer->spans++] = (struct sf_span){
            .seq_id = seq->id, .prompt = seq->prompt, .tokens = seq->tokens[answer->layer],
            .layers = layers, .lanes = answer->views - before, .lane_ptr = lane_ptr,
            .lane = &answer->shown[before] };
        lane_ptr += layers + 1;
    }
    *next = i;
    sf_masses_arrive(&store->pool);
    for (int32_t v = 0; v < answer->views; v++)
        SF_TRY(show_lane(answer, &answer->shown[v], &answer->view[v]));
    return SF_OK;
}

/* What the hook has written into aux and mass goes back to the slots. */
static void keep_notes(const struct sf_answer *answer)
{
    struct sf_page_pool *pool = &answer->store->pool;
    const struct sf_plan *plan = &answer->method->entry->plan;
    size_t bytes = (size_t)plan->aux_bytes;
    for (int32_t i = 0; i < answer->views; i++) {
        const struct sf_lane *shown = &answer->shown[i];
        const struct sf_view *view = &answer->view[i];
        if (bytes == 0 && !shown->mass[0] && !shown->mass[1]) return;
        struct sf_slots all = sf_view_slots(view);
        for (int32_t s = 0; s < shown->slots; s++) {
            size_t at = sf_slots_mirror(pool, &all, s);
            if (bytes > 0)
                memcpy(pool->aux + at * (size_t)pool->aux_bytes,
                       (const unsigned char *)shown->aux + (size_t)s * bytes, bytes);
            for (int w = 0; w < 2; w++)
                if (shown->mass[w]) sf_watch_keep(pool, plan, w, at, shown->mass[w][s]);
        }
    }
}

/* ---- the default answer --------------------------------------------------------------------- */
/* Keeps the slots_keep best of a lane by score, protected ones first. */
static sf_status keep_best(struct sf_answer *answer, const struct sf_lane *lane,
                           const struct sf_view *view, float *score)
{
    const struct sf_plan *plan = &answer->method->entry->plan;
    int32_t keep = lane->slots_keep, guarded = 0, *ids;
    for (int32_t s = 0; s < lane->slots; s++) {
        if (score[s] > FLT_MAX) score[s] = FLT_MAX;
        if (!sf_is_protected(plan, view->tokens, lane->pos[s])) continue;
        score[s] = INFINITY;
        guarded++;
    }
    if (keep < guarded) keep = guarded;
    SF_TRY(sf_scratch_items(&answer->store->host, (size_t)keep, sizeof *ids, &ids));
    int32_t n = sf_top_k(score, lane->slots, keep, ids);
    return sf_edit_keep(answer, lane, (struct sf_list){ .ids = ids, .n = n });
}

/* What the method takes is gone afterwards, so the next sequence finds its place free. */
static sf_status call_score(struct sf_answer *answer, const struct sf_span *span, float *score)
{
    struct sf_store *store = answer->store;
    struct sf_store_method *method = &store->method[answer->method - store->method];
    struct sf_scratch_mark host = sf_scratch_mark(&store->host), dev = sf_scratch_mark(&store->dev);
    method->scratch_left = method->entry->plan.scratch_bytes;
    SF_TRY(method->entry->method->policy->score(&method->env, span, score));
    sf_scratch_back(&store->host, host);
    sf_scratch_back(&store->dev, dev);
    return SF_OK;
}

static sf_status answer_by_score(struct sf_answer *answer, enum sf_when when)
{
    const struct sf_store_method *method = answer->method;
    for (int32_t i = 0; i < answer->spans; i++) {
        const struct sf_span *span = &answer->span[i];
        size_t slots = 0;
        for (int32_t l = 0; l < span->lanes; l++) slots += (size_t)span->lane[l].slots;
        float *score;
        SF_TRY(sf_scratch_items(&answer->store->host, slots, sizeof *score, &score));
        memset(score, 0, slots * sizeof *score);
        SF_TRY(call_score(answer, span, score));
        for (int32_t l = 0; l < span->lanes; l++) {
            const struct sf_lane *lane = &span->lane[l];
            const struct sf_view *view = &answer->view[lane - answer->shown];
            if (lane_is_due(method, view->lane, when))
                SF_TRY(keep_best(answer, lane, view, score));
            score += lane->slots;
        }
    }
    return SF_OK;
}

static sf_status answer_by_age(struct sf_store *store, int32_t layer, const struct sf_kv_step *step,
                               int32_t method, enum sf_when when)
{
    const struct sf_layer_state *state = &store->layer[layer];
    const struct sf_store_method *m = &store->method[method];
    for (int32_t i = 0; i < step->items; i++) {
        struct sf_seq *seq = step->item[i].seq;
        if (!seq_is_due(store, layer, seq, m, when, i)) continue;
        for (int32_t l = 0; l < state->spec.lanes; l++)
            if (state->method[l] == method &&
                lane_is_due(m, sf_store_lane_of(store, seq, layer, l), when))
                SF_TRY(sf_keep_newest(store, layer, seq, l, &m->entry->plan));
        sf_scratch_reset(&store->host);
    }
    return SF_OK;
}

/* ---- firing --------------------------------------------------------------------------------- */
static sf_status call_hook(struct sf_answer *answer, int32_t method, enum sf_when when)
{
    struct sf_store_method *m = &answer->store->method[method];
    const struct sf_policy_ops *policy = m->entry->method->policy;
    struct sf_batch batch = { answer->span, answer->spans };
    m->scratch_left = m->entry->plan.scratch_bytes;
    answer->store->answer = answer;
    sf_status status = policy->compress ? policy->compress(&m->env, when, &batch, answer)
                                        : answer_by_score(answer, when);
    answer->store->answer = NULL;
    m->scratch_left = 0;
    SF_TRY(status);
    if (answer->refused == SF_OK) keep_notes(answer);
    SF_TRY(sf_answer_apply(answer));
    for (int32_t i = 0; i < answer->views; i++)
        if (answer->view[i].due)
            sf_watches_reset(answer->store, &m->entry->plan, answer->view[i].seq,
                             answer->view[i].layer, answer->view[i].lane_index);
    return SF_OK;
}

static sf_status fire(struct sf_store *store, int32_t layer, const struct sf_kv_step *step,
                      int32_t method, enum sf_when when)
{
    struct sf_store_method *m = &store->method[method];
    int32_t first;
    if (!wants(m, when) || !layers_shown(store, layer, method, when, &first)) return SF_OK;
    sf_scratch_reset(&store->host);
    sf_scratch_reset(&store->dev);
    if (by_default(m) && !m->entry->method->policy->score)
        return answer_by_age(store, layer, step, method, when);
    for (int32_t next = 0; next < step->items;) {
        while (next < step->items &&
               !span_is_due(store, layer, step->item[next].seq, method, when, next))
            next++;
        if (next == step->items) return SF_OK;
        SF_TRY(sf_encodings_finish(store));
        struct sf_answer answer = { .store = store, .method = m, .layer = layer,
                                    .when = when };
        SF_TRY(show(&answer, step, first, method, when, &next));
        SF_TRY(sf_copies_agree(&answer));
        SF_TRY(call_hook(&answer, method, when));
        sf_encodings_keep(store);
        sf_scratch_reset(&store->host);
        sf_scratch_reset(&store->dev);
    }
    return SF_OK;
}

sf_status sf_events_before(struct sf_store *store, int32_t layer, const struct sf_kv_step *step)
{
    for (int32_t m = 0; m < store->methods; m++)
        SF_TRY(fire(store, layer, step, m, SF_AT_PREFILL_CHUNK));
    return SF_OK;
}

sf_status sf_events_after(struct sf_store *store, int32_t layer, const struct sf_kv_step *step)
{
    for (int32_t m = 0; m < store->methods; m++)
        for (int when = SF_AT_PREFILL_END; when <= SF_AT_INTERVAL; when++)
            SF_TRY(fire(store, layer, step, m, (enum sf_when)when));
    return SF_OK;
}

sf_status sf_events_pressure(struct sf_store *store, int32_t layer, const struct sf_kv_step *step)
{
    for (int32_t m = 0; m < store->methods; m++)
        SF_TRY(fire(store, layer, step, m, SF_AT_PRESSURE));
    return SF_OK;
}
