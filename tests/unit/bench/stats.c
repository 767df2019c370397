/* tests/unit/bench/stats.c: lengths, lists and percentiles.
 *
 * Texts by hand, the right ones and everything that must not pass; draws of a range are uniform and
 * reach both ends; percentiles agree with numpy's linear ones (by hand) and, on random samples, lie
 * between the order statistics around their place. */
#include "coordinator/stats.h"

#include <stdlib.h>

#include "base/rng.h"
#include "tests/check.h"

enum { MOST = 1000, PLACES = 4, DRAWS = 70000 };

static void ranges(void)
{
    static const char *const bad[] = {"", "0", "-1", "1.5", " 1", "1 ", "x", "10:", ":10", "5:4",
                                      "0:4", "1:2:3", "1001", "1:1001", "99999999999999999999",
                                      "1:99999999999999999999"};
    static const struct { const char *text; struct sf_range range; } good[] = {
        {"1", {1, 1}}, {"128", {128, 128}}, {"16:1000", {16, 1000}}, {"7:7", {7, 7}},
        {"007", {7, 7}}};
    struct sf_range range = {3, 5};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        SF_CHECK_FAILS(sf_range_parse(bad[i], MOST, &range), SF_INVALID);
    SF_CHECK_INT(range.lo, 3);          /* untouched */
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        SF_CHECK_OK(sf_range_parse(good[i].text, MOST, &range));
        SF_CHECK_INT(range.lo, good[i].range.lo);
        SF_CHECK_INT(range.hi, good[i].range.hi);
    }
    SF_CHECK_FAILS(sf_range_parse("5:4", MOST, &range), SF_INVALID);
    SF_CHECK(strstr(sf_error_text(), "'5:4'") != NULL);
}

static void draws(void)
{
    const struct sf_range range = {16, 22};
    int count[7] = {0};
    for (int i = 0; i < DRAWS; i++) {
        int32_t drawn = sf_range_draw(range, sf_rng_uniform(3, 1, (uint64_t)i));
        if (drawn >= range.lo && drawn <= range.hi) count[drawn - range.lo]++;
        else sf_test_fail(__FILE__, __LINE__, "drew %d", drawn);
    }
    for (int i = 0; i < 7; i++) SF_CHECK_NEAR(count[i], DRAWS / 7, 500);    /* 5 sigma: 463 */
    SF_CHECK_INT(sf_range_draw(range, 0.0), 16);
    SF_CHECK_INT(sf_range_draw(range, 0x1.fffffffffffffp-1), 22);
    SF_CHECK_INT(sf_range_draw((struct sf_range){9, 9}, 0.7), 9);
    SF_CHECK_INT(sf_range_draw((struct sf_range){1, INT32_MAX}, 0x1.fffffffffffffp-1), INT32_MAX);
}

static void lists(void)
{
    static const char *const bad[] = {"", ",", "1,", ",1", "1,,2", "1, 2", "0", "1,0", "1001",
                                      "1,2,3,4,5", "1;2", "1,2x"};
    int32_t number[PLACES], count = -1;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        SF_CHECK_FAILS(sf_numbers_parse(bad[i], MOST, PLACES, number, &count), SF_INVALID);
    SF_CHECK_INT(count, -1);
    SF_CHECK_OK(sf_numbers_parse("1,32,8,1000", MOST, PLACES, number, &count));
    SF_CHECK_INT(count, 4);
    SF_CHECK_INT(number[1], 32);
    SF_CHECK_INT(number[3], 1000);
    SF_CHECK_OK(sf_numbers_parse("7", MOST, PLACES, number, &count));
    SF_CHECK_INT(count, 1);
}

static void spreads_by_hand(void)
{
    struct sf_series series = {0};
    struct sf_spread spread = sf_series_spread(&series);
    SF_CHECK(isnan(spread.mean) && isnan(spread.p50) && isnan(spread.p90) && isnan(spread.p99));
    SF_CHECK_OK(sf_series_add(&series, 5));
    spread = sf_series_spread(&series);
    SF_CHECK(spread.mean == 5 && spread.p50 == 5 && spread.p90 == 5 && spread.p99 == 5);
    for (int i = 1; i <= 4; i++) SF_CHECK_OK(sf_series_add(&series, i % 2 ? 10 * i : -i));
    spread = sf_series_spread(&series);                 /* -4 -2 5 10 30 */
    SF_CHECK_NEAR(spread.mean, 7.8, 1e-12);
    SF_CHECK_NEAR(spread.p50, 5, 0);
    SF_CHECK_NEAR(spread.p90, 22, 1e-12);               /* place 3.6 */
    SF_CHECK_NEAR(spread.p99, 29.2, 1e-12);             /* place 3.96 */
    SF_CHECK_NEAR(sf_percentile(series.value, series.count, 0), -4, 0);
    SF_CHECK_NEAR(sf_percentile(series.value, series.count, 1), 30, 0);
    sf_series_free(&series);
    SF_CHECK_INT(series.count, 0);
}

static void spreads_of_many(void)
{
    for (int32_t n = 2; n < 400; n += 7) {
        struct sf_series series = {0};
        double sum = 0;
        for (int32_t i = 0; i < n; i++) {
            double value = sf_rng_uniform(11, (uint64_t)n, (uint64_t)i);
            sum += value;
            SF_MUST(sf_series_add(&series, value));
        }
        struct sf_spread spread = sf_series_spread(&series);
        const double share[] = {0.5, 0.9, 0.99}, found[] = {spread.p50, spread.p90, spread.p99};
        SF_CHECK_NEAR(spread.mean, sum / n, 1e-12);
        for (int k = 0; k < 3; k++) {
            size_t below = (size_t)(share[k] * (n - 1));
            double above = series.value[below + 1 < (size_t)n ? below + 1 : below];
            SF_CHECK(found[k] >= series.value[below] && found[k] <= above);
        }
        sf_series_free(&series);
    }
}

static const struct sf_test tests[] = {
    {"lengths as texts", ranges},
    {"lengths are uniform", draws},
    {"lists of numbers", lists},
    {"spreads by hand", spreads_by_hand},
    {"spreads of many samples", spreads_of_many},
    {NULL, NULL}};
SF_TEST_MAIN("stats", tests)
