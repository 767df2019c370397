/* tests/unit/model/split.c: text is cut where the expressions of the pre-tokenizers cut it.
 *
 * sf_split_text against sf_split_text_defined, piece by piece, with every pre-tokenizer: each
 * character of Unicode between characters of each class; random texts of parts that mean something
 * to one of the expressions, of bytes, of characters from anywhere; files of the source tree. */
#include "model/split.h"

#include <dirent.h>
#include <stdlib.h>

#include "base/rng.h"
#include "tests/check.h"

enum { TEXT_MAX = 1 << 16, ROUNDS = 3000, CODE_POINTS = 0x110000 };

static const char *const pres[] = { "smollm", "starcoder", "gpt-2", "llama-bpe", "qwen2" };
enum { PRES = sizeof pres / sizeof pres[0] };
static struct sf_split *split[PRES];

struct cuts { size_t end[TEXT_MAX], count; const char *text; };
static struct cuts scanned, defined;

static sf_status note(void *context, const char *at, size_t bytes)
{
    struct cuts *cuts = context;
    size_t before = cuts->count > 0 ? cuts->end[cuts->count - 1] : 0;
    if (at != cuts->text + before || bytes == 0)
        return SF_FAIL(SF_INTERNAL, "pieces do not join up at byte %zu", before);
    cuts->end[cuts->count++] = before + bytes;
    return SF_OK;
}

/* 1: as defined. */
static int same(const char *text, size_t bytes, int pre)
{
    scanned.count = defined.count = 0;
    scanned.text = defined.text = text;
    SF_ASSERT(bytes <= TEXT_MAX);
    if (sf_split_text(split[pre], text, bytes, note, &scanned) != SF_OK ||
        sf_split_text_defined(split[pre], text, bytes, note, &defined) != SF_OK) {
        sf_test_fail(__FILE__, __LINE__, "%s: %s", pres[pre], sf_error_text());
        return 0;
    }
    for (size_t i = 0; i < scanned.count && i < defined.count; i++) {
        if (scanned.end[i] == defined.end[i]) continue;
        size_t from = i > 0 ? scanned.end[i - 1] : 0;
        char hex[3 * 12 + 1] = "";
        for (size_t b = from; b < bytes && b < from + 12; b++)
            snprintf(hex + 3 * (b - from), 4, "%02x ", (unsigned char)text[b]);
        sf_test_fail(__FILE__, __LINE__, "%s: the piece at byte %zu (%s...) has %zu bytes and "
                     "should have %zu", pres[pre], from, hex, scanned.end[i] - from,
                     defined.end[i] - from);
        return 0;
    }
    return scanned.count == defined.count &&
           (bytes == 0 || scanned.end[scanned.count - 1] == bytes);
}

static size_t spell(uint32_t code, char *out)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    size_t bytes = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = bytes - 1; i > 0; i--, code >>= 6) out[i] = (char)(0x80 | (code & 0x3f));
    out[0] = (char)((bytes == 2 ? 0xc0 : bytes == 3 ? 0xe0 : 0xf0) | code);
    return bytes;
}

/* Surrogates are spelled too: ill-formed bytes to both. */
static void test_characters(void)
{
    static const char *const around[] = { "a", " ", "1", "!", "'", "\n" };
    static char text[TEXT_MAX];
    int bad = 0;
    for (uint32_t first = 0; first < CODE_POINTS && bad < 5; first += 256) {
        size_t bytes = 0;
        for (uint32_t i = 0; i < 256; i++)
            for (size_t k = 0; k < sizeof around / sizeof around[0]; k++) {
                bytes += spell(first + i, text + bytes);
                text[bytes++] = around[k][0];
            }
        /* One pre-tokenizer of each kind looks at all of them, the others where scripts are. */
        for (int pre = 0; pre < PRES; pre++)
            if (first < 0x3000 || pre == 2 || pre == 3) bad += !same(text, bytes, pre);
    }
    SF_CHECK_INT(bad, 0);
}

static uint64_t draw, stream;
static uint32_t next(uint32_t below)
{
    return (uint32_t)(sf_rng_u64(5, stream, draw++) % below);
}

static size_t random_part(char *out)
{
    static const char *const parts[] = {
        " ", "  ", "   ", "\n", "\r\n", "\t", "\n\n", " \n ", "a", "Ab", "word", "'s", "'S", "'t",
        "'re", "'VE", "'ll", "'lL", "'m", "'d", "'D", "'", "''", "'\xc5\xbf", "'x", "'r", "'l",
        "1", "12", "1234", "!", "?!", "...", "(", "_", "=\n", "\xc2\xa0", "\xc2\x85",
        "\xe2\x80\x83", "\xe2\x80\xa8", "\xe1\xa0\x8e", "\xe3\x80\x80", "\xc2\xb2", "\xd9\xa3",
        "\xe2\x85\xa3", "\xc3\xa9", "e\xcc\x81", "\xe3\x81\x82", "\xe4\xb8\xad\xe6\x96\x87",
        "\xf0\x9f\x99\x82", "\xf0\x9d\x9f\x98", "\xe2\x84\xaa", "\xc3", "\xff", "\xed\xa0\x80",
        "\xe2\x80\x8d", "\x0b", "\x1c", "" };
    uint32_t kind = next(12);
    if (kind == 0) {
        out[0] = (char)next(256);
        return 1;
    }
    if (kind == 1) return spell(next(CODE_POINTS), out);
    if (kind == 2) return spell(next(0x3100), out);
    const char *part = parts[next(sizeof parts / sizeof parts[0])];
    memcpy(out, part, strlen(part));
    return strlen(part);
}

static void test_random(void)
{
    static char text[TEXT_MAX];
    int bad = 0;
    for (stream = 0; stream < ROUNDS && bad < 5; stream++) {
        size_t bytes = 0, wanted = next(4) == 0 ? next(600) : next(24);
        draw = 0;
        while (bytes < wanted) bytes += random_part(text + bytes);
        for (int pre = 0; pre < PRES; pre++) bad += !same(text, bytes, pre);
    }
    SF_CHECK_INT(bad, 0);
}

static void test_files(void)
{
    static const char *const folders[] = { ".", "docs", "model", "coordinator" };
    static char text[TEXT_MAX];
    int files = 0, bad = 0;
    for (size_t f = 0; f < sizeof folders / sizeof folders[0]; f++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", SHEAF_SOURCE_DIR, folders[f]);
        DIR *dir = opendir(path);
        struct dirent *entry;
        while (dir != NULL && (entry = readdir(dir)) != NULL) {
            char name[2048];
            snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
            FILE *file = fopen(name, "rb");
            size_t bytes = file != NULL ? fread(text, 1, sizeof text, file) : 0;
            if (file != NULL) fclose(file);
            files += bytes > 0;
            for (int pre = 0; pre < PRES; pre++) bad += !same(text, bytes, pre);
        }
        if (dir != NULL) closedir(dir);
    }
    SF_CHECK(files > 20);
    SF_CHECK_INT(bad, 0);
}

static const struct sf_test tests[] = { { "characters", test_characters },
                                        { "random", test_random }, { "files", test_files },
                                        { NULL, NULL } };

int main(int argc, char **argv)
{
    for (int i = 0; i < PRES; i++)
        if (sf_split_create(pres[i], strlen(pres[i]), &split[i]) != SF_OK) return 2;
    int failed = sf_test_main("model_split", tests, argc, argv);
    for (int i = 0; i < PRES; i++) sf_split_destroy(split[i]);
    return failed;
}
