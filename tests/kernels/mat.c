/* tests/kernels/mat.c: products equal ref within rounding for shapes with cut panels, several
 * slices, odd k and every dtype; with `fixed`, a row's bits depend on the row and the weights alone
 * (not on the number of rows, its place, its neighbours or the threads), and the sum over slices is
 * the leaves added in order, bit for bit; a matrix takes the bytes that mat_bytes says, and
 * matrices that share memory come and go in any order. */
#include <math.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/dtype.h"
#include "tests/check.h"
#include "tests/kernels/variants.h"

#define EPS 1.2e-7

/* Rows of x repeat after DISTINCT, so that ref has to compute only those. */
enum { ROWS_MAX = 300, ROWS_PADDED = 336, DISTINCT = 21 };

static const struct {
    int32_t cols, panel_cols, k_slice, slices;
} shapes[] = {
    { 64, 64, 64, 1 },     { 576, 128, 192, 3 },  { 100, 64, 128, 2 },  { 1, 16, 16, 1 },
    { 200, 1024, 40, 1 },  { 130, 48, 33, 2 },    { 2304, 256, 64, 1 }, { 72, 24, 96, 1 },
    { 96, 128, 2240, 1 },  { 90, 90, 2100, 1 }
};
enum { SHAPES = sizeof shapes / sizeof *shapes };
static const enum sf_dtype dtypes[] = { SF_F32, SF_F16, SF_BF16 };
static const int32_t row_counts[] = { 0, 1, 2, 7, 16, 17, 47, 48, 49, 255, 256, 300 };

static struct variant variants[VARIANTS_MAX];
static struct sf_device *ref;
static int count;

/* One shape in one dtype: its weights, and x for ROWS_MAX rows. */
struct problem {
    struct sf_mat_shape shape;
    size_t k, x_stride, y_stride;
    float *w;                           /* [cols][k] */
    unsigned char *x;                   /* [ROWS_PADDED][x_stride] */
    float *expected;                    /* [DISTINCT][y_stride] by ref; NULL: not asked for */
};

static void mat_make(struct sf_device *device, const struct problem *p, struct sf_mat **mat_out)
{
    const struct sf_mat_shape *s = &p->shape;
    float *tile = malloc((size_t)s->panel_cols * (size_t)s->k_slice * sizeof *tile);
    SF_CHECK_OK(device->k->mat_create(device, s, mat_out));
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

static void problem_make(struct problem *p, int shape, enum sf_dtype dtype, int fixed)
{
    p->shape = (struct sf_mat_shape){ shapes[shape].cols, shapes[shape].panel_cols,
                                      shapes[shape].k_slice, shapes[shape].slices, dtype,
                                      (uint8_t)fixed, ROWS_MAX, 0 };
    p->k = (size_t)p->shape.k_slice * (size_t)p->shape.slices;
    p->x_stride = p->k + 6;
    p->y_stride = (size_t)p->shape.cols + 3;
    p->expected = NULL;
    p->w = malloc((size_t)p->shape.cols * p->k * sizeof *p->w);
    random_fill(p->w, (size_t)p->shape.cols * p->k, 1, 1);
    float *x = malloc(ROWS_PADDED * p->x_stride * sizeof *x);
    random_fill(x, DISTINCT * p->x_stride, 1, 2);
    for (size_t r = DISTINCT; r < ROWS_PADDED; r++)
        memcpy(x + r * p->x_stride, x + r % DISTINCT * p->x_stride, p->x_stride * sizeof *x);
    p->x = malloc(ROWS_PADDED * p->x_stride * sizeof *x);
    sf_from_f32(dtype, x, p->x, ROWS_PADDED * p->x_stride);
    free(x);
}

static void expected_make(struct problem *p)
{
    struct sf_mat *mat;
    p->expected = malloc(DISTINCT * p->y_stride * sizeof *p->expected);
    mat_make(ref, p, &mat);
    ref->k->matmul(ref, mat, DISTINCT, p->x, p->x_stride, p->expected, p->y_stride);
    ref->k->mat_destroy(ref, mat);
}

static void problem_free(struct problem *p)
{
    free(p->w);
    free(p->x);
    free(p->expected);
}

/* Elements of x and w lie in [-1, 1): a sum of k products is of size sqrt(k) / 3, each of the k
 * roundings at most half EPS of that, and they act as a random walk; EPS k leaves a factor above 5.
 * x must not be read nor y written behind the last row (not fixed) or column. */
static void check_shape(int shape, enum sf_dtype dtype, int fixed)
{
    struct problem p;
    problem_make(&p, shape, dtype, fixed);
    expected_make(&p);
    size_t elements = ROWS_PADDED * p.y_stride;
    float *y = malloc(elements * sizeof *y);
    for (int i = 0; i < count; i++) {
        struct sf_device *device = variants[i].device;
        struct sf_mat *mat;
        char what[96];
        mat_make(device, &p, &mat);
        for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++) {
            if (variants_spare(shape + (int)r, 3)) continue;
            int32_t rows = row_counts[r], written = fixed ? (rows + 47) / 48 * 48 : rows;
            size_t x_bytes = (size_t)written * p.x_stride * sf_dtype_bytes(dtype);
            unsigned char *x = malloc(x_bytes + 1);
            memcpy(x, p.x, x_bytes);
            snprintf(what, sizeof what, "%d rows x %d cols (panels of %d), k %d x %d, %s%s", rows,
                     p.shape.cols, p.shape.panel_cols, p.shape.k_slice, p.shape.slices,
                     sf_dtype_name(dtype), fixed ? ", fixed" : "");
            for (size_t e = 0; e < elements; e++) y[e] = 12345;
            device->k->matmul(device, mat, rows, x, p.x_stride, y, p.y_stride);
            for (size_t e = 0; e < elements; e++) {
                size_t row = e / p.y_stride, column = e % p.y_stride;
                if (row < (size_t)rows && column < (size_t)p.shape.cols) continue;
                if (row < (size_t)written && column < (size_t)p.shape.cols) continue;
                if (y[e] != 12345)
                    sf_test_fail(__FILE__, __LINE__, "%s, %s: wrote to row %zu, column %zu",
                                 variants[i].text, what, row, column);
            }
            for (int32_t q = 0; q < rows; q++)
                compare(variants[i].text, what, y + (size_t)q * p.y_stride,
                        p.expected + (size_t)(q % DISTINCT) * p.y_stride, 1, (size_t)p.shape.cols,
                        EPS * (double)p.k);
            free(x);
        }
        device->k->mat_destroy(device, mat);
    }
    free(y);
    problem_free(&p);
}

static void test_shapes(void)
{
    for (int shape = 0; shape < SHAPES; shape++)
        for (int t = 0; t < 3; t++)
            for (int fixed = 0; fixed < 2; fixed++) check_shape(shape, dtypes[t], fixed);
}

/* The rows of a call, chosen from the problem's. */
static void gather(const struct problem *p, const int32_t *row, int32_t rows, unsigned char *x)
{
    size_t bytes = p->x_stride * sf_dtype_bytes(p->shape.dtype);
    for (int32_t r = 0; r < rows; r++)
        memcpy(x + (size_t)r * bytes, p->x + (size_t)row[r] * bytes, bytes);
}

/* Rows 0 .. 99 computed in one call are the standard; then by every number of rows, rotated,
 * reversed, and all beside a row of other values. */
static void check_fixed(const char *text, struct sf_device *device, const struct problem *p,
                        const float *standard)
{
    enum { ROWS = 100, PADDED = 144 };
    int32_t row[PADDED];
    unsigned char *x = malloc(PADDED * p->x_stride * sf_dtype_bytes(p->shape.dtype));
    float *y = malloc(PADDED * p->y_stride * sizeof *y);
    struct sf_mat *mat;
    mat_make(device, p, &mat);
    for (int32_t rows = 1; rows <= ROWS; rows += rows < 8 ? 1 : 23)
        for (int turn = 0; turn < 3; turn++) {
            for (int32_t r = 0; r < PADDED; r++)
                row[r] = turn == 0 ? r % ROWS : turn == 1 ? (r * 37 + 11) % ROWS : 99 - r % ROWS;
            gather(p, row, PADDED, x);
            device->k->matmul(device, mat, rows, x, p->x_stride, y, p->y_stride);
            for (int32_t r = 0; r < rows; r++)
                compare_bits(text, "fixed rows", y + (size_t)r * p->y_stride,
                             standard + (size_t)row[r] * p->y_stride,
                             (size_t)p->shape.cols * sizeof *y);
        }
    device->k->mat_destroy(device, mat);
    free(x);
    free(y);
}

static void test_fixed(void)
{
    for (int shape = 0; shape < SHAPES; shape++)
        for (int t = 0; t < 3; t++) {
            if (variants_spare(shape + t, 3)) continue;
            struct problem p;
            problem_make(&p, shape, dtypes[t], 1);
            float *standard = malloc(144 * p.y_stride * sizeof *standard);
            for (int i = 0; i < count; i++) {
                struct sf_device *device = variants[i].device;
                if (device->threads == 1) {
                    struct sf_mat *mat;
                    mat_make(device, &p, &mat);
                    device->k->matmul(device, mat, 100, p.x, p.x_stride, standard, p.y_stride);
                    device->k->mat_destroy(device, mat);
                }
                check_fixed(variants[i].text, device, &p, standard);
            }
            free(standard);
            problem_free(&p);
        }
}

static void test_leaves(void)
{
    enum { ROWS = 60, PADDED = 96 };
    for (int shape = 0; shape < SHAPES; shape++)
        for (int t = 0; t < 3; t++) {
            struct problem p;
            problem_make(&p, shape, dtypes[t], 1);
            size_t leaf = PADDED * p.y_stride;
            float *leaves = malloc((size_t)p.shape.slices * leaf * sizeof *leaves);
            float *y = malloc(leaf * sizeof *y);
            for (int i = 0; i < count; i++) {
                struct sf_device *device = variants[i].device;
                struct sf_mat *mat;
                mat_make(device, &p, &mat);
                device->k->matmul(device, mat, ROWS, p.x, p.x_stride, y, p.y_stride);
                device->k->matmul_leaves(device, mat, ROWS, p.x, p.x_stride, leaves, leaf,
                                         p.y_stride);
                for (size_t r = 0; r < ROWS; r++)
                    for (size_t c = 0; c < (size_t)p.shape.cols; c++) {
                        size_t at = r * p.y_stride + c;
                        for (int32_t s = 1; s < p.shape.slices; s++)
                            leaves[at] += leaves[(size_t)s * leaf + at];
                    }
                for (size_t r = 0; r < ROWS; r++)
                    compare_bits(variants[i].text, "sum of leaves", leaves + r * p.y_stride,
                                 y + r * p.y_stride, (size_t)p.shape.cols * sizeof *y);
                device->k->mat_destroy(device, mat);
            }
            free(leaves);
            free(y);
            problem_free(&p);
        }
}

static int64_t process_bytes(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%ld", &pages) != 1) pages = -1;
    if (file) fclose(file);
    return pages < 0 ? -1 : pages * (int64_t)sysconf(_SC_PAGESIZE);
}

/* mat_bytes is the plain size, columns rounded up to 16 (fixed: the last panel filled up), and the
 * process grows by that much: 24 MiB and a bit, against slack of 2 MiB for huge pages (not
 * looked at where the matrix is not the host's). */
static void test_bytes(void)
{
    struct sf_mat_shape shape = { 3000, 128, 1024, 2, SF_F32, 0, 64, 0 };
    const struct sf_kernels *k = variants[count - 1].device->k;
    SF_CHECK_INT(k->mat_bytes(&shape), 3008LL * 2048 * 4);
    shape.fixed = 1;
    SF_CHECK_INT(k->mat_bytes(&shape), 3072LL * 2048 * 4);
    shape.dtype = SF_F16;
    SF_CHECK_INT(k->mat_bytes(&shape), 3072LL * 2048 * 2);
    SF_CHECK_INT(ref->k->mat_bytes(&shape), 3000LL * 2048 * 2);
    shape.dtype = SF_F32;
    for (int i = 0; i < count && !VARIANTS_STAGED; i += 3) {
        struct sf_device *device = variants[i].device;
        struct sf_mat *mat[3];
        SF_MUST(device->k->mat_create(device, &shape, &mat[0]));
        int64_t before = process_bytes();
        SF_MUST(device->k->mat_create(device, &shape, &mat[1]));
        SF_MUST(device->k->mat_create(device, &shape, &mat[2]));
        SF_CHECK_NEAR((process_bytes() - before) / 2, device->k->mat_bytes(&shape), 2 << 20);
        for (int j = 0; j < 3; j++) device->k->mat_destroy(device, mat[j]);
    }
}

static int64_t resident_bytes(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    /* They keep what is freed, and more beside what is not. */
    return 0;
#endif
    long size = 0, resident = -1;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%ld %ld", &size, &resident) != 2) resident = -1;
    if (file) fclose(file);
    return resident < 0 ? -1 : resident * (int64_t)sysconf(_SC_PAGESIZE);
}

/* 150 MiB of matrices of 3 MiB share memory: the process grows by their bytes and a huge page a
 * chunk.  Every second one goes and comes back, and still all give their own products; when all
 * are gone so is the memory. */
static void test_shared_memory(void)
{
    enum { MATS = 50, COLS = 1024, K = 1536 };
    if (VARIANTS_STAGED) SF_SKIP("not the host's memory");
    struct sf_device *device = variants[count - 1].device;
    struct problem p = { .shape = { COLS, COLS, K, 1, SF_BF16, 0, 1, 0 }, .k = K };
    struct sf_mat *mat[MATS] = { NULL };
    static uint16_t x[K];
    static float y[COLS];
    for (int i = 0; i < K; i++) x[i] = sf_f32_to_bf16(1);
    p.w = malloc((size_t)COLS * K * sizeof *p.w);
    int64_t before = resident_bytes();
    for (int turn = 0; turn < 2; turn++) {
        for (int i = turn; i < MATS; i += 1 + turn) {
            for (size_t e = 0; e < (size_t)COLS * K; e++) p.w[e] = (float)(i + 100 * turn);
            if (mat[i]) device->k->mat_destroy(device, mat[i]);
            mat_make(device, &p, &mat[i]);
        }
        if (turn == 0 && before > 0)
            SF_CHECK_NEAR(resident_bytes() - before,
                          MATS * device->k->mat_bytes(&p.shape) + (int64_t)COLS * K * 8, 12 << 20);
    }
    for (int i = 0; i < MATS; i++) {
        device->k->matmul(device, mat[i], 1, x, K, y, COLS);
        SF_CHECK_NEAR(y[0], K * (i + 100 * (i % 2)), 0);
        SF_CHECK_NEAR(y[COLS - 1], K * (i + 100 * (i % 2)), 0);
    }
    for (int i = 0; i < MATS; i++) device->k->mat_destroy(device, mat[(i * 7 + 3) % MATS]);
    if (before > 0) SF_CHECK_NEAR(resident_bytes() - before, (int64_t)COLS * K * 8, 16 << 20);
    free(p.w);
}

/* A leaf is gathered for a fixed product, so one that is too wide for that is refused when it is
 * made; the widest that is taken also runs. */
static void test_wide_leaves(void)
{
    struct sf_mat_shape shape = { 64, 64, 5461, 2, SF_F32, 1, 48, 0 };
    size_t k = (size_t)shape.k_slice;
    float *x = calloc(48 * 2 * k, sizeof *x), *y = calloc(48 * 64, sizeof *y);
    for (int i = 0; i < count; i += 3) {
        struct sf_device *device = variants[i].device;
        struct sf_mat *mat;
        SF_MUST(device->k->mat_create(device, &shape, &mat));
        device->k->matmul(device, mat, 48, x, 2 * k, y, 64);
        device->k->mat_destroy(device, mat);
        struct sf_mat_shape wide = shape;
        wide.k_slice++;
        SF_CHECK_FAILS(device->k->mat_create(device, &wide, &mat), SF_UNSUPPORTED);
    }
    free(x);
    free(y);
}

static const struct sf_test tests[] = {
    { "shapes", test_shapes }, { "fixed", test_fixed },
    { "leaves", test_leaves }, { "bytes", test_bytes }, { "shared_memory", test_shared_memory },
    { "wide_leaves", test_wide_leaves },
    { NULL, NULL }
};

int main(int argc, char **argv)
{
    count = variants_open(variants, &ref);
    int failed = sf_test_main("kernels_mat", tests, argc, argv);
    variants_close(variants, count, ref);
    return failed;
}
