/* tests/alloc/count.c: counts the allocations of a running process by their callers, for
 * tests/e2e/allocations.py.  A library for LD_PRELOAD; the process knows nothing of it.
 *
 * The process maps a file, PREFIX.<process id>, where PREFIX is $SHEAF_COUNT_ALLOCATIONS.  Whoever
 * maps it too starts the count by a 1 in the first word, ends it by a 0, and reads the callers:
 *
 *   byte 0        4       8          128          256
 *        | armed  | lost  | unused   | caller 0   | caller 1  | ...       [CALLERS]
 *   caller:  byte 0     8       16           24                128
 *                 | key | count | frames     | address [FRAMES]          key 0: a free place
 *
 * The first address is where the allocating call returns to, the others are those of the calls
 * around it.  lost: calls that found no place.
 *
 * A call of malloc is answered by glibc's own entry behind it, so that looking for the next one
 * (dlsym allocates) is not needed.  Freeing is not counted: what is freed was allocated. */
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CALLERS = 4096, FRAMES = 13, OWN_FRAMES = 4 };

struct caller {
    _Atomic uint64_t key, count;
    _Atomic uint64_t frames;            /* written last: the addresses are there */
    uint64_t address[FRAMES];
};
struct table {
    _Atomic uint32_t armed, lost;
    uint64_t unused[15];
    struct caller caller[CALLERS];
};
_Static_assert(sizeof(struct caller) == 128 && offsetof(struct table, caller) == 128, "as drawn");

static struct table *table;
static _Thread_local int inside __attribute__((tls_model("initial-exec")));

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *block, size_t bytes);
void *__libc_memalign(size_t border, size_t bytes);

/* ---- counting -------------------------------------------------------------------------------- */
static uint64_t key_of(void *const *address, int frames)
{
    uint64_t key = 14695981039346656037u;
    for (int i = 0; i < frames; i++) key = (key ^ (uint64_t)(uintptr_t)address[i]) * 1099511628211u;
    return key | 1;
}

/* The place of these addresses, or NULL when all are taken; many threads may ask at once. */
static struct caller *caller_of(void *const *address, int frames)
{
    uint64_t key = key_of(address, frames);
    for (uint64_t i = 0; i < CALLERS; i++) {
        struct caller *caller = &table->caller[(key + i) % CALLERS];
        uint64_t found = 0;
        if (atomic_compare_exchange_strong(&caller->key, &found, key)) {
            for (int f = 0; f < frames; f++) caller->address[f] = (uint64_t)(uintptr_t)address[f];
            atomic_store(&caller->frames, (uint64_t)frames);
            return caller;
        }
        if (found == key) return caller;
    }
    return NULL;
}

static void count(void *returns_to)
{
    if (table == NULL || inside || !atomic_load_explicit(&table->armed, memory_order_relaxed))
        return;
    inside = 1;
    void *address[OWN_FRAMES + FRAMES];
    int frames = backtrace(address, OWN_FRAMES + FRAMES), first = 0;
    while (first < frames && address[first] != returns_to) first++;
    if (first == frames) {              /* no way to walk up from there */
        address[0] = returns_to;
        first = 0;
        frames = 1;
    }
    frames -= first;
    struct caller *caller = caller_of(address + first, frames < FRAMES ? frames : FRAMES);
    if (caller != NULL) atomic_fetch_add(&caller->count, 1);
    else atomic_fetch_add(&table->lost, 1);
    inside = 0;
}

/* The first walk up the stack loads a library; that is done before anything is counted. */
__attribute__((constructor)) static void open_table(void)
{
    const char *prefix = getenv("SHEAF_COUNT_ALLOCATIONS");
    char path[4096];
    void *address[2];
    if (prefix == NULL || backtrace(address, 2) == 0) return;
    snprintf(path, sizeof path, "%s.%ld", prefix, (long)getpid());
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0) return;
    if (ftruncate(file, sizeof *table) == 0) {
        void *map = mmap(NULL, sizeof *table, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (map != MAP_FAILED) table = map;
    }
    close(file);
}

/* ---- what is counted ------------------------------------------------------------------------- */
#define COUNT() count(__builtin_return_address(0))

void *malloc(size_t bytes)
{
    COUNT();
    return __libc_malloc(bytes);
}

void *calloc(size_t items, size_t bytes)
{
    COUNT();
    return __libc_calloc(items, bytes);
}

void *realloc(void *block, size_t bytes)
{
    COUNT();
    return __libc_realloc(block, bytes);
}

void *memalign(size_t border, size_t bytes)
{
    COUNT();
    return __libc_memalign(border, bytes);
}

void *aligned_alloc(size_t border, size_t bytes)
{
    COUNT();
    return __libc_memalign(border, bytes);
}

int posix_memalign(void **block_out, size_t border, size_t bytes)
{
    COUNT();
    void *block = __libc_memalign(border, bytes);
    if (block == NULL) return ENOMEM;
    *block_out = block;
    return 0;
}

void *mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset)
{
    COUNT();
    /* The kernel answers with an address or, as syscall says it, -1: MAP_FAILED. */
    return (void *)(intptr_t)syscall(SYS_mmap, at, bytes, protection, flags, file, offset);
}

void *mmap64(void *at, size_t bytes, int protection, int flags, int file, off64_t offset)
{
    COUNT();
    return (void *)(intptr_t)syscall(SYS_mmap, at, bytes, protection, flags, file, offset);
}
