/* coordinator/bench_table.c: what people see of a bench: a row for each run as it finishes, and at
 * the end every figure once more in a line of its own, for programs that read figures of merit. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/bench_impl.h"

static const double MIB = 1024.0 * 1024.0;

/* The exact cache with as many sequences at once, if that has been run; may be the run itself. */
static const struct bench_run *exact_of(const struct sf_bench *bench, const struct bench_run *run)
{
    if (bench->list.stack[0].methods > 0) return NULL;
    for (const struct bench_run *r = bench->run; r <= run; r++)
        if (r->stack == 0 && r->seqs_max == run->seqs_max) return r;
    return NULL;
}

static double output_rate(const struct bench_run *run)
{
    return (double)run->output_tokens / run->seconds;
}

/* ---- figures --------------------------------------------------------------------------------- */
static double requests(const struct sf_bench *bench, const struct bench_run *run)
{
    (void)bench;
    return run->prompts / run->seconds;
}

static double output(const struct sf_bench *bench, const struct bench_run *run)
{
    (void)bench;
    return output_rate(run);
}

static double to_exact(const struct sf_bench *bench, const struct bench_run *run)
{
    const struct bench_run *exact = exact_of(bench, run);
    return exact != NULL ? output_rate(run) / output_rate(exact) : NAN;
}

static double kv_stored(const struct sf_bench *bench, const struct bench_run *run)
{
    (void)bench;
    return (double)run->kv.bytes_stored / MIB;
}

static double kv_ratio(const struct sf_bench *bench, const struct bench_run *run)
{
    (void)bench;
    return (double)run->kv.bytes_exact / (double)run->kv.bytes_stored;
}

#define FIELD(name, member)                                                                        \
    static double name(const struct sf_bench *bench, const struct bench_run *run)                  \
    {                                                                                              \
        (void)bench;                                                                               \
        return (double)run->member;                                                                \
    }
FIELD(prefill, prefill_rate)
FIELD(decode, decode_rate)
FIELD(ttft, ttft.p50)
FIELD(tpot, tpot.p50)
FIELD(itl, itl.p99)
FIELD(step, step_ms)
FIELD(attention, phase_ms[SF_PHASE_ATTENTION])
FIELD(waited, phase_ms[SF_PHASE_WAIT])
FIELD(prefill_edits, prefill_edit_share)
FIELD(factors, prefill_factor_share)
FIELD(hidden, prefill_factor_hidden)
#undef FIELD

static double of_roof(const struct sf_bench *bench, const struct bench_run *run)
{
    return output_rate(run) / bench_roof_of(bench->rates, run).output;
}

static double decode_of_roof(const struct sf_bench *bench, const struct bench_run *run)
{
    return run->decode_rate / bench_roof_of(bench->rates, run).decode;
}

/* Figures without a column: they are known when all runs are finished. */
static const struct late {
    const char *key;
    double (*value)(const struct sf_bench *, const struct bench_run *);
} lates[] = {{"share_of_roof", of_roof}, {"decode_share_of_roof", decode_of_roof}};
enum { LATES = sizeof lates / sizeof lates[0] };

static const struct column {
    const char *first, *second;         /* what stands above it, in two lines */
    int width, digits;
    const char *key;                    /* of its FOM lines */
    double (*value)(const struct sf_bench *, const struct bench_run *);
} columns[] = {
    {"requests", "/s", 8, 2, "request_throughput", requests},
    {"output", "tok/s", 7, 1, "output_throughput", output},
    {"to", "exact", 6, 2, "output_throughput_to_exact", to_exact},
    {"prefill", "tok/s", 7, 1, "prefill_tok_s", prefill},
    {"edits", "of it", 5, 3, "prefill_edit_share", prefill_edits},
    {"factor", "of it", 6, 3, "prefill_factor_share", factors},
    {"hidden", "of it", 6, 3, "prefill_factor_hidden", hidden},
    {"decode", "tok/s", 7, 1, "decode_tok_s", decode},
    {"TTFT", "p50 ms", 8, 0, "ttft_ms_p50", ttft},
    {"TPOT", "p50 ms", 7, 1, "tpot_ms_p50", tpot},
    {"ITL", "p99 ms", 7, 1, "itl_ms_p99", itl},
    {"step", "ms", 7, 1, "step_ms", step},
    {"attn", "ms", 7, 1, "decode_attention_ms", attention},
    {"wait", "ms", 6, 1, "wait_ms", waited},
    {"KV", "MiB", 8, 1, "kv_mib_stored", kv_stored},
    {"KV", "ratio", 6, 2, "kv_ratio", kv_ratio},
};
enum { COLUMNS = sizeof columns / sizeof columns[0] };

/* ---- lines ----------------------------------------------------------------------------------- */
static int label_width(const struct sf_bench *bench)
{
    size_t width = strlen("stack");
    for (int32_t i = 0; i < bench->list.stacks; i++)
        if (strlen(bench->list.stack[i].label) > width) width = strlen(bench->list.stack[i].label);
    return (int)width;
}

static void print_range(const char *before, struct sf_range range)
{
    if (range.lo == range.hi) printf("%s%d", before, range.lo);
    else printf("%s%d to %d", before, range.lo, range.hi);
}

void bench_print_head(const struct sf_bench *bench)
{
    int width = label_width(bench);
    printf("%d prompts", bench->prompts);
    print_range(" of ", bench->input);
    print_range(" tokens, answers of ", bench->output);
    printf("\n");
    for (int32_t i = 0; i < bench->list.stacks; i++)
        printf("  %-*s  %s%s\n", width, bench->list.stack[i].label,
               bench->list.stack[i].launch.config,
               bench->list.stack[i].methods == 0 ? ", no methods" : "");
    printf("\n%-*s %5s", width, "stack", "seqs");
    for (size_t c = 0; c < COLUMNS; c++) printf(" %*s", columns[c].width, columns[c].first);
    printf("\n%-*s %5s", width, "", "");
    for (size_t c = 0; c < COLUMNS; c++) printf(" %*s", columns[c].width, columns[c].second);
    printf("\n");
    fflush(stdout);
}

void bench_print_run(const struct sf_bench *bench, const struct bench_run *run)
{
    printf("%-*s %5d", label_width(bench), bench->list.stack[run->stack].label, run->seqs_max);
    for (size_t c = 0; c < COLUMNS; c++) {
        double value = columns[c].value(bench, run);
        if (isfinite(value)) printf(" %*.*f", columns[c].width, columns[c].digits, value);
        else printf(" %*s", columns[c].width, "-");
    }
    printf("\n");
    fflush(stdout);
}

void bench_print_roof(const struct sf_bench *bench)
{
    const struct bench_rates *rates = bench->rates;
    double read = bench_rate_sum(rates->read, rates->ranks) / 1e9;
    double flop = bench_rate_sum(rates->flop, rates->ranks) / 1e9;
    if (!isfinite(read) || !isfinite(flop)) return;
    int width = label_width(bench);
    printf("\nroof of %.1f GB/s read and %.0f GFLOP/s in %s:  share of (tok/s)\n", read, flop,
           bench->dtype);
    printf("%-*s %5s %16s %16s %16s\n", width, "stack", "seqs", "the whole run", "prefill",
           "decode");
    for (int32_t i = 0; i < bench->runs; i++) {
        const struct bench_run *run = &bench->run[i];
        struct bench_roof roof = bench_roof_of(rates, run);
        const double part[][2] = {{output_rate(run), roof.output},
                                  {run->prefill_rate, roof.prefill},
                                  {run->decode_rate, roof.decode}};
        printf("%-*s %5d", width, bench->list.stack[run->stack].label, run->seqs_max);
        for (size_t p = 0; p < sizeof part / sizeof part[0]; p++) {
            double share = part[p][0] / part[p][1];
            if (isfinite(share)) printf(" %6.2f (%7.0f)", share, part[p][1]);
            else printf(" %16s", "-");
        }
        printf("\n");
    }
}

static void print_fom(const struct sf_bench *bench, const struct bench_run *run, const char *key,
                      double value)
{
    if (!isfinite(value)) return;
    printf("FOM %s.%d.%s: %.6g\n", bench->list.stack[run->stack].label, run->seqs_max, key, value);
}

void bench_print_foms(const struct sf_bench *bench)
{
    printf("\n");
    for (int32_t i = 0; i < bench->runs; i++) {
        const struct bench_run *run = &bench->run[i];
        for (size_t c = 0; c < COLUMNS; c++)
            print_fom(bench, run, columns[c].key, columns[c].value(bench, run));
        for (size_t l = 0; l < LATES; l++)
            print_fom(bench, run, lates[l].key, lates[l].value(bench, run));
    }
}
