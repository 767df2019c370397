/* Every thing is worked on once, whatever the count, the piece and the threads; no two threads have
 * one number at a time; what work wrote is there when a call returns, in a hundred thousand short
 * calls, after threads have gone to sleep, and where the caller has to sleep for one that takes
 * long; pieces begin in order; more threads than cores are no fault (run under the thread sanitizer
 * too).  Threads that sleep take no time of a core; they leave signals but faults to others; where
 * one cannot be started, none stays. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/crew.h"
#include "tests/check.h"

enum { THINGS = 500, THREADS = 5 };

struct seen {
    int32_t times[THINGS], piece, threads, slow_us;     /* plain: calls order what is written */
    _Atomic int32_t inside[THREADS], begun, wrong, helped;
};

static void see(void *context, int32_t first, int32_t end, int32_t thread)
{
    struct seen *seen = context;
    if (thread < 0 || thread >= seen->threads || atomic_fetch_add(&seen->inside[thread], 1) != 0)
        atomic_fetch_add(&seen->wrong, 1);
    if (first < 0 || first >= end || end > THINGS || end - first > seen->piece)
        atomic_fetch_add(&seen->wrong, 1);
    for (int32_t i = first; i < end; i++) seen->times[i]++;
    if (thread != 0) {
        atomic_fetch_add(&seen->helped, 1);
        if (seen->slow_us > 0) sf_sleep_us(seen->slow_us);
    }
    atomic_fetch_sub(&seen->inside[thread], 1);
}

static void check_once(struct seen *seen, int32_t count)
{
    int32_t wrong = atomic_load(&seen->wrong);
    for (int32_t i = 0; i < THINGS; i++) wrong += seen->times[i] != (i < count);
    SF_CHECK_INT(wrong, 0);
    memset(seen->times, 0, sizeof seen->times);
}

static void test_once(void)
{
    static const int32_t counts[] = { 0, 1, 2, 3, 7, 64, 499, THINGS };
    static const int32_t pieces[] = { 1, 2, 3, 64, THINGS };
    for (int32_t threads = 1; threads <= THREADS; threads++) {
        struct sf_crew *crew = NULL;
        struct seen seen = { .threads = threads };
        SF_MUST(sf_crew_create(threads, &crew));
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
            for (size_t p = 0; p < sizeof pieces / sizeof *pieces; p++) {
                /* One thread takes all at once. */
                seen.piece = threads == 1 ? THINGS : pieces[p];
                sf_crew_run(crew, counts[c], pieces[p], see, &seen);
                check_once(&seen, counts[c]);
            }
        sf_crew_destroy(crew);
    }
    struct seen seen = { .threads = 1, .piece = THINGS };
    sf_crew_run(NULL, 100, 3, see, &seen);
    check_once(&seen, 100);
    sf_crew_destroy(NULL);
}

static void test_piece(void)
{
    struct sf_crew *crew = NULL;
    SF_CHECK_INT(sf_crew_piece(NULL, 100), 100);
    SF_CHECK_INT(sf_crew_piece(NULL, 0), 1);
    SF_MUST(sf_crew_create(3, &crew));
    for (int32_t count = 0; count < 200; count++) {
        int32_t piece = sf_crew_piece(crew, count), pieces = (count + piece - 1) / piece;
        SF_CHECK(piece >= 1 && pieces <= 12 && (count < 12 ? pieces == count : pieces >= 6));
    }
    sf_crew_destroy(crew);
}

/* Pieces begin in order: of any two on one thread the later has the greater number, and when one is
 * worked on all before it are, but for those that other threads have taken and not yet counted. */
static void in_order(void *context, int32_t first, int32_t end, int32_t thread)
{
    struct seen *seen = context;
    int32_t last = seen->times[thread];
    if (first + 1 <= last || atomic_fetch_add(&seen->begun, 1) + THREADS - 1 < first)
        atomic_fetch_add(&seen->wrong, 1);
    seen->times[thread] = end;
}

static void test_order(void)
{
    struct sf_crew *crew = NULL;
    SF_MUST(sf_crew_create(THREADS, &crew));
    for (int turn = 0; turn < 200; turn++) {
        struct seen seen = { .threads = THREADS };
        sf_crew_run(crew, THINGS, 1, in_order, &seen);
        SF_CHECK_INT(atomic_load(&seen.wrong), 0);
        SF_CHECK_INT(atomic_load(&seen.begun), THINGS);
    }
    sf_crew_destroy(crew);
}

static void add(void *context, int32_t first, int32_t end, int32_t thread)
{
    int64_t *value = context;
    (void)thread;
    for (int32_t i = first; i < end; i++) value[i] += value[i + 8];
}

/* Each call reads what the one before it wrote on whatever thread. */
static void test_short_calls(void)
{
    struct sf_crew *crew = NULL;
    int64_t value[16] = { 0 };
    enum { CALLS = 100000 };
    SF_MUST(sf_crew_create(2, &crew));
    for (int call = 0; call < CALLS; call++) {
        for (int i = 0; i < 8; i++) value[8 + i] = call + i;
        sf_crew_run(crew, 8, 1, add, value);
    }
    for (int64_t i = 0; i < 8; i++)
        SF_CHECK_INT(value[i], (int64_t)CALLS * (CALLS - 1) / 2 + i * CALLS);
    sf_crew_destroy(crew);
}

static void test_sleepers(void)
{
    struct sf_crew *crew = NULL;
    struct seen seen = { .threads = 3, .piece = 1, .slow_us = 5 * SF_CREW_SPIN_NS / 1000 };
    SF_MUST(sf_crew_create(3, &crew));
    for (int turn = 0; turn < 20; turn++) {
        sf_sleep_us(3 * SF_CREW_SPIN_NS / 1000);        /* the threads sleep */
        sf_crew_run(crew, 60, 1, see, &seen);           /* and then the caller, for them */
        check_once(&seen, 60);
    }
    /* Woken threads come sooner or later. */
    int64_t until = sf_now_ns() + 10000000000;
    while (atomic_load(&seen.helped) == 0 && sf_now_ns() < until) {
        sf_crew_run(crew, THINGS, 1, see, &seen);
        check_once(&seen, THINGS);
    }
    SF_CHECK(atomic_load(&seen.helped) > 0);
    sf_crew_destroy(crew);
}

/* Two crews, each with a caller of its own. */
static void *call_much(void *argument)
{
    struct sf_crew *crew = argument;
    struct seen seen = { .threads = 2, .piece = 7 };
    for (int i = 0; i < 2000; i++) sf_crew_run(crew, THINGS, 7, see, &seen);
    intptr_t wrong = atomic_load(&seen.wrong);
    for (int i = 0; i < THINGS; i++) wrong += seen.times[i] != 2000;
    return (void *)wrong;
}

static void test_two_crews(void)
{
    struct sf_crew *crew[2] = { NULL };
    pthread_t caller[2];
    for (int i = 0; i < 2; i++) SF_MUST(sf_crew_create(2, &crew[i]));
    for (int i = 0; i < 2; i++)
        SF_CHECK_INT(pthread_create(&caller[i], NULL, call_much, crew[i]), 0);
    for (int i = 0; i < 2; i++) {
        void *wrong;
        pthread_join(caller[i], &wrong);
        SF_CHECK_INT((intptr_t)wrong, 0);
        sf_crew_destroy(crew[i]);
    }
}

static void test_many_threads(void)
{
    enum { MANY = 64, TURNS = 300 };
    struct sf_crew *crew = NULL;
    int64_t value[16] = { 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1 };
    SF_MUST(sf_crew_create(MANY, &crew));
    for (int turn = 0; turn < TURNS; turn++) sf_crew_run(crew, 8, 1, add, value);
    for (int i = 0; i < 8; i++) SF_CHECK_INT(value[i], TURNS);
    sf_crew_destroy(crew);
}

/* ---- threads that have nothing to do --------------------------------------------------------- */
static int64_t cpu_us(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000LL + used.ru_utime.tv_usec +
           used.ru_stime.tv_usec;
}

/* Four threads that look for work would take all of a core at least. */
static void test_idle(void)
{
    enum { WAIT_US = 300000 };
    struct sf_crew *crew = NULL;
    struct seen seen = { .threads = THREADS, .piece = 1 };
    SF_MUST(sf_crew_create(THREADS, &crew));
    sf_crew_run(crew, THINGS, 1, see, &seen);
    check_once(&seen, THINGS);
    sf_sleep_us(100000);
    int64_t before = cpu_us();
    sf_sleep_us(WAIT_US);
    SF_CHECK(cpu_us() - before < WAIT_US / 5);
    sf_crew_destroy(crew);
}

static int blocks(const sigset_t *mask)
{
    return sigismember(mask, SIGTERM) && sigismember(mask, SIGUSR1) && sigismember(mask, SIGCHLD);
}

/* Counts helpers with a wrong mask; helpers take their time, so that they are there. */
static void look_at_signals(void *context, int32_t first, int32_t end, int32_t thread)
{
    struct seen *seen = context;
    sigset_t mask;
    (void)first, (void)end;
    if (thread == 0) {
        sf_sleep_us(200);
        return;
    }
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    atomic_fetch_add(&seen->wrong, !blocks(&mask) || sigismember(&mask, SIGSEGV) ||
                                       sigismember(&mask, SIGBUS));
    atomic_fetch_add(&seen->helped, 1);
}

static void test_signals(void)
{
    struct sf_crew *crew = NULL;
    struct seen seen = { .threads = 2 };
    sigset_t mask;
    SF_MUST(sf_crew_create(2, &crew));
    int64_t until = sf_now_ns() + 10000000000;
    while (atomic_load(&seen.helped) == 0 && sf_now_ns() < until)
        sf_crew_run(crew, 20, 1, look_at_signals, &seen);
    SF_CHECK(atomic_load(&seen.helped) > 0);
    SF_CHECK_INT(atomic_load(&seen.wrong), 0);
    sf_crew_destroy(crew);
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    SF_CHECK(!blocks(&mask));
}

/* ---- threads that cannot be started ---------------------------------------------------------- */
static int refuse_after = -1, joined;   /* threads that are started before one is refused */

int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __wrap_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*begin)(void *), void *argument)
{
    if (refuse_after >= 0 && refuse_after-- == 0) return EAGAIN;
    return __real_pthread_create(thread, attributes, begin, argument);
}

int __real_pthread_join(pthread_t, void **);
int __wrap_pthread_join(pthread_t, void **);
int __wrap_pthread_join(pthread_t thread, void **result)
{
    joined++;
    return __real_pthread_join(thread, result);
}

static void test_refused(void)
{
    for (int before = 0; before < THREADS - 1; before++) {
        struct sf_crew *crew = NULL;
        char words[64];
        sigset_t mask;
        refuse_after = before;
        joined = 0;
        SF_CHECK_INT(sf_crew_create(THREADS, &crew), SF_INTERNAL);
        SF_CHECK(crew == NULL);
        SF_CHECK_INT(joined, before);
        snprintf(words, sizeof words, "thread %d of %d of a rank: ", before + 2, THREADS);
        SF_CHECK(strstr(sf_error_text(), words) != NULL);
        SF_CHECK(strstr(sf_error_text(), strerror(EAGAIN)) != NULL);
        pthread_sigmask(SIG_BLOCK, NULL, &mask);
        SF_CHECK(!blocks(&mask));
    }
    refuse_after = -1;
}

static const struct sf_test tests[] = {
    { "once", test_once },
    { "piece", test_piece },
    { "order", test_order },
    { "short_calls", test_short_calls },
    { "sleepers", test_sleepers },
    { "two_crews", test_two_crews },
    { "many_threads", test_many_threads },
    { "idle", test_idle },
    { "signals", test_signals },
    { "refused", test_refused },
    { NULL, NULL }
};
SF_TEST_MAIN("base_crew", tests)
