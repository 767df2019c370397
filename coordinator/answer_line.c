/* coordinator/answer_line.c: skims one JSON object.
 *
 *   { "id": "req-1", "custom_id": "a", "response": {...}, "error": null }
 *     |key|  |value|
 *
 * Values are passed over by their brackets and quotes; only a custom_id with escapes is parsed. */
#include "coordinator/answer_line.h"

#include <string.h>

#include "base/json.h"

struct text { const char *at, *end; };
struct span { const char *start; size_t bytes; };   /* start NULL: not there */

static void skip_blanks(struct text *t)
{
    while (t->at < t->end && memchr(" \t\r\n", *t->at, 4) != NULL) t->at++;
}

static int skip(struct text *t, char c)
{
    skip_blanks(t);
    if (t->at == t->end || *t->at != c) return 0;
    t->at++;
    return 1;
}

/* At the quote that opens; behind the one that closes. */
static int skip_string(struct text *t)
{
    for (t->at++; t->at < t->end; t->at++) {
        if (*t->at == '"') {
            t->at++;
            return 1;
        }
        if (*t->at == '\\' && ++t->at == t->end) return 0;
    }
    return 0;
}

static int skip_brackets(struct text *t)
{
    size_t depth = 0;
    while (t->at < t->end) {
        char c = *t->at;
        if (c == '"') {
            if (!skip_string(t)) return 0;
            continue;
        }
        t->at++;
        if (c == '{' || c == '[') depth++;
        if ((c == '}' || c == ']') && --depth == 0) return 1;
    }
    return 0;
}

static int skip_value(struct text *t, struct span *value_out)
{
    skip_blanks(t);
    const char *start = t->at;
    if (t->at == t->end) return 0;
    int whole = 1;
    if (*t->at == '"') whole = skip_string(t);
    else if (*t->at == '{' || *t->at == '[') whole = skip_brackets(t);
    else while (t->at < t->end && memchr(",}] \t\r\n\"{[:", *t->at, 12) == NULL) t->at++;
    *value_out = (struct span){.start = start, .bytes = (size_t)(t->at - start)};
    return whole && t->at > start;
}

static int is(const struct span *span, const char *text)
{
    return span->bytes == strlen(text) && memcmp(span->start, text, span->bytes) == 0;
}

/* The raw values of the three members that count; 0 if the text is no object. */
static int skim(struct text *t, struct span *id, struct span *response, struct span *error)
{
    struct span key, value;
    if (!skip(t, '{')) return 0;
    do {
        skip_blanks(t);
        if (t->at == t->end || *t->at != '"' || !skip_value(t, &key) || !skip(t, ':') ||
            !skip_value(t, &value))
            return 0;
        if (is(&key, "\"custom_id\"")) *id = value;
        if (is(&key, "\"response\"")) *response = value;
        if (is(&key, "\"error\"")) *error = value;
    } while (skip(t, ','));
    if (!skip(t, '}')) return 0;
    skip_blanks(t);
    return t->at == t->end;
}

static sf_status parse_id(const struct span *id, struct sf_buffer *buffer,
                          struct sf_answer_line *out)
{
    struct sf_json *value;
    size_t bytes;
    SF_TRY(sf_json_parse(id->start, id->bytes, id->bytes, &value));
    const char *text = sf_json_text(value, &bytes);
    sf_status status = text != NULL ? sf_buffer_reserve(buffer, bytes + 1)
                                    : SF_FAIL(SF_FORMAT, "custom_id is not text");
    if (status == SF_OK) {
        memcpy(buffer->bytes, text, bytes);
        buffer->count = out->id_bytes = bytes;
        out->id = (const char *)buffer->bytes;
    }
    sf_json_free(value);
    return status;
}

sf_status sf_answer_line_read(const char *text, size_t bytes, struct sf_buffer *buffer,
                              struct sf_answer_line *out)
{
    struct text t = {.at = text, .end = text + bytes};
    struct span id = {NULL, 0}, response = {NULL, 0}, error = {NULL, 0};
    if (!skim(&t, &id, &response, &error)) return SF_FAIL(SF_FORMAT, "this is no JSON object");
    if (id.start == NULL || (response.start == NULL && error.start == NULL))
        return SF_FAIL(SF_FORMAT, "this is no answer: custom_id, or response and error are"
                       " missing");
    *out = (struct sf_answer_line){.error = error.start != NULL && !is(&error, "null")};
    if (is(&id, "null")) return SF_OK;
    if (*id.start != '"' || memchr(id.start, '\\', id.bytes) != NULL)
        return parse_id(&id, buffer, out);
    out->id = id.start + 1;
    out->id_bytes = id.bytes - 2;
    return SF_OK;
}
