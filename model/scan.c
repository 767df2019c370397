/* model/scan.c: pieces found by classes of characters.
 *
 * Every character is a letter (\p{L}), a numeral (\p{N}), white space (\s) or something else, and
 * each alternative of the expressions in split.c is a run of one class with something before or
 * behind it.  So the class of one character or two says which alternative it is that matches first,
 * and nothing has to be tried and taken back but the last blank of a run of white space.
 *
 *   GPT-2    's  't  're  've  'm  'll  'd         Llama 3   the same, in either case
 *            blank? letters                                  other-or-space? letters
 *            blank? numerals                                 numerals, so many
 *            blank? others                                   blank? others line-ends
 *            spaces                                          spaces up to their last line end
 *                                                            spaces
 *
 * Spaces that text follows leave their last one to it.  split.c holds the definition and
 * tests/unit/model/split.c sets both against each other. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/scan.h"

#include <pcre2.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { OTHER, LETTER, NUMERAL, SPACE, CLASSES };
enum { CODE_POINTS = 0x110000, SURROGATES = 0xd800, SURROGATES_END = 0xe000, BLOCK = 4096,
       LONG_S_1 = 0xc5, LONG_S_2 = 0xbf };

/* Made once: it takes some 20 ms. */
static uint8_t class_of[CODE_POINTS];
static int have_classes;
static pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;

struct look { uint8_t class, bytes; };

/* ---- the classes ----------------------------------------------------------------------------- */

static size_t spell(uint32_t code, unsigned char *out)
{
    size_t bytes = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = { 0, 0, 0xc0, 0xe0, 0xf0 };
    for (size_t i = bytes - 1; i > 0; i--, code >>= 6)
        out[i] = (unsigned char)(0x80 | (code & 0x3f));
    out[0] = (unsigned char)(lead[bytes] | code);
    return bytes;
}

/* Marks what `code` matches among the code points from `first` on, which `text` spells. */
static int mark(const pcre2_code *code, pcre2_match_data *match, const unsigned char *text,
                size_t bytes, uint8_t *class, uint8_t is)
{
    size_t from = 0, at = 0, index = 0;
    while (from < bytes) {
        int rc = pcre2_match(code, text, bytes, from, PCRE2_NO_UTF_CHECK, match, NULL);
        if (rc == PCRE2_ERROR_NOMATCH) return 1;
        if (rc < 0) return 0;
        const PCRE2_SIZE *found = pcre2_get_ovector_pointer(match);
        for (; at < found[1]; at++) {
            if ((text[at] & 0xc0) == 0x80) continue;
            if (at >= found[0]) {
                if (class[index] != OTHER) return 0;    /* no character is of two classes */
                class[index] = is;
            }
            index++;
        }
        from = found[1];
    }
    return 1;
}

static int classify(pcre2_code *const code[CLASSES], pcre2_match_data *match)
{
    unsigned char text[4 * BLOCK];
    memset(class_of, OTHER, sizeof class_of);
    for (uint32_t first = 0; first < CODE_POINTS; first += BLOCK) {
        size_t bytes = 0;
        for (uint32_t i = 0; i < BLOCK; i++) {
            /* Surrogates are no characters; the block that they are in ends with them. */
            if (first + i >= SURROGATES && first + i < SURROGATES_END) break;
            bytes += spell(first + i, text + bytes);
        }
        for (int is = LETTER; is < CLASSES; is++)
            if (!mark(code[is], match, text, bytes, class_of + first, (uint8_t)is)) return 0;
    }
    return 1;
}
_Static_assert(CODE_POINTS % BLOCK == 0 && SURROGATES_END % BLOCK == 0, "blocks are whole");

static sf_status make_classes(void)
{
    static const char *const expression[CLASSES] = { NULL, "\\p{L}+", "\\p{N}+", "\\s+" };
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    pcre2_code *code[CLASSES] = { NULL };
    int made = match != NULL;
    for (int is = LETTER; is < CLASSES && made; is++) {
        int error;
        PCRE2_SIZE offset;
        code[is] = pcre2_compile((PCRE2_SPTR)expression[is], PCRE2_ZERO_TERMINATED,
                                 PCRE2_UTF | PCRE2_UCP, &error, &offset, NULL);
        made = code[is] != NULL;
        if (made) (void)pcre2_jit_compile(code[is], PCRE2_JIT_COMPLETE);
    }
    sf_status status = made ? SF_OK : SF_FAIL(SF_NO_MEMORY, "no memory for a pre-tokenizer");
    if (made && !classify(code, match))
        status = SF_FAIL(SF_INTERNAL, "PCRE2 cannot tell letters, numerals and white space apart");
    for (int is = LETTER; is < CLASSES; is++) pcre2_code_free(code[is]);
    pcre2_match_data_free(match);
    return status;
}

sf_status sf_scan_prepare(void)
{
    sf_status status = SF_OK;
    pthread_mutex_lock(&making);
    if (!have_classes) status = make_classes();
    if (status == SF_OK) have_classes = 1;
    pthread_mutex_unlock(&making);
    return status;
}

/* ---- characters ------------------------------------------------------------------------------ */

static struct look look_far(const unsigned char *t)
{
    uint32_t code = t[0];
    if (code < 0xe0)
        return (struct look){ class_of[(code & 0x1f) << 6 | (t[1] & 0x3fu)], 2 };
    if (code < 0xf0)
        return (struct look){ class_of[(code & 0x0f) << 12 | (t[1] & 0x3fu) << 6 |
                                          (t[2] & 0x3fu)], 3 };
    return (struct look){ class_of[(code & 0x07) << 18 | (t[1] & 0x3fu) << 12 |
                                      (t[2] & 0x3fu) << 6 | (t[3] & 0x3fu)], 4 };
}

static inline struct look look_at(const unsigned char *t)
{
    return t[0] < 0x80 ? (struct look){ class_of[t[0]], 1 } : look_far(t);
}

/* The end of the characters of one class from `at` on, so many at most (0: any number). */
static size_t run_end(const unsigned char *t, size_t bytes, size_t at, uint8_t class, size_t most)
{
    for (size_t count = 0; at < bytes && (most == 0 || count < most); count++) {
        struct look next = look_at(t + at);
        if (next.class != class) break;
        at += next.bytes;
    }
    return at;
}

static int is_line_end(unsigned char c) { return c == '\r' || c == '\n'; }

static size_t line_ends_end(const unsigned char *t, size_t bytes, size_t at)
{
    while (at < bytes && is_line_end(t[at])) at++;
    return at;
}

/* ---- pieces ---------------------------------------------------------------------------------- */

/* 's 't 'm 'd 're 've 'll, and in any case: what folds to an ASCII letter beside its capital is the
 * long s alone.  0: none of them. */
static size_t contraction(const unsigned char *t, size_t bytes, int any_case)
{
    if (bytes < 2) return 0;
    unsigned char fold = any_case ? 0x20 : 0, a = t[1] | fold;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if (bytes < 3) return 0;
    if (any_case && t[1] == LONG_S_1 && t[2] == LONG_S_2) return 3;
    unsigned char b = t[2] | fold;
    return (b == 'e' && (a == 'r' || a == 'v')) || (a == 'l' && b == 'l') ? 3 : 0;
}

/* White space alone: up to its last line end if that counts, else without the last character if
 * text follows that has a use for it. */
static size_t spaces(const struct sf_scan_rules *rules, const unsigned char *t, size_t bytes,
                     int by_line)
{
    size_t at = 0, last = 0, line = 0;
    struct look next = { SPACE, 0 };
    while (at < bytes) {
        next = look_at(t + at);
        if (next.class != SPACE) break;
        if (by_line && is_line_end(t[at])) line = at + 1;
        last = at;
        at += next.bytes;
    }
    if (line > 0) return line;
    if (at == bytes || last == 0 || (next.class == NUMERAL && rules->digits_apart)) return at;
    return last;
}

static size_t gpt2_piece(const struct sf_scan_rules *rules, const unsigned char *t, size_t bytes)
{
    size_t found = t[0] == '\'' ? contraction(t, bytes, 0) : 0;
    if (found > 0) return found;
    size_t at = t[0] == ' ' && bytes > 1;
    struct look next = look_at(t + at);
    if (next.class == SPACE) return spaces(rules, t, bytes, 0);
    if (next.class == NUMERAL && rules->digits_apart) return at > 0 ? at : next.bytes;
    return run_end(t, bytes, at + next.bytes, next.class, 0);
}

static size_t others(const unsigned char *t, size_t bytes, size_t at)
{
    return line_ends_end(t, bytes, run_end(t, bytes, at, OTHER, 0));
}

static size_t llama3_piece(const struct sf_scan_rules *rules, const unsigned char *t, size_t bytes)
{
    size_t found = t[0] == '\'' ? contraction(t, bytes, 1) : 0;
    if (found > 0) return found;
    struct look first = look_at(t), next = { SPACE, 0 };
    if (first.class == LETTER) return run_end(t, bytes, first.bytes, LETTER, 0);
    if (first.class == NUMERAL) return run_end(t, bytes, 0, NUMERAL, rules->digits_max);
    if (first.bytes < bytes) next = look_at(t + first.bytes);
    if (next.class == LETTER && !is_line_end(t[0]))
        return run_end(t, bytes, first.bytes + next.bytes, LETTER, 0);
    if (first.class == OTHER) return others(t, bytes, first.bytes);
    if (t[0] == ' ' && next.class == OTHER) return others(t, bytes, 1 + next.bytes);
    return spaces(rules, t, bytes, 1);
}

size_t sf_scan_piece(const struct sf_scan_rules *rules, const char *text, size_t bytes)
{
    const unsigned char *t = (const unsigned char *)text;
    return rules->words == SF_SCAN_GPT2 ? gpt2_piece(rules, t, bytes)
                                             : llama3_piece(rules, t, bytes);
}
