/* kvshard/kept.c: statistics that are made at the event (SF_WATCH_STORED): the queries of the last
 * rows are kept, and when the event comes they attend once more, over the slots that the lane has
 * by then.
 *
 *   kept, a ring of rows       [ row 7 ][ row 8 ][ row 5 ][ row 6 ]      [group][k_dim] each
 *   row 6 at the event sees    every slot whose position is 6 or less, whatever has been edited
 *
 * Rows of the prompt do not count once the answer has begun.  Rows whose slots follow each other
 * attend in one call, as in a prompt; where an edit has come between two, calls are more. */
#include <string.h>

#include "base/memory.h"
#include "kvshard/copies.h"
#include "kvshard/watch.h"

/* ---- life ------------------------------------------------------------------------------------ */
static const struct sf_watch *stored_watch(const struct sf_store *store, int32_t layer, int32_t l,
                                           int w)
{
    int32_t method = store->layer[layer].method[l];
    if (method < 0) return NULL;
    const struct sf_watch *watch = &store->method[method].entry->plan.watch[w];
    return watch->fold != SF_FOLD_NONE && watch->flags & SF_WATCH_STORED ? watch : NULL;
}

static struct sf_kept *kept_of(const struct sf_store *store, const struct sf_seq *seq,
                               int32_t layer, int32_t l, int w)
{
    return &seq->kept[2 * (store->layer[layer].lane_first + l) + w];
}

static sf_status kept_make(const struct sf_store *store, struct sf_kept *kept, int32_t layer,
                           int32_t l, const struct sf_watch *watch)
{
    void *block;
    kept->most = watch->prompt_rows > watch->decode_rows ? watch->prompt_rows : watch->decode_rows;
    if (kept->most < 0) kept->most = 0;
    kept->heads = sf_copies_serve(store, layer) ? sf_copies_group(store, layer)
                                                : store->layer[layer].spec.lane[l].q_heads;
    size_t floats = (size_t)kept->heads * (size_t)store->layer[layer].layout.k_dim;
    SF_TRY(sf_alloc((size_t)kept->most * floats * sizeof(float), "kept queries", &block));
    kept->q = block;
    SF_TRY(sf_alloc((size_t)kept->most * sizeof *kept->pos, "kept queries", &block));
    kept->pos = block;
    return SF_OK;
}

sf_status sf_kept_open(const struct sf_store *store, struct sf_seq *seq)
{
    int any = 0;
    for (int32_t m = 0; m < store->methods; m++)
        for (int w = 0; w < 2; w++)
            any |= store->method[m].entry->plan.watch[w].flags & SF_WATCH_STORED;
    if (!any) return SF_OK;
    void *block;
    SF_TRY(sf_alloc(2 * (size_t)store->lanes * sizeof *seq->kept, "kept queries", &block));
    seq->kept = block;
    seq->kepts = 2 * store->lanes;
    for (int32_t layer = 0; layer < store->layers; layer++)
        for (int32_t l = 0; l < store->layer[layer].spec.lanes; l++)
            for (int w = 0; w < 2; w++) {
                const struct sf_watch *watch = stored_watch(store, layer, l, w);
                if (watch)
                    SF_TRY(kept_make(store, kept_of(store, seq, layer, l, w), layer, l, watch));
            }
    return SF_OK;
}

void sf_kept_close(struct sf_seq *seq)
{
    for (int32_t i = 0; i < seq->kepts; i++) {
        sf_free(seq->kept[i].pos);
        sf_free(seq->kept[i].q);
    }
    sf_free(seq->kept);
}

void sf_kept_reset(const struct sf_store *store, const struct sf_seq *seq, int32_t layer, int32_t l,
                   int w)
{
    kept_of(store, seq, layer, l, w)->rows = 0;
}

/* ---- rows ------------------------------------------------------------------------------------ */
void sf_kept_add(struct sf_store *store, const struct sf_seq *seq, int32_t layer, int32_t l, int w,
                 const float *q, int32_t pos)
{
    struct sf_kept *kept = kept_of(store, seq, layer, l, w);
    size_t floats = (size_t)kept->heads * (size_t)store->layer[layer].layout.k_dim;
    SF_ASSERT(kept->most > 0);
    if (kept->rows == 0) kept->next = 0;
    store->device->k->download(store->device, kept->q + (size_t)kept->next * floats, q,
                               floats * sizeof(float));
    kept->pos[kept->next] = pos;
    kept->next = (kept->next + 1) % kept->most;
    if (kept->rows < kept->most) kept->rows++;
}

/* ---- the event ------------------------------------------------------------------------------- */
/* Rows that attend again, in device memory. */
struct again {
    struct sf_store *store;
    int32_t layer, heads, rows;
    const struct sf_kv_lane *lane;
    const struct sf_watch *watch;
    int w;
    float *q, *lse, *out;               /* device [rows][heads] x k_dim, 1, v_dim */
    int32_t *pos;                       /* [rows] */
};

/* The kept rows of positions `from` and later, oldest first. */
static sf_status rows_take(struct again *a, const struct sf_kept *kept, int32_t from)
{
    struct sf_store *store = a->store;
    const struct sf_layout *layout = &store->layer[a->layer].layout;
    size_t rows = (size_t)kept->rows, heads = (size_t)kept->heads;
    size_t floats = heads * (size_t)layout->k_dim;
    a->heads = kept->heads;
    SF_TRY(sf_scratch_items(&store->host, rows + 1, sizeof *a->pos, &a->pos));
    SF_TRY(sf_scratch_items(&store->dev, rows * floats, sizeof(float), &a->q));
    SF_TRY(sf_scratch_items(&store->dev, rows * heads, sizeof(float), &a->lse));
    SF_TRY(sf_scratch_items(&store->dev, rows * heads * (size_t)layout->v_dim, sizeof(float),
                            &a->out));
    for (int32_t i = 0; i < kept->rows; i++) {
        int32_t at = (kept->next - kept->rows + i + kept->most) % kept->most;
        if (kept->pos[at] < from) continue;
        store->device->k->upload(store->device, a->q + (size_t)a->rows * floats,
                                 kept->q + (size_t)at * floats, floats * sizeof(float));
        a->pos[a->rows++] = kept->pos[at];
    }
    return SF_OK;
}

/* Physical slots up to the last one of position `pos` or less. */
static int32_t seen_by(const struct again *a, int32_t pos)
{
    const struct sf_page_pool *pool = &a->store->pool;
    for (int32_t s = a->lane->slots; s > 0; s--) {
        int32_t at = pool->pos[sf_lane_mirror(pool, a->lane, s - 1)];
        if (at >= 0 && at <= pos) return s;
    }
    return 0;
}

static void run_rows(const struct again *a, int32_t first, int32_t rows, int32_t slots)
{
    struct sf_store *store = a->store;
    const struct sf_layer_state *state = &store->layer[a->layer];
    size_t heads = (size_t)a->heads;
    struct sf_lane_job lane = { .pages = a->lane->page, .slots = slots, .row_first = first,
                                .rows = rows, .q_first = 0, .q_heads = a->heads };
    struct sf_attend_job attend = {
        .layout = state->layout, .pool = store->pool.base, .page_bytes = store->pool.page_bytes,
        .q = a->q, .q_stride = heads * (size_t)state->layout.k_dim, .out = a->out,
        .out_stride = heads * (size_t)state->layout.v_dim,
        .out_head_stride = (size_t)state->layout.v_dim, .out_dtype = SF_F32,
        .scale = state->spec.scale, .window = state->spec.window, .row_pos = a->pos, .lane = &lane,
        .lanes = 1, .lse = a->lse, .lse_stride = heads };
    store->device->k->attend(store->device, &attend);
    struct sf_columns_job job = sf_watch_columns(store, &attend, a->watch, a->w);
    sf_watch_fold(store, &job, a->w);
    if (a->watch->fold == SF_FOLD_MEAN) sf_watch_count(store, &job, a->w);
}

sf_status sf_kept_score(struct sf_store *store, const struct sf_seq *seq, int32_t layer, int32_t l,
                        int w)
{
    const struct sf_kept *kept = kept_of(store, seq, layer, l, w);
    struct again a = { .store = store, .layer = layer, .w = w,
                       .lane = sf_store_lane_of(store, seq, layer, l),
                       .watch = stored_watch(store, layer, l, w) };
    int32_t tokens = seq->tokens[layer], answers = tokens > seq->prompt;
    int32_t wanted = answers ? a.watch->decode_rows : a.watch->prompt_rows;
    int32_t from = tokens - (wanted > 0 ? wanted : 0);
    if (answers && from < seq->prompt) from = seq->prompt;
    for (int32_t s = 0; s < a.lane->slots; s++)
        sf_watch_zero(&store->pool, w, sf_lane_mirror(&store->pool, a.lane, s));
    SF_TRY(rows_take(&a, kept, from));
    for (int32_t first = 0, rows; first < a.rows; first += rows) {
        int32_t slots = seen_by(&a, a.pos[first]);
        for (rows = 1; first + rows < a.rows; rows++)
            if (slots == 0 || seen_by(&a, a.pos[first + rows]) != slots + rows) break;
        if (slots > 0) run_rows(&a, first, rows, slots + rows - 1);
    }
    return SF_OK;
}
