/* tests/unit/kvshard/script.c: plan and hooks that read what the running test has set. */
#include "tests/unit/kvshard/script.h"

struct script script;

static sf_status script_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    *plan = script.plan;
    return SF_OK;
}

static sf_status script_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                                  struct sf_foot *foot)
{
    (void)setup;
    foot->slots_hi[0] = spot->tokens;
    foot->slots_trigger = script.trigger;
    foot->slots_keep = script.keep;
    return SF_OK;
}

static sf_status script_compress(const struct sf_env *env, enum sf_when when,
                                 const struct sf_batch *batch, struct sf_answer *answer)
{
    return script.act(env, when, batch, answer);
}

static sf_status script_score(const struct sf_env *env, const struct sf_span *span, float *out)
{
    return script.score(env, span, out);
}

static const struct sf_policy_ops ops = { .plan = script_plan, .footprint = script_footprint,
                                          .compress = script_compress };
static const struct sf_policy_ops score_ops = { .plan = script_plan,
                                                .footprint = script_footprint,
                                                .score = script_score };
const struct sf_method script_method = { .name = "script", .policy = &ops };
const struct sf_method script_scorer = { .name = "scorer", .policy = &score_ops };
