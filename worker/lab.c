/* worker/lab.c: the rows of a trace through the store, as forward.c feeds those of a model.
 *
 *   rows of the trace -> staged (heads of this rank) -> RoPE -> sf_store_layer -> out
 *
 * One row of `staged` and `qkv` in a layer: the query heads here in order, then the key of each KV
 * head, then the values. */
#include "worker/lab.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/rope.h"
#include "worker/lab_impl.h"

struct layer_shape { int32_t q_heads, kv_heads, k_dim, v_dim; size_t cols, out_cols; };

static struct layer_shape shape_of(const struct sf_lab *lab, int32_t layer)
{
    const struct sf_layer_desc *desc = &lab->desc->layer[layer];
    const struct sf_share *share = lab->spec.share;
    struct layer_shape s = { .q_heads = sf_share_q_heads(share, layer),
                             .kv_heads = share->kv_ptr[layer + 1] - share->kv_ptr[layer],
                             .k_dim = desc->k_dim, .v_dim = desc->v_dim };
    s.cols = (size_t)(s.q_heads + s.kv_heads) * (size_t)s.k_dim +
             (size_t)s.kv_heads * (size_t)s.v_dim;
    s.out_cols = (size_t)s.q_heads * (size_t)s.v_dim;
    return s;
}

/* ---- opening --------------------------------------------------------------------------------- */

static sf_status take_device(struct sf_lab *lab, size_t bytes, const char *what, void *pointer_out)
{
    void *block = NULL;
    if (bytes > 0) SF_TRY(lab->device->k->alloc(lab->device, bytes, what, &block));
    memcpy(pointer_out, &block, sizeof block);
    return SF_OK;
}

static sf_status take_host(size_t bytes, const char *what, void *pointer_out)
{
    void *block;
    SF_TRY(sf_alloc(bytes, what, &block));
    memcpy(pointer_out, &block, sizeof block);
    return SF_OK;
}

static sf_status take_buffers(struct sf_lab *lab)
{
    size_t cols = 0, out_cols = 0, rows = (size_t)lab->rows_max;
    size_t layers = (size_t)lab->desc->layers, type = sf_dtype_bytes(lab->spec.dtype);
    for (int32_t l = 0; l < lab->desc->layers; l++) {
        struct layer_shape s = shape_of(lab, l);
        if (s.cols > cols) cols = s.cols;
        if (s.out_cols > out_cols) out_cols = s.out_cols;
    }
    SF_TRY(take_host(rows * cols * sizeof(float), "rows of the trace", &lab->staged));
    SF_TRY(take_host(rows * out_cols * type, "attention outputs", &lab->fetched));
    SF_TRY(take_host(rows * (size_t)lab->desc->rope_dim * sizeof(float), "rotation tables",
                     &lab->turns));
    SF_TRY(take_device(lab, rows * cols * sizeof(float), "queries, keys and values", &lab->qkv));
    SF_TRY(take_device(lab, rows * (size_t)lab->desc->rope_dim * sizeof(float), "rotation tables",
                       &lab->rope));
    SF_TRY(take_device(lab, rows * out_cols * type, "attention outputs", &lab->attended));
    SF_TRY(take_host(layers * sizeof *lab->out, "outputs", &lab->out));
    for (int32_t l = 0; l < lab->desc->layers; l++)
        SF_TRY(take_host((size_t)lab->spec.trace->rows * shape_of(lab, l).out_cols * sizeof(float),
                         "outputs of a layer", &lab->out[l]));
    return take_host((size_t)lab->spec.share->kv_ptr[lab->desc->layers] * sizeof *lab->lane,
                     "lanes", &lab->lane);
}

static void describe_layer(const struct sf_lab *lab, int32_t l, struct sf_store_lane *lane,
                           struct sf_store_layer *layer)
{
    const struct sf_share *share = lab->spec.share;
    const struct sf_layer_desc *desc = &lab->desc->layer[l];
    float scale = lab->spec.trace->scale;
    int32_t q_first = 0;
    if (!(scale > 0)) scale = (float)(1 / sqrt((double)desc->k_dim));
    *layer = (struct sf_store_layer){ .k_dim = desc->k_dim, .v_dim = desc->v_dim,
                                      .window = desc->window, .scale = scale, .lane = lane,
                                      .lanes = share->kv_ptr[l + 1] - share->kv_ptr[l] };
    for (int32_t j = share->kv_ptr[l]; j < share->kv_ptr[l + 1]; j++) {
        *lane++ = (struct sf_store_lane){ .head_global = share->kv[j].kv_head, .q_first = q_first,
                                          .q_heads = share->kv[j].q_count,
                                          .replica = share->kv[j].replica,
                                          .replicas = share->kv[j].replicas };
        q_first += share->kv[j].q_count;
    }
}

static sf_status open_store(struct sf_lab *lab)
{
    const struct sf_share *share = lab->spec.share;
    int32_t layers = lab->desc->layers, lanes = share->kv_ptr[layers];
    struct sf_store_layer *layer = calloc((size_t)layers, sizeof *layer);
    struct sf_store_lane *lane = calloc((size_t)lanes + 1, sizeof *lane);
    sf_status status = SF_OK;
    if (layer == NULL || lane == NULL)
        status = SF_FAIL(SF_NO_MEMORY, "no memory for %d lanes", lanes);
    for (int32_t l = 0; status == SF_OK && l < layers; l++)
        describe_layer(lab, l, lane + share->kv_ptr[l], &layer[l]);
    struct sf_store_spec spec = { .device = lab->device, .stack = lab->spec.stack,
                                  .setup = lab->spec.setup, .tensor = lab->spec.world,
                                  .layers = layers, .layer = layer,
                                  .dtype = lab->spec.kv_dtype,
                                  .page_slots = lab->spec.page_slots,
                                  .pool_bytes = lab->spec.pool_bytes, .seqs_max = 1,
                                  .rows_max = lab->rows_max };
    if (status == SF_OK) status = sf_store_create(&spec, &lab->store);
    free(lane);
    free(layer);
    return status;
}

static sf_status open_all(struct sf_lab *lab)
{
    const struct sf_trace *trace = lab->spec.trace;
    struct sf_device_spec device = { .name = lab->spec.device, .local_rank = lab->spec.local_rank,
                                     .threads = lab->spec.threads, .isa_max = lab->spec.isa_max,
                                     .rows_max = 1 };       /* there are no products */
    SF_TRY(sf_device_open(&device, &lab->device));
    SF_TRY(take_buffers(lab));
    SF_TRY(open_store(lab));
    return sf_seq_open(lab->store, 0, trace->prompt, trace->rows, &lab->seq);
}

sf_status sf_lab_open(const struct sf_lab_spec *spec, struct sf_lab **lab_out)
{
    struct sf_lab *lab = calloc(1, sizeof *lab);
    if (lab == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a trace");
    SF_ASSERT(spec->share->layer_first == 0);
    SF_ASSERT(spec->share->layer_count == spec->trace->desc.layers);
    lab->spec = *spec;
    lab->desc = &spec->trace->desc;
    lab->rows_max = spec->trace->chunk;
    sf_status status = open_all(lab);
    if (status == SF_OK) *lab_out = lab;
    else sf_lab_close(lab);
    return status;
}

void sf_lab_close(struct sf_lab *lab)
{
    if (lab == NULL) return;
    if (lab->seq != NULL) sf_seq_close(lab->store, lab->seq, NULL);
    sf_store_destroy(lab->store);
    if (lab->device != NULL) {
        lab->device->k->free(lab->device, lab->qkv);
        lab->device->k->free(lab->device, lab->rope);
        lab->device->k->free(lab->device, lab->attended);
        sf_device_close(lab->device);
    }
    for (int32_t l = 0; lab->out != NULL && l < lab->desc->layers; l++) sf_free(lab->out[l]);
    for (int32_t i = 0; lab->lane != NULL && i < lab->spec.share->kv_ptr[lab->desc->layers]; i++)
        sf_trace_lane_free(&lab->lane[i]);
    sf_free(lab->out);
    sf_free(lab->lane);
    sf_free(lab->staged);
    sf_free(lab->fetched);
    sf_free(lab->turns);
    free(lab);
}

/* ---- one call -------------------------------------------------------------------------------- */

/* Heads [first, first + count) of row `row` of a tensor [rows][heads][dim] of the trace. */
static void copy_heads(float *to, const unsigned char *from, int32_t row, int32_t heads,
                       int32_t first, int32_t count, int32_t dim)
{
    size_t at = ((size_t)row * (size_t)heads + (size_t)first) * (size_t)dim;
    memcpy(to, from + at * sizeof(float), (size_t)count * (size_t)dim * sizeof(float));
}

static void stage(struct sf_lab *lab, int32_t layer, const struct layer_shape *s, int32_t first,
                  int32_t rows)
{
    const struct sf_trace_layer *trace = &lab->spec.trace->layer[layer];
    const struct sf_layer_desc *desc = &lab->desc->layer[layer];
    const struct sf_share *share = lab->spec.share;
    for (int32_t r = 0; r < rows; r++) {
        float *q = lab->staged + (size_t)r * s->cols;
        float *k = q + (size_t)s->q_heads * (size_t)s->k_dim;
        float *v = k + (size_t)s->kv_heads * (size_t)s->k_dim;
        for (int32_t j = share->kv_ptr[layer]; j < share->kv_ptr[layer + 1]; j++) {
            const struct sf_kv_share *kv = &share->kv[j];
            copy_heads(q, trace->q, first + r, desc->q_heads, kv->q_first, kv->q_count, s->k_dim);
            copy_heads(k, trace->k, first + r, desc->kv_heads, kv->kv_head, 1, s->k_dim);
            copy_heads(v, trace->v, first + r, desc->kv_heads, kv->kv_head, 1, s->v_dim);
            q += (size_t)kv->q_count * (size_t)s->k_dim;
            k += s->k_dim;
            v += s->v_dim;
        }
    }
}

static sf_status run_layer(struct sf_lab *lab, int32_t layer, int32_t first, int32_t rows)
{
    const struct sf_kernels *k = lab->device->k;
    struct layer_shape s = shape_of(lab, layer);
    size_t count = (size_t)rows * s.out_cols;
    stage(lab, layer, &s, first, rows);
    k->upload(lab->device, lab->qkv, lab->staged, (size_t)rows * s.cols * sizeof(float));
    if (lab->desc->rope_dim > 0)        /* keys follow the queries: one call turns both */
        k->rope(lab->device, rows, s.q_heads + s.kv_heads, s.k_dim, lab->desc->rope_dim, lab->rope,
                lab->qkv, s.cols);
    float *keys = lab->qkv + (size_t)s.q_heads * (size_t)s.k_dim;
    struct sf_kv_item item = { .seq = lab->seq, .rows = rows, .pos_first = first };
    struct sf_kv_step step = { .item = &item, .items = 1, .q = lab->qkv, .k = keys,
                               .v = keys + (size_t)s.kv_heads * (size_t)s.k_dim,
                               .q_stride = s.cols, .k_stride = s.cols, .v_stride = s.cols,
                               .out = lab->attended, .out_stride = s.out_cols,
                               .out_head_stride = (size_t)s.v_dim,
                               .out_dtype = lab->spec.dtype };
    SF_TRY(sf_store_layer(lab->store, layer, &step));
    k->download(lab->device, lab->fetched, lab->attended, count * sf_dtype_bytes(lab->spec.dtype));
    k->sync(lab->device);
    sf_to_f32(lab->spec.dtype, lab->fetched, lab->out[layer] + (size_t)first * s.out_cols, count);
    return sf_comm_beat(lab->spec.world, "layer", layer);
}

static void turn(struct sf_lab *lab, int32_t first, int32_t rows)
{
    size_t floats = (size_t)lab->desc->rope_dim;
    for (int32_t r = 0; r < rows; r++)
        sf_rope_turns(lab->desc, first + r, lab->turns + (size_t)r * floats);
    lab->device->k->upload(lab->device, lab->rope, lab->turns,
                           (size_t)rows * floats * sizeof(float));
}

static sf_status run_rows(struct sf_lab *lab, int32_t first, int32_t rows)
{
    if (lab->desc->rope_dim > 0) turn(lab, first, rows);
    for (int32_t l = 0; l < lab->desc->layers; l++) SF_TRY(run_layer(lab, l, first, rows));
    return SF_OK;
}

/* ---- the whole trace ------------------------------------------------------------------------- */

static sf_status read_lanes(struct sf_lab *lab)
{
    const struct sf_share *share = lab->spec.share;
    for (int32_t l = 0; l < lab->desc->layers; l++)
        for (int32_t j = share->kv_ptr[l]; j < share->kv_ptr[l + 1]; j++) {
            struct sf_trace_lane *lane = &lab->lane[j];
            int32_t number = j - share->kv_ptr[l];
            SF_TRY(sf_trace_lane_create(sf_seq_lane_slots(lab->store, lab->seq, l, number),
                                        &lab->desc->layer[l], lane));
            sf_seq_lane_tiers(lab->store, lab->seq, l, number, lane->tier);
            SF_TRY(sf_seq_lane_read(lab->store, lab->seq, l, number, lane->k, lane->v, lane->pos,
                                    lane->bias));
        }
    return SF_OK;
}

sf_status sf_lab_run(struct sf_lab *lab)
{
    const struct sf_trace *trace = lab->spec.trace;
    for (int32_t first = 0; first < trace->prompt; first += trace->chunk) {
        int32_t left = trace->prompt - first;
        SF_TRY(run_rows(lab, first, left < trace->chunk ? left : trace->chunk));
    }
    for (int32_t row = trace->prompt; row < trace->rows; row++) SF_TRY(run_rows(lab, row, 1));
    SF_TRY(read_lanes(lab));
    sf_seq_close(lab->store, lab->seq, &lab->receipt);
    lab->seq = NULL;
    return SF_OK;
}
