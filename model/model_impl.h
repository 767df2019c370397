/* model/model_impl.h: struct sf_model, shared by model.c and the files of the architectures. */
#ifndef SHEAF_MODEL_MODEL_IMPL_H
#define SHEAF_MODEL_MODEL_IMPL_H
#include "model/file.h"
#include "model/weights.h"
SF_C_BEGIN

struct sf_model {
    struct sf_file *file;
    struct sf_model_desc desc;
    struct sf_layer_desc *layer;        /* desc.layer */
    float *inv_freq;                    /* desc.rope_inv_freq */
    struct sf_weight *view;             /* [file->tensors]; view i is tensor i */
    const struct sf_weight **role;      /* [(layers + 1) * SF_ROLES]; layer -1 comes first */
};

static inline const struct sf_weight **sf_model_slot(const struct sf_model *model,
                                                     enum sf_role role, int32_t layer)
{
    return &model->role[(size_t)(layer + 1) * SF_ROLES + role];
}

/* An architecture: fills desc, layer and inv_freq from the keys, makes `role` and points it at the
 * views whose shapes it has checked, and marks the tensors that it knows as claimed. */
sf_status sf_llama_describe(struct sf_model *);

SF_C_END
#endif
