/* coordinator/resume_kept.c: which lines are finished, and the tokens of those that are not. */
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "coordinator/resume_impl.h"

enum { BLOCK_LINES = 1 << 15, WORD_LINES = 64, BLOCK_WORDS = BLOCK_LINES / WORD_LINES,
       CHOICES_MAX = 1024 };
_Static_assert(BLOCK_WORDS * sizeof(uint64_t) == 4096, "a block is a page of memory");

/* ---- sets of lines ---- */

static size_t block_of(int64_t line) { return (size_t)(line / BLOCK_LINES); }
static size_t word_of(int64_t line) { return (size_t)(line % BLOCK_LINES / WORD_LINES); }
static uint64_t bit_of(int64_t line) { return (uint64_t)1 << line % WORD_LINES; }

sf_status sf_line_set_add(struct sf_line_set *set, int64_t line)
{
    SF_ASSERT(line >= 1 && line <= SF_JOURNAL_LINE_MAX);
    size_t block = block_of(line), capacity = set->blocks;
    if (block >= set->blocks) {
        SF_TRY(sf_grow((void **)&set->block, &capacity, block + 1, sizeof *set->block));
        memset(set->block + set->blocks, 0, (capacity - set->blocks) * sizeof *set->block);
        set->blocks = capacity;
    }
    if (set->block[block] == NULL)
        set->block[block] = calloc(BLOCK_WORDS, sizeof **set->block);
    if (set->block[block] == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory to know which records are finished");
    set->block[block][word_of(line)] |= bit_of(line);
    return SF_OK;
}

int sf_line_set_has(const struct sf_line_set *set, int64_t line)
{
    size_t block = line < 1 ? set->blocks : block_of(line);
    return block < set->blocks && set->block[block] != NULL &&
           (set->block[block][word_of(line)] & bit_of(line)) != 0;
}

void sf_line_set_remove(struct sf_line_set *set, int64_t line)
{
    if (sf_line_set_has(set, line)) set->block[block_of(line)][word_of(line)] &= ~bit_of(line);
}

void sf_line_set_free(struct sf_line_set *set)
{
    for (size_t b = 0; b < set->blocks; b++) free(set->block[b]);
    free(set->block);
    *set = (struct sf_line_set){0};
}

/* ---- parts ---- */

static struct sf_half **place_of(const struct sf_parts *parts, int64_t line)
{
    struct sf_half **at = &parts->bucket[sf_hash64(&line, sizeof line) & (parts->buckets - 1)];
    while (*at != NULL && (*at)->line != line) at = &(*at)->next;
    return at;
}

/* As many buckets as there are records, or more; a power of two. */
static sf_status grow_table(struct sf_parts *parts)
{
    struct sf_parts wider = {.buckets = parts->buckets == 0 ? 64 : parts->buckets * 2,
                             .halves = parts->halves};
    wider.bucket = calloc(wider.buckets, sizeof(struct sf_half *));
    if (wider.bucket == NULL)
        return SF_FAIL(SF_NO_MEMORY, "no memory for %zu half-finished records", parts->halves + 1);
    for (size_t b = 0; b < parts->buckets; b++)
        for (struct sf_half *half = parts->bucket[b], *next; half != NULL; half = next) {
            next = half->next;
            half->next = NULL;
            *place_of(&wider, half->line) = half;
        }
    free(parts->bucket);
    *parts = wider;
    return SF_OK;
}

const struct sf_half *sf_parts_find(const struct sf_parts *parts, int64_t line)
{
    return parts->buckets == 0 ? NULL : *place_of(parts, line);
}

static sf_status find_or_make(struct sf_parts *parts, int64_t line, struct sf_half **half_out)
{
    if (parts->halves == parts->buckets) SF_TRY(grow_table(parts));
    struct sf_half **place = place_of(parts, line);
    if (*place == NULL) {
        *place = calloc(1, sizeof **place);
        if (*place == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for a half-finished record");
        (*place)->line = line;
        parts->halves++;
    }
    *half_out = *place;
    return SF_OK;
}

static struct sf_part *part_of(const struct sf_half *half, int32_t choice)
{
    for (size_t i = 0; half != NULL && i < half->parts; i++)
        if (half->part[i].choice == choice) return &half->part[i];
    return NULL;
}

static sf_status append(struct sf_part *part, const struct sf_journal_tokens *tokens)
{
    size_t old = tokens->first == 0 ? 0 : (size_t)part->view.tokens;
    size_t old_bytes = tokens->first == 0 ? 0 : part->extra.count;
    SF_TRY(sf_grow((void **)&part->token, &part->token_capacity, old + (size_t)tokens->count,
                   sizeof *part->token));
    SF_TRY(sf_buffer_reserve(&part->extra, old_bytes + tokens->extra_bytes));
    if (tokens->count > 0)
        memcpy(part->token + old, tokens->token, (size_t)tokens->count * sizeof *part->token);
    if (tokens->extra_bytes > 0)
        memcpy(part->extra.bytes + old_bytes, tokens->extra, tokens->extra_bytes);
    part->extra.count = old_bytes + tokens->extra_bytes;
    part->view = (struct sf_resume_part){.token = part->token,
                                         .tokens = tokens->first + tokens->count,
                                         .extra = part->extra.bytes,
                                         .extra_bytes = part->extra.count};
    return SF_OK;
}

sf_status sf_parts_add(struct sf_parts *parts, const struct sf_journal_tokens *tokens)
{
    const struct sf_half *known = sf_parts_find(parts, tokens->line);
    struct sf_part *part = part_of(known, tokens->choice);
    int32_t there = part != NULL ? part->view.tokens : 0;
    if (tokens->first != 0 && tokens->first != there) return SF_OK;
    if (part == NULL && tokens->choice >= CHOICES_MAX) return SF_OK;
    if (tokens->count == 0 && tokens->first == 0) return SF_OK;     /* nothing of a new start */
    if (part == NULL) {
        struct sf_half *half;
        SF_TRY(find_or_make(parts, tokens->line, &half));
        SF_TRY(sf_grow((void **)&half->part, &half->capacity, half->parts + 1,
                       sizeof *half->part));
        part = &half->part[half->parts++];
        *part = (struct sf_part){.choice = tokens->choice};
    }
    return append(part, tokens);
}

static void free_half(struct sf_half *half)
{
    for (size_t i = 0; i < half->parts; i++) {
        free(half->part[i].token);
        sf_buffer_free(&half->part[i].extra);
    }
    free(half->part);
    free(half);
}

void sf_parts_drop(struct sf_parts *parts, int64_t line)
{
    struct sf_half **place = parts->buckets == 0 ? NULL : place_of(parts, line);
    if (place == NULL || *place == NULL) return;
    struct sf_half *half = *place;
    *place = half->next;
    parts->halves--;
    free_half(half);
}

void sf_parts_free(struct sf_parts *parts)
{
    for (size_t b = 0; b < parts->buckets; b++)
        for (struct sf_half *half = parts->bucket[b], *next; half != NULL; half = next) {
            next = half->next;
            free_half(half);
        }
    free(parts->bucket);
    *parts = (struct sf_parts){0};
}

const struct sf_resume_part *sf_resume_part_of(const struct sf_resume *resume, int64_t line,
                                               int32_t choice)
{
    const struct sf_part *part = part_of(sf_parts_find(&resume->parts, line), choice);
    return part != NULL ? &part->view : NULL;
}
