/* coordinator/manifest.h: OUT.run/manifest.json: what ran, where, on which model, and what came of
 * it (interface.md section 4).  Written at the start and at the end, whole, by temporary file and
 * rename (manifest_write.c); read by the next run: has it finished, and was it the job that is to
 * go on? */
#ifndef SHEAF_COORDINATOR_MANIFEST_H
#define SHEAF_COORDINATOR_MANIFEST_H
#include "base/status.h"
#include "coordinator/config.h"
#include "coordinator/run.h"
SF_C_BEGIN

struct sf_manifest {
    char *config;                       /* the resolved text, as sf_config_text wrote it; owned */
    char model_sha256[65];
    int finished;                       /* it says when */
    int64_t started, resumes;           /* first start, Unix time; 0 where it does not say */
};

/* SF_IO if it cannot be read, SF_FORMAT if it is no manifest. */
sf_status sf_manifest_read(const char *path, struct sf_manifest *manifest_out);
void      sf_manifest_free(struct sf_manifest *manifest);

/* Is this the same job, so that its answers may stand beside those that are there?  The model is
 * known by its digest, wherever it lies.  `parallel`, `device`, kv_cache.memory and, of `run`,
 * checkpoint_*, rank_timeout_s and on_signal may differ; all else is equal, each method of the
 * stack included.  SF_INVALID names the first key that is not, with both values. */
sf_status sf_manifest_same_job(const struct sf_manifest *manifest, const struct sf_config *now,
                               const char *model_sha256);

/* Makes OUT.run, where it is not there. */
sf_status sf_manifest_folder(const struct sf_run_spec *);
/* Writes that of a run that has not finished.  A resume keeps when the job was started first and
 * counts itself. */
sf_status sf_manifest_start(const struct sf_run_spec *);
/* The totals; `stopped`: the job was drained and is to be resumed. */
sf_status sf_manifest_finish(const struct sf_run_spec *, const struct sf_run_summary *,
                             int stopped);

SF_C_END
#endif
