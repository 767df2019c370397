/* tests/unit/coordinator/resume_kill.c: sf_resume_begin dies at each of its system calls, or each
 * of them fails, or the power goes, and nothing is lost.
 *
 * The linker puts the functions below before those of the C library.  A child runs the begin and
 * leaves at its n-th call that changes a file, half of what it would have written being there; with
 * a power cut, the last few renames and removals in a folder that was not synced since are undone
 * too, each folder by itself, and files lose bytes that were not synced.  Or the n-th call fails
 * for want of room.  n = 1, 2, 3, ... until the begin passes.  Afterwards every answer is finished,
 * and the errors all are or none is; and the next begin, which may die in the same way and is tried
 * again, ends where an undisturbed one ends. */
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/rng.h"
#include "tests/check.h"
#include "tests/unit/coordinator/resume_rig.h"

enum { KILLED = 9, ERRORS = 3, ANSWERS = 5, CHANGES_MAX = 16, SYNCED_MAX = 16 };

static struct rig rig;

/* ---- before the C library ---- */

static enum mode { PASS, KILL, FAIL } mode;
static int calls, last_call;            /* counted; the one that is not made */
static int power;                       /* a kill is a power cut */
static uint64_t seed, draws;
static struct change { int folder; char from[128], to[128], backup[96]; } change[CHANGES_MAX];
static int changes;
static struct { ino_t file; off_t bytes; } synced[SYNCED_MAX];
static int synced_files;

ssize_t __real_write(int file, const void *bytes, size_t count);
ssize_t __real_pwrite(int file, const void *bytes, size_t count, off_t offset);
int __real_ftruncate(int file, off_t size);
int __real_rename(const char *from, const char *to);
int __real_unlink(const char *path);
ssize_t __wrap_write(int file, const void *bytes, size_t count);
ssize_t __wrap_pwrite(int file, const void *bytes, size_t count, off_t offset);
int __wrap_ftruncate(int file, off_t size);
int __wrap_rename(const char *from, const char *to);
int __wrap_unlink(const char *path);
int __wrap_fsync(int file);
int __wrap_fdatasync(int file);

static uint64_t draw(uint64_t below)
{
    return sf_rng_u64(seed, 5, draws++) % below;
}

/* The last changes of names in a folder, or none, or all, never were. */
static void undo_names(int folder)
{
    int of_folder = 0;
    for (int i = 0; i < changes; i++) of_folder += change[i].folder == folder;
    int undo = (int)draw((uint64_t)of_folder + 1);
    for (int i = changes - 1; i >= 0 && undo > 0; i--) {
        if (change[i].folder != folder) continue;
        undo--;
        if (change[i].from[0] != '\0') __real_rename(change[i].to, change[i].from);
        if (change[i].backup[0] != '\0') __real_rename(change[i].backup, change[i].to);
    }
}

static void lose_bytes(const char *path)
{
    struct stat info;
    if (stat(path, &info) != 0) return;
    off_t least = 0;
    for (int i = 0; i < synced_files; i++)
        if (synced[i].file == info.st_ino) least = synced[i].bytes;
    if (least > info.st_size) least = info.st_size;
    if (truncate(path, least + (off_t)draw((uint64_t)(info.st_size - least) + 1)) != 0) abort();
}

static void cut_power(void)
{
    if (!power) return;
    undo_names(0);
    undo_names(1);
    lose_bytes(rig.output);
    lose_bytes(rig.output_new);
    lose_bytes(rig.journal);
    lose_bytes(rig.journal_new);
    if (draw(2)) __real_unlink(rig.output_new);         /* its name was never synced */
}

static void leave(void)
{
    if (mode != KILL) return;
    cut_power();
    _exit(KILLED);
}

/* 0: this call is the one that is not made. */
static int allowed(void)
{
    return mode == PASS || ++calls != last_call;
}

/* Half of it, and after that nothing: the next try finds no room at all. */
static ssize_t half(ssize_t done)
{
    leave();
    calls = last_call - 1;
    errno = ENOSPC;
    return done > 0 ? done : (calls = last_call, -1);
}

ssize_t __wrap_write(int file, const void *bytes, size_t count)
{
    return allowed() ? __real_write(file, bytes, count)
                     : half(__real_write(file, bytes, count / 2));
}

ssize_t __wrap_pwrite(int file, const void *bytes, size_t count, off_t offset)
{
    return allowed() ? __real_pwrite(file, bytes, count, offset)
                     : half(__real_pwrite(file, bytes, count / 2, offset));
}

static int refuse(void)
{
    leave();
    errno = ENOSPC;
    return -1;
}

int __wrap_ftruncate(int file, off_t size)
{
    return allowed() ? __real_ftruncate(file, size) : refuse();
}

/* Keeps what is at `to`, so that the change can be undone. */
static void note_change(const char *from, const char *to)
{
    if (!power) return;
    if (changes == CHANGES_MAX) abort();
    struct change *c = &change[changes++];
    *c = (struct change){.folder = strstr(to, ".run/") != NULL};
    snprintf(c->from, sizeof c->from, "%s", from != NULL ? from : "");
    snprintf(c->to, sizeof c->to, "%s", to);
    snprintf(c->backup, sizeof c->backup, "%s/backup-%d", rig.folder, changes);
    if (link(to, c->backup) != 0) c->backup[0] = '\0';
}

int __wrap_rename(const char *from, const char *to)
{
    if (!allowed()) return refuse();
    note_change(from, to);
    return __real_rename(from, to);
}

int __wrap_unlink(const char *path)
{
    if (!allowed()) return refuse();
    if (access(path, F_OK) == 0) note_change(NULL, path);
    return __real_unlink(path);
}

/* Of a folder: its changes stay.  Of a file: its bytes do. */
static int sync_it(int file)
{
    struct stat info, shadow;
    if (!power || fstat(file, &info) != 0 || stat(rig.shadow, &shadow) != 0) return 0;
    int folder = info.st_ino == shadow.st_ino;
    for (int i = 0; S_ISDIR(info.st_mode) && i < changes; i++)
        if (change[i].folder == folder) change[i].folder = -1;
    if (S_ISDIR(info.st_mode)) return 0;
    if (synced_files == SYNCED_MAX) abort();
    synced[synced_files].file = info.st_ino;
    synced[synced_files++].bytes = info.st_size;
    return 0;
}

int __wrap_fsync(int file) { return allowed() ? sync_it(file) : refuse(); }
int __wrap_fdatasync(int file) { return allowed() ? sync_it(file) : refuse(); }

/* What is there at the start of a life has survived the one before. */
static void note_synced(const char *path)
{
    struct stat info;
    if (stat(path, &info) != 0) return;
    synced[synced_files].file = info.st_ino;
    synced[synced_files++].bytes = info.st_size;
}

static void disturb(enum mode how, int call, int cut, uint64_t key)
{
    mode = how;
    calls = changes = synced_files = 0;
    last_call = call;
    power = cut;
    seed = key;
    draws = 0;
    note_synced(rig.output);
    note_synced(rig.output_new);
    note_synced(rig.journal);
    note_synced(rig.journal_new);
}

/* ---- a run that has died ---- */

/* Answers 1 2 4 6 8, errors 3 5 7, parts of 9 and 10, an entry whose line is torn. */
static void dead_run(void)
{
    struct sf_journal *journal = NULL;
    char text[128];
    rig_make(&rig);
    SF_CHECK_OK(sf_journal_create(rig.journal, &journal));
    rig_start(&rig, journal);
    rig_tokens(&rig, 2, 0, 0, 5);
    rig_tokens(&rig, 9, 0, 0, 5);
    for (int64_t line = 1; line <= 4; line++) rig_finish(&rig, line, line == 3, 1);
    rig_sync(&rig);
    rig_tokens(&rig, 9, 1, 0, 2);
    rig_tokens(&rig, 9, 0, 5, 6);
    rig_tokens(&rig, 10, 0, 0, 3);
    for (int64_t line = 5; line <= 8; line++) rig_finish(&rig, line, line % 2 == 1, 1);
    rig_finish(&rig, 10, 0, 0);
    size_t bytes = rig_line(10, 0, text);
    if (write(rig.file, text, bytes / 2) < 0) abort();
    rig_stop(&rig);
}

static void remove_backups(void)
{
    char path[96];
    for (int i = 1; i <= CHANGES_MAX; i++) {
        snprintf(path, sizeof path, "%s/backup-%d", rig.folder, i);
        unlink(path);
    }
}

/* Reads and begins; SF_OK when it came to its end. */
static sf_status begin(int forget)
{
    struct sf_resume *resume = NULL;
    struct sf_journal *journal = NULL;
    sf_status status = sf_resume_read(rig.output, rig.journal, &resume);
    if (status == SF_OK) status = sf_resume_begin(resume, forget, &journal);
    if (status == SF_OK) sf_journal_close(journal);
    sf_resume_free(resume);
    return status;
}

/* 1: it passed, 0: it was killed. */
static int begin_in_child(int forget, int call, int cut, uint64_t key)
{
    int code;
    pid_t child = fork();
    if (child < 0) abort();
    if (child == 0) {
        disturb(KILL, call, cut, key);
        int code_of_begin = begin(forget) == SF_OK ? 0 : 1;
        cut_power();                    /* what begin has done stays */
        _exit(code_of_begin);
    }
    if (waitpid(child, &code, 0) != child || !WIFEXITED(code)) abort();
    SF_CHECK(WEXITSTATUS(code) == 0 || WEXITSTATUS(code) == KILLED);
    remove_backups();
    return WEXITSTATUS(code) != KILLED;
}

/* What is finished now: all answers, and all errors or none of them; returns how many errors. */
static int check_state(int *whole_out)
{
    struct sf_resume *resume = NULL;
    sf_status status = sf_resume_read(rig.output, rig.journal, &resume);
    SF_CHECK_OK(status);
    *whole_out = status == SF_OK;
    if (status != SF_OK) return -1;
    struct sf_resume_counts counts = sf_resume_counts(resume);
    SF_CHECK_INT(counts.answered, ANSWERS);
    SF_CHECK(counts.errors == 0 || counts.errors == ERRORS);
    for (int64_t line = 1; line <= 8; line++)
        SF_CHECK_INT(sf_resume_is_finished(resume, line),
                     (line != 3 && line != 5 && line != 7) || counts.errors > 0);
    rig_check_part(resume, 9, 0, 11);
    rig_check_part(resume, 9, 1, 2);
    rig_check_part(resume, 10, 0, 3);
    SF_CHECK_INT(counts.parts, 3);
    sf_resume_free(resume);
    return (int)counts.errors;
}

/* An undisturbed begin: OUT is whole, and what was finished is. */
static void check_end(int forget, int errors)
{
    int found[RIG_LINES + 1], whole;
    disturb(PASS, 0, 0, 0);
    SF_CHECK_OK(begin(forget));
    int lines = rig_check_output(&rig, found);
    SF_CHECK_INT(lines, ANSWERS + (forget ? 0 : errors));
    SF_CHECK_INT(check_state(&whole), forget ? 0 : errors);
    SF_CHECK_INT(rig_size(rig.output_new), -1);
    SF_CHECK_INT(rig_size(rig.journal_new), -1);
}

/* ---- tests ---- */

/* One begin that is disturbed at its n-th call, another one that is too, and a whole one. */
static int kill_at(int call, int forget, int cut, uint64_t key)
{
    int whole;
    dead_run();
    int passed = begin_in_child(forget, call, cut, key);
    int errors = check_state(&whole);
    if (!forget) SF_CHECK_INT(errors, ERRORS);
    int again = key % 3 == 0 ? forget : (int)(key % 2);
    if (whole && !passed) {
        begin_in_child(again, 1 + (int)(sf_rng_u64(key, 1, 0) % 24), cut, key + 1000000);
        int now = check_state(&whole);
        SF_CHECK(now == errors || (again && now == 0));
        errors = now;
    }
    if (whole) check_end(key % 4 < 2, errors);
    remove_backups();
    rig_remove(&rig);
    return passed;
}

static void kills(int cut)
{
    const char *level = getenv("SHEAF_TEST_LEVEL");
    uint64_t rounds = level != NULL && strcmp(level, "long") == 0 ? 200 : cut ? 6 : 2;
    if (level != NULL && strcmp(level, "quick") == 0) rounds = 2;
    for (uint64_t round = 0; round < rounds; round++)
        for (int forget = 0; forget < 2; forget++) {
            int call = 1;
            while (call < 200 && !kill_at(call, forget, cut, round * 1000 + (uint64_t)call)) call++;
            SF_CHECK(call > 15 && call < 200);
        }
}

static void killed(void) { kills(0); }
static void power_cuts(void) { kills(1); }

static void failing_calls(void)
{
    for (int forget = 0; forget < 2; forget++) {
        sf_status status = SF_IO;
        int call = 0, whole;
        while (status != SF_OK && call < 200) {
            dead_run();
            disturb(FAIL, ++call, 0, 0);
            status = begin(forget);
            SF_CHECK(status == SF_OK || (status == SF_IO &&
                     strstr(sf_error_text(), "No space left") != NULL));
            disturb(PASS, 0, 0, 0);
            int errors = check_state(&whole);
            if (!forget) SF_CHECK_INT(errors, ERRORS);
            if (whole) check_end(call % 2, errors);
            rig_remove(&rig);
        }
        SF_CHECK(call > 15 && call < 200);
    }
}

/* OUT.new is taken away by hand, at each moment when there is one: OUT is still the old one. */
static void by_hand(void)
{
    int seen = 0, passed = 0;
    for (int call = 1; !passed && call < 200; call++) {
        int whole;
        dead_run();
        passed = begin_in_child(1, call, 0, 0);
        if (!passed && unlink(rig.output_new) == 0) {
            seen++;
            SF_CHECK_INT(check_state(&whole), ERRORS);
            check_end(0, ERRORS);
        }
        rig_remove(&rig);
    }
    SF_CHECK(passed && seen > 5);
}

static const struct sf_test tests[] = {
    {"killed", killed},
    {"power cuts", power_cuts},
    {"failing calls", failing_calls},
    {"by hand", by_hand},
    {NULL, NULL}};
SF_TEST_MAIN("resume_kill", tests)
