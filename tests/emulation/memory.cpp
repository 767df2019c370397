/* tests/emulation/memory.cpp: device memory.
 *
 * Two mappings of the same size: `seen`, whose addresses are given out and which nobody may touch,
 * and `real`, where the bytes lie.  An accessor or a copy turns one into the other by a shift,
 * after it has checked that the access stays inside its allocation.
 *
 *     seen   | .. |  A  | .. |  B  | ..      PROT_NONE: a host that follows such a pointer faults
 *     real   | .. |  A  | .. |  B  | ..
 *     owner  one number per page of `seen`: the allocation there, 0 for none
 *
 * Between two allocations at least one page is left, and the begin is aligned to 256 bytes and not
 * more, as from the real cudaMalloc.  Fresh memory is full of 0xff, a NaN in every type. */
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <sys/mman.h>
#include "tests/emulation/include/cuda_runtime_api.h"
#include "tests/emulation/internal.h"

namespace emu {

namespace {

constexpr size_t RESERVE = (size_t)32 << 30, PAGE = 4096, BEGIN = 256;
constexpr size_t GRANULE = 1;           /* bytes of a mark: the smallest element */

struct allocation {
    size_t begin, bytes;
    bool live;
    mark *marks;
    size_t marks_bytes;
};

unsigned char *seen, *real;
uint32_t *owner;
std::deque<allocation> allocations(1);  /* number 0 is nobody */
std::map<size_t, size_t> taken;         /* begin of the first page -> end of the last */
std::map<void *, size_t> pinned;
size_t cursor;
struct sigaction before;

void *reserve(size_t bytes, int protection)
{
    void *block = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                       0);
    if (block == MAP_FAILED) {
        fprintf(stderr, "cuda-emulated: no address space of %zu bytes\n", bytes);
        abort();
    }
    return block;
}

void on_fault(int number, siginfo_t *info, void *context)
{
    if (is_device(info->si_addr))
        defect("device memory", "%s uses the device address %p",
               in_kernel() ? "a kernel, past its accessors," : "the host", info->si_addr);
    if ((before.sa_flags & SA_SIGINFO) && before.sa_sigaction) {
        before.sa_sigaction(number, info, context);
        return;
    }
    sigaction(number, &before, nullptr);    /* and fault again */
}

void leaks_report()
{
    size_t count = 0, bytes = 0;
    for (const allocation &a : allocations)
        if (a.live) {
            count++;
            bytes += a.bytes;
        }
    for (const auto &block : pinned) {
        count++;
        bytes += block.second;
    }
    if (count == 0 && communicators == 0) return;
    if (count > 0)
        fprintf(stderr, "cuda-emulated: leak: %zu blocks of %zu bytes of device and pinned "
                "memory\n", count, bytes);
    if (communicators > 0)
        fprintf(stderr, "cuda-emulated: leak: %d communicators\n", communicators);
    fflush(nullptr);
    _Exit(70);
}

void begin_once()
{
    if (seen) return;
    seen = (unsigned char *)reserve(RESERVE, PROT_NONE);
    real = (unsigned char *)reserve(RESERVE, PROT_READ | PROT_WRITE);
    owner = (uint32_t *)reserve(RESERVE / PAGE * sizeof *owner, PROT_READ | PROT_WRITE);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before);
    atexit(leaks_report);
}

/* A gap of `bytes`, searched from where the last one was found. */
size_t gap_find(size_t bytes)
{
    for (int turn = 0; turn < 2; turn++, cursor = 0) {
        size_t at = cursor;
        for (auto next = taken.lower_bound(at); ; ++next) {
            size_t end = next == taken.end() ? RESERVE : next->first;
            if (at + bytes <= end) return at;
            if (next == taken.end()) break;
            at = next->second;
        }
    }
    return RESERVE;
}

/* The allocation that an access of a kernel or a copy falls into. */
const allocation *allocation_of(const void *address, size_t bytes, const char *what)
{
    size_t offset = (size_t)((const unsigned char *)address - seen);
    if (!is_device(address))
        defect("host memory", "%s at %p, which is no device memory", what, address);
    const allocation *a = &allocations[owner[offset / PAGE]];
    if (a == &allocations[0])
        defect("out of bounds", "%s at %p, where nothing is allocated", what, address);
    if (!a->live)
        defect("use after free", "%s of %zu bytes at byte %zd of a block of %zu bytes", what,
               bytes, (ptrdiff_t)(offset - a->begin), a->bytes);
    if (offset < a->begin || bytes > a->bytes || offset - a->begin > a->bytes - bytes)
        defect("out of bounds", "%s of %zu bytes at byte %zd of a block of %zu bytes", what, bytes,
               (ptrdiff_t)(offset - a->begin), a->bytes);
    return a;
}

/* The mark of an access that was found right, and how far into its allocation it is. */
struct place { mark *at; size_t offset; };

place access(const void *address, size_t bytes, const char *what)
{
    const allocation *a = allocation_of(address, bytes, what);
    if ((size_t)address % bytes != 0)
        defect("misaligned", "%s of %zu bytes at %p", what, bytes, address);
    size_t offset = (size_t)((const unsigned char *)address - seen) - a->begin;
    return { a->marks + offset / GRANULE, offset };
}

unsigned char *shift(const void *address)
{
    return real + ((const unsigned char *)address - seen);
}

}

bool is_device(const void *address)
{
    return seen && (const unsigned char *)address >= seen &&
           (const unsigned char *)address < seen + RESERVE;
}

void *device_alloc(size_t bytes)
{
    begin_once();
    size_t whole = (BEGIN + bytes + PAGE - 1) / PAGE * PAGE + PAGE;
    size_t page = whole <= RESERVE ? gap_find(whole) : RESERVE;
    if (page == RESERVE) return nullptr;
    allocation a = { page + BEGIN, bytes, true, nullptr, (bytes / GRANULE + 1) * sizeof(mark) };
    a.marks = (mark *)reserve(a.marks_bytes, PROT_READ | PROT_WRITE);
    for (size_t p = page; p + PAGE < page + whole; p += PAGE)
        owner[p / PAGE] = (uint32_t)allocations.size();
    owner[(page + whole - PAGE) / PAGE] = (uint32_t)allocations.size();
    allocations.push_back(a);
    taken[page] = page + whole;
    cursor = page + whole;
    memset(real + a.begin, 0xff, bytes);
    return seen + a.begin;
}

void device_free(void *block)
{
    size_t offset = (size_t)((unsigned char *)block - seen);
    allocation *a = is_device(block) ? &allocations[owner[offset / PAGE]] : &allocations[0];
    if (!a->live || a->begin != offset)
        defect("bad call", "cudaFree of %p, which is no block of device memory", block);
    a->live = false;
    munmap(a->marks, a->marks_bytes);
    auto pages = taken.find(offset - BEGIN);
    madvise(real + pages->first, pages->second - pages->first, MADV_DONTNEED);
    taken.erase(pages);
}

unsigned char *device_range(const void *address, size_t bytes, const char *what)
{
    allocation_of(address, bytes, what);
    return shift(address);
}

const unsigned char *device_copied(const void *address, size_t bytes)
{
    if (checks) {
        place p = access(address, bytes, "an asynchronous copy");
        mark_read(p.at, "global", p.offset);
    }
    return shift(address);
}

const void *global_read(const void *address, size_t bytes)
{
    if (counting) count_access(address, bytes, COUNT_READ, __builtin_return_address(0));
    if (checks) {
        place p = access(address, bytes, "a read");
        mark_read(p.at, "global", p.offset);
    }
    return shift(address);
}

void *global_write(void *address, size_t bytes)
{
    if (counting) count_access(address, bytes, COUNT_WRITE, __builtin_return_address(0));
    if (checks) {
        place p = access(address, bytes, "a write");
        mark_write(p.at, "global", p.offset);
    }
    return shift(address);
}

void *global_atomic(void *address, size_t bytes)
{
    if (counting) count_access(address, bytes, COUNT_ATOMIC, __builtin_return_address(0));
    if (checks) {
        place p = access(address, bytes, "an atomic");
        mark_atomic(p.at, "global", p.offset);
    }
    return shift(address);
}

}

bool emu::is_pinned(const void *address)
{
    auto after = pinned.upper_bound((void *)(uintptr_t)address);
    if (after == pinned.begin()) return false;
    --after;
    return (size_t)((const char *)address - (const char *)after->first) < after->second;
}

cudaError_t cudaHostAlloc(void **block, size_t bytes, unsigned flags)
{
    std::lock_guard<std::recursive_mutex> hold(emu::lock);
    (void)flags;
    emu::begin_once();
    *block = malloc(bytes > 0 ? bytes : 1);
    if (!*block) return cudaErrorMemoryAllocation;
    emu::pinned[*block] = bytes;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *block)
{
    std::lock_guard<std::recursive_mutex> hold(emu::lock);
    if (!block) return cudaSuccess;
    if (emu::pinned.erase(block) == 0)
        emu::defect("bad call", "cudaFreeHost of %p, which is no pinned block", block);
    free(block);
    return cudaSuccess;
}
