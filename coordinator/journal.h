/* coordinator/journal.h: OUT.run/journal, the append-only record of what a run has done, and the
 * reader of one.  What the entries mean together is in coordinator/resume.h.
 *
 * The file is a row of frames, integers little endian:
 *
 *   byte 0       4      5                        5+n         13+n
 *        | u32 n | kind | payload, n bytes       | u64 hash  |     sf_hash64 of kind and payload
 *
 *   HEADER     "sheafjnl", u32 version                       the first frame, and only that
 *   FINISHED   i64 line, offset, bytes, u64 digest, u8 error, 8 sums as varints
 *   TOKENS     i64 line, u32 choice, first, count, count token ids as varints,
 *              u32 m, m bytes of the caller's
 *   SYNCED     i64 bytes of OUT that have reached the disk
 *
 * Write-ahead: the entry of a finished record is written before its line goes to OUT.  So after a
 * kill every whole line of OUT has an entry, and an entry whose line is not in OUT (missing, short,
 * other bytes) is a record that has not finished.
 *
 * A frame is one write(2) where the disk takes it whole; one that could not be written is cut off
 * again.  The first bad frame ends the file: what lies behind it cannot be told from leftovers. */
#ifndef SHEAF_COORDINATOR_JOURNAL_H
#define SHEAF_COORDINATOR_JOURNAL_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

enum { SF_JOURNAL_SUMS = 8, SF_JOURNAL_PAYLOAD_MAX = 1 << 30, SF_JOURNAL_LINE_BYTES_MAX = 1 << 30 };
/* Of the input.  A trillion records are not a job; a line number past this is no line number. */
#define SF_JOURNAL_LINE_MAX ((int64_t)1 << 36)

struct sf_journal_finished {
    int64_t line;                       /* of the input, from 1 */
    int64_t offset, bytes;              /* its line in OUT, newline included */
    uint64_t digest;                    /* sf_hash64 of these bytes */
    uint8_t error;                      /* it holds an error, not an answer */
    int64_t sum[SF_JOURNAL_SUMS];       /* the caller's, 0 or more: resume adds them up over the
                                           finished lines, for the totals of the manifest */
};
struct sf_journal_tokens {              /* of a record that has not finished */
    int64_t line;
    int32_t choice;
    int32_t first, count;               /* index of token[0] in the answer; 0: the choice starts,
                                           or starts over */
    const int32_t *token;               /* [count], none negative */
    const void *extra; size_t extra_bytes;  /* what the caller keeps for these tokens */
};

/* ---- writing: one writer, one thread ---- */

struct sf_journal;
/* With its header, on the disk.  SF_IO if the file exists. */
sf_status sf_journal_create(const char *path, struct sf_journal **journal_out);
/* Warm calls allocate nothing.  SF_IO with path and reason if the disk is full: then the journal is
 * as it was before the call. */
sf_status sf_journal_finished(struct sf_journal *journal, const struct sf_journal_finished *entry);
/* SF_UNSUPPORTED if it does not fit into a frame. */
sf_status sf_journal_tokens(struct sf_journal *journal, const struct sf_journal_tokens *entry);
/* OUT to the disk, then a SYNCED of its bytes, then the journal to the disk. */
sf_status sf_journal_sync(struct sf_journal *journal, int output, int64_t output_bytes);
/* Renames the file over `path`, for good; writing goes on there. */
sf_status sf_journal_move(struct sf_journal *journal, const char *path);
void      sf_journal_close(struct sf_journal *journal);             /* NULL is fine */

/* ---- reading ---- */

enum sf_journal_kind { SF_JOURNAL_HEADER = 1, SF_JOURNAL_FINISHED, SF_JOURNAL_TOKENS,
                       SF_JOURNAL_SYNCED, SF_JOURNAL_END };
struct sf_journal_entry {
    enum sf_journal_kind kind;          /* HEADER is not given out */
    int64_t offset;                     /* of its frame; at the end: of the first bad byte */
    int64_t torn_bytes;                 /* at the end: what lies there */
    union {                             /* pointers hold until the next call */
        struct sf_journal_finished finished;
        struct sf_journal_tokens tokens;
        int64_t synced_bytes;
    };
};
struct sf_journal_reader;
/* SF_IO if it cannot be opened, SF_FORMAT if it does not begin like a journal, SF_UNSUPPORTED for
 * another version. */
sf_status sf_journal_reader_open(const char *path, struct sf_journal_reader **reader_out);
void      sf_journal_reader_close(struct sf_journal_reader *reader);    /* NULL is fine */
/* Entries whose fields are within their ranges, one by one; END again and again.  Fails for what
 * the system does (SF_IO, SF_NO_MEMORY), never for what the file holds. */
sf_status sf_journal_reader_next(struct sf_journal_reader *reader,
                                 struct sf_journal_entry *entry_out);

SF_C_END
#endif
