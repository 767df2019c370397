/* tests/unit/link/cases.h: what several ranks do over links, written once for ranks as threads
 * (threads.c, a CUnit program) and as processes (ranks.c, started by tests/mpi/link.sh).  Devices
 * are `cuda-emulated`, so every link but those that ask for `staged` is NCCL's, under emulation. */
#ifndef SHEAF_TESTS_UNIT_LINK_CASES_H
#define SHEAF_TESTS_UNIT_LINK_CASES_H
#include "comm/link.h"
#include "tests/unit/comm/cases.h"

/* Ends with a NULL name. */
extern const struct sf_case sf_cases_nccl[];

/* One rank's device and a block on it. */
struct linked {
    struct sf_ranked *t;
    struct sf_device *device;
    float *x;                           /* device */
    size_t count;
};
sf_status sf_linked_open(struct sf_ranked *, size_t count, struct linked *out);
void      sf_linked_close(struct linked *);
/* Floats of a rank: of very different sizes, so that the order of a sum shows in its bits. */
void      sf_linked_numbers(float *x, size_t count, uint32_t seed, int32_t rank);

#endif
