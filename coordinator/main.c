/* coordinator/main.c: the command line, and the one place where coordinator and worker meet.
 *
 * A task (task.h: `sheaf run`, `bench`, `calibrate`) makes a world of ranks (mpirun or srun:
 * processes; a build without MPI: threads of this process; otherwise one rank), and on every rank,
 * for each of its launches: launch (common plan) -> worker open -> worker run.  On rank 0 the
 * coordinator runs beside it in a thread of its own, joined to the worker by two rings.  `sheaf
 * eval` is a task whose launches, alike but for their stacks, share one worker a rank.  `sheaf
 * lab` has a world too, but no model, no steps and no coordinator beside the worker. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/signals.h"
#include "comm/comm.h"
#include "coordinator/bench.h"
#include "coordinator/calibrate.h"
#include "coordinator/commands.h"
#include "coordinator/eval.h"
#include "coordinator/lab.h"
#include "coordinator/launch.h"
#include "coordinator/task.h"
#include "worker/calibrate.h"
#include "worker/lab.h"
#include "worker/worker.h"

enum { RING_PLACES = 4096, RANK_THREAD_STACK = 16 << 20, WRITE_TIMEOUT_MS = 3600 * 1000 };

/* ---- one rank, one launch ---- */

struct coordinator {                    /* the thread beside rank 0's worker */
    const struct sf_task *task;
    int32_t number;                     /* of the launch */
    struct sf_desk desk;
    sf_status status;
    int exit_code;
    char words[1024];
};

static void *coordinate(void *arg)
{
    struct coordinator *c = arg;
    c->status = c->task->ops->coordinate(c->task->arg, c->number, &c->desk, &c->exit_code);
    if (c->status != SF_OK) snprintf(c->words, sizeof c->words, "%s", sf_error_text());
    sf_ring_close(c->desk.to_workers);
    return NULL;
}

static struct sf_worker_spec worker_spec(const struct sf_launch *launch, struct sf_ring *to_workers,
                                         struct sf_ring *from_workers)
{
    const struct sf_launch_plan *plan = &launch->plan;
    const struct sf_plan_rank *me = launch->me;
    return (struct sf_worker_spec){.model = launch->model,
                                   .share = &me->share,
                                   .workspace = &me->workspace,
                                   .stack = &launch->config.kv.stack,
                                   .setup = &launch->setup,
                                   .world = launch->world,
                                   .tensor = launch->tensor,
                                   .placing = plan->placing,
                                   .stages = plan->pipeline,
                                   .stage = me->stage,
                                   .group = me->dp_rank,
                                   .dtype = plan->dtype,
                                   .kv_dtype = plan->kv_dtype,
                                   .fixed = plan->fixed,
                                   .int8 = plan->int8,
                                   .page_slots = plan->page_slots,
                                   .seqs_max = plan->seqs_max,
                                   .threads = plan->threads,
                                   .threads_beside = plan->threads_beside,
                                   .pool_bytes = me->pool_bytes,
                                   .spare_bytes = sf_plan_spare_bytes(me, &launch->cluster),
                                   .populate = plan->populate,
                                   .device = plan->device,
                                   .local_rank = sf_cluster_local_rank(&launch->cluster, me->rank),
                                   .column = launch->column,
                                   .timeout_ms =
                                       (int64_t)(launch->config.run.rank_timeout_s * 1000.0),
                                   .isa_max = plan->isa_max,
                                   .to_workers = to_workers,
                                   .from_workers = from_workers,
                                   .groups = plan->data};
}

/* Launches that are joined: one worker, a cache for each of them. */
struct joined {
    struct sf_launch *launch;           /* [launches] the first `opened` are open */
    int32_t launches, opened;
    struct sf_task_sizes sizes;
    struct sf_worker_stack *beside;     /* [launches - 1] */
};

static void join_spec(const struct joined *joined, struct sf_worker_spec *spec)
{
    int32_t ranks = joined->launch->plan.ranks, rank = joined->launch->me->rank;
    for (int32_t i = 1; i < joined->launches; i++)
        joined->beside[i - 1] =
            (struct sf_worker_stack){.stack = &joined->launch[i].config.kv.stack,
                                     .setup = &joined->launch[i].setup,
                                     .pool_bytes = joined->sizes.pool_bytes[i * ranks + rank],
                                     .page_slots = joined->launch[i].plan.page_slots,
                                     .kv_dtype = joined->launch[i].plan.kv_dtype};
    spec->beside = joined->beside;
    spec->besides = joined->launches - 1;
    spec->seqs_max = joined->sizes.seqs_max;
    spec->pool_bytes = joined->sizes.pool_bytes[rank];
}

/* Rank 0: coordinator and worker side by side; the exit code of the task so far, or a failure with
 * words. */
static sf_status run_both(struct coordinator *c, struct sf_worker *worker, int *exit_code_out)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, coordinate, c) != 0)
        return SF_FAIL(SF_INTERNAL, "could not start the coordinator's thread");
    sf_status status = sf_worker_run(worker);
    char words[1024];
    snprintf(words, sizeof words, "%s", sf_error_text());
    if (status != SF_OK) sf_ring_close(c->desk.from_workers);  /* the coordinator gives up too */
    pthread_join(thread, NULL);
    if (status != SF_OK) return SF_FAIL(status, "%s", words);
    if (c->status != SF_OK) return SF_FAIL(c->status, "%s", c->words);
    *exit_code_out = c->exit_code;
    return SF_OK;
}

static sf_status run_rank0(struct coordinator *c, struct sf_worker *worker, int *exit_code_out)
{
    struct sf_tokenizer *tokenizer = NULL;
    SF_TRY(sf_tokenizer_create(c->desk.launch->model, &tokenizer));
    c->desk.tokenizer = tokenizer;
    sf_status status = run_both(c, worker, exit_code_out);
    sf_tokenizer_destroy(tokenizer);
    return status;
}

/* ---- what is learnt meanwhile ---- */

struct lesson {                         /* of a task that learns nothing: all empty */
    struct sf_lesson told;
    struct sf_setup setup;              /* the launch's, with the method's options */
    struct sf_calib *calib;
};

static sf_status open_lesson(const struct sf_launch *launch, const struct sf_task *task,
                             struct lesson *lesson)
{
    if (task->ops->lesson == NULL) return SF_OK;
    SF_TRY(task->ops->lesson(task->arg, launch, &lesson->told));
    const struct sf_stack_entry *entry = &lesson->told.stack.entry[0];
    lesson->setup = launch->setup;
    lesson->setup.cfg = entry->cfg;
    const struct sf_calib_spec spec = {.method = entry->method, .setup = &lesson->setup,
                                       .taps = lesson->told.plan.taps,
                                       .desc = sf_model_desc(launch->model),
                                       .share = &launch->me->share, .world = launch->world,
                                       .sequence_of = sf_calibrate_sequence};
    sf_status status = sf_calib_can(entry->method, &lesson->told.plan);
    if (status == SF_OK) status = sf_calib_open(&spec, &lesson->calib);
    return sf_launch_agree(launch->world, status);
}

/* The parts of all ranks come together; rank 0 keeps the whole. */
static sf_status end_lesson(const struct sf_launch *launch, const struct sf_task *task,
                            struct lesson *lesson, int exit_code)
{
    struct sf_profile profile = {0};
    if (lesson->calib == NULL) return SF_OK;
    SF_TRY(sf_calib_reduce(lesson->calib));
    if (sf_comm_rank(launch->world) != 0 || exit_code != 0) return SF_OK;
    sf_status status = sf_calib_write(lesson->calib, lesson->told.stack.entry[0].cfg,
                                      lesson->told.plan.tokens, &profile);
    if (status == SF_OK) status = task->ops->learnt(task->arg, launch, &lesson->told, &profile);
    sf_profile_free(&profile);
    return status;
}

static void close_lesson(struct lesson *lesson)
{
    sf_calib_close(lesson->calib);
    sf_stack_free(&lesson->told.stack);
}

/* Everything after the launch; *started_out: other ranks may be waiting for this one by now.
 * joined: NULL, or what the launch is the first of. */
static sf_status run_worker(struct sf_launch *launch, const struct joined *joined,
                            const struct sf_task *task, int32_t number, int *exit_code_out,
                            int *started_out)
{
    struct sf_comm *world = launch->world;
    int rank = sf_comm_rank(world);
    struct lesson lesson = {0};
    struct sf_ring *to = NULL, *from = NULL;
    struct sf_worker *worker = NULL;
    sf_status status = SF_OK;
    if (rank == 0) {
        status = sf_ring_create(RING_PLACES, &to);
        if (status == SF_OK) status = sf_ring_create(RING_PLACES, &from);
    }
    struct sf_worker_spec spec = worker_spec(launch, to, from);
    status = sf_launch_agree(world, status);
    if (status == SF_OK) status = open_lesson(launch, task, &lesson);
    if (lesson.calib != NULL) spec.rows_tap = sf_calib_tap(lesson.calib);
    if (joined != NULL) join_spec(joined, &spec);
    if (status == SF_OK) status = sf_worker_open(&spec, &worker);
    status = sf_launch_agree(world, status);
    if (status == SF_OK) {
        struct coordinator c = {.task = task, .number = number,
                                .desk = {.launch = launch, .to_workers = to,
                                         .from_workers = from}};
        *started_out = 1;
        status = rank == 0 ? run_rank0(&c, worker, exit_code_out) : sf_worker_run(worker);
        if (status == SF_OK) status = end_lesson(launch, task, &lesson, *exit_code_out);
    }
    sf_worker_close(worker, status);
    close_lesson(&lesson);
    sf_ring_destroy(to);
    sf_ring_destroy(from);
    return status;
}

/* A rank that failed in mid-run has told rank 0, which ends the job: wait for that. */
static void await_end(struct sf_comm *world)
{
    struct sf_buffer taken = {0};
    while (sf_comm_take(world, 0, SF_TAG_ANY, 2, &taken, NULL) == SF_OK) continue;
    sf_buffer_free(&taken);
}

/* After a failure, while its words are fresh.  Before a launch has started all ranks agree on it
 * and leave together; afterwards the job is ended, and this returns only where ranks are threads.
 * */
static void give_up(struct sf_comm *world, sf_status status, int started)
{
    int rank = sf_comm_rank(world), gone = status == SF_LOST || status == SF_TIMEOUT;
    if (started && rank != 0 && !gone) await_end(world);
    if (rank == 0 || (status == SF_TIMEOUT && (started || rank == 1)))
        sf_complain(sf_error_text());
    if (started || gone) sf_comm_abort(world, 1);
}

static const struct sf_launch_spec *launch_of(struct sf_comm *world, const struct sf_task *task,
                                              int32_t number)
{
    return sf_comm_rank(world) == 0 ? task->ops->launch(task->arg, number) : task->common;
}

/* *exit_code_out: what all ranks leave with, or 0: the next launch may follow. */
static sf_status run_launch(struct sf_comm *world, const struct sf_task *task, int32_t number,
                            int *exit_code_out)
{
    struct sf_launch launch;
    int started = 0;
    if (number > 0) sf_memory_forget_peak();    /* each launch has its own */
    sf_status status = sf_launch_open(world, launch_of(world, task, number), &launch);
    if (status == SF_OK) {
        status = run_worker(&launch, NULL, task, number, exit_code_out, &started);
        if (status == SF_OK)
            status = sf_comm_bcast(world, 0, exit_code_out, sizeof *exit_code_out);
    }
    if (status != SF_OK) {
        give_up(world, status, started);
        *exit_code_out = started || number > 0 ? 1 : sf_status_exit_code(status);
    }
    sf_launch_close(&launch);           /* empty if it was the launch that failed */
    return status;
}

/* ---- one rank, launches that are joined ---- */

/* Rank 0 decides, the others are told. */
static sf_status share_sizes(struct sf_comm *world, const struct sf_task *task,
                             struct joined *joined)
{
    size_t pools = (size_t)joined->launches * (size_t)sf_comm_size(world);
    sf_status status = SF_OK;
    joined->sizes.pool_bytes = calloc(pools, sizeof *joined->sizes.pool_bytes);
    if (joined->sizes.pool_bytes == NULL)
        status = SF_FAIL(SF_NO_MEMORY, "no memory for the sizes of %d stacks", joined->launches);
    sf_comm_set_timeout(world, WRITE_TIMEOUT_MS);   /* the others wait while rank 0 reads texts */
    if (status == SF_OK && sf_comm_rank(world) == 0)
        status = task->ops->join(task->arg, joined->launch, joined->launches, &joined->sizes);
    SF_TRY(sf_launch_agree(world, status));
    double timeout_s = joined->launch->config.run.rank_timeout_s;
    sf_comm_set_timeout(world, (int64_t)(timeout_s * 1000.0));
    SF_TRY(sf_comm_bcast(world, 0, &joined->sizes.seqs_max, sizeof joined->sizes.seqs_max));
    return sf_comm_bcast(world, 0, joined->sizes.pool_bytes,
                         pools * sizeof *joined->sizes.pool_bytes);
}

static sf_status open_joined(struct sf_comm *world, const struct sf_task *task,
                             struct joined *joined)
{
    size_t launches = (size_t)joined->launches;
    sf_status status = SF_OK;
    joined->launch = calloc(launches, sizeof *joined->launch);
    joined->beside = calloc(launches, sizeof *joined->beside);
    if (joined->launch == NULL || joined->beside == NULL)
        status = SF_FAIL(SF_NO_MEMORY, "no memory for %zu launches", launches);
    SF_TRY(sf_launch_agree(world, status));
    for (; joined->opened < joined->launches; joined->opened++)
        SF_TRY(sf_launch_open_beside(world, launch_of(world, task, joined->opened),
                                     joined->opened > 0 ? joined->launch : NULL,
                                     &joined->launch[joined->opened]));
    return share_sizes(world, task, joined);
}

/* Returns the exit code. */
static int run_joined(struct sf_comm *world, const struct sf_task *task, int32_t launches)
{
    struct joined joined = {.launches = launches};
    int started = 0, exit_code = 0;
    sf_status status = open_joined(world, task, &joined);
    if (status == SF_OK)
        status = run_worker(joined.launch, &joined, task, 0, &exit_code, &started);
    if (status == SF_OK) {
        sf_comm_set_timeout(world, WRITE_TIMEOUT_MS);   /* ... and while it works out figures */
        status = sf_comm_bcast(world, 0, &exit_code, sizeof exit_code);
    }
    if (status != SF_OK) {
        give_up(world, status, started);
        exit_code = started ? 1 : sf_status_exit_code(status);
    }
    for (int32_t i = 0; i < joined.opened; i++) sf_launch_close(&joined.launch[i]);
    free(joined.launch);
    free(joined.beside);
    free(joined.sizes.pool_bytes);
    return exit_code;
}

/* ---- one rank, the whole task ---- */

static sf_status look_at(struct sf_comm *world, const struct sf_task *task, int32_t number)
{
    struct sf_launch launch;
    SF_TRY(sf_launch_open(world, launch_of(world, task, number), &launch));
    sf_status status = SF_OK;
    if (sf_comm_rank(world) == 0) status = task->ops->check(task->arg, number, &launch);
    status = sf_launch_agree(world, status);
    sf_launch_close(&launch);
    return status;
}

/* How many launches, and whether all of them can be. */
static sf_status prepare(struct sf_comm *world, const struct sf_task *task, int32_t *launches_out)
{
    sf_status status = SF_OK;
    *launches_out = 1;
    if (task->ops->prepare != NULL) {
        if (sf_comm_rank(world) == 0) status = task->ops->prepare(task->arg, launches_out);
        SF_TRY(sf_launch_agree(world, status));
        SF_TRY(sf_comm_bcast(world, 0, launches_out, sizeof *launches_out));
    }
    for (int32_t i = 0; i < *launches_out && task->ops->check != NULL; i++)
        SF_TRY(look_at(world, task, i));
    return SF_OK;
}

/* Returns the exit code. */
static int task_rank(struct sf_comm *world, const void *arg)
{
    const struct sf_task *task = arg;
    int32_t launches;
    int exit_code = 0;
    sf_status status = prepare(world, task, &launches);
    if (status != SF_OK) {
        give_up(world, status, 0);
        return sf_status_exit_code(status);
    }
    if (task->ops->join != NULL) return run_joined(world, task, launches);
    for (int32_t i = 0; i < launches && status == SF_OK && exit_code == 0; i++)
        status = run_launch(world, task, i, &exit_code);
    return exit_code;
}

/* ---- one rank of a lab ---- */

static sf_status run_trace(struct sf_lab *lab, struct sf_comm *world,
                           const struct sf_lab_args *args, const struct sf_lab_launch *launch)
{
    struct sf_trace_result result = {0};
    struct sf_trace_counts counts;
    sf_status status = sf_lab_gather(lab, sf_lab_run(lab), &result, &counts);
    sf_comm_set_timeout(world, WRITE_TIMEOUT_MS);   /* the others wait while rank 0 writes */
    if (status == SF_OK && sf_comm_rank(world) == 0)
        status = sf_lab_write(args, launch, &result, &counts);
    sf_trace_result_free(&result);
    return status;
}

static sf_status open_trace(struct sf_comm *world, const struct sf_lab_launch *launch,
                            struct sf_lab **lab_out)
{
    struct sf_lab_spec spec = {.trace = &launch->trace,
                               .share = &launch->share,
                               .stack = &launch->config.kv.stack,
                               .setup = &launch->setup,
                               .world = world,
                               .placing.rule = (enum sf_placement)launch->config.parallel.placement,
                               .dtype = launch->dtype,
                               .kv_dtype = launch->kv_dtype,
                               .page_slots = launch->page_slots,
                               .threads = launch->threads,
                               .isa_max = sf_plan_isa_max(&launch->config),
                               .pool_bytes = launch->pool_bytes,
                               .device = launch->device,
                               .local_rank = launch->local_rank};
    return sf_launch_agree(world, sf_lab_open(&spec, lab_out));
}

/* Returns the exit code. */
static int lab_rank(struct sf_comm *world, const void *arg)
{
    const struct sf_lab_args *args = arg;
    struct sf_lab_launch launch;
    struct sf_lab *lab = NULL;
    int started = 0;
    sf_status status = sf_lab_launch_open(world, args, &launch);
    if (status == SF_OK) {
        status = open_trace(world, &launch, &lab);
        if (status == SF_OK) {
            started = 1;
            status = run_trace(lab, world, args, &launch);
            if (status != SF_LOST && status != SF_TIMEOUT) status = sf_launch_agree(world, status);
        }
        sf_lab_close(lab);
        sf_lab_launch_close(&launch);
    }
    if (status == SF_OK) return 0;
    /* All ranks have agreed on it, unless one is gone. */
    give_up(world, status, started && (status == SF_LOST || status == SF_TIMEOUT));
    return started ? 1 : sf_status_exit_code(status);
}

/* ---- worlds ---- */

struct ranks {                          /* what each rank of a world does */
    int (*run)(struct sf_comm *world, const void *arg); /* returns the exit code */
    const void *arg;
    const char *config;                 /* for the layout where ranks are threads */
    const struct sf_config_sets *sets;
};

static int run_rank(struct sf_comm *world, const struct ranks *ranks)
{
    if (sf_comm_size(world) > 1) sf_log_rank(sf_comm_rank(world));
    return ranks->run(world, ranks->arg);
}

struct rank_thread {
    pthread_t thread;
    struct sf_comm *world;
    const struct ranks *ranks;
    int exit_code;
};

static void *rank_thread(void *arg)
{
    struct rank_thread *self = arg;
    self->exit_code = run_rank(self->world, self->ranks);
    return NULL;
}

/* Ranks as threads of this process: rank 0 on this thread. */
static int run_threads(int32_t count, const struct ranks *ranks)
{
    struct sf_comm_options options = {0};
    struct sf_comm **world = calloc((size_t)count, sizeof(struct sf_comm *));
    struct rank_thread *thread = calloc((size_t)count, sizeof *thread);
    pthread_attr_t attributes;
    if (world == NULL || thread == NULL || pthread_attr_init(&attributes) != 0 ||
        sf_comm_loopback_world(count, 0, &options, world) != SF_OK) {
        sf_log(SF_LOG_ERROR, "could not make %d ranks", count);
        free(world);
        free(thread);
        return 1;
    }
    pthread_attr_setstacksize(&attributes, RANK_THREAD_STACK);
    for (int32_t r = 1; r < count; r++) {
        thread[r] = (struct rank_thread){.world = world[r], .ranks = ranks};
        if (pthread_create(&thread[r].thread, &attributes, rank_thread, &thread[r]) != 0) {
            sf_log(SF_LOG_ERROR, "could not start the thread of rank %d", r);
            exit(1);                    /* earlier ranks wait for this one: there is no way back */
        }
    }
    int exit_code = run_rank(world[0], ranks);
    for (int32_t r = 1; r < count; r++) pthread_join(thread[r].thread, NULL);
    for (int32_t r = 0; r < count; r++) sf_comm_destroy(world[r]);
    pthread_attr_destroy(&attributes);
    free(world);
    free(thread);
    return exit_code;
}

static int run_processes(const struct ranks *ranks)
{
    struct sf_comm_options options = {0};
    struct sf_comm *world;
    if (sf_comm_mpi_world(&options, &world) != SF_OK) {
        sf_complain(sf_error_text());
        return 1;
    }
    int exit_code = run_rank(world, ranks);
    sf_comm_destroy(world);
    return exit_code;
}

/* Without MPI the layout says how many threads there are. */
static int ranks_of_layout(const struct ranks *ranks, int32_t *count_out)
{
    struct sf_config config;
    sf_status status = sf_config_load(ranks->config, ranks->sets, &config);
    if (status != SF_OK) {
        sf_complain(sf_error_text());
        return sf_status_exit_code(status);
    }
    int32_t data = config.parallel.data == SF_OPT_AUTO ? 1 : config.parallel.data;
    *count_out = config.parallel.tensor * config.parallel.pipeline * data;
    sf_config_free(&config);
    return 0;
}

/* ---- command line ---- */

/* Every rank reads the same command line; the first one complains. */
static int refuse_usage(const char *command, const char *words)
{
    struct sf_comm_options options = {0};
    struct sf_comm *world = NULL;
    if (sf_comm_launched() && sf_comm_has_mpi() && sf_comm_mpi_world(&options, &world) != SF_OK)
        world = NULL;
    if (world == NULL || sf_comm_rank(world) == 0) sf_usage_error(command, "%s", words);
    if (world != NULL) sf_comm_destroy(world);
    return 2;
}

static int run_world(const struct ranks *ranks)
{
    int32_t count = 1;
    signal(SIGPIPE, SIG_IGN);
    if (sf_comm_launched() && sf_comm_has_mpi()) return run_processes(ranks);
    int refused = sf_comm_has_mpi() ? 0 : ranks_of_layout(ranks, &count);
    return refused ? refused : run_threads(count, ranks);
}

static int run_task(const struct sf_task *task)
{
    const struct ranks ranks = {task_rank, task, task->common->config, &task->common->sets};
    sf_signals_catch();
    return run_world(&ranks);
}

static int cmd_run(int argc, char **argv)
{
    struct sf_run_args args = {.launch = {.sets = {.set = args.set}}};
    char words[256];
    int read = sf_run_args(argc, argv, &args, words, sizeof words);
    if (read <= 0) return read == 0 ? 0 : refuse_usage("run", words);
    const struct sf_task task = {&sf_run_task, &args, &args.launch};
    return run_task(&task);
}

static int cmd_bench(int argc, char **argv)
{
    struct sf_bench bench = {.common = {.sets = {.set = bench.set}}};
    char words[256];
    int read = sf_bench_args(argc, argv, &bench, words, sizeof words);
    if (read <= 0) return read == 0 ? 0 : refuse_usage("bench", words);
    const struct sf_task task = {&sf_bench_task, &bench, &bench.common};
    int exit_code = run_task(&task);
    sf_bench_free(&bench);
    return exit_code;
}

static int cmd_eval(int argc, char **argv)
{
    struct sf_eval eval = {.common = {.sets = {.set = eval.set}}};
    char words[256];
    int read = sf_eval_args(argc, argv, &eval, words, sizeof words);
    if (read <= 0) return read == 0 ? 0 : refuse_usage("eval", words);
    const struct sf_task task = {&sf_eval_task, &eval, &eval.common};
    int exit_code = run_task(&task);
    sf_eval_free(&eval);
    return exit_code;
}

static int choose_rank(struct sf_comm *world, const void *arg)
{
    struct sf_calibrate *calibrate = *(struct sf_calibrate *const *)arg;
    return sf_comm_rank(world) == 0 ? sf_calibrate_again(calibrate) : 0;
}

/* A signal simply ends it: half of a calibration is worth nothing. */
static int cmd_calibrate(int argc, char **argv)
{
    struct sf_calibrate calibrate = {.common = {.sets = {.set = calibrate.set}}}, *arg = &calibrate;
    char words[256];
    int read = sf_calibrate_args(argc, argv, &calibrate, words, sizeof words);
    if (read <= 0) return read == 0 ? 0 : refuse_usage("calibrate", words);
    const struct sf_task task = {&sf_calibrate_task, &calibrate, &calibrate.common};
    struct ranks ranks = {task_rank, &task, calibrate.common.config, &calibrate.common.sets};
    if (calibrate.from != NULL) {
        ranks.run = choose_rank;
        ranks.arg = &arg;
    }
    int exit_code = run_world(&ranks);
    sf_calibrate_free(&calibrate);
    return exit_code;
}

/* A signal simply ends it: nothing of a trace is worth saving. */
static int cmd_lab(int argc, char **argv)
{
    struct sf_lab_args args = {.sets = {.set = args.set}};
    char words[256];
    int read = sf_lab_args(argc, argv, &args, words, sizeof words);
    if (read <= 0) return read == 0 ? 0 : refuse_usage("lab", words);
    const struct ranks ranks = {lab_rank, &args, args.config, &args.sets};
    return run_world(&ranks);
}

static const struct command {
    const char *name, *help;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"run", "answer a file of records", cmd_run},
    {"bench", "how fast stacks of methods are, on made-up prompts", cmd_bench},
    {"eval", "how good stacks of methods are, against the exact cache", cmd_eval},
    {"calibrate", "what a method learns of a model beforehand: its profile", cmd_calibrate},
    {"lab", "one method on recorded queries, keys and values", cmd_lab},
    {"plan", "what a layout holds, costs and fits; loads no weights", sf_cmd_plan},
    {"merge", "outputs of array jobs into one", sf_cmd_merge},
    {"methods", "the KV-cache methods and their options", sf_cmd_methods},
    {"inspect", "what is in a model file or a Hugging Face directory", sf_cmd_inspect},
    {"doctor", "what this machine and this build have", sf_cmd_doctor},
};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

static void print_help(FILE *file)
{
    fputs("usage: sheaf COMMAND [ARGUMENTS]     (sheaf COMMAND --help)\n\n"
          "Batch inference of large language models over MPI ranks, with a compressed "
          "KV cache.\n\n",
          file);
    for (size_t i = 0; i < COMMANDS; i++)
        fprintf(file, "  %-10s %s\n", commands[i].name, commands[i].help);
    fputs("\n  --version  version, git revision and build options\n", file);
}

static int run_command(int argc, char **argv)
{
    const char *names[COMMANDS];
    for (size_t i = 0; i < COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
        names[i] = commands[i].name;
    }
    const char *nearest = sf_nearest_name(argv[1], names, COMMANDS);
    sf_log(SF_LOG_ERROR, "unknown command '%s'%s%s%s (see 'sheaf --help')", argv[1],
           nearest != NULL ? "; did you mean '" : "", nearest != NULL ? nearest : "",
           nearest != NULL ? "'?" : "");
    return 2;
}

/* Answers that did not reach their file are no success. */
static int close_stdout(int exit_code)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return exit_code;
    sf_log(SF_LOG_ERROR, "standard output: could not be written: %s", strerror(errno));
    return exit_code != 0 ? exit_code : 1;
}

int main(int argc, char **argv)
{
    signal(SIGXFSZ, SIG_IGN);           /* a file that may not grow: an error of that write */
    if (argc < 2) {
        sf_log(SF_LOG_ERROR, "no command is given (see 'sheaf --help')");
        return 2;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_help(stdout);
        return close_stdout(0);
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("sheaf %s (git %s), %s, %s\n", SHEAF_VERSION, SHEAF_GIT, SHEAF_BUILD,
               sf_comm_has_mpi() ? "MPI" : "no MPI: ranks as threads");
        return close_stdout(0);
    }
    return close_stdout(run_command(argc, argv));
}
