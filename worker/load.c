/* worker/load.c: from the mapped file to packed matrices, one tile at a time. */
#include "worker/load.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

struct loader {
    const struct sf_load_spec *spec;
    const struct sf_model_desc *desc;
    struct sf_weights_packed *out;
    float *tile;                        /* the one tile under way */
    size_t tile_elements;
};

static sf_status load_mat(struct loader *load, enum sf_mat_kind kind, int32_t layer,
                          struct sf_mat **mat_out)
{
    const struct sf_load_spec *spec = load->spec;
    struct sf_mat_shape shape;
    sf_share_mat(load->desc, spec->share, kind, layer, spec->dtype, spec->fixed,
                 kind == SF_MAT_HEAD ? spec->head_rows : spec->tile_rows, &shape);
    shape.int8 = spec->int8;
    *mat_out = NULL;
    if (shape.cols == 0 || shape.slices == 0) return SF_OK;
    const struct sf_kernels *k = spec->device->k;
    SF_TRY(k->mat_create(spec->device, &shape, mat_out));
    load->out->bytes += k->mat_bytes(&shape);

    size_t elements = (size_t)shape.panel_cols * (size_t)shape.k_slice;
    if (elements > load->tile_elements) {
        sf_free(load->tile);
        load->tile = NULL;
        load->tile_elements = 0;
        void *block;
        SF_TRY(sf_alloc(elements * sizeof(float), "a tile of weights", &block));
        load->tile = block;
        load->tile_elements = elements;
    }
    int32_t panels = (shape.cols + shape.panel_cols - 1) / shape.panel_cols;
    for (int32_t panel = 0; panel < panels; panel++) {
        for (int32_t slice = 0; slice < shape.slices; slice++) {
            SF_TRY(sf_share_fill(spec->model, spec->share, kind, layer, &shape, panel, slice,
                                 load->tile));
            SF_TRY(k->mat_pack(spec->device, *mat_out, panel, slice, load->tile));
        }
        SF_TRY(sf_comm_beat(spec->world, "load", spec->share->layer_first + layer));
    }
    return SF_OK;
}

/* A vector of the model, whole, as f32 on the device; NULL if the model has none. */
static sf_status load_vector(struct loader *load, enum sf_role role, int32_t layer, float **out)
{
    const struct sf_weight *weight = sf_model_weight(load->spec->model, role, layer);
    *out = NULL;
    if (weight == NULL) return SF_OK;
    size_t bytes = (size_t)weight->cols * sizeof(float);
    const struct sf_kernels *k = load->spec->device->k;
    void *host, *device;
    SF_TRY(sf_alloc(bytes, weight->name, &host));
    sf_status status = sf_weight_read_finite(weight, 0, 0, weight->cols, host);
    if (status == SF_OK) status = k->alloc(load->spec->device, bytes, weight->name, &device);
    if (status == SF_OK) {
        k->upload(load->spec->device, device, host, bytes);
        k->sync(load->spec->device);
        *out = device;
        load->out->bytes += (int64_t)bytes;
    }
    sf_free(host);
    return status;
}

/* The bias beside a matrix, in the order of its columns; NULL if the model has none. */
static sf_status load_bias(struct loader *load, enum sf_mat_kind kind, int32_t local, float **out)
{
    const struct sf_load_spec *spec = load->spec;
    const struct sf_kernels *k = spec->device->k;
    int32_t cols = sf_share_bias_cols(load->desc, spec->share, kind, local);
    *out = NULL;
    if (cols == 0) return SF_OK;
    size_t bytes = (size_t)cols * sizeof(float);
    void *host, *device;
    SF_TRY(sf_alloc(bytes, "a bias", &host));
    sf_status status = sf_share_fill_bias(spec->model, spec->share, kind, local, host);
    if (status == SF_OK) status = k->alloc(spec->device, bytes, "a bias", &device);
    if (status == SF_OK) {
        k->upload(spec->device, device, host, bytes);
        k->sync(spec->device);
        *out = device;
        load->out->bytes += (int64_t)bytes;
    }
    sf_free(host);
    return status;
}

/* Which rank holds which leaf of a row-parallel sum.  Without `fixed` each rank that holds any leaf
 * has added its own up already, so there is one leaf a rank. */
static sf_status make_leaves(struct loader *load, enum sf_mat_kind kind, int32_t local,
                             struct sf_leaf **leaf_out, int32_t *count_out)
{
    const struct sf_load_spec *spec = load->spec;
    int32_t layer = spec->share->layer_first + local;
    int32_t most = load->desc->layer[layer].q_heads + spec->share->chunks + spec->share->tp_size;
    int32_t *owner = calloc((size_t)most * 2, sizeof *owner), leaves = 0;
    struct sf_leaf *leaf = calloc((size_t)most, sizeof *leaf);
    sf_status status = SF_OK;
    if (owner == NULL || leaf == NULL)
        status = SF_FAIL(SF_NO_MEMORY, "no memory for the leaves of layer %d", layer);
    else
        status = sf_share_order(load->desc, spec->placing, spec->share, local, kind, spec->fixed,
                                owner, owner + most, &leaves);
    for (int32_t i = 0; i < leaves; i++)
        leaf[i] = (struct sf_leaf){.owner = owner[i], .local = owner[most + i]};
    free(owner);
    if (status != SF_OK) {
        free(leaf);
        return status;
    }
    *leaf_out = leaf;
    *count_out = leaves;
    return SF_OK;
}

static void release_layer(const struct sf_model *model, int32_t layer)
{
    for (int role = SF_W_ATTN_NORM; role < SF_ROLES; role++) {
        const struct sf_weight *weight = sf_model_weight(model, (enum sf_role)role, layer);
        if (weight != NULL) sf_weight_release(weight);
    }
}

static sf_status load_layer(struct loader *load, int32_t local, struct sf_layer_weights *w)
{
    int32_t layer = load->spec->share->layer_first + local;
    SF_TRY(load_vector(load, SF_W_ATTN_NORM, layer, &w->attn_norm));
    SF_TRY(load_mat(load, SF_MAT_QKV, local, &w->qkv));
    SF_TRY(load_bias(load, SF_MAT_QKV, local, &w->qkv_bias));
    SF_TRY(load_mat(load, SF_MAT_O, local, &w->o));
    SF_TRY(load_bias(load, SF_MAT_O, local, &w->o_bias));
    SF_TRY(load_vector(load, SF_W_FFN_NORM, layer, &w->ffn_norm));
    SF_TRY(load_mat(load, SF_MAT_GATE_UP, local, &w->gate_up));
    SF_TRY(load_bias(load, SF_MAT_GATE_UP, local, &w->gate_up_bias));
    SF_TRY(load_mat(load, SF_MAT_DOWN, local, &w->down));
    SF_TRY(load_bias(load, SF_MAT_DOWN, local, &w->down_bias));
    SF_TRY(make_leaves(load, SF_MAT_O, local, &w->o_leaf, &w->o_leaves));
    SF_TRY(make_leaves(load, SF_MAT_DOWN, local, &w->down_leaf, &w->down_leaves));
    release_layer(load->spec->model, layer);
    return SF_OK;
}

static sf_status load_all(struct loader *load)
{
    const struct sf_share *share = load->spec->share;
    load->out->layer = calloc((size_t)share->layer_count, sizeof *load->out->layer);
    if (load->out->layer == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %d layers", share->layer_count);
    for (int32_t local = 0; local < share->layer_count; local++)
        SF_TRY(load_layer(load, local, &load->out->layer[local]));
    if (!share->last_stage) return SF_OK;
    SF_TRY(load_vector(load, SF_W_OUT_NORM, -1, &load->out->out_norm));
    SF_TRY(load_mat(load, SF_MAT_HEAD, 0, &load->out->head));
    sf_weight_release(sf_model_weight(load->spec->model, SF_W_OUT, -1));
    return SF_OK;
}

sf_status sf_weights_load(const struct sf_load_spec *spec, struct sf_weights_packed *out)
{
    struct loader load = {.spec = spec, .desc = sf_model_desc(spec->model), .out = out};
    memset(out, 0, sizeof *out);
    sf_status status = load_all(&load);
    sf_free(load.tile);
    if (status != SF_OK) sf_weights_unload(spec, out);
    return status;
}

void sf_weights_unload(const struct sf_load_spec *spec, struct sf_weights_packed *packed)
{
    struct sf_device *device = spec->device;
    const struct sf_kernels *k = device->k;
    for (int32_t i = 0; packed->layer != NULL && i < spec->share->layer_count; i++) {
        struct sf_layer_weights *w = &packed->layer[i];
        struct sf_mat *mat[] = {w->qkv, w->o, w->gate_up, w->down};
        float *vector[] = {w->attn_norm, w->ffn_norm, w->qkv_bias, w->gate_up_bias, w->o_bias,
                           w->down_bias};
        for (size_t m = 0; m < sizeof mat / sizeof mat[0]; m++)
            if (mat[m] != NULL) k->mat_destroy(device, mat[m]);
        for (size_t v = 0; v < sizeof vector / sizeof vector[0]; v++) k->free(device, vector[v]);
        free(w->o_leaf);
        free(w->down_leaf);
    }
    free(packed->layer);
    if (packed->head != NULL) k->mat_destroy(device, packed->head);
    k->free(device, packed->out_norm);
    memset(packed, 0, sizeof *packed);
}
