/* coordinator/main.c: the command line, and the one place where coordinator and worker meet.
 *
 * `sheaf run` makes a world of ranks (mpirun or srun: processes; a build without MPI: threads of
 * this process; otherwise one rank), and on every rank: launch (common plan) -> worker open ->
 * worker run.  On rank 0 the coordinator runs beside it in a thread of its own, joined to the
 * worker by two rings. */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "comm/comm.h"
#include "coordinator/commands.h"
#include "coordinator/launch.h"
#include "coordinator/run.h"
#include "worker/worker.h"

enum { RING_PLACES = 4096, SETS_MAX = 256, RANK_THREAD_STACK = 16 << 20 };

struct run_args {
    struct sf_launch_spec launch;
    const char *set[SETS_MAX];
};

/* ---- one rank ---- */

struct coordinator {                    /* the thread beside rank 0's worker */
    struct sf_run_spec spec;
    struct sf_run_summary summary;
    sf_status status;
    int exit_code;
    char words[1024];
};

static void *coordinate(void *arg)
{
    struct coordinator *c = arg;
    c->status = sf_run(&c->spec, &c->summary, &c->exit_code);
    if (c->status != SF_OK) snprintf(c->words, sizeof c->words, "%s", sf_error_text());
    sf_ring_close(c->spec.to_workers);
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
                                   .placement = (enum sf_placement)
                                                    launch->config.parallel.placement,
                                   .stages = plan->pipeline,
                                   .stage = me->stage,
                                   .group = me->dp_rank,
                                   .dtype = plan->dtype,
                                   .kv_dtype = plan->kv_dtype,
                                   .fixed = plan->fixed,
                                   .page_slots = plan->page_slots,
                                   .seqs_max = plan->seqs_max,
                                   .threads = plan->threads,
                                   .pool_bytes = me->pool_bytes,
                                   .populate = plan->populate,
                                   .device = "cpu",
                                   .to_workers = to_workers,
                                   .from_workers = from_workers,
                                   .groups = plan->data};
}

/* A message that nobody will read any more, in either ring. */
static void empty_ring(struct sf_ring *ring)
{
    void *item;
    while (ring != NULL && sf_ring_pop(ring, 0, &item) == SF_OK) free(item);
    if (ring != NULL) sf_ring_destroy(ring);
}

/* Rank 0: coordinator and worker side by side; the exit code of the job, or a failure with words.
 * */
static sf_status run_both(struct coordinator *c, struct sf_worker *worker, int *exit_code_out)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, coordinate, c) != 0)
        return SF_FAIL(SF_INTERNAL, "could not start the coordinator's thread");
    sf_status status = sf_worker_run(worker);
    char words[1024];
    snprintf(words, sizeof words, "%s", sf_error_text());
    if (status != SF_OK) sf_ring_close(c->spec.from_workers);  /* the coordinator gives up too */
    pthread_join(thread, NULL);
    if (status != SF_OK) return SF_FAIL(status, "%s", words);
    if (c->status != SF_OK) return SF_FAIL(c->status, "%s", c->words);
    *exit_code_out = c->exit_code;
    return SF_OK;
}

static sf_status run_rank0(struct sf_launch *launch, const struct run_args *args,
                           struct sf_worker *worker, struct sf_ring *to, struct sf_ring *from,
                           int *exit_code_out)
{
    struct sf_tokenizer *tokenizer = NULL;
    SF_TRY(sf_tokenizer_create(launch->model, &tokenizer));
    struct coordinator c = {.spec = {.config = &launch->config,
                                     .plan = &launch->plan,
                                     .model = launch->model,
                                     .cluster = &launch->cluster,
                                     .tokenizer = tokenizer,
                                     .records = launch->records,
                                     .input = args->launch.input,
                                     .output = args->launch.output,
                                     .to_workers = to,
                                     .from_workers = from}};
    sf_status status = run_both(&c, worker, exit_code_out);
    sf_tokenizer_destroy(tokenizer);
    return status;
}

/* Everything after the launch; *started_out: other ranks may be waiting for this one by now. */
static sf_status run_worker(struct sf_launch *launch, const struct run_args *args,
                            int *exit_code_out, int *started_out)
{
    struct sf_comm *world = launch->world;
    int rank = sf_comm_rank(world);
    struct sf_ring *to = NULL, *from = NULL;
    struct sf_worker *worker = NULL;
    sf_status status = SF_OK;
    if (rank == 0) {
        status = sf_ring_create(RING_PLACES, &to);
        if (status == SF_OK) status = sf_ring_create(RING_PLACES, &from);
    }
    struct sf_worker_spec spec = worker_spec(launch, to, from);
    if (status == SF_OK) status = sf_worker_open(&spec, &worker);
    status = sf_launch_agree(world, status);
    if (status == SF_OK) {
        *started_out = 1;
        status = rank == 0 ? run_rank0(launch, args, worker, to, from, exit_code_out)
                           : sf_worker_run(worker);
    }
    char words[1024];                   /* emptying a closed ring has words of its own */
    snprintf(words, sizeof words, "%s", sf_error_text());
    sf_worker_close(worker);
    empty_ring(to);
    empty_ring(from);
    return status == SF_OK ? SF_OK : SF_FAIL(status, "%s", words);
}

/* A rank that failed in mid-run has told rank 0, which ends the job: wait for that. */
static void await_end(struct sf_comm *world)
{
    void *bytes;
    size_t count;
    int32_t from;
    while (sf_comm_take(world, 0, SF_TAG_ANY, 2, &bytes, &count, &from) == SF_OK) free(bytes);
}

/* The whole of `sheaf run` on one rank; returns the exit code. */
static int run_rank(struct sf_comm *world, const struct run_args *args)
{
    struct sf_launch launch;
    int exit_code = 1, started = 0, rank = sf_comm_rank(world);
    if (sf_comm_size(world) > 1) sf_log_rank(rank);
    sf_status status = sf_launch_open(world, &args->launch, &launch);
    if (status == SF_OK) {
        status = run_worker(&launch, args, &exit_code, &started);
        if (status == SF_OK) status = sf_comm_bcast(world, 0, &exit_code, sizeof exit_code);
    }
    if (status == SF_OK) {
        sf_launch_close(&launch);
        return exit_code;
    }
    if (!started) {                     /* all ranks agree on a refusal and leave together */
        if (rank == 0) sf_complain(sf_error_text());
        if (status == SF_TIMEOUT || status == SF_LOST) sf_comm_abort(world, 1);
        sf_launch_close(&launch);       /* empty if it was the launch that failed */
        return sf_status_exit_code(status);
    }
    if (rank != 0 && status != SF_LOST && status != SF_TIMEOUT) await_end(world);
    if (rank == 0 || status == SF_TIMEOUT) sf_complain(sf_error_text());
    sf_comm_abort(world, 1);
    sf_launch_close(&launch);           /* ranks as threads live on */
    return 1;
}

/* ---- worlds ---- */

struct rank_thread {
    pthread_t thread;
    struct sf_comm *world;
    const struct run_args *args;
    int exit_code;
};

static void *rank_thread(void *arg)
{
    struct rank_thread *self = arg;
    self->exit_code = run_rank(self->world, self->args);
    return NULL;
}

/* Ranks as threads of this process: rank 0 on this thread. */
static int run_threads(int32_t ranks, const struct run_args *args)
{
    struct sf_comm_options options = {0};
    struct sf_comm **world = calloc((size_t)ranks, sizeof(struct sf_comm *));
    struct rank_thread *thread = calloc((size_t)ranks, sizeof *thread);
    pthread_attr_t attributes;
    if (world == NULL || thread == NULL || pthread_attr_init(&attributes) != 0 ||
        sf_comm_loopback_world(ranks, 0, &options, world) != SF_OK) {
        sf_log(SF_LOG_ERROR, "could not make %d ranks", ranks);
        free(world);
        free(thread);
        return 1;
    }
    pthread_attr_setstacksize(&attributes, RANK_THREAD_STACK);
    for (int32_t r = 1; r < ranks; r++) {
        thread[r] = (struct rank_thread){.world = world[r], .args = args};
        if (pthread_create(&thread[r].thread, &attributes, rank_thread, &thread[r]) != 0) {
            sf_log(SF_LOG_ERROR, "could not start the thread of rank %d", r);
            exit(1);                    /* earlier ranks wait for this one: there is no way back */
        }
    }
    int exit_code = run_rank(world[0], args);
    for (int32_t r = 1; r < ranks; r++) pthread_join(thread[r].thread, NULL);
    for (int32_t r = 0; r < ranks; r++) sf_comm_destroy(world[r]);
    pthread_attr_destroy(&attributes);
    free(world);
    free(thread);
    return exit_code;
}

static int run_processes(const struct run_args *args)
{
    struct sf_comm_options options = {0};
    struct sf_comm *world;
    if (sf_comm_mpi_world(&options, &world) != SF_OK) {
        sf_complain(sf_error_text());
        return 1;
    }
    int exit_code = run_rank(world, args);
    sf_comm_destroy(world);
    return exit_code;
}

/* Without MPI the layout says how many threads there are. */
static int ranks_of_layout(const struct run_args *args, int32_t *ranks_out)
{
    struct sf_config config;
    sf_status status = sf_config_load(args->launch.config, &args->launch.sets, &config);
    if (status != SF_OK) {
        sf_complain(sf_error_text());
        return sf_status_exit_code(status);
    }
    int32_t data = config.parallel.data == SF_OPT_AUTO ? 1 : config.parallel.data;
    *ranks_out = config.parallel.tensor * config.parallel.pipeline * data;
    sf_config_free(&config);
    return 0;
}

/* ---- command line ---- */

static const char run_help[] =
    "usage: sheaf run CONFIG --input IN.jsonl --output OUT.jsonl [--set key.path=value ...]\n"
    "\n"
    "Answers the records of IN.jsonl (OpenAI batch form) with the model and layout of CONFIG.\n"
    "Under mpirun or srun every rank is a worker and rank 0 also holds the coordinator; the ranks\n"
    "must equal tensor x pipeline x data of the layout.\n"
    "\n"
    "  --input FILE        one JSON object a line: custom_id, url (/v1/chat/completions or\n"
    "                      /v1/completions) and body: messages or prompt (text or token ids),\n"
    "                      max_tokens, temperature, top_p, top_k, min_p, presence_penalty,\n"
    "                      frequency_penalty, repetition_penalty, logit_bias, seed, stop,\n"
    "                      ignore_eos, return_token_ids; an answer that reaches\n"
    "                      scheduler.max_model_len ends there\n"
    "  --output FILE       must not exist; records are appended as they finish\n"
    "  --set KEY=VALUE     overrides a key of CONFIG, e.g. --set kv_cache.memory=2GiB\n"
    "  --log-level LEVEL   error, warn, info (default), debug or trace\n"
    "  --log-json          one JSON object a line on stderr\n"
    "\n"
    "exit codes: 0 every record answered, 3 finished but some records hold errors,\n"
    "            2 refused before the start, 1 internal error or a lost rank\n";

/* Every rank reads the same command line; the first one complains. */
static int refuse_usage(const char *words)
{
    struct sf_comm_options options = {0};
    struct sf_comm *world = NULL;
    if (sf_comm_launched() && sf_comm_has_mpi() && sf_comm_mpi_world(&options, &world) != SF_OK)
        world = NULL;
    if (world == NULL || sf_comm_rank(world) == 0) sf_usage_error("run", "%s", words);
    if (world != NULL) sf_comm_destroy(world);
    return 2;
}

/* Fills args and sets up the log.  1: go on; 0: help was printed; -1: refused with words. */
static int read_run_args(int argc, char **argv, struct run_args *args, char *words, size_t bytes)
{
    static const struct option options[] = {
        {"input", required_argument, NULL, 'i'},     {"output", required_argument, NULL, 'o'},
        {"set", required_argument, NULL, 's'},       {"log-level", required_argument, NULL, 'l'},
        {"log-json", no_argument, NULL, 'j'},        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0}};
    enum sf_log_level level = SF_LOG_INFO;
    int json = 0, letter;
    const char *wrong = NULL;
    opterr = 0;
    optind = 1;
    while (wrong == NULL && (letter = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        switch (letter) {
        case 'i': args->launch.input = optarg; break;
        case 'o': args->launch.output = optarg; break;
        case 's':
            if (args->launch.sets.sets == SETS_MAX) wrong = "too many --set";
            else args->set[args->launch.sets.sets++] = optarg;
            break;
        case 'l':
            if (sf_log_level_parse(optarg, &level) != SF_OK) wrong = sf_error_text();
            break;
        case 'j': json = 1; break;
        case 'h': fputs(run_help, stdout); return 0;
        default: wrong = sf_option_words(letter, argv);
        }
    }
    sf_log_setup(level, json);
    if (wrong == NULL && optind != argc - 1)
        wrong = optind == argc ? "CONFIG is missing" : "more than one CONFIG";
    if (wrong == NULL && args->launch.input == NULL) wrong = "--input is missing";
    if (wrong == NULL && args->launch.output == NULL) wrong = "--output is missing";
    if (wrong == NULL) args->launch.config = argv[optind];
    else snprintf(words, bytes, "%s", wrong);
    return wrong == NULL ? 1 : -1;
}

static int cmd_run(int argc, char **argv)
{
    struct run_args args = {.launch = {.sets = {.set = args.set}}};
    char words[256];
    int read = read_run_args(argc, argv, &args, words, sizeof words);
    if (read <= 0) return read == 0 ? 0 : refuse_usage(words);
    signal(SIGPIPE, SIG_IGN);
    if (sf_comm_launched() && sf_comm_has_mpi()) return run_processes(&args);
    int32_t ranks = 1;
    int refused = sf_comm_has_mpi() ? 0 : ranks_of_layout(&args, &ranks);
    return refused ? refused : run_threads(ranks, &args);
}

static const struct command {
    const char *name, *help;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"run", "answer a file of records", cmd_run},
    {"plan", "what a layout holds, costs and fits; loads no weights", sf_cmd_plan},
    {"methods", "the KV-cache methods and their options", sf_cmd_methods},
    {"inspect", "what is in a model file", sf_cmd_inspect},
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
