/* tests/emulation/include/cuda_facts.h: what the CUDA runtime tells of a GPU; part of
 * cuda_runtime_api.h, which includes it. */
#ifndef SHEAF_TESTS_EMULATION_CUDA_FACTS_H
#define SHEAF_TESTS_EMULATION_CUDA_FACTS_H

#ifdef __cplusplus
extern "C" {
#endif

struct cudaDeviceProp { char name[256]; size_t totalGlobalMem; int major, minor; };
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *facts, int device);
cudaError_t cudaDeviceGetPCIBusId(char *id, int bytes, int device);
cudaError_t cudaMemGetInfo(size_t *available, size_t *total);

#ifdef __cplusplus
}
#endif
#endif
