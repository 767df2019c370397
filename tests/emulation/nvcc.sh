#!/usr/bin/env bash
# tests/emulation/nvcc.sh CMAKE BUILD NVCC: nvcc takes the sources that the emulation runs, and the
# result has the one symbol that the program looks for.
set -euo pipefail
cmake=$1 build=$2 nvcc=$3
if [[ ! -x $nvcc ]]; then
    echo "  skipped: there is no nvcc, or SHEAF_CUDA is OFF"
    echo "cuda_compiles: 0 passed, 0 failed, 1 skipped"
    exit 0
fi
if "$cmake" --build "$build" --target sheaf_cuda &&
    [[ $(nm -D --defined-only "$build/libsheaf_cuda.so" | grep -c ' sf_backend_plugin$') == 1 ]]
then
    echo "cuda_compiles: 1 passed, 0 failed, 0 skipped"
else
    echo "cuda_compiles: 0 passed, 1 failed, 0 skipped"
    exit 1
fi
