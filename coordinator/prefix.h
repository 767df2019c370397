/* coordinator/prefix.h: which beginnings of prompts the cache of one data-parallel group holds.
 *
 * A block is `block_tokens` tokens of a prompt together with all that stands before them: a node of
 * a tree of prompts.  The table decides on block numbers alone; the pages behind them lie with the
 * workers (kvshard/block.h), which are told by the steps.  Pure: no clock, no I/O.
 *
 *   system prompt  [ 0 ]--[ 1 ]--[ 2 ]--[ 3 ]      one user's question
 *                                  \----[ 4 ]      another's
 *
 * A block is made by the sequence that will compute it, is filled once the step that computes its
 * last row has been made, and can be attached from the next step on.  It is held by every sequence
 * that it is part of.  One that nobody holds stays until it is evicted: the longest unused first,
 * and never before the blocks behind it.  Equal hashes are told apart by the tokens. */
#ifndef SHEAF_COORDINATOR_PREFIX_H
#define SHEAF_COORDINATOR_PREFIX_H
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

struct sf_prefix;
sf_status sf_prefix_create(int32_t blocks_max, int32_t block_tokens, struct sf_prefix **out);
void      sf_prefix_destroy(struct sf_prefix *);        /* NULL is fine */

struct sf_prefix_match {
    int32_t blocks;                     /* filled ones that the tokens begin with */
    int32_t held;                       /* the first of these, which somebody holds */
    int32_t pending;                    /* 1: the next one is being computed by another sequence */
};
/* The longest known beginning of token[tokens] in whole blocks; holds nothing. */
struct sf_prefix_match sf_prefix_find(const struct sf_prefix *, const int32_t *token,
                                      int32_t tokens);
/* The same, but block_out[blocks] gets the numbers and the caller holds them. */
int32_t   sf_prefix_hold(struct sf_prefix *, const int32_t *token, int32_t tokens,
                         int32_t *block_out);
/* A new block behind `parent` (-1: at the start) for these block_tokens tokens, held by the caller,
 * not filled.  -1 if it is there already or the table is full. */
int32_t   sf_prefix_add(struct sf_prefix *, int32_t parent, const int32_t *token);
void      sf_prefix_fill(struct sf_prefix *, int32_t block);
/* The caller holds the block no longer.  1 if that was the end of it: never filled, so gone. */
int       sf_prefix_release(struct sf_prefix *, int32_t block);
/* The number of a block that is gone now; -1 if all are held. */
int32_t   sf_prefix_evict(struct sf_prefix *);
int32_t   sf_prefix_blocks(const struct sf_prefix *);   /* that there are, filled or not */
int32_t   sf_prefix_unheld(const struct sf_prefix *);   /* of these, what eviction would yield */

SF_C_END
#endif
