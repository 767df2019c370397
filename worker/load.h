/* worker/load.h: the weights of one rank, packed for the products that use them.
 *
 * Loading goes tile by tile: the slice of a tensor is dequantised into one f32 tile, packed, and
 * the mapped pages of the tensor are given back.  So the peak is the packed weights and one tile.
 * */
#ifndef SHEAF_WORKER_LOAD_H
#define SHEAF_WORKER_LOAD_H
#include <stdint.h>
#include "base/dtype.h"
#include "base/status.h"
#include "comm/comm.h"
#include "comm/reduce.h"
#include "kernels/device.h"
#include "model/share.h"
#include "model/weights.h"

struct sf_layer_weights {
    struct sf_mat *qkv, *o, *gate_up, *down;    /* NULL where this rank has no part */
    float *attn_norm, *ffn_norm;                /* device f32 [d_model] */
    float *qkv_bias;                            /* [qkv columns], NULL if the model has none */
    float *gate_up_bias;                        /* [gate_up columns], NULL if none */
    float *o_bias, *down_bias;                  /* [d_model], added once after the sum */
    struct sf_leaf *o_leaf, *down_leaf;         /* the leaves of the sums, in order */
    int32_t o_leaves, down_leaves;
};
struct sf_weights_packed {
    struct sf_layer_weights *layer;             /* [layers of the share] */
    struct sf_mat *head;                        /* last stage only */
    float *out_norm;
    int64_t bytes;                              /* of matrices, norms and biases */
};
struct sf_load_spec {
    struct sf_device *device;
    const struct sf_model *model;
    const struct sf_share *share;
    struct sf_comm *world;                      /* signs of life while loading */
    const struct sf_placing *placing;           /* that the share was made with */
    enum sf_dtype dtype;
    int fixed;
    uint8_t int8;                               /* of the matrices */
    /* most rows of a layer's and of the head's product */
    int32_t tile_rows, head_rows;
};

/* On failure nothing is left allocated. */
sf_status sf_weights_load(const struct sf_load_spec *, struct sf_weights_packed *out);
void      sf_weights_unload(const struct sf_load_spec *, struct sf_weights_packed *);

#endif
