/* model/weights.h: an opened model: its description, its tensors, its metadata.
 *
 * A model is a GGUF file, or a Hugging Face directory; of the latter the config.json is read and no
 * weights yet, so it can be described and not be run.
 *
 * A file is mapped, never read whole.  Every length and offset in it was checked against the file
 * before a caller sees it.  One internal layout: rows of q and k in half-split RoPE order, whatever
 * the file holds (GGUF "llama" interleaves them; the row gather happens in sf_weight_read). */
#ifndef SHEAF_MODEL_WEIGHTS_H
#define SHEAF_MODEL_WEIGHTS_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
#include "model/desc.h"
SF_C_BEGIN

enum sf_role { SF_W_EMBED, SF_W_OUT_NORM, SF_W_OUT,                 /* layer -1 */
               SF_W_ATTN_NORM, SF_W_Q, SF_W_K, SF_W_V, SF_W_O,
               SF_W_Q_BIAS, SF_W_K_BIAS, SF_W_V_BIAS, SF_W_O_BIAS,
               SF_W_FFN_NORM, SF_W_GATE, SF_W_UP, SF_W_DOWN,
               SF_W_GATE_BIAS, SF_W_UP_BIAS, SF_W_DOWN_BIAS, SF_ROLES };

struct sf_weight {                      /* view; lives as long as the model */
    const char *name, *type_name;       /* "blk.0.attn_q.weight", "Q4_1" */
    int32_t rows, cols;                 /* [out][in]; a vector has rows = 1 */
    int64_t bytes;                      /* in the file */
    const void *impl;
};
struct sf_model;

/* SF_IO (missing, unreadable), SF_FORMAT (truncated, malformed), SF_UNSUPPORTED (architecture,
 * tensor type); the words name file, tensor and numbers. */
sf_status sf_model_open(const char *path, struct sf_model **model_out);
/* For who needs the description alone: takes a directory too, and then there are no weights. */
sf_status sf_model_open_header(const char *path, struct sf_model **model_out);
void      sf_model_close(struct sf_model *);
const struct sf_model_desc *sf_model_desc(const struct sf_model *);
const char *sf_model_path(const struct sf_model *);
int       sf_model_has_weights(const struct sf_model *);
/* Of a description alone: of all its weights, in the type that they are stored in. */
int64_t   sf_model_file_bytes(const struct sf_model *);
/* Of one tensor in the file, 0 if the model has none; asks no weights. */
int64_t   sf_model_weight_bytes(const struct sf_model *, enum sf_role, int32_t layer);
/* Asserts that there are weights, as all below that read them do.
 * NULL if the model has none (a bias, or the head of a tied model: SF_W_OUT then is the embedding,
 * never NULL). */
const struct sf_weight *sf_model_weight(const struct sf_model *, enum sf_role, int32_t layer);
/* Elements [col_first, col_first + cols) of row `row` as f32.  Asserts on ranges. */
void sf_weight_read(const struct sf_weight *, int32_t row, int32_t col_first, int32_t cols,
                    float *out);
/* The same for a file that may hold anything: SF_FORMAT, with the place, if one is not finite. */
sf_status sf_weight_read_finite(const struct sf_weight *, int32_t row, int32_t col_first,
                                int32_t cols, float *out);
/* The pages of this tensor are not needed now: give them back to the system. */
void sf_weight_release(const struct sf_weight *);

/* All tensors in file order, for `inspect`; none of a description alone.  dims_out[0] is the
 * fastest: the row length. */
int32_t sf_model_tensors(const struct sf_model *);
const struct sf_weight *sf_model_tensor(const struct sf_model *, int32_t index,
                                        int64_t dims_out[4], int32_t *n_dims_out);
/* Hex SHA-256 of the file (65 bytes with NUL). Reads all of it. */
sf_status sf_model_sha256(const struct sf_model *, char hex_out[65]);

SF_C_END
#endif
