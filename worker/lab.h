/* worker/lab.h: one recorded trace through the store of this rank.
 *
 * The store, its methods and the kernels are those of a run; what is missing is the model around
 * them: queries, keys and values come from the trace, and outputs stay where they are.  The world
 * rank is the tensor rank; each has its share of the heads, rank 0 puts the parts together. */
#ifndef SHEAF_WORKER_LAB_H
#define SHEAF_WORKER_LAB_H
#include <stdint.h>
#include "base/dtype.h"
#include "base/status.h"
#include "comm/comm.h"
#include "kernels/device.h"
#include "kvshard/stack.h"
#include "model/share.h"
#include "model/trace.h"
SF_C_BEGIN

struct sf_lab;

struct sf_lab_spec {                    /* all pointers outlive the lab */
    const struct sf_trace *trace;
    const struct sf_share *share;       /* of the trace's heads, all layers */
    const struct sf_stack *stack;
    const struct sf_setup *setup;       /* with this rank's heads */
    struct sf_comm *world;
    struct sf_placing placing;
    enum sf_dtype dtype, kv_dtype;      /* of the outputs as attention writes them; of the cache */
    int32_t page_slots, threads;
    enum sf_isa isa_max;                /* of the CPU, as in a run */
    int64_t pool_bytes;
    const char *device;                 /* "cpu", "ref", "cuda", "cuda-emulated" */
    int32_t local_rank;                 /* this rank's number on its node */
};

/* Takes all memory; on this rank alone. */
sf_status sf_lab_open(const struct sf_lab_spec *, struct sf_lab **lab_out);
/* Feeds the prompt in chunks, all layers for one chunk, then the other rows one at a time; then
 * reads the lanes.  On this rank alone, with signs of life. */
sf_status sf_lab_run(struct sf_lab *);
/* Collective over world, however `mine`, the status of sf_lab_run, is on any rank: rank 0 gets the
 * parts of all.  A rank with nothing wrong returns SF_STOPPED where another one has failed.
 * *result_out (freed by the caller) and *counts_out are written on rank 0 only. */
sf_status sf_lab_gather(struct sf_lab *, sf_status mine, struct sf_trace_result *result_out,
                        struct sf_trace_counts *counts_out);
void      sf_lab_close(struct sf_lab *);                /* NULL is fine */

SF_C_END
#endif
