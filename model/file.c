/* model/file.c: mapping a weight file, and looking things up in what its reader found. */
#include "model/file.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/files.h"

static sf_status map_file(struct sf_file *file)
{
    struct stat info;
    if (stat(file->path, &info) == 0 && S_ISDIR(info.st_mode))
        return SF_FAIL(SF_UNSUPPORTED, "%s: is a directory: weights in safetensors are not read"
                       " yet, so it can be planned and inspected, not run; a GGUF file can be",
                       file->path);
    return sf_file_map(file->path, "a model", 4, &file->map, &file->map_bytes);
}

/* A safetensors file begins with the length of its header and a brace. */
static sf_status read_container(struct sf_file *file)
{
    if (memcmp(file->map, "GGUF", 4) == 0) return sf_gguf_read(file);
    if (file->map_bytes > 9 && file->map[8] == '{')
        return SF_FAIL(SF_UNSUPPORTED, "%s: looks like safetensors; of weights only GGUF is read",
                       file->path);
    return SF_FAIL(SF_FORMAT, "%s: not a GGUF file (it begins with %02x %02x %02x %02x)",
                   file->path, file->map[0], file->map[1], file->map[2], file->map[3]);
}

sf_status sf_file_open(const char *path, struct sf_file **file_out)
{
    struct sf_file *file = calloc(1, sizeof *file);
    if (file == NULL) return SF_FAIL(SF_NO_MEMORY, "%s: no memory to open it", path);
    file->path = strdup(path);
    sf_status status = file->path == NULL ? SF_FAIL(SF_NO_MEMORY, "%s: no memory to open it", path)
                                          : map_file(file);
    if (status == SF_OK) status = read_container(file);
    if (status != SF_OK) {
        sf_file_close(file);
        return status;
    }
    *file_out = file;
    return SF_OK;
}

void sf_file_close(struct sf_file *file)
{
    if (file == NULL) return;
    for (int32_t i = 0; i < file->tensors; i++) free(file->tensor[i].name);
    for (int32_t i = 0; i < file->metas; i++) free(file->meta[i].key);
    free(file->tensor);
    free(file->by_name);
    free(file->meta);
    sf_file_unmap(file->map, file->map_bytes);
    free(file->path);
    free(file);
}

static int name_order(const void *name, const void *entry)
{
    return strcmp(name, (*(struct sf_tensor *const *)entry)->name);
}

struct sf_tensor *sf_file_tensor(const struct sf_file *file, const char *name)
{
    if (file->tensors == 0) return NULL;
    struct sf_tensor **found = bsearch(name, file->by_name, (size_t)file->tensors,
                                       sizeof *file->by_name, name_order);
    return found == NULL ? NULL : *found;
}

static int key_order(const void *key, const void *entry)
{
    return strcmp(key, ((const struct sf_meta *)entry)->key);
}

const struct sf_meta *sf_file_meta(const struct sf_file *file, const char *key)
{
    if (file->metas == 0) return NULL;
    return bsearch(key, file->meta, (size_t)file->metas, sizeof *file->meta, key_order);
}

/* Whether `type` is an integer; its value, saturated to int64. */
static int load_int(enum sf_meta_type type, const unsigned char *at, uint64_t index, int64_t *out)
{
    union { int8_t i8; uint16_t u16; int16_t i16; uint32_t u32; int32_t i32; uint64_t u64;
            int64_t i64; } v;
    switch (type) {
    case SF_META_BOOL:
    case SF_META_U8: *out = at[index]; return 1;
    case SF_META_I8: memcpy(&v, at + index, 1); *out = v.i8; return 1;
    case SF_META_U16: memcpy(&v, at + 2 * index, 2); *out = v.u16; return 1;
    case SF_META_I16: memcpy(&v, at + 2 * index, 2); *out = v.i16; return 1;
    case SF_META_U32: memcpy(&v, at + 4 * index, 4); *out = v.u32; return 1;
    case SF_META_I32: memcpy(&v, at + 4 * index, 4); *out = v.i32; return 1;
    case SF_META_U64:
        memcpy(&v, at + 8 * index, 8);
        *out = v.u64 > INT64_MAX ? INT64_MAX : (int64_t)v.u64;
        return 1;
    case SF_META_I64: memcpy(&v, at + 8 * index, 8); *out = v.i64; return 1;
    default: return 0;
    }
}

static sf_status absent(const struct sf_file *file, const struct sf_meta_want *want)
{
    if (!want->required) return SF_OK;
    return SF_FAIL(SF_FORMAT, "%s: key '%s' is missing", file->path, want->key);
}

sf_status sf_file_int(const struct sf_file *file, const struct sf_meta_want *want, int64_t *value)
{
    const struct sf_meta *meta = sf_file_meta(file, want->key);
    if (meta == NULL) return absent(file, want);
    int array = meta->type == SF_META_ARRAY;
    if (array && (uint64_t)want->index >= meta->count)
        return SF_FAIL(SF_FORMAT, "%s: key '%s' has %" PRIu64 " elements, element %d is needed",
                       file->path, want->key, meta->count, want->index);
    int64_t found;
    if (!load_int(array ? meta->element : meta->type, meta->data,
                  array ? (uint64_t)want->index : 0, &found))
        return SF_FAIL(SF_FORMAT, "%s: key '%s' is not an integer", file->path, want->key);
    if ((double)found < want->min || (double)found > want->max)
        return SF_FAIL(SF_FORMAT, "%s: key '%s' is %" PRId64 ", allowed are %.0f to %.0f",
                       file->path, want->key, found, want->min, want->max);
    *value = found;
    return SF_OK;
}

sf_status sf_file_float(const struct sf_file *file, const struct sf_meta_want *want, double *value)
{
    const struct sf_meta *meta = sf_file_meta(file, want->key);
    if (meta == NULL) return absent(file, want);
    double found;
    if (meta->type == SF_META_F32) {
        float narrow;
        memcpy(&narrow, meta->data, sizeof narrow);
        found = (double)narrow;
    } else if (meta->type == SF_META_F64) {
        memcpy(&found, meta->data, sizeof found);
    } else {
        return SF_FAIL(SF_FORMAT, "%s: key '%s' is not a real number", file->path, want->key);
    }
    if (!(found >= want->min && found <= want->max))      /* NaN fails too */
        return SF_FAIL(SF_FORMAT, "%s: key '%s' is %g, allowed are %g to %g", file->path,
                       want->key, found, want->min, want->max);
    *value = found;
    return SF_OK;
}

sf_status sf_file_text(const struct sf_file *file, const struct sf_meta_want *want,
                       struct sf_text *value)
{
    const struct sf_meta *meta = sf_file_meta(file, want->key);
    if (meta == NULL) return absent(file, want);
    if (meta->type != SF_META_STRING)
        return SF_FAIL(SF_FORMAT, "%s: key '%s' is not a string", file->path, want->key);
    *value = (struct sf_text){ (const char *)meta->data, (size_t)meta->count };
    return SF_OK;
}

struct sf_text sf_meta_next_text(const unsigned char **cursor)
{
    struct sf_text text = { (const char *)*cursor + 8, (size_t)sf_load_u64(*cursor) };
    *cursor += 8 + text.bytes;
    return text;
}
