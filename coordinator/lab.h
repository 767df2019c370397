/* coordinator/lab.h: `sheaf lab`: one method on recorded tensors (interface.md section 6).  What is
 * decided before the trace runs, and what is told afterwards; main.c joins it with worker/lab.h. */
#ifndef SHEAF_COORDINATOR_LAB_H
#define SHEAF_COORDINATOR_LAB_H
#include <stddef.h>
#include <stdint.h>
#include "comm/comm.h"
#include "coordinator/commands.h"
#include "coordinator/config.h"
#include "kvshard/policy.h"
#include "model/share.h"
#include "model/trace.h"
SF_C_BEGIN

struct sf_lab_args {
    const char *config, *trace, *output;
    struct sf_config_sets sets;         /* of the ones below */
    const char *set[SF_SETS_MAX];
};
/* Fills args and sets up the log.  1: go on; 0: help was printed; -1: refused with words. */
int sf_lab_args(int argc, char **argv, struct sf_lab_args *args, char *words, size_t bytes);

struct sf_lab_launch {                  /* the same on every rank, but for share, rank and pool */
    struct sf_config config;
    struct sf_trace trace;
    struct sf_share share;
    struct sf_setup setup;              /* points to the rank below */
    struct sf_rank rank;
    int32_t *heads;                     /* [layers] behind rank.heads */
    enum sf_dtype dtype, kv_dtype;
    int32_t page_slots, threads;
    const char *device;
    int32_t local_rank;
    int64_t pool_bytes;
    int64_t predicted_lo, predicted_hi; /* bytes stored at the last row, over all ranks */
};
/* Collective over world: reads the configuration and the trace, checks the stack, and makes sure
 * that the result can be written.  On failure everything is freed. */
sf_status sf_lab_launch_open(struct sf_comm *world, const struct sf_lab_args *,
                             struct sf_lab_launch *out);
void      sf_lab_launch_close(struct sf_lab_launch *);

/* Rank 0: the result file. */
sf_status sf_lab_write(const struct sf_lab_args *, const struct sf_lab_launch *,
                       const struct sf_trace_result *, const struct sf_trace_counts *);

SF_C_END
#endif
