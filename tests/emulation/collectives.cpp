/* tests/emulation/collectives.cpp: the stand-in for NCCL, on ranks as threads.  Sends and receives
 * of a group go on side by side, so a ring needs no order there, and messages between two ranks
 * keep theirs; work is done when the stream runs and not before; a stream goes on by itself after a
 * while; sums add in the order of the ranks. */
#include <atomic>
#include <cstring>
#include <cuda_runtime.h>
#include <nccl.h>
#include <thread>
#include <unistd.h>
#include <vector>
#include "tests/emulation/emulation.h"
extern "C" {
#include "tests/check.h"
}

enum { RANKS = 3, COUNT = 50000 };

struct rank {
    int number, ranks;
    ncclComm_t comm;
    cudaStream_t stream;
    float *x;                           /* device, [2][COUNT] */
    std::vector<float> host;
    std::atomic<int> *stage;
    int wrong;                          /* CUnit belongs to one thread */
};

static ncclResult_t polled(rank *r, ncclResult_t result)
{
    while (result == ncclInProgress) {
        usleep(100);
        ncclCommGetAsyncError(r->comm, &result);
    }
    return result;
}

static void run(rank *r, ncclUniqueId id, void (*body)(rank *))
{
    void *block = nullptr;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    emu_set_gpu(r->number);
    r->wrong += cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking) != cudaSuccess;
    r->wrong += cudaMalloc(&block, 2 * COUNT * sizeof(float)) != cudaSuccess;
    r->x = (float *)block;
    r->wrong += polled(r, ncclCommInitRankConfig(&r->comm, r->ranks, id, r->number, &config)) !=
                ncclSuccess;
    r->host.resize(2 * COUNT);
    for (int i = 0; i < 2 * COUNT; i++)
        r->host[(size_t)i] = (float)((i * 31 + r->number * 977) % 10007) * (i % 3 ? 1e-3f : 1e3f);
    cudaMemcpyAsync(r->x, r->host.data(), 2 * COUNT * sizeof(float), cudaMemcpyHostToDevice,
                    r->stream);
    body(r);
    cudaStreamSynchronize(r->stream);
    r->wrong += polled(r, ncclCommFinalize(r->comm)) != ncclSuccess;
    ncclCommDestroy(r->comm);
    cudaFree(r->x);
    cudaStreamDestroy(r->stream);
}

static void run_all(int ranks, void (*body)(rank *))
{
    std::atomic<int> stage{ 0 };
    std::vector<rank> all((size_t)ranks);
    std::vector<std::thread> threads;
    ncclUniqueId id;
    SF_CHECK_INT(ncclGetUniqueId(&id), ncclSuccess);
    for (int i = 0; i < ranks; i++) {
        rank *r = &all[(size_t)i];
        r->number = i;
        r->ranks = ranks;
        r->stage = &stage;
        threads.emplace_back(run, r, id, body);
    }
    for (std::thread &t : threads) t.join();
    for (const rank &r : all) SF_CHECK_INT(r.wrong, 0);
}

static void download(rank *r, std::vector<float> &found)
{
    found.resize(2 * COUNT);
    cudaMemcpyAsync(found.data(), r->x, 2 * COUNT * sizeof(float), cudaMemcpyDeviceToHost,
                    r->stream);
    cudaStreamSynchronize(r->stream);
}

static float number(int rank, int i)
{
    return (float)((i * 31 + rank * 977) % 10007) * (i % 3 ? 1e-3f : 1e3f);
}

/* Everybody sends two messages to the next one first and then receives two, all in one group. */
static void ring(rank *r)
{
    int next = (r->number + 1) % r->ranks, before = (r->number + r->ranks - 1) % r->ranks;
    std::vector<float> found;
    ncclGroupStart();
    ncclSend(r->x, COUNT / 2, ncclFloat32, next, r->comm, r->stream);
    ncclSend(r->x + COUNT / 2, 10, ncclFloat32, next, r->comm, r->stream);
    ncclRecv(r->x + COUNT, COUNT / 2, ncclFloat32, before, r->comm, r->stream);
    ncclRecv(r->x + COUNT + COUNT / 2, 10, ncclFloat32, before, r->comm, r->stream);
    r->wrong += polled(r, ncclGroupEnd()) != ncclSuccess;
    download(r, found);
    for (int i = 0; i < COUNT / 2 + 10; i++)
        r->wrong += found[(size_t)(COUNT + i)] != number(before, i);
}

static void sums(rank *r)
{
    std::vector<float> found;
    r->wrong += polled(r, ncclAllReduce(r->x, r->x, COUNT, ncclFloat32, ncclSum, r->comm,
                                        r->stream)) != ncclSuccess;
    r->wrong += polled(r, ncclAllReduce(r->x, r->x + COUNT, COUNT, ncclFloat32, ncclSum, r->comm,
                                        r->stream)) != ncclSuccess;
    download(r, found);
    for (int i = 0; i < COUNT; i++) {
        float once = number(0, i), twice;
        for (int k = 1; k < r->ranks; k++) once += number(k, i);
        twice = once;
        for (int k = 1; k < r->ranks; k++) twice += once;
        r->wrong += found[(size_t)i] != once;
        r->wrong += found[(size_t)(COUNT + i)] != twice;
    }
}

/* Rank 0 sends and then waits for a word of the other host, which it gives only after rank 1's
 * stream is through: without `idle` nothing of that would ever happen. */
static void left_alone(rank *r)
{
    if (r->number == 0) {
        r->wrong += polled(r, ncclSend(r->x, COUNT, ncclFloat32, 1, r->comm, r->stream));
        for (int i = 0; i < 20000 && *r->stage == 0; i++) usleep(500);
        r->wrong += *r->stage != 1;
        return;
    }
    r->wrong += polled(r, ncclRecv(r->x + COUNT, COUNT, ncclFloat32, 0, r->comm, r->stream));
    cudaStreamSynchronize(r->stream);
    *r->stage = 1;
}

/* With `idle` off, both have queued a sum and a copy of its result, and nothing has happened. */
static void not_before(rank *r)
{
    float *found;                       /* pinned, or the copy would wait */
    r->wrong += cudaHostAlloc((void **)&found, sizeof *found, cudaHostAllocDefault) != cudaSuccess;
    *found = -1;
    r->wrong += polled(r, ncclAllReduce(r->x, r->x, 1, ncclFloat32, ncclSum, r->comm, r->stream));
    cudaMemcpyAsync(found, r->x, sizeof *found, cudaMemcpyDeviceToHost, r->stream);
    ++*r->stage;
    while (*r->stage < 2) usleep(500);
    usleep(60000);
    volatile float *seen = found;
    r->wrong += *seen != -1;
    ++*r->stage;
    while (*r->stage < 4) usleep(500);
    cudaStreamSynchronize(r->stream);
    r->wrong += *seen != number(0, 0) + number(1, 0);
    cudaFreeHost(found);
}

static void test_groups(void) { run_all(RANKS, ring); }
static void test_sums(void)
{
    run_all(1, sums);
    run_all(RANKS, sums);
}
static void test_left_alone(void) { run_all(2, left_alone); }
static void test_not_before(void)
{
    emu_set_idle_ms(-1);
    run_all(2, not_before);
    emu_set_idle_ms(20);
}

static const struct sf_test tests[] = {
    { "groups", test_groups }, { "sums", test_sums }, { "left alone", test_left_alone },
    { "not before", test_not_before }, { NULL, NULL }
};

SF_TEST_MAIN("collectives", tests)
