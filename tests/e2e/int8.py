"""Products in int8: whole jobs with model.compute: int8.

Shown: answers are sensible (the first tokens mostly those of f32); with run.deterministic they are
equal over tensor 1 and 2, pipeline 2, together and alone, in bf16 and in f16; weights take the
bytes that the plan says, about half of bf16's; a run that began in another type of products is not
resumed; plan, doctor and the manifest say int8, bench measures its roof in it; GPUs refuse it with
one line, and device auto leaves it to the CPU.
"""
import json
import re
import sys

import job

PROMPTS = ["The capital of France is", "Water boils at a temperature of", "One, two, three, four,",
           "The opposite of hot is", "Monday, Tuesday, Wednesday,"]
ANSWERS = {0: "Paris", 2: "five", 3: "cold", 4: "Thursday"}
TOKENS = 12


def config(compute="int8", dtype="bf16", tensor=1, pipeline=1, seqs=64, extra=""):
    text = job.config(dtype, tensor, pipeline, 1, True, seqs, extra)
    return text.replace(f"dtype: {dtype}", f"dtype: {dtype}, compute: {compute}")


def given():
    return job.records([(str(i), {"prompt": p, "max_tokens": TOKENS, "temperature": 0,
                                  "ignore_eos": True, "return_token_ids": True})
                        for i, p in enumerate(PROMPTS)])


def ran(tally, what, ranks, text, arguments=(), folder=None):
    done = job.run(ranks, text, given(), arguments, 60, folder)
    if not tally.check(f"{what}: exit code", done.code, 0):
        print(done.stderr)
    return done


def answers(tally):
    f32 = ran(tally, "f32", 1, config("auto", "f32")).tokens()
    first = ran(tally, "int8", 1, config())
    tokens = first.tokens()
    for i, word in ANSWERS.items():
        text = first.answers[str(i)]["response"]["body"]["choices"][0]["text"]
        tally.true(f"int8: {PROMPTS[i]}", word in text, text)
    alike = sum(f32[i][0] == tokens[i][0] for i in f32)
    tally.true("int8: first tokens of f32", alike >= len(PROMPTS) - 1, str((f32, tokens)))
    tally.check("alone", ran(tally, "alone", 1, config(seqs=1)).tokens(), tokens)
    if job.has_ranks():
        tally.check("tensor 2", ran(tally, "tensor 2", 2, config(tensor=2)).tokens(), tokens)
        tally.check("2 x 2", ran(tally, "2 x 2", 4, config(tensor=2, pipeline=2)).tokens(), tokens)
    half = ran(tally, "f16", 1, config(dtype="f16")).tokens()
    tally.check("f16 alone", ran(tally, "f16 alone", 1, config(dtype="f16", seqs=1)).tokens(), half)


def resumed(tally):
    folder = job.Folder()
    ran(tally, "begun", 1, config("auto", "bf16"), folder=folder)
    line = ["run", folder.file("other.yaml", config()), "--input", folder.file("in0.jsonl"),
            "--output", folder.file("out0.jsonl"), "--resume"]
    done = job.sheaf(1, line, 60)
    tally.check("other products, resumed: exit code", done.code, 2)
    tally.true("other products, resumed: one line", len(done.error_lines()) == 1 and
               "model.compute" in done.stderr, done.stderr)
    folder.remove()


def planned(tally):
    folder = job.Folder()
    bytes_of = {}
    for compute in ("bf16", "int8"):
        path = folder.file(f"{compute}.yaml", config(compute if compute == "int8" else "auto"))
        plan = json.loads(job.sheaf(1, ["plan", path, "--json"], 60).stdout)
        bytes_of[compute] = plan["ranks"][0]["weight_bytes"]
        if compute == "int8":
            tally.check("plan: compute", plan["compute"], "int8")
    share = bytes_of["int8"] / bytes_of["bf16"]
    tally.true("weights of about half the bytes", 0.5 < share < 0.52, str(bytes_of))
    path = folder.file("int8.yaml")
    tally.true("plan: numbers", "multiplied in int8 on" in job.sheaf(1, ["plan", path], 60).stdout)
    tally.true("doctor", ", int8 by " in job.sheaf(1, ["doctor"], 60).stdout)
    for device in ("cuda", "cuda-emulated"):
        done = job.sheaf(1, ["plan", path, "--set", f"device={device}"], 60)
        tally.check(f"{device}: exit code", done.code, 2)
        tally.true(f"{device}: one line", len(done.error_lines()) == 1 and
                   "model.compute is int8" in done.stderr, done.stderr)
    done = job.sheaf(1, ["plan", path, "--set", "device=auto"], 60)
    tally.check("auto: the CPU", [done.code, bool(re.search("^device +cpu", done.stdout, re.M))],
                [0, True])
    found = folder.file("bench.json")
    done = job.sheaf(1, ["bench", path, "--no-exact", "--num-prompts", "4", "--input-len", "16",
                         "--output-len", "4", "--max-num-seqs", "4", "--json", found], 60)
    if tally.check("bench: exit code", done.code, 0):
        with open(found, encoding="utf-8") as file:
            bench = json.load(file)
        tally.check("bench: compute", [bench["machine"]["compute"],
                                       list(bench["roof"]["gemm_gflops"])], ["int8", ["int8"]])
        tally.true("bench: share", 0 < bench["runs"][0]["share_of_roof"] < 1.2, done.stdout)
    folder.remove()


def main():
    tally = job.Tally("int8")
    job.need_model(tally)
    planned(tally)
    answers(tally)
    resumed(tally)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
