/* tests/unit/kvshard/tighten.c: memory pressure in the store.
 *
 * A sequence is tightened between two steps: which slots stay is worked out here from plain arrays
 * (the newest, by age) or held to what must be true of the method (ems); pages come free at once;
 * from then on the lanes live by the smaller budget, and every row is a softmax over what they
 * hold.  What asks for it at a wrong moment, or answers with too much, is refused; a method that
 * has no budget for a sequence that was tightened often leaves it as it is. */
#include <math.h>
#include <stdlib.h>

#include "kvshard/methods.h"
#include "kvshard/store_impl.h"
#include "tests/unit/kvshard/rig.h"
#include "tests/unit/kvshard/script.h"
#include "tests/unit/kvshard/toys.h"

enum { LAYERS = 2, LANES = 2, PROMPT = 150, TOKENS_MAX = 400 };

static struct rig rig;
static struct sf_seq *seq;

static void begin(struct rig_spec spec)
{
    spec.tokens_max = TOKENS_MAX;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, PROMPT, TOKENS_MAX, &seq));
    SF_MUST(rig_feed(&rig, seq, 0, 0, PROMPT));
}

static void end(void)
{
    sf_seq_close(rig.store, seq, NULL);
    SF_CHECK_INT(rig.store->pool.used, 0);
    SF_CHECK_INT(sf_store_bytes_stored(rig.store), 0);
    rig_close(&rig);
}

/* Decodes until the sequence has `tokens`. */
static void decode(int32_t tokens)
{
    for (int32_t at = seq->tokens[0]; at < tokens; at++)
        SF_CHECK_OK(rig_feed(&rig, seq, 0, at, 1));
}

/* Pages that admission counts on, tightened so often. */
static int64_t promised(int32_t tightened)
{
    int32_t lane_ptr[LAYERS + 1] = { 0, LANES, 2 * LANES }, heads[LAYERS * LANES] = { 0, 1, 0, 1 };
    uint8_t replica[LAYERS * LANES] = { 0 };
    struct sf_rank_lanes rank = { 0, LAYERS, lane_ptr, heads, replica };
    struct sf_spot at = { .prompt = PROMPT, .tokens = TOKENS_MAX, .tightened = tightened };
    struct sf_cost cost = { 0 };
    SF_CHECK_OK(sf_account_tightened(&rig.setup, &rig.stack, &rank, rig.spec.dtype, &at, &cost));
    return cost.pages_after;
}

static struct rig_spec spec_of(const struct sf_method *method)
{
    struct rig_spec spec = rig_usual();
    spec.method = method;
    return spec;
}

/* Positions of lane n of all layers, which has so many slots. */
static void read_lane(int32_t n, int32_t slots, int32_t *pos)
{
    SF_CHECK_INT(sf_seq_lane_slots(rig.store, seq, n / LANES, n % LANES), slots);
    SF_CHECK_OK(sf_seq_lane_read(rig.store, seq, n / LANES, n % LANES, NULL, NULL, pos, NULL));
}

/* ---- by age ---------------------------------------------------------------------------------- */
/* Positions of a lane: the sinks, then the newest ones without a gap, `slots` in all. */
static void check_newest(int32_t slots)
{
    for (int32_t n = 0; n < LAYERS * LANES; n++) {
        int32_t pos[TOKENS_MAX], tokens = seq->tokens[0];
        read_lane(n, slots, pos);
        for (int32_t i = 0; i < slots; i++)
            SF_CHECK_INT(pos[i], i < TOY_SINKS ? i : tokens - slots + i);
    }
}

static void test_newest(void)
{
    begin(spec_of(&toy_recent));
    check_newest(TOY_RECENT_KEEP);
    decode(PROMPT + 5);
    check_newest(TOY_RECENT_KEEP + 5);
    for (int32_t times = 1, keep = TOY_RECENT_KEEP; times <= 3; times++) {
        int32_t used = rig.store->pool.used, tokens = seq->tokens[0];
        keep /= 2;
        SF_CHECK(promised(times) <= promised(times - 1));
        SF_CHECK_OK(sf_store_tighten(rig.store, seq, tokens));
        check_newest(keep);
        if (times == 1) SF_CHECK(rig.store->pool.used < used);
        SF_CHECK(seq->pages <= promised(times));
        decode(tokens + TOY_RECENT_GROWTH - 1);
        check_newest(keep + TOY_RECENT_GROWTH - 1);     /* the trigger has come down as well */
        decode(tokens + TOY_RECENT_GROWTH);
        check_newest(keep);
        decode(tokens + 4 * TOY_RECENT_GROWTH + 3);
        check_newest(keep + 3);
        SF_CHECK(seq->pages <= promised(times));
    }
    SF_CHECK(promised(2) < promised(1) && promised(1) < promised(0));
    end();
}

/* A lane that holds no more than the new budget is left alone, and grows no further than that. */
static void test_short(void)
{
    struct rig_spec spec = spec_of(&toy_recent);
    struct sf_receipt receipt;
    spec.tokens_max = TOKENS_MAX;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, 20, TOKENS_MAX, &seq));
    SF_MUST(rig_feed(&rig, seq, 0, 0, 25));
    SF_CHECK_OK(sf_store_tighten(rig.store, seq, 25));
    sf_seq_receipt(rig.store, seq, &receipt);
    SF_CHECK_INT(receipt.slots_evicted, 0);
    check_newest(25);
    decode(TOY_RECENT_KEEP / 2 + TOY_RECENT_GROWTH - 1);
    check_newest(TOY_RECENT_KEEP / 2 + TOY_RECENT_GROWTH - 1);
    decode(TOY_RECENT_KEEP / 2 + TOY_RECENT_GROWTH);
    check_newest(TOY_RECENT_KEEP / 2);
    end();
}

/* ---- no budget ------------------------------------------------------------------------------- */
static sf_status once_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                                struct sf_foot *foot)
{
    SF_TRY(toy_recent.policy->footprint(setup, spot, foot));
    if (spot->tightened > 1) foot->slots_keep = foot->slots_trigger = 0;
    return SF_OK;
}

static void test_once(void)
{
    struct sf_policy_ops ops = *toy_recent.policy;
    struct sf_method once = { .name = "once", .policy = &ops };
    ops.footprint = once_footprint;
    begin(spec_of(&once));
    decode(PROMPT + 5);
    for (int32_t times = 1; times <= 3; times++) {
        int32_t tokens = seq->tokens[0];
        SF_CHECK_OK(sf_store_tighten(rig.store, seq, tokens));
        check_newest(TOY_RECENT_KEEP / 2);
        decode(tokens + TOY_RECENT_GROWTH + 3);
        check_newest(TOY_RECENT_KEEP / 2 + 3);
        SF_CHECK(seq->pages <= promised(times));
    }
    SF_CHECK(promised(1) < promised(0));
    SF_CHECK_INT(promised(2), promised(0));
    end();
}

/* ---- ems ------------------------------------------------------------------------------------- */
enum { BUDGET = 72, SINKS = 4, WINDOW = 12, INTERVAL = 8 };

static struct rig_spec ems_spec(void)
{
    struct rig_spec spec = spec_of(sf_method_find("ems"));
    static const struct rig_option option[] = {
        { "budget_tokens", "72" }, { "num_sink_tokens", "4" }, { "recent_tokens", "12" },
        { "recompress_interval", "8" }, { "similarity_threshold", "0.2" },
        { "tighten_under_pressure", "true" } };
    memcpy(spec.option, option, sizeof option);
    return spec;
}

/* Sinks and window as they were, ascending positions between, and so many slots. */
static void check_ems(int32_t slots)
{
    for (int32_t n = 0; n < LAYERS * LANES; n++) {
        int32_t pos[TOKENS_MAX], tokens = seq->tokens[0];
        read_lane(n, slots, pos);
        for (int32_t i = 0; i < SINKS; i++) SF_CHECK_INT(pos[i], i);
        for (int32_t i = 1; i < slots; i++) SF_CHECK(pos[i] > pos[i - 1]);
        for (int32_t i = 1; i <= WINDOW; i++) SF_CHECK_INT(pos[slots - i], tokens - i);
    }
}

/* The row that comes next is the softmax over what every lane holds then, itself included. */
static void next_row(void)
{
    int32_t at = seq->tokens[0];
    struct ref_lane lane[LAYERS * LANES];
    for (int32_t n = 0; n < LAYERS * LANES; n++) {
        ref_open(&lane[n], &rig.spec, TOKENS_MAX);
        lane[n].slots = sf_seq_lane_slots(rig.store, seq, n / LANES, n % LANES);
        SF_CHECK_OK(sf_seq_lane_read(rig.store, seq, n / LANES, n % LANES, lane[n].k, lane[n].v,
                                     lane[n].pos, lane[n].bias));
        ref_append(&lane[n], &rig.spec, 0, n / LANES, n % LANES, at);
    }
    decode(at + 1);
    for (int32_t n = 0; n < LAYERS * LANES; n++) {
        check_row(&rig, 0, n / LANES, n % LANES, 0, at, &lane[n], NULL, NULL, 1e-5);
        ref_close(&lane[n]);
    }
}

/* 56 centres become 28, 14, 7, 3, 1 and stay at 1. */
static void test_ems(void)
{
    static const int32_t centres[] = { 28, 14, 7, 3, 1, 1 };
    struct sf_receipt before, after;
    begin(ems_spec());
    check_ems(BUDGET);
    decode(PROMPT + 3);
    for (int32_t times = 1; times <= 6; times++) {
        int32_t slots = sf_seq_lane_slots(rig.store, seq, 0, 0), keep;
        keep = SINKS + WINDOW + centres[times - 1];
        sf_seq_receipt(rig.store, seq, &before);
        SF_CHECK(promised(times) <= promised(times - 1));
        SF_CHECK_OK(sf_store_tighten(rig.store, seq, seq->tokens[0]));
        check_ems(keep);
        sf_seq_receipt(rig.store, seq, &after);
        SF_CHECK_INT(after.slots_evicted + after.slots_merged - before.slots_evicted -
                     before.slots_merged, (slots - keep) * LAYERS * LANES);
        SF_CHECK(after.bytes_stored < before.bytes_stored);
        SF_CHECK(seq->pages <= promised(times));
        next_row();
        decode(seq->tokens[0] + INTERVAL - 2);
        check_ems(keep + INTERVAL - 1);
        decode(seq->tokens[0] + 1);
        check_ems(keep);
        decode(seq->tokens[0] + 2);
    }
    SF_CHECK(promised(1) < promised(0) && promised(6) == promised(5));
    end();
}

/* Never asked, the option changes nothing: the same bits as without it. */
static void test_ems_unasked(void)
{
    float *out[2];
    for (int i = 0; i < 2; i++) {
        struct rig_spec spec = ems_spec();
        spec.option[5].text = i ? "true" : "false";
        begin(spec);
        decode(PROMPT + 60);
        size_t bytes = (size_t)(LANES * rig.spec.group * rig.spec.v_dim) * sizeof(float);
        out[i] = malloc(bytes);
        SF_ASSERT(out[i] != NULL);
        memcpy(out[i], rig_out(&rig, LAYERS - 1, 0, 0), bytes);
        if (i) SF_CHECK(memcmp(out[0], out[1], bytes) == 0);
        end();
    }
    free(out[0]);
    free(out[1]);
}

static void test_ems_refuses(void)
{
    struct rig_spec spec = ems_spec();
    spec.option[6] = (struct rig_option){ "head_budget", "sparsity" };
    SF_CHECK_FAILS(rig_open(&spec, &rig), SF_UNSUPPORTED);
    SF_CHECK(strstr(sf_error_text(), "not built for head_budget sparsity") != NULL);
}

/* ---- what is refused ------------------------------------------------------------------------- */
static void test_moments(void)
{
    struct rig_spec spec = spec_of(&toy_recent);
    spec.tokens_max = TOKENS_MAX;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 7, PROMPT, TOKENS_MAX, &seq));
    SF_MUST(rig_feed(&rig, seq, 0, 0, 90));
    SF_CHECK_FAILS(sf_store_tighten(rig.store, seq, 90), SF_INTERNAL);
    SF_CHECK(strstr(sf_error_text(), "sequence 7 is tightened at 90 tokens") != NULL);
    SF_MUST(rig_feed(&rig, seq, 0, 90, PROMPT - 90 + 4));
    SF_CHECK_FAILS(sf_store_tighten(rig.store, seq, PROMPT + 5), SF_INTERNAL);
    SF_CHECK_OK(sf_store_tighten(rig.store, seq, PROMPT + 4));
    check_newest(TOY_RECENT_KEEP / 2);
    end();
}

/* A method whose answer leaves more than its new budget, or gives none. */
static int32_t leaves, pressures;
static sf_status stubborn(const struct sf_env *env, enum sf_when when, const struct sf_batch *batch,
                          struct sf_answer *answer)
{
    (void)env;
    for (int32_t i = 0; i < batch->spans; i++)
        for (int32_t l = 0; l < batch->span[i].lanes; l++) {
            const struct sf_lane *lane = &batch->span[i].lane[l];
            int32_t ids[TOKENS_MAX], n = when == SF_AT_PRESSURE ? leaves : lane->slots_keep;
            pressures += when == SF_AT_PRESSURE;
            if (lane->slots <= lane->slots_keep || n == 0) continue;
            for (int32_t s = 0; s < n; s++) ids[s] = lane->slots - n + s;
            SF_TRY(sf_edit_keep(answer, lane, (struct sf_list){ .ids = ids, .n = n }));
        }
    return SF_OK;
}

static sf_status stubborn_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                                    struct sf_foot *foot)
{
    (void)setup;
    foot->slots_keep = 60 - (spot->tightened > 0 ? 20 : 0);
    foot->slots_trigger = foot->slots_keep + 30;
    foot->slots_hi[0] = spot->tokens;
    return SF_OK;
}

static sf_status stubborn_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    plan->whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_FULL | 1u << SF_AT_PRESSURE;
    plan->edits = SF_EDITS_KEEP;
    return SF_OK;
}

static const struct sf_policy_ops stubborn_ops = { .plan = stubborn_plan,
                                                   .footprint = stubborn_footprint,
                                                   .compress = stubborn };
static const struct sf_method stubborn_method = { .name = "stubborn", .policy = &stubborn_ops };

static void test_budget(void)
{
    static const struct { int32_t leaves, shown; const char *words; } cases[] = {
        { 40, LAYERS * LANES, NULL }, { 41, 1, "leaves 41 of 65 slots, its budget is 40" },
        { 0, LANES, "has 65 slots left under memory pressure, its budget is 40" } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        begin(spec_of(&stubborn_method));
        decode(PROMPT + 5);
        leaves = cases[i].leaves;
        pressures = 0;
        sf_status status = sf_store_tighten(rig.store, seq, PROMPT + 5);
        SF_CHECK_INT(status, cases[i].words ? SF_INVALID : SF_OK);
        if (cases[i].words) SF_CHECK(strstr(sf_error_text(), cases[i].words) != NULL);
        SF_CHECK_INT(pressures, cases[i].shown);
        end();
    }
}

static const struct sf_test tests[] = {
    { "the newest", test_newest },
    { "a short lane", test_short },
    { "no budget", test_once },
    { "ems", test_ems },
    { "ems that is never asked", test_ems_unasked },
    { "ems refuses", test_ems_refuses },
    { "wrong moments", test_moments },
    { "answers are held to the budget", test_budget },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_tighten", tests)
