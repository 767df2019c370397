"""What is in an answer.

Shown, with the real model: the token that ends an answer is the last of its token_ids and no part
of its text; finish_reason and usage agree with the tokens; a prompt as text, as ids and as a
message under the chat template are the same prompt; under run.deterministic a sampled text depends
on its seed, not on its neighbours, their order, or the layout; filters that leave one token give
the greedy answer, biases and penalties do what they say, stop strings end an answer wherever tokens
cut them; the cache's bytes follow the formula (lanes x tokens fed x bytes of a slot) in each type.
"""
# cores: 1
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


def choices(tally):
    """Filters, biases and penalties, in one layout where the logits lie on one rank and in one
    where they are gathered."""
    base = dict(IDS, prompt="The capital of France is", ignore_eos=True)
    hot = dict(base, temperature=2, seed=5)
    given = [("greedy", base), ("top_k", dict(hot, top_k=1)), ("top_p", dict(hot, top_p=1e-6)),
             ("min_p", dict(hot, min_p=1)), ("free", hot),
             ("bias", dict(base, logit_bias={"504": 100}, max_tokens=5)),
             ("never", dict(base, logit_bias={"7042": -100})),
             ("repeat", dict(base, max_tokens=100, repetition_penalty=1.3)),
             ("often", dict(base, max_tokens=100, frequency_penalty=2)),
             ("once", dict(base, max_tokens=100, presence_penalty=2)),
             ("long", dict(base, max_tokens=100))]
    first = None
    for tensor in [1, 2] if job.has_mpi() and job.LEVEL != "quick" else [1]:
        tokens = job.run(tensor, job.config(tensor=tensor), job.records(given)).tokens()
        first = first or tokens
        what = f"tensor {tensor}"
        tally.check(f"{what}: same tokens", tokens, first)
        for name in ("top_k", "top_p", "min_p"):
            tally.check(f"{what}: {name} of one token", tokens[name], tokens["greedy"])
        tally.true(f"{what}: temperature 2 wanders", tokens["free"] != tokens["greedy"])
        tally.check(f"{what}: bias", tokens["bias"], [504] * 5)
        tally.true(f"{what}: 7042 is greedy's", 7042 in tokens["greedy"], str(tokens["greedy"]))
        tally.true(f"{what}: -100 forbids it", 7042 not in tokens["never"], str(tokens["never"]))
        for name in ("repeat", "often", "once"):
            tally.true(f"{what}: {name} says more things",
                       len(set(tokens[name])) > len(set(tokens["long"])),
                       f"{tokens[name]} against {tokens['long']}")


def stops(tally):
    """Every substring of a known answer as a stop string cuts it there."""
    ask = dict(IDS, messages=[{"role": "user", "content": "What is the capital of France?"}])
    whole = "The capital of France is Paris."
    strings = ["France", "ance is Pa", ".", "T", "apital of Fra", "Berlin"]
    given = [(text, dict(ask, stop=text)) for text in strings]
    given.append(("list", dict(ask, stop=["Paris", "of", "zzz"])))
    done = job.run(1, job.config(), job.records(given, chat=True))
    tally.check("stops: exit code", done.code, 0)
    for name, body in bodies_of(done).items():
        choice, stop = body["choices"][0], "of" if name == "list" else name
        at = whole.find(stop)
        tally.check(f"stop {name!r}: text", choice["message"]["content"],
                    whole if at < 0 else whole[:at])
        tally.check(f"stop {name!r}: reason", choice["finish_reason"], "stop")
        tally.check(f"stop {name!r}: usage", body["usage"]["completion_tokens"],
                    len(choice["token_ids"]))


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
    choices(tally)
    stops(tally)
    cache_bytes(tally)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
