/* base/memory.h: allocation with a status, aligned to cache lines, and growing arrays;
 * buffers and boxes, which keep their memory from one use to the next. */
#ifndef SHEAF_BASE_MEMORY_H
#define SHEAF_BASE_MEMORY_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

enum { SF_ALIGN = 64 };

/* Zeroed, aligned to SF_ALIGN.  SF_NO_MEMORY names `what` and the size.  Freed by sf_free. */
sf_status sf_alloc(size_t bytes, const char *what, void **out);
void      sf_free(void *block);                 /* NULL is fine */
/* malloc'd array `*items` of `*capacity` elements made to hold `needed`; contents are kept, new
 * elements are not zeroed.  Freed by free(). */
sf_status sf_grow(void **items, size_t *capacity, size_t needed, size_t item_bytes);
/* Anonymous mapping on huge pages where the system gives them; populate: touch it now.
 * SF_NO_MEMORY if not to be had.  Freed by sf_unmap with the same size. */
sf_status sf_map(size_t bytes, int populate, const char *what, void **out);
void      sf_unmap(void *block, size_t bytes);
/* The peak of this process's resident memory (getrusage) is what it is now, where the system can
 * be told so; elsewhere it stays. */
void      sf_memory_forget_peak(void);

/* Bytes that a writer fills and whose owner keeps the memory for the next time.  Starts zeroed. */
struct sf_buffer { unsigned char *bytes; size_t count, capacity; };     /* count: filled */
/* Makes capacity at least `bytes`; what is there is kept.  `count` is the writer's.  If it has to
 * grow there is room for twice of it: the next message of a kind may be a little longer. */
sf_status sf_buffer_reserve(struct sf_buffer *buffer, size_t bytes);
void      sf_buffer_free(struct sf_buffer *buffer);

/* The memory of one thing of many pieces, such as an unpacked message, that lives until the next
 * one: a block handed out by moving a pointer and taken back all at once.  A thing that does not
 * fit gets the rest of its pieces from malloc, and the next reset makes the block large enough for
 * it, so a box that has seen its largest thing allocates nothing.  Starts zeroed. */
struct sf_box {
    unsigned char *block; size_t bytes, used;
    size_t taken;                               /* since the reset, in the block and beside it */
    struct sf_box_piece *beside;                /* pieces that did not fit */
};
/* Aligned for any type, not zeroed.  NULL when there is no memory (without words). */
void     *sf_box_take(struct sf_box *box, size_t bytes);
void      sf_box_reset(struct sf_box *box);     /* all that was taken is gone */
void      sf_box_free(struct sf_box *box);      /* zeroed again */

SF_C_END
#endif
