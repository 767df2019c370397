/* coordinator/output.h: OUT.jsonl and the journal beside it, so that whatever ends the job, the
 * same command goes on where it was (design.md section 9).
 *
 *   line of a record:  journal gets "line n: these bytes at this place", then OUT gets the bytes
 *   every few seconds: journal gets the new tokens of what is half finished; both files are synced
 */
#ifndef SHEAF_COORDINATOR_OUTPUT_H
#define SHEAF_COORDINATOR_OUTPUT_H
#include <stdint.h>
#include "base/status.h"
#include "coordinator/journal.h"
SF_C_BEGIN

/* What struct sf_journal_finished.sum holds. */
enum { SF_SUM_PROMPT_TOKENS, SF_SUM_OUTPUT_TOKENS, SF_SUM_BYTES_EXACT, SF_SUM_BYTES_STORED,
       SF_SUM_BYTES_PEAK, SF_SUM_EVICTED, SF_SUM_MERGED, SF_SUM_REQUANTISED, SF_SUMS };

struct sf_output;
/* Makes OUT, which must not exist, and OUT.run/journal; OUT.run is there. */
sf_status sf_output_create(const char *path, struct sf_output **out);
/* Goes on with an OUT of so many bytes and its journal, which it takes over, also when it fails
 * (resume.h has made them ready). */
sf_status sf_output_go_on(const char *path, int64_t bytes, struct sf_journal *,
                          struct sf_output **out);
/* Appends the line of a record, which ends in its newline: whole or not at all. */
sf_status sf_output_line(struct sf_output *, const struct sf_journal_finished *, const char *bytes);
/* New tokens of a half-finished record. */
sf_status sf_output_tokens(struct sf_output *, const struct sf_journal_tokens *);
/* All that was written survives the machine. */
sf_status sf_output_sync(struct sf_output *);
int64_t   sf_output_bytes(const struct sf_output *);
void      sf_output_close(struct sf_output *);          /* NULL is fine */

SF_C_END
#endif
