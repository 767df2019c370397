/* worker/forward.c: the rows of a step through the layers of this rank.
 *
 *   x += Attn(norm(x)); x += FFN(norm(x))                       (methods/architectures.md, 1)
 *
 * Queries, keys and values of all rows are computed before attention, tile by tile; after it each
 * tile goes through the output projection, its sum over the tensor ranks, and the FFN with its sum.
 * Everything per row: with `fixed` products a row's bits do not depend on the tile it falls into.
 * */
#include "worker/state.h"

struct layer_shape {
    int32_t layer, q_heads, kv_heads, k_dim, v_dim, chunks;
    int32_t qkv_cols, half;             /* half: columns of gate, and of up */
};

static struct layer_shape shape_of(const struct sf_worker *w, int32_t local)
{
    const struct sf_share *share = w->spec.share;
    const struct sf_layer_desc *desc = &w->desc->layer[share->layer_first + local];
    struct layer_shape s = {.layer = share->layer_first + local,
                            .q_heads = sf_share_q_heads(share, local),
                            .kv_heads = share->kv_ptr[local + 1] - share->kv_ptr[local],
                            .k_dim = desc->k_dim,
                            .v_dim = desc->v_dim,
                            .chunks = share->chunk_ptr[local + 1] - share->chunk_ptr[local]};
    s.qkv_cols = s.q_heads * s.k_dim + s.kv_heads * (s.k_dim + s.v_dim);
    s.half = s.chunks * share->chunk_cols;
    return s;
}

static void *row_of(void *matrix, int32_t row, size_t row_elements, enum sf_dtype dtype)
{
    return (unsigned char *)matrix + (size_t)row * row_elements * sf_dtype_bytes(dtype);
}

/* Queries, keys (rotated) and values of rows [first, first + rows). */
static void project_qkv(struct sf_worker *w, const struct sf_layer_weights *weights,
                        const struct layer_shape *s, int32_t first, int32_t rows)
{
    struct sf_device *device = w->device;
    const struct sf_kernels *k = device->k;
    size_t d_model = (size_t)w->desc->d_model, stride = (size_t)s->qkv_cols;
    float *qkv = w->qkv + (size_t)first * stride;
    k->rmsnorm(device, rows, w->desc->d_model, w->residual + (size_t)first * d_model, d_model,
               weights->attn_norm, w->desc->norm_eps, w->normed, d_model, w->spec.dtype);
    k->matmul(device, weights->qkv, rows, w->normed, d_model, qkv, stride);
    if (weights->qkv_bias != NULL)
        k->add_bias(device, rows, s->qkv_cols, weights->qkv_bias, qkv, stride);
    /* Keys follow the queries in the row, so one call turns both. */
    k->rope(device, rows, s->q_heads + s->kv_heads, s->k_dim, w->desc->rope_dim,
            w->rope + (size_t)first * (size_t)w->desc->rope_dim, qkv, stride);
}

/* x[first..] += sum over the tensor ranks of input * mat, then the bias. */
static sf_status project_back(struct sf_worker *w, const struct sf_mat *mat, const void *input,
                              size_t input_stride, const struct sf_leaf *leaf, int32_t leaves,
                              const float *bias, int32_t first, int32_t rows)
{
    struct sf_device *device = w->device;
    const struct sf_kernels *k = device->k;
    size_t d_model = (size_t)w->desc->d_model;
    float *x = w->residual + (size_t)first * d_model;
    if (mat != NULL && w->spec.fixed)
        k->matmul_leaves(device, mat, rows, input, input_stride, sf_sums_leaf(w),
                         sf_sums_leaf_stride(w), d_model);
    else if (mat != NULL)
        k->matmul(device, mat, rows, input, input_stride, sf_sums_leaf(w), d_model);
    sf_phase(w, SF_PHASE_COMM);
    SF_TRY(sf_sums_add(w, rows, leaf, leaves, x));
    sf_phase(w, SF_PHASE_GEMM);
    if (bias != NULL) k->add_bias(device, rows, w->desc->d_model, bias, x, d_model);
    return SF_OK;
}

static sf_status feed_forward(struct sf_worker *w, const struct sf_layer_weights *weights,
                              const struct layer_shape *s, int32_t first, int32_t rows)
{
    struct sf_device *device = w->device;
    const struct sf_kernels *k = device->k;
    size_t d_model = (size_t)w->desc->d_model, half = (size_t)s->half, stride = 2 * half;
    int32_t chunk_cols = w->spec.share->chunk_cols, slice = w->ws.down_slice;
    size_t act_stride = (size_t)s->chunks * (size_t)slice;
    if (s->chunks > 0) {
        k->rmsnorm(device, rows, w->desc->d_model, w->residual + (size_t)first * d_model, d_model,
                   weights->ffn_norm, w->desc->norm_eps, w->normed, d_model, w->spec.dtype);
        k->matmul(device, weights->gate_up, rows, w->normed, d_model, w->gate_up, stride);
        if (weights->gate_up_bias != NULL)
            k->add_bias(device, rows, 2 * s->half, weights->gate_up_bias, w->gate_up, stride);
        /* A chunk whose slice is padded leaves the padding at the zeros of the start. */
        int32_t parts = slice == chunk_cols ? 1 : s->chunks;
        int32_t cols = slice == chunk_cols ? s->half : chunk_cols;
        for (int32_t part = 0; part < parts; part++) {
            const float *gate = w->gate_up + (size_t)part * (size_t)chunk_cols;
            k->swiglu(device, rows, cols, gate, stride, gate + half, stride,
                      row_of(w->activation, part, (size_t)slice, w->spec.dtype), act_stride,
                      w->spec.dtype);
        }
    }
    return project_back(w, weights->down, w->activation, act_stride, weights->down_leaf,
                        weights->down_leaves, weights->down_bias, first, rows);
}

static sf_status attend(struct sf_worker *w, int32_t local, const struct layer_shape *s,
                        const struct sf_rows *rows)
{
    size_t stride = (size_t)s->qkv_cols;
    float *keys = w->qkv + (size_t)s->q_heads * (size_t)s->k_dim;
    struct sf_kv_step step = {.q = w->qkv,
                              .k = keys,
                              .v = keys + (size_t)s->kv_heads * (size_t)s->k_dim,
                              .q_stride = stride,
                              .k_stride = stride,
                              .v_stride = stride,
                              .out = w->attention,
                              .out_stride = (size_t)s->q_heads * (size_t)w->ws.o_slice,
                              .out_head_stride = (size_t)w->ws.o_slice,
                              .out_dtype = w->spec.dtype};
    sf_phase(w, SF_PHASE_ATTENTION);
    for (int32_t stack = 0; stack <= w->spec.besides; stack++) {
        step.item = rows->item + w->kv_first[stack];
        step.items = w->kv_first[stack + 1] - w->kv_first[stack];
        SF_TRY(sf_store_layer(w->stores[stack], local, &step));
    }
    sf_phase(w, SF_PHASE_GEMM);
    return SF_OK;
}

static sf_status forward_layer(struct sf_worker *w, int32_t local, const struct sf_rows *rows)
{
    const struct sf_layer_weights *weights = &w->weights.layer[local];
    struct layer_shape s = shape_of(w, local);
    int32_t tile = w->ws.tile_rows;
    if (s.q_heads > 0) {
        for (int32_t first = 0; first < rows->rows; first += tile)
            project_qkv(w, weights, &s, first,
                        rows->rows - first < tile ? rows->rows - first : tile);
        SF_TRY(attend(w, local, &s, rows));
    }
    size_t stride = (size_t)s.q_heads * (size_t)w->ws.o_slice;
    for (int32_t first = 0; first < rows->rows; first += tile) {
        int32_t count = rows->rows - first < tile ? rows->rows - first : tile;
        SF_TRY(project_back(w, weights->o, row_of(w->attention, first, stride, w->spec.dtype),
                            stride, weights->o_leaf, weights->o_leaves, weights->o_bias, first,
                            count));
        SF_TRY(feed_forward(w, weights, &s, first, count));
    }
    return SF_OK;
}

sf_status sf_forward_layers(struct sf_worker *w, const struct sf_rows *rows)
{
    w->device->k->rope_table(w->device, rows->rows, w->row_pos, w->inv_freq,
                             w->desc->rope_dim / 2, w->rope);
    sf_phase(w, SF_PHASE_GEMM);
    for (int32_t local = 0; local < w->spec.share->layer_count; local++) {
        SF_TRY(forward_layer(w, local, rows));
        SF_TRY(sf_comm_beat(w->spec.world, "layer", w->spec.share->layer_first + local));
    }
    sf_phase(w, SF_PHASE_OTHER);
    return SF_OK;
}
