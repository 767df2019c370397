/* base/signals.h: what the outside says to a running job, as flags that its loops look at.
 *
 *   USR1, TERM   stop, but keep what is half finished       INT   the same; a second one kills
 *   USR2         say what you are doing
 *
 * Flags are of the process: ranks that are its threads share them, and the first to ask gets them.
 */
#ifndef SHEAF_BASE_SIGNALS_H
#define SHEAF_BASE_SIGNALS_H
#include <signal.h>
#include "base/status.h"
SF_C_BEGIN

enum { SF_SIGNALS_STOP = 1, SF_SIGNALS_DUMP = 2 };      /* bits */
void sf_signals_catch(void);
/* What has come since the last call. */
int  sf_signals_take(void);
/* Leaves signals to the other threads of the process: this one, and those that it starts until
 * pthread_sigmask(SIG_SETMASK, before, NULL), block all but faults, which are a thread's own.
 * Blocked, a fault would end the process past the handlers of MPI or a sanitizer, without a
 * word. */
void sf_signals_block(sigset_t *before_out);

SF_C_END
#endif
