/* Files written here and read back: line ends, the byte order mark, a missing last newline, blank
 * and overlong lines with number, offset and length; and random files of short, long and overlong
 * lines, large against the buffer, compared with a split of the same bytes in memory. */
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/lines.h"
#include "base/rng.h"
#include "tests/check.h"

static char folder[] = "/tmp/sheaf-lines-XXXXXX", path[64];

static void write_file(const void *bytes, size_t count)
{
    if (path[0] == '\0') {
        if (mkdtemp(folder) == NULL) abort();
        snprintf(path, sizeof path, "%s/in", folder);
    }
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(bytes, 1, count, file) != count || fclose(file) != 0) abort();
}

static void remove_file(void)
{
    unlink(path);
    rmdir(folder);
    path[0] = '\0';
    memcpy(folder + sizeof folder - 7, "XXXXXX", 6);
}

struct expected {
    enum sf_line_kind kind;
    const char *text;
    int64_t offset;
    int bytes, terminated;
};

static void check_lines(const char *content, size_t bytes, const struct expected *expected)
{
    struct sf_line_reader *reader;
    struct sf_line line;
    write_file(content, bytes);
    SF_MUST(sf_line_reader_open(path, 5, &reader));
    int64_t number = 0;
    for (; expected->kind != SF_LINE_END; expected++) {
        SF_MUST(sf_line_reader_next(reader, &line));
        SF_CHECK_INT(line.kind, expected->kind);
        SF_CHECK_STR(line.text == NULL ? "(null)" : line.text,
                     expected->text == NULL ? "(null)" : expected->text);
        SF_CHECK_INT(line.bytes, expected->bytes);
        SF_CHECK_INT(line.number, ++number);
        SF_CHECK_INT(line.offset, expected->offset);
        SF_CHECK_INT(line.terminated, expected->terminated);
    }
    for (int again = 0; again < 2; again++) {
        SF_MUST(sf_line_reader_next(reader, &line));
        SF_CHECK_INT(line.kind, SF_LINE_END);
        SF_CHECK_INT(line.number, number);
        SF_CHECK_INT(line.offset, bytes);
    }
    sf_line_reader_close(reader);
    remove_file();
}

#define CHECK_LINES(content, ...)                                                                  \
    check_lines((content), sizeof (content) - 1,                                                   \
                (const struct expected[]){ __VA_ARGS__ { .kind = SF_LINE_END } })
#define LINE(text_, offset_)                                                                       \
    { .text = (text_), .offset = (offset_), .bytes = sizeof (text_) - 1, .terminated = 1 },
#define TORN(text_, offset_)                                                                       \
    { .text = (text_), .offset = (offset_), .bytes = sizeof (text_) - 1 },
#define LONG(bytes_, offset_, terminated_)                                                         \
    { .kind = SF_LINE_TOO_LONG, .offset = (offset_), .bytes = (bytes_),                            \
      .terminated = (terminated_) },

static void test_ends(void)
{
    CHECK_LINES("", );
    CHECK_LINES("\n", LINE("", 0));
    CHECK_LINES("a\nbc\n", LINE("a", 0) LINE("bc", 2));
    CHECK_LINES("a\r\n\r\n\nb", LINE("a", 0) LINE("", 3) LINE("", 5) TORN("b", 6));
    CHECK_LINES("a\rb\r\n\r", LINE("a\rb", 0) TORN("\r", 5));
    CHECK_LINES("\xef\xbb\xbf", );
    CHECK_LINES("\xef\xbb\xbf" "a\n\xef\xbb\xbf\n", LINE("a", 3) LINE("\xef\xbb\xbf", 5));
    CHECK_LINES("\xef\xbb", TORN("\xef\xbb", 0));
    CHECK_LINES("12345\n12345\r\n12345", LINE("12345", 0) LINE("12345", 6) TORN("12345", 13));
    CHECK_LINES("123456\na\n123456\r\n1234567",
                LONG(6, 0, 1) LINE("a", 7) LONG(6, 9, 1) LONG(7, 17, 0));
}

static void test_nul(void)
{
    struct sf_line_reader *reader;
    struct sf_line line;
    write_file("a\0b\n", 4);
    SF_MUST(sf_line_reader_open(path, 10, &reader));
    SF_MUST(sf_line_reader_next(reader, &line));
    SF_CHECK(line.bytes == 3 && memcmp(line.text, "a\0b", 4) == 0);
    sf_line_reader_close(reader);
    remove_file();
}

/* Lengths around the maximum and the buffer's steps are drawn more often than others. */
static size_t draw_length(uint64_t random, size_t line_bytes_max)
{
    switch (random % 8) {
    case 0: return 0;
    case 1: return line_bytes_max - 2 + (random >> 8) % 5;
    case 2: return (1 << 16) - 3 + (random >> 8) % 6;
    case 3: return (random >> 8) % (4 * line_bytes_max);
    default: return (random >> 8) % 300;
    }
}

static int compare_with_split(const unsigned char *bytes, size_t count, size_t line_bytes_max)
{
    struct sf_line_reader *reader;
    struct sf_line line;
    if (sf_line_reader_open(path, line_bytes_max, &reader) != SF_OK) return 1;
    int wrong = 0;
    int64_t number = 0;
    size_t at = 0;
    while (at < count) {
        const unsigned char *newline = memchr(bytes + at, '\n', count - at);
        size_t stop = newline == NULL ? count : (size_t)(newline - bytes), length = stop - at;
        if (newline != NULL && length > 0 && bytes[stop - 1] == '\r') length--;
        if (sf_line_reader_next(reader, &line) != SF_OK) {
            wrong++;
            break;
        }
        int fits = length <= line_bytes_max;
        wrong += line.kind != (fits ? SF_LINE_TEXT : SF_LINE_TOO_LONG) || line.bytes != length;
        wrong += line.number != ++number || line.offset != (int64_t)at;
        wrong += line.terminated != (newline != NULL);
        if (fits && line.kind == SF_LINE_TEXT)
            wrong += memcmp(line.text, bytes + at, length) != 0 || line.text[length] != '\0';
        at = stop + 1;
    }
    wrong += sf_line_reader_next(reader, &line) != SF_OK || line.kind != SF_LINE_END;
    sf_line_reader_close(reader);
    return wrong;
}

static void test_random_files(void)
{
    static const size_t maxima[] = { 7, 1000, (1 << 16) - 3, 1 << 16, 200000 };
    enum { LINES = 60 };
    for (size_t m = 0; m < sizeof maxima / sizeof *maxima; m++)
        for (uint64_t file = 0; file < 6; file++) {
            unsigned char *bytes = malloc(LINES * (4 * maxima[m] + (1 << 17)));
            if (bytes == NULL) abort();
            size_t used = 0;
            for (uint64_t i = 0; i < LINES; i++) {
                uint64_t random = sf_rng_u64(m, file, i);
                size_t length = draw_length(random, maxima[m]);
                memset(bytes + used, 'a' + (int)(i % 26), length);
                used += length;
                if (random >> 40 & 1) bytes[used++] = '\r';
                if (i + 1 < LINES || file % 2 == 0) bytes[used++] = '\n';
            }
            write_file(bytes, used);
            SF_CHECK_INT(compare_with_split(bytes, used, maxima[m]), 0);
            remove_file();
            free(bytes);
        }
}

static void test_refused(void)
{
    struct sf_line_reader *reader = NULL;
    SF_CHECK_FAILS(sf_line_reader_open("/no/such/file", 10, &reader), SF_IO);
    SF_CHECK_STR(sf_error_text(), "cannot open '/no/such/file': No such file or directory");
    SF_CHECK_FAILS(sf_line_reader_open("/", 10, &reader), SF_INVALID);
    SF_CHECK_STR(sf_error_text(), "'/' is not a regular file");
    /* A pipe without a writer would keep an ordinary open waiting for ever. */
    write_file("", 0);
    unlink(path);
    SF_CHECK_INT(mkfifo(path, 0600), 0);
    SF_CHECK_FAILS(sf_line_reader_open(path, 10, &reader), SF_INVALID);
    SF_CHECK(reader == NULL);
    sf_line_reader_close(NULL);
    remove_file();
}

static const struct sf_test tests[] = {
    { "ends", test_ends },
    { "nul", test_nul },
    { "random files", test_random_files },
    { "refused", test_refused },
    { NULL, NULL }
};
SF_TEST_MAIN("base_lines", tests)
