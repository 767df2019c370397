/* coordinator/dedup.c: open addressing over (hash, where the line begins). */
#include "coordinator/dedup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/lines.h"
#include "base/rng.h"

enum { LINE_BYTES_MAX = 64 << 20, PLACES_FIRST = 1024 };

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

static struct seen *place_of(const struct table *table, uint64_t hash, size_t start)
{
    size_t at = (size_t)hash & (table->places - 1);
    at = (at + start) & (table->places - 1);
    while (table->place[at].offset >= 0 && table->place[at].hash != hash)
        at = (at + 1) & (table->places - 1);
    return &table->place[at];
}

static sf_status resize(struct table *table, size_t places)
{
    struct table grown = {.places = places, .used = table->used, .path = table->path};
    grown.place = malloc(places * sizeof *grown.place);
    if (grown.place == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory to know %zu records apart", table->used);
    for (size_t i = 0; i < places; i++) grown.place[i] = (struct seen){.offset = -1};
    for (size_t i = 0; i < table->places; i++) {
        if (table->place[i].offset < 0) continue;
        size_t at = (size_t)table->place[i].hash & (places - 1);
        while (grown.place[at].offset >= 0) at = (at + 1) & (places - 1);
        grown.place[at] = table->place[i];
    }
    free(table->place);
    *table = grown;
    return SF_OK;
}

static sf_status add(struct table *table, const struct sf_line *line, const char *id, size_t bytes)
{
    if (4 * (table->used + 1) > 3 * table->places) SF_TRY(resize(table, table->places * 2));
    uint64_t hash = sf_hash64(id, bytes);
    struct seen *place = place_of(table, hash, 0);
    while (place->offset >= 0) {
        int64_t before = line_with(table, place->offset, id, bytes);
        if (before > 0)
            return SF_FAIL(SF_INVALID, "%s:%lld: error: custom_id '%.100s' stands in line %lld too",
                           table->path, (long long)line->number, id, (long long)before);
        size_t home = (size_t)hash & (table->places - 1);
        place = place_of(table, hash, (size_t)(place - table->place) + 1 - home);
    }
    *place = (struct seen){.hash = hash, .offset = line->offset};
    table->used++;
    return SF_OK;
}

static sf_status scan(struct table *table, struct sf_line_reader *reader, int64_t *records)
{
    for (;;) {
        struct sf_line line;
        SF_TRY(sf_line_reader_next(reader, &line));
        if (line.kind == SF_LINE_END) return SF_OK;
        if (line.bytes == 0) continue;
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
    int64_t records = 0;
    SF_TRY(sf_line_reader_open(path, LINE_BYTES_MAX, &reader));
    sf_status status = resize(&table, PLACES_FIRST);
    if (status == SF_OK) status = scan(&table, reader, &records);
    sf_line_reader_close(reader);
    free(table.place);
    if (status == SF_OK) *records_out = records;
    return status;
}
