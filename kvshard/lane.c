/* kvshard/lane.c: extend, drop, compact, arrange.  Whatever an edit does to a lane is made of
 * these; the lane never holds more pages after one than before, and only takes any in exchange for
 * pages that it shares. */
#include "kvshard/lane.h"

#include <math.h>
#include <string.h>

static int32_t pages_of(const struct sf_kv_lane *lane, int32_t slots)
{
    return (slots + lane->page_slots - 1) / lane->page_slots;
}

/* ---- growing -------------------------------------------------------------------------------- */
int32_t sf_lane_pages_needed(const struct sf_kv_lane *lane, int32_t rows)
{
    return pages_of(lane, lane->slots + rows) - lane->pages;
}

sf_status sf_lane_extend(const struct sf_lane_ctx *ctx, struct sf_kv_lane *lane, int32_t pos_first,
                         int32_t rows)
{
    struct sf_page_pool *pool = ctx->pool;
    if (rows > 0 && lane->slots % lane->page_slots != 0)
        SF_ASSERT(pool->holders[lane->page[lane->slots / lane->page_slots]] == 1);
    for (int32_t more = sf_lane_pages_needed(lane, rows); more > 0; more--) {
        SF_ASSERT(lane->pages < lane->pages_max);
        SF_TRY(sf_page_take(pool, &ctx->layout, &lane->page[lane->pages]));
        lane->pages++;
    }
    if (lane->mirrored) {
        for (int32_t i = 0; i < rows; i++) {
            size_t at = sf_lane_mirror(pool, lane, lane->slots + i);
            SF_ASSERT(pool->pos[at] == -1);
            sf_mirror_begin(pool, at, pos_first + i);
            pool->live[lane->page[(lane->slots + i) / lane->page_slots]]++;
        }
    }
    if (lane->order && rows > 0) memset(lane->order + sf_lane_total(lane), 0, (size_t)rows);
    lane->slots += rows;
    lane->live += rows;
    return SF_OK;
}

void sf_lane_live(const struct sf_page_pool *pool, const struct sf_kv_lane *lane, int32_t *slot_out)
{
    int32_t n = 0;
    for (int32_t slot = 0; slot < lane->slots; slot++)
        if (!lane->mirrored || pool->pos[sf_lane_mirror(pool, lane, slot)] >= 0)
            slot_out[n++] = slot;
    SF_ASSERT(n == lane->live);
}

void sf_lane_free(struct sf_page_pool *pool, struct sf_kv_lane *lane)
{
    for (int32_t i = 0; i < lane->pages; i++) sf_page_give(pool, lane->page[i]);
    lane->pages = lane->slots = lane->live = lane->scanned = lane->hidden = 0;
    lane->picks = lane->picked = 0;
    for (int32_t t = 1; t < lane->tiers; t++)
        if (!lane->more[t - 1]->shared) sf_lane_free(pool, lane->more[t - 1]);
}

/* ---- pages of several holders --------------------------------------------------------------- */
/* The place of a page that the lane has given away in the middle of an edit. */
enum { PAGE_GONE = -1 };

static int is_shared(const struct sf_page_pool *pool, const struct sf_kv_lane *lane, int32_t index)
{
    return pool->holders[lane->page[index]] > 1;
}

/* Bytes and mirror of a page; `slot` counts 0, 1, 2 ... page_slots - 1. */
static void copy_page(const struct sf_lane_ctx *ctx, int32_t old, int32_t fresh,
                      const int32_t *slot)
{
    struct sf_page_pool *pool = ctx->pool;
    size_t slots = (size_t)pool->page_slots;
    struct sf_slot_list from = { .pages = &old, .slot = slot, .n = ctx->layout.page_slots };
    struct sf_slot_list to = { .pages = &fresh, .slot = slot, .n = ctx->layout.page_slots };
    pool->device->k->kv_move(pool->device, &ctx->layout, pool->base, pool->page_bytes, &from, &to);
    sf_mirror_move(pool, (size_t)fresh * slots, (size_t)old * slots, slots);
    pool->live[fresh] = pool->live[old];
}

/* The lane gets its own copies of n of its pages that others hold too; all, or none. */
static sf_status unshare(const struct sf_lane_ctx *ctx, struct sf_kv_lane *lane,
                         const int32_t *index, int32_t n)
{
    struct sf_page_pool *pool = ctx->pool;
    int32_t *slot;
    if (n == 0) return SF_OK;
    if (n > sf_pages_free(pool))
        return SF_FAIL(SF_NO_PAGES, "an edit needs %d copies of shared pages, %d of %d are free", n,
                       sf_pages_free(pool), pool->pages);
    SF_TRY(sf_scratch_items(ctx->mem, (size_t)pool->page_slots, sizeof *slot, &slot));
    for (int32_t i = 0; i < ctx->layout.page_slots; i++) slot[i] = i;
    for (int32_t i = 0; i < n; i++) {
        int32_t old = lane->page[index[i]], fresh;
        SF_ASSERT(is_shared(pool, lane, index[i]));
        SF_TRY(sf_page_take(pool, &ctx->layout, &fresh));
        copy_page(ctx, old, fresh, slot);
        lane->page[index[i]] = fresh;
        sf_page_give(pool, old);
    }
    return SF_OK;
}

/* Nobody else holds the first `pages` pages any more. */
static sf_status unshare_first(const struct sf_lane_ctx *ctx, struct sf_kv_lane *lane,
                               int32_t pages)
{
    int32_t *index, n = 0;
    SF_ASSERT(pages <= lane->pages);
    SF_TRY(sf_scratch_items(ctx->mem, (size_t)pages + 1, sizeof *index, &index));
    for (int32_t p = 0; p < pages; p++)
        if (is_shared(ctx->pool, lane, p)) index[n++] = p;
    return unshare(ctx, lane, index, n);
}

sf_status sf_lane_own(const struct sf_lane_ctx *ctx, struct sf_kv_lane *lane, const int32_t *slot,
                      int32_t n)
{
    int32_t *index, pages = 0, last = -1;
    SF_TRY(sf_scratch_items(ctx->mem, (size_t)n + 1, sizeof *index, &index));
    for (int32_t i = 0; i < n; i++) {
        int32_t page = slot[i] / lane->page_slots;
        SF_ASSERT(slot[i] >= 0 && slot[i] < lane->slots && page >= last);
        if (page > last && is_shared(ctx->pool, lane, page)) index[pages++] = page;
        last = page;
    }
    return unshare(ctx, lane, index, pages);
}

/* Before n slots are marked as holes: a shared page that keeps some of its slots is copied, one
 * that loses them all is given back unmarked (PAGE_GONE in its place).  Leaves the slots that are
 * still to be marked, and counts the pages that went; on failure the lane is as before. */
static sf_status part_with(const struct sf_lane_ctx *ctx, struct sf_kv_lane *lane, int32_t *slot,
                           int32_t *n, int32_t *gone_out)
{
    struct sf_page_pool *pool = ctx->pool;
    int32_t *lost, *copy, copies = 0, left = 0, shared = 0;
    *gone_out = 0;
    for (int32_t i = 0; i < *n && !shared; i++)
        shared = is_shared(pool, lane, slot[i] / lane->page_slots);
    if (!shared) return SF_OK;
    SF_TRY(sf_scratch_items(ctx->mem, (size_t)lane->pages, sizeof *lost, &lost));
    SF_TRY(sf_scratch_items(ctx->mem, (size_t)lane->pages, sizeof *copy, &copy));
    memset(lost, 0, (size_t)lane->pages * sizeof *lost);
    for (int32_t i = 0; i < *n; i++) lost[slot[i] / lane->page_slots]++;
    for (int32_t p = 0; p < lane->pages; p++)
        if (lost[p] > 0 && is_shared(pool, lane, p) && lost[p] < pool->live[lane->page[p]])
            copy[copies++] = p;
    SF_TRY(unshare(ctx, lane, copy, copies));
    for (int32_t p = 0; p < lane->pages; p++) {
        if (lost[p] == 0 || !is_shared(pool, lane, p)) continue;
        sf_page_give(pool, lane->page[p]);
        lane->page[p] = PAGE_GONE;
        ++*gone_out;
    }
    for (int32_t i = 0; i < *n; i++)
        if (lane->page[slot[i] / lane->page_slots] != PAGE_GONE) slot[left++] = slot[i];
    *n = left;
    return SF_OK;
}

/* ---- dropping ------------------------------------------------------------------------------- */
/* Gives back pages without live slots, and holes at the lane's end. */
static void release_dead_pages(struct sf_page_pool *pool, struct sf_kv_lane *lane)
{
    int32_t page_slots = lane->page_slots, kept = 0, slots = 0;
    for (int32_t i = 0; i < lane->pages; i++) {
        int32_t written = lane->slots - i * page_slots;
        if (written > page_slots) written = page_slots;
        if (lane->page[i] == PAGE_GONE) continue;
        if (pool->live[lane->page[i]] == 0) {
            sf_page_give(pool, lane->page[i]);
        } else {
            lane->page[kept++] = lane->page[i];
            slots += written;
        }
    }
    if (kept < lane->pages) lane->scanned = 0;
    lane->pages = kept;
    lane->slots = slots;
    /* The last page has a live slot, so this ends inside of it. */
    while (lane->slots > 0 && pool->pos[sf_lane_mirror(pool, lane, lane->slots - 1)] < 0)
        lane->slots--;
    if (lane->scanned > lane->slots) lane->scanned = lane->slots;
}

sf_status sf_lane_compact(const struct sf_lane_ctx *ctx, struct sf_kv_lane *lane)
{
    int64_t bound = lane->number == 0 ? sf_lane_slots_bound(lane->live, lane->page_slots)
                                      : sf_tier_slots_bound(lane->live, lane->page_slots);
    return lane->slots <= bound ? SF_OK : sf_lane_pack(ctx, lane);
}

sf_status sf_lane_pack(const struct sf_lane_ctx *ctx, struct sf_kv_lane *lane)
{
    int32_t *source;
    if (lane->slots == lane->live) return SF_OK;
    SF_TRY(sf_scratch_items(ctx->mem, (size_t)lane->live, sizeof *source, &source));
    sf_lane_live(ctx->pool, lane, source);
    SF_TRY(unshare_first(ctx, lane, pages_of(lane, lane->live)));
    /* Slots only move down, so the mirror can follow in the same order. */
    int32_t moved = 0;
    while (moved < lane->live && source[moved] == moved) moved++;
    struct sf_page_pool *pool = ctx->pool;
    for (int32_t i = moved; i < lane->live; i++)
        sf_mirror_move(pool, sf_lane_mirror(pool, lane, i), sf_lane_mirror(pool, lane, source[i]),
                       1);
    return sf_lane_arrange(ctx, lane, source, lane->live);
}

sf_status sf_lane_mark(const struct sf_lane_ctx *ctx, struct sf_kv_lane *lane, int32_t *slot,
                       int32_t n)
{
    struct sf_page_pool *pool = ctx->pool;
    SF_ASSERT(lane->mirrored && n >= 0 && n <= lane->live);
    int32_t dead, live = lane->live - n;
    for (int32_t i = 0; i < n; i++)
        SF_ASSERT(slot[i] >= 0 && slot[i] < lane->slots && (i == 0 || slot[i] > slot[i - 1]));
    SF_TRY(part_with(ctx, lane, slot, &n, &dead));
    lane->live = live;
    for (int32_t i = 0; i < n; i++) {
        size_t at = sf_lane_mirror(pool, lane, slot[i]);
        SF_ASSERT(pool->pos[at] >= 0);
        pool->pos[at] = -1;
        pool->bias[at] = -INFINITY;
        dead += --pool->live[lane->page[slot[i] / lane->page_slots]] == 0;
    }
    /* What lies on a page that goes back as a whole need not be marked there. */
    int32_t marks = 0;
    for (int32_t i = 0; i < n; i++)
        if (pool->live[lane->page[slot[i] / lane->page_slots]] > 0) slot[marks++] = slot[i];
    if (marks > 0) {
        struct sf_slot_list list = { .pages = lane->page, .slot = slot, .n = marks };
        pool->device->k->kv_drop(pool->device, &ctx->layout, pool->base, pool->page_bytes, &list);
    }
    if (dead > 0 || lane->live == 0 ||
        pool->pos[sf_lane_mirror(pool, lane, lane->slots - 1)] < 0)
        release_dead_pages(pool, lane);
    return SF_OK;
}

sf_status sf_lane_drop(const struct sf_lane_ctx *ctx, struct sf_kv_lane *lane, int32_t *slot,
                       int32_t n)
{
    SF_TRY(sf_lane_mark(ctx, lane, slot, n));
    return sf_lane_compact(ctx, lane);
}

/* ---- arranging ------------------------------------------------------------------------------ */
struct moves { int32_t *from, *to, n; };

static void move_now(const struct sf_lane_ctx *ctx, const int32_t *from_page, const int32_t *from,
                     const int32_t *to_page, const int32_t *to, int32_t n)
{
    struct sf_page_pool *pool = ctx->pool;
    struct sf_slot_list source = { .pages = from_page, .slot = from, .n = n };
    struct sf_slot_list target = { .pages = to_page, .slot = to, .n = n };
    if (n > 0)
        pool->device->k->kv_move(pool->device, &ctx->layout, pool->base, pool->page_bytes, &source,
                                 &target);
}

/* Emits every move whose target nobody still has to read, beginning with `ready` and going on with
 * the targets that become free by it. */
static void emit_ready(const int32_t *source, int32_t *readers, uint8_t *pending, int32_t n,
                       int32_t ready, struct moves *moves)
{
    while (ready >= 0 && ready < n && pending[ready] && readers[ready] == 0) {
        moves->from[moves->n] = source[ready];
        moves->to[moves->n++] = ready;
        pending[ready] = 0;
        readers[source[ready]]--;
        ready = source[ready];
    }
}

/* A parallel assignment slot[i] = slot[source[i]] in place.  A target is written once all moves
 * that read it are done; what is left then are cycles, which go through the spare page in turn. */
static void arrange_bytes(const struct sf_lane_ctx *ctx, struct sf_kv_lane *lane,
                          const int32_t *source, int32_t n, int32_t *readers, uint8_t *pending,
                          struct moves *moves)
{
    memset(readers, 0, (size_t)lane->slots * sizeof *readers);
    for (int32_t i = 0; i < n; i++) {
        pending[i] = source[i] >= 0 && source[i] != i;
        if (pending[i]) readers[source[i]]++;
    }
    moves->n = 0;
    for (int32_t i = 0; i < n; i++) emit_ready(source, readers, pending, n, i, moves);
    move_now(ctx, lane->page, moves->from, lane->page, moves->to, moves->n);
    int32_t spare_page = sf_page_spare(ctx->pool), spare_slot = 0;
    for (int32_t i = 0; i < n; i++) {
        if (!pending[i]) continue;
        move_now(ctx, lane->page, &i, &spare_page, &spare_slot, 1);
        readers[i]--;                   /* the one reader of slot i will read the spare */
        moves->n = 0;
        emit_ready(source, readers, pending, n, i, moves);
        SF_ASSERT(moves->n >= 2 && moves->from[moves->n - 1] == i);
        move_now(ctx, lane->page, moves->from, lane->page, moves->to, moves->n - 1);
        move_now(ctx, &spare_page, &spare_slot, lane->page, &moves->to[moves->n - 1], 1);
    }
}

/* The lane has n slots from now on; what was written behind them on its last page becomes holes.
 * `hole` has room for a page of slots. */
static void cut_to(const struct sf_lane_ctx *ctx, struct sf_kv_lane *lane, int32_t n, int32_t *hole)
{
    struct sf_page_pool *pool = ctx->pool;
    int32_t pages = pages_of(lane, n), written = lane->slots;
    if (written > pages * lane->page_slots) written = pages * lane->page_slots;
    if (written > n) {
        for (int32_t i = n; i < written; i++) {
            size_t at = sf_lane_mirror(pool, lane, i);
            pool->pos[at] = -1;
            pool->bias[at] = -INFINITY;
            hole[i - n] = i;
        }
        struct sf_slot_list list = { .pages = lane->page, .slot = hole, .n = written - n };
        pool->device->k->kv_drop(pool->device, &ctx->layout, pool->base, pool->page_bytes, &list);
    }
    for (int32_t i = pages; i < lane->pages; i++) sf_page_give(pool, lane->page[i]);
    lane->pages = pages;
    for (int32_t i = 0; i < pages; i++)
        pool->live[lane->page[i]] = i + 1 < pages ? lane->page_slots
                                                  : n - (pages - 1) * lane->page_slots;
    lane->slots = lane->live = n;
    lane->scanned = 0;
}

sf_status sf_lane_arrange(const struct sf_lane_ctx *ctx, struct sf_kv_lane *lane,
                          const int32_t *source, int32_t n)
{
    SF_ASSERT(lane->mirrored && n >= 0 && n <= lane->live);
    int32_t *readers, *hole;
    uint8_t *pending;
    struct moves moves;
    SF_TRY(sf_scratch_items(ctx->mem, (size_t)lane->slots + 1, sizeof *readers, &readers));
    SF_TRY(sf_scratch_items(ctx->mem, (size_t)n + 1, sizeof *pending, &pending));
    SF_TRY(sf_scratch_items(ctx->mem, (size_t)n + 1, sizeof *moves.from, &moves.from));
    SF_TRY(sf_scratch_items(ctx->mem, (size_t)n + 1, sizeof *moves.to, &moves.to));
    SF_TRY(sf_scratch_items(ctx->mem, (size_t)lane->page_slots, sizeof *hole, &hole));
    for (int32_t i = 0; i < n; i++) SF_ASSERT(source[i] >= -1 && source[i] < lane->slots);
    SF_TRY(unshare_first(ctx, lane, pages_of(lane, n)));
    arrange_bytes(ctx, lane, source, n, readers, pending, &moves);
    cut_to(ctx, lane, n, hole);
    return SF_OK;
}
