/* tests/kernels/columns.c: what attention gives to each slot: ref equals the formula written out
 * column by column, every backend equals ref within a bound on rounding, on the cases of attention
 * and for all folds; slots that no row sees, holes and other lanes' pages keep their bits; and the
 * bits of a mass do not depend on where the rows are cut into calls, on the order of lanes or on
 * the number of threads.  Then what it costs beside attention. */
#include <math.h>
#include <stdlib.h>
#include "tests/check.h"
#include "tests/kernels/lanes.h"
#include "tests/kernels/variants.h"

static const struct fold {
    const char *text;
    enum sf_row_fold rows;
    enum sf_head_fold heads;
    float decay;
} folds[] = {
    { "sum of sum", SF_ROWS_SUM, SF_HEADS_SUM, 0 },
    { "sum of mean", SF_ROWS_SUM, SF_HEADS_MEAN, 0 },
    { "sum of max", SF_ROWS_SUM, SF_HEADS_MAX, 0 },
    { "max of mean", SF_ROWS_MAX, SF_HEADS_MEAN, 0 },
    { "max of max", SF_ROWS_MAX, SF_HEADS_MAX, 0 },
    { "decay of sum", SF_ROWS_DECAY, SF_HEADS_SUM, 0.9f },
    { "decay of max", SF_ROWS_DECAY, SF_HEADS_MAX, 0.5f },
    { "below mean of mean", SF_ROWS_BELOW_MEAN, SF_HEADS_MEAN, 0 },
    { "below mean of max", SF_ROWS_BELOW_MEAN, SF_HEADS_MAX, 0 }
};
enum { FOLDS = sizeof folds / sizeof *folds };

static struct variant variants[VARIANTS_MAX];
static struct sf_device *ref;
static int count;

/* A problem with attention's lse, and masses: at the start, as expected, and as found. */
struct sums {
    struct problem p;
    float *lse, *start, *found;
    double *least, *most;
    size_t masses, lse_stride;
};

/* The problem's attention; out [rows][2 q_heads][v_dim] f32. */
static void attend(struct sf_device *device, const struct sums *s, const struct sf_lane_job *lane,
                   int32_t lanes, void *out)
{
    const struct problem *p = &s->p;
    size_t v_dim = (size_t)p->shape->v_dim;
    struct sf_attend_job job = {
        .layout = p->layout, .pool = p->pool, .page_bytes = p->page_bytes, .q = p->q,
        .q_stride = p->q_stride, .out = out, .out_stride = s->lse_stride * v_dim,
        .out_head_stride = v_dim, .out_dtype = SF_F32,
        .scale = 1 / sqrtf((float)p->shape->k_dim), .window = p->shape->window,
        .row_pos = p->row_pos, .lane = lane, .lanes = lanes, .lse = s->lse,
        .lse_stride = s->lse_stride
    };
    device->k->attend(device, &job);
}

static void *out_make(const struct sums *s)
{
    return malloc(s->p.rows * s->lse_stride * (size_t)s->p.shape->v_dim * sizeof(float) + 1);
}

/* lse comes from `device`; all 0 without one. */
static void sums_make(struct sums *s, const struct shape *shape, struct sf_device *device)
{
    struct problem *p = &s->p;
    problem_make(p, shape, ref);
    s->lse_stride = 2 * (size_t)shape->q_heads;
    s->lse = calloc(p->rows * s->lse_stride + 1, sizeof *s->lse);
    if (device) {
        void *out = out_make(s);
        attend(device, s, p->lane, shape->lanes, out);
        free(out);
    }
    s->masses = (size_t)p->pool_pages * (size_t)shape->page_slots;
    s->start = malloc(s->masses * sizeof *s->start);
    s->found = malloc(s->masses * sizeof *s->found);
    s->least = malloc(s->masses * sizeof *s->least);
    s->most = malloc(s->masses * sizeof *s->most);
    random_fill(s->start, s->masses, 0.5f, 600);
    for (size_t i = 0; i < s->masses; i++) s->start[i] += 0.5f;
}

static void sums_free(struct sums *s)
{
    problem_free(&s->p);
    free(s->lse);
    free(s->start);
    free(s->found);
    free(s->least);
    free(s->most);
}

static void columns(struct sf_device *device, const struct sums *s, const struct fold *fold,
                    const struct sf_lane_job *lane, int32_t lanes, float *mass)
{
    const struct problem *p = &s->p;
    struct sf_columns_job job = {
        .layout = p->layout, .pool = p->pool, .page_bytes = p->page_bytes, .q = p->q,
        .q_stride = p->q_stride, .scale = 1 / sqrtf((float)p->shape->k_dim),
        .window = p->shape->window, .row_pos = p->row_pos, .lane = lane, .lanes = lanes,
        .lse = s->lse, .lse_stride = s->lse_stride, .fold = fold->rows, .head_fold = fold->heads,
        .decay = fold->decay, .mass = mass
    };
    device->k->columns(device, &job);
}

/* ---- the formula -------------------------------------------------------------------------------
 * */

/* One lane written out: weights of each row and slot, folded over heads; -1 where not seen. */
struct dense {
    int32_t rows, slots;
    double *w;                          /* [rows][slots] */
    int32_t *seen;                      /* [rows] how many slots */
    float *k, *bias;
    int32_t *pos, *slot;
};

static double dense_weight(const struct sums *s, const struct sf_lane_job *lane,
                           const struct dense *d, const struct fold *fold, int32_t row,
                           int32_t slot)
{
    size_t k_dim = (size_t)s->p.layout.k_dim, at = (size_t)(lane->row_first + row);
    double sum = 0, greatest = 0;
    for (int32_t h = lane->q_first; h < lane->q_first + lane->q_heads; h++) {
        double dot = 0, lse = (double)s->lse[at * s->lse_stride + (size_t)h];
        for (size_t e = 0; e < k_dim; e++)
            dot += (double)s->p.q[at * s->p.q_stride + (size_t)h * k_dim + e] *
                   (double)d->k[(size_t)slot * k_dim + e];
        double scale = (double)(1 / sqrtf((float)k_dim));
        double w = exp(scale * dot + (double)d->bias[slot] - lse);
        sum += w;
        greatest = fmax(greatest, w);
    }
    if (fold->heads == SF_HEADS_MAX) return greatest;
    return fold->heads == SF_HEADS_MEAN ? sum / lane->q_heads : sum;
}

static void dense_make(const struct sums *s, const struct sf_lane_job *lane,
                       const struct fold *fold, struct dense *d)
{
    size_t n = (size_t)lane->slots, k_dim = (size_t)s->p.layout.k_dim;
    *d = (struct dense){ lane->rows, lane->slots, malloc((size_t)lane->rows * n * 8 + 1),
                         calloc((size_t)lane->rows + 1, 4), malloc(n * k_dim * 4 + 1),
                         malloc(n * 4 + 1), malloc(n * 4 + 1), malloc(n * 4 + 1) };
    for (int32_t i = 0; i < lane->slots; i++) d->slot[i] = i;
    struct sf_slot_list all = { lane->pages, d->slot, lane->slots };
    ref->k->kv_read(ref, &s->p.layout, s->p.pool, s->p.page_bytes, &all, d->k, NULL, d->bias,
                    d->pos);
    int32_t window = s->p.shape->window;
    for (int32_t r = 0; r < d->rows; r++)
        for (int32_t i = 0; i < d->slots; i++) {
            int32_t row_pos = s->p.row_pos[lane->row_first + r];
            int seen = i < lane->slots - lane->rows + r + 1 && d->bias[i] > -INFINITY &&
                       (window == 0 || d->pos[i] > row_pos - window);
            d->w[r * d->slots + i] = seen ? dense_weight(s, lane, d, fold, r, i) : -1;
            d->seen[r] += seen;
        }
}

static void dense_free(struct dense *d)
{
    free(d->w);
    free(d->seen);
    free(d->k);
    free(d->bias);
    free(d->pos);
    free(d->slot);
}

/* The mass of one slot, within `error` of each weight, relative: *least .. *most. */
static void column_sum(const struct dense *d, const struct fold *fold, int32_t slot, double error,
                       double *least, double *most)
{
    double sum = 0, greatest = 0, decay = (double)fold->decay, surely = 0, perhaps = 0;
    int32_t rows = 0, there = d->rows - 1 - (d->slots - 1 - slot);     /* first row that has it */
    for (int32_t r = 0; r < d->rows; r++) {
        double w = d->w[r * d->slots + slot];
        if (w < 0) continue;
        rows++;
        sum += fold->rows == SF_ROWS_DECAY ? pow(decay, d->rows - 1 - r) * w : w;
        greatest = fmax(greatest, w);
        surely += w * (1 + error) < 1.0 / d->seen[r];
        perhaps += w * (1 - error) < 1.0 / d->seen[r];
    }
    int32_t passed = d->rows - (there > 0 ? there : 0);
    double tiny = 1e-36, rounding = 2 * EPS * passed;
    if (fold->rows == SF_ROWS_DECAY) {
        if (d->bias[slot] == -INFINITY) return;
        double value = *least * pow(decay, passed) + sum, bound = value * (error + rounding) + tiny;
        *least = value - bound;
        *most = value + bound;
    } else if (rows > 0 && fold->rows == SF_ROWS_SUM) {
        double value = *least + sum;
        *least = value - sum * error - value * rounding - tiny;
        *most = value + sum * error + value * rounding + tiny;
    } else if (rows > 0 && fold->rows == SF_ROWS_MAX) {
        *most = fmax(*least, greatest * (1 + error) + tiny);
        *least = fmax(*least, greatest * (1 - error) - tiny);
    } else {
        *most = (*least + perhaps) * (1 + rounding);
        *least = (*least + surely) * (1 - rounding);
    }
}

/* What masses may be after all lanes; a slot that nothing touches has no room at all. */
static void expect(struct sums *s, const struct fold *fold, double error)
{
    for (size_t i = 0; i < s->masses; i++) s->least[i] = s->most[i] = (double)s->start[i];
    for (int i = 0; i < s->p.shape->lanes; i++) {
        const struct sf_lane_job *lane = &s->p.lane[i];
        int32_t page_slots = s->p.layout.page_slots;
        struct dense d;
        dense_make(s, lane, fold, &d);
        for (int32_t slot = 0; lane->rows > 0 && slot < lane->slots; slot++) {
            size_t at = (size_t)lane->pages[slot / page_slots] * (size_t)page_slots +
                        (size_t)(slot % page_slots);
            column_sum(&d, fold, slot, error, &s->least[at], &s->most[at]);
        }
        dense_free(&d);
    }
}

static void check_found(const struct sums *s, const struct fold *fold, const char *variant)
{
    for (size_t i = 0; i < s->masses; i++) {
        double found = (double)s->found[i];
        if (found >= s->least[i] && found <= s->most[i]) continue;
        size_t page_slots = (size_t)s->p.layout.page_slots;
        sf_test_fail(__FILE__, __LINE__, "%s, %s, %s: slot %zu of page %zu has %.9g, expected "
                     "%.9g .. %.9g", variant, s->p.shape->text, fold->text, i % page_slots,
                     i / page_slots, found, s->least[i], s->most[i]);
        return;
    }
    CU_PASS("check_found");
}

/* A weight's relative error is its logit's error; then logit and lse are subtracted, where they may
 * be twice as large, and exp adds 2e-7.  The reference computes weights in f64, of logits that are
 * rounded once. */
static void test_formula(void)
{
    for (int c = 0; c < shapes_count; c++) {
        struct sums s;
        sums_make(&s, &shapes[c], ref);
        for (int f = 0; f < FOLDS; f++) {
            if (variants_spare(c + f, 5)) continue;
            expect(&s, &folds[f], 1e-9 + EPS + s.p.logit_bound / 2);
            memcpy(s.found, s.start, s.masses * sizeof *s.found);
            columns(ref, &s, &folds[f], s.p.lane, shapes[c].lanes, s.found);
            check_found(&s, &folds[f], "ref");
            double error = 0;
            for (int i = 0; i < count; i++) {
                double change = rounding_of(&s.p, variants[i].device).logit, before = error;
                error = 3 * s.p.logit_bound + 8 * EPS + expm1(change);
                if (error > before) expect(&s, &folds[f], error);
                memcpy(s.found, s.start, s.masses * sizeof *s.found);
                columns(variants[i].device, &s, &folds[f], s.p.lane, shapes[c].lanes, s.found);
                check_found(&s, &folds[f], variants[i].text);
            }
        }
        sums_free(&s);
    }
}

/* ---- bits --------------------------------------------------------------------------------------
 * */

/* All rows in calls of `most` rows of each lane, first to last; lanes in reverse. */
static void columns_chunked(struct sf_device *device, const struct sums *s,
                            const struct fold *fold, int32_t most, float *mass)
{
    int32_t rows = 0;
    for (int i = 0; i < s->p.shape->lanes; i++)
        if (s->p.lane[i].rows > rows) rows = s->p.lane[i].rows;
    for (int32_t from = 0; from < rows; from += most) {
        struct sf_lane_job jobs[LANES_MAX];
        int32_t n = 0;
        for (int i = s->p.shape->lanes - 1; i >= 0; i--) {
            struct sf_lane_job lane = s->p.lane[i];
            int32_t left = lane.rows - from, here = left < most ? left : most;
            if (left <= 0) continue;
            lane.slots -= left - here;
            lane.row_first += from;
            lane.rows = here;
            jobs[n++] = lane;
        }
        columns(device, s, fold, jobs, n, mass);
    }
}

/* One fold of one problem: every device, whole and cut. */
static void check_chunks(const struct sums *s, const struct fold *fold)
{
    static const int32_t chunks[] = { 1, 7, 1000 };
    size_t bytes = s->masses * sizeof *s->found;
    float *standard = malloc(bytes);
    for (int i = -1; i < count; i++) {
        struct sf_device *device = i < 0 ? ref : variants[i].device;
        if (device->threads == 1) {
            memcpy(standard, s->start, bytes);
            columns(device, s, fold, s->p.lane, s->p.shape->lanes, standard);
        }
        for (int n = i < 0; n < 3; n++) {
            memcpy(s->found, s->start, bytes);
            columns_chunked(device, s, fold, chunks[n], s->found);
            compare_bits(i < 0 ? "ref" : variants[i].text, s->p.shape->text, s->found, standard,
                         bytes);
        }
    }
    free(standard);
}

static void test_chunks(void)
{
    for (int c = 0; c < shapes_count; c++) {
        struct sums s;
        sums_make(&s, &shapes[c], ref);
        for (int f = 0; f < FOLDS; f++)
            if (!variants_spare(c + f, 5)) check_chunks(&s, &folds[f]);
        sums_free(&s);
    }
}

/* A row without lse is as good as not there, but it still ages masses that decay. */
static void test_dead_row(void)
{
    const struct shape *shape = &shapes[0];
    for (int c = 0; c < shapes_count; c++)
        if (shapes[c].rows[0] > 2 && shapes[c].window == 0 && shapes[c].holes_percent == 0)
            shape = &shapes[c];
    struct sums s;
    sums_make(&s, shape, ref);
    size_t bytes = s.masses * sizeof *s.found;
    float *without = malloc(bytes);
    struct sf_lane_job lane = s.p.lane[0], begin = lane;
    int32_t dead = lane.rows - 1;
    for (int32_t h = 0; h < lane.q_heads; h++)
        s.lse[(size_t)(lane.row_first + dead) * s.lse_stride + (size_t)(lane.q_first + h)] =
            -INFINITY;
    begin.slots--;
    begin.rows--;
    for (int i = -1; i < count; i++)
        for (int f = 0; f < FOLDS; f++) {
            struct sf_device *device = i < 0 ? ref : variants[i].device;
            memcpy(without, s.start, bytes);
            columns(device, &s, &folds[f], &begin, 1, without);
            memcpy(s.found, s.start, bytes);
            columns(device, &s, &folds[f], &lane, 1, s.found);
            if (folds[f].rows == SF_ROWS_DECAY)
                for (int32_t at = 0; at < lane.slots; at++) {
                    size_t page = (size_t)lane.pages[at / shape->page_slots];
                    without[page * (size_t)shape->page_slots +
                            (size_t)(at % shape->page_slots)] *= folds[f].decay;
                }
            compare_bits(i < 0 ? "ref" : variants[i].text, folds[f].text, s.found, without, bytes);
        }
    free(without);
    sums_free(&s);
}

/* More rows than one pass of a backend takes (the cut falls among the last ones, that see
 * something) are as good as those last ones alone. */
static void test_many_rows(void)
{
    static const struct shape shape = { "many rows", SF_F32, SF_F32, 16, 2, 2, 1, 1, { 600 },
                                        { (256 << 10) + 300 }, 5, 0, 1, 0, 1 };
    struct sums s;
    sums_make(&s, &shape, ref);
    size_t bytes = s.masses * sizeof *s.found;
    float *last = malloc(bytes);
    struct sf_lane_job lane = s.p.lane[0];
    lane.row_first += lane.rows - lane.slots;
    lane.rows = lane.slots;
    for (int i = 0; i < count; i++)
        for (int f = 0; f < FOLDS; f += 2) {
            memcpy(last, s.start, bytes);
            columns(variants[i].device, &s, &folds[f], &lane, 1, last);
            memcpy(s.found, s.start, bytes);
            columns(variants[i].device, &s, &folds[f], s.p.lane, 1, s.found);
            compare_bits(variants[i].text, folds[f].text, s.found, last, bytes);
        }
    free(last);
    sums_free(&s);
}

/* More lanes than one pass takes: each is one page of a long one. */
static void test_many_lanes(void)
{
    enum { LANES = 9000 };
    static const struct shape shape = { "many lanes", SF_F32, SF_F32, 16, 2, 2, 1, 1,
                                        { 16 * LANES }, { 1 }, 5, 0, 1, 0, 1 };
    struct sums s;
    sums_make(&s, &shape, NULL);
    size_t bytes = s.masses * sizeof *s.found;
    float *standard = malloc(bytes);
    struct sf_lane_job *jobs = malloc(LANES * sizeof *jobs);
    for (int32_t i = 0; i < LANES; i++)
        jobs[i] = (struct sf_lane_job){ s.p.pages + i, 1 + i % 16, 0, 1, 0, 1, NULL, 0, NULL, 0 };
    for (int i = 0; i < count; i++)
        for (int f = 0; f < FOLDS; f += 2) {
            memcpy(s.found, s.start, bytes);
            columns(variants[i].device, &s, &folds[f], jobs, LANES, s.found);
            memcpy(standard, s.start, bytes);
            for (int32_t first = 0; first < LANES; first += LANES / 9)
                columns(variants[i].device, &s, &folds[f], jobs + first, LANES / 9, standard);
            compare_bits(variants[i].text, folds[f].text, s.found, standard, bytes);
        }
    free(jobs);
    free(standard);
    sums_free(&s);
}

/* ---- cost --------------------------------------------------------------------------------------
 * */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif
enum { REPETITIONS = 15 };

/* Attention and each of two folds in turns. */
static void cost_print(const struct variant *variant, struct sums *s,
                       const struct sf_lane_job *lane, int32_t lanes)
{
    static const int shown[] = { 1, 7 };
    double taken[3][REPETITIONS];
    void *out = out_make(s);
    memset(s->found, 0, s->masses * sizeof *s->found);
    for (int i = -1; i < REPETITIONS; i++)
        for (int what = 0; what < 3; what++) {
            double begin = clock_seconds(CLOCK_MONOTONIC);
            if (what == 0) attend(variant->device, s, lane, lanes, out);
            else columns(variant->device, s, &folds[shown[what - 1]], lane, lanes, s->found);
            if (i >= 0) taken[what][i] = clock_seconds(CLOCK_MONOTONIC) - begin;
        }
    free(out);
    double whole = median_of(taken[0], REPETITIONS);
    for (int what = 1; what < 3; what++) {
        double part = median_of(taken[what], REPETITIONS);
        printf("  figure: columns (%s) of %s, %s: %.2f of attend (%.2f of %.2f ms, medians of %d "
               "in turns)\n", folds[shown[what - 1]].text, s->p.shape->text, variant->text,
               part / whole, 1e3 * part, 1e3 * whole, REPETITIONS);
        SF_CHECK(part > 0);
    }
}

/* Not a test: figures for the best instruction set, on one and on two threads. */
static void test_cost(void)
{
    enum { LANES = 64, SLOTS = 2048, PAGE = 64 };
    static const struct shape cases[] = {
        { "prefill of 2048 rows, d 64, 3 heads, bf16", SF_BF16, SF_F32, PAGE, 64, 64, 3, 1,
          { SLOTS }, { SLOTS }, 0, 0, 1, 0, 1 },
        { "prefill of 2048 rows, d 64, 3 heads, f32", SF_F32, SF_F32, PAGE, 64, 64, 3, 1,
          { SLOTS }, { SLOTS }, 0, 0, 1, 0, 1 },
        { "decode of 64 x 2048 slots, d 64, 3 heads, bf16", SF_BF16, SF_F32, PAGE, 64, 64, 3, 1,
          { LANES * SLOTS }, { LANES }, 0, 0, 1, 0, 1 },
        { "decode of 64 x 2048 slots, d 64, 3 heads, f32", SF_F32, SF_F32, PAGE, 64, 64, 3, 1,
          { LANES * SLOTS }, { LANES }, 0, 0, 1, 0, 1 }
    };
    if (SANITIZED) SF_SKIP("times under a sanitizer say nothing");
    if (VARIANTS_STAGED) SF_SKIP("times with arrays carried to and fro say nothing");
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct sf_lane_job lane[LANES];
        struct sums s;
        sums_make(&s, &cases[c], NULL);
        int32_t lanes = cases[c].rows[0] == LANES ? LANES : 1;
        lane[0] = s.p.lane[0];
        for (int32_t i = 0; lanes > 1 && i < lanes; i++)
            lane[i] = (struct sf_lane_job){ s.p.pages + i * (SLOTS / PAGE), SLOTS, i, 1, 0, 3, NULL,
                                            0, NULL, 0 };
        for (int i = count - 3; i < count - 1; i++) cost_print(&variants[i], &s, lane, lanes);
        sums_free(&s);
    }
}

static const struct sf_test tests[] = {
    { "formula", test_formula }, { "chunks", test_chunks }, { "dead row", test_dead_row },
    { "many rows", test_many_rows }, { "many lanes", test_many_lanes }, { "cost", test_cost },
    { NULL, NULL }
};

int main(int argc, char **argv)
{
    count = variants_open(variants, &ref);
    int failed = sf_test_main("kernels_columns", tests, argc, argv);
    variants_close(variants, count, ref);
    return failed;
}
