/* tests/unit/coordinator/resume.c: whatever a run leaves behind, what is finished afterwards is
 * what stands whole in OUT.
 *
 * One small run is cut at every byte of the journal and of OUT, and has every byte of both changed;
 * its parts are continued, started over, and left out where they do not fit.  Journals whose frames
 * are good and whose entries cannot be.  More lines than wait for a sync.  Files that are missing,
 * empty, others, or left behind by an earlier try. */
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/rng.h"
#include "tests/check.h"
#include "tests/unit/coordinator/resume_rig.h"

/* Files of a test are not synced: a thousand of them would take minutes. */
int __wrap_fsync(int file);
int __wrap_fdatasync(int file);
int __wrap_fsync(int file) { return file < 0; }
int __wrap_fdatasync(int file) { return file < 0; }

/* ---- one small run ---- */

enum { STEPS_MAX = 64 };
static struct step { int64_t journal, output; int64_t line; } steps[STEPS_MAX];
static int step_count;

/* Notes how large the files are now; line: it has just finished. */
static void note(const struct rig *rig, int64_t line)
{
    steps[step_count++] = (struct step){rig_size(rig->journal), rig_size(rig->output), line};
}

static void small_run(struct rig *rig)
{
    struct sf_journal *journal = NULL;
    step_count = 0;
    SF_CHECK_OK(sf_journal_create(rig->journal, &journal));
    rig_start(rig, journal);
    rig_tokens(rig, 2, 0, 0, 5);
    rig_tokens(rig, 2, 1, 0, 3);
    rig_tokens(rig, 4, 0, 0, 4);
    rig_finish(rig, 1, 0, 1), note(rig, 1);
    rig_finish(rig, 3, 1, 1), note(rig, 3);
    rig_sync(rig);
    rig_tokens(rig, 4, 0, 4, 6);
    rig_finish(rig, 2, 0, 1), note(rig, 2);
    rig_sync(rig);
    rig_tokens(rig, 6, 0, 0, 7);
    rig_finish(rig, 5, 0, 0);           /* could not be written; the run went on */
    rig_finish(rig, 7, 0, 1), note(rig, 7);
    rig_finish(rig, 5, 1, 1), note(rig, 5);
    rig_stop(rig);
}

/* So many lines, the first that finished, are finished, and no others. */
static void check_first(const struct sf_resume *resume, int lines)
{
    int wrong = 0;
    for (int i = 0; i < step_count; i++)
        wrong += sf_resume_is_finished(resume, steps[i].line) != (i < lines);
    struct sf_resume_counts counts = sf_resume_counts(resume);
    SF_CHECK_INT(wrong, 0);
    SF_CHECK_INT(counts.answered + counts.errors, lines);
    SF_CHECK_INT(counts.output_bytes, lines == 0 ? 0 : steps[lines - 1].output);
}

static void round_trip(void)
{
    struct rig rig;
    int found[RIG_LINES + 1];
    rig_make(&rig);
    small_run(&rig);
    struct sf_resume *resume = rig_read(&rig);
    SF_CHECK(!sf_resume_is_fresh(resume));
    check_first(resume, 5);
    SF_CHECK(!sf_resume_is_finished(resume, 0) && !sf_resume_is_finished(resume, -7) &&
             !sf_resume_is_finished(resume, 4) && !sf_resume_is_finished(resume, INT64_MAX));
    rig_check_part(resume, 4, 0, 10);
    rig_check_part(resume, 4, 1, 0);
    rig_check_part(resume, 6, 0, 7);
    rig_check_part(resume, 2, 0, 0);
    SF_CHECK_INT(sf_resume_counts(resume).parts, 2);
    SF_CHECK_INT(sf_resume_counts(resume).part_tokens, 17);
    sf_resume_drop(resume, 6);          /* it is to start again: the new journal forgets it */
    int64_t size = rig_size(rig.journal);
    struct sf_journal *journal = rig_begin(&rig, resume, 0, found);
    SF_CHECK_INT(found[1] + found[2] + found[7], 3);
    SF_CHECK_INT(found[3] + found[5], 4);
    SF_CHECK(rig_size(rig.journal) < size);
    sf_resume_free(resume);
    rig_start(&rig, journal);
    rig_tokens(&rig, 4, 0, 10, 2);
    rig_finish(&rig, 6, 0, 1);
    rig_stop(&rig);
    resume = rig_read(&rig);
    rig_check_part(resume, 4, 0, 12);
    rig_check_part(resume, 6, 0, 0);
    SF_CHECK(sf_resume_is_finished(resume, 6));
    sf_journal_close(rig_begin(&rig, resume, 1, found));        /* and without errors */
    SF_CHECK_INT(found[1] + found[2] + found[7] + found[6], 4);
    SF_CHECK_INT(found[3] + found[5], 0);
    sf_resume_free(resume);
    rig_remove(&rig);
}

static void cut_anywhere(void)
{
    static struct rig_file journal, output;
    struct rig rig;
    int found[RIG_LINES + 1];
    rig_make(&rig);
    small_run(&rig);
    rig_load(rig.journal, &journal);
    rig_load(rig.output, &output);
    int64_t pairs = 0;
    for (int64_t j = 0; j <= journal.count; j++)
        for (int64_t o = 0; o <= output.count; o++) {
            int border = j == journal.count || o == output.count;       /* every byte of one */
            for (int i = 0; i < step_count; i++)
                border |= o == steps[i].output || (j % 7 == 0 && o == steps[i].output - 1);
            if (!border) continue;
            pairs++;
            rig_store(rig.journal, journal.bytes, j);
            rig_store(rig.output, output.bytes, o);
            struct sf_resume *resume = NULL;
            sf_status status = sf_resume_read(rig.output, rig.journal, &resume);
            if (j < 25 && o > 0) {      /* no header: OUT could be anybody's */
                SF_CHECK_INT(status, SF_INVALID);
                SF_CHECK_INT(rig_size(rig.output), o);
                continue;
            }
            SF_CHECK_OK(status);
            int lines = 0;
            while (lines < step_count && steps[lines].journal <= j && steps[lines].output <= o)
                lines++;
            check_first(resume, lines);
            sf_journal_close(rig_begin(&rig, resume, 0, found));
            SF_CHECK_INT(rig_size(rig.output), lines == 0 ? 0 : steps[lines - 1].output);
            sf_resume_free(resume);
        }
    SF_CHECK(pairs > 1000);
    rig_remove(&rig);
}

/* Every byte of the journal changed: what is finished are the first lines, and parts are beginnings
 * of what they were. */
static void changed_journal(void)
{
    static struct rig_file journal, output;
    struct rig rig;
    int found[RIG_LINES + 1];
    rig_make(&rig);
    small_run(&rig);
    rig_load(rig.journal, &journal);
    rig_load(rig.output, &output);
    for (int64_t j = 0; j < journal.count; j++) {
        unsigned char change = (unsigned char)(1 + sf_rng_u64(1, (uint64_t)j, 0) % 255);
        journal.bytes[j] ^= change;
        rig_store(rig.journal, journal.bytes, journal.count);
        rig_store(rig.output, output.bytes, output.count);
        journal.bytes[j] ^= change;
        struct sf_resume *resume = NULL;
        sf_status status = sf_resume_read(rig.output, rig.journal, &resume);
        SF_CHECK_INT(status, j < 25 ? SF_INVALID : SF_OK);
        if (status != SF_OK) continue;
        struct sf_resume_counts counts = sf_resume_counts(resume);
        int lines = (int)(counts.answered + counts.errors), whole = 0;
        while (whole < step_count && steps[whole].journal <= j) whole++;
        SF_CHECK(lines >= whole || whole == step_count);
        check_first(resume, lines);
        for (int64_t line = 2; line <= 6; line += 2)
            for (int32_t choice = 0; choice < RIG_CHOICES; choice++) {
                const struct sf_resume_part *part = sf_resume_part_of(resume, line, choice);
                if (part != NULL) rig_check_part(resume, line, choice, part->tokens);
            }
        sf_journal_close(rig_begin(&rig, resume, 0, found));
        sf_resume_free(resume);
    }
    rig_remove(&rig);
}

/* Every byte of OUT changed: behind the last sync it counts as not written; before it, it is
 * trusted, unless it is the last line that trust rests on: that is found, and all is compared. */
static void changed_output(void)
{
    static struct rig_file journal, output;
    struct rig rig;
    rig_make(&rig);
    small_run(&rig);
    rig_load(rig.journal, &journal);
    rig_load(rig.output, &output);
    for (int64_t o = 0; o < output.count; o++) {
        int in_step = 0;
        while (steps[in_step].output <= o) in_step++;
        output.bytes[o] ^= 0x10;
        rig_store(rig.journal, journal.bytes, journal.count);
        rig_store(rig.output, output.bytes, output.count);
        output.bytes[o] ^= 0x10;
        struct sf_resume *resume = rig_read(&rig);
        check_first(resume, in_step < 2 ? 5 : in_step);
        /* The answers that were changed are no answers to keep when OUT is written anew. */
        struct sf_journal *writer = NULL;
        SF_CHECK_OK(sf_resume_begin(resume, 1, &writer));
        sf_journal_close(writer);
        int found[RIG_LINES + 1];
        rig_check_output(&rig, found);
        rig_check_counts(resume, found);
        SF_CHECK_INT(found[1], in_step != 0);
        sf_resume_free(resume);
    }
    rig_remove(&rig);
}

/* ---- entries that cannot be, and tokens that do not fit ---- */

static void parts(void)
{
    struct rig rig;
    struct sf_journal *journal = NULL;
    rig_make(&rig);
    SF_CHECK_OK(sf_journal_create(rig.journal, &journal));
    rig_start(&rig, journal);
    rig_tokens(&rig, 1, 0, 0, 4);
    rig_tokens(&rig, 1, 0, 3, 4);       /* overlaps */
    rig_tokens(&rig, 1, 0, 5, 4);       /* leaves a gap */
    rig_tokens(&rig, 1, 0, 4, 2);       /* continues */
    rig_tokens(&rig, 1, 1, 1, 2);       /* does not begin at 0 */
    rig_tokens(&rig, 2, 0, 0, 9);
    rig_tokens(&rig, 2, 0, 0, 3);       /* starts over */
    rig_tokens(&rig, 2, 1024, 0, 3);    /* no record has so many choices */
    rig_finish(&rig, 3, 0, 1);
    rig_tokens(&rig, 3, 0, 0, 3);       /* it has finished */
    rig_tokens(&rig, 4, 0, 0, 0);       /* nothing */
    rig_stop(&rig);
    struct sf_resume *resume = rig_read(&rig);
    rig_check_part(resume, 1, 0, 6);
    rig_check_part(resume, 1, 1, 0);
    rig_check_part(resume, 2, 0, 3);
    rig_check_part(resume, 2, 1024, 0);
    rig_check_part(resume, 3, 0, 0);
    SF_CHECK_INT(sf_resume_counts(resume).parts, 2);
    sf_resume_drop(resume, 1);
    sf_resume_drop(resume, 1);
    sf_resume_drop(resume, 77);
    SF_CHECK_INT(sf_resume_counts(resume).part_tokens, 3);
    sf_resume_free(resume);
    rig_remove(&rig);
}

/* Three good lines, one entry that cannot be, one more line: three stay, OUT is cut behind them. */
static void impossible_entries(void)
{
    enum { TWICE, GAP, BACK, BEFORE_SYNC, SYNC_BACK, SYNC_AHEAD, CASES };
    for (int what = 0; what < CASES; what++) {
        struct rig rig;
        struct sf_journal *journal = NULL;
        int found[RIG_LINES + 1];
        rig_make(&rig);
        SF_CHECK_OK(sf_journal_create(rig.journal, &journal));
        rig_start(&rig, journal);
        rig_finish(&rig, 1, 0, 1);
        rig_sync(&rig);
        int64_t synced = rig.bytes;
        rig_finish(&rig, 2, 1, 1);
        rig_finish(&rig, 3, 0, 1);
        int64_t good = rig.bytes;
        struct sf_journal_finished entry = {.line = 9, .offset = good, .bytes = 5};
        switch (what) {
        case TWICE: rig_finish(&rig, 2, 1, 1); break;
        case GAP: entry.offset++; break;
        case BACK: entry.offset = synced - 1; break;
        case BEFORE_SYNC: entry.offset = 0; break;
        case SYNC_BACK: SF_CHECK_OK(sf_journal_sync(journal, rig.file, synced - 1)); break;
        case SYNC_AHEAD: SF_CHECK_OK(sf_journal_sync(journal, rig.file, good + 1)); break;
        }
        if (what != TWICE && what < SYNC_BACK) SF_CHECK_OK(sf_journal_finished(journal, &entry));
        rig_finish(&rig, 4, 0, 1);
        rig_stop(&rig);
        struct sf_resume *resume = rig_read(&rig);
        sf_journal_close(rig_begin(&rig, resume, 0, found));
        SF_CHECK_INT(rig_size(rig.output), good);
        SF_CHECK_INT(found[1] * 100 + found[2] * 10 + found[3], 121);
        sf_resume_free(resume);
        rig_remove(&rig);
    }
}

/* More lines than wait for a sync; a number far off costs no memory. */
static void many_lines(void)
{
    enum { MANY = 5000 };
    struct rig rig;
    struct sf_journal *journal = NULL;
    char text[128];
    rig_make(&rig);
    SF_CHECK_OK(sf_journal_create(rig.journal, &journal));
    rig_start(&rig, journal);
    for (int64_t i = 0; i < MANY; i++) rig_finish(&rig, 3 * i + 1, (int)(i % 3 == 0), 1);
    rig_finish(&rig, SF_JOURNAL_LINE_MAX, 0, 1);
    rig_stop(&rig);
    for (int cut = 0; cut < 2; cut++) {
        int64_t lines = MANY + 1 - cut * (MANY / 2), wrong = 0;
        if (cut) {                      /* half of them are gone from OUT */
            int64_t bytes = 0;
            for (int64_t i = 0; i < lines; i++)
                bytes += (int64_t)rig_line(3 * i + 1, (int)(i % 3 == 0), text);
            if (truncate(rig.output, (off_t)bytes) != 0) abort();
        }
        struct sf_resume *resume = rig_read(&rig);
        SF_CHECK_INT(sf_resume_counts(resume).answered + sf_resume_counts(resume).errors, lines);
        for (int64_t i = 0; i < 3 * MANY; i++)
            wrong += sf_resume_is_finished(resume, i) != (i % 3 == 1 && i / 3 < lines);
        SF_CHECK_INT(wrong, 0);
        SF_CHECK_INT(sf_resume_is_finished(resume, SF_JOURNAL_LINE_MAX), !cut);
        sf_resume_free(resume);
    }
    rig_remove(&rig);
}

/* ---- files that are missing, empty, or others ---- */

static void check_refused(const struct rig *rig, sf_status wanted, const char *words)
{
    struct sf_resume *resume = NULL;
    SF_CHECK_FAILS(sf_resume_read(rig->output, rig->journal, &resume), wanted);
    SF_CHECK(strstr(sf_error_text(), words) != NULL && strchr(sf_error_text(), '\n') == NULL);
    SF_CHECK(resume == NULL);
}

static void missing_files(void)
{
    static struct rig_file journal, output;
    struct rig rig;
    int found[RIG_LINES + 1];
    rig_make(&rig);
    small_run(&rig);
    rig_load(rig.journal, &journal);
    rig_load(rig.output, &output);
    rig_store(rig.journal, NULL, -1);
    check_refused(&rig, SF_INVALID, "its journal");
    SF_CHECK_INT(rig_size(rig.output), output.count);
    rig_store(rig.journal, "", 0);
    check_refused(&rig, SF_INVALID, "damaged at its beginning");
    rig_store(rig.journal, journal.bytes, journal.count);
    rig_store(rig.output, NULL, -1);
    if (mkdir(rig.output, 0777) != 0) abort();
    check_refused(&rig, SF_INVALID, "not a regular file");
    rmdir(rig.output);

    struct sf_resume *resume = rig_read(&rig);          /* no OUT: all starts, parts are there */
    SF_CHECK(!sf_resume_is_fresh(resume));
    check_first(resume, 0);
    rig_check_part(resume, 4, 0, 10);
    rig_check_part(resume, 6, 0, 7);
    sf_journal_close(rig_begin(&rig, resume, 0, found));
    SF_CHECK_INT(rig_size(rig.output), 0);
    sf_resume_free(resume);

    for (int how = 0; how < 4; how++) {                 /* nothing at all, or as good as */
        rig_store(rig.output, "", how % 2 ? 0 : -1);
        rig_store(rig.journal, journal.bytes, how / 2 ? 24 : -1);
        resume = rig_read(&rig);
        SF_CHECK(sf_resume_is_fresh(resume));
        sf_journal_close(rig_begin(&rig, resume, how / 2, found));
        SF_CHECK_INT(rig_size(rig.output), 0);
        sf_resume_free(resume);
    }
    rig_remove(&rig);
}

/* OUT is not what was synced: its first line is gone, as after an exchange of files. */
static void another_output(void)
{
    static struct rig_file output;
    struct rig rig;
    int found[RIG_LINES + 1];
    rig_make(&rig);
    small_run(&rig);
    rig_load(rig.output, &output);
    rig_store(rig.output, output.bytes + steps[0].output, output.count - steps[0].output);
    struct sf_resume *resume = rig_read(&rig);
    check_first(resume, 0);
    sf_journal_close(rig_begin(&rig, resume, 0, found));
    sf_resume_free(resume);
    rig_remove(&rig);
}

/* What an earlier try left behind is removed where it does not count. */
static void leftovers(void)
{
    static struct rig_file journal, output;
    struct rig rig;
    int found[RIG_LINES + 1];
    rig_make(&rig);
    small_run(&rig);
    rig_load(rig.journal, &journal);
    rig_load(rig.output, &output);
    for (int how = 0; how < 4; how++) {
        rig_store(rig.journal, journal.bytes, journal.count);
        rig_store(rig.output, output.bytes, output.count);
        rig_store(rig.output_new, "half", how == 0 || how == 3 ? 4 : -1);
        rig_store(rig.journal_new, how == 1 ? (const void *)"torn" : journal.bytes,
                  how == 1 ? 4 : how == 2 ? journal.count / 2 : 60);
        struct sf_resume *resume = rig_read(&rig);
        check_first(resume, 5);
        sf_journal_close(rig_begin(&rig, resume, 0, found));
        sf_resume_free(resume);
    }
    rig_remove(&rig);
}

static const struct sf_test tests[] = {
    {"round trip", round_trip},
    {"cut anywhere", cut_anywhere},
    {"changed journal", changed_journal},
    {"changed output", changed_output},
    {"parts", parts},
    {"impossible entries", impossible_entries},
    {"many lines", many_lines},
    {"missing files", missing_files},
    {"another output", another_output},
    {"leftovers", leftovers},
    {NULL, NULL}};
SF_TEST_MAIN("resume", tests)
