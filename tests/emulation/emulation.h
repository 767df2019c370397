/* tests/emulation/emulation.h: how a test drives the emulation of CUDA, and what it finds.
 *
 * A defect is printed as one line, "cuda-emulated: KIND: what, where", and ends the process by
 * abort().  KIND is one of
 *
 *   out of bounds         an access or a copy outside its allocation, or outside shared memory
 *   use after free        of device memory
 *   misaligned            an address that is no multiple of the size of the access
 *   uninitialised shared  shared memory that is read before anyone wrote it, or between an
 *                         asynchronous copy to it and the wait for that copy
 *   race                  two threads touch the same place, one writes, and no barrier between;
 *                         or a place is written to which a copy is under way
 *   divergent barrier     threads of a block wait at different barriers, or not all can come
 *   divergent warp        lanes named by a mask that do not come to the operation
 *   host memory           a kernel is given a host address
 *   device memory         the host, or a kernel past its accessors, uses a device address
 *   bad launch            a grid, a block or shared memory of a size that no GPU takes
 *   bad call              arguments that the CUDA runtime refuses or that make no sense
 *   mismatch              ranks of a communicator that do not agree on what they exchange
 *   stuck                 a call that has no deadline waits for a rank that does not come
 *   leak                  memory or a communicator that is left when the process ends
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
/* Copies from hosts to a device that were asked for since the start. */
EMU_PUBLIC int64_t emu_uploads(void);
/* Waits of hosts for a device since the start: calls that return when work is done which was still
 * to do, be it by a synchronisation, a free, an event that is asked until it has passed, or a copy
 * from the device into memory that is not pinned. */
EMU_PUBLIC int64_t emu_waits(void);

/* The number of the GPU that the calling thread has on this machine; -1 (as at the start): the one
 * of cudaSetDevice among those of CUDA_VISIBLE_DEVICES. */
EMU_PUBLIC void emu_set_gpu(int number);
/* A stream with work for several ranks runs by itself once that work has been queued for so long,
 * as a GPU does; -1: only when it must.  20 at the start. */
EMU_PUBLIC void emu_set_idle_ms(int ms);
/* How long a call without a deadline waits for another rank before it is `stuck`: 60,000 ms. */
EMU_PUBLIC void emu_set_patience_ms(int ms);
/* The next question after a communicator's state finds this ncclResult_t. */
EMU_PUBLIC void emu_nccl_fail(int result);
/* Counting, off at the start: 1 begins anew, 0 stops and keeps what was counted.  Of a kernel since
 * then: sectors (32 bytes) of device memory that its warps asked for, instruction by instruction,
 * and the bytes of them that were used; accesses of warps to shared memory and the turns that they
 * lost to bank conflicts; and by class the instructions that its warps issued, each once for the
 * lanes that came to it together.  Caches are not counted: what two instructions read is read
 * twice.  Of instructions only what goes through the emulation is seen: not arithmetic, compares,
 * branches, address computation or conversions, so nothing here is a share of all instructions.
 * A special function is a call; what nvcc makes of it (a sine of any angle is many) is not known.
 * An asynchronous copy counts among the sectors read and the accesses to shared memory, but is
 * neither a load nor a store. */
struct emu_count {
    char kernel[64];                    /* as the launch names it */
    int64_t launches, blocks;
    int64_t read_sectors, read_bytes, written_sectors, written_bytes;
    int64_t shared, conflicts;          /* shared: loads, stores, atomics, copies together */
    int64_t loads, stores, atomics;     /* of device memory; atomics: of shared memory too */
    int64_t shared_loads, shared_stores;
    int64_t copies, copy_waits;         /* asynchronous; copy_waits: commits and waits */
    int64_t products;                   /* of the tensor cores, m16n8k16 */
    int64_t shuffles, votes;
    int64_t barriers, warp_barriers;    /* __syncthreads once a warp; __syncwarp */
    int64_t special;                    /* expf, exp2f, logf, log2f, sqrtf, sinf, cosf */
};
EMU_PUBLIC void emu_set_counting(int on);
/* At most `most` kernels, in the order of their first launch; how many. */
EMU_PUBLIC int emu_counts(struct emu_count *out, int most);

#ifdef __cplusplus
}
#endif
#endif
