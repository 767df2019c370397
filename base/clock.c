/* base/clock.c: monotonic time over CLOCK_MONOTONIC, which no clock setting moves. */
#include "base/clock.h"

#include <errno.h>
#include <time.h>

enum { NS_PER_S = 1000000000, US_PER_S = 1000000 };

int64_t sf_now_ns(void)
{
    struct timespec now;
    int failed = clock_gettime(CLOCK_MONOTONIC, &now);
    SF_ASSERT(!failed);
    return (int64_t)now.tv_sec * NS_PER_S + now.tv_nsec;
}

double sf_seconds_since(int64_t then_ns)
{
    return (double)(sf_now_ns() - then_ns) * 1e-9;
}

/* Sleeps to an absolute time, so that signals in between do not stretch it. */
void sf_sleep_us(int64_t us)
{
    if (us <= 0) return;
    int64_t now_ns = sf_now_ns();
    struct timespec until = { .tv_sec = (time_t)(now_ns / NS_PER_S + us / US_PER_S),
                              .tv_nsec = (long)(now_ns % NS_PER_S + us % US_PER_S * 1000) };
    if (until.tv_nsec >= NS_PER_S) {
        until.tv_sec++;
        until.tv_nsec -= NS_PER_S;
    }
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) { }
}
