/* coordinator/calibrate.c: what `sheaf calibrate` runs, and what it makes of that (calibrate.h). */
#include "coordinator/calibrate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "coordinator/config_tree.h"
#include "coordinator/engine.h"
#include "kvshard/methods.h"

enum { WAIT_MS = 200, SHOW_MS = 10000, NAMES_BYTES = 512 };

/* ---- before the start ------------------------------------------------------------------------ */
static const char *calibrated_names(char names[NAMES_BYTES])
{
    size_t used = 0;
    names[0] = '\0';
    for (const struct sf_method *const *m = sf_methods; *m != NULL; m++)
        if ((*m)->calib != NULL && used < NAMES_BYTES)
            used += (size_t)snprintf(names + used, NAMES_BYTES - used, "%s%s",
                                     used > 0 ? ", " : "", (*m)->name);
    return names;
}

static sf_status find_named(const char *name, const struct sf_method **out)
{
    char names[NAMES_BYTES];
    const struct sf_method *method = sf_method_find(name);
    for (const char *const *later = sf_methods_to_come; *later != NULL && method == NULL; later++)
        if (strcmp(*later, name) == 0)
            return SF_FAIL(SF_UNSUPPORTED, "--method '%s' is not built yet", name);
    if (method == NULL) {
        const char *near = sf_method_nearest(name);
        return SF_FAIL(SF_INVALID, "unknown --method '%s'%s%s%s", name,
                       near != NULL ? "; did you mean '" : "", near != NULL ? near : "",
                       near != NULL ? "'?" : "");
    }
    if (method->calib == NULL)
        return SF_FAIL(SF_INVALID, "method '%s' has nothing to calibrate; those that have: %s",
                       name, calibrated_names(names));
    *out = method;
    return SF_OK;
}

/* The method, and its entry in CONFIG, if there is one. */
static sf_status find_method(const struct sf_calibrate *calibrate, const struct sf_stack *stack,
                             const struct sf_method **method_out,
                             const struct sf_stack_entry **entry_out)
{
    const struct sf_method *method = NULL;
    const struct sf_stack_entry *entry = NULL;
    char names[NAMES_BYTES];
    if (calibrate->method != NULL) SF_TRY(find_named(calibrate->method, &method));
    for (int32_t i = 0; i < stack->entries; i++) {
        const struct sf_stack_entry *other = &stack->entry[i];
        if (other->method->calib == NULL || (method != NULL && other->method != method)) continue;
        if (entry != NULL)
            return SF_FAIL(SF_INVALID, "%s: error: kv_cache.methods has '%s' and '%s', and one is"
                           " calibrated at a time", calibrate->common.config, entry->method->name,
                           other->method->name);
        entry = other;
    }
    if (method == NULL && entry == NULL)
        return SF_FAIL(SF_INVALID, "%s: error: kv_cache.methods has nothing to calibrate; --method"
                       " NAME says what: %s", calibrate->common.config, calibrated_names(names));
    *method_out = method != NULL ? method : entry->method;
    *entry_out = entry;
    return SF_OK;
}

static sf_status read_config(struct sf_calibrate *calibrate)
{
    struct sf_config config;
    const struct sf_method *method;
    const struct sf_stack_entry *entry;
    struct sf_stack_entry *mine;
    SF_TRY(sf_config_load_bare(calibrate->common.config, &calibrate->common.sets, &config));
    sf_status status = find_method(calibrate, &config.kv.stack, &method, &entry);
    if (status == SF_OK) status = sf_stack_add_method(&calibrate->stack, method, &mine);
    if (status == SF_OK && entry != NULL) memcpy(mine->cfg, entry->cfg, method->cfg_bytes);
    snprintf(calibrate->model, sizeof calibrate->model, "%s", config.model.path);
    sf_config_free(&config);
    return status;
}

/* A profile may be written over the one that --from names, which has been read whole by then; but
 * not as PROFILE.new, where that is the one. */
static sf_status check_output(const struct sf_calibrate *calibrate)
{
    const char *from = calibrate->from;
    if (from != NULL && sf_is_same_file(calibrate->output, from)) from = NULL;
    const char *const read[] = {calibrate->common.config, calibrate->model, from};
    return sf_check_output(calibrate->output, read, 3);
}

static sf_status prepare(void *arg, int32_t *launches_out)
{
    struct sf_calibrate *calibrate = arg;
    int32_t sets = calibrate->common.sets.sets;
    SF_TRY(read_config(calibrate));
    SF_TRY(check_output(calibrate));
    memcpy(calibrate->launch_set, calibrate->set, sizeof calibrate->set);
    calibrate->launch_set[sets++] = "scheduler.enable_prefix_caching=false";
    calibrate->launch_set[sets++] = "kv_cache.methods=[]";
    calibrate->launch = calibrate->common;
    calibrate->launch.sets.set = calibrate->launch_set;
    calibrate->launch.sets.sets = sets;
    calibrate->launch.digest = 1;
    *launches_out = 1;
    return SF_OK;
}

static const struct sf_launch_spec *launch(void *arg, int32_t number)
{
    const struct sf_calibrate *calibrate = arg;
    SF_ASSERT(number == 0);
    return &calibrate->launch;
}

/* ---- what is fed ----------------------------------------------------------------------------- */
static sf_status list_ordinary(const struct sf_model *model, int32_t *id_out, int32_t *count_out)
{
    struct sf_tokenizer *tokenizer = NULL;
    int32_t vocab = sf_model_desc(model)->vocab, n = 0;
    SF_TRY(sf_tokenizer_create(model, &tokenizer));
    for (int32_t id = 0; id < vocab; id++)
        if (tokenizer == NULL || sf_tokenizer_is_ordinary(tokenizer, id)) id_out[n++] = id;
    sf_tokenizer_destroy(tokenizer);
    *count_out = n;
    return SF_OK;
}

static sf_status make_input(struct sf_calibrate *calibrate, const struct sf_setup *setup,
                            const struct sf_calib_vocab *vocab)
{
    const struct sf_calib_ops *calib = calibrate->stack.entry[0].method->calib;
    struct sf_calib_plan *plan = &calibrate->plan;
    SF_TRY(calib->plan(setup, vocab, plan));
    SF_ASSERT(plan->tokens >= 1 && plan->tokens <= setup->tokens_max && plan->sequences >= 1);
    size_t tokens = (size_t)plan->tokens;
    calibrate->token = calloc(tokens * (size_t)plan->sequences, sizeof *calibrate->token);
    if (calibrate->token == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %d sequences", plan->sequences);
    for (int32_t i = 0; i < plan->sequences; i++)
        SF_TRY(calib->input(setup, vocab, i, plan->tokens, calibrate->token + (size_t)i * tokens));
    return SF_OK;
}

static sf_status plan_lesson(struct sf_calibrate *calibrate, const struct sf_launch *launched)
{
    const struct sf_model_desc *desc = sf_model_desc(launched->model);
    struct sf_setup setup = launched->setup;
    struct sf_calib_vocab vocab = {0};
    int32_t *ordinary = malloc((size_t)desc->vocab * sizeof *ordinary);
    if (ordinary == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d token ids", desc->vocab);
    setup.cfg = calibrate->stack.entry[0].cfg;
    setup.tokens_max = launched->plan.tokens_max - 1;   /* every sequence answers with one token */
    sf_status status = list_ordinary(launched->model, ordinary, &vocab.count);
    vocab.ordinary = ordinary;
    if (status == SF_OK) status = make_input(calibrate, &setup, &vocab);
    free(ordinary);
    return status;
}

/* What rank 0 tells the others: the method and its options, as bytes of this program. */
struct announced { char name[64]; struct sf_calib_plan plan; };

static sf_status lesson(void *arg, const struct sf_launch *launched, struct sf_lesson *out)
{
    struct sf_calibrate *calibrate = arg;
    struct sf_comm *world = launched->world;
    struct announced announced = {0};
    int rank = sf_comm_rank(world);
    sf_status status = SF_OK;
    if (rank == 0) {
        status = plan_lesson(calibrate, launched);
        snprintf(announced.name, sizeof announced.name, "%s",
                 calibrate->stack.entry[0].method->name);
        announced.plan = calibrate->plan;
    }
    SF_TRY(sf_launch_agree(world, status));
    SF_TRY(sf_comm_bcast(world, 0, &announced, sizeof announced));
    announced.name[sizeof announced.name - 1] = '\0';
    const struct sf_method *method = sf_method_find(announced.name);
    struct sf_stack_entry *entry = NULL;
    if (method == NULL || method->calib == NULL)
        status = SF_FAIL(SF_FORMAT, "rank 0 calibrates '%s'", announced.name);
    else status = sf_stack_add_method(&out->stack, method, &entry);
    if (status == SF_OK && rank == 0)
        memcpy(entry->cfg, calibrate->stack.entry[0].cfg, method->cfg_bytes);
    SF_TRY(sf_launch_agree(world, status));
    out->plan = announced.plan;
    return sf_comm_bcast(world, 0, entry->cfg, method->cfg_bytes);
}

/* ---- the run --------------------------------------------------------------------------------- */
static sf_status on_token(void *arg, void *owner, const int32_t *token, int32_t prompt,
                          int32_t answer, int *end_out)
{
    (void)arg, (void)owner, (void)token, (void)prompt, (void)answer;
    *end_out = 1;
    return SF_OK;
}

static sf_status on_closed(void *arg, void *owner, const struct sf_wire_receipt *receipt)
{
    struct sf_calibrate *calibrate = arg;
    (void)owner, (void)receipt;
    calibrate->closed++;
    return SF_OK;
}

static sf_status on_signal(void *arg, int32_t rank, int signal)
{
    (void)arg, (void)signal;
    return SF_FAIL(SF_STOPPED, "rank %d was told to stop", rank);
}

/* The engine counts its sequences from 1. */
int32_t sf_calibrate_sequence(int64_t seq_id)
{
    return (int32_t)(sf_seq_name((uint64_t)seq_id) >> SF_SEQ_SLOT_BITS) - 1;
}

static void show(const struct sf_calibrate *calibrate, const struct sf_engine *engine,
                 int64_t *shown_ns)
{
    int64_t now = sf_now_ns();
    if (now - *shown_ns < (int64_t)SHOW_MS * 1000000) return;
    *shown_ns = now;
    sf_log(SF_LOG_INFO, "calibrate: %lld of %lld tokens are on their way or done",
           (long long)sf_engine_counts(engine).prompt_rows,
           (long long)calibrate->plan.tokens * calibrate->plan.sequences);
}

static sf_status feed_all(struct sf_calibrate *calibrate, struct sf_engine *engine)
{
    const struct sf_calib_plan *plan = &calibrate->plan;
    int64_t shown_ns = sf_now_ns();
    int32_t added = 0;
    while (calibrate->closed < plan->sequences) {
        while (added < plan->sequences && sf_engine_room(engine) > 0) {
            const struct sf_engine_seq seq = {
                .prompt = calibrate->token + (size_t)added * (size_t)plan->tokens,
                .prompt_tokens = plan->tokens, .answer_max = 1, .full = 1,
                .sampling = {.top_p = 1, .repetition = 1}};
            SF_TRY(sf_engine_add(engine, &seq));
            if (++added == plan->sequences) sf_engine_last(engine);
        }
        SF_TRY(sf_engine_poll(engine, WAIT_MS));
        show(calibrate, engine, &shown_ns);
    }
    return SF_OK;
}

static sf_status coordinate(void *arg, int32_t number, const struct sf_desk *desk,
                            int *exit_code_out)
{
    struct sf_calibrate *calibrate = arg;
    const struct sf_launch_plan *plan = &desk->launch->plan;
    const struct sf_engine_spec spec = {.config = &desk->launch->config, .plan = plan,
                                        .seqs_max = 1,  /* alone, it is never put back */
                                        .to_workers = desk->to_workers,
                                        .from_workers = desk->from_workers,
                                        .events = {.on_token = on_token, .on_closed = on_closed,
                                                   .on_signal = on_signal, .arg = calibrate}};
    struct sf_engine *engine = NULL;
    char words[1024];
    int64_t start = sf_now_ns();
    SF_ASSERT(number == 0);
    sf_log(SF_LOG_INFO, "calibrate: %s, %d tokens through %d layers",
           calibrate->stack.entry[0].method->name, calibrate->plan.tokens, plan->setup.layers);
    sf_status status = sf_engine_create(&spec, &engine);
    if (status == SF_OK) status = feed_all(calibrate, engine);
    snprintf(words, sizeof words, "%s", sf_error_text());
    sf_status told = sf_engine_stop(desk->to_workers, plan->data);
    sf_engine_destroy(engine);
    if (status != SF_OK) return SF_FAIL(status, "%s", words);
    sf_log(SF_LOG_INFO, "calibrate: the model has run in %.1f s", sf_seconds_since(start));
    *exit_code_out = 0;
    return told;
}

/* ---- the profile ----------------------------------------------------------------------------- */
static sf_status set_option(struct sf_stack_entry *entry, const char *key, const char *text)
{
    const struct sf_opt *row = sf_opt_find(entry->method->opts, key);
    return row != NULL ? sf_opt_set(row, entry->cfg, text) : SF_OK;
}

/* What is chosen by rows of any age, as text; malloc'd. */
static sf_status make_text(struct sf_stack_entry *entry, struct sf_profile *profile,
                           char **text_out)
{
    const struct sf_calib_ops *calib = entry->method->calib;
    int32_t columns = 0;
    while (calib->columns[columns] != NULL) columns++;
    sf_profile_round(profile, columns);
    SF_TRY(calib->choose(entry->cfg, profile));
    return sf_profile_text(entry, profile, text_out);
}

/* Frees the text. */
static sf_status write_profile(const char *output, char *text)
{
    sf_status status = sf_file_replace(output, text, strlen(text));
    free(text);
    if (status == SF_OK) sf_log(SF_LOG_INFO, "calibrate: %s is written", output);
    return status;
}

static sf_status learnt(void *arg, const struct sf_launch *launched, struct sf_lesson *taught,
                        struct sf_profile *profile)
{
    const struct sf_calibrate *calibrate = arg;
    struct sf_stack_entry *entry = &taught->stack.entry[0];
    const char *path = launched->config.model.path, *slash = strrchr(path, '/');
    char *text;
    SF_TRY(set_option(entry, "model_sha256", launched->model_sha256));
    sf_profile_note(profile, "model", slash != NULL ? slash + 1 : path);
    SF_TRY(make_text(entry, profile, &text));
    return write_profile(calibrate->output, text);
}

const struct sf_task_ops sf_calibrate_task = {.launch = launch, .coordinate = coordinate,
                                              .prepare = prepare, .lesson = lesson,
                                              .learnt = learnt};

static sf_status choose_again(struct sf_calibrate *calibrate, char **text_out)
{
    struct sf_profile profile = {0};
    SF_TRY(read_config(calibrate));
    SF_TRY(check_output(calibrate));
    SF_TRY(sf_profile_load(calibrate->from, &calibrate->stack.entry[0], &profile));
    sf_status status = make_text(&calibrate->stack.entry[0], &profile, text_out);
    sf_profile_free(&profile);
    return status;
}

int sf_calibrate_again(struct sf_calibrate *calibrate)
{
    char *text;
    sf_status status = choose_again(calibrate, &text);
    if (status != SF_OK) return sf_command_failed(status);
    if (write_profile(calibrate->output, text) == SF_OK) return 0;
    sf_complain(sf_error_text());
    return 1;                           /* nothing is wrong with what was given */
}

void sf_calibrate_free(struct sf_calibrate *calibrate)
{
    sf_stack_free(&calibrate->stack);
    free(calibrate->token);
    calibrate->token = NULL;
}
