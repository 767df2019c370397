/* tests/unit/kvshard/factor_ranks.c: factors over ranks are those of one rank with all columns, and
 * where the host cannot touch the device's memory they have the bits that the CPU gives them.
 * Ranks are threads.  Shown for every way, with 2 and 3 ranks, even and uneven lanes, copies of
 * lanes, oversampling, fewer rows than ranks, and matrices of few directions: the product a b is
 * that of one rank to 1e-4 of x, a is the same on all ranks bit for bit, a rerun gives the same
 * bits, and what is not finite on one rank, or fails there, is refused by all.  Finite numbers
 * whose squares are not are factored on all ranks, or refused on all, but never end the job. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kvshard/factor_ranks.h"
#include "tests/check.h"

enum { RANKS_MAX = 3, LANES_MAX = 6, DIM = 8, ROWS_MAX = 120, COLS_MAX = LANES_MAX * DIM };

static float x[ROWS_MAX * COLS_MAX];    /* of all */
struct shape {
    int32_t rows, rank, oversample, terms, ranks, lanes_all;
    int32_t first[RANKS_MAX], lanes[RANKS_MAX], copies[RANKS_MAX]; /* the first lanes are copies */
};
static const struct shape shapes[] = {
    { 120, 12, 0, 30, 2, 4, { 0, 2 }, { 2, 2 }, { 0, 0 } },
    { 120, 9, 0, 30, 2, 3, { 0, 2 }, { 2, 1 }, { 0, 0 } },
    { 100, 11, 0, 30, 3, 6, { 0, 1, 4 }, { 1, 3, 2 }, { 0, 0, 0 } },
    { 90, 7, 5, 30, 3, 5, { 0, 2, 4 }, { 2, 2, 1 }, { 0, 0, 0 } },
    { 80, 6, 0, 30, 3, 2, { 0, 0, 1 }, { 1, 1, 1 }, { 0, 1, 0 } },
    { 80, 6, 3, 30, 3, 4, { 0, 1, 2 }, { 2, 2, 2 }, { 0, 1, 1 } },
    { 2, 2, 0, 30, 3, 3, { 0, 1, 2 }, { 1, 1, 1 }, { 0, 0, 0 } },
    { 60, 10, 0, 3, 2, 2, { 0, 1 }, { 1, 1 }, { 0, 0 } },
    { 60, 10, 2, 0, 2, 2, { 0, 1 }, { 1, 1 }, { 0, 0 } },
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

struct rank {
    const struct shape *shape;
    enum sf_factor_how how;
    const char *device;
    struct sf_comm *comm;
    sf_status mine, status;
    int bad;                            /* it has what is not finite */
    float huge;                         /* else 0: the size of what it has */
    float a[ROWS_MAX * COLS_MAX], b[COLS_MAX * COLS_MAX];
};

static void x_fill(const struct shape *shape)
{
    size_t cols = (size_t)shape->lanes_all * DIM;
    memset(x, 0, sizeof x);
    srand(5);
    for (int t = 0; t < shape->terms; t++) {
        float left[ROWS_MAX], right[COLS_MAX];
        for (int i = 0; i < ROWS_MAX; i++) left[i] = (float)(rand() % 2001 - 1000) / 1000;
        for (int i = 0; i < COLS_MAX; i++) right[i] = (float)(rand() % 2001 - 1000) / 1000;
        for (size_t r = 0; r < (size_t)shape->rows; r++)
            for (size_t c = 0; c < cols; c++)
                x[r * cols + c] += left[r] * right[c] * powf(0.7f, (float)t);
    }
}

/* The job's arrays in memory of the device, a with rows that are one wider; x there already. */
static sf_status run_on(struct rank *rank, struct sf_factor_ranks *f)
{
    struct sf_device *device = f->device;
    struct sf_factor_job *job = &f->job;
    size_t rows = (size_t)job->rows, cols = (size_t)job->cols, n = (size_t)job->rank, wide = n + 1;
    void *at, *a, *b;
    SF_TRY(device->k->alloc(device, rows * cols * sizeof(float), "x", &at));
    SF_TRY(device->k->alloc(device, rows * wide * sizeof(float), "a", &a));
    SF_TRY(device->k->alloc(device, n * cols * sizeof(float), "b", &b));
    device->k->upload(device, at, job->x, rows * cols * sizeof(float));
    job->x = at, job->a = a, job->b = b, job->a_stride = wide;
    sf_status status = sf_factor_ranks(f, rank->mine);
    for (size_t r = 0; r < rows; r++)
        device->k->download(device, rank->a + r * n, job->a + r * wide, n * sizeof(float));
    device->k->download(device, rank->b, b, n * cols * sizeof(float));
    device->k->free(device, at), device->k->free(device, a), device->k->free(device, b);
    return status;
}

static void run(struct rank *rank, int32_t me, struct sf_device *device)
{
    const struct shape *shape = rank->shape;
    struct sf_factor_lane lane[LANES_MAX];
    float own[ROWS_MAX * COLS_MAX];
    int32_t lanes = shape->lanes[me], cols = lanes * DIM, all = shape->lanes_all * DIM;
    for (int32_t l = 0; l < lanes; l++)
        lane[l] = (struct sf_factor_lane){ shape->first[me] + l, l < shape->copies[me] };
    for (int32_t r = 0; r < shape->rows; r++)
        memcpy(own + r * cols, x + r * all + shape->first[me] * DIM, (size_t)cols * sizeof *own);
    if (rank->bad) own[3] = NAN;
    for (int32_t i = 0; rank->huge > 0 && i < shape->rows * cols; i++)
        own[i] = own[i] < 0 ? -rank->huge : rank->huge;
    struct sf_factor_ranks f = {
        .device = device, .ranks = rank->comm, .lanes = lanes, .lanes_all = shape->lanes_all,
        .dim = DIM, .lane = lane,
        .job = { .rows = shape->rows, .cols = cols, .rank = shape->rank, .how = rank->how,
                 .power_iterations = 2, .oversample = shape->oversample, .seed = 77, .x = own,
                 .x_stride = (size_t)cols, .a = rank->a, .b = rank->b,
                 .a_stride = (size_t)shape->rank, .b_stride = (size_t)cols } };
    if (!device->host_memory) f.job.a_stride++;         /* run_on */
    struct sf_factor_place place = { me, shape->ranks };
    size_t bytes = sf_factor_ranks_bytes(&f, place, device->k->factor_bytes);
    unsigned char *block = aligned_alloc(64, bytes + 64);
    memset(block, 0xff, bytes);                         /* NaN: nobody counts on zeros */
    memset(block + bytes, 0x5a, 64);
    f.job.scratch = block;
    rank->status = device->host_memory ? sf_factor_ranks(&f, rank->mine) : run_on(rank, &f);
    for (int i = 0; i < 64; i++)
        if (block[bytes + (size_t)i] != 0x5a) rank->status = SF_INTERNAL;
    free(block);
}

static void *run_thread(void *arg)
{
    struct rank *rank = arg;
    struct sf_device_spec spec = { .name = rank->device, .threads = 1, .rows_max = 64 };
    struct sf_device *device;
    rank->status = sf_device_open(&spec, &device);
    if (rank->status == SF_OK) {
        run(rank, sf_comm_rank(rank->comm), device);
        sf_device_close(device);
    }
    sf_comm_destroy(rank->comm);
    return NULL;
}

static void run_ranks(struct rank *rank, const struct shape *shape, enum sf_factor_how how,
                      const char *device, int bad, int fails)
{
    struct sf_comm_options options = { .timeout_ms = 60000 };
    struct sf_comm *comm[RANKS_MAX];
    pthread_t thread[RANKS_MAX];
    SF_MUST(sf_comm_loopback_world(shape->ranks, 0, &options, comm));
    for (int32_t r = 0; r < shape->ranks; r++) {
        rank[r].shape = shape, rank[r].how = how, rank[r].device = device;
        rank[r].comm = comm[r], rank[r].bad = r == bad;
        rank[r].mine = r == fails ? SF_NO_MEMORY : SF_OK;
        SF_CHECK(pthread_create(&thread[r], NULL, run_thread, &rank[r]) == 0);
    }
    for (int32_t r = 0; r < shape->ranks; r++) pthread_join(thread[r], NULL);
}

/* a b of one rank that has all columns. */
static void whole(const struct shape *shape, enum sf_factor_how how, const char *name, double *out)
{
    static float a[ROWS_MAX * COLS_MAX], b[COLS_MAX * COLS_MAX];
    struct sf_device_spec spec = { .name = name, .threads = 1, .rows_max = 64 };
    struct sf_device *device;
    int32_t cols = shape->lanes_all * DIM;
    SF_MUST(sf_device_open(&spec, &device));
    struct sf_factor_job job = { .rows = shape->rows, .cols = cols, .rank = shape->rank,
                                 .how = how, .power_iterations = 2,
                                 .oversample = shape->oversample, .seed = 77, .x = x,
                                 .x_stride = (size_t)cols, .a = a, .b = b,
                                 .a_stride = (size_t)shape->rank, .b_stride = (size_t)cols };
    job.scratch = aligned_alloc(64, (device->k->factor_bytes(&job) + 127) / 64 * 64);
    SF_CHECK_OK(device->k->factor(device, &job));
    free(job.scratch);
    sf_device_close(device);
    for (int32_t r = 0; r < shape->rows; r++)
        for (int32_t c = 0; c < cols; c++) {
            double sum = 0;
            for (int32_t i = 0; i < shape->rank; i++)
                sum += (double)a[r * shape->rank + i] * (double)b[i * cols + c];
            out[r * cols + c] = sum;
        }
}

static double greatest(const double *values, int32_t count)
{
    double most = 0;
    for (int32_t i = 0; i < count; i++) most = fmax(most, fabs(values[i]));
    return most;
}

/* The greatest difference of a rank's product from the whole one, over all its columns. */
static double off_by(const struct rank *rank, int32_t me, const double *all)
{
    const struct shape *shape = rank->shape;
    int32_t cols = shape->lanes[me] * DIM, total = shape->lanes_all * DIM;
    double most = 0;
    for (int32_t r = 0; r < shape->rows; r++)
        for (int32_t c = 0; c < cols; c++) {
            double sum = 0;
            for (int32_t i = 0; i < shape->rank; i++)
                sum += (double)rank->a[r * shape->rank + i] * (double)rank->b[i * cols + c];
            most = fmax(most, fabs(sum - all[r * total + shape->first[me] * DIM + c]));
        }
    return most;
}

static void test_products(void)
{
    static struct rank rank[RANKS_MAX], again[RANKS_MAX];
    static double all[ROWS_MAX * COLS_MAX];
    for (int s = 0; s < SHAPES; s++)
        for (int how = 0; how < 3; how++) {
            const struct shape *shape = &shapes[s];
            size_t a_bytes = (size_t)(shape->rows * shape->rank) * sizeof(float);
            x_fill(shape);
            whole(shape, how, "cpu", all);
            double scale = greatest(all, shape->rows * shape->lanes_all * DIM);
            run_ranks(rank, shape, how, "cpu", -1, -1);
            run_ranks(again, shape, how, "cpu", -1, -1);
            for (int32_t r = 0; r < shape->ranks; r++) {
                SF_CHECK_OK(rank[r].status);
                double off = off_by(&rank[r], r, all);
                if (!(off <= 1e-4 * scale))
                    sf_test_fail(__FILE__, __LINE__, "shape %d, way %d, rank %d: %g of %g", s, how,
                                 r, off, scale);
                SF_CHECK(memcmp(rank[r].a, rank[0].a, a_bytes) == 0);
                SF_CHECK(memcmp(rank[r].a, again[r].a, a_bytes) == 0);
                SF_CHECK(memcmp(rank[r].b, again[r].b, sizeof rank[r].b) == 0);
            }
        }
}

/* The reference backend takes the same steps; its own RANDOM is exact, so the CPU's is compared. */
static void test_reference(void)
{
    static struct rank rank[RANKS_MAX];
    static double all[ROWS_MAX * COLS_MAX];
    for (int s = 0; s < SHAPES; s++) {
        x_fill(&shapes[s]);
        whole(&shapes[s], SF_FACTOR_RANDOM, "cpu", all);
        double scale = greatest(all, shapes[s].rows * shapes[s].lanes_all * DIM);
        run_ranks(rank, &shapes[s], SF_FACTOR_RANDOM, "ref", -1, -1);
        for (int32_t r = 0; r < shapes[s].ranks; r++) {
            SF_CHECK_OK(rank[r].status);
            SF_CHECK(off_by(&rank[r], r, all) <= 1e-4 * scale);
        }
    }
}

static void test_refusals(void)
{
    static struct rank rank[RANKS_MAX];
    for (int s = 0; s < SHAPES; s++)
        for (int how = 0; how < 3; how++)
            for (int32_t bad = 0; bad < shapes[s].ranks; bad++) {
                x_fill(&shapes[s]);
                run_ranks(rank, &shapes[s], how, "cpu", bad, -1);
                for (int32_t r = 0; r < shapes[s].ranks; r++)
                    SF_CHECK_INT(rank[r].status, SF_INVALID);
                run_ranks(rank, &shapes[s], how, "cpu", (bad + 1) % shapes[s].ranks, bad);
                for (int32_t r = 0; r < shapes[s].ranks; r++)
                    SF_CHECK_INT(rank[r].status, r == bad ? SF_NO_MEMORY : SF_STOPPED);
            }
}

static void test_device(void)
{
    static struct rank rank[RANKS_MAX], host[RANKS_MAX];
    struct sf_device_spec spec = { .name = "cuda-emulated", .threads = 1, .rows_max = 1 };
    struct sf_device *device;
    if (sf_device_open(&spec, &device) != SF_OK) SF_SKIP("this build has no emulation");
    sf_device_close(device);
    for (int s = 0; s < SHAPES; s++) {
        const struct shape *shape = &shapes[s];
        enum sf_factor_how how = (enum sf_factor_how)(s % 3);
        x_fill(shape);
        run_ranks(host, shape, how, "cpu", -1, -1);
        run_ranks(rank, shape, how, "cuda-emulated", -1, -1);
        for (int32_t r = 0; r < shape->ranks; r++) {
            int32_t cols = shape->lanes[r] * DIM;
            SF_CHECK_OK(rank[r].status);
            SF_CHECK(memcmp(rank[r].a, host[r].a,
                            (size_t)(shape->rows * shape->rank) * sizeof(float)) == 0);
            SF_CHECK(memcmp(rank[r].b, host[r].b,
                            (size_t)(shape->rank * cols) * sizeof(float)) == 0);
        }
    }
    run_ranks(rank, &shapes[2], SF_FACTOR_RANDOM, "cuda-emulated", 2, 0);
    for (int32_t r = 0; r < 3; r++)
        SF_CHECK_INT(rank[r].status, r == 0 ? SF_NO_MEMORY : SF_STOPPED);
}

static int is_finite(const float *numbers, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        if (!isfinite(numbers[i])) return 0;
    return 1;
}

/* Of one rank, or of all.  Only EXACT has no squares, so only there are factors found. */
static void test_huge(void)
{
    static const float size[] = { 1e19f, 3e37f };
    static struct rank rank[RANKS_MAX];
    for (int s = 0; s < SHAPES; s++)
        for (int how = 0; how < 3; how++)
            for (int32_t who = 0; who <= shapes[s].ranks; who++)
                for (int h = 0; h < 2; h++) {
                    const struct shape *shape = &shapes[s];
                    x_fill(shape);
                    for (int32_t r = 0; r < shape->ranks; r++)
                        rank[r].huge = r == who || who == shape->ranks ? size[h] : 0;
                    run_ranks(rank, shape, how, "cpu", -1, -1);
                    for (int32_t r = 0; r < shape->ranks; r++) {
                        SF_CHECK_INT(rank[r].status, rank[0].status);
                        SF_CHECK(rank[r].status == SF_OK || rank[r].status == SF_INVALID);
                        SF_CHECK(rank[r].status != SF_OK ||
                                 (is_finite(rank[r].a, shape->rows * shape->rank) &&
                                  is_finite(rank[r].b, shape->rank * shape->lanes[r] * DIM)));
                        rank[r].huge = 0;
                    }
                }
    for (int32_t r = 0; r < RANKS_MAX; r++) rank[r].huge = size[0];
    run_ranks(rank, &shapes[0], SF_FACTOR_RANDOM, "cpu", -1, -1);
    for (int32_t r = 0; r < shapes[0].ranks; r++) SF_CHECK_INT(rank[r].status, SF_INVALID);
}

/* Rank 0 alone has room for what it factors for all: x, what one rank has of it, b and LAPACK's. */
static void test_bytes(void)
{
    enum { ROWS = 1000, LANES = 24, WIDE = 64, RANK = 96, OVER = 10, ALL = LANES * WIDE };
    struct sf_device_spec spec = { .name = "cpu", .threads = 1, .rows_max = 1 };
    struct sf_device *device;
    SF_MUST(sf_device_open(&spec, &device));
    for (int how = 0; how < 3; how++) {
        struct sf_factor_ranks f = {
            .lanes = LANES / 4, .lanes_all = LANES, .dim = WIDE,
            .job = { .rows = ROWS, .cols = LANES / 4 * WIDE, .rank = RANK, .how = how,
                     .oversample = OVER, .a_stride = RANK } };
        struct sf_factor_job whole = { .rows = ROWS, .cols = ALL, .rank = RANK, .how = how };
        size_t bytes[4];
        if (how == SF_FACTOR_RANDOM) whole.rows = RANK + OVER, whole.how = SF_FACTOR_EXACT;
        for (int32_t r = 0; r < 4; r++)
            bytes[r] = sf_factor_ranks_bytes(&f, (struct sf_factor_place){ r, 4 },
                                             device->k->factor_bytes);
        size_t floats = 2 * (size_t)whole.rows * ALL + (size_t)RANK * ALL;
        SF_CHECK(bytes[0] >= bytes[1] + floats * sizeof(float) + device->k->factor_bytes(&whole));
        SF_CHECK_INT(bytes[1], bytes[2]);
        SF_CHECK_INT(bytes[1], bytes[3]);
    }
    sf_device_close(device);
}

static const struct sf_test tests[] = {
    { "products are those of one rank", test_products },
    { "on the reference backend", test_reference },
    { "of memory that is not the host's", test_device },
    { "one rank's trouble is everyone's", test_refusals },
    { "what rank 0 takes for all", test_bytes },
    { "what is huge ends no job", test_huge }, { NULL, NULL }
};
SF_TEST_MAIN("kvshard_factor_ranks", tests)
