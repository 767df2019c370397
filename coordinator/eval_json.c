/* coordinator/eval_json.c: everything that an eval has measured as one object: the members of
 * interface.md section 9 and what is worth knowing beside them.
 *
 *   text           path, or a list of paths; null without --text     files   {path, tokens} each
 *   tokens         fed to each stack, of the texts          version, machine, config, intervals
 *   exact, runs    one object a stack, alike:
 *     methods stack config_file
 *     kv_fraction kv_bytes_exact kv_bytes_stored   at the end of the prompts; ..._end: of the texts
 *     tokens perplexity kl_mean top1_agreement log_ppl_diff, each with NAME_ci [lo, hi],
 *                    [null, null] of a single unit
 *     sequences      a list: text start prompt_tokens scored_tokens nll kl agree
 *     needle_recall  null, or {trials hits recall ci cells: [{length depth trials hits recall ci}]
 *                    needles: [{length depth trial prompt_tokens found}]}
 *
 * Sums nll and kl are in nat; agree counts tokens. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_build.h"
#include "coordinator/eval_impl.h"
#include "coordinator/machine_json.h"

static struct sf_json *interval_of(const struct eval_figure *figure)
{
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = sf_json_append(list, sf_json_new_real(figure->lo));
    if (status == SF_OK) status = sf_json_append(list, sf_json_new_real(figure->hi));
    return sf_json_built(status, list);
}

static void put_figure(sf_status *status, struct sf_json *o, const char *key,
                       const struct eval_figure *figure)
{
    char name[40];
    snprintf(name, sizeof name, "%s_ci", key);
    sf_json_put_real(status, o, key, figure->value);
    sf_json_put(status, o, name, interval_of(figure));
}

/* ---- one stack ------------------------------------------------------------------------------- */
static struct sf_json *methods_of(const struct sf_stack_launch *stack)
{
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (int32_t i = 0; i < stack->methods && status == SF_OK; i++)
        status = sf_json_append(list, sf_json_new_words(stack->method[i]));
    return sf_json_built(status, list);
}

static struct sf_json *sequence_of(const struct sf_eval *eval, const struct eval_case *c,
                                   int32_t stack)
{
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    struct eval_sum sum = eval_sum_of(c, stack);
    sf_json_put_words(&status, o, "text", eval->text[c->text]);
    sf_json_put_int(&status, o, "start", c->start);
    sf_json_put_int(&status, o, "prompt_tokens", c->prompt);
    sf_json_put_int(&status, o, "scored_tokens", sum.tokens);
    sf_json_put_real(&status, o, "nll", sum.nll);
    sf_json_put_real(&status, o, "kl", sum.kl);
    sf_json_put_int(&status, o, "agree", sum.agree);
    sf_json_put_int(&status, o, "kv_bytes_exact", c->at_prompt[stack].exact);
    sf_json_put_int(&status, o, "kv_bytes_stored", c->at_prompt[stack].stored);
    return sf_json_built(status, o);
}

static struct sf_json *sequences_of(const struct sf_eval *eval, int32_t stack)
{
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (int32_t i = 0; i < eval->case_count && status == SF_OK; i++)
        if (eval->cases[i].text >= 0)
            status = sf_json_append(list, sequence_of(eval, &eval->cases[i], stack));
    return sf_json_built(status, list);
}

static void put_recall(sf_status *status, struct sf_json *o, const struct eval_recall *recall)
{
    sf_json_put_int(status, o, "trials", recall->trials);
    sf_json_put_int(status, o, "hits", recall->hits);
    sf_json_put_real(status, o, "recall", recall->share.value);
    sf_json_put(status, o, "ci", interval_of(&recall->share));
}

static struct sf_json *cells_of(const struct sf_eval *eval, int32_t stack)
{
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (int32_t l = 0; l < eval->needle_lengths; l++)
        for (int32_t d = 0; d < eval->depths && status == SF_OK; d++) {
            struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
            struct eval_recall recall = eval_recall_of(eval, stack, eval->needle_length[l],
                                                       eval->depth[d]);
            sf_json_put_int(&status, o, "length", eval->needle_length[l]);
            sf_json_put_int(&status, o, "depth", eval->depth[d]);
            put_recall(&status, o, &recall);
            if (status == SF_OK) status = sf_json_append(list, o);
            else sf_json_free(o);
        }
    return sf_json_built(status, list);
}

static struct sf_json *needles_of(const struct sf_eval *eval, int32_t stack)
{
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (int32_t i = 0; i < eval->case_count && status == SF_OK; i++) {
        const struct eval_case *c = &eval->cases[i];
        if (c->text >= 0) continue;
        struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
        sf_json_put_int(&status, o, "length", c->length);
        sf_json_put_int(&status, o, "depth", c->depth);
        sf_json_put_int(&status, o, "trial", c->start);
        sf_json_put_int(&status, o, "prompt_tokens", c->prompt);
        sf_json_put(&status, o, "found",
                    sf_json_new(eval_is_hit(c, stack) ? SF_JSON_TRUE : SF_JSON_FALSE));
        if (status == SF_OK) status = sf_json_append(list, o);
        else sf_json_free(o);
    }
    return sf_json_built(status, list);
}

static struct sf_json *recall_of(const struct sf_eval *eval, int32_t stack)
{
    if (!eval->needle) return sf_json_new(SF_JSON_NULL);
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    struct eval_recall all = eval_recall_of(eval, stack, -1, -1);
    put_recall(&status, o, &all);
    sf_json_put(&status, o, "cells", cells_of(eval, stack));
    sf_json_put(&status, o, "needles", needles_of(eval, stack));
    return sf_json_built(status, o);
}

static void put_text_figures(sf_status *status, struct sf_json *o, const struct sf_eval *eval,
                             int32_t stack, const struct eval_quality *quality)
{
    sf_json_put_int(status, o, "tokens", quality->all.tokens);
    put_figure(status, o, "perplexity", &quality->perplexity);
    put_figure(status, o, "kl_mean", &quality->kl_mean);
    put_figure(status, o, "top1_agreement", &quality->agreement);
    put_figure(status, o, "log_ppl_diff", &quality->apart);
    sf_json_put(status, o, "sequences", sequences_of(eval, stack));
}

static struct sf_json *stack_json(const struct sf_eval *eval, int32_t stack,
                                  const struct eval_quality *quality)
{
    const struct sf_stack_launch *launch = &eval->list.stack[stack];
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    sf_json_put(&status, o, "methods", methods_of(launch));
    sf_json_put_words(&status, o, "stack", launch->label);
    sf_json_put_words(&status, o, "config_file", launch->launch.config);
    sf_json_put_real(&status, o, "kv_fraction", quality->kv_fraction);
    sf_json_put_real(&status, o, "kv_fraction_end", quality->kv_fraction_end);
    sf_json_put_int(&status, o, "kv_bytes_exact", quality->at_prompt.exact);
    sf_json_put_int(&status, o, "kv_bytes_stored", quality->at_prompt.stored);
    sf_json_put_int(&status, o, "kv_bytes_exact_end", quality->at_end.exact);
    sf_json_put_int(&status, o, "kv_bytes_stored_end", quality->at_end.stored);
    if (eval->texts > 0) put_text_figures(&status, o, eval, stack, quality);
    sf_json_put(&status, o, "needle_recall", recall_of(eval, stack));
    return sf_json_built(status, o);
}

static struct sf_json *runs_of(const struct sf_eval *eval, const struct eval_quality *quality)
{
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (int32_t s = 1; s < eval->list.stacks && status == SF_OK; s++)
        status = sf_json_append(list, stack_json(eval, s, &quality[s]));
    return sf_json_built(status, list);
}

/* ---- all of it ------------------------------------------------------------------------------- */
static struct sf_json *text_of(const struct sf_eval *eval)
{
    if (eval->texts == 0) return sf_json_new(SF_JSON_NULL);
    if (eval->texts == 1) return sf_json_new_words(eval->text[0]);
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (int32_t t = 0; t < eval->texts && status == SF_OK; t++)
        status = sf_json_append(list, sf_json_new_words(eval->text[t]));
    return sf_json_built(status, list);
}

static struct sf_json *files_of(const struct sf_eval *eval)
{
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (int32_t t = 0; t < eval->texts && status == SF_OK; t++) {
        struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
        sf_json_put_words(&status, o, "path", eval->text[t]);
        sf_json_put_int(&status, o, "tokens", eval->text_tokens[t]);
        if (status == SF_OK) status = sf_json_append(list, o);
        else sf_json_free(o);
    }
    return sf_json_built(status, list);
}

static int64_t tokens_of(const struct sf_eval *eval)
{
    int64_t tokens = 0;
    for (int32_t i = 0; i < eval->case_count; i++)
        if (eval->cases[i].text >= 0) tokens += eval->cases[i].tokens;
    return tokens;
}

/* Resolved, by the label of the stack. */
static struct sf_json *configs_of(const struct sf_eval *eval, const struct sf_launch *launch)
{
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    for (int32_t s = 0; s < eval->list.stacks && status == SF_OK; s++) {
        char *text = NULL;
        status = sf_config_text(&launch[s].config, &text);
        if (status == SF_OK) sf_json_put_words(&status, o, eval->list.stack[s].label, text);
        free(text);
    }
    return sf_json_built(status, o);
}

static struct sf_json *interval_json(const struct sf_eval *eval, int64_t seed)
{
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    sf_json_put_real(&status, o, "level", 0.95);
    sf_json_put_words(&status, o, "method", "bootstrap, percentiles");
    sf_json_put_words(&status, o, "resampled",
                      eval_by_sequence(eval) ? "sequences" : "blocks of 64 tokens");
    sf_json_put_int(&status, o, "draws", EVAL_DRAWS);
    sf_json_put_int(&status, o, "seed", seed);
    sf_json_put_words(&status, o, "needle_method", "Wilson");
    return sf_json_built(status, o);
}

sf_status eval_json(const struct sf_eval *eval, const struct sf_launch *launch,
                    const struct eval_quality *quality, char **text_out, size_t *bytes_out)
{
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    sf_json_put(&status, o, "text", text_of(eval));
    sf_json_put_int(&status, o, "tokens", tokens_of(eval));
    sf_json_put(&status, o, "files", files_of(eval));
    sf_json_put(&status, o, "filler", eval->needle ? sf_json_new_words(eval->filler)
                                                   : sf_json_new(SF_JSON_NULL));
    sf_json_put_words(&status, o, "model", launch->config.model.path);
    sf_json_put_words(&status, o, "version", SHEAF_VERSION " (git " SHEAF_GIT ")");
    sf_json_put(&status, o, "machine", sf_machine_json(launch));
    sf_json_put(&status, o, "config", configs_of(eval, launch));
    sf_json_put(&status, o, "intervals", interval_json(eval, launch->config.sampling.seed));
    sf_json_put_int(&status, o, "sequences_at_once", eval->at_once);
    sf_json_put_int(&status, o, "kept_bytes", eval->kept_bytes);
    sf_json_put_real(&status, o, "duration_s", eval->seconds);
    sf_json_put(&status, o, "exact", stack_json(eval, 0, &quality[0]));
    sf_json_put(&status, o, "runs", runs_of(eval, quality));
    if (status == SF_OK) status = sf_json_dump(o, 2, text_out, bytes_out);
    sf_json_free(o);
    if (status == SF_OK) (*text_out)[(*bytes_out)++] = '\n';   /* in the place of its NUL */
    return status;
}
