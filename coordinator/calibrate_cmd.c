/* coordinator/calibrate_cmd.c: the command line of `sheaf calibrate`. */
#include <getopt.h>
#include <stdio.h>

#include "base/log.h"
#include "coordinator/calibrate.h"

static const char calibrate_help[] =
    "usage: sheaf calibrate CONFIG --output PROFILE [--method NAME] [--set KEY=VALUE ...]\n"
    "       sheaf calibrate CONFIG --output PROFILE --from PROFILE [--method NAME] [--set ...]\n"
    "\n"
    "Runs made-up tokens through the exact model, under mpirun or srun as `sheaf run`, and writes\n"
    "what a method of kv_cache.methods learns from that: a YAML file for its `profile:`, to be\n"
    "read and edited.  The same seed gives the same profile; scores of other layouts or types\n"
    "differ by rounding (with run.deterministic the layout does not count).\n"
    "\n"
    "  --output PROFILE    written when all is done, over what is there\n"
    "  --method NAME       the method; default the one of kv_cache.methods that is calibrated.\n"
    "                      Its options are those of its entry there, or the defaults (`sheaf\n"
    "                      methods NAME` says which of them begin with 'calibrate:')\n"
    "  --from PROFILE      no model is run: the choice is made anew from the scores of an earlier\n"
    "                      profile, by the options of CONFIG\n"
    "  --set KEY=VALUE     overrides a key of CONFIG, e.g. --set\n"
    "                      kv_cache.methods.0.induction_head_ratio=0.2\n"
    "  --log-level LEVEL   error, warn, info (default), debug or trace\n"
    "  --log-json          one JSON object a line on stderr\n"
    "\n"
    "While the model runs its cache is exact, whatever CONFIG says, and a profile that CONFIG\n"
    "names need not be there yet.  With data_parallel_size > 1 each sequence runs in one of the\n"
    "groups, and razor_attention has one sequence.\n"
    "\n"
    "exit codes: 0 PROFILE is written, 2 refused before the start, 1 anything else\n";

int sf_calibrate_args(int argc, char **argv, struct sf_calibrate *calibrate, char *words,
                      size_t bytes)
{
    static const struct option options[] = {
        {"output", required_argument, NULL, 'o'},    {"method", required_argument, NULL, 'm'},
        {"from", required_argument, NULL, 'f'},
        SF_COMMON_OPTIONS};
    struct sf_log_options log = {SF_LOG_INFO, 0};
    int letter;
    const char *wrong = NULL;
    opterr = 0;
    optind = 1;
    while (wrong == NULL && (letter = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        switch (letter) {
        case 'o': calibrate->output = optarg; break;
        case 'm': calibrate->method = optarg; break;
        case 'f': calibrate->from = optarg; break;
        case 'h': fputs(calibrate_help, stdout); return 0;
        default:
            wrong = sf_common_option(letter, argv, calibrate->set, &calibrate->common.sets.sets,
                                     &log);
        }
    }
    sf_log_setup(log.level, log.json);
    if (wrong == NULL && optind != argc - 1)
        wrong = optind == argc ? "CONFIG is missing" : "more than one CONFIG";
    if (wrong == NULL && calibrate->output == NULL) wrong = "--output is missing";
    if (wrong == NULL) calibrate->common.config = argv[optind];
    else snprintf(words, bytes, "%s", wrong);
    return wrong == NULL ? 1 : -1;
}
