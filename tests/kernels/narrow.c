/* tests/kernels/narrow.c: not a test but figures: decode attention of one layer over slots in bf16
 * and in int8, in turns.  At level long alone.
 *
 * The shape is that of SmolLM2-135M: 32 sequences of 3 lanes of 3 query heads, d 64, one row each.
 * There are as many layers as make up some 200 MB in bf16, and calls go round them, so that slots
 * come from memory as they do in a model; a pool is the device's memory, as in a run (cpu.c: on
 * huge pages where there are any).  Times are CPU time of the process, so that other work on
 * the machine counts by what it does to the caches alone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tests/check.h"
#include "tests/kernels/variants.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif
enum { LANES = 96, HEADS = 3, DIM = 64, PAGE = 16, ALL_SLOTS = 8192, LAYERS_MAX = 32,
       REPETITIONS = 61, TYPES = 2 };
static const enum sf_dtype types[TYPES] = { SF_BF16, SF_INT8 };

static struct variant variants[VARIANTS_MAX];
static struct sf_device *ref;
static int count;

struct cache {                          /* in one type */
    struct sf_layout layout;
    size_t page_bytes;
    unsigned char *pool;
    int32_t *pages;                     /* [layer][lane][slots / PAGE], scattered */
};

/* Every lane has the same slots, elsewhere. */
static void cache_make(struct cache *c, struct sf_device *device, enum sf_dtype dtype,
                       int32_t slots, int32_t layers)
{
    int32_t each = slots / PAGE, n = layers * LANES * each;
    size_t elements = (size_t)slots * DIM;
    float *x = malloc(elements * sizeof *x);
    int32_t *pos = malloc((size_t)slots * sizeof *pos);
    c->layout = (struct sf_layout){ dtype, PAGE, DIM, DIM };
    c->page_bytes = sf_layout_page_bytes(&c->layout);
    c->pages = malloc((size_t)n * sizeof *c->pages);
    SF_ASSERT(x && pos && c->pages);
    sf_status status = device->k->alloc(device, (size_t)n * c->page_bytes, "pool",
                                        (void **)&c->pool);
    SF_ASSERT(status == SF_OK);
    for (int32_t i = 0; i < n; i++)     /* 7,919 is prime and divides no n here */
        c->pages[i] = (int32_t)((int64_t)i * 7919 % n);
    for (int32_t i = 0; i < slots; i++) pos[i] = i;
    random_fill(x, elements, 1, 1);
    for (int32_t lane = 0; lane < layers * LANES; lane++) {
        const int32_t *pages = c->pages + (size_t)lane * (size_t)each;
        struct sf_append_lane at = { pages, 0, 0, slots, 0 };
        struct sf_append_job job = { c->layout, c->pool, c->page_bytes, x, x, DIM, DIM, pos, NULL,
                                     &at, 1 };
        for (int32_t i = 0; i < each; i++)
            device->k->kv_clear(device, &c->layout, c->pool + (size_t)pages[i] * c->page_bytes);
        device->k->kv_append(device, &job);
    }
    free(x), free(pos);
}

static double attend(struct sf_device *device, const struct cache *c, int32_t slots, int32_t layer,
                     const float *q, float *out)
{
    static struct sf_lane_job lane[LANES];
    for (int32_t i = 0; i < LANES; i++)
        lane[i] = (struct sf_lane_job){
            .pages = c->pages + (size_t)(layer * LANES + i) * (size_t)(slots / PAGE),
            .slots = slots, .row_first = i, .rows = 1, .q_heads = HEADS };
    struct sf_attend_job job = {
        .layout = c->layout, .pool = c->pool, .page_bytes = c->page_bytes, .q = q,
        .q_stride = HEADS * DIM, .out = out, .out_stride = HEADS * DIM, .out_head_stride = DIM,
        .out_dtype = SF_F32, .scale = 0.125f, .lane = lane, .lanes = LANES };
    double begin = clock_seconds(CLOCK_PROCESS_CPUTIME_ID);
    device->k->attend(device, &job);
    return clock_seconds(CLOCK_PROCESS_CPUTIME_ID) - begin;
}

static void one_length(struct sf_device *const *device, const char *const *who, int32_t devices,
                       int32_t slots)
{
    static float q[LANES * HEADS * DIM], out[LANES * HEADS * DIM];
    static double taken[TYPES][REPETITIONS];
    struct cache cache[TYPES];
    int32_t layers = ALL_SLOTS / slots < LAYERS_MAX ? ALL_SLOTS / slots : LAYERS_MAX;
    random_fill(q, LANES * HEADS * DIM, 1, 2);
    for (int t = 0; t < TYPES; t++) cache_make(&cache[t], device[0], types[t], slots, layers);
    for (int32_t d = 0; d < devices; d++) {
        double median[TYPES], rate[TYPES];
        for (int32_t i = -layers; i < REPETITIONS; i++)
            for (int t = 0; t < TYPES; t++) {
                double took = attend(device[d], &cache[t], slots, (i + layers) % layers, q, out);
                if (i >= 0) taken[t][i] = took;
            }
        for (int t = 0; t < TYPES; t++) {
            size_t bytes = (size_t)LANES * (size_t)slots * sf_layout_slot_bytes(&cache[t].layout);
            median[t] = median_of(taken[t], REPETITIONS);
            rate[t] = 1e-9 * (double)bytes / median[t];
        }
        printf("  figure: decode of %d lanes of %d slots, %s: bf16 %.3f ms (%.1f GB/s), int8 %.3f"
               " (%.1f), %.2f times as fast (CPU time, medians of %d in turns)\n", LANES, slots,
               who[d], 1e3 * median[0], rate[0], 1e3 * median[1], rate[1], median[0] / median[1],
               REPETITIONS);
        SF_CHECK(median[1] > 0);
    }
    for (int t = 0; t < TYPES; t++) {
        device[0]->k->free(device[0], cache[t].pool);
        free(cache[t].pages);
    }
}

static void test_cost(void)
{
    const char *level = getenv("SHEAF_TEST_LEVEL");
    if (!level || strcmp(level, "long") != 0) SF_SKIP("figures, at level long alone");
    if (SANITIZED) SF_SKIP("times under a sanitizer say nothing");
    struct sf_device *device[VARIANTS_MAX];
    const char *who[VARIANTS_MAX];
    int32_t devices = 0;
    for (int i = 0; i < count; i += 3) { /* one thread of each instruction set */
        device[devices] = variants[i].device;
        who[devices++] = variants[i].text;
    }
    for (int32_t slots = 256; slots <= 4096; slots *= 4) one_length(device, who, devices, slots);
}

static const struct sf_test tests[] = { { "cost", test_cost }, { NULL, NULL } };

int main(int argc, char **argv)
{
    count = variants_open(variants, &ref);
    int failed = sf_test_main("kernels_narrow", tests, argc, argv);
    variants_close(variants, count, ref);
    return failed;
}
