/* tests/unit/kvshard/xkv.c: what xkv says before anything runs: groups, with and without stages,
 * ranks, break-even lengths and bytes, against the numbers of its description; and what the rules
 * for layer groups refuse. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/opt.h"
#include "kvshard/account.h"
#include "kernels/kernels.h"
#include "kvshard/codec.h"
#include "tests/unit/kvshard/rig.h"

enum { LAYERS_MAX = 40, TOKENS = 1 << 17 };
static struct sf_layer layer[LAYERS_MAX];
static int32_t stage[LAYERS_MAX];

static struct sf_setup setup_of(int32_t layers, int32_t heads, int32_t dim, int32_t tp_size)
{
    for (int32_t l = 0; l < layers; l++)
        layer[l] = (struct sf_layer){ .q_heads = 4 * heads, .k_heads = heads, .v_heads = heads,
                                      .groups = heads, .k_per_group = 1, .v_per_group = 1,
                                      .lane_first = l * heads, .k_dim = dim, .v_dim = dim,
                                      .rope_dim = dim };
    return (struct sf_setup){ .layer = layer, .layers = layers, .lanes = layers * heads,
                              .tokens_max = TOKENS, .tp_size = tp_size, .page_slots = 128 };
}

static sf_status check(struct sf_stack *stack, const struct sf_setup *setup, const char *key,
                       const char *text)
{
    struct sf_stack_entry *entry;
    *stack = (struct sf_stack){ 0 };
    SF_TRY(sf_stack_add(stack, "xkv", &entry));
    if (key) SF_TRY(sf_opt_set(sf_opt_find(entry->method->opts, key), entry->cfg, text));
    return sf_stack_check(stack, setup);
}

/* "[0-3][4]..." of the first entry. */
static void groups_text(const struct sf_stack *stack, int32_t layers, char *out, size_t bytes)
{
    const int16_t *group = stack->entry[0].shape.layer_group;
    size_t used = 0;
    out[0] = '\0';
    for (int32_t l = 0, end; l < layers; l = end) {
        for (end = l + 1; end < layers && group[end] == group[l]; end++) { }
        if (group[l] < 0) continue;
        used += (size_t)snprintf(out + used, bytes - used, end - l > 1 ? "[%d-%d]" : "[%d]", l,
                                 end - 1);
    }
}

static void check_groups(const struct sf_setup *setup, const char *key, const char *text,
                         const char *expected)
{
    struct sf_stack stack;
    char is[256];
    SF_CHECK_OK(check(&stack, setup, key, text));
    groups_text(&stack, setup->layers, is, sizeof is);
    SF_CHECK_STR(is, expected);
    sf_stack_free(&stack);
}

static void test_groups(void)
{
    struct sf_setup setup = setup_of(10, 2, 16, 1);
    check_groups(&setup, NULL, NULL, "[0-3][4-7][8-9]");
    check_groups(&setup, "start_layer", "3", "[3-6][7-9]");
    check_groups(&setup, "end_layer", "4", "[0-3][4]");
    check_groups(&setup, "group_size", "1", "[0][1][2][3][4][5][6][7][8][9]");
    for (int32_t l = 0; l < 10; l++) stage[l] = l / 5;
    setup.stage = stage;
    check_groups(&setup, NULL, NULL, "[0-3][4][5-8][9]");
    layer[6].window = 64;               /* layers of another kind stay out */
    check_groups(&setup, NULL, NULL, "[0-3][4][5][7-9]");
    layer[6].window = 0;
    layer[7].k_dim = layer[8].k_dim = 32;
    check_groups(&setup, NULL, NULL, "[0-3][4][5-6][7-8][9]");
}

/* Groups that are listed: as they are, whatever group_size; what a model or its stages do not allow
 * is refused with the layers' numbers, and where the option was given. */
static void test_listed(void)
{
    struct sf_setup setup = setup_of(12, 2, 16, 1);
    struct sf_stack stack;
    int32_t k, v;
    check_groups(&setup, "layer_groups", "[0-3, 4-5, 8-11]", "[0-3][4-5][8-11]");
    check_groups(&setup, "layer_groups", "[2-2, 5-11]", "[2][5-11]");
    SF_MUST(check(&stack, &setup, "layer_groups", "[0-2, 4-9]"));
    SF_CHECK_INT(sf_stack_entry_of(&stack, &setup, 3, 0), -1);
    SF_CHECK_INT(sf_stack_entry_of(&stack, &setup, 4, 1), 0);
    sf_stack_free(&stack);
    for (int32_t l = 0; l < 12; l++) stage[l] = l / 6;
    setup.stage = stage;
    check_groups(&setup, "layer_groups", "[0-5, 6-11]", "[0-5][6-11]");
    CHECK_REFUSED(check(&stack, &setup, "layer_groups", "[0-3, 4-7]"), SF_INVALID,
                  "method xkv: layer_groups has 4-7, but pipeline stages 0 and 1 meet between"
                  " layers 5 and 6; list 4-5 and 6-7, or change parallel.pipeline_layers");
    sf_stack_free(&stack);
    setup.stage = NULL;
    layer[5].k_dim = 32;
    layer[9].window = 64;
    static const char *const refused[][2] = {
        { "[0-3, 4-6]", "has 4-6, but the heads of layers 4 and 5 differ" },
        { "[8-9]", "has 8-9, but layer 9 has a sliding window" },
        { "[10-12]", "has 10-12, but the model has layers 0 to 11" },
        { "[]", "has no group" } };
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        CHECK_REFUSED(check(&stack, &setup, "layer_groups", refused[i][0]), SF_INVALID,
                      refused[i][1]);
        sf_stack_free(&stack);
    }
    static const char *const no_lists[] = { "[0-3, 3-5]", "[4-5, 0-3]", "[3-0]", "[-1]", "0-3",
                                            "[0-3 4-5]", "[0-]", "[0-3,]" };
    for (size_t i = 0; i < sizeof no_lists / sizeof no_lists[0]; i++) {
        CHECK_REFUSED(check(&stack, &setup, "layer_groups", no_lists[i]), SF_INVALID,
                      "a list like [0-3, 4-5, 8]");
        sf_stack_free(&stack);
    }
    setup = setup_of(12, 8, 128, 1);    /* ranks are those of four layers */
    SF_MUST(check(&stack, &setup, "layer_groups", "[0-4, 5, 6-11]"));
    static const int32_t ranks[][3] = { { 0, 480, 720 }, { 5, 96, 144 }, { 6, 576, 864 } };
    for (size_t i = 0; i < 3; i++) {
        sf_account_group_ranks(&setup, &stack.entry[0], ranks[i][0], &k, &v);
        SF_CHECK_INT(k, ranks[i][1]);
        SF_CHECK_INT(v, ranks[i][2]);
    }
    setup.page_slots = 64;              /* 16 rows of 1440 + 8 bytes f32 need more than 65 KiB */
    SF_CHECK(!sf_stack_tiers_fit(&stack, &setup, SF_F32));
    sf_stack_free(&stack);
    SF_MUST(check(&stack, &setup, "layer_groups", "[0-3, 4-7]"));
    SF_CHECK(sf_stack_tiers_fit(&stack, &setup, SF_F32));
    sf_stack_free(&stack);
}

static struct sf_cost cost_of(const struct sf_setup *setup, const struct sf_stack *stack,
                              enum sf_dtype dtype, int32_t prompt, int32_t tokens)
{
    int32_t lane_ptr[LAYERS_MAX + 1], heads = setup->layer[0].groups;
    int32_t *head = malloc((size_t)setup->lanes * sizeof *head);
    uint8_t *replica = calloc((size_t)setup->lanes, 1);
    struct sf_rank_lanes lanes = { 0, setup->layers, lane_ptr, head, replica };
    struct sf_cost cost = { 0 };
    for (int32_t i = 0; i <= setup->layers; i++) lane_ptr[i] = i * heads;
    for (int32_t i = 0; i < setup->lanes; i++) head[i] = i % heads;
    SF_CHECK_OK(sf_account_sequence(setup, stack, &lanes, dtype, prompt, tokens, &cost));
    SF_CHECK_INT(cost.bytes_lo, cost.bytes_hi);
    free(head);
    free(replica);
    return cost;
}

static int64_t stored_of(const struct sf_setup *setup, const struct sf_stack *stack,
                         int32_t prompt, int32_t tokens)
{
    return cost_of(setup, stack, SF_F16, prompt, tokens).bytes_hi;
}

static int64_t stored(const struct sf_setup *setup, const struct sf_stack *stack, int32_t tokens)
{
    return stored_of(setup, stack, tokens, tokens);
}

/* Bytes of elements alone, without 8 a slot, in f16. */
static void test_formula(void)
{
    struct sf_setup setup = setup_of(32, 8, 128, 1);
    struct sf_stack stack;
    int32_t k, v;
    SF_MUST(check(&stack, &setup, NULL, NULL));
    for (int32_t n = 600; n <= 65536; n = n * 3 + 1) {
        int64_t elements = INT64_C(8) * n * 960 + INT64_C(32) * 8 * 128 * 960;
        SF_CHECK_INT(stored(&setup, &stack, n), 2 * elements + INT64_C(8) * 256 * n);
    }
    int64_t exact = INT64_C(2) * 2 * 32 * 8 * 128 * 65536;
    int64_t mine = stored(&setup, &stack, 65536) - INT64_C(8) * 256 * 65536;
    double ratio = (double)exact / (double)mine;
    SF_CHECK(ratio > 8.025 && ratio < 8.035);
    SF_CHECK_INT(stored(&setup, &stack, 543), INT64_C(543) * 256 * (256 * 2 + 8));
    SF_CHECK(stored(&setup, &stack, 544) <= INT64_C(544) * 256 * (256 * 2 + 8));
    SF_CHECK(stored(&setup, &stack, 544) != INT64_C(544) * 256 * (256 * 2 + 8));
    sf_account_group_ranks(&setup, &stack.entry[0], 0, &k, &v);
    SF_CHECK_INT(k, 384);
    SF_CHECK_INT(v, 576);
    sf_stack_free(&stack);
}

/* Exact / stored elements of n tokens, without 8 bytes a slot. */
static double rate(const struct sf_setup *setup, const struct sf_stack *stack, int32_t n)
{
    double slots = (double)setup->lanes * n;
    return slots * 2 * 128 * 2 / ((double)stored(setup, stack, n) - 8 * slots);
}

/* The description's table of lengths, and its published rates; a group that a stage cuts has bases
 * that add up to the whole one's. */
static void test_rates(void)
{
    static const struct { int32_t n; double rate; } table[] = {
        { 512, 1.016 },                 /* not 0.95: no rank is above the number of tokens */
        { 1024, 1.71 }, { 2048, 2.84 }, { 4096, 4.27 }, { 8192, 5.69 },
        { 32768, 7.59 }, { 65536, 8.03 },
        { 131072, 8.275 } };
    struct sf_setup setup = setup_of(32, 8, 128, 1);
    struct sf_stack stack;
    SF_MUST(check(&stack, &setup, "min_prompt_tokens", "1"));
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        SF_CHECK_NEAR(rate(&setup, &stack, table[i].n), table[i].rate, 0.005);
    struct sf_stack_entry *entry = &stack.entry[0];
    SF_MUST(sf_opt_set(sf_opt_find(entry->method->opts, "group_size"), entry->cfg, "1"));
    SF_MUST(sf_opt_set(sf_opt_find(entry->method->opts, "rank_k"), entry->cfg, "96"));
    SF_MUST(sf_opt_set(sf_opt_find(entry->method->opts, "rank_v"), entry->cfg, "144"));
    SF_MUST(sf_stack_check(&stack, &setup));
    SF_CHECK_NEAR(rate(&setup, &stack, 65536), 8.40, 0.005);
    sf_stack_free(&stack);
    SF_MUST(check(&stack, &setup, NULL, NULL));
    int64_t whole = stored(&setup, &stack, 20001) - stored(&setup, &stack, 20000);
    for (int32_t l = 0; l < 32; l++) stage[l] = l >= 13;
    setup.stage = stage;
    SF_MUST(sf_stack_check(&stack, &setup));
    SF_CHECK_INT(stored(&setup, &stack, 20001) - stored(&setup, &stack, 20000), whole);
    sf_stack_free(&stack);
}

/* Two entries with groups: on layers of their own, each with its ranks; on the same ones, none. */
static void test_two(void)
{
    struct sf_setup setup = setup_of(8, 2, 16, 1);
    struct sf_stack stack = { 0 };
    struct sf_stack_entry *entry;
    int32_t k, v;
    for (int i = 0; i < 2; i++) {
        SF_MUST(sf_stack_add(&stack, "xkv", &entry));
        SF_MUST(sf_opt_set(sf_opt_find(entry->method->opts, "rank_k"), entry->cfg, i ? "8" : "40"));
        SF_MUST(sf_opt_set(sf_opt_find(entry->method->opts, "rank_v"), entry->cfg, i ? "0" : "12"));
    }
    CHECK_REFUSED(sf_stack_check(&stack, &setup), SF_UNSUPPORTED,
                  "methods xkv and xkv act on the same heads; give them different `layers:`");
    snprintf(stack.entry[0].layers_text, sizeof stack.entry[0].layers_text, "0-2");
    snprintf(stack.entry[1].layers_text, sizeof stack.entry[1].layers_text, "3-7");
    SF_MUST(sf_stack_check(&stack, &setup));
    for (int32_t l = 0; l < 8; l++) {
        SF_CHECK_INT(sf_stack_entry_of(&stack, &setup, l, 1), l > 2);
        SF_CHECK_INT(stack.entry[0].shape.layer_group[l], l > 2 ? -1 : 0);
        SF_CHECK_INT(stack.entry[1].shape.layer_group[l], l > 2 ? (l - 3) / 4 : -1);
    }
    sf_account_group_ranks(&setup, &stack.entry[0], 0, &k, &v);
    SF_CHECK_INT(k, 30);
    SF_CHECK_INT(v, 9);
    sf_account_group_ranks(&setup, &stack.entry[1], 7, &k, &v);
    SF_CHECK_INT(k, 2);
    SF_CHECK_INT(v, 0);
    sf_stack_free(&stack);
}

/* rank_v 0: n values of each lane as they are, in pages that hold nothing else. */
static void test_exact_values(void)
{
    struct sf_setup setup = setup_of(32, 8, 128, 1);
    struct sf_stack stack;
    int32_t k, v, n = 32768, lanes = 32;
    SF_MUST(check(&stack, &setup, "rank_v", "0"));
    for (int32_t t = 424; t <= 65536; t = t * 3 + 1) {
        int64_t elements = INT64_C(8) * t * 384 + INT64_C(32) * 8 * 128 * (384 + t);
        SF_CHECK_INT(stored(&setup, &stack, t), 2 * elements + INT64_C(8) * 256 * t);
    }
    SF_CHECK_INT(stored(&setup, &stack, 423), INT64_C(423) * 256 * (256 * 2 + 8));
    sf_account_group_ranks(&setup, &stack.entry[0], 0, &k, &v);
    SF_CHECK_INT(k, 384);
    SF_CHECK_INT(v, 0);
    struct sf_lowrank_ask ask = { .setup = &setup, .shape = &stack.entry[0].shape,
                                  .tier = &stack.entry[0].plan.tier[1],
                                  .raw = { SF_BF16, 128, 128, 128 }, .ranks = 1, .lanes = lanes,
                                  .tokens = n };
    struct sf_lowrank_size size;
    SF_MUST(sf_lowrank_sizes(&ask, &size));
    SF_CHECK_INT(size.values.page_slots, 2 * 128);
    SF_CHECK_INT(size.value_pages, n / 256);
    SF_CHECK_INT(size.value_bytes, INT64_C(2) * 128 * n);
    int64_t pages = size.basis_pages + (int64_t)lanes * (size.factor_pages + size.value_pages);
    SF_CHECK(pages * 1000 < (int64_t)lanes * (n / 128) * 575); /* stored: 0.56 of the exact cache */
    sf_stack_free(&stack);
}

/* The published ratio of selective reading leaves out what stays raw, and counts 8 B of nothing. */
static void test_selective(void)
{
    struct sf_setup setup = setup_of(32, 8, 128, 1);
    struct sf_stack stack;
    SF_MUST(check(&stack, &setup, "reconstruction", "selective"));
    const int64_t lanes = 256, raw = 256 * 2 + 8, mark = 128 * 2 + 8;
    for (int32_t n = 2463; n <= 70000; n = n * 3 + 11) { /* the sheet: 2464 at the least */
        int64_t chunks = n / 8 - 4, rows = n < 2464 ? n : 8 * chunks;
        int64_t bytes = 2 * (INT64_C(8) * rows * 960 + lanes * 128 * 960) + lanes * 8 * rows;
        if (n >= 2464) bytes += lanes * ((n - rows + 48 * 8) * raw + (chunks - 48) * mark);
        SF_CHECK_INT(stored(&setup, &stack, n), bytes);
    }
    int64_t elements = INT64_C(8) * 65536 * 960 + lanes * 128 * 960 + lanes * 128 * 65536 / 8;
    double ratio = 2.0 * (double)lanes * 128 * 65536 / (double)elements;
    SF_CHECK(ratio > 5.345 && ratio < 5.355); /* of the formula, with landmarks of all chunks */
    sf_stack_free(&stack);
}

/* Processor seconds of counting a sequence's bytes, all lanes in one group; the least of some. */
static double seconds_of(int32_t heads)
{
    struct sf_setup setup = setup_of(LAYERS_MAX, heads, 64, 1);
    struct sf_stack stack;
    double least = INFINITY;
    SF_CHECK_OK(check(&stack, &setup, "group_size", "40"));
    for (int i = 0; i < 5; i++) {
        clock_t start = clock();
        SF_CHECK(stored(&setup, &stack, 4096) > 0);
        least = fmin(least, (double)(clock() - start) / CLOCKS_PER_SEC);
    }
    sf_stack_free(&stack);
    return least;
}

/* A group of eight times as many lanes takes about so much longer, not 64 times. */
static void test_many_lanes(void)
{
    double some = seconds_of(25), many = seconds_of(200);
    if (many > 24 * some + 0.01)
        sf_test_fail(__FILE__, __LINE__, "%g s for 1,000 lanes, %g s for 8,000", some, many);
}

/* With `auto` a prompt is encoded where that takes no more elements: those of a slot, and 8 bytes a
 * slot, an outlier and a landmark beside them.  Prompts may pay while they are dense and, a little
 * longer, read by chunks, not yet. */
static void check_pays(const struct rig_option *option, int32_t options, int32_t size,
                       int32_t outliers)
{
    struct sf_setup setup = setup_of(2, 2, 32, 1);
    struct sf_stack stack[2];
    const int64_t lanes = 4;
    int32_t changes = 0, was = 0;
    for (int s = 0; s < 2; s++) {
        struct sf_stack_entry *entry;
        stack[s] = (struct sf_stack){ 0 };
        SF_MUST(sf_stack_add(&stack[s], "xkv", &entry));
        for (int32_t i = 0; i < options; i++)
            SF_MUST(sf_opt_set(sf_opt_find(entry->method->opts, option[i].key), entry->cfg,
                               option[i].text));
        if (s == 1)
            SF_MUST(sf_opt_set(sf_opt_find(entry->method->opts, "min_prompt_tokens"), entry->cfg,
                               "1"));
        SF_MUST(sf_stack_check(&stack[s], &setup));
    }
    for (int32_t n = 1; n < 1200; n++) {
        int64_t exact = lanes * n * (64 * 2 + 8), encoded = stored(&setup, &stack[1], n);
        int32_t chunks = n / size - 3, picks = 20 / size;
        int64_t beside = chunks >= outliers + picks ? outliers * (size - 1) + chunks : 0;
        int pays = encoded - 8 * lanes * beside <= exact;
        SF_CHECK_INT(stored(&setup, &stack[0], n), pays ? encoded : exact);
        changes += pays != was;
        was = pays;
    }
    SF_CHECK_INT(changes, 3);           /* pays as it is, not yet by chunks, by chunks */
    for (int s = 0; s < 2; s++) sf_stack_free(&stack[s]);
}

static void test_pays(void)
{
    static const struct rig_option both[] = {
        { "reconstruction", "selective" }, { "group_size", "2" }, { "rank_k", "20" },
        { "rank_v", "24" }, { "chunk_size", "4" }, { "budget_tokens", "20" },
        { "local_chunks", "3" }, { "outlier_chunks", "24" } };
    static const struct rig_option keys[] = {
        { "reconstruction", "selective" }, { "group_size", "2" }, { "rank_k", "20" },
        { "rank_v", "0" }, { "chunk_size", "5" }, { "budget_tokens", "20" },
        { "local_chunks", "3" }, { "outlier_chunks", "20" } };
    check_pays(both, 8, 4, 24);
    check_pays(keys, 8, 5, 20);
}

/* Slots of one byte an element are cheaper to leave raw: basis and factors have two. */
static void test_int8(void)
{
    static const char *const ways[] = { "dense", "selective" };
    for (int w = 0; w < 2; w++) {
        struct sf_setup setup = setup_of(32, 8, 128, 1);
        struct sf_stack stack;
        int32_t raw = 0, encoded = 0;
        setup.kv_dtype = SF_INT8;
        SF_MUST(check(&stack, &setup, "reconstruction", ways[w]));
        for (int32_t n = 100; n <= 65536; n += n / 9) {
            struct sf_cost cost = cost_of(&setup, &stack, SF_INT8, n, n);
            SF_CHECK(cost.bytes_hi <= cost.bytes_exact);
            raw += cost.bytes_hi == cost.bytes_exact;
            encoded += cost.bytes_hi < cost.bytes_exact;
        }
        SF_CHECK(raw > 10 && encoded > 10);
        sf_stack_free(&stack);
        CHECK_REFUSED(check(&stack, &setup, "refactor_every", "600"), SF_INVALID, "so few tokens");
        sf_stack_free(&stack);
    }
}

/* Segments of what was generated have factors each, and ranks of no more than their rows. */
static void test_segments(void)
{
    struct sf_setup setup = setup_of(32, 8, 128, 1);
    struct sf_stack stack;
    int64_t lanes = 256, exact = 256 * 2, factors = lanes * 128 * 960;
    SF_MUST(check(&stack, &setup, "refactor_every", "2048"));
    SF_CHECK_INT(sf_stack_interval(&stack), 2048);
    for (int32_t sealed = 0; sealed < 4; sealed++)
        for (int32_t more = 0; more < 2048; more += 682) {
            int32_t n = 3000 + 2048 * sealed, tokens = n + more;
            int64_t elements = INT64_C(8) * n * 960 + (1 + sealed) * factors + lanes * more * 256;
            SF_CHECK_INT(stored_of(&setup, &stack, 3000, tokens),
                         2 * elements + 8 * lanes * tokens);
            /* A prompt that stays exact does not keep its answer from being sealed. */
            elements -= INT64_C(8) * 3000 * 960 + factors;
            SF_CHECK_INT(stored_of(&setup, &stack, 500, tokens - 2500),
                         2 * elements + lanes * 500 * exact + 8 * lanes * (tokens - 2500));
        }
    sf_stack_free(&stack);
    CHECK_REFUSED(check(&stack, &setup, "refactor_every", "543"), SF_INVALID, "from 544 on");
    sf_stack_free(&stack);
    SF_CHECK_OK(check(&stack, &setup, "refactor_every", "544"));
    SF_CHECK_INT(sf_stack_interval(&stack), 544);
    sf_stack_free(&stack);
    SF_MUST(check(&stack, &setup, NULL, NULL));
    SF_CHECK_INT(sf_stack_interval(&stack), 0);
    const struct sf_opt *opts = stack.entry[0].method->opts;
    SF_MUST(sf_opt_set(sf_opt_find(opts, "refactor_every"), stack.entry[0].cfg, "10"));
    SF_MUST(sf_opt_set(sf_opt_find(opts, "min_prompt_tokens"), stack.entry[0].cfg, "1000"));
    SF_CHECK_OK(sf_stack_check(&stack, &setup));
    int64_t one = INT64_C(8) * 10 * 20 + lanes * 128 * 20;      /* of rank 10 */
    SF_CHECK_INT(stored_of(&setup, &stack, 100, 125),
                 2 * 2 * one + lanes * 105 * exact + 8 * lanes * 125);
    sf_stack_free(&stack);
    setup = setup_of(4, 2, 16, 1);      /* full rank: it never pays */
    CHECK_REFUSED(check(&stack, &setup, "refactor_every", "100000"), SF_INVALID,
                  "never take less than what they replace");
    sf_stack_free(&stack);
}

static void test_ranks(void)
{
    struct sf_setup setup = setup_of(5, 8, 128, 1);
    struct sf_stack stack;
    int32_t k, v;
    SF_MUST(check(&stack, &setup, NULL, NULL));
    sf_account_group_ranks(&setup, &stack.entry[0], 4, &k, &v);
    SF_CHECK_INT(k, 96);                /* of one layer: 384 / 4 */
    SF_CHECK_INT(v, 144);
    sf_stack_free(&stack);
    setup = setup_of(4, 8, 128, 5);     /* local heads: ceil(r / p) */
    SF_MUST(check(&stack, &setup, NULL, NULL));
    sf_account_group_ranks(&setup, &stack.entry[0], 0, &k, &v);
    SF_CHECK_INT(k, 77);
    SF_CHECK_INT(v, 116);
    sf_stack_free(&stack);
    setup = setup_of(4, 2, 16, 1);      /* never more than there are columns */
    SF_MUST(check(&stack, &setup, NULL, NULL));
    sf_account_group_ranks(&setup, &stack.entry[0], 0, &k, &v);
    SF_CHECK_INT(k, 128);
    SF_CHECK_INT(v, 128);
    SF_CHECK_INT(stored(&setup, &stack, 5000), INT64_C(5000) * 8 * (32 * 2 + 8));
    sf_stack_free(&stack);
}

static void test_refusals(void)
{
    struct sf_setup setup = setup_of(8, 2, 16, 1);
    struct sf_stack stack;
    struct sf_stack_entry *entry;
    static const char *const unbuilt[][3] = {
        { "factor_dtype", "int8", "factor_dtype: int8 is not built yet" } };
    for (size_t i = 0; i < sizeof unbuilt / sizeof unbuilt[0]; i++) {
        CHECK_REFUSED(check(&stack, &setup, unbuilt[i][0], unbuilt[i][1]), SF_UNSUPPORTED,
                      unbuilt[i][2]);
        sf_stack_free(&stack);
    }
    setup.tokens_max = 8 * SF_LANDMARKS_MAX + 8;
    SF_CHECK_OK(check(&stack, &setup, NULL, NULL));
    sf_stack_free(&stack);
    CHECK_REFUSED(check(&stack, &setup, "reconstruction", "selective"), SF_INVALID,
                  "in chunks of 8 are more than 32768 landmarks");
    sf_stack_free(&stack);
    setup.tokens_max = TOKENS;
    CHECK_REFUSED(check(&stack, &setup, "start_layer", "8"), SF_INVALID, "of a model that has 8");
    sf_stack_free(&stack);
    SF_MUST(sf_stack_add(&stack, "xkv", &entry));
    SF_MUST(sf_stack_add(&stack, "ems", &entry));
    CHECK_REFUSED(sf_stack_check(&stack, &setup), SF_UNSUPPORTED, "a token that ems drops from one"
                  " head would be gone from all heads and layers of the group in which xkv has it;"
                  " give them different `layers:` or `on:`");
    sf_stack_free(&stack);
    SF_MUST(sf_stack_add(&stack, "xkv", &entry));
    SF_MUST(sf_stack_add(&stack, "window", &entry));
    CHECK_REFUSED(sf_stack_check(&stack, &setup), SF_UNSUPPORTED, "a token that window drops from"
                  " one head would be gone from all heads and layers of the group in which xkv has"
                  " it");
    snprintf(stack.entry[0].layers_text, sizeof stack.entry[0].layers_text, "0-3");
    snprintf(stack.entry[1].layers_text, sizeof stack.entry[1].layers_text, "4-7");
    SF_CHECK_OK(sf_stack_check(&stack, &setup));
    setup.page_slots = 16;              /* a row of 128 + 128 elements, pages for 32 */
    SF_CHECK(!sf_stack_tiers_fit(&stack, &setup, SF_F32));
    setup.page_slots = 128;
    SF_CHECK(sf_stack_tiers_fit(&stack, &setup, SF_F32));
    sf_stack_free(&stack);
}

static const struct sf_test tests[] = {
    { "groups", test_groups }, { "bytes, selective", test_selective },
    { "a prompt that is encoded pays", test_pays },
    { "slots in int8", test_int8 }, { "many lanes", test_many_lanes },
    { "listed groups", test_listed },
    { "bytes are those of the formula", test_formula }, { "exact values", test_exact_values },
    { "rates", test_rates }, { "two entries", test_two },
    { "segments of the answer", test_segments }, { "ranks", test_ranks },
    { "refusals", test_refusals }, { NULL, NULL }
};
SF_TEST_MAIN("kvshard_xkv", tests)
