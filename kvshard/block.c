/* kvshard/block.c: the table of shared blocks (block.h), and how sequences attach and fill them. */
#include "kvshard/block.h"

#include <string.h>

#include "base/memory.h"
#include "kvshard/mass.h"
#include "kvshard/store_impl.h"

sf_status sf_blocks_create(const struct sf_page_pool *pool, int32_t lanes, struct sf_blocks *out)
{
    struct sf_blocks blocks = { .lanes = lanes,
                                .blocks_max = lanes > 0 ? pool->pages / lanes : INT32_MAX };
    void *block;
    size_t count = lanes > 0 ? (size_t)blocks.blocks_max : 0, places = count * (size_t)lanes;
    SF_TRY(sf_alloc(places * sizeof *blocks.page, "the table of shared blocks", &block));
    blocks.page = block;
    for (size_t i = 0; i < places; i++) blocks.page[i] = -1;
    sf_status status = sf_alloc(count * sizeof *blocks.block, "shared blocks", &block);
    if (status != SF_OK) {
        sf_free(blocks.page);
        return status;
    }
    blocks.block = block;
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
    if (blocks->lanes == 0) return;
    blocks->block[block].filler = NULL;
    sf_free(blocks->block[block].mass);
    blocks->block[block].mass = NULL;
}

void sf_blocks_destroy(struct sf_page_pool *pool, struct sf_blocks *blocks)
{
    for (int32_t b = 0; blocks->page && blocks->lanes > 0 && b < blocks->blocks_max; b++)
        forget(pool, blocks, b);
    sf_free(blocks->block);
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

/* What a method writes beside a slot, or does before its prompt has ended, would not be what it
 * does to a prompt of its own. */
static sf_status check_methods(const struct sf_store *store)
{
    for (int32_t m = 0; m < store->methods; m++) {
        const struct sf_plan *plan = &store->method[m].entry->plan;
        int aux = plan->aux_bytes > 0 && plan->prefix != SF_PREFIX_KV_AND_MASS;
        if (aux || plan->whens & 1u << SF_AT_PREFILL_CHUNK)
            return SF_FAIL(SF_INTERNAL, "%s: prompts share blocks, but it %s",
                           store->method[m].entry->method->name,
                           aux ? "has bytes of its own beside each slot"
                               : "edits prompts before they end");
    }
    return SF_OK;
}

static sf_status check_numbers(const struct sf_store *store, const struct sf_seq *seq,
                               const struct sf_seq_share *share)
{
    int64_t reused = (int64_t)share->reused * store->page_slots;
    int64_t whole = (int64_t)share->blocks * store->page_slots;
    if (share->reused < 0 || share->reused > share->blocks || reused >= seq->prompt ||
        whole > seq->prompt)
        return SF_FAIL(SF_INTERNAL, "a prompt of %d tokens shares %d blocks and attaches %d",
                       seq->prompt, share->blocks, share->reused);
    for (int32_t b = 0; b < share->blocks; b++) SF_TRY(check_block(store, share->block[b]));
    if (sf_share_most(&store->sharing, seq->prompt, store->page_slots, share->reused) !=
        share->reused)
        return SF_FAIL(SF_INTERNAL, "a prompt of %d tokens attaches %d blocks, whose masses are not"
                       " those that it would have", seq->prompt, share->reused);
    return SF_OK;
}

/* ---- masses ---------------------------------------------------------------------------------- */
static int is_noting(const struct sf_store *store)
{
    return store->sharing.noted[0] || store->sharing.noted[1];
}

/* Whether masses are noted behind block number `place` of a prompt. */
static int is_border(const struct sf_store *store, int32_t place)
{
    return is_noting(store) && sf_share_border(place + 1) == place + 1;
}

/* Whether the lane's slots have masses, so that its pages are its own. */
static int is_watched(const struct sf_store *store, int32_t layer, int32_t l)
{
    int32_t method = store->layer[layer].method[l];
    return method >= 0 && store->method[method].entry->plan.prefix == SF_PREFIX_KV_AND_MASS;
}

/* The arrays of the mirror that are noted. */
static int32_t arrays_of(const struct sf_store *store, float *array_out[4])
{
    int32_t n = 0;
    for (int w = 0; w < 2; w++) {
        if (!store->sharing.noted[w]) continue;
        array_out[n++] = store->pool.mass[w];
        if (store->pool.seen[w]) array_out[n++] = store->pool.seen[w];
    }
    return n;
}

/* Of the first `slots` slots of a lane, from the mirror into the block (note) or back. */
static void move_masses(const struct sf_store *store, const struct sf_seq *seq, int32_t layer,
                        int32_t l, int32_t slots, float *mass, int note)
{
    const struct sf_kv_lane *lane = sf_store_lane_of(store, seq, layer, l);
    float *array[4];
    size_t n = (size_t)arrays_of(store, array);
    mass += (size_t)(store->layer[layer].lane_first + l) * n * (size_t)slots;
    for (size_t i = 0; i < n; i++, mass += slots)
        for (int32_t s = 0; s < slots; s++) {
            float *at = &array[i][sf_lane_mirror(&store->pool, lane, s)];
            if (note) mass[s] = *at;
            else *at = mass[s];
        }
}

int32_t sf_blocks_rows(const struct sf_store *store, int32_t layer, const struct sf_seq *seq,
                       int32_t rows)
{
    int32_t size = store->page_slots, tokens = seq->tokens[layer];
    int watched = 0;
    for (int32_t l = 0; is_noting(store) && l < store->layer[layer].spec.lanes; l++)
        watched |= is_watched(store, layer, l);
    if (!watched) return rows;
    for (int32_t b = tokens / size; b < seq->blocks && b * size < tokens + rows; b++) {
        const struct sf_block *block = &store->blocks.block[seq->block[b]];
        if (block->filler != seq || !block->mass) continue;
        return (b + 1) * size - tokens < rows ? (b + 1) * size - tokens : rows;
    }
    return rows;
}

void sf_blocks_note(struct sf_store *store, int32_t layer, const struct sf_kv_step *step)
{
    for (int32_t i = 0; is_noting(store) && i < step->items; i++) {
        const struct sf_seq *seq = step->item[i].seq;
        int32_t tokens = seq->tokens[layer], blocks = tokens / store->page_slots;
        if (store->rows[i] == 0 || tokens > seq->prompt || blocks > seq->blocks ||
            tokens != blocks * store->page_slots)
            continue;
        const struct sf_block *block = &store->blocks.block[seq->block[blocks - 1]];
        if (block->filler != seq || !block->mass) continue;
        for (int32_t l = 0; l < store->layer[layer].spec.lanes; l++)
            sf_masses_pull(&store->pool, sf_store_lane_of(store, seq, layer, l));
        sf_masses_arrive(&store->pool);
        for (int32_t l = 0; l < store->layer[layer].spec.lanes; l++)
            if (is_watched(store, layer, l))
                move_masses(store, seq, layer, l, tokens, block->mass, 1);
    }
}

/* The block can be attached as number `place` of a prompt. */
static sf_status check_filled(const struct sf_store *store, int32_t block, int32_t place)
{
    const struct sf_blocks *blocks = &store->blocks;
    for (int32_t l = 0; l < blocks->lanes; l++)
        if (*sf_block_page(blocks, block, l) < 0)
            return SF_FAIL(SF_INTERNAL, "block %d of a sequence is not there", block);
    if (is_border(store, place) && !blocks->block[block].mass)
        return SF_FAIL(SF_INTERNAL, "block %d has noted no masses", block);
    if (blocks->block[block].place != place)
        return SF_FAIL(SF_INTERNAL, "block %d is number %d of its prompt, not %d", block,
                       blocks->block[block].place, place);
    return SF_OK;
}

/* The sequence will fill the block, and nobody else. */
static sf_status promise(struct sf_store *store, const struct sf_seq *seq, int32_t number,
                         int32_t place)
{
    struct sf_block *block = &store->blocks.block[number];
    int32_t there = 0;
    for (int32_t l = 0; l < store->lanes; l++)
        there += *sf_block_page(&store->blocks, number, l) >= 0;
    /* Filled by another, but behind the last border that this one could attach. */
    if (there == store->lanes && is_noting(store) && block->place == place) return SF_OK;
    if (there > 0)
        return SF_FAIL(SF_INTERNAL, "block %d of a sequence is there already", number);
    if (block->filler)
        return SF_FAIL(SF_INTERNAL, "block %d of sequence %lld is to be filled by sequence %lld",
                       number, (long long)seq->id, (long long)block->filler->id);
    float *array[4];
    void *mass = NULL;
    size_t floats = (size_t)store->lanes * (size_t)arrays_of(store, array) *
                    (size_t)(place + 1) * (size_t)store->page_slots;
    if (is_border(store, place))
        SF_TRY(sf_alloc(floats * sizeof *block->mass, "masses at the end of a block", &mass));
    sf_free(block->mass);
    *block = (struct sf_block){ .filler = seq, .place = place, .mass = mass };
    return SF_OK;
}

static void attach(struct sf_store *store, struct sf_seq *seq, int32_t layer, int32_t l,
                   const struct sf_seq_share *share)
{
    struct sf_kv_lane *lane = sf_store_lane_of(store, seq, layer, l);
    struct sf_held before = sf_store_held(store, seq, layer, l);
    SF_ASSERT(lane->slots == 0 && share->reused <= lane->pages_max);
    for (int32_t b = 0; b < share->reused; b++) {
        int32_t page = *sf_block_page(&store->blocks, share->block[b],
                                      store->layer[layer].lane_first + l);
        sf_page_share(&store->pool, page);
        lane->page[lane->pages++] = page;
    }
    lane->slots = lane->live = share->reused * store->page_slots;
    if (lane->order) memset(lane->order, 0, (size_t)lane->live);
    sf_store_book(store, seq, layer, l, before);
}

/* The lane's pages become copies, with the masses that the last block has noted; nothing else has
 * been written beside a slot before the prompt's end. */
static sf_status make_own(struct sf_store *store, struct sf_seq *seq, int32_t layer, int32_t l,
                          const struct sf_seq_share *share)
{
    struct sf_kv_lane *lane = sf_store_lane_of(store, seq, layer, l);
    struct sf_lane_ctx ctx = sf_store_ctx(store, layer);
    int32_t *slot, slots = lane->slots;
    sf_scratch_reset(&store->host);
    SF_TRY(sf_scratch_items(&store->host, (size_t)slots + 1, sizeof *slot, &slot));
    for (int32_t s = 0; s < slots; s++) slot[s] = s;
    SF_TRY(sf_lane_own(&ctx, lane, slot, slots));
    for (int32_t s = 0; s < slots; s++)
        sf_mirror_begin(&store->pool, sf_lane_mirror(&store->pool, lane, s), s);
    if (slots > 0 && is_noting(store))
        move_masses(store, seq, layer, l, slots,
                    store->blocks.block[share->block[share->reused - 1]].mass, 0);
    return SF_OK;
}

/* Every page that attaching copies is there to be taken. */
static sf_status check_copies(const struct sf_store *store, const struct sf_seq_share *share)
{
    int64_t copies = 0;
    for (int32_t layer = 0; share->reused > 0 && layer < store->layers; layer++)
        for (int32_t l = 0; l < store->layer[layer].spec.lanes; l++)
            if (is_watched(store, layer, l)) copies += share->reused;
    if (copies > sf_pages_free(&store->pool))
        return SF_FAIL(SF_NO_PAGES, "a prompt needs %lld copies of shared pages, %d of %d are free",
                       (long long)copies, sf_pages_free(&store->pool), store->pool.pages);
    return SF_OK;
}

/* All blocks that are to be attached are there, all others are promised; or nothing has changed. */
static sf_status claim(struct sf_store *store, struct sf_seq *seq, const struct sf_seq_share *share)
{
    sf_status status = SF_OK;
    void *block;
    SF_TRY(sf_alloc((size_t)share->blocks * sizeof *seq->block, "blocks of a sequence", &block));
    seq->block = block;
    for (int32_t b = 0; status == SF_OK && b < share->blocks; b++) {
        status = b < share->reused ? check_filled(store, share->block[b], b)
                                   : promise(store, seq, share->block[b], b);
        if (status == SF_OK) seq->block[seq->blocks++] = share->block[b];
    }
    if (status == SF_OK) return SF_OK;
    sf_blocks_leave(store, seq);
    sf_free(seq->block);
    seq->block = NULL;
    return status;
}

sf_status sf_seq_share(struct sf_store *store, struct sf_seq *seq, const struct sf_seq_share *share)
{
    SF_ASSERT(seq->tokens[0] == 0 && seq->block == NULL);
    SF_TRY(check_numbers(store, seq, share));
    if (share->blocks > 0) SF_TRY(check_methods(store));
    SF_TRY(check_copies(store, share));
    if (share->blocks > 0 && store->lanes > 0) SF_TRY(claim(store, seq, share));
    for (int32_t layer = 0; layer < store->layers; layer++) {
        for (int32_t l = 0; l < store->layer[layer].spec.lanes; l++) {
            attach(store, seq, layer, l, share);
            if (is_watched(store, layer, l)) SF_TRY(make_own(store, seq, layer, l, share));
        }
        seq->tokens[layer] = share->reused * store->page_slots;
        sf_store_tokens(store, layer, seq->tokens[layer]);
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
        if (store->blocks.block[seq->block[b]].filler != seq) continue; /* dropped before it came */
        SF_ASSERT(*page < 0);
        *page = lane->page[b];
        sf_page_share(&store->pool, *page);
    }
}

void sf_blocks_leave(struct sf_store *store, struct sf_seq *seq)
{
    for (int32_t b = 0; b < seq->blocks; b++) {
        struct sf_block *block = &store->blocks.block[seq->block[b]];
        if (block->filler == seq) block->filler = NULL;
    }
    seq->blocks = 0;
}
