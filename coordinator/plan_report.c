/* coordinator/plan_report.c: the plan in two forms, and the numbers that both show. */
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "coordinator/plan_groups.h"
#include "coordinator/plan_impl.h"
#include "coordinator/plan_traffic.h"
#include "kernels/device.h"

static const double MIB = 1024.0 * 1024.0;

/* ---- numbers --------------------------------------------------------------------------------- */
int32_t sf_plan_lengths(const struct sf_launch_plan *plan, int32_t lengths_out[SF_LENGTHS_MAX])
{
    int32_t count = 0;
    for (int64_t length = 1024; length < plan->tokens_max; length *= 2)
        lengths_out[count++] = (int32_t)length;
    SF_ASSERT(count < SF_LENGTHS_MAX);
    lengths_out[count++] = plan->tokens_max;
    return count;
}

sf_status sf_plan_costs_make(const struct sf_launch_plan *plan, const struct sf_stack *stack,
                             struct sf_plan_costs *out)
{
    struct sf_plan_costs costs = { .group = plan->tensor * plan->pipeline };
    costs.lengths = sf_plan_lengths(plan, costs.length);
    costs.at = calloc((size_t)costs.lengths * (size_t)costs.group, sizeof *costs.at);
    if (costs.at == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d costs", costs.group);
    sf_status status = SF_OK;
    for (int32_t i = 0; i < costs.lengths; i++)
        for (int32_t r = 0; r < costs.group && status == SF_OK; r++)
            status = sf_account_sequence(&plan->setup, stack, &plan->rank[r].lanes,
                                         plan->kv_dtype, costs.length[i], costs.length[i],
                                         &costs.at[i * costs.group + r]);
    if (status == SF_OK) *out = costs;
    else free(costs.at);
    return status;
}

void sf_plan_costs_free(struct sf_plan_costs *costs)
{
    free(costs->at);
    costs->at = NULL;
}

/* The scheduler promises a sequence its peak until its prompt has ended, then what it comes to. */
int64_t sf_plan_capacity(const struct sf_launch_plan *plan, const struct sf_plan_costs *costs,
                         int32_t index)
{
    const struct sf_cost *cost = &costs->at[index * costs->group];
    int64_t least = INT64_MAX;
    for (int32_t r = 0; r < plan->ranks; r++) {
        int64_t seqs = sf_account_holds(plan->rank[r].pages, &cost[r % costs->group]);
        if (seqs < least) least = seqs;
    }
    return least < INT64_MAX / plan->data ? least * plan->data : least;
}

double sf_plan_ratio(const struct sf_plan_costs *costs)
{
    const struct sf_cost *cost = &costs->at[(costs->lengths - 1) * costs->group];
    double stored = 0, exact = 0;
    for (int32_t r = 0; r < costs->group; r++) {
        stored += (double)cost[r].bytes_hi;
        exact += (double)cost[r].bytes_exact;
    }
    return exact > 0 ? stored / exact : 1;
}

/* ---- JSON ------------------------------------------------------------------------------------ */
/* The tree reports a missing member when the next one is set: `put` keeps the first failure. */
struct json_writer { sf_status status; };

static void put(struct json_writer *w, struct sf_json *object, const char *key,
                struct sf_json *value)
{
    sf_status status = sf_json_set(object, key, value);
    if (w->status == SF_OK) w->status = status;
}

static void push(struct json_writer *w, struct sf_json *array, struct sf_json *value)
{
    sf_status status = sf_json_append(array, value);
    if (w->status == SF_OK) w->status = status;
}

static struct sf_json *pair(struct json_writer *w, int64_t a, int64_t b)
{
    struct sf_json *array = sf_json_new(SF_JSON_ARRAY);
    push(w, array, sf_json_new_int(a));
    push(w, array, sf_json_new_int(b));
    return array;
}

static struct sf_json *heads_json(struct json_writer *w, const struct sf_share *share)
{
    struct sf_json *layers = sf_json_new(SF_JSON_ARRAY);
    for (int32_t i = 0; i < share->layer_count; i++) {
        struct sf_json *heads = sf_json_new(SF_JSON_ARRAY);
        for (int32_t j = share->kv_ptr[i]; j < share->kv_ptr[i + 1]; j++)
            push(w, heads, sf_json_new_int(share->kv[j].kv_head));
        push(w, layers, heads);
    }
    return layers;
}

/* What the cache takes beside its pages. */
static struct sf_json *beside_json(struct json_writer *w, const struct sf_cache_bytes *cache)
{
    struct sf_json *json = sf_json_new(SF_JSON_OBJECT);
    put(w, json, "total", sf_json_new_int(sf_cache_bytes_sum(cache)));
    put(w, json, "tables", sf_json_new_int(cache->tables));
    put(w, json, "mirrors", sf_json_new_int(cache->mirrors));
    put(w, json, "masses", sf_json_new_int(cache->masses));
    put(w, json, "step", sf_json_new_int(cache->step));
    put(w, json, "copies", sf_json_new_int(cache->copies));
    put(w, json, "sequences", sf_json_new_int(cache->seqs));
    put(w, json, "beside", sf_json_new_int(cache->beside));
    put(w, json, "scratch", sf_json_new_int(cache->scratch));
    return json;
}

static struct sf_json *rank_json(struct json_writer *w, const struct sf_launch_plan *plan,
                                 const struct sf_plan_costs *costs, int32_t r)
{
    const struct sf_plan_rank *rank = &plan->rank[r];
    const struct sf_share *share = &rank->share;
    struct sf_json *json = sf_json_new(SF_JSON_OBJECT), *at_len = sf_json_new(SF_JSON_OBJECT);
    struct sf_json *peak = sf_json_new(SF_JSON_OBJECT);
    put(w, json, "rank", sf_json_new_int(rank->rank));
    put(w, json, "node", sf_json_new_int(rank->node));
    put(w, json, "stage", sf_json_new_int(rank->stage));
    put(w, json, "tp_rank", sf_json_new_int(rank->tp_rank));
    put(w, json, "dp_rank", sf_json_new_int(rank->dp_rank));
    put(w, json, "layers", pair(w, share->layer_first,
                                share->layer_first + share->layer_count - 1));
    put(w, json, "kv_heads", heads_json(w, share));
    put(w, json, "weight_bytes", sf_json_new_int(rank->weight_bytes));
    put(w, json, "kv_bytes_per_token", sf_json_new_int(rank->kv_bytes_per_token));

    for (int32_t i = 0; i < costs->lengths; i++) {
        char key[16];
        const struct sf_cost *cost = &costs->at[i * costs->group + r % costs->group];
        snprintf(key, sizeof key, "%d", costs->length[i]);
        put(w, at_len, key, pair(w, cost->bytes_lo, cost->bytes_hi));
        put(w, peak, key, sf_json_new_int(cost->bytes_peak));
    }
    put(w, json, "kv_bytes_at_len", at_len);
    put(w, json, "kv_peak_bytes_at_len", peak);
    put(w, json, "max_kv_tokens", sf_json_new_int(rank->max_kv_tokens));
    put(w, json, "workspace_bytes", sf_json_new_int(rank->workspace_bytes));
    put(w, json, "library_bytes", sf_json_new_int(rank->library_bytes));
    put(w, json, "kv_beside_bytes", beside_json(w, &rank->cache));
    return json;
}

/* {"1024": sequences, ...}; *last_out: of the last length. */
static struct sf_json *capacity_json(struct json_writer *w, const struct sf_launch_plan *plan,
                                     const struct sf_plan_costs *costs, int64_t *last_out)
{
    struct sf_json *at = sf_json_new(SF_JSON_OBJECT);
    for (int32_t i = 0; i < costs->lengths; i++) {
        char key[16];
        *last_out = sf_plan_capacity(plan, costs, i);
        snprintf(key, sizeof key, "%d", costs->length[i]);
        put(w, at, key, sf_json_new_int(*last_out));
    }
    return at;
}

static void put_capacity(struct json_writer *w, const struct sf_launch_plan *plan,
                         const struct sf_config *cfg, const struct sf_plan_costs *costs,
                         const struct sf_plan_costs *exact, struct sf_json *root)
{
    struct sf_json *capacity = sf_json_new(SF_JSON_OBJECT);
    int64_t seqs = 0, unused;
    put(w, capacity, "max_num_seqs_at_len", capacity_json(w, plan, costs, &seqs));
    put(w, capacity, "exact_max_num_seqs_at_len", capacity_json(w, plan, exact, &unused));
    put(w, root, "capacity", capacity);
    put(w, root, "kv_ratio", sf_json_new_real(sf_plan_ratio(costs)));
    int bound = seqs < cfg->scheduler.max_num_seqs;     /* at the last, the planning length */
    put(w, root, "kv_bound", sf_json_new(bound ? SF_JSON_TRUE : SF_JSON_FALSE));
}

/* How level the tensor ranks are with heads in blocks, and as they are placed (plan_place.c). */
static struct sf_json *imbalance_json(struct json_writer *w, const struct sf_launch_plan *plan,
                                      const struct sf_model_desc *desc)
{
    struct sf_plan_level level[2] = { { 1, 1 }, { 1, 1 } };
    static const char *const key[] = { "identity", "placed" };
    struct sf_json *json = sf_json_new(SF_JSON_OBJECT);
    struct sf_json *memory = sf_json_new(SF_JSON_OBJECT), *layers = sf_json_new(SF_JSON_OBJECT);
    if (w->status == SF_OK) w->status = sf_plan_level(plan, desc, SF_PLACE_IDENTITY, &level[0]);
    if (w->status == SF_OK) w->status = sf_plan_level(plan, desc, plan->placing.rule, &level[1]);
    for (int i = 0; i < 2; i++) {
        put(w, memory, key[i], sf_json_new_real(level[i].memory));
        put(w, layers, key[i], sf_json_new_real(level[i].layers));
    }
    put(w, json, "memory", memory);
    put(w, json, "layers", layers);
    return json;
}

sf_status sf_launch_plan_json(const struct sf_launch_plan *plan, const struct sf_config *cfg,
                              const struct sf_model *model, char **text_out)
{
    struct json_writer w = { .status = SF_OK };
    struct sf_plan_costs costs, exact;
    SF_TRY(sf_plan_costs_make(plan, &cfg->kv.stack, &costs));
    sf_status status = sf_plan_costs_make(plan, NULL, &exact);
    if (status != SF_OK) {
        sf_plan_costs_free(&costs);
        return status;
    }
    struct sf_json *root = sf_json_new(SF_JSON_OBJECT), *ranks = sf_json_new(SF_JSON_ARRAY);
    put(&w, root, "fits", sf_json_new(plan->fits ? SF_JSON_TRUE : SF_JSON_FALSE));
    put(&w, root, "reason", plan->fits ? sf_json_new(SF_JSON_NULL)
                                       : sf_json_new_text(plan->reason, strlen(plan->reason)));
    put(&w, root, "compute", sf_json_new_words(sf_launch_plan_compute(plan)));
    for (int32_t r = 0; r < plan->ranks && w.status == SF_OK; r++)
        push(&w, ranks, rank_json(&w, plan, &costs, r));
    put(&w, root, "ranks", ranks);
    put(&w, root, "groups", sf_plan_groups_json(plan, &cfg->kv.stack, &w.status));

    put(&w, root, "comm", sf_plan_comm_json(plan, cfg, sf_model_desc(model), &w.status));
    put_capacity(&w, plan, cfg, &costs, &exact, root);
    put(&w, root, "imbalance", imbalance_json(&w, plan, sf_model_desc(model)));
    sf_plan_costs_free(&costs);
    sf_plan_costs_free(&exact);

    char *text = NULL;
    size_t bytes;
    if (w.status == SF_OK) w.status = sf_json_dump(root, 0, &text, &bytes);
    sf_json_free(root);
    if (w.status == SF_OK) *text_out = text;
    return w.status;
}

/* ---- text ------------------------------------------------------------------------------------ */
/* "2" where all layers have as many, else "1-2". */
static void heads_text(const struct sf_share *share, char *out, size_t bytes)
{
    int32_t least = INT32_MAX, most = 0;
    for (int32_t i = 0; i < share->layer_count; i++) {
        int32_t heads = share->kv_ptr[i + 1] - share->kv_ptr[i];
        if (heads < least) least = heads;
        if (heads > most) most = heads;
    }
    if (least == most) snprintf(out, bytes, "%d", most);
    else snprintf(out, bytes, "%d-%d", least, most);
}

static void write_ranks(FILE *out, const struct sf_launch_plan *plan)
{
    fprintf(out, "\nrank node stage tp dp  layers   KV heads  lanes  weights  buffers  KV/token"
                 "      pool    tokens\n");
    for (int32_t r = 0; r < plan->ranks; r++) {
        const struct sf_plan_rank *rank = &plan->rank[r];
        const struct sf_share *share = &rank->share;
        char layers[32], heads[32];
        snprintf(layers, sizeof layers, "%d-%d", share->layer_first,
                 share->layer_first + share->layer_count - 1);
        heads_text(share, heads, sizeof heads);
        fprintf(out, "%4d %4d %5d %2d %2d  %-7s  %8s %6d %8.1f %8.1f %9lld %9.1f %9lld\n",
                rank->rank, rank->node, rank->stage, rank->tp_rank, rank->dp_rank, layers, heads,
                share->kv_ptr[share->layer_count], (double)rank->weight_bytes / MIB,
                (double)rank->workspace_bytes / MIB, (long long)rank->kv_bytes_per_token,
                (double)rank->pool_bytes / MIB, (long long)rank->max_kv_tokens);
    }
    fprintf(out, "(weights, buffers, pool in MiB; KV/token in bytes, exact cache, copies included;"
                 " tokens: of the exact cache in the pool)\n");
    if (plan->rank[0].library_bytes > 0)
        fprintf(out, "(of the buffers, %.0f MiB on rank 0 are set aside for CUDA, cuBLAS and"
                     " NCCL)\n", (double)plan->rank[0].library_bytes / MIB);
}

static void write_memory(FILE *out, const struct sf_launch_plan *plan)
{
    double sum = 0, most = 0;
    int32_t who = 0;
    for (int32_t r = 0; r < plan->ranks; r++) {
        const struct sf_plan_rank *rank = &plan->rank[r];
        double bytes = (double)(rank->weight_bytes + rank->workspace_bytes + rank->pool_bytes +
                                sf_cache_bytes_sum(&rank->cache));
        sum += bytes;
        if (bytes > most) {
            most = bytes;
            who = r;
        }
    }
    fprintf(out, "\nmemory     %.1f MiB in all with full pools; most on rank %d, %.1f MiB;"
                 " loading passes %.1f MiB on top\n", sum / MIB, who, most / MIB,
            (double)plan->rank[who].load_bytes / MIB);
    const struct sf_cache_bytes *cache = &plan->rank[who].cache;
    fprintf(out, "           of that the cache beside its pages %.1f: tables %.1f, mirrors of slots"
                 " %.1f, attention's statistics %.1f, a step %.1f,\n"
                 "           rows of copies %.1f, sequences %.1f, factors beside the layers %.1f,"
                 " hooks at most %.1f\n",
            (double)sf_cache_bytes_sum(cache) / MIB, (double)cache->tables / MIB,
            (double)cache->mirrors / MIB, (double)cache->masses / MIB, (double)cache->step / MIB,
            (double)cache->copies / MIB, (double)cache->seqs / MIB, (double)cache->beside / MIB,
            (double)cache->scratch / MIB);
}

/* The dearest stage / the mean, of the costs of layers and head, with so many layers each. */
static double stage_level(const double *cost, double head, const int32_t *count, int32_t stages)
{
    double most = 0, sum = 0;
    for (int32_t s = 0, first = 0; s < stages; s++) {
        double bytes = s == stages - 1 ? head : 0;
        for (int32_t i = 0; i < count[s]; i++) bytes += cost[first + i];
        first += count[s];
        sum += bytes;
        if (bytes > most) most = bytes;
    }
    return sum > 0 ? most * stages / sum : 1;
}

/* How the stages are cut, and where methods move the cut, what the one of the exact cache would
 * have been.  cost: room for two costs of each layer; count for two counts of each stage. */
static sf_status write_cut(FILE *out, const struct sf_launch_plan *plan,
                           const struct sf_config *cfg, const struct sf_model_desc *desc,
                           double *cost, int32_t *count)
{
    double head;
    int differ = 0, given = cfg->parallel.layers.count != SF_OPT_AUTO;
    SF_TRY(sf_layer_costs(desc, plan, &plan->setup, &cfg->kv.stack, plan->pipeline, cost, &head));
    SF_TRY(sf_cut_layers(desc, plan, &plan->setup, NULL, plan->pipeline, count + plan->pipeline));
    fprintf(out, "\nstages     %s; the head counts as %.1f layers:",
            given ? "cut as parallel.pipeline_layers says"
                  : "cut to level the bytes that a step reads",
            cost[0] > 0 ? head / cost[0] : 0.0);
    for (int32_t s = 0; s < plan->pipeline; s++) {
        const struct sf_share *share = &plan->rank[s * plan->tensor].share;
        double bytes = share->last_stage ? head : 0;
        for (int32_t i = 0; i < share->layer_count; i++) bytes += cost[share->layer_first + i];
        fprintf(out, "%s %d layers%s %.1f MiB", s == 0 ? "" : " |", share->layer_count,
                share->last_stage ? " + head" : "", bytes / MIB);
        count[s] = share->layer_count;
        differ |= count[s] != count[plan->pipeline + s];
    }
    fputc('\n', out);
    if (!differ || given) return SF_OK;
    fprintf(out, "           dearest stage / mean: %.3f cut as for the exact cache (",
            stage_level(cost, head, count + plan->pipeline, plan->pipeline));
    for (int32_t s = 0; s < plan->pipeline; s++)
        fprintf(out, "%s%d", s == 0 ? "" : ", ", count[plan->pipeline + s]);
    fprintf(out, "), %.3f as cut\n", stage_level(cost, head, count, plan->pipeline));
    return SF_OK;
}

static sf_status write_stages(FILE *out, const struct sf_launch_plan *plan,
                              const struct sf_config *cfg, const struct sf_model_desc *desc)
{
    if (plan->pipeline == 1) return SF_OK;
    double *cost = calloc((size_t)desc->layers, sizeof *cost);
    int32_t *count = calloc((size_t)plan->pipeline, 2 * sizeof *count);
    sf_status status = cost != NULL && count != NULL
                       ? write_cut(out, plan, cfg, desc, cost, count)
                       : SF_FAIL(SF_NO_MEMORY, "no memory for %d layers", desc->layers);
    free(cost);
    free(count);
    return status;
}

/* Where some heads cost more than others: how level the tensor ranks are. */
static sf_status write_placement(FILE *out, const struct sf_launch_plan *plan,
                                 const struct sf_model_desc *desc)
{
    const double *cost = plan->placing.head_cost;
    int differ = 0;
    for (int32_t i = 1; i < plan->setup.lanes; i++)
        differ |= cost[i] < cost[0] || cost[i] > cost[0];
    if (!differ || plan->tensor == 1) return SF_OK;
    struct sf_plan_level before, after;
    SF_TRY(sf_plan_level(plan, desc, SF_PLACE_IDENTITY, &before));
    SF_TRY(sf_plan_level(plan, desc, plan->placing.rule, &after));
    fprintf(out, "KV heads   stored bytes at %d tokens, fullest tensor rank of a stage / mean:"
                 " %.3f identity, %.3f as placed\n", plan->tokens_max, before.memory, after.memory);
    fprintf(out, "           the same layer by layer, summed (what a step waits for):"
                 " %.3f identity, %.3f as placed\n", before.layers, after.layers);
    return SF_OK;
}

static sf_status write_capacity(FILE *out, const struct sf_launch_plan *plan,
                                const struct sf_config *cfg)
{
    struct sf_plan_costs costs, exact;
    int64_t seqs = 0;
    SF_TRY(sf_plan_costs_make(plan, &cfg->kv.stack, &costs));
    sf_status status = sf_plan_costs_make(plan, NULL, &exact);
    if (status != SF_OK) {
        sf_plan_costs_free(&costs);
        return status;
    }
    double ratio = sf_plan_ratio(&costs);
    fprintf(out, "capacity   sequences at once:");
    for (int32_t i = 0; i < costs.lengths; i++) {
        seqs = sf_plan_capacity(plan, &costs, i);
        fprintf(out, "%s %lld", i == 0 ? "" : ",", (long long)seqs);
        if (cfg->kv.stack.entries > 0)
            fprintf(out, " (exact cache %lld)", (long long)sf_plan_capacity(plan, &exact, i));
        fprintf(out, " of %d tokens", costs.length[i]);
    }
    sf_plan_costs_free(&costs);
    sf_plan_costs_free(&exact);
    fprintf(out, "\nKV cache   ");
    if (cfg->kv.stack.entries == 0) fprintf(out, "exact");
    for (int32_t i = 0; i < cfg->kv.stack.entries; i++)
        fprintf(out, "%s%s", i == 0 ? "" : " + ", cfg->kv.stack.entry[i].method->name);
    fprintf(out, ", %s, pages of %d slots; stored / exact %.3f at %d tokens; ",
            sf_dtype_name(plan->kv_dtype), plan->page_slots, ratio, plan->tokens_max);
    if (seqs < cfg->scheduler.max_num_seqs)
        fprintf(out, "the pool, not max_num_seqs %d, bounds the batch at that length\n",
                cfg->scheduler.max_num_seqs);
    else
        fprintf(out, "max_num_seqs %d bounds the batch, not the pool\n",
                cfg->scheduler.max_num_seqs);
    return SF_OK;
}

sf_status sf_launch_plan_text(const struct sf_launch_plan *plan, const struct sf_config *cfg,
                              const struct sf_model *model, char **text_out)
{
    const struct sf_model_desc *desc = sf_model_desc(model);
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (out == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the plan's text");

    enum sf_isa isa = plan->isa_max != SF_ISA_AUTO ? plan->isa_max : sf_isa_detect();
    fprintf(out, "model      %s, %s: %d layers, d_model %d, vocabulary %d, %d tokens planned\n",
            desc->name[0] != '\0' ? desc->name : sf_model_path(model), desc->arch_name,
            desc->layers, desc->d_model, desc->vocab, plan->tokens_max);
    fprintf(out, "layout     tensor %d x pipeline %d x data %d = %d ranks, %d threads a rank",
            plan->tensor, plan->pipeline, plan->data, plan->ranks,
            plan->threads);
    if (plan->threads_beside > 0)
        fprintf(out, " and %d for factors of layer groups", plan->threads_beside);
    fprintf(out, "; micro-batches %d\n", plan->micro_batches);
    int on_cpu = strcmp(plan->device, "cpu") == 0;
    int why = plan->device_why[0] != '\0';
    fprintf(out, "device     %s%s%s%s\n", plan->device, why ? " (auto: " : "", plan->device_why,
            why ? ")" : "");
    fprintf(out, "numbers    %s %s%s%s\n", sf_dtype_name(plan->dtype),
            plan->int8 ? "activations, multiplied in int8 on "
            : !on_cpu || sf_isa_multiplies(isa, plan->dtype)
                ? "multiplied natively on " : "stored, multiplied in f32 panels on ",
            plan->int8 ? sf_int8_name(sf_isa_int8(isa)) : on_cpu ? sf_isa_name(isa) : plan->device,
            !plan->fixed ? ""
            : on_cpu && sf_stack_grouped(&cfg->kv.stack) == NULL
                ? "; deterministic" : "; deterministic: reruns of one layout are equal");
    write_ranks(out, plan);
    sf_status status = write_stages(out, plan, cfg, desc);
    write_memory(out, plan);
    if (status == SF_OK) status = sf_plan_groups_text(plan, cfg, out);
    if (status == SF_OK) status = write_placement(out, plan, desc);
    if (status == SF_OK) status = write_capacity(out, plan, cfg);
    if (status == SF_OK) status = sf_plan_comm_text(plan, cfg, desc, out);
    fprintf(out, "fits       %s%s%s\n", plan->fits ? "yes" : "no", plan->fits ? "" : ": ",
            plan->reason);

    int failed = ferror(out);
    failed |= fclose(out) != 0;
    if (status == SF_OK && failed) status = SF_FAIL(SF_NO_MEMORY, "no memory for the plan's text");
    if (status == SF_OK) *text_out = text;
    else free(text);
    return status;
}
