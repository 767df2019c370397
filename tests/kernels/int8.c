/* tests/kernels/int8.c: products of 8-bit codes.  Every backend and instruction set gives ref's
 * bits, for cut panels, several slices, odd k, every dtype, any number of rows and rows that are
 * zero, tiny, huge or not finite; nothing is read or written behind the last row or column.  Codes
 * at their ends do not saturate in any kernel of this processor.  The result is as near to the f32
 * product as half a step of either scale allows.  A matrix takes the bytes that mat_bytes says.
 * Then what it costs beside bf16, at level long. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/dtype.h"
#include "kernels/cpu/isa.h"
#include "tests/check.h"
#include "tests/kernels/variants.h"

enum { ROWS_MAX = 300, DISTINCT = 24 };

static const struct {
    int32_t cols, panel_cols, k_slice, slices;
} shapes[] = {
    { 64, 64, 64, 1 },    { 576, 128, 192, 3 },  { 100, 64, 128, 2 },  { 1, 16, 16, 1 },
    { 200, 1024, 40, 1 }, { 130, 48, 33, 2 },    { 2304, 256, 64, 1 }, { 72, 24, 97, 1 },
    { 96, 128, 2240, 1 }, { 90, 90, 2102, 5 }
};
enum { SHAPES = sizeof shapes / sizeof *shapes };
static const enum sf_dtype dtypes[] = { SF_F32, SF_F16, SF_BF16 };
static const int32_t row_counts[] = { 0, 1, 2, 3, 4, 5, 6, 7, 13, 48, 49, 300 };

static struct variant variants[VARIANTS_MAX];
static struct sf_device *ref;
static int count;

struct problem {
    struct sf_mat_shape shape;
    size_t k, x_stride, y_stride;
    float *w;                           /* [cols][k] */
    unsigned char *x;                   /* [ROWS_MAX][x_stride], rows repeat after DISTINCT */
    float *wide;                        /* the same x in f32 */
};

static void mat_make(struct sf_device *device, const struct problem *p, struct sf_mat **mat_out)
{
    const struct sf_mat_shape *s = &p->shape;
    float *tile = malloc((size_t)s->panel_cols * (size_t)s->k_slice * sizeof *tile);
    SF_MUST(device->k->mat_create(device, s, mat_out));
    for (int32_t panel = 0; panel * s->panel_cols < s->cols; panel++)
        for (int32_t slice = 0; slice < s->slices; slice++) {
            for (int32_t c = 0; c < s->panel_cols; c++)
                for (int32_t i = 0; i < s->k_slice; i++) {
                    int32_t column = panel * s->panel_cols + c;
                    tile[c * s->k_slice + i] =
                        column < s->cols
                            ? p->w[(size_t)column * p->k + (size_t)(slice * s->k_slice + i)]
                            : NAN;      /* not to be read */
                }
            SF_CHECK_OK(device->k->mat_pack(device, *mat_out, panel, slice, tile));
        }
    free(tile);
}

/* Rows 0 .. 5 are special: zeros, below the least scale, near the end of the type, and with one
 * element that is infinite, NaN, or so large that all others have code 0. */
static void rows_special(const struct problem *p, enum sf_dtype dtype, float *x)
{
    size_t k = p->k, s = p->x_stride;
    float large = dtype == SF_F16 ? 60000 : 3e38f;
    for (size_t i = 0; i < k; i++) {
        x[i] = 0;
        x[s + i] *= 1e-37f;
        x[2 * s + i] *= large;
    }
    x[3 * s + k / 2] = -INFINITY;
    x[4 * s] = NAN;
    x[5 * s + k - 1] = large;
}

static void problem_make(struct problem *p, int shape, enum sf_dtype dtype, int fixed)
{
    p->shape = (struct sf_mat_shape){ shapes[shape].cols, shapes[shape].panel_cols,
                                      shapes[shape].k_slice, shapes[shape].slices, dtype,
                                      (uint8_t)fixed, ROWS_MAX, 1 };
    p->k = (size_t)p->shape.k_slice * (size_t)p->shape.slices;
    p->x_stride = p->k + 6;
    p->y_stride = (size_t)p->shape.cols + 3;
    size_t elements = ROWS_MAX * p->x_stride;
    p->w = malloc((size_t)p->shape.cols * p->k * sizeof *p->w);
    random_fill(p->w, (size_t)p->shape.cols * p->k, 1, 1);
    p->wide = malloc(elements * sizeof *p->wide);
    random_fill(p->wide, DISTINCT * p->x_stride, 1, 2);
    rows_special(p, dtype, p->wide);
    for (size_t r = DISTINCT; r < ROWS_MAX; r++)
        memcpy(p->wide + r * p->x_stride, p->wide + r % DISTINCT * p->x_stride,
               p->x_stride * sizeof *p->wide);
    p->x = malloc(elements * sizeof *p->wide);
    sf_from_f32(dtype, p->wide, p->x, elements);
    sf_to_f32(dtype, p->x, p->wide, elements);
}

static void problem_free(struct problem *p)
{
    free(p->w);
    free(p->x);
    free(p->wide);
}

/* Bits alike, but any NaN is like any other: its sign is the processor's. */
static void same(const char *variant, const char *what, float *actual, const float *expected,
                 size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (isnan(actual[i]) && isnan(expected[i])) actual[i] = expected[i];
    compare_bits(variant, what, actual, expected, n * sizeof *actual);
}

static void check_rows(const struct variant *v, const struct problem *p, const struct sf_mat *mat,
                       int32_t rows, const float *expected)
{
    size_t bytes = (size_t)rows * p->x_stride * sf_dtype_bytes(p->shape.dtype);
    size_t cols = (size_t)p->shape.cols, elements = (size_t)(rows + 1) * p->y_stride;
    unsigned char *x = malloc(bytes + 1);       /* not a byte more, for AddressSanitizer */
    float *y = malloc(elements * sizeof *y);
    char what[96];
    snprintf(what, sizeof what, "%d rows x %zu cols (panels of %d), k %d x %d, %s", rows, cols,
             p->shape.panel_cols, p->shape.k_slice, p->shape.slices,
             sf_dtype_name(p->shape.dtype));
    memcpy(x, p->x, bytes);
    for (size_t e = 0; e < elements; e++) y[e] = 12345;
    v->device->k->matmul(v->device, mat, rows, x, p->x_stride, y, p->y_stride);
    for (size_t e = 0; e < elements; e++)
        if ((e / p->y_stride >= (size_t)rows || e % p->y_stride >= cols) && y[e] != 12345)
            sf_test_fail(__FILE__, __LINE__, "%s, %s: wrote to row %zu, column %zu", v->text, what,
                         e / p->y_stride, e % p->y_stride);
    for (int32_t r = 0; r < rows; r++)
        same(v->text, what, y + (size_t)r * p->y_stride, expected + (size_t)(r % DISTINCT) * cols,
             cols);
    free(x);
    free(y);
}

static void test_shapes(void)
{
    for (int shape = 0; shape < SHAPES; shape++)
        for (int t = 0; t < 3; t++) {
            struct problem p;
            struct sf_mat *mat;
            problem_make(&p, shape, dtypes[t], shape % 2);
            float *expected = malloc(DISTINCT * (size_t)p.shape.cols * sizeof *expected);
            mat_make(ref, &p, &mat);
            ref->k->matmul(ref, mat, DISTINCT, p.x, p.x_stride, expected, (size_t)p.shape.cols);
            ref->k->mat_destroy(ref, mat);
            for (int i = 0; i < count; i++) {
                struct sf_device *device = variants[i].device;
                mat_make(device, &p, &mat);
                for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++)
                    check_rows(&variants[i], &p, mat, row_counts[r], expected);
                device->k->mat_destroy(device, mat);
            }
            free(expected);
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
        problem_make(&p, shape, dtypes[shape % 3], 1);
        size_t cols = (size_t)p.shape.cols, leaf = ROWS * cols, slices = (size_t)p.shape.slices;
        float *y = malloc(leaf * sizeof *y), *leaves = malloc(slices * leaf * sizeof *leaves);
        float *want = malloc(slices * leaf * sizeof *want);
        mat_make(ref, &p, &mat);
        ref->k->matmul_leaves(ref, mat, ROWS, p.x, p.x_stride, want, leaf, cols);
        ref->k->mat_destroy(ref, mat);
        for (int i = 0; i < count; i++) {
            struct sf_device *device = variants[i].device;
            mat_make(device, &p, &mat);
            device->k->matmul(device, mat, ROWS, p.x, p.x_stride, y, cols);
            device->k->matmul_leaves(device, mat, ROWS, p.x, p.x_stride, leaves, leaf, cols);
            same(variants[i].text, "leaves", leaves, want, slices * leaf);
            for (size_t s = 1; s < slices; s++)
                for (size_t e = 0; e < leaf; e++) leaves[e] += leaves[s * leaf + e];
            same(variants[i].text, "sum of leaves", y, leaves, leaf);
            device->k->mat_destroy(device, mat);
        }
        free(y);
        free(leaves);
        free(want);
        problem_free(&p);
    }
}

/* Codes at their ends, of equal and of opposite signs, by each kernel that this processor runs. */
static void test_ends(void)
{
    enum { ROWS = 11, COLS = 48, K = 1028 };
    const struct {
        const char *name; void (*dot)(const struct sf_int8_tile *); int there;
    } all[] = {
        { "generic", sf_cpu_isa_generic.int8_dot, 1 },
#if defined(__x86_64__)
        { "avx2", sf_cpu_isa_avx2.int8_dot, sf_isa_detect() >= SF_ISA_AVX2 },
        { "avx512", sf_cpu_isa_avx512.int8_dot, sf_isa_detect() >= SF_ISA_AVX512 },
        { "vnni", sf_int8_dot_vnni, sf_isa_int8(sf_isa_detect()) == SF_INT8_VNNI },
#endif
    };
    static int8_t x[ROWS][K], w[COLS][K];
    static uint8_t packed[K / 4][COLS][4];
    static float out[ROWS][COLS], want[ROWS][COLS];
    struct sf_int8_row row[ROWS];
    float scale[COLS];
    for (int r = 0; r < ROWS; r++) {
        row[r] = (struct sf_int8_row){ 1, 0 };
        for (int i = 0; i < K; i++) {
            x[r][i] = (int8_t)(r == 0 ? 127 : r == 1 ? -127 : r == 2 ? (i % 2 ? 127 : -127)
                               : random_below(255, 5, (uint64_t)(r * K + i)) - 127);
            row[r].sum += x[r][i];
        }
    }
    for (int c = 0; c < COLS; c++) {
        scale[c] = 1;
        for (int i = 0; i < K; i++) {
            w[c][i] = (int8_t)(c == 0 ? 127 : c == 1 ? -127 : c == 2 ? (i % 2 ? -127 : 127)
                               : random_below(255, 6, (uint64_t)(c * K + i)) - 127);
            packed[i / 4][c][i % 4] = (uint8_t)(w[c][i] + 128);
        }
        for (int r = 0; r < ROWS; r++) {
            int32_t sum = 0;
            for (int i = 0; i < K; i++) sum += x[r][i] * w[c][i];
            want[r][c] = (float)sum;
        }
    }
    SF_CHECK_NEAR(want[0][0], 127.0 * 127 * K, 0);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (!all[i].there) continue;
        memset(out, 0, sizeof out);
        all[i].dot(&(struct sf_int8_tile){ x[0], K, row, &packed[0][0][0], scale, ROWS, K, COLS,
                                           out[0], COLS });
        compare_bits(all[i].name, "codes at their ends", out, want, sizeof out);
    }
}

/* With steps s_x and s_w of a row and a column, each product of a pair is off by at most
 * |x| s_w / 2 + |w| s_x / 2 + s_x s_w / 4; a hundredth on top for f32. */
static void test_error(void)
{
    struct problem p;
    struct sf_mat *mat;
    problem_make(&p, 1, SF_F32, 0);
    size_t cols = (size_t)p.shape.cols, n = (size_t)p.shape.k_slice;
    float *y = malloc(DISTINCT * cols * sizeof *y);
    double worst = 0;
    mat_make(variants[0].device, &p, &mat);
    variants[0].device->k->matmul(variants[0].device, mat, DISTINCT, p.x, p.x_stride, y, cols);
    for (size_t r = 6; r < DISTINCT; r++)
        for (size_t c = 0; c < cols; c++) {
            double exact = 0, bound = 0;
            for (size_t s = 0; s < (size_t)p.shape.slices; s++) {
                const float *x = p.wide + r * p.x_stride + s * n, *w = p.w + c * p.k + s * n;
                double x_most = 0, w_most = 0, x_sum = 0, w_sum = 0;
                for (size_t i = 0; i < n; i++) {
                    exact += (double)x[i] * (double)w[i];
                    x_most = fmax(x_most, fabs((double)x[i]));
                    w_most = fmax(w_most, fabs((double)w[i]));
                    x_sum += fabs((double)x[i]);
                    w_sum += fabs((double)w[i]);
                }
                double x_step = x_most / 127, w_step = w_most / 127;
                bound += x_sum * w_step / 2 + w_sum * x_step / 2 + (double)n * x_step * w_step / 4;
            }
            double error = fabs((double)y[r * cols + c] - exact);
            SF_CHECK(error <= bound * 1.01);
            worst = fmax(worst, error / bound);
        }
    SF_CHECK(worst > 0.01);             /* it is int8 that was looked at */
    variants[0].device->k->mat_destroy(variants[0].device, mat);
    free(y);
    problem_free(&p);
}

/* Codes, columns rounded up to 16 and k to 4, and 4 bytes for each column of a slice; what a sum
 * of 32 bits or the scratch could not hold is refused. */
static void test_bytes(void)
{
    struct sf_mat_shape shape = { 3001, 128, 1022, 2, SF_BF16, 1, 64, 1 };
    const struct sf_kernels *k = variants[0].device->k;
    struct sf_mat *mat;
    SF_CHECK_INT(k->mat_bytes(&shape), 3008LL * 2 * (1024 + 4));
    SF_CHECK_INT(ref->k->mat_bytes(&shape), 3001LL * 2 * (1022 + 4));
    shape = (struct sf_mat_shape){ 16, 16, SF_INT8_K_MAX + 1, 1, SF_BF16, 0, 1, 1 };
    SF_CHECK_FAILS(k->mat_create(variants[0].device, &shape, &mat), SF_UNSUPPORTED);
    SF_CHECK_FAILS(ref->k->mat_create(ref, &shape, &mat), SF_UNSUPPORTED);
    shape.k_slice = SF_INT8_K_MAX;
    shape.slices = 8;
    SF_CHECK_FAILS(k->mat_create(variants[0].device, &shape, &mat), SF_UNSUPPORTED);
    shape.slices = 7;
    SF_MUST(k->mat_create(variants[0].device, &shape, &mat));
    k->mat_destroy(variants[0].device, mat);
}

/* ---- cost ------------------------------------------------------------------------------------ */
enum { TURNS = 15, SETS = 4 };

/* Microseconds of the thread, the median of TURNS, of x times each of SETS matrices in both types
 * in turns: together the matrices are more than the caches of a core hold. */
static void cost_of(struct sf_device *device, struct sf_mat *const *mat, int32_t rows,
                    const void *x, size_t k, float *y, size_t cols, double *us_out)
{
    double us[2][TURNS];
    for (int turn = -1; turn < TURNS; turn++)
        for (int int8 = 0; int8 < 2; int8++) {
            double begun = clock_seconds(CLOCK_THREAD_CPUTIME_ID);
            for (int i = 0; i < SETS; i++)
                device->k->matmul(device, mat[2 * i + int8], rows, x, k, y, cols);
            double took = clock_seconds(CLOCK_THREAD_CPUTIME_ID) - begun;
            if (turn >= 0) us[int8][turn] = 1e6 * took / SETS;
        }
    for (int int8 = 0; int8 < 2; int8++) us_out[int8] = median_of(us[int8], TURNS);
}

/* The matrices of SmolLM2-135M, one thread, the best instruction set. */
static void test_cost(void)
{
    enum { ROWS = 512 };
    static const int32_t shape[][2] = { { 576, 960 }, { 576, 576 }, { 576, 3072 }, { 1536, 576 },
                                        { 576, 49152 } };
    static const int32_t some_rows[] = { 1, 16, 64, 128, ROWS };
    const char *level = getenv("SHEAF_TEST_LEVEL");
    if (!level || strcmp(level, "long") != 0) SF_SKIP("figures, at level long alone");
    struct sf_device *device = variants[count - 3].device;
    printf("%s x 1, int8 by %s, us of bf16, us of int8, ratio\n", device->k->name,
           sf_int8_name(sf_isa_int8(device->isa)));
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
        int32_t k = shape[s][0], cols = shape[s][1];
        struct sf_mat_shape made = { .cols = cols, .panel_cols = 64, .k_slice = k, .slices = 1,
                                     .dtype = SF_BF16, .rows_max = ROWS };
        struct sf_mat *mat[2 * SETS];
        float *tile = malloc((size_t)64 * (size_t)k * sizeof *tile);
        float *y = malloc((size_t)ROWS * (size_t)cols * sizeof *y);
        uint16_t *x = malloc((size_t)ROWS * (size_t)k * sizeof *x);
        random_fill(tile, (size_t)64 * (size_t)k, 1, 3);
        for (size_t i = 0; i < (size_t)ROWS * (size_t)k; i++)
            x[i] = sf_f32_to_bf16(tile[i % ((size_t)64 * (size_t)k)]);
        for (int i = 0; i < 2 * SETS; i++) {
            made.int8 = i % 2;
            SF_MUST(device->k->mat_create(device, &made, &mat[i]));
            for (int32_t panel = 0; panel * 64 < cols; panel++)
                SF_CHECK_OK(device->k->mat_pack(device, mat[i], panel, 0, tile));
        }
        for (size_t r = 0; r < sizeof some_rows / sizeof *some_rows; r++) {
            double us[2];
            cost_of(device, mat, some_rows[r], x, (size_t)k, y, (size_t)cols, us);
            printf("%5d x %5d, rows %3d: %9.1f %9.1f  %.2f\n", k, cols, some_rows[r], us[0], us[1],
                   us[0] / us[1]);
        }
        for (int i = 0; i < 2 * SETS; i++) device->k->mat_destroy(device, mat[i]);
        free(tile);
        free(y);
        free(x);
    }
}

static const struct sf_test tests[] = {
    { "shapes", test_shapes }, { "leaves", test_leaves }, { "ends", test_ends },
    { "error", test_error },   { "bytes", test_bytes },   { "cost", test_cost },
    { NULL, NULL }
};

int main(int argc, char **argv)
{
    count = variants_open(variants, &ref);
    int failed = sf_test_main("kernels_int8", tests, argc, argv);
    variants_close(variants, count, ref);
    return failed;
}
