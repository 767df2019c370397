/* comm/window.c: memory that the ranks of one node share, and its barrier.
 *
 *   segment of rank r:  byte 0              64                      128
 *                       | arrived: epoch    | generation, sleepers  | bytes of the window ...
 *                                             (rank 0's is used)
 *
 * Barrier number e: a rank writes e into its own `arrived`, then reads everyone's; whoever finds
 * that all have arrived (the last one surely does, and perhaps another) sets generation to e and
 * wakes the sleepers; the others wait for generation.  So nobody shares a line that is written
 * often, and who is missing can be read off.  A rank that is slow to set generation cannot set it
 * back: no later epoch is complete without that rank.
 *
 * The flags are C11 atomics in memory that several processes map; they are lock-free, so this works
 * between processes as between threads.  Acquire and release on them order the window's bytes. */
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/memory.h"
#include "comm/backend.h"

enum { LINE = 64, SPINS = 2000, YIELDS = 20, SLEEP_US = 500 };

struct window_head {
    _Atomic uint32_t arrived;
    char pad0[LINE - sizeof(uint32_t)];
    _Atomic uint32_t generation;
    _Atomic uint32_t sleepers;
    char pad1[LINE - 2 * sizeof(uint32_t)];
};
_Static_assert(sizeof(struct window_head) == SF_WINDOW_HEAD, "two lines");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "atomics must work between processes");

struct window_state {
    void *map;                          /* the backend's */
    unsigned char **segment;            /* [size] */
    uint32_t epoch;
};

size_t sf_window_segment(size_t bytes)
{
    return SF_WINDOW_HEAD + (bytes + LINE - 1) / LINE * LINE;
}

static struct window_head *head_of(const struct sf_window *window, int32_t rank)
{
    const struct window_state *state = window->impl;
    return (struct window_head *)(void *)state->segment[rank];
}

/* ---- the barrier ----------------------------------------------------------------------------- */
/* The lowest rank that has not come to barrier `epoch`, or -1. */
static int32_t missing(const struct sf_window *window, uint32_t epoch)
{
    for (int32_t r = 0; r < window->size; r++) {
        uint32_t arrived = atomic_load(&head_of(window, r)->arrived);
        if ((int32_t)(arrived - epoch) < 0) return r;
    }
    return -1;
}

static int open_for(struct window_head *gate, uint32_t epoch)
{
    return (int32_t)(atomic_load(&gate->generation) - epoch) >= 0;
}

static void sleep_at(struct window_head *gate, uint32_t epoch)
{
    struct timespec timeout = { .tv_nsec = SLEEP_US * 1000 };
    atomic_fetch_add(&gate->sleepers, 1);
    uint32_t generation = atomic_load(&gate->generation);
    if ((int32_t)(generation - epoch) < 0)
        syscall(SYS_futex, &gate->generation, FUTEX_WAIT, generation, &timeout, NULL, 0);
    atomic_fetch_sub(&gate->sleepers, 1);
}

static void release(struct window_head *gate, uint32_t epoch)
{
    atomic_store(&gate->generation, epoch);
    if (atomic_load(&gate->sleepers) > 0)
        syscall(SYS_futex, &gate->generation, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

sf_status sf_comm_window_barrier(struct sf_comm *comm, struct sf_window *window)
{
    struct window_state *state = window->impl;
    struct window_head *gate = head_of(window, 0);
    SF_TRY(sf_world_tick(comm->world, sf_now_ns()));
    uint32_t epoch = ++state->epoch;
    atomic_store(&head_of(window, comm->rank)->arrived, epoch);
    if (missing(window, epoch) < 0) {
        release(gate, epoch);
        return SF_OK;
    }
    int32_t spins = comm->world->spin ? SPINS : 0;
    for (int32_t round = 0; round < spins + YIELDS; round++) {
        if (open_for(gate, epoch)) return SF_OK;
        if (round >= spins) sched_yield();
    }
    struct sf_wait wait = sf_wait_begin(comm, "window barrier", comm->rank, 0);
    while (!open_for(gate, epoch)) {
        int32_t peer = missing(window, epoch);
        if (peer < 0) {                 /* whoever found it first may be slow to say so */
            release(gate, epoch);
            break;
        }
        wait.peer = peer;
        SF_TRY(sf_comm_check(&wait));
        sleep_at(gate, epoch);
    }
    return SF_OK;
}

/* ---- creation -------------------------------------------------------------------------------- */
static void window_free(struct sf_window *window)
{
    struct window_state *state = window->impl;
    if (state != NULL) sf_free(state->segment);
    sf_free(state);
    sf_free(window->base);
    sf_free(window);
}

static sf_status window_alloc(int32_t size, struct sf_window **out)
{
    void *window, *impl, *base, *segment;
    SF_TRY(sf_alloc(sizeof(struct sf_window), "window", &window));
    struct sf_window *made = window;
    sf_status status = sf_alloc(sizeof(struct window_state), "window", &impl);
    if (status == SF_OK) {
        made->impl = impl;
        status = sf_alloc((size_t)size * sizeof(unsigned char *), "window", &base);
    }
    if (status == SF_OK) {
        made->base = base;
        status = sf_alloc((size_t)size * sizeof(unsigned char *), "window", &segment);
    }
    if (status != SF_OK) {
        window_free(made);
        return status;
    }
    ((struct window_state *)impl)->segment = segment;
    made->size = size;
    *out = made;
    return SF_OK;
}

/* Where every rank sits is known to all, so all decide alike without asking. */
sf_status sf_comm_window_create(struct sf_comm *comm, size_t bytes, struct sf_window **window_out)
{
    for (int32_t r = 1; r < comm->size; r++)
        if (sf_comm_node(comm, r) != sf_comm_node(comm, 0)) {
            *window_out = NULL;
            return SF_OK;
        }
    struct sf_window *window;
    SF_TRY(window_alloc(comm->size, &window));
    struct window_state *state = window->impl;
    sf_status status = sf_comm_barrier(comm);
    if (status == SF_OK)
        status = comm->world->ops->map(comm, sf_window_segment(bytes), state->segment, &state->map);
    if (status != SF_OK) {
        window_free(window);
        return status;
    }
    window->bytes = bytes;
    for (int32_t r = 0; r < comm->size; r++) window->base[r] = state->segment[r] + SF_WINDOW_HEAD;
    status = sf_comm_barrier(comm);     /* all is zeroed before anyone writes */
    if (status != SF_OK) {
        sf_comm_window_destroy(comm, window);
        return status;
    }
    *window_out = window;
    return SF_OK;
}

void sf_comm_window_destroy(struct sf_comm *comm, struct sf_window *window)
{
    if (window == NULL) return;
    struct window_state *state = window->impl;
    comm->world->ops->unmap(comm, state->map);
    window_free(window);
}
