/* coordinator/plan_groups.c: which layers share a basis, where, and of which ranks.
 *
 *   groups     xkv: 10 of up to 4 layers, ranks K 384 V 576: 0-3 4 | 5-8 9
 *              of fewer layers: 4, 9: K 96 V 144 */
#include "coordinator/plan_groups.h"

#include <string.h>

#include "base/json.h"

static const double MIB = 1024.0 * 1024.0;

/* Layers of the group that begins with `first`; 0 where none does, or none that has a lane (`on:`
 * may leave none). */
static int32_t group_layers(const struct sf_stack_entry *entry, const struct sf_setup *setup,
                            int32_t first)
{
    const int16_t *group = entry->shape.layer_group;
    int32_t layers = 0, lanes = 0;
    if (group[first] < 0 || (first > 0 && group[first - 1] == group[first])) return 0;
    for (; first + layers < setup->layers && group[first + layers] == group[first]; layers++) {
        const struct sf_layer *layer = &setup->layer[first + layers];
        for (int32_t h = 0; h < layer->groups; h++)
            lanes += entry->shape.acts_on[layer->lane_first + h];
    }
    return lanes > 0 ? layers : 0;
}

static int32_t stage_of(const struct sf_setup *setup, int32_t layer)
{
    return setup->stage != NULL ? setup->stage[layer] : 0;
}

static void write_layers(FILE *out, int32_t first, int32_t layers)
{
    fprintf(out, " %d", first);
    if (layers > 1) fprintf(out, "-%d", first + layers - 1);
}

/* "K 384 V 576", or without a basis of values "K 384, V exact". */
static void write_ranks(FILE *out, int32_t k, int32_t v)
{
    fprintf(out, v > 0 ? "K %d V %d" : "K %d, V exact", k, v);
}

/* Groups of fewer layers than the largest, each with its ranks. */
static void write_short(FILE *out, const struct sf_setup *setup,
                        const struct sf_stack_entry *entry, int32_t most)
{
    int any = 0;
    for (int32_t l = 0; l < setup->layers; l++) {
        int32_t layers = group_layers(entry, setup, l), k, v;
        if (layers == 0 || layers == most) continue;
        sf_account_group_ranks(setup, entry, l, &k, &v);
        fprintf(out, any ? ";" : "           shorter:");
        write_layers(out, l, layers);
        fputs(" has ", out);
        write_ranks(out, k, v);
        any = 1;
    }
    if (any) fputc('\n', out);
}

static void write_entry(FILE *out, const struct sf_setup *setup,
                        const struct sf_stack_entry *entry)
{
    int32_t groups = 0, most = 0, longest = 0, k, v;
    for (int32_t l = 0; l < setup->layers; l++) {
        int32_t layers = group_layers(entry, setup, l);
        groups += layers > 0;
        if (layers > most) {
            most = layers;
            longest = l;
        }
    }
    if (groups == 0) return;
    sf_account_group_ranks(setup, entry, longest, &k, &v);
    fprintf(out, "groups     %s: %d of up to %d layers, ranks ", entry->method->name, groups, most);
    write_ranks(out, k, v);
    fprintf(out, "%s:", sf_account_replicated(setup, entry) ? ", in full on each tensor rank"
                       : setup->tp_size > 1               ? " on each tensor rank"
                                                          : "");
    for (int32_t l = 0, stage = -1; l < setup->layers; l++) {
        int32_t layers = group_layers(entry, setup, l);
        if (layers == 0) continue;
        if (stage >= 0 && stage != stage_of(setup, l)) fprintf(out, " |");
        stage = stage_of(setup, l);
        write_layers(out, l, layers);
    }
    fputc('\n', out);
    write_short(out, setup, entry, most);
    if (sf_account_replicated(setup, entry) && setup->tp_size > 2)
        fprintf(out, "           warning: %d copies of each basis, which seldom pay beyond 2;"
                " tp_mode: local_heads has none\n", setup->tp_size);
    if (entry->plan.sink_tokens == 0)
        fprintf(out, "           warning: the first tokens are in the bases too, which can cost"
                " much quality; num_sink_tokens: 4 keeps them raw (docs/quality.md)\n");
}

/* ---- segments of the answer ----------------------------------------------------------------- */
/* Stored bytes that `every` tokens behind a prompt come to, on all ranks of a copy of the model. */
static sf_status growth(const struct sf_launch_plan *plan, const struct sf_stack *stack,
                        int32_t prompt, int32_t every, int64_t *bytes_out)
{
    *bytes_out = 0;
    for (int32_t r = 0; r < plan->tensor * plan->pipeline; r++) {
        struct sf_cost before, after;
        SF_TRY(sf_account_sequence(&plan->setup, stack, &plan->rank[r].lanes, plan->kv_dtype,
                                   prompt, prompt, &before));
        SF_TRY(sf_account_sequence(&plan->setup, stack, &plan->rank[r].lanes, plan->kv_dtype,
                                   prompt, prompt + every, &after));
        *bytes_out += after.bytes_hi - before.bytes_hi;
    }
    return SF_OK;
}

/* Bytes of so many tokens in the lanes of the entry, exact. */
static sf_status exact_growth(const struct sf_launch_plan *plan, const struct sf_stack_entry *entry,
                              int32_t every, int64_t *bytes_out)
{
    const struct sf_setup *setup = &plan->setup;
    *bytes_out = 0;
    for (int32_t l = 0; l < setup->layers; l++)
        for (int32_t h = 0; h < setup->layer[l].groups; h++) {
            struct sf_spot spot = { .layer = l, .head_global = h, .prompt = every,
                                    .tokens = every };
            struct sf_lane_cost cost;
            if (!entry->shape.acts_on[setup->layer[l].lane_first + h]) continue;
            SF_TRY(sf_account_lane(setup, NULL, plan->kv_dtype, &spot, &cost));
            *bytes_out += cost.bytes_exact;
        }
    return SF_OK;
}

/* What sealing costs, and what it saves: of the entry alone, all other lanes exact. */
static sf_status write_segments(FILE *out, const struct sf_launch_plan *plan,
                                struct sf_stack_entry *entry)
{
    struct sf_stack one = { .entry = entry, .entries = 1 };
    int32_t every = entry->plan.every_tokens;
    int32_t prompt = entry->plan.sink_tokens > 1 ? entry->plan.sink_tokens : 1;
    int64_t sealed, exact, own;
    if (!(entry->plan.edits & SF_EDITS_GROUP) || every == 0) return SF_OK;
    SF_TRY(growth(plan, &one, prompt, every, &sealed));
    SF_TRY(growth(plan, NULL, prompt, every, &exact));
    SF_TRY(exact_growth(plan, entry, every, &own));
    if (own == 0) return SF_OK;         /* it acts on no lane */
    double takes = (double)(own - (exact - sealed)) / MIB;
    fprintf(out, "           refactor_every %d: each so many tokens of an answer come to %.2f MiB"
                 " with a basis of their own, %.2f raw\n", every, takes, (double)own / MIB);
    return SF_OK;
}

/* ---- all of it ------------------------------------------------------------------------------ */
int sf_plan_groups_slow(const struct sf_launch_plan *plan, const struct sf_config *cfg,
                        char words_out[SF_SLOW_WORDS])
{
    double most = 0;
    for (int32_t m = 0; m < cfg->kv.stack.entries; m++)
        for (int32_t l = 0; l < plan->setup.layers; l++) {
            double seconds = sf_account_silent_seconds(&plan->setup, &cfg->kv.stack.entry[m], l,
                                                       plan->tokens_max);
            if (seconds > most) most = seconds;
        }
    if (most < cfg->run.rank_timeout_s / 2) return 0;
    snprintf(words_out, SF_SLOW_WORDS, "a basis of %d tokens takes about %.0f s in one call, and a"
             " rank that is silent for run.rank_timeout_s, %g, ends the job; svd.method: randomized"
             " is never silent for long", plan->tokens_max, most, cfg->run.rank_timeout_s);
    return 1;
}

sf_status sf_plan_groups_text(const struct sf_launch_plan *plan, const struct sf_config *cfg,
                              FILE *out)
{
    const struct sf_stack *stack = &cfg->kv.stack;
    char words[SF_SLOW_WORDS];
    for (int32_t m = 0; m < stack->entries; m++) {
        write_entry(out, &plan->setup, &stack->entry[m]);
        SF_TRY(write_segments(out, plan, &stack->entry[m]));
    }
    if (sf_plan_groups_slow(plan, cfg, words)) fprintf(out, "           warning: %s\n", words);
    return SF_OK;
}

static struct sf_json *group_json(const struct sf_launch_plan *plan,
                                  const struct sf_stack_entry *entry, int32_t first,
                                  int32_t layers, sf_status *status)
{
    struct sf_json *group = sf_json_new(SF_JSON_OBJECT), *list = sf_json_new(SF_JSON_ARRAY);
    int32_t stage = stage_of(&plan->setup, first), k, v;
    for (int32_t l = first; l < first + layers; l++) {
        sf_status pushed = sf_json_append(list, sf_json_new_int(l));
        if (*status == SF_OK) *status = pushed;
    }
    sf_account_group_ranks(&plan->setup, entry, first, &k, &v);
    sf_json_put(status, group, "layers", list);
    sf_json_put(status, group, "stage", sf_json_new_int(stage));
    sf_json_put(status, group, "node", sf_json_new_int(plan->rank[stage * plan->tensor].node));
    sf_json_put(status, group, "method",
                sf_json_new_text(entry->method->name, strlen(entry->method->name)));
    sf_json_put(status, group, "rank_k", sf_json_new_int(k));
    sf_json_put(status, group, "rank_v", sf_json_new_int(v));
    sf_json_put(status, group, "replicated",
                sf_json_new(sf_account_replicated(&plan->setup, entry) ? SF_JSON_TRUE
                                                                     : SF_JSON_FALSE));
    return group;
}

struct sf_json *sf_plan_groups_json(const struct sf_launch_plan *plan, const struct sf_stack *stack,
                                    sf_status *status)
{
    struct sf_json *array = sf_json_new(SF_JSON_ARRAY);
    for (int32_t m = 0; m < stack->entries; m++)
        for (int32_t l = 0; l < plan->setup.layers; l++) {
            int32_t layers = group_layers(&stack->entry[m], &plan->setup, l);
            if (layers == 0) continue;
            sf_status pushed = sf_json_append(array, group_json(plan, &stack->entry[m], l, layers,
                                                                status));
            if (*status == SF_OK) *status = pushed;
        }
    return array;
}
