"""`sheaf merge`: outputs of array jobs into one, whole or not at all.

Shown: lines byte for byte in the order of the shards; a last line torn anywhere is left out and
named, one that lacks only its newline is kept; blank lines; answers that are there twice, in one
shard, in two, spelt with escapes, refused with both files and lines; errors beside an answer left
out, in any order, and errors alone refused; records without an id; lines with more values than the
JSON parser takes; shards that are no outputs; a shard whose run has not finished; what stands at
OUT or OUT.new; a full disk; exit codes, streams and --log-json; memory that does not grow with the
bytes.  Needs neither ranks nor a model.
"""
# cores: 1
import itertools
import json
import os
import resource
import subprocess
import sys

import job

TOTALS = "merged {} records from {} shards, {} errors"


def answer(name, text="x"):
    return json.dumps({"id": "req-1", "custom_id": name, "response": {
        "status_code": 200, "request_id": "req-1", "body": {"choices": [{"text": text}]}},
                       "error": None})


def error(name, line=1):
    return json.dumps({"id": "req-2", "custom_id": name, "response": None,
                       "error": {"code": "invalid_json", "message": "}\"{", "line": line}})


class Case:
    """Shards in a folder of their own, merged once."""

    def __init__(self, *shards, extra=(), before=None, prepare=None):
        self.folder = job.Folder()
        self.shards = [self.folder.file(f"s{i}.jsonl", text) for i, text in enumerate(shards)]
        self.output = self.folder.file("out.jsonl")
        if prepare:
            prepare(self)
        self.done = job.sheaf(1, ["merge", "--output", self.output, *extra, *self.shards], 120,
                              before=before)
        self.text = None
        if os.path.isfile(self.output):
            with open(self.output, "rb") as file:
                self.text = file.read().decode("utf-8")
        self.left = os.path.exists(self.output + ".new")
        self.folder.remove()

    def merged(self, tally, what, text, errors=0, warnings=()):
        tally.check(f"{what}: exit code", self.done.code, 3 if errors else 0)
        tally.check(f"{what}: stdout", self.done.stdout, "")
        tally.check(f"{what}: output", self.text, text)
        tally.true(f"{what}: nothing beside it", not self.left)
        lines = self.done.own_lines()
        totals = TOTALS.format(text.count("\n"), len(self.shards), errors)
        tally.true(f"{what}: totals", lines and lines[-1].endswith(totals), self.done.stderr)
        tally.check(f"{what}: warnings", len(lines) - 1, len(warnings))
        for word, line in zip(warnings, lines):
            tally.true(f"{what}: warns of {word}", "warning" in line and word in line, line)

    def refused(self, tally, what, words, code=2, kept=None):
        tally.check(f"{what}: exit code", self.done.code, code)
        tally.check(f"{what}: stdout", self.done.stdout, "")
        tally.check(f"{what}: no output", self.text, kept)
        tally.true(f"{what}: nothing beside it", not self.left)
        lines = self.done.error_lines()
        tally.true(f"{what}: one line with {words}", len(lines) == 1 and
                   all(word in lines[0] for word in words), self.done.stderr)


def lines_of(*lines):
    return "".join(line + "\n" for line in lines)


def plain(tally):
    a, b, c, d = answer("a"), answer("b", "\u00e9\"}\\"), error("c"), answer("")
    Case(lines_of(a)).merged(tally, "one", lines_of(a))
    Case(lines_of(b, a), lines_of(d)).merged(tally, "two", lines_of(b, a, d))
    Case(lines_of(a), "", lines_of(c, b)).merged(tally, "three", lines_of(a, c, b), 1)
    Case("", "").merged(tally, "of nothing", "")
    Case(f"\n \t\n{a}\n\n\r\n{b}\n\n", f"\n\n{c}").merged(tally, "blank lines",
                                                          lines_of(a, b, c), 1)
    Case("\ufeff" + lines_of(a), "\ufeff" + a[:-1]).merged(
        tally, "byte order marks", lines_of(a), 0, ["s1.jsonl: its last line, 1, is torn"])
    spaced = a.replace(": ", " :\t").replace(", ", " , ")
    Case(f"{spaced}\r\n", lines_of(b)).merged(tally, "as they are", f"{spaced}\r\n{b}\n")
    nameless = error(None)
    Case(lines_of(nameless, nameless), lines_of(nameless)).merged(
        tally, "without ids", lines_of(*[nameless] * 3), 3)
    many = f'{{"custom_id": "m", "response": [{"1," * (1 << 22)}1], "error": null}}'
    Case(lines_of(many), lines_of(a)).merged(tally, "many values", lines_of(many, a))


def torn(tally):
    a, b, c = answer("a"), answer("b"), answer("c")
    for cut in range(1, len(b)) if job.LEVEL == "long" else range(1, len(b), 9):
        Case(f"{a}\n{b[:cut]}", lines_of(c)).merged(
            tally, f"torn at {cut}", lines_of(a, c), 0, ["s0.jsonl: its last line, 2, is torn"])
    Case(f"{a}\n{b}", lines_of(c)).merged(tally, "without newline", lines_of(a, b, c))
    Case(a + "\n" + "\0" * 4096, lines_of(c)).merged(tally, "zeros", lines_of(a, c), 0, ["is torn"])
    Case(f"{a}\n{b[:20]}\n{c}\n").refused(tally, "torn inside", ["s0.jsonl:2: error: ", "no JSON"])


def twice(tally):
    a, b, again = answer("a"), answer("b"), answer("a", "y")
    Case(lines_of(a, b, again)).refused(
        tally, "in one", ["s0.jsonl:3: error: custom_id 'a' is answered in", "s0.jsonl:1 too"])
    Case(lines_of(b), lines_of(answer("c"), a), lines_of("", again)).refused(
        tally, "in two", ["s2.jsonl:2: error: custom_id 'a' is", "s1.jsonl:2 too"])
    Case(lines_of(a), lines_of(a.replace('"a"', '"\\u0061"'))).refused(
        tally, "with escapes", ["s1.jsonl:1: error: custom_id 'a' is", "s0.jsonl:1 too"])
    Case(lines_of(answer("")), lines_of(answer(""))).refused(tally, "empty id", ["custom_id ''"])
    near = [answer("a\0b"), answer("a\0c"), answer("a"), answer("A"), answer("a ")]
    Case(lines_of(*near[:2]), lines_of(*near[2:])).merged(tally, "not quite", lines_of(*near))


def errors(tally):
    """An answer wins, whatever order its errors come in."""
    e, f, a, b = error("a"), error("a", 2), answer("a"), answer("b")
    note = "1 errors were left out"
    Case(lines_of(b, e), lines_of(a)).merged(tally, "error, answer", lines_of(b, a), 0, [note])
    Case(lines_of(a), lines_of(e, b)).merged(tally, "answer, error", lines_of(a, b), 0, [note])
    Case(lines_of(e, a)).merged(tally, "in one", lines_of(a), 0, [note])
    Case(lines_of(a), e).merged(tally, "at the end", lines_of(a), 0, [note])
    Case(lines_of(b) + e, lines_of(a)).merged(tally, "without newline", lines_of(b, a), 0, [note])
    for order in itertools.permutations([e, f, a]):
        Case(*[lines_of(line) for line in order]).merged(
            tally, "three", lines_of(a), 0, ["2 errors were left out"])
    Case(lines_of(b, e), lines_of(b[:-1]), lines_of()).refused(tally, "no line", ["s1.jsonl:1"])
    Case(lines_of(b, e), lines_of(answer("c"), "", f)).refused(
        tally, "two errors", ["s1.jsonl:3: error: custom_id 'a' has an error in", "s0.jsonl:2 too"])
    Case(lines_of(e, a), lines_of(answer("a", "y"))).refused(tally, "two answers", [
        "s1.jsonl:1: error: custom_id 'a' is answered in", "s0.jsonl:2 too"])
    names = [f"n{i}" for i in range(3000)]
    Case(lines_of(*map(error, names)), lines_of(*map(answer, names))).merged(
        tally, "thousands", lines_of(*map(answer, names)), 0, ["3000 errors were left out"])


def others(tally):
    a, b = answer("a"), answer("b")
    for what, text in [("a request", '{"custom_id": "a", "body": {}}'), ("a list", "[1]"),
                       ("words", "hello"), ("a number as id", a.replace('"a"', "7"))]:
        Case(lines_of(a), lines_of(b, text)).refused(tally, what, ["s1.jsonl:2: error: "])
    Case(lines_of(a), extra=["/nonexistent.jsonl"]).refused(tally, "not there", ["nonexistent"])
    Case(lines_of(a), extra=["/tmp"]).refused(tally, "a folder", ["/tmp", "regular file"])

    def same(case):
        case.shards.append(os.path.join(case.folder.path, ".", "s0.jsonl"))
    Case(lines_of(error(None)), prepare=same).refused(tally, "the same twice", ["given twice"])
    Case(lines_of(a), prepare=lambda case: case.folder.file("out.jsonl", "precious\n")).refused(
        tally, "output there", ["out.jsonl exists already"], kept="precious\n")
    Case(lines_of(a), prepare=lambda case: case.folder.file("out.jsonl.new", b * 9)).merged(
        tally, "leftover", lines_of(a))

    def nowhere(case):
        case.output = case.folder.file("no/where/out.jsonl")
    Case(lines_of(a), prepare=nowhere).refused(tally, "no folder", ["out.jsonl.new"], code=1)

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    Case(lines_of(answer("c", "x" * 9000)), before=small_files).refused(
        tally, "full disk", ["out.jsonl.new", "File too large"], code=1)


def manifest_beside(text):
    def prepare(case):
        os.mkdir(case.shards[1] + ".run")
        case.folder.file("s1.jsonl.run/manifest.json", text)
    return prepare


def unfinished(tally):
    a, b = answer("a"), answer("b")
    manifest = {"config": "schema_version: 1\n", "model_sha256": "0" * 64, "finished": None}
    for what, text, words in [
            ("unfinished", json.dumps(manifest), ["s1.jsonl: its run has not finished"]),
            ("finished", json.dumps(dict(manifest, finished=17)), []),
            ("damaged", "{", ["cannot tell whether this run has finished"])]:
        Case(lines_of(a), lines_of(b), prepare=manifest_beside(text)).merged(
            tally, what, lines_of(a, b), 0, words)


def usage(tally):
    done = job.sheaf(1, ["merge", "--help"], 60)
    tally.true("--help", done.code == 0 and "usage: sheaf merge" in done.stdout, done.stderr)
    tally.true("sheaf --help", "merge" in job.sheaf(1, ["--help"], 60).stdout)
    for what, arguments, word in [("nothing", [], "--output is missing"),
                                  ("no shard", ["--output", "o"], "SHARD is missing"),
                                  ("no value", ["x", "--output"], "'--output'"),
                                  ("unknown", ["--outptu", "o", "x"], "'--outptu'"),
                                  ("level", ["--log-level", "loud", "--output", "o", "x"], "loud")]:
        done = job.sheaf(1, ["merge", *arguments], 60)
        tally.check(f"{what}: exit code", done.code, 2)
        tally.true(f"{what}: words", len(done.error_lines()) == 1 and word in done.stderr and
                   "sheaf merge --help" in done.stderr, done.stderr)
    done = Case(lines_of(answer("a")), extra=["--log-json"]).done
    tally.check("--log-json", json.loads(done.stderr)["msg"], TOTALS.format(1, 1, 0))
    done = Case(lines_of(answer("a")), extra=["--log-level", "error"]).done
    tally.check("--log-level error", (done.code, done.stderr), (0, ""))


def peak_kib(folder, name):
    """Peak memory of merging this shard."""
    output = folder.file(name + ".out")
    with subprocess.Popen([job.SHEAF, "merge", "--output", output, folder.file(name)],
                          stderr=subprocess.DEVNULL, env=job.environment()) as process:
        _, status, usage_of = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage_of.ru_maxrss


def memory(tally):
    folder = job.Folder()
    count = 200000
    folder.file("few", lines_of(answer("a")))
    folder.file("many", lines_of(*[answer(f"n{i}", "x" * 300) for i in range(count)]))
    few, many = peak_kib(folder, "few"), peak_kib(folder, "many")
    tally.check("memory: exit codes", (few[0], many[0]), (0, 0))
    bound = few[1] + 22 * count // 1024 + 2048
    tally.true("memory: 21 bytes a line", many[1] <= bound, f"{many[1]} KiB, at most {bound}")
    folder.remove()


def main():
    tally = job.Tally("merge")
    if not os.access(job.SHEAF, os.X_OK):
        tally.true("there is a build", False, f"no {job.SHEAF}; SHEAF_BUILD names its folder")
        tally.end()
    for part in (plain, torn, twice, errors, others, unfinished, usage, memory):
        part(tally)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
