/* coordinator/bench_json.c: everything that a bench has measured as one object: the members of
 * interface.md section 8, and what is worth knowing beside them (`sheaf bench --help` says what
 * each is).  What there was nothing to measure by is null. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_build.h"
#include "coordinator/bench_impl.h"
#include "coordinator/machine_json.h"

/* ---- what it ran on -------------------------------------------------------------------------- */
/* Resolved, by the label of the stack. */
static struct sf_json *configs_of(const struct sf_bench *bench)
{
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    for (int32_t i = 0; i < bench->list.stacks; i++)
        sf_json_put(&status, o, bench->list.stack[i].label,
                    sf_json_new_words(bench->stack[i].config));
    return sf_json_built(status, o);
}

/* ---- one run --------------------------------------------------------------------------------- */
static struct sf_json *methods_of(const struct sf_stack_launch *stack)
{
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (int32_t i = 0; i < stack->methods && status == SF_OK; i++)
        status = sf_json_append(list, sf_json_new_words(stack->method[i]));
    return sf_json_built(status, list);
}

/* 128, or [16, 2000]. */
static struct sf_json *length_of(struct sf_range range)
{
    if (range.lo == range.hi) return sf_json_new_int(range.lo);
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = sf_json_append(list, sf_json_new_int(range.lo));
    if (status == SF_OK) status = sf_json_append(list, sf_json_new_int(range.hi));
    return sf_json_built(status, list);
}

static void put_spread(sf_status *status, struct sf_json *o, const char *name,
                       const struct sf_spread *spread)
{
    const struct { const char *end; double value; } part[] = {
        {"mean", spread->mean}, {"p50", spread->p50}, {"p90", spread->p90}, {"p99", spread->p99}};
    for (size_t i = 0; i < sizeof part / sizeof part[0]; i++) {
        char key[32];
        snprintf(key, sizeof key, "%s_ms_%s", name, part[i].end);
        sf_json_put_real(status, o, key, part[i].value);
    }
}

static void put_speed(sf_status *status, struct sf_json *o, const struct bench_run *run)
{
    sf_json_put_real(status, o, "duration_s", run->seconds);
    sf_json_put_int(status, o, "input_tokens", run->input_tokens);
    sf_json_put_int(status, o, "output_tokens", run->output_tokens);
    sf_json_put_real(status, o, "request_throughput", run->prompts / run->seconds);
    sf_json_put_real(status, o, "output_throughput", (double)run->output_tokens / run->seconds);
    sf_json_put_real(status, o, "total_token_throughput",
                     (double)(run->input_tokens + run->output_tokens) / run->seconds);
    sf_json_put_real(status, o, "prefill_tok_s", run->prefill_rate);
    sf_json_put_real(status, o, "decode_tok_s", run->decode_rate);
    put_spread(status, o, "ttft", &run->ttft);
    put_spread(status, o, "tpot", &run->tpot);
    put_spread(status, o, "itl", &run->itl);
    put_spread(status, o, "e2el", &run->e2el);
    put_spread(status, o, "queue", &run->queue);
}

static struct sf_json *bubbles_of(const struct bench_run *run)
{
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (int32_t s = 0; s < run->stages && status == SF_OK; s++)
        status = sf_json_append(list, sf_json_new_real(run->bubble[s]));
    return sf_json_built(status, list);
}

static void put_time(sf_status *status, struct sf_json *o, const struct bench_run *run)
{
    static const char *const key[SF_PHASES] = {
        [SF_PHASE_GEMM] = "gemm_ms", [SF_PHASE_ATTENTION] = "decode_attention_ms",
        [SF_PHASE_STATISTICS] = "statistics_ms", [SF_PHASE_EDIT] = "edit_ms",
        [SF_PHASE_COMM] = "comm_ms", [SF_PHASE_WAIT] = "wait_ms",
        [SF_PHASE_SAMPLE] = "sample_ms", [SF_PHASE_OTHER] = "other_ms"};
    const struct sf_engine_counts *counts = &run->counts;
    sf_json_put_real(status, o, "step_ms", run->step_ms);
    for (int phase = 0; phase < SF_PHASES; phase++)
        sf_json_put_real(status, o, key[phase], run->phase_ms[phase]);
    sf_json_put_real(status, o, "prefill_edit_share", run->prefill_edit_share);
    sf_json_put_real(status, o, "prefill_factor_share", run->prefill_factor_share);
    sf_json_put_real(status, o, "prefill_factor_hidden", run->prefill_factor_hidden);
    sf_json_put_real(status, o, "schedule_ms", run->schedule_ms);
    sf_json_put_real(status, o, "schedule_share", run->schedule_share);
    sf_json_put(status, o, "bubble_share", bubbles_of(run));
    sf_json_put_real(status, o, "batch_full", run->batch_full);
    sf_json_put_int(status, o, "steps", counts->steps);
    sf_json_put_int(status, o, "decode_steps", counts->decode_steps);
    sf_json_put_real(status, o, "rows_per_step", (double)counts->rows / (double)counts->steps);
    sf_json_put_real(status, o, "step_bytes_per_step",
                     (double)counts->step_bytes / (double)counts->steps);
    sf_json_put_int(status, o, "running_max", counts->running_max);
    sf_json_put_int(status, o, "preempted", run->load.preempted);
    sf_json_put_int(status, o, "tightened", run->load.tightened);
    sf_json_put_int(status, o, "reused_tokens", run->load.reused_tokens);
}

static struct sf_json *peaks_of(const struct bench_run *run)
{
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (int32_t r = 0; r < run->ranks && status == SF_OK; r++)
        status = sf_json_append(list, sf_json_new_int(run->rss_peak[r]));
    return sf_json_built(status, list);
}

static void put_roof(sf_status *status, struct sf_json *o, const struct sf_bench *bench,
                     const struct bench_run *run)
{
    struct bench_roof roof = bench_roof_of(bench->rates, run);
    double output = (double)run->output_tokens / run->seconds;
    sf_json_put_real(status, o, "share_of_roof", output / roof.output);
    sf_json_put_real(status, o, "prefill_share_of_roof", run->prefill_rate / roof.prefill);
    sf_json_put_real(status, o, "decode_share_of_roof", run->decode_rate / roof.decode);
    sf_json_put_real(status, o, "roof_output_tok_s", roof.output);
    sf_json_put_real(status, o, "roof_prefill_tok_s", roof.prefill);
    sf_json_put_real(status, o, "roof_decode_tok_s", roof.decode);
}

/* What the tokens cost: of prompts and answers alike. */
static void put_cores(sf_status *status, struct sf_json *o, const struct bench_run *run)
{
    double rate = (double)(run->input_tokens + run->output_tokens) / run->seconds;
    double days = 1e9 / rate / 86400;
    sf_json_put_real(status, o, "tok_s_per_rank", rate / run->ranks);
    sf_json_put_real(status, o, "tok_s_per_core", run->on_cpu ? rate / run->cores : NAN);
    sf_json_put_real(status, o, "core_days_per_1e9_tokens", run->on_cpu ? days * run->cores : NAN);
    sf_json_put_real(status, o, "gpu_days_per_1e9_tokens", run->on_cpu ? NAN : days * run->ranks);
}

static struct sf_json *run_json(const struct sf_bench *bench, const struct bench_run *run)
{
    const struct sf_stack_launch *stack = &bench->list.stack[run->stack];
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    sf_json_put(&status, o, "methods", methods_of(stack));
    sf_json_put(&status, o, "stack", sf_json_new_words(stack->label));
    sf_json_put(&status, o, "config_file", sf_json_new_words(stack->launch.config));
    sf_json_put_int(&status, o, "max_num_seqs", run->seqs_max);
    sf_json_put_int(&status, o, "num_prompts", run->prompts);
    sf_json_put(&status, o, "input_len", length_of(run->input));
    sf_json_put(&status, o, "output_len", length_of(run->output));
    put_speed(&status, o, run);
    put_time(&status, o, run);
    sf_json_put_int(&status, o, "kv_bytes_exact", run->kv.bytes_exact);
    sf_json_put_int(&status, o, "kv_bytes_stored", run->kv.bytes_stored);
    sf_json_put_int(&status, o, "kv_bytes_peak", run->kv.bytes_peak);
    sf_json_put_int(&status, o, "slots_evicted", run->kv.slots_evicted);
    sf_json_put_int(&status, o, "slots_merged", run->kv.slots_merged);
    sf_json_put_int(&status, o, "slots_requantised", run->kv.slots_requantised);
    sf_json_put(&status, o, "peak_rss_bytes", peaks_of(run));
    put_roof(&status, o, bench, run);
    put_cores(&status, o, run);
    sf_json_put(&status, o, "kv_bound", sf_json_new(run->kv_bound ? SF_JSON_TRUE : SF_JSON_FALSE));
    return sf_json_built(status, o);
}

static struct sf_json *runs_of(const struct sf_bench *bench)
{
    struct sf_json *list = sf_json_new(SF_JSON_ARRAY);
    sf_status status = SF_OK;
    for (int32_t i = 0; i < bench->runs && status == SF_OK; i++)
        status = sf_json_append(list, run_json(bench, &bench->run[i]));
    return sf_json_built(status, list);
}

static struct sf_json *roof_of(const struct sf_bench *bench)
{
    const struct bench_rates *rates = bench->rates;
    struct sf_json *o, *products = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    double most = NAN;
    if (rates == NULL) {
        sf_json_free(products);
        return sf_json_new(SF_JSON_NULL);
    }
    for (int32_t i = 0; i < bench->runs; i++) {
        double output = bench_roof_of(rates, &bench->run[i]).output;
        if (!(most >= output)) most = output;
    }
    o = sf_json_new(SF_JSON_OBJECT);
    sf_json_put_real(&status, o, "memory_gb_s", bench_rate_sum(rates->read, rates->ranks) / 1e9);
    sf_json_put_real(&status, products, bench->dtype,
                     bench_rate_sum(rates->flop, rates->ranks) / 1e9);
    sf_json_put(&status, o, "gemm_gflops", products);
    sf_json_put_real(&status, o, "output_tok_s", most);
    return sf_json_built(status, o);
}

/* ---- all of it ------------------------------------------------------------------------------- */
sf_status bench_json(const struct sf_bench *bench, const struct sf_launch *launch, char **text_out,
                     size_t *bytes_out)
{
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    sf_json_put(&status, o, "machine", sf_machine_json(launch));
    sf_json_put(&status, o, "version", sf_json_new_words(SHEAF_VERSION " (git " SHEAF_GIT ")"));
    sf_json_put(&status, o, "config", configs_of(bench));
    sf_json_put(&status, o, "roof", roof_of(bench));
    sf_json_put(&status, o, "runs", runs_of(bench));
    if (status == SF_OK) status = sf_json_dump(o, 2, text_out, bytes_out);
    sf_json_free(o);
    if (status == SF_OK) (*text_out)[(*bytes_out)++] = '\n';   /* in the place of its NUL */
    return status;
}
