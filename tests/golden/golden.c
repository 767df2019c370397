/* tests/golden/golden.c: a real model through real workers, ranks as threads.
 *
 * logits: with f32 the recorded logits of three prompts are met within 1e-3 x max |logit| + 1e-3 in
 *   several layouts, with free and with fixed products, and with the reduction over messages.
 * layouts_equal: with run.deterministic the whole logit rows of all layouts are equal bit by bit.
 * chunks: a prompt fed in chunks of 1, 7 and 64 rows gives the same logits as in one piece.
 * scores: in several layouts the scores of a prompt's tokens and of sampled ones, biased and
 *   penalised or not, are the log-softmax of the tapped rows to 1e-5, with their ranks and tops.
 * bf16: teacher-forced on the golden texts, mean KL to f32 at most 2e-3 nat, arg-max agreement at
 *   least 97 %, every disagreement at an f32 margin under 0.5.
 * The longest prompt runs in some layouts, at SHEAF_TEST_LEVEL=long in all. */
#include <stdlib.h>

#include "tests/check.h"
#include "tests/golden/rig.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { LONGEST = 128 };                 /* sanitizers are for memory and races, not for numbers */
#else
enum { LONGEST = 2000 };
#endif
enum { VOCAB = 49152, ROWS_MAX = 128, SHORT = 128 };

static struct golden golden;

/* ---- a tap that keeps rows ---- */
struct rows {
    float *logits; int32_t rows, capacity;
    uint64_t seq[4096]; int32_t pos[4096];
};

static void keep_row(void *arg, uint64_t seq, int32_t pos, const float *logits, int32_t vocab)
{
    struct rows *kept = arg;
    SF_ASSERT(vocab == VOCAB && kept->rows < kept->capacity);
    memcpy(kept->logits + (size_t)kept->rows * VOCAB, logits, sizeof(float) * VOCAB);
    kept->seq[kept->rows] = seq;
    kept->pos[kept->rows++] = pos;
}

static struct rows *rows_new(int32_t capacity)
{
    struct rows *rows = calloc(1, sizeof *rows);
    SF_ASSERT(rows != NULL);
    rows->capacity = capacity;
    rows->logits = malloc(sizeof(float) * VOCAB * (size_t)capacity);
    SF_ASSERT(rows->logits != NULL);
    return rows;
}

static void rows_free(struct rows *rows)
{
    free(rows->logits);
    free(rows);
}

struct layout {
    int32_t tensor, pipeline; int fixed; uint8_t exchange; const char *dtype;
    int longest;                        /* the longest prompt too */
};

static int runs_in(const struct layout *layout, const struct golden_prompt *prompt)
{
    const char *level = getenv("SHEAF_TEST_LEVEL");
    int all = layout->longest || (level != NULL && strcmp(level, "long") == 0);
    return prompt->ids <= LONGEST && (all || prompt->ids <= SHORT);
}

static struct rig *open_layout(const struct layout *layout, struct sf_logits_tap tap)
{
    char yaml[1024];
    snprintf(yaml, sizeof yaml,
             "schema_version: 1\n"
             "model: {path: %s, dtype: %s}\n"
             "parallel: {tensor_parallel_size: %d, pipeline_parallel_size: %d}\n"
             "kv_cache: {memory: 192MiB}\n"
             "scheduler: {max_num_seqs: 8, max_model_len: 2048, max_num_batched_tokens: 512}\n"
             "run: {deterministic: %s}\n",
             sf_test_model(), layout->dtype, layout->tensor, layout->pipeline,
             layout->fixed ? "true" : "false");
    struct rig_spec spec = {.yaml = yaml, .tap = tap, .exchange = layout->exchange};
    return rig_open(&spec);
}

/* Feeds `count` tokens of a prompt from `pos` in one step; sequence 1, opened when pos is 0. */
static int feed(struct rig *rig, const struct golden_prompt *prompt, int32_t pos, int32_t count,
                int logits)
{
    struct sf_wire_open open = {.seq = 1, .prompt = prompt->ids, .tokens_max = prompt->ids + 64,
                                .sampling = {.top_p = 1, .repetition = 1}, .reused_first = -1};
    struct sf_wire_item item = {
        .seq = 1, .pos = pos, .rows = count, .token_first = 0, .next = -1,
        .logits = (uint8_t)logits};
    struct sf_wire_step step = {.open = &open,
                                .opens = pos == 0,
                                .item = &item,
                                .items = 1,
                                .token = prompt->id + pos,
                                .tokens = count};
    struct sf_wire_result result;
    return rig_send(rig, 0, &step) && rig_wait(rig, &result);
}

static int leave(struct rig *rig)
{
    uint64_t seq = 1;
    struct sf_wire_step step = {.close = &seq, .closes = 1};
    struct sf_wire_result result;
    return rig_send(rig, 0, &step) && rig_wait(rig, &result);
}

/* The whole prompt in chunks; logits of its last row are tapped. */
static int feed_whole(struct rig *rig, const struct golden_prompt *prompt, int32_t chunk)
{
    for (int32_t pos = 0; pos < prompt->ids; pos += chunk) {
        int32_t count = prompt->ids - pos < chunk ? prompt->ids - pos : chunk;
        int last = pos + count == prompt->ids;
        if (!feed(rig, prompt, pos, count, last ? SF_LOGITS_SAMPLE : SF_LOGITS_NONE)) return 0;
    }
    return leave(rig);
}

static void check_logits(const struct golden_prompt *prompt, const float *logits, const char *what)
{
    double highest = 0.0, worst = 0.0;
    for (int32_t i = 0; i < prompt->tops; i++)
        highest = fmax(highest, fabs(prompt->top_logit[i]));
    for (int32_t i = 0; i < prompt->tops; i++)
        worst = fmax(worst, fabs(logits[prompt->top_id[i]] - prompt->top_logit[i]));
    printf("  figure: %s, %s: worst logit difference %.2e of %.2f\n", what, prompt->name, worst,
           highest);
    SF_CHECK(worst <= 1e-3 * highest + 1e-3);
}

static int ready(void)
{
    if (sf_test_model() == NULL) return 0;
    return golden.prompts > 0 || golden_load("smollm2-135m-q4_1.json", &golden);
}

static void test_logits(void)
{
    static const struct layout layouts[] = {{1, 1, 0, 0, "f32", 1}, {2, 1, 0, 0, "f32", 0},
                                            {3, 1, 1, 0, "f32", 1}, {1, 4, 0, 0, "f32", 0},
                                            {2, 2, 1, 0, "f32", 0}, {3, 2, 0, 1, "f32", 1},
                                            {4, 1, 0, 0, "f32", 0}};
    if (!ready()) SF_SKIP("the real model is not there");
    for (size_t l = 0; l < sizeof layouts / sizeof layouts[0]; l++) {
        char what[64];
        snprintf(what, sizeof what, "tensor %d x pipeline %d, %s", layouts[l].tensor,
                 layouts[l].pipeline, layouts[l].fixed ? "fixed" : "free");
        struct rows *rows = rows_new(golden.prompts);
        struct rig *rig = open_layout(&layouts[l], (struct sf_logits_tap){keep_row, rows});
        for (int32_t p = 0; rig != NULL && p < golden.prompts; p++) {
            const struct golden_prompt *prompt = &golden.prompt[p];
            if (prompt->tops == 0 || !runs_in(&layouts[l], prompt)) continue;
            if (!feed_whole(rig, prompt, 512)) break;
            check_logits(prompt, rows->logits + (size_t)(rows->rows - 1) * VOCAB, what);
        }
        SF_CHECK(rows->rows > 0);
        rig_close(rig);
        rows_free(rows);
    }
}

static void test_layouts_equal(void)
{
    static const struct layout layouts[] = {
        {1, 1, 1, 0, NULL, 0}, {2, 1, 1, 0, NULL, 0}, {3, 1, 1, 0, NULL, 0}, {4, 1, 1, 0, NULL, 0},
        {2, 2, 1, 0, NULL, 0}, {1, 3, 1, 0, NULL, 0}, {3, 2, 1, 1, NULL, 0}};
    static const char *dtypes[] = {"f32", "bf16"};
    if (!ready()) SF_SKIP("the real model is not there");
    const struct golden_prompt *prompt = &golden.prompt[2];
    for (int32_t d = 0; d < 2; d++) {
        struct rows *first = NULL;
        for (size_t l = 0; l < sizeof layouts / sizeof layouts[0]; l++) {
            struct layout layout = layouts[l];
            layout.dtype = dtypes[d];
            struct rows *rows = rows_new(1);
            struct rig *rig = open_layout(&layout, (struct sf_logits_tap){keep_row, rows});
            if (rig != NULL && feed_whole(rig, prompt, l % 2 == 0 ? 512 : 50) && first != NULL &&
                memcmp(first->logits, rows->logits, sizeof(float) * VOCAB) != 0)
                sf_test_fail(__FILE__, __LINE__, "%s, tensor %d x pipeline %d: other bits",
                             layout.dtype, layout.tensor, layout.pipeline);
            SF_CHECK_INT(rows->rows, 1);
            rig_close(rig);
            if (first == NULL) first = rows;
            else rows_free(rows);
        }
        rows_free(first);
    }
}

static void test_chunks(void)
{
    static const int32_t chunk[] = {512, 64, 7, 1};
    if (!ready()) SF_SKIP("the real model is not there");
    const struct layout layout = {1, 1, 0, 0, "f32", 0};
    const struct golden_prompt *prompt = &golden.prompt[2];
    struct rows *rows = rows_new(4);
    struct rig *rig = open_layout(&layout, (struct sf_logits_tap){keep_row, rows});
    for (int32_t c = 0; rig != NULL && c < 4; c++)
        if (!feed_whole(rig, prompt, chunk[c])) break;
    rig_close(rig);
    SF_CHECK_INT(rows->rows, 4);
    for (int32_t c = 1; c < rows->rows; c++) {
        double worst = 0.0;
        for (int32_t i = 0; i < VOCAB; i++)
            worst = fmax(worst,
                    fabs(rows->logits[(size_t)c * VOCAB + (size_t)i] - rows->logits[i]));
        printf("  figure: chunks of %d: worst logit difference %.2e\n", chunk[c], worst);
        SF_CHECK(worst <= 1e-3);
    }
    rows_free(rows);
}

/* ---- scores ---- */

/* Against the row that the tap saw: l_t - ln sum e^l, in f64; tops and rank by counting. */
static void check_score(const struct rows *rows, const struct sf_wire_score *score)
{
    int32_t row = 0, before = 0, tops_before = 0;
    while (row < rows->rows &&
           (rows->pos[row] != score->pos - 1 || rows->seq[row] != score->seq)) row++;
    SF_ASSERT(row < rows->rows);
    const float *l = rows->logits + (size_t)row * VOCAB;
    double highest = l[0], sum = 0.0;
    for (int32_t i = 0; i < VOCAB; i++) highest = fmax(highest, (double)l[i]);
    for (int32_t i = 0; i < VOCAB; i++) {
        sum += exp(l[i] - highest);
        before += l[i] > l[score->token] || (l[i] == l[score->token] && i < score->token);
        if (score->tops > 0) tops_before += l[i] > l[score->top[score->tops - 1].token];
    }
    double shift = highest + log(sum);
    SF_CHECK_NEAR(score->logprob, l[score->token] - shift, 1e-5);
    SF_CHECK_INT(score->rank, before + 1);
    for (int32_t t = 0; t < score->tops; t++) {
        SF_CHECK_NEAR(score->top[t].logprob, l[score->top[t].token] - shift, 1e-5);
        if (t > 0) SF_CHECK(score->top[t].logprob <= score->top[t - 1].logprob);
    }
    if (score->tops > 0) SF_CHECK(tops_before < score->tops);
}

/* One step of one item of sequence 1, and checks of the scores that come of it: `known` tokens
 * behind its rows, and one that is sampled. */
static int feed_scored(struct rig *rig, const struct sf_wire_sampling *sampling, int32_t prompt,
                       struct sf_wire_item *item, const int32_t *token, const struct rows *rows)
{
    struct sf_wire_open open = {.seq = 1, .prompt = prompt, .tokens_max = prompt + 8,
                                .sampling = *sampling, .reused_first = -1};
    struct sf_wire_step step = {.open = &open, .opens = item->pos == 0, .item = item, .items = 1,
                                .token = (int32_t *)(uintptr_t)token,
                                .tokens = item->token_first < 0 ? 0 : item->rows};
    struct sf_wire_result result;
    int32_t known = 0, sampled = (item->logits & SF_LOGITS_SAMPLE) != 0;
    if (item->logits & SF_LOGITS_ROWS) known = item->rows - (item->next < 0);
    if (!rig_send(rig, 0, &step) || !rig_wait(rig, &result)) return 0;
    SF_CHECK_INT(result.samples, sampled);
    SF_CHECK_INT(result.scores, known + (sampled && sampling->scores));
    for (int32_t i = 0; i < result.scores; i++) {
        const struct sf_wire_score *score = &result.score[i];
        SF_CHECK_INT(score->pos, item->pos + i + 1);
        SF_CHECK_INT(score->tops, sampling->tops);
        SF_CHECK_INT(score->token, i == known ? result.sample[0].token
                                   : i + 1 < item->rows ? token[i + 1] : item->next);
        check_score(rows, score);
    }
    return 1;
}

static void test_scores(void)
{
    static const struct layout layouts[] = {{1, 1, 0, 0, "f32", 0}, {2, 1, 0, 0, "f32", 0},
                                            {1, 2, 0, 0, "f32", 0}, {3, 2, 1, 1, "bf16", 0}};
    static struct sf_wire_bias bias = {7, 60.0f};       /* takes the place of any other choice */
    static const struct sf_wire_sampling sampling[] = {
        {.top_p = 1, .repetition = 1, .scores = 1, .tops = 5},
        {.top_p = 1, .repetition = 1.5, .frequency = 1, .temperature = 0.8, .scores = 1},
        {.top_p = 1, .repetition = 1, .scores = 1, .tops = 32, .biases = 1, .bias = &bias},
        {.top_p = 1, .repetition = 1, .tops = 3}};      /* of the prompt alone */
    enum { CUT = 10, PROMPT = 24 };
    if (!ready()) SF_SKIP("the real model is not there");
    const struct golden_prompt *prompt = &golden.prompt[2];
    SF_ASSERT(prompt->ids >= PROMPT);
    for (size_t l = 0; l < sizeof layouts / sizeof layouts[0]; l++) {
        struct rows *rows = rows_new(PROMPT + 8);
        struct rig *rig = open_layout(&layouts[l], (struct sf_logits_tap){keep_row, rows});
        for (int32_t s = 0; rig != NULL && s < 4; s++) {
            struct sf_wire_item items[] = {
                {.seq = 1, .rows = CUT, .next = prompt->id[CUT], .logits = SF_LOGITS_ROWS},
                {.seq = 1, .pos = CUT, .rows = PROMPT - CUT, .next = -1,
                 .logits = SF_LOGITS_ROWS | SF_LOGITS_SAMPLE},
                {.seq = 1, .pos = PROMPT, .rows = 1, .token_first = -1, .next = -1,
                 .logits = SF_LOGITS_SAMPLE}};
            rows->rows = 0;
            for (int32_t i = 0; i < 3; i++)
                if (!feed_scored(rig, &sampling[s], PROMPT, &items[i], prompt->id + items[i].pos,
                                 rows)) break;
            SF_CHECK_INT(rows->rows, PROMPT + 1);
            if (!leave(rig)) break;
        }
        rig_close(rig);
        rows_free(rows);
    }
}

/* ---- bf16 against f32 ---- */
struct against { struct rows *exact; double kl; int64_t rows, agree, wide; };

/* KL(f32 || bf16) of one row, the arg-maxes, and the f32 margin where they differ. */
static void compare_row(void *arg, uint64_t seq, int32_t pos, const float *logits, int32_t vocab)
{
    struct against *a = arg;
    (void)seq;
    int32_t row = 0;
    while (row < a->exact->rows && a->exact->pos[row] != pos) row++;
    SF_ASSERT(row < a->exact->rows);
    const float *exact = a->exact->logits + (size_t)row * VOCAB;
    int32_t best = 0, second = -1, other = 0;
    for (int32_t i = 1; i < vocab; i++) {
        if (exact[i] > exact[best]) second = best, best = i;
        else if (second < 0 || exact[i] > exact[second]) second = i;
        if (logits[i] > logits[other]) other = i;
    }
    double sum_p = 0.0, sum_q = 0.0, kl = 0.0;
    for (int32_t i = 0; i < vocab; i++) {
        sum_p += exp((double)exact[i] - exact[best]);
        sum_q += exp((double)logits[i] - logits[other]);
    }
    double shift = logits[other] + log(sum_q) - exact[best] - log(sum_p);
    for (int32_t i = 0; i < vocab; i++)
        kl += exp((double)exact[i] - exact[best]) / sum_p * ((double)exact[i] - logits[i] + shift);
    a->kl += kl;
    a->rows++;
    a->agree += best == other;
    if (best != other && exact[best] - exact[second] >= 0.5f) a->wide++;
}

static void test_bf16(void)
{
    if (!ready()) SF_SKIP("the real model is not there");
    static const struct layout exact = {1, 1, 0, 0, "f32", 0};
    static const struct layout close[] = {{1, 1, 0, 0, "bf16", 1}, {2, 1, 1, 0, "bf16", 0}};
    for (size_t l = 0; l < 2; l++) {
        struct rows *rows = rows_new(ROWS_MAX);
        struct against against = {.exact = rows};
        struct rig *f32 = open_layout(&exact, (struct sf_logits_tap){keep_row, rows});
        struct rig *bf16 =
            open_layout(&close[l], (struct sf_logits_tap){compare_row, &against});
        int good = f32 != NULL && bf16 != NULL;
        for (int32_t p = 0; good && p < golden.prompts; p++) {
            const struct golden_prompt *prompt = &golden.prompt[p];
            if (!runs_in(&close[l], prompt)) continue;
            for (int32_t pos = 0; good && pos < prompt->ids; pos += ROWS_MAX) {
                int32_t count = prompt->ids - pos < ROWS_MAX ? prompt->ids - pos : ROWS_MAX;
                rows->rows = 0;
                good = feed(f32, prompt, pos, count, SF_LOGITS_ROWS) &&
                       feed(bf16, prompt, pos, count, SF_LOGITS_ROWS);
            }
            good = good && leave(f32) && leave(bf16);
        }
        rig_close(f32);
        rig_close(bf16);
        rows_free(rows);
        double rows_d = (double)against.rows;
        printf("  figure: bf16 %s: %lld rows, mean KL %.2e nat, arg-max agreement %.2f %%, "
               "%lld wide\n",
               close[l].fixed ? "fixed" : "free", (long long)against.rows, against.kl / rows_d,
               100.0 * (double)against.agree / rows_d, (long long)against.wide);
        SF_CHECK(good && against.rows > 0);
        SF_CHECK(against.kl / rows_d <= 2e-3);
        SF_CHECK((double)against.agree >= 0.97 * rows_d);
        SF_CHECK_INT(against.wide, 0);
    }
}

static const struct sf_test tests[] = {{"logits", test_logits},
                                       {"layouts_equal", test_layouts_equal},
                                       {"chunks", test_chunks},
                                       {"scores", test_scores},
                                       {"bf16", test_bf16},
                                       {NULL, NULL}};
SF_TEST_MAIN("golden", tests)
