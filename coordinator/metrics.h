/* coordinator/metrics.h: OUT.jsonl.run/metrics.csv: how a run went, one row every ten seconds and
 * one at its end, for plots.  A resumed run goes on in the same file. */
#ifndef SHEAF_COORDINATOR_METRICS_H
#define SHEAF_COORDINATOR_METRICS_H
#include "base/status.h"
#include "coordinator/run.h"
#include "coordinator/sched.h"
SF_C_BEGIN

struct sf_metrics;
/* go_on: behind the rows that are there. */
sf_status sf_metrics_open(const char *output, int go_on, struct sf_metrics **out);
/* A row that cannot be written is said once, and is no failure of the run. */
void      sf_metrics_row(struct sf_metrics *, const struct sf_run_summary *,
                         const struct sf_sched_load *);
void      sf_metrics_close(struct sf_metrics *);        /* NULL is fine */

SF_C_END
#endif
