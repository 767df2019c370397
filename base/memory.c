/* base/memory.c: aligned blocks, growing arrays, mappings on huge pages, buffers, boxes. */
#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Since Linux 5.14; older headers do not have it, older kernels refuse it and pages are touched. */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#if defined(__SANITIZE_ADDRESS__)
#define SF_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SF_ASAN 1
#endif
#endif
#ifdef SF_ASAN
#include <sanitizer/asan_interface.h>
static void poison(void *at, size_t bytes) { ASAN_POISON_MEMORY_REGION(at, bytes); }
static void unpoison(void *at, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(at, bytes); }
#else
#define SF_ASAN 0
static void poison(void *at, size_t bytes) { (void)at, (void)bytes; }
static void unpoison(void *at, size_t bytes) { (void)at, (void)bytes; }
#endif

static const size_t huge_page_bytes = (size_t)2 << 20;

static sf_status populate_pages(unsigned char *block, size_t bytes, const char *what);

void sf_memory_forget_peak(void)
{
    int file = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);     /* proc(5) */
    if (file < 0) return;
    ssize_t written = write(file, "5", 1);
    (void)written;                      /* where it is refused, the peak stays */
    close(file);
}

sf_status sf_alloc(size_t bytes, const char *what, void **out)
{
    size_t rounded = bytes == 0 ? SF_ALIGN : (bytes + SF_ALIGN - 1) / SF_ALIGN * SF_ALIGN;
    void *block = bytes > PTRDIFF_MAX ? NULL : aligned_alloc(SF_ALIGN, rounded);
    if (block == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %s: %zu bytes", what, bytes);
    memset(block, 0, rounded);
    *out = block;
    return SF_OK;
}

void sf_free(void *block)
{
    free(block);
}

/* Doubles, so that n appends cost O(n).  Callers pass the address of a pointer of their own type;
 * it is read and written as bytes, which is right for any of them. */
sf_status sf_grow(void **items, size_t *capacity, size_t needed, size_t item_bytes)
{
    SF_ASSERT(item_bytes > 0);
    if (needed <= *capacity) return SF_OK;
    size_t most = PTRDIFF_MAX / item_bytes;
    size_t wanted = *capacity > most / 2 ? most : *capacity * 2;
    if (wanted < 8 && most >= 8) wanted = 8;
    if (wanted < needed) wanted = needed;
    void *block, *grown;
    memcpy(&block, (void *)items, sizeof block);
    grown = wanted > most ? NULL : realloc(block, wanted * item_bytes);
    if (grown == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for an array of %zu items of %zu bytes", wanted,
                       item_bytes);
    memcpy((void *)items, &grown, sizeof grown);
    *capacity = wanted;
    return SF_OK;
}

/* A block of at least one huge page starts on a huge page border: more is reserved than needed and
 * the ends are given back.  The advice stands before the first touch, or small pages would already
 * be there; it is only advice, and a refusal is no failure.
 *
 *      reserved           border                       border + bytes
 *      |-- given back ----|============ block ==========|-- given back --| */
sf_status sf_map(size_t bytes, int populate, const char *what, void **out)
{
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    size_t slack = bytes >= huge_page_bytes ? huge_page_bytes : 0;
    if (bytes > PTRDIFF_MAX - page_bytes - slack)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %s: %zu bytes", what, bytes);
    size_t rounded = bytes == 0 ? page_bytes : (bytes + page_bytes - 1) / page_bytes * page_bytes;
    unsigned char *reserved = mmap(NULL, rounded + slack, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (reserved == MAP_FAILED)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %s: %zu bytes: %s", what, bytes,
                       strerror(errno));
    unsigned char *block = reserved;
    if (slack > 0) {
        size_t past = (uintptr_t)reserved % huge_page_bytes;
        size_t before = past == 0 ? 0 : huge_page_bytes - past;
        block = reserved + before;
        if (before > 0) munmap(reserved, before);
        if (slack > before) munmap(block + rounded, slack - before);
        madvise(block, rounded, MADV_HUGEPAGE);
    }
    if (populate) {
        sf_status status = populate_pages(block, rounded, what);
        if (status != SF_OK) {
            sf_unmap(block, bytes);
            return status;
        }
    }
    *out = block;
    return SF_OK;
}

static sf_status populate_pages(unsigned char *block, size_t bytes, const char *what)
{
    int failed;
    do failed = madvise(block, bytes, MADV_POPULATE_WRITE) != 0;
    while (failed && (errno == EINTR || errno == EAGAIN));
    if (!failed) return SF_OK;
    if (errno != EINVAL && errno != ENOSYS)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %s: %zu bytes: %s", what, bytes,
                       strerror(errno));
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < bytes; i += page_bytes) ((volatile unsigned char *)block)[i] = 0;
    return SF_OK;
}

void sf_unmap(void *block, size_t bytes)
{
    if (block == NULL) return;
    int failed = munmap(block, bytes == 0 ? 1 : bytes);
    SF_ASSERT(!failed);
}

sf_status sf_buffer_reserve(struct sf_buffer *buffer, size_t bytes)
{
    SF_ASSERT(buffer->count <= buffer->capacity);
    if (bytes <= buffer->capacity) return SF_OK;
    size_t wanted = bytes < PTRDIFF_MAX / 2 ? 2 * bytes : bytes;
    return sf_grow((void **)&buffer->bytes, &buffer->capacity, wanted, 1);
}

void sf_buffer_free(struct sf_buffer *buffer)
{
    free(buffer->bytes);
    *buffer = (struct sf_buffer){ 0 };
}

/* ---- boxes ----
 *
 *   block  | piece | piece | free ...     |      beside -> piece -> piece
 *          0               used           bytes
 *
 * Pieces start on borders of PIECE_ALIGN bytes, in the block as beside it, so that `taken` is just
 * the size of a block that holds all of them.  Under the address sanitizer what is not handed out
 * is poisoned and each piece has a gap behind it: a read past the end of an array or after a reset
 * shows as it would with malloc. */
enum { PIECE_ALIGN = 16, PIECE_GAP = SF_ASAN ? PIECE_ALIGN : 0 };
_Static_assert(PIECE_ALIGN % _Alignof(max_align_t) == 0, "a piece holds any type");

struct sf_box_piece { _Alignas(PIECE_ALIGN) struct sf_box_piece *next; };

void *sf_box_take(struct sf_box *box, size_t bytes)
{
    SF_ASSERT(box->used <= box->bytes);
    if (bytes > PTRDIFF_MAX - box->taken - 4 * PIECE_ALIGN) return NULL;
    size_t rounded = bytes == 0 ? PIECE_ALIGN : (bytes + PIECE_ALIGN - 1) / PIECE_ALIGN *
                                                    PIECE_ALIGN;
    rounded += PIECE_GAP;
    if (rounded <= box->bytes - box->used) {
        void *piece = box->block + box->used;
        box->used += rounded;
        box->taken += rounded;
        unpoison(piece, bytes);
        return piece;
    }
    struct sf_box_piece *piece = malloc(sizeof *piece + bytes);
    if (piece == NULL) return NULL;
    piece->next = box->beside;
    box->beside = piece;
    box->taken += rounded;
    return piece + 1;
}

static void free_beside(struct sf_box *box)
{
    while (box->beside != NULL) {
        struct sf_box_piece *piece = box->beside;
        box->beside = piece->next;
        free(piece);
    }
}

/* If there is no memory for a larger block the box has none: its pieces come one by one. */
void sf_box_reset(struct sf_box *box)
{
    free_beside(box);
    if (box->taken > box->bytes) {
        size_t wanted = box->taken < box->bytes * 2 ? box->bytes * 2 : box->taken;
        free(box->block);
        box->block = malloc(wanted);
        box->bytes = box->block != NULL ? wanted : 0;
    }
    box->used = box->taken = 0;
    if (box->block != NULL) poison(box->block, box->bytes);
}

void sf_box_free(struct sf_box *box)
{
    free_beside(box);
    free(box->block);
    *box = (struct sf_box){ 0 };
}
