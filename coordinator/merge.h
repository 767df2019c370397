/* coordinator/merge.h: the outputs of several runs, over parts of one input, as one file.
 *
 * Lines are copied as they are, shard by shard.  Left out are blank lines, a last line that was
 * torn, and the error of a record that has an answer elsewhere.  A custom_id that has two answers,
 * or two errors and no answer, is refused.
 *
 * Memory is 21 bytes a line (id_table.h), 16 bytes for each line left out, and the longest line. */
#ifndef SHEAF_COORDINATOR_MERGE_H
#define SHEAF_COORDINATOR_MERGE_H
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

struct sf_merge_totals {
    int64_t records, errors;            /* lines of the output; of them, errors */
    int64_t replaced;                   /* errors left out, because there is an answer */
};

/* Writes output.new and renames it; the output must not exist.  SF_INVALID and SF_FORMAT name the
 * line of the shard that is refused.  *writing_out: it was past all checks, and a failure is one of
 * the system.  After a failure there is neither output nor output.new. */
sf_status sf_merge(const char *output, const char *const *shard, int32_t shards,
                   struct sf_merge_totals *totals_out, int *writing_out);

SF_C_END
#endif
