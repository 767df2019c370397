/* What reaches standard error, read back through a pipe in its place: the form of a line, in text
 * and in JSON; levels; that outside bytes can neither forge a line nor steer a terminal; and that
 * each line is one piece of at most the size that a pipe takes whole. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/json.h"
#include "base/log.h"
#include "tests/check.h"

enum { PIECE_MAX = 4096 };

static int saved_stderr, pipe_ends[2];

static void capture_start(void)
{
    fflush(stderr);
    saved_stderr = dup(STDERR_FILENO);
    /* O_DIRECT: a read returns what one write wrote. */
    if (saved_stderr < 0 || pipe2(pipe_ends, O_NONBLOCK | O_DIRECT) != 0) abort();
    dup2(pipe_ends[1], STDERR_FILENO);
}

/* The next write to standard error, "" if there was none. */
static const char *captured(void)
{
    static char piece[PIECE_MAX + 1];
    ssize_t count = read(pipe_ends[0], piece, PIECE_MAX);
    piece[count > 0 ? count : 0] = '\0';
    return piece;
}

static void capture_stop(void)
{
    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    sf_log_setup(SF_LOG_INFO, 0);
    sf_log_rank(-1);
}

static void test_text(void)
{
    capture_start();
    sf_log_setup(SF_LOG_INFO, 0);
    sf_log(SF_LOG_ERROR, "page pool of %d pages is full", 12);
    SF_CHECK_STR(captured(), "sheaf: error: page pool of 12 pages is full\n");
    sf_log_rank(3);
    sf_log(SF_LOG_WARN, "slow");
    SF_CHECK_STR(captured(), "[rank 3] sheaf: warning: slow\n");
    sf_log(SF_LOG_INFO, "%s", "");
    SF_CHECK_STR(captured(), "[rank 3] sheaf: info: \n");
    sf_log(SF_LOG_DEBUG, "not shown");
    SF_CHECK_STR(captured(), "");
    sf_log_setup(SF_LOG_TRACE, 0);
    sf_log(SF_LOG_TRACE, "step 9");
    SF_CHECK_STR(captured(), "[rank 3] sheaf: trace: step 9\n");
    capture_stop();
}

static void test_outside_bytes(void)
{
    capture_start();
    sf_log(SF_LOG_ERROR, "%s", "a\nsheaf: error: b\t\x1b[2J\x7f \xc2\x9b \xff \xc3\xa9 \xe2\x82");
    SF_CHECK_STR(captured(), "sheaf: error: a sheaf: error: b ?[2J? ? ? \xc3\xa9 ??\n");
    capture_stop();
}

static void check_json(const char *line, const char *level, const char *message)
{
    struct sf_json *value = NULL;
    size_t bytes = strlen(line), text_bytes = 0;
    SF_CHECK(bytes > 0 && line[bytes - 1] == '\n' && strchr(line, '\n') == line + bytes - 1);
    SF_MUST(sf_json_parse(line, bytes, PIECE_MAX, &value));
    const char *text = sf_json_text(sf_json_member(value, "level"), &text_bytes);
    SF_CHECK_STR(text == NULL ? "none" : text, level);
    text = sf_json_text(sf_json_member(value, "msg"), &text_bytes);
    SF_CHECK_STR(text == NULL ? "none" : text, message);
    double ts = 0;
    SF_CHECK(sf_json_get_real(sf_json_member(value, "ts"), &ts) && ts > 1.5e9 && ts < 1e11);
    SF_CHECK_INT(sf_json_count(value), 4);
    sf_json_free(value);
}

static void test_json(void)
{
    capture_start();
    sf_log_setup(SF_LOG_INFO, 1);
    sf_log(SF_LOG_WARN, "say \"hi\"\\ to\n\x1b %s \xff.", "r\xc3\xa9sum\xc3\xa9");
    const char *line = captured();
    check_json(line, "warn", "say \"hi\"\\ to\n\x1b r\xc3\xa9sum\xc3\xa9 \xef\xbf\xbd.");
    SF_CHECK(strstr(line, "\"rank\":null,") != NULL);
    sf_log_rank(12);
    sf_log(SF_LOG_INFO, "x");
    line = captured();
    check_json(line, "info", "x");
    SF_CHECK(strstr(line, "\"rank\":12,") != NULL);
    capture_stop();
}

/* Long messages are cut with "...", not inside a character, and stay valid in both forms. */
static void test_long(void)
{
    static char many[9000];
    static const char *const units[] = { "x", "\xe2\x82\xac", "\"", "\x01" };
    for (size_t u = 0; u < sizeof units / sizeof *units; u++)
        for (size_t shift = 0; shift < 3; shift++)
            for (int json = 0; json < 2; json++) {
                size_t used = shift;
                memset(many, 'y', shift);
                for (; used + 4 < sizeof many; used += strlen(units[u]))
                    memcpy(many + used, units[u], strlen(units[u]));
                many[used] = '\0';
                capture_start();
                sf_log_setup(SF_LOG_INFO, json);
                sf_log(SF_LOG_INFO, "%s", many);
                const char *line = captured();
                size_t bytes = strlen(line);
                SF_CHECK(bytes > 1000 && bytes < PIECE_MAX);
                SF_CHECK_STR(line + bytes - (json ? 6 : 4), json ? "...\"}\n" : "...\n");
                SF_CHECK(strstr(line, "?") == NULL || *units[u] == '\x01');
                SF_CHECK(strstr(line, "fffd") == NULL);
                struct sf_json *value = NULL;
                if (json) SF_CHECK_OK(sf_json_parse(line, bytes, PIECE_MAX, &value));
                sf_json_free(value);
                SF_CHECK_STR(captured(), "");
                capture_stop();
            }
}

/* A reader that does not read costs lines, not the run: nothing waits, and errno is kept. */
static void test_nobody_reads(void)
{
    capture_start();
    errno = ENOSPC;
    for (int i = 0; i < 5000; i++) sf_log(SF_LOG_INFO, "line %d", i);
    int errno_after = errno;
    SF_CHECK_STR(captured(), "sheaf: info: line 0\n");
    capture_stop();
    SF_CHECK_INT(errno_after, ENOSPC);
}

static void *log_elsewhere(void *unused)
{
    (void)unused;
    sf_log(SF_LOG_INFO, "no rank here");
    sf_log_rank(1);
    sf_log(SF_LOG_INFO, "rank here");
    return NULL;
}

static void test_rank_per_thread(void)
{
    pthread_t thread;
    capture_start();
    sf_log_rank(0);
    SF_CHECK_INT(pthread_create(&thread, NULL, log_elsewhere, NULL), 0);
    pthread_join(thread, NULL);
    SF_CHECK_STR(captured(), "sheaf: info: no rank here\n");
    SF_CHECK_STR(captured(), "[rank 1] sheaf: info: rank here\n");
    sf_log(SF_LOG_INFO, "x");
    SF_CHECK_STR(captured(), "[rank 0] sheaf: info: x\n");
    capture_stop();
}

static void test_level_names(void)
{
    static const char *const names[] = { "error", "warn", "info", "debug", "trace" };
    enum sf_log_level level = SF_LOG_ERROR;
    for (int i = 0; i < 5; i++) {
        SF_CHECK_OK(sf_log_level_parse(names[i], &level));
        SF_CHECK_INT(level, i);
    }
    SF_CHECK_OK(sf_log_level_parse("warning", &level));
    SF_CHECK_INT(level, SF_LOG_WARN);
    SF_CHECK_FAILS(sf_log_level_parse("loud", &level), SF_INVALID);
    SF_CHECK_STR(sf_error_text(),
                 "log level is 'loud'; allowed: error, warn, info, debug, trace");
    SF_CHECK_INT(level, SF_LOG_WARN);
}

static const struct sf_test tests[] = {
    { "text", test_text },
    { "outside bytes", test_outside_bytes },
    { "json", test_json },
    { "long", test_long },
    { "nobody reads", test_nobody_reads },
    { "rank per thread", test_rank_per_thread },
    { "level names", test_level_names },
    { NULL, NULL }
};
SF_TEST_MAIN("base_log", tests)
