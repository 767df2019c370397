/* tests/kernels/attend.c: attention over paged lanes equals ref within a bound on rounding, for
 * ragged lanes around page, block and split edges, holes, biases, windows, large logits, denormals,
 * odd dims, all cache types and what is not finite; and the bits of one (row, head) depend on
 * nothing but itself and the slots that it sees: prefill of many rows = decode row by row, one head
 * at a time, in any order of lanes, by any number of threads, whatever lies behind its causal end;
 * and of CUDA both paths of the tensor cores' kernel, with and without asynchronous copies, give
 * the same.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include "base/dtype.h"
#include "tests/check.h"
#include "tests/kernels/lanes.h"
#include "tests/kernels/staged.h"
#include "tests/kernels/variants.h"

static struct variant variants[VARIANTS_MAX];
static struct sf_device *ref;
static int count;

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
    for (int c = 0; c < shapes_count; c++) {
        struct problem p;
        problem_make(&p, &shapes[c], ref);
        struct result expected = result_make(&p);
        attend(ref, &p, p.pool, p.lane, shapes[c].lanes, &expected);
        float *wide = malloc((2 * p.elements + 1) * sizeof *wide);
        for (int i = 0; i < count; i++) {
            struct result result = result_make(&p);
            attend(variants[i].device, &p, p.pool, p.lane, shapes[c].lanes, &result);
            sf_to_f32(shapes[c].out_dtype, result.out, wide, p.elements);
            sf_to_f32(shapes[c].out_dtype, expected.out, wide + p.elements, p.elements);
            struct rounding rounding = rounding_of(&p, variants[i].device);
            compare(variants[i].text, shapes[c].text, wide, wide + p.elements, p.rows,
                    p.rows ? p.elements / p.rows : 0, p.bound + rounding.out);
            compare(variants[i].text, shapes[c].text, result.lse, expected.lse, p.rows,
                    2 * (size_t)shapes[c].q_heads, p.lse_bound + rounding.logit);
            result_free(&result);
        }
        free(wide);
        result_free(&expected);
        problem_free(&p);
    }
}

/* Queries that are bf16 already, and a scale that is a power of two: nothing is rounded before the
 * products, so lse is as near to ref in products of bf16 as in f32, and outputs by the weights. */
static void test_queries_in_bf16(void)
{
    for (int c = 0; c < shapes_count; c++) {
        struct problem p;
        int whole;
        if (shapes[c].dtype != SF_BF16 || frexp(sqrt(shapes[c].k_dim), &whole) != 0.5) continue;
        problem_make(&p, &shapes[c], ref);
        for (size_t i = 0; i < p.rows * p.q_stride; i++)
            p.q[i] = sf_bf16_to_f32(sf_f32_to_bf16(p.q[i]));
        struct result expected = result_make(&p);
        attend(ref, &p, p.pool, p.lane, shapes[c].lanes, &expected);
        float *wide = malloc((2 * p.elements + 1) * sizeof *wide);
        sf_to_f32(shapes[c].out_dtype, expected.out, wide + p.elements, p.elements);
        for (int i = 0; i < count; i++) {
            struct result result = result_make(&p);
            attend(variants[i].device, &p, p.pool, p.lane, shapes[c].lanes, &result);
            sf_to_f32(shapes[c].out_dtype, result.out, wide, p.elements);
            double weights = rounding_of(&p, variants[i].device).out > 0
                                 ? (double)shapes[c].k_amplitude / 256 + (double)FLT_MIN : 0;
            compare(variants[i].text, shapes[c].text, wide, wide + p.elements, p.rows,
                    p.rows ? p.elements / p.rows : 0, p.bound + weights);
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
                                                  lane->row_first + r, 1, lane->q_first + h, 1,
                                                  NULL, 0, NULL, 0 };
            }
    for (int32_t i = 0; reversed && i < n / 2; i++) {
        struct sf_lane_job job = jobs[i];
        jobs[i] = jobs[n - 1 - i];
        jobs[n - 1 - i] = job;
    }
    return n;
}

/* The lanes on the variant have the very bits of `standard`. */
static void check_bits(const struct variant *variant, const struct problem *p,
                       const struct sf_lane_job *lane, int32_t lanes,
                       const struct result *standard)
{
    struct result result = result_make(p);
    attend(variant->device, p, p->pool, lane, lanes, &result);
    compare_bits(variant->text, p->shape->text, result.out, standard->out, p->out_bytes);
    compare_bits(variant->text, p->shape->text, result.lse, standard->lse,
                 p->elements * sizeof(float));
    result_free(&result);
}

static void test_row_alone(void)
{
    for (int c = 0; c < shapes_count; c++) {
        struct problem p;
        problem_make(&p, &shapes[c], ref);
        struct sf_lane_job *jobs =
            malloc((p.rows * 2 * (size_t)shapes[c].q_heads + 1) * sizeof *jobs);
        struct result standard = result_make(&p);
        for (int i = 0; i < count; i++) {
            struct sf_device *device = variants[i].device;
            if (device->threads == 1)
                attend(device, &p, p.pool, p.lane, shapes[c].lanes, &standard);
            for (int turn = 0; turn < 3; turn++) {
                if (turn > 0 && variants_spare(c + turn, 3)) continue;
                if (turn == 0)
                    check_bits(&variants[i], &p, p.lane, shapes[c].lanes, &standard);
                else
                    check_bits(&variants[i], &p, jobs, jobs_split(&p, turn == 2, jobs), &standard);
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
    for (int c = 0; c < shapes_count; c++) {
        struct problem p;
        problem_make(&p, &shapes[c], ref);
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
                    unsigned char *pool = pool_make(&p);
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
    for (int c = 0; c < shapes_count; c++)
        if (shapes[c].holes_percent == 100) {
            problem_make(&p, &shapes[c], ref);
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

/* The path of the tensor cores' kernel that runs do not take, and so no other test, against the one
 * that they take: the same bits, of the whole job and of its rows one by one. */
static void test_paths(void)
{
    if (!VARIANTS_STAGED) SF_SKIP("CUDA's alone");
    for (int c = 0; c < shapes_count; c++) {
        struct problem p;
        if (shapes[c].dtype != SF_BF16 && shapes[c].dtype != SF_F16) continue;
        problem_make(&p, &shapes[c], ref);
        struct sf_lane_job *jobs =
            malloc((p.rows * 2 * (size_t)shapes[c].q_heads + 1) * sizeof *jobs);
        for (int i = 0; i < count; i++) {
            struct sf_device *device = variants[i].device;
            int *async_copy = staged_symbol(device, "sf_cuda_async_copy");
            struct result standard = result_make(&p);
            SF_ASSERT(async_copy != NULL);
            attend(device, &p, p.pool, p.lane, shapes[c].lanes, &standard);
            *async_copy = !*async_copy;
            for (int turn = 0; turn < 2; turn++) {
                if (turn > 0 && variants_spare(c, 3)) continue;
                if (turn == 0)
                    check_bits(&variants[i], &p, p.lane, shapes[c].lanes, &standard);
                else
                    check_bits(&variants[i], &p, jobs, jobs_split(&p, 0, jobs), &standard);
            }
            *async_copy = !*async_copy;
            result_free(&standard);
        }
        free(jobs);
        problem_free(&p);
    }
}

static float *scale_of(const struct problem *p, int lane, int32_t slot, size_t offset)
{
    unsigned char *page = p->pool + (size_t)p->lane[lane].pages[slot / p->layout.page_slots] *
                                        p->page_bytes;
    return (float *)(void *)(page + offset) + slot % p->layout.page_slots;
}

/* A query, the scale of a key and that of a value that are not finite make NaNs of all that meets
 * them, and of nothing else: all instruction sets as the first one.  (What ref makes of them is 0
 * for a head that finds no greatest logit, and of a GPU nothing is promised.) */
static void test_not_finite(void)
{
    if (VARIANTS_STAGED) SF_SKIP("the CPU's alone");
    int c = 0;
    struct problem p;
    while (c < shapes_count && strcmp(shapes[c].text, "decode, int8") != 0) c++;
    SF_ASSERT(c < shapes_count && shapes[c].lanes == 6);
    problem_make(&p, &shapes[c], ref);
    size_t head = (size_t)shapes[c].k_dim;
    p.q[4 * p.q_stride + 5] = NAN;      /* of lane 4's first head, of lane 1's second */
    p.q[p.q_stride + ((size_t)p.lane[1].q_first + 1) * head + 7] = INFINITY;
    *scale_of(&p, 2, 3, sf_layout_k_scale_offset(&p.layout)) = NAN;
    *scale_of(&p, 3, 4, sf_layout_v_scale_offset(&p.layout)) = NAN;
    struct result expected = result_make(&p), result = result_make(&p);
    attend(variants[0].device, &p, p.pool, p.lane, shapes[c].lanes, &expected);
    const float *out = (const float *)(const void *)expected.out;
    size_t row = p.elements / p.rows, width = (size_t)shapes[c].v_dim + 2;
    size_t heads = 2 * (size_t)shapes[c].q_heads, nans = 0;
    for (size_t i = 0; i < p.rows * heads; i++)
        nans += isnan(out[i / heads * row + i % heads * width]) != 0;
    SF_CHECK_INT((int)nans, 1 + 1 + 3 + 3);
    for (int i = 0; i < count; i++) {
        attend(variants[i].device, &p, p.pool, p.lane, shapes[c].lanes, &result);
        struct rounding rounding = rounding_of(&p, variants[i].device);
        compare(variants[i].text, "not finite", (float *)(void *)result.out, out, p.rows, row,
                2 * p.bound + rounding.out);
        compare(variants[i].text, "not finite", result.lse, expected.lse, p.rows, heads,
                2 * p.lse_bound + rounding.logit);
    }
    result_free(&result);
    result_free(&expected);
    problem_free(&p);
}

static const struct sf_test tests[] = {
    { "against ref", test_against_ref }, { "queries in bf16", test_queries_in_bf16 },
    { "row alone", test_row_alone },
    { "causal end", test_causal_end }, { "nothing seen", test_nothing_seen },
    { "not finite", test_not_finite }, { "paths", test_paths },
    { NULL, NULL }
};

int main(int argc, char **argv)
{
    count = variants_open(variants, &ref);
    int failed = sf_test_main("kernels_attend", tests, argc, argv);
    variants_close(variants, count, ref);
    return failed;
}
