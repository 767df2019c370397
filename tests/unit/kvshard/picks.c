/* tests/unit/kvshard/picks.c: lanes of which attention reads picked slots in decode.
 *
 *   - at full rank with every chunk picked, outputs are those of the exact cache
 *   - what was fed in one call is, bit for bit, what single rows give, so that an answer which is
 *     fed again goes on as it was; beside other sequences too
 *   - a lane is numbered in its tokens' order whatever is raw: what stays raw has the bits that
 *     were appended, the rest lies in the basis, and tiers say so
 *   - stored bytes, and pages, are those foretold
 *   - a pick holds until the next, and the rules are kept: refused in words, nothing done
 *   - sequences have places of their own for picks, and ask the device for nothing when they open
 *     and close: cudaMalloc and cudaFree wait for all that is queued */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kvshard/methods.h"
#include "kvshard/store_impl.h"
#include "tests/unit/kvshard/rig.h"

enum { PROMPT = 64, TOKENS = 90, LAYERS = 2, LANES = 2, SINKS = 3, CHUNK = 4, LOCAL = 2,
       OUTLIERS = 3, BASIS = ((PROMPT - SINKS) / CHUNK - LOCAL) * CHUNK };

static struct rig_spec spec_of(const char *device, const char *rank, const char *budget)
{
    struct rig_spec spec = rig_usual();
    const struct rig_option option[] = {
        { "group_size", "2" }, { "rank_k", rank }, { "rank_v", rank }, { "num_sink_tokens", "3" },
        { "min_prompt_tokens", "1" }, { "svd.method", "exact" }, { "reconstruction", "selective" },
        { "chunk_size", "4" }, { "local_chunks", "2" }, { "outlier_chunks", "3" },
        { "budget_tokens", budget } };
    spec.device = device;
    spec.rope_dim = 8;
    spec.page_slots = 64;               /* rows of a basis fit */
    spec.tokens_max = 256;
    spec.method = sf_method_find("xkv");
    memcpy(spec.option, option, sizeof option);
    return spec;
}

static struct rig_spec exact_of(struct rig_spec spec)
{
    spec.method = NULL;
    memset(spec.option, 0, sizeof spec.option);
    return spec;
}

static size_t out_floats(const struct rig *rig, int32_t rows)
{
    return (size_t)rows * (size_t)(rig->spec.lanes * rig->spec.group * rig->spec.v_dim);
}

/* ---- all of it ------------------------------------------------------------------------------ */
static void one_exact(const char *device)
{
    struct rig_spec spec = spec_of(device, "64", "40"), plain = exact_of(spec); /* 13 - 3 chunks */
    struct rig sparse, exact;
    struct sf_seq *a, *b;
    SF_MUST(rig_open(&spec, &sparse));
    SF_MUST(rig_open(&plain, &exact));
    SF_MUST(sf_seq_open(sparse.store, 0, PROMPT, TOKENS, &a));
    SF_MUST(sf_seq_open(exact.store, 0, PROMPT, TOKENS, &b));
    SF_MUST(rig_feed(&sparse, a, 0, 0, PROMPT));
    SF_MUST(rig_feed(&exact, b, 0, 0, PROMPT));
    for (int32_t at = PROMPT; at < TOKENS; at++) {
        SF_MUST(rig_feed(&sparse, a, 0, at, 1));
        SF_MUST(rig_feed(&exact, b, 0, at, 1));
        for (int32_t l = 0; l < LAYERS; l++)
            for (size_t i = 0; i < out_floats(&sparse, 1); i++)
                SF_CHECK_NEAR((double)sparse.out[l][i], (double)exact.out[l][i], 2e-5);
    }
    SF_CHECK_INT(a->lane[0].picks, 40);
    sf_seq_close(sparse.store, a, NULL);
    sf_seq_close(exact.store, b, NULL);
    rig_close(&sparse);
    rig_close(&exact);
}

static void test_exact(void)
{
    one_exact("ref");
    one_exact("cpu");
}

/* ---- rows in one call ----------------------------------------------------------------------- */
static void test_rows(void)
{
    struct rig_spec spec = spec_of("cpu", "9", "12");
    struct rig single, whole;
    struct sf_seq *a, *b, *other;
    SF_MUST(rig_open(&spec, &single));
    SF_MUST(rig_open(&spec, &whole));
    SF_MUST(sf_seq_open(single.store, 0, PROMPT, TOKENS, &a));
    SF_MUST(sf_seq_open(whole.store, 0, PROMPT, TOKENS, &b));
    SF_MUST(sf_seq_open(whole.store, 1, 70, TOKENS, &other));
    SF_MUST(rig_feed(&whole, other, 1, 0, 70));
    SF_MUST(rig_feed(&whole, b, 0, 0, PROMPT));
    SF_MUST(rig_feed(&single, a, 0, 0, PROMPT));
    struct rig_item both[] = { { other, 1, 70, 3 }, { b, 0, PROMPT, TOKENS - PROMPT } };
    SF_MUST(rig_run(&whole, both, 2));
    for (int32_t at = PROMPT; at < TOKENS; at++) {
        SF_MUST(rig_feed(&single, a, 0, at, 1));
        for (int32_t l = 0; l < LAYERS; l++)
            SF_CHECK(memcmp(single.out[l], whole.out[l] + out_floats(&whole, 3 + at - PROMPT),
                            out_floats(&whole, 1) * sizeof(float)) == 0);
    }
    sf_seq_close(single.store, a, NULL);
    sf_seq_close(whole.store, b, NULL);
    sf_seq_close(whole.store, other, NULL);
    rig_close(&single);
    rig_close(&whole);
}

/* ---- what is where -------------------------------------------------------------------------- */
static void check_slots(const struct rig *rig, const struct sf_seq *seq, int32_t layer, int32_t l)
{
    const struct sf_kv_lane *lane = &seq->lane[layer * LANES + l];
    float k[TOKENS * 8], v[TOKENS * 6], bias[TOKENS];
    int32_t pos[TOKENS], raw = 0, head = rig_head(&rig->spec, l);
    uint8_t tier[TOKENS];
    SF_CHECK_INT(sf_seq_lane_slots(rig->store, seq, layer, l), TOKENS);
    SF_MUST(sf_seq_lane_read(rig->store, seq, layer, l, k, v, pos, bias));
    sf_seq_lane_tiers(rig->store, seq, layer, l, tier);
    for (int32_t s = 0; s < TOKENS; s++) {
        SF_CHECK_INT(pos[s], s);
        if (s < SINKS || s >= SINKS + BASIS) SF_CHECK_INT(tier[s], 0);
        else SF_CHECK_INT(tier[s], tier[SINKS + (s - SINKS) / CHUNK * CHUNK]);
        raw += tier[s] == 0;
        for (int32_t e = 0; e < 6 && tier[s] == 0; e++)
            SF_CHECK(k[s * 8 + e] == rig_value(RIG_K, 0, layer, head, s, e) &&
                     v[s * 6 + e] == rig_value(RIG_V, 0, layer, head, s, e));
    }
    SF_CHECK_INT(raw, TOKENS - BASIS + OUTLIERS * CHUNK);
    SF_CHECK_INT(lane->hidden, OUTLIERS * CHUNK);
    const struct sf_kv_lane *marks = sf_group_marks(rig->store, seq, layer, l);
    SF_CHECK_INT(marks->live, BASIS / CHUNK - OUTLIERS);
    SF_CHECK_INT(lane->picks, 12);
    for (int32_t i = 0; i < lane->picks; i++) { /* ref's memory is ours */
        int32_t s = SINKS + lane->pick[i];
        SF_CHECK(lane->pick[i] >= 0 && lane->pick[i] < BASIS && tier[s] == 1);
    }
}

static void test_slots(void)
{
    struct rig_spec spec = spec_of("ref", "9", "13"); /* 3 chunks */
    struct rig rig;
    struct sf_seq *seq;
    struct sf_receipt receipt;
    struct sf_cost cost;
    int32_t lane_ptr[] = { 0, LANES, 2 * LANES }, head[] = { 0, 1, 0, 1 };
    uint8_t replica[4] = { 0 };
    struct sf_rank_lanes lanes = { 0, LAYERS, lane_ptr, head, replica };
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, PROMPT, TOKENS, &seq));
    SF_MUST(rig_feed(&rig, seq, 0, 0, PROMPT));
    SF_MUST(rig_feed(&rig, seq, 0, PROMPT, TOKENS - PROMPT));
    for (int32_t n = 0; n < LAYERS * LANES; n++) check_slots(&rig, seq, n / LANES, n % LANES);
    sf_seq_receipt(rig.store, seq, &receipt);
    SF_MUST(sf_account_sequence(&rig.setup, &rig.stack, &lanes, SF_F32, PROMPT, TOKENS, &cost));
    SF_CHECK_INT(receipt.bytes_stored, cost.bytes_lo);
    SF_CHECK_INT(cost.bytes_lo, cost.bytes_hi);
    SF_CHECK_INT(receipt.slots_requantised, LAYERS * LANES * (BASIS - OUTLIERS * CHUNK));
    SF_CHECK(receipt.bytes_peak <= cost.bytes_peak && seq->pages <= cost.pages_after);
    sf_seq_close(rig.store, seq, NULL);
    SF_CHECK_INT(sf_store_bytes_stored(rig.store), 0);
    SF_CHECK_INT(rig.store->pool.used, 0);
    rig_close(&rig);
}

/* A listed group of more layers than group_size has. */
static void test_listed(void)
{
    struct rig_spec spec = spec_of("ref", "3", "12");
    struct rig rig;
    struct sf_seq *seq;
    spec.layers = 4;
    spec.option[0].text = "1";
    spec.option[11] = (struct rig_option){ "layer_groups", "[0-3]" };
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, PROMPT, TOKENS, &seq));
    SF_MUST(rig_feed(&rig, seq, 0, 0, PROMPT));
    SF_MUST(rig_feed(&rig, seq, 0, PROMPT, TOKENS - PROMPT));
    for (int32_t n = 0; n < 4 * LANES; n++) check_slots(&rig, seq, n / LANES, n % LANES);
    sf_seq_close(rig.store, seq, NULL);
    SF_CHECK_INT(rig.store->pool.used, 0);
    rig_close(&rig);
}

/* ---- rules ---------------------------------------------------------------------------------- */
static struct { int edit, pick, calls; } act;

static sf_status ask_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    SF_TRY(sf_method_find("xkv")->policy->plan(setup, plan));
    return SF_OK;
}

static sf_status ask_compress(const struct sf_env *env, enum sf_when when,
                              const struct sf_batch *batch, struct sf_answer *answer)
{
    const struct sf_span *span = batch->span;
    static const int32_t some[] = { 4, 5, 6, 7, 8 }, none[] = { 6, 9 }, back[] = { 6, 5 };
    static const int32_t low[] = { 1, 0 }, far[] = { 0, 64 };
    static const float key[2 * 8] = { 1 };
    struct sf_list slots = { .ids = some, .n = 5 }, exact[2 * LANES] = { { 0 } };
    struct sf_marks marks = { 2, low, key };
    switch (act.edit) {
    case 1: exact[1] = (struct sf_list){ .ids = none, .n = 2 }; break;
    case 2: exact[3] = (struct sf_list){ .ids = back, .n = 2 }; break;
    case 3: exact[0] = (struct sf_list){ .ids = some, .n = 6 }; break;
    case 4: return sf_edit_marks(answer, &span->lane[1], &marks);
    case 5: marks.chunk = far; return sf_edit_marks(answer, &span->lane[1], &marks);
    case 6: marks.n = 0; return sf_edit_marks(answer, &span->lane[0], &marks);
    case 7: return sf_pick_chunks(answer, &span->lane[0], 1);
    case 8: exact[0] = (struct sf_list){ .ids = some, .n = 1 }; break; /* and no landmarks */
    default: return sf_method_find("xkv")->policy->compress(env, when, batch, answer);
    }
    return sf_edit_group(answer, span, slots, 1, exact);
}

static sf_status ask_select(const struct sf_env *env, const struct sf_batch *batch,
                            struct sf_answer *answer)
{
    const struct sf_lane *lane = batch->span->lane;
    SF_CHECK(lane->pos == NULL && batch->span->rows == 1 && batch->span->lanes == LANES);
    act.calls++;
    switch (act.pick) {
    case 1: return sf_pick_chunks(answer, lane, 0);
    case 2: return sf_pick_chunks(answer, lane, lane->marks + 1);
    case 3: SF_TRY(sf_pick_chunks(answer, lane, 1)); return sf_pick_chunks(answer, lane, 1);
    case 4: return sf_edit_keep(answer, lane, (struct sf_list){ .n = -1 });
    case 5: return sf_edit_group(answer, batch->span, (struct sf_list){ .n = 1 }, 1, NULL);
    case 6: return sf_pick_chunks(answer, lane, 4); /* 16 slots, planned are 12 */
    case 7: return SF_OK;
    default: return sf_method_find("xkv")->policy->select(env, batch, answer);
    }
}

static sf_status ask_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                               struct sf_foot *foot)
{
    return sf_method_find("xkv")->policy->footprint(setup, spot, foot);
}
static sf_status ask_shape(const struct sf_setup *setup, struct sf_shape *shape)
{
    return sf_method_find("xkv")->policy->shape(setup, shape);
}
static const struct sf_policy_ops ask_ops = { .plan = ask_plan, .footprint = ask_footprint,
                                              .shape = ask_shape, .select = ask_select,
                                              .compress = ask_compress };

static void ask(int edit, int pick, const char *words)
{
    struct sf_method method = *sf_method_find("xkv");
    struct rig_spec spec = spec_of("ref", "9", "12");
    struct rig rig;
    struct sf_seq *seq;
    method.policy = &ask_ops;
    spec.method = &method;
    act.edit = edit;
    act.pick = pick;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, PROMPT, TOKENS, &seq));
    sf_status status = rig_feed(&rig, seq, 0, 0, PROMPT);
    if (pick || edit == 8) {
        SF_MUST(status);
        status = rig_feed(&rig, seq, 0, PROMPT, 1);
    }
    CHECK_REFUSED(status, SF_INVALID, words);
    sf_seq_close(rig.store, seq, NULL);
    SF_CHECK_INT(rig.store->pool.used, 0);
    rig_close(&rig);
}

static void test_rules(void)
{
    ask(1, 0, "slot 9 of layer 0 head 1 stays raw, but is none of the group's");
    ask(2, 0, "slot 5 of layer 1 head 1 stays raw, but is none of the group's, or out of order");
    ask(3, 0, "6 slots of layer 0 head 0 stay raw of 5 in a group");
    ask(4, 0, "landmark 1 of layer 0 head 1 stands for chunk 0");
    ask(5, 0, "landmark 1 of layer 0 head 1 stands for chunk 64 of 22");
    ask(6, 0, "0 landmarks of layer 0 head 0");
    ask(7, 0, "pick outside of select()");
    ask(8, 0, "no pick of layer 0 head 0, which has slots raw that its group has too");
    ask(0, 1, "a pick of 0 chunks");
    ask(0, 2, "which has 10 landmarks");
    ask(0, 3, "second pick of 1 chunks");
    ask(0, 4, "keep, which its plan does not declare");
    ask(0, 5, "edit in select()");
    ask(0, 6, "room for 12 slots");
    ask(0, 7, "no pick of layer 0 head 0, which has slots raw that its group has too");
}

/* A step without a pick reads what the one before has picked, and what came since. */
static void test_holds(void)
{
    struct sf_method method = *sf_method_find("xkv");
    struct rig_spec spec = spec_of("ref", "9", "12");
    struct rig rig;
    struct sf_seq *seq;
    int32_t was[12];
    method.policy = &ask_ops;
    spec.method = &method;
    memset(&act, 0, sizeof act);
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, PROMPT, TOKENS, &seq));
    SF_MUST(rig_feed(&rig, seq, 0, 0, PROMPT));
    SF_MUST(rig_feed(&rig, seq, 0, PROMPT, 1));
    SF_CHECK_INT(act.calls, LAYERS);
    memcpy(was, seq->lane[0].pick, sizeof was);
    act.pick = 7;
    SF_MUST(rig_feed(&rig, seq, 0, PROMPT + 1, 5));
    SF_CHECK_INT(act.calls, 6 * LAYERS);
    SF_CHECK(memcmp(was, seq->lane[0].pick, sizeof was) == 0 && seq->lane[0].picks == 12);
    SF_CHECK_INT(seq->lane[0].live, PROMPT + 6 - BASIS + OUTLIERS * CHUNK);
    sf_seq_close(rig.store, seq, NULL);
    rig_close(&rig);
}

static const struct sf_kernels *inner;
static int32_t asked;                   /* of the device's allocator */

static sf_status alloc_counted(struct sf_device *device, size_t bytes, const char *what, void **out)
{
    asked++;
    return inner->alloc(device, bytes, what, out);
}
static void free_counted(struct sf_device *device, void *block)
{
    asked++;
    inner->free(device, block);
}

static void test_places(void)
{
    struct rig_spec spec = spec_of("ref", "9", "12");
    struct rig rig;
    struct sf_seq *seq[RIG_SEQS];
    enum { MOST = RIG_SEQS, PICKS = LANES * LAYERS * 12 };
    SF_MUST(rig_open(&spec, &rig));
    struct sf_kernels counting = *rig.device->k;
    inner = rig.device->k;
    counting.alloc = alloc_counted;
    counting.free = free_counted;
    rig.device->k = &counting;
    asked = 0;
    for (int round = 0; round < 2; round++) {
        for (int32_t i = 0; i < MOST; i++)
            SF_MUST(sf_seq_open(rig.store, i, PROMPT, TOKENS, &seq[i]));
        for (int32_t i = 0; i < MOST; i++)
            for (int32_t j = 0; j < i; j++) {
                int32_t *a = seq[i]->group[0].pick, *b = seq[j]->group[0].pick;
                SF_CHECK(a >= b + PICKS || b >= a + PICKS);
            }
        int32_t *last = seq[MOST - 1]->group[0].pick;
        sf_seq_close(rig.store, seq[MOST - 1], NULL);
        SF_MUST(sf_seq_open(rig.store, 9, PROMPT, TOKENS, &seq[MOST - 1]));
        SF_CHECK(seq[MOST - 1]->group[0].pick == last);
        for (int32_t i = 0; i < MOST; i++) sf_seq_close(rig.store, seq[i], NULL);
    }
    SF_CHECK_INT(asked, 0);
    rig.device->k = inner;
    rig_close(&rig);
}

static const struct sf_test tests[] = {
    { "all chunks at full rank are the exact cache", test_exact },
    { "rows in one call", test_rows }, { "what is where", test_slots },
    { "what is where in a longer, listed group", test_listed },
    { "rules", test_rules }, { "a pick holds", test_holds },
    { "places", test_places }, { NULL, NULL }
};
SF_TEST_MAIN("kvshard_picks", tests)
