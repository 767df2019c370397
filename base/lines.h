/* base/lines.h: a text file, line by line, in bounded memory.
 *
 * Lines end in LF or CR LF, which are not part of the text; the last one may end with the file.  A
 * UTF-8 byte order mark at the start of the file is skipped.  A blank line is a line of 0 bytes.
 * A line longer than the maximum is reported with its length, without its text, and reading goes
 * on behind it. */
#ifndef SHEAF_BASE_LINES_H
#define SHEAF_BASE_LINES_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

enum sf_line_kind { SF_LINE_TEXT, SF_LINE_TOO_LONG, SF_LINE_END };

struct sf_line {
    enum sf_line_kind kind;
    const char *text;          /* closed by a NUL; until the next call; NULL unless SF_LINE_TEXT */
    size_t bytes;              /* of the text, also where it was too long */
    int64_t number;            /* from 1; at the end: lines in all */
    int64_t offset;            /* of the text's first byte in the file; at the end: file's size */
    uint8_t terminated;        /* 0: the file ended before a newline */
};

struct sf_line_reader;
/* SF_IO if it cannot be opened, SF_INVALID if it is not a regular file (reading one always ends).
 * Memory is at most about twice line_bytes_max. */
sf_status sf_line_reader_open(const char *path, size_t line_bytes_max,
                              struct sf_line_reader **reader_out);
void      sf_line_reader_close(struct sf_line_reader *reader);      /* NULL is fine */
/* At the end of the file kind is SF_LINE_END, again and again. */
sf_status sf_line_reader_next(struct sf_line_reader *reader, struct sf_line *line_out);

SF_C_END
#endif
