"""Every shipped configuration does what its first comment says.

The comment at the top of each file under configs/ has one or more runs to try, each
    # test: WORD VALUE, WORD VALUE, ...
    #       WORD VALUE, ...                  (lines that go on are indented)
with these words (paths relative to the repository):
    ranks N        ranks to launch; 1 if it is not there
    set KEY=VALUE  for this run, as --set; may stand several times
    input FILE     records to answer
    exit CODE      of the run
    answers N      lines of output
    equals exact   each answer has the text of a run without kv_cache.methods
    evicts WHAT    some or nothing: slots over all answers
    slots N        at most so many slots of a lane are left at the end of an answer
SHEAF_TEST_LEVEL=quick tries the first run of each file and compares no texts.
"""
# cores: 1
import glob
import json
import os
import re
import sys

import job

PROFILES = "configs/profiles/"           # written by sheaf calibrate, named by configurations
BLOCK = re.compile(r"^# test:((?:.*\n)(?:#    +.*\n)*)", re.M)
REQUIRED = {"input", "exit", "answers"}
KNOWN = REQUIRED | {"ranks", "set", "equals", "evicts", "slots"}


def first_comment(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    return re.match(r"(#.*\n)*", text)[0]


def parse(block):
    """{"set": [...], word: value} of one block."""
    plan = {"set": [], "ranks": "1"}
    for part in re.sub(r"\n#?", " ", block).split(","):
        word, _, value = part.strip().partition(" ")
        if word not in KNOWN or not value:
            raise ValueError(f"'{part.strip()}' is not known here")
        if word == "set":
            plan["set"].append(value.strip())
        else:
            plan[word] = value.strip()
    missing = REQUIRED - plan.keys()
    if missing:
        raise ValueError(f"{', '.join(sorted(missing))} missing")
    return plan


def run(path, plan, extra=()):
    """(Done, its answers by custom_id)"""
    folder = job.Folder()
    output = folder.file("out.jsonl")
    sets = [word for value in [*plan["set"], *extra] for word in ("--set", value)]
    done = job.sheaf(int(plan["ranks"]), ["run", path, "--input", os.path.join(
        job.ROOT, plan["input"]), "--output", output, *sets], 300)
    answers = {}
    if os.path.exists(output):
        with open(output, encoding="utf-8") as file:
            answers = {line["custom_id"]: line for line in map(json.loads, file)}
    folder.remove()
    return done, answers


def texts(answers):
    choices = {name: line["response"]["body"]["choices"][0] for name, line in answers.items()}
    return {name: c["message"]["content"] if "message" in c else c["text"]
            for name, c in choices.items()}


def slots_left(line):
    """Slots a lane holds at the end, from the receipt: the exact cache has one for each token fed,
    and the last token of an answer is not fed."""
    body = line["response"]["body"]
    fed = body["usage"]["total_tokens"] - 1
    return body["sheaf"]["kv_bytes_stored"] * fed / body["sheaf"]["kv_bytes_exact"]


def without_methods(path):
    """A configuration's lines but for comments and methods (the last key of its kv_cache)."""
    with open(path, encoding="utf-8") as file:
        text = re.sub(r"^ *#.*\n", "", file.read(), flags=re.M)
    return re.sub(r"^  methods:\n(?:    .*\n)*", "", text, flags=re.M)


EXACT = {}                              # texts of exact runs: several files differ in methods alone


def exact_texts(path, plan):
    key = json.dumps([without_methods(path), plan["ranks"], plan["input"], plan["set"]])
    if key not in EXACT:
        EXACT[key] = texts(run(path, plan, ["kv_cache.methods=[]"])[1])
    return EXACT[key]


def check(tally, name, path, plan):
    done, answers = run(path, plan)
    good = tally.check(f"{name}: exit code", done.code, int(plan["exit"]))
    good &= tally.check(f"{name}: answers", len(answers), int(plan["answers"]))
    if "equals" in plan and job.LEVEL != "quick":
        good &= tally.check(f"{name}: equals exact", texts(answers), exact_texts(path, plan))
    if "evicts" in plan:
        evicted = sum(line["response"]["body"]["sheaf"]["slots_evicted"]
                      for line in answers.values())
        good &= tally.true(f"{name}: evicts {plan['evicts']}",
                           (evicted > 0) == (plan["evicts"] == "some"), f"{evicted} slots")
    if "slots" in plan:
        most = max(slots_left(line) for line in answers.values())
        good &= tally.true(f"{name}: at most {plan['slots']} slots", most <= int(plan["slots"]),
                           f"{most:.1f} slots")
    if not good:
        print(done.stderr)


def main():
    tally = job.Tally("configs")
    job.need_model(tally)
    paths = [path for path in sorted(glob.glob(os.path.join(job.ROOT, "configs/**/*.yaml"),
                                               recursive=True)) if PROFILES not in path]
    tally.true("there are configurations", len(paths) > 0)
    for path in paths:
        name = os.path.relpath(path, job.ROOT)
        blocks = BLOCK.findall(first_comment(path))
        tally.true(f"{name}: has a test block", len(blocks) > 0, "its first comment has none")
        if job.LEVEL == "quick":
            blocks = blocks[:1]
        for number, block in enumerate(blocks, 1):
            try:
                plan = parse(block)
            except ValueError as error:
                tally.true(f"{name}: test {number} is readable", False, str(error))
                continue
            if int(plan["ranks"]) > 1 and not job.has_mpi():
                tally.skip(f"{name}, test {number}", "no mpirun, or a build without MPI")
                continue
            check(tally, f"{name}, test {number}", path, plan)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
