/* kernels/cpu/rows.c: rows handed to the threads of the device; one row is always one thread's, by
 * rows.inc, so its bits do not depend on how many there are. */
#include <math.h>
#include <string.h>
#include "kernels/cpu/cpu.h"

/* What a call of any of them has: the rows are shared out. */
struct call {
    const struct sf_cpu_isa *isa;
    const void *x, *other;
    size_t x_stride, other_stride;
    void *out; size_t out_stride;
    enum sf_dtype out_dtype;
    int32_t cols, heads, leaves, onto;
    float eps;
    const int32_t *index;
    int32_t *index_out;
};

static void share(struct sf_device *device, int32_t rows, int64_t operations, sf_crew_work *work,
                  struct call *call)
{
    call->isa = sf_cpu_of(device)->isa;
    sf_cpu_share(device, operations, rows, 0, work, call);
}

static const float *x_row(const struct call *c, int32_t r)
{
    return (const float *)c->x + (size_t)r * c->x_stride;
}
static const float *other_row(const struct call *c, int32_t r)
{
    return (const float *)c->other + (size_t)r * c->other_stride;
}
static void *out_row(const struct call *c, int32_t r)
{
    return (unsigned char *)c->out + (size_t)r * c->out_stride * sf_dtype_bytes(c->out_dtype);
}

static void rmsnorm_rows(void *context, int32_t first, int32_t end, int32_t thread)
{
    const struct call *c = context;
    (void)thread;
    for (int32_t r = first; r < end; r++)
        c->isa->rmsnorm(c->cols, x_row(c, r), c->other, c->eps, out_row(c, r), c->out_dtype);
}

static void rmsnorm(struct sf_device *device, int32_t rows, int32_t dim, const float *x,
                    size_t x_stride, const float *weight, float eps, void *out, size_t out_stride,
                    enum sf_dtype out_dtype)
{
    struct call c = { .x = x, .x_stride = x_stride, .other = weight, .eps = eps, .cols = dim,
                      .out = out, .out_stride = out_stride, .out_dtype = out_dtype };
    share(device, rows, (int64_t)rows * dim, rmsnorm_rows, &c);
}

static void rope_table_rows(void *context, int32_t first, int32_t end, int32_t thread)
{
    const struct call *c = context;
    const float *inv_freq = c->other;
    (void)thread;
    for (int32_t r = first; r < end; r++) {
        float *cosine = out_row(c, r), *sine = cosine + c->cols;
        for (int32_t i = 0; i < c->cols; i++) {
            float angle = (float)c->index[r] * inv_freq[i];
            sincosf(angle, &sine[i], &cosine[i]);
        }
    }
}

static void rope_table(struct sf_device *device, int32_t rows, const int32_t *pos,
                       const float *inv_freq, int32_t half, float *table)
{
    struct call c = { .index = pos, .other = inv_freq, .cols = half, .out = table,
                      .out_stride = 2 * (size_t)half, .out_dtype = SF_F32 };
    share(device, rows, (int64_t)rows * half * 16, rope_table_rows, &c);
}

static void rope_rows(void *context, int32_t first, int32_t end, int32_t thread)
{
    const struct call *c = context;
    (void)thread;
    for (int32_t r = first; r < end; r++)
        c->isa->rope(c->heads, c->cols, (int32_t)c->other_stride / 2, other_row(c, r),
                     out_row(c, r));
}

static void rope(struct sf_device *device, int32_t rows, int32_t heads, int32_t head_dim,
                 int32_t rope_dim, const float *table, float *x, size_t x_stride)
{
    struct call c = { .heads = heads, .cols = head_dim, .other = table,
                      .other_stride = (size_t)rope_dim, .out = x, .out_stride = x_stride,
                      .out_dtype = SF_F32 };
    share(device, rows, (int64_t)rows * heads * rope_dim, rope_rows, &c);
}

static void swiglu_rows(void *context, int32_t first, int32_t end, int32_t thread)
{
    const struct call *c = context;
    (void)thread;
    for (int32_t r = first; r < end; r++)
        c->isa->swiglu(c->cols, x_row(c, r), other_row(c, r), out_row(c, r), c->out_dtype);
}

static void swiglu(struct sf_device *device, int32_t rows, int32_t cols, const float *gate,
                   size_t gate_stride, const float *up, size_t up_stride, void *out,
                   size_t out_stride, enum sf_dtype out_dtype)
{
    struct call c = { .cols = cols, .x = gate, .x_stride = gate_stride, .other = up,
                      .other_stride = up_stride, .out = out, .out_stride = out_stride,
                      .out_dtype = out_dtype };
    share(device, rows, (int64_t)rows * cols * 2, swiglu_rows, &c);
}

static void add_bias_rows(void *context, int32_t first, int32_t end, int32_t thread)
{
    const struct call *c = context;
    (void)thread;
    for (int32_t r = first; r < end; r++) c->isa->add((size_t)c->cols, c->other, out_row(c, r));
}

static void add_bias(struct sf_device *device, int32_t rows, int32_t cols, const float *bias,
                     float *x, size_t x_stride)
{
    struct call c = { .cols = cols, .other = bias, .out = x, .out_stride = x_stride,
                      .out_dtype = SF_F32 };
    share(device, rows, (int64_t)rows * cols, add_bias_rows, &c);
}

/* The first leaf is copied and the others are added to it, so that -0 stays -0. */
static void add_leaves_rows(void *context, int32_t first_row, int32_t end, int32_t thread)
{
    enum { TILE = 256 };
    const struct call *call = context;
    (void)thread;
    for (int32_t r = first_row; r < end; r++)
        for (int32_t first = 0; first < call->cols; first += TILE) {
            int32_t width = call->cols - first < TILE ? call->cols - first : TILE;
            const float *from = x_row(call, r) + first;
            float *to = (float *)out_row(call, r) + first, total[TILE] = { 0 };
            if (call->leaves > 0) memcpy(total, from, (size_t)width * sizeof *total);
            for (int32_t l = 1; l < call->leaves; l++) {
                const float *next = from + (size_t)l * call->other_stride;
#pragma omp simd
                for (int32_t c = 0; c < width; c++) total[c] += next[c];
            }
            if (!call->onto) {
                memcpy(to, total, (size_t)width * sizeof *to);
                continue;
            }
#pragma omp simd
            for (int32_t c = 0; c < width; c++) to[c] += total[c];
        }
}

static void add_leaves(struct sf_device *device, int32_t rows, int32_t cols, const float *leaf,
                       int32_t leaves, size_t leaf_stride, size_t row_stride, int onto, float *x,
                       size_t x_stride)
{
    struct call c = { .cols = cols, .x = leaf, .x_stride = row_stride, .leaves = leaves,
                      .other_stride = leaf_stride, .onto = onto, .out = x, .out_stride = x_stride,
                      .out_dtype = SF_F32 };
    share(device, rows, (int64_t)rows * cols * (leaves + 1), add_leaves_rows, &c);
}

static void copy_rows_rows(void *context, int32_t first, int32_t end, int32_t thread)
{
    const struct call *c = context;
    (void)thread;
    for (int32_t r = first; r < end; r++)
        memcpy(out_row(c, r), x_row(c, c->index ? c->index[r] : r),
               (size_t)c->cols * sizeof(float));
}

static void copy_rows(struct sf_device *device, int32_t rows, int32_t cols, const int32_t *from,
                      const float *x, size_t x_stride, float *out, size_t out_stride)
{
    struct call c = { .cols = cols, .index = from, .x = x, .x_stride = x_stride, .out = out,
                      .out_stride = out_stride, .out_dtype = SF_F32 };
    share(device, rows, (int64_t)rows * cols, copy_rows_rows, &c);
}

static void argmax_rows(void *context, int32_t first, int32_t end, int32_t thread)
{
    const struct call *c = context;
    float *value = c->out;
    (void)thread;
    for (int32_t r = first; r < end; r++)
        c->index_out[r] = c->isa->argmax(c->cols, x_row(c, r), &value[r]);
}

static void argmax(struct sf_device *device, int32_t rows, int32_t cols, const float *x,
                   size_t x_stride, float *value_out, int32_t *index_out)
{
    struct call c = { .cols = cols, .x = x, .x_stride = x_stride, .out = value_out,
                      .index_out = index_out };
    share(device, rows, (int64_t)rows * cols, argmax_rows, &c);
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
