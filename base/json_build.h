/* base/json_build.h: objects of many members, in few words, on top of sf_json_put (json.h). */
#ifndef SHEAF_BASE_JSON_BUILD_H
#define SHEAF_BASE_JSON_BUILD_H
#include "base/json.h"
SF_C_BEGIN

/* The value, or NULL after a failure, which frees it. */
static inline struct sf_json *sf_json_built(sf_status status, struct sf_json *value)
{
    if (status == SF_OK) return value;
    sf_json_free(value);
    return NULL;
}

static inline void sf_json_put_int(sf_status *status, struct sf_json *o, const char *key,
                                   int64_t value)
{
    sf_json_put(status, o, key, sf_json_new_int(value));
}

static inline void sf_json_put_real(sf_status *status, struct sf_json *o, const char *key,
                                    double value)
{
    sf_json_put(status, o, key, sf_json_new_real(value));
}

static inline void sf_json_put_words(sf_status *status, struct sf_json *o, const char *key,
                                     const char *words)
{
    sf_json_put(status, o, key, sf_json_new_words(words));
}

SF_C_END
#endif
