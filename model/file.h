/* model/file.h: an opened weight file as a list of tensors and a list of metadata; inside model/.
 *
 * A reader (gguf.c) fills struct sf_file from one container format; model.c and llama.c then know
 * nothing of the container.  Another format is one more reader: it delivers tensors and metadata
 * under the names that GGUF uses ("blk.0.attn_q.weight", "llama.block_count"), whatever its own
 * file calls them, and says in `rope_interleaved` how the rows of q and k lie.
 *
 * Nothing in here is trusted twice: a reader checks every length against the map before it puts a
 * pointer into these structs, and what is in them may be followed blindly. */
#ifndef SHEAF_MODEL_FILE_H
#define SHEAF_MODEL_FILE_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "base/status.h"
#include "model/format.h"
SF_C_BEGIN

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are read as little-endian words");

enum { SF_TENSOR_DIMS = 4 };

struct sf_tensor {
    char *name;                         /* owned; printable ASCII, unique in the file */
    const struct sf_format *format;
    const unsigned char *data;          /* in the map; any alignment */
    int64_t bytes, row_bytes;
    int64_t dims[SF_TENSOR_DIMS];       /* dims[0] is the fastest: the row length; unused ones 1 */
    int32_t n_dims, rows, cols;         /* rows: product of dims[1..] */
    /* Set by the architecture: heads of `turn_head` rows whose first `turn_dim` are interleaved
     * RoPE pairs in the file and half-split for our callers.  0: rows are taken as they lie. */
    int32_t turn_head, turn_dim;
    uint8_t claimed;                    /* some role uses it */
};

/* One key.  A scalar has count 1; a string's count is its length; an array of strings holds
 * u64 lengths and bytes alternately, all inside [data, data + bytes). */
enum sf_meta_type { SF_META_U8, SF_META_I8, SF_META_U16, SF_META_I16, SF_META_U32, SF_META_I32,
                    SF_META_F32, SF_META_BOOL, SF_META_STRING, SF_META_ARRAY, SF_META_U64,
                    SF_META_I64, SF_META_F64, SF_META_TYPES };
struct sf_meta {
    char *key;                          /* owned */
    enum sf_meta_type type, element;    /* element: of an array */
    uint64_t count, bytes;
    const unsigned char *data;          /* in the map; any alignment */
};
struct sf_text { const char *at; size_t bytes; };

struct sf_file {
    char *path;
    const unsigned char *map;
    size_t map_bytes;
    struct sf_tensor *tensor;           /* in file order */
    struct sf_tensor **by_name;         /* the same, sorted */
    int32_t tensors;
    struct sf_meta *meta;               /* sorted by key */
    int32_t metas;
    uint8_t rope_interleaved;           /* rows of q and k are adjacent RoPE pairs */
};

/* Maps the file and has a reader fill in the rest. */
sf_status sf_file_open(const char *path, struct sf_file **file_out);
void      sf_file_close(struct sf_file *);
struct sf_tensor *sf_file_tensor(const struct sf_file *, const char *name);    /* or NULL */
const struct sf_meta *sf_file_meta(const struct sf_file *, const char *key);   /* or NULL */

/* A key's value; *value is left alone if the key is absent (then SF_FORMAT if `required`).  Wrong
 * type or out of range: SF_FORMAT with the key and the numbers.  An integer key that holds an
 * array gives element `index` of it. */
struct sf_meta_want { const char *key; uint8_t required; double min, max; int32_t index; };
sf_status sf_file_int(const struct sf_file *, const struct sf_meta_want *, int64_t *value);
sf_status sf_file_float(const struct sf_file *, const struct sf_meta_want *, double *value);
sf_status sf_file_text(const struct sf_file *, const struct sf_meta_want *, struct sf_text *value);
/* The next string of an array of strings; begin with *cursor = meta->data. */
struct sf_text sf_meta_next_text(const unsigned char **cursor);

/* gguf.c: fills tensors and metadata from the map. */
sf_status sf_gguf_read(struct sf_file *);

static inline uint32_t sf_load_u32(const void *at) { uint32_t v; memcpy(&v, at, 4); return v; }
static inline uint64_t sf_load_u64(const void *at) { uint64_t v; memcpy(&v, at, 8); return v; }

SF_C_END
#endif
