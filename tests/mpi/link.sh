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
passed=0 failed=0 job=
folder=$(mktemp -d)
trap 'finish' EXIT
export OMPI_MCA_mpi_yield_when_idle=1
if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi

# A stopped process hears only SIGKILL; the job's own processes wrote their numbers down.
finish()
{
    local rank
    if [[ -n $job ]] && kill -0 "$job" 2>/dev/null; then
        for rank in 0 1 2; do kill -KILL "$(pid_of "$rank")" 2>/dev/null; done
        kill -TERM "$job" 2>/dev/null
    fi
    rm -rf "$folder"
}

start()                            # ranks, arguments: a job whose output is in $folder/out
{
    local ranks=$1
    shift
    began=${EPOCHREALTIME/[.,]/}
    timeout -k 5 60 mpirun -n "$ranks" --oversubscribe --bind-to none "$program" "$@" \
        >"$folder/out" 2>&1 </dev/null &
    job=$!
}

await()                            # sets code and took_ms
{
    code=0
    wait "$job" || code=$?
    job=
    took_ms=$(((${EPOCHREALTIME/[.,]/} - began) / 1000))
}

check()                            # what, command...
{
    local what=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "  FAILED $what: exit code $code after $took_ms ms; output:"
        sed 's/^/    | /' "$folder/out"
    fi
}

says() { grep -Eq "$1" "$folder/out"; }

in_time() { ((took_ms <= ends_s * 1000)); }

pid_of() { sed -nE "s/^rank $1 is process ([0-9]+)\$/\1/p" "$folder/out" 2>/dev/null; }

cases()                            # ranks
{
    start "$1" cases
    await
    check "cases on $1 ranks" test "$code" -eq 0
    check "cases on $1 ranks: all ran" says '^cases: [1-9][0-9]* passed, 0 failed$'
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
