/* tests/unit/model/share.c: dealing a model to tensor ranks loses and doubles nothing, levels out,
 * and its shapes are those that the contract names.
 *
 * For tp 1 to 9, both placements and several models: every query head and chunk is computed exactly
 * once in every layer, KV heads exactly once or as numbered replicas, vocabulary rows exactly once;
 * the order of leaves points at those who hold them; a share of a stage equals that part of the
 * share of all layers; the shares of a group are those made one by one.  The same for random costs
 * of heads, dealt as the rule says when it is followed word by word; equal costs change nothing. */
#include "model/share.h"

#include <stdlib.h>

#include "base/rng.h"
#include "tests/check.h"

enum { LAYERS = 12, RANKS_MAX = 9, UNITS_MAX = 64 };

static const struct sf_placing balanced = { SF_PLACE_BALANCED, NULL };
static const struct sf_placing identity = { SF_PLACE_IDENTITY, NULL };

struct shape { int32_t q_heads, kv_heads, ffn, vocab; };
static const struct shape shapes[] = { { 9, 3, 1536, 49152 }, { 32, 8, 14336, 128256 },
                                       { 12, 12, 100, 1025 }, { 16, 2, 96, 999 },
                                       { 10, 5, 1030, 5000 }, { 9, 1, 17, 3000 } };
static struct sf_layer_desc layers[LAYERS];

static struct sf_model_desc make_desc(struct shape s)
{
    for (int i = 0; i < LAYERS; i++)
        layers[i] = (struct sf_layer_desc){ s.q_heads, s.kv_heads, 64, 64, 0 };
    return (struct sf_model_desc){ .layers = LAYERS, .d_model = 576, .ffn = s.ffn, .vocab = s.vocab,
                                   .layer = layers };
}

/* One layer over all ranks.  runs: each rank's heads are consecutive. */
static void check_layer(const struct sf_model_desc *desc, struct sf_share *share, int32_t ranks,
                        int32_t l, int runs)
{
    int32_t q_owner[UNITS_MAX], kv_copies[UNITS_MAX] = { 0 }, kv_seen[UNITS_MAX] = { 0 };
    int32_t chunk_owner[UNITS_MAX], q_done = 0, chunks_done = 0;
    const struct sf_layer_desc *layer = &desc->layer[l];
    int32_t group = layer->q_heads / layer->kv_heads, bad = 0;
    for (int i = 0; i < UNITS_MAX; i++) q_owner[i] = chunk_owner[i] = -1;
    for (int32_t r = 0; r < ranks; r++) {
        int32_t last_kv = -1, q_next = -1;
        for (int32_t i = share[r].kv_ptr[l]; i < share[r].kv_ptr[l + 1]; i++) {
            const struct sf_kv_share *kv = &share[r].kv[i];
            bad += kv->kv_head <= last_kv || kv->kv_head >= layer->kv_heads || kv->q_count < 1;
            bad += runs && q_next >= 0 && kv->q_first != q_next;
            last_kv = kv->kv_head;
            q_next = kv->q_first + kv->q_count;
            kv_copies[kv->kv_head] = kv->replicas;
            bad += kv->replica < 0 || kv->replica >= kv->replicas;
            bad += (kv_seen[kv->kv_head] & 1 << kv->replica) != 0;
            kv_seen[kv->kv_head] |= 1 << kv->replica;
            for (int32_t q = kv->q_first; q < q_next; q++) {
                bad += q_owner[q] != -1 || q / group != kv->kv_head;
                q_owner[q] = r;
                q_done++;
            }
        }
        int32_t heads = share[r].kv_ptr[l + 1] - share[r].kv_ptr[l], each = layer->kv_heads / ranks;
        bad += last_kv < 0 || heads < each;
        bad += heads > (each == 0 ? 1 : each + (layer->kv_heads % ranks > 0));
        for (int32_t i = share[r].chunk_ptr[l]; i < share[r].chunk_ptr[l + 1]; i++) {
            bad += chunk_owner[share[r].chunk[i]] != -1;
            bad += i > share[r].chunk_ptr[l] && share[r].chunk[i] != share[r].chunk[i - 1] + 1;
            chunk_owner[share[r].chunk[i]] = r;
            chunks_done++;
        }
    }
    for (int32_t h = 0; h < layer->kv_heads; h++) {
        bad += kv_seen[h] != (1 << kv_copies[h]) - 1;
        bad += ranks <= layer->kv_heads && kv_copies[h] != 1;
        bad += ranks > layer->kv_heads && (kv_copies[h] < ranks / layer->kv_heads ||
                                           kv_copies[h] > ranks / layer->kv_heads + 1);
    }
    SF_CHECK_INT(bad, 0);
    SF_CHECK_INT(q_done, layer->q_heads);
    SF_CHECK_INT(chunks_done, share[0].chunks);
}

/* Number of the query head that is the rank's `local`-th. */
static int32_t q_head_at(const struct sf_share *share, int32_t l, int32_t local)
{
    for (int32_t i = share->kv_ptr[l]; i < share->kv_ptr[l + 1]; i++) {
        if (local < share->kv[i].q_count) return share->kv[i].q_first + local;
        local -= share->kv[i].q_count;
    }
    return -1;
}

/* Layer l of the shares. */
static void check_order(const struct sf_model_desc *desc, const struct sf_placing *placing,
                        struct sf_share *share, int32_t ranks, int32_t l)
{
    int32_t owner[UNITS_MAX], local[UNITS_MAX], leaves = 0, bad = 0;
    const struct sf_share *any = &share[l % ranks];
    SF_CHECK_OK(sf_share_order(desc, placing, any, l, SF_MAT_O, 1, owner, local, &leaves));
    SF_CHECK_INT(leaves, desc->layer[l].q_heads);
    for (int32_t q = 0; q < leaves; q++) bad += q_head_at(&share[owner[q]], l, local[q]) != q;
    SF_CHECK_OK(sf_share_order(desc, placing, any, l, SF_MAT_O, 0, owner, local, &leaves));
    SF_CHECK_INT(leaves, ranks);
    SF_CHECK_OK(sf_share_order(desc, placing, any, l, SF_MAT_DOWN, 1, owner, local, &leaves));
    SF_CHECK_INT(leaves, share[0].chunks);
    for (int32_t c = 0; c < leaves; c++) {
        const struct sf_share *s = &share[owner[c]];
        bad += local[c] >= s->chunk_ptr[l + 1] - s->chunk_ptr[l];
        bad += s->chunk[s->chunk_ptr[l] + local[c]] != c;
    }
    SF_CHECK_OK(sf_share_order(desc, placing, any, l, SF_MAT_DOWN, 0, owner, local, &leaves));
    for (int32_t i = 0; i < leaves; i++) {
        struct sf_mat_shape shape;
        sf_share_mat(desc, &share[owner[i]], SF_MAT_DOWN, l, SF_F32, 0, 1, &shape);
        bad += local[i] != 0 || shape.slices != 1;
    }
    SF_CHECK_INT(leaves, ranks < share[0].chunks ? ranks : share[0].chunks);
    SF_CHECK_INT(bad, 0);
}

static void check_vocabulary(const struct sf_model_desc *desc, const struct sf_share *share,
                             int32_t ranks)
{
    int32_t next = 0, bad = 0, most = 0, least = INT32_MAX;
    for (int32_t r = 0; r < ranks; r++) {
        bad += share[r].vocab_first != next || share[r].vocab_first > desc->vocab;
        bad += share[r].vocab_count > 0 && share[r].vocab_first % 1024 != 0;
        next += share[r].vocab_count;
        int32_t panels = (share[r].vocab_count + 1023) / 1024;
        if (panels > most) most = panels;
        if (panels < least) least = panels;
    }
    SF_CHECK_INT(bad, 0);
    SF_CHECK_INT(next, desc->vocab);
    SF_CHECK(most - least <= 1);
}

/* Over 12 layers every count of ranks here has come round; what a rank has had may differ by one
 * unit of what a layer deals. */
static void check_level(const struct sf_model_desc *desc, struct sf_share *share, int32_t ranks)
{
    int32_t most[3] = { 0 }, least[3] = { INT32_MAX, INT32_MAX, INT32_MAX };
    for (int32_t r = 0; r < ranks; r++) {
        int32_t total[3] = { share[r].kv_ptr[LAYERS], 0, share[r].chunk_ptr[LAYERS] };
        for (int32_t l = 0; l < LAYERS; l++) total[1] += sf_share_q_heads(&share[r], l);
        for (int i = 0; i < 3; i++) {
            if (total[i] > most[i]) most[i] = total[i];
            if (total[i] < least[i]) least[i] = total[i];
        }
    }
    int32_t group = desc->layer[0].q_heads / desc->layer[0].kv_heads;
    if (ranks <= desc->layer[0].kv_heads) SF_CHECK(most[0] - least[0] <= 1);
    SF_CHECK(most[1] - least[1] <= group);
    SF_CHECK(most[2] - least[2] <= 2);
}

/* A stage of one layer, where the ranks do not take turns: all of them must know what the one with
 * most has, or the windows of a sum with fixed leaves would not fit each other. */
static void check_most(const struct sf_model_desc *desc, const struct sf_placing *placing,
                       struct sf_share *share, int32_t ranks, int32_t l)
{
    int32_t most = 0, bad = 0;
    for (int32_t r = 0; r < ranks; r++) {
        int32_t heads = sf_share_q_heads(&share[r], l);
        int32_t chunks = share[r].chunk_ptr[l + 1] - share[r].chunk_ptr[l];
        if (heads > most) most = heads;
        if (chunks > most) most = chunks;
    }
    for (int32_t r = 0; r < ranks; r++) {
        struct sf_share one;
        SF_MUST(sf_share_make(desc, placing, ranks, r, l, 1, &one));
        bad += sf_share_units_most(desc, &one) != most;
        sf_share_free(&one);
    }
    SF_CHECK_INT(bad, 0);
}

/* Layers first.. of a stage are those layers of the whole. */
static void check_stage(const struct sf_share *stage, const struct sf_share *whole, int32_t first)
{
    int32_t end = first + stage->layer_count;
    int32_t kv_at = whole->kv_ptr[first], kv = whole->kv_ptr[end] - kv_at;
    int32_t chunk_at = whole->chunk_ptr[first], chunks = whole->chunk_ptr[end] - chunk_at;
    SF_CHECK_INT(stage->kv_ptr[stage->layer_count], kv);
    SF_CHECK_INT(stage->chunk_ptr[stage->layer_count], chunks);
    SF_CHECK(memcmp(stage->kv, whole->kv + kv_at, (size_t)kv * sizeof *stage->kv) == 0);
    SF_CHECK(memcmp(stage->chunk, whole->chunk + chunk_at,
                    (size_t)chunks * sizeof *stage->chunk) == 0);
}

static void check_deal(const struct sf_model_desc *desc, const struct sf_placing *placing,
                       int32_t ranks)
{
    struct sf_share share[RANKS_MAX], other;
    double cost[LAYERS * UNITS_MAX];
    for (int32_t i = 0; i < LAYERS * UNITS_MAX; i++) cost[i] = 12.5;
    struct sf_placing alike = { placing->rule, cost };
    for (int32_t r = 0; r < ranks; r++)
        SF_MUST(sf_share_make(desc, placing, ranks, r, 0, LAYERS, &share[r]));
    for (int32_t l = 0; l < LAYERS; l++) {
        check_layer(desc, share, ranks, l, 1);
        check_order(desc, placing, share, ranks, l);
        check_most(desc, placing, share, ranks, l);
    }
    check_vocabulary(desc, share, ranks);
    if (placing->rule == SF_PLACE_BALANCED) check_level(desc, share, ranks);
    for (int32_t r = 0; r < ranks; r++) {
        SF_MUST(sf_share_make(desc, placing, ranks, r, 5, 4, &other));
        check_stage(&other, &share[r], 5);
        SF_CHECK(!other.first_stage && !other.last_stage && other.vocab_count == 0);
        sf_share_free(&other);
        /* Costs that differ in other stages alone are no reason either. */
        cost[4 * desc->layer[0].kv_heads] = 99;
        SF_MUST(sf_share_make(desc, &alike, ranks, r, 5, 4, &other));
        check_stage(&other, &share[r], 5);
        sf_share_free(&other);
        if (placing->rule == SF_PLACE_BALANCED) cost[4 * desc->layer[0].kv_heads] = 12.5;
        SF_MUST(sf_share_make(desc, &alike, ranks, r, 0, LAYERS, &other));
        check_stage(&other, &share[r], 0);
        sf_share_free(&other);
    }
    for (int32_t r = 0; r < ranks; r++) sf_share_free(&share[r]);
}

static void test_deals(void)
{
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int32_t ranks = 1; ranks <= RANKS_MAX; ranks++) {
            struct sf_model_desc desc = make_desc(shapes[s]);
            check_deal(&desc, &balanced, ranks);
            check_deal(&desc, &identity, ranks);
        }
}

/* ---- by cost --------------------------------------------------------------------------------- */

/* The rule read word by word; holder[h]: rank of KV head h of the layers, counted from the stage's
 * first. */
static void read_rule(const double *cost, int32_t layers_here, int32_t heads, int32_t ranks,
                      int32_t *holder)
{
    for (int32_t l = 0; l < layers_here; l++) {
        int32_t slots[RANKS_MAX], roomy = heads % ranks;        /* ranks that may take one more */
        int32_t given[UNITS_MAX] = { 0 };
        for (int32_t r = 0; r < ranks; r++) slots[r] = heads / ranks;
        for (int32_t i = 0; i < heads; i++) {
            int32_t dearest = -1, taker = -1;
            for (int32_t h = heads - 1; h >= 0; h--)
                if (!given[h] && (dearest < 0 || cost[l * heads + h] >= cost[l * heads + dearest]))
                    dearest = h;
            double least = INFINITY;
            for (int32_t r = 0; r < ranks; r++) {
                double total = 0;
                for (int32_t h = 0; h < (l + 1) * heads; h++)
                    if (holder[h] == r && (h < l * heads || given[h - l * heads])) total += cost[h];
                if ((slots[r] > 0 || (slots[r] == 0 && roomy > 0)) && total < least) {
                    least = total;
                    taker = r;
                }
            }
            if (slots[taker]-- == 0) roomy--;
            given[dearest] = 1;
            holder[l * heads + dearest] = taker;
        }
    }
}

static void check_by_cost(const struct sf_model_desc *desc, const struct sf_placing *placing,
                          int32_t ranks, int32_t first, int32_t count)
{
    struct sf_share share[RANKS_MAX];
    int32_t heads = desc->layer[0].kv_heads, holder[LAYERS * UNITS_MAX], bad = 0;
    const double *cost = placing->head_cost + first * heads;
    int differ = 0;
    for (int32_t i = 0; i < count * heads; i++) differ |= cost[i] < cost[0] || cost[i] > cost[0];
    for (int32_t r = 0; r < ranks; r++)
        SF_MUST(sf_share_make(desc, placing, ranks, r, first, count, &share[r]));
    for (int32_t l = 0; l < count; l++) {
        check_layer(desc, share, ranks, l, 0);
        check_order(desc, placing, share, ranks, l);
    }
    if (differ && ranks <= heads) {
        for (int32_t i = 0; i < LAYERS * UNITS_MAX; i++) holder[i] = -1;
        read_rule(cost, count, heads, ranks, holder);
        for (int32_t r = 0; r < ranks; r++)
            for (int32_t l = 0; l < count; l++)
                for (int32_t i = share[r].kv_ptr[l]; i < share[r].kv_ptr[l + 1]; i++)
                    bad += holder[l * heads + share[r].kv[i].kv_head] != r;
    }
    SF_CHECK_INT(bad, 0);
    for (int32_t r = 0; r < ranks; r++) sf_share_free(&share[r]);
}

static void test_by_cost(void)
{
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int32_t ranks = 1; ranks <= RANKS_MAX; ranks++)
            for (uint64_t round = 0; round < 6; round++) {
                struct sf_model_desc desc = make_desc(shapes[s]);
                double cost[LAYERS * UNITS_MAX];
                uint64_t kinds = 2 + round;     /* few prices: many are equal */
                for (uint64_t i = 0; i < LAYERS * UNITS_MAX; i++)
                    cost[i] = 1 + (double)(sf_rng_u64(11, round + 10 * s, i) % kinds);
                struct sf_placing placing = { SF_PLACE_BALANCED, cost };
                check_by_cost(&desc, &placing, ranks, 0, LAYERS);
                check_by_cost(&desc, &placing, ranks, 5, 4);
            }
}

/* The example of share.c: 5 1 1 1 twice, two ranks. */
static void test_small_example(void)
{
    static const int32_t want[2][4] = { { 0, 3, 1, 2 }, { 1, 2, 0, 3 } };
    struct sf_model_desc desc = make_desc((struct shape){ 8, 4, 100, 999 });
    double cost[LAYERS * 4] = { 5, 1, 1, 1, 5, 1, 1, 1 };
    struct sf_placing placing = { SF_PLACE_BALANCED, cost };
    for (int32_t r = 0; r < 2; r++) {
        struct sf_share share;
        SF_MUST(sf_share_make(&desc, &placing, 2, r, 0, 2, &share));
        for (int32_t i = 0; i < 4; i++) SF_CHECK_INT(share.kv[i].kv_head, want[r][i]);
        SF_CHECK_INT(share.kv[1].q_first, 2 * want[r][1]);
        sf_share_free(&share);
    }
}

/* 39 random retrieval heads of 32 layers x 8, at 32,768 tokens, others keep a fifth: what the
 * fullest rank holds of the mean.  A draw is anywhere about these means; placed, all are level. */
static void test_retrieval_heads(void)
{
    enum { DRAWS = 40, HEADS = 8, DEEP = 32, TOKENS = 32768 };
    static const struct { int32_t ranks; double low, high; } table[] = {
        { 2, 1.02, 1.09 }, { 4, 1.08, 1.19 }, { 8, 1.19, 1.29 } };
    static struct sf_layer_desc deep[DEEP];
    for (int i = 0; i < DEEP; i++) deep[i] = (struct sf_layer_desc){ 32, HEADS, 128, 128, 0 };
    struct sf_model_desc desc = { .layers = DEEP, .d_model = 4096, .ffn = 14336, .vocab = 128256,
                                  .layer = deep };
    for (size_t t = 0; t < sizeof table / sizeof table[0]; t++) {
        double sum = 0;
        for (uint64_t draw = 0; draw < DRAWS; draw++) {
            double cost[DEEP * HEADS], mean = 0, most[2] = { 0 };
            int32_t left = 39;
            for (int32_t i = 0; i < DEEP * HEADS; i++) {
                int32_t open = DEEP * HEADS - i;
                int takes = (int32_t)(sf_rng_u64(5, draw, (uint64_t)i) % (uint64_t)open) < left;
                left -= takes;
                cost[i] = takes ? TOKENS : 4 + (TOKENS + 4) / 5 + 1;
                mean += cost[i] / table[t].ranks;
            }
            for (int32_t r = 0; r < table[t].ranks; r++)
                for (int rule = 0; rule < 2; rule++) {
                    struct sf_placing placing = { rule == 0 ? SF_PLACE_IDENTITY
                                                            : SF_PLACE_BALANCED, cost };
                    struct sf_share share;
                    double mine = 0;
                    SF_MUST(sf_share_make(&desc, &placing, table[t].ranks, r, 0, DEEP, &share));
                    for (int32_t l = 0; l < DEEP; l++)
                        for (int32_t i = share.kv_ptr[l]; i < share.kv_ptr[l + 1]; i++)
                            mine += cost[l * HEADS + share.kv[i].kv_head];
                    if (mine > most[rule]) most[rule] = mine;
                    sf_share_free(&share);
                }
            sum += most[0] / mean / DRAWS;
            SF_CHECK(most[1] / mean < 1.011);
            SF_CHECK(most[1] <= most[0]);
        }
        if (sum < table[t].low || sum > table[t].high)
            sf_test_fail(__FILE__, __LINE__, "%d ranks: fullest / mean is %.3f, expected %.2f to"
                         " %.2f", table[t].ranks, sum, table[t].low, table[t].high);
    }
}

/* ---- single cases ---------------------------------------------------------------------------- */

static void test_smollm_on_two(void)
{
    struct sf_model_desc desc = make_desc(shapes[0]);
    struct sf_share share[2];
    for (int placement = 0; placement < 2; placement++) {
        const struct sf_placing *placing = placement == SF_PLACE_IDENTITY ? &identity : &balanced;
        for (int32_t r = 0; r < 2; r++)
            SF_MUST(sf_share_make(&desc, placing, 2, r, 0, LAYERS, &share[r]));
        SF_CHECK_INT(share[0].chunk_cols, 128);
        SF_CHECK_INT(share[0].chunks, 12);
        for (int32_t l = 0; l < LAYERS; l++) {
            int32_t first = placement == SF_PLACE_IDENTITY || l % 2 == 0 ? 2 : 1;
            SF_CHECK_INT(share[0].kv_ptr[l + 1] - share[0].kv_ptr[l], first);
            SF_CHECK_INT(share[1].kv_ptr[l + 1] - share[1].kv_ptr[l], 3 - first);
            SF_CHECK_INT(sf_share_q_heads(&share[1], l), 3 * (3 - first));
        }
        sf_share_free(&share[0]);
        sf_share_free(&share[1]);
    }
}

/* 13 chunks on 2 ranks beside 3 heads: the rank with one head takes the seventh chunk. */
static void test_chunks_follow_heads(void)
{
    struct sf_model_desc desc = make_desc((struct shape){ 9, 3, 13 * 128, 2048 });
    struct sf_share share[2];
    for (int32_t r = 0; r < 2; r++)
        SF_MUST(sf_share_make(&desc, &balanced, 2, r, 0, LAYERS, &share[r]));
    SF_CHECK_INT(share[0].chunks, 13);
    for (int32_t l = 0; l < LAYERS; l++)
        SF_CHECK_INT(share[0].chunk_ptr[l + 1] - share[0].chunk_ptr[l], l % 2 == 0 ? 6 : 7);
    sf_share_free(&share[0]);
    sf_share_free(&share[1]);
}

static void test_groups(void)
{
    const struct sf_placing placing = { .rule = SF_PLACE_BALANCED };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct sf_model_desc desc = make_desc(shapes[i]);
        struct sf_share group[RANKS_MAX], one;
        SF_MUST(sf_share_make_group(&desc, &placing, RANKS_MAX, 5, 7, group));
        for (int32_t r = 0; r < RANKS_MAX; r++) {
            SF_MUST(sf_share_make(&desc, &placing, RANKS_MAX, r, 5, 7, &one));
            const struct sf_share *same = &group[r];
            SF_CHECK(same->tp_rank == r && same->tp_size == RANKS_MAX && same->layer_first == 5 &&
                     same->layer_count == 7 && !same->first_stage && same->last_stage);
            SF_CHECK(same->chunk_cols == one.chunk_cols && same->chunks == one.chunks);
            SF_CHECK(same->vocab_first == one.vocab_first && same->vocab_count == one.vocab_count);
            SF_CHECK(memcmp(same->kv_ptr, one.kv_ptr, 8 * sizeof *one.kv_ptr) == 0);
            SF_CHECK(memcmp(same->chunk_ptr, one.chunk_ptr, 8 * sizeof *one.chunk_ptr) == 0);
            SF_CHECK(memcmp(same->kv, one.kv, (size_t)one.kv_ptr[7] * sizeof *one.kv) == 0);
            SF_CHECK(memcmp(same->chunk, one.chunk,
                            (size_t)one.chunk_ptr[7] * sizeof *one.chunk) == 0);
            sf_share_free(&one);
            sf_share_free(&group[r]);
        }
    }
}

static void test_too_many_ranks(void)
{
    struct sf_model_desc desc = make_desc(shapes[0]);
    struct sf_share share;
    SF_CHECK_FAILS(sf_share_make(&desc, &balanced, 10, 0, 0, LAYERS, &share), SF_INVALID);
    SF_CHECK(strstr(sf_error_text(), "9 query heads") != NULL);
}

static void check_shape(const struct sf_mat_shape *s, int32_t cols, int32_t panel, int32_t k_slice,
                        int32_t slices)
{
    SF_CHECK_INT(s->cols, cols);
    SF_CHECK_INT(s->panel_cols, panel);
    SF_CHECK_INT(s->k_slice, k_slice);
    SF_CHECK_INT(s->slices, slices);
}

static int64_t plain_bytes(const struct sf_mat_shape *s)
{
    SF_CHECK(s->cols > 0 && s->slices > 0);
    return (int64_t)s->cols * s->k_slice * s->slices * (int64_t)sf_dtype_bytes(s->dtype);
}

static void test_shapes(void)
{
    struct sf_model_desc desc = make_desc(shapes[0]);
    struct sf_share share;
    struct sf_mat_shape s;
    SF_MUST(sf_share_make(&desc, &balanced, 2, 0, 0, LAYERS, &share));
    /* Layer 0: KV 0 1, q 0-5, 6 of 12 chunks. */
    sf_share_mat(&desc, &share, SF_MAT_QKV, 0, SF_BF16, 1, 96, &s);
    check_shape(&s, (6 + 2 + 2) * 64, 64, 576, 1);
    SF_CHECK_INT(s.dtype, SF_BF16);
    SF_CHECK_INT(s.fixed, 1);
    SF_CHECK_INT(s.rows_max, 96);
    sf_share_mat(&desc, &share, SF_MAT_O, 0, SF_BF16, 1, 96, &s);
    check_shape(&s, 576, 576, 128, 6);
    sf_share_mat(&desc, &share, SF_MAT_GATE_UP, 0, SF_BF16, 1, 96, &s);
    check_shape(&s, 2 * 6 * 128, 128, 576, 1);
    sf_share_mat(&desc, &share, SF_MAT_DOWN, 0, SF_BF16, 1, 96, &s);
    check_shape(&s, 576, 576, 128, 6);
    sf_share_mat(&desc, &share, SF_MAT_HEAD, 0, SF_BF16, 1, 96, &s);
    check_shape(&s, 24576, 1024, 576, 1);
    sf_share_mat(&desc, &share, SF_MAT_QKV, 1, SF_BF16, 0, 96, &s);
    check_shape(&s, (3 + 1 + 1) * 64, 64, 576, 1);
    sf_share_mat(&desc, &share, SF_MAT_O, 1, SF_BF16, 0, 96, &s);
    check_shape(&s, 576, 256, 3 * 64, 1);
    sf_share_mat(&desc, &share, SF_MAT_DOWN, 1, SF_BF16, 0, 96, &s);
    check_shape(&s, 576, 256, 6 * 128, 1);
    const struct sf_mat_shape like = { .dtype = SF_F32, .rows_max = 96 };
    /* Even layers: 10 + 6 head columns of 64; odd: 5 + 3. */
    int64_t want = 0;
    for (int l = 0; l < LAYERS; l++) {
        int64_t q = l % 2 == 0 ? 6 : 3, kv = l % 2 == 0 ? 2 : 1;
        want += 4 * 576 * ((q + 2 * kv) * 64 + q * 64 + 3 * 6 * 128 + 2);
    }
    want += 4 * 576 * (24576 + 1);
    SF_CHECK_INT(sf_share_weight_bytes(&desc, &share, &like, plain_bytes), want);
    desc.bias_q = desc.bias_o = desc.bias_ffn = 1;      /* layer 0: 640 + 576 + 1536 + 576 */
    for (int l = 0; l < LAYERS; l++)
        want += 4 * (l % 2 == 0 ? 640 + 576 + 1536 + 576 : 320 + 576 + 1536 + 576);
    SF_CHECK_INT(sf_share_weight_bytes(&desc, &share, &like, plain_bytes), want);
    sf_share_free(&share);
}

/* Ranks without a chunk or a row of the head have empty matrices, and no bytes for them. */
static void test_empty(void)
{
    struct sf_model_desc desc = make_desc((struct shape){ 9, 9, 17, 1000 });
    struct sf_share share;
    struct sf_mat_shape s;
    SF_MUST(sf_share_make(&desc, &identity, 9, 8, 0, LAYERS, &share));
    for (int fixed = 0; fixed < 2; fixed++) {
        sf_share_mat(&desc, &share, SF_MAT_GATE_UP, 0, SF_F32, fixed, 1, &s);
        SF_CHECK_INT(s.cols, 0);
        sf_share_mat(&desc, &share, SF_MAT_DOWN, 0, SF_F32, fixed, 1, &s);
        SF_CHECK_INT(s.slices, 0);
        sf_share_mat(&desc, &share, SF_MAT_HEAD, 0, SF_F32, fixed, 1, &s);
        SF_CHECK_INT(s.cols, 0);
        s.dtype = SF_F32;
        SF_CHECK(sf_share_weight_bytes(&desc, &share, &s, plain_bytes) > 0);
    }
    sf_share_free(&share);
}

static const struct sf_test tests[] = {
    { "deals", test_deals }, { "by_cost", test_by_cost }, { "small_example", test_small_example },
    { "retrieval_heads", test_retrieval_heads }, { "smollm_on_two", test_smollm_on_two },
    { "chunks_follow_heads", test_chunks_follow_heads }, { "too_many_ranks", test_too_many_ranks },
    { "groups", test_groups }, { "shapes", test_shapes }, { "empty", test_empty }, { NULL, NULL } };
SF_TEST_MAIN("model_share", tests)
