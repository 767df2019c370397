/* tests/unit/coordinator/made_run.h: `sheaf run` over files of its own, with made-up workers in a
 * thread, that goes on until it is done or is disturbed.
 *
 *   folder/in.jsonl  out.jsonl  out.jsonl.run/{journal,manifest.json,metrics.csv} */
#ifndef SHEAF_TESTS_MADE_RUN_H
#define SHEAF_TESTS_MADE_RUN_H
#include "coordinator/run.h"
#include "tests/unit/coordinator/made_workers.h"

enum { MADE_LENGTH = 64, MADE_CHOICES = 3, MADE_LINES = 128 };

struct made_record {                    /* one line of the input */
    enum { MADE_PROMPT, MADE_BLANK, MADE_BROKEN, MADE_WRONG } kind;     /* BROKEN: no JSON */
    int32_t prompt[MADE_LENGTH], prompt_tokens, answer_max, choices;
    int32_t logprobs, prompt_logprobs;  /* -1: not asked for */
    uint8_t ignore_eos, stop, echo, looks_back;
};
struct made_run {
    char folder[64], input[96], output[96], shadow[112], journal[128], manifest[128], metrics[128];
    struct made_record record[MADE_LINES + 1];  /* by line, from 1 */
    int32_t lines;
    char *answer[MADE_LINES + 1];       /* what an undisturbed run answers, as keep_answers had it;
                                           NULL: no record */
};

enum disturbance {
    LET_BE,
    CLOSE_RING,                         /* rank 0's worker ends by a failure of its own */
    FAIL_RANK,                          /* a rank reports one */
    DRAIN_RANK,                         /* a rank was told to stop */
    FULL_DISK,                          /* no file may be longer than OUT and `disk_bytes` */
    KILL                                /* the whole process, with SIGKILL */
};
struct attempt {
    const struct made_job *job;
    struct sf_run_files files;          /* without input and output */
    uint64_t seed;
    enum disturbance end;
    int64_t steps;                      /* before the disturbance */
    int64_t disk_bytes;
    int64_t checkpoint;                 /* steps, after which the workers wait until the journal
                                           has all that they said; 0: never */
    void (*tamper)(struct sf_wire_result *);    /* changes what the workers say; NULL: nothing */
};
struct outcome {
    sf_status status;
    int exit_code;
    int killed;                         /* nothing else of this is known then */
    struct sf_run_summary sum;
    char words[512], fault[512];
};
struct shared {                         /* survives a kill */
    struct workers_counts counts;
    int64_t samples_saved;              /* when the workers went on after the checkpoint ... */
    int64_t checkpoints;                /* ... if it came in time */
};

/* What a resumed run would find. */
struct kept { int64_t lines, tokens, bytes, restarts; };        /* restarts: answers that are whole,
                                           but the record is not: their last token comes again */

/* A folder and an input of so many random lines, or as the caller then says. */
void made_run_open(struct made_run *, int32_t lines, uint64_t seed);
void made_run_close(struct made_run *);
void made_run_write_input(const struct made_run *);
/* No output, as before the first attempt. */
void made_run_clear(const struct made_run *);
/* KILL runs in a process of its own.  *shared_out: counts of this attempt. */
struct outcome made_run_try(const struct made_run *, const struct attempt *,
                            struct shared *shared_out);
struct kept made_run_kept(const struct made_run *);
/* The output becomes what others are compared with. */
void made_run_keep_answers(struct made_run *);
/* Every record stands in the output once, as it was kept. */
void made_run_check_answers(const struct made_run *);
#endif
