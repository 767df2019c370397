/* coordinator/dedup.h: the first pass over the input: how many records there are, and whether two
 * have one custom_id.  Lines are counted before, so the table (id_table.h) is made once, with 21
 * bytes a line.  What hashes alike is read again and compared. */
#ifndef SHEAF_COORDINATOR_DEDUP_H
#define SHEAF_COORDINATOR_DEDUP_H
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

/* Lines that are blank are no records; lines that are not records are counted, and become errors of
 * their own later.  SF_INVALID names both lines of a custom_id that stands twice. */
sf_status sf_dedup_scan(const char *path, int64_t *records_out);
/* How many lines there are, whatever they hold. */
sf_status sf_dedup_count_lines(const char *path, int64_t *lines_out);

SF_C_END
#endif
