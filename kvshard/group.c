/* kvshard/group.c: which lanes make up a layer group here, and what a sequence has for each. */
#include "kvshard/group.h"

#include <string.h>

#include "base/memory.h"
#include "comm/comm.h"
#include "kvshard/store_impl.h"

/* ---- of a store ----------------------------------------------------------------------------- */
/* Adds the lanes of one method and layer group, if any are here. */
static void add_group(struct sf_store *store, const struct sf_stack_entry *entry, int32_t method,
                      int16_t number)
{
    struct sf_groups *groups = &store->groups;
    struct sf_store_group group = { .method = method, .tier = sf_codec_group_tier(&entry->plan),
                                    .layer_first = -1, .counted = -1 };
    for (int32_t i = 0; i < store->layers; i++) {
        const struct sf_layer_state *state = &store->layer[i];
        if (entry->shape.layer_group[store->layer_first + i] != number) continue;
        for (int32_t l = 0; l < state->spec.lanes; l++) {
            if (state->method[l] != method) continue;
            if (group.layer_first < 0) group.layer_first = i;
            group.layer_last = i;
            if (group.counted < 0 && state->spec.lane[l].replica == 0) group.counted = group.lanes;
            groups->of_lane[state->lane_first + l] = groups->groups;
            groups->number[state->lane_first + l] = group.lanes++;
        }
    }
    if (group.lanes > 0) groups->group[groups->groups++] = group;
}

/* Rotations of all positions that there may be. */
static sf_status make_turns(struct sf_store *store)
{
    struct sf_groups *groups = &store->groups;
    const struct sf_kernels *k = store->device->k;
    int32_t tokens = store->setup.tokens_max;
    void *block;
    groups->rope_dim = store->setup.layer[store->layer_first].rope_dim;
    if (groups->rope_dim == 0) return SF_OK;
    SF_TRY(k->alloc(store->device, (size_t)tokens * (size_t)groups->rope_dim * sizeof(float),
                    "rotations of positions", &block));
    groups->turns = block;
    SF_TRY(sf_turn_table(store, tokens, groups->rope_dim, groups->turns));
    k->sync(store->device);
    sf_scratch_destroy(&store->host);   /* steps take less */
    sf_scratch_init(&store->host, NULL);
    return SF_OK;
}

/* Room for the picks of as many sequences as there may be. */
static sf_status make_picks(struct sf_store *store)
{
    struct sf_groups *groups = &store->groups;
    size_t seqs = (size_t)store->seqs_max;
    void *block;
    for (int32_t g = 0; g < groups->groups; g++) {
        struct sf_store_group *group = &groups->group[g];
        const struct sf_plan *plan = &store->method[group->method].entry->plan;
        group->pick_first = groups->picks_each;
        if (plan->mark_slots > 0)
            groups->picks_each += (size_t)group->lanes *
                                  (size_t)sf_picks_most(plan, store->setup.tokens_max);
    }
    if (groups->picks_each == 0) return SF_OK;
    SF_TRY(sf_alloc(seqs * sizeof *groups->place, "places of picks", &block));
    groups->place = block;
    for (; groups->places < store->seqs_max; groups->places++)
        groups->place[groups->places] = store->seqs_max - 1 - groups->places;
    SF_TRY(store->device->k->alloc(store->device, seqs * groups->picks_each *
                                                      sizeof *groups->picks,
                                   "picks of sequences", &block));
    groups->picks = block;
    return SF_OK;
}

sf_status sf_groups_create(struct sf_store *store, const struct sf_stack *stack)
{
    struct sf_groups *groups = &store->groups;
    size_t lanes = (size_t)store->lanes, most = 0;
    void *block;
    for (int32_t m = 0; stack && m < stack->entries; m++)
        if (sf_codec_group_tier(&stack->entry[m].plan) > 0) most += (size_t)store->layers;
    SF_TRY(sf_alloc(lanes * sizeof *groups->of_lane, "groups of lanes", &block));
    groups->of_lane = block;
    for (size_t l = 0; l < lanes; l++) groups->of_lane[l] = -1;
    if (most == 0) return SF_OK;
    if (!store->device->k->kv_rebuild || !store->device->k->copy_columns)
        return SF_FAIL(SF_UNSUPPORTED, "low-rank caches are not built for the device %s",
                       store->device->k->name);
    for (int32_t m = 0; m < stack->entries; m++)
        if (stack->entry[m].plan.needs & SF_NEED_SELECT_DECODE && !store->device->k->pick)
            return SF_FAIL(SF_UNSUPPORTED, "picks in decode are not built for the device %s",
                           store->device->k->name);
    SF_TRY(sf_alloc(lanes * sizeof *groups->number, "lanes of groups", &block));
    groups->number = block;
    SF_TRY(sf_alloc(most * sizeof *groups->group, "layer groups", &block));
    groups->group = block;
    for (int32_t m = 0; m < stack->entries; m++) {
        const struct sf_stack_entry *entry = &stack->entry[m];
        int16_t last = -1;
        for (int32_t i = 0; sf_codec_group_tier(&entry->plan) > 0 && i < store->layers; i++) {
            int16_t number = entry->shape.layer_group[store->layer_first + i];
            if (number >= 0 && number != last) add_group(store, entry, m, number);
            last = number;
        }
    }
    for (int32_t g = 0; g < groups->groups && !store->tensor; g++) {
        const struct sf_plan *plan = &stack->entry[groups->group[g].method].plan;
        if (sf_lowrank_over_ranks(&store->setup, &plan->tier[groups->group[g].tier]))
            return SF_FAIL(SF_INTERNAL, "a basis of several tensor ranks, and no way to them");
    }
    SF_TRY(make_picks(store));
    return groups->groups > 0 ? make_turns(store) : SF_OK;
}

void sf_groups_destroy(struct sf_store *store)
{
    if (store->groups.turns) store->device->k->free(store->device, store->groups.turns);
    if (store->groups.picks) store->device->k->free(store->device, store->groups.picks);
    sf_free(store->groups.place);
    sf_free(store->groups.group);
    sf_free(store->groups.number);
    sf_free(store->groups.of_lane);
}

int32_t sf_group_of(const struct sf_store *store, int32_t layer, int32_t lane)
{
    return store->groups.of_lane[store->layer[layer].lane_first + lane];
}

struct sf_kv_lane *sf_group_marks(const struct sf_store *store, const struct sf_seq *seq,
                                  int32_t layer, int32_t lane)
{
    int32_t at = store->layer[layer].lane_first + lane, g = store->groups.of_lane[at];
    return g < 0 || !seq->group[g].mark ? NULL : &seq->group[g].mark[store->groups.number[at]];
}

/* ---- of a sequence -------------------------------------------------------------------------- */
struct sf_lowrank_ask sf_group_ask(const struct sf_store *store, int32_t number, int32_t tokens)
{
    const struct sf_store_group *group = &store->groups.group[number];
    const struct sf_stack_entry *entry = store->method[group->method].entry;
    return (struct sf_lowrank_ask){ .setup = &store->setup, .shape = &entry->shape,
                                    .tier = &entry->plan.tier[group->tier],
                                    .raw = store->layer[group->layer_first].layout,
                                    .layer = store->layer_first + group->layer_first,
                                    .ranks = store->setup.tp_size,
                                    .rank = store->tensor ? sf_comm_rank(store->tensor) : 0,
                                    .lanes = group->lanes, .tokens = tokens };
}

sf_status sf_group_sizes(const struct sf_store *store, int32_t number, int32_t tokens,
                         struct sf_lowrank_size *size_out)
{
    struct sf_lowrank_ask ask = sf_group_ask(store, number, tokens);
    return sf_lowrank_sizes(&ask, size_out);
}

/* Where lane l of a segment has its factors and, if they stay exact, its values. */
static void open_lane(const struct sf_store *store, struct sf_segment *segment, int32_t l,
                      int32_t *factor_page, int32_t *value_page)
{
    const struct sf_lowrank_size *size = &segment->size;
    segment->list[l] = (struct sf_kv_lane){ .page = factor_page, .pages_max = size->factor_pages,
                                            .page_slots = size->factors.page_slots, .tiers = 1,
                                            .layout = &size->factors };
    segment->factors[l] = (struct sf_lane_factors){ .layout = &size->factors,
                                                    .pages = factor_page,
                                                    .turns = store->groups.turns,
                                                    .rope_dim = store->groups.rope_dim };
    if (!segment->values) return;
    segment->values[l] = (struct sf_kv_lane){ .page = value_page, .pages_max = size->value_pages,
                                              .page_slots = size->values.page_slots, .tiers = 1,
                                              .layout = &size->values };
    segment->factors[l].value_layout = &size->values;
    segment->factors[l].value_pages = value_page;
}

/* Its lists lie behind each other in the group's arrays; *tables_ptr moves on. */
static void open_segment(const struct sf_store *store, struct sf_seq_group *mine, int32_t lanes,
                         int32_t s, const struct sf_lowrank_size *size, int32_t **tables_ptr)
{
    struct sf_segment *segment = &mine->segment[s];
    int32_t *factor_pages = *tables_ptr + size->basis_pages;
    int32_t *value_pages = factor_pages + lanes * size->factor_pages;
    *segment = (struct sf_segment){ .size = *size, .list = mine->list + s * lanes,
                                    .values = mine->values ? mine->values + s * lanes : NULL,
                                    .factors = mine->factors + s * lanes };
    segment->basis = (struct sf_kv_lane){ .page = *tables_ptr, .pages_max = size->basis_pages,
                                          .page_slots = size->basis.page_slots, .mirrored = 1,
                                          .number = mine->tier.number, .tiers = 1,
                                          .layout = &segment->size.basis };
    for (int32_t l = 0; l < lanes; l++)
        open_lane(store, segment, l, factor_pages + l * size->factor_pages,
                  value_pages + l * size->value_pages);
    *tables_ptr = value_pages + lanes * size->value_pages;
}

/* Lists of landmarks, their page tables behind `table`, and where its picks are. */
static sf_status open_picks(const struct sf_store *store, const struct sf_seq *seq, int32_t number,
                            int32_t *table)
{
    const struct sf_store_group *group = &store->groups.group[number];
    const struct sf_plan *plan = &store->method[group->method].entry->plan;
    struct sf_seq_group *mine = &seq->group[number];
    int32_t pages = sf_marks_pages(plan, &mine->mark_layout, seq->tokens_max);
    void *block;
    if (plan->mark_slots == 0) return SF_OK;
    SF_TRY(sf_alloc((size_t)group->lanes * sizeof *mine->mark, "landmarks of a group", &block));
    mine->mark = block;
    for (int32_t l = 0; l < group->lanes; l++)
        mine->mark[l] = (struct sf_kv_lane){ .page = table + l * pages, .pages_max = pages,
                                             .page_slots = mine->mark_layout.page_slots,
                                             .tiers = 1, .layout = &mine->mark_layout };
    mine->pick = store->groups.picks + (size_t)(seq->pick_place - 1) * store->groups.picks_each +
                 group->pick_first;
    return SF_OK;
}

static size_t pages_of(const struct sf_lowrank_size *size, int32_t lanes)
{
    size_t each = (size_t)size->factor_pages + (size_t)size->value_pages;
    return (size_t)size->basis_pages + (size_t)lanes * each;
}

static sf_status open_group(const struct sf_store *store, const struct sf_seq *seq, int32_t number)
{
    const struct sf_store_group *group = &store->groups.group[number];
    struct sf_seq_group *mine = &seq->group[number];
    const struct sf_plan *plan = &store->method[group->method].entry->plan;
    struct sf_lowrank_size first, more = { .basis_pages = 0 };
    mine->segments_max = sf_codec_segments(plan, seq->tokens_max);
    size_t segments = (size_t)mine->segments_max, lists = segments * (size_t)group->lanes;
    void *block;
    SF_TRY(sf_group_sizes(store, number, seq->tokens_max, &first));
    if (segments > 1) SF_TRY(sf_group_sizes(store, number, plan->every_tokens, &more));
    SF_TRY(sf_alloc(segments * sizeof *mine->segment, "segments of a group", &block));
    mine->segment = block;
    SF_TRY(sf_alloc(lists * (first.value_pages > 0 ? 2 : 1) * sizeof *mine->list,
                    "factors of a group", &block));
    mine->list = block;
    mine->values = first.value_pages > 0 ? mine->list + lists : NULL;
    SF_TRY(sf_alloc(lists * sizeof *mine->factors, "factors of a group", &block));
    mine->factors = block;
    mine->mark_layout = sf_marks_layout(&store->layer[group->layer_first].layout);
    size_t pages = pages_of(&first, group->lanes) + (segments - 1) * pages_of(&more, group->lanes);
    pages += (size_t)group->lanes *
             (size_t)sf_marks_pages(plan, &mine->mark_layout, seq->tokens_max);
    SF_TRY(sf_alloc(pages * sizeof(int32_t), "page tables of a group", &block));
    mine->tables = block;
    mine->tier = (struct sf_kv_lane){ .number = (uint8_t)group->tier, .tiers = 1, .mirrored = 1,
                                      .shared = 1, .segment = mine->segment };
    int32_t *tables = mine->tables;
    for (int32_t s = 0; s < mine->segments_max; s++)
        open_segment(store, mine, group->lanes, s, s == 0 ? &first : &more, &tables);
    return open_picks(store, seq, number, tables);
}

sf_status sf_groups_open(struct sf_store *store, struct sf_seq *seq)
{
    void *block;
    if (store->groups.groups == 0) return SF_OK;
    SF_ASSERT(seq->tokens_max <= store->setup.tokens_max);
    SF_TRY(sf_alloc((size_t)store->groups.groups * sizeof *seq->group, "groups of a sequence",
                    &block));
    seq->group = block;
    if (store->groups.picks) {
        SF_ASSERT(store->groups.places > 0);
        seq->pick_place = 1 + store->groups.place[--store->groups.places];
    }
    for (int32_t g = 0; g < store->groups.groups; g++) SF_TRY(open_group(store, seq, g));
    return SF_OK;
}

void sf_groups_free(struct sf_store *store, struct sf_seq *seq)
{
    if (seq->pick_place > 0) {
        SF_ASSERT(store->groups.places < store->seqs_max);
        store->groups.place[store->groups.places++] = seq->pick_place - 1;
    }
    for (int32_t g = 0; seq->group && g < store->groups.groups; g++) {
        sf_free(seq->group[g].segment);
        sf_free(seq->group[g].list);
        sf_free(seq->group[g].factors);
        sf_free(seq->group[g].mark);
        sf_free(seq->group[g].tables);
    }
    sf_free(seq->group);
}

const struct sf_segment *sf_segment_of(const struct sf_kv_lane *tier, int32_t slot)
{
    int32_t first = 0, end = tier->segments;
    SF_ASSERT(tier->shared && slot >= 0 && slot < tier->live);
    while (end - first > 1) {
        int32_t middle = (first + end) / 2;
        if (tier->segment[middle].slot_first <= slot) first = middle;
        else end = middle;
    }
    return &tier->segment[first];
}

struct sf_held sf_group_held(const struct sf_store *store, const struct sf_seq *seq, int32_t layer,
                             int32_t lane)
{
    int32_t at = store->layer[layer].lane_first + lane, g = store->groups.of_lane[at];
    struct sf_held held = { 0, 0 };
    if (g < 0) return held;
    const struct sf_seq_group *mine = &seq->group[g];
    int32_t number = store->groups.number[at];
    held.bytes = mine->tier.live * INT64_C(8);
    for (int32_t s = 0; s < mine->tier.segments; s++) {
        const struct sf_segment *segment = &mine->segment[s];
        held.bytes += segment->size.factor_bytes + segment->size.value_bytes;
        held.pages += segment->list[number].pages;
        if (segment->values) held.pages += segment->values[number].pages;
        if (number != store->groups.group[g].counted) continue;
        held.bytes += segment->size.basis_bytes;
        held.pages += segment->basis.pages;
    }
    if (mine->mark) {
        held.bytes += mine->mark[number].live * (int64_t)sf_layout_slot_bytes(&mine->mark_layout);
        held.pages += mine->mark[number].pages;
    }
    return held;
}

void sf_groups_close(struct sf_store *store, struct sf_seq *seq)
{
    for (int32_t g = 0; g < store->groups.groups; g++) {
        struct sf_held before = sf_group_total(store, seq, g);
        struct sf_seq_group *mine = &seq->group[g];
        for (int32_t s = 0; s < mine->tier.segments; s++) {
            struct sf_segment *segment = &mine->segment[s];
            for (int32_t l = 0; l < store->groups.group[g].lanes; l++) {
                sf_lane_free(&store->pool, &segment->list[l]);
                if (segment->values) sf_lane_free(&store->pool, &segment->values[l]);
            }
            sf_lane_free(&store->pool, &segment->basis);
        }
        mine->tier.segments = mine->tier.slots = mine->tier.live = 0;
        for (int32_t l = 0; mine->mark && l < store->groups.group[g].lanes; l++)
            sf_lane_free(&store->pool, &mine->mark[l]);
        sf_group_book(store, seq, g, before);
    }
}

struct sf_held sf_group_total(const struct sf_store *store, const struct sf_seq *seq, int32_t g)
{
    const struct sf_store_group *group = &store->groups.group[g];
    struct sf_held total = { 0, 0 };
    for (int32_t i = group->layer_first; i <= group->layer_last; i++)
        for (int32_t l = 0; l < store->layer[i].spec.lanes; l++) {
            if (sf_group_of(store, i, l) != g || store->layer[i].spec.lane[l].replica > 0) continue;
            struct sf_held held = sf_store_held(store, seq, i, l);
            total.bytes += held.bytes;
            total.pages += held.pages;
        }
    return total;
}

void sf_group_book(struct sf_store *store, struct sf_seq *seq, int32_t g, struct sf_held before)
{
    struct sf_held now = sf_group_total(store, seq, g);
    store->bytes_stored += now.bytes - before.bytes;
    seq->pages += now.pages - before.pages;
    if (seq->pages > seq->pages_peak) seq->pages_peak = seq->pages;
}
