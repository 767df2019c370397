/* coordinator/eval.c: the stacks of `sheaf eval`, joined in one launch, and what is told of them
 * (eval.h). */
#include "coordinator/eval.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "coordinator/engine.h"
#include "coordinator/eval_html.h"
#include "coordinator/eval_impl.h"
#include "coordinator/idle.h"

/* ---- before the start ------------------------------------------------------------------------ */
static int is_stdout(const char *path) { return path != NULL && strcmp(path, "-") == 0; }

/* What stands against it is better known now than after hours: the file, or the one that it is
 * written as first, may take the place of what is read. */
static sf_status check_file(const struct sf_eval *eval, const char *path)
{
    const char *read[SF_EVAL_TEXTS + SF_EVAL_CONFIGS + 2];
    int32_t reads = 0;
    if (path == NULL || is_stdout(path)) return SF_OK;
    for (int32_t i = 0; i < eval->texts; i++) read[reads++] = eval->text[i];
    for (int32_t i = 0; i < eval->configs; i++) read[reads++] = eval->config[i];
    read[reads++] = eval->filler;
    read[reads++] = eval->list.stack[0].model;
    return sf_check_output(path, read, reads);
}

/* Neither may be written over the other. */
static sf_status check_both(const char *json, const char *html)
{
    char *fresh;
    if (json == NULL || html == NULL || is_stdout(json)) return SF_OK;
    SF_TRY(sf_file_name(html, ".new", &fresh));
    int same = sf_is_same_file(json, html), first = sf_is_same_file(json, fresh);
    free(fresh);
    if (same) return SF_FAIL(SF_INVALID, "--html and --json name the same file");
    if (first)
        return SF_FAIL(SF_INVALID, "--html %s is written as %s.new first, which --json names", html,
                       html);
    return SF_OK;
}

static sf_status prepare(void *arg, int32_t *launches_out)
{
    struct sf_eval *eval = arg;
    SF_TRY(sf_stack_list_make(eval->config, eval->configs, &eval->common.sets, 0, &eval->list));
    SF_TRY(check_both(eval->json, eval->html));
    if (check_file(eval, eval->json) != SF_OK)
        return SF_FAIL(SF_INVALID, "--json cannot be written: %s", sf_error_text());
    if (check_file(eval, eval->html) != SF_OK)
        return SF_FAIL(SF_INVALID, "--html cannot be written: %s", sf_error_text());
    if (eval->html != NULL && sf_eval_html_check() != SF_OK)
        return SF_FAIL(SF_INVALID, "--html: %s", sf_error_text());
    for (int32_t s = 0; s < eval->list.stacks; s++) {
        sf_stack_add_set(&eval->list.stack[s], "scheduler.enable_prefix_caching=false");
        sf_stack_add_set(&eval->list.stack[s], "parallel.head_placement=identity");
    }
    *launches_out = eval->list.stacks;
    return SF_OK;
}

static const struct sf_launch_spec *launch(void *arg, int32_t number)
{
    const struct sf_eval *eval = arg;
    SF_ASSERT(number >= 0 && number < eval->list.stacks);
    return &eval->list.stack[number].launch;
}

/* ---- sizes ----------------------------------------------------------------------------------- */
/* What two stacks on the same weights and buffers must have in common; NULL if they do. */
static const char *difference(const struct sf_launch *a, const struct sf_launch *b)
{
    const struct sf_launch_plan *p = &a->plan, *q = &b->plan;
    if (p->tensor != q->tensor || p->pipeline != q->pipeline || p->data != q->data)
        return "parallel";
    for (int32_t r = 0; r < p->ranks; r++)
        if (p->rank[r].share.layer_first != q->rank[r].share.layer_first ||
            p->rank[r].share.layer_count != q->rank[r].share.layer_count)
            return "parallel.pipeline_layers";
    if (p->dtype != q->dtype) return "model.dtype";
    if (a->config.model.compute != b->config.model.compute) return "model.compute";
    return p->fixed != q->fixed ? "run.deterministic" : NULL;
}

static sf_status check_alike(const struct sf_eval *eval, const struct sf_launch *launch)
{
    const struct sf_launch_plan *plan = &launch->plan;
    if (plan->data > 1)
        return SF_FAIL(SF_UNSUPPORTED, "%s: error: eval runs one copy of the model, but "
                       "parallel.data_parallel_size is %d", eval->list.stack[0].launch.config,
                       plan->data);
    for (int32_t s = 1; s < eval->list.stacks; s++) {
        const char *key = difference(&launch[0], &launch[s]);
        if (key != NULL)
            return SF_FAIL(SF_INVALID, "%s of %s and %s of %s differ in %s; stacks are compared on "
                           "one model in one layout", eval->list.stack[0].label,
                           eval->list.stack[0].launch.config, eval->list.stack[s].label,
                           eval->list.stack[s].launch.config, key);
    }
    if (plan->rows_max < eval->list.stacks)
        return SF_FAIL(SF_INVALID, "%s: error: scheduler.max_num_batched_tokens is %d, but a step "
                       "has a row of each of %d stacks", eval->list.stack[0].launch.config,
                       plan->rows_max, eval->list.stacks);
    return SF_OK;
}

static sf_status make_cases(struct sf_eval *eval, const struct sf_launch *launch)
{
    struct sf_tokenizer *tokenizer;
    int32_t tokens_max = launch->plan.tokens_max;
    SF_TRY(sf_tokenizer_create(launch->model, &tokenizer));
    if (tokenizer == NULL)
        return SF_FAIL(SF_UNSUPPORTED, "%s has no tokenizer, and eval reads text",
                       launch->config.model.path);
    sf_status status = SF_OK;
    if (eval->texts > 0) status = eval_text_cases(eval, tokenizer, tokens_max);
    if (status == SF_OK && eval->needle)
        status = eval_needle_cases(eval, tokenizer, launch->config.sampling.seed, tokens_max);
    sf_tokenizer_destroy(tokenizer);
    return status;
}

/* The most that any case takes of rank r in one stack. */
static sf_status peak_of(const struct sf_eval *eval, const struct sf_launch *launch, int32_t r,
                         int64_t *bytes_out)
{
    const struct sf_launch_plan *plan = &launch->plan;
    const struct eval_case *before = NULL;
    int64_t most = 0;
    for (int32_t i = 0; i < eval->case_count; before = &eval->cases[i++]) {
        const struct eval_case *c = &eval->cases[i];
        struct sf_cost cost;
        if (before != NULL && before->prompt == c->prompt && before->tokens == c->tokens) continue;
        SF_TRY(sf_account_sequence(&plan->setup, &launch->config.kv.stack, &plan->rank[r].lanes,
                                   plan->kv_dtype, c->prompt, c->tokens, &cost));
        if (cost.bytes_peak > most) most = cost.bytes_peak;
    }
    *bytes_out = most;
    return SF_OK;
}

/* As many sequences at once as the user allows and every rank can hold, of all stacks. */
static sf_status fit(struct sf_eval *eval, const struct sf_launch *launch,
                     struct sf_task_sizes *sizes)
{
    const struct sf_launch_plan *plan = &launch->plan;
    int32_t ranks = plan->ranks, at_once = plan->seqs_max;
    if (at_once > eval->case_count) at_once = eval->case_count;
    for (int32_t r = 0; r < ranks; r++) {
        int64_t all = 0;
        for (int32_t s = 0; s < eval->list.stacks; s++) {
            SF_TRY(peak_of(eval, &launch[s], r, &sizes->pool_bytes[s * ranks + r]));
            all += sizes->pool_bytes[s * ranks + r];
        }
        if (all > plan->rank[r].pool_bytes)
            return SF_FAIL(SF_INVALID, "the caches of one sequence in %d stacks take %lld bytes of "
                           "rank %d, and kv_cache.memory is %lld; raise it or lower --len",
                           eval->list.stacks, (long long)all, r,
                           (long long)plan->rank[r].pool_bytes);
        if (all > 0 && plan->rank[r].pool_bytes / all < at_once)
            at_once = (int32_t)(plan->rank[r].pool_bytes / all);
    }
    for (int32_t i = 0; i < eval->list.stacks * ranks; i++) sizes->pool_bytes[i] *= at_once;
    sizes->seqs_max = at_once * eval->list.stacks;
    eval->at_once = at_once;
    if (eval->list.stacks > 1)
        eval->kept_bytes = (int64_t)EVAL_CHUNK * 8 * sf_model_desc(launch->model)->vocab;
    return SF_OK;
}

static sf_status join(void *arg, const struct sf_launch *launch, int32_t launches,
                      struct sf_task_sizes *sizes_out)
{
    struct sf_eval *eval = arg;
    SF_ASSERT(launches == eval->list.stacks);
    SF_TRY(check_alike(eval, launch));
    SF_TRY(make_cases(eval, launch));
    SF_TRY(fit(eval, launch, sizes_out));
    sf_log(SF_LOG_INFO, "%d sequences through %d stacks, %d at once", eval->case_count, launches,
           eval->at_once);
    return SF_OK;
}

/* ---- the end --------------------------------------------------------------------------------- */
static sf_status write_html(const char *path, const char *json, size_t bytes)
{
    struct sf_json *measured;
    char *page = NULL;
    size_t page_bytes;
    SF_TRY(sf_json_parse(json, bytes, bytes, &measured));
    sf_status status = sf_eval_html(measured, &page, &page_bytes);
    sf_json_free(measured);
    if (status == SF_OK) status = sf_file_replace(path, page, page_bytes);
    free(page);
    return status;
}

/* The page comes last: without it, what was measured is still there. */
static sf_status write_files(const struct sf_eval *eval, const struct sf_launch *launch,
                             const struct eval_quality *quality)
{
    char *text = NULL;
    size_t bytes;
    SF_TRY(eval_json(eval, launch, quality, &text, &bytes));
    sf_status status = SF_OK;
    if (is_stdout(eval->json)) fwrite(text, 1, bytes, stdout);  /* main looks whether it took it */
    else if (eval->json != NULL) status = sf_file_replace(eval->json, text, bytes);
    if (status == SF_OK && eval->html != NULL) status = write_html(eval->html, text, bytes);
    free(text);
    return status;
}

/* A method that was configured and did nothing is worth a word. */
static sf_status warn_if_idle(const struct sf_eval *eval, const struct sf_launch *launch)
{
    for (int32_t s = 0; s < eval->list.stacks; s++) {
        struct sf_idle idle;
        sf_status status = SF_OK;
        SF_TRY(sf_idle_make(&launch[s].plan.setup, &launch[s].config.kv.stack, &idle));
        for (int32_t i = 0; i < eval->case_count && status == SF_OK; i++) {
            const struct eval_case *c = &eval->cases[i];
            status = sf_idle_add(&idle, c->prompt, c->tokens - 1, c->at_end[s].changed);
        }
        if (status == SF_OK) sf_idle_warn(&idle, "sequences");
        sf_idle_free(&idle);
        SF_TRY(status);
    }
    return SF_OK;
}

static sf_status report(const struct sf_eval *eval, const struct sf_launch *launch)
{
    SF_ASSERT(eval->list.stacks >= 1);
    struct eval_quality *quality = calloc((size_t)eval->list.stacks, sizeof *quality);
    if (quality == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for the figures of %d stacks", eval->list.stacks);
    sf_status status = SF_OK;
    for (int32_t s = 0; s < eval->list.stacks && status == SF_OK; s++)
        status = eval_quality_of(eval, s, (uint64_t)launch->config.sampling.seed, &quality[s]);
    if (status == SF_OK && !is_stdout(eval->json)) eval_print(eval, quality);
    if (status == SF_OK && (eval->json != NULL || eval->html != NULL))
        status = write_files(eval, launch, quality);
    free(quality);
    return status;
}

static sf_status coordinate(void *arg, int32_t number, const struct sf_desk *desk,
                            int *exit_code_out)
{
    struct sf_eval *eval = arg;
    char words[1024];
    int stopped = 0;
    SF_ASSERT(number == 0);
    sf_status status = eval_drive(eval, desk, &stopped);
    snprintf(words, sizeof words, "%s", sf_error_text());
    sf_status told = sf_engine_stop(desk->to_workers, desk->launch->plan.data);
    if (status != SF_OK) return SF_FAIL(status, "%s", words);
    SF_TRY(told);
    *exit_code_out = stopped;
    if (!stopped) {
        SF_TRY(warn_if_idle(eval, desk->launch));
        return report(eval, desk->launch);
    }
    sf_log(SF_LOG_ERROR, "stopped by a signal; nothing is told of what was measured so far");
    return SF_OK;
}

const struct sf_task_ops sf_eval_task = {.launch = launch, .coordinate = coordinate,
                                         .prepare = prepare, .join = join};

void sf_eval_free(struct sf_eval *eval)
{
    for (int32_t i = 0; i < eval->case_count; i++) {
        free(eval->cases[i].token);
        free(eval->cases[i].sum);
        free(eval->cases[i].at_prompt);
        free(eval->cases[i].at_end);
    }
    free(eval->cases);
    free(eval->text_tokens);
    free(eval->list.stack);
}
