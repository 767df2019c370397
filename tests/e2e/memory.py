"""What a rank really takes, against what `sheaf plan` says.

Shown: the peak of anonymous and shared memory of each rank, above its base before loading, equals
the predicted sum of packed weights, pool, what the cache takes beside it and workspace within
5 %, in f32 and bf16, alone and in tensor 2 x pipeline 2; and the tensors of a rank are only its
own (their sum over ranks is the whole model's).  The peak is sampled
from /proc every few milliseconds; base is the least anonymous memory seen once the process has
its libraries, that is before the first large allocation.
"""
# not with --quick
import json
import os
import subprocess
import sys
import threading
import time

import job

LAYOUTS = [(1, 1), (2, 2)]
SLACK = 0.05


def anonymous_and_shared(pid):
    total = 0
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as status:
            for line in status:
                if line.startswith(("RssAnon:", "RssShmem:")):
                    total += int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return None
    return total


def children(pid):
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                found += [int(word) for word in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def ranks_below(pid):
    """Processes whose program is sheaf, with their rank."""
    found = {}
    todo = [pid]
    while todo:
        one = todo.pop()
        todo += children(one)
        try:
            if os.path.basename(os.readlink(f"/proc/{one}/exe")) != "sheaf":
                continue
            with open(f"/proc/{one}/environ", "rb") as file:
                env = dict(item.split(b"=", 1) for item in file.read().split(b"\0") if b"=" in item)
            found[int(env.get(b"OMPI_COMM_WORLD_RANK", b"0"))] = one
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


class Watch(threading.Thread):
    """Samples all ranks; the base of a rank is taken when its log says that loading begins."""

    def __init__(self, process):
        super().__init__()
        self.process, self.peak, self.base = process, {}, {}
        self.loading = threading.Event()

    def run(self):
        pids = {}
        while self.process.poll() is None:
            if len(pids) == 0 or not self.loading.is_set():
                pids = ranks_below(self.process.pid)
            for rank, pid in pids.items():
                size = anonymous_and_shared(pid)
                if size is None:
                    continue
                self.peak[rank] = max(self.peak.get(rank, 0), size)
                if not self.loading.is_set():
                    self.base[rank] = size
            time.sleep(0.002)


def measure(folder, config_text, input_text, ranks):
    config = folder.file(f"job{ranks}.yaml", config_text)
    given = folder.file("in.jsonl", input_text)
    output = folder.file(f"out{len(os.listdir(folder.path))}.jsonl")
    line = job.command(ranks, ["run", config, "--input", given, "--output", output,
                               "--log-level", "debug"])
    with subprocess.Popen(line, env=job.environment(), stderr=subprocess.PIPE,
                          text=True) as process:
        watch = Watch(process)
        watch.start()
        text = ""
        for row in process.stderr:
            text += row
            if "loading weights" in row:
                watch.loading.set()
        process.wait()
        watch.join()
    return process.returncode, watch, text, config


def main():
    tally = job.Tally("memory")
    job.need_model(tally)
    # Some are sampled and some have their prompts scored, which takes the buffers for whole rows of
    # logits into use, all of them.
    bodies = [(f"r{i}", {"prompt": [504 + i] * 200, "max_tokens": 24, "ignore_eos": True,
                         "temperature": i % 2, **({"prompt_logprobs": 1} if i < 4 else {})})
              for i in range(32)]
    for dtype in ["bf16", "f32"]:
        whole = None
        for tensor, pipeline in LAYOUTS if job.has_mpi() else LAYOUTS[:1]:
            ranks = tensor * pipeline
            folder = job.Folder()
            text = job.config(dtype, tensor, pipeline, 1, False, 32, "kv_cache: {memory: 256MiB}\n")
            code, watch, log, config = measure(folder, text, job.records(bodies), ranks)
            what = f"{dtype}, tensor {tensor} x pipeline {pipeline}"
            if not tally.check(f"{what}: exit code", code, 0):
                print(log)
                continue
            plan = json.loads(job.sheaf(1, ["plan", config, "--ranks-per-node", str(ranks),
                                            "--json"]).stdout)
            held = sum(row["weight_bytes"] for row in plan["ranks"])
            whole = held if whole is None else whole
            tally.true(f"{what}: no weight is held twice, but for the norms",
                       whole <= held <= 1.01 * whole, f"{held} B on {ranks} ranks, {whole} on one")
            for row in plan["ranks"]:
                rank = row["rank"]
                predicted = (row["weight_bytes"] + 256 * 2**20 + row["workspace_bytes"] +
                             row["kv_beside_bytes"]["total"])
                taken = watch.peak[rank] - watch.base[rank]
                print(f"  figure: {what}, rank {rank}: base {watch.base[rank] / 2**20:.1f} MiB, "
                      f"peak above it {taken / 2**20:.1f} MiB, predicted "
                      f"{predicted / 2**20:.1f} MiB, {100 * (taken / predicted - 1):+.1f} %")
                tally.true(f"{what}, rank {rank}: within 5 %",
                           abs(taken - predicted) <= SLACK * predicted,
                           f"peak {taken}, predicted {predicted}")
            folder.remove()
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
