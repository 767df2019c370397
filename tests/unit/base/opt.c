/* A table with every type of option: defaults land in the right fields; each accepted text gives
 * its value and comes back from sf_opt_get as text that gives the same value; each refused text
 * leaves the field alone and is refused in words that name key, value and what is allowed. */
#include <stddef.h>
#include <string.h>

#include "base/opt.h"
#include "tests/check.h"

struct config {
    uint8_t before;
    int32_t sinks, seed, sets, stage;
    int64_t length, memory, host;
    double ratio, free;
    uint8_t folding, late;
    int32_t dtype;
    char profile[SF_OPT_TEXT_MAX];
    struct sf_opt_ints layers, ids;
    struct sf_opt_pairs heads, any;
    struct sf_opt_ranges groups;
    uint8_t after;
};

static const char *const dtypes[] = { "auto", "f32", "bf16", NULL };

#define ROW(name, type_, field, text, ...)                                                         \
    { .key = (name), .type = (type_), .offset = offsetof(struct config, field),                    \
      .fallback = (text), .built = 1, __VA_ARGS__ }
static const struct sf_opt table[] = {
    ROW("num_sink_tokens", SF_OPT_INT32, sinks, "4", .max = 1024, .unit = "slots",
        .aliases = "sink_tokens  exact_first_tokens"),
    ROW("seed", SF_OPT_INT32, seed, "0", .aliases = ""),
    ROW("tensor_parallel_size", SF_OPT_INT32, sets, "auto", .min = 1, .max = 4096,
        .allow_auto = 1, .unit = "ranks"),
    ROW("max_model_len", SF_OPT_INT64, length, "-1", .min = -1, .max = 1e9),
    ROW("memory", SF_OPT_BYTES, memory, "auto", .max = 1ll << 40, .allow_auto = 1),
    ROW("host_memory", SF_OPT_BYTES, host, "0"),
    ROW("ratio", SF_OPT_FLOAT, ratio, "0.5", .max = 1),
    ROW("temperature", SF_OPT_FLOAT, free, "1e-5"),
    ROW("folding", SF_OPT_BOOL, folding, "true"),
    ROW("dtype", SF_OPT_ENUM, dtype, "auto", .choices = dtypes),
    ROW("profile", SF_OPT_STRING, profile, "", .aliases = "head_profile"),
    ROW("pipeline_layers", SF_OPT_INTS, layers, "auto", .min = 1, .max = 512, .allow_auto = 1,
        .unit = "layers"),
    ROW("ids", SF_OPT_INTS, ids, "[]"),
    ROW("retrieval_heads", SF_OPT_PAIRS, heads, "auto", .min = 0, .max = 99, .allow_auto = 1),
    ROW("pairs", SF_OPT_PAIRS, any, "[]"),
    ROW("layer_groups", SF_OPT_RANGES, groups, "auto", .min = 0, .max = 9999, .allow_auto = 1),
    { .key = "expert_parallel_size", .type = SF_OPT_INT32, .min = 1, .max = 8, .fallback = "1",
      .offset = offsetof(struct config, stage) },
    { .key = "checkpoint_kv", .type = SF_OPT_BOOL, .fallback = "false",
      .offset = offsetof(struct config, late) },
    { .key = NULL }
};

static struct config config;

static sf_status set(const char *key, const char *text)
{
    const struct sf_opt *row = sf_opt_find(table, key);
    if (row == NULL) return SF_FAIL(SF_INTERNAL, "no row %s", key);
    return sf_opt_set(row, &config, text);
}

static const char *get(const char *key)
{
    static char text[8192];
    sf_opt_get(sf_opt_find(table, key), &config, text, sizeof text);
    return text;
}

static void start(void)
{
    memset(&config, 0xee, sizeof config);
    sf_opt_defaults(table, &config);
}

static void test_defaults(void)
{
    start();
    SF_CHECK_INT(config.before, 0xee);
    SF_CHECK_INT(config.after, 0xee);
    SF_CHECK_INT(config.sinks, 4);
    SF_CHECK_INT(config.sets, SF_OPT_AUTO);
    SF_CHECK_INT(config.length, -1);
    SF_CHECK_INT(config.memory, SF_OPT_AUTO);
    SF_CHECK_INT(config.host, 0);
    SF_CHECK(config.ratio == 0.5 && config.free == 1e-5);
    SF_CHECK_INT(config.folding, 1);
    SF_CHECK_INT(config.dtype, 0);
    SF_CHECK_STR(config.profile, "");
    SF_CHECK_INT(config.layers.count, SF_OPT_AUTO);
    SF_CHECK_INT(config.ids.count, 0);
    SF_CHECK_INT(config.stage, 1);
    SF_CHECK_INT(config.late, 0);
}

static void test_accepted(void)
{
    static const struct { const char *key, *text, *back; } cases[] = {
        { "num_sink_tokens", "0", "0" }, { "num_sink_tokens", "1024", "1024" },
        { "sink_tokens", "+7", "7" }, { "exact_first_tokens", "007", "7" },
        { "seed", "-2147483648", "-2147483648" }, { "seed", "2147483647", "2147483647" },
        { "tensor_parallel_size", "auto", "auto" }, { "tensor_parallel_size", "2", "2" },
        { "max_model_len", "1000000000", "1000000000" },
        { "memory", "4096", "4KiB" }, { "memory", "64KiB", "64KiB" }, { "memory", "100", "100" },
        { "memory", "1.5GiB", "1536MiB" }, { "memory", "auto", "auto" },
        { "memory", "1TiB", "1TiB" },
        { "memory", "17 B", "17" }, { "memory", "0.3KiB", "307" }, { "memory", "2 MiB", "2MiB" },
        { "host_memory", "9223372036854775807", "9223372036854775807" },
        { "host_memory", "8388606.5TiB", "8589933056GiB" }, { "host_memory", "0", "0" },
        { "ratio", "1", "1" }, { "ratio", "1e-1", "0.1" }, { "ratio", "0.30000000000000004",
                                                             "0.30000000000000004" },
        { "temperature", "-1e300", "-1e+300" }, { "temperature", "1234567", "1234567" },
        { "folding", "false", "false" }, { "dtype", "bf16", "bf16" },
        { "head_profile", "a b: \xc3\xa9", "a b: \xc3\xa9" },
        { "pipeline_layers", "[14, 16]", "[14, 16]" }, { "pipeline_layers", "14,16", "[14, 16]" },
        { "pipeline_layers", " [ 1 ] ", "[1]" }, { "pipeline_layers", "auto", "auto" },
        { "ids", "", "[]" }, { "ids", "[-5,5]", "[-5, 5]" }, { "ids", "[ ]", "[]" },
        { "retrieval_heads", "auto", "auto" }, { "retrieval_heads", "[]", "[]" },
        { "retrieval_heads", "[[0, 2], [99,0]]", "[[0, 2], [99, 0]]" },
        { "pairs", " [ [ -1 , 2 ] ] ", "[[-1, 2]]" },
        { "expert_parallel_size", "1", "1" }, { "checkpoint_kv", "false", "false" },
    };
    start();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        SF_CHECK_OK(set(cases[i].key, cases[i].text));
        SF_CHECK_STR(get(cases[i].key), cases[i].back);
        struct config once = config;
        SF_CHECK_OK(set(cases[i].key, cases[i].back));
        SF_CHECK(memcmp(&once, &config, sizeof config) == 0);
    }
    SF_CHECK_INT(config.before, 0xee);
    SF_CHECK_INT(config.after, 0xee);
}

static void test_refused(void)
{
    static const struct { const char *key, *texts[20]; } cases[] = {
        { "num_sink_tokens", { "", "-1", "1025", "4.0", "1e2", "0x10", " 4", "4 ", "4a", "-",
                               "auto", "99999999999999999999", "\xd9\xa3" } },
        { "seed", { "2147483648", "-2147483649", "--1", "+-1" } },
        { "tensor_parallel_size", { "0", "-1", "Auto", "AUTO", "auto " } },
        { "max_model_len", { "-2", "9223372036854775808" } },
        { "memory", { "", "-1", "+1", "KiB", "1.5", "1.5B", "1kb", "1KB", "1Ki", "1.KiB", ".5KiB",
                      "1e3", "1.5e3KiB", "1  KiB", "1 ", "1.0001TiB", "0x10" } },
        { "host_memory", { "9223372036854775808", "8388608TiB", "8388607.9TiB9", "auto" } },
        { "ratio", { "", "nan", "inf", "0x1p-1", "1.1", "-0.1", "0.5x", "1e999", "e", "." } },
        { "temperature", { "1e999", "-1e999" } },
        { "folding", { "", "True", "yes", "no", "1", "0", "on" } },
        { "dtype", { "", "BF16", "bf1", "f32,bf16" } },
        { "pipeline_layers", { "[", "]", "[1", "1]", "[1,]", "1,", ",1", "[1 2]", "[0]", "[513]",
                               "[a]", "[1] 2", "[[1]]", "1.5", "[4294967297]" } },
        { "retrieval_heads", { "", "[", "]", "1,2", "[1, 2]", "[[1]]", "[[1, 2]", "[[1, 2],]",
                               "[[1, 2] [3, 4]]", "[[1, 2, 3]]", "[[1, -1]]", "[[100, 1]]",
                               "[[1, 2]] 3", "[[1, 4294967297]]", "[[1, 2.5]]", "[[,]]" } },
    };
    start();
    struct config untouched = config;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (const char *const *text = cases[i].texts; *text != NULL; text++) {
            sf_status status = set(cases[i].key, *text);
            if (status != SF_INVALID)
                sf_test_fail(__FILE__, __LINE__, "%s took '%s'", cases[i].key, *text);
            SF_CHECK(strstr(sf_error_text(), cases[i].key) == sf_error_text());
            SF_CHECK(memcmp(&config, &untouched, sizeof config) == 0);
        }
}

static void test_words(void)
{
    static const struct { const char *key, *text, *words; } cases[] = {
        { "num_sink_tokens", "abc",
          "num_sink_tokens is 'abc'; allowed: an integer from 0 to 1024 (slots)" },
        { "sink_tokens", "-1",
          "num_sink_tokens is '-1'; allowed: an integer from 0 to 1024 (slots)" },
        { "seed", "x", "seed is 'x'; allowed: an integer" },
        { "tensor_parallel_size", "0",
          "tensor_parallel_size is '0'; allowed: an integer from 1 to 4096 (ranks), or auto" },
        { "memory", "2TiB", "memory is '2TiB'; allowed: bytes, such as 4096, 64KiB or 1.5GiB, "
                            "from 0 to 1TiB, or auto" },
        { "host_memory", "x",
          "host_memory is 'x'; allowed: bytes, such as 4096, 64KiB or 1.5GiB, from 0" },
        { "ratio", "2", "ratio is '2'; allowed: a number from 0 to 1" },
        { "folding", "yes", "folding is 'yes'; allowed: true or false" },
        { "dtype", "f64", "dtype is 'f64'; allowed: auto, f32, bf16" },
        { "pipeline_layers", "[0]",
          "pipeline_layers is '[0]'; allowed: a list like [14, 16] of at most 512 integers, each "
          "from 1 to 512 (layers), or auto" },
        { "layer_groups", "[0-3, 3]",
          "layer_groups is '[0-3, 3]'; allowed: a list like [0-3, 4-5, 8] of at most 512 ranges, "
          "ascending and without a number twice, each number from 0 to 9999, or auto" },
        { "seed", "\x1b[2J\n\xff", "seed is '?[2J?\?'; allowed: an integer" },
    };
    start();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        SF_CHECK_FAILS(set(cases[i].key, cases[i].text), SF_INVALID);
        SF_CHECK_STR(sf_error_text(), cases[i].words);
    }
    SF_CHECK_FAILS(set("expert_parallel_size", "2"), SF_UNSUPPORTED);
    SF_CHECK_STR(sf_error_text(),
                 "expert_parallel_size is '2', which is not built yet; allowed: '1'");
    SF_CHECK_FAILS(set("expert_parallel_size", "99"), SF_INVALID);
    SF_CHECK_FAILS(set("checkpoint_kv", "true"), SF_UNSUPPORTED);
}

static void test_ranges(void)
{
    static const char *const good[][2] = { { "[0-3,  4-5,8 ]", "[0-3, 4-5, 8]" }, { "[]", "[]" },
                                           { " [7 - 7]", "[7]" }, { "auto", "auto" },
                                           { "[[0,1 ,2 ], [ 4],5-6]", "[0-2, 4, 5-6]" } };
    static const char *const bad[] = { "0-3", "[0-3", "[0-3, 3-5]", "[4, 2]", "[3-0]", "[0-]",
                                       "[-1]", "[0-3,]", "[0-3] x", "[1-2-3]", "[0-10000]", "",
                                       "[[0, 2]]", "[[1, 0]]", "[[0, 1], [1]]", "[[]]", "[[0 1]]",
                                       "[[0, 1]", "[[0-1]]", "[[0,]]", "[[0][1]]",
                                       "[[9999,10000]]" };
    start();
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        SF_CHECK_OK(set("layer_groups", good[i][0]));
        SF_CHECK_STR(get("layer_groups"), good[i][1]);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        SF_CHECK_FAILS(set("layer_groups", bad[i]), SF_INVALID);
    SF_CHECK_OK(set("layer_groups", "[0-3, 8]"));
    SF_CHECK_INT(config.groups.count, 2);
    SF_CHECK_INT(config.groups.value[0].last, 3);
    SF_CHECK_INT(config.groups.value[1].first, 8);
    static char text[16 * SF_OPT_RANGES_MAX];
    size_t used = 0;
    for (int i = 0; i < SF_OPT_RANGES_MAX; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%d-%d", i ? ", " : "[", 9 * i,
                                 9 * i + 5);
    snprintf(text + used, sizeof text - used, "]");
    SF_CHECK_OK(set("layer_groups", text));
    SF_CHECK_STR(get("layer_groups"), text);
    snprintf(text + used, sizeof text - used, ", 9999]");
    SF_CHECK_FAILS(set("layer_groups", text), SF_INVALID);
}

/* Texts and lists at and past their bounds. */
static void test_long(void)
{
    char text[8192];
    start();
    memset(text, 'p', SF_OPT_TEXT_MAX);
    text[SF_OPT_TEXT_MAX] = '\0';
    SF_CHECK_FAILS(set("profile", text), SF_INVALID);
    SF_CHECK(strstr(sf_error_text(), "ppp...'; allowed: at most 1023 bytes of text") != NULL);
    text[SF_OPT_TEXT_MAX - 1] = '\0';
    SF_CHECK_OK(set("profile", text));
    SF_CHECK_STR(get("profile"), text);

    size_t used = 0;
    for (int i = 0; i < SF_OPT_INTS_MAX; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%d", i ? "," : "", -i * 1000);
    SF_CHECK_OK(set("ids", text));
    SF_CHECK_INT(config.ids.count, SF_OPT_INTS_MAX);
    SF_CHECK_INT(config.ids.value[SF_OPT_INTS_MAX - 1], -1000 * (SF_OPT_INTS_MAX - 1));
    snprintf(text + used, sizeof text - used, ",1");
    SF_CHECK_FAILS(set("ids", text), SF_INVALID);

    static char pairs[SF_OPT_VALUE_BYTES], back[SF_OPT_VALUE_BYTES];
    used = (size_t)snprintf(pairs, sizeof pairs, "[");
    for (int i = 0; i < SF_OPT_PAIRS_MAX; i++)
        used += (size_t)snprintf(pairs + used, sizeof pairs - used, "%s[-2147483648, 2147483647]",
                                 i ? ", " : "");
    snprintf(pairs + used, sizeof pairs - used, "]");
    SF_CHECK_OK(set("pairs", pairs));
    SF_CHECK_INT(config.any.count, SF_OPT_PAIRS_MAX);
    sf_opt_get(sf_opt_find(table, "pairs"), &config, back, sizeof back);
    SF_CHECK_STR(back, pairs);
    snprintf(pairs + used, sizeof pairs - used, ", [1, 2]]");
    SF_CHECK_FAILS(set("pairs", pairs), SF_INVALID);

    char small[8];
    memset(small, 'z', sizeof small);
    sf_opt_get(sf_opt_find(table, "ids"), &config, small, 5);
    SF_CHECK_STR(small, "[0, ");
    SF_CHECK_INT(small[5], 'z');
}

static void test_names(void)
{
    static const struct { const char *word, *nearest; } cases[] = {
        { "num_sink_token", "num_sink_tokens" }, { "tensor_parallel", "tensor_parallel_size" },
        { "sink_token", "num_sink_tokens" }, { "DTYPE", "dtype" }, { "isd", "ids" },
        { "head_profil", "profile" }, { "memroy", "memory" }, { "quite_another_thing", "" },
        { "", "" }, { "x", "" },
        { "a_word_that_is_much_longer_than_any_name_of_a_setting_has_a_right_to_be", "" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *nearest = sf_opt_nearest(table, cases[i].word);
        SF_CHECK_STR(nearest == NULL ? "" : nearest, cases[i].nearest);
    }
    SF_CHECK(sf_opt_find(table, "sink_tokens") == table);
    SF_CHECK(sf_opt_find(table, "exact_first_tokens") == table);
    SF_CHECK(sf_opt_find(table, "sink_token") == NULL);
    SF_CHECK(sf_opt_find(table, "") == NULL);
    static const char *const methods[] = { "razor_attention", "gear", "ems", "kvcrush" };
    SF_CHECK_STR(sf_nearest_name("razorattention", methods, 4), "razor_attention");
    SF_CHECK_STR(sf_nearest_name("gaer", methods, 4), "gear");
    SF_CHECK(sf_nearest_name("minicache", methods, 4) == NULL);
    SF_CHECK(sf_nearest_name("gear", methods, 0) == NULL);
}

static void test_parse_bytes(void)
{
    int64_t bytes = 5;
    SF_CHECK_OK(sf_parse_bytes("1.5GiB", &bytes));
    SF_CHECK_INT(bytes, 1610612736);
    SF_CHECK_FAILS(sf_parse_bytes("12 parsecs", &bytes), SF_INVALID);
    SF_CHECK_STR(sf_error_text(),
                 "size is '12 parsecs'; allowed: bytes, such as 4096, 64KiB or 1.5GiB");
    SF_CHECK_INT(bytes, 1610612736);
}

static const struct sf_test tests[] = {
    { "defaults", test_defaults },
    { "accepted", test_accepted },
    { "refused", test_refused },
    { "words", test_words },
    { "ranges", test_ranges },
    { "long", test_long },
    { "names", test_names },
    { "parse bytes", test_parse_bytes },
    { NULL, NULL }
};
SF_TEST_MAIN("base_opt", tests)
