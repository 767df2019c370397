/* model/safetensors.c: reading safetensors files, of which nothing is believed. */
#include "model/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "base/json.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are read as little-endian words");

enum { LENGTH_BYTES = 8, HEADER_MAX = 100 << 20, SHOWN_BYTES = 96 };

static const struct { const char *name; int32_t bytes; } types[SF_ST_TYPES] = {
    [SF_ST_BOOL] = { "BOOL", 1 }, [SF_ST_U8] = { "U8", 1 }, [SF_ST_I8] = { "I8", 1 },
    [SF_ST_F8_E4M3] = { "F8_E4M3", 1 }, [SF_ST_F8_E5M2] = { "F8_E5M2", 1 },
    [SF_ST_U16] = { "U16", 2 }, [SF_ST_I16] = { "I16", 2 }, [SF_ST_F16] = { "F16", 2 },
    [SF_ST_BF16] = { "BF16", 2 }, [SF_ST_U32] = { "U32", 4 }, [SF_ST_I32] = { "I32", 4 },
    [SF_ST_F32] = { "F32", 4 }, [SF_ST_U64] = { "U64", 8 }, [SF_ST_I64] = { "I64", 8 },
    [SF_ST_F64] = { "F64", 8 } };

struct sf_st_file {
    char *path;
    const unsigned char *map;
    size_t map_bytes;
    struct sf_json *header;             /* names and metadata stand in it */
    struct sf_st_tensor *tensor;        /* in the order of their data */
    const struct sf_st_tensor **by_name;
    int32_t tensors;
    const unsigned char *data;          /* behind the header */
    int64_t data_bytes;
};

const char *sf_st_type_name(enum sf_st_type type) { return types[type].name; }
int32_t sf_st_type_bytes(enum sf_st_type type) { return types[type].bytes; }
const char *sf_st_path(const struct sf_st_file *file) { return file->path; }
int32_t sf_st_tensors(const struct sf_st_file *file) { return file->tensors; }

const struct sf_st_tensor *sf_st_tensor(const struct sf_st_file *file, int32_t index)
{
    SF_ASSERT(index >= 0 && index < file->tensors);
    return &file->tensor[index];
}

void sf_st_show_name(const char *name, char *out, size_t bytes)
{
    SF_ASSERT(bytes > 0);
    size_t n = 0;
    for (; name[n] != '\0' && n + 1 < bytes; n++)
        out[n] = name[n] < 0x20 || name[n] >= 0x7f ? '?' : name[n];
    out[n] = '\0';
}

/* ---- one tensor of the header ---------------------------------------------------------------- */

static sf_status read_type(const struct sf_st_file *file, const char *shown,
                           const struct sf_json *entry, struct sf_st_tensor *tensor)
{
    const char *name = sf_json_text(sf_json_member(entry, "dtype"), NULL);
    char shown_type[24];
    if (name == NULL)
        return SF_FAIL(SF_FORMAT, "%s: tensor '%s' has no dtype that is a text", file->path, shown);
    for (int t = 0; t < SF_ST_TYPES; t++) {
        if (strcmp(types[t].name, name) != 0) continue;
        tensor->type = (enum sf_st_type)t;
        return SF_OK;
    }
    sf_st_show_name(name, shown_type, sizeof shown_type);
    return SF_FAIL(SF_UNSUPPORTED, "%s: tensor '%s' has the dtype '%s', which is not known",
                   file->path, shown, shown_type);
}

static sf_status read_shape(const struct sf_st_file *file, const char *shown,
                            const struct sf_json *entry, struct sf_st_tensor *tensor)
{
    const struct sf_json *shape = sf_json_member(entry, "shape");
    if (shape == NULL || sf_json_type(shape) != SF_JSON_ARRAY)
        return SF_FAIL(SF_FORMAT, "%s: tensor '%s' has no shape that is a list", file->path, shown);
    size_t dims = sf_json_count(shape);
    if (dims > SF_ST_DIMS)
        return SF_FAIL(SF_FORMAT, "%s: tensor '%s' has %zu dimensions; at most %d are read",
                       file->path, shown, dims, SF_ST_DIMS);
    tensor->n_dims = (int32_t)dims;
    tensor->elements = 1;
    for (size_t i = 0; i < dims; i++) {
        int64_t size;
        if (!sf_json_get_int(sf_json_item(shape, i), &size) || size < 0)
            return SF_FAIL(SF_FORMAT, "%s: dimension %zu of tensor '%s' is no size", file->path, i,
                           shown);
        if (__builtin_mul_overflow(tensor->elements, size, &tensor->elements))
            return SF_FAIL(SF_FORMAT, "%s: tensor '%s' has more elements than can be counted",
                           file->path, shown);
        tensor->dims[i] = size;
    }
    if (__builtin_mul_overflow(tensor->elements, (int64_t)types[tensor->type].bytes,
                               &tensor->bytes))
        return SF_FAIL(SF_FORMAT, "%s: tensor '%s' has more bytes than can be counted", file->path,
                       shown);
    return SF_OK;
}

static sf_status read_offsets(const struct sf_st_file *file, const char *shown,
                              const struct sf_json *entry, struct sf_st_tensor *tensor)
{
    const struct sf_json *offsets = sf_json_member(entry, "data_offsets");
    int64_t first, end;
    if (sf_json_count(offsets) != 2 || sf_json_type(offsets) != SF_JSON_ARRAY ||
        !sf_json_get_int(sf_json_item(offsets, 0), &first) ||
        !sf_json_get_int(sf_json_item(offsets, 1), &end))
        return SF_FAIL(SF_FORMAT, "%s: tensor '%s' has no data_offsets that are two integers",
                       file->path, shown);
    if (first < 0 || end < first || end > file->data_bytes)
        return SF_FAIL(SF_FORMAT, "%s: tensor '%s' lies at bytes %" PRId64 " to %" PRId64 " of "
                       "%" PRId64 " bytes of data", file->path, shown, first, end,
                       file->data_bytes);
    if (end - first != tensor->bytes)
        return SF_FAIL(SF_FORMAT, "%s: tensor '%s' has a shape of %" PRId64 " bytes of %s, but "
                       "data_offsets of %" PRId64, file->path, shown, tensor->bytes,
                       types[tensor->type].name, end - first);
    tensor->data = file->data + first;
    return SF_OK;
}

static sf_status read_tensor(const struct sf_st_file *file, const char *name,
                             const struct sf_json *entry, struct sf_st_tensor *tensor)
{
    char shown[SHOWN_BYTES];
    sf_st_show_name(name, shown, sizeof shown);
    if (sf_json_type(entry) != SF_JSON_OBJECT)
        return SF_FAIL(SF_FORMAT, "%s: the header has %s as tensor '%s'", file->path,
                       sf_json_type_name(entry), shown);
    *tensor = (struct sf_st_tensor){ .name = name };
    SF_TRY(read_type(file, shown, entry, tensor));
    SF_TRY(read_shape(file, shown, entry, tensor));
    return read_offsets(file, shown, entry, tensor);
}

/* ---- the whole header ------------------------------------------------------------------------ */

static sf_status check_metadata(const struct sf_st_file *file, const struct sf_json *metadata)
{
    const struct sf_json *value;
    if (sf_json_type(metadata) != SF_JSON_OBJECT)
        return SF_FAIL(SF_FORMAT, "%s: __metadata__ is %s, not an object", file->path,
                       sf_json_type_name(metadata));
    for (const char *key = NULL; (key = sf_json_next(metadata, key, &value)) != NULL;) {
        size_t bytes = 0;
        const char *text = sf_json_text(value, &bytes);
        char shown[SHOWN_BYTES];
        if (text != NULL && strlen(text) == bytes) continue;
        sf_st_show_name(key, shown, sizeof shown);
        return SF_FAIL(SF_FORMAT, "%s: metadata '%s' is %s", file->path, shown,
                       text == NULL ? "not a text" : "a text with a NUL in it");
    }
    return SF_OK;
}

static int data_order(const void *a, const void *b)
{
    const struct sf_st_tensor *x = a, *y = b;
    const unsigned char *at_x = x->data, *at_y = y->data;
    if (at_x != at_y) return at_x < at_y ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int name_order(const void *a, const void *b)
{
    return strcmp((*(const struct sf_st_tensor *const *)a)->name,
                  (*(const struct sf_st_tensor *const *)b)->name);
}

/* One behind the other, up to the end of the file. */
static sf_status check_places(const struct sf_st_file *file)
{
    const unsigned char *next = file->data;
    for (int32_t i = 0; i < file->tensors; i++) {
        const struct sf_st_tensor *tensor = &file->tensor[i];
        const unsigned char *at = tensor->data;
        char shown[SHOWN_BYTES];
        sf_st_show_name(tensor->name, shown, sizeof shown);
        if (at != next)
            return SF_FAIL(SF_FORMAT, "%s: tensor '%s' begins at byte %td of the data, the one "
                           "before it ends at %td: they %s", file->path, shown, at - file->data,
                           next - file->data, at < next ? "overlap" : "leave a gap");
        next = at + tensor->bytes;
    }
    if (next != file->data + file->data_bytes)
        return SF_FAIL(SF_FORMAT, "%s: %td bytes lie behind the last tensor", file->path,
                       file->data + file->data_bytes - next);
    return SF_OK;
}

static sf_status read_tensors(struct sf_st_file *file)
{
    size_t members = sf_json_count(file->header);
    const struct sf_json *value;
    if (members > INT32_MAX / 2)
        return SF_FAIL(SF_FORMAT, "%s: %zu tensors", file->path, members);
    file->tensor = calloc(members + 1, sizeof *file->tensor);
    file->by_name = calloc(members + 1, sizeof *file->by_name);
    if (file->tensor == NULL || file->by_name == NULL)
        return SF_FAIL(SF_NO_MEMORY, "%s: no memory for %zu tensors", file->path, members);
    for (const char *key = NULL; (key = sf_json_next(file->header, key, &value)) != NULL;) {
        if (strcmp(key, "__metadata__") == 0) {
            SF_TRY(check_metadata(file, value));
            continue;
        }
        SF_TRY(read_tensor(file, key, value, &file->tensor[file->tensors]));
        file->tensors++;
    }
    size_t tensors = (size_t)file->tensors;
    qsort(file->tensor, tensors, sizeof *file->tensor, data_order);
    SF_TRY(check_places(file));
    for (size_t i = 0; i < tensors; i++) file->by_name[i] = &file->tensor[i];
    qsort(file->by_name, tensors, sizeof *file->by_name, name_order);
    return SF_OK;
}

static sf_status read_header(struct sf_st_file *file)
{
    uint64_t header;
    memcpy(&header, file->map, sizeof header);
    if (header > file->map_bytes - LENGTH_BYTES || header > HEADER_MAX)
        return SF_FAIL(SF_FORMAT, "%s: not a safetensors file: a header of %" PRIu64 " bytes in a "
                       "file of %zu", file->path, header, file->map_bytes);
    const char *text = (const char *)file->map + LENGTH_BYTES;
    if (header < 2 || text[0] != '{')
        return SF_FAIL(SF_FORMAT, "%s: not a safetensors file: its header is no JSON object",
                       file->path);
    sf_status status = sf_json_parse(text, (size_t)header, HEADER_MAX, &file->header);
    if (status != SF_OK)
        return SF_FAIL(status, "%s: the header is refused: %s", file->path, sf_error_text());
    file->data = file->map + LENGTH_BYTES + header;
    file->data_bytes = (int64_t)(file->map_bytes - LENGTH_BYTES - (size_t)header);
    return read_tensors(file);
}

/* ---- the file -------------------------------------------------------------------------------- */

sf_status sf_st_open(const char *path, struct sf_st_file **file_out)
{
    struct sf_st_file *file = calloc(1, sizeof *file);
    if (file == NULL) return SF_FAIL(SF_NO_MEMORY, "%s: no memory to open it", path);
    file->path = strdup(path);
    sf_status status = file->path == NULL ? SF_FAIL(SF_NO_MEMORY, "%s: no memory to open it", path)
                                          : sf_file_map(path, "a safetensors file",
                                                        LENGTH_BYTES + 2, &file->map,
                                                        &file->map_bytes);
    if (status == SF_OK) status = read_header(file);
    if (status != SF_OK) {
        sf_st_close(file);
        return status;
    }
    *file_out = file;
    return SF_OK;
}

void sf_st_close(struct sf_st_file *file)
{
    if (file == NULL) return;
    free(file->by_name);
    free(file->tensor);
    sf_json_free(file->header);
    sf_file_unmap(file->map, file->map_bytes);
    free(file->path);
    free(file);
}

static int compare_name(const void *name, const void *entry)
{
    return strcmp(name, (*(const struct sf_st_tensor *const *)entry)->name);
}

const struct sf_st_tensor *sf_st_find(const struct sf_st_file *file, const char *name)
{
    if (file->tensors == 0) return NULL;
    const struct sf_st_tensor *const *found = bsearch(name, file->by_name, (size_t)file->tensors,
                                                      sizeof *file->by_name, compare_name);
    return found == NULL ? NULL : *found;
}

const char *sf_st_meta(const struct sf_st_file *file, const char *key)
{
    return sf_json_text(sf_json_member(sf_json_member(file->header, "__metadata__"), key), NULL);
}
