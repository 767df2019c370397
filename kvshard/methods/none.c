/* kvshard/methods/none.c: the exact cache, by name.
 *
 * Paper      none; the baseline that every method is compared with
 * Kept       every slot of every lane
 * Crosses    nothing: no head, layer or rank knows of another
 * State      none
 * Ratio      1 */
#include <string.h>

#include "base/opt.h"
#include "kvshard/policy.h"

static sf_status none_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    plan->prefix = SF_PREFIX_KV;        /* asks for nothing else, edits nothing */
    return SF_OK;
}

static sf_status none_footprint(const struct sf_setup *setup, const struct sf_spot *spot,
                                struct sf_foot *foot)
{
    (void)setup;
    foot->slots_lo[0] = foot->slots_hi[0] = spot->tokens;
    foot->slots_peak = spot->prompt;
    return SF_OK;
}

/* Leaves all lanes to other entries of the stack. */
static sf_status none_shape(const struct sf_setup *setup, struct sf_shape *shape)
{
    memset(shape->acts_on, 0, (size_t)setup->lanes);
    return SF_OK;
}

static const struct sf_policy_ops none_policy = {
    .plan = none_plan, .footprint = none_footprint, .shape = none_shape };
static const struct sf_opt none_opts[] = { { .key = NULL } };

extern const struct sf_method sf_method_none;
const struct sf_method sf_method_none = {
    .name = "none", .paper = "the exact cache", .opts = none_opts, .policy = &none_policy };
