#!/usr/bin/env bash
# tests/gpu/kernels.sh BUILD: the cases of tests/kernels on the GPU of this machine, every entry of
# the backend "cuda" held against ref.  Skips where there is no plugin or no GPU.  The plugin is
# built by: cmake --build BUILD --target sheaf_cuda
set -uo pipefail
build=$(cd "${1:?usage: kernels.sh BUILD}" && pwd) || exit 2
passed=0 failed=0 skipped=0
for part in rows cache mat attend columns left parts basis factor picks choose; do
    program=$build/tests/test_kernels_${part}_gpu code=0 begin=$SECONDS
    output=$(timeout 300 "$program" 2>&1) || code=$?
    last=$(tail -n 1 <<<"$output")
    if [[ ! $last =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed,\ ([0-9]+)\ skipped$ ]]; then
        printf '%s\n' "$output"
        echo "kernels_$part: FAILED, exit code $code without a count"
        failed=$((failed + 1))
        continue
    fi
    counts=("${BASH_REMATCH[@]:1}")
    if ((counts[0] + counts[1] == 0)); then
        grep '^  skipped' <<<"$output"
        skipped=1
        break
    fi
    ((code == 0)) || printf '%s\n' "$output" | head -n 60
    echo "$last ($((SECONDS - begin)) s)"
    passed=$((passed + counts[0]))
    failed=$((failed + counts[1]))
    ((code == 0 || counts[1] > 0)) || failed=$((failed + 1))
done
echo "kernels_gpu: $passed passed, $failed failed, $skipped skipped"
((failed == 0))
