"""The golden prompts through real jobs in many layouts.

Shown: with f32 the greedy tokens are those of the reference implementation (a step whose recorded
margin is under 0.01 may go either way), in every layout, as one batch; with run.deterministic the
tokens of all layouts, and of prompts run alone, are equal to each other without exception, in f32
and in bf16.  Alone means a job that never has more than one sequence.

--long does all of it in full: 64 tokens, every prompt, every layout, and every prompt alone in
every layout (the full cross).  The normal level does so in the first layout; in the others it
generates 32 tokens, in the deterministic runs 16, feeds the longest prompt against the reference in
some and cut to 700 tokens (past the place where attention splits a lane) in the deterministic runs,
and leaves out some of bf16.
"""
# not with --quick
import json
import os
import sys

import job

LAYOUTS = [(1, 1, 1), (2, 1, 1), (3, 1, 1), (1, 2, 1), (1, 4, 1), (2, 2, 1), (3, 2, 1), (1, 1, 2)]
ALONE = {"f32": (1, 1, 1), "bf16": (2, 2, 1)}
WITH_LONGEST = [(3, 2, 1), (1, 1, 2)]   # beside the first
NOT_IN_BF16 = [(2, 1, 1), (1, 2, 1), (1, 1, 2)]
STEPS, CROSSED_STEPS, LONG_PROMPT = 32, 16, 700
GOLDEN = os.path.join(job.ROOT, "tests/data/golden/smollm2-135m-q4_1.json")
TIE = 0.01


def name_of(layout):
    return "tensor {} x pipeline {} x data {}".format(*layout)


def bodies(prompts):
    return [(p["name"], {"prompt": p["ids"], "max_tokens": len(p["greedy"]), "temperature": 0,
                         "ignore_eos": True, "return_token_ids": True}) for p in prompts]


def run(tally, what, layout, prompts, dtype, deterministic, alone=False):
    tensor, pipeline, data = layout
    text = job.config(dtype, tensor, pipeline, data, deterministic, data if alone else 64)
    done = job.run(tensor * pipeline * data, text, job.records(bodies(prompts)))
    if not tally.check(f"{what}: exit code", done.code, 0):
        print(done.stderr)
        return {}
    tally.check(f"{what}: answers", len(done.answers), len(prompts))
    print(f"  {what}: {done.seconds:.1f} s")
    return done.tokens()


def against_golden(tally, what, prompts, tokens):
    for prompt in prompts:
        mine = tokens.get(prompt["name"], [])
        steps = len(prompt["greedy"])
        for step in range(steps):
            if prompt["margin"][step] < TIE and step < len(mine):
                if mine[step] != prompt["greedy"][step]:
                    steps = step
                    break
        tally.check(f"{what}: {prompt['name']}", mine[:steps], prompt["greedy"][:steps])


def shortened(prompts, prompt_max=None, steps=STEPS):
    """So many tokens of each; the longest prompt cut, or left out (0)."""
    kept = [p for p in prompts if prompt_max != 0 or len(p["ids"]) <= LONG_PROMPT]
    return [dict(p, ids=p["ids"][:prompt_max or None], greedy=p["greedy"][:steps],
                 margin=p["margin"][:steps]) for p in kept]


def crossed(tally, prompts, dtype):
    """Deterministic runs: equal tokens everywhere."""
    first = {}
    for layout in LAYOUTS:
        if dtype == "bf16" and layout in NOT_IN_BF16 and job.LEVEL != "long":
            continue
        what = f"{dtype} deterministic, {name_of(layout)}, one batch"
        tokens = run(tally, what, layout, prompts, dtype, True)
        if not first:
            first = tokens
            if dtype == "f32":          # what was cut has no reference
                against_golden(tally, what, [p for p in prompts if len(p["ids"]) != LONG_PROMPT],
                               tokens)
        tally.check(f"{what}: same as the first layout", tokens == first, True)
    for layout in LAYOUTS if job.LEVEL == "long" else {ALONE[dtype]} & set(LAYOUTS):
        what = f"{dtype} deterministic, {name_of(layout)}, alone"
        tally.check(f"{what}: same as together",
                    run(tally, what, layout, prompts, dtype, True, True) == first, True)


def main():
    tally = job.Tally("layouts")
    job.need_model(tally)
    layouts = LAYOUTS if job.has_mpi() else [(1, 1, 1)]
    with open(GOLDEN, encoding="utf-8") as file:
        prompts = json.load(file)["prompts"]
    LAYOUTS[:] = layouts
    long = job.LEVEL == "long"
    for layout in layouts:
        what, given = f"f32, {name_of(layout)}, one batch", prompts
        if not long and layout != layouts[0]:
            given = shortened(prompts, None if layout in WITH_LONGEST else 0)
        against_golden(tally, what, given, run(tally, what, layout, given, "f32", False))
    what, given = "f32, one rank, alone", prompts if long else shortened(prompts, 0)
    against_golden(tally, what, given, run(tally, what, LAYOUTS[0], given, "f32", False, True))
    if not long:
        prompts = shortened(prompts, LONG_PROMPT, CROSSED_STEPS)
    for dtype in ["f32", "bf16"]:
        crossed(tally, prompts, dtype)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
