"""model.isa: whole jobs kept to each instruction set that this machine has.

Shown: in f32 every one answers with the tokens of the best; in bf16 and int8 the answers are
sensible; plan says which one it is; two in one bench, and one that the processor lacks, are refused
with one line and exit code 2.
"""
import job

ISAS = ["generic", "avx2", "avx512", "avx512_vnni", "avx512_bf16"]
PROMPTS = ["The capital of France is", "One, two, three, four,", "The opposite of hot is"]
ANSWERS = ["Paris", "five", "cold"]


def config(isa, dtype, compute="auto"):
    return job.config(dtype, 1, 1, 1, False).replace(
        f"dtype: {dtype}", f"dtype: {dtype}, compute: {compute}, isa: {isa}")


def given():
    return job.records([(str(i), {"prompt": p, "max_tokens": 8, "temperature": 0,
                                  "ignore_eos": True, "return_token_ids": True})
                        for i, p in enumerate(PROMPTS)])


def planned(tally, folder, isa):
    """Whether this machine has it."""
    done = job.sheaf(1, ["plan", folder.file(f"{isa}.yaml", config(isa, "bf16"))], 60)
    if done.code == 0:
        tally.true(f"{isa}: plan", f" on {isa}" in done.stdout, done.stdout)
        return True
    tally.check(f"{isa}: exit code", done.code, 2)
    tally.true(f"{isa}: one line", len(done.error_lines()) == 1 and
               f"model.isa is {isa}, but this processor has " in done.stderr, done.stderr)
    return False


def main():
    tally = job.Tally("isa")
    job.need_model(tally)
    folder = job.Folder()
    there = [isa for isa in ISAS if planned(tally, folder, isa)]
    best = job.run(1, config("auto", "f32"), given(), (), 120).tokens()
    for isa in there:
        done = job.run(1, config(isa, "f32"), given(), (), 120)
        tally.check(f"{isa}, f32: tokens", done.tokens(), best)
        for compute in ("auto", "int8"):
            done = job.run(1, config(isa, "bf16", compute), given(), (), 120)
            for i, word in enumerate(ANSWERS):
                body = done.answers[str(i)]["response"]["body"]
                tally.true(f"{isa}, bf16, {compute}: {PROMPTS[i]}",
                           word in body["choices"][0]["text"], str(body))
    if len(there) > 1:
        names = [folder.file(f"{isa}.yaml") for isa in there[:2]]
        done = job.sheaf(1, ["bench", *names, "--input-len", "8", "--output-len", "2",
                             "--max-num-seqs", "1", "--num-prompts", "1", "--no-exact"], 60)
        tally.check("two of them: exit code", done.code, 2)
        tally.true("two of them: one line", len(done.error_lines()) == 1 and
                   f"model.isa is {there[1]}, but {there[0]} holds" in done.stderr, done.stderr)
    folder.remove()
    tally.end()


if __name__ == "__main__":
    main()
