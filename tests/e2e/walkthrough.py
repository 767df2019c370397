"""docs/adding-a-method.md from outside: the `sheaf` that the build makes of its blocks.

Shown: the page's commands print what the page says they print; the list of methods has one more;
`sheaf lab` with the page's configuration keeps the positions that the page describes (worked out
here from the trace's keys), stores the bytes that it predicts, and attends over what is kept; an
option that is wrong is refused with the place in the file.
"""
# cores: 1
import os
import sys

import job
import lab

SHOWN = os.path.join(os.path.dirname(job.SHEAF), "tests/walkthrough")
GROWTH = 16
# budget, recent, and a trace as in lab.py
CASES = [(20, 5, ([(4, 2, 8, 8)] * 2, 75, 50, 16, "10000", None)),
         (24, 24, ([(3, 1, 16, 8)], 90, 30, 0, "0", None)),
         (30, 0, ([(2, 2, 8, 8)], 60, 46, 7, "100", None)),
         (512, 64, ([(4, 2, 8, 8)] * 2, 60, 50, 0, "10000", None))]


def read(path):
    with open(os.path.join(SHOWN, "shown", path), encoding="utf-8") as file:
        return file.read()


def commands(tally):
    text, shown = read("console"), 0
    for block in text.split("$ sheaf ")[1:]:
        line, wanted = block.split("\n", 1)
        tally.check(f"sheaf {line}", job.sheaf(1, line.split()).stdout, wanted)
        shown += 1
    tally.true("the page shows a command", shown >= 1)
    names = [line.split()[0] for line in job.sheaf(1, ["methods"]).stdout.splitlines() if line]
    tally.true("the list of methods", {"low_norm", "window", "none"} <= set(names), str(names))


def cut(lane, budget, recent):
    old = len(lane) - recent
    best = sorted(lane[:old], key=lambda slot: sum(x * x for x in slot[1]))[:budget - recent]
    return sorted(best + lane[old:])


def reference(trace, budget, recent):
    """(out[layer][row][q head], lanes[layer][KV head] of (pos, k, v))"""
    outs, lanes = [], []
    for layer, (q_heads, kv_heads, k_dim, _) in enumerate(trace.layers):
        out, kept = [[None] * q_heads for _ in range(trace.rows)], []
        for head in range(kv_heads):
            lane, group = [], q_heads // kv_heads
            for row in range(trace.rows):
                lane.append((row, trace.turned(layer, "k", row, head),
                             trace.row(layer, "v", row, head)))
                for q_head in range(head * group, (head + 1) * group):
                    out[row][q_head] = lab.attend(trace.turned(layer, "q", row, q_head), lane,
                                                  k_dim ** -0.5)
                full = budget + GROWTH
                if len(lane) > full - (row + 1 > trace.prompt) and row + 1 >= trace.prompt:
                    lane = cut(lane, budget, recent)
            kept.append(lane)
        outs.append(out)
        lanes.append(kept)
    return outs, lanes


def traces(tally):
    config = read("configs/methods/low_norm.yaml").replace("      layers: 2-29\n", "")
    for number, (budget, recent, shape) in enumerate(CASES):
        trace, what = lab.Trace(shape, 70 + number), f"budget {budget}, recent {recent}"
        found = lab.lab(tally, what, trace, config, arguments=[
            "--set", "model.dtype=f32", "--set", f"kv_cache.methods.0.budget_tokens={budget}",
            "--set", f"kv_cache.methods.0.recent_tokens={recent}"])
        if found is None:
            continue
        outs, lanes = reference(trace, budget, recent)
        lab.check_outputs(tally, what, trace, found[0], outs, 1e-4)
        lab.check_lanes(tally, what, trace, found[0], lanes, 1e-4)
        lab.check_stats(tally, what, trace, found[1], lanes)
    wrong = config.replace("recent_tokens: 64", "recent_tokns: 64")
    line = wrong[:wrong.index("recent_tokns")].count("\n") + 1
    lab.refused(tally, "a wrong key", lab.changed(), [f"lab.yaml:{line}:", "'recent_tokens'"],
                wrong)


def main():
    tally = job.Tally("walkthrough")
    job.SHEAF = os.path.join(SHOWN, "sheaf_shown")
    if not os.access(job.SHEAF, os.X_OK):
        tally.true("there is a build", False, f"no {job.SHEAF}; SHEAF_BUILD names the folder")
        tally.end()
    commands(tally)
    traces(tally)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
