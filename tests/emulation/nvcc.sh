#!/usr/bin/env bash
# tests/emulation/nvcc.sh CMAKE BUILD NVCC NCCL: nvcc takes the sources that the emulation runs, and
# the result has the symbols that the program looks for, the second one if NCCL's header was found
# (in the folder NCCL), and starts without libnccl.
set -euo pipefail
cmake=$1 build=$2 nvcc=$3 nccl=$4
if [[ ! -x $nvcc ]]; then
    echo "  skipped: there is no nvcc, or SHEAF_CUDA is OFF"
    echo "cuda_compiles: 0 passed, 0 failed, 1 skipped"
    exit 0
fi
symbols=' sf_backend_plugin$'
if [[ -e $nccl/nccl.h ]]; then symbols+='| sf_link_plugin$'; fi
found() { nm -D --defined-only "$build/libsheaf_cuda.so" | grep -cE "$symbols"; }

if "$cmake" --build "$build" --target sheaf_cuda &&
    [[ $(found) == $(($(tr -cd '|' <<<"$symbols" | wc -c) + 1)) ]] &&
    ! ldd "$build/libsheaf_cuda.so" | grep -q libnccl
then
    echo "cuda_compiles: 1 passed, 0 failed, 0 skipped"
else
    echo "cuda_compiles: 0 passed, 1 failed, 0 skipped"
    exit 1
fi
