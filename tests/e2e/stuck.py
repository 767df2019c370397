"""A lost or stuck rank ends the job in time, by name.

Shown, for each rank of tensor 2 x pipeline 2 in turn: stopped in mid-run (SIGSTOP), the job ends
within run.rank_timeout_s with a line that names the rank; a rank that is killed ends it at once.
What the launcher needs to end the others comes on top; machines under load differ in that, so it is
bounded loosely.  Every answer in the output so far is a whole line.
"""
import json
import os
import signal
import subprocess
import sys
import time

import job
from memory import ranks_below

TIMEOUT_S, LAUNCHER_S = 6, 10


def start(folder):
    body = {"prompt": [504, 3575, 282], "max_tokens": 1500, "ignore_eos": True}
    short = {"prompt": [504, 3575, 282], "max_tokens": 4, "ignore_eos": True}
    records = [("short", short)] + [(f"r{i}", body) for i in range(8)]
    config = folder.file("job.yaml", job.config("bf16", 2, 2, 1, False, 16).replace(
        "run: {", f"run: {{rank_timeout_s: {TIMEOUT_S}, "))
    given = folder.file("in.jsonl", job.records(records))
    output = folder.file("out.jsonl")
    line = job.command(4, ["run", config, "--input", given, "--output", output], 120)
    # pylint: disable=consider-using-with
    process = subprocess.Popen(line, env=job.environment(), stderr=subprocess.PIPE, text=True,
                               stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:      # until the first answer is there, in mid-run
        if os.path.exists(output) and os.path.getsize(output) > 0:
            break
        time.sleep(0.05)
    return process, output


def hurt(tally, rank, what, number):
    folder = job.Folder()
    process, output = start(folder)
    pid = ranks_below(process.pid).get(rank)
    if not tally.true(f"{what} rank {rank}: is running", pid is not None, "no such process"):
        process.kill()
        return
    began = time.monotonic()
    os.kill(pid, number)
    _, stderr = process.communicate(timeout=90)
    took = time.monotonic() - began
    limit = (TIMEOUT_S if number == signal.SIGSTOP else 2) + LAUNCHER_S
    print(f"  figure: {what} rank {rank}: ended after {took:.1f} s, exit code {process.returncode}")
    tally.true(f"{what} rank {rank}: in time", took <= limit, f"{took:.1f} s, limit {limit} s")
    tally.true(f"{what} rank {rank}: exit code", process.returncode in (1, 137),
               str(process.returncode))
    if number == signal.SIGSTOP:
        named = [line for line in stderr.splitlines() if "error" in line and
                 f"rank {rank} " in line + " "]
        tally.true(f"{what} rank {rank}: named", len(named) > 0, f"stderr is:\n{stderr}")
        for line in named[:1]:
            print(f"    {line}")
    with open(output, encoding="utf-8") as file:
        tally.check(f"{what} rank {rank}: whole lines",
                    all(json.loads(line)["custom_id"] for line in file), True)
    folder.remove()


def main():
    tally = job.Tally("stuck")
    job.need_model(tally)
    if not job.has_mpi():
        tally.skip("all", "needs mpirun")
        tally.end()
    for rank in [3] if job.LEVEL == "quick" else range(4):
        hurt(tally, rank, "stopped", signal.SIGSTOP)
    hurt(tally, 2, "killed", signal.SIGKILL)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
