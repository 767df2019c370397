/* coordinator/emit.h: the output file and the manifest beside it (interface.md section 4).  A
 * record is appended whole, by one loop of write(2), as soon as it has finished. */
#ifndef SHEAF_COORDINATOR_EMIT_H
#define SHEAF_COORDINATOR_EMIT_H
#include <stdint.h>
#include "base/status.h"
#include "coordinator/request.h"
#include "coordinator/run.h"
#include "proto/wire.h"
SF_C_BEGIN

struct sf_emit;
struct sf_answer_out {                  /* one finished record */
    const struct sf_record *request;
    uint64_t number;                    /* of the request within this run, for its ids */
    const char *text; size_t text_bytes;/* valid UTF-8 */
    const int32_t *token; int32_t tokens;
    int stopped;                        /* by an end-of-sequence token; else by length */
    struct sf_wire_receipt receipt;     /* summed over the ranks */
};

/* Makes OUT, which must not exist, and OUT.run/manifest.json. */
sf_status sf_emit_open(const struct sf_run_spec *, struct sf_emit **out);
sf_status sf_emit_answer(struct sf_emit *, const struct sf_answer_out *);
/* request: custom_id (may be NULL), line and code. */
sf_status sf_emit_error(struct sf_emit *, const struct sf_record *, const char *words);
/* The manifest with its totals, by temporary file and rename. */
sf_status sf_emit_finish(struct sf_emit *, const struct sf_run_summary *);
void      sf_emit_close(struct sf_emit *);

SF_C_END
#endif
