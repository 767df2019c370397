#!/usr/bin/env bash
# tests/mpi/comm.sh: the communicator between processes, started by tests/run.sh.
#
# Shown: all common cases (tests/unit/comm/cases.h) on two to four processes, also with messages cut
# into small pieces; a stopped rank ends the job in time, named with its place and its last note by
# rank 0, or by the others if it is rank 0 itself; a killed rank ends it at once; a rank that lives
# but does not come is named by whoever waits for it; an abort's exit code is the job's.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

level=${SHEAF_TEST_LEVEL:-normal}
program=${SHEAF_BUILD:-$PWD/build/dev}/tests/test_comm_ranks
timeout_ms=2500 ends_s=15          # of a wait; the most that a faulty job may last
source tests/mpi_job.sh

cases()                            # ranks, arguments
{
    local ranks=$1
    start "$ranks" cases "${@:2}"
    await
    check "cases on $ranks ranks $*" test "$code" -eq 0
    check "cases on $ranks ranks $*: all ran" says '^cases: [12][0-9] passed, 0 failed, 0 skipped$'
}

# Sends a signal to one of four ranks once all are under way.
hurt()                             # signal, rank, who says it, what is said
{
    local signal=$1 rank=$2 who=$3 words=$4 pid= ready=0
    start 4 meet "$timeout_ms"
    for _ in {1..200}; do
        ready=$(grep -c ' is process ' "$folder/out")
        if ((ready == 4)); then break; fi
        sleep 0.05
    done
    sleep 1                        # until the note has gone out with a sign of life
    pid=$(pid_of "$rank")
    began=${EPOCHREALTIME/[.,]/}
    if [[ -n $pid ]]; then kill "-$signal" "$pid"; fi
    await
    check "$signal to rank $rank: it ran" test "$ready" -eq 4 -a -n "$pid"
    check "$signal to rank $rank: the job fails" test "$code" -ne 0 -a "$code" -ne 124
    check "$signal to rank $rank: in time" in_time
    if [[ -n $words ]]; then
        check "$signal to rank $rank: named" says "^rank $who: timed out: $words"
    fi
    echo "  figure: $signal to rank $rank: ended after $took_ms ms"
}

if [[ ! -x $program ]]; then
    echo "  skipped: $program is not built: a build without MPI"
    echo "mpi/comm: 0 passed, 0 failed, 1 skipped"
    exit 0
fi

silent='has shown no sign of life for [0-9.]+ s; last: turn 7$'
cases 3 65536
hurt STOP 1 0 "rank 1 \(part 1, host [^)]+\) $silent"
hurt KILL 2 - ''
if [[ $level != quick ]]; then
    cases 2
    cases 4
    cases 4 4096
    hurt STOP 3 0 "rank 3 \(part 3, host [^)]+\) $silent"
    hurt STOP 0 '[123]' "rank 0 \(part 0, host [^)]+\) $silent"
    hurt KILL 0 - ''
    start 3 mute 2 "$timeout_ms"
    await
    check "mute: the job's code" test "$code" -eq 3
    check "mute: in time" in_time
    check "mute: named" says '^rank 0: timed out: rank 0 waited [0-9.]+ s for rank 2 \(part 2, host'
    start 3 abort 1 9
    await
    check "abort: the job's code" test "$code" -eq 9
    check "abort: in time" in_time
fi
echo "mpi/comm: $passed passed, $failed failed, 0 skipped"
((failed == 0))
