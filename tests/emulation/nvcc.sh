#!/usr/bin/env bash
# tests/emulation/nvcc.sh CMAKE BUILD NVCC NCCL: nvcc takes the sources that the emulation runs, no
# kernel spills or takes more registers than registers.txt says, and the result has the symbols that
# the program looks for, sf_link_plugin if NCCL's header was found (in the folder NCCL), and starts
# without libnccl.  At SHEAF_TEST_LEVEL=long for sm_100 too.
set -euo pipefail
cmake=$1 build=$2 nvcc=$3 nccl=$4
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$here/../..
if [[ ! -x $nvcc ]]; then
    echo "  skipped: there is no nvcc, or SHEAF_CUDA is OFF"
    echo "cuda_compiles: 0 passed, 0 failed, 1 skipped"
    exit 0
fi
symbols=' sf_backend_plugin$| sf_backend_layout$'
if [[ -e $nccl/nccl.h ]]; then symbols+='| sf_link_plugin$'; fi
found() { nm -D --defined-only "$build/libsheaf_cuda.so" | grep -cE "$symbols"; }

# newest: what the plugin's build flags leave out.
newest()
{
    local folder source code=0
    folder=$(mktemp -d)
    for source in cache attend attend_tensor basis rebuild pick factor columns mat choose rows; do
        local report=-v,-warn-spills,-warn-lmem-usage,-Werror
        [[ $source == rows ]] && report=-v,-warn-spills,-Werror
        "$root/kernels/cuda/compile.sh" "$folder/$source.o" "$nvcc" -std=c++17 -O3 -fmad=false \
            -gencode arch=compute_100,code=sm_100 -Xptxas "$report" -D_GNU_SOURCE "-I$root" \
            -c "$root/kernels/cuda/$source.cu" -o "$folder/$source.o" || code=1
    done
    "$here/nvcc.py" "$here/registers.txt" "$folder"/*.ptxas || code=1
    rm -r "$folder"
    return $code
}

if "$cmake" --build "$build" --target sheaf_cuda &&
    [[ $(found) == $(($(tr -cd '|' <<<"$symbols" | wc -c) + 1)) ]] &&
    ! ldd "$build/libsheaf_cuda.so" | grep -q libnccl &&
    "$here/nvcc.py" "$here/registers.txt" "$build"/kernels/cuda/*.ptxas &&
    { [[ ${SHEAF_TEST_LEVEL:-normal} != long ]] || newest; }
then
    echo "cuda_compiles: 1 passed, 0 failed, 0 skipped"
else
    echo "cuda_compiles: 0 passed, 1 failed, 0 skipped"
    exit 1
fi
