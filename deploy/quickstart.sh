#!/usr/bin/env bash
# deploy/quickstart.sh: from a fresh machine to answers of a real model over four ranks.
#
#   install packages -> build -> fetch the model -> mpirun -n 4 sheaf run -> print the answers
#
# Every run writes into a new folder under build/quickstart/, so it can be run again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

config=configs/quickstart.yaml
input=configs/examples/prompts.jsonl
sheaf=build/release/sheaf
ranks=4                                 # tensor 2 x pipeline 2, as the config says

usage()
{
    cat <<END
usage: deploy/quickstart.sh [--no-install]

Installs what is missing, builds, fetches a small model and answers the prompts of
$input on $ranks CPU ranks.
  --no-install   installs no packages: fails with their names if some are missing
  --help         this text
END
}

main()
{
    local install_args=()
    while (($# > 0)); do
        case $1 in
            --no-install) install_args=(--no-install) ;;
            --help) usage; exit 0 ;;
            *) echo "quickstart.sh: error: unknown argument '$1'" >&2; usage >&2; exit 2 ;;
        esac
        shift
    done
    say "packages"
    deploy/install.sh "${install_args[@]}"
    say "build"
    build
    say "model"
    deploy/fetch-model.sh smollm2-135m-instruct
    mkdir -p build/quickstart
    local output
    output=$(mktemp -d "build/quickstart/$(date +%Y%m%d-%H%M%S)-XXXX")/answers.jsonl
    say "run: mpirun -n $ranks sheaf run $config --input $input --output $output"
    local code=0
    launch "$output" || code=$?
    # 0: every record answered; 3: some records hold errors, and those are worth reading too.
    if ((code != 0 && code != 3)); then
        echo "quickstart.sh: error: sheaf ended with exit code $code" >&2
        exit "$code"
    fi
    say "answers"
    deploy/show-answers.py "$input" "$output" || code=$?
    exit "$code"
}

say()
{
    printf '\n== %s\n' "$1"
}

build()
{
    local log=build/quickstart-build.log
    mkdir -p build
    if ! { cmake --preset release && ninja -C build/release -j "$(nproc)"; } >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        echo "quickstart.sh: error: the build failed; all of it: $log" >&2
        exit 1
    fi
    tail -n 1 "$log"
}

# Four ranks may share two cores, so a waiting rank gives its core away and none is bound to one.
launch()
{
    export OMPI_MCA_mpi_yield_when_idle=1
    if ((EUID == 0)); then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
    timeout -k 5 900 mpirun -n "$ranks" --oversubscribe --bind-to none \
        "$sheaf" run "$config" --input "$input" --output "$1"
}

main "$@"
