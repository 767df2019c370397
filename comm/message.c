/* comm/message.c: messages between two ranks.
 *
 * A send is a request that the backend works off; a receive matches a message first, learns its
 * length, and then lets it land.  So nothing is ever posted into memory that a failed wait would
 * leave behind, and a message of the wrong length is told from one that fits before it is read.
 * Long messages may come in pieces (sf_incoming.more). */
#include <string.h>
#include "base/clock.h"
#include "base/memory.h"
#include "comm/backend.h"

enum { REQUESTS_MIN = 32, COPY_BYTES_MIN = 512 };       /* 512: 1 KiB with the room to grow */

/* ---- requests -------------------------------------------------------------------------------- */
static sf_status request_create(struct sf_request **out)
{
    void *block;
    SF_TRY(sf_alloc(sizeof(struct sf_request), "message request", &block));
    struct sf_request *request = block;
    sf_status status = sf_buffer_reserve(&request->copy, COPY_BYTES_MIN);
    if (status == SF_OK) *out = request;
    else sf_free(request);
    return status;
}

/* How many sends are under way at once is a matter of timing, and a world that has been busy for a
 * while should not meet a new most now and then: as many requests are made again as there are. */
static sf_status make_requests(struct sf_world *world)
{
    int32_t more = world->requests < REQUESTS_MIN ? REQUESTS_MIN : world->requests;
    while (more-- > 0) {
        struct sf_request *request;
        SF_TRY(request_create(&request));
        sf_request_recycle(world, request);
        world->requests++;
    }
    return SF_OK;
}

static sf_status request_take(struct sf_world *world, struct sf_request **out)
{
    if (world->spare == NULL) SF_TRY(make_requests(world));
    *out = world->spare;
    world->spare = (*out)->next;
    (*out)->next = NULL;
    return SF_OK;
}

void sf_request_recycle(struct sf_world *world, struct sf_request *request)
{
    request->next = world->spare;
    world->spare = request;
}

void sf_comm_drop(struct sf_comm *comm, struct sf_request *request)
{
    SF_ASSERT(request != NULL && request->comm == comm);
    (void)comm->world->ops->drop(comm->world, request, 0);
    sf_request_recycle(comm->world, request);
}

void sf_request_free(struct sf_request *request)
{
    sf_buffer_free(&request->copy);
    sf_free(request);
}

/* ---- sending --------------------------------------------------------------------------------- */
static sf_status request_send(struct sf_comm *comm, enum sf_channel channel, int32_t to,
                              int32_t tag, const void *data, size_t bytes,
                              struct sf_request *request)
{
    SF_ASSERT(to >= 0 && to < comm->size);
    SF_ASSERT(tag >= 0 && tag < SF_TAGS_MAX);
    request->comm = comm;
    request->channel = channel;
    request->to = to;
    request->to_world = comm->world_rank[to];
    request->tag = tag;
    request->data = data;
    request->bytes = bytes;
    sf_status status = comm->world->ops->send(request);
    if (status != SF_OK) {
        sf_request_recycle(comm->world, request);
        return status;
    }
    if (channel != SF_CHANNEL_LIFE) comm->bytes_sent += (int64_t)bytes;
    return SF_OK;
}

sf_status sf_comm_start(struct sf_comm *comm, enum sf_channel channel, int32_t to, int32_t tag,
                        const void *data, size_t bytes, struct sf_request **request_out)
{
    struct sf_request *request;
    SF_TRY(request_take(comm->world, &request));
    SF_TRY(request_send(comm, channel, to, tag, data, bytes, request));
    *request_out = request;
    return SF_OK;
}

sf_status sf_comm_start_copy(struct sf_comm *comm, enum sf_channel channel, int32_t to,
                             int32_t tag, const void *data, size_t bytes,
                             struct sf_request **request_out)
{
    struct sf_request *request;
    SF_TRY(request_take(comm->world, &request));
    sf_status status = sf_buffer_reserve(&request->copy, bytes);
    if (status != SF_OK) {
        sf_request_recycle(comm->world, request);
        return status;
    }
    if (bytes > 0) memcpy(request->copy.bytes, data, bytes);
    SF_TRY(request_send(comm, channel, to, tag, request->copy.bytes, bytes, request));
    *request_out = request;
    return SF_OK;
}

sf_status sf_comm_isend(struct sf_comm *comm, int32_t to, int32_t tag, const void *data,
                        size_t bytes, struct sf_request **request_out)
{
    SF_TRY(sf_world_tick(comm->world, sf_now_ns()));
    return sf_comm_start(comm, SF_CHANNEL_USER, to, tag, data, bytes, request_out);
}

sf_status sf_comm_wait(struct sf_comm *comm, struct sf_request *request)
{
    SF_ASSERT(request != NULL && request->comm == comm);
    struct sf_world *world = comm->world;
    struct sf_wait wait = sf_wait_begin(comm, "send", request->to, 0);
    int done = 0, exit_code, given_up = world->broken;
    sf_status status = SF_OK;
    if (!given_up) status = sf_comm_check(&wait);
    else if (world->ops->ended(world, &exit_code)) status = SF_LOST;
    if (status == SF_OK) status = world->ops->sent(request, &done);
    /* A failed call waits once for its deadline, not once more for each send it leaves behind; and
     * its own words stay the last ones. */
    if (status == SF_OK && !done && given_up) status = SF_TIMEOUT;
    while (status == SF_OK && !done) {
        status = sf_comm_pause(&wait);
        if (status == SF_OK) status = world->ops->sent(request, &done);
    }
    if (status != SF_OK) (void)world->ops->drop(world, request, 0);
    sf_request_recycle(world, request);
    return status;
}

sf_status sf_comm_post(struct sf_comm *comm, int32_t to, int32_t tag, const void *data,
                       size_t bytes)
{
    struct sf_world *world = comm->world;
    SF_TRY(sf_world_tick(world, sf_now_ns()));
    if (world->posts >= SF_POSTS_MAX) {
        struct sf_wait wait = sf_wait_begin(world->root, "post", world->post->to_world, 0);
        while (world->posts >= SF_POSTS_MAX) SF_TRY(sf_comm_pause(&wait));
    }
    struct sf_request *request;
    SF_TRY(sf_comm_start_copy(comm, SF_CHANNEL_USER, to, tag, data, bytes, &request));
    *world->post_last = request;
    world->post_last = &request->next;
    world->posts++;
    return SF_OK;
}

sf_status sf_comm_poll_posts(struct sf_world *world)
{
    struct sf_request **link = &world->post;
    sf_status status = SF_OK;
    while (*link != NULL && status == SF_OK) {
        struct sf_request *request = *link;
        int done = 0;
        status = world->ops->sent(request, &done);
        if (status == SF_OK && !done) {
            link = &request->next;
            continue;
        }
        if (status != SF_OK) (void)world->ops->drop(world, request, 0);
        *link = request->next;
        if (*link == NULL) world->post_last = link;
        sf_request_recycle(world, request);
        world->posts--;
    }
    return status;
}

/* ---- receiving ------------------------------------------------------------------------------- */
static sf_status land(struct sf_wait *wait, struct sf_incoming *incoming, void *data)
{
    const struct sf_comm_ops *ops = wait->comm->world->ops;
    SF_TRY(ops->land(wait->comm, incoming, data));
    for (;;) {
        int done = 0;
        SF_TRY(ops->landed(wait->comm, incoming, &done));
        if (done) return SF_OK;
        SF_TRY(sf_comm_pause(wait));
    }
}

static sf_status match(struct sf_wait *wait, enum sf_channel channel, int32_t from, int32_t tag,
                       struct sf_incoming *incoming)
{
    SF_ASSERT(from >= SF_RANK_ANY && from < wait->comm->size);
    SF_ASSERT(tag >= SF_TAG_ANY && tag < SF_TAGS_MAX);
    for (;;) {
        int found = 0;
        SF_TRY(wait->comm->world->ops->match(wait->comm, channel, from, tag, incoming, &found));
        if (found) return SF_OK;
        SF_TRY(sf_comm_pause(wait));
    }
}

/* The rest of a message whose first piece has been matched. */
static sf_status take_rest(struct sf_wait *wait, enum sf_channel channel,
                           struct sf_incoming *incoming, struct sf_buffer *into)
{
    into->count = 0;
    for (;;) {
        size_t bytes = into->count + incoming->bytes;
        if (sf_buffer_reserve(into, bytes + 1) != SF_OK) {      /* an empty message has a place */
            (void)wait->comm->world->ops->land(wait->comm, incoming, NULL);
            return SF_FAIL(SF_NO_MEMORY, "no memory for a message of %zu bytes from rank %d",
                           bytes, wait->comm->world_rank[incoming->from]);
        }
        sf_status status = land(wait, incoming, into->bytes + into->count);
        if (status != SF_OK) {          /* a backend may still be writing: it gets the memory */
            *into = (struct sf_buffer){ 0 };
            return status;
        }
        into->count = bytes;
        if (!incoming->more) return SF_OK;
        SF_TRY(match(wait, channel, incoming->from, incoming->tag, incoming));
    }
}

sf_status sf_comm_receive(struct sf_comm *comm, enum sf_channel channel, int32_t from, int32_t tag,
                          void *data, size_t bytes)
{
    struct sf_wait wait = sf_wait_begin(comm, "receive", from, 0);
    struct sf_incoming incoming;
    unsigned char *at = data;
    size_t got = 0;
    SF_TRY(sf_comm_check(&wait));
    SF_TRY(match(&wait, channel, from, tag, &incoming));
    while (incoming.bytes <= bytes - got) {
        SF_TRY(land(&wait, &incoming, at));
        if (incoming.bytes > 0) at += incoming.bytes;
        got += incoming.bytes;
        if (!incoming.more && got == bytes) return SF_OK;
        if (!incoming.more)
            return SF_FAIL(SF_FORMAT, "rank %d sent %zu bytes with tag %d where %zu were expected",
                           comm->world_rank[incoming.from], got, incoming.tag, bytes);
        SF_TRY(match(&wait, channel, incoming.from, incoming.tag, &incoming));
    }
    /* too long: taken all the same, so that it lies not about */
    struct sf_buffer rest = { 0 };
    sf_status status = take_rest(&wait, channel, &incoming, &rest);
    if (status == SF_OK)
        status = SF_FAIL(SF_FORMAT, "rank %d sent %zu bytes with tag %d where %zu were expected",
                         comm->world_rank[incoming.from], got + rest.count, incoming.tag, bytes);
    sf_buffer_free(&rest);
    return status;
}

sf_status sf_comm_recv(struct sf_comm *comm, int32_t from, int32_t tag, void *data, size_t bytes)
{
    return sf_comm_receive(comm, SF_CHANNEL_USER, from, tag, data, bytes);
}

sf_status sf_comm_take(struct sf_comm *comm, int32_t from, int32_t tag, int wait,
                       struct sf_buffer *into, int32_t *from_out)
{
    SF_ASSERT(wait >= 0 && wait <= 2 && (wait > 0 || from_out != NULL));
    struct sf_wait state = sf_wait_begin(comm, "take", from, wait == 2);
    struct sf_incoming incoming;
    SF_TRY(sf_comm_check(&state));
    if (wait == 0) {
        int found = 0;
        SF_TRY(comm->world->ops->match(comm, SF_CHANNEL_USER, from, tag, &incoming, &found));
        if (!found) {
            *from_out = SF_RANK_ANY;
            into->count = 0;
            return SF_OK;
        }
    } else {
        SF_TRY(match(&state, SF_CHANNEL_USER, from, tag, &incoming));
    }
    struct sf_wait rest = sf_wait_begin(comm, "take", incoming.from, 0);
    SF_TRY(take_rest(&rest, SF_CHANNEL_USER, &incoming, into));
    if (from_out != NULL) *from_out = incoming.from;
    return SF_OK;
}
