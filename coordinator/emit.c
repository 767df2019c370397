/* coordinator/emit.c: finished records become lines (emit.h). */
#include "coordinator/emit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/json.h"
#include "base/rng.h"

struct sf_emit {
    struct sf_output *output;
    struct sf_body_facts facts;
    char model[SF_OPT_TEXT_MAX];
    int64_t started;
};

static struct sf_json *custom_id_of(const struct sf_record *request)
{
    return request->custom_id == NULL
               ? sf_json_new(SF_JSON_NULL)
               : sf_json_new_text(request->custom_id, request->custom_id_bytes);
}

/* One write a record, which ends in a newline. */
static sf_status append(struct sf_emit *emit, sf_status status, struct sf_json *root,
                        struct sf_journal_finished *finished)
{
    char *line = NULL;
    size_t bytes = 0;
    if (status == SF_OK) status = sf_json_dump(root, 0, &line, &bytes);
    sf_json_free(root);
    if (status == SF_OK) {
        line[bytes++] = '\n';           /* in place of the closing NUL */
        finished->bytes = (int64_t)bytes;
        status = sf_output_line(emit->output, finished, line);
    }
    free(line);
    return status;
}

/* For the totals of a job that is resumed (output.h). */
static void sum_up(const struct sf_answer_out *answer, int64_t sum[SF_JOURNAL_SUMS])
{
    const struct sf_wire_receipt *receipt = &answer->receipt;
    sum[SF_SUM_PROMPT_TOKENS] = (int64_t)answer->request->prompt.count;
    for (int32_t i = 0; i < answer->choices; i++)
        sum[SF_SUM_OUTPUT_TOKENS] += answer->choice[i].tokens;
    sum[SF_SUM_BYTES_EXACT] = receipt->bytes_exact;
    sum[SF_SUM_BYTES_STORED] = receipt->bytes_stored;
    sum[SF_SUM_BYTES_PEAK] = receipt->bytes_peak;
    sum[SF_SUM_EVICTED] = receipt->slots_evicted;
    sum[SF_SUM_MERGED] = receipt->slots_merged;
    sum[SF_SUM_REQUANTISED] = receipt->slots_requantised;
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
    struct sf_json *body = NULL;
    struct sf_body_facts facts = emit->facts;
    facts.id = id;
    sf_status status = sf_answer_body(answer, &facts, &body);
    sf_json_put(&status, root, "id", sf_json_new_words(request_id));
    sf_json_put(&status, root, "custom_id", custom_id_of(answer->request));
    sf_json_put(&status, response, "status_code", sf_json_new_int(200));
    sf_json_put(&status, response, "request_id", sf_json_new_words(request_id));
    sf_json_put(&status, response, "body", body);
    sf_json_put(&status, root, "response", response);
    sf_json_put(&status, root, "error", sf_json_new(SF_JSON_NULL));
    struct sf_journal_finished finished = {.line = answer->request->line};
    sum_up(answer, finished.sum);
    return append(emit, status, root, &finished);
}

sf_status sf_emit_error(struct sf_emit *emit, const struct sf_record *request, const char *words)
{
    char id[64];
    snprintf(id, sizeof id, "req-%llx-line-%lld", (unsigned long long)emit->started,
             (long long)request->line);
    struct sf_json *root = sf_json_new(SF_JSON_OBJECT), *error = sf_json_new(SF_JSON_OBJECT);
    sf_status status = SF_OK;
    sf_json_put(&status, root, "id", sf_json_new_words(id));
    sf_json_put(&status, root, "custom_id", custom_id_of(request));
    sf_json_put(&status, root, "response", sf_json_new(SF_JSON_NULL));
    sf_json_put(&status, error, "code", sf_json_new_words(request->code));
    sf_json_put(&status, error, "message", sf_json_new_words(words));
    sf_json_put(&status, error, "line", sf_json_new_int(request->line));
    sf_json_put(&status, root, "error", error);
    struct sf_journal_finished finished = {.line = request->line, .error = 1};
    return append(emit, status, root, &finished);
}

sf_status sf_emit_open(const struct sf_run_spec *spec, struct sf_output *output,
                       struct sf_emit **out)
{
    struct sf_emit *emit = calloc(1, sizeof *emit);
    if (emit == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the output");
    const char *slash = strrchr(spec->config->model.path, '/');
    emit->output = output;
    emit->started = (int64_t)time(NULL);
    snprintf(emit->model, sizeof emit->model, "%s",
             slash != NULL ? slash + 1 : spec->config->model.path);
    emit->facts = (struct sf_body_facts){.model = emit->model,
                                         .stack = &spec->config->kv.stack,
                                         .setup = spec->plan != NULL ? &spec->plan->setup : NULL,
                                         .tokenizer = spec->tokenizer};
    *out = emit;
    return SF_OK;
}

void sf_emit_close(struct sf_emit *emit) { free(emit); }
