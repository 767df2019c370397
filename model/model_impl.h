/* model/model_impl.h: struct sf_model, shared by model.c and the files of the architectures. */
#ifndef SHEAF_MODEL_MODEL_IMPL_H
#define SHEAF_MODEL_MODEL_IMPL_H
#include "model/file.h"
#include "model/weights.h"
SF_C_BEGIN

/* Larger numbers than these are no model's; sums of their products stay inside 64 bits. */
enum { SF_LAYERS_MAX = 4096, SF_HEADS_MAX = 1 << 16, SF_HEAD_DIM_MAX = 1 << 13,
       SF_WIDTH_MAX = 1 << 24, SF_VOCAB_MAX = 1 << 26 };

struct sf_model {
    struct sf_file *file;               /* of a Hugging Face directory: its path, and no tensors */
    struct sf_model_desc desc;
    struct sf_layer_desc *layer;        /* desc.layer */
    float *inv_freq;                    /* desc.rope_inv_freq */
    struct sf_weight *view;             /* [file->tensors]; view i is tensor i */
    const struct sf_weight **role;      /* [(layers + 1) * SF_ROLES]; layer -1 comes first.  NULL:
                                           a description without weights; then: */
    int32_t element_bytes;              /* of the type that its weights are stored in */
    int64_t elements;                   /* of all weights */
};

static inline const struct sf_weight **sf_model_slot(const struct sf_model *model,
                                                     enum sf_role role, int32_t layer)
{
    return &model->role[(size_t)(layer + 1) * SF_ROLES + role];
}

/* An architecture: fills desc, layer and inv_freq from the keys, makes `role` and points it at the
 * views whose shapes it has checked, and marks the tensors that it knows as claimed. */
sf_status sf_llama_describe(struct sf_model *);
/* Elements of a tensor as the description has it; 0 if the model has none in this role. */
int64_t sf_llama_elements(const struct sf_model_desc *, enum sf_role, int32_t layer);
/* Makes desc.rope_inv_freq: theta^(-2i / rope_dim) / factor, in f32 as checkpoints were trained
 * with.  A caller may divide further, and then checks that all are finite: a tiny factor or
 * divisor, each allowed by itself, makes an infinite frequency. */
sf_status sf_rope_make(struct sf_model *, int32_t rope_dim, double theta, double factor);
sf_status sf_rope_check(const struct sf_model *);

/* hf_config.c: fills desc, layer, inv_freq, element_bytes and elements from the config.json in the
 * directory file->path. */
sf_status sf_hf_describe(struct sf_model *);

SF_C_END
#endif
