/* coordinator/resume_begin.c: OUT and the journal made ready to go on, by new files and renames.
 *
 *   step                                      files when it dies behind that step
 *   1  OUT cut behind its last good line      OUT    journal
 *   2  OUT.new made (only to take errors out) OUT    journal              OUT.new
 *   3  journal.new made, both filled, synced  OUT    journal  journal.new OUT.new
 *   4  OUT.new renamed to OUT                 new OUT  journal  journal.new
 *   5  journal.new renamed to journal         new OUT  new journal
 *
 * Behind 1 the journal has entries past the end of OUT; they do not count, as before.  Behind 2 and
 * 3 OUT and journal are what they were, and what ends in .new is removed by the next try: OUT.new
 * being there says that step 4 has not happened.  Behind 4 there is no OUT.new, and journal.new is
 * the one that belongs to OUT; it was synced, and its name too, before the rename.
 *
 * So a reader takes journal.new if and only if there is no OUT.new, journal.new is whole (no bad
 * byte, and a SYNCED of everything as its last entry, which no other frame follows before step 5),
 * OUT is just as long as that SYNCED says, and every line of OUT has the digest that journal.new
 * gives it.  Without errors to take out there are no steps 2 and 4: behind 3 both journals describe
 * OUT, and either will do.  If somebody removed OUT.new by hand behind 3, OUT is longer than
 * journal.new says, by the errors, and the old journal is taken.  Nothing is appended to OUT before
 * step 5. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "coordinator/resume_impl.h"

enum { WRITE_BYTES = 1 << 20 };

struct rewrite {
    struct sf_resume *resume;
    int without_errors;
    int output, fresh_output;           /* OUT; OUT.new, or -1 */
    int64_t output_bytes;               /* of OUT */
    int64_t at, fresh_bytes;            /* finished lines so far: in OUT; in what will be OUT */
    struct sf_journal_reader *reader;   /* NULL: there is no journal */
    struct sf_journal_finished held;    /* bytes 0: none; the next entry may replace it */
    int ended;
    struct sf_journal *fresh;
    struct sf_buffer line, out;         /* out: lines on their way to OUT.new */
    int64_t entries, damaged;
};

/* ---- finished lines ---- */

/* Hands out the entry that waits, now that nothing has replaced it, if its line is in OUT. */
static void let_go(struct rewrite *w, struct sf_journal_finished *out)
{
    int64_t end = w->held.offset + w->held.bytes;
    if (w->held.bytes == 0 || w->held.offset != w->at || end > w->resume->counts.output_bytes)
        return;
    w->at = end;
    *out = w->held;
}

/* Entries whose lines are in OUT, in the order of OUT, each once; bytes 0 ends. */
static sf_status next_kept(struct rewrite *w, struct sf_journal_finished *out)
{
    struct sf_journal_entry entry = {.kind = SF_JOURNAL_END};
    out->bytes = 0;
    while (!w->ended && out->bytes == 0) {
        if (w->reader != NULL) SF_TRY(sf_journal_reader_next(w->reader, &entry));
        w->ended = entry.kind == SF_JOURNAL_END || entry.offset >= w->resume->journal_bytes;
        if (!w->ended && entry.kind != SF_JOURNAL_FINISHED) continue;
        if (w->ended || entry.finished.offset != w->held.offset) let_go(w, out);
        w->held = w->ended ? (struct sf_journal_finished){0} : entry.finished;
    }
    return SF_OK;
}

static sf_status flush(struct rewrite *w)
{
    SF_TRY(sf_file_write(w->fresh_output, w->resume->output_new, w->out.bytes, w->out.count));
    w->out.count = 0;
    return SF_OK;
}

static void unfinish(struct rewrite *w, const struct sf_journal_finished *entry)
{
    sf_line_set_remove(&w->resume->finished, entry->line);
    sf_resume_count(&w->resume->counts, entry, -1);
}

/* To OUT.new, if it is an answer and is still what it was.  *kept_out: it is there. */
static sf_status copy_line(struct rewrite *w, const struct sf_journal_finished *entry,
                           int *kept_out)
{
    int equal;
    *kept_out = 0;
    SF_TRY(sf_resume_compare(w->output, w->output_bytes, w->resume->output, entry, &w->line,
                             &equal));
    w->damaged += !equal;
    if (!equal || entry->error) {
        unfinish(w, entry);
        return SF_OK;
    }
    if (w->out.count > 0 && w->out.count + w->line.count > WRITE_BYTES) SF_TRY(flush(w));
    SF_TRY(sf_buffer_reserve(&w->out, w->out.count + w->line.count));
    memcpy(w->out.bytes + w->out.count, w->line.bytes, w->line.count);
    w->out.count += w->line.count;
    *kept_out = 1;
    return SF_OK;
}

static sf_status keep_lines(struct rewrite *w)
{
    struct sf_resume *r = w->resume;
    int64_t expected = r->counts.answered + r->counts.errors;
    for (;;) {
        struct sf_journal_finished entry;
        int kept = 1;
        SF_TRY(next_kept(w, &entry));
        if (entry.bytes == 0) break;
        w->entries++;
        if (w->fresh_output >= 0) SF_TRY(copy_line(w, &entry, &kept));
        if (!kept) continue;
        entry.offset = w->fresh_bytes;
        w->fresh_bytes += entry.bytes;
        SF_TRY(sf_journal_finished(w->fresh, &entry));
    }
    if (w->entries != expected)
        return SF_FAIL(SF_IO, "%s: has changed while it was read", r->journal);
    if (w->damaged > 0)
        sf_log(SF_LOG_WARN, "%s: %lld answers were not as they had been written; they are made"
               " again", r->output, (long long)w->damaged);
    return w->fresh_output >= 0 ? flush(w) : SF_OK;
}

/* ---- half-finished records ---- */

static sf_status keep_part(struct rewrite *w, int64_t line, const struct sf_part *part)
{
    struct sf_journal_tokens tokens = {.line = line, .choice = part->choice,
                                       .count = part->view.tokens, .token = part->view.token,
                                       .extra = part->view.extra,
                                       .extra_bytes = part->view.extra_bytes};
    sf_status status = sf_journal_tokens(w->fresh, &tokens);
    if (status != SF_UNSUPPORTED) return status;
    sf_log(SF_LOG_WARN, "%s: %s; they are made again after another stop", w->resume->journal,
           sf_error_text());
    return SF_OK;
}

static sf_status keep_parts(struct rewrite *w)
{
    const struct sf_parts *parts = &w->resume->parts;
    for (size_t b = 0; b < parts->buckets; b++)
        for (const struct sf_half *half = parts->bucket[b]; half != NULL; half = half->next)
            for (size_t i = 0; i < half->parts; i++)
                SF_TRY(keep_part(w, half->line, &half->part[i]));
    return SF_OK;
}

/* ---- the steps ---- */

/* What an earlier try left behind: see the table. */
static sf_status tidy(struct sf_resume *r)
{
    if (r->moving) {
        SF_TRY(sf_file_rename(r->journal_new, r->journal));
        r->moving = 0;
    } else if (unlink(r->journal_new) == 0) {
        SF_TRY(sf_file_sync_folder(r->journal_new));
    } else if (errno != ENOENT) {
        return SF_FAIL(SF_IO, "%s: could not be removed: %s", r->journal_new, strerror(errno));
    }
    if (unlink(r->output_new) == 0 || errno == ENOENT) return SF_OK;
    return SF_FAIL(SF_IO, "%s: could not be removed: %s", r->output_new, strerror(errno));
}

static sf_status cut_output(struct rewrite *w)
{
    struct sf_resume *r = w->resume;
    struct stat info;
    w->output = open(r->output, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (w->output < 0 || fstat(w->output, &info) != 0)
        return SF_FAIL(SF_IO, "%s: could not be opened: %s", r->output, strerror(errno));
    if (info.st_size < r->counts.output_bytes)
        return SF_FAIL(SF_IO, "%s: has been cut short while it was read", r->output);
    w->output_bytes = r->counts.output_bytes;
    if (info.st_size > w->output_bytes) {
        sf_log(SF_LOG_WARN, "%s: the last %lld bytes are no finished answer and are dropped",
               r->output, (long long)(info.st_size - w->output_bytes));
        if (ftruncate(w->output, (off_t)w->output_bytes) != 0)
            return SF_FAIL(SF_IO, "%s: could not be cut: %s", r->output, strerror(errno));
    }
    SF_TRY(sf_file_sync(w->output, r->output));
    return r->output_there ? SF_OK : sf_file_sync_folder(r->output);
}

/* As readable as OUT is. */
static sf_status make_output(struct rewrite *w)
{
    const char *path = w->resume->output_new;
    struct stat info;
    w->fresh_output = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (w->fresh_output < 0)
        return SF_FAIL(SF_IO, "%s: could not be created: %s", path, strerror(errno));
    if (fstat(w->output, &info) == 0 && fchmod(w->fresh_output, info.st_mode & 0777) != 0)
        sf_log(SF_LOG_WARN, "%s: does not get the mode of the old one: %s", path,
               strerror(errno));
    return SF_OK;
}

/* Steps 2 and 3; nothing that counts has changed yet. */
static sf_status make_files(struct rewrite *w)
{
    struct sf_resume *r = w->resume;
    if (w->without_errors) SF_TRY(make_output(w));
    SF_TRY(sf_journal_create(r->journal_new, &w->fresh));
    if (r->journal_there) SF_TRY(sf_journal_reader_open(r->journal, &w->reader));
    SF_TRY(keep_lines(w));
    SF_TRY(keep_parts(w));
    int output = w->fresh_output >= 0 ? w->fresh_output : w->output;
    return sf_journal_sync(w->fresh, output, w->fresh_bytes);
}

sf_status sf_resume_begin(struct sf_resume *resume, int forget_errors,
                          struct sf_journal **journal_out)
{
    struct rewrite w = {.resume = resume, .output = -1, .fresh_output = -1};
    w.without_errors = forget_errors && resume->counts.errors > 0;
    sf_status status = tidy(resume);
    if (status == SF_OK) status = cut_output(&w);
    if (status == SF_OK) {
        status = make_files(&w);
        if (status != SF_OK) {          /* in this order: see the table */
            unlink(resume->journal_new);
            unlink(resume->output_new);
        }
    }
    if (status == SF_OK && w.fresh_output >= 0)
        status = sf_file_rename(resume->output_new, resume->output);
    if (status == SF_OK) status = sf_journal_move(w.fresh, resume->journal);
    resume->counts.output_bytes = w.fresh_bytes;
    sf_journal_reader_close(w.reader);
    if (w.output >= 0) close(w.output);
    if (w.fresh_output >= 0) close(w.fresh_output);
    sf_buffer_free(&w.line);
    sf_buffer_free(&w.out);
    if (status == SF_OK) *journal_out = w.fresh;
    else sf_journal_close(w.fresh);
    return status;
}
