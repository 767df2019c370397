/* comm/loopback.c: ranks as threads of one process, and the single rank.
 *
 *   loop_world, shared by the ranks; the last to leave frees it
 *     box[rank]: messages on their way to that rank, in the order sent, under its lock
 *        message -> message -> ...      each lies in the request of its sender
 *
 * A message is not copied on the way: the receiver unlinks it, copies the sender's bytes, and marks
 * it done, as a large message under MPI.  So a send is complete only when it has been received, and
 * a program that relies on a send completing by itself fails here first.  A message matches by the
 * group's context number, its channel, the sender's rank in the group and the tag. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "base/memory.h"
#include "comm/backend.h"

struct loop_message {
    struct loop_message *next;
    struct sf_request *request;
    uint64_t context;
    enum sf_channel channel;
    int32_t from, from_world, tag;
    uint8_t linked, orphan;             /* under the receiver's lock */
    _Atomic uint8_t done;
};
_Static_assert(sizeof(struct loop_message) <= sizeof((struct sf_request *)0)->backend.bytes,
               "a message lies in its request");

struct loop_box {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct loop_message *first, **last;
    uint64_t changes;                   /* messages come and sends done */
    uint64_t seen;                      /* changes at the owner's last look */
    char pad[64];
};

struct loop_world {
    int32_t size;
    _Atomic int32_t present;
    _Atomic uint64_t context;           /* next free one */
    _Atomic int ended;                  /* exit code + 1, or 0 */
    struct loop_box *box;
    _Atomic(struct loop_map *) maps;    /* all windows ever made; freed with the world */
};

struct loop_group { uint64_t context; };

static struct loop_world *loop_of(const struct sf_world *world)
{
    return world->backend;
}

static struct loop_message *message_of(struct sf_request *request)
{
    return (struct loop_message *)(void *)request->backend.bytes;
}

static void ring_bell(struct loop_box *box)         /* under its lock */
{
    box->changes++;
    pthread_cond_signal(&box->changed);
}

/* ---- messages -------------------------------------------------------------------------------- */
static sf_status loop_send(struct sf_request *request)
{
    const struct sf_comm *comm = request->comm;
    const struct loop_group *group = comm->backend;
    struct loop_message *message = message_of(request);
    *message = (struct loop_message){ .request = request, .context = group->context,
                                      .channel = request->channel, .from = comm->rank,
                                      .from_world = comm->world->rank, .tag = request->tag,
                                      .linked = 1 };
    struct loop_box *box = &loop_of(comm->world)->box[request->to_world];
    pthread_mutex_lock(&box->lock);
    *box->last = message;
    box->last = &message->next;
    ring_bell(box);
    pthread_mutex_unlock(&box->lock);
    return SF_OK;
}

static sf_status loop_sent(struct sf_request *request, int *done_out)
{
    *done_out = atomic_load_explicit(&message_of(request)->done, memory_order_acquire);
    return SF_OK;
}

static void unlink_message(struct loop_box *box, struct loop_message **link)
{
    struct loop_message *message = *link;
    *link = message->next;
    if (*link == NULL) box->last = link;
    message->linked = 0;
}

static int loop_drop(struct sf_world *world, struct sf_request *request, int orphan)
{
    struct loop_message *message = message_of(request);
    struct loop_box *box = &loop_of(world)->box[request->to_world];
    pthread_mutex_lock(&box->lock);
    int linked = message->linked;
    if (linked && orphan) {
        message->orphan = 1;
    } else if (linked) {
        struct loop_message **link = &box->first;
        while (*link != message) link = &(*link)->next;
        unlink_message(box, link);
    }
    pthread_mutex_unlock(&box->lock);
    if (linked) return orphan;
    /* The receiver is copying this very moment. */
    while (!atomic_load_explicit(&message->done, memory_order_acquire)) sched_yield();
    return 0;
}

static sf_status loop_match(struct sf_comm *comm, enum sf_channel channel, int32_t from,
                            int32_t tag, struct sf_incoming *incoming, int *found_out)
{
    const struct loop_group *group = comm->backend;
    struct loop_box *box = &loop_of(comm->world)->box[comm->world->rank];
    pthread_mutex_lock(&box->lock);
    struct loop_message **link = &box->first;
    while (*link != NULL) {
        const struct loop_message *m = *link;
        if (m->context == group->context && m->channel == channel &&
            (from == SF_RANK_ANY || m->from == from) && (tag == SF_TAG_ANY || m->tag == tag))
            break;
        link = &(*link)->next;
    }
    struct loop_message *message = *link;
    if (message != NULL) unlink_message(box, link);
    else if (channel != SF_CHANNEL_LIFE) box->seen = box->changes;
    pthread_mutex_unlock(&box->lock);
    *found_out = message != NULL;
    if (message == NULL) return SF_OK;
    incoming->from = message->from;
    incoming->tag = message->tag;
    incoming->bytes = message->request->bytes;
    incoming->more = 0;
    memcpy(incoming->backend.bytes, &message, sizeof message);
    return SF_OK;
}

static sf_status loop_land(struct sf_comm *comm, struct sf_incoming *incoming, void *data)
{
    struct loop_message *message;
    memcpy(&message, incoming->backend.bytes, sizeof message);
    if (incoming->bytes > 0 && data != NULL) memcpy(data, message->request->data, incoming->bytes);
    if (message->orphan) {
        sf_request_free(message->request);
        return SF_OK;
    }
    struct loop_box *sender = &loop_of(comm->world)->box[message->from_world];
    pthread_mutex_lock(&sender->lock);
    atomic_store_explicit(&message->done, 1, memory_order_release);    /* now it is the sender's */
    ring_bell(sender);
    pthread_mutex_unlock(&sender->lock);
    return SF_OK;
}

static sf_status loop_landed(struct sf_comm *comm, struct sf_incoming *incoming, int *done_out)
{
    (void)comm;
    (void)incoming;
    *done_out = 1;
    return SF_OK;
}

static void loop_idle(struct sf_world *world, int64_t us)
{
    struct loop_box *box = &loop_of(world)->box[world->rank];
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)us * 1000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&box->lock);
    int rc = 0;
    while (box->changes == box->seen && rc == 0)
        rc = pthread_cond_timedwait(&box->changed, &box->lock, &until);
    box->seen = box->changes;
    pthread_mutex_unlock(&box->lock);
}

/* ---- groups and windows ---------------------------------------------------------------------- */
static uint64_t loop_token(struct sf_world *world)
{
    return atomic_fetch_add(&loop_of(world)->context, 1);
}

static sf_status loop_open(struct sf_comm *parent, int32_t color, int32_t key, uint64_t token,
                           struct sf_comm *group)
{
    (void)parent;
    /* groups of one split have no rank in common: one context */
    (void)color;
    (void)key;
    void *block;
    SF_TRY(sf_alloc(sizeof(struct loop_group), "loopback group", &block));
    *(struct loop_group *)block = (struct loop_group){ .context = token };
    group->backend = block;
    return SF_OK;
}

static void loop_close(struct sf_comm *group)
{
    sf_free(group->backend);
}

/* The last rank to unmap frees the memory.  If a rank never learnt of the window, because the job
 * ended just then, the memory goes with the world. */
struct loop_map { _Atomic int32_t present; unsigned char *memory; struct loop_map *next; };

static sf_status loop_map(struct sf_comm *comm, size_t bytes, unsigned char **segment_out,
                          void **map_out)
{
    struct loop_map *map = NULL;
    if (comm->rank == 0) {
        void *block, *memory;
        if (sf_alloc(sizeof *map, "window", &block) == SF_OK) {
            if (sf_alloc(bytes * (size_t)comm->size, "window", &memory) == SF_OK) {
                map = block;
                map->memory = memory;
                atomic_store(&map->present, comm->size);
                struct loop_world *loop = loop_of(comm->world);
                map->next = atomic_load(&loop->maps);
                while (!atomic_compare_exchange_weak(&loop->maps, &map->next, map)) continue;
            } else {
                sf_free(block);
            }
        }
    }
    SF_TRY(sf_comm_bcast(comm, 0, &map, sizeof map));
    if (map == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for a window of %d x %zu bytes", comm->size, bytes);
    for (int32_t r = 0; r < comm->size; r++) segment_out[r] = map->memory + (size_t)r * bytes;
    *map_out = map;
    return SF_OK;
}

static void loop_unmap(struct sf_comm *comm, void *opaque)
{
    (void)comm;
    struct loop_map *map = opaque;
    if (atomic_fetch_sub(&map->present, 1) > 1) return;
    sf_free(map->memory);
    map->memory = NULL;
}

/* ---- the end --------------------------------------------------------------------------------- */
static int loop_ended(struct sf_world *world, int *exit_code_out)
{
    int ended = atomic_load_explicit(&loop_of(world)->ended, memory_order_acquire);
    *exit_code_out = ended - 1;
    return ended != 0;
}

static void loop_end(struct sf_world *world, int exit_code)
{
    SF_ASSERT(exit_code >= 0);
    struct loop_world *loop = loop_of(world);
    int none = 0;
    atomic_compare_exchange_strong(&loop->ended, &none, exit_code + 1);
    for (int32_t r = 0; r < loop->size; r++) {
        pthread_mutex_lock(&loop->box[r].lock);
        ring_bell(&loop->box[r]);
        pthread_mutex_unlock(&loop->box[r].lock);
    }
}

static void loop_free(struct loop_world *loop)
{
    for (int32_t r = 0; r < loop->size; r++) {
        struct loop_box *box = &loop->box[r];
        while (box->first != NULL) {    /* orphans that nobody took */
            struct sf_request *request = box->first->request;
            unlink_message(box, &box->first);
            sf_request_free(request);
        }
        pthread_cond_destroy(&box->changed);
        pthread_mutex_destroy(&box->lock);
    }
    for (struct loop_map *map = atomic_load(&loop->maps), *next; map != NULL; map = next) {
        next = map->next;
        sf_free(map->memory);
        sf_free(map);
    }
    sf_free(loop->box);
    sf_free(loop);
}

/* Does not wait for the others: what this rank has posted and nobody has taken yet stays in their
 * boxes, and the last rank to leave frees them. */
static void loop_leave(struct sf_world *world)
{
    struct loop_world *loop = loop_of(world);
    if (!world->broken) sf_world_wave(world);   /* others may go on for longer than the timeout */
    while (world->post != NULL) {
        struct sf_request *request = world->post;
        world->post = request->next;
        if (!loop_drop(world, request, 1)) sf_request_free(request);
    }
    for (int32_t r = 0; r < world->size; r++) {
        struct sf_request *sign = world->peer[r].sign;
        if (sign == NULL) continue;
        (void)loop_drop(world, sign, 0);
        sf_request_free(sign);
    }
    loop_close(world->root);
    if (atomic_fetch_sub(&loop->present, 1) == 1) loop_free(loop);
}

static const struct sf_comm_ops loop_ops = {
    .token = loop_token, .open = loop_open, .close = loop_close, .leave = loop_leave,
    .send = loop_send, .sent = loop_sent, .drop = loop_drop,
    .match = loop_match, .land = loop_land, .landed = loop_landed,
    .idle = loop_idle, .ended = loop_ended, .end = loop_end,
    .map = loop_map, .unmap = loop_unmap,
};

/* ---- the start ------------------------------------------------------------------------------- */
static sf_status loop_create(int32_t size, struct loop_world **out)
{
    void *block;
    SF_TRY(sf_alloc(sizeof(struct loop_world), "loopback world", &block));
    struct loop_world *loop = block;
    sf_status status = sf_alloc((size_t)size * sizeof *loop->box, "loopback boxes", &block);
    if (status != SF_OK) {
        sf_free(loop);
        return status;
    }
    loop->size = size;
    loop->box = block;
    atomic_store(&loop->present, size);
    atomic_store(&loop->context, 1);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    for (int32_t r = 0; r < size; r++) {
        pthread_mutex_init(&loop->box[r].lock, NULL);
        pthread_cond_init(&loop->box[r].changed, &monotonic);
        loop->box[r].last = &loop->box[r].first;
    }
    pthread_condattr_destroy(&monotonic);
    *out = loop;
    return SF_OK;
}

static sf_status rank_create(struct loop_world *loop, int32_t rank, int32_t node_size, int spin,
                             const struct sf_comm_options *options, struct sf_comm **out)
{
    struct sf_comm *root;
    SF_TRY(sf_world_create(&loop_ops, loop, rank, loop->size, options, &root));
    sf_status status = loop_open(NULL, 0, 0, 0, root);
    if (status != SF_OK) {
        sf_world_free(root);
        return status;
    }
    char host[SF_HOST_MAX] = "";
    gethostname(host, sizeof host - 1);
    for (int32_t r = 0; r < loop->size; r++) {
        struct sf_peer *peer = &root->world->peer[r];
        peer->node = node_size > 0 ? r / node_size : 0;
        snprintf(peer->host, sizeof peer->host, "%s", host);
    }
    root->world->spin = spin;
    *out = root;
    return SF_OK;
}

sf_status sf_comm_loopback_world(int32_t size, int32_t node_size,
                                 const struct sf_comm_options *options, struct sf_comm **comms_out)
{
    SF_ASSERT(size > 0 && node_size >= 0);
    struct loop_world *loop;
    SF_TRY(loop_create(size, &loop));
    cpu_set_t cores;
    int spin = sched_getaffinity(0, sizeof cores, &cores) == 0 && CPU_COUNT(&cores) >= size;
    for (int32_t r = 0; r < size; r++) {
        sf_status status = rank_create(loop, r, node_size, spin, options, &comms_out[r]);
        if (status == SF_OK) continue;
        atomic_store(&loop->present, r);
        if (r == 0) loop_free(loop);
        while (r-- > 0) sf_comm_destroy(comms_out[r]);
        return status;
    }
    return SF_OK;
}
