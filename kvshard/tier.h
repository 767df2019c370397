/* kvshard/tier.h: lanes whose slots lie in several tiers, each a list of pages (lane.h) in the
 * layout of its codec.  Internal to the store. */
#ifndef SHEAF_KVSHARD_TIER_H
#define SHEAF_KVSHARD_TIER_H
#include "kvshard/codec.h"
#include "kvshard/lane.h"
#include "kvshard/stack.h"
SF_C_BEGIN

struct sf_store;
struct sf_seq;

const struct sf_plan *sf_store_plan(const struct sf_store *, int32_t layer, int32_t lane);
const struct sf_layout *sf_store_layout(const struct sf_store *, int32_t layer, int32_t lane,
                                        int32_t tier);
struct sf_lane_ctx sf_tier_ctx(struct sf_store *, int32_t layer, int32_t lane, int32_t tier);
/* Most slots of a page in any tier of the store. */
int32_t sf_store_page_places(const struct sf_store *, const struct sf_stack *);
/* Pages that a tier may ever take: of tier 0 alone, where nothing comes back to it, those of its
 * tokens. */
int32_t sf_tier_pages_most(int32_t tokens_max, int32_t tier, int32_t tiers, int32_t page_slots);
/* Page tables, tiers and orders of a new sequence. */
sf_status sf_seq_lanes_alloc(const struct sf_store *, struct sf_seq *);
/* The parts of the lane beside tier 0 as attention takes them; returns how many have slots. */
int32_t sf_lane_parts(const struct sf_kv_lane *, struct sf_lane_part *part_out);

/* Some slots of one lane, wherever their tiers have them. */
struct sf_slots {
    int32_t layer, lane_index;
    struct sf_kv_lane *lane;
    const int32_t *slot;                /* [..] physical, in its tier */
    const uint8_t *tier;
};
/* The list with the pages of slot i, and the slot's number there. */
const struct sf_kv_lane *sf_slots_at(const struct sf_slots *, int32_t i, int32_t *slot_out);
static inline size_t sf_slots_mirror(const struct sf_page_pool *pool, const struct sf_slots *slots,
                                     int32_t i)
{
    int32_t slot;
    const struct sf_kv_lane *list = sf_slots_at(slots, i, &slot);
    return sf_lane_mirror(pool, list, slot);
}
/* All live slots of a lane in its order; room for sf_lane_total each. */
void sf_lane_live_all(const struct sf_page_pool *, const struct sf_kv_lane *, int32_t *slot_out,
                      uint8_t *tier_out);
/* Slots ids[0 .. n - 1] decoded: k [n][k_dim], v [n][v_dim] on the device; NULL where not
 * wanted. */
void sf_slots_decode(const struct sf_store *, const struct sf_slots *, const int32_t *ids,
                     int32_t n, float *k, float *v);
/* Slots ids[0 .. n - 1] written; their mirror is the caller's. */
void sf_slots_encode(const struct sf_store *, const struct sf_slots *, const int32_t *ids,
                     int32_t n, const float *k, const float *v, const int32_t *pos,
                     const float *bias);
/* Drops slots of all tiers: keep[i] = 0. */
sf_status sf_tiers_keep(struct sf_store *, const struct sf_slots *, const uint8_t *keep);
/* As sf_lane_place, over all tiers: new slot i, in tier[i], is source[i] (an index of the old
 * slots, of the same tier) or -1.  slot_out in their tiers; moved_out [SF_TIERS]. */
sf_status sf_tiers_place(struct sf_store *, const struct sf_slots *old, const int32_t *source,
                         const uint8_t *tier, int32_t n, int32_t *slot_out, int *moved_out);
sf_status sf_tiers_compact(struct sf_store *, const struct sf_slots *, const int *moved);

SF_C_END
#endif
