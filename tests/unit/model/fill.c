/* tests/unit/model/fill.c: the tiles of all ranks together are the model's matrices.
 *
 * The matrices of every rank are put together from their tiles.  Column-parallel ones are compared
 * with the weight's rows one by one, in the order that share.h names.  Row-parallel ones are
 * checked as a sum: with an input in which element i is x[i], the sum over the ranks and slices of
 * tile . x is W x, in f64 to rounding; slices and padding that are wrong would change it.  Where
 * heads are dealt by cost, every head's columns, slices and biases are those of a single rank that
 * holds all heads, moved. */
#include <stdlib.h>

#include "model/share.h"
#include "model/weights.h"
#include "tests/check.h"
#include "tests/unit/model/tiny_gguf.h"

static const struct sf_placing balanced = { SF_PLACE_BALANCED, NULL };
static const struct sf_placing identity = { SF_PLACE_IDENTITY, NULL };

struct whole { float *at; int32_t cols, k; };       /* [cols][slices * k_slice] */

static struct whole assemble(const struct sf_model *model, const struct sf_share *share,
                             enum sf_mat_kind kind, int32_t layer, int fixed)
{
    struct sf_mat_shape s;
    sf_share_mat(sf_model_desc(model), share, kind, layer, SF_F32, fixed, 1, &s);
    struct whole w = { NULL, s.cols, s.k_slice * s.slices };
    w.at = malloc(((size_t)w.cols * (size_t)w.k + 1) * sizeof *w.at);
    float *tile = malloc((size_t)s.panel_cols * (size_t)s.k_slice * sizeof *tile);
    for (int32_t panel = 0; panel * s.panel_cols < s.cols; panel++)
        for (int32_t slice = 0; slice < s.slices; slice++) {
            SF_CHECK_OK(sf_share_fill(model, share, kind, layer, &s, panel, slice, tile));
            for (int32_t i = 0; i < s.panel_cols; i++) {
                int32_t c = panel * s.panel_cols + i;
                const float *from = tile + (size_t)i * (size_t)s.k_slice;
                if (c < s.cols)
                    memcpy(w.at + (size_t)c * (size_t)w.k + (size_t)slice * (size_t)s.k_slice, from,
                           (size_t)s.k_slice * sizeof *from);
                else
                    for (int32_t k = 0; k < s.k_slice; k++) SF_CHECK_NEAR(from[k], 0, 0);
            }
        }
    free(tile);
    return w;
}

/* Columns at..at + rows of w against rows of the weight (all zero past its end). */
static int32_t check_rows(const struct whole *w, int32_t at, const struct sf_weight *weight,
                          int32_t first, int32_t rows)
{
    float *want = calloc((size_t)w->k, sizeof *want);
    int wrong = 0;
    for (int32_t r = 0; r < rows; r++) {
        if (first + r < weight->rows) sf_weight_read(weight, first + r, 0, w->k, want);
        else memset(want, 0, (size_t)w->k * sizeof *want);
        wrong += memcmp(want, w->at + (size_t)(at + r) * (size_t)w->k,
                        (size_t)w->k * sizeof *want) != 0;
    }
    SF_CHECK_INT(wrong, 0);
    free(want);
    return at + rows;
}

static void check_columns(const struct sf_model *model, const struct sf_share *share, int32_t l,
                          int fixed)
{
    const struct sf_layer_desc *layer = &sf_model_desc(model)->layer[l];
    struct whole w = assemble(model, share, SF_MAT_QKV, l, fixed);
    int32_t at = 0, cc = share->chunk_cols;
    for (int part = 0; part < 3; part++)
        for (int32_t i = share->kv_ptr[l]; i < share->kv_ptr[l + 1]; i++) {
            const struct sf_kv_share *kv = &share->kv[i];
            if (part == 0)
                at = check_rows(&w, at, sf_model_weight(model, SF_W_Q, l),
                                kv->q_first * layer->k_dim, kv->q_count * layer->k_dim);
            else if (part == 1)
                at = check_rows(&w, at, sf_model_weight(model, SF_W_K, l),
                                kv->kv_head * layer->k_dim, layer->k_dim);
            else
                at = check_rows(&w, at, sf_model_weight(model, SF_W_V, l),
                                kv->kv_head * layer->v_dim, layer->v_dim);
        }
    SF_CHECK_INT(at, w.cols);
    free(w.at);
    w = assemble(model, share, SF_MAT_GATE_UP, l, fixed);
    at = 0;
    for (int part = 0; part < 2; part++)
        for (int32_t i = share->chunk_ptr[l]; i < share->chunk_ptr[l + 1]; i++)
            at = check_rows(&w, at, sf_model_weight(model, part == 0 ? SF_W_GATE : SF_W_UP, l),
                            share->chunk[i] * cc, cc);
    SF_CHECK_INT(at, w.cols);
    free(w.at);
}

/* x of the rank's slices, as a forward pass would lay it out: heads or chunks apart by k_slice. */
static void add_product(const struct sf_model *model, const struct sf_share *share,
                        enum sf_mat_kind kind, int32_t l, int fixed, const double *x,
                        int32_t x_count, double *sum)
{
    struct sf_mat_shape s;
    struct whole w = assemble(model, share, kind, l, fixed);
    sf_share_mat(sf_model_desc(model), share, kind, l, SF_F32, fixed, 1, &s);
    int32_t unit = kind == SF_MAT_O ? sf_model_desc(model)->layer[l].v_dim : share->chunk_cols;
    int32_t number[64], units = 0;      /* of the heads or chunks here, in order */
    for (int32_t i = share->kv_ptr[l]; kind == SF_MAT_O && i < share->kv_ptr[l + 1]; i++)
        for (int32_t q = 0; q < share->kv[i].q_count; q++)
            number[units++] = share->kv[i].q_first + q;
    for (int32_t i = share->chunk_ptr[l]; kind != SF_MAT_O && i < share->chunk_ptr[l + 1]; i++)
        number[units++] = share->chunk[i];
    if (units > 0) {
        int32_t apart = s.slices > 1 || fixed ? s.k_slice : unit;
        SF_CHECK_INT(w.k, units * apart);
        for (int32_t c = 0; c < w.cols; c++)
            for (int32_t k = 0; k < w.k; k++) {
                int32_t in_unit = k % apart, i = number[k / apart] * unit + in_unit;
                double weight = (double)w.at[(size_t)c * (size_t)w.k + (size_t)k];
                if (in_unit < unit && i < x_count) sum[c] += weight * x[i];
                else SF_CHECK_NEAR(weight, 0, 0);       /* padding */
            }
    }
    free(w.at);
}

static void check_sums(const struct sf_model *model, struct sf_share *share, int32_t ranks,
                       int32_t l, int fixed)
{
    for (int part = 0; part < 2; part++) {
        enum sf_mat_kind kind = part == 0 ? SF_MAT_O : SF_MAT_DOWN;
        const struct sf_weight *weight = sf_model_weight(model, part == 0 ? SF_W_O : SF_W_DOWN, l);
        double x[512], sum[512] = { 0 };
        float row[512];
        SF_CHECK(weight->cols <= 512 && weight->rows <= 512);
        for (int32_t i = 0; i < weight->cols; i++) x[i] = 1 + i % 17 * 0.25 - i % 5;
        for (int32_t r = 0; r < ranks; r++)
            add_product(model, &share[r], kind, l, fixed, x, weight->cols, sum);
        for (int32_t c = 0; c < weight->rows; c++) {
            double want = 0;
            sf_weight_read(weight, c, 0, weight->cols, row);
            for (int32_t i = 0; i < weight->cols; i++) want += (double)row[i] * x[i];
            SF_CHECK_NEAR(sum[c], want, 1e-9 * (1 + fabs(want)));
        }
    }
}

static void check_head(const struct sf_model *model, struct sf_share *share, int32_t ranks,
                       int fixed)
{
    int32_t rows = 0;
    for (int32_t r = 0; r < ranks; r++) {
        struct whole w = assemble(model, &share[r], SF_MAT_HEAD, 0, fixed);
        rows += check_rows(&w, 0, sf_model_weight(model, SF_W_OUT, -1), share[r].vocab_first,
                           share[r].vocab_count);
        free(w.at);
    }
    SF_CHECK_INT(rows, sf_model_desc(model)->vocab);
}

static void check_model(const struct tiny_spec *spec, const struct sf_placing *placing)
{
    struct tiny_file file = tiny_make(spec);
    struct sf_model *model = NULL;
    struct sf_share share[16];
    SF_MUST(sf_model_open(tiny_path(file.bytes, file.count), &model));
    for (int32_t ranks = 1; ranks <= spec->q_heads; ranks++)
        for (int fixed = 0; fixed < 2; fixed++) {
            for (int32_t r = 0; r < ranks; r++)
                SF_MUST(sf_share_make(sf_model_desc(model), placing, ranks, r, 0, spec->layers,
                                      &share[r]));
            for (int32_t l = 0; l < spec->layers; l++) {
                for (int32_t r = 0; r < ranks; r++) check_columns(model, &share[r], l, fixed);
                check_sums(model, share, ranks, l, fixed);
            }
            check_head(model, share, ranks, fixed);
            for (int32_t r = 0; r < ranks; r++) sf_share_free(&share[r]);
        }
    sf_model_close(model);
    tiny_free(&file);
}

static void test_tiles(void)
{
    struct tiny_spec spec = tiny_default();
    check_model(&spec, &balanced);
    spec.q_heads = 6;
    spec.kv_heads = 3;
    spec.v_dim = 24;                    /* other than k_dim; no divisor of a block */
    spec.ffn = 130;                     /* five chunks of 32, the fifth of two columns */
    spec.vocab = 2500;
    spec.untied = 1;
    check_model(&spec, &balanced);
    spec = tiny_default();
    spec.matrix_type = 3;
    spec.ffn = 320;                     /* chunks of 48: their borders fall inside blocks */
    check_model(&spec, &balanced);
}

/* On 2 ranks: KV 0 3 | 1 2, then 1 2 | 0 3. */
static const double by_cost[] = { 5, 1, 1, 1, 5, 1, 1, 1 };
static const struct sf_placing moving = { SF_PLACE_BALANCED, by_cost };

static struct tiny_spec four_heads(void)
{
    struct tiny_spec spec = tiny_default();
    spec.q_heads = 8;
    spec.kv_heads = 4;
    spec.v_dim = 24;
    spec.biases = 1;
    return spec;
}

static void test_tiles_by_cost(void)
{
    struct tiny_spec spec = four_heads();
    SF_CHECK_INT(spec.layers, 2);
    check_model(&spec, &moving);
    spec.matrix_type = 8;
    spec.v_dim = 16;                    /* heads end inside blocks */
    check_model(&spec, &moving);
}

/* ---- moved heads ----------------------------------------------------------------------------- */

/* Columns and biases of `count` heads of `dim` at `at` in the part, at `from` in the one rank's. */
static int check_heads(const struct whole *part, const float *part_bias, int32_t at,
                       const struct whole *one, const float *one_bias, int32_t from, int32_t cols)
{
    SF_CHECK_INT(part->k, one->k);
    return memcmp(part->at + (size_t)at * (size_t)part->k, one->at + (size_t)from * (size_t)one->k,
                  (size_t)cols * (size_t)one->k * sizeof(float)) != 0
        || memcmp(part_bias + at, one_bias + from, (size_t)cols * sizeof(float)) != 0;
}

static int moved_columns(const struct sf_model *model, const struct sf_share *share,
                         const struct sf_share *single, int32_t l, int fixed)
{
    const struct sf_layer_desc *layer = &sf_model_desc(model)->layer[l];
    struct whole part = assemble(model, share, SF_MAT_QKV, l, fixed);
    struct whole one = assemble(model, single, SF_MAT_QKV, l, fixed);
    float part_bias[512] = { 0 }, one_bias[512] = { 0 };
    int wrong = 0;
    SF_CHECK(one.cols <= 512);
    SF_CHECK_OK(sf_share_fill_bias(model, share, SF_MAT_QKV, l, part_bias));
    SF_CHECK_OK(sf_share_fill_bias(model, single, SF_MAT_QKV, l, one_bias));
    int32_t q = layer->k_dim * layer->q_heads, k = layer->k_dim * layer->kv_heads, at = 0;
    for (int section = 0; section < 3; section++)
        for (int32_t i = share->kv_ptr[l]; i < share->kv_ptr[l + 1]; i++) {
            const struct sf_kv_share *kv = &share->kv[i];
            int32_t cols = section == 0 ? kv->q_count * layer->k_dim
                                        : section == 1 ? layer->k_dim : layer->v_dim;
            int32_t from = section == 0 ? kv->q_first * layer->k_dim
                         : section == 1 ? q + kv->kv_head * layer->k_dim
                                        : q + k + kv->kv_head * layer->v_dim;
            wrong += check_heads(&part, part_bias, at, &one, one_bias, from, cols);
            at += cols;
        }
    SF_CHECK_INT(at, part.cols);
    free(part.at);
    free(one.at);
    return wrong;
}

static int moved_slices(const struct sf_model *model, const struct sf_share *share,
                        const struct sf_share *single, int32_t l, int fixed)
{
    int32_t v_dim = sf_model_desc(model)->layer[l].v_dim, wrong = 0;
    struct whole part = assemble(model, share, SF_MAT_O, l, fixed);
    struct whole one = assemble(model, single, SF_MAT_O, l, fixed);
    int32_t stride = fixed ? one.k / sf_share_q_heads(single, l) : v_dim, at = 0;
    for (int32_t i = share->kv_ptr[l]; i < share->kv_ptr[l + 1]; i++)
        for (int32_t q = share->kv[i].q_first; q < share->kv[i].q_first + share->kv[i].q_count; q++)
            for (int32_t c = 0, slice = at++; c < part.cols; c++)
                wrong += memcmp(part.at + (size_t)c * (size_t)part.k + (size_t)(slice * stride),
                                one.at + (size_t)c * (size_t)one.k + (size_t)(q * stride),
                                (size_t)stride * sizeof(float)) != 0;
    SF_CHECK_INT(at * stride, part.k);
    float part_bias[512] = { 0 }, one_bias[512] = { 0 };
    SF_CHECK(part.cols <= 512 && part.cols == one.cols);
    SF_CHECK_OK(sf_share_fill_bias(model, share, SF_MAT_O, l, part_bias));
    SF_CHECK_OK(sf_share_fill_bias(model, single, SF_MAT_O, l, one_bias));
    wrong += memcmp(part_bias, one_bias, (size_t)part.cols * sizeof(float)) != 0;
    free(part.at);
    free(one.at);
    return wrong;
}

static void test_moved(void)
{
    struct tiny_spec spec = four_heads();
    struct tiny_file file = tiny_make(&spec);
    struct sf_model *model = NULL;
    struct sf_share share, single;
    SF_MUST(sf_model_open(tiny_path(file.bytes, file.count), &model));
    SF_MUST(sf_share_make(sf_model_desc(model), &identity, 1, 0, 0, 2, &single));
    for (int32_t ranks = 2; ranks <= 4; ranks++)
        for (int32_t r = 0; r < ranks; r++) {
            SF_MUST(sf_share_make(sf_model_desc(model), &moving, ranks, r, 0, 2, &share));
            if (ranks == 2 && r == 0) {
                SF_CHECK_INT(share.kv[0].kv_head, 0);
                SF_CHECK_INT(share.kv[1].kv_head, 3);
            }
            for (int32_t l = 0; l < 2; l++)
                for (int fixed = 0; fixed < 2; fixed++) {
                    SF_CHECK_INT(moved_columns(model, &share, &single, l, fixed), 0);
                    SF_CHECK_INT(moved_slices(model, &share, &single, l, fixed), 0);
                }
            sf_share_free(&share);
        }
    sf_share_free(&single);
    sf_model_close(model);
    tiny_free(&file);
}

static void test_biases(void)
{
    struct tiny_spec spec = tiny_default();
    spec.biases = 1;
    spec.ffn = 104;                     /* chunks of 16, the last of 8 */
    struct tiny_file file = tiny_make(&spec);
    struct sf_model *model = NULL;
    struct sf_share share;
    float bias[512];
    SF_MUST(sf_model_open(tiny_path(file.bytes, file.count), &model));
    const struct sf_model_desc *desc = sf_model_desc(model);
    SF_MUST(sf_share_make(desc, &identity, 2, 1, 0, 2, &share));
    /* Rank 1: q 2 3 (rows 32..63), KV 1 (rows 16..31); chunks 4 5 6 of 7. */
    SF_CHECK_INT(sf_share_bias_cols(desc, &share, SF_MAT_QKV, 1), 32 + 16 + 16);
    SF_MUST(sf_share_fill_bias(model, &share, SF_MAT_QKV, 1, bias));
    for (int i = 0; i < 32; i++)
        SF_CHECK_NEAR(bias[i], tiny_value("blk.1.attn_q.bias", 0, 32 + i), 0);
    for (int i = 0; i < 16; i++) {
        SF_CHECK_NEAR(bias[32 + i], tiny_value("blk.1.attn_k.bias", 0, 16 + i), 0);
        SF_CHECK_NEAR(bias[48 + i], tiny_value("blk.1.attn_v.bias", 0, 16 + i), 0);
    }
    SF_CHECK_INT(sf_share_bias_cols(desc, &share, SF_MAT_GATE_UP, 0), 2 * 48);
    SF_MUST(sf_share_fill_bias(model, &share, SF_MAT_GATE_UP, 0, bias));
    for (int i = 0; i < 48; i++) {
        int real = 64 + i < 104;
        SF_CHECK_NEAR(bias[i], real ? tiny_value("blk.0.ffn_gate.bias", 0, 64 + i) : 0, 0);
        SF_CHECK_NEAR(bias[48 + i], real ? tiny_value("blk.0.ffn_up.bias", 0, 64 + i) : 0, 0);
    }
    SF_CHECK_INT(sf_share_bias_cols(desc, &share, SF_MAT_DOWN, 0), 64);
    SF_MUST(sf_share_fill_bias(model, &share, SF_MAT_DOWN, 0, bias));
    SF_CHECK_NEAR(bias[63], tiny_value("blk.0.ffn_down.bias", 0, 63), 0);
    SF_CHECK_INT(sf_share_bias_cols(desc, &share, SF_MAT_HEAD, 0), 0);
    sf_share_free(&share);
    sf_model_close(model);
    tiny_free(&file);
}

static void test_not_finite(void)
{
    struct tiny_spec spec = tiny_default();
    struct tiny_file file = tiny_make(&spec);
    struct sf_model *model = NULL;
    struct sf_share share;
    struct sf_mat_shape s;
    float tile[64 * 64 * 4];
    /* The data end with the last row of blk.1.ffn_down. */
    memcpy(file.bytes + file.count - 4, "\x00\x00\xc0\x7f", 4);
    SF_MUST(sf_model_open(tiny_path(file.bytes, file.count), &model));
    SF_MUST(sf_share_make(sf_model_desc(model), &balanced, 1, 0, 0, 2, &share));
    sf_share_mat(sf_model_desc(model), &share, SF_MAT_DOWN, 1, SF_F32, 0, 1, &s);
    SF_CHECK((size_t)s.panel_cols * (size_t)s.k_slice <= sizeof tile / sizeof *tile);
    int32_t last = (s.cols - 1) / s.panel_cols;
    SF_CHECK_OK(sf_share_fill(model, &share, SF_MAT_DOWN, 1, &s, 0, 0, tile));
    SF_CHECK_FAILS(sf_share_fill(model, &share, SF_MAT_DOWN, 1, &s, last, 0, tile), SF_FORMAT);
    SF_CHECK(strstr(sf_error_text(), "blk.1.ffn_down.weight") != NULL);
    sf_share_free(&share);
    sf_model_close(model);
    tiny_free(&file);
}

static const struct sf_test tests[] = {
    { "tiles", test_tiles }, { "tiles_by_cost", test_tiles_by_cost }, { "moved", test_moved },
    { "biases", test_biases }, { "not_finite", test_not_finite }, { NULL, NULL } };
SF_TEST_MAIN("model_fill", tests)
