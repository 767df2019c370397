/* model/fill.c: from the rows of a model file to the tiles and biases of one rank's matrices.
 *
 * A column of a matrix is a row of some weight, or nothing (the missing columns of the model's last
 * chunk); a slice of its k axis is one or several runs of that row's elements:
 *
 *   QKV      column c: the q rows of each KV head here, then their k rows, then
 *            their v rows                                                        k: the whole row
 *   GATE_UP  column c: gate row of chunk c / chunk_cols, then up rows            k: the whole row
 *   HEAD     column c: row vocab_first + c                                       k: the whole row
 *   O        column c: row c                     k: v_dim elements for each query head here
 *   DOWN     column c: row c                     k: chunk_cols elements for each chunk here
 *
 * The chunks of a rank are consecutive; its KV heads need not be, but the query heads of each are.
 *
 *   KV heads 0 and 3 of 4, with two query heads each, q 0 1 and q 6 7:
 *     QKV    rows of q 0 1 | q 6 7 | k 0 | k 3 | v 0 | v 3
 *     O      elements of q 0 1, then those of q 6 7 (fixed: a slice for each of the four) */
#include <string.h>

#include "model/share.h"
#include "model/weights.h"

struct source { const struct sf_weight *weight; int32_t row; };     /* weight NULL: zeros */

struct view {                           /* what a rank holds of one layer */
    const struct sf_model *model;
    const struct sf_share *share;
    int32_t layer;                      /* the model's; -1 for the head */
    const struct sf_kv_share *kv;       /* [kv_heads] */
    int32_t kv_heads, k_dim, v_dim;
    int32_t chunk_first, chunks;
};

static struct view view_of(const struct sf_model *model, const struct sf_share *share,
                           enum sf_mat_kind kind, int32_t layer_local)
{
    struct view v = { .model = model, .share = share, .layer = -1 };
    if (kind == SF_MAT_HEAD) return v;
    SF_ASSERT(layer_local >= 0 && layer_local < share->layer_count);
    v.layer = share->layer_first + layer_local;
    const struct sf_layer_desc *layer = &sf_model_desc(model)->layer[v.layer];
    int32_t chunk_at = share->chunk_ptr[layer_local];
    v.kv = &share->kv[share->kv_ptr[layer_local]];
    v.kv_heads = share->kv_ptr[layer_local + 1] - share->kv_ptr[layer_local];
    v.k_dim = layer->k_dim;
    v.v_dim = layer->v_dim;
    v.chunks = share->chunk_ptr[layer_local + 1] - chunk_at;
    v.chunk_first = v.chunks > 0 ? share->chunk[chunk_at] : 0;
    return v;
}

/* ---- column-parallel ------------------------------------------------------------------------ */

/* Columns that are consecutive rows of one weight, and the bias beside them. */
struct section { enum sf_role weight, bias; int32_t first, cols; };

/* The i-th section of the columns of a column-parallel matrix; 0 past the last. */
static int section_at(const struct view *v, enum sf_mat_kind kind, int32_t i, struct section *out)
{
    int32_t chunks_first = v->chunk_first * v->share->chunk_cols;
    int32_t chunks_cols = v->chunks * v->share->chunk_cols;
    if (kind == SF_MAT_QKV) {
        if (i >= 3 * v->kv_heads) return 0;
        const struct sf_kv_share *kv = &v->kv[i % v->kv_heads];
        switch (i / v->kv_heads) {
        case 0: *out = (struct section){ SF_W_Q, SF_W_Q_BIAS, kv->q_first * v->k_dim,
                                         kv->q_count * v->k_dim }; break;
        case 1: *out = (struct section){ SF_W_K, SF_W_K_BIAS, kv->kv_head * v->k_dim, v->k_dim };
                break;
        default: *out = (struct section){ SF_W_V, SF_W_V_BIAS, kv->kv_head * v->v_dim, v->v_dim };
        }
        return 1;
    }
    if (kind == SF_MAT_GATE_UP) {
        if (i >= 2) return 0;
        *out = i == 0 ? (struct section){ SF_W_GATE, SF_W_GATE_BIAS, chunks_first, chunks_cols }
                      : (struct section){ SF_W_UP, SF_W_UP_BIAS, chunks_first, chunks_cols };
        return 1;
    }
    *out = (struct section){ SF_W_OUT, SF_ROLES, v->share->vocab_first, v->share->vocab_count };
    return i == 0;
}

/* The row behind column c of a column-parallel matrix. */
static struct source source_of(const struct view *v, enum sf_mat_kind kind, int32_t c)
{
    struct section section;
    for (int32_t i = 0; section_at(v, kind, i, &section); c -= section.cols, i++) {
        if (c >= section.cols) continue;
        const struct sf_weight *weight = sf_model_weight(v->model, section.weight, v->layer);
        int32_t row = section.first + c;
        return (struct source){ row < weight->rows ? weight : NULL, row };
    }
    return (struct source){ NULL, 0 };
}

static sf_status fill_columns(const struct view *v, enum sf_mat_kind kind,
                              const struct sf_mat_shape *shape, int32_t panel, float *tile)
{
    for (int32_t i = 0; i < shape->panel_cols; i++) {
        int32_t c = panel * shape->panel_cols + i;
        if (c >= shape->cols) break;
        struct source source = source_of(v, kind, c);
        if (source.weight != NULL)
            SF_TRY(sf_weight_read_finite(source.weight, source.row, 0, shape->k_slice,
                                         tile + (size_t)i * (size_t)shape->k_slice));
    }
    return SF_OK;
}

/* ---- row-parallel --------------------------------------------------------------------------- */

struct run { int32_t first, count; };   /* elements of a row */

/* The i-th run that a slice of O takes, in the order of the slice; 0 past the last. */
static int head_run(const struct view *v, int fixed, int32_t slice, int32_t i, struct run *out)
{
    const struct sf_kv_share *kv = v->kv;
    if (!fixed) {                       /* one slice: all heads here */
        if (i >= v->kv_heads) return 0;
        *out = (struct run){ kv[i].q_first * v->v_dim, kv[i].q_count * v->v_dim };
        return 1;
    }
    for (; slice >= kv->q_count; kv++) {
        slice -= kv->q_count;
        SF_ASSERT(kv + 1 < v->kv + v->kv_heads);
    }
    *out = (struct run){ (kv->q_first + slice) * v->v_dim, v->v_dim };
    return i == 0;
}

/* Likewise of DOWN, where the model's last chunk may be narrower. */
static int chunk_run(const struct view *v, int fixed, int32_t slice, int32_t i, int32_t cols,
                     struct run *out)
{
    int32_t unit = v->share->chunk_cols, first = (v->chunk_first + slice) * unit;
    int32_t count = fixed ? unit : v->chunks * unit;
    *out = (struct run){ first, count < cols - first ? count : cols - first };
    return i == 0;
}

static sf_status fill_rows(const struct view *v, enum sf_mat_kind kind,
                           const struct sf_mat_shape *shape, int32_t panel, int32_t slice,
                           float *tile)
{
    const struct sf_weight *rows = sf_model_weight(v->model, kind == SF_MAT_O ? SF_W_O : SF_W_DOWN,
                                                   v->layer);
    struct run run;
    int32_t at = 0;
    for (int32_t i = 0; kind == SF_MAT_O ? head_run(v, shape->fixed, slice, i, &run)
                                         : chunk_run(v, shape->fixed, slice, i, rows->cols, &run);
         at += run.count, i++)
        for (int32_t col = 0; col < shape->panel_cols; col++) {
            int32_t c = panel * shape->panel_cols + col;
            if (c >= shape->cols) break;
            SF_ASSERT(at + run.count <= shape->k_slice);
            SF_TRY(sf_weight_read_finite(rows, c, run.first, run.count,
                                         tile + (size_t)col * (size_t)shape->k_slice + at));
        }
    return SF_OK;
}

/* ---- both ----------------------------------------------------------------------------------- */

sf_status sf_share_fill(const struct sf_model *model, const struct sf_share *share,
                        enum sf_mat_kind kind, int32_t layer_local,
                        const struct sf_mat_shape *shape, int32_t panel, int32_t slice,
                        float *tile)
{
    SF_ASSERT(slice >= 0 && slice < shape->slices);
    SF_ASSERT(panel >= 0 && (int64_t)panel * shape->panel_cols < shape->cols);
    struct view v = view_of(model, share, kind, layer_local);
    memset(tile, 0, (size_t)shape->panel_cols * (size_t)shape->k_slice * sizeof *tile);
    if (kind == SF_MAT_O || kind == SF_MAT_DOWN)
        return fill_rows(&v, kind, shape, panel, slice, tile);
    return fill_columns(&v, kind, shape, panel, tile);
}

/* Elements first..first + cols of a bias; zeros past its end, or where the model has none. */
static sf_status fill_section(const struct view *v, const struct section *section, float *bias)
{
    const struct sf_weight *weight = sf_model_weight(v->model, section->bias, v->layer);
    if (weight == NULL || section->cols == 0) return SF_OK;
    int32_t count = weight->cols - section->first;
    if (count > section->cols) count = section->cols;
    return sf_weight_read_finite(weight, 0, section->first, count, bias);
}

sf_status sf_share_fill_bias(const struct sf_model *model, const struct sf_share *share,
                             enum sf_mat_kind kind, int32_t layer_local, float *bias)
{
    int32_t cols = sf_share_bias_cols(sf_model_desc(model), share, kind, layer_local);
    SF_ASSERT(cols > 0);
    struct view v = view_of(model, share, kind, layer_local);
    struct section section = kind == SF_MAT_O
                                 ? (struct section){ SF_W_O, SF_W_O_BIAS, 0, cols }
                                 : (struct section){ SF_W_DOWN, SF_W_DOWN_BIAS, 0, cols };
    memset(bias, 0, (size_t)cols * sizeof *bias);
    if (kind == SF_MAT_O || kind == SF_MAT_DOWN) return fill_section(&v, &section, bias);
    for (int32_t i = 0; section_at(&v, kind, i, &section); bias += section.cols, i++)
        SF_TRY(fill_section(&v, &section, bias));
    return SF_OK;
}
