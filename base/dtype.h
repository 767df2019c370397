/* base/dtype.h: element types of weights, activations and raw cache slots, and the conversions
 * between 16-bit storage and f32.  Conversions round to nearest, ties to even; NaN stays NaN.
 *
 * int8 is a type of cache slots alone: codes -127 .. 127, of which a vector has one scale
 * (kernels/layout.h).  Here it is only widened, code by code, without the scale. */
#ifndef SHEAF_BASE_DTYPE_H
#define SHEAF_BASE_DTYPE_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "base/status.h"
SF_C_BEGIN

enum sf_dtype { SF_F32, SF_F16, SF_BF16, SF_INT8 };
#define SF_F16_MAX 65504.0f             /* the greatest number of f16 */

static inline size_t sf_dtype_bytes(enum sf_dtype dtype)
{
    return dtype == SF_F32 ? 4 : dtype == SF_INT8 ? 1 : 2;
}
const char *sf_dtype_name(enum sf_dtype dtype);                     /* "f32" "f16" "bf16" "int8" */
/* Of those that weights may have; SF_INVALID for others. */
sf_status sf_dtype_parse(const char *name, enum sf_dtype *dtype_out);

static inline float sf_bf16_to_f32(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static inline uint16_t sf_f32_to_bf16(float value)
{
    uint32_t wide;
    memcpy(&wide, &value, sizeof wide);
    if ((wide & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((wide >> 16) | 0x40u);
    return (uint16_t)((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16);
}

float    sf_f16_to_f32(uint16_t bits);
uint16_t sf_f32_to_f16(float value);

/* Whole arrays, `count` elements; `dtype` names the other side: of sf_from_f32 not int8. */
void sf_to_f32(enum sf_dtype dtype, const void *source, float *target, size_t count);
void sf_from_f32(enum sf_dtype dtype, const float *source, void *target, size_t count);

SF_C_END
#endif
