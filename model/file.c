/* model/file.c: mapping a weight file, and looking things up in what its reader found. */
#include "model/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static sf_status map_file(struct sf_file *file)
{
    int fd = open(file->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return SF_FAIL(SF_IO, "%s: %s", file->path, strerror(errno));
    struct stat info;
    sf_status status = SF_OK;
    if (fstat(fd, &info) != 0) {
        status = SF_FAIL(SF_IO, "%s: %s", file->path, strerror(errno));
    } else if (S_ISDIR(info.st_mode)) {
        status = SF_FAIL(SF_UNSUPPORTED, "%s: is a directory: weights in safetensors are not read"
                         " yet, so it can be planned and inspected, not run; a GGUF file can be",
                         file->path);
    } else if (!S_ISREG(info.st_mode)) {
        status = SF_FAIL(SF_IO, "%s: not a regular file (a model is one .gguf file)", file->path);
    } else if (info.st_size < 4) {
        status = SF_FAIL(SF_FORMAT, "%s: %lld bytes are too few for a model", file->path,
                         (long long)info.st_size);
    } else {
        void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED) {
            status = SF_FAIL(SF_IO, "%s: cannot be mapped: %s", file->path, strerror(errno));
        } else {
            file->map = map;
            file->map_bytes = (size_t)info.st_size;
        }
    }
    close(fd);
    return status;
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
    if (file->map != NULL) munmap((void *)(uintptr_t)file->map, file->map_bytes);
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
