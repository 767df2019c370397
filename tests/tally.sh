# tests/tally.sh: runs test programs, where they allow it side by side, and adds up what they
# report; for `source`.
#
# A test program ends with the line "NAME: N passed, N failed, N skipped" and exit code 0, or not 0
# if something failed.  One that ends in any other way (no such line, a signal, its time is up, a
# sanitizer's exit code after a line that looked well) counts as failed, at least once.
#
#   tally_start FOLDER CORES             output of each program goes to FOLDER/NAME.log; those that
#                                        run at a time need no more than CORES in all
#   tally_run NAME SECONDS COMMAND...    a test program, with the machine to itself
#   tally_beside CORES NAME SECONDS COMMAND...
#                                        one that minds no other and needs so many cores: starts as
#                                        soon as they are free, and its line comes when it has ended
#   tally_step NAME SECONDS COMMAND...   a step such as a build, with the machine to itself: counts
#                                        only when it fails
#   tally_end                            awaits all, prints the sums as the last line; 1 if anything
#                                        failed
# shellcheck shell=bash

tally_start()
{
    tally_logs=$1 tally_cores=$2 tally_free=$2
    tally_passed=0 tally_failed=0 tally_skipped=0 tally_launching=0
    # What runs, by process; `began` in microseconds.
    declare -gA tally_names=() tally_began=() tally_limits=() tally_taken=()
    mkdir -p "$tally_logs"
    exec {tally_clock}<> <(:)           # a pipe that nobody writes to: reading it is to wait
    trap 'tally_stop 130' INT
    trap 'tally_stop 143' TERM
    trap 'tally_stop 129' HUP
    trap 'tally_stop $?' EXIT           # what ends before tally_end
}

tally_run()
{
    tally_launch "$tally_cores" "$@"
    tally_await
    tally_count
}

# Beside others a program has less of the caches and of memory's speed: twice the time.
tally_beside()
{
    local cores=$1 name=$2 seconds=$3
    shift 3
    if ((cores >= tally_cores)); then
        tally_run "$name" "$seconds" "$@"
    else
        tally_launch "$cores" "$name" $((2 * seconds)) "$@"
    fi
}

tally_step()
{
    tally_launch "$tally_cores" "$@"
    tally_await
    if ((tally_code != 0)); then
        tally_failed=$((tally_failed + 1))
        tally_show_failure
        return 1
    fi
    printf 'done   %7s s  %s\n' "$tally_time" "$tally_name"
}

tally_end()
{
    tally_make_room "$tally_cores"
    trap - EXIT
    # A run in which nothing passed has tested nothing.
    ((tally_passed > 0 || tally_failed > 0)) || tally_failed=1
    printf '%d passed, %d failed, %d skipped\n' "$tally_passed" "$tally_failed" "$tally_skipped"
    ((tally_failed == 0))
}

# CORES NAME SECONDS COMMAND...: starts it once so many cores are free.
# timeout runs in the background so that a signal to this shell is acted on at once.
tally_launch()
{
    local cores=$1 name=$2 seconds=$3
    shift 3
    tally_make_room "$cores"
    tally_launching=1
    timeout -k 5 "$seconds" "$@" >"$tally_logs/${name//\//-}.log" 2>&1 </dev/null &
    tally_names[$!]=$name tally_limits[$!]=$seconds tally_taken[$!]=$cores
    tally_began[$!]=${EPOCHREALTIME/[.,]/}
    tally_free=$((tally_free - cores)) tally_launching=0
}

tally_make_room()
{
    while ((tally_free < $1)); do
        tally_await
        tally_count
    done
}

# Until one of the programs has ended; leaves of it tally_name, tally_log, tally_code and tally_time
# (seconds, as text).
tally_await()
{
    local process took
    tally_find_ended
    tally_code=0
    wait "$process" || tally_code=$?
    took=$(((${EPOCHREALTIME/[.,]/} - tally_began[$process]) / 100000))
    tally_time=$((took / 10)).$((took % 10))
    tally_name=${tally_names[$process]}
    tally_log=$tally_logs/${tally_name//\//-}.log
    if ((tally_code == 124 || tally_code == 137)); then
        echo "stopped: more than ${tally_limits[$process]} s, or killed" >>"$tally_log"
    fi
    tally_free=$((tally_free + tally_taken[$process]))
    unset "tally_names[$process]" "tally_limits[$process]" "tally_taken[$process]" \
        "tally_began[$process]"
}

# Sets `process` to one that has ended, or to the only one there is.  `wait -n` would do, but in
# bash 5.2 it forgets those that ended before it was called.
tally_find_ended()
{
    while :; do
        for process in "${!tally_names[@]}"; do
            if ((${#tally_names[@]} == 1)) || ! kill -0 "$process" 2>/dev/null; then return; fi
        done
        read -r -t 0.02 -u "$tally_clock" || true
    done
}

# What the program that has ended says of itself.
tally_count()
{
    local line passed=0 failed=0 skipped=0
    line=$(tail -n 1 "$tally_log" | tr -d '\0')
    if [[ $line =~ :\ ([0-9]+)\ passed,\ ([0-9]+)\ failed,\ ([0-9]+)\ skipped$ ]]; then
        passed=${BASH_REMATCH[1]} failed=${BASH_REMATCH[2]} skipped=${BASH_REMATCH[3]}
        ((tally_code == 0 || failed > 0)) || failed=1
    else
        failed=1
    fi
    tally_passed=$((tally_passed + passed)) tally_failed=$((tally_failed + failed))
    tally_skipped=$((tally_skipped + skipped))
    if ((failed > 0)); then
        tally_show_failure
    else
        printf 'ok     %7s s  %s: %d passed' "$tally_time" "$tally_name" "$passed"
        ((skipped == 0)) || printf ', %d skipped' "$skipped"
        printf '\n'
        grep -a '^ *skipped: ' "$tally_log" | sed 's/^ */       /' || true
    fi
}

tally_show_failure()
{
    printf 'FAILED %7s s  %s (exit code %d); %s ends with:\n' "$tally_time" "$tally_name" \
        "$tally_code" "$tally_log"
    tail -n 60 "$tally_log" | tr -d '\0' | sed 's/^/       | /'
}

# timeout passes the signal on to the program and what that started, and kills what stays.
tally_stop()
{
    trap '' INT TERM HUP EXIT
    # One that has just begun has no name yet.  No subshell here: bash 5.2 aborts in one where the
    # signal came while it waited.
    if ((tally_launching)); then set +u; kill -TERM $! 2>/dev/null || true; fi
    ((${#tally_names[@]} == 0)) || kill -TERM "${!tally_names[@]}" 2>/dev/null || true
    wait
    echo "ended early" >&2
    exit "$1"
}
