/* kvshard/tier.c: lanes whose slots lie in several tiers.
 *
 * Each tier of a lane is a list of pages of its own (lane.h), in the layout of its codec; the
 * lane's order says how they interleave.  Tier 0 is where rows are appended, so the slots of the
 * others are older than the rows of any call, and attention takes them as parts of the lane behind
 * its own slots.  Pages of tiers above 0 are never shared. */
#include <string.h>

#include "base/memory.h"
#include "kvshard/store_impl.h"

enum { AT_ONCE = 256 };                 /* slots coded by one call */

/* ---- layouts -------------------------------------------------------------------------------- */
const struct sf_plan *sf_store_plan(const struct sf_store *store, int32_t layer, int32_t lane)
{
    int32_t method = store->layer[layer].method[lane];
    return method < 0 ? NULL : &store->method[method].entry->plan;
}

const struct sf_layout *sf_store_layout(const struct sf_store *store, int32_t layer, int32_t lane,
                                        int32_t tier)
{
    const struct sf_layer_state *state = &store->layer[layer];
    if (tier == 0) return &state->layout;
    SF_ASSERT(state->method[lane] >= 0);
    return &state->tier_layout[state->method[lane] * SF_TIERS + tier];
}

struct sf_lane_ctx sf_tier_ctx(struct sf_store *store, int32_t layer, int32_t lane, int32_t tier)
{
    return (struct sf_lane_ctx){ &store->pool, *sf_store_layout(store, layer, lane, tier),
                                 &store->host };
}

int32_t sf_store_page_places(const struct sf_store *store, const struct sf_stack *stack)
{
    int32_t most = store->page_slots;
    for (int32_t i = 0; i < store->layers; i++)
        for (int32_t m = 0; stack && m < stack->entries; m++)
            for (int32_t t = 1; t < stack->entry[m].plan.tiers; t++) {
                int32_t slots = store->layer[i].tier_layout[m * SF_TIERS + t].page_slots;
                if (slots > most) most = slots;
            }
    return most;
}

/* The part of the lane that lies in a segment of a shared tier. */
static struct sf_lane_part segment_part(const struct sf_kv_lane *lane,
                                        const struct sf_segment *segment)
{
    return (struct sf_lane_part){ segment->basis.layout, segment->basis.page, segment->basis.slots,
                                  &segment->factors[lane->member], NULL, 0 };
}

static struct sf_codec_at codec_at(const struct sf_store *store, const struct sf_slots *slots,
                                   int32_t tier)
{
    return (struct sf_codec_at){ store->device,
                                 sf_store_layout(store, slots->layer, slots->lane_index, tier),
                                 store->pool.base, store->pool.page_bytes };
}

static const struct sf_codec *codec_of(const struct sf_store *store, const struct sf_slots *slots,
                                       int32_t tier)
{
    if (tier == 0) return &sf_codec_raw;
    return sf_codec_of(sf_store_plan(store, slots->layer, slots->lane_index), tier);
}

/* ---- the lanes of a sequence ---------------------------------------------------------------- */
int32_t sf_tier_pages_most(int32_t tokens_max, int32_t tier, int32_t tiers, int32_t page_slots)
{
    int64_t slots = tokens_max;
    if (tier > 0) slots = sf_tier_slots_bound(slots, page_slots) + page_slots;
    else if (tiers > 1) slots = sf_lane_slots_bound(slots, page_slots);
    return (int32_t)((slots + page_slots - 1) / page_slots);
}

struct dealt { size_t tables, more, tiers, orders; };

/* One tier of a lane: a list of its own, or that of its group. */
static void deal_tier(const struct sf_store *store, struct sf_seq *seq, int32_t layer, int32_t l,
                      int32_t t, struct dealt *dealt)
{
    struct sf_kv_lane *lane = sf_store_lane_of(store, seq, layer, l);
    int32_t at = store->layer[layer].lane_first + l, group = store->groups.of_lane[at];
    int shared = t > 0 && group >= 0 && store->groups.group[group].tier == t;
    const struct sf_layout *layout = sf_store_layout(store, layer, l, t);
    int32_t pages = shared ? 0 : sf_tier_pages_most(seq->tokens_max, t, lane->tiers,
                                                      layout->page_slots);
    if (seq->page_tables) {
        struct sf_kv_lane *tier = t ? &seq->more[dealt->more] : lane;
        if (shared) {
            tier = &seq->group[group].tier;
            lane->member = store->groups.number[at];
            if (seq->group[group].pick)
                lane->pick = seq->group[group].pick + (size_t)lane->member *
                    (size_t)sf_picks_most(sf_store_plan(store, layer, l), seq->tokens_max);
        } else {
            tier->page = seq->page_tables + dealt->tables;
            tier->pages_max = pages;
            tier->page_slots = layout->page_slots;
            tier->number = (uint8_t)t;
            tier->layout = layout;
            if (t > 0) tier->tiers = tier->mirrored = 1;
        }
        if (t > 0) lane->more[t - 1] = tier;
    }
    dealt->tables += (size_t)pages;
    dealt->more += t > 0 && !shared;
    dealt->tiers += t > 0;
}

/* Deals out the arrays; with `seq->page_tables` NULL it only counts what they need. */
static void lanes_deal(const struct sf_store *store, struct sf_seq *seq, struct dealt *dealt)
{
    *dealt = (struct dealt){ 0 };
    for (int32_t i = 0; i < store->layers; i++)
        for (int32_t l = 0; l < store->layer[i].spec.lanes; l++) {
            const struct sf_plan *plan = sf_store_plan(store, i, l);
            struct sf_kv_lane *lane = sf_store_lane_of(store, seq, i, l);
            lane->tiers = (uint8_t)(plan && plan->tiers > 1 ? plan->tiers : 1);
            if (lane->tiers > 1 && seq->page_tables) {
                lane->more = seq->tiers + dealt->tiers;
                lane->order = seq->orders + dealt->orders;
            }
            for (int32_t t = 0; t < lane->tiers; t++) deal_tier(store, seq, i, l, t, dealt);
            if (lane->tiers > 1) dealt->orders += (size_t)seq->tokens_max;
        }
}

sf_status sf_seq_lanes_alloc(const struct sf_store *store, struct sf_seq *seq)
{
    struct dealt dealt;
    void *block;
    SF_TRY(sf_alloc((size_t)store->lanes * sizeof *seq->lane, "lanes of a sequence", &block));
    seq->lane = block;
    lanes_deal(store, seq, &dealt);
    SF_TRY(sf_alloc(dealt.more * sizeof *seq->more, "tiers of a sequence", &block));
    seq->more = block;
    SF_TRY(sf_alloc(dealt.tiers * sizeof *seq->tiers, "tiers of a sequence", &block));
    seq->tiers = block;
    SF_TRY(sf_alloc(dealt.orders, "orders of a sequence", &block));
    seq->orders = block;
    SF_TRY(sf_alloc(dealt.tables * sizeof(int32_t), "page tables of a sequence", &block));
    seq->page_tables = block;
    lanes_deal(store, seq, &dealt);
    return SF_OK;
}

int32_t sf_lane_parts(const struct sf_kv_lane *lane, struct sf_lane_part *part_out)
{
    int32_t n = 0;
    for (int32_t t = 1; t < lane->tiers; t++) {
        const struct sf_kv_lane *tier = sf_lane_tier_of(lane, t);
        for (int32_t s = 0; s < tier->segments; s++) {
            part_out[n] = segment_part(lane, &tier->segment[s]);
            if (lane->picked && s == 0) {       /* landmarks are of the first */
                part_out[n].pick = lane->pick;
                part_out[n].picks = lane->picks;
            }
            n++;
        }
        if (tier->live > 0 && !tier->shared)
            part_out[n++] = (struct sf_lane_part){ tier->layout, tier->page, tier->slots, NULL,
                                                   NULL, 0 };
    }
    return n;
}

/* ---- slots ---------------------------------------------------------------------------------- */
static int32_t next_live(const struct sf_page_pool *pool, const struct sf_kv_lane *tier,
                         int32_t *next)
{
    while (!tier->shared && pool->pos[sf_lane_mirror(pool, tier, *next)] < 0) ++*next;
    return (*next)++;
}

void sf_lane_live_all(const struct sf_page_pool *pool, const struct sf_kv_lane *lane,
                      int32_t *slot_out, uint8_t *tier_out)
{
    int32_t total = sf_lane_total(lane), next[SF_TIERS] = { 0 }, shared = 0;
    if (lane->tiers == 1 || total == lane->live) {
        sf_lane_live(pool, lane, slot_out);
        memset(tier_out, 0, (size_t)total);
        return;
    }
    for (int32_t t = 1; t < lane->tiers; t++)
        if (lane->more[t - 1]->shared) shared = t;
    for (int32_t i = 0; i < total; i++) {
        int32_t t = lane->order[i] & SF_ORDER_TIER;
        slot_out[i] = next_live(pool, sf_lane_tier_of(lane, t), &next[t]);
        tier_out[i] = (uint8_t)t;
        if (lane->order[i] & SF_ORDER_HIDES)
            next_live(pool, sf_lane_tier_of(lane, shared), &next[shared]);
    }
}

const struct sf_kv_lane *sf_slots_at(const struct sf_slots *slots, int32_t i, int32_t *slot_out)
{
    const struct sf_kv_lane *tier = sf_lane_tier_of(slots->lane, slots->tier[i]);
    *slot_out = slots->slot[i];
    if (!tier->shared) return tier;
    const struct sf_segment *segment = sf_segment_of(tier, slots->slot[i]);
    *slot_out -= segment->slot_first;
    return &segment->basis;
}

/* From ids[first] on, slots of one tier, at most AT_ONCE: their physical numbers. */
static int32_t run_of(const struct sf_slots *slots, const int32_t *ids, int32_t first, int32_t n,
                      int32_t *slot_out)
{
    int32_t run = 0;
    while (first + run < n && run < AT_ONCE &&
           slots->tier[ids[first + run]] == slots->tier[ids[first]]) {
        slot_out[run] = slots->slot[ids[first + run]];
        run++;
    }
    return run;
}

/* From ids[0] on, slots of one segment, at most AT_ONCE, rebuilt; returns how many. */
static int32_t rebuild_run(const struct sf_store *store, const struct sf_slots *slots,
                           const int32_t *ids, int32_t n, float *k, float *v)
{
    int32_t slot[AT_ONCE], run = 1;
    const struct sf_kv_lane *tier = sf_lane_tier_of(slots->lane, slots->tier[ids[0]]);
    const struct sf_segment *segment = sf_segment_of(tier, slots->slot[ids[0]]);
    struct sf_lane_part part = segment_part(slots->lane, segment);
    slot[0] = slots->slot[ids[0]] - segment->slot_first;
    for (; run < n && run < AT_ONCE && slots->tier[ids[run]] == slots->tier[ids[0]]; run++) {
        slot[run] = slots->slot[ids[run]] - segment->slot_first;
        if (slot[run] < 0 || slot[run] >= segment->basis.slots) break;
    }
    struct sf_slot_list list = { segment->basis.page, slot, run };
    store->device->k->kv_rebuild(store->device, &part, store->pool.base, store->pool.page_bytes,
                                 &list, k, v);
    return run;
}

void sf_slots_decode(const struct sf_store *store, const struct sf_slots *slots, const int32_t *ids,
                     int32_t n, float *k, float *v)
{
    int32_t slot[AT_ONCE], run;
    const struct sf_layout *dims = &store->layer[slots->layer].layout;
    for (int32_t i = 0; i < n; i += run) {
        int32_t tier = slots->tier[ids[i]];
        float *k_to = k ? k + (size_t)i * (size_t)dims->k_dim : NULL;
        float *v_to = v ? v + (size_t)i * (size_t)dims->v_dim : NULL;
        if (sf_lane_tier(slots->lane, tier)->shared) {
            run = rebuild_run(store, slots, ids + i, n - i, k_to, v_to);
            continue;
        }
        run = run_of(slots, ids, i, n, slot);
        struct sf_slot_list list = { sf_lane_tier(slots->lane, tier)->page, slot, run };
        struct sf_codec_at at = codec_at(store, slots, tier);
        codec_of(store, slots, tier)->decode(&at, &list, k_to, v_to);
    }
}

void sf_slots_encode(const struct sf_store *store, const struct sf_slots *slots, const int32_t *ids,
                     int32_t n, const float *k, const float *v, const int32_t *pos,
                     const float *bias)
{
    int32_t slot[AT_ONCE], run;
    for (int32_t i = 0; i < n; i += run) {
        int32_t tier = slots->tier[ids[i]];
        struct sf_codec_at at = codec_at(store, slots, tier);
        SF_ASSERT(!sf_lane_tier(slots->lane, tier)->shared);
        run = run_of(slots, ids, i, n, slot);
        struct sf_slot_list list = { sf_lane_tier(slots->lane, tier)->page, slot, run };
        codec_of(store, slots, tier)->encode(&at, &list, k + (size_t)i * (size_t)at.layout->k_dim,
                                             v + (size_t)i * (size_t)at.layout->v_dim, pos + i,
                                             bias + i);
    }
}

/* ---- edits ---------------------------------------------------------------------------------- */
sf_status sf_tiers_keep(struct sf_store *store, const struct sf_slots *slots, const uint8_t *keep)
{
    struct sf_kv_lane *lane = slots->lane;
    int32_t total = sf_lane_total(lane), *drop, left = 0;
    int moved[SF_TIERS] = { 0 };
    for (int32_t t = 0; t < lane->tiers; t++) { /* tier 0 first: no other can fail */
        struct sf_lane_ctx ctx = sf_tier_ctx(store, slots->layer, slots->lane_index, t);
        int32_t n = 0;
        SF_TRY(sf_scratch_items(&store->host, (size_t)total + 1, sizeof *drop, &drop));
        for (int32_t s = 0; s < total; s++)
            if (!keep[s] && slots->tier[s] == t) drop[n++] = slots->slot[s];
        if (n > 0) SF_TRY(sf_lane_mark(&ctx, sf_lane_tier(lane, t), drop, n));
    }
    for (int32_t s = 0; s < total && lane->order; s++)
        if (keep[s]) lane->order[left++] = slots->tier[s];
    return sf_tiers_compact(store, slots, moved);
}

sf_status sf_tiers_compact(struct sf_store *store, const struct sf_slots *slots, const int *moved)
{
    for (int32_t t = 0; t < slots->lane->tiers; t++) {
        struct sf_lane_ctx ctx = sf_tier_ctx(store, slots->layer, slots->lane_index, t);
        if (!moved[t]) SF_TRY(sf_lane_compact(&ctx, sf_lane_tier(slots->lane, t)));
    }
    return SF_OK;
}

/* What one tier of the lane is to become. */
struct becoming {
    int32_t *rank;                      /* [old slots] among the live ones of their tier */
    int32_t old[SF_TIERS], now[SF_TIERS];
};

/* The pages of tiers that grow, and the copies of shared ones that an edit can need, are free, so
 * that nothing fails half way; they have been promised (account.h). */
static sf_status check_room(const struct sf_store *store, const struct sf_kv_lane *lane,
                            const struct becoming *b)
{
    int64_t pages = 0;
    int grows = 0;
    for (int32_t t = 0; t < lane->tiers; t++) {
        const struct sf_kv_lane *tier = sf_lane_tier_of(lane, t);
        if (b->now[t] <= b->old[t]) continue;
        grows = 1;
        pages += (b->now[t] + tier->page_slots - 1) / tier->page_slots - tier->pages;
    }
    for (int32_t p = 0; grows && p < lane->pages; p++)
        pages += store->pool.holders[lane->page[p]] > 1;
    if (grows && pages > sf_pages_free(&store->pool))
        return SF_FAIL(SF_NO_PAGES, "an edit moves slots to tiers that need %lld pages, %d of %d"
                       " are free", (long long)pages, sf_pages_free(&store->pool),
                       store->pool.pages);
    return SF_OK;
}

static sf_status place_tier(struct sf_store *store, const struct sf_slots *old,
                            const struct becoming *b, int32_t t, const int32_t *source,
                            const uint8_t *tier, int32_t n, int32_t *slot_out, int *moved_out)
{
    struct sf_lane_ctx ctx = sf_tier_ctx(store, old->layer, old->lane_index, t);
    struct sf_kv_lane *lane = sf_lane_tier(old->lane, t);
    int32_t more = b->now[t] - b->old[t], m = 0, *live, *from, *to;
    size_t room = (size_t)(more > 0 ? b->now[t] : b->old[t]) + 1;
    SF_TRY(sf_scratch_items(&store->host, room, sizeof *live, &live));
    SF_TRY(sf_scratch_items(&store->host, room, sizeof *from, &from));
    SF_TRY(sf_scratch_items(&store->host, room, sizeof *to, &to));
    if (more > 0) {                     /* holes go first, so that no page too many is taken */
        SF_TRY(sf_lane_pack(&ctx, lane));
        SF_TRY(sf_lane_extend(&ctx, lane, 0, more));
    }
    sf_lane_live(&store->pool, lane, live);
    for (int32_t i = 0; i < n; i++)
        if (tier[i] == t) from[m++] = source[i] < 0 ? -1 : live[b->rank[source[i]]];
    SF_ASSERT(m == b->now[t]);
    SF_TRY(sf_lane_place(&ctx, lane, live, from, m, to, moved_out));
    m = 0;
    for (int32_t i = 0; i < n; i++)
        if (tier[i] == t) slot_out[i] = to[m++];
    return SF_OK;
}

sf_status sf_tiers_place(struct sf_store *store, const struct sf_slots *old, const int32_t *source,
                         const uint8_t *tier, int32_t n, int32_t *slot_out, int *moved_out)
{
    struct sf_kv_lane *lane = old->lane;
    struct becoming b = { .rank = NULL };
    int32_t total = sf_lane_total(lane);
    SF_TRY(sf_scratch_items(&store->host, (size_t)total + 1, sizeof *b.rank, &b.rank));
    for (int32_t s = 0; s < total; s++) b.rank[s] = b.old[old->tier[s]]++;
    for (int32_t i = 0; i < n; i++) b.now[tier[i]]++;
    SF_TRY(check_room(store, lane, &b));
    for (int grows = 0; grows < 2; grows++)
        for (int32_t t = 0; t < lane->tiers; t++)
            if ((b.now[t] > b.old[t]) == grows)
                SF_TRY(place_tier(store, old, &b, t, source, tier, n, slot_out, &moved_out[t]));
    if (lane->order && n > 0) memcpy(lane->order, tier, (size_t)n);
    return SF_OK;
}
