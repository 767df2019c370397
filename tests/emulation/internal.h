/* tests/emulation/internal.h: what the files of the emulation know of each other. */
#ifndef SHEAF_TESTS_EMULATION_INTERNAL_H
#define SHEAF_TESTS_EMULATION_INTERNAL_H
#include <functional>
#include <mutex>
#include "tests/emulation/emulation.h"
#include "tests/emulation/kernel.h"

namespace emu {

/* Held by every call of the runtime; kernels run inside of one, so several ranks may live in one
 * process as threads. */
extern std::recursive_mutex lock;
extern bool checks, reversed;

[[noreturn]] void defect(const char *kind, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* ", in kernel NAME, block .., thread .." of the running thread, or "". */
const char *where();
bool in_kernel();

/* When an access happened, as the order of accesses knows it: `thread` counts through the grid
 * (block * 1024 + thread), `barrier` the barriers of the block and `warp_sync` the __syncwarp of
 * the warp so far. */
struct moment { uint32_t launch, thread, barrier, warp_sync; };
extern moment now;

/* The last write and the last reads of one place. */
struct mark {
    moment write, read;
    enum readers : uint8_t { ONE, WARP, BLOCK, GRID } readers;
};
void mark_read(mark *, const char *space, size_t offset);
void mark_write(mark *, const char *space, size_t offset);
void mark_atomic(mark *, const char *space, size_t offset);

/* Counting (count.cpp), only where `counting`: an access (or a call of a special function or a wait
 * for copies, address NULL) of the running thread from a place in the code; the end of a block; a
 * launch; an instruction of a whole warp.  A copy is two accesses, one on either side. */
extern bool counting;
enum count_way : uint8_t { COUNT_READ, COUNT_WRITE, COUNT_ATOMIC, COUNT_SHARED_READ,
                           COUNT_SHARED_WRITE, COUNT_SHARED_ATOMIC, COUNT_SPECIAL, COUNT_COPY,
                           COUNT_COPY_SHARED, COUNT_COPY_WAIT };
void count_access(const void *address, size_t bytes, count_way, const void *place);
void count_block(const char *kernel);
void count_launch(const char *kernel);
void count_warp(const char *kernel, int64_t emu_count::*which);

/* What the lanes of a warp give to one product of the tensor cores. */
struct mma_lane { float *d; const uint32_t *a, *b; };
void mma_run(float (*widen)(uint16_t), const mma_lane *lanes);

/* Where `bytes` bytes of device memory really are; must lie in one allocation. */
unsigned char *device_range(const void *address, size_t bytes, const char *what);
/* The same of what the running kernel copies asynchronously: checked as a read, not counted. */
const unsigned char *device_copied(const void *address, size_t bytes);
bool is_device(const void *address);
bool is_pinned(const void *address);    /* inside of a block of cudaHostAlloc */
void *device_alloc(size_t bytes);
void device_free(void *block);

/* Work that may have to wait for another rank: `attempt` goes on as far as it can, never waits, and
 * says whether it is done; it is called again until it is.  The stream then belongs to the calling
 * thread's device.  `whom` names what it waits for, for words. */
void stream_push_waiting(emu_stream *stream, std::function<bool()> attempt);
extern char whom[128];
bool stream_exists(emu_stream *stream);
/* Communicators that have not been destroyed or aborted. */
extern int communicators;

}
#endif
