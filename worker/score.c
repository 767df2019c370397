/* worker/score.c: four passes over a row (score.h): the greatest, the sum, the rank, the tops. */
#include "worker/score.h"

#include <math.h>

#include "base/status.h"
#include "kernels/choice.h"

/* Tokens in order, best first.  A logit equal to the last one's comes too late: its token is
 * higher. */
static int32_t find_tops(const float *logits, int32_t vocab, int32_t tops,
                         struct sf_choice_top *top)
{
    int32_t n = 0;
    float least = -INFINITY;            /* a token must be above, once there are `tops` of them */
    for (int32_t i = 0; i < vocab; i++) {
        if (!(logits[i] > least)) continue;
        int32_t at = n < tops ? n++ : tops - 1;
        for (; at > 0 && top[at - 1].logit < logits[i]; at--) top[at] = top[at - 1];
        top[at] = (struct sf_choice_top){i, logits[i] + 0.0f};
        if (n == tops) least = top[tops - 1].logit;
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

int sf_score_of(const struct sf_choice *choice, const struct sf_choice_top *top,
                struct sf_wire_score *score)
{
    if (choice->sum == 0) return 0;
    double log_sum = (double)choice->highest + log((double)choice->sum / SF_CHOICE_ONE);
    score->token = choice->scored;
    score->rank = choice->rank;
    score->logprob = logprob_of(choice->logit, log_sum);
    score->tops = choice->tops;
    for (int32_t t = 0; t < choice->tops; t++)
        score->top[t] = (struct sf_wire_top){top[t].token, logprob_of(top[t].logit, log_sum)};
    return 1;
}

int sf_score(const float *logits, int32_t vocab, int32_t token, int32_t tops,
             struct sf_wire_score *score)
{
    struct sf_choice found = {.token = -1};
    struct sf_choice_top top[SF_CHOICE_TOPS_MAX];
    SF_ASSERT(token >= 0 && token < vocab && tops >= 0 && tops <= SF_CHOICE_TOPS_MAX);
    found.highest = greatest(logits, vocab);
    if (!isfinite(found.highest)) return 0;
    for (int32_t i = 0; i < vocab; i++) {
        double x = sf_choice_exponent(logits[i], found.highest, 1.0);
        if (isnan(x)) return 0;
        if (x >= SF_CHOICE_LEAST) found.sum += sf_choice_weight(x);
    }
    found.scored = token;
    found.logit = logits[token] + 0.0f;         /* never -0 */
    found.rank = rank_of(logits, vocab, token);
    found.tops = tops > 0 ? find_tops(logits, vocab, tops, top) : 0;
    return sf_score_of(&found, top, score);
}
