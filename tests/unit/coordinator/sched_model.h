/* A model of the workers for the scheduler's test: it reads nothing but the steps, and checks each.
 *
 *   known [SLOTS]          sequences, by the slot of their number: what the workers hold of them,
 *                          and what the caller knows
 *   block [groups][BLOCKS] of the prefix cache: the tokens of each and the block before it
 *   held [groups][ranks]   pages that the store would hold, blocks included
 *
 * A broken promise fails the test with the first one's words; `bad` counts all of them. */
#ifndef SHEAF_TESTS_SCHED_MODEL_H
#define SHEAF_TESTS_SCHED_MODEL_H
#include <stdint.h>

#include "coordinator/sched.h"

enum { GROUPS = 3, BATCHES = 4, RANKS = 3, SLOTS = 64, BLOCKS = 96, PROMPT = 200, ANSWER = 64,
       PAGE_TOKENS = 16 };              /* the most that a shape may have */

struct shape {
    int32_t groups, batches, ranks, seqs, rows, chunk;
    int64_t pages;                      /* of rank 0; rank r has r + 1 times as many */
    int32_t prompt, answer;             /* tokens of the longest */
    enum sf_sharing sharing;
    int32_t page_tokens;                /* of a lane; rank r has r + 1 lanes */
    int32_t window;                     /* pages that a lane may have, with a peak at the prompt's
                                           end; 0: as many as there are tokens */
    enum { POOL_ANY, POOL_TIGHT,        /* many lose their place */
           POOL_PRESSED,                /* many are tightened */
           POOL_GENEROUS } pool;        /* nobody may be either */
    int32_t own;                        /* last rows of a prompt that each computes itself, and
                                           blocks are attached in pairs; 0: no such rule */
    int tightens;                       /* each time halves what a lane may have, to one page */
    int32_t apart;                      /* no step goes on behind a prompt's end, or such a
                                           multiple behind that; 0: no such rule */
};

struct known {
    uint64_t seq;                       /* of the attempt that is open, or is waited for */
    enum { FREE, WAITING, OPEN, ENDED } state;
    int32_t group, batch;
    int64_t opened;                     /* opens of all groups before this one */
    int32_t prompt, answer_max, known;  /* known: tokens fed from `token` in this attempt */
    int32_t fed, sampled;
    int32_t answer;                     /* the caller ends it at so many */
    int32_t blocks, filled, block[PROMPT];
    int64_t pages[RANKS];               /* its own */
    uint8_t scored;
    uint8_t settled;                    /* 1: the step that ended its prompt has come back; and one
                                           more for each time that it was tightened */
    int32_t cut;                        /* tokens when that was last */
    uint8_t alone;                      /* its prompt begins as no other, so it never waits */
    struct sf_wire_sampling sampling;
    struct sf_wire_bias bias;
    int32_t *token;                     /* [prompt + answer_max], -1 where nothing is sampled yet;
                                           gone as soon as the caller has ended it */
};
struct known_block {
    enum { BLOCK_FREE, BLOCK_PENDING, BLOCK_FILLED } state;
    int32_t parent, children, holders, token[PAGE_TOKENS];
    uint64_t filled_by;                 /* the step */
};
struct flight { int busy; uint64_t step; int32_t samples; uint64_t seq[SLOTS]; };

struct model {
    struct shape shape;
    struct sf_sched *sched;
    struct known known[SLOTS];
    struct known_block block[GROUPS][BLOCKS];
    struct flight flight[GROUPS][BATCHES];
    uint64_t next_step[GROUPS];
    int64_t pages[GROUPS * RANKS], held[GROUPS][RANKS];
    int32_t blocks_max, blocks[GROUPS], open[GROUPS], in_flight;
    uint64_t newest[GROUPS][BATCHES];   /* of the sequences alone that were opened there */
    int64_t steps, opened, preempted, tightened, reused, dropped;
    int64_t given_back;                 /* pages of rank 0, by being tightened */
    int64_t added, closed, settled;
    uint32_t serial;
    uint8_t last;                       /* sf_sched_last was called */
    uint8_t flush;                      /* a sequence needs all pages that there are */
    int bad;
};

/* The scheduler of a shape and a model without anything in it; 0 if that failed. */
int  model_make(struct model *, const struct shape *);
void model_need(void *model, int32_t prompt, int32_t tokens, int settled, int64_t *pages_out);
/* The result of the step in flight of this micro-batch has gone to the scheduler. */
void model_result(struct model *, int32_t group, int32_t batch);
/* What sf_sched_next gave, or sf_sched_empty. */
void model_take(struct model *, int32_t group, const struct sf_wire_step *);
void model_take_empty(struct model *, int32_t group, const struct sf_wire_step *);

/* A condition on the step at hand: `g` is its group. */
#define PROMISE(model, condition)                                                                  \
    do {                                                                                           \
        if (!(condition) && (model)->bad++ == 0)                                                   \
            sf_test_fail(__FILE__, __LINE__, "%s (group %d, step %llu)", #condition, g,            \
                         (unsigned long long)step->id);                                            \
    } while (0)

/* ---- sched_random.c -------------------------------------------------------------------------- */
void random_steps(void);                /* tests */
void random_shapes(void);

#endif
