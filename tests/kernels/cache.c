/* tests/kernels/cache.c: the CPU writes pages bit for bit as ref does, through a history of clears,
 * appends over page edges, moves and drops; what is read back is what was written, rounded; and a
 * fresh page holds nothing but holes.  In int8 every vector is rounded by the rule of layout.h,
 * which is written here once more. */
#include <math.h>
#include <stdlib.h>
#include "base/dtype.h"
#include "tests/check.h"
#include "tests/kernels/variants.h"

enum { LANES = 3, SLOTS = 150, PAGES = 64, HEADS = 2 };

static const struct {
    struct sf_layout layout;
    int with_bias;
} cases[] = {
    { { SF_F32, 16, 16, 24 }, 0 },  { { SF_F16, 16, 40, 24 }, 1 },
    { { SF_BF16, 32, 40, 24 }, 1 }, { { SF_BF16, 16, 64, 64 }, 0 },
    { { SF_F32, 64, 7, 1 }, 1 },    { { SF_F16, 128, 5, 3 }, 0 },
    { { SF_BF16, 16, 576, 512 }, 1 }, { { SF_F16, 16, 7, 4 }, 1 },
    { { SF_INT8, 16, 64, 64 }, 1 }, { { SF_INT8, 32, 7, 5 }, 0 }, { { SF_INT8, 64, 300, 24 }, 1 }
};
enum { CASES = sizeof cases / sizeof *cases };

static struct variant variants[VARIANTS_MAX];
static struct sf_device *ref;
static int count;

/* A pool of scattered pages, and what is appended. */
struct pool {
    const struct sf_layout *layout;
    unsigned char *bytes;
    size_t page_bytes;
};
static int32_t pages[LANES][PAGES / LANES];
static float *k, *v, bias[LANES * SLOTS];
static int32_t pos[LANES * SLOTS];

static void rows_make(const struct sf_layout *layout)
{
    size_t rows = LANES * SLOTS;
    k = malloc(rows * HEADS * (size_t)layout->k_dim * sizeof *k);
    v = malloc(rows * HEADS * (size_t)layout->v_dim * sizeof *v);
    random_fill(k, rows * HEADS * (size_t)layout->k_dim, 3, 1);
    random_fill(v, rows * HEADS * (size_t)layout->v_dim, 3, 2);
    random_fill(bias, rows, 1, 3);
    for (size_t i = 0; i < rows; i++) pos[i] = (int32_t)(i * 3);
    k[3] = 1e-41f;                      /* a denormal, also in bf16 */
    v[0] = 65519.0f;                    /* below half a step over the greatest f16 */
    k[4] = -7e4f;                       /* out of its range */
    for (int32_t p = 0; p < PAGES / LANES; p++)
        for (int32_t lane = 0; lane < LANES; lane++) pages[lane][p] = (p * 7 + lane * 23) % PAGES;
}

static struct pool pool_make(const struct sf_layout *layout)
{
    struct pool pool = { layout, NULL, sf_layout_page_bytes(layout) };
    pool.bytes = aligned_alloc(64, PAGES * pool.page_bytes);
    memset(pool.bytes, 0xff, PAGES * pool.page_bytes);
    return pool;
}

/* Appends the lanes in two calls of uneven pieces; a piece of no rows is fine. */
static void append(struct sf_device *device, struct pool *pool, int with_bias)
{
    static const int32_t cut[LANES] = { 0, 37, 149 };
    struct sf_append_lane lane[LANES];
    struct sf_append_job job = {
        .layout = *pool->layout, .pool = pool->bytes, .page_bytes = pool->page_bytes, .k = k,
        .v = v, .k_stride = (size_t)HEADS * (size_t)pool->layout->k_dim,
        .v_stride = (size_t)HEADS * (size_t)pool->layout->v_dim, .pos = pos,
        .bias = with_bias ? bias : NULL, .lane = lane, .lanes = LANES
    };
    for (int half = 0; half < 2; half++) {
        for (int32_t i = 0; i < LANES; i++) {
            int32_t first = half ? cut[i] : 0, end = half ? SLOTS : cut[i];
            lane[i] = (struct sf_append_lane){ pages[i], first, i * SLOTS + first, end - first,
                                               i % HEADS };
        }
        device->k->kv_append(device, &job);
    }
}

/* A history of edits: every third slot goes, the rest closes up, one lane's end moves to another.
 * */
static void edit(struct sf_device *device, struct pool *pool)
{
    int32_t from[SLOTS], to[SLOTS], gone[SLOTS], kept = 0, dropped = 0;
    for (int32_t s = 0; s < SLOTS; s++) {
        if (s % 3 == 1) continue;
        from[kept] = s;
        to[kept] = kept;
        kept++;
    }
    struct sf_slot_list a = { pages[0], from, kept }, b = { pages[0], to, kept };
    device->k->kv_move(device, pool->layout, pool->bytes, pool->page_bytes, &a, &b);
    for (int32_t s = kept; s < SLOTS; s++) gone[dropped++] = s;
    struct sf_slot_list holes = { pages[0], gone, dropped };
    device->k->kv_drop(device, pool->layout, pool->bytes, pool->page_bytes, &holes);
    for (int32_t i = 0; i < 20; i++) {
        from[i] = SLOTS - 1 - i;
        to[i] = kept + i;
    }
    a = (struct sf_slot_list){ pages[1], from, 20 };
    b = (struct sf_slot_list){ pages[0], to, 20 };
    device->k->kv_move(device, pool->layout, pool->bytes, pool->page_bytes, &a, &b);
    holes.n = 0;
    device->k->kv_drop(device, pool->layout, pool->bytes, pool->page_bytes, &holes);
}

static void clear(struct sf_device *device, struct pool *pool)
{
    for (size_t p = 0; p < PAGES; p++)
        device->k->kv_clear(device, pool->layout, pool->bytes + p * pool->page_bytes);
}

/* One vector as it reads back. */
static void rounded(enum sf_dtype dtype, const float *x, size_t n, float *out)
{
    float most = 0, half[1024];
    if (dtype != SF_INT8) {
        sf_from_f32(dtype, x, half, n);
        sf_to_f32(dtype, half, out, n);
        return;
    }
    for (size_t i = 0; i < n; i++) most = fmaxf(most, fabsf(x[i]));
    float scale = most / 127, inverse = 127 / most;
    for (size_t i = 0; i < n; i++) {
        out[i] = scale * (nearbyintf(x[i] * inverse) + 0.0f);
        SF_CHECK_NEAR(out[i], x[i], 0.50002 * (double)scale);
    }
}

/* Reads lane 1 and compares with what was appended to it, rounded to the dtype. */
static void check_read(const char *text, struct sf_device *device, struct pool *pool, int with_bias)
{
    size_t k_dim = (size_t)pool->layout->k_dim, v_dim = (size_t)pool->layout->v_dim;
    float *k_read = malloc(SLOTS * k_dim * 4), *v_read = malloc(SLOTS * v_dim * 4);
    float *k_row = malloc(k_dim * 4), *v_row = malloc(v_dim * 4), bias_read[SLOTS];
    int32_t slot[SLOTS], pos_read[SLOTS];
    for (int32_t s = 0; s < SLOTS; s++) slot[s] = SLOTS - 1 - s;
    struct sf_slot_list list = { pages[1], slot, SLOTS };
    device->k->kv_read(device, pool->layout, pool->bytes, pool->page_bytes, &list, k_read, v_read,
                       bias_read, pos_read);
    for (size_t i = 0; i < SLOTS; i++) {
        size_t row = SLOTS + (size_t)slot[i];
        enum sf_dtype dtype = pool->layout->dtype;
        rounded(dtype, k + (row * HEADS + 1) * k_dim, k_dim, k_row);
        compare_bits(text, "kv_read of a key", k_read + i * k_dim, k_row, k_dim * 4);
        rounded(dtype, v + (row * HEADS + 1) * v_dim, v_dim, v_row);
        compare_bits(text, "kv_read of a value", v_read + i * v_dim, v_row, v_dim * 4);
        SF_CHECK_INT(pos_read[i], pos[row]);
        SF_CHECK_NEAR(bias_read[i], with_bias ? bias[row] : 0, 0);
    }
    device->k->kv_read(device, pool->layout, pool->bytes, pool->page_bytes, &list, NULL, NULL, NULL,
                       NULL);
    free(k_read);
    free(v_read);
    free(k_row);
    free(v_row);
}

static void test_history(void)
{
    for (int c = 0; c < CASES; c++) {
        const struct sf_layout *layout = &cases[c].layout;
        rows_make(layout);
        struct pool expected = pool_make(layout);
        size_t bytes = PAGES * expected.page_bytes;
        clear(ref, &expected);
        append(ref, &expected, cases[c].with_bias);
        check_read("ref", ref, &expected, cases[c].with_bias);
        edit(ref, &expected);
        for (int i = 0; i < count; i++) {
            struct pool pool = pool_make(layout);
            clear(variants[i].device, &pool);
            append(variants[i].device, &pool, cases[c].with_bias);
            check_read(variants[i].text, variants[i].device, &pool, cases[c].with_bias);
            edit(variants[i].device, &pool);
            compare_bits(variants[i].text, "pages", pool.bytes, expected.bytes, bytes);
            free(pool.bytes);
        }
        free(expected.bytes);
        free(k);
        free(v);
    }
}

static void test_clear(void)
{
    for (int i = -1; i < count; i++) {
        struct sf_device *device = i < 0 ? ref : variants[i].device;
        struct pool pool = pool_make(&cases[1].layout);
        clear(device, &pool);
        const float *page_bias =
                (const float *)(void *)(pool.bytes + sf_layout_bias_offset(pool.layout));
        const int32_t *page_pos =
            (const int32_t *)(void *)(pool.bytes + sf_layout_pos_offset(pool.layout));
        for (int32_t s = 0; s < pool.layout->page_slots; s++) {
            SF_CHECK(page_bias[s] == -INFINITY);
            SF_CHECK_INT(page_pos[s], -1);
        }
        for (size_t b = 0; b < sf_layout_bias_offset(pool.layout); b++)
            if (pool.bytes[b] != 0) SF_CHECK_INT(pool.bytes[b], 0);
        free(pool.bytes);
    }
}

/* Every bit pattern of a 16-bit type is a fixed point of widen and narrow (NaN stays a NaN), and
 * values around the midpoints round as base/dtype.h says; but f16 has no infinity in a slot. */
static void test_rounding(void)
{
    for (int t = 0; t < 2; t++) {
        struct sf_layout layout = { t ? SF_BF16 : SF_F16, 16, 2, 4096 };
        size_t page_bytes = sf_layout_page_bytes(&layout);
        unsigned char *page = aligned_alloc(64, page_bytes);
        float *wide = malloc(65536 * 4);
        uint16_t *expected = malloc(65536 * 2);
        int32_t beyond = 0;             /* the range of f16 */
        for (uint32_t i = 0; i < 65536; i++) {
            uint32_t bits = t ? i << 16 | (i % 3 == 0 ? 0x8000 : i % 3 == 1 ? 0x7fff : 0x8001)
                              : (0x33000000u + (i * 0x4001u)) ^ (i << 31);
            memcpy(&wide[i], &bits, 4);
            expected[i] = t ? sf_f32_to_bf16(wide[i]) : sf_f32_to_f16(wide[i]);
            if (!t && (expected[i] & 0x7fff) == 0x7c00) expected[i] ^= 0x7c00 ^ 0x7bff, beyond++;
        }
        wide[65535] = t ? wide[65535] : -INFINITY;
        expected[65535] = t ? expected[65535] : 0xfbff;
        SF_CHECK(t || beyond > 1000);
        for (int i = -1; i < count; i++) {
            struct sf_device *device = i < 0 ? ref : variants[i].device;
            static const float key[2];
            int32_t zero = 0, zeros[16] = { 0 };
            struct sf_append_lane lane = { &zero, 0, 0, 16, 0 };
            struct sf_append_job job = { .layout = layout, .pool = page, .page_bytes = page_bytes,
                                         .k = key, .v = wide, .k_stride = 0, .v_stride = 4096,
                                         .pos = zeros, .lane = &lane, .lanes = 1 };
            device->k->kv_clear(device, &layout, page);
            device->k->kv_append(device, &job);
            uint16_t *stored = (uint16_t *)(void *)(page + sf_layout_v_offset(&layout));
            for (uint32_t e = 0; e < 65536; e++) {
                if (isnan(wide[e])) {
                    float back = t ? sf_bf16_to_f32(stored[e]) : sf_f16_to_f32(stored[e]);
                    if (!isnan(back)) SF_CHECK_INT(stored[e], expected[e]);
                } else if (stored[e] != expected[e]) {
                    SF_CHECK_INT(stored[e], expected[e]);
                }
            }
            CU_PASS("rounding");
        }
        free(page);
        free(wide);
        free(expected);
    }
}

/* Vectors of four with what the rule makes of them; `most` is of the scale, times 127. */
static const struct { float x[4], most; int8_t code[4]; } vectors[] = {
    { { 0, 0, 0, -0.0f }, 0, { 0, 0, 0, 0 } },
    { { 127, -127, 63.49f, 63.51f }, 127, { 127, -127, 63, 64 } },
    { { 127, 0.5f, 1.5f, -2.5f }, 127, { 127, 0, 2, -2 } },         /* ties go to the even one */
    { { -254, 1, 3, -5 }, 254, { -127, 0, 2, -2 } },
    { { 0x1p-100f, -0x1p-101f, 0, 0 }, 0x1p-100f, { 127, -64, 0, 0 } },
    { { 0x1.fffffep-101f, 1e-41f, 0, 0 }, 0, { 0, 0, 0, 0 } },      /* below the least */
    { { 0x1p127f, 0x1p126f, 1, -1 }, 0x1p127f, { 127, 64, 0, 0 } },
    { { INFINITY, -INFINITY, 0x1p126f, -3e38f }, 0x1p127f, { 127, -127, 64, -127 } },
    { { 1, NAN, 2, 3 }, NAN, { 0, 0, 0, 0 } },
    { { NAN, INFINITY, 0, -1 }, NAN, { 0, 0, 0, 0 } }
};

static void test_int8(void)
{
    enum { N = sizeof vectors / sizeof *vectors };
    struct sf_layout layout = { SF_INT8, 16, 4, 4 };
    size_t page_bytes = sf_layout_page_bytes(&layout);
    SF_CHECK_INT(page_bytes, 16 * (8 + 8 + 8));
    SF_CHECK_INT(sf_layout_slot_bytes(&layout), 8 + 8 + 8);
    unsigned char *page = aligned_alloc(64, page_bytes);
    for (int i = -1; i < count; i++) {
        struct sf_device *device = i < 0 ? ref : variants[i].device;
        int32_t zero = 0, zeros[N] = { 0 }, slot[N];
        float rows[N][4], back[2][N][4];
        for (int32_t s = 0; s < N; s++) {
            slot[s] = s;
            memcpy(rows[s], vectors[s].x, sizeof rows[s]);
        }
        struct sf_append_lane lane = { &zero, 0, 0, N, 0 };
        struct sf_append_job job = { .layout = layout, .pool = page, .page_bytes = page_bytes,
                                     .k = rows[0], .v = rows[0], .k_stride = 4, .v_stride = 4,
                                     .pos = zeros, .lane = &lane, .lanes = 1 };
        struct sf_slot_list list = { &zero, slot, N };
        device->k->kv_clear(device, &layout, page);
        device->k->kv_append(device, &job);
        device->k->kv_read(device, &layout, page, page_bytes, &list, back[0][0], back[1][0], NULL,
                           NULL);
        device->k->sync(device);
        const float *k_scale = (float *)(void *)(page + sf_layout_k_scale_offset(&layout));
        const float *v_scale = (float *)(void *)(page + sf_layout_v_scale_offset(&layout));
        const int8_t *value = (int8_t *)page + sf_layout_v_offset(&layout);
        for (int32_t s = 0; s < N; s++) {
            float scale = vectors[s].most / 127;
            int nan = isnan(scale);
            SF_CHECK(nan ? isnan(k_scale[s]) : k_scale[s] == scale);
            SF_CHECK(nan ? isnan(v_scale[s]) : v_scale[s] == scale);
            for (int32_t e = 0; e < 4; e++) {
                float is = scale * vectors[s].code[e];
                SF_CHECK_INT(((int8_t *)page)[sf_layout_k_index(&layout, s, e)],
                             vectors[s].code[e]);
                SF_CHECK_INT(value[s * 4 + e], vectors[s].code[e]);
                SF_CHECK(nan ? isnan(back[0][s][e]) : back[0][s][e] == is && isfinite(is));
                SF_CHECK(nan ? isnan(back[1][s][e]) : back[1][s][e] == is);
            }
        }
    }
    free(page);
}

/* Pages of values alone, of which an append names no positions. */
static void test_values(void)
{
    struct sf_layout layout = { SF_BF16, 16, 0, 6 };
    size_t page_bytes = (sf_layout_page_bytes(&layout) + 63) / 64 * 64;
    unsigned char *page = aligned_alloc(64, page_bytes);
    float rows[16 * 6], back[16 * 6];
    int32_t zero = 0, slot[16];
    for (int32_t i = 0; i < 16 * 6; i++) rows[i] = (float)(i - 40);
    for (int32_t i = 0; i < 16; i++) slot[i] = i;
    for (int i = -1; i < count; i++) {
        struct sf_device *device = i < 0 ? ref : variants[i].device;
        struct sf_append_lane lane = { &zero, 0, 0, 16, 0 };
        struct sf_append_job job = { .layout = layout, .pool = page, .page_bytes = page_bytes,
                                     .k = rows, .v = rows, .v_stride = 6, .lane = &lane,
                                     .lanes = 1 };
        struct sf_slot_list list = { &zero, slot, 16 };
        device->k->kv_clear(device, &layout, page);
        device->k->kv_append(device, &job);
        device->k->kv_read(device, &layout, page, page_bytes, &list, NULL, back, NULL, NULL);
        device->k->sync(device);
        compare_bits(i < 0 ? "ref" : variants[i].text, "kv_append of values", back, rows,
                     sizeof rows);
    }
    free(page);
}

static const struct sf_test tests[] = {
    { "history", test_history }, { "clear", test_clear },
    { "rounding", test_rounding }, { "int8", test_int8 }, { "values alone", test_values },
    { NULL, NULL }
};

int main(int argc, char **argv)
{
    count = variants_open(variants, &ref);
    int failed = sf_test_main("kernels_cache", tests, argc, argv);
    variants_close(variants, count, ref);
    return failed;
}
