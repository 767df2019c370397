/* coordinator/resume_impl.h: the inside of resume*.c: what is kept of a journal, and its entries in
 * the order in which their lines stand in OUT. */
#ifndef SHEAF_COORDINATOR_RESUME_IMPL_H
#define SHEAF_COORDINATOR_RESUME_IMPL_H
#include <stddef.h>
#include <stdint.h>
#include "base/memory.h"
#include "coordinator/resume.h"

/* ---- resume_kept.c: sets of lines, and parts of answers ---- */

/* A set of line numbers: one bit a line, in blocks that are made when a line falls into them, so a
 * single huge number costs a block and not all below it. */
struct sf_line_set { uint64_t **block; size_t blocks; };
sf_status sf_line_set_add(struct sf_line_set *set, int64_t line);
void      sf_line_set_remove(struct sf_line_set *set, int64_t line);
int       sf_line_set_has(const struct sf_line_set *set, int64_t line);
void      sf_line_set_free(struct sf_line_set *set);

/* Half-finished records: a hash table by line, each with a few choices. */
struct sf_part {
    int32_t choice;
    struct sf_resume_part view;         /* what the caller sees of the next two */
    int32_t *token; size_t token_capacity;
    struct sf_buffer extra;
};
struct sf_half {                        /* one record */
    int64_t line;
    struct sf_half *next;               /* in its bucket */
    struct sf_part *part; size_t parts, capacity;
};
struct sf_parts { struct sf_half **bucket; size_t buckets, halves; };
/* Takes a copy of what continues what is there, or starts over (first 0); anything else is left
 * out. */
sf_status sf_parts_add(struct sf_parts *parts, const struct sf_journal_tokens *tokens);
const struct sf_half *sf_parts_find(const struct sf_parts *parts, int64_t line);
void      sf_parts_drop(struct sf_parts *parts, int64_t line);
void      sf_parts_free(struct sf_parts *parts);

/* ---- resume.c ---- */

struct sf_resume {
    char *output, *output_new, *journal, *journal_new;
    struct sf_line_set finished;
    struct sf_parts parts;
    struct sf_resume_counts counts;
    uint8_t output_there, journal_there;/* journal_there: one that could be read */
    uint8_t moving;                     /* it was read from journal_new, which is to be `journal` */
    int64_t journal_bytes;              /* entries that begin behind these do not count */
};
/* Does the line of this entry stand in OUT?  buffer keeps its bytes if so. */
sf_status sf_resume_compare(int output, int64_t output_bytes, const char *path,
                            const struct sf_journal_finished *entry, struct sf_buffer *buffer,
                            int *equal_out);
/* One finished line more (sign 1) or less (-1) in the counts. */
void      sf_resume_count(struct sf_resume_counts *counts, const struct sf_journal_finished *entry,
                          int sign);

#endif
