/* Accepted texts come out of parse and dump as expected (order, escapes, NUL, shortest numbers);
 * refused ones give SF_FORMAT with a position; bounds hold at their exact border; every prefix and
 * many random damages of a record give a value or a clean refusal and leak nothing (sanitizers);
 * getters answer "no" to values of other types; builders survive NULL. */
#include <math.h>
#include <stdlib.h>

#include "base/json.h"
#include "base/rng.h"
#include "base/utf8.h"
#include "tests/check.h"

enum { BYTES_MAX = 1 << 26 };

static sf_status parse(const char *text, struct sf_json **value_out)
{
    return sf_json_parse(text, strlen(text), BYTES_MAX, value_out);
}

static void check_dump(const struct sf_json *value, int indent, const char *expected)
{
    char *text = NULL;
    size_t bytes = 0;
    SF_MUST(sf_json_dump(value, indent, &text, &bytes));
    SF_CHECK_STR(text, expected);
    SF_CHECK_INT(bytes, strlen(expected));
    free(text);
}

static void test_round_trip(void)
{
    static const struct { const char *in, *out; } cases[] = {
        { " {\"z\": 1, \"a\": [true, false, null], \"m\": {}} \n",
          "{\"z\":1,\"a\":[true,false,null],\"m\":{}}" },
        { "\"a\\u0000b\"", "\"a\\u0000b\"" },
        { "\"\\u00e9\\ud83d\\ude00 \\/ \\b\\f\\n\\r\\t\\\"\\\\ \\u001f \x7f\"",
          "\"\xc3\xa9\xf0\x9f\x98\x80 / \\b\\f\\n\\r\\t\\\"\\\\ \\u001f \x7f\"" },
        { "[]", "[]" }, { "-9223372036854775808", "-9223372036854775808" },
        { "9223372036854775807", "9223372036854775807" },
        { "0.1", "0.1" }, { "2.0", "2.0" }, { "-0.0", "-0.0" }, { "1e22", "1e+22" },
        { "1E-7", "1e-07" }, { "0.30000000000000004", "0.30000000000000004" },
        { "1e-400", "0.0" }, { "5e-324", "4.94065645841247e-324" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sf_json *value = NULL;
        SF_MUST(parse(cases[i].in, &value));
        check_dump(value, 0, cases[i].out);
        sf_json_free(value);
        SF_MUST(parse(cases[i].out, &value));
        check_dump(value, 0, cases[i].out);
        sf_json_free(value);
    }
}

static void test_refused(void)
{
    static const struct { const char *text, *words; } cases[] = {
        { "", "at byte 0" }, { "  ", "at byte 2" }, { "{", "at byte 1" },
        { "{\"a\": 1, \"a\": 2}", "at byte 12 (line 1, column 12): duplicate object key" },
        { "{\"a\": tru}", "at byte 9" }, { "[1, 2", "not valid JSON" }, { "[1,]", "at byte 4" },
        { "{} x", "at byte 4" }, { "[01]", "not valid JSON" }, { "'a'", "not valid JSON" },
        { "[\n1,\n\xff]", "line 3" }, { "\"\xed\xa0\x80\"", "not valid JSON" },
        { "\"\\ud800\"", "not valid JSON" }, { "\"a\nb\"", "not valid JSON" },
        { "{\"a\\u0000b\": 1}", "not valid JSON" }, { "NaN", "not valid JSON" },
        { "9223372036854775808", "too big integer" }, { "1e400", "overflow" },
        { "\xef\xbb\xbf{}", "not valid JSON" }, { "\"\\x\"", "not valid JSON" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sf_json *value = NULL;
        SF_CHECK_FAILS(parse(cases[i].text, &value), SF_FORMAT);
        SF_CHECK(value == NULL);
        const char *words = sf_error_text();
        if (strstr(words, cases[i].words) == NULL)
            sf_test_fail(__FILE__, __LINE__, "'%s' gave \"%s\"", cases[i].text, words);
        for (; *words != '\0'; words++) SF_CHECK(*words >= 0x20 && *words < 0x7f);
        sf_json_free(value);
    }
    struct sf_json *value = NULL;
    SF_CHECK_FAILS(sf_json_parse("{}\0", 3, 10, &value), SF_FORMAT);
    SF_CHECK_FAILS(sf_json_parse("[10]", 4, 3, &value), SF_FORMAT);
    SF_CHECK_STR(sf_error_text(), "JSON of 4 bytes; allowed: at most 3");
    SF_CHECK_OK(sf_json_parse("[10]xx", 4, 4, &value));
    sf_json_free(value);
}

static void test_bounds(void)
{
    static char deep[2 * (SF_JSON_DEPTH_MAX + 1)];
    struct sf_json *value = NULL;
    for (int extra = 0; extra < 2; extra++) {
        size_t depth = SF_JSON_DEPTH_MAX + (size_t)extra;
        memset(deep, '[', depth);
        memset(deep + depth, ']', depth);
        sf_status status = sf_json_parse(deep, 2 * depth, BYTES_MAX, &value);
        SF_CHECK_INT(status, extra ? SF_FORMAT : SF_OK);
    }
    SF_CHECK_STR(sf_error_text(), "JSON nested deeper than 128 at byte 129");
    sf_json_free(value);
    /* Brackets in a text are not nesting, and an escaped quote does not end the text. */
    memset(deep, '[', sizeof deep);
    memcpy(deep, "\"\\\"", 3);
    deep[sizeof deep - 1] = '"';
    SF_CHECK_OK(sf_json_parse(deep, sizeof deep, BYTES_MAX, &value));
    sf_json_free(value);

    /* "[0,0,...,0]" with n zeros counts as n + 1 values. */
    size_t zeros = SF_JSON_VALUES_MAX - 1;
    char *wide = malloc(2 * zeros + 3);
    if (wide == NULL) abort();
    for (size_t i = 0; i <= zeros; i++) memcpy(wide + 2 * i, "0,", 2);
    wide[2 * zeros + 1] = ']';
    memmove(wide + 1, wide, 2 * zeros + 1);
    wide[0] = '[';
    wide[2 * zeros] = ']';
    SF_CHECK_OK(sf_json_parse(wide, 2 * zeros + 1, BYTES_MAX, &value));
    SF_CHECK_INT(sf_json_count(value), zeros);
    sf_json_free(value);
    memcpy(wide + 2 * zeros, ",]", 2);
    SF_CHECK_FAILS(sf_json_parse(wide, 2 * zeros + 2, BYTES_MAX, &value), SF_FORMAT);
    SF_CHECK(strstr(sf_error_text(), "more than 2097152 values") != NULL);
    memset(wide, '[', 2 * zeros);
    wide[0] = wide[2 * zeros - 1] = '"';
    SF_CHECK_OK(sf_json_parse(wide, 2 * zeros, BYTES_MAX, &value));
    sf_json_free(value);
    free(wide);
}

static void test_getters(void)
{
    struct sf_json *root = NULL;
    SF_MUST(parse("{\"o\":{\"k\":1},\"a\":[5,6],\"t\":\"x\\u0000y\",\"i\":7,\"r\":2.5,\"y\":true,"
                  "\"n\":false,\"0\":null}", &root));
    static const char *const keys[] = { "o", "a", "t", "i", "r", "y", "n", "0" };
    static const char *const names[] = { "an object", "an array", "a string", "an integer",
                                         "a number with a fraction", "true", "false", "null" };
    const struct sf_json *value = NULL;
    const char *key = NULL;
    for (int type = SF_JSON_OBJECT; type <= SF_JSON_NULL; type++) {
        key = sf_json_next(root, key, &value);
        SF_CHECK_STR(key == NULL ? "end" : key, keys[type]);
        SF_CHECK(value == sf_json_member(root, keys[type]));
        SF_CHECK_INT(sf_json_type(value), type);
        SF_CHECK_STR(sf_json_type_name(value), names[type]);
        int64_t whole = -3;
        double real = -3;
        size_t bytes = 99;
        SF_CHECK_INT(sf_json_get_int(value, &whole), type == SF_JSON_INT);
        SF_CHECK_INT(whole, type == SF_JSON_INT ? 7 : -3);
        SF_CHECK_INT(sf_json_get_real(value, &real), type == SF_JSON_INT || type == SF_JSON_REAL);
        SF_CHECK(real == (type == SF_JSON_INT ? 7 : type == SF_JSON_REAL ? 2.5 : -3));
        const char *text = sf_json_text(value, &bytes);
        SF_CHECK_INT(text != NULL, type == SF_JSON_TEXT);
        SF_CHECK_INT(bytes, type == SF_JSON_TEXT ? 3 : 99);
        if (text != NULL) SF_CHECK(memcmp(text, "x\0y", 4) == 0);
        SF_CHECK_INT(sf_json_count(value),
                     type == SF_JSON_OBJECT ? 1 : type == SF_JSON_ARRAY ? 2 : 0);
        SF_CHECK_INT(sf_json_item(value, 1) != NULL, type == SF_JSON_ARRAY);
        SF_CHECK_INT(sf_json_member(value, "k") != NULL, type == SF_JSON_OBJECT);
    }
    SF_CHECK(sf_json_next(root, key, &value) == NULL);
    SF_CHECK(sf_json_item(sf_json_member(root, "a"), 2) == NULL);
    SF_CHECK(sf_json_member(root, "absent") == NULL);
    SF_CHECK(sf_json_member(NULL, "k") == NULL && sf_json_item(NULL, 0) == NULL);
    SF_CHECK(sf_json_next(NULL, NULL, &value) == NULL && sf_json_count(NULL) == 0);
    SF_CHECK_STR(sf_json_type_name(NULL), "nothing");
    int64_t whole;
    double real;
    size_t bytes;
    SF_CHECK(!sf_json_get_int(NULL, &whole) && !sf_json_get_real(NULL, &real));
    SF_CHECK(sf_json_text(NULL, &bytes) == NULL);
    sf_json_free(root);
}

static void test_build(void)
{
    struct sf_json *root = sf_json_new(SF_JSON_OBJECT), *list = sf_json_new(SF_JSON_ARRAY);
    SF_CHECK_OK(sf_json_set(root, "z", sf_json_new_int(INT64_MIN)));
    SF_CHECK_OK(sf_json_set(root, "list", list));
    SF_CHECK_OK(sf_json_append(list, sf_json_new_text("a\0b\xff\xe2\x82|", 7)));
    SF_CHECK_OK(sf_json_append(list, sf_json_new_text(NULL, 0)));
    SF_CHECK_OK(sf_json_append(list, sf_json_new_real(NAN)));
    SF_CHECK_OK(sf_json_append(list, sf_json_new_real(-INFINITY)));
    SF_CHECK_OK(sf_json_append(list, sf_json_new_real(3)));
    SF_CHECK_OK(sf_json_append(list, sf_json_new(SF_JSON_TRUE)));
    SF_CHECK_OK(sf_json_append(list, sf_json_new(SF_JSON_FALSE)));
    SF_CHECK_OK(sf_json_set(root, "empty", sf_json_new(SF_JSON_OBJECT)));
    SF_CHECK_OK(sf_json_set(root, "z", sf_json_new(SF_JSON_NULL)));      /* keeps its place */
    check_dump(root, 0, "{\"z\":null,\"list\":[\"a\\u0000b\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd|\","
                        "\"\",null,null,3.0,true,false],\"empty\":{}}");
    sf_json_free(root);

    root = sf_json_new(SF_JSON_OBJECT);
    list = sf_json_new(SF_JSON_ARRAY);
    SF_CHECK_OK(sf_json_append(list, sf_json_new_int(1)));
    SF_CHECK_OK(sf_json_append(list, sf_json_new_int(2)));
    SF_CHECK_OK(sf_json_set(root, "a", list));
    SF_CHECK_OK(sf_json_set(root, "b", sf_json_new(SF_JSON_ARRAY)));
    check_dump(root, 2, "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": []\n}");

    /* A lost allocation anywhere is said, and what was handed over is not leaked. */
    SF_CHECK_FAILS(sf_json_set(root, "c", NULL), SF_NO_MEMORY);
    SF_CHECK_FAILS(sf_json_set(NULL, "c", sf_json_new_int(5)), SF_NO_MEMORY);
    SF_CHECK_FAILS(sf_json_append(NULL, sf_json_new_text("x", 1)), SF_NO_MEMORY);
    SF_CHECK_FAILS(sf_json_append(list, NULL), SF_NO_MEMORY);
    SF_CHECK_FAILS(sf_json_set(root, "\xff", sf_json_new_int(5)), SF_INVALID);
    SF_CHECK_INT(sf_json_count(root), 2);
    sf_json_free(root);
    sf_json_free(NULL);
}

/* Doubles of random bits read back to the same bits, and never as integers. */
static void test_reals(void)
{
    int wrong = 0;
    for (uint64_t i = 0; i < 20000; i++) {
        uint64_t bits = sf_rng_u64(1, 2, i);
        double number, again = 0;
        memcpy(&number, &bits, sizeof number);
        if (!isfinite(number)) continue;
        struct sf_json *value = sf_json_new_real(number), *back = NULL;
        char *text = NULL;
        size_t bytes = 0;
        SF_MUST(sf_json_dump(value, 0, &text, &bytes));
        SF_MUST(sf_json_parse(text, bytes, 100, &back));
        wrong += !sf_json_get_real(back, &again) || memcmp(&again, &number, sizeof again) != 0;
        wrong += sf_json_type(back) != SF_JSON_REAL;
        free(text);
        sf_json_free(value);
        sf_json_free(back);
    }
    SF_CHECK_INT(wrong, 0);
}

static const char record[] =
    "{\"custom_id\":\"q-1\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{"
    "\"messages\":[{\"role\":\"user\",\"content\":\"h\xc3\xa9llo \\u00e9\\n\\ud83d\\ude00\"}],"
    "\"max_tokens\":16,\"temperature\":0.7,\"stop\":[\"\\n\\n\"],\"logit_bias\":{\"50256\":-100}}}";

static void test_damaged(void)
{
    size_t bytes = sizeof record - 1;
    struct sf_json *value = NULL;
    for (size_t cut = 0; cut < bytes; cut++) {
        char *copy = malloc(cut + 1);       /* its own block, so that reading past it is seen */
        if (copy == NULL) abort();
        memcpy(copy, record, cut);
        SF_CHECK_FAILS(sf_json_parse(copy, cut, BYTES_MAX, &value), SF_FORMAT);
        free(copy);
    }
    int accepted = 0, refused = 0;
    for (uint64_t round = 0; round < 20000; round++) {
        char copy[sizeof record];
        memcpy(copy, record, sizeof record);
        uint64_t random = sf_rng_u64(3, 4, round);
        for (unsigned i = 0; i < 1 + random % 4; i++) {
            uint64_t where = sf_rng_u64(5, round, i);
            copy[where % bytes] = (char)(where >> 32);
        }
        sf_status status = sf_json_parse(copy, bytes, BYTES_MAX, &value);
        if (status != SF_OK) {
            refused += status == SF_FORMAT;
            continue;
        }
        char *text = NULL, *text2 = NULL;
        size_t text_bytes = 0, text2_bytes = 0;
        SF_MUST(sf_json_dump(value, 0, &text, &text_bytes));
        sf_json_free(value);
        SF_MUST(sf_json_parse(text, text_bytes, BYTES_MAX, &value));
        SF_MUST(sf_json_dump(value, 0, &text2, &text2_bytes));
        accepted += text_bytes == text2_bytes && memcmp(text, text2, text_bytes) == 0;
        sf_json_free(value);
        free(text);
        free(text2);
    }
    SF_CHECK_INT(accepted + refused, 20000);
    SF_CHECK(accepted > 100 && refused > 100);
}

/* All sequences of up to three bytes, and four-byte ones at the borders of the table, against a
 * decoder by arithmetic: decode, then require the shortest form and an allowed code point. */
static size_t by_arithmetic(const unsigned char *s, size_t bytes)
{
    static const unsigned least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    size_t length = s[0] < 0x80 ? 1 : s[0] >> 5 == 6 ? 2 : s[0] >> 4 == 14 ? 3 : 4;
    if (length == 4 && s[0] >> 3 != 30) return 0;
    if (length > bytes) return 0;
    unsigned code = length == 1 ? s[0] : s[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if (s[i] >> 6 != 2) return 0;
        code = code << 6 | (s[i] & 63u);
    }
    int surrogate = code >= 0xd800 && code < 0xe000;
    return code < least[length] || surrogate || code > 0x10ffff ? 0 : length;
}

static void test_utf8(void)
{
    static const unsigned char edges[] = { 0,    0x7f, 0x80, 0x8f, 0x90,
                                           0x9f, 0xa0, 0xbf, 0xc0, 0xff };
    int wrong = 0;
    for (unsigned first = 0; first < 256; first++)
        for (unsigned second = 0; second < 256; second++)
            for (size_t e = 0; e < sizeof edges * sizeof edges; e++) {
                unsigned char s[4] = { (unsigned char)first, (unsigned char)second,
                                       edges[e / sizeof edges], edges[e % sizeof edges] };
                for (size_t bytes = 1; bytes <= 4; bytes++)
                    wrong += sf_utf8_char_bytes((const char *)s, bytes) != by_arithmetic(s, bytes);
            }
    SF_CHECK_INT(wrong, 0);
    SF_CHECK_INT(sf_utf8_char_bytes("", 0), 0);
    SF_CHECK(sf_utf8_valid("", 0) && sf_utf8_valid("a\0\xc3\xa9", 4) && !sf_utf8_valid("a\xc3", 2));
}

static const struct sf_test tests[] = {
    { "round trip", test_round_trip },
    { "refused", test_refused },
    { "bounds", test_bounds },
    { "getters", test_getters },
    { "build", test_build },
    { "reals", test_reals },
    { "damaged", test_damaged },
    { "utf8", test_utf8 },
    { NULL, NULL }
};
SF_TEST_MAIN("base_json", tests)
