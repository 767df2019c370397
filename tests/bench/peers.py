#!/usr/bin/env python3
"""sheaf beside llama.cpp and vLLM on the CPUs of this machine: the same model, lengths and threads,
in turns (A B C A B C), medians and ratios; a table for docs/performance.md.

    tests/bench/peers.sh [--cases 128:128:64,128:128:128] [--repeats 3] [--threads 2] [--json FILE]
                         [--only llama-f16,vllm] [--peers FOLDER]

A case is INPUT:OUTPUT:SEQUENCES.  peers.sh installs the peers first; one that is not there is a row
that says so.  Every run is a process of its own that loads the model; loading counts for nothing.
sheaf runs as `sheaf bench` does, in bf16 with a cache in bf16, and as sheaf-int8 with
`model.compute` and `kv_cache.dtype` int8; llama.cpp has the file's own Q4_1 weights and a cache in
f16 or q8_0; vLLM has the same weights in bf16, compiled.  Sheaf's two come in every run.
"""
import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
SHEAF = os.path.join(os.environ.get("SHEAF_BUILD", os.path.join(ROOT, "build/release")), "sheaf")
MODEL = os.path.join(ROOT, "models", "smollm2-135m-instruct.gguf")
TOKEN_BYTES = 30 * 3 * (2 * (64 + 64) + 8)      # of SmolLM2-135M's exact cache in bf16
PAGE = 16                                       # slots
RATES = ("output_tok_s", "prefill_tok_s", "decode_tok_s")
LIMIT_S = 3600


class Sheaf:
    def __init__(self, args, name="sheaf", model="", cache=""):
        self.args, self.name, self.model, self.cache = args, name, model, cache

    def missing(self):
        return None if os.path.exists(SHEAF) else f"{SHEAF} is not built"

    def run(self, tokens, answer, seqs):
        pages = -(-(tokens + answer) // PAGE)   # what the sequences need and no more
        memory = (seqs * pages * PAGE * TOKEN_BYTES >> 20) + 1
        with tempfile.TemporaryDirectory() as folder:
            config, found = os.path.join(folder, "c.yaml"), os.path.join(folder, "bench.json")
            with open(config, "w", encoding="utf-8") as file:
                file.write(f"schema_version: 1\n"
                           f"model: {{path: {MODEL}, dtype: bf16{self.model}}}\n"
                           f"kv_cache: {{memory: {memory}MiB{self.cache}}}\n"
                           f"parallel: {{threads_per_rank: {self.args.threads}}}\n"
                           f"scheduler: {{max_num_seqs: {seqs}, "
                           f"max_model_len: {tokens + answer}}}\n")
            process([SHEAF, "bench", config, "--num-prompts", str(seqs), "--input-len",
                     str(tokens), "--output-len", str(answer), "--max-num-seqs", str(seqs),
                     "--log-level", "error", "--json", found])
            with open(found, encoding="utf-8") as file:
                bench = json.load(file)
        run = bench["runs"][0]
        return {"output_tok_s": run["output_throughput"], "prefill_tok_s": run["prefill_tok_s"],
                "decode_tok_s": run["decode_tok_s"], "peak_rss_bytes": run["peak_rss_bytes"][0],
                "version": "sheaf " + bench["version"], "roof": bench["roof"],
                "share_of_roof": run["share_of_roof"],
                "decode_share_of_roof": run["decode_share_of_roof"]}


class Peer:
    def __init__(self, name, args, venv, script, model, *more):
        self.name, self.args, self.model, self.more = name, args, model, more
        self.python = os.path.join(args.peers, venv, "bin", "python")
        self.script = os.path.join(HERE, script)

    def missing(self):
        if not os.path.exists(self.python):
            return "not installed"
        return None if os.path.exists(self.model) else f"{self.model} is not there"

    def run(self, tokens, answer, seqs):
        out = process([self.python, self.script, self.model, "--seqs", str(seqs), "--input",
                       str(tokens), "--output", str(answer), "--threads", str(self.args.threads),
                       *self.more])
        return json.loads(out.strip().splitlines()[-1])


def process(line):
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=LIMIT_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def engines(args):
    folder = os.path.join(args.peers, "smollm2-bf16")
    found = [Sheaf(args), Sheaf(args, "sheaf-int8", ", compute: int8", ", dtype: int8"),
             Peer("llama-f16", args, "llama", "peer_llama.py", MODEL, "--kv", "f16"),
             Peer("llama-q8_0", args, "llama", "peer_llama.py", MODEL, "--kv", "q8_0"),
             Peer("vllm", args, "vllm", "peer_vllm.py", folder)]
    if args.only:
        found = [e for e in found if e.name in ("sheaf", "sheaf-int8", *args.only.split(","))]
    return found


def measure(args, case):
    """{engine: runs or words}, in turns."""
    found = {}
    for turn in range(args.repeats):
        for engine in engines(args):
            before = found.setdefault(engine.name, engine.missing() or [])
            if isinstance(before, str):
                continue
            print(f"case {':'.join(map(str, case))}, turn {turn + 1} of {args.repeats}: "
                  f"{engine.name}", file=sys.stderr)
            try:
                before.append(engine.run(*case))
            except (RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
                found[engine.name] = str(error)
    return found


def median(runs, key):
    values = [run[key] for run in runs if run[key] is not None]
    return statistics.median(values) if values else None


def ratio(runs, others):
    """Of whole runs, turn by turn."""
    if isinstance(runs, str):
        return ""
    pairs = [a["output_tok_s"] / b["output_tok_s"] for a, b in zip(runs, others)]
    return f"{statistics.median(pairs):.2f}"


def rows(case, found):
    tokens, answer, seqs = case
    print(f"\nPrompts of {tokens}, answers of {answer}, {seqs} sequences:\n")
    print("| | output tok/s | prefill tok/s | decode tok/s | peak MiB | sheaf / it |"
          " sheaf-int8 / it |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    mine = found["sheaf"]
    for name, runs in found.items():
        if isinstance(runs, str):
            print(f"| {name} | {runs} | | | | | |")
            continue
        rate = [median(runs, key) for key in RATES]
        ratios = [ratio(found[one], runs) if one != name else "" for one in
                  ("sheaf", "sheaf-int8")]
        cells = [f"{r:.0f}" if r is not None else "" for r in rate]
        print(f"| {name} | {' | '.join(cells)} | {median(runs, 'peak_rss_bytes') / 2**20:.0f} |"
              f" {' | '.join(ratios)} |")
    if not isinstance(mine, str):
        print(f"\nsheaf reaches {median(mine, 'share_of_roof'):.2f} of the roof over the whole run,"
              f" {median(mine, 'decode_share_of_roof') or 0:.2f} in decode.")


def cpu_words():
    with open("/proc/cpuinfo", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file.read().splitlines() if ":" in line)
    lines = {key.strip(): value.strip() for key, value in lines.items()}
    flags = set(lines.get("flags", "").split())
    kinds = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16",
                               "amx_int8") if name in flags]
    return f"{lines.get('model name', platform.machine())} ({', '.join(kinds)})"


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--cases", default="128:128:64,128:128:128")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count()))
    parser.add_argument("--only")
    parser.add_argument("--peers", default=os.path.join(ROOT, "build", "peers"))
    parser.add_argument("--json")
    args = parser.parse_args()
    cases = [tuple(map(int, case.split(":"))) for case in args.cases.split(",")]
    found = [(case, measure(args, case)) for case in cases]
    versions = {run["version"] for _, by in found for runs in by.values()
                if not isinstance(runs, str) for run in runs}
    print(f"{datetime.date.today()}, {cpu_words()}, {args.threads} threads, medians of "
          f"{args.repeats}; {', '.join(sorted(versions))}")
    for case, by in found:
        rows(case, by)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump([{"case": case, "found": by} for case, by in found], file, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
