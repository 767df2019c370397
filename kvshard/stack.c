/* kvshard/stack.c: the methods of a job: put together, checked against the model and against what
 * the store can do.  A method that asks for a service which is not there is refused by name, so
 * that nothing is ever left out in silence. */
#include "kvshard/stack.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvshard/codec.h"
#include "kvshard/methods.h"
#include "kvshard/stack_impl.h"
#include "model/desc.h"

sf_status sf_stack_add_method(struct sf_stack *stack, const struct sf_method *method,
                              struct sf_stack_entry **entry_out)
{
    size_t entries = (size_t)stack->entries + 1;
    struct sf_stack_entry *grown = realloc(stack->entry, entries * sizeof *grown);
    if (grown == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for method %s", method->name);
    stack->entry = grown;
    struct sf_stack_entry *entry = &grown[entries - 1];
    memset(entry, 0, sizeof *entry);
    entry->method = method;
    entry->cfg = calloc(1, method->cfg_bytes > 0 ? method->cfg_bytes : 1);
    if (entry->cfg == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for method %s", method->name);
    if (method->opts != NULL) sf_opt_defaults(method->opts, entry->cfg);
    stack->entries++;
    *entry_out = entry;
    return SF_OK;
}

sf_status sf_stack_add(struct sf_stack *stack, const char *method,
                       struct sf_stack_entry **entry_out)
{
    const struct sf_method *found = sf_method_find(method);
    if (found != NULL) return sf_stack_add_method(stack, found, entry_out);
    const char *nearest = sf_method_nearest(method);
    return SF_FAIL(SF_INVALID, "unknown method '%s'%s%s%s", method,
                   nearest != NULL ? "; did you mean '" : "", nearest != NULL ? nearest : "",
                   nearest != NULL ? "'?" : "");
}

static size_t rows_of(const struct sf_method *method)
{
    size_t rows = 0;
    while (method->opts != NULL && method->opts[rows].key != NULL) rows++;
    return rows;
}

sf_status sf_stack_place(struct sf_stack_entry *entry, const struct sf_opt *row, const char *place)
{
    size_t rows = rows_of(entry->method), at = (size_t)(row - entry->method->opts);
    SF_ASSERT(at < rows);
    if (entry->place == NULL) entry->place = calloc(rows, sizeof *entry->place);
    char *copy = entry->place != NULL ? strdup(place) : NULL;
    if (copy == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for method %s", entry->method->name);
    free(entry->place[at]);
    entry->place[at] = copy;
    return SF_OK;
}

static void free_places(struct sf_stack_entry *entry)
{
    for (size_t i = 0; entry->place != NULL && i < rows_of(entry->method); i++)
        free(entry->place[i]);
    free(entry->place);
}

static void free_checked(struct sf_stack_entry *entry)
{
    free(entry->layers);
    free(entry->shape.layer_group);
    free(entry->shape.head_class);
    free(entry->shape.acts_on);
    free(entry->shape.group_lanes);
    entry->layers = NULL;
    entry->shape = (struct sf_shape){ 0 };
}

void sf_stack_free(struct sf_stack *stack)
{
    for (int32_t i = 0; i < stack->entries; i++) {
        free_checked(&stack->entry[i]);
        free(stack->entry[i].cfg);
        free_places(&stack->entry[i]);
    }
    free(stack->entry);
    *stack = (struct sf_stack){ 0 };
}

/* ---- what the store can do ------------------------------------------------------------------ */
static sf_status lacks(const struct sf_stack_entry *entry, const char *what)
{
    return SF_FAIL(SF_UNSUPPORTED, "method %s needs %s, which this version does not have",
                   entry->method->name, what);
}

static sf_status check_needs(const struct sf_stack_entry *entry)
{
    static const struct { uint32_t need; const char *what; } needs[] = {
        { SF_NEED_TOKENS, "token ids on every stage" },
        { SF_NEED_SENTENCES, "sentence ends" },
        { SF_NEED_Q_MAX, "the largest queries of the prompt" },
        { SF_NEED_PROFILE, "a calibration profile" },
        { SF_NEED_INNER, "a method to refine" },
        { SF_NEED_SELECT_PREFILL, "picks in the prompt" },
    };
    uint32_t unknown = entry->plan.needs & ~(uint32_t)(SF_NEED_PRE_ROPE | SF_NEED_SELECT_DECODE);
    for (size_t i = 0; i < sizeof needs / sizeof needs[0]; i++) {
        if (entry->plan.needs & needs[i].need) return lacks(entry, needs[i].what);
        unknown &= ~needs[i].need;
    }
    return unknown == 0 ? SF_OK : lacks(entry, "something of which the store knows nothing");
}

/* Picks in decode are of slots that a group shares, by landmarks. */
static sf_status check_picks(const struct sf_stack_entry *entry)
{
    const struct sf_plan *plan = &entry->plan;
    const char *name = entry->method->name;
    if (!(plan->needs & SF_NEED_SELECT_DECODE)) {
        if (plan->mark_slots != 0 || plan->pick_slots != 0)
            return SF_FAIL(SF_INVALID, "method %s plans landmarks for %d slots and picks of %d, but"
                           " not picks in decode", name, plan->mark_slots, plan->pick_slots);
        return SF_OK;
    }
    if (entry->method->policy->select == NULL)
        return SF_FAIL(SF_INVALID, "method %s asks for picks in decode but has no select()", name);
    if (!(plan->edits & SF_EDITS_GROUP))
        return lacks(entry, "picks of slots that no layer group shares");
    if (plan->mark_slots < 1 || plan->pick_slots < plan->mark_slots)
        return SF_FAIL(SF_INVALID, "method %s plans picks of %d slots by landmarks for %d", name,
                       plan->pick_slots, plan->mark_slots);
    return SF_OK;
}

static sf_status check_edits(const struct sf_stack_entry *entry)
{
    uint32_t edits = entry->plan.edits;
    if (edits & SF_EDITS_DENSE) return lacks(entry, "mixes by a dense matrix");
    if (edits & ~(uint32_t)(SF_EDITS_KEEP | SF_EDITS_MIX | SF_EDITS_TIER | SF_EDITS_ROTATE |
                            SF_EDITS_GROUP))
        return lacks(entry, "edits of which the store knows nothing");
    return SF_OK;
}

static sf_status check_tiers(const struct sf_stack_entry *entry)
{
    const struct sf_plan *plan = &entry->plan;
    if (plan->tiers < 0 || plan->tiers > SF_TIERS)
        return SF_FAIL(SF_INVALID, "method %s plans %d tiers, at most %d are possible",
                       entry->method->name, plan->tiers, SF_TIERS);
    for (int32_t t = 0; t < SF_TIERS; t++) {
        const struct sf_tier *tier = &plan->tier[t];
        if (t > 0 && t >= plan->tiers) break;
        char what[64];
        snprintf(what, sizeof what, "the codec %s", tier->codec != NULL ? tier->codec : "raw");
        if (sf_codec_find(tier->codec) == NULL) return lacks(entry, what);
        if (tier->k_place != SF_ON_DEVICE || tier->v_place != SF_ON_DEVICE)
            return lacks(entry, "a host tier");
        if (tier->block_slots != 0)
            return lacks(entry, "slots that one edit must encode together");
        if (t == 0 && (sf_codec_find(tier->codec) != &sf_codec_raw || tier->codec_cfg[0] != 0))
            return SF_FAIL(SF_INVALID, "method %s: tier 0 is the raw one, in kv_cache.dtype",
                           entry->method->name);
    }
    if (plan->tiers > 1 && entry->method->policy->compress == NULL)
        return SF_FAIL(SF_INVALID, "method %s has no compress(), so nothing would ever come into"
                       " its %d tiers", entry->method->name, plan->tiers);
    if ((plan->edits & SF_EDITS_TIER) && plan->tiers < 2)
        return SF_FAIL(SF_INVALID, "method %s moves slots between tiers but has only one",
                       entry->method->name);
    return SF_OK;
}

static sf_status check_watch(const struct sf_stack_entry *entry, const struct sf_watch *watch)
{
    if (watch->fold == SF_FOLD_NONE)
        return watch->flags == 0 ? SF_OK
                                 : SF_FAIL(SF_INVALID, "method %s gives a watch flags and no fold",
                                           entry->method->name);
    if (watch->head_fold != SF_FOLD_SUM && watch->head_fold != SF_FOLD_MEAN &&
        watch->head_fold != SF_FOLD_MAX)
        return SF_FAIL(SF_INVALID, "method %s folds query heads by neither sum, mean nor maximum",
                       entry->method->name);
    if (watch->prompt_rows < -1 || watch->decode_rows < -1)
        return SF_FAIL(SF_INVALID, "method %s watches %d rows of the prompt and %d of the answer",
                       entry->method->name, watch->prompt_rows, watch->decode_rows);
    if (watch->flags & SF_WATCH_STORED && (watch->prompt_rows == 0 || watch->decode_rows == 0))
        return SF_FAIL(SF_INVALID, "method %s keeps queries, but of how many rows of the %s it does"
                       " not say", entry->method->name,
                       watch->prompt_rows == 0 ? "prompt" : "answer");
    if (entry->plan.prefix == SF_PREFIX_KV)
        return SF_FAIL(SF_INVALID, "method %s watches attention, so its prompts cannot share pages"
                       " alone: its prefix is NONE or KV_AND_MASS", entry->method->name);
    if (entry->plan.tiers > 1 &&
        (watch->fold == SF_FOLD_MEAN || (watch->flags & SF_WATCH_STORED)))
        return lacks(entry, "means over rows or kept queries where lanes have several tiers");
    return SF_OK;
}

/* Pressure comes between two steps at any time: the last rows before it are not known while they
 * run, and not every rank need have a lane that it concerns. */
static sf_status check_pressure(const struct sf_stack_entry *entry)
{
    const struct sf_plan *plan = &entry->plan;
    if (!(plan->whens & 1u << SF_AT_PRESSURE)) return SF_OK;
    if (plan->reduce_bytes > 0) return lacks(entry, "reductions under memory pressure");
    for (int w = 0; w < 2; w++)
        if (plan->watch[w].fold != SF_FOLD_NONE && plan->watch[w].decode_rows > 0)
            return lacks(entry, "the last rows before memory pressure");
    return SF_OK;
}

static sf_status check_plan(const struct sf_stack_entry *entry)
{
    const struct sf_plan *plan = &entry->plan;
    const struct sf_policy_ops *policy = entry->method->policy;
    SF_TRY(check_needs(entry));
    if (policy->admit != NULL) return lacks(entry, "rewritten prompts");
    SF_TRY(check_picks(entry));
    if (plan->whens & ~(1u << SF_AT_PREFILL_CHUNK | 1u << SF_AT_PREFILL_END | 1u << SF_AT_FULL |
                        1u << SF_AT_INTERVAL | 1u << SF_AT_PRESSURE))
        return lacks(entry, "events at sentence or turn ends");
    SF_TRY(check_edits(entry));
    SF_TRY(check_tiers(entry));
    for (int w = 0; w < 2; w++) SF_TRY(check_watch(entry, &plan->watch[w]));
    SF_TRY(check_pressure(entry));
    if (plan->draft.lookahead != 0 || plan->draft.window != 0)
        return lacks(entry, "a draft model");
    if (plan->v_top.slots != 0) return lacks(entry, "reading only the best values");
    if (plan->span_state_bytes > 0) return lacks(entry, "state per sequence");
    return SF_OK;
}

/* What no version could run: the author's mistakes. */
static sf_status check_sense(const struct sf_stack_entry *entry)
{
    const struct sf_plan *plan = &entry->plan;
    const struct sf_policy_ops *policy = entry->method->policy;
    const char *name = entry->method->name;
    if (plan->sink_tokens < 0 || plan->tail_tokens < 0 || plan->chunk_tokens < 0 ||
        plan->aux_bytes < 0 || plan->aux_bytes > 1024 || plan->scratch_bytes < 0)
        return SF_FAIL(SF_INVALID, "method %s plans %d sinks, %d tail tokens, chunks of %d tokens,"
                       " %d aux bytes and %lld scratch bytes", name, plan->sink_tokens,
                       plan->tail_tokens, plan->chunk_tokens, plan->aux_bytes,
                       (long long)plan->scratch_bytes);
    if ((plan->whens & 1u << SF_AT_INTERVAL) && plan->every_tokens < 1)
        return SF_FAIL(SF_INVALID, "method %s asks for an interval of %d tokens", name,
                       plan->every_tokens);
    if ((plan->whens & 1u << SF_AT_PREFILL_CHUNK) && plan->chunk_tokens < 1)
        return SF_FAIL(SF_INVALID, "method %s asks for an event at every prompt chunk but not for"
                       " its chunk_tokens, so what it does would depend on the load", name);
    if (plan->whens == 0 && (policy->compress != NULL || policy->score != NULL))
        return SF_FAIL(SF_INVALID, "method %s asks for no event, so it would never act", name);
    if (plan->whens != 0 && plan->edits == 0)
        return SF_FAIL(SF_INVALID, "method %s asks for events but declares no edit", name);
    if (policy->compress == NULL &&
        (plan->whens & (1u << SF_AT_INTERVAL | 1u << SF_AT_PREFILL_CHUNK)))
        return SF_FAIL(SF_INVALID, "method %s has no compress(), so only the end of the prompt and"
                       " a full lane can be its events", name);
    return SF_OK;
}

static sf_status check_foot(const struct sf_stack_entry *entry, const struct sf_spot *spot,
                            const struct sf_foot *foot)
{
    const struct sf_plan *plan = &entry->plan;
    const char *name = entry->method->name;
    if (foot->extra_bytes > 0) return lacks(entry, "state per lane");
    if (foot->marks < 0 || foot->marks > sf_marks_most(plan, spot->tokens))
        return SF_FAIL(SF_INVALID, "method %s states %d landmarks in layer %d head %d, at most %d"
                       " are possible", name, foot->marks, spot->layer, spot->head_global,
                       sf_marks_most(plan, spot->tokens));
    for (int t = 0; t < SF_TIERS; t++) {
        if (t > 0 && t >= plan->tiers && foot->slots_hi[t] != 0)
            return SF_FAIL(SF_INVALID, "method %s states %d slots in tier %d, its plan has %d",
                           name, foot->slots_hi[t], t, plan->tiers);
        if (t > 0 && t < plan->tiers && foot->slots_lo[t] != foot->slots_hi[t] &&
            sf_codec_facts(plan->tier[t].codec) & SF_CAN_GROUP)
            return SF_FAIL(SF_INVALID, "method %s states %d to %d slots of a group in layer %d head"
                           " %d, which do not depend on the data", name, foot->slots_lo[t],
                           foot->slots_hi[t], spot->layer, spot->head_global);
        if (foot->slots_lo[t] < 0 || foot->slots_lo[t] > foot->slots_hi[t] ||
            foot->slots_keep < 0 || foot->slots_trigger < 0)
            return SF_FAIL(SF_INVALID, "method %s states %d to %d slots, trigger %d, keep %d for"
                           " layer %d head %d", name, foot->slots_lo[t], foot->slots_hi[t],
                           foot->slots_trigger, foot->slots_keep, spot->layer,
                           spot->head_global);
    }
    if (foot->slots_keep > 0 && foot->slots_keep < spot->tokens &&
        (int64_t)plan->sink_tokens + plan->tail_tokens > foot->slots_keep)
        return SF_FAIL(SF_INVALID, "method %s protects %d sinks and %d newest tokens, more than the"
                       " %d slots that it keeps of layer %d head %d", name, plan->sink_tokens,
                       plan->tail_tokens, foot->slots_keep, spot->layer, spot->head_global);
    return SF_OK;
}

/* What a method that answers to memory pressure says of a lane that was tightened. */
static sf_status check_tightened(const struct sf_stack_entry *entry, const struct sf_setup *setup,
                                 const struct sf_spot *spot, const struct sf_foot *before)
{
    struct sf_spot after = *spot;
    struct sf_foot foot = { .slots_peak = spot->prompt };
    after.tightened = 1;
    SF_TRY(entry->method->policy->footprint(setup, &after, &foot));
    SF_TRY(check_foot(entry, &after, &foot));
    if (before->slots_keep == 0 || foot.slots_keep == 0 || foot.slots_trigger == 0 ||
        foot.slots_keep > before->slots_keep || foot.slots_trigger > before->slots_trigger)
        return SF_FAIL(SF_INVALID, "method %s answers to memory pressure, but the budget of layer"
                       " %d head %d goes from %d slots (trigger %d) to %d (%d)",
                       entry->method->name, spot->layer, spot->head_global, before->slots_keep,
                       before->slots_trigger, foot.slots_keep, foot.slots_trigger);
    return SF_OK;
}

/* A footprint that could be asked at any time is asked once a lane, at the longest prompt. */
static sf_status check_footprints(const struct sf_stack_entry *entry, const struct sf_setup *setup)
{
    for (int32_t l = 0; l < setup->layers; l++)
        for (int32_t h = 0; h < setup->layer[l].groups; h++) {
            struct sf_spot spot = { .layer = l, .head_global = h, .prompt = setup->tokens_max,
                                    .tokens = setup->tokens_max };
            struct sf_foot foot = { .slots_peak = spot.prompt };
            if (!entry->shape.acts_on[setup->layer[l].lane_first + h]) continue;
            SF_TRY(entry->method->policy->footprint(setup, &spot, &foot));
            SF_TRY(check_foot(entry, &spot, &foot));
            if (entry->plan.whens & 1u << SF_AT_PRESSURE)
                SF_TRY(check_tightened(entry, setup, &spot, &foot));
        }
    return SF_OK;
}

/* ---- one entry ------------------------------------------------------------------------------ */
/* A layer belongs to its group as the one before it does. */
static sf_status check_neighbours(const struct sf_stack_entry *entry, const struct sf_setup *setup,
                                  int32_t l)
{
    const struct sf_layer *before = &setup->layer[l - 1], *layer = &setup->layer[l];
    const int16_t *group = entry->shape.layer_group;
    const char *name = entry->method->name;
    for (int32_t other = 0; other < l - 1; other++)
        if (group[other] == group[l] && group[l] != group[l - 1])
            return SF_FAIL(SF_INVALID, "method %s puts layers %d and %d into one group, but not all"
                           " between them", name, other, l);
    if (group[l] != group[l - 1]) return SF_OK;
    if (before->k_dim != layer->k_dim || before->v_dim != layer->v_dim ||
        before->rope_dim != layer->rope_dim || before->window != layer->window ||
        before->v_is_k_prefix != layer->v_is_k_prefix)
        return SF_FAIL(SF_INVALID, "method %s puts layers %d and %d into one group, but their heads"
                       " or their attention differ", name, l - 1, l);
    if (setup->stage != NULL && setup->stage[l] != setup->stage[l - 1])
        return SF_FAIL(SF_INVALID, "method %s puts layers %d and %d into one group, but they are in"
                       " different pipeline stages; change its groups or"
                       " parallel.pipeline_layers", name, l - 1, l);
    return SF_OK;
}

static sf_status check_groups(const struct sf_stack_entry *entry, const struct sf_setup *setup)
{
    const struct sf_plan *plan = &entry->plan;
    const char *name = entry->method->name;
    int grouped = 0, tier = 0;
    for (int32_t l = 0; l < setup->layers; l++) {
        grouped |= entry->shape.layer_group[l] >= 0;
        if (l > 0 && entry->shape.layer_group[l] >= 0)
            SF_TRY(check_neighbours(entry, setup, l));
    }
    for (int32_t t = 1; t < plan->tiers; t++)
        tier += (sf_codec_facts(plan->tier[t].codec) & SF_CAN_GROUP) != 0;
    int edits = (plan->edits & SF_EDITS_GROUP) != 0;
    if (tier > 1 || edits != (tier == 1) || (grouped && !edits))
        return SF_FAIL(SF_INVALID, "method %s has %s layer groups, %d tiers for them, and declares"
                       " %s edits of groups", name, grouped ? "some" : "no", tier,
                       edits ? "some" : "no");
    if (edits && (plan->whens & ~(1u << SF_AT_PREFILL_END | 1u << SF_AT_INTERVAL)) != 0)
        return lacks(entry, "layer groups that are encoded but at a prompt's end or an interval");
    if (edits && (plan->whens & 1u << SF_AT_INTERVAL) && !plan->every_from_prompt)
        return lacks(entry, "intervals of layer groups that are not counted from the prompt's end");
    if (edits && plan->edits != SF_EDITS_GROUP)
        return SF_FAIL(SF_INVALID, "method %s edits lanes whose slots a group shares: what goes"
                       " from one of them would go from all", name);
    if (edits && (plan->watch[0].fold != SF_FOLD_NONE || plan->watch[1].fold != SF_FOLD_NONE))
        return lacks(entry, "statistics of attention over slots that a group shares");
    for (int32_t l = 0; l < setup->layers && edits; l++)
        for (int32_t h = 0; h < setup->layer[l].groups; h++)
            if (entry->shape.acts_on[setup->layer[l].lane_first + h] &&
                entry->shape.layer_group[l] < 0)
                return SF_FAIL(SF_INVALID, "method %s acts on layer %d, which is in no group",
                               name, l);
    return SF_OK;
}

/* A reduction, and a basis of several ranks, is over all heads of a layer: each rank that holds
 * some of them takes part in it. */
static sf_status check_whole_layers(const struct sf_stack_entry *entry,
                                    const struct sf_setup *setup)
{
    int32_t tier = sf_codec_group_tier(&entry->plan);
    int over = tier > 0 && sf_lowrank_over_ranks(setup, &entry->plan.tier[tier]);
    for (int32_t l = 0; l < setup->layers && (over || entry->plan.reduce_bytes > 0); l++) {
        const uint8_t *acts_on = entry->shape.acts_on + setup->layer[l].lane_first;
        for (int32_t h = 1; h < setup->layer[l].groups; h++)
            if (acts_on[h] != acts_on[0])
                return SF_FAIL(SF_UNSUPPORTED, "method %s decides over all heads of a layer, but in"
                               " layer %d it acts on some of them alone; give it whole layers, by"
                               " `layers:`", entry->method->name, l);
    }
    return SF_OK;
}

static sf_status check_entry(struct sf_stack_entry *entry, const struct sf_setup *common)
{
    struct sf_setup setup = *common;
    setup.cfg = entry->cfg;
    setup.place = (const char *const *)entry->place;
    setup.shape = &entry->shape;
    memset(&entry->plan, 0, sizeof entry->plan);
    SF_TRY(entry->method->policy->plan(&setup, &entry->plan));
    SF_TRY(check_plan(entry));
    SF_TRY(check_sense(entry));
    SF_TRY(check_groups(entry, &setup));
    SF_TRY(check_whole_layers(entry, &setup));
    return check_footprints(entry, &setup);
}

sf_status sf_stack_check(struct sf_stack *stack, const struct sf_setup *setup)
{
    for (int32_t i = 0; i < stack->entries; i++) {
        free_checked(&stack->entry[i]);
        if (stack->entry[i].method->policy == NULL)
            return SF_FAIL(SF_INVALID, "method %s converts models; it does not stand in "
                           "kv_cache.methods", stack->entry[i].method->name);
    }
    SF_TRY(sf_stack_lanes(stack, setup));
    for (int32_t i = 0; i < stack->entries; i++) SF_TRY(check_entry(&stack->entry[i], setup));
    return sf_stack_disjoint(stack, setup);
}

int sf_stack_tiers_fit(const struct sf_stack *stack, const struct sf_setup *setup,
                       enum sf_dtype dtype)
{
    for (int32_t i = 0; i < stack->entries; i++)
        for (int32_t l = 0; l < setup->layers; l++) {
            const struct sf_layer *layer = &setup->layer[l];
            struct sf_layout raw = { dtype, setup->page_slots, layer->k_dim, layer->v_dim }, tier;
            int acts = 0;
            for (int32_t h = 0; h < layer->groups; h++)
                acts |= stack->entry[i].shape.acts_on[layer->lane_first + h];
            for (int32_t t = 1; acts && t < stack->entry[i].plan.tiers; t++)
                if (sf_codec_layout(&stack->entry[i].plan, t, &raw, &tier) != SF_OK) return 0;
        }
    return 1;
}

const struct sf_method *sf_stack_grouped(const struct sf_stack *stack)
{
    for (int32_t i = 0; i < stack->entries; i++)
        if (sf_codec_group_tier(&stack->entry[i].plan) > 0) return stack->entry[i].method;
    return NULL;
}

int32_t sf_stack_interval(const struct sf_stack *stack)
{
    int32_t all = 0;                    /* greatest common divisor */
    for (int32_t i = 0; i < stack->entries; i++) {
        const struct sf_plan *plan = &stack->entry[i].plan;
        if (sf_codec_group_tier(plan) == 0 || !(plan->whens & 1u << SF_AT_INTERVAL)) continue;
        int32_t a = plan->every_tokens, b = all;
        while (b != 0) {
            int32_t rest = a % b;
            a = b;
            b = rest;
        }
        all = a;
    }
    return all;
}

int sf_stack_tightens(const struct sf_stack *stack)
{
    for (int32_t i = 0; i < stack->entries; i++)
        if (stack->entry[i].plan.whens & 1u << SF_AT_PRESSURE) return 1;
    return 0;
}

int32_t sf_stack_entry_of(const struct sf_stack *stack, const struct sf_setup *setup, int32_t layer,
                          int32_t head_global)
{
    int32_t lane = setup->layer[layer].lane_first + head_global;
    for (int32_t i = 0; i < stack->entries; i++)
        if (stack->entry[i].shape.acts_on != NULL && stack->entry[i].shape.acts_on[lane]) return i;
    return -1;
}

/* ---- the model as methods see it ------------------------------------------------------------ */
sf_status sf_setup_make(const struct sf_model_desc *desc, int32_t tp_size, int32_t page_slots,
                        int32_t tokens_max, struct sf_setup *setup_out)
{
    struct sf_layer *layer = calloc((size_t)desc->layers, sizeof *layer);
    if (layer == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d layers", desc->layers);
    int32_t lanes = 0;
    for (int32_t l = 0; l < desc->layers; l++) {
        const struct sf_layer_desc *from = &desc->layer[l];
        layer[l] = (struct sf_layer){ .q_heads = from->q_heads, .k_heads = from->kv_heads,
                                      .v_heads = from->kv_heads, .groups = from->kv_heads,
                                      .k_per_group = 1, .v_per_group = 1, .lane_first = lanes,
                                      .k_dim = from->k_dim, .v_dim = from->v_dim,
                                      .rope_dim = desc->rope_dim, .window = from->window };
        lanes += from->kv_heads;
    }
    *setup_out = (struct sf_setup){ .model = desc, .layer = layer, .layers = desc->layers,
                                    .lanes = lanes, .tokens_max = tokens_max, .tp_size = tp_size,
                                    .page_slots = page_slots };
    return SF_OK;
}

void sf_setup_free(struct sf_setup *setup)
{
    free((void *)(uintptr_t)setup->layer);
    free((void *)(uintptr_t)setup->stage);
    *setup = (struct sf_setup){ 0 };
}
