/* comm/life.c: what goes on while a rank waits, and how a rank that is stuck gets named.
 *
 *   wait loop --> sf_comm_pause --> sf_world_tick:  posts, progress function,
 *                      |              signs of life out (every beat), signs of life in,
 *                      |              on rank 0 the verdict on silent ranks
 *                      +--> the wait's own deadline
 *                      +--> back off: spin, yield, sleep
 *
 * Signs go from every rank to rank 0 and from rank 0 to every rank, at most one under way to each,
 * so they neither pile up nor cost a wait.  Silence is judged only while rank 0 itself is looking:
 * when it comes back from a long absence (its own computation, a stopped process) it first collects
 * for a moment what has been sent meanwhile.  For the same reason a wait counts at most one beat of
 * time for each round.
 *
 * Times, for a timeout T less its grace, t: rank 0 names a silent rank after t less one beat; a
 * wait on rank 0 ends after t, on the other ranks after t and the grace, that is T, so that rank 0,
 * which knows more, speaks first, and the job has ended within T whoever is silent. */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "comm/backend.h"

enum { SIGN_BEAT, SIGN_GOODBYE };
struct sign { char note[SF_NOTE_MAX]; int64_t number; int64_t kind; };
_Static_assert(sizeof(struct sign) == SF_SIGN_BYTES, "what the plan counts");

enum { SPINS = 200, YIELDS = 40, ROUNDS = 32, SLEEP_US_MIN = 20, SLEEP_US_MAX = 200 };
enum { JUDGE_NS = 10 * 1000 * 1000, SUSPICIOUS_BEATS = 3 };

/* ---- words ----------------------------------------------------------------------------------- */
static const char *describe(const struct sf_world *world, int32_t world_rank, char *text,
                            size_t bytes)
{
    const struct sf_peer *peer = &world->peer[world_rank];
    snprintf(text, bytes, "rank %d (%s%shost %s)", world_rank, peer->describe,
             peer->describe[0] != '\0' ? ", " : "", peer->host[0] != '\0' ? peer->host : "unknown");
    return text;
}

enum { WHO_MAX = SF_HOST_MAX + SF_DESCRIBE_MAX + 48 };

static sf_status fail_silent(struct sf_world *world, int32_t rank, int64_t now)
{
    const struct sf_peer *peer = &world->peer[rank];
    char who[WHO_MAX], last[SF_NOTE_MAX + 48] = "";
    if (peer->note[0] != '\0')
        snprintf(last, sizeof last, "; last: %s %lld", peer->note, (long long)peer->number);
    world->broken = 1;
    return SF_FAIL(SF_TIMEOUT, "%s has shown no sign of life for %.1f s%s",
                   describe(world, rank, who, sizeof who), (double)(now - peer->heard_ns) * 1e-9,
                   last);
}

static sf_status fail_deadline(const struct sf_wait *wait)
{
    const struct sf_comm *comm = wait->comm;
    char who[WHO_MAX] = "any rank";
    if (wait->peer != SF_RANK_ANY)
        describe(comm->world, comm->world_rank[wait->peer], who, sizeof who);
    comm->world->broken = 1;
    return SF_FAIL(SF_TIMEOUT, "rank %d waited %.1f s for %s in vain (%s, group '%s')",
                   comm->world->rank, (double)wait->waited_ns * 1e-9, who, wait->what,
                   comm->label);
}

/* ---- signs of life --------------------------------------------------------------------------- */
static sf_status send_sign(struct sf_world *world, int32_t to, int64_t kind)
{
    struct sf_peer *peer = &world->peer[to];
    if (peer->sign != NULL) {
        int done = 0;
        SF_TRY(world->ops->sent(peer->sign, &done));
        if (!done) return SF_OK;
        sf_request_recycle(world, peer->sign);
        peer->sign = NULL;
    }
    struct sign sign = { .number = world->number, .kind = kind };
    memcpy(sign.note, world->note, sizeof sign.note);
    return sf_comm_start_copy(world->root, SF_CHANNEL_LIFE, to, 0, &sign, sizeof sign,
                              &peer->sign);
}

static sf_status send_signs(struct sf_world *world, int64_t now)
{
    if (world->leaving) return SF_OK;
    if (world->signed_ns != 0 && now - world->signed_ns < world->beat_ns) return SF_OK;
    world->signed_ns = now;
    if (world->rank != 0) return send_sign(world, 0, SIGN_BEAT);
    for (int32_t r = 1; r < world->size; r++)
        if (!world->peer[r].left) SF_TRY(send_sign(world, r, SIGN_BEAT));
    return SF_OK;
}

static sf_status hear_signs(struct sf_world *world, int64_t now)
{
    for (;;) {
        struct sf_incoming incoming;
        int found = 0, done = 0;
        SF_TRY(world->ops->match(world->root, SF_CHANNEL_LIFE, SF_RANK_ANY, 0, &incoming, &found));
        if (!found) return SF_OK;
        struct sign sign;
        if (incoming.bytes != sizeof sign || incoming.more)
            return SF_FAIL(SF_FORMAT, "rank %d sent a sign of life of %zu bytes, expected %zu",
                           incoming.from, incoming.bytes, sizeof sign);
        SF_TRY(world->ops->land(world->root, &incoming, &sign));
        while (!done) SF_TRY(world->ops->landed(world->root, &incoming, &done));
        struct sf_peer *peer = &world->peer[incoming.from];
        peer->heard_ns = now;
        peer->number = sign.number;
        memcpy(peer->note, sign.note, sizeof peer->note);
        peer->note[sizeof peer->note - 1] = '\0';
        if (sign.kind == SIGN_GOODBYE) peer->left = 1;
    }
}

/* The rank that has been silent for longest, or -1 if none has for `limit_ns`.  Only rank 0 knows
 * of all; the others know of rank 0. */
static int32_t most_silent(const struct sf_world *world, int64_t now, int64_t limit_ns)
{
    if (now < world->judge_ns) return -1;
    int32_t first = world->rank == 0 ? 1 : 0, end = world->rank == 0 ? world->size : 1;
    int32_t found = -1;
    for (int32_t r = first; r < end; r++) {
        if (world->peer[r].left || now - world->peer[r].heard_ns < limit_ns) continue;
        if (found < 0 || world->peer[r].heard_ns < world->peer[found].heard_ns) found = r;
    }
    return found;
}

/* Rank 0 names a rank that has been silent for so long. */
static int64_t silence_max(const struct sf_world *world)
{
    int64_t limit = world->timeout_ns - world->beat_ns;
    return limit < world->timeout_ns / 2 ? world->timeout_ns / 2 : limit;
}

/* Hearing also lets MPI move what is under way, so it is done at every tick; judging now and then.
 * An absence puts off the verdict only if it is long beside the silence that is judged: a rank 0
 * that computes for longer than a beat between two looks, again and again, must judge too. */
static sf_status look(struct sf_world *world, int64_t now)
{
    SF_TRY(hear_signs(world, now));
    int64_t away = now - world->looked_ns;
    world->looked_ns = now;
    if (away > silence_max(world) / 4) world->judge_ns = now + world->beat_ns / 2;
    if (world->rank != 0 || now - world->judged_ns < JUDGE_NS) return SF_OK;
    world->judged_ns = now;
    int32_t silent = most_silent(world, now, silence_max(world));
    return silent < 0 ? SF_OK : fail_silent(world, silent, now);
}

sf_status sf_world_tick(struct sf_world *world, int64_t now)
{
    int exit_code = 0;
    if (world->ops->ended(world, &exit_code)) {
        world->broken = 1;
        return SF_FAIL(SF_LOST, "the job is being ended with exit code %d", exit_code);
    }
    if (world->posts > 0) SF_TRY(sf_comm_poll_posts(world));
    if (world->progress != NULL && !world->in_progress) {
        world->in_progress = 1;
        world->progress(world->progress_arg);
        world->in_progress = 0;
    }
    if (world->size == 1) return SF_OK;
    SF_TRY(send_signs(world, now));
    return look(world, now);
}

sf_status sf_comm_beat(struct sf_comm *comm, const char *note, int64_t number)
{
    struct sf_world *world = comm->world;
    snprintf(world->note, sizeof world->note, "%s", note);
    world->number = number;
    return sf_world_tick(world, sf_now_ns());
}

/* Waits until the last sign to a rank has gone out, so that the next one is sure to be sent. */
static sf_status flush_sign(struct sf_wait *wait, int32_t rank)
{
    struct sf_world *world = wait->comm->world;
    struct sf_peer *peer = &world->peer[rank];
    int done = peer->sign == NULL;
    wait->peer = rank;
    while (!done) {
        SF_TRY(world->ops->sent(peer->sign, &done));
        if (!done) SF_TRY(sf_comm_pause(wait));
    }
    return SF_OK;
}

/* Goodbyes are the last messages of their channel: when a rank has heard those meant for it, no
 * sign of life is under way to it any more.  Rank 0 goes on giving signs until all have left. */
sf_status sf_world_goodbye(struct sf_world *world)
{
    if (world->size == 1) return SF_OK;
    int32_t first = world->rank == 0 ? 1 : 0, end = world->rank == 0 ? world->size : 1;
    struct sf_wait wait = sf_wait_begin(world->root, "end of the job", first, 0);
    for (int turn = 0; turn < 2; turn++) {
        int listen = (world->rank == 0) == (turn == 0);
        if (!listen) world->leaving = 1;
        for (int32_t r = first; r < end; r++) {
            if (!listen) {
                SF_TRY(flush_sign(&wait, r));
                SF_TRY(send_sign(world, r, SIGN_GOODBYE));
                SF_TRY(flush_sign(&wait, r));
            }
            wait.peer = r;
            while (listen && !world->peer[r].left) SF_TRY(sf_comm_pause(&wait));
        }
    }
    return SF_OK;
}

void sf_world_wave(struct sf_world *world)
{
    int32_t first = world->rank == 0 ? 1 : 0, end = world->rank == 0 ? world->size : 1;
    struct sign sign = { .kind = SIGN_GOODBYE };
    for (int32_t r = first; r < end; r++) {
        struct sf_request *request;
        if (sf_comm_start_copy(world->root, SF_CHANNEL_LIFE, r, 0, &sign, sizeof sign,
                               &request) != SF_OK)
            return;
        if (!world->ops->drop(world, request, 1)) sf_request_recycle(world, request);
    }
}

/* ---- waiting --------------------------------------------------------------------------------- */
struct sf_wait sf_wait_begin(struct sf_comm *comm, const char *what, int32_t peer, int forever)
{
    return (struct sf_wait){ .comm = comm, .what = what, .peer = peer, .forever = forever,
                             .last_ns = sf_now_ns() };
}

sf_status sf_comm_check(struct sf_wait *wait)
{
    struct sf_world *world = wait->comm->world;
    int64_t now = sf_now_ns();
    int64_t round = now - wait->last_ns;
    wait->last_ns = now;
    wait->waited_ns += round < world->beat_ns ? round : world->beat_ns;
    SF_TRY(sf_world_tick(world, now));
    int64_t limit = world->timeout_ns + (world->rank == 0 ? 0 : world->grace_ns);
    if (wait->waited_ns < limit) return SF_OK;
    /* Whoever is silent is to blame rather than whoever waits for him in turn. */
    int forever = wait->forever && !world->peer[0].left;
    int32_t silent = most_silent(world, now, forever ? limit : SUSPICIOUS_BEATS * world->beat_ns);
    if (silent >= 0) return fail_silent(world, silent, now);
    return forever ? SF_OK : fail_deadline(wait);
}

static void back_off(struct sf_wait *wait)
{
    struct sf_world *world = wait->comm->world;
    int32_t round = wait->rounds - (world->spin ? SPINS : 0);
    if (round < YIELDS + ROUNDS) wait->rounds++;        /* a wait may last for days */
    if (round < 0) return;
    if (round < YIELDS) {
        sched_yield();
        return;
    }
    int32_t doublings = (round - YIELDS) / 8;
    int64_t us = doublings < 4 ? (int64_t)SLEEP_US_MIN << doublings : SLEEP_US_MAX;
    world->ops->idle(world, us);
}

sf_status sf_comm_pause(struct sf_wait *wait)
{
    SF_TRY(sf_comm_check(wait));
    back_off(wait);
    return SF_OK;
}
