/* coordinator/prefix.c: the tree of prompt blocks (prefix.h).
 *
 *   block [blocks_max]    nodes; free ones are chained through `next`
 *   token                 [blocks_max][block_tokens] of each node
 *   bucket                heads of the chains of equal hash, through `next`
 *   unused                filled leaves that nobody holds, longest unused first: a ring through
 *                         `older` and `newer`, closed by one entry more at the end of the array;
 *                         in the order of `released`
 */
#include "coordinator/prefix.h"

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

struct block {
    uint64_t hash;                      /* of its tokens and its parent's hash */
    int32_t parent, next;               /* next: in its bucket, or in the list of free blocks */
    int32_t older, newer;               /* in the ring of unused blocks; -1: not in it */
    int32_t children, holders;
    uint8_t filled;
    uint64_t released;                  /* when its last holder went: the count of such events */
};
struct sf_prefix {
    int32_t blocks_max, block_tokens, buckets;
    int32_t blocks, unheld, free_first;
    uint64_t releases;
    struct block *block;                /* [blocks_max + 1] the last one closes the ring */
    int32_t *token, *bucket;
};

sf_status sf_prefix_create(int32_t blocks_max, int32_t block_tokens, struct sf_prefix **out)
{
    SF_ASSERT(blocks_max >= 1 && block_tokens >= 1);
    size_t blocks = (size_t)blocks_max, buckets = 16;
    while (buckets < blocks) buckets *= 2;
    struct sf_prefix *p = calloc(1, sizeof *p);
    if (p != NULL) {
        p->block = calloc(blocks + 1, sizeof *p->block);
        p->token = calloc(blocks, (size_t)block_tokens * sizeof *p->token);
        p->bucket = malloc(buckets * sizeof *p->bucket);
    }
    if (p == NULL || p->block == NULL || p->token == NULL || p->bucket == NULL) {
        sf_prefix_destroy(p);
        return SF_FAIL(SF_NO_MEMORY, "no memory for a prefix cache of %d blocks", blocks_max);
    }
    p->blocks_max = blocks_max;
    p->block_tokens = block_tokens;
    p->buckets = (int32_t)buckets;
    for (size_t b = 0; b < buckets; b++) p->bucket[b] = -1;
    for (int32_t b = 0; b < blocks_max; b++) p->block[b].next = b + 1 < blocks_max ? b + 1 : -1;
    p->block[blocks_max].older = p->block[blocks_max].newer = blocks_max;
    *out = p;
    return SF_OK;
}

void sf_prefix_destroy(struct sf_prefix *p)
{
    if (p == NULL) return;
    free(p->block);
    free(p->token);
    free(p->bucket);
    free(p);
}

int32_t sf_prefix_blocks(const struct sf_prefix *p) { return p->blocks; }
int32_t sf_prefix_unheld(const struct sf_prefix *p) { return p->unheld; }

/* ---- looking up ------------------------------------------------------------------------------ */
static uint64_t hash_of(const struct sf_prefix *p, int32_t parent, const int32_t *token)
{
    uint64_t hash = sf_hash64(token, (size_t)p->block_tokens * sizeof *token);
    uint64_t before = parent >= 0 ? p->block[parent].hash : 0;
    return (hash ^ before * 0x9e3779b97f4a7c15u) * 0xff51afd7ed558ccdu;
}

static int32_t *bucket_of(const struct sf_prefix *p, uint64_t hash)
{
    return &p->bucket[(hash >> 32) & (uint64_t)(p->buckets - 1)];
}

/* The child of `parent` with these tokens; -1 if there is none. */
static int32_t child_of(const struct sf_prefix *p, int32_t parent, const int32_t *token)
{
    uint64_t hash = hash_of(p, parent, token);
    size_t tokens = (size_t)p->block_tokens;
    for (int32_t b = *bucket_of(p, hash); b >= 0; b = p->block[b].next)
        if (p->block[b].hash == hash && p->block[b].parent == parent &&
            memcmp(p->token + (size_t)b * tokens, token, tokens * sizeof *token) == 0)
            return b;
    return -1;
}

struct sf_prefix_match sf_prefix_find(const struct sf_prefix *p, const int32_t *token,
                                      int32_t tokens)
{
    struct sf_prefix_match match = {0};
    int32_t parent = -1, size = p->block_tokens;
    for (int32_t first = 0; first + size <= tokens; first += size) {
        int32_t b = child_of(p, parent, token + first);
        if (b < 0) break;
        match.pending = !p->block[b].filled;
        if (match.pending) break;
        match.blocks++;
        match.held += p->block[b].holders > 0;
        parent = b;
    }
    return match;
}

/* ---- held and unused ------------------------------------------------------------------------- */
static void ring_leave(struct sf_prefix *p, int32_t b)
{
    struct block *block = &p->block[b];
    if (block->older < 0) return;
    p->block[block->older].newer = block->newer;
    p->block[block->newer].older = block->older;
    block->older = block->newer = -1;
}

/* Joins the unused ones behind `older`, if it may be evicted. */
static void ring_join(struct sf_prefix *p, int32_t b, int32_t older)
{
    struct block *block = &p->block[b];
    if (block->holders > 0 || block->children > 0 || !block->filled) return;
    SF_ASSERT(block->older < 0);
    block->older = older;
    block->newer = p->block[older].newer;
    p->block[block->newer].older = b;
    p->block[older].newer = b;
}

/* The last of the unused ones that were released before a block.  Looked for from the oldest on:
 * the block's last child was just evicted, and mostly both were released together. */
static int32_t released_before(const struct sf_prefix *p, int32_t b)
{
    int32_t end = p->blocks_max, older = end, next = p->block[end].newer;
    for (; next != end && p->block[next].released < p->block[b].released;
         next = p->block[next].newer)
        older = next;
    return older;
}

static void hold(struct sf_prefix *p, int32_t b)
{
    ring_leave(p, b);
    p->unheld -= p->block[b].holders++ == 0;
}

int32_t sf_prefix_hold(struct sf_prefix *p, const int32_t *token, int32_t tokens,
                       int32_t *block_out)
{
    int32_t blocks = sf_prefix_find(p, token, tokens).blocks, parent = -1;
    for (int32_t i = 0; i < blocks; i++) {
        parent = child_of(p, parent, token + i * p->block_tokens);
        hold(p, parent);
        block_out[i] = parent;
    }
    return blocks;
}

int32_t sf_prefix_add(struct sf_prefix *p, int32_t parent, const int32_t *token)
{
    if (p->blocks == p->blocks_max || child_of(p, parent, token) >= 0) return -1;
    int32_t b = p->free_first;
    size_t tokens = (size_t)p->block_tokens;
    uint64_t hash = hash_of(p, parent, token);
    p->free_first = p->block[b].next;
    p->blocks++;
    p->block[b] = (struct block){.hash = hash, .parent = parent, .next = *bucket_of(p, hash),
                                 .older = -1, .newer = -1, .holders = 1};
    *bucket_of(p, hash) = b;
    memcpy(p->token + (size_t)b * tokens, token, tokens * sizeof *token);
    if (parent >= 0) {
        SF_ASSERT(p->block[parent].holders > 0);
        p->block[parent].children++;
    }
    return b;
}

void sf_prefix_fill(struct sf_prefix *p, int32_t b)
{
    SF_ASSERT(p->block[b].holders > 0 && !p->block[b].filled);
    p->block[b].filled = 1;
}

static void forget(struct sf_prefix *p, int32_t b)
{
    struct block *block = &p->block[b];
    SF_ASSERT(block->holders == 0 && block->children == 0 && p->blocks > 0);
    ring_leave(p, b);
    int32_t *link = bucket_of(p, block->hash), parent = block->parent;
    while (*link != b) link = &p->block[*link].next;
    *link = block->next;
    block->next = p->free_first;
    p->free_first = b;
    p->blocks--;
    p->unheld--;
    if (parent < 0) return;
    if (--p->block[parent].children == 0 && p->block[parent].holders == 0)
        ring_join(p, parent, released_before(p, parent));
}

int sf_prefix_release(struct sf_prefix *p, int32_t b)
{
    struct block *block = &p->block[b];
    SF_ASSERT(block->holders > 0);
    if (--block->holders > 0) return 0;
    p->unheld++;
    block->released = ++p->releases;
    if (block->filled) {
        ring_join(p, b, p->block[p->blocks_max].older);
        return 0;
    }
    forget(p, b);
    return 1;
}

int32_t sf_prefix_evict(struct sf_prefix *p)
{
    int32_t oldest = p->block[p->blocks_max].newer;
    if (oldest == p->blocks_max) return -1;
    forget(p, oldest);
    return oldest;
}
