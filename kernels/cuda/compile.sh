#!/usr/bin/env bash
# kernels/cuda/compile.sh OBJECT COMMAND...: runs nvcc and keeps what its assembler reports of every
# kernel (registers, shared memory) in OBJECT.ptxas; of a failure it is shown.
set -uo pipefail
object=$1
shift
if ! "$@" 2>"$object.ptxas"; then
    cat "$object.ptxas" >&2
    exit 1
fi
