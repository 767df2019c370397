/* What the files of the test program test_run share: run.c, run_random.c. */
#ifndef SHEAF_TESTS_RUN_TESTS_H
#define SHEAF_TESTS_RUN_TESTS_H
#include "tests/unit/coordinator/made_run.h"

void run_disturbed(void);               /* a test */
#endif
