/* model/format.h: the block formats that weights are stored in, and their decoding to f32.
 *
 * A row is a whole number of blocks; a block is `elements` consecutive elements in `bytes` bytes.
 *
 *   name   elements  bytes  block (d, m: IEEE f16, little-endian)      value
 *   F32           1      4
 *   F16           1      2
 *   BF16          1      2  upper half of an f32
 *   Q4_0         32     18  d | 16 B nibbles                           d (q - 8)
 *   Q4_1         32     20  d | m | 16 B nibbles                       d q + m
 *   Q5_0         32     22  d | u32 fifth bits | 16 B nibbles          d (q - 16)
 *   Q5_1         32     24  d | m | u32 fifth bits | 16 B nibbles      d q + m
 *   Q8_0         32     34  d | 32 x i8                                d q
 *
 * Element j < 16 is the low nibble of byte j, element j + 16 the high one; bit j of the fifth bits
 * belongs to element j. */
#ifndef SHEAF_MODEL_FORMAT_H
#define SHEAF_MODEL_FORMAT_H
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

enum { SF_FORMAT_ELEMENTS_MAX = 32 };

struct sf_format {
    const char *name;
    int32_t gguf_type;                  /* number in a GGUF tensor entry */
    int32_t elements, bytes;            /* of a block */
    void (*decode)(const unsigned char *block, int64_t blocks, float *out);
};

const struct sf_format *sf_format_of_gguf(uint32_t gguf_type);  /* NULL: no decoder */
const char *sf_format_gguf_name(uint32_t gguf_type);            /* also of those; NULL: no such */

SF_C_END
#endif
