/* coordinator/dedup.c: the places of the table are where lines begin. */
#include "coordinator/dedup.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/lines.h"
#include "base/rng.h"
#include "coordinator/id_table.h"
#include "coordinator/request.h"

enum { LINE_BYTES_MAX = 64 << 20 };

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
static int64_t line_with(const char *path, int64_t offset, const char *id, size_t bytes)
{
    struct sf_line_reader *reader;
    struct sf_line line;
    int64_t number = 0;
    if (sf_line_reader_open(path, LINE_BYTES_MAX, &reader) != SF_OK) return 0;
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

static sf_status add(struct sf_id_table *table, const char *path, const struct sf_line *line,
                     const char *id, size_t bytes)
{
    uint64_t hash = sf_hash64(id, bytes);
    const struct sf_id_place *place = NULL;
    while ((place = sf_id_table_next(table, hash, place)) != NULL) {
        int64_t before = line_with(path, place->at, id, bytes);
        if (before > 0)
            return SF_FAIL(SF_INVALID, "%s:%lld: error: custom_id '%.100s' stands in line %lld too",
                           path, (long long)line->number, id, (long long)before);
    }
    if (!sf_id_table_add(table, hash, line->offset))
        return SF_FAIL(SF_INVALID, "%s has grown while it was read", path);
    return SF_OK;
}

sf_status sf_dedup_count_lines(const char *path, int64_t *lines_out)
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

static sf_status scan(struct sf_id_table *table, const char *path, struct sf_line_reader *reader,
                      int64_t *records)
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
        sf_status status = add(table, path, &line, id, bytes);
        free(id);
        SF_TRY(status);
    }
}

sf_status sf_dedup_scan(const char *path, int64_t *records_out)
{
    struct sf_id_table table;
    struct sf_line_reader *reader;
    int64_t records = 0, lines;
    SF_TRY(sf_dedup_count_lines(path, &lines));
    SF_TRY(sf_id_table_make(&table, lines));
    sf_status status = sf_line_reader_open(path, LINE_BYTES_MAX, &reader);
    if (status == SF_OK) {
        status = scan(&table, path, reader, &records);
        sf_line_reader_close(reader);
    }
    sf_id_table_free(&table);
    if (status == SF_OK) *records_out = records;
    return status;
}
