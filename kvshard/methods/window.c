/* kvshard/methods/window.c: attention sinks and a recent window.
 *
 * Paper      Xiao et al., Efficient Streaming Language Models with Attention Sinks (ICLR 2024)
 * Kept       of each lane the first `num_sink_tokens` and the last `recent_tokens` slots, raw, with
 *            their original positions
 * Equations  none: with S sinks, R recent and n tokens the kept set is
 *                { 0 .. S-1 } u { n-R .. n-1 }       if n > S + R, else all
 * When       the prompt is attended in full; then at its end and after each decode step, so that a
 *            decode row sees at most S + R + 1 slots
 * Crosses    nothing: no head, layer or rank knows of another
 * State      none beyond the slots
 * Ratio      S = 4, R = 1024 at 8,192 tokens: 1,028 / 8,192 = 0.125
 * Differs    the paper renumbers positions inside the window; here a slot keeps its position for
 *            ever, as everywhere in sheaf, so answers stay those of the same keys */
#include <stddef.h>

#include "base/opt.h"
#include "kvshard/policy.h"

struct window_cfg { int32_t num_sink_tokens, recent_tokens; };

static const struct sf_opt window_opts[] = {
    { .key = "num_sink_tokens", .type = SF_OPT_INT32,
      .offset = offsetof(struct window_cfg, num_sink_tokens), .fallback = "4", .min = 0,
      .max = 1024, .built = 1, .aliases = "sink_tokens exact_first_tokens", .unit = "slots",
      .help = "first slots, never evicted" },
    { .key = "recent_tokens", .type = SF_OPT_INT32,
      .offset = offsetof(struct window_cfg, recent_tokens), .fallback = "1024", .min = 1,
      .max = 1 << 20, .built = 1, .aliases = "window_size recent_window local_len",
      .unit = "slots", .help = "last slots, never evicted" },
    { .key = NULL }
};

static sf_status window_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    const struct window_cfg *cfg = setup->cfg;
    plan->whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_FULL;
    plan->edits = SF_EDITS_KEEP;
    plan->sink_tokens = cfg->num_sink_tokens;
    plan->tail_tokens = cfg->recent_tokens;
    plan->prefix = SF_PREFIX_KV;
    return SF_OK;
}

/* Sinks and tail are all that is kept, so the trigger is the budget: one slot more is cut. */
static sf_status window_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                                  struct sf_foot *foot)
{
    const struct window_cfg *cfg = setup->cfg;
    int32_t keep = cfg->num_sink_tokens + cfg->recent_tokens;
    foot->slots_lo[0] = foot->slots_hi[0] = spot->tokens < keep ? spot->tokens : keep;
    foot->slots_peak = spot->prompt;
    foot->slots_trigger = keep;
    foot->slots_keep = keep;
    return SF_OK;
}

static const struct sf_policy_ops window_policy = {
    .plan = window_plan, .footprint = window_footprint };

extern const struct sf_method sf_method_window;
const struct sf_method sf_method_window = {
    .name = "window", .paper = "Xiao et al., ICLR 2024 (arXiv 2309.17453)", .opts = window_opts,
    .cfg_bytes = sizeof(struct window_cfg), .policy = &window_policy };
