/* kvshard/beside.c: a thread with a list of at most SF_BESIDE_JOBS jobs, one lock and one
 * condition.  Signals are for the other threads of the process. */
#include "kvshard/beside.h"

#include <stdio.h>

#include "base/clock.h"
#include "base/crew.h"
#include "base/signals.h"

enum { STACK_BYTES = 16 << 20 };        /* as a rank that is a thread has: for the libraries */

static void run(struct sf_beside *beside, struct sf_beside_job *job)
{
    int64_t start = sf_now_ns();
    job->status = SF_OK;
    for (int32_t i = 0; i < job->kinds && job->status == SF_OK; i++)
        job->status = beside->device.k->factor(&beside->device, &job->kind[i]);
    if (job->status != SF_OK) snprintf(job->words, sizeof job->words, "%s", sf_error_text());
    job->seconds = sf_seconds_since(start);
}

static void *serve(void *arg)
{
    struct sf_beside *beside = arg;
    pthread_mutex_lock(&beside->lock);
    for (;;) {
        while (!beside->stop && beside->done == beside->jobs)
            pthread_cond_wait(&beside->changed, &beside->lock);
        if (beside->stop) break;
        struct sf_beside_job *job = beside->job[beside->done];
        beside->running = 1;
        pthread_mutex_unlock(&beside->lock);
        run(beside, job);
        pthread_mutex_lock(&beside->lock);
        beside->running = 0;
        beside->done++;
        pthread_cond_broadcast(&beside->changed);
    }
    pthread_mutex_unlock(&beside->lock);
    return NULL;
}

/* ---- the caller ----------------------------------------------------------------------------- */
void sf_beside_begin(struct sf_beside *beside, struct sf_beside_job *job)
{
    pthread_mutex_lock(&beside->lock);
    SF_ASSERT(beside->jobs < SF_BESIDE_JOBS);
    beside->job[beside->jobs++] = job;
    pthread_cond_broadcast(&beside->changed);
    pthread_mutex_unlock(&beside->lock);
}

/* Under the lock. */
static void wait_all(struct sf_beside *beside)
{
    while (beside->done < beside->jobs) pthread_cond_wait(&beside->changed, &beside->lock);
    beside->jobs = beside->done = 0;
}

int sf_beside_wait(struct sf_beside *beside, int32_t ms)
{
    struct timespec until;
    if (beside->threads == 0) return 1;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += ms * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&beside->lock);
    while (beside->done < beside->jobs &&
           pthread_cond_timedwait(&beside->changed, &beside->lock, &until) == 0)
        continue;
    int all = beside->done == beside->jobs;
    if (all) beside->jobs = beside->done = 0;
    pthread_mutex_unlock(&beside->lock);
    return all;
}

void sf_beside_drop(struct sf_beside *beside)
{
    if (beside->threads == 0) return;
    pthread_mutex_lock(&beside->lock);
    beside->jobs = beside->done + beside->running;
    wait_all(beside);
    pthread_mutex_unlock(&beside->lock);
}

/* ---- opening and closing -------------------------------------------------------------------- */
static int start(struct sf_beside *beside)
{
    sigset_t before;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return 0;
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sf_signals_block(&before);
    int started = pthread_create(&beside->thread, &attributes, serve, beside) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return started;
}

sf_status sf_beside_create(const struct sf_device *device, int32_t threads, size_t room_bytes,
                           struct sf_beside *beside)
{
    void *room;
    SF_ASSERT(threads >= 1 && device->host_memory);
    *beside = (struct sf_beside){ .device = *device, .room_bytes = room_bytes };
    beside->device.threads = threads;
    beside->device.crew = NULL;
    SF_TRY(device->k->alloc(&beside->device, room_bytes, "factors beside the layers", &room));
    beside->room = room;
    pthread_mutex_init(&beside->lock, NULL);
    pthread_cond_init(&beside->changed, NULL);
    sf_status status = SF_OK;
    if (threads > 1) status = sf_crew_create(threads, &beside->device.crew);
    if (status == SF_OK && start(beside)) {
        beside->threads = threads;
        return SF_OK;
    }
    sf_crew_destroy(beside->device.crew);
    pthread_cond_destroy(&beside->changed);
    pthread_mutex_destroy(&beside->lock);
    device->k->free(&beside->device, beside->room);
    if (status != SF_OK) return status;
    return SF_FAIL(SF_INTERNAL, "could not start a thread for the factors of layer groups");
}

void sf_beside_destroy(struct sf_beside *beside)
{
    if (beside->threads == 0) return;
    sf_beside_drop(beside);
    pthread_mutex_lock(&beside->lock);
    beside->stop = 1;
    pthread_cond_broadcast(&beside->changed);
    pthread_mutex_unlock(&beside->lock);
    pthread_join(beside->thread, NULL);
    sf_crew_destroy(beside->device.crew);
    pthread_cond_destroy(&beside->changed);
    pthread_mutex_destroy(&beside->lock);
    beside->device.k->free(&beside->device, beside->room);
    beside->threads = 0;
}
