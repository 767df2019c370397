/* tests/golden/rig.h: real workers of a real layout as threads of the test, driven by hand.
 *
 * The rig does what launch and main do, without a coordinator: the test writes steps and reads
 * results.  Everything below (plan, weights, cache, kernels, reduction, pipeline) is the
 * product's. */
#ifndef SHEAF_TESTS_RIG_H
#define SHEAF_TESTS_RIG_H
#include "coordinator/config.h"
#include "coordinator/plan.h"
#include "proto/wire.h"
#include "worker/worker.h"

struct rig;
struct rig_spec {
    const char *yaml;                   /* a configuration, model.path included */
    struct sf_logits_tap tap;           /* of data-parallel group 0 and all others */
    enum sf_isa isa_max;
    const char *device;                 /* NULL: "cpu" */
    uint8_t exchange;
    struct sf_store_tap rows_tap;       /* on every rank */
};
/* NULL after a failed check. */
struct rig *rig_open(const struct rig_spec *);
void        rig_close(struct rig *);
const struct sf_launch_plan *rig_plan(const struct rig *);
const struct sf_model_desc  *rig_desc(const struct rig *);
/* Sends a step (id is set here) and, for rig_step, waits for its result; its lists are the
 * rig's, until the next wait.  0 after a failure. */
int rig_send(struct rig *, int32_t group, struct sf_wire_step *);
int rig_wait(struct rig *, struct sf_wire_result *);
/* Receipts that have come so far, added up. */
struct rig_receipts { int64_t receipts, bytes_exact, bytes_stored, slots_evicted; };
struct rig_receipts rig_receipts(const struct rig *);
/* Of world rank 0; call when no step is under way. */
struct sf_worker_stats rig_stats(const struct rig *);

/* ---- golden prompts ---- */
struct golden_prompt {
    char name[32];
    int32_t *id, *greedy; double *margin; int32_t ids, steps;
    int32_t *top_id; double *top_logit; int32_t tops;       /* 0 where no logits are recorded */
};
struct golden { struct golden_prompt prompt[16]; int32_t prompts; };
int  golden_load(const char *name, struct golden *);         /* a file under tests/data/golden */
void golden_free(struct golden *);

#endif
