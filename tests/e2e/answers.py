"""What is in an answer.

Shown, with the real model: the token that ends an answer is the last of its token_ids and no part
of its text; finish_reason and usage agree with the tokens; a prompt as text, as ids and as a
message under the chat template are the same prompt; under run.deterministic a sampled text depends
on its seed, not on its neighbours, their order, or the layout; the cache's bytes follow the formula
(lanes x tokens fed x bytes of a slot) in each type.
"""
import json
import os
import sys

import job

LANES, SLOT = 90, {"f32": 520, "bf16": 264, "f16": 264}     # 30 layers x 3 heads; 64 + 64 and 8 B
IDS = {"max_tokens": 24, "return_token_ids": True}
GOLDEN = os.path.join(job.ROOT, "tests/data/golden/smollm2-135m-q4_1.json")


def bodies_of(done):
    return {name: answer["response"]["body"] for name, answer in done.answers.items()}


def ends(tally):
    """A question with a short answer, and the same cut off."""
    ask = [{"role": "user", "content": "What is the capital of France?"}]
    done = job.run(1, job.config(), job.records(
        [("whole", dict(IDS, messages=ask)), ("cut", dict(IDS, messages=ask, max_tokens=3)),
         ("on", dict(IDS, messages=ask, ignore_eos=True))], chat=True))
    tally.check("ends: exit code", done.code, 0)
    whole, cut, on = (bodies_of(done)[name] for name in ("whole", "cut", "on"))
    choice = whole["choices"][0]
    tally.check("whole: text", choice["message"]["content"], "The capital of France is Paris.")
    tally.check("whole: last token", choice["token_ids"][-1], 2)
    tally.check("whole: reason", choice["finish_reason"], "stop")
    tally.check("whole: usage", whole["usage"]["completion_tokens"], len(choice["token_ids"]))
    tally.check("cut: tokens", cut["choices"][0]["token_ids"], choice["token_ids"][:3])
    tally.check("cut: reason", cut["choices"][0]["finish_reason"], "length")
    tally.check("ignore_eos: goes on", len(on["choices"][0]["token_ids"]), IDS["max_tokens"])
    tally.check("ignore_eos: same start", on["choices"][0]["token_ids"][:len(choice["token_ids"])],
                choice["token_ids"])


def prompts(tally):
    """Text, ids and the chat template."""
    with open(GOLDEN, encoding="utf-8") as file:
        golden = {p["name"]: p for p in json.load(file)["prompts"]}
    plain, chat = golden["english-short"], golden["english-chat"]
    done = job.run(1, job.config(), job.records(
        [("text", dict(IDS, prompt=plain["text"])), ("ids", dict(IDS, prompt=plain["ids"])),
         ("template", dict(IDS, prompt=chat["text"]))]))
    bodies = bodies_of(done)
    tally.check("a text's ids", bodies["text"]["prompt_token_ids"], plain["ids"])
    tally.check("text and ids", bodies["text"]["choices"][0]["token_ids"],
                bodies["ids"]["choices"][0]["token_ids"])
    tally.check("the template as text", bodies["template"]["prompt_token_ids"], chat["ids"])


def seeds(tally):
    """The same sampled records: in order, reversed among others, and on four ranks."""
    def sampled(name, seed):
        return (name, {"prompt": "Once upon a time", "max_tokens": 20, "temperature": 1.2,
                       "seed": seed, "ignore_eos": True, "return_token_ids": True})
    given = [sampled("a", 1), sampled("b", 2), sampled("c", 1)]
    first = job.run(1, job.config(), job.records(given)).tokens()
    tally.check("equal seeds", first["a"], first["c"])
    tally.true("other seeds", first["a"] != first["b"], str(first))
    mixed = [sampled(f"n{i}", 10 + i) for i in range(9)] + given[::-1]
    layouts = [(1, 1), (2, 2)] if job.has_mpi() and job.LEVEL != "quick" else [(1, 1)]
    for tensor, pipeline in layouts:
        again = job.run(tensor * pipeline, job.config("f32", tensor, pipeline, seqs=5),
                        job.records(mixed)).tokens()
        for name in first:
            tally.check(f"{name} among others, tensor {tensor} x pipeline {pipeline}",
                        again[name], first[name])


def cache_bytes(tally):
    for dtype, slot in SLOT.items():
        done = job.run(1, job.config("f32", extra=f"kv_cache: {{dtype: {dtype}}}\n"),
                       job.records([("x", dict(IDS, prompt=[504] * 50, ignore_eos=True))]))
        receipt = bodies_of(done)["x"]["sheaf"]
        tokens = 50 + IDS["max_tokens"] - 1
        tally.check(f"{dtype}: exact bytes", receipt["kv_bytes_exact"], LANES * tokens * slot)
        tally.check(f"{dtype}: stored bytes", receipt["kv_bytes_stored"], LANES * tokens * slot)


def main():
    tally = job.Tally("answers")
    job.need_model(tally)
    ends(tally)
    prompts(tally)
    seeds(tally)
    cache_bytes(tally)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
