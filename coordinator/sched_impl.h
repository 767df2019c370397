/* coordinator/sched_impl.h: what the files of the scheduler share: sched.c (events, making),
 * sched_admit.c (who gets a place and which pages), sched_tighten.c (memory pressure) and
 * sched_step.c (which rows a step has).
 *
 *   struct seq [slots_max]   by the slot of a sequence's number
 *   waiting                  ring of slots, in order of arrival
 *   group [groups]           promised pages of every rank, prefix table, the id of its next step
 *     batch [micro_batches]  lanes: slots in order of admission; expected: slots that the step in
 *                            flight samples, in the order of its items
 */
#ifndef SHEAF_COORDINATOR_SCHED_IMPL_H
#define SHEAF_COORDINATOR_SCHED_IMPL_H
#include <string.h>

#include "coordinator/prefix.h"
#include "coordinator/sched.h"
SF_C_BEGIN

enum seq_state { SEQ_FREE, SEQ_WAITING, SEQ_ADMITTED, SEQ_OPEN, SEQ_ENDED };
struct seq {
    uint64_t id;
    enum seq_state state;
    int32_t prompt, answer_max;
    int32_t known;                      /* tokens that are fed from `token`: prompt, old answer */
    int32_t fed, sampled;               /* rows computed so far (a step in flight counts); answer */
    int32_t promised;                   /* tokens that its pages are promised for */
    int32_t reused, filled, blocks;     /* of `block`; the first `filled` hold rows */
    int32_t *block;                     /* of the prefix table, owned; NULL: none */
    uint8_t score_prompt;
    uint8_t settled;                    /* 1: its prompt has ended, and pages are promised for that;
                                           1 + n: it was tightened n times, likewise */
    int32_t cut;                        /* rows fed when it was tightened last, or the prompt's */
    struct sf_wire_sampling sampling;
    const int32_t *token;
};
struct batch {
    int32_t lanes_max, lanes, expects;
    int32_t *lane, *expected;           /* [lanes_max] */
    uint64_t step;                      /* in flight */
    uint8_t busy;
};
struct group {
    struct batch *batch;
    int64_t *promised;                  /* [ranks] to sequences and blocks */
    struct sf_prefix *prefix;           /* NULL: nothing is shared */
    int32_t *drop, drops;               /* [blocks_max] evicted, not yet told to the workers */
    uint64_t next_step;
    int32_t lanes;
};

struct sf_sched {
    struct sf_sched_limits limits;      /* its arrays are the ones below */
    int64_t *pages;                     /* [groups][ranks] */
    int64_t *block_pages;               /* [ranks] */
    struct seq *seq;
    int64_t *need;                      /* [slots_max][ranks] pages promised to a sequence */
    int64_t *more, *saved;              /* [ranks] scratch */
    int32_t *waiting, waiting_first, waiting_count;
    struct group *group;
    int32_t cursor;                     /* micro-batches are served in turn */
    int32_t running, in_flight;
    int64_t reused_tokens, preempted, tightened, evicted_blocks;
    int64_t looking_back;               /* prompt tokens of those whose sampling looks at them */
    size_t token_places;                /* of step.token */
    uint8_t last;
    struct sf_wire_step step;           /* the one handed out; its arrays have the largest sizes */
};

static inline int64_t *sched_need(const struct sf_sched *s, const struct seq *seq)
{
    return s->need + (size_t)(seq - s->seq) * (size_t)s->limits.ranks;
}

/* ---- sched_admit.c --------------------------------------------------------------------------- */
/* Gives places to waiting sequences while there are places and pages. */
void sched_admit(struct sf_sched *);
/* Joins the waiting ones, promised pages for `tokens`. */
void sched_wait(struct sf_sched *, struct seq *, int32_t tokens, int first);
/* Whether some group could hold the pages alone. */
int  sched_fits_alone(const struct sf_sched *, const int64_t *need);
/* Pages for `tokens` instead of seq->promised.  0 if there are none left. */
int  sched_grow(struct sf_sched *, struct group *, struct seq *, int32_t tokens);
/* The prompts that have ended with the step that came back: what they needed more is given back. */
void sched_settle(struct sf_sched *, struct group *, const struct batch *);
/* Whether a sequence would rather wait for blocks that another one is computing. */
int  sched_must_wait(const struct sf_sched *, const struct group *, const struct seq *);
/* Attaches the blocks that are there and makes those that this sequence will fill. */
void sched_share(struct sf_sched *, struct group *, struct seq *);
/* Takes back all pages and blocks of a sequence. */
void sched_leave(struct sf_sched *, struct group *, struct seq *);

/* Whether every rank has `more` pages, where blocks that nobody holds are evicted. */
int  sched_has_pages(const struct sf_sched *, const struct group *, const int64_t *more);
/* The pages that are its own when it may grow to `tokens`, settled as said. */
void sched_own_pages(const struct sf_sched *, const struct seq *, int32_t tokens, int settled,
                     int64_t *pages_out);
/* Its cache is cut, or was: what it needs less is given back. */
void sched_cut(struct sf_sched *, struct group *, struct seq *);

/* ---- sched_tighten.c ------------------------------------------------------------------------- */
/* Tightens one sequence with the step that is built, so that `growing` comes closer to its next
 * row's pages.  0 if it would not get them even if all were. */
int  sched_tighten(struct sf_sched *, struct group *, const struct seq *growing);
/* It loses its place with the step that is built, so the step does not tighten it. */
void sched_untighten(struct sf_sched *, const struct seq *);

/* ---- sched_step.c ---------------------------------------------------------------------------- */
int  sched_has_work(const struct sf_sched *, const struct group *, const struct batch *);
void sched_build(struct sf_sched *, struct group *, struct batch *);

SF_C_END
#endif
