/* coordinator/eval_stats.c: sums to figures, and how sure these are (eval_impl.h).
 *
 * Every figure is a ratio of sums, sum_u x_u / sum_u n_u over units u (whole sequences, or blocks
 * of tokens).  A draw takes as many units with replacement; the interval is from the 2.5th to the
 * 97.5th percentile of the draws.  The same draws serve all stacks, since the generator is counted
 * by (seed, draw, place): intervals of different stacks are of the same texts. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "coordinator/eval_impl.h"
#include "coordinator/stats.h"

static const double low = 0.025, high = 0.975, normal_975 = 1.959963984540054;

static void add(struct eval_sum *sum, const struct eval_sum *one)
{
    sum->tokens += one->tokens;
    sum->nll += one->nll;
    sum->kl += one->kl;
    sum->agree += one->agree;
    sum->hits += one->hits;
}

struct eval_sum eval_sum_of(const struct eval_case *c, int32_t stack)
{
    struct eval_sum sum = {0};
    for (int32_t b = 0; b < c->blocks; b++) add(&sum, &c->sum[stack * c->blocks + b]);
    return sum;
}

/* ---- intervals ------------------------------------------------------------------------------- */
static int in_order(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* One unit says nothing of how it could have come out otherwise. */
static void set_figure(double value, double *drawn, int32_t units, struct eval_figure *out)
{
    *out = (struct eval_figure){value, NAN, NAN};
    if (units < 2) return;
    qsort(drawn, EVAL_DRAWS, sizeof *drawn, in_order);
    *out = (struct eval_figure){value, sf_percentile(drawn, EVAL_DRAWS, low),
                                sf_percentile(drawn, EVAL_DRAWS, high)};
}

static struct eval_unit draw(const struct eval_unit *unit, int32_t units, uint64_t seed,
                             uint64_t number)
{
    struct eval_unit sum = {{0}, {0}};
    for (int32_t i = 0; i < units; i++) {
        int32_t u = (int32_t)(sf_rng_uniform(seed, number, (uint64_t)i) * units);
        add(&sum.exact, &unit[u].exact);
        add(&sum.own, &unit[u].own);
    }
    return sum;
}

struct means { double log_perplexity, kl, agreement, apart; };
static struct means means_of(const struct eval_unit *sum)
{
    double n = (double)sum->own.tokens;
    return (struct means){sum->own.nll / n, sum->own.kl / n, (double)sum->own.agree / n,
                          (sum->own.nll - sum->exact.nll) / n};
}

sf_status eval_bootstrap(const struct eval_unit *unit, int32_t units, uint64_t seed,
                         struct eval_quality *quality)
{
    SF_ASSERT(units >= 1);
    double *drawn = malloc(4 * EVAL_DRAWS * sizeof *drawn);
    if (drawn == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d draws", EVAL_DRAWS);
    double *nll = drawn, *kl = nll + EVAL_DRAWS, *agree = kl + EVAL_DRAWS,
           *apart = agree + EVAL_DRAWS;
    struct eval_unit all = {{0}, {0}};
    for (int32_t u = 0; u < units; u++) {
        add(&all.exact, &unit[u].exact);
        add(&all.own, &unit[u].own);
    }
    for (int32_t i = 0; i < EVAL_DRAWS; i++) {
        struct eval_unit sum = draw(unit, units, seed, (uint64_t)i);
        struct means means = means_of(&sum);
        nll[i] = means.log_perplexity;
        kl[i] = means.kl;
        agree[i] = means.agreement;
        apart[i] = means.apart;
    }
    struct means means = means_of(&all);
    quality->all = all.own;
    set_figure(means.log_perplexity, nll, units, &quality->perplexity);
    quality->perplexity = (struct eval_figure){exp(quality->perplexity.value),
                                               exp(quality->perplexity.lo),
                                               exp(quality->perplexity.hi)};
    set_figure(means.kl, kl, units, &quality->kl_mean);
    set_figure(means.agreement, agree, units, &quality->agreement);
    set_figure(means.apart, apart, units, &quality->apart);
    free(drawn);
    return SF_OK;
}

struct eval_figure eval_wilson(int32_t hits, int32_t trials)
{
    if (trials == 0) return (struct eval_figure){NAN, NAN, NAN};
    double n = trials, p = hits / n, z2 = normal_975 * normal_975;
    double middle = (p + z2 / (2 * n)) / (1 + z2 / n);
    double half = normal_975 / (1 + z2 / n) * sqrt(p * (1 - p) / n + z2 / (4 * n * n));
    return (struct eval_figure){p, hits == 0 ? 0.0 : middle - half,
                                hits == trials ? 1.0 : middle + half};
}

/* ---- one stack ------------------------------------------------------------------------------- */
static int32_t text_cases(const struct sf_eval *eval)
{
    int32_t n = 0;
    for (int32_t i = 0; i < eval->case_count; i++) n += eval->cases[i].text >= 0;
    return n;
}

int eval_by_sequence(const struct sf_eval *eval)
{
    return text_cases(eval) >= EVAL_SEQUENCES_MIN;
}

static int32_t make_units(const struct sf_eval *eval, int32_t stack, int by_sequence,
                          struct eval_unit *unit)
{
    int32_t n = 0;
    for (int32_t i = 0; i < eval->case_count; i++) {
        const struct eval_case *c = &eval->cases[i];
        if (c->text < 0) continue;
        if (by_sequence)
            unit[n++] = (struct eval_unit){eval_sum_of(c, 0), eval_sum_of(c, stack)};
        for (int32_t b = 0; b < c->blocks && !by_sequence; b++)
            unit[n++] = (struct eval_unit){c->sum[b], c->sum[stack * c->blocks + b]};
    }
    return n;
}

static double share_of(const struct eval_bytes *bytes)
{
    return bytes->exact > 0 ? (double)bytes->stored / (double)bytes->exact : NAN;
}

sf_status eval_quality_of(const struct sf_eval *eval, int32_t stack, uint64_t seed,
                          struct eval_quality *out)
{
    size_t blocks = 0;
    memset(out, 0, sizeof *out);
    for (int32_t i = 0; i < eval->case_count; i++) {
        const struct eval_case *c = &eval->cases[i];
        if (c->text < 0 && eval->texts > 0) continue;   /* needles count where nothing else does */
        blocks += (size_t)c->blocks;
        out->at_prompt.exact += c->at_prompt[stack].exact;
        out->at_prompt.stored += c->at_prompt[stack].stored;
        out->at_end.exact += c->at_end[stack].exact;
        out->at_end.stored += c->at_end[stack].stored;
    }
    out->kv_fraction = share_of(&out->at_prompt);
    out->kv_fraction_end = share_of(&out->at_end);
    if (eval->texts == 0) return SF_OK;
    struct eval_unit *unit = calloc(blocks, sizeof *unit);
    if (unit == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %zu blocks", blocks);
    int32_t units = make_units(eval, stack, eval_by_sequence(eval), unit);
    sf_status status = eval_bootstrap(unit, units, seed, out);
    free(unit);
    return status;
}

/* ---- needles --------------------------------------------------------------------------------- */
int eval_is_hit(const struct eval_case *c, int32_t stack)
{
    struct eval_sum sum = eval_sum_of(c, stack);
    return sum.hits == sum.tokens;
}

struct eval_recall eval_recall_of(const struct sf_eval *eval, int32_t stack, int32_t length,
                                  int32_t depth)
{
    struct eval_recall recall = {0};
    for (int32_t i = 0; i < eval->case_count; i++) {
        const struct eval_case *c = &eval->cases[i];
        if (c->text >= 0 || (length >= 0 && c->length != length) ||
            (depth >= 0 && c->depth != depth))
            continue;
        recall.trials++;
        recall.hits += eval_is_hit(c, stack);
    }
    recall.share = eval_wilson(recall.hits, recall.trials);
    return recall;
}
