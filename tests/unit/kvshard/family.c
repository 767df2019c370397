/* tests/unit/kvshard/family.c: one toy for each family of methods, through the real store.
 *
 * What a toy decides is worked out again here from plain arrays, or held to what must be true of
 * any such method: who is kept, that mass and tokens are conserved by merging, that an edit shows
 * from the next token on, and that pieces of the prompt change nothing.  Rows are held to a plain
 * softmax over the slots that the lane had.  Toys of families that the store does not serve are
 * refused in words before anything runs. */
#include <stdlib.h>

#include "tests/unit/kvshard/rig.h"
#include "tests/unit/kvshard/script.h"
#include "tests/unit/kvshard/toys.h"

enum { LAYERS = 2, LANES = 3, PROMPT = 61, TOKENS = 130 };

static struct rig_spec spec_of(const struct sf_method *method)
{
    struct rig_spec spec = rig_usual();
    spec.lanes = LANES;
    spec.method = method;
    return spec;
}

/* ---- what admission was told ---------------------------------------------------------------- */
static struct sf_cost cost_at(const struct rig *rig, int32_t tokens)
{
    int32_t lane_ptr[LAYERS + 1], heads[LAYERS * LANES];
    uint8_t replica[LAYERS * LANES] = { 0 };
    for (int32_t l = 0; l <= LAYERS; l++) lane_ptr[l] = l * LANES;
    for (int32_t l = 0; l < LAYERS * LANES; l++) heads[l] = l % LANES;
    struct sf_rank_lanes rank = { 0, LAYERS, lane_ptr, heads, replica };
    struct sf_cost cost = { 0 };
    SF_CHECK_OK(sf_account_sequence(&rig->setup, &rig->stack, &rank, rig->spec.dtype, PROMPT,
                                    tokens, &cost));
    return cost;
}

static void check_cost(const struct rig *rig, const struct sf_receipt *receipt, int exact)
{
    struct sf_cost cost = cost_at(rig, receipt->tokens);
    SF_CHECK_INT(cost.bytes_exact, receipt->bytes_exact);
    if (receipt->bytes_stored < cost.bytes_lo || receipt->bytes_stored > cost.bytes_hi)
        sf_test_fail(__FILE__, __LINE__, "%s: stored %lld B, predicted %lld to %lld",
                     rig->spec.method->name, (long long)receipt->bytes_stored,
                     (long long)cost.bytes_lo, (long long)cost.bytes_hi);
    if (exact) SF_CHECK_INT(cost.bytes_lo, cost.bytes_hi);
    if (receipt->bytes_peak > cost.bytes_peak)
        sf_test_fail(__FILE__, __LINE__, "%s: pages of %lld B, predicted %lld",
                     rig->spec.method->name, (long long)receipt->bytes_peak,
                     (long long)cost.bytes_peak);
}

/* ---- a run, row by row ---------------------------------------------------------------------- */
/* The lane as it is stored, and room for more. */
static void read_lane(const struct rig *rig, const struct sf_seq *seq, int32_t layer, int32_t lane,
                      struct ref_lane *ref)
{
    ref_open(ref, &rig->spec, 512);
    ref->slots = sf_seq_lane_slots(rig->store, seq, layer, lane);
    SF_CHECK_OK(sf_seq_lane_read(rig->store, seq, layer, lane, ref->k, ref->v, ref->pos,
                                 ref->bias));
}

typedef void check_fn(const struct rig *, const struct ref_lane *now, int32_t layer, int32_t lane,
                      int32_t tokens);

/* Prompt at once, then token by token: each row is a softmax over the slots before it and itself;
 * `check` sees each lane after each step's edits. */
static void run_toy(const struct sf_method *method, const char *device, int exact, check_fn *check)
{
    struct rig_spec spec = spec_of(method);
    struct rig rig;
    struct sf_seq *seq;
    struct sf_receipt receipt;
    spec.device = device;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, PROMPT, 256, &seq));
    int64_t promised = cost_at(&rig, TOKENS).pages_after;
    for (int32_t at = 0, rows; at < TOKENS; at += rows) {
        struct ref_lane before[LAYERS * LANES];
        rows = at == 0 ? PROMPT : 1;
        for (int32_t i = 0; i < LAYERS * LANES; i++)
            read_lane(&rig, seq, i / LANES, i % LANES, &before[i]);
        SF_MUST(rig_feed(&rig, seq, 0, at, rows));
        int64_t held = sf_store_pages(rig.store) - sf_store_pages_free(rig.store);
        if (held > promised)
            sf_test_fail(__FILE__, __LINE__, "%s: %lld pages at %d tokens, promised %lld",
                         method->name, (long long)held, at + rows, (long long)promised);
        for (int32_t i = 0; i < LAYERS * LANES; i++) {
            struct ref_lane now;
            for (int32_t r = 0; r < rows; r++) {
                ref_append(&before[i], &spec, 0, i / LANES, i % LANES, at + r);
                if (method != &toy_chunks || at > 0) /* chunks edit inside of the prompt */
                    check_row(&rig, 0, i / LANES, i % LANES, r, at + r, &before[i], NULL, NULL,
                              1e-5);
            }
            read_lane(&rig, seq, i / LANES, i % LANES, &now);
            check(&rig, &now, i / LANES, i % LANES, at + rows);
            ref_close(&now);
            ref_close(&before[i]);
        }
    }
    sf_seq_close(rig.store, seq, &receipt);
    SF_CHECK_INT(sf_store_pages_free(rig.store), spec.pages);
    check_cost(&rig, &receipt, exact);
    rig_close(&rig);
}

/* ---- score and evict ------------------------------------------------------------------------ */
struct ranked { float score; int32_t slot; };
static int by_rank(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->slot - y->slot;
}
static int by_slot(const void *a, const void *b)
{
    return ((const struct ranked *)a)->slot - ((const struct ranked *)b)->slot;
}

/* The `keep` best, in the lane's order. */
static void keep_ranked(struct ref_lane *ref, struct ranked *ranked, int32_t keep)
{
    int32_t ids[512];
    qsort(ranked, (size_t)ref->slots, sizeof *ranked, by_rank);
    qsort(ranked, (size_t)keep, sizeof *ranked, by_slot);
    for (int32_t i = 0; i < keep; i++) ids[i] = ranked[i].slot;
    ref_keep(ref, ids, keep);
}

static float norm_of(const struct ref_lane *ref, int32_t s)
{
    float sum = 0;
    for (int32_t e = 0; e < ref->k_dim; e++) {
        float square = ref->k[s * ref->k_dim + e] * ref->k[s * ref->k_dim + e];
        sum += square;
    }
    return sum;
}

static struct ref_lane shadow[LAYERS * LANES];

static void shadow_open(void)
{
    struct rig_spec spec = rig_usual();
    for (int i = 0; i < LAYERS * LANES; i++) ref_open(&shadow[i], &spec, 512);
}
static void shadow_close(void)
{
    for (int i = 0; i < LAYERS * LANES; i++) ref_close(&shadow[i]);
}
/* Appends what is new. */
static struct ref_lane *shadow_grow(const struct rig *rig, int32_t layer, int32_t lane,
                                    int32_t tokens)
{
    struct ref_lane *ref = &shadow[layer * LANES + lane];
    for (int32_t pos = tokens == PROMPT ? 0 : tokens - 1; pos < tokens; pos++)
        ref_append(ref, &rig->spec, 0, layer, lane, pos);
    return ref;
}

static void check_same(const struct ref_lane *now, const struct ref_lane *ref)
{
    SF_CHECK_INT(now->slots, ref->slots);
    for (int32_t s = 0; s < now->slots && s < ref->slots; s++)
        if (now->pos[s] != ref->pos[s]) {
            sf_test_fail(__FILE__, __LINE__, "slot %d is position %d, expected %d", s, now->pos[s],
                         ref->pos[s]);
            return;
        }
}

static void check_norm(const struct rig *rig, const struct ref_lane *now, int32_t layer,
                       int32_t lane, int32_t tokens)
{
    struct ref_lane *ref = shadow_grow(rig, layer, lane, tokens);
    int32_t keep = toy_norm_keep(lane), trigger = keep + TOY_NORM_GROWTH;
    if (tokens == PROMPT ? ref->slots > trigger : ref->slots >= trigger) {
        struct ranked ranked[512];
        for (int32_t s = 0; s < ref->slots; s++) {
            int guarded = ref->pos[s] < TOY_SINKS || ref->pos[s] >= tokens - TOY_TAIL;
            ranked[s] = (struct ranked){ guarded ? INFINITY : norm_of(ref, s), s };
        }
        keep_ranked(ref, ranked, keep);
    }
    check_same(now, ref);
}

static void test_norm(void)
{
    static const char *const devices[] = { "ref", "cpu" };
    for (int d = 0; d < 2; d++) {
        shadow_open();
        run_toy(&toy_norm, devices[d], 0, check_norm);
        SF_CHECK(shadow[0].slots < shadow[1].slots && shadow[1].slots < shadow[2].slots);
        shadow_close();
    }
}

/* ---- compensation --------------------------------------------------------------------------- */
/* Lane 0 keeps all.  Else: sink, the mean of what is gone with ln of its number, the window. */
static void check_fold(const struct rig *rig, const struct ref_lane *now, int32_t layer,
                       int32_t lane, int32_t tokens)
{
    struct ref_lane *all = shadow_grow(rig, layer, lane, tokens);
    if (lane == 0) {
        check_same(now, all);
        return;
    }
    int32_t recent = TOY_FOLD_RECENT + (tokens - PROMPT) % TOY_FOLD_TOKENS;
    int32_t gone = tokens - TOY_FOLD_SINKS - recent;
    SF_CHECK_INT(now->slots, TOY_FOLD_SINKS + 1 + recent);
    if (now->slots != TOY_FOLD_SINKS + 1 + recent) return;
    SF_CHECK_NEAR(now->bias[1], log(gone), 1e-6 * log(gone));
    SF_CHECK_INT(now->pos[1], 1);
    for (int32_t s = 2; s < now->slots; s++) SF_CHECK_INT(now->pos[s], tokens - recent + s - 2);
    for (int32_t e = 0; e < now->k_dim; e++) {
        double mean = 0;
        for (int32_t s = 1; s <= gone; s++) mean += (double)all->k[s * all->k_dim + e];
        SF_CHECK_NEAR(now->k[now->k_dim + e], mean / gone, 1e-6);
    }
}

static void test_fold(void)
{
    shadow_open();
    run_toy(&toy_fold, "ref", 0, check_fold);
    shadow_close();
    shadow_open();
    run_toy(&toy_fold, "cpu", 0, check_fold);
    shadow_close();
}

/* K, V and q of the published method's worked example: six tokens, one sink, a window of two. */
static void test_fold_worked(void)
{
    static float k[7][2] = { { 1, 0 }, { 0, 1 }, { 2, 0 }, { 0, 2 }, { 1, 1 }, { 0, 0 },
                             { -1000, 0 } }; /* the last one is the query's own, far away */
    static float v[7][2] = { { 1, 0 }, { 0, 1 }, { 2, 0 }, { 0, 4 }, { 1, 1 }, { 3, 0 },
                             { 9, 9 } };
    static float q[7][2] = { { 1, 0 }, { 1, 0 }, { 1, 0 }, { 1, 0 }, { 1, 0 }, { 1, 0 },
                             { 1, 0 } };
    float out[7][2];
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct sf_kv_item item = { .rows = 6 };
    struct sf_receipt receipt;
    spec.layers = spec.lanes = spec.group = 1;
    spec.k_dim = spec.v_dim = 2;
    spec.scale = 1;
    spec.method = &toy_fold;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, 6, 16, &item.seq));
    struct sf_kv_step step = { .item = &item, .items = 1, .q = q[0], .k = k[0], .v = v[0],
                               .q_stride = 2, .k_stride = 2, .v_stride = 2, .out = out,
                               .out_stride = 2, .out_head_stride = 2, .out_dtype = SF_F32 };
    SF_MUST(sf_store_layer(rig.store, 0, &step));
    SF_CHECK_NEAR(out[5][0], 1.466905, 1e-6); /* the prompt is attended in full */
    SF_CHECK_NEAR(out[5][1], 0.487708, 1e-6);
    item.pos_first = 6;
    item.rows = 1;
    step.q = q[6];
    step.k = k[6];
    step.v = v[6];
    SF_MUST(sf_store_layer(rig.store, 0, &step));
    SF_CHECK_NEAR(out[0][0], 1.004256, 1e-6);
    SF_CHECK_NEAR(out[0][1], 1.014429, 1e-6);
    sf_seq_close(rig.store, item.seq, &receipt);
    SF_CHECK_INT(receipt.slots_evicted, 3);
    SF_CHECK_INT(receipt.slots_merged, 0);
    rig_close(&rig);
}

/* ---- merging -------------------------------------------------------------------------------- */
/* Tokens and sums are conserved: sum e^bias = tokens, sum e^bias k = sum of all keys. */
static void check_conserved(const struct rig *rig, const struct ref_lane *now, int32_t layer,
                            int32_t lane, int32_t tokens)
{
    double count = 0;
    for (int32_t s = 0; s < now->slots; s++) {
        count += exp((double)now->bias[s]);
        if (s > 0) SF_CHECK(now->pos[s] > now->pos[s - 1]);
    }
    SF_CHECK_NEAR(count, tokens, 1e-4);
    for (int32_t e = 0; e < now->v_dim; e++) {
        double is = 0, all = 0;
        for (int32_t s = 0; s < now->slots; s++)
            is += exp((double)now->bias[s]) * (double)now->v[s * now->v_dim + e];
        for (int32_t pos = 0; pos < tokens; pos++)
            all += (double)rig_value(RIG_V, 0, layer, rig_head(&rig->spec, lane), pos, e);
        SF_CHECK_NEAR(is, all, 1e-4);
    }
}

static void check_merge(const struct rig *rig, const struct ref_lane *now, int32_t layer,
                        int32_t lane, int32_t tokens)
{
    int32_t since = (tokens - PROMPT) % TOY_MERGE_GROWTH;
    SF_CHECK_INT(now->slots, TOY_MERGE_BUDGET + since);
    check_conserved(rig, now, layer, lane, tokens);
}

static void check_chunks(const struct rig *rig, const struct ref_lane *now, int32_t layer,
                         int32_t lane, int32_t tokens)
{
    SF_CHECK_INT(now->slots, TOY_CHUNK_KEEP + tokens - PROMPT);
    check_conserved(rig, now, layer, lane, tokens);
}

static void test_merge(void)
{
    run_toy(&toy_merge, "ref", 0, check_merge);
    run_toy(&toy_merge, "cpu", 0, check_merge);
    run_toy(&toy_chunks, "ref", 1, check_chunks);
    run_toy(&toy_chunks, "cpu", 1, check_chunks);
}

/* A method that acts at chunks does so at its own borders, however the prompt arrives. */
static void test_chunks(void)
{
    static const int32_t pieces[] = { PROMPT, 5, 16, 23, 1 };
    struct rig_spec spec = spec_of(&toy_chunks);
    size_t row = (size_t)(LANES * spec.group * spec.v_dim);
    float *first = calloc(LAYERS * PROMPT * row, sizeof *first);
    for (size_t p = 0; p < sizeof pieces / sizeof pieces[0]; p++) {
        struct rig rig;
        struct sf_seq *seq;
        SF_MUST(rig_open(&spec, &rig));
        SF_MUST(sf_seq_open(rig.store, 0, PROMPT, 256, &seq));
        for (int32_t at = 0, rows; at < PROMPT; at += rows) {
            rows = PROMPT - at < pieces[p] ? PROMPT - at : pieces[p];
            SF_MUST(rig_feed(&rig, seq, 0, at, rows));
            for (size_t layer = 0; layer < LAYERS; layer++) {
                float *is = first + (layer * PROMPT + (size_t)at) * row;
                size_t bytes = (size_t)rows * row * sizeof(float);
                if (p == 0) memcpy(is, rig.out[layer], bytes);
                else SF_CHECK(memcmp(is, rig.out[layer], bytes) == 0);
            }
        }
        sf_seq_close(rig.store, seq, NULL);
        rig_close(&rig);
    }
    free(first);
}

/* ---- one choice for all heads --------------------------------------------------------------- */
static void check_shared(const struct rig *rig, const struct ref_lane *now, int32_t layer,
                         int32_t lane, int32_t tokens)
{
    struct ref_lane *ref = shadow_grow(rig, layer, lane, tokens);
    if (lane == LANES - 1 && tokens > PROMPT && (tokens - PROMPT) % TOY_SHARED_EVERY == 0) {
        struct ranked ranked[LANES][512];
        for (int32_t s = 0; s < ref->slots; s++) {
            int64_t sum = 0;
            for (int32_t l = 0; l < LANES; l++)
                sum += sf_fixed((double)norm_of(&shadow[layer * LANES + l], s));
            for (int32_t l = 0; l < LANES; l++)
                ranked[l][s] = (struct ranked){
                    ref->pos[s] >= tokens - TOY_TAIL ? INFINITY : (float)sum, s };
        }
        for (int32_t l = 0; l < LANES; l++)
            keep_ranked(&shadow[layer * LANES + l], ranked[l], TOY_SHARED_KEEP);
    }
    if (lane == LANES - 1) check_same(now, ref);
    else if ((tokens - PROMPT) % TOY_SHARED_EVERY != 0) check_same(now, ref);
}

static void test_shared(void)
{
    shadow_open();
    run_toy(&toy_shared, "ref", 1, check_shared);
    SF_CHECK(shadow[0].slots > 0 && shadow[0].slots < TOY_SHARED_KEEP + TOY_SHARED_EVERY);
    shadow_close();
    struct rig rig;
    struct rig_spec spec = spec_of(&toy_shared);
    SF_MUST(rig_open(&spec, &rig));
    rig.setup.tp_size = 2;
    SF_CHECK_OK(sf_stack_check(&rig.stack, &rig.setup));
    rig_close(&rig);
}

/* ---- what a hook sees ----------------------------------------------------------------------- */
static struct seen { int32_t calls, spans, lanes, prompt, tokens, rows, slots, pos_sum; } seen;

static sf_status look(const struct sf_env *env, enum sf_when when, const struct sf_batch *batch,
                      struct sf_answer *answer)
{
    (void)env; (void)when; (void)answer;
    for (int32_t i = 0; i < batch->spans; i++) {
        const struct sf_span *span = &batch->span[i];
        seen.spans++;
        seen.lanes += span->lanes;
        seen.prompt += span->prompt;
        seen.tokens += span->tokens;
        seen.rows += span->rows + (span->q != NULL);
        for (int32_t l = 0; l < span->lanes; l++) {
            seen.slots += span->lane[l].slots;
            for (int32_t s = 0; s < span->lane[l].slots; s++)
                seen.pos_sum += (s + 1) * span->lane[l].pos[s] + span->lane[l].tier[s];
        }
    }
    seen.calls++;
    return SF_OK;
}

static void test_same_view(void)
{
    static const int32_t pieces[] = { PROMPT, 1, 16, 37 };
    struct seen whole = { 0 };
    script = (struct script){ .plan = { .whens = 1u << SF_AT_PREFILL_END,
                                        .edits = SF_EDITS_KEEP }, .act = look };
    for (size_t p = 0; p < sizeof pieces / sizeof pieces[0]; p++) {
        struct rig_spec spec = spec_of(&script_method);
        struct rig rig;
        struct sf_seq *seq;
        seen = (struct seen){ 0 };
        SF_MUST(rig_open(&spec, &rig));
        SF_MUST(sf_seq_open(rig.store, 0, PROMPT, 256, &seq));
        for (int32_t at = 0, rows; at < PROMPT; at += rows) {
            SF_CHECK_INT(seen.calls, 0);
            rows = PROMPT - at < pieces[p] ? PROMPT - at : pieces[p];
            SF_MUST(rig_feed(&rig, seq, 0, at, rows));
        }
        if (p == 0) whole = seen;
        SF_CHECK(memcmp(&seen, &whole, sizeof seen) == 0);
        SF_CHECK_INT(seen.calls, LAYERS);
        SF_CHECK_INT(seen.lanes, LAYERS * LANES);
        SF_CHECK_INT(seen.slots, LAYERS * LANES * PROMPT);
        SF_CHECK_INT(seen.tokens, LAYERS * PROMPT);
        SF_CHECK_INT(seen.rows, 0);
        sf_seq_close(rig.store, seq, NULL);
        rig_close(&rig);
    }
}

/* ---- families that are not served ----------------------------------------------------------- */
static void test_asking(void)
{
    int toys = 0;
    for (const struct toy_asking *toy = toys_asking; toy->method; toy++, toys++) {
        struct rig_spec spec = spec_of(toy->method);
        struct rig rig;
        if (toy->words) {
            CHECK_REFUSED(rig_open(&spec, &rig),
                          toy->method->policy ? SF_UNSUPPORTED : SF_INVALID, toy->words);
        } else {
            SF_MUST(rig_open(&spec, &rig));
            rig_close(&rig);
        }
    }
    SF_CHECK_INT(toys, 18);
}

static const struct sf_test tests[] = {
    { "score and evict, budgets by head", test_norm },
    { "a compensation slot", test_fold },
    { "a compensation slot: the worked example", test_fold_worked },
    { "merging with bias and counts", test_merge },
    { "chunk events at the method's borders", test_chunks },
    { "one choice for all heads at an interval", test_shared },
    { "a hook sees the same whatever the pieces", test_same_view },
    { "what is not served is refused in words", test_asking },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_family", tests)
