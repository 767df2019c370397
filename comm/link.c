/* comm/link.c: opens a link of the best kind there is, and the kind `staged`, which carries
 * everything through host memory:
 *
 *   device --download--> staging --comm--> staging of the other rank --upload--> device
 *
 * Downloads wait for the device, so when a call returns its data has been taken or is there. */
#include "comm/link.h"

#include <string.h>
#include "base/memory.h"
#include "comm/link_kind.h"

enum { TAG = SF_TAGS_MAX - 2, CALLS_MAX = 32 };

/* A send or receive of a group. */
struct staged_call { int send; int32_t peer; const void *given; void *taken; size_t bytes; };
struct staged {
    struct sf_buffer buffer;
    struct staged_call call[CALLS_MAX];
    int32_t calls;
};

static sf_status staging(struct sf_link *link, size_t bytes, unsigned char **out)
{
    struct staged *staged = link->impl;
    SF_TRY(sf_buffer_reserve(&staged->buffer, bytes));
    *out = staged->buffer.bytes;
    return SF_OK;
}

static void download(struct sf_link *link, void *host, const void *data, size_t bytes)
{
    link->spec.device->k->download(link->spec.device, host, data, bytes);
}

static void upload(struct sf_link *link, void *data, const void *host, size_t bytes)
{
    link->spec.device->k->upload(link->spec.device, data, host, bytes);
}

/* What all ranks gave, one after the other, in the staging memory. */
static sf_status gather(struct sf_link *link, const void *mine, size_t bytes, unsigned char **out)
{
    size_t size = (size_t)sf_comm_size(link->group);
    SF_TRY(staging(link, bytes * (size + 1), out));
    download(link, *out + bytes * size, mine, bytes);
    return sf_comm_allgather(link->group, *out + bytes * size, bytes, *out);
}

/* Added in the order of the ranks, so that all have the same bits. */
static sf_status staged_sum(struct sf_link *link, float *x, size_t count)
{
    unsigned char *all;
    SF_TRY(gather(link, x, count * sizeof *x, &all));
    float *sum = (float *)(void *)all;
    for (int32_t r = 1; r < sf_comm_size(link->group); r++) {
        const float *part = sum + (size_t)r * count;
        for (size_t i = 0; i < count; i++) sum[i] += part[i];
    }
    upload(link, x, sum, count * sizeof *x);
    return SF_OK;
}

static sf_status staged_all_gather(struct sf_link *link, const void *mine, size_t bytes, void *all)
{
    unsigned char *host;
    SF_TRY(gather(link, mine, bytes, &host));
    upload(link, all, host, bytes * (size_t)sf_comm_size(link->group));
    return SF_OK;
}

/* Sends first, then receives, then waits for the sends: whatever the order of the calls was. */
static sf_status calls_run(struct sf_link *link, const struct staged_call *call, int32_t calls)
{
    struct sf_request *request[CALLS_MAX];
    unsigned char *host;
    size_t total = 0, at = 0;
    int32_t requests = 0;
    sf_status status = SF_OK;
    for (int32_t i = 0; i < calls; i++) total += call[i].bytes;
    SF_TRY(staging(link, total, &host));
    for (int32_t i = 0; i < calls && status == SF_OK; i++) {
        if (!call[i].send) continue;
        download(link, host + at, call[i].given, call[i].bytes);
        status = sf_comm_isend(link->group, call[i].peer, TAG, host + at, call[i].bytes,
                               &request[requests]);
        if (status == SF_OK) requests++;
        at += call[i].bytes;
    }
    for (int32_t i = 0; i < calls && status == SF_OK; i++) {
        if (call[i].send) continue;
        status = sf_comm_recv(link->group, call[i].peer, TAG, host + at, call[i].bytes);
        if (status == SF_OK) upload(link, call[i].taken, host + at, call[i].bytes);
        at += call[i].bytes;
    }
    for (int32_t i = 0; i < requests; i++) {
        if (status != SF_OK) {
            sf_comm_drop(link->group, request[i]);
            continue;
        }
        status = sf_comm_wait(link->group, request[i]);
    }
    return status;
}

static sf_status call_add(struct sf_link *link, const struct staged_call *call)
{
    struct staged *staged = link->impl;
    if (!link->grouped) return calls_run(link, call, 1);
    SF_ASSERT(staged->calls < CALLS_MAX);
    staged->call[staged->calls++] = *call;
    return SF_OK;
}

static sf_status staged_send(struct sf_link *link, int32_t to, const void *data, size_t bytes)
{
    return call_add(link, &(struct staged_call){ 1, to, data, NULL, bytes });
}

static sf_status staged_recv(struct sf_link *link, int32_t from, void *data, size_t bytes)
{
    return call_add(link, &(struct staged_call){ 0, from, NULL, data, bytes });
}

static sf_status staged_group(struct sf_link *link, int begin)
{
    struct staged *staged = link->impl;
    int32_t calls = staged->calls;
    staged->calls = 0;
    return begin ? SF_OK : calls_run(link, staged->call, calls);
}

static sf_status staged_settle(struct sf_link *link)
{
    link->spec.device->k->sync(link->spec.device);
    return SF_OK;
}

static void staged_close(struct sf_link *link)
{
    struct staged *staged = link->impl;
    sf_buffer_free(&staged->buffer);
    sf_free(staged);
}

static const struct sf_link_ops staged_ops = {
    "staged", staged_close, staged_sum, staged_send, staged_recv, staged_group,
    staged_all_gather, staged_settle
};

/* ---- links ----------------------------------------------------------------------------------- */
sf_status sf_link_open(struct sf_comm *group, const struct sf_link_spec *spec,
                       struct sf_link **out)
{
    struct sf_link *link;
    int taken = 0;
    SF_TRY(sf_alloc(sizeof *link, "link", (void **)&link));
    link->group = group;
    link->spec = *spec;
    sf_status status = sf_link_nccl_open(link, &taken);
    if (status == SF_OK && !taken) {
        status = sf_alloc(sizeof(struct staged), "staged link", &link->impl);
        link->ops = &staged_ops;
    }
    if (status == SF_OK && !taken) {
        unsigned char *unused;
        status = staging(link, spec->bytes_max, &unused);
        if (status != SF_OK) staged_close(link);
    }
    if (status == SF_OK) *out = link;
    else sf_free(link);
    return status;
}

void sf_link_close(struct sf_link *link)
{
    if (link == NULL) return;
    link->ops->close(link);
    sf_free(link);
}

const char *sf_link_kind(const struct sf_link *link)
{
    return link->ops->kind;
}

int64_t sf_link_bytes_sent(const struct sf_link *link)
{
    return link->bytes_sent;
}

sf_status sf_link_sum(struct sf_link *link, float *x, size_t count)
{
    SF_ASSERT(!link->grouped && count * sizeof *x <= link->spec.bytes_max);
    link->bytes_sent += (int64_t)(count * sizeof *x);
    return link->ops->sum(link, x, count);
}

sf_status sf_link_send(struct sf_link *link, int32_t to, const void *data, size_t bytes)
{
    SF_ASSERT(to >= 0 && to < sf_comm_size(link->group) && bytes <= link->spec.bytes_max);
    SF_ASSERT(link->grouped || to != sf_comm_rank(link->group));
    link->bytes_sent += (int64_t)bytes;
    return link->ops->send(link, to, data, bytes);
}

sf_status sf_link_recv(struct sf_link *link, int32_t from, void *data, size_t bytes)
{
    SF_ASSERT(from >= 0 && from < sf_comm_size(link->group) && bytes <= link->spec.bytes_max);
    SF_ASSERT(link->grouped || from != sf_comm_rank(link->group));
    return link->ops->recv(link, from, data, bytes);
}

sf_status sf_link_group(struct sf_link *link, int begin)
{
    SF_ASSERT(link->grouped != (begin != 0));
    link->grouped = begin != 0;
    return link->ops->group(link, link->grouped);
}

sf_status sf_link_all_gather(struct sf_link *link, const void *mine, size_t bytes, void *all)
{
    SF_ASSERT(!link->grouped && bytes <= link->spec.bytes_max);
    link->bytes_sent += (int64_t)bytes;
    return link->ops->all_gather(link, mine, bytes, all);
}

sf_status sf_link_settle(struct sf_link *link)
{
    SF_ASSERT(!link->grouped);
    return link->ops->settle(link);
}
