/* model/format.c: decoders of the block formats drawn in format.h. */
#include "model/format.h"

#include <stddef.h>
#include <string.h>

#include "base/dtype.h"

static float half_at(const unsigned char *at)
{
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
    return sf_f16_to_f32(bits);
}

static void decode_f32(const unsigned char *block, int64_t blocks, float *out)
{
    memcpy(out, block, (size_t)blocks * sizeof(float));
}

static void decode_f16(const unsigned char *block, int64_t blocks, float *out)
{
    for (int64_t i = 0; i < blocks; i++) out[i] = half_at(block + 2 * i);
}

static void decode_bf16(const unsigned char *block, int64_t blocks, float *out)
{
    for (int64_t i = 0; i < blocks; i++) {
        uint16_t bits;
        memcpy(&bits, block + 2 * i, sizeof bits);
        out[i] = sf_bf16_to_f32(bits);
    }
}

static void decode_q4_0(const unsigned char *block, int64_t blocks, float *out)
{
    for (int64_t b = 0; b < blocks; b++, block += 18, out += 32) {
        float d = half_at(block);
        const unsigned char *q = block + 2;
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)((q[j] & 15) - 8);
            out[j + 16] = d * (float)((q[j] >> 4) - 8);
        }
    }
}

static void decode_q4_1(const unsigned char *block, int64_t blocks, float *out)
{
    for (int64_t b = 0; b < blocks; b++, block += 20, out += 32) {
        float d = half_at(block), m = half_at(block + 2);
        const unsigned char *q = block + 4;
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)(q[j] & 15) + m;
            out[j + 16] = d * (float)(q[j] >> 4) + m;
        }
    }
}

/* Element e (0..31) of a block of 5-bit codes. */
static int code5(uint32_t fifth, const unsigned char *q, int e)
{
    int low = e < 16 ? q[e] & 15 : q[e - 16] >> 4;
    return low | (int)((fifth >> e) & 1u) << 4;
}

static void decode_q5_0(const unsigned char *block, int64_t blocks, float *out)
{
    for (int64_t b = 0; b < blocks; b++, block += 22, out += 32) {
        float d = half_at(block);
        uint32_t fifth;
        memcpy(&fifth, block + 2, sizeof fifth);
        for (int e = 0; e < 32; e++) out[e] = d * (float)(code5(fifth, block + 6, e) - 16);
    }
}

static void decode_q5_1(const unsigned char *block, int64_t blocks, float *out)
{
    for (int64_t b = 0; b < blocks; b++, block += 24, out += 32) {
        float d = half_at(block), m = half_at(block + 2);
        uint32_t fifth;
        memcpy(&fifth, block + 4, sizeof fifth);
        for (int e = 0; e < 32; e++) out[e] = d * (float)code5(fifth, block + 8, e) + m;
    }
}

static void decode_q8_0(const unsigned char *block, int64_t blocks, float *out)
{
    for (int64_t b = 0; b < blocks; b++, block += 34, out += 32) {
        float d = half_at(block);
        for (int e = 0; e < 32; e++) out[e] = d * (float)(int8_t)block[2 + e];
    }
}

static const struct sf_format formats[] = {
    { "F32", 0, 1, 4, decode_f32 },
    { "F16", 1, 1, 2, decode_f16 },
    { "Q4_0", 2, 32, 18, decode_q4_0 },
    { "Q4_1", 3, 32, 20, decode_q4_1 },
    { "Q5_0", 6, 32, 22, decode_q5_0 },
    { "Q5_1", 7, 32, 24, decode_q5_1 },
    { "Q8_0", 8, 32, 34, decode_q8_0 },
    { "BF16", 30, 1, 2, decode_bf16 },
};

const struct sf_format *sf_format_of_gguf(uint32_t gguf_type)
{
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++)
        if (formats[i].gguf_type == (int64_t)gguf_type) return &formats[i];
    return NULL;
}

const char *sf_format_gguf_name(uint32_t gguf_type)
{
    static const char *const names[] = {
        [0] = "F32", [1] = "F16", [2] = "Q4_0", [3] = "Q4_1", [6] = "Q5_0", [7] = "Q5_1",
        [8] = "Q8_0", [9] = "Q8_1", [10] = "Q2_K", [11] = "Q3_K", [12] = "Q4_K", [13] = "Q5_K",
        [14] = "Q6_K", [15] = "Q8_K", [16] = "IQ2_XXS", [17] = "IQ2_XS", [18] = "IQ3_XXS",
        [19] = "IQ1_S", [20] = "IQ4_NL", [21] = "IQ3_S", [22] = "IQ2_S", [23] = "IQ4_XS",
        [24] = "I8", [25] = "I16", [26] = "I32", [27] = "I64", [28] = "F64", [29] = "IQ1_M",
        [30] = "BF16", [34] = "TQ1_0", [35] = "TQ2_0", [39] = "MXFP4",
    };
    return gguf_type < sizeof names / sizeof names[0] ? names[gguf_type] : NULL;
}
