/* coordinator/emit.c: finished records become lines.
 *
 *   OUT.jsonl                      one object a record, in the order in which they finish
 *   OUT.jsonl.run/manifest.json    the resolved configuration, the model's digest, totals */
#include "coordinator/emit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/json.h"
#include "base/log.h"
#include "base/rng.h"

enum { PATH_BYTES = 4096 };

struct sf_emit {
    const struct sf_run_spec *spec;
    int file;
    char folder[PATH_BYTES - 64], sha256[65], model[SF_OPT_TEXT_MAX];
    int64_t started;
};

static sf_status write_all(int file, const char *path, const char *bytes, size_t count)
{
    while (count > 0) {
        ssize_t done = write(file, bytes, count);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0)
            return SF_FAIL(SF_IO, "%s: could not be written: %s", path, strerror(errno));
        bytes += done;
        count -= (size_t)done;
    }
    return SF_OK;
}

/* ---- building objects: the first failure is kept, later calls do nothing ---- */

static void set(sf_status *status, struct sf_json *object, const char *key, struct sf_json *value)
{
    if (*status != SF_OK) sf_json_free(value);
    else *status = sf_json_set(object, key, value);
}

static struct sf_json *text_of(const char *text)
{
    return sf_json_new_text(text, strlen(text));
}

static struct sf_json *ids_of(const int32_t *id, size_t count)
{
    struct sf_json *array = sf_json_new(SF_JSON_ARRAY);
    sf_status status = array != NULL ? SF_OK : SF_NO_MEMORY;
    for (size_t i = 0; i < count && status == SF_OK; i++)
        status = sf_json_append(array, sf_json_new_int(id[i]));
    if (status == SF_OK) return array;
    sf_json_free(array);
    return NULL;
}

static struct sf_json *custom_id_of(const struct sf_record *request)
{
    return request->custom_id == NULL
               ? sf_json_new(SF_JSON_NULL)
               : sf_json_new_text(request->custom_id, request->custom_id_bytes);
}

static struct sf_json *methods_of(const struct sf_stack *stack)
{
    struct sf_json *array = sf_json_new(SF_JSON_ARRAY);
    for (int32_t i = 0; array != NULL && i < stack->entries; i++) {
        const char *name = stack->entry[i].method->name;
        if (sf_json_append(array, text_of(name)) == SF_OK) continue;
        sf_json_free(array);
        return NULL;
    }
    return array;
}

/* The output holds whole lines only: what was written of one that could not be finished (full
 * disk) is cut off again, as far as the file allows. */
static sf_status append_bytes(struct sf_emit *emit, const char *line, size_t bytes)
{
    off_t whole = lseek(emit->file, 0, SEEK_END);
    sf_status status = write_all(emit->file, emit->spec->output, line, bytes);
    if (status != SF_OK && whole >= 0 && ftruncate(emit->file, whole) != 0)
        sf_log(SF_LOG_WARN, "%s: its last line is torn: %s", emit->spec->output, strerror(errno));
    return status;
}

static sf_status append_line(struct sf_emit *emit, sf_status status, struct sf_json *root)
{
    char *line = NULL;
    size_t bytes = 0;
    if (status == SF_OK) status = sf_json_dump(root, 0, &line, &bytes);
    sf_json_free(root);
    if (status == SF_OK) {
        line[bytes] = '\n';             /* in place of the closing NUL: one write a record */
        status = append_bytes(emit, line, bytes + 1);
    }
    free(line);
    return status;
}

/* ---- an answer ---- */

static struct sf_json *receipt_of(const struct sf_emit *emit, const struct sf_wire_receipt *receipt)
{
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    set(&status, o, "methods", methods_of(&emit->spec->config->kv.stack));
    set(&status, o, "kv_bytes_exact", sf_json_new_int(receipt->bytes_exact));
    set(&status, o, "kv_bytes_stored", sf_json_new_int(receipt->bytes_stored));
    set(&status, o, "kv_bytes_peak", sf_json_new_int(receipt->bytes_peak));
    set(&status, o, "slots_evicted", sf_json_new_int(receipt->slots_evicted));
    set(&status, o, "slots_merged", sf_json_new_int(receipt->slots_merged));
    set(&status, o, "slots_requantised", sf_json_new_int(receipt->slots_requantised));
    if (status == SF_OK) return o;
    sf_json_free(o);
    return NULL;
}

static struct sf_json *choices_of(const struct sf_answer_out *answer)
{
    const struct sf_record *request = answer->request;
    struct sf_json *choice = sf_json_new(SF_JSON_OBJECT), *list = sf_json_new(SF_JSON_ARRAY);
    struct sf_json *text = sf_json_new_text(answer->text, answer->text_bytes);
    sf_status status = SF_OK;
    set(&status, choice, "index", sf_json_new_int(0));
    if (request->chat) {
        struct sf_json *message = sf_json_new(SF_JSON_OBJECT);
        set(&status, message, "role", text_of("assistant"));
        set(&status, message, "content", text);
        set(&status, choice, "message", message);
    } else {
        set(&status, choice, "text", text);
    }
    set(&status, choice, "logprobs", sf_json_new(SF_JSON_NULL));
    set(&status, choice, "finish_reason", text_of(answer->stopped ? "stop" : "length"));
    if (request->return_token_ids)
        set(&status, choice, "token_ids", ids_of(answer->token, (size_t)answer->tokens));
    if (status == SF_OK) status = sf_json_append(list, choice);
    else sf_json_free(choice);
    if (status == SF_OK) return list;
    sf_json_free(list);
    return NULL;
}

static struct sf_json *body_of(const struct sf_emit *emit, const struct sf_answer_out *answer,
                               const char *id)
{
    const struct sf_record *request = answer->request;
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT), *usage = sf_json_new(SF_JSON_OBJECT);
    int64_t prompt = (int64_t)request->prompt.count;
    sf_status status = SF_OK;
    set(&status, o, "id", text_of(id));
    set(&status, o, "object", text_of(request->chat ? "chat.completion" : "text_completion"));
    set(&status, o, "created", sf_json_new_int((int64_t)time(NULL)));
    set(&status, o, "model", text_of(emit->model));
    if (request->return_token_ids)
        set(&status, o, "prompt_token_ids", ids_of(request->prompt.id, request->prompt.count));
    set(&status, o, "choices", choices_of(answer));
    set(&status, usage, "prompt_tokens", sf_json_new_int(prompt));
    set(&status, usage, "completion_tokens", sf_json_new_int(answer->tokens));
    set(&status, usage, "total_tokens", sf_json_new_int(prompt + answer->tokens));
    set(&status, o, "usage", usage);
    set(&status, o, "sheaf", receipt_of(emit, &answer->receipt));
    if (status == SF_OK) return o;
    sf_json_free(o);
    return NULL;
}

sf_status sf_emit_answer(struct sf_emit *emit, const struct sf_answer_out *answer)
{
    char id[64], request_id[64];
    unsigned long long number = answer->number;
    snprintf(id, sizeof id, "%s-%llx-%llu", answer->request->chat ? "chatcmpl" : "cmpl",
             (unsigned long long)emit->started, number);
    snprintf(request_id, sizeof request_id, "req-%llx-%llu", (unsigned long long)emit->started,
             number);
    struct sf_json *root = sf_json_new(SF_JSON_OBJECT), *response = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    set(&status, root, "id", text_of(request_id));
    set(&status, root, "custom_id", custom_id_of(answer->request));
    set(&status, response, "status_code", sf_json_new_int(200));
    set(&status, response, "request_id", text_of(request_id));
    set(&status, response, "body", body_of(emit, answer, id));
    set(&status, root, "response", response);
    set(&status, root, "error", sf_json_new(SF_JSON_NULL));
    return append_line(emit, status, root);
}

sf_status sf_emit_error(struct sf_emit *emit, const struct sf_record *request, const char *words)
{
    char id[64];
    snprintf(id, sizeof id, "req-%llx-line-%lld", (unsigned long long)emit->started,
             (long long)request->line);
    struct sf_json *root = sf_json_new(SF_JSON_OBJECT), *error = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    set(&status, root, "id", text_of(id));
    set(&status, root, "custom_id", custom_id_of(request));
    set(&status, root, "response", sf_json_new(SF_JSON_NULL));
    set(&status, error, "code", text_of(request->code));
    set(&status, error, "message", text_of(words));
    set(&status, error, "line", sf_json_new_int(request->line));
    set(&status, root, "error", error);
    return append_line(emit, status, root);
}

/* ---- the manifest ---- */

static struct sf_json *totals_of(const struct sf_run_summary *sum)
{
    struct sf_json *o = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    set(&status, o, "records", sf_json_new_int(sum->records));
    set(&status, o, "answered", sf_json_new_int(sum->answered));
    set(&status, o, "errors", sf_json_new_int(sum->errors));
    set(&status, o, "prompt_tokens", sf_json_new_int(sum->prompt_tokens));
    set(&status, o, "output_tokens", sf_json_new_int(sum->output_tokens));
    set(&status, o, "seconds", sf_json_new_real(sum->seconds));
    set(&status, o, "output_tok_s",
        sf_json_new_real(sum->seconds > 0 ? (double)sum->output_tokens / sum->seconds : 0.0));
    set(&status, o, "kv_bytes_exact", sf_json_new_int(sum->kv_bytes_exact));
    set(&status, o, "kv_bytes_stored", sf_json_new_int(sum->kv_bytes_stored));
    set(&status, o, "kv_bytes_peak", sf_json_new_int(sum->kv_bytes_peak));
    set(&status, o, "slots_evicted", sf_json_new_int(sum->slots_evicted));
    set(&status, o, "batch_max", sf_json_new_int(sum->batch_max));
    if (status == SF_OK) return o;
    sf_json_free(o);
    return NULL;
}

/* One name for each rank, in rank order. */
static struct sf_json *hosts_of(const struct sf_cluster *cluster)
{
    struct sf_json *array = sf_json_new(SF_JSON_ARRAY);
    for (int32_t r = 0; array != NULL && r < cluster->ranks; r++) {
        if (sf_json_append(array, text_of(cluster->place[r].host)) == SF_OK) continue;
        sf_json_free(array);
        return NULL;
    }
    return array;
}

static sf_status write_manifest(struct sf_emit *emit, const struct sf_run_summary *sum)
{
    char path[PATH_BYTES], fresh[PATH_BYTES], hash[24], *text = NULL, *config = NULL;
    size_t bytes = 0;
    struct sf_json *root = sf_json_new(SF_JSON_OBJECT);
    sf_status status = sf_config_text(emit->spec->config, &config);
    set(&status, root, "version", text_of(SHEAF_VERSION " (git " SHEAF_GIT ")"));
    if (status == SF_OK) {
        snprintf(hash, sizeof hash, "%016llx",
                 (unsigned long long)sf_hash64(config, strlen(config)));
        set(&status, root, "config", text_of(config));
        set(&status, root, "config_hash", text_of(hash));
    }
    set(&status, root, "model", text_of(emit->spec->config->model.path));
    set(&status, root, "model_sha256", text_of(emit->sha256));
    set(&status, root, "ranks", sf_json_new_int(emit->spec->plan->ranks));
    set(&status, root, "hosts", hosts_of(emit->spec->cluster));
    set(&status, root, "started", sf_json_new_int(emit->started));
    set(&status, root, "finished", sum != NULL ? sf_json_new_int((int64_t)time(NULL))
                                               : sf_json_new(SF_JSON_NULL));
    if (sum != NULL) set(&status, root, "totals", totals_of(sum));
    if (status == SF_OK) status = sf_json_dump(root, 2, &text, &bytes);
    sf_json_free(root);
    free(config);
    SF_TRY(status);
    snprintf(path, sizeof path, "%s/manifest.json", emit->folder);
    snprintf(fresh, sizeof fresh, "%s/manifest.json.new", emit->folder);
    int file = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0) status = SF_FAIL(SF_IO, "%s: %s", fresh, strerror(errno));
    else status = write_all(file, fresh, text, bytes);
    if (file >= 0 && close(file) != 0 && status == SF_OK)
        status = SF_FAIL(SF_IO, "%s: %s", fresh, strerror(errno));
    if (status == SF_OK && rename(fresh, path) != 0)
        status = SF_FAIL(SF_IO, "%s: %s", path, strerror(errno));
    if (status != SF_OK) unlink(fresh);
    free(text);
    return status;
}

static sf_status open_files(struct sf_emit *emit)
{
    const char *output = emit->spec->output;
    if (snprintf(emit->folder, sizeof emit->folder, "%s.run", output) >= (int)sizeof emit->folder)
        return SF_FAIL(SF_INVALID, "--output has too long a path");
    SF_TRY(sf_model_sha256(emit->spec->model, emit->sha256));
    if (mkdir(emit->folder, 0777) != 0 && errno != EEXIST)
        return SF_FAIL(SF_IO, "%s: could not be created: %s", emit->folder, strerror(errno));
    SF_TRY(write_manifest(emit, NULL));
    emit->file = open(output, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
    if (emit->file < 0)
        return SF_FAIL(SF_IO, "%s: could not be created: %s", output, strerror(errno));
    return SF_OK;
}

sf_status sf_emit_open(const struct sf_run_spec *spec, struct sf_emit **out)
{
    struct sf_emit *emit = calloc(1, sizeof *emit);
    if (emit == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the output");
    const char *slash = strrchr(spec->config->model.path, '/');
    emit->spec = spec;
    emit->file = -1;
    emit->started = (int64_t)time(NULL);
    snprintf(emit->model, sizeof emit->model, "%s",
             slash != NULL ? slash + 1 : spec->config->model.path);
    sf_status status = open_files(emit);
    if (status != SF_OK) {
        sf_emit_close(emit);
        return status;
    }
    *out = emit;
    return SF_OK;
}

sf_status sf_emit_finish(struct sf_emit *emit, const struct sf_run_summary *sum)
{
    if (fsync(emit->file) != 0 && errno != EINVAL)
        return SF_FAIL(SF_IO, "%s: %s", emit->spec->output, strerror(errno));
    return write_manifest(emit, sum);
}

void sf_emit_close(struct sf_emit *emit)
{
    if (emit == NULL) return;
    if (emit->file >= 0) close(emit->file);
    free(emit);
}
