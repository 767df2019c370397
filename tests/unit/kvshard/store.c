/* tests/unit/kvshard/store.c: append and attention over lanes of pages equal a plain softmax, for
 * all raw types, page sizes and both backends; prompts in pieces and sequences beside each other
 * change no bit; replicated heads count once; a full pool takes nothing.
 *
 * Keys, values and queries lie in [-1, 1], so logits stay below sqrt(k_dim) and f32 sums over a few
 * hundred slots keep 1e-5.  A 16-bit cache is held to the same bound against keys and values that
 * were rounded in the same way, since all arithmetic on them is f32; and against the unrounded ones
 * within 2 sqrt(k_dim) h + h, where h is half a step (2^-9 in bf16, 2^-12 in f16): each logit moves
 * by at most scale x k_dim x h, a weighted mean by twice that, and values by h. */
#include <stdlib.h>

#include "tests/unit/kvshard/rig.h"

enum { SEQS = 3 };

/* ---- attention ------------------------------------------------------------------------------ */
struct window { int32_t row, tokens; };
static int in_window(int32_t pos, const void *context)
{
    const struct window *window = context;
    return window->tokens == 0 || pos > window->row - window->tokens;
}

/* A step after the other: sequence s takes step[i][s] rows. */
static const int32_t prompt[SEQS] = { 1, 37, 70 };
static const int32_t steps[][SEQS] = { { 1, 20, 33 }, { 1, 0, 1 }, { 0, 17, 36 }, { 1, 1, 1 },
                                       { 5, 1, 0 },   { 1, 1, 9 }, { 20, 1, 1 } };

static void check_step(const struct rig *rig, struct ref_lane ref[], const int32_t *at,
                       const int32_t *rows, int32_t layer, int32_t lane)
{
    const struct rig_spec *spec = &rig->spec;
    int32_t row = 0;
    static const double halves[] = { [SF_BF16] = 1.0 / 512, [SF_F16] = 1.0 / 4096,
                                     [SF_INT8] = 1.0 / 254 };
    double half = halves[spec->dtype];
    for (int32_t s = 0; s < SEQS; s++) {
        struct ref_lane *lane_ref = &ref[(s * RIG_LAYERS + layer) * RIG_LANES + lane];
        struct ref_lane exact;
        struct rig_spec wide = *spec;
        wide.dtype = SF_F32;
        ref_open(&exact, &wide, lane_ref->room);
        for (int32_t pos = 0; pos < at[s]; pos++)
            ref_append(&exact, &wide, s, layer, lane, pos);
        for (int32_t r = 0; r < rows[s]; r++, row++) {
            struct window window = { at[s] + r, spec->window };
            ref_append(lane_ref, spec, s, layer, lane, at[s] + r);
            ref_append(&exact, &wide, s, layer, lane, at[s] + r);
            check_row(rig, s, layer, lane, row, at[s] + r, lane_ref, in_window, &window, 1e-5);
            check_row(rig, s, layer, lane, row, at[s] + r, &exact, in_window, &window,
                      1e-5 + (2 * sqrt(spec->k_dim) + 1) * half);
        }
        ref_close(&exact);
    }
}

static void run_steps(const struct rig_spec *spec)
{
    struct rig rig;
    struct ref_lane ref[SEQS * RIG_LAYERS * RIG_LANES];
    struct rig_item item[SEQS];
    int32_t at[SEQS] = { 0 };
    SF_MUST(rig_open(spec, &rig));
    for (int32_t s = 0; s < SEQS; s++) {
        item[s].number = s;
        SF_MUST(sf_seq_open(rig.store, s, prompt[s], 128, &item[s].seq));
    }
    for (int i = 0; i < SEQS * RIG_LAYERS * RIG_LANES; i++) ref_open(&ref[i], spec, 128);
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        for (int32_t s = 0; s < SEQS; s++) {
            item[s].pos_first = at[s];
            item[s].rows = steps[i][s];
        }
        SF_CHECK_OK(rig_run(&rig, item, SEQS));
        for (int32_t layer = 0; layer < spec->layers; layer++)
            for (int32_t lane = 0; lane < spec->lanes; lane++)
                check_step(&rig, ref, at, steps[i], layer, lane);
        for (int32_t s = 0; s < SEQS; s++) at[s] += steps[i][s];
    }
    int64_t pages = 0;
    for (int32_t s = 0; s < SEQS; s++) {
        for (int32_t layer = 0; layer < spec->layers; layer++)
            for (int32_t lane = 0; lane < spec->lanes; lane++)
                check_lane(&rig, item[s].seq, layer, lane,
                           &ref[(s * RIG_LAYERS + layer) * RIG_LANES + lane]);
        pages += spec->layers * spec->lanes *
                 ((at[s] + spec->page_slots - 1) / spec->page_slots);
    }
    SF_CHECK_INT(sf_store_pages_free(rig.store), spec->pages - pages);
    for (int32_t s = 0; s < SEQS; s++) sf_seq_close(rig.store, item[s].seq, NULL);
    SF_CHECK_INT(sf_store_pages_free(rig.store), spec->pages);
    SF_CHECK_INT(sf_store_bytes_stored(rig.store), 0);
    for (int i = 0; i < SEQS * RIG_LAYERS * RIG_LANES; i++) ref_close(&ref[i]);
    rig_close(&rig);
}

static void test_attention(void)
{
    static const enum sf_dtype dtypes[] = { SF_F32, SF_BF16, SF_F16, SF_INT8 };
    static const char *const devices[] = { "ref", "cpu" };
    for (int d = 0; d < 2; d++)
        for (int t = 0; t < 4; t++)
            for (int32_t page_slots = 16; page_slots <= 64; page_slots *= 2) {
                struct rig_spec spec = rig_usual();
                spec.device = devices[d];
                spec.dtype = dtypes[t];
                spec.page_slots = page_slots;
                spec.lanes = 3;
                spec.k_dim = 16;
                spec.v_dim = 24;
                run_steps(&spec);
            }
}

/* The model's own sliding window hides slots; they stay stored. */
static void test_model_window(void)
{
    struct rig_spec spec = rig_usual();
    spec.window = 11;
    run_steps(&spec);
    spec.device = "cpu";
    run_steps(&spec);
}

/* ---- pieces --------------------------------------------------------------------------------- */
enum { PROMPT = 83, DECODED = 9 };

/* Outputs of a prompt cut into `piece` rows and of decode, [layers][PROMPT + DECODED][...]. */
static void feed_in_pieces(const struct rig_spec *spec, int32_t piece, int beside, float *out)
{
    struct rig rig;
    struct rig_item item[2] = { { .number = 0 }, { .number = 1 } };
    SF_MUST(rig_open(spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, PROMPT, 128, &item[0].seq));
    SF_MUST(sf_seq_open(rig.store, 1, 5, 256, &item[1].seq));
    size_t row_floats = (size_t)(spec->lanes * spec->group * spec->v_dim);
    for (int32_t at = 0, rows; at < PROMPT + DECODED; at += rows) {
        rows = at < PROMPT ? (PROMPT - at < piece ? PROMPT - at : piece) : 1;
        item[0].pos_first = at;
        item[0].rows = rows;
        item[1].rows = beside;
        SF_MUST(rig_run(&rig, item, 2));
        item[1].pos_first += beside;
        for (int32_t layer = 0; layer < spec->layers; layer++)
            memcpy(out + ((size_t)layer * (PROMPT + DECODED) + (size_t)at) * row_floats,
                   rig_out(&rig, layer, 0, 0), (size_t)rows * row_floats * sizeof(float));
    }
    sf_seq_close(rig.store, item[0].seq, NULL);
    sf_seq_close(rig.store, item[1].seq, NULL);
    rig_close(&rig);
}

static void test_pieces(void)
{
    static const int32_t pieces[] = { 1, 7, 16, 40 };
    static const char *const devices[] = { "ref", "cpu" };
    for (int d = 0; d < 2; d++) {
        struct rig_spec spec = rig_usual();
        spec.device = devices[d];
        spec.dtype = d == 0 ? SF_F32 : SF_BF16;
        size_t floats = 2 * (PROMPT + DECODED) * (size_t)(spec.lanes * spec.group * spec.v_dim);
        float *whole = calloc(floats, sizeof *whole), *cut = calloc(floats, sizeof *cut);
        feed_in_pieces(&spec, PROMPT, 0, whole);
        for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
            feed_in_pieces(&spec, pieces[i], (int)i, cut);
            SF_CHECK(memcmp(whole, cut, floats * sizeof *whole) == 0);
        }
        free(whole);
        free(cut);
    }
}

/* ---- replicas ------------------------------------------------------------------------------- */
static void test_replicas(void)
{
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct sf_seq *seq;
    struct sf_receipt receipt;
    struct ref_lane ref;
    spec.lanes = 3;
    spec.heads[0] = 1;                  /* head 1 is held twice, as rank 2 of 3 would hold it */
    spec.heads[1] = 1;
    spec.heads[2] = 2;
    spec.replica[1] = 1;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 0, 20, 64, &seq));
    SF_MUST(rig_feed(&rig, seq, 0, 0, 20));
    for (int32_t lane = 0; lane < 3; lane++) {
        ref_open(&ref, &spec, 64);
        for (int32_t pos = 0; pos < 20; pos++) {
            ref_append(&ref, &spec, 0, 1, lane, pos);
            check_row(&rig, 0, 1, lane, pos, pos, &ref, NULL, NULL, 1e-5);
        }
        check_lane(&rig, seq, 1, lane, &ref);
        ref_close(&ref);
    }
    int64_t slot_bytes = (8 + 6) * 4 + 8, page_bytes = 16 * slot_bytes;
    SF_CHECK_INT(sf_store_bytes_stored(rig.store), 2 * 2 * 20 * slot_bytes);
    SF_CHECK_INT(sf_store_bytes_held(rig.store), 2 * 3 * 2 * page_bytes);
    sf_seq_close(rig.store, seq, &receipt);
    SF_CHECK_INT(receipt.bytes_exact, 2 * 2 * 20 * slot_bytes);
    SF_CHECK_INT(receipt.bytes_stored, receipt.bytes_exact);
    SF_CHECK_INT(receipt.bytes_peak, 2 * 2 * 2 * page_bytes);
    SF_CHECK_INT(receipt.tokens, 20);
    SF_CHECK_INT(receipt.edits + receipt.slots_evicted + receipt.slots_merged, 0);
    rig_close(&rig);
}

/* ---- limits --------------------------------------------------------------------------------- */
static void test_full_pool(void)
{
    struct rig_spec spec = rig_usual();
    struct rig rig;
    struct sf_seq *seq;
    spec.layers = 1;
    spec.pages = 5;                     /* 2 lanes: 2 pages each, and one over */
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 4, 33, 64, &seq));
    SF_MUST(rig_feed(&rig, seq, 0, 0, 32));
    SF_CHECK_INT(sf_store_pages_free(rig.store), 1);
    int64_t stored = sf_store_bytes_stored(rig.store);
    CHECK_REFUSED(rig_feed(&rig, seq, 0, 32, 1), SF_NO_PAGES,
                  "needs 2 more pages, 1 of 5 are free");
    SF_CHECK_INT(sf_store_pages_free(rig.store), 1);
    SF_CHECK_INT(sf_store_bytes_stored(rig.store), stored);
    SF_CHECK_INT(sf_seq_lane_slots(rig.store, seq, 0, 0), 32);
    sf_seq_close(rig.store, seq, NULL);
    SF_CHECK_INT(sf_store_pages_free(rig.store), 5);
    rig_close(&rig);
}

static void test_bad_specs(void)
{
    struct rig_spec spec = rig_usual();
    struct rig rig;
    spec.page_slots = 48;
    CHECK_REFUSED(rig_open(&spec, &rig), SF_INVALID, "block_size: 48 slots, it must be 16 x 2^k");
    spec.page_slots = 8;
    CHECK_REFUSED(rig_open(&spec, &rig), SF_INVALID, "block_size");
    spec.page_slots = 16;
    spec.dtype = SF_BF16;
    spec.k_dim = 7;
    CHECK_REFUSED(rig_open(&spec, &rig), SF_UNSUPPORTED, "heads of 7 and 6 elements in bf16");
    spec.k_dim = 8;
    spec.pages = 0;
    CHECK_REFUSED(rig_open(&spec, &rig), SF_INVALID, "no room for one page");
}

static const struct sf_test tests[] = {
    { "attention equals a plain softmax", test_attention },
    { "the model's sliding window", test_model_window },
    { "a prompt in pieces, other sequences beside it: the same bits", test_pieces },
    { "replicated heads", test_replicas },
    { "a full pool", test_full_pool },
    { "specs that are refused", test_bad_specs },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_store", tests)
