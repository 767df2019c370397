/* kvshard/block.c: the table of shared blocks (block.h), and how sequences attach and fill them. */
#include "kvshard/block.h"

#include <string.h>

#include "base/memory.h"
#include "kvshard/store_impl.h"

sf_status sf_blocks_create(const struct sf_page_pool *pool, int32_t lanes, struct sf_blocks *out)
{
    struct sf_blocks blocks = { .lanes = lanes,
                                .blocks_max = lanes > 0 ? pool->pages / lanes : INT32_MAX };
    void *block;
    size_t places = lanes > 0 ? (size_t)blocks.blocks_max * (size_t)lanes : 0;
    SF_TRY(sf_alloc(places * sizeof *blocks.page, "the table of shared blocks", &block));
    blocks.page = block;
    for (size_t i = 0; i < places; i++) blocks.page[i] = -1;
    *out = blocks;
    return SF_OK;
}

static void forget(struct sf_page_pool *pool, struct sf_blocks *blocks, int32_t block)
{
    for (int32_t l = 0; l < blocks->lanes; l++) {
        int32_t *page = sf_block_page(blocks, block, l);
        if (*page >= 0) sf_page_give(pool, *page);
        *page = -1;
    }
}

void sf_blocks_destroy(struct sf_page_pool *pool, struct sf_blocks *blocks)
{
    for (int32_t b = 0; blocks->page && blocks->lanes > 0 && b < blocks->blocks_max; b++)
        forget(pool, blocks, b);
    sf_free(blocks->page);
    *blocks = (struct sf_blocks){ 0 };
}

/* ---- what the store does with them ---------------------------------------------------------- */
static sf_status check_block(const struct sf_store *store, int32_t block)
{
    if (block >= 0 && block < store->blocks.blocks_max) return SF_OK;
    return SF_FAIL(SF_INTERNAL, "block %d of a prefix cache of %d", block,
                   store->blocks.blocks_max);
}

sf_status sf_block_drop(struct sf_store *store, int32_t block)
{
    SF_TRY(check_block(store, block));
    forget(&store->pool, &store->blocks, block);
    return SF_OK;
}

static void attach(struct sf_store *store, struct sf_seq *seq, int32_t layer, int32_t l,
                   const struct sf_seq_share *share)
{
    struct sf_kv_lane *lane = sf_store_lane_of(store, seq, layer, l), before = *lane;
    for (int32_t b = 0; b < share->reused; b++) {
        int32_t page = *sf_block_page(&store->blocks, share->block[b],
                                      store->layer[layer].lane_first + l);
        sf_page_share(&store->pool, page);
        lane->page[lane->pages++] = page;
    }
    lane->slots = lane->live = share->reused * store->page_slots;
    sf_store_book(store, seq, layer, l, &before);
}

sf_status sf_seq_share(struct sf_store *store, struct sf_seq *seq, const struct sf_seq_share *share)
{
    int64_t reused = (int64_t)share->reused * store->page_slots;
    int64_t whole = (int64_t)share->blocks * store->page_slots;
    SF_ASSERT(store->layers == 0 || seq->tokens[0] == 0);
    if (share->reused < 0 || share->reused > share->blocks || reused >= seq->prompt ||
        whole > seq->prompt)
        return SF_FAIL(SF_INTERNAL, "a prompt of %d tokens shares %d blocks and attaches %d",
                       seq->prompt, share->blocks, share->reused);
    for (int32_t b = 0; b < share->blocks; b++) {
        SF_TRY(check_block(store, share->block[b]));
        for (int32_t l = 0; l < store->lanes; l++)
            if ((*sf_block_page(&store->blocks, share->block[b], l) >= 0) != (b < share->reused))
                return SF_FAIL(SF_INTERNAL, "block %d of a sequence is %s", share->block[b],
                               b < share->reused ? "not there" : "there already");
    }
    void *block;
    SF_TRY(sf_alloc((size_t)share->blocks * sizeof *seq->block, "blocks of a sequence", &block));
    seq->block = block;
    memcpy(seq->block, share->block, (size_t)share->blocks * sizeof *seq->block);
    seq->blocks = share->blocks;
    for (int32_t layer = 0; layer < store->layers; layer++) {
        for (int32_t l = 0; l < store->layer[layer].spec.lanes; l++)
            attach(store, seq, layer, l, share);
        seq->tokens[layer] = (int32_t)reused;
    }
    return SF_OK;
}

void sf_blocks_fill(struct sf_store *store, const struct sf_seq *seq, int32_t layer, int32_t l,
                    int32_t tokens_before)
{
    const struct sf_kv_lane *lane = sf_store_lane_of(store, seq, layer, l);
    int32_t size = store->page_slots;
    for (int32_t b = tokens_before / size; b < seq->blocks && b < lane->slots / size; b++) {
        int32_t *page = sf_block_page(&store->blocks, seq->block[b],
                                      store->layer[layer].lane_first + l);
        SF_ASSERT(*page < 0);
        *page = lane->page[b];
        sf_page_share(&store->pool, *page);
    }
}
