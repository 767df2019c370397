/* coordinator/progress.h: what a person sees of a run: one line that rewrites itself on a terminal,
 * a whole line every ten seconds elsewhere, and the summary at the end.  All on stderr. */
#ifndef SHEAF_COORDINATOR_PROGRESS_H
#define SHEAF_COORDINATOR_PROGRESS_H
#include <stdint.h>
#include "coordinator/run.h"
SF_C_BEGIN

struct sf_progress { int64_t total, started_ns, shown_ns; int terminal; };
void sf_progress_start(struct sf_progress *, int64_t total);
/* running: sequences now; cheap to call often. */
void sf_progress_show(struct sf_progress *, const struct sf_run_summary *, int32_t running);
void sf_progress_end(struct sf_progress *, const struct sf_run_summary *);

SF_C_END
#endif
