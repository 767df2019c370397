/* tests/kernels/factor.c: low-rank factors.  ref against the definition (Eckart and Young: the
 * error is what is discarded) and a worked example; the CPU's ways against ref: exact to rounding,
 * Gram likewise where the spectrum allows, randomised within five percent of the best; the same
 * bits whatever the threads; the steps that ranks share; zeros, short ranks, ranks above the
 * matrix, and what is not finite. */
#include <math.h>
#include <stdlib.h>
#include "tests/check.h"
#include "tests/kernels/variants.h"

enum { ROWS_MAX = 700, COLS_MAX = 320, RANK_MAX = 320, PAD = 3 };

static struct variant variants[VARIANTS_MAX];
static struct sf_device *ref;
static int count;

static float x[ROWS_MAX * (COLS_MAX + PAD)];
static float a[2][ROWS_MAX * RANK_MAX], b[2][RANK_MAX * COLS_MAX];

static const char *const ways[] = { "exact", "random", "gram" };

static struct sf_factor_job job_of(int32_t rows, int32_t cols, int32_t rank, enum sf_factor_how how)
{
    return (struct sf_factor_job){
        .rows = rows, .cols = cols, .rank = rank, .how = how, .power_iterations = 2, .seed = 1234,
        .x = x, .x_stride = (size_t)cols + PAD, .a = a[0], .b = b[0], .a_stride = (size_t)rank,
        .b_stride = (size_t)cols
    };
}

static sf_status run(struct sf_device *device, struct sf_factor_job job)
{
    size_t bytes = device->k->factor_bytes(&job);
    unsigned char *block = aligned_alloc(64, (bytes + 127) / 64 * 64);
    SF_CHECK(block != NULL);
    if (block == NULL) return SF_NO_MEMORY;
    memset(block, 0x5a, (bytes + 127) / 64 * 64);
    job.scratch = block;
    sf_status status = device->k->factor(device, &job);
    for (size_t i = bytes; i < (bytes + 127) / 64 * 64; i++)
        if (block[i] != 0x5a) {
            sf_test_fail(__FILE__, __LINE__, "scratch beyond %zu bytes is written to", bytes);
            break;
        }
    free(block);
    return status;
}

/* Frobenius norm of x - a b, or of x for rank 0. */
static double error_of(const struct sf_factor_job *job, int32_t rank)
{
    double sum = 0;
    for (int32_t i = 0; i < job->rows; i++)
        for (int32_t c = 0; c < job->cols; c++) {
            double e = (double)job->x[(size_t)i * job->x_stride + (size_t)c];
            for (int32_t r = 0; r < rank; r++)
                e -= (double)job->a[(size_t)i * job->a_stride + (size_t)r]
                     * (double)job->b[(size_t)r * job->b_stride + (size_t)c];
            sum += e * e;
        }
    return sqrt(sum);
}

/* Correlated columns: a falling spectrum, as caches have; `terms` directions and some noise. */
static void x_fill(int32_t rows, int32_t cols, int32_t terms, float noise)
{
    static float left[ROWS_MAX], right[COLS_MAX];       /* of one term */
    memset(x, 0, sizeof x);
    for (int32_t t = 0; t < terms; t++) {
        random_fill(left, (size_t)rows, 1, 100 + (uint64_t)t);
        random_fill(right, (size_t)cols, 1, 500 + (uint64_t)t);
        for (int32_t i = 0; i < rows; i++)
            for (int32_t c = 0; c < cols; c++)
                x[i * (cols + PAD) + c] += left[i] * right[c] / (float)(t + 1);
    }
    for (int32_t i = 0; i < rows; i++)
        for (int32_t c = 0; c < cols; c++)
            x[i * (cols + PAD) + c] +=
                noise * (float)(random_below(2001, 8, (uint64_t)(i * cols + c)) - 1000) / 1000;
}

static const struct { int32_t rows, cols, terms; float noise; } shapes[] = {
    { 1, 1, 1, 0 },    { 1, 9, 1, 0 },     { 9, 1, 1, 0 },      { 24, 40, 30, 0.01f },
    { 40, 24, 30, 0.01f }, { 33, 33, 5, 0 }, { 300, 64, 64, 0.02f }, { 700, 192, 60, 0.01f },
    { 130, 320, 60, 0.01f }
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static int32_t narrow_of(int s)
{
    return shapes[s].rows < shapes[s].cols ? shapes[s].rows : shapes[s].cols;
}

/* ---- ref is the definition ------------------------------------------------------------------ */
static void worked_example(void)
{
    static const float joint[4][4] = { { 2, 0, 0, 2 }, { 0, 1, 1, 0 }, { 2, 0, 0, 2 },
                                       { 0, 1, 1, 0 } };
    static const float one[4][4] = { { 2, 0, 0, 2 }, { 0 }, { 2, 0, 0, 2 }, { 0 } };
    for (int v = -1; v < count; v++) {
        struct sf_device *device = v < 0 ? ref : variants[v].device;
        const char *name = v < 0 ? "ref" : variants[v].text;
        struct sf_factor_job job = job_of(4, 4, 1, SF_FACTOR_EXACT);
        job.x = joint[0], job.x_stride = 4;
        SF_MUST(run(device, job));
        SF_CHECK_NEAR(error_of(&job, 1), 2, 1e-5);      /* sigma^2 is 16, 4, 0, 0 */
        float product[16];
        for (int i = 0; i < 16; i++) product[i] = a[0][i / 4] * b[0][i % 4];
        compare(name, "rank 1", product, one[0], 4, 4, 1e-5);
        SF_CHECK_NEAR(a[0][0], 0.70710678 * 2, 1e-5);   /* u sqrt(sigma), sigma 4 */
        SF_CHECK_NEAR(b[0][0], 0.70710678 * 2, 1e-5);
        job = job_of(4, 4, 2, SF_FACTOR_EXACT);
        job.x = joint[0], job.x_stride = 4;
        SF_MUST(run(device, job));
        SF_CHECK_NEAR(error_of(&job, 2), 0, 1e-5);
    }
}

/* The error of rank r squared is the sum of the squares of what is left out, for every r. */
static void eckart_young(void)
{
    for (int s = 0; s < SHAPES; s++) {
        int32_t rows = shapes[s].rows, cols = shapes[s].cols, narrow = narrow_of(s);
        if (narrow > 40) continue;
        x_fill(rows, cols, shapes[s].terms, shapes[s].noise);
        struct sf_factor_job job = job_of(rows, cols, narrow, SF_FACTOR_EXACT);
        SF_MUST(run(ref, job));
        double norm = error_of(&job, 0), rest = norm * norm, last = norm;
        SF_CHECK_NEAR(error_of(&job, narrow), 0, 1e-5 * norm);
        for (int32_t r = 0; r < narrow; r++) {
            double sigma = 0;                           /* |a_r| = |b_r| = sqrt(sigma) */
            for (int32_t c = 0; c < cols; c++)
                sigma += (double)b[0][r * cols + c] * (double)b[0][r * cols + c];
            rest -= sigma * sigma;
            double error = error_of(&job, r + 1);
            SF_CHECK_NEAR(error, sqrt(fmax(rest, 0)), 2e-3 * norm);
            SF_CHECK(error <= last + 1e-6 * norm);
            last = error;
        }
    }
}

/* ---- every way against ref ------------------------------------------------------------------ */
static void against_ref(void)
{
    for (int s = 0; s < SHAPES; s++) {
        int32_t rows = shapes[s].rows, cols = shapes[s].cols, narrow = narrow_of(s);
        int32_t ranks[] = { 1, (narrow + 3) / 4, (narrow + 1) / 2, narrow };
        x_fill(rows, cols, shapes[s].terms, shapes[s].noise);
        struct sf_factor_job whole = job_of(rows, cols, narrow, SF_FACTOR_EXACT);
        whole.a = a[1], whole.b = b[1];
        SF_MUST(run(ref, whole));
        double norm = error_of(&whole, 0);
        for (int r = 0; r < 4; r++) {
            double best = error_of(&whole, ranks[r]);
            for (int how = 0; how < 3; how++)
                for (int v = 0; v < count; v++) {
                    struct sf_factor_job job = job_of(rows, cols, ranks[r], how);
                    job.oversample = how == SF_FACTOR_RANDOM && r % 2 ? 8 : 0;
                    if (variants[v].device->threads > 1) continue;
                    SF_CHECK_OK(run(variants[v].device, job));
                    double error = error_of(&job, ranks[r]);
                    double bound = (how == SF_FACTOR_RANDOM ? 1.05 : 1.0) * best +
                                   (how == SF_FACTOR_GRAM ? 1e-3 : 5e-6) * norm;
                    if (!(error <= bound))
                        sf_test_fail(__FILE__, __LINE__, "%s, %s, %d x %d, rank %d: error %.6g, "
                                     "bound %.6g, best %.6g", variants[v].text, ways[how], rows,
                                     cols, ranks[r], error, bound, best);
                }
        }
    }
}

/* One thread or three, once or again: the same bits. */
static void same_bits(void)
{
    x_fill(700, 192, 60, 0.01f);
    for (int how = 0; how < 3; how++)
        for (int v = 0; v < count; v++) {
            struct sf_factor_job job = job_of(700, 192, 48, how);
            if (variants[v].device->threads == 1) job.a = a[1], job.b = b[1];
            job.oversample = how == SF_FACTOR_RANDOM ? 4 : 0;
            SF_MUST(run(variants[v].device, job));
            if (variants[v].device->threads == 1) continue;
            compare_bits(variants[v].text, ways[how], a[0], a[1], 700 * 48 * sizeof(float));
            compare_bits(variants[v].text, ways[how], b[0], b[1], 48 * 192 * sizeof(float));
        }
}

/* ---- edges ---------------------------------------------------------------------------------- */
/* No direction to be found, or fewer than asked for: nothing is divided by zero. */
static void poor_ranks(void)
{
    for (int v = -1; v < count; v++)
        for (int how = 0; how < 3; how++)
            for (int terms = 0; terms < 3; terms++)
                for (int32_t rank = 1; rank <= 60; rank += 59) {
                    struct sf_device *device = v < 0 ? ref : variants[v].device;
                    x_fill(50, 30, terms, 0);
                    struct sf_factor_job job = job_of(50, 30, rank, how);
                    job.oversample = how == SF_FACTOR_RANDOM ? 3 * terms : 0;
                    SF_CHECK_OK(run(device, job));
                    double norm = error_of(&job, 0), error = error_of(&job, rank);
                    if (!(error <= (rank >= terms ? 1e-5 : 1) * norm))
                        sf_test_fail(__FILE__, __LINE__, "%s, %s, %d terms, rank %d: error %.6g of"
                                     " %.6g", v < 0 ? "ref" : variants[v].text, ways[how], terms,
                                     rank, error, norm);
                }
}

/* Layers with the same keys, one row more than they have columns: of one direction nothing at all
 * is left. */
static void columns_twice(void)
{
    for (int v = -1; v < count; v++)
        for (int how = 0; how < 3; how++) {
            struct sf_device *device = v < 0 ? ref : variants[v].device;
            struct sf_factor_job job = job_of(13, 24, 12, how);
            for (int32_t r = 0; r < 13; r++)
                for (int32_t c = 0; c < 24; c++)
                    x[(size_t)r * job.x_stride + (size_t)c] =
                        (float)random_below(4096, 9, (uint64_t)(r * 12 + c % 12)) / 4096 - 0.5f;
            SF_CHECK_OK(run(device, job));
            SF_CHECK(error_of(&job, 12) <= 1e-3 * error_of(&job, 0));
        }
}

static void not_finite(void)
{
    static const float bad[] = { INFINITY, -INFINITY, NAN };
    for (int v = -1; v < count; v++)
        for (int how = 0; how < 3; how++)
            for (int i = 0; i < 3; i++) {
                x_fill(20, 30, 5, 0);
                x[7 * (30 + PAD) + 29] = bad[i];
                SF_CHECK_FAILS(run(v < 0 ? ref : variants[v].device, job_of(20, 30, 4, how)),
                               SF_INVALID);
            }
}

/* Values near the ends of f16: neither squares nor their sums leave f32. */
static void large_and_small(void)
{
    for (int v = 0; v < count; v++)
        for (int how = 0; how < 3; how++)
            for (int i = 0; i < 2; i++) {
                x_fill(300, 64, 20, 0);
                for (size_t k = 0; k < sizeof x / sizeof *x; k++) x[k] *= i ? 6e4f : 1e-6f;
                struct sf_factor_job job = job_of(300, 64, 30, how);
                SF_CHECK_OK(run(variants[v].device, job));
                double norm = error_of(&job, 0);
                SF_CHECK(error_of(&job, 30) <= 1e-3 * norm);
            }
}

/* ---- steps ---------------------------------------------------------------------------------- */
static float out[2][ROWS_MAX * (COLS_MAX + PAD)];

/* x y and x^T x, also of no rows, with strides; what lies between rows is left alone. */
static void products(void)
{
    for (int s = 0; s < SHAPES; s++)
        for (int v = 0; v < count; v++)
            for (int turned = 0; turned < 2 && variants[v].device->k->product; turned++)
                for (int none = 0; none < 2; none++) {
                    int32_t inner = none ? 0 : turned ? shapes[s].rows : shapes[s].cols;
                    int32_t rows = turned ? shapes[s].cols : shapes[s].rows;
                    int32_t cols = turned ? shapes[s].cols : 7;
                    size_t stride = (size_t)shapes[s].cols + PAD, to = (size_t)cols + PAD;
                    const float *y = turned ? x : b[0];
                    x_fill(shapes[s].rows, shapes[s].cols, shapes[s].terms, shapes[s].noise);
                    random_fill(b[0], (size_t)COLS_MAX * 7, 1, 3);
                    for (int which = 0; which < 2; which++) {
                        struct sf_device *device = which ? variants[v].device : ref;
                        memset(out[which], 0x5a, sizeof out[which]);
                        device->k->product(device, turned, rows, cols, inner, x, stride, y,
                                           turned ? stride : 7, out[which], to);
                    }
                    for (int32_t r = 0; r < rows; r++) {
                        size_t at = (size_t)r * to;
                        SF_CHECK(memcmp(out[1] + at + cols, out[0] + at + cols,
                                        PAD * sizeof(float)) == 0);
                        for (int32_t c = 0; c < cols; c++) {
                            double off = fabs((double)out[1][at + (size_t)c] -
                                              (double)out[0][at + (size_t)c]);
                            SF_CHECK(off <= 1e-6 * (1 + inner));
                            if (none) SF_CHECK(out[1][at + (size_t)c] == 0);
                        }
                    }
                }
}

/* gram + shift 1 = r^T r, so with s = r^-1 the product s^T (gram + shift 1) s is 1. */
static void roots(void)
{
    enum { N = 24 };
    static float gram[N * N], s[N * N];
    for (int v = -1; v < count; v++)
        for (int shifted = 0; shifted < 2; shifted++) {
            struct sf_device *device = v < 0 ? ref : variants[v].device;
            if (!device->k->cholesky) continue;
            x_fill(40, N, 30, 0.01f);
            ref->k->product(ref, 1, N, N, 40, x, N + PAD, x, N + PAD, gram, N);
            memcpy(s, gram, sizeof s);
            SF_CHECK(device->k->cholesky(device, N, shifted ? 0.5f : 0, s));
            for (int i = 0; i < N; i++) gram[i * (N + 1)] += shifted ? 0.5f : 0;
            ref->k->product(ref, 1, N, N, N, s, N, gram, N, out[0], N);
            ref->k->product(ref, 0, N, N, N, out[0], N, s, N, out[1], N);
            for (int i = 0; i < N * N; i++) {
                SF_CHECK_NEAR(out[1][i], i / N == i % N, 2e-2);
                if (i / N > i % N) SF_CHECK(s[i] == 0);
            }
            memset(s, 0, sizeof s);
            SF_CHECK(!device->k->cholesky(device, N, 0, s));
            s[N + 1] = -1;
            SF_CHECK(!device->k->cholesky(device, N, 0.25f, s));
        }
}

static const struct sf_test tests[] = {
    { "the worked example", worked_example },
    { "the error is what is left out", eckart_young },
    { "every way against ref", against_ref },
    { "the same bits whatever the threads", same_bits },
    { "fewer directions than asked for", poor_ranks }, { "columns that come twice", columns_twice },
    { "not finite", not_finite },
    { "products", products },
    { "roots of Gram matrices", roots },
    { "large and small values", large_and_small },
    { NULL, NULL }
};

int main(int argc, char **argv)
{
    count = variants_open(variants, &ref);
    int failed = sf_test_main("kernels_factor", tests, argc, argv);
    variants_close(variants, count, ref);
    return failed;
}
