/* tests/kernels/ahead.c: units of attention that threads take before they work on them
 * (kernels/cpu/ahead.h): each once, in their order, and never so many that another thread that
 * comes later has none. */
#include "kernels/backend.h"
#include "kernels/cpu/ahead.h"
#include "tests/check.h"

enum { THREADS_MOST = 8, UNITS_MOST = 64 };

/* Units of one split each, of lanes of `slots` slots; `parts` are of the kind of the lane. */
struct case_ { int32_t threads, units, slots, vectors, parts; };

static void deal(const struct case_ *c, int32_t *begun)
{
    const struct sf_layout layout = { SF_BF16, 16, 64, 64 };
    const struct sf_lane_part part = { &layout, NULL, 512, NULL, NULL, 0 };
    struct sf_lane_job lane = { .slots = c->slots, .rows = 1, .q_heads = c->vectors,
                                .part = &part, .parts = c->parts };
    struct sf_tile tile = { &lane, 0, c->vectors, 1 + c->parts, -1, NULL };
    struct sf_unit unit[UNITS_MOST];
    int32_t order[UNITS_MOST], taken = 0, done = 0;
    for (int32_t i = 0; i < c->units; i++) {
        unit[i] = (struct sf_unit){ 0, 0, 1, 1 };
        order[i] = c->units - 1 - i;
    }
    struct sf_attention attention = { .threads = c->threads, .tile = &tile, .unit = unit,
                                      .order = order, .tiles = 1, .units = c->units };
    struct sf_queue queue[THREADS_MOST] = { { .count = 0 } };
    int32_t at[UNITS_MOST] = { 0 };
    for (int32_t t = 0; t < c->threads; t++) begun[t] = 0;
    for (int32_t round = 0; round <= c->units; round++)
        for (int32_t t = 0; t < c->threads; t++) {
            if (round > 0 && queue[t].count > 0) sf_queue_drop(&queue[t]);
            sf_queue_fill(&attention, &taken, &queue[t]);
            SF_CHECK(queue[t].count <= 1 + SF_UNITS_AHEAD);
            if (queue[t].count == 0) continue;
            at[queue[t].unit[0] - unit]++;
            begun[t]++, done++;
        }
    SF_CHECK_INT(done, c->units);
    for (int32_t i = 0; i < c->units; i++) SF_CHECK_INT(at[i], 1);
}

static void test_few(void)
{
    const struct case_ cases[] = {
        { 2, 2, 512, 3, 0 }, { 2, 2, 512, 24, 0 }, { 2, 4, 16, 3, 1 }, { 8, 8, 500, 3, 0 },
        { 8, 8, 30, 3, 0 }, { 8, 16, 16, 3, 1 }, { 8, 5, 512, 3, 0 }, { 1, 9, 40, 3, 0 },
        { 2, 64, 40, 3, 0 }, { 4, 64, 512, 3, 0 }, { 3, 64, 16, 3, 1 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct case_ *c = &cases[i];
        int32_t begun[THREADS_MOST], least = c->units / c->threads, most = 0;
        deal(c, begun);
        for (int32_t t = 0; t < c->threads; t++) {
            if (begun[t] > most) most = begun[t];
            if (begun[t] < least) least = begun[t];
        }
        /* As many for each, but for what a thread holds at the end. */
        int32_t held = c->units >= 2 * c->threads ? SF_UNITS_AHEAD : 0;
        SF_CHECK(most <= (c->units + c->threads - 1) / c->threads + held);
        SF_CHECK(least > 0 || c->units < c->threads);
    }
}

/* Short lanes are taken several at once, so that eight blocks are known; a tile that nothing is
 * sent for, and the last units, one by one. */
static void test_how_many(void)
{
    int32_t begun[THREADS_MOST];
    const struct { struct case_ c; int32_t held; } cases[] = {
        { { 2, 64, 40, 3, 0 }, 4 }, { { 2, 64, 128, 3, 0 }, 2 }, { { 2, 64, 512, 3, 0 }, 2 },
        { { 2, 64, 512, 24, 0 }, 1 }, { { 2, 2, 40, 3, 0 }, 1 }, { { 2, 64, 16, 3, 1 }, 2 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct case_ *c = &cases[i].c;
        struct sf_lane_job lane = { .slots = c->slots, .rows = 1, .q_heads = c->vectors,
                                    .parts = c->parts };
        struct sf_tile tile = { &lane, 0, c->vectors, 1, -1, NULL };
        struct sf_unit unit[UNITS_MOST];
        int32_t order[UNITS_MOST], taken = 0;
        for (int32_t u = 0; u < c->units; u++) {
            unit[u] = (struct sf_unit){ 0, 0, 1, 1 };
            order[u] = u;
        }
        struct sf_attention attention = { .threads = c->threads, .tile = &tile, .unit = unit,
                                          .order = order, .tiles = 1, .units = c->units };
        struct sf_queue queue = { .count = 0 };
        sf_queue_fill(&attention, &taken, &queue);
        SF_CHECK_INT(queue.count, cases[i].held);
        deal(c, begun);
    }
}

static const struct sf_test tests[] = {
    { "few units", test_few }, { "how many", test_how_many }, { NULL, NULL }
};

int main(int argc, char **argv) { return sf_test_main("kernels_ahead", tests, argc, argv); }
