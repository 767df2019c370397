/* tests/unit/worker/score.c: the log probability of a token, its rank and the likeliest tokens.
 *
 * definition: against a direct reading of score.h (all tokens sorted, sums in f64) on random rows
 *   from flat to sharp, some full of ties and of -inf, of odd sizes, with 0 to 32 tops.
 * by hand: ties, tokens ruled out, small vocabularies, large logits. broken rows are refused. */
#include <math.h>
#include <stdlib.h>

#include "base/rng.h"
#include "tests/check.h"
#include "worker/score.h"

enum { VOCAB = 1003, TOPS = 32 };

static double uniform(uint64_t stream, uint64_t index) { return sf_rng_uniform(6, stream, index); }

/* ---- the definition ---- */
static const float *sorting;

static int in_order(const void *left, const void *right)
{
    int32_t a = *(const int32_t *)left, b = *(const int32_t *)right;
    if (sorting[a] != sorting[b]) return sorting[a] < sorting[b] ? 1 : -1;
    return (a > b) - (a < b);
}

static void check_row(const float *logits, int32_t vocab, int32_t token, int32_t tops)
{
    static int32_t order[VOCAB];
    struct sf_wire_top top[TOPS + 1];
    struct sf_wire_score score = {.seq = 5, .pos = 6, .top = top};
    top[tops] = (struct sf_wire_top){-77, 0};           /* nothing is written behind them */
    SF_CHECK_INT(sf_score(logits, vocab, token, tops, &score), 1);
    for (int32_t i = 0; i < vocab; i++) order[i] = i;
    sorting = logits;
    qsort(order, (size_t)vocab, sizeof *order, in_order);
    double sum = 0.0, highest = logits[order[0]];
    int32_t finite = 0, rank = 1;
    for (int32_t i = 0; i < vocab; i++) {
        sum += exp(logits[i] - highest);
        finite += logits[i] > -INFINITY;
    }
    while (order[rank - 1] != token) rank++;
    double log_sum = highest + log(sum), mine = logits[token] - log_sum;
    SF_CHECK(score.seq == 5 && score.pos == 6 && score.top == top);
    SF_CHECK_INT(score.token, token);
    SF_CHECK_INT(score.rank, rank);
    if (logits[token] == -INFINITY) mine = SF_SCORE_LEAST;
    SF_CHECK_NEAR(score.logprob, mine, 1e-6 + 2e-7 * fabs(mine));
    SF_CHECK_INT(score.tops, tops < finite ? tops : finite);
    for (int32_t t = 0; t < score.tops; t++) {
        double want = logits[order[t]] - log_sum;
        SF_CHECK_INT(top[t].token, order[t]);
        SF_CHECK_NEAR(top[t].logprob, want, 1e-6 + 2e-7 * fabs(want));
    }
    SF_CHECK_INT(top[tops].token, -77);
    if (rank <= score.tops) SF_CHECK(top[rank - 1].logprob == score.logprob);
    SF_CHECK(score.logprob <= 0.0f);
}

static void test_definition(void)
{
    for (uint64_t n = 0; n < 3000; n++) {
        float logits[VOCAB];
        int32_t vocab = 1 + (int32_t)(uniform(1, n) * VOCAB);
        double width = n % 3 == 0 ? 0.1 : n % 3 == 1 ? 4 : 40;      /* flat, usual, sharp */
        for (int32_t t = 0; t < vocab; t++) {
            double x = width * (uniform(100 + n, (uint64_t)t) + uniform(9000 + n, (uint64_t)t) - 1);
            logits[t] = (float)(n % 5 == 0 ? rint(x) : x);
            if (n % 7 == 0 && uniform(20000 + n, (uint64_t)t) < 0.5) logits[t] = -INFINITY;
        }
        logits[(int32_t)(uniform(2, n) * vocab)] = 1;               /* one is finite */
        check_row(logits, vocab, (int32_t)(uniform(3, n) * vocab),
                  (int32_t)(uniform(4, n) * (TOPS + 1)));
    }
}

static void test_by_hand(void)
{
    const float tied[] = {1, 3, 3, 0}, ruled_out[] = {-INFINITY, 0, -INFINITY}, one[] = {-5};
    const float large[] = {3e38f, -3e38f, 3e38f};
    struct sf_wire_top top[4];
    struct sf_wire_score score = {.top = top};
    for (int32_t t = 0; t < 4; t++) check_row(tied, 4, t, 3);
    SF_CHECK_INT(sf_score(tied, 4, 2, 1, &score), 1);   /* as likely as 1, and behind it */
    SF_CHECK_INT(score.rank, 2);
    SF_CHECK_INT(top[0].token, 1);
    SF_CHECK_INT(sf_score(ruled_out, 3, 2, 4, &score), 1);
    SF_CHECK(score.logprob == SF_SCORE_LEAST);
    SF_CHECK_INT(score.rank, 3);
    SF_CHECK_INT(score.tops, 1);
    SF_CHECK(top[0].token == 1 && top[0].logprob == 0.0f);
    SF_CHECK_INT(sf_score(one, 1, 0, 4, &score), 1);
    SF_CHECK(score.logprob == 0.0f && score.rank == 1 && score.tops == 1);
    SF_CHECK_INT(sf_score(large, 3, 2, 4, &score), 1);
    SF_CHECK_INT(score.tops, 3);
    SF_CHECK(isfinite(score.logprob) && top[2].logprob == SF_SCORE_LEAST);
}

static void test_broken_rows(void)
{
    const float nan[] = {1, NAN, 2}, first[] = {NAN, 1, 2}, infinite[] = {1, INFINITY, 2};
    const float none[] = {-INFINITY, -INFINITY, -INFINITY};
    struct sf_wire_top top[3];
    struct sf_wire_score score = {.top = top};
    SF_CHECK_INT(sf_score(nan, 3, 0, 3, &score), 0);
    SF_CHECK_INT(sf_score(first, 3, 1, 3, &score), 0);
    SF_CHECK_INT(sf_score(infinite, 3, 0, 3, &score), 0);
    SF_CHECK_INT(sf_score(none, 3, 0, 0, &score), 0);
}

static const struct sf_test tests[] = {{"definition", test_definition},
                                       {"by_hand", test_by_hand},
                                       {"broken_rows", test_broken_rows},
                                       {NULL, NULL}};
SF_TEST_MAIN("score", tests)
