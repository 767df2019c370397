"""A job that survives: whatever ends it, the same command with --resume finishes it.

A job of 100 records (--long: 200; greedy and sampled, short and longer, some with several choices
and log probabilities) runs over tensor 2 x pipeline 2 with the real model, f32, deterministic; once
with the exact cache, once with methods that drop, fold and merge.  Undisturbed, each is a
reference.
Then the same jobs are disturbed and resumed until they exit with 0:

    kill     kill -9 of a random rank at a random moment, once or twice; both caches
    drain    SIGUSR1 to a random rank at a random moment: exit code 75; both caches
    disk     the output on a file system that is full before the job is done, then has room again
    layout   kill -9, then resumed as tensor 1 x pipeline 2, and as a single rank (--long: both)
    torn     cut anywhere: the last line of the output and the journal are torn, as by a dead node

Each time: all answers, none lost, none twice, every text, token and log probability equal to the
undisturbed run; and at most what was sampled since the last checkpoint is sampled again, which the
totals of the runs tell.  The random numbers are seeded; the seed of a failure is printed.
"""
# not with --quick
import json
import os
import random
import signal
import subprocess
import sys
import time

import job
from memory import ranks_below

RECORDS, CHECKPOINT_S = 200 if job.LEVEL == "long" else 100, 1.0
DISK_KIB = RECORDS // 2                 # less than the answers take
LAYOUT = (2, 2)
WORDS = ("a quiet river runs past the old mill and every morning the baker counts his loaves "
         "while three sailors argue about the moon").split()


def body_of(index, rng):
    words = [rng.choice(WORDS) for _ in range(rng.randint(4, 24))]
    body = {"prompt": " ".join(words), "max_tokens": rng.randint(4, 20), "return_token_ids": True}
    if index % 2:
        body.update(temperature=0.9, top_p=0.95)
    if index % 5 == 0:
        body.update(repetition_penalty=1.1)
    if index % 10 == 0:
        body.update(prompt="You are a careful clerk. Answer each question of the visitors in one "
                           "short sentence. Question: " + " ".join(words))
    if index % 20 == 3:
        body.update(n=3)
    if index % 20 == 5:
        body.update(logprobs=2)
    return body


def make_records():
    rng = random.Random(11)
    return job.records([(f"r{i}", body_of(i, rng)) for i in range(RECORDS)])


def config(tensor=LAYOUT[0], pipeline=LAYOUT[1], stack=False):
    extra = f"kv_cache: {{{job.stack(24)}}}\n" if stack else ""
    text = job.config("f32", tensor, pipeline, 1, True, 64, extra)
    return text.replace("run: {", f"run: {{checkpoint_interval_s: {CHECKPOINT_S}, "
                                  "rank_timeout_s: 20, ")


class Job:
    """One job in a folder of its own, started as often as it takes."""

    def __init__(self, stack=False, output=None, folder=None):
        self.folder = folder or job.Folder()
        self.stack = stack
        self.given = self.folder.file("in.jsonl", make_records())
        self.output = output or self.folder.file("out.jsonl")
        self.runs, self.stderr = 0, ""
        self.sampled = 0                # by all runs that said so

    def start(self, tensor=LAYOUT[0], pipeline=LAYOUT[1], arguments=()):
        self.runs += 1
        name = self.folder.file(f"job{self.runs}.yaml", config(tensor, pipeline, self.stack))
        line = job.command(tensor * pipeline, ["run", name, "--input", self.given, "--output",
                                               self.output, *arguments], 300)
        # pylint: disable=consider-using-with
        return subprocess.Popen(line, env=job.environment(), stderr=subprocess.PIPE, text=True,
                                stdin=subprocess.DEVNULL)

    def finish(self, process, limit_s=300):
        _, self.stderr = process.communicate(timeout=limit_s)
        self.sampled += self.totals().get("sampled_tokens", 0)
        return process.returncode

    def totals(self):
        try:
            with open(f"{self.output}.run/manifest.json", encoding="utf-8") as file:
                return json.load(file).get("totals", {})
        except (OSError, ValueError):
            return {}

    def finished(self):
        """Lines that are in the output by now."""
        try:
            with open(self.output, "rb") as file:
                return file.read().count(b"\n")
        except OSError:
            return 0

    def wait_for(self, process, lines, limit_s=120):
        """Until so many records are finished; False if the job ended before."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and process.poll() is None:
            if self.finished() >= lines:
                return True
            time.sleep(0.02)
        return False

    def answers(self):
        """custom_id -> all that the model said; None if a line is twice or broken."""
        found = {}
        with open(self.output, "rb") as file:
            for line in file:
                answer = json.loads(line)
                if not line.endswith(b"\n") or answer["custom_id"] in found or answer["error"]:
                    return None
                found[answer["custom_id"]] = answer["response"]["body"]["choices"]
        return found


def resume_to_the_end(tally, what, disturbed, reference, layouts=(LAYOUT,)):
    """Resumes until the exit code is 0; each layout in turn, the last one for the rest."""
    code, replay_s, replayed, kept = None, 0.0, 0, disturbed.finished()
    for attempt in range(len(layouts) + 2):
        tensor, pipeline = layouts[min(attempt, len(layouts) - 1)]
        process = disturbed.start(tensor, pipeline, ["--resume"])
        if attempt < len(layouts) - 1:  # and once more, in another layout
            disturbed.wait_for(process, disturbed.finished() + 20)
            kill(process, 0)
            disturbed.finish(process)
            continue
        code = disturbed.finish(process)
        totals = disturbed.totals()
        replay_s += totals.get("replay_seconds", 0)
        replayed += totals.get("replayed_tokens", 0)
        if code == 0:
            break
    good = tally.check(f"{what}: exit code at the end", code, 0)
    answers = disturbed.answers()
    good = tally.true(f"{what}: whole lines, none twice or in error", answers is not None) and good
    if answers is not None:
        good = tally.check(f"{what}: answers", sorted(answers), sorted(reference)) and good
        other = [name for name in reference if answers.get(name) != reference[name]]
        good = tally.check(f"{what}: other texts than undisturbed", other, []) and good
    print(f"  figure: survive {what}: {disturbed.runs} runs, {kept} records kept, {replayed} "
          f"tokens replayed in {replay_s:.1f} s")
    if not good:
        print(f"    last stderr:\n{disturbed.stderr[-3000:]}")
    disturbed.folder.remove()


def kill(process, rank):
    pid = ranks_below(process.pid).get(rank)
    if pid is not None:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def kill_at_random(tally, seed, reference, stack=False, layouts=(LAYOUT,)):
    rng = random.Random(seed)
    disturbed = Job(stack)
    what = f"kill, seed {seed}" + (", methods" if stack else "") + \
        (", other layouts" if len(layouts) > 1 else "")
    lines, arguments = 0, []
    for _ in range(rng.randint(1, 2)):
        process = disturbed.start(arguments=arguments)
        lines = rng.randint(lines, min(RECORDS - 5, lines + RECORDS * 2 // 3))
        disturbed.wait_for(process, lines)
        time.sleep(rng.random())
        kill(process, rng.randrange(4))
        code = disturbed.finish(process)
        tally.true(f"{what}: killed", code in (0, 1, 137), f"exit code {code}")
        arguments = ["--resume"]
    resume_to_the_end(tally, what, disturbed, reference, layouts)


def drain(tally, seed, reference, stack=False):
    rng = random.Random(seed)
    disturbed = Job(stack)
    process = disturbed.start()
    disturbed.wait_for(process, rng.randint(1, RECORDS // 2))
    time.sleep(rng.random())
    pid = ranks_below(process.pid).get(rng.randrange(4))
    began = time.monotonic()
    os.kill(pid, signal.SIGUSR1)
    code = disturbed.finish(process)
    took = time.monotonic() - began
    tally.check(f"drain, seed {seed}: exit code", code, 75)
    tally.true(f"drain, seed {seed}: within 30 s", took <= 30, f"{took:.1f} s")
    resume_to_the_end(tally, f"drain, seed {seed} ({took:.1f} s)", disturbed, reference)
    whole = sum(len(c["token_ids"]) for choices in reference.values() for c in choices)
    # A token that ends an answer may be sampled twice, nothing else.
    again = disturbed.sampled - whole
    tally.true(f"drain, seed {seed}: nothing is sampled again", again <= 64, f"{again} tokens are")


def full_disk(tally, reference):
    """A tmpfs of its own that fills up; skipped where mounting is not permitted."""
    folder = job.Folder()
    disk = folder.file("disk")
    os.mkdir(disk)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tmpfs", disk],
                             capture_output=True, check=False)
    if mounted.returncode != 0:
        tally.skip("full disk", "mount is not permitted")
        folder.remove()
        return
    try:
        disturbed = Job(output=os.path.join(disk, "out.jsonl"), folder=folder)
        code = disturbed.finish(disturbed.start())
        tally.check("full disk: exit code", code, 1)
        words = [line for line in disturbed.stderr.splitlines() if "No space left" in line]
        tally.true("full disk: says so", len(words) >= 1, disturbed.stderr[-500:])
        with open(disturbed.output, "rb") as file:
            tally.true("full disk: whole lines", all(json.loads(line) for line in file))
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        resume_on_disk(tally, disturbed, reference)
    finally:
        subprocess.run(["umount", disk], check=False)
        folder.remove()


def resume_on_disk(tally, disturbed, reference):
    code = disturbed.finish(disturbed.start(arguments=["--resume"]))
    tally.check("full disk: exit code of the resume", code, 0)
    answers = disturbed.answers() or {}
    other = [name for name in reference if answers.get(name) != reference[name]]
    tally.check("full disk: other texts than undisturbed", other, [])


def torn(tally, reference):
    """Files as a dead node leaves them: bytes missing at their ends, garbage after."""
    rng = random.Random(5)
    disturbed = Job()
    process = disturbed.start()
    disturbed.wait_for(process, RECORDS // 3)
    kill(process, 1)
    disturbed.finish(process)
    journal = f"{disturbed.output}.run/journal"
    os.truncate(disturbed.output, os.path.getsize(disturbed.output) - rng.randint(1, 200))
    os.truncate(journal, os.path.getsize(journal) - rng.randint(1, 60))
    with open(journal, "ab") as file:
        file.write(b"\x00" * 37 + b"\xff\x17")
    resume_to_the_end(tally, "torn files", disturbed, reference)


def reference_of(tally, stack=False):
    undisturbed = Job(stack)
    began = time.monotonic()
    code = undisturbed.finish(undisturbed.start())
    took = time.monotonic() - began
    if not tally.check("undisturbed: exit code", code, 0):
        print(undisturbed.stderr[-3000:])
        tally.end()
    print(f"  figure: survive undisturbed{', methods' if stack else ''}: {took:.1f} s")
    answers = undisturbed.answers()
    tally.check("undisturbed: answers", len(answers), RECORDS)
    undisturbed.folder.remove()
    return answers


def main():
    tally = job.Tally("survive")
    job.need_model(tally)
    if not job.has_mpi():
        tally.skip("all", "needs mpirun")
        tally.end()
    long = job.LEVEL == "long"
    times, others = 20 if long else 4, ((1, 2), (1, 1))
    reference = reference_of(tally)
    for seed in range(times):
        kill_at_random(tally, seed, reference)
    for seed in range(times // 4):
        drain(tally, 100 + seed, reference)
    full_disk(tally, reference)
    torn(tally, reference)
    kill_at_random(tally, 200, reference, layouts=others)
    edited = reference_of(tally, stack=True)
    tally.true("methods: they change answers", edited != reference)
    for seed in range(times // 4):
        kill_at_random(tally, 300 + seed, edited, stack=True)
        drain(tally, 110 + seed, edited, stack=True)
    if long:
        kill_at_random(tally, 210, edited, stack=True, layouts=others)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
