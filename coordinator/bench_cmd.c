/* coordinator/bench_cmd.c: the command line of `sheaf bench`. */
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "coordinator/bench.h"

enum { TOKENS_MAX = 1 << 27, PROMPTS_MAX = 100000000, SEQS_MAX = 65536, DEFAULT_TOKENS = 128 };

static const char bench_help[] =
    "usage: sheaf bench CONFIG... [--num-prompts N] [--input-len I|LO:HI] [--output-len O|LO:HI]\n"
    "                   [--max-num-seqs N,N,...] [--json FILE] [--no-exact] [--set KEY=VALUE ...]\n"
    "\n"
    "Runs made-up prompts through the stack of methods of each CONFIG, and first through the\n"
    "exact cache (the first CONFIG without its methods, unless one has none), and says how fast\n"
    "that was.  All configurations are of one model.  Under mpirun or srun as `sheaf run`.\n"
    "\n"
    "  --max-num-seqs LIST sequences at once: a run for each, without loading the weights again;\n"
    "                      default scheduler.max_num_seqs of the configuration\n"
    "  --num-prompts N     of each run, all there at its start; default twice the largest number\n"
    "                      of sequences at once\n"
    "  --input-len LEN     tokens of a prompt, a number or LO:HI (uniform); default 128\n"
    "  --output-len LEN    tokens of an answer, which never ends before; default 128\n"
    "  --json FILE         everything that was measured, '-': to stdout in place of the table\n"
    "  --no-exact          leaves out the exact cache where no CONFIG asks for it\n"
    "  --set KEY=VALUE     overrides a key of every CONFIG, e.g. --set kv_cache.memory=2GiB\n"
    "  --log-level LEVEL   error, warn, info (default), debug or trace\n"
    "  --log-json          one JSON object a line on stderr\n"
    "\n"
    "Prompts are token ids drawn with sampling.seed, equal for every stack and run; no two begin\n"
    "alike, and scheduler.enable_prefix_caching is off.  Tokens are chosen greedily.  A short run\n"
    "before the first one of a stack counts for nothing.\n"
    "\n"
    "what is measured:\n"
    "  request, output, total_token_throughput   per second, from the start to the last token\n"
    "  prefill_tok_s, decode_tok_s   the time of a step (from its sending or, if that is later,\n"
    "        from the result before it, to its own result) is divided among its rows alike; rows\n"
    "        of prompts over their time, and all other rows over theirs\n"
    "  prefill_edit_share   edits of caches (for xkv: factors) in what the ranks do, waits aside,\n"
    "        in steps with rows of prompts\n"
    "  prefill_factor_share, prefill_factor_hidden   time in which factors of xkv are made, on\n"
    "        whatever thread, over the same; and how much of it passed beside the layers, where\n"
    "        the ranks have threads_beside: cores that their own threads leave idle\n"
    "  ttft, tpot, itl, e2el, queue   ms, with mean, p50, p90, p99 (linear between samples): a\n"
    "        request arrives at the start of its run, so ttft and e2el include the wait for a\n"
    "        place, which queue shows: until its first rows are sent\n"
    "  gemm, decode_attention, statistics, edit, comm, wait, sample, other_ms   of a step without\n"
    "        rows of a prompt: mean of all such steps and of all ranks; statistics: what methods\n"
    "        ask to know of attention; step_ms is the same step as the coordinator sees it;\n"
    "        schedule_ms its own work for any step, beside theirs\n"
    "  bubble_share   wait / all of these, for each stage\n"
    "  schedule_share schedule_ms x steps / duration_s\n"
    "  batch_full     share of the places that was taken while something waited for one\n"
    "  kv_bytes_exact, _stored, _peak   sums over all sequences, as in the receipts of `run`\n"
    "  kv_bound       the pool holds fewer sequences of the mean lengths than would run\n"
    "  peak_rss_bytes of each rank's process, since its stack was launched\n"
    "  roof           after the last run: bytes that all ranks read a second from memory,\n"
    "        operations of a large product in model.compute; what a run would take at these rates\n"
    "        (weights once a step and stage, caches once a token, products and attention, nothing\n"
    "        else): roof_prefill_, roof_decode_, roof_output_tok_s, and the share of each reached\n"
    "  tok_s_per_rank, tok_s_per_core, core_days_ or gpu_days_per_1e9_tokens\n"
    "        of prompts and answers together\n"
    "stdout has a table and a line 'FOM STACK.SEQUENCES.NAME: VALUE' for each figure in it.\n"
    "\n"
    "signals: INT, TERM or USR1 to any rank: stop, tell what is finished, exit 1; USR2: say in\n"
    "         the log what is running\n"
    "\n"
    "exit codes: 0 all runs are finished, 2 refused before the start, 1 anything else\n";

static const char *read_number(const char *text, int32_t *out)
{
    int32_t count;
    return sf_numbers_parse(text, PROMPTS_MAX, 1, out, &count) == SF_OK ? NULL :
           "--num-prompts is no number of 1 to 100000000";
}

static const char *words_of(const char *option, sf_status status, char *words, size_t bytes)
{
    if (status == SF_OK) return NULL;
    snprintf(words, bytes, "%s: %s", option, sf_error_text());
    return words;
}

int sf_bench_args(int argc, char **argv, struct sf_bench *bench, char *words, size_t bytes)
{
    static const struct option options[] = {
        {"num-prompts", required_argument, NULL, 'n'},
        {"input-len", required_argument, NULL, 'i'},
        {"output-len", required_argument, NULL, 'o'},
        {"max-num-seqs", required_argument, NULL, 'm'},
        {"json", required_argument, NULL, 'J'},
        {"no-exact", no_argument, NULL, 'x'},
        SF_COMMON_OPTIONS};
    struct sf_log_options log = {SF_LOG_INFO, 0};
    int letter;
    const char *wrong = NULL;
    bench->input = bench->output = (struct sf_range){DEFAULT_TOKENS, DEFAULT_TOKENS};
    opterr = 0;
    optind = 1;
    while (wrong == NULL && (letter = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        switch (letter) {
        case 'n': wrong = read_number(optarg, &bench->prompts); break;
        case 'i':
            wrong = words_of("--input-len", sf_range_parse(optarg, TOKENS_MAX, &bench->input),
                             words, bytes);
            break;
        case 'o':
            wrong = words_of("--output-len", sf_range_parse(optarg, TOKENS_MAX, &bench->output),
                             words, bytes);
            break;
        case 'm':
            wrong = words_of("--max-num-seqs",
                             sf_numbers_parse(optarg, SEQS_MAX, SF_BENCH_SEQS, bench->seqs,
                                              &bench->seqs_count), words, bytes);
            break;
        case 'J': bench->json = optarg; break;
        case 'x': bench->no_exact = 1; break;
        case 'h': fputs(bench_help, stdout); return 0;
        default: wrong = sf_common_option(letter, argv, bench->set, &bench->common.sets.sets, &log);
        }
    }
    sf_log_setup(log.level, log.json);
    if (wrong == NULL && optind == argc) wrong = "CONFIG is missing";
    if (wrong == NULL && argc - optind > SF_BENCH_CONFIGS) wrong = "more than 32 CONFIGs";
    for (; wrong == NULL && optind < argc; optind++) bench->config[bench->configs++] = argv[optind];
    bench->common.config = bench->config[0];
    if (wrong != NULL && wrong != words) snprintf(words, bytes, "%s", wrong);
    return wrong == NULL ? 1 : -1;
}
