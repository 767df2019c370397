/* base/json.h: JSON values: parsed from outside bytes, looked at, built, written as one line.
 *
 * Ownership is a tree: whoever parsed or made a root frees it with sf_json_free, and that frees
 * what hangs below.  sf_json_set and sf_json_append take over the value they are given, also when
 * they fail.  Pointers got from a value (items, texts, keys) live as long as the root.
 *
 *     struct sf_json *record = sf_json_new(SF_JSON_OBJECT);
 *     sf_status status = sf_json_set(record, "id", sf_json_new_text("a", 1));
 *     if (status == SF_OK) status = sf_json_set(record, "line", sf_json_new_int(7));
 *     if (status == SF_OK) status = sf_json_dump(record, 0, &line, &bytes);
 *     sf_json_free(record);
 *
 * Texts are UTF-8 and may hold NUL bytes; keys may not.  Integers are 64 bits. */
#ifndef SHEAF_BASE_JSON_H
#define SHEAF_BASE_JSON_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

struct sf_json;
enum sf_json_type { SF_JSON_OBJECT, SF_JSON_ARRAY, SF_JSON_TEXT, SF_JSON_INT, SF_JSON_REAL,
                    SF_JSON_TRUE, SF_JSON_FALSE, SF_JSON_NULL };
/* Bounds on what is parsed, whatever its length: nesting, and values in all. */
enum { SF_JSON_DEPTH_MAX = 128, SF_JSON_VALUES_MAX = 1 << 21 };

/* One JSON value of any type, with nothing but white space after it.  Refused with SF_FORMAT and
 * the position in words: longer than bytes_max, nested too deep, too many values, a key twice in
 * an object, a NUL in a key, an integer past 64 bits, bad UTF-8, and all that is not JSON. */
sf_status sf_json_parse(const char *text, size_t bytes, size_t bytes_max,
                        struct sf_json **value_out);
void      sf_json_free(struct sf_json *value);            /* NULL is fine */

/* Reading.  Each takes a value of any type, and NULL as one of no type: where it does not fit the
 * question, the answer is NULL or 0 and nothing is written.  Only sf_json_type needs a value. */
enum sf_json_type sf_json_type(const struct sf_json *value);
const char *sf_json_type_name(const struct sf_json *value);      /* "an object", ... for messages */
const struct sf_json *sf_json_member(const struct sf_json *object, const char *key);
/* Members in order: key NULL gives the first key, a key got from here the next one; NULL ends. */
const char *sf_json_next(const struct sf_json *object, const char *key,
                         const struct sf_json **value_out);
size_t sf_json_count(const struct sf_json *value);               /* of members or items */
const struct sf_json *sf_json_item(const struct sf_json *array, size_t index);
/* Closed by a NUL; bytes_out may be NULL. */
const char *sf_json_text(const struct sf_json *value, size_t *bytes_out);
int sf_json_get_int(const struct sf_json *value, int64_t *out);  /* 1 if it is an integer */
int sf_json_get_real(const struct sf_json *value, double *out);  /* 1 if integer or real */

/* Building.  NULL means no memory, and may be handed on: set and append then say so. */
struct sf_json *sf_json_new(enum sf_json_type type);  /* {} [] true false null; not the others */
/* Bytes that are not UTF-8 become U+FFFD, one for each. */
struct sf_json *sf_json_new_text(const char *text, size_t bytes);
struct sf_json *sf_json_new_int(int64_t number);
struct sf_json *sf_json_new_real(double number);      /* null for NaN and infinities */
/* A key that is there already gets the new value in its old place. */
sf_status sf_json_set(struct sf_json *object, const char *key, struct sf_json *value);
sf_status sf_json_append(struct sf_json *array, struct sf_json *value);
/* For building an object of many members: sf_json_set as long as *status is SF_OK, and its status
 * into *status; otherwise the value is freed and nothing else happens. */
void sf_json_put(sf_status *status, struct sf_json *object, const char *key,
                 struct sf_json *value);
struct sf_json *sf_json_new_words(const char *text);  /* closed by a NUL */

/* The value as text: keys as they were inserted, numbers in the fewest digits that read back
 * equal.  indent 0: one line without blanks; otherwise blanks per level.  Freed by free().  The
 * text has no newline at its end but a NUL at line_out[bytes], where a writer of lines may put
 * one. */
sf_status sf_json_dump(const struct sf_json *value, int indent, char **text_out,
                       size_t *bytes_out);

SF_C_END
#endif
