/* tests/walkthrough/low_norm.c: the method of docs/adding-a-method.md, compiled from that page.
 *
 * A lane is a plain array that grows by a row and is cut as the page's text says: at the end of a
 * prompt that is longer than budget + 16, and in the answer when so many slots are there, the
 * newest and those with the shortest keys stay.  After every row the store's lane is that array bit
 * for bit, the row attends over it, and bytes and pages are those of footprint(). */
#include <stdlib.h>

#include "kvshard/methods.h"
#include "tests/unit/kvshard/rig.h"

enum { GROWTH = 16, ROOM = 256, LANES = RIG_LAYERS * RIG_LANES };

/* Prompts below, at and above a full lane, which has budget + 16 slots. */
struct sizes { int32_t budget, recent, page_slots, prompt, tokens; const char *b, *r; };
static const struct sizes cases[] = {
    { 40, 8, 16, 30, 150, "40", "8" },    { 40, 8, 16, 55, 100, "40", "8" },
    { 40, 8, 16, 56, 100, "40", "8" },    { 40, 8, 16, 57, 100, "40", "8" },
    { 20, 20, 16, 100, 160, "20", "20" }, { 33, 0, 32, 90, 140, "33", "0" },
    { 1, 0, 16, 1, 60, "1", "0" },        { 1, 1, 16, 200, 201, "1", "1" }
};
enum { CASES = sizeof cases / sizeof cases[0] };

static struct rig_spec spec_of(const struct sizes *sizes)
{
    struct rig_spec spec = rig_usual();
    spec.method = sf_method_find("low_norm");
    spec.page_slots = sizes->page_slots;
    spec.option[0].key = "budget_tokens";
    spec.option[0].text = sizes->b;
    spec.option[1].key = "recent_tokens";
    spec.option[1].text = sizes->r;
    return spec;
}

/* ---- the definition ------------------------------------------------------------------------- */
static double norm_of(const struct ref_lane *lane, int32_t s)
{
    double sum = 0;
    for (int32_t e = 0; e < lane->k_dim; e++) {
        double x = (double)lane->k[s * lane->k_dim + e];
        sum += x * x;
    }
    return sum;
}

static int is_due(const struct sizes *sizes, const struct ref_lane *lane, int32_t tokens)
{
    int32_t full = sizes->budget + GROWTH;
    if (tokens < sizes->prompt) return 0;
    return tokens == sizes->prompt ? lane->slots > full : lane->slots >= full;
}

/* A slot before the newest stays if fewer than `rest` of its like have shorter keys. */
static void cut(const struct sizes *sizes, struct ref_lane *lane)
{
    int32_t ids[ROOM], n = 0, old = lane->slots - sizes->recent;
    for (int32_t s = 0; s < lane->slots; s++) {
        int32_t shorter = 0;
        for (int32_t other = 0; other < old; other++)
            shorter += norm_of(lane, other) < norm_of(lane, s);
        if (s >= old || shorter < sizes->budget - sizes->recent) ids[n++] = s;
    }
    SF_CHECK_INT(n, sizes->budget);
    ref_keep(lane, ids, n);
}

/* ---- a whole sequence ----------------------------------------------------------------------- */
struct course {
    struct rig rig;
    struct sf_seq *seq;
    struct ref_lane lane[LANES];
};

static void check_rows(struct course *course, const struct sizes *sizes, int32_t first,
                       int32_t rows)
{
    const struct rig_spec *spec = &course->rig.spec;
    for (int32_t layer = 0; layer < spec->layers; layer++)
        for (int32_t l = 0; l < spec->lanes; l++) {
            struct ref_lane *lane = &course->lane[layer * spec->lanes + l];
            for (int32_t r = 0; r < rows; r++) {
                ref_append(lane, spec, 0, layer, l, first + r);
                check_row(&course->rig, 0, layer, l, r, first + r, lane, NULL, NULL, 1e-5);
            }
            if (is_due(sizes, lane, first + rows)) cut(sizes, lane);
            check_lane(&course->rig, course->seq, layer, l, lane);
        }
}

static void check_bytes(struct course *course, const struct sizes *sizes, int32_t tokens,
                        struct sf_cost *cost)
{
    const struct rig_spec *spec = &course->rig.spec;
    int32_t lanes = spec->layers * spec->lanes, lane_ptr[RIG_LAYERS + 1], heads[LANES], slots = 0;
    uint8_t replica[LANES] = { 0 };
    for (int32_t l = 0; l <= spec->layers; l++) lane_ptr[l] = l * spec->lanes;
    for (int32_t l = 0; l < lanes; l++) heads[l] = l % spec->lanes;
    for (int32_t l = 0; l < lanes; l++) slots += course->lane[l].slots;
    struct sf_rank_lanes rank = { 0, spec->layers, lane_ptr, heads, replica };
    SF_MUST(sf_account_sequence(&course->rig.setup, &course->rig.stack, &rank, spec->dtype,
                                sizes->prompt, tokens, cost));
    SF_CHECK_INT(cost->bytes_lo, slots * (int64_t)((spec->k_dim + spec->v_dim) * 4 + 8));
    SF_CHECK_INT(cost->bytes_hi, cost->bytes_lo);
    SF_CHECK_INT(sf_store_bytes_stored(course->rig.store), cost->bytes_lo);
}

/* `piece` rows of the prompt a call, then one row a call. */
static void run_case(const struct sizes *sizes, int32_t piece)
{
    struct course course;
    struct rig_spec spec = spec_of(sizes);
    struct sf_receipt receipt;
    struct sf_cost cost = { 0 };
    int32_t lanes = spec.layers * spec.lanes;
    SF_MUST(rig_open(&spec, &course.rig));
    SF_MUST(sf_seq_open(course.rig.store, 0, sizes->prompt, spec.tokens_max, &course.seq));
    for (int32_t l = 0; l < lanes; l++) ref_open(&course.lane[l], &spec, ROOM);
    for (int32_t at = 0, rows; at < sizes->tokens; at += rows) {
        rows = at < sizes->prompt ? piece : 1;
        if (at < sizes->prompt && rows > sizes->prompt - at) rows = sizes->prompt - at;
        SF_MUST(rig_feed(&course.rig, course.seq, 0, at, rows));
        check_rows(&course, sizes, at, rows);
        if (at + rows >= sizes->prompt) check_bytes(&course, sizes, at + rows, &cost);
    }
    sf_seq_close(course.rig.store, course.seq, &receipt);
    SF_CHECK_INT(receipt.bytes_stored, cost.bytes_lo);
    SF_CHECK(receipt.bytes_peak <= cost.bytes_peak);
    SF_CHECK_INT(receipt.slots_evicted, lanes * (int64_t)(sizes->tokens - course.lane[0].slots));
    SF_CHECK_INT(receipt.slots_merged, 0);
    for (int32_t l = 0; l < lanes; l++) ref_close(&course.lane[l]);
    rig_close(&course.rig);
}

static void test_rows(void)
{
    for (int c = 0; c < CASES; c++) run_case(&cases[c], cases[c].prompt);
}

static void test_pieces(void)
{
    for (int c = 0; c < CASES; c++) run_case(&cases[c], 7);
}

/* ---- a budget that is never reached --------------------------------------------------------- */
static void test_wide_is_exact(void)
{
    static const struct sizes wide = { 120, 10, 16, 80, 130, "120", "10" };
    for (int c = 0; c < 2; c++) {
        struct rig_spec with = spec_of(&wide), without;
        struct rig a, b;
        struct sf_seq *seq_a, *seq_b;
        struct sf_receipt receipt;
        with.device = c ? "cpu" : "ref";
        with.dtype = c ? SF_BF16 : SF_F32;
        without = with;
        without.method = NULL;
        SF_MUST(rig_open(&with, &a));
        SF_MUST(rig_open(&without, &b));
        SF_MUST(sf_seq_open(a.store, 0, wide.prompt, wide.tokens, &seq_a));
        SF_MUST(sf_seq_open(b.store, 0, wide.prompt, wide.tokens, &seq_b));
        for (int32_t at = 0, rows; at < wide.tokens; at += rows) {
            rows = at < wide.prompt ? wide.prompt : 1;
            SF_MUST(rig_feed(&a, seq_a, 0, at, rows));
            SF_MUST(rig_feed(&b, seq_b, 0, at, rows));
            for (int32_t layer = 0; layer < with.layers; layer++)
                SF_CHECK(memcmp(a.out[layer], b.out[layer],
                                (size_t)(rows * with.lanes * with.group * with.v_dim) *
                                    sizeof(float)) == 0);
        }
        sf_seq_close(a.store, seq_a, &receipt);
        SF_CHECK_INT(receipt.edits, 0);
        SF_CHECK_INT(receipt.bytes_stored, receipt.bytes_exact);
        sf_seq_close(b.store, seq_b, NULL);
        rig_close(&a);
        rig_close(&b);
    }
}

/* ---- two sequences in a call ---------------------------------------------------------------- */
static void test_beside(void)
{
    struct rig_spec spec = spec_of(&cases[0]);
    struct rig rig, alone;
    struct rig_item item[2] = { { .number = 0 }, { .number = 1 } };
    struct sf_seq *seq;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(rig_open(&spec, &alone));
    SF_MUST(sf_seq_open(rig.store, 0, 30, ROOM, &item[0].seq));
    SF_MUST(sf_seq_open(rig.store, 1, 90, ROOM, &item[1].seq));
    SF_MUST(sf_seq_open(alone.store, 1, 90, ROOM, &seq));
    for (int32_t i = 0; i < 70; i++) {
        item[0].rows = i == 0 ? 30 : 1;
        item[1].rows = item[1].pos_first < 90 ? 15 : 1;
        SF_MUST(rig_run(&rig, item, 2));
        SF_MUST(rig_feed(&alone, seq, 1, item[1].pos_first, item[1].rows));
        for (int32_t layer = 0; layer < spec.layers; layer++)
            SF_CHECK(memcmp(rig_out(&rig, layer, item[0].rows, 0), alone.out[layer],
                            (size_t)(item[1].rows * spec.lanes * spec.group * spec.v_dim) *
                                sizeof(float)) == 0);
        for (int s = 0; s < 2; s++) item[s].pos_first += item[s].rows;
    }
    for (int32_t l = 0; l < spec.lanes; l++)
        SF_CHECK_INT(sf_seq_lane_slots(rig.store, item[1].seq, 0, l), 40 + (154 - 90) % GROWTH);
    sf_seq_close(alone.store, seq, NULL);
    for (int s = 0; s < 2; s++) sf_seq_close(rig.store, item[s].seq, NULL);
    rig_close(&alone);
    rig_close(&rig);
}

static void test_refused(void)
{
    static const struct sizes narrow = { 20, 21, 16, 1, 1, "20", "21" };
    static const struct sizes none = { 0, 0, 16, 1, 1, "0", "0" };
    struct rig_spec spec = spec_of(&narrow);
    struct rig rig;
    CHECK_REFUSED(rig_open(&spec, &rig), SF_INVALID, "21 newest tokens, more than the 20 slots");
    spec = spec_of(&none);
    CHECK_REFUSED(rig_open(&spec, &rig), SF_INVALID, "budget_tokens");
}

/* The registry of the page holds its method beside all others. */
static void test_registry(void)
{
    SF_CHECK(sf_method_find("low_norm") != NULL);
    SF_CHECK(sf_method_find("window") != NULL);
    SF_CHECK_STR(sf_method_nearest("lownorm"), "low_norm");
}

static const struct sf_test tests[] = {
    { "the page's registry", test_registry },
    { "every row, lane and byte", test_rows },
    { "prompts in pieces", test_pieces },
    { "a wide budget is the exact cache", test_wide_is_exact },
    { "two sequences beside each other", test_beside },
    { "what is refused", test_refused },
    { NULL, NULL }
};
SF_TEST_MAIN("walkthrough", tests)
