/* tests/kernels/pairs.c: products in bf16.  Every backend and instruction set is near ref for cut
 * panels, several slices, odd k, wide strides and rows that are not finite; nothing is read or
 * written behind the last row or column.  Where pairs are multiplied (kernels/cpu/pairs.h) a row
 * has the same bits with any number of rows, of threads and neighbours, in fixed matrices and
 * others, and the sum over slices is that of the leaves.  A matrix takes the bytes that mat_bytes
 * says.  Then what products cost beside the peak of the instruction, at level long. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/dtype.h"
#include "kernels/cpu/pairs.h"
#include "tests/check.h"
#include "tests/kernels/variants.h"

#define EPS 1.2e-7
enum { ROWS_MAX = 300, DISTINCT = 21 };

static const struct {
    int32_t cols, panel_cols, k_slice, slices;
} shapes[] = {
    { 64, 64, 64, 1 },    { 576, 128, 192, 3 },  { 100, 64, 128, 2 },  { 1, 16, 16, 1 },
    { 200, 1024, 40, 1 }, { 130, 48, 33, 2 },    { 2304, 256, 64, 1 }, { 72, 24, 97, 1 },
    { 96, 128, 4501, 1 }, { 90, 90, 2102, 5 },   { 113, 113, 1, 1 },   { 176, 64, 2, 3 }
};
enum { SHAPES = sizeof shapes / sizeof *shapes };
static const int32_t row_counts[] = { 0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 48, 97, 300 };

static struct variant variants[VARIANTS_MAX];
static struct sf_device *ref;
static int count;

struct problem {
    struct sf_mat_shape shape;
    size_t k, x_stride, y_stride;
    float *w;                           /* [cols][k] */
    uint16_t *x;                        /* [ROWS_MAX][x_stride], rows repeat after DISTINCT */
    float *expected;                    /* [DISTINCT][cols] by ref */
};

static void mat_make(struct sf_device *device, const struct problem *p, int fixed,
                     struct sf_mat **mat_out)
{
    struct sf_mat_shape s = p->shape;
    float *tile = malloc((size_t)s.panel_cols * (size_t)s.k_slice * sizeof *tile);
    s.fixed = (uint8_t)fixed;
    SF_MUST(device->k->mat_create(device, &s, mat_out));
    for (int32_t panel = 0; panel * s.panel_cols < s.cols; panel++)
        for (int32_t slice = 0; slice < s.slices; slice++) {
            for (int32_t c = 0; c < s.panel_cols; c++)
                for (int32_t i = 0; i < s.k_slice; i++) {
                    int32_t column = panel * s.panel_cols + c;
                    tile[c * s.k_slice + i] =
                        column < s.cols
                            ? p->w[(size_t)column * p->k + (size_t)(slice * s.k_slice + i)]
                            : NAN;      /* not to be read */
                }
            SF_CHECK_OK(device->k->mat_pack(device, *mat_out, panel, slice, tile));
        }
    free(tile);
}

/* Behind k a row is NaN, which must not be read; one element of rows 3 and 4 is not finite. */
static void problem_make(struct problem *p, int shape)
{
    struct sf_mat *mat;
    p->shape = (struct sf_mat_shape){ shapes[shape].cols, shapes[shape].panel_cols,
                                      shapes[shape].k_slice, shapes[shape].slices, SF_BF16, 0,
                                      ROWS_MAX, 0 };
    p->k = (size_t)p->shape.k_slice * (size_t)p->shape.slices;
    p->x_stride = p->k + 5;
    p->y_stride = (size_t)p->shape.cols + 3;
    p->w = malloc((size_t)p->shape.cols * p->k * sizeof *p->w);
    random_fill(p->w, (size_t)p->shape.cols * p->k, 1, 1);
    float *x = malloc(ROWS_MAX * p->x_stride * sizeof *x);
    random_fill(x, DISTINCT * p->x_stride, 1, 2);
    x[3 * p->x_stride + p->k / 2] = -INFINITY;
    x[4 * p->x_stride + p->k - 1] = NAN;
    for (size_t r = 0; r < DISTINCT; r++)
        for (size_t i = p->k; i < p->x_stride; i++) x[r * p->x_stride + i] = NAN;
    for (size_t r = DISTINCT; r < ROWS_MAX; r++)
        memcpy(x + r * p->x_stride, x + r % DISTINCT * p->x_stride, p->x_stride * sizeof *x);
    p->x = malloc(ROWS_MAX * p->x_stride * sizeof *p->x);
    sf_from_f32(SF_BF16, x, p->x, ROWS_MAX * p->x_stride);
    free(x);
    p->expected = malloc(DISTINCT * (size_t)p->shape.cols * sizeof *p->expected);
    mat_make(ref, p, 0, &mat);
    ref->k->matmul(ref, mat, DISTINCT, p->x, p->x_stride, p->expected, (size_t)p->shape.cols);
    ref->k->mat_destroy(ref, mat);
}

static void problem_free(struct problem *p)
{
    free(p->w);
    free(p->x);
    free(p->expected);
}

/* Elements lie in [-1, 1), as in tests/kernels/mat.c.  `standard` [DISTINCT][cols] gets the rows of
 * the first call that multiplies pairs, and all others must have its bits; NULL: other kernels. */
static void check_rows(const struct variant *v, const struct problem *p, const struct sf_mat *mat,
                       int32_t rows, float *standard, int *known)
{
    size_t cols = (size_t)p->shape.cols, elements = (size_t)(rows + 1) * p->y_stride;
    size_t x_count = rows > 0 ? (size_t)(rows - 1) * p->x_stride + p->k : 0;
    uint16_t *x = malloc(x_count * sizeof *x + 1);      /* not a byte more, for AddressSanitizer */
    float *y = malloc(elements * sizeof *y);
    char what[96];
    snprintf(what, sizeof what, "%d rows x %zu cols (panels of %d), k %d x %d", rows, cols,
             p->shape.panel_cols, p->shape.k_slice, p->shape.slices);
    memcpy(x, p->x, x_count * sizeof *x);
    for (size_t e = 0; e < elements; e++) y[e] = 12345;
    v->device->k->matmul(v->device, mat, rows, x, p->x_stride, y, p->y_stride);
    for (size_t e = 0; e < elements; e++)
        if ((e / p->y_stride >= (size_t)rows || e % p->y_stride >= cols) && y[e] != 12345)
            sf_test_fail(__FILE__, __LINE__, "%s, %s: wrote to row %zu, column %zu", v->text, what,
                         e / p->y_stride, e % p->y_stride);
    for (int32_t r = 0; r < rows; r++) {
        const float *row = y + (size_t)r * p->y_stride;
        compare(v->text, what, row, p->expected + (size_t)(r % DISTINCT) * cols, 1, cols,
                EPS * (double)p->k);
        if (!standard) continue;
        if (!*known && r < DISTINCT)
            memcpy(standard + (size_t)r * cols, row, cols * sizeof *row);
        compare_bits(v->text, what, row, standard + (size_t)(r % DISTINCT) * cols,
                     cols * sizeof *row);
    }
    if (standard && rows >= DISTINCT) *known = 1;
    free(x);
    free(y);
}

static void test_shapes(void)
{
    for (int shape = 0; shape < SHAPES; shape++) {
        struct problem p;
        problem_make(&p, shape);
        float *standard = malloc(DISTINCT * (size_t)p.shape.cols * sizeof *standard);
        int known = 0;
        for (int i = 0; i < count; i++)
            for (int fixed = 0; fixed < 2; fixed++) {
                struct sf_device *device = variants[i].device;
                struct sf_mat *mat;
                int pairs = sf_pairs_pay(device->isa);
                if (fixed && !pairs) continue;  /* those write rows up to 48: mat.c */
                mat_make(device, &p, fixed, &mat);
                for (int r = sizeof row_counts / sizeof *row_counts - 1; r >= 0; r--)
                    check_rows(&variants[i], &p, mat, row_counts[r], pairs ? standard : NULL,
                               &known);
                device->k->mat_destroy(device, mat);
            }
        free(standard);
        problem_free(&p);
    }
}

/* Each leaf is the product of its slice alone, and the sum is theirs in order. */
static void test_leaves(void)
{
    enum { ROWS = 20 };
    for (int shape = 0; shape < SHAPES; shape++) {
        struct problem p;
        struct sf_mat *mat;
        problem_make(&p, shape);
        size_t cols = (size_t)p.shape.cols, leaf = ROWS * cols, slices = (size_t)p.shape.slices;
        float *y = malloc(leaf * sizeof *y), *leaves = malloc(slices * leaf * sizeof *leaves);
        float *want = malloc(slices * leaf * sizeof *want);
        mat_make(ref, &p, 0, &mat);
        ref->k->matmul_leaves(ref, mat, ROWS, p.x, p.x_stride, want, leaf, cols);
        ref->k->mat_destroy(ref, mat);
        for (int i = 0; i < count; i++) {
            struct sf_device *device = variants[i].device;
            if (!sf_pairs_pay(device->isa)) continue;
            mat_make(device, &p, 0, &mat);
            device->k->matmul(device, mat, ROWS, p.x, p.x_stride, y, cols);
            device->k->matmul_leaves(device, mat, ROWS, p.x, p.x_stride, leaves, leaf, cols);
            compare(variants[i].text, "leaves", leaves, want, slices * ROWS, cols,
                    EPS * (double)p.shape.k_slice);
            for (size_t s = 1; s < slices; s++)
                for (size_t e = 0; e < leaf; e++) leaves[e] += leaves[s * leaf + e];
            for (size_t e = 0; e < leaf; e++)   /* the sign of a NaN says nothing */
                if (isnan(y[e]) && isnan(leaves[e])) y[e] = leaves[e];
            compare_bits(variants[i].text, "sum of leaves", y, leaves, leaf * sizeof *y);
            device->k->mat_destroy(device, mat);
        }
        free(y);
        free(leaves);
        free(want);
        problem_free(&p);
    }
}

/* Columns rounded up to 16 and k to 2, be the matrix fixed or not. */
static void test_bytes(void)
{
    struct sf_mat_shape shape = { 3001, 128, 1021, 2, SF_BF16, 1, 64, 0 };
    if (!sf_pairs_pay(variants[count - 1].device->isa)) SF_SKIP("no products of pairs here");
    SF_CHECK_INT(variants[count - 1].device->k->mat_bytes(&shape), 3008LL * 2 * 1022 * 2);
    shape.fixed = 0;
    SF_CHECK_INT(variants[count - 1].device->k->mat_bytes(&shape), 3008LL * 2 * 1022 * 2);
}

/* ---- cost ------------------------------------------------------------------------------------ */
enum { TURNS = 15, SETS_MAX = 64, COLD_BYTES = 40 << 20, COST_ROWS = 512 };

/* GFLOP/s of a core that does nothing but multiply pairs in registers; 0: it cannot. */
static double peak_gflops(const struct sf_device *device)
{
    enum { LOOPS = 200000, PER_LOOP = 12 };
    if (device->isa != SF_ISA_AVX512_BF16) return 0;
    double took[9];
    for (int turn = 0; turn < 9; turn++) {
        double begun = clock_seconds(CLOCK_THREAD_CPUTIME_ID);
#if defined(__x86_64__)
        for (int i = 0; i < LOOPS; i++)
            __asm__ volatile("vdpbf16ps %%zmm0, %%zmm1, %%zmm2\n vdpbf16ps %%zmm0, %%zmm1, %%zmm3\n"
                             "vdpbf16ps %%zmm0, %%zmm1, %%zmm4\n vdpbf16ps %%zmm0, %%zmm1, %%zmm5\n"
                             "vdpbf16ps %%zmm0, %%zmm1, %%zmm6\n vdpbf16ps %%zmm0, %%zmm1, %%zmm7\n"
                             "vdpbf16ps %%zmm0, %%zmm1, %%zmm8\n vdpbf16ps %%zmm0, %%zmm1, %%zmm9\n"
                             "vdpbf16ps %%zmm0, %%zmm1, %%zmm10\n"
                             "vdpbf16ps %%zmm0, %%zmm1, %%zmm11\n"
                             "vdpbf16ps %%zmm0, %%zmm1, %%zmm12\n"
                             "vdpbf16ps %%zmm0, %%zmm1, %%zmm13\n" ::
                             : "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                               "xmm10", "xmm11", "xmm12", "xmm13");
#endif
        took[turn] = clock_seconds(CLOCK_THREAD_CPUTIME_ID) - begun;
    }
    return 1e-9 * 64 * PER_LOOP * LOOPS / median_of(took, 9);
}

/* Microseconds of one product, the median of TURNS, of `sets` matrices in turns that together are
 * more than the caches hold.  With several threads it is wall time. */
static double cost_of(struct sf_device *device, struct sf_mat *const *mat, int32_t sets,
                      int32_t rows, const void *x, size_t k, float *y, size_t cols)
{
    clockid_t clock = device->threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
    double us[TURNS];
    for (int turn = -1; turn < TURNS; turn++) {
        double begun = clock_seconds(clock);
        for (int32_t i = 0; i < sets; i++)
            device->k->matmul(device, mat[i], rows, x, k, y, cols);
        if (turn >= 0) us[turn] = 1e6 * (clock_seconds(clock) - begun) / sets;
    }
    return median_of(us, TURNS);
}

static void cost_shape(struct sf_device *device, int32_t k, int32_t cols, double peak)
{
    static const int32_t some_rows[] = { 1, 2, 4, 8, 16, 32, 64, 128, 256, COST_ROWS };
    struct sf_mat_shape made = { .cols = cols, .panel_cols = 64, .k_slice = k, .slices = 1,
                                 .dtype = SF_BF16, .rows_max = COST_ROWS };
    struct sf_mat *mat[SETS_MAX];
    size_t bytes = 2 * (size_t)k * (size_t)cols, elements = (size_t)COST_ROWS * (size_t)k;
    int32_t sets = (int32_t)(COLD_BYTES / bytes) + 1;
    float *tile = malloc((size_t)64 * (size_t)k * sizeof *tile);
    float *y = malloc((size_t)COST_ROWS * (size_t)cols * sizeof *y);
    uint16_t *x = malloc(elements * sizeof *x);
    random_fill(tile, (size_t)64 * (size_t)k, 1, 3);
    for (size_t i = 0; i < elements; i++) x[i] = sf_f32_to_bf16(tile[i % (64 * (size_t)k)]);
    for (int32_t i = 0; i < sets; i++) {
        SF_MUST(device->k->mat_create(device, &made, &mat[i]));
        for (int32_t panel = 0; panel * 64 < cols; panel++)
            SF_CHECK_OK(device->k->mat_pack(device, mat[i], panel, 0, tile));
    }
    for (size_t r = 0; r < sizeof some_rows / sizeof *some_rows; r++) {
        double us = cost_of(device, mat, sets, some_rows[r], x, (size_t)k, y, (size_t)cols);
        double gflops = 2e-3 * some_rows[r] * (double)k * cols / us;
        printf("%5d x %5d, rows %3d: %9.1f us, %6.1f GFLOP/s, %.2f of the peak, %5.1f GB/s\n", k,
               cols, some_rows[r], us, gflops, gflops / peak / device->threads,
               1e-3 * (double)bytes / us);
    }
    for (int32_t i = 0; i < sets; i++) device->k->mat_destroy(device, mat[i]);
    free(tile);
    free(y);
    free(x);
}

/* The matrices of SmolLM2-135M, the best instruction set; one thread, and two with "cost_two". */
static void cost(struct sf_device *device)
{
    static const int32_t shape[][2] = { { 576, 960 }, { 576, 576 }, { 576, 3072 }, { 1536, 576 },
                                        { 576, 49152 } };
    const char *level = getenv("SHEAF_TEST_LEVEL");
    if (!level || strcmp(level, "long") != 0) SF_SKIP("figures, at level long alone");
    double peak = peak_gflops(device);
    if (peak <= 0) SF_SKIP("no products of pairs here");
    printf("%s x %d, peak of a core %.1f GFLOP/s\n", device->k->name, device->threads, peak);
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++)
        cost_shape(device, shape[s][0], shape[s][1], peak);
}
static void test_cost(void) { cost(variants[count - 3].device); }
static void test_cost_two(void) { cost(variants[count - 2].device); }

static const struct sf_test tests[] = {
    { "shapes", test_shapes }, { "leaves", test_leaves }, { "bytes", test_bytes },
    { "cost", test_cost }, { "cost_two", test_cost_two }, { NULL, NULL }
};

int main(int argc, char **argv)
{
    count = variants_open(variants, &ref);
    int failed = sf_test_main("kernels_pairs", tests, argc, argv);
    variants_close(variants, count, ref);
    return failed;
}
