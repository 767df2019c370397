/* coordinator/plan_groups.h: the layer groups of a plan, in words; of the planner alone. */
#ifndef SHEAF_COORDINATOR_PLAN_GROUPS_H
#define SHEAF_COORDINATOR_PLAN_GROUPS_H
#include <stdio.h>
#include "coordinator/plan.h"
SF_C_BEGIN

struct sf_json;

/* For people: the groups of each method of the stack, and the ranks of their bases. */
void sf_plan_groups_text(const struct sf_launch_plan *, const struct sf_stack *, FILE *out);
/* interface.md section 7: groups.  The first failure is left in *status. */
struct sf_json *sf_plan_groups_json(const struct sf_launch_plan *, const struct sf_stack *,
                                    sf_status *status);

SF_C_END
#endif
