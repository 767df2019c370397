/* tests/unit/plan/hf_fuzz.c: config.json files with a few mistakes, planned as a job would be.
 *
 * Numbers become edges, words of the format change places, pieces move, come twice, go or are cut
 * off.  The edits come from a counter-based generator: a failure names its round and replays.  What
 * can be described is planned for some layout, to the JSON of the plan.  Shown: nothing crashes or
 * overflows (the sanitizers watch), a refusal is one line, and no number in a file makes anything
 * large be allocated (the address space is limited). */
#include <ctype.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "base/rng.h"
#include "coordinator/plan.h"
#include "tests/check.h"
#include "tests/unit/model/hf_dir.h"

enum { ROUNDS = 3000, ROUNDS_LONG = 9000 };     /* the second at SHEAF_TEST_LEVEL=long */
enum { SEEDS = 3, GROWTH = 1024, PLANNED_LAYERS_MAX = 160 };
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
enum { ADDRESS_SPACE = 1 << 30 };
#else
enum { ADDRESS_SPACE = 0 };             /* the sanitizers need theirs */
#endif

static const char *const words[] = {
    "0", "1", "2", "3", "7", "8", "64", "127", "128", "4096", "4097", "65536", "8192", "1048576",
    "16777216", "16777217", "67108864", "2147483647", "2147483648", "4294967296", "-1", "-2",
    "9223372036854775807", "9223372036854775808", "1e-5", "0.0", "-0.0", "1e30", "1e308", "1e309",
    "null", "true", "false", "\"\"", "[]", "{}", "\"silu\"", "\"llama3\"", "\"linear\"",
    "\"default\"", "\"MistralForCausalLM\"", "\"Qwen2ForCausalLM\"", "\"mistral\"", "\"qwen2\"",
    "\"sliding_window\": 4096", "\"use_sliding_window\": true", "\"head_dim\": 128",
    "\"layer_types\": []", "\"rope_parameters\"", "\"rope_scaling\"", "\"type\"", "\"float16\"",
    "[[[[[[[[", "\"\\ud800\"", "\"\\u0000\""
};
static uint64_t round_now, draws;

static size_t next(size_t n)
{
    return (size_t)(sf_rng_u64(23, round_now, draws++) % (uint64_t)n);
}

/* Where the number, word or text that is nearest behind `at` begins and ends. */
static void token_at(const char *text, size_t count, size_t at, size_t *first, size_t *end)
{
    while (at < count && !isalnum((unsigned char)text[at]) && text[at] != '"') at++;
    *first = at;
    if (at < count && text[at] == '"') {
        at++;
        while (at < count && text[at] != '"') at++;
        *end = at < count ? at + 1 : count;
        return;
    }
    while (at < count && (isalnum((unsigned char)text[at]) || strchr("+-._", text[at]) != NULL))
        at++;
    *end = at;
}

static size_t replace(char *text, size_t count, size_t first, size_t end, const char *by)
{
    size_t bytes = strlen(by);
    memmove(text + first + bytes, text + end, count - end);
    memcpy(text + first, by, bytes);
    return count - (end - first) + bytes;
}

/* A few edits; `text` has room for GROWTH more. */
static size_t mutate(char *text, size_t count)
{
    size_t edits = next(2) ? 1 : 1 + next(4), most = count + GROWTH - 64;
    for (size_t i = 0; i < edits && count > 64 && count < most; i++) {
        size_t at = next(count), kind = next(10), first, end, piece = 1 + next(40);
        if (piece > count - at) piece = count - at;
        token_at(text, count, at, &first, &end);
        if (kind < 5) {
            count = replace(text, count, first, end, words[next(sizeof words / sizeof *words)]);
        } else if (kind == 5) {                         /* a digit more or another one */
            while (at < count && !isdigit((unsigned char)text[at])) at++;
            if (at < count) text[at] = (char)('0' + next(10));
        } else if (kind == 6) {
            text[at] = (char)next(256);
        } else if (kind == 7) {                         /* a piece goes */
            memmove(text + at, text + at + piece, count - at - piece);
            count -= piece;
        } else if (kind == 8) {                         /* a piece comes twice */
            memmove(text + at + piece, text + at, count - at);
            count += piece;
        } else if (next(8) == 0) {
            count = next(count);                        /* a torn copy */
        }
    }
    return count;
}

static int check_status(const char *what, sf_status status)
{
    if (status == SF_OK) return 1;
    if ((status != SF_FORMAT && status != SF_UNSUPPORTED && status != SF_INVALID) ||
        sf_error_text()[0] == '\0' || strchr(sf_error_text(), '\n') != NULL)
        sf_test_fail(__FILE__, __LINE__, "round %llu: %s: %s: \"%s\"",
                     (unsigned long long)round_now, what, sf_status_name(status), sf_error_text());
    return 0;
}

/* 1 if there was a plan. */
static int make_plan(const struct sf_model *model)
{
    static const int32_t layouts[][2] = { { 1, 1 }, { 8, 1 }, { 3, 2 }, { 2, 16 } };
    const struct sf_model_desc *desc = sf_model_desc(model);
    const int32_t *layout = layouts[next(4)];
    if (desc->layers > PLANNED_LAYERS_MAX && next(50) != 0) return 0;       /* slow, no news */
    struct sf_config cfg;
    struct sf_cluster cluster;
    struct sf_launch_plan plan;
    char text[512], *shown;
    int bytes = snprintf(text, sizeof text, "schema_version: 1\n"
                         "parallel: {tensor_parallel_size: %d, pipeline_parallel_size: %d}\n"
                         "run: {deterministic: %s}\n%s", layout[0], layout[1],
                         next(2) ? "true" : "false",
                         next(2) ? "kv_cache: {methods: [{name: window}]}\n" : "");
    if (!check_status("config", sf_config_parse("job.yaml", text, (size_t)bytes, NULL, &cfg)))
        return 0;
    int planned = 0;
    int64_t memory = (int64_t)1 << (next(12) ? 50 : 26);        /* what would fit is slow to find */
    SF_ASSERT(sf_cluster_make(1, layout[0] * layout[1], 8, memory, &cluster) == SF_OK);
    if (check_status("plan", sf_launch_plan_make(&cfg, model, &cluster, &plan))) {
        for (int32_t r = 0; r < plan.ranks; r++) {
            const struct sf_plan_rank *rank = &plan.rank[r];
            if (rank->weight_bytes <= 0 || rank->workspace_bytes <= 0 || rank->load_bytes <= 0 ||
                rank->kv_bytes_per_token <= 0 || rank->pool_bytes < 0)
                sf_test_fail(__FILE__, __LINE__, "round %llu: rank %d has sizes below 0",
                             (unsigned long long)round_now, r);
        }
        if (check_status("JSON", sf_launch_plan_json(&plan, &cfg, model, &shown))) free(shown);
        sf_launch_plan_free(&plan);
        planned = 1;
    }
    sf_cluster_free(&cluster);
    sf_config_free(&cfg);
    return planned;
}

static void test_mutations(void)
{
    static const char qwen[] =
        "{\"architectures\": [\"Qwen2ForCausalLM\"], \"model_type\": \"qwen2\",\n"
        " \"hidden_size\": 64, \"intermediate_size\": 160, \"num_hidden_layers\": 4,\n"
        " \"num_attention_heads\": 16, \"num_key_value_heads\": 2, \"vocab_size\": 256,\n"
        " \"max_position_embeddings\": 512, \"rms_norm_eps\": 1e-06, \"sliding_window\": 8,\n"
        " \"use_sliding_window\": true, \"max_window_layers\": 2, \"rope_scaling\": null,\n"
        " \"tie_word_embeddings\": true, \"eos_token_id\": 2, \"torch_dtype\": \"float16\",\n"
        " \"layer_types\": [\"full_attention\", \"sliding_attention\", \"full_attention\",\n"
        "  \"full_attention\"]}\n";
    const char *const seed[SEEDS] = { hf_llama_405b, hf_llama_405b_new, qwen };
    const char *level = getenv("SHEAF_TEST_LEVEL");
    int rounds = level != NULL && strcmp(level, "long") == 0 ? ROUNDS_LONG : ROUNDS;
    int opened = 0, planned = 0;
    struct rlimit before, limited;
    getrlimit(RLIMIT_AS, &before);
    limited = before;
    if (ADDRESS_SPACE > 0) limited.rlim_cur = ADDRESS_SPACE;
    setrlimit(RLIMIT_AS, &limited);
    for (uint64_t i = 0; i < (uint64_t)rounds; i++) {
        static char text[8192];
        const char *from = seed[i % SEEDS];
        size_t count = strlen(from);
        round_now = i;
        draws = 0;
        memcpy(text, from, count);
        if (i >= SEEDS) count = mutate(text, count);
        struct sf_model *model = NULL;
        if (!check_status("open", sf_model_open_header(hf_dir(text, count), &model))) {
            if (i < SEEDS) sf_test_fail(__FILE__, __LINE__, "seed: %s", sf_error_text());
            continue;
        }
        opened++;
        planned += make_plan(model);
        sf_model_close(model);
    }
    setrlimit(RLIMIT_AS, &before);
    hf_dir_close();
    SF_CHECK(opened > rounds / 20);             /* both paths were taken */
    SF_CHECK(opened < rounds * 19 / 20);
    SF_CHECK(planned > opened / 4);
    printf("  %d of %d mutations described, %d planned\n", opened, rounds, planned);
}

static const struct sf_test tests[] = { { "mutations", test_mutations }, { NULL, NULL } };
SF_TEST_MAIN("hf_fuzz", tests)
