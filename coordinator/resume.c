/* coordinator/resume.c: reads what an earlier run left behind.
 *
 * Entries of finished lines wait in `pending` until it is known whether their lines are in OUT:
 *
 *   OUT       | settled ................ | pending | pending | the last one may be replaced |
 *                                        good                                              end
 *
 * A SYNCED that covers an entry settles it on trust; where none comes (the end of the journal, or
 * too many are waiting) its bytes are compared.  The first one that is not in OUT ends all: behind
 * it nothing counts.  An entry with the offset of the one before replaces it: that one's line could
 * not be written and was cut off again, and the run went on.  Parts of a line go when it is
 * settled, not before, so that an answer whose last step was lost keeps its tokens.
 *
 * What makes an entry impossible (an offset that does not follow, a line finished twice, a SYNCED
 * past the end) ends the journal there, like a bad frame.  Tokens that do not continue what is
 * there are left out by themselves. */
#include "coordinator/resume.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "base/rng.h"
#include "coordinator/resume_impl.h"

enum { PENDING_MAX = 1024 };

struct reading {
    struct sf_resume *resume;
    const char *path;                   /* of the journal being read */
    int output; int64_t output_bytes;   /* -1: not there */
    int trust;
    struct sf_journal_finished pending[PENDING_MAX]; int32_t count;
    int64_t end, synced;
    int64_t stop, dropped;              /* where the good part of the journal ends, bytes behind */
    int cut;                            /* a line was not in OUT */
    int ends_synced;                    /* the last entry is a SYNCED of all before it */
    struct sf_journal_finished trusted; /* the last one settled on trust; bytes 0: none */
    struct sf_buffer line;
};

/* ---- lines of OUT ---- */

sf_status sf_resume_compare(int output, int64_t output_bytes, const char *path,
                            const struct sf_journal_finished *entry, struct sf_buffer *buffer,
                            int *equal_out)
{
    *equal_out = 0;
    if (entry->offset + entry->bytes > output_bytes) return SF_OK;
    size_t bytes = (size_t)entry->bytes;
    SF_TRY(sf_buffer_reserve(buffer, bytes));
    SF_TRY(sf_file_read(output, path, entry->offset, bytes, buffer->bytes));
    buffer->count = bytes;
    *equal_out = sf_hash64(buffer->bytes, bytes) == entry->digest;
    return SF_OK;
}

void sf_resume_count(struct sf_resume_counts *counts, const struct sf_journal_finished *entry,
                     int sign)
{
    if (entry->error) counts->errors += sign;
    else counts->answered += sign;
    /* Sums of whatever a damaged journal holds may wrap, but not trap. */
    for (int i = 0; i < SF_JOURNAL_SUMS; i++)
        counts->sum[i] = (int64_t)((uint64_t)counts->sum[i] +
                                   (uint64_t)sign * (uint64_t)entry->sum[i]);
}

/* ---- entries ---- */

static void forget_pending(struct reading *g, int32_t from)
{
    for (int32_t i = from; i < g->count; i++)
        sf_line_set_remove(&g->resume->finished, g->pending[i].line);
    g->count = from;
}

/* Decides on the first `count` pending entries. */
static sf_status settle(struct reading *g, int32_t count, int synced)
{
    struct sf_resume *r = g->resume;
    int32_t done = 0;
    for (; done < count && !g->cut; done++) {
        const struct sf_journal_finished *entry = &g->pending[done];
        int equal = synced && g->trust && entry->offset + entry->bytes <= g->output_bytes;
        if (equal) g->trusted = *entry;
        else SF_TRY(sf_resume_compare(g->output, g->output_bytes, r->output, entry, &g->line,
                                      &equal));
        if (!equal) {
            forget_pending(g, done);
            g->cut = 1;
            g->count = 0;
            return SF_OK;
        }
        sf_resume_count(&r->counts, entry, 1);
        sf_parts_drop(&r->parts, entry->line);
        r->counts.output_bytes = entry->offset + entry->bytes;
    }
    memmove(g->pending, g->pending + done, (size_t)(g->count - done) * sizeof *g->pending);
    g->count -= done;
    return SF_OK;
}

/* *fits_out 0: this entry cannot be. */
static sf_status take_finished(struct reading *g, const struct sf_journal_finished *entry,
                               int *fits_out)
{
    struct sf_resume *r = g->resume;
    if (g->cut) {                       /* it starts again, and memory stays bounded */
        sf_parts_drop(&r->parts, entry->line);
        return SF_OK;
    }
    if (g->count > 0 && entry->offset == g->pending[g->count - 1].offset) {
        forget_pending(g, g->count - 1);
        g->end = entry->offset;
    }
    *fits_out = entry->offset == g->end && !sf_line_set_has(&r->finished, entry->line);
    if (!*fits_out) return SF_OK;
    SF_TRY(sf_line_set_add(&r->finished, entry->line));
    g->pending[g->count++] = *entry;
    g->end += entry->bytes;
    return g->count == PENDING_MAX ? settle(g, PENDING_MAX - 1, 0) : SF_OK;
}

static sf_status take_synced(struct reading *g, int64_t bytes, int *fits_out)
{
    int32_t covered = 0;
    if (g->cut) return SF_OK;
    *fits_out = bytes >= g->synced && bytes <= g->end;
    if (!*fits_out) return SF_OK;
    while (covered < g->count &&
           g->pending[covered].offset + g->pending[covered].bytes <= bytes)
        covered++;
    g->synced = bytes;
    g->ends_synced = bytes == g->end;
    return settle(g, covered, 1);
}

/* Tokens of a line that has finished come to nothing; but that of the last entry may not have been
 * written, and the run gone on with it. */
static sf_status take_tokens(struct reading *g, const struct sf_journal_tokens *tokens)
{
    int last = g->count > 0 && g->pending[g->count - 1].line == tokens->line;
    if (!last && sf_line_set_has(&g->resume->finished, tokens->line)) return SF_OK;
    return sf_parts_add(&g->resume->parts, tokens);
}

static sf_status take_entry(struct reading *g, const struct sf_journal_entry *entry, int *fits_out)
{
    *fits_out = 1;
    g->ends_synced = 0;
    switch (entry->kind) {
    case SF_JOURNAL_FINISHED: return take_finished(g, &entry->finished, fits_out);
    case SF_JOURNAL_SYNCED: return take_synced(g, entry->synced_bytes, fits_out);
    case SF_JOURNAL_TOKENS: return take_tokens(g, &entry->tokens);
    case SF_JOURNAL_HEADER:
    case SF_JOURNAL_END: break;
    }
    SF_ASSERT(!"an entry of a journal");
    return SF_INTERNAL;
}

static sf_status read_entries(struct reading *g, struct sf_journal_reader *reader)
{
    for (;;) {
        struct sf_journal_entry entry;
        int fits;
        SF_TRY(sf_journal_reader_next(reader, &entry));
        g->stop = entry.offset;
        g->dropped = entry.torn_bytes;
        if (entry.kind == SF_JOURNAL_END) break;
        SF_TRY(take_entry(g, &entry, &fits));
        if (fits) continue;
        while (entry.kind != SF_JOURNAL_END) SF_TRY(sf_journal_reader_next(reader, &entry));
        g->dropped = entry.offset + entry.torn_bytes - g->stop;
        break;
    }
    return settle(g, g->count, 0);
}

/* ---- whole journals ---- */

static void empty(struct sf_resume *r)
{
    sf_line_set_free(&r->finished);
    sf_parts_free(&r->parts);
    r->counts = (struct sf_resume_counts){0};
}

static sf_status read_once(struct reading *g, int trust)
{
    struct sf_journal_reader *reader;
    empty(g->resume);
    g->trust = trust;
    g->count = 0;
    g->end = g->synced = g->stop = g->dropped = 0;
    g->cut = g->ends_synced = 0;
    g->trusted.bytes = 0;
    SF_TRY(sf_journal_reader_open(g->path, &reader));
    sf_status status = read_entries(g, reader);
    sf_journal_reader_close(reader);
    return status;
}

/* Trust is good as long as the last line that rests on it is what its entry says. */
static sf_status read_journal(struct reading *g)
{
    int equal = 1;
    SF_TRY(read_once(g, 1));
    if (g->trusted.bytes > 0)
        SF_TRY(sf_resume_compare(g->output, g->output_bytes, g->resume->output, &g->trusted,
                                 &g->line, &equal));
    if (!equal) SF_TRY(read_once(g, 0));
    g->resume->journal_there = 1;
    g->resume->journal_bytes = g->stop;
    if (g->dropped > 0)
        sf_log(SF_LOG_WARN, "%s: bad from byte %lld on; %lld bytes are dropped", g->path,
               (long long)g->stop, (long long)g->dropped);
    return SF_OK;
}

/* Was sf_resume_begin killed between its renames?  Then OUT is what the new journal describes, byte
 * for byte (the argument stands in resume_begin.c). */
static sf_status try_new_journal(struct reading *g, int *whole_out)
{
    struct sf_resume *r = g->resume;
    *whole_out = 0;
    if (access(r->journal_new, F_OK) != 0 || access(r->output_new, F_OK) == 0) return SF_OK;
    g->path = r->journal_new;
    sf_status status = read_once(g, 0);
    g->path = r->journal;
    if (status == SF_NO_MEMORY || status == SF_IO) return status;
    *whole_out = status == SF_OK && g->dropped == 0 && g->ends_synced && !g->cut &&
                 g->end == (r->output_there ? g->output_bytes : 0);
    if (*whole_out) {
        r->journal_there = r->moving = 1;
        r->journal_bytes = g->stop;
    } else {
        empty(r);
    }
    return SF_OK;
}

static sf_status read_state(struct reading *g)
{
    struct sf_resume *r = g->resume;
    int whole;
    SF_TRY(try_new_journal(g, &whole));
    if (whole) return SF_OK;
    if (access(r->journal, F_OK) != 0 && (errno == ENOENT || errno == ENOTDIR)) {
        if (g->output_bytes <= 0) return SF_OK;
        return SF_FAIL(SF_INVALID, "%s: holds %lld bytes, but its journal %s is not there; move it"
                       " away, or name another --output", r->output, (long long)g->output_bytes,
                       r->journal);
    }
    sf_status status = read_journal(g);
    if (status != SF_FORMAT) return status;
    /* A run that died before its first answer may have left less than a header. */
    if (g->output_bytes <= 0) return SF_OK;
    return SF_FAIL(SF_INVALID, "%s: holds %lld bytes, but its journal %s is damaged at its"
                   " beginning; move it away, or name another --output", r->output,
                   (long long)g->output_bytes, r->journal);
}

static sf_status open_output(struct reading *g)
{
    const char *path = g->resume->output;
    struct stat info;
    g->output = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    g->output_bytes = -1;
    if (g->output < 0 && errno == ENOENT) return SF_OK;
    if (g->output < 0 || fstat(g->output, &info) != 0)
        return SF_FAIL(SF_IO, "%s: could not be opened: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return SF_FAIL(SF_INVALID, "%s: is not a regular file", path);
    g->resume->output_there = 1;
    g->output_bytes = info.st_size;
    return SF_OK;
}

static sf_status name_files(struct sf_resume *r, const char *output, const char *journal)
{
    SF_TRY(sf_file_name(output, "", &r->output));
    SF_TRY(sf_file_name(output, ".new", &r->output_new));
    SF_TRY(sf_file_name(journal, "", &r->journal));
    return sf_file_name(journal, ".new", &r->journal_new);
}

sf_status sf_resume_read(const char *output, const char *journal, struct sf_resume **resume_out)
{
    struct sf_resume *r = calloc(1, sizeof *r);
    struct reading *g = calloc(1, sizeof *g);
    sf_status status = r == NULL || g == NULL ? SF_FAIL(SF_NO_MEMORY, "no memory to resume")
                                              : name_files(r, output, journal);
    if (status == SF_OK) {
        g->resume = r;
        g->path = r->journal;
        status = open_output(g);
        if (status == SF_OK) status = read_state(g);
        if (g->output >= 0) close(g->output);
        sf_buffer_free(&g->line);
    }
    free(g);
    if (status == SF_OK) *resume_out = r;
    else sf_resume_free(r);
    return status;
}

/* ---- what was found ---- */

int sf_resume_is_fresh(const struct sf_resume *resume)
{
    return !resume->journal_there;
}

int sf_resume_is_finished(const struct sf_resume *resume, int64_t line)
{
    return sf_line_set_has(&resume->finished, line);
}

struct sf_resume_counts sf_resume_counts(const struct sf_resume *resume)
{
    struct sf_resume_counts counts = resume->counts;
    for (size_t b = 0; b < resume->parts.buckets; b++)
        for (const struct sf_half *half = resume->parts.bucket[b]; half != NULL; half = half->next)
            for (size_t i = 0; i < half->parts; i++) {
                counts.parts++;
                counts.part_tokens += half->part[i].view.tokens;
            }
    return counts;
}

void sf_resume_drop(struct sf_resume *resume, int64_t line)
{
    sf_parts_drop(&resume->parts, line);
}

void sf_resume_free(struct sf_resume *resume)
{
    if (resume == NULL) return;
    empty(resume);
    free(resume->output);
    free(resume->output_new);
    free(resume->journal);
    free(resume->journal_new);
    free(resume);
}
