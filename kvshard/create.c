/* kvshard/create.c: making a store: its layers, its methods, its pool, and the arrays of a step. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kvshard/copies.h"
#include "kvshard/watch.h"

static sf_status check_spec(const struct sf_store_spec *spec)
{
    int32_t blocks = spec->page_slots / SF_BLOCK_SLOTS;
    if (spec->page_slots < SF_BLOCK_SLOTS || spec->page_slots % SF_BLOCK_SLOTS != 0 ||
        (blocks & (blocks - 1)) != 0)
        return SF_FAIL(SF_INVALID, "block_size: %d slots, it must be 16 x 2^k", spec->page_slots);
    if (spec->seqs_max < 1 || spec->rows_max < 1)
        return SF_FAIL(SF_INVALID, "a cache for %d sequences and %d rows", spec->seqs_max,
                       spec->rows_max);
    SF_ASSERT(spec->layers >= 1 && spec->layer_first >= 0);
    SF_ASSERT(spec->layer_first + spec->layers <= spec->setup->layers);
    for (int32_t i = 0; i < spec->layers; i++) {
        const struct sf_store_layer *layer = &spec->layer[i];
        if (layer->k_dim < 1 || layer->v_dim < 1 || (spec->dtype == SF_BF16 && layer->k_dim % 2))
            return SF_FAIL(SF_UNSUPPORTED, "layer %d: heads of %d and %d elements in %s",
                           spec->layer_first + i, layer->k_dim, layer->v_dim,
                           sf_dtype_name(spec->dtype));
    }
    return SF_OK;
}

/* ---- layers --------------------------------------------------------------------------------- */
static sf_status create_tiers(struct sf_layer_state *state, const struct sf_store_spec *spec)
{
    int32_t methods = spec->stack ? spec->stack->entries : 0;
    void *block;
    SF_TRY(sf_alloc((size_t)methods * SF_TIERS * sizeof *state->tier_layout,
                    "tiers of a layer", &block));
    state->tier_layout = block;
    for (int32_t m = 0; m < methods; m++) {
        int acts = 0;
        for (int32_t l = 0; l < state->spec.lanes; l++) acts |= state->method[l] == m;
        for (int32_t t = 0; acts && t < spec->stack->entry[m].plan.tiers; t++)
            SF_TRY(sf_codec_layout(&spec->stack->entry[m].plan, t, &state->layout,
                                   &state->tier_layout[m * SF_TIERS + t]));
    }
    return SF_OK;
}

static sf_status create_layer(struct sf_store *store, const struct sf_store_spec *spec, int32_t i)
{
    struct sf_layer_state *state = &store->layer[i];
    const struct sf_store_layer *layer = &spec->layer[i];
    size_t lanes = (size_t)layer->lanes;
    void *block;
    state->layout = (struct sf_layout){ spec->dtype, spec->page_slots, layer->k_dim, layer->v_dim };
    state->lane_first = store->lanes;
    store->lanes += layer->lanes;
    SF_TRY(sf_alloc(lanes * sizeof(struct sf_store_lane), "lanes of a layer", &block));
    if (lanes > 0) memcpy(block, layer->lane, lanes * sizeof(struct sf_store_lane));
    state->spec = *layer;
    state->spec.lane = block;
    SF_TRY(sf_alloc(lanes * sizeof *state->method, "methods of a layer", &block));
    state->method = block;
    SF_TRY(sf_alloc(lanes * SF_TIERS * sizeof *state->slot_bytes, "slot sizes of a layer",
                    &block));
    state->slot_bytes = block;
    for (int32_t l = 0; l < layer->lanes; l++)
        state->method[l] = spec->stack
            ? sf_stack_entry_of(spec->stack, spec->setup, spec->layer_first + i,
                                layer->lane[l].head_global)
            : -1;
    SF_TRY(create_tiers(state, spec));
    for (int32_t l = 0; l < layer->lanes; l++) {
        int64_t *slot_bytes = &state->slot_bytes[l * SF_TIERS];
        slot_bytes[0] = (int64_t)sf_layout_slot_bytes(&state->layout);
        if (state->method[l] < 0) continue;
        const struct sf_plan *plan = &spec->stack->entry[state->method[l]].plan;
        for (int32_t t = 1; t < plan->tiers; t++)
            slot_bytes[t] = (int64_t)sf_codec_of(plan, t)->slot_bytes(
                &state->tier_layout[state->method[l] * SF_TIERS + t]);
        for (int32_t t = 0; t < SF_TIERS; t++) slot_bytes[t] += plan->aux_bytes;
    }
    return SF_OK;
}

/* ---- methods -------------------------------------------------------------------------------- */
static sf_status open_methods(struct sf_store *store, const struct sf_store_spec *spec)
{
    void *block;
    int32_t methods = spec->stack ? spec->stack->entries : 0;
    SF_TRY(sf_alloc((size_t)methods * sizeof *store->method, "methods of the cache", &block));
    store->method = block;
    store->methods = methods;
    for (int32_t m = 0; m < methods; m++) {
        struct sf_store_method *method = &store->method[m];
        method->entry = &spec->stack->entry[m];
        method->store = store;
        method->setup = *spec->setup;
        method->setup.cfg = method->entry->cfg;
        method->setup.shape = &method->entry->shape;
        method->env = (struct sf_env){ .setup = &method->setup, .plan = &method->entry->plan,
                                       .k = spec->device->k, .device = spec->device };
        if (method->entry->method->policy->open)
            SF_TRY(method->entry->method->policy->open(&method->env));
        store->methods_open++;
    }
    return SF_OK;
}

static void close_methods(struct sf_store *store)
{
    while (store->methods_open > 0) {
        struct sf_store_method *method = &store->method[--store->methods_open];
        const struct sf_policy_ops *policy = method->entry->method->policy;
        if (policy->close) policy->close(&method->env);
    }
    sf_free(store->method);
}

/* ---- the pool and the arrays of a step ------------------------------------------------------ */
static sf_status create_pool(struct sf_store *store, const struct sf_store_spec *spec)
{
    struct sf_page_spec pages = { .device = spec->device, .pool_bytes = spec->pool_bytes,
                                  .page_slots = sf_store_page_places(store, spec->stack),
                                  .populate = spec->populate };
    for (int32_t i = 0; i < store->layers; i++) {
        size_t bytes = sf_layout_page_bytes(&store->layer[i].layout);
        if (bytes > pages.page_bytes) pages.page_bytes = bytes;
    }
    sf_page_notes(spec->stack, &pages);
    return sf_pages_create(&pages, &store->pool);
}

/* Room for the logits of a step that decodes, of as many lanes as fit (watch.c). */
static sf_status create_logits(struct sf_store *store, const struct sf_stack *stack)
{
    void *block;
    int64_t logits = sf_logits_room(stack, store->setup.tokens_max, store->page_slots,
                                    store->seqs_max, (int64_t)store->lse_stride);
    if (logits == 0) return SF_OK;
    SF_TRY(store->device->k->alloc(store->device, (size_t)logits * sizeof *store->logit,
                                   "logits of attention", &block));
    store->logit = block;
    store->logits = (size_t)logits;
    return SF_OK;
}

static sf_status create_step(struct sf_store *store, const struct sf_stack *stack)
{
    int32_t lanes = 1;
    for (int32_t i = 0; i < store->layers; i++)
        if (store->layer[i].spec.lanes > lanes) lanes = store->layer[i].spec.lanes;
    size_t jobs = (size_t)store->seqs_max * (size_t)lanes;
    void *block;
    SF_TRY(sf_alloc(jobs * sizeof *store->append, "append jobs", &block));
    store->append = block;
    SF_TRY(sf_alloc(jobs * sizeof *store->job, "attention jobs", &block));
    store->job = block;
    for (int32_t m = 0; m < store->methods; m++) {
        int32_t parts = sf_codec_parts(&store->method[m].entry->plan, store->setup.tokens_max);
        if (parts > store->parts_max) store->parts_max = parts;
    }
    if (store->parts_max > 0) {
        SF_TRY(sf_alloc(jobs * (size_t)store->parts_max * sizeof *store->part,
                        "tiers of attention jobs", &block));
        store->part = block;
    }
    SF_TRY(sf_alloc((size_t)store->rows_max * sizeof *store->row_pos, "positions of rows", &block));
    store->row_pos = block;
    SF_TRY(sf_alloc((size_t)store->seqs_max * sizeof *store->done, "rows done", &block));
    store->done = block;
    SF_TRY(sf_alloc((size_t)store->seqs_max * sizeof *store->rows, "rows of a round", &block));
    store->rows = block;
    if (!store->pool.mass[0] && !store->tap.rows) return SF_OK;
    SF_TRY(sf_alloc((size_t)store->seqs_max * sizeof *store->rows_end, "ends of rows", &block));
    store->rows_end = block;
    SF_TRY(sf_alloc(jobs * sizeof *store->watched, "lanes that are watched", &block));
    store->watched = block;
    for (int32_t i = 0; i < store->layers; i++) {
        size_t heads = 0;
        for (int32_t l = 0; l < store->layer[i].spec.lanes; l++)
            heads += (size_t)store->layer[i].spec.lane[l].q_heads;
        if (heads > store->lse_stride) store->lse_stride = heads;
    }
    SF_TRY(store->device->k->alloc(store->device, (size_t)store->rows_max * store->lse_stride *
                                                      sizeof *store->lse, "sums of attention",
                                   &block));
    store->lse = block;
    SF_TRY(create_logits(store, stack));
    return sf_copies_create(store);
}

/* ---- factors beside the layers -------------------------------------------------------------- */
/* Room for the largest group of a sequence that is as long as can be. */
static sf_status create_beside(struct sf_store *store, int32_t threads)
{
    size_t most = 0, bytes;
    if (threads == 0 || !store->device->host_memory) return SF_OK;
    for (int32_t g = 0; g < store->groups.groups; g++) {
        struct sf_lowrank_ask ask = sf_group_ask(store, g, store->setup.tokens_max);
        if (sf_lowrank_over_ranks(ask.setup, ask.tier)) continue;
        SF_TRY(sf_encode_bytes(&ask, SF_ENCODE_APART, store->device->k->factor_bytes, &bytes));
        if (bytes > most) most = bytes;
    }
    return most > 0 ? sf_beside_create(store->device, threads, most, &store->beside) : SF_OK;
}

static sf_status create(struct sf_store *store, const struct sf_store_spec *spec)
{
    void *block;
    SF_TRY(sf_alloc((size_t)spec->layers * sizeof *store->layer, "layers of the cache", &block));
    store->layer = block;
    store->layers = spec->layers;
    for (int32_t i = 0; i < spec->layers; i++) SF_TRY(create_layer(store, spec, i));
    SF_TRY(open_methods(store, spec));
    SF_TRY(sf_groups_create(store, spec->stack));
    SF_TRY(create_pool(store, spec));
    if (spec->stack) store->sharing = sf_stack_sharing(spec->stack);
    SF_TRY(sf_blocks_create(&store->pool, store->lanes, &store->blocks));
    SF_TRY(create_step(store, spec->stack));
    return create_beside(store, spec->threads_beside);
}

sf_status sf_store_create(const struct sf_store_spec *spec, struct sf_store **out)
{
    SF_TRY(check_spec(spec));
    void *block;
    SF_TRY(sf_alloc(sizeof(struct sf_store), "the cache", &block));
    struct sf_store *store = block;
    store->device = spec->device;
    store->setup = *spec->setup;
    store->tensor = spec->tensor;
    store->layer_first = spec->layer_first;
    store->page_slots = spec->page_slots;
    store->seqs_max = spec->seqs_max;
    store->rows_max = spec->rows_max;
    store->tap = spec->tap;
    sf_scratch_init(&store->host, NULL);
    sf_scratch_init(&store->kept, NULL);
    sf_scratch_init(&store->dev, spec->device);
    sf_status status = create(store, spec);
    if (status != SF_OK) {
        sf_store_destroy(store);
        return status;
    }
    *out = store;
    return SF_OK;
}

void sf_store_destroy(struct sf_store *store)
{
    if (!store) return;
    SF_ASSERT(store->seqs == 0);
    sf_beside_destroy(&store->beside);
    sf_copies_destroy(store);
    if (store->logit) store->device->k->free(store->device, store->logit);
    if (store->lse) store->device->k->free(store->device, store->lse);
    sf_free(store->watched);
    sf_free(store->rows_end);
    sf_free(store->rows);
    sf_free(store->done);
    sf_free(store->row_pos);
    sf_free(store->part);
    sf_free(store->job);
    sf_free(store->append);
    if (store->pool.page_bytes) sf_blocks_destroy(&store->pool, &store->blocks);
    if (store->pool.page_bytes) sf_pages_destroy(&store->pool);
    sf_groups_destroy(store);
    close_methods(store);
    for (int32_t i = 0; i < store->layers; i++) {
        sf_free((void *)(uintptr_t)store->layer[i].spec.lane);
        sf_free(store->layer[i].method);
        sf_free(store->layer[i].slot_bytes);
        sf_free(store->layer[i].tier_layout);
    }
    sf_free(store->layer);
    sf_scratch_destroy(&store->dev);
    sf_scratch_destroy(&store->kept);
    sf_scratch_destroy(&store->host);
    sf_free(store);
}
