#!/usr/bin/env python3
"""tests/quality/int8.py: what products in int8 cost in quality, measured on real texts.

    python3 tests/quality/int8.py                 all of it, then docs/quality-int8.md
    python3 tests/quality/int8.py --texts 2 --tokens 300 --output /tmp/look.md

Each text (texts.py) is a completion record that answers with nothing but the log probabilities of
its own tokens (echo), so a job is one pass of the model over all texts, with the exact cache.
The same texts go through f32, bf16 and int8; perplexity is over all tokens but the first, and the
likeliest token of each place is compared with that of f32.  Intervals are drawn from whole texts.
"""
import argparse
import datetime
import json
import math
import os
import random
import subprocess
import sys
import tempfile

import measure
import texts

WAYS = [("f32", "f32", "auto"), ("bf16", "bf16", "bf16"), ("int8, f32 around it", "f32", "int8"),
        ("int8, bf16 around it", "bf16", "int8")]
DRAWS = 2000


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--sheaf", default=os.path.join(os.environ.get(
        "SHEAF_BUILD", os.path.join(measure.ROOT, "build/dev")), "sheaf"), help="the program")
    parser.add_argument("--model", default=os.path.join(measure.ROOT, measure.MODEL))
    parser.add_argument("--texts", type=int, default=16, help="at most so many")
    parser.add_argument("--tokens", type=int, default=1000, help="about so many of each text")
    parser.add_argument("--output", default=os.path.join(measure.ROOT, "docs/quality-int8.md"))
    return parser.parse_args()


def passed(options, folder, found, dtype, compute):
    """{name: [(log probability, likeliest token)] of all tokens but the first}"""
    paths = {end: os.path.join(folder, f"{dtype}-{compute}.{end}") for end in
             ("yaml", "in.jsonl", "out.jsonl")}
    with open(paths["yaml"], "w", encoding="utf-8") as file:
        file.write(f"schema_version: 1\n"
                   f"model: {{path: {options.model}, dtype: {dtype}, compute: {compute}}}\n"
                   f"device: cpu\nscheduler: {{max_num_seqs: 4, max_model_len: 4096}}\n")
    with open(paths["in.jsonl"], "w", encoding="utf-8") as file:
        for name, text in found:
            body = {"prompt": text, "echo": True, "logprobs": 1, "max_tokens": 0}
            file.write(json.dumps({"custom_id": name, "method": "POST", "url": "/v1/completions",
                                   "body": body}) + "\n")
    subprocess.run([options.sheaf, "run", paths["yaml"], "--input", paths["in.jsonl"], "--output",
                    paths["out.jsonl"], "--log-level", "warn"], check=True)
    told = {}
    with open(paths["out.jsonl"], encoding="utf-8") as file:
        for line in file:
            answer = json.loads(line)
            logprobs = answer["response"]["body"]["choices"][0]["logprobs"]
            told[answer["custom_id"]] = [
                (value, max(top, key=top.get)) for value, top in
                zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:])]
    return told


def interval(by_text, of):
    """Of a function of a list of texts' figures: its value and the ends of 95 % of all draws."""
    draw = random.Random(0)
    drawn = sorted(of([draw.choice(by_text) for _ in by_text]) for _ in range(DRAWS))
    return of(by_text), drawn[DRAWS // 40], drawn[-1 - DRAWS // 40]


def ratio(pairs):
    return sum(p[0] for p in pairs) / sum(p[1] for p in pairs)


def row(name, told, base):
    loss = [(-sum(v for v, _ in told[t]), len(told[t])) for t in base]
    more = [(sum(b[0] - a[0] for a, b in zip(told[t], base[t])), len(base[t])) for t in base]
    same = [(sum(a[1] == b[1] for a, b in zip(told[t], base[t])), len(base[t])) for t in base]
    cells = [name, f"{math.exp(ratio(loss)):.3f}"]
    if told is base:
        return cells + ["", ""]
    for digits, figures in (("+.4f", more), (".4f", same)):
        value, low, high = interval(figures, ratio)
        cells.append(f"{value:{digits}} [{low:{digits}}, {high:{digits}}]")
    return cells


def report(options, found, told):
    version = subprocess.run([options.sheaf, "--version"], capture_output=True, text=True,
                             check=True).stdout.split("\n")[0]
    base = told[WAYS[0][0]]
    tokens = sum(len(t) for t in base.values())
    lines = [
        "# Quality of products in int8", "",
        "Written by `python3 tests/quality/int8.py`; do not edit.", "",
        f"Measured {datetime.date.today()} on {measure.processor()}; {version}. Model "
        f"{os.path.basename(options.model)}, exact cache, {len(found)} texts of Debian packages "
        f"(tests/quality/texts.py), {tokens} tokens in all; against f32, with 95 % intervals over "
        "texts.", "",
        "| products | perplexity | ln ppl - f32 | same top-1 as f32 |", "|---|--:|--:|--:|"]
    lines += ["| " + " | ".join(row(name, told[name], base)) + " |" for name, _, _ in WAYS]
    lines += ["", "int8 means all matrices, the output head too: weights with a scale for each",
              "output channel, activations with one for each token (`model.compute` in",
              "[config.md](config.md)); norms, RoPE, attention and the cache stay as they are."]
    with open(options.output, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))


def main():
    options = arguments()
    all_texts, missing = texts.collect()
    if missing:
        print("not installed: " + " ".join(missing), file=sys.stderr)
    found = [(name, text[:options.tokens * 4]) for name, _, text in all_texts[:options.texts]]
    if not found:
        sys.exit("no texts: apt-get install " + " ".join(texts.PACKAGES))
    with tempfile.TemporaryDirectory() as folder:
        told = {name: passed(options, folder, found, dtype, compute)
                for name, dtype, compute in WAYS}
    report(options, found, told)


if __name__ == "__main__":
    main()
