/* coordinator/merge_cmd.c: `sheaf merge`: the command line over coordinator/merge.h. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "coordinator/commands.h"
#include "coordinator/manifest.h"
#include "coordinator/merge.h"

struct merge_args { const char *output; const char *const *shard; int32_t shards; };

static const char help[] =
    "usage: sheaf merge --output OUT SHARD...\n"
    "\n"
    "Joins the outputs of array jobs, each over a part of the input, into one file.  Lines are\n"
    "copied as they are, shard by shard.\n"
    "\n"
    "  --output FILE       must not exist; appears whole or not at all\n"
    "  --log-level LEVEL   error, warn, info (default), debug or trace\n"
    "  --log-json          one JSON object a line on stderr\n"
    "\n"
    "A last line that was torn is left out with a warning.  A custom_id that is there twice is\n"
    "refused, unless one of its lines is an error: then the answer is kept.\n"
    "\n"
    "exit codes: 0 every record has an answer, 3 some records hold errors, 2 refused,\n"
    "            1 the output could not be written\n";

/* 1: go on; 0: *exit_out is the exit code. */
static int read_args(int argc, char **argv, struct merge_args *args, int *exit_out)
{
    static const struct option options[] = {
        {"output", required_argument, NULL, 'o'}, {"log-level", required_argument, NULL, 'l'},
        {"log-json", no_argument, NULL, 'j'},     {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0}};
    enum sf_log_level level = SF_LOG_INFO;
    const char *wrong = NULL;
    int json = 0, letter;
    opterr = 0;
    optind = 1;
    *exit_out = 0;
    while (wrong == NULL && (letter = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        switch (letter) {
        case 'o': args->output = optarg; break;
        case 'l':
            if (sf_log_level_parse(optarg, &level) != SF_OK) wrong = sf_error_text();
            break;
        case 'j': json = 1; break;
        case 'h': fputs(help, stdout); return 0;
        default: wrong = sf_option_words(letter, argv);
        }
    }
    sf_log_setup(level, json);
    if (wrong == NULL && args->output == NULL) wrong = "--output is missing";
    if (wrong == NULL && optind == argc) wrong = "SHARD is missing";
    args->shard = (const char *const *)argv + optind;
    args->shards = argc - optind;
    if (wrong != NULL) *exit_out = sf_usage_error("merge", "%s", wrong);
    return wrong == NULL;
}

/* A shard whose run is still going on, or died, will have more lines another day. */
static sf_status warn_if_unfinished(const char *shard)
{
    char *path;
    struct sf_manifest manifest;
    SF_TRY(sf_file_name(shard, ".run/manifest.json", &path));
    if (access(path, F_OK) == 0) {
        if (sf_manifest_read(path, &manifest) != SF_OK) {
            sf_log(SF_LOG_WARN, "cannot tell whether this run has finished: %s", sf_error_text());
        } else {
            if (!manifest.finished)
                sf_log(SF_LOG_WARN, "%s: its run has not finished (%s says so)", shard, path);
            sf_manifest_free(&manifest);
        }
    }
    free(path);
    return SF_OK;
}

int sf_cmd_merge(int argc, char **argv)
{
    struct merge_args args = {NULL, NULL, 0};
    struct sf_merge_totals totals;
    int exit_code, writing = 0;
    if (!read_args(argc, argv, &args, &exit_code)) return exit_code;
    sf_status status = SF_OK;
    for (int32_t s = 0; s < args.shards && status == SF_OK; s++)
        status = warn_if_unfinished(args.shard[s]);
    if (status == SF_OK)
        status = sf_merge(args.output, args.shard, args.shards, &totals, &writing);
    if (status != SF_OK) {
        exit_code = sf_command_failed(status);
        return writing ? 1 : exit_code;
    }
    if (totals.replaced > 0)
        sf_log(SF_LOG_WARN, "%lld errors were left out, as their records are answered elsewhere",
               (long long)totals.replaced);
    sf_log(SF_LOG_INFO, "merged %lld records from %d shards, %lld errors",
           (long long)totals.records, args.shards, (long long)totals.errors);
    return totals.errors > 0 ? 3 : 0;
}
