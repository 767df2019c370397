/* kernels/choice.h: the arithmetic of a choice (struct sf_choose_job of kernels.h), one text for
 * the host and for CUDA.  Every step is a sum, a product or a quotient of f64 that all machines
 * round alike, or is in whole numbers, so the weights of a row are the same numbers everywhere.
 *
 * A weight is a whole number, 2^40 for the greatest logit.  So sums of weights do not depend on the
 * order in which they are taken, and a device that adds them up in another order than the host
 * chooses the same token.  Tokens beyond e^-27 = 2 / 2^40 of the greatest are left out: of a
 * vocabulary of 5 * 2^16 they hold less than 6 in 10^7 together. */
#ifndef SHEAF_KERNELS_CHOICE_H
#define SHEAF_KERNELS_CHOICE_H
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "kernels/kernels.h"

#if defined(__CUDACC__)
#define SF_HOST_DEVICE static __host__ __device__ __forceinline__
#else
#define SF_HOST_DEVICE static inline
#endif

#define SF_CHOICE_LEAST (-27.0)
#define SF_CHOICE_ONE 0x1p40            /* the weight of x = 0 */

/* x_i = (l_i - h) / temperature, never above 0; -inf for a token that is ruled out. */
SF_HOST_DEVICE double sf_choice_exponent(float logit, float highest, double temperature)
{
    return ((double)logit - (double)highest) / temperature;
}

/* round(2^40 e^x) of x in [SF_CHOICE_LEAST, 0].  With k = rint(x / ln 2) and r = x - k ln 2, which
 * is within ln 2 / 2 of 0, the series of e^r up to r^11, whose rest is below 2^-47, times
 * 2^(40 + k).  Adding 1.5 * 2^52 leaves k in the low bits; the high part of ln 2 has 32 bits, so k
 * times it is exact. */
SF_HOST_DEVICE uint64_t sf_choice_weight(double x)
{
    double shifted = x * 1.44269504088896340736 + 0x1.8p52, scale;
    double k = shifted - 0x1.8p52;
    double r = (x - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33, r2 = r * r, r4 = r2 * r2;
    /* in pairs and fours, so that few steps wait for each other */
    double low = (1.0 + r) + r2 * (0.5 + r * (1.0 / 6));
    double middle = (1.0 / 24 + r * (1.0 / 120)) + r2 * (1.0 / 720 + r * (1.0 / 5040));
    double high = (1.0 / 40320 + r * (1.0 / 362880)) +
                  r2 * (1.0 / 3628800 + r * (1.0 / 39916800));
    double sum = low + r4 * (middle + r4 * high);
    uint64_t bits = (uint64_t)((int64_t)k + 40 + 1023) << 52;
    memcpy(&scale, &bits, sizeof scale);
    return (uint64_t)(int64_t)(sum * scale + 0.5);
}

/* Rises with the logit; -0 and 0 have one key.  No logit has key 0. */
SF_HOST_DEVICE uint32_t sf_choice_key(float logit)
{
    uint32_t bits;
    float value = logit + 0.0f;
    memcpy(&bits, &value, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

SF_HOST_DEVICE float sf_choice_logit(uint32_t key)
{
    uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float logit;
    memcpy(&logit, &bits, sizeof logit);
    return logit;
}

/* The least sum of weights that is at least top_p of `total`, which is above 0. */
SF_HOST_DEVICE uint64_t sf_choice_share(double top_p, uint64_t total)
{
    double share = ceil(top_p * (double)total);
    uint64_t need = share < 1.0 ? 1 : (uint64_t)share;
    return need < total ? need : total;
}

/* The first token whose cumulative weight is above this one is drawn. */
SF_HOST_DEVICE uint64_t sf_choice_target(double u, uint64_t total)
{
    uint64_t target = (uint64_t)(u * (double)total);
    return target < total ? target : total - 1;
}

/* A logit after the penalties of a token that is among `seen`: as finite as it was before. */
SF_HOST_DEVICE float sf_choice_penalised(float logit, int32_t count, double repetition,
                                         double frequency, double presence)
{
    double l = (double)logit;
    l = l > 0.0 ? l / repetition : l * repetition;
    l -= frequency * count + presence * (count > 0);
    if (!(fabs((double)logit) <= FLT_MAX)) return (float)l;
    return l > FLT_MAX ? FLT_MAX : l < -FLT_MAX ? -FLT_MAX : (float)l;
}

/* The least x that min_p keeps. */
static inline double sf_choice_floor(double min_p)
{
    double floor = min_p > 0.0 ? log(min_p) : SF_CHOICE_LEAST;
    return floor > SF_CHOICE_LEAST ? floor : SF_CHOICE_LEAST;
}

#endif
