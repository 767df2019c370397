/* tests/kernels/left.c: logits that attend leaves for columns: on the cases of attention, the last
 * row of each lane.  What is left is what ref leaves, within the rounding of a logit, or nothing at
 * all; attention's own results and the masses of all folds have the bits that they have without.
 * Then what it costs. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "tests/check.h"
#include "tests/kernels/lanes.h"
#include "tests/kernels/variants.h"

enum { ROOM = 2048 };                   /* slots of a lane that logits are left of */

static struct variant variants[VARIANTS_MAX];
static struct sf_device *ref;
static int count;

struct rows {
    struct problem p;
    struct sf_lane_job lane[LANES_MAX]; /* without logits */
    int32_t lanes;
    size_t heads, logits, outs, masses;
    float *logit, *expected;            /* [lanes][q_heads][ROOM] */
    float *out[2], *lse[2], *mass[2];
};

static float *floats(size_t n) { return calloc(n + 1, sizeof(float)); }

static void rows_make(struct rows *r, const struct shape *shape)
{
    struct problem *p = &r->p;
    memset(r, 0, sizeof *r);
    problem_make(p, shape, ref);
    for (int i = 0; i < shape->lanes; i++) {
        struct sf_lane_job lane = p->lane[i];
        if (lane.rows == 0) continue;
        lane.row_first += lane.rows - 1;
        lane.rows = 1;
        r->lane[r->lanes++] = lane;
    }
    r->heads = 2 * (size_t)shape->q_heads;
    r->logits = (size_t)r->lanes * (size_t)shape->q_heads * ROOM;
    r->outs = p->rows * r->heads * (size_t)shape->v_dim;
    r->masses = (size_t)p->pool_pages * (size_t)shape->page_slots;
    r->logit = floats(r->logits);
    r->expected = floats(r->logits);
    for (int i = 0; i < 2; i++) {
        r->out[i] = floats(r->outs);
        r->lse[i] = floats(p->rows * r->heads);
        r->mass[i] = floats(r->masses);
    }
}

static void rows_free(struct rows *r)
{
    problem_free(&r->p);
    free(r->logit);
    free(r->expected);
    for (int i = 0; i < 2; i++) free(r->out[i]), free(r->lse[i]), free(r->mass[i]);
}

/* The lanes, with logits at `logit` unless it is NULL. */
static void lanes_with(const struct rows *r, float *logit, struct sf_lane_job *lane)
{
    for (int32_t i = 0; i < r->lanes; i++) {
        lane[i] = r->lane[i];
        if (!logit) continue;
        lane[i].logit = logit + (size_t)i * (size_t)lane[i].q_heads * ROOM;
        lane[i].logit_stride = ROOM;
    }
}

static void attend(struct sf_device *device, const struct rows *r, float *logit, float *out,
                   float *lse)
{
    const struct problem *p = &r->p;
    struct sf_lane_job lane[LANES_MAX];
    lanes_with(r, logit, lane);
    struct sf_attend_job job = {
        .layout = p->layout, .pool = p->pool, .page_bytes = p->page_bytes, .q = p->q,
        .q_stride = p->q_stride, .out = out, .out_stride = r->heads * (size_t)p->shape->v_dim,
        .out_head_stride = (size_t)p->shape->v_dim, .out_dtype = SF_F32,
        .scale = 1 / sqrtf((float)p->shape->k_dim), .window = p->shape->window,
        .row_pos = p->row_pos, .lane = lane, .lanes = r->lanes, .lse = lse,
        .lse_stride = r->heads
    };
    device->k->attend(device, &job);
}

static void columns(struct sf_device *device, const struct rows *r, float *logit,
                    enum sf_row_fold fold, enum sf_head_fold heads, float *mass)
{
    const struct problem *p = &r->p;
    struct sf_lane_job lane[LANES_MAX];
    lanes_with(r, logit, lane);
    struct sf_columns_job job = {
        .layout = p->layout, .pool = p->pool, .page_bytes = p->page_bytes, .q = p->q,
        .q_stride = p->q_stride, .scale = 1 / sqrtf((float)p->shape->k_dim),
        .window = p->shape->window, .row_pos = p->row_pos, .lane = lane, .lanes = r->lanes,
        .lse = r->lse[0], .lse_stride = r->heads, .fold = fold, .head_fold = heads,
        .decay = 0.9f, .mass = mass
    };
    random_fill(mass, r->masses, 0.5f, 600);
    for (size_t i = 0; i < r->masses; i++) mass[i] += 0.5f;
    device->k->columns(device, &job);
}

/* Whether anything was left; all of it, then. */
static int check_left(const struct rows *r, const struct sf_device *device, const char *who)
{
    double bound = 2 * r->p.logit_bound + rounding_of(&r->p, device).logit;
    size_t marked = 0;
    for (int32_t i = 0; i < r->lanes; i++)
        for (int32_t h = 0; h < r->lane[i].q_heads; h++) {
            size_t first = ((size_t)i * (size_t)r->lane[i].q_heads + (size_t)h) * ROOM;
            size_t slots = sf_lane_logit_first(&r->lane[i], 0);
            for (size_t s = 0; s < slots; s++) marked += isnan(r->logit[first + s]) != 0;
            for (size_t s = slots; s < ROOM; s++) SF_CHECK(isnan(r->logit[first + s]));
            if (marked > 0) continue;
            compare(who, r->p.shape->text, r->logit + first, r->expected + first, 1, slots,
                    bound);
        }
    for (size_t i = 0; marked > 0 && i < r->logits; i++) SF_CHECK(isnan(r->logit[i]));
    return marked == 0;
}

static void check_device(struct rows *r, struct sf_device *device, const char *who)
{
    size_t rows = r->p.rows * r->heads * sizeof(float);
    attend(device, r, NULL, r->out[0], r->lse[0]);
    for (size_t i = 0; i < r->logits; i++) r->logit[i] = NAN;
    attend(device, r, r->logit, r->out[1], r->lse[1]);
    compare_bits(who, r->p.shape->text, r->out[1], r->out[0], r->outs * sizeof(float));
    compare_bits(who, r->p.shape->text, r->lse[1], r->lse[0], rows);
    int left = check_left(r, device, who);
    SF_CHECK(left || VARIANTS_STAGED);
    for (int fold = SF_ROWS_SUM; fold <= SF_ROWS_BELOW_MEAN; fold++)
        for (int heads = SF_HEADS_SUM; heads <= SF_HEADS_MAX; heads++) {
            if (variants_spare(fold + heads, 4)) continue;
            for (int i = 0; i < 2; i++)
                columns(device, r, i ? r->logit : NULL, (enum sf_row_fold)fold,
                        (enum sf_head_fold)heads, r->mass[i]);
            compare_bits(who, r->p.shape->text, r->mass[1], r->mass[0],
                         r->masses * sizeof(float));
        }
}

static void test_left(void)
{
    for (int c = 0; c < shapes_count; c++) {
        struct rows r;
        rows_make(&r, &shapes[c]);
        attend(ref, &r, r.expected, r.out[0], r.lse[0]);
        if (!VARIANTS_STAGED && r.lanes > 0) check_device(&r, ref, "ref");
        for (int i = 0; i < count && r.lanes > 0; i++)
            if (!variants_spare(c + i, 3))
                check_device(&r, variants[i].device, variants[i].text);
        rows_free(&r);
    }
}

/* What is read is what was left: a logit that is changed by hand changes its slot's mass. */
static void test_read(void)
{
    if (VARIANTS_STAGED) SF_SKIP("the CUDA backend leaves no logits and reads none");
    for (int c = 0; c < shapes_count; c++) {
        struct rows r;
        if (shapes[c].rows[0] != 1 || shapes[c].window != 0 || shapes[c].holes_percent > 0)
            continue;
        rows_make(&r, &shapes[c]);
        for (int i = 0; i < count; i++) {
            struct sf_device *device = variants[i].device;
            int32_t slot = r.lane[0].slots - 1, size = r.p.layout.page_slots;
            size_t at = (size_t)r.lane[0].pages[slot / size] * (size_t)size +
                        (size_t)(slot % size);
            attend(device, &r, r.logit, r.out[0], r.lse[0]);
            columns(device, &r, r.logit, SF_ROWS_SUM, SF_HEADS_SUM, r.mass[0]);
            r.logit[slot] = -INFINITY;
            columns(device, &r, r.logit, SF_ROWS_SUM, SF_HEADS_SUM, r.mass[1]);
            SF_CHECK(r.mass[1][at] < r.mass[0][at]);
            r.mass[0][at] = r.mass[1][at];
            compare_bits(variants[i].text, shapes[c].text, r.mass[1], r.mass[0],
                         r.masses * sizeof(float));
        }
        rows_free(&r);
    }
}

/* ---- cost --------------------------------------------------------------------------------------
 * */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif
enum { LANES = 64, SLOTS = 1152, PAGE = 64, REPETITIONS = 31 };

/* attend and columns of LANES lanes in turns; in what = 2 and 3 with logits. */
static void cost_print(struct sf_device *device, const char *who, struct sf_attend_job attend_job,
                       struct sf_columns_job columns_job, float *logit)
{
    static struct sf_lane_job lane[2][LANES];
    double taken[4][REPETITIONS], median[4];
    for (int i = 0; i < LANES; i++) {
        lane[0][i] = lane[1][i] = attend_job.lane[i];
        lane[1][i].logit = logit + (size_t)i * 3 * SLOTS;
        lane[1][i].logit_stride = SLOTS;
    }
    for (int i = -1; i < REPETITIONS; i++)
        for (int what = 0; what < 4; what++) {
            double begin = clock_seconds(CLOCK_MONOTONIC);
            attend_job.lane = columns_job.lane = lane[what / 2];
            if (what % 2 == 0) device->k->attend(device, &attend_job);
            else device->k->columns(device, &columns_job);
            if (i >= 0) taken[what][i] = clock_seconds(CLOCK_MONOTONIC) - begin;
        }
    for (int what = 0; what < 4; what++) median[what] = 1e3 * median_of(taken[what], REPETITIONS);
    printf("  figure: decode of %d x %d slots, d 64, 3 heads, bf16, %s: attend %.2f ms, columns "
           "%.2f; attend that leaves logits %.2f, columns that reads them %.2f (medians of %d in "
           "turns)\n", LANES, SLOTS, who, median[0], median[1], median[2], median[3], REPETITIONS);
    SF_CHECK(median[3] > 0);
}

/* Not a test: figures for the best instruction set, on one and on two threads. */
static void test_cost(void)
{
    static const struct shape shape = { "cost", SF_BF16, SF_F32, PAGE, 64, 64, 3, 1,
                                        { LANES * SLOTS }, { LANES }, 0, 0, 1, 0, 1 };
    if (SANITIZED) SF_SKIP("times under a sanitizer say nothing");
    if (VARIANTS_STAGED) SF_SKIP("times with arrays carried to and fro say nothing");
    struct problem p;
    struct sf_lane_job lane[LANES];
    problem_make(&p, &shape, ref);
    size_t masses = (size_t)p.pool_pages * PAGE;
    float *logit = floats((size_t)LANES * 3 * SLOTS), *out = floats(p.elements);
    float *lse = floats(p.rows * 6), *mass = floats(masses);
    for (int32_t i = 0; i < LANES; i++)
        lane[i] = (struct sf_lane_job){ .pages = p.pages + i * (SLOTS / PAGE), .slots = SLOTS,
                                        .row_first = i, .rows = 1, .q_heads = 3 };
    struct sf_attend_job attend_job = {
        .layout = p.layout, .pool = p.pool, .page_bytes = p.page_bytes, .q = p.q,
        .q_stride = p.q_stride, .out = out, .out_stride = 6 * 64, .out_head_stride = 64,
        .out_dtype = SF_F32, .scale = 0.125f, .row_pos = p.row_pos, .lane = lane, .lanes = LANES,
        .lse = lse, .lse_stride = 6
    };
    struct sf_columns_job columns_job = {
        .layout = p.layout, .pool = p.pool, .page_bytes = p.page_bytes, .q = p.q,
        .q_stride = p.q_stride, .scale = 0.125f, .row_pos = p.row_pos, .lanes = LANES, .lse = lse,
        .lse_stride = 6, .fold = SF_ROWS_SUM, .head_fold = SF_HEADS_MEAN, .mass = mass
    };
    for (int i = count - 3; i < count - 1; i++)
        cost_print(variants[i].device, variants[i].text, attend_job, columns_job, logit);
    problem_free(&p);
    free(logit), free(out), free(lse), free(mass);
}

static const struct sf_test tests[] = {
    { "left", test_left },
#if !defined(SHEAF_EMULATED)
    { "read", test_read }, { "cost", test_cost },
#endif
    { NULL, NULL }
};

int main(int argc, char **argv)
{
    (void)test_read, (void)test_cost;
    count = variants_open(variants, &ref);
    int failed = sf_test_main("kernels_left", tests, argc, argv);
    variants_close(variants, count, ref);
    return failed;
}
