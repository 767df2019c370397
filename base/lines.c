/* base/lines.c: one buffer, filled by read(2), in which the current line is moved to the front.
 *
 *   buffer   [ lines given out | line being looked for ......... | free ]
 *            0                  start          scanned          end      capacity
 *
 * `scanned` is how far the search for LF has come, so that each byte is looked at once however
 * often the buffer grows.  The buffer grows by doubling up to one maximal line and a bit; a line
 * that does not fit even so is dropped piece by piece while its bytes are counted. */
#include "base/lines.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FIRST_BYTES = 1 << 16, PATH_BYTES = 256 };

struct sf_line_reader {
    int fd;
    int ended;                           /* read(2) has said so */
    char *buffer;
    size_t capacity, capacity_max, line_bytes_max;
    size_t start, scanned, end;
    int64_t number, offset;              /* lines given out; file offset of `start` */
    size_t dropped;                      /* bytes of the current line that are gone */
    char last_dropped;
    char path[PATH_BYTES];               /* for messages, cut where it is longer */
};

static sf_status fill(struct sf_line_reader *reader);
static sf_status make_room(struct sf_line_reader *reader);
static void give_line(struct sf_line_reader *reader, size_t stop, int terminated,
                      struct sf_line *line);
static sf_status check_start(struct sf_line_reader *reader);

sf_status sf_line_reader_next(struct sf_line_reader *reader, struct sf_line *line_out)
{
    for (;;) {
        char *newline = memchr(reader->buffer + reader->scanned, '\n',
                               reader->end - reader->scanned);
        if (newline != NULL) {
            give_line(reader, (size_t)(newline - reader->buffer), 1, line_out);
            return SF_OK;
        }
        reader->scanned = reader->end;
        if (!reader->ended) {
            SF_TRY(fill(reader));
        } else if (reader->start < reader->end || reader->dropped > 0) {
            give_line(reader, reader->end, 0, line_out);
            return SF_OK;
        } else {
            *line_out = (struct sf_line){ .kind = SF_LINE_END, .number = reader->number,
                                          .offset = reader->offset };
            return SF_OK;
        }
    }
}

/* The line is buffer[start..stop), after `dropped` bytes that are gone. */
static void give_line(struct sf_line_reader *reader, size_t stop, int terminated,
                      struct sf_line *line)
{
    size_t kept = stop - reader->start, bytes = reader->dropped + kept;
    char last = kept > 0 ? reader->buffer[stop - 1] : reader->last_dropped;
    if (terminated && bytes > 0 && last == '\r') bytes--;
    int too_long = bytes > reader->line_bytes_max;
    SF_ASSERT(too_long || reader->dropped == 0);
    *line = (struct sf_line){
        .kind = too_long ? SF_LINE_TOO_LONG : SF_LINE_TEXT,
        .text = too_long ? NULL : reader->buffer + reader->start,
        .bytes = bytes,
        .number = ++reader->number,
        .offset = reader->offset,
        .terminated = terminated != 0,
    };
    /* There is room for the NUL behind a last line without newline too: see make_room. */
    if (!too_long) reader->buffer[reader->start + bytes] = '\0';
    reader->offset += (int64_t)(reader->dropped + kept) + terminated;
    reader->start = reader->scanned = stop + (size_t)terminated;
    reader->dropped = 0;
}

static sf_status fill(struct sf_line_reader *reader)
{
    SF_TRY(make_room(reader));
    ssize_t count;
    do count = read(reader->fd, reader->buffer + reader->end, reader->capacity - 1 - reader->end);
    while (count < 0 && errno == EINTR);
    if (count < 0)
        return SF_FAIL(SF_IO, "cannot read '%s' after line %lld: %s", reader->path,
                       (long long)reader->number, strerror(errno));
    reader->ended = count == 0;
    reader->end += (size_t)count;
    return SF_OK;
}

/* Makes capacity - 1 - end positive; the last byte stays free for a NUL. */
static sf_status make_room(struct sf_line_reader *reader)
{
    size_t kept = reader->end - reader->start, scanned = reader->scanned - reader->start;
    if (kept > reader->line_bytes_max + 1) {
        /* Even with a CR at its end this line would not fit, and there is no LF in it so far. */
        SF_ASSERT(scanned == kept);
        reader->dropped += kept;
        reader->last_dropped = reader->buffer[reader->end - 1];
        kept = scanned = 0;
    } else if (reader->start > 0) {
        memmove(reader->buffer, reader->buffer + reader->start, kept);
    }
    reader->start = 0;
    reader->scanned = scanned;
    reader->end = kept;
    if (kept + 1 < reader->capacity) return SF_OK;
    SF_ASSERT(reader->capacity < reader->capacity_max);
    size_t wanted = reader->capacity > reader->capacity_max / 2 ? reader->capacity_max
                                                                : reader->capacity * 2;
    char *grown = realloc(reader->buffer, wanted);
    if (grown == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for line %lld of '%s': %zu bytes",
                       (long long)reader->number + 1, reader->path, wanted);
    reader->buffer = grown;
    reader->capacity = wanted;
    return SF_OK;
}

sf_status sf_line_reader_open(const char *path, size_t line_bytes_max,
                              struct sf_line_reader **reader_out)
{
    SF_ASSERT(line_bytes_max > 0 && line_bytes_max <= PTRDIFF_MAX / 2);
    struct sf_line_reader *reader = calloc(1, sizeof *reader);
    if (reader == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for reading '%s'", path);
    /* A line that just fits, CR LF, and the NUL; never less than a piece worth reading. */
    reader->capacity_max = line_bytes_max + 3 < FIRST_BYTES ? FIRST_BYTES : line_bytes_max + 3;
    reader->capacity = FIRST_BYTES;
    reader->line_bytes_max = line_bytes_max;
    strncpy(reader->path, path, sizeof reader->path - 1);
    /* Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever. */
    reader->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    sf_status status = SF_OK;
    if (reader->fd < 0) status = SF_FAIL(SF_IO, "cannot open '%s': %s", path, strerror(errno));
    if (status == SF_OK) status = check_start(reader);
    if (status != SF_OK) {
        sf_line_reader_close(reader);
        return status;
    }
    *reader_out = reader;
    return SF_OK;
}

/* A regular file, and its first bytes in the buffer, behind the byte order mark if there is one. */
static sf_status check_start(struct sf_line_reader *reader)
{
    struct stat info;
    if (fstat(reader->fd, &info) != 0)
        return SF_FAIL(SF_IO, "cannot stat '%s': %s", reader->path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return SF_FAIL(SF_INVALID, "'%s' is not a regular file", reader->path);
    reader->buffer = malloc(reader->capacity);
    if (reader->buffer == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for reading '%s'", reader->path);
    while (reader->end < 3 && !reader->ended) SF_TRY(fill(reader));
    if (reader->end >= 3 && memcmp(reader->buffer, "\xef\xbb\xbf", 3) == 0)
        reader->offset = (int64_t)(reader->start = reader->scanned = 3);
    return SF_OK;
}

void sf_line_reader_close(struct sf_line_reader *reader)
{
    if (reader == NULL) return;
    if (reader->fd >= 0) close(reader->fd);
    free(reader->buffer);
    free(reader);
}
