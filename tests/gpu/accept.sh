#!/usr/bin/env bash
# tests/gpu/accept.sh: what a machine with a GPU is asked before a release.  Needs no network.
#
#   tests/gpu/accept.sh [BUILD] [REPORT]
#
# BUILD is a build folder, or a folder with what is needed of one: sheaf, libsheaf_cuda.so, tests/
# (test_kernels_*_gpu, test_gpu_nccl, kernel_bench), lib/ (shared objects that the machine lacks);
# default build/dev.  REPORT is a JSON file with every figure; default accept.json in BUILD; those
# of the kernels are beside it, in accept.kernels.json.  One GPU is enough: ranks share it.
# A build without MPI has ranks as threads, which serves as well.
#
#   kernels   the kernel table of tests/kernels on the GPU, NCCL, and what each kernel reaches of
#             the GPU's bandwidth and of its rate of products, attention by both of its paths
#             (kernel_bench.c)
#   runs      tokens of the tiny models on the GPU against the CPU and the reference
#             implementation, over layouts, ways to choose a token, and methods (accept.py)
#   bench     `sheaf bench` of a made-up model on the GPU
#
# Ends with one line of counts, as the other tests; exit code 1 if something failed.
set -u -o pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$(cd "${1:-$root/build/dev}" && pwd) || exit 2
report=${2:-$build/accept.json}
export SHEAF_BUILD=$build
if [[ -d $build/lib ]]; then export LD_LIBRARY_PATH=$build/lib:${LD_LIBRARY_PATH:-}; fi
failed=0

# ---- kernels and NCCL ---------------------------------------------------------------------------
bash "$here/kernels.sh" "$build" || failed=1
timeout 60 "$build/tests/test_gpu_nccl" cuda || failed=1
timeout 180 "$build/tests/kernel_bench" --json "${report%.json}.kernels.json" || failed=1

# ---- runs and bench -----------------------------------------------------------------------------
python3 "$here/accept.py" "$report" || failed=1
echo "report: $report"
exit $failed
