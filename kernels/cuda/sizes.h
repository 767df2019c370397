/* kernels/cuda/sizes.h: what a plan says of the CUDA backend's memory, on machines without it too:
 * nothing here needs CUDA. */
#ifndef SHEAF_KERNELS_CUDA_SIZES_H
#define SHEAF_KERNELS_CUDA_SIZES_H
#include "kernels/kernels.h"
SF_C_BEGIN

enum {
    SF_CUDA_HALF_BYTES = 4 << 20,       /* of the ring */
    SF_CUDA_SCRATCH_BYTES = 64 << 20,
    SF_CUDA_WORKSPACE_BYTES = 32 << 20, /* of cuBLAS */
    SF_CUDA_DEVICE_BYTES = SF_CUDA_SCRATCH_BYTES + SF_CUDA_WORKSPACE_BYTES + 2 * SF_CUDA_HALF_BYTES,
    SF_CUDA_COLS_ALIGN = 16             /* of a matrix that is not fixed */
};

static inline int64_t sf_cuda_mat_bytes(const struct sf_mat_shape *shape)
{
    int64_t unit = shape->fixed ? shape->panel_cols : SF_CUDA_COLS_ALIGN;
    int64_t cols = (shape->cols + unit - 1) / unit * unit;
    return cols * shape->k_slice * shape->slices * (int64_t)sf_dtype_bytes(shape->dtype);
}

SF_C_END
#endif
