#!/usr/bin/env bash
# tests/mpi/link.sh: links between the devices of processes, on the emulation of CUDA and NCCL;
# started by tests/run.sh.
#
# Shown: all common cases (tests/unit/link/cases.h) on two and four processes; ranks that sum
# different counts end the job by the emulation's word for it; a rank that lives but sums no more
# ends the job within its deadline, with group, rank and host named; a stopped rank is named by rank
# 0 while rank 0 waits for its GPU.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

level=${SHEAF_TEST_LEVEL:-normal}
program=${SHEAF_BUILD:-$PWD/build/dev}/tests/test_link_ranks
timeout_ms=2500 ends_s=15          # of a wait; the most that a faulty job may last
source tests/mpi_job.sh

cases()                            # ranks
{
    start "$1" cases
    await
    check "cases on $1 ranks" test "$code" -eq 0
    check "cases on $1 ranks: all ran" says '^cases: [1-9][0-9]* passed, 0 failed, 0 skipped$'
}

if [[ ! -x $program ]]; then
    echo "  skipped: $program is not built: a build without MPI"
    echo "mpi/link: 0 passed, 0 failed, 1 skipped"
    exit 0
fi

cases 2
start 2 count
await
check "count: the job fails" test "$code" -ne 0 -a "$code" -ne 124
check "count: in time" in_time
check "count: named" says '^cuda-emulated: mismatch: a sum of [0-9]+ bytes meets one of [0-9]+ '
if [[ $level != quick ]]; then
    cases 4
    start 2 mute "$timeout_ms"
    await
    check "mute: the job's code" test "$code" -eq 3
    check "mute: in time" in_time
    check "mute: named" says "^rank 0: timed out: rank 0 \\(host [^)]+\\) waited [0-9.]+ s for the \
GPUs of its group in vain \\(nccl settle, group 'world'\\)\$"
    start 3 stop "$timeout_ms"
    for _ in {1..200}; do
        if (($(grep -c ' is process ' "$folder/out") == 3)); then break; fi
        sleep 0.05
    done
    sleep 1                        # until its note has gone out with a sign of life
    began=${EPOCHREALTIME/[.,]/}
    kill -STOP "$(pid_of 1)"
    await
    check "stop: the job fails" test "$code" -ne 0 -a "$code" -ne 124
    check "stop: in time" in_time
    check "stop: named" says '^rank 0: timed out: rank 1 \(host [^)]+\) has shown no sign of life'
fi
echo "mpi/link: $passed passed, $failed failed, 0 skipped"
((failed == 0))
