/* comm/nccl.c: NCCL on a device's stream; part of the CUDA backend's shared object, which opens the
 * library by its name, so that one GPU works where there is none.
 *
 * Communicators do not block: a call may come back before the library has queued it, and nothing
 * else may be queued until its state says so (`queued`).  That takes time only for the first calls,
 * while ranks connect.  The one wait for the GPU is settle's, by an event. */
#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <string.h>
#include "base/memory.h"
#include "comm/link_plugin.h"
#include "kernels/cuda/cuda.h"

enum { NCCL_OLDEST = 21400 };           /* the first whose communicators need not block */

/* ---- the library ----------------------------------------------------------------------------- */
#define SF_NCCL_CALLS(X)                                                                           \
    X(ncclGetVersion) X(ncclGetErrorString) X(ncclGetUniqueId) X(ncclCommInitRankConfig)           \
    X(ncclCommGetAsyncError) X(ncclCommFinalize) X(ncclCommDestroy) X(ncclCommAbort)               \
    X(ncclGroupStart) X(ncclGroupEnd) X(ncclAllReduce) X(ncclAllGather) X(ncclSend) X(ncclRecv)

#define SF_NCCL_FIELD(name) __typeof__(name) *name;
static struct { SF_NCCL_CALLS(SF_NCCL_FIELD) } nccl;

static pthread_mutex_t finding = PTHREAD_MUTEX_INITIALIZER;     /* ranks may be threads */

#ifdef SF_NCCL_LIBRARY
static sf_status calls_find(void)
{
    void *object = dlopen(SF_NCCL_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!object) return SF_FAIL(SF_UNSUPPORTED, "no NCCL: %s", dlerror());
#define SF_NCCL_FIND(name)                                                                         \
    *(void **)(void *)&nccl.name = dlsym(object, #name);                                           \
    if (!nccl.name) return SF_FAIL(SF_UNSUPPORTED, "%s has no %s", SF_NCCL_LIBRARY, #name);
    SF_NCCL_CALLS(SF_NCCL_FIND)
    return SF_OK;
}
#else
static sf_status calls_find(void)
{
#define SF_NCCL_LINKED(name) nccl.name = name;
    SF_NCCL_CALLS(SF_NCCL_LINKED)
    return SF_OK;
}
#endif

static sf_status nccl_probe(struct sf_device *device, char gpu_out[SF_LINK_GPU_MAX])
{
    int version = 0, number = 0;
    (void)device;                       /* the calling thread's */
    pthread_mutex_lock(&finding);
    sf_status status = calls_find();
    pthread_mutex_unlock(&finding);
    SF_TRY(status);
    if (nccl.ncclGetVersion(&version) != ncclSuccess || version < NCCL_OLDEST)
        return SF_FAIL(SF_UNSUPPORTED, "NCCL is of version %d, at least %d is needed", version,
                       NCCL_OLDEST);
    memset(gpu_out, 0, SF_LINK_GPU_MAX);
    cudaError_t error = cudaGetDevice(&number);
    if (error == cudaSuccess) error = cudaDeviceGetPCIBusId(gpu_out, SF_LINK_GPU_MAX, number);
    if (error == cudaSuccess) return SF_OK;
    return SF_FAIL(SF_UNSUPPORTED, "a GPU without a bus id (%s)", cudaGetErrorName(error));
}

static sf_status nccl_id(unsigned char id_out[SF_LINK_ID_BYTES])
{
    ncclUniqueId id;
    _Static_assert(sizeof id == SF_LINK_ID_BYTES, "an id has the library's size");
    ncclResult_t result = nccl.ncclGetUniqueId(&id);
    if (result != ncclSuccess)
        return SF_FAIL(SF_UNSUPPORTED, "NCCL gives no id: %s", nccl.ncclGetErrorString(result));
    memcpy(id_out, &id, sizeof id);
    return SF_OK;
}

/* ---- a communicator -------------------------------------------------------------------------- */
struct nccl_link {
    ncclComm_t comm;                    /* NULL once aborted */
    cudaStream_t stream;
    cudaEvent_t event;
    int grouped;
    struct sf_link_host host;
};

/* A group is its thread's, and is ended there. */
static void group_end(struct nccl_link *link)
{
    if (link->grouped) (void)nccl.ncclGroupEnd();
    link->grouped = 0;
}

/* On any thread. */
static void give_up(struct nccl_link *link)
{
    if (link->comm) nccl.ncclCommAbort(link->comm);
    link->comm = NULL;
}

/* The words come from the host's pause, unless the library itself has failed. */
static sf_status fail(struct nccl_link *link, const char *what, ncclResult_t result)
{
    sf_status status = link->host.fail(link->host.arg, what, nccl.ncclGetErrorString(result));
    group_end(link);
    return status;
}

static sf_status pause_once(struct nccl_link *link, const char *what, int64_t round)
{
    sf_status status = link->host.pause(link->host.arg, what, round);
    if (status != SF_OK) group_end(link);
    return status;
}

/* Waits until the library has done what it was asked for on the host. */
static sf_status queued(struct nccl_link *link, const char *what, ncclResult_t result)
{
    for (int64_t round = 0; result == ncclInProgress; round++) {
        SF_TRY(pause_once(link, what, round));
        ncclResult_t asked = nccl.ncclCommGetAsyncError(link->comm, &result);
        if (asked != ncclSuccess) result = asked;
    }
    return result == ncclSuccess ? SF_OK : fail(link, what, result);
}

/* In a group only its end queues anything. */
static sf_status called(struct nccl_link *link, const char *what, ncclResult_t result)
{
    if (link->grouped && result == ncclInProgress) return SF_OK;
    return queued(link, what, result);
}

static sf_status nccl_open(const struct sf_link_seat *seat, void **link_out)
{
    struct nccl_link *link;
    SF_TRY(sf_alloc(sizeof *link, "NCCL link", (void **)&link));
    link->stream = sf_cuda_of(seat->device)->stream;
    link->host = seat->host;
    ncclUniqueId id;
    memcpy(&id, seat->id, sizeof id);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    if (cudaEventCreateWithFlags(&link->event, cudaEventDisableTiming) != cudaSuccess) {
        sf_free(link);
        return SF_FAIL(SF_INTERNAL, "the GPU gives no event");
    }
    sf_status status = queued(link, "open", nccl.ncclCommInitRankConfig(&link->comm, seat->size,
                                                                        id, seat->rank, &config));
    if (status == SF_OK) {
        *link_out = link;
        return SF_OK;
    }
    give_up(link);
    cudaEventDestroy(link->event);
    sf_free(link);
    return status;
}

static sf_status nccl_settle(void *at)
{
    struct nccl_link *link = at;
    cudaError_t error = cudaEventRecord(link->event, link->stream);
    ncclResult_t state = ncclSuccess;
    for (int64_t round = 0; error == cudaSuccess; round++) {
        error = cudaEventQuery(link->event);
        if (error == cudaSuccess) return SF_OK;
        if (error != cudaErrorNotReady) break;
        (void)cudaGetLastError();       /* else the next launch finds it */
        ncclResult_t asked = nccl.ncclCommGetAsyncError(link->comm, &state);
        if (asked != ncclSuccess) state = asked;
        if (state != ncclSuccess && state != ncclInProgress) return fail(link, "settle", state);
        SF_TRY(pause_once(link, "settle", round));
        error = cudaSuccess;
    }
    return link->host.fail(link->host.arg, "settle", cudaGetErrorName(error));
}

static void nccl_close(void *at, int lost)
{
    struct nccl_link *link = at;
    if (!lost && link->comm && nccl_settle(link) == SF_OK &&
        queued(link, "close", nccl.ncclCommFinalize(link->comm)) == SF_OK) {
        nccl.ncclCommDestroy(link->comm);
        link->comm = NULL;
    }
    give_up(link);
    cudaEventDestroy(link->event);
    sf_free(link);
}

/* ---- calls ----------------------------------------------------------------------------------- */
static sf_status nccl_sum(void *at, float *x, size_t count)
{
    struct nccl_link *link = at;
    return called(link, "sum", nccl.ncclAllReduce(x, x, count, ncclFloat32, ncclSum, link->comm,
                                                  link->stream));
}

static sf_status nccl_send(void *at, int32_t to, const void *data, size_t bytes)
{
    struct nccl_link *link = at;
    return called(link, "send", nccl.ncclSend(data, bytes, ncclInt8, to, link->comm,
                                              link->stream));
}

static sf_status nccl_recv(void *at, int32_t from, void *data, size_t bytes)
{
    struct nccl_link *link = at;
    return called(link, "receive", nccl.ncclRecv(data, bytes, ncclInt8, from, link->comm,
                                                 link->stream));
}

static sf_status nccl_all_gather(void *at, const void *mine, size_t bytes, void *all)
{
    struct nccl_link *link = at;
    return called(link, "gather", nccl.ncclAllGather(mine, all, bytes, ncclInt8, link->comm,
                                                     link->stream));
}

static sf_status nccl_group(void *at, int begin)
{
    struct nccl_link *link = at;
    link->grouped = begin;
    return queued(link, "group", begin ? nccl.ncclGroupStart() : nccl.ncclGroupEnd());
}

static sf_status nccl_check(void *at)
{
    struct nccl_link *link = at;
    ncclResult_t state = ncclSuccess;
    ncclResult_t asked = nccl.ncclCommGetAsyncError(link->comm, &state);
    if (asked != ncclSuccess) state = asked;
    return state == ncclSuccess || state == ncclInProgress ? SF_OK : fail(link, "wait", state);
}

static void nccl_give_up(void *at)
{
    give_up(at);
}

const struct sf_link_plugin sf_link_plugin = {
    "nccl", nccl_probe, nccl_id, nccl_open, nccl_close, nccl_sum, nccl_send, nccl_recv,
    nccl_all_gather, nccl_group, nccl_settle, nccl_check, nccl_give_up
};
