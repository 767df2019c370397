/* coordinator/plan_fit.c: whether a plan fits, and if not, what would make it fit: a shorter
 * length, more memory, more ranks, each with its number. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "coordinator/plan_impl.h"

enum { MULTIPLES_MAX = 64 };
static const double MIB = 1024.0 * 1024.0;

static sf_status longest_fit(const struct sf_sizing *, const struct sf_config *,
                             const struct sf_launch_plan *, int32_t *tokens_out);
static sf_status more_ranks(const struct sf_sizing *, struct sf_config *,
                            const struct sf_launch_plan *, int32_t *tensor_out,
                            int32_t *pipeline_out);

/* Does one sequence of `tokens` fit on this rank; how much does the rank take in all? */
static sf_status rank_fits(const struct sf_sizing *sizing, const struct sf_setup *setup,
                           const struct sf_stack *stack, const struct sf_plan_rank *rank,
                           int32_t tokens, int *fits_out, struct sf_plan_need *need_out)
{
    int64_t memory = sizing->cluster->memory_per_rank;
    SF_TRY(sf_size_need(sizing, setup, stack, rank, tokens, need_out));
    *fits_out = memory <= 0 || need_out->total <= memory;
    if (sizing->kv_memory != SF_OPT_AUTO) *fits_out &= need_out->pages <= rank->pool_bytes;
    return SF_OK;
}

/* A rank that takes more than it has, into plan->reason; the characters written. */
static size_t memory_words(const struct sf_sizing *sizing, struct sf_launch_plan *plan,
                           const struct sf_plan_rank *rank, const struct sf_plan_need *need)
{
    const int64_t memory = sizing->cluster->memory_per_rank;
    int given = sizing->kv_memory != SF_OPT_AUTO;
    char pool[64], *text = plan->reason;
    if (given) snprintf(pool, sizeof pool, "kv_cache.memory");
    else snprintf(pool, sizeof pool, "one sequence of %d tokens", plan->tokens_max);
    int64_t pool_bytes = given ? sizing->kv_memory : need->pages;
    size_t used = (size_t)snprintf(text, sizeof plan->reason, "rank %d takes %.1f MiB (weights"
                                   " %.1f, buffers %.1f, %s %.1f, beside its pages %.1f) and has"
                                   " %.1f; would fit: %.0f MiB per rank", rank->rank,
                                   (double)need->total / MIB, (double)rank->weight_bytes / MIB,
                                   (double)rank->workspace_bytes / MIB, pool,
                                   (double)pool_bytes / MIB, (double)need->beside / MIB,
                                   (double)memory / MIB, (double)need->total / MIB + 1);
    int64_t left = given ? memory - (need->total - sizing->kv_memory) : 0;
    if (left >= need->pages && left >= (int64_t)MIB && used < sizeof plan->reason)
        used += (size_t)snprintf(text + used, sizeof plan->reason - used,
                                 ", or kv_cache.memory of %lldMiB", (long long)left / (1 << 20));
    return used;
}

sf_status sf_plan_judge(const struct sf_sizing *sizing, struct sf_config *cfg,
                        struct sf_launch_plan *plan)
{
    const struct sf_plan_rank *worst = NULL;
    struct sf_plan_need most = { 0 };
    for (int32_t r = 0; r < plan->ranks; r++) {
        struct sf_plan_need need;
        int fits;
        SF_TRY(rank_fits(sizing, &plan->setup, &cfg->kv.stack, &plan->rank[r], plan->tokens_max,
                         &fits, &need));
        if (fits || (worst != NULL && need.total <= most.total)) continue;
        worst = &plan->rank[r];
        most = need;
    }
    plan->fits = worst == NULL;
    plan->reason[0] = '\0';
    if (plan->fits) return SF_OK;

    /* The case and its numbers, then ways out. */
    int32_t tokens, tensor, pipeline;
    SF_TRY(longest_fit(sizing, cfg, plan, &tokens));
    SF_TRY(more_ranks(sizing, cfg, plan, &tensor, &pipeline));
    char *text = plan->reason;
    size_t bytes = sizeof plan->reason, used;
    int pool_short = sizing->kv_memory != SF_OPT_AUTO && most.pages > worst->pool_bytes;
    if (pool_short)
        used = (size_t)snprintf(text, bytes, "rank %d: one sequence of %d tokens takes %.1f MiB of"
                                " pages, kv_cache.memory is %.1f MiB; would fit: kv_cache.memory of"
                                " %.0fMiB", worst->rank, plan->tokens_max,
                                (double)most.pages / MIB, (double)sizing->kv_memory / MIB,
                                (double)most.pages / MIB + 1);
    else
        used = memory_words(sizing, plan, worst, &most);
    if (tokens > 0 && used < bytes)
        used += (size_t)snprintf(text + used, bytes - used, ", or scheduler.max_model_len of %d",
                                 tokens);
    if (tensor > 0 && used < bytes)
        used += (size_t)snprintf(text + used, bytes - used, ", or %d ranks with"
                                 " parallel.%s_parallel_size %d", tensor * pipeline * plan->data,
                                 tensor > plan->tensor ? "tensor" : "pipeline",
                                 tensor > plan->tensor ? tensor : pipeline);
    return SF_OK;
}

/* The longest sequence that every rank holds, by bisection; 0 if there is none. */
static sf_status longest_fit(const struct sf_sizing *sizing, const struct sf_config *cfg,
                             const struct sf_launch_plan *plan, int32_t *tokens_out)
{
    int32_t fits_at = 0, fails_at = plan->tokens_max;
    while (fails_at - fits_at > 1) {
        int32_t middle = fits_at + (fails_at - fits_at) / 2;
        int all = 1;
        for (int32_t r = 0; r < plan->ranks && all; r++) {
            struct sf_plan_need need;
            SF_TRY(rank_fits(sizing, &plan->setup, &cfg->kv.stack, &plan->rank[r], middle, &all,
                             &need));
        }
        if (all) fits_at = middle;
        else fails_at = middle;
    }
    *tokens_out = fits_at;
    return SF_OK;
}

/* Would one model copy laid over tensor x pipeline ranks of this memory fit? */
static sf_status layout_fits(const struct sf_sizing *asked, struct sf_config *cfg,
                             const struct sf_launch_plan *plan, int32_t tensor, int32_t pipeline,
                             int *fits_out)
{
    const struct sf_model_desc *desc = sf_model_desc(asked->model);
    struct sf_sizing here = *asked;
    const struct sf_sizing *sizing = &here;
    struct sf_setup setup = { 0 };
    double *head_cost = NULL;
    int32_t *count = calloc((size_t)pipeline, sizeof *count);
    struct sf_plan_rank *rank = calloc((size_t)tensor, sizeof *rank);
    *fits_out = 1;
    sf_status status = count != NULL && rank != NULL
                       ? SF_OK : SF_FAIL(SF_NO_MEMORY, "no memory for %d stages", pipeline);
    if (status == SF_OK)
        status = sf_setup_make(desc, tensor, plan->page_slots, plan->tokens_max, &setup);
    if (status == SF_OK) {
        setup.kv_dtype = here.kv_dtype;
        status = sf_stack_check(&cfg->kv.stack, &setup);
        if (status == SF_UNSUPPORTED || status == SF_INVALID) {     /* not in this layout */
            status = SF_OK;
            *fits_out = 0;
        }
    }
    if (status == SF_OK && *fits_out)
        status = sf_cut_layers(desc, plan, &setup, &cfg->kv.stack, pipeline, count);
    if (status == SF_OK && *fits_out)
        status = sf_head_costs(&setup, &cfg->kv.stack, here.kv_dtype, &head_cost);
    here.placing.head_cost = head_cost;
    for (int32_t s = 0, first = 0; s < pipeline && status == SF_OK && *fits_out; s++) {
        status = sf_size_group(sizing, tensor, first, count[s], 1, rank);
        for (int32_t t = 0; t < tensor && status == SF_OK && *fits_out; t++) {
            struct sf_plan_need need;
            status = sf_size_pool(sizing, &setup, &cfg->kv.stack, &rank[t]);
            if (status == SF_OK)
                status = rank_fits(sizing, &setup, &cfg->kv.stack, &rank[t], plan->tokens_max,
                                   fits_out, &need);
        }
        for (int32_t t = 0; t < tensor; t++) sf_size_free(&rank[t]);
        first += count[s];
    }
    sf_setup_free(&setup);
    free(rank);
    free(head_cost);
    free(count);
    return status;
}

/* The smallest multiple of the ranks that fits, by stages first: they cost less talk.  *tensor_out
 * is 0 if there is none. */
static sf_status more_ranks(const struct sf_sizing *sizing, struct sf_config *cfg,
                            const struct sf_launch_plan *plan, int32_t *tensor_out,
                            int32_t *pipeline_out)
{
    const struct sf_model_desc *desc = sf_model_desc(sizing->model);
    int32_t heads = INT32_MAX;
    for (int32_t i = 0; i < desc->layers; i++)
        if (desc->layer[i].q_heads < heads) heads = desc->layer[i].q_heads;
    *tensor_out = *pipeline_out = 0;
    sf_status status = SF_OK;
    for (int32_t m = 2; m <= MULTIPLES_MAX && *tensor_out == 0 && status == SF_OK; m++) {
        const int32_t way[2][2] = { { plan->tensor, plan->pipeline * m },
                                    { plan->tensor * m, plan->pipeline } };
        for (int i = 0; i < 2 && *tensor_out == 0 && status == SF_OK; i++) {
            int fits = 0;
            if (way[i][0] > heads || way[i][1] > desc->layers) continue;
            status = layout_fits(sizing, cfg, plan, way[i][0], way[i][1], &fits);
            if (status != SF_OK || !fits) continue;
            *tensor_out = way[i][0];
            *pipeline_out = way[i][1];
        }
    }
    /* The stack's plans are those of the layout that was asked for. */
    sf_status restored = sf_stack_check(&cfg->kv.stack, &plan->setup);
    return status != SF_OK ? status : restored;
}
