/* model/share.h: what one rank holds of a model, and the packed matrices that follow from it.
 *
 * Pure: planner and loader both ask here, so predicted and loaded bytes cannot differ.
 *
 * The units of the tensor-parallel cut are KV heads (with their query heads), chunks of the FFN and
 * panels of the vocabulary.  Unit counts need not divide by the ranks: in layer l the ranks that
 * take one unit more are rotated, so that ranks level out over the layers.  Where KV heads differ
 * in cost, the heads of a layer are dealt such that cost levels out instead; a rank's heads are
 * then any heads of the layer, and its columns and leaves are theirs in ascending order.  With more
 * ranks than KV heads a KV head is held by several ranks, each with some of its query heads. */
#ifndef SHEAF_MODEL_SHARE_H
#define SHEAF_MODEL_SHARE_H
#include <stdint.h>
#include "base/dtype.h"
#include "base/status.h"
#include "kernels/kernels.h"
#include "model/desc.h"
SF_C_BEGIN

enum sf_placement { SF_PLACE_BALANCED, SF_PLACE_IDENTITY };
/* How KV heads are dealt to at most as many ranks; every rank gets floor or ceil of heads / ranks.
 *   identity   consecutive blocks, the first ranks taking one more
 *   balanced   the same with the ranks that take one more taking turns, if all heads of the share's
 *              layers cost the same; else layer by layer, the dearest head first (equal ones by
 *              number), each to the rank whose heads in these layers have cost least so far and
 *              that has a slot left (equal ones: the lower rank) */
struct sf_placing {
    enum sf_placement rule;
    const double *head_cost;            /* [KV heads of all layers, layer by layer]; NULL: alike */
};

struct sf_kv_share {                    /* one KV head on this rank */
    int32_t kv_head;                    /* number in the model */
    int32_t q_first, q_count;           /* its query heads computed here, numbers in the model */
    int32_t replica, replicas;          /* this copy of the lane, and how many there are */
};
struct sf_share {
    int32_t tp_rank, tp_size, layer_first, layer_count;
    uint8_t first_stage, last_stage;    /* embeds; has the output head */
    int32_t chunk_cols, chunks;         /* FFN columns of a chunk (the last may be narrower) */
    int32_t *kv_ptr;                    /* [layer_count + 1] */
    struct sf_kv_share *kv;             /* of layer i: kv[kv_ptr[i] .. kv_ptr[i + 1]) ascending */
    int32_t *chunk_ptr, *chunk;         /* likewise: chunk numbers in the model, ascending */
    int32_t vocab_first, vocab_count;   /* rows of the output head; 0 unless last_stage */
};

/* Copies of a KV head lie on consecutive tensor ranks, round the end: copy i of a head of which
 * rank r has copy c is on rank (r - c + i) mod tp_size.  Its query heads are consecutive too, in
 * the order of the copies; how many copy `replica` computes: */
static inline int32_t sf_share_copy_q_heads(int32_t group, int32_t replicas, int32_t replica)
{
    return group / replicas + (replica < group % replicas);
}

/* Collective knowledge: any rank can compute any rank's share.  SF_INVALID when tp_size exceeds the
 * query heads of a layer.  Arrays are owned by the share. */
sf_status sf_share_make(const struct sf_model_desc *, const struct sf_placing *, int32_t tp_size,
                        int32_t tp_rank, int32_t layer_first, int32_t layer_count,
                        struct sf_share *share_out);
/* The same for all tensor ranks of a stage at once, for the price of one: shares_out[tp_size]. */
sf_status sf_share_make_group(const struct sf_model_desc *, const struct sf_placing *,
                              int32_t tp_size, int32_t layer_first, int32_t layer_count,
                              struct sf_share *shares_out);
void sf_share_free(struct sf_share *);
int32_t sf_share_q_heads(const struct sf_share *, int32_t layer_local);  /* computed here */
/* Most query heads or chunks that any one rank of the tensor group has in a layer of the share: the
 * same number on all of them, whatever each has itself. */
int32_t sf_share_units_most(const struct sf_model_desc *, const struct sf_share *);

/* ---- the matrices of a share ---- */
enum sf_mat_kind { SF_MAT_QKV, SF_MAT_O, SF_MAT_GATE_UP, SF_MAT_DOWN, SF_MAT_HEAD };
/* Shape of one matrix; layer_local is ignored for SF_MAT_HEAD.
 *   QKV      columns: all query heads here, in order, then the k of each KV head, then the v
 *   O        slices: the query heads here, in order (one slice in all unless fixed)
 *   GATE_UP  columns: for each chunk its gate, then for each chunk its up
 *   DOWN     slices: the chunks here (one slice in all unless fixed)
 *   HEAD     columns: rows vocab_first.. of the output head
 * fixed: one panel is one head or chunk or 1,024 columns of the head, one slice is a leaf, padded
 * to at least 128.  A matrix that has no columns or slices here has cols or slices 0. */
void sf_share_mat(const struct sf_model_desc *, const struct sf_share *, enum sf_mat_kind,
                  int32_t layer_local, enum sf_dtype, int fixed, int32_t rows_max,
                  struct sf_mat_shape *shape_out);
/* Bytes of all packed matrices, norms and biases of the share, as loaded.  The matrices are `like`
 * in dtype, int8, fixed and rows_max; `mat_bytes` is the backend's. */
int64_t sf_share_weight_bytes(const struct sf_model_desc *, const struct sf_share *,
                              const struct sf_mat_shape *like,
                              int64_t (*mat_bytes)(const struct sf_mat_shape *));

/* ---- filling the matrices, and the order of their leaves ---- */
struct sf_model;
/* One tile as mat_pack wants it: tile[panel_cols][k_slice] f32, zero where the model has nothing.
 * Reads only the pieces of rows that it needs.  `shape` is sf_share_mat's for the same arguments.
 * SF_FORMAT if a weight is not finite. */
sf_status sf_share_fill(const struct sf_model *, const struct sf_share *, enum sf_mat_kind,
                        int32_t layer_local, const struct sf_mat_shape *, int32_t panel,
                        int32_t slice, float *tile);
/* The bias beside a matrix, in the order of its columns (O, DOWN: [d_model], the same on all ranks,
 * to be added once).  Elements, 0 if the model has none; zero where only another part of the matrix
 * has a bias. */
int32_t sf_share_bias_cols(const struct sf_model_desc *, const struct sf_share *, enum sf_mat_kind,
                           int32_t layer_local);
sf_status sf_share_fill_bias(const struct sf_model *, const struct sf_share *, enum sf_mat_kind,
                             int32_t layer_local, float *bias);
/* The leaves of O or DOWN in the order in which they are summed: leaf i is slice local[i] of tensor
 * rank owner[i].  fixed: query heads or chunks in model order; otherwise one leaf for each rank
 * that has any.  The same on every rank of a tensor group; placing is the one that its shares were
 * made with.  owner and local hold max(tp_size, query heads, chunks). */
sf_status sf_share_order(const struct sf_model_desc *, const struct sf_placing *,
                         const struct sf_share *, int32_t layer_local, enum sf_mat_kind, int fixed,
                         int32_t *owner, int32_t *local, int32_t *leaves_out);

SF_C_END
#endif
