/* tests/unit/kvshard/segments.c: segments of layer groups: the prompt's, and those of what is
 * generated behind it.
 *
 * With full ranks lanes are those of the exact cache, to rounding, token by token: every position
 * in its place, the tiers as far as they should be sealed, outputs those of plain attention, bytes
 * those foretold.  With low ranks, sequences of any length, in batches cut at random, come to the
 * same bits as each alone.  What would break the order of a group's slots is refused. */
#include <stdlib.h>

#include "base/rng.h"
#include "kvshard/codec.h"
#include "kvshard/methods.h"
#include "kvshard/store_impl.h"
#include "tests/unit/kvshard/rig.h"

enum { LAYERS = 3, LANES = 2, TOKENS = 120, EVERY = 16, SINKS = 3 };

static struct rig_spec spec_of(const char *device, const char *rank_k, const char *rank_v)
{
    struct rig_spec spec = rig_usual();
    struct rig_option option[] = { { "group_size", "2" }, { "rank_k", rank_k },
                                   { "rank_v", rank_v }, { "num_sink_tokens", "3" },
                                   { "refactor_every", "16" }, { "min_prompt_tokens", "20" },
                                   { "svd.method", "exact" } };
    spec.device = device;
    spec.layers = LAYERS;
    spec.rope_dim = 8;
    spec.page_slots = 64;               /* 16 rows of the widest basis fit */
    spec.tokens_max = TOKENS;
    spec.method = sf_method_find("xkv");
    memcpy(spec.option, option, sizeof option);
    return spec;
}

/* ---- full ranks ----------------------------------------------------------------------------- */
/* Tier of a position once the sequence has so many tokens. */
static int tier_of(int32_t pos, int32_t prompt, int32_t tokens)
{
    int32_t skipped = prompt < SINKS ? EVERY : 0, sealed = (tokens - prompt) / EVERY * EVERY;
    if (tokens < prompt) return 0;
    if (pos < prompt) return prompt >= 20 && pos >= SINKS;
    return pos >= prompt + skipped && pos < prompt + sealed;
}

static void check_near(const struct rig *rig, const struct sf_seq *seq, int32_t layer,
                       int32_t lane, const struct ref_lane *ref, int32_t prompt)
{
    int32_t n = sf_seq_lane_slots(rig->store, seq, layer, lane), wrong = -1;
    struct ref_lane is;
    uint8_t tier[TOKENS];
    SF_CHECK_INT(n, ref->slots);
    if (n != ref->slots) return;
    ref_open(&is, &rig->spec, n + 1);
    SF_CHECK_OK(sf_seq_lane_read(rig->store, seq, layer, lane, is.k, is.v, is.pos, is.bias));
    sf_seq_lane_tiers(rig->store, seq, layer, lane, tier);
    for (int32_t s = 0; s < n && wrong < 0; s++) {
        if (is.pos[s] != s || tier[s] != tier_of(s, prompt, n)) wrong = s;
        for (int32_t e = 0; e < is.k_dim; e++)
            if (fabsf(is.k[s * is.k_dim + e] - ref->k[s * is.k_dim + e]) > 2e-5f) wrong = s;
        for (int32_t e = 0; e < is.v_dim; e++)
            if (fabsf(is.v[s * is.v_dim + e] - ref->v[s * is.v_dim + e]) > 2e-5f) wrong = s;
    }
    if (wrong >= 0)
        sf_test_fail(__FILE__, __LINE__, "prompt %d, layer %d lane %d: slot %d of %d has position"
                     " %d, tier %d, key %g instead of %g", prompt, layer, lane, wrong, n,
                     is.pos[wrong], tier[wrong], (double)is.k[wrong * is.k_dim],
                     (double)ref->k[wrong * is.k_dim]);
    else CU_PASS("lane");
    ref_close(&is);
}

static void check_bytes(const struct rig *rig, const struct sf_seq *seq, int32_t prompt,
                        int32_t tokens)
{
    int32_t lane_ptr[LAYERS + 1], heads[LAYERS * LANES];
    uint8_t replica[LAYERS * LANES] = { 0 };
    struct sf_rank_lanes rank = { 0, LAYERS, lane_ptr, heads, replica };
    struct sf_receipt receipt;
    struct sf_cost cost;
    for (int32_t i = 0; i <= LAYERS; i++) lane_ptr[i] = i * LANES;
    for (int32_t i = 0; i < LAYERS * LANES; i++) heads[i] = i % LANES;
    SF_CHECK_OK(sf_account_sequence(&rig->setup, &rig->stack, &rank, rig->spec.dtype, prompt,
                                    tokens, &cost));
    sf_seq_receipt(rig->store, seq, &receipt);
    SF_CHECK_INT(receipt.bytes_stored, cost.bytes_hi);
    SF_CHECK_INT(cost.bytes_lo, cost.bytes_hi);
    SF_CHECK(seq->pages_peak <= cost.pages_peak);
}

static void exact_one(struct rig *rig, int32_t prompt, int32_t tokens)
{
    struct ref_lane ref[LAYERS][LANES];
    struct sf_seq *seq;
    SF_MUST(sf_seq_open(rig->store, 0, prompt, tokens, &seq));
    for (int32_t l = 0; l < LAYERS; l++)
        for (int32_t h = 0; h < LANES; h++) ref_open(&ref[l][h], &rig->spec, TOKENS);
    for (int32_t at = 0; at < tokens;) {
        int32_t rows = at < prompt ? prompt : 1;
        SF_MUST(rig_feed(rig, seq, 0, at, rows));
        for (int32_t l = 0; l < LAYERS; l++)
            for (int32_t h = 0; h < LANES; h++) {
                for (int32_t r = 0; r < rows; r++) {
                    ref_append(&ref[l][h], &rig->spec, 0, l, h, at + r);
                    check_row(rig, 0, l, h, r, at + r, &ref[l][h], NULL, NULL, 2e-5);
                }
                check_near(rig, seq, l, h, &ref[l][h], prompt);
            }
        at += rows;
        check_bytes(rig, seq, prompt, at);
    }
    for (int32_t l = 0; l < LAYERS; l++)
        for (int32_t h = 0; h < LANES; h++) ref_close(&ref[l][h]);
    sf_seq_close(rig->store, seq, NULL);
}

static void full_rank(void)
{
    static const char *const devices[] = { "ref", "cpu" };
    static const int32_t prompts[] = { 50, 20, 19, 2, 1 };
    for (int d = 0; d < 4; d++) {       /* at last with values as they are */
        struct rig_spec spec = spec_of(devices[d % 2], "100", d < 2 ? "100" : "0");
        struct rig rig;
        SF_MUST(rig_open(&spec, &rig));
        for (size_t p = 0; p < sizeof prompts / sizeof *prompts; p++)
            exact_one(&rig, prompts[p], prompts[p] + 2 * EVERY + 5);
        SF_CHECK_INT(sf_store_bytes_stored(rig.store), 0);
        SF_CHECK_INT(rig.store->pool.used, 0);
        rig_close(&rig);
    }
}

/* ---- in any company ------------------------------------------------------------------------- */
enum { SEQS = 6, GROUP = 2, V_DIM = 6, HEADS = LANES * GROUP };
struct run {                            /* of one sequence */
    struct sf_seq *seq;
    int32_t prompt, tokens, at;
    float out[LAYERS][TOKENS][HEADS * V_DIM];
};
static struct run alone[SEQS], together[SEQS];
static uint64_t drawn;

static int32_t below(int32_t n) { return (int32_t)(sf_rng_u64(5, 3, drawn++) % (uint64_t)n); }

static void keep_out(const struct rig *rig, struct run *run, int32_t row, int32_t rows)
{
    for (int32_t l = 0; l < LAYERS; l++)
        for (int32_t r = 0; r < rows; r++)
            memcpy(run->out[l][run->at + r], rig_out(rig, l, row + r, 0), sizeof run->out[l][0]);
    run->at += rows;
}

static void run_alone(struct rig *rig, int32_t number)
{
    struct run *run = &alone[number];
    run->at = 0;
    SF_MUST(sf_seq_open(rig->store, number, run->prompt, run->tokens, &run->seq));
    while (run->at < run->tokens) {
        int32_t rows = run->at < run->prompt ? run->prompt : 1;
        SF_MUST(rig_feed(rig, run->seq, number, run->at, rows));
        keep_out(rig, run, 0, rows);
    }
    sf_seq_close(rig->store, run->seq, NULL);
}

/* Prompts in pieces, answers in pieces that end at intervals, some sequences at rest. */
static void run_together(struct rig *rig)
{
    struct rig_item item[SEQS];
    int32_t of[SEQS], left = SEQS, every = sf_stack_interval(&rig->stack);
    SF_CHECK_INT(every, EVERY);
    for (int32_t i = 0; i < SEQS; i++) {
        struct run *run = &together[i];
        *run = (struct run){ .prompt = alone[i].prompt, .tokens = alone[i].tokens };
        SF_MUST(sf_seq_open(rig->store, i, run->prompt, run->tokens, &run->seq));
    }
    while (left > 0) {
        int32_t items = 0, row = 0;
        for (int32_t i = 0; i < SEQS; i++) {
            struct run *run = &together[i];
            int32_t end = run->at < run->prompt ? run->prompt : run->tokens, rows = 1 + below(9);
            if (run->at == run->tokens || below(3) == 0) continue;
            if (run->at >= run->prompt && rows > every - (run->at - run->prompt) % every)
                rows = every - (run->at - run->prompt) % every;
            if (rows > end - run->at) rows = end - run->at;
            of[items] = i;
            item[items++] = (struct rig_item){ run->seq, i, run->at, rows };
        }
        SF_MUST(rig_run(rig, item, items));
        for (int32_t i = 0; i < items; row += item[i++].rows) {
            struct run *run = &together[of[i]];
            keep_out(rig, run, row, item[i].rows);
            if (run->at < run->tokens) continue;
            check_bytes(rig, run->seq, run->prompt, run->tokens);
            sf_seq_close(rig->store, run->seq, NULL);
            left--;
        }
    }
}

static void any_company(void)
{
    struct rig_spec spec = spec_of("cpu", "9", "5");
    struct rig rig;
    SF_MUST(rig_open(&spec, &rig));
    for (int script = 0; script < 20; script++) {
        for (int32_t i = 0; i < SEQS; i++) {
            alone[i].prompt = 1 + below(60);
            alone[i].tokens = alone[i].prompt + 1 + below(TOKENS - 60);
            run_alone(&rig, i);
        }
        run_together(&rig);
        for (int32_t i = 0; i < SEQS; i++)
            for (int32_t l = 0; l < LAYERS; l++)
                for (int32_t t = 0; t < alone[i].tokens; t++)
                    if (memcmp(alone[i].out[l][t], together[i].out[l][t],
                               sizeof alone[i].out[l][t]) != 0) {
                        sf_test_fail(__FILE__, __LINE__, "script %d, prompt %d: layer %d row %d"
                                     " differs from the sequence alone", script, alone[i].prompt,
                                     l, t);
                        t = alone[i].tokens;
                    }
    }
    SF_CHECK_INT(rig.store->pool.used, 0);
    rig_close(&rig);
}

/* ---- what is refused ------------------------------------------------------------------------ */
static struct sf_plan asked;

static sf_status toy_shape(const struct sf_setup *setup, struct sf_shape *shape)
{
    for (int32_t l = 0; l < setup->layers; l++) shape->layer_group[l] = 0;
    return SF_OK;
}

static sf_status toy_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    *plan = asked;
    plan->tiers = 2;
    plan->tier[1] = sf_tier_lowrank(&(struct sf_lowrank){ .rank_k = 4, .rank_v = 4, .layers = 3 });
    plan->edits = SF_EDITS_GROUP;
    return SF_OK;
}

static sf_status toy_foot(const struct sf_setup *setup, const struct sf_spot *spot,
                          struct sf_foot *foot)
{
    (void)setup;
    foot->slots_lo[0] = foot->slots_hi[0] = spot->tokens;
    return SF_OK;
}

/* First the second ten of the prompt's tokens, then the first ten. */
static sf_status toy_compress(const struct sf_env *env, enum sf_when when,
                              const struct sf_batch *batch, struct sf_answer *answer)
{
    int32_t ids[10];
    (void)env;
    for (int32_t i = 0; i < 10; i++) ids[i] = i + (when == SF_AT_PREFILL_END ? 10 : 0);
    return sf_edit_group(answer, batch->span, (struct sf_list){ .ids = ids, .n = 10 }, 1, NULL);
}

static const struct sf_opt no_opts[] = { { .key = NULL } };
static const struct sf_policy_ops toy_policy = { .plan = toy_plan, .footprint = toy_foot,
                                                 .shape = toy_shape, .compress = toy_compress };
static const struct sf_method toy = { .name = "toy", .paper = "-", .opts = no_opts,
                                      .cfg_bytes = 1, .policy = &toy_policy };

static void refusals(void)
{
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct sf_seq *seq;
    spec.layers = LAYERS;
    spec.method = &toy;
    asked = (struct sf_plan){ .whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_INTERVAL,
                              .every_tokens = 4 };
    CHECK_REFUSED(rig_open(&spec, &rig), SF_UNSUPPORTED, "not counted from the prompt's end");
    asked.every_from_prompt = 1;
    asked.whens |= 1u << SF_AT_FULL;
    CHECK_REFUSED(rig_open(&spec, &rig), SF_UNSUPPORTED, "encoded but at a prompt's end or an");
    asked.whens &= ~(1u << SF_AT_FULL);
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, 30, 40, &seq));
    SF_CHECK_OK(rig_feed(&rig, seq, 0, 0, 30));
    SF_CHECK_OK(rig_feed(&rig, seq, 0, 30, 3));
    CHECK_REFUSED(rig_feed(&rig, seq, 0, 33, 1), SF_INVALID, "toy: slot 0 of layer 0 head 0 comes"
                  " into a group that has slot 10, behind it");
    sf_seq_close(rig.store, seq, NULL);
    SF_CHECK_INT(rig.store->pool.used, 0);
    rig_close(&rig);
}

static const struct sf_test tests[] = {
    { "with full ranks, the exact cache", full_rank },
    { "the same in any company", any_company },
    { "refusals", refusals },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_segments", tests)
