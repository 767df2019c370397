/* tests/unit/kvshard/script.h: a method that does what the running test says. */
#ifndef SHEAF_TESTS_UNIT_KVSHARD_SCRIPT_H
#define SHEAF_TESTS_UNIT_KVSHARD_SCRIPT_H
#include "kvshard/policy.h"

struct script {
    struct sf_plan plan;
    int32_t trigger, keep;              /* every lane's budget */
    sf_status (*act)(const struct sf_env *, enum sf_when, const struct sf_batch *,
                     struct sf_answer *);
    sf_status (*score)(const struct sf_env *, const struct sf_span *, float *out);
};
extern struct script script;            /* read by plan(), footprint() and the hooks */
extern const struct sf_method script_method; /* compress() calls act */
extern const struct sf_method script_scorer; /* score() alone: the store's own answer */
#endif
