/* tests/emulation/stream.cpp: streams are queues that run only when they must, events are places in
 * them.  What a copy reads from the host it reads when its turn comes: a caller that changes or
 * frees the source too early sees it.  A copy to host memory that is not pinned returns when it is
 * done, as CUDA's does: the host waits.
 *
 * Work for several ranks (nccl.cpp) may find that another rank has not come yet.  Whoever runs the
 * stream then lets go of the lock, so that the other rank, if it is a thread, can come.  A GPU
 * would go on with such work while its host does something else, and hosts rely on it: a stage
 * sends and then waits for its next step.  So a thread of the emulation runs streams whose work for
 * several ranks has been queued for a while. */
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <set>
#include <thread>
#include <unistd.h>
#include "tests/emulation/include/cuda_runtime_api.h"
#include "tests/emulation/internal.h"

using moment_ms = std::chrono::steady_clock::time_point;

struct emu_stream {
    std::deque<std::function<bool()>> queue;
    uint64_t pushed = 0, done = 0;
    uint64_t waiting = 0;               /* place behind the last work for several ranks */
    moment_ms since;                    /* when the first of it was pushed */
    std::thread::id owner;              /* whose device it is, once it has such work */
    bool busy = false;                  /* its first piece of work is being run */
};

struct emu_event {
    emu_stream *stream = nullptr;
    uint64_t place = 0;                 /* work of the stream that is in front of it */
};

namespace emu {

static std::set<emu_stream *> &streams = *new std::set<emu_stream *>;   /* outlives the exit */
static int idle_ms = 20, patience_ms = 60000;
static thread_local int gpu = -1, device_now;
static thread_local cudaError_t last_error = cudaSuccess;
static bool ending;
static int64_t host_waits, uploads;
char whom[128];
int communicators;

static moment_ms clock_now() { return std::chrono::steady_clock::now(); }

static int64_t ms_since(moment_ms then)
{
    return std::chrono::duration_cast<std::chrono::milliseconds>(clock_now() - then).count();
}

/* One attempt at the stream's first piece of work; is it done? */
static bool run_one(emu_stream *stream)
{
    std::function<bool()> &work = stream->queue.front();
    stream->busy = true;
    bool done = work();
    stream->busy = false;
    if (!done) return false;
    stream->queue.pop_front();
    stream->done++;
    return true;
}

/* Runs the first `place` pieces of work that the stream ever got. */
static void run_until(emu_stream *stream, uint64_t place)
{
    if (in_kernel()) defect("bad call", "a kernel waits for a stream");
    moment_ms begin = clock_now();
    while (stream->done < place) {
        if (!stream->busy && run_one(stream)) {
            begin = clock_now();
            continue;
        }
        if (ms_since(begin) > patience_ms)
            defect("stuck", "a call without a deadline waits %d ms for %s", patience_ms, whom);
        lock.unlock();                  /* held once: only calls from outside hold it */
        usleep(50);
        lock.lock();
    }
}

/* The same for a host that asks for it: where work is left to be done, a wait of the host's. */
static void wait_until(emu_stream *stream, uint64_t place)
{
    host_waits += stream->done < place;
    run_until(stream, place);
}

/* The same as far as it goes without waiting, for some milliseconds at most. */
static bool run_some(emu_stream *stream, uint64_t place)
{
    moment_ms begin = clock_now();
    while (stream->done < place && !stream->busy && ms_since(begin) < 20)
        if (!run_one(stream)) break;
    return stream->done >= place;
}

/* What a free waits for: all work of this device.  Ranks as threads have a device each. */
static void run_all()
{
    for (emu_stream *stream : streams)
        if (stream->owner == std::thread::id() || stream->owner == std::this_thread::get_id())
            wait_until(stream, stream->pushed);
}

static void run_idle()
{
    for (;;) {
        usleep(4000);
        std::lock_guard<std::recursive_mutex> hold(lock);
        if (ending) return;
        for (emu_stream *stream : streams)
            if (idle_ms >= 0 && stream->done < stream->waiting && ms_since(stream->since) > idle_ms)
                run_some(stream, stream->waiting);
    }
}

static void stream_check(emu_stream *stream)
{
    if (!streams.count(stream)) defect("bad call", "%p is no stream", (void *)stream);
}

/* sheaf's launches look at the last error, which a query leaves behind. */
void launch_check(const char *kernel)
{
    if (last_error != cudaSuccess)
        defect("bad call", "an error from before, %s, was not taken when %s is launched",
               cudaGetErrorName(last_error), kernel);
}

bool stream_exists(emu_stream *stream) { return streams.count(stream) > 0; }

void stream_push(emu_stream *stream, std::function<void()> work)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    stream_check(stream);
    stream->queue.push_back([work] {
        work();
        return true;
    });
    stream->pushed++;
}

void stream_push_waiting(emu_stream *stream, std::function<bool()> attempt)
{
    static bool started;
    std::lock_guard<std::recursive_mutex> hold(lock);
    stream_check(stream);
    if (stream->done >= stream->waiting) stream->since = clock_now();
    stream->owner = std::this_thread::get_id();
    stream->queue.push_back(std::move(attempt));
    stream->waiting = ++stream->pushed;
    if (started) return;
    started = true;
    atexit([] {
        std::lock_guard<std::recursive_mutex> last(lock);
        ending = true;
    });
    std::thread(run_idle).detach();
}

/* Where one side of a copy lies, after a look at what the call says of it. */
static unsigned char *side(const void *address, size_t bytes, bool device, const char *what)
{
    if (device) return device_range(address, bytes, what);
    if (is_device(address)) defect("device memory", "%s names %p as host memory", what, address);
    return (unsigned char *)address;
}

}

using emu::lock;
using hold_lock = std::lock_guard<std::recursive_mutex>;

/* As many GPUs as CUDA_VISIBLE_DEVICES names, by commas; one without it. */
static int gpus_visible()
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    int count = 1;
    for (const char *c = visible; c && *c; c++) count += *c == ',';
    return visible && !*visible ? 0 : count;
}

/* The one that a test has given to this thread need not be among them. */
static bool gpu_exists(int device)
{
    return device >= 0 && (device < gpus_visible() || device == emu::gpu);
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = gpus_visible();
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    if (!gpu_exists(device)) return cudaErrorInvalidValue;
    emu::device_now = device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = emu::gpu >= 0 ? emu::gpu : emu::device_now;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *facts, int device)
{
    if (!gpu_exists(device)) return cudaErrorInvalidValue;
    snprintf(facts->name, sizeof facts->name, "emulation of a GPU");
    facts->totalGlobalMem = (size_t)4 << 30;
    facts->major = facts->minor = 0;
    return cudaSuccess;
}

/* Its name in CUDA_VISIBLE_DEVICES, so that processes that see one each have different ones. */
cudaError_t cudaDeviceGetPCIBusId(char *id, int bytes, int device)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (!gpu_exists(device)) return cudaErrorInvalidValue;
    if (visible && device != emu::gpu) {
        for (int i = 0; i < device; i++) visible = strchr(visible, ',') + 1;
        snprintf(id, (size_t)bytes, "emulated:%.*s", (int)strcspn(visible, ","), visible);
    } else {
        snprintf(id, (size_t)bytes, "emulated:%d", device);
    }
    return cudaSuccess;
}

/* Address space is what the emulation has; real memory is the caller's concern. */
cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    *available = *total = (size_t)4 << 30;
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = emu::last_error;
    emu::last_error = cudaSuccess;
    return error;
}

const char *cudaGetErrorName(cudaError_t error)
{
    switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    }
    return "unknown";
}

cudaError_t cudaMalloc(void **block, size_t bytes)
{
    hold_lock hold(lock);
    *block = emu::device_alloc(bytes);
    return *block ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFree(void *block)
{
    hold_lock hold(lock);
    if (!block) return cudaSuccess;
    emu::run_all();
    emu::device_free(block);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t bytes,
                            enum cudaMemcpyKind kind, cudaStream_t stream)
{
    return cudaMemcpy2DAsync(target, bytes, source, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void *target, size_t target_pitch, const void *source,
                              size_t source_pitch, size_t row_bytes, size_t rows,
                              enum cudaMemcpyKind kind, cudaStream_t stream)
{
    if (row_bytes > target_pitch || row_bytes > source_pitch) return cudaErrorInvalidValue;
    emu::stream_push(stream, [=] {
        if (row_bytes == 0 || rows == 0) return;
        bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
        bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
        unsigned char *to = emu::side(target, (rows - 1) * target_pitch + row_bytes, to_device,
                                      "the target of a copy");
        unsigned char *from = emu::side(source, (rows - 1) * source_pitch + row_bytes, from_device,
                                        "the source of a copy");
        for (size_t r = 0; r < rows; r++)
            memcpy(to + r * target_pitch, from + r * source_pitch, row_bytes);
    });
    if (row_bytes == 0 || rows == 0) return cudaSuccess;
    hold_lock hold(lock);
    emu::uploads += kind == cudaMemcpyHostToDevice;
    if (kind == cudaMemcpyDeviceToHost && !emu::is_pinned(target))
        emu::wait_until(stream, stream->pushed);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *target, int value, size_t bytes, cudaStream_t stream)
{
    emu::stream_push(stream, [=] {
        if (bytes > 0) memset(emu::device_range(target, bytes, "cudaMemset"), value, bytes);
    });
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    hold_lock hold(lock);
    (void)flags;
    *stream = new emu_stream;
    emu::streams.insert(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    hold_lock hold(lock);
    emu::stream_check(stream);
    emu::run_until(stream, stream->pushed);
    emu::streams.erase(stream);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    hold_lock hold(lock);
    emu::stream_check(stream);
    emu::wait_until(stream, stream->pushed);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    hold_lock hold(lock);
    (void)flags;
    emu_stream *other = event->stream;
    uint64_t place = event->place;
    if (other)
        emu::stream_push(stream, [=] {
            if (emu::streams.count(other)) emu::run_until(other, place);
        });
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    (void)flags;
    *event = new emu_event;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    hold_lock hold(lock);
    emu::stream_check(stream);
    event->stream = stream;
    event->place = stream->pushed;
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    hold_lock hold(lock);
    if (event->stream && emu::streams.count(event->stream))
        emu::wait_until(event->stream, event->place);
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    hold_lock hold(lock);
    if (!event->stream || !emu::streams.count(event->stream)) return cudaSuccess;
    bool waits = event->stream->done < event->place;
    if (emu::run_some(event->stream, event->place)) {
        emu::host_waits += waits;       /* of a host that asks until it is told yes */
        return cudaSuccess;
    }
    return emu::last_error = cudaErrorNotReady;
}

extern "C" void emu_set_gpu(int number) { emu::gpu = number; }

extern "C" int64_t emu_waits(void)
{
    hold_lock hold(lock);
    return emu::host_waits;
}

extern "C" int64_t emu_uploads(void)
{
    hold_lock hold(lock);
    return emu::uploads;
}

extern "C" void emu_set_idle_ms(int ms)
{
    hold_lock hold(lock);
    emu::idle_ms = ms;
}

extern "C" void emu_set_patience_ms(int ms)
{
    hold_lock hold(lock);
    emu::patience_ms = ms;
}
