/* tests/unit/plan/groups.c: how stages are cut where layers share bases, on a made-up model whose
 * layers cost the same and whose output head costs next to nothing: the examples of xkv's
 * description, with and without room for stages that end between groups; and groups that are
 * listed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/opt.h"
#include "coordinator/plan_impl.h"
#include "tests/check.h"

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

static const struct sf_test tests[] = { { "cut", test_cut }, { "two entries", test_two },
                                        { NULL, NULL } };
SF_TEST_MAIN("plan_groups", tests)
