/* comm/window.h: memory that the ranks of one node share; part of comm.h, which includes it. */
#ifndef SHEAF_COMM_WINDOW_H
#define SHEAF_COMM_WINDOW_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN
struct sf_comm;

/* ---- shared memory of a group on one node ---------------------------------------------------- */
struct sf_window {
    int32_t size;                       /* ranks; base[r]: segment of rank r, `bytes` long */
    size_t bytes;
    unsigned char **base;
    void *impl;
};
/* Collective.  *window_out is NULL (and SF_OK) when the group spans nodes.  Zeroed. */
sf_status sf_comm_window_create(struct sf_comm *, size_t bytes, struct sf_window **window_out);
void      sf_comm_window_destroy(struct sf_comm *, struct sf_window *);
/* All ranks have called it and see each other's writes; spins, yields, then sleeps. */
sf_status sf_comm_window_barrier(struct sf_comm *, struct sf_window *);

SF_C_END
#endif
