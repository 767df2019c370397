/* tests/unit/kvshard/toys.h: small methods, one for each family of the published ones, written
 * against kvshard/policy.h alone.  Those of toys.c run in the store; those of toys_asking.c ask for
 * what the store does not have, and must be refused before anything runs. */
#ifndef SHEAF_TESTS_UNIT_KVSHARD_TOYS_H
#define SHEAF_TESTS_UNIT_KVSHARD_TOYS_H
#include "kvshard/policy.h"

enum { TOY_SINKS = 2, TOY_TAIL = 3,
       TOY_NORM_GROWTH = 6,             /* toy_norm: trigger less keep */
       TOY_FOLD_SINKS = 1, TOY_FOLD_RECENT = 2, TOY_FOLD_TOKENS = 4,
       TOY_MERGE_BUDGET = 24, TOY_MERGE_GROWTH = 8,
       TOY_SHARED_EVERY = 8, TOY_SHARED_KEEP = 20,
       TOY_CHUNK = 16, TOY_CHUNK_KEEP = 12,
       TOY_RECENT_KEEP = 64, TOY_RECENT_GROWTH = 10 };

/* Slots that toy_norm keeps of a head: each head has its own budget. */
int32_t toy_norm_keep(int32_t head_global);

extern const struct sf_method
    toy_norm,       /* score and evict, budgets by head: keys of great norm stay */
    toy_fold,       /* a compensation slot with ln(tokens), not on head 0 */
    toy_merge,      /* old neighbours merge in pairs, counts in aux */
    toy_shared,     /* at an interval, the same slots of all heads, integers reduced */
    toy_chunks,     /* at every prompt chunk, merges down to a few slots */
    toy_recent;     /* the newest, by the store's own rule; under pressure half as many each time */

/* One for each method of the list; words NULL: all that it asks for is there.  Closed by NULL. */
struct toy_asking { const struct sf_method *method; const char *words; };
extern const struct toy_asking toys_asking[];
#endif
