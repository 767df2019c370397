/* tests/kernels/rows.c: what is computed row by row equals ref within a bound on rounding, for
 * sizes around the vector widths, and a row's bits do not depend on how many rows are computed or
 * by how many threads. */
#include <math.h>
#include <stdlib.h>
#include "base/dtype.h"
#include "tests/check.h"
#include "tests/kernels/variants.h"

#define EPS 1.2e-7                      /* of f32, between neighbours */

enum { ROWS = 37, DIM_MAX = 1203, ELEMENTS = ROWS * DIM_MAX };
static const int32_t dims[] = { 1, 3, 4, 15, 16, 17, 31, 63, 64, 65, 576, 1203 };
static const enum sf_dtype dtypes[] = { SF_F32, SF_F16, SF_BF16 };
static const double dtype_eps[] = { 0, 1.0 / 2048, 1.0 / 256 };    /* half a step, relative */

static struct variant variants[VARIANTS_MAX];
static struct sf_device *ref;
static int count;
static float a[ELEMENTS], b[ELEMENTS], actual[ELEMENTS], expected[ELEMENTS], alone[ELEMENTS];
static unsigned char raw[ELEMENTS * 4];

/* Runs one entry on a device: rows of `dim`, the output widened to f32. */
typedef void runner(struct sf_device *, int32_t rows, int32_t dim, enum sf_dtype, float *out);

static void run_rmsnorm(struct sf_device *device, int32_t rows, int32_t dim, enum sf_dtype dtype,
                        float *out)
{
    device->k->rmsnorm(device, rows, dim, a, (size_t)dim, b, 1e-5f, raw, (size_t)dim, dtype);
    sf_to_f32(dtype, raw, out, (size_t)rows * (size_t)dim);
}

static void run_swiglu(struct sf_device *device, int32_t rows, int32_t dim, enum sf_dtype dtype,
                       float *out)
{
    device->k->swiglu(device, rows, dim, a, (size_t)dim, b, (size_t)dim, raw, (size_t)dim, dtype);
    sf_to_f32(dtype, raw, out, (size_t)rows * (size_t)dim);
}

static void run_add_bias(struct sf_device *device, int32_t rows, int32_t dim, enum sf_dtype dtype,
                         float *out)
{
    (void)dtype;
    memcpy(out, a, (size_t)rows * (size_t)dim * sizeof *out);
    device->k->add_bias(device, rows, dim, b, out, (size_t)dim);
}

/* All sizes, types and variants; bound: per element, relative to the greatest expected value. */
static void check_rows(const char *what, runner *run, double bound)
{
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
        for (int t = 0; t < 3; t++) {
            size_t n = ROWS * (size_t)dims[d];
            double greatest = 0;
            run(ref, ROWS, dims[d], dtypes[t], expected);
            for (size_t i = 0; i < n; i++)
                if (isfinite(expected[i])) greatest = fmax(greatest, fabs((double)expected[i]));
            for (int i = 0; i < count; i++) {
                run(variants[i].device, ROWS, dims[d], dtypes[t], actual);
                /* A value next to the middle of two 16-bit numbers may round either way. */
                compare(variants[i].text, what, actual, expected, ROWS, (size_t)dims[d],
                        greatest * (bound + 2 * dtype_eps[t]) + 1e-37);
                run(variants[i].device, 1, dims[d], dtypes[t], alone);
                compare_bits(variants[i].text, what, alone, actual,
                             (size_t)dims[d] * sizeof *alone);
            }
        }
}

static void test_rmsnorm(void)
{
    random_fill(a, ELEMENTS, 3, 1);
    random_fill(b, DIM_MAX, 1, 2);
    /* The sum of squares has only positive terms: relative error of a few EPS, halved by the root;
     * then two products. */
    check_rows("rmsnorm", run_rmsnorm, 8 * EPS);
    random_fill(a, ELEMENTS, 1e-41f, 3);
    check_rows("rmsnorm of denormals", run_rmsnorm, 8 * EPS);
    memset(a, 0, sizeof a);
    check_rows("rmsnorm of zeros", run_rmsnorm, 0);
}

static void test_swiglu(void)
{
    random_fill(a, ELEMENTS, 8, 4);
    random_fill(b, ELEMENTS, 1, 5);
    check_rows("swiglu", run_swiglu, 8 * EPS);      /* exp 2e-7, division, product */
    random_fill(a, ELEMENTS, 300, 6);               /* e^300 is beyond f32 */
    check_rows("swiglu, large gates", run_swiglu, 8 * EPS);
}

static void test_add_bias(void)
{
    random_fill(a, ELEMENTS, 5, 7);
    random_fill(b, DIM_MAX, 5, 8);
    check_rows("add_bias", run_add_bias, 0);        /* one addition, rounded alike */
}

static void test_swiglu_extremes(void)
{
    static const float gate[] = { -INFINITY, -1e30f, -0.0f, 0, 1e30f, 88, -88, 100, -100 };
    enum { N = sizeof gate / sizeof *gate };
    float up[N], y[N];
    for (int i = 0; i < N; i++) up[i] = 1;
    for (int v = 0; v < count; v++) {
        variants[v].device->k->swiglu(variants[v].device, 1, N, gate, N, up, N, y, N, SF_F32);
        SF_CHECK_NEAR(y[1], 0, 1e-7);
        SF_CHECK_NEAR(y[3], 0, 0);
        SF_CHECK_NEAR(y[4], 1e30, 1e24);
        SF_CHECK_NEAR(y[5], 88, 88 * EPS);
        SF_CHECK_NEAR(y[6], 0, 1e-35);
        SF_CHECK_NEAR(y[7], 100, 100 * EPS);
        SF_CHECK_NEAR(y[8], 0, 1e-35);
    }
}

/* Angles up to position 100,000: f32 sines of the same f32 angle, within an ulp or two; heads with
 * a part that does not turn stay as they are there. */
static void test_rope(void)
{
    enum { HALF_MAX = 64, HEADS = 3 };
    static float inv_freq[HALF_MAX], table[ROWS * 2 * HALF_MAX], table_ref[ROWS * 2 * HALF_MAX];
    static const struct { int32_t head_dim, rope_dim; } cases[] = {
        { 2, 2 }, { 16, 16 }, { 40, 40 }, { 64, 64 }, { 128, 128 }, { 24, 10 }, { 96, 64 }
    };
    int32_t pos[ROWS];
    for (int32_t r = 0; r < ROWS; r++) pos[r] = r < 4 ? r : random_below(100000, 9, (uint64_t)r);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        int32_t half = cases[c].rope_dim / 2, stride = HEADS * cases[c].head_dim + 5;
        size_t n = ROWS * (size_t)stride;
        for (int32_t i = 0; i < half; i++) inv_freq[i] = powf(10000, -(float)i / (float)half);
        ref->k->rope_table(ref, ROWS, pos, inv_freq, half, table_ref);
        random_fill(a, n, 2, 10);
        memcpy(expected, a, n * sizeof *a);
        ref->k->rope(ref, ROWS, HEADS, cases[c].head_dim, cases[c].rope_dim, table_ref, expected,
                     (size_t)stride);
        for (int i = 0; i < count; i++) {
            struct sf_device *device = variants[i].device;
            device->k->rope_table(device, ROWS, pos, inv_freq, half, table);
            compare(variants[i].text, "rope_table", table, table_ref, ROWS, 2 * (size_t)half, EPS);
            memcpy(actual, a, n * sizeof *a);
            device->k->rope(device, ROWS, HEADS, cases[c].head_dim, cases[c].rope_dim, table,
                            actual, (size_t)stride);
            compare(variants[i].text, "rope", actual, expected, ROWS, (size_t)stride, 8 * EPS);
            memcpy(alone, a, n * sizeof *a);
            device->k->rope(device, 1, HEADS, cases[c].head_dim, cases[c].rope_dim, table, alone,
                            (size_t)stride);
            compare_bits(variants[i].text, "rope of one row", alone, actual,
                         (size_t)stride * sizeof *a);
        }
    }
}

/* The same additions in the same order, so the same bits: none, one and many leaves, onto x and in
 * its place, and in place of the first leaf. */
static void test_add_leaves(void)
{
    static const int32_t counts[] = { 0, 1, 2, 5, 9 };
    enum { COLS = 129, GAP = 3, STRIDE = COLS + GAP, LEAF = ROWS * STRIDE };
    random_fill(a, 9 * LEAF, 2, 16);
    a[0] = a[LEAF] = -0.0f;
    for (size_t n = 0; n < sizeof counts / sizeof *counts; n++)
        for (int onto = 0; onto < 2; onto++) {
            random_fill(b, LEAF, 2, 17);
            memcpy(expected, b, LEAF * sizeof *b);
            ref->k->add_leaves(ref, ROWS, COLS, a, counts[n], LEAF, STRIDE, onto, expected,
                               STRIDE);
            for (int i = 0; i < count; i++) {
                struct sf_device *device = variants[i].device;
                memcpy(actual, b, LEAF * sizeof *b);
                device->k->add_leaves(device, ROWS, COLS, a, counts[n], LEAF, STRIDE, onto, actual,
                                      STRIDE);
                compare_bits(variants[i].text, "add_leaves", actual, expected,
                             LEAF * sizeof *actual);
                memcpy(actual, a, 9 * LEAF * sizeof *a);
                device->k->add_leaves(device, ROWS, COLS, actual, counts[n], LEAF, STRIDE, 0,
                                      actual, STRIDE);
                for (int32_t r = 0; r < ROWS && !onto; r++)
                    compare_bits(variants[i].text, "add_leaves in place", actual + r * STRIDE,
                                 expected + r * STRIDE, COLS * sizeof *actual);
            }
        }
}

/* Rows in order, chosen ones and one of them twice; what lies between the rows stays. */
static void test_copy_rows(void)
{
    enum { COLS = 65, STRIDE = COLS + 4, OUT = COLS + 2 };
    int32_t from[ROWS];
    random_fill(a, ROWS * STRIDE, 3, 18);
    for (int32_t r = 0; r < ROWS; r++) from[r] = random_below(ROWS, 19, (uint64_t)r);
    for (int chosen = 0; chosen < 2; chosen++) {
        memset(expected, 0x55, ROWS * OUT * sizeof *expected);
        ref->k->copy_rows(ref, ROWS, COLS, chosen ? from : NULL, a, STRIDE, expected, OUT);
        for (int32_t r = 0; r < ROWS; r++)
            SF_CHECK(expected[r * OUT + 7] == a[(chosen ? from[r] : r) * STRIDE + 7]);
        for (int i = 0; i < count; i++) {
            struct sf_device *device = variants[i].device;
            memset(actual, 0x55, ROWS * OUT * sizeof *actual);
            device->k->copy_rows(device, ROWS, COLS, chosen ? from : NULL, a, STRIDE, actual, OUT);
            compare_bits(variants[i].text, "copy_rows", actual, expected,
                         ROWS * OUT * sizeof *actual);
            device->k->copy_rows(device, 0, COLS, NULL, a, STRIDE, actual, OUT);
        }
    }
}

/* Where the host cannot touch the device's memory: rows that a list names go there, in any order,
 * and all others stay; so does what lies between the rows.  A second list is longer than a half of
 * the ring.  What is fetched is what is there. */
static void test_carried(void)
{
    enum { PUT = 5, COLS = 24, STRIDE = COLS + 3, LONG = 100000, WIDE = 12 };
    static const int32_t at[PUT] = { 7, 2, 9, 0, 4 };
    static float there[LONG * WIDE], expected_there[LONG * WIDE];
    static int32_t all[LONG];
    for (int i = 0; i < count; i++) {
        struct sf_device *device = variants[i].device;
        if (!device->k->put_rows) continue;
        random_fill(a, 10 * STRIDE, 2, 21);
        random_fill(b, 10 * STRIDE, 2, 22);
        memcpy(expected, b, 10 * STRIDE * sizeof *b);
        for (int32_t r = 0; r < PUT; r++)
            memcpy(expected + at[r] * STRIDE, a + at[r] * STRIDE, COLS * sizeof *a);
        device->k->put_rows(device, PUT, COLS, at, a, STRIDE, b, STRIDE);
        compare_bits(variants[i].text, "put_rows", b, expected, 10 * STRIDE * sizeof *b);
        device->k->put_rows(device, 0, COLS, at, a, STRIDE, b, STRIDE);
        for (int32_t r = 0; r < LONG; r++) all[r] = LONG - 1 - r;
        for (int32_t e = 0; e < LONG * WIDE; e++) expected_there[e] = (float)e;
        memset(there, 0, sizeof there);
        device->k->put_rows(device, LONG, WIDE, all, expected_there, WIDE, there, WIDE);
        compare_bits(variants[i].text, "put_rows, long", there, expected_there, sizeof there);
        memset(there, 0, sizeof there);
        device->k->fetch(device, there, expected_there, sizeof there);
        compare_bits(variants[i].text, "fetch", there, expected_there, sizeof there);
    }
}

/* Ties, NaN (whose row has no greatest), infinities, and the greatest value at every place of a
 * row. */
static void test_argmax(void)
{
    float value[ROWS], value_ref[ROWS];
    int32_t index[ROWS], index_ref[ROWS];
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
        int32_t dim = dims[d];
        random_fill(a, ROWS * (size_t)dim, 1, 11);
        for (int32_t r = 0; r < ROWS; r++) {
            float *row = a + (size_t)r * (size_t)dim;
            row[random_below(dim, 12, (uint64_t)r)] = 2;
            row[random_below(dim, 13, (uint64_t)r)] = 2;
            if (r % 4 == 1) row[random_below(dim, 14, (uint64_t)r)] = NAN;
            if (r % 8 == 2) row[random_below(dim, 15, (uint64_t)r)] = INFINITY;
        }
        for (int32_t c = 0; c < dim; c++) a[c] = -INFINITY;
        for (int32_t c = 0; c < dim; c++) a[dim + c] = NAN;
        ref->k->argmax(ref, ROWS, dim, a, (size_t)dim, value_ref, index_ref);
        for (int32_t r = 1; r < ROWS; r += 4) SF_CHECK(isnan(value_ref[r]) && index_ref[r] == 0);
        for (int i = 0; i < count; i++) {
            struct sf_device *device = variants[i].device;
            device->k->argmax(device, ROWS, dim, a, (size_t)dim, value, index);
            compare_bits(variants[i].text, "argmax value", value, value_ref, sizeof value);
            compare_bits(variants[i].text, "argmax index", index, index_ref, sizeof index);
            device->k->argmax(device, 0, dim, a, (size_t)dim, NULL, NULL);
        }
    }
}

static const struct sf_test tests[] = {
    { "rmsnorm", test_rmsnorm }, { "swiglu", test_swiglu },
    { "swiglu extremes", test_swiglu_extremes }, { "add_bias", test_add_bias },
    { "rope", test_rope }, { "add_leaves", test_add_leaves }, { "copy_rows", test_copy_rows },
    { "carried", test_carried }, { "argmax", test_argmax }, { NULL, NULL }
};

int main(int argc, char **argv)
{
    count = variants_open(variants, &ref);
    int failed = sf_test_main("kernels_rows", tests, argc, argv);
    variants_close(variants, count, ref);
    return failed;
}
