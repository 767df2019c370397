/* coordinator/progress.h: what a person sees of a run: one line that rewrites itself on a terminal,
 * a whole line every ten seconds elsewhere, and the summary at the end.  All on stderr. */
#ifndef SHEAF_COORDINATOR_PROGRESS_H
#define SHEAF_COORDINATOR_PROGRESS_H
#include <stdint.h>
#include "coordinator/run.h"
SF_C_BEGIN

struct sf_progress { int64_t total, before, started_ns, shown_ns, asked_ns; int bar; };
/* Now: sequences; share of the page pool, 0 to 1; what the cache of these sequences has and would
 * have without any method, 0 where that is not known yet. */
struct sf_progress_now {
    int32_t running;
    double kv_use;
    int64_t kv_bytes_stored, kv_bytes_exact;
};
enum { SF_PROGRESS_BYTES = 256 };

/* before: of the total, finished by earlier runs.  The bar is for a terminal that takes one (not
 * TERM=dumb) and a log that shows info as text. */
void sf_progress_start(struct sf_progress *, int64_t total, int64_t before);
/* Cheap to call often. */
void sf_progress_show(struct sf_progress *, const struct sf_run_summary *,
                      const struct sf_progress_now *);
/* Whether the ranks should be asked what their caches hold: a second before a line falls due, once
 * a second for a bar.  Says so once. */
int sf_progress_asks(struct sf_progress *);
/* The line itself: at most columns - 1 characters (0: as long as it is and no bar); the bar stands
 * in it where there is room.  columns: at most SF_PROGRESS_BYTES.  The ratio is that of what runs,
 * and of what is finished while nothing is known of that. */
void sf_progress_line(const struct sf_progress *, const struct sf_run_summary *,
                      const struct sf_progress_now *, double seconds, int columns,
                      char out[SF_PROGRESS_BYTES]);
/* Takes the bar off the terminal, for lines of other kinds. */
void sf_progress_clear(struct sf_progress *);
/* stopped: before all was done, to be resumed. */
void sf_progress_end(struct sf_progress *, const struct sf_run_summary *, int stopped);

SF_C_END
#endif
