/* base/crew.h: threads that stand by to share the work of the one that has it.
 *
 * Work is a count of things cut into pieces; whoever is there takes the next piece, and the caller
 * works along.  It waits for pieces that were begun, never for a thread that has not come: beside a
 * process that keeps a core busy, or when a thread has to be woken first, a call takes hardly more
 * than the caller alone, unless a thread loses its core inside a piece.  Threads look for work
 * without sleeping for SF_CREW_SPIN_NS after the last, for longer than the gaps inside a step; then
 * they sleep, and the caller does likewise when a piece that it waits for takes as long: the core
 * is free for the thread that has it. */
#ifndef SHEAF_BASE_CREW_H
#define SHEAF_BASE_CREW_H
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

enum { SF_CREW_SPIN_NS = 200000 };

struct sf_crew;
/* Things first .. end - 1, on thread `thread` of the crew: 0 is the caller. */
typedef void sf_crew_work(void *context, int32_t first, int32_t end, int32_t thread);

/* `threads` with the caller, >= 1.  Threads block all signals but those of faults.  SF_INTERNAL if
 * one cannot be started: none is left then. */
sf_status sf_crew_create(int32_t threads, struct sf_crew **crew_out);
void      sf_crew_destroy(struct sf_crew *crew);        /* NULL is fine */
/* What one takes beside its threads' stacks; pure. */
int64_t   sf_crew_bytes(int32_t threads);
/* Runs work over the things 0 .. count - 1 in pieces of `piece` (>= 1), begun in order, each once;
 * all have ended on return, and what they wrote is there.  A crew of NULL: at once, on thread 0.
 * One caller at a time, and not from inside work. */
void      sf_crew_run(struct sf_crew *crew, int32_t count, int32_t piece, sf_crew_work *work,
                      void *context);
/* A piece of `count` things of which each thread gets a few. */
int32_t   sf_crew_piece(const struct sf_crew *crew, int32_t count);

SF_C_END
#endif
