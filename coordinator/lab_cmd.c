/* coordinator/lab_cmd.c: the command line of `sheaf lab`. */
#include <getopt.h>
#include <stdio.h>

#include "base/log.h"
#include "coordinator/lab.h"

static const char lab_help[] =
    "usage: sheaf lab CONFIG --trace IN.safetensors --output OUT.safetensors\n"
    "                 [--set KEY=VALUE ...]\n"
    "\n"
    "Runs one recorded trace through the cache and the methods of CONFIG, which needs no\n"
    "model.path; they are those of `sheaf run`.  Under mpirun the heads are split over\n"
    "parallel.tensor_parallel_size ranks, which changes no position and no value past rounding.\n"
    "\n"
    "  --trace FILE        for each layer layers.L.q F32 [n, q heads, d] and layers.L.k F32\n"
    "                      [n, KV heads, d], both before RoPE, and layers.L.v F32\n"
    "                      [n, KV heads, dv]; tokens I32, sentence_end U8 and turn_end U8 [n] may\n"
    "                      be there; metadata: prompt_tokens (the first rows, the others are\n"
    "                      decoded one at a time), chunk_tokens (of the prompt; 0 or missing:\n"
    "                      whole), rope_theta (0: no RoPE), softmax_scale (missing: d^-1/2)\n"
    "  --output FILE       written when all is done, over what is there: layers.L.out F32\n"
    "                      [n, q heads, dv]; of each lane at the end lanes.L.H.pos, .tier, .bias,\n"
    "                      .k and .v, as attention sees them; metadata stats: JSON with\n"
    "                      bytes_exact, bytes_stored, bytes_predicted (and bytes_predicted_hi\n"
    "                      where the data decide), slots_evicted, slots_merged\n"
    "  --set KEY=VALUE     overrides a key of CONFIG, e.g. --set model.dtype=f32\n"
    "  --log-level LEVEL   error, warn, info (default), debug or trace\n"
    "  --log-json          one JSON object a line on stderr\n"
    "\n"
    "With model.dtype: f32 and kv_cache.dtype: f32 (or auto) everything is f32.  Outputs are in\n"
    "model.dtype as attention writes them, widened for the file.\n"
    "\n"
    "exit codes: 0 OUT is written, 2 refused before the start, 1 anything else\n";

int sf_lab_args(int argc, char **argv, struct sf_lab_args *args, char *words, size_t bytes)
{
    static const struct option options[] = {
        {"trace", required_argument, NULL, 't'},     {"output", required_argument, NULL, 'o'},
        SF_COMMON_OPTIONS};
    struct sf_log_options log = {SF_LOG_INFO, 0};
    int letter;
    const char *wrong = NULL;
    opterr = 0;
    optind = 1;
    while (wrong == NULL && (letter = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        switch (letter) {
        case 't': args->trace = optarg; break;
        case 'o': args->output = optarg; break;
        case 'h': fputs(lab_help, stdout); return 0;
        default: wrong = sf_common_option(letter, argv, args->set, &args->sets.sets, &log);
        }
    }
    sf_log_setup(log.level, log.json);
    if (wrong == NULL && optind != argc - 1)
        wrong = optind == argc ? "CONFIG is missing" : "more than one CONFIG";
    if (wrong == NULL && args->trace == NULL) wrong = "--trace is missing";
    if (wrong == NULL && args->output == NULL) wrong = "--output is missing";
    if (wrong == NULL) args->config = argv[optind];
    else snprintf(words, bytes, "%s", wrong);
    return wrong == NULL ? 1 : -1;
}
