/* coordinator/request.c: reads records of the OpenAI batch form. */
#include "coordinator/request.h"

#include <errno.h>
#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/rng.h"

enum { RECORD_BYTES_MAX = 64 << 20, COMPLETION_TOKENS = 16, SHOWN_BYTES = 48,
       BIASES_MAX = 4096, STOPS_MAX = 64, CHOICES_MAX = 128, TOPS_MAX = 20,
       /* of one record: each is up to 1 KB while its line is made */
       LOGPROBS_MAX = 1 << 22 };

struct reader {
    const struct sf_record_limits *limits;
    const struct sf_json *body;
    struct sf_record *out;
};

/* Notes the kind of the error; the words follow as in SF_FAIL. */
#define REFUSE(out, kind, ...)                                                                     \
    (snprintf((out)->code, sizeof (out)->code, "%s", (kind)), SF_FAIL(SF_INVALID, __VA_ARGS__))

static const char *const ignored[] = {"model", "user", "metadata"};
static const char *const mine[] = {"messages", "prompt", "max_tokens", "max_completion_tokens",
                                   "temperature", "top_p", "top_k", "min_p", "presence_penalty",
                                   "frequency_penalty", "repetition_penalty", "logit_bias", "seed",
                                   "stop", "ignore_eos", "return_token_ids", "n", "best_of",
                                   "logprobs", "top_logprobs", "echo", "prompt_logprobs",
                                   "stream"};

static int is_among(const char *key, const char *const *name, size_t names)
{
    for (size_t i = 0; i < names; i++)
        if (strcmp(key, name[i]) == 0) return 1;
    return 0;
}

static sf_status check_fields(const struct reader *r)
{
    const struct sf_json *value;
    for (const char *key = sf_json_next(r->body, NULL, &value); key != NULL;
         key = sf_json_next(r->body, key, &value))
        if (!is_among(key, mine, sizeof mine / sizeof mine[0]) &&
            !is_among(key, ignored, sizeof ignored / sizeof ignored[0]))
            return REFUSE(r->out, "unknown_field", "body.%.100s is not a field we know", key);
    return SF_OK;
}

static sf_status read_bool(const struct reader *r, const char *key, uint8_t *out)
{
    const struct sf_json *value = sf_json_member(r->body, key);
    if (value == NULL || sf_json_type(value) == SF_JSON_NULL) return SF_OK;
    enum sf_json_type type = sf_json_type(value);
    if (type != SF_JSON_TRUE && type != SF_JSON_FALSE)
        return REFUSE(r->out, "invalid_value", "body.%s is %s; allowed: true or false", key,
                      sf_json_type_name(value));
    *out = type == SF_JSON_TRUE;
    return SF_OK;
}

/* A value as a message shows it: the number, or what else it is. */
static const char *shown(const struct sf_json *value, char *buffer, size_t bytes)
{
    int64_t integer;
    double real;
    if (sf_json_get_int(value, &integer)) snprintf(buffer, bytes, "%lld", (long long)integer);
    else if (sf_json_get_real(value, &real)) snprintf(buffer, bytes, "%.17g", real);
    else snprintf(buffer, bytes, "%s", sf_json_type_name(value));
    return buffer;
}

/* Absent or null: *out stays. */
static sf_status read_int(const struct reader *r, const char *key, int64_t min, int64_t max,
                          int64_t *out)
{
    const struct sf_json *value = sf_json_member(r->body, key);
    if (value == NULL || sf_json_type(value) == SF_JSON_NULL) return SF_OK;
    int64_t number;
    char text[SHOWN_BYTES];
    if (!sf_json_get_int(value, &number) || number < min || number > max)
        return REFUSE(r->out, "invalid_value", "body.%s is %s; allowed: integers from %lld to %lld",
                      key, shown(value, text, sizeof text), (long long)min, (long long)max);
    *out = number;
    return SF_OK;
}

/* The same for numbers.  min DBL_MIN: above 0. */
static sf_status read_real(const struct reader *r, const char *key, double min, double max,
                           double *out)
{
    const struct sf_json *value = sf_json_member(r->body, key);
    if (value == NULL || sf_json_type(value) == SF_JSON_NULL) return SF_OK;
    double number;
    char text[SHOWN_BYTES];
    if (!sf_json_get_real(value, &number) || !(number >= min && number <= max)) {
        int open = min == DBL_MIN;
        return REFUSE(r->out, "invalid_value", "body.%s is %s; allowed: numbers %s %g to %g", key,
                      shown(value, text, sizeof text), open ? "above" : "from", open ? 0.0 : min,
                      max);
    }
    *out = number;
    return SF_OK;
}

/* ---- what is asked for ---- */

/* A number of likeliest tokens; absent, null or false: none, and *out stays. */
static sf_status read_tops(const struct reader *r, const char *key, int32_t *out)
{
    const struct sf_json *value = sf_json_member(r->body, key);
    int64_t tops = *out;
    if (value == NULL || sf_json_type(value) == SF_JSON_FALSE) return SF_OK;
    SF_TRY(read_int(r, key, 0, TOPS_MAX, &tops));
    *out = (int32_t)tops;
    return SF_OK;
}

static sf_status read_logprobs(const struct reader *r)
{
    struct sf_record *out = r->out;
    int64_t tops = 0;
    uint8_t asked = 0;
    SF_TRY(read_int(r, "top_logprobs", 0, TOPS_MAX, &tops));
    if (out->chat) {
        SF_TRY(read_bool(r, "logprobs", &asked));
        if (asked) out->logprobs = (int32_t)tops;
        else if (tops > 0)
            return REFUSE(out, "invalid_value", "body.top_logprobs is %d; allowed: 0, or beside it "
                          "logprobs: true", (int)tops);
    } else {
        SF_TRY(read_tops(r, "logprobs", &out->logprobs));
        if (tops > 0)
            return REFUSE(out, "invalid_value", "body.top_logprobs is %d; allowed: 0 (with url "
                          "/v1/completions the number stands in logprobs)", (int)tops);
    }
    SF_TRY(read_tops(r, "prompt_logprobs", &out->prompt_logprobs));
    out->score_prompt = out->prompt_logprobs >= 0 || (out->echo && out->logprobs >= 0);
    return SF_OK;
}

/* The form of the answer: what of it, how often, beside what. */
static sf_status read_form(const struct reader *r)
{
    struct sf_record *out = r->out;
    int64_t choices = 1, best_of = -1;
    uint8_t stream = 0;
    SF_TRY(read_int(r, "n", 1, CHOICES_MAX, &choices));
    SF_TRY(read_int(r, "best_of", 1, INT32_MAX, &best_of));
    if (best_of >= 0 && best_of != choices)
        return REFUSE(out, "unsupported_field", "body.best_of is %d; allowed: %d, which is n",
                      (int)best_of, (int)choices);
    out->choices = (int32_t)choices;
    SF_TRY(read_bool(r, "stream", &stream));
    if (stream)
        return REFUSE(out, "unsupported_field",
                      "body.stream is true; allowed: false (an answer is one line)");
    SF_TRY(read_bool(r, "echo", &out->echo));
    if (out->echo && out->chat)
        return REFUSE(out, "unsupported_field",
                      "body.echo is true; allowed with url /v1/chat/completions: false");
    SF_TRY(read_logprobs(r));
    SF_TRY(read_bool(r, "ignore_eos", &out->ignore_eos));
    return read_bool(r, "return_token_ids", &out->return_token_ids);
}

/* ---- prompts ---- */

static sf_status check_text_bytes(const struct reader *r, size_t bytes)
{
    if ((int64_t)bytes <= r->limits->text_bytes_max) return SF_OK;
    return REFUSE(r->out, "too_long", "the prompt has %zu bytes; with one token of answer at most "
                  "%d tokens fit (scheduler.max_model_len)", bytes, r->limits->tokens_max);
}

static sf_status need_tokenizer(const struct reader *r, const char *key)
{
    if (r->limits->tokenizer != NULL) return SF_OK;
    return REFUSE(r->out, "unsupported_field",
                  "body.%s is text, but the model has no tokenizer: give token ids", key);
}

static sf_status keep_echo(const struct reader *r, const char *text, size_t bytes)
{
    r->out->echo_text = malloc(bytes + 1);
    if (r->out->echo_text == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a prompt's text");
    memcpy(r->out->echo_text, text, bytes + 1);
    r->out->echo_text_bytes = bytes;
    return SF_OK;
}

static sf_status read_prompt(const struct reader *r)
{
    const struct sf_json *prompt = sf_json_member(r->body, "prompt");
    if (prompt == NULL) return REFUSE(r->out, "missing_field", "body.prompt is missing");
    size_t bytes;
    const char *text = sf_json_text(prompt, &bytes);
    if (text != NULL) {
        /* The writer of a raw prompt writes the template's control tokens himself. */
        SF_TRY(need_tokenizer(r, "prompt"));
        SF_TRY(check_text_bytes(r, bytes));
        if (r->out->echo) SF_TRY(keep_echo(r, text, bytes));
        return sf_tokenizer_encode(r->limits->tokenizer, text, bytes, 1, 1, &r->out->prompt);
    }
    if (sf_json_type(prompt) != SF_JSON_ARRAY)
        return REFUSE(r->out, "invalid_value", "body.prompt is %s; allowed: text or token ids",
                      sf_json_type_name(prompt));
    size_t count = sf_json_count(prompt);
    r->out->prompt.id = calloc(count + 1, sizeof *r->out->prompt.id);
    if (r->out->prompt.id == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for a prompt of %zu tokens", count);
    r->out->prompt.capacity = count + 1;
    for (size_t i = 0; i < count; i++) {
        int64_t id;
        char words[SHOWN_BYTES];
        const struct sf_json *item = sf_json_item(prompt, i);
        if (!sf_json_get_int(item, &id) || id < 0 || id >= r->limits->vocab)
            return REFUSE(r->out, "invalid_value",
                          "body.prompt[%zu] is %s; allowed: token ids from 0 to %d", i,
                          shown(item, words, sizeof words), r->limits->vocab - 1);
        r->out->prompt.id[r->out->prompt.count++] = (int32_t)id;
    }
    return SF_OK;
}

/* The text of a message: a string, or the texts of a list of parts, one after the other. */
static sf_status read_content(const struct reader *r, size_t number, const struct sf_json *content,
                              char **text_out, size_t *bytes_out)
{
    size_t parts = sf_json_type(content) == SF_JSON_ARRAY ? sf_json_count(content) : 1, total = 0;
    char *all = NULL;
    for (size_t i = 0; i < parts; i++) {
        const struct sf_json *part = content;
        if (sf_json_type(content) == SF_JSON_ARRAY) {
            const char *type =
                sf_json_text(sf_json_member(sf_json_item(content, i), "type"), NULL);
            part = sf_json_member(sf_json_item(content, i), "text");
            if (type == NULL || strcmp(type, "text") != 0) part = NULL;
        }
        size_t bytes;
        const char *text = sf_json_text(part, &bytes);
        char *grown = text != NULL ? realloc(all, total + bytes + 1) : NULL;
        if (grown == NULL) {
            free(all);
            return REFUSE(r->out, "invalid_value",
                          "body.messages[%zu].content must be text or a list of text parts",
                          number);
        }
        all = grown;
        memcpy(all + total, text, bytes);
        total += bytes;
    }
    if (all == NULL) all = calloc(1, 1);
    *text_out = all;
    *bytes_out = total;
    return all != NULL ? SF_OK : SF_FAIL(SF_NO_MEMORY, "no memory for a message");
}

/* What a message may hold; a template that we know says nothing of the name. */
static sf_status check_message(const struct reader *r, size_t number, const struct sf_json *message)
{
    const struct sf_json *value;
    if (sf_json_type(message) != SF_JSON_OBJECT)
        return REFUSE(r->out, "invalid_value", "body.messages[%zu] is %s; allowed: an object with "
                      "role and content", number, sf_json_type_name(message));
    for (const char *key = sf_json_next(message, NULL, &value); key != NULL;
         key = sf_json_next(message, key, &value))
        if (strcmp(key, "role") != 0 && strcmp(key, "content") != 0 && strcmp(key, "name") != 0 &&
            sf_json_type(value) != SF_JSON_NULL)
            return REFUSE(r->out, "unsupported_field",
                          "body.messages[%zu].%.100s is not supported; allowed: role, content, "
                          "name", number, key);
    if (sf_json_text(sf_json_member(message, "role"), NULL) == NULL ||
        sf_json_member(message, "content") == NULL)
        return REFUSE(r->out, "missing_field", "body.messages[%zu] needs role and content", number);
    return SF_OK;
}

/* The prompt of messages that were looked at; their text in all is bounded before it is encoded. */
static sf_status encode_messages(const struct reader *r, const struct sf_message *message,
                                 size_t count)
{
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++) bytes += message[i].content_bytes;
    SF_TRY(check_text_bytes(r, bytes));
    return sf_chat_encode(r->limits->tokenizer, message, count, &r->out->prompt);
}

static sf_status read_messages(const struct reader *r)
{
    const struct sf_json *messages = sf_json_member(r->body, "messages");
    if (messages == NULL) return REFUSE(r->out, "missing_field", "body.messages is missing");
    size_t count = sf_json_count(messages), read = 0;
    if (sf_json_type(messages) != SF_JSON_ARRAY || count == 0)
        return REFUSE(r->out, "invalid_value", "body.messages is %s; allowed: a list of messages",
                      sf_json_type(messages) == SF_JSON_ARRAY ? "empty"
                                                              : sf_json_type_name(messages));
    SF_TRY(need_tokenizer(r, "messages"));
    struct sf_message *message = calloc(count, sizeof *message);
    if (message == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %zu messages", count);
    sf_status status = SF_OK;
    for (; read < count && status == SF_OK; read++) {
        const struct sf_json *from = sf_json_item(messages, read);
        char *text;
        status = check_message(r, read, from);
        if (status == SF_OK)
            status = read_content(r, read, sf_json_member(from, "content"), &text,
                                  &message[read].content_bytes);
        if (status != SF_OK) break;
        message[read].role = sf_json_text(sf_json_member(from, "role"), NULL);
        message[read].content = text;
    }
    if (status == SF_OK) status = encode_messages(r, message, count);
    for (size_t i = 0; i < read; i++) free((void *)(uintptr_t)message[i].content);
    free(message);
    return status;
}

/* ---- the rest of the body ---- */

static sf_status read_lengths(const struct reader *r)
{
    struct sf_record *out = r->out;
    int64_t most = -1, prompt = (int64_t)out->prompt.count, left = r->limits->tokens_max - prompt;
    int may_be_none = !out->chat && (out->echo || out->prompt_logprobs >= 0);
    SF_TRY(read_int(r, "max_tokens", !may_be_none, INT32_MAX, &most));
    SF_TRY(read_int(r, "max_completion_tokens", !may_be_none, INT32_MAX, &most));
    if (prompt == 0) return REFUSE(out, "invalid_value", "the prompt is empty");
    if (left < 1)
        return REFUSE(out, "too_long", "the prompt has %lld tokens; with one token of answer at "
                      "most %d fit (scheduler.max_model_len)", (long long)prompt,
                      r->limits->tokens_max);
    if (most < 0) most = out->chat ? left : COMPLETION_TOKENS;
    out->no_answer = most == 0;
    if (out->no_answer) most = 1;
    out->answer_max = (int32_t)(most < left ? most : left);
    return SF_OK;
}

/* Every log probability of a record is in memory while its line is made. */
static sf_status check_logprobs(const struct reader *r)
{
    struct sf_record *out = r->out;
    int64_t shown = 0, prompt = (int64_t)out->prompt.count;
    if (out->prompt_logprobs >= 0) shown += prompt * (out->prompt_logprobs + 1);
    if (out->logprobs >= 0)
        shown += (out->echo * prompt + out->answer_max) * (out->logprobs + 1);
    if (shown <= LOGPROBS_MAX / out->choices) return SF_OK;
    return REFUSE(out, "too_long", "the record asks for up to %lld log probabilities in each of %d "
                  "choices; allowed: %d in all (a smaller max_tokens lowers it)", (long long)shown,
                  out->choices, LOGPROBS_MAX);
}

/* {"50256": -100, ...}: texts of token ids, as OpenAI writes them. */
static sf_status read_logit_bias(const struct reader *r)
{
    struct sf_wire_sampling *p = &r->out->sampling;
    const struct sf_json *map = sf_json_member(r->body, "logit_bias"), *value;
    if (map == NULL || sf_json_type(map) == SF_JSON_NULL) return SF_OK;
    size_t count = sf_json_count(map);
    char words[SHOWN_BYTES];
    if (sf_json_type(map) != SF_JSON_OBJECT || count > BIASES_MAX)
        return REFUSE(r->out, "invalid_value", "body.logit_bias is %s of %zu; allowed: an object "
                      "of at most %d token ids", sf_json_type_name(map), count, BIASES_MAX);
    p->bias = calloc(count + 1, sizeof *p->bias);
    if (p->bias == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %zu biases", count);
    for (const char *key = sf_json_next(map, NULL, &value); key != NULL;
         key = sf_json_next(map, key, &value)) {
        char *end;
        errno = 0;
        long long id = strtoll(key, &end, 10);
        double bias;
        if (*end != '\0' || key[0] < '0' || key[0] > '9' || errno != 0 || id >= r->limits->vocab)
            return REFUSE(r->out, "invalid_value",
                          "body.logit_bias has a key '%.40s'; allowed: token ids from 0 to %d", key,
                          r->limits->vocab - 1);
        if (!sf_json_get_real(value, &bias) || !(bias >= -100.0 && bias <= 100.0))
            return REFUSE(r->out, "invalid_value", "body.logit_bias of token %lld is %s; allowed: "
                          "numbers from -100 to 100", id, shown(value, words, sizeof words));
        p->bias[p->biases++] = (struct sf_wire_bias){(int32_t)id, (float)bias};
    }
    return SF_OK;
}

static sf_status add_stop(const struct reader *r, const struct sf_json *value)
{
    size_t bytes;
    const char *text = sf_json_text(value, &bytes);
    if (text == NULL || bytes == 0)
        return REFUSE(r->out, "invalid_value", "body.stop holds %s; allowed: texts that are not "
                      "empty", text != NULL ? "an empty text" : sf_json_type_name(value));
    struct sf_stop *stop = &r->out->stop[r->out->stops];
    stop->text = malloc(bytes + 1);
    if (stop->text == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a stop string");
    memcpy(stop->text, text, bytes + 1);
    stop->bytes = bytes;
    r->out->stops++;
    return SF_OK;
}

/* A text or a list of texts. */
static sf_status read_stop(const struct reader *r)
{
    const struct sf_json *stop = sf_json_member(r->body, "stop");
    if (stop == NULL || sf_json_type(stop) == SF_JSON_NULL) return SF_OK;
    int list = sf_json_type(stop) == SF_JSON_ARRAY;
    size_t count = list ? sf_json_count(stop) : 1;
    if (count > STOPS_MAX)
        return REFUSE(r->out, "invalid_value", "body.stop has %zu texts; allowed: at most %d",
                      count, STOPS_MAX);
    if (count > 0) SF_TRY(need_tokenizer(r, "stop"));
    r->out->stop = calloc(count + 1, sizeof *r->out->stop);
    if (r->out->stop == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %zu texts", count);
    for (size_t i = 0; i < count; i++)
        SF_TRY(add_stop(r, list ? sf_json_item(stop, i) : stop));
    return SF_OK;
}

static sf_status read_sampling(const struct reader *r)
{
    struct sf_record *out = r->out;
    struct sf_wire_sampling *p = &out->sampling;
    *p = (struct sf_wire_sampling){.temperature = r->limits->temperature, .top_p = 1.0,
                                   .repetition = 1.0};
    p->scores = out->logprobs >= 0 && !out->no_answer;
    p->tops = out->logprobs > out->prompt_logprobs ? out->logprobs : out->prompt_logprobs;
    if (p->tops < 0) p->tops = 0;
    int64_t seed = INT64_MIN, top_k = -1;
    SF_TRY(read_real(r, "temperature", 0.0, 2.0, &p->temperature));
    SF_TRY(read_real(r, "top_p", DBL_MIN, 1.0, &p->top_p));
    SF_TRY(read_real(r, "min_p", 0.0, 1.0, &p->min_p));
    SF_TRY(read_real(r, "presence_penalty", -2.0, 2.0, &p->presence));
    SF_TRY(read_real(r, "frequency_penalty", -2.0, 2.0, &p->frequency));
    SF_TRY(read_real(r, "repetition_penalty", DBL_MIN, 100.0, &p->repetition));
    SF_TRY(read_int(r, "top_k", -1, INT32_MAX, &top_k));
    p->top_k = top_k > 0 ? (int32_t)top_k : 0;          /* 0 and -1: all */
    SF_TRY(read_int(r, "seed", INT64_MIN + 1, INT64_MAX, &seed));
    /* A record's own seed takes the place of both the run's seed and its name. */
    p->rng_key = (uint64_t)(seed != INT64_MIN ? seed : r->limits->seed);
    p->rng_stream = seed != INT64_MIN ? 0 : sf_hash64(out->custom_id, out->custom_id_bytes);
    SF_TRY(read_logit_bias(r));
    return read_stop(r);
}

static sf_status read_record(struct reader *r, const struct sf_json *root)
{
    struct sf_record *out = r->out;
    if (sf_json_type(root) != SF_JSON_OBJECT)
        return REFUSE(out, "invalid_json", "the line is %s, not an object",
                      sf_json_type_name(root));
    size_t bytes;
    const char *id = sf_json_text(sf_json_member(root, "custom_id"), &bytes);
    if (id == NULL) return REFUSE(out, "missing_field", "custom_id is missing or not text");
    out->custom_id = malloc(bytes + 1);
    if (out->custom_id == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a custom_id");
    memcpy(out->custom_id, id, bytes + 1);
    out->custom_id_bytes = bytes;
    const char *url = sf_json_text(sf_json_member(root, "url"), NULL);
    const struct sf_json *verb = sf_json_member(root, "method");
    const char *method = sf_json_text(verb, NULL);
    if (url == NULL) return REFUSE(out, "missing_field", "url is missing or not text");
    out->chat = strcmp(url, "/v1/chat/completions") == 0;
    if (!out->chat && strcmp(url, "/v1/completions") != 0)
        return REFUSE(out, "invalid_value", "url is '%.100s'; allowed: /v1/chat/completions, "
                      "/v1/completions", url);
    if (verb != NULL && (method == NULL || strcmp(method, "POST") != 0))
        return REFUSE(out, "invalid_value", "method is '%.20s'; allowed: POST",
                      method != NULL ? method : sf_json_type_name(verb));
    r->body = sf_json_member(root, "body");
    if (r->body == NULL || sf_json_type(r->body) != SF_JSON_OBJECT)
        return REFUSE(out, "missing_field", "body is missing or not an object");
    SF_TRY(check_fields(r));
    const char *wrong = out->chat ? "prompt" : "messages";
    if (sf_json_member(r->body, wrong) != NULL)
        return REFUSE(out, "invalid_value", "body.%s does not belong to url %s", wrong, url);
    SF_TRY(read_form(r));
    SF_TRY(out->chat ? read_messages(r) : read_prompt(r));
    SF_TRY(read_lengths(r));
    SF_TRY(check_logprobs(r));
    return read_sampling(r);
}

int sf_record_is_blank(const struct sf_line *line)
{
    if (line->kind != SF_LINE_TEXT) return 0;
    for (size_t i = 0; i < line->bytes; i++)
        if (line->text[i] != ' ' && line->text[i] != '\t') return 0;
    return 1;
}

sf_status sf_record_parse(const struct sf_record_limits *limits, const char *text, size_t bytes,
                           int64_t line, struct sf_record *out)
{
    *out = (struct sf_record){.line = line, .choices = 1, .logprobs = -1, .prompt_logprobs = -1};
    struct reader reader = {.limits = limits, .out = out};
    struct sf_json *root;
    if (sf_json_parse(text, bytes, RECORD_BYTES_MAX, &root) != SF_OK) {
        snprintf(out->code, sizeof out->code, "invalid_json");
        return SF_INVALID;
    }
    sf_status status = read_record(&reader, root);
    sf_json_free(root);
    if (status != SF_OK && out->code[0] == '\0')
        snprintf(out->code, sizeof out->code, "invalid_value");
    return status;
}

void sf_record_free(struct sf_record *request)
{
    free(request->custom_id);
    free(request->prompt.id);
    free(request->echo_text);
    free(request->sampling.bias);
    for (size_t i = 0; i < request->stops; i++) free(request->stop[i].text);
    free(request->stop);
    memset(request, 0, sizeof *request);
}
