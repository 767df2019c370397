/* tests/unit/kvshard/razor_heads.c: which heads razor_attention keeps: its calibration, by itself.
 *
 * Queries and keys are made so that the attention of each row is known; the same attention is also
 * worked out whole, in f64, and the scores read off it.  Shown: attention that lies on the same
 * token of earlier copies is echo and nothing else, on the one after it induction and nothing else,
 * on the row itself neither; scores from six weights a row are those of the whole matrix, whatever
 * the chunks, with and without a first token; the parts of ranks that share a KV head add up; the
 * block is drawn as it should be; the choice takes the numbers of heads that the ratios say, in
 * both rules, ties to the lower layer and head, and does not break at none and all. */
#include <stdlib.h>

#include "base/opt.h"
#include "base/rng.h"
#include "kvshard/methods.h"
#include "kvshard/profile.h"
#include "kvshard/stack.h"
#include "model/desc.h"
#include "tests/check.h"

enum { COPIES = 4, BLOCK = 6, DIM = 32, TOKENS = 1 + COPIES * BLOCK, GROUP = 3, HEADS = 2,
       LAYERS = 2, QUERIES = GROUP * HEADS };

struct bench {                          /* a method, set up for a model */
    struct sf_model_desc desc;
    struct sf_layer_desc layer[128];
    struct sf_setup setup;
    struct sf_stack stack;
    const struct sf_calib_ops *ops;
    struct sf_env env;
};

static void set(struct bench *b, const char *key, const char *text)
{
    const struct sf_stack_entry *entry = &b->stack.entry[0];
    SF_CHECK_OK(sf_opt_set(sf_opt_find(entry->method->opts, key), entry->cfg, text));
}

static void open_bench(struct bench *b, int32_t layers, int32_t q_heads, int32_t kv_heads,
                       int32_t bos, int32_t tokens_max)
{
    struct sf_stack_entry *entry;
    *b = (struct bench){ .desc = { .layers = layers, .rope_dim = DIM, .bos = bos, .vocab = 1000 } };
    b->desc.layer = b->layer;
    for (int32_t l = 0; l < layers; l++)
        b->layer[l] = (struct sf_layer_desc){ q_heads, kv_heads, DIM, DIM, 0 };
    SF_CHECK_OK(sf_stack_add(&b->stack, "razor_attention", &entry));
    SF_CHECK_OK(sf_setup_make(&b->desc, 1, 16, tokens_max, &b->setup));
    b->setup.cfg = entry->cfg;
    b->ops = entry->method->calib;
    b->env.setup = &b->setup;
    SF_CHECK_OK(b->ops->open(&b->env));
}

static void close_bench(struct bench *b)
{
    b->ops->close(&b->env);
    sf_setup_free(&b->setup);
    sf_stack_free(&b->stack);
}

/* ---- attention, whole ------------------------------------------------------------------------ */
struct head {                           /* one KV head of a sequence */
    float q[TOKENS][GROUP][DIM], k[TOKENS][DIM], lse[TOKENS][GROUP], scale;
    double p[GROUP][TOKENS][TOKENS];
};

static void attend(struct head *head, int32_t tokens)
{
    for (int h = 0; h < GROUP; h++)
        for (int32_t i = 0; i < tokens; i++) {
            double sum = 0;
            for (int32_t j = 0; j <= i; j++) {
                double dot = 0;
                for (int e = 0; e < DIM; e++)
                    dot += (double)head->q[i][h][e] * (double)head->k[j][e];
                sum += head->p[h][i][j] = exp((double)head->scale * dot);
            }
            for (int32_t j = 0; j <= i; j++) head->p[h][i][j] /= sum;
            head->lse[i][h] = (float)log(sum);
        }
}

/* The sheet's definition on the matrix without the first token. */
static double score_of(const struct head *head, int h, int32_t bos, int32_t block, int after)
{
    double sum = 0;
    for (int32_t i = block; i < COPIES * block; i++)
        for (int32_t c = 1; i - c * block >= 0; c++)
            sum += head->p[h][bos + i][bos + i - c * block + after];
    return sum / ((COPIES - 1) * block);
}

/* ---- feeding --------------------------------------------------------------------------------- */
/* Query heads [from, from + count) of the group, as a rank that holds a part of it does. */
static void feed_part(const struct bench *b, const struct head *head, int32_t layer, int32_t number,
                      int32_t tokens, int32_t chunk, int32_t from, int32_t count)
{
    for (int32_t first = 0; first < tokens; first += chunk) {
        int32_t rows = tokens - first < chunk ? tokens - first : chunk;
        const struct sf_taps taps = {
            .layer = layer, .head_global = number, .q_first = number * GROUP + from,
            .q_heads = count, .tokens = tokens, .row_first = first, .rows = rows, .k_dim = DIM,
            .v_dim = DIM, .scale = head->scale, .q = head->q[first][from],
            .q_stride = GROUP * DIM, .lse = &head->lse[first][from], .lse_stride = GROUP,
            .k = head->k[0] };
        SF_CHECK_OK(b->ops->feed(&b->env, &taps));
    }
}

static sf_status sum_of_one(const struct sf_calib_ranks *ranks, double *value, size_t n)
{
    (void)ranks, (void)value, (void)n;
    return SF_OK;
}

static void finish(const struct bench *b, int32_t tokens, struct sf_profile *profile)
{
    const struct sf_calib_ranks ranks = { sum_of_one };
    *profile = (struct sf_profile){ 0 };
    SF_CHECK_OK(b->ops->reduce(&b->env, &ranks));
    SF_CHECK_OK(b->ops->write(&b->env, b->stack.entry[0].cfg, tokens, profile));
}

/* ---- oracles --------------------------------------------------------------------------------- */
/* Row i of the later copies looks at i - back and at nothing else. */
static void look_back(struct head *head, int32_t bos, int32_t block, int32_t back)
{
    memset(head, 0, sizeof *head);
    head->scale = 1;
    for (int32_t t = 0; t < bos + COPIES * block; t++) {
        int32_t at = t - bos >= block ? t - back : t;
        head->k[t][t] = 1;
        for (int h = 0; h < GROUP; h++) head->q[t][h][at] = 80;
    }
    attend(head, bos + COPIES * block);
}

static void made_matrices(void)
{
    static const struct { int32_t back; double echo, induction; } cases[] = {
        { BLOCK, 1, 0 }, { BLOCK - 1, 0, 1 }, { 0, 0, 0 }, { 2, 0, 0 } };
    static struct head head;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int32_t bos = 0; bos < 2; bos++) {
            struct bench b;
            struct sf_profile profile;
            int32_t tokens = bos + COPIES * BLOCK;
            open_bench(&b, LAYERS, QUERIES, HEADS, bos ? 3 : -1, 100);
            look_back(&head, bos, BLOCK, cases[i].back);
            feed_part(&b, &head, 1, 1, tokens, 5, 0, GROUP);
            finish(&b, tokens, &profile);
            SF_CHECK_INT(profile.rows, LAYERS * HEADS);
            for (int32_t r = 0; r < profile.rows; r++)
                for (int h = 0; h < GROUP; h++) {
                    const double *value = profile.row[r].value;
                    int fed = profile.row[r].layer == 1 && profile.row[r].head == 1;
                    SF_CHECK_NEAR(value[h], fed ? cases[i].induction : 0, 1e-6);
                    SF_CHECK_NEAR(value[GROUP + h], fed ? cases[i].echo : 0, 1e-6);
                }
            sf_profile_free(&profile);
            close_bench(&b);
        }
}

static void random_head(struct head *head, uint64_t seed, int32_t tokens)
{
    memset(head, 0, sizeof *head);
    head->scale = 0.7f;
    for (int32_t t = 0; t < tokens; t++)
        for (int e = 0; e < DIM; e++) {
            uint64_t at = (uint64_t)(t * DIM + e);
            head->k[t][e] = (float)(2 * sf_rng_uniform(seed, 9, at) - 1);
            for (int h = 0; h < GROUP; h++)
                head->q[t][h][e] = (float)(2 * sf_rng_uniform(seed, (uint64_t)h, at) - 1);
        }
    attend(head, tokens);
}

/* parts: the ranks that share each KV head have so many of its query heads. */
static void check_streaming(int32_t bos, int32_t block, int32_t chunk, int32_t parts)
{
    static struct head head[LAYERS][HEADS];
    struct bench b;
    struct sf_profile profile;
    int32_t tokens = bos + COPIES * block;
    open_bench(&b, LAYERS, QUERIES, HEADS, bos ? 3 : -1, 100);
    for (int32_t l = 0; l < LAYERS; l++)
        for (int32_t k = 0; k < HEADS; k++) {
            random_head(&head[l][k], (uint64_t)(100 + l * 10 + k), tokens);
            for (int32_t from = 0; from < GROUP; from += parts)
                feed_part(&b, &head[l][k], l, k, tokens, chunk, from,
                          GROUP - from < parts ? GROUP - from : parts);
        }
    finish(&b, tokens, &profile);
    for (int32_t r = 0; r < profile.rows; r++)
        for (int h = 0; h < GROUP; h++) {
            const struct head *from = &head[profile.row[r].layer][profile.row[r].head];
            SF_CHECK_NEAR(profile.row[r].value[h], score_of(from, h, bos, block, 1), 1e-6);
            SF_CHECK_NEAR(profile.row[r].value[GROUP + h], score_of(from, h, bos, block, 0), 1e-6);
        }
    sf_profile_free(&profile);
    close_bench(&b);
}

static void streaming_is_whole(void)
{
    for (int32_t chunk = 1; chunk <= TOKENS; chunk += 4)
        for (int32_t bos = 0; bos < 2; bos++) check_streaming(bos, BLOCK, chunk, GROUP);
    for (int32_t block = 2; block <= BLOCK; block++) check_streaming(1, block, 7, GROUP);
    check_streaming(1, BLOCK, 7, 1);
    check_streaming(1, BLOCK, 7, 2);
}

/* ---- what is fed ----------------------------------------------------------------------------- */
static void block_of_tokens(void)
{
    enum { COUNT = 90 };
    int32_t ordinary[COUNT], first[8][201], seen[1000] = { 0 };
    const struct sf_calib_vocab vocab = { ordinary, COUNT };
    struct sf_calib_plan plan = { 0 };
    struct bench b;
    for (int32_t i = 0; i < COUNT; i++) ordinary[i] = 5 + 7 * i;
    open_bench(&b, LAYERS, QUERIES, HEADS, 3, 10000);
    set(&b, "calibration_block_tokens", "50");
    SF_CHECK_OK(b.ops->plan(&b.setup, &vocab, &plan));
    SF_CHECK_INT(plan.tokens, 201);
    SF_CHECK_INT(plan.sequences, 1);
    SF_CHECK_INT(plan.passes, 1);
    for (int run = 0; run < 3; run++) {
        set(&b, "calibration_seed", run == 2 ? "1" : "0");
        SF_CHECK_OK(b.ops->input(&b.setup, &vocab, 0, 201, first[run]));
    }
    SF_CHECK(memcmp(first[0], first[1], sizeof first[0]) == 0);
    SF_CHECK(memcmp(first[0], first[2], sizeof first[0]) != 0);
    SF_CHECK_INT(first[0][0], 3);
    for (int32_t i = 0; i < 50; i++) {
        int32_t id = first[0][1 + i];
        SF_CHECK(id >= 5 && (id - 5) % 7 == 0 && id <= 5 + 7 * (COUNT - 1));
        SF_CHECK_INT(seen[id]++, 0);
        for (int32_t c = 1; c < COPIES; c++) SF_CHECK_INT(first[0][1 + c * 50 + i], id);
    }
    set(&b, "calibration_block_tokens", "2500");    /* no more than the vocabulary has ... */
    SF_CHECK_OK(b.ops->plan(&b.setup, &vocab, &plan));
    SF_CHECK_INT(plan.tokens, 1 + COPIES * COUNT);
    b.setup.tokens_max = 104;                       /* ... or the model holds */
    SF_CHECK_OK(b.ops->plan(&b.setup, &vocab, &plan));
    SF_CHECK_INT(plan.tokens, 1 + COPIES * 25);
    b.setup.tokens_max = 8;
    SF_CHECK_FAILS(b.ops->plan(&b.setup, &vocab, &plan), SF_INVALID);
    b.desc.bos = -1;
    SF_CHECK_OK(b.ops->plan(&b.setup, &vocab, &plan));
    SF_CHECK_INT(plan.tokens, COPIES * 2);
    close_bench(&b);
}

static void windows_are_outside(void)
{
    static struct head head;
    struct bench b;
    struct sf_profile profile;
    open_bench(&b, 3, QUERIES, HEADS, -1, 100);
    b.layer[1].window = 8;
    ((struct sf_layer *)(uintptr_t)b.setup.layer)[1].window = 8;
    look_back(&head, 0, BLOCK, BLOCK);
    for (int32_t l = 0; l < 3; l++) feed_part(&b, &head, l, 0, COPIES * BLOCK, 8, 0, GROUP);
    finish(&b, COPIES * BLOCK, &profile);
    SF_CHECK_INT(profile.rows, 2 * HEADS);
    for (int32_t r = 0; r < profile.rows; r++) SF_CHECK(profile.row[r].layer != 1);
    sf_profile_free(&profile);
    close_bench(&b);
}

/* ---- the choice ------------------------------------------------------------------------------ */
static const struct sf_opt_pairs *chosen(const struct bench *b)
{
    const struct sf_stack_entry *entry = &b->stack.entry[0];
    const void *at = (const char *)entry->cfg +
                     sf_opt_find(entry->method->opts, "retrieval_heads")->offset;
    return at;
}

static void make_rows(struct sf_profile *profile, int32_t layers, int32_t heads, int32_t group)
{
    *profile = (struct sf_profile){ 0 };
    for (int32_t l = 0; l < layers; l++)
        for (int32_t h = 0; h < heads; h++) {
            struct sf_profile_row *row;
            SF_CHECK_OK(sf_profile_add(profile, l, h, 2, group, &row));
        }
}

/* L = 32, Hkv = 8: 36 induction heads and 3 echo heads, which are others, the same, or some. */
static void worked_example(void)
{
    for (int32_t shared = 0; shared <= 3; shared++) {
        struct bench b;
        struct sf_profile profile;
        open_bench(&b, 32, 32, 8, -1, 100);
        make_rows(&profile, 32, 8, 4);
        for (int32_t i = 0; i < 36; i++) profile.row[7 * i].value[i % 4] = 0.5 + 0.01 * i;
        for (int32_t i = 0; i < 3; i++)
            profile.row[i < shared ? 7 * i : 7 * i + 3].value[4 + i] = 0.3;
        SF_CHECK_OK(b.ops->choose(b.stack.entry[0].cfg, &profile));
        SF_CHECK_INT(chosen(&b)->count, 39 - shared);
        for (int32_t i = 0; i < chosen(&b)->count; i++) {
            int32_t lane = chosen(&b)->value[i][0] * 8 + chosen(&b)->value[i][1];
            SF_CHECK(lane % 7 == 0 || lane == 3 || lane == 10 || lane == 17);
            if (i > 0)
                SF_CHECK(lane > chosen(&b)->value[i - 1][0] * 8 + chosen(&b)->value[i - 1][1]);
        }
        set(&b, "induction_head_ratio", "0.07");    /* the same rows, another choice */
        set(&b, "echo_head_ratio", "0");
        SF_CHECK_OK(b.ops->choose(b.stack.entry[0].cfg, &profile));
        SF_CHECK_INT(chosen(&b)->count, 18);        /* the better half of the 36 */
        for (int32_t i = 0; i < 18; i++)
            SF_CHECK_INT(chosen(&b)->value[i][0] * 8 + chosen(&b)->value[i][1], 7 * (i + 18));
        sf_profile_free(&profile);
        close_bench(&b);
    }
}

/* Random scores, some equal, against ranking by hand. */
static void against_a_plain_ranking(int32_t round)
{
    enum { L = 9, H = 3, G = 3, ALL = L * H * G };
    const char *ratios[] = { "0", "0.01", "0.14", "0.37", "1" };
    const char *induction = ratios[round % 5], *echo = ratios[round / 5 % 5];
    int promote = round % 2;
    uint8_t want[L * H] = { 0 };
    struct bench b;
    struct sf_profile profile;
    open_bench(&b, L, H * G, H, -1, 100);
    set(&b, "induction_head_ratio", induction);
    set(&b, "echo_head_ratio", echo);
    set(&b, "gqa_rule", promote ? "promote" : "group_max");
    make_rows(&profile, L, H, G);
    for (int32_t i = 0; i < 2 * ALL; i++)
        profile.row[i / (2 * G)].value[i % (2 * G)] =
            floor(20 * sf_rng_uniform((uint64_t)round, 1, (uint64_t)i)) / 20;
    for (int column = 0; column < 2; column++) {
        double score[ALL];
        int32_t n = promote ? ALL : L * H;
        int32_t k = (int32_t)floor(atof(column == 0 ? induction : echo) * n + 0.5);
        for (int32_t i = 0; i < n; i++) {
            const double *value = profile.row[promote ? i / G : i].value + column * G;
            score[i] = promote ? value[i % G] : fmax(value[0], fmax(value[1], value[2]));
        }
        for (; k > 0; k--) {
            int32_t best = 0;
            for (int32_t i = 1; i < n; i++)
                if (score[i] > score[best]) best = i;
            score[best] = -1;
            want[promote ? best / G : best] = 1;
        }
    }
    SF_CHECK_OK(b.ops->choose(b.stack.entry[0].cfg, &profile));
    int32_t at = 0;
    for (int32_t i = 0; i < L * H; i++) {
        if (!want[i]) continue;
        SF_CHECK(at < chosen(&b)->count);
        SF_CHECK_INT(chosen(&b)->value[at][0], i / H);
        SF_CHECK_INT(chosen(&b)->value[at++][1], i % H);
    }
    SF_CHECK_INT(chosen(&b)->count, at);
    sf_profile_free(&profile);
    close_bench(&b);
}

static void rankings(void)
{
    for (int32_t round = 0; round < 50; round++) against_a_plain_ranking(round);
}

/* All equal: the first heads, and as many as the sheet says when query heads are counted. */
static void ties_and_promotion(void)
{
    struct bench b;
    struct sf_profile profile;
    open_bench(&b, 32, 32, 8, -1, 100);
    make_rows(&profile, 32, 8, 4);
    SF_CHECK_OK(b.ops->choose(b.stack.entry[0].cfg, &profile));
    SF_CHECK_INT(chosen(&b)->count, 36);
    for (int32_t i = 0; i < 36; i++)
        SF_CHECK_INT(chosen(&b)->value[i][0] * 8 + chosen(&b)->value[i][1], i);
    set(&b, "gqa_rule", "promote");
    for (int32_t i = 0; i < 143; i++) profile.row[i].value[i % 4] = 0.5;        /* one of each */
    for (int32_t i = 200; i < 210; i++) profile.row[i].value[4] = 0.5;
    SF_CHECK_OK(b.ops->choose(b.stack.entry[0].cfg, &profile));
    SF_CHECK_INT(chosen(&b)->count, 153);
    sf_profile_free(&profile);
    close_bench(&b);
}

static const struct sf_test tests[] = {
    { "made matrices", made_matrices },
    { "streaming is the whole matrix", streaming_is_whole },
    { "the block of tokens", block_of_tokens },
    { "layers with windows are outside", windows_are_outside },
    { "worked example of the choice", worked_example },
    { "the choice is a plain ranking", rankings },
    { "ties, and query heads that promote", ties_and_promotion },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_razor_heads", tests)
