/* coordinator/cluster.h: what the ranks run on: nodes, cores, memory.  A plain value, measured on a
 * node (hwloc) or told on the command line of `plan`. */
#ifndef SHEAF_COORDINATOR_CLUSTER_H
#define SHEAF_COORDINATOR_CLUSTER_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

enum { SF_HOST_MAX = 64, SF_CORE_WORDS = 16, SF_WHY_MAX = 160 };
struct sf_rank_place { int32_t node; char host[SF_HOST_MAX]; };
struct sf_cluster {
    int32_t ranks, nodes;
    struct sf_rank_place *place;        /* [ranks] */
    int32_t cores_per_node;             /* least of all nodes; usable by us (affinity, cgroup) */
    int64_t memory_per_rank;            /* bytes that a rank may take, least of all; 0 = unknown */
    int32_t threads_max;                /* OMP_NUM_THREADS, least of all ranks; 0 = not set */
    int32_t gpus;                       /* that each rank sees, least of all; 0 = none or not asked
                                           for (devices.h): then why */
    char gpus_why[SF_WHY_MAX];
};
/* How many ranks before this one are on its node. */
int32_t sf_cluster_local_rank(const struct sf_cluster *, int32_t rank);

/* This machine: usable cores and free memory (MemAvailable and cgroup limit, the lesser). */
sf_status sf_machine_cores(int32_t *cores_out);
sf_status sf_machine_memory(int64_t *bytes_out);
/* As the processor calls itself; "unknown" where the system does not tell. */
void sf_machine_processor(char *out, size_t bytes);

/* What one rank sees of its node.  A launcher binds ranks to parts of a node, so that no rank sees
 * all cores of it; the ranks together do.  Fixed size, for an allgather. */
struct sf_rank_facts {
    int32_t node, quota, threads;       /* quota: cores by cgroup; 0 = no limit.  threads:
                                           OMP_NUM_THREADS; 0 = not set */
    char host[SF_HOST_MAX];
    uint64_t cores[SF_CORE_WORDS];      /* bit i: core i of the node may be used by this rank */
    int64_t memory;                     /* free bytes of the node */
};
sf_status sf_rank_facts_make(int32_t node, const char *host, struct sf_rank_facts *out);
/* The cluster of what all ranks saw, facts[ranks]. */
sf_status sf_cluster_gather(const struct sf_rank_facts *facts, int32_t ranks,
                            struct sf_cluster *out);

/* A cluster of equal nodes, as `plan --nodes N --ranks-per-node R --memory-per-rank B` says. */
sf_status sf_cluster_make(int32_t nodes, int32_t ranks_per_node, int32_t cores_per_node,
                          int64_t memory_per_rank, struct sf_cluster *out);
void sf_cluster_free(struct sf_cluster *);

SF_C_END
#endif
