/* coordinator/bench_impl.h: what the files of `sheaf bench` share; inside of bench*.c only.
 *
 *   bench_cmd.c   the command line               bench_run.c    one run and its figures
 *   bench.c       stacks, launches, the loop     bench_table.c  for people, and FOM lines
 *   bench_load.c  made-up prompts                bench_json.c   interface.md section 8
 *   bench_roof.c  what the machine would allow */
#ifndef SHEAF_COORDINATOR_BENCH_IMPL_H
#define SHEAF_COORDINATOR_BENCH_IMPL_H
#include "base/json.h"
#include "coordinator/bench.h"
#include "coordinator/engine.h"
SF_C_BEGIN

struct bench_stack {
    char seqs_set[64];                  /* laid over it: the most sequences at once */
    int32_t seqs[SF_BENCH_SEQS], seqs_count;
    char *config;                       /* resolved, as it was launched; once it was checked */
};

/* ---- bench_load.c: what is asked for; a function of the seed alone --------------------------- */
struct bench_load {
    int64_t seed;
    int32_t prompts;
    struct sf_range input, output;      /* tokens */
    int32_t *ordinary, ordinary_count;  /* token ids that prompts are made of; owned */
};
/* The ids are those that stand for text, all of the vocabulary where nobody knows. */
sf_status bench_load_make(const struct sf_bench *, const struct sf_desk *,
                          struct bench_load *out);
void      bench_load_free(struct bench_load *);
struct bench_lengths { int32_t input, output; };
struct bench_lengths bench_lengths_of(const struct bench_load *, int32_t number);
/* token_out[input of its lengths].  No two prompts of a load begin with the same token while there
 * are tokens left. */
void      bench_prompt_of(const struct bench_load *, int32_t number, int32_t *token_out);

/* ---- bench_roof.c: bounds that follow from two rates of each rank ---------------------------- */
struct bench_need {                     /* what a rank cannot do without in a run: */
    double prompt_bytes, prompt_flops;  /* all prompts of its group */
    double round_bytes, round_flops;    /* one token for each sequence that runs in it */
};
struct bench_run;
/* Weights are read once a step of a stage, caches once a token (as they are stored at the mean
 * length); the output head works for tokens that are chosen alone. */
void bench_need_make(const struct sf_launch_plan *, const struct sf_model_desc *,
                     const struct bench_run *, struct bench_need *need_out);
/* The rates of the last launch, on [ranks]; NULL: not measured. */
struct bench_rates { double *read, *flop; int32_t ranks; };
struct bench_roof {                     /* tokens per second; NaN: nothing to tell it by */
    double prefill, decode, output;     /* output: of the whole run */
};
struct bench_roof bench_roof_of(const struct bench_rates *, const struct bench_run *);
double bench_rate_sum(const double *rate, int32_t ranks);

/* ---- bench_run.c ----------------------------------------------------------------------------- */
struct bench_run {                      /* NaN: there was nothing to measure it by */
    int32_t stack, seqs_max;
    int32_t prompts;
    struct sf_range input, output;
    int64_t input_tokens, output_tokens;
    double seconds;                     /* from the start to the last token of the last answer */
    struct sf_spread ttft, tpot, itl, e2el, queue;      /* ms */
    double prefill_rate, decode_rate;   /* tokens per second */
    double step_ms;                     /* of a decode step, as the coordinator sees it ... */
    double phase_ms[SF_PHASES];         /* ... and as the workers do, mean of all ranks */
    double prefill_edit_share;          /* edits (the factors of xkv, say) of the workers' time in
                                           steps with rows of prompts, waits aside */
    double prefill_factor_share;        /* factors of layer groups in the same, on whatever thread;
                                           NaN: there were none */
    double prefill_factor_hidden;       /* of that, what the layers did not wait for */
    double schedule_ms, schedule_share; /* of any step; of `seconds` */
    double batch_full;
    struct sf_engine_counts counts;     /* of this run alone */
    struct sf_sched_load load;          /* at its end */
    struct sf_wire_receipt kv;          /* sum over all sequences and ranks */
    int kv_bound;
    int32_t stages, ranks, cores;       /* cores: threads of all ranks */
    uint8_t on_cpu;
    double *bubble;                     /* [stages] */
    int64_t *rss_peak;                  /* [ranks] bytes */
    struct bench_need *need;            /* [ranks] */
};
struct bench_place {                    /* where runs of one stack take place */
    const struct sf_desk *desk;
    uint64_t serial;                    /* sequences that its workers have seen */
};
/* quiet: no progress.  *stopped_out: a signal came; there is no *out then. */
sf_status bench_run(struct bench_place *, const struct bench_load *, int32_t seqs_max, int quiet,
                    struct bench_run *out, int *stopped_out);
void      bench_run_free(struct bench_run *);
/* What every rank's device can do: nothing runs meanwhile.  rates_out's arrays are the caller's. */
sf_status bench_rates(struct bench_place *, struct bench_rates *rates_out);

/* ---- bench_table.c --------------------------------------------------------------------------- */
/* What stands above the rows, a row, the roof, and all FOM lines. */
void bench_print_head(const struct sf_bench *);
void bench_print_run(const struct sf_bench *, const struct bench_run *);
void bench_print_roof(const struct sf_bench *);
void bench_print_foms(const struct sf_bench *);

/* ---- bench_json.c ---------------------------------------------------------------------------- */
/* malloc'd, with a newline at its end. */
sf_status bench_json(const struct sf_bench *, const struct sf_launch *, char **text_out,
                     size_t *bytes_out);

SF_C_END
#endif
