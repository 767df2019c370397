"""`sheaf calibrate`: what a method learns of the real model, in every layout, and what is refused.

razor_attention, f32, a short block.  Shown: one rank, tensor and pipeline ranks give the same heads
and scores to 1e-4; the heads are those that the scores come to by a ranking in plain Python; the
same seed gives the same file, another one does not; the profile names the model and how it was
run; a choice is made anew from the file without a model, and in its place; a job takes the profile,
and heads that a person takes out of it, byte for byte in its receipts; a type, a method, options
and places that make no sense are refused with one line, exit 2, and nothing left behind.
"""
# not with --quick
import os
import re
import resource
import sys

import job

BLOCK, LAYERS, HEADS, GROUP, SLOT = 40, 30, 3, 3, 2 * 64 * 4 + 8
LAYOUTS = [(3, 1, 1), (1, 2, 1)]
if job.LEVEL == "long":
    LAYOUTS += [(2, 2, 1), (1, 1, 2), (5, 1, 1)]
ROW = re.compile(r"  - \{layer: (\d+), head: (\d+), induction: \[(.*)\], echo: \[(.*)\]\}")
PAIR = re.compile(r"  - \[(\d+), (\d+)\]")


def razor(more=""):
    return f"kv_cache: {{methods: [{{name: razor_attention{more}}}]}}\n"


def asked(layout=(1, 1, 1), more=f", calibration_block_tokens: {BLOCK}"):
    return job.config("f32", *layout, deterministic=False, extra=razor(more))


class Profile:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.text = file.read()
        self.heads = [tuple(map(int, found)) for found in PAIR.findall(self.text)]
        self.keys = dict(re.findall(r"^(\w+): (.+)$", self.text, re.M))
        self.scores = {}                # (layer, head): (induction, echo), a number a query head
        for layer, head, *lists in ROW.findall(self.text):
            self.scores[int(layer), int(head)] = [[float(x) for x in one.split(",")]
                                                  for one in lists]

    def chosen(self, induction, echo, promote=False):
        """The set that the scores come to: sorted (layer, head)."""
        found = set()
        for column, ratio in ((0, induction), (1, echo)):
            ranked = [(-max(lists[column]), lane) for lane, lists in self.scores.items()]
            if promote:
                ranked = [(-score, lane) for lane, lists in self.scores.items()
                          for score in lists[column]]
            count = int(ratio * len(ranked) + 0.5)
            found.update(lane for _, lane in sorted(ranked, key=lambda x: x[0])[:count])
        return sorted(found)


def calibrate(folder, name, config_text, arguments=(), ranks=1):
    config = folder.file(f"{name}.yaml", config_text)
    output = folder.file(f"{name}.profile")
    return output, job.sheaf(ranks, ["calibrate", config, "--output", output, *arguments])


def layouts(tally, folder):
    output, done = calibrate(folder, "one", asked())
    if not tally.check("one rank: exit code", done.code, 0):
        print(done.stderr[-2000:])
        return None
    tally.check("one rank: stdout", done.stdout, "")
    tally.check("nothing beside it", os.path.exists(output + ".new"), False)
    one = Profile(output)
    tally.check("heads scored", sorted(one.scores), [(l, h) for l in range(LAYERS)
                                                     for h in range(HEADS)])
    tally.true("query heads scored", all(len(column) == GROUP for lists in one.scores.values()
                                         for column in lists))
    tally.check("heads chosen", one.heads, one.chosen(0.14, 0.01))
    tally.check("how it was run", [one.keys.get(key) for key in
                                   ("method", "copies", "tokens", "calibration_block_tokens",
                                    "calibration_seed", "induction_head_ratio", "model")],
                ["razor_attention", "4", str(1 + 4 * BLOCK), str(BLOCK), "0", "0.14",
                 os.path.basename(job.MODEL)])
    tally.true("the model's digest", re.fullmatch("[0-9a-f]{64}", one.keys["model_sha256"]))
    best = [max(max(lists[c]) for lists in one.scores.values()) for c in (0, 1)]
    tally.true("some head looks back", min(best) > 0.5 and max(best) <= 3, str(best))
    for layout in LAYOUTS if job.has_ranks() else []:
        what = "tensor %d x pipeline %d x data %d" % layout
        output, done = calibrate(folder, "many", asked(layout),
                                 ranks=layout[0] * layout[1] * layout[2])
        if not tally.check(f"{what}: exit code", done.code, 0):
            print(done.stderr[-2000:])
            continue
        many = Profile(output)
        tally.check(f"{what}: heads", many.heads, one.heads)
        far = max(abs(a - b) for lane, lists in one.scores.items()
                  for mine, other in zip(lists, many.scores[lane]) for a, b in zip(mine, other))
        tally.true(f"{what}: scores", far <= 1e-4, f"{far} apart")
    return one


def seeds(tally, folder, one):
    output, _ = calibrate(folder, "again", asked())
    tally.check("the same seed", Profile(output).text, one.text)
    output, _ = calibrate(folder, "other", asked(more=", calibration_block_tokens: 8"
                                                      ", calibration_seed: 7"),
                          ["--method", "razor_attention"])
    other = Profile(output)
    tally.check("another seed and block", [other.keys[key] for key in
                                           ("calibration_seed", "tokens")], ["7", "33"])
    tally.true("other scores", other.scores != one.scores)


def chooses(tally, folder, one):
    source = folder.file("one.profile")
    for more, args in [(", induction_head_ratio: 0.3, echo_head_ratio: 0.05", (0.3, 0.05)),
                       (", gqa_rule: promote", (0.14, 0.01, True)),
                       (", induction_head_ratio: 0, echo_head_ratio: 0", (0, 0)),
                       (", induction_head_ratio: 1", (1, 0.01))]:
        output, done = calibrate(folder, "chosen", asked(more=more), ["--from", source])
        tally.check(f"--from{more}: exit code", done.code, 0)
        again = Profile(output)
        tally.check(f"--from{more}: heads", again.heads, one.chosen(*args))
        tally.check(f"--from{more}: scores", again.scores, one.scores)
        tally.check(f"--from{more}: of the model, the run",
                    [again.keys[k] for k in ("model_sha256", "calibration_block_tokens", "model")],
                    [one.keys[k] for k in ("model_sha256", "calibration_block_tokens", "model")])
    output, done = calibrate(folder, "chosen", asked(), ["--from", folder.file("chosen.profile")])
    tally.check("in its place", Profile(output).text, one.text)
    output, done = calibrate(folder, "few", asked(more=", echo_head_ratio: 0.001"),
                             ["--from", source])
    tally.true("an empty set is a warning", done.code == 0 and "0.001 of 90 heads" in done.stderr,
               done.stderr)


def runs(tally, folder, one):
    """A prompt of 100 tokens and an answer of 1, so 100 in the cache."""
    given = job.records([("a", {"prompt": [504 + i for i in range(100)], "max_tokens": 1})])
    edited = one.text.replace("  - [%d, %d]" % one.heads[0], "#", 1)
    for name, text, heads in [("one.profile", one.text, len(one.heads)),
                              ("edited.profile", edited, len(one.heads) - 1)]:
        path = folder.file(name, text)
        done = job.run(1, job.config("f32", extra=razor(
            f", profile: {path}, min_window_tokens: 20, window_divisor: 20"
            ", min_dropped_tokens: 1")), given)
        if not tally.check(f"{name}: exit code", done.code, 0):
            print(done.stderr[-2000:])
            continue
        body = done.answers["a"]["response"]["body"]["sheaf"]
        others = LAYERS * HEADS - heads
        tally.check(f"{name}: stored", body["kv_bytes_stored"],
                    (100 * heads + 25 * others) * SLOT)
        tally.check(f"{name}: no warning", "warning" in done.stderr, False)


def refused(tally, folder, one):
    exact = job.config("f32")
    window = job.config("f32", extra="kv_cache: {methods: [{name: window}]}\n")
    twice = asked().replace("}]}", "}, {name: razor_attention, layers: \"0-3\"}]}")
    source = folder.file("one.profile")
    cases = [
        ("no method", exact, [], ["nothing to calibrate", "razor_attention"]),
        ("a method without", window, ["--method", "window"],
         ["'window'", "nothing to calibrate", "razor_attention"]),
        ("a misspelt one", exact, ["--method", "razor_atention"], ["did you mean"]),
        ("one to come", exact, ["--method", "kv_heads"], ["'kv_heads' is not built yet"]),
        ("two of them", twice, [], ["one is calibrated at a time"]),
        ("a block of one", asked(more=", calibration_block_tokens: 1"), [],
         ["calibration_block_tokens", "from 2"]),
        ("no room", asked(), ["--set", "scheduler.max_model_len=9"], ["block of 2 tokens"]),
        ("more ranks", asked((2, 1, 1)), [], ["2"]),
        ("no model", "schema_version: 1\n" + razor(), [], ["model.path is missing"]),
        ("no profile", asked(), ["--from", "/nonexistent"], ["/nonexistent"]),
        ("another file", asked(), ["--from", job.MODEL], ["error"]),
        ("no scores", asked(), ["--from", folder.file("bare", "retrieval_heads: [[0, 1]]\n")],
         ["no scores"]),
        ("another method's", asked(), ["--from", folder.file("ems", one.text.replace(
            "method: razor_attention", "method: ems"))], ["a profile of ems"]),
        ("an option", asked(), ["--seed", "3"], ["unknown option '--seed'"]),
    ]
    for what, text, arguments, words in cases:
        output, done = calibrate(folder, "bad", text, arguments)
        lines = done.error_lines()
        tally.check(f"{what}: exit code", done.code, 2)
        tally.true(f"{what}: words", len(lines) == 1 and all(w in lines[0] for w in words),
                   done.stderr)
        tally.check(f"{what}: nothing left", [os.path.exists(output + end) for end in
                                              ("", ".new")], [False, False])
    config = folder.file("place.yaml", asked())
    for what, path in [("over CONFIG", config), ("a folder", folder.path),
                       ("no folder", folder.file("none/there"))]:
        for more in ([], ["--from", source]):
            done = job.sheaf(1, ["calibrate", config, "--output", path, *more], 60)
            tally.check(f"{what} {more}: exit code", done.code, 2)
            tally.check(f"{what} {more}: lines", len(done.error_lines()), 1)
    with open(config, encoding="utf-8") as file:
        tally.check("CONFIG is as it was", file.read(), asked())
    linked, kept = folder.file("linked"), folder.file("kept.new", one.text)
    os.symlink(job.MODEL, linked)
    for path, read, more in [(linked, job.MODEL, []), (linked, job.MODEL, ["--from", source]),
                             (kept[:-4], kept, ["--from", kept])]:
        done = job.sheaf(1, ["calibrate", config, "--output", path, *more], 60)
        what = f"over {read} {more}"
        tally.check(f"{what}: exit code", done.code, 2)
        tally.true(f"{what}: words", len(done.error_lines()) == 1 and
                   f"would take the place of {read}" in done.stderr, done.stderr)
    tally.check("what is read is as it was", Profile(kept).text, one.text)
    line = ["calibrate", config, "--output", folder.file("full"), "--from", source]
    done = job.sheaf(1, line, 60,
                     lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)))
    tally.check("--from, full disk: exit code", done.code, 1)
    tally.true("--from, full disk: one line", len(done.error_lines()) == 1 and
               "full.new" in done.stderr, done.stderr)
    done = job.sheaf(1, ["calibrate", config], 60)
    tally.true("no output", done.code == 2 and "--output is missing" in done.stderr, done.stderr)
    done = job.sheaf(1, ["plan", folder.file("other.yaml", asked(
        more=f", profile: {source}, induction_head_ratio: 0.5"))], 60)
    tally.true("a choice that is not the profile's", done.code == 2 and
               "was made with 0.14" in done.stderr, done.stderr)


def main():
    tally = job.Tally("calibrate")
    job.need_model(tally)
    folder = job.Folder()
    one = layouts(tally, folder)
    if one is not None:
        seeds(tally, folder, one)
        chooses(tally, folder, one)
        runs(tally, folder, one)
        refused(tally, folder, one)
    folder.remove()
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
