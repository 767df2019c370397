/* coordinator/plan_impl.h: parts of the planner that its files share; inside of plan*.c and
 * lab.c only.
 *
 *   plan_cut.c    layers -> stages             plan_size.c   a rank's bytes and pages
 *   plan_place.c  what heads cost, how level   plan_fit.c    whether it fits, and what would
 *   plan.c        the whole plan               plan_report.c numbers for people and for --json */
#ifndef SHEAF_COORDINATOR_PLAN_IMPL_H
#define SHEAF_COORDINATOR_PLAN_IMPL_H
#include <stdint.h>
#include <stdio.h>
#include "coordinator/plan.h"
SF_C_BEGIN

/* ---- plan_cut.c ---- */
/* Layers of each stage such that the dearest stage is as cheap as it can be, and among those cuts
 * the most level one.  cost[layers] of each layer; the last stage costs head_cost more. */
sf_status sf_cut_stages(const double *cost, int32_t layers, double head_cost, int32_t stages,
                        int32_t *count_out);
/* The same with stages that begin at layers with border[layer] != 0 alone (NULL: at any); most_out:
 * what the dearest costs, INFINITY where there are none such. */
sf_status sf_cut_stages_at(const double *cost, int32_t layers, double head_cost, int32_t stages,
                           const uint8_t *border, int32_t *count_out, double *most_out);
/* Cost of each layer and of the output head in so many stages: bytes that a step reads.  The stack
 * has been checked with this setup; NULL: the exact cache. */
sf_status sf_layer_costs(const struct sf_model_desc *, const struct sf_launch_plan *,
                         const struct sf_setup *, const struct sf_stack *, int32_t pipeline,
                         double *cost_out, double *head_cost_out);
/* Cuts the model by these costs. */
sf_status sf_cut_layers(const struct sf_model_desc *, const struct sf_launch_plan *,
                        const struct sf_setup *, const struct sf_stack *, int32_t pipeline,
                        int32_t *count_out);
/* Of a group with so many sequences: at least one for each stage. */
int32_t sf_micro_batches(int32_t seqs_max, int32_t pipeline);

/* ---- plan_place.c ---- */
/* What each KV head of the model costs: most stored bytes of its lane at setup->tokens_max, copies
 * not counted; [setup->lanes], malloc'd.  The stack has been checked with this setup. */
sf_status sf_head_costs(const struct sf_setup *, const struct sf_stack *, enum sf_dtype kv_dtype,
                        double **cost_out);
/* How level a placement is.  memory: the fullest tensor rank's stored bytes / the mean of its
 * stage, of the worst stage; layers: the bytes of each layer's fullest rank / of its mean rank,
 * both summed over the layers. */
struct sf_plan_level { double memory, layers; };
sf_status sf_plan_level(const struct sf_launch_plan *, const struct sf_model_desc *,
                        enum sf_placement rule, struct sf_plan_level *out);

/* ---- plan_size.c ---- */
struct sf_sizing {                      /* what the bytes of a rank depend on, its share aside */
    const struct sf_model *model;
    const struct sf_cluster *cluster;
    const char *device;
    int low_rank;                       /* its attention takes layer groups */
    int32_t v_dim_max, group_k_dim_max; /* as in struct sf_outline */
    int host_memory;                    /* of the device: sums go through comm/reduce */
    int64_t (*mat_bytes)(const struct sf_mat_shape *);
    size_t (*factor_bytes)(const struct sf_factor_job *);
    enum sf_dtype dtype, kv_dtype;
    int fixed;
    enum sf_isa isa_max;
    uint8_t int8;                       /* model.compute */
    int32_t rows_max, threads, threads_beside, tokens_max, seqs_max;
    int64_t kv_memory;                  /* SF_OPT_AUTO: the planner's choice */
    struct sf_placing placing;
};
/* Fills the ranks of one tensor group, rank[tp_size] from zeros, but for their places in the
 * world: share, lanes, workspace, bytes.  one_node: the group shares a node.  What is there is
 * freed by sf_size_free, on failure too. */
sf_status sf_size_group(const struct sf_sizing *, int32_t tp_size, int32_t layer_first,
                        int32_t layer_count, int one_node, struct sf_plan_rank *rank);
void sf_size_free(struct sf_plan_rank *rank);
/* Page size, pool and what it holds. */
sf_status sf_size_pool(const struct sf_sizing *, const struct sf_setup *, const struct sf_stack *,
                       struct sf_plan_rank *rank);
/* Most bytes of the rank with one sequence of `tokens`: in all, of that sequence's pages, and of
 * what the cache takes beside its pages. */
struct sf_plan_need { int64_t total, pages, beside; };
sf_status sf_size_need(const struct sf_sizing *, const struct sf_setup *, const struct sf_stack *,
                       const struct sf_plan_rank *, int32_t tokens, struct sf_plan_need *out);
/* Bytes that a rank may give to its pages; INT64_MAX if memory is unknown. */
int64_t sf_size_left(const struct sf_sizing *, const struct sf_plan_rank *);

/* ---- plan_fit.c ---- */
/* Sets fits and reason of a plan whose ranks are sized. */
sf_status sf_plan_judge(const struct sf_sizing *, struct sf_config *, struct sf_launch_plan *);

/* ---- plan_report.c ---- */
enum { SF_LENGTHS_MAX = 24 };
/* Powers of two from 1,024 below tokens_max, then tokens_max; returns how many. */
int32_t sf_plan_lengths(const struct sf_launch_plan *, int32_t lengths_out[SF_LENGTHS_MAX]);
/* What one sequence of each of these lengths takes on each rank of one copy of the model; all
 * copies are alike. */
struct sf_plan_costs {
    int32_t length[SF_LENGTHS_MAX], lengths, group;
    struct sf_cost *at;                 /* [lengths][group] */
};
sf_status sf_plan_costs_make(const struct sf_launch_plan *, const struct sf_stack *,
                             struct sf_plan_costs *out); /* stack NULL: in the exact cache */
void sf_plan_costs_free(struct sf_plan_costs *);
/* Sequences of length[index] that all ranks hold at once: one in its prompt, the others after
 * it. */
int64_t sf_plan_capacity(const struct sf_launch_plan *, const struct sf_plan_costs *,
                         int32_t index);
/* Stored / exact bytes at the planning length. */
double sf_plan_ratio(const struct sf_plan_costs *);

SF_C_END
#endif
