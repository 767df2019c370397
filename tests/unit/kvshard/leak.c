/* tests/unit/kvshard/leak.c: thousands of sequences through a pool that is too small, and no page
 * is lost.
 *
 * Prompts in chunks, some with shared beginnings, decode with events, closing at any moment; a step
 * that finds no page ends its sequences, as a job would.  After every step each page's holders are
 * those counted in lanes and blocks, and stored bytes a recount; at a sequence's end the receipt
 * says what was predicted, and it never held more pages than it was promised.  At the end all are
 * free. Where sequences are only opened while all promises can be kept, no step is ever refused.
 *
 * Under pressure sequences that decode are tightened at any time, again and again: from then on
 * each holds no more than is foretold of one that was tightened so often, and others are opened for
 * what has come free. */
#include <stdlib.h>

#include "base/rng.h"
#include "kvshard/methods.h"
#include "kvshard/store_impl.h"
#include "tests/unit/kvshard/rig.h"
#include "tests/unit/kvshard/toys.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SEQUENCES = 200 };
#else
enum { SEQUENCES = 2200 };
#endif
enum { OPEN = 10, LAYERS = 2, LANES = 2, PAGE = 32, PROMPT_MAX = 150, ANSWER_MAX = 70,
       FAMILIES = 3, SHARED = 3, BLOCKS = FAMILIES * SHARED };

struct running {
    struct sf_seq *seq;                 /* NULL: not open */
    int32_t prompt, most, tokens, family, tightened;
    int64_t promised;
};
static struct running all[OPEN];
/* Block family * SHARED + i stands for page i of the family's beginning. */
static struct { int filled; const struct running *filler; } blocks[BLOCKS];
static struct rig rig;
static uint64_t seed, drawn;
static int failed, closed, refused, attached, tightened;
static int64_t given_back;              /* pages, by being tightened */
static int64_t encoded;                 /* pages of groups, seen */
static int32_t segments_most;           /* of a group */

static int32_t below(int32_t n)
{
    return (int32_t)(sf_rng_u64(seed, 23, drawn++) % (uint64_t)n);
}

static void must(int holds, const char *what)
{
    if (holds || failed) return;
    failed = 1;
    sf_test_fail(__FILE__, __LINE__, "seed %llu, %d closed: %s", (unsigned long long)seed, closed,
                 what);
}

/* ---- what is held --------------------------------------------------------------------------- */
/* Pages of a sequence that its layer groups have, each once. */
static int64_t count_groups(const struct sf_seq *seq, int32_t *holders)
{
    int64_t pages = 0;
    for (int32_t g = 0; g < rig.store->groups.groups; g++)
        for (int32_t s = 0; s < seq->group[g].tier.segments; s++)
            for (int32_t l = -1, lanes = rig.store->groups.group[g].lanes; l < 2 * lanes; l++) {
                if (s >= segments_most) segments_most = s + 1;
                const struct sf_segment *segment = &seq->group[g].segment[s];
                const struct sf_kv_lane *list = l < 0 ? &segment->basis : &segment->list[l];
                if (l >= lanes && segment->values == NULL) break;
                if (l >= lanes) list = &segment->values[l - lanes];
                for (int32_t p = 0; p < list->pages; p++) holders[list->page[p]]++;
                pages += list->pages;
                encoded += list->pages;
            }
    for (int32_t g = 0; g < rig.store->groups.groups; g++)
        for (int32_t l = 0; seq->group[g].mark && l < rig.store->groups.group[g].lanes; l++) {
            const struct sf_kv_lane *list = &seq->group[g].mark[l];
            for (int32_t p = 0; p < list->pages; p++) holders[list->page[p]]++;
            pages += list->pages;
        }
    return pages;
}

static void check_held(void)
{
    const struct sf_store *store = rig.store;
    const struct sf_page_pool *pool = &store->pool;
    static int32_t holders[4096];
    int64_t bytes = 0, exact = 0;
    int32_t used = 0;
    memset(holders, 0, sizeof holders);
    must(pool->pages <= 4096, "too many pages for this test");
    for (int i = 0; i < OPEN; i++) {
        int64_t pages = 0;
        for (int32_t n = 0; all[i].seq && n < LAYERS * LANES; n++) {
            struct sf_kv_lane *lane = &all[i].seq->lane[n];
            for (int32_t t = 0; t < lane->tiers; t++) {
                const struct sf_kv_lane *tier = sf_lane_tier(lane, t);
                if (tier->shared) continue;
                for (int32_t p = 0; p < tier->pages; p++) holders[tier->page[p]]++;
                pages += tier->pages;
            }
            bytes += sf_store_held(store, all[i].seq, n / LANES, n % LANES).bytes;
        }
        if (all[i].seq) pages += count_groups(all[i].seq, holders);
        must(!all[i].seq || pages == all[i].seq->pages, "pages of a sequence");
        for (int32_t l = 0; all[i].seq && l < LAYERS; l++)
            exact += LANES * all[i].seq->tokens[l] *
                     (int64_t)sf_layout_slot_bytes(&store->layer[l].layout);
    }
    for (int32_t b = 0; b < BLOCKS; b++)
        for (int32_t n = 0; n < LAYERS * LANES; n++) {
            int32_t page = *sf_block_page(&store->blocks, b, n);
            if (page >= 0) holders[page]++;
        }
    for (int32_t p = 0; p < pool->pages; p++) {
        must(holders[p] == pool->holders[p], "holders of a page");
        used += holders[p] > 0;
    }
    must(used == pool->used, "used pages");
    must(bytes == store->bytes_stored, "stored bytes");
    must(exact == sf_store_bytes_exact(store), "the same tokens uncompressed");
}

static void predict(const struct running *r, int32_t tokens, struct sf_cost *cost)
{
    int32_t lane_ptr[LAYERS + 1], heads[LAYERS * LANES];
    uint8_t replica[LAYERS * LANES] = { 0 };
    for (int32_t i = 0; i <= LAYERS; i++) lane_ptr[i] = i * LANES;
    for (int32_t i = 0; i < LAYERS * LANES; i++) heads[i] = i % LANES;
    struct sf_rank_lanes rank = { 0, LAYERS, lane_ptr, heads, replica };
    struct sf_spot at = { .prompt = r->prompt, .tokens = tokens, .tightened = r->tightened };
    must(sf_account_tightened(&rig.setup, &rig.stack, &rank, rig.spec.dtype, &at, cost) == SF_OK,
         "the account");
}

static void drop_block(int32_t b)
{
    must(sf_block_drop(rig.store, b) == SF_OK, "dropping a block");
    blocks[b].filled = 0;
    blocks[b].filler = NULL;
}

/* ---- sequences ------------------------------------------------------------------------------ */
static void close_one(struct running *r, int whole)
{
    struct sf_receipt receipt;
    struct sf_cost cost;
    if (whole && r->tokens >= r->prompt) {
        struct running never = *r;
        never.tightened = 0;
        predict(&never, r->tokens, &cost);
        must(r->seq->pages_peak <= cost.pages_peak, "more pages than promised");
        predict(r, r->tokens, &cost);
    }
    sf_seq_close(rig.store, r->seq, &receipt);
    if (whole && r->tokens >= r->prompt)
        must(receipt.bytes_stored >= cost.bytes_lo && receipt.bytes_stored <= cost.bytes_hi,
             "predicted is not stored");
    for (int32_t b = 0; b < BLOCKS; b++) {
        if (blocks[b].filler != r) continue;
        if (whole) blocks[b].filler = NULL;
        else drop_block(b);             /* filled in some layers and not in others */
    }
    r->seq = NULL;
    closed++;
}

/* The beginning of its family, as far as it is there or nobody else is at it. */
static void share(struct running *r)
{
    int32_t number[SHARED], n = 0, reused = 0;
    while (n < SHARED && (n + 1) * PAGE <= r->prompt) {
        int32_t b = r->family * SHARED + n;
        if (blocks[b].filled && reused == n && (n + 1) * PAGE < r->prompt) reused++;
        else if (blocks[b].filled || blocks[b].filler) break;
        number[n++] = b;
    }
    struct sf_seq_share s = { number, n, reused };
    must(sf_seq_share(rig.store, r->seq, &s) == SF_OK, "sharing");
    for (int32_t i = reused; i < n; i++) blocks[number[i]].filler = r;
    r->tokens = reused * PAGE;
    attached += reused;
}

static void open_one(struct running *r, int shares, int careful)
{
    struct sf_cost cost;
    int64_t promised = shares ? BLOCKS * LAYERS * LANES : 0;
    *r = (struct running){ .prompt = 1 + below(PROMPT_MAX), .family = below(FAMILIES) };
    r->most = r->prompt + below(ANSWER_MAX);
    predict(r, r->most, &cost);
    r->promised = cost.pages_peak;
    for (int i = 0; i < OPEN; i++) promised += all[i].seq || &all[i] == r ? all[i].promised : 0;
    if (careful && promised > rig.store->pool.pages) return;
    must(sf_seq_open(rig.store, r - all, r->prompt, r->most, &r->seq) == SF_OK, "opening");
    if (shares && below(4)) share(r);
}

/* A sequence that has decoded is tightened; its pages come back at once, as was foretold. */
static void tighten_one(struct running *r)
{
    struct sf_cost cost;
    int32_t before = rig.store->pool.used;
    if (!r->seq || r->tokens <= r->prompt) return;
    r->tightened++;
    sf_status status = sf_store_tighten(rig.store, r->seq, r->tokens);
    must(status == SF_OK, sf_error_text());
    predict(r, r->most, &cost);
    must(cost.pages_after <= r->promised, "being tightened costs pages");
    r->promised = cost.pages_after;
    must(r->seq->pages <= r->promised, "more pages than promised when tightened");
    given_back += before - rig.store->pool.used; /* less than 0 for its own copies of shared ones */
    tightened++;
}

static void check_tightened(void)
{
    for (int i = 0; i < OPEN; i++)
        must(!all[i].seq || !all[i].tightened || all[i].seq->pages <= all[i].promised,
             "more pages than promised after being tightened");
}

static void run_some(void)
{
    struct rig_item item[OPEN];
    struct running *who[OPEN];
    int32_t items = 0, rows_left = 300;
    for (int i = 0; i < OPEN; i++) {
        struct running *r = &all[i];
        if (!r->seq || below(5) == 0) continue;
        int32_t end = r->tokens < r->prompt ? r->prompt : r->most;
        int32_t rows = r->tokens < r->prompt ? 1 + below(60) : 1 + below(12);
        int32_t every = r->tokens < r->prompt ? 0 : sf_stack_interval(&rig.stack);
        if (every > 0) end = r->tokens + every - (r->tokens - r->prompt) % every;
        if (end > r->most) end = r->most;
        if (rows > end - r->tokens) rows = end - r->tokens;
        if (rows == 0 || rows > rows_left) continue;
        rows_left -= rows;
        item[items] = (struct rig_item){ r->seq, i, r->tokens, rows };
        who[items++] = r;
    }
    sf_status status = rig_run(&rig, item, items);
    must(status == SF_OK || status == SF_NO_PAGES, sf_error_text());
    refused += status == SF_NO_PAGES;
    for (int32_t i = 0; i < items; i++) {
        struct running *r = who[i];
        if (status != SF_OK) {
            close_one(r, 0);
            continue;
        }
        r->tokens += item[i].rows;
        for (int32_t b = 0; b < BLOCKS; b++)
            if (blocks[b].filler == r && r->tokens >= (b % SHARED + 1) * PAGE) {
                blocks[b].filled = 1;
                blocks[b].filler = NULL;
            }
    }
}

static void run(uint64_t run_seed, struct rig_spec spec, int shares, int careful, int pressed)
{
    seed = run_seed;
    drawn = 0;
    failed = closed = refused = attached = tightened = 0;
    given_back = encoded = segments_most = 0;
    spec.device = "cpu";
    spec.layers = LAYERS;
    spec.lanes = LANES;
    spec.group = 1;
    spec.page_slots = PAGE;
    spec.tokens_max = PROMPT_MAX + ANSWER_MAX;
    spec.pages = careful ? 170 : 100;
    SF_MUST(rig_open(&spec, &rig));
    while (closed < SEQUENCES && !failed) {
        struct running *any = &all[below(OPEN)];
        if (!any->seq) open_one(any, shares, careful);
        else if (any->tokens == any->most || below(30) == 0) close_one(any, 1);
        if (shares && below(12) == 0) drop_block(below(BLOCKS));
        if (pressed && below(2)) tighten_one(&all[below(OPEN)]);
        run_some();
        check_held();
        check_tightened();
    }
    for (int i = 0; i < OPEN; i++)
        if (all[i].seq) close_one(&all[i], 1);
    for (int32_t b = 0; shares && b < BLOCKS; b++) drop_block(b);
    SF_CHECK_INT(rig.store->pool.used, 0);
    SF_CHECK_INT(sf_store_bytes_stored(rig.store), 0);
    if (careful) SF_CHECK_INT(refused, 0);
    else SF_CHECK(refused > SEQUENCES / (pressed ? 400 : 100) && refused < SEQUENCES / 2);
    SF_CHECK(!shares || attached > SEQUENCES / 10);
    if (pressed) SF_CHECK(tightened > SEQUENCES / 2 && given_back > SEQUENCES / 8);
    rig_close(&rig);
}

static void razor(struct rig_option *option, const char *heads)
{
    static const struct rig_option small[] = {
        { "num_sink_tokens", "4" }, { "min_window_tokens", "24" }, { "window_divisor", "4" },
        { "min_dropped_tokens", "8" }, { "fold_tokens", "6" } };
    memcpy(option, small, sizeof small);
    option[5] = (struct rig_option){ "retrieval_heads", heads };
}

static void ems(struct rig_option *option)
{
    static const struct rig_option small[] = {
        { "budget_tokens", "40" }, { "window_size", "12" }, { "recompress_interval", "7" } };
    memcpy(option, small, sizeof small);
}

static void test_razor(void)
{
    struct rig_spec spec = rig_usual();
    spec.dtype = SF_BF16;
    spec.method = sf_method_find("razor_attention");
    razor(spec.option, "[[0, 1]]");
    run(1, spec, 1, 0, 0);
    run(4, spec, 1, 1, 0);
}

static void test_ems(void)
{
    struct rig_spec spec = rig_usual();
    spec.method = sf_method_find("ems");
    ems(spec.option);
    run(2, spec, 0, 0, 0);
}

/* Merging, and beside it, on shared beginnings, the store's own answer by age. */
static void test_pressure(void)
{
    struct rig_spec spec = rig_usual();
    spec.method = sf_method_find("ems");
    ems(spec.option);
    spec.option[3] = (struct rig_option){ "tighten_under_pressure", "true" };
    run(6, spec, 0, 0, 1);
    run(7, spec, 0, 1, 1);
    spec = rig_usual();
    spec.method = &toy_recent;
    run(8, spec, 1, 1, 1);
}

static void test_stack(void)
{
    struct rig_spec spec = rig_usual();
    spec.dtype = SF_F16;
    spec.method = sf_method_find("razor_attention");
    razor(spec.option, "[]");
    spec.layers_text = "0";
    spec.also = sf_method_find("ems");
    ems(spec.also_option);
    spec.also_layers = "1";
    run(3, spec, 0, 0, 0);
    run(5, spec, 0, 1, 0);
}

static void test_groups(void)
{
    static const struct rig_option small[] = {
        { "group_size", "2" }, { "rank_k", "5" }, { "rank_v", "9" }, { "num_sink_tokens", "3" } };
    struct rig_spec spec = rig_usual();
    spec.dtype = SF_BF16;
    spec.rope_dim = 8;
    spec.method = sf_method_find("xkv");
    memcpy(spec.option, small, sizeof small);
    run(6, spec, 1, 0, 0);
    SF_CHECK(encoded > SEQUENCES);
    run(7, spec, 1, 1, 0);
    SF_CHECK(encoded > SEQUENCES);
    spec.option[2].text = "0";          /* values in pages of their own */
    run(10, spec, 1, 1, 0);
    SF_CHECK(encoded > SEQUENCES);
    spec.option[2].text = "9";
    spec.option[0].text = "1";          /* with each layer a group of its own */
    spec.option[4] = (struct rig_option){ "min_prompt_tokens", "1" };
    run(8, spec, 0, 1, 0);
    static const struct rig_option chunks[] = {
        { "reconstruction", "selective" }, { "chunk_size", "3" }, { "budget_tokens", "7" },
        { "local_chunks", "1" }, { "outlier_chunks", "2" } };
    spec.option[0].text = "2";
    memcpy(spec.option + 5, chunks, sizeof chunks);
    run(10, spec, 1, 0, 0);
    SF_CHECK(encoded > SEQUENCES);
    run(11, spec, 1, 1, 0);
    spec.layers_text = "0";             /* beside lanes that are tightened */
    spec.also = sf_method_find("ems");
    ems(spec.also_option);
    spec.also_option[3] = (struct rig_option){ "tighten_under_pressure", "true" };
    spec.also_layers = "1";
    run(9, spec, 0, 1, 1);
    SF_CHECK(encoded > SEQUENCES);
    SF_CHECK_INT(segments_most, 1);
}

/* And so do pieces of answers, of shared prompts, of prompts shorter than the sinks, and where
 * bases of single layers stand beside lanes that are tightened. */
static void test_segments(void)
{
    static const struct rig_option small[] = {
        { "group_size", "2" }, { "rank_k", "5" }, { "rank_v", "9" }, { "num_sink_tokens", "3" },
        { "refactor_every", "16" }, { "min_prompt_tokens", "40" } };
    static const struct rig_option chunks[] = {
        { "reconstruction", "selective" }, { "chunk_size", "3" }, { "budget_tokens", "7" },
        { "local_chunks", "1" }, { "outlier_chunks", "2" } };
    struct rig_spec spec = rig_usual();
    spec.dtype = SF_BF16;
    spec.rope_dim = 8;
    spec.method = sf_method_find("xkv");
    memcpy(spec.option, small, sizeof small);
    run(10, spec, 1, 0, 0);
    SF_CHECK(segments_most > 3);
    run(11, spec, 1, 1, 0);
    SF_CHECK(segments_most > 3);
    memcpy(spec.option + 6, chunks, sizeof chunks); /* the prompt's is read by chunks */
    run(14, spec, 1, 1, 0);
    SF_CHECK(segments_most > 3);
    spec.option[6].key = NULL;
    spec.option[3].text = "30";
    spec.option[4].text = "6";          /* fewer tokens than the rank of values */
    run(12, spec, 0, 1, 0);
    SF_CHECK(segments_most > 8);
    spec.option[0].text = "1";
    spec.layers_text = "0";
    spec.also = sf_method_find("ems");
    ems(spec.also_option);
    spec.also_option[3] = (struct rig_option){ "tighten_under_pressure", "true" };
    spec.also_layers = "1";
    run(13, spec, 0, 1, 1);
    SF_CHECK(segments_most > 8);
}

static const struct sf_test tests[] = {
    { "razor_attention, with shared beginnings", test_razor },
    { "ems", test_ems },
    { "both, on layers of their own", test_stack },
    { "under memory pressure", test_pressure },
    { "layers that share a basis", test_groups },
    { "several segments of a group", test_segments },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_leak", tests)
