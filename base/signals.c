/* base/signals.c: handlers that only set flags (signals.h). */
#include "base/signals.h"

#include <stdatomic.h>
#include <string.h>

static atomic_int flags;
static atomic_int interrupts;

static void note(int number)
{
    if (number == SIGINT && atomic_fetch_add(&interrupts, 1) > 0) {
        signal(SIGINT, SIG_DFL);
        raise(SIGINT);                  /* pending until the handler returns */
        return;
    }
    atomic_fetch_or(&flags, number == SIGUSR2 ? SF_SIGNALS_DUMP : SF_SIGNALS_STOP);
}

void sf_signals_catch(void)
{
    static const int numbers[] = {SIGUSR1, SIGUSR2, SIGTERM, SIGINT};
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = note;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        sigaction(numbers[i], &action, NULL);
}

int sf_signals_take(void)
{
    return atomic_load(&flags) == 0 ? 0 : atomic_exchange(&flags, 0);
}

void sf_signals_block(sigset_t *before_out)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    sigset_t blocked;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(&blocked, faults[i]);
    pthread_sigmask(SIG_BLOCK, &blocked, before_out);
}
