/* tests/unit/plan/config.c: the configuration file.
 *
 * Shown here: every mistake is refused with the words and position that a person needs (a table of
 * texts and their exact messages); what is accepted has the value that was written, from the place
 * that wins; the resolved text reads back as itself; docs/config.md is what the tables say.
 *
 *   test_config --write     regenerates docs/config.md */
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include "coordinator/config.h"
#include "tests/check.h"

#define V "schema_version: 1\n"

static sf_status parse(const char *text, const char *set, struct sf_config *cfg)
{
    struct sf_config_sets sets = { .set = &set, .sets = set != NULL };
    return sf_config_parse("job.yaml", text, strlen(text), &sets, cfg);
}

/* ---- refusals -------------------------------------------------------------------------------- */
struct bad { const char *text, *words; };

static void check_bad(const struct bad *bad)
{
    struct sf_config cfg;
    sf_status status = parse(bad->text, NULL, &cfg);
    if (status == SF_OK) {
        sf_test_fail(__FILE__, __LINE__, "accepted: %s", bad->text);
        sf_config_free(&cfg);
        return;
    }
    SF_CHECK_INT(sf_status_exit_code(status), 2);
    SF_CHECK_STR(sf_error_text(), bad->words);
}

static void refuses_bad_yaml(void)
{
    static const struct bad table[] = {
        { "", "job.yaml:1:1: error: schema_version is missing; write 'schema_version: 1'" },
        { "# nothing\n", "job.yaml:1:1: error: schema_version is missing; write"
          " 'schema_version: 1'" },
        { "model: {}\n", "job.yaml:1:1: error: schema_version is missing; write"
          " 'schema_version: 1'" },
        { "schema_version: 2\n", "job.yaml:1:17: error: schema_version is '2'; this build reads"
          " 1" },
        { "schema_version: [1]\n", "job.yaml:1:17: error: schema_version is 'not a number'; this"
          " build reads 1" },
        { "- 1\n- 2\n", "job.yaml:1:1: error: a configuration is a mapping of sections" },
        { "just words\n", "job.yaml:1:1: error: a configuration is a mapping of sections" },
        { V "model: {path: a\n", "job.yaml:3:1: error: not YAML: while parsing a flow mapping, did"
          " not find expected ',' or '}'" },
        { V "run:\n\tdeterministic: true\n", "job.yaml:3:1: error: not YAML: while scanning for the"
          " next token, found character that cannot start any token" },
        { V "run: \xff\n", "job.yaml:1:1: error: not YAML: invalid leading UTF-8 octet" },
        { V "model: &m {path: a}\n", "job.yaml:2:8: error: anchors (&name) are not taken" },
        { V "model: *m\n", "job.yaml:2:8: error: aliases (*name) are not taken" },
        { V "model: {path: !!str a}\n", "job.yaml:2:15: error: tags (!name) are not taken" },
        { V "---\nmodel: {}\n", "job.yaml:2:1: error: a second document; one file holds one" },
        { V "run: {}\nmodel: {}\nrun: {}\n", "job.yaml:4:1: error: key 'run' is given twice; first"
          " in line 2" },
        { V "run:\n  deterministic: true\n  deterministic: false\n",
          "job.yaml:4:3: error: key 'deterministic' is given twice; first in line 3" },
        { V "? [a, b]\n: 1\n", "job.yaml:2:3: error: a key must be a plain word" },
        { V "model:\n  path: \"a\\nb\"\n", "job.yaml:3:9: error: keys and values are one printable"
          " line of UTF-8" },
        { V "model: [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]\n",
          "job.yaml:2:23: error: nested deeper than 16" },
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) check_bad(&table[i]);
}

static void refuses_bad_keys(void)
{
    static const struct bad table[] = {
        { V "paralel: {}\n", "job.yaml:2:1: error: unknown key 'paralel'; did you mean"
          " 'parallel'?" },
        { V "parallel:\n  tensor_paralel_size: 2\n", "job.yaml:3:3: error: unknown key"
          " 'tensor_paralel_size'; did you mean 'tensor_parallel_size'?" },
        { V "model:\n  max_num_seqs: 2\n", "job.yaml:3:3: error: unknown key 'max_num_seqs' in"
          " model; did you mean 'scheduler.max_num_seqs'?" },
        { V "tensor_parallel_size: 2\n", "job.yaml:2:1: error: unknown key 'tensor_parallel_size'"
          " in the top level; did you mean 'parallel.tensor_parallel_size'?" },
        { V "model: {device: cpu}\n", "job.yaml:2:9: error: unknown key 'device' in model; it"
          " stands outside of all sections" },
        { V "methods: []\n", "job.yaml:2:1: error: unknown key 'methods' in the top level; did you"
          " mean 'kv_cache.methods'?" },
        { V "kv_cache: {method: []}\n", "job.yaml:2:12: error: unknown key 'method' in kv_cache;"
          " did you mean 'convert.method'?" },
        { V "run: {max_num_seq: 3}\n", "job.yaml:2:7: error: unknown key 'max_num_seq' in run; did"
          " you mean 'scheduler.max_num_seqs'?" },
        { V "run: {qqqqqqqq: 3}\n", "job.yaml:2:7: error: unknown key 'qqqqqqqq' in run" },
        { V "kv_cache:\n  methods:\n    - name: windw\n", "job.yaml:4:13: error: unknown method"
          " 'windw'; did you mean 'window'?" },
        { V "kv_cache:\n  methods:\n    - name: sub_moe\n", "job.yaml:4:13: error: method"
          " 'sub_moe' is not built yet" },
        { V "kv_cache:\n  methods:\n    - {recent_tokens: 5}\n", "job.yaml:4:7: error:"
          " kv_cache.methods.0 has no name" },
        { V "kv_cache:\n  methods:\n    - window\n", "job.yaml:4:7: error: an entry of"
          " kv_cache.methods is a mapping such as {name: window}" },
        { V "kv_cache:\n  methods: {name: window}\n", "job.yaml:3:12: error: kv_cache.methods is a"
          " list of entries such as {name: window}" },
        { V "kv_cache:\n  methods:\n    - name: window\n      recent_token: 9\n",
          "job.yaml:5:7: error: unknown option 'recent_token' of method 'window'; did you mean"
          " 'recent_tokens'?" },
        { V "kv_cache:\n  methods:\n    - name: window\n      window_size: 9\n"
          "      recent_tokens: 10\n",
          "job.yaml:6:7: error: 'recent_tokens' and 'window_size' are the same option" },
        { V "kv_cache:\n  methods:\n    - {name: window, layers: first}\n",
          "job.yaml:4:30: error: kv_cache.methods.0.layers is 'first'; allowed: layers such as"
          " \"0-11,20\"" },
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) check_bad(&table[i]);
}

static void refuses_bad_values(void)
{
    static const struct bad table[] = {
        { V "model: bf16\n", "job.yaml:2:8: error: model is a section: it holds keys, not one"
          " value" },
        { V "model: []\n", "job.yaml:2:8: error: model is a section: it holds keys, not a list" },
        { V "device: {}\n", "job.yaml:2:9: error: device takes one value, not a mapping" },
        { V "run: {deterministic: yes}\n", "job.yaml:2:22: error: run.deterministic is 'yes';"
          " allowed: true or false" },
        { V "run:\n  deterministic:\n", "job.yaml:3:17: error: run.deterministic has no value" },
        { V "scheduler: {max_num_seqs: 1e6}\n", "job.yaml:2:27: error: scheduler.max_num_seqs is"
          " '1e6'; allowed: an integer from 1 to 65536 (sequences)" },
        { V "scheduler: {max_num_seqs: 0}\n", "job.yaml:2:27: error: scheduler.max_num_seqs is '0';"
          " allowed: an integer from 1 to 65536 (sequences)" },
        { V "scheduler: {max_num_batched_tokens: 8}\n", "job.yaml:2:37: error:"
          " scheduler.max_num_batched_tokens is '8'; allowed: an integer from 16 to 1048576"
          " (tokens)" },
        { V "model: {dtype: fp8}\n", "job.yaml:2:16: error: model.dtype is 'fp8'; allowed: f32,"
          " f16, bf16" },
        { V "kv_cache: {block_size: 48}\n", "job.yaml:2:24: error: kv_cache.block_size is '48';"
          " allowed: 16 x 2^k, such as 16, 32, 64" },
        { V "parallel: {pipeline_parallel_size: 2, pipeline_layers: [10, 10, 10]}\n",
          "job.yaml:2:56: error: parallel.pipeline_layers lists 3 stages, but"
          " parallel.pipeline_parallel_size is 2" },
        { V "parallel: {pipeline_layers: [1, [2]]}\n", "job.yaml:2:33: error:"
          " parallel.pipeline_layers is a list of single values" },
        { V "parallel: {tensor_parallel_size: [2]}\n", "job.yaml:2:34: error:"
          " parallel.tensor_parallel_size takes one value, not a list" },
        /* Known, not built: accepted at the default only. */
        { V "parallel: {expert_parallel_size: 2}\n", "job.yaml:2:34: error:"
          " parallel.expert_parallel_size is '2', which is not built yet; allowed: '1'" },
        { V "kv_cache: {host_memory: 1GiB}\n", "job.yaml:2:25: error: kv_cache.host_memory is"
          " '1GiB', which is not built yet; allowed: '0'" },
        { V "draft: {model: a.gguf}\n", "job.yaml:2:16: error: draft.model is 'a.gguf', which is"
          " not built yet; allowed: ''" },
        { V "run: {checkpoint_kv: true}\n", "job.yaml:2:22: error: run.checkpoint_kv is 'true',"
          " which is not built yet; allowed: 'false'" },
        { V "convert: {method: sub_moe}\n", "job.yaml:2:19: error: convert.method is 'sub_moe',"
          " which is not built yet; allowed: 'kv_heads'" },
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) check_bad(&table[i]);
}

static void refuses_bad_sets(void)
{
    static const struct bad table[] = {      /* text: the --set over an empty job */
        { "kv_cache.memory=abc", "--set kv_cache.memory=abc: error: kv_cache.memory is 'abc';"
          " allowed: bytes, such as 4096, 64KiB or 1.5GiB, from 1 to 1024TiB, or auto" },
        { "kv_cache.memroy=1", "--set kv_cache.memroy=1: error: unknown key 'memroy'; did you mean"
          " 'memory'?" },
        { "nonsense", "--set nonsense: error: must be key=value, such as kv_cache.memory=1GiB" },
        { "a..b=1", "--set a..b=1: error: 'a..b' is not a key such as kv_cache.memory" },
        { "kv_cache.methods.1.name=window", "--set kv_cache.methods.1.name=window: error: '1' is no"
          " item of a list of 0, counted from 0" },
        { "schema_version.x=1", "--set schema_version.x=1: error: there is no 'x' inside the single"
          " value '1'" },
        { "run={deterministic: maybe}", "--set run={deterministic: maybe}: error: run.deterministic"
          " is 'maybe'; allowed: true or false" },
        { "run={", "--set run={: error: not YAML: while parsing a flow node, did not find expected"
          " node content" },
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct sf_config cfg;
        sf_status status = parse(V, table[i].text, &cfg);
        if (status == SF_OK) {
            sf_test_fail(__FILE__, __LINE__, "accepted: --set %s", table[i].text);
            sf_config_free(&cfg);
            continue;
        }
        SF_CHECK_INT(sf_status_exit_code(status), 2);
        SF_CHECK_STR(sf_error_text(), table[i].words);
    }
}

static void refuses_large_files(void)
{
    const size_t bytes = (1 << 20) + 1;
    char *text = malloc(bytes);
    struct sf_config cfg;
    SF_CHECK(text != NULL);
    if (text == NULL) return;
    memset(text, '#', bytes);
    SF_CHECK_FAILS(sf_config_parse("job.yaml", text, bytes, NULL, &cfg), SF_INVALID);
    SF_CHECK_STR(sf_error_text(), "job.yaml:1:1: error: larger than 1048576 bytes; this is no"
                                  " configuration");
    free(text);
}

/* ---- what is accepted ------------------------------------------------------------------------ */
static void defaults(void)
{
    struct sf_config cfg;
    SF_MUST(parse(V, NULL, &cfg));
    SF_CHECK_INT(cfg.model.dtype, SF_BF16);
    SF_CHECK_INT(cfg.parallel.tensor, 1);
    SF_CHECK_INT(cfg.parallel.data, 1);
    SF_CHECK_INT(cfg.parallel.layers.count, SF_OPT_AUTO);
    SF_CHECK_INT(cfg.kv.memory, SF_OPT_AUTO);
    SF_CHECK_INT(cfg.kv.stack.entries, 0);
    SF_CHECK_INT(cfg.scheduler.max_num_seqs, 256);
    SF_CHECK_INT(cfg.scheduler.max_num_batched_tokens, 2048);
    SF_CHECK_INT(cfg.scheduler.prefix_caching, 1);
    SF_CHECK_INT(cfg.run.deterministic, 0);
    SF_CHECK_NEAR(cfg.run.rank_timeout_s, 30, 0);
    sf_config_free(&cfg);
}

static const char whole[] =
    V
    "model: {path: models/a b.gguf, dtype: f32, compute: auto}\n"
    "parallel:\n"
    "  tensor_parallel_size: 2\n"
    "  pipeline_parallel_size: 3\n"
    "  data_parallel_size: auto\n"
    "  pipeline_layers: [14, 10, 6]\n"
    "  head_placement: identity\n"
    "  allow_cross_node_tensor_parallel: true\n"
    "device: cpu\n"
    "kv_cache:\n"
    "  memory: 1.5MiB\n"
    "  block_size: 64\n"
    "  methods:\n"
    "    - name: window\n"
    "      window_size: 32       # an alias\n"
    "      layers: [0, 2, 5]\n"
    "    - {name: window, recent_tokens: 7, on: retrieval}\n"
    "scheduler: {max_num_seqs: 8, enable_prefix_caching: false}\n"
    "sampling: {temperature: 0.7, seed: -3}\n"
    "run: {deterministic: true, rank_timeout_s: 2.5}\n"
    "draft:\n";                         /* an empty section is no mistake */

/* The option of an entry by its name in text form. */
static const char *option(const struct sf_stack_entry *entry, const char *key)
{
    static char text[2][64];
    static int turn;
    turn ^= 1;
    sf_opt_get(sf_opt_find(entry->method->opts, key), entry->cfg, text[turn], sizeof text[turn]);
    return text[turn];
}

static void check_whole(const struct sf_config *cfg)
{
    SF_CHECK_STR(cfg->model.path, "models/a b.gguf");
    SF_CHECK_INT(cfg->model.dtype, SF_F32);
    SF_CHECK_INT(cfg->parallel.tensor, 2);
    SF_CHECK_INT(cfg->parallel.pipeline, 3);
    SF_CHECK_INT(cfg->parallel.data, SF_OPT_AUTO);
    SF_CHECK_INT(cfg->parallel.layers.count, 3);
    SF_CHECK_INT(cfg->parallel.layers.value[2], 6);
    SF_CHECK_INT(cfg->parallel.placement, 1);
    SF_CHECK_INT(cfg->parallel.cross_node, 1);
    SF_CHECK_INT(cfg->device, SF_DEVICE_CPU);
    SF_CHECK_INT(cfg->kv.memory, 1536 * 1024);
    SF_CHECK_INT(cfg->kv.block_size, 64);
    SF_CHECK_INT(cfg->scheduler.max_num_seqs, 8);
    SF_CHECK_INT(cfg->scheduler.prefix_caching, 0);
    SF_CHECK_NEAR(cfg->sampling.temperature, 0.7, 0);
    SF_CHECK_INT(cfg->sampling.seed, -3);
    SF_CHECK_INT(cfg->run.deterministic, 1);
    SF_CHECK_NEAR(cfg->run.rank_timeout_s, 2.5, 0);
    SF_CHECK_INT(cfg->kv.stack.entries, 2);
    if (cfg->kv.stack.entries != 2) return;
    SF_CHECK_STR(cfg->kv.stack.entry[0].method->name, "window");
    SF_CHECK_STR(cfg->kv.stack.entry[0].layers_text, "0, 2, 5");
    SF_CHECK_STR(option(&cfg->kv.stack.entry[0], "recent_tokens"), "32");
    SF_CHECK_INT(cfg->kv.stack.entry[0].on, SF_HEAD_ANY);
    SF_CHECK_INT(cfg->kv.stack.entry[1].on, SF_HEAD_RETRIEVAL);
    SF_CHECK_STR(option(&cfg->kv.stack.entry[1], "recent_tokens"), "7");
    SF_CHECK_STR(option(&cfg->kv.stack.entry[1], "num_sink_tokens"), "4");
}

/* Values arrive; the resolved text gives the same values, and its own text is itself. */
static void round_trip(void)
{
    struct sf_config first, second;
    char *text = NULL, *again = NULL;
    SF_MUST(parse(whole, NULL, &first));
    check_whole(&first);
    SF_CHECK_OK(sf_config_text(&first, &text));
    if (text == NULL) return;
    SF_MUST(sf_config_parse("resolved", text, strlen(text), NULL, &second));
    check_whole(&second);
    SF_CHECK_OK(sf_config_text(&second, &again));
    if (again != NULL) SF_CHECK_STR(again, text);
    free(text);
    free(again);
    sf_config_free(&first);
    sf_config_free(&second);
}

/* Texts that YAML could take for something else come back as they were. */
static void odd_texts(void)
{
    static const char *const odd[] = { "a: b", "# no comment", "'", "\"", "\\n", "- x", "-", "{}",
                                       "[1]", "~", "null", "true", "&a", "*a", "!a", "%a", "@a",
                                       "`a", " a ", "mod\xc3\xa8le", "\xef\xbb\xbf", "\xe2\x80\xa8",
                                       "\xf0\x9f\x90\x91", "${env:HOME}", "a\xc2\x85" "b" };
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        struct sf_config cfg, back;
        char set[64], *text = NULL;
        if (odd[i][0] == '{' || odd[i][0] == '[') continue;     /* YAML when given by --set */
        snprintf(set, sizeof set, "model.path=%s", odd[i]);
        SF_MUST(parse(V, set, &cfg));
        SF_CHECK_STR(cfg.model.path, odd[i]);
        SF_MUST(sf_config_text(&cfg, &text));
        SF_MUST(sf_config_parse("resolved", text, strlen(text), NULL, &back));
        SF_CHECK_STR(back.model.path, odd[i]);
        free(text);
        sf_config_free(&cfg);
        sf_config_free(&back);
    }
}

/* ---- precedence ------------------------------------------------------------------------------ */
static void write_file(char *path, const char *text)
{
    int fd = mkstemp(path);
    SF_CHECK(fd >= 0);
    if (fd < 0) return;
    SF_CHECK_INT(write(fd, text, strlen(text)), (long long)strlen(text));
    close(fd);
}

/* --set over environment over file over default, each key by itself. */
static void precedence(void)
{
    char path[] = "/tmp/sheaf-config-XXXXXX";
    const char *set[] = { "scheduler.max_num_seqs=30", "kv_cache.methods.0.recent_tokens=77" };
    struct sf_config_sets sets = { .set = set, .sets = 2 };
    struct sf_config cfg;
    write_file(path, V "scheduler: {max_num_seqs: 10, max_num_batched_tokens: 100,"
                       " max_model_len: 50}\n"
                       "kv_cache: {methods: [{name: window, window_size: 5}]}\n");
    setenv("SHEAF_SCHEDULER__MAX_NUM_SEQS", "20", 1);
    setenv("SHEAF_SCHEDULER__MAX_NUM_BATCHED_TOKENS", "200", 1);
    setenv("SHEAF_KV_CACHE__METHODS__0__NUM_SINK_TOKENS", "2", 1);
    setenv("SHEAF_DEVICE", "cpu", 1);
    setenv("SHEAF_HOME", "not a key of ours", 1);
    SF_MUST(sf_config_load(path, &sets, &cfg));
    SF_CHECK_INT(cfg.scheduler.max_num_seqs, 30);
    SF_CHECK_INT(cfg.scheduler.max_num_batched_tokens, 200);
    SF_CHECK_INT(cfg.scheduler.max_model_len, 50);
    SF_CHECK_INT(cfg.device, SF_DEVICE_CPU);
    SF_CHECK_NEAR(cfg.run.checkpoint_interval_s, 5, 0);
    SF_CHECK_STR(option(&cfg.kv.stack.entry[0], "recent_tokens"), "77");    /* over its alias */
    SF_CHECK_STR(option(&cfg.kv.stack.entry[0], "num_sink_tokens"), "2");
    sf_config_free(&cfg);

    setenv("SHEAF_RUN__DETERMINSTIC", "true", 1);
    SF_CHECK_FAILS(sf_config_load(path, &sets, &cfg), SF_INVALID);
    SF_CHECK_STR(sf_error_text(), "SHEAF_RUN__DETERMINSTIC: error: unknown key 'determinstic'; did"
                                  " you mean 'deterministic'?");
    unsetenv("SHEAF_RUN__DETERMINSTIC");
    setenv("SHEAF_SCHEDULER__MAX_MODEL_LEN", "many", 1);
    SF_CHECK_FAILS(sf_config_load(path, NULL, &cfg), SF_INVALID);
    SF_CHECK(strncmp(sf_error_text(), "SHEAF_SCHEDULER__MAX_MODEL_LEN: error: ", 39) == 0);
    unsetenv("SHEAF_SCHEDULER__MAX_MODEL_LEN");
    unsetenv("SHEAF_SCHEDULER__MAX_NUM_SEQS");
    unsetenv("SHEAF_SCHEDULER__MAX_NUM_BATCHED_TOKENS");
    unsetenv("SHEAF_KV_CACHE__METHODS__0__NUM_SINK_TOKENS");
    unsetenv("SHEAF_DEVICE");
    unsetenv("SHEAF_HOME");
    unlink(path);
}

/* Whole lists by --set, and a stack that exists by --set alone. */
static void sets_of_lists(void)
{
    const char *set[] = { "parallel.pipeline_layers=[10, 20]", "parallel.pipeline_parallel_size=2",
                          "kv_cache.methods=[{name: none}]", "kv_cache.methods.1.name=window",
                          "kv_cache.methods.1.recent_tokens=9" };
    struct sf_config_sets sets = { .set = set, .sets = 5 };
    struct sf_config cfg;
    SF_MUST(sf_config_parse("job.yaml", V, strlen(V), &sets, &cfg));
    SF_CHECK_INT(cfg.parallel.layers.count, 2);
    SF_CHECK_INT(cfg.parallel.layers.value[1], 20);
    SF_CHECK_STR(option(&cfg.kv.stack.entry[cfg.kv.stack.entries - 1], "recent_tokens"), "9");
    sf_config_free(&cfg);
}

static void expands_environment(void)
{
    char path[] = "/tmp/sheaf-config-XXXXXX", words[256];
    struct sf_config cfg;
    write_file(path, V "scheduler: {max_num_seqs: '${env:SHEAF_TEST_A}${env:SHEAF_TEST_B}'}\n");
    setenv("SHEAF_TEST_A", "1", 1);
    setenv("SHEAF_TEST_B", "2", 1);
    SF_MUST(sf_config_load(path, NULL, &cfg));
    SF_CHECK_INT(cfg.scheduler.max_num_seqs, 12);
    sf_config_free(&cfg);
    unsetenv("SHEAF_TEST_B");
    SF_CHECK_FAILS(sf_config_load(path, NULL, &cfg), SF_INVALID);
    snprintf(words, sizeof words, "%s:2:27: error: the environment has no variable 'SHEAF_TEST_B'",
             path);
    SF_CHECK_STR(sf_error_text(), words);
    unlink(path);
    SF_CHECK_FAILS(sf_config_load(path, NULL, &cfg), SF_IO);
    snprintf(words, sizeof words, "%s: error: cannot open: No such file or directory", path);
    SF_CHECK_STR(sf_error_text(), words);
}

/* A relative model is found above the configuration's own folder; a missing one is named. */
static void finds_the_model(void)
{
    char folder[] = "/tmp/sheaf-model-XXXXXX", path[64], model[64], deep[64], words[512];
    struct sf_config cfg;
    SF_CHECK(mkdtemp(folder) != NULL);
    snprintf(model, sizeof model, "%s/tiny-a.gguf", folder);
    snprintf(deep, sizeof deep, "%s/x", folder);
    snprintf(path, sizeof path, "%s/x/job.yaml", folder);
    SF_CHECK_INT(mkdir(deep, 0700), 0);
    FILE *file = fopen(model, "w");
    SF_CHECK(file != NULL);
    if (file != NULL) fclose(file);
    file = fopen(path, "w");
    SF_CHECK(file != NULL);
    if (file == NULL) return;
    fputs(V "model:\n  path: tiny-a.gguf\n", file);
    fclose(file);
    SF_CHECK_OK(sf_config_load(path, NULL, &cfg));
    SF_CHECK_STR(cfg.model.path, model);
    sf_config_free(&cfg);
    unlink(model);
    SF_CHECK_FAILS(sf_config_load(path, NULL, &cfg), SF_IO);
    snprintf(words, sizeof words, "%s:3:9: error: model.path: no such file; tried tiny-a.gguf,"
             " %s/x/tiny-a.gguf, %s/tiny-a.gguf,", path, folder, folder);
    SF_CHECK(strncmp(sf_error_text(), words, strlen(words)) == 0);
    unlink(path);
    rmdir(deep);
    rmdir(folder);
}

/* ---- docs ------------------------------------------------------------------------------------ */
static const char doc_path[] = SHEAF_SOURCE_DIR "/docs/config.md";

static void write_named(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    SF_CHECK(file != NULL);
    if (file == NULL) return;
    SF_CHECK(fputs(text, file) >= 0);
    fclose(file);
}

/* A profile's values go into the entry, but for those that the entry has itself. */
static void profiles(void)
{
    static const char profile[] = "retrieval_heads: [[0, 2], [29, 1]]\nnum_sink_tokens: 7\n"
                                  "window_divisor: 9\nseed: 0\nscores: {echo: [[0.5]]}\n";
    static const struct bad table[] = {
        { "retrieval_heads: [[0, 2], 3]\n", "profile.yaml:1:27: error: retrieval_heads is a list of"
          " pairs such as [0, 2]" },
        { "retrieval_heads: [[0, x]]\n", "profile.yaml:1:18: error: retrieval_heads is"
          " '[[0, x]]'; allowed: a list like [[0, 2], [3, 1]] of at most 2048 pairs, each number"
          " from 0 to 100000, or auto" },
        { "- 1\n", "profile.yaml:1:1: error: a profile is a mapping such as"
          " {retrieval_heads: [[0, 2]]}" },
        { "a: [\n", "profile.yaml:2:1: error: not YAML: while parsing a flow node, did not find"
          " expected node content" },
    };
    static const char text[] = V "kv_cache: {methods: [{name: razor_attention, profile:"
                                 " profile.yaml, window_divisor: 3}]}\n";
    struct sf_config cfg, again;
    char *resolved = NULL;
    char folder[] = "/tmp/sheaf-profile-XXXXXX", before[1024], words[256];
    SF_MUST(getcwd(before, sizeof before) && mkdtemp(folder) && chdir(folder) == 0 ? SF_OK : SF_IO);
    write_named("job.yaml", text);
    write_named("profile.yaml", profile);
    SF_MUST(sf_config_load("job.yaml", NULL, &cfg));
    const struct sf_stack_entry *entry = &cfg.kv.stack.entry[0];
    SF_CHECK_STR(option(entry, "retrieval_heads"), "[[0, 2], [29, 1]]");
    SF_CHECK_STR(option(entry, "num_sink_tokens"), "7");
    SF_CHECK_STR(option(entry, "window_divisor"), "3");
    SF_MUST(sf_config_text(&cfg, &resolved));
    unlink("profile.yaml");             /* the resolved text needs it no more */
    SF_MUST(sf_config_parse("job.yaml", resolved, strlen(resolved), NULL, &again));
    SF_CHECK_STR(option(&again.kv.stack.entry[0], "retrieval_heads"), "[[0, 2], [29, 1]]");
    sf_config_free(&again);
    sf_config_free(&cfg);
    free(resolved);
    SF_CHECK_FAILS(sf_config_load("job.yaml", NULL, &cfg), SF_IO);
    snprintf(words, sizeof words, "job.yaml:2:22: error: profile: no such file; tried profile.yaml,"
             " %s/profile.yaml,", folder);
    SF_CHECK(strncmp(sf_error_text(), words, strlen(words)) == 0);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        write_named("profile.yaml", table[i].text);
        SF_CHECK(sf_status_exit_code(sf_config_load("job.yaml", NULL, &cfg)) == 2);
        SF_CHECK_STR(sf_error_text(), table[i].words);
    }
    unlink("profile.yaml");
    unlink("job.yaml");
    SF_MUST(chdir(before) == 0 && rmdir(folder) == 0 ? SF_OK : SF_IO);
}

static void docs_are_fresh(void)
{
    char *text = NULL;
    SF_MUST(sf_config_markdown(&text));
    size_t bytes = strlen(text);
    char *have = calloc(1, bytes + 2);
    FILE *file = fopen(doc_path, "r");
    size_t read = file != NULL && have != NULL ? fread(have, 1, bytes + 1, file) : 0;
    if (file != NULL) fclose(file);
    if (have == NULL || read != bytes || memcmp(have, text, bytes) != 0)
        sf_test_fail(__FILE__, __LINE__, "docs/config.md is stale; run test_config --write");
    free(have);
    free(text);
}

static int write_docs(void)
{
    char *text = NULL;
    if (sf_config_markdown(&text) != SF_OK) return 1;
    FILE *file = fopen(doc_path, "w");
    int failed = file == NULL || fputs(text, file) < 0;
    if (file != NULL) failed |= fclose(file) != 0;
    free(text);
    printf("%s %s\n", failed ? "could not write" : "wrote", doc_path);
    return failed;
}

static const struct sf_test tests[] = {
    { "refuses_bad_yaml", refuses_bad_yaml },
    { "refuses_bad_keys", refuses_bad_keys },
    { "refuses_bad_values", refuses_bad_values },
    { "refuses_bad_sets", refuses_bad_sets },
    { "refuses_large_files", refuses_large_files },
    { "defaults", defaults },
    { "round_trip", round_trip },
    { "odd_texts", odd_texts },
    { "precedence", precedence },
    { "sets_of_lists", sets_of_lists },
    { "expands_environment", expands_environment },
    { "finds_the_model", finds_the_model },
    { "profiles", profiles },
    { "docs_are_fresh", docs_are_fresh },
    { NULL, NULL }
};

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--write") == 0) return write_docs();
    return sf_test_main("config", tests, argc, argv);
}
