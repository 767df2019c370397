/* tests/unit/plan/config_fuzz.c: bytes of any kind instead of a configuration.
 *
 * Mutations of a valid file, from a counter-based generator, so that a failure names its number and
 * replays.  Shown: nothing crashes or leaks (the sanitizers watch), a refusal has words with a
 * position, and what is accepted has a resolved text that reads back as the same text. */
#include <stdlib.h>
#include "base/rng.h"
#include "coordinator/config.h"
#include "tests/check.h"

enum { ROUNDS = 20000, TEXT_MAX = 4096 };

static const char seed_text[] =
    "schema_version: 1\n"
    "model: {path: models/a.gguf, dtype: bf16, compute: auto}\n"
    "parallel:\n"
    "  tensor_parallel_size: 2\n"
    "  pipeline_layers: [14, 16]\n"
    "  pipeline_parallel_size: 2\n"
    "device: auto\n"
    "kv_cache:\n"
    "  memory: 64MiB\n"
    "  block_size: 16\n"
    "  methods:\n"
    "    - name: window\n"
    "      recent_tokens: 64   # comment\n"
    "      layers: \"0-11,20\"\n"
    "    - {name: none, on: all}\n"
    "scheduler: {max_num_seqs: 256, enable_prefix_caching: true}\n"
    "sampling: {temperature: 0.5, seed: 7}\n"
    "run: {deterministic: false, checkpoint_interval_s: 5}\n";

static const char *const pieces[] = {
    "&a", "*a", "!!int", "---\n", "...\n", "? ", ": ", "- ", "[", "]", "{", "}", "|\n", ">\n", "\"",
    "'", "\t", "\n", "#", "%TAG ! x\n", "${env:HOME}", "${env:", "\xff", "\xc3\xa9", "\xef\xbb\xbf",
    "\\x00", "auto", "1e308", "99999999999999999999", "-1", "true", "name: window", "<<: *a",
    "schema_version: 1\n", "methods:\n", "kv_cache:\n", "\xe2\x80\xa8", ",", "0.1TiB", "@", "`"
};

/* One text of round `round`: some edits of the seed. */
static size_t mutate(uint64_t round, char *text)
{
    size_t bytes = sizeof seed_text - 1;
    uint64_t draw = 0;
#define NEXT(n) ((size_t)(sf_rng_u64(7, round, draw++) % (uint64_t)(n)))
    memcpy(text, seed_text, bytes);
    size_t edits = 1 + NEXT(3);
    for (size_t i = 0; i < edits; i++) {
        size_t at = NEXT(bytes + 1), kind = NEXT(6);
        if (kind == 0 && at < bytes) {                          /* a byte changes */
            text[at] = (char)NEXT(256);
        } else if (kind == 5) {                                 /* a number changes */
            while (at < bytes && (text[at] < '0' || text[at] > '9')) at++;
            if (at < bytes) text[at] = (char)('0' + NEXT(10));
        } else if (kind == 1) {                                 /* bytes go */
            size_t count = 1 + NEXT(12);
            if (count > bytes - at) count = bytes - at;
            memmove(text + at, text + at + count, bytes - at - count);
            bytes -= count;
        } else {                                                /* a piece or a copy comes */
            char copy[64];
            const char *piece = pieces[NEXT(sizeof pieces / sizeof *pieces)];
            size_t count = strlen(piece);
            if (kind == 2 && bytes > sizeof copy) {
                count = 1 + NEXT(sizeof copy);
                memcpy(copy, text + NEXT(bytes - count), count);
                piece = copy;
            }
            if (bytes + count > TEXT_MAX) continue;
            memmove(text + at + count, text + at, bytes - at);
            memcpy(text + at, piece, count);
            bytes += count;
        }
    }
#undef NEXT
    return bytes;
}

static void check_text(uint64_t round, const char *bytes, size_t count, int *accepted)
{
    struct sf_config cfg, back;
    char *exact = malloc(count + 1);            /* no byte past the end may be read */
    if (exact == NULL) return;
    exact = realloc(exact, count > 0 ? count : 1);
    memcpy(exact, bytes, count);
    sf_status status = sf_config_parse("fuzz", exact, count, NULL, &cfg);
    free(exact);
    if (status != SF_OK) {
        const char *words = sf_error_text();
        if (strncmp(words, "fuzz:", 5) != 0 || strstr(words, ": error: ") == NULL
            || strchr(words, '\n') != NULL || sf_status_exit_code(status) != 2)
            sf_test_fail(__FILE__, __LINE__, "round %llu: words are \"%s\"",
                         (unsigned long long)round, words);
        return;
    }
    (*accepted)++;
    char *text = NULL, *again = NULL;
    if (sf_config_text(&cfg, &text) != SF_OK
        || sf_config_parse("back", text, strlen(text), NULL, &back) != SF_OK) {
        sf_test_fail(__FILE__, __LINE__, "round %llu does not read back: %s",
                     (unsigned long long)round, sf_error_text());
    } else {
        if (sf_config_text(&back, &again) != SF_OK || strcmp(text, again) != 0)
            sf_test_fail(__FILE__, __LINE__, "round %llu reads back as another configuration",
                         (unsigned long long)round);
        sf_config_free(&back);
    }
    free(text);
    free(again);
    sf_config_free(&cfg);
}

static void mutations(void)
{
    static char text[TEXT_MAX + 64];
    int accepted = 0;
    for (uint64_t round = 0; round < ROUNDS; round++)
        check_text(round, text, mutate(round, text), &accepted);
    /* Both paths were taken. */
    SF_CHECK(accepted > ROUNDS / 100);
    SF_CHECK(accepted < ROUNDS * 9 / 10);
    printf("  %d of %d mutations accepted\n", accepted, ROUNDS);
}

/* Every beginning of the file: what a torn copy looks like. */
static void beginnings(void)
{
    int accepted = 0;
    for (size_t bytes = 0; bytes < sizeof seed_text; bytes++)
        check_text(bytes, seed_text, bytes, &accepted);
    SF_CHECK(accepted > 0);
}

/* Overrides of any kind. */
static void overrides(void)
{
    for (uint64_t round = 0; round < ROUNDS / 4; round++) {
        static const char *const paths[] = {
            "kv_cache.methods.0.recent_tokens", "kv_cache.methods", "model.path", "run", "", ".",
            "kv_cache.methods.9", "parallel.pipeline_layers", "parallel.pipeline_layers.0", "a.b.c"
        };
        char set[256];
        const char *list = set;
        const size_t path = (size_t)(sf_rng_u64(8, round, 0) % (sizeof paths / sizeof *paths));
        size_t used = (size_t)snprintf(set, sizeof set, "%s=", paths[path]);
        for (uint64_t i = 0; i < 4; i++) {
            const size_t piece = (size_t)(sf_rng_u64(8, round, i + 1)
                                          % (sizeof pieces / sizeof *pieces));
            used += (size_t)snprintf(set + used, sizeof set - used, "%s", pieces[piece]);
        }
        struct sf_config_sets sets = { .set = &list, .sets = 1 };
        struct sf_config cfg;
        sf_status status = sf_config_parse("fuzz", seed_text, sizeof seed_text - 1, &sets, &cfg);
        if (status == SF_OK) sf_config_free(&cfg);
        else if (strstr(sf_error_text(), ": error: ") == NULL)
            sf_test_fail(__FILE__, __LINE__, "--set %s: words are \"%s\"", set, sf_error_text());
    }
    CU_PASS("survived");
}

static const struct sf_test tests[] = {
    { "mutations", mutations },
    { "beginnings", beginnings },
    { "overrides", overrides },
    { NULL, NULL }
};
SF_TEST_MAIN("config_fuzz", tests)
