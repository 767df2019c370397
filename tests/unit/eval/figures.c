/* tests/unit/eval/figures.c: sums to figures and their intervals.
 *
 * uniform: a model that finds every token of V equally likely has perplexity V.  intervals: of
 * units that are all alike they are points; of many random ones they are as wide as the normal
 * distribution says; the same seed gives the same ones.  paired: what two stacks differ by in every
 * unit alike is known exactly, however far apart the units are.  units: sequences from 8 on, blocks
 * below; of a single one no interval.  recall: Wilson's interval by hand; hits are cases with every
 * token right. */
#include <math.h>
#include <stdlib.h>

#include "base/rng.h"
#include "coordinator/eval_impl.h"
#include "tests/check.h"

enum { UNITS = 400, TOKENS = 50 };

static struct eval_unit made[UNITS];

/* Units of TOKENS tokens, mean nll `middle` +- width / 2; the other stack loses `gap`. */
static void make(double middle, double width, double gap)
{
    for (int32_t u = 0; u < UNITS; u++) {
        double mean = middle + width * (sf_rng_uniform(5, 1, (uint64_t)u) - 0.5);
        made[u].exact = (struct eval_sum){.tokens = TOKENS, .nll = TOKENS * mean,
                                          .agree = TOKENS};
        made[u].own = (struct eval_sum){.tokens = TOKENS, .nll = TOKENS * (mean + gap),
                                        .kl = TOKENS * mean / 10, .agree = u % 2 ? TOKENS : 0};
    }
}

static void uniform(void)
{
    struct eval_quality q = {0};
    make(log(49152.0), 0, 0);
    SF_MUST(eval_bootstrap(made, UNITS, 0, &q));
    SF_CHECK_NEAR(q.perplexity.value, 49152, 1e-6);
    SF_CHECK_NEAR(q.perplexity.lo, 49152, 1e-6);
    SF_CHECK_NEAR(q.perplexity.hi, 49152, 1e-6);
    SF_CHECK_INT(q.all.tokens, UNITS * TOKENS);
}

static void intervals(void)
{
    struct eval_quality q = {0}, again = {0}, other = {0};
    make(3, 1.2, 0);
    SF_MUST(eval_bootstrap(made, UNITS, 4, &q));
    SF_MUST(eval_bootstrap(made, UNITS, 4, &again));
    SF_MUST(eval_bootstrap(made, UNITS, 5, &other));
    double mean = 0, square = 0;
    for (int32_t u = 0; u < UNITS; u++) mean += made[u].own.nll / TOKENS / UNITS;
    for (int32_t u = 0; u < UNITS; u++) square += pow(made[u].own.nll / TOKENS - mean, 2) / UNITS;
    double half = 1.96 * sqrt(square / UNITS);
    SF_CHECK_NEAR(log(q.perplexity.value), mean, 1e-12);
    SF_CHECK_NEAR(log(q.perplexity.lo), mean - half, 0.1 * half);
    SF_CHECK_NEAR(log(q.perplexity.hi), mean + half, 0.1 * half);
    SF_CHECK_NEAR(q.kl_mean.value, mean / 10, 1e-12);
    SF_CHECK_NEAR(q.kl_mean.hi, (mean + half) / 10, 0.01 * half);
    SF_CHECK_NEAR(q.agreement.value, 0.5, 1e-12);
    SF_CHECK_NEAR(q.agreement.lo, 0.5 - 1.96 * 0.5 / sqrt(UNITS), 0.005);
    SF_CHECK_NEAR(q.agreement.hi, 0.5 + 1.96 * 0.5 / sqrt(UNITS), 0.005);
    SF_CHECK(memcmp(&q, &again, sizeof q) == 0);
    SF_CHECK(q.perplexity.lo != other.perplexity.lo);
    SF_CHECK(q.perplexity.value == other.perplexity.value);
}

static void paired(void)
{
    struct eval_quality q = {0};
    make(3, 4, 0.25);
    SF_MUST(eval_bootstrap(made, UNITS, 4, &q));
    SF_CHECK_NEAR(q.apart.value, 0.25, 1e-12);
    SF_CHECK_NEAR(q.apart.lo, 0.25, 1e-12);
    SF_CHECK_NEAR(q.apart.hi, 0.25, 1e-12);
    SF_CHECK(q.perplexity.hi > 1.1 * q.perplexity.lo);
}

/* `sequences` of 2 blocks each: 64 tokens of nll 1, then 36 of nll 2 (+ the stack's number). */
static struct sf_eval make_eval(int32_t sequences, struct eval_case *cases)
{
    for (int32_t i = 0; i < sequences; i++) {
        struct eval_case *c = &cases[i];
        *c = (struct eval_case){.tokens = 200, .prompt = 100, .blocks = 2};
        c->sum = calloc(4, sizeof *c->sum);
        c->at_prompt = calloc(2, sizeof *c->at_prompt);
        c->at_end = calloc(2, sizeof *c->at_end);
        if (!c->sum || !c->at_prompt || !c->at_end) abort();
        for (int32_t b = 0; b < 4; b++) {
            int64_t tokens = b % 2 ? 36 : 64;
            c->sum[b] = (struct eval_sum){.tokens = tokens, .agree = tokens,
                                          .nll = (double)tokens * (1 + b % 2 + b / 2),
                                          .hits = b == 3 ? 35 : tokens};
        }
        c->at_prompt[0] = (struct eval_bytes){1000, 1000, 0};
        c->at_prompt[1] = (struct eval_bytes){1000, 250, 1};
        c->at_end[1] = (struct eval_bytes){2000, 200, 1};
    }
    return (struct sf_eval){.texts = 1, .cases = cases, .case_count = sequences,
                            .list = {.stacks = 2}};
}

static void free_eval(struct sf_eval *eval)
{
    for (int32_t i = 0; i < eval->case_count; i++) {
        free(eval->cases[i].sum);
        free(eval->cases[i].at_prompt);
        free(eval->cases[i].at_end);
    }
}

static void units(void)
{
    struct eval_case cases[8];
    for (int32_t sequences = 7; sequences <= 8; sequences++) {
        struct sf_eval eval = make_eval(sequences, cases);
        struct eval_quality q;
        SF_CHECK_INT(eval_by_sequence(&eval), sequences == 8);
        SF_MUST(eval_quality_of(&eval, 1, 0, &q));
        SF_CHECK_NEAR(log(q.perplexity.value), 0.64 * 2 + 0.36 * 3, 1e-12);
        SF_CHECK_NEAR(q.apart.value, 1, 1e-12);
        SF_CHECK_NEAR(q.kv_fraction, 0.25, 1e-12);
        SF_CHECK_NEAR(q.kv_fraction_end, 0.1, 1e-12);
        /* Sequences are all alike, blocks are not. */
        if (sequences == 8) SF_CHECK(q.perplexity.hi - q.perplexity.lo < 1e-9);
        else SF_CHECK(q.perplexity.hi - q.perplexity.lo > 0.1);
        free_eval(&eval);
    }
}

/* Of one block there is no interval; two that are alike have one of width zero. */
static void one_unit(void)
{
    struct eval_quality q = {0};
    make(3, 0, 0.25);
    SF_MUST(eval_bootstrap(made, 1, 4, &q));
    const struct eval_figure *figure[] = {&q.perplexity, &q.kl_mean, &q.agreement, &q.apart};
    for (size_t i = 0; i < sizeof figure / sizeof figure[0]; i++)
        SF_CHECK(isfinite(figure[i]->value) && isnan(figure[i]->lo) && isnan(figure[i]->hi));
    SF_MUST(eval_bootstrap(made, 2, 4, &q));
    SF_CHECK_NEAR(q.apart.lo, 0.25, 1e-12);
    SF_CHECK_NEAR(q.apart.hi, 0.25, 1e-12);
}

static void recall(void)
{
    struct eval_figure some = eval_wilson(8, 10), none = eval_wilson(0, 10);
    struct eval_figure all = eval_wilson(10, 10), nothing = eval_wilson(0, 0);
    SF_CHECK_NEAR(some.value, 0.8, 1e-12);
    SF_CHECK_NEAR(some.lo, 0.49016, 1e-5);
    SF_CHECK_NEAR(some.hi, 0.94332, 1e-5);
    SF_CHECK_NEAR(none.lo, 0, 0);
    SF_CHECK_NEAR(none.hi, 0.27753, 1e-5);
    SF_CHECK_NEAR(all.lo, 1 - none.hi, 1e-12);
    SF_CHECK_NEAR(all.hi, 1, 0);
    SF_CHECK(isnan(nothing.value));
    struct eval_case cases[3];
    struct sf_eval eval = make_eval(3, cases);
    for (int32_t i = 0; i < 3; i++) {
        cases[i].text = -1;
        cases[i].length = 512;
        cases[i].depth = 50 * i;
    }
    SF_CHECK_INT(eval_recall_of(&eval, 0, -1, -1).hits, 3);
    SF_CHECK_INT(eval_recall_of(&eval, 1, -1, -1).hits, 0);     /* one token of 100 is wrong */
    SF_CHECK_INT(eval_recall_of(&eval, 0, 512, 50).trials, 1);
    SF_CHECK_INT(eval_recall_of(&eval, 0, 1024, -1).trials, 0);
    free_eval(&eval);
}

static const struct sf_test tests[] = {
    {"a uniform model", uniform}, {"intervals", intervals}, {"paired differences", paired},
    {"what is drawn again", units}, {"one unit", one_unit}, {"needles", recall}, {NULL, NULL}};
SF_TEST_MAIN("eval_figures", tests)
