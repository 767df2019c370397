/* coordinator/run_cmd.c: `sheaf run`: its command line, and what it does with a world of ranks. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "coordinator/commands.h"

static const char run_help[] =
    "usage: sheaf run CONFIG --input IN.jsonl --output OUT.jsonl [--resume] [--set KEY=VALUE ...]\n"
    "\n"
    "Answers the records of IN.jsonl (OpenAI batch form) with the model and layout of CONFIG.\n"
    "Under mpirun or srun every rank is a worker and rank 0 also holds the coordinator; the ranks\n"
    "must equal tensor x pipeline x data of the layout.\n"
    "\n"
    "  --input FILE        one JSON object a line: custom_id, url (/v1/chat/completions or\n"
    "                      /v1/completions) and body: messages or prompt (text or token ids),\n"
    "                      max_tokens, temperature, top_p, top_k, min_p, presence_penalty,\n"
    "                      frequency_penalty, repetition_penalty, logit_bias, seed, stop, n,\n"
    "                      logprobs, top_logprobs, echo, prompt_logprobs, ignore_eos,\n"
    "                      return_token_ids; an answer that reaches scheduler.max_model_len ends\n"
    "                      there\n"
    "  --output FILE       records are appended as they finish; FILE.run/ beside it holds the\n"
    "                      manifest, the journal and metrics.csv\n"
    "  --resume            goes on where an earlier run of the same command stopped or died:\n"
    "                      finished records are kept, half-finished ones replayed; with nothing\n"
    "                      there it starts afresh\n"
    "  --retry-errors      with --resume: records that hold errors are tried again\n"
    "  --force             with --resume: although model or configuration differ from before\n"
    "  --set KEY=VALUE     overrides a key of CONFIG, e.g. --set kv_cache.memory=2GiB\n"
    "  --log-level LEVEL   error, warn, info (default), debug or trace\n"
    "  --log-json          one JSON object a line on stderr\n"
    "\n"
    "signals: USR1 or TERM to any rank: stop, save, exit 75; INT the same, twice: abort;\n"
    "         USR2: say in the log what is running\n"
    "\n"
    "exit codes: 0 every record answered, 3 finished but some records hold errors,\n"
    "            2 refused before the start, 1 internal error or a lost rank,\n"
    "            75 stopped early: the same command with --resume goes on\n";

int sf_run_args(int argc, char **argv, struct sf_run_args *args, char *words, size_t bytes)
{
    static const struct option options[] = {
        {"input", required_argument, NULL, 'i'},     {"output", required_argument, NULL, 'o'},
        {"resume", no_argument, NULL, 'r'},          {"force", no_argument, NULL, 'f'},
        {"retry-errors", no_argument, NULL, 'e'},
        SF_COMMON_OPTIONS};
    struct sf_run_files *files = &args->launch.files;
    struct sf_log_options log = {SF_LOG_INFO, 0};
    int letter;
    const char *wrong = NULL;
    opterr = 0;
    optind = 1;
    while (wrong == NULL && (letter = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        switch (letter) {
        case 'i': files->input = optarg; break;
        case 'o': files->output = optarg; break;
        case 'r': files->resume = 1; break;
        case 'f': files->force = 1; break;
        case 'e': files->retry_errors = 1; break;
        case 'h': fputs(run_help, stdout); return 0;
        default: wrong = sf_common_option(letter, argv, args->set, &args->launch.sets.sets, &log);
        }
    }
    sf_log_setup(log.level, log.json);
    if (wrong == NULL && optind != argc - 1)
        wrong = optind == argc ? "CONFIG is missing" : "more than one CONFIG";
    if (wrong == NULL && files->input == NULL) wrong = "--input is missing";
    if (wrong == NULL && files->output == NULL) wrong = "--output is missing";
    if (wrong == NULL && !files->resume && (files->force || files->retry_errors))
        wrong = files->force ? "--force is for --resume" : "--retry-errors is for --resume";
    if (wrong == NULL) args->launch.config = argv[optind];
    else snprintf(words, bytes, "%s", wrong);
    return wrong == NULL ? 1 : -1;
}

/* ---- the task -------------------------------------------------------------------------------- */
static const struct sf_launch_spec *launch(void *arg, int32_t number)
{
    const struct sf_run_args *args = arg;
    SF_ASSERT(number == 0);
    return &args->launch;
}

static sf_status coordinate(void *arg, int32_t number, const struct sf_desk *desk,
                            int *exit_code_out)
{
    const struct sf_run_args *args = arg;
    const struct sf_launch *launched = desk->launch;
    struct sf_run_spec spec = {.config = &launched->config,
                               .plan = &launched->plan,
                               .model = launched->model,
                               .cluster = &launched->cluster,
                               .tokenizer = desk->tokenizer,
                               .records = launched->records,
                               .model_sha256 = launched->model_sha256,
                               .files = args->launch.files,
                               .to_workers = desk->to_workers,
                               .from_workers = desk->from_workers};
    struct sf_run_summary summary;
    SF_ASSERT(number == 0);
    return sf_run(&spec, &summary, exit_code_out);
}

const struct sf_task_ops sf_run_task = {.launch = launch, .coordinate = coordinate};
