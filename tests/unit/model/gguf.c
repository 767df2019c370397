/* tests/unit/model/gguf.c: no file, however wrong, does more than make sf_model_open fail.
 *
 * A right file is made, then every byte of its head is changed and the file is cut at every length.
 * What still opens is used: every row is read and the tokenizer encodes and decodes.  The property
 * is that nothing crashes or reads outside the map; since a map ends with a page, the container is
 * also read from a heap block of just the file's size, where the address sanitizer sees one byte
 * too many.  Then single mistakes, each with the status that it must give. */
#include <stdlib.h>

#include "model/file.h"
#include "model/tokenizer.h"
#include "model/weights.h"
#include "tests/check.h"
#include "tests/unit/model/tiny_gguf.h"

static void use_model(const struct sf_model *model)
{
    for (int32_t i = 0; i < sf_model_tensors(model); i++) {
        int64_t dims[4];
        int32_t n_dims;
        const struct sf_weight *weight = sf_model_tensor(model, i, dims, &n_dims);
        float *row = malloc((size_t)weight->cols * sizeof *row);
        for (int32_t r = 0; r < weight->rows; r += weight->rows > 8 ? weight->rows - 1 : 1)
            sf_weight_read(weight, r, 0, weight->cols, row);
        sf_weight_release(weight);
        free(row);
    }
    struct sf_tokenizer *tok = NULL;
    if (sf_tokenizer_create(model, &tok) != SF_OK || tok == NULL) return;
    struct sf_tokens tokens = { 0 };
    if (sf_tokenizer_encode(tok, " abc<|im_end|>a\xff\xc3\xa9", 19, 1, 1, &tokens) == SF_OK)
        for (size_t i = 0; i < tokens.count; i++) {
            size_t bytes;
            (void)sf_tokenizer_bytes(tok, tokens.id[i], 1, &bytes);
        }
    struct sf_message message = { "user", "abc", 3 };
    (void)sf_chat_encode(tok, &message, 1, &tokens);
    free(tokens.id);
    sf_tokenizer_destroy(tok);
}

static int inside(const struct sf_file *file, const unsigned char *at, uint64_t bytes)
{
    uint64_t offset = (uint64_t)(at - file->map);
    return offset <= file->map_bytes && bytes <= file->map_bytes - offset;
}

static void read_container(const unsigned char *bytes, size_t count)
{
    struct sf_file *file = calloc(1, sizeof *file);
    unsigned char *block = malloc(count > 0 ? count : 1);
    memcpy(block, bytes, count);
    file->path = strdup("block");
    file->map = block;
    file->map_bytes = count;
    if (sf_gguf_read(file) == SF_OK) {
        for (int32_t i = 0; i < file->tensors; i++)
            SF_CHECK(inside(file, file->tensor[i].data, (uint64_t)file->tensor[i].bytes));
        for (int32_t i = 0; i < file->metas; i++)
            SF_CHECK(inside(file, file->meta[i].data, file->meta[i].bytes));
    }
    file->map = NULL;                                   /* not a map: ours to free */
    sf_file_close(file);
    free(block);
}

/* Opens and uses; whether it opened. */
static int try_bytes(const unsigned char *bytes, size_t count)
{
    read_container(bytes, count);
    struct sf_model *model = NULL;
    sf_status status = sf_model_open(tiny_path(bytes, count), &model);
    SF_CHECK(status == SF_OK || model == NULL);
    SF_CHECK(status == SF_OK || sf_error_text()[0] != 0);
    if (status != SF_OK) return 0;
    use_model(model);
    sf_model_close(model);
    return 1;
}

static const struct tiny_key chat_key[] = {
    { "tokenizer.chat_template", TINY_STRING, 0,
      "'<|im_start|>system\nBe brief.<|im_end|>\n' '<|im_start|>'", NULL, 0 },
    { NULL, 0, 0, NULL, NULL, 0 } };

static struct tiny_spec small_spec(void)
{
    struct tiny_spec spec = tiny_default();
    spec.layers = 1;
    spec.d_model = 32;
    spec.ffn = 32;
    spec.vocab = 24;
    spec.tokens = 20;
    spec.matrix_type = 8;
    spec.biases = 1;
    spec.keys = chat_key;
    return spec;
}

static void test_changed_bytes(void)
{
    struct tiny_spec spec = small_spec();
    struct tiny_file file = tiny_make(&spec);
    int opened = 0, refused = 0;
    SF_CHECK(try_bytes(file.bytes, file.count));
    for (size_t at = 0; at < file.head_bytes; at++) {
        const unsigned char was = file.bytes[at];
        const unsigned char now[] = { (unsigned char)(was ^ 0xff),
                                      (unsigned char)(was ^ (1u << at % 8)),
                                      (unsigned char)(was + 1), 0x80 };
        for (size_t i = 0; i < sizeof now; i++) {
            file.bytes[at] = now[i];
            if (try_bytes(file.bytes, file.count)) opened++;
            else refused++;
        }
        file.bytes[at] = was;
    }
    /* Changed values that mean nothing must open, changed lengths must not: both must occur. */
    SF_CHECK(opened > 100);
    SF_CHECK(refused > 100);
    tiny_free(&file);
}

static void test_changed_words(void)
{
    /* The same with whole 8-byte words of large numbers: lengths and counts near 2^63 and 2^64. */
    static const uint64_t words[] = { UINT64_MAX, (uint64_t)1 << 63, ((uint64_t)1 << 63) - 1,
                                      (uint64_t)1 << 32, UINT64_MAX - 31 };
    struct tiny_spec spec = small_spec();
    struct tiny_file file = tiny_make(&spec);
    for (size_t at = 0; at + 8 <= file.head_bytes; at++) {
        unsigned char was[8];
        memcpy(was, file.bytes + at, 8);
        memcpy(file.bytes + at, &words[at % 5], 8);
        (void)try_bytes(file.bytes, file.count);
        memcpy(file.bytes + at, was, 8);
    }
    tiny_free(&file);
}

static void test_cut_short(void)
{
    struct tiny_spec spec = small_spec();
    struct tiny_file file = tiny_make(&spec);
    for (size_t count = 0; count < file.count; count += count < file.head_bytes ? 1 : 97)
        SF_CHECK(!try_bytes(file.bytes, count));
    SF_CHECK(!try_bytes(file.bytes, file.count - 1));
    tiny_free(&file);
}

/* Makes the file of `spec` and opens it. */
static sf_status open_spec(const struct tiny_spec *spec)
{
    struct tiny_file file = tiny_make(spec);
    struct sf_model *model = NULL;
    sf_status status = sf_model_open(tiny_path(file.bytes, file.count), &model);
    if (status == SF_OK) use_model(model);
    sf_model_close(model);
    tiny_free(&file);
    return status;
}

static void test_containers(void)
{
    struct tiny_spec spec = tiny_default();
    for (uint32_t alignment = 1; alignment <= 4096; alignment *= 2) {
        spec.alignment = alignment;
        SF_CHECK_OK(open_spec(&spec));
    }
    spec = tiny_default();
    spec.version = 2;
    SF_CHECK_OK(open_spec(&spec));
    spec.version = 1;
    SF_CHECK_FAILS(open_spec(&spec), SF_UNSUPPORTED);
    spec.version = 0x03000000;
    SF_CHECK_FAILS(open_spec(&spec), SF_UNSUPPORTED);
    spec = tiny_default();
    spec.repeat_tensor = "blk.0.attn_k.weight";
    SF_CHECK_FAILS(open_spec(&spec), SF_FORMAT);
    SF_CHECK(strstr(sf_error_text(), "twice") != NULL);
    spec = tiny_default();
    spec.retype_tensor = "blk.0.attn_k.weight";
    spec.retype_to = 12;
    SF_CHECK_FAILS(open_spec(&spec), SF_UNSUPPORTED);
    SF_CHECK(strstr(sf_error_text(), "Q4_K") != NULL);
    spec.retype_to = 77;
    SF_CHECK_FAILS(open_spec(&spec), SF_FORMAT);
    spec = tiny_default();
    spec.d_model = 48;                  /* no multiple of 32 */
    spec.matrix_type = 8;
    SF_CHECK_FAILS(open_spec(&spec), SF_FORMAT);

    const struct tiny_key twice[] = { { "a.b", TINY_U32, 1, NULL, NULL, 0 },
                                      { "a.c", TINY_U32, 1, NULL, NULL, 0 },
                                      { "a.b", TINY_U64, 1, NULL, NULL, 0 },
                                      { NULL, 0, 0, NULL, NULL, 0 } };
    spec = tiny_default();
    spec.keys = twice;
    SF_CHECK_FAILS(open_spec(&spec), SF_FORMAT);
    SF_CHECK(strstr(sf_error_text(), "'a.b' twice") != NULL);

    struct sf_model *model = NULL;
    SF_CHECK_FAILS(sf_model_open("/nonexistent/model.gguf", &model), SF_IO);
    SF_CHECK_FAILS(sf_model_open("/", &model), SF_UNSUPPORTED);
    SF_CHECK_FAILS(sf_model_open(tiny_path((const unsigned char *)"", 0), &model), SF_FORMAT);
    const unsigned char safetensors[] = "\x10\0\0\0\0\0\0\0{\"a\":1}        ";
    SF_CHECK_FAILS(sf_model_open(tiny_path(safetensors, sizeof safetensors), &model),
                   SF_UNSUPPORTED);
}

static void test_single_mistakes(void)
{
    static const struct { struct tiny_key key; sf_status status; const char *word; } cases[] = {
        { { "general.architecture", TINY_STRING, 0, "mamba", NULL, 0 }, SF_UNSUPPORTED, "mamba" },
        { { "general.architecture", TINY_LEFT_OUT, 0, NULL, NULL, 0 }, SF_FORMAT, "missing" },
        { { "general.architecture", TINY_U32, 3, NULL, NULL, 0 }, SF_FORMAT, "string" },
        { { "general.alignment", TINY_U32, 24, NULL, NULL, 0 }, SF_FORMAT, "power of two" },
        { { "general.alignment", TINY_U32, 0, NULL, NULL, 0 }, SF_FORMAT, "alignment" },
        { { "split.count", TINY_U32, 3, NULL, NULL, 0 }, SF_UNSUPPORTED, "pieces" },
        { { "llama.expert_count", TINY_U32, 8, NULL, NULL, 0 }, SF_UNSUPPORTED, "experts" },
        { { "llama.logit_scale", TINY_F32, 4, NULL, NULL, 0 }, SF_UNSUPPORTED, "logit_scale" },
        { { "llama.rope.scaling.type", TINY_STRING, 0, "yarn", NULL, 0 }, SF_UNSUPPORTED, "RoPE" },
        { { "llama.block_count", TINY_LEFT_OUT, 0, NULL, NULL, 0 }, SF_FORMAT, "block_count" },
        { { "llama.block_count", TINY_U32, 3, NULL, NULL, 0 }, SF_FORMAT, "blk.2" },
        { { "llama.block_count", TINY_U32, 1, NULL, NULL, 0 }, SF_UNSUPPORTED, "blk.1" },
        { { "llama.block_count", TINY_U32, 0, NULL, NULL, 0 }, SF_FORMAT, "block_count" },
        { { "llama.embedding_length", TINY_U32, 128, NULL, NULL, 0 }, SF_FORMAT, "[64]" },
        { { "llama.attention.head_count", TINY_U32, 5, NULL, NULL, 0 }, SF_FORMAT, "5 query" },
        { { "llama.attention.head_count_kv", TINY_U32, 0, NULL, NULL, 0 }, SF_FORMAT, "kv" },
        { { "llama.attention.layer_norm_rms_epsilon", TINY_F32, NAN, NULL, NULL, 0 }, SF_FORMAT,
          "epsilon" },
        { { "llama.rope.dimension_count", TINY_U32, 7, NULL, NULL, 0 }, SF_FORMAT, "even" },
        { { "llama.rope.dimension_count", TINY_U32, 32, NULL, NULL, 0 }, SF_FORMAT, "32" },
        { { "llama.rope.freq_base", TINY_F32, -1, NULL, NULL, 0 }, SF_FORMAT, "freq_base" },
        { { "llama.rope.scaling.factor", TINY_F32, 1e-40, NULL, NULL, 0 }, SF_FORMAT,
          "frequency" },
        { { "llama.rope.scaling.factor", TINY_F32, NAN, NULL, NULL, 0 }, SF_FORMAT, "factor" },
        { { "llama.attention.scale", TINY_F32, INFINITY, NULL, NULL, 0 }, SF_FORMAT, "scale" },
        { { "llama.vocab_size", TINY_U32, 299, NULL, NULL, 0 }, SF_FORMAT, "300" },
        { { "tokenizer.ggml.eos_token_id", TINY_U32, 300, NULL, NULL, 0 }, SF_FORMAT, "300" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct tiny_key keys[2] = { cases[i].key };
        struct tiny_spec spec = tiny_default();
        spec.keys = keys;
        sf_status status = open_spec(&spec);
        if (status != cases[i].status || strstr(sf_error_text(), cases[i].word) == NULL)
            sf_test_fail(__FILE__, __LINE__, "%s: %s: \"%s\", expected %s with \"%s\"",
                         cases[i].key.key, sf_status_name(status), sf_error_text(),
                         sf_status_name(cases[i].status), cases[i].word);
        else CU_PASS("refused");
    }
}

static void test_tensor_mistakes(void)
{
    static const char *const needed[] = { "token_embd.weight", "output_norm.weight",
                                          "blk.1.attn_q.weight", "blk.0.ffn_down.weight",
                                          "blk.1.ffn_norm.weight" };
    struct tiny_spec spec;
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        spec = tiny_default();
        spec.drop_tensor = needed[i];
        SF_CHECK_FAILS(open_spec(&spec), SF_FORMAT);
        SF_CHECK(strstr(sf_error_text(), needed[i]) != NULL);
        spec = tiny_default();
        spec.narrow_tensor = needed[i];
        SF_CHECK_FAILS(open_spec(&spec), SF_FORMAT);
    }
    spec = tiny_default();
    spec.biases = 1;
    spec.drop_tensor = "blk.1.attn_q.bias";         /* a bias in one layer only */
    SF_CHECK_FAILS(open_spec(&spec), SF_UNSUPPORTED);
}

static const struct sf_test tests[] = {
    { "changed_bytes", test_changed_bytes }, { "changed_words", test_changed_words },
    { "cut_short", test_cut_short }, { "containers", test_containers },
    { "single_mistakes", test_single_mistakes }, { "tensor_mistakes", test_tensor_mistakes },
    { NULL, NULL } };
SF_TEST_MAIN("model_gguf", tests)
