/* tests/unit/coordinator/emit.c: what a run leaves behind is what interface.md section 4 says.
 *
 * Members of an answer (chat and text, with and without token ids), of an error and of the
 * manifest, each as exact list of keys and values; texts with quotes, line ends and NULs stay one
 * line; the output is never overwritten; a disk that is full in the middle of a record leaves
 * whole lines only and says so (played by a limit on the size of files). */
#include "coordinator/emit.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/json.h"
#include "coordinator/cluster.h"
#include "tests/check.h"
#include "tests/unit/model/tiny_gguf.h"

static char folder[64], output[128], shadow[160], manifest[192];

struct made {                           /* a run without workers */
    struct sf_config config;
    struct sf_model *model;
    struct sf_cluster cluster;
    struct sf_launch_plan plan;
    struct sf_run_spec spec;
};

static int make(struct made *m)
{
    static const char text[] = "schema_version: 1\nmodel: {path: models/some.gguf}\n"
                               "kv_cache: {methods: [{name: window}]}\n";
    *m = (struct made){.plan = {.ranks = 2}};
    snprintf(folder, sizeof folder, "/tmp/sheaf-emit-XXXXXX");
    if (mkdtemp(folder) == NULL) abort();
    snprintf(output, sizeof output, "%s/out.jsonl", folder);
    snprintf(shadow, sizeof shadow, "%s.run", output);
    snprintf(manifest, sizeof manifest, "%s/manifest.json", shadow);
    struct tiny_spec spec = tiny_default();
    struct tiny_file file = tiny_make(&spec);
    sf_status status = sf_model_open(tiny_path(file.bytes, file.count), &m->model);
    tiny_free(&file);
    if (status == SF_OK) status = sf_config_parse("job", text, strlen(text), NULL, &m->config);
    if (status == SF_OK) status = sf_cluster_make(2, 1, 4, 1 << 30, &m->cluster);
    m->spec = (struct sf_run_spec){.config = &m->config, .plan = &m->plan, .model = m->model,
                                   .cluster = &m->cluster, .output = output};
    SF_CHECK_OK(status);
    return status == SF_OK;
}

static void drop(struct made *m)
{
    unlink(manifest);
    rmdir(shadow);
    unlink(output);
    SF_CHECK_INT(rmdir(folder), 0);             /* nothing else was left in it */
    sf_cluster_free(&m->cluster);
    sf_config_free(&m->config);
    sf_model_close(m->model);
    tiny_close();
}

/* The value of the file's last line, or of all of it; *lines_out: how many lines it has. */
static struct sf_json *read_file(const char *path, int whole, int *lines_out)
{
    static char text[1 << 16];
    FILE *file = fopen(path, "rb");
    size_t bytes = file != NULL ? fread(text, 1, sizeof text, file) : 0, start = 0;
    struct sf_json *value = NULL;
    if (file != NULL) fclose(file);
    *lines_out = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] != '\n') continue;
        ++*lines_out;
        if (i + 1 < bytes && !whole) start = i + 1;
    }
    SF_CHECK_OK(sf_json_parse(text + start, bytes - start, sizeof text, &value));
    return value;
}

/* The value at a path such as "response.body.choices.0.text". */
static const struct sf_json *at(const struct sf_json *value, const char *path)
{
    char part[64];
    while (value != NULL && *path != '\0') {
        size_t bytes = strcspn(path, ".");
        snprintf(part, sizeof part, "%.*s", (int)bytes, path);
        value = part[0] >= '0' && part[0] <= '9' ? sf_json_item(value, (size_t)atoi(part))
                                                 : sf_json_member(value, part);
        path += bytes + (path[bytes] == '.');
    }
    return value;
}

static const char *text_at(const struct sf_json *root, const char *path)
{
    const char *text = sf_json_text(at(root, path), NULL);
    return text != NULL ? text : "(no text)";
}

static int64_t int_at(const struct sf_json *root, const char *path)
{
    int64_t number = -999;
    (void)sf_json_get_int(at(root, path), &number);
    return number;
}

/* "a b c": the keys of an object, in order. */
static void check_keys(const struct sf_json *root, const char *path, const char *keys)
{
    char got[512] = "";
    const struct sf_json *value, *object = at(root, path);
    for (const char *key = sf_json_next(object, NULL, &value); key != NULL;
         key = sf_json_next(object, key, &value))
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%s", got[0] != '\0' ? " " : "",
                 key);
    SF_CHECK_STR(got, keys);
}

static int is_null(const struct sf_json *root, const char *path)
{
    const struct sf_json *value = at(root, path);
    return value != NULL && sf_json_type(value) == SF_JSON_NULL;
}

static char id[] = "r\n\"1\"";
static int32_t prompt_ids[] = {4, 5, 6}, answer_ids[] = {7, 8};

static struct sf_record request_of(int chat, int ids)
{
    return (struct sf_record){.custom_id = id, .custom_id_bytes = strlen(id), .line = 3,
                              .chat = (uint8_t)chat, .return_token_ids = (uint8_t)ids,
                              .prompt = {.id = prompt_ids, .count = 3, .capacity = 3},
                              .code = "invalid_value"};
}

static struct sf_answer_out answer_to(const struct sf_record *request, int stopped)
{
    return (struct sf_answer_out){.request = request, .number = 9, .text = "a\nb\"\0c",
                                  .text_bytes = 6, .token = answer_ids, .tokens = 2,
                                  .stopped = stopped,
                                  .receipt = {.bytes_exact = 100, .bytes_stored = 50,
                                              .bytes_peak = 128, .slots_evicted = 3,
                                              .slots_merged = 2, .slots_requantised = 1}};
}

static void check_answer(const struct sf_json *line, int chat, int ids, int stopped)
{
    size_t bytes = 0;
    check_keys(line, "", "id custom_id response error");
    check_keys(line, "response", "status_code request_id body");
    check_keys(line, "response.body", ids ? "id object created model prompt_token_ids choices usage"
                                            " sheaf"
                                          : "id object created model choices usage sheaf");
    SF_CHECK_STR(text_at(line, "custom_id"), id);
    SF_CHECK(is_null(line, "error"));
    SF_CHECK_INT(int_at(line, "response.status_code"), 200);
    SF_CHECK_STR(text_at(line, "response.request_id"), text_at(line, "id"));
    SF_CHECK(strncmp(text_at(line, "response.body.id"), chat ? "chatcmpl-" : "cmpl-",
                     chat ? 9 : 5) == 0);
    SF_CHECK_STR(text_at(line, "response.body.object"), chat ? "chat.completion"
                                                             : "text_completion");
    SF_CHECK(int_at(line, "response.body.created") > 1700000000);
    SF_CHECK_STR(text_at(line, "response.body.model"), "some.gguf");
    SF_CHECK_INT(sf_json_count(at(line, "response.body.choices")), 1);
    const struct sf_json *choice = at(line, "response.body.choices.0");
    check_keys(choice, "", chat && ids ? "index message logprobs finish_reason token_ids"
                           : chat ? "index message logprobs finish_reason"
                           : ids ? "index text logprobs finish_reason token_ids"
                                 : "index text logprobs finish_reason");
    SF_CHECK_INT(int_at(choice, "index"), 0);
    SF_CHECK(is_null(choice, "logprobs"));
    SF_CHECK_STR(text_at(choice, "finish_reason"), stopped ? "stop" : "length");
    const char *text = sf_json_text(at(choice, chat ? "message.content" : "text"), &bytes);
    SF_CHECK(text != NULL && bytes == 6 && memcmp(text, "a\nb\"\0c", 6) == 0);
    if (chat) check_keys(choice, "message", "role content");
    if (chat) SF_CHECK_STR(text_at(choice, "message.role"), "assistant");
    if (ids) SF_CHECK_INT(int_at(choice, "token_ids.1"), 8);
    if (ids) SF_CHECK_INT(int_at(line, "response.body.prompt_token_ids.2"), 6);
    check_keys(line, "response.body.usage", "prompt_tokens completion_tokens total_tokens");
    SF_CHECK_INT(int_at(line, "response.body.usage.total_tokens"), 5);
    check_keys(line, "response.body.sheaf", "methods kv_bytes_exact kv_bytes_stored kv_bytes_peak "
               "slots_evicted slots_merged slots_requantised");
    SF_CHECK_STR(text_at(line, "response.body.sheaf.methods.0"), "window");
    SF_CHECK_INT(int_at(line, "response.body.sheaf.kv_bytes_exact"), 100);
    SF_CHECK_INT(int_at(line, "response.body.sheaf.kv_bytes_stored"), 50);
    SF_CHECK_INT(int_at(line, "response.body.sheaf.slots_requantised"), 1);
}

static void answers(void)
{
    struct made m;
    struct sf_emit *emit;
    int lines;
    if (!make(&m)) return;
    SF_MUST(sf_emit_open(&m.spec, &emit));
    for (int i = 0; i < 8; i++) {
        struct sf_record request = request_of(i & 1, i >> 1 & 1);
        struct sf_answer_out answer = answer_to(&request, i >> 2 & 1);
        SF_CHECK_OK(sf_emit_answer(emit, &answer));
        struct sf_json *line = read_file(output, 0, &lines);
        SF_CHECK_INT(lines, i + 1);
        check_answer(line, i & 1, i >> 1 & 1, i >> 2 & 1);
        sf_json_free(line);
    }
    sf_emit_close(emit);
    drop(&m);
}

static void errors(void)
{
    struct made m;
    struct sf_emit *emit;
    int lines;
    if (!make(&m)) return;
    SF_MUST(sf_emit_open(&m.spec, &emit));
    struct sf_record request = request_of(0, 0);
    SF_CHECK_OK(sf_emit_error(emit, &request, "body.n is \"2\""));
    struct sf_json *line = read_file(output, 0, &lines);
    check_keys(line, "", "id custom_id response error");
    check_keys(line, "error", "code message line");
    SF_CHECK_STR(text_at(line, "custom_id"), id);
    SF_CHECK(is_null(line, "response"));
    SF_CHECK_STR(text_at(line, "error.code"), "invalid_value");
    SF_CHECK_STR(text_at(line, "error.message"), "body.n is \"2\"");
    SF_CHECK_INT(int_at(line, "error.line"), 3);
    sf_json_free(line);
    request.custom_id = NULL;                           /* nothing of the line could be read */
    SF_CHECK_OK(sf_emit_error(emit, &request, "bytes \xff that are no text"));
    line = read_file(output, 0, &lines);
    SF_CHECK_INT(lines, 2);
    SF_CHECK(is_null(line, "custom_id"));
    SF_CHECK_STR(text_at(line, "error.message"), "bytes \xef\xbf\xbd that are no text");
    sf_json_free(line);
    sf_emit_close(emit);
    drop(&m);
}

static void manifests(void)
{
    struct made m;
    struct sf_emit *emit;
    int lines;
    if (!make(&m)) return;
    SF_MUST(sf_emit_open(&m.spec, &emit));
    struct sf_json *json = read_file(manifest, 1, &lines);  /* already there while the job runs */
    SF_CHECK(is_null(json, "finished"));
    SF_CHECK(at(json, "totals") == NULL);
    sf_json_free(json);
    const struct sf_run_summary sum = {.records = 5, .answered = 4, .errors = 1,
        .prompt_tokens = 30, .output_tokens = 20, .kv_bytes_exact = 1000, .kv_bytes_stored = 500,
        .kv_bytes_peak = 600, .slots_evicted = 7, .seconds = 4.0, .batch_max = 3};
    SF_CHECK_OK(sf_emit_finish(emit, &sum));
    json = read_file(manifest, 1, &lines);
    check_keys(json, "", "version config config_hash model model_sha256 ranks hosts started "
               "finished totals");
    check_keys(json, "totals", "records answered errors prompt_tokens output_tokens seconds "
               "output_tok_s kv_bytes_exact kv_bytes_stored kv_bytes_peak slots_evicted batch_max");
    SF_CHECK_INT(strlen(text_at(json, "model_sha256")), 64);
    SF_CHECK_INT(strlen(text_at(json, "config_hash")), 16);
    SF_CHECK_INT(sf_json_count(at(json, "hosts")), 2);
    SF_CHECK_INT(int_at(json, "ranks"), 2);
    SF_CHECK_INT(int_at(json, "totals.answered"), 4);
    double rate = 0;
    SF_CHECK(sf_json_get_real(at(json, "totals.output_tok_s"), &rate));
    SF_CHECK_NEAR(rate, 5.0, 1e-12);
    struct sf_config again = {0};                       /* the resolved configuration, whole */
    const char *config = text_at(json, "config");
    SF_CHECK_OK(sf_config_parse("again", config, strlen(config), NULL, &again));
    sf_config_free(&again);
    sf_json_free(json);
    sf_emit_close(emit);
    drop(&m);
}

static void never_overwrites(void)
{
    struct made m;
    struct sf_emit *emit = NULL;
    if (!make(&m)) return;
    FILE *file = fopen(output, "w");
    if (file == NULL || fputs("precious\n", file) < 0 || fclose(file) != 0) abort();
    SF_CHECK_FAILS(sf_emit_open(&m.spec, &emit), SF_IO);
    char text[32] = "";
    file = fopen(output, "r");
    SF_CHECK(file != NULL && fgets(text, sizeof text, file) != NULL);
    if (file != NULL) fclose(file);
    SF_CHECK_STR(text, "precious\n");
    drop(&m);
}

/* Room for two records and a half. */
static void full_disk(void)
{
    struct made m;
    struct sf_emit *emit;
    int lines;
    if (!make(&m)) return;
    SF_MUST(sf_emit_open(&m.spec, &emit));
    struct sf_record request = request_of(0, 0);
    struct sf_answer_out answer = answer_to(&request, 1);
    SF_CHECK_OK(sf_emit_answer(emit, &answer));
    FILE *file = fopen(output, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) abort();
    long bytes = ftell(file);
    fclose(file);

    struct rlimit old, tight;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    tight = (struct rlimit){.rlim_cur = (rlim_t)(5 * bytes / 2), .rlim_max = old.rlim_max};
    SF_CHECK_INT(setrlimit(RLIMIT_FSIZE, &tight), 0);
    sf_status second = sf_emit_answer(emit, &answer), third = sf_emit_answer(emit, &answer);
    char words[256];
    snprintf(words, sizeof words, "%s", sf_error_text());
    setrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, handler);
    SF_CHECK_INT(second, SF_OK);
    SF_CHECK_INT(third, SF_IO);
    SF_CHECK(strstr(words, "out.jsonl: could not be written: File too large") != NULL);
    struct sf_json *line = read_file(output, 0, &lines);
    SF_CHECK_INT(lines, 2);
    check_answer(line, 0, 0, 1);
    sf_json_free(line);
    SF_CHECK_OK(sf_emit_answer(emit, &answer));         /* there is room again */
    line = read_file(output, 0, &lines);
    SF_CHECK_INT(lines, 3);
    sf_json_free(line);
    sf_emit_close(emit);
    drop(&m);
}

static const struct sf_test tests[] = {
    {"answers", answers},
    {"errors", errors},
    {"manifests", manifests},
    {"never overwrites", never_overwrites},
    {"full disk", full_disk},
    {NULL, NULL}};
SF_TEST_MAIN("emit", tests)
