/* model/workspace.c: sizes of the buffers of one step; see workspace.h for who uses which. */
#include "model/workspace.h"

#include <string.h>
#include "base/memory.h"
#include "kernels/kernels.h"

enum {
    TILE_ROWS = 256, TILE_ROWS_FIXED = 4 * SF_FIXED_ROWS,
    HEAD_ROWS = 64, HEAD_ROWS_FIXED = SF_FIXED_ROWS,
    CHOICE_BYTES = 16,                  /* of a token: a weight, a key and its number */
    SLICE_FIXED_MIN = 128               /* a fixed product has no narrower slice (share.h) */
};

static int32_t larger(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

static int32_t smaller(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

/* Whole cache lines, so that the sum of the buffers is what an arena gives out. */
static int64_t buffer(int64_t rows, int64_t cols, int64_t element_bytes)
{
    return (rows * cols * element_bytes + SF_ALIGN - 1) / SF_ALIGN * SF_ALIGN;
}

static void measure_layers(const struct sf_model_desc *desc, const struct sf_share *share,
                           enum sf_dtype dtype, int fixed, struct sf_workspace *ws)
{
    int32_t v_dim_max = 0;
    for (int32_t i = 0; i < share->layer_count; i++) {
        struct sf_mat_shape qkv;
        sf_share_mat(desc, share, SF_MAT_QKV, i, dtype, fixed, ws->rows_pad, &qkv);
        ws->qkv_cols_max = larger(ws->qkv_cols_max, qkv.cols);
        ws->q_heads_max = larger(ws->q_heads_max, sf_share_q_heads(share, i));
        ws->kv_heads_max = larger(ws->kv_heads_max, share->kv_ptr[i + 1] - share->kv_ptr[i]);
        ws->chunks_max = larger(ws->chunks_max, share->chunk_ptr[i + 1] - share->chunk_ptr[i]);
        v_dim_max = larger(v_dim_max, desc->layer[share->layer_first + i].v_dim);
    }
    ws->o_slice = fixed ? larger(v_dim_max, SLICE_FIXED_MIN) : v_dim_max;
    ws->down_slice = fixed ? larger(share->chunk_cols, SLICE_FIXED_MIN) : share->chunk_cols;
    ws->leaves_max = fixed ? sf_share_units_most(desc, share) : 1;
}

void sf_workspace_make(const struct sf_model_desc *desc, const struct sf_share *share,
                       enum sf_dtype dtype, int fixed, int32_t rows_max, struct sf_workspace *out)
{
    struct sf_workspace ws;
    const int64_t f32 = sizeof(float), half = (int64_t)sf_dtype_bytes(dtype);
    SF_ASSERT(rows_max >= 1 && rows_max <= INT32_MAX - SF_FIXED_ROWS);
    SF_ASSERT(share->layer_count >= 1);
    memset(&ws, 0, sizeof ws);

    ws.rows_max = rows_max;
    ws.rows_pad = (rows_max + SF_FIXED_ROWS - 1) / SF_FIXED_ROWS * SF_FIXED_ROWS;
    ws.tile_rows = smaller(fixed ? TILE_ROWS_FIXED : TILE_ROWS, ws.rows_pad);
    ws.head_rows = smaller(fixed ? HEAD_ROWS_FIXED : HEAD_ROWS, ws.rows_pad);
    measure_layers(desc, share, dtype, fixed, &ws);

    ws.residual = buffer(ws.rows_pad, desc->d_model, f32);
    ws.normed = buffer(ws.tile_rows, desc->d_model, half);
    ws.qkv = buffer(ws.rows_pad, ws.qkv_cols_max, f32);
    ws.attention = buffer(ws.rows_pad, (int64_t)ws.q_heads_max * ws.o_slice, half);
    ws.gate_up = buffer(ws.tile_rows, 2 * (int64_t)ws.chunks_max * share->chunk_cols, f32);
    ws.activation = buffer(ws.tile_rows, (int64_t)ws.chunks_max * ws.down_slice, half);
    ws.rope = buffer(ws.rows_pad, desc->rope_dim, f32);
    if (!share->last_stage)
        ws.transfer = buffer(ws.rows_pad, (desc->d_model + share->tp_size - 1) / share->tp_size,
                             f32);
    if (share->last_stage) {
        ws.head_rows_in = buffer(ws.head_rows, desc->d_model, f32);
        ws.logits = buffer(ws.head_rows, share->vocab_count, f32);
        if (share->tp_rank == 0) ws.choice = buffer(1, desc->vocab, CHOICE_BYTES);
        if (share->tp_rank == 0 && share->tp_size > 1)
            ws.logits_all = buffer(ws.head_rows, desc->vocab, f32);
        if (share->tp_size == 1)
            ws.choices = buffer(ws.rows_pad, 1, sizeof(struct sf_choice)) +
                         buffer(ws.rows_pad, SF_CHOICE_TOPS_MAX, sizeof(struct sf_choice_top));
    }
    ws.total = ws.residual + ws.normed + ws.qkv + ws.attention + ws.gate_up + ws.activation
               + ws.rope + ws.transfer + ws.head_rows_in + ws.logits + ws.logits_all + ws.choice;
    *out = ws;
}
