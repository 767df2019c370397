/* tests/unit/coordinator/dedup.c: the first pass counts records and finds every id that is twice.
 *
 * Files written here: counts with blank, broken and unterminated lines; pairs near and far, with
 * NULs and as JSON escapes; names in messages; thousands of records with one pair at random places;
 * small files of every number of lines, where the table is as full as it gets.  And the table by
 * itself: places that share a hash, and hashes that meet in one place, are all found. */
#include "coordinator/dedup.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/rng.h"
#include "coordinator/id_table.h"
#include "tests/check.h"

static char path[64];

static void write_file(const char *bytes, size_t count)
{
    snprintf(path, sizeof path, "/tmp/sheaf-dedup-XXXXXX");
    int number = mkstemp(path);
    FILE *file = number >= 0 ? fdopen(number, "wb") : NULL;
    if (file == NULL || fwrite(bytes, 1, count, file) != count || fclose(file) != 0) abort();
}

/* Scans this text; -1 and words if it is refused. */
static int64_t scan(const char *text, size_t bytes)
{
    int64_t records = -1;
    write_file(text, bytes);
    sf_status status = sf_dedup_scan(path, &records);
    SF_CHECK(status == SF_OK || status == SF_INVALID);
    unlink(path);
    return status == SF_OK ? records : -1;
}

#define SCAN(text) scan((text), sizeof (text) - 1)

static void counts(void)
{
    SF_CHECK_INT(SCAN(""), 0);
    SF_CHECK_INT(SCAN("\n\n \t\r\n"), 0);
    SF_CHECK_INT(SCAN("{\"custom_id\": \"a\"}"), 1);
    SF_CHECK_INT(SCAN("{\"custom_id\": \"a\"}\n\n{\"custom_id\": \"b\"}\n"), 2);
    /* Lines that are no records are counted; each becomes an error of its own. */
    SF_CHECK_INT(SCAN("{not json\n{not json\n{}\n{}\n7\n7\n{\"custom_id\": 5}\n{\"custom_id\": 5}"),
                 8);
    int64_t records = 42;
    SF_CHECK_FAILS(sf_dedup_scan("/nonexistent/in.jsonl", &records), SF_IO);
    SF_CHECK_FAILS(sf_dedup_scan("/tmp", &records), SF_INVALID);
    SF_CHECK_INT(records, 42);
}

static void check_twice(const char *text, size_t bytes, const char *words)
{
    SF_CHECK_INT(scan(text, bytes), -1);
    if (strstr(sf_error_text(), words) == NULL)
        sf_test_fail(__FILE__, __LINE__, "words are \"%s\", without \"%s\"", sf_error_text(),
                     words);
}

#define TWICE(text, words) check_twice((text), sizeof (text) - 1, (words))

static void pairs(void)
{
    TWICE("{\"custom_id\": \"a\"}\n{\"custom_id\": \"a\"}\n",
          ":2: error: custom_id 'a' stands in line 1 too");
    TWICE("{\"custom_id\": \"a\"}\n\n{\"custom_id\": \"b\"}\nbroken\n{\"custom_id\": \"a\"}",
          ":5: error: custom_id 'a' stands in line 1 too");
    TWICE("{\"custom_id\": \"\\u0061\"}\n{\"custom_id\": \"a\"}\n", "'a' stands in line 1");
    TWICE("{\"custom_id\": \"\"}\n{\"custom_id\": \"\"}\n", "'' stands in line 1");
    SF_CHECK_INT(SCAN("{\"custom_id\": \"a\\u0000b\"}\n{\"custom_id\": \"a\\u0000c\"}\n"
                      "{\"custom_id\": \"a\"}\n"), 3);
}

/* Every small number of lines: what the table has room for is neither too little nor all. */
static void few(void)
{
    char text[64 * 24];
    size_t used = 0;
    for (int lines = 0; lines < 64; lines++) {
        SF_CHECK_INT(scan(text, used), lines);
        used += (size_t)snprintf(text + used, 24, "{\"custom_id\": \"%d\"}\n", lines);
    }
}

/* A long list with one pair or none. */
static void many(void)
{
    enum { RECORDS = 5000, LINE = 64 };
    char *text = malloc((size_t)RECORDS * LINE);
    if (text == NULL) abort();
    for (uint64_t round = 0; round < 12; round++) {
        uint64_t first = sf_rng_u64(7, round, 0) % (RECORDS - 1);
        uint64_t second = first + 1 + sf_rng_u64(7, round, 1) % (RECORDS - 1 - first);
        size_t used = 0;
        for (uint64_t i = 0; i < RECORDS; i++) {
            uint64_t name = round % 3 != 0 && i == second ? first : i;
            used += (size_t)snprintf(text + used, LINE, "{\"custom_id\": \"id-%llu\"}\n",
                                     (unsigned long long)name);
        }
        char words[96];
        snprintf(words, sizeof words, ":%llu: error: custom_id 'id-%llu' stands in line %llu too",
                 (unsigned long long)second + 1, (unsigned long long)first,
                 (unsigned long long)first + 1);
        if (round % 3 == 0) SF_CHECK_INT(scan(text, used), RECORDS);
        else check_twice(text, used, words);
    }
    free(text);
}

/* How many places have this hash, and the sum of what stands there. */
static int places_of(const struct sf_id_table *table, uint64_t hash, int64_t *sum_out)
{
    int count = 0;
    *sum_out = 0;
    for (const struct sf_id_place *place = NULL;
         (place = sf_id_table_next(table, hash, place)) != NULL; count++)
        *sum_out += place->at;
    return count;
}

static void shared_hashes(void)
{
    for (uint64_t ids = 0; ids < 40; ids++) {
        struct sf_id_table table;
        int64_t sum, expected_sum[8] = {0};
        int expected[8] = {0};
        SF_MUST(sf_id_table_make(&table, (int64_t)ids));
        for (uint64_t i = 0; i < ids; i++) {    /* eight hashes, all of one place modulo the size */
            uint64_t which = sf_rng_u64(8, ids, i) % 8;
            SF_CHECK(sf_id_table_add(&table, which * table.places + ids, (int64_t)i));
            expected[which]++;
            expected_sum[which] += (int64_t)i;
        }
        for (uint64_t which = 0; which < 8; which++) {
            SF_CHECK_INT(places_of(&table, which * table.places + ids, &sum), expected[which]);
            SF_CHECK_INT(sum, expected_sum[which]);
        }
        SF_CHECK_INT(places_of(&table, ids + 1, &sum), 0);
        int more = 0;
        while (more < 100 && sf_id_table_add(&table, 7, 7)) more++;
        SF_CHECK(more < 100 && table.used < table.places);
        sf_id_table_free(&table);
    }
}

static const struct sf_test tests[] = {
    {"counts", counts},
    {"pairs", pairs},
    {"few records", few},
    {"many records", many},
    {"shared hashes", shared_hashes},
    {NULL, NULL}};
SF_TEST_MAIN("dedup", tests)
