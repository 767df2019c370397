/* kernels/cuda/tensor.h: products of small tiles by the tensor cores.
 *
 *   d [16][8] += a [16][16] b [16][8], a and b of 16-bit elements, d in f32, spread over a warp:
 *   thread t, with r = t / 4 and q = t % 4, holds pairs of neighbours, the first in the low half
 *
 *     a[0]  row r,     columns 2q, 2q + 1        b[0]  rows 2q, 2q + 1, column r
 *     a[1]  row r + 8, the same                  b[1]  rows 2q + 8, 2q + 9, the same
 *     a[2]  row r,     columns 2q + 8, 2q + 9    d[0], d[1]  row r,     columns 2q, 2q + 1
 *     a[3]  row r + 8, the same                  d[2], d[3]  row r + 8, the same
 *
 * An element of d is made from its row of a and its column of b alone, in an order that does not
 * depend on which row and column they are.  Under emulation the warp meets and the product is taken
 * from everyone's registers. */
#ifndef SHEAF_KERNELS_CUDA_TENSOR_H
#define SHEAF_KERNELS_CUDA_TENSOR_H
#include "kernels/cuda/block.h"

#if defined(__CUDACC__)

template <enum sf_dtype D>
static __device__ __forceinline__ void sf_mma(float (&d)[4], const sf_quad &a, uint32_t b0,
                                              uint32_t b1)
{
    if (D == SF_BF16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b0), "r"(b1));
}

/* Two elements of D, the first in the low half. */
template <enum sf_dtype D>
static __device__ __forceinline__ uint32_t sf_pack_two(float low, float high)
{
    uint32_t packed;
    if (D == SF_BF16) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

#else

#define sf_mma emu_mma_at{ EMU_SITE }.template run
struct emu_mma_at {
    emu::site at;
    template <enum sf_dtype D>
    void run(float (&d)[4], const sf_quad &a, uint32_t b0, uint32_t b1) const
    {
        const uint32_t b[2] = { b0, b1 };
        emu::mma(at, D == SF_BF16 ? sf_bf16_to_f32 : sf_f16_to_f32, d, a.word, b);
    }
};

template <enum sf_dtype D> static inline uint32_t sf_pack_two(float low, float high)
{
    uint32_t l = D == SF_BF16 ? sf_f32_to_bf16(low) : sf_f32_to_f16(low);
    uint32_t h = D == SF_BF16 ? sf_f32_to_bf16(high) : sf_f32_to_f16(high);
    return l | h << 16;
}

#endif

template <enum sf_dtype D>
static __device__ __forceinline__ float sf_widen(uint16_t bits)
{
    return D == SF_BF16 ? sf_bf16_widen(bits) : sf_f16_widen(bits);
}

/* The low halves of two words side by side, and the high ones. */
static __device__ __forceinline__ uint32_t sf_lows(uint32_t a, uint32_t b)
{
    return (a & 0xffffu) | b << 16;
}
static __device__ __forceinline__ uint32_t sf_highs(uint32_t a, uint32_t b)
{
    return a >> 16 | (b & 0xffff0000u);
}

#endif
