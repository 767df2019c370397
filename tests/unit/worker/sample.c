/* tests/unit/worker/sample.c: the choice of a token on the host.
 *
 * definition: on thousands of random rows, from flat to sharp, with random filters, penalties and
 *   biases, the token of kernels/ref, always; and that of probabilities in f64, all tokens sorted,
 *   which are rounded elsewhere, so one row in thousands may differ.
 * frequencies: 200,000 draws of a small distribution match its probabilities.
 * ties, greedy, penalties, broken rows: by hand.  tokens seen, biases: what choice.h makes of them,
 * against counts of the whole history. */
#include <math.h>
#include <stdlib.h>

#include "base/rng.h"
#include "kernels/device.h"
#include "tests/check.h"
#include "worker/choice.h"
#include "worker/sample.h"

enum { VOCAB = 700, HISTORY = 40 };

static const struct sf_wire_sampling plain = {.temperature = 1, .top_p = 1, .repetition = 1};
/* The tokens of a sequence so far, its answer last. */
struct history { const int32_t *token; int32_t tokens, prompt; };
static const struct history nothing = {NULL, 0, 0};

static double uniform(uint64_t stream, uint64_t index) { return sf_rng_uniform(5, stream, index); }

/* ---- the definition ---- */
struct pair { double p; int32_t token; };

static int by_p(const void *left, const void *right)
{
    const struct pair *a = left, *b = right;
    if (a->p != b->p) return a->p < b->p ? 1 : -1;
    return a->token - b->token;
}

static void adjust(const struct sf_wire_sampling *s, const struct history *h, float *logits,
                   int32_t vocab)
{
    for (int32_t b = 0; b < s->biases; b++) logits[s->bias[b].token] += s->bias[b].value;
    for (int32_t t = 0; t < vocab; t++) {
        int32_t seen = 0, count = 0;
        for (int32_t i = 0; i < h->tokens; i++) {
            seen |= h->token[i] == t;
            count += i >= h->prompt && h->token[i] == t;
        }
        if (!seen) continue;
        double l = logits[t] > 0 ? logits[t] / s->repetition : logits[t] * s->repetition;
        logits[t] = (float)(l - s->frequency * count - s->presence * (count > 0));
    }
}

static int32_t by_definition(const struct sf_wire_sampling *s, const float *logits, int32_t vocab,
                             double u)
{
    static struct pair pair[VOCAB];
    static uint8_t kept[VOCAB];
    double highest = -INFINITY, all = 0, sum = 0, drawn = 0;
    for (int32_t t = 0; t < vocab; t++) highest = fmax(highest, (double)logits[t]);
    for (int32_t t = 0; t < vocab; t++) {
        double p = exp(((double)logits[t] - highest) / s->temperature);
        pair[t] = (struct pair){s->min_p > 0 && p < s->min_p ? 0 : p, t};
        kept[t] = 0;
    }
    qsort(pair, (size_t)vocab, sizeof *pair, by_p);
    int32_t most = s->top_k > 0 && s->top_k < vocab ? s->top_k : vocab;
    for (int32_t i = 0; i < most; i++) all += pair[i].p;
    for (int32_t i = 0; i < most && pair[i].p > 0; i++) {
        kept[pair[i].token] = 1;
        sum += pair[i].p;
        if (s->top_p < 1 && sum >= s->top_p * all) break;
    }
    int32_t last = -1;
    for (int32_t t = 0; t < vocab; t++) {
        if (!kept[t]) continue;
        last = t;
        drawn += exp(((double)logits[t] - highest) / s->temperature);
        if (drawn > u * sum) return t;
    }
    return last;
}

static struct sf_wire_sampling random_choice(uint64_t n, struct sf_wire_bias *bias)
{
    struct sf_wire_sampling s = plain;
    s.temperature = 0.2 + 1.8 * uniform(1, n);
    if (uniform(2, n) < 0.5) s.top_p = 0.02 + 0.98 * uniform(3, n);
    if (uniform(4, n) < 0.3) s.min_p = 0.3 * uniform(5, n);
    if (uniform(6, n) < 0.5) s.top_k = 1 + (int32_t)(uniform(7, n) * uniform(8, n) * VOCAB);
    if (uniform(9, n) < 0.3) s.repetition = 0.5 + uniform(10, n);
    if (uniform(11, n) < 0.3) s.presence = 4 * uniform(12, n) - 2;
    if (uniform(13, n) < 0.3) s.frequency = 4 * uniform(14, n) - 2;
    if (uniform(15, n) < 0.3) s.biases = 3;
    for (int32_t b = 0; b < 3; b++)
        bias[b] = (struct sf_wire_bias){(int32_t)(uniform(16 + (uint64_t)b, n) * VOCAB),
                                        (float)(20 * uniform(20 + (uint64_t)b, n) - 10)};
    s.bias = bias;
    return s;
}

/* The row of a choice after `h`, with u. */
static sf_status open_choice(const struct sf_wire_sampling *s, const struct history *h,
                             int32_t vocab, double u, struct sf_worker_choice *choice,
                             struct sf_choose_row *row)
{
    memset(choice, 0, sizeof *choice);
    SF_TRY(sf_choice_open(s, 1, h->prompt, h->tokens + 1, vocab, choice));
    for (int32_t i = 0; i < h->tokens; i++) sf_choice_saw(choice, i, h->token[i]);
    *row = sf_choice_row(choice, s, h->tokens);
    row->u = u;
    return SF_OK;
}

static int32_t by_ref(struct sf_device *ref, struct sf_choose_row row, float *logits, int32_t vocab)
{
    static struct sf_choice_top top[SF_CHOICE_TOPS_MAX];
    struct sf_choice choice;
    struct sf_choose_job job = {.rows = 1, .vocab = vocab, .logits = logits, .row = &row,
                                .stride = (size_t)vocab, .choice = &choice, .top = top};
    ref->k->choose(ref, &job);
    return choice.token;
}

static void test_definition(void)
{
    struct sf_device_spec spec = {.name = "ref", .threads = 1, .rows_max = 1};
    struct sf_device *ref;
    struct sf_sampler *sampler;
    SF_MUST(sf_sampler_create(VOCAB, &sampler));
    SF_MUST(sf_device_open(&spec, &ref));
    int32_t wrong = 0, rounded = 0;
    for (uint64_t n = 0; n < 6000 && wrong < 5; n++) {
        struct sf_wire_bias bias[3];
        struct sf_wire_sampling s = random_choice(n, bias);
        float logits[VOCAB], mine[VOCAB];
        int32_t token[HISTORY];
        double width = n % 3 == 0 ? 0.1 : n % 3 == 1 ? 4 : 40;      /* flat, usual, sharp */
        for (int32_t t = 0; t < VOCAB; t++) {
            double x = width * (uniform(100 + n, (uint64_t)t) + uniform(9000 + n, (uint64_t)t) - 1);
            logits[t] = (float)(n % 5 == 0 ? rint(x) : x);          /* some rows full of ties */
        }
        for (int32_t i = 0; i < HISTORY; i++) token[i] = (int32_t)(uniform(50 + n, (uint64_t)i) *
                                                                   60);
        struct history history = {token, HISTORY, 25};
        memcpy(mine, logits, sizeof mine);
        adjust(&s, &history, logits, VOCAB);
        double u = uniform(30, n);
        int32_t in_f64 = by_definition(&s, logits, VOCAB, u);
        struct sf_worker_choice choice;
        struct sf_choose_row row;
        SF_MUST(open_choice(&s, &history, VOCAB, u, &choice, &row));
        int32_t expected = by_ref(ref, row, mine, VOCAB);
        int32_t actual = sf_sample(sampler, &row, mine);
        sf_choice_close(&choice);
        rounded += actual != in_f64;
        if (actual == expected) continue;
        wrong++;
        sf_test_fail(__FILE__, __LINE__, "row %d (temperature %g, top_p %g, min_p %g, top_k %d): "
                     "token %d, expected %d", (int)n, s.temperature, s.top_p, s.min_p, s.top_k,
                     actual, expected);
    }
    SF_CHECK_INT(wrong, 0);
    SF_CHECK(rounded <= 2);
    sf_device_close(ref);
    sf_sampler_destroy(sampler);
}

static void test_frequencies(void)
{
    enum { DRAWS = 200000 };
    static const double p[] = {0.5, 0.25, 0.125, 0.0625, 0.0625};
    struct sf_sampler *sampler;
    int32_t count[5] = {0};
    SF_MUST(sf_sampler_create(5, &sampler));
    for (uint64_t n = 0; n < DRAWS; n++) {
        float logits[5];
        for (int t = 0; t < 5; t++) logits[t] = (float)log(p[t]);
        struct sf_choose_row row = {.temperature = 1, .top_p = 1, .u = uniform(40, n)};
        int32_t token = sf_sample(sampler, &row, logits);
        SF_ASSERT(token >= 0 && token < 5);
        count[token]++;
    }
    /* Five standard deviations of a binomial count. */
    for (int t = 0; t < 5; t++)
        SF_CHECK_NEAR(count[t], DRAWS * p[t], 5 * sqrt(DRAWS * p[t] * (1 - p[t])));
    sf_sampler_destroy(sampler);
}

static int32_t choose(const struct sf_wire_sampling *s, const struct history *h,
                      const float *logits, int32_t vocab, double u)
{
    struct sf_sampler *sampler;
    struct sf_worker_choice choice;
    struct sf_choose_row row;
    float changed[8];
    memcpy(changed, logits, (size_t)vocab * sizeof *changed);
    if (sf_sampler_create(vocab, &sampler) != SF_OK) return -2;
    int32_t token = -2;
    if (open_choice(s, h, vocab, u, &choice, &row) == SF_OK)
        token = sf_sample(sampler, &row, changed);
    sf_choice_close(&choice);
    sf_sampler_destroy(sampler);
    return token;
}

static void test_by_hand(void)
{
    const float tied[] = {1, 3, 3, 0}, negative[] = {-1, -2, -3, -4};
    struct sf_wire_sampling greedy = plain, one = plain, half = plain;
    greedy.temperature = 0;
    one.top_k = 1;
    half.top_p = 0.5;
    SF_CHECK_INT(choose(&greedy, &nothing, tied, 4, 0), 1);
    SF_CHECK_INT(choose(&one, &nothing, tied, 4, 0.999), 1);       /* ties to the lower token */
    SF_CHECK_INT(choose(&plain, &nothing, tied, 4, 0), 0);
    SF_CHECK_INT(choose(&plain, &nothing, tied, 4, 0.9999), 3);
    SF_CHECK_INT(choose(&half, &nothing, tied, 4, 0), 1);
    SF_CHECK_INT(choose(&half, &nothing, tied, 4, 0.9999), 2);     /* two hold half, one does not */

    /* A positive logit is divided, a negative one multiplied; the prompt counts, for this alone. */
    const int32_t token[] = {1, 2, 2, 2};
    struct history history = {token, 4, 1};
    struct sf_wire_sampling repeat = greedy, often = greedy, once = greedy;
    repeat.repetition = 2;
    SF_CHECK_INT(choose(&repeat, &history, tied, 4, 0), 1);        /* 1, 1.5, 1.5, 0 */
    repeat.repetition = 4;
    SF_CHECK_INT(choose(&repeat, &history, tied, 4, 0), 0);
    const int32_t first[] = {0};
    SF_CHECK_INT(choose(&repeat, &(struct history){first, 1, 1}, negative, 4, 0), 1);
    often.frequency = 0.9;                                          /* 3 - 2.7 */
    SF_CHECK_INT(choose(&often, &history, (const float[]){1, 0, 3, 0}, 4, 0), 0);
    once.presence = 1.9;                                            /* 3 - 1.9 */
    SF_CHECK_INT(choose(&once, &history, (const float[]){1, 0, 3, 0}, 4, 0), 2);
    once.presence = 2.1;
    SF_CHECK_INT(choose(&once, &history, (const float[]){1, 0, 3, 0}, 4, 0), 0);

    struct sf_wire_bias bias = {3, 100};
    struct sf_wire_sampling biased = greedy;
    biased.bias = &bias;
    biased.biases = 1;
    SF_CHECK_INT(choose(&biased, &nothing, tied, 4, 0), 3);
}

static void test_broken_rows(void)
{
    struct sf_wire_sampling filtered = plain, greedy = plain;
    filtered.top_p = 0.9;
    greedy.temperature = 0;
    const float nan[] = {1, NAN, 2, 0}, none[] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    const float infinite[] = {1, INFINITY, 2, 0}, some[] = {-INFINITY, -INFINITY, 2, -INFINITY};
    SF_CHECK_INT(choose(&plain, &nothing, nan, 4, 0.5), -1);
    SF_CHECK_INT(choose(&filtered, &nothing, nan, 4, 0.5), -1);
    SF_CHECK_INT(choose(&plain, &nothing, none, 4, 0.5), -1);
    SF_CHECK_INT(choose(&plain, &nothing, infinite, 4, 0.5), -1);
    SF_CHECK_INT(choose(&greedy, &nothing, infinite, 4, 0.5), -1);
    SF_CHECK_INT(choose(&filtered, &nothing, some, 4, 0.999), 2);
    filtered.temperature = 1e-3;
    SF_CHECK_INT(choose(&filtered, &nothing, (const float[]){1, 5, 2, 0}, 4, 0.999), 1);
}

/* Tokens that come again and again, a hole in the positions, and more than one bias of a token. */
static void test_seen(void)
{
    enum { TOKENS = 500, PROMPT = 200, FEW = 60 };
    struct sf_wire_bias bias[] = {{9, 1}, {2, 3}, {9, -5}, {2, 0.5f}};
    struct sf_wire_sampling s = plain;
    struct sf_worker_choice choice = {0};
    int32_t before[FEW] = {0}, counts[FEW] = {0}, distinct = 0;
    s.frequency = 1;
    s.bias = bias;
    s.biases = 4;
    SF_MUST(sf_choice_open(&s, 7, PROMPT, TOKENS, FEW, &choice));
    for (int32_t i = 0; i < TOKENS; i++) {
        int32_t token = (int32_t)(uniform(70, (uint64_t)i) * uniform(71, (uint64_t)i) * FEW);
        sf_choice_saw(&choice, i + 1, FEW - 1);                 /* not the next: not taken */
        sf_choice_saw(&choice, i, token);
        before[token]++;
        counts[token] += i >= PROMPT;
    }
    struct sf_choose_row row = sf_choice_row(&choice, &s, TOKENS);
    for (int32_t t = 0; t < FEW; t++) {
        if (before[t] == 0) continue;
        SF_CHECK_INT(row.token[distinct].token, t);
        SF_CHECK_INT(row.token[distinct].count, counts[t]);
        distinct++;
    }
    SF_CHECK_INT(row.seen, distinct);
    SF_CHECK_INT(row.biases, 2);
    SF_CHECK(row.bias[0].token == 2 && row.bias[0].value == 3.5f);
    SF_CHECK(row.bias[1].token == 9 && row.bias[1].value == -4.0f);
    sf_choice_close(&choice);
    bias[1].token = FEW;
    SF_CHECK(sf_choice_open(&s, 7, PROMPT, TOKENS, FEW, &choice) == SF_INTERNAL);
    sf_choice_close(&choice);
    s.tops = SF_CHOICE_TOPS_MAX + 1;
    SF_CHECK(sf_choice_open(&s, 7, PROMPT, TOKENS, FEW, &choice) == SF_INTERNAL);
    sf_choice_close(&choice);
}

static const struct sf_test tests[] = {{"definition", test_definition},
                                       {"frequencies", test_frequencies},
                                       {"by_hand", test_by_hand},
                                       {"broken_rows", test_broken_rows},
                                       {"seen", test_seen},
                                       {NULL, NULL}};
SF_TEST_MAIN("sample", tests)
