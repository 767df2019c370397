/* base/ring.h: a bounded queue of messages between threads of one process.  Each call that may
 * wait has a timeout; closing wakes every waiter.
 *
 * Bytes are copied in and out: the sender keeps its memory, the receiver's buffer is filled, and
 * the ring keeps its own.  So nothing is allocated once the longest message and the deepest
 * backlog have been. */
#ifndef SHEAF_BASE_RING_H
#define SHEAF_BASE_RING_H
#include <stddef.h>
#include <stdint.h>
#include "base/memory.h"
#include "base/status.h"
SF_C_BEGIN

struct sf_ring;
struct sf_envelope { int32_t group, tag; };     /* what is written on a message; the callers' */

sf_status sf_ring_create(size_t messages_max, struct sf_ring **ring_out);
void      sf_ring_destroy(struct sf_ring *ring);        /* with what is still in it; NULL is fine */
/* SF_TIMEOUT when still full (push) or empty (pop) after timeout_ms (0: do not wait); SF_STOPPED
 * after close (pop: once it is empty); SF_NO_MEMORY, and the message is where it was. */
sf_status sf_ring_push(struct sf_ring *ring, struct sf_envelope envelope, const void *bytes,
                       size_t count, int64_t timeout_ms);
sf_status sf_ring_pop(struct sf_ring *ring, int64_t timeout_ms, struct sf_envelope *envelope_out,
                      struct sf_buffer *bytes_out);
void      sf_ring_close(struct sf_ring *ring);

SF_C_END
#endif
