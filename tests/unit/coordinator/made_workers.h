/* tests/unit/coordinator/made_workers.h: all ranks of a job, computing nothing.  They read packed
 * steps as real workers do, hold each to what was promised to them, and answer with the tokens and
 * scores of made_job.h.
 *
 *   step -> group: sequences, blocks -> outbox of each rank: reports, results -> ring
 *
 * What a rank says is heard in order; which rank is heard next is drawn from the seed, and some
 * ranks are heard late.  A receipt tells what can be checked from a sum over ranks:
 *
 *   bytes_exact    rows fed in this attempt, from the first rank of the group alone
 *   bytes_stored   1, so the number of receipts
 *   slots_evicted  1 << rank in its group, so that one that comes twice shows */
#ifndef SHEAF_TESTS_MADE_WORKERS_H
#define SHEAF_TESTS_MADE_WORKERS_H
#include "base/ring.h"
#include "tests/unit/coordinator/made_job.h"

struct workers;
struct workers_counts {                 /* the caller's: it may lie in memory that outlives us */
    int64_t steps;                      /* taken */
    int64_t samples;                    /* sent */
    int64_t opens, attached;            /* sequences; tokens that came from blocks */
};
struct workers *workers_make(const struct made_job *, uint64_t seed, struct workers_counts *);
void      workers_free(struct workers *);
/* Changes every result before it is sent; NULL: no more. */
void      workers_tamper(struct workers *, void (*tamper)(struct sf_wire_result *));
/* Runs the step, and frees it. */
/* Takes one step from the ring: 1; 0 if none came in time, -1 if it is closed. */
int       workers_take(struct workers *, struct sf_ring *to_workers, int64_t wait_ms);
/* Something that a rank says by itself. */
void      workers_report(struct workers *, const struct sf_wire_report *);
/* Some of what waits goes out, or all of it; nothing into a ring that is closed. */
void      workers_send(struct workers *, struct sf_ring *from_workers, int all);
int       workers_have_mail(const struct workers *);
int       workers_are_stopped(const struct workers *);  /* all groups were told to */
/* The first promise that was broken; "" if none was. */
const char *workers_fault(const struct workers *);
/* Takes and frees what is left in a ring. */
void      made_ring_empty(struct sf_ring *);
#endif
