/* base/rng.h: counter-based random numbers (Philox 4x32-10; Salmon et al., "Parallel random
 * numbers: as easy as 1, 2, 3", SC 2011).  A number is a pure function of (key, stream, index), so
 * nothing depends on who draws it, or when.  Checked against the paper's known-answer vectors. */
#ifndef SHEAF_BASE_RNG_H
#define SHEAF_BASE_RNG_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

void sf_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);
/* 64 random bits of (key, stream, index). */
uint64_t sf_rng_u64(uint64_t key, uint64_t stream, uint64_t index);
/* Uniform in [0, 1), 53 bits. */
double sf_rng_uniform(uint64_t key, uint64_t stream, uint64_t index);
/* Standard normal; takes the uniform numbers 2 index and 2 index + 1. */
double sf_rng_normal(uint64_t key, uint64_t stream, uint64_t index);
/* 64-bit FNV-1a of bytes, finished by a mixer; for custom_id. */
uint64_t sf_hash64(const void *bytes, size_t count);

SF_C_END
#endif
