/* coordinator/journal.c: frames made in one buffer and written where the last good one ended.
 *
 *   file     | frame | frame | frame being written ... |
 *                            bytes
 *
 * pwrite(2) at `bytes`, so that the leftovers of a frame that failed and could not even be cut off
 * are written over by the next one. */
#include "coordinator/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/rng.h"

enum { LENGTH_BYTES = 4, HASH_BYTES = 8, HEAD_BYTES = LENGTH_BYTES + 1,
       FRAME_BYTES = HEAD_BYTES + HASH_BYTES,       /* of an empty payload */
       MAGIC_BYTES = 8, HEADER_BYTES = MAGIC_BYTES + 4, VERSION = 1,
       TOKEN_BYTES_MAX = 5, SUM_BYTES_MAX = 9,      /* varints of 31 and 63 bits */
       FINISHED_BYTES = 3 * 8 + 8 + 1, TOKENS_BYTES = 8 + 3 * 4 + 4, SYNCED_BYTES = 8,
       READ_BYTES = 1 << 18 };
static const char magic[MAGIC_BYTES + 1] = "sheafjnl";

struct sf_journal {
    int file;
    int64_t bytes;                      /* of good frames */
    struct sf_buffer frame;
    char *path;
};

/* ---- bytes out ---- */

static unsigned char *put(unsigned char *at, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) *at++ = (unsigned char)(value >> 8 * i);
    return at;
}

/* Seven bits a byte, low ones first, the top bit set on all but the last. */
static unsigned char *put_varint(unsigned char *at, uint64_t value)
{
    for (; value >= 0x80; value >>= 7) *at++ = (unsigned char)(value | 0x80);
    *at++ = (unsigned char)value;
    return at;
}

/* Where the payload begins, with room for so many bytes. */
static sf_status start_frame(struct sf_journal *journal, enum sf_journal_kind kind, size_t bytes,
                             unsigned char **payload_out)
{
    SF_TRY(sf_buffer_reserve(&journal->frame, bytes + FRAME_BYTES));
    journal->frame.bytes[LENGTH_BYTES] = (unsigned char)kind;
    *payload_out = journal->frame.bytes + HEAD_BYTES;
    return SF_OK;
}

/* Cuts off what was written of a frame: the file ends with a whole one, as far as it can be had. */
static sf_status give_up(struct sf_journal *journal, int code)
{
    if (ftruncate(journal->file, (off_t)journal->bytes) != 0)
        sf_log(SF_LOG_WARN, "%s: its last entry is torn: %s", journal->path, strerror(errno));
    return SF_FAIL(SF_IO, "%s: could not be written: %s", journal->path,
                   code != 0 ? strerror(code) : "nothing was taken");
}

/* end: behind the payload. */
static sf_status write_frame(struct sf_journal *journal, unsigned char *end)
{
    unsigned char *frame = journal->frame.bytes;
    size_t payload = (size_t)(end - frame) - HEAD_BYTES;
    SF_ASSERT(payload <= SF_JOURNAL_PAYLOAD_MAX &&
              payload + FRAME_BYTES <= journal->frame.capacity);
    put(frame, payload, LENGTH_BYTES);
    put(end, sf_hash64(frame + LENGTH_BYTES, payload + 1), HASH_BYTES);
    for (size_t done = 0; done < payload + FRAME_BYTES;) {
        ssize_t count = pwrite(journal->file, frame + done, payload + FRAME_BYTES - done,
                               (off_t)(journal->bytes + (int64_t)done));
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return give_up(journal, count < 0 ? errno : 0);
        done += (size_t)count;
    }
    journal->bytes += (int64_t)(payload + FRAME_BYTES);
    return SF_OK;
}

sf_status sf_journal_finished(struct sf_journal *journal, const struct sf_journal_finished *entry)
{
    SF_ASSERT(entry->line >= 1 && entry->line <= SF_JOURNAL_LINE_MAX);
    SF_ASSERT(entry->offset >= 0 && entry->bytes >= 1);
    if (entry->bytes > SF_JOURNAL_LINE_BYTES_MAX)
        return SF_FAIL(SF_UNSUPPORTED, "the answer to line %lld has %lld bytes; at most %d are"
                       " taken", (long long)entry->line, (long long)entry->bytes,
                       SF_JOURNAL_LINE_BYTES_MAX);
    unsigned char *at;
    SF_TRY(start_frame(journal, SF_JOURNAL_FINISHED,
                       FINISHED_BYTES + SF_JOURNAL_SUMS * SUM_BYTES_MAX, &at));
    at = put(at, (uint64_t)entry->line, 8);
    at = put(at, (uint64_t)entry->offset, 8);
    at = put(at, (uint64_t)entry->bytes, 8);
    at = put(at, entry->digest, 8);
    at = put(at, entry->error != 0, 1);
    for (int i = 0; i < SF_JOURNAL_SUMS; i++) {
        SF_ASSERT(entry->sum[i] >= 0);
        at = put_varint(at, (uint64_t)entry->sum[i]);
    }
    return write_frame(journal, at);
}

sf_status sf_journal_tokens(struct sf_journal *journal, const struct sf_journal_tokens *entry)
{
    SF_ASSERT(entry->line >= 1 && entry->line <= SF_JOURNAL_LINE_MAX && entry->choice >= 0);
    SF_ASSERT(entry->first >= 0 && entry->count >= 0 && entry->first <= INT32_MAX - entry->count);
    size_t tokens = (size_t)entry->count * TOKEN_BYTES_MAX + TOKENS_BYTES;
    if (tokens > SF_JOURNAL_PAYLOAD_MAX || entry->extra_bytes > SF_JOURNAL_PAYLOAD_MAX - tokens)
        return SF_FAIL(SF_UNSUPPORTED, "%d tokens of line %lld with %zu bytes do not fit into the"
                       " journal", entry->count, (long long)entry->line, entry->extra_bytes);
    unsigned char *at;
    SF_TRY(start_frame(journal, SF_JOURNAL_TOKENS, tokens + entry->extra_bytes, &at));
    at = put(at, (uint64_t)entry->line, 8);
    at = put(at, (uint64_t)entry->choice, 4);
    at = put(at, (uint64_t)entry->first, 4);
    at = put(at, (uint64_t)entry->count, 4);
    for (int32_t i = 0; i < entry->count; i++) {
        SF_ASSERT(entry->token[i] >= 0);
        at = put_varint(at, (uint64_t)entry->token[i]);
    }
    at = put(at, entry->extra_bytes, 4);
    if (entry->extra_bytes > 0) memcpy(at, entry->extra, entry->extra_bytes);
    return write_frame(journal, at + entry->extra_bytes);
}

/* OUT first: a SYNCED that can be read must be true. */
sf_status sf_journal_sync(struct sf_journal *journal, int output, int64_t output_bytes)
{
    SF_ASSERT(output_bytes >= 0);
    SF_TRY(sf_file_sync(output, "the output"));
    unsigned char *at;
    SF_TRY(start_frame(journal, SF_JOURNAL_SYNCED, SYNCED_BYTES, &at));
    SF_TRY(write_frame(journal, put(at, (uint64_t)output_bytes, 8)));
    if (fdatasync(journal->file) == 0 || errno == EINVAL || errno == EROFS) return SF_OK;
    return SF_FAIL(SF_IO, "%s: could not be synced: %s", journal->path, strerror(errno));
}

/* ---- the file ---- */

static sf_status write_header(struct sf_journal *journal)
{
    unsigned char *at;
    SF_TRY(start_frame(journal, SF_JOURNAL_HEADER, HEADER_BYTES, &at));
    memcpy(at, magic, MAGIC_BYTES);
    SF_TRY(write_frame(journal, put(at + MAGIC_BYTES, VERSION, 4)));
    SF_TRY(sf_file_sync(journal->file, journal->path));
    return sf_file_sync_folder(journal->path);
}

sf_status sf_journal_create(const char *path, struct sf_journal **journal_out)
{
    struct sf_journal *journal = calloc(1, sizeof *journal);
    if (journal == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the journal");
    journal->file = -1;
    sf_status status = sf_file_name(path, "", &journal->path);
    if (status == SF_OK) {
        journal->file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (journal->file < 0)
            status = SF_FAIL(SF_IO, "%s: could not be created: %s", path, strerror(errno));
        else if ((status = write_header(journal)) != SF_OK)
            unlink(path);
    }
    if (status == SF_OK) *journal_out = journal;
    else sf_journal_close(journal);
    return status;
}

sf_status sf_journal_move(struct sf_journal *journal, const char *path)
{
    char *name;
    SF_TRY(sf_file_name(path, "", &name));
    sf_status status = sf_file_rename(journal->path, path);
    if (status != SF_OK) {
        free(name);
        return status;
    }
    free(journal->path);
    journal->path = name;
    return SF_OK;
}

void sf_journal_close(struct sf_journal *journal)
{
    if (journal == NULL) return;
    if (journal->file >= 0) close(journal->file);
    sf_buffer_free(&journal->frame);
    free(journal->path);
    free(journal);
}

/* ---- reading ----
 *
 *   window   | frames given out | frame ... | read ahead | free |
 *            0                  start                    count
 *   file                        at */

struct sf_journal_reader {
    int file;
    int64_t size, at;                   /* of the file when it was opened; of window[start] in it */
    struct sf_buffer window;
    size_t start;
    int32_t *token; size_t token_capacity;
    char *path;
};

/* Makes `need` bytes of the window readable, or as many as the file has: *have_out. */
static sf_status fill(struct sf_journal_reader *reader, size_t need, size_t *have_out)
{
    struct sf_buffer *window = &reader->window;
    while (window->count - reader->start < need) {
        if (reader->start > 0) {
            memmove(window->bytes, window->bytes + reader->start, window->count - reader->start);
            window->count -= reader->start;
            reader->start = 0;
        }
        SF_TRY(sf_buffer_reserve(window, need > READ_BYTES ? need : READ_BYTES));
        ssize_t done = read(reader->file, window->bytes + window->count,
                            window->capacity - window->count);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0)
            return SF_FAIL(SF_IO, "%s: could not be read: %s", reader->path, strerror(errno));
        if (done == 0) break;
        window->count += (size_t)done;
    }
    *have_out = window->count - reader->start;
    return SF_OK;
}

struct cursor { const unsigned char *at, *end; int bad; };

static uint64_t get(struct cursor *c, int bytes)
{
    uint64_t value = 0;
    if (c->end - c->at < bytes) {
        c->bad = 1;
        return 0;
    }
    for (int i = 0; i < bytes; i++) value |= (uint64_t)c->at[i] << 8 * i;
    c->at += bytes;
    return value;
}

/* An integer of 64 bits that is not negative and at most `most`. */
static int64_t get_count(struct cursor *c, int bytes, int64_t most)
{
    uint64_t value = get(c, bytes);
    if (value > (uint64_t)most) c->bad = 1;
    return c->bad ? 0 : (int64_t)value;
}

static int64_t get_varint(struct cursor *c, int bytes_max, int64_t most)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes_max && c->at < c->end; i++) {
        unsigned char byte = *c->at++;
        value |= (uint64_t)(byte & 0x7f) << 7 * i;
        if (byte >= 0x80) continue;
        if (value > (uint64_t)most) break;
        return (int64_t)value;
    }
    c->bad = 1;
    return 0;
}

static void get_finished(struct cursor *c, struct sf_journal_finished *out)
{
    out->line = get_count(c, 8, SF_JOURNAL_LINE_MAX);
    out->offset = get_count(c, 8, INT64_MAX / 2);       /* sums of two stay in range */
    out->bytes = get_count(c, 8, SF_JOURNAL_LINE_BYTES_MAX);
    out->digest = get(c, 8);
    out->error = (uint8_t)get_count(c, 1, 1);
    for (int i = 0; i < SF_JOURNAL_SUMS; i++)
        out->sum[i] = get_varint(c, SUM_BYTES_MAX, INT64_MAX);
    if (out->line < 1 || out->bytes < 1) c->bad = 1;
}

static sf_status get_tokens(struct sf_journal_reader *reader, struct cursor *c,
                            struct sf_journal_tokens *out)
{
    out->line = get_count(c, 8, SF_JOURNAL_LINE_MAX);
    out->choice = (int32_t)get_count(c, 4, INT32_MAX);
    out->first = (int32_t)get_count(c, 4, INT32_MAX);
    out->count = (int32_t)get_count(c, 4, INT32_MAX - out->first);
    if (out->line < 1 || out->count > c->end - c->at) c->bad = 1;   /* a token is a byte or more */
    if (c->bad) return SF_OK;
    SF_TRY(sf_grow((void **)&reader->token, &reader->token_capacity, (size_t)out->count,
                   sizeof *reader->token));
    for (int32_t i = 0; i < out->count; i++)
        reader->token[i] = (int32_t)get_varint(c, TOKEN_BYTES_MAX, INT32_MAX);
    out->token = reader->token;
    out->extra_bytes = (size_t)get_count(c, 4, SF_JOURNAL_PAYLOAD_MAX);
    if (c->bad || (size_t)(c->end - c->at) != out->extra_bytes) {
        c->bad = 1;
        return SF_OK;
    }
    out->extra = c->at;
    c->at = c->end;
    return SF_OK;
}

/* The payload of a frame whose hash is right; c->bad if it is none of ours all the same. */
static sf_status get_entry(struct sf_journal_reader *reader, struct cursor *c,
                           struct sf_journal_entry *out)
{
    switch (out->kind) {
    case SF_JOURNAL_FINISHED: get_finished(c, &out->finished); break;
    case SF_JOURNAL_TOKENS: SF_TRY(get_tokens(reader, c, &out->tokens)); break;
    case SF_JOURNAL_SYNCED: out->synced_bytes = get_count(c, 8, INT64_MAX); break;
    case SF_JOURNAL_HEADER:
    case SF_JOURNAL_END: c->bad = 1;
    }
    if (c->at != c->end) c->bad = 1;
    return SF_OK;
}

/* The next frame if its hash is right: its kind and payload; the reader has not moved on yet.
 * *frame_bytes_out 0: no such frame. */
static sf_status next_frame(struct sf_journal_reader *reader, unsigned char *kind_out,
                            struct cursor *payload_out, int64_t *frame_bytes_out)
{
    size_t have;
    *frame_bytes_out = 0;
    if (reader->size - reader->at < FRAME_BYTES) return SF_OK;
    SF_TRY(fill(reader, FRAME_BYTES, &have));
    if (have < FRAME_BYTES) return SF_OK;
    struct cursor head = {.at = reader->window.bytes + reader->start,
                          .end = reader->window.bytes + reader->window.count};
    size_t payload = (size_t)get(&head, LENGTH_BYTES), frame_bytes = payload + FRAME_BYTES;
    /* A length that the file cannot hold is refused before there is a buffer for it. */
    if (payload > SF_JOURNAL_PAYLOAD_MAX || reader->size - reader->at < (int64_t)frame_bytes)
        return SF_OK;
    SF_TRY(fill(reader, frame_bytes, &have));
    if (have < frame_bytes) return SF_OK;
    const unsigned char *frame = reader->window.bytes + reader->start;
    struct cursor tail = {.at = frame + HEAD_BYTES + payload, .end = frame + frame_bytes};
    if (get(&tail, HASH_BYTES) != sf_hash64(frame + LENGTH_BYTES, payload + 1)) return SF_OK;
    *kind_out = frame[LENGTH_BYTES];
    *payload_out = (struct cursor){.at = frame + HEAD_BYTES, .end = frame + HEAD_BYTES + payload};
    *frame_bytes_out = (int64_t)frame_bytes;
    return SF_OK;
}

static void move_on(struct sf_journal_reader *reader, int64_t frame_bytes)
{
    reader->start += (size_t)frame_bytes;
    reader->at += frame_bytes;
}

sf_status sf_journal_reader_next(struct sf_journal_reader *reader,
                                 struct sf_journal_entry *entry_out)
{
    struct sf_journal_entry entry = {.offset = reader->at};
    struct cursor payload;
    int64_t frame_bytes;
    unsigned char kind;
    SF_TRY(next_frame(reader, &kind, &payload, &frame_bytes));
    if (frame_bytes > 0 && kind > SF_JOURNAL_HEADER && kind < SF_JOURNAL_END) {
        entry.kind = (enum sf_journal_kind)kind;
        SF_TRY(get_entry(reader, &payload, &entry));
        if (!payload.bad) {
            move_on(reader, frame_bytes);
            *entry_out = entry;
            return SF_OK;
        }
    }
    *entry_out = (struct sf_journal_entry){.kind = SF_JOURNAL_END, .offset = reader->at,
                                           .torn_bytes = reader->size - reader->at};
    return SF_OK;
}

static sf_status read_header(struct sf_journal_reader *reader)
{
    struct cursor payload;
    int64_t frame_bytes;
    unsigned char kind;
    SF_TRY(next_frame(reader, &kind, &payload, &frame_bytes));
    if (frame_bytes == 0 || kind != SF_JOURNAL_HEADER ||
        payload.end - payload.at != HEADER_BYTES || memcmp(payload.at, magic, MAGIC_BYTES) != 0)
        return SF_FAIL(SF_FORMAT, "%s: is no journal of sheaf, or its beginning is damaged",
                       reader->path);
    payload.at += MAGIC_BYTES;
    uint64_t version = get(&payload, 4);
    if (version != VERSION)
        return SF_FAIL(SF_UNSUPPORTED, "%s: is a journal of version %llu; this sheaf reads %d",
                       reader->path, (unsigned long long)version, VERSION);
    move_on(reader, frame_bytes);
    return SF_OK;
}

static sf_status open_file(struct sf_journal_reader *reader)
{
    struct stat info;
    reader->file = open(reader->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);   /* no wait on a pipe */
    if (reader->file < 0 || fstat(reader->file, &info) != 0)
        return SF_FAIL(SF_IO, "%s: could not be opened: %s", reader->path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return SF_FAIL(SF_FORMAT, "%s: is not a regular file", reader->path);
    reader->size = info.st_size;
    return read_header(reader);
}

sf_status sf_journal_reader_open(const char *path, struct sf_journal_reader **reader_out)
{
    struct sf_journal_reader *reader = calloc(1, sizeof *reader);
    if (reader == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for reading the journal");
    reader->file = -1;
    sf_status status = sf_file_name(path, "", &reader->path);
    if (status == SF_OK) status = open_file(reader);
    if (status == SF_OK) *reader_out = reader;
    else sf_journal_reader_close(reader);
    return status;
}

void sf_journal_reader_close(struct sf_journal_reader *reader)
{
    if (reader == NULL) return;
    if (reader->file >= 0) close(reader->file);
    sf_buffer_free(&reader->window);
    free(reader->token);
    free(reader->path);
    free(reader);
}
