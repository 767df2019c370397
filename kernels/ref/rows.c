/* kernels/ref/rows.c: what is computed row by row, defined. */
#include <math.h>
#include "kernels/ref/ref.h"

/* out_c = x_c / sqrt(mean_c(x_c^2) + eps) * weight_c */
static void rmsnorm(struct sf_device *device, int32_t rows, int32_t dim, const float *x,
                    size_t x_stride, const float *weight, float eps, void *out, size_t out_stride,
                    enum sf_dtype out_dtype)
{
    (void)device;
    for (size_t r = 0; r < (size_t)rows; r++) {
        const float *row = x + r * x_stride;
        double squares = 0;
        for (int32_t c = 0; c < dim; c++) squares += (double)row[c] * row[c];
        double norm = 1 / sqrt(squares / dim + (double)eps);
        for (int32_t c = 0; c < dim; c++)
            sf_ref_set(out_dtype, out, r * out_stride + (size_t)c, row[c] * norm * weight[c]);
    }
}

/* The angle is rounded to f32, as checkpoints were trained; its cosine and sine are exact. */
static void rope_table(struct sf_device *device, int32_t rows, const int32_t *pos,
                       const float *inv_freq, int32_t half, float *table)
{
    (void)device;
    for (int32_t r = 0; r < rows; r++)
        for (int32_t i = 0; i < half; i++) {
            float angle = (float)pos[r] * inv_freq[i];
            table[(size_t)r * 2 * (size_t)half + (size_t)i] = (float)cos((double)angle);
            table[((size_t)r * 2 + 1) * (size_t)half + (size_t)i] = (float)sin((double)angle);
        }
}

static void rope(struct sf_device *device, int32_t rows, int32_t heads, int32_t head_dim,
                 int32_t rope_dim, const float *table, float *x, size_t x_stride)
{
    (void)device;
    size_t half = (size_t)rope_dim / 2;
    for (size_t r = 0; r < (size_t)rows; r++)
        for (size_t h = 0; h < (size_t)heads; h++) {
            const float *cosine = table + r * 2 * half, *sine = cosine + half;
            float *head = x + r * x_stride + h * (size_t)head_dim;
            for (size_t i = 0; i < half; i++) {
                double a = head[i], b = head[i + half];
                head[i] = (float)(a * cosine[i] - b * sine[i]);
                head[i + half] = (float)(b * cosine[i] + a * sine[i]);
            }
        }
}

/* silu(g) = g / (1 + e^-g) */
static void swiglu(struct sf_device *device, int32_t rows, int32_t cols, const float *gate,
                   size_t gate_stride, const float *up, size_t up_stride, void *out,
                   size_t out_stride, enum sf_dtype out_dtype)
{
    (void)device;
    for (size_t r = 0; r < (size_t)rows; r++)
        for (size_t c = 0; c < (size_t)cols; c++) {
            double g = gate[r * gate_stride + c], u = up[r * up_stride + c];
            sf_ref_set(out_dtype, out, r * out_stride + c, g / (1 + exp(-g)) * u);
        }
}

static void add_bias(struct sf_device *device, int32_t rows, int32_t cols, const float *bias,
                     float *x, size_t x_stride)
{
    (void)device;
    for (size_t r = 0; r < (size_t)rows; r++)
        for (size_t c = 0; c < (size_t)cols; c++) x[r * x_stride + c] += bias[c];
}

static void add_leaves(struct sf_device *device, int32_t rows, int32_t cols, const float *leaf,
                       int32_t leaves, size_t leaf_stride, size_t row_stride, int onto, float *x,
                       size_t x_stride)
{
    (void)device;
    for (size_t r = 0; r < (size_t)rows; r++)
        for (size_t c = 0; c < (size_t)cols; c++) {
            float total = leaves > 0 ? leaf[r * row_stride + c] : 0;
            for (size_t l = 1; l < (size_t)leaves; l++)
                total += leaf[l * leaf_stride + r * row_stride + c];
            x[r * x_stride + c] = onto ? x[r * x_stride + c] + total : total;
        }
}

static void copy_rows(struct sf_device *device, int32_t rows, int32_t cols, const int32_t *from,
                      const float *x, size_t x_stride, float *out, size_t out_stride)
{
    (void)device;
    for (size_t r = 0; r < (size_t)rows; r++) {
        size_t source = from ? (size_t)from[r] : r;
        for (size_t c = 0; c < (size_t)cols; c++)
            out[r * out_stride + c] = x[source * x_stride + c];
    }
}

static void argmax(struct sf_device *device, int32_t rows, int32_t cols, const float *x,
                   size_t x_stride, float *value_out, int32_t *index_out)
{
    (void)device;
    for (int32_t r = 0; r < rows; r++) {
        const float *row = x + (size_t)r * x_stride;
        float value = -INFINITY;
        int32_t index = 0;
        for (int32_t c = 0; c < cols; c++)
            if (row[c] > value) {
                value = row[c];
                index = c;
            }
        for (int32_t c = 0; c < cols; c++)
            if (isnan(row[c])) {
                value = NAN;
                index = 0;
            }
        value_out[r] = value;
        index_out[r] = index;
    }
}

void sf_ref_rows_fill(struct sf_kernels *k)
{
    k->rmsnorm = rmsnorm;
    k->rope_table = rope_table;
    k->rope = rope;
    k->swiglu = swiglu;
    k->add_bias = add_bias;
    k->add_leaves = add_leaves;
    k->copy_rows = copy_rows;
    k->argmax = argmax;
}
