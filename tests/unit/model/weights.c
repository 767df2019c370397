/* tests/unit/model/weights.c: a model's description and weights are what was put into the file.
 *
 * The files are made with q and k rows interleaved as GGUF has them, from matrices numbered as they
 * were trained; what is read back must be the trained numbering.  Reads of any part of a row equal
 * that part of the whole row.  The real model's numbers are known. */
#include "model/weights.h"

#include <stdlib.h>

#include "tests/check.h"
#include "tests/unit/model/tiny_gguf.h"

static sf_status open_tiny(const struct tiny_spec *spec, struct sf_model **model)
{
    struct tiny_file file = tiny_make(spec);
    sf_status status = sf_model_open(tiny_path(file.bytes, file.count), model);
    tiny_free(&file);
    return status;
}

static void check_values(const struct sf_weight *weight)
{
    float row[512];
    SF_CHECK(weight != NULL && weight->cols <= 512);
    if (weight == NULL) return;
    int wrong = 0;
    for (int32_t r = 0; r < weight->rows; r++) {
        sf_weight_read(weight, r, 0, weight->cols, row);
        for (int32_t c = 0; c < weight->cols; c++)
            wrong += row[c] != tiny_value(weight->name, r, c);
    }
    if (wrong != 0)
        sf_test_fail(__FILE__, __LINE__, "%s [%d][%d]: %d elements differ", weight->name,
                     weight->rows, weight->cols, wrong);
    else CU_PASS("values");
}

static void test_all_roles(void)
{
    static const int32_t kv_heads[] = { 2, 4, 1 };
    struct tiny_spec spec = tiny_default();
    struct sf_model *model = NULL;
    spec.layers = 3;
    spec.kv_heads_of_layer = kv_heads;
    spec.v_dim = 8;
    spec.biases = 1;
    spec.untied = 1;
    SF_MUST(open_tiny(&spec, &model));
    const struct sf_model_desc *desc = sf_model_desc(model);
    SF_CHECK_STR(desc->arch_name, "llama");
    SF_CHECK_STR(desc->name, "tiny");
    SF_CHECK_INT(desc->layers, 3);
    SF_CHECK_INT(desc->d_model, 64);
    SF_CHECK_INT(desc->ffn, 96);
    SF_CHECK_INT(desc->vocab, 300);
    SF_CHECK_INT(desc->context, 512);
    SF_CHECK_INT(desc->bos, 0);
    SF_CHECK_INT(desc->eos_count, 1);
    SF_CHECK_INT(desc->eos[0], 1);
    SF_CHECK(!desc->tied && desc->bias_q && desc->bias_k && desc->bias_v && desc->bias_o &&
             desc->bias_ffn);
    SF_CHECK_NEAR(desc->norm_eps, 1e-5, 1e-12);
    SF_CHECK_NEAR(desc->attn_scale, 0.25, 0);
    for (int32_t l = 0; l < 3; l++) {
        SF_CHECK_INT(desc->layer[l].q_heads, 4);
        SF_CHECK_INT(desc->layer[l].kv_heads, kv_heads[l]);
        SF_CHECK_INT(desc->layer[l].k_dim, 16);
        SF_CHECK_INT(desc->layer[l].v_dim, 8);
        SF_CHECK_INT(desc->layer[l].window, 0);
        for (int role = SF_W_ATTN_NORM; role < SF_ROLES; role++)
            check_values(sf_model_weight(model, (enum sf_role)role, l));
    }
    for (int role = SF_W_EMBED; role <= SF_W_OUT; role++)
        check_values(sf_model_weight(model, (enum sf_role)role, -1));
    SF_CHECK_STR(sf_model_weight(model, SF_W_OUT, -1)->name, "output.weight");
    SF_CHECK_INT(sf_model_weight(model, SF_W_V, 1)->rows, 4 * 8);
    sf_model_close(model);
}

static void test_optional_absent(void)
{
    struct tiny_key keys[] = { { "llama.attention.key_length", TINY_LEFT_OUT, 0, NULL, NULL, 0 },
                               { "llama.attention.value_length", TINY_LEFT_OUT, 0, NULL, NULL, 0 },
                               { "llama.attention.head_count_kv", TINY_LEFT_OUT, 0, NULL, NULL, 0 },
                               { "llama.rope.freq_base", TINY_LEFT_OUT, 0, NULL, NULL, 0 },
                               { "llama.attention.sliding_window", TINY_U32, 7, NULL, NULL, 0 },
                               { "tokenizer.ggml.bos_token_id", TINY_U32, 4294967295.0, NULL, NULL,
                                 0 },
                               { "tokenizer.ggml.eot_token_id", TINY_U32, 5, NULL, NULL, 0 },
                               { "tokenizer.ggml.eom_token_id", TINY_U32, 1, NULL, NULL, 0 },
                               { NULL, 0, 0, NULL, NULL, 0 } };
    struct tiny_spec spec = tiny_default();
    struct sf_model *model = NULL;
    spec.keys = keys;
    spec.kv_heads = 4;
    SF_MUST(open_tiny(&spec, &model));
    const struct sf_model_desc *desc = sf_model_desc(model);
    SF_CHECK_INT(desc->layer[1].kv_heads, 4);
    SF_CHECK_INT(desc->layer[1].k_dim, 16);
    SF_CHECK_INT(desc->layer[1].v_dim, 16);
    SF_CHECK_INT(desc->layer[1].window, 7);
    SF_CHECK_INT(desc->bos, -1);
    SF_CHECK_INT(desc->eos_count, 2);               /* eom is eos again */
    SF_CHECK(desc->tied);
    SF_CHECK(sf_model_weight(model, SF_W_OUT, -1) == sf_model_weight(model, SF_W_EMBED, -1));
    SF_CHECK(sf_model_weight(model, SF_W_Q_BIAS, 0) == NULL);
    SF_CHECK(sf_model_weight(model, SF_W_DOWN_BIAS, 1) == NULL);
    SF_CHECK_NEAR(desc->rope_inv_freq[4], 0.01, 1e-9);     /* 10000^(-8/16) */
    sf_model_close(model);
}

static void test_partial_rope(void)
{
    /* 4 of 16 elements turn: rows 0 2 1 3 of the file's head, then as they lie. */
    static const int32_t file_row[16] = { 0, 2, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
    struct tiny_key keys[] = { { "llama.rope.dimension_count", TINY_U32, 4, NULL, NULL, 0 },
                               { "general.architecture", TINY_STRING, 0, "llama", NULL, 0 },
                               { NULL, 0, 0, NULL, NULL, 0 } };
    struct tiny_spec spec = tiny_default();
    struct sf_model *model = NULL;
    spec.keys = keys;
    SF_MUST(open_tiny(&spec, &model));
    SF_CHECK_INT(sf_model_desc(model)->rope_dim, 4);
    for (int32_t r = 0; r < 64; r++) {
        float got;
        int32_t in_file = r / 16 * 16 + file_row[r % 16], i = in_file % 16;
        /* The writer interleaves whole heads; this undoes it. */
        int32_t trained = in_file - i + (i % 2 == 0 ? i / 2 : i / 2 + 8);
        sf_weight_read(sf_model_weight(model, SF_W_Q, 0), r, 3, 1, &got);
        SF_CHECK_NEAR(got, tiny_value("blk.0.attn_q.weight", trained, 3), 0);
    }
    sf_model_close(model);
}

static void test_rope_scaling(void)
{
    static const float divisors[8] = { 1, 1, 1, 1.6513f, 3.2923f, 9.6667f, 32, 32 };
    struct tiny_key linear[] = { { "llama.rope.scaling.type", TINY_STRING, 0, "linear", NULL, 0 },
                                 { "llama.rope.scaling.factor", TINY_F32, 4, NULL, NULL, 0 },
                                 { "llama.rope.freq_base", TINY_F32, 500000, NULL, NULL, 0 },
                                 { NULL, 0, 0, NULL, NULL, 0 } };
    for (int variant = 0; variant < 4; variant++) {
        struct tiny_spec spec = tiny_default();
        struct sf_model *model = NULL;
        int scaled = variant == 1 || variant == 3;
        linear[0].text = variant == 2 ? "none" : "linear";
        if (variant != 0) spec.keys = linear;
        if (variant != 1) spec.rope_freqs = divisors;
        SF_MUST(open_tiny(&spec, &model));
        const float *inv_freq = sf_model_desc(model)->rope_inv_freq;
        for (int i = 0; i < 8; i++) {
            double want = pow(variant == 0 ? 10000 : 500000, -2.0 * i / 16);
            if (variant != 1) want /= (double)divisors[i];
            if (scaled) want /= 4;
            SF_CHECK_NEAR(inv_freq[i], want, 4e-7 * want);
        }
        sf_model_close(model);
    }
    struct tiny_spec spec = tiny_default();
    struct sf_model *model = NULL;
    float zero[8] = { 1, 1, 0, 1, 1, 1, 1, 1 };
    spec.rope_freqs = zero;
    SF_CHECK_FAILS(open_tiny(&spec, &model), SF_FORMAT);
}

static void test_parts_of_rows(void)
{
    static const uint32_t types[] = { 0, 2, 3, 6, 7, 8 };
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        struct tiny_spec spec = tiny_default();
        struct sf_model *model = NULL;
        spec.matrix_type = types[t];
        SF_MUST(open_tiny(&spec, &model));
        const struct sf_weight *weight = sf_model_weight(model, SF_W_DOWN, 1);
        float whole[96], part[96];
        int wrong = 0;
        SF_CHECK_INT(weight->cols, 96);
        for (int32_t row = 0; row < weight->rows; row += 13) {
            sf_weight_read(weight, row, 0, 96, whole);
            for (int32_t first = 0; first < 96; first++)
                for (int32_t count = 0; first + count <= 96; count++) {
                    sf_weight_read(weight, row, first, count, part);
                    wrong += memcmp(part, whole + first, (size_t)count * sizeof(float)) != 0;
                }
        }
        SF_CHECK_INT(wrong, 0);
        /* The rows differ, so a row read from the wrong place would show. */
        sf_weight_read(weight, 0, 0, 96, whole);
        sf_weight_read(weight, 1, 0, 96, part);
        SF_CHECK(memcmp(whole, part, sizeof whole) != 0);
        sf_model_close(model);
    }
}

static void test_real_model(void)
{
    struct sf_model *model = NULL;
    if (sf_test_model() == NULL) SF_SKIP("models/smollm2-135m-instruct.gguf is not here");
    SF_MUST(sf_model_open(sf_test_model(), &model));
    const struct sf_model_desc *desc = sf_model_desc(model);
    SF_CHECK_INT(desc->layers, 30);
    SF_CHECK_INT(desc->d_model, 576);
    SF_CHECK_INT(desc->ffn, 1536);
    SF_CHECK_INT(desc->vocab, 49152);
    SF_CHECK_INT(desc->context, 8192);
    SF_CHECK_INT(desc->layer[29].q_heads, 9);
    SF_CHECK_INT(desc->layer[29].kv_heads, 3);
    SF_CHECK_INT(desc->layer[29].k_dim, 64);
    SF_CHECK_NEAR(desc->rope_inv_freq[16], 0.0031622776, 1e-9);     /* 100000^(-1/2) */
    SF_CHECK(desc->tied);
    SF_CHECK_STR(desc->file_type, "Q4_1");
    SF_CHECK_INT(sf_model_tensors(model), 272);
    SF_CHECK_INT(sf_model_file_bytes(model), 98362432);

    const struct sf_weight *embed = sf_model_weight(model, SF_W_EMBED, -1);
    float before[576], after[576];
    SF_CHECK_STR(embed->type_name, "Q8_0");
    sf_weight_read(embed, 1000, 0, 576, before);
    sf_weight_release(embed);
    sf_weight_read(embed, 1000, 0, 576, after);
    SF_CHECK(memcmp(before, after, sizeof before) == 0);

    char hex[65];
    SF_MUST(sf_model_sha256(model, hex));
    SF_CHECK_STR(hex, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53");
    sf_model_close(model);
}

static void test_sha256(void)
{
    /* A file of more than one piece is hashed whole; a changed last byte changes the digest. */
    struct tiny_spec spec = tiny_default();
    struct tiny_file file = tiny_make(&spec);
    struct sf_model *model = NULL;
    char hex[2][65];
    for (int i = 0; i < 2; i++) {
        file.bytes[file.count - 1] ^= (unsigned char)i;
        SF_MUST(sf_model_open(tiny_path(file.bytes, file.count), &model));
        SF_MUST(sf_model_sha256(model, hex[i]));
        sf_model_close(model);
    }
    SF_CHECK_INT(strlen(hex[0]), 64);
    SF_CHECK(strcmp(hex[0], hex[1]) != 0);
    tiny_free(&file);
}

static const struct sf_test tests[] = {
    { "all_roles", test_all_roles }, { "optional_absent", test_optional_absent },
    { "partial_rope", test_partial_rope }, { "rope_scaling", test_rope_scaling },
    { "parts_of_rows", test_parts_of_rows }, { "real_model", test_real_model },
    { "sha256", test_sha256 }, { NULL, NULL } };
SF_TEST_MAIN("model_weights", tests)
