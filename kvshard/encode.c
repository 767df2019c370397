/* kvshard/encode.c: the lanes of a layer group come to share a basis.
 *
 *   gather   lanes of the group, decoded, keys turned back --> X [n][m]
 *   factor   X --> A [n][rank], B [rank][m]
 *   finish   A --> the basis, one row a slot;  B --> columns of each lane, its factors; then the
 *            slots leave the raw tier of every lane, whose order says that they are in the other
 *
 * Gathering and finishing know lanes and pages; factoring knows X, A and B alone.  So where the
 * rank has threads for it, a group is factored beside the layers behind it (beside.h), and finished
 * before the next hook or at the end of the step, whichever is first: the same pages either way.
 * Nobody looks at its lanes in between, as no row of its sequence comes to these layers.
 *
 *   the next group's last layer: finish g | hook, gather g + 1 | layers ... | end: finish g + 1
 *
 * Else all three come at once: keys, then values, through the same X.  Where a basis is of all
 * tensor ranks, they make it together (factor_ranks.h), at once, in host memory.
 * Everything is in f32 until it comes into pages.  Values that stay exact (rank_v 0) have no X:
 * they go as they are into pages of values. */
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "kvshard/factor_ranks.h"
#include "kvshard/store_impl.h"

enum { BEAT_MS = 20 };                  /* the rank shows life while it waits for factors */

_Static_assert((int)SF_BESIDE_JOBS >= (int)SF_HOOK_SPANS, "a hook's spans all fit beside");

static int32_t dim_of(const struct sf_encoding *w, int values)
{
    return values ? w->size.factors.v_dim : w->size.factors.k_dim;
}

/* Without what is of the group and its place. */
static struct sf_factor_job shape_of(const struct sf_lowrank_size *size,
                                     const struct sf_tier *tier, int32_t n, int32_t lanes,
                                     int values)
{
    struct sf_lowrank cfg;
    memcpy(&cfg, tier->codec_cfg, sizeof cfg);
    return (struct sf_factor_job){
        .rows = n, .cols = lanes * (values ? size->factors.v_dim : size->factors.k_dim),
        .rank = values ? size->rank_v : size->rank_k, .how = (enum sf_factor_how)cfg.how,
        .power_iterations = cfg.power_iterations, .oversample = cfg.oversample,
        .seed = (uint64_t)cfg.seed * 2654435761u };
}

static const struct sf_tier *tier_of(const struct sf_encoding *w)
{
    const struct sf_store_group *group = &w->store->groups.group[w->number];
    return &w->store->method[group->method].entry->plan.tier[group->tier];
}

static struct sf_factor_job job_of(const struct sf_encoding *w, int values)
{
    const struct sf_store_group *group = &w->store->groups.group[w->number];
    struct sf_factor_job job = shape_of(&w->size, tier_of(w), w->edit->n, w->span->lanes, values);
    /* The same for every sequence, so that an answer does not depend on what ran beside it. */
    job.seed += (uint64_t)(2 * (w->store->layer_first + group->layer_first) + values);
    job.x = w->room.x[values];
    job.x_stride = job.b_stride = (size_t)job.cols;
    job.a = w->room.a[values];
    job.a_stride = (size_t)(values ? w->size.basis.v_dim : w->size.basis.k_dim);
    job.b = w->room.b[values];
    job.scratch = w->host ? w->host : w->room.scratch;
    return job;
}

static int over_ranks(const struct sf_encoding *w)
{
    return sf_lowrank_over_ranks(&w->store->setup, tier_of(w));
}

static struct sf_factor_ranks ranks_job(const struct sf_encoding *w, int values)
{
    const struct sf_store *store = w->store;
    const struct sf_store_group *group = &store->groups.group[w->number];
    return (struct sf_factor_ranks){
        .device = store->device, .ranks = store->tensor, .lanes = w->span->lanes,
        .lanes_all = sf_group_lanes(&store->setup, &store->method[group->method].entry->shape,
                                    w->span->lane[0].layer),
        .dim = dim_of(w, values), .lane = w->among, .job = job_of(w, values) };
}

/* Which lanes of all tensor ranks' these are. */
static sf_status find_lanes(struct sf_encoding *w)
{
    struct sf_store *store = w->store;
    const struct sf_store_group *group = &store->groups.group[w->number];
    const struct sf_shape *shape = &store->method[group->method].entry->shape;
    struct sf_factor_lane *among;
    SF_TRY(sf_scratch_items(&store->host, (size_t)w->span->lanes, sizeof *among, &among));
    for (int32_t l = 0; l < w->span->lanes; l++) {
        const struct sf_lane *lane = &w->span->lane[l];
        among[l] = (struct sf_factor_lane){
            sf_group_lane(&store->setup, shape, lane->layer, lane->head_global),
            lane->replica > 0 };
    }
    w->among = among;
    return SF_OK;
}

void sf_encode_place(struct sf_heap *heap, const struct sf_encode_shape *shape,
                     struct sf_encode_room *room_out)
{
    const struct sf_lowrank_size *size = shape->size;
    size_t n = (size_t)shape->n, lanes = (size_t)shape->lanes;
    size_t rows = (size_t)(size->rank_k > size->rank_v ? size->rank_k : size->rank_v);
    size_t k_cols = lanes * (size_t)size->factors.k_dim;
    size_t v_cols = lanes * (size_t)size->factors.v_dim;
    size_t most = shape->apart || k_cols > v_cols ? k_cols : v_cols;
    room_out->x[0] = room_out->x[1] = sf_heap_floats(heap, n * most);
    if (shape->apart) room_out->x[1] = sf_heap_floats(heap, n * v_cols);
    room_out->a[0] = sf_heap_floats(heap, n * (size_t)size->basis.k_dim);
    room_out->a[1] = sf_heap_floats(heap, n * (size_t)size->basis.v_dim);
    room_out->b[0] = sf_heap_floats(heap, rows * k_cols);
    room_out->b[1] = sf_heap_floats(heap, rows * v_cols);
    room_out->scratch = sf_heap_take(heap, shape->scratch_bytes);
}

/* What the factorisation takes itself, of keys or values.  device: for sf_factor_ranks; NULL where
 * it is one whose memory the host can touch. */
static size_t scratch_bytes(const struct sf_lowrank_ask *ask, const struct sf_lowrank_size *size,
                            struct sf_device *device,
                            size_t (*factor_bytes)(const struct sf_factor_job *))
{
    struct sf_factor_place place = { ask->rank, ask->setup->tp_size };
    size_t most = 0;
    for (int values = 0; values < (size->rank_v > 0 ? 2 : 1); values++) {
        struct sf_factor_ranks over = {
            .device = device, .lanes = ask->lanes,
            .lanes_all = sf_group_lanes(ask->setup, ask->shape, ask->layer),
            .dim = values ? size->factors.v_dim : size->factors.k_dim,
            .job = shape_of(size, ask->tier, ask->tokens, ask->lanes, values) };
        over.job.a_stride = (size_t)(values ? size->basis.v_dim : size->basis.k_dim);
        size_t bytes = sf_lowrank_over_ranks(ask->setup, ask->tier)
                           ? sf_factor_ranks_bytes(&over, place, factor_bytes)
                           : factor_bytes(&over.job);
        if (bytes > most) most = bytes;
    }
    return most;
}

sf_status sf_encode_bytes(const struct sf_lowrank_ask *ask, int flags,
                          size_t (*factor_bytes)(const struct sf_factor_job *),
                          size_t *bytes_out)
{
    struct sf_lowrank_size size;
    struct sf_encode_room room;
    struct sf_heap heap = { 0 };
    SF_TRY(sf_lowrank_sizes(ask, &size));
    struct sf_encode_shape shape = { &size, ask->tokens, ask->lanes, 0, flags & SF_ENCODE_APART };
    if (!(flags & SF_ENCODE_HOSTED) || !sf_lowrank_over_ranks(ask->setup, ask->tier))
        shape.scratch_bytes = scratch_bytes(ask, &size, NULL, factor_bytes);
    sf_encode_place(&heap, &shape, &room);
    *bytes_out = heap.used;
    return SF_OK;
}

static struct sf_encode_shape room_of(const struct sf_encoding *w, int apart)
{
    struct sf_device *device = w->store->device;
    struct sf_lowrank_ask ask = sf_group_ask(w->store, w->number, w->edit->n);
    size_t bytes = scratch_bytes(&ask, &w->size, device, device->k->factor_bytes);
    return (struct sf_encode_shape){ &w->size, w->edit->n, w->span->lanes, bytes, apart };
}

static sf_status take_room(struct sf_encoding *w)
{
    struct sf_encode_shape shape = room_of(w, 0);
    struct sf_heap heap = { 0 };
    void *base;
    if (over_ranks(w) && !w->store->device->host_memory) {
        /* Mapped, not sf_alloc: nobody needs it zeroed, and what is not touched takes no memory. */
        SF_TRY(sf_map(shape.scratch_bytes, 0, "a basis of several ranks", &w->host));
        w->host_bytes = shape.scratch_bytes;
        shape.scratch_bytes = 0;
    }
    sf_encode_place(&heap, &shape, &w->room);           /* counts */
    SF_TRY(sf_scratch_take(&w->store->dev, heap.used, &base));
    heap = (struct sf_heap){ base, 0 };
    sf_encode_place(&heap, &shape, &w->room);
    if (over_ranks(w)) SF_TRY(find_lanes(w));
    return SF_OK;
}

/* Of each layer, before anything is rounded into pages.  tests/quality reads these lines.  A rank
 * that has no memory for them goes on, as the others would wait for it. */
static void tell_loss(const struct sf_encoding *w, int values)
{
    const struct sf_span *span = w->span;
    const struct sf_factor_job is = job_of(w, values), *job = &is;
    double *sum;
    if (!sf_log_shows(SF_LOG_DEBUG)) return;
    if (sf_scratch_items(&w->store->host, (size_t)span->lanes, 2 * sizeof *sum, &sum) != SF_OK ||
        sf_factor_loss(w->store->device, job, span->lanes, sum) != SF_OK) {
        sf_log(SF_LOG_DEBUG, "what a basis leaves is not told: %s", sf_error_text());
        return;
    }
    for (int32_t l = 0, end; l < span->lanes; l = end) {
        double all = 0, left = 0;
        int32_t counted = 0;            /* copies are told elsewhere */
        for (end = l; end < span->lanes && span->lane[end].layer == span->lane[l].layer; end++) {
            if (span->lane[end].replica > 0) continue;
            counted++;
            all += sum[2 * end];
            left += sum[2 * end + 1];
        }
        if (counted == 0) continue;
        sf_log(SF_LOG_DEBUG, "sequence %lld, layer %d, %s: rank %d of %d tokens x %d columns leaves"
               " %.6f of the norm %.6g", (long long)span->seq_id, span->lane[l].layer,
               values ? "values" : "keys", job->rank, job->rows, job->cols,
               all > 0 ? sqrt(left / all) : 0, sqrt(all));
    }
}

/* ---- gather --------------------------------------------------------------------------------- */
/* A lane's columns at a time; what that takes beside X is free afterwards. */
static sf_status decode_lanes(struct sf_encoding *w, int values, const int32_t *pos, float *columns)
{
    struct sf_store *store = w->store;
    int32_t n = w->edit->n, dim = dim_of(w, values);
    size_t cols = (size_t)w->span->lanes * (size_t)dim;
    for (int32_t l = 0; l < w->span->lanes; l++) {
        struct sf_slots slots = sf_view_slots(&w->view[l]);
        sf_slots_decode(store, &slots, w->edit->ids, n, values ? NULL : columns,
                        values ? columns : NULL);
        if (!values) SF_TRY(sf_turn(store, w->view[l].layer, columns, pos, n, 1));
        store->device->k->copy_columns(store->device, n, dim, dim, columns, (size_t)dim,
                                       w->room.x[values] + (size_t)l * (size_t)dim, cols);
    }
    return SF_OK;
}

/* X of keys or values. */
static sf_status gather(struct sf_encoding *w, int values)
{
    struct sf_store *store = w->store;
    struct sf_scratch_mark host = sf_scratch_mark(&store->host), dev = sf_scratch_mark(&store->dev);
    int32_t n = w->edit->n, *pos;
    float *columns;
    SF_TRY(sf_scratch_items(&store->host, (size_t)n, sizeof *pos, &pos));
    SF_TRY(sf_scratch_items(&store->dev, (size_t)n * (size_t)dim_of(w, values), sizeof *columns,
                            &columns));
    for (int32_t i = 0; i < n; i++) pos[i] = w->span->lane[0].pos[w->edit->ids[i]];
    SF_TRY(decode_lanes(w, values, pos, columns));
    sf_scratch_back(&store->host, host);
    sf_scratch_back(&store->dev, dev);
    return SF_OK;
}

/* ---- factor --------------------------------------------------------------------------------- */
/* so_far: where ranks make a basis together, one that has failed must not leave them waiting. */
static sf_status factor(struct sf_encoding *w, int values, sf_status so_far)
{
    struct sf_store *store = w->store;
    struct sf_factor_ranks ranks = ranks_job(w, values);
    int64_t start = sf_now_ns();
    if (over_ranks(w)) so_far = sf_factor_ranks(&ranks, so_far);
    else if (so_far == SF_OK) so_far = store->device->k->factor(store->device, &ranks.job);
    store->device->k->sync(store->device);
    double seconds = sf_seconds_since(start);
    store->seconds.factor += seconds;
    store->seconds.factor_wait += seconds;
    return so_far;
}

static sf_status gather_and_factor(struct sf_encoding *w)
{
    for (int values = 0; values < w->kinds; values++) {
        SF_TRY(factor(w, values, gather(w, values)));
        tell_loss(w, values);
    }
    return SF_OK;
}

/* ---- finish --------------------------------------------------------------------------------- */
/* The pages of basis, factors and exact values are free, and those for copies of shared ones. */
static sf_status check_room(const struct sf_encoding *w)
{
    const struct sf_store *store = w->store;
    int64_t each = w->size.factor_pages + w->size.value_pages;
    int64_t pages = w->size.basis_pages + w->span->lanes * each;
    int32_t mark_slots = w->group->mark_layout.page_slots;
    for (int32_t l = 0; l < w->span->lanes; l++)
        pages += (w->view[l].marks + mark_slots - 1) / mark_slots;
    for (int32_t l = 0; l < w->span->lanes; l++)
        for (int32_t p = 0; p < w->view[l].lane->pages; p++)
            pages += store->pool.holders[w->view[l].lane->page[p]] > 1;
    if (pages > sf_pages_free(&store->pool))
        return SF_FAIL(SF_NO_PAGES, "a layer group needs %lld pages, %d of %d are free",
                       (long long)pages, sf_pages_free(&store->pool), store->pool.pages);
    return SF_OK;
}

static void append(const struct sf_encoding *w, const struct sf_kv_lane *list, int32_t rows,
                   const float *k, size_t k_stride, const float *v, size_t v_stride,
                   const int32_t *pos)
{
    struct sf_store *store = w->store;
    struct sf_append_lane lane = { .pages = list->page, .rows = rows };
    struct sf_append_job job = { .layout = *list->layout, .pool = store->pool.base,
                                 .page_bytes = store->pool.page_bytes, .k = k, .v = v,
                                 .k_stride = k_stride, .v_stride = v_stride, .pos = pos,
                                 .lane = &lane, .lanes = 1 };
    store->device->k->kv_append(store->device, &job);
}

/* The values of the slots of every lane into pages of values, as they are. */
static sf_status write_values(const struct sf_encoding *w)
{
    struct sf_store *store = w->store;
    struct sf_lane_ctx ctx = { &store->pool, w->size.values, &store->host };
    size_t v_dim = (size_t)w->size.values.v_dim;
    int32_t n = w->edit->n;
    float *columns;
    SF_TRY(sf_scratch_items(&store->dev, (size_t)n * v_dim, sizeof *columns, &columns));
    for (int32_t l = 0; l < w->span->lanes; l++) {
        struct sf_kv_lane *list = &w->segment->values[l];
        struct sf_slots slots = sf_view_slots(&w->view[l]);
        list->page_slots = w->size.values.page_slots;
        SF_TRY(sf_lane_extend(&ctx, list, 0, n));
        sf_slots_decode(store, &slots, w->edit->ids, n, NULL, columns);
        append(w, list, n, columns, v_dim, columns, v_dim, NULL);
    }
    return SF_OK;
}

/* Basis and factors into pages. */
static sf_status write_pages(const struct sf_encoding *w)
{
    struct sf_store *store = w->store;
    struct sf_segment *segment = w->segment;
    struct sf_kv_lane *tier = &w->group->tier;
    struct sf_lane_ctx ctx = { &store->pool, w->size.basis, &store->host };
    int32_t n = w->edit->n, most = n > w->rows ? n : w->rows, *pos;
    SF_TRY(sf_scratch_items(&store->host, (size_t)most, sizeof *pos, &pos));
    segment->size = w->size;            /* the lists' layouts */
    segment->slot_first = tier->slots;
    segment->basis.page_slots = w->size.basis.page_slots;
    tier->segments++;
    SF_TRY(sf_lane_extend(&ctx, &segment->basis, 0, n));
    tier->slots = tier->live = tier->live + n;
    for (int32_t i = 0; i < n; i++) {
        pos[i] = w->span->lane[0].pos[w->edit->ids[i]];
        store->pool.pos[sf_lane_mirror(&store->pool, &segment->basis, i)] = pos[i];
    }
    append(w, &segment->basis, n, w->room.a[0], (size_t)w->size.basis.k_dim, w->room.a[1],
           (size_t)w->size.basis.v_dim, pos);
    for (int32_t i = 0; i < w->rows; i++) pos[i] = i;
    ctx.layout = w->size.factors;
    for (int32_t l = 0; l < w->span->lanes; l++) {
        struct sf_kv_lane *list = &segment->list[l];
        size_t k_dim = (size_t)dim_of(w, 0), v_dim = (size_t)dim_of(w, 1);
        size_t lanes = (size_t)w->span->lanes;
        list->page_slots = w->size.factors.page_slots;
        SF_TRY(sf_lane_extend(&ctx, list, 0, w->rows));
        append(w, list, w->rows, w->room.b[0] + (size_t)l * k_dim, lanes * k_dim,
               w->room.b[1] + (size_t)l * v_dim, lanes * v_dim, pos);
        segment->factors[l].rank_k = w->size.rank_k;
        segment->factors[l].rank_v = w->size.rank_v;
    }
    return segment->values ? write_values(w) : SF_OK;
}

/* The landmarks of the lanes that have some. */
static sf_status write_marks(const struct sf_encoding *w)
{
    struct sf_store *store = w->store;
    size_t dim = (size_t)dim_of(w, 0), most = 0;
    struct sf_lane_ctx ctx = { &store->pool, w->group->mark_layout, &store->host };
    float *key;
    for (int32_t l = 0; l < w->span->lanes; l++)
        if ((size_t)w->view[l].marks > most) most = (size_t)w->view[l].marks;
    if (most == 0) return SF_OK;
    SF_TRY(sf_scratch_items(&store->dev, most * dim, sizeof *key, &key));
    for (int32_t l = 0; l < w->span->lanes; l++) {
        const struct sf_view *view = &w->view[l];
        struct sf_kv_lane *list = &w->group->mark[l];
        if (view->marks == 0) continue;
        SF_TRY(sf_lane_extend(&ctx, list, 0, view->marks));
        store->device->k->upload(store->device, key, view->key,
                                 (size_t)view->marks * dim * sizeof *key);
        append(w, list, view->marks, key, dim, key, dim, view->chunk);
    }
    return SF_OK;
}

/* The slots leave the raw tier of a lane, but for those that stay there as well. */
static sf_status leave(const struct sf_encoding *w, const struct sf_view *view)
{
    struct sf_store *store = w->store;
    struct sf_lane_ctx ctx = sf_store_ctx(store, view->layer);
    int32_t n = 0, kept = 0, *drop;
    SF_TRY(sf_scratch_items(&store->host, (size_t)w->edit->n, sizeof *drop, &drop));
    for (int32_t i = 0; i < w->edit->n; i++) {
        int32_t id = w->edit->ids[i];
        if (kept < view->exacts && view->exact[kept] == id) {
            view->lane->order[id] = SF_ORDER_HIDES;
            kept++;
            continue;
        }
        drop[n++] = view->slot[id];
        view->lane->order[id] = (uint8_t)w->edit->tier;
    }
    view->lane->hidden += kept;
    SF_TRY(sf_lane_mark(&ctx, view->lane, drop, n));
    return sf_lane_compact(&ctx, view->lane);
}

/* What rounding up leaves beside the factors is zeros. */
static void fill_up(const struct sf_encoding *w)
{
    struct sf_device *device = w->store->device;
    for (int values = 0; values < w->kinds; values++) {
        struct sf_factor_job job = job_of(w, values);
        int32_t wide = (int32_t)job.a_stride;
        if (wide > job.rank)
            device->k->copy_columns(device, job.rows, 0, wide - job.rank, job.a, job.a_stride,
                                    job.a + job.rank, job.a_stride);
        if (w->rows > job.rank)
            device->k->copy_columns(device, w->rows - job.rank, 0, job.cols, job.b, job.b_stride,
                                    job.b + (size_t)job.rank * job.b_stride, job.b_stride);
    }
}

static sf_status write_all(const struct sf_encoding *w)
{
    struct sf_store *store = w->store;
    struct sf_seq *seq = w->view->seq;
    fill_up(w);
    SF_TRY(write_pages(w));
    SF_TRY(write_marks(w));
    for (int32_t l = 0; l < w->span->lanes; l++) {
        const struct sf_view *view = &w->view[l];
        SF_TRY(leave(w, view));
        if (store->layer[view->layer].spec.lane[view->lane_index].replica > 0) continue;
        seq->recoded += w->edit->n - view->exacts;
        seq->edits++;
        sf_note_change(store, view->layer, seq, view->lane_index);
    }
    return SF_OK;
}

/* Basis and factors are there, or X was not finite: SF_INVALID. */
static sf_status finish(struct sf_encoding *w, sf_status factored)
{
    struct sf_store *store = w->store;
    if (factored == SF_INVALID) {
        sf_log(SF_LOG_WARN, "sequence %lld, layers %d and on: keys or values are not finite, so"
               " they stay as they are", (long long)w->span->seq_id, w->span->lane[0].layer);
        store->left_raw += !w->view->seq->left_raw;
        w->view->seq->left_raw = 1;
        return SF_OK;
    }
    SF_TRY(factored);
    w->segment = &w->group->segment[w->group->tier.segments];
    SF_ASSERT(w->group->tier.segments < w->group->segments_max);
    struct sf_held before = sf_group_total(store, w->view->seq, w->number);
    sf_status status = write_all(w);
    sf_group_book(store, w->view->seq, w->number, before);
    return status;
}

/* ---- at once -------------------------------------------------------------------------------- */
static sf_status encode_now(struct sf_encoding *w)
{
    sf_status status = check_room(w);
    if (status == SF_OK) status = take_room(w);
    if (over_ranks(w))
        status = sf_comm_agree(w->store->tensor, status,
                               "the basis of a layer group: tensor rank");
    if (status == SF_OK) status = finish(w, gather_and_factor(w));
    if (w->host) sf_unmap(w->host, w->host_bytes);
    return status;
}

/* ---- beside the layers ---------------------------------------------------------------------- */
/* Room beside those before it, which are finished if it takes that; 0: it goes at once. */
static sf_status find_room(struct sf_encoding *w, int *found_out)
{
    struct sf_beside *beside = &w->store->beside;
    struct sf_heap heap = { 0 };
    *found_out = 0;
    if (beside->threads == 0 || over_ranks(w)) return SF_OK;
    struct sf_encode_shape shape = room_of(w, 1);
    sf_encode_place(&heap, &shape, &w->room);           /* counts */
    if (heap.used > beside->room_bytes) return SF_OK;
    if (heap.used > beside->room_bytes - beside->room_used) SF_TRY(sf_encodings_finish(w->store));
    heap = (struct sf_heap){ beside->room, beside->room_used };
    sf_encode_place(&heap, &shape, &w->room);
    beside->room_used = heap.used;
    *found_out = 1;
    return SF_OK;
}

static sf_status put_beside(struct sf_encoding *w)
{
    struct sf_store *store = w->store;
    w->job.kinds = w->kinds;
    for (int values = 0; values < w->kinds; values++) {
        SF_TRY(gather(w, values));
        w->job.kind[values] = job_of(w, values);
    }
    SF_ASSERT(store->encodings < SF_HOOK_SPANS);
    store->encoding[store->encodings++] = w;
    sf_beside_begin(&store->beside, &w->job);
    return SF_OK;
}

static sf_status finish_job(struct sf_encoding *w)
{
    sf_status status = w->job.status;
    w->store->seconds.factor += w->job.seconds;
    if (status == SF_OK) status = check_room(w);
    else if (status != SF_INVALID) status = SF_FAIL(status, "%s", w->job.words);
    for (int values = 0; values < w->kinds && status == SF_OK; values++) tell_loss(w, values);
    return finish(w, status);
}

sf_status sf_encodings_finish(struct sf_store *store)
{
    struct sf_scratch_mark host = sf_scratch_mark(&store->host), dev = sf_scratch_mark(&store->dev);
    int64_t start = sf_now_ns();
    sf_status status = SF_OK;
    if (store->encodings == 0) return SF_OK;
    while (!sf_beside_wait(&store->beside, BEAT_MS))
        if (store->tensor)
            SF_TRY(sf_comm_beat(store->tensor, "factors of groups", store->encodings));
    store->seconds.factor_wait += sf_seconds_since(start);
    for (int32_t i = 0; i < store->encodings && status == SF_OK; i++) {
        status = finish_job(store->encoding[i]);
        sf_scratch_back(&store->host, host);
        sf_scratch_back(&store->dev, dev);
    }
    sf_encodings_drop(store);
    return status;
}

void sf_encodings_drop(struct sf_store *store)
{
    sf_beside_drop(&store->beside);
    store->encodings = 0;
    store->beside.room_used = 0;
    sf_scratch_reset(&store->kept);
}

void sf_encodings_keep(struct sf_store *store)
{
    struct sf_scratch_mem other = store->kept;
    if (store->encodings == 0) return;
    store->kept = store->host;
    store->host = other;
}

int sf_encodings_cover(const struct sf_store *store, int32_t layer)
{
    for (int32_t i = 0; i < store->encodings; i++)
        if (layer <= store->groups.group[store->encoding[i]->number].layer_last) return 1;
    return 0;
}

/* ---- all of it ------------------------------------------------------------------------------ */
static sf_status begin(struct sf_answer *answer, int32_t number, struct sf_encoding *w)
{
    struct sf_store *store = answer->store;
    *w = (struct sf_encoding){ .store = store, .span = &answer->span[number],
                               .edit = &answer->group[number] };
    w->view = &answer->view[w->span->lane - answer->shown];
    w->number = sf_group_of(store, w->view->layer, w->view->lane_index);
    w->group = &w->view->seq->group[w->number];
    SF_TRY(sf_group_sizes(store, w->number, w->edit->n, &w->size));
    w->rows = w->size.rank_k > w->size.rank_v ? w->size.rank_k : w->size.rank_v;
    w->kinds = w->size.rank_v > 0 ? 2 : 1;
    return SF_OK;
}

/* What one span took is free for the next: it ends with all that was queued done. */
sf_status sf_group_encode(struct sf_answer *answer, int32_t number)
{
    struct sf_store *store = answer->store;
    struct sf_encoding *w;
    int beside;
    SF_TRY(sf_scratch_items(&store->host, 1, sizeof *w, &w));
    struct sf_scratch_mark host = sf_scratch_mark(&store->host), dev = sf_scratch_mark(&store->dev);
    SF_TRY(begin(answer, number, w));
    SF_TRY(find_room(w, &beside));
    SF_TRY(beside ? put_beside(w) : encode_now(w));
    store->device->k->sync(store->device);
    sf_scratch_back(&store->host, host);
    sf_scratch_back(&store->dev, dev);
    return SF_OK;
}
