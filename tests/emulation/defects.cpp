/* tests/emulation/defects.cpp: the emulation itself.  Each kind of defect is planted in a small
 * kernel, run in a process of its own, and must be reported by its name; right kernels pass and
 * compute what they should, with the threads of a block in either order.  Streams run when they
 * must and no sooner; asynchronous copies come when they are waited for.  What is counted of a
 * kernel is exact. */
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>
#include <nccl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#define SF_CUDA_MUST(call) SF_CHECK_INT((call), cudaSuccess)
#include "kernels/cuda/async.h"
#include "kernels/cuda/launch.h"
#include "tests/emulation/emulation.h"
extern "C" {
#include "tests/check.h"
}

enum { THREADS = 64 };

static cudaStream_t stream_make(void)
{
    cudaStream_t stream;
    SF_CHECK_INT(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    return stream;
}

template <class T> static T *device_make(size_t count)
{
    void *block = nullptr;
    SF_CHECK_INT(cudaMalloc(&block, count * sizeof(T)), cudaSuccess);
    return (T *)block;
}

/* ---- kernels that are right ----------------------------------------------------------------- */

/* out[b] = sum of the block's 64 values, once by shared memory and once by shuffles. */
static __global__ void sums(sf_global<const float> x, sf_global<float> out)
{
    SF_SHARED(float, tree, THREADS);
    unsigned t = threadIdx.x;
    float value = x[blockIdx.x * THREADS + t];
    tree[t] = value;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (t < half) tree[t] += tree[t + half];
        __syncthreads();
    }
    for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(SF_FULL_MASK, value, bits);
    float other = __shfl_sync(SF_FULL_MASK, value, 31);
    if (t == 0) out[2 * blockIdx.x] = tree[0];
    if (t % 32 == 0) tree[t / 32] = other;
    __syncthreads();
    if (t == 0) out[2 * blockIdx.x + 1] = tree[0] + tree[1];
}

/* Counts by atomics, votes, and a warp that works through shared memory on its own. */
static __global__ void votes(sf_global<int32_t> out)
{
    SF_SHARED_DYNAMIC(int32_t, seen);
    SF_SHARED(int32_t, total, 1);
    unsigned t = threadIdx.x, lane = t % 32, warp = t / 32;
    if (t == 0) total[0] = 0;
    seen[t] = (int32_t)(t * 3);
    __syncwarp();
    int32_t neighbour = seen[warp * 32 + (lane + 1) % 32];
    __syncthreads();
    atomicAdd(total + 0, neighbour);
    atomicMax(out + 1, neighbour);
    unsigned even = __ballot_sync(SF_FULL_MASK, lane % 2 == 0);
    int any = __any_sync(SF_FULL_MASK, lane == 7), all = __all_sync(SF_FULL_MASK, lane < 31);
    int32_t up = __shfl_up_sync(SF_FULL_MASK, (int32_t)lane, 1);
    int32_t down = __shfl_down_sync(SF_FULL_MASK, (int32_t)lane, 2);
    __syncthreads();
    if (t != 5) return;
    out[0] = total[0];
    out[2] = (int32_t)even;
    out[3] = any * 2 + all;
    out[4] = up * 100 + down;
}

static void test_right_kernels(void)
{
    enum { BLOCKS = 3 };
    float x[BLOCKS * THREADS], found[BLOCKS * 2];
    int32_t counts[5];
    for (int i = 0; i < BLOCKS * THREADS; i++) x[i] = (float)(i % 17);
    for (int reversed = 0; reversed < 2; reversed++) {
        emu_set_reversed(reversed);
        cudaStream_t stream = stream_make();
        float *in = device_make<float>(BLOCKS * THREADS), *out = device_make<float>(BLOCKS * 2);
        int32_t *ints = device_make<int32_t>(5);
        cudaMemcpyAsync(in, x, sizeof x, cudaMemcpyHostToDevice, stream);
        cudaMemsetAsync(ints, 0, sizeof counts, stream);
        SF_LAUNCH(sums, BLOCKS, THREADS, 0, stream, in, out);
        SF_LAUNCH(votes, 1, THREADS, THREADS * 4, stream, ints);
        cudaMemcpyAsync(found, out, sizeof found, cudaMemcpyDeviceToHost, stream);
        cudaMemcpyAsync(counts, ints, sizeof counts, cudaMemcpyDeviceToHost, stream);
        SF_CHECK_INT(cudaStreamSynchronize(stream), cudaSuccess);
        for (int b = 0; b < BLOCKS; b++) {
            float sum = 0;
            for (int i = 0; i < THREADS; i++) sum += x[b * THREADS + i];
            SF_CHECK_NEAR(found[2 * b], sum, 0);
            SF_CHECK_NEAR(found[2 * b + 1], sum, 0);
        }
        SF_CHECK_INT(counts[0], 3 * 63 * 64 / 2);
        SF_CHECK_INT(counts[1], 3 * 63);
        SF_CHECK_INT((unsigned)counts[2], 0x55555555u);
        SF_CHECK_INT(counts[3], 2);
        SF_CHECK_INT(counts[4], 4 * 100 + 7);
        cudaFree(in);
        cudaFree(out);
        cudaFree(ints);
        cudaStreamDestroy(stream);
    }
    emu_set_reversed(0);
}

/* ---- planted defects ------------------------------------------------------------------------ */

static __global__ void past_end(sf_global<float> x, int n)
{
    if ((int)threadIdx.x <= n) x[threadIdx.x] = 1;
}
static __global__ void read_far(sf_global<float> x, size_t at)
{
    if (threadIdx.x == 0) x[0] = x[at];
}
static __global__ void odd_address(sf_global<unsigned char> x)
{
    if (threadIdx.x == 0) sf_as<float>(x + 2)[0] = 1;
}
static __global__ void shared_past_end(sf_global<float> x)
{
    SF_SHARED(float, a, 32);
    SF_SHARED(float, b, 32);
    if (threadIdx.x < 32) {
        a[threadIdx.x] = 1;
        b[threadIdx.x] = 1;
    }
    __syncthreads();
    if (threadIdx.x == 0) x[0] = b[32];
}
static __global__ void shared_unset(sf_global<float> x)
{
    SF_SHARED(float, a, THREADS);
    if (threadIdx.x != 7) a[threadIdx.x] = 1;
    __syncthreads();
    if (threadIdx.x == 7) x[0] = a[7];
}
static __global__ void no_barrier(sf_global<float> x)
{
    SF_SHARED(float, a, THREADS);
    a[threadIdx.x] = 1;
    if (threadIdx.x > 0) x[threadIdx.x] = a[threadIdx.x - 1];
}
static __global__ void no_second_barrier(sf_global<float> x)
{
    SF_SHARED(float, a, THREADS);
    a[threadIdx.x] = 1;
    __syncthreads();
    float next = a[(threadIdx.x + 1) % THREADS];
    a[threadIdx.x] = next;
    x[threadIdx.x] = next;
}
static __global__ void warp_not_block(sf_global<float> x)
{
    SF_SHARED(float, a, THREADS);
    a[threadIdx.x] = 1;
    __syncwarp();
    if (threadIdx.x >= 32) x[threadIdx.x] = a[threadIdx.x - 32];
}
static __global__ void global_race(sf_global<float> x)
{
    x[threadIdx.x / 2] = (float)threadIdx.x;
}
static __global__ void block_race(sf_global<float> x)
{
    if (threadIdx.x == 0) x[0] = x[0] + 1;
}
static __global__ void part_barrier(sf_global<float> x)
{
    if (threadIdx.x < 40) {
        __syncthreads();
        x[threadIdx.x] = 1;
    } else {
        float late = __shfl_sync(SF_FULL_MASK, 1.0f, 0);
        x[threadIdx.x] = late;
    }
}
static __global__ void two_barriers(sf_global<float> x)
{
    if (threadIdx.x < 32) {
        __syncthreads();
        x[0] = 1;
    } else {
        __syncthreads();
    }
}
static __global__ void half_warp(sf_global<float> x)
{
    if (threadIdx.x % 32 < 16) x[threadIdx.x] = __shfl_xor_sync(SF_FULL_MASK, 1.0f, 1);
    __syncthreads();
}
static __global__ void from_nobody(sf_global<float> x)
{
    if (threadIdx.x % 32 >= 16) return;
    x[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.0f, 16);
}

/* Copies of two groups, of which a thread reads the first after a wait for it; what is planted is
 * where the second is read, and how. */
enum copies { WAITED, NO_WAIT, TOO_FEW, NO_GROUP, NEIGHBOUR, OVERWRITTEN, TWICE, SHARED_END,
              GLOBAL_END, ODD };
static __global__ void two_copies(sf_global<float> x, enum copies how)
{
    SF_SHARED(float, a, 2 * THREADS);
    unsigned t = threadIdx.x;
    sf_shared<float> first = a + t, second = a + (THREADS + t);
    sf_copy_send<float>(first, x + t);
    sf_copy_commit();
    if (how == SHARED_END) second = second + 1;
    if (how == GLOBAL_END) sf_copy_send<float>(second, x + (t + 1));
    else if (how == ODD) sf_copy_send<float>(second, sf_as<float>(sf_as<char>(x + t / 2) + 2));
    else sf_copy_send<float>(second, x + (THREADS - 1 - t));
    if (how == TWICE) sf_copy_send<float>(second, x + t);
    if (how == OVERWRITTEN) second[0] = 1;
    if (how != NO_GROUP) sf_copy_commit();
    if (how == NO_WAIT) {
        x[t] = first[0];
        return;
    }
    sf_copy_wait<1>();
    float value = 0;
    if (how != NO_GROUP) value = first[0];
    if (how != TOO_FEW) sf_copy_wait<0>();
    if (how == NEIGHBOUR && t > 0) second = a + (THREADS + t - 1);
    value = value * 100 + second[0];
    __syncthreads();                    /* others copy from where this thread writes */
    x[t] = value;
}
static __global__ void raw_pointer(float *x) { *x = 1; }
static __global__ void quiet(sf_global<float> x)
{
    if (threadIdx.x == 0) x[0] = 1;
}

static cudaStream_t stream;
static float *x;                        /* [64] floats of device memory */
static float host[64];

static void plant_past_end(void) { SF_LAUNCH(past_end, 1, THREADS, 0, stream, x + 4, 60); }
static void plant_far(void) { SF_LAUNCH(read_far, 1, THREADS, 0, stream, x, (size_t)1 << 28); }
static void plant_shared_end(void) { SF_LAUNCH(shared_past_end, 1, THREADS, 0, stream, x); }
static void plant_odd(void)
{
    SF_LAUNCH(odd_address, 1, THREADS, 0, stream, (unsigned char *)x);
}
static void plant_unset(void) { SF_LAUNCH(shared_unset, 1, THREADS, 0, stream, x); }
static void plant_no_barrier(void) { SF_LAUNCH(no_barrier, 1, THREADS, 0, stream, x); }
static void plant_no_second(void) { SF_LAUNCH(no_second_barrier, 1, THREADS, 0, stream, x); }
static void plant_warp_only(void) { SF_LAUNCH(warp_not_block, 1, THREADS, 0, stream, x); }
static void plant_global_race(void) { SF_LAUNCH(global_race, 1, THREADS, 0, stream, x); }
static void plant_block_race(void) { SF_LAUNCH(block_race, 2, THREADS, 0, stream, x); }
static void plant_part_barrier(void) { SF_LAUNCH(part_barrier, 1, THREADS, 0, stream, x); }
static void plant_two_barriers(void) { SF_LAUNCH(two_barriers, 1, THREADS, 0, stream, x); }
static void plant_half_warp(void) { SF_LAUNCH(half_warp, 1, THREADS, 0, stream, x); }
static void plant_from_nobody(void) { SF_LAUNCH(from_nobody, 1, THREADS, 0, stream, x); }
static void plant_host_pointer(void) { SF_LAUNCH(quiet, 1, THREADS, 0, stream, host); }
static void copies_run(enum copies how) { SF_LAUNCH(two_copies, 1, THREADS, 0, stream, x, how); }
static void plant_no_wait(void) { copies_run(NO_WAIT); }
static void plant_too_few(void) { copies_run(TOO_FEW); }
static void plant_no_group(void) { copies_run(NO_GROUP); }
static void plant_neighbour(void) { copies_run(NEIGHBOUR); }
static void plant_overwritten(void) { copies_run(OVERWRITTEN); }
static void plant_twice(void) { copies_run(TWICE); }
static void plant_copy_shared_end(void) { copies_run(SHARED_END); }
static void plant_copy_global_end(void) { copies_run(GLOBAL_END); }
static void plant_copy_odd(void) { copies_run(ODD); }
static void plant_all_waited(void) { copies_run(WAITED); }
static void plant_raw_pointer(void) { SF_LAUNCH(raw_pointer, 1, 1, 0, stream, x); }
static void plant_big_block(void) { SF_LAUNCH(quiet, 1, 2048, 0, stream, x); }
static void plant_no_blocks(void) { SF_LAUNCH(quiet, 0, 32, 0, stream, x); }
static void plant_big_shared(void) { SF_LAUNCH(quiet, 1, 32, 64 << 10, stream, x); }
static void plant_host_reads(void) { host[0] = *(volatile float *)x; }
static void plant_long_copy(void)
{
    cudaMemcpyAsync(host, x + 1, sizeof host, cudaMemcpyDeviceToHost, stream);
}
static void plant_wrong_way(void)
{
    cudaMemcpyAsync(host, x, sizeof host, cudaMemcpyHostToDevice, stream);
}
static void plant_freed(void)
{
    float *gone = device_make<float>(64);
    cudaFree(gone);
    SF_LAUNCH(quiet, 1, 32, 0, stream, gone);
}
static void plant_free_twice(void)
{
    float *gone = device_make<float>(64);
    cudaFree(gone);
    cudaFree(gone);
}
static void plant_leak(void) { device_make<float>(64); }
static void plant_pinned_leak(void)
{
    void *block;
    cudaHostAlloc(&block, 64, cudaHostAllocDefault);
}

/* ---- planted defects in the use of NCCL, by one rank ----------------------------------------- */

static ncclComm_t comm_make(bool ready)
{
    ncclUniqueId id;
    ncclComm_t comm = nullptr;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclResult_t state;
    config.blocking = 0;
    ncclGetUniqueId(&id);
    ncclCommInitRankConfig(&comm, 1, id, 0, &config);
    if (ready) ncclCommGetAsyncError(comm, &state);
    return comm;
}
static void wait_for(ncclComm_t comm)
{
    ncclResult_t state = ncclInProgress;
    for (int i = 0; state == ncclInProgress && i < 10; i++) ncclCommGetAsyncError(comm, &state);
}
static void plant_not_ready(void)
{
    ncclComm_t comm = comm_make(false);
    ncclAllReduce(x, x, 4, ncclFloat32, ncclSum, comm, stream);
}
static void plant_not_queued(void)
{
    ncclComm_t comm = comm_make(true);
    ncclAllReduce(x, x, 4, ncclFloat32, ncclSum, comm, stream);
    ncclAllReduce(x, x, 4, ncclFloat32, ncclSum, comm, stream);
}
static void plant_no_end(void) { ncclCommDestroy(comm_make(true)); }
static void plant_comm_leak(void) { ncclCommFinalize(comm_make(true)); }
static void plant_gone(void)
{
    ncclComm_t comm = comm_make(true);
    ncclCommAbort(comm);
    ncclAllReduce(x, x, 4, ncclFloat32, ncclSum, comm, stream);
}
static void plant_self_send(void)
{
    ncclComm_t comm = comm_make(true);
    ncclSend(x, 4, ncclFloat32, 0, comm, stream);
    wait_for(comm);
}
static void plant_self_lengths(void)
{
    ncclComm_t comm = comm_make(true);
    ncclGroupStart();
    ncclSend(x, 4, ncclFloat32, 0, comm, stream);
    ncclRecv(x + 8, 5, ncclFloat32, 0, comm, stream);
    ncclGroupEnd();
    wait_for(comm);
}
static void plant_nothing(void) { SF_LAUNCH(quiet, 1, THREADS, 0, stream, x); }

static const struct { const char *kind; void (*plant)(void); const char *text; } plants[] = {
    { "out of bounds", plant_past_end, "a write past the end" },
    { "out of bounds", plant_far, "a read far behind" },
    { "out of bounds", plant_shared_end, "past the end of the last shared array" },
    { "out of bounds", plant_long_copy, "a copy that is too long" },
    { "use after free", plant_freed, "a freed block" },
    { "misaligned", plant_odd, "a float at an odd place" },
    { "uninitialised shared", plant_unset, "a place that one thread forgot" },
    { "race", plant_no_barrier, "no barrier between write and read" },
    { "race", plant_no_second, "no barrier between read and write" },
    { "race", plant_warp_only, "__syncwarp where the block has to wait" },
    { "race", plant_global_race, "two threads write one place" },
    { "race", plant_block_race, "two blocks change one place" },
    { "uninitialised shared", plant_no_wait, "missing wait on a copy" },
    { "uninitialised shared", plant_too_few, "a wait for all groups but the one that is read" },
    { "uninitialised shared", plant_no_group, "a copy that is in no group" },
    { "race", plant_neighbour, "another thread's copy without a barrier" },
    { "race", plant_overwritten, "a write to where a copy is under way" },
    { "race", plant_twice, "two copies to one place" },
    { "out of bounds", plant_copy_shared_end, "a copy past the end of shared memory" },
    { "out of bounds", plant_copy_global_end, "a copy from past the end" },
    { "misaligned", plant_copy_odd, "a copy from an odd place" },
    { "", plant_all_waited, "copies that are waited for" },
    { "divergent", plant_part_barrier, "a barrier against a shuffle" },
    { "divergent barrier", plant_two_barriers, "two barriers in two branches" },
    { "divergent warp", plant_half_warp, "half of the mask comes" },
    { "divergent warp", plant_from_nobody, "a value of a lane outside the mask" },
    { "host memory", plant_host_pointer, "a host address in a kernel" },
    { "device memory", plant_host_reads, "the host reads device memory" },
    { "device memory", plant_raw_pointer, "a kernel past its accessors" },
    { "host memory", plant_wrong_way, "a copy the wrong way" },
    { "bad launch", plant_big_block, "2048 threads" },
    { "bad launch", plant_no_blocks, "no blocks" },
    { "bad launch", plant_big_shared, "64 KiB of shared memory" },
    { "bad call", plant_free_twice, "a block freed twice" },
    { "bad call", plant_not_ready, "a sum on a communicator that is not ready" },
    { "bad call", plant_not_queued, "a sum while the last one is not queued" },
    { "bad call", plant_no_end, "a communicator destroyed before its end" },
    { "bad call", plant_gone, "a sum on an aborted communicator" },
    { "mismatch", plant_self_send, "a send to itself without a receive" },
    { "mismatch", plant_self_lengths, "a send to itself of another length" },
    { "leak", plant_comm_leak, "a communicator that stays" },
    { "leak", plant_leak, "a block that stays" },
    { "leak", plant_pinned_leak, "a pinned block that stays" },
    { "", plant_nothing, "nothing planted" }
};

/* Runs one plant in a process of its own; what it printed to stderr. */
static void plant_run(void (*plant)(void), char *text, size_t bytes)
{
    int ends[2];
    SF_CHECK_INT(pipe(ends), 0);
    fflush(nullptr);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit none = { 0, 0 };
        setrlimit(RLIMIT_CORE, &none);
        dup2(ends[1], 2);
        close(ends[0]);
        stream = stream_make();
        x = device_make<float>(64);
        cudaMemsetAsync(x, 0, 64 * sizeof *x, stream);
        plant();
        cudaStreamSynchronize(stream);
        cudaFree(x);
        cudaStreamDestroy(stream);
        exit(0);
    }
    close(ends[1]);
    size_t used = 0;
    for (ssize_t n; used < bytes - 1 && (n = read(ends[0], text + used, bytes - 1 - used)) > 0; )
        used += (size_t)n;
    text[used] = 0;
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    SF_CHECK((used == 0) == (WIFEXITED(status) && WEXITSTATUS(status) == 0));
}

static void test_defects(void)
{
    for (const auto &p : plants) {
        char text[1024], expected[64];
        plant_run(p.plant, text, sizeof text);
        snprintf(expected, sizeof expected, "cuda-emulated: %s", p.kind);
        const char *found = strstr(text, expected);
        if (p.kind[0] ? !found : text[0] != 0)
            sf_test_fail(__FILE__, __LINE__, "%s: expected '%s', found '%s'", p.text, p.kind, text);
        else
            CU_PASS("as expected");
    }
}

/* ---- copies --------------------------------------------------------------------------------- */

/* x[t] as two_copies finds it with x[t] = t, in either order of threads; where nothing is checked,
 * a copy that is not waited for shows as NaN. */
static void test_copies(void)
{
    float start[THREADS], found[THREADS];
    for (int t = 0; t < THREADS; t++) start[t] = (float)t;
    stream = stream_make();
    x = device_make<float>(THREADS);
    for (int turn = 0; turn < 4; turn++) {
        enum copies how = turn < 2 ? WAITED : turn == 2 ? NO_WAIT : TOO_FEW;
        emu_set_reversed(turn % 2);
        emu_set_checks(how == WAITED);
        cudaMemcpyAsync(x, start, sizeof start, cudaMemcpyHostToDevice, stream);
        copies_run(how);
        cudaMemcpyAsync(found, x, sizeof found, cudaMemcpyDeviceToHost, stream);
        SF_CHECK_INT(cudaStreamSynchronize(stream), cudaSuccess);
        emu_set_checks(1);
        for (int t = 0; t < THREADS; t++) {
            if (how == WAITED) SF_CHECK_NEAR(found[t], 100 * t + THREADS - 1 - t, 0);
            else SF_CHECK(std::isnan(found[t]));
        }
    }
    emu_set_reversed(0);
    cudaFree(x);
    cudaStreamDestroy(stream);
}

/* ---- streams -------------------------------------------------------------------------------- */

static __global__ void increment(sf_global<int32_t> value)
{
    if (threadIdx.x == 0) value[0] += 1;
}

/* Nothing has happened before someone waits, then all up to there has, in order; an event waits for
 * what is in front of it and no more; a stream that waits for an event pulls the other; a copy to
 * memory that is not pinned is itself waited for.  A wait counts where work is left to be done. */
static void test_streams(void)
{
    cudaStream_t a = stream_make(), b = stream_make();
    cudaEvent_t event;
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    int32_t *value = device_make<int32_t>(1), source = 5, *pinned, plain = -1;
    int64_t before = emu_launches(), waits = emu_waits(), uploads = emu_uploads();
    SF_CHECK_INT(cudaHostAlloc((void **)&pinned, 8, cudaHostAllocDefault), cudaSuccess);
    int32_t &found = pinned[0], &later = pinned[1];
    found = later = -1;
    cudaMemcpyAsync(value, &source, 4, cudaMemcpyHostToDevice, a);
    SF_LAUNCH(increment, 1, 32, 0, a, value);
    cudaMemcpyAsync(&found, value, 4, cudaMemcpyDeviceToHost, a);
    cudaEventRecord(event, a);
    SF_LAUNCH(increment, 1, 32, 0, a, value);
    SF_CHECK_INT(found, -1);
    SF_CHECK_INT(emu_launches() - before, 0);
    source = 7;                         /* too early: the copy has not been made */
    cudaEventSynchronize(event);
    SF_CHECK_INT(found, 8);
    SF_CHECK_INT(emu_launches() - before, 1);
    cudaEventRecord(event, a);
    cudaStreamWaitEvent(b, event, 0);
    cudaMemcpyAsync(&later, value, 4, cudaMemcpyDeviceToHost, b);
    SF_CHECK_INT(later, -1);
    SF_CHECK_INT(emu_waits() - waits, 1);
    cudaStreamSynchronize(b);
    SF_CHECK_INT(later, 9);
    cudaStreamSynchronize(b);
    cudaEventSynchronize(event);
    SF_CHECK_INT(cudaEventQuery(event), cudaSuccess);
    SF_CHECK_INT(emu_waits() - waits, 2);
    cudaMemcpyAsync(&plain, value, 4, cudaMemcpyDeviceToHost, a);
    SF_CHECK_INT(plain, 9);
    SF_CHECK_INT(emu_waits() - waits, 3);
    SF_CHECK_INT(emu_uploads() - uploads, 1);
    cudaFreeHost(pinned);
    cudaEventDestroy(event);
    cudaFree(value);
    cudaStreamDestroy(a);
    cudaStreamDestroy(b);
}

/* ---- counts --------------------------------------------------------------------------------- */

static float widen(uint16_t bits) { return bits; }

/* from, to: [2][64]; a block of two warps. */
static __global__ void counted(sf_global<const float> from, sf_global<float> to,
                               sf_global<int32_t> hits)
{
    SF_SHARED(float, tile, THREADS);
    SF_SHARED(float, more, 16);
    unsigned t = threadIdx.x;
    tile[t] = from[blockIdx.x * THREADS + t];
    __syncthreads();
    float value = expf(tile[THREADS - 1 - t]);
    for (int i = 0; i < 3; i++) value += from[i];
    if (t < 32) {
        float d[4] = { 0, 0, 0, 0 };
        const uint32_t a[4] = { 0, 0, 0, 0 }, b[2] = { 0, 0 };
        emu::mma(EMU_SITE, widen, d, a, b);
        value += __shfl_xor_sync(SF_FULL_MASK, value + d[0], 1);
        if (__any_sync(SF_FULL_MASK, value > 0)) value = sqrtf(value);
        __syncwarp();
        if (t < 16) more[t] = value;
    }
    if (t == 0) atomicAdd(hits, 1);
    to[blockIdx.x * THREADS + t] = value;
}

/* One warp: 16 bytes a lane as they come, then 8 from 32 bytes on to 32 bytes on, where four lanes
 * meet in each bank that they use. */
static __global__ void counted_copies(sf_global<const float> from)
{
    struct alignas(8) two { float word[2]; };
    struct alignas(16) four { float word[4]; };
    SF_SHARED(four, tile, 3 * 32);
    unsigned t = threadIdx.x;
    sf_copy_send<four>(tile + t, sf_as<const four>(from) + t);
    sf_copy_commit();
    sf_copy_wait<0>();
    sf_copy_send<two>(sf_as<two>(tile + 32) + 4 * t, sf_as<const two>(from) + 4 * t);
    sf_copy_commit();
    sf_copy_wait<0>();
}

static void test_copy_counts(void)
{
    enum { FLOATS = 32 * 8 };
    cudaStream_t queue = stream_make();
    float *from = device_make<float>(FLOATS);
    struct emu_count found;
    cudaMemsetAsync(from, 0, FLOATS * sizeof *from, queue);
    emu_set_counting(1);
    SF_LAUNCH(counted_copies, 1, 32, 0, queue, from);
    cudaStreamSynchronize(queue);
    emu_set_counting(0);
    SF_CHECK_INT(emu_counts(&found, 1), 1);
    SF_CHECK_INT(found.copies, 2);
    SF_CHECK_INT(found.copy_waits, 4);
    SF_CHECK_INT(found.read_sectors, 16 + 32);
    SF_CHECK_INT(found.read_bytes, 512 + 256);
    SF_CHECK_INT(found.shared, 2);
    SF_CHECK_INT(found.conflicts, 2 * (4 - 1));
    SF_CHECK_INT(found.loads + found.stores + found.shared_loads + found.shared_stores, 0);
    cudaFree(from);
    cudaStreamDestroy(queue);
}

/* What is counted of a kernel whose every instruction is known; of two blocks, and the same again
 * of a second launch. */
static void test_counts(void)
{
    cudaStream_t queue = stream_make();
    float *from = device_make<float>(2 * THREADS), *to = device_make<float>(2 * THREADS);
    int32_t *hits = device_make<int32_t>(1);
    struct emu_count found[2];
    cudaMemsetAsync(from, 0, 2 * THREADS * sizeof *from, queue);
    cudaMemsetAsync(hits, 0, sizeof *hits, queue);
    emu_set_counting(1);
    for (int launch = 0; launch < 2; launch++)
        SF_LAUNCH(counted, 2, THREADS, 0, queue, from, to, hits);
    cudaStreamSynchronize(queue);
    emu_set_counting(0);
    SF_CHECK_INT(emu_counts(found, 2), 1);
    SF_CHECK_STR(found[0].kernel, "counted");
    SF_CHECK_INT(found[0].launches, 2);
    SF_CHECK_INT(found[0].blocks, 4);
    const struct { int64_t found, of_block; } all[] = {
        { found[0].loads, 2 + 3 * 2 }, { found[0].stores, 2 }, { found[0].atomics, 1 },
        { found[0].shared_loads, 2 }, { found[0].shared_stores, 2 + 1 },
        { found[0].shared, 2 + 2 + 1 }, { found[0].conflicts, 0 }, { found[0].products, 1 },
        { found[0].shuffles, 1 }, { found[0].votes, 1 }, { found[0].barriers, 2 },
        { found[0].warp_barriers, 1 }, { found[0].special, 2 + 1 },
        { found[0].read_sectors, 2 * 4 + 3 * 2 + 1 },
        { found[0].read_bytes, 2 * 128 + 3 * 2 * 4 + 4 },
        { found[0].written_sectors, 2 * 4 + 1 }, { found[0].written_bytes, 2 * 128 + 4 },
    };
    for (const auto &one : all) SF_CHECK_INT(one.found, 4 * one.of_block);
    cudaFree(from);
    cudaFree(to);
    cudaFree(hits);
    cudaStreamDestroy(queue);
}

static const struct sf_test tests[] = {
    { "right kernels", test_right_kernels }, { "defects", test_defects },
    { "copies", test_copies }, { "streams", test_streams }, { "counts", test_counts },
    { "counts of copies", test_copy_counts }, { NULL, NULL }
};

SF_TEST_MAIN("emulation", tests)
