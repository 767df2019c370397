/* tests/unit/kvshard/block_random.c: thousands of random openings, steps, edits, closings and drops
 * of sequences whose prompts come from one small tree.
 *
 *   tokens   0 ..... 2 pages ..... 4 pages ......         a prompt is a leaf: with its brothers it
 *            root      | child       | leaf              shares 4 pages, with its cousins 2
 *
 * A model beside the store says what each block number stands for and who is to fill it; each
 * sequence has its lanes as plain arrays, to which every edit is done as well.  After every
 * operation the holders of every page are counted anew, from lanes and blocks; a page with several
 * must be whole and unmarked; blocks hold what the model says; and the lanes of whoever took part
 * are compared with their arrays.  A failing run prints its seed and operation. */
#include <stdlib.h>

#include "base/rng.h"
#include "kvshard/store_impl.h"
#include "tests/unit/kvshard/rig.h"
#include "tests/unit/kvshard/script.h"

enum { SEQS = 6, LAYERS = 2, LANES = 3, ALL = LAYERS * LANES, TOKENS_MAX = 420, SINKS = 2, TAIL = 3,
       NUMBERS = 24, OPERATIONS = 1000 };

struct shadow {
    struct sf_seq *seq;                 /* NULL: not open */
    int32_t number, prompt, tokens[LAYERS];
    struct ref_lane lane[LAYERS][LANES];
};
static struct shadow shadows[SEQS];
static struct number { int used, filled, filler; int32_t source, place; } numbers[NUMBERS];
static struct rig rig;
static uint64_t seed, drawn;
static int operation, failed, edits_made, attached, filled;

static int32_t below(int32_t n)
{
    return (int32_t)(sf_rng_u64(seed, 11, drawn++) % (uint64_t)n);
}

static void must(int holds, const char *what)
{
    if (holds || failed) return;
    failed = 1;
    sf_test_fail(__FILE__, __LINE__, "seed %llu operation %d: %s", (unsigned long long)seed,
                 operation, what);
}

/* 8 leaves below 4 children below 2 roots. */
static int32_t tree(int32_t number, int32_t pos)
{
    if (pos < 2 * rig.spec.page_slots) return 100 + number / 4;
    return pos < 4 * rig.spec.page_slots ? 200 + number / 2 : number;
}

static void catch_up(struct shadow *shadow, int32_t layer, int32_t tokens)
{
    for (; shadow->tokens[layer] < tokens; shadow->tokens[layer]++)
        for (int32_t l = 0; l < LANES; l++)
            ref_append(&shadow->lane[layer][l], &rig.spec, shadow->number, layer, l,
                       shadow->tokens[layer]);
}

/* ---- what the method answers ---------------------------------------------------------------- */
static int guarded(const struct sf_lane *lane, int32_t s, int32_t tokens)
{
    return lane->pos[s] < SINKS || lane->pos[s] >= tokens - TAIL;
}

static sf_status random_keep(struct sf_answer *answer, const struct sf_lane *lane,
                             struct ref_lane *ref, int32_t tokens)
{
    int32_t ids[TOKENS_MAX], n = 0, percent = below(101), first = below(lane->slots + 1);
    int32_t end = first + below(lane->slots + 1 - first); /* what lies outside stays as it is */
    if (below(3) == 0) percent = 0;
    for (int32_t s = 0; s < lane->slots; s++)
        if (guarded(lane, s, tokens) || s < first || s >= end || below(100) < percent) ids[n++] = s;
    ref_keep(ref, ids, n);
    return sf_edit_keep(answer, lane, (struct sf_list){ ids, NULL, n });
}

/* Runs of slots become sums, copies or nothing; then some change places. */
static sf_status random_mix(struct sf_answer *answer, const struct sf_lane *lane,
                            struct ref_lane *ref, int32_t tokens)
{
    static struct { int32_t first, n; } out[TOKENS_MAX];
    static int32_t ptr[TOKENS_MAX + 1], src[TOKENS_MAX], pos[TOKENS_MAX];
    static float weight[TOKENS_MAX], bias[TOKENS_MAX];
    int32_t m = 0;
    for (int32_t s = 0, n; s < lane->slots; s += n) {
        n = guarded(lane, s, tokens) ? 1 : 1 + below(3);
        for (int32_t j = 1; j < n; j++)
            if (s + j >= lane->slots || guarded(lane, s + j, tokens)) n = j;
        if (!guarded(lane, s, tokens) && below(6) == 0) continue;
        out[m].first = s;
        out[m++].n = n;
    }
    for (int32_t swaps = below(2) ? below(m) : 0; swaps > 0; swaps--) {
        int32_t a = below(m), b = below(m), first = out[a].first, n = out[a].n;
        out[a] = out[b];
        out[b].first = first;
        out[b].n = n;
    }
    for (int32_t i = 0; i < m; i++) {
        int32_t s = out[i].first, n = out[i].n;
        ptr[i + 1] = ptr[i] + n;
        for (int32_t j = 0; j < n; j++) {
            src[ptr[i] + j] = s + j;
            weight[ptr[i] + j] = n == 1 ? 1 : (float)below(9) / 16;
        }
        pos[i] = lane->pos[s];
        bias[i] = n == 1 ? lane->bias[s] : lane->bias[s] + logf((float)n);
    }
    struct sf_mix mix = { .slots = m, .ptr = ptr, .src = src, .k_weight = weight,
                          .v_weight = weight, .pos = pos, .bias = bias };
    ref_mix(ref, rig.spec.dtype, &mix);
    return sf_edit_mix(answer, lane, &mix);
}

static sf_status answer_at_random(const struct sf_env *env, enum sf_when when,
                                  const struct sf_batch *batch, struct sf_answer *answer)
{
    (void)env; (void)when;
    for (int32_t i = 0; i < batch->spans; i++) {
        const struct sf_span *span = &batch->span[i];
        struct shadow *shadow = &shadows[span->seq_id];
        catch_up(shadow, span->lane[0].layer, span->tokens);
        for (int32_t l = 0; l < span->lanes; l++) {
            const struct sf_lane *lane = &span->lane[l];
            struct ref_lane *ref = &shadow->lane[lane->layer][l];
            size_t slots = (size_t)lane->slots;
            must(lane->slots == ref->slots, "a view of another length");
            if (failed) return SF_FAIL(SF_INTERNAL, "the shadow differs");
            must(memcmp(lane->pos, ref->pos, slots * sizeof(int32_t)) == 0, "positions in a view");
            must(memcmp(lane->bias, ref->bias, slots * sizeof(float)) == 0, "biases in a view");
            if (below(3) == 0) continue;
            edits_made++;
            if (below(3)) SF_TRY(random_keep(answer, lane, ref, span->tokens));
            else SF_TRY(random_mix(answer, lane, ref, span->tokens));
        }
    }
    return SF_OK;
}

/* ---- invariants ----------------------------------------------------------------------------- */
/* A page that several have is full, and says so in the mirror and in itself. */
static void check_whole(int32_t page, int32_t place)
{
    const struct sf_page_pool *pool = &rig.store->pool;
    const struct sf_layout *layout = &rig.store->layer[0].layout;
    int32_t slot[64], pos[64], first = place * pool->page_slots;
    float bias[64];
    for (int32_t s = 0; s < pool->page_slots; s++) slot[s] = s;
    struct sf_slot_list list = { &page, slot, pool->page_slots };
    rig.device->k->kv_read(rig.device, layout, pool->base, pool->page_bytes, &list, NULL, NULL,
                           bias, pos);
    must(!pool->pos || pool->live[page] == pool->page_slots, "live slots of a shared page");
    for (int32_t s = 0; s < pool->page_slots; s++) {
        size_t at = (size_t)page * (size_t)pool->page_slots + (size_t)s;
        must(pos[s] == first + s && bias[s] == 0.0f, "slots of a shared page");
        must(!pool->pos || (pool->pos[at] == first + s && pool->bias[at] == 0.0f),
             "mirror of a shared page");
    }
}

static void count_lanes(int32_t *holders, int64_t *bytes)
{
    const struct sf_page_pool *pool = &rig.store->pool;
    for (int i = 0; i < SEQS; i++)
        for (int32_t n = 0; shadows[i].seq && n < ALL; n++) {
            const struct sf_kv_lane *lane = &shadows[i].seq->lane[n];
            must(lane->pages == (lane->slots + pool->page_slots - 1) / pool->page_slots,
                 "pages of a lane are those of its slots");
            must(lane->slots <= sf_lane_slots_bound(lane->live, pool->page_slots),
                 "too many holes");
            for (int32_t p = 0; p < lane->pages; p++) {
                int32_t page = lane->page[p], live = 0;
                for (int32_t s = 0; pool->pos && s < pool->page_slots; s++)
                    live += pool->pos[(size_t)page * (size_t)pool->page_slots + (size_t)s] >= 0;
                must(!pool->pos || (live > 0 && live == pool->live[page]), "live slots of a page");
                holders[page]++;
            }
            if (!rig.spec.replica[n % LANES])
                *bytes += lane->live * (int64_t)sf_layout_slot_bytes(&rig.store->layer[0].layout);
        }
}

static void check_insides(void)
{
    const struct sf_store *store = rig.store;
    const struct sf_page_pool *pool = &store->pool;
    int32_t *holders = calloc((size_t)pool->pages, sizeof *holders), used = 0;
    int64_t bytes = 0;
    count_lanes(holders, &bytes);
    for (int32_t b = 0; b < store->blocks.blocks_max; b++)
        for (int32_t l = 0; l < ALL; l++) {
            int32_t page = *sf_block_page(&store->blocks, b, l);
            int there = b < NUMBERS && numbers[b].used && numbers[b].filled;
            must((page >= 0) == there, "a block holds what it should not, or too little");
            if (failed || page < 0) continue;
            holders[page]++;
            if (operation % 4 == 0) check_whole(page, numbers[b].place);
        }
    for (int32_t p = 0; p < pool->pages; p++) {
        must(holders[p] == pool->holders[p], "holders differ from a recount");
        used += holders[p] > 0;
    }
    must(used == pool->used && used + sf_pages_free(pool) == pool->pages, "used and free");
    for (int32_t f = 0; f < sf_pages_free(pool); f++) {
        must(holders[pool->free_page[f]]++ == 0, "a free page is held, or free twice");
    }
    must(bytes == store->bytes_stored, "stored bytes differ from a recount");
    free(holders);
}

static void check_shadow(const struct shadow *shadow)
{
    for (int32_t layer = 0; !failed && layer < LAYERS; layer++)
        for (int32_t l = 0; l < LANES; l++)
            check_lane(&rig, shadow->seq, layer, l, &shadow->lane[layer][l]);
}

/* ---- operations ----------------------------------------------------------------------------- */
/* A filled block that is number `place` of this prompt; -1: there is none. */
static int32_t find_filled(int32_t number, int32_t place)
{
    int32_t from = below(NUMBERS);
    for (int32_t i = 0; i < NUMBERS; i++) {
        const struct number *b = &numbers[(from + i) % NUMBERS];
        if (b->used && b->filled && b->place == place &&
            b->source == tree(number, place * rig.spec.page_slots))
            return (from + i) % NUMBERS;
    }
    return -1;
}

static int32_t find_free(void)
{
    int32_t from = below(NUMBERS);
    for (int32_t i = 0; i < NUMBERS; i++)
        if (!numbers[(from + i) % NUMBERS].used) return (from + i) % NUMBERS;
    return -1;
}

/* Attaches what is there, as a rule, and fills some of what follows. */
static void shadow_open(struct shadow *shadow)
{
    int32_t block[NUMBERS], size = rig.spec.page_slots, wants = below(8), b;
    shadow->number = below(8);
    shadow->prompt = 1 + below(TOKENS_MAX - 60 < 7 * size ? TOKENS_MAX - 60 : 7 * size);
    must(sf_seq_open(rig.store, shadow - shadows, shadow->prompt, TOKENS_MAX, &shadow->seq) ==
             SF_OK, "opening a sequence");
    struct sf_seq_share share = { block, 0, 0 };
    while (share.reused < wants && (share.reused + 1) * size < shadow->prompt &&
           (b = find_filled(shadow->number, share.reused)) >= 0)
        block[share.reused++] = b;
    share.blocks = share.reused;
    for (wants = below(6); wants > 0 && (share.blocks + 1) * size <= shadow->prompt; wants--) {
        if ((b = find_free()) < 0) break;
        numbers[b] = (struct number){ .used = 1, .filler = (int)(shadow - shadows),
                                      .source = tree(shadow->number, share.blocks * size),
                                      .place = share.blocks };
        block[share.blocks++] = b;
    }
    must(sf_seq_share(rig.store, shadow->seq, &share) == SF_OK, "sharing");
    attached += share.reused;
    for (int32_t layer = 0; layer < LAYERS; layer++) {
        for (int32_t l = 0; l < LANES; l++)
            ref_open(&shadow->lane[layer][l], &rig.spec, TOKENS_MAX);
        shadow->tokens[layer] = 0;
        catch_up(shadow, layer, share.reused * size);
    }
    check_shadow(shadow);
}

static void shadow_close(struct shadow *shadow)
{
    struct sf_receipt receipt;
    int64_t bytes = 0, slot = (int64_t)sf_layout_slot_bytes(&rig.store->layer[0].layout);
    check_shadow(shadow);
    for (int32_t n = 0; n < ALL; n++) {
        struct ref_lane *lane = &shadow->lane[n / LANES][n % LANES];
        if (!rig.spec.replica[n % LANES]) bytes += lane->slots * slot;
        ref_close(lane);
    }
    sf_seq_close(rig.store, shadow->seq, &receipt);
    must(receipt.bytes_stored == bytes, "bytes of a receipt");
    must(receipt.bytes_exact == LAYERS * (LANES - 1) * shadow->tokens[0] * slot, "exact bytes");
    must(receipt.tokens == shadow->tokens[0], "tokens of a receipt");
    shadow->seq = NULL;
    for (int32_t b = 0; b < NUMBERS; b++) /* what it has not filled is free */
        if (numbers[b].used && !numbers[b].filled && numbers[b].filler == (int)(shadow - shadows))
            numbers[b].used = 0;
}

/* Any block: one that is used, one that is not filled yet, one that is not there. */
static void random_drop(void)
{
    int32_t b = below(NUMBERS);
    must(sf_block_drop(rig.store, b) == SF_OK, "dropping a block");
    numbers[b].used = 0;
}

/* Rows for some open sequences, as far as the pool has room for them and for copies of all that
 * they share then. */
static int32_t draw_items(struct rig_item *item)
{
    int32_t items = 0, rows_left = 160, pages_left = sf_pages_free(&rig.store->pool);
    for (int i = 0; i < SEQS; i++) {
        struct shadow *shadow = &shadows[i];
        if (!shadow->seq || below(4) == 0) continue;
        int32_t at = shadow->tokens[0], rows = at < shadow->prompt ? 1 + below(90) : 1, pages = 0;
        if (at >= shadow->prompt && below(5) == 0) rows = 1 + below(9);
        if (at < shadow->prompt && at + rows > shadow->prompt) rows = shadow->prompt - at;
        if (at + rows > TOKENS_MAX) rows = TOKENS_MAX - at;
        for (int32_t n = 0; n < ALL; n++) {
            const struct sf_kv_lane *lane = &shadow->seq->lane[n];
            pages += 1 + 2 * sf_lane_pages_needed(lane, rows);
            for (int32_t p = 0; p < lane->pages; p++)
                pages += rig.store->pool.holders[lane->page[p]] > 1;
        }
        if (rows == 0 || rows > rows_left || pages > pages_left) continue;
        rows_left -= rows;
        pages_left -= pages;
        item[items++] = (struct rig_item){ shadow->seq, shadow->number, at, rows };
    }
    return items;
}

static void random_step(void)
{
    struct rig_item item[SEQS];
    int32_t items = draw_items(item);
    sf_status status = rig_run(&rig, item, items);
    if (status != SF_OK)
        sf_test_fail(__FILE__, __LINE__, "seed %llu operation %d: %s", (unsigned long long)seed,
                     operation, sf_error_text());
    failed |= status != SF_OK;
    for (int32_t i = 0; i < items && !failed; i++) {
        struct shadow *shadow = shadows;
        while (shadow->seq != item[i].seq) shadow++;
        for (int32_t layer = 0; layer < LAYERS; layer++)
            catch_up(shadow, layer, item[i].pos_first + item[i].rows);
        for (int32_t b = 0; b < NUMBERS; b++)
            if (numbers[b].used && !numbers[b].filled && &shadows[numbers[b].filler] == shadow &&
                (numbers[b].place + 1) * rig.spec.page_slots <= shadow->tokens[0]) {
                numbers[b].filled = 1;
                filled++;
            }
        check_shadow(shadow);
    }
}

/* ---- one run -------------------------------------------------------------------------------- */
static void run(uint64_t run_seed, struct rig_spec spec)
{
    seed = run_seed;
    drawn = 0;
    failed = edits_made = attached = filled = 0;
    memset(numbers, 0, sizeof numbers);
    script = (struct script){ .plan = { .whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_INTERVAL,
                                        .edits = SF_EDITS_KEEP | SF_EDITS_MIX, .every_tokens = 11,
                                        .sink_tokens = SINKS, .tail_tokens = TAIL },
                              .act = answer_at_random };
    spec.lanes = LANES;
    spec.heads[0] = 1;
    spec.heads[1] = spec.heads[2] = 2;  /* held twice */
    spec.replica[2] = 1;
    spec.tokens_max = TOKENS_MAX;
    spec.source = tree;
    SF_MUST(rig_open(&spec, &rig));
    for (operation = 0; operation < OPERATIONS && !failed; operation++) {
        struct shadow *any = &shadows[below(SEQS)];
        int32_t what = below(9);
        if (what < 5) random_step();
        else if (what == 5 && below(2)) random_drop();
        else if (!any->seq) shadow_open(any);
        else if (below(3) == 0 || any->tokens[0] == TOKENS_MAX) shadow_close(any);
        check_insides();
        for (int i = 0; operation % 16 == 0 && i < SEQS; i++)
            if (shadows[i].seq) check_shadow(&shadows[i]);
    }
    for (int i = 0; i < SEQS; i++)
        if (shadows[i].seq) shadow_close(&shadows[i]);
    for (int32_t b = 0; b < NUMBERS; b++) SF_CHECK_OK(sf_block_drop(rig.store, b));
    if (!failed) SF_CHECK_INT(rig.store->pool.used, 0);
    SF_CHECK_INT(sf_store_bytes_stored(rig.store), 0);
    SF_CHECK(attached > 100 && filled > 40);
    SF_CHECK(spec.method == NULL || edits_made > OPERATIONS / 4);
    rig_close(&rig);
}

static struct rig_spec spec_of(const char *device, enum sf_dtype dtype, int32_t page_slots,
                               const struct sf_method *method)
{
    struct rig_spec spec = rig_usual();
    spec.device = device;
    spec.dtype = dtype;
    spec.page_slots = page_slots;
    spec.method = method;
    spec.pages = 10880 / page_slots;
    return spec;
}

static void test_exact(void)
{
    run(1, spec_of("ref", SF_F32, 16, NULL));
    run(2, spec_of("cpu", SF_BF16, 32, NULL));
}

static void test_edited(void)
{
    run(3, spec_of("ref", SF_BF16, 32, &script_method));
    run(4, spec_of("cpu", SF_F32, 16, &script_method));
    run(5, spec_of("cpu", SF_F16, 16, &script_method));
    run(6, spec_of("cpu", SF_BF16, 64, &script_method));
    run(7, spec_of("cpu", SF_INT8, 32, &script_method));
}

static const struct sf_test tests[] = {
    { "the exact cache", test_exact },
    { "edited at random", test_edited },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_block_random", tests)
