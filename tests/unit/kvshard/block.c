/* tests/unit/kvshard/block.c: sequences that share the beginnings of their prompts are as alone.
 *
 * Every run is made twice: in a store whose sequences attach and fill blocks, and in one where each
 * computes all its rows itself.  Rows, lanes and receipts must be equal bit for bit, whatever the
 * method does at a prompt's end and later, who closes first, and which blocks are dropped under
 * those who use them; pages of a block never change; at the end no page is missing.  Where a method
 * watches attention, the masses of all slots are compared too. */
#include <stdlib.h>

#include "kvshard/methods.h"
#include "kvshard/store_impl.h"
#include "tests/unit/kvshard/rig.h"
#include "tests/unit/kvshard/script.h"
#include "tests/unit/kvshard/toys.h"

enum { LAYERS = 2, LANES = 3, ALL = LAYERS * LANES, FAMILY = 8, BLOCKS = 16, SINKS = 2, TAIL = 3 };

/* Sequences of a family begin with the same `common` tokens. */
static int32_t common;
static int32_t family(int32_t number, int32_t pos)
{
    return pos < common ? number / FAMILY * FAMILY : number;
}

static struct rig_spec spec_of(const struct sf_method *method, int32_t page_slots)
{
    struct rig_spec spec = rig_usual();
    spec.layers = LAYERS;
    spec.lanes = LANES;
    spec.heads[0] = 1;
    spec.heads[1] = spec.heads[2] = 2;  /* held twice */
    spec.replica[2] = 1;
    spec.method = method;
    spec.page_slots = page_slots;
    spec.pages = 480;
    spec.tokens_max = 512;
    spec.source = family;
    return spec;
}

static struct rig_spec windowed(int32_t page_slots, const char *sinks, const char *recent)
{
    struct rig_spec spec = spec_of(sf_method_find("window"), page_slots);
    spec.option[0].key = "num_sink_tokens";
    spec.option[0].text = sinks;
    spec.option[1].key = "recent_tokens";
    spec.option[1].text = recent;
    return spec;
}

/* ---- what the scripted method does ---------------------------------------------------------- */
/* Two of three slots go, but none of the second page: holes for which the lane is compacted, and by
 * which a page moves up that was whole, and so still shared. */
static sf_status thin(const struct sf_env *env, enum sf_when when, const struct sf_batch *batch,
                      struct sf_answer *answer)
{
    (void)when;
    for (int32_t i = 0; i < batch->spans; i++)
        for (int32_t l = 0; l < batch->span[i].lanes; l++) {
            const struct sf_lane *lane = &batch->span[i].lane[l];
            int32_t ids[512], n = 0, end = lane->slots - TAIL;
            for (int32_t s = 0; s < lane->slots; s++)
                if (s < SINKS || s % 3 == 0 || s / env->setup->page_slots == 1 || s >= end)
                    ids[n++] = s;
            SF_TRY(sf_edit_keep(answer, lane, (struct sf_list){ ids, NULL, n }));
        }
    return SF_OK;
}

/* Neighbours merge in pairs in the older half, and the oldest and newest that may move change
 * places: sums, copies and a cycle. */
static sf_status fold(const struct sf_env *env, enum sf_when when, const struct sf_batch *batch,
                      struct sf_answer *answer)
{
    (void)env; (void)when;
    for (int32_t i = 0; i < batch->spans; i++)
        for (int32_t l = 0; l < batch->span[i].lanes; l++) {
            const struct sf_lane *lane = &batch->span[i].lane[l];
            int32_t ptr[513] = { 0 }, src[512], pos[512], m = 0, last = lane->slots - TAIL - 1;
            float weight[512], bias[512];
            for (int32_t s = 0, n; s < lane->slots; s += n, m++) {
                n = s > SINKS && s + 1 < lane->slots / 2 ? 2 : 1;
                for (int32_t j = 0; j < n; j++) {
                    src[ptr[m] + j] = s + j;
                    weight[ptr[m] + j] = 1.0f / (float)n;
                }
                ptr[m + 1] = ptr[m] + n;
                pos[m] = lane->pos[s];
                bias[m] = n == 1 ? lane->bias[s] : lane->bias[s] + logf((float)n);
            }
            if (last > SINKS) {         /* both have one source */
                int32_t a = SINKS, b = m - TAIL - 1;
                src[ptr[a]] = last;
                src[ptr[b]] = SINKS;
                pos[a] = lane->pos[last];
                pos[b] = lane->pos[SINKS];
                bias[a] = lane->bias[last];
                bias[b] = lane->bias[SINKS];
            }
            struct sf_mix mix = { .slots = m, .ptr = ptr, .src = src, .k_weight = weight,
                                  .v_weight = weight, .pos = pos, .bias = bias };
            SF_TRY(sf_edit_mix(answer, lane, &mix));
        }
    return SF_OK;
}

static struct rig_spec scripted(int32_t page_slots,
                                sf_status (*act)(const struct sf_env *, enum sf_when,
                                                 const struct sf_batch *, struct sf_answer *))
{
    script = (struct script){ .plan = { .whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_INTERVAL,
                                        .edits = SF_EDITS_KEEP | SF_EDITS_MIX, .every_tokens = 7,
                                        .sink_tokens = SINKS, .tail_tokens = TAIL }, .act = act };
    return spec_of(&script_method, page_slots);
}

/* ---- methods that watch ---------------------------------------------------------------------- */
/* recent_tokens 3: so many last rows of a prompt are each sequence's own. */
static struct rig_spec merging(int32_t page_slots, const char *combine)
{
    static const struct rig_option options[] = {
        { "budget_tokens", "40" }, { "recent_tokens", "3" }, { "num_sink_tokens", "2" },
        { "recompress_interval", "5" }, { "similarity_threshold", "-1" } };
    struct rig_spec spec = spec_of(sf_method_find("ems"), page_slots);
    memcpy(spec.option, options, sizeof options);
    spec.option[5] = (struct rig_option){ "combine", combine };
    spec.layers_text = "1";             /* lanes of layer 0 are attached as they are */
    return spec;
}

/* As fold, and what a slot has beside it is written. */
static sf_status fold_noting(const struct sf_env *env, enum sf_when when,
                             const struct sf_batch *batch, struct sf_answer *answer)
{
    for (int32_t i = 0; i < batch->spans; i++)
        for (int32_t l = 0; l < batch->span[i].lanes; l++)
            for (int32_t s = 0; s < batch->span[i].lane[l].slots; s++)
                ((uint32_t *)batch->span[i].lane[l].aux)[s] += 1 + (uint32_t)s;
    return fold(env, when, batch, answer);
}

static struct rig_spec watching(int32_t page_slots, struct sf_watch a, struct sf_watch b)
{
    struct rig_spec spec = scripted(page_slots, fold_noting);
    script.plan.watch[0] = a;
    script.plan.watch[1] = b;
    script.plan.aux_bytes = sizeof(uint32_t);
    script.plan.prefix = SF_PREFIX_KV_AND_MASS;
    return spec;
}

/* ---- one run in two stores ------------------------------------------------------------------ */
struct pair { struct rig with, without; };
struct twin { struct sf_seq *with, *without; int32_t number, prompt, at, piece; };

static sf_status pair_open(const struct rig_spec *spec, struct pair *pair)
{
    SF_TRY(rig_open(spec, &pair->without));
    sf_status status = rig_open(spec, &pair->with);
    if (status != SF_OK) rig_close(&pair->without);
    return status;
}

/* All pages are there again, in both. */
static void pair_close(struct pair *pair)
{
    SF_CHECK_INT(sf_store_pages_free(pair->with.store), pair->with.spec.pages);
    SF_CHECK_INT(sf_store_pages_free(pair->without.store), pair->with.spec.pages);
    SF_CHECK_INT(sf_store_bytes_stored(pair->with.store), 0);
    for (int32_t p = 0; p < pair->with.spec.pages; p++)
        SF_CHECK_INT(pair->with.store->pool.holders[p], 0);
    rig_close(&pair->with);
    rig_close(&pair->without);
}

/* Places of the mirror, of a lane's live slots. */
static int32_t places(const struct rig *rig, const struct sf_seq *seq, int32_t layer, int32_t l,
                      size_t *at)
{
    static int32_t slot[1024];
    const struct sf_kv_lane *lane = sf_store_lane_of(rig->store, seq, layer, l);
    SF_ASSERT(lane->live <= 1024);
    sf_lane_live(&rig->store->pool, lane, slot);
    for (int32_t i = 0; i < lane->live; i++)
        at[i] = sf_lane_mirror(&rig->store->pool, lane, slot[i]);
    return lane->live;
}

static void check_masses(const struct pair *pair, const struct twin *twin, int32_t layer, int32_t l)
{
    static size_t with[1024], without[1024];
    const struct sf_page_pool *a = &pair->with.store->pool, *b = &pair->without.store->pool;
    int32_t method = pair->with.store->layer[layer].method[l], wrong = 0;
    if (method < 0 || !a->mass[0] || !sf_store_lane_of(pair->with.store, twin->with, layer,
                                                       l)->mirrored)
        return;
    int32_t n = places(&pair->with, twin->with, layer, l, with);
    SF_CHECK_INT(places(&pair->without, twin->without, layer, l, without), n);
    for (int32_t i = 0; i < n; i++) {
        for (int w = 0; w < 2; w++) {
            if (a->mass[w]) wrong += memcmp(a->mass[w] + with[i], b->mass[w] + without[i], 4) != 0;
            if (a->seen[w]) wrong += memcmp(a->seen[w] + with[i], b->seen[w] + without[i], 4) != 0;
        }
        size_t bytes = (size_t)a->aux_bytes;
        if (bytes > 0) wrong += memcmp(a->aux + with[i] * bytes, b->aux + without[i] * bytes,
                                       bytes) != 0;
    }
    SF_CHECK_INT(wrong, 0);
}

static void check_lanes(const struct pair *pair, const struct twin *twin)
{
    for (int32_t n = 0; n < ALL; n++) {
        int32_t layer = n / LANES, l = n % LANES;
        struct ref_lane alone;
        int32_t slots = sf_seq_lane_slots(pair->without.store, twin->without, layer, l);
        ref_open(&alone, &pair->without.spec, slots + 1);
        alone.slots = slots;
        SF_CHECK_OK(sf_seq_lane_read(pair->without.store, twin->without, layer, l, alone.k,
                                     alone.v, alone.pos, alone.bias));
        check_lane(&pair->with, twin->with, layer, l, &alone);
        check_masses(pair, twin, layer, l);
        ref_close(&alone);
    }
}

/* The first `reused` blocks are attached; alone, their rows are computed. */
static void twin_open(struct pair *pair, struct twin *twin, int32_t number, int32_t prompt,
                      const int32_t *block, int32_t blocks, int32_t reused)
{
    struct sf_seq_share share = { block, blocks, reused };
    int32_t most = prompt + 60;
    *twin = (struct twin){ .number = number, .prompt = prompt, .piece = 5 + 3 * (number % 7),
                           .at = reused * pair->with.spec.page_slots };
    SF_MUST(sf_seq_open(pair->with.store, number, prompt, most, &twin->with));
    SF_MUST(sf_seq_open(pair->without.store, number, prompt, most, &twin->without));
    SF_MUST(sf_seq_share(pair->with.store, twin->with, &share));
    SF_MUST(rig_feed(&pair->without, twin->without, number, 0, twin->at));
    check_lanes(pair, twin);
}

static uint64_t sum_of(uint64_t sum, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        sum = (sum ^ ((const unsigned char *)data)[i]) * 1099511628211u;
    return sum;
}

/* Of its bytes and its mirror. */
static uint64_t page_sum(const struct sf_page_pool *pool, int32_t page)
{
    size_t slots = (size_t)pool->page_slots, first = (size_t)page * slots;
    uint64_t sum = sum_of(14695981039346656037u, pool->base + (size_t)page * pool->page_bytes,
                          pool->page_bytes);
    if (!pool->pos) return sum;
    sum = sum_of(sum, pool->pos + first, slots * sizeof *pool->pos);
    return sum_of(sum, pool->bias + first, slots * sizeof *pool->bias);
}

struct sums { int32_t page[BLOCKS][ALL]; uint64_t sum[BLOCKS][ALL]; };
static void sums_take(const struct sf_store *store, struct sums *sums)
{
    for (int32_t b = 0; b < BLOCKS; b++)
        for (int32_t l = 0; l < ALL; l++) {
            int32_t page = sums->page[b][l] = *sf_block_page(&store->blocks, b, l);
            if (page >= 0) sums->sum[b][l] = page_sum(&store->pool, page);
        }
}

/* Pages of blocks that were there before are the same ones, untouched. */
static void check_sums(const struct sf_store *store, const struct sums *before)
{
    struct sums now;
    int32_t wrong = 0;
    sums_take(store, &now);
    for (int32_t b = 0; b < BLOCKS; b++)
        for (int32_t l = 0; l < ALL; l++)
            wrong += before->page[b][l] >= 0 && (now.page[b][l] != before->page[b][l] ||
                                                 now.sum[b][l] != before->sum[b][l]);
    SF_CHECK_INT(wrong, 0);
}

/* One step of all that are open: a piece of the prompt each, or one token. */
static void step(struct pair *pair, struct twin *twin, int32_t twins)
{
    struct rig_item with[RIG_SEQS], without[RIG_SEQS];
    int32_t n = 0, rows = 0;
    struct sums sums;
    for (int32_t i = 0; i < twins; i++) {
        if (!twin[i].with) continue;
        int32_t left = twin[i].prompt - twin[i].at, r = left > 0 ? left : 1;
        if (left > twin[i].piece) r = twin[i].piece;
        with[n] = (struct rig_item){ twin[i].with, twin[i].number, twin[i].at, r };
        without[n++] = (struct rig_item){ twin[i].without, twin[i].number, twin[i].at, r };
        twin[i].at += r;
        rows += r;
    }
    sums_take(pair->with.store, &sums);
    SF_MUST(rig_run(&pair->with, with, n));
    SF_MUST(rig_run(&pair->without, without, n));
    size_t bytes = (size_t)(rows * LANES * pair->with.spec.group * pair->with.spec.v_dim) *
                   sizeof(float);
    for (int32_t layer = 0; layer < LAYERS; layer++)
        SF_CHECK(memcmp(pair->with.out[layer], pair->without.out[layer], bytes) == 0);
    for (int32_t i = 0; i < twins; i++)
        if (twin[i].with) check_lanes(pair, &twin[i]);
    check_sums(pair->with.store, &sums);
    SF_CHECK_INT(sf_store_bytes_stored(pair->with.store),
                 sf_store_bytes_stored(pair->without.store));
}

static void twin_close(struct pair *pair, struct twin *twin)
{
    struct sf_receipt with, without;
    struct sums sums;
    sums_take(pair->with.store, &sums);
    sf_seq_close(pair->with.store, twin->with, &with);
    sf_seq_close(pair->without.store, twin->without, &without);
    check_sums(pair->with.store, &sums);
    SF_CHECK_INT(with.tokens, without.tokens);
    SF_CHECK_INT(with.edits, without.edits);
    SF_CHECK_INT(with.bytes_exact, without.bytes_exact);
    SF_CHECK_INT(with.bytes_stored, without.bytes_stored);
    SF_CHECK_INT(with.bytes_peak, without.bytes_peak);
    SF_CHECK_INT(with.slots_evicted, without.slots_evicted);
    SF_CHECK_INT(with.slots_merged, without.slots_merged);
    *twin = (struct twin){ .with = NULL };
}

/* ---- as if they were alone ------------------------------------------------------------------ */
static void drop(struct pair *pair, int32_t first, int32_t n)
{
    for (int32_t b = first; b < first + n; b++) SF_CHECK_OK(sf_block_drop(pair->with.store, b));
}

/* Number 0 stands for tokens of another family now. */
static void use_again(struct pair *pair)
{
    int32_t page_slots = pair->with.spec.page_slots, block[2] = { 0, 9 };
    struct twin twin[2] = { { .with = NULL } };
    twin_open(pair, &twin[0], 5 * FAMILY, 2 * page_slots, block, 2, 0);
    while (twin[0].at < twin[0].prompt) step(pair, twin, 2);
    twin_open(pair, &twin[1], 5 * FAMILY + 1, 2 * page_slots + 3, block, 2, 2);
    for (int i = 0; i < 4; i++) step(pair, twin, 2);
    for (int i = 0; i < 2; i++) twin_close(pair, &twin[i]);
    drop(pair, 0, 1);
    drop(pair, 9, 1);
}

/* The filler beside a stranger; then two who attach, one of whom fills blocks of its own; then one
 * who attaches those.  They close in the order of the digits of `order`, and the blocks are dropped
 * before the `drop_at`-th. */
static void run(const struct rig_spec *spec, const char *order, int drop_at)
{
    int32_t p = spec->page_slots, few[] = { 7, 8 }, late[] = { 0, 1, 5, 6 };
    int32_t first[] = { 0, 1, 2, 3, 4 }, branch[] = { 0, 1, 5, 6 };
    struct pair pair;
    struct twin twin[5] = { { .with = NULL } };
    SF_MUST(pair_open(spec, &pair));
    common = 5 * p + 3;
    twin_open(&pair, &twin[0], 8, 5 * p + 23, first, 5, 0);
    twin_open(&pair, &twin[4], 20, 2 * p + 1, few, 2, 0);
    twin[0].piece = p + 5;
    while (twin[0].at < 5 * p) step(&pair, twin, 5);
    twin_open(&pair, &twin[1], 9, 5 * p + 9, first, 5, 5);
    twin_open(&pair, &twin[2], 10, 4 * p + 5, branch, 4, 2);
    while (twin[2].at < 4 * p) step(&pair, twin, 5);
    twin_open(&pair, &twin[3], 11, 4 * p + 3, late, 4, 4);
    for (int i = 0; i < 12; i++) step(&pair, twin, 5);
    for (int i = 0; i < 4; i++) {
        if (i == drop_at) drop(&pair, 0, BLOCKS);
        twin_close(&pair, &twin[order[i] - '0']);
        for (int more = 0; more < 3; more++) step(&pair, twin, 5);
    }
    if (drop_at == 4) drop(&pair, 0, BLOCKS);
    use_again(&pair);
    twin_close(&pair, &twin[4]);
    pair_close(&pair);
}

static void test_exact(void)
{
    static const char *const orders[] = { "0123", "2310", "3021" };
    for (int i = 0; i < 6; i++) {
        struct rig_spec spec = spec_of(NULL, 16 << i / 2);
        spec.device = i % 2 ? "cpu" : "ref";
        spec.dtype = i % 2 ? SF_BF16 : SF_F32;
        run(&spec, orders[i % 3], i % 5);
    }
}

static void test_window(void)
{
    static const struct { int32_t page_slots; const char *sinks, *recent; } cases[] = {
        { 16, "4", "20" }, { 16, "0", "1" }, { 16, "16", "48" }, { 16, "33", "40" },
        { 16, "20", "100" }, { 32, "3", "70" }, { 32, "64", "64" }, { 64, "7", "64" },
        { 64, "130", "5" } };
    for (int i = 0; i < 9; i++) {
        struct rig_spec spec = windowed(cases[i].page_slots, cases[i].sinks, cases[i].recent);
        spec.device = i % 2 ? "cpu" : "ref";
        spec.dtype = i % 3 ? SF_F32 : SF_BF16;
        run(&spec, i % 2 ? "1302" : "0213", i % 5);
    }
}

/* Holes that pile up, sums, budgets by head, lanes that stay exact beside lanes that do not. */
static void test_methods(void)
{
    for (int i = 0; i < 12; i++) {
        const struct sf_method *const toys[] = { &toy_norm, &toy_fold, &toy_shared };
        struct rig_spec spec = i < 3 ? spec_of(toys[i], 16) : scripted(16 << i % 2, i < 8 ? thin
                                                                                       : fold);
        spec.device = i % 3 ? "cpu" : "ref";
        spec.dtype = i % 4 == 3 ? SF_BF16 : SF_F32;
        run(&spec, i % 2 ? "3210" : "0132", i % 5);
    }
}

static const struct sf_watch watches[][2] = {
    { { .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_MEAN },
      { .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_MAX, .flags = SF_WATCH_RESET,
        .prompt_rows = 3 } },
    { { .fold = SF_FOLD_MEAN, .head_fold = SF_FOLD_SUM },
      { .fold = SF_FOLD_MEAN, .head_fold = SF_FOLD_SUM, .prompt_rows = 2, .decode_rows = 1 } },
    { { .fold = SF_FOLD_DECAY, .head_fold = SF_FOLD_SUM, .decay = 0.9f },
      { .fold = SF_FOLD_BELOW_MEAN, .head_fold = SF_FOLD_SUM } },
    { { .fold = SF_FOLD_MAX, .head_fold = SF_FOLD_SUM, .prompt_rows = 1 },
      { .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_SUM, .prompt_rows = -1 } },
    { { .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_SUM, .flags = SF_WATCH_STORED, .prompt_rows = 3,
        .decode_rows = 2 },
      { .fold = SF_FOLD_MAX, .head_fold = SF_FOLD_MEAN } } };

static void test_watching(void)
{
    for (int i = 0; i < 10; i++) {
        struct rig_spec spec = watching(16 << i / 5, watches[i % 5][0], watches[i % 5][1]);
        spec.device = i % 2 ? "cpu" : "ref";
        spec.dtype = i % 3 ? SF_F32 : SF_BF16;
        run(&spec, i % 2 ? "1302" : "0213", i % 5);
    }
}

static void test_merging(void)
{
    static const char *const combines[] = { "sum", "max", "local" };
    for (int i = 0; i < 6; i++) {
        struct rig_spec spec = merging(16 << i / 3, combines[i % 3]);
        spec.device = i % 2 ? "ref" : "cpu";
        spec.dtype = i % 3 ? SF_F32 : SF_BF16;
        run(&spec, i % 2 ? "3210" : "0132", i % 5);
    }
}

/* Behind 16 blocks not every border can be attached: of 21 blocks, 20, and of 19 of them, 18; the
 * one between is computed again, and blocks behind it are new. */
static void far_borders(const struct rig_spec *spec)
{
    enum { P = 16 };
    int32_t first[21], second[22], third[22];
    struct pair pair;
    struct twin twin[3] = { { .with = NULL } };
    SF_MUST(pair_open(spec, &pair));
    common = 19 * P + 5;
    for (int32_t b = 0; b < 22; b++) {
        if (b < 21) first[b] = b;
        second[b] = third[b] = b < 19 ? b : 100 + b;
    }
    twin_open(&pair, &twin[0], 8, 21 * P + 2, first, 21, 0);
    twin[0].piece = 40;
    while (twin[0].at < twin[0].prompt) step(&pair, twin, 3);
    struct sf_seq_share wrong = { second, 22, 19 };
    struct sf_seq *seq;
    SF_MUST(sf_seq_open(pair.with.store, 77, 22 * P + 3, 400, &seq));
    CHECK_REFUSED(sf_seq_share(pair.with.store, seq, &wrong), SF_INTERNAL, "attaches 19 blocks");
    wrong.reused = 18;
    pair.with.store->blocks.block[17].place++;
    CHECK_REFUSED(sf_seq_share(pair.with.store, seq, &wrong), SF_INTERNAL, "is number 18");
    pair.with.store->blocks.block[17].place--;
    sf_seq_close(pair.with.store, seq, NULL);
    twin_open(&pair, &twin[1], 9, 22 * P + 3, second, 22, 18);
    while (twin[1].at < twin[1].prompt) step(&pair, twin, 3);
    twin_open(&pair, &twin[2], 9, 22 * P + 3, third, 22, 22);
    for (int i = 0; i < 12; i++) step(&pair, twin, 3);
    for (int i = 0; i < 3; i++) twin_close(&pair, &twin[i]);
    drop(&pair, 0, 21);
    drop(&pair, 119, 3);
    pair_close(&pair);
}

static void test_far(void)
{
    struct rig_spec spec = watching(16, watches[0][0], watches[0][1]);
    spec.pages = 1200;
    far_borders(&spec);
    spec = merging(16, "sum");
    spec.pages = 1200;
    spec.device = "cpu";
    spec.dtype = SF_BF16;
    far_borders(&spec);
}

static void test_orders(void)
{
    for (int n = 0; n < 24; n++) {
        char order[5] = "0123";
        for (int left = 4, at = 0, code = n; left > 1; code /= left, left--, at++) {
            char swapped = order[at];
            order[at] = order[at + code % left];
            order[at + code % left] = swapped;
        }
        struct rig_spec spec = n % 2 ? spec_of(NULL, 16) : windowed(16, "4", "20");
        spec.device = "cpu";
        run(&spec, order, n % 5);
    }
}

static const struct sf_test tests[] = {
    { "the exact cache", test_exact },
    { "window", test_window },
    { "other methods", test_methods },
    { "methods that watch", test_watching },
    { "ems", test_merging },
    { "many blocks", test_far },
    { "every order of closing", test_orders },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_block", tests)
