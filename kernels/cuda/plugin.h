/* kernels/cuda/plugin.h: the symbols of the shared object that plugin.c looks for. */
#ifndef SHEAF_KERNELS_CUDA_PLUGIN_H
#define SHEAF_KERNELS_CUDA_PLUGIN_H
#include "kernels/backend.h"

extern __attribute__((visibility("default"))) const struct sf_backend sf_backend_plugin;
extern __attribute__((visibility("default"))) const uint32_t sf_backend_layout[SF_BACKEND_WORDS];

#endif
