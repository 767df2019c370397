"""A method that was configured and did nothing says why, and one that did something is not blamed.

Shown: run, bench and eval end with one warning for each entry of the stack that has changed no
lane of any record, with its name, its place and counts of records by reason; the manifest counts
what each entry did, and the receipt of a record says which methods left it alone and why.  On two
ranks, where one holds no lane that is changed, the same.
"""
# cores: 1
import json
import sys

import job

SHORT, LONG = 20, 60
METHODS = ("kv_cache: {methods: [{name: razor_attention, retrieval_heads: [[0, 0]], layers: 0-9, "
           "min_window_tokens: 400}, {name: ems, budget_tokens: 128, layers: 10-19}, "
           "{name: window, num_sink_tokens: 4, recent_tokens: 36, layers: 20-29}]}\n")
RAZOR = "fewer tokens than sinks, window and min_dropped_tokens together"
EMS = "fewer tokens than the 160 with which a lane is full"
WINDOW = "fewer tokens than the 41 with which a lane is full"


def warnings(done):
    return [line for line in done.stderr.splitlines() if "changed nothing" in line]


def expected(what, count):
    place = "sheaf: warning: method {} (entry {} of 3) changed nothing of {} {}: {} ({})"
    return [place.format("razor_attention", 1, count, what, RAZOR, count),
            place.format("ems", 2, count, what, EMS, count)]


def runs(tally, ranks):
    folder = job.Folder()
    bodies = [("short", {"prompt": [504] * SHORT, "max_tokens": 4, "ignore_eos": True}),
              ("long", {"prompt": [504] * LONG, "max_tokens": 4, "ignore_eos": True})]
    done = job.run(ranks, job.config("bf16", 1, ranks, 1, False, 8, METHODS), job.records(bodies),
                   folder=folder)
    what = f"run, {ranks} ranks"
    tally.check(f"{what}: exit code", done.code, 0)
    tally.check(f"{what}: warnings", warnings(done), expected("records", 2))
    idle = {name: [(one["name"], one["reason"])
                   for one in answer["response"]["body"]["sheaf"].get("idle", [])]
            for name, answer in done.answers.items()}
    both = [("razor_attention", RAZOR), ("ems", EMS)]
    tally.check(f"{what}: receipts", idle, {"short": both + [("window", WINDOW)], "long": both})
    with open(folder.file("out0.jsonl.run/manifest.json"), encoding="utf-8") as file:
        methods = json.load(file)["methods"]
    tally.check(f"{what}: manifest", methods,
                [{"name": "razor_attention", "entry": 0, "changed": 0, "unchanged": {RAZOR: 2}},
                 {"name": "ems", "entry": 1, "changed": 0, "unchanged": {EMS: 2}},
                 {"name": "window", "entry": 2, "changed": 1, "unchanged": {WINDOW: 1}}])
    folder.remove()


def measures(tally):
    folder = job.Folder()
    config = folder.file("job.yaml", job.config("bf16", 1, 1, 1, False, 4, METHODS))
    text = folder.file("text.txt", "The harbour of the town was small and old. " * 12)
    done = job.sheaf(1, ["bench", config, "--no-exact", "--num-prompts", "4", "--input-len",
                         str(LONG), "--output-len", "4"], 60)
    tally.check("bench: exit code", done.code, 0)
    tally.check("bench: warnings", warnings(done), expected("sequences", 4))
    done = job.sheaf(1, ["eval", config, "--text", text, "--len", "90"], 60)
    tally.check("eval: exit code", done.code, 0)
    tally.check("eval: warnings", warnings(done), expected("sequences", 1))
    folder.remove()


def main():
    tally = job.Tally("idle")
    job.need_model(tally)
    for ranks in [1, 2] if job.has_mpi() else [1]:
        runs(tally, ranks)
    measures(tally)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
