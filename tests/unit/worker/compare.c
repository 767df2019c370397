/* tests/unit/worker/compare.c: how far two rows of logits are apart.
 *
 * by hand: two tokens whose divergence is known; rows that say the same in other words (shifted).
 * definition: against sums in f64 on random rows, from flat to sharp; never below 0; 0, exactly,
 *   for equal rows.  many: rows of an item are kept side by side and found by position, until
 *   another sequence comes.  chunks: those of a step alone are kept.  refused: what was not kept,
 *   and rows that are not finite. */
#include "worker/compare.h"

#include <math.h>

#include "base/rng.h"
#include "tests/check.h"
#include "worker/score.h"

enum { VOCAB = 1003 };

static void fill(float *row, uint64_t stream, double scale)
{
    for (int32_t i = 0; i < VOCAB; i++)
        row[i] = (float)(scale * (sf_rng_uniform(11, stream, (uint64_t)i) - 0.5));
}

static double log_sum_of(const float *row)
{
    double sum = 0.0;
    for (int32_t i = 0; i < VOCAB; i++) sum += exp((double)row[i]);
    return log(sum);
}

static double defined(const float *l, const float *m)
{
    double a = log_sum_of(l), b = log_sum_of(m), kl = 0.0;
    for (int32_t i = 0; i < VOCAB; i++)
        kl += exp((double)l[i] - a) * (((double)l[i] - a) - ((double)m[i] - b));
    return kl;
}

static double apart(const float *l, const float *m, int32_t vocab)
{
    struct sf_kept_rows kept = {0};
    double kl = NAN;
    SF_CHECK_OK(sf_kept_rows_add(&kept, 7, 3, l, vocab));
    SF_CHECK_OK(sf_kept_rows_kl(&kept, 7, 3, m, &kl));
    sf_kept_rows_free(&kept);
    return kl;
}

static void by_hand(void)
{
    const float even[] = {2, 2}, uneven[] = {0, (float)log(3.0)}, shifted[] = {-60, -60};
    const float sure[] = {0, -INFINITY};
    SF_CHECK_NEAR(apart(even, uneven, 2), 0.5 * log(4.0 / 3.0), 1e-7);
    SF_CHECK_NEAR(apart(uneven, even, 2), 0.75 * log(1.5) + 0.25 * log(0.5), 1e-7);
    SF_CHECK_NEAR(apart(even, shifted, 2), 0.0, 1e-7);
    SF_CHECK_NEAR(apart(sure, even, 2), log(2.0), 1e-7);        /* 0 ln 0 is 0 */
}

static void definition(void)
{
    static float l[VOCAB], m[VOCAB];
    for (uint64_t round = 0; round < 40; round++) {
        double scale = pow(2.0, (double)(round % 8)) / 4.0;
        fill(l, 2 * round, scale);
        fill(m, 2 * round + 1, scale);
        if (round % 2 == 1)             /* near to each other, as caches are */
            for (int32_t i = 0; i < VOCAB; i++) m[i] = l[i] + 0.01f * m[i];
        double want = defined(l, m), is = apart(l, m, VOCAB);
        SF_CHECK_NEAR(is, want, 1e-6 + 1e-6 * want);
        SF_CHECK(is >= 0.0);
        SF_CHECK(apart(l, l, VOCAB) == 0.0);
    }
}

/* The log probability of any token of a uniform row is -ln of the vocabulary. */
static void uniform(void)
{
    static float row[VOCAB];
    struct sf_wire_score score = {.top = NULL};
    for (int32_t i = 0; i < VOCAB; i++) row[i] = 3.25f;
    SF_CHECK_INT(sf_score(row, VOCAB, 500, 0, &score), 1);
    SF_CHECK_NEAR(exp(-(double)score.logprob), VOCAB, 1e-3);
}

static void many(void)
{
    static float l[4][VOCAB], m[VOCAB];
    struct sf_kept_rows kept = {0};
    double kl = -1;
    fill(m, 99, 4);
    for (uint64_t r = 0; r < 4; r++) {
        fill(l[r], r, 4);
        SF_MUST(sf_kept_rows_add(&kept, 256, 40 + (int32_t)r, l[r], VOCAB));
    }
    for (int32_t r = 3; r >= 0; r--) {
        SF_MUST(sf_kept_rows_kl(&kept, 256, 40 + r, m, &kl));
        SF_CHECK_NEAR(kl, defined(l[r], m), 1e-5);
        SF_MUST(sf_kept_rows_kl(&kept, 256, 40 + r, l[r], &kl));
        SF_CHECK(kl == 0.0);
    }
    SF_MUST(sf_kept_rows_add(&kept, 512, 41, m, VOCAB));
    SF_MUST(sf_kept_rows_kl(&kept, 512, 41, m, &kl));
    SF_CHECK(kl == 0.0);
    kl = -1;
    SF_CHECK_FAILS(sf_kept_rows_kl(&kept, 256, 41, m, &kl), SF_INTERNAL);
    SF_CHECK_FAILS(sf_kept_rows_kl(&kept, 512, 40, m, &kl), SF_INTERNAL);
    SF_CHECK_FAILS(sf_kept_rows_kl(&kept, 512, 42, m, &kl), SF_INTERNAL);
    SF_CHECK_FAILS(sf_kept_rows_kl(&kept, 0, 41, m, &kl), SF_INTERNAL);
    SF_CHECK(kl == -1);
    SF_MUST(sf_kept_rows_add(&kept, 512, 50, m, VOCAB));        /* not the next one: begins anew */
    SF_CHECK_INT(kept.rows, 1);
    sf_kept_rows_free(&kept);
    SF_CHECK(kept.logits == NULL && kept.seq == 0);
}

/* Two steps with a chunk each, of one sequence and without a gap: no room for both is taken. */
static void chunks(void)
{
    enum { ROWS = 32 };
    static float row[VOCAB];
    struct sf_kept_rows kept = {0};
    size_t room = 0;
    double kl = -1;
    fill(row, 1, 4);
    for (int32_t chunk = 0; chunk < 2; chunk++) {
        sf_kept_rows_restart(&kept);
        SF_CHECK_INT(kept.rows, 0);
        for (int32_t r = 0; r < ROWS; r++)
            SF_MUST(sf_kept_rows_add(&kept, 256, 100 + chunk * ROWS + r, row, VOCAB));
        SF_CHECK_INT(kept.rows, ROWS);
        SF_CHECK_INT(kept.pos, 100 + chunk * ROWS);
        if (chunk == 0) room = kept.logits_room;
        SF_CHECK(kept.logits_room == room);
    }
    SF_MUST(sf_kept_rows_kl(&kept, 256, 100 + 2 * ROWS - 1, row, &kl));
    SF_CHECK_FAILS(sf_kept_rows_kl(&kept, 256, 100 + ROWS - 1, row, &kl), SF_INTERNAL);
    sf_kept_rows_restart(&kept);
    SF_CHECK_FAILS(sf_kept_rows_kl(&kept, 256, 100 + ROWS, row, &kl), SF_INTERNAL);
    sf_kept_rows_free(&kept);
}

static void not_finite(void)
{
    const float fine[] = {1, 2}, none[] = {-INFINITY, -INFINITY}, broken[] = {1, NAN};
    const float high[] = {INFINITY, 0}, out[] = {-INFINITY, 0};
    struct sf_kept_rows kept = {0};
    double kl = -1;
    SF_CHECK_FAILS(sf_kept_rows_add(&kept, 1, 0, none, 2), SF_INTERNAL);
    SF_CHECK_FAILS(sf_kept_rows_add(&kept, 1, 0, broken, 2), SF_INTERNAL);
    SF_CHECK_FAILS(sf_kept_rows_add(&kept, 1, 0, high, 2), SF_INTERNAL);
    SF_MUST(sf_kept_rows_add(&kept, 1, 0, fine, 2));
    SF_CHECK_FAILS(sf_kept_rows_kl(&kept, 1, 0, none, &kl), SF_INTERNAL);
    SF_CHECK_FAILS(sf_kept_rows_kl(&kept, 1, 0, broken, &kl), SF_INTERNAL);
    SF_CHECK_FAILS(sf_kept_rows_kl(&kept, 1, 0, high, &kl), SF_INTERNAL);
    SF_CHECK_FAILS(sf_kept_rows_kl(&kept, 1, 0, out, &kl), SF_INTERNAL);
    SF_CHECK(kl == -1);
    sf_kept_rows_free(&kept);
}

static const struct sf_test tests[] = {
    {"two tokens by hand", by_hand}, {"the definition", definition}, {"a uniform row", uniform},
    {"rows kept side by side", many}, {"chunk after chunk", chunks},
    {"rows that are not finite", not_finite}, {NULL, NULL}};
SF_TEST_MAIN("compare", tests)
