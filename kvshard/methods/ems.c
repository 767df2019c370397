/* kvshard/methods/ems.c: keep what matters, merge what resembles it, drop the rest.
 *
 * Paper      EMS: Adaptive Evict-then-Merge Strategy for Head-wise KV Cache Compression (arXiv
 *            2412.08521); no official code is known, so this is sheaf's EMS, profile_version 1
 * Kept       of each lane B = budget_tokens slots: the first N0, the last w, and C = B - w - N0
 *            centres between them, each at its own position
 *                [ sinks ][ centres, ascending ][ last w ] and what came since
 * Equations  s_glo = sum of attention given to a slot by all rows, s_loc by the last w rows (in
 *            decode: those since the last time), means over the query heads of the lane;
 *                a = sum s_loc / sum s_glo,   s = a s_glo + s_loc       over the candidates between
 *            centres: the C highest s.  To be merged: the next ones, until tbm_mass of sum s is
 *            covered.  Such a slot i goes to the centre c of the largest
 *                sim(i, c) = cos(k_i, k_c) cos(v_i, v_c)                each cosine at least 0
 *            if that is above tau, else it is dropped, as are all others (the zero class).  Of a
 *            centre and what joins it, w_i = s_i / sum s:
 *                u = sum w_i k_i / |k_i|,  rho = sum w_i |k_i|,
 *                k^ = rho u / |u|,         v^ = sum w_i v_i
 *            which is a mix with the weights rho w_i / (|u| |k_i|) and w_i.  s_glo and the numbers
 *            of tokens m add up; with mass_bias log_count the slot's bias is ln m
 *            With merge_space pre_rope all k above are those before RoPE, and k^ is turned to the
 *            position of its centre
 * When       at the end of a prompt longer than B; in decode whenever a lane has grown to B + T
 *            head_budget sparsity: at the first event of a layer a head gets B_h in the place of
 *            B, f = w + max((B - w) / 4, N0 + 1) and of Hkv (B - f) a share in proportion to the
 *            fewest candidates that hold 90 % of its s; it keeps that for good
 *            Under memory pressure, if it may: C is halved, down to 1, each time; what is over is
 *            evicted or merged by the same score, and the lane goes on with the smaller B
 * Crosses    nothing: no head, layer or rank knows of another; with head_budget sparsity one sum of
 *            Hkv integers over the tensor ranks a layer and sequence
 * State      per slot s_glo and the local mass (the store's), m as uint32
 * Ratio      B = 256, T = 32 at 32,768 tokens: at most 288 / 32,768 = 0.9 %
 * Differs    the formulas of the paper are not public: the score, the three kinds and the weights
 *            are ours, each with an option.  Layers with a window of their own stay exact */
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "base/opt.h"
#include "kernels/kernels.h"
#include "kvshard/policy.h"

enum { PLAIN, COUNT };
enum { SUM, MAX, LOCAL };
enum { MASS, FIXED };
enum { WEIGHTED, CENTRE };
enum { POST_ROPE, PRE_ROPE };
enum { NO_BIAS, LOG_COUNT };
enum { UNIFORM, SPARSITY, PROFILE };
struct ems_cfg {
    int32_t budget, window, sinks, interval, pool_kernel;
    int32_t global_norm, combine, tbm_rule, key_norm, merge_space, mass_bias, head_budget;
    double tbm_mass, tbm_ratio, threshold;
    uint8_t guard, tighten;
};

static const char *const norms[] = { "none", "count", NULL };
static const char *const combines[] = { "sum", "max", "local", NULL };
static const char *const rules[] = { "mass", "fixed", NULL };
static const char *const lengths[] = { "weighted", "center", NULL };
static const char *const spaces[] = { "post_rope", "pre_rope", NULL };
static const char *const biases[] = { "none", "log_count", NULL };
static const char *const budgets[] = { "uniform", "sparsity", "profile", NULL };
#define AT(field) .offset = offsetof(struct ems_cfg, field), .built = 1
static const struct sf_opt ems_opts[] = {
    { .key = "budget_tokens", .type = SF_OPT_INT32, AT(budget), .fallback = "256", .min = 1,
      .max = 1 << 24, .aliases = "token_budget cache_size sparse_budget", .unit = "slots",
      .help = "slots of a head, sinks and window among them" },
    { .key = "recent_tokens", .type = SF_OPT_INT32, AT(window), .fallback = "32", .min = 1,
      .max = 1 << 20, .aliases = "window_size recent_window local_len", .unit = "slots",
      .help = "last slots, never touched; their rows make the local score" },
    { .key = "num_sink_tokens", .type = SF_OPT_INT32, AT(sinks), .fallback = "4", .min = 0,
      .max = 1024, .aliases = "sink_tokens exact_first_tokens", .unit = "slots",
      .help = "first slots, never touched" },
    { .key = "global_norm", .type = SF_OPT_ENUM, AT(global_norm), .fallback = "none",
      .choices = norms, .help = "count: global mass per row that saw the slot" },
    { .key = "combine", .type = SF_OPT_ENUM, AT(combine), .fallback = "sum", .choices = combines,
      .help = "global and local score; local: without the global pass" },
    { .key = "pool_kernel", .type = SF_OPT_INT32, AT(pool_kernel), .fallback = "1", .min = 1,
      .max = 1023, .unit = "slots", .help = "odd; a score is the largest of so many neighbours" },
    { .key = "tbm_rule", .type = SF_OPT_ENUM, AT(tbm_rule), .fallback = "mass", .choices = rules,
      .help = "how many slots are looked at for merging" },
    { .key = "tbm_mass", .type = SF_OPT_FLOAT, AT(tbm_mass), .fallback = "0.95", .min = 0,
      .max = 1, .help = "rule mass: centres and these cover this share of the score" },
    { .key = "tbm_ratio", .type = SF_OPT_FLOAT, AT(tbm_ratio), .fallback = "1.0", .min = 0,
      .max = 1e6, .help = "rule fixed: so many for each centre" },
    { .key = "similarity_threshold", .type = SF_OPT_FLOAT, AT(threshold), .fallback = "0.5",
      .min = -1, .max = 1e6, .help = "merged only above this; 1 or more: nothing is merged" },
    { .key = "signed_guard", .type = SF_OPT_BOOL, AT(guard), .fallback = "true",
      .help = "negative cosines count as 0" },
    { .key = "key_norm", .type = SF_OPT_ENUM, AT(key_norm), .fallback = "weighted",
      .choices = lengths, .help = "length of a merged key" },
    { .key = "merge_space", .type = SF_OPT_ENUM, AT(merge_space), .fallback = "post_rope",
      .choices = spaces, .help = "which keys are compared and merged" },
    { .key = "mass_bias", .type = SF_OPT_ENUM, AT(mass_bias), .fallback = "none",
      .choices = biases, .help = "log_count: ln of its tokens on the logit of a merged slot" },
    { .key = "recompress_interval", .type = SF_OPT_INT32, AT(interval), .fallback = "auto",
      .min = 1, .max = 1 << 20, .allow_auto = 1, .unit = "slots",
      .help = "a lane grows by so many in decode; auto: recent_tokens" },
    { .key = "head_budget", .type = SF_OPT_ENUM, AT(head_budget), .fallback = "uniform",
      .choices = budgets, .help = "how the budget of a layer is shared out" },
    { .key = "tighten_under_pressure", .type = SF_OPT_BOOL, AT(tighten), .fallback = "false",
      .help = "when pages run out, halve the slots between sinks and window before a sequence is"
              " preempted; never under run.deterministic" },
    { .key = NULL }
};

/* ---- when and how much ---------------------------------------------------------------------- */
/* Slots that the search reads, centres that it compares and slots that it compares at once. */
enum { ROWS = 64, PANEL = 8, GROUP = 4 };

static int32_t interval_of(const struct ems_cfg *cfg)
{
    return cfg->interval == SF_OPT_AUTO ? cfg->window : cfg->interval;
}

/* Of a sequence that was tightened so often: sinks and window stay, the centres are halved. */
static int32_t budget_of(const struct ems_cfg *cfg, int32_t tightened)
{
    int32_t beside = cfg->window + cfg->sinks, n = tightened < 30 ? tightened : 30;
    int32_t centres = (cfg->budget - beside) >> n;
    return beside + (centres > 1 ? centres : 1);
}

/* With head_budget sparsity: the least that a head gets, and the most. */
static int32_t least_of(const struct ems_cfg *cfg)
{
    int32_t quarter = (cfg->budget - cfg->window) / 4, centre = cfg->sinks + 1;
    if (cfg->head_budget == UNIFORM) return cfg->budget;
    if (quarter < 1) quarter = 1;
    return cfg->window + (quarter > centre ? quarter : centre);
}

static int32_t most_of(const struct ems_cfg *cfg, const struct sf_layer *layer)
{
    int32_t least = least_of(cfg);
    int64_t most = least + (int64_t)layer->groups * (cfg->budget - least);
    return most < 1 << 30 ? (int32_t)most : 1 << 30;
}

static int32_t k_dim_of(const struct sf_layer *layer) { return layer->k_per_group * layer->k_dim; }
static int32_t v_dim_of(const struct sf_layer *layer) { return layer->v_per_group * layer->v_dim; }

static sf_status ems_shape(const struct sf_setup *setup, struct sf_shape *shape)
{
    for (int32_t l = 0; l < setup->layers; l++)
        if (setup->layer[l].window != 0)
            memset(shape->acts_on + setup->layer[l].lane_first, 0, (size_t)setup->layer[l].groups);
    return SF_OK;
}

/* Upper bound of what struct work takes, for one hook. */
static int64_t scratch_of(const struct ems_cfg *cfg, const struct sf_setup *setup)
{
    int64_t slots = setup->tokens_max, width = 0, k_dim = 0, most = 0, groups = 0;
    for (int32_t l = 0; l < setup->layers; l++) {
        const struct sf_layer *layer = &setup->layer[l];
        if (k_dim_of(layer) + v_dim_of(layer) > width) width = k_dim_of(layer) + v_dim_of(layer);
        if (k_dim_of(layer) > k_dim) k_dim = k_dim_of(layer);
        if (most_of(cfg, layer) > most) most = most_of(cfg, layer);
        if (layer->groups > groups) groups = layer->groups;
    }
    int64_t centres = (most < slots ? most : slots) + PANEL;
    return (slots + 2) * 80 + (centres + 2 * ROWS) * width * 4 + k_dim * 8 + groups * 24 + 4096;
}

static sf_status ems_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    const struct ems_cfg *cfg = setup->cfg;
    if (cfg->budget - cfg->window - cfg->sinks < 1)
        return SF_FAIL(SF_INVALID, "method ems: budget_tokens %d leaves no slot beside"
                       " recent_tokens %d and num_sink_tokens %d; it must be at least %d",
                       cfg->budget, cfg->window, cfg->sinks, cfg->window + cfg->sinks + 1);
    if (cfg->pool_kernel % 2 == 0)
        return SF_FAIL(SF_INVALID, "method ems: pool_kernel %d is even; it must be odd",
                       cfg->pool_kernel);
    if (cfg->head_budget == PROFILE)
        return SF_FAIL(SF_UNSUPPORTED, "method ems: head_budget %s is not built yet; allowed:"
                       " uniform, sparsity", budgets[cfg->head_budget]);
    if (cfg->tighten && cfg->head_budget != UNIFORM)
        return SF_FAIL(SF_UNSUPPORTED, "method ems: tighten_under_pressure is not built for"
                       " head_budget %s, whose budgets are shared out once",
                       budgets[cfg->head_budget]);
    plan->whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_FULL;
    if (cfg->tighten) plan->whens |= 1u << SF_AT_PRESSURE;
    plan->edits = SF_EDITS_MIX;
    if (cfg->merge_space == PRE_ROPE) {
        plan->needs |= SF_NEED_PRE_ROPE;
        plan->edits |= SF_EDITS_ROTATE;
    }
    if (cfg->combine != LOCAL)
        plan->watch[0] = (struct sf_watch){ .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_MEAN };
    plan->watch[1] = (struct sf_watch){ .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_MEAN,
                                        .flags = SF_WATCH_RESET, .prompt_rows = cfg->window };
    plan->sink_tokens = cfg->sinks;
    plan->tail_tokens = cfg->window;
    plan->prefix = SF_PREFIX_KV_AND_MASS;
    plan->aux_bytes = sizeof(uint32_t);
    plan->scratch_bytes = scratch_of(cfg, setup);
    for (int32_t l = 0; cfg->head_budget == SPARSITY && l < setup->layers; l++) {
        int64_t bytes = setup->layer[l].groups * (int64_t)sizeof(int64_t);
        if (bytes > plan->reduce_bytes) plan->reduce_bytes = bytes;
    }
    return SF_OK;
}

/* From `base` tokens on a lane rises from budget to budget + interval and falls back; to what
 * budget is for the data to say, with head_budget sparsity. */
static sf_status ems_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                               struct sf_foot *foot)
{
    const struct ems_cfg *cfg = setup->cfg;
    int32_t base = spot->prompt > cfg->budget ? spot->prompt : cfg->budget;
    int32_t slots = spot->tokens, full = cfg->budget + interval_of(cfg);
    if (spot->prompt > cfg->budget || spot->tokens >= full)
        slots = cfg->budget + (spot->tokens - base) % interval_of(cfg);
    foot->slots_lo[0] = foot->slots_hi[0] = slots;
    if (cfg->head_budget == SPARSITY && (spot->prompt > cfg->budget || spot->tokens >= full)) {
        int64_t most = (int64_t)most_of(cfg, &setup->layer[spot->layer]) + interval_of(cfg) - 1;
        foot->slots_lo[0] = least_of(cfg);
        foot->slots_hi[0] = most < spot->tokens ? (int32_t)most : spot->tokens;
    }
    foot->slots_peak = spot->prompt;
    if (spot->prompt <= cfg->budget) foot->slots_peak = spot->tokens < full ? spot->tokens : full;
    foot->slots_trigger = full;
    foot->slots_keep = cfg->budget;
    if (spot->tightened == 0) return SF_OK;
    foot->slots_keep = budget_of(cfg, spot->tightened);
    foot->slots_trigger = foot->slots_keep + interval_of(cfg);
    foot->slots_lo[0] = spot->tokens < foot->slots_keep ? spot->tokens : foot->slots_keep;
    foot->slots_hi[0] = foot->slots_trigger - 1;    /* when it was, nobody knows */
    if (foot->slots_hi[0] > spot->tokens) foot->slots_hi[0] = spot->tokens;
    return SF_OK;
}

/* ---- memory of a hook ----------------------------------------------------------------------- */
struct work {
    const struct sf_env *env;
    const struct ems_cfg *cfg;
    double *score, *raw;                /* [slots] of the lane; candidates are filled in */
    int32_t *order, *spare;             /* [slots] candidates by falling score */
    int32_t *role, *centre, *token;     /* [slots]; centres and slots to be merged, ascending */
    int32_t *class_of, *next;           /* [tokens] class or -1; [centres] end of its sources */
    int32_t budget;                     /* of the lane at hand */
    int32_t centres, tokens, k_dim, v_dim;
    float *panel_k, *panel_v;           /* centres of length 1: [panel][dim][PANEL], 0 beyond */
    struct sf_buf *dev_k, *dev_v;       /* [ROWS][k_dim], [ROWS][v_dim] */
    float *k, *v;                       /* the same on the host */
    double *u;                          /* [k_dim] */
    int32_t *ptr, *src, *pos;           /* the new lane, as struct sf_mix has it */
    float *k_weight, *v_weight, *bias, *mass;
    uint32_t *aux;
};

static sf_status work_open(struct work *w, const struct sf_env *env, int32_t slots_most)
{
    int64_t k_dim = 0, v_dim = 0;
    size_t slots = (size_t)slots_most + 2, centres = 0;
    *w = (struct work){ .env = env, .cfg = env->setup->cfg };
    for (int32_t l = 0; l < env->setup->layers; l++) {
        if (k_dim_of(&env->setup->layer[l]) > k_dim) k_dim = k_dim_of(&env->setup->layer[l]);
        if (v_dim_of(&env->setup->layer[l]) > v_dim) v_dim = v_dim_of(&env->setup->layer[l]);
        size_t most = (size_t)most_of(w->cfg, &env->setup->layer[l]);
        if (most > centres) centres = most;
    }
    if (centres > (size_t)slots_most) centres = (size_t)slots_most;
    centres += PANEL;
    int32_t **ints[] = { &w->order, &w->spare, &w->role, &w->centre, &w->token, &w->class_of,
                         &w->next, &w->ptr, &w->src, &w->pos };
    float **floats[] = { &w->k_weight, &w->v_weight, &w->bias, &w->mass };
    size_t k_bytes = ROWS * (size_t)k_dim * sizeof(float);
    size_t v_bytes = ROWS * (size_t)v_dim * sizeof(float);
    int missing = 0;
    for (size_t i = 0; i < sizeof ints / sizeof ints[0]; i++)
        missing |= !(*ints[i] = sf_scratch(env, slots * sizeof(int32_t)));
    for (size_t i = 0; i < sizeof floats / sizeof floats[0]; i++)
        missing |= !(*floats[i] = sf_scratch(env, slots * sizeof(float)));
    missing |= !(w->score = sf_scratch(env, slots * sizeof(double)));
    missing |= !(w->raw = sf_scratch(env, slots * sizeof(double)));
    missing |= !(w->aux = sf_scratch(env, slots * sizeof(uint32_t)));
    missing |= !(w->panel_k = sf_scratch(env, centres * (size_t)k_dim * sizeof(float)));
    missing |= !(w->panel_v = sf_scratch(env, centres * (size_t)v_dim * sizeof(float)));
    missing |= !(w->k = sf_scratch(env, k_bytes));
    missing |= !(w->v = sf_scratch(env, v_bytes));
    missing |= !(w->u = sf_scratch(env, (size_t)k_dim * sizeof(double)));
    missing |= !(w->dev_k = sf_scratch_buf(env, k_bytes));
    missing |= !(w->dev_v = sf_scratch_buf(env, v_bytes));
    return missing ? SF_FAIL(SF_NO_MEMORY, "ems: no scratch for %zu slots", slots) : SF_OK;
}

/* ---- 1. the score --------------------------------------------------------------------------- */
struct range { int32_t first, end; };   /* candidates: neither sinks nor window */

static struct range candidates(const struct ems_cfg *cfg, const struct sf_lane *lane)
{
    return (struct range){ cfg->sinks, lane->slots - cfg->window };
}

static void score(struct work *w, const struct sf_lane *lane, struct range cand, int32_t tokens)
{
    const struct ems_cfg *cfg = w->cfg;
    const float *glo = lane->mass[0], *loc = lane->mass[1];
    double sum_glo = 0, sum_loc = 0;
    for (int32_t j = cand.first; j < cand.end; j++) {
        w->raw[j] = glo ? (double)glo[j] : 0;
        if (cfg->global_norm == COUNT) w->raw[j] /= tokens - lane->pos[j];
        sum_glo += w->raw[j];
        sum_loc += (double)loc[j];
    }
    double a = sum_glo > 0 ? sum_loc / sum_glo : 0;
    for (int32_t j = cand.first; j < cand.end; j++) {
        double scaled = a * w->raw[j], local = (double)loc[j];
        w->raw[j] = cfg->combine == SUM ? scaled + local : local;
        if (cfg->combine == MAX && scaled > local) w->raw[j] = scaled;
    }
    int32_t half = cfg->pool_kernel / 2;
    for (int32_t j = cand.first; j < cand.end; j++) {
        w->score[j] = w->raw[j];
        int32_t i = j - cand.first > half ? j - half : cand.first;
        for (; i < cand.end && i <= j + half; i++)
            if (w->raw[i] > w->score[j]) w->score[j] = w->raw[i];
    }
}

/* Candidates into w->order: highest score first, ties by slot; a merge sort. */
static void sort(struct work *w, struct range cand)
{
    int32_t n = cand.end - cand.first;
    for (int32_t i = 0; i < n; i++) w->order[i] = cand.first + i;
    for (int32_t run = 1; run < n; run *= 2) {
        for (int32_t at = 0; at < n; at += 2 * run) {
            int32_t left = at, middle = n - at < run ? n : at + run, right = middle;
            int32_t end = n - at < 2 * run ? n : at + 2 * run;
            for (int32_t out = at; out < end; out++) {
                int from_right = left == middle ||
                    (right < end && w->score[w->order[right]] > w->score[w->order[left]]);
                w->spare[out] = w->order[from_right ? right++ : left++];
            }
        }
        int32_t *sorted = w->spare;
        w->spare = w->order;
        w->order = sorted;
    }
}

/* ---- 2. centres, to be merged, irrelevant ---------------------------------------------------- */
static void choose(struct work *w, struct range cand)
{
    enum { IRRELEVANT, TO_MERGE, IMPORTANT };
    const struct ems_cfg *cfg = w->cfg;
    int32_t all = cand.end - cand.first, centres = w->budget - cfg->window - cfg->sinks, n = 0;
    double total = 0, covered = 0;
    SF_ASSERT(centres >= 1 && centres < all);
    for (int32_t i = 0; i < all; i++) total += w->score[w->order[i]];
    for (int32_t i = 0; i < centres; i++) covered += w->score[w->order[i]];
    if (cfg->tbm_rule == FIXED) {
        double most = floor(cfg->tbm_ratio * centres);
        n = most < all - centres ? (int32_t)most : all - centres;
    } else {
        while (n < all - centres && covered < cfg->tbm_mass * total)
            covered += w->score[w->order[centres + n++]];
    }
    for (int32_t i = 0; i < all; i++)
        w->role[w->order[i]] = i < centres ? IMPORTANT : i < centres + n ? TO_MERGE : IRRELEVANT;
    w->centres = w->tokens = 0;
    for (int32_t j = cand.first; j < cand.end; j++) {
        if (w->role[j] == IMPORTANT) w->centre[w->centres++] = j;
        if (w->role[j] == TO_MERGE) w->token[w->tokens++] = j;
    }
}

/* ---- 3. the zero class or a centre ----------------------------------------------------------- */
static sf_status read_rows(struct work *w, const struct sf_lane *lane, const int32_t *ids,
                           int32_t n, int with_values)
{
    const struct sf_kernels *k = w->env->k;
    SF_ASSERT(n >= 1 && n <= ROWS);
    SF_TRY(sf_lane_read(lane, (struct sf_list){ .ids = ids, .n = n },
                        w->cfg->merge_space == PRE_ROPE, w->dev_k, with_values ? w->dev_v : NULL));
    k->download(w->env->device, w->k, w->dev_k->data,
                (size_t)n * (size_t)w->k_dim * sizeof(float));
    if (with_values)
        k->download(w->env->device, w->v, w->dev_v->data,
                    (size_t)n * (size_t)w->v_dim * sizeof(float));
    return SF_OK;
}

static double length_of(const float *x, int32_t dim)
{
    double sum = 0;
    for (int32_t e = 0; e < dim; e++) sum += (double)x[e] * (double)x[e];
    return sqrt(sum);
}

/* To length 1; a zero vector stays zero, so that its cosines are 0. */
static void normalise(float *x, int32_t dim)
{
    double length = length_of(x, dim);
    if (length > 0)
        for (int32_t e = 0; e < dim; e++) x[e] = (float)((double)x[e] / length);
}

static void pack(float *panel, int32_t centre, const float *x, int32_t dim)
{
    float *at = panel + (size_t)(centre / PANEL) * PANEL * (size_t)dim + centre % PANEL;
    for (int32_t e = 0; e < dim; e++) at[e * PANEL] = x[e];
}

static sf_status pack_centres(struct work *w, const struct sf_lane *lane)
{
    size_t padded = ((size_t)w->centres + PANEL - 1) / PANEL * PANEL;
    memset(w->panel_k, 0, padded * (size_t)w->k_dim * sizeof(float));
    memset(w->panel_v, 0, padded * (size_t)w->v_dim * sizeof(float));
    for (int32_t first = 0, n; first < w->centres; first += n) {
        n = w->centres - first < ROWS ? w->centres - first : ROWS;
        SF_TRY(read_rows(w, lane, w->centre + first, n, 1));
        for (int32_t i = 0; i < n; i++) {
            float *k = w->k + (size_t)i * (size_t)w->k_dim;
            float *v = w->v + (size_t)i * (size_t)w->v_dim;
            normalise(k, w->k_dim);
            normalise(v, w->v_dim);
            pack(w->panel_k, first + i, k, w->k_dim);
            pack(w->panel_v, first + i, v, w->v_dim);
        }
    }
    return SF_OK;
}

/* out[g][p] = row g . centre p, each summed in the order of its elements: no product depends on
 * its neighbours. */
static void dots(const float *rows, const float *panel, int32_t dim, float out[GROUP][PANEL])
{
    float sum[GROUP][PANEL] = { { 0 } };
    for (int32_t e = 0; e < dim; e++) {
        const float *column = panel + e * PANEL;
#pragma GCC unroll 4
        for (int g = 0; g < GROUP; g++) {
            float x = rows[(size_t)g * (size_t)dim + (size_t)e];
#pragma GCC unroll 8
            for (int p = 0; p < PANEL; p++) sum[g][p] += x * column[p];
        }
    }
    memcpy(out, sum, sizeof sum);
}

/* Rows of w->k and w->v, of length 1, against one panel; class and similarity of the best so far,
 * so that equal ones go to the lower class. */
static void compare(const struct work *w, int32_t rows, int32_t panel, float *best,
                    int32_t *class_of)
{
    const float *panel_k = w->panel_k + (size_t)panel * PANEL * (size_t)w->k_dim;
    const float *panel_v = w->panel_v + (size_t)panel * PANEL * (size_t)w->v_dim;
    int32_t left = w->centres - panel * PANEL, columns = left < PANEL ? left : PANEL;
    for (int32_t first = 0; first < rows; first += GROUP) {
        float cos_k[GROUP][PANEL], cos_v[GROUP][PANEL];
        dots(w->k + (size_t)first * (size_t)w->k_dim, panel_k, w->k_dim, cos_k);
        dots(w->v + (size_t)first * (size_t)w->v_dim, panel_v, w->v_dim, cos_v);
        for (int32_t g = 0; g < GROUP && first + g < rows; g++)
            for (int32_t p = 0; p < columns; p++) {
                float k = cos_k[g][p], v = cos_v[g][p];
                if (w->cfg->guard && k < 0) k = 0;
                if (w->cfg->guard && v < 0) v = 0;
                if (k * v <= best[first + g]) continue;
                best[first + g] = k * v;
                class_of[first + g] = panel * PANEL + p;
            }
    }
}

/* Fills class_of of all slots to be merged. */
static sf_status search(struct work *w, const struct sf_lane *lane)
{
    float best[ROWS];
    for (int32_t t = 0; t < w->tokens; t++) w->class_of[t] = -1;
    if (w->tokens == 0 || w->cfg->threshold >= 1) return SF_OK; /* no cosine is above 1 */
    SF_TRY(pack_centres(w, lane));
    for (int32_t first = 0, n; first < w->tokens; first += n) {
        n = w->tokens - first < ROWS ? w->tokens - first : ROWS;
        SF_TRY(read_rows(w, lane, w->token + first, n, 1));
        for (int32_t i = 0; i < ROWS; i++) {
            float *k = w->k + (size_t)i * (size_t)w->k_dim;
            float *v = w->v + (size_t)i * (size_t)w->v_dim;
            if (i >= n) memset(k, 0, (size_t)w->k_dim * sizeof *k);
            if (i >= n) memset(v, 0, (size_t)w->v_dim * sizeof *v);
            normalise(k, w->k_dim);
            normalise(v, w->v_dim);
            best[i] = (float)w->cfg->threshold;
        }
        for (int32_t panel = 0; panel * PANEL < w->centres; panel++)
            compare(w, n, panel, best, w->class_of + first);
    }
    return SF_OK;
}

/* ---- 4. the new lane ------------------------------------------------------------------------- */
/* Sources of every new slot: itself or, of a class, its centre and then what joins it. */
static void gather(struct work *w, const struct sf_lane *lane, struct range cand)
{
    int32_t *count = w->next, slots = 0, at = 0;
    for (int32_t c = 0; c < w->centres; c++) count[c] = 1;
    for (int32_t t = 0; t < w->tokens; t++)
        if (w->class_of[t] >= 0) count[w->class_of[t]]++;
    for (int32_t s = 0, c = 0; s < lane->slots; s++) {
        int inside = s >= cand.first && s < cand.end;
        if (inside && (c == w->centres || w->centre[c] != s)) continue;
        w->ptr[slots++] = at;
        w->src[at] = s;
        if (!inside) {
            at++;
        } else {
            at += count[c];
            w->next[c++] = w->ptr[slots - 1] + 1;
        }
    }
    w->ptr[slots] = at;
    SF_ASSERT(slots == w->budget && at <= lane->slots);
    for (int32_t t = 0; t < w->tokens; t++)
        if (w->class_of[t] >= 0) w->src[w->next[w->class_of[t]]++] = w->token[t];
}

/* All of new slot i but the weights of keys. */
static void describe(struct work *w, const struct sf_lane *lane, int32_t i)
{
    const uint32_t *aux = lane->aux;
    int32_t first = w->ptr[i], end = w->ptr[i + 1], centre = w->src[first];
    double total = 0, mass = 0;
    uint32_t count = 0;
    for (int32_t j = first; j < end; j++) {
        int32_t s = w->src[j];
        if (end - first > 1) total += w->score[s];
        if (lane->mass[0]) mass += (double)lane->mass[0][s];
        count += aux[s] > 0 ? aux[s] : 1;   /* a new slot has 0 */
    }
    for (int32_t j = first; j < end; j++) {
        w->k_weight[j] = w->v_weight[j] = 1;
        if (end - first == 1) break;
        w->v_weight[j] = (float)(total > 0 ? w->score[w->src[j]] / total : 1.0 / (end - first));
    }
    w->pos[i] = lane->pos[centre];
    w->bias[i] = lane->bias[centre];
    if (end - first > 1 && w->cfg->mass_bias == LOG_COUNT) w->bias[i] = (float)log(count);
    w->mass[i] = (float)mass;
    w->aux[i] = count;
}

/* Weights of the keys of class i from their lengths, which k_weight holds so far. */
static void weigh_keys(struct work *w, int32_t i, double rho)
{
    int32_t first = w->ptr[i];
    double length = 0;
    for (int32_t e = 0; e < w->k_dim; e++) length += w->u[e] * w->u[e];
    length = sqrt(length);
    for (int32_t j = first; j < w->ptr[i + 1]; j++) {
        double own = (double)w->k_weight[j], weight = 0;
        if (length >= 1e-6) {
            if (own > 0) weight = rho * (double)w->v_weight[j] / (length * own);
        } else if (j == first) {            /* they cancel out: the centre's own direction */
            weight = own > 0 ? rho / own : 1;
        }
        /* Of a key of almost no length nothing would be left by rounding anyway. */
        w->k_weight[j] = weight <= FLT_MAX ? (float)weight : 0;
    }
}

/* u and rho of every class that something joins, its keys read once more in the order of src. */
static sf_status merge_keys(struct work *w, const struct sf_lane *lane)
{
    int32_t *ids = w->spare, n = 0, at = 0;
    for (int32_t i = 0; i < w->budget; i++)
        for (int32_t j = w->ptr[i]; j < w->ptr[i + 1]; j++)
            if (w->ptr[i + 1] - w->ptr[i] > 1) ids[n++] = w->src[j];
    for (int32_t i = 0; i < w->budget; i++) {
        if (w->ptr[i + 1] - w->ptr[i] == 1) continue;
        double rho = 0;
        memset(w->u, 0, (size_t)w->k_dim * sizeof *w->u);
        for (int32_t j = w->ptr[i]; j < w->ptr[i + 1]; j++, at++) {
            if (at % ROWS == 0)
                SF_TRY(read_rows(w, lane, ids + at, n - at < ROWS ? n - at : ROWS, 0));
            const float *k = w->k + (size_t)(at % ROWS) * (size_t)w->k_dim;
            double length = length_of(k, w->k_dim), share = (double)w->v_weight[j];
            for (int32_t e = 0; e < w->k_dim && length > 0; e++)
                w->u[e] += share / length * (double)k[e];
            if (w->cfg->key_norm == WEIGHTED) rho += share * length;
            else if (j == w->ptr[i]) rho = length;
            w->k_weight[j] = (float)length;
        }
        weigh_keys(w, i, rho);
    }
    return SF_OK;
}

static sf_status compress_lane(struct work *w, const struct sf_lane *lane, int32_t tokens,
                               struct sf_answer *answer)
{
    const struct sf_layer *layer = &w->env->setup->layer[lane->layer];
    struct range cand = candidates(w->cfg, lane);
    w->budget = lane->slots_keep;
    w->k_dim = k_dim_of(layer);
    w->v_dim = v_dim_of(layer);
    score(w, lane, cand, tokens);
    sort(w, cand);
    choose(w, cand);
    SF_TRY(search(w, lane));
    gather(w, lane, cand);
    for (int32_t i = 0; i < w->budget; i++) describe(w, lane, i);
    SF_TRY(merge_keys(w, lane));
    const struct sf_mix mix = { .slots = w->budget,
                                .flags = w->cfg->merge_space == PRE_ROPE ? SF_MIX_ROTATE : 0,
                                .ptr = w->ptr, .src = w->src,
                                .k_weight = w->k_weight, .v_weight = w->v_weight, .pos = w->pos,
                                .bias = w->bias, .mass = { lane->mass[0] ? w->mass : NULL, NULL },
                                .aux = w->aux };
    return sf_edit_mix(answer, lane, &mix);
}

/* ---- 5. budgets of the heads of a layer ------------------------------------------------------ */
/* With head_budget sparsity a layer's budgets are set at its first event: the end of a prompt
 * longer than the budget, else when its lanes are full for the first time, all at once. */
static int is_first(const struct ems_cfg *cfg, const struct sf_span *span, enum sf_when when)
{
    if (cfg->head_budget != SPARSITY) return 0;
    if (when == SF_AT_PREFILL_END) return span->prompt > cfg->budget;
    return span->prompt <= cfg->budget && span->tokens == cfg->budget + interval_of(cfg);
}

/* The fewest candidates, from the highest score down, that hold 90 % of it. */
static int64_t need_of(struct work *w, const struct sf_lane *lane, int32_t tokens)
{
    struct range cand = candidates(w->cfg, lane);
    double total = 0, covered = 0;
    int32_t n = 0;
    score(w, lane, cand, tokens);
    sort(w, cand);
    for (int32_t i = 0; i < cand.end - cand.first; i++) total += w->score[w->order[i]];
    while (n < cand.end - cand.first && covered < 0.9 * total) covered += w->score[w->order[n++]];
    return n;
}

/* Every rank counts the needs of its own heads, all sum them, and share out the same. */
static sf_status set_budgets(struct work *w, enum sf_when when, const struct sf_batch *batch,
                             struct sf_answer *answer)
{
    const struct sf_setup *setup = w->env->setup;
    int32_t groups = setup->layer[batch->span[0].lane[0].layer].groups, least = least_of(w->cfg);
    size_t room = (size_t)groups * sizeof(int64_t);
    int64_t *need = sf_scratch(w->env, room), *share = sf_scratch(w->env, room);
    if (!need || !share) return SF_FAIL(SF_NO_MEMORY, "ems: no scratch for %d heads", groups);
    for (int32_t i = 0; i < batch->spans; i++) {
        const struct sf_span *span = &batch->span[i];
        if (!is_first(w->cfg, span, when)) continue;
        memset(need, 0, room);
        for (int32_t l = 0; l < span->lanes; l++)
            if (span->lane[l].replica == 0)
                need[span->lane[l].head_global] = need_of(w, &span->lane[l], span->tokens);
        SF_TRY(sf_reduce_i64(w->env, need, groups, SF_FOLD_SUM));
        sf_share_out(need, groups, (int64_t)groups * (w->cfg->budget - least), share);
        for (int32_t l = 0; l < span->lanes; l++) {
            int32_t own = least + (int32_t)share[span->lane[l].head_global];
            SF_TRY(sf_edit_budget(answer, &span->lane[l], own, own + interval_of(w->cfg)));
        }
    }
    return SF_OK;
}

static int is_due(const struct sf_lane *lane, const struct sf_span *span, enum sf_when when,
                  const struct ems_cfg *cfg)
{
    if (when == SF_AT_FULL && !is_first(cfg, span, when) && lane->slots < lane->slots_trigger)
        return 0;
    return lane->slots > lane->slots_keep;
}

static sf_status ems_compress(const struct sf_env *env, enum sf_when when,
                              const struct sf_batch *batch, struct sf_answer *answer)
{
    const struct ems_cfg *cfg = env->setup->cfg;
    int32_t most = 0, first = 0;
    struct work work;
    for (int32_t i = 0; i < batch->spans; i++)
        for (int32_t l = 0; l < batch->span[i].lanes; l++) {
            const struct sf_lane *lane = &batch->span[i].lane[l];
            first |= is_first(cfg, &batch->span[i], when);
            if (lane->slots > lane->slots_keep || is_due(lane, &batch->span[i], when, cfg))
                most = lane->slots > most ? lane->slots : most;
        }
    if (most == 0) return SF_OK;
    SF_TRY(work_open(&work, env, most));
    if (first) SF_TRY(set_budgets(&work, when, batch, answer));
    for (int32_t i = 0; i < batch->spans; i++) {
        const struct sf_span *span = &batch->span[i];
        for (int32_t l = 0; l < span->lanes; l++)
            if (is_due(&span->lane[l], span, when, cfg))
                SF_TRY(compress_lane(&work, &span->lane[l], span->tokens, answer));
    }
    return SF_OK;
}

static const struct sf_policy_ops ems_policy = {
    .plan = ems_plan, .footprint = ems_footprint, .shape = ems_shape, .compress = ems_compress };

extern const struct sf_method sf_method_ems;
const struct sf_method sf_method_ems = {
    .name = "ems", .paper = "EMS: evict then merge (arXiv 2412.08521)", .opts = ems_opts,
    .cfg_bytes = sizeof(struct ems_cfg), .policy = &ems_policy };
