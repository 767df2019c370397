/* comm/link.c: opens a link, and the kind of it that every group can have: `staged`, through host
 * memory.
 *
 *   host memory of a rank:   | out: what is sent | in: what comes, [ranks] of a gather |
 *
 * A sum gathers all ranks' numbers and adds them up in the order of the ranks, so that every rank
 * has the same bits.  One send may be under way; the next one waits for it, as does settle. */
#include "comm/link.h"

#include <sched.h>

#include "base/clock.h"
#include "base/memory.h"
#include "comm/backend.h"
#include "comm/link_impl.h"

enum { TAG_LINK = 16 };                 /* of SF_CHANNEL_GROUP, beside those of reduce.c */
enum { EAGER_ROUNDS = 2000, SLEEP_US = 50 };

struct staged {
    struct sf_link link;                /* first */
    unsigned char *out, *in;            /* [bytes_max], [ranks][bytes_max] */
    struct sf_request *sending;         /* of `out`; NULL: none */
};

static const struct sf_link_ops staged_ops;

/* ---- any kind -------------------------------------------------------------------------------- */
sf_status sf_link_open(struct sf_comm *group, const struct sf_link_spec *spec,
                       struct sf_link **out)
{
    struct sf_link *link = NULL;
    SF_TRY(sf_link_nccl_open(group, spec, &link));
    if (link == NULL) return sf_link_staged_open(group, spec, out);
    *out = link;
    return SF_OK;
}

void sf_link_close(struct sf_link *link)
{
    if (link != NULL) link->ops->close(link);
}

void sf_link_give_up(struct sf_link *link)
{
    if (link != NULL) link->ops->give_up(link);
}

/* The first waits of a step are short; only longer ones sleep.  The rank's note stays: it says for
 * what the device is waited.  What is found wrong the next call of comm finds, too: a wait for the
 * device alone ends by itself. */
static void show_life(void *arg, int64_t round)
{
    struct sf_comm *world = arg;
    if (round < EAGER_ROUNDS) sched_yield();
    else sf_sleep_us(SLEEP_US);
    (void)sf_world_tick(world->world, sf_now_ns());
}

void sf_link_show_life(struct sf_comm *world, struct sf_device *device)
{
    if (device->waiting != NULL || sf_comm_size(world) == 1) return;
    device->waiting = show_life;
    device->waiting_arg = world;
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
    SF_ASSERT(count * sizeof *x <= link->spec.bytes_max);
    if (link->group->size == 1 || count == 0) return SF_OK;
    return link->ops->sum(link, x, count);
}

sf_status sf_link_send(struct sf_link *link, int32_t to, const void *data, size_t bytes)
{
    SF_ASSERT(bytes <= link->spec.bytes_max);
    SF_ASSERT(to >= 0 && to < link->group->size && to != link->group->rank);
    return link->ops->send(link, to, data, bytes);
}

sf_status sf_link_recv(struct sf_link *link, int32_t from, void *data, size_t bytes)
{
    SF_ASSERT(bytes <= link->spec.bytes_max);
    SF_ASSERT(from >= 0 && from < link->group->size && from != link->group->rank);
    return link->ops->recv(link, from, data, bytes);
}

sf_status sf_link_all_gather(struct sf_link *link, const void *mine, size_t bytes, void *all)
{
    SF_ASSERT(bytes <= link->spec.bytes_max);
    return link->ops->all_gather(link, mine, bytes, all);
}

sf_status sf_link_settle(struct sf_link *link)
{
    return link->ops->settle(link);
}

/* ---- staged ---------------------------------------------------------------------------------- */
static struct staged *staged_of(struct sf_link *link)
{
    return (struct staged *)(void *)link;
}

static void staged_give_up(struct sf_link *link)
{
    struct staged *staged = staged_of(link);
    if (staged->sending != NULL) sf_comm_drop(link->group, staged->sending);
    staged->sending = NULL;
}

static void staged_close(struct sf_link *link)
{
    struct staged *staged = staged_of(link);
    staged_give_up(link);
    sf_free(staged->out);
    sf_free(staged->in);
    sf_free(staged);
}

sf_status sf_link_staged_open(struct sf_comm *group, const struct sf_link_spec *spec,
                              struct sf_link **out)
{
    void *block = NULL, *sent = NULL, *came = NULL;
    sf_status status = sf_alloc(sizeof(struct staged), "link", &block);
    if (status == SF_OK) status = sf_alloc(spec->bytes_max + 1, "staging of a link", &sent);
    if (status == SF_OK)
        status = sf_alloc((spec->bytes_max + 1) * (size_t)group->size, "staging of a link", &came);
    status = sf_comm_agree(group, status, "the link of rank");
    if (status != SF_OK) {
        sf_free(block);
        sf_free(sent);
        sf_free(came);
        return status;
    }
    struct staged *staged = block;
    staged->link = (struct sf_link){ &staged_ops, group, *spec, 0 };
    staged->out = sent;
    staged->in = came;
    *out = &staged->link;
    return SF_OK;
}

/* Until `out` is free again. */
static sf_status take_back(struct staged *staged)
{
    struct sf_request *sending = staged->sending;
    staged->sending = NULL;
    return sending != NULL ? sf_comm_wait(staged->link.group, sending) : SF_OK;
}

/* in[r] = what rank r has at `data`, on every rank. */
static sf_status gather_in(struct staged *staged, const void *data, size_t bytes)
{
    struct sf_device *device = staged->link.spec.device;
    SF_TRY(take_back(staged));
    device->k->download(device, staged->out, data, bytes);
    int64_t before = staged->link.group->bytes_sent;
    SF_TRY(sf_comm_allgather(staged->link.group, staged->out, bytes, staged->in));
    staged->link.bytes_sent += staged->link.group->bytes_sent - before;
    return SF_OK;
}

static sf_status staged_sum(struct sf_link *link, float *x, size_t count)
{
    struct staged *staged = staged_of(link);
    struct sf_device *device = link->spec.device;
    SF_TRY(gather_in(staged, x, count * sizeof *x));
    float *sum = (float *)(void *)staged->in;
    for (size_t r = 1; r < (size_t)link->group->size; r++) {
        const float *part = sum + r * count;
        for (size_t i = 0; i < count; i++) sum[i] += part[i];
    }
    device->k->upload(device, x, sum, count * sizeof *x);
    return SF_OK;
}

static sf_status staged_send(struct sf_link *link, int32_t to, const void *data, size_t bytes)
{
    struct staged *staged = staged_of(link);
    struct sf_device *device = link->spec.device;
    SF_TRY(take_back(staged));
    device->k->download(device, staged->out, data, bytes);
    SF_TRY(sf_comm_start(link->group, SF_CHANNEL_GROUP, to, TAG_LINK, staged->out, bytes,
                         &staged->sending));
    link->bytes_sent += (int64_t)bytes;
    return SF_OK;
}

static sf_status staged_recv(struct sf_link *link, int32_t from, void *data, size_t bytes)
{
    struct staged *staged = staged_of(link);
    struct sf_device *device = link->spec.device;
    SF_TRY(sf_comm_receive(link->group, SF_CHANNEL_GROUP, from, TAG_LINK, staged->in, bytes));
    device->k->upload(device, data, staged->in, bytes);
    return SF_OK;
}

static sf_status staged_all_gather(struct sf_link *link, const void *mine, size_t bytes, void *all)
{
    struct staged *staged = staged_of(link);
    struct sf_device *device = link->spec.device;
    SF_TRY(gather_in(staged, mine, bytes));
    device->k->upload(device, all, staged->in, bytes * (size_t)link->group->size);
    return SF_OK;
}

static sf_status staged_settle(struct sf_link *link)
{
    link->spec.device->k->sync(link->spec.device);
    return take_back(staged_of(link));
}

static const struct sf_link_ops staged_ops = {
    "staged", staged_close, staged_give_up, staged_sum, staged_send, staged_recv,
    staged_all_gather, staged_settle
};
