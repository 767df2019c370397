/* tests/emulation/nccl.cpp: NCCL between ranks that are processes or threads of one machine.
 *
 * A communicator is a block of shared memory named by its unique id, with a channel for each pair:
 *
 *     rank a  --written-->  | ring of 64 KiB |  --read-->  rank b       a message: head, bytes
 *
 * What is called is queued on the stream and moves when the stream runs.  Everything is made of
 * messages between pairs: a sum sends all to all and adds in the order of the ranks.  Stricter than
 * the library in what programs must not build on: a send is done only when the other side has taken
 * it; ranks that disagree on what is exchanged are found by the head of the message; and the first
 * call of a communicator is queued only once its state has been asked for, as the library may do
 * while it connects.  A rank that aborts or dies tells nobody. */
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <set>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <vector>
#include "tests/emulation/include/nccl.h"
#include "tests/emulation/internal.h"

namespace {

enum { RANKS_MAX = 16, RING = 64 << 10, POLLS_TO_CONNECT = 3 };
enum kind : uint32_t { SUM, GATHER, SEND, RECV };

struct head { uint32_t kind, magic; uint64_t bytes; };
struct channel {
    std::atomic<uint64_t> written, read;    /* bytes since the start */
    unsigned char ring[RING];
};
struct segment {
    std::atomic<int> joined, finalized, present[RANKS_MAX];
    char gpu[RANKS_MAX][32];
    channel channels[];                     /* [from][to] */
};

struct body {
    segment *shared = nullptr;
    size_t bytes = 0;
    int rank = 0, size = 0;
    char name[64];
    bool aborted = false;
    int queued = 0;                         /* calls that have not been worked off */
    ~body()
    {
        if (shared) munmap(shared, bytes);
    }
    channel *to(int peer) { return &shared->channels[rank * size + peer]; }
    channel *from(int peer) { return &shared->channels[peer * size + rank]; }
};

struct transfer {
    channel *way;
    bool send;
    int peer;
    head expected;
    unsigned char *at;
    uint64_t place;                         /* of the head and the bytes */
    bool done;
};

struct call {
    kind what;
    std::shared_ptr<body> comm;
    const void *given;
    void *taken;
    size_t bytes;
    int peer;
    std::vector<transfer> transfers;
    std::vector<float> parts;               /* of a sum: [size][count] */
};

struct batch { std::vector<call> calls; bool started = false; };
using batch_of_stream = std::pair<cudaStream_t, std::shared_ptr<batch>>;

thread_local int depth;
thread_local std::vector<std::pair<cudaStream_t, call>> group;
thread_local std::vector<ncclComm_t> group_comms;
std::atomic<int> injected;

}

struct emu_nccl {
    std::shared_ptr<body> b;
    bool ready = false, connected = false, finalized = false;
    int polls = 0;
    std::vector<batch_of_stream> deferred;
    ncclResult_t error = ncclSuccess;
};

namespace {

std::set<ncclComm_t> &comms = *new std::set<ncclComm_t>;
using hold_lock = std::lock_guard<std::recursive_mutex>;

const char *kind_name(uint32_t what)
{
    static const char *const names[] = { "sum", "gather", "send", "receive" };
    return names[what == RECV ? (uint32_t)SEND : what];
}

/* ---- messages ------------------------------------------------------------------------------- */

/* Copies between the ring, from `count` bytes since the start on, and a flat piece. */
void ring_copy(channel *way, uint64_t count, unsigned char *flat, size_t bytes, bool into_ring)
{
    while (bytes > 0) {
        size_t at = (size_t)(count % RING), part = RING - at < bytes ? RING - at : bytes;
        if (into_ring) memcpy(way->ring + at, flat, part);
        else memcpy(flat, way->ring + at, part);
        count += part;
        flat += part;
        bytes -= part;
    }
}

/* The piece of head and bytes that begins at the transfer's place; how long it is. */
size_t piece(transfer *t, unsigned char **at)
{
    if (t->place < sizeof(head)) {
        *at = (unsigned char *)&t->expected + t->place;
        return sizeof(head) - t->place;
    }
    *at = t->at + (t->place - sizeof(head));
    return sizeof(head) + t->expected.bytes - t->place;
}

/* Sends what the ring takes; true if anything moved or the message has been taken whole. */
bool send_on(transfer *t)
{
    uint64_t total = sizeof(head) + t->expected.bytes, before = t->place;
    uint64_t written = t->way->written.load(std::memory_order_relaxed);
    uint64_t read = t->way->read.load(std::memory_order_acquire);
    while (t->place < total && written - read < RING) {
        unsigned char *at;
        size_t bytes = piece(t, &at), room = RING - (size_t)(written - read);
        if (bytes > room) bytes = room;
        ring_copy(t->way, written, at, bytes, true);
        written += bytes;
        t->place += bytes;
    }
    t->way->written.store(written, std::memory_order_release);
    t->done = t->place == total && read == written;
    return t->place > before || t->done;
}

void head_check(const transfer *t, const head &found)
{
    if (found.magic != t->expected.magic || found.kind != t->expected.kind)
        emu::defect("mismatch", "a %s meets a %s of rank %d", kind_name(t->expected.kind),
                    kind_name(found.kind), t->peer);
    if (found.bytes != t->expected.bytes)
        emu::defect("mismatch", "a %s of %llu bytes meets one of %llu bytes of rank %d",
                    kind_name(t->expected.kind), (unsigned long long)t->expected.bytes,
                    (unsigned long long)found.bytes, t->peer);
}

bool receive_on(transfer *t)
{
    uint64_t before = t->place, read = t->way->read.load(std::memory_order_relaxed);
    uint64_t there = t->way->written.load(std::memory_order_acquire) - read;
    if (t->place == 0) {
        head found;
        if (there < sizeof found) return false;
        ring_copy(t->way, read, (unsigned char *)&found, sizeof found, false);
        head_check(t, found);
        t->place = sizeof found;
        read += sizeof found;
        there -= sizeof found;
    }
    unsigned char *at;
    size_t bytes = piece(t, &at);
    if (bytes > there) bytes = (size_t)there;
    ring_copy(t->way, read, at, bytes, false);
    t->place += bytes;
    t->way->read.store(read + bytes, std::memory_order_release);
    t->done = t->place == sizeof(head) + t->expected.bytes;
    return t->place > before;
}

/* ---- calls ---------------------------------------------------------------------------------- */

enum : uint32_t { MAGIC = 0x5ea1beadu };

void add(call *c, bool send, int peer, const void *at)
{
    uint32_t what = c->what == RECV ? (uint32_t)SEND : (uint32_t)c->what;
    c->transfers.push_back({ send ? c->comm->to(peer) : c->comm->from(peer), send, peer,
                             { what, MAGIC, c->bytes }, (unsigned char *)at, 0, false });
}

/* Finds the memory of a call and cuts it into messages. */
void call_start(call *c)
{
    int rank = c->comm->rank, size = c->comm->size;
    const unsigned char *given = nullptr;
    unsigned char *taken = nullptr;
    size_t all = c->what == GATHER ? c->bytes * (size_t)size : c->bytes;
    if (c->bytes == 0) return;
    if (c->what != RECV) given = emu::device_range(c->given, c->bytes, "NCCL reads");
    if (c->what != SEND) taken = emu::device_range(c->taken, all, "NCCL writes");
    if (c->what == SUM) {
        c->parts.resize((size_t)size * (c->bytes / sizeof(float)));
        taken = (unsigned char *)c->parts.data();
    }
    if (c->what == SEND || c->what == RECV) {
        if (c->peer != rank) add(c, c->what == SEND, c->peer, c->what == SEND ? given : taken);
        return;
    }
    if (taken + (size_t)rank * c->bytes != given)
        memcpy(taken + (size_t)rank * c->bytes, given, c->bytes);
    for (int r = 0; r < size; r++) {
        if (r == rank) continue;
        add(c, true, r, given);
        add(c, false, r, taken + (size_t)r * c->bytes);
    }
}

void call_end(call *c)
{
    c->comm->queued--;
    if (c->what != SUM || c->bytes == 0 || c->comm->aborted) return;
    size_t count = c->bytes / sizeof(float);
    float *sum = (float *)(void *)emu::device_range(c->taken, c->bytes, "NCCL writes");
    for (size_t i = 0; i < count; i++) {
        float value = c->parts[i];
        for (int r = 1; r < c->comm->size; r++) value += c->parts[(size_t)r * count + i];
        sum[i] = value;
    }
}

/* What a rank sends to itself, it takes from itself in the same group. */
void self_copy(std::vector<call> &calls)
{
    for (call &from : calls) {
        if (from.what != SEND || from.peer != from.comm->rank) continue;
        call *to = nullptr;
        for (call &c : calls)
            if (c.what == RECV && c.comm == from.comm && c.peer == c.comm->rank && !c.given && !to)
                to = &c;
        if (!to) emu::defect("mismatch", "a send to itself without its receive in the group");
        if (to->bytes != from.bytes)
            emu::defect("mismatch", "a send to itself of %zu bytes meets a receive of %zu",
                        from.bytes, to->bytes);
        to->given = from.given;         /* it is no longer free */
        if (from.bytes > 0)
            memmove(emu::device_range(to->taken, to->bytes, "NCCL writes"),
                    emu::device_range(from.given, from.bytes, "NCCL reads"), from.bytes);
    }
    for (const call &c : calls)
        if (c.what == RECV && c.peer == c.comm->rank && !c.given)
            emu::defect("mismatch", "a receive from itself without its send in the group");
}

/* Everything of a batch moves as far as it can; of one channel only the first message does. */
bool batch_attempt(batch *b)
{
    if (!b->started) {
        b->started = true;
        for (call &c : b->calls)
            if (!c.comm->aborted) call_start(&c);
        self_copy(b->calls);
    }
    bool moved = true, done = false;
    while (moved && !done) {
        std::set<std::pair<channel *, bool>> taken;
        moved = false;
        done = true;
        for (call &c : b->calls)
            for (transfer &t : c.transfers) {
                if (t.done || c.comm->aborted || !taken.insert({ t.way, t.send }).second) continue;
                moved |= t.send ? send_on(&t) : receive_on(&t);
                if (t.done) taken.erase({ t.way, t.send });
                else snprintf(emu::whom, sizeof emu::whom, "rank %d of a communicator of %d (%s of "
                              "%zu bytes)", t.peer, c.comm->size, kind_name(c.what), c.bytes);
            }
        for (const call &c : b->calls)
            for (const transfer &t : c.transfers) done &= t.done || c.comm->aborted;
    }
    if (done)
        for (call &c : b->calls) call_end(&c);
    return done;
}

void comm_check(ncclComm_t comm, const char *what)
{
    if (!comms.count(comm)) emu::defect("bad call", "%s of %p, no communicator", what,
                                         (void *)comm);
}

void push(const batch_of_stream &one)
{
    std::shared_ptr<batch> b = one.second;
    emu::stream_push_waiting(one.first, [b] { return batch_attempt(b.get()); });
}

ncclResult_t group_launch()
{
    std::vector<batch_of_stream> batches;
    for (auto &one : group) {
        batch_of_stream *found = nullptr;
        for (batch_of_stream &b : batches)
            if (b.first == one.first) found = &b;
        if (!found) {
            batches.push_back({ one.first, std::make_shared<batch>() });
            found = &batches.back();
        }
        one.second.comm->queued++;
        found->second->calls.push_back(one.second);
    }
    ncclComm_t fresh = nullptr;
    for (ncclComm_t comm : group_comms)
        if (!comm->connected) fresh = comm;
    for (ncclComm_t comm : group_comms) comm->connected = true;
    group.clear();
    group_comms.clear();
    if (fresh) {
        fresh->deferred = batches;
        fresh->polls = 0;
        return ncclInProgress;
    }
    for (const batch_of_stream &b : batches) push(b);
    return ncclSuccess;
}

ncclResult_t call_add(ncclComm_t comm, kind what, const void *given, void *taken, size_t count,
                      ncclDataType_t type, int peer, cudaStream_t stream)
{
    hold_lock hold(emu::lock);
    comm_check(comm, kind_name(what));
    if (!emu::stream_exists(stream)) emu::defect("bad call", "%p is no stream", (void *)stream);
    if (!comm->ready || comm->finalized || !comm->deferred.empty())
        emu::defect("bad call", "a %s on a communicator that is %s", kind_name(what),
                    comm->finalized ? "finalized" : "not ready: its state has to be asked for");
    if (comm->error != ncclSuccess) return comm->error;
    if (peer < 0 || peer >= comm->b->size || (what == SUM && type != ncclFloat32))
        return ncclInvalidArgument;
    call c = { what, comm->b, given, taken, count * (type == ncclFloat32 ? 4 : 1), peer, {}, {} };
    group.push_back({ stream, c });
    group_comms.push_back(comm);
    return depth > 0 ? ncclSuccess : group_launch();
}

/* ---- communicators -------------------------------------------------------------------------- */

bool shared_open(body *b)
{
    b->bytes = sizeof(segment) + (size_t)b->size * (size_t)b->size * sizeof(channel);
    int file = shm_open(b->name, O_CREAT | O_RDWR, 0600);
    if (file < 0) return false;
    void *block = ftruncate(file, (off_t)b->bytes) != 0 ? MAP_FAILED
                : mmap(nullptr, b->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (block == MAP_FAILED) return false;
    b->shared = (segment *)block;
    return true;
}

/* All have come: who of them shares a GPU? */
ncclResult_t meet(ncclComm_t comm)
{
    segment *s = comm->b->shared;
    if (s->joined.load() < comm->b->size) return ncclInProgress;
    comm->ready = true;
    for (int i = 0; i < comm->b->size; i++)
        for (int j = 0; j < i; j++)
            if (strcmp(s->gpu[i], s->gpu[j]) == 0) return ncclInvalidUsage;
    return ncclSuccess;
}

ncclResult_t state(ncclComm_t comm)
{
    if (int failure = injected.exchange(0)) comm->error = (ncclResult_t)failure;
    if (comm->error != ncclSuccess) return comm->error;
    if (!comm->ready) {
        ncclResult_t met = meet(comm);
        if (comm->ready) comm->error = met;
        return met;
    }
    if (comm->finalized)
        return comm->b->queued > 0 || comm->b->shared->finalized.load() < comm->b->size
             ? ncclInProgress : ncclSuccess;
    if (comm->deferred.empty()) return ncclSuccess;
    if (++comm->polls < POLLS_TO_CONNECT) return ncclInProgress;
    for (const batch_of_stream &b : comm->deferred) push(b);
    comm->deferred.clear();
    return ncclSuccess;
}

void forget(ncclComm_t comm)
{
    comms.erase(comm);
    emu::communicators--;
    delete comm;
}

}

ncclResult_t ncclGetVersion(int *version)
{
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    static const char *const names[] = { "no error", "unhandled cuda error",
        "unhandled system error", "internal error", "invalid argument", "invalid usage",
        "remote process exited or there was a network error", "NCCL operation in progress" };
    return names[result];
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    static std::atomic<int> serial;
    timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "%d-%d-%llx%09lx", (int)getpid(), ++serial,
             (unsigned long long)now.tv_sec, (unsigned long)now.tv_nsec);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    hold_lock hold(emu::lock);
    if (ranks < 1 || ranks > RANKS_MAX || rank < 0 || rank >= ranks || !config ||
        config->blocking != 0)
        return ncclInvalidArgument;
    auto b = std::make_shared<body>();
    b->rank = rank;
    b->size = ranks;
    snprintf(b->name, sizeof b->name, "/sheaf-nccl-%.40s", id.internal);
    if (!shared_open(b.get())) return ncclSystemError;
    if (b->shared->present[rank].exchange(1) != 0) return ncclInvalidUsage;
    int gpu;
    cudaGetDevice(&gpu);
    cudaDeviceGetPCIBusId(b->shared->gpu[rank], sizeof b->shared->gpu[rank], gpu);
    if (b->shared->joined.fetch_add(1) + 1 == ranks) shm_unlink(b->name);
    *comm = new emu_nccl;
    (*comm)->b = b;
    comms.insert(*comm);
    emu::communicators++;
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *now)
{
    hold_lock hold(emu::lock);
    comm_check(comm, "the state");
    *now = state(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    hold_lock hold(emu::lock);
    comm_check(comm, "the end");
    if (comm->finalized || !comm->ready) return ncclInvalidUsage;
    comm->finalized = true;
    comm->b->shared->finalized++;
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    hold_lock hold(emu::lock);
    comm_check(comm, "the end");
    if (!comm->finalized || state(comm) != ncclSuccess)
        emu::defect("bad call", "a communicator is destroyed that is not finalized");
    forget(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    hold_lock hold(emu::lock);
    comm_check(comm, "the end");
    comm->b->aborted = true;
    if (comm->b->shared->joined.load() < comm->b->size) shm_unlink(comm->b->name);
    forget(comm);
    return ncclSuccess;
}

ncclResult_t ncclGroupStart(void)
{
    depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    hold_lock hold(emu::lock);
    if (depth == 0) return ncclInvalidUsage;
    return --depth > 0 || group.empty() ? ncclSuccess : group_launch();
}

ncclResult_t ncclAllReduce(const void *given, void *sum, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    if (op != ncclSum) return ncclInvalidArgument;
    return call_add(comm, SUM, given, sum, count, type, 0, stream);
}

ncclResult_t ncclAllGather(const void *given, void *all, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream)
{
    return call_add(comm, GATHER, given, all, count, type, 0, stream);
}

ncclResult_t ncclSend(const void *given, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream)
{
    return call_add(comm, SEND, given, nullptr, count, type, peer, stream);
}

ncclResult_t ncclRecv(void *taken, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return call_add(comm, RECV, nullptr, taken, count, type, peer, stream);
}

extern "C" void emu_nccl_fail(int result) { injected = result; }
