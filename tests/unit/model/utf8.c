/* tests/unit/model/utf8.c: streamed text does not depend on where it was cut.
 *
 * Texts, right and broken, are pushed whole, byte by byte, and cut at every pair of borders; the
 * output is always the expected one, and nothing incomplete comes out early. */
#include "model/tokenizer.h"
#include "tests/check.h"

#define FFFD "\xef\xbf\xbd"

static const struct { const char *in, *out; } cases[] = {
    { "plain", "plain" },
    { "\xc3\xa9\xe2\x82\xac\xf0\x9f\x99\x82!", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x99\x82!" },
    /* Examples of the Unicode standard, chapter 3: one mark for each maximal part. */
    { "\xc0\xaf\xe0\x80\xbf\xf0\x81\x82" "A",
      FFFD FFFD FFFD FFFD FFFD FFFD FFFD FFFD "A" },
    { "\xed\xa0\x80\xed\xbf\xbf\xed\xaf" "A",
      FFFD FFFD FFFD FFFD FFFD FFFD FFFD FFFD "A" },
    { "\xf4\x91\x92\x93\xff" "A\x80\xbf" "B", FFFD FFFD FFFD FFFD FFFD "A" FFFD FFFD "B" },
    { "\xe1\x80\xe2\xf0\x91\x92\xf1\xbf" "A", FFFD FFFD FFFD FFFD "A" },
    { "\xe2\x82", FFFD },
    { "\xf0\x9f\x99", FFFD },
    { "a\xc3", "a" FFFD },
    { "\xef\xbf\xbd\xf4\x8f\xbf\xbf\xee\x80\x80\xed\x9f\xbf\xe0\xa0\x80\xf0\x90\x80\x80",
      "\xef\xbf\xbd\xf4\x8f\xbf\xbf\xee\x80\x80\xed\x9f\xbf\xe0\xa0\x80\xf0\x90\x80\x80" },
};

static size_t push(struct sf_utf8_stream *stream, const char *in, size_t first, size_t end,
                   char *out)
{
    return sf_utf8_push(stream, in + first, end - first, out);
}

static void test_every_border(void)
{
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t bytes = strlen(cases[i].in);
        for (size_t a = 0; a <= bytes; a++)
            for (size_t b = a; b <= bytes; b++) {
                struct sf_utf8_stream stream = { 0 };
                char out[256] = "";
                size_t n = push(&stream, cases[i].in, 0, a, out);
                n += push(&stream, cases[i].in, a, b, out + n);
                n += push(&stream, cases[i].in, b, bytes, out + n);
                n += sf_utf8_flush(&stream, out + n);
                SF_CHECK(n < sizeof out);
                out[n] = 0;
                SF_CHECK_STR(out, cases[i].out);
                SF_CHECK_INT(sf_utf8_flush(&stream, out), 0);
            }
    }
}

static void test_byte_by_byte(void)
{
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct sf_utf8_stream stream = { 0 };
        char out[256] = "";
        size_t n = 0, bytes = strlen(cases[i].in);
        for (size_t at = 0; at < bytes; at++) {
            size_t more = push(&stream, cases[i].in, at, at + 1, out + n);
            SF_CHECK(more <= 3 * (1 + 4));
            n += more;
        }
        n += sf_utf8_flush(&stream, out + n);
        out[n] = 0;
        SF_CHECK_STR(out, cases[i].out);
    }
}

static void test_holds_back(void)
{
    struct sf_utf8_stream stream = { 0 };
    char out[64];
    SF_CHECK_INT(sf_utf8_push(&stream, "\xf0\x9f", 2, out), 0);
    SF_CHECK_INT(sf_utf8_push(&stream, "\x99", 1, out), 0);
    SF_CHECK_INT(sf_utf8_push(&stream, "\x82x", 2, out), 5);
    SF_CHECK_INT(memcmp(out, "\xf0\x9f\x99\x82x", 5), 0);
    SF_CHECK_INT(sf_utf8_push(&stream, "a\0b", 3, out), 3);         /* NUL is a character */
}

static const struct sf_test tests[] = {
    { "every_border", test_every_border }, { "byte_by_byte", test_byte_by_byte },
    { "holds_back", test_holds_back }, { NULL, NULL } };
SF_TEST_MAIN("model_utf8", tests)
