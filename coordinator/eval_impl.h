/* coordinator/eval_impl.h: what the files of `sheaf eval` share; inside of eval*.c only.
 *
 *   eval_cmd.c    the command line               eval_drive.c   steps, scores, receipts
 *   eval.c        stacks, sizes, the end         eval_stats.c   figures and their intervals
 *   eval_text.c   texts to cases                 eval_table.c   for people
 *   eval_needle.c facts to be found again        eval_json.c    interface.md section 9 */
#ifndef SHEAF_COORDINATOR_EVAL_IMPL_H
#define SHEAF_COORDINATOR_EVAL_IMPL_H
#include "base/json.h"
#include "coordinator/eval.h"
SF_C_BEGIN

enum { EVAL_BLOCK = 64,                 /* scored tokens that are summed together */
       EVAL_CHUNK = 32 };               /* forced tokens of a sequence in one step, at most */

struct eval_sum {                       /* over scored tokens of one case in one stack */
    int64_t tokens;
    double nll, kl;                     /* nat */
    int64_t agree;                      /* the likeliest token is the exact cache's */
    int64_t hits;                       /* ... is the one that came */
};
struct eval_bytes { int64_t exact, stored; uint32_t changed; };   /* over all ranks */

struct eval_case {                      /* one sequence, the same for every stack */
    int32_t *token, tokens, prompt;     /* owned; token[prompt ..) are forced and scored */
    int32_t text;                       /* number of its text; -1: a needle */
    int64_t start;                      /* of its first token in the text */
    int32_t length, depth;              /* of a needle: as asked for */
    int32_t blocks;                     /* of one stack */
    struct eval_sum *sum;               /* [stacks][blocks] owned */
    struct eval_bytes *at_prompt, *at_end;      /* [stacks] owned; end of the prompt, last token */
};
static inline int32_t eval_scored(const struct eval_case *c) { return c->tokens - c->prompt; }

/* ---- eval_text.c, eval_needle.c: token ids --------------------------------------------------- */
/* Takes over the ids; makes room for the sums of `stacks` stacks. */
sf_status eval_add_case(struct sf_eval *, const struct eval_case *);
/* The whole file; malloc'd, with a NUL behind it. */
sf_status eval_read_file(const char *path, char **text_out, size_t *bytes_out);
/* Cases of all texts; tokens_max: the longest sequence. */
sf_status eval_text_cases(struct sf_eval *, const struct sf_tokenizer *, int32_t tokens_max);
sf_status eval_needle_cases(struct sf_eval *, const struct sf_tokenizer *, int64_t seed,
                            int32_t tokens_max);

/* ---- eval_drive.c ---------------------------------------------------------------------------- */
/* Runs all cases; eval->at_once of them together.  *stopped_out: a signal came. */
sf_status eval_drive(struct sf_eval *, const struct sf_desk *, int *stopped_out);

/* ---- eval_stats.c: pure, but for its memory -------------------------------------------------- */
struct eval_figure { double value, lo, hi; };   /* 95 % interval; NaN: nothing to measure it by */
struct eval_unit { struct eval_sum exact, own; };       /* what is drawn again as one */
struct eval_quality {                   /* of one stack, over the texts */
    struct eval_sum all;
    struct eval_figure perplexity, kl_mean, agreement;
    struct eval_figure apart;           /* mean of nll - exact nll, token by token: the difference
                                           of the log perplexities */
    double kv_fraction, kv_fraction_end;
    struct eval_bytes at_prompt, at_end;
};
enum { EVAL_DRAWS = 2000, EVAL_SEQUENCES_MIN = 8 };
/* 2.5 and 97.5 percentiles over EVAL_DRAWS draws of `units` units with replacement. */
sf_status eval_bootstrap(const struct eval_unit *, int32_t units, uint64_t seed,
                         struct eval_quality *quality);
/* 1: sequences are drawn again; 0: blocks of EVAL_BLOCK tokens, since the texts make fewer. */
int       eval_by_sequence(const struct sf_eval *);
sf_status eval_quality_of(const struct sf_eval *, int32_t stack, uint64_t seed,
                          struct eval_quality *out);
struct eval_recall { int32_t trials, hits; struct eval_figure share; };
/* Wilson's interval. */
struct eval_figure eval_wilson(int32_t hits, int32_t trials);
/* length, depth: -1 for all. */
struct eval_recall eval_recall_of(const struct sf_eval *, int32_t stack, int32_t length,
                                  int32_t depth);
int       eval_is_hit(const struct eval_case *, int32_t stack);
struct eval_sum eval_sum_of(const struct eval_case *, int32_t stack);

/* ---- eval_table.c, eval_json.c --------------------------------------------------------------- */
/* quality [stacks]; not looked at without texts. */
void      eval_print(const struct sf_eval *, const struct eval_quality *quality);
/* malloc'd, with a newline at its end. */
sf_status eval_json(const struct sf_eval *, const struct sf_launch *,
                    const struct eval_quality *quality, char **text_out, size_t *bytes_out);

SF_C_END
#endif
