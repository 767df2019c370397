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
 * Crosses    nothing in a run; the head set is the model's, made once by calibration
 * State      none: N_d follows from the numbers of tokens.  The compensation slot is kept in f32,
 *            whatever kv_cache.dtype is, so that folding does not round it: one page of tier 1 a
 *            lane
 * Ratio      15 % retrieval heads, 32,768 tokens, window_divisor 5: 0.15 + 0.85 / 5 = 0.32
 * Differs    the paper is silent about long answers (rolling is ours) and about how few tokens are
 *            not worth it; layers with a window of their own stay exact */
#include <math.h>
#include <stddef.h>

#include "base/opt.h"
#include "kvshard/codec.h"
#include "kvshard/policy.h"

enum { ROLLING, FREEZE };
enum { MEAN_TIER = 1 };                 /* of the compensation slot */
struct razor_cfg {
    char profile[SF_OPT_TEXT_MAX], model_sha256[SF_OPT_TEXT_MAX];
    struct sf_opt_pairs heads;          /* layer, KV head */
    int32_t num_sink_tokens, min_window_tokens, window_divisor, min_dropped_tokens, fold_tokens;
    int32_t decode_update;
    uint8_t compensation;
};

static const char *const updates[] = { "rolling", "freeze", NULL };
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
    .plan = razor_plan, .footprint = razor_footprint, .shape = razor_shape,
    .compress = razor_compress };

extern const struct sf_method sf_method_razor_attention;
const struct sf_method sf_method_razor_attention = {
    .name = "razor_attention", .paper = "Tang et al., RazorAttention (arXiv 2407.15891)",
    .opts = razor_opts, .cfg_bytes = sizeof(struct razor_cfg), .policy = &razor_policy };
