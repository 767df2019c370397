/* tests/unit/kvshard/bytes.c: the predicted memory of a cache is what it takes.
 *
 * Every block and map that the store takes is counted, by wrapping the calls when this program is
 * linked.  Shown, for the exact cache, window, razor_attention, ems, xkv, stacks of two, toys with
 * statistics in every form and with tiers, on one rank and on one of two that share a KV head:
 * what a store takes when it is made is predicted to the byte, what its sequences take too, as they
 * take it in any number, also where the host cannot touch the device's memory; and when prompts end
 * and full lanes are edited all at once, step memory stays within what is predicted, and no hook is
 * shown more sequences than it should be. */
#include <stdlib.h>

#include "base/memory.h"
#include "base/opt.h"
#include "comm/comm.h"
#include "kvshard/account.h"
#include "kvshard/methods.h"
#include "kvshard/store_impl.h"
#include "model/desc.h"
#include "tests/check.h"

enum { LAYERS = 3, SEQS = 20, ROWS = 200, TOKENS = 160, PAGE = 16, PAGES = 4000, K_DIM = 8,
       V_DIM = 6, GROUP = 4, PROMPT = 100, TAKEN_MAX = 4096 };

/* ---- what is taken -------------------------------------------------------------------------- */
static struct { void *at; int64_t bytes; } taken[TAKEN_MAX];
static int64_t held, held_most;

static void took(void *at, size_t bytes, size_t border)
{
    int64_t rounded = (int64_t)((bytes + border - 1) / border * border);
    if (bytes == 0) rounded = (int64_t)border;
    for (int i = 0; i < TAKEN_MAX; i++)
        if (!taken[i].at) {
            taken[i].at = at;
            taken[i].bytes = rounded;
            held += rounded;
            if (held > held_most) held_most = held;
            return;
        }
    SF_ASSERT(!"room for one block more");
}

static void gave(const void *at)
{
    for (int i = 0; at && i < TAKEN_MAX; i++)
        if (taken[i].at == at) {
            held -= taken[i].bytes;
            taken[i].at = NULL;
            return;
        }
}

sf_status __real_sf_alloc(size_t bytes, const char *what, void **out);
sf_status __wrap_sf_alloc(size_t bytes, const char *what, void **out);
sf_status __wrap_sf_alloc(size_t bytes, const char *what, void **out)
{
    SF_TRY(__real_sf_alloc(bytes, what, out));
    took(*out, bytes, SF_ALIGN);
    return SF_OK;
}
void __real_sf_free(void *block);
void __wrap_sf_free(void *block);
void __wrap_sf_free(void *block)
{
    gave(block);
    __real_sf_free(block);
}
sf_status __real_sf_map(size_t bytes, int populate, const char *what, void **out);
sf_status __wrap_sf_map(size_t bytes, int populate, const char *what, void **out);
sf_status __wrap_sf_map(size_t bytes, int populate, const char *what, void **out)
{
    SF_TRY(__real_sf_map(bytes, populate, what, out));
    took(*out, bytes, 4096);
    return SF_OK;
}
void __real_sf_unmap(void *block, size_t bytes);
void __wrap_sf_unmap(void *block, size_t bytes);
void __wrap_sf_unmap(void *block, size_t bytes)
{
    gave(block);
    __real_sf_unmap(block, bytes);
}

/* ---- a rank --------------------------------------------------------------------------------- */
struct option { const char *key, *text; };
enum { OPTIONS = 12 };
struct entry { const struct sf_method *method; const char *layers;
               struct option option[OPTIONS]; };
struct given {
    const char *name;
    int32_t ranks;                      /* 2: they share the one KV head of each layer */
    int32_t beside;                     /* threads for factors beside the layers */
    uint8_t hosted;                     /* the host is not to touch the device's memory */
    struct entry entry[2];
};
struct rank {
    const struct given *given;
    struct sf_layer_desc layer[LAYERS];
    struct sf_setup setup;
    struct sf_stack stack;
    struct sf_share share;
    struct sf_comm *comm[2];
    struct sf_device *device;
    struct sf_cache_bytes predicted;
    struct sf_store *store;
    int64_t made;                       /* by sf_store_create */
};

static sf_status make_stack(struct rank *rank)
{
    for (int e = 0; e < 2 && rank->given->entry[e].method; e++) {
        const struct entry *from = &rank->given->entry[e];
        struct sf_stack_entry *entry;
        SF_TRY(sf_stack_add_method(&rank->stack, from->method, &entry));
        if (from->layers)
            snprintf(entry->layers_text, sizeof entry->layers_text, "%s", from->layers);
        for (int i = 0; from->option[i].key; i++)
            SF_TRY(sf_opt_set(sf_opt_find(from->method->opts, from->option[i].key), entry->cfg,
                              from->option[i].text));
    }
    return sf_stack_check(&rank->stack, &rank->setup);
}

static sf_status make_store(struct rank *rank)
{
    struct sf_store_layer layer[LAYERS];
    struct sf_store_lane lane[LAYERS * GROUP];
    struct sf_layout layout = { SF_F32, PAGE, K_DIM, V_DIM };
    const struct sf_share *share = &rank->share;
    for (int32_t i = 0; i < LAYERS; i++) {
        int32_t q_first = 0;
        layer[i] = (struct sf_store_layer){ K_DIM, V_DIM, 0, 0.3f, lane + share->kv_ptr[i],
                                            share->kv_ptr[i + 1] - share->kv_ptr[i] };
        for (int32_t j = share->kv_ptr[i]; j < share->kv_ptr[i + 1]; j++) {
            const struct sf_kv_share *kv = &share->kv[j];
            lane[j] = (struct sf_store_lane){ kv->kv_head, q_first, kv->q_count, kv->replica,
                                              kv->replicas };
            q_first += kv->q_count;
        }
    }
    struct sf_store_spec spec = {
        .device = rank->device, .stack = &rank->stack, .setup = &rank->setup,
        .tensor = rank->comm[0], .layers = LAYERS, .layer = layer, .dtype = SF_F32,
        .page_slots = PAGE, .pool_bytes = PAGES * (int64_t)sf_layout_page_bytes(&layout),
        .seqs_max = SEQS, .rows_max = ROWS, .threads_beside = rank->given->beside };
    int64_t before = held;
    SF_TRY(sf_store_create(&spec, &rank->store));
    rank->made = held - before - PAGES * (int64_t)sf_layout_page_bytes(&layout);
    return SF_OK;
}

static sf_status host_alloc(struct sf_device *device, size_t bytes, const char *what, void **out)
{
    (void)device;
    return sf_alloc(bytes, what, out);
}

static void host_free(struct sf_device *device, void *block)
{
    (void)device;
    sf_free(block);
}

/* The device says that its memory is its own: nothing is computed on it. */
static void hide_memory(struct sf_device *device)
{
    static struct sf_kernels table;
    table = *device->k;
    table.host_alloc = host_alloc;
    table.host_free = host_free;
    device->k = &table;
    device->host_memory = 0;
}

static sf_status rank_make(const struct given *given, struct rank *rank)
{
    int32_t kv_heads = given->ranks == 2 ? 1 : 2;
    struct sf_comm_options options = { 0 };
    struct sf_device_spec device = { .name = "ref", .threads = 1, .rows_max = 64 };
    struct sf_placing placing = { SF_PLACE_IDENTITY, NULL };
    struct sf_cache_room room = { .dtype = SF_F32, .pages = PAGES, .seqs_max = SEQS,
                                  .rows_max = ROWS, .tokens_max = TOKENS,
                                  .threads_beside = given->beside, .hosted = given->hosted };
    *rank = (struct rank){ .given = given };
    for (int32_t l = 0; l < LAYERS; l++)
        rank->layer[l] = (struct sf_layer_desc){ GROUP * kv_heads, kv_heads, K_DIM, V_DIM, 0 };
    struct sf_model_desc desc = { .layers = LAYERS, .layer = rank->layer, .d_model = 32, .ffn = 64,
                                  .vocab = 100 };
    if (given->ranks == 2) SF_TRY(sf_comm_loopback_world(2, 0, &options, rank->comm));
    SF_TRY(sf_setup_make(&desc, given->ranks, PAGE, TOKENS, &rank->setup));
    SF_TRY(make_stack(rank));
    SF_TRY(sf_share_make(&desc, &placing, given->ranks, 0, 0, LAYERS, &rank->share));
    SF_TRY(sf_device_open(&device, &rank->device));
    room.factor_bytes = rank->device->k->factor_bytes;
    if (given->hosted) hide_memory(rank->device);
    SF_TRY(sf_account_cache(&rank->setup, &rank->stack, &rank->share, &room, &rank->predicted));
    return make_store(rank);
}

static void rank_free(struct rank *rank)
{
    sf_store_destroy(rank->store);
    if (rank->device) sf_device_close(rank->device);
    sf_share_free(&rank->share);
    sf_stack_free(&rank->stack);
    sf_setup_free(&rank->setup);
    for (int r = 0; r < 2; r++)
        if (rank->comm[r]) sf_comm_destroy(rank->comm[r]);
}

/* ---- toys: statistics in forms that no built-in method asks for ------------------------------ */
static sf_status stored_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    plan->whens = 1u << SF_AT_PREFILL_END | 1u << SF_AT_FULL;
    plan->edits = SF_EDITS_KEEP;
    plan->aux_bytes = 12;
    plan->watch[0] = (struct sf_watch){ .fold = SF_FOLD_SUM, .head_fold = SF_FOLD_MAX,
                                        .flags = SF_WATCH_STORED, .prompt_rows = 9,
                                        .decode_rows = 5 };
    plan->watch[1] = (struct sf_watch){ .fold = SF_FOLD_MEAN, .head_fold = SF_FOLD_SUM };
    return SF_OK;
}

static sf_status half(const struct sf_setup *setup, const struct sf_spot *spot,
                      struct sf_foot *foot)
{
    (void)setup;
    foot->slots_lo[0] = 0;
    foot->slots_hi[0] = spot->tokens;
    foot->slots_peak = spot->prompt;
    foot->slots_keep = spot->prompt > 40 ? spot->prompt - 40 : 1;
    foot->slots_trigger = spot->prompt > 40 ? spot->prompt - 10 : 30;
    return SF_OK;
}

static sf_status by_mass(const struct sf_env *env, const struct sf_span *span, float *out)
{
    (void)env;
    for (int32_t l = 0; l < span->lanes; l++)
        for (int32_t s = 0; s < span->lane[l].slots; s++) *out++ = span->lane[l].mass[0][s];
    return SF_OK;
}

static const struct sf_opt no_opts[] = { { .key = NULL } };
static const struct sf_policy_ops stored_policy = { .plan = stored_plan, .footprint = half,
                                                    .score = by_mass };
static const struct sf_method stored_method = { .name = "stored", .paper = "-", .opts = no_opts,
                                                .cfg_bytes = 1, .policy = &stored_policy };

/* Counts what one call is shown, and lets all stay but the middle. */
static int32_t spans_most, spans_all;

static sf_status counted_plan(const struct sf_setup *setup, struct sf_plan *plan)
{
    (void)setup;
    plan->whens = 1u << SF_AT_PREFILL_END;
    plan->edits = SF_EDITS_KEEP;
    return SF_OK;
}

static sf_status counted_foot(const struct sf_setup *setup, const struct sf_spot *spot,
                              struct sf_foot *foot)
{
    (void)setup;
    foot->slots_lo[0] = foot->slots_hi[0] = spot->tokens - (spot->prompt > 1);
    foot->slots_peak = spot->prompt;
    return SF_OK;
}

static sf_status count_spans(const struct sf_env *env, enum sf_when when,
                             const struct sf_batch *batch, struct sf_answer *answer)
{
    int32_t ids[TOKENS];
    (void)env; (void)when;
    if (batch->spans > spans_most) spans_most = batch->spans;
    spans_all += batch->spans;
    for (int32_t i = 0; i < batch->spans; i++)
        for (int32_t l = 0; l < batch->span[i].lanes; l++) {
            const struct sf_lane *lane = &batch->span[i].lane[l];
            for (int32_t s = 0, n = 0; s < lane->slots; s++)
                if (s != lane->slots / 2) ids[n++] = s;
            SF_TRY(sf_edit_keep(answer, lane, (struct sf_list){ .ids = ids,
                                                                .n = lane->slots - 1 }));
        }
    return SF_OK;
}

static const struct sf_policy_ops counted_policy = { .plan = counted_plan,
                                                     .footprint = counted_foot,
                                                     .compress = count_spans };
static const struct sf_method counted_method = { .name = "counted", .paper = "-", .opts = no_opts,
                                                 .cfg_bytes = 1, .policy = &counted_policy };

/* ---- the cases ------------------------------------------------------------------------------ */
static struct given cases[40];
static int cases_count;

static struct given *add(const char *name, int32_t ranks)
{
    SF_ASSERT((size_t)cases_count < sizeof cases / sizeof *cases);
    cases[cases_count] = (struct given){ .name = name, .ranks = ranks };
    return &cases[cases_count++];
}

static void make_cases(void)
{
    const struct sf_method *window = sf_method_find("window"), *ems = sf_method_find("ems");
    const struct sf_method *razor = sf_method_find("razor_attention");
    const struct entry recent = { window, NULL, { { "num_sink_tokens", "2" },
                                                  { "recent_tokens", "30" } } };
    const struct entry merged = { ems, NULL, { { "budget_tokens", "40" }, { "recent_tokens", "8" },
                                               { "num_sink_tokens", "2" } } };
    const struct entry based = { sf_method_find("xkv"), NULL,
                                 { { "group_size", "2" }, { "rank_k", "5" }, { "rank_v", "7" },
                                   { "num_sink_tokens", "3" } } };
    const struct entry keys = { sf_method_find("xkv"), NULL,
                                { { "group_size", "2" }, { "rank_k", "5" }, { "rank_v", "0" } } };
    static const struct option selective[] = {
        { "reconstruction", "selective" }, { "chunk_size", "4" }, { "budget_tokens", "16" },
        { "local_chunks", "1" }, { "outlier_chunks", "3" } };
    const struct entry sealed = { sf_method_find("xkv"), NULL,
                                  { { "group_size", "2" }, { "rank_k", "5" }, { "rank_v", "7" },
                                    { "num_sink_tokens", "3" }, { "refactor_every", "13" } } };
    const struct entry folded = { razor, NULL, { { "retrieval_heads", "[[0, 0]]" },
                                                 { "min_window_tokens", "20" },
                                                 { "min_dropped_tokens", "8" } } };
    cases_count = 0;
    add("exact", 1);
    add("counted", 1)->entry[0] = (struct entry){ .method = &counted_method };
    for (int32_t ranks = 1; ranks <= 2; ranks++) {
        add("window", ranks)->entry[0] = recent;
        add("razor_attention", ranks)->entry[0] = folded;
        add("ems", ranks)->entry[0] = merged;
        add("xkv", ranks)->entry[0] = based;
        add("xkv, exact values", ranks)->entry[0] = keys;
        struct given *beside = add("xkv, beside the layers", ranks);
        beside->entry[0] = based;
        beside->beside = 1;
        struct given *chunks = add("xkv, selective", ranks);
        chunks->entry[0] = based;
        memcpy(chunks->entry[0].option + 4, selective, sizeof selective);
        chunks = add("xkv, selective, beside the layers", ranks);
        *chunks = chunks[-1];
        chunks->name = "xkv, selective, beside the layers";
        chunks->beside = 2;
        add("xkv, answers too", ranks)->entry[0] = sealed;
        add("stored queries, a mean", ranks)->entry[0] = (struct entry){ .method = &stored_method };
        struct given *there = add("ems, masses on the device", ranks);
        there->entry[0] = merged;
        there->hosted = 1;
        there = add("exact, pages on the device", ranks);
        there->hosted = 1;
        struct given *stack = add("razor_attention and window", ranks);
        stack->entry[0] = folded;
        stack->entry[1] = recent;
        stack->entry[0].layers = "0,1";
        stack->entry[1].layers = "2";
        struct given *both = add("xkv twice", ranks);
        both->entry[0] = based;
        both->entry[1] = keys;
        both->entry[0].layers = "2";
        both->entry[1].layers = "0,1";
        struct given *bases = add("xkv and ems", ranks);
        bases->entry[0] = based;
        bases->entry[1] = merged;
        bases->entry[0].layers = "0,1";
        bases->entry[1].layers = "2";
    }
}

#define EACH_CASE(given)                                                                           \
    make_cases();                                                                                  \
    for (const struct given *given = cases; given < cases + cases_count; given++)

static void expect(const struct given *given, const char *what, int64_t is, int64_t predicted)
{
    if (is != predicted)
        sf_test_fail(__FILE__, __LINE__, "%s, %d ranks: %s take %lld B, predicted %lld",
                     given->name, given->ranks, what, (long long)is, (long long)predicted);
    else SF_CHECK(1);
}

/* ---- properties ----------------------------------------------------------------------------- */
static void made_to_the_byte(void)
{
    EACH_CASE(given) {
        struct rank rank;
        SF_MUST(rank_make(given, &rank));
        const struct sf_cache_bytes *p = &rank.predicted;
        expect(given, "tables, mirrors, masses, step, copies and room beside", rank.made,
               p->tables + p->mirrors + p->masses + p->step + p->copies + p->beside);
        SF_CHECK((p->beside > 0) == (given->beside > 0));
        SF_CHECK((p->mirrors > 0) == (given->entry[0].method != NULL));
        SF_CHECK((p->scratch > 0) == (given->entry[0].method != NULL));
        int watched = rank.store->pool.mass[0] != NULL;
        SF_CHECK((p->masses > 0) == watched);
        SF_CHECK((p->copies > 0) == (watched && given->ranks == 2));
        rank_free(&rank);
    }
}

static void sequences_to_the_byte(void)
{
    EACH_CASE(given) {
        struct rank rank;
        struct sf_seq *seq[SEQS];
        SF_MUST(rank_make(given, &rank));
        int64_t before = held;
        for (int i = 0; i < SEQS; i++)
            SF_MUST(sf_seq_open(rank.store, i, PROMPT, TOKENS, &seq[i]));
        expect(given, "sequences", held - before, rank.predicted.seqs);
        for (int i = 0; i < SEQS; i++) sf_seq_close(rank.store, seq[i], NULL);
        expect(given, "closed sequences", held - before, 0);
        rank_free(&rank);
    }
}

static float drawn(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (float)(*seed >> 40) / (float)(1 << 24) - 0.5f;
}

/* Rows of all sequences at once through all layers, from made-up numbers. */
static sf_status feed(struct rank *rank, struct sf_seq **seq, int32_t first, int32_t rows)
{
    static float q[ROWS * 2 * GROUP * K_DIM], k[ROWS * 2 * K_DIM], v[ROWS * 2 * V_DIM];
    static float out[ROWS * 2 * GROUP * V_DIM];
    struct sf_kv_item item[SEQS];
    int32_t heads = 0;
    uint64_t seed = (uint64_t)first + 1;
    for (size_t i = 0; i < sizeof q / sizeof *q; i++) q[i] = (float)(i * 37 % 19) / 19 - 0.5f;
    for (size_t i = 0; i < sizeof k / sizeof *k; i++)
        k[i] = drawn(&seed);
    for (size_t i = 0; i < sizeof v / sizeof *v; i++) v[i] = drawn(&seed);
    for (int32_t i = 0; i < SEQS; i++)
        item[i] = (struct sf_kv_item){ seq[i], i * rows, rows, first };
    for (int32_t l = 0; l < LAYERS; l++) {
        heads = rank->share.kv_ptr[l + 1] - rank->share.kv_ptr[l];
        size_t q_heads = (size_t)(heads * GROUP);
        struct sf_kv_step step = {
            .item = item, .items = SEQS, .q = q, .k = k, .v = v, .q_stride = q_heads * K_DIM,
            .k_stride = (size_t)heads * K_DIM, .v_stride = (size_t)heads * V_DIM, .out = out,
            .out_stride = q_heads * V_DIM, .out_head_stride = V_DIM, .out_dtype = SF_F32 };
        SF_TRY(sf_store_layer(rank->store, l, &step));
    }
    return sf_store_settle(rank->store);
}

/* On a device that computes, and alone: a rank of two would have to talk with the other. */
static void step_memory_is_bounded(void)
{
    EACH_CASE(given) {
        struct rank rank;
        struct sf_seq *seq[SEQS];
        if (given->ranks > 1 || given->hosted) continue;
        SF_MUST(rank_make(given, &rank));
        for (int i = 0; i < SEQS; i++)
            SF_MUST(sf_seq_open(rank.store, i, PROMPT, TOKENS, &seq[i]));
        int64_t before = held;
        held_most = held;
        for (int32_t at = 0; at < TOKENS;) {
            int32_t rows = at < PROMPT ? (PROMPT - at < 10 ? PROMPT - at : 10) : 1;
            SF_MUST(feed(&rank, seq, at, rows));
            at += rows;
        }
        int64_t edits = seq[SEQS - 1]->edits;
        for (int i = 0; i < SEQS; i++) sf_seq_close(rank.store, seq[i], NULL);
        SF_CHECK((edits > 0) == (given->entry[0].method != NULL));
        if (held_most - before > rank.predicted.scratch)
            sf_test_fail(__FILE__, __LINE__, "%s: step memory of %lld B, predicted at most %lld",
                         given->name, (long long)(held_most - before),
                         (long long)rank.predicted.scratch);
        else SF_CHECK(1);
        if (getenv("SHEAF_TEST_FIGURES"))
            printf("  figure: %s: step memory %lld of at most %lld B\n", given->name,
                   (long long)(held_most - before), (long long)rank.predicted.scratch);
        rank_free(&rank);
    }
}

static void hooks_see_few_at_once(void)
{
    SF_CHECK_INT(spans_all, LAYERS * SEQS);
    SF_CHECK_INT(spans_most, SF_HOOK_SPANS);
}

static void nothing_leaks(void) { SF_CHECK_INT(held, 0); }

static const struct sf_test tests[] = {
    { "what a store takes when it is made", made_to_the_byte },
    { "what its sequences take", sequences_to_the_byte },
    { "step memory stays within the prediction", step_memory_is_bounded },
    { "a hook is shown few sequences at once", hooks_see_few_at_once },
    { "and all is given back", nothing_leaks },
    { NULL, NULL }
};
SF_TEST_MAIN("kvshard_bytes", tests)
