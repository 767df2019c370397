/* coordinator/bench.c: the stacks of `sheaf bench`, one launch each, and their runs (bench.h). */
#include "coordinator/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "coordinator/bench_impl.h"

enum { WARM_INPUT = 64, WARM_OUTPUT = 4 };

/* ---- before the start ------------------------------------------------------------------------ */
/* Sequences at once, and what is laid over the configuration beside what the command line says.  No
 * prompts begin alike, so shared beginnings would only take pages. */
static void set_stack(struct sf_bench *bench, int32_t number)
{
    struct sf_stack_launch *launched = &bench->list.stack[number];
    struct bench_stack *stack = &bench->stack[number];
    int32_t most = 0;
    stack->seqs[0] = launched->max_num_seqs;
    stack->seqs_count = bench->seqs_count > 0 ? bench->seqs_count : 1;
    if (bench->seqs_count > 0) memcpy(stack->seqs, bench->seqs, sizeof stack->seqs);
    for (int32_t i = 0; i < stack->seqs_count; i++)
        if (stack->seqs[i] > most) most = stack->seqs[i];
    snprintf(stack->seqs_set, sizeof stack->seqs_set, "scheduler.max_num_seqs=%d", most);
    sf_stack_add_set(launched, "scheduler.enable_prefix_caching=false");
    sf_stack_add_set(launched, stack->seqs_set);
}

/* What stands against it is better known now than after hours. */
static sf_status check_json(const char *path)
{
    if (path == NULL || strcmp(path, "-") == 0) return SF_OK;
    int there = access(path, F_OK) == 0;
    int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0)
        return SF_FAIL(SF_IO, "--json '%s' cannot be written: %s", path, strerror(errno));
    close(file);
    if (!there) unlink(path);
    return SF_OK;
}

static sf_status prepare(void *arg, int32_t *launches_out)
{
    struct sf_bench *bench = arg;
    int32_t most = 0;
    SF_TRY(check_json(bench->json));
    SF_TRY(sf_stack_list_make(bench->config, bench->configs, &bench->common.sets, bench->no_exact,
                              &bench->list));
    bench->stack = calloc((size_t)bench->list.stacks, sizeof *bench->stack);
    if (bench->stack == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %d stacks", bench->list.stacks);
    for (int32_t s = 0; s < bench->list.stacks; s++) {
        const struct bench_stack *stack = &bench->stack[s];
        set_stack(bench, s);
        bench->runs_all += stack->seqs_count;
        for (int32_t i = 0; i < stack->seqs_count; i++)
            if (stack->seqs[i] > most) most = stack->seqs[i];
    }
    if (bench->prompts == 0) bench->prompts = 2 * most;
    bench->run = calloc((size_t)bench->runs_all, sizeof *bench->run);
    if (bench->run == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for the figures of %d runs", bench->runs_all);
    *launches_out = bench->list.stacks;
    return SF_OK;
}

static const struct sf_launch_spec *launch(void *arg, int32_t number)
{
    const struct sf_bench *bench = arg;
    SF_ASSERT(number >= 0 && number < bench->list.stacks);
    return &bench->list.stack[number].launch;
}

static sf_status check(void *arg, int32_t number, const struct sf_launch *launch)
{
    struct sf_bench *bench = arg;
    struct bench_stack *stack = &bench->stack[number];
    int64_t longest = (int64_t)bench->input.hi + bench->output.hi;
    if (longest > launch->plan.tokens_max)
        return SF_FAIL(SF_INVALID, "%s: error: --input-len %d and --output-len %d make %lld tokens,"
                       " and scheduler.max_model_len is %d",
                       bench->list.stack[number].launch.config, bench->input.hi, bench->output.hi,
                       (long long)longest, launch->plan.tokens_max);
    return sf_config_text(&launch->config, &stack->config);
}

/* ---- runs ------------------------------------------------------------------------------------ */
static int has_table(const struct sf_bench *bench)
{
    return bench->json == NULL || strcmp(bench->json, "-") != 0;
}

/* One short run that counts for nothing: what happens only once has happened then. */
static sf_status warm_up(struct bench_place *place, const struct bench_load *load,
                         int *stopped_out)
{
    const struct sf_launch_plan *plan = &place->desk->launch->plan;
    struct bench_load small = *load;
    struct bench_run unused = {0};
    int32_t input = load->input.lo < WARM_INPUT ? load->input.lo : WARM_INPUT;
    int32_t output = load->output.lo < WARM_OUTPUT ? load->output.lo : WARM_OUTPUT;
    small.prompts = plan->micro_batches * plan->data;
    small.input = (struct sf_range){input, input};
    small.output = (struct sf_range){output, output};
    sf_status status = bench_run(place, &small, plan->seqs_max, 1, &unused, stopped_out);
    bench_run_free(&unused);
    return status;
}

static sf_status run_all(struct sf_bench *bench, int32_t number, struct bench_place *place,
                         const struct bench_load *load, int *stopped_out)
{
    const struct bench_stack *stack = &bench->stack[number];
    SF_TRY(warm_up(place, load, stopped_out));
    for (int32_t i = 0; i < stack->seqs_count && !*stopped_out; i++) {
        struct bench_run *run = &bench->run[bench->runs];
        sf_log(SF_LOG_INFO, "run %d of %d: %s, %d sequences at once", bench->runs + 1,
               bench->runs_all, bench->list.stack[number].label, stack->seqs[i]);
        SF_TRY(bench_run(place, load, stack->seqs[i], 0, run, stopped_out));
        if (*stopped_out) break;
        run->stack = number;
        bench->runs++;
        if (has_table(bench)) bench_print_run(bench, run);
    }
    return SF_OK;
}

/* After the last run, so that the memory which it takes is in no run's peak; where it fails, the
 * runs are told all the same. */
static void measure_roof(struct sf_bench *bench, struct bench_place *place)
{
    const struct sf_launch_plan *plan = &place->desk->launch->plan;
    struct bench_rates *rates = calloc(1, sizeof *rates);
    double *rate = calloc(2 * (size_t)plan->ranks, sizeof *rate);
    sf_status status = SF_OK;
    if (rates == NULL || rate == NULL)
        status = SF_FAIL(SF_NO_MEMORY, "no memory for the rates of %d ranks", plan->ranks);
    if (status == SF_OK) {
        *rates = (struct bench_rates){rate, rate + plan->ranks, plan->ranks};
        status = bench_rates(place, rates);
    }
    if (status == SF_OK) {
        bench->rates = rates;
        bench->dtype = sf_launch_plan_compute(plan);
        return;
    }
    sf_log(SF_LOG_WARN, "the roof is not measured: %s", sf_error_text());
    free(rate);
    free(rates);
}

static sf_status write_json(const struct sf_bench *bench, const struct sf_launch *launch)
{
    char *text = NULL;
    size_t bytes;
    SF_TRY(bench_json(bench, launch, &text, &bytes));
    sf_status status = SF_OK;
    if (!has_table(bench)) {
        fwrite(text, 1, bytes, stdout); /* main looks whether stdout took it */
    } else {
        int file = open(bench->json, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        if (file < 0) status = SF_FAIL(SF_IO, "%s: %s", bench->json, strerror(errno));
        else status = sf_file_write(file, bench->json, text, bytes);
        if (file >= 0 && close(file) != 0 && status == SF_OK)
            status = SF_FAIL(SF_IO, "%s: %s", bench->json, strerror(errno));
    }
    free(text);
    return status;
}

/* What is finished is told, also when a signal ended it early. */
static sf_status report(const struct sf_bench *bench, const struct sf_launch *launch)
{
    if (has_table(bench) && bench->rates != NULL) bench_print_roof(bench);
    if (has_table(bench) && bench->runs > 0) bench_print_foms(bench);
    return bench->json != NULL ? write_json(bench, launch) : SF_OK;
}

static sf_status coordinate(void *arg, int32_t number, const struct sf_desk *desk,
                            int *exit_code_out)
{
    struct sf_bench *bench = arg;
    struct bench_place place = {.desk = desk};
    struct bench_load load = {0};
    int stopped = 0;
    if (number == 0 && has_table(bench)) bench_print_head(bench);
    sf_status status = bench_load_make(bench, desk, &load);
    if (status == SF_OK) status = run_all(bench, number, &place, &load, &stopped);
    if (status == SF_OK && !stopped && number == bench->list.stacks - 1)
        measure_roof(bench, &place);
    char words[1024];
    snprintf(words, sizeof words, "%s", sf_error_text());
    sf_status told = sf_engine_stop(desk->to_workers, desk->launch->plan.data);
    bench_load_free(&load);
    if (status != SF_OK) return SF_FAIL(status, "%s", words);
    SF_TRY(told);
    if (stopped)
        sf_log(SF_LOG_ERROR, "stopped by a signal after %d of %d runs", bench->runs,
               bench->runs_all);
    *exit_code_out = stopped;
    return stopped || number == bench->list.stacks - 1 ? report(bench, desk->launch) : SF_OK;
}

const struct sf_task_ops sf_bench_task = {.launch = launch, .coordinate = coordinate,
                                          .prepare = prepare, .check = check};

void sf_bench_free(struct sf_bench *bench)
{
    for (int32_t i = 0; bench->stack != NULL && i < bench->list.stacks; i++)
        free(bench->stack[i].config);
    for (int32_t i = 0; i < bench->runs; i++) bench_run_free(&bench->run[i]);
    if (bench->rates != NULL) free(bench->rates->read);
    free(bench->rates);
    free(bench->stack);
    free(bench->list.stack);
    free(bench->run);
}
