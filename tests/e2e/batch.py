"""A batch pays: 64 sequences together against the same prompts one at a time.

Shown: output tokens per second of the batch are at least 5 times those of the single runs, as
ratios of one machine at one time (median of three rounds, interleaved; load time left out).  The
cost of run.deterministic is measured beside it, once in the normal level.
"""
# not with --quick
import json
import os
import statistics
import sys

import job

BAR = 5.0


def rate(seqs, prompts, tally, deterministic=False):
    """Output tokens per second by the run's own clock, loading left out."""
    folder = job.Folder()
    text = job.config("bf16", seqs=seqs, deterministic=deterministic)
    done = job.run(1, text, job.records(prompts), (), 600, folder)
    output = next(name for name in os.listdir(folder.path) if name.endswith(".run"))
    tally.check(f"{seqs} sequences: exit code", done.code, 0)
    with open(os.path.join(folder.path, output, "manifest.json"), encoding="utf-8") as file:
        totals = json.load(file)["totals"]
    folder.remove()
    return totals["output_tokens"] / totals["seconds"]


def main():
    tally = job.Tally("batch")
    job.need_model(tally)
    body = {"max_tokens": 32, "temperature": 0, "ignore_eos": True}
    prompts = [(f"p{i}", dict(body, prompt=[504 + 7 * i + j for j in range(32)]))
               for i in range(64)]
    ratios, together, alone, fixed = [], [], [], []
    for number in range(3):
        together.append(rate(64, prompts, tally))
        alone.append(rate(1, prompts[:8], tally))
        if number == 0 or job.LEVEL == "long":
            fixed.append(rate(64, prompts, tally, True))
        ratios.append(together[-1] / alone[-1])
    ratio = statistics.median(ratios)
    print(f"  figure: bf16, 64 together {statistics.median(together):.0f} tok/s, one at a time "
          f"{statistics.median(alone):.0f} tok/s: ratio {ratio:.1f} (bar {BAR}, aim 12)")
    print(f"  figure: bf16, 64 together, run.deterministic {statistics.median(fixed):.0f} tok/s, "
          f"{statistics.median(fixed) / statistics.median(together):.2f} of free")
    tally.true("64 together against one at a time", ratio >= BAR, f"ratio {ratio:.2f}")
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
