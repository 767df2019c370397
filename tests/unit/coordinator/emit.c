/* tests/unit/coordinator/emit.c: what a run leaves behind is what interface.md section 4 says.
 *
 * Members of an answer (chat and text, with and without token ids, of one choice and of two), of an
 * error and of the manifest (of a job that runs, was stopped, goes on, has finished), each as exact
 * list of keys and values; texts with quotes, line ends and NULs stay one line; the journal gets
 * what a resumed job sums up. */
#include "coordinator/emit.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "coordinator/cluster.h"
#include "coordinator/manifest.h"
#include "tests/check.h"
#include "tests/unit/model/tiny_gguf.h"

static char folder[64], input[128], output[128], shadow[160], manifest[192], journal[192];
static const char digest[] = "0123456789012345678901234567890123456789012345678901234567890123";

struct made {                           /* a run without workers */
    struct sf_output *output;
    struct sf_emit *emit;
    struct sf_config config;
    struct sf_model *model;
    struct sf_cluster cluster;
    struct sf_launch_plan plan;
    struct sf_run_spec spec;
};

static sf_status make_files(struct made *m)
{
    snprintf(folder, sizeof folder, "/tmp/sheaf-emit-XXXXXX");
    if (mkdtemp(folder) == NULL) abort();
    snprintf(input, sizeof input, "%s/in.jsonl", folder);
    snprintf(output, sizeof output, "%s/out.jsonl", folder);
    snprintf(shadow, sizeof shadow, "%s.run", output);
    snprintf(manifest, sizeof manifest, "%s/manifest.json", shadow);
    snprintf(journal, sizeof journal, "%s/journal", shadow);
    FILE *file = fopen(input, "w");
    if (file == NULL || fputs("abc", file) < 0 || fclose(file) != 0) abort();
    m->spec.files = (struct sf_run_files){.input = input, .output = output};
    SF_TRY(sf_manifest_folder(&m->spec));
    SF_TRY(sf_manifest_start(&m->spec));
    SF_TRY(sf_output_create(output, &m->output));
    return sf_emit_open(&m->spec, m->output, &m->emit);
}

static int make(struct made *m)
{
    static const char text[] = "schema_version: 1\nmodel: {path: models/some.gguf}\n"
                               "kv_cache: {methods: [{name: window}]}\n";
    *m = (struct made){.plan = {.ranks = 2}};
    struct tiny_spec spec = tiny_default();
    struct tiny_file file = tiny_make(&spec);
    sf_status status = sf_model_open(tiny_path(file.bytes, file.count), &m->model);
    tiny_free(&file);
    if (status == SF_OK) status = sf_config_parse("job", text, strlen(text), NULL, &m->config);
    if (status == SF_OK) status = sf_cluster_make(2, 1, 4, 1 << 30, &m->cluster);
    m->spec = (struct sf_run_spec){.config = &m->config, .plan = &m->plan, .model = m->model,
                                   .cluster = &m->cluster, .model_sha256 = digest};
    if (status == SF_OK) status = make_files(m);
    SF_CHECK_OK(status);
    return status == SF_OK;
}

static void drop(struct made *m)
{
    sf_emit_close(m->emit);
    sf_output_close(m->output);
    unlink(journal);
    unlink(manifest);
    SF_CHECK_INT(rmdir(shadow), 0);             /* nothing else was left in them */
    unlink(output);
    unlink(input);
    SF_CHECK_INT(rmdir(folder), 0);
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
    char got[1024] = "";
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

static struct sf_record request_of(int chat, int ids, int32_t choices)
{
    return (struct sf_record){.custom_id = id, .custom_id_bytes = strlen(id), .line = 3,
                              .chat = (uint8_t)chat, .return_token_ids = (uint8_t)ids,
                              .choices = choices, .logprobs = -1, .prompt_logprobs = -1,
                              .prompt = {.id = prompt_ids, .count = 3, .capacity = 3},
                              .code = "invalid_value"};
}

static struct sf_answer_out answer_to(const struct sf_record *request, int stopped)
{
    static struct sf_choice_out choice[2];
    for (int i = 0; i < 2; i++)
        choice[i] = (struct sf_choice_out){.text = "a\nb\"\0c", .text_bytes = 6,
                                           .token = answer_ids, .tokens = 2, .stopped = stopped};
    return (struct sf_answer_out){.request = request, .number = 9, .choice = choice,
                                  .choices = request->choices,
                                  .receipt = {.bytes_exact = 100, .bytes_stored = 50,
                                              .bytes_peak = 128, .slots_evicted = 3,
                                              .slots_merged = 2, .slots_requantised = 1}};
}

static void check_choice(const struct sf_json *choice, int index, int chat, int ids, int stopped)
{
    size_t bytes = 0;
    check_keys(choice, "", chat && ids ? "index message logprobs finish_reason token_ids"
                           : chat ? "index message logprobs finish_reason"
                           : ids ? "index text logprobs finish_reason token_ids"
                                 : "index text logprobs finish_reason");
    SF_CHECK_INT(int_at(choice, "index"), index);
    SF_CHECK(is_null(choice, "logprobs"));
    SF_CHECK_STR(text_at(choice, "finish_reason"), stopped ? "stop" : "length");
    const char *text = sf_json_text(at(choice, chat ? "message.content" : "text"), &bytes);
    SF_CHECK(text != NULL && bytes == 6 && memcmp(text, "a\nb\"\0c", 6) == 0);
    if (chat) check_keys(choice, "message", "role content");
    if (chat) SF_CHECK_STR(text_at(choice, "message.role"), "assistant");
    if (ids) SF_CHECK_INT(int_at(choice, "token_ids.1"), 8);
}

static void check_answer(const struct sf_json *line, int choices, int chat, int ids, int stopped)
{
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
    const struct sf_json *list = at(line, "response.body.choices");
    SF_CHECK_INT(sf_json_count(list), choices);
    for (int i = 0; i < choices; i++)
        check_choice(sf_json_item(list, (size_t)i), i, chat, ids, stopped);
    if (ids) SF_CHECK_INT(int_at(line, "response.body.prompt_token_ids.2"), 6);
    check_keys(line, "response.body.usage", "prompt_tokens completion_tokens total_tokens");
    SF_CHECK_INT(int_at(line, "response.body.usage.prompt_tokens"), 3);
    SF_CHECK_INT(int_at(line, "response.body.usage.total_tokens"), 3 + 2 * choices);
    check_keys(line, "response.body.sheaf", "methods kv_bytes_exact kv_bytes_stored kv_bytes_peak "
               "slots_evicted slots_merged slots_requantised");
    SF_CHECK_STR(text_at(line, "response.body.sheaf.methods.0"), "window");
    SF_CHECK_INT(int_at(line, "response.body.sheaf.kv_bytes_exact"), 100);
    SF_CHECK_INT(int_at(line, "response.body.sheaf.kv_bytes_stored"), 50);
    SF_CHECK_INT(int_at(line, "response.body.sheaf.slots_requantised"), 1);
}

/* The n-th entry of the journal, which is that of a finished line. */
static struct sf_journal_finished entry_at(int n)
{
    struct sf_journal_reader *reader;
    struct sf_journal_entry entry = {.kind = SF_JOURNAL_END};
    SF_CHECK_OK(sf_journal_reader_open(journal, &reader));
    for (int i = 0; i <= n; i++) SF_CHECK_OK(sf_journal_reader_next(reader, &entry));
    SF_CHECK_INT(entry.kind, SF_JOURNAL_FINISHED);
    sf_journal_reader_close(reader);
    return entry.finished;
}

static void answers(void)
{
    static const int64_t sums[] = {3, 4, 100, 50, 128, 3, 2, 1};
    struct made m;
    int lines;
    if (!make(&m)) return;
    for (int i = 0; i < 16; i++) {
        struct sf_record request = request_of(i & 1, i >> 1 & 1, 1 + (i >> 3 & 1));
        struct sf_answer_out answer = answer_to(&request, i >> 2 & 1);
        SF_CHECK_OK(sf_emit_answer(m.emit, &answer));
        struct sf_json *line = read_file(output, 0, &lines);
        SF_CHECK_INT(lines, i + 1);
        check_answer(line, request.choices, i & 1, i >> 1 & 1, i >> 2 & 1);
        sf_json_free(line);
    }
    struct sf_journal_finished entry = entry_at(15);
    SF_CHECK_INT(entry.line, 3);
    SF_CHECK_INT(entry.error, 0);
    SF_CHECK_INT(entry.offset + entry.bytes, sf_output_bytes(m.output));
    for (int i = 0; i < SF_SUMS; i++) SF_CHECK_INT(entry.sum[i], sums[i]);
    drop(&m);
}

static void errors(void)
{
    struct made m;
    int lines;
    if (!make(&m)) return;
    struct sf_record request = request_of(0, 0, 1);
    SF_CHECK_OK(sf_emit_error(m.emit, &request, "body.n is \"2\""));
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
    SF_CHECK_OK(sf_emit_error(m.emit, &request, "bytes \xff that are no text"));
    line = read_file(output, 0, &lines);
    SF_CHECK_INT(lines, 2);
    SF_CHECK(is_null(line, "custom_id"));
    SF_CHECK_STR(text_at(line, "error.message"), "bytes \xef\xbf\xbd that are no text");
    sf_json_free(line);
    struct sf_journal_finished entry = entry_at(1);
    SF_CHECK_INT(entry.line, 3);
    SF_CHECK_INT(entry.error, 1);
    for (int i = 0; i < SF_SUMS; i++) SF_CHECK_INT(entry.sum[i], 0);
    drop(&m);
}

/* ---- the manifest ---------------------------------------------------------------------------- */
static const struct sf_run_summary sum = {.records = 5, .answered = 4, .errors = 1,
    .answered_before = 3, .errors_before = 1, .prompt_tokens = 30, .output_tokens = 25,
    .kv_bytes_exact = 1000, .kv_bytes_stored = 500, .kv_bytes_peak = 600, .slots_evicted = 7,
    .sampled_tokens = 20, .replayed_tokens = 6, .reused_tokens = 16, .preempted = 2,
    .tightened = 9,    .seconds = 4.0, .replay_seconds = 0.5, .batch_max = 3};
#define RUNNING "version config config_hash model model_sha256 ranks hosts started resumes finished"

static void check_totals(const struct sf_json *json)
{
    double rate = 0;
    check_keys(json, "totals", "records answered errors answered_before errors_before "
               "prompt_tokens output_tokens sampled_tokens seconds output_tok_s kv_bytes_exact "
               "kv_bytes_stored kv_bytes_peak slots_evicted slots_merged slots_requantised "
               "replayed_tokens replay_seconds reused_tokens preempted tightened steps rows "
               "prompt_rows batch_max");
    SF_CHECK_INT(int_at(json, "totals.tightened"), 9);
    SF_CHECK_INT(int_at(json, "totals.answered"), 4);
    SF_CHECK_INT(int_at(json, "totals.answered_before"), 3);
    SF_CHECK_INT(int_at(json, "totals.replayed_tokens"), 6);
    SF_CHECK_INT(int_at(json, "totals.kv_bytes_peak"), 600);
    SF_CHECK(sf_json_get_real(at(json, "totals.output_tok_s"), &rate));
    SF_CHECK_NEAR(rate, 5.0, 1e-12);    /* of what this run has sampled */
}

/* SHA-256 of "abc" stands in FIPS 180-4. */
static void check_finished(const struct sf_json *json, int resumes)
{
    check_keys(json, "", RUNNING " totals digests");
    check_keys(json, "digests", "input_sha256 output_sha256");
    SF_CHECK_STR(text_at(json, "digests.input_sha256"),
                 "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    SF_CHECK_INT(strlen(text_at(json, "digests.output_sha256")), 64);
    SF_CHECK(int_at(json, "finished") >= int_at(json, "started"));
    SF_CHECK_INT(int_at(json, "resumes"), resumes);
    check_totals(json);
    SF_CHECK_STR(text_at(json, "model"), "models/some.gguf");
    SF_CHECK_STR(text_at(json, "model_sha256"), digest);
    SF_CHECK_INT(strlen(text_at(json, "config_hash")), 16);
    SF_CHECK_INT(sf_json_count(at(json, "hosts")), 2);
    SF_CHECK_INT(int_at(json, "ranks"), 2);
    struct sf_config again = {0};                       /* the resolved configuration, whole */
    const char *config = text_at(json, "config");
    SF_CHECK_OK(sf_config_parse("again", config, strlen(config), NULL, &again));
    sf_config_free(&again);
}

static void manifests(void)
{
    struct made m;
    int lines;
    if (!make(&m)) return;
    struct sf_json *json = read_file(manifest, 1, &lines);  /* already there while the job runs */
    check_keys(json, "", RUNNING);
    SF_CHECK(is_null(json, "finished"));
    SF_CHECK(int_at(json, "started") > 1700000000);
    SF_CHECK_INT(int_at(json, "resumes"), 0);
    int64_t started = int_at(json, "started");
    sf_json_free(json);
    SF_CHECK_OK(sf_manifest_finish(&m.spec, &sum, 1));  /* was told to stop */
    json = read_file(manifest, 1, &lines);
    check_keys(json, "", RUNNING " totals");
    SF_CHECK(is_null(json, "finished"));
    check_totals(json);
    sf_json_free(json);
    m.spec.files.resume = 1;
    SF_CHECK_OK(sf_manifest_start(&m.spec));
    json = read_file(manifest, 1, &lines);
    check_keys(json, "", RUNNING);
    SF_CHECK_INT(int_at(json, "resumes"), 1);
    SF_CHECK_INT(int_at(json, "started"), started);
    sf_json_free(json);
    SF_CHECK_OK(sf_manifest_finish(&m.spec, &sum, 0));
    json = read_file(manifest, 1, &lines);
    check_finished(json, 1);
    sf_json_free(json);
    m.spec.files.resume = 0;                            /* a new job in the same place */
    SF_CHECK_OK(sf_manifest_start(&m.spec));
    json = read_file(manifest, 1, &lines);
    SF_CHECK_INT(int_at(json, "resumes"), 0);
    sf_json_free(json);
    unlink(manifest);
    m.spec.files.resume = 1;                            /* there is nothing to resume */
    SF_CHECK_OK(sf_manifest_start(&m.spec));
    json = read_file(manifest, 1, &lines);
    SF_CHECK_INT(int_at(json, "resumes"), 0);
    sf_json_free(json);
    drop(&m);
}

static const struct sf_test tests[] = {
    {"answers", answers},
    {"errors", errors},
    {"manifests", manifests},
    {NULL, NULL}};
SF_TEST_MAIN("emit", tests)
