/* tests/emulation/emulation.h: how a test drives the emulation of CUDA, and what it finds.
 *
 * A defect is printed as one line, "cuda-emulated: KIND: what, where", and ends the process by
 * abort().  KIND is one of
 *
 *   out of bounds         an access or a copy outside its allocation, or outside shared memory
 *   use after free        of device memory
 *   misaligned            an address that is no multiple of the size of the access
 *   uninitialised shared  shared memory that is read before anyone wrote it
 *   race                  two threads touch the same place, one writes, and no barrier between
 *   divergent barrier     threads of a block wait at different barriers, or not all can come
 *   divergent warp        lanes named by a mask that do not come to the operation
 *   host memory           a kernel is given a host address
 *   device memory         the host, or a kernel past its accessors, uses a device address
 *   bad launch            a grid, a block or shared memory of a size that no GPU takes
 *   bad call              arguments that the CUDA runtime refuses or that make no sense
 *   leak                  device or pinned memory that is left when the process ends
 *
 * A race is seen where accesses begin: two threads that reach into each other's bytes by accesses
 * of different size and begin may pass.  Between blocks of one launch nothing is ordered. */
#ifndef SHEAF_TESTS_EMULATION_EMULATION_H
#define SHEAF_TESTS_EMULATION_EMULATION_H
#include <stdint.h>

#if defined(__GNUC__)
#define EMU_PUBLIC __attribute__((visibility("default")))
#else
#define EMU_PUBLIC
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* 1 (as at the start): every access is checked; 0: only addresses are translated. */
EMU_PUBLIC void emu_set_checks(int on);
/* 1: the last thread of a block runs first. */
EMU_PUBLIC void emu_set_reversed(int on);
/* Kernels that have run since the start. */
EMU_PUBLIC int64_t emu_launches(void);

#ifdef __cplusplus
}
#endif
#endif
