/* base/opt_names.c: finding a row by name, and the nearest name for "did you mean". */
#include <ctype.h>
#include <string.h>

#include "base/opt.h"

enum { WORD_MAX = 63 };

static int fold(char letter)
{
    return tolower((unsigned char)letter);
}

/* Edit distance of two words, letter case aside: insertions, deletions, changes, and swaps of
 * neighbours count one each.  d[i][j] is the distance of the first i letters of `a` to the first j
 * of `b`; only the last three rows are kept:
 *
 *   d[i][j] = min( d[i-1][j] + 1, d[i][j-1] + 1, d[i-1][j-1] + (a_i != b_j),
 *                  d[i-2][j-2] + 1  where a_i = b_(j-1) and a_(i-1) = b_j ) */
static size_t distance(const char *a, size_t a_bytes, const char *b, size_t b_bytes)
{
    SF_ASSERT(a_bytes <= WORD_MAX && b_bytes <= WORD_MAX);
    size_t rows[3][WORD_MAX + 1];
    for (size_t j = 0; j <= b_bytes; j++) rows[0][j] = j;
    for (size_t i = 1; i <= a_bytes; i++) {
        size_t *row = rows[i % 3], *above = rows[(i - 1) % 3], *above2 = rows[(i + 1) % 3];
        row[0] = i;
        for (size_t j = 1; j <= b_bytes; j++) {
            size_t best = above[j - 1] + (fold(a[i - 1]) != fold(b[j - 1]));
            if (above[j] + 1 < best) best = above[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            int swapped = i > 1 && j > 1 && fold(a[i - 1]) == fold(b[j - 2])
                          && fold(a[i - 2]) == fold(b[j - 1]);
            if (swapped && above2[j - 2] + 1 < best) best = above2[j - 2] + 1;
            row[j] = best;
        }
    }
    return rows[a_bytes % 3][b_bytes];
}

/* The best candidate so far.  Near is about a third of the letters wrong. */
struct search { const char *word; size_t word_bytes, limit, best; const char *name; };

static struct search search_start(const char *word)
{
    struct search search = { .word = word, .word_bytes = strnlen(word, WORD_MAX + 1) };
    search.limit = (search.word_bytes + 2) / 3;
    search.best = search.limit + 1;
    return search;
}

/* Tries one spelling that stands for `name`; the first of equals wins. */
static void search_try(struct search *search, const char *spelling, size_t bytes, const char *name)
{
    if (search->word_bytes == 0 || search->word_bytes > WORD_MAX || bytes > WORD_MAX) return;
    size_t found = distance(search->word, search->word_bytes, spelling, bytes);
    /* A word of which nothing is left is not near. */
    if (found >= search->best || found >= bytes || found >= search->word_bytes) return;
    search->best = found;
    search->name = name;
}

const char *sf_nearest_name(const char *word, const char *const *names, size_t count)
{
    struct search search = search_start(word);
    for (size_t i = 0; i < count; i++) search_try(&search, names[i], strlen(names[i]), names[i]);
    return search.name;
}

/* The next word of a blank-separated list, or NULL at its end; `*list` moves past it. */
static const char *next_word(const char **list, size_t *bytes_out)
{
    if (*list == NULL) return NULL;
    const char *word = *list + strspn(*list, " ");
    size_t bytes = strcspn(word, " ");
    *list = word + bytes;
    *bytes_out = bytes;
    return bytes > 0 ? word : NULL;
}

const char *sf_opt_nearest(const struct sf_opt *table, const char *key)
{
    struct search search = search_start(key);
    for (const struct sf_opt *row = table; row->key != NULL; row++) {
        search_try(&search, row->key, strlen(row->key), row->key);
        const char *list = row->aliases, *word;
        size_t bytes;
        while ((word = next_word(&list, &bytes)) != NULL)
            search_try(&search, word, bytes, row->key);
    }
    return search.name;
}

const struct sf_opt *sf_opt_find(const struct sf_opt *table, const char *key)
{
    size_t key_bytes = strlen(key);
    for (const struct sf_opt *row = table; row->key != NULL; row++) {
        if (strcmp(row->key, key) == 0) return row;
        const char *list = row->aliases, *word;
        size_t bytes;
        while ((word = next_word(&list, &bytes)) != NULL)
            if (bytes == key_bytes && memcmp(word, key, bytes) == 0) return row;
    }
    return NULL;
}
