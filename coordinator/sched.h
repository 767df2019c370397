/* coordinator/sched.h: which rows are computed next.  A pure state machine: events in (a sequence
 * waits, tokens were sampled, a sequence has ended), steps out.  No I/O, no clock, no tokenizer,
 * so a test drives it for as long as it likes.
 *
 *   waiting, first in first out            group 0                        group 1
 *   [ s s s s ... ]  --admit-->  batch 0 [ s s . ]  batch 1 [ s . . ]    batch 0 [ s s s ] ...
 *          ^-----preempt-----          one step in flight for each batch; a sequence is in one
 *
 * A group is one data-parallel copy of the model; its micro-batches fill its pipeline.  A sequence
 * is admitted when some micro-batch has a place and every rank of that group has the pages that it
 * will probably need; they stay promised to it until it is closed.  What its prompt alone needed
 * (a method cuts the cache at the prompt's end) is free for others from then on.  It goes where the
 * fewest are.
 * One that outgrows its promise gets more.  Where there is nothing left, sequences of the group
 * whose methods answer to memory pressure are tightened, one by one, those first that this frees
 * most pages of; if all of them together would not do, nobody is, and the youngest sequence of the
 * micro-batch loses its place: it waits again, at the front, and is admitted for the most that it
 * can need.  Nothing is lost: its answer so far is fed to it again.
 *
 * A step holds one row for each sequence that decodes and, in what is left of rows_max, chunks of
 * the known tokens (prompts, and answers that are fed again), oldest first.  Prompts that begin
 * alike share blocks of the cache (prefix.h): a sequence attaches what is there when it gets its
 * first rows, and waits for it while another is computing it; where lanes only grow, it needs no
 * pages for what it shares.  Sequences that ended leave with the next step of their micro-batch,
 * which is sent for that alone if there is nothing else to do. */
#ifndef SHEAF_COORDINATOR_SCHED_H
#define SHEAF_COORDINATOR_SCHED_H
#include <stdint.h>
#include "base/status.h"
#include "proto/wire.h"
SF_C_BEGIN

struct sf_sched;
/* A sequence's number: attempt << 56 | any serial << 20 | slot.  The scheduler counts attempts: it
 * gives a sequence that was preempted its old number with the next attempt. */
enum { SF_SEQ_SLOT_BITS = 20, SF_SEQ_ATTEMPT_BIT = 56 };
static inline int32_t sf_seq_slot(uint64_t seq)
{
    return (int32_t)(seq & ((1u << SF_SEQ_SLOT_BITS) - 1));
}
static inline uint64_t sf_seq_name(uint64_t seq)        /* without the attempt */
{
    return seq & ((UINT64_C(1) << SF_SEQ_ATTEMPT_BIT) - 1);
}

/* Sequences of a micro-batch below which one more, beside one for each stage, would read all
 * weights for too little (docs/decisions/0009). */
enum { SF_SCHED_ROWS_WORTH = 4 };

enum sf_sharing {                       /* of prompt blocks between sequences */
    SF_SHARE_NOTHING,
    SF_SHARE_COPIED,                    /* lanes change later: a holder may need its own copy */
    SF_SHARE_KEPT };                    /* lanes only grow: a shared page is held once */
struct sf_sched_limits {
    int32_t groups, stages;
    int32_t micro_batches;              /* of one group; where more than the stages, the others wait
                                           until those have rows enough */
    int32_t ranks;                      /* of one group: tensor x pipeline */
    int32_t seqs_max, rows_max;         /* sequences of one group; rows of one step */
    int32_t chunk_rows;                 /* prompt chunks end at every multiple of it, whatever the
                                           load; 0: wherever the rows run out */
    uint8_t prompt_apart;               /* no step has the end of a prompt and what comes after */
    int32_t answer_apart;               /* nor tokens on both sides of a multiple of so many behind
                                           it; 0: they may be anywhere */
    int32_t slots_max;                  /* sequences known at once, waiting ones included */
    const int64_t *pages;               /* [groups][ranks] of each rank's pool; copied */
    /* Most pages[ranks] that a sequence holds on its way to `tokens`; settled: 1 once its prompt
     * has ended, 1 + n once it was tightened n times, which is hardly ever more, and counts for
     * nothing then.  Pure, never falls as tokens rise. */
    void (*need)(void *arg, int32_t prompt, int32_t tokens, int settled, int64_t *pages_out);
    void *need_arg;
    uint8_t tightens;                   /* sequences may be tightened; not with SF_SHARE_KEPT */
    enum sf_sharing sharing;
    int32_t block_tokens, blocks_max;   /* blocks_max: of one group; both only where shared */
    /* How many of `blocks` blocks that are there a prompt attaches; the others it computes itself
     * and only holds.  Pure, never falls as they rise.  NULL, and where pages are kept: all. */
    int32_t (*attach)(void *arg, int32_t prompt, int32_t blocks);
    void *attach_arg;
    const int64_t *block_pages;         /* [ranks] pages of one block; copied */
};
struct sf_sched_seq {
    uint64_t seq;                       /* its slot is one that no other known sequence has */
    int32_t prompt, answer_max;         /* tokens, at least 1 each */
    int32_t answer_known;               /* < answer_max: were sampled in an earlier run */
    int32_t answer_likely;              /* 1 to answer_max: admitted for so many */
    uint8_t score_prompt;               /* rows of the prompt are scored, so none is skipped */
    struct sf_wire_sampling sampling;   /* its biases are the caller's, until sf_sched_end */
    /* [prompt + answer_max] prompt, then the answer as far as it is known: the caller adds what is
     * sampled.  The caller's, until sf_sched_end. */
    const int32_t *token;
};
struct sf_sched_load {
    int32_t waiting, running;           /* running: admitted and not closed */
    int32_t in_flight;                  /* steps without a result */
    double kv_use;                      /* promised share of the fullest rank's pool, 0 to 1 */
    double kv_busy;                     /* the same without blocks that nobody holds */
    int64_t reused_tokens;              /* so far: prompt tokens that were attached, not computed */
    int64_t preempted, tightened, evicted_blocks;
};

sf_status sf_sched_create(const struct sf_sched_limits *, struct sf_sched **out);
void      sf_sched_destroy(struct sf_sched *);

/* SF_NO_PAGES with words when no group could hold it even alone; it is not added then. */
sf_status sf_sched_add(struct sf_sched *, const struct sf_sched_seq *);
/* No sequence will be added any more: from now on the longest of the waiting ones comes first, so
 * that no long answer is left to run alone at the end. */
void      sf_sched_last(struct sf_sched *);
/* 1 and a step to send to a group; 0 when nothing can start before a result comes or a sequence is
 * added.  The step is the scheduler's and lives until the next call. */
int       sf_sched_next(struct sf_sched *, int32_t *group_out,
        const struct sf_wire_step **step_out);
/* A result answers the step in flight of its micro-batch.  SF_FORMAT if it does not fit it. */
sf_status sf_sched_result(struct sf_sched *, int32_t group, const struct sf_wire_result *);
/* The answer is complete; the caller says so after a result, at the latest at answer_max tokens.
 * The slot may be given to another sequence only after the step that closes this one was made. */
void      sf_sched_end(struct sf_sched *, uint64_t seq);
/* A step of a group without anything in it, for the caller to ask for loads or to stop the workers
 * (no step of the group may follow then).  No result answers it. */
const struct sf_wire_step *sf_sched_empty(struct sf_sched *, int32_t group);

struct sf_sched_load sf_sched_load(const struct sf_sched *);

SF_C_END
#endif
