"""Bad input gets one clear line, the right exit code, and leaves nothing behind.

Shown for each case: the exit code, that a dozen lines at most come out, that exactly one of them
says error and names the thing, and that no output file exists after a refusal.  Bad records do not
stop the others: exit 3, and each holds its code and line.
"""
import json
import os
import sys

import job

GOOD = job.records([("a", {"prompt": [504, 3575], "max_tokens": 2})])


def refused(tally, what, ranks, config_text, input_text, code, words, arguments=()):
    folder = job.Folder()
    done = job.run(ranks, config_text, input_text, arguments, 120, folder)
    tally.check(f"{what}: exit code", done.code, code)
    lines = done.error_lines()
    tally.true(f"{what}: one line with error", len(lines) == 1, f"stderr is:\n{done.stderr}")
    for word in words:
        tally.true(f"{what}: says {word!r}", any(word in line for line in lines),
                   f"stderr is:\n{done.stderr}")
    tally.true(f"{what}: nothing left behind",
               not any(name.startswith("out") for name in os.listdir(folder.path)),
               str(os.listdir(folder.path)))
    folder.remove()
    return done


def bad_configs(tally):
    good = job.config()
    refused(tally, "unknown key", 1, good.replace("tensor_parallel_size", "tensor_paralel_size"),
            GOOD, 2, [".yaml:4:3: error:", "tensor_paralel_size", "tensor_parallel_size'?"])
    refused(tally, "wrong type", 1, good.replace("max_num_seqs: 64", "max_num_seqs: many"), GOOD, 2,
            [".yaml:7:", "many"])
    refused(tally, "syntax", 1, good + "kv_cache: {memory: [1}\n", GOOD, 2, [".yaml:", "error:"])
    refused(tally, "--set", 1, good, GOOD, 2, ["--set", "max_num_seqs", "0"],
            ["--set", "scheduler.max_num_seqs=0"])
    refused(tally, "too many KV bytes asked", 1, good, GOOD, 2, ["error"],
            ["--set", "kv_cache.memory=900TiB"])
    refused(tally, "method that does not exist", 1, good, GOOD, 2, ["windov", "window"],
            ["--set", "kv_cache.methods.0.name=windov"])


def bad_worlds(tally):
    refused(tally, "layout for 4 ranks on one", 1, job.config(tensor=2, pipeline=2), GOOD, 2,
            ["4 ranks", "1"])
    if not job.has_mpi():
        tally.skip("wrong rank count under mpirun", "no mpirun")
        return
    refused(tally, "layout for 2 ranks on 3", 3, job.config(tensor=2), GOOD, 2, ["2 ranks", "3"])
    refused(tally, "unknown key on 2 ranks", 2, job.config(tensor=2) + "nonsense: 1\n", GOOD, 2,
            ["nonsense"])
    refused(tally, "too many tensor ranks", 10, job.config(tensor=10), GOOD, 2, ["tensor"])


def bad_models(tally):
    folder = job.Folder()
    cut = folder.file("cut.gguf")
    with open(job.MODEL, "rb") as source, open(cut, "wb") as target:
        target.write(source.read(5_000_000))
    junk = folder.file("junk.gguf", "this is no model\n" * 100)
    for what, path, words in [("missing model", folder.file("none.gguf"), ["none.gguf"]),
                              ("truncated model", cut, ["cut.gguf"]),
                              ("junk model", junk, ["junk.gguf"])]:
        refused(tally, what, 1, job.config().replace(job.MODEL, path), GOOD, 2, words)
    refused(tally, "missing model on 2 ranks", 2, job.config(tensor=2).replace(job.MODEL, junk),
            GOOD, 2, ["junk.gguf"])
    folder.remove()


def bad_inputs(tally):
    folder = job.Folder()
    name = folder.file("job.yaml", job.config())
    output = folder.file("out.jsonl")
    done = job.sheaf(1, ["run", name, "--input", folder.file("none.jsonl"), "--output", output])
    tally.check("missing input: exit code", done.code, 2)
    tally.true("missing input: named", "none.jsonl" in done.stderr, done.stderr)
    twice = folder.file("twice.jsonl", GOOD + GOOD)
    done = job.sheaf(1, ["run", name, "--input", twice, "--output", output])
    tally.check("an id twice: exit code", done.code, 2)
    tally.true("an id twice: both lines", "1" in done.stderr and "2" in done.stderr, done.stderr)
    folder.file("out.jsonl", "precious\n")
    done = job.sheaf(1, ["run", name, "--input", folder.file("in.jsonl", GOOD), "--output", output])
    tally.check("output exists: exit code", done.code, 2)
    with open(output, encoding="utf-8") as file:
        tally.check("output exists: untouched", file.read(), "precious\n")
    folder.remove()


def bad_records(tally):
    body = {"prompt": [504, 3575], "max_tokens": 3}
    good = ["good", body]
    bad = [("field", dict(body, top_p=0.5)), ("unknown", dict(body, colour="red")),
           ("vocabulary", dict(body, prompt=[99999999])), ("empty", dict(body, prompt=[])),
           ("type", dict(body, max_tokens="three")), ("long", dict(body, prompt=[1] * 5000))]
    lines = job.records([good] + bad).splitlines()
    lines.insert(3, "{not json")
    done = job.run(1, job.config(), "\n".join(lines) + "\n\n")
    tally.check("bad records: exit code", done.code, 3)
    tally.check("bad records: the good one is answered",
                done.answers["good"]["response"]["status_code"], 200)
    for name, _ in bad:
        answer = done.answers.get(name, {})
        tally.check(f"bad record {name}: response", answer.get("response", 0), None)
        line = next(i for i, text in enumerate(lines) if f'"{name}"' in text) + 1
        error = answer.get("error") or {}
        tally.check(f"bad record {name}: line", error.get("line"), line)
        tally.true(f"bad record {name}: words", error.get("code") and error.get("message"),
                   json.dumps(answer))
    broken = [a for a in done.answers.values() if (a["error"] or {}).get("line") == 4]
    tally.check("a line that is not JSON: one error", len(broken), 1)


def main():
    tally = job.Tally("refusals")
    if not os.path.exists(job.MODEL):
        tally.skip("all", "the real model is not there (deploy/fetch-model.sh)")
        tally.end()
    bad_configs(tally)
    bad_worlds(tally)
    bad_models(tally)
    bad_inputs(tally)
    bad_records(tally)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
