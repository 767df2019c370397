/* base/json.c: jansson behind our own names, with bounds before it and our own writer after it.
 *
 * struct sf_json is jansson's json_t under another name; the casts are all in the first lines.
 * Before jansson sees outside bytes, one pass counts nesting and values, so that neither its
 * recursion nor its memory (224 bytes for the two of "{}") can be driven far.  The writer is
 * ours because jansson prints 0.1 as 0.10000000000000001. */
#include "base/json.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/utf8.h"

static json_t *inner(struct sf_json *value) { return (json_t *)value; }
static const json_t *look(const struct sf_json *value) { return (const json_t *)value; }
static struct sf_json *outer(json_t *value) { return (struct sf_json *)value; }

/* ---- parsing ---- */

static sf_status check_bounds(const char *text, size_t bytes);
static sf_status bad_json(const json_error_t *error);

sf_status sf_json_parse(const char *text, size_t bytes, size_t bytes_max,
                        struct sf_json **value_out)
{
    if (bytes > bytes_max)
        return SF_FAIL(SF_FORMAT, "JSON of %zu bytes; allowed: at most %zu", bytes, bytes_max);
    SF_TRY(check_bounds(text, bytes));
    json_error_t error;
    json_t *value = json_loadb(text, bytes,
                               JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    if (value == NULL) return bad_json(&error);
    *value_out = outer(value);
    return SF_OK;
}

/* Every value but the first follows a '[', a '{' or a ',' that stands outside texts, so counting
 * those bounds the values from above, be the rest JSON or not. */
static sf_status check_bounds(const char *text, size_t bytes)
{
    int in_text = 0, depth = 0, values = 1;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (in_text) {
            if (c == '\\') i++;
            else if (c == '"') in_text = 0;
            continue;
        }
        if (c == '"') in_text = 1;
        else if (c == '[' || c == '{') depth++;
        else if ((c == ']' || c == '}') && depth > 0) depth--;
        if (c == '[' || c == '{' || c == ',') values++;
        if (depth > SF_JSON_DEPTH_MAX)
            return SF_FAIL(SF_FORMAT, "JSON nested deeper than %d at byte %zu", SF_JSON_DEPTH_MAX,
                           i + 1);
        if (values > SF_JSON_VALUES_MAX)
            return SF_FAIL(SF_FORMAT, "JSON with more than %d values at byte %zu",
                           SF_JSON_VALUES_MAX, i + 1);
    }
    return SF_OK;
}

/* jansson quotes the input in its words, cut anywhere; what is not plain ASCII is hidden, so that
 * the message can be written to any terminal or record. */
static sf_status bad_json(const json_error_t *error)
{
    char words[JSON_ERROR_TEXT_LENGTH];
    snprintf(words, sizeof words, "%.*s", JSON_ERROR_TEXT_LENGTH - 1, error->text);
    for (char *c = words; *c != '\0'; c++)
        if (*c < 0x20 || *c >= 0x7f) *c = '?';
    if (json_error_code(error) == json_error_out_of_memory)
        return SF_FAIL(SF_NO_MEMORY, "no memory for a JSON value");
    return SF_FAIL(SF_FORMAT, "not valid JSON at byte %d (line %d, column %d): %s",
                   error->position, error->line, error->column, words);
}

void sf_json_free(struct sf_json *value)
{
    json_decref(inner(value));
}

/* ---- reading ---- */

enum sf_json_type sf_json_type(const struct sf_json *value)
{
    SF_ASSERT(value != NULL);
    switch (json_typeof(look(value))) {
    case JSON_OBJECT: return SF_JSON_OBJECT;
    case JSON_ARRAY: return SF_JSON_ARRAY;
    case JSON_STRING: return SF_JSON_TEXT;
    case JSON_INTEGER: return SF_JSON_INT;
    case JSON_REAL: return SF_JSON_REAL;
    case JSON_TRUE: return SF_JSON_TRUE;
    case JSON_FALSE: return SF_JSON_FALSE;
    case JSON_NULL: break;
    }
    return SF_JSON_NULL;
}

const char *sf_json_type_name(const struct sf_json *value)
{
    static const char *const names[] = { "an object", "an array", "a string", "an integer",
                                         "a number with a fraction", "true", "false", "null" };
    return value == NULL ? "nothing" : names[sf_json_type(value)];
}

const struct sf_json *sf_json_member(const struct sf_json *object, const char *key)
{
    return outer(json_object_get(look(object), key));
}

/* jansson reads only, but wants its argument without const. */
static json_t *mutable(const struct sf_json *value)
{
    union { const struct sf_json *in; json_t *out; } cast = { .in = value };
    return cast.out;
}

const char *sf_json_next(const struct sf_json *object, const char *key,
                         const struct sf_json **value_out)
{
    json_t *members = mutable(object);
    void *at = key == NULL ? json_object_iter(members)
                           : json_object_iter_next(members, json_object_key_to_iter(key));
    if (at == NULL) return NULL;
    *value_out = outer(json_object_iter_value(at));
    return json_object_iter_key(at);
}

size_t sf_json_count(const struct sf_json *value)
{
    return json_is_object(look(value)) ? json_object_size(look(value))
                                       : json_array_size(look(value));
}

const struct sf_json *sf_json_item(const struct sf_json *array, size_t index)
{
    return outer(json_array_get(look(array), index));
}

const char *sf_json_text(const struct sf_json *value, size_t *bytes_out)
{
    if (!json_is_string(look(value))) return NULL;
    if (bytes_out != NULL) *bytes_out = json_string_length(look(value));
    return json_string_value(look(value));
}

int sf_json_get_int(const struct sf_json *value, int64_t *out)
{
    if (!json_is_integer(look(value))) return 0;
    *out = json_integer_value(look(value));
    return 1;
}

int sf_json_get_real(const struct sf_json *value, double *out)
{
    if (!json_is_number(look(value))) return 0;
    *out = json_number_value(look(value));
    return 1;
}

/* ---- building ---- */

struct sf_json *sf_json_new(enum sf_json_type type)
{
    switch (type) {
    case SF_JSON_OBJECT: return outer(json_object());
    case SF_JSON_ARRAY: return outer(json_array());
    case SF_JSON_TRUE: return outer(json_true());
    case SF_JSON_FALSE: return outer(json_false());
    case SF_JSON_NULL: return outer(json_null());
    case SF_JSON_TEXT:
    case SF_JSON_INT:
    case SF_JSON_REAL: break;
    }
    SF_ASSERT(!"a type without a value");
    return NULL;
}

struct sf_json *sf_json_new_text(const char *text, size_t bytes)
{
    if (bytes == 0) text = "";
    if (sf_utf8_valid(text, bytes)) return outer(json_stringn_nocheck(text, bytes));
    static const char replacement[3] = { '\xef', '\xbf', '\xbd' };
    char *mended = bytes > SIZE_MAX / sizeof replacement ? NULL
                                                         : malloc(bytes * sizeof replacement);
    if (mended == NULL) return NULL;
    size_t used = 0;
    for (size_t i = 0; i < bytes; ) {
        size_t length = sf_utf8_char_bytes(text + i, bytes - i);
        memcpy(mended + used, length == 0 ? replacement : text + i,
               length == 0 ? sizeof replacement : length);
        used += length == 0 ? sizeof replacement : length;
        i += length == 0 ? 1 : length;
    }
    json_t *value = json_stringn_nocheck(mended, used);
    free(mended);
    return outer(value);
}

struct sf_json *sf_json_new_int(int64_t number)
{
    return outer(json_integer(number));
}

struct sf_json *sf_json_new_real(double number)
{
    return outer(isfinite(number) ? json_real(number) : json_null());
}

sf_status sf_json_set(struct sf_json *object, const char *key, struct sf_json *value)
{
    SF_ASSERT(value == NULL || value != object);
    if (!sf_utf8_valid(key, strlen(key))) {
        sf_json_free(value);
        return SF_FAIL(SF_INVALID, "JSON key is not valid UTF-8");
    }
    if (object == NULL || value == NULL) {
        sf_json_free(value);
        return SF_FAIL(SF_NO_MEMORY, "no memory for JSON member '%s'", key);
    }
    SF_ASSERT(json_is_object(look(object)));
    if (json_object_set_new_nocheck(inner(object), key, inner(value)) != 0)
        return SF_FAIL(SF_NO_MEMORY, "no memory for JSON member '%s'", key);
    return SF_OK;
}

sf_status sf_json_append(struct sf_json *array, struct sf_json *value)
{
    SF_ASSERT(value == NULL || value != array);
    if (array == NULL || value == NULL) {
        sf_json_free(value);
        return SF_FAIL(SF_NO_MEMORY, "no memory for a JSON array item");
    }
    SF_ASSERT(json_is_array(look(array)));
    if (json_array_append_new(inner(array), inner(value)) != 0)
        return SF_FAIL(SF_NO_MEMORY, "no memory for a JSON array item");
    return SF_OK;
}

void sf_json_put(sf_status *status, struct sf_json *object, const char *key,
                 struct sf_json *value)
{
    if (*status != SF_OK) sf_json_free(value);
    else *status = sf_json_set(object, key, value);
}

struct sf_json *sf_json_new_words(const char *text)
{
    return sf_json_new_text(text, strlen(text));
}

/* ---- writing ---- */

struct writer { char *text; size_t capacity, used; int indent; };

static sf_status write_value(struct writer *writer, const struct sf_json *value, int depth);
static sf_status write_text(struct writer *writer, const char *text, size_t bytes);
static sf_status write_real(struct writer *writer, double number);

sf_status sf_json_dump(const struct sf_json *value, int indent, char **text_out,
                       size_t *bytes_out)
{
    SF_ASSERT(value != NULL && indent >= 0);
    struct writer writer = { .indent = indent };
    sf_status status = write_value(&writer, value, 0);
    if (status == SF_OK) status = sf_grow((void **)&writer.text, &writer.capacity,
                                          writer.used + 1, 1);
    if (status != SF_OK) {
        free(writer.text);
        return status;
    }
    writer.text[writer.used] = '\0';
    *text_out = writer.text;
    *bytes_out = writer.used;
    return SF_OK;
}

static sf_status put(struct writer *writer, const char *text, size_t bytes)
{
    SF_TRY(sf_grow((void **)&writer->text, &writer->capacity, writer->used + bytes, 1));
    memcpy(writer->text + writer->used, text, bytes);
    writer->used += bytes;
    return SF_OK;
}

static sf_status put_break(struct writer *writer, int depth)
{
    if (writer->indent == 0) return SF_OK;
    SF_TRY(put(writer, "\n", 1));
    for (int64_t i = (int64_t)depth * writer->indent; i > 0; i--) SF_TRY(put(writer, " ", 1));
    return SF_OK;
}

static sf_status write_object(struct writer *writer, const struct sf_json *object, int depth)
{
    const struct sf_json *value;
    const char *before = "{";
    for (const char *key = NULL; (key = sf_json_next(object, key, &value)) != NULL; before = ",") {
        SF_TRY(put(writer, before, 1));
        SF_TRY(put_break(writer, depth + 1));
        SF_TRY(write_text(writer, key, strlen(key)));
        SF_TRY(put(writer, ": ", writer->indent == 0 ? 1 : 2));
        SF_TRY(write_value(writer, value, depth + 1));
    }
    if (*before == '{') return put(writer, "{}", 2);
    SF_TRY(put_break(writer, depth));
    return put(writer, "}", 1);
}

static sf_status write_array(struct writer *writer, const struct sf_json *array, int depth)
{
    size_t count = sf_json_count(array);
    if (count == 0) return put(writer, "[]", 2);
    for (size_t i = 0; i < count; i++) {
        SF_TRY(put(writer, i == 0 ? "[" : ",", 1));
        SF_TRY(put_break(writer, depth + 1));
        SF_TRY(write_value(writer, sf_json_item(array, i), depth + 1));
    }
    SF_TRY(put_break(writer, depth));
    return put(writer, "]", 1);
}

/* Recursion is as deep as the value: parsed ones are bounded, built ones are as deep as the code
 * that builds them. */
static sf_status write_value(struct writer *writer, const struct sf_json *value, int depth)
{
    char number[32];
    const char *text;
    size_t bytes;
    switch (sf_json_type(value)) {
    case SF_JSON_OBJECT: return write_object(writer, value, depth);
    case SF_JSON_ARRAY: return write_array(writer, value, depth);
    case SF_JSON_TEXT:
        text = sf_json_text(value, &bytes);
        return write_text(writer, text, bytes);
    case SF_JSON_INT:
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(look(value)));
        return put(writer, number, strlen(number));
    case SF_JSON_REAL: return write_real(writer, json_real_value(look(value)));
    case SF_JSON_TRUE: return put(writer, "true", 4);
    case SF_JSON_FALSE: return put(writer, "false", 5);
    case SF_JSON_NULL: break;
    }
    return put(writer, "null", 4);
}

/* Runs of plain characters go in one piece; what JSON wants escaped stands between them. */
static sf_status write_text(struct writer *writer, const char *text, size_t bytes)
{
    static const char short_forms[] = "\bb\ff\nn\rr\tt\"\"\\\\";
    size_t start = 0;
    SF_TRY(put(writer, "\"", 1));
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        SF_TRY(put(writer, text + start, i - start));
        start = i + 1;
        char form[8] = { '\\' };
        const char *pair = short_forms;
        while (*pair != '\0' && *pair != (char)c) pair += 2;
        if (*pair != '\0') form[1] = pair[1];
        else snprintf(form, sizeof form, "\\u%04x", c);
        SF_TRY(put(writer, form, strlen(form)));
    }
    SF_TRY(put(writer, text + start, bytes - start));
    return put(writer, "\"", 1);
}

/* A real stays a real when it is read again, so 2 is written 2.0. */
static sf_status write_real(struct writer *writer, double number)
{
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, number);
        if (strtod(text, NULL) == number) break;
    }
    if (text[strcspn(text, ".e")] == '\0') strcat(text, ".0");
    return put(writer, text, strlen(text));
}
