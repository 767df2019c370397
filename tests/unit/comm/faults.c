/* What goes wrong, on ranks as threads with short deadlines: a wait ends in time and names whom it
 * waited for; a silent rank is named by rank 0 with what it last did, rank 0 by the others; nobody
 * is named who shows signs of life, was only not looked at, or has left; the end of a job reaches
 * every call of every rank; and what a failed rank leaves behind is not read and does not leak.
 *
 * Bounds from below are exact; those from above leave room for a busy machine (SLACK).  Variants of
 * a test, which mostly sleep, run side by side. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "comm/backend.h"
#include "comm/reduce.h"
#include "tests/check.h"

enum { RANKS = 4, TIMEOUT = 600, BEAT = 30, GRACE = 200, SLACK = 1500, LONG = 30000 };  /* ms */

struct rig;
struct thread { pthread_t id; struct rig *rig; int32_t rank; };

struct rig {
    struct thread thread[RANKS];
    struct sf_comm *comm[RANKS];
    int32_t ranks;
    void (*run)(struct rig *, int32_t rank);
    _Atomic int over;                   /* the victims may wake */
    int32_t variant;
    sf_status status[RANKS];
    char words[RANKS][512];
    int64_t took_ms[RANKS];
};

static void *run_rank(void *arg)
{
    struct thread *self = arg;
    self->rig->run(self->rig, self->rank);
    return NULL;
}

static sf_status rig_open(struct rig *rig, int32_t ranks, int64_t timeout_ms, int64_t beat_ms)
{
    struct sf_comm_options options = { .timeout_ms = timeout_ms, .beat_ms = beat_ms };
    SF_TRY(sf_comm_loopback_world(ranks, 0, &options, rig->comm));
    rig->ranks = ranks;
    for (int32_t r = 0; r < ranks; r++) {
        struct sf_world *world = rig->comm[r]->world;
        /* The two share what was asked for; here each is given on its own. */
        SF_CHECK_INT(world->timeout_ns + world->grace_ns, timeout_ms * 1000000);
        SF_CHECK(world->grace_ns > 0 && world->grace_ns < world->timeout_ns);
        world->timeout_ns = timeout_ms * 1000000;
        world->grace_ns = (int64_t)GRACE * 1000000;
        for (int32_t other = 0; other < ranks; other++)
            sf_comm_describe(rig->comm[r], other, other == 0 ? "head" : "hand");
    }
    return SF_OK;
}

static void rig_start(struct rig *rig, void (*run)(struct rig *, int32_t))
{
    rig->run = run;
    for (int32_t r = 0; r < rig->ranks; r++) {
        struct thread *thread = &rig->thread[r];
        *thread = (struct thread){ .rig = rig, .rank = r };
        SF_CHECK_INT(pthread_create(&thread->id, NULL, run_rank, thread), 0);
    }
}

static void rig_join(struct rig *rig)
{
    for (int32_t r = 0; r < rig->ranks; r++) pthread_join(rig->thread[r].id, NULL);
    for (int32_t r = 0; r < rig->ranks; r++) sf_comm_destroy(rig->comm[r]);
}

static void rig_run(struct rig *rig, void (*run)(struct rig *, int32_t))
{
    rig_start(rig, run);
    rig_join(rig);
}

/* What a rank's call gave, with its words and its time. */
static void note(struct rig *rig, int32_t rank, sf_status status, int64_t began_ns)
{
    rig->status[rank] = status;
    rig->took_ms[rank] = (sf_now_ns() - began_ns) / 1000000;
    snprintf(rig->words[rank], sizeof rig->words[rank], "%s",
             status == SF_OK ? "" : sf_error_text());
}

static void check_words(const struct rig *rig, int32_t rank, const char *part)
{
    int found = strstr(rig->words[rank], part) != NULL;
    if (!found)
        sf_test_fail(__FILE__, __LINE__, "variant %d, rank %d: \"%s\" is not in \"%s\"",
                     rig->variant, rank, part, rig->words[rank]);
}

static void check_took(const struct rig *rig, int32_t rank, int64_t least_ms)
{
    if (rig->took_ms[rank] < least_ms || rig->took_ms[rank] > least_ms + SLACK)
        sf_test_fail(__FILE__, __LINE__, "variant %d, rank %d took %lld ms, expected %lld to %lld",
                     rig->variant, rank, (long long)rig->took_ms[rank], (long long)least_ms,
                     (long long)least_ms + SLACK);
}

static void live_until_over(struct rig *rig, int32_t rank)
{
    while (!atomic_load(&rig->over) && sf_comm_beat(rig->comm[rank], "live", 1) == SF_OK)
        sf_sleep_us(2000);
}

/* ---- deadlines ------------------------------------------------------------------------------- */
enum wait { RECEIVE, TAKE, SEND, BARRIER, BCAST, WINDOW, REDUCE, WAITS };
static const char *const wait_words[WAITS] = { "(receive, group 'world')", "(take, group 'world')",
    "(send, group 'world')", "(receive, group 'world')", "(receive, group 'world')",
    "(window barrier, group 'world')", "(receive, group 'world')" };

static sf_status wait_for(struct sf_comm *world, int32_t peer, enum wait wait,
                          struct sf_window *window, struct sf_reduce *reduce)
{
    static const struct sf_leaf leaf[] = { { 0, 0 }, { 1, 0 } };
    int32_t number = 0, all[RANKS];
    float x[4] = { 0 };
    struct sf_request *request;
    struct sf_buffer in = { 0 };
    switch (wait) {
    case RECEIVE: return sf_comm_recv(world, peer, 1, &number, sizeof number);
    case TAKE: return sf_comm_take(world, peer, 1, 1, &in, NULL);
    case SEND:
        SF_TRY(sf_comm_isend(world, peer, 1, &number, sizeof number, &request));
        return sf_comm_wait(world, request);
    case BARRIER: return sf_comm_allgather(world, &number, sizeof number, all);
    case BCAST: return sf_comm_bcast(world, peer, &number, sizeof number);
    case WINDOW: return sf_comm_window_barrier(world, window);
    case REDUCE: return sf_reduce_add(reduce, 1, leaf, 2, x, 4);
    case WAITS: break;
    }
    return SF_INTERNAL;
}

/* Rank `variant / WAITS` waits for the other one of two, which lives and does not come. */
static void run_deadline(struct rig *rig, int32_t rank)
{
    struct sf_comm *world = rig->comm[rank];
    int32_t waiter = rig->variant / WAITS;
    struct sf_window *window = NULL;
    struct sf_reduce *reduce = NULL;
    struct sf_reduce_spec spec = { .rows_max = 1, .cols = 4, .leaves_max = 1, .exchange = 1 };
    sf_status status = sf_comm_window_create(world, 8, &window);
    if (status == SF_OK) status = sf_reduce_create(world, &spec, &reduce);
    int64_t began = sf_now_ns();
    if (status != SF_OK) {
        note(rig, rank, status, began);
    } else if (rank == waiter) {
        note(rig, rank, wait_for(world, 1 - rank, (enum wait)(rig->variant % WAITS), window,
                                 reduce), began);
        atomic_store(&rig->over, 1);
    } else {
        live_until_over(rig, rank);
    }
    sf_reduce_destroy(reduce);
    sf_comm_window_destroy(world, window);
}

static void test_deadlines(void)
{
    static struct rig rigs[2 * WAITS];
    for (int32_t variant = 0; variant < 2 * WAITS; variant++) {
        rigs[variant].variant = variant;
        SF_MUST(rig_open(&rigs[variant], 2, TIMEOUT, BEAT));
        rig_start(&rigs[variant], run_deadline);
    }
    for (int32_t variant = 0; variant < 2 * WAITS; variant++) {
        struct rig *rig = &rigs[variant];
        int32_t waiter = variant / WAITS, wait = variant % WAITS;
        /* A gathering rank sends; its parent's part is to receive. */
        const char *what = wait == BARRIER && waiter == 1 ? "(send, " : wait_words[wait];
        char words[96];
        rig_join(rig);
        SF_CHECK_INT(rig->status[waiter], SF_TIMEOUT);
        snprintf(words, sizeof words, "rank %d waited ", waiter);
        check_words(rig, waiter, words);
        snprintf(words, sizeof words, "for rank %d (%s, host ", 1 - waiter,
                 waiter == 1 ? "head" : "hand");
        check_words(rig, waiter, words);
        check_words(rig, waiter, what);
        check_took(rig, waiter, waiter == 0 ? TIMEOUT : TIMEOUT + GRACE);
    }
}

/* A reduction waits for its deadline once, although it leaves sends to three ranks behind. */
static void run_once(struct rig *rig, int32_t rank)
{
    static const struct sf_leaf leaf[] = { { 0, 0 }, { 1, 0 }, { 2, 0 }, { 3, 0 } };
    struct sf_reduce_spec spec = { .rows_max = 1, .cols = 8, .leaves_max = 1, .exchange = 1 };
    struct sf_reduce *reduce = NULL;
    float x[8] = { 0 };
    if (sf_reduce_create(rig->comm[rank], &spec, &reduce) != SF_OK) return;
    int64_t began = sf_now_ns();
    if (rank == 0) {
        note(rig, rank, sf_reduce_add(reduce, 1, leaf, 4, x, 8), began);
        atomic_store(&rig->over, 1);
    } else {
        live_until_over(rig, rank);
    }
    sf_reduce_destroy(reduce);
}

static void test_one_deadline(void)
{
    struct rig rig = { 0 };
    SF_MUST(rig_open(&rig, RANKS, 1000, BEAT));
    rig_run(&rig, run_once);
    SF_CHECK_INT(rig.status[0], SF_TIMEOUT);
    check_words(&rig, 0, "for rank 1 (hand, host ");
    check_words(&rig, 0, "(receive, ");
    check_took(&rig, 0, 1000);
}

/* ---- silent ranks ---------------------------------------------------------------------------- */
enum { VICTIM = 2 };

/* Rank 2 falls silent; rank 0 waits in one of four ways; the others wait for ever. */
static void run_silent(struct rig *rig, int32_t rank)
{
    struct sf_comm *world = rig->comm[rank];
    int32_t number = 0;
    struct sf_buffer in = { 0 };
    sf_status status = sf_comm_beat(world, "layer", 7);
    if (status == SF_OK) status = sf_comm_barrier(world);
    int64_t began = sf_now_ns();
    if (rank == VICTIM) {
        while (!atomic_load(&rig->over)) sf_sleep_us(2000);
        note(rig, rank, sf_comm_beat(world, "layer", 8), began);
        return;
    }
    if (rank != 0) {
        if (status == SF_OK) status = sf_comm_take(world, 0, 1, 2, &in, NULL);
        note(rig, rank, status, began);
        return;
    }
    switch (rig->variant) {
    case 0: status = sf_comm_barrier(world); break;
    case 1: status = sf_comm_take(world, SF_RANK_ANY, 1, 2, &in, NULL); break;
    case 2: status = sf_comm_recv(world, 1, 1, &number, sizeof number); break;
    default:                            /* it computes, and looks less often than once a beat */
        while (status == SF_OK) {
            sf_sleep_us(BEAT * 1500);
            status = sf_comm_beat(world, "layer", 9);
        }
    }
    note(rig, rank, status, began);
    sf_comm_abort(world, 1);
    atomic_store(&rig->over, 1);
}

static void test_silent(void)
{
    static struct rig rigs[4];
    for (int32_t variant = 0; variant < 4; variant++) {
        rigs[variant].variant = variant;
        SF_MUST(rig_open(&rigs[variant], RANKS, TIMEOUT, BEAT));
        rig_start(&rigs[variant], run_silent);
    }
    for (int32_t variant = 0; variant < 4; variant++) {
        struct rig *rig = &rigs[variant];
        rig_join(rig);
        SF_CHECK_INT(rig->status[0], SF_TIMEOUT);
        check_words(rig, 0, "rank 2 (hand, host ");
        check_words(rig, 0, "has shown no sign of life for ");
        check_words(rig, 0, "; last: layer 7");
        check_took(rig, 0, TIMEOUT - 3 * BEAT);
        for (int32_t r = 1; r < RANKS; r++) {
            SF_CHECK_INT(rig->status[r], SF_LOST);
            check_words(rig, r, "the job is being ended with exit code 1");
        }
    }
}

/* Rank 0 falls silent: the others name it, a little later than it would have named them. */
static void run_headless(struct rig *rig, int32_t rank)
{
    struct sf_comm *world = rig->comm[rank];
    int32_t number = 0;
    struct sf_buffer in = { 0 };
    if (sf_comm_beat(world, "head", 3) != SF_OK || sf_comm_barrier(world) != SF_OK) return;
    int64_t began = sf_now_ns();
    if (rank == 0)
        while (atomic_load(&rig->over) < rig->ranks - 1) sf_sleep_us(2000);
    else if (rank == 1)
        note(rig, rank, sf_comm_take(world, 0, 1, 2, &in, NULL), began);
    else                                /* it waits for rank 1, but rank 0 is to blame */
        note(rig, rank, sf_comm_recv(world, 1, 1, &number, sizeof number), began);
    atomic_fetch_add(&rig->over, 1);
}

static void test_headless(void)
{
    struct rig rig = { 0 };
    SF_MUST(rig_open(&rig, 3, TIMEOUT, BEAT));
    rig_run(&rig, run_headless);
    for (int32_t r = 1; r < 3; r++) {
        SF_CHECK_INT(rig.status[r], SF_TIMEOUT);
        check_words(&rig, r, "rank 0 (head, host ");
        check_words(&rig, r, "has shown no sign of life");
        check_words(&rig, r, "; last: head 3");
        check_took(&rig, r, TIMEOUT + GRACE - 2 * BEAT);
    }
}

/* ---- nobody is named without cause ----------------------------------------------------------- */
/* Variant 0: all wait without deadline for much longer than the timeout, with a beat that was asked
 * for as long as that.  1: rank 0 is away for long; its silence is not that of the others. */
static void run_quiet(struct rig *rig, int32_t rank)
{
    struct sf_comm *world = rig->comm[rank];
    int64_t began = sf_now_ns();
    struct sf_buffer in = { 0 };
    int32_t number = 1;
    sf_status status = SF_OK;
    if (rank == 0) {
        if (rig->variant == 1) sf_sleep_us(3 * TIMEOUT * 1000);
        while (status == SF_OK && sf_now_ns() - began < (int64_t)4 * TIMEOUT * 1000000) {
            status = sf_comm_beat(world, "idle", 0);
            sf_sleep_us(1000);
        }
        for (int32_t r = 1; r < rig->ranks && status == SF_OK; r++)
            status = sf_comm_post(world, r, 1, &number, sizeof number);
    } else {
        status = sf_comm_take(world, 0, 1, 2, &in, NULL);
    }
    if (status == SF_OK) status = sf_comm_barrier(world);
    note(rig, rank, status, began);
    sf_buffer_free(&in);
}

/* Variant 2: rank 1 is done and leaves; rank 0 and rank 2 work on for longer than the timeout. */
static void run_leaver(struct rig *rig, int32_t rank)
{
    struct sf_comm *world = rig->comm[rank];
    int32_t number = 5, more = 1;       /* rank 0 says whether another turn follows */
    sf_status status = sf_comm_barrier(world);
    int64_t began = sf_now_ns();
    if (rank == 1) {
        if (status == SF_OK) status = sf_comm_post(world, 0, 1, &number, sizeof number);
        sf_comm_destroy(world);
        rig->comm[rank] = NULL;
    }
    while (rank != 1 && status == SF_OK && more) {
        if (rank == 0) more = sf_now_ns() - began < (int64_t)3 * TIMEOUT * 1000000;
        if (rank == 0) status = sf_comm_post(world, 2, 2, &more, sizeof more);
        else status = sf_comm_recv(world, 0, 2, &more, sizeof more);
        sf_sleep_us(1000);
    }
    /* its last post is still there */
    if (rank == 0 && status == SF_OK) status = sf_comm_recv(world, 1, 1, &number, sizeof number);
    note(rig, rank, status, began);
}

static void test_unnamed(void)
{
    static struct rig rigs[3];
    for (int32_t variant = 0; variant < 3; variant++) {
        struct rig *rig = &rigs[variant];
        rig->variant = variant;
        SF_MUST(rig_open(rig, 3, TIMEOUT, variant == 0 ? TIMEOUT : BEAT));
        for (int32_t r = 0; r < 3 && variant == 1; r++)
            rig->comm[r]->world->grace_ns = (int64_t)LONG * 1000000;
        rig_start(rig, variant == 2 ? run_leaver : run_quiet);
    }
    for (int32_t variant = 0; variant < 3; variant++) {
        rig_join(&rigs[variant]);
        for (int32_t r = 0; r < 3; r++) {
            SF_CHECK_INT(rigs[variant].status[r], SF_OK);
            SF_CHECK_STR(rigs[variant].words[r], "");
        }
    }
}

/* ---- the end of a job ------------------------------------------------------------------------ */
/* Rank 1 ends it; rank 0 is waiting by then; afterwards each call of each rank says so. */
static void run_end(struct rig *rig, int32_t rank)
{
    struct sf_comm *world = rig->comm[rank];
    struct sf_window *window = NULL;
    struct sf_reduce *reduce = NULL;
    struct sf_request *request = NULL;
    struct sf_reduce_spec spec = { .rows_max = 1, .cols = 4, .leaves_max = 1, .exchange = 1 };
    int32_t number = 0, wrong = 0, from;
    struct sf_buffer in = { 0 };
    wrong += sf_comm_window_create(world, 8, &window) != SF_OK;
    wrong += sf_reduce_create(world, &spec, &reduce) != SF_OK;
    wrong += sf_comm_isend(world, 1 - rank, 5, &number, sizeof number, &request) != SF_OK;
    int64_t began = sf_now_ns();
    if (rank == 1) {
        sf_sleep_us(20000);
        sf_comm_abort(world, 9);
    }
    wrong += sf_comm_recv(world, 1 - rank, 1, &number, sizeof number) != SF_LOST;
    note(rig, rank, SF_LOST, began);
    wrong += sf_comm_wait(world, request) != SF_LOST;
    wrong += sf_comm_beat(world, "x", 0) != SF_LOST;
    wrong += sf_comm_post(world, 1 - rank, 1, &number, sizeof number) != SF_LOST;
    wrong += sf_comm_isend(world, 1 - rank, 1, &number, sizeof number, &request) != SF_LOST;
    wrong += sf_comm_take(world, 1 - rank, 1, 0, &in, &from) != SF_LOST;
    for (enum wait wait = RECEIVE; wait < WAITS; wait++)
        wrong += wait_for(world, 1 - rank, wait, window, reduce) != SF_LOST;
    sf_reduce_destroy(reduce);
    sf_comm_window_destroy(world, window);
    rig->status[rank] = wrong == 0 ? SF_LOST : SF_INTERNAL;
}

static void test_end(void)
{
    struct rig rig = { 0 };
    SF_MUST(rig_open(&rig, 2, LONG, BEAT));
    rig_run(&rig, run_end);
    for (int32_t r = 0; r < 2; r++) {
        SF_CHECK_INT(rig.status[r], SF_LOST);
        check_words(&rig, r, "the job is being ended with exit code 9");
    }
    check_took(&rig, 0, 0);
}

/* A rank that has failed drops its send and frees the bytes; nobody reads them afterwards. */
static void run_drop(struct rig *rig, int32_t rank)
{
    struct sf_comm *world = rig->comm[rank];
    int64_t began = sf_now_ns();
    struct sf_request *request;
    sf_status status = SF_OK;
    if (rank == 0) {
        char *bytes = calloc(1, 1000);
        status = sf_comm_isend(world, 1, 1, bytes, 1000, &request);
        if (status == SF_OK) sf_comm_drop(world, request);
        free(bytes);
    }
    if (status == SF_OK) status = sf_comm_barrier(world);
    struct sf_buffer in = { 0 };
    int32_t from = SF_RANK_ANY;
    if (rank == 1 && status == SF_OK)
        status = sf_comm_take(world, SF_RANK_ANY, SF_TAG_ANY, 0, &in, &from);
    note(rig, rank, from == SF_RANK_ANY ? status : SF_INTERNAL, began);
    sf_buffer_free(&in);
}

static void test_drop(void)
{
    struct rig rig = { 0 };
    SF_MUST(rig_open(&rig, 2, LONG, BEAT));
    rig_run(&rig, run_drop);
    for (int32_t r = 0; r < 2; r++) SF_CHECK_INT(rig.status[r], SF_OK);
}

/* What nobody received is freed: posts of a rank that has left, and a window of which the others
 * never heard: they have only come to the barrier before it. */
static void run_leftovers(struct rig *rig, int32_t rank)
{
    struct sf_comm *world = rig->comm[rank];
    struct sf_window *window = NULL;
    int64_t began = sf_now_ns();
    char bytes[300] = { 0 };
    sf_status status = SF_OK;
    for (int32_t i = 0; i < 20 && status == SF_OK; i++)
        status = sf_comm_post(world, (rank + 1) % rig->ranks, i, bytes, sizeof bytes);
    if (status == SF_OK && rank == 0) status = sf_comm_window_create(world, 64, &window);
    else if (status == SF_OK) status = sf_comm_barrier(world);
    note(rig, rank, status, began);
}

static void test_leftovers(void)
{
    struct rig rig = { 0 };
    SF_MUST(rig_open(&rig, 3, TIMEOUT, BEAT));
    rig_run(&rig, run_leftovers);
    SF_CHECK_INT(rig.status[0], SF_TIMEOUT);
    for (int32_t r = 1; r < 3; r++) SF_CHECK_INT(rig.status[r], SF_OK);
}

static const struct sf_test tests[] = {
    { "deadlines", test_deadlines },
    { "one deadline", test_one_deadline },
    { "silent", test_silent },
    { "headless", test_headless },
    { "unnamed", test_unnamed },
    { "end", test_end },
    { "drop", test_drop },
    { "leftovers", test_leftovers },
    { NULL, NULL }
};
SF_TEST_MAIN("comm_faults", tests)
