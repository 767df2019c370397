/* kernels/ref/mat.c: products, defined.
 *
 *   weights  [cols][slices * k_slice] of the matrix's dtype: as checkpoints lie, cut to nothing
 *
 *   y[r][c] = (... (leaf_0 + leaf_1) + ...)      in f32, in the order of the slices
 *   leaf_s  = f32(sum over i < k_slice of x[r][s k_slice + i] * w[c][s k_slice + i])
 *
 * A matrix is `fixed` by nature here: a row is computed alone.
 *
 * int8 (kernels.h): weights [cols][slices * k_slice] codes, scale [cols][slices];
 *
 *   leaf_s = (f32(sum of code(x)_i code(w)_i) * scale(w)) * scale(x) */
#include <math.h>
#include "base/memory.h"
#include "kernels/ref/ref.h"

struct sf_mat {
    struct sf_mat_shape shape;
    unsigned char *weights;
    float *scale;                       /* int8 */
    int8_t *codes;                      /* int8: [k_slice] of a row of x */
};

static int64_t mat_bytes(const struct sf_mat_shape *shape)
{
    if (shape->int8)
        return (int64_t)shape->cols * shape->slices * (shape->k_slice + (int64_t)sizeof(float));
    return (int64_t)shape->cols * shape->k_slice * shape->slices *
           (int64_t)sf_dtype_bytes(shape->dtype);
}

static void mat_destroy(struct sf_device *device, struct sf_mat *mat)
{
    (void)device;
    if (!mat) return;
    sf_free(mat->weights);
    sf_free(mat->scale);
    sf_free(mat->codes);
    sf_free(mat);
}

static sf_status int8_create(struct sf_mat *mat)
{
    const struct sf_mat_shape *shape = &mat->shape;
    size_t scales = (size_t)shape->cols * (size_t)shape->slices, k = (size_t)shape->k_slice;
    if (shape->k_slice > SF_INT8_K_MAX)
        return SF_FAIL(SF_UNSUPPORTED, "an int8 product of %d inputs (at most %d)", shape->k_slice,
                       SF_INT8_K_MAX);
    SF_TRY(sf_alloc(scales * k, "weights", (void **)&mat->weights));
    SF_TRY(sf_alloc(scales * sizeof *mat->scale, "scales", (void **)&mat->scale));
    return sf_alloc(k, "codes of a row", (void **)&mat->codes);
}

static sf_status mat_create(struct sf_device *device, const struct sf_mat_shape *shape,
                            struct sf_mat **out)
{
    SF_ASSERT(shape->cols > 0 && shape->panel_cols > 0 && shape->k_slice > 0 && shape->slices > 0);
    struct sf_mat *mat;
    SF_TRY(sf_alloc(sizeof *mat, "matrix", (void **)&mat));
    mat->shape = *shape;
    sf_status status = shape->int8 ? int8_create(mat)
                                   : sf_alloc((size_t)mat_bytes(shape), "weights",
                                              (void **)&mat->weights);
    if (status != SF_OK) {
        mat_destroy(device, mat);
        return status;
    }
    *out = mat;
    return SF_OK;
}

/* Codes of `count` elements, and their scale. */
static float quantise(enum sf_dtype dtype, const void *x, size_t first, size_t count,
                      int8_t *codes)
{
    float most = 0;
    for (size_t i = 0; i < count; i++) {
        float size = fabsf(sf_ref_get(dtype, x, first + i));
        if (!(size <= most)) most = size;       /* NaN stays */
        if (!isfinite(most)) break;
    }
    int none = !isfinite(most) || most < SF_INT8_LEAST;
    for (size_t i = 0; i < count; i++)
        codes[i] = none ? 0 : (int8_t)rintf(sf_ref_get(dtype, x, first + i) * (127 / most));
    return !isfinite(most) ? NAN : none ? 0 : most / 127;
}

static sf_status mat_pack(struct sf_device *device, struct sf_mat *mat, int32_t panel,
                          int32_t slice, const float *tile)
{
    (void)device;
    const struct sf_mat_shape *shape = &mat->shape;
    size_t k_slice = (size_t)shape->k_slice, k = k_slice * (size_t)shape->slices;
    int32_t first = panel * shape->panel_cols;
    SF_ASSERT(panel >= 0 && first < shape->cols && slice >= 0 && slice < shape->slices);
    for (int32_t c = 0; c < shape->panel_cols && first + c < shape->cols; c++) {
        if (shape->int8) {
            size_t at = (size_t)(first + c) * (size_t)shape->slices + (size_t)slice;
            mat->scale[at] = quantise(SF_F32, tile, (size_t)c * k_slice, k_slice,
                                      (int8_t *)mat->weights + at * k_slice);
            continue;
        }
        for (size_t i = 0; i < k_slice; i++)
            sf_ref_set(shape->dtype, mat->weights,
                       (size_t)(first + c) * k + (size_t)slice * k_slice + i,
                       (double)tile[(size_t)c * k_slice + i]);
    }
    return SF_OK;
}

static float int8_leaf(const struct sf_mat *mat, const void *x, size_t x_first, size_t column,
                       size_t slice)
{
    size_t k = (size_t)mat->shape.k_slice, at = column * (size_t)mat->shape.slices + slice;
    const int8_t *w = (const int8_t *)mat->weights + at * k;
    float scale = quantise(mat->shape.dtype, x, x_first + slice * k, k, mat->codes);
    int32_t sum = 0;
    for (size_t i = 0; i < k; i++) sum += mat->codes[i] * w[i];
    return (float)sum * mat->scale[at] * scale;
}

/* One element of one slice's product. */
static float leaf(const struct sf_mat *mat, const void *x, size_t x_first, size_t column,
                  size_t slice)
{
    enum sf_dtype dtype = mat->shape.dtype;
    size_t k_slice = (size_t)mat->shape.k_slice, k = k_slice * (size_t)mat->shape.slices;
    if (mat->shape.int8) return int8_leaf(mat, x, x_first, column, slice);
    double sum = 0;
    for (size_t i = slice * k_slice; i < (slice + 1) * k_slice; i++)
        sum += (double)sf_ref_get(dtype, x, x_first + i) *
               (double)sf_ref_get(dtype, mat->weights, column * k + i);
    return (float)sum;
}

static void matmul_leaves(struct sf_device *device, const struct sf_mat *mat, int32_t rows,
                          const void *x, size_t x_stride, float *leaves, size_t leaf_stride,
                          size_t row_stride)
{
    (void)device;
    for (size_t s = 0; s < (size_t)mat->shape.slices; s++)
        for (size_t r = 0; r < (size_t)rows; r++)
            for (size_t c = 0; c < (size_t)mat->shape.cols; c++)
                leaves[s * leaf_stride + r * row_stride + c] = leaf(mat, x, r * x_stride, c, s);
}

static void matmul(struct sf_device *device, const struct sf_mat *mat, int32_t rows, const void *x,
                   size_t x_stride, float *y, size_t y_stride)
{
    (void)device;
    for (size_t r = 0; r < (size_t)rows; r++)
        for (size_t c = 0; c < (size_t)mat->shape.cols; c++) {
            float sum = leaf(mat, x, r * x_stride, c, 0);
            for (size_t s = 1; s < (size_t)mat->shape.slices; s++)
                sum += leaf(mat, x, r * x_stride, c, s);
            y[r * y_stride + c] = sum;
        }
}

void sf_ref_mat_fill(struct sf_kernels *k)
{
    k->mat_bytes = mat_bytes;
    k->mat_create = mat_create;
    k->mat_destroy = mat_destroy;
    k->mat_pack = mat_pack;
    k->matmul = matmul;
    k->matmul_leaves = matmul_leaves;
}
