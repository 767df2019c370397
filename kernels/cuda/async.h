/* kernels/cuda/async.h: copies from device to shared memory that a thread sends for and does not
 * wait for.
 *
 *   sf_copy_send(to, from)   4, 8 or 16 bytes, by the type of the element
 *   sf_copy_commit()         what this thread has sent for since the last commit is a group
 *   sf_copy_wait<N>()        all of its groups but the last N have arrived
 *
 * A place is this thread's to read after the wait, another thread's after a barrier behind it; in
 * between nobody may touch it.  A group may be empty, so that a loop counts groups alike in its
 * last turn.  16 bytes go past the first-level cache.
 *
 * Under emulation a place is full of 0xff, a NaN in every type, and counts as never written, from
 * when it is sent for until its group is waited for. */
#ifndef SHEAF_KERNELS_CUDA_ASYNC_H
#define SHEAF_KERNELS_CUDA_ASYNC_H
#include "kernels/cuda/launch.h"

#if defined(__CUDACC__)

template <class T>
static __device__ __forceinline__ void sf_copy_send(sf_shared<T> to, sf_global<const T> from)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "what cp.async takes");
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    if (sizeof(T) == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                     : : "r"(at), "l"(from) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;"
                     : : "r"(at), "l"(from), "n"(sizeof(T) == 4 ? 4 : 8) : "memory");
}

static __device__ __forceinline__ void sf_copy_commit()
{
    asm volatile("cp.async.commit_group;" : : : "memory");
}

template <int N> static __device__ __forceinline__ void sf_copy_wait()
{
    asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
}

#else

template <class T> static inline void sf_copy_send(sf_shared<T> to, sf_global<const T> from)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "what cp.async takes");
    emu::copy_send(to.at, from.at, sizeof(T));
}

static inline void sf_copy_commit() { emu::copy_commit(); }
template <int N> static inline void sf_copy_wait() { emu::copy_wait(N); }

#endif
#endif
