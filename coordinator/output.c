/* coordinator/output.c: OUT.jsonl and its journal (output.h). */
#include "coordinator/output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "base/rng.h"

enum { PATH_BYTES = 4200 };
_Static_assert((int)SF_SUMS == (int)SF_JOURNAL_SUMS, "every sum has its place in the journal");

struct sf_output {
    char path[PATH_BYTES], journal_path[PATH_BYTES];
    int file;
    int64_t bytes;                      /* of whole lines */
    uint8_t changed;                    /* since the last sync */
    struct sf_journal *journal;
};

static sf_status make(const char *path, struct sf_output **out)
{
    struct sf_output *output = calloc(1, sizeof *output);
    if (output == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for the output");
    output->file = -1;
    snprintf(output->path, sizeof output->path, "%s", path);
    snprintf(output->journal_path, sizeof output->journal_path, "%s.run/journal", path);
    *out = output;
    return SF_OK;
}

static sf_status remove_old(const char *path, const char *ending)
{
    char name[PATH_BYTES + 8];
    snprintf(name, sizeof name, "%s%s", path, ending);
    if (unlink(name) == 0 || errno == ENOENT) return SF_OK;
    return SF_FAIL(SF_IO, "%s: %s", name, strerror(errno));
}

/* A journal without an output, and what ends in .new (resume_begin.c), are left of a run whose
 * output was taken away; they go first, so that no output is ever beside a journal of another
 * run. */
static sf_status create(struct sf_output *output)
{
    if (access(output->path, F_OK) == 0)
        return SF_FAIL(SF_IO, "%s: could not be created: %s", output->path, strerror(EEXIST));
    SF_TRY(remove_old(output->journal_path, ".new"));
    SF_TRY(remove_old(output->path, ".new"));
    SF_TRY(remove_old(output->journal_path, ""));
    SF_TRY(sf_journal_create(output->journal_path, &output->journal));
    output->file = open(output->path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
    if (output->file < 0)
        return SF_FAIL(SF_IO, "%s: could not be created: %s", output->path, strerror(errno));
    return SF_OK;
}

sf_status sf_output_create(const char *path, struct sf_output **out)
{
    struct sf_output *output;
    SF_TRY(make(path, &output));
    sf_status status = create(output);
    if (status != SF_OK) sf_output_close(output);
    else *out = output;
    return status;
}

sf_status sf_output_go_on(const char *path, int64_t bytes, struct sf_journal *journal,
                          struct sf_output **out)
{
    struct sf_output *output;
    sf_status status = make(path, &output);
    if (status != SF_OK) {
        sf_journal_close(journal);
        return status;
    }
    output->journal = journal;
    output->bytes = bytes;
    output->file = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (output->file >= 0) {
        *out = output;
        return SF_OK;
    }
    status = SF_FAIL(SF_IO, "%s: %s", path, strerror(errno));
    sf_output_close(output);
    return status;
}

/* What was written of a line that could not be finished (full disk) is cut off again, as far as the
 * file allows; otherwise the next resume does it. */
sf_status sf_output_line(struct sf_output *output, const struct sf_journal_finished *finished,
                         const char *bytes)
{
    struct sf_journal_finished entry = *finished;
    size_t count = (size_t)entry.bytes;
    entry.offset = output->bytes;
    entry.digest = sf_hash64(bytes, count);
    SF_TRY(sf_journal_finished(output->journal, &entry));
    sf_status status = sf_file_write(output->file, output->path, bytes, count);
    output->changed = 1;
    if (status == SF_OK) output->bytes += entry.bytes;
    else if (ftruncate(output->file, output->bytes) != 0)
        sf_log(SF_LOG_WARN, "%s: its last line is torn: %s", output->path, strerror(errno));
    return status;
}

sf_status sf_output_tokens(struct sf_output *output, const struct sf_journal_tokens *tokens)
{
    output->changed = 1;
    return sf_journal_tokens(output->journal, tokens);
}

sf_status sf_output_sync(struct sf_output *output)
{
    if (!output->changed) return SF_OK;
    output->changed = 0;
    return sf_journal_sync(output->journal, output->file, output->bytes);
}

int64_t sf_output_bytes(const struct sf_output *output) { return output->bytes; }

void sf_output_close(struct sf_output *output)
{
    if (output == NULL) return;
    sf_journal_close(output->journal);
    if (output->file >= 0) close(output->file);
    free(output);
}
