/* base/crew.c: pieces are claimed by counting one word down.
 *
 *   word   | number of the call | pieces that nobody has begun |
 *
 * Who counts it down by one has the piece, and from then on the call cannot end before that piece
 * does; hence what is written of the call may be read.  A thread that comes late finds no piece, or
 * those of a later call, whose number keeps the two apart.
 *
 * Sleeping: who is about to says so and looks again; who has something to tell writes it first and
 * then looks for sleepers.  All of these are sequentially consistent, so one of the two sees the
 * other. */
#include "base/crew.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/signals.h"

enum { LINE = 64, LOOKS = 64, PIECES_PER_THREAD = 4 };

struct sf_crew {
    int32_t threads, started;
    /* Of the call; written before its pieces are there to be claimed. */
    sf_crew_work *work;
    void *context;
    int32_t count, piece, pieces;
    _Alignas(LINE) _Atomic uint64_t word;
    _Alignas(LINE) _Atomic int32_t ended;       /* pieces of the other threads */
    _Atomic int32_t awaited;                    /* the caller sleeps until they have */
    _Alignas(LINE) _Atomic int32_t asleep;      /* threads */
    _Atomic int32_t stop;
    pthread_mutex_t lock;
    pthread_cond_t begun, done;
    int32_t others;                             /* pieces that the caller waits for; its own */
    struct member { struct sf_crew *crew; pthread_t thread; int32_t number; } *member;
};

static void look_away(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int32_t left(uint64_t word) { return (int32_t)(uint32_t)word; }

/* Works on pieces until none is left: how many. */
static int32_t work_along(struct sf_crew *crew, int32_t thread)
{
    int32_t mine = 0;
    uint64_t word = atomic_load(&crew->word);
    while (left(word) > 0) {
        if (!atomic_compare_exchange_weak(&crew->word, &word, word - 1)) continue;
        int32_t first = (crew->pieces - left(word)) * crew->piece;
        int32_t rest = crew->count - first;
        crew->work(crew->context, first, first + (rest < crew->piece ? rest : crew->piece), thread);
        mine++;
        word = atomic_load(&crew->word);
    }
    return mine;
}

/* Looks for what `there` says, for SF_CREW_SPIN_NS at most: whether it came. */
static int look_for(struct sf_crew *crew, int (*there)(struct sf_crew *))
{
    int64_t end = 0;                            /* known after the first looks, which often do */
    for (;;) {
        for (int i = 0; i < LOOKS; i++) {
            if (there(crew)) return 1;
            look_away();
        }
        int64_t now = sf_now_ns();
        if (end == 0) end = now + SF_CREW_SPIN_NS;
        if (now >= end) return 0;
    }
}

/* ---- the threads ----------------------------------------------------------------------------- */
static int has_work(struct sf_crew *crew)
{
    return left(atomic_load(&crew->word)) > 0 || atomic_load(&crew->stop);
}

static void await_work(struct sf_crew *crew)
{
    if (look_for(crew, has_work)) return;
    pthread_mutex_lock(&crew->lock);
    atomic_fetch_add(&crew->asleep, 1);
    while (!has_work(crew)) pthread_cond_wait(&crew->begun, &crew->lock);
    atomic_fetch_sub(&crew->asleep, 1);
    pthread_mutex_unlock(&crew->lock);
}

static void *serve(void *argument)
{
    const struct member *member = argument;
    struct sf_crew *crew = member->crew;
    for (;;) {
        await_work(crew);
        if (atomic_load(&crew->stop)) return NULL;
        int32_t mine = work_along(crew, member->number);
        if (mine == 0) continue;
        atomic_fetch_add(&crew->ended, mine);
        if (!atomic_load(&crew->awaited)) continue;
        pthread_mutex_lock(&crew->lock);
        pthread_cond_signal(&crew->done);
        pthread_mutex_unlock(&crew->lock);
    }
}

/* ---- the caller ------------------------------------------------------------------------------ */
static int others_ended(struct sf_crew *crew)
{
    return atomic_load(&crew->ended) == crew->others;
}

static void await_others(struct sf_crew *crew)
{
    if (look_for(crew, others_ended)) return;
    pthread_mutex_lock(&crew->lock);
    atomic_store(&crew->awaited, 1);
    while (!others_ended(crew)) pthread_cond_wait(&crew->done, &crew->lock);
    atomic_store(&crew->awaited, 0);
    pthread_mutex_unlock(&crew->lock);
}

static void wake(struct sf_crew *crew)
{
    if (atomic_load(&crew->asleep) == 0) return;
    pthread_mutex_lock(&crew->lock);
    pthread_cond_broadcast(&crew->begun);
    pthread_mutex_unlock(&crew->lock);
}

void sf_crew_run(struct sf_crew *crew, int32_t count, int32_t piece, sf_crew_work *work,
                 void *context)
{
    SF_ASSERT(piece >= 1);
    if (count <= 0) return;
    if (crew == NULL || crew->threads == 1 || count <= piece) {
        work(context, 0, count, 0);
        return;
    }
    SF_ASSERT(crew->work == NULL);
    crew->work = work;
    crew->context = context;
    crew->count = count;
    crew->piece = piece;
    crew->pieces = (count - 1) / piece + 1;
    atomic_store(&crew->ended, 0);
    uint64_t number = (atomic_load(&crew->word) >> 32) + 1;
    atomic_store(&crew->word, number << 32 | (uint64_t)crew->pieces);
    wake(crew);
    crew->others = crew->pieces - work_along(crew, 0);
    await_others(crew);
    crew->work = NULL;
}

int32_t sf_crew_piece(const struct sf_crew *crew, int32_t count)
{
    int32_t pieces = crew != NULL ? crew->threads * PIECES_PER_THREAD : 1;
    return count <= pieces ? 1 : (count - 1) / pieces + 1;
}

/* ---- opening and closing --------------------------------------------------------------------- */
static sf_status start_all(struct sf_crew *crew)
{
    sigset_t before;
    int failed = 0;
    sf_signals_block(&before);
    while (!failed && crew->started < crew->threads - 1) {
        struct member *member = &crew->member[crew->started];
        *member = (struct member){.crew = crew, .number = crew->started + 1};
        failed = pthread_create(&member->thread, NULL, serve, member);
        if (!failed) crew->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) return SF_OK;
    return SF_FAIL(SF_INTERNAL, "could not start thread %d of %d of a rank: %s",
                   crew->started + 2, crew->threads, strerror(failed));
}

int64_t sf_crew_bytes(int32_t threads)
{
    return (int64_t)(sizeof(struct sf_crew) + (size_t)threads * sizeof(struct member));
}

sf_status sf_crew_create(int32_t threads, struct sf_crew **crew_out)
{
    SF_ASSERT(threads >= 1);
    void *block;
    SF_TRY(sf_alloc((size_t)sf_crew_bytes(threads), "threads", &block));
    struct sf_crew *crew = block;
    crew->member = (struct member *)(void *)((unsigned char *)block + sizeof *crew);
    crew->threads = threads;
    pthread_mutex_init(&crew->lock, NULL);
    pthread_cond_init(&crew->begun, NULL);
    pthread_cond_init(&crew->done, NULL);
    sf_status status = start_all(crew);
    if (status != SF_OK) {
        sf_crew_destroy(crew);
        return status;
    }
    *crew_out = crew;
    return SF_OK;
}

void sf_crew_destroy(struct sf_crew *crew)
{
    if (crew == NULL) return;
    pthread_mutex_lock(&crew->lock);
    atomic_store(&crew->stop, 1);
    pthread_cond_broadcast(&crew->begun);
    pthread_mutex_unlock(&crew->lock);
    for (int32_t i = 0; i < crew->started; i++) pthread_join(crew->member[i].thread, NULL);
    pthread_cond_destroy(&crew->done);
    pthread_cond_destroy(&crew->begun);
    pthread_mutex_destroy(&crew->lock);
    sf_free(crew);
}
