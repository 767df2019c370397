/* coordinator/bench_run.c: one run of `sheaf bench`: all prompts are there at the start, every
 * answer runs to its length, and then the figures.
 *
 *   measure --- start: prompts go in as there is room ... last token: end --- measure
 *   (loads of the workers count since their start, so what a run took is the difference)
 *
 * Latencies have vLLM's names and meanings; a request arrives when it is handed over, here at the
 * start of the run, so they include the time in the queue, which is said beside them.
 *   ttft  arrival to first token          tpot  (e2el - ttft) / (tokens - 1), of two tokens or more
 *   e2el  arrival to last token           itl   from one token of an answer to the next
 *   queue arrival until its first rows are sent to the workers */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/bench_impl.h"
#include "coordinator/idle.h"
#include "coordinator/progress.h"

enum { WAIT_MS = 200 };

struct request {
    struct bench_lengths lengths;
    double first_ms, last_ms;           /* its tokens, since the start */
    uint8_t opened;
};
struct runner {
    const struct bench_place *place;
    const struct bench_load *load;
    struct sf_engine *engine;
    struct request *request;            /* [prompts] */
    int32_t *token;                     /* [longest prompt] */
    int32_t added;
    struct sf_series ttft, tpot, itl, e2el, queue;
    struct sf_run_summary sum;
    struct sf_wire_receipt kv;
    struct sf_idle idle;
    struct sf_wire_load *before, *after;        /* [ranks] */
    int64_t start_ns;
    double last_ms;
    uint8_t stopped;
};

static double since_start(const struct runner *r) { return sf_seconds_since(r->start_ns) * 1e3; }

/* ---- what the engine tells ------------------------------------------------------------------- */
static void on_open(void *arg, void *owner)
{
    struct runner *r = arg;
    struct request *request = owner;
    if (request->opened) return;        /* once more, after a preemption */
    request->opened = 1;
    r->queue.value[r->queue.count++] = since_start(r);
}

static sf_status on_token(void *arg, void *owner, const int32_t *token, int32_t prompt,
                          int32_t answer, int *end_out)
{
    struct runner *r = arg;
    struct request *request = owner;
    double now = since_start(r);
    (void)token, (void)prompt;
    if (answer == 1) {
        request->first_ms = now;
        SF_TRY(sf_series_add(&r->ttft, now));
    } else {
        SF_TRY(sf_series_add(&r->itl, now - request->last_ms));
    }
    request->last_ms = r->last_ms = now;
    r->sum.sampled_tokens++;
    *end_out = 0;
    if (answer < request->lengths.output) return SF_OK;
    SF_TRY(sf_series_add(&r->e2el, now));
    if (answer == 1) return SF_OK;
    return sf_series_add(&r->tpot, (now - request->first_ms) / (answer - 1));
}

static sf_status on_closed(void *arg, void *owner, const struct sf_wire_receipt *receipt)
{
    struct runner *r = arg;
    const struct request *request = owner;
    int32_t prompt = request->lengths.input;
    sf_wire_receipt_add(&r->kv, receipt);
    SF_TRY(sf_idle_add(&r->idle, prompt, prompt + request->lengths.output - 1, receipt->changed));
    r->sum.kv_bytes_exact = r->kv.bytes_exact;
    r->sum.kv_bytes_stored = r->kv.bytes_stored;
    r->sum.answered++;
    return SF_OK;
}

static sf_status on_signal(void *arg, int32_t rank, int signal)
{
    struct runner *r = arg;
    if (signal == SF_WIRE_DUMP) {
        sf_engine_dump(r->engine);
        return SF_OK;
    }
    if (!r->stopped) sf_log(SF_LOG_WARN, "rank %d was told to stop", rank);
    r->stopped = 1;
    return SF_OK;
}

/* ---- the loop -------------------------------------------------------------------------------- */
/* Whether the pool can hold it is clear: it has a sequence of max_model_len. */
static sf_status add_one(struct runner *r)
{
    struct request *request = &r->request[r->added];
    request->lengths = bench_lengths_of(r->load, r->added);
    bench_prompt_of(r->load, r->added, r->token);
    struct sf_engine_seq seq = {.prompt = r->token,
                                .prompt_tokens = request->lengths.input,
                                .answer_max = request->lengths.output,
                                .sampling = {.top_p = 1, .repetition = 1},     /* greedy */
                                .full = 1,
                                .owner = request};
    r->added++;
    return sf_engine_add(r->engine, &seq);
}

static sf_status fill(struct runner *r)
{
    int32_t prompts = r->load->prompts;
    if (r->added == prompts) return SF_OK;
    while (r->added < prompts && sf_engine_room(r->engine) > 0) SF_TRY(add_one(r));
    if (r->added == prompts) sf_engine_last(r->engine);
    return SF_OK;
}

static sf_status answer_all(struct runner *r, int quiet)
{
    struct sf_progress progress;
    sf_status status = SF_OK;
    sf_progress_start(&progress, r->load->prompts, 0);
    while (status == SF_OK && !r->stopped && r->sum.answered < r->load->prompts) {
        int32_t before = r->added;
        status = fill(r);
        /* What is sent makes room for more to wait. */
        int more = r->added > before && r->added < r->load->prompts;
        if (status == SF_OK) status = sf_engine_poll(r->engine, more ? 0 : WAIT_MS);
        struct sf_sched_load load = sf_engine_load(r->engine);
        struct sf_engine_kv kv = sf_engine_kv(r->engine);  /* as of the last receipts */
        struct sf_progress_now now = {load.running, load.kv_use, kv.bytes_stored, kv.bytes_exact};
        if (!quiet) sf_progress_show(&progress, &r->sum, &now);
    }
    if (!quiet) sf_progress_clear(&progress);
    return status;
}

/* What every rank has done so far; nothing is on its way then. */
static sf_status measure(struct runner *r, enum sf_wire_measure what, struct sf_wire_load *load_out)
{
    SF_TRY(sf_engine_measure(r->engine, what));
    while (sf_engine_loads(r->engine) == NULL || sf_engine_load(r->engine).in_flight > 0)
        SF_TRY(sf_engine_poll(r->engine, WAIT_MS));
    memcpy(load_out, sf_engine_loads(r->engine),
           (size_t)r->place->desk->launch->plan.ranks * sizeof *load_out);
    return SF_OK;
}

/* ---- figures --------------------------------------------------------------------------------- */
static double ratio(double part, double whole) { return whole > 0 ? part / whole : NAN; }

static double decode_seconds(const struct runner *r, int32_t rank, enum sf_phase phase)
{
    return r->after[rank].decode_seconds[phase] - r->before[rank].decode_seconds[phase];
}

/* Shares of edits and factors in what ranks do, waits aside, in steps that do not only decode. */
static void take_prefill(const struct runner *r, struct bench_run *out)
{
    double edits = 0, all = 0, factors = 0, waits = 0;
    for (int32_t i = 0; i < out->ranks; i++) {
        const struct sf_wire_load *before = &r->before[i], *after = &r->after[i];
        factors += after->prefill_factor_seconds - before->prefill_factor_seconds;
        waits += after->prefill_factor_wait_seconds - before->prefill_factor_wait_seconds;
        for (int phase = 0; phase < SF_PHASES; phase++) {
            double seconds = r->after[i].seconds[phase] - r->before[i].seconds[phase] -
                             decode_seconds(r, i, (enum sf_phase)phase);
            if (phase == SF_PHASE_WAIT) continue;
            if (phase == SF_PHASE_EDIT) edits += seconds;
            all += seconds;
        }
    }
    out->prefill_edit_share = ratio(edits, all);
    out->prefill_factor_share = factors > 0 ? ratio(factors, all) : NAN;
    out->prefill_factor_hidden = ratio(factors > waits ? factors - waits : 0, factors);
}

/* Of a decode step, mean of all ranks. */
static void take_phases(const struct runner *r, struct bench_run *out)
{
    int64_t steps = 0;
    for (int32_t i = 0; i < out->ranks; i++) {
        steps += r->after[i].decode_steps - r->before[i].decode_steps;
        out->rss_peak[i] = r->after[i].rss_peak_bytes;
    }
    for (int phase = 0; phase < SF_PHASES; phase++) {
        double seconds = 0;
        for (int32_t i = 0; i < out->ranks; i++)
            seconds += decode_seconds(r, i, (enum sf_phase)phase);
        out->phase_ms[phase] = ratio(seconds * 1e3, (double)steps);
    }
    take_prefill(r, out);
}

/* The share of its decode steps that the ranks of a stage wait. */
static double bubble_of(const struct runner *r, int32_t stage)
{
    const struct sf_launch_plan *plan = &r->place->desk->launch->plan;
    double waits = 0, all = 0;
    for (int32_t i = 0; i < plan->ranks; i++) {
        if (plan->rank[i].stage != stage) continue;
        waits += decode_seconds(r, i, SF_PHASE_WAIT);
        for (int phase = 0; phase < SF_PHASES; phase++)
            all += decode_seconds(r, i, (enum sf_phase)phase);
    }
    return ratio(waits, all);
}

/* Whether the pool holds fewer sequences of the mean lengths than would run. */
static sf_status is_kv_bound(const struct sf_launch *launch, const struct bench_run *run,
                             int *bound_out)
{
    const struct sf_launch_plan *plan = &launch->plan;
    int32_t input = (int32_t)(run->input_tokens / run->prompts);
    int32_t tokens = input + (int32_t)(run->output_tokens / run->prompts);
    int64_t least = INT64_MAX, wanted = run->seqs_max;
    for (int32_t i = 0; i < plan->ranks; i++) {
        struct sf_cost cost;
        SF_TRY(sf_account_sequence(&plan->setup, &launch->config.kv.stack, &plan->rank[i].lanes,
                                   plan->kv_dtype, input, tokens, &cost));
        int64_t seqs = sf_account_holds(plan->rank[i].pages, &cost);
        if (seqs < least) least = seqs;
    }
    if (run->prompts < wanted) wanted = run->prompts;
    *bound_out = least < INT64_MAX / plan->data && least * plan->data < wanted;
    return SF_OK;
}

static void take_counts(const struct sf_engine_counts *before, const struct sf_engine_counts *after,
                        struct sf_engine_counts *out)
{
    *out = *after;
    out->steps -= before->steps;        /* the first measurement; nothing else has run yet */
    out->step_bytes -= before->step_bytes;
    out->schedule_seconds -= before->schedule_seconds;
}

static sf_status take_figures(struct runner *r, const struct sf_engine_counts *before,
                              const struct sf_engine_counts *after, struct bench_run *out)
{
    const struct sf_launch *launch = r->place->desk->launch;
    struct sf_engine_counts *counts = &out->counts;
    double groups = launch->plan.data;  /* they work at the same time */
    take_counts(before, after, counts);
    for (int32_t i = 0; i < r->load->prompts; i++) {
        out->input_tokens += r->request[i].lengths.input;
        out->output_tokens += r->request[i].lengths.output;
    }
    out->seconds = r->last_ms / 1e3;
    out->ttft = sf_series_spread(&r->ttft);
    out->tpot = sf_series_spread(&r->tpot);
    out->itl = sf_series_spread(&r->itl);
    out->e2el = sf_series_spread(&r->e2el);
    out->queue = sf_series_spread(&r->queue);
    out->prefill_rate = ratio(groups * (double)counts->prompt_rows, counts->prompt_seconds);
    out->decode_rate = ratio(groups * (double)(counts->rows - counts->prompt_rows),
                             counts->decode_seconds);
    out->step_ms = ratio(counts->decode_step_seconds * 1e3, (double)counts->decode_steps);
    out->schedule_ms = ratio(counts->schedule_seconds * 1e3, (double)counts->steps);
    out->schedule_share = ratio(counts->schedule_seconds, out->seconds);
    out->batch_full = ratio(counts->full_seconds, counts->fed_seconds);
    out->kv = r->kv;
    take_phases(r, out);
    bench_need_make(&launch->plan, sf_model_desc(launch->model), out, out->need);
    for (int32_t s = 0; s < out->stages; s++) out->bubble[s] = bubble_of(r, s);
    return is_kv_bound(launch, out, &out->kv_bound);
}

/* ---- life ------------------------------------------------------------------------------------ */
static sf_status open_runner(struct runner *r, int32_t seqs_max)
{
    const struct sf_desk *desk = r->place->desk;
    const struct sf_launch_plan *plan = &desk->launch->plan;
    size_t prompts = (size_t)r->load->prompts, ranks = (size_t)plan->ranks;
    struct sf_engine_spec spec = {.config = &desk->launch->config,
                                  .plan = plan,
                                  .seqs_max = (seqs_max + plan->data - 1) / plan->data,
                                  .serial = r->place->serial,
                                  .to_workers = desk->to_workers,
                                  .from_workers = desk->from_workers,
                                  .events = {.on_open = on_open, .on_token = on_token,
                                             .on_closed = on_closed, .on_signal = on_signal,
                                             .arg = r}};
    r->request = calloc(prompts, sizeof *r->request);
    r->token = calloc((size_t)r->load->input.hi, sizeof *r->token);
    r->queue.value = calloc(prompts, sizeof *r->queue.value);
    r->before = calloc(2 * ranks, sizeof *r->before);
    if (!r->request || !r->token || !r->queue.value || !r->before)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %zu prompts", prompts);
    r->after = r->before + ranks;
    SF_TRY(sf_idle_make(&plan->setup, &desk->launch->config.kv.stack, &r->idle));
    return sf_engine_create(&spec, &r->engine);
}

static void close_runner(struct runner *r)
{
    sf_engine_destroy(r->engine);
    sf_idle_free(&r->idle);
    free(r->request);
    free(r->token);
    free(r->before);
    sf_series_free(&r->ttft);
    sf_series_free(&r->tpot);
    sf_series_free(&r->itl);
    sf_series_free(&r->e2el);
    sf_series_free(&r->queue);
}

static sf_status open_run(const struct runner *r, int32_t seqs_max, struct bench_run *run)
{
    const struct sf_launch_plan *plan = &r->place->desk->launch->plan;
    *run = (struct bench_run){.seqs_max = seqs_max, .prompts = r->load->prompts,
                              .input = r->load->input, .output = r->load->output,
                              .stages = plan->pipeline, .ranks = plan->ranks,
                              .cores = plan->ranks * (plan->threads + plan->threads_beside),
                              .on_cpu = strcmp(plan->device, "cpu") == 0};
    run->bubble = calloc((size_t)plan->pipeline, sizeof *run->bubble);
    run->rss_peak = calloc((size_t)plan->ranks, sizeof *run->rss_peak);
    run->need = calloc((size_t)plan->ranks, sizeof *run->need);
    if (run->bubble == NULL || run->rss_peak == NULL || run->need == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for the figures of %d ranks", plan->ranks);
    return SF_OK;
}

void bench_run_free(struct bench_run *run)
{
    free(run->bubble);
    free(run->rss_peak);
    free(run->need);
    *run = (struct bench_run){0};
}

static sf_status run_it(struct runner *r, int quiet, struct bench_run *out)
{
    SF_TRY(measure(r, SF_MEASURE_LOAD, r->before));
    struct sf_engine_counts before = sf_engine_counts(r->engine);
    r->start_ns = sf_now_ns();
    SF_TRY(answer_all(r, quiet));
    if (r->stopped) return SF_OK;
    if (!quiet) sf_idle_warn(&r->idle, "sequences");
    struct sf_engine_counts after = sf_engine_counts(r->engine);
    out->load = sf_engine_load(r->engine);
    SF_TRY(measure(r, SF_MEASURE_LOAD, r->after));
    return take_figures(r, &before, &after, out);
}

sf_status bench_run(struct bench_place *place, const struct bench_load *load, int32_t seqs_max,
                    int quiet, struct bench_run *out, int *stopped_out)
{
    struct runner r = {.place = place, .load = load};
    struct bench_run run;
    sf_status status = open_run(&r, seqs_max, &run);
    if (status == SF_OK) status = open_runner(&r, seqs_max);
    if (status == SF_OK) status = run_it(&r, quiet, &run);
    place->serial += (uint64_t)r.added;
    if (status == SF_OK && !r.stopped) *out = run;
    else bench_run_free(&run);
    *stopped_out = r.stopped;
    close_runner(&r);
    return status;
}

sf_status bench_rates(struct bench_place *place, struct bench_rates *out)
{
    const struct bench_load none = {.prompts = 1, .input = {1, 1}, .output = {1, 1}};
    struct runner r = {.place = place, .load = &none};
    const struct sf_launch_plan *plan = &place->desk->launch->plan;
    int32_t ranks = plan->ranks;
    sf_status status = open_runner(&r, plan->seqs_max * plan->data);    /* its own: each fits */
    if (status == SF_OK) status = measure(&r, SF_MEASURE_ROOF, r.after);
    for (int32_t i = 0; i < ranks && status == SF_OK; i++) {
        out->read[i] = r.after[i].read_rate;
        out->flop[i] = r.after[i].flop_rate;
    }
    close_runner(&r);
    return status;
}
