/* coordinator/sched.h: which rows are computed next.  A pure state machine: events in (a sequence
 * waits, tokens were sampled, a sequence has ended), steps out.  No I/O, no clock, no tokenizer,
 * so a test drives it for as long as it likes.
 *
 *   waiting, first in first out            group 0                        group 1
 *   [ s s s s ... ]  --admit-->  batch 0 [ s s . ]  batch 1 [ s . . ]    batch 0 [ s s s ] ...
 *                                one step in flight for each batch; a sequence is in exactly one
 *
 * A group is one data-parallel copy of the model; its micro-batches fill its pipeline.  A sequence
 * is admitted when some micro-batch has a place and every rank of that group has the pages that it
 * may need at most; the pages stay promised to it until it is closed.  It goes where the fewest
 * are. A step holds one row for each sequence that decodes and, in what is left of rows_max,
 * chunks of the prompts, oldest first.  Sequences that ended leave with the next step of their
 * micro-batch, which is sent for that alone if there is nothing else to do. */
#ifndef SHEAF_COORDINATOR_SCHED_H
#define SHEAF_COORDINATOR_SCHED_H
#include <stdint.h>
#include "base/status.h"
#include "proto/wire.h"
SF_C_BEGIN

struct sf_sched;
struct sf_sched_limits {
    int32_t groups, micro_batches;      /* micro_batches: of one group */
    int32_t ranks;                      /* of one group: tensor x pipeline */
    int32_t seqs_max, rows_max;         /* sequences of one group; rows of one step */
    int32_t chunk_rows;                 /* prompt chunks end at every multiple of it, whatever the
                                           load; 0: wherever the rows run out */
    int32_t slots_max;                  /* sequences known at once, waiting ones included */
    const int64_t *pages;               /* [groups][ranks] of each rank's pool; copied */
};
struct sf_sched_seq {
    uint64_t seq;                       /* low 32 bits: a slot below slots_max that no other known
                                           sequence has; the rest tells its users apart */
    int32_t prompt, answer_max;         /* tokens, at least 1 each */
    struct sf_wire_sampling sampling;   /* its biases are the caller's, until sf_sched_end */
    const int32_t *token;               /* [prompt] the caller's, until sf_sched_end */
    const int64_t *pages;               /* [ranks] most that it holds on each rank; copied */
};
struct sf_sched_load {
    int32_t waiting, running;           /* running: admitted and not closed */
    int32_t in_flight;                  /* steps without a result */
    double kv_use;                      /* promised share of the fullest rank's pool, 0 to 1 */
};

sf_status sf_sched_create(const struct sf_sched_limits *, struct sf_sched **out);
void      sf_sched_destroy(struct sf_sched *);

/* SF_NO_PAGES with words when no group could hold it even alone; it is not added then. */
sf_status sf_sched_add(struct sf_sched *, const struct sf_sched_seq *);
/* 1 and a step to send to a group; 0 when nothing can start before a result comes or a sequence is
 * added.  The step is the scheduler's and lives until the next call. */
int       sf_sched_next(struct sf_sched *, int32_t *group_out,
        const struct sf_wire_step **step_out);
/* A result answers the step in flight of its micro-batch.  SF_FORMAT if it does not fit it. */
sf_status sf_sched_result(struct sf_sched *, int32_t group, const struct sf_wire_result *);
/* The answer is complete; the caller says so after a result, at the latest at answer_max tokens.
 * The slot may be given to another sequence only after the step that closes this one was made. */
void      sf_sched_end(struct sf_sched *, uint64_t seq);
/* A step that stops the workers of a group.  No step of the group may follow. */
const struct sf_wire_step *sf_sched_stop(struct sf_sched *, int32_t group);

struct sf_sched_load sf_sched_load(const struct sf_sched *);

SF_C_END
#endif
