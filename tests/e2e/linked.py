"""Whole runs whose ranks have a GPU each, `device: cuda-emulated`: sums and rows go by NCCL, under
emulation, and not through host memory.

Shown: over tensor, pipeline and both, exact and with a method that reads attention back, the
greedy tokens are the CPU's; with fixed products a run over NCCL and one through host memory, which
ranks of one GPU have to take and one line says so, give the same tokens; a rank that is stopped
while the others' GPUs wait for its own ends the job in time, by name.
"""
# not with --quick
import os
import signal
import subprocess
import sys
import time

import emulated
import job
from memory import ranks_below

FOUR, ONE = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, {"CUDA_VISIBLE_DEVICES": "0"}
HOST = "goes through host memory, not NCCL: ranks "
TIMEOUT_S, LAUNCHER_S = 4, 10


def run(rig, layout, gpus, fixed=False, method=None, given=None):
    os.environ.update(gpus)
    done = rig.run("cuda-emulated", layout, fixed, method, given)
    del os.environ["CUDA_VISIBLE_DEVICES"]
    return done


def check_layouts(tally, rig):
    for method, layouts in ((None, [(2, 1), (2, 2)]), ("ems", [(2, 2)])):
        reference = rig.run("cpu", method=method)
        for layout in layouts:
            what = f"{method or 'exact'}, tensor {layout[0]} x pipeline {layout[1]}"
            done = run(rig, layout, FOUR, method=method)
            emulated.compare(tally, what, done, reference, method is not None)
            tally.true(f"{what}: over NCCL", HOST not in done.stderr, done.stderr)


def check_kinds(tally, rig):
    """Both kinds add in the order of the ranks."""
    own, shared = (run(rig, (2, 1), gpus, True, given=rig.plain) for gpus in (FOUR, ONE))
    tally.check("fixed: exit codes", (own.code, shared.code), (0, 0))
    tally.true("fixed: over NCCL", HOST not in own.stderr, own.stderr)
    tally.true("fixed, one GPU: said", HOST + "0 and 1 share GPU" in shared.stderr, shared.stderr)
    tally.check("fixed: both kinds", own.tokens(), shared.tokens())


def check_stopped(tally, rig):
    body = dict(rig.body, prompt=rig.golden["input_ids"][:8], temperature=0, max_tokens=100)
    records = [("short", dict(body, max_tokens=2))] + [(f"r{i}", body) for i in range(40)]
    config = rig.folder.file("stop.yaml", rig.config("cuda-emulated", (2, 1)).replace(
        "run: {", f"run: {{rank_timeout_s: {TIMEOUT_S}, "))
    output = rig.folder.file("stop.out")
    line = job.command(2, ["run", config, "--input",
                           rig.folder.file("stop.jsonl", job.records(records)),
                           "--output", output], 120)
    with subprocess.Popen(line, env=dict(job.environment(), **FOUR), stderr=subprocess.PIPE,
                          text=True, stdin=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if os.path.exists(output) and os.path.getsize(output) > 0:
                break                   # the first answer: in mid-run
            time.sleep(0.02)
        pid = ranks_below(process.pid).get(1)
        if not tally.true("stopped: is running", pid is not None, "no such process"):
            process.kill()
            return
        began = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        stderr = process.communicate(timeout=90)[1]
    took = time.monotonic() - began
    print(f"  figure: stopped: ended after {took:.1f} s, exit code {process.returncode}")
    tally.true("stopped: in time", took <= TIMEOUT_S + LAUNCHER_S, f"{took:.1f} s")
    tally.true("stopped: exit code", process.returncode in (1, 137), str(process.returncode))
    named = [text for text in stderr.splitlines() if "error" in text and "rank 1 " in text]
    tally.true("stopped: named", len(named) > 0, stderr)
    tally.true("stopped: over NCCL", HOST not in stderr, stderr)


def main():
    tally = job.Tally("linked")
    if not os.path.exists(os.path.join(os.path.dirname(job.SHEAF), "libsheaf_cuda_emulated.so")):
        tally.skip("all", "this build has no emulation")
        tally.end()
    if not job.has_ranks():
        tally.skip("all", "needs mpirun")
        tally.end()
    rig = emulated.Rig(answer=8)
    check_layouts(tally, rig)
    check_kinds(tally, rig)
    if job.has_mpi():
        check_stopped(tally, rig)
    rig.folder.remove()
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
