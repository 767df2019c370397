/* tests/kernels/choose.c: choices and scores.
 *
 * by hand, weights: ref on small rows whose answers are known; weights against e^x.
 * random rows: every number of a choice and of a score is ref's, bit for bit, over sizes around the
 *   width of a warp and of a block, flat, usual and sharp rows, rows full of ties and of -inf, and
 *   every combination of filters, penalties and biases; the logits come back as they were.
 * alone: a row's choice does not depend on the rows beside it or on its place.
 * broken rows: no token, and a sum of 0.  long lists: more than one launch.
 * largest: a row of as many tokens as a vocabulary may have, all of them listed. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/rng.h"
#include "kernels/choice.h"
#include "tests/check.h"
#include "tests/kernels/variants.h"

enum { ROWS = 12, VOCAB_MAX = 49152, BIASES = 3, SEEN = 20, GAP = 3, STRIDE = VOCAB_MAX + GAP };
static const int32_t sizes[] = { 1, 31, 32, 33, 511, 513, 1000, 49152 };

static struct variant variants[VARIANTS_MAX];
static struct sf_device *ref;
static int count;
static float logits[ROWS * STRIDE], before[ROWS * STRIDE];

/* What one call gives back. */
struct answer {
    struct sf_choice choice[ROWS];
    struct sf_choice_top top[ROWS][SF_CHOICE_TOPS_MAX];
};
static struct answer expected, actual;
static struct sf_choose_row row[ROWS];
static struct sf_choice_bias bias[ROWS][BIASES];
static struct sf_choice_seen seen[ROWS][SEEN];

static const struct sf_choose_row plain = { .sample = 1, .temperature = 1, .top_p = 1,
                                            .repetition = 1, .score = SF_SCORE_NONE };

static double uniform(uint64_t stream, uint64_t index) { return sf_rng_uniform(29, stream, index); }

static void run(struct sf_device *device, int32_t rows, int32_t vocab, struct answer *answer)
{
    struct sf_choose_job job = { rows, vocab, logits, STRIDE, row, answer->choice,
                                 answer->top[0] };
    memset(answer, 0, sizeof *answer);
    device->k->choose(device, &job);
}

/* ---- rows ---- */

static void row_fill(int32_t r, int32_t vocab, uint64_t n)
{
    static const double widths[] = { 0.1, 4, 40 };
    float *l = logits + (size_t)r * STRIDE;
    for (int32_t t = 0; t < vocab; t++) {
        double x = widths[n % 3] * (uniform(2 * n, (uint64_t)t) + uniform(2 * n + 1, (uint64_t)t)
                                    - 1);
        l[t] = (float)(n % 5 == 0 ? rint(x) : x);
        if (n % 7 == 0 && uniform(900000 + n, (uint64_t)t) < 0.7) l[t] = -INFINITY;
        if (n % 11 == 3) l[t] = t % 3 == 0 ? -0.0f : 0.0f;
    }
    l[random_below(vocab, 1, n)] = (float)(n % 13);             /* one is finite */
}

/* Each filter and each change of the row, or none, by the bits of `which`. */
static void setting(int32_t r, int32_t vocab, uint64_t which, uint64_t n)
{
    struct sf_choose_row *p = &row[r];
    *p = plain;
    p->row = r;
    p->u = which % 11 == 0 ? 1 - 0x1p-53 : uniform(3, n);
    p->temperature = which % 9 == 8 ? 0 : 0.2 + 1.8 * uniform(4, n);
    if (which & 1) p->top_k = 1 + (int32_t)(uniform(5, n) * uniform(6, n) * vocab);
    if (which & 2) p->top_p = 0.02 + 0.98 * uniform(7, n);
    if (which & 4) p->min_p = 0.3 * uniform(8, n);
    if (which & 8) {
        p->repetition = 0.5 + uniform(9, n);
        p->presence = 4 * uniform(10, n) - 2;
        p->frequency = 4 * uniform(11, n) - 2;
        p->token = seen[r];
        p->seen = vocab < SEEN ? 1 : SEEN;
    }
    if (which & 16) p->biases = vocab < SEEN ? 1 : BIASES;
    p->bias = bias[r];
    for (int32_t i = 0; i < SEEN; i++)          /* far enough apart that none comes twice */
        seen[r][i] = (struct sf_choice_seen){ vocab / SEEN * i, i % 4 };
    for (int32_t i = 0; i < BIASES; i++)
        bias[r][i] = (struct sf_choice_bias){ vocab / BIASES * i, (float)(9 * uniform(12, n + 7 *
                                                                          (uint64_t)i)) };
    if (which % 4 == 1) p->score = SF_SCORE_CHOSEN;
    if (which % 4 == 2) p->score = random_below(vocab, 13, n);
    p->tops = which % 3 == 0 ? 0 : random_below(SF_CHOICE_TOPS_MAX + 1, 14, n);
    if (which % 16 == 6) p->sample = 0;
}

static void check_same(const char *variant, int32_t rows, int32_t vocab)
{
    for (int32_t r = 0; r < rows; r++) {
        const struct sf_choice *a = &actual.choice[r], *e = &expected.choice[r];
        const struct sf_choose_row *p = &row[r];
        if (memcmp(a, e, sizeof *a) == 0 &&
            memcmp(actual.top[r], expected.top[r], sizeof actual.top[r]) == 0)
            continue;
        sf_test_fail(__FILE__, __LINE__, "%s, row %d, vocabulary %d (temperature %g, top_k %d, "
                     "top_p %g, min_p %g, score %d, tops %d): token %d rank %d tops %d sum %llu, "
                     "expected %d %d %d %llu", variant, r, vocab, p->temperature, p->top_k,
                     p->top_p, p->min_p, p->score, p->tops, a->token, a->rank, a->tops,
                     (unsigned long long)a->sum, e->token, e->rank, e->tops,
                     (unsigned long long)e->sum);
        return;
    }
    CU_PASS("check_same");
}

static void check_all(int32_t rows, int32_t vocab)
{
    memcpy(before, logits, sizeof before);
    run(ref, rows, vocab, &expected);
    for (int i = 0; i < count; i++) {
        if (!variants[i].device->k->choose) continue;
        run(variants[i].device, rows, vocab, &actual);
        check_same(variants[i].text, rows, vocab);
        compare_bits(variants[i].text, "logits", logits, before, sizeof before);
    }
}

static void test_random(void)
{
    uint64_t n = 0;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        uint64_t calls = sizes[s] > 10000 ? variants_spare(1, 2) ? 1 : 6 : 12;
        for (uint64_t call = 0; call < calls; call++) {
            for (int32_t r = 0; r < ROWS; r++, n++) {
                row_fill(r, sizes[s], n);
                setting(r, sizes[s], n % 32, n);
            }
            check_all(ROWS, sizes[s]);
        }
    }
}

/* The last row first, and a row without its neighbours. */
static void test_alone(void)
{
    static struct sf_choose_row all[ROWS];
    enum { VOCAB = 1000 };
    for (int32_t r = 0; r < ROWS; r++) {
        row_fill(r, VOCAB, 77 + (uint64_t)r);
        setting(r, VOCAB, (uint64_t)(7 + r), 77 + (uint64_t)r);
    }
    memcpy(all, row, sizeof all);
    run(ref, ROWS, VOCAB, &expected);
    for (int i = 0; i < count; i++) {
        if (!variants[i].device->k->choose) continue;
        for (int32_t r = 0; r < ROWS; r++) row[r] = all[ROWS - 1 - r];
        run(variants[i].device, ROWS, VOCAB, &actual);
        for (int32_t r = 0; r < ROWS; r++)
            compare_bits(variants[i].text, "rows in another order", &actual.choice[r],
                         &expected.choice[ROWS - 1 - r], sizeof actual.choice[r]);
        row[0] = all[5];
        run(variants[i].device, 1, VOCAB, &actual);
        compare_bits(variants[i].text, "a row alone", &actual.choice[0], &expected.choice[5],
                     sizeof actual.choice[0]);
    }
}

/* ---- by hand ---- */

static int32_t choose(struct sf_device *device, const struct sf_choose_row *p, const float *l,
                      int32_t vocab, double u)
{
    memcpy(logits, l, (size_t)vocab * sizeof *l);
    row[0] = *p;
    row[0].u = u;
    run(device, 1, vocab, &actual);
    return actual.choice[0].token;
}

static void check_by_hand(struct sf_device *device)
{
    const float tied[] = { 1, 3, 3, 0 }, negative[] = { -1, -2, -3, -4 };
    struct sf_choose_row greedy = plain, one = plain, half = plain, repeat, once;
    greedy.temperature = 0;
    one.top_k = 1;
    half.top_p = 0.5;
    SF_CHECK_INT(choose(device, &greedy, tied, 4, 0), 1);
    SF_CHECK_INT(choose(device, &one, tied, 4, 0.999), 1);      /* ties to the lower token */
    SF_CHECK_INT(choose(device, &plain, tied, 4, 0), 0);
    SF_CHECK_INT(choose(device, &plain, tied, 4, 0.9999), 3);
    SF_CHECK_INT(choose(device, &half, tied, 4, 0), 1);
    SF_CHECK_INT(choose(device, &half, tied, 4, 0.9999), 2);    /* two hold half, one does not */

    const struct sf_choice_seen both[] = { { 1, 0 }, { 2, 3 } }, first[] = { { 0, 0 } };
    repeat = once = greedy;
    repeat.token = once.token = both;
    repeat.seen = once.seen = 2;
    repeat.repetition = 4;
    SF_CHECK_INT(choose(device, &repeat, tied, 4, 0), 0);       /* 1, 0.75, 0.75, 0 */
    once.presence = 1.9;                                        /* of token 2 alone */
    SF_CHECK_INT(choose(device, &once, (const float[]){ 1, 0, 3, 0 }, 4, 0), 2);
    once.presence = 2.1;
    SF_CHECK_INT(choose(device, &once, (const float[]){ 1, 0, 3, 0 }, 4, 0), 0);
    repeat.token = first;
    repeat.seen = 1;
    SF_CHECK_INT(choose(device, &repeat, negative, 4, 0), 1);
    const struct sf_choice_bias up = { 3, 100 };
    greedy.bias = &up;
    greedy.biases = 1;
    greedy.score = 1;
    greedy.tops = 3;
    SF_CHECK_INT(choose(device, &greedy, tied, 4, 0), 3);       /* the score knows no bias */
    SF_CHECK_INT(actual.choice[0].rank, 1);
    SF_CHECK_INT(actual.choice[0].tops, 3);
    SF_CHECK(actual.top[0][0].token == 1 && actual.top[0][1].token == 2 &&
             actual.top[0][2].token == 0 && actual.top[0][2].logit == 1.0f);
    SF_CHECK_NEAR(ldexp((double)actual.choice[0].sum, -40), 2 + exp(-2) + exp(-3), 1e-11);
}

static void check_broken(struct sf_device *device)
{
    struct sf_choose_row filtered = plain, greedy = plain, inflated = plain;
    const struct sf_choice_seen all[] = { { 0, 0 } };
    const float nan[] = { 1, NAN, 2, 0 }, infinite[] = { 1, INFINITY, 2, 0 };
    const float none[] = { -INFINITY, -INFINITY, -INFINITY, -INFINITY };
    filtered.top_p = 0.9;
    filtered.score = 2;
    filtered.tops = 2;
    greedy.temperature = 0;
    inflated.token = all;
    inflated.seen = 1;
    inflated.repetition = 1e-300;
    const struct sf_choose_row *rows[] = { &plain, &filtered, &greedy };
    for (int i = 0; i < 3; i++) {
        SF_CHECK_INT(choose(device, rows[i], nan, 4, 0.5), -1);
        SF_CHECK(actual.choice[0].sum == 0);
        SF_CHECK_INT(choose(device, rows[i], infinite, 4, 0.5), -1);
        SF_CHECK_INT(choose(device, rows[i], none, 4, 0.5), -1);
        SF_CHECK(actual.choice[0].sum == 0 && actual.choice[0].tops == 0);
    }
    /* Penalties make nothing infinite: it would be one record that ends a job. */
    SF_CHECK_INT(choose(device, &inflated, (const float[]){ 1, 5, 2, 0 }, 4, 0.5), 0);
    SF_CHECK_INT(choose(device, &inflated, (const float[]){ -1, 5, 2, 0 }, 4, 0.5), 1);
    inflated.repetition = 100;
    inflated.temperature = 0;
    SF_CHECK_INT(choose(device, &inflated, (const float[]){ -FLT_MAX, -FLT_MAX, 2, 0 }, 4, 0.5), 2);
    SF_CHECK_INT(choose(device, &filtered, (const float[]){ -INFINITY, -INFINITY, 2, -INFINITY }, 4,
                        0.999), 2);
    SF_CHECK_INT(actual.choice[0].tops, 1);
    filtered.temperature = 1e-3;
    SF_CHECK_INT(choose(device, &filtered, (const float[]){ 1, 5, 2, 0 }, 4, 0.999), 1);
}

static void test_by_hand(void)
{
    check_by_hand(ref);
    check_broken(ref);
    for (int i = 0; i < count; i++) {
        if (!variants[i].device->k->choose) continue;
        check_by_hand(variants[i].device);
        check_broken(variants[i].device);
        run(variants[i].device, 0, 4, &actual);
    }
}

/* The list of every second token of a large vocabulary, for each row: together they are more than
 * half of the ring holds. */
static void test_long_lists(void)
{
    static struct sf_choice_seen many[VOCAB_MAX / 2];
    enum { LIST_ROWS = ROWS };
    for (int32_t i = 0; i < VOCAB_MAX / 2; i++) many[i] = (struct sf_choice_seen){ 2 * i, i % 2 };
    if (variants_spare(1, 2)) return;
    for (int32_t r = 0; r < LIST_ROWS; r++) {
        row_fill(r, VOCAB_MAX, 500 + (uint64_t)r);
        setting(r, VOCAB_MAX, 8, 500 + (uint64_t)r);
        row[r].token = many;
        row[r].seen = VOCAB_MAX / 2;
    }
    check_all(LIST_ROWS, VOCAB_MAX);
}

/* One launch for the row, whose draw comes to the last token: all weigh the same. */
static void test_largest(void)
{
    enum { VOCAB = SF_CHOICE_VOCAB_MAX };
    struct sf_choice_seen *all = malloc(VOCAB * sizeof *all);
    _Static_assert((int)VOCAB >= 262208 && (int)VOCAB <= ROWS * STRIDE, "Gemma 3 fits, as one row");
    for (int32_t t = 0; t < VOCAB; t++) all[t] = (struct sf_choice_seen){ t, 1 };
    for (int32_t t = 0; t < VOCAB; t++) logits[t] = 0.5f;
    row[0] = plain;
    row[0].u = 1 - 0x1p-53;
    row[0].token = all;
    row[0].seen = VOCAB;
    row[0].presence = 0.25;
    row[0].score = VOCAB - 1;
    row[0].tops = 2;
    run(ref, 1, VOCAB, &expected);
    SF_CHECK_INT(expected.choice[0].token, VOCAB - 1);
    SF_CHECK_INT(expected.choice[0].rank, VOCAB);
    SF_CHECK(expected.choice[0].sum == (uint64_t)VOCAB << 40);
    for (int i = 0; i < count; i++) {
        if (!variants[i].device->k->choose) continue;
        run(variants[i].device, 1, VOCAB, &actual);
        check_same(variants[i].text, 1, VOCAB);
    }
    free(all);
}

/* Within half a unit, and what the series leaves out: 7e-15 of the greatest weight. */
static void test_weights(void)
{
    for (int i = 0; i <= 270000; i++) {
        double x = -1e-4 * i, e = 0x1p40 * exp(x);
        if (fabs((double)sf_choice_weight(x) - e) <= 0.5 + 8e-15 * e) continue;
        sf_test_fail(__FILE__, __LINE__, "weight of %g: %llu, expected %.3f", x,
                     (unsigned long long)sf_choice_weight(x), e);
        return;
    }
    SF_CHECK(sf_choice_weight(0) == 1ull << 40 && sf_choice_weight(SF_CHOICE_LEAST) == 2);
    SF_CHECK(sf_choice_key(-0.0f) == sf_choice_key(0.0f));
    SF_CHECK(sf_choice_key(-1.0f) < sf_choice_key(-0.5f));
    SF_CHECK(sf_choice_key(0) < sf_choice_key(1e-40f));
    SF_CHECK(sf_choice_logit(sf_choice_key(-2.5f)) == -2.5f);
    SF_CHECK(sf_choice_logit(sf_choice_key(3e38f)) == 3e38f);
}

static const struct sf_test tests[] = {
    { "weights", test_weights }, { "by hand", test_by_hand }, { "random rows", test_random },
    { "alone", test_alone }, { "long lists", test_long_lists },
    { "largest", test_largest }, { NULL, NULL }
};

int main(int argc, char **argv)
{
    count = variants_open(variants, &ref);
    int failed = sf_test_main("kernels_choose", tests, argc, argv);
    variants_close(variants, count, ref);
    return failed;
}
