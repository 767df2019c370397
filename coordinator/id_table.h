/* coordinator/id_table.h: which ids have been seen, and where: open addressing over 64-bit hashes.
 *
 *   | hash, at | free | hash, at | ...        16 bytes a place, three quarters full at most: 21
 *                                             bytes an id
 *
 * The ids themselves are not kept: who finds a hash again reads what stands at `at` and compares.
 * The table is made once, for as many ids as there can be. */
#ifndef SHEAF_COORDINATOR_ID_TABLE_H
#define SHEAF_COORDINATOR_ID_TABLE_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

struct sf_id_place { uint64_t hash; int64_t at; };      /* at: the caller's, 0 or more; -1: free */
struct sf_id_table { struct sf_id_place *place; size_t places, used; };
_Static_assert(sizeof(struct sf_id_place) == 16, "a place is 16 bytes");

sf_status sf_id_table_make(struct sf_id_table *table, int64_t ids_max);
void      sf_id_table_free(struct sf_id_table *table);
/* Places with this hash, one after the other (the first after NULL); NULL ends. */
struct sf_id_place *sf_id_table_next(const struct sf_id_table *table, uint64_t hash,
                                     const struct sf_id_place *after);
/* 0: there are more ids than the table was made for. */
int       sf_id_table_add(struct sf_id_table *table, uint64_t hash, int64_t at);

SF_C_END
#endif
