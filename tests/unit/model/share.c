/* tests/unit/model/share.c: dealing a model to tensor ranks loses and doubles nothing, levels out,
 * and its shapes are those that the contract names.
 *
 * For tp 1 to 9, both placements and several models: every query head and chunk is computed exactly
 * once in every layer, KV heads exactly once or as numbered replicas, vocabulary rows exactly once;
 * the order of leaves points at those who hold them; a share of a stage equals that part of the
 * share of all layers; the shares of a group are those made one by one. */
#include "model/share.h"

#include <stdlib.h>

#include "tests/check.h"

enum { LAYERS = 12, RANKS_MAX = 9, UNITS_MAX = 64 };

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

/* One layer over all ranks. */
static void check_layer(const struct sf_model_desc *desc, struct sf_share *share, int32_t ranks,
                        int32_t l)
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
            bad += q_next >= 0 && kv->q_first != q_next;        /* heads of a rank: one run */
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
        bad += last_kv < 0;
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

static void check_order(const struct sf_model_desc *desc, enum sf_placement placement,
                        struct sf_share *share, int32_t ranks, int32_t l)
{
    int32_t owner[UNITS_MAX], local[UNITS_MAX], leaves = 0, bad = 0;
    SF_CHECK_OK(sf_share_order(desc, placement, ranks, l, SF_MAT_O, 1, owner, local, &leaves));
    SF_CHECK_INT(leaves, desc->layer[l].q_heads);
    for (int32_t q = 0; q < leaves; q++) {
        const struct sf_share *s = &share[owner[q]];
        bad += s->kv[s->kv_ptr[l]].q_first + local[q] != q || local[q] >= sf_share_q_heads(s, l);
    }
    SF_CHECK_OK(sf_share_order(desc, placement, ranks, l, SF_MAT_DOWN, 1, owner, local, &leaves));
    SF_CHECK_INT(leaves, share[0].chunks);
    for (int32_t c = 0; c < leaves; c++) {
        const struct sf_share *s = &share[owner[c]];
        bad += local[c] >= s->chunk_ptr[l + 1] - s->chunk_ptr[l];
        bad += s->chunk[s->chunk_ptr[l] + local[c]] != c;
    }
    SF_CHECK_OK(sf_share_order(desc, placement, ranks, l, SF_MAT_DOWN, 0, owner, local, &leaves));
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
static void check_most(const struct sf_model_desc *desc, enum sf_placement placement,
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
        SF_MUST(sf_share_make(desc, placement, ranks, r, l, 1, &one));
        bad += sf_share_units_most(desc, &one) != most;
        sf_share_free(&one);
    }
    SF_CHECK_INT(bad, 0);
}

static void test_deals(void)
{
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int placement = 0; placement < 2; placement++)
            for (int32_t ranks = 1; ranks <= RANKS_MAX; ranks++) {
                struct sf_model_desc desc = make_desc(shapes[s]);
                struct sf_share share[RANKS_MAX], stage;
                for (int32_t r = 0; r < ranks; r++)
                    SF_MUST(sf_share_make(&desc, (enum sf_placement)placement, ranks, r, 0, LAYERS,
                                          &share[r]));
                for (int32_t l = 0; l < LAYERS; l++) {
                    check_layer(&desc, share, ranks, l);
                    check_order(&desc, (enum sf_placement)placement, share, ranks, l);
                    check_most(&desc, (enum sf_placement)placement, share, ranks, l);
                }
                check_vocabulary(&desc, share, ranks);
                if (placement == SF_PLACE_BALANCED) check_level(&desc, share, ranks);
                for (int32_t r = 0; r < ranks; r++) {
                    SF_MUST(sf_share_make(&desc, (enum sf_placement)placement, ranks, r, 5, 4,
                                          &stage));
                    int32_t kv_at = share[r].kv_ptr[5], kv = share[r].kv_ptr[9] - kv_at;
                    int32_t chunk_at = share[r].chunk_ptr[5];
                    int32_t chunks = share[r].chunk_ptr[9] - chunk_at;
                    SF_CHECK_INT(stage.kv_ptr[4], kv);
                    SF_CHECK_INT(stage.chunk_ptr[4], chunks);
                    SF_CHECK(memcmp(stage.kv, share[r].kv + kv_at, (size_t)kv * sizeof *stage.kv) ==
                             0);
                    SF_CHECK(memcmp(stage.chunk, share[r].chunk + chunk_at,
                                    (size_t)chunks * sizeof *stage.chunk) == 0);
                    SF_CHECK(!stage.first_stage && !stage.last_stage && stage.vocab_count == 0);
                    sf_share_free(&stage);
                    sf_share_free(&share[r]);
                }
            }
}

static void test_smollm_on_two(void)
{
    struct sf_model_desc desc = make_desc(shapes[0]);
    struct sf_share share[2];
    for (int placement = 0; placement < 2; placement++) {
        for (int32_t r = 0; r < 2; r++)
            SF_MUST(sf_share_make(&desc, (enum sf_placement)placement, 2, r, 0, LAYERS, &share[r]));
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
        SF_MUST(sf_share_make(&desc, SF_PLACE_BALANCED, 2, r, 0, LAYERS, &share[r]));
    SF_CHECK_INT(share[0].chunks, 13);
    for (int32_t l = 0; l < LAYERS; l++)
        SF_CHECK_INT(share[0].chunk_ptr[l + 1] - share[0].chunk_ptr[l], l % 2 == 0 ? 6 : 7);
    sf_share_free(&share[0]);
    sf_share_free(&share[1]);
}

static void test_groups(void)
{
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct sf_model_desc desc = make_desc(shapes[i]);
        struct sf_share group[RANKS_MAX], one;
        SF_MUST(sf_share_make_group(&desc, SF_PLACE_BALANCED, RANKS_MAX, 5, 7, group));
        for (int32_t r = 0; r < RANKS_MAX; r++) {
            SF_MUST(sf_share_make(&desc, SF_PLACE_BALANCED, RANKS_MAX, r, 5, 7, &one));
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
    SF_CHECK_FAILS(sf_share_make(&desc, SF_PLACE_BALANCED, 10, 0, 0, LAYERS, &share), SF_INVALID);
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
    SF_MUST(sf_share_make(&desc, SF_PLACE_BALANCED, 2, 0, 0, LAYERS, &share));
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
    /* Even layers: 10 + 6 head columns of 64; odd: 5 + 3. */
    int64_t want = 0;
    for (int l = 0; l < LAYERS; l++) {
        int64_t q = l % 2 == 0 ? 6 : 3, kv = l % 2 == 0 ? 2 : 1;
        want += 4 * 576 * ((q + 2 * kv) * 64 + q * 64 + 3 * 6 * 128 + 2);
    }
    want += 4 * 576 * (24576 + 1);
    SF_CHECK_INT(sf_share_weight_bytes(&desc, &share, SF_F32, 0, 96, plain_bytes), want);
    desc.bias_q = desc.bias_o = desc.bias_ffn = 1;      /* layer 0: 640 + 576 + 1536 + 576 */
    for (int l = 0; l < LAYERS; l++)
        want += 4 * (l % 2 == 0 ? 640 + 576 + 1536 + 576 : 320 + 576 + 1536 + 576);
    SF_CHECK_INT(sf_share_weight_bytes(&desc, &share, SF_F32, 0, 96, plain_bytes), want);
    sf_share_free(&share);
}

/* Ranks without a chunk or a row of the head have empty matrices, and no bytes for them. */
static void test_empty(void)
{
    struct sf_model_desc desc = make_desc((struct shape){ 9, 9, 17, 1000 });
    struct sf_share share;
    struct sf_mat_shape s;
    SF_MUST(sf_share_make(&desc, SF_PLACE_IDENTITY, 9, 8, 0, LAYERS, &share));
    for (int fixed = 0; fixed < 2; fixed++) {
        sf_share_mat(&desc, &share, SF_MAT_GATE_UP, 0, SF_F32, fixed, 1, &s);
        SF_CHECK_INT(s.cols, 0);
        sf_share_mat(&desc, &share, SF_MAT_DOWN, 0, SF_F32, fixed, 1, &s);
        SF_CHECK_INT(s.slices, 0);
        sf_share_mat(&desc, &share, SF_MAT_HEAD, 0, SF_F32, fixed, 1, &s);
        SF_CHECK_INT(s.cols, 0);
        SF_CHECK(sf_share_weight_bytes(&desc, &share, SF_F32, fixed, 1, plain_bytes) > 0);
    }
    sf_share_free(&share);
}

static const struct sf_test tests[] = {
    { "deals", test_deals }, { "smollm_on_two", test_smollm_on_two },
    { "chunks_follow_heads", test_chunks_follow_heads }, { "too_many_ranks", test_too_many_ranks },
    { "groups", test_groups }, { "shapes", test_shapes }, { "empty", test_empty }, { NULL, NULL } };
SF_TEST_MAIN("model_share", tests)
