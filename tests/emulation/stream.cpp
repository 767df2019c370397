/* tests/emulation/stream.cpp: streams are queues that run only when they must, events are places in
 * them.  What a copy reads from the host it reads when its turn comes: a caller that changes or
 * frees the source too early sees it. */
#include <cstdlib>
#include <deque>
#include <set>
#include "tests/emulation/include/cuda_runtime_api.h"
#include "tests/emulation/internal.h"

struct emu_stream {
    std::deque<std::function<void()>> queue;
    uint64_t pushed = 0, done = 0;
};

struct emu_event {
    emu_stream *stream = nullptr;
    uint64_t place = 0;                 /* work of the stream that is in front of it */
};

namespace emu {

static std::set<emu_stream *> streams;

/* Runs the first `place` pieces of work that the stream ever got. */
static void run_until(emu_stream *stream, uint64_t place)
{
    if (in_kernel()) defect("bad call", "a kernel waits for a stream");
    while (stream->done < place) {
        std::function<void()> work = std::move(stream->queue.front());
        stream->queue.pop_front();
        stream->done++;
        work();
    }
}

static void run_all()
{
    for (emu_stream *stream : streams) run_until(stream, stream->pushed);
}

static void stream_check(emu_stream *stream)
{
    if (!streams.count(stream)) defect("bad call", "%p is no stream", (void *)stream);
}

void stream_push(emu_stream *stream, std::function<void()> work)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    stream_check(stream);
    stream->queue.push_back(std::move(work));
    stream->pushed++;
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

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    return device == 0 ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaGetLastError(void) { return cudaSuccess; }

const char *cudaGetErrorName(cudaError_t error)
{
    switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
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
    emu::run_until(stream, stream->pushed);
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
        emu::run_until(event->stream, event->place);
    return cudaSuccess;
}
