/* coordinator/stacks.h: stacks of methods that are set against the exact cache: one of each
 * configuration of a command line, all of one model, the exact cache first. */
#ifndef SHEAF_COORDINATOR_STACKS_H
#define SHEAF_COORDINATOR_STACKS_H
#include <stdint.h>
#include "base/status.h"
#include "coordinator/commands.h"
#include "coordinator/launch.h"
SF_C_BEGIN

enum { SF_STACK_LABEL = 64, SF_STACK_METHODS = 32, SF_STACK_OWN_SETS = 4 };
struct sf_stack_launch {
    struct sf_launch_spec launch;       /* its sets are the ones below */
    const char *set[SF_SETS_MAX + SF_STACK_OWN_SETS];
    char label[SF_STACK_LABEL];         /* "exact", "window", "window/int8", "window#2"; no two are
                                           equal */
    const char *method[SF_STACK_METHODS]; int32_t methods;  /* names; none: the exact cache */
    int32_t max_num_seqs;               /* of its configuration */
    enum sf_dtype kv_dtype;             /* and this */
    char model[SF_OPT_TEXT_MAX];        /* its path */
};
struct sf_stack_list {
    struct sf_stack_launch *stack; int32_t stacks;      /* owned; freed by free() */
};
/* The stacks of `configs` files, each with `sets` laid over it; the first one without methods goes
 * to the front, or else, unless no_exact, the first configuration without its methods. SF_INVALID
 * with words for models that differ. */
sf_status sf_stack_list_make(const char *const *config, int32_t configs,
                             const struct sf_config_sets *sets, int no_exact,
                             struct sf_stack_list *out);
/* "key=value" laid over a stack's configuration, on top of all others; the text is the caller's.
 * At most SF_STACK_OWN_SETS - 1 for each. */
void      sf_stack_add_set(struct sf_stack_launch *, const char *set);

SF_C_END
#endif
