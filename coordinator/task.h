/* coordinator/task.h: a subcommand that needs ranks with weights: what it launches, one launch
 * after another in one world, and what the coordinator does with each.  main.c makes the world and
 * opens the workers; `run` and `calibrate` have one launch, `bench` one for each stack of methods,
 * and `eval` joins these. */
#ifndef SHEAF_COORDINATOR_TASK_H
#define SHEAF_COORDINATOR_TASK_H
#include <stdint.h>
#include "base/ring.h"
#include "base/status.h"
#include "coordinator/launch.h"
#include "kvshard/policy.h"
#include "kvshard/profile.h"
#include "kvshard/stack.h"
#include "model/tokenizer.h"
SF_C_BEGIN

struct sf_desk {                        /* what the coordinator works with */
    const struct sf_launch *launch;     /* where launches are joined: all of them */
    const struct sf_tokenizer *tokenizer; /* NULL: token ids only */
    struct sf_ring *to_workers;         /* steps, and at the end one with stop set for every group;
                                           envelopes as in proto/wire.h */
    struct sf_ring *from_workers;       /* results and reports */
};
struct sf_task_sizes {                  /* of launches that are joined */
    int32_t seqs_max;                   /* sequences open at once, of all stacks */
    int64_t *pool_bytes;                /* [launches][ranks] */
};
struct sf_lesson {                      /* what is learnt while the workers run; all ranks alike */
    struct sf_stack stack;              /* one entry: the method, which has a calib, and options */
    struct sf_calib_plan plan;
};
struct sf_task_ops {                    /* on rank 0 only but for lesson; launches count from 0 */
    /* The launch; lives until the next one is asked for. */
    const struct sf_launch_spec *(*launch)(void *arg, int32_t number);
    /* In a thread of its own beside the worker.  Tells the workers to stop in every case.  An exit
     * code other than 0 is that of the whole task, and no launch follows. */
    sf_status (*coordinate)(void *arg, int32_t number, const struct sf_desk *, int *exit_code_out);
    /* Both may be NULL: one launch, which needs no look beforehand. */
    sf_status (*prepare)(void *arg, int32_t *launches_out);
    /* Each launch is opened once and looked at before the first one loads weights. */
    sf_status (*check)(void *arg, int32_t number, const struct sf_launch *);
    /* NULL: launches run one after another.  Otherwise all of them are open at once, and one worker
     * a rank runs them together: that of the first, with the caches of the others beside its own.
     * Decides whether they are alike enough, and the sizes; `coordinate` is then called once, for
     * launch 0. */
    sf_status (*join)(void *arg, const struct sf_launch *launch, int32_t launches,
                      struct sf_task_sizes *sizes_out);
    /* Both NULL where nothing is learnt.  Collective, before weights are loaded; the lesson starts
     * zeroed and its stack is the caller's to free. */
    sf_status (*lesson)(void *arg, const struct sf_launch *, struct sf_lesson *out);
    /* After the workers have run, with exit code 0. */
    sf_status (*learnt)(void *arg, const struct sf_launch *, struct sf_lesson *,
                        struct sf_profile *);
};
struct sf_task {
    const struct sf_task_ops *ops;
    void *arg;
    const struct sf_launch_spec *common; /* what every rank knows of all launches: the name of the
                                            (first) configuration for messages, and --set */
};

SF_C_END
#endif
