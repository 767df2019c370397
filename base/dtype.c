/* base/dtype.c: conversions between 16-bit storage and f32, in plain C that vectorises.
 *
 *   f32   s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm    bias 127
 *   f16   s eeeee mmmmmmmmmm                    bias 15, least normal 2^-14, unit 2^-24 below it
 *   bf16  s eeeeeeee mmmmmmm                    the upper half of an f32
 *
 * The loops have selects instead of branches: each lane computes the normal and the subnormal
 * answer and takes one.  The additions and multiplications used are exact or round by the
 * processor's default mode (nearest, ties to even), and neither has an f32 subnormal as a result
 * that matters, so "flush to zero" modes set by a maths library change nothing. */
#include "base/dtype.h"

static const char *const names[] = { "f32", "f16", "bf16", "int8" };

static inline uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Moving the exponent from bias 15 to bias 127 adds 112; infinities and NaN have exponent 31 and
 * need 255, so they add 112 once more.  Below 2^-14 the value is mantissa * 2^-24. */
static inline float widen(uint16_t half)
{
    int32_t magnitude = half & 0x7fff;
    float subnormal = (float)magnitude * 0x1p-24f;
    uint32_t normal = ((uint32_t)magnitude << 13) + (112u << 23);
    uint32_t bits = magnitude >= 0x7c00 ? normal + (112u << 23) : normal;
    bits = magnitude < 0x400 ? bits_of(subnormal) : bits;
    return float_of(bits | (uint32_t)(half & 0x8000) << 16);
}

/* Normal results: drop 13 bits after adding just under half of the last kept unit, plus one where
 * that unit is odd; a carry runs into the exponent, at the top into infinity.  Subnormal results:
 * the unit of 0.5f is 2^-24, so adding 0.5f rounds to it and leaves the code in the low bits. */
static inline uint16_t narrow(float value)
{
    uint32_t bits = bits_of(value);
    int32_t magnitude = (int32_t)(bits & 0x7fffffffu);
    int32_t subnormal = (int32_t)(bits_of(float_of((uint32_t)magnitude) + 0.5f) - 0x3f000000u);
    /* Clamped so that what is far too large cannot overflow the sum; NaN is set apart below. */
    int32_t finite = magnitude < 0x47800000 ? magnitude : 0x47800000;
    int32_t normal = (finite - (112 << 23) + 0xfff + ((finite >> 13) & 1)) >> 13;
    int32_t half = magnitude < 0x38800000 ? subnormal : normal;
    int32_t nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
    half = magnitude > 0x7f800000 ? nan : half;
    return (uint16_t)((uint32_t)half | (bits >> 16 & 0x8000u));
}

float sf_f16_to_f32(uint16_t bits)
{
    return widen(bits);
}

uint16_t sf_f32_to_f16(float value)
{
    return narrow(value);
}

void sf_to_f32(enum sf_dtype dtype, const void *source, float *target, size_t count)
{
    const uint16_t *restrict from = source;
    float *restrict to = target;
    switch (dtype) {
    case SF_F32:
        if (count > 0) memmove(target, source, count * sizeof *target);
        return;
    case SF_F16:
        for (size_t i = 0; i < count; i++) to[i] = widen(from[i]);
        return;
    case SF_BF16:
        for (size_t i = 0; i < count; i++) to[i] = sf_bf16_to_f32(from[i]);
        return;
    case SF_INT8:
        for (size_t i = 0; i < count; i++) to[i] = (float)((const int8_t *)source)[i];
        return;
    }
    SF_ASSERT(!"known dtype");
}

void sf_from_f32(enum sf_dtype dtype, const float *source, void *target, size_t count)
{
    const float *restrict from = source;
    uint16_t *restrict to = target;
    switch (dtype) {
    case SF_F32:
        if (count > 0) memmove(target, source, count * sizeof *source);
        return;
    case SF_F16:
        for (size_t i = 0; i < count; i++) to[i] = narrow(from[i]);
        return;
    case SF_BF16:
        for (size_t i = 0; i < count; i++) to[i] = sf_f32_to_bf16(from[i]);
        return;
    case SF_INT8: break;                /* there is no scale here */
    }
    SF_ASSERT(!"known dtype");
}

const char *sf_dtype_name(enum sf_dtype dtype)
{
    SF_ASSERT((unsigned)dtype < sizeof names / sizeof *names);
    return names[dtype];
}

sf_status sf_dtype_parse(const char *name, enum sf_dtype *dtype_out)
{
    for (size_t i = 0; i <= SF_BF16; i++)
        if (strcmp(name, names[i]) == 0) {
            *dtype_out = (enum sf_dtype)i;
            return SF_OK;
        }
    return SF_FAIL(SF_INVALID, "element type is '%.32s'; allowed: f32, f16, bf16", name);
}
