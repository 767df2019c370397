/* tests/unit/kvshard/loss.c: what factors leave, lane by lane.
 *
 * A worked example: x = [3 0 | 0 4; 0 5 | 12 0] as two lanes of two columns and the factors
 * a = [1; 0], b = [3 0 | 0 4], which give the first row: the lanes leave 25 of 34 and 144 of 160.
 * Then sums over matrices of several blocks with strides wider than their rows, against plain
 * loops in f64; true factors leave nothing; zeros are no division by zero. */
#include <math.h>
#include <string.h>

#include "kernels/device.h"
#include "kvshard/group.h"
#include "tests/check.h"

enum { ROWS = 75, COLS = 12, RANK = 5, LANES = 3, PAD = 3 };
static struct sf_device *device;
static float x[ROWS * (COLS + PAD)], a[ROWS * (RANK + PAD)], b[RANK * (COLS + PAD)];

static struct sf_factor_job job_of(int32_t rows)
{
    return (struct sf_factor_job){ .rows = rows, .cols = COLS, .rank = RANK, .x = x, .a = a,
                                   .b = b, .x_stride = COLS + PAD, .a_stride = RANK + PAD,
                                   .b_stride = COLS + PAD };
}

static void test_worked(void)
{
    const float rows[] = { 3, 0, 0, 4, 0, 5, 12, 0 }, left[] = { 1, 0 }, top[] = { 3, 0, 0, 4 };
    struct sf_factor_job job = { .rows = 2, .cols = 4, .rank = 1, .x_stride = 4, .a_stride = 1,
                                 .b_stride = 4 };
    float a_copy[2], b_copy[4];
    double sum[4];
    memcpy(a_copy, left, sizeof left);
    memcpy(b_copy, top, sizeof top);
    job.x = rows;
    job.a = a_copy;
    job.b = b_copy;
    SF_CHECK_OK(sf_factor_loss(device, &job, 2, sum));
    SF_CHECK(sum[0] == 34 && sum[1] == 25);
    SF_CHECK(sum[2] == 160 && sum[3] == 144);
}

static void fill(float *to, int32_t n, uint32_t seed)
{
    for (int32_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        to[i] = (float)(seed >> 8) * 0x1p-23f - 1;
    }
}

/* of row r: x less what the factors make, or x alone */
static double left_of(int32_t r, int32_t c, int with)
{
    double left = x[r * (COLS + PAD) + c];
    for (int32_t i = 0; i < RANK && with; i++)
        left -= (double)a[r * (RANK + PAD) + i] * b[i * (COLS + PAD) + c];
    return left;
}

static void test_random(int32_t rows)
{
    struct sf_factor_job job = job_of(rows);
    double sum[2 * LANES], plain[2 * LANES] = { 0 };
    fill(x, ROWS * (COLS + PAD), 1);
    fill(a, ROWS * (RANK + PAD), 2);
    fill(b, RANK * (COLS + PAD), 3);
    for (int32_t r = 0; r < rows; r++)
        for (int32_t c = 0; c < COLS; c++)
            for (int with = 0; with < 2; with++)
                plain[2 * (c / (COLS / LANES)) + with] += pow(left_of(r, c, with), 2);
    SF_CHECK_OK(sf_factor_loss(device, &job, LANES, sum));
    for (int32_t i = 0; i < 2 * LANES; i++) SF_CHECK(fabs(sum[i] - plain[i]) <= 1e-5 * plain[i]);
}

static void test_true_factors(void)
{
    struct sf_factor_job job = job_of(ROWS);
    double sum[2 * LANES];
    memset(x, 0, sizeof x);
    SF_CHECK_OK(sf_factor_loss(device, &job, LANES, sum));
    for (int32_t l = 0; l < LANES; l++) SF_CHECK(sum[2 * l] == 0 && sum[2 * l + 1] > 0);
    for (int32_t r = 0; r < ROWS; r++)
        for (int32_t c = 0; c < COLS; c++)
            x[r * (COLS + PAD) + c] = (float)-left_of(r, c, 1);
    SF_CHECK_OK(sf_factor_loss(device, &job, LANES, sum));
    for (int32_t l = 0; l < LANES; l++) SF_CHECK(sum[2 * l + 1] <= 1e-10 * sum[2 * l]);
}

static void test_random_matrices(void)
{
    test_random(1);
    test_random(32);
    test_random(ROWS);
}

int main(int argc, char **argv)
{
    static const struct sf_test tests[] = { { "a worked example", test_worked },
                                            { "random matrices", test_random_matrices },
                                            { "true factors leave nothing", test_true_factors },
                                            { NULL, NULL } };
    struct sf_device_spec spec = { .name = "ref", .threads = 1, .rows_max = 1 };
    if (sf_device_open(&spec, &device) != SF_OK) return 1;
    int failed = sf_test_main("kvshard_loss", tests, argc, argv);
    sf_device_close(device);
    return failed;
}
