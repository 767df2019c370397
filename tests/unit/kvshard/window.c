/* tests/unit/kvshard/window.c: the method window through the real seam.
 *
 * The prompt is attended in full; at its end and after each decode step the first S and the last R
 * slots stay, so the row of token p sees {0 .. S-1} and {p-R .. p}.  Shown for prompts in pieces,
 * several decode rows in a call and sequences beside each other, with pages that S and R do not
 * fit; with what is counted: bytes, evicted slots, and pages to the last one, which a model of the
 * lane as a plain array foretells. */
#include <stdlib.h>

#include "kvshard/methods.h"
#include "tests/unit/kvshard/rig.h"

struct sizes { int32_t sinks, recent, page_slots, prompt, tokens; const char *s, *r; };
static const struct sizes cases[] = {
    { 4, 20, 16, 75, 140, "4", "20" },  { 3, 17, 16, 90, 200, "3", "17" },
    { 0, 5, 32, 40, 120, "0", "5" },    { 5, 1, 16, 30, 90, "5", "1" },
    { 7, 64, 64, 10, 250, "7", "64" },  { 33, 40, 16, 100, 220, "33", "40" },
    { 0, 1, 16, 1, 60, "0", "1" },      { 20, 100, 16, 250, 255, "20", "100" }
};
enum { CASES = sizeof cases / sizeof cases[0] };

static struct rig_spec spec_of(const struct sizes *sizes)
{
    struct rig_spec spec = rig_usual();
    spec.method = sf_method_find("window");
    spec.page_slots = sizes->page_slots;
    spec.option[0].key = "num_sink_tokens";
    spec.option[0].text = sizes->s;
    spec.option[1].key = "recent_tokens";
    spec.option[1].text = sizes->r;
    return spec;
}

static int32_t kept(const struct sizes *sizes, int32_t tokens)
{
    int32_t keep = sizes->sinks + sizes->recent;
    return tokens < keep ? tokens : keep;
}

/* ---- what a lane holds, as a plain array ---------------------------------------------------- */
/* Physical slots; -1 is a hole.  A page of holes goes; too many holes: all go. */
struct lane_model { int32_t slots, pos[512]; };

static void model_cut(struct lane_model *lane, const struct sizes *sizes, int32_t tokens)
{
    int32_t out = 0, live = kept(sizes, tokens), page = sizes->page_slots;
    for (int32_t s = 0; s < lane->slots; s++)
        if (lane->pos[s] >= sizes->sinks && lane->pos[s] < tokens - sizes->recent)
            lane->pos[s] = -1;
    for (int32_t first = 0; first < lane->slots; first += page) {
        int32_t end = first + page < lane->slots ? first + page : lane->slots, any = 0;
        for (int32_t s = first; s < end; s++) any |= lane->pos[s] >= 0;
        for (int32_t s = first; any && s < end; s++) lane->pos[out++] = lane->pos[s];
    }
    while (out > 0 && lane->pos[out - 1] < 0) out--;
    lane->slots = out;
    if (lane->slots <= live + live / 16 + 2 * page) return;
    out = 0;
    for (int32_t s = 0; s < lane->slots; s++)
        if (lane->pos[s] >= 0) lane->pos[out++] = lane->pos[s];
    lane->slots = out;
}

static int32_t model_pages(const struct lane_model *lane, int32_t page_slots)
{
    return (lane->slots + page_slots - 1) / page_slots;
}

/* ---- every row ------------------------------------------------------------------------------ */
struct sight { const struct sizes *sizes; int32_t row; };
static int sees(int32_t pos, const void *context)
{
    const struct sight *sight = context;
    if (sight->row < sight->sizes->prompt) return 1;
    return pos < sight->sizes->sinks || pos >= sight->row - sight->sizes->recent;
}

static void check_rows(const struct rig *rig, const struct sizes *sizes, struct ref_lane *all,
                       int32_t first, int32_t rows)
{
    const struct rig_spec *spec = &rig->spec;
    for (int32_t layer = 0; layer < spec->layers; layer++)
        for (int32_t l = 0; l < spec->lanes; l++)
            for (int32_t r = 0; r < rows; r++) {
                struct sight sight = { sizes, first + r };
                struct ref_lane *lane = &all[layer * spec->lanes + l];
                ref_append(lane, spec, 0, layer, l, first + r);
                check_row(rig, 0, layer, l, r, first + r, lane, sees, &sight, 1e-5);
            }
}

static void check_kept(const struct rig *rig, const struct sf_seq *seq, const struct sizes *sizes,
                       int32_t tokens)
{
    for (int32_t layer = 0; layer < rig->spec.layers; layer++)
        for (int32_t l = 0; l < rig->spec.lanes; l++) {
            struct ref_lane lane;
            ref_open(&lane, &rig->spec, 512);
            for (int32_t pos = 0; pos < tokens; pos++)
                if (pos < sizes->sinks || pos >= tokens - sizes->recent)
                    ref_append(&lane, &rig->spec, 0, layer, l, pos);
            check_lane(rig, seq, layer, l, &lane);
            ref_close(&lane);
        }
}

static void check_receipt(struct rig *rig, const struct sizes *sizes, int64_t peak_pages,
                          const struct sf_receipt *receipt)
{
    const struct rig_spec *spec = &rig->spec;
    int32_t lanes = spec->layers * spec->lanes, lane_ptr[RIG_LAYERS + 1], heads[RIG_LAYERS * 2];
    uint8_t replica[RIG_LAYERS * 2] = { 0 };
    int64_t slot_bytes = (spec->k_dim + spec->v_dim) * 4 + 8;
    SF_CHECK_INT(receipt->tokens, sizes->tokens);
    SF_CHECK_INT(receipt->bytes_exact, lanes * sizes->tokens * slot_bytes);
    SF_CHECK_INT(receipt->bytes_stored, lanes * kept(sizes, sizes->tokens) * slot_bytes);
    SF_CHECK_INT(receipt->slots_evicted, lanes * (sizes->tokens - kept(sizes, sizes->tokens)));
    SF_CHECK_INT(receipt->slots_merged, 0);
    SF_CHECK_INT(receipt->bytes_peak, peak_pages * spec->page_slots * slot_bytes);
    for (int32_t l = 0; l <= spec->layers; l++) lane_ptr[l] = l * spec->lanes;
    for (int32_t l = 0; l < lanes; l++) heads[l] = l % spec->lanes;
    struct sf_rank_lanes rank = { 0, spec->layers, lane_ptr, heads, replica };
    struct sf_cost cost;
    SF_MUST(sf_account_sequence(&rig->setup, &rig->stack, &rank, spec->dtype, sizes->prompt,
                                sizes->tokens, &cost));
    SF_CHECK_INT(cost.bytes_lo, receipt->bytes_stored);
    SF_CHECK_INT(cost.bytes_hi, receipt->bytes_stored);
    SF_CHECK_INT(cost.bytes_exact, receipt->bytes_exact);
    SF_CHECK(receipt->bytes_peak <= cost.bytes_peak);
    SF_CHECK_INT(cost.bytes_peak, cost.pages_peak * spec->page_slots * slot_bytes);
}

/* `piece` rows of the prompt a call, then `decode` rows; where those are several, a call may go
 * over the end of the prompt. */
static void run_case(const struct sizes *sizes, int32_t piece, int32_t decode)
{
    struct rig_spec spec = spec_of(sizes);
    struct rig rig;
    struct sf_seq *seq;
    struct sf_receipt receipt;
    struct ref_lane all[RIG_LAYERS * RIG_LANES];
    struct lane_model model = { .slots = 0 };
    int32_t lanes = spec.layers * spec.lanes, peak = 0;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, sizes->prompt, 256, &seq));
    for (int i = 0; i < lanes; i++) ref_open(&all[i], &spec, 512);
    for (int32_t at = 0, rows; at < sizes->tokens; at += rows) {
        int32_t most = at < sizes->prompt ? piece : decode;
        int32_t end = at < sizes->prompt && decode == 1 ? sizes->prompt : sizes->tokens;
        int32_t left = end - at;
        rows = left < most ? left : most;
        SF_MUST(rig_feed(&rig, seq, 0, at, rows));
        check_rows(&rig, sizes, all, at, rows);
        for (int32_t pos = at; pos < at + rows; pos++) {
            model.pos[model.slots++] = pos;
            if (model_pages(&model, spec.page_slots) > peak)
                peak = model_pages(&model, spec.page_slots);
            if (pos + 1 >= sizes->prompt) model_cut(&model, sizes, pos + 1);
        }
        SF_CHECK_INT(sf_store_pages_free(rig.store),
                     spec.pages - lanes * model_pages(&model, spec.page_slots));
        if (at + rows >= sizes->prompt) check_kept(&rig, seq, sizes, at + rows);
    }
    int64_t in_layers = sf_store_pages(rig.store) - sf_store_pages_free(rig.store);
    SF_CHECK_INT(sf_store_bytes_held(rig.store), in_layers * spec.page_slots * (14 * 4 + 8));
    sf_seq_close(rig.store, seq, &receipt);
    SF_CHECK_INT(sf_store_pages_free(rig.store), spec.pages);
    /* A layer is cut before the next one grows, so the peak is not lanes x peak: bounded here. */
    SF_CHECK(receipt.bytes_peak <= lanes * (int64_t)peak * spec.page_slots * (14 * 4 + 8));
    check_receipt(&rig, sizes, receipt.bytes_peak / (spec.page_slots * (14 * 4 + 8)), &receipt);
    for (int i = 0; i < lanes; i++) ref_close(&all[i]);
    rig_close(&rig);
}

static void test_rows(void)
{
    for (int c = 0; c < CASES; c++) run_case(&cases[c], cases[c].prompt, 1);
}

static void test_pieces(void)
{
    for (int c = 0; c < CASES; c++) {
        run_case(&cases[c], 7, 1);
        run_case(&cases[c], 16, 5);     /* several decode rows a call: as one after the other */
    }
}

/* 75 tokens on pages of 16, S = 4, R = 20: pages 1 and 2 hold nothing any more. */
static void test_pages_by_hand(void)
{
    struct rig_spec spec = spec_of(&cases[0]);
    struct rig rig;
    struct sf_seq *seq;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, 75, 256, &seq));
    SF_MUST(rig_feed(&rig, seq, 0, 0, 74));
    SF_CHECK_INT(sf_store_pages_free(rig.store), 256 - 4 * 5);
    SF_MUST(rig_feed(&rig, seq, 0, 74, 1));
    SF_CHECK_INT(sf_store_pages_free(rig.store), 256 - 4 * 3);
    SF_CHECK_INT(sf_store_bytes_stored(rig.store), 4 * 24 * (14 * 4 + 8));
    sf_seq_close(rig.store, seq, NULL);
    rig_close(&rig);
}

/* ---- the window is wide enough -------------------------------------------------------------- */
static void test_wide_is_exact(void)
{
    static const struct sizes wide[] = { { 4, 116, 16, 80, 120, "4", "116" },
                                         { 0, 120, 16, 80, 120, "0", "120" },
                                         { 4, 1024, 16, 80, 120, "4", "1024" } };
    static const char *const devices[] = { "ref", "cpu" };
    for (int c = 0; c < 6; c++) {
        struct rig_spec with = spec_of(&wide[c / 2]), without;
        struct rig a, b;
        struct sf_seq *seq_a, *seq_b;
        struct sf_receipt receipt;
        with.device = devices[c % 2];
        with.dtype = c % 2 ? SF_BF16 : SF_F32;
        without = with;
        without.method = NULL;
        SF_MUST(rig_open(&with, &a));
        SF_MUST(rig_open(&without, &b));
        SF_MUST(sf_seq_open(a.store, 0, 80, 120, &seq_a));
        SF_MUST(sf_seq_open(b.store, 0, 80, 120, &seq_b));
        for (int32_t at = 0, rows; at < 120; at += rows) {
            rows = at < 80 ? 80 : 1;
            SF_MUST(rig_feed(&a, seq_a, 0, at, rows));
            SF_MUST(rig_feed(&b, seq_b, 0, at, rows));
            for (int32_t layer = 0; layer < 2; layer++)
                SF_CHECK(memcmp(a.out[layer], b.out[layer],
                                (size_t)rows * 4 * 6 * sizeof(float)) == 0);
        }
        SF_CHECK_INT(sf_store_pages_free(a.store), sf_store_pages_free(b.store));
        sf_seq_close(a.store, seq_a, &receipt);
        SF_CHECK_INT(receipt.edits, 0);
        SF_CHECK_INT(receipt.slots_evicted, 0);
        SF_CHECK_INT(receipt.bytes_stored, receipt.bytes_exact);
        sf_seq_close(b.store, seq_b, NULL);
        rig_close(&a);
        rig_close(&b);
    }
}

/* A head that is held twice is cut twice and counted once. */
static void test_replica(void)
{
    struct rig_spec spec = spec_of(&cases[0]);
    struct rig rig;
    struct sf_seq *seq;
    struct sf_receipt receipt;
    spec.heads[0] = spec.heads[1] = 1;
    spec.replica[1] = 1;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, 75, 256, &seq));
    SF_MUST(rig_feed(&rig, seq, 0, 0, 75));
    SF_MUST(rig_feed(&rig, seq, 0, 75, 5));
    for (int32_t l = 0; l < 2; l++) SF_CHECK_INT(sf_seq_lane_slots(rig.store, seq, 1, l), 24);
    SF_CHECK_INT(sf_store_bytes_stored(rig.store), 2 * 24 * (14 * 4 + 8));
    sf_seq_close(rig.store, seq, &receipt);
    SF_CHECK_INT(receipt.slots_evicted, 2 * (80 - 24));
    SF_CHECK_INT(receipt.edits, 2 * 6);
    SF_CHECK_INT(receipt.bytes_stored, 2 * 24 * (14 * 4 + 8));
    rig_close(&rig);
}

/* ---- several sequences ---------------------------------------------------------------------- */
/* One that decodes and one whose prompt ends in between: each as if it were alone. */
static void test_beside(void)
{
    struct rig_spec spec = spec_of(&cases[0]);
    struct rig rig, alone;
    struct rig_item item[2] = { { .number = 0 }, { .number = 1 } };
    struct sf_seq *seq;
    size_t row_bytes = 4 * 6 * sizeof(float);
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(rig_open(&spec, &alone));
    SF_MUST(sf_seq_open(rig.store, 0, 30, 256, &item[0].seq));
    SF_MUST(sf_seq_open(rig.store, 1, 90, 256, &item[1].seq));
    SF_MUST(sf_seq_open(alone.store, 1, 90, 256, &seq));
    for (int32_t i = 0; i < 60; i++) {
        item[0].rows = i == 0 ? 30 : 1;
        item[1].rows = item[1].pos_first < 90 ? 13 : 1;
        if (item[1].pos_first < 90 && item[1].pos_first + 13 > 90)
            item[1].rows = 90 - item[1].pos_first;
        SF_MUST(rig_run(&rig, item, 2));
        SF_MUST(rig_feed(&alone, seq, 1, item[1].pos_first, item[1].rows));
        for (int32_t layer = 0; layer < 2; layer++)
            SF_CHECK(memcmp(rig_out(&rig, layer, item[0].rows, 0), alone.out[layer],
                            (size_t)item[1].rows * row_bytes) == 0);
        for (int s = 0; s < 2; s++) item[s].pos_first += item[s].rows;
    }
    check_kept(&rig, item[0].seq, &cases[0], item[0].pos_first);
    SF_CHECK_INT(sf_seq_lane_slots(rig.store, item[1].seq, 0, 0), 24);
    sf_seq_close(alone.store, seq, NULL);
    for (int s = 0; s < 2; s++) sf_seq_close(rig.store, item[s].seq, NULL);
    rig_close(&alone);
    rig_close(&rig);
}

static const struct sf_test tests[] = {
    { "every row sees sinks and window", test_rows },
    { "prompts in pieces, several decode rows a call", test_pieces },
    { "pages by hand", test_pages_by_hand },
    { "a wide window is the exact cache", test_wide_is_exact },
    { "a head held twice", test_replica },
    { "sequences beside each other", test_beside },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_window", tests)
