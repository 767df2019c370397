/* tests/unit/kvshard/stack.c: at plan time a stack is legal or refused in words.  Every single
 * thing that a method may ask for and the store does not have is refused by its own sentence; so
 * are plans that make no sense, lists of layers that cannot be read, and two methods on a head. */
#include <stdlib.h>

#include "base/opt.h"
#include "kvshard/methods.h"
#include "model/desc.h"
#include "tests/unit/kvshard/rig.h"
#include "tests/unit/kvshard/script.h"

enum { LAYERS = 3, HEADS = 2 };

static sf_status setup_make(int32_t tp_size, struct sf_setup *setup)
{
    static const struct sf_layer_desc layer[LAYERS] = {
        { 4, HEADS, 8, 6, 0 }, { 4, HEADS, 8, 6, 5 }, { 4, HEADS, 8, 6, 0 } };
    static const struct sf_model_desc desc = { .layers = LAYERS, .layer = layer, .rope_dim = 8 };
    return sf_setup_make(&desc, tp_size, 16, 100, setup);
}

/* ---- one ask at a time ---------------------------------------------------------------------- */
static int64_t reduces;                 /* bytes that every plan asks to reduce */
static sf_status plain_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    *plan = script.plan;
    if (reduces > 0) plan->reduce_bytes = reduces;
    return SF_OK;
}
static struct sf_foot foot_of_last_head;
static sf_status plain_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                                 struct sf_foot *foot)
{
    foot->slots_hi[0] = spot->tokens;
    if (spot->layer == setup->layers - 1 && spot->head_global == HEADS - 1)
        *foot = foot_of_last_head;
    return SF_OK;
}
static sf_status nothing(const struct sf_env *env, enum sf_when when, const struct sf_batch *batch,
                         struct sf_answer *answer)
{
    (void)env; (void)when; (void)batch; (void)answer;
    return SF_OK;
}
static sf_status no_select(const struct sf_env *env, const struct sf_batch *batch,
                           struct sf_answer *answer)
{
    (void)env; (void)batch; (void)answer;
    return SF_OK;
}
static sf_status no_admit(const struct sf_setup *setup, const struct sf_prompt *prompt,
                          struct sf_admit *admit)
{
    (void)setup; (void)prompt; (void)admit;
    return SF_OK;
}
static sf_status last_layer_groups(const struct sf_setup *setup, struct sf_shape *shape)
{
    shape->layer_group[setup->layers - 1] = 0;
    return SF_OK;
}

static const struct sf_policy_ops ops = { .plan = plain_plan, .footprint = plain_footprint,
                                          .compress = nothing },
    ops_select = { .plan = plain_plan, .footprint = plain_footprint, .compress = nothing,
                   .select = no_select },
    ops_admit = { .plan = plain_plan, .footprint = plain_footprint, .compress = nothing,
                  .admit = no_admit },
    ops_group = { .plan = plain_plan, .footprint = plain_footprint, .compress = nothing,
                  .shape = last_layer_groups },
    ops_default = { .plan = plain_plan, .footprint = plain_footprint };
static const struct sf_method plain = { .name = "plain", .policy = &ops },
                              selects = { .name = "selects", .policy = &ops_select },
                              admits = { .name = "admits", .policy = &ops_admit },
                              groups = { .name = "groups", .policy = &ops_group },
                              by_default = { .name = "by_default", .policy = &ops_default },
                              recipe = { .name = "recipe" };

static sf_status check_one(const struct sf_method *method, int32_t tp_size)
{
    struct sf_setup setup;
    struct sf_stack stack = { 0 };
    struct sf_stack_entry *entry;
    SF_TRY(setup_make(tp_size, &setup));
    sf_status status = sf_stack_add_method(&stack, method, &entry);
    if (status == SF_OK) status = sf_stack_check(&stack, &setup);
    sf_stack_free(&stack);
    sf_setup_free(&setup);
    return status;
}

/* What is legal, to be changed in one place by each case. */
static struct sf_plan *legal(void)
{
    script.plan = (struct sf_plan){ .whens = 1u << SF_AT_PREFILL_END, .edits = SF_EDITS_KEEP };
    foot_of_last_head = (struct sf_foot){ .slots_hi = { 100 } };
    return &script.plan;
}
#define LACKS(change, words)                                                                       \
    do {                                                                                           \
        struct sf_plan *plan = legal();                                                            \
        change;                                                                                    \
        (void)plan;                                                                                \
        CHECK_REFUSED(check_one(&plain, 1), SF_UNSUPPORTED,                                        \
                      "method plain needs " words ", which this version does not have");           \
    } while (0)

static const struct sf_watch summed = { .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_SUM };

static void test_asks(void)
{
    legal();
    SF_CHECK_OK(check_one(&plain, 1));
    SF_CHECK_OK(check_one(&plain, 4));
    LACKS(plan->needs = SF_NEED_TOKENS, "token ids on every stage");
    LACKS(plan->needs = SF_NEED_SENTENCES, "sentence ends");
    LACKS(plan->needs = SF_NEED_Q_MAX, "the largest queries of the prompt");
    LACKS(plan->needs = SF_NEED_PROFILE, "a calibration profile");
    LACKS(plan->needs = SF_NEED_INNER, "a method to refine");
    LACKS(plan->needs = SF_NEED_SELECT_PREFILL, "picks in the prompt");
    LACKS(plan->needs = 1u << 30, "something of which the store knows nothing");
    LACKS(plan->whens |= 1u << SF_AT_SENTENCE_END, "events at sentence or turn ends");
    LACKS(plan->whens |= 1u << SF_AT_TURN_END, "events at sentence or turn ends");
    LACKS((plan->whens |= 1u << SF_AT_PRESSURE, plan->reduce_bytes = 8),
          "reductions under memory pressure");
    LACKS((plan->whens |= 1u << SF_AT_PRESSURE, plan->watch[0] = summed,
           plan->watch[0].decode_rows = 3), "the last rows before memory pressure");
    LACKS(plan->edits |= SF_EDITS_DENSE, "mixes by a dense matrix");
    LACKS(plan->edits |= 1u << 20, "edits of which the store knows nothing");
    LACKS((plan->tiers = 2, plan->tier[1].codec = "quant"), "the codec quant");
    LACKS(plan->tier[0].codec = "quant", "the codec quant");
    LACKS((plan->tiers = 2, plan->tier[1].v_place = SF_ON_HOST), "a host tier");
    LACKS((plan->tiers = 3, plan->tier[2].block_slots = 64),
          "slots that one edit must encode together");
    LACKS(plan->tier[0].k_place = SF_ON_HOST, "a host tier");
    LACKS(plan->tier[0].v_place = SF_ON_HOST, "a host tier");
    struct sf_plan *watching = legal();
    watching->watch[0] = summed;
    watching->prefix = SF_PREFIX_KV;
    CHECK_REFUSED(check_one(&plain, 1), SF_INVALID, "method plain watches attention");
    watching->prefix = SF_PREFIX_KV_AND_MASS;
    SF_CHECK_OK(check_one(&plain, 1));
    legal()->watch[0] = summed;
    SF_CHECK_OK(check_one(&plain, 1));
    SF_CHECK_OK(check_one(&plain, 4));
    LACKS(plan->draft.lookahead = -1, "a draft model");
    LACKS(plan->draft.window = 8, "a draft model");
    LACKS(plan->v_top.slots = 1, "reading only the best values");
    LACKS(plan->span_state_bytes = 1, "state per sequence");
    LACKS(foot_of_last_head.extra_bytes = 1, "state per lane");
    legal()->reduce_bytes = 8;
    SF_CHECK_OK(check_one(&plain, 1));
    SF_CHECK_OK(check_one(&plain, 2));
    legal();
    SF_CHECK_OK(check_one(&selects, 1)); /* it may select, and asks for nothing */
    legal()->needs = SF_NEED_SELECT_DECODE;
    CHECK_REFUSED(check_one(&plain, 1), SF_INVALID, "picks in decode but has no select()");
    CHECK_REFUSED(check_one(&selects, 1), SF_UNSUPPORTED,
                  "method selects needs picks of slots that no layer group shares");
    legal()->mark_slots = 8;
    CHECK_REFUSED(check_one(&plain, 1), SF_INVALID, "landmarks for 8 slots and picks of 0, but not"
                  " picks in decode");
    struct sf_plan *picking = legal();
    picking->needs = SF_NEED_SELECT_DECODE;
    picking->edits = SF_EDITS_GROUP;
    picking->mark_slots = 8;
    picking->pick_slots = 7;
    CHECK_REFUSED(check_one(&selects, 1), SF_INVALID, "plans picks of 7 slots by landmarks for 8");
    legal();
    CHECK_REFUSED(check_one(&admits, 1), SF_UNSUPPORTED, "method admits needs rewritten prompts");
    CHECK_REFUSED(check_one(&groups, 1), SF_INVALID, "method groups has some layer groups, 0 tiers"
                  " for them, and declares no edits of groups");
    legal()->edits = SF_EDITS_GROUP;
    CHECK_REFUSED(check_one(&groups, 1), SF_INVALID, "0 tiers for them, and declares some edits");
    CHECK_REFUSED(check_one(&recipe, 1), SF_INVALID, "method recipe converts models");
}

/* ---- what prompts share --------------------------------------------------------------------- */
/* Borders by hand, and for any number: it is one, and less than an eighth is lost. */
static void test_borders(void)
{
    static const int32_t cases[][2] = { { 0, 0 }, { 1, 1 }, { 15, 15 }, { 16, 16 }, { 17, 16 },
                                        { 31, 30 }, { 32, 32 }, { 35, 32 }, { 63, 60 },
                                        { 1000, 960 }, { 1023, 960 }, { 1024, 1024 } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        SF_CHECK_INT(sf_share_border(cases[i][0]), cases[i][1]);
    for (int32_t n = 1; n < 5000; n++) {
        int32_t border = sf_share_border(n);
        SF_CHECK(border <= n && (n - border) * 8 < n && sf_share_border(border) == border);
        SF_CHECK(border >= sf_share_border(n - 1));
    }
    struct sf_stack_sharing all = { .own_rows = 1 }, noted = { .own_rows = 32, .noted = { 0, 1 } };
    SF_CHECK_INT(sf_share_most(&all, 320, 16, 40), 19);
    SF_CHECK_INT(sf_share_most(&all, 321, 16, 40), 20);
    SF_CHECK_INT(sf_share_most(&all, 400, 16, 17), 17);
    SF_CHECK_INT(sf_share_most(&noted, 400, 16, 17), 16);
    SF_CHECK_INT(sf_share_most(&noted, 320, 16, 40), 18);
    SF_CHECK_INT(sf_share_most(&noted, 319, 16, 40), 16);
    SF_CHECK_INT(sf_share_most(&noted, 31, 16, 40), 0);
}

static void test_sharing(void)
{
    struct sf_plan plan = { .prefix = SF_PREFIX_KV_AND_MASS, .aux_bytes = 4,
                            .whens = 1u << SF_AT_PREFILL_END };
    struct sf_stack_entry entry[2] = { { .plan = { .prefix = SF_PREFIX_KV }, .method = &plain },
                                       { .plan = plan, .method = &selects } };
    struct sf_stack stack = { entry, 1 };
    SF_CHECK(sf_stack_sharing(&stack).kept && !sf_stack_sharing(&stack).withheld_by);
    stack.entries = 2;
    entry[1].plan.watch[1] = (struct sf_watch){ .fold = SF_FOLD_SUM, .prompt_rows = 7 };
    struct sf_stack_sharing found = sf_stack_sharing(&stack);
    SF_CHECK(!found.kept && !found.withheld_by && !found.noted[0] && !found.noted[1]);
    SF_CHECK_INT(found.own_rows, 7);
    entry[1].plan.watch[0] = summed;
    SF_CHECK(sf_stack_sharing(&stack).noted[0] && !sf_stack_sharing(&stack).noted[1]);
    entry[1].plan.whens |= 1u << SF_AT_PREFILL_CHUNK;
    SF_CHECK(sf_stack_sharing(&stack).withheld_by == &selects);
    entry[0].plan.aux_bytes = 4;
    SF_CHECK(sf_stack_sharing(&stack).withheld_by == &plain);
    entry[0].plan.aux_bytes = 0;
    entry[0].plan.prefix = SF_PREFIX_NONE;
    SF_CHECK(sf_stack_sharing(&stack).withheld_by == &plain);
}

/* ---- plans without sense -------------------------------------------------------------------- */
#define SENSELESS(method, change, words)                                                           \
    do {                                                                                           \
        struct sf_plan *plan = legal();                                                            \
        change;                                                                                    \
        (void)plan;                                                                                \
        CHECK_REFUSED(check_one(&(method), 1), SF_INVALID, words);                                 \
    } while (0)

static void test_sense(void)
{
    SENSELESS(plain, plan->sink_tokens = -1, "plans -1 sinks");
    SENSELESS(plain, plan->tail_tokens = -2, "-2 tail tokens");
    SENSELESS(plain, plan->chunk_tokens = -3, "chunks of -3 tokens");
    SENSELESS(plain, plan->aux_bytes = 1025, "1025 aux bytes");
    SENSELESS(plain, plan->scratch_bytes = -1, "-1 scratch bytes");
    SENSELESS(plain, plan->whens |= 1u << SF_AT_INTERVAL, "asks for an interval of 0 tokens");
    SENSELESS(plain, plan->whens |= 1u << SF_AT_PREFILL_CHUNK, "not for its chunk_tokens");
    SENSELESS(plain, plan->whens = 0, "asks for no event, so it would never act");
    SENSELESS(plain, (plan->watch[1] = summed, plan->watch[1].flags = SF_WATCH_STORED,
                      plan->watch[1].decode_rows = 5),
              "keeps queries, but of how many rows of the prompt it does not say");
    SENSELESS(plain, (plan->watch[1] = summed, plan->watch[1].flags = SF_WATCH_STORED,
                      plan->watch[1].prompt_rows = 5),
              "keeps queries, but of how many rows of the answer it does not say");
    SENSELESS(plain, plan->edits = 0, "asks for events but declares no edit");
    SENSELESS(by_default, plan->whens |= 1u << SF_AT_INTERVAL; plan->every_tokens = 1,
              "has no compress()");
    SENSELESS(by_default, plan->whens |= 1u << SF_AT_PREFILL_CHUNK; plan->chunk_tokens = 1,
              "has no compress()");
    SENSELESS(plain, plan->whens |= 1u << SF_AT_PRESSURE,
              "the budget of layer 0 head 0 goes from 0");
    SENSELESS(plain, foot_of_last_head.slots_lo[0] = -1, "states -1 to 100 slots");
    SENSELESS(plain, foot_of_last_head.slots_lo[0] = 101, "states 101 to 100 slots");
    SENSELESS(plain, foot_of_last_head.slots_keep = -1, "keep -1 for layer 2 head 1");
    SENSELESS(plain, foot_of_last_head.slots_trigger = -1, "trigger -1");
    SENSELESS(plain, plan->sink_tokens = 4; plan->tail_tokens = 5; foot_of_last_head.slots_keep = 8,
              "protects 4 sinks and 5 newest tokens, more than the 8 slots that it keeps");
    SENSELESS(plain, plan->tiers = SF_TIERS + 1, "plans 5 tiers, at most 4 are possible");
    SENSELESS(plain, plan->tiers = -1, "plans -1 tiers");
    SENSELESS(plain, plan->tiers = 1; plan->tier[0].codec_cfg[0] = 1, "tier 0 is the raw one");
    SENSELESS(plain, plan->edits |= SF_EDITS_TIER, "moves slots between tiers but has only one");
    SENSELESS(by_default, plan->tiers = 2, "nothing would ever come into its 2 tiers");
    SENSELESS(plain, foot_of_last_head.slots_hi[1] = 1, "states 1 slots in tier 1, its plan has 0");
    SENSELESS(plain, plan->tiers = 2; foot_of_last_head.slots_lo[1] = 1, "states 1 to 0 slots");
    struct sf_plan *plan = legal();
    plan->sink_tokens = 4;
    plan->tail_tokens = 5;
    foot_of_last_head.slots_keep = 9;
    SF_CHECK_OK(check_one(&plain, 1));
}

/* ---- names, layers, heads ------------------------------------------------------------------- */
static void test_registry(void)
{
    struct sf_stack stack = { 0 };
    struct sf_stack_entry *entry;
    SF_CHECK(sf_method_find("window") && sf_method_find("none") && !sf_method_find("windo"));
    SF_CHECK_STR(sf_method_nearest("windo"), "window");
    CHECK_REFUSED(sf_stack_add(&stack, "windo", &entry), SF_INVALID,
                  "unknown method 'windo'; did you mean 'window'?");
    SF_CHECK_INT(stack.entries, 0);
    for (int i = 0; sf_methods[i]; i++) {
        SF_CHECK(sf_method_find(sf_methods[i]->name) == sf_methods[i]);
        if (sf_methods[i] != sf_method_find("razor_attention"))     /* has no head set yet */
            SF_CHECK_OK(check_one(sf_methods[i], 1));
    }
    sf_stack_free(&stack);
}

/* The exact cache by name leaves its heads to others. */
static void test_none(void)
{
    struct sf_setup setup;
    struct sf_stack stack = { 0 };
    struct sf_stack_entry *entry;
    SF_MUST(setup_make(1, &setup));
    SF_MUST(sf_stack_add(&stack, "none", &entry));
    SF_CHECK_OK(sf_stack_check(&stack, &setup));
    SF_CHECK_INT(sf_stack_entry_of(&stack, &setup, 1, 0), -1);
    SF_MUST(sf_stack_add(&stack, "window", &entry));
    SF_CHECK_OK(sf_stack_check(&stack, &setup));
    SF_CHECK_INT(sf_stack_entry_of(&stack, &setup, 1, 0), 1);
    sf_stack_free(&stack);
    sf_setup_free(&setup);
}

static sf_status check_layers(const char *first, const char *second, int32_t entry_of[LAYERS])
{
    struct sf_setup setup;
    struct sf_stack stack = { 0 };
    struct sf_stack_entry *entry;
    const char *texts[] = { first, second };
    SF_TRY(setup_make(1, &setup));
    sf_status status = SF_OK;
    for (int i = 0; i < 2 && texts[i] && status == SF_OK; i++) {
        status = sf_stack_add(&stack, "window", &entry);
        if (status == SF_OK)
            snprintf(entry->layers_text, sizeof entry->layers_text, "%s", texts[i]);
    }
    if (status == SF_OK) status = sf_stack_check(&stack, &setup);
    for (int32_t l = 0; l < LAYERS && status == SF_OK; l++) {
        entry_of[l] = sf_stack_entry_of(&stack, &setup, l, 0);
        SF_CHECK_INT(sf_stack_entry_of(&stack, &setup, l, 1), entry_of[l]);
    }
    sf_stack_free(&stack);
    sf_setup_free(&setup);
    return status;
}

static void test_layers(void)
{
    static const char *const bad[] = { "3", "0-3", "2-1", "0,", ",0", "a", "-1", "0-", "0 1",
                                       "99999999999999999999", "1-2-2", "0;1" };
    int32_t of[LAYERS];
    SF_CHECK_OK(check_layers("", NULL, of));
    SF_CHECK(of[0] == 0 && of[1] == 0 && of[2] == 0);
    SF_CHECK_OK(check_layers("1", NULL, of));
    SF_CHECK(of[0] == -1 && of[1] == 0 && of[2] == -1);
    SF_CHECK_OK(check_layers("0-1", "2", of));
    SF_CHECK(of[0] == 0 && of[1] == 0 && of[2] == 1);
    SF_CHECK_OK(check_layers("2,0", "1-1", of));
    SF_CHECK(of[0] == 0 && of[1] == 1 && of[2] == 0);
    SF_CHECK_OK(check_layers("2, 0", NULL, of));
    SF_CHECK(of[0] == 0 && of[1] == -1 && of[2] == 0);
    CHECK_REFUSED(check_layers("0-1", "1-2", of), SF_UNSUPPORTED,
                  "methods window and window act on the same heads");
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        CHECK_REFUSED(check_layers(bad[i], NULL, of), SF_INVALID, "numbers and ranges from 0 to 2");
}

/* ---- `on:` ----------------------------------------------------------------------------------- */
/* Head 1 of every layer retrieves, as the first says; the second says the same of head 0. */
static sf_status tells(const struct sf_setup *setup, struct sf_shape *shape, int32_t retrieval)
{
    for (int32_t l = 0; l < setup->layers; l++)
        for (int32_t h = 0; h < HEADS; h++)
            shape->head_class[setup->layer[l].lane_first + h] =
                h == retrieval ? SF_HEAD_RETRIEVAL : SF_HEAD_OTHER;
    return SF_OK;
}
static sf_status tells_1(const struct sf_setup *setup, struct sf_shape *shape)
{
    return tells(setup, shape, 1);
}
static sf_status tells_0(const struct sf_setup *setup, struct sf_shape *shape)
{
    return tells(setup, shape, 0);
}
static const struct sf_policy_ops ops_tells_1 = { .plan = plain_plan, .shape = tells_1,
                                                  .footprint = plain_footprint,
                                                  .compress = nothing },
    ops_tells_0 = { .plan = plain_plan, .footprint = plain_footprint, .compress = nothing,
                    .shape = tells_0 };
static const struct sf_method teller = { .name = "teller", .policy = &ops_tells_1 },
                              denier = { .name = "denier", .policy = &ops_tells_0 };

struct on_entry { const struct sf_method *method; int32_t on; const char *layers; };

/* of[head]: the entry that acts on the head in layer 1. */
static sf_status check_on(const struct on_entry *given, int32_t entries, int32_t of[HEADS])
{
    struct sf_setup setup;
    struct sf_stack stack = { 0 };
    SF_TRY(setup_make(1, &setup));
    legal();
    for (int32_t i = 0; i < entries; i++) {
        struct sf_stack_entry *entry;
        SF_TRY(sf_stack_add_method(&stack, given[i].method, &entry));
        entry->on = given[i].on;
        snprintf(entry->layers_text, sizeof entry->layers_text, "%s", given[i].layers);
    }
    sf_status status = sf_stack_check(&stack, &setup);
    for (int32_t h = 0; h < HEADS && status == SF_OK; h++) {
        of[h] = sf_stack_entry_of(&stack, &setup, 1, h);
        for (int32_t i = 0; i < entries; i++)       /* what one tells, all see */
            SF_CHECK_INT(stack.entry[i].shape.head_class[setup.layer[1].lane_first + h],
                         stack.entry[0].shape.head_class[setup.layer[1].lane_first + h]);
    }
    sf_stack_free(&stack);
    sf_setup_free(&setup);
    return status;
}

static void test_on(void)
{
    enum { ALL = SF_HEAD_ANY, RETRIEVAL = SF_HEAD_RETRIEVAL, OTHER = SF_HEAD_OTHER };
    int32_t of[HEADS];
    struct on_entry apart[] = { { &teller, OTHER, "" }, { &plain, RETRIEVAL, "" } };
    SF_CHECK_OK(check_on(apart, 2, of));
    SF_CHECK(of[0] == 0 && of[1] == 1);
    struct on_entry swapped[] = { { &plain, RETRIEVAL, "" }, { &teller, OTHER, "" } };
    SF_CHECK_OK(check_on(swapped, 2, of));              /* the order decides nothing here */
    SF_CHECK(of[0] == 1 && of[1] == 0);
    struct on_entry elsewhere[] = { { &teller, OTHER, "0" }, { &plain, RETRIEVAL, "1" } };
    SF_CHECK_OK(check_on(elsewhere, 2, of));            /* told of layers where it does not act */
    SF_CHECK(of[0] == -1 && of[1] == 1);
    struct on_entry both[] = { { &teller, OTHER, "" }, { &plain, OTHER, "" } };
    CHECK_REFUSED(check_on(both, 2, of), SF_UNSUPPORTED, "give them different `layers:` or `on:`");
    struct on_entry untold[] = { { &plain, RETRIEVAL, "" } };
    CHECK_REFUSED(check_on(untold, 1, of), SF_INVALID, "method plain stands on retrieval heads, but"
                  " no method of the stack tells");
    struct on_entry deny[] = { { &teller, ALL, "0" }, { &denier, ALL, "1" } };
    CHECK_REFUSED(check_on(deny, 2, of), SF_INVALID, "methods teller and denier disagree on whether"
                  " KV head 0 of layer 0 is a retrieval head");
    reduces = 64;                       /* over all heads of a layer, not over some */
    CHECK_REFUSED(check_on(apart, 2, of), SF_UNSUPPORTED, "method teller decides over all heads of"
                  " a layer, but in layer 0 it acts on some of them alone");
    struct on_entry whole[] = { { &plain, ALL, "0-1" } };
    SF_CHECK_OK(check_on(whole, 1, of));
    reduces = 0;
}

static void test_setup(void)
{
    struct sf_setup setup;
    SF_MUST(setup_make(2, &setup));
    SF_CHECK_INT(setup.lanes, LAYERS * HEADS);
    SF_CHECK_INT(setup.tp_size, 2);
    SF_CHECK_INT(setup.page_slots, 16);
    SF_CHECK_INT(setup.tokens_max, 100);
    SF_CHECK_INT(setup.layer[2].lane_first, 2 * HEADS);
    SF_CHECK_INT(setup.layer[1].window, 5);
    SF_CHECK_INT(setup.layer[1].groups, HEADS);
    SF_CHECK_INT(setup.layer[1].v_dim, 6);
    sf_setup_free(&setup);
}

static const struct sf_test tests[] = {
    { "each ask by its own words", test_asks },
    { "plans without sense", test_sense },
    { "the registry", test_registry },
    { "none beside window", test_none },
    { "layers and heads", test_layers },
    { "classes of heads", test_on },
    { "the model as methods see it", test_setup },
    { "borders of shared prompts", test_borders },
    { "what prompts share", test_sharing },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_stack", tests)
