/* tests/unit/kvshard/razor.c: the method razor_attention through the real seam.
 *
 * Every row of prompt and answer is held against attention over a lane that is built from the
 * definition each time anew: sinks, the mean of all that was dropped with the bias ln of their
 * number, the window.  So folding page by page and at once must come to the same.  Also: the
 * worked example, what must be exact, what is counted and predicted, and refusals. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kvshard/methods.h"
#include "tests/unit/kvshard/rig.h"

struct sizes {
    int32_t sinks, window, divisor, dropped, fold, page_slots, prompt, tokens;
    int rolling, mean;
};
static const struct sizes cases[] = {
    { 4, 20, 5, 1, 16, 16, 75, 140, 1, 1 },     { 4, 20, 5, 1, 16, 16, 75, 140, 0, 1 },
    { 0, 16, 2, 1, 1, 16, 90, 150, 1, 1 },      { 3, 17, 100, 30, 5, 32, 40, 160, 1, 1 },
    { 4, 20, 5, 64, 16, 16, 30, 200, 1, 1 },    { 4, 20, 5, 8, 16, 16, 30, 120, 1, 1 },
    { 2, 10, 3, 1, 7, 16, 11, 90, 1, 1 },       { 4, 20, 5, 1, 16, 16, 75, 140, 1, 0 },
    { 1, 8, 1, 1, 3, 16, 60, 100, 1, 1 },       { 4, 200, 5, 1, 16, 64, 100, 180, 1, 1 },
    { 5, 12, 4, 64, 16, 16, 20, 190, 0, 1 },    { 0, 1, 50, 1, 2, 16, 50, 80, 1, 0 },
};
/* Folds that are far apart, first ones that come early or late. */
static const struct sizes swings[] = {
    { 4, 64, 1000000, 1, 128, 16, 60, 250, 1, 1 }, { 4, 72, 1000, 8, 16, 16, 50, 250, 1, 1 },
    { 0, 30, 1000, 60, 40, 16, 20, 250, 1, 0 },    { 4, 40, 1000, 90, 100, 16, 130, 250, 1, 1 },
    { 4, 20, 1000, 150, 8, 16, 40, 250, 1, 1 },    { 4, 20, 1000, 64, 16, 16, 60, 250, 1, 1 },
};
enum { CASES = sizeof cases / sizeof cases[0], TOKENS_MAX = 256, KEPT_HEAD = 1 };

static char number[8][16];
static void set(struct rig_spec *spec, int i, const char *key, int32_t value)
{
    snprintf(number[i], sizeof number[i], "%d", value);
    spec->option[i].key = key;
    spec->option[i].text = number[i];
}

/* Head 1 of layer 0 keeps everything. */
static struct rig_spec spec_of(const struct sizes *z)
{
    struct rig_spec spec = rig_usual();
    spec.method = sf_method_find("razor_attention");
    spec.page_slots = z->page_slots;
    set(&spec, 0, "num_sink_tokens", z->sinks);
    set(&spec, 1, "min_window_tokens", z->window);
    set(&spec, 2, "window_divisor", z->divisor);
    set(&spec, 3, "min_dropped_tokens", z->dropped);
    set(&spec, 4, "fold_tokens", z->fold);
    spec.option[5].key = "decode_update";
    spec.option[5].text = z->rolling ? "rolling" : "freeze";
    spec.option[6].key = "use_compensation_token";
    spec.option[6].text = z->mean ? "true" : "false";
    spec.option[7].key = "retrieval_heads";
    spec.option[7].text = "[[0, 1]]";
    return spec;
}

/* ---- the definition ------------------------------------------------------------------------- */
static int32_t window_of(const struct sizes *z)
{
    int32_t part = (z->prompt + z->divisor - 1) / z->divisor;
    return part > z->window ? part : z->window;
}

/* Tokens behind the sinks that are dropped once the lane has seen `tokens` and events have run. */
static int32_t dropped_at(const struct sizes *z, int32_t tokens)
{
    int32_t window = window_of(z), dropped = 0;
    for (int32_t t = z->prompt; t <= tokens; t++) {
        int32_t outside = t - z->sinks - window;
        if (t > z->prompt && !z->rolling) break;
        if (dropped == 0) dropped = outside >= z->dropped ? outside : 0;
        else if (t - z->sinks - dropped >= window + z->fold) dropped += z->fold;
    }
    return dropped;
}

static int32_t slots_at(const struct sizes *z, int32_t tokens)
{
    int32_t dropped = dropped_at(z, tokens);
    return tokens - dropped + (dropped > 0 && z->mean);
}

/* The lane of `tokens` tokens of which `dropped` behind the sinks are gone into a mean. */
static void build(struct ref_lane *lane, const struct rig_spec *spec, const struct sizes *z,
                  int32_t layer, int32_t index, int32_t dropped, int32_t tokens)
{
    lane->slots = 0;
    for (int32_t pos = 0; pos < tokens; pos++) {
        if (pos < z->sinks || pos >= z->sinks + dropped)
            ref_append(lane, spec, 0, layer, index, pos);
        if (pos != z->sinks || dropped == 0 || !z->mean) continue;
        ref_append(lane, spec, 0, layer, index, pos);
        size_t at = (size_t)lane->slots - 1;
        lane->bias[at] = (float)log(dropped);
        for (int32_t e = 0; e < spec->k_dim + spec->v_dim; e++) {
            double sum = 0;
            int is_k = e < spec->k_dim;
            for (int32_t p = z->sinks; p < z->sinks + dropped; p++)
                sum += rig_value(is_k ? RIG_K : RIG_V, 0, layer, rig_head(spec, index), p,
                                 is_k ? e : e - spec->k_dim);
            if (is_k) lane->k[at * (size_t)spec->k_dim + (size_t)e] = (float)(sum / dropped);
            else lane->v[at * (size_t)spec->v_dim + (size_t)(e - spec->k_dim)] =
                    (float)(sum / dropped);
        }
    }
}

static int is_retrieval(int32_t layer, int32_t lane) { return layer == 0 && lane == KEPT_HEAD; }

static void check_rows(const struct rig *rig, const struct sizes *z, struct ref_lane *lane,
                       int32_t first, int32_t rows)
{
    const struct rig_spec *spec = &rig->spec;
    for (int32_t layer = 0; layer < spec->layers; layer++)
        for (int32_t l = 0; l < spec->lanes; l++)
            for (int32_t pos = first; pos < first + rows; pos++) {
                int exact = pos < z->prompt || is_retrieval(layer, l);
                build(lane, spec, z, layer, l, exact ? 0 : dropped_at(z, pos), pos + 1);
                check_row(rig, 0, layer, l, pos - first, pos, lane, NULL, NULL, 1e-5);
            }
}

/* The slots after the last event: positions and biases exactly, numbers to rounding. */
static void check_left(const struct rig *rig, const struct sf_seq *seq, const struct sizes *z,
                       struct ref_lane *want, int32_t tokens)
{
    const struct rig_spec *spec = &rig->spec;
    float k[TOKENS_MAX * 16], v[TOKENS_MAX * 16], bias[TOKENS_MAX];
    int32_t pos[TOKENS_MAX];
    for (int32_t layer = 0; layer < spec->layers; layer++)
        for (int32_t l = 0; l < spec->lanes; l++) {
            build(want, spec, z, layer, l, is_retrieval(layer, l) ? 0 : dropped_at(z, tokens),
                  tokens);
            SF_CHECK_INT(sf_seq_lane_slots(rig->store, seq, layer, l), want->slots);
            SF_MUST(sf_seq_lane_read(rig->store, seq, layer, l, k, v, pos, bias));
            for (int32_t s = 0; s < want->slots; s++) {
                SF_CHECK_INT(pos[s], want->pos[s]);
                SF_CHECK_NEAR(bias[s], want->bias[s], 0);
                for (int32_t e = 0; e < spec->k_dim; e++)
                    SF_CHECK_NEAR(k[s * spec->k_dim + e], want->k[s * spec->k_dim + e], 1e-5);
                for (int32_t e = 0; e < spec->v_dim; e++)
                    SF_CHECK_NEAR(v[s * spec->v_dim + e], want->v[s * spec->v_dim + e], 1e-5);
            }
        }
}

static void check_receipt(const struct rig *rig, const struct sizes *z,
                          const struct sf_receipt *receipt)
{
    const struct rig_spec *spec = &rig->spec;
    int32_t lanes = spec->layers * spec->lanes, lane_ptr[] = { 0, 2, 4 }, heads[] = { 0, 1, 0, 1 };
    uint8_t replica[4] = { 0 };
    int64_t slot_bytes = (spec->k_dim + spec->v_dim) * 4 + 8, slots = slots_at(z, z->tokens);
    SF_MUST(lanes == 4 ? SF_OK : SF_INTERNAL);
    SF_CHECK_INT(receipt->bytes_stored, (3 * slots + z->tokens) * slot_bytes);
    SF_CHECK_INT(receipt->slots_evicted, 3 * (int64_t)dropped_at(z, z->tokens));
    SF_CHECK_INT(receipt->slots_merged, 0);
    struct sf_rank_lanes rank = { 0, 2, lane_ptr, heads, replica };
    struct sf_cost cost;
    SF_MUST(sf_account_sequence(&rig->setup, &rig->stack, &rank, spec->dtype, z->prompt, z->tokens,
                                &cost));
    SF_CHECK_INT(cost.bytes_lo, receipt->bytes_stored);
    SF_CHECK_INT(cost.bytes_hi, receipt->bytes_stored);
    SF_CHECK(receipt->bytes_peak <= cost.bytes_peak);
}

/* Prompt in pieces, answer in calls of `decode` rows. */
static void run_case(const struct sizes *z, int32_t piece, int32_t decode, const char *device)
{
    struct rig_spec spec = spec_of(z);
    struct rig rig;
    struct sf_seq *seq;
    struct sf_receipt receipt;
    struct ref_lane lane;
    spec.device = device;
    ref_open(&lane, &spec, TOKENS_MAX);
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 1, z->prompt, z->tokens, &seq));
    for (int32_t pos = 0, n; pos < z->tokens; pos += n) {
        int32_t end = pos < z->prompt ? z->prompt : z->tokens;
        int32_t most = pos < z->prompt ? piece : decode;
        n = end - pos < most ? end - pos : most;
        SF_MUST(rig_feed(&rig, seq, 0, pos, n));
        check_rows(&rig, z, &lane, pos, n);
        check_left(&rig, seq, z, &lane, pos + n);
    }
    sf_seq_close(rig.store, seq, &receipt);
    check_receipt(&rig, z, &receipt);
    SF_CHECK_INT(sf_store_pages_free(rig.store), sf_store_pages(rig.store));
    rig_close(&rig);
    ref_close(&lane);
}

static void every_row(void)
{
    for (int32_t i = 0; i < CASES; i++) {
        run_case(&cases[i], 512, 1, "ref");
        run_case(&cases[i], 13, 3, "cpu");
    }
}

/* The pages of a lane at every length: never fewer for a longer one, never fewer than it holds. */
static void pages_foretold(void)
{
    for (size_t i = 0; i < sizeof swings / sizeof swings[0]; i++) {
        const struct sizes *z = &swings[i];
        struct rig_spec spec = spec_of(z);
        struct rig rig;
        struct sf_seq *seq;
        int32_t lane_ptr[] = { 0, 2, 4 }, heads[] = { 0, 1, 0, 1 };
        uint8_t replica[4] = { 0 };
        struct sf_rank_lanes rank = { 0, 2, lane_ptr, heads, replica };
        int64_t most = 0, promised = 0, after = 0;
        SF_MUST(rig_open(&spec, &rig));
        SF_MUST(sf_seq_open(rig.store, 1, z->prompt, z->tokens, &seq));
        for (int32_t pos = 0, n; pos < z->tokens; pos += n) {
            struct sf_cost cost;
            n = pos == 0 ? z->prompt : 1;
            SF_MUST(rig_feed(&rig, seq, 0, pos, n));
            int64_t held = sf_store_pages(rig.store) - sf_store_pages_free(rig.store);
            if (held > most) most = held;
            SF_MUST(sf_account_sequence(&rig.setup, &rig.stack, &rank, spec.dtype, z->prompt,
                                        pos + n, &cost));
            SF_CHECK(cost.pages_peak >= promised);
            SF_CHECK(cost.pages_peak >= most);
            promised = cost.pages_peak;
            SF_CHECK(held <= cost.pages_after && cost.pages_after >= after);
            SF_CHECK(cost.pages_after <= cost.pages_peak);
            after = cost.pages_after;
        }
        sf_seq_close(rig.store, seq, NULL);
        rig_close(&rig);
    }
}

/* ---- the worked example of the definition --------------------------------------------------- */
static void worked_example(void)
{
    static const double key[6][2] = { { 1, 0 }, { 0, 1 }, { 2, 0 }, { 0, 2 }, { 1, 1 }, { 0, 0 } };
    static const double value[6][2] = { { 1, 0 }, { 0, 1 }, { 2, 0 }, { 0, 4 }, { 1, 1 },
                                        { 3, 0 } };
    struct ref_lane lane;
    struct rig_spec spec = rig_usual();
    const float q[] = { 1, 0 };
    double out[2];
    spec.k_dim = spec.v_dim = 2;
    ref_open(&lane, &spec, 8);
    struct sf_mix mix = { .slots = 4, .flags = SF_MIX_FOLD };
    for (int32_t s = 0; s < 6; s++) {
        ref_append(&lane, &spec, 0, 0, 0, s);
        for (int e = 0; e < 2; e++) {
            lane.k[2 * s + e] = (float)key[s][e];
            lane.v[2 * s + e] = (float)value[s][e];
        }
    }
    ref_attend(&lane, q, 1, NULL, NULL, out);
    SF_CHECK_NEAR(out[0], 1.466905, 5e-7);
    SF_CHECK_NEAR(out[1], 0.487708, 5e-7);
    const int32_t ptr[] = { 0, 1, 4, 5, 6 }, src[] = { 0, 1, 2, 3, 4, 5 }, pos[] = { 0, 1, 4, 5 };
    const float third = 1.0f / 3, weight[] = { 1, third, third, third, 1, 1 };
    const float bias[] = { 0, logf(3), 0, 0 };
    mix.ptr = ptr, mix.src = src, mix.pos = pos;
    mix.k_weight = mix.v_weight = weight;
    mix.bias = bias;
    ref_mix(&lane, SF_F32, &mix);
    SF_CHECK_NEAR(lane.k[2], 2.0 / 3, 1e-6);
    SF_CHECK_NEAR(lane.v[3], 5.0 / 3, 1e-6);
    ref_attend(&lane, q, 1, NULL, NULL, out);
    SF_CHECK_NEAR(out[0], 1.004256, 5e-7);
    SF_CHECK_NEAR(out[1], 1.014429, 5e-7);
    lane.bias[1] = 0;                   /* the frequent mistake */
    ref_attend(&lane, q, 1, NULL, NULL, out);
    SF_CHECK_NEAR(out[0], 1.161105, 5e-7);
    SF_CHECK_NEAR(out[1], 0.711390, 5e-7);
    ref_close(&lane);
}

/* The same through a store in bf16, which holds the example's numbers as they are, but not the
 * mean: its slot is kept in f32.  The row that asks has a key far away, so it weighs nothing
 * itself. */
static void worked_example_stored(void)
{
    static const float key[7][2] = { { 1, 0 }, { 0, 1 }, { 2, 0 }, { 0, 2 }, { 1, 1 }, { 0, 0 },
                                     { -8192, 0 } };
    static const float value[7][2] = { { 1, 0 }, { 0, 1 }, { 2, 0 }, { 0, 4 }, { 1, 1 }, { 3, 0 },
                                       { 9, 9 } };
    static const struct sizes z = { 1, 2, 1000, 1, 16, 64, 6, 7, 0, 1 };
    const char *const devices[] = { "ref", "cpu" };
    for (int d = 0; d < 2; d++) {
        struct rig_spec spec = spec_of(&z);
        struct rig rig;
        struct sf_seq *seq;
        float q[7][2], k[10], v[10], out[7][2];
        spec.device = devices[d];
        spec.dtype = SF_BF16;
        spec.layers = spec.lanes = spec.group = 1;
        spec.k_dim = spec.v_dim = 2;
        spec.scale = 1;
        spec.option[7].text = "[]";
        SF_MUST(rig_open(&spec, &rig));
        SF_MUST(sf_seq_open(rig.store, 0, 6, 7, &seq));
        for (int r = 0; r < 7; r++) q[r][0] = 1, q[r][1] = 0;
        for (int32_t first = 0, rows = 6; first < 7; first += rows, rows = 1) {
            struct sf_kv_item item = { seq, 0, rows, first };
            struct sf_kv_step step = {
                .item = &item, .items = 1, .q = q[first], .k = (float *)(uintptr_t)key[first],
                .v = (float *)(uintptr_t)value[first], .q_stride = 2, .k_stride = 2,
                .v_stride = 2, .out = out[first], .out_stride = 2, .out_head_stride = 2,
                .out_dtype = SF_F32 };
            SF_MUST(sf_store_layer(rig.store, 0, &step));
        }
        SF_CHECK_NEAR(out[5][0], 1.466905, 5e-7);
        SF_CHECK_NEAR(out[5][1], 0.487708, 5e-7);
        SF_CHECK_NEAR(out[6][0], 1.004256, 5e-7);
        SF_CHECK_NEAR(out[6][1], 1.014429, 5e-7);
        SF_CHECK_INT(sf_seq_lane_slots(rig.store, seq, 0, 0), 5);
        SF_MUST(sf_seq_lane_read(rig.store, seq, 0, 0, k, v, NULL, NULL));
        SF_CHECK_NEAR(k[2], 2.0f / 3, 6e-8);
        SF_CHECK_NEAR(v[3], 5.0f / 3, 1.2e-7);
        sf_seq_close(rig.store, seq, NULL);
        rig_close(&rig);
    }
}

/* ---- the mean in f32 beside a cache in bf16 -------------------------------------------------- */
static double rounded(enum rig_what what, int32_t layer, int32_t head, int32_t pos, int32_t e)
{
    return (double)sf_bf16_to_f32(sf_f32_to_bf16(rig_value(what, 0, layer, head, pos, e)));
}

/* After 40 folds and more the slot is still the mean of what the cache held, to f32 (in bf16 it
 * would be off by a thousandth and more); and its bytes and its page are foretold. */
static void mean_in_f32(void)
{
    static const struct sizes z = { 4, 20, 5, 1, 2, 32, 75, 200, 1, 1 };
    struct rig_spec spec = spec_of(&z);
    struct rig rig;
    struct sf_seq *seq;
    struct sf_receipt receipt;
    float k[TOKENS_MAX * 16], v[TOKENS_MAX * 16];
    int32_t lane_ptr[] = { 0, 2, 4 }, heads[] = { 0, 1, 0, 1 };
    uint8_t replica[4] = { 0 };
    spec.device = "cpu";
    spec.dtype = SF_BF16;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 1, z.prompt, z.tokens, &seq));
    SF_MUST(rig_feed(&rig, seq, 0, 0, z.prompt));
    for (int32_t pos = z.prompt; pos < z.tokens; pos++) SF_MUST(rig_feed(&rig, seq, 0, pos, 1));
    int32_t dropped = dropped_at(&z, z.tokens), slots = slots_at(&z, z.tokens);
    for (int32_t layer = 0; layer < spec.layers; layer++)
        for (int32_t l = 0; l < spec.lanes; l++) {
            if (is_retrieval(layer, l)) continue;
            SF_MUST(sf_seq_lane_read(rig.store, seq, layer, l, k, v, NULL, NULL));
            for (int32_t e = 0; e < spec.k_dim; e++) {
                double sum = 0;
                for (int32_t p = z.sinks; p < z.sinks + dropped; p++)
                    sum += rounded(RIG_K, layer, l, p, e);
                SF_CHECK_NEAR(k[z.sinks * spec.k_dim + e], sum / dropped, 1e-6);
            }
        }
    sf_seq_close(rig.store, seq, &receipt);
    int64_t numbers = spec.k_dim + spec.v_dim;
    SF_CHECK_INT(receipt.bytes_stored, (3 * (slots - 1) + z.tokens) * (2 * numbers + 8) +
                                           3 * (4 * numbers + 8));
    struct sf_rank_lanes rank = { 0, 2, lane_ptr, heads, replica };
    struct sf_cost cost;
    SF_MUST(sf_account_sequence(&rig.setup, &rig.stack, &rank, spec.dtype, z.prompt, z.tokens,
                                &cost));
    SF_CHECK_INT(cost.bytes_lo, receipt.bytes_stored);
    SF_CHECK_INT(cost.bytes_hi, receipt.bytes_stored);
    SF_CHECK(receipt.bytes_peak <= cost.bytes_peak);
    rig_close(&rig);
}

/* ---- exact where it must be ----------------------------------------------------------------- */
static void outputs(const struct rig_spec *spec, const struct sizes *z, float *out)
{
    struct rig rig;
    struct sf_seq *seq;
    SF_MUST(rig_open(spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 1, z->prompt, z->tokens, &seq));
    size_t width = (size_t)(spec->lanes * spec->group * spec->v_dim);
    for (int32_t pos = 0; pos < z->tokens; pos++) {
        SF_MUST(rig_feed(&rig, seq, 0, pos, 1));
        for (int32_t layer = 0; layer < spec->layers; layer++, out += width)
            memcpy(out, rig_out(&rig, layer, 0, 0), width * sizeof *out);
    }
    sf_seq_close(rig.store, seq, NULL);
    rig_close(&rig);
}

/* All heads retrieval heads, or nothing to drop: the exact cache, bit for bit. */
static void exact_bits(void)
{
    static const struct sizes short_one = { 4, 60, 5, 1, 16, 16, 50, 64, 1, 1 },
                              long_one = { 4, 20, 5, 1, 16, 16, 75, 110, 1, 1 };
    static float want[110 * 2 * 64], got[110 * 2 * 64];
    struct rig_spec exact = rig_usual(), razor = spec_of(&short_one);
    exact.device = razor.device = "cpu";
    outputs(&exact, &short_one, want);
    outputs(&razor, &short_one, got);
    SF_CHECK(memcmp(want, got, sizeof want) == 0);
    razor = spec_of(&long_one);
    razor.device = "cpu";
    outputs(&exact, &long_one, want);
    outputs(&razor, &long_one, got);
    SF_CHECK(memcmp(want, got, sizeof want) != 0);
    razor.option[7].text = "[[0, 0], [0, 1], [1, 0], [1, 1]]";
    outputs(&razor, &long_one, got);
    SF_CHECK(memcmp(want, got, sizeof want) == 0);
}

/* ---- refusals ------------------------------------------------------------------------------- */
static void refusals(void)
{
    struct rig rig;
    struct rig_spec spec = spec_of(&cases[0]);
    spec.option[7].text = "[[0, 2]]";
    CHECK_REFUSED(rig_open(&spec, &rig), SF_INVALID, "[0, 2], but the model has 2 layers and 2 KV");
    spec.option[7].text = "[[2, 0]]";
    CHECK_REFUSED(rig_open(&spec, &rig), SF_INVALID, "[2, 0], but the model has 2 layers");
    spec.option[7].text = "auto";
    CHECK_REFUSED(rig_open(&spec, &rig), SF_INVALID, "has no head set");
    spec.option[7].text = "[]";
    SF_MUST(rig_open(&spec, &rig));
    rig_close(&rig);
}

/* The model's own sliding window: such layers stay exact. */
static void sliding_layers(void)
{
    struct rig rig;
    struct rig_spec spec = spec_of(&cases[0]);
    spec.window = 30;
    SF_MUST(rig_open(&spec, &rig));
    for (int32_t lane = 0; lane < rig.setup.lanes; lane++)
        SF_CHECK_INT(rig.stack.entry[0].shape.acts_on[lane], 0);
    rig_close(&rig);
}

static const struct sf_test tests[] = {
    { "every row as the definition says", every_row },
    { "pages foretold", pages_foretold },
    { "worked example", worked_example },
    { "worked example, stored", worked_example_stored },
    { "the mean in f32", mean_in_f32 },
    { "exact bits where nothing is dropped", exact_bits },
    { "refusals", refusals },
    { "layers with a window of their own", sliding_layers },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_razor", tests)
