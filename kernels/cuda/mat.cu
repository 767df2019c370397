/* kernels/cuda/mat.cu: products, by cuBLAS.
 *
 *   not fixed   weights [cols rounded up to 16][k], one product for all of k, rows and columns
 *   fixed       weights [panel][slice][panel_cols][k_slice]; every product has the same shape,
 *               SF_FIXED_ROWS rows x a panel x a slice, between buffers of the scratch that always
 *               lie alike: x is gathered to them and the leaf is added to y, by kernels of ours
 *
 *     scratch, fixed   | x of a slice [48][k_slice] | leaf [48][panel_cols] f32 |
 *
 * cuBLAS promises the same bits for the same shape, pointers' alignment and device on one stream,
 * which is what `fixed` rests on: a row's place among the 48 does not enter either, as each output
 * is summed over k alike.  cuBLAS is column-major: y^T = (W^T)^T x^T. */
#include "base/memory.h"
#include "kernels/cuda/block.h"
#include "kernels/cuda/entries.h"

enum { THREADS = 256, LEAF_BYTES = 1 << 20 };

/* C++ sees the struct that kernels.h leaves open. */
struct sf_mat {
    struct sf_mat_shape shape;
    size_t width, k;                    /* bytes of an element; slices * k_slice */
    int32_t panels;
    unsigned char *weights;             /* device */
};

static cudaDataType type_of(enum sf_dtype dtype)
{
    return dtype == SF_F32 ? CUDA_R_32F : dtype == SF_F16 ? CUDA_R_16F : CUDA_R_16BF;
}

/* The limits of the CPU backend, so that a plan which one backend takes the other takes too. */
static sf_status shape_check(const struct sf_mat_shape *shape)
{
    size_t width = sf_dtype_bytes(shape->dtype), most = LEAF_BYTES / width / SF_FIXED_ROWS;
    SF_ASSERT(shape->cols > 0 && shape->panel_cols > 0 && shape->k_slice > 0 && shape->slices > 0);
    if (shape->int8) return SF_FAIL(SF_UNSUPPORTED, "int8 products are the CPU's, not a GPU's");
    if (!shape->fixed) return SF_OK;
    if (shape->slices > 1 && (size_t)shape->k_slice > most)
        return SF_FAIL(SF_UNSUPPORTED, "leaves of %d inputs in a fixed product (at most %zu in %s)",
                       shape->k_slice, most, sf_dtype_name(shape->dtype));
    size_t bytes = SF_FIXED_ROWS * ((size_t)shape->k_slice * width +
                                    (size_t)shape->panel_cols * sizeof(float)) + 256;
    if (bytes > SF_CUDA_SCRATCH_BYTES)
        return SF_FAIL(SF_UNSUPPORTED, "a fixed product of %d inputs and panels of %d columns does "
                       "not fit into %d bytes of scratch", shape->k_slice, shape->panel_cols,
                       SF_CUDA_SCRATCH_BYTES);
    return SF_OK;
}

static sf_status mat_create(struct sf_device *device, const struct sf_mat_shape *shape,
                            struct sf_mat **out)
{
    struct sf_mat *mat;
    SF_TRY(shape_check(shape));
    SF_TRY(sf_alloc(sizeof *mat, "matrix", (void **)&mat));
    mat->shape = *shape;
    mat->width = sf_dtype_bytes(shape->dtype);
    mat->k = (size_t)shape->k_slice * (size_t)shape->slices;
    mat->panels = (shape->cols + shape->panel_cols - 1) / shape->panel_cols;
    sf_status status = device->k->alloc(device, (size_t)sf_cuda_mat_bytes(shape), "weights",
                                        (void **)&mat->weights);
    if (status != SF_OK) {
        sf_free(mat);
        return status;
    }
    *out = mat;
    return SF_OK;
}

static void mat_destroy(struct sf_device *device, struct sf_mat *mat)
{
    if (!mat) return;
    device->k->free(device, mat->weights);
    sf_free(mat);
}

/* Where a tile begins; its columns lie `pitch` bytes apart. */
static unsigned char *tile_at(const struct sf_mat *mat, int32_t panel, int32_t slice,
                              size_t *pitch)
{
    const struct sf_mat_shape *shape = &mat->shape;
    size_t row = (size_t)shape->k_slice * mat->width, cols = (size_t)shape->panel_cols;
    size_t tile = (size_t)panel * (size_t)shape->slices + (size_t)slice;
    *pitch = shape->fixed ? row : mat->k * mat->width;
    if (shape->fixed) return mat->weights + tile * cols * row;
    return mat->weights + (size_t)panel * cols * *pitch + (size_t)slice * row;
}

static sf_status mat_pack(struct sf_device *device, struct sf_mat *mat, int32_t panel,
                          int32_t slice, const float *tile)
{
    const struct sf_mat_shape *shape = &mat->shape;
    struct sf_cuda *cuda = sf_cuda_of(device);
    size_t k = (size_t)shape->k_slice, row = k * mat->width, pitch;
    int32_t first = panel * shape->panel_cols, cols = shape->cols - first;
    SF_ASSERT(panel >= 0 && first < shape->cols && slice >= 0 && slice < shape->slices);
    if (cols > shape->panel_cols) cols = shape->panel_cols;
    SF_ASSERT(row <= SF_CUDA_HALF_BYTES);
    int32_t at_once = (int32_t)(SF_CUDA_HALF_BYTES / row);
    unsigned char *to = tile_at(mat, panel, slice, &pitch);
    for (int32_t c = 0; c < cols; c += at_once) {
        size_t n = (size_t)(cols - c < at_once ? cols - c : at_once);
        struct sf_cuda_block block = sf_cuda_stage(cuda, n * row);
        sf_from_f32(shape->dtype, tile + (size_t)c * k, block.host, n * k);
        SF_CUDA_MUST(cudaMemcpy2DAsync(to + (size_t)c * pitch, pitch, block.host, row, row, n,
                                       cudaMemcpyHostToDevice, cuda->stream));
    }
    return SF_OK;
}

/* ---- products ------------------------------------------------------------------------------- */

/* y[rows][cols] = x[rows][k] w[cols][k]^T; strides count elements. */
static void product(struct sf_cuda *cuda, enum sf_dtype dtype, int32_t rows, int32_t cols,
                    int32_t k, const void *w, size_t w_stride, const void *x, size_t x_stride,
                    float *y, size_t y_stride)
{
    const float one = 1, zero = 0;
    cudaDataType type = type_of(dtype);
    SF_ASSERT(w_stride <= INT32_MAX && x_stride <= INT32_MAX && y_stride <= INT32_MAX);
    SF_CUBLAS_MUST(cublasGemmEx(cuda->blas, CUBLAS_OP_T, CUBLAS_OP_N, cols, rows, k, &one, w, type,
                                (int)w_stride, x, type, (int)x_stride, &zero, y, CUDA_R_32F,
                                (int)y_stride, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

/* to[r][i] = from[r][i] for SF_FIXED_ROWS rows of k elements of type E. */
template <class E> __global__ void gather_x(sf_global<const E> from, size_t stride, int32_t k,
                                            sf_global<E> to)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x, width = (size_t)k;
    if (i < SF_FIXED_ROWS * width) to[i] = from[i / width * stride + i % width];
}

/* One call: y, or leaves that lie leaf_stride apart. */
struct call {
    const struct sf_mat *mat;
    int32_t rows;
    const unsigned char *x;
    size_t x_stride;
    float *y;
    size_t y_stride, leaf_stride;
    int leaves;
};

static void slice_gather(struct sf_cuda *cuda, const struct call *call, int32_t row, int32_t slice)
{
    const struct sf_mat_shape *shape = &call->mat->shape;
    size_t at = (size_t)row * call->x_stride + (size_t)slice * (size_t)shape->k_slice;
    unsigned blocks = sf_blocks(SF_FIXED_ROWS * (size_t)shape->k_slice, THREADS);
    const void *x = call->x + at * call->mat->width;
    if (call->mat->width == 4)
        SF_LAUNCH(gather_x<uint32_t>, blocks, THREADS, 0, cuda->stream, (const uint32_t *)x,
                  call->x_stride, shape->k_slice, (uint32_t *)(void *)cuda->scratch);
    else
        SF_LAUNCH(gather_x<uint16_t>, blocks, THREADS, 0, cuda->stream, (const uint16_t *)x,
                  call->x_stride, shape->k_slice, (uint16_t *)(void *)cuda->scratch);
}

/* SF_FIXED_ROWS rows from `row` on times all tiles of a slice. */
static void slice_run(struct sf_cuda *cuda, const struct call *call, int32_t row, int32_t slice)
{
    const struct sf_mat_shape *shape = &call->mat->shape;
    size_t x_bytes = SF_FIXED_ROWS * (size_t)shape->k_slice * call->mat->width, pitch;
    float *leaf = (float *)(void *)(cuda->scratch + (x_bytes + 255) / 256 * 256);
    int32_t rows = call->rows - row < SF_FIXED_ROWS ? call->rows - row : SF_FIXED_ROWS;
    slice_gather(cuda, call, row, slice);
    for (int32_t panel = 0; panel < call->mat->panels; panel++) {
        int32_t first = panel * shape->panel_cols, cols = shape->cols - first;
        if (cols > shape->panel_cols) cols = shape->panel_cols;
        const void *w = tile_at(call->mat, panel, slice, &pitch);
        float *y = call->y + (size_t)row * call->y_stride + (size_t)first;
        if (call->leaves) y += (size_t)slice * call->leaf_stride;
        product(cuda, shape->dtype, SF_FIXED_ROWS, shape->panel_cols, shape->k_slice, w,
                (size_t)shape->k_slice, cuda->scratch, (size_t)shape->k_slice, leaf,
                (size_t)shape->panel_cols);
        cuda->owner->k->add_leaves(cuda->owner, rows, cols, leaf, 1, 0, (size_t)shape->panel_cols,
                                   !call->leaves && slice > 0, y, call->y_stride);
    }
}

static void call_run(struct sf_device *device, const struct call *call)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    const struct sf_mat *mat = call->mat;
    const struct sf_mat_shape *shape = &mat->shape;
    if (call->rows == 0) return;
    if (shape->fixed) {
        for (int32_t row = 0; row < call->rows; row += SF_FIXED_ROWS)
            for (int32_t slice = 0; slice < shape->slices; slice++)
                slice_run(cuda, call, row, slice);
        return;
    }
    int32_t products = call->leaves ? shape->slices : 1;
    size_t k = mat->k / (size_t)products;
    for (size_t s = 0; s < (size_t)products; s++)
        product(cuda, shape->dtype, call->rows, shape->cols, (int32_t)k,
                mat->weights + s * k * mat->width, mat->k, call->x + s * k * mat->width,
                call->x_stride, call->y + s * call->leaf_stride, call->y_stride);
}

static void matmul(struct sf_device *device, const struct sf_mat *mat, int32_t rows, const void *x,
                   size_t x_stride, float *y, size_t y_stride)
{
    struct call call = { mat, rows, (const unsigned char *)x, x_stride, y, y_stride, 0, 0 };
    call_run(device, &call);
}

static void matmul_leaves(struct sf_device *device, const struct sf_mat *mat, int32_t rows,
                          const void *x, size_t x_stride, float *leaves, size_t leaf_stride,
                          size_t row_stride)
{
    struct call call = { mat, rows, (const unsigned char *)x, x_stride, leaves, row_stride,
                         leaf_stride, 1 };
    call_run(device, &call);
}

void sf_cuda_mat_fill(struct sf_kernels *k)
{
    k->mat_bytes = sf_cuda_mat_bytes;
    k->mat_create = mat_create;
    k->mat_destroy = mat_destroy;
    k->mat_pack = mat_pack;
    k->matmul = matmul;
    k->matmul_leaves = matmul_leaves;
}
