/* model/json_keys.h: the keys of a JSON object, each asked for by type and range; inside model/.
 *
 * A key that is null counts as absent.  What does not fit is SF_FORMAT with file, key and value. */
#ifndef SHEAF_MODEL_JSON_KEYS_H
#define SHEAF_MODEL_JSON_KEYS_H
#include <stddef.h>
#include <stdint.h>
#include "base/json.h"
#include "base/status.h"
SF_C_BEGIN

enum { SF_SHOWN_MAX = 48 };

struct sf_keys {                        /* nothing in it is owned */
    const char *path;                   /* of the file, for words */
    const struct sf_json *at;           /* the object; NULL: one without keys */
    const char *inside;                 /* what its keys are called before their names: "" at the
                                           top, "rope_scaling." and so on below */
};

/* A whole file that holds an object; freed by sf_json_free.  SF_IO, or SF_FORMAT if it is longer
 * than bytes_max or not JSON. */
sf_status sf_keys_open(const char *path, size_t bytes_max, struct sf_json **root_out);

/* *value is left alone where the key is absent (then SF_FORMAT if `required`). */
struct sf_want { const char *key; int required; double min, max; };
sf_status sf_keys_int(const struct sf_keys *, const struct sf_want *, int64_t *value);
sf_status sf_keys_real(const struct sf_keys *, const struct sf_want *, double *value);
/* One to `max` of something; required. */
sf_status sf_keys_count(const struct sf_keys *, const char *key, int32_t max, int32_t *value_out);
sf_status sf_keys_flag(const struct sf_keys *, const char *key, uint8_t *value);
/* Closed by a NUL and without another; lives as long as the object. */
sf_status sf_keys_text(const struct sf_keys *, const char *key, const char **value);
const struct sf_json *sf_keys_member(const struct sf_keys *, const char *key);  /* or NULL */

/* Words for a key that is not there, and for one of another type than `wanted` ("an array"). */
sf_status sf_keys_missing(const struct sf_keys *, const char *key);
sf_status sf_keys_wrong(const struct sf_keys *, const char *key, const struct sf_json *value,
                        const char *wanted);
/* A text from outside as it may stand in a message: short, and all but printable ASCII turned into
 * question marks. */
const char *sf_keys_shown(const char *text, char out[SF_SHOWN_MAX]);

SF_C_END
#endif
