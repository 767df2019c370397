/* kvshard/watch.c: statistics of attention, as methods ask for them (policy.h, struct sf_watch).
 *
 * After the rows of a round have attended, a second pass of the backend works their weights out
 * again from the log-sum-exp that attention has left, and folds them into the mass of each slot;
 * no row is ever kept.  It runs for the rows that count alone:
 *
 *   prompt of 10, prompt_rows 3          . . . . . . . x x x |end
 *   decode_rows 2, an event every 4      . . x x |. . x x |. . x ...
 *
 * Mass lives in the mirror (page.h), so it moves with its slot, and where a page is shared by
 * prompts it cannot be: stack.c holds the two apart. */
#include "base/clock.h"
#include "kvshard/store_impl.h"

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
        least = lane->live < lane->slots_trigger ? lane->slots_trigger - lane->live : 0;
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

/* The lanes of the round that the method watches, each with the rows that count. */
static int32_t gather(struct sf_store *store, int32_t layer, const struct sf_kv_step *step,
                      int32_t method, const struct sf_watch *watch)
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
            job.row_first += job.rows - rows;
            job.rows = rows;
            store->watched[lanes++] = job;
        }
    }
    return lanes;
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

void sf_watches_run(struct sf_store *store, int32_t layer, const struct sf_kv_step *step,
                    const struct sf_attend_job *attend)
{
    int64_t start = sf_now_ns();
    for (int32_t m = 0; m < store->methods; m++)
        for (int w = 0; w < 2; w++) {
            const struct sf_watch *watch = &store->method[m].entry->plan.watch[w];
            if (watch->fold == SF_FOLD_NONE) continue;
            int32_t lanes = gather(store, layer, step, m, watch);
            if (lanes == 0) continue;
            struct sf_columns_job job = {
                .layout = attend->layout, .pool = attend->pool, .page_bytes = attend->page_bytes,
                .q = attend->q, .q_stride = attend->q_stride, .scale = attend->scale,
                .window = attend->window, .row_pos = attend->row_pos, .lane = store->watched,
                .lanes = lanes, .lse = attend->lse, .lse_stride = attend->lse_stride,
                .fold = row_fold(watch), .head_fold = head_fold(watch), .decay = watch->decay,
                .mass = store->pool.mass[w] };
            store->device->k->columns(store->device, &job);
        }
    store->watch_seconds += sf_seconds_since(start);
}

void sf_watches_reset(struct sf_store *store, const struct sf_plan *plan,
                      const struct sf_kv_lane *lane)
{
    for (int w = 0; w < 2; w++) {
        if (plan->watch[w].fold == SF_FOLD_NONE || !(plan->watch[w].flags & SF_WATCH_RESET))
            continue;
        for (int32_t s = 0; s < lane->slots; s++)
            store->pool.mass[w][sf_lane_mirror(&store->pool, lane, s)] = 0.0f;
    }
}
