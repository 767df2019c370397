/* base/log.c: an event becomes one line, and one line one write(2).
 *
 *   text   [rank 2] sheaf: warning: step 17 took 312 ms
 *   json   {"ts":1700000000.123456,"level":"warn","rank":2,"msg":"step 17 took 312 ms"}
 *
 * A line is at most LINE_BYTES long, which is what a pipe takes in one piece, so lines of several
 * ranks do not run into each other.  What came from outside cannot forge a line or steer a
 * terminal: control characters and bytes that are not UTF-8 are replaced (text) or escaped (json).
 * Rank is null in json while it is not known. */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/utf8.h"

enum { LINE_BYTES = 4096, TEXT_BYTES = 3072, LEVELS = 5 };

struct line { char text[LINE_BYTES]; size_t used; };

static const char *const names[LEVELS] = { "error", "warn", "info", "debug", "trace" };
static const char *const words[LEVELS] = { "error", "warning", "info", "debug", "trace" };

static atomic_int level_max = SF_LOG_INFO;
static atomic_int as_json;
static _Thread_local int thread_rank = -1;

static void start_line(struct line *line, enum sf_log_level level, int json);
static int add_char(struct line *line, const char *text, size_t bytes, size_t *taken, int json);
static void write_line(const struct line *line);

void sf_log(enum sf_log_level level, const char *format, ...)
{
    SF_ASSERT((unsigned)level < LEVELS);
    if (!sf_log_shows(level)) return;
    int errno_kept = errno;
    int json = sf_log_is_json();
    char text[TEXT_BYTES];
    va_list args;
    va_start(args, format);
    int wanted = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size_t bytes = strnlen(text, sizeof text);
    int whole = wanted >= 0 && (size_t)wanted == bytes;

    struct line line = { .used = 0 };
    start_line(&line, level, json);
    for (size_t i = 0, taken; i < bytes; i += taken) {
        /* A character cut by vsnprintf at the end is left out; "..." stands for it. */
        if (!whole && bytes - i < 4 && sf_utf8_char_bytes(text + i, bytes - i) == 0) break;
        if (!add_char(&line, text + i, bytes - i, &taken, json)) {
            whole = 0;
            break;
        }
    }
    /* add_char leaves room for the longest ending. */
    line.used += (size_t)snprintf(line.text + line.used, sizeof line.text - line.used, "%s%s\n",
                                  whole ? "" : "...", json ? "\"}" : "");
    write_line(&line);
    errno = errno_kept;
}

static void start_line(struct line *line, enum sf_log_level level, int json)
{
    char rank[24] = "";
    int used;
    if (json) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        snprintf(rank, sizeof rank, thread_rank < 0 ? "null" : "%d", thread_rank);
        used = snprintf(line->text, sizeof line->text,
                        "{\"ts\":%lld.%06ld,\"level\":\"%s\",\"rank\":%s,\"msg\":\"",
                        (long long)now.tv_sec, now.tv_nsec / 1000, names[level], rank);
    } else {
        if (thread_rank >= 0) snprintf(rank, sizeof rank, "[rank %d] ", thread_rank);
        used = snprintf(line->text, sizeof line->text, "%ssheaf: %s: ", rank, words[level]);
    }
    line->used = (size_t)used;
}

/* Adds the character at `text`, escaped as the form wants it; false when the line has no room. */
static int add_char(struct line *line, const char *text, size_t bytes, size_t *taken, int json)
{
    enum { ENDING_BYTES = 8 };
    char form[8];
    size_t length = sf_utf8_char_bytes(text, bytes), form_bytes;
    unsigned char first = (unsigned char)text[0];
    int control = length == 1 ? first < 0x20 || first == 0x7f
                              : length == 2 && first == 0xc2 && (unsigned char)text[1] < 0xa0;
    *taken = length == 0 ? 1 : length;
    if (length == 0) {
        form_bytes = (size_t)snprintf(form, sizeof form, "%s", json ? "\\ufffd" : "?");
    } else if (control && !json) {
        form[0] = first == '\n' || first == '\t' ? ' ' : '?';
        form_bytes = 1;
    } else if (control) {
        unsigned code = length == 2 ? (unsigned char)text[1] : first;
        form_bytes = (size_t)snprintf(form, sizeof form, "\\u%04x", code);
    } else if (json && (first == '"' || first == '\\')) {
        form[0] = '\\';
        form[1] = (char)first;
        form_bytes = 2;
    } else {
        memcpy(form, text, length);
        form_bytes = length;
    }
    if (line->used + form_bytes + ENDING_BYTES > sizeof line->text) return 0;
    memcpy(line->text + line->used, form, form_bytes);
    line->used += form_bytes;
    return 1;
}

/* A log that cannot be written (closed, full, would block) must not stop the run: given up. */
static void write_line(const struct line *line)
{
    size_t done = 0;
    while (done < line->used) {
        ssize_t count = write(STDERR_FILENO, line->text + done, line->used - done);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return;
        done += (size_t)count;
    }
}

void sf_log_setup(enum sf_log_level level, int json)
{
    SF_ASSERT((unsigned)level < LEVELS);
    atomic_store(&level_max, (int)level);
    atomic_store(&as_json, json != 0);
}

int sf_log_shows(enum sf_log_level level)
{
    return (int)level <= atomic_load_explicit(&level_max, memory_order_relaxed);
}

int sf_log_is_json(void)
{
    return atomic_load_explicit(&as_json, memory_order_relaxed);
}

void sf_log_rank(int rank)
{
    thread_rank = rank;
}

sf_status sf_log_level_parse(const char *name, enum sf_log_level *level_out)
{
    for (int i = 0; i < LEVELS; i++)
        if (strcmp(name, names[i]) == 0 || strcmp(name, words[i]) == 0) {
            *level_out = (enum sf_log_level)i;
            return SF_OK;
        }
    return SF_FAIL(SF_INVALID, "log level is '%.32s'; allowed: error, warn, info, debug, trace",
                   name);
}
