/* model/json_keys.c: typed reading of a JSON object, with words for all that does not fit. */
#include "model/json_keys.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/files.h"

/* ---- the file ------------------------------------------------------------------------------ */

static sf_status parse(const char *path, const char *text, size_t bytes, struct sf_json **root_out)
{
    struct sf_json *root;
    sf_status status = sf_json_parse(text, bytes, bytes, &root);
    if (status != SF_OK) {
        char words[512];
        snprintf(words, sizeof words, "%s", sf_error_text());
        return SF_FAIL(status, "%s: %s", path, words);
    }
    if (sf_json_type(root) != SF_JSON_OBJECT) {
        status = SF_FAIL(SF_FORMAT, "%s: holds %s, not an object", path, sf_json_type_name(root));
        sf_json_free(root);
        return status;
    }
    *root_out = root;
    return SF_OK;
}

static sf_status read_all(int fd, const char *path, size_t bytes_max, struct sf_json **root_out)
{
    struct stat info;
    if (fstat(fd, &info) != 0) return SF_FAIL(SF_IO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return SF_FAIL(SF_IO, "%s: not a regular file", path);
    size_t bytes = (size_t)info.st_size;
    if (bytes > bytes_max)
        return SF_FAIL(SF_FORMAT, "%s: %zu bytes, at most %zu are read", path, bytes, bytes_max);
    char *text = malloc(bytes + 1);
    if (text == NULL) return SF_FAIL(SF_NO_MEMORY, "%s: no memory to read it", path);
    sf_status status = sf_file_read(fd, path, 0, bytes, text);
    if (status == SF_OK) status = parse(path, text, bytes, root_out);
    free(text);
    return status;
}

sf_status sf_keys_open(const char *path, size_t bytes_max, struct sf_json **root_out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);     /* a pipe must not block here */
    if (fd < 0) return SF_FAIL(SF_IO, "%s: %s", path, strerror(errno));
    sf_status status = read_all(fd, path, bytes_max, root_out);
    close(fd);
    return status;
}

/* ---- keys ---------------------------------------------------------------------------------- */

const struct sf_json *sf_keys_member(const struct sf_keys *keys, const char *key)
{
    const struct sf_json *value = sf_json_member(keys->at, key);
    return value == NULL || sf_json_type(value) == SF_JSON_NULL ? NULL : value;
}

sf_status sf_keys_missing(const struct sf_keys *keys, const char *key)
{
    return SF_FAIL(SF_FORMAT, "%s: key '%s%s' is missing", keys->path, keys->inside, key);
}

sf_status sf_keys_wrong(const struct sf_keys *keys, const char *key, const struct sf_json *value,
                        const char *wanted)
{
    return SF_FAIL(SF_FORMAT, "%s: key '%s%s' is %s, not %s", keys->path, keys->inside, key,
                   sf_json_type_name(value), wanted);
}

sf_status sf_keys_int(const struct sf_keys *keys, const struct sf_want *want, int64_t *value)
{
    const struct sf_json *found = sf_keys_member(keys, want->key);
    int64_t number;
    if (found == NULL) return want->required ? sf_keys_missing(keys, want->key) : SF_OK;
    if (!sf_json_get_int(found, &number))
        return sf_keys_wrong(keys, want->key, found, "an integer");
    if ((double)number < want->min || (double)number > want->max)
        return SF_FAIL(SF_FORMAT, "%s: key '%s%s' is %" PRId64 ", allowed are %.0f to %.0f",
                       keys->path, keys->inside, want->key, number, want->min, want->max);
    *value = number;
    return SF_OK;
}

sf_status sf_keys_real(const struct sf_keys *keys, const struct sf_want *want, double *value)
{
    const struct sf_json *found = sf_keys_member(keys, want->key);
    double number;
    if (found == NULL) return want->required ? sf_keys_missing(keys, want->key) : SF_OK;
    if (!sf_json_get_real(found, &number))
        return sf_keys_wrong(keys, want->key, found, "a number");
    if (!(number >= want->min && number <= want->max))
        return SF_FAIL(SF_FORMAT, "%s: key '%s%s' is %g, allowed are %g to %g", keys->path,
                       keys->inside, want->key, number, want->min, want->max);
    *value = number;
    return SF_OK;
}

sf_status sf_keys_count(const struct sf_keys *keys, const char *key, int32_t max,
                        int32_t *value_out)
{
    int64_t value = 0;
    SF_TRY(sf_keys_int(keys, &(struct sf_want){ key, 1, 1, max }, &value));
    *value_out = (int32_t)value;
    return SF_OK;
}

sf_status sf_keys_flag(const struct sf_keys *keys, const char *key, uint8_t *value)
{
    const struct sf_json *found = sf_keys_member(keys, key);
    if (found == NULL) return SF_OK;
    enum sf_json_type type = sf_json_type(found);
    if (type != SF_JSON_TRUE && type != SF_JSON_FALSE)
        return sf_keys_wrong(keys, key, found, "true or false");
    *value = type == SF_JSON_TRUE;
    return SF_OK;
}

sf_status sf_keys_text(const struct sf_keys *keys, const char *key, const char **value)
{
    const struct sf_json *found = sf_keys_member(keys, key);
    size_t bytes;
    if (found == NULL) return SF_OK;
    const char *text = sf_json_text(found, &bytes);
    if (text == NULL || strlen(text) != bytes)
        return sf_keys_wrong(keys, key, found, "a string without NUL bytes");
    *value = text;
    return SF_OK;
}

const char *sf_keys_shown(const char *text, char out[SF_SHOWN_MAX])
{
    size_t bytes = 0;
    for (; text[bytes] != '\0' && bytes < SF_SHOWN_MAX - 1; bytes++)
        out[bytes] = text[bytes] >= 0x20 && text[bytes] < 0x7f ? text[bytes] : '?';
    out[bytes] = '\0';
    return out;
}
