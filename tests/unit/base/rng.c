/* Philox against the known-answer vectors published with the paper (Random123, kat_vectors); the
 * layout of (key, stream, index) in it; the hash against values computed by the definition of
 * FNV-1a and its finisher apart from this code; and the range of the uniform numbers.  The clock
 * is here too: it does not go back, and a sleep lasts at least as long as asked. */
#include "base/clock.h"
#include "base/rng.h"
#include "tests/check.h"

static void test_known_answers(void)
{
    static const struct { uint32_t counter[4], key[2], out[4]; } cases[] = {
        { { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { { 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff }, { 0xffffffff, 0xffffffff },
          { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 }, { 0xa4093822, 0x299f31d0 },
          { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t out[4];
        sf_philox(cases[i].counter, cases[i].key, out);
        for (int word = 0; word < 4; word++) SF_CHECK_INT(out[word], cases[i].out[word]);
    }
}

/* The third vector again, through 64-bit key, stream and index: no bit of them may be lost. */
static void test_layout(void)
{
    SF_CHECK(sf_rng_u64(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88)
             == 0x94fdccebd16cfe09);
    SF_CHECK(sf_rng_u64(0, 0, 0) == 0xe169c58d6627e8d5);
}

static void test_uniform(void)
{
    enum { COUNT = 100000, BINS = 10 };
    int bins[BINS] = { 0 }, outside = 0;
    double sum = 0;
    for (uint64_t i = 0; i < COUNT; i++) {
        double u = sf_rng_uniform(42, 7, i);
        if (!(u >= 0 && u < 1)) {
            outside++;
            continue;
        }
        sum += u;
        bins[(int)(u * BINS)]++;
    }
    SF_CHECK_INT(outside, 0);
    /* Six standard deviations of a mean and of a bin of that many draws. */
    SF_CHECK_NEAR(sum / COUNT, 0.5, 6 * 0.2887 / 316.2);
    for (int i = 0; i < BINS; i++) SF_CHECK_NEAR(bins[i], COUNT / BINS, 6 * 94.9);
    SF_CHECK(sf_rng_uniform(42, 7, 0) == (double)(sf_rng_u64(42, 7, 0) >> 11) / 9007199254740992.0);
    SF_CHECK(sf_rng_uniform(42, 7, 0) != sf_rng_uniform(42, 8, 0));
    SF_CHECK(sf_rng_uniform(42, 7, 0) != sf_rng_uniform(43, 7, 0));
}

static void test_normal(void)
{
    enum { DRAWS = 100000 };
    double sum = 0, squares = 0, fourth = 0;
    for (uint64_t i = 0; i < DRAWS; i++) {
        double z = sf_rng_normal(42, 7, i);
        sum += z, squares += z * z, fourth += z * z * z * z;
    }
    /* Six standard deviations of the mean of that many draws. */
    SF_CHECK_NEAR(sum / DRAWS, 0, 6 / 316.2);
    SF_CHECK_NEAR(squares / DRAWS, 1, 6 * 1.414 / 316.2);
    SF_CHECK_NEAR(fourth / DRAWS, 3, 6 * 9.8 / 316.2);
    SF_CHECK(sf_rng_normal(42, 7, 3) == sf_rng_normal(42, 7, 3));
    SF_CHECK(sf_rng_normal(42, 7, 3) != sf_rng_normal(42, 8, 3));
}

static void test_hash(void)
{
    SF_CHECK(sf_hash64("", 0) == 0xf52a15e9a9b5e89b);
    SF_CHECK(sf_hash64("a", 1) == 0x02c0bdbf481420f8);
    SF_CHECK(sf_hash64("request-1\0x", 11) == 0xa6e4437d7c26b01b);
}

static void test_clock(void)
{
    int64_t before_ns = sf_now_ns();
    sf_sleep_us(3000);
    int64_t after_ns = sf_now_ns();
    SF_CHECK(after_ns - before_ns >= 3000000);
    SF_CHECK(sf_seconds_since(before_ns) >= (double)(after_ns - before_ns) * 1e-9);
    SF_CHECK(sf_seconds_since(before_ns) < 60);
    sf_sleep_us(-5);
    SF_CHECK(sf_seconds_since(after_ns) < 60);
}

static const struct sf_test tests[] = {
    { "known answers", test_known_answers },
    { "layout", test_layout },
    { "uniform", test_uniform },
    { "normal", test_normal },
    { "hash", test_hash },
    { "clock", test_clock },
    { NULL, NULL }
};
SF_TEST_MAIN("base_rng", tests)
