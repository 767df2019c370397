"""A warm decode step allocates nothing.

Shown: once some steps have run with the same sequences, no rank of a job allocates in sheaf's own
code, nor does the coordinator's thread: alone, with a method that edits at every step, with one
that picks what is read in every step, and in tensor 2 x pipeline 2. What oneDNN, OpenMP and MPI
allocate for themselves is printed, by caller, for each token of every sequence (a round), and
bounded.

tests/alloc/count.c is loaded into every rank and counts by caller while this script tells it to.
An allocation is sheaf's if sheaf asked for it, or for something of the C library or a small library
that allocated (a sort, a JSON text); LIBRARIES name those that answer for themselves.  Half of the
sequences are greedy, the others draw with filters, a penalty and a bias.  How far they are is what
sheaf says of itself on SIGUSR2; that happens inside the count, too.
"""
# not with --quick
import bisect
import mmap
import os
import re
import signal
import struct
import subprocess
import sys
import time

import job
from memory import ranks_below

COUNTER = os.path.join(os.path.dirname(job.SHEAF), "tests/libcount_allocations.so")
WINDOW = """kv_cache:
  methods:
    - {name: window, num_sink_tokens: 4, recent_tokens: 8}
"""
CHUNKS = """kv_cache:
  methods:
    - {name: xkv, rank_k: 24, rank_v: 36, min_prompt_tokens: 1, reconstruction: selective,
       chunk_size: 1, budget_tokens: 1, local_chunks: 0, outlier_chunks: 1}
"""
JOBS = [("alone", 1, 1, False, ""), ("with a window", 1, 1, True, WINDOW),
        ("read by chunks", 1, 1, True, CHUNKS),
        ("tensor 2 x pipeline 2", 2, 2, False, "")]
SEQUENCES, TOKENS, SHORT, WARM, ROUNDS = 16, 1500, 16, 12, 6
LIBRARIES = re.compile(r"/(libmpi|libopen-|mca_|libevent|libpmix|libdnnl|libgomp)")
# oneDNN makes six for each call, and a call covers a few dozen columns, or a slice of their sum.
LIBRARY_PER_ROUND_MAX = 100000
CALLER_BYTES, FRAMES = 128, 13          # as count.c draws them


# ---- who calls -----------------------------------------------------------------------------------

class Map:
    """Which file lies where in a process, and where the file thinks that it lies."""

    def __init__(self, pid):
        self.rows, self.base = [], {}
        with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
            for line in maps:
                span, _, offset, _, _, *path = line.split(maxsplit=5)
                start, end = (int(word, 16) for word in span.split("-"))
                path = path[0].strip() if path else "?"
                if int(offset, 16) == 0:
                    self.base.setdefault(path, start)
                self.rows.append((start, end, path))
        self.rows.sort()

    def place(self, address):
        """(file, address inside it)"""
        at = bisect.bisect_right(self.rows, (address, 1 << 64, "")) - 1
        if at < 0 or address >= self.rows[at][1]:
            return "?", address
        path = self.rows[at][2]
        return path, address - self.base.get(path, 0)


class Counted:
    """The table of one rank."""

    def __init__(self, prefix, pid):
        self.map = Map(pid)
        with open(f"{prefix}.{pid}", "r+b") as file:
            self.table = mmap.mmap(file.fileno(), 0)

    def arm(self, armed):
        self.table[0:4] = struct.pack("I", armed)

    def lost(self):
        return struct.unpack_from("I", self.table, 4)[0]

    def callers(self):
        """[(count, [(file, address inside it), ...])], innermost first"""
        found = []
        for at in range(CALLER_BYTES, len(self.table), CALLER_BYTES):
            key, count, frames = struct.unpack_from("3Q", self.table, at)
            if key != 0 and count > 0:
                stack = struct.unpack_from(f"{FRAMES}Q", self.table, at + 24)[:frames]
                found.append((count, [self.map.place(address - 1) for address in stack]))
        return found


def names_of(addresses):
    """What stands in sheaf at these addresses: function (file:line)."""
    addresses = list(addresses)
    if not addresses:
        return {}
    done = subprocess.run(["addr2line", "-f", "-s", "-e", job.SHEAF] +
                          [hex(address) for address in addresses],
                          capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    return {address: f"{lines[2 * i]} ({lines[2 * i + 1].split(' ')[0]})"
            for i, address in enumerate(addresses)}


def owner_of(stack):
    """Who is to answer for an allocation, sheaf or a library, and the calls in sheaf around it."""
    own, owner = [], None
    for path, address in stack:
        if os.path.basename(path) == "sheaf":
            own.append(address)
        elif not own and owner is None and LIBRARIES.search(path):
            owner = os.path.basename(path).split(".so")[0]
    if owner is None:
        return ("sheaf", tuple(own[:3])) if own else (os.path.basename(stack[-1][0]), ())
    return owner, tuple(own[:1])


def by_owner(callers):
    """[(count, owner, where in sheaf)], most first"""
    total = {}
    for count, stack in callers:
        key = owner_of(stack)
        total[key] = total.get(key, 0) + count
    names = names_of({address for _, own in total for address in own})
    return [(count, owner, " < ".join(names[address] for address in own) or "a thread of its own")
            for (owner, own), count in sorted(total.items(), key=lambda item: -item[1])]


# ---- jobs ----------------------------------------------------------------------------------------

def records():
    drawn = {"temperature": 0.8, "top_p": 0.95, "top_k": 200, "repetition_penalty": 1.1,
             "logit_bias": {"28": -1}}
    bodies = [("short", {"prompt": [504, 3575], "max_tokens": SHORT, "ignore_eos": True})]
    for i in range(1, SEQUENCES):
        choice = dict(drawn, seed=i) if i % 2 else {"temperature": 0}
        bodies.append((f"r{i}", {"prompt": [504 + i, 3575, 282], "max_tokens": TOKENS,
                                 "ignore_eos": True, **choice}))
    return job.records(bodies)


class Job:
    """Runs until the short sequence has ended: from then on they are always the same."""

    def __init__(self, tensor, pipeline, deterministic, extra):
        self.folder = job.Folder()
        text = job.config("bf16", tensor, pipeline, 1, deterministic, SEQUENCES, extra)
        # Saving what is half finished is no part of a step.
        config = self.folder.file("job.yaml", text.replace(
            "run: {", "run: {checkpoint_interval_s: 600, "))
        given = self.folder.file("in.jsonl", records())
        output = self.folder.file("out.jsonl")
        line = job.command(tensor * pipeline, ["run", config, "--input", given, "--output", output,
                                               "--log-level", "debug"], 120)
        at = line.index(job.SHEAF)
        line[at:at] = ["env", f"LD_PRELOAD={COUNTER}",
                       f"SHEAF_COUNT_ALLOCATIONS={self.folder.file('count')}"]
        with open(self.folder.file("log"), "wb") as log:
            # pylint: disable=consider-using-with
            self.process = subprocess.Popen(line, env=job.environment(), stderr=log,
                                            stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            if os.path.exists(output) and os.path.getsize(output) > 0:
                break
            time.sleep(0.05)
        self.pids = ranks_below(self.process.pid)

    def log(self):
        with open(self.folder.file("log"), encoding="utf-8", errors="replace") as log:
            return log.read()

    def rounds(self):
        """How many tokens the sequences have come to, each, as the log says; asks, and waits."""
        last = f"answer ([0-9]+) of at most {TOKENS}"
        before = len(re.findall(last, self.log()))
        os.kill(self.pids[0], signal.SIGUSR2)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            found = re.findall(last, self.log())
            if len(found) >= before + SEQUENCES - 1:
                return sum(int(tokens) for tokens in found[before:]) / (SEQUENCES - 1)
            time.sleep(0.02)
        return 0.0

    def wait_for(self, rounds):
        """Until so many more have been; returns how many."""
        first, more, deadline = self.rounds(), 0, time.monotonic() + 20
        while more < rounds and time.monotonic() < deadline:
            time.sleep(0.3)
            more = self.rounds() - first
        return more

    def end(self):
        for pid in self.pids.values():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.folder.remove()


def count(tally, what, job_of):
    run = Job(*job_of)
    ranks = job_of[0] * job_of[1]
    if not tally.check(f"{what}: ranks that run", len(run.pids), ranks):
        print(run.log())
        run.process.kill()
        return
    run.wait_for(WARM)
    counted = {rank: Counted(run.folder.file("count"), pid) for rank, pid in run.pids.items()}
    for one in counted.values():
        one.arm(1)
    rounds = run.wait_for(ROUNDS)
    for one in counted.values():
        one.arm(0)
    tally.true(f"{what}: steps were counted", rounds >= ROUNDS, f"{rounds} rounds in 20 s")
    tally.true(f"{what}: still runs", run.process.poll() is None, run.log())
    for rank in sorted(counted):
        judge(tally, what if ranks == 1 else f"{what}, rank {rank}", counted[rank], rounds)
    run.end()


def judge(tally, what, counted, rounds):
    rows = by_owner(counted.callers())
    own = [f"{number} x {where}" for number, owner, where in rows if owner == "sheaf"]
    tally.check(f"{what}: allocations of sheaf itself", own, [])
    tally.check(f"{what}: calls without a place", counted.lost(), 0)
    total = {}
    for number, owner, _ in rows:
        total[owner] = total.get(owner, 0) + number
    for owner, number in total.items():
        where = max(row for row in rows if row[1] == owner)[2]
        print(f"  figure: {what}: {number / max(rounds, 1):.1f} a round in {owner}, most under "
              f"{where}")
        tally.true(f"{what}: {owner} keeps its bound", number <= LIBRARY_PER_ROUND_MAX * rounds,
                   f"{number} in {rounds:.1f} rounds")


def main():
    tally = job.Tally("allocations")
    job.need_model(tally)
    if not os.path.exists(COUNTER):
        tally.skip("all", "the counting library is not built (a sanitizer, or no tests)")
        tally.end()
    for what, *job_of in JOBS:
        if job_of[0] * job_of[1] > 1 and not job.has_mpi():
            tally.skip(what, "needs mpirun")
            continue
        count(tally, what, job_of)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
