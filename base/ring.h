/* base/ring.h: a bounded queue of pointers between threads of one process.  Each call that may
 * wait has a timeout; closing wakes every waiter.  The ring does not own what it carries. */
#ifndef SHEAF_BASE_RING_H
#define SHEAF_BASE_RING_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

struct sf_ring;
sf_status sf_ring_create(size_t capacity, struct sf_ring **ring_out);
void      sf_ring_destroy(struct sf_ring *ring);           /* must be empty or abandoned */
/* SF_TIMEOUT when still full (push) or empty (pop) after timeout_ms (0: do not wait); SF_STOPPED
 * after close (pop: once it is empty). */
sf_status sf_ring_push(struct sf_ring *ring, void *item, int64_t timeout_ms);
sf_status sf_ring_pop(struct sf_ring *ring, int64_t timeout_ms, void **item_out);
void      sf_ring_close(struct sf_ring *ring);

SF_C_END
#endif
