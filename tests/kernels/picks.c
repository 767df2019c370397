/* tests/kernels/picks.c: chunks are chosen as ref chooses them, wherever two shares differ by more
 * than rounding, and ties go to the lower one; a query that is not a number has no say, and where a
 * landmark is none, all chunks are alike; the choice of a lane does not depend on the lanes beside
 * it; and a part in ordinary pages of which some slots are picked is attended like one in
 * which the others are holes. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "tests/check.h"
#include "tests/kernels/variants.h"

enum { PAGE = 32, Q_HEADS = 3, HEADS_MAX = 70, ROWS_MAX = 4, DIM_MAX = 64, LANES = 3 };
static const struct choice {
    const char *text;
    enum sf_dtype dtype;
    int32_t k_dim, landmarks, chunks, chunk_slots, rows, alike; /* alike: each so many are equal */
    float size;                         /* of the queries */
    int32_t heads;                      /* query heads of a lane */
    int32_t strange;                    /* not a number: 1: the second query head, 2: a landmark */
} choices[] = {
    { "f32, one page", SF_F32, 64, 20, 5, 8, 1, 1, 1, Q_HEADS, 0 },
    { "f16, over split edges", SF_F16, 32, 1300, 100, 8, 1, 1, 2, Q_HEADS, 0 },
    { "bf16, several rows", SF_BF16, 40, 600, 33, 4, 4, 1, 1, Q_HEADS, 0 },
    { "int8, over split edges", SF_INT8, 64, 600, 40, 8, 2, 1, 2, Q_HEADS, 0 },
    { "ties of three", SF_F32, 16, 300, 50, 16, 1, 3, 1, Q_HEADS, 0 },
    { "all alike", SF_F16, 16, 70, 30, 1, 2, 70, 1, Q_HEADS, 0 },
    { "all of them", SF_F32, 16, 45, 45, 2, 1, 1, 1, Q_HEADS, 0 },
    { "one of one", SF_BF16, 16, 1, 1, 3, 1, 1, 1, Q_HEADS, 0 },
    { "none", SF_F32, 16, 10, 0, 8, 1, 1, 1, Q_HEADS, 0 },
    { "shares of which most are 0", SF_F32, 64, 500, 60, 8, 1, 1, 300, Q_HEADS, 0 },
    { "70 query heads", SF_F32, 16, 60, 20, 4, 1, 1, 1, HEADS_MAX, 0 },
    { "70 query heads, rows", SF_F16, 32, 70, 9, 8, 4, 1, 2, HEADS_MAX, 0 },
    { "a query that is no number", SF_F32, 32, 200, 20, 8, 1, 1, 1, Q_HEADS, 1 },
    { "a landmark that is no number", SF_BF16, 16, 90, 12, 4, 1, 1, 1, Q_HEADS, 2 },
};
enum { CHOICES = sizeof choices / sizeof *choices };

static struct variant variants[VARIANTS_MAX];
static struct sf_device *ref;
static int count;

struct problem {
    const struct choice *c;
    struct sf_layout layout;
    size_t page_bytes;
    unsigned char *pool;
    int32_t *page;                      /* [LANES][pages] */
    int32_t pages;
    float q[ROWS_MAX * LANES * HEADS_MAX * DIM_MAX];
    int32_t *out;                       /* [LANES][chunks * chunk_slots] */
    struct sf_pick_lane lane[LANES];
};

/* Landmark i of a lane stands for chunk 2 i + lane. */
static void fill(struct problem *p, int32_t l)
{
    const struct choice *c = p->c;
    size_t dim = (size_t)c->k_dim, n = (size_t)c->landmarks;
    float *k = malloc(n * dim * 4);
    int32_t *pos = malloc(n * 4);
    for (size_t i = 0; i < n; i++) {
        random_fill(k + i * dim, dim, 1, 1000 * (uint64_t)(l + 1) + i / (size_t)c->alike);
        pos[i] = 2 * (int32_t)i + l;
    }
    if (c->strange == 2) k[(n / 2) * dim] = NAN;
    struct sf_append_lane at = { p->page + l * p->pages, 0, 0, c->landmarks, 0 };
    struct sf_append_job job = { p->layout, p->pool, p->page_bytes, k, k, dim, dim, pos, NULL, &at,
                                 1 };
    ref->k->kv_append(ref, &job);
    free(k), free(pos);
}

static void problem_make(struct problem *p, const struct choice *c)
{
    memset(p, 0, sizeof *p);
    p->c = c;
    p->layout = (struct sf_layout){ c->dtype, PAGE, c->k_dim, 0 };
    p->page_bytes = (sf_layout_page_bytes(&p->layout) + 63) / 64 * 64;
    p->pages = (c->landmarks + PAGE - 1) / PAGE;
    p->pool = aligned_alloc(64, (size_t)(LANES * p->pages) * p->page_bytes);
    p->page = malloc((size_t)(LANES * p->pages) * 4);
    size_t each = (size_t)(c->chunks * c->chunk_slots);
    p->out = malloc((LANES * each + 1) * 4);
    random_fill(p->q, sizeof p->q / sizeof *p->q, c->size, 6);
    for (int32_t l = 0; l < LANES && c->strange == 1; l++)
        p->q[(l * c->heads + 1) * c->k_dim] = NAN;
    for (int32_t i = 0; i < LANES * p->pages; i++) {
        p->page[i] = LANES * p->pages - 1 - i;
        ref->k->kv_clear(ref, &p->layout, p->pool + (size_t)p->page[i] * p->page_bytes);
    }
    for (int32_t l = 0; l < LANES; l++) {
        fill(p, l);
        p->lane[l] = (struct sf_pick_lane){
            .pages = p->page + l * p->pages, .landmarks = c->landmarks, .chunks = c->chunks,
            .rows = c->rows, .q_first = l * c->heads, .q_heads = c->heads,
            .slot_out = p->out + (size_t)l * each };
    }
}

static void problem_free(struct problem *p) { free(p->pool), free(p->page), free(p->out); }

static void choose(struct sf_device *device, struct problem *p, int32_t first, int32_t lanes)
{
    struct sf_pick_job job = { p->layout, p->pool, p->page_bytes, p->q,
                               (size_t)(LANES * p->c->heads * p->c->k_dim),
                               1 / sqrtf((float)p->c->k_dim), p->c->chunk_slots, p->lane + first,
                               lanes };
    size_t all = (size_t)(LANES * p->c->chunks * p->c->chunk_slots);
    for (size_t i = 0; first == 0 && i < all; i++) p->out[i] = -7;
    device->k->pick(device, &job);
}

/* Greatest share of landmark i of lane l over rows and heads. */
static double share_of(const struct problem *p, int32_t l, int32_t i)
{
    const struct choice *c = p->c;
    size_t dim = (size_t)c->k_dim;
    float *k = malloc((size_t)c->landmarks * dim * 4);
    int32_t *slot = malloc((size_t)c->landmarks * 4);
    double best = 0;
    for (int32_t s = 0; s < c->landmarks; s++) slot[s] = s;
    struct sf_slot_list list = { p->page + l * p->pages, slot, c->landmarks };
    ref->k->kv_read(ref, &p->layout, p->pool, p->page_bytes, &list, k, NULL, NULL, NULL);
    int32_t heads = c->heads;
    for (int32_t v = 0; v < c->rows * heads; v++) {
        const float *q = p->q + ((size_t)(v / heads * LANES * heads) +
                                 (size_t)(l * heads + v % heads)) * dim;
        double sum = 0, mine = 0, max = -INFINITY, logit[1400];
        for (int32_t s = 0; s < c->landmarks; s++) {
            logit[s] = 0;
            for (size_t e = 0; e < dim; e++)
                logit[s] += (double)q[e] * (double)k[(size_t)s * dim + e];
            logit[s] *= (double)(1 / sqrtf((float)c->k_dim));
            max = fmax(max, logit[s]);
        }
        for (int32_t s = 0; s < c->landmarks; s++) sum += exp(logit[s] - max);
        mine = exp(logit[i] - max) / sum;
        best = fmax(best, mine);
    }
    free(k), free(slot);
    return best;
}

/* Landmark of the first chunk that one list has and the other has not; -1: they are equal. */
static int32_t odd_one(const struct problem *p, int32_t l, const int32_t *a, const int32_t *b)
{
    int32_t n = p->c->chunks, size = p->c->chunk_slots;
    for (int32_t i = 0; i < n; i++) {
        int found = 0;
        for (int32_t j = 0; j < n; j++) found |= a[i * size] == b[j * size];
        if (!found) return (a[i * size] / size - l) / 2;
    }
    return -1;
}

static void test_choice(void)
{
    for (int c = 0; c < CHOICES; c++) {
        struct problem p;
        problem_make(&p, &choices[c]);
        int32_t each = p.c->chunks * p.c->chunk_slots;
        int32_t *expected = malloc((size_t)(LANES * each + 1) * 4);
        choose(ref, &p, 0, LANES);
        memcpy(expected, p.out, (size_t)(LANES * each) * 4);
        for (int i = 0; i < count; i++) {
            choose(variants[i].device, &p, 0, LANES);
            for (int32_t l = 0; l < LANES; l++) {
                const int32_t *is = p.out + l * each, *was = expected + l * each;
                for (int32_t s = 0; s < each; s++) {
                    int32_t place = s % p.c->chunk_slots;
                    SF_CHECK(is[s] >= 0 && is[s] % p.c->chunk_slots == place);
                    SF_CHECK(s == 0 || is[s] > is[s - 1]);
                }
                int32_t mine = odd_one(&p, l, is, was), theirs = odd_one(&p, l, was, is);
                if (mine < 0 && theirs < 0) continue;
                double gap = share_of(&p, l, theirs) - share_of(&p, l, mine);
                SF_CHECK(p.c->alike == 1 && fabs(gap) <= 1e-5 * share_of(&p, l, mine));
            }
        }
        free(expected);
        problem_free(&p);
    }
}

/* The definition itself: what is left out has no greater share than what is taken. */
static void test_definition(void)
{
    struct problem p;
    problem_make(&p, &choices[0]);
    choose(ref, &p, 0, LANES);
    for (int32_t l = 0; l < LANES; l++) {
        double least = INFINITY, most = 0;
        for (int32_t i = 0; i < p.c->landmarks; i++) {
            int taken = 0;
            for (int32_t j = 0; j < p.c->chunks; j++)
                taken |= p.out[(l * p.c->chunks + j) * p.c->chunk_slots] ==
                         (2 * i + l) * p.c->chunk_slots;
            double share = share_of(&p, l, i);
            if (taken) least = fmin(least, share);
            else most = fmax(most, share);
        }
        SF_CHECK(least >= most && least < INFINITY);
    }
    problem_free(&p);
}

static void test_alone(void)
{
    for (int c = 0; c < CHOICES; c++) {
        struct problem p;
        problem_make(&p, &choices[c]);
        size_t bytes = (size_t)(LANES * p.c->chunks * p.c->chunk_slots) * 4;
        int32_t *whole = malloc(bytes + 1);
        for (int i = 0; i < count; i++) {
            struct sf_device *device = variants[i].device;
            choose(device, &p, 0, LANES);
            memcpy(whole, p.out, bytes);
            memset(p.out, 0, bytes);
            for (int32_t l = LANES - 1; l > 0; l--) choose(device, &p, l, 1);
            size_t one = bytes / LANES;
            compare_bits(variants[i].text, p.c->text, (char *)p.out + one, (char *)whole + one,
                         bytes - one);
        }
        free(whole);
        problem_free(&p);
    }
}

/* ---- picks of ordinary pages ---------------------------------------------------------------- */
static const struct raw {
    const char *text;
    enum sf_dtype dtype;
    int32_t dim, slots, step;
} raws[] = {
    { "f32, every third", SF_F32, 16, 90, 3 }, { "bf16, every second", SF_BF16, 64, 1500, 2 },
    { "f16, pairs", SF_F16, 40, 700, 5 } };

static void attend(struct sf_device *device, const struct sf_attend_job *given,
                   const struct sf_lane_job *lane, float *out, float *lse)
{
    struct sf_attend_job job = *given;
    job.lane = lane;
    job.out = out;
    job.lse = lse;
    device->k->attend(device, &job);
}

static void one_raw(const struct raw *r)
{
    enum { OWN = 5 };
    struct sf_layout layout = { r->dtype, PAGE, r->dim, r->dim };
    size_t page_bytes = (sf_layout_page_bytes(&layout) + 63) / 64 * 64, dim = (size_t)r->dim;
    int32_t pages = (r->slots + PAGE - 1) / PAGE, n = 0, holes = 0, *page, *pick, *hole, *pos;
    unsigned char *pool = aligned_alloc(64, (size_t)(2 * pages + 1) * page_bytes);
    float *k = malloc((size_t)r->slots * dim * 4), *v = malloc((size_t)r->slots * dim * 4);
    float q[2 * DIM_MAX], is[2 * DIM_MAX], was[2 * DIM_MAX], lse[2], lse_was[2];
    page = malloc((size_t)(2 * pages + 1) * 4), pick = malloc((size_t)r->slots * 4);
    hole = malloc((size_t)r->slots * 4), pos = malloc((size_t)r->slots * 4);
    random_fill(k, (size_t)r->slots * dim, 1, 1), random_fill(v, (size_t)r->slots * dim, 1, 2);
    queries_fill(q, 2 * DIM_MAX, 3, 3);
    for (int32_t i = 0; i <= 2 * pages; i++) {
        page[i] = i;
        ref->k->kv_clear(ref, &layout, pool + (size_t)i * page_bytes);
    }
    for (int32_t i = 0; i < r->slots; i++) {
        pos[i] = i;
        if (i % r->step < (r->step > 3 ? 2 : 1)) pick[n++] = i;
        else hole[holes++] = i;
        if (i % 11 == 10 && n > 0) pick[n++] = -1;
    }
    struct sf_append_lane at[] = { { page, 0, 0, r->slots, 0 }, { page + pages, 0, 0, r->slots, 0 },
                                   { page + 2 * pages, 0, 0, OWN, 0 } };
    struct sf_append_job append = { layout, pool, page_bytes, k, v, dim, dim, pos, NULL, at, 3 };
    ref->k->kv_append(ref, &append);
    struct sf_slot_list gone = { page + pages, hole, holes };
    ref->k->kv_drop(ref, &layout, pool, page_bytes, &gone);
    struct sf_lane_part some = { &layout, page, r->slots, NULL, pick, n };
    struct sf_lane_part left = { &layout, page + pages, r->slots, NULL, NULL, 0 };
    struct sf_lane_job lane = { .pages = page + 2 * pages, .slots = OWN, .rows = 1, .q_heads = 2,
                                .part = &some, .parts = 1 }, alike = lane;
    struct sf_attend_job job = { .layout = layout, .pool = pool, .page_bytes = page_bytes, .q = q,
                                 .q_stride = 2 * dim, .out_stride = 2 * dim, .out_head_stride = dim,
                                 .out_dtype = SF_F32, .scale = scale_exact(r->dim),
                                 .lanes = 1, .lse_stride = 2 };
    alike.part = &left;
    attend(ref, &job, &alike, was, lse_was);
    attend(ref, &job, &lane, is, lse);
    compare("ref", r->text, is, was, 1, 2 * dim, 1e-7);
    for (int i = 0; i < count; i++) {
        attend(variants[i].device, &job, &lane, is, lse);
        double weights = r->dtype == SF_BF16 ? weights_rounding(variants[i].device) : 0;
        compare(variants[i].text, r->text, is, was, 1, 2 * dim, 1e-5 + weights);
        compare(variants[i].text, r->text, lse, lse_was, 1, 2, 1e-5);
    }
    free(pool), free(k), free(v), free(page), free(pick), free(hole), free(pos);
}

static void test_raw(void)
{
    for (size_t i = 0; i < sizeof raws / sizeof *raws; i++) one_raw(&raws[i]);
}

static const struct sf_test tests[] = {
    { "choice", test_choice }, { "definition", test_definition }, { "alone", test_alone },
    { "ordinary pages", test_raw }, { NULL, NULL }
};

int main(int argc, char **argv)
{
    count = variants_open(variants, &ref);
    int failed = sf_test_main("kernels_picks", tests, argc, argv);
    variants_close(variants, count, ref);
    return failed;
}
