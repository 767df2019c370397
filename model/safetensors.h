/* model/safetensors.h: files of named tensors, read and written.
 *
 *   byte 0    8                 8 + N
 *        | N  | header, N bytes | data of all tensors, one behind the other |
 *     N        u64, little-endian
 *     header   JSON: {"__metadata__": {"KEY": "TEXT", ...},
 *                     "NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
 *              offsets of the first byte and the one behind the last, from the header's end on
 *
 * A file comes from outside and is mapped.  Before a caller sees anything of it, every length,
 * shape and offset was checked against its size, tensors neither overlap nor leave gaps, and no
 * name comes twice.  Nothing is promised about the alignment of data. */
#ifndef SHEAF_MODEL_SAFETENSORS_H
#define SHEAF_MODEL_SAFETENSORS_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

enum { SF_ST_DIMS = 8 };
enum sf_st_type { SF_ST_BOOL, SF_ST_U8, SF_ST_I8, SF_ST_F8_E4M3, SF_ST_F8_E5M2, SF_ST_U16,
                  SF_ST_I16, SF_ST_F16, SF_ST_BF16, SF_ST_U32, SF_ST_I32, SF_ST_F32, SF_ST_U64,
                  SF_ST_I64, SF_ST_F64, SF_ST_TYPES };
const char *sf_st_type_name(enum sf_st_type);           /* "F32" */
int32_t     sf_st_type_bytes(enum sf_st_type);          /* of an element */

struct sf_st_tensor {
    const char *name;                   /* UTF-8, may hold any character but NUL */
    enum sf_st_type type;
    int32_t n_dims;
    int64_t dims[SF_ST_DIMS];           /* dims[n_dims - 1] is the fastest */
    int64_t elements, bytes;            /* set by the reader; the writer finds them itself */
    const void *data;                   /* reader: in the map, any alignment */
};

/* ---- reading --------------------------------------------------------------------------------- */
struct sf_st_file;
/* SF_IO, SF_FORMAT or SF_UNSUPPORTED (a type of element of which nothing is known), in one line
 * that names file and tensor. */
sf_status sf_st_open(const char *path, struct sf_st_file **file_out);
void      sf_st_close(struct sf_st_file *);             /* NULL is fine */
const char *sf_st_path(const struct sf_st_file *);
/* In the order of their data; pointers live as long as the file. */
int32_t sf_st_tensors(const struct sf_st_file *);
const struct sf_st_tensor *sf_st_tensor(const struct sf_st_file *, int32_t index);
const struct sf_st_tensor *sf_st_find(const struct sf_st_file *, const char *name);    /* or NULL */
const char *sf_st_meta(const struct sf_st_file *, const char *key);                    /* or NULL */
/* A name as it may stand in a message: printable ASCII, at most so many bytes. */
void sf_st_show_name(const char *name, char *out, size_t bytes);

/* ---- writing --------------------------------------------------------------------------------- */
struct sf_st_meta { const char *key, *text; };
struct sf_st_content {                  /* all pointers are the caller's */
    const struct sf_st_tensor *tensor; int32_t tensors;
    const struct sf_st_meta *meta; int32_t metas;
};
/* As `path`.new, synced, renamed; wide elements come first, so that all data is aligned.  SF_IO; a
 * name twice is SF_INVALID; then the old file is untouched. */
sf_status sf_st_write(const char *path, const struct sf_st_content *);

SF_C_END
#endif
