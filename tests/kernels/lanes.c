/* tests/kernels/lanes.c: the cases, and their slots in a pool of scattered pages. */
#include "tests/kernels/lanes.h"
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/dtype.h"
#include "tests/kernels/variants.h"

const struct shape shapes[] = {
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
    { "dims 128 and 72", SF_BF16, SF_F32, 32, 128, 72, 8, 2, { 70, 540 }, { 9, 3 }, 5, 0, 1, 1, 1 },
    { "value dim 1", SF_BF16, SF_F32, 16, 16, 1, 2, 1, { 50 }, { 5 }, 0, 0, 1, 0, 1 },
    { "a latent", SF_BF16, SF_F32, 16, 576, 512, 16, 1, { 600 }, { 2 }, 0, 0, 1, 0, 1 },
    { "40 heads", SF_BF16, SF_F32, 16, 16, 16, 40, 2, { 40, 530 }, { 3, 25 }, 10, 0, 1, 1, 1 },
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
    { "decode, int8", SF_INT8, SF_F32, 16, 64, 64, 3, 6, { 15, 16, 17, 31, 32, 33 },
      { 1, 1, 1, 1, 1, 1 }, 0, 0, 1, 0, 1 },
    { "decode, int8, split edges", SF_INT8, SF_BF16, 64, 128, 128, 4, 4, { 7, 512, 513, 1100 },
      { 1, 1, 1, 1 }, 5, 0, 1, 1, 1 },
    { "prefill, int8", SF_INT8, SF_F32, 16, 64, 64, 3, 3, { 40, 37, 530 }, { 40, 37, 30 }, 30, 0, 1,
      6, 1 },
    { "prefill, int8, odd dims", SF_INT8, SF_F32, 16, 7, 5, 2, 3, { 20, 1, 513 }, { 20, 1, 9 }, 0,
      0, 1, 0, 1 },
    { "int8, dims 40 and 100, window", SF_INT8, SF_F32, 32, 40, 100, 7, 2, { 100, 600 }, { 11, 1 },
      0, 20, 1, 0, 1 },
    { "int8, 40 heads", SF_INT8, SF_F16, 16, 16, 16, 40, 2, { 40, 530 }, { 3, 25 }, 10, 0, 1, 1,
      1 },
    { "int8, large logits", SF_INT8, SF_F32, 16, 64, 64, 3, 2, { 60, 520 }, { 30, 9 }, 5, 0, 300,
      1000, 1 },
    { "int8, denormals", SF_INT8, SF_F32, 16, 64, 64, 3, 2, { 60, 520 }, { 30, 9 }, 0, 0, 1, 0,
      1e-39f },
    { "no lanes", SF_BF16, SF_F32, 16, 64, 64, 3, 0, { 0 }, { 0 }, 0, 0, 1, 0, 1 },
    { "a lane without rows", SF_BF16, SF_F32, 16, 64, 64, 3, 3, { 20, 8, 30 }, { 2, 0, 30 }, 0, 0,
            1,
      0, 1 }
};
const int shapes_count = sizeof shapes / sizeof *shapes;

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

void lane_fill(const struct problem *p, unsigned char *pool, int lane, int32_t slots)
{
    const struct shape *s = p->shape;
    const struct sf_kernels *k = p->ref->k;
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
    k->kv_append(p->ref, &job);
    k->kv_drop(p->ref, &p->layout, pool, p->page_bytes, &holes);
    free(keys);
    free(values);
    free(bias);
    free(pos);
    free(hole);
}

unsigned char *pool_make(const struct problem *p)
{
    size_t bytes = (size_t)p->pool_pages * p->page_bytes;
    unsigned char *pool = aligned_alloc(64, (bytes + 63) / 64 * 64);
    for (int32_t i = 0; i < p->pool_pages; i++)
        p->ref->k->kv_clear(p->ref, &p->layout, pool + (size_t)i * p->page_bytes);
    return pool;
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
    p->logit_bound = change;
    p->bound = v * (2 * change + 64 * EPS + 2 * half_step[s->out_dtype]) + 1e-44;
    p->lse_bound = change + 64 * EPS + EPS * (logit + 8);
}

/* bf16 has 8 digits, so a query's elements change by at most 2^-8 of their size.  Those changes
 * act as a random walk of k_dim steps of at most 2^-8 |q| |k| scale: 2^-8 |q| |k| is 8 times its
 * deviation, for uniform elements.  Weights change by 2^-8 of their size, and denormal numbers are
 * taken for 0.
 *
 * int8 with VNNI: a query's elements are whole numbers of c = |q| / 32639, a weight of 1 / 65535 of
 * the greatest.  Errors are even in half a step to either side, of deviation step / sqrt(12), and
 * meet keys (values) of deviation |k| / sqrt(3): k_dim such steps times the scale 1 / sqrt(k_dim)
 * make |k| c / 6, and 512 slots sqrt(512) |v| / 65535 / 6, over weights whose sum is 1 at least.
 * Bounds are 8 times these. */
struct rounding rounding_of(const struct problem *p, const struct sf_device *device)
{
    const struct shape *s = p->shape;
    double v = (double)s->k_amplitude, logit = (double)s->amplitude * v / 256;
    if (device->isa >= SF_ISA_AVX512_VNNI && s->dtype == SF_INT8) {
        logit = 8 * (double)s->amplitude * v / 32639 / 6;
        return (struct rounding){ logit, v * (2 * logit + 8 * sqrt(512) / 65535 / 6) };
    }
    if (device->isa != SF_ISA_AVX512_BF16 || s->dtype != SF_BF16) return (struct rounding){ 0, 0 };
    return (struct rounding){ logit, v * (2 * logit + 1.0 / 256) + (double)FLT_MIN };
}

void problem_make(struct problem *p, const struct shape *s, struct sf_device *ref)
{
    memset(p, 0, sizeof *p);
    p->shape = s;
    p->ref = ref;
    p->layout = (struct sf_layout){ s->dtype, s->page_slots, s->k_dim, s->v_dim };
    p->page_bytes = sf_layout_page_bytes(&p->layout) + 64;
    int32_t pages = pages_total(s), at = 0;
    p->pool_pages = pages + 1;
    p->pages = malloc((size_t)(pages + 1) * sizeof *p->pages);
    for (int32_t i = 0; i < pages; i++) p->pages[i] = pages - i;     /* page 0 is nobody's */
    for (int i = 0; i < s->lanes; i++) {
        p->lane[i] = (struct sf_lane_job){ p->pages + at, s->slots[i], (int32_t)p->rows, s->rows[i],
                                           i % 2 * s->q_heads, s->q_heads, NULL, 0, NULL, 0 };
        at += pages_of(s, i);
        p->rows += (size_t)s->rows[i];
    }
    p->pool = pool_make(p);
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

void problem_free(struct problem *p)
{
    free(p->pool);
    free(p->pages);
    free(p->q);
    free(p->row_pos);
}
