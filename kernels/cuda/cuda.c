/* kernels/cuda/cuda.c: opens a GPU: stream, cuBLAS, ring and scratch; memory and copies. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include "base/log.h"
#include "base/memory.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/entries.h"
#include "kernels/cuda/plugin.h"

static struct sf_kernels table;
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

void sf_cuda_check(cudaError_t error, const char *file, int line)
{
    char text[96];
    if (error == cudaSuccess) return;
    snprintf(text, sizeof text, "a call of CUDA succeeds (it gave %s)", cudaGetErrorName(error));
    sf_assert_failed(file, line, text);
}

void sf_cublas_check(cublasStatus_t status, const char *file, int line)
{
    char text[96];
    if (status == CUBLAS_STATUS_SUCCESS) return;
    snprintf(text, sizeof text, "a call of cuBLAS succeeds (it gave status %d)", (int)status);
    sf_assert_failed(file, line, text);
}

/* ---- memory --------------------------------------------------------------------------------- */

sf_status sf_cuda_take(size_t bytes, const char *what, void **out)
{
    cudaError_t error = cudaMalloc(out, bytes > 0 ? bytes : 1);
    if (error == cudaSuccess) return SF_OK;
    (void)cudaGetLastError();           /* else the next launch finds it */
    return SF_FAIL(SF_NO_MEMORY, "no device memory for %s: %zu bytes (%s)", what, bytes,
                   cudaGetErrorName(error));
}

static sf_status block_alloc(struct sf_device *device, size_t bytes, const char *what, void **out)
{
    SF_TRY(sf_cuda_take(bytes, what, out));
    SF_CUDA_MUST(cudaMemsetAsync(*out, 0, bytes > 0 ? bytes : 1, sf_cuda_of(device)->stream));
    return SF_OK;
}

/* The device may wait for another rank's, and then for ever if that one is gone: whoever makes it
 * wait is asked meanwhile, and does what ends the wait. */
static void wait_for(struct sf_cuda *cuda, cudaEvent_t event)
{
    struct sf_device *device = cuda->owner;
    for (int64_t round = 0; device->waiting; round++) {
        cudaError_t error = cudaEventQuery(event);
        if (error == cudaSuccess) return;
        (void)cudaGetLastError();       /* else the next launch finds it */
        if (error != cudaErrorNotReady) SF_CUDA_MUST(error);
        device->waiting(device->waiting_arg, round);
    }
    SF_CUDA_MUST(cudaEventSynchronize(event));
}

static void wait_for_all(struct sf_cuda *cuda)
{
    SF_CUDA_MUST(cudaEventRecord(cuda->done, cuda->stream));
    wait_for(cuda, cuda->done);
}

/* cudaFree waits for work that may still use the block, and has no end where another rank does not
 * come. */
static void block_free(struct sf_device *device, void *block)
{
    sf_cuda_marks_send(sf_cuda_of(device));
    if (device->waiting && block) wait_for_all(sf_cuda_of(device));
    SF_CUDA_MUST(cudaFree(block));
}

struct sf_cuda_block sf_cuda_stage(struct sf_cuda *cuda, size_t bytes)
{
    struct sf_cuda_ring *ring = &cuda->ring;
    sf_cuda_marks_send(cuda);
    size_t whole = (bytes + 255) / 256 * 256;
    SF_ASSERT(whole <= ring->half_bytes);
    if (ring->used + whole > ring->half_bytes) {
        SF_CUDA_MUST(cudaEventRecord(ring->passed[ring->half], cuda->stream));
        ring->half = !ring->half;
        ring->used = 0;
        wait_for(cuda, ring->passed[ring->half]);
    }
    size_t at = (size_t)ring->half * ring->half_bytes + ring->used;
    ring->used += whole;
    return (struct sf_cuda_block){ ring->host + at, ring->device + at, bytes };
}

void sf_cuda_send(struct sf_cuda *cuda, const struct sf_cuda_block *block)
{
    SF_CUDA_MUST(cudaMemcpyAsync(block->device, block->host, block->bytes, cudaMemcpyHostToDevice,
                                 cuda->stream));
}

/* The source is the caller's again on return, so it goes through the pinned ring. */
void sf_cuda_upload(struct sf_device *device, void *device_dst, const void *host_src, size_t bytes)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    for (size_t at = 0; at < bytes; ) {
        size_t left = bytes - at, part = left < SF_CUDA_HALF_BYTES ? left : SF_CUDA_HALF_BYTES;
        struct sf_cuda_block block = sf_cuda_stage(cuda, part);
        memcpy(block.host, (const unsigned char *)host_src + at, part);
        SF_CUDA_MUST(cudaMemcpyAsync((unsigned char *)device_dst + at, block.host, part,
                                     cudaMemcpyHostToDevice, cuda->stream));
        at += part;
    }
}

void sf_cuda_download(struct sf_device *device, void *host_dst, const void *device_src,
                      size_t bytes)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    if (bytes == 0) return;
    sf_cuda_marks_send(cuda);
    if (device->waiting) wait_for_all(cuda);    /* the copy blocks if its target is not pinned */
    SF_CUDA_MUST(cudaMemcpyAsync(host_dst, device_src, bytes, cudaMemcpyDeviceToHost,
                                 cuda->stream));
    SF_CUDA_MUST(cudaStreamSynchronize(cuda->stream));
}

/* Pinned, so that copies to it are only queued. */
static sf_status host_block_alloc(struct sf_device *device, size_t bytes, const char *what,
                                  void **out)
{
    cudaError_t error = cudaHostAlloc(out, bytes > 0 ? bytes : 1, cudaHostAllocDefault);
    (void)device;
    if (error == cudaSuccess) {
        memset(*out, 0, bytes);
        return SF_OK;
    }
    (void)cudaGetLastError();           /* else the next launch finds it */
    return SF_FAIL(SF_NO_MEMORY, "no pinned memory for %s: %zu bytes (%s)", what, bytes,
                   cudaGetErrorName(error));
}

/* Waits like cudaFree. */
static void host_block_free(struct sf_device *device, void *block)
{
    if (device->waiting && block) wait_for_all(sf_cuda_of(device));
    SF_CUDA_MUST(cudaFreeHost(block));
}

void sf_cuda_fetch(struct sf_device *device, void *host_dst, const void *device_src, size_t bytes)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    if (bytes == 0) return;
    sf_cuda_marks_send(cuda);
    SF_CUDA_MUST(cudaMemcpyAsync(host_dst, device_src, bytes, cudaMemcpyDeviceToHost,
                                 cuda->stream));
}

static void sync_stream(struct sf_device *device)
{
    sf_cuda_marks_send(sf_cuda_of(device));
    wait_for_all(sf_cuda_of(device));
}

/* ---- opening -------------------------------------------------------------------------------- */

static void table_fill(void)
{
    table.name = SF_CUDA_NAME;
    table.alloc = block_alloc;
    table.free = block_free;
    table.upload = sf_cuda_upload;
    table.download = sf_cuda_download;
    table.sync = sync_stream;
    table.host_alloc = host_block_alloc;
    table.host_free = host_block_free;
    table.fetch = sf_cuda_fetch;
    sf_cuda_rows_fill(&table);
    sf_cuda_mat_fill(&table);
    sf_cuda_cache_fill(&table);
    sf_cuda_rebuild_fill(&table);
    sf_cuda_factor_fill(&table);
    table.attend = sf_cuda_attend;
    table.columns = sf_cuda_columns;
    table.choose = sf_cuda_choose;
    table.pick = sf_cuda_pick;
}

static void cuda_close(struct sf_device *device)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    if (cuda->stream) cudaStreamSynchronize(cuda->stream);
    if (cuda->blas) cublasDestroy(cuda->blas);
    if (cuda->done) cudaEventDestroy(cuda->done);
    for (int i = 0; i < 2; i++)
        if (cuda->ring.passed[i]) cudaEventDestroy(cuda->ring.passed[i]);
    cudaFreeHost(cuda->ring.host);
    cudaFree(cuda->ring.device);
    sf_cuda_cut_destroy(cuda);
    cudaFree(cuda->scratch);
    cudaFree(cuda->workspace);
    if (cuda->stream) cudaStreamDestroy(cuda->stream);
    sf_free(cuda->marks.mark);
    sf_free(cuda);
}

static sf_status fail_unless(int succeeded, const char *what)
{
    if (succeeded) return SF_OK;
    return SF_FAIL(SF_INTERNAL, "the GPU gives no %s (%s)", what,
                   cudaGetErrorName(cudaGetLastError()));
}

static sf_status ring_make(struct sf_cuda_ring *ring)
{
    ring->half_bytes = SF_CUDA_HALF_BYTES;
    void *host = NULL, *twin = NULL;
    SF_TRY(fail_unless(cudaHostAlloc(&host, 2 * ring->half_bytes, cudaHostAllocDefault) ==
                       cudaSuccess, "pinned memory"));
    ring->host = host;
    SF_TRY(sf_cuda_take(2 * ring->half_bytes, "staging", &twin));
    ring->device = twin;
    for (int i = 0; i < 2; i++)
        SF_TRY(fail_unless(cudaEventCreateWithFlags(&ring->passed[i], cudaEventDisableTiming) ==
                           cudaSuccess, "event"));
    return SF_OK;
}

static sf_status parts_make(struct sf_cuda *cuda)
{
    void *block = NULL;
    SF_TRY(fail_unless(cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking) ==
                       cudaSuccess, "stream"));
    SF_TRY(fail_unless(cudaEventCreateWithFlags(&cuda->done, cudaEventDisableTiming) ==
                       cudaSuccess, "event"));
    SF_TRY(ring_make(&cuda->ring));
    SF_TRY(sf_alloc(SF_CUDA_MARKS * sizeof *cuda->marks.mark, "marks of slots", &block));
    cuda->marks.mark = (struct sf_cuda_mark *)block;
    SF_TRY(sf_cuda_cut_create(cuda));
    SF_TRY(sf_cuda_take(SF_CUDA_SCRATCH_BYTES, "scratch", &block));
    cuda->scratch = block;
    SF_TRY(sf_cuda_take(SF_CUDA_WORKSPACE_BYTES, "the workspace of cuBLAS", &block));
    cuda->workspace = block;
    SF_TRY(fail_unless(cublasCreate(&cuda->blas) == CUBLAS_STATUS_SUCCESS &&
                       cublasSetStream(cuda->blas, cuda->stream) == CUBLAS_STATUS_SUCCESS &&
                       cublasSetWorkspace(cuda->blas, cuda->workspace, SF_CUDA_WORKSPACE_BYTES) ==
                       CUBLAS_STATUS_SUCCESS, "cuBLAS handle"));
    return SF_OK;
}

/* The rank's GPU becomes this thread's: a launcher shows each rank one or all of them. */
static sf_status gpu_pick(int32_t local_rank, int *count_out, int *gpu_out)
{
    int count = 0;                      /* without a driver the call leaves it alone */
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count < 1)
        return SF_FAIL(SF_UNSUPPORTED, "this machine has no GPU that CUDA can use (%s)",
                       error != cudaSuccess ? cudaGetErrorName(error) : "none found");
    SF_ASSERT(local_rank >= 0);
    *count_out = count;
    *gpu_out = local_rank % count;
    error = cudaSetDevice(*gpu_out);
    if (error == cudaSuccess) return SF_OK;
    return SF_FAIL(SF_UNSUPPORTED, "GPU %d of %d cannot be used (%s)", *gpu_out, count,
                   cudaGetErrorName(error));
}

static sf_status cuda_probe(int32_t local_rank, struct sf_device_facts *out)
{
    struct sf_device_facts facts;
    size_t available = 0, total = 0;
    int gpu;
    memset(&facts, 0, sizeof facts);
    SF_TRY(gpu_pick(local_rank, &facts.count, &gpu));
    cudaError_t error = cudaMemGetInfo(&available, &total);
    if (error == cudaSuccess) error = cudaDeviceGetPCIBusId(facts.id, SF_DEVICE_ID_MAX, gpu);
    if (error != cudaSuccess)
        return SF_FAIL(SF_UNSUPPORTED, "GPU %d of %d cannot be used (%s)", gpu, facts.count,
                       cudaGetErrorName(error));
    facts.memory_free = (int64_t)available;
    *out = facts;
    return SF_OK;
}

static void cuda_describe(char *text_out, size_t bytes)
{
    int count, gpu;
    size_t used = 0;
    if (gpu_pick(0, &count, &gpu) != SF_OK) {
        snprintf(text_out, bytes, "none: %s", sf_error_text());
        return;
    }
    text_out[0] = 0;
    for (gpu = 0; gpu < count && used < bytes; gpu++) {
        struct cudaDeviceProp facts;
        if (cudaGetDeviceProperties(&facts, gpu) != cudaSuccess) continue;
        snprintf(text_out + used, bytes - used, "%s%s, %.1f GiB, compute capability %d.%d",
                 used > 0 ? "; " : "", facts.name, (double)facts.totalGlobalMem / (1 << 30),
                 facts.major, facts.minor);
        used = strlen(text_out);
    }
}

static sf_status cuda_open(const struct sf_device_spec *spec, struct sf_device *device)
{
    int count, gpu;
    SF_TRY(gpu_pick(spec->local_rank, &count, &gpu));
    sf_log(SF_LOG_DEBUG, "computes on GPU %d of %d", gpu, count);
    pthread_once(&table_once, table_fill);
    struct sf_cuda *cuda;
    SF_TRY(sf_alloc(sizeof *cuda, "cuda device", (void **)&cuda));
    device->k = &table;
    device->isa = SF_ISA_GENERIC;
    device->impl = cuda;
    cuda->owner = device;
    sf_status status = parts_make(cuda);
    if (status != SF_OK) cuda_close(device);
    return status;
}

static int64_t cuda_scratch_bytes(const struct sf_device_spec *spec)
{
    (void)spec;
    return SF_CUDA_DEVICE_BYTES;
}

const uint32_t sf_backend_layout[SF_BACKEND_WORDS] = SF_BACKEND_LAYOUT;
const struct sf_backend sf_backend_plugin = {
    SF_CUDA_NAME, cuda_open, cuda_close, cuda_scratch_bytes, cuda_describe, cuda_probe
};
