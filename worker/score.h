/* worker/score.h: the log probability of a token under a row of logits, its place among all, and
 * the likeliest tokens.
 *
 *   m       = max_i l_i
 *   log p_t = l_t - m - ln sum_i e^(l_i - m)
 *   order   : i before j if l_i > l_j, or l_i = l_j and i < j
 *   rank_t  = 1 + tokens before t;  the tops are the first in this order
 *
 * The row is the model's: before biases, penalties and temperature.  What comes out depends on the
 * row alone, and is the same bits whether the host or a device has summed it: the sum is one of
 * whole numbers (kernels/choice.h). */
#ifndef SHEAF_WORKER_SCORE_H
#define SHEAF_WORKER_SCORE_H
#include <stdint.h>
#include "kernels/kernels.h"
#include "proto/wire.h"

/* What a token that the model rules out (logit -inf) is given instead of -inf, as other engines
 * write it; no such token is among the likeliest. */
#define SF_SCORE_LEAST (-9999.0f)

/* Sets score->token, logprob, rank and tops, and score->top[0 .. tops) of the room for `tops` that
 * it points at.  0, and nothing of use, if a logit is NaN or +inf or all are -inf. */
int sf_score(const float *logits, int32_t vocab, int32_t token, int32_t tops,
             struct sf_wire_score *score);
/* The same of what a device has found, and top[choice->tops]. */
int sf_score_of(const struct sf_choice *, const struct sf_choice_top *top,
                struct sf_wire_score *score);
#endif
