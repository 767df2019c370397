/* model/memo.h: the tokens of pieces that have come before, in tables of fixed size.  A text is
 * mostly words that others have had, so few pieces have to be merged.  A piece that is long, or of
 * many tokens, is not kept; one that is kept may be pushed out by another. */
#ifndef SHEAF_MODEL_MEMO_H
#define SHEAF_MODEL_MEMO_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

enum { SF_MEMO_IDS = 10 };              /* tokens of a piece at most */

struct sf_memo;                         /* 3 MiB; of one thread at a time */
sf_status sf_memo_create(struct sf_memo **memo_out);
void      sf_memo_destroy(struct sf_memo *);            /* NULL is fine */
/* How many tokens the piece has, which may be none, or -1: not known.  `bytes` is at least 1. */
int32_t   sf_memo_find(const struct sf_memo *, const char *piece, size_t bytes,
                       int32_t id_out[SF_MEMO_IDS]);
void      sf_memo_put(struct sf_memo *, const char *piece, size_t bytes, const int32_t *id,
                      size_t count);

SF_C_END
#endif
