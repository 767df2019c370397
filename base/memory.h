/* base/memory.h: allocation with a status, aligned to cache lines, and growing arrays. */
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

/* One contiguous block handed out by moving a pointer; taken back all at once.  Step lifetime. */
struct sf_arena { unsigned char *base; size_t bytes, used, peak; };
sf_status sf_arena_create(size_t bytes, const char *what, struct sf_arena *arena_out);
void      sf_arena_destroy(struct sf_arena *arena);
/* Aligned to SF_ALIGN, not zeroed.  NULL when the arena is full. */
void     *sf_arena_take(struct sf_arena *arena, size_t bytes);
static inline void sf_arena_reset(struct sf_arena *arena) { arena->used = 0; }

SF_C_END
#endif
