/* kernels/cuda/factor.cu: low-rank factors: products by cuBLAS in f32, small problems on the host
 * by LAPACK (kernels/small.h), to which their matrices are brought; this happens once a prompt, and
 * each of these calls waits for the device.
 *
 *   RANDOM   y = x omega; orthonormal y; power_iterations times z = x^T y, orthonormal, y = x z,
 *            orthonormal; c = y^T x.  The host sees y^T y [q][q] for Cholesky QR (y itself where it
 *            fails), and with oversampling c [q][cols] for its singular values
 *   GRAM     the host sees x^T x [cols][cols] for its eigenvectors v; a = x v^T
 *   EXACT    the host does it all (kernels/hosted.c)
 *
 *     scratch, RANDOM   | z [cols][q] | y [rows][q] | other [max(rows, cols)][q] | c [q][cols] |
 *                       | small [q][q] | scale [q] | flag |             each at a multiple of 256 B
 *     scratch, GRAM     | small [cols][cols] | y [rows][rank] | flag |
 *
 * To cuBLAS, which counts by columns, x [rows][cols] is x^T. */
#include <string.h>
#include "base/memory.h"
#include "kernels/backend.h"
#include "kernels/cuda/block.h"
#include "kernels/cuda/entries.h"
#include "kernels/small.h"

enum { THREADS = 128, WARPS = THREADS / SF_WARP };

/* ---- kernels -------------------------------------------------------------------------------- */

/* The most rows from one that is not finite to the end: 0 x inf and 0 x NaN are NaN. */
static __global__ void rows_check(int32_t rows, int32_t cols, sf_global<const float> x,
                                  size_t stride, sf_global<int32_t> flag)
{
    SF_SHARED(float, part, WARPS);
    float sum = 0;
    for (int32_t c = (int32_t)threadIdx.x; c < cols; c += THREADS)
        sum += 0 * (float)x[(size_t)blockIdx.x * stride + (size_t)c];
    sum = sf_block_sum(sum, part);
    if (threadIdx.x == 0 && !(sum == 0)) atomicMax(flag, rows - (int32_t)blockIdx.x);
}

/* Philox (base/rng.h): 64 bits of (key, stream 0, index). */
static __device__ __forceinline__ uint64_t bits_of(uint64_t key, uint64_t index)
{
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = 0, c3 = 0;
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xd2511f53u * c0, p1 = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return c0 | (uint64_t)c1 << 32;
}

static __device__ __forceinline__ float cos_of_turns(float turns)
{
#if defined(__CUDACC__)
    return cospif(2 * turns);           /* needs no reduction of large angles */
#else
    return cosf(6.28318531f * turns);
#endif
}

/* Standard normal, by Box and Muller, from the numbers that the CPU backend takes. */
static __global__ void normal_fill(uint64_t seed, size_t count, sf_global<float> out)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    float u = (float)(1 - (double)(bits_of(seed, 2 * i) >> 11) * 0x1p-53);
    float turns = (float)((double)(bits_of(seed, 2 * i + 1) >> 11) * 0x1p-53);
    out[i] = sqrtf(-2 * logf(u)) * cos_of_turns(turns);
}

/* What a's column and b's row of a direction are made from: left [rows][left_stride], right
 * [directions][cols].  scale NULL: left_scale and right_scale, both 0: by the length of left. */
struct sides {
    sf_global<const float> left;
    size_t left_stride;
    sf_global<const float> right, scale;
    float left_scale, right_scale;
};
struct target { sf_global<float> a, b; size_t a_stride, b_stride; int32_t rows, cols; };

/* The first of the greatest entries of a row, of a block's threads. */
static __device__ __forceinline__ int32_t top_of(sf_global<const float> row, int32_t cols,
                                                 sf_shared<float> part)
{
    float most = -1;
    int32_t own = 0;
    for (int32_t c = (int32_t)threadIdx.x; c < cols; c += THREADS)
        if (fabsf(row[c]) > most) {
            most = fabsf(row[c]);
            own = c;
        }
    float all = sf_block_max(most, part);
    int32_t first = most == all ? own : cols;
    for (int bits = SF_WARP / 2; bits > 0; bits /= 2) {
        int32_t other = __shfl_xor_sync(SF_FULL_MASK, first, bits);
        first = other < first ? other : first;
    }
    SF_SHARED(int32_t, index, WARPS);
    if (threadIdx.x % SF_WARP == 0) index[threadIdx.x / SF_WARP] = first;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) first = index[w] < first ? (int32_t)index[w] : first;
    return first;
}

/* One block a direction. */
static __global__ void directions_put(struct sides from, struct target to)
{
    SF_SHARED(float, part, WARPS);
    size_t r = blockIdx.x;
    sf_global<const float> right = from.right + r * (size_t)to.cols;
    int32_t top = top_of(right, to.cols, part);
    float left_scale = from.left_scale, right_scale = from.right_scale, sum = 0;
    if (from.scale) left_scale = right_scale = from.scale[r];
    if (!from.scale && left_scale == 0) {
        for (int32_t row = (int32_t)threadIdx.x; row < to.rows; row += THREADS) {
            float value = from.left[(size_t)row * from.left_stride + r];
            sum = fmaf(value, value, sum);
        }
        right_scale = sqrtf(sqrtf(sf_block_sum(sum, part)));
        left_scale = right_scale > 0 ? 1 / right_scale : 0;
    }
    float sign = (float)right[top] < 0 ? -1 : 1;
    for (int32_t row = (int32_t)threadIdx.x; row < to.rows; row += THREADS)
        to.a[(size_t)row * to.a_stride + r] =
            sign * left_scale * (float)from.left[(size_t)row * from.left_stride + r];
    for (int32_t c = (int32_t)threadIdx.x; c < to.cols; c += THREADS)
        to.b[r * to.b_stride + (size_t)c] = sign * right_scale * (float)right[c];
}

/* ---- products ------------------------------------------------------------------------------- */

struct matrix { float *at; int32_t rows, cols; size_t stride; };    /* device, [rows][stride] */

static struct matrix dense(float *at, int32_t rows, int32_t cols)
{
    return { at, rows, cols, (size_t)cols };
}

/* out = x y, or x^T y. */
static void multiply(struct sf_cuda *cuda, int transposed, struct matrix x, struct matrix y,
                     struct matrix out)
{
    const float one = 1, zero = 0;
    SF_ASSERT(x.stride <= INT32_MAX && y.stride <= INT32_MAX && out.stride <= INT32_MAX);
    SF_ASSERT(y.rows == (transposed ? x.rows : x.cols) && out.cols == y.cols);
    SF_CUBLAS_MUST(cublasGemmEx(cuda->blas, CUBLAS_OP_N, transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                                out.cols, out.rows, y.rows, &one, y.at, CUDA_R_32F, (int)y.stride,
                                x.at, CUDA_R_32F, (int)x.stride, &zero, out.at, CUDA_R_32F,
                                (int)out.stride, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

/* ---- scratch -------------------------------------------------------------------------------- */

static int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }
static size_t area(int32_t a, int32_t b) { return (size_t)a * (size_t)b; }

/* On the device, and on the host. */
struct room {
    int32_t q, kept;
    float *z, *y, *other, *c, *small, *scale;
    int32_t *flag;
    struct sf_ortho ortho;
    struct sf_svd svd;
    struct sf_eigen eigen;
    float *y_host;
};

static void room_cut(const struct sf_factor_job *job, struct room *room)
{
    struct sf_cuda_factor_cut cut = sf_cuda_factor_cut_of(job);
    unsigned char *base = (unsigned char *)job->scratch;
    room->q = cut.q;
    room->kept = least(job->rank, least(job->rows, job->cols));
    room->z = (float *)(void *)(base + cut.at[SF_CUDA_FACTOR_Z]);
    room->y = (float *)(void *)(base + cut.at[SF_CUDA_FACTOR_Y]);
    room->other = (float *)(void *)(base + cut.at[SF_CUDA_FACTOR_OTHER]);
    room->c = (float *)(void *)(base + cut.at[SF_CUDA_FACTOR_C]);
    room->small = (float *)(void *)(base + cut.at[SF_CUDA_FACTOR_SMALL]);
    room->scale = (float *)(void *)(base + cut.at[SF_CUDA_FACTOR_SCALE]);
    room->flag = (int32_t *)(void *)(base + cut.at[SF_CUDA_FACTOR_FLAG]);
}

static void room_take(struct sf_heap *heap, const struct sf_factor_job *job, struct room *room)
{
    if (job->how == SF_FACTOR_GRAM) {
        sf_eigen_take(heap, job->cols, &room->eigen);
        return;
    }
    int32_t most = job->rows > job->cols ? job->rows : job->cols;
    sf_ortho_take(heap, most, room->q, &room->ortho);
    room->y_host = sf_heap_floats(heap, area(most, room->q));
    if (job->oversample > 0) sf_svd_take(heap, room->q, job->cols, &room->svd);
}

/* ---- orthonormal columns -------------------------------------------------------------------- */

static int cholesky(struct sf_device *device, struct room *room, struct matrix y,
                    double shift_unit, int *near_out)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    struct matrix small = dense(room->small, y.cols, y.cols);
    struct matrix other = dense(room->other, y.rows, y.cols);
    size_t bytes = area(y.cols, y.cols) * sizeof(float);
    multiply(cuda, 1, y, y, small);
    sf_cuda_download(device, room->ortho.gram, room->small, bytes);
    if (!sf_ortho_invert(&room->ortho, y.cols, shift_unit, near_out)) return 0;
    sf_cuda_upload(device, room->small, room->ortho.gram, bytes);
    SF_CUDA_MUST(cudaMemcpyAsync(other.at, y.at, area(y.rows, y.cols) * sizeof(float),
                                 cudaMemcpyDeviceToDevice, cuda->stream));
    multiply(cuda, 0, other, small, y);
    return 1;
}

/* As the CPU backend does it: shifted Cholesky QR, two passes without shift, or Householder. */
static sf_status orthonormalise(struct sf_device *device, struct room *room, struct matrix y,
                                int between)
{
    int near;
    size_t bytes = area(y.rows, y.cols) * sizeof(float);
    if (cholesky(device, room, y, 8 * 0x1p-24, &near) &&
        (between || (cholesky(device, room, y, 0, &near) && cholesky(device, room, y, 0, &near) &&
                     near)))
        return SF_OK;
    sf_cuda_download(device, room->y_host, y.at, bytes);
    SF_TRY(sf_ortho_householder(&room->ortho, room->y_host, y.rows, y.cols));
    sf_cuda_upload(device, y.at, room->y_host, bytes);
    return SF_OK;
}

/* ---- the ways ------------------------------------------------------------------------------- */

static struct matrix x_of(const struct sf_factor_job *job)
{
    return { const_cast<float *>(job->x), job->rows, job->cols, job->x_stride };
}

/* The first directions, and nothing for the rest of the rank. */
static void put(struct sf_device *device, const struct sf_factor_job *job, int32_t kept,
                const struct sides *sides)
{
    struct target to = { job->a, job->b, job->a_stride, job->b_stride, job->rows, job->cols };
    SF_LAUNCH(directions_put, (unsigned)kept, THREADS, 0, sf_cuda_of(device)->stream, *sides, to);
    device->k->copy_columns(device, job->rows, 0, job->rank - kept, NULL, 0, job->a + kept,
                            job->a_stride);
    device->k->copy_columns(device, job->rank - kept, 0, job->cols, NULL, 0,
                            job->b + (size_t)kept * job->b_stride, job->b_stride);
}

static sf_status range_find(struct sf_device *device, const struct sf_factor_job *job,
                            struct room *room)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    struct matrix x = x_of(job), z = dense(room->z, job->cols, room->q);
    struct matrix y = dense(room->y, job->rows, room->q);
    size_t count = area(job->cols, room->q);
    SF_LAUNCH(normal_fill, sf_blocks(count, THREADS), THREADS, 0, cuda->stream, job->seed, count,
              room->z);
    multiply(cuda, 0, x, z, y);
    for (int32_t i = 0; i < job->power_iterations; i++) {
        SF_TRY(orthonormalise(device, room, y, 1));
        multiply(cuda, 1, x, y, z);
        SF_TRY(orthonormalise(device, room, z, 1));
        multiply(cuda, 0, x, z, y);
    }
    SF_TRY(orthonormalise(device, room, y, 0));
    multiply(cuda, 1, y, x, dense(room->c, room->q, job->cols));
    return SF_OK;
}

static sf_status by_range(struct sf_device *device, const struct sf_factor_job *job,
                          struct room *room)
{
    SF_TRY(range_find(device, job, room));
    struct sf_svd *svd = &room->svd;
    int32_t kept = room->kept;
    if (job->oversample == 0) {
        float root = sqrtf((float)job->rows);
        struct sides sides = { room->y, (size_t)room->q, room->c, NULL, root, 1 / root };
        put(device, job, kept, &sides);
        return SF_OK;
    }
    sf_cuda_download(device, svd->x, room->c, area(room->q, job->cols) * sizeof(float));
    SF_TRY(sf_svd_run(svd));                    /* narrow is q */
    for (int32_t r = 0; r < svd->narrow; r++) svd->s[r] = sqrtf(svd->s[r]);
    sf_cuda_upload(device, room->scale, svd->s, (size_t)kept * sizeof(float));
    sf_cuda_upload(device, room->small, svd->u, area(room->q, svd->narrow) * sizeof(float));
    sf_cuda_upload(device, room->c, svd->v, area(kept, job->cols) * sizeof(float));
    struct matrix u = { room->small, room->q, kept, (size_t)svd->narrow };
    multiply(sf_cuda_of(device), 0, dense(room->y, job->rows, room->q), u,
             dense(room->other, job->rows, kept));
    struct sides sides = { room->other, (size_t)kept, room->c, room->scale, 0, 0 };
    put(device, job, kept, &sides);
    return SF_OK;
}

static sf_status by_gram(struct sf_device *device, const struct sf_factor_job *job,
                         struct room *room)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    struct matrix x = x_of(job);
    int32_t cols = job->cols, kept = room->kept;
    multiply(cuda, 1, x, x, dense(room->small, cols, cols));
    sf_cuda_download(device, room->eigen.x, room->small, area(cols, cols) * sizeof(float));
    SF_TRY(sf_eigen_run(&room->eigen));
    /* Values ascend: the last rows, from the last on, are those that are kept. */
    for (int32_t r = 0; r < kept; r++)
        sf_cuda_upload(device, room->small + area(r, cols),
                       room->eigen.x + area(cols - 1 - r, cols), (size_t)cols * sizeof(float));
    /* y [rows][kept] = x v^T, as cuBLAS's A^T B. */
    const float one = 1, zero = 0;
    SF_CUBLAS_MUST(cublasGemmEx(cuda->blas, CUBLAS_OP_T, CUBLAS_OP_N, kept, job->rows, cols, &one,
                                room->small, CUDA_R_32F, cols, job->x, CUDA_R_32F,
                                (int)job->x_stride, &zero, room->y, CUDA_R_32F, kept,
                                CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    struct sides sides = { room->y, (size_t)kept, room->small, NULL, 0, 0 };
    put(device, job, kept, &sides);
    return SF_OK;
}

static sf_status check(struct sf_device *device, const struct sf_factor_job *job, int32_t *flag)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    int32_t found = 0;
    SF_CUDA_MUST(cudaMemsetAsync(flag, 0, sizeof *flag, cuda->stream));
    SF_LAUNCH(rows_check, (unsigned)job->rows, THREADS, 0, cuda->stream, job->rows, job->cols,
              job->x, job->x_stride, flag);
    sf_cuda_download(device, &found, flag, sizeof found);
    if (found == 0) return SF_OK;
    return SF_FAIL(SF_INVALID, "row %d is not finite", job->rows - found);
}

static sf_status factor(struct sf_device *device, const struct sf_factor_job *job)
{
    struct room room;
    void *block;
    if (job->how == SF_FACTOR_EXACT) return sf_hosted_factor(device, job);
    memset(&room, 0, sizeof room);
    room_cut(job, &room);
    SF_TRY(check(device, job, room.flag));
    struct sf_heap heap = { NULL, 0 };
    room_take(&heap, job, &room);
    SF_TRY(sf_alloc(heap.used + 64, "low-rank factors", &block));
    heap.base = (unsigned char *)block + (64 - (uintptr_t)block % 64) % 64;
    heap.used = 0;
    room_take(&heap, job, &room);
    sf_status status = job->how == SF_FACTOR_GRAM ? by_gram(device, job, &room)
                                                  : by_range(device, job, &room);
    sf_free(block);
    return status;
}

void sf_cuda_factor_fill(struct sf_kernels *k)
{
    k->factor_bytes = sf_cuda_factor_bytes;
    k->factor = factor;
}
