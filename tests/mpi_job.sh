# tests/mpi_job.sh: jobs under mpirun whose ranks say "rank R is process P"; for `source` by the
# scripts of tests/mpi, which set `program`, and `ends_s`, the most that a faulty job may last.
#
#   start RANKS ARGUMENTS...   a job of the program; its output is in $folder/out
#   await                      its end: sets code and took_ms
#   check WHAT COMMAND...      counts in passed and failed
#   says TEXT, in_time         commands for check: a line of the output matches; it ended in time
#   pid_of RANK                the process of a rank of the job
# shellcheck shell=bash disable=SC2154
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
        for rank in 0 1 2 3; do kill -KILL "$(pid_of "$rank")" 2>/dev/null; done
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
