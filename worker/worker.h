/* worker/worker.h: one rank's worker: runs the steps that the coordinator decides.
 *
 * A worker holds its share of the weights, its part of the KV cache and the buffers of one step,
 * all taken at open from sizes in the plan.  It decides nothing: which sequences enter, which rows
 * are computed and when a sequence leaves all come with the step (proto/wire.h).
 *
 * Ranks are numbered tensor fastest, then pipeline, then data:
 *   world rank = tensor_rank + tensor_size * (stage + stages * group) */
#ifndef SHEAF_WORKER_WORKER_H
#define SHEAF_WORKER_WORKER_H
#include <stdint.h>
#include "base/dtype.h"
#include "base/ring.h"
#include "base/status.h"
#include "comm/comm.h"
#include "kernels/device.h"
#include "kvshard/stack.h"
#include "kvshard/store.h"
#include "model/share.h"
#include "model/weights.h"
#include "model/workspace.h"
#include "proto/wire.h"
SF_C_BEGIN

struct sf_worker;

/* Sees the logits of every row that asked for them: on tensor rank 0 of the last stage.  Makes the
 * worker gather all logits there, so it is for tests and evaluation. */
struct sf_logits_tap {
    void (*row)(void *arg, uint64_t seq, int32_t pos, const float *logits, int32_t vocab);
    void *arg;
};
/* A stack of methods with a cache of its own beside the first: for sequences that name it (open's
 * stack, which counts these from 1).  Weights, buffers and the sizes below are shared. */
struct sf_worker_stack {
    const struct sf_stack *stack;
    const struct sf_setup *setup;       /* with this rank's heads */
    int64_t pool_bytes;
    int32_t page_slots;                 /* of its setup; methods may want larger pages */
    enum sf_dtype kv_dtype;
};
struct sf_worker_spec {
    const struct sf_model *model;       /* all pointers outlive the worker */
    const struct sf_share *share;
    const struct sf_workspace *workspace;
    const struct sf_stack *stack;
    const struct sf_setup *setup;       /* with this rank's heads */
    /* tensor: the ranks of this stage, ordered by tensor_rank */
    struct sf_comm *world, *tensor;
    struct sf_placing placing;          /* that the tensor group's shares were made with */
    int32_t stages, stage, group;
    enum sf_dtype dtype, kv_dtype;
    int fixed;                          /* run.deterministic */
    uint8_t int8;                       /* products of 8-bit codes (kernels.h) */
    int32_t page_slots, seqs_max, threads;
    int32_t threads_beside;             /* idle ones, for factors of layer groups; 0: none */
    int64_t pool_bytes;
    int64_t spare_bytes;                /* that the plan leaves; INT64_MAX: nobody knows */
    const struct sf_worker_stack *beside; int32_t besides;      /* outlive the worker; 0 in a run */
    uint8_t populate, exchange;         /* exchange: reduce by messages even on one node (tests) */
    const char *device;                 /* "cpu", "ref", "cuda", "cuda-emulated" */
    int32_t local_rank;                 /* this rank's number on its node */
    /* the ranks of this tensor rank in all stages, by stage; NULL on a device of host memory */
    struct sf_comm *column;
    int64_t timeout_ms;                 /* of waits for the device's links */
    enum sf_isa isa_max;
    /* on world rank 0: the coordinator's two rings, with envelopes as in proto/wire.h */
    struct sf_ring *to_workers, *from_workers;
    int32_t groups;                     /* data-parallel groups of the job, on world rank 0 */
    struct sf_logits_tap tap;
    struct sf_store_tap rows_tap;       /* sees what attention sees; rows NULL: nobody does */
};

/* Loads and packs this rank's weights, takes all memory.  Collective over world. */
sf_status sf_worker_open(const struct sf_worker_spec *, struct sf_worker **worker_out);
/* Runs steps until one says stop.  On failure the words are also reported to rank 0. */
sf_status sf_worker_run(struct sf_worker *);
/* A status other than SF_OK: the job has failed here, and no other rank is waited for; its words
 * are still this thread's last. */
void      sf_worker_close(struct sf_worker *, sf_status);

/* Measured since open, for the summary and for tests. */
struct sf_worker_stats {
    int64_t weight_bytes, workspace_bytes, pool_bytes; /* as taken */
    int64_t steps, rows, logit_rows;
    int64_t bytes_sent;
    double seconds_step, seconds_wait;
};
void sf_worker_stats(const struct sf_worker *, struct sf_worker_stats *out);
struct sf_store;
const struct sf_store *sf_worker_store(const struct sf_worker *);

SF_C_END
#endif
