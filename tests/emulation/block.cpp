/* tests/emulation/block.cpp: one block of threads, each a fiber with a stack of its own.
 *
 * The scheduler goes round the threads and resumes each that can run; a thread comes back when it
 * has to wait or is done.  Whoever arrives last at a barrier or a warp operation completes it and
 * goes on at once.  A round in which nobody could run is a deadlock, and what the threads wait for
 * tells which defect it is. */
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <vector>
#include "tests/emulation/internal.h"
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emu {

namespace {

enum { LANES = 32, THREADS_MAX = 1024 };
constexpr size_t STACK = 256 << 10, SHARED_MAX = 48 << 10;

/* ---- switching stacks --------------------------------------------------------------------------
 * A context is the stack pointer of one who waits; the registers that a call keeps lie there. */
#if defined(__x86_64__)
struct context { void *stack_pointer; };
extern "C" void emu_switch(void **save, void *resume);
__asm__(".text\n"
        ".hidden emu_switch\n.globl emu_switch\n.type emu_switch, @function\n"
        "emu_switch:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n");

void context_switch(context *from, context *to)
{
    emu_switch(&from->stack_pointer, to->stack_pointer);
}

/* The first resume returns into `entry` with the stack as a call would have left it. */
void context_begin(context *c, unsigned char *stack, void (*entry)())
{
    void **top = (void **)(stack + STACK);
    *--top = nullptr;                   /* entry's return address; it does not return */
    *--top = (void *)entry;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    c->stack_pointer = top;
}
#else
struct context { ucontext_t u; };

void context_switch(context *from, context *to) { swapcontext(&from->u, &to->u); }

void context_begin(context *c, unsigned char *stack, void (*entry)())
{
    getcontext(&c->u);
    c->u.uc_stack.ss_sp = stack;
    c->u.uc_stack.ss_size = STACK;
    c->u.uc_link = nullptr;
    makecontext(&c->u, entry, 0);
}
#endif

/* ---- a block -------------------------------------------------------------------------------- */

enum waiting { READY, AT_BARRIER, AT_WARP, DONE };
enum warp_kind { EXCHANGE, BALLOT, SYNC, MMA };

/* A copy that a thread has sent for and not waited for; `from`: where the bytes really are. */
struct copy { unsigned char *to; const unsigned char *from; size_t bytes; unsigned group; };

struct fiber : thread_view {
    context resume;
    unsigned number;
    waiting state;
    site at;
    warp_kind kind;
    unsigned mask;
    uint64_t value, result;
    int source;                         /* lane that the value is taken from, -1: its own */
    mma_lane operands;
    float (*widen)(uint16_t);
    std::vector<copy> copies;           /* in the order in which they were sent for */
    unsigned groups;                    /* that have been committed */
};

std::vector<fiber> threads;
std::vector<uint32_t> warp_syncs;
unsigned char *stacks;
context scheduler;
fiber *running;
const std::function<void()> *body;
const char *kernel_name;
unsigned live, at_barrier;
int64_t launches;

/* Shared memory: the dynamic part first, then every declaration that was met, by its address. */
struct declaration { const void *key; size_t offset, bytes; };
alignas(256) unsigned char arena[SHARED_MAX];
mark arena_marks[SHARED_MAX / 4];
bool arena_written[SHARED_MAX / 4];
size_t arena_used, arena_dynamic;
std::vector<declaration> declarations;

void yield() { context_switch(&running->resume, &scheduler); }

unsigned first_of_warp(const fiber *t) { return t->number / LANES * LANES; }

unsigned warp_end(const fiber *t)
{
    unsigned end = first_of_warp(t) + LANES;
    return end < threads.size() ? end : (unsigned)threads.size();
}

bool same_site(const site &a, const site &b) { return a.line == b.line && a.file == b.file; }

void barrier_complete()
{
    const fiber *first = nullptr;
    for (fiber &t : threads) {
        if (t.state != AT_BARRIER) continue;
        if (!first) first = &t;
        if (!same_site(first->at, t.at))
            defect("divergent barrier", "thread %u waits at line %d and thread %u at line %d of %s",
                   first->number, first->at.line, t.number, t.at.line, t.at.file);
    }
    for (size_t i = 0, warp = SIZE_MAX; counting && i < threads.size(); i++) {
        if (threads[i].state != AT_BARRIER || i / LANES == warp) continue;
        warp = i / LANES;
        count_warp(kernel_name, &emu_count::barriers);
    }
    for (fiber &t : threads)
        if (t.state == AT_BARRIER) t.state = READY;
    at_barrier = 0;
    now.barrier++;
}

/* All 32 lanes take part in a product. */
void product_complete(const fiber *t)
{
    mma_lane lanes[LANES];
    unsigned first = first_of_warp(t);
    for (unsigned i = 0; i < LANES; i++) {
        if (first + i >= warp_end(t) || threads[first + i].state == DONE)
            defect("divergent warp", "lane %u does not take part in the product at line %d of %s",
                   i, t->at.line, t->at.file);
        lanes[i] = threads[first + i].operands;
    }
    mma_run(t->widen, lanes);
}

int64_t emu_count::*class_of(warp_kind kind)
{
    switch (kind) {
    case EXCHANGE: return &emu_count::shuffles;
    case BALLOT: return &emu_count::votes;
    case MMA: return &emu_count::products;
    default: return &emu_count::warp_barriers;
    }
}

/* Completes the operation at which `t` waits, if all living lanes of its mask have come to it. */
bool warp_complete(fiber *t)
{
    unsigned first = first_of_warp(t), end = warp_end(t), votes = 0;
    for (unsigned i = first; i < end; i++) {
        fiber *o = &threads[i];
        if (!(t->mask >> (i - first) & 1) || o->state == DONE) continue;
        if (o->state != AT_WARP || o->mask != t->mask || o->kind != t->kind ||
            !same_site(o->at, t->at))
            return false;
        if (o->value) votes |= 1u << (i - first);
    }
    for (unsigned i = first; i < end; i++) {
        fiber *o = &threads[i];
        if (!(t->mask >> (i - first) & 1) || o->state == DONE) continue;
        if (o->kind == BALLOT) {
            o->result = votes;
        } else if (o->kind == EXCHANGE) {
            unsigned from = first + (unsigned)(o->source < 0 ? (int)(i - first) : o->source);
            if (from >= end || threads[from].state == DONE || !(t->mask >> (from - first) & 1))
                defect("divergent warp", "lane %u takes a value from lane %u, which does not take "
                       "part, at line %d of %s", i - first, from - first, o->at.line, o->at.file);
            o->result = threads[from].value;
        }
    }
    if (t->kind == MMA) product_complete(t);
    if (counting) count_warp(kernel_name, class_of(t->kind));
    for (unsigned i = first; i < end; i++)
        if ((t->mask >> (i - first) & 1) && threads[i].state == AT_WARP) threads[i].state = READY;
    if (t->kind == SYNC) now.warp_sync = ++warp_syncs[first / LANES];
    return true;
}

void warp_wait(site at, warp_kind kind, unsigned mask)
{
    fiber *t = running;
    if (!(mask >> t->number % LANES & 1))
        defect("divergent warp", "lane %u is not in its own mask %08x, at line %d of %s",
               t->number % LANES, mask, at.line, at.file);
    t->at = at;
    t->kind = kind;
    t->mask = mask;
    t->state = AT_WARP;
    if (!warp_complete(t)) yield();
}

void fiber_main()
{
    (*body)();
    running->state = DONE;
    live--;
    if (live > 0 && at_barrier == live) barrier_complete();
    fiber *end = running;
    for (unsigned i = first_of_warp(end); i < warp_end(end); i++)
        if (threads[i].state == AT_WARP && warp_complete(&threads[i])) break;
    yield();
    abort();
}

[[noreturn]] void deadlock()
{
    for (fiber &t : threads) {
        if (t.state != AT_WARP) continue;
        running = &t;
        self = &t;
        defect("divergent warp", "lane %u waits at line %d of %s for lanes of mask %08x that do "
               "not come", t.number % LANES, t.at.line, t.at.file, t.mask);
    }
    for (fiber &t : threads)
        if (t.state == AT_BARRIER)
            defect("divergent barrier", "thread %u waits at line %d of %s for %u threads that do "
                   "not come", t.number, t.at.line, t.at.file, live - at_barrier);
    abort();
}

void block_begin(unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        fiber &t = threads[i];
        unsigned x = grid.block_size.x, y = grid.block_size.y;
        t.thread = { i % x, i / x % y, i / x / y };
        t.number = i;
        t.state = READY;
        t.copies.clear();
        t.groups = 0;
        context_begin(&t.resume, stacks + i * STACK, fiber_main);
    }
    for (uint32_t &count_of : warp_syncs) count_of = 0;
    live = count;
    at_barrier = 0;
    now.barrier = 0;
    memset(arena_written, 0, (arena_used + 3) / 4);
    memset(arena_marks, 0, (arena_used + 3) / 4 * sizeof(mark));
    memset(arena, 0xff, arena_used);
}

void block_run(unsigned block)
{
    unsigned count = (unsigned)threads.size();
    block_begin(count);
    while (live > 0) {
        bool ran = false;
        for (unsigned i = 0; i < count; i++) {
            fiber *t = &threads[reversed ? count - 1 - i : i];
            if (t->state != READY) continue;
            ran = true;
            running = t;
            self = t;
            now.thread = block * THREADS_MAX + t->number;
            now.warp_sync = warp_syncs[t->number / LANES];
            context_switch(&scheduler, &t->resume);
        }
        if (!ran) deadlock();
    }
    running = nullptr;
}

void *arena_access(const void *address, size_t bytes, const char *what, bool write)
{
    size_t offset = (size_t)((const unsigned char *)address - arena);
    const declaration *in = nullptr;
    for (const declaration &d : declarations)
        if (offset >= d.offset && offset < d.offset + d.bytes) in = &d;
    bool dynamic = offset < arena_dynamic;
    size_t end = dynamic ? arena_dynamic : in ? in->offset + in->bytes : 0;
    if (offset + bytes > end || offset >= SHARED_MAX)
        defect("out of bounds", "%s of %zu bytes at byte %zd of shared memory, of which %zu are "
               "declared", what, bytes, (ptrdiff_t)offset, arena_used);
    if (offset % bytes != 0)
        defect("misaligned", "%s of %zu bytes at byte %zu of shared memory", what, bytes, offset);
    for (size_t word = offset / 4; word < (offset + bytes + 3) / 4; word++) {
        if (!write && !arena_written[word])
            defect("uninitialised shared", "%s at byte %zu of shared memory", what, offset);
        arena_written[word] = true;
    }
    return arena + offset;
}

/* The same with no more than what the time of the emulation allows in the usual case. */
bool arena_inside(const void *address, size_t bytes)
{
    size_t offset = (size_t)((const unsigned char *)address - arena);
    return offset < arena_dynamic && offset + bytes <= arena_dynamic && offset % bytes == 0;
}

mark *arena_mark(const void *address)
{
    return &arena_marks[(size_t)((const unsigned char *)address - arena) / 4];
}

size_t arena_offset(const void *address)
{
    return (size_t)((const unsigned char *)address - arena);
}

/* A copy's bytes come; nobody may have written there since it was sent for, not even another copy
 * of the same thread. */
void copy_arrive(const copy &c)
{
    size_t offset = arena_offset(c.to);
    for (size_t word = offset / 4; checks && word < (offset + c.bytes) / 4; word++) {
        if (arena_written[word])
            defect("race", "a write of shared memory at byte %zu, to which an asynchronous copy is "
                   "under way", word * 4);
        arena_written[word] = true;
    }
    if (checks) mark_write(arena_mark(c.to), "shared", offset);
    memcpy(c.to, c.from, c.bytes);
}

}

thread_view *self;
grid_view grid;
moment now;

bool in_kernel() { return running != nullptr; }

const char *where()
{
    static char text[256];
    if (!running) return "";
    snprintf(text, sizeof text, ", in kernel %s, block (%u, %u, %u), thread (%u, %u, %u)",
             kernel_name, grid.block.x, grid.block.y, grid.block.z, self->thread.x, self->thread.y,
             self->thread.z);
    return text;
}

void barrier(site at)
{
    running->state = AT_BARRIER;
    running->at = at;
    at_barrier++;
    if (at_barrier == live) barrier_complete();
    else yield();
}

void warp_syncer::operator()(unsigned mask) const
{
    running->value = 0;
    warp_wait(at, SYNC, mask);
}

uint64_t warp_exchange(site at, unsigned mask, uint64_t value, shuffle_kind kind, int by)
{
    fiber *t = running;
    int lane = (int)(t->number % LANES);
    int from = kind == SHUFFLE ? by % LANES : kind == SHUFFLE_XOR ? lane ^ by
             : kind == SHUFFLE_UP ? lane - by : lane + by;
    t->value = value;
    t->source = from < 0 || from >= LANES ? -1 : from;
    warp_wait(at, EXCHANGE, mask);
    return t->result;
}

unsigned ballot(site at, unsigned mask, bool truth)
{
    running->value = truth;
    warp_wait(at, BALLOT, mask);
    return (unsigned)running->result;
}

void mma(site at, float (*widen)(uint16_t), float *d, const uint32_t *a, const uint32_t *b)
{
    running->value = 0;
    running->operands = { d, a, b };
    running->widen = widen;
    warp_wait(at, MMA, 0xffffffffu);
}

const void *shared_read(const void *address, size_t bytes)
{
    if (counting) count_access(address, bytes, COUNT_SHARED_READ, __builtin_return_address(0));
    if (!checks) return address;
    if (!arena_inside(address, bytes) || !arena_written[arena_offset(address) / 4])
        arena_access(address, bytes, "a read", false);
    mark_read(arena_mark(address), "shared", arena_offset(address));
    return address;
}

void *shared_write(void *address, size_t bytes)
{
    if (counting) count_access(address, bytes, COUNT_SHARED_WRITE, __builtin_return_address(0));
    if (!checks) return address;
    if (arena_inside(address, bytes) && bytes == 4) arena_written[arena_offset(address) / 4] = true;
    else arena_access(address, bytes, "a write", true);
    mark_write(arena_mark(address), "shared", arena_offset(address));
    return address;
}

void *shared_atomic(void *address, size_t bytes)
{
    if (counting) count_access(address, bytes, COUNT_SHARED_ATOMIC, __builtin_return_address(0));
    if (!checks) return address;
    arena_access(address, bytes, "an atomic", false);
    mark_atomic(arena_mark(address), "shared", arena_offset(address));
    return address;
}

void copy_send(void *to, const void *from, size_t bytes)
{
    const void *place = __builtin_return_address(0);
    if (counting) {
        count_access(from, bytes, COUNT_COPY, place);
        count_access(to, bytes, COUNT_COPY_SHARED, place);
    }
    const unsigned char *source = device_copied(from, bytes);
    if (checks) {
        size_t offset = arena_offset(to);
        arena_access(to, bytes, "an asynchronous copy", true);
        mark_write(arena_mark(to), "shared", offset);
        memset(arena_written + offset / 4, 0, bytes / 4);
    }
    memset(to, 0xff, bytes);
    running->copies.push_back({ (unsigned char *)to, source, bytes, running->groups });
}

void copy_commit()
{
    if (counting) count_access(nullptr, 1, COUNT_COPY_WAIT, __builtin_return_address(0));
    running->groups++;
}

void copy_wait(unsigned but)
{
    if (counting) count_access(nullptr, 1, COUNT_COPY_WAIT, __builtin_return_address(0));
    std::vector<copy> &all = running->copies;
    size_t n = 0;
    for (; n < all.size() && all[n].group + but < running->groups; n++) copy_arrive(all[n]);
    all.erase(all.begin(), all.begin() + (ptrdiff_t)n);
}

void *shared_static(const void *key, size_t bytes)
{
    for (const declaration &d : declarations)
        if (d.key == key) return arena + d.offset;
    size_t offset = (arena_used + 15) / 16 * 16;
    if (offset + bytes > SHARED_MAX)
        defect("bad launch", "%zu bytes of shared memory", offset + bytes);
    declarations.push_back({ key, offset, bytes });
    arena_used = offset + bytes;
    memset(arena_written + offset / 4, 0, (bytes + 3) / 4);
    memset((void *)(arena_marks + offset / 4), 0, (bytes + 3) / 4 * sizeof(mark));
    memset(arena + offset, 0xff, bytes);
    return arena + offset;
}

void *shared_dynamic() { return arena; }

void grid_run(const char *kernel, index3 blocks, index3 size, size_t shared_bytes,
              const std::function<void()> &run)
{
    uint64_t count = (uint64_t)size.x * size.y * size.z, most = (uint64_t)blocks.x * blocks.y;
    if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0 || blocks.x > 0x7fffffff ||
        blocks.y > 65535 || blocks.z > 65535 || count == 0 || count > THREADS_MAX ||
        shared_bytes > SHARED_MAX)
        defect("bad launch", "kernel %s with %u x %u x %u blocks of %u x %u x %u threads and %zu "
               "bytes of shared memory", kernel, blocks.x, blocks.y, blocks.z, size.x, size.y,
               size.z, shared_bytes);
    if (!stacks)
        stacks = (unsigned char *)mmap(nullptr, STACK * THREADS_MAX, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) abort();
    kernel_name = kernel;
    body = &run;
    grid.block_size = size;
    grid.size = blocks;
    threads.resize(count);
    warp_syncs.resize((count + LANES - 1) / LANES);
    declarations.clear();
    arena_used = arena_dynamic = shared_bytes;
    now.launch++;
    launches++;
    if (counting) count_launch(kernel);
    for (uint64_t b = 0; b < most * blocks.z; b++) {
        grid.block = { (unsigned)(b % blocks.x), (unsigned)(b / blocks.x % blocks.y),
                       (unsigned)(b / most) };
        block_run((unsigned)b);
        if (counting) count_block(kernel_name);
    }
}

}

extern "C" int64_t emu_launches(void) { return emu::launches; }
