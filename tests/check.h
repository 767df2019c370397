/* tests/check.h: checks that print both values when they fail, on top of CUnit, and the one main
 * of every test program.
 *
 * A test program lists its tests and calls SF_TEST_MAIN; it prints CUnit's failures and one last
 * line, "NAME: N passed, N failed, N skipped".  A test that this machine cannot run calls
 * SF_SKIP("reason") and returns. */
#ifndef SHEAF_TESTS_CHECK_H
#define SHEAF_TESTS_CHECK_H
#include <CUnit/CUnit.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "base/status.h"

struct sf_test { const char *name; void (*run)(void); };
int sf_test_main(const char *program, const struct sf_test *tests, int argc, char **argv);
void sf_test_fail(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void sf_test_skip(const char *reason);

/* Path of a file under tests/data, in a buffer that lives until the next call but three. */
const char *sf_test_data(const char *name);
/* Path of the real model, or NULL (then the test skips): models/ of the source tree. */
const char *sf_test_model(void);

#define SF_TEST_MAIN(program, tests)                                                               \
    int main(int argc, char **argv) { return sf_test_main((program), (tests), argc, argv); }
#define SF_SKIP(reason) do { sf_test_skip(reason); return; } while (0)

#define SF_CHECK(condition)                                                                        \
    do {                                                                                           \
        if (condition) { CU_PASS(#condition) }                                                     \
        else sf_test_fail(__FILE__, __LINE__, "%s", #condition);                                   \
    } while (0)
#define SF_CHECK_INT(actual, expected)                                                             \
    do {                                                                                           \
        long long sf_a_ = (long long)(actual), sf_e_ = (long long)(expected);                      \
        if (sf_a_ == sf_e_) { CU_PASS(#actual) }                                                   \
        else sf_test_fail(__FILE__, __LINE__, "%s is %lld, expected %lld", #actual, sf_a_, sf_e_); \
    } while (0)
#define SF_CHECK_NEAR(actual, expected, bound)                                                     \
    do {                                                                                           \
        double sf_a_ = (double)(actual), sf_e_ = (double)(expected), sf_b_ = (double)(bound);      \
        if (fabs(sf_a_ - sf_e_) <= sf_b_) { CU_PASS(#actual) }                                     \
        else sf_test_fail(__FILE__, __LINE__, "%s is %.9g, expected %.9g within %.3g", #actual,    \
                          sf_a_, sf_e_, sf_b_);                                                    \
    } while (0)
#define SF_CHECK_STR(actual, expected)                                                             \
    do {                                                                                           \
        const char *sf_a_ = (actual), *sf_e_ = (expected);                                         \
        if (strcmp(sf_a_, sf_e_) == 0) { CU_PASS(#actual) }                                        \
        else sf_test_fail(__FILE__, __LINE__, "%s is \"%s\", expected \"%s\"", #actual, sf_a_,     \
                          sf_e_);                                                                  \
    } while (0)
#define SF_CHECK_OK(call)                                                                          \
    do {                                                                                           \
        sf_status sf_s_ = (call);                                                                  \
        if (sf_s_ == SF_OK) { CU_PASS(#call) }                                                     \
        else sf_test_fail(__FILE__, __LINE__, "%s: %s: %s", #call, sf_status_name(sf_s_),          \
                          sf_error_text());                                                        \
    } while (0)
/* The same, and leaves the test. */
#define SF_MUST(call)                                                                              \
    do {                                                                                           \
        sf_status sf_s_ = (call);                                                                  \
        if (sf_s_ != SF_OK) {                                                                      \
            sf_test_fail(__FILE__, __LINE__, "%s: %s: %s", #call, sf_status_name(sf_s_),           \
                         sf_error_text());                                                         \
            return;                                                                                \
        }                                                                                          \
    } while (0)
#define SF_CHECK_FAILS(call, status)                                                               \
    do {                                                                                           \
        sf_status sf_s_ = (call);                                                                  \
        if (sf_s_ == (status)) { CU_PASS(#call) }                                                  \
        else sf_test_fail(__FILE__, __LINE__, "%s gave '%s', expected '%s'", #call,                \
                          sf_status_name(sf_s_), sf_status_name(status));                          \
    } while (0)
#endif
