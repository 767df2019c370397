/* kvshard/account.c: footprints in slots become bytes and pages of a rank.
 *
 * What a lane holds at most: while the prompt runs, its slots; afterwards (if its method answers
 * the prompt's end) never more than its budget and the holes that the store leaves in it (lane.h);
 * and never more than all its tokens.
 *
 * A method that answers at intervals swings between two events.  Its lanes are largest just before
 * one, with the slots of the token before and one more, so the footprint is asked there:
 *
 *   tokens   prompt ......... e1-1 e1 ........ e2-1 e2 ...... tokens
 *   slots         rising ---> here |drop  rising here |drop   and here
 *
 * Pages of tiers beside the raw one come on top: an edit fills them before it frees what it
 * took.  A layer group's tier grows by a segment at the prompt's end and by one of every_tokens at
 * an interval, or not; what is raw just before an interval is never less than before an earlier.
 *
 * What a layer group shares is counted once for each rank that has lanes of it: its bytes with the
 * first lane that is no copy, as the store does (group.h).  One lane by itself gets its part. */
#include "kvshard/account.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/layout.h"
#include "kvshard/codec.h"
#include "kvshard/lane.h"

/* Operations a second of a long call of LAPACK, which has one thread: 8 to 17e9 with matrices of
 * 512 to 2,048 columns, on one core of a current server. */
static const double lapack_rate = 10e9;

static struct sf_layout layout_of(const struct sf_setup *setup, int32_t layer, enum sf_dtype dtype)
{
    return (struct sf_layout){ dtype, setup->page_slots, setup->layer[layer].k_dim,
                               setup->layer[layer].v_dim };
}

static int64_t pages_of(int64_t slots, int32_t page_slots)
{
    return (slots + page_slots - 1) / page_slots;
}

static void raise_live(const struct sf_foot *foot, int64_t *live)
{
    if (live[0] < (int64_t)foot->slots_hi[0] + 1) live[0] = (int64_t)foot->slots_hi[0] + 1;
    for (int32_t t = 1; t < SF_TIERS; t++)
        if (live[t] < foot->slots_hi[t]) live[t] = foot->slots_hi[t];
}

/* Most live slots of a lane in each tier from the prompt's end to spot->tokens.  Rows are appended
 * to tier 0; what the others hold changes with events alone, so there it is asked after one too. */
static sf_status decode_live(const struct sf_setup *setup, const struct sf_stack_entry *entry,
                             const struct sf_spot *spot, const struct sf_foot *last,
                             int64_t *live_out)
{
    const struct sf_plan *plan = &entry->plan;
    int64_t live[SF_TIERS] = { (int64_t)last->slots_trigger + 1 };
    raise_live(last, live);
    if (plan->whens & 1u << SF_AT_INTERVAL) {
        int32_t origin = plan->every_from_prompt ? spot->prompt : 0;
        int64_t event = origin + (spot->prompt - origin) / plan->every_tokens *
                                     (int64_t)plan->every_tokens + plan->every_tokens;
        if (sf_codec_group_tier(plan) > 0 && event < spot->tokens)
            event += (spot->tokens - event) / plan->every_tokens * plan->every_tokens;
        for (; event <= spot->tokens; event += plan->every_tokens) {
            struct sf_spot before = *spot;
            struct sf_foot foot = { .slots_peak = spot->prompt };
            before.tokens = (int32_t)event - 1;
            SF_TRY(entry->method->policy->footprint(setup, &before, &foot));
            raise_live(&foot, live);
            if (plan->tiers < 2) continue;
            struct sf_foot after = { .slots_peak = spot->prompt };
            before.tokens = (int32_t)event;
            SF_TRY(entry->method->policy->footprint(setup, &before, &after));
            after.slots_hi[0] = 0;
            raise_live(&after, live);
        }
    }
    memcpy(live_out, live, sizeof live);
    return SF_OK;
}

/* What a layer group's tier costs a lane: its factors and exact values, and the group's basis where
 * `basis` of the bytes and pages are the lane's. */
struct group_cost { int64_t bytes, pages; };
struct group_share { int32_t lanes; double basis; }; /* lanes of the group here */
/* Of `segments` segments of so many slots. */
static sf_status add_segments(const struct sf_setup *setup, const struct sf_stack_entry *entry,
                              const struct sf_layout *raw, int32_t layer, int32_t slots,
                              int32_t segments, const struct group_share *share,
                              struct group_cost *cost)
{
    struct sf_lowrank_ask ask = { .setup = setup, .shape = &entry->shape,
                                  .tier = &entry->plan.tier[sf_codec_group_tier(&entry->plan)],
                                  .raw = *raw, .layer = layer, .ranks = setup->tp_size,
                                  .lanes = share->lanes, .tokens = slots };
    struct sf_lowrank_size size;
    if (slots == 0 || segments == 0) return SF_OK;
    SF_TRY(sf_lowrank_sizes(&ask, &size));
    cost->bytes += segments * (size.factor_bytes + size.value_bytes +
                               (int64_t)(share->basis * (double)size.basis_bytes));
    cost->pages += segments * (size.factor_pages + size.value_pages +
                               (int64_t)(share->basis * (double)size.basis_pages));
    return SF_OK;
}

/* Of all that the lane has in the group's tier by now: `slots` of them. */
static sf_status group_cost(const struct sf_setup *setup, const struct sf_stack_entry *entry,
                            const struct sf_layout *raw, const struct sf_spot *spot,
                            int32_t slots, const struct group_share *share,
                            struct group_cost *out)
{
    const struct sf_plan *plan = &entry->plan;
    struct sf_foot foot = { .slots_peak = spot->prompt };
    struct sf_spot at_end = *spot;
    int32_t first = slots, segments = 0;
    *out = (struct group_cost){ 0, 0 };
    if (plan->whens & 1u << SF_AT_INTERVAL) {
        at_end.tokens = spot->prompt;
        SF_TRY(entry->method->policy->footprint(setup, &at_end, &foot));
        first = foot.slots_hi[sf_codec_group_tier(plan)];
        segments = (slots - first) / plan->every_tokens;
        SF_ASSERT(slots == first + segments * plan->every_tokens);
    }
    SF_TRY(add_segments(setup, entry, raw, spot->layer, first, 1, share, out));
    return add_segments(setup, entry, raw, spot->layer, plan->every_tokens, segments, share, out);
}

static sf_status lane_cost(const struct sf_setup *common, const struct sf_stack *stack,
                           int32_t number, enum sf_dtype dtype, const struct sf_spot *spot,
                           const struct group_share *share, struct sf_lane_cost *cost_out)
{
    struct sf_layout layout = layout_of(common, spot->layer, dtype);
    int64_t slot_bytes = (int64_t)sf_layout_slot_bytes(&layout);
    struct sf_lane_cost cost;
    cost.bytes_exact = spot->tokens * slot_bytes;
    if (number < 0) {
        cost.bytes_lo = cost.bytes_hi = cost.bytes_exact;
        cost.pages_peak = cost.pages_after = pages_of(spot->tokens, common->page_slots);
        cost.slots_after = spot->tokens;
        *cost_out = cost;
        return SF_OK;
    }
    const struct sf_stack_entry *entry = &stack->entry[number];
    struct sf_setup setup = *common;
    struct sf_foot foot = { .slots_peak = spot->prompt };
    setup.cfg = entry->cfg;
    setup.shape = &entry->shape;
    SF_TRY(entry->method->policy->footprint(&setup, spot, &foot));
    if (spot->tightened > 0 && entry->plan.whens & 1u << SF_AT_PRESSURE && foot.slots_keep == 0) {
        struct sf_spot plain = *spot;           /* without a budget it stays as it is (tighten.c) */
        plain.tightened = 0;
        return lane_cost(common, stack, number, dtype, &plain, share, cost_out);
    }
    int64_t live[SF_TIERS], prompt_slots = foot.slots_peak, tier_pages = 0;
    SF_TRY(decode_live(&setup, entry, spot, &foot, live));
    cost.bytes_lo = cost.bytes_hi = foot.extra_bytes;
    cost.slots_after = 0;
    for (int32_t t = 0; t < entry->plan.tiers || t == 0; t++) {
        struct sf_layout tier;
        SF_TRY(sf_codec_layout(&entry->plan, t, &layout, &tier));
        if (t > 0) slot_bytes = (int64_t)sf_codec_of(&entry->plan, t)->slot_bytes(&tier);
        if (t > 0 && sf_codec_of(&entry->plan, t)->facts & SF_CAN_GROUP) {
            struct group_cost group;    /* here lo and hi are equal: stack.c has seen to it */
            SF_TRY(group_cost(&setup, entry, &layout, spot, foot.slots_hi[t], share, &group));
            cost.bytes_lo += group.bytes;
            cost.bytes_hi += group.bytes;
            tier_pages += group.pages;
        } else if (t > 0) {
            tier_pages += pages_of(sf_tier_slots_bound(live[t], tier.page_slots), tier.page_slots);
        }
        if (t == 0 && foot.marks > 0) { /* group.h */
            struct sf_layout marks = sf_marks_layout(&layout);
            int64_t bytes = foot.marks * (int64_t)sf_layout_slot_bytes(&marks);
            cost.bytes_lo += bytes;
            cost.bytes_hi += bytes;
            tier_pages += pages_of(foot.marks, marks.page_slots);
        }
        cost.slots_after += live[t];
        cost.bytes_lo += foot.slots_lo[t] * (slot_bytes + entry->plan.aux_bytes);
        cost.bytes_hi += foot.slots_hi[t] * (slot_bytes + entry->plan.aux_bytes);
    }
    if (cost.slots_after > spot->tokens) cost.slots_after = spot->tokens;
    int64_t slots = sf_lane_slots_bound(live[0], setup.page_slots);
    if (entry->plan.whens & 1u << SF_AT_PREFILL_CHUNK) /* else a prompt has no holes */
        prompt_slots = sf_lane_slots_bound(prompt_slots, setup.page_slots);
    if (slots > spot->tokens) slots = spot->tokens;
    if (prompt_slots > spot->tokens) prompt_slots = spot->tokens;
    int64_t most = slots > prompt_slots ? slots : prompt_slots;
    /* A lane whose peak comes later than its prompt is not cut at the end of that. */
    int is_cut = (entry->plan.whens & 1u << SF_AT_PREFILL_END && foot.slots_peak <= spot->prompt) ||
                 (entry->plan.whens & 1u << SF_AT_PRESSURE && spot->tightened > 0);
    cost.pages_peak = pages_of(most, setup.page_slots) + tier_pages;
    cost.pages_after = pages_of(is_cut ? slots : most, setup.page_slots) + tier_pages;
    *cost_out = cost;
    return SF_OK;
}

static int32_t entry_of(const struct sf_setup *setup, const struct sf_stack *stack,
                        const struct sf_spot *spot)
{
    return stack == NULL ? -1 : sf_stack_entry_of(stack, setup, spot->layer, spot->head_global);
}

sf_status sf_account_lane(const struct sf_setup *setup, const struct sf_stack *stack,
                          enum sf_dtype dtype, const struct sf_spot *spot,
                          struct sf_lane_cost *cost_out)
{
    struct group_share share = { 1, 0 };
    int32_t number = entry_of(setup, stack, spot);
    if (number >= 0 && stack->entry[number].shape.layer_group[spot->layer] >= 0) {
        int32_t lanes = sf_group_lanes(setup, &stack->entry[number].shape, spot->layer);
        share.lanes = (lanes + setup->tp_size - 1) / setup->tp_size;
        share.basis = 1.0 / share.lanes;
    }
    return lane_cost(setup, stack, number, dtype, spot, &share, cost_out);
}

/* The lanes of a layer group on a rank: how many, and with which of them the basis counts: its
 * bytes with the first that is no copy, its pages with the first; -1: none is there. */
struct rank_group { int32_t number, layer, lanes, first, counted; };

static struct rank_group rank_group_of(const struct sf_setup *setup, const struct sf_stack *stack,
                                       const struct sf_rank_lanes *lanes, int32_t number,
                                       int32_t layer)
{
    const int16_t *group = stack->entry[number].shape.layer_group;
    struct rank_group found = { number, layer, 0, -1, -1 };
    int32_t begin = layer - lanes->layer_first;
    while (begin > 0 && group[lanes->layer_first + begin - 1] == group[layer]) begin--;
    for (int32_t i = begin; i < lanes->layers; i++) {
        int32_t other = lanes->layer_first + i;
        if (group[other] != group[layer]) break;        /* a group's layers are neighbours */
        for (int32_t j = lanes->lane_ptr[i]; j < lanes->lane_ptr[i + 1]; j++) {
            if (sf_stack_entry_of(stack, setup, other, lanes->head_global[j]) != number) continue;
            if (found.first < 0) found.first = j;
            if (found.counted < 0 && lanes->replica[j] == 0) found.counted = j;
            found.lanes++;
        }
    }
    return found;
}

/* Lane number `l` of a rank.  *seen: the last group that was looked for, or one without a number:
 * the lanes of a layer mostly have one, and looking for it takes time with its lanes. */
static sf_status rank_lane_cost(const struct sf_setup *setup, const struct sf_stack *stack,
                                const struct sf_rank_lanes *lanes, enum sf_dtype dtype,
                                const struct sf_spot *spot, int32_t l, struct rank_group *seen,
                                struct sf_lane_cost *cost_out)
{
    struct group_share share = { 1, 0 };
    int32_t number = entry_of(setup, stack, spot);
    if (number < 0 || stack->entry[number].shape.layer_group[spot->layer] < 0)
        return lane_cost(setup, stack, number, dtype, spot, &share, cost_out);
    if (seen->number != number || seen->layer != spot->layer)
        *seen = rank_group_of(setup, stack, lanes, number, spot->layer);
    struct sf_lane_cost pays;
    share = (struct group_share){ seen->lanes, l == seen->counted };
    SF_TRY(lane_cost(setup, stack, number, dtype, spot, &share, cost_out));
    share.basis = l == seen->first;
    SF_TRY(lane_cost(setup, stack, number, dtype, spot, &share, &pays));
    cost_out->pages_peak = pays.pages_peak;
    cost_out->pages_after = pays.pages_after;
    return SF_OK;
}

sf_status sf_account_sequence(const struct sf_setup *setup, const struct sf_stack *stack,
                              const struct sf_rank_lanes *lanes, enum sf_dtype dtype,
                              int32_t prompt, int32_t tokens, struct sf_cost *cost_out)
{
    const struct sf_spot at = { .prompt = prompt, .tokens = tokens };
    return sf_account_tightened(setup, stack, lanes, dtype, &at, cost_out);
}

sf_status sf_account_tightened(const struct sf_setup *setup, const struct sf_stack *stack,
                               const struct sf_rank_lanes *lanes, enum sf_dtype dtype,
                               const struct sf_spot *at, struct sf_cost *cost_out)
{
    struct sf_cost sum = { 0 };
    struct rank_group seen = { .number = -1 };
    SF_ASSERT(at->prompt >= 0 && at->tokens >= at->prompt);
    for (int32_t i = 0; i < lanes->layers; i++) {
        int32_t layer = lanes->layer_first + i;
        for (int32_t l = lanes->lane_ptr[i]; l < lanes->lane_ptr[i + 1]; l++) {
            struct sf_spot spot = *at;
            struct sf_lane_cost lane;
            spot.layer = layer;
            spot.head_global = lanes->head_global[l];
            SF_TRY(rank_lane_cost(setup, stack, lanes, dtype, &spot, l, &seen, &lane));
            sum.pages_peak += lane.pages_peak;
            sum.pages_after += lane.pages_after;
            if (lanes->replica[l] > 0) continue;
            sum.bytes_exact += lane.bytes_exact;
            sum.bytes_lo += lane.bytes_lo;
            sum.bytes_hi += lane.bytes_hi;
        }
    }
    sum.bytes_peak = sum.pages_peak * sf_account_page_bytes(setup, lanes, dtype);
    *cost_out = sum;
    return SF_OK;
}

void sf_account_group_ranks(const struct sf_setup *setup, const struct sf_stack_entry *entry,
                            int32_t layer, int32_t *rank_k_out, int32_t *rank_v_out)
{
    const struct sf_layer *of = &setup->layer[layer];
    int32_t lanes = sf_group_lanes(setup, &entry->shape, layer);
    int32_t tier = sf_codec_group_tier(&entry->plan);
    *rank_k_out = *rank_v_out = 0;
    if (tier == 0 || lanes == 0) return;
    struct sf_lowrank_ask ask = { .setup = setup, .shape = &entry->shape,
                                  .tier = &entry->plan.tier[tier],
                                  .raw = { .k_dim = of->k_dim, .v_dim = of->v_dim },
                                  .layer = layer, .ranks = setup->tp_size,
                                  .lanes = (lanes + setup->tp_size - 1) / setup->tp_size,
                                  .tokens = INT32_MAX };
    sf_lowrank_ranks(&ask, rank_k_out, rank_v_out);
}

int sf_account_replicated(const struct sf_setup *setup, const struct sf_stack_entry *entry)
{
    int32_t tier = sf_codec_group_tier(&entry->plan);
    return tier > 0 && sf_lowrank_over_ranks(setup, &entry->plan.tier[tier]);
}

double sf_account_silent_seconds(const struct sf_setup *setup, const struct sf_stack_entry *entry,
                                 int32_t layer, int32_t tokens)
{
    const struct sf_layer *of = &setup->layer[layer];
    int32_t tier = sf_codec_group_tier(&entry->plan);
    if (tier == 0 || entry->shape.layer_group[layer] < 0) return 0;
    struct sf_lowrank cfg;
    memcpy(&cfg, entry->plan.tier[tier].codec_cfg, sizeof cfg);
    double lanes = sf_group_lanes(setup, &entry->shape, layer);
    if (!cfg.replicated) lanes = ceil(lanes / setup->tp_size);
    double cols = lanes * (cfg.rank_v > 0 && of->v_dim > of->k_dim ? of->v_dim : of->k_dim);
    double narrow = fmin(tokens, cols), wide = fmax(tokens, cols);
    switch ((enum sf_factor_how)cfg.how) {      /* Golub and Van Loan's counts */
    case SF_FACTOR_EXACT: return narrow * narrow * (6 * wide + 20 * narrow) / lapack_rate;
    case SF_FACTOR_GRAM: return 9 * cols * cols * cols / lapack_rate;
    case SF_FACTOR_RANDOM:              /* what is cut off at its end is an exact one */
        if (cfg.oversample == 0) break;
        narrow = fmin(narrow, (double)(cfg.rank_k > cfg.rank_v ? cfg.rank_k : cfg.rank_v) +
                                  cfg.oversample);
        return narrow * narrow * (6 * cols + 20 * narrow) / lapack_rate;
    }
    return 0;
}

int64_t sf_account_holds(int64_t pages, const struct sf_cost *cost)
{
    if (cost->pages_peak <= 0) return INT64_MAX;
    if (pages < cost->pages_peak) return 0;
    return 1 + (pages - cost->pages_peak) / (cost->pages_after > 0 ? cost->pages_after : 1);
}

int64_t sf_account_page_bytes(const struct sf_setup *setup, const struct sf_rank_lanes *lanes,
                              enum sf_dtype dtype)
{
    int64_t most = 0;
    for (int32_t i = 0; i < lanes->layers; i++) {
        struct sf_layout layout = layout_of(setup, lanes->layer_first + i, dtype);
        int64_t bytes = (int64_t)sf_layout_page_bytes(&layout);
        if (bytes > most) most = bytes;
    }
    return most;
}

/* ---- the lanes of a rank --------------------------------------------------------------------- */
void sf_rank_lanes_free(struct sf_rank_lanes *lanes)
{
    free((void *)lanes->head_global);
    free((void *)lanes->replica);
    free((void *)lanes->lane_ptr);
    *lanes = (struct sf_rank_lanes){ 0 };
}

sf_status sf_rank_lanes_make(const struct sf_share *share, struct sf_rank_lanes *lanes_out)
{
    size_t layers = (size_t)share->layer_count, lanes = (size_t)share->kv_ptr[layers];
    int32_t *ptr = malloc((layers + 1) * sizeof *ptr), *head = malloc((lanes + 1) * sizeof *head);
    uint8_t *replica = malloc(lanes + 1);
    *lanes_out = (struct sf_rank_lanes){
        .layer_first = share->layer_first, .layers = share->layer_count, .lane_ptr = ptr,
        .head_global = head, .replica = replica
    };
    if (ptr == NULL || head == NULL || replica == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %zu lanes", lanes);
    memcpy(ptr, share->kv_ptr, (layers + 1) * sizeof *ptr);
    for (size_t i = 0; i < lanes; i++) {
        SF_ASSERT(share->kv[i].replica >= 0 && share->kv[i].replica <= UINT8_MAX);
        head[i] = share->kv[i].kv_head;
        replica[i] = (uint8_t)share->kv[i].replica;
    }
    return SF_OK;
}
