/* kernels/cuda/cuda.h: what the files of the CUDA backend share on the host.
 *
 * All work of a device is queued on one stream.  What a job brings from the host (page numbers,
 * positions, lanes) is packed into one block of the ring and copied to its twin on the device, so
 * an entry returns without waiting; only entries that give something back to the host wait.
 *
 *     ring, host (pinned)   | half 0          | half 1          |     a half is filled again when
 *     ring, device          | half 0          | half 1          |     its event has passed
 *
 * Scratch is one block of the device for whatever an entry needs until its own kernels are done. */
#ifndef SHEAF_KERNELS_CUDA_CUDA_H
#define SHEAF_KERNELS_CUDA_CUDA_H
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include "kernels/cuda/sizes.h"
#include "kernels/device.h"
SF_C_BEGIN

struct sf_cuda_ring {
    unsigned char *host, *device;       /* [2][half_bytes] */
    size_t half_bytes, used;            /* used: of the present half */
    int half;
    cudaEvent_t passed[2];
};
/* Slots and pages that are to be marked as empty: a step asks for them lane by lane, and one kernel
 * does them all before anything else looks (cache.cu).  Their order does not matter: a slot that is
 * dropped and its page that is cleared get the same words. */
enum { SF_CUDA_MARKS = 1 << 16 };
struct sf_cuda_mark { int64_t page; int32_t slot, spare; };     /* bytes from base; -1: all slots */
struct sf_cuda_marks {
    struct sf_layout layout;            /* of all of them */
    unsigned char *base;                /* device */
    struct sf_cuda_mark *mark;          /* [SF_CUDA_MARKS] */
    int32_t n;
};
struct sf_cuda {                        /* sf_device.impl */
    cudaStream_t stream;
    cublasHandle_t blas;
    struct sf_cuda_ring ring;
    unsigned char *scratch, *workspace; /* device */
    struct sf_cuda_marks marks;
    struct sf_cuda_cut *cut;            /* attend.cu: how the last job was cut */
    struct sf_device *owner;
    cudaEvent_t done;                   /* of whoever waits for all that is queued */
};

static inline struct sf_cuda *sf_cuda_of(struct sf_device *device)
{
    return (struct sf_cuda *)device->impl;
}

/* A failing call of the runtime in an entry means a lost device: the process ends with its name. */
void sf_cuda_check(cudaError_t error, const char *file, int line);
void sf_cublas_check(cublasStatus_t status, const char *file, int line);
#define SF_CUDA_MUST(call) sf_cuda_check((call), __FILE__, __LINE__)
#define SF_CUBLAS_MUST(call) sf_cublas_check((call), __FILE__, __LINE__)

/* Device memory, not zeroed. */
sf_status sf_cuda_take(size_t bytes, const char *what, void **out);

/* ---- staging -----------------------------------------------------------------------------------
 * A block of the ring: filled at `host`, then sent, then read by kernels at `device`.  Blocks are
 * aligned to 256 bytes.  One block at a time: it is sent before the next is taken. */
struct sf_cuda_block { unsigned char *host, *device; size_t bytes; };
struct sf_cuda_block sf_cuda_stage(struct sf_cuda *, size_t bytes);
void sf_cuda_send(struct sf_cuda *, const struct sf_cuda_block *);
/* Bytes that a part of a block takes, so that the next part is aligned. */
static inline size_t sf_cuda_part(size_t bytes) { return (bytes + 15) / 16 * 16; }

/* Queues the marks that wait.  Taking a block does, so entries that bring a list need not. */
void sf_cuda_marks_send(struct sf_cuda *);

void sf_cuda_upload(struct sf_device *, void *device_dst, const void *host_src, size_t bytes);
void sf_cuda_download(struct sf_device *, void *host_dst, const void *device_src, size_t bytes);
void sf_cuda_fetch(struct sf_device *, void *host_dst, const void *device_src, size_t bytes);

SF_C_END
#endif
