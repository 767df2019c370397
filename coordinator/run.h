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

struct sf_run_spec {
    const struct sf_config *config;
    const struct sf_launch_plan *plan;
    const struct sf_model *model;
    const struct sf_cluster *cluster;   /* for the manifest: who ran where */
    const struct sf_tokenizer *tokenizer; /* NULL: token ids only */
    int64_t records;                    /* of the input, as sf_run_check counted them */
    const char *input, *output;
    struct sf_ring *to_workers;         /* of struct sf_envelope *: steps, and at the end one step
                                           with stop set for every group */
    struct sf_ring *from_workers;       /* results and reports */
};
struct sf_run_summary {
    int64_t records, answered, errors;
    int64_t prompt_tokens, output_tokens;
    int64_t kv_bytes_exact, kv_bytes_stored, kv_bytes_peak;
    int64_t slots_evicted;
    double seconds;
    int32_t batch_max;                  /* most sequences running at once */
};

/* Before any weight is loaded: the input can be read, ids are unique, the output does not exist
 * and can be made.  Leaves nothing behind. */
sf_status sf_run_check(const char *input, const char *output, int64_t *records_out);
/* The whole job.  *exit_code_out: 0, 3 (some records hold errors) or 1; a status other than SF_OK
 * ends the job.  Sends the stop in every case. */
sf_status sf_run(const struct sf_run_spec *, struct sf_run_summary *summary_out,
                 int *exit_code_out);

SF_C_END
#endif
