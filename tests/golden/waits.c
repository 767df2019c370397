/* tests/golden/waits.c: how often the host waits for the device in a step that decodes, and how
 * much attention reads in one.
 *
 * A small made model on the device "cuda-emulated", whose streams run only when they must, so every
 * wait is counted (tests/emulation).  Three sequences of different length decode together.  Shown:
 * the host waits once, for the samples, in every step in which no method looks at what the device
 * holds: exact and with every method, for tokens that are greedy, scored with their likeliest ones,
 * and drawn with every filter and penalty.
 * Which steps have an event is seen by what caches hold behind them.  A window slides in every step
 * and waits for nothing; what events of the others cost is printed.
 *
 * And with longer prompts and slots of bf16, method by method: what attention reads of device
 * memory in a step, whole sectors, follows what the caches store.  A basis is stored once and read
 * in every layer, by chunks where they are chosen, with the turns of its keys, so xkv has bounds of
 * its own. */
#include <string.h>
#include "tests/check.h"
#include "tests/emulation/emulation.h"
#include "tests/golden/rig.h"
#include "tests/unit/model/tiny_gguf.h"

enum { SEQS = 3, STEPS = 24, LAYERS = 3, CONTEXT = 512, TOKENS_MAX = 1024 };
static const int32_t short_prompts[SEQS] = { 40, 17, 29 }, long_prompts[SEQS] = { 220, 170, 240 };
static const int32_t *prompt_of = short_prompts;

/* events: it has some in decode for which the host has to wait. */
static const struct way { const char *name; int events; const char *methods; } ways[] = {
    { "exact", 0, NULL },
    { "window", 0, "{name: window, num_sink_tokens: 2, recent_tokens: 12}" },
    { "razor_attention", 1, "{name: razor_attention, retrieval_heads: [[0, 1], [1, 0]], "
                            "min_window_tokens: 8, window_divisor: 50, min_dropped_tokens: 2, "
                            "fold_tokens: 3}" },
    { "ems", 1, "{name: ems, budget_tokens: 20, recent_tokens: 8, num_sink_tokens: 2, "
                "recompress_interval: 9, similarity_threshold: 0.3}" },
    { "xkv", 0, "{name: xkv, group_size: 3, rank_k: 12, rank_v: 18, min_prompt_tokens: 8, "
                "num_sink_tokens: 2}" },
    { "xkv, selective", 0, "{name: xkv, group_size: 3, rank_k: 12, rank_v: 18, "
                           "min_prompt_tokens: 8, reconstruction: selective, chunk_size: 4, "
                           "budget_tokens: 8, local_chunks: 1, outlier_chunks: 1}" },
};
enum { WAYS = sizeof ways / sizeof *ways };

/* dim: of heads, 0: what made models have; cache: more keys of kv_cache. */
static struct rig *rig_of(const char *methods, int32_t dim, const char *cache)
{
    static char yaml[1024];
    struct tiny_spec tiny = tiny_default();
    tiny.layers = LAYERS;
    if (dim > 0) tiny.k_dim = tiny.v_dim = dim;
    struct tiny_file file = tiny_make(&tiny);
    snprintf(yaml, sizeof yaml, "schema_version: 1\nmodel: {path: %s, dtype: f32}\n"
             "device: cuda-emulated\nkv_cache: {memory: 8MiB%s%s%s%s}\n"
             "scheduler: {max_num_seqs: %d, max_model_len: %d, max_num_batched_tokens: %d}\n",
             tiny_path(file.bytes, file.count), cache, methods ? ", methods: [" : "",
             methods ? methods : "", methods ? "]" : "", SEQS, CONTEXT, TOKENS_MAX);
    tiny_free(&file);
    struct rig_spec spec = { .yaml = yaml, .device = "cuda-emulated" };
    return rig_open(&spec);
}

static struct sf_wire_bias biases[] = { { 3, 1.5f }, { 7, -2.0f } };
static const struct kind { const char *name; struct sf_wire_sampling sampling; } kinds[] = {
    { "greedy", { .top_p = 1, .repetition = 1 } },
    { "scores", { .top_p = 1, .repetition = 1, .scores = 1, .tops = 4 } },
    { "drawn", { .temperature = 0.8, .top_k = 20, .top_p = 0.9, .min_p = 0.01, .repetition = 1.2,
                 .presence = 0.3, .frequency = 0.2, .rng_key = 5, .biases = 2, .bias = biases } },
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static int prefill(struct rig *rig, const struct kind *kind)
{
    struct sf_wire_open open[SEQS];
    struct sf_wire_item item[SEQS];
    int32_t token[TOKENS_MAX], tokens = 0;
    struct sf_wire_result result;
    for (int32_t s = 0; s < SEQS; s++) {
        open[s] = (struct sf_wire_open){
            .seq = (uint64_t)s + 1, .prompt = prompt_of[s],
            .tokens_max = prompt_of[s] + 2 * STEPS, .reused_first = -1,
            .sampling = kind->sampling };
        open[s].sampling.rng_stream = (uint64_t)s;
        item[s] = (struct sf_wire_item){ .seq = (uint64_t)s + 1, .rows = prompt_of[s],
                                         .token_first = tokens, .next = -1,
                                         .logits = SF_LOGITS_SAMPLE };
        for (int32_t i = 0; i < prompt_of[s]; i++) token[tokens++] = (7 * s + 3 * i) % 32;
    }
    struct sf_wire_step step = { .open = open, .opens = SEQS, .item = item, .items = SEQS,
                                 .token = token, .tokens = tokens };
    return rig_send(rig, 0, &step) && rig_wait(rig, &result);
}

/* Every step asks for receipts too: what the caches hold before it. */
static int decode(struct rig *rig, int32_t n, int64_t *stored_out)
{
    struct sf_wire_item item[SEQS];
    struct sf_wire_result result;
    uint64_t seq[SEQS];
    int64_t before = rig_receipts(rig).bytes_stored;
    for (int32_t s = 0; s < SEQS; s++) {
        seq[s] = (uint64_t)s + 1;
        item[s] = (struct sf_wire_item){ .seq = seq[s], .pos = prompt_of[s] + n, .rows = 1,
                                         .token_first = -1, .next = -1,
                                         .logits = SF_LOGITS_SAMPLE };
    }
    struct sf_wire_step step = { .ask = seq, .asks = SEQS, .item = item, .items = SEQS };
    if (!rig_send(rig, 0, &step) || !rig_wait(rig, &result) || result.samples != SEQS) return 0;
    *stored_out = rig_receipts(rig).bytes_stored - before;
    return 1;
}

static void close_all(struct rig *rig)
{
    uint64_t seq[SEQS];
    struct sf_wire_result result;
    for (int32_t s = 0; s < SEQS; s++) seq[s] = (uint64_t)s + 1;
    struct sf_wire_step step = { .close = seq, .closes = SEQS };
    SF_CHECK(rig_send(rig, 0, &step) && rig_wait(rig, &result));
}

/* Of step n: waits, and whether the caches have grown less behind it than by every row. */
struct counted { int64_t waits; int event; };

static int count_steps(struct rig *rig, struct counted *step)
{
    int64_t stored[STEPS + 1], most = 0;
    for (int32_t n = 0; n <= STEPS; n++) {
        int64_t before = emu_waits();
        if (!decode(rig, n, &stored[n])) return 0;
        if (n < STEPS) step[n].waits = emu_waits() - before;
        if (n > 0 && stored[n] - stored[n - 1] > most) most = stored[n] - stored[n - 1];
    }
    for (int32_t n = 0; n < STEPS; n++) step[n].event = stored[n + 1] - stored[n] < most;
    return 1;
}

static void check_steps(const struct way *way, const struct kind *kind)
{
    struct counted step[STEPS];
    int64_t events = 0, waits = 0;
    struct rig *rig = rig_of(way->methods, 0, "");
    int good = rig != NULL && prefill(rig, kind) && count_steps(rig, step);
    SF_CHECK(good);
    for (int32_t n = 0; good && n < STEPS; n++) {
        if (!step[n].event || !way->events) SF_CHECK_INT(step[n].waits, 1);
        else {
            events++;
            waits += step[n].waits;
        }
    }
    SF_CHECK_INT(events > 0, way->events);
    if (events > 0)
        printf("  figure: %s, %s: %.1f waits in each of %d steps with an event\n", way->name,
               kind->name, (double)waits / (double)events, (int)events);
    if (good) close_all(rig);
    rig_close(rig);
    tiny_close();
}

static void test_steps(void)
{
    for (int w = 0; w < WAYS; w++)
        for (int k = 0; k < KINDS; k++) check_steps(&ways[w], &kinds[k]);
}

/* ---- bytes ----------------------------------------------------------------------------------- */
enum { DIM = 64, KERNELS = 64, AFTER = 3 };

/* least, most: what attention reads to what the caches store.  Lanes are short here, 170 to 240
 * slots or a quarter of that, so that queries, page numbers and dead slots of a block count.  A
 * basis is stored once and read in each of its LAYERS layers, for both heads at once, with a row of
 * turns for each slot, which is twice as much: without turns it would be 2.5. */
static const struct bytes { const char *name, *methods; double least, most; } stacks[] = {
    { "exact", NULL, 0.95, 1.15 },
    { "window", "{name: window, num_sink_tokens: 4, recent_tokens: 60}", 0.95, 1.45 },
    { "razor_attention", "{name: razor_attention, retrieval_heads: [[0, 1], [1, 0]], "
                         "min_window_tokens: 40, window_divisor: 50, min_dropped_tokens: 2}",
      0.95, 1.5 },
    { "ems", "{name: ems, budget_tokens: 80, recent_tokens: 16, num_sink_tokens: 2, "
             "recompress_interval: 64}", 0.95, 1.25 },
    { "xkv", "{name: xkv, group_size: 3, rank_k: 24, rank_v: 36, min_prompt_tokens: 8, "
             "num_sink_tokens: 2}", 1, 4.5 },
    { "xkv, selective", "{name: xkv, group_size: 3, rank_k: 24, rank_v: 36, min_prompt_tokens: 8, "
                        "num_sink_tokens: 2, reconstruction: selective, chunk_size: 4, "
                        "budget_tokens: 16, local_chunks: 1, outlier_chunks: 1}", 0.1, 1.35 },
};
enum { STACKS = sizeof stacks / sizeof *stacks };

static double read_by_attention(void)
{
    struct emu_count count[KERNELS];
    int kernels = emu_counts(count, KERNELS);
    double sectors = 0;
    for (int i = 0; i < kernels; i++)
        if (strstr(count[i].kernel, "attend") && !strstr(count[i].kernel, "merge"))
            sectors += (double)count[i].read_sectors;
    return 32 * sectors;
}

static void check_bytes(const struct bytes *stack, double *read_out, double *stored_out)
{
    int64_t stored = 0;
    struct rig *rig = rig_of(stack->methods, DIM, ", dtype: bf16");
    int good = rig != NULL && prefill(rig, &kinds[0]);
    for (int32_t n = 0; good && n < AFTER; n++) good = decode(rig, n, &stored);
    emu_set_counting(1);
    good = good && decode(rig, AFTER, &stored);
    emu_set_counting(0);
    SF_CHECK(good);
    *read_out = read_by_attention();
    *stored_out = (double)stored;
    if (good) close_all(rig);
    rig_close(rig);
    tiny_close();
}

static void test_bytes(void)
{
    double exact_read = 0, exact_stored = 0;
    prompt_of = long_prompts;
    for (int i = 0; i < STACKS; i++) {
        double read, stored;
        check_bytes(&stacks[i], &read, &stored);
        if (i == 0) exact_read = read, exact_stored = stored;
        printf("  figure: %s: stored %.3f of exact, read by attention %.3f of exact, %.2f of what "
               "is stored: %.0f B a token, %.0f ns at 3.35 TB/s\n", stacks[i].name,
               stored / exact_stored, read / exact_read, read / stored, read / SEQS,
               read / SEQS / 3350);
        SF_CHECK(read >= stacks[i].least * stored && read <= stacks[i].most * stored);
    }
    prompt_of = short_prompts;
}

static const struct sf_test tests[] = {
    { "steps", test_steps }, { "bytes", test_bytes }, { NULL, NULL }
};
SF_TEST_MAIN("decode_waits", tests)
