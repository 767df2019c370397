/* tests/unit/coordinator/progress.c: the one line that people watch.
 *
 * Its numbers from given totals, the ratio from what runs where that is known; of a resumed run,
 * rate and time left are of what this run does; on a terminal a bar where there is room for it,
 * never more characters than columns, in logs the whole line without one; nothing to divide by is
 * no trouble; a stderr that is a file gets no bar and no carriage return. */
#include "coordinator/progress.h"

#include <stdlib.h>
#include <unistd.h>

#include "tests/check.h"

static const struct sf_run_summary half = {.answered = 3, .errors = 1, .output_tokens = 900,
                                           .sampled_tokens = 250, .kv_bytes_exact = 300,
                                           .kv_bytes_stored = 100};
static const struct sf_progress_now two = {.running = 2, .kv_use = 0.421}, none = {0};

static void numbers(void)
{
    struct sf_progress p = {.total = 8};
    char line[SF_PROGRESS_BYTES];
    sf_progress_line(&p, &half, &two, 10.0, 0, line);
    SF_CHECK_STR(line, "4/8 records, 2 running, 25.0 output tok/s, KV 42 %, ratio 3.00, "
                 "10 s left");
    p.before = 3;                       /* one of the four was answered in these 10 s */
    sf_progress_line(&p, &half, &two, 10.0, 0, line);
    SF_CHECK_STR(line, "4/8 records, 2 running, 25.0 output tok/s, KV 42 %, ratio 3.00, "
                 "40 s left");
    p.before = 4;
    sf_progress_line(&p, &half, &two, 10.0, 0, line);
    SF_CHECK(strstr(line, ", ? s left") != NULL);
    p.before = 0;
    const struct sf_run_summary nothing = {0};
    sf_progress_line(&p, &nothing, &none, 0.0, 0, line);
    SF_CHECK_STR(line, "0/8 records, 0 running, 0.0 output tok/s, KV 0 %, ratio 1.00, "
                 "? s left");
    /* What runs says more than what is finished, and is all there is while nothing is. */
    const struct sf_progress_now live = {.running = 2, .kv_use = 0.421, .kv_bytes_stored = 40,
                                         .kv_bytes_exact = 50};
    sf_progress_line(&p, &half, &live, 10.0, 0, line);
    SF_CHECK(strstr(line, ", ratio 1.25, ") != NULL);
    sf_progress_line(&p, &nothing, &live, 10.0, 0, line);
    SF_CHECK(strncmp(line, "0/8 records, 2 running, ", 24) == 0);
    SF_CHECK(strstr(line, ", ratio 1.25, ") != NULL);
    p.total = 0;
    p.bar = 1;
    sf_progress_line(&p, &nothing, &none, 0.0, 200, line);
    SF_CHECK(strncmp(line, "[########################] 0/0, ", 32) == 0);
}

static void bars(void)
{
    struct sf_progress p = {.total = 8, .bar = 1};
    static const char text[] = "4/8, 2 running, 25.0 tok/s, KV 42 %, ratio 3.00, 10 s left";
    char line[SF_PROGRESS_BYTES];
    sf_progress_line(&p, &half, &two, 10.0, 120, line);
    SF_CHECK(strncmp(line, "[############............] 4/8, 2 running, ", 42) == 0);
    for (int columns = 2; columns <= SF_PROGRESS_BYTES; columns++) {
        sf_progress_line(&p, &half, &two, 10.0, columns, line);
        SF_CHECK(strlen(line) < (size_t)columns);
        SF_CHECK((line[0] == '[') == (columns >= (int)sizeof text + 7));
        SF_CHECK((strstr(line, text) != NULL) == (columns >= (int)sizeof text));
    }
}

/* The same calls as a run makes, with stderr in a file. */
static void not_a_terminal(void)
{
    char name[] = "/tmp/sheaf-progress-XXXXXX", text[4096] = "";
    int file = mkstemp(name), kept = dup(STDERR_FILENO);
    struct sf_progress p;
    if (file < 0 || kept < 0 || dup2(file, STDERR_FILENO) < 0) abort();
    setenv("TERM", "xterm", 1);
    sf_progress_start(&p, 8, 2);
    sf_progress_show(&p, &half, &two);              /* too early: nothing */
    p.shown_ns -= 11000000000;
    sf_progress_show(&p, &half, &two);
    sf_progress_show(&p, &half, &two);
    sf_progress_clear(&p);
    sf_progress_end(&p, &half, 0);
    sf_progress_end(&p, &half, 1);
    dup2(kept, STDERR_FILENO);
    SF_CHECK(pread(file, text, sizeof text - 1, 0) > 0);
    close(file);
    close(kept);
    unlink(name);
    SF_CHECK(strchr(text, '\r') == NULL && strchr(text, '\033') == NULL);
    int lines = 0;
    for (const char *c = text; *c != '\0'; c++) lines += *c == '\n';
    SF_CHECK_INT(lines, 8);
    SF_CHECK(strncmp(text, "sheaf: info: 4/8 records, 2 running, ", 37) == 0);
    SF_CHECK(strstr(text, "3 records answered, 1 with errors (2 of them before), in ") != NULL);
    const char *stopped = strstr(text, "stopped early, with 4 of 8 records to do");
    SF_CHECK(stopped != NULL && strstr(stopped + 1, "stopped early") == NULL);
}

/* Once for each line, a second before it falls due; for a bar, once a second. */
static void asks(void)
{
    struct sf_progress p;
    sf_progress_start(&p, 8, 0);
    p.bar = 0;
    SF_CHECK(!sf_progress_asks(&p));
    p.shown_ns -= 9200000000;
    p.asked_ns -= 9200000000;
    SF_CHECK(sf_progress_asks(&p));
    SF_CHECK(!sf_progress_asks(&p));
    p.bar = 1;
    SF_CHECK(!sf_progress_asks(&p));
    p.asked_ns -= 1100000000;
    SF_CHECK(sf_progress_asks(&p));
    SF_CHECK(!sf_progress_asks(&p));
}

static const struct sf_test tests[] = {
    {"numbers", numbers},
    {"bars", bars},
    {"asks", asks},
    {"not a terminal", not_a_terminal},
    {NULL, NULL}};
SF_TEST_MAIN("progress", tests)
