/* worker/report.h: what a rank tells the coordinator beside its samples.  For the files of worker/
 * alone. */
#ifndef SHEAF_WORKER_REPORT_H
#define SHEAF_WORKER_REPORT_H
#include "base/status.h"
#include "proto/wire.h"

struct sf_worker;
sf_status sf_report_receipts(struct sf_worker *, uint64_t step, struct sf_wire_receipt *,
                             int32_t receipts);
/* What the step asks to be measured. */
sf_status sf_report_load(struct sf_worker *, const struct sf_wire_step *);
/* Of the signals that have come, if any. */
sf_status sf_report_signals(struct sf_worker *);
void      sf_report_failure(struct sf_worker *, sf_status, char *words);

#endif
