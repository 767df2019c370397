/* coordinator/eval.h: `sheaf eval`: what stacks of methods do to a model's predictions, measured
 * against the exact cache (interface.md section 9).
 *
 *   texts, needles --cases--> token ids, prompt | forced
 *   exact, stacks  --joined-> one worker a rank: weights once, a cache for each stack
 *   steps of the same tokens through all stacks --scores--> sums --figures--> table, JSON
 */
#ifndef SHEAF_COORDINATOR_EVAL_H
#define SHEAF_COORDINATOR_EVAL_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
#include "coordinator/commands.h"
#include "coordinator/stacks.h"
#include "coordinator/task.h"
SF_C_BEGIN

enum { SF_EVAL_CONFIGS = 32, SF_EVAL_TEXTS = 256, SF_EVAL_NEEDLES = 32 };
struct eval_case;
struct sf_eval {
    /* the command line: */
    struct sf_launch_spec common;       /* the first configuration; its sets are the ones below */
    const char *set[SF_SETS_MAX];
    const char *config[SF_EVAL_CONFIGS];
    int32_t configs;
    const char *text[SF_EVAL_TEXTS];
    int32_t texts;
    const char *json;                   /* NULL: none; "-": stdout, in place of the table */
    const char *html;                   /* NULL: none */
    int32_t length, prompt, sequences;  /* --len, --prompt-len, --count; 0: not given */
    uint8_t needle;
    int32_t needle_length[SF_EVAL_NEEDLES], needle_lengths;     /* tokens of a prompt */
    int32_t depth[SF_EVAL_NEEDLES], depths;                     /* percent */
    int32_t trials;                     /* of each length and depth */
    const char *filler;
    /* made on rank 0, freed by sf_eval_free: */
    struct sf_stack_list list;          /* stack 0 is the exact cache */
    struct eval_case *cases; int32_t case_count;
    int64_t *text_tokens;               /* [texts] in the file */
    int64_t kept_bytes;                 /* of the exact cache's rows, at most (worker/compare.h) */
    int32_t at_once;                    /* sequences that run together */
    double seconds;
};

/* As sf_run_args (commands.h); *eval is zeroed but for its sets. */
int  sf_eval_args(int argc, char **argv, struct sf_eval *eval, char *words, size_t bytes);
extern const struct sf_task_ops sf_eval_task;   /* its arg: struct sf_eval */
void sf_eval_free(struct sf_eval *);

SF_C_END
#endif
