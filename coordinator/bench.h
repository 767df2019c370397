/* coordinator/bench.h: `sheaf bench`: made-up prompts through one stack of methods after another,
 * and how fast that was.
 *
 *   command line --prepare--> stacks: [exact] [window] ...      one launch each, all in one world
 *                               |       runs: 1, 8, 32, ... sequences at once, without reloading
 *                               v
 *                     engine --tokens--> figures --> a row of the table, an object of the JSON
 */
#ifndef SHEAF_COORDINATOR_BENCH_H
#define SHEAF_COORDINATOR_BENCH_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
#include "coordinator/commands.h"
#include "coordinator/stacks.h"
#include "coordinator/stats.h"
#include "coordinator/task.h"
SF_C_BEGIN

enum { SF_BENCH_CONFIGS = 32, SF_BENCH_SEQS = 32 };
struct bench_stack;
struct bench_run;
struct bench_rates;
struct sf_bench {
    /* the command line: */
    struct sf_launch_spec common;       /* the first configuration; its sets are the ones below */
    const char *set[SF_SETS_MAX];
    const char *config[SF_BENCH_CONFIGS];
    int32_t configs;
    const char *json;                   /* NULL: none; "-": stdout, in place of the table */
    struct sf_range input, output;      /* tokens */
    int32_t prompts;                    /* of a run; 0: twice the most sequences at once */
    int32_t seqs[SF_BENCH_SEQS], seqs_count;    /* --max-num-seqs; none: the configuration's */
    uint8_t no_exact;
    /* made on rank 0, freed by sf_bench_free: */
    struct sf_stack_list list;
    struct bench_stack *stack;          /* [list.stacks] */
    struct bench_run *run; int32_t runs, runs_all;      /* finished; to be done */
    struct bench_rates *rates;          /* NULL before the last run is finished */
    const char *dtype;                  /* of the products, once something was launched */
};

/* As sf_run_args (commands.h); *bench is zeroed but for its sets. */
int  sf_bench_args(int argc, char **argv, struct sf_bench *bench, char *words, size_t bytes);
extern const struct sf_task_ops sf_bench_task;  /* its arg: struct sf_bench */
void sf_bench_free(struct sf_bench *);

SF_C_END
#endif
