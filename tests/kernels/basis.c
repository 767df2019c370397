/* tests/kernels/basis.c: a lane with a part whose slots are rows of a basis is attended like one
 * f32 lane of the keys and values that those rows stand for, which this file works out in f64;
 * slots of the part are read like that too; and the bits of a row depend on nothing but itself, not
 * on lanes that share the basis either, each with factors and values of its own.
 * Of a part with picks the other slots are holes of that lane. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "tests/check.h"
#include "tests/kernels/variants.h"

enum { PAGE = 32, Q_HEADS = 3, TWINS = 4, ROWS_MAX = 12, DIM_MAX = 144 };
static const struct mixture {
    const char *text;
    enum sf_dtype own, part;            /* of the raw slots; of basis and factors */
    int32_t k_dim, v_dim, rope_dim, rank_k, rank_v, own_slots, slots, rows;
    int32_t holes, window;
    int32_t chunk, chunks;              /* picks; 0: none */
} mixtures[] = {
    { "f32, one split", SF_F32, SF_F32, 64, 64, 64, 24, 40, 5, 300, 1, 0, 0, 0, 0 },
    { "f16, over split edges", SF_F16, SF_F16, 32, 48, 32, 70, 17, 20, 1100, 4, 10, 0, 0, 0 },
    { "bf16, an odd rank", SF_BF16, SF_BF16, 40, 40, 24, 9, 33, 12, 600, 12, 5, 0, 0, 0 },
    { "no rotation, ranks above the dims", SF_F32, SF_F32, 16, 16, 0, 130, 65, 3, 129, 3, 0, 0, 0,
      0 },
    { "a window", SF_F16, SF_F16, 64, 64, 64, 32, 32, 30, 500, 5, 3, 200, 0, 0 },
    { "one slot", SF_F32, SF_BF16, 16, 24, 16, 1, 1, 1, 1, 1, 0, 0, 0, 0 },
    { "all holes but the lane's own", SF_F32, SF_F32, 16, 16, 16, 4, 4, 9, 50, 2, 100, 0, 0, 0 },
    { "f16 picks of 8, over split edges", SF_F16, SF_F16, 64, 64, 64, 96, 144, 20, 3000, 2, 0, 0, 8,
      130 },
    { "bf16 picks of 16, an odd rank", SF_BF16, SF_BF16, 40, 40, 24, 9, 33, 12, 600, 12, 0, 0, 16,
      20 },
    { "f32 picks of 5, holes among them", SF_F32, SF_F32, 16, 24, 16, 70, 12, 3, 700, 3, 10, 0, 5,
      27 },
    { "bf16 picks of 3, a window", SF_BF16, SF_BF16, 32, 32, 32, 66, 40, 30, 500, 5, 3, 200, 3,
      60 },
    { "wide values, picks of 8", SF_F16, SF_F32, 32, 32, 32, 33, 600, 5, 500, 3, 0, 0, 8,
      40 },
    { "f16, an odd rank, wide keys", SF_F16, SF_F16, 144, 32, 64, 37, 20, 4, 130, 3, 5, 0, 0, 0 },
    { "bf16, wide keys, picks of 8", SF_BF16, SF_BF16, 112, 32, 112, 50, 20, 4, 200, 3, 0, 0, 8,
      9 },
    { "f16 without tensor cores", SF_F16, SF_F16, 72, 24, 72, 20, 21, 6, 100, 2, 3, 0, 0, 0 },
    { "bf16 picks without them", SF_BF16, SF_BF16, 36, 24, 36, 20, 21, 6, 100, 2, 3, 0, 7, 5 },
    { "one pick", SF_F32, SF_F32, 16, 16, 16, 4, 4, 1, 50, 1, 0, 0, 1, 1 },
    { "values as they are", SF_F32, SF_F32, 64, 64, 64, 24, 0, 5, 300, 1, 0, 0, 0, 0 },
    { "values in f16, over split edges", SF_F16, SF_BF16, 32, 24, 32, 9, 0, 20, 1100, 4, 10, 0,
      0, 0 },
    { "values in bf16, a window", SF_BF16, SF_F32, 40, 72, 24, 33, 0, 30, 500, 5, 3, 200, 0, 0 },
    { "one value as it is", SF_F32, SF_F16, 16, 16, 0, 5, 0, 1, 1, 1, 0, 0, 0, 0 },
    { "wide", SF_F16, SF_F16, 136, 72, 128, 20, 24, 2, 70, 3, 0, 0, 0, 0 },
    { "wide pairs, ranks of whole rows", SF_BF16, SF_BF16, 80, 136, 80, 32, 48, 2, 40, 1, 5, 0, 0,
      0 },
};
enum { MIXTURES = sizeof mixtures / sizeof *mixtures };

static struct variant variants[VARIANTS_MAX];
static struct sf_device *ref;
static int count;

struct problem {
    const struct mixture *m;
    struct sf_layout own, basis, factors, values, flat; /* values: where rank_v is 0 */
    size_t page_bytes;
    unsigned char *pool;
    int32_t *pick, picks;
    int32_t pages, *own_page, *basis_page, *factor_page, *value_page, *flat_page;
    int32_t row_pos[ROWS_MAX];
    float *turns, *q, *flat_k, *flat_v; /* of the part's slots, rebuilt */
    struct sf_lane_factors of;
    struct sf_lane_part part;
    struct sf_lane_job lane, alike;
    struct sf_lane_factors twin_of[TWINS];      /* of lanes that share the basis */
    struct sf_lane_part twin_part[TWINS];
};

/* Random rows as slots 0 .. n - 1 of some pages. */
static void append(struct problem *p, const struct sf_layout *layout, const int32_t *pages,
                   int32_t n, int32_t pos_first, int32_t k_cols, int32_t v_cols, float size,
                   uint64_t stream)
{
    size_t k_dim = (size_t)layout->k_dim, v_dim = (size_t)layout->v_dim, room = (size_t)n + 1;
    float *k = calloc(room * k_dim, 4), *v = calloc(room * v_dim, 4);
    int32_t *pos = malloc(room * 4);
    for (int32_t i = 0; i < n; i++) {
        random_fill(k + (size_t)i * k_dim, (size_t)k_cols, size, stream + 2 * (uint64_t)i);
        random_fill(v + (size_t)i * v_dim, (size_t)v_cols, size, stream + 2 * (uint64_t)i + 1);
        pos[i] = pos_first + i;
    }
    struct sf_append_lane at = { pages, 0, 0, n, 0 };
    struct sf_append_job job = { *layout, p->pool, p->page_bytes, k, v, k_dim, v_dim, pos, NULL,
                                 &at, 1 };
    ref->k->kv_append(ref, &job);
    free(k), free(v), free(pos);
}

static void read(const struct problem *p, const struct sf_layout *layout, const int32_t *pages,
                 int32_t n, float *k, float *v)
{
    int32_t *slot = malloc(((size_t)n + 1) * 4);
    for (int32_t i = 0; i < n; i++) slot[i] = i;
    struct sf_slot_list list = { pages, slot, n };
    ref->k->kv_read(ref, layout, p->pool, p->page_bytes, &list, k, v, NULL, NULL);
    free(slot);
}

/* What the part's slots stand for, in f64, from the factors as they are stored. */
static void rebuild(struct problem *p)
{
    const struct mixture *m = p->m;
    int32_t most = m->rank_k > m->rank_v ? m->rank_k : m->rank_v, half = m->rope_dim / 2;
    size_t a_dim = (size_t)p->basis.k_dim, k_dim = (size_t)m->k_dim, v_dim = (size_t)m->v_dim;
    float *a_k = malloc((size_t)m->slots * a_dim * 4);
    float *a_v = malloc((size_t)(m->slots * m->rank_v) * 4);
    float *b_k = malloc((size_t)most * k_dim * 4), *b_v = malloc((size_t)most * v_dim * 4);
    read(p, &p->basis, p->basis_page, m->slots, a_k, a_v);
    read(p, &p->factors, p->factor_page, most, b_k, b_v);
    for (size_t j = 0; j < (size_t)m->slots; j++) {
        double key[DIM_MAX] = { 0 }, value;
        for (size_t e = 0; e < k_dim; e++)
            for (size_t i = 0; i < (size_t)m->rank_k; i++)
                key[e] += (double)a_k[j * a_dim + i] * (double)b_k[i * k_dim + e];
        for (int32_t e = 0; e < m->k_dim; e++) {
            const float *turn = p->turns + (7 + j) * (size_t)m->rope_dim;
            double turned = key[e];
            if (e < half)
                turned = key[e] * (double)turn[e] - key[e + half] * (double)turn[e + half];
            else if (e < m->rope_dim)
                turned = key[e] * (double)turn[e - half] + key[e - half] * (double)turn[e];
            p->flat_k[j * k_dim + (size_t)e] = (float)turned;
        }
        if (m->rank_v == 0) continue;
        for (size_t e = 0; e < v_dim; e++) {
            value = 0;
            for (size_t i = 0; i < (size_t)m->rank_v; i++)
                value += (double)a_v[j * (size_t)m->rank_v + i] * (double)b_v[i * v_dim + e];
            p->flat_v[j * v_dim + e] = (float)value;
        }
    }
    if (m->rank_v == 0) read(p, &p->values, p->value_page, m->slots, NULL, p->flat_v);
    free(a_k), free(a_v), free(b_k), free(b_v);
}

static int32_t pages_of(int32_t slots) { return (slots + PAGE - 1) / PAGE; }

enum { VALUE_PAGE = 16 };               /* slots */

static int32_t *take_pages(struct problem *p, const struct sf_layout *layout, int32_t slots)
{
    int32_t n = (slots + layout->page_slots - 1) / layout->page_slots;
    int32_t *page = malloc(((size_t)n + 1) * sizeof *page);
    for (int32_t i = 0; i < n; i++) {
        page[i] = --p->pages;
        ref->k->kv_clear(ref, layout, p->pool + (size_t)page[i] * p->page_bytes);
    }
    return page;
}

/* The part's slots first, then the lane's own, side by side. */
static void flatten(struct problem *p)
{
    const struct mixture *m = p->m;
    int32_t total = m->slots + m->own_slots, *pos = malloc((size_t)total * 4);
    float *k = malloc((size_t)(total * m->k_dim) * 4), *v = malloc((size_t)(total * m->v_dim) * 4);
    memcpy(k, p->flat_k, (size_t)(m->slots * m->k_dim) * 4);
    memcpy(v, p->flat_v, (size_t)(m->slots * m->v_dim) * 4);
    read(p, &p->own, p->own_page, m->own_slots, k + (size_t)(m->slots * m->k_dim),
         v + (size_t)(m->slots * m->v_dim));
    for (int32_t i = 0; i < total; i++) pos[i] = 7 + i;
    struct sf_append_lane at = { p->flat_page, 0, 0, total, 0 };
    struct sf_append_job job = { p->flat, p->pool, p->page_bytes, k, v, (size_t)m->k_dim,
                                 (size_t)m->v_dim, pos, NULL, &at, 1 };
    ref->k->kv_append(ref, &job);
    free(k), free(v), free(pos);
}

static void drop(struct problem *p)
{
    int32_t *hole = malloc(((size_t)p->m->slots + 1) * 4), n = 0;
    for (int32_t i = 0; i < p->m->slots; i++)
        if (random_below(100, 77, (uint64_t)i) < p->m->holes) hole[n++] = i;
    struct sf_slot_list basis = { p->basis_page, hole, n }, flat = { p->flat_page, hole, n };
    ref->k->kv_drop(ref, &p->basis, p->pool, p->page_bytes, &basis);
    ref->k->kv_drop(ref, &p->flat, p->pool, p->page_bytes, &flat);
    free(hole);
}

/* Some chunks in some order, with gaps in the list; what is not picked goes from the flat lane. */
static void pick(struct problem *p)
{
    const struct mixture *m = p->m;
    int32_t *hole = malloc(((size_t)m->slots + 1) * 4), n = 0, all = m->slots / m->chunk;
    uint8_t *picked = calloc((size_t)m->slots, 1);
    p->pick = malloc((size_t)(m->chunks * (m->chunk + 1)) * 4);
    for (int32_t i = 0, step = all / m->chunks; i < m->chunks; i++) {
        int32_t chunk = (i * step + 7) % all;   /* no two alike: step * chunks <= all */
        for (int32_t j = 0; j < m->chunk; j++) {
            p->pick[p->picks++] = chunk * m->chunk + j;
            picked[chunk * m->chunk + j] = 1;
        }
        if (i % 5 == 3) p->pick[p->picks++] = -1;
    }
    for (int32_t i = 0; i < m->slots; i++)
        if (!picked[i]) hole[n++] = i;
    struct sf_slot_list flat = { p->flat_page, hole, n };
    ref->k->kv_drop(ref, &p->flat, p->pool, p->page_bytes, &flat);
    p->part.pick = p->pick;
    p->part.picks = p->picks;
    free(hole), free(picked);
}

static void problem_make(struct problem *p, const struct mixture *m)
{
    int32_t most = m->rank_k > m->rank_v ? m->rank_k : m->rank_v;
    memset(p, 0, sizeof *p);
    p->m = m;
    p->own = (struct sf_layout){ m->own, PAGE, m->k_dim, m->v_dim };
    p->basis = (struct sf_layout){ m->part, PAGE, (m->rank_k + 1) / 2 * 2, m->rank_v };
    p->factors = (struct sf_layout){ m->part, PAGE, m->k_dim, m->rank_v > 0 ? m->v_dim : 0 };
    p->values = (struct sf_layout){ m->own, VALUE_PAGE, 0, m->v_dim };
    p->flat = (struct sf_layout){ SF_F32, PAGE, m->k_dim, m->v_dim };
    p->page_bytes = sf_layout_page_bytes(&p->flat);
    if (sf_layout_page_bytes(&p->basis) > p->page_bytes)
        p->page_bytes = sf_layout_page_bytes(&p->basis);
    p->page_bytes = (p->page_bytes + 63) / 64 * 64;
    p->pages = 2 * pages_of(m->slots) + 2 * pages_of(m->own_slots) + pages_of(most) + 5 +
               m->slots / VALUE_PAGE;
    p->pages += TWINS * (pages_of(most) + m->slots / VALUE_PAGE + 1);
    p->pool = aligned_alloc(64, (size_t)p->pages * p->page_bytes);
    p->own_page = take_pages(p, &p->own, m->own_slots);
    p->basis_page = take_pages(p, &p->basis, m->slots);
    p->factor_page = take_pages(p, &p->factors, most);
    p->value_page = take_pages(p, &p->values, m->slots);
    p->flat_page = take_pages(p, &p->flat, m->slots + m->own_slots);
    p->turns = malloc((size_t)((m->slots + 8) * (m->rope_dim + 1)) * 4);
    random_fill(p->turns, (size_t)((m->slots + 8) * m->rope_dim), 1, 5);
    p->q = malloc((size_t)(ROWS_MAX * Q_HEADS * m->k_dim) * 4);
    queries_fill(p->q, (size_t)(ROWS_MAX * Q_HEADS * m->k_dim), 1, 6);
    p->flat_k = malloc((size_t)(m->slots * m->k_dim) * 4);
    p->flat_v = malloc((size_t)(m->slots * m->v_dim) * 4);
    append(p, &p->own, p->own_page, m->own_slots, 7 + m->slots, m->k_dim, m->v_dim, 1, 1000);
    append(p, &p->basis, p->basis_page, m->slots, 7, m->rank_k, m->rank_v, 1, 90000);
    append(p, &p->factors, p->factor_page, most, 0, m->k_dim, p->factors.v_dim,
           1 / sqrtf((float)most), 60000);
    append(p, &p->values, p->value_page, m->slots, 0, 0, m->v_dim, 1, 30000);
    p->of = (struct sf_lane_factors){ &p->factors, p->factor_page, m->rank_k, m->rank_v, p->turns,
                                      m->rope_dim, &p->values, p->value_page };
    p->part = (struct sf_lane_part){ &p->basis, p->basis_page, m->slots, &p->of, NULL, 0 };
    rebuild(p);
    flatten(p);
    drop(p);
    if (m->chunk > 0) pick(p);
    p->lane = (struct sf_lane_job){ .pages = p->own_page, .slots = m->own_slots, .rows = m->rows,
                                    .q_heads = Q_HEADS, .part = &p->part, .parts = 1 };
    p->alike = (struct sf_lane_job){ .pages = p->flat_page, .slots = m->slots + m->own_slots,
                                     .rows = m->rows, .q_heads = Q_HEADS };
    for (int32_t r = 0; r < m->rows; r++)
        p->row_pos[r] = 7 + m->slots + m->own_slots - m->rows + r;
}

/* Lanes with the problem's basis and factors and values of their own. */
static void twins_make(struct problem *p)
{
    const struct mixture *m = p->m;
    int32_t most = m->rank_k > m->rank_v ? m->rank_k : m->rank_v;
    for (int t = 0; t < TWINS; t++) {
        int32_t *factor_page = take_pages(p, &p->factors, most);
        int32_t *value_page = take_pages(p, &p->values, m->slots);
        append(p, &p->factors, factor_page, most, 0, m->k_dim, p->factors.v_dim,
               1 / sqrtf((float)most), 160000 + 20000 * (uint64_t)t);
        append(p, &p->values, value_page, m->slots, 0, 0, m->v_dim, 1, 330000 + 5000 * (uint64_t)t);
        p->twin_of[t] = p->of;
        p->twin_of[t].pages = factor_page;
        p->twin_of[t].value_pages = value_page;
        p->twin_part[t] = p->part;
        p->twin_part[t].factors = &p->twin_of[t];
    }
}

static void twins_free(struct problem *p)
{
    for (int t = 0; t < TWINS; t++) {
        free((void *)(uintptr_t)p->twin_of[t].pages);
        free((void *)(uintptr_t)p->twin_of[t].value_pages);
    }
}

static void problem_free(struct problem *p)
{
    free(p->pool), free(p->own_page), free(p->basis_page), free(p->factor_page);
    free(p->value_page), free(p->flat_page), free(p->turns), free(p->q), free(p->flat_k);
    free(p->flat_v), free(p->pick);
}

struct result { float out[ROWS_MAX * Q_HEADS * DIM_MAX], lse[ROWS_MAX * Q_HEADS]; };

static void attend(struct sf_device *device, const struct problem *p,
                   const struct sf_layout *layout, const struct sf_lane_job *lane, int32_t lanes,
                   struct result *result)
{
    const struct mixture *m = p->m;
    struct sf_attend_job job = {
        .layout = *layout, .pool = p->pool, .page_bytes = p->page_bytes, .q = p->q,
        .q_stride = (size_t)(Q_HEADS * m->k_dim), .out = result->out,
        .out_stride = (size_t)(Q_HEADS * m->v_dim), .out_head_stride = (size_t)m->v_dim,
        .out_dtype = SF_F32, .scale = scale_exact(m->k_dim), .window = m->window,
        .row_pos = p->row_pos, .lane = lane, .lanes = lanes, .lse = result->lse,
        .lse_stride = Q_HEADS };
    device->k->attend(device, &job);
}

/* Rounding: a key is a sum of rank_k products below 1 in f32, so off by 1.2e-7 sqrt(rank_k) or
 * less, and what follows as in tests/kernels/parts.c. */
static void test_like_one_lane(void)
{
    static struct result flat, is;
    for (int c = 0; c < MIXTURES; c++) {
        const struct mixture *m = &mixtures[c];
        struct problem p;
        problem_make(&p, m);
        double bound = 1.2e-7 * (2 * (2 * sqrt(m->k_dim) + 4) + 64 + 4 * sqrt(m->rank_k));
        memset(&flat, 0, sizeof flat);
        attend(ref, &p, &p.flat, &p.alike, 1, &flat);
        for (int i = -1; i < count; i++) {
            struct sf_device *device = i < 0 ? ref : variants[i].device;
            const char *who = i < 0 ? "ref" : variants[i].text;
            if (m->chunk > 0 && !device->k->pick) continue;
            double weights = m->own == SF_BF16 ? weights_rounding(device) : 0;
            memset(&is, 0, sizeof is);
            attend(device, &p, &p.own, &p.lane, 1, &is);
            compare(who, m->text, is.out, flat.out, (size_t)m->rows,
                    (size_t)(Q_HEADS * m->v_dim), i < 0 ? 1.2e-7 * 8 : bound + weights);
            compare(who, m->text, is.lse, flat.lse, (size_t)m->rows, Q_HEADS, 2 * bound);
        }
        problem_free(&p);
    }
}

static void test_read(void)
{
    for (int c = 0; c < MIXTURES; c++) {
        const struct mixture *m = &mixtures[c];
        struct problem p;
        problem_make(&p, m);
        size_t k_dim = (size_t)m->k_dim, v_dim = (size_t)m->v_dim;
        int32_t slot[3] = { m->slots - 1, 0, m->slots / 2 };
        struct sf_slot_list list = { p.basis_page, slot, 3 };
        float k[3 * DIM_MAX], v[3 * DIM_MAX];
        if (m->holes > 0) list.n = 0;   /* a hole has no position */
        for (int i = -1; i < count; i++) {
            struct sf_device *device = i < 0 ? ref : variants[i].device;
            const char *who = i < 0 ? "ref" : variants[i].text;
            device->k->kv_rebuild(device, &p.part, p.pool, p.page_bytes, &list, k, v);
            for (int32_t s = 0; s < list.n; s++) {
                compare(who, m->text, k + (size_t)s * k_dim,
                        p.flat_k + (size_t)slot[s] * k_dim, 1, k_dim, 4e-6);
                compare(who, m->text, v + (size_t)s * v_dim,
                        p.flat_v + (size_t)slot[s] * v_dim, 1, v_dim, 4e-6);
            }
        }
        problem_free(&p);
    }
}

static void test_bits(void)
{
    static struct result whole, alone;
    for (int c = 0; c < MIXTURES; c++) {
        struct problem p;
        problem_make(&p, &mixtures[c]);
        for (int i = 0; i < count; i++) {
            struct sf_device *device = variants[i].device;
            struct sf_lane_job job[ROWS_MAX * Q_HEADS];
            int32_t n = 0;
            if (p.m->chunk > 0 && !device->k->pick) continue;
            if (device->threads == 1) {
                memset(&whole, 0, sizeof whole);
                attend(device, &p, &p.own, &p.lane, 1, &whole);
            }
            memset(&alone, 0, sizeof alone);
            for (int32_t r = 0; r < p.m->rows; r++)
                for (int32_t h = 0; h < Q_HEADS; h++) {
                    job[n] = p.lane;
                    job[n].slots -= p.m->rows - 1 - r;
                    job[n].row_first += r;
                    job[n].rows = 1;
                    job[n].q_first += h;
                    job[n++].q_heads = 1;
                }
            attend(device, &p, &p.own, job, n, &alone);
            compare_bits(variants[i].text, p.m->text, alone.out, whole.out, sizeof whole.out);
            compare_bits(variants[i].text, p.m->text, alone.lse, whole.lse, sizeof whole.lse);
        }
        problem_free(&p);
    }
}

/* Four lanes of one layer, three heads and a row each, together and one by one; no other has the
 * first one's output. */
static void test_shared(void)
{
    static struct result together, alone;
    for (int c = 0; c < MIXTURES; c++) {
        const struct mixture *m = &mixtures[c];
        struct problem p;
        problem_make(&p, m);
        twins_make(&p);
        for (int i = 0; i < count; i++) {
            struct sf_device *device = variants[i].device;
            struct sf_lane_job job[TWINS];
            if (m->chunk > 0 && !device->k->pick) continue;
            for (int32_t t = 0; t < TWINS; t++) {
                job[t] = p.lane;
                job[t].part = &p.twin_part[t];
                job[t].row_first = t;           /* of one row: out and q are the row's */
                job[t].rows = 1;
                job[t].q_first = 0;
                job[t].q_heads = Q_HEADS;
            }
            memset(&together, 0, sizeof together);
            memset(&alone, 0, sizeof alone);
            attend(device, &p, &p.own, job, TWINS, &together);
            for (int32_t t = 0; t < TWINS; t++) attend(device, &p, &p.own, &job[t], 1, &alone);
            compare_bits(variants[i].text, m->text, together.out, alone.out, sizeof alone.out);
            compare_bits(variants[i].text, m->text, together.lse, alone.lse, sizeof alone.lse);
            size_t row = (size_t)(Q_HEADS * m->v_dim);
            for (int32_t t = 1; t < TWINS && m->holes < 100; t++)
                SF_CHECK(memcmp(alone.out, alone.out + (size_t)t * row, row * 4) != 0);
        }
        twins_free(&p);
        problem_free(&p);
    }
}

/* Rows of the basis go, as holes and then packed: what the others stand for keeps its bits. */
static void test_rows_go(void)
{
    static float before[2][300 * 64], after[2][300 * 64];
    struct problem p;
    problem_make(&p, &mixtures[0]);
    int32_t all[300], gone[300], left[300], place[300], n = 0, kept = 0;
    for (int32_t s = 0; s < p.m->slots; s++) {
        all[s] = s;
        if (s % 3 == 1 || s < 5) gone[n++] = s;
        else left[kept++] = s;
    }
    for (int32_t s = 0; s < kept; s++) place[s] = s;
    struct sf_slot_list whole = { p.basis_page, all, p.m->slots };
    struct sf_slot_list holes = { p.basis_page, gone, n };
    struct sf_slot_list rest = { p.basis_page, left, kept }, packed = { p.basis_page, place, kept };
    for (int i = -1; i < count; i++) {
        struct sf_device *device = i < 0 ? ref : variants[i].device;
        const char *who = i < 0 ? "ref" : variants[i].text;
        unsigned char *copy = malloc((size_t)64 * p.page_bytes);
        size_t bytes = 0;
        for (int32_t pg = 0; pg < pages_of(p.m->slots); pg++, bytes += p.page_bytes)
            memcpy(copy + bytes, p.pool + (size_t)p.basis_page[pg] * p.page_bytes, p.page_bytes);
        device->k->kv_rebuild(device, &p.part, p.pool, p.page_bytes, &whole, before[0], before[1]);
        for (int32_t s = 0; s < kept; s++)
            for (int v = 0; v < 2; v++)
                memmove(before[v] + s * 64, before[v] + left[s] * 64, 64 * sizeof(float));
        device->k->kv_drop(device, &p.basis, p.pool, p.page_bytes, &holes);
        device->k->kv_rebuild(device, &p.part, p.pool, p.page_bytes, &rest, after[0], after[1]);
        for (int v = 0; v < 2; v++)
            compare_bits(who, "holes", after[v], before[v], (size_t)kept * 64 * sizeof(float));
        device->k->kv_move(device, &p.basis, p.pool, p.page_bytes, &rest, &packed);
        device->k->kv_rebuild(device, &p.part, p.pool, p.page_bytes, &packed, after[0], after[1]);
        for (int v = 0; v < 2; v++)
            compare_bits(who, "packed", after[v], before[v], (size_t)kept * 64 * sizeof(float));
        bytes = 0;
        for (int32_t pg = 0; pg < pages_of(p.m->slots); pg++, bytes += p.page_bytes)
            memcpy(p.pool + (size_t)p.basis_page[pg] * p.page_bytes, copy + bytes, p.page_bytes);
        free(copy);
    }
    problem_free(&p);
}

static void test_columns(void)
{
    float x[6] = { 1, 2, 3, 4, 5, 6 }, y[8];
    for (int i = -1; i < count; i++) {
        struct sf_device *device = i < 0 ? ref : variants[i].device;
        memset(y, 0x5a, sizeof y);
        device->k->copy_columns(device, 2, 2, 3, x, 3, y, 4);
        float expected[8] = { 1, 2, 0, y[3], 4, 5, 0, y[3] };
        compare(i < 0 ? "ref" : variants[i].text, "two columns and a zero", y, expected, 1, 8, 0);
    }
}

static const struct sf_test tests[] = {
    { "like one lane", test_like_one_lane }, { "read", test_read }, { "bits", test_bits },
    { "shared", test_shared },
    { "rows that go", test_rows_go }, { "columns", test_columns }, { NULL, NULL }
};

int main(int argc, char **argv)
{
    count = variants_open(variants, &ref);
    int failed = sf_test_main("kernels_basis", tests, argc, argv);
    variants_close(variants, count, ref);
    return failed;
}
