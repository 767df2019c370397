/* coordinator/eval_cmd.c: the command line of `sheaf eval`. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "coordinator/eval.h"
#include "coordinator/stats.h"

enum { TOKENS_MAX = 1 << 27, SEQUENCES_MAX = 100000, TRIALS_MAX = 10000, DEFAULT_TRIALS = 5 };

static const char eval_help[] =
    "usage: sheaf eval CONFIG... --text FILE [--text FILE ...] [--len N] [--count M]\n"
    "                   [--prompt-len P] [--json FILE] [--html FILE] [--set KEY=VALUE ...]\n"
    "       sheaf eval CONFIG... --needle --filler FILE [--needle-lengths N,...]\n"
    "                   [--needle-depths D,...] [--needle-trials N] [--json FILE]\n"
    "                   [--html FILE]\n"
    "\n"
    "Feeds the same tokens to the exact cache and to the stack of methods of each CONFIG, and\n"
    "says how their predictions differ.  All configurations are of one model, one\n"
    "model.dtype and one layout; kv_cache.dtype may differ, the exact cache has its own\n"
    "configuration's.  What else runs them (kv_cache.memory, scheduler, threads) is the first\n"
    "one's, and parallel.head_placement is identity.  Under mpirun or srun as `sheaf run`, with\n"
    "data_parallel_size 1.  --text and --needle may stand together.\n"
    "\n"
    "  --text FILE         a text; its first tokens are a prompt, the others are forced one by\n"
    "                      one, as if they had been chosen: methods compress as they do in `run`\n"
    "  --len N             tokens of a sequence; default: the whole text, up to max_model_len\n"
    "  --count M           sequences, spread evenly over the texts and apart; default one a text\n"
    "  --prompt-len P      tokens of its prompt; default half of the sequence\n"
    "  --needle            facts (a five-digit number of a town) put into filler text and asked\n"
    "                      for at its end; found: every token of the number is the likeliest,\n"
    "                      given the ones before it, which is what greedy decoding would write.\n"
    "                      A model with a chat template is asked through it\n"
    "  --filler FILE       text to hide them in; longer than the longest prompt\n"
    "  --needle-lengths L  tokens of a prompt at most (a few less, to end with a word), a list;\n"
    "                      default 512,1024\n"
    "  --needle-depths L   where, in percent of the filler; default 0,25,50,75,100\n"
    "  --needle-trials N   facts of each length and depth; default 5\n"
    "  --json FILE         everything that was measured, '-': to stdout in place of the table\n"
    "  --html FILE         the same as one page with plots, for a browser; needs gnuplot\n"
    "  --set KEY=VALUE     overrides a key of every CONFIG, e.g. --set kv_cache.memory=2GiB\n"
    "  --log-level LEVEL   error, warn, info (default), debug or trace\n"
    "  --log-json          one JSON object a line on stderr\n"
    "\n"
    "what is measured, over the forced tokens of all texts:\n"
    "  perplexity      e to the mean of -ln p of the tokens that come\n"
    "  kl_mean         nat: mean of sum_i p_i ln(p_i / q_i), p of the exact cache, q of the stack\n"
    "  top1_agreement  share of tokens at which both find the same one the likeliest\n"
    "  log_ppl_diff    ln of its perplexity less that of the exact cache\n"
    "  kv_fraction     bytes stored / exact bytes in the stack's own kv_cache.dtype at the end of\n"
    "                  the prompts; kv_fraction_end: at the end of the texts\n"
    "  needle_recall   share of facts found, by length and depth\n"
    "with 95 % intervals: percentiles of 2000 draws, with sampling.seed, of whole sequences where\n"
    "there are 8 or more, else of blocks of 64 tokens, and none of a single block; of recall,\n"
    "Wilson's.\n"
    "\n"
    "Sequences run together as far as scheduler.max_num_seqs and the memory of the caches go.\n"
    "All stacks see a chunk of up to 32 tokens of a sequence in one step; of the exact cache\n"
    "8 bytes x vocabulary x 32 are kept meanwhile.\n"
    "\n"
    "signals: INT, TERM or USR1 to any rank: stop, tell nothing, exit 1\n"
    "\n"
    "exit codes: 0 all is measured, 2 refused before the start, 1 anything else\n";

static const char *read_count(const char *option, const char *text, int32_t most, int32_t *out,
                              char *words, size_t bytes)
{
    int32_t count;
    if (sf_numbers_parse(text, most, 1, out, &count) == SF_OK) return NULL;
    snprintf(words, bytes, "%s '%.40s' is no number of 1 to %d", option, text, most);
    return words;
}

/* Needles of equal length and depth would be the same ones, counted again. */
static const char *check_once(const char *option, const int32_t *number, int32_t count, char *words,
                              size_t bytes)
{
    for (int32_t i = 1; i < count; i++)
        for (int32_t j = 0; j < i; j++)
            if (number[i] == number[j]) {
                snprintf(words, bytes, "%s has %d twice", option, number[i]);
                return words;
            }
    return NULL;
}

static const char *read_lengths(struct sf_eval *eval, const char *text, char *words, size_t bytes)
{
    if (sf_numbers_parse(text, TOKENS_MAX, SF_EVAL_NEEDLES, eval->needle_length,
                         &eval->needle_lengths) == SF_OK)
        return check_once("--needle-lengths", eval->needle_length, eval->needle_lengths, words,
                          bytes);
    snprintf(words, bytes, "--needle-lengths: %s", sf_error_text());
    return words;
}

/* Percentages, 0 to 100. */
static const char *read_depths(struct sf_eval *eval, const char *text, char *words, size_t bytes)
{
    const char *rest = text;
    eval->depths = 0;
    do {
        char *end;
        long depth = *rest >= '0' && *rest <= '9' ? strtol(rest, &end, 10) : -1;
        if (depth < 0 || depth > 100 || eval->depths == SF_EVAL_NEEDLES ||
            (*end != '\0' && *end != ',')) {
            snprintf(words, bytes, "--needle-depths '%.40s' is no list; allowed: up to %d numbers "
                     "of 0 to 100, such as 0,50,100", text, SF_EVAL_NEEDLES);
            return words;
        }
        eval->depth[eval->depths++] = (int32_t)depth;
        rest = end + 1;
        if (*end == '\0')
            return check_once("--needle-depths", eval->depth, eval->depths, words, bytes);
    } while (1);
}

static const char *check(const struct sf_eval *eval, int needle_options)
{
    if (eval->configs == 0) return "CONFIG is missing";
    if (eval->texts == 0 && !eval->needle) return "--text or --needle is missing";
    if (eval->texts == 0 && (eval->length || eval->prompt || eval->sequences))
        return "--len, --prompt-len and --count are for --text";
    if (eval->needle && eval->filler == NULL) return "--needle needs --filler";
    if (!eval->needle && needle_options) return "--filler and --needle-... are for --needle";
    if (eval->sequences > 0 && eval->sequences < eval->texts)
        return "--count is less than the texts";
    if (eval->html != NULL && strcmp(eval->html, "-") == 0) return "--html takes a file";
    if (eval->length == 1) return "--len 1 leaves nothing to score";
    if (eval->length > 0 && eval->prompt >= eval->length)
        return "--prompt-len leaves nothing of --len to score";
    return NULL;
}

static void set_defaults(struct sf_eval *eval)
{
    static const int32_t length[] = {512, 1024}, depth[] = {0, 25, 50, 75, 100};
    memcpy(eval->needle_length, length, sizeof length);
    memcpy(eval->depth, depth, sizeof depth);
    eval->needle_lengths = sizeof length / sizeof length[0];
    eval->depths = sizeof depth / sizeof depth[0];
    eval->trials = DEFAULT_TRIALS;
}

enum { OPT_LEN = 256, OPT_COUNT, OPT_PROMPT, OPT_LENGTHS, OPT_DEPTHS, OPT_TRIALS };
static const struct option options[] = {
    {"text", required_argument, NULL, 't'},
    {"len", required_argument, NULL, OPT_LEN},
    {"count", required_argument, NULL, OPT_COUNT},
    {"prompt-len", required_argument, NULL, OPT_PROMPT},
    {"needle", no_argument, NULL, 'n'},
    {"filler", required_argument, NULL, 'f'},
    {"needle-lengths", required_argument, NULL, OPT_LENGTHS},
    {"needle-depths", required_argument, NULL, OPT_DEPTHS},
    {"needle-trials", required_argument, NULL, OPT_TRIALS},
    {"json", required_argument, NULL, 'J'},
    {"html", required_argument, NULL, 'H'},
    SF_COMMON_OPTIONS};

/* Those with a number; NULL if it is fine. */
static const char *read_numbers(struct sf_eval *eval, int letter, char *words, size_t bytes)
{
    switch (letter) {
    case OPT_LEN: return read_count("--len", optarg, TOKENS_MAX, &eval->length, words, bytes);
    case OPT_COUNT:
        return read_count("--count", optarg, SEQUENCES_MAX, &eval->sequences, words, bytes);
    case OPT_PROMPT:
        return read_count("--prompt-len", optarg, TOKENS_MAX, &eval->prompt, words, bytes);
    case OPT_LENGTHS: return read_lengths(eval, optarg, words, bytes);
    case OPT_DEPTHS: return read_depths(eval, optarg, words, bytes);
    default:
        return read_count("--needle-trials", optarg, TRIALS_MAX, &eval->trials, words, bytes);
    }
}

int sf_eval_args(int argc, char **argv, struct sf_eval *eval, char *words, size_t bytes)
{
    struct sf_log_options log = {SF_LOG_INFO, 0};
    int letter, needle_options = 0;
    const char *wrong = NULL;
    set_defaults(eval);
    opterr = 0;
    optind = 1;
    while (wrong == NULL && (letter = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        needle_options |= letter == 'f' || letter >= OPT_LENGTHS;
        switch (letter) {
        case 't':
            if (eval->texts == SF_EVAL_TEXTS) wrong = "too many --text";
            else eval->text[eval->texts++] = optarg;
            break;
        case 'n': eval->needle = 1; break;
        case 'f': eval->filler = optarg; break;
        case 'J': eval->json = optarg; break;
        case 'H': eval->html = optarg; break;
        case 'h': fputs(eval_help, stdout); return 0;
        default:
            wrong = letter >= OPT_LEN ? read_numbers(eval, letter, words, bytes)
                                      : sf_common_option(letter, argv, eval->set,
                                                         &eval->common.sets.sets, &log);
        }
    }
    sf_log_setup(log.level, log.json);
    if (wrong == NULL && argc - optind > SF_EVAL_CONFIGS) wrong = "more than 32 CONFIGs";
    for (; wrong == NULL && optind < argc; optind++) eval->config[eval->configs++] = argv[optind];
    if (wrong == NULL) wrong = check(eval, needle_options);
    eval->common.config = eval->config[0];
    if (wrong != NULL && wrong != words) snprintf(words, bytes, "%s", wrong);
    return wrong == NULL ? 1 : -1;
}
