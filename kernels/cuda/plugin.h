/* kernels/cuda/plugin.h: the symbols of the shared object that plugin.c looks for, and one that
 * tests set. */
#ifndef SHEAF_KERNELS_CUDA_PLUGIN_H
#define SHEAF_KERNELS_CUDA_PLUGIN_H
#include "kernels/backend.h"
SF_C_BEGIN

extern __attribute__((visibility("default"))) const struct sf_backend sf_backend_plugin;
extern __attribute__((visibility("default"))) const uint32_t sf_backend_layout[SF_BACKEND_WORDS];

/* Which path attend_tensor.cu takes: 1 the asynchronous copies, 0 the portable one.  At first what
 * SHEAF_CUDA_ASYNC_COPY said when it was compiled, and so in all runs. */
extern __attribute__((visibility("default"))) int sf_cuda_async_copy;

SF_C_END
#endif
