/* coordinator/engine.h: sequences in, tokens out: the scheduler, the steps on their way to the
 * workers and what comes back, without any notion of records, files or text.  `sheaf run` feeds it
 * from a file and `sheaf bench` from made-up prompts.
 *
 *   add --> [slot] waiting -> running --token, token, ...--> ended -> closed by all ranks
 *             ^                 |                 (the owner says when)         |
 *             '---- preempt ----'                                     on_closed, slot free
 *
 * Slots are bounded, so memory does not grow with the work.  Of the coordinator's thread alone; it
 * never touches the communicator: packed messages go through two rings to the worker's thread. */
#ifndef SHEAF_COORDINATOR_ENGINE_H
#define SHEAF_COORDINATOR_ENGINE_H
#include <stdint.h>
#include "base/ring.h"
#include "base/status.h"
#include "coordinator/config.h"
#include "coordinator/plan.h"
#include "coordinator/sched.h"
SF_C_BEGIN

struct sf_engine;
/* What the owner is told, from inside sf_engine_poll.  A status other than SF_OK ends the poll with
 * it. `owner` is the pointer that came with the sequence. */
struct sf_engine_events {
    /* Its first rows are on their way to the workers, again after a preemption.  May be NULL. */
    void (*on_open)(void *arg, void *owner);
    /* The answer has one token more, the last of token[prompt + answer].  The owner says in
     * *end_out whether that was the last one; at answer_max it is anyway. */
    sf_status (*on_token)(void *arg, void *owner, const int32_t *token, int32_t prompt,
                          int32_t answer, int *end_out);
    /* A score of a token that was asked for, before on_token where the token is new.  One of the
     * prompt may come twice.  May be NULL where none is asked for. */
    sf_status (*on_score)(void *arg, void *owner, const struct sf_wire_score *);
    /* It is tightened, at so many tokens of prompt and answer (memory pressure).  May be NULL. */
    sf_status (*on_tightened)(void *arg, void *owner, int32_t tokens);
    /* All ranks have closed it; the receipt is summed over them.  The slot is free, and the tokens
     * of the last on_token are gone after this. */
    sf_status (*on_closed)(void *arg, void *owner, const struct sf_wire_receipt *);
    /* A rank was sent a signal (enum sf_wire_signal). */
    sf_status (*on_signal)(void *arg, int32_t rank, int signal);
    void *arg;
};
struct sf_engine_spec {
    const struct sf_config *config;
    const struct sf_launch_plan *plan;
    int32_t seqs_max;                   /* running ones of one group; 0: as many as the plan has */
    /* Numbers of its sequences count on from here.  Engines that follow each other on the same
     * workers share none: a worker may still hold the last token of one that has ended. */
    uint64_t serial;
    struct sf_ring *to_workers;         /* steps, and at the end one with stop set for every group;
                                           envelopes as in proto/wire.h */
    struct sf_ring *from_workers;       /* results and reports */
    struct sf_engine_events events;
};
struct sf_engine_seq {
    const int32_t *prompt; int32_t prompt_tokens;   /* copied */
    const int32_t *answer; int32_t answer_known;    /* of an earlier run, fed again; copied */
    int32_t answer_max;
    struct sf_wire_sampling sampling;   /* its biases are the caller's until on_closed */
    uint8_t score_prompt;
    uint8_t full;                       /* it will surely run to answer_max */
    void *owner;
};
struct sf_engine_counts {               /* since the start */
    int64_t steps, rows, prompt_rows;   /* as sent */
    int64_t step_bytes;                 /* of packed steps, once for each group */
    double schedule_seconds;            /* inside scheduler, packing and unpacking */
    /* The time of each step, from when it was sent or, if that is later, from the result before it
     * in its group, to its own; divided among its rows alike.  Summed over the groups. */
    double prompt_seconds, decode_seconds;
    int64_t decode_steps;               /* of these, the ones without rows of a prompt ... */
    double decode_step_seconds;         /* ... and their time */
    double full_seconds, fed_seconds;   /* batch full: integral of running / places over the time
                                           in which something waited, and that time */
    int32_t running_max;
};

sf_status sf_engine_create(const struct sf_engine_spec *, struct sf_engine **out);
void      sf_engine_destroy(struct sf_engine *);        /* NULL is fine */

int32_t   sf_engine_slots(const struct sf_engine *);    /* sequences known at once, at most */
/* Sequences that may still be added. */
int32_t   sf_engine_room(const struct sf_engine *);
/* SF_NO_PAGES with words when it can never fit; it is not added then. */
sf_status sf_engine_add(struct sf_engine *, const struct sf_engine_seq *);
/* Nothing will be added any more: the longest of what waits comes first. */
void      sf_engine_last(struct sf_engine *);
/* Sends what can start and takes what has come; waits at most wait_ms if there is nothing. */
sf_status sf_engine_poll(struct sf_engine *, int64_t wait_ms);
int       sf_engine_idle(const struct sf_engine *);     /* no sequence is known */
/* Asks every rank for its load; sf_engine_loads has the answers once all have come. */
sf_status sf_engine_measure(struct sf_engine *, enum sf_wire_measure);
/* [ranks of the job] as last measured; NULL while answers are missing. */
const struct sf_wire_load *sf_engine_loads(const struct sf_engine *);
/* Tells the workers of all groups to stop, with or without an engine; nothing may be sent after
 * it. */
sf_status sf_engine_stop(struct sf_ring *to_workers, int32_t groups);

/* What the sequences that run store and what they would in the exact cache, by what each rank said
 * last: when a sequence was closed, or at sf_engine_measure. */
struct sf_engine_kv { int64_t bytes_stored, bytes_exact; };
struct sf_engine_kv     sf_engine_kv(const struct sf_engine *);
struct sf_sched_load    sf_engine_load(const struct sf_engine *);
struct sf_engine_counts sf_engine_counts(const struct sf_engine *);
/* One line for each group and rank, to the log: what runs, what waits, pages. */
void      sf_engine_dump(const struct sf_engine *);

SF_C_END
#endif
