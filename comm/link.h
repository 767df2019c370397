/* comm/link.h: what the devices of a group say to each other.  Buffers are memory of the device;
 * work is queued in the order of the device's one stream, and no call waits for the device unless
 * it says so.
 *
 * Two kinds: `nccl` (comm/link_nccl.c, and comm/nccl.c in the plugin of the CUDA backend; every
 * rank needs a GPU of its own) and `staged` (comm/link.c: through host memory and comm's messages;
 * waits for the device in every call; also the reference that nccl is tested against). */
#ifndef SHEAF_COMM_LINK_H
#define SHEAF_COMM_LINK_H
#include <stddef.h>
#include <stdint.h>
#include "comm/comm.h"
#include "kernels/device.h"
SF_C_BEGIN

struct sf_link;
struct sf_link_spec {
    struct sf_device *device;           /* of this rank; stays the caller's */
    size_t bytes_max;                   /* most bytes of any call: staging */
    int64_t timeout_ms;                 /* of sf_link_settle and of opening */
    int staged;                         /* 1: staged even where nccl could be had (tests) */
};
/* Collective over `group`, which stays the caller's.  nccl if the device's backend has it and no
 * two ranks of the group share a GPU (exchanged by comm), else staged. */
sf_status sf_link_open(struct sf_comm *group, const struct sf_link_spec *, struct sf_link **out);
void      sf_link_close(struct sf_link *);                            /* NULL is fine */
/* This rank has failed elsewhere: all links of the device are given up, and only close is left,
 * which then waits for nobody.  The words of the failure stay.  NULL is fine. */
void      sf_link_give_up(struct sf_link *);
/* From now on entries of the device that wait show signs of life of this rank, as links do.  For a
 * device without one of kind nccl; world stays the caller's and outlives the device. */
void      sf_link_show_life(struct sf_comm *world, struct sf_device *);
const char *sf_link_kind(const struct sf_link *);                     /* "nccl", "staged" */
int64_t   sf_link_bytes_sent(const struct sf_link *);
/* x[i] = sum over the ranks, f32, in place. */
sf_status sf_link_sum(struct sf_link *, float *x, size_t count);
/* send may return before the receiver has come; the next send waits for it.  With nccl it is the
 * device that waits, so two ranks that send to each other must not both send first. */
sf_status sf_link_send(struct sf_link *, int32_t to, const void *data, size_t bytes);
sf_status sf_link_recv(struct sf_link *, int32_t from, void *data, size_t bytes);
/* all[r] = what rank r gave, `bytes` each, on every rank. */
sf_status sf_link_all_gather(struct sf_link *, const void *mine, size_t bytes, void *all);
/* The host waits until what is queued is done and sends have been taken, shows signs of life
 * (comm/life.h) meanwhile, and ends with SF_TIMEOUT or SF_LOST naming the group and what the
 * link's error says. */
sf_status sf_link_settle(struct sf_link *);

SF_C_END
#endif
