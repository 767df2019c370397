/* model/fill.c: from the rows of a model file to the tiles and biases of one rank's matrices.
 *
 * A column of a matrix is a row of some weight, or nothing (the missing columns of the model's last
 * chunk); a slice of its k axis is a run of that row's elements:
 *
 *   QKV      column c: q row of head c / k_dim, then k rows, then v rows         k: the whole row
 *   GATE_UP  column c: gate row of chunk c / chunk_cols, then up rows            k: the whole row
 *   HEAD     column c: row vocab_first + c                                       k: the whole row
 *   O        column c: row c                     k: v_dim elements for each query head here
 *   DOWN     column c: row c                     k: chunk_cols elements for each chunk here
 *
 * The heads of a rank are consecutive, and so are its chunks, so a slice is one run. */
#include <string.h>

#include "model/share.h"
#include "model/weights.h"

struct source { const struct sf_weight *weight; int32_t row; };     /* weight NULL: zeros */

struct view {                           /* what a rank holds of one layer */
    const struct sf_model *model;
    const struct sf_share *share;
    int32_t layer;                      /* the model's; -1 for the head */
    int32_t q_first, q_heads, kv_first, kv_heads, k_dim, v_dim;
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
    const struct sf_kv_share *kv = &share->kv[share->kv_ptr[layer_local]];
    int32_t chunk_at = share->chunk_ptr[layer_local];
    v.kv_heads = share->kv_ptr[layer_local + 1] - share->kv_ptr[layer_local];
    v.kv_first = kv[0].kv_head;
    v.q_first = kv[0].q_first;
    v.q_heads = sf_share_q_heads(share, layer_local);
    v.k_dim = layer->k_dim;
    v.v_dim = layer->v_dim;
    v.chunks = share->chunk_ptr[layer_local + 1] - chunk_at;
    v.chunk_first = v.chunks > 0 ? share->chunk[chunk_at] : 0;
    return v;
}

/* The weights and biases behind the columns of QKV and GATE_UP, part after part. */
struct section { enum sf_role weight, bias; int32_t first, cols; };

static int32_t sections_of(const struct view *v, enum sf_mat_kind kind, struct section out[3])
{
    int32_t q = v->q_heads * v->k_dim, k = v->kv_heads * v->k_dim, c = v->share->chunk_cols;
    if (kind == SF_MAT_QKV) {
        out[0] = (struct section){ SF_W_Q, SF_W_Q_BIAS, v->q_first * v->k_dim, q };
        out[1] = (struct section){ SF_W_K, SF_W_K_BIAS, v->kv_first * v->k_dim, k };
        out[2] = (struct section){ SF_W_V, SF_W_V_BIAS, v->kv_first * v->v_dim,
                                   v->kv_heads * v->v_dim };
        return 3;
    }
    if (kind == SF_MAT_GATE_UP) {
        out[0] = (struct section){ SF_W_GATE, SF_W_GATE_BIAS, v->chunk_first * c, v->chunks * c };
        out[1] = (struct section){ SF_W_UP, SF_W_UP_BIAS, v->chunk_first * c, v->chunks * c };
        return 2;
    }
    out[0] = (struct section){ SF_W_OUT, SF_ROLES, v->share->vocab_first, v->share->vocab_count };
    return 1;
}

/* The row behind column c of a column-parallel matrix. */
static struct source source_of(const struct view *v, enum sf_mat_kind kind, int32_t c)
{
    struct section section[3];
    int32_t sections = sections_of(v, kind, section);
    for (int32_t i = 0; i < sections; c -= section[i++].cols) {
        if (c >= section[i].cols) continue;
        const struct sf_weight *weight = sf_model_weight(v->model, section[i].weight, v->layer);
        int32_t row = section[i].first + c;
        return (struct source){ row < weight->rows ? weight : NULL, row };
    }
    return (struct source){ NULL, 0 };
}

sf_status sf_share_fill(const struct sf_model *model, const struct sf_share *share,
                        enum sf_mat_kind kind, int32_t layer_local,
                        const struct sf_mat_shape *shape, int32_t panel, int32_t slice,
                        float *tile)
{
    SF_ASSERT(slice >= 0 && slice < shape->slices);
    SF_ASSERT(panel >= 0 && (int64_t)panel * shape->panel_cols < shape->cols);
    struct view v = view_of(model, share, kind, layer_local);
    int row_parallel = kind == SF_MAT_O || kind == SF_MAT_DOWN;
    /* Elements of a row that this slice takes. */
    int32_t first = 0, count = shape->k_slice;
    const struct sf_weight *rows = NULL;
    if (row_parallel) {
        int32_t unit = kind == SF_MAT_O ? v.v_dim : share->chunk_cols;
        int32_t units = shape->fixed ? 1 : kind == SF_MAT_O ? v.q_heads : v.chunks;
        rows = sf_model_weight(model, kind == SF_MAT_O ? SF_W_O : SF_W_DOWN, v.layer);
        first = ((kind == SF_MAT_O ? v.q_first : v.chunk_first) + slice) * unit;
        count = units * unit;
        if (count > rows->cols - first) count = rows->cols - first;     /* a narrower last chunk */
    }
    memset(tile, 0, (size_t)shape->panel_cols * (size_t)shape->k_slice * sizeof *tile);
    for (int32_t i = 0; i < shape->panel_cols; i++) {
        int32_t c = panel * shape->panel_cols + i;
        if (c >= shape->cols) break;
        struct source source = row_parallel ? (struct source){ rows, c } : source_of(&v, kind, c);
        if (source.weight != NULL)
            SF_TRY(sf_weight_read_finite(source.weight, source.row, first, count,
                                         tile + (size_t)i * (size_t)shape->k_slice));
    }
    return SF_OK;
}

sf_status sf_share_fill_bias(const struct sf_model *model, const struct sf_share *share,
                             enum sf_mat_kind kind, int32_t layer_local, float *bias)
{
    int32_t cols = sf_share_bias_cols(sf_model_desc(model), share, kind, layer_local);
    SF_ASSERT(cols > 0);
    struct view v = view_of(model, share, kind, layer_local);
    struct section section[3];
    int32_t sections = 1;
    section[0] = (struct section){ SF_W_DOWN, SF_W_DOWN_BIAS, 0, cols };
    if (kind == SF_MAT_O) section[0] = (struct section){ SF_W_O, SF_W_O_BIAS, 0, cols };
    else if (kind != SF_MAT_DOWN) sections = sections_of(&v, kind, section);
    memset(bias, 0, (size_t)cols * sizeof *bias);
    for (int32_t i = 0; i < sections; bias += section[i++].cols) {
        const struct sf_weight *weight = sf_model_weight(model, section[i].bias, v.layer);
        if (weight == NULL || section[i].cols == 0) continue;
        int32_t count = weight->cols - section[i].first;
        if (count > section[i].cols) count = section[i].cols;
        SF_TRY(sf_weight_read_finite(weight, 0, section[i].first, count, bias));
    }
    return SF_OK;
}
