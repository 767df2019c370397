/* tests/kernels/parts.c: a lane whose slots lie in several layouts is attended, and its slots are
 * given their masses, like the same slots side by side in one f32 lane, the parts' before its own
 * (so that every row sees them); and the bits of a row depend on nothing but itself. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "tests/check.h"
#include "tests/kernels/variants.h"

enum { PARTS = 2, LANES = 2, SLOTS_MAX = 1700, Q_HEADS = 3 };
static const struct mixture {
    const char *text;
    enum sf_dtype own, part[PARTS];
    int32_t own_page, part_page[PARTS], k_dim, v_dim, slots, rows, part_slots[PARTS], holes, window;
} mixtures[] = {
    { "one f32 slot", SF_BF16, { SF_F32 }, 64, { 32 }, 64, 64, 300, 1, { 1 }, 0, 0 },
    { "one f32 slot, many rows", SF_BF16, { SF_F32 }, 64, { 32 }, 64, 64, 600, 40, { 1 }, 5, 0 },
    { "parts over split edges", SF_F16, { SF_F32, SF_BF16 }, 16, { 16, 32 }, 16, 24, 530, 30,
      { 520, 513 }, 20, 0 },
    { "nothing of its own before", SF_BF16, { SF_F32, SF_F16 }, 16, { 16, 16 }, 40, 24, 12, 12,
      { 0, 33 }, 0, 0 },
    { "a window", SF_BF16, { SF_F32, SF_BF16 }, 32, { 16, 64 }, 64, 64, 200, 60, { 40, 70 }, 10,
      150 },
    { "int8 with one f32 slot", SF_INT8, { SF_F32 }, 64, { 16 }, 64, 64, 600, 2, { 1 }, 5, 0 },
    { "int8 beside others", SF_BF16, { SF_INT8, SF_F16 }, 16, { 32, 16 }, 16, 24, 530, 30,
      { 520, 33 }, 20, 0 },
    { "a part of holes", SF_F32, { SF_F32, SF_F32 }, 16, { 16, 16 }, 16, 16, 40, 3, { 20, 0 }, 100,
      0 },
};
enum { MIXTURES = sizeof mixtures / sizeof *mixtures };

static struct variant variants[VARIANTS_MAX];
static struct sf_device *ref;
static int count;

/* Both forms of one mixture.  Segment 0 is the lane's own slots, then its parts. */
struct problem {
    const struct mixture *m;
    struct sf_layout layout[1 + PARTS], flat_layout;
    size_t page_bytes, flat_bytes;
    unsigned char *pool, *flat_pool;
    int32_t *pages, *flat_pages, pool_pages, flat_pool_pages, mass_slots, row_pos[LANES * 64];
    int32_t page_first[LANES][1 + PARTS], slots[1 + PARTS];
    float *q;
    struct sf_lane_part part[LANES][PARTS];
    struct sf_lane_job lane[LANES], flat[LANES];
};

static int32_t pages_of(int32_t slots, int32_t page) { return (slots + page - 1) / page; }

/* Random slots in one segment, read back into the flat lane behind what is there. */
static void fill(struct problem *p, int lane, int segment, int32_t *flat_slots)
{
    const struct mixture *m = p->m;
    int32_t n = p->slots[segment], holes = 0;
    size_t k = (size_t)m->k_dim, v = (size_t)m->v_dim, room = (size_t)n + 1;
    uint64_t stream = (uint64_t)(lane * 10 + segment);
    float *keys = malloc(room * k * 4), *values = malloc(room * v * 4), *bias = malloc(room * 4);
    int32_t *pos = malloc(room * 4), *slot = malloc(room * 4), *hole = malloc(room * 4);
    random_fill(keys, (size_t)n * k, 1, 700 + stream);
    random_fill(values, (size_t)n * v, 1, 800 + stream);
    random_fill(bias, (size_t)n, 2, 900 + stream);
    for (int32_t i = 0; i < n; i++) {
        pos[i] = segment ? random_below(m->slots, 950 + stream, (uint64_t)i) : i;
        slot[i] = i;
        int32_t percent = m->holes == 100 && !segment ? 0 : m->holes;
        if (random_below(100, 960 + stream, (uint64_t)i) < percent) hole[holes++] = i;
    }
    const int32_t *pages = p->pages + p->page_first[lane][segment];
    struct sf_append_lane at = { pages, 0, 0, n, 0 };
    struct sf_append_job job = { p->layout[segment], p->pool, p->page_bytes, keys, values, k, v,
                                 pos, bias, &at, 1 };
    ref->k->kv_append(ref, &job);
    struct sf_slot_list list = { pages, slot, n }, drop = { pages, hole, holes };
    ref->k->kv_read(ref, &p->layout[segment], p->pool, p->page_bytes, &list, keys, values, NULL,
                    NULL);
    ref->k->kv_drop(ref, &p->layout[segment], p->pool, p->page_bytes, &drop);
    at = (struct sf_append_lane){ p->flat[lane].pages, *flat_slots, 0, n, 0 };
    job.layout = p->flat_layout;
    job.pool = p->flat_pool;
    job.page_bytes = p->flat_bytes;
    ref->k->kv_append(ref, &job);
    for (int32_t i = 0; i < holes; i++) hole[i] += *flat_slots;
    drop.pages = p->flat[lane].pages;
    ref->k->kv_drop(ref, &p->flat_layout, p->flat_pool, p->flat_bytes, &drop);
    *flat_slots += n;
    free(keys), free(values), free(bias), free(pos), free(slot), free(hole);
}

static unsigned char *pool_of(int32_t pages, size_t page_bytes)
{
    unsigned char *pool = aligned_alloc(64, (size_t)pages * page_bytes);
    memset(pool, 0, (size_t)pages * page_bytes);
    return pool;
}

static void layouts_set(struct problem *p)
{
    const struct mixture *m = p->m;
    int32_t flat_slots = 0;
    p->flat_layout = (struct sf_layout){ SF_F32, 16, m->k_dim, m->v_dim };
    for (int s = 0; s <= PARTS; s++) {
        p->layout[s] = (struct sf_layout){ s ? m->part[s - 1] : m->own,
                                           s ? m->part_page[s - 1] : m->own_page, m->k_dim,
                                           m->v_dim };
        p->slots[s] = s ? m->part_slots[s - 1] : m->slots;
        if (p->layout[s].page_slots == 0) p->layout[s].page_slots = 16;
        if (p->layout[s].page_slots > p->mass_slots) p->mass_slots = p->layout[s].page_slots;
        size_t bytes = sf_layout_page_bytes(&p->layout[s]);
        if (bytes > p->page_bytes) p->page_bytes = bytes;
        p->pool_pages += LANES * pages_of(p->slots[s], p->layout[s].page_slots);
        flat_slots += p->slots[s];
    }
    p->page_bytes = (p->page_bytes + 63) / 64 * 64;
    p->flat_bytes = (sf_layout_page_bytes(&p->flat_layout) + 63) / 64 * 64;
    p->flat_pool_pages = LANES * pages_of(flat_slots, 16);
}

static void problem_make(struct problem *p, const struct mixture *m)
{
    memset(p, 0, sizeof *p);
    p->m = m;
    layouts_set(p);
    p->pool = pool_of(p->pool_pages, p->page_bytes);
    p->flat_pool = pool_of(p->flat_pool_pages, p->flat_bytes);
    p->pages = malloc((size_t)p->pool_pages * 4);
    p->flat_pages = malloc((size_t)p->flat_pool_pages * 4);
    for (int32_t i = 0; i < p->pool_pages; i++) p->pages[i] = p->pool_pages - 1 - i;
    for (int32_t i = 0; i < p->flat_pool_pages; i++) {
        p->flat_pages[i] = i;
        ref->k->kv_clear(ref, &p->flat_layout, p->flat_pool + (size_t)i * p->flat_bytes);
    }
    p->q = malloc((size_t)(LANES * m->rows) * LANES * Q_HEADS * (size_t)m->k_dim * 4);
    queries_fill(p->q, (size_t)(LANES * m->rows * LANES * Q_HEADS * m->k_dim), 2, 990);
    int32_t page = 0;
    for (int l = 0; l < LANES; l++) {
        int32_t flat_slots = 0;
        p->flat[l] = (struct sf_lane_job){ p->flat_pages + l * p->flat_pool_pages / LANES, 0,
                                           l * m->rows, m->rows, l * Q_HEADS, Q_HEADS, NULL, 0,
                                           NULL, 0 };
        for (int s = 0; s <= PARTS; s++) {
            p->page_first[l][s] = page;
            for (int32_t n = pages_of(p->slots[s], p->layout[s].page_slots); n > 0; n--, page++)
                ref->k->kv_clear(ref, &p->layout[s],
                                 p->pool + (size_t)p->pages[page] * p->page_bytes);
        }
        for (int s = 1; s <= PARTS + 1; s++) fill(p, l, s % (PARTS + 1), &flat_slots);
        p->lane[l] = p->flat[l];
        p->lane[l].pages = p->pages + p->page_first[l][0];
        p->lane[l].slots = m->slots;
        p->lane[l].part = p->part[l];
        p->lane[l].parts = PARTS;
        for (int s = 1; s <= PARTS; s++)
            p->part[l][s - 1] = (struct sf_lane_part){ &p->layout[s],
                                                       p->pages + p->page_first[l][s],
                                                       p->slots[s], NULL, NULL, 0 };
        p->flat[l].slots = flat_slots;
        for (int32_t r = 0; r < m->rows; r++)
            p->row_pos[l * m->rows + r] = m->slots - m->rows + r;
    }
}

static void problem_free(struct problem *p)
{
    free(p->pool), free(p->flat_pool), free(p->pages), free(p->flat_pages), free(p->q);
}

struct result {
    float out[LANES * 64 * LANES * Q_HEADS * 64], lse[LANES * 64 * LANES * Q_HEADS];
    float mass[LANES * SLOTS_MAX];      /* of the slots in the flat lane's order */
};

static void attend(struct sf_device *device, const struct problem *p, int flat,
                   const struct sf_lane_job *lane, int32_t lanes, struct result *result)
{
    const struct mixture *m = p->m;
    size_t heads = LANES * Q_HEADS;
    struct sf_attend_job job = {
        .layout = flat ? p->flat_layout : p->layout[0], .pool = flat ? p->flat_pool : p->pool,
        .page_bytes = flat ? p->flat_bytes : p->page_bytes, .q = p->q,
        .q_stride = heads * (size_t)m->k_dim, .out = result->out,
        .out_stride = heads * (size_t)m->v_dim, .out_head_stride = (size_t)m->v_dim,
        .out_dtype = SF_F32, .scale = scale_exact(m->k_dim), .window = m->window,
        .row_pos = p->row_pos, .lane = lane, .lanes = lanes, .lse = result->lse,
        .lse_stride = heads
    };
    device->k->attend(device, &job);
}

/* Masses begin at 0.25. */
static void columns(struct sf_device *device, const struct problem *p, int flat,
                    enum sf_row_fold fold, struct result *result)
{
    const struct mixture *m = p->m;
    int32_t mass_slots = flat ? 16 : p->mass_slots, at = 0;
    size_t places = (size_t)(flat ? p->flat_pool_pages : p->pool_pages) * (size_t)mass_slots;
    float *mass = malloc(places * sizeof *mass);
    for (size_t i = 0; i < places; i++) mass[i] = 0.25f;
    struct sf_columns_job job = {
        .layout = flat ? p->flat_layout : p->layout[0], .pool = flat ? p->flat_pool : p->pool,
        .page_bytes = flat ? p->flat_bytes : p->page_bytes, .q = p->q,
        .q_stride = LANES * Q_HEADS * (size_t)m->k_dim, .scale = scale_exact(m->k_dim),
        .window = m->window, .row_pos = p->row_pos, .lane = flat ? p->flat : p->lane,
        .lanes = LANES, .lse = result->lse, .lse_stride = LANES * Q_HEADS, .fold = fold,
        .head_fold = SF_HEADS_MEAN, .decay = 0.9f, .mass = mass, .mass_slots = mass_slots };
    device->k->columns(device, &job);
    memset(result->mass, 0, sizeof result->mass);
    for (int l = 0; l < LANES; l++)
        for (int n = 1; n <= PARTS + 1; n++) {
            int s = n % (PARTS + 1);
            int32_t page_slots = flat ? 16 : p->layout[s].page_slots;
            const int32_t *pages = flat ? p->flat[l].pages : p->pages + p->page_first[l][s];
            int32_t before = flat ? at - l * p->flat[0].slots : 0;
            for (int32_t i = before; i < before + p->slots[s]; i++)
                result->mass[at++] = mass[pages[i / page_slots] * mass_slots + i % page_slots];
        }
    free(mass);
}

static int has_bf16(const struct mixture *m)
{
    return m->own == SF_BF16 || m->part[0] == SF_BF16 || m->part[1] == SF_BF16;
}

/* Values are below 1. */
static void check(const struct mixture *m, const char *who, const struct result *is,
                  const struct result *should, double bound, double weights)
{
    size_t rows = (size_t)(LANES * m->rows), heads = LANES * Q_HEADS;
    compare(who, m->text, is->out, should->out, rows, heads * (size_t)m->v_dim, bound + weights);
    compare(who, m->text, is->lse, should->lse, rows, heads, 2 * bound);
}

/* Rounding: as tests/kernels/attend.c bounds it, with logits up to 3 sqrt(k_dim) and a bias of 2;
 * a mass is a sum of up to 60 weights. */
static void test_like_one_lane(void)
{
    static struct result flat, is;
    for (int c = 0; c < MIXTURES; c++) {
        struct problem p;
        problem_make(&p, &mixtures[c]);
        double bound = 1.2e-7 * (2 * (3 * sqrt(mixtures[c].k_dim) + 4) + 64);
        memset(&flat, 0, sizeof flat);
        memset(&is, 0, sizeof is);
        attend(ref, &p, 1, p.flat, LANES, &flat);
        for (int i = -1; i < count; i++) {
            struct sf_device *device = i < 0 ? ref : variants[i].device;
            const char *who = i < 0 ? "ref" : variants[i].text;
            attend(device, &p, 0, p.lane, LANES, &is);
            check(p.m, who, &is, &flat, i < 0 ? 1.2e-7 * 4 : bound,
                  has_bf16(p.m) ? weights_rounding(device) : 0);
            for (int fold = SF_ROWS_SUM; fold <= SF_ROWS_BELOW_MEAN; fold++) {
                columns(ref, &p, 1, (enum sf_row_fold)fold, &flat);
                columns(device, &p, 0, (enum sf_row_fold)fold, &is);
                compare(who, p.m->text, is.mass, flat.mass, 1, LANES * SLOTS_MAX, 20 * bound);
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
            struct sf_lane_job job[LANES * 64 * Q_HEADS];
            int32_t n = 0;
            if (device->threads == 1) {
                memset(&whole, 0, sizeof whole);
                attend(device, &p, 0, p.lane, LANES, &whole);
            }
            memset(&alone, 0, sizeof alone);
            for (int l = LANES - 1; l >= 0; l--)
                for (int32_t r = 0; r < p.m->rows; r++)
                    for (int32_t h = 0; h < Q_HEADS; h++) {
                        job[n] = p.lane[l];
                        job[n].slots -= p.m->rows - 1 - r;
                        job[n].row_first += r;
                        job[n].rows = 1;
                        job[n].q_first += h;
                        job[n++].q_heads = 1;
                    }
            attend(device, &p, 0, job, n, &alone);
            compare_bits(variants[i].text, p.m->text, alone.out, whole.out, sizeof whole.out);
            compare_bits(variants[i].text, p.m->text, alone.lse, whole.lse, sizeof whole.lse);
        }
        problem_free(&p);
    }
}

/* The last row of each lane, with the logits of attend and without. */
static void test_left(void)
{
    enum { ROOM = SLOTS_MAX + 16 * (PARTS + 1) };
    static float logit[LANES][Q_HEADS][ROOM / 16 * 16];
    static struct result with, without;
    for (int c = 0; c < MIXTURES; c++) {
        struct problem p;
        problem_make(&p, &mixtures[c]);
        for (int l = 0; l < LANES; l++) {
            p.lane[l].row_first += p.lane[l].rows - 1;
            p.lane[l].rows = 1;
        }
        for (int i = -1; i < count; i++) {
            struct sf_device *device = i < 0 ? ref : variants[i].device;
            const char *who = i < 0 ? "ref" : variants[i].text;
            for (int fold = SF_ROWS_SUM; fold <= SF_ROWS_BELOW_MEAN; fold++) {
                for (int l = 0; l < LANES; l++) p.lane[l].logit = NULL;
                attend(device, &p, 0, p.lane, LANES, &without);
                columns(device, &p, 0, (enum sf_row_fold)fold, &without);
                for (int l = 0; l < LANES; l++) {
                    p.lane[l].logit = &logit[l][0][0];
                    p.lane[l].logit_stride = ROOM / 16 * 16;
                }
                attend(device, &p, 0, p.lane, LANES, &with);
                columns(device, &p, 0, (enum sf_row_fold)fold, &with);
                compare_bits(who, p.m->text, with.out, without.out, sizeof with.out);
                compare_bits(who, p.m->text, with.mass, without.mass, sizeof with.mass);
            }
        }
        problem_free(&p);
    }
}

static const struct sf_test tests[] = {
    { "like one lane", test_like_one_lane }, { "bits", test_bits }, { "left", test_left },
    { NULL, NULL }
};

int main(int argc, char **argv)
{
    count = variants_open(variants, &ref);
    int failed = sf_test_main("kernels_parts", tests, argc, argv);
    variants_close(variants, count, ref);
    return failed;
}
