/* coordinator/plan_cmd.c: `sheaf plan`: a layout on a cluster that need not be this machine. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "coordinator/commands.h"
#include "coordinator/devices.h"
#include "coordinator/plan.h"

enum { SETS_MAX = 256, COUNT_MAX = 1 << 20 };

struct plan_args {
    const char *config;
    int32_t nodes, ranks_per_node;      /* 0: not given */
    int64_t memory;                     /* bytes per rank; 0: not given */
    int json;
    const char *set[SETS_MAX];
    struct sf_config_sets sets;
};

static const char help[] =
    "usage: sheaf plan CONFIG [--nodes N] [--ranks-per-node R] [--memory-per-rank B] [--json]\n"
    "                  [--set key.path=value ...]\n"
    "\n"
    "Shows what each rank would hold of the model and its cache, and whether it fits.  Reads the\n"
    "header of a GGUF file or the config.json of a Hugging Face directory; needs no MPI and no\n"
    "weights.\n"
    "\n"
    "  --nodes N             nodes of the cluster (1)\n"
    "  --ranks-per-node R    ranks on each (the ranks of CONFIG's layout / nodes)\n"
    "  --memory-per-rank B   bytes, KiB, MiB or GiB (this machine's free memory / R)\n"
    "  --json                one JSON object instead of text\n"
    "  --set KEY=VALUE       overrides a key of CONFIG\n"
    "\n"
    "exit codes: 0 it fits, 2 it does not or the configuration is refused\n";

static int read_count(const char *text, int32_t *out)
{
    char *end;
    long value = strtol(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || value < 1 || value > COUNT_MAX) return 0;
    *out = (int32_t)value;
    return 1;
}

/* 1: go on; 0: *exit_out is the exit code. */
static int read_args(int argc, char **argv, struct plan_args *args, int *exit_out)
{
    static const struct option options[] = {
        { "nodes", required_argument, NULL, 'n' },
        { "ranks-per-node", required_argument, NULL, 'r' },
        { "memory-per-rank", required_argument, NULL, 'm' },
        { "json", no_argument, NULL, 'j' },
        { "set", required_argument, NULL, 's' },
        { "help", no_argument, NULL, 'h' },
        { 0 }
    };
    int letter;
    opterr = 0;
    optind = 1;
    *exit_out = 0;
    while ((letter = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        switch (letter) {
        case 'n':
        case 'r':
            if (read_count(optarg, letter == 'n' ? &args->nodes : &args->ranks_per_node)) break;
            *exit_out = sf_usage_error("plan", "%s is '%s'; allowed: 1 to %d", letter == 'n'
                                       ? "--nodes" : "--ranks-per-node", optarg, COUNT_MAX);
            return 0;
        case 'm':
            if (sf_parse_bytes(optarg, &args->memory) == SF_OK && args->memory > 0) break;
            *exit_out = sf_usage_error("plan", "--memory-per-rank is '%s'; allowed: bytes, such as"
                                       " 512MiB or 4GiB", optarg);
            return 0;
        case 's':
            if (args->sets.sets < SETS_MAX) {
                args->set[args->sets.sets++] = optarg;
                break;
            }
            *exit_out = sf_usage_error("plan", "more than %d --set", SETS_MAX);
            return 0;
        case 'j': args->json = 1; break;
        case 'h': fputs(help, stdout); return 0;
        default:
            *exit_out = sf_usage_error("plan", "%s", sf_option_words(letter, argv));
            return 0;
        }
    }
    if (optind != argc - 1) {
        *exit_out = sf_usage_error("plan", "%s", optind == argc ? "CONFIG is missing"
                                                                : "more than one CONFIG");
        return 0;
    }
    args->config = argv[optind];
    args->sets.set = args->set;
    return 1;
}

/* What was not said follows from the layout and from this machine. */
static sf_status make_cluster(const struct plan_args *args, const struct sf_config *cfg,
                              struct sf_cluster *out)
{
    int32_t nodes = args->nodes > 0 ? args->nodes : 1, per_node = args->ranks_per_node, cores;
    if (per_node == 0) {
        int64_t ranks = (int64_t)cfg->parallel.tensor * cfg->parallel.pipeline;
        if (cfg->parallel.data != SF_OPT_AUTO) ranks *= cfg->parallel.data;
        if (ranks % nodes != 0 || ranks / nodes > COUNT_MAX)
            return SF_FAIL(SF_INVALID, "the layout has %lld ranks, which are not to be divided over"
                           " %d nodes; --ranks-per-node says how many there are", (long long)ranks,
                           nodes);
        per_node = (int32_t)(ranks / nodes);
    }
    int64_t memory = args->memory;
    if (memory == 0) {
        SF_TRY(sf_machine_memory(&memory));
        memory /= per_node;
    }
    SF_TRY(sf_machine_cores(&cores));
    SF_TRY(sf_cluster_make(nodes, per_node, cores, memory, out));
    sf_devices_guess(sf_devices_asked(cfg, out), args->memory > 0, out);
    return SF_OK;
}

static sf_status show(const struct plan_args *args, struct sf_config *cfg,
                      const struct sf_model *model, const struct sf_cluster *cluster,
                      int *fits_out)
{
    struct sf_launch_plan plan;
    char *text;
    SF_TRY(sf_launch_plan_make(cfg, model, cluster, &plan));
    sf_status status = args->json ? sf_launch_plan_json(&plan, cfg, model, &text)
                                  : sf_launch_plan_text(&plan, cfg, model, &text);
    *fits_out = plan.fits;
    if (status == SF_OK) {
        printf("%s%s", text, args->json ? "\n" : "");
        free(text);
        if (!plan.fits) sf_log(SF_LOG_ERROR, "does not fit: %s", plan.reason);
    }
    sf_launch_plan_free(&plan);
    return status;
}

int sf_cmd_plan(int argc, char **argv)
{
    struct plan_args args = { 0 };
    int exit_code, fits = 0;
    if (!read_args(argc, argv, &args, &exit_code)) return exit_code;

    struct sf_config cfg;
    struct sf_cluster cluster = { 0 };
    struct sf_model *model = NULL;
    sf_status status = sf_config_load(args.config, &args.sets, &cfg);
    if (status != SF_OK) return sf_command_failed(status);
    if (cfg.model.path[0] == '\0')
        status = SF_FAIL(SF_INVALID, "%s: error: model.path is missing", args.config);
    if (status == SF_OK) status = sf_isa_limit((enum sf_isa)cfg.model.isa);
    if (status == SF_OK) status = sf_model_open_header(cfg.model.path, &model);
    if (status == SF_OK) status = make_cluster(&args, &cfg, &cluster);
    if (status == SF_OK) status = show(&args, &cfg, model, &cluster, &fits);
    exit_code = status != SF_OK ? sf_command_failed(status) : fits ? 0 : 2;
    sf_cluster_free(&cluster);
    sf_model_close(model);
    sf_config_free(&cfg);
    return exit_code;
}
