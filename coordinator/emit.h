/* coordinator/emit.h: finished records become lines (interface.md section 4), handed to the output
 * whole (output.h). */
#ifndef SHEAF_COORDINATOR_EMIT_H
#define SHEAF_COORDINATOR_EMIT_H
#include <stdint.h>
#include "base/status.h"
#include "coordinator/answer_json.h"
#include "coordinator/output.h"
#include "coordinator/request.h"
#include "coordinator/run.h"
SF_C_BEGIN

struct sf_emit;
/* The output outlives it. */
sf_status sf_emit_open(const struct sf_run_spec *, struct sf_output *, struct sf_emit **out);
sf_status sf_emit_answer(struct sf_emit *, const struct sf_answer_out *);
/* request: custom_id (may be NULL), line and code. */
sf_status sf_emit_error(struct sf_emit *, const struct sf_record *, const char *words);
void      sf_emit_close(struct sf_emit *);

SF_C_END
#endif
