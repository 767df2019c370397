/* coordinator/eval_table.c: what people see of an eval: a row for each stack, a table of needles,
 * and every figure once more in a line of its own, for programs that read figures of merit. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/eval_impl.h"

static int label_width(const struct sf_eval *eval)
{
    size_t width = strlen("stack");
    for (int32_t i = 0; i < eval->list.stacks; i++)
        if (strlen(eval->list.stack[i].label) > width) width = strlen(eval->list.stack[i].label);
    return (int)width;
}

static void print_head(const struct sf_eval *eval, int width)
{
    int64_t scored = 0;
    int32_t texts = 0;
    for (int32_t i = 0; i < eval->case_count; i++) {
        if (eval->cases[i].text < 0) continue;
        scored += eval_scored(&eval->cases[i]);
        texts++;
    }
    if (texts > 0)
        printf("%d sequences of %d texts, %lld tokens scored\n", texts, eval->texts,
               (long long)scored);
    if (eval->needle)
        printf("%d needles in %s\n", eval->case_count - texts, eval->filler);
    for (int32_t i = 0; i < eval->list.stacks; i++)
        printf("  %-*s  %s%s\n", width, eval->list.stack[i].label,
               eval->list.stack[i].launch.config,
               eval->list.stack[i].methods == 0 ? ", no methods" : "");
}

/* ---- texts ----------------------------------------------------------------------------------- */
static void print_figure(const struct eval_figure *figure, double scale, int digits)
{
    char text[64];
    if (isfinite(figure->lo) && isfinite(figure->hi))
        snprintf(text, sizeof text, "%.*f [%.*f, %.*f]", digits, scale * figure->value, digits,
                 scale * figure->lo, digits, scale * figure->hi);
    else snprintf(text, sizeof text, "%.*f [-]", digits, scale * figure->value);
    printf("  %26s", text);
}

static void print_quality(const struct sf_eval *eval, const struct eval_quality *quality,
                          int width)
{
    printf("\n%-*s %7s  %26s  %26s  %26s  %26s\n", width, "stack", "KV %", "perplexity",
           "KL mnat", "same top token %", "ln perplexity to exact");
    for (int32_t s = 0; s < eval->list.stacks; s++) {
        const struct eval_quality *q = &quality[s];
        printf("%-*s %7.2f", width, eval->list.stack[s].label, 100 * q->kv_fraction);
        print_figure(&q->perplexity, 1, 3);
        print_figure(&q->kl_mean, 1e3, 2);
        print_figure(&q->agreement, 100, 2);
        print_figure(&q->apart, 1, 4);
        printf("\n");
    }
    printf("[95 %% intervals: bootstrap over %s]\n",
           eval_by_sequence(eval) ? "sequences" : "blocks of 64 tokens");
}

/* ---- needles --------------------------------------------------------------------------------- */
static void print_recalls(const struct sf_eval *eval, int width)
{
    printf("\n%-*s %7s %6s", width, "found %", "length", "all");
    for (int32_t d = 0; d < eval->depths; d++) printf("   at %3d", eval->depth[d]);
    printf("\n");
    for (int32_t s = 0; s < eval->list.stacks; s++)
        for (int32_t l = 0; l < eval->needle_lengths; l++) {
            struct eval_recall all = eval_recall_of(eval, s, eval->needle_length[l], -1);
            printf("%-*s %7d %6.1f", width, eval->list.stack[s].label, eval->needle_length[l],
                   100 * all.share.value);
            for (int32_t d = 0; d < eval->depths; d++)
                printf(" %8.1f", 100 * eval_recall_of(eval, s, eval->needle_length[l],
                                                     eval->depth[d]).share.value);
            printf("\n");
        }
}

/* ---- figures of merit ------------------------------------------------------------------------ */
static void print_fom(const char *label, const char *key, double value)
{
    if (isfinite(value)) printf("FOM %s.%s: %.9g\n", label, key, value);
}

static void print_foms(const struct sf_eval *eval, const struct eval_quality *quality)
{
    printf("\n");
    for (int32_t s = 0; s < eval->list.stacks; s++) {
        const char *label = eval->list.stack[s].label;
        print_fom(label, "kv_fraction", quality[s].kv_fraction);
        if (eval->texts > 0) {
            print_fom(label, "perplexity", quality[s].perplexity.value);
            print_fom(label, "kl_mean", quality[s].kl_mean.value);
            print_fom(label, "top1_agreement", quality[s].agreement.value);
            print_fom(label, "log_ppl_diff", quality[s].apart.value);
        }
        if (eval->needle)
            print_fom(label, "needle_recall", eval_recall_of(eval, s, -1, -1).share.value);
    }
}

void eval_print(const struct sf_eval *eval, const struct eval_quality *quality)
{
    int width = label_width(eval);
    print_head(eval, width);
    if (eval->texts > 0) print_quality(eval, quality, width);
    if (eval->needle) print_recalls(eval, width);
    print_foms(eval, quality);
}
