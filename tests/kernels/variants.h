/* tests/kernels/variants.h: every fast backend of this machine, to be held against ref. */
#ifndef SHEAF_TESTS_KERNELS_VARIANTS_H
#define SHEAF_TESTS_KERNELS_VARIANTS_H
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include "kernels/device.h"

enum { VARIANTS_MAX = 16, VARIANT_ROWS_MAX = 2048 };

/* A device that is under test; `text` names backend, instruction set and threads. */
struct variant {
    char text[48];
    struct sf_device *device;
};

/* Opens ref, and cpu for each instruction set up to this machine's (under the thread sanitizer for
 * that alone), with 1, 2 and 3 threads.
 * SHEAF_EMULATED: ref, and CUDA under emulation with the threads of a block in either order.
 * SHEAF_GPU: ref, and CUDA; where that does not open the program ends, having skipped its tests. */
int  variants_open(struct variant *variants, struct sf_device **ref_out);
void variants_close(struct variant *variants, int count, struct sf_device *ref);

/* Whether case `number` is left out: where it takes long, under emulation and the thread sanitizer,
 * all but one in `of` are; elsewhere and at SHEAF_TEST_LEVEL=long none are. */
int variants_spare(int number, int of);
#if defined(SHEAF_EMULATED)
enum { VARIANTS_EMULATED = 1 };
#else
enum { VARIANTS_EMULATED = 0 };
#endif
/* Arrays are carried to a device and back (staged.h): times and the host's memory say nothing. */
#if defined(SHEAF_EMULATED) || defined(SHEAF_GPU)
enum { VARIANTS_STAGED = 1 };
#else
enum { VARIANTS_STAGED = 0 };
#endif

/* Uniform in [-amplitude, amplitude), a fixed function of stream and place. */
void random_fill(float *out, size_t count, float amplitude, uint64_t stream);
/* Whole number in [0, below). */
int32_t random_below(int32_t below, uint64_t stream, uint64_t index);

/* Queries that products in bf16 need not round: numbers of bf16, and a scale that is a power of
 * two near 1 / sqrt(k_dim).  What such products still round are the weights of values of bf16:
 * outputs change by at most this share of the greatest value, 0 on a device that makes none. */
void   queries_fill(float *out, size_t count, float amplitude, uint64_t stream);
float  scale_exact(int32_t k_dim);
double weights_rounding(const struct sf_device *);

/* For figures: a clock in seconds, such as CLOCK_PROCESS_CPUTIME_ID, in which other work on the
 * machine hardly shows; the middle one of `count` times, which are put in order. */
double clock_seconds(clockid_t);
double median_of(double *taken, int count);

/* Greatest |a - b| less the bound, over rows of `cols`; both may hold equal infinities.  Fails the
 * running test once, with the place and both values, if any difference is above `bound`. */
void compare(const char *variant, const char *what, const float *actual, const float *expected,
             size_t rows, size_t cols, double bound);
/* The same bits; names the first place that differs. */
void compare_bits(const char *variant, const char *what, const void *actual, const void *expected,
                  size_t bytes);

#endif
