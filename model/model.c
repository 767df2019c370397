/* model/model.c: opening a model, and reading its weights.
 *
 *   file.c, gguf.c   bytes -> tensors and keys
 *   llama.c          tensors and keys -> description and roles
 *   hf_config.c      the config.json of a directory -> description, without tensors
 *   here             what callers see of both
 *
 * A weight's rows come out in half-split RoPE order.  In a file with interleaved pairs row 2i and
 * 2i + 1 of a head turn together; ours are i and i + rope_dim / 2:
 *
 *   head of 8 rows, in the file:    0   1   2   3   4   5   6   7
 *   our row                         0   4   1   5   2   6   3   7
 *
 * It is a gather of whole rows (or of single elements of a bias), and works on any block format. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/sha256.h"
#include "model/model_impl.h"

static sf_status describe(struct sf_model *model)
{
    struct sf_file *file = model->file;
    struct sf_text arch;
    SF_TRY(sf_file_text(file, &(struct sf_meta_want){ "general.architecture", 1, 0, 0, 0 },
                        &arch));
    if (arch.bytes != 5 || memcmp(arch.at, "llama", 5) != 0) {
        int shown = arch.bytes < 40 ? (int)arch.bytes : 40;
        char name[41] = "";
        for (int i = 0; i < shown; i++)
            name[i] = arch.at[i] > 0x20 && arch.at[i] < 0x7f ? arch.at[i] : '?';
        return SF_FAIL(SF_UNSUPPORTED, "%s: architecture '%s' is not built (llama is)", file->path,
                       name);
    }
    SF_TRY(sf_llama_describe(model));
    /* A tensor that nobody asked for would have changed the numbers. */
    for (int32_t i = 0; i < file->tensors; i++)
        if (!file->tensor[i].claimed)
            return SF_FAIL(SF_UNSUPPORTED, "%s: tensor '%s' has no place in architecture %s",
                           file->path, file->tensor[i].name, model->desc.arch_name);
    return SF_OK;
}

sf_status sf_model_open(const char *path, struct sf_model **model_out)
{
    struct sf_model *model = calloc(1, sizeof *model);
    if (model == NULL) return SF_FAIL(SF_NO_MEMORY, "%s: no memory to open it", path);
    sf_status status = sf_file_open(path, &model->file);
    if (status == SF_OK) {
        struct sf_file *file = model->file;
        model->view = calloc((size_t)file->tensors + 1, sizeof *model->view);
        if (model->view == NULL)
            status = SF_FAIL(SF_NO_MEMORY, "%s: no memory for %d tensors", path, file->tensors);
        for (int32_t i = 0; status == SF_OK && i < file->tensors; i++) {
            const struct sf_tensor *t = &file->tensor[i];
            model->view[i] = (struct sf_weight){ t->name, t->format->name, t->rows, t->cols,
                                                 t->bytes, t };
        }
    }
    if (status == SF_OK) status = describe(model);
    if (status != SF_OK) {
        sf_model_close(model);
        return status;
    }
    *model_out = model;
    return SF_OK;
}

static int is_directory(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

sf_status sf_model_open_header(const char *path, struct sf_model **model_out)
{
    if (!is_directory(path)) return sf_model_open(path, model_out);
    struct sf_model *model = calloc(1, sizeof *model);
    if (model != NULL) model->file = calloc(1, sizeof *model->file);
    if (model != NULL && model->file != NULL) model->file->path = strdup(path);
    sf_status status = model != NULL && model->file != NULL && model->file->path != NULL
                       ? SF_OK : SF_FAIL(SF_NO_MEMORY, "%s: no memory to open it", path);
    if (status == SF_OK) status = sf_hf_describe(model);
    if (status != SF_OK) {
        sf_model_close(model);
        return status;
    }
    *model_out = model;
    return SF_OK;
}

void sf_model_close(struct sf_model *model)
{
    if (model == NULL) return;
    free(model->role);
    free(model->view);
    free(model->inv_freq);
    free(model->layer);
    sf_file_close(model->file);
    free(model);
}

const struct sf_model_desc *sf_model_desc(const struct sf_model *model)
{
    return &model->desc;
}

const char *sf_model_path(const struct sf_model *model)
{
    return model->file->path;
}

int sf_model_has_weights(const struct sf_model *model)
{
    return model->role != NULL;
}

int64_t sf_model_file_bytes(const struct sf_model *model)
{
    if (!sf_model_has_weights(model)) return model->elements * model->element_bytes;
    return (int64_t)model->file->map_bytes;
}

int64_t sf_model_weight_bytes(const struct sf_model *model, enum sf_role role, int32_t layer)
{
    if (!sf_model_has_weights(model))
        return sf_llama_elements(&model->desc, role, layer) * model->element_bytes;
    const struct sf_weight *weight = sf_model_weight(model, role, layer);
    return weight != NULL ? weight->bytes : 0;
}

const struct sf_weight *sf_model_weight(const struct sf_model *model, enum sf_role role,
                                        int32_t layer)
{
    SF_ASSERT(role >= 0 && role < SF_ROLES && sf_model_has_weights(model));
    if (role <= SF_W_OUT) layer = -1;
    SF_ASSERT(layer >= -1 && layer < model->desc.layers && (layer >= 0 || role <= SF_W_OUT));
    return *sf_model_slot(model, role, layer);
}

/* Where row (or element) `index` of ours lies in the file. */
static int32_t turned(const struct sf_tensor *t, int32_t index)
{
    if (t->turn_head == 0) return index;
    int32_t in_head = index % t->turn_head, half = t->turn_dim / 2;
    int32_t head_first = index - in_head;
    if (in_head < half) return head_first + 2 * in_head;
    if (in_head < t->turn_dim) return head_first + 2 * (in_head - half) + 1;
    return index;
}

/* Elements of one row as they lie; borders may fall inside a block. */
static void read_plain(const struct sf_tensor *t, int32_t row, int32_t first, int32_t count,
                       float *out)
{
    const struct sf_format *format = t->format;
    const unsigned char *base = t->data + (int64_t)row * t->row_bytes;
    while (count > 0) {
        int32_t skip = first % format->elements, done;
        const unsigned char *block = base + (int64_t)(first / format->elements) * format->bytes;
        if (skip == 0 && count >= format->elements) {
            done = count - count % format->elements;
            format->decode(block, done / format->elements, out);
        } else {
            float one[SF_FORMAT_ELEMENTS_MAX];
            format->decode(block, 1, one);
            done = format->elements - skip < count ? format->elements - skip : count;
            memcpy(out, one + skip, (size_t)done * sizeof(float));
        }
        first += done;
        out += done;
        count -= done;
    }
}

void sf_weight_read(const struct sf_weight *weight, int32_t row, int32_t col_first, int32_t cols,
                    float *out)
{
    const struct sf_tensor *t = weight->impl;
    SF_ASSERT(row >= 0 && row < t->rows);
    SF_ASSERT(col_first >= 0 && cols >= 0 && cols <= t->cols - col_first);
    if (t->rows == 1 && t->turn_head != 0) {            /* a bias: its elements are the rows */
        for (int32_t i = 0; i < cols; i++) read_plain(t, 0, turned(t, col_first + i), 1, &out[i]);
        return;
    }
    read_plain(t, turned(t, row), col_first, cols, out);
}

sf_status sf_weight_read_finite(const struct sf_weight *weight, int32_t row, int32_t col_first,
                                int32_t cols, float *out)
{
    sf_weight_read(weight, row, col_first, cols, out);
    for (int32_t i = 0; i < cols; i++)
        if (!isfinite(out[i]))
            return SF_FAIL(SF_FORMAT, "tensor '%s': element %d of row %d is not finite",
                           weight->name, col_first + i, row);
    return SF_OK;
}

void sf_weight_release(const struct sf_weight *weight)
{
    const struct sf_tensor *t = weight->impl;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = ((uintptr_t)t->data + page - 1) & ~(page - 1);
    uintptr_t end = ((uintptr_t)t->data + (uintptr_t)t->bytes) & ~(page - 1);
    /* Advice about a clean private map: the pages come back from the file when read again. */
    if (end > first) (void)madvise((void *)first, end - first, MADV_DONTNEED);
}

int32_t sf_model_tensors(const struct sf_model *model)
{
    return model->file->tensors;
}

const struct sf_weight *sf_model_tensor(const struct sf_model *model, int32_t index,
                                        int64_t dims_out[4], int32_t *n_dims_out)
{
    SF_ASSERT(index >= 0 && index < model->file->tensors);
    const struct sf_tensor *t = &model->file->tensor[index];
    memcpy(dims_out, t->dims, sizeof t->dims);
    *n_dims_out = t->n_dims;
    return &model->view[index];
}

sf_status sf_model_sha256(const struct sf_model *model, char hex_out[65])
{
    SF_ASSERT(sf_model_has_weights(model));
    return sf_sha256_map(model->file->map, model->file->map_bytes, hex_out);
}
