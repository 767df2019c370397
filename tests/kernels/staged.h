/* tests/kernels/staged.h: a device that works on host memory, over one that does not.
 *
 * The cases of tests/kernels give every backend plain host arrays.  For a backend with memory of
 * its own, each entry is wrapped: the arrays are carried to blocks of the device that are exactly
 * as large as the entry may touch, the entry is called, and what it may change is carried back. */
#ifndef SHEAF_TESTS_KERNELS_STAGED_H
#define SHEAF_TESTS_KERNELS_STAGED_H
#include "kernels/device.h"

/* Opens the backend `name` behind a wrapper; under emulation its kernels run with the last thread
 * of a block first if `reversed`.  Closed by staged_close. */
sf_status staged_open(const char *name, int reversed, struct sf_device **device_out);
void      staged_close(struct sf_device *);
/* A symbol of the backend's shared object, or NULL. */
void     *staged_symbol(struct sf_device *, const char *name);

#endif
