/* model/trace_result.c: outputs and lanes of a trace, in memory and as a file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/trace.h"

enum { NAME_BYTES = 48, LANE_TENSORS = 5 };

/* ---- in memory ------------------------------------------------------------------------------- */

sf_status sf_trace_result_create(const struct sf_trace *trace, struct sf_trace_result *out)
{
    const struct sf_model_desc *desc = &trace->desc;
    struct sf_trace_result result = { .layers = desc->layers };
    for (int32_t l = 0; l < desc->layers; l++) result.lanes += desc->layer[l].kv_heads;
    SF_ASSERT(result.layers >= 1 && result.lanes >= result.layers);
    result.out = calloc((size_t)result.layers, sizeof *result.out);
    result.lane = calloc((size_t)result.lanes, sizeof *result.lane);
    int there = result.out != NULL && result.lane != NULL;
    for (int32_t l = 0; there && l < desc->layers; l++) {
        size_t row = (size_t)desc->layer[l].q_heads * (size_t)desc->layer[l].v_dim;
        result.out[l] = calloc((size_t)trace->rows * row, sizeof(float));
        there = result.out[l] != NULL;
    }
    if (!there) {
        sf_trace_result_free(&result);
        return SF_FAIL(SF_NO_MEMORY, "no memory for the outputs of %d rows in %d layers",
                       trace->rows, desc->layers);
    }
    *out = result;
    return SF_OK;
}

void sf_trace_result_free(struct sf_trace_result *result)
{
    for (int32_t l = 0; result->out != NULL && l < result->layers; l++) free(result->out[l]);
    for (int32_t i = 0; result->lane != NULL && i < result->lanes; i++)
        sf_trace_lane_free(&result->lane[i]);
    free(result->out);
    free(result->lane);
    *result = (struct sf_trace_result){ 0 };
}

sf_status sf_trace_lane_create(int32_t slots, const struct sf_layer_desc *layer,
                               struct sf_trace_lane *out)
{
    size_t n = (size_t)slots + 1;       /* an empty lane has addresses too */
    struct sf_trace_lane lane = {
        .slots = slots, .pos = calloc(n, sizeof *lane.pos), .tier = calloc(n, 1),
        .bias = calloc(n, sizeof *lane.bias),
        .k = calloc(n * (size_t)layer->k_dim, sizeof *lane.k),
        .v = calloc(n * (size_t)layer->v_dim, sizeof *lane.v) };
    if (!lane.pos || !lane.tier || !lane.bias || !lane.k || !lane.v) {
        sf_trace_lane_free(&lane);
        return SF_FAIL(SF_NO_MEMORY, "no memory for a lane of %d slots", slots);
    }
    *out = lane;
    return SF_OK;
}

void sf_trace_lane_free(struct sf_trace_lane *lane)
{
    free(lane->pos);
    free(lane->tier);
    free(lane->bias);
    free(lane->k);
    free(lane->v);
    *lane = (struct sf_trace_lane){ 0 };
}

/* ---- as a file ------------------------------------------------------------------------------- */

struct list {                           /* the tensors of the file and their names */
    struct sf_st_tensor *tensor;
    char (*name)[NAME_BYTES];
    int32_t tensors;
};

/* The next tensor, named by the caller in the text that is returned. */
static char *add(struct list *list, enum sf_st_type type, const void *data, int32_t n_dims,
                 const int64_t dims[3])
{
    struct sf_st_tensor *tensor = &list->tensor[list->tensors];
    char *name = list->name[list->tensors++];
    *tensor = (struct sf_st_tensor){ .name = name, .type = type, .n_dims = n_dims, .data = data };
    memcpy(tensor->dims, dims, (size_t)n_dims * sizeof *dims);
    return name;
}

static void add_lane(struct list *list, int32_t layer, int32_t head,
                     const struct sf_layer_desc *desc, const struct sf_trace_lane *lane)
{
    const struct { const char *name; enum sf_st_type type; const void *data; int32_t n_dims, dim; }
    part[LANE_TENSORS] = { { "pos", SF_ST_I32, lane->pos, 1, 0 },
                           { "tier", SF_ST_U8, lane->tier, 1, 0 },
                           { "bias", SF_ST_F32, lane->bias, 1, 0 },
                           { "k", SF_ST_F32, lane->k, 2, desc->k_dim },
                           { "v", SF_ST_F32, lane->v, 2, desc->v_dim } };
    for (int i = 0; i < LANE_TENSORS; i++) {
        const int64_t dims[3] = { lane->slots, part[i].dim, 0 };
        snprintf(add(list, part[i].type, part[i].data, part[i].n_dims, dims), NAME_BYTES,
                 "lanes.%d.%d.%s", layer, head, part[i].name);
    }
}

sf_status sf_trace_result_write(const struct sf_trace *trace, const struct sf_trace_result *result,
                                const char *stats, const char *path)
{
    size_t most = (size_t)result->layers + LANE_TENSORS * (size_t)result->lanes;
    struct list list = { .tensor = calloc(most, sizeof *list.tensor),
                         .name = calloc(most, sizeof *list.name) };
    const struct sf_st_meta meta = { "stats", stats };
    const struct sf_trace_lane *lane = result->lane;
    sf_status status = SF_OK;
    if (list.tensor == NULL || list.name == NULL)
        status = SF_FAIL(SF_NO_MEMORY, "no memory for the names of %zu tensors", most);
    for (int32_t l = 0; status == SF_OK && l < result->layers; l++) {
        const struct sf_layer_desc *desc = &trace->desc.layer[l];
        const int64_t dims[3] = { trace->rows, desc->q_heads, desc->v_dim };
        snprintf(add(&list, SF_ST_F32, result->out[l], 3, dims), NAME_BYTES, "layers.%d.out", l);
        for (int32_t h = 0; h < desc->kv_heads; h++) add_lane(&list, l, h, desc, lane++);
    }
    struct sf_st_content content = { .tensor = list.tensor, .tensors = list.tensors, .meta = &meta,
                                     .metas = 1 };
    if (status == SF_OK) status = sf_st_write(path, &content);
    free(list.tensor);
    free(list.name);
    return status;
}
