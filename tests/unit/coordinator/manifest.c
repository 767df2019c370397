/* tests/unit/coordinator/manifest.c: is an earlier run the same job?
 *
 * Two configurations that differ in one key, for every kind of key: those that may differ do, all
 * others are named with both values; stacks that differ in length, order, method or one option; a
 * text of an older sheaf, without a key, and one with a key that is not known.  Manifests that are
 * none: other JSON, other types, cut at every byte, changed bytes, random ones. */
#include "coordinator/manifest.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/rng.h"
#include "tests/check.h"

enum { TEXT_BYTES = 1 << 16 };
#define SHA "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static char path[64];

static void store(const char *text, size_t bytes)
{
    if (path[0] == '\0') {
        snprintf(path, sizeof path, "%s/sheaf-manifest-XXXXXX",
                 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        int file = mkstemp(path);
        if (file < 0 || close(file) != 0) abort();
    }
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(text, 1, bytes, file) != bytes || fclose(file) != 0) abort();
}

static void drop(void)
{
    unlink(path);
    path[0] = '\0';
}

/* What a run with this configuration would have in its manifest. */
static struct sf_manifest manifest_of(const char *yaml)
{
    struct sf_manifest manifest = {.model_sha256 = SHA};
    struct sf_config config;
    SF_CHECK_OK(sf_config_parse("job", yaml, strlen(yaml), NULL, &config));
    SF_CHECK_OK(sf_config_text(&config, &manifest.config));
    sf_config_free(&config);
    return manifest;
}

#define HEAD "schema_version: 1\nmodel: {path: a.gguf}\n"
#define STACK "kv_cache: {methods: [{name: window, recent_tokens: 64}]}\n"

/* words "": the same job. */
static void check_pair(const char *was, const char *is, const char *words)
{
    struct sf_manifest manifest = manifest_of(was);
    struct sf_config config;
    SF_CHECK_OK(sf_config_parse("job", is, strlen(is), NULL, &config));
    sf_status status = sf_manifest_same_job(&manifest, &config, SHA);
    SF_CHECK_INT(status, words[0] == '\0' ? SF_OK : SF_INVALID);
    const char *said = sf_error_text();
    if (status != SF_OK && (strstr(said, words) == NULL || strchr(said, '\n') != NULL ||
                            strstr(said, "--force") == NULL))
        sf_test_fail(__FILE__, __LINE__, "words are \"%s\", without \"%s\"", said, words);
    sf_config_free(&config);
    sf_manifest_free(&manifest);
}

static void keys(void)
{
    static const struct { const char *is, *words; } cases[] = {
        {HEAD, ""},
        {HEAD "parallel: {pipeline_parallel_size: 2, pipeline_layers: [14, 16]}\n", ""},
        {HEAD "parallel: {data_parallel_size: auto, head_placement: identity}\n", ""},
        {HEAD "device: cpu\n", ""},
        {HEAD "kv_cache: {memory: 1GiB}\n", ""},
        {HEAD "run: {rank_timeout_s: 7}\n", ""},
        {"schema_version: 1\nmodel: {path: elsewhere/b.gguf}\n", ""},
        {"schema_version: 1\nmodel: {path: a.gguf, dtype: f32}\n",
         "model.dtype: bf16 and this one has f32"},
        {HEAD "kv_cache: {block_size: 32}\n", "kv_cache.block_size: auto and this one has 32"},
        {HEAD "kv_cache: {dtype: f16}\n", "kv_cache.dtype: auto and this one has f16"},
        {HEAD "scheduler: {max_num_seqs: 3}\n",
         "scheduler.max_num_seqs: 256 and this one has 3"},
        {HEAD "sampling: {temperature: 0.5}\n", "sampling.temperature: 0 and this one has 0.5"},
        {HEAD "sampling: {seed: -3}\n", "sampling.seed: 0 and this one has -3"},
        {HEAD "run: {deterministic: true}\n",
         "run.deterministic: false and this one has true"},
        {HEAD STACK, "kv_cache.methods.0: nothing and this one has window"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        check_pair(HEAD, cases[i].is, cases[i].words);
        check_pair(cases[i].is, cases[i].is, "");
    }
    check_pair(HEAD "kv_cache: {memory: 1GiB, dtype: f32}\n", HEAD "kv_cache: {memory: 2GiB}\n",
               "kv_cache.dtype: f32 and this one has auto");
}

static void stacks(void)
{
#define METHODS(list) HEAD "kv_cache: {methods: [" list "]}\n"
    check_pair(HEAD STACK, HEAD STACK, "");
    /* Where a profile lies does not matter, what it says does. */
#define RAZOR(rest) METHODS("{name: razor_attention, " rest "}")
    check_pair(RAZOR("retrieval_heads: [[0, 1]], profile: a.yaml"),
               RAZOR("retrieval_heads: [[0, 1]], profile: there/b.yaml"), "");
    check_pair(RAZOR("retrieval_heads: [[0, 1]], profile: a.yaml"),
               RAZOR("retrieval_heads: [[0, 2]], profile: a.yaml"),
               "kv_cache.methods.0.retrieval_heads");
    check_pair(HEAD STACK, HEAD, "kv_cache.methods.0: window and this one has nothing");
    check_pair(METHODS("{name: window, recent_tokens: 64}"),
               METHODS("{name: window, recent_tokens: 65}"),
               "kv_cache.methods.0.recent_tokens: 64 and this one has 65");
    check_pair(METHODS("{name: window}"), METHODS("{name: none}"),
               "kv_cache.methods.0.name: window and this one has none");
    check_pair(METHODS("{name: window}"), METHODS("{name: window}, {name: none}"),
               "kv_cache.methods.1: nothing and this one has none");
    check_pair(METHODS("{name: window}, {name: none}"), METHODS("{name: window}"),
               "kv_cache.methods.1: none and this one has nothing");
    check_pair(METHODS("{name: window, layers: \"0-3\"}"), METHODS("{name: window}"),
               "kv_cache.methods.0.layers: 0-3 and this one has nothing");
    check_pair(METHODS("{name: window}"), METHODS("{name: window, layers: \"0-3\"}"),
               "kv_cache.methods.0.layers: nothing and this one has 0-3");
}

static void others(void)
{
    struct sf_config config;
    struct sf_manifest manifest = manifest_of(HEAD);
    SF_CHECK_OK(sf_config_parse("job", HEAD, strlen(HEAD), NULL, &config));
    SF_CHECK_FAILS(sf_manifest_same_job(&manifest, &config, "fedc" SHA), SF_INVALID);
    SF_CHECK(strstr(sf_error_text(), SHA " and this one has fedc0123") != NULL);
    /* An older sheaf did not know a key: its default counts. */
    char *line = strstr(manifest.config, "  deterministic: false\n");
    SF_CHECK(line != NULL);
    if (line != NULL) memmove(line, strchr(line, '\n') + 1, strlen(strchr(line, '\n')));
    SF_CHECK_OK(sf_manifest_same_job(&manifest, &config, SHA));
    /* A newer one knew more. */
    sf_manifest_free(&manifest);
    manifest.config = strdup(HEAD "run: {from_the_future: 1}\n");
    SF_CHECK_FAILS(sf_manifest_same_job(&manifest, &config, SHA), SF_INVALID);
    SF_CHECK(strstr(sf_error_text(), "from_the_future") != NULL &&
             strstr(sf_error_text(), "--force") != NULL);
    sf_config_free(&config);
    sf_manifest_free(&manifest);
}

/* ---- files ---- */

static const char whole[] =
    "{\"version\": \"1\", \"config\": \"schema_version: 1\\n\", \"config_hash\": \"0\",\n"
    "\"model\": \"a.gguf\", \"model_sha256\": \"" SHA "\", \"finished\": null}\n";

static void files(void)
{
    struct sf_manifest manifest = {.finished = 9};
    store(whole, sizeof whole - 1);
    SF_CHECK_OK(sf_manifest_read(path, &manifest));
    SF_CHECK_STR(manifest.config, "schema_version: 1\n");
    SF_CHECK_STR(manifest.model_sha256, SHA);
    SF_CHECK_INT(manifest.finished, 0);
    sf_manifest_free(&manifest);
    static char text[TEXT_BYTES];
    snprintf(text, sizeof text, "%.*s17}", (int)(strstr(whole, "null") - whole), whole);
    store(text, strlen(text));
    SF_CHECK_OK(sf_manifest_read(path, &manifest));
    SF_CHECK_INT(manifest.finished, 1);
    sf_manifest_free(&manifest);

    static const char *const bad[] = {
        "", "7", "[]", "{}", "{\"config\": \"x\", \"model_sha256\": \"" SHA "\"}",
        "{\"config\": 7, \"model_sha256\": \"" SHA "\", \"finished\": null}",
        "{\"config\": \"a\\u0000b\", \"model_sha256\": \"" SHA "\", \"finished\": null}",
        "{\"config\": \"x\", \"model_sha256\": \"0123\", \"finished\": null}"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        store(bad[i], strlen(bad[i]));
        SF_CHECK_FAILS(sf_manifest_read(path, &manifest), SF_FORMAT);
        SF_CHECK(strstr(sf_error_text(), path) != NULL);
    }
    drop();
    SF_CHECK_FAILS(sf_manifest_read("/nonexistent/manifest.json", &manifest), SF_IO);
    SF_CHECK_FAILS(sf_manifest_read("/tmp", &manifest), SF_FORMAT);
}

static void damaged_files(void)
{
    static char text[TEXT_BYTES];
    struct sf_manifest full = manifest_of(HEAD STACK), manifest;
    struct sf_config config;
    SF_CHECK_OK(sf_config_parse("job", HEAD STACK, strlen(HEAD STACK), NULL, &config));
    size_t bytes = (size_t)snprintf(text, sizeof text, "{\"model_sha256\": \"" SHA
                                    "\", \"finished\": 3, \"config\": \"");
    for (const char *c = full.config; *c != '\0'; c++) {
        if (*c == '\n' || *c == '"' || *c == '\\') text[bytes++] = '\\';
        text[bytes++] = *c == '\n' ? 'n' : *c;
    }
    bytes += (size_t)snprintf(text + bytes, sizeof text - bytes, "\"}");
    for (uint64_t round = 0; round < 2 * bytes; round++) {
        size_t at = (size_t)(round % bytes);
        char old = text[at];
        if (round >= bytes) text[at] = (char)sf_rng_u64(3, round, 0);
        store(text, round < bytes ? at : bytes);
        text[at] = old;
        sf_status status = sf_manifest_read(path, &manifest);
        SF_CHECK(status == SF_OK || status == SF_FORMAT);
        SF_CHECK(round >= bytes || status == SF_FORMAT);
        if (status != SF_OK) continue;
        status = sf_manifest_same_job(&manifest, &config, SHA);
        SF_CHECK(status == SF_OK || status == SF_INVALID);
        sf_manifest_free(&manifest);
    }
    for (uint64_t round = 0; round < 500; round++) {
        size_t count = (size_t)(sf_rng_u64(4, round, 0) % 300);
        for (size_t i = 0; i < count; i++) text[i] = (char)sf_rng_u64(5, round, i);
        store(text, count);
        SF_CHECK_FAILS(sf_manifest_read(path, &manifest), SF_FORMAT);
    }
    sf_config_free(&config);
    sf_manifest_free(&full);
    drop();
}

static const struct sf_test tests[] = {
    {"keys", keys},
    {"stacks", stacks},
    {"others", others},
    {"files", files},
    {"damaged files", damaged_files},
    {NULL, NULL}};
SF_TEST_MAIN("manifest", tests)
