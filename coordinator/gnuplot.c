/* coordinator/gnuplot.c: gnuplot as a child: the script is a file without a name, its standard
 * output a pipe that is read until it ends or the deadline is there, its standard error another
 * file without a name. */
#include "coordinator/gnuplot.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/files.h"

extern char **environ;
enum { SVG_MAX = 16 << 20, READ_BYTES = 1 << 16, WAIT_MS = 10 };

struct child {
    int script, said, pipe[2];          /* file descriptors; -1: not open */
    pid_t pid;                          /* 0: not there, or waited for */
    int64_t end_ns;                     /* when it has to be done */
    int timeout_ms;
};

sf_status sf_gnuplot_find(void)
{
    const char *path = getenv("PATH");
    for (const char *at = path == NULL ? "" : path; *at != '\0';) {
        size_t bytes = strcspn(at, ":");
        char name[PATH_MAX];
        struct stat about;
        int used = snprintf(name, sizeof name, "%.*s/gnuplot", (int)bytes, bytes ? at : ".");
        if (used > 0 && (size_t)used < sizeof name && stat(name, &about) == 0 &&
            S_ISREG(about.st_mode) && access(name, X_OK) == 0)
            return SF_OK;
        at += bytes + (at[bytes] == ':');
    }
    return SF_FAIL(SF_INVALID, "plots need gnuplot, and none is on the PATH (Debian: gnuplot-nox)");
}

static sf_status nameless_file(int *file_out)
{
    int file = memfd_create("sheaf-plot", MFD_CLOEXEC);
    if (file < 0) return SF_FAIL(SF_IO, "no file in memory for a plot: %s", strerror(errno));
    *file_out = file;
    return SF_OK;
}

static void close_file(int *file)
{
    if (*file >= 0) close(*file);
    *file = -1;
}

static sf_status start(struct child *child)
{
    char name[] = "gnuplot", plain[] = "-d", *const arguments[] = {name, plain, NULL};
    posix_spawn_file_actions_t actions;
    if (pipe2(child->pipe, O_CLOEXEC) != 0)
        return SF_FAIL(SF_IO, "no pipe to gnuplot: %s", strerror(errno));
    int failed = posix_spawn_file_actions_init(&actions);
    if (failed != 0) return SF_FAIL(SF_NO_MEMORY, "gnuplot: %s", strerror(failed));
    const int from[3] = {child->script, child->pipe[1], child->said};
    for (int i = 0; i < 3 && failed == 0; i++)
        failed = posix_spawn_file_actions_adddup2(&actions, from[i], i);
    if (failed == 0)
        failed = posix_spawnp(&child->pid, name, &actions, NULL, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (failed == 0) {
        close_file(&child->pipe[1]);
        return SF_OK;
    }
    child->pid = 0;
    return SF_FAIL(SF_IO, "gnuplot does not start: %s", strerror(failed));
}

static int left_ms(const struct child *child)
{
    int64_t left = (child->end_ns - sf_now_ns()) / 1000000;
    return left < 0 ? 0 : (int)left;
}

static sf_status too_late(const struct child *child)
{
    return SF_FAIL(SF_TIMEOUT, "gnuplot was not done after %d ms", child->timeout_ms);
}

/* All that it prints; *text grows, with room for a NUL. */
static sf_status read_all(const struct child *child, char **text, size_t *bytes)
{
    size_t room = 0;
    for (;;) {
        struct pollfd ready = {.fd = child->pipe[0], .events = POLLIN};
        int count = poll(&ready, 1, left_ms(child));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return SF_FAIL(SF_IO, "the pipe from gnuplot: %s", strerror(errno));
        if (count == 0) return too_late(child);
        if (room - *bytes < READ_BYTES + 1) {
            char *more = realloc(*text, room = room * 2 + READ_BYTES + 1);
            if (more == NULL) return SF_FAIL(SF_NO_MEMORY, "%zu bytes of a plot", room);
            *text = more;
        }
        ssize_t got = read(child->pipe[0], *text + *bytes, READ_BYTES);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return SF_FAIL(SF_IO, "the pipe from gnuplot: %s", strerror(errno));
        if (got == 0) return SF_OK;
        *bytes += (size_t)got;
        if (*bytes > SVG_MAX) return SF_FAIL(SF_IO, "gnuplot prints more than %d bytes", SVG_MAX);
    }
}

/* Its first line that is not empty. */
static sf_status its_words(const struct child *child, int state)
{
    char words[512] = "";
    ssize_t got = pread(child->said, words, sizeof words - 1, 0);
    words[got > 0 ? got : 0] = '\0';
    const char *line = words + strspn(words, "\r\n ");
    if (WIFSIGNALED(state)) return SF_FAIL(SF_IO, "gnuplot: killed by signal %d", WTERMSIG(state));
    return SF_FAIL(SF_IO, "gnuplot: exit code %d: %.*s", WEXITSTATUS(state),
                   (int)strcspn(line, "\r\n"), line);
}

static sf_status end(struct child *child)
{
    int state;
    for (;;) {
        pid_t pid = waitpid(child->pid, &state, WNOHANG);
        if (pid == child->pid) break;
        if (pid < 0 && errno != EINTR) return SF_FAIL(SF_IO, "gnuplot: %s", strerror(errno));
        if (left_ms(child) == 0) return too_late(child);
        sf_sleep_us(WAIT_MS * 1000);
    }
    child->pid = 0;
    return WIFEXITED(state) && WEXITSTATUS(state) == 0 ? SF_OK : its_words(child, state);
}

sf_status sf_gnuplot_run(const char *script, size_t bytes, int timeout_ms, char **svg_out,
                         size_t *svg_bytes_out)
{
    struct child child = {.script = -1, .said = -1, .pipe = {-1, -1}, .timeout_ms = timeout_ms,
                          .end_ns = sf_now_ns() + (int64_t)timeout_ms * 1000000};
    char *text = NULL;
    size_t count = 0;
    sf_status status = nameless_file(&child.script);
    if (status == SF_OK) status = nameless_file(&child.said);
    if (status == SF_OK) status = sf_file_write(child.script, "a plot's script", script, bytes);
    if (status == SF_OK && lseek(child.script, 0, SEEK_SET) != 0)
        status = SF_FAIL(SF_IO, "a plot's script: %s", strerror(errno));
    if (status == SF_OK) status = start(&child);
    if (status == SF_OK) status = read_all(&child, &text, &count);
    if (status == SF_OK) status = end(&child);
    if (child.pid != 0) {
        kill(child.pid, SIGKILL);
        while (waitpid(child.pid, NULL, 0) < 0 && errno == EINTR) continue;
    }
    close_file(&child.script);
    close_file(&child.said);
    close_file(&child.pipe[0]);
    close_file(&child.pipe[1]);
    if (status != SF_OK) {
        free(text);
        return status;
    }
    text[count] = '\0';
    *svg_out = text;
    *svg_bytes_out = count;
    return SF_OK;
}
