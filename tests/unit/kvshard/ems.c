/* tests/unit/kvshard/ems.c: the method ems through the real store.
 *
 * Beside the store runs the definition over plain arrays in f64, token by token: who weighs what,
 * scores by their formula, ranks by looking for the largest again and again, one similarity after
 * the other.  Every row's attention and every lane must agree with it, positions exactly, however
 * the rows are cut into calls, and bytes are those foretold.  Also: exact bits within the budget,
 * and refusals.  ems_cases.c has the worked example and what must hold in single cases. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kvshard/methods.h"
#include "tests/unit/kvshard/rig.h"

enum { SLOTS = 200, DIM = 8 };
enum { BY_SUM, BY_MAX, BY_LOCAL };

struct options {
    int32_t budget, window, sinks, interval, prompt, tokens;
    double tau, mass, ratio;            /* ratio > 0: rule fixed */
    int combine, count, pool, no_guard, center, log_count, rope_dim; /* rope_dim > 0: pre_rope */
};
static const struct options cases[] = {
    { 40, 8, 2, 8, 100, 150, 0.2, 0.95, 0, BY_SUM, 0, 1, 0, 0, 0, 0 },
    { 40, 8, 2, 13, 100, 160, 0.1, 1, 0, BY_SUM, 0, 1, 0, 1, 1, 0 },
    { 33, 16, 0, 5, 30, 120, 0.15, 0.9, 0, BY_MAX, 0, 3, 0, 0, 1, 0 },
    { 30, 4, 4, 1, 64, 90, 0.1, 0, 2.5, BY_LOCAL, 0, 1, 1, 0, 0, 0 },
    { 24, 7, 1, 30, 24, 130, -0.5, 0.99, 0, BY_SUM, 1, 5, 0, 0, 0, 0 },
    { 20, 1, 0, 3, 21, 60, 0, 1, 0, BY_SUM, 1, 1, 1, 1, 1, 0 },
    { 10, 5, 4, 4, 60, 90, 0, 0, 100, BY_MAX, 1, 1, 0, 0, 0, 0 },
    { 150, 20, 4, 40, 100, 140, 0.2, 0.95, 0, BY_SUM, 0, 1, 0, 0, 0, 0 },
    { 40, 8, 2, 8, 100, 150, 0.15, 0.98, 0, BY_SUM, 0, 1, 0, 0, 0, 8 },
    { 30, 6, 1, 5, 70, 130, 0, 1, 0, BY_MAX, 0, 1, 0, 1, 1, 4 },
};
enum { CASES = sizeof cases / sizeof cases[0] };

/* ---- options --------------------------------------------------------------------------------- */
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
    spec.method = sf_method_find("ems");
    set(&spec, 0, "budget_tokens", o->budget);
    set(&spec, 1, "window_size", o->window);
    set(&spec, 2, "sink_tokens", o->sinks);
    set(&spec, 3, "recompress_interval", o->interval);
    set(&spec, 4, "similarity_threshold", o->tau);
    set(&spec, 5, "tbm_mass", o->mass);
    set(&spec, 6, "tbm_ratio", o->ratio);
    set(&spec, 7, "pool_kernel", o->pool);
    choose(&spec, 8, "tbm_rule", o->ratio > 0 ? "fixed" : "mass");
    choose(&spec, 9, "combine", o->combine == BY_SUM ? "sum" : o->combine == BY_MAX ? "max"
                                                                                     : "local");
    choose(&spec, 10, "global_norm", o->count ? "count" : "none");
    choose(&spec, 11, "signed_guard", o->no_guard ? "false" : "true");
    choose(&spec, 12, "key_norm", o->center ? "center" : "weighted");
    choose(&spec, 13, "mass_bias", o->log_count ? "log_count" : "none");
    choose(&spec, 14, "merge_space", o->rope_dim > 0 ? "pre_rope" : "post_rope");
    spec.rope_dim = o->rope_dim;
    return spec;
}

/* ---- the definition ------------------------------------------------------------------------- */
struct slot { int32_t pos; double k[DIM], v[DIM], bias, glo, acc, s; int64_t m; };
struct plain { int32_t n; struct slot slot[SLOTS]; int64_t merged, evicted; };

static double cosine(const double *a, const double *b)
{
    double ab = 0, aa = 0, bb = 0;
    for (int e = 0; e < DIM; e++) ab += a[e] * b[e], aa += a[e] * a[e], bb += b[e] * b[e];
    return aa == 0 || bb == 0 ? 0 : ab / sqrt(aa * bb);
}

static double norm(const double *a)
{
    double aa = 0;
    for (int e = 0; e < DIM; e++) aa += a[e] * a[e];
    return sqrt(aa);
}

static void plain_scores(struct plain *p, const struct options *o, int32_t tokens)
{
    static double raw[SLOTS];
    double glo = 0, loc = 0, count = p->n - o->window - o->sinks;
    for (int pass = 0; pass < 2; pass++)
        for (int32_t j = o->sinks; j < p->n - o->window; j++) {
            double global = p->slot[j].glo / (o->count ? tokens - p->slot[j].pos : 1);
            double local = p->slot[j].acc, a = glo == 0 ? 0 : (loc / count) / (glo / count);
            if (pass == 0) glo += global, loc += local;
            else if (o->combine == BY_SUM) raw[j] = a * global + local;
            else if (o->combine == BY_MAX) raw[j] = fmax(a * global, local);
            else raw[j] = local;
        }
    for (int32_t j = o->sinks; j < p->n - o->window; j++) {
        p->slot[j].s = 0;
        for (int32_t i = o->sinks; i < p->n - o->window; i++)
            if (abs(i - j) <= o->pool / 2) p->slot[j].s = fmax(p->slot[j].s, raw[i]);
    }
}

/* Best candidate that is not taken yet, the lower of equals. */
static int32_t next_best(const struct plain *p, const struct options *o, const int *kind)
{
    int32_t best = -1;
    for (int32_t j = o->sinks; j < p->n - o->window; j++)
        if (kind[j] == 0 && (best < 0 || p->slot[j].s > p->slot[best].s)) best = j;
    return best;
}

/* The class of slot i: a centre (kind 1), or -1. */
static int32_t plain_class(const struct plain *p, const struct options *o, const int *kind,
                           int32_t i)
{
    double best = o->tau;
    int32_t class_of = -1;
    for (int32_t c = 0; c < p->n; c++) {
        if (kind[c] != 1 || o->tau >= 1) continue;
        double k = cosine(p->slot[i].k, p->slot[c].k), v = cosine(p->slot[i].v, p->slot[c].v);
        if (!o->no_guard) k = fmax(k, 0), v = fmax(v, 0);
        if (k * v > best) best = k * v, class_of = c;
    }
    return class_of;
}

static struct slot plain_merge(const struct plain *p, const struct options *o, int32_t c,
                               const int32_t *class_of)
{
    struct slot new = p->slot[c];
    double total = 0, u[DIM] = { 0 }, rho = 0;
    int members = 0;
    for (int32_t i = 0; i < p->n; i++)
        if (class_of[i] == c) total += p->slot[i].s, members++;
    if (members == 1) return new;
    memset(new.v, 0, sizeof new.v);
    new.glo = 0, new.m = 0, new.s = total;
    for (int32_t i = 0; i < p->n; i++) {
        const struct slot *old = &p->slot[i];
        if (class_of[i] != c) continue;
        double w = total > 0 ? old->s / total : 1.0 / members;
        for (int e = 0; e < DIM; e++) u[e] += norm(old->k) > 0 ? w * old->k[e] / norm(old->k) : 0;
        for (int e = 0; e < DIM; e++) new.v[e] += w * old->v[e];
        rho += o->center ? 0 : w * norm(old->k);
        new.glo += old->glo;
        new.m += old->m;
    }
    if (o->center) rho = norm(p->slot[c].k);
    const double *way = norm(u) < 1e-6 ? p->slot[c].k : u;
    for (int e = 0; e < DIM; e++) new.k[e] = norm(way) > 0 ? rho * way[e] / norm(way) : 0;
    new.bias = o->log_count ? log((double)new.m) : 0;
    return new;
}

/* All keys by `sign` times their positions. */
static void plain_turn(struct plain *p, const struct options *o, int sign)
{
    int half = o->rope_dim / 2;
    for (int32_t s = 0; s < p->n; s++)
        for (int i = 0; i < half; i++) {
            double angle = sign * p->slot[s].pos * (double)rig_frequency(i);
            double a = p->slot[s].k[i], b = p->slot[s].k[i + half];
            p->slot[s].k[i] = a * cos(angle) - b * sin(angle);
            p->slot[s].k[i + half] = b * cos(angle) + a * sin(angle);
        }
}

static void plain_compress(struct plain *p, const struct options *o, int32_t tokens)
{
    static struct plain new;
    int kind[SLOTS] = { 0 };            /* 1 centre, 2 to be merged */
    int32_t class_of[SLOTS], centres = o->budget - o->window - o->sinks, taken = 0;
    double total = 0, covered = 0;
    plain_scores(p, o, tokens);
    plain_turn(p, o, -1);
    for (int32_t j; (j = next_best(p, o, kind)) >= 0; kind[j] = 3) total += p->slot[j].s;
    memset(kind, 0, sizeof kind);
    for (int32_t j; (j = next_best(p, o, kind)) >= 0; taken++) {
        int more = o->ratio > 0 ? taken - centres < floor(o->ratio * centres)
                                : covered < o->mass * total;
        if (taken >= centres && !more) break;
        kind[j] = taken < centres ? 1 : 2;
        covered += p->slot[j].s;
    }
    for (int32_t i = 0; i < p->n; i++)
        class_of[i] = kind[i] == 1 ? i : kind[i] == 2 ? plain_class(p, o, kind, i) : -1;
    new = (struct plain){ .merged = p->merged, .evicted = p->evicted };
    for (int32_t i = 0; i < p->n; i++) {
        int inside = i >= o->sinks && i < p->n - o->window;
        if (!inside) new.slot[new.n++] = p->slot[i];
        else if (kind[i] == 1) new.slot[new.n++] = plain_merge(p, o, i, class_of);
        else if (class_of[i] >= 0) new.merged++;
        else new.evicted++;
    }
    *p = new;
    plain_turn(p, o, 1);
}

/* A row comes: slot, weights and outputs [group][v_dim], then what falls due. */
static void plain_row(struct plain *p, const struct rig_spec *spec, const struct options *o,
                      int32_t layer, int32_t lane, int32_t pos, double out[][DIM])
{
    struct slot *slot = &p->slot[p->n++];
    *slot = (struct slot){ .pos = pos, .m = 1 };
    for (int32_t e = 0; e < spec->k_dim; e++)
        slot->k[e] = (double)rig_value(RIG_K, 0, layer, lane, pos, e);
    for (int32_t e = 0; e < spec->v_dim; e++)
        slot->v[e] = (double)rig_value(RIG_V, 0, layer, lane, pos, e);
    for (int32_t g = 0; g < spec->group; g++) {
        double weight[SLOTS], sum = 0;
        for (int32_t s = 0; s < p->n; s++) {
            double dot = 0;
            for (int32_t e = 0; e < spec->k_dim; e++)
                dot += p->slot[s].k[e] *
                       (double)rig_value(RIG_Q, 0, layer, lane * spec->group + g, pos, e);
            sum += weight[s] = exp(dot / sqrt(spec->k_dim) + p->slot[s].bias);
        }
        memset(out[g], 0, sizeof out[g]);
        for (int32_t s = 0; s < p->n; s++) {
            double mean = weight[s] / sum / spec->group;
            p->slot[s].glo += mean;
            if (pos >= o->prompt - o->window) p->slot[s].acc += mean;
            for (int32_t e = 0; e < spec->v_dim; e++)
                out[g][e] += weight[s] / sum * p->slot[s].v[e];
        }
    }
    int end = pos + 1 == o->prompt;
    if (end ? p->n > o->budget : pos >= o->prompt && p->n >= o->budget + o->interval)
        plain_compress(p, o, pos + 1);
    else if (!end) return;
    for (int32_t s = 0; s < p->n; s++) p->slot[s].acc = 0;
}

/* ---- the store against it ------------------------------------------------------------------- */
static double worse(double worst, double is, double wanted)
{
    double error = fabs(is - wanted);
    return error <= worst ? worst : error;  /* NaN is worse */
}

static int check_slots(const struct rig *rig, const struct sf_seq *seq, int32_t layer,
                       int32_t lane, const struct plain *p)
{
    static float k[SLOTS * DIM], v[SLOTS * DIM], bias[SLOTS];
    int32_t pos[SLOTS], n = sf_seq_lane_slots(rig->store, seq, layer, lane), wrong = 0;
    double worst = 0;
    SF_CHECK_INT(n, p->n);
    if (n != p->n) return 0;
    SF_CHECK_OK(sf_seq_lane_read(rig->store, seq, layer, lane, k, v, pos, bias));
    for (int32_t s = 0; s < n; s++) {
        wrong += pos[s] != p->slot[s].pos || (s > 0 && pos[s] <= pos[s - 1]);
        worst = worse(worst, (double)bias[s], p->slot[s].bias);
        for (int32_t e = 0; e < rig->spec.k_dim; e++)
            worst = worse(worst, (double)k[s * rig->spec.k_dim + e], p->slot[s].k[e]);
        for (int32_t e = 0; e < rig->spec.v_dim; e++)
            worst = worse(worst, (double)v[s * rig->spec.v_dim + e], p->slot[s].v[e]);
    }
    SF_CHECK_INT(wrong, 0);
    SF_CHECK_NEAR(worst, 0, 1e-5);
    return wrong == 0 && worst <= 1e-5;
}

/* What is stored now, what was foretold and what follows from the numbers of tokens are equal. */
static void check_bytes(const struct rig *rig, const struct options *o, int32_t tokens)
{
    const struct rig_spec *spec = &rig->spec;
    int32_t lane_ptr[] = { 0, 2, 4 }, heads[] = { 0, 1, 0, 1 }, slots = o->prompt;
    uint8_t replica[4] = { 0 };
    struct sf_rank_lanes rank = { 0, 2, lane_ptr, heads, replica };
    struct sf_cost cost;
    if (tokens < o->prompt) return;
    for (int32_t t = o->prompt; t <= tokens; t++) {
        slots += t > o->prompt;
        if (t == o->prompt ? slots > o->budget : slots == o->budget + o->interval)
            slots = o->budget;
    }
    SF_MUST(sf_account_sequence(&rig->setup, &rig->stack, &rank, spec->dtype, o->prompt, tokens,
                                &cost));
    int64_t bytes = 4 * (int64_t)slots * ((spec->k_dim + spec->v_dim) * 4 + 8 + 4);
    SF_CHECK_INT(sf_store_bytes_stored(rig->store), bytes);
    SF_CHECK_INT(cost.bytes_lo, bytes);
    SF_CHECK_INT(cost.bytes_hi, bytes);
    SF_CHECK(sf_store_bytes_held(rig->store) <= cost.bytes_peak);
    SF_CHECK(sf_store_pages(rig->store) - sf_store_pages_free(rig->store) <= cost.pages_after);
}

static int check_rows(const struct rig *rig, const struct options *o, struct plain plain[][2],
                      int32_t first, int32_t rows)
{
    const struct rig_spec *spec = &rig->spec;
    double out[4][DIM], worst = 0;
    for (int32_t layer = 0; layer < spec->layers; layer++)
        for (int32_t l = 0; l < spec->lanes; l++)
            for (int32_t row = 0; row < rows; row++) {
                plain_row(&plain[layer][l], spec, o, layer, l, first + row, out);
                for (int32_t g = 0; g < spec->group; g++)
                    for (int32_t e = 0; e < spec->v_dim; e++)
                        worst = worse(worst, (double)rig_out(rig, layer, row,
                                                             l * spec->group + g)[e], out[g][e]);
            }
    SF_CHECK_NEAR(worst, 0, 2e-5);
    return worst <= 2e-5;
}

static int64_t run_case(const struct options *o, const char *device, int32_t piece, int32_t decode)
{
    static struct plain plain[2][2];
    struct rig_spec spec = spec_of(o);
    struct rig rig;
    struct sf_seq *seq;
    struct sf_receipt receipt = { 0 };
    int64_t merged = 0, evicted = 0;
    memset(plain, 0, sizeof plain);
    spec.device = device;
    SF_CHECK_OK(rig_open(&spec, &rig));
    SF_CHECK_OK(sf_seq_open(rig.store, 1, o->prompt, o->tokens, &seq));
    for (int32_t pos = 0, n, good = 1; pos < o->tokens && good; pos += n) {
        int32_t left = (pos < o->prompt ? o->prompt : o->tokens) - pos;
        n = pos < o->prompt ? piece : decode;
        if (n > left) n = left;
        SF_CHECK_OK(rig_feed(&rig, seq, 0, pos, n));
        good = check_rows(&rig, o, plain, pos, n);
        for (int32_t l = 0; l < 4; l++)
            good &= check_slots(&rig, seq, l / 2, l % 2, &plain[l / 2][l % 2]);
        check_bytes(&rig, o, pos + n);
    }
    sf_seq_close(rig.store, seq, &receipt);
    for (int32_t l = 0; l < 4; l++) merged += plain[l / 2][l % 2].merged;
    for (int32_t l = 0; l < 4; l++) evicted += plain[l / 2][l % 2].evicted;
    SF_CHECK_INT(receipt.slots_merged, merged);
    SF_CHECK_INT(receipt.slots_evicted, evicted);
    SF_CHECK_INT(sf_store_pages_free(rig.store), sf_store_pages(rig.store));
    rig_close(&rig);
    return merged;
}

/* Whole or in pieces, one row a call or several: the same. */
static void every_row(void)
{
    for (int32_t i = 0; i < CASES; i++) {
        const struct options *o = &cases[i];
        int64_t merged = run_case(o, "ref", 512, 1);
        SF_CHECK(o->budget > o->tokens || o->mass == 0 || merged > 0);
        SF_CHECK_INT(run_case(o, "cpu", 11, 7), merged);
    }
}


/* ---- exact within the budget ----------------------------------------------------------------- */
static void outputs(const struct rig_spec *spec, const struct options *o, float *out)
{
    struct rig rig;
    struct sf_seq *seq;
    SF_MUST(rig_open(spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 1, o->prompt, o->tokens, &seq));
    size_t width = (size_t)(spec->lanes * spec->group * spec->v_dim);
    for (int32_t pos = 0; pos < o->tokens; pos++) {
        SF_MUST(rig_feed(&rig, seq, 0, pos, 1));
        for (int32_t layer = 0; layer < spec->layers; layer++, out += width)
            memcpy(out, rig_out(&rig, layer, 0, 0), width * sizeof *out);
    }
    sf_seq_close(rig.store, seq, NULL);
    rig_close(&rig);
}

static void exact_within_budget(void)
{
    static float want[140 * 2 * 24], got[140 * 2 * 24];
    const struct options *o = &cases[7];
    struct rig_spec exact = rig_usual(), ems = spec_of(o);
    exact.device = ems.device = "cpu";
    outputs(&exact, o, want);
    outputs(&ems, o, got);
    SF_CHECK(memcmp(want, got, sizeof want) == 0);
}

/* ---- refusals ------------------------------------------------------------------------------- */
static void refusals(void)
{
    struct rig rig;
    struct options o = cases[0];
    o.budget = 10;
    struct rig_spec spec = spec_of(&o);
    CHECK_REFUSED(rig_open(&spec, &rig), SF_INVALID,
                  "budget_tokens 10 leaves no slot beside recent_tokens 8 and num_sink_tokens 2");
    spec = spec_of(&cases[0]);
    spec.option[7].text = "4";
    CHECK_REFUSED(rig_open(&spec, &rig), SF_INVALID, "pool_kernel 4 is even");
    spec = spec_of(&cases[0]);
    choose(&spec, 14, "head_budget", "profile");
    CHECK_REFUSED(rig_open(&spec, &rig), SF_UNSUPPORTED, "head_budget profile is not built yet");
    choose(&spec, 14, "head_budget", "uniform");
    SF_MUST(rig_open(&spec, &rig));
    rig_close(&rig);
    spec.window = 30;                   /* the model's own */
    SF_MUST(rig_open(&spec, &rig));
    for (int32_t l = 0; l < rig.setup.lanes; l++)
        SF_CHECK_INT(rig.stack.entry[0].shape.acts_on[l], 0);
    rig_close(&rig);
}

static const struct sf_test tests[] = {
    { "every row and slot as the definition says", every_row },
    { "exact bits within the budget", exact_within_budget },
    { "refusals", refusals },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_ems", tests)
