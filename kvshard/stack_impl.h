/* kvshard/stack_impl.h: what stack.c and stack_lanes.c share. */
#ifndef SHEAF_KVSHARD_STACK_IMPL_H
#define SHEAF_KVSHARD_STACK_IMPL_H
#include "kvshard/stack.h"

/* Fills `layers` and `shape` of every entry: by `layers:`, by the method itself, by `on:`.  The
 * entries come with both empty; what is made is freed with the stack, also on failure. */
sf_status sf_stack_lanes(struct sf_stack *, const struct sf_setup *);
/* SF_UNSUPPORTED where two entries act on one lane; to be called after sf_stack_lanes. */
sf_status sf_stack_disjoint(const struct sf_stack *, const struct sf_setup *);

#endif
