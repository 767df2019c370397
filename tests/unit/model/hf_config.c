/* tests/unit/model/hf_config.c: a model is what its config.json says, or is refused by name.
 *
 * Shown: both generations of keys give the same description, with the RoPE frequencies of llama3
 * scaling computed here once more by wavelength; the tiny models of tests/data are described as
 * their GGUF files would be, or refused where the description cannot hold them; what is absent has
 * the fallback of the field; every key that is missing, of another type, out of range or not built
 * is refused in one line with its name; hostile JSON is an error and no more; and a directory can
 * be described but not opened for its weights. */
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/weights.h"
#include "tests/check.h"
#include "tests/unit/model/hf_dir.h"

static sf_status open_text(const char *text, struct sf_model **model)
{
    return sf_model_open_header(hf_dir(text, strlen(text)), model);
}

/* ---- what is described --------------------------------------------------------------------- */

/* As transformers words it: long waves are stretched, short ones stay, between them a blend. */
static double frequency_405b(int i)
{
    double f = pow(500000.0, -2.0 * i / 128), wave = 2 * acos(-1.0) / f;
    if (wave > 8192.0 / 1) return f / 8;
    if (wave < 8192.0 / 4) return f;
    double smooth = (8192.0 / wave - 1) / (4 - 1);
    return (1 - smooth) * f / 8 + smooth * f;
}

static void check_405b(const char *text)
{
    struct sf_model *model;
    SF_MUST(open_text(text, &model));
    const struct sf_model_desc *desc = sf_model_desc(model);
    SF_CHECK_STR(desc->arch_name, "llama");
    SF_CHECK_STR(desc->file_type, "BF16");
    SF_CHECK_INT(desc->layers, 126);
    SF_CHECK_INT(desc->d_model, 16384);
    SF_CHECK_INT(desc->ffn, 53248);
    SF_CHECK_INT(desc->vocab, 128256);
    SF_CHECK_INT(desc->context, 131072);
    SF_CHECK_INT(desc->rope_dim, 128);
    SF_CHECK_INT(desc->bos, 128000);
    SF_CHECK_INT(desc->eos_count, 3);
    SF_CHECK_INT(desc->eos[2], 128009);
    SF_CHECK(!desc->tied && !desc->bias_q && !desc->bias_o && !desc->bias_ffn);
    SF_CHECK_NEAR(desc->norm_eps, 1e-5, 1e-12);
    SF_CHECK_NEAR(desc->attn_scale, 1 / sqrt(128.0), 1e-8);
    for (int32_t i = 0; i < desc->layers; i += 25) {
        const struct sf_layer_desc *l = &desc->layer[i];
        SF_CHECK(l->q_heads == 128 && l->kv_heads == 8 && l->k_dim == 128 && l->v_dim == 128);
        SF_CHECK_INT(l->window, 0);
    }
    for (int i = 0; i < 64; i++)
        SF_CHECK_NEAR(desc->rope_inv_freq[i] / frequency_405b(i), 1, 2e-5);
    /* 126 x (2 x 16384^2 + 2 x 1024 x 16384 + 3 x 53248 x 16384 + 2 x 16384)
     * + 2 x 128256 x 16384 + 16384 elements of two bytes */
    SF_CHECK_INT(sf_model_file_bytes(model), 405853388800 * 2);
    SF_CHECK_INT(sf_model_weight_bytes(model, SF_W_K, 3), 1024 * 16384 * 2);
    SF_CHECK_INT(sf_model_weight_bytes(model, SF_W_K_BIAS, 3), 0);
    SF_CHECK_INT(sf_model_tensors(model), 0);
    SF_CHECK(!sf_model_has_weights(model));
    sf_model_close(model);
}

static void test_generations(void)
{
    check_405b(hf_llama_405b);
    check_405b(hf_llama_405b_new);
}

static void test_tiny_models(void)
{
    static const struct { const char *name, *arch; int bias, tied, window, ffn; } built[] = {
        { "llama", "llama", 0, 1, 0, 128 }, { "mistral", "mistral", 0, 0, 16, 160 },
        { "qwen2", "qwen2", 1, 1, 0, 160 } };
    static const struct { const char *name, *words; } refused[] = {
        { "mixtral", "architecture 'MixtralForCausalLM' is not built" },
        { "qwen3", "architecture 'Qwen3ForCausalLM' is not built" },
        { "qwen3_moe", "'Qwen3MoeForCausalLM'" }, { "gemma3", "'Gemma3ForCausalLM'" },
        { "deepseek_v2", "'DeepseekV2ForCausalLM'" }, { "deepseek_v3", "'DeepseekV3ForCausalLM'" },
        { "deepseek_v2_yarn", "'DeepseekV2ForCausalLM'" } };
    struct sf_model *model;
    char path[64];
    for (size_t i = 0; i < sizeof built / sizeof built[0]; i++) {
        snprintf(path, sizeof path, "tiny/%s", built[i].name);
        SF_MUST(sf_model_open_header(sf_test_data(path), &model));
        const struct sf_model_desc *desc = sf_model_desc(model);
        SF_CHECK_STR(desc->name, built[i].name);
        SF_CHECK_STR(desc->arch_name, built[i].arch);
        SF_CHECK_STR(desc->file_type, "F32");
        SF_CHECK_INT(desc->bias_q && desc->bias_k && desc->bias_v, built[i].bias);
        SF_CHECK(!desc->bias_o && !desc->bias_ffn);
        SF_CHECK_INT(desc->tied, built[i].tied);
        SF_CHECK_INT(desc->ffn, built[i].ffn);
        SF_CHECK_INT(desc->layer[3].window, built[i].window);
        SF_CHECK_INT(desc->layer[3].kv_heads, 2);
        SF_CHECK_INT(desc->layer[3].k_dim, 16);
        SF_CHECK_NEAR(desc->rope_inv_freq[1],
                      pow(i == 2 ? 1e6 : 1e4, -2.0 / 16), 1e-7);
        sf_model_close(model);
        SF_CHECK_FAILS(sf_model_open(sf_test_data(path), &model), SF_UNSUPPORTED);
        SF_CHECK(strstr(sf_error_text(), "safetensors are not read yet") != NULL);
    }
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        snprintf(path, sizeof path, "tiny/%s", refused[i].name);
        SF_CHECK_FAILS(sf_model_open_header(sf_test_data(path), &model), SF_UNSUPPORTED);
        SF_CHECK(strstr(sf_error_text(), refused[i].words) != NULL);
    }
}

#define SMALL(name, type, more)                                                                    \
    "{\"architectures\": [\"" name "\"], \"model_type\": \"" type "\", \"hidden_size\": 64,"       \
    " \"intermediate_size\": 96, \"num_hidden_layers\": 4, \"num_attention_heads\": 4,"            \
    " \"vocab_size\": 256, \"max_position_embeddings\": 512, \"rms_norm_eps\": 1e-6" more "}"

static void test_fallbacks(void)
{
    struct sf_model *model;
    SF_MUST(open_text(SMALL("LlamaForCausalLM", "llama", ""), &model));
    const struct sf_model_desc *desc = sf_model_desc(model);
    SF_CHECK_INT(desc->layer[0].kv_heads, 4);
    SF_CHECK_INT(desc->layer[0].k_dim, 16);
    SF_CHECK_INT(desc->bos, -1);
    SF_CHECK_INT(desc->eos_count, 0);
    SF_CHECK_INT(desc->tied, 0);
    SF_CHECK_STR(desc->file_type, "F32");
    SF_CHECK_NEAR(desc->rope_inv_freq[7], pow(1e4, -14.0 / 16), 1e-9);
    sf_model_close(model);
    SF_MUST(open_text(SMALL("LlamaForCausalLM", "llama", ", \"attention_bias\": true,"
                            " \"mlp_bias\": true, \"eos_token_id\": -1, \"head_dim\": null,"
                            " \"num_key_value_heads\": null, \"rope_scaling\":"
                            " {\"type\": \"linear\", \"factor\": 4}, \"quantization_config\": null,"
                            " \"pretraining_tp\": 2"), &model));
    desc = sf_model_desc(model);
    SF_CHECK(desc->bias_q && desc->bias_k && desc->bias_v && desc->bias_o && desc->bias_ffn);
    SF_CHECK_INT(sf_model_weight_bytes(model, SF_W_GATE_BIAS, 0), 96 * 4);
    SF_CHECK_INT(desc->eos_count, 0);
    SF_CHECK_NEAR(desc->rope_inv_freq[0], 0.25, 1e-9);
    sf_model_close(model);
}

static void test_windows(void)
{
    static const struct { const char *text; int32_t window[4]; } table[] = {
        { SMALL("MistralForCausalLM", "mistral", ", \"sliding_window\": null"), { 0, 0, 0, 0 } },
        { SMALL("MistralForCausalLM", "mistral", ", \"sliding_window\": 8"), { 8, 8, 8, 8 } },
        { SMALL("Qwen2ForCausalLM", "qwen2", ", \"sliding_window\": 8"), { 0, 0, 0, 0 } },
        { SMALL("Qwen2ForCausalLM", "qwen2", ", \"sliding_window\": 8, \"use_sliding_window\": true"
                ", \"max_window_layers\": 3"), { 0, 0, 0, 8 } },
        { SMALL("Qwen2ForCausalLM", "qwen2", ", \"sliding_window\": 8, \"use_sliding_window\": true"
                ", \"layer_types\": [\"full_attention\", \"sliding_attention\","
                " \"full_attention\", \"sliding_attention\"]"), { 0, 8, 0, 8 } } };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct sf_model *model;
        SF_MUST(open_text(table[i].text, &model));
        for (int l = 0; l < 4; l++)
            SF_CHECK_INT(sf_model_desc(model)->layer[l].window, table[i].window[l]);
        sf_model_close(model);
    }
}

/* ---- what is refused ----------------------------------------------------------------------- */

static void check_refused(const char *text, size_t bytes, sf_status status, const char *words)
{
    struct sf_model *model = NULL;
    sf_status got = sf_model_open_header(hf_dir(text, bytes), &model);
    if (got == SF_OK) sf_model_close(model);
    if (got != status || strstr(sf_error_text(), words) == NULL ||
        strchr(sf_error_text(), '\n') != NULL)
        sf_test_fail(__FILE__, __LINE__, "gave '%s' (%s), expected '%s' with \"%s\"",
                     sf_status_name(got), sf_error_text(), sf_status_name(status), words);
    else CU_PASS("refused");
}

static void test_keys(void)
{
    static const struct { const char *find, *replace, *words; int malformed; } table[] = {
        { "\"hidden_size\": 16384,", "", "key 'hidden_size' is missing", 1 },
        { "\"hidden_size\": 16384", "\"hidden_size\": null", "'hidden_size' is missing", 1 },
        { "\"hidden_size\": 16384", "\"hidden_size\": \"16384\"", "is a string, not an", 1 },
        { "\"hidden_size\": 16384", "\"hidden_size\": 16384.0", "is a number with a", 1 },
        { "\"hidden_size\": 16384", "\"hidden_size\": 0", "is 0, allowed are 1 to 16777216", 1 },
        { "\"hidden_size\": 16384", "\"hidden_size\": -1", "is -1, allowed", 1 },
        { "\"hidden_size\": 16384", "\"hidden_size\": 9007199254740993", "allowed are", 1 },
        { "\"hidden_size\": 16384", "\"hidden_size\": 99999999999999999999", "not valid JSON", 1 },
        { "\"hidden_size\": 16384", "\"hidden_size\": 16400", "no whole head size", 1 },
        { "\"hidden_size\": 16384", "\"hidden_size\": 128", "heads of 1 elements", 0 },
        { "\"hidden_size\": 16384", "\"hidden_size\": 16777216", "heads of 131072", 0 },
        { "\"intermediate_size\": 53248", "\"intermediate_size\": [1, 2]", "an array", 1 },
        { "\"num_hidden_layers\": 126", "\"num_hidden_layers\": 5000", "is 5000, allowed", 1 },
        { "\"num_attention_heads\": 128", "\"num_attention_heads\": true", "is true, not", 1 },
        { "\"num_key_value_heads\": 8", "\"num_key_value_heads\": 7", "no whole number", 1 },
        { "\"num_key_value_heads\": 8", "\"num_key_value_heads\": 256", "no whole number", 1 },
        { "\"vocab_size\": 128256", "\"vocab_size\": 1000", "'bos_token_id' is 128000", 1 },
        { "\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 0", "'rms_norm_eps' is 0, allowed", 1 },
        { "\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", "'gelu'; silu is built", 0 },
        { "\"hidden_act\": \"silu\"", "\"hidden_act\": \"silu\\u0000\"", "without NUL", 1 },
        { "\"attention_bias\": false", "\"attention_bias\": 0", "not true or false", 1 },
        { "[128001, 128008, 128009]", "[1, 2, \"3\"]", "'eos_token_id': item 2", 1 },
        { "[128001, 128008, 128009]", "[1, 2, 3, 4, 5, 6, 7, 8, 9]", "has 9 items, at most 8", 0 },
        { "[128001, 128008, 128009]", "{}", "'eos_token_id' is an object", 1 },
        { "\"bfloat16\"", "\"float8_e4m3fn\"", "weights of type 'float8_e4m3fn'", 0 },
        { "\"bfloat16\"", "\"bfloat16\", \"dtype\": \"float32\"", "'torch_dtype' differ", 1 },
        { "500000.0", "0.5", "'rope_theta' is 0.5, allowed", 1 },
        { "500000.0", "500000.0, \"quantization_config\": {\"bits\": 4}", "quantised", 0 },
        { "500000.0", "500000.0, \"num_experts\": 8", "'num_experts' is set: a mixture", 0 },
        { "500000.0", "500000.0, \"quantization\": {\"bits\": 4}", "quantised", 0 },
        { "500000.0", "500000.0, \"compression_config\": {\"a\": 1}", "quantised", 0 },
        { "500000.0", "500000.0, \"dual_chunk_attention_config\": {\"a\": 1}", "two kinds", 0 },
        { "500000.0", "500000.0, \"is_causal\": false", "'is_causal' is false", 0 },
        { "\"llama3\"", "\"default\"", "'rope_scaling.factor' is 8, but RoPE scaling", 1 },
        { "500000.0", "500000.0, \"sliding_window\": 4096", "a sliding window", 0 },
        { "500000.0", "500000.0, \"partial_rotary_factor\": 0.5", "partly rotated", 0 },
        { "500000.0", "500000.0, \"layer_types\": [\"full_attention\"]", "1 items for 126", 1 },
        { "500000.0", "500000.0, \"rope_parameters\": {}", "both 'rope_parameters' and", 1 },
        { "500000.0", "500000.0, \"vocab_size\": 3", "not valid JSON", 1 },
        { "\"llama3\"", "\"yarn\"", "RoPE scaling 'yarn' is not built", 0 },
        { "\"llama3\"", "\"llama3\", \"type\": \"linear\"", "'rope_scaling.type' differ", 1 },
        { "\"llama3\"", "\"llama3\", \"full_attention\": {}", "differs by layer", 0 },
        { "\"llama3\"", "\"llama3\", \"rope_theta\": 10000.0", "and in rope_scaling. 10000", 1 },
        { "\"factor\": 8.0,", "", "key 'rope_scaling.factor' is missing", 1 },
        { "\"factor\": 8.0", "\"factor\": 0", "'rope_scaling.factor' is 0, allowed", 1 },
        { "\"high_freq_factor\": 4.0", "\"high_freq_factor\": 1.0", "not above low_freq", 1 },
        { "\"original_max_position_embeddings\": 8192,", "", "'rope_scaling.original_max", 1 },
        { "\"LlamaForCausalLM\"", "\"Llama\\nForAnswers\"", "architecture 'Llama?ForAnswers'", 0 },
        { "\"LlamaForCausalLM\"", "\"MistralForCausalLM\"", "MistralForCausalLM is 'mistral'", 1 },
        { "[\"LlamaForCausalLM\"]", "[1]", "an array of one string", 1 },
        { "[\"LlamaForCausalLM\"]", "\"LlamaForCausalLM\"", "is a string, not an array", 1 },
        { "\"model_type\": \"llama\"", "\"model_type\": 3", "'model_type' is an integer", 1 },
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        char *text = hf_edit(hf_llama_405b, table[i].find, table[i].replace);
        check_refused(text, strlen(text), table[i].malformed ? SF_FORMAT : SF_UNSUPPORTED,
                      table[i].words);
        free(text);
    }
    static const char *const others[][2] = {
        { SMALL("MistralForCausalLM", "mistral", ""), "key 'sliding_window' is missing" },
        { SMALL("MistralForCausalLM", "mistral", ", \"sliding_window\": 8, \"layer_types\":"
                " [\"full_attention\", \"full_attention\", \"full_attention\","
                " \"full_attention\"]"), "makes layer 0 full_attention, against" },
        { SMALL("Qwen2ForCausalLM", "qwen2", ", \"use_sliding_window\": true"), "there is no" },
    };
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        check_refused(others[i][0], strlen(others[i][0]), SF_FORMAT, others[i][1]);
}

/* Each size allowed by itself, all of them more than any machine has. */
static void test_absurd_sums(void)
{
    char *wide = hf_edit(hf_llama_405b, "\"intermediate_size\": 53248",
                         "\"intermediate_size\": 16777216");
    char *deep = hf_edit(wide, "\"num_hidden_layers\": 126", "\"num_hidden_layers\": 4096");
    check_refused(deep, strlen(deep), SF_UNSUPPORTED, "weights in all, at most");
    char *long_one = hf_edit(hf_llama_405b, "131072", "2147483647");
    char *heads = hf_edit(long_one, "\"num_key_value_heads\": 8", "\"num_key_value_heads\": 128");
    check_refused(heads, strlen(heads), SF_UNSUPPORTED, "more than is planned for");
    free(wide);
    free(deep);
    free(long_one);
    free(heads);
}

static void test_hostile_json(void)
{
    static char text[(1 << 20) + 2];
    check_refused("", 0, SF_FORMAT, "not valid JSON");
    check_refused("[]", 2, SF_FORMAT, "holds an array, not an object");
    check_refused("{}", 2, SF_FORMAT, "key 'architectures' is missing");
    check_refused("{\"a\": \"\xff\"}", 9, SF_FORMAT, "not valid JSON");
    check_refused("{\"a\0b\": 1}", 10, SF_FORMAT, "not valid JSON");
    memset(text, '[', sizeof text);
    check_refused(text, 1 << 20, SF_FORMAT, "nested deeper than 128");
    check_refused(text, (1 << 20) + 1, SF_FORMAT, "1048577 bytes, at most 1048576 are read");
    memset(text, ' ', sizeof text);
    memcpy(text, hf_llama_405b, strlen(hf_llama_405b));
    struct sf_model *model;
    SF_MUST(sf_model_open_header(hf_dir(text, 1 << 20), &model));
    sf_model_close(model);
    for (size_t i = 0; i < strlen(hf_llama_405b) - 1; i += 7)
        check_refused(hf_llama_405b, i, SF_FORMAT, "not valid JSON");
}

static void test_places(void)
{
    struct sf_model *model;
    char path[128];
    snprintf(path, sizeof path, "%s", hf_dir("{}", 2));
    hf_dir_close();
    SF_CHECK_FAILS(sf_model_open_header(path, &model), SF_IO);
    SF_CHECK(mkdir(path, 0700) == 0);
    SF_CHECK_FAILS(sf_model_open_header(path, &model), SF_IO);
    SF_CHECK(strstr(sf_error_text(), "/config.json: No such file") != NULL);
    snprintf(path + strlen(path), 16, "/config.json");
    SF_CHECK(mkfifo(path, 0600) == 0);          /* nobody writes: must not wait */
    *strrchr(path, '/') = '\0';
    SF_CHECK_FAILS(sf_model_open_header(path, &model), SF_IO);
    SF_CHECK(strstr(sf_error_text(), "not a regular file") != NULL);
    path[strlen(path)] = '/';
    unlink(path);
    *strrchr(path, '/') = '\0';
    rmdir(path);
}

static void test_close(void) { hf_dir_close(); }

static const struct sf_test tests[] = {
    { "generations", test_generations }, { "tiny models", test_tiny_models },
    { "fallbacks", test_fallbacks }, { "windows", test_windows }, { "keys", test_keys },
    { "absurd sums", test_absurd_sums }, { "hostile JSON", test_hostile_json },
    { "places", test_places }, { "close", test_close }, { NULL, NULL }
};
SF_TEST_MAIN("model_hf_config", tests)
