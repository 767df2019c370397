/* coordinator/plan.h: the launch plan: who holds what, and what will fit.  A pure function of the
 * configuration, the model's header and the cluster; every rank computes the same one. */
#ifndef SHEAF_COORDINATOR_PLAN_H
#define SHEAF_COORDINATOR_PLAN_H
#include <stdint.h>
#include "base/status.h"
#include "coordinator/cluster.h"
#include "coordinator/config.h"
#include "kernels/device.h"
#include "kvshard/account.h"
#include "model/share.h"
#include "model/weights.h"
#include "model/workspace.h"
SF_C_BEGIN

struct sf_plan_rank {
    int32_t rank, node, stage, tp_rank, dp_rank;
    struct sf_share share;
    struct sf_rank_lanes lanes;         /* of the share; arrays owned by the plan */
    struct sf_workspace workspace;
    int64_t weight_bytes, workspace_bytes; /* workspace: buffers, reduction window, scratch, and */
    int64_t library_bytes;              /* what a GPU's libraries take, an allowance */
    int64_t load_bytes;                 /* the most that loading one tensor takes on top */
    int64_t page_bytes, pool_bytes, pages;
    struct sf_cache_bytes cache;        /* what the cache takes beside its pages */
    int64_t kv_bytes_per_token;         /* exact cache, copies included */
    int64_t max_kv_tokens;              /* that the pool holds in the exact cache */
};
struct sf_launch_plan {
    int32_t tensor, pipeline, data, ranks;
    enum sf_dtype dtype, kv_dtype;      /* kv: raw tier */
    int32_t page_slots, tokens_max;     /* max_model_len, resolved */
    int32_t rows_max, seqs_max;         /* of one step; of one data-parallel group */
    int32_t micro_batches;              /* of one group: at least the stages */
    int32_t threads;                    /* per rank */
    int32_t threads_beside;             /* of a rank, otherwise idle: for factors of layer groups
                                           while its layers run; 0 where there are none of either */
    const char *device;                 /* "cpu", "cuda", "cuda-emulated" */
    char device_why[SF_WHY_MAX];        /* why auto took no GPU; else "" */
    enum sf_isa isa_max;                /* for the device: keeps off products of bf16 that
                                           neither model.compute nor model.dtype asks for */
    int fixed;                          /* run.deterministic */
    uint8_t int8;                       /* model.compute: products of 8-bit codes */
    uint8_t populate;                   /* touch the pools at start: kv_cache.memory was given */
    struct sf_setup setup;
    struct sf_placing placing;          /* of KV heads; head_cost [setup.lanes] is the plan's */
    struct sf_plan_rank *rank;          /* [ranks], in rank order: tensor fastest, then pipeline,
                                           then data */
    int fits; char reason[512];         /* when it does not: what would make it fit */
};

/* SF_INVALID with words naming the key to change when the layout itself is impossible (too many
 * stages, rank count, heads); a layout that is possible but too large has fits == 0. Checks the
 * stack in cfg (which fills its plans). */
sf_status sf_launch_plan_make(struct sf_config *, const struct sf_model *,
                              const struct sf_cluster *, struct sf_launch_plan *out);
void      sf_launch_plan_free(struct sf_launch_plan *);
/* The type of the products: "f32", "bf16", "f16" or "int8". */
const char *sf_launch_plan_compute(const struct sf_launch_plan *);
/* Bytes of a rank that weights, buffers, a full pool and the cache beside it leave; INT64_MAX where
 * it is not known what there is. */
int64_t   sf_plan_spare_bytes(const struct sf_plan_rank *, const struct sf_cluster *);
/* For people, and interface.md section 7; malloc'd.  Beside the keys there, in JSON:
 *   compute                   the type of the products
 *   ranks[].library_bytes     of workspace_bytes: set aside for what the libraries of a GPU take
 *   ranks[].kv_beside_bytes   what the cache takes beside its pages (struct sf_cache_bytes): total,
 *                             tables, mirrors, masses, step, copies, sequences, beside,
 *                             scratch (at most)
 *   imbalance.memory          stored bytes at max_model_len of the fullest tensor rank of a stage /
 *                             the mean, of the worst stage: identity, KV heads in blocks; placed
 *   imbalance.layers          the same layer by layer, summed: what a step waits for
 *   comm.tp_bytes_per_layer, comm.bytes_per   see plan_traffic.h */
sf_status sf_launch_plan_text(const struct sf_launch_plan *, const struct sf_config *,
                              const struct sf_model *, char **text_out);
sf_status sf_launch_plan_json(const struct sf_launch_plan *, const struct sf_config *,
                              const struct sf_model *, char **text_out);
/* What "auto" comes to, for whoever works without a plan: the raw tier's type, slots of a page,
 * threads of each rank (at least 1), and on the CPU the instructions that may be used: no products
 * of bf16 but where they are asked for. */
enum sf_isa sf_plan_isa_max(const struct sf_config *);
enum sf_dtype sf_plan_kv_dtype(const struct sf_config *);
/* kv_cache.block_size; auto: the least whose pages hold slots of every tier of the methods (16
 * where they are not legal: sf_stack_check will say why). */
int32_t       sf_plan_page_slots(struct sf_config *, const struct sf_model_desc *, int32_t tensor,
                                 int32_t tokens_max);
int32_t       sf_plan_threads(const struct sf_config *, const struct sf_cluster *);

SF_C_END
#endif
