/* tests/unit/coordinator/input_speed.c: what text costs on its way in and out, in MB a second of
 * CPU time, stage by stage, and that each stage hands on what it got.
 *
 *   test_input_speed speed [IN.jsonl]
 *
 *   lines     the file, line by line               records  lines to requests: JSON, checks, tokens
 *   JSON      the lines as values                  text     tokens to the text of an answer
 *   tokens    the texts of prompts                 answers  that, and lines of the output, journal
 *                                                           and all
 * MB are of the file for lines, JSON and records, else of the texts in it.  Without IN.jsonl the
 * prompts are files of the source tree, cut up.  The digest of all ids tells whether two builds
 * agree.  No figure is a promise here. */
#include <dirent.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/json.h"
#include "base/lines.h"
#include "base/rng.h"
#include "coordinator/config.h"
#include "coordinator/emit.h"
#include "coordinator/manifest.h"
#include "coordinator/request.h"
#include "model/weights.h"
#include "tests/check.h"
#include "tests/unit/model/tiny_gguf.h"

enum { LINE_BYTES_MAX = 64 << 20, PIECE_BYTES = 6000, PATH_BYTES = 512 };

static const char *input_path;          /* the second argument */
static char folder[64], made_input[128], output[128];
static struct sf_model *model;
static struct sf_tokenizer *tokenizer;

struct prompts {                        /* the texts of the file, and their ids */
    char **text; size_t *bytes, count, capacity, capacity_bytes;
    struct sf_tokens ids;               /* of all, one after the other */
    size_t *ids_end;                    /* [count] */
    size_t text_bytes, file_bytes;
};

static double cpu_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void print_rate(const char *stage, size_t bytes, double start)
{
    double taken = cpu_seconds() - start;
    printf("  figure: %-8s %8.1f MB/s (%.1f MB in %.3f s)\n", stage, (double)bytes / 1e6 / taken,
           (double)bytes / 1e6, taken);
}

/* ---- input ----------------------------------------------------------------------------------- */
static void write_record(FILE *out, const char *text, size_t bytes, int *number)
{
    struct sf_json *root = sf_json_new(SF_JSON_OBJECT), *body = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    char id[32], *line = NULL;
    size_t line_bytes;
    snprintf(id, sizeof id, "r%d", ++*number);
    sf_json_put(&status, body, "prompt", sf_json_new_text(text, bytes));
    sf_json_put(&status, root, "custom_id", sf_json_new_words(id));
    sf_json_put(&status, root, "url", sf_json_new_words("/v1/completions"));
    sf_json_put(&status, root, "body", body);
    if (status == SF_OK) status = sf_json_dump(root, 0, &line, &line_bytes);
    SF_ASSERT(status == SF_OK && fwrite(line, 1, line_bytes, out) == line_bytes);
    fputc('\n', out);
    free(line);
    sf_json_free(root);
}

static void write_folder(FILE *out, const char *name, int *number)
{
    char path[PATH_BYTES];
    static char text[1 << 20];
    snprintf(path, sizeof path, "%s/%s", SHEAF_SOURCE_DIR, name);
    DIR *dir = opendir(path);
    struct dirent *entry;
    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        size_t length = strlen(entry->d_name);
        if (length < 3 || (strcmp(entry->d_name + length - 2, ".c") != 0 &&
                           strcmp(entry->d_name + length - 2, "md") != 0))
            continue;
        char file_path[2 * PATH_BYTES];
        snprintf(file_path, sizeof file_path, "%s/%s", path, entry->d_name);
        FILE *file = fopen(file_path, "rb");
        size_t bytes = file != NULL ? fread(text, 1, sizeof text, file) : 0;
        if (file != NULL) fclose(file);
        for (size_t at = 0; at < bytes; at += PIECE_BYTES)
            write_record(out, text + at, bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES,
                         number);
    }
    if (dir != NULL) closedir(dir);
}

static int make_input(void)
{
    snprintf(folder, sizeof folder, "/tmp/sheaf-speed-XXXXXX");
    if (mkdtemp(folder) == NULL) return 0;
    snprintf(made_input, sizeof made_input, "%s/in.jsonl", folder);
    snprintf(output, sizeof output, "%s/out.jsonl", folder);
    if (input_path != NULL) return 1;
    FILE *out = fopen(made_input, "w");
    int number = 0;
    if (out == NULL) return 0;
    write_folder(out, "docs", &number);
    write_folder(out, "model", &number);
    write_folder(out, "coordinator", &number);
    input_path = made_input;
    return fclose(out) == 0 && number > 0;
}

static int open_tokenizer(void)
{
    const char *path = sf_test_model();
    if (path == NULL) {                 /* all 256 bytes and three merges */
        struct tiny_spec spec = tiny_default();
        struct tiny_file file = tiny_make(&spec);
        path = tiny_path(file.bytes, file.count);
        tiny_free(&file);
    }
    return sf_model_open(path, &model) == SF_OK && sf_tokenizer_create(model, &tokenizer) == SF_OK;
}

/* ---- in -------------------------------------------------------------------------------------- */
static void read_lines(struct prompts *p)
{
    struct sf_line_reader *reader;
    struct sf_line line = {.kind = SF_LINE_TEXT};
    double start = cpu_seconds();
    SF_MUST(sf_line_reader_open(input_path, LINE_BYTES_MAX, &reader));
    do SF_CHECK_OK(sf_line_reader_next(reader, &line));
    while (line.kind != SF_LINE_END);
    p->file_bytes = (size_t)line.offset;
    print_rate("lines", p->file_bytes, start);
    sf_line_reader_close(reader);
}

/* The text of a prompt, or of all messages one after the other. */
static void keep_text(struct prompts *p, const struct sf_json *root)
{
    const struct sf_json *body = sf_json_member(root, "body");
    const struct sf_json *messages = sf_json_member(body, "messages");
    size_t count = messages == NULL ? 1 : sf_json_count(messages), bytes;
    for (size_t i = 0; i < count; i++) {
        const struct sf_json *value = messages == NULL ? sf_json_member(body, "prompt")
                                : sf_json_member(sf_json_item(messages, i), "content");
        const char *text = sf_json_text(value, &bytes);
        if (text == NULL) continue;
        if (sf_grow((void **)&p->text, &p->capacity, p->count + 1, sizeof *p->text) != SF_OK ||
            sf_grow((void **)&p->bytes, &p->capacity_bytes, p->count + 1, sizeof *p->bytes) !=
                SF_OK)
            abort();
        p->text[p->count] = malloc(bytes + 1);
        SF_ASSERT(p->text[p->count] != NULL);
        memcpy(p->text[p->count], text, bytes + 1);
        p->bytes[p->count++] = bytes;
        p->text_bytes += bytes;
    }
}

static void read_values(struct prompts *p)
{
    struct sf_line_reader *reader;
    struct sf_line line;
    double taken = 0, start = cpu_seconds();
    SF_MUST(sf_line_reader_open(input_path, LINE_BYTES_MAX, &reader));
    for (;;) {
        struct sf_json *root = NULL;
        SF_CHECK_OK(sf_line_reader_next(reader, &line));
        if (line.kind == SF_LINE_END) break;
        SF_CHECK_OK(sf_json_parse(line.text, line.bytes, LINE_BYTES_MAX, &root));
        double kept = cpu_seconds();
        keep_text(p, root);
        taken += cpu_seconds() - kept;
        sf_json_free(root);
    }
    print_rate("JSON", p->file_bytes, start + taken);
    sf_line_reader_close(reader);
}

static void encode(struct prompts *p)
{
    p->ids_end = calloc(p->count + 1, sizeof *p->ids_end);
    SF_ASSERT(p->ids_end != NULL);
    double start = cpu_seconds();
    for (size_t i = 0; i < p->count; i++) {
        SF_CHECK_OK(sf_tokenizer_encode(tokenizer, p->text[i], p->bytes[i], 1, 1, &p->ids));
        p->ids_end[i] = p->ids.count;
    }
    print_rate("tokens", p->text_bytes, start);
    printf("  %zu tokens of %zu texts, digest %016llx\n", p->ids.count, p->count,
           (unsigned long long)sf_hash64(p->ids.id, p->ids.count * sizeof *p->ids.id));
}

static void read_records(const struct prompts *p)
{
    const struct sf_record_limits limits = {.tokenizer = tokenizer,
                                            .vocab = sf_tokenizer_vocab(tokenizer),
                                            .tokens_max = INT32_MAX,
                                            .text_bytes_max = INT64_MAX};
    struct sf_line_reader *reader;
    struct sf_line line;
    size_t tokens = 0;
    double start = cpu_seconds();
    SF_MUST(sf_line_reader_open(input_path, LINE_BYTES_MAX, &reader));
    for (;;) {
        struct sf_record record;
        SF_CHECK_OK(sf_line_reader_next(reader, &line));
        if (line.kind == SF_LINE_END) break;
        SF_CHECK_OK(sf_record_parse(&limits, line.text, line.bytes, line.number, &record));
        tokens += record.prompt.count;
        sf_record_free(&record);
    }
    print_rate("records", p->file_bytes, start);
    SF_CHECK(tokens >= p->ids.count);   /* chats have marks around their texts */
    sf_line_reader_close(reader);
}

/* ---- out: the prompts once more, as answers -------------------------------------------------- */
static void write_texts(const struct prompts *p, struct sf_emit *emit)
{
    size_t bytes = 0, first = 0, same = 0;
    double start = cpu_seconds();
    for (size_t i = 0; i < p->count; first = p->ids_end[i++]) {
        struct sf_answer_text text = {0};
        int32_t tokens = (int32_t)(p->ids_end[i] - first);
        SF_CHECK_OK(sf_answer_text_reserve(&text, tokens));
        for (size_t t = first; t < p->ids_end[i]; t++)
            if (sf_answer_text_push(&text, tokenizer, p->ids.id[t]) != SF_OK) abort();
        SF_CHECK_OK(sf_answer_text_end(&text));
        bytes += text.bytes;
        same += text.bytes == p->bytes[i] && memcmp(text.text, p->text[i], text.bytes) == 0;
        if (emit != NULL) {
            struct sf_record record = {.custom_id = folder, .custom_id_bytes = strlen(folder),
                                       .line = (int64_t)i + 1, .choices = 1, .logprobs = -1,
                                       .prompt_logprobs = -1};
            struct sf_choice_out choice = {.text = text.text, .text_bytes = text.bytes,
                                           .token = p->ids.id + first, .tokens = tokens};
            struct sf_answer_out answer = {.request = &record, .number = i, .choice = &choice,
                                           .choices = 1};
            SF_CHECK_OK(sf_emit_answer(emit, &answer));
        }
        free(text.text);
    }
    print_rate(emit == NULL ? "text" : "answers", bytes, start);
    /* SmolLM2 has no tokens for some bytes, and the marks of control tokens have no text. */
    SF_CHECK(same * 10 >= p->count * 9);
}

static void write_answers(const struct prompts *p)
{
    static const char text[] = "schema_version: 1\nmodel: {path: models/some.gguf}\n";
    struct sf_config config;
    struct sf_output *file;
    struct sf_emit *emit;
    char path[192];
    SF_MUST(sf_config_parse("job", text, strlen(text), NULL, &config));
    struct sf_run_spec spec = {.config = &config, .tokenizer = tokenizer,
                               .files = {.input = input_path, .output = output}};
    SF_MUST(sf_manifest_folder(&spec));
    SF_MUST(sf_output_create(output, &file));
    SF_MUST(sf_emit_open(&spec, file, &emit));
    write_texts(p, emit);
    sf_emit_close(emit);
    sf_output_close(file);
    sf_config_free(&config);
    snprintf(path, sizeof path, "%s.run/journal", output);
    unlink(path);
    snprintf(path, sizeof path, "%s.run", output);
    rmdir(path);
    unlink(output);
}

static void test_speed(void)
{
    struct prompts p = {0};
    if (!make_input() || !open_tokenizer()) {
        SF_CHECK(!"an input and a tokenizer");
        return;
    }
    read_lines(&p);
    read_values(&p);
    SF_CHECK(p.count > 0);
    encode(&p);
    read_records(&p);
    write_texts(&p, NULL);
    write_answers(&p);
    for (size_t i = 0; i < p.count; i++) free(p.text[i]);
    free(p.text), free(p.bytes), free(p.ids.id), free(p.ids_end);
    sf_tokenizer_destroy(tokenizer);
    sf_model_close(model);
    tiny_close();
    unlink(made_input);
    rmdir(folder);
}

static const struct sf_test tests[] = { { "speed", test_speed }, { NULL, NULL } };

int main(int argc, char **argv)
{
    if (argc > 2) input_path = argv[2];
    return sf_test_main("input_speed", tests, argc, argv);
}
