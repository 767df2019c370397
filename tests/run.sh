#!/usr/bin/env bash
# tests/run.sh: builds sheaf and runs every test that this machine can run.
#
#   preset  what runs there                                                       left out by
#   dev     the lint, all unit tests, the scripts in tests/mpi and tests/e2e
#   asan    unit tests and jobs, ranks as threads: memory, undefined behaviour     --quick
#   tsan    what of these has threads: data races                                  --quick
#
# Programs come from ctest's own list, each with a time limit; as many run at a time as there are
# cores, but alone what times something, has many threads or takes a thing that the machine has once
# (RUN_SERIAL and PROCESSORS in CMake; of scripts all that do not say '# cores:').  A program's line
# comes when it has ended; what it printed is kept in build/test-logs/.  The scripts find in the
# environment
#   SHEAF_TEST_LEVEL   quick, normal or long
#   SHEAF_BUILD        absolute path of the build folder of preset dev
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tests/tally.sh

usage()
{
    cat <<'END'
usage: tests/run.sh [--quick | --long] [--cores N] [--no-install]

Builds sheaf and runs its tests; the last line is 'N passed, N failed, N skipped'.
  --quick        preset dev alone, short counts
  --long         also the tests labelled long, full counts; writes docs/measured.md
  --cores N      uses so many cores instead of all; 1: one program at a time
  --no-install   installs no packages (fails with their names if some are missing), fetches no model
  --help         this text
END
}

# Cores of this machine, or as much of them as the container may use.
cores_here()
{
    local cores quota period
    cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
    if read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max && [[ $quota != max ]]; then
        quota=$(((quota + period - 1) / period))
        if ((quota < cores)); then cores=$quota; fi
    fi
    echo "$cores"
}

main()
{
    local level=normal install=1 cores
    cores=$(cores_here)
    while (($# > 0)); do
        case $1 in
            --quick) level=quick ;;
            --long) level=long ;;
            --cores)
                shift
                cores=${1-}
                [[ $cores =~ ^[1-9][0-9]{0,3}$ ]] || refuse "--cores is '$cores', not 1 to 9999" ;;
            --no-install) install=0 ;;
            --help) usage; exit 0 ;;
            *) refuse "unknown argument '$1'" ;;
        esac
        shift
    done
    rm -f build/test-logs/*.log
    tally_start build/test-logs "$cores"
    if ((install)); then
        deploy/install.sh
        deploy/fetch-model.sh smollm2-135m-instruct ||
            echo "run.sh: no model could be fetched; the tests that need one skip"
    else
        deploy/install.sh --no-install
    fi
    set_environment "$level"

    tally_run lint 120 python3 tests/lint/lint.py
    tally_run tests/scripts 120 tests/lint/scripts.sh
    if build dev; then
        run_ctest dev "$level"
        run_scripts "$level"
    fi
    if [[ $level != quick ]]; then
        if build asan; then run_ctest asan "$level"; run_jobs asan; fi
        if build tsan; then run_ctest tsan "$level"; run_jobs tsan; fi
    fi
    if [[ $level == long ]]; then python3 tests/record.py build/test-logs; fi
    tally_end
}

refuse()
{
    echo "run.sh: error: $1" >&2
    usage >&2
    exit 2
}

# The same on a developer's machine, as root in a container and under a build service.  A rank that
# waits gives its core away: tests start more ranks than there are cores.
set_environment()
{
    export SHEAF_TEST_LEVEL=$1 SHEAF_BUILD=$PWD/build/dev
    export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_rmaps_base_oversubscribe=1
    export OMPI_MCA_hwloc_base_binding_policy=none
    if ((EUID == 0)); then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
    # Not detect_stack_use_after_return: gcc 12 lays its frames without the alignment that 64-byte
    # vectors need, and they then fault.
    export ASAN_OPTIONS=detect_leaks=1
    export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
    export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
}

build()
{
    tally_step "build/$1" 1800 \
        bash -c "cmake --preset $1 && ninja -C build/$1 -j $tally_cores"
}

# CORES NAME SECONDS COMMAND...: a test alone (CORES is `all`) or beside others, with no more
# threads than its cores.
start_test()
{
    local cores=$1 name=$2 seconds=$3
    shift 3
    if [[ $cores == all ]]; then
        tally_run "$name" "$seconds" "$@"
    else
        tally_beside "$cores" "$name" "$seconds" env OMP_NUM_THREADS="$cores" "$@"
    fi
}

# Every program in ctest's list of one preset, but for those that need no build (label source).
run_ctest()
{
    local preset=$1 level=$2 name seconds cores labels command before
    before_command "$preset"
    if ! tally_step "list/$preset" 60 python3 tests/list_ctest.py "build/$preset"; then return; fi
    while IFS=$'\t' read -r name seconds cores labels command; do
        if [[ " $labels " == *" source "* ]]; then continue; fi
        if [[ " $labels " == *" long "* && $level != long ]]; then
            echo "left   $preset/$name: only with --long"
            continue
        fi
        if [[ " $labels " == *" slow "* && $level == quick ]]; then
            echo "left   $preset/$name: not with --quick"
            continue
        fi
        start_test "$cores" "$preset/$name" "$seconds" "${before[@]}" bash -c "$command"
    done <"$tally_log"
}

# Whole jobs under a sanitizer, ranks as threads: small models, many layouts.  For data races, with
# two threads in a rank where ranks leave cores: they hardly matter to what runs beside them.
run_jobs()
{
    local preset=$1 script before threads=1
    before_command "$preset"
    if [[ $preset == tsan ]]; then threads=2; fi
    for script in tiny shapes calibrate_tiny eval_tiny lab; do
        start_test 1 "$preset/e2e/$script" 900 "${before[@]}" \
            env SHEAF_BUILD="$PWD/build/$preset" SHEAF_TEST_LEVEL=quick OMP_NUM_THREADS=$threads \
            python3 "tests/e2e/$script.py"
    done
}

# Sets `before`: what a program of this preset has to be started with.
before_command()
{
    before=()
    [[ $1 == tsan ]] || return 0
    # ThreadSanitizer of gcc 12 cannot start where the kernel scatters memory widely.
    ! setarch -R true 2>/dev/null || before=(setarch -R)
}

# The scripts that start whole jobs; a Python file without a main is what they share.  They cut
# their own counts by SHEAF_TEST_LEVEL; measurements and crosses say '# not with --quick'.  Those
# that may run beside others say '# cores: N', and go first.
run_scripts()
{
    local level=$1 script beside=() alone=()
    for script in tests/mpi/*.sh tests/e2e/*.py; do
        [[ $script != *.py ]] || grep -q '__main__' "$script" || continue
        if grep -q '^# cores: ' "$script"; then beside+=("$script"); else alone+=("$script"); fi
    done
    for script in "${beside[@]}" "${alone[@]}"; do run_script "$level" "$script"; done
}

run_script()
{
    local level=$1 script=$2 seconds=1800 name=${2#tests/} with=python3 cores
    name=${name%.*}
    if [[ $level == quick ]] && grep -q '^# not with --quick' "$script"; then
        echo "left   $name: not with --quick"
        return
    fi
    if [[ $level == long ]]; then seconds=7200; fi
    if [[ $script == *.sh ]]; then with=bash; fi
    cores=$(sed -nE 's/^# cores: ([0-9]+)\b.*/\1/p' "$script")
    start_test "${cores:-all}" "$name" "$seconds" "$with" "$script"
}

main "$@"
