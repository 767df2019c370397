/* tests/unit/comm/cases.h: what several ranks do together, written once for both backends.
 *
 * A case is a function that every rank of a world runs at the same time.  Two programs run the
 * whole table: loopback.c (ranks are threads; a CUnit program) and ranks.c (ranks are processes
 * under mpirun; started by tests/mpi/comm.sh).  CUnit belongs to one thread, so a rank keeps its
 * first failure in words of its own and its driver reports them. */
#ifndef SHEAF_TESTS_UNIT_COMM_CASES_H
#define SHEAF_TESTS_UNIT_COMM_CASES_H
#include <stdint.h>
#include "comm/comm.h"

struct sf_ranked {
    struct sf_comm *world;
    int32_t rank, size;
    int32_t failures;
    char words[480];                    /* of the first failure */
};

struct sf_case { const char *name; int32_t ranks_min; void (*run)(struct sf_ranked *); };
/* Each ends with a NULL name. */
extern const struct sf_case sf_cases_message[], sf_cases_group[], sf_cases_reduce[],
    sf_cases_link[];

/* The cases of all tables, in one order; NULL after the last. */
const struct sf_case *sf_case_at(int32_t index);
void sf_case_run(const struct sf_case *, struct sf_ranked *);
/* On ranks as processes: all cases that `at` has, up to NULL; rank 0 prints each failure and one
 * last line of counts.  0: none has failed. */
int sf_cases_print(struct sf_comm *world, const struct sf_case *(*at)(int32_t index));
void sf_ranked_fail(struct sf_ranked *, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Bytes that tell messages apart: a function of the seed and the place, none of them constant. */
void sf_fill(void *data, size_t bytes, uint32_t seed);
int  sf_is_filled(const void *data, size_t bytes, uint32_t seed);

#define R_CHECK(t, condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) sf_ranked_fail((t), __FILE__, __LINE__, "%s", #condition);               \
    } while (0)
#define R_INT(t, actual, expected)                                                                 \
    do {                                                                                           \
        long long r_a_ = (long long)(actual), r_e_ = (long long)(expected);                        \
        if (r_a_ != r_e_)                                                                          \
            sf_ranked_fail((t), __FILE__, __LINE__, "%s is %lld, expected %lld", #actual, r_a_,    \
                           r_e_);                                                                  \
    } while (0)
#define R_STATUS(t, call, expected)                                                                \
    do {                                                                                           \
        sf_status r_s_ = (call);                                                                   \
        if (r_s_ != (expected))                                                                    \
            sf_ranked_fail((t), __FILE__, __LINE__, "%s gave '%s' (%s), expected '%s'", #call,     \
                           sf_status_name(r_s_), sf_error_text(), sf_status_name(expected));       \
    } while (0)
#define R_SAYS(t, text)                                                                            \
    do {                                                                                           \
        if (strstr(sf_error_text(), (text)) == NULL)                                               \
            sf_ranked_fail((t), __FILE__, __LINE__, "\"%s\" is not in \"%s\"", (text),             \
                           sf_error_text());                                                       \
    } while (0)
/* Leaves the case; the other ranks notice by their deadline at the latest. */
#define R_MUST(t, call)                                                                            \
    do {                                                                                           \
        sf_status r_s_ = (call);                                                                   \
        if (r_s_ != SF_OK) {                                                                       \
            sf_ranked_fail((t), __FILE__, __LINE__, "%s: %s: %s", #call, sf_status_name(r_s_),     \
                           sf_error_text());                                                       \
            return;                                                                                \
        }                                                                                          \
    } while (0)
#endif
