/* kvshard/bytes.c: what a rank's cache takes beside the pages of its pool, before it is made
 * (account.h).
 *
 * Array by array as create.c, page.c, block.c, tier.c, group.c, copies.c and kept.c make them; a
 * test counts what they really take.  Step memory is an upper bound: of every array that event.c,
 * edit.c, apply.c and lane.c need for one slot, each lane of a layer being as long as it can be.
 *
 *   hook of a layer | views | what the method takes | edits, copied | moves, lane after lane |
 *   or layer group  | views of all its layers ...                   | X, bases, factors        |
 *
 * It grows in blocks, each as large as all before it (scratch.h), so at most to twice of that. */
#include <string.h>

#include "base/crew.h"
#include "base/memory.h"
#include "kernels/kernels.h"
#include "kvshard/account.h"
#include "kvshard/factor_ranks.h"
#include "kvshard/mass.h"
#include "kvshard/watch.h"

enum { MAP_BYTES = 4096,                /* of a page of the system */
       LANE_ARRAYS = 48,                /* arrays of one lane in a hook, rounded up to SF_ALIGN */
       SUM_SLOTS = 256, BLOCK_BYTES = 64 * 1024 };

struct sizing {
    const struct sf_setup *setup;
    const struct sf_stack *stack;
    const struct sf_share *share;
    const struct sf_cache_room *room;
    int64_t seqs_long;                  /* of tokens_max, at once */
    int64_t spans;                      /* of these, the ones that a hook is shown */
    int64_t lanes_most, heads_most;     /* lanes and query heads of a layer here */
};
/* A layer group: entry of the stack, its tier, first layer here, lanes here. */
struct grouped { int32_t m, tier, layer, lanes; };

void sf_page_notes(const struct sf_stack *stack, struct sf_page_spec *pages)
{
    for (int32_t m = 0; stack && m < stack->entries; m++) {
        const struct sf_plan *plan = &stack->entry[m].plan;
        if (plan->whens) pages->mirror = 1;
        if (plan->aux_bytes > pages->aux_bytes) pages->aux_bytes = plan->aux_bytes;
        for (int32_t w = 0; w < 2; w++) {
            if (sf_is_watched(plan, w) && pages->masses <= w) pages->masses = w + 1;
            if (plan->watch[w].fold == SF_FOLD_MEAN) pages->means[w] = 1;
        }
    }
}

/* ---- small things --------------------------------------------------------------------------- */
static int64_t block(int64_t count, size_t item_bytes)
{
    int64_t bytes = count * (int64_t)item_bytes;
    return bytes == 0 ? SF_ALIGN : (bytes + SF_ALIGN - 1) / SF_ALIGN * SF_ALIGN;
}

static int64_t map(int64_t bytes)
{
    return bytes == 0 ? MAP_BYTES : (bytes + MAP_BYTES - 1) / MAP_BYTES * MAP_BYTES;
}

static int32_t entries_of(const struct sizing *s) { return s->stack ? s->stack->entries : 0; }

static int32_t lanes_of(const struct sizing *s, int32_t layer)
{
    return s->share->kv_ptr[layer + 1] - s->share->kv_ptr[layer];
}

static const struct sf_kv_share *lane_of(const struct sizing *s, int32_t layer, int32_t l)
{
    return &s->share->kv[s->share->kv_ptr[layer] + l];
}

static const struct sf_layer *layer_of(const struct sizing *s, int32_t layer)
{
    return &s->setup->layer[s->share->layer_first + layer];
}

static struct sf_layout raw_of(const struct sizing *s, int32_t layer)
{
    const struct sf_layer *of = layer_of(s, layer);
    return (struct sf_layout){ s->room->dtype, s->setup->page_slots, of->k_dim, of->v_dim };
}

/* Number of the entry that acts on a lane; -1: none. */
static int32_t entry_of(const struct sizing *s, int32_t layer, int32_t l)
{
    if (!s->stack) return -1;
    return sf_stack_entry_of(s->stack, s->setup, s->share->layer_first + layer,
                             lane_of(s, layer, l)->kv_head);
}

static const struct sf_plan *plan_of(const struct sizing *s, int32_t layer, int32_t l)
{
    int32_t entry = entry_of(s, layer, l);
    return entry < 0 ? NULL : &s->stack->entry[entry].plan;
}

static int watches(const struct sf_plan *plan)
{
    return plan ? sf_is_watched(plan, 0) + sf_is_watched(plan, 1) : 0;
}

/* ---- layer groups --------------------------------------------------------------------------- */
/* Whether layer i goes on with the entry's group of the layer before it. */
static int group_goes_on(const struct sizing *s, int32_t m, int32_t i)
{
    const int16_t *number = s->stack->entry[m].shape.layer_group + s->share->layer_first;
    return i > 0 && number[i] >= 0 && number[i - 1] == number[i];
}

/* The group of entry m that begins with layer i; 0: none does, or it has no lane here. */
static int group_at(const struct sizing *s, int32_t m, int32_t i, struct grouped *out)
{
    const struct sf_stack_entry *entry = &s->stack->entry[m];
    *out = (struct grouped){ m, sf_codec_group_tier(&entry->plan), i, 0 };
    if (out->tier == 0 || entry->shape.layer_group[s->share->layer_first + i] < 0 ||
        group_goes_on(s, m, i))
        return 0;
    do {
        for (int32_t l = 0; l < lanes_of(s, i); l++) out->lanes += entry_of(s, i, l) == m;
        i++;
    } while (i < s->share->layer_count && group_goes_on(s, m, i));
    return out->lanes > 0;
}

static struct sf_lowrank_ask group_ask(const struct sizing *s, const struct grouped *group,
                                       int32_t tokens)
{
    const struct sf_stack_entry *entry = &s->stack->entry[group->m];
    return (struct sf_lowrank_ask){ .setup = s->setup, .shape = &entry->shape,
                                    .tier = &entry->plan.tier[group->tier],
                                    .raw = raw_of(s, group->layer),
                                    .layer = s->share->layer_first + group->layer,
                                    .ranks = s->setup->tp_size, .rank = s->share->tp_rank,
                                    .lanes = group->lanes,
                                    .tokens = tokens };
}

/* The tables of groups, with the rotations of all positions and all sequences' picks. */
static int64_t group_tables(const struct sizing *s)
{
    int64_t lanes = s->share->kv_ptr[s->share->layer_count], most = 0, picks = 0;
    int32_t groups = 0, rope_dim = layer_of(s, 0)->rope_dim;
    struct grouped group;
    for (int32_t m = 0; m < entries_of(s); m++) {
        if (sf_codec_group_tier(&s->stack->entry[m].plan) > 0) most += s->share->layer_count;
        for (int32_t i = 0; i < s->share->layer_count; i++) {
            const struct sf_plan *plan = &s->stack->entry[m].plan;
            if (!group_at(s, m, i, &group)) continue;
            groups++;
            if (plan->mark_slots > 0)
                picks += (int64_t)group.lanes * sf_picks_most(plan, s->setup->tokens_max);
        }
    }
    int64_t bytes = block(lanes, sizeof(int32_t));
    if (most > 0)
        bytes += block(lanes, sizeof(int32_t)) + block(most, sizeof(struct sf_store_group));
    if (groups > 0 && rope_dim > 0)
        bytes += block((int64_t)s->setup->tokens_max * rope_dim, sizeof(float));
    if (picks > 0)
        bytes += block(s->room->seqs_max, sizeof(int32_t)) +
                 block(s->room->seqs_max * picks, sizeof(int32_t));
    return bytes;
}

/* Pages of the lists of a segment of so many rows, and lists of each lane. */
static sf_status segment_pages(const struct sizing *s, const struct grouped *group, int32_t rows,
                               int64_t *pages_out, int64_t *lists_out)
{
    struct sf_lowrank_ask ask = group_ask(s, group, rows);
    struct sf_lowrank_size size;
    SF_TRY(sf_lowrank_sizes(&ask, &size));
    int64_t each = size.factor_pages + size.value_pages;
    *pages_out = size.basis_pages + group->lanes * each;
    *lists_out = size.value_pages > 0 ? 2 : 1;
    return SF_OK;
}

/* Of a sequence of so many tokens: what stands for its groups. */
static sf_status group_lists(const struct sizing *s, int32_t tokens, int64_t *bytes_out)
{
    int64_t bytes = 0, groups = 0;
    struct grouped group;
    for (int32_t m = 0; m < entries_of(s); m++)
        for (int32_t i = 0; i < s->share->layer_count; i++) {
            const struct sf_plan *plan = &s->stack->entry[m].plan;
            int64_t segments = sf_codec_segments(plan, tokens), pages = 0, lists = 1;
            if (!group_at(s, m, i, &group)) continue;
            SF_TRY(segment_pages(s, &group, tokens, &pages, &lists));
            if (segments > 1) {
                int64_t more;
                SF_TRY(segment_pages(s, &group, plan->every_tokens, &more, &lists));
                pages += (segments - 1) * more;
            }
            struct sf_layout raw = raw_of(s, i), marks = sf_marks_layout(&raw);
            pages += (int64_t)group.lanes * sf_marks_pages(plan, &marks, tokens);
            groups++;
            if (plan->mark_slots > 0)
                bytes += block(group.lanes, sizeof(struct sf_kv_lane));
            bytes += block(segments, sizeof(struct sf_segment)) +
                     block(segments * group.lanes * lists, sizeof(struct sf_kv_lane)) +
                     block(segments * group.lanes, sizeof(struct sf_lane_factors)) +
                     block(pages, sizeof(int32_t));
        }
    if (groups > 0) bytes += block(groups, sizeof(struct sf_seq_group));
    *bytes_out = bytes;
    return SF_OK;
}

/* Whether its factors are made beside the layers (encode.c), in a room of their own. */
static int goes_beside(const struct sizing *s, const struct grouped *group)
{
    return s->room->threads_beside > 0 &&
           !sf_lowrank_over_ranks(s->setup, &s->stack->entry[group->m].plan.tier[group->tier]);
}

/* Step memory of encoding one group: a lane of X and its rotations, what is known of rows, and the
 * factors, if they are made at once. */
static sf_status group_scratch(const struct sizing *s, const struct grouped *group,
                               int64_t *bytes_out)
{
    struct sf_lowrank_ask ask = group_ask(s, group, s->room->tokens_max);
    struct sf_lowrank_size size;
    SF_TRY(sf_lowrank_sizes(&ask, &size));
    int64_t n = ask.tokens, lanes = ask.lanes, k_dim = ask.raw.k_dim, v_dim = ask.raw.v_dim;
    int64_t rows = size.rank_k > size.rank_v ? size.rank_k : size.rank_v;
    size_t factors = 0;
    int64_t floats = n * (k_dim > v_dim ? k_dim : v_dim) + 2 * lanes +
                     2 * n * (layer_of(s, group->layer)->rope_dim + 1) +
                     sf_marks_most(&s->stack->entry[group->m].plan, ask.tokens) * k_dim;
    if (!goes_beside(s, group))
        SF_TRY(sf_encode_bytes(&ask, s->room->hosted ? SF_ENCODE_HOSTED : 0,
                               s->room->factor_bytes, &factors));
    *bytes_out = (int64_t)factors + (floats + 4 * n + rows) * (int64_t)sizeof(float) +
                 (LANE_ARRAYS + lanes) * SF_ALIGN + s->spans * block(1, sizeof(struct sf_encoding));
    return SF_OK;
}

/* ---- what is made with the store ------------------------------------------------------------ */
/* Most slots of a page in any tier that a lane here can have. */
static sf_status page_places(const struct sizing *s, int32_t *places_out)
{
    *places_out = s->setup->page_slots;
    for (int32_t i = 0; i < s->share->layer_count; i++)
        for (int32_t l = 0; l < lanes_of(s, i); l++) {
            const struct sf_plan *plan = plan_of(s, i, l);
            struct sf_layout raw = raw_of(s, i), tier;
            for (int32_t t = 1; plan && t < plan->tiers; t++) {
                SF_TRY(sf_codec_layout(plan, t, &raw, &tier));
                if (tier.page_slots > *places_out) *places_out = tier.page_slots;
            }
        }
    return SF_OK;
}

/* Of mass.c, for one pool. */
static int64_t masses_there(int64_t watches, int64_t pages, int64_t places)
{
    int64_t all = watches * pages, room = all < SF_MASSES_AT_ONCE ? all : SF_MASSES_AT_ONCE;
    return block(1, sizeof(struct sf_masses)) + block(all * places, sizeof(float)) +
           2 * block(room * places, sizeof(float)) + block(all, 1) + block(room, sizeof(int32_t));
}

static sf_status size_pages(const struct sizing *s, int64_t page_bytes, struct sf_cache_bytes *out)
{
    struct sf_page_spec notes = { 0 };
    int32_t places;
    SF_TRY(page_places(s, &places));
    sf_page_notes(s->stack, &notes);
    int64_t lanes = s->share->kv_ptr[s->share->layer_count], pages = s->room->pages;
    int64_t blocks = lanes > 0 ? pages / lanes : 0, slots = (pages + 1) * places;
    int64_t taken = (pages + 1) * page_bytes;                           /* with the spare one */
    out->tables += (s->room->hosted ? block(taken, 1) : map(taken)) - pages * page_bytes;
    out->tables += 3 * block(pages, sizeof(int32_t));
    out->tables += block(blocks * lanes, sizeof(int32_t)) + block(blocks, sizeof(struct sf_block));
    if (!notes.mirror) return SF_OK;
    out->mirrors = 2 * map(slots * (int64_t)sizeof(float));
    if (notes.aux_bytes > 0) out->mirrors += map(slots * notes.aux_bytes);
    for (int32_t w = 0; w < notes.masses; w++)
        out->masses += (1 + (notes.means[w] != 0)) * map(slots * (int64_t)sizeof(float));
    if (s->room->hosted && notes.masses > 0)
        out->masses += masses_there(notes.masses, pages + 1, places);
    return SF_OK;
}

static void size_tables(const struct sizing *s, struct sf_cache_bytes *out)
{
    int32_t entries = entries_of(s);
    out->tables += block(1, sizeof(struct sf_store));
    out->tables += block(s->share->layer_count, sizeof(struct sf_layer_state));
    out->tables += block(entries, sizeof(struct sf_store_method));
    for (int32_t i = 0; i < s->share->layer_count; i++) {
        int32_t lanes = lanes_of(s, i);
        out->tables += block(lanes, sizeof(struct sf_store_lane)) + block(lanes, sizeof(int32_t)) +
                       block(lanes * SF_TIERS, sizeof(int64_t)) +
                       block(entries * SF_TIERS, sizeof(struct sf_layout));
    }
    out->tables += group_tables(s);
}

static void size_step(const struct sizing *s, struct sf_cache_bytes *out)
{
    struct sf_page_spec notes = { 0 };
    int64_t seqs = s->room->seqs_max, jobs = seqs * (s->lanes_most > 0 ? s->lanes_most : 1);
    int64_t parts = 0;
    for (int32_t m = 0; m < entries_of(s); m++) {
        int32_t of = sf_codec_parts(&s->stack->entry[m].plan, s->setup->tokens_max);
        if (of > parts) parts = of;
    }
    sf_page_notes(s->stack, &notes);
    out->step = block(jobs, sizeof(struct sf_append_lane)) +
                block(jobs, sizeof(struct sf_lane_job)) +
                block(s->room->rows_max, sizeof(int32_t)) + 2 * block(seqs, sizeof(int32_t));
    if (parts > 0) out->step += block(jobs * parts, sizeof(struct sf_lane_part));
    if (!notes.mirror || notes.masses == 0) return;
    out->step += block(seqs, sizeof(int32_t)) + block(jobs, sizeof(struct sf_lane_job)) +
                 block(s->room->rows_max * s->heads_most, sizeof(float));
    int64_t logits = sf_logits_room(s->stack, s->room->tokens_max, s->setup->page_slots, seqs,
                                    s->heads_most);
    if (logits > 0) out->step += block(logits, sizeof(float));
}

static int64_t group_of(const struct sizing *s, int32_t layer)
{
    return layer_of(s, layer)->q_heads / layer_of(s, layer)->groups;
}

/* Whether copies.c serves the layer. */
static int has_copies(const struct sizing *s, int32_t layer)
{
    return lanes_of(s, layer) > 0 && lane_of(s, layer, 0)->replicas > 1 &&
           watches(plan_of(s, layer, 0)) > 0;
}

static void size_copies(const struct sizing *s, struct sf_cache_bytes *out)
{
    int64_t group = 0, width = 0, rows = s->room->rows_max;
    for (int32_t i = 0; i < s->share->layer_count; i++) {
        if (!has_copies(s, i)) continue;
        int64_t heads = group_of(s, i), floats = heads * (layer_of(s, i)->k_dim + 1);
        if (heads > group) group = heads;
        if (floats > width) width = floats;
    }
    if (width == 0) return;
    out->copies = 4 * block(rows * width, sizeof(float)) + block(rows * group, sizeof(float)) +
                  block(rows, sizeof(int32_t)) + block(rows, sizeof(struct sf_copies_row));
}

/* The room of factors that are made beside the layers, of the largest group, as long as can be, and
 * the threads that make them. */
static sf_status size_beside(const struct sizing *s, struct sf_cache_bytes *out)
{
    struct grouped group;
    size_t most = 0, bytes;
    for (int32_t m = 0; m < entries_of(s); m++)
        for (int32_t i = 0; i < s->share->layer_count; i++) {
            if (!group_at(s, m, i, &group) || !goes_beside(s, &group)) continue;
            struct sf_lowrank_ask ask = group_ask(s, &group, s->room->tokens_max);
            SF_TRY(sf_encode_bytes(&ask, SF_ENCODE_APART, s->room->factor_bytes, &bytes));
            if (bytes > most) most = bytes;
        }
    if (most > 0) out->beside = block((int64_t)most, 1);
    if (most > 0 && s->room->threads_beside > 1)
        out->beside += block(sf_crew_bytes(s->room->threads_beside), 1);
    return SF_OK;
}

/* ---- sequences ------------------------------------------------------------------------------ */
/* Queries that are kept until an event (kept.c), of one lane and watch. */
static int64_t kept_bytes(const struct sizing *s, int32_t layer, int32_t l,
                          const struct sf_watch *watch)
{
    int64_t most = watch->prompt_rows > watch->decode_rows ? watch->prompt_rows
                                                           : watch->decode_rows;
    int64_t heads = has_copies(s, layer) ? group_of(s, layer) : lane_of(s, layer, l)->q_count;
    if (watch->fold == SF_FOLD_NONE || !(watch->flags & SF_WATCH_STORED)) return 0;
    if (most < 0) most = 0;
    return block(most * heads * layer_of(s, layer)->k_dim, sizeof(float)) +
           block(most, sizeof(int32_t));
}

/* One sequence of so many tokens. */
static sf_status seq_bytes(const struct sizing *s, int32_t tokens, int64_t *bytes_out)
{
    int64_t lanes = s->share->kv_ptr[s->share->layer_count];
    int64_t tables = 0, more = 0, shared = 0, orders = 0, kept = 0, groups;
    int stored = 0;
    for (int32_t m = 0; m < entries_of(s); m++)
        for (int w = 0; w < 2; w++)
            stored |= s->stack->entry[m].plan.watch[w].flags & SF_WATCH_STORED;
    for (int32_t i = 0; i < s->share->layer_count; i++)
        for (int32_t l = 0; l < lanes_of(s, i); l++) {
            const struct sf_plan *plan = plan_of(s, i, l);
            struct sf_layout raw = raw_of(s, i), tier = raw;
            int32_t tiers = plan && plan->tiers > 1 ? plan->tiers : 1;
            int32_t basis = plan ? sf_codec_group_tier(plan) : 0;
            for (int32_t t = 0; t < tiers; t++) {
                if (t > 0 && t == basis) continue;      /* the group's list */
                if (t > 0) SF_TRY(sf_codec_layout(plan, t, &raw, &tier));
                tables += sf_tier_pages_most(tokens, t, tiers, tier.page_slots);
            }
            more += tiers - 1 - (basis > 0);
            shared += basis > 0;
            if (tiers > 1) orders += tokens;
            for (int w = 0; plan && w < 2; w++) kept += kept_bytes(s, i, l, &plan->watch[w]);
        }
    if (stored) kept += block(2 * lanes, sizeof(struct sf_kept));
    SF_TRY(group_lists(s, tokens, &groups));
    *bytes_out = block(1, sizeof(struct sf_seq)) + block(s->share->layer_count, sizeof(int32_t)) +
                 block(lanes, sizeof(struct sf_kv_lane)) + block(more, sizeof(struct sf_kv_lane)) +
                 block(more + shared, sizeof(struct sf_kv_lane *)) + block(orders, 1) +
                 block(tables, sizeof(int32_t)) + groups + kept;
    return SF_OK;
}

/* ---- step memory ---------------------------------------------------------------------------- */
/* What moving the slots of a lane takes for each of them (lane.h, place.c, tier.c). */
static int64_t move_bytes(int32_t tiers) { return 32 + 16 * (int64_t)tiers; }

static int sums(const struct sf_plan *plan)
{
    return (plan->edits & (SF_EDITS_MIX | SF_EDITS_TIER)) != 0;
}

/* For one slot of a lane in a hook of this method: its view and the lane's edit. */
static int64_t slot_scratch(const struct sf_stack_entry *entry)
{
    const struct sf_plan *plan = &entry->plan;
    const struct sf_policy_ops *ops = entry->method->policy;
    int64_t masses = 4 * watches(plan), view = 4 + 4 + 4 + 1 + plan->aux_bytes + masses;
    int64_t keep = 0, mix = 0;
    int32_t tiers = plan->tiers > 1 ? plan->tiers : 1;
    if (!ops->compress && !ops->score) return 4 + move_bytes(tiers);    /* the oldest go, unseen */
    if (!ops->compress || plan->edits & SF_EDITS_KEEP) keep = 3 * 4 + 1;
    if (sums(plan)) {
        mix = 6 * 4 + masses + plan->aux_bytes + 2 + 1;           /* as it is given, and checked */
        mix += 5 * 4 + 2 + plan->aux_bytes + 3 * masses + 2 * 4;  /* as it is carried out */
    }
    return view + keep + mix + move_bytes(tiers) + 2 * masses;  /* what copies show each other */
}

/* Sums that lanes of so many slots in all can need: of two sources or more, no more than a lane
 * keeps; a slot that changes its tier is one too. */
static int64_t sums_bytes(const struct sizing *s, const struct sf_plan *plan,
                          const struct sf_layer *layer, const struct sf_foot *foot, int64_t slots)
{
    int64_t kept = foot->slots_keep > foot->slots_trigger / 2 ? foot->slots_keep
                                                              : foot->slots_trigger / 2;
    int64_t rows = slots / 2, floats = 2 * (int64_t)(layer->k_dim + layer->v_dim);
    if (!sums(plan)) return 0;
    if (plan->tiers > 1) rows = slots;
    else if (kept > 0 && rows > s->spans * kept) rows = s->spans * kept;
    if (plan->edits & SF_EDITS_ROTATE) floats += 2 * (layer->rope_dim + 1);
    return rows * floats * (int64_t)sizeof(float);
}

/* Of one lane whatever its slots. */
static int64_t lane_scratch(const struct sizing *s, const struct sf_stack_entry *entry,
                            const struct sf_layer *layer, int64_t heads)
{
    int64_t fixed = (int64_t)sizeof(struct sf_lane) + (int64_t)sizeof(struct sf_view) +
                    LANE_ARRAYS * SF_ALIGN + 16 * (int64_t)s->setup->page_slots, most = 0;
    int64_t floats = layer->k_dim + layer->v_dim;
    if (sums(&entry->plan)) fixed += 2 * SUM_SLOTS * floats * (int64_t)sizeof(float);
    for (int w = 0; w < 2; w++) {
        const struct sf_watch *watch = &entry->plan.watch[w];
        if (watch->fold == SF_FOLD_NONE || !(watch->flags & SF_WATCH_STORED)) continue;
        if (watch->prompt_rows > most) most = watch->prompt_rows;
        if (watch->decode_rows > most) most = watch->decode_rows;
        fixed += (most + 1) * (4 + heads * (floats + 1) * (int64_t)sizeof(float));
    }
    return fixed;
}

/* Of one event in one layer: prompts end, as many as a hook is shown, or as many full lanes are as
 * long as they get. */
static sf_status hook_bytes(const struct sizing *s, int32_t layer, int32_t m, int64_t *bytes_out)
{
    const struct sf_stack_entry *entry = &s->stack->entry[m];
    const struct sf_layer *of = layer_of(s, layer);
    int64_t at_end = 0, later = 0, lanes = 0, fixed = 0, tokens = s->room->tokens_max;
    const int64_t slot_bytes = slot_scratch(entry);
    struct sf_setup setup = *s->setup;
    int64_t ending = SF_HOOK_TOKENS + tokens;
    if (ending > s->spans * tokens) ending = s->spans * tokens;
    setup.cfg = entry->cfg;
    setup.shape = &entry->shape;
    for (int32_t l = 0; l < lanes_of(s, layer); l++) {
        const struct sf_kv_share *lane = lane_of(s, layer, l);
        if (entry_of(s, layer, l) != m) continue;
        struct sf_spot spot = { s->share->layer_first + layer, lane->kv_head,
                                s->room->tokens_max, s->room->tokens_max, 0 };
        struct sf_lane_cost cost;
        SF_TRY(sf_account_lane(s->setup, s->stack, s->room->dtype, &spot, &cost));
        struct sf_foot foot = { .slots_peak = spot.prompt };
        SF_TRY(entry->method->policy->footprint(&setup, &spot, &foot));
        int64_t heads = has_copies(s, layer) ? group_of(s, layer) : lane->q_count;
        lanes++;
        fixed += lane_scratch(s, entry, of, heads);
        int64_t after = s->spans * cost.slots_after;
        at_end += ending * slot_bytes + sums_bytes(s, &entry->plan, of, &foot, ending);
        if (entry->plan.mark_slots > 0)  /* landmarks, and slots that stay raw, copied */
            at_end += ending * 4 + (ending / entry->plan.mark_slots + s->spans) *
                                       ((of->k_dim + 1) * (int64_t)sizeof(float));
        later += after * slot_bytes + sums_bytes(s, &entry->plan, of, &foot, after);
    }
    *bytes_out = 0;
    if (lanes == 0) return SF_OK;
    *bytes_out = entry->plan.scratch_bytes + (at_end > later ? at_end : later) +
                 s->spans * (fixed + s->setup->tp_size * entry->plan.reduce_bytes +
                             (int64_t)(sizeof(struct sf_span) + sizeof(struct sf_group_edit) +
                                       2 * sizeof(int32_t)));
    return SF_OK;
}

/* What select() is shown in one layer: all sequences at once (select.c). */
static int64_t select_bytes(const struct sizing *s, int32_t m)
{
    int64_t lanes = s->room->seqs_max * s->lanes_most;
    if (!(s->stack->entry[m].plan.needs & SF_NEED_SELECT_DECODE)) return 0;
    return s->stack->entry[m].plan.scratch_bytes + block(lanes, sizeof(struct sf_lane)) +
           block(lanes, sizeof(struct sf_view)) + block(lanes, sizeof(struct sf_pick_lane)) +
           block(s->room->seqs_max, sizeof(struct sf_span)) +
           block(s->room->seqs_max, sizeof(struct sf_buf)) +
           block(2 * s->room->seqs_max, sizeof(int32_t));
}

static sf_status size_scratch(const struct sizing *s, struct sf_cache_bytes *out)
{
    int64_t most = 0, edits = 0, shown = 0, kept = 0;
    struct grouped group = { 0 };
    int beside = 0;
    for (int32_t m = 0; m < entries_of(s); m++) {
        if (select_bytes(s, m) > most) most = select_bytes(s, m);
        for (int32_t i = 0; s->stack->entry[m].plan.whens != 0 && i < s->share->layer_count; i++) {
            int64_t bytes;
            if (!group_goes_on(s, m, i)) edits = shown = beside = 0;
            SF_TRY(hook_bytes(s, i, m, &bytes));
            if (group_at(s, m, i, &group)) {
                beside = goes_beside(s, &group);
                SF_TRY(group_scratch(s, &group, &edits));
            }
            shown += bytes;
            if (shown + edits > most) most = shown + edits;
            if (beside && shown + edits > kept) kept = shown + edits;
        }
    }
    /* Host and device; and of a group that is factored beside, until it is finished. */
    if (most > 0) out->scratch = 2 * most + 6 * BLOCK_BYTES;
    if (kept > 0) out->scratch += 2 * kept + 3 * BLOCK_BYTES;
    return SF_OK;
}

/* ---- all of it ------------------------------------------------------------------------------ */
/* Sequences of tokens_max that the pool can promise pages to at once; shorter ones may be more, but
 * not longer in all. */
static sf_status count_seqs(struct sizing *s, int64_t *page_bytes_out)
{
    struct sf_rank_lanes lanes;
    struct sf_cost cost;
    int32_t tokens = s->room->tokens_max;
    sf_status status = sf_rank_lanes_make(s->share, &lanes);
    if (status == SF_OK)
        status = sf_account_sequence(s->setup, s->stack, &lanes, s->room->dtype, tokens, tokens,
                                     &cost);
    if (status == SF_OK) {
        *page_bytes_out = sf_account_page_bytes(s->setup, &lanes, s->room->dtype);
        int64_t most = cost.pages_after > 0 ? 1 + s->room->pages / cost.pages_after : INT64_MAX;
        s->seqs_long = most < s->room->seqs_max ? most : s->room->seqs_max;
        s->spans = s->room->seqs_max < SF_HOOK_SPANS ? s->room->seqs_max : SF_HOOK_SPANS;
    }
    sf_rank_lanes_free(&lanes);
    return status;
}

sf_status sf_account_cache(const struct sf_setup *setup, const struct sf_stack *stack,
                           const struct sf_share *share, const struct sf_cache_room *room,
                           struct sf_cache_bytes *out)
{
    struct sizing s = { .setup = setup, .stack = stack, .share = share, .room = room };
    struct sf_cache_bytes bytes = { 0 };
    int64_t page_bytes, one, least;
    SF_ASSERT(room->pages >= 0 && room->seqs_max >= 1 && room->tokens_max >= 1);
    for (int32_t i = 0; i < share->layer_count; i++) {
        int64_t heads = 0;
        for (int32_t l = 0; l < lanes_of(&s, i); l++) heads += lane_of(&s, i, l)->q_count;
        if (lanes_of(&s, i) > s.lanes_most) s.lanes_most = lanes_of(&s, i);
        if (heads > s.heads_most) s.heads_most = heads;
    }
    SF_TRY(count_seqs(&s, &page_bytes));
    SF_TRY(size_pages(&s, page_bytes, &bytes));
    size_tables(&s, &bytes);
    size_step(&s, &bytes);
    size_copies(&s, &bytes);
    SF_TRY(size_beside(&s, &bytes));
    SF_TRY(seq_bytes(&s, room->tokens_max, &one));
    SF_TRY(seq_bytes(&s, 1, &least));
    bytes.seqs = s.seqs_long * one + (room->seqs_max - s.seqs_long) * least;
    SF_TRY(size_scratch(&s, &bytes));
    *out = bytes;
    return SF_OK;
}
