/* coordinator/job.h: what the files of `sheaf run` share: run.c (the loop), records.c (records in)
 * and answers.c (tokens to answers, answers out).
 *
 *   input line -> record -> n choices, a sequence of the engine each -> all closed -> emit
 *
 * A record has a place from being read to being emitted; places are bounded, so memory does not
 * grow with the file. */
#ifndef SHEAF_COORDINATOR_JOB_H
#define SHEAF_COORDINATOR_JOB_H
#include "base/lines.h"
#include "coordinator/answer_text.h"
#include "coordinator/emit.h"
#include "coordinator/engine.h"
#include "coordinator/idle.h"
#include "coordinator/metrics.h"
#include "coordinator/output.h"
#include "coordinator/progress.h"
#include "coordinator/request.h"
#include "coordinator/resume.h"
#include "coordinator/run.h"
#include "coordinator/scores.h"
SF_C_BEGIN

struct record;
struct choice {                         /* one of the n answers to a record */
    struct record *record;
    int32_t number;
    const int32_t *token;               /* [answer] the engine's, or `kept` once it is closed */
    int32_t *kept;
    int32_t answer;                     /* tokens so far */
    int32_t restored;                   /* of these, sampled in an earlier run */
    int32_t saved;                      /* of these, in the journal */
    struct sf_answer_text text;
    struct sf_scores scores;
    uint8_t stopped;                    /* by a token or a text, else by length */
    uint8_t replaying;                  /* restored, and no new token yet */
};
struct record {
    struct record *next;                /* in the list of free places */
    struct sf_record request;           /* line 0: the place is free */
    struct choice *choice;              /* [request.choices] */
    int32_t added, closed;              /* choices that the engine has got, and is done with */
    struct sf_scores prompt_scores;
    struct sf_wire_receipt receipt;
    int32_t *tightened; int32_t tightenings; /* tokens that a choice had each time, in this run */
};
struct job {
    const struct sf_run_spec *spec;
    struct sf_run_summary sum;
    struct sf_idle idle;
    struct sf_engine *engine;
    struct sf_output *output;
    struct sf_emit *emit;
    struct sf_resume *resume;           /* NULL: a fresh start */
    struct sf_metrics *metrics;
    struct sf_line_reader *reader;
    struct sf_progress progress;
    struct sf_record_limits limits;
    struct record *record, *free_record;        /* [records] */
    struct record *pending;             /* read, not all of its choices added */
    int32_t records;
    struct sf_buffer packed;            /* scores on their way to the journal */
    int64_t started_ns, saved_ns, measured_ns;
    int64_t edited_before;              /* slots, of records that earlier runs have finished */
    int32_t replaying;                  /* choices */
    uint8_t input_done, draining;
    uint8_t behind;                     /* there is room for more than was read */
};

/* ---- records.c ------------------------------------------------------------------------------- */
/* Reads and adds while the engine has room, for a short time: `behind` says that there is more. */
sf_status job_read(struct job *);
/* A text with more bytes has more than tokens_max tokens, whatever they are. */
int64_t   job_text_bytes_max(const struct sf_run_spec *);
void      job_free_record(struct job *, struct record *);

/* ---- answers.c ------------------------------------------------------------------------------- */
/* The answer has one token more; *end_out: that was the last one. */
sf_status job_push(struct job *, struct choice *, int32_t token, int *end_out);
struct sf_engine_events job_events(struct job *);
/* What is half finished goes into the journal, and all of it to the disk. */
sf_status job_save(struct job *);

SF_C_END
#endif
