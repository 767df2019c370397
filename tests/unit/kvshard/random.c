/* tests/unit/kvshard/random.c: thousands of random steps, edits and closings against a shadow.
 *
 * Each sequence has a shadow: its lanes as plain arrays, to which every edit is done as well.  All
 * that a hook sees is compared with it; after each step the store's insides must hold together: no
 * page has two owners, free and used pages make up the pool, the mirror says what the pages say,
 * holes are bounded, bytes are those of a recount.  A failing run prints its seed and step. */
#include <stdlib.h>

#include "base/rng.h"
#include "kvshard/store_impl.h"
#include "tests/unit/kvshard/rig.h"
#include "tests/unit/kvshard/script.h"

enum { SEQS = 5, LAYERS = 2, LANES = 3, TOKENS_MAX = 300, SINKS = 2, TAIL = 3, TRIGGER = 48,
       KEEP = 30, STEPS = 1200 };

struct shadow {
    struct sf_seq *seq;                 /* NULL: not open */
    int32_t number, prompt, tokens[LAYERS];
    struct ref_lane lane[LAYERS][LANES];
    uint32_t aux[LAYERS][LANES][TOKENS_MAX];
};
static struct shadow shadows[SEQS];
static struct rig rig;
static uint64_t seed, drawn;
static int step, failed, edits_made, mixes_made;

static int32_t below(int32_t n)
{
    return (int32_t)(sf_rng_u64(seed, 9, drawn++) % (uint64_t)n);
}

static void must(int holds, const char *what)
{
    if (holds || failed) return;
    failed = 1;
    sf_test_fail(__FILE__, __LINE__, "seed %llu step %d: %s", (unsigned long long)seed, step, what);
}

/* Rows that the store has appended and the shadow not yet. */
static void catch_up(struct shadow *shadow, int32_t layer, int32_t tokens)
{
    for (; shadow->tokens[layer] < tokens; shadow->tokens[layer]++)
        for (int32_t l = 0; l < LANES; l++) {
            struct ref_lane *lane = &shadow->lane[layer][l];
            shadow->aux[layer][l][lane->slots] = 0;
            ref_append(lane, &rig.spec, shadow->number, layer, l, shadow->tokens[layer]);
        }
}

/* ---- what the method answers ---------------------------------------------------------------- */
static int guarded(const struct sf_lane *lane, int32_t s, int32_t tokens)
{
    return lane->pos[s] < SINKS || lane->pos[s] >= tokens - TAIL;
}

static int32_t guarded_slots(const struct sf_lane *lane, int32_t tokens)
{
    int32_t n = 0;
    for (int32_t s = 0; s < lane->slots; s++) n += guarded(lane, s, tokens);
    return n;
}

static int32_t allowed(const struct sf_lane *lane, int32_t tokens)
{
    int32_t n = guarded_slots(lane, tokens);
    if (lane->slots < TRIGGER) return lane->slots;
    return n > KEEP ? n : KEEP;
}

static sf_status random_keep(struct sf_answer *answer, const struct sf_lane *lane,
                             struct shadow *shadow, int32_t l, int32_t tokens)
{
    int32_t ids[TOKENS_MAX], n = 0, percent = below(101);
    int32_t room = allowed(lane, tokens) - guarded_slots(lane, tokens);
    uint32_t *aux = shadow->aux[lane->layer][l];
    if (below(4) == 0) percent = 97;    /* a hole here and there: they pile up */
    for (int32_t s = 0; s < lane->slots; s++)
        if (guarded(lane, s, tokens) || (below(100) < percent && room-- > 0)) ids[n++] = s;
    for (int32_t i = 0; i < n; i++) aux[i] = aux[ids[i]];
    ref_keep(&shadow->lane[lane->layer][l], ids, n);
    edits_made++;
    return sf_edit_keep(answer, lane, (struct sf_list){ ids, NULL, n });
}

/* Runs of slots become sums, copies or nothing; then what may move changes places. */
static sf_status random_mix(struct sf_answer *answer, const struct sf_lane *lane,
                            struct shadow *shadow, int32_t l, int32_t tokens)
{
    static struct { int32_t first, n; } out[TOKENS_MAX];
    static int32_t ptr[TOKENS_MAX + 1], src[TOKENS_MAX], pos[TOKENS_MAX];
    static float k_weight[TOKENS_MAX], v_weight[TOKENS_MAX], bias[TOKENS_MAX];
    static uint32_t aux[TOKENS_MAX];
    int32_t room = allowed(lane, tokens) - guarded_slots(lane, tokens), m = 0, given = below(2);
    for (int32_t s = 0, n; s < lane->slots; s += n) {
        n = guarded(lane, s, tokens) ? 1 : 1 + below(4);
        for (int32_t j = 1; j < n; j++)
            if (s + j >= lane->slots || guarded(lane, s + j, tokens)) n = j;
        if (!guarded(lane, s, tokens) && (below(4) == 0 || room-- <= 0)) continue;
        out[m].first = s;
        out[m++].n = n;
    }
    for (int32_t swaps = below(2) ? m : 0; swaps > 0; swaps--) {
        int32_t a = below(m), b = below(m), first = out[a].first, n = out[a].n;
        out[a] = out[b];
        out[b].first = first;
        out[b].n = n;
    }
    ptr[0] = 0;
    for (int32_t i = 0; i < m; i++) {
        int32_t s = out[i].first, n = out[i].n, copy = n == 1 && below(8) > 0;
        ptr[i + 1] = ptr[i] + n;
        for (int32_t j = 0; j < n; j++) {
            src[ptr[i] + j] = s + j;
            k_weight[ptr[i] + j] = copy || guarded(lane, s, tokens) ? 1 : (float)below(9) / 16;
            v_weight[ptr[i] + j] = copy || guarded(lane, s, tokens) ? 1 : (float)below(9) / 16;
        }
        pos[i] = lane->pos[s];
        bias[i] = n == 1 ? lane->bias[s] : lane->bias[s] + logf((float)n);
        aux[i] = given ? (uint32_t)below(1 << 30) : shadow->aux[lane->layer][l][s];
    }
    struct sf_mix mix = { .slots = m, .ptr = ptr, .src = src, .k_weight = k_weight,
                          .v_weight = v_weight, .pos = pos, .bias = bias,
                          .aux = given ? aux : NULL };
    memcpy(shadow->aux[lane->layer][l], aux, (size_t)m * sizeof *aux);
    ref_mix(&shadow->lane[lane->layer][l], rig.spec.dtype, &mix);
    edits_made++;
    mixes_made++;
    return sf_edit_mix(answer, lane, &mix);
}

static sf_status answer_at_random(const struct sf_env *env, enum sf_when when,
                                  const struct sf_batch *batch, struct sf_answer *answer)
{
    (void)env;
    for (int32_t i = 0; i < batch->spans; i++) {
        const struct sf_span *span = &batch->span[i];
        struct shadow *shadow = &shadows[span->seq_id];
        catch_up(shadow, span->lane[0].layer, span->tokens);
        must(shadow->tokens[span->lane[0].layer] == span->tokens, "an event of another token");
        must(span->lanes == LANES && span->prompt == shadow->prompt, "a span of other lanes");
        for (int32_t l = 0; l < span->lanes; l++) {
            const struct sf_lane *lane = &span->lane[l];
            const struct ref_lane *ref = &shadow->lane[lane->layer][l];
            size_t slots = (size_t)lane->slots;
            uint32_t *aux = lane->aux;
            must(lane->slots == ref->slots, "a view of another length");
            if (failed) return SF_FAIL(SF_INTERNAL, "the shadow differs");
            must(memcmp(lane->pos, ref->pos, slots * sizeof(int32_t)) == 0, "positions in a view");
            must(memcmp(lane->bias, ref->bias, slots * sizeof(float)) == 0, "biases in a view");
            must(memcmp(aux, shadow->aux[lane->layer][l], slots * sizeof *aux) == 0, "aux");
            for (size_t s = 0; s < slots; s++)
                if (below(6) == 0)
                    aux[s] = shadow->aux[lane->layer][l][s] = (uint32_t)below(1 << 30);
            if (below(3) == 0 && when != SF_AT_FULL) continue;
            if (below(3)) SF_TRY(random_keep(answer, lane, shadow, l, span->tokens));
            else SF_TRY(random_mix(answer, lane, shadow, l, span->tokens));
        }
    }
    return SF_OK;
}

/* ---- invariants ----------------------------------------------------------------------------- */
static void check_mirror(const struct sf_kv_lane *lane, const struct sf_layout *layout)
{
    const struct sf_page_pool *pool = &rig.store->pool;
    int32_t slot[TOKENS_MAX], pos[TOKENS_MAX], live = 0;
    float bias[TOKENS_MAX];
    for (int32_t s = 0; s < lane->slots; s++) slot[s] = s;
    struct sf_slot_list list = { lane->page, slot, lane->slots };
    rig.device->k->kv_read(rig.device, layout, pool->base, pool->page_bytes, &list, NULL, NULL,
                           bias, pos);
    for (int32_t s = 0; s < lane->slots; s++) {
        size_t at = sf_lane_mirror(pool, lane, s);
        must(pool->pos[at] == pos[s] && pool->bias[at] == bias[s], "mirror and page differ");
        must((pos[s] < 0) == (isinf(bias[s]) != 0), "a hole is a hole in both");
        live += pos[s] >= 0;
    }
    must(live == lane->live, "live slots of a lane");
}

static void check_insides(void)
{
    const struct sf_store *store = rig.store;
    const struct sf_page_pool *pool = &store->pool;
    uint8_t *owned = calloc((size_t)pool->pages, 1);
    int64_t bytes = 0;
    int32_t pages = 0;
    for (int i = 0; i < SEQS; i++)
        for (int32_t n = 0; shadows[i].seq && n < LAYERS * LANES; n++) {
            const struct sf_kv_lane *lane = &shadows[i].seq->lane[n];
            must(lane->pages == (lane->slots + pool->page_slots - 1) / pool->page_slots,
                 "pages of a lane are those of its slots");
            must(lane->slots <= sf_lane_slots_bound(lane->live, pool->page_slots),
                 "too many holes");
            for (int32_t p = 0; p < lane->pages; p++, pages++) {
                int32_t page = lane->page[p], live = 0;
                must(pool->holders[page] == 1 && !owned[page],
                     "a page with two owners, or a free one");
                owned[page] = 1;
                for (int32_t s = 0; s < pool->page_slots; s++)
                    live += pool->pos[(size_t)page * (size_t)pool->page_slots + (size_t)s] >= 0;
                must(live > 0 && live == pool->live[page], "live slots of a page");
            }
            bytes += rig.spec.replica[n % LANES] ? 0
                                                 : lane->live * ((int64_t)sf_layout_slot_bytes(
                                                       &store->layer[0].layout) + 4);
            if (step % 8 == 0) check_mirror(lane, &store->layer[0].layout);
        }
    must(pages == pool->used && pool->used + sf_pages_free(pool) == pool->pages, "used and free");
    for (int32_t f = 0; f < sf_pages_free(pool); f++) {
        int32_t page = pool->free_page[f];
        must(!owned[page] && pool->holders[page] == 0, "a free page is owned, or free twice");
        owned[page] = 1;
    }
    must(bytes == store->bytes_stored, "stored bytes differ from a recount");
    free(owned);
}

static void check_shadow(const struct shadow *shadow)
{
    for (int32_t layer = 0; layer < LAYERS; layer++)
        for (int32_t l = 0; l < LANES; l++)
            check_lane(&rig, shadow->seq, layer, l, &shadow->lane[layer][l]);
}

/* ---- one run -------------------------------------------------------------------------------- */
static void shadow_open(struct shadow *shadow)
{
    shadow->number = below(1000);
    shadow->prompt = 1 + below(150);
    for (int32_t layer = 0; layer < LAYERS; layer++) {
        shadow->tokens[layer] = 0;
        for (int32_t l = 0; l < LANES; l++)
            ref_open(&shadow->lane[layer][l], &rig.spec, TOKENS_MAX);
    }
    must(sf_seq_open(rig.store, shadow - shadows, shadow->prompt, TOKENS_MAX, &shadow->seq) ==
             SF_OK, "opening a sequence");
}

static void shadow_close(struct shadow *shadow)
{
    struct sf_receipt receipt;
    int64_t bytes = 0, slot = (int64_t)sf_layout_slot_bytes(&rig.store->layer[0].layout);
    check_shadow(shadow);
    for (int32_t layer = 0; layer < LAYERS; layer++)
        for (int32_t l = 0; l < LANES; l++) {
            if (!rig.spec.replica[l]) bytes += shadow->lane[layer][l].slots * (slot + 4);
            ref_close(&shadow->lane[layer][l]);
        }
    sf_seq_close(rig.store, shadow->seq, &receipt);
    must(receipt.bytes_stored == bytes, "bytes of a receipt");
    must(receipt.bytes_exact == LAYERS * (LANES - 1) * shadow->tokens[0] * slot, "exact bytes");
    shadow->seq = NULL;
}

/* Rows for some open sequences, as far as the pool has room. */
static int32_t draw_items(struct rig_item *item)
{
    int32_t items = 0, rows_left = 120, pages_left = sf_pages_free(&rig.store->pool);
    for (int i = 0; i < SEQS; i++) {
        struct shadow *shadow = &shadows[i];
        if (!shadow->seq || below(4) == 0) continue;
        int32_t at = shadow->tokens[0], rows = at < shadow->prompt ? 1 + below(60) : 1, pages = 0;
        if (at >= shadow->prompt && below(6) == 0) rows = 1 + below(9);
        if (at < shadow->prompt && at + rows > shadow->prompt) rows = shadow->prompt - at;
        if (at + rows > TOKENS_MAX) rows = TOKENS_MAX - at;
        for (int32_t n = 0; n < LAYERS * LANES; n++)
            pages += sf_lane_pages_needed(&shadow->seq->lane[n], rows);
        if (rows == 0 || rows > rows_left || pages > pages_left) continue;
        rows_left -= rows;
        pages_left -= pages;
        item[items++] = (struct rig_item){ shadow->seq, shadow->number, at, rows };
    }
    return items;
}

static struct shadow *shadow_of(const struct sf_seq *seq)
{
    for (int i = 0; i < SEQS; i++)
        if (shadows[i].seq == seq) return &shadows[i];
    return NULL;
}

/* One step; the row of the first item, if it decodes, against the slots that it had. */
static void random_step(void)
{
    struct rig_item item[SEQS];
    int32_t items = draw_items(item), layer = below(LAYERS), l = below(LANES);
    struct ref_lane seen = { .room = 0 };
    if (items == 0) return;
    struct shadow *first = shadow_of(item[0].seq);
    if (item[0].rows == 1 && item[0].pos_first >= first->prompt) {
        const struct ref_lane *now = &first->lane[layer][l];
        ref_open(&seen, &rig.spec, TOKENS_MAX + 1);
        seen.slots = now->slots;
        memcpy(seen.pos, now->pos, (size_t)now->slots * sizeof *now->pos);
        memcpy(seen.bias, now->bias, (size_t)now->slots * sizeof *now->bias);
        memcpy(seen.k, now->k, (size_t)(now->slots * now->k_dim) * sizeof *now->k);
        memcpy(seen.v, now->v, (size_t)(now->slots * now->v_dim) * sizeof *now->v);
        ref_append(&seen, &rig.spec, first->number, layer, l, item[0].pos_first);
    }
    sf_status status = rig_run(&rig, item, items);
    if (status != SF_OK)
        sf_test_fail(__FILE__, __LINE__, "seed %llu step %d: %s", (unsigned long long)seed, step,
                     sf_error_text());
    failed |= status != SF_OK;
    for (int32_t i = 0; i < items && !failed; i++)
        for (int32_t at = 0; at < LAYERS; at++)
            catch_up(shadow_of(item[i].seq), at, item[i].pos_first + item[i].rows);
    if (seen.room > 0) {
        check_row(&rig, first->number, layer, l, 0, item[0].pos_first, &seen, NULL, NULL, 1e-5);
        ref_close(&seen);
    }
}

static void run(uint64_t run_seed, const char *device, enum sf_dtype dtype, int32_t page_slots,
                int32_t pages)
{
    struct rig_spec spec = rig_usual();
    seed = run_seed;
    drawn = 0;
    failed = edits_made = mixes_made = 0;
    spec.device = device;
    spec.dtype = dtype;
    spec.page_slots = page_slots;
    spec.pages = pages;
    spec.lanes = LANES;
    spec.heads[0] = 1;
    spec.heads[1] = 2;
    spec.heads[2] = 2;                  /* held twice */
    spec.replica[2] = 1;
    spec.tokens_max = TOKENS_MAX;
    spec.method = &script_method;
    script = (struct script){
        .plan = { .whens = 1u << SF_AT_PREFILL_CHUNK | 1u << SF_AT_PREFILL_END | 1u << SF_AT_FULL |
                           1u << SF_AT_INTERVAL,
                  .edits = SF_EDITS_KEEP | SF_EDITS_MIX, .chunk_tokens = 40, .every_tokens = 7,
                  .sink_tokens = SINKS, .tail_tokens = TAIL, .aux_bytes = 4 },
        .trigger = TRIGGER, .keep = KEEP, .act = answer_at_random };
    SF_MUST(rig_open(&spec, &rig));
    for (step = 0; step < STEPS && !failed; step++) {
        struct shadow *any = &shadows[below(SEQS)];
        if (!any->seq) shadow_open(any);
        else if (below(25) == 0 || any->tokens[0] == TOKENS_MAX) shadow_close(any);
        random_step();
        check_insides();
        if (step % 16 == 0)
            for (int i = 0; i < SEQS; i++)
                if (shadows[i].seq && !failed) check_shadow(&shadows[i]);
    }
    for (int i = 0; i < SEQS; i++)
        if (shadows[i].seq) shadow_close(&shadows[i]);
    if (!failed) SF_CHECK_INT(rig.store->pool.used, 0);
    SF_CHECK_INT(sf_store_bytes_stored(rig.store), 0);
    SF_CHECK(edits_made > STEPS && mixes_made > STEPS / 4);
    rig_close(&rig);
}

static void test_ref(void)
{
    run(1, "ref", SF_F32, 16, 150);
    run(2, "ref", SF_BF16, 32, 60);
}

static void test_cpu(void)
{
    run(3, "cpu", SF_F32, 64, 64);
    run(4, "cpu", SF_F16, 16, 120);
    run(5, "cpu", SF_BF16, 16, 400);
    run(6, "cpu", SF_INT8, 32, 400);
}

static const struct sf_test tests[] = {
    { "against a shadow, ref", test_ref },
    { "against a shadow, cpu", test_cpu },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_random", tests)
