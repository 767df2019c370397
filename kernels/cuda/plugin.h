/* kernels/cuda/plugin.h: the one symbol of the shared object that device.c looks for. */
#ifndef SHEAF_KERNELS_CUDA_PLUGIN_H
#define SHEAF_KERNELS_CUDA_PLUGIN_H
#include "kernels/backend.h"

extern __attribute__((visibility("default"))) const struct sf_backend sf_backend_plugin;

#endif
