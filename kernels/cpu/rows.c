/* kernels/cpu/rows.c: rows handed to the threads of the device; one row is always one thread's, by
 * rows.inc, so its bits do not depend on how many there are. */
#include <math.h>
#include <string.h>
#include "kernels/cpu/cpu.h"

static void *element(void *array, enum sf_dtype dtype, size_t i)
{
    return (unsigned char *)array + i * sf_dtype_bytes(dtype);
}

static void rmsnorm(struct sf_device *device, int32_t rows, int32_t dim, const float *x,
                    size_t x_stride, const float *weight, float eps, void *out, size_t out_stride,
                    enum sf_dtype out_dtype)
{
    const struct sf_cpu_isa *isa = sf_cpu_of(device)->isa;
    int pays = sf_cpu_threads_pay(device, (int64_t)rows * dim);
#pragma omp parallel for num_threads(device->threads) if (pays) schedule(static)
    for (int32_t r = 0; r < rows; r++)
        isa->rmsnorm(dim, x + (size_t)r * x_stride, weight, eps,
                     element(out, out_dtype, (size_t)r * out_stride), out_dtype);
}

static void rope_table(struct sf_device *device, int32_t rows, const int32_t *pos,
                       const float *inv_freq, int32_t half, float *table)
{
    int pays = sf_cpu_threads_pay(device, (int64_t)rows * half * 16);
#pragma omp parallel for num_threads(device->threads) if (pays) schedule(static)
    for (int32_t r = 0; r < rows; r++) {
        float *cosine = table + (size_t)r * 2 * (size_t)half, *sine = cosine + half;
        for (int32_t i = 0; i < half; i++) {
            float angle = (float)pos[r] * inv_freq[i];
            sincosf(angle, &sine[i], &cosine[i]);
        }
    }
}

static void rope(struct sf_device *device, int32_t rows, int32_t heads, int32_t head_dim,
                 int32_t rope_dim, const float *table, float *x, size_t x_stride)
{
    const struct sf_cpu_isa *isa = sf_cpu_of(device)->isa;
    int pays = sf_cpu_threads_pay(device, (int64_t)rows * heads * rope_dim);
#pragma omp parallel for num_threads(device->threads) if (pays) schedule(static)
    for (int32_t r = 0; r < rows; r++)
        isa->rope(heads, head_dim, rope_dim / 2, table + (size_t)r * (size_t)rope_dim,
                  x + (size_t)r * x_stride);
}

static void swiglu(struct sf_device *device, int32_t rows, int32_t cols, const float *gate,
                   size_t gate_stride, const float *up, size_t up_stride, void *out,
                   size_t out_stride, enum sf_dtype out_dtype)
{
    const struct sf_cpu_isa *isa = sf_cpu_of(device)->isa;
    int pays = sf_cpu_threads_pay(device, (int64_t)rows * cols * 2);
#pragma omp parallel for num_threads(device->threads) if (pays) schedule(static)
    for (int32_t r = 0; r < rows; r++)
        isa->swiglu(cols, gate + (size_t)r * gate_stride, up + (size_t)r * up_stride,
                    element(out, out_dtype, (size_t)r * out_stride), out_dtype);
}

static void add_bias(struct sf_device *device, int32_t rows, int32_t cols, const float *bias,
                     float *x, size_t x_stride)
{
    const struct sf_cpu_isa *isa = sf_cpu_of(device)->isa;
    int pays = sf_cpu_threads_pay(device, (int64_t)rows * cols);
#pragma omp parallel for num_threads(device->threads) if (pays) schedule(static)
    for (int32_t r = 0; r < rows; r++) isa->add((size_t)cols, bias, x + (size_t)r * x_stride);
}

/* The first leaf is copied and the others are added to it, so that -0 stays -0. */
static void add_leaves(struct sf_device *device, int32_t rows, int32_t cols, const float *leaf,
                       int32_t leaves, size_t leaf_stride, size_t row_stride, int onto, float *x,
                       size_t x_stride)
{
    enum { TILE = 256 };
    int pays = sf_cpu_threads_pay(device, (int64_t)rows * cols * (leaves + 1));
#pragma omp parallel for num_threads(device->threads) if (pays) schedule(static)
    for (int32_t r = 0; r < rows; r++)
        for (int32_t first = 0; first < cols; first += TILE) {
            int32_t width = cols - first < TILE ? cols - first : TILE;
            const float *from = leaf + (size_t)r * row_stride + first;
            float *to = x + (size_t)r * x_stride + first, total[TILE] = { 0 };
            if (leaves > 0) memcpy(total, from, (size_t)width * sizeof *total);
            for (int32_t l = 1; l < leaves; l++) {
                const float *next = from + (size_t)l * leaf_stride;
#pragma omp simd
                for (int32_t c = 0; c < width; c++) total[c] += next[c];
            }
            if (!onto) {
                memcpy(to, total, (size_t)width * sizeof *to);
                continue;
            }
#pragma omp simd
            for (int32_t c = 0; c < width; c++) to[c] += total[c];
        }
}

static void copy_rows(struct sf_device *device, int32_t rows, int32_t cols, const int32_t *from,
                      const float *x, size_t x_stride, float *out, size_t out_stride)
{
    int pays = sf_cpu_threads_pay(device, (int64_t)rows * cols);
#pragma omp parallel for num_threads(device->threads) if (pays) schedule(static)
    for (int32_t r = 0; r < rows; r++)
        memcpy(out + (size_t)r * out_stride, x + (size_t)(from ? from[r] : r) * x_stride,
               (size_t)cols * sizeof *out);
}

static void argmax(struct sf_device *device, int32_t rows, int32_t cols, const float *x,
                   size_t x_stride, float *value_out, int32_t *index_out)
{
    const struct sf_cpu_isa *isa = sf_cpu_of(device)->isa;
    int pays = sf_cpu_threads_pay(device, (int64_t)rows * cols);
#pragma omp parallel for num_threads(device->threads) if (pays) schedule(static)
    for (int32_t r = 0; r < rows; r++)
        index_out[r] = isa->argmax(cols, x + (size_t)r * x_stride, &value_out[r]);
}

void sf_cpu_rows_fill(struct sf_kernels *k)
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
