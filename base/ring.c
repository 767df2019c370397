/* base/ring.c: the queue is a circle of slots under one lock.
 *
 *   items   [ . . a b c . . . ]      first = 2, used = 3, capacity = 8
 *                 ^first  ^next push at (first + used) mod capacity
 *
 * Two conditions, "there is room" and "there is an item", each signalled once per item; close
 * wakes everybody. */
#include "base/ring.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"

struct sf_ring {
    pthread_mutex_t lock;
    pthread_cond_t room, item;
    size_t capacity, first, used;
    int closed;
    void *items[];
};

enum { NS_PER_S = 1000000000 };
/* Longer waits are cut to this, so that no sum of times overflows: about 31 years. */
static const int64_t wait_ms_max = 1000000000000;

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
    return SF_FAIL(SF_TIMEOUT, "queue of %zu items still %s after %lld ms", ring->capacity, state,
                   (long long)timeout_ms);
}

sf_status sf_ring_push(struct sf_ring *ring, void *item, int64_t timeout_ms)
{
    SF_ASSERT(timeout_ms >= 0);
    struct timespec deadline = deadline_after(timeout_ms);
    sf_status status = SF_OK;
    int late = timeout_ms == 0;
    pthread_mutex_lock(&ring->lock);
    while (ring->used == ring->capacity && !ring->closed && !late)
        late = pthread_cond_timedwait(&ring->room, &ring->lock, &deadline) == ETIMEDOUT;
    if (ring->closed) {
        status = SF_FAIL(SF_STOPPED, "queue of %zu items is closed", ring->capacity);
    } else if (ring->used == ring->capacity) {
        status = timed_out(ring, "full", timeout_ms);
    } else {
        ring->items[(ring->first + ring->used) % ring->capacity] = item;
        ring->used++;
        pthread_cond_signal(&ring->item);
    }
    pthread_mutex_unlock(&ring->lock);
    return status;
}

sf_status sf_ring_pop(struct sf_ring *ring, int64_t timeout_ms, void **item_out)
{
    SF_ASSERT(timeout_ms >= 0);
    struct timespec deadline = deadline_after(timeout_ms);
    sf_status status = SF_OK;
    int late = timeout_ms == 0;
    pthread_mutex_lock(&ring->lock);
    while (ring->used == 0 && !ring->closed && !late)
        late = pthread_cond_timedwait(&ring->item, &ring->lock, &deadline) == ETIMEDOUT;
    if (ring->used > 0) {
        *item_out = ring->items[ring->first];
        ring->first = (ring->first + 1) % ring->capacity;
        ring->used--;
        pthread_cond_signal(&ring->room);
    } else if (ring->closed) {
        status = SF_FAIL(SF_STOPPED, "queue of %zu items is closed", ring->capacity);
    } else {
        status = timed_out(ring, "empty", timeout_ms);
    }
    pthread_mutex_unlock(&ring->lock);
    return status;
}

void sf_ring_close(struct sf_ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    ring->closed = 1;
    pthread_cond_broadcast(&ring->room);
    pthread_cond_broadcast(&ring->item);
    pthread_mutex_unlock(&ring->lock);
}

sf_status sf_ring_create(size_t capacity, struct sf_ring **ring_out)
{
    SF_ASSERT(capacity > 0);
    struct sf_ring *ring = NULL;
    if (capacity < (PTRDIFF_MAX - sizeof *ring) / sizeof *ring->items)
        ring = calloc(1, sizeof *ring + capacity * sizeof *ring->items);
    if (ring == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a queue of %zu items", capacity);
    ring->capacity = capacity;
    /* On Linux none of these can fail: they only fill in the structs. */
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&ring->lock, NULL);
    pthread_cond_init(&ring->room, &monotonic);
    pthread_cond_init(&ring->item, &monotonic);
    pthread_condattr_destroy(&monotonic);
    *ring_out = ring;
    return SF_OK;
}

void sf_ring_destroy(struct sf_ring *ring)
{
    if (ring == NULL) return;
    pthread_cond_destroy(&ring->item);
    pthread_cond_destroy(&ring->room);
    pthread_mutex_destroy(&ring->lock);
    free(ring);
}
