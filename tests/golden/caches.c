/* tests/golden/caches.c: low-rank factors of what a real model caches.
 *
 * The keys (turned back to before their rotation) and the values of 1,500 tokens of English, in
 * two groups of four layers of SmolLM2-135M, seen by a tap of the store in an exact run.  Of each
 * group's matrix [1500][768], for ranks of 1/12 to 3/8 of its columns:
 * - the error of the exact factors is the root of the squares of the singular values that they
 *   leave out, and falls with the rank;
 * - the randomised factors, two power iterations and no oversampling, lose at most 5 % more;
 * - at equal bytes of bases, four layers together lose less than two and two, and those less than
 *   each alone. */
#include <math.h>
#include <stdlib.h>

#include "kernels/device.h"
#include "tests/check.h"
#include "tests/golden/rig.h"

enum { TOKENS = 1500, FEED = 500, GROUP = 4, GROUPS = 2, HEADS = 3, DIM = 64,
       LANE = HEADS * DIM, COLS = GROUP * LANE, RANK_MAX = 288 };
static const int32_t first_layer[GROUPS] = { 0, 26 };
static const int32_t ranks[] = { 64, 144, RANK_MAX };
enum { RANKS = sizeof ranks / sizeof *ranks };
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { FACTORISED = 1 };                /* groups: sanitizers are not for numbers */
#else
enum { FACTORISED = GROUPS };
#endif

/* ---- what the model caches ------------------------------------------------------------------ */
static float cached[2][GROUPS][TOKENS][COLS];   /* keys, values */
static float lane_k[TOKENS * DIM], lane_v[TOKENS * DIM];
static const float *inv_freq;

/* Keys of positions 0, 1, ... as they were before their rotation. */
static void turn_back(float *k)
{
    for (int32_t t = 0; t < TOKENS; t++)
        for (int32_t i = 0; i < DIM / 2; i++) {
            float *low = k + t * DIM + i, *high = low + DIM / 2;
            double angle = t * (double)inv_freq[i], c = cos(angle), s = sin(angle);
            double was_low = *low * c + *high * s, was_high = *high * c - *low * s;
            *low = (float)was_low;
            *high = (float)was_high;
        }
}

static sf_status keep_layer(void *arg, const struct sf_store_rows *rows)
{
    (void)arg;
    if (rows->pos_first + rows->rows < TOKENS) return SF_OK;
    for (int g = 0; g < GROUPS; g++) {
        int32_t layer = rows->layer_local - first_layer[g];
        if (layer < 0 || layer >= GROUP) continue;
        for (int32_t h = 0; h < HEADS; h++) {
            SF_TRY(sf_seq_lane_read(rows->store, rows->seq, rows->layer_local, h, lane_k, lane_v,
                                    NULL, NULL));
            turn_back(lane_k);
            for (int32_t t = 0; t < TOKENS; t++) {
                size_t to = (size_t)(layer * LANE + h * DIM);
                memcpy(&cached[0][g][t][to], lane_k + t * DIM, DIM * sizeof *lane_k);
                memcpy(&cached[1][g][t][to], lane_v + t * DIM, DIM * sizeof *lane_v);
            }
        }
    }
    return SF_OK;
}

static int feed(struct rig *rig, const struct golden_prompt *prompt, int32_t pos)
{
    struct sf_wire_open open = { .seq = 1, .prompt = prompt->ids, .tokens_max = prompt->ids + 1,
                                 .sampling = { .top_p = 1, .repetition = 1 }, .reused_first = -1 };
    struct sf_wire_item item = { .seq = 1, .pos = pos, .rows = FEED, .next = -1, .logits = 1 };
    struct sf_wire_step step = { .open = &open, .opens = pos == 0, .item = &item, .items = 1,
                                 .token = prompt->id + pos, .tokens = FEED };
    struct sf_wire_result result;
    return rig_send(rig, 0, &step) && rig_wait(rig, &result);
}

static int read_caches(void)
{
    struct golden golden;
    const struct golden_prompt *prompt = NULL;
    char yaml[SF_OPT_TEXT_MAX + 512];
    if (!golden_load("smollm2-135m-q4_1.json", &golden)) return 0;
    for (int32_t p = 0; p < golden.prompts; p++)
        if (golden.prompt[p].ids == TOKENS) prompt = &golden.prompt[p];
    SF_CHECK(prompt != NULL);
    snprintf(yaml, sizeof yaml, "schema_version: 1\nmodel: {path: %s, dtype: f32}\n"
             "kv_cache: {memory: 192MiB}\nscheduler: {max_num_seqs: 1, max_model_len: 2048, "
             "max_num_batched_tokens: 512}\n", sf_test_model());
    struct rig_spec spec = { .yaml = yaml, .rows_tap = { .rows = keep_layer } };
    struct rig *rig = prompt ? rig_open(&spec) : NULL;
    int good = rig != NULL;
    if (good) inv_freq = rig_desc(rig)->rope_inv_freq;
    for (int32_t pos = 0; pos < TOKENS && good; pos += FEED) good = feed(rig, prompt, pos);
    rig_close(rig);
    golden_free(&golden);
    SF_CHECK(good);
    return good;
}

/* ---- their factors -------------------------------------------------------------------------- */
static float a[TOKENS * COLS], b[COLS * COLS], product[COLS];
static struct sf_device *device;

/* Frobenius norm, squared, of what is left of the columns when they are factorised together. */
static double lost(const float *x, int32_t cols, int32_t rank, enum sf_factor_how how)
{
    struct sf_factor_job job = { .rows = TOKENS, .cols = cols, .rank = rank, .how = how,
                                 .power_iterations = 2, .seed = 1234, .x = x, .x_stride = COLS,
                                 .a = a, .b = b, .a_stride = (size_t)rank,
                                 .b_stride = (size_t)cols };
    size_t bytes = (device->k->factor_bytes(&job) + 63) / 64 * 64;
    double sum = 0;
    job.scratch = aligned_alloc(64, bytes);
    SF_ASSERT(job.scratch != NULL);
    SF_CHECK_OK(device->k->factor(device, &job));
    for (int32_t t = 0; t < TOKENS; t++) {
        memset(product, 0, sizeof product);
        for (int32_t r = 0; r < rank; r++)
            for (int32_t c = 0; c < cols; c++) product[c] += a[t * rank + r] * b[r * cols + c];
        for (int32_t c = 0; c < cols; c++) {
            double e = (double)x[(size_t)t * COLS + (size_t)c] - (double)product[c];
            sum += e * e;
        }
    }
    free(job.scratch);
    return sum;
}

/* Squares of the singular values of the group's matrix: |a_r| = |b_r| = sqrt(sigma_r). */
static void spectrum(const float *x, double *square)
{
    lost(x, COLS, COLS, SF_FACTOR_EXACT);
    for (int32_t r = 0; r < COLS; r++) {
        double sigma = 0;
        for (int32_t c = 0; c < COLS; c++)
            sigma += (double)b[r * COLS + c] * (double)b[r * COLS + c];
        square[r] = sigma * sigma;
    }
}

static void check_group(const char *what, int32_t layer, const float *x)
{
    double square[COLS], norm = 0, before = 0;
    for (int32_t i = 0; i < TOKENS * COLS; i++) norm += (double)x[i] * (double)x[i];
    spectrum(x, square);
    before = norm;
    for (int i = 0; i < RANKS; i++) {
        double least = 0, alone[2] = { 0, 0 };
        for (int32_t r = ranks[i]; r < COLS; r++) least += square[r];
        double exact = lost(x, COLS, ranks[i], SF_FACTOR_EXACT);
        double random = lost(x, COLS, ranks[i], SF_FACTOR_RANDOM);
        for (int w = 0; w < 2; w++)     /* one layer, two layers, with bases in proportion */
            for (int32_t l = 0; l < GROUP; l += w + 1)
                alone[w] += lost(x + l * LANE, (w + 1) * LANE, ranks[i] * (w + 1) / GROUP,
                                 SF_FACTOR_EXACT);
        printf("  figure: layers %d and on, %s, rank %d: %.4f of the norm is lost, %.4f at random; "
               "%.4f by twos, %.4f alone\n", layer, what, ranks[i], sqrt(exact / norm),
               sqrt(random / norm), sqrt(alone[1] / norm), sqrt(alone[0] / norm));
        SF_CHECK_NEAR(sqrt(exact / norm), sqrt(least / norm), 1e-4);
        SF_CHECK(exact < before);
        SF_CHECK(sqrt(random) <= 1.05 * sqrt(exact));
        SF_CHECK(exact < alone[1] && alone[1] < alone[0]);
        before = exact;
    }
}

static void test_factors(void)
{
    struct sf_device_spec spec = { .name = "cpu", .threads = 1, .rows_max = 1 };
    if (!read_caches()) return;
    SF_MUST(sf_device_open(&spec, &device));
    for (int g = 0; g < FACTORISED; g++) {
        check_group("keys", first_layer[g], &cached[0][g][0][0]);
        check_group("values", first_layer[g], &cached[1][g][0][0]);
    }
    sf_device_close(device);
}

static const struct sf_test tests[] = { { "factors", test_factors }, { NULL, NULL } };
SF_TEST_MAIN("golden_caches", tests)
