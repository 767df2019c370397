/* tests/unit/coordinator/engine_rig.h: an engine, the owners of its sequences, who check all that
 * they are told, and made-up workers that run between two polls. */
#ifndef SHEAF_TESTS_ENGINE_RIG_H
#define SHEAF_TESTS_ENGINE_RIG_H
#include "coordinator/engine.h"
#include "tests/unit/coordinator/made_workers.h"

enum { RIG_LENGTH = 96 };
extern const char rig_config[];         /* 8 places, 32 rows a step, at most RIG_LENGTH tokens */

struct owner {                          /* a sequence as its owner sees it */
    int32_t prompt[RIG_LENGTH], answer[RIG_LENGTH];
    int32_t prompt_tokens, answer_max, known, end;      /* end: tokens of the answer */
    int32_t got, prompt_scored, answer_scored;
    struct sf_wire_sampling sampling;
    uint8_t score_prompt, closed;
};
struct rig {
    struct made_job job;
    struct sf_ring *to, *from;
    struct workers *workers;
    struct workers_counts counts;
    struct sf_engine *engine;
    struct owner *owner;                /* [owners] */
    int32_t owners, added, closed;
    int64_t opened;
    int32_t signal, signal_rank;
    sf_status refuse;                   /* what on_token says */
    uint8_t careless;                   /* the owners take what comes */
};

/* Random owners; more, pages: as in made_job.h.  1, or 0 after a failed check. */
int  rig_make(struct rig *, struct made_shape, const char *more, int64_t pages, int32_t owners,
              uint64_t seed);
void rig_drop(struct rig *);
struct sf_engine_spec rig_spec(struct rig *);
struct sf_engine_seq  rig_seq(struct owner *);
/* Adds the next owners, as many as there is room for, `most` at most. */
void rig_add(struct rig *, int32_t most);
/* What the workers do between two polls; all: they are heard to the end. */
void rig_work(struct rig *, int all);
/* All owners, from the first to the last. */
void rig_run(struct rig *, uint64_t seed);

/* ---- engine_lies.c --------------------------------------------------------------------------- */
void lying_results(void);               /* tests */
void lying_reports(void);
void noise(void);
#endif
