/* kernels/cuda/sizes.h: what a plan says of the CUDA backend's memory and of the heads that it
 * takes, on machines without it too: nothing here needs CUDA. */
#ifndef SHEAF_KERNELS_CUDA_SIZES_H
#define SHEAF_KERNELS_CUDA_SIZES_H
#include "kernels/kernels.h"
SF_C_BEGIN

enum {
    SF_CUDA_HALF_BYTES = 4 << 20,       /* of the ring */
    SF_CUDA_SCRATCH_BYTES = 64 << 20,
    SF_CUDA_WORKSPACE_BYTES = 32 << 20, /* of cuBLAS */
    SF_CUDA_CUT_BYTES = 2 << 20,        /* of attention: how its last job was cut */
    SF_CUDA_DEVICE_BYTES = SF_CUDA_SCRATCH_BYTES + SF_CUDA_WORKSPACE_BYTES +
                           2 * SF_CUDA_HALF_BYTES + SF_CUDA_CUT_BYTES,
    SF_CUDA_COLS_ALIGN = 16,            /* of a matrix that is not fixed */
    SF_CUDA_V_DIM_MAX = 1024,           /* elements of a value (attend.cu) */
    SF_CUDA_BASIS_K_DIM_MAX = 329       /* of a key of a layer group (basis.cu) */
};

/* What a plan sets aside on a GPU for what libraries take there by themselves: of each rank its
 * context with cuBLAS and the code of all kernels, and for each communicator of NCCL its channels.
 * Allowances, not measured sizes: they are to be on the safe side. */
#define SF_CUDA_CONTEXT_BYTES ((int64_t)512 << 20)
#define SF_NCCL_COMM_BYTES ((int64_t)512 << 20)

static inline int64_t sf_cuda_mat_bytes(const struct sf_mat_shape *shape)
{
    int64_t unit = shape->fixed ? shape->panel_cols : SF_CUDA_COLS_ALIGN;
    int64_t cols = (shape->cols + unit - 1) / unit * unit;
    return cols * shape->k_slice * shape->slices * (int64_t)sf_dtype_bytes(shape->dtype);
}

/* What a factor job has in its scratch (factor.cu draws it): where each array begins.  Those of the
 * other ways are empty; EXACT has none. */
enum { SF_CUDA_FACTOR_Z, SF_CUDA_FACTOR_Y, SF_CUDA_FACTOR_OTHER, SF_CUDA_FACTOR_C,
       SF_CUDA_FACTOR_SMALL, SF_CUDA_FACTOR_SCALE, SF_CUDA_FACTOR_FLAG, SF_CUDA_FACTOR_ARRAYS };
struct sf_cuda_factor_cut { int32_t q; size_t at[SF_CUDA_FACTOR_ARRAYS], bytes; };

static inline struct sf_cuda_factor_cut sf_cuda_factor_cut_of(const struct sf_factor_job *job)
{
    struct sf_cuda_factor_cut cut;
    size_t rows = (size_t)job->rows, cols = (size_t)job->cols;
    size_t floats[SF_CUDA_FACTOR_ARRAYS] = { 0, 0, 0, 0, 0, 0, 0 };
    size_t narrow = rows < cols ? rows : cols;
    size_t kept = (size_t)job->rank < narrow ? (size_t)job->rank : narrow, q = kept;
    if (job->how == SF_FACTOR_RANDOM)
        q += (size_t)job->oversample < narrow - q ? (size_t)job->oversample : narrow - q;
    if (job->how == SF_FACTOR_RANDOM) {
        floats[SF_CUDA_FACTOR_Z] = cols * q;
        floats[SF_CUDA_FACTOR_Y] = rows * q;
        floats[SF_CUDA_FACTOR_OTHER] = (rows > cols ? rows : cols) * q;
        floats[SF_CUDA_FACTOR_C] = q * cols;
        floats[SF_CUDA_FACTOR_SMALL] = q * q;
        floats[SF_CUDA_FACTOR_SCALE] = q;
    } else if (job->how == SF_FACTOR_GRAM) {
        floats[SF_CUDA_FACTOR_SMALL] = cols * cols;
        floats[SF_CUDA_FACTOR_Y] = rows * kept;
    }
    if (job->how != SF_FACTOR_EXACT) floats[SF_CUDA_FACTOR_FLAG] = 1;
    cut.q = (int32_t)q;
    cut.bytes = 0;
    for (int i = 0; i < SF_CUDA_FACTOR_ARRAYS; i++) {
        cut.at[i] = cut.bytes;
        cut.bytes += (floats[i] * sizeof(float) + 255) / 256 * 256;
    }
    return cut;
}

static inline size_t sf_cuda_factor_bytes(const struct sf_factor_job *job)
{
    return sf_cuda_factor_cut_of(job).bytes;
}

SF_C_END
#endif
