/* kernels/cuda/block.h: sums and maxima over a warp and a block, and elements of every dtype.
 *
 * A sum over a warp is the butterfly of 16, 8, 4, 2, 1, so its bits depend on the lanes' values
 * alone; over a block, the warps' sums are added in their order.  Every thread gets the result. */
#ifndef SHEAF_KERNELS_CUDA_BLOCK_H
#define SHEAF_KERNELS_CUDA_BLOCK_H
#include "base/dtype.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/launch.h"
#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

enum { SF_WARP = 32 };

/* What one load takes. */
struct alignas(8) sf_two { uint32_t word[2]; };
struct alignas(16) sf_quad { uint32_t word[4]; };
struct alignas(16) sf_quad_f { float word[4]; };

static __device__ __forceinline__ float sf_warp_sum(float value)
{
    for (int bits = SF_WARP / 2; bits > 0; bits /= 2)
        value += __shfl_xor_sync(SF_FULL_MASK, value, bits);
    return value;
}

static __device__ __forceinline__ int32_t sf_warp_count(int32_t value)
{
    for (int bits = SF_WARP / 2; bits > 0; bits /= 2)
        value += __shfl_xor_sync(SF_FULL_MASK, value, bits);
    return value;
}

static __device__ __forceinline__ float sf_warp_max(float value)
{
    for (int bits = SF_WARP / 2; bits > 0; bits /= 2)
        value = fmaxf(value, __shfl_xor_sync(SF_FULL_MASK, value, bits));
    return value;
}

/* `part`: shared, a float for each warp, free again on return. */
static __device__ __forceinline__ float sf_block_sum(float value, sf_shared<float> part)
{
    float sum = sf_warp_sum(value), total = 0;
    if (threadIdx.x % SF_WARP == 0) part[threadIdx.x / SF_WARP] = sum;
    __syncthreads();
    for (unsigned w = 0; w < blockDim.x / SF_WARP; w++) total += part[w];
    __syncthreads();
    return total;
}

static __device__ __forceinline__ float sf_block_max(float value, sf_shared<float> part)
{
    float most = sf_warp_max(value);
    if (threadIdx.x % SF_WARP == 0) part[threadIdx.x / SF_WARP] = most;
    __syncthreads();
    for (unsigned w = 0; w < blockDim.x / SF_WARP; w++) most = fmaxf(most, part[w]);
    __syncthreads();
    return most;
}

/* ---- elements ------------------------------------------------------------------------------- */

static __device__ __forceinline__ float sf_bf16_widen(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static __device__ __forceinline__ uint16_t sf_bf16_narrow(float value)
{
    uint32_t wide;
    memcpy(&wide, &value, sizeof wide);
    if ((wide & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((wide >> 16) | 0x40u);
    return (uint16_t)((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16);
}

static __device__ __forceinline__ float sf_f16_widen(uint16_t bits)
{
#if defined(__CUDACC__)
    return __half2float(__ushort_as_half(bits));
#else
    return sf_f16_to_f32(bits);
#endif
}

static __device__ __forceinline__ uint16_t sf_f16_narrow(float value)
{
#if defined(__CUDACC__)
    return __half_as_ushort(__float2half_rn(value));
#else
    return sf_f32_to_f16(value);
#endif
}

/* Element i of an array of `dtype`; of int8 the code, which the caller scales. */
static __device__ __forceinline__ float sf_get(enum sf_dtype dtype,
                                               sf_global<const unsigned char> array, size_t i)
{
    if (dtype == SF_F32) return sf_as<const float>(array)[i];
    if (dtype == SF_INT8) return (float)(int8_t)sf_as<const int8_t>(array)[i];
    uint16_t bits = sf_as<const uint16_t>(array)[i];
    return dtype == SF_BF16 ? sf_bf16_widen(bits) : sf_f16_widen(bits);
}

static __device__ __forceinline__ void sf_put(enum sf_dtype dtype, sf_global<unsigned char> array,
                                              size_t i, float value)
{
    if (dtype == SF_F32) sf_as<float>(array)[i] = value;
    else sf_as<uint16_t>(array)[i] = dtype == SF_BF16 ? sf_bf16_narrow(value)
                                                      : sf_f16_narrow(value);
}

/* For a slot of a cache: in f16 what is out of range becomes its greatest number (kernels.h). */
static __device__ __forceinline__ float sf_in_range(enum sf_dtype dtype, float value)
{
    if (dtype != SF_F16) return value;
    return value > SF_F16_MAX ? SF_F16_MAX : value < -SF_F16_MAX ? -SF_F16_MAX : value;
}

/* Element e of a slot's key (kernels/layout.h), in elements from the page's start. */
static __device__ __forceinline__ size_t sf_key_at(const struct sf_layout &layout, int32_t slot,
                                                   size_t e)
{
    size_t block = (size_t)(slot / SF_BLOCK_SLOTS) * SF_BLOCK_SLOTS * (size_t)layout.k_dim;
    size_t lane = (size_t)(slot % SF_BLOCK_SLOTS);
    if (layout.dtype == SF_BF16) return block + (e / 2 * SF_BLOCK_SLOTS + lane) * 2 + e % 2;
    return block + e * SF_BLOCK_SLOTS + lane;
}

/* What stands behind the values of a page, as 4-byte words from its start: in int8 the scales of
 * keys and of values, then bias, then pos, page_slots of each. */
static __device__ __forceinline__ size_t sf_scale_word(const struct sf_layout &layout)
{
    size_t width = layout.dtype == SF_F32 ? 4 : layout.dtype == SF_INT8 ? 1 : 2;
    return (size_t)layout.page_slots * (size_t)(layout.k_dim + layout.v_dim) * width / 4;
}
static __device__ __forceinline__ size_t sf_bias_word(const struct sf_layout &layout)
{
    size_t scales = layout.dtype == SF_INT8 ? (layout.k_dim > 0) + (layout.v_dim > 0) : 0;
    return sf_scale_word(layout) + scales * (size_t)layout.page_slots;
}

/* int8: of a slot's key, or of its value. */
static __device__ __forceinline__ float sf_scale_of(const struct sf_layout &layout,
                                                    sf_global<const unsigned char> page,
                                                    int32_t slot, bool value)
{
    size_t word = sf_scale_word(layout) + (size_t)slot;
    if (value && layout.k_dim > 0) word += (size_t)layout.page_slots;
    return sf_as<const float>(page)[word];
}

/* Blocks of `threads` for `count` pieces of work, one a thread. */
static inline unsigned sf_blocks(size_t count, unsigned threads)
{
    size_t blocks = (count + threads - 1) / threads;
    SF_ASSERT(blocks <= 0x7fffffff);
    return (unsigned)blocks;
}

#endif
