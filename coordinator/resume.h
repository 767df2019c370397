/* coordinator/resume.h: what an earlier run left behind, read from OUT and its journal, and the two
 * files made ready to go on: the start of `sheaf run --resume`.
 *
 *   sf_resume_read    looks; changes nothing.  Which lines are finished, and what is there of
 *                     those that are not.
 *   sf_resume_begin   cuts OUT behind its last good line, takes errors out of it if they are to be
 *                     tried again, writes the journal anew without what is done with, and opens it
 *                     for appending.  It may be killed at any moment and then read again.
 *
 * A line is finished if its bytes in OUT have the digest of its journal entry.  Entries that the
 * journal says reached the disk (SYNCED) are taken on trust, but for the last of them, which is
 * compared: OUT could be another file.  Where trust fails, all are compared.  From the first entry
 * that is not in OUT nothing counts, and OUT is cut there.
 *
 * Memory is one bit a line, and the tokens of what was in flight. */
#ifndef SHEAF_COORDINATOR_RESUME_H
#define SHEAF_COORDINATOR_RESUME_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
#include "coordinator/journal.h"
SF_C_BEGIN

struct sf_resume;
struct sf_resume_counts {
    int64_t answered, errors;           /* finished lines */
    int64_t output_bytes;               /* that they take in OUT: where the next one goes */
    int64_t parts, part_tokens;         /* choices of half-finished records, and their tokens */
    int64_t sum[SF_JOURNAL_SUMS];       /* over the finished lines */
};
struct sf_resume_part {                 /* one choice of a half-finished record */
    const int32_t *token; int32_t tokens;
    const void *extra; size_t extra_bytes;  /* what was given with the pieces, one behind another */
};

/* Nothing there at all is no failure: nothing is finished.  SF_INVALID if OUT holds bytes and the
 * journal is not there or is none: OUT cannot be told from anybody's file then. */
sf_status sf_resume_read(const char *output, const char *journal, struct sf_resume **resume_out);
struct sf_resume_counts sf_resume_counts(const struct sf_resume *resume);
/* There was nothing, or no more than the beginning of a journal. */
int       sf_resume_is_fresh(const struct sf_resume *resume);
int       sf_resume_is_finished(const struct sf_resume *resume, int64_t line);
/* Valid until the line is dropped; NULL if there is nothing. */
const struct sf_resume_part *sf_resume_part_of(const struct sf_resume *resume, int64_t line,
                                               int32_t choice);
/* Frees the parts of a line.  Before sf_resume_begin: it starts again, and the new journal knows
 * nothing of them.  After it: the caller has taken them over; the journal keeps them. */
void      sf_resume_drop(struct sf_resume *resume, int64_t line);
/* Once, and before anything is written by others.  The folder of the journal is there.  Afterwards
 * OUT is there too and has exactly counts.output_bytes bytes, on the disk.  forget_errors: lines
 * that hold errors are no longer finished.  After a failure only sf_resume_free is left. */
sf_status sf_resume_begin(struct sf_resume *resume, int forget_errors,
                          struct sf_journal **journal_out);
void      sf_resume_free(struct sf_resume *resume);                 /* NULL is fine */

SF_C_END
#endif
