/* coordinator/dedup.c: open addressing over (hash, where the line begins). */
#include "coordinator/dedup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/lines.h"
#include "base/rng.h"
#include "coordinator/request.h"

enum { LINE_BYTES_MAX = 64 << 20 };

struct seen { uint64_t hash; int64_t offset; };     /* offset -1: free */
struct table { struct seen *place; size_t places, used; const char *path; };

/* custom_id of a line; malloc'd; NULL if it has none. */
static char *id_of(const char *text, size_t bytes, size_t *bytes_out)
{
    struct sf_json *root;
    if (sf_json_parse(text, bytes, LINE_BYTES_MAX, &root) != SF_OK) return NULL;
    const char *id = sf_json_text(sf_json_member(root, "custom_id"), bytes_out);
    char *copy = id != NULL ? malloc(*bytes_out + 1) : NULL;
    if (copy != NULL) memcpy(copy, id, *bytes_out + 1);
    sf_json_free(root);
    return copy;
}

/* The number of the line at `offset` if it has this id, 0 otherwise. */
static int64_t line_with(const struct table *table, int64_t offset, const char *id, size_t bytes)
{
    struct sf_line_reader *reader;
    struct sf_line line;
    int64_t number = 0;
    if (sf_line_reader_open(table->path, LINE_BYTES_MAX, &reader) != SF_OK) return 0;
    while (sf_line_reader_next(reader, &line) == SF_OK && line.kind != SF_LINE_END) {
        if (line.offset != offset) continue;
        size_t other_bytes = 0;
        char *other = line.kind == SF_LINE_TEXT ? id_of(line.text, line.bytes, &other_bytes) : NULL;
        if (other != NULL && other_bytes == bytes && memcmp(other, id, bytes) == 0)
            number = line.number;
        free(other);
        break;
    }
    sf_line_reader_close(reader);
    return number;
}

/* The first place from `at` on that is free or has this hash; there is always a free one. */
static size_t place_from(const struct table *table, uint64_t hash, size_t at)
{
    at %= table->places;
    while (table->place[at].offset >= 0 && table->place[at].hash != hash)
        at = (at + 1) % table->places;
    return at;
}

static sf_status add(struct table *table, const struct sf_line *line, const char *id, size_t bytes)
{
    uint64_t hash = sf_hash64(id, bytes);
    if (4 * (table->used + 1) > 3 * table->places)
        return SF_FAIL(SF_INVALID, "%s has grown while it was read", table->path);
    size_t at = place_from(table, hash, (size_t)(hash % table->places));
    for (; table->place[at].offset >= 0; at = place_from(table, hash, at + 1)) {
        int64_t before = line_with(table, table->place[at].offset, id, bytes);
        if (before > 0)
            return SF_FAIL(SF_INVALID, "%s:%lld: error: custom_id '%.100s' stands in line %lld too",
                           table->path, (long long)line->number, id, (long long)before);
    }
    table->place[at] = (struct seen){.hash = hash, .offset = line->offset};
    table->used++;
    return SF_OK;
}

/* How many lines there are, whatever they hold. */
static sf_status count_lines(const char *path, int64_t *lines_out)
{
    struct sf_line_reader *reader;
    struct sf_line line = {.kind = SF_LINE_TEXT};
    SF_TRY(sf_line_reader_open(path, LINE_BYTES_MAX, &reader));
    sf_status status = SF_OK;
    while (status == SF_OK && line.kind != SF_LINE_END) status = sf_line_reader_next(reader, &line);
    sf_line_reader_close(reader);
    if (status == SF_OK) *lines_out = line.number;
    return status;
}

static sf_status make_table(struct table *table, int64_t lines)
{
    table->places = (size_t)lines + (size_t)lines / 3 + 2;
    table->place = malloc(table->places * sizeof *table->place);
    if (table->place == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory to know %lld records apart", (long long)lines);
    for (size_t i = 0; i < table->places; i++) table->place[i] = (struct seen){.offset = -1};
    return SF_OK;
}

static sf_status scan(struct table *table, struct sf_line_reader *reader, int64_t *records)
{
    for (;;) {
        struct sf_line line;
        SF_TRY(sf_line_reader_next(reader, &line));
        if (line.kind == SF_LINE_END) return SF_OK;
        if (sf_record_is_blank(&line)) continue;
        (*records)++;
        size_t bytes;
        char *id = line.kind == SF_LINE_TEXT ? id_of(line.text, line.bytes, &bytes) : NULL;
        if (id == NULL) continue;
        sf_status status = add(table, &line, id, bytes);
        free(id);
        SF_TRY(status);
    }
}

sf_status sf_dedup_scan(const char *path, int64_t *records_out)
{
    struct table table = {.path = path};
    struct sf_line_reader *reader;
    int64_t records = 0, lines;
    SF_TRY(count_lines(path, &lines));
    SF_TRY(sf_line_reader_open(path, LINE_BYTES_MAX, &reader));
    sf_status status = make_table(&table, lines);
    if (status == SF_OK) status = scan(&table, reader, &records);
    sf_line_reader_close(reader);
    free(table.place);
    if (status == SF_OK) *records_out = records;
    return status;
}
