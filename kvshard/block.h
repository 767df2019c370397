/* kvshard/block.h: beginnings of prompts that several sequences share.
 *
 *   block b   page of lane 0 | page of lane 1 | ... | page of lane n-1      all layers of this rank
 *
 * A block is page_slots tokens of a prompt: one full page of every lane of a sequence, as they were
 * before any method edited them.  Which tokens it stands for and who may attach it is the
 * coordinator's business (coordinator/prefix.h); here it is a number and its pages, each held once
 * more (page.h).  A sequence attaches blocks before its first row, and fills others as it goes: in
 * each layer, when the rows that complete a page are appended.
 *
 * Where a method watches its prompts (SF_PREFIX_KV_AND_MASS), the slots of a page have other masses
 * in each sequence, so each has its own pages: those of blocks are copied when they are attached.
 * The masses to go on from are noted by the last of the blocks for all slots up to its end, once
 * its rows have attended; sf_share_border (stack.h) leaves some blocks out.
 *
 *   mass   [lanes][noted arrays of the mirror][(place + 1) x page_slots]      f32, on the host
 *
 *   free --> promised to a sequence --> filled, page by page --> dropped: free
 *               its filler closes: free */
#ifndef SHEAF_KVSHARD_BLOCK_H
#define SHEAF_KVSHARD_BLOCK_H
#include <stdint.h>
#include "base/status.h"
#include "kvshard/page.h"
SF_C_BEGIN

struct sf_seq;

struct sf_block {
    const struct sf_seq *filler;        /* open, and to fill it; NULL: nobody */
    int32_t place;                      /* of its tokens in the prompt: place x page_slots and on */
    float *mass;                        /* as drawn above; NULL: nothing is noted behind it */
};
struct sf_blocks {
    int32_t *page;                      /* [blocks_max][lanes] -1: not filled there */
    struct sf_block *block;             /* [blocks_max], none if there are no lanes */
    int32_t blocks_max, lanes;
};
sf_status sf_blocks_create(const struct sf_page_pool *, int32_t lanes, struct sf_blocks *out);
/* Gives the pages of all blocks back. */
void      sf_blocks_destroy(struct sf_page_pool *, struct sf_blocks *);
/* Page of one lane of a block; -1: not filled. */
static inline int32_t *sf_block_page(const struct sf_blocks *blocks, int32_t block, int32_t lane)
{
    SF_ASSERT(block >= 0 && block < blocks->blocks_max && lane < blocks->lanes);
    return &blocks->page[(size_t)block * (size_t)blocks->lanes + (size_t)lane];
}

SF_C_END
#endif
