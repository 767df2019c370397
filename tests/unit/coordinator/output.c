/* tests/unit/coordinator/output.c: OUT.jsonl and its journal stay a pair.
 *
 * The journal's entry is there before the line, with its place, length and digest; an output that
 * exists is never touched, nor its journal, while a journal without an output gives way; going on
 * appends.  A disk that is full (a limit on the size of files) in the middle of a line leaves whole
 * lines only, in the middle of an entry no line without one; when there is room again, what comes
 * stands where the torn line would have, and the next run finds all of it. */
#include "coordinator/output.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/rng.h"
#include "coordinator/resume.h"
#include "tests/check.h"

enum { LINE_BYTES = 400 };
static char folder[64], path[128], shadow[160], journal[192];

static void make(void)
{
    snprintf(folder, sizeof folder, "/tmp/sheaf-output-XXXXXX");
    if (mkdtemp(folder) == NULL) abort();
    snprintf(path, sizeof path, "%s/out.jsonl", folder);
    snprintf(shadow, sizeof shadow, "%s.run", path);
    snprintf(journal, sizeof journal, "%s/journal", shadow);
    if (mkdir(shadow, 0777) != 0) abort();
    sf_log_setup(SF_LOG_ERROR, 0);      /* torn ends are told of as warnings */
}

static void drop(void)
{
    unlink(path);
    unlink(journal);
    SF_CHECK_INT(rmdir(shadow), 0);
    SF_CHECK_INT(rmdir(folder), 0);
}

static void write_file(const char *name, const char *text)
{
    FILE *file = fopen(name, "w");
    if (file == NULL || fputs(text, file) < 0 || fclose(file) != 0) abort();
}

static void check_file(const char *name, const char *text)
{
    char got[4096] = "";
    FILE *file = fopen(name, "rb");
    SF_CHECK(file != NULL);
    if (file == NULL) return;
    got[fread(got, 1, sizeof got - 1, file)] = '\0';
    fclose(file);
    SF_CHECK_STR(got, text);
}

/* Line `number`: so many bytes of one letter. */
static const char *text_of(int64_t number, int64_t bytes)
{
    static char text[LINE_BYTES + 1];
    memset(text, 'a' + (int)number, (size_t)bytes);
    text[bytes - 1] = '\n';
    text[bytes] = '\0';
    return text;
}

static sf_status add(struct sf_output *output, int64_t number, int64_t bytes)
{
    struct sf_journal_finished entry = {.line = number, .bytes = bytes, .sum = {number}};
    return sf_output_line(output, &entry, text_of(number, bytes));
}

/* What the journal holds, a letter an entry: F, T, S. */
static void check_journal(const char *kinds)
{
    struct sf_journal_reader *reader;
    struct sf_journal_entry entry;
    char got[64] = "";
    SF_MUST(sf_journal_reader_open(journal, &reader));
    for (size_t i = 0; i + 1 < sizeof got; i++) {
        SF_CHECK_OK(sf_journal_reader_next(reader, &entry));
        if (entry.kind == SF_JOURNAL_END) break;
        got[i] = entry.kind == SF_JOURNAL_FINISHED ? 'F' : entry.kind == SF_JOURNAL_TOKENS ? 'T'
                                                                                           : 'S';
    }
    SF_CHECK_INT(entry.torn_bytes, 0);
    sf_journal_reader_close(reader);
    SF_CHECK_STR(got, kinds);
}

/* What the next run would find: lines 1 .. and the output cut to them. */
static void check_found(int64_t answered, int64_t bytes)
{
    struct sf_resume *resume = NULL;
    SF_MUST(sf_resume_read(path, journal, &resume));
    struct sf_resume_counts counts = sf_resume_counts(resume);
    SF_CHECK_INT(counts.answered, answered);
    SF_CHECK_INT(counts.output_bytes, bytes);
    SF_CHECK_INT(counts.sum[0], answered * (answered + 1) / 2);
    sf_resume_free(resume);
}

static void pairs(void)
{
    struct sf_output *output;
    struct sf_journal_reader *reader;
    struct sf_journal_entry entry;
    make();
    SF_MUST(sf_output_create(path, &output));
    SF_CHECK_OK(sf_output_sync(output));                /* nothing has changed */
    check_journal("");
    SF_CHECK_OK(add(output, 1, 10));
    SF_CHECK_OK(add(output, 2, 20));
    SF_CHECK_INT(sf_output_bytes(output), 30);
    check_file(path, "bbbbbbbbb\nccccccccccccccccccc\n");
    const int32_t token[] = {5, 6};
    struct sf_journal_tokens tokens = {.line = 3, .count = 2, .token = token};
    SF_CHECK_OK(sf_output_tokens(output, &tokens));
    SF_CHECK_OK(sf_output_sync(output));
    SF_CHECK_OK(sf_output_sync(output));
    check_journal("FFTS");
    sf_output_close(output);
    sf_output_close(NULL);
    SF_MUST(sf_journal_reader_open(journal, &reader));
    SF_CHECK_OK(sf_journal_reader_next(reader, &entry));
    SF_CHECK_OK(sf_journal_reader_next(reader, &entry));
    SF_CHECK_INT(entry.finished.line, 2);
    SF_CHECK_INT(entry.finished.offset, 10);
    SF_CHECK_INT(entry.finished.bytes, 20);
    SF_CHECK(entry.finished.digest == sf_hash64(text_of(2, 20), 20));
    SF_CHECK_OK(sf_journal_reader_next(reader, &entry));
    SF_CHECK_OK(sf_journal_reader_next(reader, &entry));
    SF_CHECK_INT(entry.synced_bytes, 30);
    sf_journal_reader_close(reader);
    check_found(2, 30);
    drop();
}

static void never_overwrites(void)
{
    struct sf_output *output = NULL;
    make();
    write_file(path, "precious\n");
    write_file(journal, "its journal\n");
    SF_CHECK_FAILS(sf_output_create(path, &output), SF_IO);
    SF_CHECK(strstr(sf_error_text(), "out.jsonl: could not be created: File exists") != NULL);
    check_file(path, "precious\n");
    check_file(journal, "its journal\n");
    unlink(path);                       /* of a run whose output was taken away */
    SF_CHECK_OK(sf_output_create(path, &output));
    sf_output_close(output);
    check_file(path, "");
    check_journal("");
    drop();
}

static void goes_on(void)
{
    struct sf_output *output;
    struct sf_resume *resume;
    struct sf_journal *fresh;
    make();
    SF_MUST(sf_output_create(path, &output));
    SF_CHECK_OK(add(output, 1, 10));
    sf_output_close(output);
    SF_MUST(sf_resume_read(path, journal, &resume));
    SF_MUST(sf_resume_begin(resume, 0, &fresh));
    SF_MUST(sf_output_go_on(path, 10, fresh, &output));
    sf_resume_free(resume);
    SF_CHECK_OK(add(output, 2, 12));
    SF_CHECK_INT(sf_output_bytes(output), 22);
    sf_output_close(output);
    check_file(path, "bbbbbbbbb\nccccccccccc\n");
    check_found(2, 22);
    SF_MUST(sf_resume_read(path, journal, &resume));
    SF_MUST(sf_resume_begin(resume, 0, &fresh));
    sf_resume_free(resume);
    unlink(path);                       /* behind our back: the journal is closed all the same */
    SF_CHECK_FAILS(sf_output_go_on(path, 22, fresh, &output), SF_IO);
    drop();
}

/* Runs `add` with files that may have so many bytes at most. */
static sf_status add_on_full_disk(struct sf_output *output, int64_t number, int64_t bytes,
                                  int64_t disk_bytes, char words[256])
{
    struct rlimit old, tight;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    if (getrlimit(RLIMIT_FSIZE, &old) != 0) abort();
    tight = (struct rlimit){.rlim_cur = (rlim_t)disk_bytes, .rlim_max = old.rlim_max};
    if (setrlimit(RLIMIT_FSIZE, &tight) != 0) abort();
    sf_status status = add(output, number, bytes);
    snprintf(words, 256, "%s", sf_error_text());
    if (setrlimit(RLIMIT_FSIZE, &old) != 0) abort();
    signal(SIGXFSZ, handler);
    return status;
}

/* Room for two lines and a half; the journal is smaller. */
static void full_disk(void)
{
    struct sf_output *output;
    char words[256];
    make();
    SF_MUST(sf_output_create(path, &output));
    SF_CHECK_OK(add(output, 1, LINE_BYTES));
    SF_CHECK_INT(add_on_full_disk(output, 2, LINE_BYTES, LINE_BYTES * 5 / 2, words), SF_OK);
    SF_CHECK_INT(add_on_full_disk(output, 3, LINE_BYTES, LINE_BYTES * 5 / 2, words), SF_IO);
    SF_CHECK(strstr(words, "out.jsonl: could not be written: File too large") != NULL);
    check_journal("FFF");               /* the entry came first */
    SF_CHECK_INT(sf_output_bytes(output), 2 * LINE_BYTES);
    struct stat info;
    SF_CHECK(stat(path, &info) == 0 && info.st_size == 2 * LINE_BYTES);
    check_found(2, 2 * LINE_BYTES);
    SF_CHECK_INT(add_on_full_disk(output, 3, LINE_BYTES, LINE_BYTES * 5 / 2, words), SF_IO);
    SF_CHECK_OK(add(output, 3, LINE_BYTES / 2));        /* there is room again */
    SF_CHECK_OK(add(output, 4, LINE_BYTES));
    check_journal("FFFFFF");
    check_found(4, 7 * LINE_BYTES / 2);
    SF_CHECK_OK(sf_output_sync(output));
    check_found(4, 7 * LINE_BYTES / 2);
    sf_output_close(output);
    drop();
}

/* Lines so short that the journal is full first. */
static void full_journal(void)
{
    struct sf_output *output;
    struct stat info;
    char words[256];
    make();
    SF_MUST(sf_output_create(path, &output));
    SF_CHECK_OK(add(output, 1, 8));
    SF_CHECK(stat(journal, &info) == 0 && info.st_size > 40);
    SF_CHECK_INT(add_on_full_disk(output, 2, 8, info.st_size + 5, words), SF_IO);
    SF_CHECK(strstr(words, "out.jsonl.run/journal: could not be written") != NULL);
    check_journal("F");
    check_file(path, "bbbbbbb\n");
    check_found(1, 8);
    SF_CHECK_OK(add(output, 2, 8));
    check_file(path, "bbbbbbb\nccccccc\n");
    check_found(2, 16);
    sf_output_close(output);
    drop();
}

static const struct sf_test tests[] = {
    {"pairs", pairs},
    {"never overwrites", never_overwrites},
    {"goes on", goes_on},
    {"full disk", full_disk},
    {"full journal", full_journal},
    {NULL, NULL}};
SF_TEST_MAIN("output", tests)
