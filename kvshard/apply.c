/* kvshard/apply.c: edits that have passed their checks become moves of bytes.
 *
 * A mix with live slots a b c d e and the answer [a] [(b+c)/2] [d]:
 *
 *   1. read b and c decoded, sum them in f32 in the order of src        -> row
 *   2. place: new slot 0 is a, 1 the place of b, 2 is d; c, e go        place.c
 *   3. write the row as slot 1 with its pos and bias                    re-encoded
 *
 * Counting for receipts: a slot that no new slot is made of is evicted; one that went into a sum is
 * merged, unless the new slot stands at its position (it is the centre) or the mix says
 * SF_MIX_FOLD.  A compensation slot that is folded once more stands for tokens counted before. */
#include <string.h>

#include "kvshard/store_impl.h"

enum { SOURCES_AT_ONCE = 256 };         /* slots read and decoded in one piece */

/* ---- keep ----------------------------------------------------------------------------------- */
void sf_note_change(const struct sf_store *store, int32_t layer, struct sf_seq *seq,
                    int32_t lane_index)
{
    int32_t m = store->layer[layer].method[lane_index];
    seq->changed |= 1u << (m < 31 ? m : 31);
}

static void count_dropped(const struct sf_store *store, int32_t layer, struct sf_seq *seq,
                          int32_t lane_index, int64_t evicted, int64_t merged)
{
    if (store->layer[layer].spec.lane[lane_index].replica > 0) return;
    seq->evicted += evicted;
    seq->merged += merged;
    seq->edits++;
    if (evicted > 0 || merged > 0) sf_note_change(store, layer, seq, lane_index);
}

static sf_status apply_keep(struct sf_answer *answer, const struct sf_lane *lane,
                            struct sf_view *view)
{
    struct sf_store *store = answer->store;
    int32_t drops = lane->slots - view->keeps;
    uint8_t *keep;
    if (drops == 0) return SF_OK;
    SF_TRY(sf_scratch_items(&store->host, (size_t)lane->slots, 1, &keep));
    memset(keep, 0, (size_t)lane->slots);
    for (int32_t i = 0; i < view->keeps; i++) keep[view->keep[i]] = 1;
    struct sf_slots all = sf_view_slots(view);
    struct sf_held before = sf_store_held(store, view->seq, view->layer, view->lane_index);
    sf_status status = sf_tiers_keep(store, &all, keep);
    sf_store_book(store, view->seq, view->layer, view->lane_index, before);
    count_dropped(store, view->layer, view->seq, view->lane_index, drops, 0);
    return status;
}

sf_status sf_keep_newest(struct sf_store *store, int32_t layer, struct sf_seq *seq,
                         int32_t lane_index, const struct sf_plan *plan)
{
    struct sf_kv_lane *lane = sf_store_lane_of(store, seq, layer, lane_index);
    struct sf_page_pool *pool = &store->pool;
    int32_t excess = lane->live - lane->slots_keep, *drop, n = 0;
    SF_ASSERT(excess > 0 && lane->mirrored && lane->tiers == 1);
    SF_TRY(sf_scratch_items(&store->host, (size_t)excess, sizeof *drop, &drop));
    int32_t slot = lane->scanned;
    for (; slot < lane->slots && n < excess; slot++) {
        int32_t pos = pool->pos[sf_lane_mirror(pool, lane, slot)];
        if (pos < 0 || pos < plan->sink_tokens) continue;
        if (sf_is_protected(plan, seq->tokens[layer], pos)) break;
        drop[n++] = slot;               /* positions ascend in a lane that is only ever kept */
    }
    lane->scanned = slot;
    if (n == 0) return SF_OK;
    struct sf_lane_ctx ctx = sf_store_ctx(store, layer);
    struct sf_held before = sf_store_held(store, seq, layer, lane_index);
    sf_status status = sf_lane_drop(&ctx, lane, drop, n);
    sf_store_book(store, seq, layer, lane_index, before);
    count_dropped(store, layer, seq, lane_index, n, 0);
    return status;
}

/* ---- mix ------------------------------------------------------------------------------------ */
/* How a mix is carried out: new slot i takes the bytes of source[i], or is sum row[i] of `sums`. */
struct mix_work {
    int32_t *source;                    /* [slots] slot of the view, or -1: a sum */
    uint8_t *tier;                      /* [slots] where the new slots go */
    int32_t *row_slot, rows;            /* [rows] new slot of each sum */
    float *sum_k, *sum_v;               /* host [rows][k_dim], [rows][v_dim] */
    int32_t *pos; float *bias;          /* [rows] of the sums */
    unsigned char *aux;                 /* [slots][aux_bytes of the pool] of the new slots */
    float *mass[2], *seen[2];           /* [slots] of the new slots; NULL: not watched, no mean */
    int64_t evicted, merged;
};

static sf_status mix_rows(struct sf_answer *answer, const struct sf_lane *lane,
                          const struct sf_view *view, struct mix_work *work)
{
    struct sf_store *store = answer->store;
    const struct sf_mix *mix = &view->mix;
    struct sf_scratch_mem *mem = &store->host;
    size_t slots = (size_t)mix->slots + 1;
    SF_TRY(sf_scratch_items(mem, slots, sizeof *work->source, &work->source));
    SF_TRY(sf_scratch_items(mem, slots, 1, &work->tier));
    SF_TRY(sf_scratch_items(mem, slots, sizeof *work->row_slot, &work->row_slot));
    SF_TRY(sf_scratch_items(mem, slots, sizeof *work->pos, &work->pos));
    SF_TRY(sf_scratch_items(mem, slots, sizeof *work->bias, &work->bias));
    int32_t aux_bytes = store->pool.aux_bytes;
    if (aux_bytes) {
        SF_TRY(sf_scratch_items(mem, slots, (size_t)aux_bytes, &work->aux));
        memset(work->aux, 0, slots * (size_t)aux_bytes);
    }
    for (int w = 0; w < 2; w++)
        if (lane->mass[w]) {
            SF_TRY(sf_scratch_items(mem, slots, sizeof(float), &work->mass[w]));
            if (answer->method->entry->plan.watch[w].fold == SF_FOLD_MEAN)
                SF_TRY(sf_scratch_items(mem, slots, sizeof(float), &work->seen[w]));
        }
    int32_t method_aux = answer->method->entry->plan.aux_bytes;
    struct sf_slots old = sf_view_slots(view);
    work->rows = 0;
    for (int32_t i = 0; i < mix->slots; i++) {
        int32_t first = mix->src[mix->ptr[i]];
        work->tier[i] = sf_mix_tier(lane, mix, i);
        if (sf_mix_is_copy(lane, mix, i)) {
            work->source[i] = first;
        } else {
            work->source[i] = -1;
            work->pos[work->rows] = mix->pos[i];
            work->bias[work->rows] = mix->bias[i];
            work->row_slot[work->rows++] = i;
        }
        for (int w = 0; w < 2; w++) {
            if (!work->mass[w]) continue;
            size_t at = sf_slots_mirror(&store->pool, &old, first);
            work->mass[w][i] = mix->mass[w] ? mix->mass[w][i] : store->pool.mass[w][at];
            if (!work->seen[w]) continue; /* a new slot goes on as its first source would */
            work->seen[w][i] = store->pool.seen[w][at];
            if (mix->mass[w]) work->mass[w][i] *= work->seen[w][i];
        }
        if (method_aux) {
            const unsigned char *from = mix->aux
                ? (const unsigned char *)mix->aux + (size_t)i * (size_t)method_aux
                : (const unsigned char *)lane->aux + (size_t)first * (size_t)method_aux;
            memcpy(work->aux + (size_t)i * (size_t)aux_bytes, from, (size_t)method_aux);
        }
    }
    return SF_OK;
}

static sf_status mix_count(struct sf_answer *answer, const struct sf_lane *lane,
                           const struct sf_mix *mix, struct mix_work *work)
{
    enum { GONE, MERGED, STAYS };
    uint8_t *fate;
    SF_TRY(sf_scratch_items(&answer->store->host, (size_t)lane->slots + 1, 1, &fate));
    memset(fate, GONE, (size_t)lane->slots);
    for (int32_t i = 0; i < mix->slots; i++)
        for (int32_t j = mix->ptr[i]; j < mix->ptr[i + 1]; j++) {
            int32_t s = mix->src[j];
            uint8_t now = mix->flags & SF_MIX_FOLD ? GONE : MERGED;
            int own = mix->pos[i] == lane->pos[s];
            if (sf_mix_is_copy(lane, mix, i) || mix->ptr[i + 1] == mix->ptr[i] + 1) now = STAYS;
            else if (own && (!(mix->flags & SF_MIX_FOLD) || lane->bias[s] != 0.0f)) now = STAYS;
            if (now > fate[s]) fate[s] = now;
        }
    work->evicted = work->merged = 0;
    for (int32_t s = 0; s < lane->slots; s++) {
        work->evicted += fate[s] == GONE;
        work->merged += fate[s] == MERGED;
    }
    return SF_OK;
}

/* Sources of several sums, side by side. */
struct mix_piece {
    int32_t n;
    int32_t row[SOURCES_AT_ONCE], at[SOURCES_AT_ONCE];  /* of the sums; in mix->src */
    int32_t slot[SOURCES_AT_ONCE], pos[SOURCES_AT_ONCE];
};

/* The next sources of rows *row_io on, from place *at_io of mix->src on. */
static void piece_take(const struct sf_mix *mix, const struct sf_lane *lane,
                       const struct mix_work *work, int32_t *row_io, int32_t *at_io,
                       struct mix_piece *piece)
{
    piece->n = 0;
    while (*row_io < work->rows && piece->n < SOURCES_AT_ONCE) {
        int32_t i = piece->n++, slot = mix->src[*at_io];
        piece->row[i] = *row_io;
        piece->at[i] = (*at_io)++;
        piece->slot[i] = slot;
        piece->pos[i] = lane->pos[slot];
        if (*at_io < mix->ptr[work->row_slot[*row_io] + 1]) continue;
        if (++*row_io < work->rows) *at_io = mix->ptr[work->row_slot[*row_io]];
    }
}

/* sum_k[r] = sum over j of k_weight[j] * key of src[j], in the order of src; read in pieces, so
 * that many small sums wait for the device once.  With SF_MIX_ROTATE of the keys before RoPE. */
static sf_status mix_sums(struct sf_answer *answer, const struct sf_lane *lane,
                          const struct sf_view *view, struct mix_work *work)
{
    struct sf_store *store = answer->store;
    const struct sf_kernels *k = store->device->k;
    const struct sf_layout *layout = &store->layer[view->layer].layout;
    const struct sf_mix *mix = &view->mix;
    size_t k_dim = (size_t)layout->k_dim, v_dim = (size_t)layout->v_dim;
    struct sf_slots all = sf_view_slots(view);
    struct mix_piece piece;
    float *dev, *host;
    size_t floats = SOURCES_AT_ONCE * (k_dim + v_dim), rows = (size_t)work->rows;
    SF_TRY(sf_scratch_items(&store->dev, floats, sizeof(float), &dev));
    SF_TRY(sf_scratch_items(&store->host, floats, sizeof(float), &host));
    SF_TRY(sf_scratch_items(&store->host, rows * k_dim, sizeof(float), &work->sum_k));
    SF_TRY(sf_scratch_items(&store->host, rows * v_dim, sizeof(float), &work->sum_v));
    memset(work->sum_k, 0, rows * k_dim * sizeof(float));
    memset(work->sum_v, 0, rows * v_dim * sizeof(float));
    for (int32_t row = 0, at = rows > 0 ? mix->ptr[work->row_slot[0]] : 0; row < work->rows;) {
        piece_take(mix, lane, work, &row, &at, &piece);
        size_t n = (size_t)piece.n;
        sf_slots_decode(store, &all, piece.slot, piece.n, dev, dev + n * k_dim);
        if (mix->flags & SF_MIX_ROTATE)
            SF_TRY(sf_turn(store, view->layer, dev, piece.pos, piece.n, 1));
        k->download(store->device, host, dev, n * (k_dim + v_dim) * sizeof(float));
        for (size_t j = 0; j < n; j++) {
            float *sum_k = work->sum_k + (size_t)piece.row[j] * k_dim;
            float *sum_v = work->sum_v + (size_t)piece.row[j] * v_dim;
            const float *host_k = host + j * k_dim, *host_v = host + n * k_dim + j * v_dim;
            float k_weight = mix->k_weight[piece.at[j]], v_weight = mix->v_weight[piece.at[j]];
            for (size_t e = 0; e < k_dim; e++) sum_k[e] += k_weight * host_k[e];
            for (size_t e = 0; e < v_dim; e++) sum_v[e] += v_weight * host_v[e];
        }
    }
    return SF_OK;
}

/* Writes the sums as slots of the lane, whose bytes are in their new places. */
static sf_status mix_write_sums(struct sf_store *store, const struct sf_slots *fresh,
                                const struct sf_mix *mix, const struct mix_work *work, float *dev)
{
    const struct sf_kernels *k = store->device->k;
    const struct sf_layout *layout = &store->layer[fresh->layer].layout;
    size_t rows = (size_t)work->rows;
    size_t k_dim = (size_t)layout->k_dim, v_dim = (size_t)layout->v_dim;
    float *dev_v = dev + rows * k_dim;
    k->upload(store->device, dev, work->sum_k, rows * k_dim * sizeof(float));
    k->upload(store->device, dev_v, work->sum_v, rows * v_dim * sizeof(float));
    if (mix->flags & SF_MIX_ROTATE)
        SF_TRY(sf_turn(store, fresh->layer, dev, work->pos, work->rows, 0));
    sf_slots_encode(store, fresh, work->row_slot, work->rows, dev, dev_v, work->pos, work->bias);
    return SF_OK;
}

/* What the host knows of the new slots; of a copy that has not moved, only what a mix may
 * change. */
static void mix_mirror(struct sf_page_pool *pool, const struct sf_slots *fresh,
                       const struct sf_mix *mix, const struct mix_work *work, const int *moved)
{
    int notes = pool->aux || pool->mass[0];
    for (int32_t i = 0; i < mix->slots; i++) {
        if (!moved[fresh->tier[i]] && !notes && work->source[i] >= 0) continue;
        size_t at = sf_slots_mirror(pool, fresh, i);
        sf_mirror_begin(pool, at, mix->pos[i]);
        pool->bias[at] = mix->bias[i];
        for (int w = 0; w < 2; w++) {
            if (work->mass[w]) pool->mass[w][at] = work->mass[w][i];
            if (work->seen[w]) pool->seen[w][at] = work->seen[w][i];
        }
        if (pool->aux)
            memcpy(pool->aux + at * (size_t)pool->aux_bytes,
                   work->aux + (size_t)i * (size_t)pool->aux_bytes, (size_t)pool->aux_bytes);
    }
}

/* The lane becomes what the mix says. */
static sf_status mix_run(struct sf_answer *answer, const struct sf_lane *lane,
                         const struct sf_view *view, struct mix_work *work)
{
    struct sf_store *store = answer->store;
    const struct sf_mix *mix = &view->mix;
    float *dev = NULL;
    SF_TRY(mix_rows(answer, lane, view, work));
    if (work->rows > 0) {
        const struct sf_layout *layout = &store->layer[view->layer].layout;
        size_t floats = (size_t)work->rows * (size_t)(layout->k_dim + layout->v_dim);
        SF_TRY(mix_sums(answer, lane, view, work));
        SF_TRY(sf_scratch_items(&store->dev, floats, sizeof(float), &dev));
    }
    struct sf_held before = sf_store_held(store, view->seq, view->layer, view->lane_index);
    struct sf_slots old = sf_view_slots(view), fresh = old;
    int moved[SF_TIERS] = { 0 };
    int32_t *slot;
    SF_TRY(sf_scratch_items(&store->host, (size_t)mix->slots + 1, sizeof *slot, &slot));
    fresh.slot = slot;
    fresh.tier = work->tier;
    SF_TRY(sf_tiers_place(store, &old, work->source, work->tier, mix->slots, slot, moved));
    mix_mirror(&store->pool, &fresh, mix, work, moved);
    sf_status status = work->rows > 0 ? mix_write_sums(store, &fresh, mix, work, dev) : SF_OK;
    if (status == SF_OK) status = sf_tiers_compact(store, &fresh, moved);
    sf_store_book(store, view->seq, view->layer, view->lane_index, before);
    return status;
}

static sf_status apply_mix(struct sf_answer *answer, const struct sf_lane *lane,
                           struct sf_view *view)
{
    struct mix_work work = { 0 };
    SF_TRY(mix_count(answer, lane, &view->mix, &work));
    SF_TRY(mix_run(answer, lane, view, &work));
    count_dropped(answer->store, view->layer, view->seq, view->lane_index, work.evicted,
                  work.merged);
    return SF_OK;
}

/* ---- tiers ---------------------------------------------------------------------------------- */
/* Slots that change their tiers are a mix of one source each.  Afterwards the view names the places
 * that they have now, for the keep or mix that may follow. */
static sf_status apply_tier(struct sf_answer *answer, const struct sf_lane *lane,
                            struct sf_view *view)
{
    struct sf_store *store = answer->store;
    struct sf_scratch_mem *mem = &store->host;
    struct sf_view one = *view;
    struct mix_work work = { 0 };
    size_t slots = (size_t)lane->slots + 1;
    int32_t *ids, moves = 0;
    float *weight;
    SF_TRY(sf_scratch_items(mem, slots, sizeof *ids, &ids));
    SF_TRY(sf_scratch_items(mem, slots, sizeof *weight, &weight));
    for (int32_t s = 0; s <= lane->slots; s++) ids[s] = s;
    for (int32_t s = 0; s < lane->slots; s++) {
        weight[s] = 1;
        moves += view->to_tier[s] != view->tier[s];
    }
    if (moves == 0) return SF_OK;
    one.mix = (struct sf_mix){ .slots = lane->slots, .ptr = ids, .src = ids, .k_weight = weight,
                               .v_weight = weight, .pos = lane->pos, .bias = lane->bias,
                               .tier = view->to_tier };
    SF_TRY(mix_run(answer, lane, &one, &work));
    sf_lane_live_all(&store->pool, view->lane, view->slot, view->tier);
    if (store->layer[view->layer].spec.lane[view->lane_index].replica > 0) return SF_OK;
    view->seq->recoded += moves;
    view->seq->edits++;
    sf_note_change(store, view->layer, view->seq, view->lane_index);
    return SF_OK;
}

/* ---- all or none ---------------------------------------------------------------------------- */
sf_status sf_answer_apply(struct sf_answer *answer)
{
    if (answer->refused != SF_OK)
        return SF_FAIL(answer->refused, "%s", answer->words);
    for (int32_t i = 0; i < answer->spans; i++)
        if (answer->group[i].tier > 0) SF_TRY(sf_group_encode(answer, i));
    for (int32_t i = 0; i < answer->views; i++) {
        struct sf_view *view = &answer->view[i];
        view->lane->slots_keep = answer->shown[i].slots_keep;
        view->lane->slots_trigger = answer->shown[i].slots_trigger;
        if (view->to_tier) SF_TRY(apply_tier(answer, &answer->shown[i], view));
        if (view->edit == SF_EDITS_KEEP) SF_TRY(apply_keep(answer, &answer->shown[i], view));
        if (view->edit == SF_EDITS_MIX) SF_TRY(apply_mix(answer, &answer->shown[i], view));
    }
    return SF_OK;
}
