/* tests/kernels/attend.c: attention over paged lanes equals ref within a bound on rounding, for
 * ragged lanes around page, block and split edges, holes, biases, windows, large logits, denormals,
 * odd dims and all cache types; and the bits of one (row, head) depend on nothing but itself and
 * the slots that it sees: prefill of many rows = decode row by row, one head at a time, in any
 * order of lanes, by any number of threads, whatever lies behind its causal end. */
#include <math.h>
#include <stdlib.h>
#include "base/dtype.h"
#include "tests/check.h"
#include "tests/kernels/variants.h"

#define EPS 1.2e-7

enum { LANES_MAX = 6 };

struct shape {
    const char *text;
    enum sf_dtype dtype, out_dtype;
    int32_t page_slots, k_dim, v_dim, q_heads, lanes;
    int32_t slots[LANES_MAX], rows[LANES_MAX];
    int32_t holes_percent, window;
    float amplitude, bias, k_amplitude;
};
static const struct shape shapes[] = {
    { "one slot", SF_BF16, SF_F32, 16, 64, 64, 3, 1, { 1 }, { 1 }, 0, 0, 1, 0, 1 },
    { "decode, page edges", SF_BF16, SF_F32, 16, 64, 64, 3, 6, { 15, 16, 17, 31, 32, 33 },
      { 1, 1, 1, 1, 1, 1 }, 0, 0, 1, 0, 1 },
    { "decode, split edges", SF_BF16, SF_BF16, 32, 64, 64, 3, 4, { 511, 512, 513, 1100 },
      { 1, 1, 1, 1 }, 0, 0, 1, 0, 1 },
    { "decode, f32", SF_F32, SF_F32, 16, 64, 64, 1, 4, { 511, 512, 513, 1100 }, { 1, 1, 1, 1 }, 0,
      0, 1, 0, 1 },
    { "decode, f16", SF_F16, SF_F16, 64, 128, 128, 4, 4, { 7, 512, 513, 1100 }, { 1, 1, 1, 1 }, 0,
      0, 1, 0, 1 },
    { "prefill", SF_BF16, SF_F32, 16, 64, 64, 3, 3, { 40, 37, 90 }, { 40, 37, 90 }, 0, 0, 1, 0, 1 },
    { "prefill over a split edge", SF_BF16, SF_BF16, 16, 64, 64, 3, 2, { 530, 1100 }, { 40, 19 }, 0,
      0, 1, 0, 1 },
    { "prefill, f32, 7 heads", SF_F32, SF_F32, 128, 16, 24, 7, 2, { 33, 520 }, { 33, 20 }, 0, 0, 1,
      0, 1 },
    { "prefill, f16, odd dims", SF_F16, SF_F32, 16, 7, 5, 2, 3, { 20, 1, 513 }, { 20, 1, 9 }, 0, 0,
      1, 0, 1 },
    { "dims 40 and 24", SF_BF16, SF_F32, 16, 40, 24, 5, 2, { 100, 600 }, { 11, 1 }, 0, 0, 1, 0, 1 },
    { "dims 40 and 24, f32", SF_F32, SF_F16, 16, 40, 24, 5, 2, { 100, 600 }, { 11, 1 }, 0, 0, 1, 0,
      1 },
    { "dims 128 and 100", SF_BF16, SF_F32, 16, 128, 100, 8, 2, { 65, 540 }, { 3, 1 }, 0, 0, 1, 0,
            1 },
    { "value dim 1", SF_BF16, SF_F32, 16, 16, 1, 2, 1, { 50 }, { 5 }, 0, 0, 1, 0, 1 },
    { "a latent", SF_BF16, SF_F32, 16, 576, 512, 16, 1, { 600 }, { 2 }, 0, 0, 1, 0, 1 },
    { "holes", SF_BF16, SF_F32, 16, 64, 64, 3, 4, { 40, 530, 1100, 16 }, { 12, 30, 1, 3 }, 30, 0, 1,
      0, 1 },
    { "mostly holes", SF_F32, SF_F32, 16, 16, 16, 2, 4, { 40, 530, 1100, 16 }, { 12, 30, 1, 3 }, 97,
      0, 1, 0, 1 },
    { "nothing but holes", SF_BF16, SF_F32, 16, 64, 64, 3, 2, { 40, 1030 }, { 4, 1 }, 100, 0, 1, 0,
      1 },
    { "bias", SF_BF16, SF_F32, 16, 64, 64, 3, 3, { 60, 513, 700 }, { 20, 5, 1 }, 10, 0, 1, 6, 1 },
    { "window", SF_BF16, SF_F32, 16, 64, 64, 3, 4, { 60, 513, 1100, 5 }, { 30, 30, 1, 5 }, 0, 20, 1,
      0, 1 },
    { "window over a split edge", SF_F16, SF_F32, 16, 64, 64, 2, 2, { 600, 1100 }, { 100, 1 }, 5,
      100, 1, 1, 1 },
    { "large logits", SF_F32, SF_F32, 16, 64, 64, 3, 3, { 60, 520, 1100 }, { 30, 9, 1 }, 5, 0, 1000,
      0, 1 },
    { "large logits and bias", SF_BF16, SF_F32, 16, 64, 64, 3, 2, { 60, 520 }, { 30, 9 }, 5, 0, 300,
      1000, 1 },
    { "denormals", SF_BF16, SF_F32, 16, 64, 64, 3, 2, { 60, 520 }, { 30, 9 }, 0, 0, 1, 0, 1e-39f },
    { "no lanes", SF_BF16, SF_F32, 16, 64, 64, 3, 0, { 0 }, { 0 }, 0, 0, 1, 0, 1 },
    { "a lane without rows", SF_BF16, SF_F32, 16, 64, 64, 3, 3, { 20, 8, 30 }, { 2, 0, 30 }, 0, 0,
            1,
      0, 1 }
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static struct variant variants[VARIANTS_MAX];
static struct sf_device *ref;
static int count;

/* A shape made real: all lanes' slots in one pool of scattered pages. */
struct problem {
    const struct shape *shape;
    struct sf_layout layout;
    size_t page_bytes, rows, q_stride, out_bytes, elements;
    unsigned char *pool;
    int32_t *pages;                     /* of all lanes */
    float *q;
    int32_t *row_pos;
    struct sf_lane_job lane[LANES_MAX];
    double bound, lse_bound;
};

/* Appends slots 0 .. slots - 1 of a lane, then makes holes. */
static void lane_fill(struct problem *p, unsigned char *pool, int lane, int32_t slots)
{
    const struct shape *s = p->shape;
    const struct sf_kernels *k = ref->k;
    size_t k_count = (size_t)slots * (size_t)s->k_dim, v_count = (size_t)slots * (size_t)s->v_dim;
    float *keys = malloc(k_count * sizeof *keys + 1), *values =
            malloc(v_count * sizeof *values + 1);
    float *bias = malloc((size_t)slots * sizeof *bias + 1);
    int32_t *pos = malloc((size_t)slots * sizeof *pos + 1), *hole = malloc((size_t)slots * 4 + 1);
    random_fill(keys, k_count, s->k_amplitude, 100 + (uint64_t)lane);
    random_fill(values, v_count, s->k_amplitude, 200 + (uint64_t)lane);
    random_fill(bias, (size_t)slots, s->bias, 300 + (uint64_t)lane);
    struct sf_slot_list holes = { p->lane[lane].pages, hole, 0 };
    for (int32_t i = 0; i < slots; i++) {
        pos[i] = i;
        if (random_below(100, 400 + (uint64_t)lane, (uint64_t)i) < s->holes_percent)
            hole[holes.n++] = i;
    }
    struct sf_append_lane at = { p->lane[lane].pages, 0, 0, slots, 0 };
    struct sf_append_job job = { .layout = p->layout, .pool = pool, .page_bytes = p->page_bytes,
                                 .k = keys, .v = values, .k_stride = (size_t)s->k_dim,
                                 .v_stride = (size_t)s->v_dim, .pos = pos,
                                 .bias = s->bias > 0 ? bias : NULL, .lane = &at, .lanes = 1 };
    k->kv_append(ref, &job);
    k->kv_drop(ref, &p->layout, pool, p->page_bytes, &holes);
    free(keys);
    free(values);
    free(bias);
    free(pos);
    free(hole);
}

static unsigned char *pool_make(const struct problem *p, int32_t pages)
{
    size_t bytes = (size_t)(pages + 1) * p->page_bytes;
    unsigned char *pool = aligned_alloc(64, (bytes + 63) / 64 * 64);
    for (int32_t i = 0; i <= pages; i++)
        ref->k->kv_clear(ref, &p->layout, pool + (size_t)i * p->page_bytes);
    return pool;
}

static int32_t pages_of(const struct shape *s, int lane)
{
    return (s->slots[lane] + s->page_slots - 1) / s->page_slots;
}

static int32_t pages_total(const struct shape *s)
{
    int32_t total = 0;
    for (int i = 0; i < s->lanes; i++) total += pages_of(s, i);
    return total;
}

/* Bound of an output: a logit's k_dim roundings act as a random walk on partial sums of size
 * sqrt(k_dim) |q| |k|, so EPS k_dim |q| |k| scale leaves a factor of ten, and bias and logit are
 * rounded once more; a change of all logits by d changes a weighted mean by at most 2 d max |v|.
 * The sums over 512 slots act as a random walk too, sqrt(512) / 2 EPS; exp adds 2e-7.  Denormals
 * are absolute. */
static void bounds_set(struct problem *p)
{
    const struct shape *s = p->shape;
    static const double half_step[] = { 0, 1.0 / 2048, 1.0 / 256 };
    double logit = (double)s->amplitude * (double)s->k_amplitude * s->k_dim / sqrt(s->k_dim);
    double change = EPS * (logit + (double)s->bias + 2);
    double v = (double)s->k_amplitude;
    p->bound = v * (2 * change + 64 * EPS + 2 * half_step[s->out_dtype]) + 1e-44;
    p->lse_bound = change + 64 * EPS + EPS * (logit + 8);
}

static void problem_make(struct problem *p, const struct shape *s)
{
    memset(p, 0, sizeof *p);
    p->shape = s;
    p->layout = (struct sf_layout){ s->dtype, s->page_slots, s->k_dim, s->v_dim };
    p->page_bytes = sf_layout_page_bytes(&p->layout) + 64;
    int32_t pages = pages_total(s), at = 0;
    p->pages = malloc((size_t)(pages + 1) * sizeof *p->pages);
    for (int32_t i = 0; i < pages; i++) p->pages[i] = pages - i;     /* page 0 is nobody's */
    for (int i = 0; i < s->lanes; i++) {
        p->lane[i] = (struct sf_lane_job){ p->pages + at, s->slots[i], (int32_t)p->rows, s->rows[i],
                                           i % 2 * s->q_heads, s->q_heads };
        at += pages_of(s, i);
        p->rows += (size_t)s->rows[i];
    }
    p->pool = pool_make(p, pages);
    for (int i = 0; i < s->lanes; i++) lane_fill(p, p->pool, i, s->slots[i]);
    p->q_stride = 2 * (size_t)s->q_heads * (size_t)s->k_dim + 3;
    p->q = malloc((p->rows * p->q_stride + 1) * sizeof *p->q);
    random_fill(p->q, p->rows * p->q_stride, s->amplitude, 500);
    p->row_pos = malloc((p->rows + 1) * sizeof *p->row_pos);
    for (int i = 0; i < s->lanes; i++)
        for (int32_t r = 0; r < s->rows[i]; r++)
            p->row_pos[p->lane[i].row_first + r] = s->slots[i] - s->rows[i] + r;
    p->elements = p->rows * 2 * (size_t)s->q_heads * (size_t)(s->v_dim + 2);
    p->out_bytes = p->elements * sf_dtype_bytes(s->out_dtype);
    bounds_set(p);
}

static void problem_free(struct problem *p)
{
    free(p->pool);
    free(p->pages);
    free(p->q);
    free(p->row_pos);
}

struct result {
    unsigned char *out;
    float *lse;
};

static struct result result_make(const struct problem *p)
{
    struct result result = { malloc(p->out_bytes + 1), malloc((p->elements + 1) * sizeof(float)) };
    memset(result.out, 0x11, p->out_bytes);
    memset(result.lse, 0x11, p->elements * sizeof(float));
    return result;
}

static void result_free(struct result *result)
{
    free(result->out);
    free(result->lse);
}

/* Heads lie v_dim + 2 apart in the output, so that a write behind a head shows. */
static void attend(struct sf_device *device, const struct problem *p, const unsigned char *pool,
                   const struct sf_lane_job *lane, int32_t lanes, struct result *result)
{
    const struct shape *s = p->shape;
    struct sf_attend_job job = {
        .layout = p->layout, .pool = pool, .page_bytes = p->page_bytes, .q = p->q,
        .q_stride = p->q_stride, .out = result->out,
        .out_stride = 2 * (size_t)s->q_heads * (size_t)(s->v_dim + 2),
        .out_head_stride = (size_t)s->v_dim + 2, .out_dtype = s->out_dtype,
        .scale = 1 / sqrtf((float)s->k_dim), .window = s->window, .row_pos = p->row_pos,
        .lane = lane, .lanes = lanes, .lse = result->lse, .lse_stride = 2 * (size_t)s->q_heads
    };
    device->k->attend(device, &job);
}

static void test_against_ref(void)
{
    for (int c = 0; c < SHAPES; c++) {
        struct problem p;
        problem_make(&p, &shapes[c]);
        struct result expected = result_make(&p);
        attend(ref, &p, p.pool, p.lane, shapes[c].lanes, &expected);
        float *wide = malloc((2 * p.elements + 1) * sizeof *wide);
        for (int i = 0; i < count; i++) {
            struct result result = result_make(&p);
            attend(variants[i].device, &p, p.pool, p.lane, shapes[c].lanes, &result);
            sf_to_f32(shapes[c].out_dtype, result.out, wide, p.elements);
            sf_to_f32(shapes[c].out_dtype, expected.out, wide + p.elements, p.elements);
            compare(variants[i].text, shapes[c].text, wide, wide + p.elements, p.rows,
                    p.rows ? p.elements / p.rows : 0, p.bound);
            compare(variants[i].text, shapes[c].text, result.lse, expected.lse, p.rows,
                    2 * (size_t)shapes[c].q_heads, p.lse_bound);
            result_free(&result);
        }
        free(wide);
        result_free(&expected);
        problem_free(&p);
    }
}

/* The same work as many small jobs: every row and every head by itself, as decode would have done
 * it when the row was the last.  Returns the number of jobs. */
static int32_t jobs_split(const struct problem *p, int reversed, struct sf_lane_job *jobs)
{
    int32_t n = 0;
    for (int i = 0; i < p->shape->lanes; i++)
        for (int32_t r = 0; r < p->lane[i].rows; r++)
            for (int32_t h = 0; h < p->lane[i].q_heads; h++) {
                const struct sf_lane_job *lane = &p->lane[i];
                jobs[n++] = (struct sf_lane_job){ lane->pages, lane->slots - lane->rows + r + 1,
                                                  lane->row_first + r, 1, lane->q_first + h, 1 };
            }
    for (int32_t i = 0; reversed && i < n / 2; i++) {
        struct sf_lane_job job = jobs[i];
        jobs[i] = jobs[n - 1 - i];
        jobs[n - 1 - i] = job;
    }
    return n;
}

static void test_row_alone(void)
{
    for (int c = 0; c < SHAPES; c++) {
        struct problem p;
        problem_make(&p, &shapes[c]);
        struct sf_lane_job *jobs =
            malloc((p.rows * 2 * (size_t)shapes[c].q_heads + 1) * sizeof *jobs);
        struct result standard = result_make(&p);
        for (int i = 0; i < count; i++) {
            struct sf_device *device = variants[i].device;
            if (device->threads == 1)
                attend(device, &p, p.pool, p.lane, shapes[c].lanes, &standard);
            for (int turn = 0; turn < 3; turn++) {
                struct result result = result_make(&p);
                if (turn == 0) {
                    attend(device, &p, p.pool, p.lane, shapes[c].lanes, &result);
                } else {
                    int32_t n = jobs_split(&p, turn == 2, jobs);
                    attend(device, &p, p.pool, jobs, n, &result);
                }
                compare_bits(variants[i].text, shapes[c].text, result.out, standard.out,
                             p.out_bytes);
                compare_bits(variants[i].text, shapes[c].text, result.lse, standard.lse,
                             p.elements * sizeof(float));
                result_free(&result);
            }
        }
        free(jobs);
        result_free(&standard);
        problem_free(&p);
    }
}

/* Rows of a prefill against decode on a cache that ends with the row: slots behind it were never
 * written there. */
static void test_causal_end(void)
{
    for (int c = 0; c < SHAPES; c++) {
        struct problem p;
        problem_make(&p, &shapes[c]);
        for (int i = 0; i < count; i += 3) {
            struct sf_device *device = variants[i].device;
            struct result whole = result_make(&p), alone = result_make(&p);
            attend(device, &p, p.pool, p.lane, shapes[c].lanes, &whole);
            for (int lane = 0; lane < shapes[c].lanes; lane++)
                for (int32_t r = 0; r < p.lane[lane].rows; r += 7) {
                    struct sf_lane_job job = p.lane[lane];
                    job.slots += r + 1 - job.rows;
                    job.row_first += r;
                    job.rows = 1;
                    unsigned char *pool = pool_make(&p, pages_total(&shapes[c]));
                    lane_fill(&p, pool, lane, job.slots);
                    attend(device, &p, pool, &job, 1, &alone);
                    size_t row_bytes = p.out_bytes / p.rows, head = row_bytes / 2;
                    size_t at = (size_t)job.row_first * row_bytes + (job.q_first ? head : 0);
                    compare_bits(variants[i].text, shapes[c].text, alone.out + at, whole.out + at,
                                 head);
                    free(pool);
                }
            result_free(&whole);
            result_free(&alone);
        }
        problem_free(&p);
    }
}

/* A row that sees nothing: 0 and -inf; lse may be NULL. */
static void test_nothing_seen(void)
{
    struct problem p;
    for (int c = 0; c < SHAPES; c++)
        if (shapes[c].holes_percent == 100) {
            problem_make(&p, &shapes[c]);
            for (int i = -1; i < count; i++) {
                struct result result = result_make(&p);
                attend(i < 0 ? ref : variants[i].device, &p, p.pool, p.lane, shapes[c].lanes,
                       &result);
                SF_CHECK_NEAR(((float *)(void *)result.out)[0], 0, 0);
                SF_CHECK(result.lse[0] == -INFINITY);
                free(result.lse);
                result.lse = NULL;
                attend(i < 0 ? ref : variants[i].device, &p, p.pool, p.lane, shapes[c].lanes,
                       &result);
                result_free(&result);
            }
            problem_free(&p);
        }
}

static const struct sf_test tests[] = {
    { "against ref", test_against_ref }, { "row alone", test_row_alone },
    { "causal end", test_causal_end }, { "nothing seen", test_nothing_seen },
    { NULL, NULL }
};

int main(int argc, char **argv)
{
    count = variants_open(variants, &ref);
    int failed = sf_test_main("kernels_attend", tests, argc, argv);
    variants_close(variants, count, ref);
    return failed;
}
