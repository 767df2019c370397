/* coordinator/merge.c: two passes over the shards: who is in them, then the copy.
 *
 * A position counts bytes over all shards, one behind the other:
 *
 *   | shard 0 ........ | shard 1 .... | shard 2 ...
 *   base[0] = 0        base[1]        base[2]
 *
 * The table keeps for each custom_id the position of the line that will stay, times 4, plus one of
 * the states below; so three shards with error, error, answer are judged alike in any order. */
#include "coordinator/merge.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/files.h"
#include "base/lines.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/rng.h"
#include "coordinator/answer_line.h"
#include "coordinator/dedup.h"
#include "coordinator/id_table.h"
#include "coordinator/request.h"

enum { LINE_BYTES_MAX = 1 << 30, COPY_BYTES = 1 << 20, PIECE_BYTES = 1 << 14 };
enum state { ANSWER, ERROR, ERROR_TWICE, STATES = 4 };

struct shard {
    const char *path;
    int64_t base, size;                 /* size: when the merging began */
    int64_t start, end;                 /* whole lines, in positions */
};
struct range { int64_t from, to; };     /* of positions, left out */
struct merge {
    struct shard *shard; int32_t shards;
    struct sf_id_table table;
    struct range *range; size_t ranges, capacity;
    int open_range;                     /* the last one ends where the next line begins */
    struct sf_buffer line, id, other;   /* a line read again; ids with escapes */
    struct sf_merge_totals totals;
};

/* ---- lines read again ---- */

static const struct shard *shard_of(const struct merge *m, int64_t position)
{
    int32_t low = 0, high = m->shards;
    while (high - low > 1) {
        int32_t middle = low + (high - low) / 2;
        if (m->shard[middle].base <= position) low = middle;
        else high = middle;
    }
    return &m->shard[low];
}

/* Into m->line, with its newline if it has one. */
static sf_status read_line(struct merge *m, int64_t position)
{
    const struct shard *shard = shard_of(m, position);
    int64_t offset = position - shard->base;
    int file = open(shard->path, O_RDONLY | O_CLOEXEC);
    sf_status status = file >= 0 ? SF_OK : SF_FAIL(SF_IO, "%s: %s", shard->path, strerror(errno));
    m->line.count = 0;
    for (const void *newline = NULL; status == SF_OK && newline == NULL && offset < shard->size;) {
        size_t piece = (size_t)(shard->size - offset);
        if (piece > PIECE_BYTES + m->line.count) piece = PIECE_BYTES + m->line.count;
        status = sf_buffer_reserve(&m->line, m->line.count + piece);
        if (status != SF_OK) break;
        unsigned char *at = m->line.bytes + m->line.count;
        status = sf_file_read(file, shard->path, offset, piece, at);
        newline = status == SF_OK ? memchr(at, '\n', piece) : NULL;
        size_t taken = newline == NULL ? piece
                                       : (size_t)((const unsigned char *)newline - at) + 1;
        m->line.count += taken;
        offset += (int64_t)taken;
    }
    if (file >= 0) close(file);
    return status;
}

static int64_t line_number(const struct shard *shard, int64_t offset)
{
    struct sf_line_reader *reader;
    struct sf_line line;
    int64_t number = 0;
    if (sf_line_reader_open(shard->path, LINE_BYTES_MAX, &reader) != SF_OK) return 0;
    while (sf_line_reader_next(reader, &line) == SF_OK && line.kind != SF_LINE_END) {
        number = line.number;
        if (line.offset >= offset) break;
    }
    sf_line_reader_close(reader);
    return number;
}

static int same_id(const struct sf_answer_line *a, const struct sf_answer_line *b)
{
    return a->id != NULL && b->id != NULL && a->id_bytes == b->id_bytes &&
           memcmp(a->id, b->id, a->id_bytes) == 0;
}

static sf_status refuse_twice(const struct merge *m, const struct sf_answer_line *line,
                              int64_t first, int64_t second, const char *what)
{
    const struct shard *a = shard_of(m, first), *b = shard_of(m, second);
    return SF_FAIL(SF_INVALID, "%s:%lld: error: custom_id '%.*s' %s in %s:%lld too", b->path,
                   (long long)line_number(b, second - b->base),
                   line->id_bytes > 100 ? 100 : (int)line->id_bytes, line->id, what, a->path,
                   (long long)line_number(a, first - a->base));
}

/* ---- the first pass ---- */

static sf_status leave_out(struct merge *m, int64_t from, int64_t to)
{
    SF_TRY(sf_grow((void **)&m->range, &m->capacity, m->ranges + 1, sizeof *m->range));
    m->range[m->ranges++] = (struct range){.from = from, .to = to};
    return SF_OK;
}

/* The line that begins here and ends where the next one will begin. */
static sf_status leave_out_this(struct merge *m, int64_t from)
{
    SF_TRY(leave_out(m, from, from));
    m->open_range = 1;
    return SF_OK;
}

/* A second line of one id, which stands in m->line: which of the two stays? */
static sf_status join(struct merge *m, struct sf_id_place *place, int64_t position,
                      const struct sf_answer_line *line)
{
    int64_t before = place->at / STATES;
    enum state state = (enum state)(place->at % STATES);
    if (!line->error && state == ANSWER)
        return refuse_twice(m, line, before, position, "is answered");
    m->totals.records--;
    m->totals.errors--;
    m->totals.replaced++;
    if (line->error) {
        if (state != ANSWER) place->at = before * STATES + ERROR_TWICE;
        return leave_out_this(m, position);
    }
    place->at = position * STATES + ANSWER;
    return leave_out(m, before, before + (int64_t)m->line.count);
}

static sf_status take_line(struct merge *m, int64_t position, const struct sf_answer_line *line)
{
    struct sf_id_place *place = NULL;
    m->totals.records++;
    m->totals.errors += line->error;
    if (line->id == NULL) return SF_OK;
    uint64_t hash = sf_hash64(line->id, line->id_bytes);
    while ((place = sf_id_table_next(&m->table, hash, place)) != NULL) {
        struct sf_answer_line other;
        SF_TRY(read_line(m, place->at / STATES));
        SF_TRY(sf_answer_line_read((const char *)m->line.bytes, m->line.count, &m->other, &other));
        if (same_id(line, &other)) return join(m, place, position, line);
    }
    int added = sf_id_table_add(&m->table, hash,
                                position * STATES + (line->error ? ERROR : ANSWER));
    return added ? SF_OK : SF_FAIL(SF_IO, "the shards have grown while they were read");
}

static sf_status refuse_line(const struct shard *shard, const struct sf_line *line)
{
    char words[256];
    if (line->kind == SF_LINE_TOO_LONG)
        return SF_FAIL(SF_FORMAT, "%s:%lld: error: a line of %zu bytes; at most %d are taken",
                       shard->path, (long long)line->number, line->bytes, LINE_BYTES_MAX);
    snprintf(words, sizeof words, "%s", sf_error_text());
    return SF_FAIL(SF_FORMAT, "%s:%lld: error: %s", shard->path, (long long)line->number, words);
}

/* A last line without its newline is whole if it is an answer, and torn if not. */
static sf_status scan_line(struct merge *m, struct shard *shard, const struct sf_line *line)
{
    int64_t position = shard->base + line->offset;
    struct sf_answer_line answer;
    if (sf_record_is_blank(line)) return leave_out_this(m, position);
    sf_status status = line->kind == SF_LINE_TEXT
                           ? sf_answer_line_read(line->text, line->bytes, &m->id, &answer)
                           : SF_FORMAT;
    if (status == SF_FORMAT && !line->terminated) {
        sf_log(SF_LOG_WARN, "%s: its last line, %lld, is torn and left out", shard->path,
               (long long)line->number);
        return leave_out_this(m, position);
    }
    if (status == SF_FORMAT) return refuse_line(shard, line);
    SF_TRY(status);
    return take_line(m, position, &answer);
}

static sf_status scan_lines(struct merge *m, struct shard *shard, struct sf_line_reader *reader)
{
    for (;;) {
        struct sf_line line;
        SF_TRY(sf_line_reader_next(reader, &line));
        int64_t position = shard->base + line.offset;
        if (m->open_range) m->range[m->ranges - 1].to = position;
        m->open_range = 0;
        if (line.number <= 1 && line.kind != SF_LINE_END) shard->start = position;
        shard->end = position;
        int64_t end = line.offset + (line.kind != SF_LINE_END ? (int64_t)line.bytes : 0);
        if (end > shard->size || (line.kind == SF_LINE_END && end != shard->size))
            return SF_FAIL(SF_INVALID, "%s: has changed while it was read", shard->path);
        if (line.kind == SF_LINE_END) return SF_OK;
        SF_TRY(scan_line(m, shard, &line));
    }
}

static sf_status scan(struct merge *m)
{
    for (int32_t s = 0; s < m->shards; s++) {
        struct sf_line_reader *reader;
        SF_TRY(sf_line_reader_open(m->shard[s].path, LINE_BYTES_MAX, &reader));
        m->shard[s].start = m->shard[s].base;
        sf_status status = scan_lines(m, &m->shard[s], reader);
        sf_line_reader_close(reader);
        SF_TRY(status);
    }
    return SF_OK;
}

/* ---- an id with two errors and no answer ---- */

/* Where the next error with this id begins, behind `position`; -1: nowhere. */
static sf_status find_again(struct merge *m, const struct sf_answer_line *line, int64_t position,
                            int64_t *again_out)
{
    *again_out = -1;
    for (int32_t s = 0; s < m->shards && *again_out < 0; s++) {
        struct sf_line_reader *reader;
        struct sf_line text = {.kind = SF_LINE_TEXT};
        sf_status status = sf_line_reader_open(m->shard[s].path, LINE_BYTES_MAX, &reader);
        SF_TRY(status);
        while (*again_out < 0 && status == SF_OK && text.kind != SF_LINE_END) {
            struct sf_answer_line other;
            status = sf_line_reader_next(reader, &text);
            int64_t at = m->shard[s].base + text.offset;
            if (status == SF_OK && text.kind == SF_LINE_TEXT && at > position &&
                sf_answer_line_read(text.text, text.bytes, &m->id, &other) == SF_OK &&
                other.error && same_id(line, &other))
                *again_out = at;
        }
        sf_line_reader_close(reader);
        SF_TRY(status);
    }
    return SF_OK;
}

static sf_status refuse_errors(struct merge *m)
{
    int64_t first = -1, second;
    struct sf_answer_line line;
    for (size_t i = 0; i < m->table.places; i++) {
        int64_t at = m->table.place[i].at;
        if (at >= 0 && at % STATES == ERROR_TWICE && (first < 0 || at / STATES < first))
            first = at / STATES;
    }
    if (first < 0) return SF_OK;
    SF_TRY(read_line(m, first));
    SF_TRY(sf_answer_line_read((const char *)m->line.bytes, m->line.count, &m->other, &line));
    SF_TRY(find_again(m, &line, first, &second));
    return refuse_twice(m, &line, first, second < 0 ? first : second, "has an error");
}

/* ---- the second pass ---- */

struct copy { int file; const char *path; char *bytes, last; };

static sf_status copy_bytes(struct copy *copy, int from, const struct shard *shard, int64_t start,
                            int64_t end)
{
    while (start < end) {
        size_t piece = end - start > COPY_BYTES ? COPY_BYTES : (size_t)(end - start);
        SF_TRY(sf_file_read(from, shard->path, start - shard->base, piece, copy->bytes));
        SF_TRY(sf_file_write(copy->file, copy->path, copy->bytes, piece));
        copy->last = copy->bytes[piece - 1];
        start += (int64_t)piece;
    }
    return SF_OK;
}

static sf_status copy_shard(const struct merge *m, const struct shard *shard, size_t *range,
                            struct copy *copy)
{
    int64_t at = shard->start;
    int from = open(shard->path, O_RDONLY | O_CLOEXEC);
    if (from < 0) return SF_FAIL(SF_IO, "%s: %s", shard->path, strerror(errno));
    sf_status status = SF_OK;
    for (; status == SF_OK && *range < m->ranges && m->range[*range].from < shard->end; ++*range) {
        status = copy_bytes(copy, from, shard, at, m->range[*range].from);
        at = m->range[*range].to;
    }
    if (status == SF_OK) status = copy_bytes(copy, from, shard, at, shard->end);
    if (status == SF_OK && copy->last != '\n') {
        status = sf_file_write(copy->file, copy->path, "\n", 1);
        copy->last = '\n';
    }
    close(from);
    return status;
}

static int by_position(const void *a, const void *b)
{
    int64_t x = ((const struct range *)a)->from, y = ((const struct range *)b)->from;
    return x < y ? -1 : x > y;
}

static sf_status copy_shards(struct merge *m, struct copy *copy)
{
    size_t range = 0;
    copy->bytes = malloc(COPY_BYTES);
    copy->last = '\n';
    if (copy->bytes == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the copy");
    if (m->ranges > 0) qsort(m->range, m->ranges, sizeof *m->range, by_position);
    for (int32_t s = 0; s < m->shards; s++) SF_TRY(copy_shard(m, &m->shard[s], &range, copy));
    return sf_file_sync(copy->file, copy->path);
}

/* A leftover of a merge that was killed is written over. */
static sf_status write_output(struct merge *m, const char *output)
{
    char *fresh;
    SF_TRY(sf_file_name(output, ".new", &fresh));
    struct copy copy = {.path = fresh};
    sf_status status = SF_OK;
    copy.file = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (copy.file < 0)
        status = SF_FAIL(SF_IO, "%s: could not be created: %s", fresh, strerror(errno));
    if (status == SF_OK) {
        status = copy_shards(m, &copy);
        if (close(copy.file) != 0 && status == SF_OK)
            status = SF_FAIL(SF_IO, "%s: could not be written: %s", fresh, strerror(errno));
        if (status == SF_OK) status = sf_file_rename(fresh, output);
        if (status != SF_OK) unlink(fresh);
    }
    free(copy.bytes);
    free(fresh);
    return status;
}

/* ---- all of it ---- */

/* Sizes, positions, and that all files are different ones. */
static sf_status look_at_shards(struct merge *m, const char *output, int64_t *lines_out)
{
    char *fresh;
    struct stat info;
    SF_TRY(sf_file_name(output, ".new", &fresh));
    struct stat *seen = calloc((size_t)m->shards + 1, sizeof *seen);
    sf_status status = seen != NULL ? SF_OK : SF_FAIL(SF_NO_MEMORY, "no memory for the shards");
    int32_t known = 0;
    if (status == SF_OK && lstat(output, &info) == 0)
        status = SF_FAIL(SF_INVALID, "%s exists already; name another --output or remove it",
                         output);
    if (status == SF_OK && stat(fresh, &info) == 0) seen[known++] = info;
    for (int32_t s = 0; s < m->shards && status == SF_OK; s++) {
        struct shard *shard = &m->shard[s];
        int64_t lines;
        status = sf_dedup_count_lines(shard->path, &lines);
        if (status == SF_OK && stat(shard->path, &info) != 0)
            status = SF_FAIL(SF_IO, "%s: %s", shard->path, strerror(errno));
        for (int32_t i = 0; i < known && status == SF_OK; i++)
            if (seen[i].st_dev == info.st_dev && seen[i].st_ino == info.st_ino)
                status = SF_FAIL(SF_INVALID, "%s: is given twice, or is %s", shard->path, fresh);
        if (status != SF_OK) break;
        seen[known++] = info;
        shard->base = s == 0 ? 0 : m->shard[s - 1].base + m->shard[s - 1].size;
        shard->size = info.st_size;
        *lines_out += lines;
    }
    free(seen);
    free(fresh);
    return status;
}

sf_status sf_merge(const char *output, const char *const *shard, int32_t shards,
                   struct sf_merge_totals *totals_out, int *writing_out)
{
    struct merge m = {.shards = shards};
    int64_t lines = 0;
    SF_ASSERT(shards > 0);
    *writing_out = 0;
    m.shard = calloc((size_t)shards, sizeof *m.shard);
    if (m.shard == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d shards", shards);
    for (int32_t s = 0; s < shards; s++) m.shard[s].path = shard[s];
    sf_status status = look_at_shards(&m, output, &lines);
    if (status == SF_OK) status = sf_id_table_make(&m.table, lines);
    if (status == SF_OK) status = scan(&m);
    if (status == SF_OK) status = refuse_errors(&m);
    if (status == SF_OK) {
        *writing_out = 1;
        status = write_output(&m, output);
    }
    sf_id_table_free(&m.table);
    free(m.range);
    sf_buffer_free(&m.line);
    sf_buffer_free(&m.id);
    sf_buffer_free(&m.other);
    free(m.shard);
    if (status == SF_OK) *totals_out = m.totals;
    return status;
}
