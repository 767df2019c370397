/* base/ring.c: the queue is a circle of bytes under one lock.
 *
 *   block   [ m 1 . . . . . | head | message 0 | head | messag ]     first = 7, held = all but '.'
 *                             ^first                  wraps ^
 *
 * A message follows its head and is cut where the block ends.  A block that is too small is
 * replaced by one twice as large; the bound is on the number of messages.
 *
 * Two conditions, "there is room" and "there is a message", each signalled once per message; close
 * wakes everybody. */
#include "base/ring.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"

struct head { struct sf_envelope envelope; size_t count; };
struct sf_ring {
    pthread_mutex_t lock;
    pthread_cond_t room, message;
    size_t messages_max, messages;
    int closed;
    unsigned char *block;
    size_t bytes, first, held;          /* size of the block; first byte held; bytes held */
};

enum { NS_PER_S = 1000000000, BYTES_MIN = 1 << 16 };
/* Longer waits are cut to this, so that no sum of times overflows: about 31 years. */
static const int64_t wait_ms_max = 1000000000000;

/* ---- bytes in and out ------------------------------------------------------------------------ */
static void put(struct sf_ring *ring, const void *from, size_t count)
{
    size_t at = (ring->first + ring->held) % ring->bytes, whole = ring->bytes - at;
    SF_ASSERT(count <= ring->bytes - ring->held);
    if (whole > count) whole = count;
    if (whole > 0) memcpy(ring->block + at, from, whole);
    if (count > whole) memcpy(ring->block, (const unsigned char *)from + whole, count - whole);
    ring->held += count;
}

static void get(struct sf_ring *ring, void *to, size_t count)
{
    size_t whole = ring->bytes - ring->first;
    SF_ASSERT(count <= ring->held);
    if (whole > count) whole = count;
    if (whole > 0) memcpy(to, ring->block + ring->first, whole);
    if (count > whole) memcpy((unsigned char *)to + whole, ring->block, count - whole);
    ring->first = (ring->first + count) % ring->bytes;
    ring->held -= count;
}

static sf_status make_room(struct sf_ring *ring, size_t count)
{
    if (count <= ring->bytes - ring->held) return SF_OK;
    size_t held = ring->held, wanted = 2 * (held + count);
    unsigned char *block = count < PTRDIFF_MAX / 2 - held ? malloc(wanted) : NULL;
    if (block == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %zu bytes in a queue that holds %zu", count,
                       held);
    get(ring, block, held);
    free(ring->block);
    ring->block = block;
    ring->bytes = wanted;
    ring->first = 0;
    ring->held = held;
    return SF_OK;
}

static sf_status put_message(struct sf_ring *ring, struct sf_envelope envelope, const void *bytes,
                             size_t count)
{
    struct head head = { envelope, count };
    if (count > PTRDIFF_MAX - sizeof head)
        return SF_FAIL(SF_NO_MEMORY, "a message of %zu bytes", count);
    SF_TRY(make_room(ring, sizeof head + count));
    put(ring, &head, sizeof head);
    put(ring, bytes, count);
    ring->messages++;
    pthread_cond_signal(&ring->message);
    return SF_OK;
}

static sf_status get_message(struct sf_ring *ring, struct sf_envelope *envelope_out,
                             struct sf_buffer *bytes_out)
{
    struct head head;
    size_t first = ring->first, held = ring->held;
    get(ring, &head, sizeof head);
    sf_status status = sf_buffer_reserve(bytes_out, head.count);
    if (status != SF_OK) {              /* it stays the next one */
        ring->first = first;
        ring->held = held;
        return status;
    }
    get(ring, bytes_out->bytes, head.count);
    bytes_out->count = head.count;
    *envelope_out = head.envelope;
    ring->messages--;
    pthread_cond_signal(&ring->room);
    return SF_OK;
}

/* ---- waiting --------------------------------------------------------------------------------- */
/* The monotonic time `timeout_ms` from now, as the conditions want it. */
static struct timespec deadline_after(int64_t timeout_ms)
{
    if (timeout_ms > wait_ms_max) timeout_ms = wait_ms_max;
    int64_t ns = sf_now_ns() + timeout_ms % 1000 * 1000000;
    return (struct timespec){ .tv_sec = (time_t)(ns / NS_PER_S + timeout_ms / 1000),
                              .tv_nsec = (long)(ns % NS_PER_S) };
}

/* Finding the ring full or empty without waiting is an answer, not an error: it gets no words and
 * leaves the last error's alone. */
static sf_status timed_out(const struct sf_ring *ring, const char *state, int64_t timeout_ms)
{
    if (timeout_ms == 0) return SF_TIMEOUT;
    return SF_FAIL(SF_TIMEOUT, "queue of %zu messages still %s after %lld ms", ring->messages_max,
                   state, (long long)timeout_ms);
}

sf_status sf_ring_push(struct sf_ring *ring, struct sf_envelope envelope, const void *bytes,
                       size_t count, int64_t timeout_ms)
{
    SF_ASSERT(timeout_ms >= 0);
    struct timespec deadline = deadline_after(timeout_ms);
    sf_status status;
    int late = timeout_ms == 0;
    pthread_mutex_lock(&ring->lock);
    while (ring->messages == ring->messages_max && !ring->closed && !late)
        late = pthread_cond_timedwait(&ring->room, &ring->lock, &deadline) == ETIMEDOUT;
    if (ring->closed)
        status = SF_FAIL(SF_STOPPED, "queue of %zu messages is closed", ring->messages_max);
    else if (ring->messages == ring->messages_max)
        status = timed_out(ring, "full", timeout_ms);
    else
        status = put_message(ring, envelope, bytes, count);
    pthread_mutex_unlock(&ring->lock);
    return status;
}

sf_status sf_ring_pop(struct sf_ring *ring, int64_t timeout_ms, struct sf_envelope *envelope_out,
                      struct sf_buffer *bytes_out)
{
    SF_ASSERT(timeout_ms >= 0);
    struct timespec deadline = deadline_after(timeout_ms);
    sf_status status;
    int late = timeout_ms == 0;
    pthread_mutex_lock(&ring->lock);
    while (ring->messages == 0 && !ring->closed && !late)
        late = pthread_cond_timedwait(&ring->message, &ring->lock, &deadline) == ETIMEDOUT;
    if (ring->messages > 0)
        status = get_message(ring, envelope_out, bytes_out);
    else if (ring->closed)
        status = SF_FAIL(SF_STOPPED, "queue of %zu messages is closed", ring->messages_max);
    else
        status = timed_out(ring, "empty", timeout_ms);
    pthread_mutex_unlock(&ring->lock);
    return status;
}

void sf_ring_close(struct sf_ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    ring->closed = 1;
    pthread_cond_broadcast(&ring->room);
    pthread_cond_broadcast(&ring->message);
    pthread_mutex_unlock(&ring->lock);
}

/* ---- life ------------------------------------------------------------------------------------ */
sf_status sf_ring_create(size_t messages_max, struct sf_ring **ring_out)
{
    SF_ASSERT(messages_max > 0);
    struct sf_ring *ring = calloc(1, sizeof *ring);
    unsigned char *block = malloc(BYTES_MIN);
    if (ring == NULL || block == NULL) {
        free(ring);
        free(block);
        return SF_FAIL(SF_NO_MEMORY, "no memory for a queue of %zu messages", messages_max);
    }
    ring->messages_max = messages_max;
    ring->block = block;
    ring->bytes = BYTES_MIN;
    /* On Linux none of these can fail: they only fill in the structs. */
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&ring->lock, NULL);
    pthread_cond_init(&ring->room, &monotonic);
    pthread_cond_init(&ring->message, &monotonic);
    pthread_condattr_destroy(&monotonic);
    *ring_out = ring;
    return SF_OK;
}

void sf_ring_destroy(struct sf_ring *ring)
{
    if (ring == NULL) return;
    pthread_cond_destroy(&ring->message);
    pthread_cond_destroy(&ring->room);
    pthread_mutex_destroy(&ring->lock);
    free(ring->block);
    free(ring);
}
