/* tests/unit/coordinator/resume_rig.h: a folder with OUT and its journal, written as a run writes
 * them, for the tests of resuming.
 *
 * Lines of OUT and tokens of answers are functions of the line's number, so whatever is found
 * anywhere can be told right from wrong. */
#ifndef SHEAF_TESTS_RESUME_RIG_H
#define SHEAF_TESTS_RESUME_RIG_H
#include "coordinator/resume.h"

enum { RIG_LINES = 32, RIG_CHOICES = 2, RIG_FILE_BYTES = 1 << 16 };

struct rig {
    char folder[64], shadow[96];        /* shadow: OUT.run */
    char output[96], output_new[96], journal[128], journal_new[128];
    struct sf_journal *writer;          /* of the run that goes on, if one does */
    int file;
    int64_t bytes;                      /* of OUT */
};
struct rig_file { unsigned char bytes[RIG_FILE_BYTES]; int64_t count; };   /* -1: not there */

void rig_make(struct rig *rig);
void rig_remove(struct rig *rig);
void rig_load(const char *path, struct rig_file *file);
void rig_store(const char *path, const void *bytes, int64_t count);
int64_t rig_size(const char *path);

/* A run: its journal (taken over) and OUT, opened for appending. */
void rig_start(struct rig *rig, struct sf_journal *writer);
void rig_stop(struct rig *rig);
/* The line of OUT for this line of the input, with its newline. */
size_t rig_line(int64_t line, int error, char *text_out);
/* The journal's entry, and the line only if `write`; a line that is not written is one that could
 * not be, and was cut off. */
void rig_finish(struct rig *rig, int64_t line, int error, int write);
void rig_tokens(struct rig *rig, int64_t line, int32_t choice, int32_t first, int32_t count);
void rig_sync(struct rig *rig);

/* OUT holds whole lines only, each at most once; found[line] = 1 (answer), 2 (error) or 0; returns
 * how many there are, -1 if it is not so (which is a failed check, too). */
int  rig_check_output(const struct rig *rig, int found[RIG_LINES + 1]);
/* The part is these tokens, with what belongs to them; 0: there is none. */
void rig_check_part(const struct sf_resume *resume, int64_t line, int32_t choice, int32_t tokens);
/* What is finished is what stands in OUT, and the counts and sums say so. */
void rig_check_counts(const struct sf_resume *resume, const int found[RIG_LINES + 1]);

/* sf_resume_read, which is to pass. */
struct sf_resume *rig_read(const struct rig *rig);
/* sf_resume_begin, which is to pass: OUT and counts agree, and the same is read again. */
struct sf_journal *rig_begin(struct rig *rig, struct sf_resume *resume, int forget,
                             int found[RIG_LINES + 1]);

#endif
