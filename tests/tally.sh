# tests/tally.sh: runs test programs one by one and adds up what they report; for `source`.
#
# A test program ends with the line "NAME: N passed, N failed, N skipped" and exit code 0, or not 0
# if something failed.  One that ends in any other way (no such line, a signal, its time is up, a
# sanitizer's exit code after a line that looked well) counts as failed, at least once.
#
#   tally_start FOLDER                   output of each program goes to FOLDER/NAME.log
#   tally_run NAME SECONDS COMMAND...    a test program
#   tally_step NAME SECONDS COMMAND...   a step such as a build: counts only when it fails
#   tally_end                            prints the sums as the last line; 1 if anything failed
# shellcheck shell=bash

tally_start()
{
    tally_logs=$1 tally_passed=0 tally_failed=0 tally_skipped=0 tally_child=
    mkdir -p "$tally_logs"
    trap 'tally_stop 130' INT
    trap 'tally_stop 143' TERM
}

tally_run()
{
    local name=$1 line passed=0 failed=0 skipped=0
    tally_launch "$@"
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
        tally_show_failure "$name"
    else
        printf 'ok     %7s s  %s: %d passed' "$tally_time" "$name" "$passed"
        ((skipped == 0)) || printf ', %d skipped' "$skipped"
        printf '\n'
        grep -a '^ *skipped: ' "$tally_log" | sed 's/^ */       /' || true
    fi
}

tally_step()
{
    tally_launch "$@"
    if ((tally_code != 0)); then
        tally_failed=$((tally_failed + 1))
        tally_show_failure "$1"
        return 1
    fi
    printf 'done   %7s s  %s\n' "$tally_time" "$1"
}

tally_end()
{
    # A run in which nothing passed has tested nothing.
    ((tally_passed > 0 || tally_failed > 0)) || tally_failed=1
    printf '%d passed, %d failed, %d skipped\n' "$tally_passed" "$tally_failed" "$tally_skipped"
    ((tally_failed == 0))
}

# Runs NAME SECONDS COMMAND...; leaves tally_log, tally_code and tally_time (seconds, as text).
# timeout runs in the background so that a signal to this shell is acted on at once.
tally_launch()
{
    local seconds=$2 began=${EPOCHREALTIME/[.,]/} took
    tally_log=$tally_logs/${1//\//-}.log tally_code=0
    shift 2
    timeout -k 5 "$seconds" "$@" >"$tally_log" 2>&1 </dev/null &
    tally_child=$!
    wait "$tally_child" || tally_code=$?
    tally_child=
    took=$(((${EPOCHREALTIME/[.,]/} - began) / 100000))
    tally_time=$((took / 10)).$((took % 10))
    if ((tally_code == 124 || tally_code == 137)); then
        echo "stopped: more than $seconds s, or killed" >>"$tally_log"
    fi
}

tally_show_failure()
{
    printf 'FAILED %7s s  %s (exit code %d); %s ends with:\n' "$tally_time" "$1" "$tally_code" \
        "$tally_log"
    tail -n 60 "$tally_log" | tr -d '\0' | sed 's/^/       | /'
}

# timeout passes the signal on to the program and what that started.
tally_stop()
{
    [[ -z $tally_child ]] || kill -TERM "$tally_child" 2>/dev/null || true
    echo "stopped by a signal" >&2
    exit "$1"
}
