"""The line that people watch tells the truth while the first records still run.

Shown: on a terminal, with a method that keeps a window, the ratio rises above 1 while no record is
finished, and is that of what runs, by the tokens that it has; without a method it stays 1.  The
manifest has the totals of what is finished, as ever.  One rank: behind a launcher no rank has a
terminal.
"""
import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import job

KEPT, PROMPT, ANSWER, RECORDS = 36, 300, 220, 2
LINE = re.compile(r"(\d+)/(\d+), (\d+) running, .*? ratio ([0-9.]+)")


def watch(methods, answer):
    """The bar's (done, running, ratio) in order, the totals of the manifest and the exit code."""
    folder = job.Folder()
    body = {"prompt": [504 + i % 40 for i in range(PROMPT)], "max_tokens": answer,
            "ignore_eos": True}
    config = folder.file("job.yaml", job.config("bf16", 1, 1, 1, False, RECORDS,
                                                f"kv_cache: {{{methods}}}\n"))
    given = folder.file("in.jsonl", job.records([(f"r{i}", body) for i in range(RECORDS)]))
    output = folder.file("out.jsonl")
    ours, theirs = pty.openpty()
    line = job.command(1, ["run", config, "--input", given, "--output", output], 120)
    environment = dict(job.environment(), TERM="xterm", COLUMNS="200")
    with subprocess.Popen(line, env=environment, stderr=theirs, stdout=subprocess.DEVNULL,
                          stdin=subprocess.DEVNULL) as process:
        os.close(theirs)
        text, ends = b"", time.monotonic() + 100
        while time.monotonic() < ends:
            if not select.select([ours], [], [], 0.2)[0]:
                if process.poll() is not None:
                    break
                continue
            try:
                piece = os.read(ours, 65536)
            except OSError:             # the other end is closed
                break
            if not piece:
                break
            text += piece
        code = process.wait(20)
    os.close(ours)
    with open(f"{output}.run/manifest.json", encoding="utf-8") as file:
        totals = json.load(file).get("totals", {})
    folder.remove()
    seen = [(int(m[1]), int(m[3]), float(m[4])) for m in LINE.finditer(text.decode("utf-8"))]
    return seen, totals, code


def main():
    tally = job.Tally("progress")
    job.need_model(tally)
    most = (PROMPT + ANSWER) / KEPT
    window = f"methods: [{{name: window, num_sink_tokens: 4, recent_tokens: {KEPT - 4}}}]"
    seen, totals, code = watch(window, ANSWER)
    tally.check("window: exit code", code, 0)
    early = [ratio for done, running, ratio in seen if done == 0 and running > 0]
    print(f"  figure: window: {len(seen)} lines, ratios before the first answer {early}")
    tally.true("window: above 1 while the first records run", max(early, default=0) > 1.5,
               str(seen))
    tally.true("window: what runs has so many tokens and no more", max(early, default=0) <= most,
               str(early))
    ratio = totals["kv_bytes_exact"] / totals["kv_bytes_stored"]
    tally.true("window: finished ones", abs(ratio - (PROMPT + ANSWER - 1) / KEPT) < 0.01,
               str(totals))
    seen, totals, code = watch("memory: auto", 50)
    tally.check("exact cache: exit code", code, 0)
    tally.true("exact cache: the ratio is 1", {ratio for _, _, ratio in seen} == {1.0}, str(seen))
    tally.check("exact cache: finished ones", totals["kv_bytes_exact"], totals["kv_bytes_stored"])
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
