/* 16-bit conversions against their definition.  Widening: all 65,536 codes against the value that
 * sign, exponent and mantissa spell, computed with ldexp.  Narrowing: for each pair of neighbouring
 * codes the value half way between them (exact in f32) goes to the even one, and the next f32 to
 * either side goes to the nearer one; with what lies beyond the ends that covers every border where
 * the answer changes.  Array versions equal the scalar ones, also at odd lengths. */
#include <math.h>
#include <stdlib.h>

#include "base/dtype.h"
#include "tests/check.h"

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The f16 value of a finite code by its definition. */
static double f16_value(unsigned code)
{
    int exponent = code >> 10 & 31, mantissa = code & 1023;
    double value = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    return code & 0x8000 ? -value : value;
}

static double bf16_value(unsigned code)
{
    int exponent = code >> 7 & 255, mantissa = code & 127;
    double value = exponent == 0 ? ldexp(mantissa, -133) : ldexp(128 + mantissa, exponent - 134);
    return code & 0x8000 ? -value : value;
}

static void test_widen(void)
{
    int wrong16 = 0, wrongb16 = 0, nans = 0;
    for (unsigned code = 0; code < 0x10000; code++) {
        float f16 = sf_f16_to_f32((uint16_t)code), bf16 = sf_bf16_to_f32((uint16_t)code);
        unsigned magnitude = code & 0x7fff;
        float infinity = code & 0x8000 ? -INFINITY : INFINITY;
        if (magnitude < 0x7c00) wrong16 += bits_of(f16) != bits_of((float)f16_value(code));
        else if (magnitude == 0x7c00) wrong16 += f16 != infinity;
        else nans += isnan(f16) != 0;
        if (magnitude < 0x7f80) wrongb16 += bits_of(bf16) != bits_of((float)bf16_value(code));
        else if (magnitude == 0x7f80) wrongb16 += bf16 != infinity;
        else wrongb16 += !isnan(bf16);
    }
    SF_CHECK_INT(wrong16, 0);
    SF_CHECK_INT(wrongb16, 0);
    SF_CHECK_INT(nans, 2 * 1023);
}

/* Walks up the codes of one sign; `narrow` is the function under test, `value` the definition, and
 * `last` the code of the largest finite value, whose next code is infinity (and would be worth
 * what the formula says, which is what rounding up to it compares with). */
static int borders_wrong(uint16_t (*narrow)(float), double (*value)(unsigned), unsigned last,
                         unsigned sign)
{
    int wrong = 0;
    for (unsigned code = 0; code <= last; code++) {
        unsigned low = code | sign, high = (code + 1) | sign;
        float middle = (float)((value(low) + value(high)) / 2);
        wrong += narrow((float)value(low)) != low;
        /* bf16 near zero: the half-way point may be an f32 subnormal, which is still exact. */
        wrong += narrow(middle) != (code & 1 ? high : low);
        wrong += narrow(float_of(bits_of(middle) - 1)) != low;
        wrong += narrow(float_of(bits_of(middle) + 1)) != high;
    }
    return wrong;
}

static uint16_t narrow_bf16(float value)
{
    return sf_f32_to_bf16(value);
}

static void test_narrow(void)
{
    SF_CHECK_INT(borders_wrong(sf_f32_to_f16, f16_value, 0x7bff, 0), 0);
    SF_CHECK_INT(borders_wrong(sf_f32_to_f16, f16_value, 0x7bff, 0x8000), 0);
    SF_CHECK_INT(borders_wrong(narrow_bf16, bf16_value, 0x7f7e, 0), 0);
    SF_CHECK_INT(borders_wrong(narrow_bf16, bf16_value, 0x7f7e, 0x8000), 0);
}

static void test_narrow_ends(void)
{
    static const struct { uint32_t f32; uint16_t f16, bf16; } cases[] = {
        { 0x00000000, 0x0000, 0x0000 }, { 0x80000000, 0x8000, 0x8000 },
        { 0x00000001, 0x0000, 0x0000 }, { 0x80000001, 0x8000, 0x8000 },   /* least subnormal */
        { 0x7f7fffff, 0x7c00, 0x7f80 }, { 0xff7fffff, 0xfc00, 0xff80 },   /* largest finite */
        { 0x47800000, 0x7c00, 0x4780 }, { 0x477fefff, 0x7bff, 0x4780 },   /* 65536; 65519.99 */
        { 0x7f800000, 0x7c00, 0x7f80 }, { 0xff800000, 0xfc00, 0xff80 },   /* infinities */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        SF_CHECK_INT(sf_f32_to_f16(float_of(cases[i].f32)), cases[i].f16);
        SF_CHECK_INT(sf_f32_to_bf16(float_of(cases[i].f32)), cases[i].bf16);
    }
}

/* Quiet and signalling, payload in the high or only in the low bits, both signs. */
static void test_nan_stays_nan(void)
{
    static const uint32_t nans[] = { 0x7fc00000, 0xffc00000, 0x7f800001, 0xff800001, 0x7fffffff,
                                     0xffffffff, 0x7f802000, 0x7fa00000 };
    for (size_t i = 0; i < sizeof nans / sizeof *nans; i++) {
        uint16_t f16 = sf_f32_to_f16(float_of(nans[i])), bf16 = sf_f32_to_bf16(float_of(nans[i]));
        SF_CHECK(isnan(sf_f16_to_f32(f16)));
        SF_CHECK(isnan(sf_bf16_to_f32(bf16)));
        SF_CHECK_INT(f16 >> 15, nans[i] >> 31);
        SF_CHECK_INT(bf16 >> 15, nans[i] >> 31);
    }
}

static void test_arrays(void)
{
    enum { COUNT = 1003 };
    static uint16_t codes[COUNT + 1], back[COUNT + 1];
    static float values[COUNT + 1], copy[COUNT + 1];
    static const size_t counts[] = { 0, 1, 3, 8, 17, COUNT };
    for (int dtype = SF_F16; dtype <= SF_BF16; dtype++)
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            size_t count = counts[c];
            for (size_t i = 0; i <= COUNT; i++) codes[i] = (uint16_t)(i * 31013);
            values[count] = 77;
            back[count] = 0x1234;
            sf_to_f32((enum sf_dtype)dtype, codes, values, count);
            sf_from_f32((enum sf_dtype)dtype, values, back, count);
            SF_CHECK(values[count] == 77 && back[count] == 0x1234);
            int wrong = 0;
            for (size_t i = 0; i < count; i++) {
                float one = dtype == SF_F16 ? sf_f16_to_f32(codes[i]) : sf_bf16_to_f32(codes[i]);
                uint16_t narrowed = dtype == SF_F16 ? sf_f32_to_f16(one) : sf_f32_to_bf16(one);
                wrong += bits_of(one) != bits_of(values[i]) || narrowed != back[i];
                wrong += !isnan(one) && back[i] != codes[i];
            }
            SF_CHECK_INT(wrong, 0);
        }
    for (size_t i = 0; i < COUNT; i++) values[i] = (float)i / 7;
    sf_to_f32(SF_F32, values, copy, COUNT);
    SF_CHECK(memcmp(values, copy, COUNT * sizeof *copy) == 0);
    sf_from_f32(SF_F32, values + 1, copy, COUNT - 1);
    SF_CHECK(memcmp(values + 1, copy, (COUNT - 1) * sizeof *copy) == 0);
}

static void test_names(void)
{
    for (int i = SF_F32; i <= SF_BF16; i++) {
        enum sf_dtype dtype = SF_F32;
        SF_CHECK_OK(sf_dtype_parse(sf_dtype_name((enum sf_dtype)i), &dtype));
        SF_CHECK_INT(dtype, i);
    }
    enum sf_dtype dtype = SF_BF16;
    SF_CHECK_STR(sf_dtype_name(SF_INT8), "int8");
    SF_CHECK_INT(sf_dtype_bytes(SF_INT8), 1);
    SF_CHECK_FAILS(sf_dtype_parse("int8", &dtype), SF_INVALID); /* of slots alone */
    SF_CHECK_FAILS(sf_dtype_parse("fp16", &dtype), SF_INVALID);
    SF_CHECK_STR(sf_error_text(), "element type is 'fp16'; allowed: f32, f16, bf16");
    SF_CHECK_INT(dtype, SF_BF16);
}

static const struct sf_test tests[] = {
    { "widen all codes", test_widen },
    { "narrow at every border", test_narrow },
    { "narrow beyond the ends", test_narrow_ends },
    { "nan stays nan", test_nan_stays_nan },
    { "arrays", test_arrays },
    { "names", test_names },
    { NULL, NULL }
};
SF_TEST_MAIN("base_dtype", tests)
