/* comm/link_nccl.c: the program's half of the kind `nccl`: whether a group can have it, the id, and
 * everything about waiting; the library itself is met in nccl.c, within the CUDA backend's shared
 * object (link_plugin.h).
 *
 * A group has it if every rank's backend and library do and no two ranks sit on one GPU, which the
 * library refuses.  All ranks decide from the same table, so they decide alike:
 *
 *   offer [size]:  state | host (comm knows it) | bus id of the GPU | why not
 *
 * A wait for the GPU is a wait of comm without a peer: it shows signs of life, rank 0 watches the
 * others, and whoever is silent gets named.  If all are alive and the deadline passes, the words
 * name the group and who waited.  Every wait asks after all links of the device.
 *
 * A failure loses all links of the device, as their kernels lie on one stream: the library may end
 * one communicator only when those of the others have ended, so they are aborted side by side.
 * Each keeps the words of the first failure.
 *
 * Entries of the device wait too, when they bring something to the host, and have no status to end
 * with.  They ask the device's `waiting`, which is ours while it has a link: on a failure it gives
 * up the links, so that the wait ends, and the next call of a link tells. */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "comm/backend.h"
#include "comm/link_impl.h"
#include "comm/link_plugin.h"

/* The first waits of a step are short; only longer ones may sleep. */
static const int64_t eager_ns = 20 * 1000 * 1000;
static int64_t drain_ms = 10000;

struct nccl {
    struct sf_link link;                /* first */
    const struct sf_link_plugin *plugin;
    void *impl;                         /* the plugin's */
    struct sf_wait wait;
    int lost, ended_beside;             /* beside: by a thread of its own */
    pthread_t ender;
    struct nccl *next;                  /* link of the same device */
    sf_status why;                      /* lost, with words */
    char words[256];
    int64_t drain_ns;                   /* lost: since when the wait under way waits for the end */
};

enum offer_state { OFFER_NCCL, OFFER_STAGED, OFFER_NONE };   /* staged: asked for, or no GPU */
struct offer { int32_t state; char gpu[SF_LINK_GPU_MAX], why[160]; };

/* ---- waiting and failing --------------------------------------------------------------------- */
static const char *host_of(const struct sf_comm *group)
{
    return sf_comm_host(group, group->rank);
}

static void waiting(void *arg, int64_t round);

/* The first link of the device; NULL: none. */
static struct nccl *first_of(const struct sf_device *device)
{
    return device->waiting == waiting ? device->waiting_arg : NULL;
}

static sf_status pause(void *arg, const char *what, int64_t round)
{
    struct nccl *nccl = arg;
    for (struct nccl *one = first_of(nccl->link.spec.device); one != NULL; one = one->next)
        if (one != nccl && !one->lost) SF_TRY(one->plugin->check(one->impl));
    struct sf_comm *group = nccl->link.group;
    struct sf_world *world = group->world;
    int64_t limit_ns = nccl->link.spec.timeout_ms * 1000000;
    if (limit_ns <= 0) limit_ns = world->timeout_ns + world->grace_ns;
    if (world->rank == 0 && limit_ns > 2 * world->grace_ns) limit_ns -= world->grace_ns;
    if (round == 0) nccl->wait = sf_wait_begin(group, what, SF_RANK_ANY, 1);
    if (nccl->wait.waited_ns < eager_ns) {
        SF_TRY(sf_comm_check(&nccl->wait));
        sched_yield();
    } else {
        SF_TRY(sf_comm_pause(&nccl->wait));
    }
    if (nccl->wait.waited_ns < limit_ns) return SF_OK;
    world->broken = 1;
    return SF_FAIL(SF_TIMEOUT, "rank %d (host %s) waited %.1f s for the GPUs of its group in vain "
                   "(nccl %s, group '%s')", world->rank, host_of(group),
                   (double)nccl->wait.waited_ns * 1e-9, what, group->label);
}

static sf_status fail(void *arg, const char *what, const char *why)
{
    struct nccl *nccl = arg;
    struct sf_comm *group = nccl->link.group;
    return SF_FAIL(SF_LOST, "rank %d (host %s): nccl %s, group '%s': %s", group->world->rank,
                   host_of(group), what, group->label, why);
}

static void *give_up_one(void *arg)
{
    struct nccl *nccl = arg;
    nccl->plugin->give_up(nccl->impl);
    return NULL;
}

/* All links of the device, with the words of this thread's last error. */
static void give_up_all(struct nccl *first, sf_status why)
{
    for (struct nccl *one = first; one != NULL; one = one->next) {
        one->ended_beside = 0;
        if (one->lost) continue;
        one->lost = 1;
        one->why = why;
        one->drain_ns = sf_now_ns();
        snprintf(one->words, sizeof one->words, "%s", sf_error_text());
        one->ended_beside = pthread_create(&one->ender, NULL, give_up_one, one) == 0;
        if (!one->ended_beside) give_up_one(one);
    }
    for (struct nccl *one = first; one != NULL; one = one->next)
        if (one->ended_beside) pthread_join(one->ender, NULL);
}

void sf_link_nccl_set_drain(int64_t ms) { drain_ms = ms; }

/* The device's `waiting`.  A stream whose communicators are gone goes on, so it ends soon; if not,
 * there is no way out but the end of the job.  Each wait has its own time, as the host may do long
 * work between two. */
static void waiting(void *arg, int64_t round)
{
    struct nccl *first = arg;
    if (first->why != SF_OK) {
        if (round == 0) first->drain_ns = sf_now_ns();
        sf_sleep_us(100);
        if (sf_now_ns() - first->drain_ns < drain_ms * 1000000) return;
        sf_log(SF_LOG_ERROR, "%s", first->words);
        sf_comm_abort(first->link.group, 1);
        sf_assert_failed(__FILE__, __LINE__, "a device goes on when its links have been given up");
    }
    sf_status status = first->plugin->check(first->impl);
    if (status == SF_OK) status = pause(first, "wait", round);
    if (status != SF_OK) give_up_all(first, status);
}

static void waiting_add(struct nccl *nccl)
{
    struct sf_device *device = nccl->link.spec.device;
    nccl->next = first_of(device);
    device->waiting = waiting;
    device->waiting_arg = nccl;
}

static void waiting_remove(struct nccl *nccl)
{
    struct sf_device *device = nccl->link.spec.device;
    struct nccl *first = device->waiting_arg;
    if (first == nccl) first = nccl->next;
    for (struct nccl *one = first; one != NULL; one = one->next)
        if (one->next == nccl) one->next = nccl->next;
    device->waiting_arg = first;
    if (first == NULL) device->waiting = NULL;
}

/* ---- calls ----------------------------------------------------------------------------------- */
static sf_status begin(struct sf_link *link, size_t bytes, struct nccl **out)
{
    *out = (struct nccl *)(void *)link;
    if ((*out)->lost) return SF_FAIL((*out)->why, "%s", (*out)->words);
    link->bytes_sent += (int64_t)bytes;
    return SF_OK;
}

static sf_status end(struct nccl *nccl, sf_status status)
{
    if (status != SF_OK) give_up_all(first_of(nccl->link.spec.device), status);
    return status;
}

static sf_status nccl_sum(struct sf_link *link, float *x, size_t count)
{
    struct nccl *nccl;
    SF_TRY(begin(link, count * sizeof *x, &nccl));
    return end(nccl, nccl->plugin->sum(nccl->impl, x, count));
}

static sf_status nccl_send(struct sf_link *link, int32_t to, const void *data, size_t bytes)
{
    struct nccl *nccl;
    SF_TRY(begin(link, bytes, &nccl));
    return end(nccl, nccl->plugin->send(nccl->impl, to, data, bytes));
}

static sf_status nccl_recv(struct sf_link *link, int32_t from, void *data, size_t bytes)
{
    struct nccl *nccl;
    SF_TRY(begin(link, 0, &nccl));
    return end(nccl, nccl->plugin->recv(nccl->impl, from, data, bytes));
}

static sf_status nccl_all_gather(struct sf_link *link, const void *mine, size_t bytes, void *all)
{
    struct nccl *nccl;
    SF_TRY(begin(link, bytes, &nccl));
    return end(nccl, nccl->plugin->all_gather(nccl->impl, mine, bytes, all));
}

static sf_status nccl_settle(struct sf_link *link)
{
    struct nccl *nccl;
    SF_TRY(begin(link, 0, &nccl));
    return end(nccl, nccl->plugin->settle(nccl->impl));
}

static void nccl_give_up(struct sf_link *link)
{
    give_up_all(first_of(link->spec.device), SF_LOST);
}

/* After any failure of this rank the others are not waited for.  The stream comes to its end while
 * the link is still one of the device's: a wait in vain then loses the others, too. */
static void nccl_close(struct sf_link *link)
{
    struct nccl *nccl = (struct nccl *)(void *)link;
    if (link->group->world->broken) nccl_give_up(link);
    if (!nccl->lost) (void)nccl_settle(link);
    waiting_remove(nccl);
    nccl->plugin->close(nccl->impl, nccl->lost);
    sf_free(nccl);
}

static const struct sf_link_ops nccl_ops = {
    "nccl", nccl_close, nccl_give_up, nccl_sum, nccl_send, nccl_recv, nccl_all_gather, nccl_settle
};

/* ---- opening --------------------------------------------------------------------------------- */
static struct offer offer_make(const struct sf_link_spec *spec,
                               const struct sf_link_plugin **plugin_out)
{
    struct offer offer = { .state = OFFER_STAGED };
    *plugin_out = sf_device_symbol(spec->device, "sf_link_plugin");
    if (spec->staged || sf_device_symbol(spec->device, "sf_backend_plugin") == NULL) return offer;
    offer.state = OFFER_NONE;
    if (*plugin_out == NULL) {
        snprintf(offer.why, sizeof offer.why, "its %s backend was built without NCCL",
                 spec->device->k->name);
    } else if ((*plugin_out)->probe(spec->device, offer.gpu) != SF_OK) {
        snprintf(offer.why, sizeof offer.why, "%s", sf_error_text());
    } else {
        offer.state = OFFER_NCCL;
    }
    return offer;
}

/* Whether all offers together make nccl; if not, in `why` what is said about it, "" if nothing. */
static int offers_judge(const struct sf_comm *group, const struct offer *offer, char *why,
                        size_t bytes)
{
    why[0] = '\0';
    for (int32_t r = 0; r < group->size; r++)
        if (offer[r].state == OFFER_STAGED) return 0;
    for (int32_t r = 0; r < group->size; r++) {
        if (offer[r].state == OFFER_NCCL) continue;
        snprintf(why, bytes, "rank %d: %s", group->world_rank[r], offer[r].why);
        return 0;
    }
    for (int32_t r = 0; r < group->size; r++)
        for (int32_t s = 0; s < r; s++) {
            if (strcmp(offer[r].gpu, offer[s].gpu) != 0 ||
                strcmp(sf_comm_host(group, r), sf_comm_host(group, s)) != 0)
                continue;
            snprintf(why, bytes, "ranks %d and %d share GPU %s of host %s", group->world_rank[s],
                     group->world_rank[r], offer[r].gpu, sf_comm_host(group, r));
            return 0;
        }
    return 1;
}

/* The id comes from the group's rank 0, or the word that there is none. */
static sf_status id_share(struct sf_comm *group, const struct sf_link_plugin *plugin,
                          struct sf_link_seat *seat, char *why, size_t bytes)
{
    struct { int32_t given; unsigned char id[SF_LINK_ID_BYTES]; char why[128]; } word = { 0 };
    if (group->rank == 0) {
        word.given = plugin->id(word.id) == SF_OK;
        if (!word.given) snprintf(word.why, sizeof word.why, "%s", sf_error_text());
    }
    SF_TRY(sf_comm_bcast(group, 0, &word, sizeof word));
    memcpy(seat->id, word.id, sizeof seat->id);
    if (!word.given) snprintf(why, bytes, "%s", word.why);
    return SF_OK;
}

static sf_status seat_take(struct sf_comm *group, const struct sf_link_spec *spec,
                           const struct sf_link_plugin *plugin, struct sf_link_seat *seat,
                           struct sf_link **out)
{
    struct nccl *nccl;
    SF_TRY(sf_alloc(sizeof *nccl, "link", (void **)&nccl));
    nccl->link = (struct sf_link){ &nccl_ops, group, *spec, 0 };
    nccl->plugin = plugin;
    seat->device = spec->device;
    seat->rank = group->rank;
    seat->size = group->size;
    seat->host = (struct sf_link_host){ pause, fail, nccl };
    sf_status status = plugin->open(seat, &nccl->impl);
    if (status == SF_OK) {
        waiting_add(nccl);
        *out = &nccl->link;
        return SF_OK;
    }
    group->world->broken = 1;           /* the others wait for this rank in vain */
    sf_free(nccl);
    return status;
}

sf_status sf_link_nccl_open(struct sf_comm *group, const struct sf_link_spec *spec,
                            struct sf_link **out)
{
    const struct sf_link_plugin *plugin;
    struct sf_link_seat seat = { 0 };
    struct offer mine = offer_make(spec, &plugin), *all;
    char why[320];
    *out = NULL;
    SF_TRY(sf_alloc((size_t)group->size * sizeof mine, "offers of a link", (void **)&all));
    sf_status status = sf_comm_allgather(group, &mine, sizeof mine, all);
    int can = status == SF_OK && offers_judge(group, all, why, sizeof why);
    sf_free(all);
    SF_TRY(status);
    if (can) SF_TRY(id_share(group, plugin, &seat, why, sizeof why));
    if (can && why[0] == '\0') return seat_take(group, spec, plugin, &seat, out);
    if (why[0] != '\0' && group->rank == 0)
        sf_log(SF_LOG_INFO, "group '%s' goes through host memory, not NCCL: %s", group->label, why);
    return SF_OK;
}
