/* kvshard/watch.c: statistics of attention, as methods ask for them (policy.h, struct sf_watch).
 *
 * After the rows of a round have attended, a second pass of the backend works their weights out
 * again from the log-sum-exp that attention has left, and folds them into the mass of each slot;
 * no row is ever kept.  It runs for the rows that count alone:
 *
 *   prompt of 10, prompt_rows 3          . . . . . . . x x x |end
 *   decode_rows 2, an event every 4      . . x x |. . x x |. . x ...
 *
 * A lane with one row, as in decode, has its logits left by attention for that pass, as far as
 * there is room; with more rows they are cheaper made anew, tile by tile.
 *
 * Mass lives in the mirror (page.h), so it moves with its slot, and where a page is shared by
 * prompts it cannot be: stack.c holds the two apart.  Where the host cannot touch the device's
 * memory it lives there between events (mass.h). */
#include "base/clock.h"
#include "kvshard/copies.h"
#include "kvshard/watch.h"

/* Rows from the state after a round to the next event of the lane, 0: it is due now. */
static int32_t rows_to_event(const struct sf_plan *plan, const struct sf_seq *seq,
                             const struct sf_kv_lane *lane, int32_t tokens)
{
    int32_t least = INT32_MAX;
    if (tokens <= seq->prompt) {        /* the round was one of the prompt */
        least = seq->prompt - tokens;
        if (plan->whens & 1u << SF_AT_PREFILL_CHUNK) {
            int32_t over = tokens % plan->chunk_tokens;
            int32_t chunk = over == 0 ? 0 : plan->chunk_tokens - over;
            if (chunk < least) least = chunk;
        }
        return least;
    }
    if (plan->whens & 1u << SF_AT_FULL && lane->slots_trigger > 0)
        least = sf_lane_total(lane) < lane->slots_trigger
                    ? lane->slots_trigger - sf_lane_total(lane) : 0;
    if (plan->whens & 1u << SF_AT_INTERVAL) {
        int32_t run = plan->every_from_prompt ? tokens - seq->prompt : tokens;
        int32_t left = (plan->every_tokens - run % plan->every_tokens) % plan->every_tokens;
        if (left < least) least = left;
    }
    return least;
}

/* How many of the last rows of a round count. */
static int32_t rows_watched(const struct sf_plan *plan, const struct sf_watch *watch,
                            const struct sf_seq *seq, const struct sf_kv_lane *lane,
                            int32_t tokens, int32_t rows)
{
    int32_t wanted = tokens <= seq->prompt ? watch->prompt_rows : watch->decode_rows;
    if (wanted <= 0) return wanted == 0 ? rows : 0;
    int32_t ahead = rows_to_event(plan, seq, lane, tokens);
    int32_t count = ahead < wanted ? wanted - ahead : 0;
    return count < rows ? count : rows;
}

static int is_counted(const struct sf_store *store, int32_t layer, const struct sf_seq *seq,
                      int32_t l)
{
    const struct sf_layer_state *state = &store->layer[layer];
    if (state->method[l] < 0) return 0;
    const struct sf_plan *plan = &store->method[state->method[l]].entry->plan;
    for (int w = 0; w < 2; w++)
        if (sf_is_watched(plan, w) && !(plan->watch[w].flags & SF_WATCH_STORED) &&
            rows_watched(plan, &plan->watch[w], seq, sf_store_lane_of(store, seq, layer, l),
                         seq->tokens[layer], 1) > 0)
            return 1;
    return 0;
}

int64_t sf_logits_room(const struct sf_stack *stack, int32_t tokens_max, int32_t page_slots,
                       int64_t seqs_max, int64_t heads)
{
    enum { LOGITS_MAX = 4 << 20 };
    int watched = 0;
    for (int32_t m = 0; stack && m < stack->entries; m++)
        for (int w = 0; w < 2; w++)
            watched |= sf_is_watched(&stack->entry[m].plan, w) &&
                       !(stack->entry[m].plan.watch[w].flags & SF_WATCH_STORED);
    int64_t logits = sf_lane_slots_bound(tokens_max, page_slots) * seqs_max * heads;
    if (!watched) return 0;
    return logits < LOGITS_MAX ? logits : LOGITS_MAX;
}

/* With copies the rows that count have more query heads than those that attend here. */
void sf_watches_leave(struct sf_store *store, int32_t layer, const struct sf_kv_step *step)
{
    struct sf_lane_job *job = store->job;
    size_t used = 0;
    if (sf_copies_serve(store, layer)) return;
    for (int32_t i = 0; i < step->items; i++)
        for (int32_t l = 0; store->rows[i] > 0 && l < store->layer[layer].spec.lanes; l++, job++) {
            size_t stride = sf_lane_logit_first(job, job->parts);
            size_t floats = stride * (size_t)job->q_heads;
            if (job->rows != 1 || floats > store->logits - used ||
                !is_counted(store, layer, step->item[i].seq, l))
                continue;
            job->logit = store->logit + used;
            job->logit_stride = stride;
            used += floats;
        }
}

/* Where the backend finds the rows of a round. */
struct source {
    const float *q; float *lse; size_t q_stride, lse_stride;
    const int32_t *row_pos;
    const int32_t *end;                 /* [items] behind the last row of each */
    int32_t group;                      /* query heads of the copies together; 0: no copies */
};

/* The lanes of the round that the method watches, each with the rows that count. */
static int32_t gather(struct sf_store *store, int32_t layer, const struct sf_kv_step *step,
                      int32_t method, const struct sf_watch *watch, const struct source *source)
{
    const struct sf_layer_state *state = &store->layer[layer];
    const struct sf_plan *plan = &store->method[method].entry->plan;
    int32_t n = 0, lanes = 0;
    for (int32_t i = 0; i < step->items; i++) {
        const struct sf_seq *seq = step->item[i].seq;
        if (store->rows[i] == 0) continue;
        for (int32_t l = 0; l < state->spec.lanes; l++, n++) {
            if (state->method[l] != method) continue;
            struct sf_lane_job job = store->job[n];
            int32_t rows = rows_watched(plan, watch, seq, sf_store_lane_of(store, seq, layer, l),
                                        seq->tokens[layer], job.rows);
            if (rows == 0) continue;
            job.row_first = source->end[i] - rows;
            job.rows = rows;
            if (source->group > 0) {
                SF_ASSERT(job.logit == NULL);
                job.q_first = 0;
                job.q_heads = source->group;
            }
            store->watched[lanes++] = job;
        }
    }
    return lanes;
}

/* The rows of this rank's own heads, where the call has them. */
static struct source own_rows(struct sf_store *store, const struct sf_kv_step *step,
                              const struct sf_attend_job *attend)
{
    for (int32_t i = 0; i < step->items; i++)
        store->rows_end[i] = step->item[i].row_first + store->done[i] + store->rows[i];
    return (struct source){ attend->q, attend->lse, attend->q_stride, attend->lse_stride,
                            attend->row_pos, store->rows_end, 0 };
}

/* Those of all copies of the layer's one lane: the rows that some watch counts, side by side. */
static sf_status rows_of_copies(struct sf_store *store, int32_t layer,
                                const struct sf_kv_step *step, const struct sf_attend_job *attend,
                                struct source *out)
{
    const struct sf_plan *plan = &store->method[store->layer[layer].method[0]].entry->plan;
    struct sf_copies_row *row = store->copies.row;
    int32_t n = 0;
    for (int32_t i = 0; i < step->items; i++) {
        const struct sf_seq *seq = step->item[i].seq;
        int32_t rows = 0, end = step->item[i].row_first + store->done[i] + store->rows[i];
        for (int w = 0; store->rows[i] > 0 && w < 2; w++) {
            if (!sf_is_watched(plan, w)) continue;
            int32_t count = rows_watched(plan, &plan->watch[w], seq,
                                         sf_store_lane_of(store, seq, layer, 0),
                                         seq->tokens[layer], store->rows[i]);
            if (count > rows) rows = count;
        }
        for (int32_t r = end - rows; r < end; r++, n++)
            row[n] = (struct sf_copies_row){ r, attend->row_pos[r] };
        store->rows_end[i] = n;
    }
    int32_t group = sf_copies_group(store, layer);
    if (n > 0) SF_TRY(sf_copies_rows(store, layer, attend, row, n));
    *out = (struct source){ store->copies.q, store->copies.lse,
                            (size_t)group * (size_t)attend->layout.k_dim, (size_t)group,
                            store->copies.row_pos, store->rows_end, group };
    return SF_OK;
}

static enum sf_row_fold row_fold(const struct sf_watch *watch)
{
    switch ((enum sf_fold)watch->fold) {
    case SF_FOLD_MAX: return SF_ROWS_MAX;
    case SF_FOLD_DECAY: return SF_ROWS_DECAY;
    case SF_FOLD_BELOW_MEAN: return SF_ROWS_BELOW_MEAN;
    default: return SF_ROWS_SUM;        /* stack.c refuses the others */
    }
}

static enum sf_head_fold head_fold(const struct sf_watch *watch)
{
    if (watch->head_fold == SF_FOLD_MEAN) return SF_HEADS_MEAN;
    return watch->head_fold == SF_FOLD_MAX ? SF_HEADS_MAX : SF_HEADS_SUM;
}

struct sf_columns_job sf_watch_columns(const struct sf_store *store,
                                       const struct sf_attend_job *attend,
                                       const struct sf_watch *watch, int w)
{
    return (struct sf_columns_job){
        .layout = attend->layout, .pool = attend->pool, .page_bytes = attend->page_bytes,
        .q = attend->q, .q_stride = attend->q_stride, .scale = attend->scale,
        .window = attend->window, .row_pos = attend->row_pos, .lane = attend->lane,
        .lanes = attend->lanes, .lse = attend->lse, .lse_stride = attend->lse_stride,
        .fold = row_fold(watch), .head_fold = head_fold(watch), .decay = watch->decay,
        .mass = store->pool.mass[w], .mass_slots = store->pool.page_slots };
}

void sf_watch_fold(struct sf_store *store, const struct sf_columns_job *given, int w)
{
    struct sf_columns_job job = *given;
    if (store->pool.there) job.mass = sf_masses_push(&store->pool, given, w);
    store->device->k->columns(store->device, &job);
}

/* Row r sees slot s from r = s - (slots - rows) on, and with a window while its position is less
 * than the slot's and the window. */
void sf_watch_count(struct sf_store *store, const struct sf_columns_job *job, int w)
{
    const struct sf_page_pool *pool = &store->pool;
    int32_t slots = job->layout.page_slots;     /* the pool's are the most of any tier's */
    for (int32_t i = 0; i < job->lanes; i++) {
        const struct sf_lane_job *lane = &job->lane[i];
        for (int32_t s = 0; s < lane->slots; s++) {
            size_t at = (size_t)lane->pages[s / slots] * (size_t)pool->page_slots +
                        (size_t)(s % slots);
            int32_t first = s - (lane->slots - lane->rows), end = lane->rows;
            if (pool->pos[at] < 0) continue;
            if (first < 0) first = 0;
            while (job->window != 0 && end > first &&
                   pool->pos[at] <= job->row_pos[lane->row_first + end - 1] - job->window)
                end--;
            pool->seen[w][at] += (float)(end - first);
        }
    }
}

/* The rows that count, to be scored when the event comes. */
static void keep_rows(struct sf_store *store, int32_t layer, const struct sf_kv_step *step,
                      int32_t method, int w, const struct source *source)
{
    const struct sf_layer_state *state = &store->layer[layer];
    const struct sf_plan *plan = &store->method[method].entry->plan;
    size_t k_dim = (size_t)state->layout.k_dim;
    for (int32_t i = 0; i < step->items; i++) {
        const struct sf_seq *seq = step->item[i].seq;
        for (int32_t l = 0; store->rows[i] > 0 && l < state->spec.lanes; l++) {
            if (state->method[l] != method) continue;
            size_t head = source->group > 0 ? 0 : (size_t)state->spec.lane[l].q_first;
            int32_t rows = rows_watched(plan, &plan->watch[w], seq,
                                        sf_store_lane_of(store, seq, layer, l),
                                        seq->tokens[layer], store->rows[i]);
            for (int32_t r = source->end[i] - rows; r < source->end[i]; r++)
                sf_kept_add(store, seq, layer, l, w,
                            source->q + (size_t)r * source->q_stride + head * k_dim,
                            source->row_pos[r]);
        }
    }
}

sf_status sf_watches_run(struct sf_store *store, int32_t layer, const struct sf_kv_step *step,
                         const struct sf_attend_job *attend)
{
    int64_t start = sf_now_ns();
    struct source source;
    if (sf_copies_serve(store, layer))
        SF_TRY(rows_of_copies(store, layer, step, attend, &source));
    else source = own_rows(store, step, attend);
    for (int32_t m = 0; m < store->methods; m++)
        for (int w = 0; w < 2; w++) {
            const struct sf_watch *watch = &store->method[m].entry->plan.watch[w];
            if (watch->fold == SF_FOLD_NONE) continue;
            if (watch->flags & SF_WATCH_STORED) {
                keep_rows(store, layer, step, m, w, &source);
                continue;
            }
            int32_t lanes = gather(store, layer, step, m, watch, &source);
            if (lanes == 0) continue;
            struct sf_attend_job rows = *attend;
            rows.q = source.q;
            rows.q_stride = source.q_stride;
            rows.row_pos = source.row_pos;
            rows.lse = source.lse;
            rows.lse_stride = source.lse_stride;
            rows.lane = store->watched;
            rows.lanes = lanes;
            struct sf_columns_job job = sf_watch_columns(store, &rows, watch, w);
            if (watch->fold == SF_FOLD_MEAN) sf_watch_count(store, &job, w);
            sf_watch_fold(store, &job, w);
        }
    store->seconds.watch += sf_seconds_since(start);
    return SF_OK;
}

void sf_watches_reset(struct sf_store *store, const struct sf_plan *plan, const struct sf_seq *seq,
                      int32_t layer, int32_t l)
{
    const struct sf_kv_lane *lane = sf_store_lane_of(store, seq, layer, l);
    for (int w = 0; w < 2; w++) {
        if (plan->watch[w].fold == SF_FOLD_NONE || !(plan->watch[w].flags & SF_WATCH_RESET))
            continue;
        if (plan->watch[w].flags & SF_WATCH_STORED) sf_kept_reset(store, seq, layer, l, w);
        for (int32_t t = 0; t < lane->tiers; t++) {
            const struct sf_kv_lane *tier = sf_lane_tier_of(lane, t);
            for (int32_t s = 0; s < tier->slots; s++)
                sf_watch_zero(&store->pool, w, sf_lane_mirror(&store->pool, tier, s));
        }
    }
}
