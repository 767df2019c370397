/* kvshard/methods/razor_attention.c: retrieval heads keep all, others a window and a mean slot.
 *
 * Paper      Tang et al., RazorAttention (arXiv 2407.15891); heads are KV heads, as in its
 *            authors' code
 * Kept       of a retrieval head all slots.  Of every other the first N0 = num_sink_tokens, the
 *            last L = max(min_window_tokens, ceil(N / window_divisor)) of a prompt of N tokens, and
 *            one compensation slot for all between them:
 *                [ sinks 0 .. N0-1 ][ slot of D, pos N0 ][ n-L .. n-1 and what came since ]
 * Equations  k^ = mean of k over D, v^ = mean of v over D, keys after RoPE; the slot's bias is
 *            ln |D|, which gives |D| e^(q.k^) in the softmax
 * When       once at the end of the prompt, if D has min_dropped_tokens or more; with decode_update
 *            rolling also whenever fold_tokens more lie before the last L: they are folded in,
 *                k^ <- (N_d k^ + sum of their keys) / (N_d + fold_tokens)
 *            A lane that dropped nothing yet does so as soon as D has min_dropped_tokens
 * Heads      by calibration, once a model: a block of R random tokens, four times over, through
 *            the exact model; with P the attention of a query head and i a row of a later copy,
 *                echo(i)      = sum over c of P[i, i - cR]        the same token before
 *                induction(i) = sum over c of P[i, i - cR + 1]    what came after it
 *            a head's score is the mean over i, a KV head's the largest of its query heads; the
 *            induction_head_ratio and echo_head_ratio best of all KV heads are the set
 * Crosses    nothing in a run; calibration gathers two numbers of each query head
 * State      none: N_d follows from the numbers of tokens.  The compensation slot is kept in f32,
 *            whatever kv_cache.dtype is, so that folding does not round it: one page of tier 1 a
 *            lane
 * Ratio      15 % retrieval heads, 32,768 tokens, window_divisor 5: 0.15 + 0.85 / 5 = 0.32
 * Differs    the paper is silent about long answers (rolling is ours) and about how few tokens are
 *            not worth it; layers with a window of their own stay exact.  Calibration draws tokens
 *            without repetition: one that stands twice in the block has two befores */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/opt.h"
#include "base/rng.h"
#include "kvshard/codec.h"
#include "kvshard/policy.h"
#include "kvshard/profile.h"
#include "model/desc.h"

enum { ROLLING, FREEZE };
enum { MEAN_TIER = 1 };                 /* of the compensation slot */
enum { GROUP_MAX, PROMOTE };
struct razor_cfg {
    char profile[SF_OPT_TEXT_MAX], model_sha256[SF_OPT_TEXT_MAX];
    struct sf_opt_pairs heads;          /* layer, KV head */
    int32_t num_sink_tokens, min_window_tokens, window_divisor, min_dropped_tokens, fold_tokens;
    int32_t decode_update;
    uint8_t compensation;
    /* of calibration */
    double induction_ratio, echo_ratio;
    int32_t gqa_rule, block_tokens;
    int64_t seed;
};

static const char *const updates[] = { "rolling", "freeze", NULL };
static const char *const gqa_rules[] = { "group_max", "promote", NULL };
#define AT(field) .offset = offsetof(struct razor_cfg, field), .built = 1
static const struct sf_opt razor_opts[] = {
    { .key = "profile", .type = SF_OPT_STRING, AT(profile), .fallback = "",
      .aliases = "head_profile", .help = "YAML file with retrieval_heads" },
    { .key = "retrieval_heads", .type = SF_OPT_PAIRS, AT(heads), .fallback = "auto",
      .allow_auto = 1, .min = 0, .max = 100000,
      .help = "[layer, KV head] of those that keep all; auto: as the profile says" },
    { .key = "model_sha256", .type = SF_OPT_STRING, AT(model_sha256), .fallback = "",
      .help = "digest of the model that the heads are of; another one is refused" },
    { .key = "num_sink_tokens", .type = SF_OPT_INT32, AT(num_sink_tokens), .fallback = "4",
      .min = 0, .max = 1024, .aliases = "sink_tokens exact_first_tokens", .unit = "slots",
      .help = "first slots, never evicted" },
    { .key = "min_window_tokens", .type = SF_OPT_INT32, AT(min_window_tokens), .fallback = "4000",
      .min = 1, .max = 1 << 24, .unit = "slots", .help = "the window is at least so long" },
    { .key = "window_divisor", .type = SF_OPT_INT32, AT(window_divisor), .fallback = "5",
      .min = 1, .max = 1 << 20, .help = "and at least this part of the prompt" },
    { .key = "use_compensation_token", .type = SF_OPT_BOOL, AT(compensation), .fallback = "true",
      .help = "a mean slot stands for what is dropped" },
    { .key = "min_dropped_tokens", .type = SF_OPT_INT32, AT(min_dropped_tokens), .fallback = "64",
      .min = 1, .max = 1 << 20, .unit = "tokens", .help = "a head stays exact for fewer" },
    { .key = "decode_update", .type = SF_OPT_ENUM, AT(decode_update), .fallback = "rolling",
      .choices = updates, .help = "whether the window moves on while the answer grows" },
    { .key = "fold_tokens", .type = SF_OPT_INT32, AT(fold_tokens), .fallback = "16", .min = 1,
      .max = 1 << 20, .unit = "tokens", .help = "so many leave a rolling window at once" },
    /* read by calibrate alone: */
    { .key = "induction_head_ratio", .type = SF_OPT_FLOAT, AT(induction_ratio),
      .fallback = "0.14", .min = 0, .max = 1,
      .help = "calibrate: this part of all heads is kept for what came after a token before" },
    { .key = "echo_head_ratio", .type = SF_OPT_FLOAT, AT(echo_ratio), .fallback = "0.01",
      .min = 0, .max = 1, .help = "calibrate: and this part for the same token before" },
    { .key = "gqa_rule", .type = SF_OPT_ENUM, AT(gqa_rule), .fallback = "group_max",
      .choices = gqa_rules,
      .help = "calibrate: the ratios count KV heads, by their best query head, or query heads, of"
              " which each promotes its KV head" },
    { .key = "calibration_block_tokens", .type = SF_OPT_INT32, AT(block_tokens),
      .fallback = "2500", .min = 2, .max = 1 << 22, .unit = "tokens",
      .help = "calibrate: random tokens, fed four times over; fewer where the model holds fewer" },
    { .key = "calibration_seed", .type = SF_OPT_INT64, AT(seed), .fallback = "0",
      .help = "calibrate: draws them" },
    { .key = NULL }
};

/* ---- when and how much ---------------------------------------------------------------------- */
/* What happens to the lanes of a prompt, as counts of tokens. */
struct course {
    int32_t window, first;              /* L; tokens at the first fold, INT32_MAX: never */
    int32_t slots;                      /* left by every fold */
};

static struct course course_of(const struct razor_cfg *cfg, int32_t prompt)
{
    int32_t part = (int32_t)(((int64_t)prompt + cfg->window_divisor - 1) / cfg->window_divisor);
    struct course c = { .window = part > cfg->min_window_tokens ? part : cfg->min_window_tokens };
    int64_t least = (int64_t)cfg->num_sink_tokens + c.window + cfg->min_dropped_tokens;
    c.slots = cfg->num_sink_tokens + c.window + cfg->compensation;
    if (prompt >= least) c.first = prompt;
    else c.first = cfg->decode_update == ROLLING && least < INT32_MAX ? (int32_t)least : INT32_MAX;
    return c;
}

/* Whether the lane is folded when it has `tokens`. */
static int folds_at(const struct razor_cfg *cfg, const struct course *c, int32_t tokens)
{
    if (tokens <= c->first) return tokens == c->first;
    return cfg->decode_update == ROLLING && (tokens - c->first) % cfg->fold_tokens == 0;
}

static const char *razor_idle(const struct sf_setup *setup, const struct sf_spot *spot)
{
    const struct razor_cfg *cfg = setup->cfg;
    struct course c = course_of(cfg, spot->prompt);
    if (spot->tokens >= c.first) return NULL;
    return cfg->decode_update == ROLLING
               ? "fewer tokens than sinks, window and min_dropped_tokens together"
               : "prompts shorter than sinks, window and min_dropped_tokens together";
}

static sf_status razor_shape(const struct sf_setup *setup, struct sf_shape *shape)
{
    const struct razor_cfg *cfg = setup->cfg;
    if (cfg->heads.count == SF_OPT_AUTO)
        return SF_FAIL(SF_INVALID, "method razor_attention has no head set; give profile: FILE or"
                       " retrieval_heads: [[layer, head], ...]");
    for (int32_t l = 0; l < setup->layers; l++)
        for (int32_t h = 0; h < setup->layer[l].groups; h++) {
            int32_t lane = setup->layer[l].lane_first + h;
            shape->head_class[lane] = SF_HEAD_OTHER;    /* also where `layers:` leaves it out */
            if (setup->layer[l].window != 0) shape->acts_on[lane] = 0;
        }
    for (int32_t i = 0; i < cfg->heads.count; i++) {
        int32_t l = cfg->heads.value[i][0], h = cfg->heads.value[i][1];
        if (l >= setup->layers || h >= setup->layer[l].groups)
            return SF_FAIL(SF_INVALID, "method razor_attention: retrieval_heads has [%d, %d], but"
                           " the model has %d layers and %d KV heads in a layer", l, h,
                           setup->layers, setup->layer[l < setup->layers ? l : 0].groups);
        int32_t lane = setup->layer[l].lane_first + h;
        shape->head_class[lane] = SF_HEAD_RETRIEVAL;
        shape->acts_on[lane] = 0;
    }
    return SF_OK;
}

static sf_status razor_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    const struct razor_cfg *cfg = setup->cfg;
    plan->whens = 1u << SF_AT_PREFILL_END;
    if (cfg->decode_update == ROLLING) plan->whens |= 1u << SF_AT_FULL;
    plan->edits = cfg->compensation ? SF_EDITS_MIX : SF_EDITS_KEEP;
    if (cfg->compensation) {
        plan->tiers = 2;
        plan->tier[MEAN_TIER] = sf_tier_raw_f32();
    }
    plan->sink_tokens = cfg->num_sink_tokens;
    plan->tail_tokens = cfg->min_window_tokens;
    plan->prefix = SF_PREFIX_KV;
    plan->scratch_bytes = ((int64_t)setup->tokens_max + 2) * 32;
    return SF_OK;
}

static sf_status razor_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                                 struct sf_foot *foot)
{
    const struct razor_cfg *cfg = setup->cfg;
    struct course c = course_of(cfg, spot->prompt);
    int32_t since = spot->tokens - c.first, slots = spot->tokens;
    if (since >= 0)
        slots = c.slots + (cfg->decode_update == ROLLING ? since % cfg->fold_tokens : since);
    int32_t mean = since >= 0 && cfg->compensation;
    foot->slots_lo[0] = foot->slots_hi[0] = slots - mean;
    foot->slots_lo[MEAN_TIER] = foot->slots_hi[MEAN_TIER] = mean;
    foot->slots_peak = since >= 0 ? c.first : spot->tokens;
    foot->slots_keep = c.slots;
    if (cfg->decode_update == FREEZE) return SF_OK;
    /* The first fold may come earlier or later in a lane than all others; until then its own number
     * of slots is the trigger, if that is lower. */
    foot->slots_trigger = c.slots + cfg->fold_tokens;
    if (since < 0 && c.first < foot->slots_trigger) foot->slots_trigger = c.first;
    return SF_OK;
}

/* ---- folding -------------------------------------------------------------------------------- */
struct scratch {
    int32_t *ptr, *src, *pos;
    float *weight, *bias;
    uint8_t *tier;
};

/* The lane with the `folded` slots behind the sinks in one, which stands for so many tokens. */
static sf_status fold(struct sf_answer *answer, const struct sf_lane *lane, int32_t sinks,
                      int32_t folded, int32_t stands_for, struct scratch *s)
{
    int32_t slots = lane->slots - folded + 1;
    for (int32_t i = 0; i < slots; i++) {
        s->ptr[i] = i <= sinks ? i : i + folded - 1;
        s->pos[i] = lane->pos[s->ptr[i]];
        s->bias[i] = lane->bias[s->ptr[i]];
        s->tier[i] = i == sinks ? MEAN_TIER : 0;
    }
    s->ptr[slots] = lane->slots;
    for (int32_t j = 0; j < lane->slots; j++) {
        s->src[j] = j;
        s->weight[j] = 1;
    }
    int32_t before = stands_for - (folded - 1);     /* of the first one, folded earlier or not */
    for (int32_t j = sinks; j < sinks + folded; j++)
        s->weight[j] = (float)((j == sinks ? before : 1) / (double)stands_for);
    s->bias[sinks] = (float)log(stands_for);
    const struct sf_mix mix = { .slots = slots, .flags = SF_MIX_FOLD, .ptr = s->ptr, .src = s->src,
                                .k_weight = s->weight, .v_weight = s->weight, .pos = s->pos,
                                .bias = s->bias, .tier = s->tier };
    return sf_edit_mix(answer, lane, &mix);
}

static sf_status drop(struct sf_answer *answer, const struct sf_lane *lane, int32_t sinks,
                      int32_t dropped, struct scratch *s)
{
    int32_t n = 0;
    for (int32_t i = 0; i < lane->slots; i++)
        if (i < sinks || i >= sinks + dropped) s->src[n++] = i;
    return sf_edit_keep(answer, lane, (struct sf_list){ .ids = s->src, .n = n });
}

static sf_status razor_compress(const struct sf_env *env, enum sf_when when,
                                const struct sf_batch *batch, struct sf_answer *answer)
{
    const struct razor_cfg *cfg = env->setup->cfg;
    size_t room = (size_t)env->setup->tokens_max + 2;
    struct scratch s = { .ptr = sf_scratch(env, room * 4), .src = sf_scratch(env, room * 4),
                         .pos = sf_scratch(env, room * 4), .weight = sf_scratch(env, room * 4),
                         .bias = sf_scratch(env, room * 4), .tier = sf_scratch(env, room) };
    (void)when;
    if (!s.ptr || !s.src || !s.pos || !s.weight || !s.bias || !s.tier)
        return SF_FAIL(SF_NO_MEMORY, "razor_attention: no scratch for %zu slots", room);
    for (int32_t i = 0; i < batch->spans; i++) {
        const struct sf_span *span = &batch->span[i];
        struct course c = course_of(cfg, span->prompt);
        int32_t outside = span->tokens - cfg->num_sink_tokens - c.window;
        if (!folds_at(cfg, &c, span->tokens)) continue;
        for (int32_t l = 0; l < span->lanes; l++) {
            const struct sf_lane *lane = &span->lane[l];
            int32_t gone = lane->slots - cfg->num_sink_tokens - c.window;
            SF_ASSERT(gone >= 1 && (size_t)lane->slots < room);
            if (cfg->compensation)
                SF_TRY(fold(answer, lane, cfg->num_sink_tokens, gone, outside, &s));
            else
                SF_TRY(drop(answer, lane, cfg->num_sink_tokens, gone, &s));
        }
    }
    return SF_OK;
}

static const struct sf_policy_ops razor_policy = {
    .plan = razor_plan, .footprint = razor_footprint, .shape = razor_shape, .idle = razor_idle,
    .compress = razor_compress };

/* ---- calibration: which heads --------------------------------------------------------------- */
enum { COPIES = 4, BLOCK_MIN = 2, INDUCTION = 0, ECHO = 1, COLUMNS = 2 };

/* Scores of this rank's query heads, then of all. */
struct learnt {
    double *score;                      /* [query heads of the model][COLUMNS] */
    int32_t *q_before;                  /* [layers + 1] query heads of earlier layers */
};

static int32_t bos_rows(const struct sf_setup *setup) { return setup->model->bos >= 0; }
/* R of a sequence */
static int32_t block_of(const struct sf_setup *setup, int32_t tokens)
{
    return (tokens - bos_rows(setup)) / COPIES;
}

static sf_status razor_calib_plan(const struct sf_setup *setup, const struct sf_calib_vocab *vocab,
                                  struct sf_calib_plan *plan)
{
    const struct razor_cfg *cfg = setup->cfg;
    int32_t block = cfg->block_tokens, most = block_of(setup, setup->tokens_max);
    if (most < block) block = most;
    if (vocab->count < block) block = vocab->count;
    if (block < BLOCK_MIN)
        return SF_FAIL(SF_INVALID, "method razor_attention needs a block of %d tokens or more %d"
                       " times over, and the model holds %d tokens of a vocabulary of %d",
                       BLOCK_MIN, COPIES, setup->tokens_max, vocab->count);
    if (block < cfg->block_tokens)
        sf_log(SF_LOG_INFO, "razor_attention: a block of %d tokens, not of %d: the model holds %d"
               " tokens of a vocabulary of %d", block, cfg->block_tokens, setup->tokens_max,
               vocab->count);
    plan->taps = 1u << SF_TAP_Q | 1u << SF_TAP_K | 1u << SF_TAP_ROW_LSE;
    plan->passes = plan->sequences = 1;
    plan->tokens = bos_rows(setup) + COPIES * block;
    return SF_OK;
}

/* [bos] block block block block; a block: the first R of the ordinary ids, shuffled. */
static sf_status razor_input(const struct sf_setup *setup, const struct sf_calib_vocab *vocab,
                             int32_t sequence, int32_t tokens, int32_t *token_out)
{
    const struct razor_cfg *cfg = setup->cfg;
    int32_t block = block_of(setup, tokens), bos = bos_rows(setup);
    size_t bytes = (size_t)vocab->count * sizeof(int32_t);
    int32_t *deck = malloc(bytes);
    if (deck == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d token ids", vocab->count);
    memcpy(deck, vocab->ordinary, bytes);
    if (bos) token_out[0] = setup->model->bos;
    for (int32_t i = 0; i < block; i++) {
        double u = sf_rng_uniform((uint64_t)cfg->seed, (uint64_t)sequence, (uint64_t)i);
        int32_t j = i + (int32_t)(u * (vocab->count - i)), drawn = deck[j];
        deck[j] = deck[i];
        deck[i] = drawn;
        for (int32_t c = 0; c < COPIES; c++) token_out[bos + c * block + i] = drawn;
    }
    free(deck);
    return SF_OK;
}

static void razor_close(struct sf_env *env)
{
    struct learnt *learnt = env->self;
    if (learnt == NULL) return;
    free(learnt->score);
    free(learnt->q_before);
    free(learnt);
    env->self = NULL;
}

static sf_status razor_open(struct sf_env *env)
{
    const struct sf_setup *setup = env->setup;
    struct learnt *learnt = env->self = calloc(1, sizeof *learnt);
    if (learnt == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for scores");
    learnt->q_before = calloc((size_t)setup->layers + 1, sizeof *learnt->q_before);
    if (learnt->q_before != NULL) {
        for (int32_t l = 0; l < setup->layers; l++)
            learnt->q_before[l + 1] = learnt->q_before[l] + setup->layer[l].q_heads;
        learnt->score = calloc((size_t)learnt->q_before[setup->layers] * COLUMNS,
                               sizeof *learnt->score);
    }
    if (learnt->score != NULL) return SF_OK;
    razor_close(env);
    return SF_FAIL(SF_NO_MEMORY, "no memory for the scores of %d layers", setup->layers);
}

static double dot(const float *a, const float *b, int32_t n)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

/* Six weights of a row at most: no row of P is ever there. */
static sf_status razor_feed(const struct sf_env *env, const struct sf_taps *taps)
{
    const struct learnt *learnt = env->self;
    int32_t bos = bos_rows(env->setup), block = block_of(env->setup, taps->tokens);
    double rows = (double)(COPIES - 1) * block;
    size_t dim = (size_t)taps->k_dim;
    if (env->setup->layer[taps->layer].window != 0) return SF_OK;
    for (int32_t h = 0; h < taps->q_heads; h++) {
        double echo = 0, induction = 0;
        for (int32_t r = 0; r < taps->rows; r++) {
            int32_t i = taps->row_first + r - bos;
            const float *q = taps->q + (size_t)r * taps->q_stride + (size_t)h * dim;
            double lse = (double)taps->lse[(size_t)r * taps->lse_stride + (size_t)h];
            for (int32_t at = i - block; at >= 0; at -= block) {
                const float *k = taps->k + (size_t)(bos + at) * dim;
                echo += exp((double)taps->scale * dot(q, k, taps->k_dim) - lse);
                induction += exp((double)taps->scale * dot(q, k + dim, taps->k_dim) - lse);
            }
        }
        double *score = learnt->score +
                        (size_t)(learnt->q_before[taps->layer] + taps->q_first + h) * COLUMNS;
        score[INDUCTION] += induction / rows;
        score[ECHO] += echo / rows;
    }
    return SF_OK;
}

static sf_status razor_reduce(const struct sf_env *env, const struct sf_calib_ranks *ranks)
{
    const struct learnt *learnt = env->self;
    return ranks->sum(ranks, learnt->score,
                      (size_t)learnt->q_before[env->setup->layers] * COLUMNS);
}

static sf_status razor_write(const struct sf_env *env, void *config, int32_t tokens,
                             struct sf_profile *profile)
{
    const struct sf_setup *setup = env->setup;
    const struct learnt *learnt = env->self;
    struct razor_cfg *cfg = config;
    cfg->block_tokens = block_of(setup, tokens);
    sf_profile_note_int(profile, "copies", COPIES);
    sf_profile_note_int(profile, "tokens", tokens);
    for (int32_t l = 0; l < setup->layers; l++) {
        const struct sf_layer *layer = &setup->layer[l];
        int32_t group = layer->q_heads / layer->groups;
        for (int32_t head = 0; head < layer->groups && layer->window == 0; head++) {
            struct sf_profile_row *row;
            SF_TRY(sf_profile_add(profile, l, head, COLUMNS, group, &row));
            for (int32_t h = 0; h < group; h++)
                for (int32_t c = 0; c < COLUMNS; c++)
                    row->value[c * group + h] =
                        learnt->score[(size_t)(learnt->q_before[l] + head * group + h) * COLUMNS +
                                      (size_t)c];
        }
    }
    return SF_OK;
}

/* ---- the choice ----------------------------------------------------------------------------- */
/* The k best of a column, each a KV head (by its best query head) or a query head: marks rows. */
static sf_status mark_best(const struct sf_profile *profile, int32_t column, double ratio,
                           int by_query_head, uint8_t *marked)
{
    int32_t n = 0, heads = 0;
    for (int32_t i = 0; i < profile->rows; i++) heads += profile->row[i].q_heads;
    float *score = calloc((size_t)heads + 1, sizeof *score);
    int32_t *row = calloc((size_t)heads + 1, sizeof *row);
    int32_t *best = calloc((size_t)heads + 1, sizeof *best);
    sf_status status = SF_OK;
    if (score == NULL || row == NULL || best == NULL) {
        status = SF_FAIL(SF_NO_MEMORY, "no memory to rank %d heads", heads);
        goto done;
    }
    for (int32_t i = 0; i < profile->rows; i++) {
        const double *value = profile->row[i].value + column * profile->row[i].q_heads;
        for (int32_t h = 0; h < profile->row[i].q_heads; h++) {
            if (h == 0 || by_query_head) row[n++] = i;
            if (row[n - 1] == i && (h == 0 || by_query_head || (float)value[h] > score[n - 1]))
                score[n - 1] = (float)value[h];
        }
    }
    int32_t k = (int32_t)(ratio * n + 0.5);
    if (k == 0 && ratio > 0)
        sf_log(SF_LOG_WARN, "razor_attention: %g of %d heads is none of them", ratio, n);
    k = sf_top_k(score, n, k, best);
    for (int32_t i = 0; i < k; i++) marked[row[best[i]]] = 1;
done:
    free(score);
    free(row);
    free(best);
    return status;
}

static sf_status razor_choose(void *config, const struct sf_profile *profile)
{
    struct razor_cfg *cfg = config;
    int promote = cfg->gqa_rule == PROMOTE;
    uint8_t *marked = calloc((size_t)profile->rows + 1, 1);
    if (marked == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory to rank %d heads", profile->rows);
    sf_status status = mark_best(profile, INDUCTION, cfg->induction_ratio, promote, marked);
    if (status == SF_OK) status = mark_best(profile, ECHO, cfg->echo_ratio, promote, marked);
    cfg->heads.count = 0;
    for (int32_t i = 0; i < profile->rows && status == SF_OK; i++) {
        if (!marked[i]) continue;
        if (cfg->heads.count == SF_OPT_PAIRS_MAX) {
            status = SF_FAIL(SF_INVALID, "razor_attention: more than %d retrieval heads",
                             SF_OPT_PAIRS_MAX);
            break;
        }
        int32_t *pair = cfg->heads.value[cfg->heads.count++];
        pair[0] = profile->row[i].layer;
        pair[1] = profile->row[i].head;
    }
    free(marked);
    return status;
}

static const char *const columns[] = { "induction", "echo", NULL };
static const struct sf_calib_opt calib_opts[] = {
    { "retrieval_heads", SF_CALIB_RESULT }, { "model_sha256", SF_CALIB_RESULT },
    { "induction_head_ratio", SF_CALIB_CHOICE }, { "echo_head_ratio", SF_CALIB_CHOICE },
    { "gqa_rule", SF_CALIB_CHOICE }, { "calibration_block_tokens", SF_CALIB_RUN },
    { "calibration_seed", SF_CALIB_RUN }, { NULL, SF_CALIB_NONE }
};
static const struct sf_calib_ops razor_calib = {
    .about = "# Retrieval heads keep every token, all other heads a window.  retrieval_heads is\n"
             "# what a run reads: take lines out or add some as you like.  The scores are what it\n"
             "# was chosen from, for each query head of a KV head: the mean attention that tokens\n"
             "# of a repeated random block give to the same token of earlier copies (echo) and to\n"
             "# the one after it (induction).  sheaf calibrate --from chooses from them anew.\n",
    .opts = calib_opts,
    .columns = columns, .plan = razor_calib_plan, .input = razor_input, .open = razor_open,
    .close = razor_close, .feed = razor_feed, .reduce = razor_reduce, .write = razor_write,
    .choose = razor_choose };

extern const struct sf_method sf_method_razor_attention;
const struct sf_method sf_method_razor_attention = {
    .name = "razor_attention", .paper = "Tang et al., RazorAttention (arXiv 2407.15891)",
    .opts = razor_opts, .cfg_bytes = sizeof(struct razor_cfg), .policy = &razor_policy,
    .calib = &razor_calib };
