/* tests/unit/plan/groups.c: how stages are cut where layers share bases, on a made-up model whose
 * layers cost the same and whose output head costs next to nothing: the examples of xkv's
 * description, with and without room for stages that end between groups; and groups that are
 * listed.  Then what a plan says of them: those that hold no lane are left out, a segment of the
 * answer has its bytes, worked out here, and a basis that takes LAPACK too long is warned of. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/opt.h"
#include "coordinator/plan_groups.h"
#include "coordinator/plan_impl.h"
#include "tests/check.h"
#include "tests/unit/model/hf_dir.h"

enum { LAYERS_MAX = 32, STAGES_MAX = 4 };
static struct sf_layer_desc layer[LAYERS_MAX];

static void set(struct sf_stack_entry *entry, const char *key, const char *text)
{
    if (text) SF_MUST(sf_opt_set(sf_opt_find(entry->method->opts, key), entry->cfg, text));
}

/* "8/8/8/4 [0-3][4-7]...", or why the stages are refused.  also: layers of a second entry, which
 * has the tolerance then. */
static void cut(int32_t layers, int32_t stages, const char *tolerance, const char *groups,
                const char *also, char *out, size_t bytes)
{
    struct sf_model_desc desc = { .layers = layers, .d_model = 4096, .ffn = 14336, .vocab = 1,
                                  .layer = layer, .rope_dim = 128 };
    struct sf_launch_plan plan = { .dtype = SF_BF16, .kv_dtype = SF_BF16, .seqs_max = 4,
                                   .tokens_max = 1024 };
    struct sf_stack stack = { 0 };
    struct sf_stack_entry *entry;
    struct sf_setup setup;
    int32_t count[STAGES_MAX], *stage = calloc((size_t)layers, sizeof *stage);
    size_t used = 0;
    for (int32_t l = 0; l < layers; l++) layer[l] = (struct sf_layer_desc){ 32, 8, 128, 128, 0 };
    SF_MUST(sf_setup_make(&desc, 1, 128, 1024, &setup));
    SF_MUST(sf_stack_add(&stack, "xkv", &entry));
    set(entry, "layer_groups", groups);
    if (also) {
        SF_MUST(sf_stack_add(&stack, "xkv", &entry));
        snprintf(entry->layers_text, sizeof entry->layers_text, "%s", also);
    }
    set(entry, "pp_imbalance_tolerance", tolerance);
    SF_MUST(sf_stack_check(&stack, &setup));
    SF_MUST(sf_cut_layers(&desc, &plan, &setup, &stack, stages, count));
    for (int32_t s = 0, l = 0; s < stages; s++) {
        used += (size_t)snprintf(out + used, bytes - used, "%s%d", s ? "/" : "", count[s]);
        for (int32_t i = 0; i < count[s]; i++) stage[l++] = s;
    }
    setup.stage = stage;
    if (sf_stack_check(&stack, &setup) != SF_OK) {
        snprintf(out, bytes, "%s", sf_error_text());
    } else {
        const int16_t *group = stack.entry[0].shape.layer_group;
        out[used++] = ' ';
        for (int32_t l = 0, end; l < layers; l = end) {
            for (end = l + 1; end < layers && group[end] == group[l]; end++) { }
            if (group[l] < 0) continue;
            used += (size_t)snprintf(out + used, bytes - used, end - l > 1 ? "[%d-%d]" : "[%d]", l,
                                     end - 1);
        }
    }
    sf_setup_free(&setup);
    sf_stack_free(&stack);
}

static void check(int32_t layers, int32_t stages, const char *tolerance, const char *groups,
                  const char *also, const char *expected)
{
    char is[512];
    cut(layers, stages, tolerance, groups, also, is, sizeof is);
    if (strstr(is, expected) == NULL)
        sf_test_fail(__FILE__, __LINE__, "%d layers, %d stages: '%s', not '%s'", layers, stages, is,
                     expected);
}

static void test_cut(void)
{
    static const struct { int32_t layers, stages; const char *tolerance, *groups, *expected; }
    cases[] = {
        { 28, 4, NULL, NULL, "8/8/8/4 [0-3][4-7][8-11][12-15][16-19][20-23][24-27]" },
        { 28, 4, "0.1", NULL, "7/7/7/7 [0-3][4-6][7-10][11-13][14-17][18-20][21-24][25-27]" },
        { 10, 2, "0.1", NULL, "5/5 [0-3][4][5-8][9]" },
        { 10, 2, NULL, NULL, "4/6 [0-3][4-7][8-9]" },
        { 32, 4, "0.0", NULL, "8/8/8/8 [0-3][4-7][8-11][12-15][16-19][20-23][24-27][28-31]" },
        { 12, 2, NULL, "[0-3, 4-6, 7-11]", "7/5 [0-3][4-6][7-11]" },
        /* listed groups are whole, whatever that costs */
        { 12, 2, "0.1", "[0-3, 4-6, 7-11]", "7/5 [0-3][4-6][7-11]" },
        { 12, 2, "0.1", "[0-3, 4-5, 7-11]", "6/6 [0-3][4-5][7-11]" },
        { 12, 3, NULL, "[0-6]", "7/3/2 [0-6]" },
        { 6, 3, NULL, "[0-4]", "layer_groups has 0-4, but pipeline stages 0 and 1 meet" } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check(cases[i].layers, cases[i].stages, cases[i].tolerance, cases[i].groups, NULL,
              cases[i].expected);
}

/* Groups of another entry may be cut where they would cost too much whole; listed ones never. */
static void test_two(void)
{
    check(20, 2, "0.3", "[2-3]", "8-11", "12/8 [2-3]");
    check(20, 2, "0.1", "[2-3]", "8-11", "10/10 [2-3]");
    check(20, 2, "0.1", "[7-14]", "0-6", "7/13 [7-14]");
}

/* ---- what a plan says ------------------------------------------------------------------------ */
struct said { char text[16384], groups[4096]; };

/* Of 8 layers with 8 KV heads of 128. */
static void plan_says(int32_t tensor, const char *config, struct said *said)
{
    struct sf_config cfg;
    struct sf_model *model;
    struct sf_cluster cluster;
    struct sf_launch_plan plan;
    char text[1024], *small = hf_edit(hf_llama_405b, "\"num_hidden_layers\": 126",
                                      "\"num_hidden_layers\": 8"), *out;
    size_t bytes;
    sf_status status = SF_OK;
    snprintf(text, sizeof text, "schema_version: 1\nparallel: {tensor_parallel_size: %d}\n%s",
             tensor, config);
    memset(said, 0, sizeof *said);
    SF_MUST(sf_config_parse("job.yaml", text, strlen(text), NULL, &cfg));
    SF_MUST(sf_model_open_header(hf_dir(small, strlen(small)), &model));
    SF_MUST(sf_cluster_make(1, tensor, 8, INT64_C(64) << 30, &cluster));
    SF_MUST(sf_launch_plan_make(&cfg, model, &cluster, &plan));
    SF_MUST(sf_launch_plan_text(&plan, &cfg, model, &out));
    snprintf(said->text, sizeof said->text, "%s", out);
    free(out);
    struct sf_json *groups = sf_plan_groups_json(&plan, &cfg.kv.stack, &status);
    SF_MUST(status);
    SF_MUST(sf_json_dump(groups, 0, &out, &bytes));
    snprintf(said->groups, sizeof said->groups, "%s", out);
    free(out);
    sf_json_free(groups);
    sf_launch_plan_free(&plan);
    sf_cluster_free(&cluster);
    sf_model_close(model);
    sf_config_free(&cfg);
    free(small);
    hf_dir_close();
}

static void says(int line, const char *text, const char *part, int expected)
{
    if ((strstr(text, part) != NULL) != expected)
        sf_test_fail(__FILE__, line, "'%s' is%s in: %s", part, expected ? " not" : "", text);
    else
        CU_PASS("as expected");
}

static void test_empty(void)
{
    struct said said;
    plan_says(1, "kv_cache: {methods: [{name: razor_attention, retrieval_heads: [[1, 0], [6, 3]]},"
              " {name: xkv, on: retrieval, group_size: 2, rank_k: 32, rank_v: 48}]}\n", &said);
    says(__LINE__, said.text, "xkv: 2 of up to 2 layers, ranks K 2 V 3: 0-1 6-7\n", 1);
    says(__LINE__, said.groups, "\"layers\":[0,1]", 1);
    says(__LINE__, said.groups, "\"layers\":[6,7]", 1);
    says(__LINE__, said.groups, "\"layers\":[2,3]", 0);
    says(__LINE__, said.groups, "\"layers\":[4,5]", 0);
}

/* 2 bytes an element: 2 bases of 2048 rows of 960, 64 lanes of 128 x 960, 8 bytes a slot.  Two
 * tensor ranks have half of the columns each, so half of the factors. */
static void test_segments(void)
{
    static const char *const sinks[] = { "", ", num_sink_tokens: 5" };
    struct said said;
    char config[256];
    for (int i = 0; i < 2; i++) {
        snprintf(config, sizeof config, "kv_cache: {methods: [{name: xkv, refactor_every: 2048%s}]}"
                 "\n", sinks[i]);
        plan_says(1, config, &said);
        says(__LINE__, said.text, "refactor_every 2048: each so many tokens of an answer come to"
             " 23.50 MiB with a basis of their own, 65.00 raw\n", 1);
    }
    plan_says(2, config, &said);
    says(__LINE__, said.text, " come to 16.00 MiB with a basis of their own, 65.00 raw\n", 1);
    plan_says(1, "kv_cache: {methods: [{name: xkv}]}\n", &said);
    says(__LINE__, said.text, "refactor_every", 0);
}

static void test_slow(void)
{
    static const struct { const char *config; int warns; } cases[] = {
        { "kv_cache: {methods: [{name: xkv, svd: {method: exact}}]}\n", 1 },
        { "kv_cache: {methods: [{name: xkv, svd: {method: gram}}]}\n", 1 },
        { "kv_cache: {methods: [{name: xkv, svd: {method: randomized}}]}\n", 0 },
        { "run: {rank_timeout_s: 3600}\n"
          "kv_cache: {methods: [{name: xkv, svd: {method: exact}}]}\n", 0 },
        { "scheduler: {max_model_len: 600}\n"
          "kv_cache: {methods: [{name: xkv, svd: {method: exact}}]}\n", 0 } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct said said;
        plan_says(1, cases[i].config, &said);
        says(__LINE__, said.text, "warning: a basis of 131072 tokens takes about ", cases[i].warns);
    }
}

static const struct sf_test tests[] = { { "cut", test_cut }, { "two entries", test_two },
                                        { "groups without lanes", test_empty },
                                        { "segments", test_segments }, { "slow", test_slow },
                                        { NULL, NULL } };
SF_TEST_MAIN("plan_groups", tests)
