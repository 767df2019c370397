/* tests/unit/coordinator/answer_text.c: stop strings over pieces of text cut anywhere.
 *
 * Shown without a tokenizer's help: text grows by pieces; whatever the cuts, the text ends before
 * the first stop string in it, and no earlier piece finds one. */
#include <stdlib.h>

#include "coordinator/answer_text.h"
#include "tests/check.h"

static char end[] = "END", xy[] = "xy", ndx[] = "NDx";
static const struct sf_stop stops[] = {{end, 3}, {xy, 2}, {ndx, 3}};

/* Feeds `text` in pieces whose sizes are the bits of `cuts`; the bytes that are left, or -1. */
static int64_t feed(const char *text, size_t bytes, uint32_t cuts, size_t count)
{
    struct sf_answer_text t = {0};
    t.text = malloc(bytes + 1);
    SF_ASSERT(t.text != NULL);
    int64_t left = -1;
    for (size_t i = 0; i < bytes && left < 0;) {
        size_t old = t.bytes;
        do t.text[t.bytes++] = text[i++]; while (i < bytes && !(cuts >> (i % 32) & 1));
        if (sf_answer_text_stop(&t, old, stops, count)) left = (int64_t)t.bytes;
    }
    free(t.text);
    return left;
}

static void test_cuts(void)
{
    static const struct { const char *text; size_t count; int64_t left; } cases[] = {
        {"abc END def", 1, 4}, {"ENENDEND", 1, 2}, {"END", 1, 0}, {"EN", 1, -1}, {"EnD", 1, -1},
        {"axxyEND", 3, 2}, {"nothing here", 3, -1}, {"", 3, -1}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++)
        for (uint32_t cuts = 0; cuts < 4096; cuts++) {
            int64_t left = feed(cases[c].text, strlen(cases[c].text), cuts, cases[c].count);
            if (left == cases[c].left) continue;
            sf_test_fail(__FILE__, __LINE__, "'%s' cut by %x: %lld bytes are left, expected %lld",
                         cases[c].text, cuts, (long long)left, (long long)cases[c].left);
            break;
        }
    SF_CHECK_INT(feed("abc", 3, 0, 0), -1);
}

/* In one piece, the stop string that begins first wins, whatever its place in the list. */
static void test_first(void)
{
    SF_CHECK_INT(feed("aENDxy", 6, 0, 3), 1);
    SF_CHECK_INT(feed("xyEND", 5, 0, 3), 0);
}

/* Without a tokenizer a token is spelt by its number; memory that was reserved is used. */
static void test_spelling(void)
{
    struct sf_answer_text t = {0};
    SF_MUST(sf_answer_text_reserve(&t, 2));
    const char *kept = t.text;
    SF_MUST(sf_answer_text_push(&t, NULL, 12));
    SF_MUST(sf_answer_text_push(&t, NULL, 3));
    SF_MUST(sf_answer_text_end(&t));
    SF_CHECK(t.bytes == 23 && memcmp(t.text, "token_id:12 token_id:3 ", 23) == 0);
    SF_CHECK(t.text == kept);
    free(t.text);
}

static const struct sf_test tests[] = {{"cuts", test_cuts},
                                       {"first", test_first},
                                       {"spelling", test_spelling},
                                       {NULL, NULL}};
SF_TEST_MAIN("answer_text", tests)
