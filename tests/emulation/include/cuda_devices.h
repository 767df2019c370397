/* tests/emulation/include/cuda_devices.h: the part of cuda_runtime_api.h, which includes it, about
 * GPUs and errors. */
#ifndef SHEAF_TESTS_EMULATION_CUDA_DEVICES_H
#define SHEAF_TESTS_EMULATION_CUDA_DEVICES_H
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorNotReady = 600
} cudaError_t;
struct cudaDeviceProp { char name[256]; size_t totalGlobalMem; int major, minor; };

cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *facts, int device);
cudaError_t cudaDeviceGetPCIBusId(char *id, int bytes, int device);
cudaError_t cudaMemGetInfo(size_t *available, size_t *total);
cudaError_t cudaGetLastError(void);
const char *cudaGetErrorName(cudaError_t error);

#ifdef __cplusplus
}
#endif
#endif
