"""Bad input gets one clear line, the right exit code, and leaves nothing behind.

Shown for each case: the exit code, that a dozen lines at most come out, that exactly one of them
says error and names the thing, and that no output file exists after a refusal.  Bad records do not
stop the others: exit 3, and each holds its code and line.  A full disk or a signal in mid-run
leaves whole lines.
"""
# cores: 1
import json
import os
import resource
import signal
import subprocess
import sys
import time

import job

GOOD = job.records([("a", {"prompt": [504, 3575], "max_tokens": 2})])


def refused(tally, what, ranks, config_text, input_text, code, words, arguments=()):
    folder = job.Folder()
    done = job.run(ranks, config_text, input_text, arguments, 120, folder)
    tally.check(f"{what}: exit code", done.code, code)
    lines = done.error_lines()
    tally.true(f"{what}: one line with error", len(lines) == 1, f"stderr is:\n{done.stderr}")
    tally.true(f"{what}: short", len(done.own_lines()) <= 12, f"stderr is:\n{done.stderr}")
    tally.check(f"{what}: stdout", done.stdout, "")
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
    refused(tally, "key twice", 1, good + "run: {}\n", GOOD, 2, [".yaml:9:1: error:", "'run'"])
    refused(tally, "no version", 1, good.replace("schema_version: 1\n", ""), GOOD, 2,
            [".yaml:1:1: error:", "schema_version"])
    refused(tally, "no model", 1, "schema_version: 1\n", GOOD, 2, ["model.path is missing"])
    refused(tally, "not built yet", 1, good + "kv_cache: {host_memory: 1GiB}\n", GOOD, 2,
            [".yaml:9:25: error:", "kv_cache.host_memory", "'1GiB'", "not built yet"])
    if not os.path.exists("/dev/nvidiactl"):
        refused(tally, "no GPU", 1, good + "device: cuda\n", GOOD, 2, ["error: "])
    refused(tally, "method's option", 1, good + "kv_cache: {methods: [{name: window, "
            "recent_tokns: 5}]}\n", GOOD, 2, [".yaml:9:37: error:", "recent_tokens"])
    refused(tally, "layers that are not there", 1, good, GOOD, 2, ["0-99", "0 to 29"],
            ["--set", "kv_cache.methods.0.name=window", "--set", "kv_cache.methods.0.layers=0-99"])
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


def bad_command_lines(tally):
    good = job.config(tensor=2)
    cases = [("unknown option", ["--inputt", "x"], ["'--inputt'", "sheaf run --help"]),
             ("short option", ["-x"], ["'-x'"]), ("log level", ["--log-level", "loud"], ["loud"]),
             ("value missing", ["--set"], ["'--set'"]), ("second CONFIG", ["x.yaml"], ["CONFIG"]),
             ("--set without value", ["--set", "run"], ["--set run", "key=value"])]
    for what, arguments, words in cases:
        refused(tally, what, 1, good, GOOD, 2, words, arguments)
    if job.has_mpi():
        refused(tally, "unknown option on 4 ranks", 4, good, GOOD, 2, ["'--inputt'"], ["--inputt"])
    done = refused(tally, "--log-json", 1, good, GOOD, 2, ["max_num_seqs"],
                   ["--log-json", "--set", "scheduler.max_num_seqs=0"])
    for line in done.own_lines():
        tally.check("--log-json: level", json.loads(line)["level"], "error")


def bad_outputs(tally):
    folder = job.Folder()
    name = folder.file("job.yaml", job.config())
    given = folder.file("in.jsonl", GOOD)
    os.symlink(folder.file("nowhere"), folder.file("link.jsonl"))
    folder.file("taken.jsonl.run", "a file\n")
    before = sorted(os.listdir(folder.path))
    for output, words in [("none/out.jsonl", "No such file or directory"),
                          ("in.jsonl/out.jsonl", "Not a directory"), ("link.jsonl", "exists"),
                          ("taken.jsonl", "taken.jsonl.run"), ("x" * 300, "File name too long")]:
        done = job.sheaf(1, ["run", name, "--input", given, "--output", folder.file(output)])
        tally.check(f"output {output[:20]}: exit code", done.code, 2)
        tally.true(f"output {output[:20]}: words", len(done.error_lines()) == 1 and
                   words in done.error_lines()[0], done.stderr)
    tally.check("outputs: nothing left behind", sorted(os.listdir(folder.path)), before)
    folder.remove()


def whole_lines(tally, what, output):
    with open(output, encoding="utf-8") as file:
        text = file.read()
    tally.true(f"{what}: whole lines", text == "" or text.endswith("\n"), text[-80:])
    answers = [json.loads(line) for line in text.splitlines()]
    tally.true(f"{what}: answers are answers", all(a["response"] for a in answers), text)
    return len(answers)


def full_disk(tally):
    """Played by a limit on the size of files: as many answers as have room, then the reason."""
    folder = job.Folder()
    name = folder.file("job.yaml", job.config())
    body = {"prompt": [504, 3575], "max_tokens": 2}
    given = folder.file("in.jsonl", job.records([(f"r{i}", body) for i in range(12)]))
    output = folder.file("out.jsonl")
    done = job.sheaf(1, ["run", name, "--input", given, "--output", output], 120,
                     lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)))
    tally.check("full disk: exit code", done.code, 1)
    tally.true("full disk: the reason", any("out.jsonl: could not be written" in line
                                            for line in done.error_lines()), done.stderr)
    count = whole_lines(tally, "full disk", output)
    tally.true("full disk: some answers are kept", 0 < count < 12, f"{count} answers")
    folder.remove()


def killed(tally):
    """TERM in mid-run stops the job; what was written is whole, and it can be resumed."""
    folder = job.Folder()
    name = folder.file("job.yaml", job.config("bf16", deterministic=False))
    body = {"prompt": [504, 3575, 282], "max_tokens": 1500, "ignore_eos": True}
    short = {"prompt": [504, 3575, 282], "max_tokens": 4}
    given = folder.file("in.jsonl", job.records([("short", short), ("a", body), ("b", body)]))
    output = folder.file("out.jsonl")
    line = [job.SHEAF, "run", name, "--input", given, "--output", output]
    with subprocess.Popen(line, env=job.environment(), stderr=subprocess.PIPE, text=True,
                          stdin=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if os.path.exists(output) and os.path.getsize(output) > 0:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    tally.check("TERM: exit code", process.returncode, 75)
    tally.check("TERM: answers so far", whole_lines(tally, "TERM", output), 1)
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


def hostile_lines(good):
    """(custom_id or None, code, line) of records that are errors, as bytes."""
    def record(name, body, url="/v1/completions", **more):
        line = {"custom_id": name, "method": "POST", "url": url, "body": body, **more}
        return json.dumps(line).encode()

    def chat(name, messages):
        return record(name, {"messages": messages}, "/v1/chat/completions")

    return [
        ("field", "unsupported_field", record("field", dict(good, stream=True))),
        ("unknown", "unknown_field", record("unknown", dict(good, colour="red"))),
        ("vocabulary", "invalid_value", record("vocabulary", dict(good, prompt=[99999999]))),
        ("empty", "invalid_value", record("empty", dict(good, prompt=[]))),
        ("empty text", "invalid_value", record("empty text", dict(good, prompt=""))),
        ("type", "invalid_value", record("type", dict(good, max_tokens="three"))),
        ("number as text", "invalid_value", record("number as text", dict(good, temperature="0"))),
        ("none at all", "invalid_value", record("none at all", dict(good, max_tokens=0))),
        ("less than none", "invalid_value", record("less than none", dict(good, max_tokens=-1))),
        ("long", "too_long", record("long", dict(good, prompt=[1] * 5000))),
        ("10 MB", "too_long", record("10 MB", dict(good, prompt="a b " * 2500000))),
        ("url", "invalid_value", record("url", good, "/v1/embeddings")),
        ("method", "invalid_value", record("method", good, method="GET")),
        ("body", "missing_field", record("body", None)),
        ("role", "invalid_value", chat("role", [{"role": "wizard", "content": "a"}])),
        ("image", "invalid_value", chat("image", [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "x"}}]}])),
        ("tool", "unsupported_field", chat("tool", [{"role": "user", "content": "a",
                                                     "tool_calls": [1]}])),
        (None, "missing_field", record(7, good)),
        (None, "invalid_json", b"{not json"),
        (None, "invalid_json", b"[" * 100000),
        (None, "invalid_json", b'{"custom_id": "deep", "body": ' + b"[" * 500 + b"]" * 500 + b"}"),
        (None, "invalid_json", b'{"custom_id": "bad utf-8 \xff\xfe"}'),
        (None, "invalid_json", b'{"custom_id": "raw \x00 nul"}'),
        (None, "invalid_json", b'{"custom_id": "huge", "body": {"max_tokens": 1' + b"0" * 30 +
         b"}}"),
        (None, "invalid_json", b"null"),
        (None, "invalid_json", b"\xff\xfe\x00\x01")]


def bad_records(tally):
    """Errors between good records, which are answered; the last line has no line end."""
    good = {"prompt": [504, 3575], "max_tokens": 3, "return_token_ids": True}
    fine = [("good", good), ("NUL \0 id", good), ("1e9", dict(good, max_tokens=1000000000)),
            ("neutral", dict(good, n=1, top_p=1.0, stop=None, stream=False, logprobs=None))]
    bad = hostile_lines(good)
    lines = job.records(fine[:2]).encode().splitlines() + [line for _, _, line in bad[:-1]]
    lines += [b"", b"  ", *job.records(fine[2:]).encode().splitlines(), bad[-1][2]]
    folder = job.Folder()
    name = folder.file("job.yaml", job.config().replace("max_model_len: 2048", "max_model_len: 64"))
    given = folder.file("in.jsonl", b"\n".join(lines))
    output = folder.file("out.jsonl")
    done = job.sheaf(1, ["run", name, "--input", given, "--output", output])
    tally.check("bad records: exit code", done.code, 3)
    with open(output, encoding="utf-8") as file:
        written = [json.loads(line) for line in file]
    folder.remove()
    tally.check("bad records: one line each", len(written), len(fine) + len(bad))
    answers = {a["custom_id"]: a for a in written if a["error"] is None}
    tally.check("bad records: the good ones", sorted(answers), sorted(name for name, _ in fine))
    for name, answer in answers.items():
        tally.check(f"good record {name!r}: status", answer["response"]["status_code"], 200)
        tally.check(f"good record {name!r}: tokens",
                    answer["response"]["body"]["choices"][0]["token_ids"][:3],
                    answers["good"]["response"]["body"]["choices"][0]["token_ids"])
    by_line = {a["error"]["line"]: a for a in written if a["error"] is not None}
    for name, code, line in bad:
        number = lines.index(line) + 1
        answer = by_line.get(number, {})
        what = f"bad record {name or line[:20]!r}"
        tally.check(f"{what}: keys", sorted(answer), ["custom_id", "error", "id", "response"])
        tally.check(f"{what}: custom_id", answer.get("custom_id", ""), name)
        tally.check(f"{what}: response", answer.get("response", 0), None)
        error = answer.get("error") or {}
        tally.check(f"{what}: code", error.get("code"), code)
        tally.true(f"{what}: one line of words", error.get("message") and
                   "\n" not in error["message"], json.dumps(error))


def main():
    tally = job.Tally("refusals")
    job.need_model(tally)
    bad_configs(tally)
    bad_command_lines(tally)
    bad_worlds(tally)
    bad_models(tally)
    bad_inputs(tally)
    bad_outputs(tally)
    bad_records(tally)
    full_disk(tally)
    killed(tally)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
