/* tests/emulation/include/cuda_runtime.h: the device side of CUDA C++ as far as sheaf's kernels use
 * it: thread indices, barriers, warp operations and atomics.  Every one passes the line it stands
 * on, so that lanes that meet at different places are told apart. */
#ifndef SHEAF_TESTS_EMULATION_CUDA_RUNTIME_H
#define SHEAF_TESTS_EMULATION_CUDA_RUNTIME_H
#include <cmath>
#include <math.h>
#include "cuda_runtime_api.h"
#include "tests/emulation/kernel.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define threadIdx (emu::self->thread)
#define blockIdx (emu::grid.block)
#define blockDim (emu::grid.block_size)
#define gridDim (emu::grid.size)

#define EMU_SITE (emu::site{ __FILE__, __LINE__ })
#define __syncthreads() emu::barrier(EMU_SITE)
#define __syncwarp emu::warp_syncer{ EMU_SITE }
#define __shfl_sync(mask, value, lane) emu::shuffle(EMU_SITE, mask, value, emu::SHUFFLE, lane)
#define __shfl_xor_sync(mask, value, bits)                                                         \
    emu::shuffle(EMU_SITE, mask, value, emu::SHUFFLE_XOR, bits)
#define __shfl_up_sync(mask, value, lanes)                                                         \
    emu::shuffle(EMU_SITE, mask, value, emu::SHUFFLE_UP, lanes)
#define __shfl_down_sync(mask, value, lanes)                                                       \
    emu::shuffle(EMU_SITE, mask, value, emu::SHUFFLE_DOWN, lanes)
#define __ballot_sync(mask, truth) emu::ballot(EMU_SITE, mask, (truth) != 0)
#define __any_sync(mask, truth) (emu::ballot(EMU_SITE, mask, (truth) != 0) != 0)
#define __all_sync(mask, truth) (emu::ballot(EMU_SITE, mask, !(truth)) == 0)
#define __ffs(bits) __builtin_ffs(bits)
#define __popc(bits) __builtin_popcount(bits)

/* Special functions, which a counting emulation wants to see. */
#define expf(x) (emu::special_called(), expf(x))
#define exp2f(x) (emu::special_called(), exp2f(x))
#define logf(x) (emu::special_called(), logf(x))
#define log2f(x) (emu::special_called(), log2f(x))
#define sqrtf(x) (emu::special_called(), sqrtf(x))
#define sinf(x) (emu::special_called(), sinf(x))
#define cosf(x) (emu::special_called(), cosf(x))

#endif
