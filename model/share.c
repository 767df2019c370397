/* model/share.c: dealing KV heads, FFN chunks and vocabulary panels to tensor ranks, and the shapes
 * that follow.
 *
 *   balanced, 3 KV heads of 3 query heads on 2 ranks, 12 chunks:
 *
 *     layer 0   rank 0: KV 0 1 (q 0-5)   chunks 0-5       rank 1: KV 2   (q 6-8)   chunks 6-11
 *     layer 1   rank 0: KV 0   (q 0-2)   chunks 0-5       rank 1: KV 1 2 (q 3-8)   chunks 6-11
 *
 *   the same on 4 ranks, one KV head each, three of them whole and one cut in two:
 *
 *     place     0: KV 0, q 0-1    1: KV 0, q 2    2: KV 1, q 3-5    3: KV 2, q 6-8
 *     layer l   place i is rank (i + l) % 4
 *
 *   by cost, 4 KV heads on 2 ranks, costs 5 1 1 1 in both layers:
 *
 *     layer 0   rank 0: KV 0 3 = 6   rank 1: KV 1 2 = 2      0 -> 0, 1 -> 1, 2 -> 1, 3 -> 0
 *     layer 1   rank 0: KV 1 2 = 8   rank 1: KV 0 3 = 8      0 -> 1, 1 -> 0, 2 -> 0, 3 -> 1
 *
 * Every rank's chunks are consecutive, and so are its heads unless dealt by cost.  Who gets one
 * unit more in layer l depends on the layers before, so layers are always dealt from 0 on, and by
 * cost from the first layer of the stage on: every rank of it comes to the same answer. */
#include "model/share.h"

#include <stdlib.h>
#include <string.h>

enum { HEAD_PANEL_COLS = 1024, LEAF_K_MIN = 128 };

/* ---- dealing ------------------------------------------------------------------------------- */

struct part {                           /* what one rank has of one layer */
    int32_t kv_count, q_count, replica, replicas, chunk_first, chunk_count;
    int32_t kv_part, q_first;           /* replicas > 1: the KV head, and where its part begins */
};
struct deal {
    const struct sf_model_desc *desc;
    enum sf_placement placement;
    const double *head_cost;            /* NULL: by count */
    int32_t ranks, layer;               /* layer: the one that `part` describes; -1 before */
    int32_t stage_first;                /* before it heads are dealt by count */
    int32_t head_turn;                  /* balanced: the next rank to take a head more */
    int32_t *chunks_so_far;             /* [ranks] of the layers dealt */
    double *cost_so_far;                /* [ranks] of the layers dealt by cost */
    struct part *part;                  /* [ranks] */
    int32_t *owner;                     /* [most KV heads of a layer] of each whole KV head */
};

static int32_t round_up(int32_t value, int32_t to) { return (value + to - 1) / to * to; }
static int32_t divide_up(int32_t a, int32_t b) { return (a + b - 1) / b; }

static int32_t chunk_cols_of(const struct sf_model_desc *desc)
{
    if (desc->ffn >= 1024) return round_up(divide_up(desc->ffn, 16), 128);
    return round_up(divide_up(desc->ffn, 8), 16);
}

static int32_t chunks_of(const struct sf_model_desc *desc)
{
    return divide_up(desc->ffn, chunk_cols_of(desc));
}

/* The costs of a layer's heads stand behind those of the layers before. */
static int64_t heads_before(const struct sf_model_desc *desc, int32_t layer)
{
    int64_t heads = 0;
    for (int32_t i = 0; i < layer; i++) heads += desc->layer[i].kv_heads;
    return heads;
}

static int costs_differ(const struct sf_model_desc *desc, const struct sf_placing *placing,
                        int32_t layer_first, int32_t layer_count)
{
    if (placing->rule != SF_PLACE_BALANCED || placing->head_cost == NULL) return 0;
    int64_t first = heads_before(desc, layer_first);
    int64_t end = heads_before(desc, layer_first + layer_count);
    for (int64_t i = first + 1; i < end; i++)
        if (placing->head_cost[i] < placing->head_cost[first] ||
            placing->head_cost[i] > placing->head_cost[first]) return 1;
    return 0;
}

static void deal_end(struct deal *deal)
{
    free(deal->chunks_so_far);
    free(deal->cost_so_far);
    free(deal->part);
    free(deal->owner);
}

/* To deal the layers of a stage, after all before it. */
static sf_status deal_begin(const struct sf_model_desc *desc, const struct sf_placing *placing,
                            int32_t ranks, int32_t layer_first, int32_t layer_count,
                            struct deal *deal)
{
    int32_t heads_most = 0;
    SF_ASSERT(ranks >= 1);
    SF_ASSERT(layer_first >= 0 && layer_count >= 0 && layer_count <= desc->layers - layer_first);
    for (int32_t i = 0; i < desc->layers; i++) {
        if (ranks > desc->layer[i].q_heads)
            return SF_FAIL(SF_INVALID, "tensor_parallel_size %d is more than the %d query heads of "
                           "layer %d", ranks, desc->layer[i].q_heads, i);
        if (desc->layer[i].kv_heads > heads_most) heads_most = desc->layer[i].kv_heads;
    }
    *deal = (struct deal){ .desc = desc, .placement = placing->rule, .ranks = ranks, .layer = -1,
                           .stage_first = layer_first };
    if (costs_differ(desc, placing, layer_first, layer_count)) deal->head_cost = placing->head_cost;
    deal->chunks_so_far = calloc((size_t)ranks, sizeof *deal->chunks_so_far);
    deal->cost_so_far = calloc((size_t)ranks, sizeof *deal->cost_so_far);
    deal->part = calloc((size_t)ranks, sizeof *deal->part);
    deal->owner = calloc((size_t)heads_most + 1, sizeof *deal->owner);
    if (deal->chunks_so_far == NULL || deal->cost_so_far == NULL || deal->part == NULL ||
        deal->owner == NULL) {
        deal_end(deal);
        return SF_FAIL(SF_NO_MEMORY, "no memory to deal %d ranks", ranks);
    }
    return SF_OK;
}

/* At least as many KV heads as ranks: whole heads; `more` of the ranks take one more. */
static void deal_by_count(struct deal *deal, const struct sf_layer_desc *layer)
{
    int32_t each = layer->kv_heads / deal->ranks, more = layer->kv_heads % deal->ranks;
    int32_t group = layer->q_heads / layer->kv_heads, next = 0;
    int32_t turn = deal->placement == SF_PLACE_BALANCED ? deal->head_turn : 0;
    for (int32_t r = 0; r < deal->ranks; r++) {
        int32_t place = (r - turn + deal->ranks) % deal->ranks;
        int32_t count = each + (place < more);
        deal->part[r] = (struct part){ .kv_count = count, .q_count = count * group, .replicas = 1 };
        for (int32_t i = 0; i < count; i++) deal->owner[next++] = r;
    }
    deal->head_turn = (deal->head_turn + more) % deal->ranks;
}

/* The same counts; which heads, and who takes one more, level the cost. */
static void deal_by_cost(struct deal *deal, const struct sf_layer_desc *layer)
{
    const double *cost = deal->head_cost + heads_before(deal->desc, deal->layer);
    int32_t each = layer->kv_heads / deal->ranks, more = layer->kv_heads % deal->ranks;
    int32_t group = layer->q_heads / layer->kv_heads;
    for (int32_t r = 0; r < deal->ranks; r++) deal->part[r] = (struct part){ .replicas = 1 };
    for (int32_t h = 0; h < layer->kv_heads; h++) deal->owner[h] = -1;
    for (int32_t i = 0; i < layer->kv_heads; i++) {
        int32_t head = -1, best = -1;
        for (int32_t h = 0; h < layer->kv_heads; h++)
            if (deal->owner[h] < 0 && (head < 0 || cost[h] > cost[head])) head = h;
        for (int32_t r = 0; r < deal->ranks; r++)
            if (deal->part[r].kv_count < each + (more > 0) &&
                (best < 0 || deal->cost_so_far[r] < deal->cost_so_far[best])) best = r;
        deal->owner[head] = best;
        deal->cost_so_far[best] += cost[head];
        if (deal->part[best].kv_count++ == each) more--;
        deal->part[best].q_count += group;
    }
}

/* More ranks than KV heads: each rank has one KV head and some of its query heads. */
static void deal_replicas(struct deal *deal, const struct sf_layer_desc *layer)
{
    int32_t group = layer->q_heads / layer->kv_heads;
    int32_t each = deal->ranks / layer->kv_heads, more = deal->ranks % layer->kv_heads;
    int32_t even = more == 0 && group % each == 0;
    int32_t turn = deal->placement == SF_PLACE_BALANCED && !even ? deal->layer % deal->ranks : 0;
    int32_t place = 0;
    for (int32_t head = 0; head < layer->kv_heads; head++) {
        int32_t replicas = each + (head < more), q_next = head * group;
        for (int32_t i = 0; i < replicas; i++, place++) {
            int32_t q_count = sf_share_copy_q_heads(group, replicas, i);
            int32_t rank = (place + turn) % deal->ranks;
            deal->part[rank] =
                (struct part){ .kv_part = head, .kv_count = 1, .q_first = q_next,
                               .q_count = q_count, .replica = i, .replicas = replicas };
            deal->owner[head] = rank;
            q_next += q_count;
        }
    }
}

/* Chunks left over go one each to the ranks with fewer query heads in this layer, among those to
 * the ranks with fewer chunks in the layers before, among those to the lower rank. */
static void deal_chunks(struct deal *deal)
{
    int32_t chunks = chunks_of(deal->desc), next = 0;
    int32_t each = chunks / deal->ranks, more = chunks % deal->ranks;
    for (int32_t r = 0; r < deal->ranks; r++) deal->part[r].chunk_count = each;
    for (int32_t i = 0; i < more; i++) {
        int32_t best = -1;
        for (int32_t r = 0; r < deal->ranks; r++) {
            const struct part *p = &deal->part[r], *b = best < 0 ? NULL : &deal->part[best];
            if (p->chunk_count > each) continue;
            int better = b == NULL;
            if (!better && deal->placement == SF_PLACE_BALANCED)
                better = p->q_count != b->q_count
                             ? p->q_count < b->q_count
                             : deal->chunks_so_far[r] < deal->chunks_so_far[best];
            if (better) best = r;
        }
        deal->part[best].chunk_count++;
    }
    for (int32_t r = 0; r < deal->ranks; r++) {
        deal->part[r].chunk_first = next;
        next += deal->part[r].chunk_count;
        deal->chunks_so_far[r] += deal->part[r].chunk_count;
    }
    SF_ASSERT(next == chunks);
}

static void deal_next_layer(struct deal *deal)
{
    const struct sf_layer_desc *layer = &deal->desc->layer[++deal->layer];
    int by_cost = deal->head_cost != NULL && deal->layer >= deal->stage_first;
    if (layer->kv_heads < deal->ranks) deal_replicas(deal, layer);
    else if (by_cost) deal_by_cost(deal, layer);
    else deal_by_count(deal, layer);
    deal_chunks(deal);
}

/* How many query heads of a KV head the rank computes, from which on. */
static int32_t q_heads_of(const struct deal *deal, int32_t rank, int32_t kv_head, int32_t *first)
{
    const struct sf_layer_desc *layer = &deal->desc->layer[deal->layer];
    const struct part *part = &deal->part[rank];
    int32_t group = layer->q_heads / layer->kv_heads;
    *first = part->replicas > 1 ? part->q_first : kv_head * group;
    if (part->replicas > 1) return part->kv_part == kv_head ? part->q_count : 0;
    return deal->owner[kv_head] == rank ? group : 0;
}

/* ---- shares -------------------------------------------------------------------------------- */

static sf_status add_layer(struct sf_share *share, int32_t layer_local, const struct deal *deal)
{
    const struct part *part = &deal->part[share->tp_rank];
    int32_t kv_at = share->kv_ptr[layer_local], chunk_at = share->chunk_ptr[layer_local];
    int32_t kv_end = kv_at + part->kv_count, chunk_end = chunk_at + part->chunk_count;
    void *kv = realloc(share->kv, (size_t)(kv_end + 1) * sizeof *share->kv);
    if (kv != NULL) share->kv = kv;
    void *chunk = realloc(share->chunk, (size_t)(chunk_end + 1) * sizeof *share->chunk);
    if (chunk != NULL) share->chunk = chunk;
    if (kv == NULL || chunk == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a rank's share");

    for (int32_t h = 0; h < deal->desc->layer[deal->layer].kv_heads; h++) {
        struct sf_kv_share head = { .kv_head = h, .replica = part->replica,
                                    .replicas = part->replicas };
        head.q_count = q_heads_of(deal, share->tp_rank, h, &head.q_first);
        if (head.q_count > 0) share->kv[kv_at++] = head;
    }
    SF_ASSERT(kv_at == kv_end);
    for (int32_t i = 0; i < part->chunk_count; i++)
        share->chunk[chunk_at + i] = part->chunk_first + i;
    share->kv_ptr[layer_local + 1] = kv_end;
    share->chunk_ptr[layer_local + 1] = chunk_end;
    return SF_OK;
}

/* Whole panels of rows, as even as they go, the first ranks taking one more. */
static void deal_vocabulary(const struct sf_model_desc *desc, struct sf_share *share)
{
    int64_t panels = divide_up(desc->vocab, HEAD_PANEL_COLS), size = share->tp_size;
    int64_t each = panels / size, more = panels % size, rank = share->tp_rank;
    int64_t first = rank * each + (rank < more ? rank : more), count = each + (rank < more);
    int64_t row_first = first * HEAD_PANEL_COLS, row_end = (first + count) * HEAD_PANEL_COLS;
    if (row_first > desc->vocab) row_first = desc->vocab;
    if (row_end > desc->vocab) row_end = desc->vocab;
    share->vocab_first = (int32_t)row_first;
    share->vocab_count = (int32_t)(row_end - row_first);
}

static sf_status begin_share(struct sf_share *share, const struct sf_model_desc *desc)
{
    share->first_stage = share->layer_first == 0;
    share->last_stage = share->layer_first + share->layer_count == desc->layers;
    share->chunk_cols = chunk_cols_of(desc);
    share->chunks = chunks_of(desc);
    share->kv_ptr = calloc((size_t)share->layer_count + 1, sizeof *share->kv_ptr);
    share->chunk_ptr = calloc((size_t)share->layer_count + 1, sizeof *share->chunk_ptr);
    if (share->kv_ptr == NULL || share->chunk_ptr == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for a rank's share");
    if (share->last_stage) deal_vocabulary(desc, share);
    return SF_OK;
}

/* The shares of tensor ranks rank_first.. of one stage, from one dealing; shares[ranks]. */
static sf_status make_shares(const struct sf_model_desc *desc, const struct sf_placing *placing,
                             int32_t tp_size, int32_t rank_first, int32_t ranks,
                             int32_t layer_first, int32_t layer_count, struct sf_share *shares)
{
    SF_ASSERT(layer_first >= 0 && layer_count >= 0 && layer_count <= desc->layers - layer_first);
    struct deal deal;
    SF_TRY(deal_begin(desc, placing, tp_size, layer_first, layer_count, &deal));
    sf_status status = SF_OK;
    for (int32_t i = 0; i < ranks; i++) {
        shares[i] = (struct sf_share){ .tp_rank = rank_first + i, .tp_size = tp_size,
                                       .layer_first = layer_first, .layer_count = layer_count };
        if (status == SF_OK) status = begin_share(&shares[i], desc);
    }
    for (int32_t l = 0; status == SF_OK && l < layer_first + layer_count; l++) {
        deal_next_layer(&deal);
        for (int32_t i = 0; status == SF_OK && i < ranks && l >= layer_first; i++)
            status = add_layer(&shares[i], l - layer_first, &deal);
    }
    deal_end(&deal);
    for (int32_t i = 0; status != SF_OK && i < ranks; i++) sf_share_free(&shares[i]);
    return status;
}

sf_status sf_share_make(const struct sf_model_desc *desc, const struct sf_placing *placing,
                        int32_t tp_size, int32_t tp_rank, int32_t layer_first, int32_t layer_count,
                        struct sf_share *share_out)
{
    struct sf_share share;
    SF_ASSERT(tp_rank >= 0 && tp_rank < tp_size);
    SF_TRY(make_shares(desc, placing, tp_size, tp_rank, 1, layer_first, layer_count, &share));
    *share_out = share;
    return SF_OK;
}

sf_status sf_share_make_group(const struct sf_model_desc *desc, const struct sf_placing *placing,
                              int32_t tp_size, int32_t layer_first, int32_t layer_count,
                              struct sf_share *shares_out)
{
    return make_shares(desc, placing, tp_size, 0, tp_size, layer_first, layer_count,
                       shares_out);
}

void sf_share_free(struct sf_share *share)
{
    free(share->kv_ptr);
    free(share->kv);
    free(share->chunk_ptr);
    free(share->chunk);
    *share = (struct sf_share){ 0 };
}

int32_t sf_share_q_heads(const struct sf_share *share, int32_t layer_local)
{
    int32_t heads = 0;
    for (int32_t i = share->kv_ptr[layer_local]; i < share->kv_ptr[layer_local + 1]; i++)
        heads += share->kv[i].q_count;
    return heads;
}

/* What the dealing above gives to the rank that has most; the placement only says which that is. */
int32_t sf_share_units_most(const struct sf_model_desc *desc, const struct sf_share *share)
{
    int32_t ranks = share->tp_size, most = divide_up(share->chunks, ranks);
    for (int32_t l = 0; l < share->layer_count; l++) {
        const struct sf_layer_desc *layer = &desc->layer[share->layer_first + l];
        int32_t group = layer->q_heads / layer->kv_heads;
        int32_t heads = layer->kv_heads >= ranks ? divide_up(layer->kv_heads, ranks) * group
                                                 : divide_up(group, ranks / layer->kv_heads);
        if (heads > most) most = heads;
    }
    return most;
}

/* Leaves first..first + count of the sum are the rank's slices from `at` on; the slices so far. */
static int32_t set_leaves(int32_t *owner, int32_t *local, int32_t first, int32_t count,
                          int32_t rank, int32_t at)
{
    for (int32_t i = 0; i < count; i++) {
        owner[first + i] = rank;
        local[first + i] = at + i;
    }
    return at + count;
}

sf_status sf_share_order(const struct sf_model_desc *desc, const struct sf_placing *placing,
                         const struct sf_share *share, int32_t layer_local, enum sf_mat_kind kind,
                         int fixed, int32_t *owner, int32_t *local, int32_t *leaves_out)
{
    SF_ASSERT(kind == SF_MAT_O || kind == SF_MAT_DOWN);
    SF_ASSERT(layer_local >= 0 && layer_local < share->layer_count);
    struct deal deal;
    SF_TRY(deal_begin(desc, placing, share->tp_size, share->layer_first, share->layer_count,
                      &deal));
    while (deal.layer < share->layer_first + layer_local) deal_next_layer(&deal);
    const struct sf_layer_desc *layer = &desc->layer[deal.layer];
    int32_t leaves = 0;
    for (int32_t r = 0; r < share->tp_size; r++) {
        const struct part *part = &deal.part[r];
        int32_t count = kind == SF_MAT_O ? part->q_count : part->chunk_count, first, at = 0;
        if (!fixed && count > 0) set_leaves(owner, local, leaves, 1, r, 0);
        if (fixed && kind == SF_MAT_DOWN)
            set_leaves(owner, local, part->chunk_first, count, r, 0);
        for (int32_t h = 0; fixed && kind == SF_MAT_O && h < layer->kv_heads; h++) {
            int32_t q_count = q_heads_of(&deal, r, h, &first);
            at = set_leaves(owner, local, first, q_count, r, at);
        }
        leaves += fixed ? count : count > 0;
    }
    *leaves_out = leaves;
    deal_end(&deal);
    return SF_OK;
}

/* ---- shapes -------------------------------------------------------------------------------- */

/* Panels of about 256 columns; at least four of them where the columns allow, for the threads. */
static int32_t free_panel(int32_t cols)
{
    int32_t quarter = cols / 4;
    if (cols >= 512) return 256;
    if (quarter >= 64) return quarter / 64 * 64;
    return quarter >= 16 ? quarter / 16 * 16 : 16;
}

static int32_t common_divisor(int32_t a, int32_t b)
{
    while (b != 0) {
        int32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static int32_t leaf_k(int32_t k) { return k > LEAF_K_MIN ? k : LEAF_K_MIN; }

/* Row-parallel: `units` leaves of `unit_k` inputs each here. */
static void row_parallel(struct sf_mat_shape *shape, int32_t d_model, int32_t units,
                         int32_t unit_k)
{
    shape->cols = d_model;
    shape->k_slice = shape->fixed ? leaf_k(unit_k) : unit_k * (units > 0 ? units : 1);
    shape->slices = shape->fixed ? units : units > 0;
    shape->panel_cols = !shape->fixed ? free_panel(d_model) : d_model <= 1024 ? d_model : 1024;
}

void sf_share_mat(const struct sf_model_desc *desc, const struct sf_share *share,
                  enum sf_mat_kind kind, int32_t layer_local, enum sf_dtype dtype, int fixed,
                  int32_t rows_max, struct sf_mat_shape *shape_out)
{
    struct sf_mat_shape shape = { .k_slice = desc->d_model, .slices = 1, .dtype = dtype,
                                  .fixed = fixed != 0, .rows_max = rows_max };
    if (kind == SF_MAT_HEAD) {
        shape.cols = share->vocab_count;
        shape.panel_cols = HEAD_PANEL_COLS;
        *shape_out = shape;
        return;
    }
    SF_ASSERT(layer_local >= 0 && layer_local < share->layer_count);
    const struct sf_layer_desc *layer = &desc->layer[share->layer_first + layer_local];
    int32_t q_heads = sf_share_q_heads(share, layer_local);
    int32_t kv_heads = share->kv_ptr[layer_local + 1] - share->kv_ptr[layer_local];
    int32_t chunks = share->chunk_ptr[layer_local + 1] - share->chunk_ptr[layer_local];
    switch (kind) {
    case SF_MAT_QKV:
        shape.cols = (q_heads + kv_heads) * layer->k_dim + kv_heads * layer->v_dim;
        shape.panel_cols = fixed ? common_divisor(layer->k_dim, layer->v_dim)
                                 : free_panel(shape.cols);
        break;
    case SF_MAT_O: row_parallel(&shape, desc->d_model, q_heads, layer->v_dim); break;
    case SF_MAT_GATE_UP:
        shape.cols = 2 * chunks * share->chunk_cols;
        shape.panel_cols = fixed ? share->chunk_cols : free_panel(shape.cols);
        break;
    case SF_MAT_DOWN: row_parallel(&shape, desc->d_model, chunks, share->chunk_cols); break;
    case SF_MAT_HEAD: break;
    }
    *shape_out = shape;
}

int32_t sf_share_bias_cols(const struct sf_model_desc *desc, const struct sf_share *share,
                           enum sf_mat_kind kind, int32_t layer_local)
{
    struct sf_mat_shape shape;
    int has = (kind == SF_MAT_QKV && (desc->bias_q || desc->bias_k || desc->bias_v)) ||
              (kind == SF_MAT_O && desc->bias_o) ||
              ((kind == SF_MAT_GATE_UP || kind == SF_MAT_DOWN) && desc->bias_ffn);
    if (!has) return 0;
    sf_share_mat(desc, share, kind, layer_local, SF_F32, 0, 1, &shape);
    return shape.cols;
}

int64_t sf_share_weight_bytes(const struct sf_model_desc *desc, const struct sf_share *share,
                              const struct sf_mat_shape *like,
                              int64_t (*mat_bytes)(const struct sf_mat_shape *))
{
    static const enum sf_mat_kind kinds[] = { SF_MAT_QKV, SF_MAT_O, SF_MAT_GATE_UP, SF_MAT_DOWN };
    const int64_t norm_bytes = (int64_t)desc->d_model * (int64_t)sizeof(float);
    struct sf_mat_shape shape;
    int64_t bytes = 0;
    for (int32_t l = 0; l < share->layer_count; l++) {
        for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
            sf_share_mat(desc, share, kinds[k], l, like->dtype, like->fixed, like->rows_max,
                         &shape);
            shape.int8 = like->int8;
            if (shape.cols > 0 && shape.slices > 0) bytes += mat_bytes(&shape);
            bytes += (int64_t)sizeof(float) * sf_share_bias_cols(desc, share, kinds[k], l);
        }
        bytes += 2 * norm_bytes;
    }
    if (share->last_stage) {
        sf_share_mat(desc, share, SF_MAT_HEAD, 0, like->dtype, like->fixed, like->rows_max, &shape);
        shape.int8 = like->int8;
        if (shape.cols > 0) bytes += mat_bytes(&shape);
        bytes += norm_bytes;
    }
    return bytes;
}
