/* coordinator/plan.c: the launch plan: from sizes in the configuration to who holds what.
 *
 *   rank = tp_rank + tensor * (stage + pipeline * dp_rank)
 *
 * First the layout (is it possible at all?), then what each rank holds, then whether it fits. */
#include "coordinator/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "coordinator/devices.h"
#include "coordinator/plan_impl.h"
#include "kernels/device.h"

static sf_status resolve_ranks(const struct sf_config *, const struct sf_cluster *,
                               struct sf_launch_plan *);
static sf_status resolve_model(const struct sf_config *, const struct sf_model_desc *,
                               struct sf_launch_plan *);
static sf_status resolve_compute(const struct sf_config *, const struct sf_cluster *,
                                 struct sf_launch_plan *);
static sf_status check_nodes(const struct sf_config *, const struct sf_cluster *,
                             const struct sf_launch_plan *);
static sf_status cut_layers(const struct sf_config *, const struct sf_model_desc *,
                            const struct sf_launch_plan *, int32_t *count_out);
static sf_status set_stages(struct sf_config *, const int32_t *count, struct sf_launch_plan *);
static sf_status choose_placing(const struct sf_config *, struct sf_launch_plan *);
static sf_status make_ranks(const struct sf_sizing *, const int32_t *count,
                            struct sf_launch_plan *);
static sf_status open_kernels(struct sf_sizing *);
static int32_t threads_beside(const struct sf_stack *, const struct sf_setup *,
                              const struct sf_cluster *, const struct sf_sizing *);
static sf_status size_ranks(struct sf_sizing *, struct sf_config *, struct sf_launch_plan *);
static sf_status check_device(const struct sf_stack *, const struct sf_setup *,
                              const struct sf_sizing *);

sf_status sf_launch_plan_make(struct sf_config *cfg, const struct sf_model *model,
                              const struct sf_cluster *cluster, struct sf_launch_plan *out)
{
    const struct sf_model_desc *desc = sf_model_desc(model);
    struct sf_launch_plan plan = { 0 };
    SF_TRY(resolve_ranks(cfg, cluster, &plan));
    SF_TRY(resolve_model(cfg, desc, &plan));
    plan.page_slots = sf_plan_page_slots(cfg, desc, plan.tensor, plan.tokens_max);
    plan.threads = sf_plan_threads(cfg, cluster);
    SF_TRY(resolve_compute(cfg, cluster, &plan));
    SF_TRY(check_nodes(cfg, cluster, &plan));

    struct sf_sizing sizing = {
        .model = model, .cluster = cluster, .dtype = plan.dtype, .kv_dtype = plan.kv_dtype,
        .fixed = plan.fixed, .isa_max = plan.isa_max, .int8 = plan.int8, .rows_max = plan.rows_max,
        .threads = plan.threads, .tokens_max = plan.tokens_max, .seqs_max = plan.seqs_max,
        .kv_memory = cfg->kv.memory, .device = plan.device
    };
    SF_TRY(open_kernels(&sizing));
    int32_t *count = calloc((size_t)plan.pipeline, sizeof *count);
    plan.rank = calloc((size_t)plan.ranks, sizeof *plan.rank);
    sf_status status = count != NULL && plan.rank != NULL
                       ? SF_OK : SF_FAIL(SF_NO_MEMORY, "no memory for %d ranks", plan.ranks);
    if (status == SF_OK)
        status = sf_setup_make(desc, plan.tensor, plan.page_slots, plan.tokens_max, &plan.setup);
    plan.setup.kv_dtype = plan.kv_dtype;
    if (status == SF_OK) status = sf_stack_check(&cfg->kv.stack, &plan.setup);
    if (status == SF_OK) status = check_device(&cfg->kv.stack, &plan.setup, &sizing);
    if (status == SF_OK)
        plan.threads_beside = threads_beside(&cfg->kv.stack, &plan.setup, cluster, &sizing);
    if (status == SF_OK) status = cut_layers(cfg, desc, &plan, count);
    if (status == SF_OK) status = set_stages(cfg, count, &plan);
    if (status == SF_OK) status = choose_placing(cfg, &plan);
    sizing.placing = plan.placing;
    if (status == SF_OK) status = make_ranks(&sizing, count, &plan);
    if (status == SF_OK) status = size_ranks(&sizing, cfg, &plan);
    free(count);
    if (status == SF_OK) *out = plan;
    else sf_launch_plan_free(&plan);
    return status;
}

/* Pools, and whether all fits; what factors beside the layers take is given up for that. */
static sf_status size_ranks(struct sf_sizing *sizing, struct sf_config *cfg,
                            struct sf_launch_plan *plan)
{
    for (;; plan->threads_beside = 0) {
        sizing->threads_beside = plan->threads_beside;
        for (int32_t r = 0; r < plan->ranks; r++)
            SF_TRY(sf_size_pool(sizing, &plan->setup, &cfg->kv.stack, &plan->rank[r]));
        SF_TRY(sf_plan_judge(sizing, cfg, plan));
        if (plan->fits || plan->threads_beside == 0) return SF_OK;
    }
}

void sf_launch_plan_free(struct sf_launch_plan *plan)
{
    for (int32_t r = 0; plan->rank != NULL && r < plan->ranks; r++) sf_size_free(&plan->rank[r]);
    free(plan->rank);
    free((void *)plan->placing.head_cost);
    sf_setup_free(&plan->setup);
    memset(plan, 0, sizeof *plan);
}

/* ---- the layout ------------------------------------------------------------------------------ */
static sf_status resolve_ranks(const struct sf_config *cfg, const struct sf_cluster *cluster,
                               struct sf_launch_plan *plan)
{
    plan->tensor = cfg->parallel.tensor;
    plan->pipeline = cfg->parallel.pipeline;
    plan->data = cfg->parallel.data;
    plan->ranks = cluster->ranks;
    int64_t group = (int64_t)plan->tensor * plan->pipeline;     /* at most 2^24: range of keys */
    if (plan->data == SF_OPT_AUTO) {
        if (plan->ranks % group != 0 || plan->ranks < group)
            return SF_FAIL(SF_INVALID, "%d ranks are no multiple of parallel.tensor_parallel_size"
                           " %d x parallel.pipeline_parallel_size %d = %lld", plan->ranks,
                           plan->tensor, plan->pipeline, (long long)group);
        plan->data = (int32_t)(plan->ranks / group);
    }
    if (group * plan->data != plan->ranks)
        return SF_FAIL(SF_INVALID, "%d ranks, but parallel.tensor_parallel_size %d x"
                       " pipeline_parallel_size %d x data_parallel_size %d = %lld; launch %lld"
                       " ranks or change parallel", plan->ranks, plan->tensor, plan->pipeline,
                       plan->data, (long long)(group * plan->data),
                       (long long)(group * plan->data));
    plan->rows_max = cfg->scheduler.max_num_batched_tokens;
    plan->seqs_max = (cfg->scheduler.max_num_seqs + plan->data - 1) / plan->data;
    plan->micro_batches = sf_micro_batches(plan->seqs_max, plan->pipeline);
    plan->fixed = cfg->run.deterministic;
    plan->populate = cfg->kv.memory != SF_OPT_AUTO;
    return SF_OK;
}

enum { AUTO_BLOCK_MAX = 4096 };

enum sf_dtype sf_plan_kv_dtype(const struct sf_config *cfg)
{
    static const enum sf_dtype kv[] = { [SF_KV_F32] = SF_F32, [SF_KV_F16] = SF_F16,
                                        [SF_KV_BF16] = SF_BF16, [SF_KV_INT8] = SF_INT8 };
    return cfg->kv.dtype == SF_KV_AUTO ? (enum sf_dtype)cfg->model.dtype : kv[cfg->kv.dtype];
}

int32_t sf_plan_page_slots(struct sf_config *cfg, const struct sf_model_desc *desc, int32_t tensor,
                           int32_t tokens_max)
{
    if (cfg->kv.block_size != SF_OPT_AUTO) return cfg->kv.block_size;
    for (int32_t slots = SF_BLOCK_SLOTS; slots <= AUTO_BLOCK_MAX; slots *= 2) {
        struct sf_setup setup = { 0 };
        int made = sf_setup_make(desc, tensor, slots, tokens_max, &setup) == SF_OK;
        setup.kv_dtype = sf_plan_kv_dtype(cfg);
        int fits = !made || sf_stack_check(&cfg->kv.stack, &setup) != SF_OK ||
                   sf_stack_tiers_fit(&cfg->kv.stack, &setup, setup.kv_dtype);
        sf_setup_free(&setup);
        if (fits) return slots;
    }
    return SF_BLOCK_SLOTS;
}

static sf_status resolve_model(const struct sf_config *cfg, const struct sf_model_desc *desc,
                               struct sf_launch_plan *plan)
{
    plan->dtype = (enum sf_dtype)cfg->model.dtype;
    plan->kv_dtype = sf_plan_kv_dtype(cfg);
    plan->tokens_max = cfg->scheduler.max_model_len;
    if (plan->tokens_max == SF_OPT_AUTO) plan->tokens_max = desc->context;
    if (plan->tokens_max > desc->context)
        return SF_FAIL(SF_INVALID, "scheduler.max_model_len is %d, but the model's context is %d"
                       " tokens", plan->tokens_max, desc->context);
    if (plan->pipeline > desc->layers)
        return SF_FAIL(SF_INVALID, "parallel.pipeline_parallel_size is %d, but the model has %d"
                       " layers, and a stage needs one", plan->pipeline, desc->layers);
    for (int32_t i = 0; i < desc->layers; i++)
        if (desc->layer[i].q_heads < plan->tensor)
            return SF_FAIL(SF_INVALID, "parallel.tensor_parallel_size is %d, but layer %d has %d"
                           " query heads, and a rank needs one; more ranks can go into"
                           " parallel.pipeline_parallel_size or data_parallel_size", plan->tensor,
                           i, desc->layer[i].q_heads);
    return SF_OK;
}

static int32_t cores_of_rank(const struct sf_cluster *cluster)
{
    int32_t most = 1, *on_node = calloc((size_t)cluster->nodes, sizeof *on_node);
    for (int32_t r = 0; on_node != NULL && r < cluster->ranks; r++) {
        SF_ASSERT(cluster->place[r].node >= 0 && cluster->place[r].node < cluster->nodes);
        if (++on_node[cluster->place[r].node] > most) most = on_node[cluster->place[r].node];
    }
    free(on_node);
    int32_t cores = cluster->cores_per_node / most;
    if (cluster->threads_max > 0 && cluster->threads_max < cores) cores = cluster->threads_max;
    return cores;
}

int32_t sf_plan_threads(const struct sf_config *cfg, const struct sf_cluster *cluster)
{
    int32_t threads = cfg->parallel.threads;
    if (threads == SF_OPT_AUTO) threads = cores_of_rank(cluster);
    return threads < 1 ? 1 : threads;
}

/* Factors of layer groups are made beside the layers by what is idle of a rank's cores, within
 * OMP_NUM_THREADS as well; where the host can make them, and not by so few that the layers' own
 * threads, which wait for them at last, would be through with them long before. */
enum { BESIDE_PAYS = 4 };
static int32_t threads_beside(const struct sf_stack *stack, const struct sf_setup *setup,
                              const struct sf_cluster *cluster, const struct sf_sizing *sizing)
{
    int32_t idle = 0;
    for (int32_t m = 0; m < stack->entries && sizing->host_memory; m++)
        if (stack->entry[m].plan.edits & SF_EDITS_GROUP &&
            !sf_account_replicated(setup, &stack->entry[m]))
            idle = cores_of_rank(cluster) - sizing->threads;
    return idle > 0 && BESIDE_PAYS * idle >= sizing->threads ? idle : 0;
}

const char *sf_launch_plan_compute(const struct sf_launch_plan *plan)
{
    enum sf_isa isa = plan->isa_max != SF_ISA_AUTO ? plan->isa_max : sf_isa_detect();
    if (plan->int8) return "int8";
    int as_stored = strcmp(plan->device, "cpu") != 0 || sf_isa_multiplies(isa, plan->dtype);
    return sf_dtype_name(as_stored ? plan->dtype : SF_F32);
}

enum sf_isa sf_plan_isa_max(const struct sf_config *cfg)
{
    int bf16 = cfg->model.compute != SF_COMPUTE_F32 && (enum sf_dtype)cfg->model.dtype == SF_BF16;
    return !bf16 && sf_isa_multiplies(sf_isa_detect(), SF_BF16) ? SF_ISA_AVX512_VNNI : SF_ISA_AUTO;
}

/* Products are in model.dtype where the processor can; f32 and int8 are to be had everywhere, bf16
 * is not.  A cache of bf16 beside another model.dtype is multiplied in f32 too. */
static sf_status resolve_compute(const struct sf_config *cfg, const struct sf_cluster *cluster,
                                 struct sf_launch_plan *plan)
{
    plan->isa_max = SF_ISA_AUTO;
    plan->device = sf_devices_name(cfg->device, cluster);
    if (cfg->device == SF_DEVICE_AUTO)
        snprintf(plan->device_why, sizeof plan->device_why, "%s", cluster->gpus_why);
    plan->int8 = cfg->model.compute == SF_COMPUTE_INT8;
    if (strcmp(plan->device, "cpu") != 0) {
        if (sf_devices_multiply(cfg)) return SF_OK;
        if (plan->int8)
            return SF_FAIL(SF_UNSUPPORTED, "model.compute is int8, which is the CPU's, and device"
                           " is %s; set device: cpu or model.compute: auto", plan->device);
        return SF_FAIL(SF_UNSUPPORTED, "model.compute is %s, but model.dtype is %s, and on %s"
                       " products are in model.dtype; model.compute: auto takes that",
                       cfg->model.compute == SF_COMPUTE_F32 ? "f32" : "bf16",
                       sf_dtype_name(plan->dtype), plan->device);
    }
    if (cfg->model.compute == SF_COMPUTE_BF16
        && (plan->dtype != SF_BF16 || !sf_isa_multiplies(sf_isa_detect(), SF_BF16)))
        return SF_FAIL(SF_UNSUPPORTED, "model.compute is bf16, but model.dtype is %s and this"
                       " processor (%s) %s bf16; model.compute: auto takes what there is",
                       sf_dtype_name(plan->dtype), sf_isa_name(sf_isa_detect()),
                       sf_isa_multiplies(sf_isa_detect(), SF_BF16) ? "multiplies"
                                                                   : "does not multiply");
    plan->isa_max = sf_plan_isa_max(cfg);
    return SF_OK;
}

/* A tensor group talks after every half layer: it stays on one node unless told otherwise. */
static sf_status check_nodes(const struct sf_config *cfg, const struct sf_cluster *cluster,
                             const struct sf_launch_plan *plan)
{
    for (int32_t first = 0; first < plan->ranks && !cfg->parallel.cross_node;
         first += plan->tensor) {
        int32_t node = cluster->place[first].node;
        for (int32_t r = first + 1; r < first + plan->tensor; r++)
            if (cluster->place[r].node != node)
                return SF_FAIL(SF_INVALID, "ranks %d to %d share the layers of stage %d, but sit on"
                               " nodes %d and %d; launch a multiple of"
                               " parallel.tensor_parallel_size = %d ranks on each node, or set"
                               " parallel.allow_cross_node_tensor_parallel: true", first,
                               first + plan->tensor - 1, first / plan->tensor % plan->pipeline,
                               node, cluster->place[r].node, plan->tensor);
    }
    return SF_OK;
}

static sf_status cut_layers(const struct sf_config *cfg, const struct sf_model_desc *desc,
                            const struct sf_launch_plan *plan, int32_t *count_out)
{
    const struct sf_opt_ints *given = &cfg->parallel.layers;
    if (given->count == SF_OPT_AUTO)
        return sf_cut_layers(desc, plan, &plan->setup, &cfg->kv.stack, plan->pipeline, count_out);
    int64_t sum = 0;
    SF_ASSERT(given->count == plan->pipeline);  /* checked with the configuration */
    for (int32_t s = 0; s < given->count; s++) {
        count_out[s] = given->value[s];
        sum += given->value[s];
    }
    if (sum != desc->layers)
        return SF_FAIL(SF_INVALID, "parallel.pipeline_layers sum to %lld, but the model has %d"
                       " layers", (long long)sum, desc->layers);
    return SF_OK;
}

/* The stack is checked once more with its stages, which cut its layer groups. */
static sf_status set_stages(struct sf_config *cfg, const int32_t *count,
                            struct sf_launch_plan *plan)
{
    int32_t *stage = calloc((size_t)plan->setup.layers, sizeof *stage);
    if (stage == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d layers", plan->setup.layers);
    for (int32_t s = 0, l = 0; s < plan->pipeline; s++)
        for (int32_t i = 0; i < count[s]; i++) stage[l++] = s;
    plan->setup.stage = stage;
    return sf_stack_check(&cfg->kv.stack, &plan->setup);
}

static sf_status choose_placing(const struct sf_config *cfg, struct sf_launch_plan *plan)
{
    double *cost;
    SF_TRY(sf_head_costs(&plan->setup, &cfg->kv.stack, plan->kv_dtype, &cost));
    plan->placing = (struct sf_placing){ (enum sf_placement)cfg->parallel.placement, cost };
    return SF_OK;
}

static sf_status make_ranks(const struct sf_sizing *sizing, const int32_t *count,
                            struct sf_launch_plan *plan)
{
    const struct sf_rank_place *place = sizing->cluster->place;
    for (int32_t r = 0; r < plan->ranks; r++) {
        struct sf_plan_rank *rank = &plan->rank[r];
        rank->rank = r;
        rank->node = place[r].node;
        rank->tp_rank = r % plan->tensor;
        rank->stage = r / plan->tensor % plan->pipeline;
        rank->dp_rank = r / plan->tensor / plan->pipeline;
        if (rank->tp_rank > 0) continue;
        int32_t one_node = 1, layer_first = 0;
        for (int32_t other = r; other < r + plan->tensor; other++)
            one_node &= place[other].node == rank->node;
        for (int32_t s = 0; s < rank->stage; s++) layer_first += count[s];
        SF_TRY(sf_size_group(sizing, plan->tensor, layer_first, count[rank->stage], one_node,
                             rank));
    }
    return SF_OK;
}

/* The table that will pack the weights tells how large they get; it factorises, too. */
static sf_status open_kernels(struct sf_sizing *sizing)
{
    struct sf_outline outline;
    SF_TRY(sf_device_outline(sizing->device, &outline));
    sizing->low_rank = outline.low_rank;
    sizing->v_dim_max = outline.v_dim_max;
    sizing->group_k_dim_max = outline.group_k_dim_max;
    sizing->mat_bytes = outline.mat_bytes;
    sizing->factor_bytes = outline.factor_bytes;
    sizing->host_memory = outline.host_memory;
    return SF_OK;
}

/* Heads that the device's attention does not take. */
static sf_status check_dims(const struct sf_stack *stack, const struct sf_setup *setup,
                            const struct sf_sizing *sizing)
{
    for (int32_t l = 0; l < setup->layers && sizing->v_dim_max > 0; l++)
        if (setup->layer[l].v_dim > sizing->v_dim_max)
            return SF_FAIL(SF_UNSUPPORTED, "layer %d has values of %d elements; attention on the"
                           " device %s takes up to %d; use device: cpu", l, setup->layer[l].v_dim,
                           sizing->device, sizing->v_dim_max);
    for (int32_t m = 0; m < stack->entries && sizing->group_k_dim_max > 0; m++)
        for (int32_t l = 0; l < setup->layers; l++)
            if (stack->entry[m].shape.layer_group[l] >= 0 &&
                setup->layer[l].k_dim > sizing->group_k_dim_max)
                return SF_FAIL(SF_UNSUPPORTED, "method %s: layer %d has keys of %d elements; of"
                               " layer groups attention on the device %s takes up to %d; use"
                               " device: cpu", stack->entry[m].method->name, l,
                               setup->layer[l].k_dim, sizing->device, sizing->group_k_dim_max);
    return SF_OK;
}

static sf_status check_device(const struct sf_stack *stack, const struct sf_setup *setup,
                              const struct sf_sizing *sizing)
{
    const struct sf_method *grouped = sf_stack_grouped(stack);
    SF_TRY(check_dims(stack, setup, sizing));
    if (grouped == NULL || sizing->low_rank) return SF_OK;
    return SF_FAIL(SF_UNSUPPORTED, "method %s: low-rank caches are not built for the device %s;"
                   " use device: cpu", grouped->name, sizing->device);
}
