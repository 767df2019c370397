/* tests/unit/kvshard/ems_cases.c: single cases of the method ems through the real store.
 *
 * The worked example, opposite and degenerate vectors and duplicates have keys and values of their
 * own and attention masses that are given: a wrapper around the method writes them into the view
 * before the method sees it.  Then what must hold for any numbers: what is watched sums up to the
 * rows, thresholds are monotone, and nothing merged means bytes untouched.  ems.c holds the method
 * to its definition. */
#include <math.h>
#include <string.h>

#include "kvshard/methods.h"
#include "tests/unit/kvshard/rig.h"

struct options {
    int32_t budget, window, sinks, interval, prompt;
    double tau, mass;
    int fixed, no_guard, log_count;     /* fixed: all candidates are to be merged */
};
static const struct options usual = { 40, 8, 2, 8, 100, 0.2, 0.95, 0, 0, 0 };

/* ---- the method with masses given ----------------------------------------------------------- */
static const float *given[2];           /* [slots] at the end of the prompt; NULL: as they are */
static float scale_glo;                 /* 0: as they are */
static double seen_sum[2], seen_tokens; /* of the last event */
static struct sf_policy_ops wrapped_ops;
static struct sf_method wrapped;

static sf_status wrapped_compress(const struct sf_env *env, enum sf_when when,
                                  const struct sf_batch *batch, struct sf_answer *answer)
{
    for (int32_t l = 0; l < batch->span[0].lanes; l++) {
        const struct sf_lane *lane = &batch->span[0].lane[l];
        seen_sum[0] = seen_sum[1] = seen_tokens = 0;
        for (int32_t s = 0; s < lane->slots; s++) {
            uint32_t m = ((const uint32_t *)lane->aux)[s];
            seen_tokens += m > 0 ? m : 1;
            for (int w = 0; w < 2; w++) {
                if (when == SF_AT_PREFILL_END && given[w]) lane->mass[w][s] = given[w][s];
                if (w == 0 && scale_glo > 0) lane->mass[w][s] *= scale_glo;
                if (lane->mass[w]) seen_sum[w] += (double)lane->mass[w][s];
            }
        }
    }
    return sf_method_find("ems")->policy->compress(env, when, batch, answer);
}

static const struct sf_method *wrapper(void)
{
    wrapped = *sf_method_find("ems");
    wrapped_ops = *wrapped.policy;
    wrapped_ops.compress = wrapped_compress;
    wrapped.policy = &wrapped_ops;
    given[0] = given[1] = NULL;
    scale_glo = 0;
    return &wrapped;
}


static char text[RIG_OPTIONS][24];
static void set(struct rig_spec *spec, int i, const char *key, double value)
{
    snprintf(text[i], sizeof text[i], "%.17g", value);
    spec->option[i].key = key;
    spec->option[i].text = text[i];
}

static void choose(struct rig_spec *spec, int i, const char *key, const char *value)
{
    spec->option[i].key = key;
    spec->option[i].text = value;
}

static struct rig_spec spec_of(const struct options *o)
{
    struct rig_spec spec = rig_usual();
    spec.method = wrapper();
    set(&spec, 0, "budget_tokens", o->budget);
    set(&spec, 1, "recent_tokens", o->window);
    set(&spec, 2, "num_sink_tokens", o->sinks);
    set(&spec, 3, "recompress_interval", o->interval);
    set(&spec, 4, "similarity_threshold", o->tau);
    set(&spec, 5, "tbm_mass", o->mass);
    set(&spec, 6, "tbm_ratio", 1000);
    choose(&spec, 7, "tbm_rule", o->fixed ? "fixed" : "mass");
    choose(&spec, 8, "signed_guard", o->no_guard ? "false" : "true");
    choose(&spec, 9, "mass_bias", o->log_count ? "log_count" : "none");
    return spec;
}

/* ---- lanes of given numbers ----------------------------------------------------------------- */
/* One lane of one layer, d = 2, one query head; rows of one's own. */
static struct rig_spec small(const struct options *o)
{
    struct rig_spec spec = spec_of(o);
    spec.layers = spec.lanes = spec.group = 1;
    spec.k_dim = spec.v_dim = 2;
    return spec;
}

static sf_status feed(struct rig *rig, struct sf_seq *seq, int32_t pos, int32_t rows,
                      const float (*k)[2], const float (*v)[2])
{
    struct sf_kv_item item = { seq, 0, rows, pos };
    struct sf_kv_step step = { .item = &item, .items = 1, .q = rig->q, .k = rig->k, .v = rig->v,
                               .q_stride = 2, .k_stride = 2, .v_stride = 2, .out = rig->out[0],
                               .out_stride = 2, .out_head_stride = 2, .out_dtype = SF_F32 };
    memcpy(rig->k, k + pos, (size_t)rows * sizeof *k);
    memcpy(rig->v, v + pos, (size_t)rows * sizeof *v);
    for (int32_t r = 0; r < 2 * rows; r++) rig->q[r] = (float)(1 + (pos + r) % 3) / 2;
    return sf_store_layer(rig->store, 0, &step);
}

struct left { int32_t n, pos[64]; float k[64][2], v[64][2], bias[64]; struct sf_receipt receipt; };

/* The lane after a prompt of these rows. */
static void compress(const struct rig_spec *spec, const struct options *o, const float (*k)[2],
                     const float (*v)[2], struct left *left)
{
    struct rig rig;
    struct sf_seq *seq;
    memset(left, 0, sizeof *left);
    SF_MUST(rig_open(spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 1, o->prompt, o->prompt + 1, &seq));
    SF_MUST(feed(&rig, seq, 0, o->prompt, k, v));
    left->n = sf_seq_lane_slots(rig.store, seq, 0, 0);
    SF_MUST(sf_seq_lane_read(rig.store, seq, 0, 0, left->k[0], left->v[0], left->pos, left->bias));
    sf_seq_close(rig.store, seq, &left->receipt);
    rig_close(&rig);
}

static const struct options example = { 4, 2, 0, 2, 7, 0.5, 0.95, 0, 0, 0 };
static const float example_k[7][2] = { { 2, 0 }, { 0, 2 }, { 4, 0 }, { 0, 1 }, { -1, 0 },
                                       { 1, 1 }, { 1, 0 } };
static const float example_v[7][2] = { { 1, 0 }, { 0, 1 }, { 3, 0 }, { 0, 3 }, { -1, 0 },
                                       { 5, 5 }, { 7, 7 } };
static const float example_glo[] = { 4, 2, 1, 1, 0, 0.5f, 0.5f };
static const float example_loc[] = { 0.2f, 0.6f, 0.2f, 0.2f, 0, 0.5f, 0.3f };

static void worked_example(void)
{
    static const int32_t pos[] = { 0, 1, 5, 6 };
    static const double k[4][2] = { { 2.6087, 0 }, { 0, 1.72 }, { 1, 1 }, { 1, 0 } };
    static const double v[4][2] = { { 1.6087, 0 }, { 0, 1.56 }, { 5, 5 }, { 7, 7 } };
    static const double tokens[] = { 2, 2, 1, 1 };
    struct rig_spec spec = small(&example);
    struct left left;
    for (int biased = 0; biased < 2; biased++) {
        spec.option[9].text = biased ? "log_count" : "none";
        given[0] = example_glo, given[1] = example_loc;
        compress(&spec, &example, example_k, example_v, &left);
        SF_CHECK_INT(left.n, 4);
        SF_CHECK_INT(left.receipt.slots_merged, 2);
        SF_CHECK_INT(left.receipt.slots_evicted, 1);
        for (int s = 0; s < 4; s++) {
            SF_CHECK_INT(left.pos[s], pos[s]);
            SF_CHECK_NEAR(left.bias[s], biased ? log(tokens[s]) : 0, 1e-7);
            for (int e = 0; e < 2; e++) {
                SF_CHECK_NEAR(left.k[s][e], k[s][e], s < 2 ? 5e-5 : 0);
                SF_CHECK_NEAR(left.v[s][e], v[s][e], s < 2 ? 5e-5 : 0);
            }
        }
        /* Sums of s times v are kept: slots 0 and 2 in the first class, 1 and 3 in the second. */
        SF_CHECK_NEAR((0.8 + 0.35) * (double)left.v[0][0], 0.8 * 1 + 0.35 * 3, 1e-6);
        SF_CHECK_NEAR((0.9 + 0.35) * (double)left.v[1][1], 0.9 * 1 + 0.35 * 3, 1e-6);
    }
}

/* Scaling the global mass changes nothing; by a power of two, not a bit. */
static void scale_of_global_mass(void)
{
    struct rig_spec spec = small(&example);
    struct left as_is, scaled;
    given[0] = example_glo, given[1] = example_loc;
    compress(&spec, &example, example_k, example_v, &as_is);
    scale_glo = 0.125f;
    compress(&spec, &example, example_k, example_v, &scaled);
    SF_CHECK(memcmp(as_is.k, scaled.k, sizeof as_is.k) == 0);
    SF_CHECK(memcmp(as_is.v, scaled.v, sizeof as_is.v) == 0);
}

/* Opposite in keys and in values: two negative cosines make a similarity of 1, unless guarded. */
static void opposite_vectors(void)
{
    static const float k[4][2] = { { 1, 2 }, { -2, -4 }, { 0, 1 }, { 1, 0 } };
    static const float v[4][2] = { { 3, 1 }, { -3, -1 }, { 1, 1 }, { 1, 1 } };
    static const float glo[] = { 2, 1, 1, 0 }, loc[] = { 1, 0.5f, 0.5f, 0 };
    const struct options o = { 3, 2, 0, 2, 4, 0.9, 1, 0, 0, 0 };
    struct rig_spec spec = small(&o);
    struct left left;
    for (int guard = 0; guard < 2; guard++) {
        spec.option[8].text = guard ? "true" : "false";
        given[0] = glo, given[1] = loc;
        compress(&spec, &o, k, v, &left);
        SF_CHECK_INT(left.receipt.slots_merged, !guard);
        SF_CHECK_INT(left.receipt.slots_evicted, guard);
        SF_CHECK_NEAR(left.k[0][0], guard ? 1 : (1 + 0.5 * 2) / 1.5 * 1, 1e-5);
    }
}

/* Zero vectors resemble nothing, opposite keys of length 1 cancel out, zero scores weigh alike. */
static void degenerate_vectors(void)
{
    static const float k[6][2] = { { 0, 2 }, { 0, -2 }, { 0, 0 }, { 0, 0 }, { 1, 0 }, { 1, 0 } };
    static const float v[6][2] = { { 1, 0 }, { -1, 0 }, { 1, 0 }, { 0, 0 }, { 2, 2 }, { 3, 3 } };
    static const float none[6] = { 0 };
    struct options o = { 3, 2, 0, 2, 6, 0, 1, 1, 0, 1 };
    struct left left;
    struct rig_spec spec = small(&o);
    given[0] = given[1] = none;
    compress(&spec, &o, k, v, &left);   /* 0 is not above 0 */
    SF_CHECK_INT(left.receipt.slots_merged, 0);
    SF_CHECK_INT(left.receipt.slots_evicted, 3);
    o.tau = -0.5;
    o.no_guard = 1;
    spec = small(&o);
    given[0] = given[1] = none;
    compress(&spec, &o, k, v, &left);
    SF_CHECK_INT(left.receipt.slots_merged, 3);
    SF_CHECK_NEAR(left.k[0][0], 0, 0);
    SF_CHECK_NEAR(left.k[0][1], 1, 1e-6);   /* the centre's way, (2 + 2 + 0 + 0) / 4 long */
    SF_CHECK_NEAR(left.v[0][0], 0.25, 1e-6);
    SF_CHECK_NEAR(left.bias[0], log(4), 1e-6);
    o.fixed = 0;
    o.mass = 0;
    spec = small(&o);
    given[0] = given[1] = none;
    compress(&spec, &o, k, v, &left);
    SF_CHECK_INT(left.receipt.slots_merged, 0);
}

/* Rounding makes some product of cosines of equal vectors more than 1, and still nothing merges. */
static void threshold_of_one(void)
{
    const struct options o = { 8, 2, 0, 4, 24, 1, 1, 0, 0, 0 };
    float k[24][2], v[24][2];
    struct rig_spec spec = small(&o);
    struct left left;
    for (int i = 0; i < 20; i++) {
        for (int t = 0; t < 24; t++) {
            double angle = 0.01 * i + t % 6;
            k[t][0] = v[t][1] = (float)cos(angle);
            k[t][1] = v[t][0] = (float)sin(angle);
        }
        compress(&spec, &o, (const float (*)[2])k, (const float (*)[2])v, &left);
        SF_CHECK_INT(left.receipt.slots_merged, 0);
        SF_CHECK_INT(left.receipt.slots_evicted, 16);
    }
}

/* 24 tokens of 6 kinds become 8 slots; with ln m on the logits attention is what it was. */
static void duplicates_stay_exact(void)
{
    const struct options o = { 8, 2, 0, 4, 24, 0.999, 1, 0, 0, 1 };
    static float k[40][2], v[40][2], glo[24], loc[24];
    struct rig_spec spec = small(&o), exact = small(&o);
    struct rig rig, full;
    struct sf_seq *seq, *full_seq;
    spec.device = exact.device = "cpu";
    exact.method = NULL;
    for (int32_t t = 0; t < 40; t++) {
        double angle = 0.5 + t % 6;
        k[t][0] = (float)cos(angle), k[t][1] = (float)sin(angle);
        v[t][0] = (float)cos(2 * angle), v[t][1] = (float)sin(2 * angle);
    }
    for (int32_t t = 0; t < 24; t++) glo[t] = loc[t] = t < 6 ? 2 : 1;
    given[0] = glo, given[1] = loc;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(rig_open(&exact, &full));
    SF_MUST(sf_seq_open(rig.store, 1, 24, 40, &seq));
    SF_MUST(sf_seq_open(full.store, 1, 24, 40, &full_seq));
    SF_MUST(feed(&rig, seq, 0, 24, k, v));
    SF_MUST(feed(&full, full_seq, 0, 24, k, v));
    SF_CHECK_INT(sf_seq_lane_slots(rig.store, seq, 0, 0), 8);
    for (int32_t pos = 24; pos < 28; pos++) {
        SF_MUST(feed(&rig, seq, pos, 1, k, v));
        SF_MUST(feed(&full, full_seq, pos, 1, k, v));
        for (int e = 0; e < 2; e++) SF_CHECK_NEAR(rig.out[0][e], full.out[0][e], 2e-6);
    }
    SF_CHECK_NEAR(seen_tokens, 28, 0);  /* m, when the lane was full */
    SF_CHECK_NEAR(seen_sum[0], 6 * 2 + 18 + 4, 1e-5);
    sf_seq_close(rig.store, seq, NULL);
    sf_seq_close(full.store, full_seq, NULL);
    rig_close(&rig);
    rig_close(&full);
}

/* ---- what must hold for any numbers ---------------------------------------------------------- */
/* All mass of n rows is n, that of the last w is w. */
static void mass_of_rows(void)
{
    const struct options o = usual;
    struct rig_spec spec = spec_of(&o);
    struct rig rig;
    struct sf_seq *seq;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 1, o.prompt, o.prompt + o.interval, &seq));
    SF_MUST(rig_feed(&rig, seq, 0, 0, o.prompt));
    SF_CHECK_NEAR(seen_sum[0], o.prompt, 1e-4);
    SF_CHECK_NEAR(seen_sum[1], o.window, 1e-5);
    SF_CHECK_NEAR(seen_tokens, o.prompt, 0);
    SF_MUST(rig_feed(&rig, seq, 0, o.prompt, o.interval));
    SF_CHECK_NEAR(seen_sum[1], o.interval, 1e-5);
    sf_seq_close(rig.store, seq, NULL);
    rig_close(&rig);
}

struct lanes { int32_t pos[4][64]; float k[4][64 * 8], v[4][64 * 8]; int64_t merged, gone; };

static void lanes_of(const struct options o, struct lanes *lanes)
{
    struct rig_spec spec = spec_of(&o);
    struct rig rig;
    struct sf_seq *seq;
    struct sf_receipt receipt;
    float bias[64];
    memset(lanes, 0, sizeof *lanes);
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 1, o.prompt, o.prompt + 1, &seq));
    SF_MUST(rig_feed(&rig, seq, 0, 0, o.prompt));
    for (int32_t l = 0; l < 4; l++)
        SF_MUST(sf_seq_lane_read(rig.store, seq, l / 2, l % 2, lanes->k[l], lanes->v[l],
                                 lanes->pos[l], bias));
    sf_seq_close(rig.store, seq, &receipt);
    lanes->merged = receipt.slots_merged;
    lanes->gone = receipt.slots_evicted;
    rig_close(&rig);
}

/* tau 1 or nothing to be merged: survivors are what they were, to the bit.  A lower tau merges
 * more, and what leaves a lane was either merged or dropped. */
static void eviction_and_threshold(void)
{
    static struct lanes first, other;
    struct options o = usual;
    o.tau = 1;
    lanes_of(o, &first);
    SF_CHECK_INT(first.merged, 0);
    for (int32_t l = 0; l < 4; l++)
        for (int32_t s = 0; s < o.budget; s++)
            for (int32_t e = 0; e < 8; e++)
                SF_CHECK(first.k[l][s * 8 + e] ==
                         rig_value(RIG_K, 0, l / 2, l % 2, first.pos[l][s], e));
    for (int i = 0; i < 2; i++) {
        o.tau = i == 0 ? 7 : 0.2;
        o.mass = i == 0 ? 1 : 0;
        lanes_of(o, &other);
        SF_CHECK(memcmp(&first, &other, sizeof first) == 0);
    }
    int64_t before = 0;
    o.mass = 0.95;
    for (o.tau = 0.95; o.tau > -0.1; o.tau -= 0.05) {
        lanes_of(o, &other);
        SF_CHECK(other.merged >= before);
        SF_CHECK_INT(other.merged + other.gone, 4 * (o.prompt - o.budget));
        SF_CHECK(memcmp(first.pos, other.pos, sizeof first.pos) == 0);
        before = other.merged;
    }
    SF_CHECK(before > 4);
}

static const struct sf_test tests[] = {
    { "worked example", worked_example },
    { "scale of the global mass", scale_of_global_mass },
    { "opposite vectors", opposite_vectors },
    { "zero vectors, sums and scores", degenerate_vectors },
    { "a threshold of 1", threshold_of_one },
    { "duplicates with ln m", duplicates_stay_exact },
    { "mass of the rows", mass_of_rows },
    { "pure eviction and falling thresholds", eviction_and_threshold },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_ems_cases", tests)
