/* coordinator/launch.h: from a world of ranks to a common plan.
 *
 * Rank 0 reads and checks the configuration and sends its resolved text; every rank parses that,
 * opens the model's header and computes the same plan.  After each phase all ranks agree: if one
 * failed, all stop with its words and status, and only rank 0 prints them. */
#ifndef SHEAF_COORDINATOR_LAUNCH_H
#define SHEAF_COORDINATOR_LAUNCH_H
#include "base/status.h"
#include "comm/comm.h"
#include "coordinator/cluster.h"
#include "coordinator/config.h"
#include "coordinator/plan.h"
#include "coordinator/run.h"
#include "model/weights.h"
SF_C_BEGIN

struct sf_launch_spec {
    const char *config;                 /* read on rank 0 only */
    struct sf_config_sets sets;
    struct sf_run_files files;          /* checked on rank 0 before anything is loaded; input
                                           NULL: a launch without records */
    uint8_t digest;                     /* model_sha256 is asked for */
};
struct sf_launch {
    /* world is the caller's; column: the stages of a tensor rank, NULL on the CPU */
    struct sf_comm *world, *tensor, *column;
    struct sf_config config;
    struct sf_model *model;
    struct sf_cluster cluster;
    struct sf_launch_plan plan;
    const struct sf_plan_rank *me;
    struct sf_setup setup;              /* the plan's, with this rank's share */
    struct sf_rank rank;
    int32_t *heads;                     /* [layers here] behind rank.heads */
    int64_t records;                    /* of the input; rank 0 only */
    char model_sha256[65];              /* rank 0 only, where records, a profile
                                           or the spec ask for it; else empty */
};

/* Collective over world. On failure everything is freed. */
sf_status sf_launch_open(struct sf_comm *world, const struct sf_launch_spec *,
        struct sf_launch *out);
/* The same beside an open launch on as many stages: where parallel.pipeline_layers is auto, layers
 * are cut as they are there.  NULL: by this launch's own costs. */
sf_status sf_launch_open_beside(struct sf_comm *world, const struct sf_launch_spec *,
                                const struct sf_launch *first, struct sf_launch *out);
void      sf_launch_close(struct sf_launch *);
/* Collective: SF_OK if every rank brings SF_OK; otherwise the status and words of the first rank
 * that failed by itself, the same on all. */
sf_status sf_launch_agree(struct sf_comm *world, sf_status mine);
/* Collective: the configuration of rank 0, resolved, on every rank.  mine: how reading it went
 * there, SF_OK elsewhere; name: for messages. */
sf_status sf_launch_share_config(struct sf_comm *world, const char *name, sf_status mine,
                                 struct sf_config *config);
/* Collective: the nodes of the world. */
sf_status sf_launch_look_around(struct sf_comm *world, struct sf_cluster *cluster_out);

SF_C_END
#endif
