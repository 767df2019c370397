/* worker/sample.c: one choice (sample.h).
 *
 * The candidates of a filtered draw are gathered by falling thresholds: tokens within e^-16 of the
 * greatest first, and only if those do not decide the filters all the others.  A sharp distribution
 * then sorts a few dozen tokens and not the whole vocabulary. */
#include "worker/sample.h"

#include <math.h>

#include "base/memory.h"
#include "kernels/choice.h"

struct candidate { uint64_t weight; uint32_t key; int32_t token; };     /* kernels/choice.h */
struct sf_sampler {
    int32_t vocab;
    struct candidate *candidate;        /* [vocab] */
};

static const double near_log = -16.0;   /* of what is gathered first */

sf_status sf_sampler_create(int32_t vocab, struct sf_sampler **out)
{
    void *block;
    SF_TRY(sf_alloc(sizeof(struct sf_sampler), "sampler", &block));
    struct sf_sampler *s = block;
    s->vocab = vocab;
    sf_status status = sf_alloc((size_t)vocab * sizeof *s->candidate, "sampling candidates",
                                &block);
    if (status != SF_OK) {
        sf_sampler_destroy(s);
        return status;
    }
    s->candidate = block;
    *out = s;
    return SF_OK;
}

void sf_sampler_destroy(struct sf_sampler *s)
{
    if (s == NULL) return;
    sf_free(s->candidate);
    sf_free(s);
}

int64_t sf_sampler_bytes(int32_t vocab)
{
    return vocab * (int64_t)sizeof(struct candidate);
}

/* ---- before the softmax ---- */

static void change(const struct sf_sampler *s, const struct sf_choose_row *p, float *logits)
{
    for (int32_t i = 0; i < p->biases; i++) {
        SF_ASSERT(p->bias[i].token >= 0 && p->bias[i].token < s->vocab);
        logits[p->bias[i].token] += p->bias[i].value;
    }
    for (int32_t i = 0; i < p->seen; i++) {
        float *l = &logits[p->token[i].token];
        *l = sf_choice_penalised(*l, p->token[i].count, p->repetition, p->frequency, p->presence);
    }
}

/* Token of the greatest logit; -1 if there is a NaN or nothing above -inf. */
static int32_t greatest(const float *logits, int32_t vocab)
{
    int32_t best = -1;
    for (int32_t i = 0; i < vocab; i++) {
        if (isnan(logits[i])) return -1;
        if (logits[i] > -INFINITY && (best < 0 || logits[i] > logits[best])) best = i;
    }
    return best;
}

/* ---- filters and draw ---- */

/* Does `a` come before `b`?  Both orders are total. */
static int likelier(const struct candidate *a, const struct candidate *b)
{
    return a->key != b->key ? a->key > b->key : a->token < b->token;
}

static int lower(const struct candidate *a, const struct candidate *b)
{
    return a->token < b->token;
}

typedef int before(const struct candidate *, const struct candidate *);

/* In heap[n] only `at` may come before its children; afterwards none comes before its own. */
static void sift(struct candidate *heap, int32_t n, int32_t at, before *comes_before)
{
    struct candidate moved = heap[at];
    for (int32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && comes_before(&heap[child], &heap[child + 1])) child++;
        if (!comes_before(&moved, &heap[child])) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

/* Heapsort: the C library's qsort takes memory for more than a few. */
static void sort(struct candidate *candidate, int32_t n, before *comes_before)
{
    for (int32_t i = n / 2 - 1; i >= 0; i--) sift(candidate, n, i, comes_before);
    for (int32_t last = n - 1; last > 0; last--) {
        struct candidate first = candidate[0];
        candidate[0] = candidate[last];
        candidate[last] = first;
        sift(candidate, last, 0, comes_before);
    }
}

/* Tokens of x at least `floor`, in the order of the vocabulary. */
static int32_t gather(struct sf_sampler *s, const float *logits, float highest,
                      double temperature, double floor)
{
    int32_t n = 0;
    for (int32_t i = 0; i < s->vocab; i++) {
        double x = sf_choice_exponent(logits[i], highest, temperature);
        if (!(x >= floor)) continue;
        s->candidate[n++] = (struct candidate){sf_choice_weight(x), sf_choice_key(logits[i]), i};
    }
    return n;
}

static uint64_t total_of(const struct candidate *candidate, int32_t n)
{
    uint64_t total = 0;
    for (int32_t i = 0; i < n; i++) total += candidate[i].weight;
    return total;
}

/* How many of the `n` sorted candidates the filters keep, if these are `all` that there are or
 * enough to tell; otherwise 0.  total: of everything, before top_k. */
static int32_t kept_of(const struct sf_sampler *s, const struct sf_choose_row *p, int32_t n,
                       int all, uint64_t total)
{
    int32_t most = n;
    if (p->top_k > 0 && p->top_k <= n) {
        most = p->top_k;
        all = 1;
        total = total_of(s->candidate, most);
    }
    uint64_t sum = 0, need = p->top_p < 1.0 ? sf_choice_share(p->top_p, total) : 0;
    for (int32_t i = 0; i < most && need > 0; i++) {
        sum += s->candidate[i].weight;
        if (sum >= need && (all || p->top_k <= 0)) return i + 1;
    }
    return all ? most : 0;
}

/* The kept candidates, in the order of the vocabulary; returns how many. */
static int32_t filter(struct sf_sampler *s, const struct sf_choose_row *p, const float *logits,
                      float highest)
{
    double floor = sf_choice_floor(p->min_p);
    int32_t n = gather(s, logits, highest, p->temperature, floor);
    if (p->top_k <= 0 && p->top_p >= 1.0) return n;
    uint64_t total = total_of(s->candidate, n);
    int32_t near = gather(s, logits, highest, p->temperature, fmax(floor, near_log));
    sort(s->candidate, near, likelier);
    int32_t kept = kept_of(s, p, near, near == n, total);
    if (kept == 0) {
        n = gather(s, logits, highest, p->temperature, floor);
        sort(s->candidate, n, likelier);
        kept = kept_of(s, p, n, 1, total);
    }
    sort(s->candidate, kept, lower);
    return kept;
}

static int32_t draw(const struct candidate *candidate, int32_t n, double u)
{
    uint64_t target = sf_choice_target(u, total_of(candidate, n)), sum = 0;
    for (int32_t i = 0; i < n - 1; i++) {
        sum += candidate[i].weight;
        if (sum > target) return candidate[i].token;
    }
    return candidate[n - 1].token;
}

int32_t sf_sample(struct sf_sampler *s, const struct sf_choose_row *p, float *logits)
{
    change(s, p, logits);
    int32_t best = greatest(logits, s->vocab);
    if (best < 0 || logits[best] == INFINITY) return -1;
    if (p->temperature <= 0.0) return best;
    return draw(s->candidate, filter(s, p, logits, logits[best]), p->u);
}
