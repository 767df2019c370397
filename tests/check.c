/* tests/check.c: the main of every test program, over CUnit's registry. */
#include "tests/check.h"

#include <CUnit/Basic.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

static int skipped;
static const char *current = "";

void sf_test_skip(const char *reason)
{
    skipped++;
    printf("  skipped: %s: %s\n", current, reason);
}

void sf_test_fail(const char *file, int line, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    /* CUnit keeps the pointer of the condition only while it copies it. */
    CU_assertImplementation(CU_FALSE, (unsigned)line, text, file, "", CU_FALSE);
}

const char *sf_test_data(const char *name)
{
    static char path[4][1024];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/tests/data/%s", SHEAF_SOURCE_DIR, name);
    return path[turn];
}

const char *sf_test_model(void)
{
    static char path[1024];
    snprintf(path, sizeof path, "%s/models/smollm2-135m-instruct.gguf", SHEAF_SOURCE_DIR);
    return access(path, R_OK) == 0 ? path : NULL;
}

static void started(const CU_pTest test, const CU_pSuite suite)
{
    (void)suite;
    current = test->pName;
}

int sf_test_main(const char *program, const struct sf_test *tests, int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (CU_initialize_registry() != CUE_SUCCESS) return 2;
    CU_pSuite suite = CU_add_suite(program, NULL, NULL);
    if (suite == NULL) return 2;
    int count = 0;
    for (const struct sf_test *test = tests; test->name != NULL; test++) {
        if (argc > 1 && strcmp(argv[1], test->name) != 0) continue;    /* one test by name */
        if (CU_add_test(suite, test->name, test->run) == NULL) return 2;
        count++;
    }
    CU_basic_set_mode(CU_BRM_SILENT);
    CU_set_test_start_handler(started);
    if (CU_run_all_tests() != CUE_SUCCESS) return 2;
    for (const CU_FailureRecord *f = CU_get_failure_list(); f != NULL; f = f->pNext)
        printf("  FAILED %s: %s:%u: %s\n", f->pTest != NULL ? f->pTest->pName : program,
               f->strFileName, f->uiLineNumber, f->strCondition);
    int failed = (int)CU_get_number_of_tests_failed();
    printf("%s: %d passed, %d failed, %d skipped\n", program, count - failed - skipped, failed,
           skipped);
    CU_cleanup_registry();
    return failed > 0 || count == 0;
}
