/* kvshard/lane.h: where the slots of one lane lie, and the moves that edits are made of.
 *
 *   page table   [ 7 ][ 3 ][ 9 ]             every page but the last is written to its end
 *   physical       0..15 16..31 32..slots-1  holes among them
 *   live           the physical slots that are no holes, in order: what everybody else sees
 *
 * A page whose slots are all holes is given back at once, also from the middle: the slots behind it
 * then count down by a page, and no byte moves.  When more holes are left than
 * live / SF_HOLES_SHARE + SF_HOLES_PAGES pages of slots, the lane is compacted; so what a lane
 * holds is bounded (sf_lane_slots_bound), and a window that slides by one token never moves a
 * byte.
 *
 * A page may have other holders (block.h); then all its slots are live.  Before a lane marks or
 * moves slots of such a page, it takes its own copy, or, if no slot of it stays, lets go of it.
 * Only for copies may an edit take pages, and who shares has been promised them (account.h:
 * pages_peak counts every page of a sequence as its own); where there are none, SF_NO_PAGES leaves
 * the lane as it was, or dropped from and not compacted.
 *
 * A lane whose method has tiers beside the raw one has such a list of pages for each of them.  In a
 * tier the lane's order is the physical one; `order` says how the tiers interleave:
 *
 *   tier 0   a b . c d e       order   0 0 1 0 0 0      the lane   a b S c d e
 *   tier 1   S
 *
 * The list of a tier may be one that several lanes share (group.h); then it has no pages, its slots
 * lie in segments, and its owner frees those.  Everything below speaks of one tier's list.  Tiers
 * above 0 are packed as soon as that saves a page and live / SF_HOLES_SHARE slots, since a few
 * slots are all that many of them will ever have. */
#ifndef SHEAF_KVSHARD_LANE_H
#define SHEAF_KVSHARD_LANE_H
#include <stdint.h>
#include "kvshard/page.h"
#include "kvshard/scratch.h"
SF_C_BEGIN

enum { SF_HOLES_SHARE = 16, SF_HOLES_PAGES = 2 };
/* In a lane's order: the tier, and whether the slot, raw, is also the next row of the shared tier,
 * which this lane then does not see. */
enum { SF_ORDER_TIER = 0x7f, SF_ORDER_HIDES = 0x80 };

struct sf_kv_lane {
    int32_t *page;                      /* [pages_max] */
    int32_t pages, pages_max;
    int32_t page_slots;
    int32_t slots, live;                /* physical slots written, holes included; live ones */
    int32_t scanned;                    /* slots before this are holes or sinks */
    int32_t slots_trigger, slots_keep;  /* the method's budget of all tiers; 0 = none */
    uint8_t mirrored;                   /* a method may edit it, so pool->pos is kept */
    uint8_t number, tiers;              /* which tier's list this is; tier 0: of how many */
    uint8_t shared;                     /* of a layer group: its lanes all refer to it (group.h) */
    struct sf_segment *segment;         /* of a shared one: where its slots lie, without holes, the
                                           segments one behind the other; NULL, 0 */
    int32_t segments;
    int32_t member;                     /* of tier 0: number of the lane in its group, if any */
    const struct sf_layout *layout;     /* of its pages */
    struct sf_kv_lane **more;           /* [tiers - 1] of tier 0: tiers 1 and on; NULL */
    uint8_t *order;                     /* of tier 0, if it has more: tier of each live slot */
    int32_t hidden;                     /* of tier 0: rows of the shared tier that it skips */
    int32_t *pick, picks;               /* of tier 0, device: of the shared tier attention reads */
    uint8_t picked;                     /* these alone, once there is a pick (select.c) */
};
static inline struct sf_kv_lane *sf_lane_tier(struct sf_kv_lane *lane, int32_t tier)
{
    return tier == 0 ? lane : lane->more[tier - 1];
}
static inline const struct sf_kv_lane *sf_lane_tier_of(const struct sf_kv_lane *lane, int32_t tier)
{
    return tier == 0 ? lane : lane->more[tier - 1];
}
/* Live slots of all tiers: what everybody else calls the lane's slots. */
static inline int32_t sf_lane_total(const struct sf_kv_lane *lane)
{
    int32_t total = lane->live - lane->hidden;
    for (int32_t t = 1; t < lane->tiers; t++) total += lane->more[t - 1]->live;
    return total;
}
/* What the moves work with. */
struct sf_lane_ctx {
    struct sf_page_pool *pool;
    struct sf_layout layout;
    struct sf_scratch_mem *mem;         /* host */
};

/* Most physical slots of a lane that never has more than `live_max` live ones. */
static inline int64_t sf_lane_slots_bound(int64_t live_max, int32_t page_slots)
{
    return live_max + live_max / SF_HOLES_SHARE + (int64_t)SF_HOLES_PAGES * page_slots;
}
/* The same of a tier above 0. */
static inline int64_t sf_tier_slots_bound(int64_t live_max, int32_t page_slots)
{
    return (live_max + live_max / SF_HOLES_SHARE + page_slots - 1) / page_slots * page_slots;
}
/* Place of a physical slot in the pool's mirror. */
static inline size_t sf_lane_mirror(const struct sf_page_pool *pool, const struct sf_kv_lane *lane,
                                    int32_t slot)
{
    return (size_t)lane->page[slot / lane->page_slots] * (size_t)pool->page_slots +
           (size_t)(slot % lane->page_slots);
}
/* Pages that `rows` more slots need beyond those held. */
int32_t   sf_lane_pages_needed(const struct sf_kv_lane *, int32_t rows);
/* Takes them and counts positions pos_first .. pos_first + rows - 1 as the newest slots, bias 0. */
sf_status sf_lane_extend(const struct sf_lane_ctx *, struct sf_kv_lane *, int32_t pos_first,
                         int32_t rows);
/* Physical slots of the live ones, in order; room for lane->live. */
void      sf_lane_live(const struct sf_page_pool *, const struct sf_kv_lane *, int32_t *slot_out);
/* Nobody else holds the pages of n slots (physical, ascending) any more, so they can be written. */
sf_status sf_lane_own(const struct sf_lane_ctx *, struct sf_kv_lane *, const int32_t *slot,
                      int32_t n);
/* Makes holes of n live slots (physical, ascending; the array is used up) and gives back dead
 * pages; then sf_lane_compact, where that is due. */
sf_status sf_lane_mark(const struct sf_lane_ctx *, struct sf_kv_lane *, int32_t *slot, int32_t n);
sf_status sf_lane_compact(const struct sf_lane_ctx *, struct sf_kv_lane *);
/* Due or not: no holes are left. */
sf_status sf_lane_pack(const struct sf_lane_ctx *, struct sf_kv_lane *);
/* Both. */
sf_status sf_lane_drop(const struct sf_lane_ctx *, struct sf_kv_lane *, int32_t *slot, int32_t n);
/* New slot i takes the bytes of physical slot source[i], or nothing where that is -1 (the caller
 * writes it); i < n <= lane->live, any order, a source may be copied twice.  All n slots are live
 * afterwards, there are no holes, and the mirror is the caller's to fill. */
sf_status sf_lane_arrange(const struct sf_lane_ctx *, struct sf_kv_lane *, const int32_t *source,
                          int32_t n);
/* As sf_lane_arrange, but without moving bytes where the order of the copies allows it (place.c);
 * `live`: the physical slots of the live ones.  slot_out[i]: where new slot i is now; moved_out: 0
 * where the mirror of the copies is as it was.  sf_lane_compact is due when all is written. */
sf_status sf_lane_place(const struct sf_lane_ctx *, struct sf_kv_lane *, const int32_t *live,
                        const int32_t *source, int32_t n, int32_t *slot_out, int *moved_out);
void      sf_lane_free(struct sf_page_pool *, struct sf_kv_lane *);

SF_C_END
#endif
