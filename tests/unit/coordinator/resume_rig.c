/* tests/unit/coordinator/resume_rig.c: see resume_rig.h. */
#include "tests/unit/coordinator/resume_rig.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/rng.h"
#include "tests/check.h"

/* What the caller keeps for one token is four bytes that name it. */
static int32_t token_of(int64_t line, int32_t choice, int32_t index)
{
    return (int32_t)(sf_rng_u64((uint64_t)line, (uint64_t)choice, (uint64_t)index) >> 34);
}

static int64_t sum_of(int64_t line, int i)
{
    return line * (i + 1) + i;
}

void rig_make(struct rig *rig)
{
    *rig = (struct rig){.file = -1};
    sf_log_setup(SF_LOG_ERROR, 0);
    /* In memory where that can be had: a disk flushes a file that replaces another. */
    snprintf(rig->folder, sizeof rig->folder, "%s/sheaf-resume-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (mkdtemp(rig->folder) == NULL) abort();
    snprintf(rig->output, sizeof rig->output, "%s/out.jsonl", rig->folder);
    snprintf(rig->output_new, sizeof rig->output_new, "%s/out.jsonl.new", rig->folder);
    snprintf(rig->shadow, sizeof rig->shadow, "%s/out.jsonl.run", rig->folder);
    snprintf(rig->journal, sizeof rig->journal, "%s/journal", rig->shadow);
    snprintf(rig->journal_new, sizeof rig->journal_new, "%s/journal.new", rig->shadow);
    if (mkdir(rig->shadow, 0777) != 0) abort();
}

void rig_remove(struct rig *rig)
{
    unlink(rig->output);
    unlink(rig->output_new);
    unlink(rig->journal);
    unlink(rig->journal_new);
    SF_CHECK_INT(rmdir(rig->shadow), 0);        /* nothing else was left in them */
    SF_CHECK_INT(rmdir(rig->folder), 0);
}

void rig_load(const char *path, struct rig_file *file)
{
    FILE *from = fopen(path, "rb");
    file->count = from == NULL ? -1 : (int64_t)fread(file->bytes, 1, sizeof file->bytes, from);
    if (from != NULL) fclose(from);
    if (file->count == RIG_FILE_BYTES) abort();
}

void rig_store(const char *path, const void *bytes, int64_t count)
{
    if (count < 0) {
        unlink(path);
        return;
    }
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0 || write(file, bytes, (size_t)count) != count || close(file) != 0) abort();
}

int64_t rig_size(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 ? info.st_size : -1;
}

/* ---- a run ---- */

void rig_start(struct rig *rig, struct sf_journal *writer)
{
    rig->writer = writer;
    rig->file = open(rig->output, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (rig->file < 0) abort();
    rig->bytes = rig_size(rig->output);
}

void rig_stop(struct rig *rig)
{
    sf_journal_close(rig->writer);
    close(rig->file);
    rig->writer = NULL;
    rig->file = -1;
}

size_t rig_line(int64_t line, int error, char *text_out)
{
    int pad = (int)(sf_rng_u64(99, (uint64_t)line, (uint64_t)error) % 24);
    return (size_t)sprintf(text_out, "{\"line\": %lld, \"error\": %d, \"pad\": \"%.*s\"}\n",
                           (long long)line, error, pad, "xxxxxxxxxxxxxxxxxxxxxxxx");
}

void rig_finish(struct rig *rig, int64_t line, int error, int put)
{
    char text[128];
    size_t bytes = rig_line(line, error, text);
    struct sf_journal_finished entry = {.line = line, .offset = rig->bytes,
                                        .bytes = (int64_t)bytes, .error = (uint8_t)error,
                                        .digest = sf_hash64(text, bytes)};
    for (int i = 0; i < SF_JOURNAL_SUMS; i++) entry.sum[i] = sum_of(line, i);
    SF_CHECK_OK(sf_journal_finished(rig->writer, &entry));
    if (!put) return;
    if (write(rig->file, text, bytes) != (ssize_t)bytes) abort();
    rig->bytes += (int64_t)bytes;
}

void rig_tokens(struct rig *rig, int64_t line, int32_t choice, int32_t first, int32_t count)
{
    int32_t token[64];
    if (count > 64) abort();
    for (int32_t i = 0; i < count; i++) token[i] = token_of(line, choice, first + i);
    struct sf_journal_tokens entry = {.line = line, .choice = choice, .first = first,
                                      .count = count, .token = token, .extra = token,
                                      .extra_bytes = (size_t)count * sizeof *token};
    SF_CHECK_OK(sf_journal_tokens(rig->writer, &entry));
}

void rig_sync(struct rig *rig)
{
    SF_CHECK_OK(sf_journal_sync(rig->writer, rig->file, rig->bytes));
}

/* ---- checks ---- */

int rig_check_output(const struct rig *rig, int found[RIG_LINES + 1])
{
    static struct rig_file file;
    int lines = 0;
    memset(found, 0, (RIG_LINES + 1) * sizeof *found);
    rig_load(rig->output, &file);
    for (int64_t at = 0; at < file.count; lines++) {
        char text[128], *start = (char *)file.bytes + at;
        long long line = 0;
        int error = 0;
        file.bytes[file.count] = '\0';
        int read = sscanf(start, "{\"line\": %lld, \"error\": %d", &line, &error);
        int fits = read == 2 && line >= 1 && line <= RIG_LINES && (error == 0 || error == 1) &&
                   found[line] == 0;
        size_t bytes = fits ? rig_line(line, error, text) : 0;
        fits = fits && (int64_t)bytes <= file.count - at && memcmp(start, text, bytes) == 0;
        SF_CHECK(fits);
        if (!fits) return -1;
        found[line] = 1 + error;
        at += (int64_t)bytes;
    }
    return lines;
}

void rig_check_part(const struct sf_resume *resume, int64_t line, int32_t choice, int32_t tokens)
{
    const struct sf_resume_part *part = sf_resume_part_of(resume, line, choice);
    SF_CHECK_INT(part == NULL ? 0 : part->tokens, tokens);
    if (part == NULL || part->tokens != tokens) return;
    SF_CHECK_INT(part->extra_bytes, (size_t)tokens * sizeof(int32_t));
    int wrong = 0;
    for (int32_t i = 0; i < tokens; i++) {
        int32_t token = token_of(line, choice, i);
        wrong += part->token[i] != token;
        wrong += memcmp((const char *)part->extra + 4 * i, &token, 4) != 0;
    }
    SF_CHECK_INT(wrong, 0);
}

void rig_check_counts(const struct sf_resume *resume, const int found[RIG_LINES + 1])
{
    struct sf_resume_counts counts = sf_resume_counts(resume), expected = {0};
    int wrong = 0;
    for (int64_t line = 1; line <= RIG_LINES; line++) {
        wrong += sf_resume_is_finished(resume, line) != (found[line] != 0);
        expected.answered += found[line] == 1;
        expected.errors += found[line] == 2;
        for (int i = 0; found[line] != 0 && i < SF_JOURNAL_SUMS; i++)
            expected.sum[i] += sum_of(line, i);
    }
    SF_CHECK_INT(wrong, 0);
    SF_CHECK_INT(counts.answered, expected.answered);
    SF_CHECK_INT(counts.errors, expected.errors);
    SF_CHECK(memcmp(counts.sum, expected.sum, sizeof counts.sum) == 0);
}

struct sf_resume *rig_read(const struct rig *rig)
{
    struct sf_resume *resume = NULL;
    SF_CHECK_OK(sf_resume_read(rig->output, rig->journal, &resume));
    if (resume == NULL) abort();
    return resume;
}

struct sf_journal *rig_begin(struct rig *rig, struct sf_resume *resume, int forget,
                             int found[RIG_LINES + 1])
{
    struct sf_journal *journal = NULL;
    SF_CHECK_OK(sf_resume_begin(resume, forget, &journal));
    if (journal == NULL) abort();
    rig_check_output(rig, found);
    rig_check_counts(resume, found);
    SF_CHECK_INT(sf_resume_counts(resume).output_bytes, rig_size(rig->output));
    SF_CHECK_INT(rig_size(rig->output_new), -1);
    SF_CHECK_INT(rig_size(rig->journal_new), -1);
    struct sf_resume *again = rig_read(rig);
    rig_check_counts(again, found);
    SF_CHECK_INT(sf_resume_counts(again).parts, sf_resume_counts(resume).parts);
    SF_CHECK_INT(sf_resume_counts(again).part_tokens, sf_resume_counts(resume).part_tokens);
    sf_resume_free(again);
    return journal;
}
