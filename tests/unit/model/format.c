/* tests/unit/model/format.c: each block format decodes a known pattern to known values.
 *
 * Block bytes are (37 i + 11) mod 256 with d = 0.5 and m = -0.25 put in; the expected elements and
 * sums were computed apart from this code and agree with other decoders.  One row with two blocks
 * shows that the second is decoded at its place. */
#include "model/format.h"

#include "tests/check.h"

struct vector {
    const char *name;
    uint32_t type;
    int has_m, at[4];
    float value[4];
    double sum;
};

static const struct vector vectors[] = {
    { "Q4_0", 2, 0, { 0, 1, 31, 31 }, { -1.5f, 1, 0, 0 }, -10.5 },
    { "Q4_1", 3, 1, { 0, 1, 31, 31 }, { 7.25f, 1.75f, 5.75f, 5.75f }, 114.5 },
    { "Q5_0", 6, 0, { 0, 1, 16, 31 }, { 4.5f, -1, 7, 0.5f }, 7.5 },
    { "Q5_1", 7, 1, { 0, 1, 16, 31 }, { 9.25f, 11.75f, 9.25f, 2.25f }, 244.5 },
    { "Q8_0", 8, 0, { 0, 1, 31, 31 }, { 42.5f, 61, -24, -24 }, -88 },
};

static void test_blocks(void)
{
    for (size_t v = 0; v < sizeof vectors / sizeof vectors[0]; v++) {
        const struct vector *want = &vectors[v];
        const struct sf_format *format = sf_format_of_gguf(want->type);
        unsigned char block[2][64];
        float out[64];
        SF_CHECK(format != NULL);
        if (format == NULL) continue;
        SF_CHECK_STR(format->name, want->name);
        SF_CHECK_INT(format->elements, 32);
        for (int i = 0; i < format->bytes; i++) block[0][i] = (unsigned char)(37 * i + 11);
        memcpy(block[0], "\x00\x38", 2);                        /* 0.5 */
        if (want->has_m) memcpy(block[0] + 2, "\x00\xb4", 2);   /* -0.25 */
        unsigned char two[128];
        memset(two, 0, (size_t)format->bytes);
        memcpy(two + format->bytes, block[0], (size_t)format->bytes);
        format->decode(two, 2, out);
        double sum = 0;
        for (int i = 0; i < 32; i++) {
            SF_CHECK_NEAR(out[i], 0, 0);                        /* d = 0, m = 0 */
            sum += (double)out[32 + i];
        }
        for (int i = 0; i < 4; i++) SF_CHECK_NEAR(out[32 + want->at[i]], want->value[i], 0);
        SF_CHECK_NEAR(sum, want->sum, 0);
    }
}

static void test_plain(void)
{
    float out[3];
    const float f32[3] = { 1.5f, -2, 1e-20f };
    sf_format_of_gguf(0)->decode((const unsigned char *)f32, 3, out);
    SF_CHECK(memcmp(f32, out, sizeof out) == 0);
    const unsigned char f16[] = { 0x00, 0x3c, 0x00, 0xc0, 0x01, 0x00 };  /* 1, -2, 2^-24 */
    sf_format_of_gguf(1)->decode(f16, 3, out);
    SF_CHECK_NEAR(out[0], 1, 0);
    SF_CHECK_NEAR(out[1], -2, 0);
    SF_CHECK_NEAR(out[2], 5.9604644775390625e-8, 0);
    const unsigned char bf16[] = { 0x80, 0x3f, 0x20, 0xc1, 0x00, 0x00 }; /* 1, -10, 0 */
    sf_format_of_gguf(30)->decode(bf16, 3, out);
    SF_CHECK_NEAR(out[0], 1, 0);
    SF_CHECK_NEAR(out[1], -10, 0);
    SF_CHECK_NEAR(out[2], 0, 0);
}

static void test_names(void)
{
    SF_CHECK(sf_format_of_gguf(12) == NULL);
    SF_CHECK_STR(sf_format_gguf_name(12), "Q4_K");
    SF_CHECK(sf_format_gguf_name(4) == NULL);
    SF_CHECK(sf_format_gguf_name(0xffffffffu) == NULL);
    SF_CHECK(sf_format_of_gguf(0xffffffffu) == NULL);
}

static const struct sf_test tests[] = {
    { "blocks", test_blocks }, { "plain", test_plain }, { "names", test_names }, { NULL, NULL } };
SF_TEST_MAIN("model_format", tests)
