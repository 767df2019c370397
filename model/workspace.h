/* model/workspace.h: the buffers that a rank computes a step in.  Pure sizes: the planner predicts
 * with them and the worker allocates by them, so the two cannot differ.
 *
 * A step has up to rows_max rows.  What must exist for all rows at once is the residual, q, k, v
 * and the attention output; products and the FFN run in tiles of tile_rows, the output head in
 * tiles of head_rows.  Row counts are padded to SF_FIXED_ROWS, since fixed products read whole
 * blocks. */
#ifndef SHEAF_MODEL_WORKSPACE_H
#define SHEAF_MODEL_WORKSPACE_H
#include <stdint.h>
#include "base/dtype.h"
#include "model/desc.h"
#include "model/share.h"
SF_C_BEGIN

struct sf_workspace {
    int32_t rows_max, rows_pad;         /* of a step; rounded up */
    int32_t tile_rows, head_rows;       /* multiples of SF_FIXED_ROWS if fixed */
    int32_t q_heads_max, kv_heads_max;  /* of any layer here */
    int32_t qkv_cols_max;               /* columns of the widest QKV product */
    int32_t o_slice, down_slice;        /* columns of one head, one chunk in a product's input */
    int32_t chunks_max;
    /* most leaves of a row-parallel sum that any rank of the tensor group has, so that all ranks
     * lay out their windows alike; 1 unless fixed */
    int32_t leaves_max;
    /* bytes of each buffer; 0 where the rank does not need it */
    int64_t residual;                   /* x          f32   [rows_pad][d_model] */
    int64_t normed;                     /* h          dtype [tile_rows][d_model] */
    int64_t qkv;                        /*            f32   [rows_pad][qkv_cols_max] */
    int64_t attention;                  /*            dtype [rows_pad][q_heads_max * o_slice] */
    /*            f32   [tile_rows][2 * chunks_max * chunk_cols] */
    int64_t gate_up;
    int64_t activation;                 /*            dtype [tile_rows][chunks_max * down_slice] */
    int64_t rope;                       /*            f32   [rows_pad][rope_dim] */
    int64_t transfer;                   /* f32 [rows_pad][ceil(d_model / tp_size)]: what goes to the
                                           next stage; 0 on the last stage */
    int64_t head_rows_in;               /*            f32   [head_rows][d_model] */
    int64_t logits;                     /*            f32   [head_rows][vocab_count] */
    int64_t choice;                     /* scratch of worker/sample.c, where tokens are chosen */
    int64_t logits_all;                 /* tensor rank 0 of the last stage, if tp_size > 1:
                                                      f32   [head_rows][vocab] */
    int64_t total;
    /* Beside the total, where a device whose memory the host cannot touch chooses: the last stage,
     * if tp_size is 1:                           choices and tops of [rows_pad] rows */
    int64_t choices;
};

void sf_workspace_make(const struct sf_model_desc *, const struct sf_share *, enum sf_dtype,
                       int fixed, int32_t rows_max, struct sf_workspace *out);

SF_C_END
#endif
