/* kernels/cuda/launch.h: the few words in which kernels are written, so that nvcc compiles them for
 * a GPU and g++ for the emulation (tests/emulation), from the same source.
 *
 *   sf_global<T>   T * in device memory: x[i], x + n, sf_as<U>(x) for another element type
 *   sf_shared<T>   T * in shared memory, the same
 *   sf_aligned(p, bytes)               whether the address is a multiple of bytes
 *   SF_SHARED(T, name, count);         a static array of the block
 *   SF_SHARED_DYNAMIC(T, name);        the array whose bytes the launch names
 *   SF_UNROLL                          in front of a loop of constant length
 *   SF_LAUNCH(kernel, blocks, threads, shared_bytes, stream, arguments...)
 *
 * Under nvcc both pointers are plain ones.  The emulation sees every x[i], so a kernel uses nothing
 * else for loads and stores.  Warp operations name the full mask. */
#ifndef SHEAF_KERNELS_CUDA_LAUNCH_H
#define SHEAF_KERNELS_CUDA_LAUNCH_H
#include <cuda_runtime.h>

#define SF_FULL_MASK 0xffffffffu

#if defined(__CUDACC__)

template <class T> using sf_global = T *;
template <class T> using sf_shared = T *;
template <class U, class T> __host__ __device__ __forceinline__ U *sf_as(T *p)
{
    return reinterpret_cast<U *>(p);
}
template <class T> __device__ __forceinline__ bool sf_aligned(const T *p, size_t bytes)
{
    return reinterpret_cast<size_t>(p) % bytes == 0;
}
#define SF_UNROLL _Pragma("unroll")
#define SF_SHARED(type, name, count) __shared__ type name[count]
#define SF_SHARED_DYNAMIC(type, name)                                                              \
    extern __shared__ float4 sf_dynamic_[];                                                        \
    type *name = reinterpret_cast<type *>(sf_dynamic_)
#define SF_LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...)                              \
    do {                                                                                           \
        kernel<<<(blocks), (threads), (shared_bytes), (stream)>>>(__VA_ARGS__);                    \
        SF_CUDA_MUST(cudaGetLastError());                                                          \
    } while (0)

#else

template <class T> using sf_global = emu::global<T>;
template <class T> using sf_shared = emu::shared<T>;
template <class U, class T, class S> emu::pointer<U, S> sf_as(emu::pointer<T, S> p)
{
    return emu::as<U>(p);
}
template <class T, class S> bool sf_aligned(emu::pointer<T, S> p, size_t bytes)
{
    return (size_t)p.at % bytes == 0;
}
#define SF_UNROLL
#define SF_SHARED(type, name, count)                                                               \
    static const char name##_key_ = 0;                                                             \
    sf_shared<type> name((type *)emu::shared_static(&name##_key_, (count) * sizeof(type)))
#define SF_SHARED_DYNAMIC(type, name) sf_shared<type> name((type *)emu::shared_dynamic())
#define SF_LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...)                              \
    emu::launch(#kernel, dim3(blocks), dim3(threads), (shared_bytes), (stream), kernel, __VA_ARGS__)

#endif
#endif
