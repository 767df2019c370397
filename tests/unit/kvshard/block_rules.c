/* tests/unit/kvshard/block_rules.c: what sequences that share blocks may do, and what it costs.
 *
 * Pools have exactly the pages that account.h foretells: the exact cache counts shared pages once
 * and ends with none free; under a method each sequence has its pages_peak beside the blocks, for
 * an edit may copy all that it shares.  With fewer, the edit says so and all can still be closed.
 * Every wrong order is refused by its reason and leaves nothing behind. */
#include <stdlib.h>

#include "kvshard/methods.h"
#include "kvshard/store_impl.h"
#include "tests/unit/kvshard/rig.h"
#include "tests/unit/kvshard/script.h"
#include "tests/unit/kvshard/toys.h"

enum { LAYERS = 2, LANES = 3, ALL = LAYERS * LANES, SLOTS = 16, PROMPT = 75 };

/* All sequences begin with the same PROMPT tokens. */
static int32_t alike(int32_t number, int32_t pos) { return pos < PROMPT ? 0 : number; }

static struct rig_spec spec_of(const struct sf_method *method)
{
    struct rig_spec spec = rig_usual();
    spec.layers = LAYERS;
    spec.lanes = LANES;
    spec.heads[1] = spec.heads[2] = 1;  /* held twice */
    spec.replica[2] = 1;
    spec.method = method;
    spec.page_slots = SLOTS;
    spec.source = alike;
    return spec;
}

static struct rig_spec windowed(const char *sinks, const char *recent)
{
    struct rig_spec spec = spec_of(sf_method_find("window"));
    spec.option[0].key = "num_sink_tokens";
    spec.option[0].text = sinks;
    spec.option[1].key = "recent_tokens";
    spec.option[1].text = recent;
    return spec;
}

static sf_status share(struct rig *rig, struct sf_seq *seq, const int32_t *block, int32_t blocks,
                       int32_t reused)
{
    struct sf_seq_share all = { block, blocks, reused };
    return sf_seq_share(rig->store, seq, &all);
}

static const int32_t five[] = { 0, 1, 2, 3, 4 };

/* ---- pages ---------------------------------------------------------------------------------- */
static int64_t pages_peak(const struct rig_spec *spec, int32_t prompt, int32_t tokens)
{
    struct rig rig;
    struct rig_spec ample = *spec;
    struct sf_cost cost = { 0 };
    int32_t lane_ptr[LAYERS + 1], heads[ALL];
    uint8_t replica[ALL];
    ample.pages = 1;
    if (rig_open(&ample, &rig) != SF_OK) return -1;
    for (int32_t l = 0; l <= LAYERS; l++) lane_ptr[l] = l * LANES;
    for (int32_t l = 0; l < ALL; l++) {
        heads[l] = rig_head(spec, l % LANES);
        replica[l] = (uint8_t)spec->replica[l % LANES];
    }
    struct sf_rank_lanes rank = { 0, LAYERS, lane_ptr, heads, replica };
    SF_CHECK_OK(sf_account_sequence(&rig.setup, &rig.stack, &rank, spec->dtype, prompt, tokens,
                                    &cost));
    rig_close(&rig);
    return cost.pages_peak;
}

struct member { struct sf_seq *seq; int32_t number, prompt, tokens, at; };

/* Rows for all, in pieces, until each has its tokens. */
static sf_status run_to_end(struct rig *rig, struct member *member, int32_t members, int32_t piece)
{
    for (int32_t n = 1; n > 0;) {
        struct rig_item item[8];
        n = 0;
        for (int32_t i = 0; i < members; i++) {
            struct member *m = &member[i];
            int32_t left = m->at < m->prompt ? m->prompt - m->at : 1, rows;
            rows = left < piece ? left : piece;
            if (m->at == m->tokens) continue;
            item[n++] = (struct rig_item){ m->seq, m->number, m->at, rows };
            m->at += rows;
        }
        if (n > 0) SF_TRY(rig_run(rig, item, n));
    }
    return SF_OK;
}

static sf_status member_open(struct rig *rig, struct member *m, const int32_t *block,
                             int32_t blocks, int32_t reused)
{
    SF_TRY(sf_seq_open(rig->store, m->number, m->prompt, m->tokens, &m->seq));
    m->at = reused * SLOTS;
    return share(rig, m->seq, block, blocks, reused);
}

/* A filler, one that attaches all, one that attaches two and fills two others, and one of those. */
static const struct member party[4] = { { NULL, 1, 83, 130, 0 }, { NULL, 2, 81, 140, 0 },
                                        { NULL, 3, 70, 99, 0 }, { NULL, 4, 65, 110, 0 } };

static void run_party(const struct rig_spec *spec, int32_t piece, int64_t free_at_end)
{
    static const int32_t branch[] = { 0, 1, 5, 6 };
    struct rig rig;
    struct member member[4];
    memcpy(member, party, sizeof member);
    SF_MUST(rig_open(spec, &rig));
    SF_MUST(member_open(&rig, &member[0], five, 5, 0));
    SF_MUST(rig_feed(&rig, member[0].seq, 1, 0, 5 * SLOTS));
    member[0].at = 5 * SLOTS;
    SF_MUST(member_open(&rig, &member[2], branch, 4, 2));
    SF_MUST(rig_feed(&rig, member[2].seq, 3, 2 * SLOTS, 2 * SLOTS));
    member[2].at = 4 * SLOTS;
    SF_MUST(member_open(&rig, &member[1], five, 5, 5));
    SF_MUST(member_open(&rig, &member[3], branch, 4, 4));
    SF_CHECK_OK(run_to_end(&rig, member, 4, piece));
    if (free_at_end >= 0) SF_CHECK_INT(sf_store_pages_free(rig.store), free_at_end);
    for (int i = 0; i < 4; i++) sf_seq_close(rig.store, member[i].seq, NULL);
    SF_CHECK_INT(sf_store_pages_free(rig.store), spec->pages - 7 * ALL);
    SF_CHECK_INT(sf_store_bytes_held(rig.store),
                 7 * ALL * (int64_t)rig.store->pool.page_bytes);
    for (int32_t b = 0; b < 7; b++) SF_CHECK_OK(sf_block_drop(rig.store, b));
    SF_CHECK_INT(sf_store_pages_free(rig.store), spec->pages);
    rig_close(&rig);
}

static void test_pages_exact(void)
{
    struct rig_spec spec = spec_of(NULL);
    int64_t pages = 0;
    for (int i = 0; i < 4; i++)
        pages += pages_peak(&spec, party[i].prompt, party[i].tokens);
    spec.pages = (int32_t)pages - (5 + 2 + 4) * ALL; /* what three of them attach */
    run_party(&spec, 7, 0);
    run_party(&spec, 100, 0);
}

static void test_pages_methods(void)
{
    struct rig_spec specs[] = { windowed("4", "20"), windowed("0", "1"), windowed("33", "40"),
                                windowed("16", "16"), windowed("20", "100"), spec_of(&toy_norm),
                                spec_of(&toy_fold), spec_of(&toy_shared) };
    for (size_t i = 0; i < sizeof specs / sizeof specs[0]; i++) {
        int64_t pages = 7 * ALL;
        for (int m = 0; m < 4; m++)
            pages += pages_peak(&specs[i], party[m].prompt, party[m].tokens);
        specs[i].pages = (int32_t)pages;
        run_party(&specs[i], 7, -1);
        run_party(&specs[i], 100, -1);
    }
}

/* 75 tokens, of which 55 .. 74 stay: pages 0 to 2 go unmarked, page 3 needs a copy, in each lane.
 * There are pages for the rows of a layer, and for two of its three copies. */
static void test_no_copies(void)
{
    struct rig_spec spec = windowed("0", "20");
    struct rig rig;
    struct sf_seq *filler, *seq;
    spec.pages = 4 * ALL + LANES + 2;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 1, PROMPT, 100, &filler));
    SF_MUST(share(&rig, filler, five, 4, 0));
    SF_MUST(rig_feed(&rig, filler, 1, 0, 4 * SLOTS));
    sf_seq_close(rig.store, filler, NULL);
    SF_MUST(sf_seq_open(rig.store, 2, PROMPT, 100, &seq));
    SF_MUST(share(&rig, seq, five, 4, 4));
    CHECK_REFUSED(rig_feed(&rig, seq, 2, 4 * SLOTS, 11), SF_NO_PAGES, "1 copies of shared pages");
    for (int32_t l = 0; l < LANES; l++)
        SF_CHECK_INT(sf_seq_lane_slots(rig.store, seq, 0, l), l < 2 ? 20 : 75);
    SF_CHECK_INT(sf_store_pages_free(rig.store), 0);
    sf_seq_close(rig.store, seq, NULL);
    SF_CHECK_INT(sf_store_pages_free(rig.store), spec.pages - 4 * ALL);
    for (int32_t b = 0; b < 4; b++) SF_CHECK_OK(sf_block_drop(rig.store, b));
    SF_CHECK_INT(sf_store_pages_free(rig.store), spec.pages);
    rig_close(&rig);
}

/* By hand: the same with pages enough.  The lane keeps two pages, one of them a copy. */
static void test_copies_by_hand(void)
{
    struct rig_spec spec = windowed("0", "20");
    struct rig rig;
    struct sf_seq *filler, *seq;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 1, PROMPT, 100, &filler));
    SF_MUST(share(&rig, filler, five, 4, 0));
    SF_MUST(rig_feed(&rig, filler, 1, 0, 4 * SLOTS));
    SF_MUST(sf_seq_open(rig.store, 2, PROMPT, 100, &seq));
    SF_MUST(share(&rig, seq, five, 4, 4));
    SF_CHECK_INT(sf_store_pages_free(rig.store), spec.pages - 4 * ALL);
    SF_MUST(rig_feed(&rig, seq, 2, 4 * SLOTS, 11));
    SF_CHECK_INT(sf_store_pages_free(rig.store), spec.pages - 4 * ALL - 2 * ALL);
    for (int32_t b = 0; b < 4; b++)     /* the filler and the block; page 3 is not seq's any more */
        SF_CHECK_INT(rig.store->pool.holders[*sf_block_page(&rig.store->blocks, b, 0)], 2);
    for (int32_t b = 0; b < 4; b++) SF_CHECK_OK(sf_block_drop(rig.store, b));
    SF_MUST(rig_feed(&rig, filler, 1, 4 * SLOTS, 11)); /* all are its own: it copies nothing */
    SF_CHECK_INT(sf_store_pages_free(rig.store), spec.pages - 2 * ALL - 2 * ALL);
    sf_seq_close(rig.store, filler, NULL);
    sf_seq_close(rig.store, seq, NULL);
    SF_CHECK_INT(sf_store_pages_free(rig.store), spec.pages);
    rig_close(&rig);
}

/* ---- refusals ------------------------------------------------------------------------------- */
struct wrong {
    int32_t prompt, block[5], blocks, reused;
    const char *words;
};

/* Blocks 0 and 1 are filled, 2 is promised to sequence 1, which is still running. */
static const struct wrong wrongs[] = {
    { 75, { 0, 1 }, 2, -1, "75 tokens shares 2 blocks and attaches -1" },
    { 75, { 0, 1 }, 1, 2, "75 tokens shares 1 blocks and attaches 2" },
    { 75, { 0 }, -1, 0, "75 tokens shares -1 blocks" },
    { 32, { 0, 1 }, 2, 2, "32 tokens shares 2 blocks and attaches 2" },
    { 31, { 0, 1 }, 2, 1, "31 tokens shares 2 blocks" },
    { 75, { 0, 1, 3, 4, 5 }, 5, 2, "75 tokens shares 5 blocks" },
    { 75, { 0, 1, -1 }, 3, 2, "block -1 of a prefix cache of " },
    { 75, { 0, 1, 3, 1 << 30 }, 4, 2, "block 1073741824 of a prefix cache of " },
    { 75, { 0, 1, 3 }, 3, 3, "block 3 of a sequence is not there" },
    { 75, { 0, 1, 2 }, 3, 3, "block 2 of a sequence is not there" },
    { 75, { 3, 1 }, 2, 0, "block 1 of a sequence is there already" },
    { 75, { 0, 1 }, 2, 1, "block 1 of a sequence is there already" },
    { 75, { 0, 1, 3, 2 }, 4, 2, "block 2 of sequence 7 is to be filled by sequence 1" },
    { 75, { 0, 1, 3, 3 }, 4, 2, "block 3 of sequence 7 is to be filled by sequence 7" },
    { 75, { 1, 0 }, 2, 2, "block 1 is number 1 of its prompt, not 0" },
    { 75, { 0, 0 }, 2, 2, "block 0 is number 0 of its prompt, not 1" }
};

static void test_refused(void)
{
    struct rig_spec spec = spec_of(NULL);
    struct rig rig;
    struct sf_seq *filler, *seq;
    static const int32_t all[] = { 0, 1, 3, 4 };
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 1, PROMPT, 100, &filler));
    SF_MUST(share(&rig, filler, five, 3, 0));
    SF_MUST(rig_feed(&rig, filler, 1, 0, 40));
    for (size_t i = 0; i < sizeof wrongs / sizeof wrongs[0]; i++) {
        const struct wrong *wrong = &wrongs[i];
        int64_t pages = sf_store_pages_free(rig.store), bytes = sf_store_bytes_stored(rig.store);
        SF_MUST(sf_seq_open(rig.store, 7, wrong->prompt, 100, &seq));
        CHECK_REFUSED(share(&rig, seq, wrong->block, wrong->blocks, wrong->reused), SF_INTERNAL,
                      wrong->words);
        SF_CHECK_INT(sf_store_pages_free(rig.store), pages);
        SF_CHECK_INT(sf_store_bytes_stored(rig.store), bytes);
        SF_CHECK_INT(sf_seq_lane_slots(rig.store, seq, 0, 0), 0);
        if (wrong->prompt == 75) {      /* as if nothing had been asked */
            SF_CHECK_OK(share(&rig, seq, all, 4, 2));
            SF_CHECK_INT(sf_seq_lane_slots(rig.store, seq, 1, 2), 2 * SLOTS);
        }
        sf_seq_close(rig.store, seq, NULL);
    }
    CHECK_REFUSED(sf_block_drop(rig.store, -1), SF_INTERNAL, "block -1 of a prefix cache of ");
    CHECK_REFUSED(sf_block_drop(rig.store, rig.spec.pages / ALL), SF_INTERNAL, "a prefix cache");
    SF_CHECK_OK(sf_block_drop(rig.store, rig.spec.pages / ALL - 1));
    SF_CHECK_INT(rig.store->pool.holders[filler->lane[0].page[0]], 2);
    sf_seq_close(rig.store, filler, NULL);
    rig_close(&rig);                    /* with two blocks filled */
}

/* Stacks that cannot share; no blocks are fine with any. */
static void test_refused_methods(void)
{
    static const struct { const struct sf_method *method; const char *words; } cases[] = {
        { &toy_merge, "toy_merge: prompts share blocks, but it has bytes of its own" },
        { &toy_chunks, "toy_chunks: prompts share blocks, but it " },
        { &script_method, "script: prompts share blocks, but it edits prompts before they end" } };
    script = (struct script){ .plan = { .whens = 1u << SF_AT_PREFILL_CHUNK,
                                        .edits = SF_EDITS_KEEP, .chunk_tokens = 16 } };
    for (int i = 0; i < 3; i++) {
        struct rig_spec spec = spec_of(cases[i].method);
        struct rig rig;
        struct sf_seq *seq;
        SF_MUST(rig_open(&spec, &rig));
        SF_MUST(sf_seq_open(rig.store, 1, PROMPT, 100, &seq));
        CHECK_REFUSED(share(&rig, seq, five, 3, 0), SF_INTERNAL, cases[i].words);
        SF_CHECK_OK(share(&rig, seq, NULL, 0, 0));
        sf_seq_close(rig.store, seq, NULL);
        rig_close(&rig);
    }
}

/* ---- promises ------------------------------------------------------------------------------- */
/* A filler that closes leaves what is whole to the block, and the rest to the next. */
static void test_filler_closes(void)
{
    struct rig_spec spec = spec_of(NULL);
    struct rig rig;
    struct sf_seq *first, *next;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 1, PROMPT, 100, &first));
    SF_MUST(share(&rig, first, five, 4, 0));
    SF_MUST(rig_feed(&rig, first, 1, 0, 3 * SLOTS - 1));
    sf_seq_close(rig.store, first, NULL);
    SF_CHECK_INT(sf_store_pages_free(rig.store), spec.pages - 2 * ALL);
    SF_MUST(sf_seq_open(rig.store, 2, PROMPT, 100, &next));
    SF_MUST(share(&rig, next, five, 4, 2));
    SF_MUST(rig_feed(&rig, next, 2, 2 * SLOTS, PROMPT - 2 * SLOTS));
    sf_seq_close(rig.store, next, NULL);
    SF_CHECK_INT(sf_store_pages_free(rig.store), spec.pages - 4 * ALL);
    for (int32_t b = 0; b < 4; b++) SF_CHECK_OK(sf_block_drop(rig.store, b));
    SF_CHECK_INT(sf_store_pages_free(rig.store), spec.pages);
    rig_close(&rig);
}

/* Numbers dropped before they are filled, of which another sequence then fills one. */
static void test_dropped_promise(void)
{
    static const int32_t one[] = { 2 };
    struct rig_spec spec = spec_of(NULL);
    struct rig rig;
    struct sf_seq *filler, *other;
    SF_MUST(rig_open(&spec, &rig));
    SF_MUST(sf_seq_open(rig.store, 1, PROMPT, 100, &filler));
    SF_MUST(share(&rig, filler, five, 4, 0));
    SF_MUST(rig_feed(&rig, filler, 1, 0, SLOTS + 1));
    SF_CHECK_OK(sf_block_drop(rig.store, 1));
    SF_CHECK_OK(sf_block_drop(rig.store, 2));
    SF_MUST(sf_seq_open(rig.store, 2, SLOTS, 100, &other));
    SF_MUST(share(&rig, other, one, 1, 0));
    SF_MUST(rig_feed(&rig, filler, 1, SLOTS + 1, PROMPT - SLOTS - 1));
    SF_CHECK_INT(*sf_block_page(&rig.store->blocks, 1, 0), -1);
    SF_CHECK_INT(*sf_block_page(&rig.store->blocks, 2, 0), -1);
    SF_CHECK_INT(*sf_block_page(&rig.store->blocks, 3, 0), filler->lane[0].page[3]);
    SF_MUST(rig_feed(&rig, other, 2, 0, SLOTS));
    SF_CHECK_INT(*sf_block_page(&rig.store->blocks, 2, 0), other->lane[0].page[0]);
    sf_seq_close(rig.store, filler, NULL);
    sf_seq_close(rig.store, other, NULL);
    SF_CHECK_INT(sf_store_pages_free(rig.store), spec.pages - 3 * ALL);
    rig_close(&rig);
}

/* ---- a rank without lanes ------------------------------------------------------------------- */
static void test_no_lanes(void)
{
    struct rig_spec spec = spec_of(NULL);
    struct rig rig;
    struct sf_store *store;
    struct sf_seq *seq;
    struct sf_receipt receipt;
    SF_MUST(rig_open(&spec, &rig));
    struct sf_store_layer layer = { .k_dim = 8, .v_dim = 6, .scale = 1, .lane = NULL, .lanes = 0 };
    struct sf_store_spec empty = { .device = rig.device, .stack = &rig.stack, .setup = &rig.setup,
                                   .layers = 1, .layer = &layer, .page_slots = SLOTS,
                                   .pool_bytes = 1 << 20, .seqs_max = 1, .rows_max = PROMPT };
    SF_MUST(sf_store_create(&empty, &store));
    SF_MUST(sf_seq_open(store, 1, PROMPT, 100, &seq));
    struct sf_seq_share all = { five, 4, 3 };
    SF_MUST(sf_seq_share(store, seq, &all));
    struct sf_kv_item item = { seq, 0, 11, 3 * SLOTS };
    struct sf_kv_step step = { .item = &item, .items = 1 };
    SF_CHECK_OK(sf_store_layer(store, 0, &step));
    SF_CHECK_OK(sf_block_drop(store, 2));
    CHECK_REFUSED(sf_block_drop(store, -2), SF_INTERNAL, "block -2 of a prefix cache");
    sf_seq_close(store, seq, &receipt);
    SF_CHECK_INT(receipt.tokens, 3 * SLOTS + 11);
    sf_store_destroy(store);
    rig_close(&rig);
}

static const struct sf_test tests[] = {
    { "pages of the exact cache, to the last one", test_pages_exact },
    { "pages_peak beside the blocks suffices", test_pages_methods },
    { "no page for a copy", test_no_copies },
    { "copies by hand", test_copies_by_hand },
    { "wrong orders", test_refused },
    { "methods that cannot share", test_refused_methods },
    { "a filler closes early", test_filler_closes },
    { "a block is dropped before it is filled", test_dropped_promise },
    { "a rank without lanes", test_no_lanes },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_block_rules", tests)
