/* coordinator/plan_groups.h: the layer groups of a plan, in words; of the planner alone. */
#ifndef SHEAF_COORDINATOR_PLAN_GROUPS_H
#define SHEAF_COORDINATOR_PLAN_GROUPS_H
#include <stdio.h>
#include "coordinator/plan.h"
SF_C_BEGIN

struct sf_json;

/* For people: the groups of each method of the stack, the ranks of their bases, and what a segment
 * of the answer takes. */
sf_status sf_plan_groups_text(const struct sf_launch_plan *, const struct sf_config *, FILE *out);
/* Whether making a basis of a prompt of max_model_len may keep a rank silent for so long that it is
 * taken for lost, going by a rough estimate; then a line that says so. */
enum { SF_SLOW_WORDS = 256 };
int sf_plan_groups_slow(const struct sf_launch_plan *, const struct sf_config *,
                        char words_out[SF_SLOW_WORDS]);
/* interface.md section 7: groups.  The first failure is left in *status. */
struct sf_json *sf_plan_groups_json(const struct sf_launch_plan *, const struct sf_stack *,
                                    sf_status *status);

SF_C_END
#endif
