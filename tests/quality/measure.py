#!/usr/bin/env python3
"""tests/quality/measure.py: what compression costs in quality, measured on real texts.

    python3 tests/quality/measure.py                     all of it, then docs/quality.md
    python3 tests/quality/measure.py --report-only       docs/quality.md from what is there
    python3 tests/quality/measure.py --quick             a look: build/quality-quick/quality.md

Every piece of work is one call of `sheaf eval`: one text (or one length of needles) through one
group of stacks.  Its JSON is kept in the results folder under a name that holds a digest of the
text and of the configurations, so a command that was interrupted goes on where it was, and changed
stacks are measured anew.  texts.py says where texts come from, stacks.py and stacks_xkv.py how
options are found, report.py and report_xkv.py what is told.
"""
import argparse
import datetime
import hashlib
import json
import os
import re
import subprocess
import sys
import time

import report
import report_xkv
import stacks
import stacks_xkv
import texts

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODEL = "models/smollm2-135m-instruct.gguf"
PROFILE = "configs/profiles/smollm2-135m-instruct.razor_attention.yaml"
NEEDLE_LENGTHS, RANDOM_TEXTS = [512, 1024], 8
QUICK = ("plain", "razor", "xkv")
FEW = ("random", "dropping", "later", "between", "evict", "basis", "ways", "half", "bare",
       "first", "ending", "loss")       # on RANDOM_TEXTS texts


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--sheaf", default=os.path.join(os.environ.get(
        "SHEAF_BUILD", os.path.join(ROOT, "build/dev")), "sheaf"), help="the program")
    parser.add_argument("--model", default=os.path.join(ROOT, MODEL))
    parser.add_argument("--profile", default=os.path.join(ROOT, PROFILE),
                        help="RazorAttention's heads, as sheaf calibrate writes them")
    parser.add_argument("--results", help="folder of results; what is there is not measured again "
                        "(build/quality; with --quick build/quality-quick)")
    parser.add_argument("--output", help="the page (docs/quality.md; with --quick quality.md among "
                        "the results)")
    parser.add_argument("--lengths", default="2000", help="tokens of a text, half of them prompt: "
                        "a list such as 2000,8000")
    parser.add_argument("--texts", type=int, default=100, help="at most so many")
    parser.add_argument("--kinds", default="plain,razor,later,dropping,random,xkv,widths,"
                        "between,evict,bare,first,ending,basis,ways,half,loss,needle,needle-xkv",
                        help="groups of stacks that are measured, a list; all are reported")
    parser.add_argument("--seconds", type=float, default=0,
                        help="no piece of work begins after so many; 0: all of it")
    parser.add_argument("--quick", action="store_true",
                        help="two texts, 1/4 alone, no random sets, no needles")
    parser.add_argument("--report-only", action="store_true", help="measure nothing")
    options = parser.parse_args()
    full = os.path.join(ROOT, "build/quality")
    options.results = options.results or full + ("-quick" if options.quick else "")
    options.output = options.output or os.path.join(
        options.results if options.quick else os.path.join(ROOT, "docs"), "quality.md")
    return options


def digest(*parts):
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def losses(stderr, named):
    """What kvshard/encode.c says at level debug: {stack: {"keys": [[norm, part left]] of each
    layer, "values": ...}}.  The low byte of a sequence is the stack's number, 0 the exact one."""
    found = {stack: {"keys": {}, "values": {}} for stack in named}
    for sequence, layer, kind, part, norm in re.findall(
            r"sequence (\d+), layer (\d+), (\w+): rank .* leaves (\S+) of the norm (\S+)", stderr):
        stack = list(named)[(int(sequence) & 255) - 1]
        found[stack][kind][int(layer)] = [float(norm), float(part)]
    return {stack: {kind: [of[layer] for layer in sorted(of)] for kind, of in kinds.items()}
            for stack, kinds in found.items()}


def contents(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def processor():
    for line in contents("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


class Work:
    """Pieces of work, each done once; the order is the order of the calls."""

    def __init__(self, options):
        self.options, self.start, self.left = options, time.monotonic(), 0

    def late(self):
        limit = self.options.seconds
        return limit > 0 and time.monotonic() - self.start > limit

    def piece(self, about, named, words, inputs):
        """about: what it is, for the report; named: {stack: configuration}; "exact": of the cache
        that eval holds all others against, which it takes from the first of them otherwise."""
        options = self.options
        configs = digest(*named, *[contents(path) for path in named.values()])
        key = digest(json.dumps(about, sort_keys=True), configs, *inputs)
        path = os.path.join(options.results, f"{about['kind']}-{key[:16]}.json")
        if os.path.exists(path):
            return
        if about["kind"] not in options.kinds.split(",") or self.late():
            self.left += 1
            return
        measured = path + ".eval"
        command = [options.sheaf, "eval", *named.values(), *words, "--json", measured,
                   "--log-level", "debug" if about["kind"] == "loss" else "warn"]
        began = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"quality: error: {' '.join(command)}\n{done.stderr}")
        result = {**about, "configs": configs,
                  "stacks": [name for name in named if name != "exact"],
                  "seconds": time.monotonic() - began, "date": datetime.date.today().isoformat(),
                  "processor": processor(), "cores": os.cpu_count(),
                  "eval": json.loads(contents(measured))}
        if about["kind"] == "loss":
            result["loss"] = losses(done.stderr, named)
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(result, file)
        os.replace(path + ".new", path)
        os.unlink(measured)
        print(f"quality: {result['seconds']:6.1f} s  {os.path.basename(path)}  {about['kind']} "
              f"{about.get('name', about.get('length'))}", flush=True)


def write_texts(options):
    """[(name, path, text)] of the plain texts, written where eval can read them."""
    found, missing = texts.collect()
    if missing and not options.quick:
        raise SystemExit("quality: error: packages with texts are missing; as root: "
                         f"apt-get install --no-install-recommends {' '.join(missing)}")
    if not found:
        raise SystemExit(f"quality: error: none of {', '.join(texts.PACKAGES)} is installed")
    folder = os.path.join(options.results, "texts")
    os.makedirs(folder, exist_ok=True)
    written = []
    for name, package, text in found[:2 if options.quick else options.texts]:
        path = os.path.join(folder, name + ".txt")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        written.append({"name": name, "package": package, "path": path, "text": text})
    return written


def planner_of(options, length, kv_dtype=None):
    folder = f"configs-{length}" + (f"-{kv_dtype}" if kv_dtype else "")
    return stacks.Planner(options.sheaf, options.model, os.path.join(options.results, folder),
                          length // 2, kv_dtype)


def groups_of(options, length, kinds=None):
    """[(kind, {stack: configuration})], all kinds or these; without a profile there is nothing of
    razor_attention."""
    planner = planner_of(options, length)
    makers = [("plain", lambda: stacks.plain_stacks(planner))]
    heads = report.heads_of(options.profile)
    if heads is None:
        print(f"quality: no {options.profile}: nothing of razor_attention", file=sys.stderr)
    else:
        makers += [("razor", lambda: stacks.razor_stacks(planner, heads)),
                   ("later", lambda: stacks.later_stacks(planner, heads)),
                   ("dropping", lambda: stacks.dropping_stacks(planner, heads)),
                   ("random", lambda: stacks.random_stacks(planner, heads))]
    makers += [("xkv", lambda: stacks_xkv.equal_bytes_stacks(planner)),
               ("widths", lambda: stacks_xkv.width_stacks(planner)),
               ("between", lambda: stacks_xkv.between_stacks(planner)),
               ("evict", lambda: stacks_xkv.evict_stacks(planner, heads)),
               ("bare", lambda: stacks_xkv.bare_stacks(planner)),
               ("first", lambda: stacks_xkv.first_stacks(planner)),
               ("ending", lambda: stacks_xkv.ending_stacks(planner)),
               ("basis", lambda: stacks_xkv.equal_basis_stacks(planner)),
               ("ways", lambda: stacks_xkv.way_stacks(planner)),
               ("loss", lambda: stacks_xkv.loss_stacks(planner_of(options, 2 * length))),
               ("half", lambda: stacks_xkv.half_width_stacks(planner_of(options, length, "f16"),
                                                             planner_of(options, length, "int8")))]
    groups = [(kind, maker()) for kind, maker in makers if kinds is None or kind in kinds]
    if options.quick:
        groups = [(kind, {name: path for name, path in named.items() if name.endswith("1/4")})
                  for kind, named in groups]
    return groups


def measure_texts(work, sources, length, groups):
    """In turns of RANDOM_TEXTS texts, so that each kind has been measured on some of them early."""
    fitting = [source for source in sources if len(source["text"]) >= 4.9 * length]
    for first in range(0, len(fitting), RANDOM_TEXTS):
        for kind, named in groups:
            if kind in FEW and first > 0:
                continue
            for source in fitting[first:first + RANDOM_TEXTS]:
                about = {"kind": kind, "length": length, "name": source["name"],
                         "package": source["package"]}
                lengths = (length + 1, length) if kind == "loss" else (length, length // 2)
                work.piece(about, named, ["--text", source["path"], "--len", str(lengths[0]),
                                          "--prompt-len", str(lengths[1])], [source["text"]])


def measure_needles(work, sources, options):
    filler = os.path.join(options.results, "texts", "filler.txt")
    with open(filler, "w", encoding="utf-8") as file:
        file.write("".join(source["text"] for source in sources))
    for length in NEEDLE_LENGTHS:
        groups = dict(groups_of(options, 2 * length, ("plain", "razor", "xkv")))
        for kind, named in (("needle", {**groups["plain"], **groups.get("razor", {})}),
                            ("needle-xkv", groups["xkv"])):
            work.piece({"kind": kind, "length": length}, named,
                       ["--needle", "--filler", filler, "--needle-lengths", str(length),
                        "--needle-depths", "0,25,50,75,100", "--needle-trials", "4"],
                       [contents(filler)])


def main():
    options = arguments()
    os.makedirs(options.results, exist_ok=True)
    work = Work(options)
    if not options.report_only:
        sources = write_texts(options)
        lengths = [int(length) for length in options.lengths.split(",")]
        for length in lengths:
            measure_texts(work, sources, length,
                          groups_of(options, length, QUICK if options.quick else None))
        if not options.quick:
            measure_needles(work, sources, options)
    image = options.output.removesuffix(".md") + "-xkv.svg"
    page = report.page(options.results, work.left,
                       lambda results: report_xkv.page(results, image))
    with open(options.output + ".new", "w", encoding="utf-8") as file:
        file.write(page)
    os.replace(options.output + ".new", options.output)
    print(f"quality: {options.output} is written; {work.left} pieces of work are left")


if __name__ == "__main__":
    main()
