/* kvshard/tighten.c: budgets of lanes, and how memory pressure lowers them.
 *
 * A budget is footprint()'s answer for the prompt's length and for how often the sequence has been
 * tightened.  The scheduler asks the same function (account.h) before it tightens, so what it gives
 * to others is what comes free here.
 *
 *   slots   _/|_/|_/|_ trigger                      a lane of 40 to 47 slots that is tightened
 *          /          keep      |                   to 28 to 35
 *                               |__/|_/|_ trigger
 *                       pressure      keep */
#include <string.h>

#include "base/clock.h"
#include "kvshard/store_impl.h"

sf_status sf_seq_budget(const struct sf_store *store, const struct sf_seq *seq, int32_t layer,
                        int32_t lane, struct sf_foot *foot_out)
{
    const struct sf_layer_state *state = &store->layer[layer];
    struct sf_foot foot = { .slots_peak = seq->prompt };
    if (state->method[lane] >= 0) {
        const struct sf_store_method *method = &store->method[state->method[lane]];
        struct sf_spot spot = { .layer = store->layer_first + layer,
                                .head_global = state->spec.lane[lane].head_global,
                                .prompt = seq->prompt, .tokens = seq->prompt,
                                .tightened = seq->tightened };
        SF_TRY(method->entry->method->policy->footprint(&method->setup, &spot, &foot));
    }
    *foot_out = foot;
    return SF_OK;
}

static int answers(const struct sf_store *store, int32_t layer, int32_t lane)
{
    int32_t method = store->layer[layer].method[lane];
    return method >= 0 && store->method[method].entry->plan.whens & 1u << SF_AT_PRESSURE;
}

static sf_status lower_budgets(struct sf_store *store, struct sf_seq *seq, int32_t layer)
{
    for (int32_t l = 0; l < store->layer[layer].spec.lanes; l++) {
        struct sf_kv_lane *lane = sf_store_lane_of(store, seq, layer, l);
        struct sf_foot foot;
        if (!answers(store, layer, l)) continue;
        SF_TRY(sf_seq_budget(store, seq, layer, l, &foot));
        if (foot.slots_keep == 0) continue;     /* it has no smaller one, as account.c counts */
        if (foot.slots_keep < lane->slots_keep) lane->slots_keep = foot.slots_keep;
        if (foot.slots_trigger < lane->slots_trigger) lane->slots_trigger = foot.slots_trigger;
    }
    return SF_OK;
}

/* An edit is held to the budget when it is given; here it is seen that there was one. */
static sf_status check_budgets(const struct sf_store *store, const struct sf_seq *seq,
                               int32_t layer)
{
    for (int32_t l = 0; l < store->layer[layer].spec.lanes; l++) {
        const struct sf_kv_lane *lane = sf_store_lane_of(store, seq, layer, l);
        if (!answers(store, layer, l)) continue;
        const struct sf_stack_entry *entry = store->method[store->layer[layer].method[l]].entry;
        int32_t most = lane->slots_keep, guarded = entry->plan.sink_tokens +
                                                   entry->plan.tail_tokens;
        if (sf_lane_total(lane) > (most > guarded ? most : guarded))
            return SF_FAIL(SF_INVALID, "%s: layer %d head %d has %d slots left under memory"
                           " pressure, its budget is %d", entry->method->name,
                           store->layer_first + layer,
                           store->layer[layer].spec.lane[l].head_global, sf_lane_total(lane), most);
    }
    return SF_OK;
}

static sf_status tighten(struct sf_store *store, struct sf_seq *seq)
{
    const struct sf_kv_item item = { .seq = seq };
    const struct sf_kv_step step = { .item = &item, .items = 1 };
    store->rows[0] = 1;                 /* as if its last row had just run */
    for (int32_t layer = 0; layer < store->layers; layer++) {
        SF_TRY(lower_budgets(store, seq, layer));
        SF_TRY(sf_events_pressure(store, layer, &step));
        SF_TRY(check_budgets(store, seq, layer));
    }
    return SF_OK;
}

sf_status sf_store_tighten(struct sf_store *store, struct sf_seq *seq, int32_t tokens)
{
    for (int32_t layer = 0; layer < store->layers; layer++)
        if (seq->tokens[layer] != tokens || tokens < seq->prompt)
            return SF_FAIL(SF_INTERNAL, "sequence %lld is tightened at %d tokens, layer %d has %d"
                           " of its prompt of %d", (long long)seq->id, tokens,
                           store->layer_first + layer, seq->tokens[layer], seq->prompt);
    int64_t start = sf_now_ns();
    seq->tightened++;
    sf_status status = tighten(store, seq);
    store->seconds.edit += sf_seconds_since(start);
    return status;
}
