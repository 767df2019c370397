/* kvshard/copies.h: statistics of a KV head that several tensor ranks hold; the store's own. */
#ifndef SHEAF_KVSHARD_COPIES_H
#define SHEAF_KVSHARD_COPIES_H
#include <stdint.h>
#include "comm/comm.h"
#include "kvshard/store_impl.h"
SF_C_BEGIN

/* Whether this layer's lane has copies, and a method that watches attention acts on it. */
int       sf_copies_serve(const struct sf_store *, int32_t layer);
/* Room for the rows of a call, if any layer is so.  SF_INTERNAL without the tensor group. */
sf_status sf_copies_create(struct sf_store *);
void      sf_copies_destroy(struct sf_store *);
/* Query heads of all copies of the layer's lane. */
int32_t   sf_copies_group(const struct sf_store *, int32_t layer);
/* Collective over the copies, which name the same rows.  Afterwards store->copies has of row r of
 * the list the queries [sf_copies_group][k_dim], their lse [sf_copies_group] and the position. */
sf_status sf_copies_rows(struct sf_store *, int32_t layer, const struct sf_attend_job *,
                         const struct sf_copies_row *row, int32_t rows);
/* Collective over the copies, before a hook runs: all are shown copy 0's masses.  SF_INTERNAL where
 * their slots are not the same. */
sf_status sf_copies_agree(struct sf_answer *);

SF_C_END
#endif
