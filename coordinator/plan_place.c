/* coordinator/plan_place.c: what KV heads cost, and how level the tensor ranks are with them.
 *
 * The dealing itself is model/share.c's: it takes the costs and gives the dearest heads first to
 * the ranks that hold least.  Two numbers say what that brings (methods/razor_attention.md, 5):
 *
 *   two layers, two ranks, heads of 8 and 1     in blocks: 8 | 1, 8 | 1     by cost: 8 | 1, 1 | 8
 *   memory: fullest rank / mean rank            16 / 9                      9 / 9
 *   layers: sum of fullest / sum of mean        (8 + 8) / (4.5 + 4.5)       the same
 *
 * The second cannot always be mended: a step waits in each layer for the rank that reads most, and
 * a layer with one dear head is level nowhere. */
#include <stdlib.h>
#include "coordinator/plan_impl.h"

sf_status sf_head_costs(const struct sf_setup *setup, const struct sf_stack *stack,
                        enum sf_dtype kv_dtype, double **cost_out)
{
    double *cost = calloc((size_t)setup->lanes + 1, sizeof *cost);
    sf_status status = SF_OK;
    if (cost == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d lanes", setup->lanes);
    for (int32_t l = 0; l < setup->layers; l++) {
        const struct sf_layer *layer = &setup->layer[l];
        for (int32_t h = 0; h < layer->groups && status == SF_OK; h++) {
            struct sf_spot spot = { .layer = l, .head_global = h, .prompt = setup->tokens_max,
                                    .tokens = setup->tokens_max };
            struct sf_lane_cost lane = { 0 };
            SF_ASSERT(layer->lane_first + h < setup->lanes);
            status = sf_account_lane(setup, stack, kv_dtype, &spot, &lane);
            cost[layer->lane_first + h] = (double)lane.bytes_hi;
        }
    }
    if (status != SF_OK) {
        free(cost);
        return status;
    }
    *cost_out = cost;
    return SF_OK;
}

/* Sums of one stage; bytes[layers of the stage x tensor] is scratch. */
static sf_status level_stage(const struct sf_launch_plan *plan, const struct sf_model_desc *desc,
                             const struct sf_placing *placing, int32_t stage, double *bytes,
                             double *memory_out, double *most_sum, double *mean_sum)
{
    const struct sf_share *like = &plan->rank[stage * plan->tensor].share;
    int32_t layers = like->layer_count, ranks = plan->tensor;
    double fullest = 0, all = 0;
    for (int32_t r = 0; r < ranks; r++) {
        struct sf_share share;
        double mine = 0;
        SF_TRY(sf_share_make(desc, placing, ranks, r, like->layer_first, layers, &share));
        for (int32_t i = 0; i < layers; i++) {
            const double *cost = placing->head_cost
                                 + plan->setup.layer[like->layer_first + i].lane_first;
            double *here = &bytes[(size_t)i * (size_t)ranks + (size_t)r];
            *here = 0;
            for (int32_t j = share.kv_ptr[i]; j < share.kv_ptr[i + 1]; j++)
                *here += cost[share.kv[j].kv_head];
            mine += *here;
        }
        sf_share_free(&share);
        if (mine > fullest) fullest = mine;
        all += mine;
    }
    for (int32_t i = 0; i < layers; i++) {
        double most = 0;
        for (int32_t r = 0; r < ranks; r++) {
            double here = bytes[(size_t)i * (size_t)ranks + (size_t)r];
            if (here > most) most = here;
        }
        *most_sum += most;
    }
    *mean_sum += all / ranks;
    *memory_out = all > 0 ? fullest * ranks / all : 1;
    return SF_OK;
}

sf_status sf_plan_level(const struct sf_launch_plan *plan, const struct sf_model_desc *desc,
                        enum sf_placement rule, struct sf_plan_level *out)
{
    struct sf_placing placing = { rule, plan->placing.head_cost };
    struct sf_plan_level level = { .memory = 1 };
    double *bytes = calloc((size_t)desc->layers * (size_t)plan->tensor, sizeof *bytes);
    double most = 0, mean = 0;
    sf_status status = bytes != NULL ? SF_OK
                                     : SF_FAIL(SF_NO_MEMORY, "no memory for %d layers on %d ranks",
                                               desc->layers, plan->tensor);
    for (int32_t stage = 0; stage < plan->pipeline && status == SF_OK; stage++) {
        double memory = 1;
        status = level_stage(plan, desc, &placing, stage, bytes, &memory, &most, &mean);
        if (memory > level.memory) level.memory = memory;
    }
    free(bytes);
    if (status != SF_OK) return status;
    level.layers = mean > 0 ? most / mean : 1;
    *out = level;
    return SF_OK;
}
