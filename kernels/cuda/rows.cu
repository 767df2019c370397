/* kernels/cuda/rows.cu: what is computed row by row.  rmsnorm and argmax give each row a block, the
 * rest gives each element a thread; neighbours in a warp touch neighbours in memory.  All are bound
 * by memory: every element is read and written once (rmsnorm reads twice, the second time from
 * cache).  Measured: docs/performance.md. */
#include "kernels/cuda/block.h"
#include "kernels/cuda/entries.h"

enum { THREADS = 256, WARPS = THREADS / SF_WARP };

/* ---- rmsnorm -------------------------------------------------------------------------------- */

static __global__ void rmsnorm_rows(int32_t dim, sf_global<const float> x, size_t x_stride,
                                    sf_global<const float> weight, float eps,
                                    sf_global<unsigned char> out, size_t out_stride,
                                    enum sf_dtype out_dtype)
{
    SF_SHARED(float, part, WARPS);
    size_t r = blockIdx.x;
    sf_global<const float> row = x + r * x_stride;
    float squares = 0;
    for (int32_t c = (int32_t)threadIdx.x; c < dim; c += THREADS) {
        float value = row[c];
        squares = fmaf(value, value, squares);
    }
    float norm = 1 / sqrtf(sf_block_sum(squares, part) / (float)dim + eps);
    for (int32_t c = (int32_t)threadIdx.x; c < dim; c += THREADS)
        sf_put(out_dtype, out, r * out_stride + (size_t)c, row[c] * norm * weight[c]);
}

static void rmsnorm(struct sf_device *device, int32_t rows, int32_t dim, const float *x,
                    size_t x_stride, const float *weight, float eps, void *out, size_t out_stride,
                    enum sf_dtype out_dtype)
{
    if (rows == 0) return;
    SF_LAUNCH(rmsnorm_rows, (unsigned)rows, THREADS, 0, sf_cuda_of(device)->stream, dim, x,
              x_stride, weight, eps, (unsigned char *)out, out_stride, out_dtype);
}

/* ---- rope ----------------------------------------------------------------------------------- */

static __global__ void rope_angles(int32_t rows, sf_global<const int32_t> pos,
                                   sf_global<const float> inv_freq, int32_t half,
                                   sf_global<float> table)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x, width = (size_t)half;
    if (i >= (size_t)rows * width) return;
    size_t r = i / width, e = i % width;
    float angle = (float)(int32_t)pos[r] * inv_freq[e];
    table[r * 2 * width + e] = cosf(angle);
    table[(r * 2 + 1) * width + e] = sinf(angle);
}

static void rope_table(struct sf_device *device, int32_t rows, const int32_t *pos,
                       const float *inv_freq, int32_t half, float *table)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    enum { AT_ONCE = SF_CUDA_HALF_BYTES / 4 };
    for (int32_t first = 0; first < rows && half > 0; first += AT_ONCE) {
        int32_t n = rows - first < AT_ONCE ? rows - first : AT_ONCE;
        struct sf_cuda_block block = sf_cuda_stage(cuda, (size_t)n * sizeof *pos);
        memcpy(block.host, pos + first, block.bytes);
        sf_cuda_send(cuda, &block);
        SF_LAUNCH(rope_angles, sf_blocks((size_t)n * (size_t)half, THREADS), THREADS, 0,
                  cuda->stream, n, (const int32_t *)block.device, inv_freq, half,
                  table + (size_t)first * 2 * (size_t)half);
    }
}

static __global__ void rope_turn(int32_t rows, int32_t heads, int32_t head_dim, int32_t half,
                                 sf_global<const float> table, sf_global<float> x, size_t x_stride)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x, width = (size_t)half;
    size_t per_row = (size_t)heads * width;
    if (i >= (size_t)rows * per_row) return;
    size_t r = i / per_row, h = i % per_row / width, e = i % width;
    sf_global<float> head = x + (r * x_stride + h * (size_t)head_dim);
    float cosine = table[r * 2 * width + e], sine = table[(r * 2 + 1) * width + e];
    float a = head[e], b = head[e + width];
    head[e] = fmaf(a, cosine, -(b * sine));
    head[e + width] = fmaf(b, cosine, a * sine);
}

static void rope(struct sf_device *device, int32_t rows, int32_t heads, int32_t head_dim,
                 int32_t rope_dim, const float *table, float *x, size_t x_stride)
{
    size_t work = (size_t)rows * (size_t)heads * (size_t)(rope_dim / 2);
    if (work == 0) return;
    SF_LAUNCH(rope_turn, sf_blocks(work, THREADS), THREADS, 0, sf_cuda_of(device)->stream, rows,
              heads, head_dim, rope_dim / 2, table, x, x_stride);
}

/* ---- swiglu, add_bias ----------------------------------------------------------------------- */

static __global__ void swiglu_elements(int32_t rows, int32_t cols, sf_global<const float> gate,
                                       size_t gate_stride, sf_global<const float> up,
                                       size_t up_stride, sf_global<unsigned char> out,
                                       size_t out_stride, enum sf_dtype out_dtype)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x, width = (size_t)cols;
    if (i >= (size_t)rows * width) return;
    size_t r = i / width, c = i % width;
    float g = gate[r * gate_stride + c], u = up[r * up_stride + c];
    sf_put(out_dtype, out, r * out_stride + c, g / (1 + expf(-g)) * u);
}

static void swiglu(struct sf_device *device, int32_t rows, int32_t cols, const float *gate,
                   size_t gate_stride, const float *up, size_t up_stride, void *out,
                   size_t out_stride, enum sf_dtype out_dtype)
{
    size_t work = (size_t)rows * (size_t)cols;
    if (work == 0) return;
    SF_LAUNCH(swiglu_elements, sf_blocks(work, THREADS), THREADS, 0, sf_cuda_of(device)->stream,
              rows, cols, gate, gate_stride, up, up_stride, (unsigned char *)out, out_stride,
              out_dtype);
}

static __global__ void bias_elements(int32_t rows, int32_t cols, sf_global<const float> bias,
                                     sf_global<float> x, size_t x_stride)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x, width = (size_t)cols;
    if (i < (size_t)rows * width) x[i / width * x_stride + i % width] += bias[i % width];
}

static void add_bias(struct sf_device *device, int32_t rows, int32_t cols, const float *bias,
                     float *x, size_t x_stride)
{
    size_t work = (size_t)rows * (size_t)cols;
    if (work == 0) return;
    SF_LAUNCH(bias_elements, sf_blocks(work, THREADS), THREADS, 0, sf_cuda_of(device)->stream,
              rows, cols, bias, x, x_stride);
}

/* ---- leaves, copies ------------------------------------------------------------------------- */

static __global__ void leaf_elements(int32_t rows, int32_t cols, sf_global<const float> leaf,
                                     int32_t leaves, size_t leaf_stride, size_t row_stride,
                                     int onto, sf_global<float> x, size_t x_stride)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x, width = (size_t)cols;
    if (i >= (size_t)rows * width) return;
    size_t r = i / width, c = i % width, at = r * row_stride + c;
    float total = 0;
    if (leaves > 0) total = leaf[at];
    for (int32_t l = 1; l < leaves; l++) total = total + leaf[(size_t)l * leaf_stride + at];
    if (onto) total = x[r * x_stride + c] + total;
    x[r * x_stride + c] = total;
}

static void add_leaves(struct sf_device *device, int32_t rows, int32_t cols, const float *leaf,
                       int32_t leaves, size_t leaf_stride, size_t row_stride, int onto, float *x,
                       size_t x_stride)
{
    size_t work = (size_t)rows * (size_t)cols;
    if (work == 0) return;
    SF_LAUNCH(leaf_elements, sf_blocks(work, THREADS), THREADS, 0, sf_cuda_of(device)->stream,
              rows, cols, leaf, leaves, leaf_stride, row_stride, onto, x, x_stride);
}

static __global__ void copy_elements(int32_t rows, int32_t cols, int chosen,
                                     sf_global<const int32_t> from, sf_global<const float> x,
                                     size_t x_stride, sf_global<float> out, size_t out_stride)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x, width = (size_t)cols;
    if (i >= (size_t)rows * width) return;
    size_t r = i / width, c = i % width, source = r;
    if (chosen) source = (size_t)(int32_t)from[r];
    out[r * out_stride + c] = (float)x[source * x_stride + c];
}

static void copy_rows(struct sf_device *device, int32_t rows, int32_t cols, const int32_t *from,
                      const float *x, size_t x_stride, float *out, size_t out_stride)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    enum { AT_ONCE = SF_CUDA_HALF_BYTES / 4 };
    for (int32_t first = 0; first < rows && cols > 0; first += AT_ONCE) {
        int32_t n = rows - first < AT_ONCE ? rows - first : AT_ONCE;
        const float *source = from ? x : x + (size_t)first * x_stride;
        const int32_t *chosen = NULL;
        if (from) {
            struct sf_cuda_block block = sf_cuda_stage(cuda, (size_t)n * sizeof *from);
            memcpy(block.host, from + first, block.bytes);
            sf_cuda_send(cuda, &block);
            chosen = (const int32_t *)(const void *)block.device;
        }
        SF_LAUNCH(copy_elements, sf_blocks((size_t)n * (size_t)cols, THREADS), THREADS, 0,
                  cuda->stream, n, cols, from != NULL, chosen, source, x_stride,
                  out + (size_t)first * out_stride, out_stride);
    }
}

/* x: [rows] the rows of the host that `at` names, side by side. */
static __global__ void put_elements(int32_t rows, int32_t cols, sf_global<const int32_t> at,
                                    sf_global<const float> x, sf_global<float> y, size_t y_stride)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x, width = (size_t)cols;
    if (i >= (size_t)rows * width) return;
    y[(size_t)(int32_t)at[i / width] * y_stride + i % width] = (float)x[i];
}

/* A block of the ring:     at [n], padded | x [n][cols] */
static void put_rows(struct sf_device *device, int32_t rows, int32_t cols, const int32_t *at,
                     const float *x, size_t x_stride, float *y, size_t y_stride)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    size_t row_bytes = (size_t)cols * sizeof *x;
    size_t at_once = (SF_CUDA_HALF_BYTES - 16) / (row_bytes + sizeof *at);
    SF_ASSERT(at_once >= 1);
    for (int32_t first = 0, n; first < rows && cols > 0; first += n) {
        n = (size_t)(rows - first) < at_once ? rows - first : (int32_t)at_once;
        size_t x_at = sf_cuda_part((size_t)n * sizeof *at);
        struct sf_cuda_block block = sf_cuda_stage(cuda, x_at + (size_t)n * row_bytes);
        memcpy(block.host, at + first, (size_t)n * sizeof *at);
        for (int32_t r = 0; r < n; r++)
            memcpy(block.host + x_at + (size_t)r * row_bytes, x + (size_t)at[first + r] * x_stride,
                   row_bytes);
        sf_cuda_send(cuda, &block);
        SF_LAUNCH(put_elements, sf_blocks((size_t)n * (size_t)cols, THREADS), THREADS, 0,
                  cuda->stream, n, cols, (const int32_t *)(const void *)block.device,
                  (const float *)(const void *)(block.device + x_at), y, y_stride);
    }
}

/* ---- argmax --------------------------------------------------------------------------------- */

struct best { float value; int32_t index; };

/* A NaN stays, whatever comes; a tie goes to the lower index. */
static __device__ __forceinline__ void better(struct best *mine, float value, int32_t index)
{
    if (value != value || value > mine->value || (value == mine->value && index < mine->index)) {
        mine->value = value;
        mine->index = index;
    }
}

/* out: [rows] values, then [rows] indices. */
static __global__ void argmax_rows(int32_t cols, sf_global<const float> x, size_t x_stride,
                                   sf_global<float> value_out, sf_global<int32_t> index_out)
{
    SF_SHARED(float, values, WARPS);
    SF_SHARED(int32_t, indices, WARPS);
    sf_global<const float> row = x + (size_t)blockIdx.x * x_stride;
    struct best best = { -INFINITY, 0 };
    for (int32_t c = (int32_t)threadIdx.x; c < cols; c += THREADS) {
        float value = row[c];
        if (value != value || value > best.value) {
            best.value = value;
            best.index = c;
        }
    }
    for (int bits = SF_WARP / 2; bits > 0; bits /= 2) {
        float value = __shfl_xor_sync(SF_FULL_MASK, best.value, bits);
        int32_t index = __shfl_xor_sync(SF_FULL_MASK, best.index, bits);
        better(&best, value, index);
    }
    if (threadIdx.x % SF_WARP == 0) {
        values[threadIdx.x / SF_WARP] = best.value;
        indices[threadIdx.x / SF_WARP] = best.index;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < WARPS; w++) better(&best, values[w], indices[w]);
    value_out[blockIdx.x] = best.value;
    index_out[blockIdx.x] = best.value > -INFINITY ? best.index : 0;
}

static void argmax(struct sf_device *device, int32_t rows, int32_t cols, const float *x,
                   size_t x_stride, float *value_out, int32_t *index_out)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    enum { AT_ONCE = SF_CUDA_SCRATCH_BYTES / 8 };
    for (int32_t first = 0; first < rows; first += AT_ONCE) {
        int32_t n = rows - first < AT_ONCE ? rows - first : AT_ONCE;
        float *value = (float *)(void *)cuda->scratch;
        int32_t *index = (int32_t *)(void *)(value + n);
        SF_LAUNCH(argmax_rows, (unsigned)n, THREADS, 0, cuda->stream, cols,
                  x + (size_t)first * x_stride, x_stride, value, index);
        sf_cuda_fetch(device, value_out + first, value, (size_t)n * sizeof *value);
        sf_cuda_fetch(device, index_out + first, index, (size_t)n * sizeof *index);
    }
}

void sf_cuda_rows_fill(struct sf_kernels *k)
{
    k->rmsnorm = rmsnorm;
    k->rope_table = rope_table;
    k->rope = rope;
    k->swiglu = swiglu;
    k->add_bias = add_bias;
    k->add_leaves = add_leaves;
    k->copy_rows = copy_rows;
    k->put_rows = put_rows;
    k->argmax = argmax;
}
