#!/usr/bin/env python3
"""Whether compressed decode pays: `sheaf bench` of long prompts through razor_attention, ems and
window, each against the exact cache of the same process.

    tests/bench/pays.py [--batch 32] [--input-len 5900] [--output-len 64] [--repeats 3]
                        [--methods razor_attention,ems,window] [--json FILE]

Two bounds, on medians over the repeats; exit code 1 where one is missed:

    attention   exact decode_attention_ms / compressed >= min(0.75 x exact / stored bytes, 4)
    step        step_ms saved >= 0.9 x decode_attention_ms saved

step_ms is a step without rows of a prompt, so what prompts cost is in neither.  A step that feeds
prompts takes --rows of them, so that answers still run when the last prompt is through: the answer
must be longer than batch x input / rows tokens.  The defaults take a quarter of an hour on two idle
cores and 5 GiB; a loaded machine makes both sides slower, and unequally.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SHEAF = os.path.join(os.environ.get("SHEAF_BUILD", os.path.join(ROOT, "build/dev")), "sheaf")
METHODS = {
    "razor_attention": "retrieval_heads: [[2, 0], [7, 2], [11, 1], [15, 0], [19, 2], [23, 1]], "
                       "min_window_tokens: 512, window_divisor: 16",
    "ems": "budget_tokens: 1024, recent_tokens: 256",
    "window": "recent_tokens: 1020"}
TOKEN_BYTES = 30 * 3 * (64 + 64) * 2            # of SmolLM2-135M's exact cache in bf16
SHOWN = ("decode_attention_ms", "statistics_ms", "edit_ms", "gemm_ms", "step_ms", "tpot_ms_p50")


def config_of(name, args):
    memory = int(1.1 * args.batch * (args.input_len + args.output_len) * TOKEN_BYTES) >> 20
    return (f"schema_version: 1\n"
            f"model: {{path: {ROOT}/models/smollm2-135m-instruct.gguf, dtype: bf16}}\n"
            f"kv_cache: {{memory: {memory}MiB, methods: [{{name: {name}, {METHODS[name]}}}]}}\n"
            f"scheduler: {{max_num_seqs: {args.batch}, max_num_batched_tokens: {args.rows}, "
            f"max_model_len: {args.input_len + args.output_len}}}\n")


def bench(args, folder):
    """The runs of one process: exact, then the methods in their order."""
    names = []
    for name in args.methods.split(","):
        names.append(os.path.join(folder, name + ".yaml"))
        with open(names[-1], "w", encoding="utf-8") as file:
            file.write(config_of(name, args))
    output = os.path.join(folder, "bench.json")
    subprocess.run([SHEAF, "bench", *names, "--num-prompts", str(args.batch), "--input-len",
                    str(args.input_len), "--output-len", str(args.output_len), "--max-num-seqs",
                    str(args.batch), "--json", output], check=True, stdout=sys.stderr)
    with open(output, encoding="utf-8") as file:
        return json.load(file)["runs"]


def judge(runs):
    """One report for each method, from the medians of its repeats; runs: by stack, lists."""
    median = {stack: {key: statistics.median(r[key] for r in repeats) for key in
                      (*SHOWN, "kv_bytes_exact", "kv_bytes_stored")}
              for stack, repeats in runs.items()}
    exact, reports = median["exact"], []
    for stack, found in median.items():
        if stack == "exact":
            continue
        ratio = found["kv_bytes_exact"] / found["kv_bytes_stored"]
        saved = exact["decode_attention_ms"] - found["decode_attention_ms"]
        report = {"stack": stack, "kv_ratio": ratio,
                  "attention_faster": exact["decode_attention_ms"] / found["decode_attention_ms"],
                  "attention_bound": min(0.75 * ratio, 4),
                  "step_saved_share": (exact["step_ms"] - found["step_ms"]) / saved
                                      if saved > 0 else None,
                  "step_bound": 0.9, "ms": {key: found[key] for key in SHOWN},
                  "exact_ms": {key: exact[key] for key in SHOWN}}
        report["holds"] = (saved > 0 and report["attention_faster"] >= report["attention_bound"]
                           and report["step_saved_share"] >= report["step_bound"])
        reports.append(report)
    return reports


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    for key, default in (("batch", 32), ("input-len", 5900), ("output-len", 64), ("repeats", 3),
                         ("rows", 8192)):
        parser.add_argument("--" + key, type=int, default=default)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--json")
    args = parser.parse_args()
    if unknown := set(args.methods.split(",")) - set(METHODS):
        parser.error(f"--methods: unknown: {', '.join(sorted(unknown))}")
    if args.output_len <= args.batch * args.input_len / args.rows + 2:
        parser.error("--output-len: the first answers would end before the last prompt is through")
    runs = {}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for run in bench(args, folder):
                runs.setdefault(run["stack"], []).append(run)
    reports = judge(runs)
    for r in reports:
        share = r["step_saved_share"]
        print(f"{r['stack']}: KV {r['kv_ratio']:.2f}x smaller; attention "
              f"{r['attention_faster']:.2f}x faster (bound {r['attention_bound']:.2f}); the step "
              f"saves {'-' if share is None else f'{share:.2f}'} of that "
              f"(bound {r['step_bound']}): "
              f"{'holds' if r['holds'] else 'MISSED'}")
        for key in SHOWN:
            print(f"    {key:20s} {r['exact_ms'][key]:9.2f} -> {r['ms'][key]:9.2f}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"batch": args.batch, "input_len": args.input_len,
                       "output_len": args.output_len, "repeats": args.repeats,
                       "reports": reports}, file, indent=2)
    return 0 if all(r["holds"] for r in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
