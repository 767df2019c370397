/* tests/kernels/cost.c: what attention over a cache of bf16 costs, in f32 and in bf16 products, at
 * level long alone: prefill of a prompt's last rows, and decode with caches that are cold, from
 * pages of 16 slots that lie anywhere, beside what a thread reads at most.  The shape is that of
 * SmolLM2-135M: 3 lanes a sequence, 3 query heads each, d 64.  One thread. */
#include <stdlib.h>
#include "base/rng.h"
#include "tests/check.h"
#include "tests/kernels/variants.h"

enum { DIM = 64, HEADS = 3, LANES = 3, PAGE = 16, ROWS = 512, SLOTS = 6000, LANES_MOST = 96,
       LAYERS_BYTES = 512 << 20, REPETITIONS = 9, DEVICES_MOST = 2 };

static struct variant variants[VARIANTS_MAX];
static struct sf_device *ref;
static int count;

static struct {
    struct sf_layout layout;
    size_t page_bytes, bytes;
    int32_t pages, *page;               /* a permutation */
    unsigned char *pool;
    float *q, *out;
} world = { .layout = { SF_BF16, PAGE, DIM, DIM } };

/* Pages of random slots: one filled by the backend, the others copies of it. */
static void world_make(void)
{
    enum { ONE = PAGE * DIM };
    float k[ONE], v[ONE];
    int32_t pos[PAGE], first = 0;
    world.page_bytes = sf_layout_page_bytes(&world.layout);
    world.pages = (int32_t)(LAYERS_BYTES / world.page_bytes);
    world.bytes = (size_t)world.pages * world.page_bytes;
    SF_MUST(variants[0].device->k->alloc(variants[0].device, world.bytes, "pages",
                                         (void **)&world.pool));
    world.page = malloc((size_t)world.pages * sizeof *world.page);
    world.q = malloc((size_t)ROWS * LANES * HEADS * DIM * sizeof(float));
    world.out = malloc((size_t)ROWS * LANES * HEADS * DIM * sizeof(float));
    random_fill(k, ONE, 1, 1), random_fill(v, ONE, 1, 2);
    random_fill(world.q, (size_t)ROWS * LANES * HEADS * DIM, 1, 3);
    for (int32_t i = 0; i < PAGE; i++) pos[i] = i;
    struct sf_append_lane at = { &first, 0, 0, PAGE, 0 };
    struct sf_append_job job = { world.layout, world.pool, world.page_bytes, k, v, DIM, DIM, pos,
                                 NULL, &at, 1 };
    ref->k->kv_append(ref, &job);
    for (int32_t i = 0; i < world.pages; i++) {
        int32_t other = random_below(i + 1, 4, (uint64_t)i);
        if (i > 0) memcpy(world.pool + (size_t)i * world.page_bytes, world.pool, world.page_bytes);
        world.page[i] = world.page[other];
        world.page[other] = i;
    }
}

static double attend(struct sf_device *device, const struct sf_lane_job *lane, int32_t lanes)
{
    size_t width = LANES * HEADS * DIM;
    struct sf_attend_job job = {
        .layout = world.layout, .pool = world.pool, .page_bytes = world.page_bytes, .q = world.q,
        .q_stride = width, .out = world.out, .out_stride = width, .out_head_stride = DIM,
        .out_dtype = SF_F32, .scale = 0.125f, .lane = lane, .lanes = lanes };
    double begin = clock_seconds(CLOCK_PROCESS_CPUTIME_ID);
    device->k->attend(device, &job);
    return clock_seconds(CLOCK_PROCESS_CPUTIME_ID) - begin;
}

/* One thread with each of the two best instruction sets; they work in turns. */
static int devices_of(const struct variant **out)
{
    int n = 0;
    for (int i = 0; i < count; i++)
        if (variants[i].device->threads == 1 &&
            variants[i].device->isa + 1 >= variants[count - 1].device->isa)
            out[n++] = &variants[i];
    return n;
}

static void prefill_print(int32_t slots)
{
    struct sf_lane_job lane[LANES];
    const struct variant *of[DEVICES_MOST];
    double taken[DEVICES_MOST][REPETITIONS];
    int n = devices_of(of);
    for (int32_t i = 0; i < LANES; i++)
        lane[i] = (struct sf_lane_job){ .pages = world.page + i * (SLOTS / PAGE), .slots = slots,
                                        .rows = ROWS, .q_first = i * HEADS, .q_heads = HEADS };
    for (int r = -1; r < REPETITIONS; r++)
        for (int d = 0; d < n; d++) {
            double t = attend(of[d]->device, lane, LANES);
            if (r >= 0) taken[d][r] = t;
        }
    double seen = (double)ROWS * (slots - ROWS) + ROWS * (ROWS + 1) / 2.0;
    for (int d = 0; d < n; d++) {
        double t = median_of(taken[d], REPETITIONS);
        printf("  figure: prefill of %d rows, %d slots, %s: %.2f ms, %.1f GFLOP/s\n", ROWS, slots,
               of[d]->text, 1e3 * t, 4 * DIM * seen * LANES * HEADS / t * 1e-9);
        SF_CHECK(t > 0);
    }
}

/* One step: layer after layer, each with lanes of its own, as many as there are pages for. */
static void decode_print(int32_t lanes, int32_t slots)
{
    struct sf_lane_job lane[LANES_MOST];
    const struct variant *of[DEVICES_MOST];
    double taken[DEVICES_MOST][REPETITIONS];
    int n = devices_of(of);
    int32_t each = (slots + PAGE - 1) / PAGE, layers = world.pages / (each * lanes);
    for (int r = -1; r < REPETITIONS; r++)
        for (int d = 0; d < n; d++) {
            double sum = 0;
            for (int32_t l = 0; l < layers; l++) {
                for (int32_t i = 0; i < lanes; i++)
                    lane[i] = (struct sf_lane_job){
                        .pages = world.page + (l * lanes + i) * each, .slots = slots,
                        .row_first = i / LANES, .rows = 1, .q_first = i % LANES * HEADS,
                        .q_heads = HEADS };
                sum += attend(of[d]->device, lane, lanes);
            }
            if (r >= 0) taken[d][r] = sum;
        }
    double bytes = (double)layers * lanes * each * (double)world.page_bytes;
    for (int d = 0; d < n; d++) {
        double t = median_of(taken[d], REPETITIONS);
        printf("  figure: decode of %d x %d slots, %s: %.3f ms a layer, %.1f GB/s\n", lanes, slots,
               of[d]->text, 1e3 * t / layers, bytes / t * 1e-9);
        SF_CHECK(t > 0);
    }
}

/* All pages, once. */
static void read_print(void)
{
    double taken[REPETITIONS];
    uint64_t total = 0;
    for (int r = 0; r < REPETITIONS; r++) {
        double begin = clock_seconds(CLOCK_PROCESS_CPUTIME_ID);
        for (size_t i = 0; i < world.bytes / 64; i++) {
            uint64_t word[8], sum = 0;
            memcpy(word, world.pool + i * 64, sizeof word);
            for (int j = 0; j < 8; j++) sum += word[j];
            total += sum;
        }
        taken[r] = clock_seconds(CLOCK_PROCESS_CPUTIME_ID) - begin;
    }
    SF_CHECK(total != 0);
    printf("  figure: a thread reads %.1f GB/s\n",
           (double)world.bytes / median_of(taken, REPETITIONS) * 1e-9);
}

static void test_cost(void)
{
    const char *level = getenv("SHEAF_TEST_LEVEL");
    if (!level || strcmp(level, "long") != 0) SF_SKIP("figures, at level long alone");
    world_make();
    read_print();
    for (int32_t slots = ROWS; slots <= SLOTS; slots += (SLOTS - ROWS) / 2)
        prefill_print(slots);
    decode_print(96, 544);
    decode_print(24, 6000);
    variants[0].device->k->free(variants[0].device, world.pool);
    free(world.page), free(world.q), free(world.out);
}

static const struct sf_test tests[] = { { "cost", test_cost }, { NULL, NULL } };

int main(int argc, char **argv)
{
    count = variants_open(variants, &ref);
    int failed = sf_test_main("kernels_cost", tests, argc, argv);
    variants_close(variants, count, ref);
    return failed;
}
