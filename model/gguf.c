/* model/gguf.c: the GGUF container, versions 2 and 3, little-endian.  What the tensors mean is not
 * known here.
 *
 *   "GGUF" | u32 version | u64 tensors | u64 keys
 *   keys x    { string name | u32 type | value }
 *   tensors x { string name | u32 n_dims | u64 dims[], fastest first | u32 type | u64 offset }
 *   zeros up to a multiple of general.alignment (32 if the key is absent)
 *   data; offsets count from here and are multiples of the alignment
 *
 *   string: u64 length | bytes        array: u32 element type | u64 count | elements
 *
 * The file is hostile until shown otherwise: every read goes through take(), which knows where the
 * map ends, and counts are bounded by the bytes that are left before anything is allocated. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "model/file.h"

enum { KEYS_MAX = 1 << 16, TENSORS_MAX = 1 << 20, NAME_BYTES_MAX = 255, ALIGNMENT_MAX = 1 << 20,
       KEY_BYTES_MIN = 8 + 1 + 4 + 1, TENSOR_BYTES_MIN = 8 + 1 + 4 + 8 + 4 + 8 };

struct cursor {
    const struct sf_file *file;
    const unsigned char *at, *end;
};

static sf_status read_header(struct cursor *c, uint64_t *tensors_out, uint64_t *keys_out);
static sf_status read_keys(struct sf_file *file, struct cursor *c, uint64_t keys);
static sf_status read_tensors(struct sf_file *file, struct cursor *c, uint64_t tensors);
static sf_status place_tensors(struct sf_file *file, const struct cursor *c,
                               const uint64_t *offset);

sf_status sf_gguf_read(struct sf_file *file)
{
    struct cursor c = { file, file->map, file->map + file->map_bytes };
    uint64_t tensors, keys;
    SF_TRY(read_header(&c, &tensors, &keys));
    SF_TRY(read_keys(file, &c, keys));

    int64_t pieces = 1;
    SF_TRY(sf_file_int(file, &(struct sf_meta_want){ "split.count", 0, 0, 65535, 0 }, &pieces));
    if (pieces > 1)
        return SF_FAIL(SF_UNSUPPORTED, "%s: one of %" PRId64 " pieces of a split model; join them "
                       "into one file first", file->path, pieces);
    SF_TRY(read_tensors(file, &c, tensors));
    file->rope_interleaved = 1;
    return SF_OK;
}

static sf_status take(struct cursor *c, uint64_t bytes, const char *what,
                      const unsigned char **out)
{
    uint64_t left = (uint64_t)(c->end - c->at);
    if (bytes > left)
        return SF_FAIL(SF_FORMAT, "%s: cut short in %s: %" PRIu64 " bytes are needed at offset %td,"
                       " %" PRIu64 " are left", c->file->path, what, bytes, c->at - c->file->map,
                       left);
    *out = c->at;
    c->at += bytes;
    return SF_OK;
}

static sf_status take_u32(struct cursor *c, const char *what, uint32_t *out)
{
    const unsigned char *at = c->at;
    SF_TRY(take(c, 4, what, &at));
    *out = sf_load_u32(at);
    return SF_OK;
}

static sf_status take_u64(struct cursor *c, const char *what, uint64_t *out)
{
    const unsigned char *at = c->at;
    SF_TRY(take(c, 8, what, &at));
    *out = sf_load_u64(at);
    return SF_OK;
}

/* Names end up in messages and on terminals, so only printable ASCII is let through. */
static sf_status take_name(struct cursor *c, const char *what, char **out)
{
    uint64_t bytes;
    const unsigned char *at;
    SF_TRY(take_u64(c, what, &bytes));
    if (bytes == 0 || bytes > NAME_BYTES_MAX)
        return SF_FAIL(SF_FORMAT, "%s: %s of %" PRIu64 " bytes (1 to %d are allowed)",
                       c->file->path, what, bytes, NAME_BYTES_MAX);
    SF_TRY(take(c, bytes, what, &at));
    for (uint64_t i = 0; i < bytes; i++)
        if (at[i] <= 0x20 || at[i] >= 0x7f)
            return SF_FAIL(SF_FORMAT, "%s: %s with byte 0x%02x in it", c->file->path, what, at[i]);
    *out = strndup((const char *)at, (size_t)bytes);
    if (*out == NULL) return SF_FAIL(SF_NO_MEMORY, "%s: no memory for %s", c->file->path, what);
    return SF_OK;
}

static sf_status read_header(struct cursor *c, uint64_t *tensors_out, uint64_t *keys_out)
{
    const unsigned char *magic;
    uint32_t version;
    SF_TRY(take(c, 4, "the header", &magic));
    SF_TRY(take_u32(c, "the header", &version));
    if (version > 0xffff && (version & 0xffff) == 0)
        return SF_FAIL(SF_UNSUPPORTED, "%s: a big-endian GGUF file", c->file->path);
    if (version != 2 && version != 3)
        return SF_FAIL(SF_UNSUPPORTED, "%s: GGUF version %" PRIu32 " (2 and 3 are read)",
                       c->file->path, version);
    SF_TRY(take_u64(c, "the header", tensors_out));
    SF_TRY(take_u64(c, "the header", keys_out));
    uint64_t left = (uint64_t)(c->end - c->at);
    if (*keys_out > KEYS_MAX || *keys_out > left / KEY_BYTES_MIN)
        return SF_FAIL(SF_FORMAT, "%s: says it has %" PRIu64 " keys in %zu bytes", c->file->path,
                       *keys_out, c->file->map_bytes);
    if (*tensors_out > TENSORS_MAX || *tensors_out > left / TENSOR_BYTES_MIN)
        return SF_FAIL(SF_FORMAT, "%s: says it has %" PRIu64 " tensors in %zu bytes",
                       c->file->path, *tensors_out, c->file->map_bytes);
    return SF_OK;
}

/* ---- keys ---------------------------------------------------------------------------------- */

static uint64_t scalar_bytes(uint32_t type)     /* 0: not a scalar */
{
    static const uint8_t bytes[SF_META_TYPES] = {
        [SF_META_U8] = 1, [SF_META_I8] = 1, [SF_META_U16] = 2, [SF_META_I16] = 2,
        [SF_META_U32] = 4, [SF_META_I32] = 4, [SF_META_F32] = 4, [SF_META_BOOL] = 1,
        [SF_META_U64] = 8, [SF_META_I64] = 8, [SF_META_F64] = 8,
    };
    return type < SF_META_TYPES ? bytes[type] : 0;
}

static sf_status read_array(struct cursor *c, struct sf_meta *meta)
{
    uint32_t element;
    SF_TRY(take_u32(c, meta->key, &element));
    SF_TRY(take_u64(c, meta->key, &meta->count));
    if (element == SF_META_ARRAY)
        return SF_FAIL(SF_UNSUPPORTED, "%s: key '%s' is an array of arrays", c->file->path,
                       meta->key);
    meta->data = c->at;
    if (element == SF_META_STRING) {
        for (uint64_t i = 0; i < meta->count; i++) {    /* ends with the file at the latest */
            uint64_t bytes;
            const unsigned char *at;
            SF_TRY(take_u64(c, meta->key, &bytes));
            SF_TRY(take(c, bytes, meta->key, &at));
        }
    } else {
        uint64_t each = scalar_bytes(element);
        if (each == 0)
            return SF_FAIL(SF_FORMAT, "%s: key '%s' is an array of unknown type %" PRIu32,
                           c->file->path, meta->key, element);
        if (meta->count > (uint64_t)(c->end - c->at) / each)
            return SF_FAIL(SF_FORMAT, "%s: key '%s' says it has %" PRIu64 " elements",
                           c->file->path, meta->key, meta->count);
        const unsigned char *at;
        SF_TRY(take(c, meta->count * each, meta->key, &at));
    }
    meta->element = (enum sf_meta_type)element;
    meta->bytes = (uint64_t)(c->at - meta->data);
    return SF_OK;
}

static sf_status read_value(struct cursor *c, struct sf_meta *meta)
{
    uint32_t type;
    SF_TRY(take_u32(c, meta->key, &type));
    meta->type = (enum sf_meta_type)type;
    if (type == SF_META_ARRAY) return read_array(c, meta);
    meta->count = 1;
    meta->bytes = scalar_bytes(type);
    if (type == SF_META_STRING) {
        SF_TRY(take_u64(c, meta->key, &meta->count));
        meta->bytes = meta->count;
    } else if (meta->bytes == 0) {
        return SF_FAIL(SF_FORMAT, "%s: key '%s' is of unknown type %" PRIu32, c->file->path,
                       meta->key, type);
    }
    return take(c, meta->bytes, meta->key, &meta->data);
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const struct sf_meta *)a)->key, ((const struct sf_meta *)b)->key);
}

static sf_status read_keys(struct sf_file *file, struct cursor *c, uint64_t keys)
{
    file->meta = calloc((size_t)keys + 1, sizeof *file->meta);
    if (file->meta == NULL)
        return SF_FAIL(SF_NO_MEMORY, "%s: no memory for %" PRIu64 " keys", file->path, keys);
    for (uint64_t i = 0; i < keys; i++) {
        struct sf_meta *meta = &file->meta[i];
        SF_TRY(take_name(c, "a key's name", &meta->key));
        file->metas++;
        SF_TRY(read_value(c, meta));
    }
    qsort(file->meta, (size_t)keys, sizeof *file->meta, by_key);
    for (uint64_t i = 1; i < keys; i++)
        if (strcmp(file->meta[i - 1].key, file->meta[i].key) == 0)
            return SF_FAIL(SF_FORMAT, "%s: key '%s' twice", file->path, file->meta[i].key);
    return SF_OK;
}

/* ---- tensors ------------------------------------------------------------------------------- */

/* Sizes of one tensor from its dims; none of the products can overflow on the way. */
static sf_status measure(const struct sf_file *file, struct sf_tensor *t)
{
    int64_t elements = 1;
    for (int32_t d = 0; d < t->n_dims; d++) {
        if (t->dims[d] < 1 || t->dims[d] > INT64_MAX / 64 / elements)
            return SF_FAIL(SF_FORMAT, "%s: tensor '%s': dimension %d is %" PRIu64 " elements",
                           file->path, t->name, d, (uint64_t)t->dims[d]);
        elements *= t->dims[d];
    }
    if (t->dims[0] > INT32_MAX || elements / t->dims[0] > INT32_MAX)
        return SF_FAIL(SF_UNSUPPORTED, "%s: tensor '%s' has rows of %" PRId64 " elements and %"
                       PRId64 " rows (2^31 - 1 are the most)", file->path, t->name, t->dims[0],
                       elements / t->dims[0]);
    if (t->dims[0] % t->format->elements != 0)
        return SF_FAIL(SF_FORMAT, "%s: tensor '%s': rows of %" PRId64 " elements are no whole "
                       "blocks of %s (%d elements)", file->path, t->name, t->dims[0],
                       t->format->name, t->format->elements);
    t->cols = (int32_t)t->dims[0];
    t->rows = (int32_t)(elements / t->dims[0]);
    t->row_bytes = t->dims[0] / t->format->elements * t->format->bytes;
    t->bytes = t->row_bytes * t->rows;
    return SF_OK;
}

static sf_status read_tensor(struct sf_file *file, struct cursor *c, uint64_t *offset_out)
{
    struct sf_tensor *t = &file->tensor[file->tensors];
    uint32_t n_dims, type;
    SF_TRY(take_name(c, "a tensor's name", &t->name));
    file->tensors++;
    SF_TRY(take_u32(c, t->name, &n_dims));
    if (n_dims < 1 || n_dims > SF_TENSOR_DIMS)
        return SF_FAIL(SF_FORMAT, "%s: tensor '%s' has %" PRIu32 " dimensions (1 to %d)",
                       file->path, t->name, n_dims, SF_TENSOR_DIMS);
    t->n_dims = (int32_t)n_dims;
    for (int32_t d = 0; d < SF_TENSOR_DIMS; d++) {
        uint64_t dim = 1;
        if (d < t->n_dims) SF_TRY(take_u64(c, t->name, &dim));
        t->dims[d] = (int64_t)dim;      /* 2^63 and more turn negative, which measure() refuses */
    }
    SF_TRY(take_u32(c, t->name, &type));
    SF_TRY(take_u64(c, t->name, offset_out));
    t->format = sf_format_of_gguf(type);
    if (t->format == NULL && sf_format_gguf_name(type) != NULL)
        return SF_FAIL(SF_UNSUPPORTED, "%s: tensor '%s' is %s, which is not built (F32, F16, BF16, "
                       "Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 are)", file->path, t->name,
                       sf_format_gguf_name(type));
    if (t->format == NULL)
        return SF_FAIL(SF_FORMAT, "%s: tensor '%s' is of unknown type %" PRIu32, file->path,
                       t->name, type);
    return measure(file, t);
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(struct sf_tensor *const *)a)->name, (*(struct sf_tensor *const *)b)->name);
}

static sf_status read_tensors(struct sf_file *file, struct cursor *c, uint64_t tensors)
{
    file->tensor = calloc((size_t)tensors + 1, sizeof *file->tensor);
    file->by_name = calloc((size_t)tensors + 1, sizeof(struct sf_tensor *));
    uint64_t *offset = calloc((size_t)tensors + 1, sizeof *offset);
    sf_status status = SF_OK;
    if (file->tensor == NULL || file->by_name == NULL || offset == NULL)
        status = SF_FAIL(SF_NO_MEMORY, "%s: no memory for %" PRIu64 " tensors", file->path,
                         tensors);
    for (uint64_t i = 0; status == SF_OK && i < tensors; i++)
        status = read_tensor(file, c, &offset[i]);
    if (status == SF_OK) status = place_tensors(file, c, offset);
    free(offset);
    SF_TRY(status);

    for (uint64_t i = 0; i < tensors; i++) file->by_name[i] = &file->tensor[i];
    qsort(file->by_name, (size_t)tensors, sizeof(struct sf_tensor *), by_name);
    for (uint64_t i = 1; i < tensors; i++)
        if (strcmp(file->by_name[i - 1]->name, file->by_name[i]->name) == 0)
            return SF_FAIL(SF_FORMAT, "%s: tensor '%s' twice", file->path,
                           file->by_name[i]->name);
    return SF_OK;
}

/* Turns offsets into pointers, once it is known where the data begin. */
static sf_status place_tensors(struct sf_file *file, const struct cursor *c,
                               const uint64_t *offset)
{
    int64_t alignment = 32;
    SF_TRY(sf_file_int(file, &(struct sf_meta_want){ "general.alignment", 0, 1, ALIGNMENT_MAX, 0 },
                       &alignment));
    if ((alignment & (alignment - 1)) != 0)
        return SF_FAIL(SF_FORMAT, "%s: general.alignment is %" PRId64 ", not a power of two",
                       file->path, alignment);
    uint64_t head = (uint64_t)(c->at - file->map), mask = (uint64_t)alignment - 1;
    uint64_t start = (head + mask) & ~mask;
    uint64_t data = start < file->map_bytes ? file->map_bytes - start : 0;
    for (int32_t i = 0; i < file->tensors; i++) {
        struct sf_tensor *t = &file->tensor[i];
        if ((offset[i] & mask) != 0)
            return SF_FAIL(SF_FORMAT, "%s: tensor '%s' lies at %" PRIu64 ", no multiple of %"
                           PRId64, file->path, t->name, offset[i], alignment);
        if (offset[i] > data || (uint64_t)t->bytes > data - offset[i])
            return SF_FAIL(SF_FORMAT, "%s: cut short: tensor '%s' needs %" PRId64 " bytes at %"
                           PRIu64 " of %" PRIu64 " bytes of data", file->path, t->name, t->bytes,
                           offset[i], data);
        t->data = file->map + start + offset[i];
    }
    return SF_OK;
}
