/* coordinator/plan_cut.c: where the layers are cut into stages, and in how many parts the batch
 * runs through them.
 *
 * A pipeline runs at the pace of its dearest stage, so that one is made as cheap as possible; the
 * output head belongs to the last stage and counts there.  Found by dynamic programming over
 * (stages left, layers left), exactly: layers x layers x stages steps, which are few.
 *
 *   SmolLM2-135M in bf16, 64 sequences, max_model_len 512, 2 stages, so 16 rows a step:
 *   30 layers of 7.1 MB + 1.6 MB of cache, head of 56.6 MB: [18][12 + head]  156 | 161 MB
 *
 * Where a method encodes layers in groups, stages end between groups as long as that is not too
 * dear (sf_shape: imbalance_max); elsewhere a group is cut, and its method counts anew from there.
 *
 * A quarter of max_model_len, at most 1,024, stands for the tokens behind a row: sequences
 * start short, and few come near the limit.  Of their cached bytes counts what the methods store at
 * that length: a layer whose heads are cut is a cheap one. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "coordinator/plan_impl.h"
#include "coordinator/sched.h"

enum { TOKENS_SHARE = 4, TOKENS_MOST = 1024 };

/* A micro-batch is on its way, between two stages or to the coordinator and back, for a part of its
 * time: with one for each stage they would wait for that, with two they have the other. */
int32_t sf_micro_batches(int32_t seqs_max, int32_t pipeline)
{
    if (pipeline == 1) return 1;
    return seqs_max >= 2 * pipeline * SF_SCHED_ROWS_WORTH ? 2 * pipeline : pipeline;
}

/* Stored / exact bytes of a layer's lanes at `tokens`. */
static sf_status stored_share(const struct sf_setup *setup, const struct sf_stack *stack,
                              enum sf_dtype kv_dtype, int32_t layer, int32_t tokens,
                              double *share_out)
{
    double stored = 0, exact = 0;
    for (int32_t h = 0; h < setup->layer[layer].groups; h++) {
        struct sf_spot spot = { .layer = layer, .head_global = h, .prompt = tokens,
                                .tokens = tokens };
        struct sf_lane_cost lane;
        SF_TRY(sf_account_lane(setup, stack, kv_dtype, &spot, &lane));
        stored += (double)lane.bytes_hi;
        exact += (double)lane.bytes_exact;
    }
    *share_out = exact > 0 ? stored / exact : 1;
    return SF_OK;
}

sf_status sf_layer_costs(const struct sf_model_desc *desc, const struct sf_launch_plan *plan,
                         const struct sf_setup *setup, const struct sf_stack *stack,
                         int32_t pipeline, double *cost_out, double *head_cost_out)
{
    const double element = (double)sf_dtype_bytes(plan->dtype), d_model = desc->d_model;
    const double kv_element = (double)sf_dtype_bytes(plan->kv_dtype);
    int32_t batches = sf_micro_batches(plan->seqs_max, pipeline);
    double rows = (double)plan->seqs_max / batches;
    double tokens = fmin((double)plan->tokens_max / TOKENS_SHARE, TOKENS_MOST), share;
    for (int32_t i = 0; i < desc->layers; i++) {
        const struct sf_layer_desc *l = &desc->layer[i];
        double kv_columns = (double)l->kv_heads * (l->k_dim + l->v_dim);
        double columns = (double)l->q_heads * (l->k_dim + l->v_dim) + kv_columns + 3.0 * desc->ffn;
        SF_TRY(stored_share(setup, stack, plan->kv_dtype, i, (int32_t)fmax(tokens, 1), &share));
        cost_out[i] = columns * d_model * element
                      + rows * tokens * kv_columns * kv_element * share;
    }
    *head_cost_out = (double)desc->vocab * d_model * element;
    return SF_OK;
}

/* Best of what follows layer `first` in `stages` stages: the dearest stage, then the sum of
 * squares, which is least where stages are level. */
struct best { double most, squares; int32_t count; };

static int better(double most, double squares, const struct best *than)
{
    double slack = 1e-9 * than->most;           /* sums in another order are still equal */
    if (most < than->most - slack) return 1;
    return most <= than->most + slack && squares < than->squares * (1 - 1e-9);
}

sf_status sf_cut_stages(const double *cost, int32_t layers, double head_cost, int32_t stages,
                        int32_t *count_out)
{
    double most;
    return sf_cut_stages_at(cost, layers, head_cost, stages, NULL, count_out, &most);
}

sf_status sf_cut_stages_at(const double *cost, int32_t layers, double head_cost, int32_t stages,
                           const uint8_t *border, int32_t *count_out, double *most_out)
{
    SF_ASSERT(stages >= 1 && stages <= layers);
    size_t width = (size_t)layers + 1;
    struct best *table = calloc((size_t)(stages + 1) * width, sizeof *table);
    double *before = calloc(width, sizeof *before);     /* cost of all layers before i */
    if (table == NULL || before == NULL) {
        free(table);
        free(before);
        return SF_FAIL(SF_NO_MEMORY, "no memory to cut %d layers into stages", layers);
    }
    for (int32_t i = 0; i < layers; i++) before[i + 1] = before[i] + cost[i];

    for (int32_t s = 1; s <= stages; s++)
        for (int32_t first = layers - s; first >= stages - s; first--) {
            struct best *here = &table[(size_t)s * width + (size_t)first];
            *here = (struct best){ .most = INFINITY, .squares = INFINITY };
            /* The earlier stage takes more where cuts are equal: later ones have the samples. */
            for (int32_t count = layers - first - (s - 1); count >= 1; count--) {
                if (s == 1 && count != layers - first) break;
                if (s > 1 && border != NULL && !border[first + count]) continue;
                double mine = before[first + count] - before[first] + (s == 1 ? head_cost : 0);
                const struct best *rest = &table[(size_t)(s - 1) * width + (size_t)(first + count)];
                if (s > 1 && isinf(rest->most)) continue;
                double most = s == 1 ? mine : fmax(mine, rest->most);
                double squares = mine * mine + (s == 1 ? 0 : rest->squares);
                if (isinf(here->most) || better(most, squares, here))
                    *here = (struct best){ most, squares, count };
            }
        }
    *most_out = table[(size_t)stages * width].most;
    for (int32_t s = stages, first = 0; s >= 1 && !isinf(*most_out); s--) {
        int32_t count = table[(size_t)s * width + (size_t)first].count;
        count_out[stages - s] = count;
        first += count;
    }
    free(table);
    free(before);
    return SF_OK;
}

/* Marks the layers with which a stage may begin so that no group of the stack is cut, or, with
 * `must`, none that may not be cut at all; returns how much dearer than the mean the dearest stage
 * may be for that, 0: there are no such groups, INFINITY: as dear as it takes. */
static double group_borders(const struct sf_setup *setup, const struct sf_stack *stack, int must,
                            uint8_t *border)
{
    double slack = 0;
    memset(border, 1, (size_t)setup->layers);
    for (int32_t m = 0; stack != NULL && m < stack->entries; m++) {
        const struct sf_shape *shape = &stack->entry[m].shape;
        if (shape->imbalance_max <= 0 || (must && !isinf(shape->imbalance_max))) continue;
        slack = slack > 0 ? fmin(slack, shape->imbalance_max) : shape->imbalance_max;
        for (int32_t l = 1; l < setup->layers; l++)
            if (shape->layer_group[l] >= 0 && shape->layer_group[l] == shape->layer_group[l - 1])
                border[l] = 0;
    }
    return slack;
}

/* Stages that end where groups do, if that costs no more than it may; else where those do that must
 * be whole, if it can be; else as level as can be. */
static sf_status cut_between(const double *cost, const struct sf_setup *setup, double head,
                             const struct sf_stack *stack, int32_t pipeline, int32_t *count_out)
{
    int32_t layers = setup->layers, *count = calloc((size_t)pipeline, sizeof *count);
    uint8_t *border = calloc((size_t)layers, 1);
    double level, whole, sum = head;
    int done = 0;
    sf_status status = count != NULL && border != NULL
                       ? sf_cut_stages_at(cost, layers, head, pipeline, NULL, count_out, &level)
                       : SF_FAIL(SF_NO_MEMORY, "no memory for %d layers", layers);
    for (int32_t l = 0; l < layers; l++) sum += cost[l];
    for (int must = 0; must < 2 && status == SF_OK && !done; must++) {
        double slack = group_borders(setup, stack, must, border);
        if (slack <= 0) continue;
        status = sf_cut_stages_at(cost, layers, head, pipeline, border, count, &whole);
        done = status == SF_OK && !isinf(whole) &&
               whole <= fmax(level, (1 + slack) * sum / pipeline) * (1 + 1e-9);
        if (done) memcpy(count_out, count, (size_t)pipeline * sizeof *count);
    }
    free(border);
    free(count);
    return status;
}

sf_status sf_cut_layers(const struct sf_model_desc *desc, const struct sf_launch_plan *plan,
                        const struct sf_setup *setup, const struct sf_stack *stack,
                        int32_t pipeline, int32_t *count_out)
{
    double *cost = calloc((size_t)desc->layers, sizeof *cost), head;
    if (cost == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d layers", desc->layers);
    sf_status status = sf_layer_costs(desc, plan, setup, stack, pipeline, cost, &head);
    if (status == SF_OK) status = cut_between(cost, setup, head, stack, pipeline, count_out);
    free(cost);
    return status;
}
