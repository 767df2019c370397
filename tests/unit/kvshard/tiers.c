/* tests/unit/kvshard/tiers.c: lanes of three tiers (the cache's type, f32, f16) against a shadow.
 *
 * Random keeps, mixes into any tier and moves between tiers, alone and one after the other in one
 * answer, are done to plain arrays as well: what hooks are shown, the slots' numbers (rounded by
 * the tier that they are in) and order must be the shadow's, bit for bit, and attention its softmax
 * over all tiers.  What attention gave to the slots of all tiers since the last event is one for
 * each row and query head.  After each step no page has two owners, and those in use are those of
 * lanes. */
#include <stdlib.h>

#include "base/rng.h"
#include "kvshard/store_impl.h"
#include "tests/unit/kvshard/rig.h"
#include "tests/unit/kvshard/script.h"

enum { SEQS = 4, LAYERS = 2, LANES = 2, TOKENS_MAX = 260, EVERY = 9, SINKS = 2, TAIL = 3,
       STEPS = 1500, TIERS = 3 };

struct shadow {
    struct sf_seq *seq;                 /* NULL: not open */
    int32_t number, prompt, tokens[LAYERS], event[LAYERS];
    struct ref_lane lane[LAYERS][LANES];
    uint8_t tier[LAYERS][LANES][TOKENS_MAX];
};
static struct shadow shadows[SEQS];
static struct rig rig;
static uint64_t seed, drawn;
static int step, failed, moves_made, in_tier[TIERS];

static int32_t below(int32_t n)
{
    return (int32_t)(sf_rng_u64(seed, 17, drawn++) % (uint64_t)n);
}

static void must(int holds, const char *what)
{
    if (holds || failed) return;
    failed = 1;
    sf_test_fail(__FILE__, __LINE__, "seed %llu step %d: %s", (unsigned long long)seed, step, what);
}

static float stored(int32_t tier, float value)
{
    enum sf_dtype dtype = tier == 0 ? rig.spec.dtype : tier == 1 ? SF_F32 : SF_F16;
    if (dtype == SF_BF16) return sf_bf16_to_f32(sf_f32_to_bf16(value));
    return dtype == SF_F16 ? sf_f16_to_f32(sf_f32_to_f16(value)) : value;
}

static void catch_up(struct shadow *shadow, int32_t layer, int32_t tokens)
{
    for (; shadow->tokens[layer] < tokens; shadow->tokens[layer]++)
        for (int32_t l = 0; l < LANES; l++) {
            struct ref_lane *lane = &shadow->lane[layer][l];
            shadow->tier[layer][l][lane->slots] = 0;
            ref_append(lane, &rig.spec, shadow->number, layer, l, shadow->tokens[layer]);
        }
}

/* ---- edits ---------------------------------------------------------------------------------- */
static int guarded(int32_t pos, int32_t tokens) { return pos < SINKS || pos >= tokens - TAIL; }

static sf_status random_keep(struct sf_answer *answer, const struct sf_lane *lane,
                             struct shadow *shadow, int32_t l, int32_t tokens)
{
    int32_t ids[TOKENS_MAX], n = 0, percent = 40 + below(60);
    uint8_t *tier = shadow->tier[lane->layer][l];
    for (int32_t s = 0; s < lane->slots; s++)
        if (guarded(lane->pos[s], tokens) || below(100) < percent) ids[n++] = s;
    for (int32_t i = 0; i < n; i++) tier[i] = tier[ids[i]];
    ref_keep(&shadow->lane[lane->layer][l], ids, n);
    return sf_edit_keep(answer, lane, (struct sf_list){ ids, NULL, n });
}

/* All at once to one tier, or some to each. */
static sf_status random_moves(struct sf_answer *answer, const struct sf_lane *lane,
                              struct shadow *shadow, int32_t l, int32_t tokens)
{
    struct ref_lane *ref = &shadow->lane[lane->layer][l];
    for (int32_t t = 0; t < TIERS; t++) {
        int32_t ids[TOKENS_MAX], n = 0, percent = below(3) ? below(40) : 0;
        for (int32_t s = 0; s < lane->slots; s++)
            if (!guarded(lane->pos[s], tokens) && below(100) < percent) ids[n++] = s;
        for (int32_t i = 0; i < n; i++) {
            /* moved twice in one answer: only where it ends up counts, rounded once */
            shadow->tier[lane->layer][l][ids[i]] = (uint8_t)(t + 10);
        }
        if (n > 0) SF_TRY(sf_edit_tier(answer, lane, (struct sf_list){ ids, NULL, n }, t));
    }
    for (int32_t s = 0; s < lane->slots; s++) {
        uint8_t *tier = &shadow->tier[lane->layer][l][s];
        if (*tier < 10) continue;
        *tier = (uint8_t)(*tier - 10);
        if (*tier == lane->tier[s]) continue;
        moves_made++;
        for (int32_t e = 0; e < ref->k_dim; e++)
            ref->k[s * ref->k_dim + e] = stored(*tier, ref->k[s * ref->k_dim + e]);
        for (int32_t e = 0; e < ref->v_dim; e++)
            ref->v[s * ref->v_dim + e] = stored(*tier, ref->v[s * ref->v_dim + e]);
    }
    return SF_OK;
}

static struct {
    struct sf_mix mix;
    int32_t ptr[TOKENS_MAX + 1], src[TOKENS_MAX], pos[TOKENS_MAX];
    float weight[TOKENS_MAX], bias[TOKENS_MAX];
    uint8_t tier[TOKENS_MAX];
} m;

/* Runs of slots of the shadow become sums in some tier, copies, or nothing; sometimes out of
 * order. */
static void draw_mix(const struct ref_lane *ref, const uint8_t *tier, int32_t tokens)
{
    struct { int32_t first, n; } out[TOKENS_MAX];
    int32_t count = 0, drop = 2 + below(12);
    for (int32_t s = 0, n; s < ref->slots; s += n) {
        int held = guarded(ref->pos[s], tokens);
        n = held || below(3) ? 1 : 1 + below(4);
        for (int32_t j = 1; j < n; j++)
            if (s + j >= ref->slots || guarded(ref->pos[s + j], tokens)) n = j;
        if (!held && below(drop) == 0) continue;
        out[count].first = s;
        out[count++].n = n;
    }
    for (int32_t swaps = below(4) == 0 ? 3 : 0; swaps > 0 && count > 1; swaps--) {
        int32_t a = below(count), b = below(count), first = out[a].first, n = out[a].n;
        out[a] = out[b];
        out[b].first = first;
        out[b].n = n;
    }
    m.ptr[0] = 0;
    for (int32_t i = 0; i < count; i++) {
        int32_t s = out[i].first, n = out[i].n;
        int copy = n == 1 && (guarded(ref->pos[s], tokens) || below(8) > 0);
        m.ptr[i + 1] = m.ptr[i] + n;
        for (int32_t j = 0; j < n; j++) {
            m.src[m.ptr[i] + j] = s + j;
            m.weight[m.ptr[i] + j] = copy ? 1 : (float)below(9) / 16;
        }
        m.pos[i] = ref->pos[s];
        m.bias[i] = copy ? ref->bias[s] : ref->bias[s] + 0.25f;
        m.tier[i] = copy ? tier[s] : (uint8_t)below(TIERS);
    }
    m.mix = (struct sf_mix){ .slots = count, .ptr = m.ptr, .src = m.src, .k_weight = m.weight,
                             .v_weight = m.weight, .pos = m.pos, .bias = m.bias,
                             .tier = m.tier };
}

static void shadow_mix(struct ref_lane *ref, uint8_t *tier)
{
    uint8_t was[TOKENS_MAX];
    memcpy(was, tier, sizeof was);
    ref_mix(ref, SF_F32, &m.mix);
    for (int32_t i = 0; i < ref->slots; i++) {
        tier[i] = m.tier[i];
        for (int32_t e = 0; e < ref->k_dim; e++)
            ref->k[i * ref->k_dim + e] = stored(tier[i], ref->k[i * ref->k_dim + e]);
        for (int32_t e = 0; e < ref->v_dim; e++)
            ref->v[i * ref->v_dim + e] = stored(tier[i], ref->v[i * ref->v_dim + e]);
        in_tier[tier[i]]++;
    }
}

static void check_view(const struct sf_lane *lane, const struct shadow *shadow, int32_t l,
                       int32_t rows)
{
    const struct ref_lane *ref = &shadow->lane[lane->layer][l];
    size_t slots = (size_t)lane->slots;
    double mass = 0;
    must(lane->slots == ref->slots, "a view of another length");
    if (failed) return;
    must(memcmp(lane->pos, ref->pos, slots * sizeof(int32_t)) == 0, "positions in a view");
    must(memcmp(lane->bias, ref->bias, slots * sizeof(float)) == 0, "biases in a view");
    must(memcmp(lane->tier, shadow->tier[lane->layer][l], slots) == 0, "tiers in a view");
    for (size_t s = 0; s < slots; s++) mass += (double)lane->mass[0][s];
    must(fabs(mass - rows * rig.spec.group) < 1e-4 * rows, "each row gives one");
}

static sf_status answer_at_random(const struct sf_env *env, enum sf_when when,
                                  const struct sf_batch *batch, struct sf_answer *answer)
{
    (void)env; (void)when;
    for (int32_t i = 0; i < batch->spans; i++) {
        const struct sf_span *span = &batch->span[i];
        struct shadow *shadow = &shadows[span->seq_id];
        int32_t layer = span->lane[0].layer, tokens = span->tokens;
        catch_up(shadow, layer, tokens);
        for (int32_t l = 0; l < span->lanes; l++) {
            const struct sf_lane *lane = &span->lane[l];
            check_view(lane, shadow, l, tokens - shadow->event[layer]);
            if (failed) return SF_FAIL(SF_INTERNAL, "the shadow differs");
            if (below(2)) SF_TRY(random_moves(answer, lane, shadow, l, tokens));
            int what = below(4);
            if (what == 0) SF_TRY(random_keep(answer, lane, shadow, l, tokens));
            if (what < 2) continue;
            uint8_t *tier = shadow->tier[layer][l];
            draw_mix(&shadow->lane[layer][l], tier, tokens);
            shadow_mix(&shadow->lane[layer][l], tier);
            SF_TRY(sf_edit_mix(answer, lane, &m.mix));
        }
        shadow->event[layer] = tokens;
    }
    return SF_OK;
}

/* ---- invariants ----------------------------------------------------------------------------- */
static void check_insides(void)
{
    const struct sf_page_pool *pool = &rig.store->pool;
    uint8_t *owned = calloc((size_t)pool->pages, 1);
    int32_t pages = 0;
    for (int i = 0; i < SEQS; i++)
        for (int32_t n = 0; shadows[i].seq && n < LAYERS * LANES; n++)
            for (int32_t t = 0; t < TIERS; t++) {
                const struct sf_kv_lane *lane = sf_lane_tier(&shadows[i].seq->lane[n], t);
                must(lane->pages == (lane->slots + lane->page_slots - 1) / lane->page_slots,
                     "pages of a tier are those of its slots");
                must(lane->slots <= (t ? sf_tier_slots_bound(lane->live, lane->page_slots)
                                       : sf_lane_slots_bound(lane->live, lane->page_slots)),
                     "too many holes");
                for (int32_t p = 0; p < lane->pages; p++, pages++) {
                    must(!owned[lane->page[p]], "a page with two owners");
                    owned[lane->page[p]] = 1;
                }
            }
    must(pages == pool->used, "used pages are those of lanes");
    free(owned);
}

static int64_t shadow_bytes(const struct shadow *shadow)
{
    int64_t numbers = rig.spec.k_dim + rig.spec.v_dim, bytes = 0;
    for (int32_t layer = 0; layer < LAYERS; layer++)
        for (int32_t l = 0; l < LANES; l++)
            for (int32_t s = 0; s < shadow->lane[layer][l].slots; s++) {
                int32_t t = shadow->tier[layer][l][s];
                enum sf_dtype dtype = t == 0 ? rig.spec.dtype : t == 1 ? SF_F32 : SF_F16;
                bytes += numbers * (int64_t)sf_dtype_bytes(dtype) + 8;
            }
    return bytes;
}

static void check_shadow(const struct shadow *shadow)
{
    for (int32_t layer = 0; layer < LAYERS; layer++)
        for (int32_t l = 0; l < LANES; l++)
            check_lane(&rig, shadow->seq, layer, l, &shadow->lane[layer][l]);
}

/* ---- one run -------------------------------------------------------------------------------- */
static void shadow_open(struct shadow *shadow)
{
    shadow->number = below(1000);
    shadow->prompt = 1 + below(120);
    for (int32_t layer = 0; layer < LAYERS; layer++) {
        shadow->tokens[layer] = shadow->event[layer] = 0;
        for (int32_t l = 0; l < LANES; l++)
            ref_open(&shadow->lane[layer][l], &rig.spec, TOKENS_MAX);
    }
    must(sf_seq_open(rig.store, shadow - shadows, shadow->prompt, TOKENS_MAX, &shadow->seq) ==
             SF_OK, "opening a sequence");
}

static void shadow_close(struct shadow *shadow)
{
    struct sf_receipt receipt;
    int64_t bytes = shadow_bytes(shadow);
    check_shadow(shadow);
    sf_seq_close(rig.store, shadow->seq, &receipt);
    must(receipt.bytes_stored == bytes, "bytes of a receipt");
    for (int32_t layer = 0; layer < LAYERS; layer++)
        for (int32_t l = 0; l < LANES; l++) ref_close(&shadow->lane[layer][l]);
    shadow->seq = NULL;
}

/* Rows for one sequence; a row that decodes is held against the softmax over its lane. */
static void random_step(struct shadow *shadow)
{
    int32_t at = shadow->tokens[0], rows = at < shadow->prompt ? 1 + below(50) : 1 + below(3);
    int32_t layer = below(LAYERS), l = below(LANES);
    struct ref_lane seen = { .room = 0 };
    if (at < shadow->prompt && at + rows > shadow->prompt) rows = shadow->prompt - at;
    if (at + rows > TOKENS_MAX) rows = TOKENS_MAX - at;
    if (rows == 0) return;
    if (at >= shadow->prompt) {
        const struct ref_lane *now = &shadow->lane[layer][l];
        ref_open(&seen, &rig.spec, TOKENS_MAX + 1);
        seen.slots = now->slots;
        memcpy(seen.pos, now->pos, (size_t)now->slots * sizeof *now->pos);
        memcpy(seen.bias, now->bias, (size_t)now->slots * sizeof *now->bias);
        memcpy(seen.k, now->k, (size_t)(now->slots * now->k_dim) * sizeof *now->k);
        memcpy(seen.v, now->v, (size_t)(now->slots * now->v_dim) * sizeof *now->v);
        ref_append(&seen, &rig.spec, shadow->number, layer, l, at);
    }
    sf_status status = rig_feed(&rig, shadow->seq, shadow->number, at, rows);
    if (status != SF_OK && !failed)
        sf_test_fail(__FILE__, __LINE__, "seed %llu step %d: %s", (unsigned long long)seed, step,
                     sf_error_text());
    failed |= status != SF_OK;
    for (int32_t i = 0; i < LAYERS && !failed; i++) catch_up(shadow, i, at + rows);
    if (seen.room > 0) {
        check_row(&rig, shadow->number, layer, l, 0, at, &seen, NULL, NULL, 1e-5);
        ref_close(&seen);
    }
}

static void run(uint64_t run_seed, const char *device, enum sf_dtype dtype, int32_t page_slots)
{
    struct rig_spec spec = rig_usual();
    seed = run_seed;
    drawn = 0;
    failed = moves_made = 0;
    memset(in_tier, 0, sizeof in_tier);
    spec.device = device;
    spec.dtype = dtype;
    spec.page_slots = page_slots;
    spec.pages = 24 * 1024 / page_slots;
    spec.tokens_max = TOKENS_MAX;
    spec.method = &script_method;
    script = (struct script){
        .plan = { .whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_INTERVAL,
                  .edits = SF_EDITS_KEEP | SF_EDITS_MIX | SF_EDITS_TIER, .every_tokens = EVERY,
                  .sink_tokens = SINKS, .tail_tokens = TAIL, .tiers = TIERS,
                  .watch = { { .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_SUM,
                               .flags = SF_WATCH_RESET } } },
        .act = answer_at_random };
    script.plan.tier[1] = sf_tier_raw_f32();
    script.plan.tier[2] = (struct sf_tier){ .codec = "raw", .codec_cfg = { 1 + SF_F16 } };
    SF_MUST(rig_open(&spec, &rig));
    for (step = 0; step < STEPS && !failed; step++) {
        struct shadow *any = &shadows[below(SEQS)];
        if (!any->seq) shadow_open(any);
        else if (below(40) == 0 || any->tokens[0] == TOKENS_MAX) shadow_close(any);
        if (any->seq) random_step(any);
        check_insides();
        for (int i = 0; step % 8 == 0 && i < SEQS; i++)
            if (shadows[i].seq && !failed) check_shadow(&shadows[i]);
    }
    for (int i = 0; i < SEQS; i++)
        if (shadows[i].seq) shadow_close(&shadows[i]);
    if (!failed) SF_CHECK_INT(rig.store->pool.used, 0);
    SF_CHECK_INT(sf_store_bytes_stored(rig.store), 0);
    SF_CHECK(moves_made > STEPS);
    for (int t = 0; t < TIERS; t++) SF_CHECK(in_tier[t] > STEPS);
    rig_close(&rig);
}

static void test_ref(void)
{
    run(1, "ref", SF_BF16, 32);
    run(2, "ref", SF_F32, 16);
}

static void test_cpu(void)
{
    run(3, "cpu", SF_BF16, 32);
    run(4, "cpu", SF_F16, 64);
    run(5, "cpu", SF_F32, 16);
}

/* ---- refusals ------------------------------------------------------------------------------- */
static int move_case;
static sf_status move_wrong(const struct sf_env *env, enum sf_when when,
                            const struct sf_batch *batch, struct sf_answer *answer)
{
    const struct sf_lane *lane = batch->span->lane;
    int32_t ids[] = { move_case == 1 ? 20 : move_case == 2 ? 1 : 5 };
    struct sf_list list = { ids, NULL, 1 };
    (void)env; (void)when;
    (void)sf_edit_tier(answer, lane, list, move_case == 0 ? 3 : 1);
    return SF_OK;
}

static void test_refused(void)
{
    static const char *const words[] = { "move to tier 3, its plan has 3", "move of slot 20",
                                         "move of position 1 of layer 0" };
    script.act = move_wrong;
    for (move_case = 0; move_case < 3; move_case++) {
        struct rig_spec spec = rig_usual();
        struct rig one;
        struct sf_seq *seq;
        spec.method = &script_method;
        SF_MUST(rig_open(&spec, &one));
        SF_MUST(sf_seq_open(one.store, 0, 20, 40, &seq));
        CHECK_REFUSED(rig_feed(&one, seq, 0, 0, 20), SF_INVALID, words[move_case]);
        sf_seq_close(one.store, seq, NULL);
        rig_close(&one);
    }
    struct rig_spec spec = rig_usual();
    struct rig one;
    spec.method = &script_method;
    spec.dtype = SF_BF16;               /* pages of 16: none for 16 slots in f32 */
    CHECK_REFUSED(rig_open(&spec, &one), SF_INVALID, "kv_cache.block_size 16 is too small");
}

static const struct sf_test tests[] = {
    { "against a shadow, ref", test_ref },
    { "against a shadow, cpu", test_cpu },
    { "refusals", test_refused },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_tiers", tests)
