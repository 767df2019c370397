/* worker/score.c: four passes over a row (score.h): the tops, the greatest, the sum, the rank.
 *
 * The exponentials are in f32 and their sum in f64: each is right to 1 part in 10^7, and so is the
 * sum, far below the last digit of the f32 that comes out. */
#include "worker/score.h"

#include <math.h>

#include "base/status.h"

/* Tokens in order, best first.  A logit equal to the last one's comes too late: its token is
 * higher. */
static int32_t find_tops(const float *logits, int32_t vocab, int32_t tops, struct sf_wire_top *top)
{
    int32_t n = 0;
    float least = -INFINITY;            /* a token must be above, once there are `tops` of them */
    for (int32_t i = 0; i < vocab; i++) {
        if (!(logits[i] > least)) continue;
        int32_t at = n < tops ? n++ : tops - 1;
        for (; at > 0 && top[at - 1].logprob < logits[i]; at--) top[at] = top[at - 1];
        top[at] = (struct sf_wire_top){i, logits[i]};
        if (n == tops) least = top[tops - 1].logprob;
    }
    return n;
}

static float greatest(const float *logits, int32_t vocab)
{
    float highest = -INFINITY;
    for (int32_t i = 0; i < vocab; i++) highest = logits[i] > highest ? logits[i] : highest;
    return highest;
}

static int32_t rank_of(const float *logits, int32_t vocab, int32_t token)
{
    float mine = logits[token];
    int32_t before = 0;
    for (int32_t i = 0; i < token; i++) before += logits[i] >= mine;
    for (int32_t i = token + 1; i < vocab; i++) before += logits[i] > mine;
    return before + 1;
}

static float logprob_of(float logit, double log_sum)
{
    float logprob = (float)((double)logit - log_sum);
    return isfinite(logprob) ? logprob : SF_SCORE_LEAST;
}

int sf_score(const float *logits, int32_t vocab, int32_t token, int32_t tops,
             struct sf_wire_score *score)
{
    SF_ASSERT(token >= 0 && token < vocab && tops >= 0);
    float highest = greatest(logits, vocab);
    double sum = 0.0;
    if (!isfinite(highest)) return 0;
    for (int32_t i = 0; i < vocab; i++) sum += (double)expf(logits[i] - highest);
    if (!isfinite(sum)) return 0;
    double log_sum = (double)highest + log(sum);
    score->token = token;
    score->rank = rank_of(logits, vocab, token);
    score->logprob = logprob_of(logits[token], log_sum);
    score->tops = tops > 0 ? find_tops(logits, vocab, tops, score->top) : 0;
    for (int32_t t = 0; t < score->tops; t++)
        score->top[t].logprob = logprob_of(score->top[t].logprob, log_sum);
    return 1;
}
