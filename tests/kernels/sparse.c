/* tests/kernels/sparse.c: not a test but figures: decode of one layer over exact slots, over a
 * basis of all of them, and over picked slots of it, chosen first.  At level long alone.
 *
 * The shape is that of SmolLM2-135M: per sequence 3 lanes of 3 query heads, d 64, bf16; a basis is
 * of 4 layers, so of 768 columns.  Picked are TOKENS / 8 slots in chunks of 8, and OUTLIERS + LOCAL
 * slots are exact beside them, as with outlier_chunks: 48 and local_chunks: 4. */
#include <math.h>
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
enum { SEQUENCES = 8, LANES = 3, HEADS = 3, DIM = 64, TOKENS = 6000, PAGE = 64, CHUNK = 8,
       MARKS = TOKENS / CHUNK, PICKED = TOKENS / 8 / CHUNK, RAW = 48 * CHUNK + 4 * CHUNK,
       ALL = SEQUENCES * LANES, RANK_MAX = 576, REPETITIONS = 5 };

static struct variant variants[VARIANTS_MAX];
static struct sf_device *ref;
static int count;

struct pages { struct sf_layout layout; int32_t *page, slots; };
static struct {
    unsigned char *pool;
    size_t page_bytes;
    int32_t taken, pages;
    float *k, *turns, *q, *out;
    int32_t *pos, *pick;
} world;

/* Pages with rows of small random numbers, position i in slot i. */
static struct pages fill(int32_t k_dim, int32_t v_dim, int32_t page_slots, int32_t slots)
{
    struct pages p = { { SF_BF16, page_slots, k_dim, v_dim }, NULL, slots };
    int32_t n = (slots + page_slots - 1) / page_slots;
    p.page = malloc((size_t)n * 4);
    for (int32_t i = 0; i < n; i++) {
        p.page[i] = world.taken++;
        SF_ASSERT(world.taken <= world.pages);
        ref->k->kv_clear(ref, &p.layout, world.pool + (size_t)p.page[i] * world.page_bytes);
    }
    struct sf_append_lane at = { p.page, 0, 0, slots, 0 };
    struct sf_append_job job = { p.layout, world.pool, world.page_bytes, world.k, world.k, RANK_MAX,
                                 RANK_MAX, world.pos, NULL, &at, 1 };
    variants[0].device->k->kv_append(variants[0].device, &job);
    return p;
}

struct lanes { struct sf_lane_job job[ALL]; struct sf_lane_part part[ALL]; };

static struct sf_lane_job job_of(int32_t i, const struct pages *own)
{
    return (struct sf_lane_job){ .pages = own->page, .slots = own->slots, .row_first = i / LANES,
                                 .rows = 1, .q_first = i % LANES * HEADS, .q_heads = HEADS };
}

static double attend(struct sf_device *device, const struct lanes *lanes,
                     const struct sf_pick_job *pick)
{
    struct sf_attend_job job = {
        .layout = { SF_BF16, PAGE, DIM, DIM }, .pool = world.pool, .page_bytes = world.page_bytes,
        .q = world.q, .q_stride = LANES * HEADS * DIM, .out = world.out,
        .out_stride = LANES * HEADS * DIM, .out_head_stride = DIM, .out_dtype = SF_F32,
        .scale = 0.125f, .lane = lanes->job, .lanes = ALL };
    double taken[REPETITIONS];
    for (int i = -1; i < REPETITIONS; i++) {
        double begin = clock_seconds(CLOCK_PROCESS_CPUTIME_ID);
        if (pick) device->k->pick(device, pick);
        device->k->attend(device, &job);
        if (i >= 0) taken[i] = clock_seconds(CLOCK_PROCESS_CPUTIME_ID) - begin;
    }
    return 1e3 * median_of(taken, REPETITIONS);
}

static void one_rank(struct sf_device *device, int32_t rank_k, double exact,
                     const struct pages *raw, const struct sf_pick_job *pick)
{
    static struct lanes dense, sparse;
    static struct sf_lane_factors of[ALL];
    static struct pages basis[SEQUENCES], factors[ALL];
    int32_t rank_v = rank_k * 3 / 2, first = world.taken;
    for (int32_t i = 0; i < ALL; i++) {
        struct pages *mine = &basis[i / LANES];
        if (i % LANES == 0) *mine = fill(rank_k, rank_v, 16, TOKENS);
        factors[i] = fill(DIM, DIM, PAGE, rank_v);
        of[i] = (struct sf_lane_factors){ .layout = &factors[i].layout, .pages = factors[i].page,
                                          .rank_k = rank_k, .rank_v = rank_v,
                                          .turns = world.turns, .rope_dim = DIM };
        dense.part[i] = (struct sf_lane_part){ &mine->layout, mine->page, TOKENS, &of[i], NULL, 0 };
        sparse.part[i] = dense.part[i];
        sparse.part[i].pick = world.pick + i * PICKED * CHUNK;
        sparse.part[i].picks = PICKED * CHUNK;
        dense.job[i] = sparse.job[i] = job_of(i, &raw[i]);
        dense.job[i].slots = 1;
        dense.job[i].part = &dense.part[i];
        sparse.job[i].part = &sparse.part[i];
        dense.job[i].parts = sparse.job[i].parts = 1;
    }
    double all = attend(device, &dense, NULL), some = attend(device, &sparse, pick);
    printf("  figure: decode of %d x %d slots, d 64, %d heads, bf16, ranks %d and %d: exact %.2f"
           " ms, dense %.2f, %d picked and %d exact ones %.2f (CPU time, medians of %d)\n", ALL,
           TOKENS, HEADS, rank_k, rank_v, exact, all, PICKED * CHUNK, RAW, some, REPETITIONS);
    SF_CHECK(some < all);
    for (int32_t i = 0; i < ALL; i++) {
        free(factors[i].page);
        if (i % LANES == 0) free(basis[i / LANES].page);
    }
    world.taken = first;
}

static void test_cost(void)
{
    static struct lanes exact;
    static struct sf_pick_lane pick[ALL];
    static struct pages whole[ALL], raw[ALL], mark[ALL];
    const char *level = getenv("SHEAF_TEST_LEVEL");
    if (!level || strcmp(level, "long") != 0) SF_SKIP("figures, at level long alone");
    if (SANITIZED) SF_SKIP("times under a sanitizer say nothing");
    struct sf_layout widest = { SF_BF16, 16, 384, RANK_MAX };
    size_t floats = (size_t)TOKENS * RANK_MAX;
    world.page_bytes = (sf_layout_page_bytes(&widest) + 63) / 64 * 64;
    world.pages = ALL * (TOKENS / PAGE + 2 + 8 + MARKS / PAGE + 2 + 16) +
                  SEQUENCES * (TOKENS / 16 + 1);
    world.pool = aligned_alloc(64, (size_t)world.pages * world.page_bytes);
    world.k = malloc(floats * 4), world.turns = malloc((size_t)TOKENS * DIM * 4);
    world.q = malloc(SEQUENCES * LANES * HEADS * DIM * 4);
    world.out = malloc(SEQUENCES * LANES * HEADS * DIM * 4);
    world.pos = malloc(TOKENS * 4), world.pick = malloc(ALL * PICKED * CHUNK * 4);
    random_fill(world.k, floats, 0.2f, 1), random_fill(world.turns, TOKENS * DIM, 1, 2);
    random_fill(world.q, SEQUENCES * LANES * HEADS * DIM, 1, 3);
    for (int32_t i = 0; i < TOKENS; i++) world.pos[i] = i;
    for (int32_t i = 0; i < ALL; i++) {
        whole[i] = fill(DIM, DIM, PAGE, TOKENS), raw[i] = fill(DIM, DIM, PAGE, RAW);
        mark[i] = fill(DIM, 0, PAGE, MARKS);
        exact.job[i] = job_of(i, &whole[i]);
        pick[i] = (struct sf_pick_lane){
            .pages = mark[i].page, .landmarks = MARKS, .chunks = PICKED, .row_first = i / LANES,
            .rows = 1, .q_first = i % LANES * HEADS, .q_heads = HEADS,
            .slot_out = world.pick + i * PICKED * CHUNK };
    }
    struct sf_pick_job job = { mark[0].layout, world.pool, world.page_bytes, world.q,
                               LANES * HEADS * DIM, 0.125f, CHUNK, pick, ALL };
    struct sf_device *device = variants[count - 3].device; /* the best, on one thread */
    printf("  figure: %s\n", variants[count - 3].text);
    double alone = attend(device, &exact, NULL);
    for (int32_t rank = 24; rank <= 384; rank *= 2) one_rank(device, rank, alone, raw, &job);
    for (int32_t i = 0; i < ALL; i++) free(whole[i].page), free(raw[i].page), free(mark[i].page);
    free(world.pool), free(world.k), free(world.turns), free(world.q), free(world.out);
    free(world.pos), free(world.pick);
}

static const struct sf_test tests[] = { { "cost", test_cost }, { NULL, NULL } };

int main(int argc, char **argv)
{
    count = variants_open(variants, &ref);
    int failed = sf_test_main("kernels_sparse", tests, argc, argv);
    variants_close(variants, count, ref);
    return failed;
}
