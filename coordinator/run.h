/* coordinator/run.h: `sheaf run` as rank 0's coordinator thread sees it: records in, steps out,
 * samples in, records out.  It never touches the communicator: packed messages go through two
 * rings to the worker's thread, which does. */
#ifndef SHEAF_COORDINATOR_RUN_H
#define SHEAF_COORDINATOR_RUN_H
#include <stdint.h>
#include "base/ring.h"
#include "base/status.h"
#include "coordinator/config.h"
#include "coordinator/plan.h"
#include "model/tokenizer.h"
SF_C_BEGIN

struct sf_run_files {
    const char *input, *output;
    uint8_t resume, force, retry_errors;
};
struct sf_run_spec {
    const struct sf_config *config;
    const struct sf_launch_plan *plan;
    const struct sf_model *model;
    const struct sf_cluster *cluster;   /* for the manifest: who ran where */
    const struct sf_tokenizer *tokenizer; /* NULL: token ids only */
    const char *model_sha256;
    int64_t records;                    /* of the input, as sf_run_check counted them */
    struct sf_run_files files;
    struct sf_ring *to_workers;         /* steps, and at the end one with stop set for every group;
                                           envelopes as in proto/wire.h */
    struct sf_ring *from_workers;       /* results and reports */
};
struct sf_idle;                         /* coordinator/idle.h */
struct sf_run_summary {
    int64_t records, answered, errors;  /* of the job: with what earlier runs have finished ... */
    int64_t answered_before, errors_before;     /* ... which is this */
    int64_t prompt_tokens, output_tokens;       /* of all answers that are finished, as these: */
    int64_t kv_bytes_exact, kv_bytes_stored, kv_bytes_peak;
    int64_t slots_evicted, slots_merged, slots_requantised;
    int64_t sampled_tokens;             /* in this run, as all below */
    int64_t replayed_tokens;            /* of answers that an earlier run had begun */
    int64_t reused_tokens;              /* of prompts, that were attached and not computed */
    int64_t preempted, tightened;
    double seconds, replay_seconds;     /* replay: from the start until all replayed ones go on */
    int64_t steps, rows, prompt_rows;   /* as sent to the workers; rows: tokens fed */
    int32_t batch_max;                  /* most sequences running at once */
    const struct sf_idle *idle;         /* which methods changed what in this run; NULL: unknown,
                                           and once the run has ended */
};

/* Before any weight is loaded: the input can be read, ids are unique, the output does not exist
 * and can be made, or is there to go on with.  Leaves nothing behind. */
sf_status sf_run_check(const struct sf_run_files *, int64_t *records_out);
/* Whether what is to be resumed was begun by the same job (resume.h); --force says yes. */
sf_status sf_run_check_same(const struct sf_run_files *, const struct sf_config *,
                            const char *model_sha256);
/* The whole job.  *exit_code_out: 0, 3 (some records hold errors) or 75 (stopped early, to be
 * resumed); a status other than SF_OK ends the job.  Sends the stop in every case. */
sf_status sf_run(const struct sf_run_spec *, struct sf_run_summary *summary_out,
                 int *exit_code_out);

SF_C_END
#endif
