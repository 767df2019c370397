/* tests/emulation/cublas.cpp: products in plain loops.  Elements are widened to f32 and summed in
 * f32, as the tensor cores do, in an order that changes with the shape and with the alignment of
 * the operands, as cuBLAS's does: who promises bits that do not depend on them has to see to it. */
#include <vector>
#include "base/dtype.h"
#include "tests/emulation/include/cublas_v2.h"
#include "tests/emulation/internal.h"

struct emu_cublas { cudaStream_t stream; };

namespace {

struct product {
    int m, n, k, lda, ldb, ldc;
    float alpha, beta;
    const void *a, *b;
    void *c;
    enum sf_dtype dtype;
    bool a_t, b_t;                      /* op(A) = A^T, op(B) = B^T */
};

size_t extent(int columns, int leading, int rows)
{
    return (size_t)(columns - 1) * (size_t)leading + (size_t)rows;
}

/* Sum over k in `parts` chains, that are then added. */
template <int PARTS> float dot(const float *x, const float *y, int k)
{
    float sum[PARTS] = {};
    int i = 0;
    for (; i + PARTS <= k; i += PARTS)
        for (int p = 0; p < PARTS; p++) sum[p] += x[i + p] * y[i + p];
    for (; i < k; i++) sum[0] += x[i] * y[i];
    for (int p = 1; p < PARTS; p++) sum[0] += sum[p];
    return sum[0];
}

/* [columns][k] from a matrix of `columns` columns of k, or from its transposed. */
void widen(const product &g, const void *matrix, int columns, int leading, bool across,
           std::vector<float> &out)
{
    size_t width = sf_dtype_bytes(g.dtype), k = (size_t)g.k, n = (size_t)columns;
    size_t bytes = (across ? extent(g.k, leading, columns) : extent(columns, leading, g.k)) * width;
    const unsigned char *from = emu::device_range(matrix, bytes, "cuBLAS reads a matrix");
    out.resize(n * k);
    if (!across) {
        for (size_t c = 0; c < n; c++)
            sf_to_f32(g.dtype, from + c * (size_t)leading * width, &out[c * k], k);
        return;
    }
    std::vector<float> line(n);
    for (size_t i = 0; i < k; i++) {
        sf_to_f32(g.dtype, from + i * (size_t)leading * width, line.data(), n);
        for (size_t c = 0; c < n; c++) out[c * k + i] = line[c];
    }
}

void run(const product &g)
{
    std::vector<float> a, b;
    widen(g, g.a, g.m, g.lda, !g.a_t, a);
    widen(g, g.b, g.n, g.ldb, g.b_t, b);
    float *c = (float *)(void *)emu::device_range(g.c, extent(g.n, g.ldc, g.m) * sizeof(float),
                                                  "cuBLAS writes a matrix");
    size_t k = (size_t)g.k;
    bool aligned = ((size_t)g.a | (size_t)g.b) % 16 == 0;
    for (int j = 0; j < g.n; j++)
        for (int i = 0; i < g.m; i++) {
            const float *x = &a[(size_t)i * k], *y = &b[(size_t)j * k];
            float sum = aligned && g.n > 32 ? dot<32>(x, y, g.k)
                      : aligned ? dot<16>(x, y, g.k) : dot<8>(x, y, g.k);
            float *out = &c[(size_t)j * (size_t)g.ldc + (size_t)i];
            *out = g.beta == 0 ? g.alpha * sum : g.alpha * sum + g.beta * *out;
        }
}

}

cublasStatus_t cublasCreate(cublasHandle_t *handle)
{
    *handle = new emu_cublas{ nullptr };
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy(cublasHandle_t handle)
{
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream)
{
    handle->stream = stream;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace(cublasHandle_t handle, void *workspace, size_t bytes)
{
    (void)handle;
    emu::device_range(workspace, bytes, "the workspace of cuBLAS");
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasGetStatusName(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_SUCCESS ? "CUBLAS_STATUS_SUCCESS"
                                           : "CUBLAS_STATUS_INVALID_VALUE";
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                            int m, int n, int k, const void *alpha, const void *A,
                            cudaDataType A_type, int lda, const void *B, cudaDataType B_type,
                            int ldb, const void *beta, void *C, cudaDataType C_type, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algorithm)
{
    (void)algorithm;
    bool a_t = op_a == CUBLAS_OP_T, b_t = op_b == CUBLAS_OP_T;
    if (A_type != B_type || C_type != CUDA_R_32F || compute != CUBLAS_COMPUTE_32F || m < 0 ||
        n < 0 || k < 1 || lda < (a_t ? k : m) || ldb < (b_t ? n : k) || ldc < m)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (m == 0 || n == 0) return CUBLAS_STATUS_SUCCESS;
    enum sf_dtype dtype = A_type == CUDA_R_32F ? SF_F32 : A_type == CUDA_R_16F ? SF_F16 : SF_BF16;
    product g = { m, n, k, lda, ldb, ldc, *(const float *)alpha, *(const float *)beta, A, B, C,
                  dtype, a_t, b_t };
    emu::stream_push(handle->stream, [g] { run(g); });
    return CUBLAS_STATUS_SUCCESS;
}
