/* The words of an error are kept for the thread that failed and for no other, survive being passed
 * on, may be built from the words before them, and each status has a name and an exit code. */
#include <pthread.h>
#include <string.h>

#include "base/status.h"
#include "tests/check.h"

static sf_status inner(void)
{
    return SF_FAIL(SF_FORMAT, "line %d is torn", 7);
}

static int went_on;

static sf_status outer(void)
{
    SF_TRY(inner());
    went_on = 1;
    return SF_OK;
}

static void test_words(void)
{
    went_on = 0;
    SF_CHECK_FAILS(outer(), SF_FORMAT);
    SF_CHECK(!went_on);
    SF_CHECK_STR(sf_error_text(), "line 7 is torn");
    SF_CHECK_FAILS(SF_FAIL(SF_IO, "a.jsonl: %s", sf_error_text()), SF_IO);
    SF_CHECK_STR(sf_error_text(), "a.jsonl: line 7 is torn");
}

static void test_long_words_are_cut(void)
{
    char many[4000];
    memset(many, 'x', sizeof many - 1);
    many[sizeof many - 1] = '\0';
    SF_CHECK_FAILS(SF_FAIL(SF_INVALID, "%s", many), SF_INVALID);
    SF_CHECK_INT(strspn(sf_error_text(), "x"), strlen(sf_error_text()));
    SF_CHECK(strlen(sf_error_text()) > 500 && strlen(sf_error_text()) < sizeof many - 1);
}

static void *fail_elsewhere(void *first_text)
{
    *(size_t *)first_text = strlen(sf_error_text());
    (void)SF_FAIL(SF_LOST, "other thread");
    return NULL;
}

static void test_per_thread(void)
{
    pthread_t thread;
    size_t first_text = 99;
    (void)SF_FAIL(SF_IO, "this thread");
    SF_CHECK_INT(pthread_create(&thread, NULL, fail_elsewhere, &first_text), 0);
    pthread_join(thread, NULL);
    SF_CHECK_INT(first_text, 0);
    SF_CHECK_STR(sf_error_text(), "this thread");
}

/* The codes of the command line: 0 done, 1 internal, 2 refused before the start, 75 stopped. */
static void test_exit_codes(void)
{
    static const int expected[] = { 0, 2, 2, 2, 2, 2, 2, 1, 1, 75, 1 };
    for (int status = SF_OK; status <= SF_INTERNAL; status++) {
        SF_CHECK_INT(sf_status_exit_code((sf_status)status), expected[status]);
        for (int other = SF_OK; other < status; other++)
            SF_CHECK(strcmp(sf_status_name((sf_status)status), sf_status_name((sf_status)other)));
    }
}

static const struct sf_test tests[] = {
    { "words", test_words },
    { "long words are cut", test_long_words_are_cut },
    { "per thread", test_per_thread },
    { "exit codes", test_exit_codes },
    { NULL, NULL }
};
SF_TEST_MAIN("base_status", tests)
