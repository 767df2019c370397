/* tests/unit/coordinator/idle.c: counts of what methods did and why not.
 *
 * Records are added by hand with the bits of their receipts: each entry counts those that it
 * changed and, by reason, the others; an entry is idle only when it changed none of any; more
 * reasons than there are places for are counted together; entries that edit nothing are not spoken
 * of; nothing is idle before the first record. */
#include "coordinator/idle.h"

#include <stdlib.h>

#include "base/opt.h"
#include "model/desc.h"
#include "proto/wire.h"
#include "tests/check.h"

enum { LAYERS = 3 };

struct made { struct sf_layer_desc layer[LAYERS]; struct sf_setup setup; struct sf_stack stack; };

static sf_status add(struct made *m, const char *method, const char *layers, const char *key,
                     const char *value)
{
    struct sf_stack_entry *entry;
    SF_TRY(sf_stack_add(&m->stack, method, &entry));
    snprintf(entry->layers_text, sizeof entry->layers_text, "%s", layers);
    if (key == NULL) return SF_OK;
    return sf_opt_set(sf_opt_find(entry->method->opts, key), entry->cfg, value);
}

static sf_status make(struct made *m)
{
    *m = (struct made){.stack = {NULL, 0}};
    for (int l = 0; l < LAYERS; l++) m->layer[l] = (struct sf_layer_desc){4, 2, 8, 8, 0};
    struct sf_model_desc desc = {.layers = LAYERS, .layer = m->layer};
    SF_TRY(sf_setup_make(&desc, 1, 16, 4096, &m->setup));
    SF_TRY(add(m, "window", "0", "recent_tokens", "96"));      /* full with 101 */
    SF_TRY(add(m, "none", "1", NULL, NULL));
    SF_TRY(add(m, "ems", "2", "budget_tokens", "200"));        /* full with 232 */
    return sf_stack_check(&m->stack, &m->setup);
}

static void check_json(const struct sf_idle *idle, const char *expected)
{
    struct sf_json *json = sf_idle_json(idle);
    char *text = NULL;
    size_t bytes;
    SF_CHECK_OK(sf_json_dump(json, 0, &text, &bytes));
    SF_CHECK_STR(text, expected);
    free(text);
    sf_json_free(json);
}

static void counts(void)
{
    struct made m;
    struct sf_idle idle;
    SF_MUST(make(&m));
    SF_MUST(sf_idle_make(&m.setup, &m.stack, &idle));
    for (int32_t e = 0; e < 3; e++) SF_CHECK(!sf_idle_is(&idle, e));
    SF_CHECK_OK(sf_idle_add(&idle, 50, 60, 0));
    SF_CHECK(sf_idle_is(&idle, 0) && !sf_idle_is(&idle, 1) && sf_idle_is(&idle, 2));
    SF_CHECK_OK(sf_idle_add(&idle, 150, 160, 1u << 0));
    SF_CHECK_OK(sf_idle_add(&idle, 300, 310, 1u << 0));         /* ems was due and kept all */
    SF_CHECK(!sf_idle_is(&idle, 0) && sf_idle_is(&idle, 2));
    check_json(&idle, "[{\"name\":\"window\",\"entry\":0,\"changed\":2,\"unchanged\":"
               "{\"fewer tokens than the 101 with which a lane is full\":1}},"
               "{\"name\":\"ems\",\"entry\":2,\"changed\":0,\"unchanged\":"
               "{\"fewer tokens than the 232 with which a lane is full\":2,"
               "\"its events came, and it kept every slot\":1}}]");
    SF_CHECK_OK(sf_idle_add(&idle, 300, 310, 1u << sf_wire_changed_bit(2)));
    SF_CHECK(!sf_idle_is(&idle, 2));
    SF_CHECK_INT(idle.records, 4);
    sf_idle_free(&idle);
    sf_stack_free(&m.stack);
    sf_setup_free(&m.setup);
}

/* A method whose words differ from prompt to prompt, against the rule. */
static char many_words[32];
static const char *say_many(const struct sf_setup *setup, const struct sf_spot *spot)
{
    (void)setup;
    snprintf(many_words, sizeof many_words, "prompt %d", spot->prompt);
    return many_words;
}

static sf_status plan_many(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    plan->whens = 1u << SF_AT_PREFILL_END;
    plan->edits = SF_EDITS_KEEP;
    return SF_OK;
}

static sf_status foot_many(const struct sf_setup *setup, const struct sf_spot *spot,
                           struct sf_foot *foot)
{
    (void)setup;
    foot->slots_lo[0] = foot->slots_hi[0] = spot->tokens;
    foot->slots_peak = spot->prompt;
    return SF_OK;
}

static void many_reasons(void)
{
    static const struct sf_opt no_opts[] = {{.key = NULL}};
    static const struct sf_policy_ops policy = {.plan = plan_many, .footprint = foot_many,
                                                .idle = say_many};
    static const struct sf_method method = {.name = "many", .paper = "-", .opts = no_opts,
                                            .cfg_bytes = 1, .policy = &policy};
    struct made m;
    struct sf_idle idle;
    struct sf_stack_entry *entry;
    struct sf_stack stack = {NULL, 0};
    SF_MUST(make(&m));
    SF_MUST(sf_stack_add_method(&stack, &method, &entry));
    SF_MUST(sf_stack_check(&stack, &m.setup));
    SF_MUST(sf_idle_make(&m.setup, &stack, &idle));
    for (int32_t i = 0; i < 20; i++) SF_CHECK_OK(sf_idle_add(&idle, 1 + i % 10, 20, 0));
    SF_CHECK_INT(idle.entry[0].reasons, SF_IDLE_REASONS);
    SF_CHECK_STR(idle.entry[0].reason[0].words, "prompt 1");
    SF_CHECK_INT(idle.entry[0].reason[0].records, 2);
    SF_CHECK_STR(idle.entry[0].reason[SF_IDLE_REASONS - 1].words, "other reasons");
    SF_CHECK_INT(idle.entry[0].reason[SF_IDLE_REASONS - 1].records,
                 20 - 2 * (SF_IDLE_REASONS - 1));
    sf_idle_free(&idle);
    sf_stack_free(&stack);
    sf_stack_free(&m.stack);
    sf_setup_free(&m.setup);
}

static const struct sf_test tests[] = {
    {"counts", counts},
    {"many reasons", many_reasons},
    {NULL, NULL}};
SF_TEST_MAIN("idle", tests)
