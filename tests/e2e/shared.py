"""Shared beginnings of prompts, preemption and order change how fast answers come, never what they
say.

The same records (a long common instruction with different questions, some twice over, greedy and
sampled, with penalties, several choices and scored prompts) run deterministic in f32

    without prefix caching (the reference) and with it, on one rank and in tensor 2 x pipeline 2,
    with a stack of methods that drop and fold (and a reference of its own),
    with one that watches attention and merges as well (the same),
    in a cache so small that blocks are evicted and sequences preempted,
    in reverse order, one at a time, and as two data-parallel groups.

All texts, tokens and log probabilities are equal; the totals show that prompts were really shared,
and that sequences were really preempted.
"""
# not with --quick
import json
import os
import sys

import job

RECORDS = 28
STACKS = {None: "", "folding": job.stack(48, False), "merging": job.stack(48)}
COMMON = (
    "You are the night porter of a small hotel by the sea. Guests ask you for many things, and you "
    "answer all of them politely, in one or two short sentences, without inventing rooms that the "
    "hotel does not have. The hotel has twelve rooms, a kitchen that closes at nine, a garden with "
    "a bench, and one bicycle that may be borrowed until noon. Breakfast is at seven. The key to "
    "the garden hangs behind the desk. ")
QUESTIONS = ["When is breakfast?", "May I borrow the bicycle?", "Is the kitchen open at ten?",
             "Where is the key?", "How many rooms are there?", "Is there a bench?"]


def make_records(reverse=False, only=RECORDS):
    bodies = []
    for i in range(only):
        body = {"prompt": COMMON + QUESTIONS[i % 6], "max_tokens": 44, "return_token_ids": True}
        if i < 16:                      # short answers first, so that long ones are a surprise
            body.update(stop=[".", "?"])
        else:
            body.update(ignore_eos=True, stop=["never said"])
        if i % 3 == 1:
            body.update(temperature=0.8, top_k=50)
        if i % 3 == 2:
            body.update(repetition_penalty=1.2, presence_penalty=0.3)
        if i == 3:
            body.update(n=3)
        if i == 6:
            body.update(logprobs=1)
        if i == 9:
            body.update(prompt_logprobs=1)
        bodies.append((f"r{i}", body))
    return job.records(bodies[::-1] if reverse else bodies)


def config(tensor=1, pipeline=1, data=1, prefix=True, seqs=12, stack=None, memory=None):
    methods = STACKS[stack]
    parts = [part for part in (f"memory: {memory}" if memory else "", methods) if part]
    extra = f"kv_cache: {{{', '.join(parts)}}}\n" if parts else ""
    text = job.config("f32", tensor, pipeline, data, True, seqs, extra)
    text = text.replace("max_model_len: 2048", "max_model_len: 320")
    return text.replace("scheduler: {", "scheduler: {enable_prefix_caching: "
                        f"{'true' if prefix else 'false'}, ")


def totals_of(folder):
    names = [name for name in os.listdir(folder.path) if name.endswith(".run")]
    with open(os.path.join(folder.path, names[0], "manifest.json"), encoding="utf-8") as file:
        return json.load(file)["totals"]


def answers_of(done):
    return {name: answer["response"]["body"]["choices"] for name, answer in done.answers.items()}


def one(tally, what, reference, ranks=1, reverse=False, only=RECORDS, **settings):
    folder = job.Folder()
    done = job.run(ranks, config(**settings), make_records(reverse, only), folder=folder)
    if not tally.check(f"{what}: exit code", done.code, 0):
        print(done.stderr[-2000:])
        return None, {}
    totals, answers = totals_of(folder), answers_of(done)
    folder.remove()
    if reference is not None:
        tally.check(f"{what}: answers", len(answers), only)
        other = sorted(name for name in answers if answers[name] != reference[name])
        tally.check(f"{what}: answers that differ", other, [])
    print(f"  figure: {what}: {done.seconds:.1f} s, {totals['reused_tokens']} of "
          f"{totals['prompt_tokens']} prompt tokens reused, {totals['preempted']} preempted")
    return answers, totals


def main():
    tally = job.Tally("shared")
    job.need_model(tally)
    reference, totals = one(tally, "without sharing", None, prefix=False)
    if reference is None:
        tally.end()
    tally.check("without sharing: reused", totals["reused_tokens"], 0)
    _, totals = one(tally, "shared", reference)
    tally.true("shared: most of the prompts", totals.get("reused_tokens", 0) * 10 >=
               totals.get("prompt_tokens", 1) * 7, str(totals))
    one(tally, "shared, one at a time", reference, seqs=1, only=8)
    # A sequence ends with some 140 tokens of 46 KiB: six of them take about 38 MiB.
    _, totals = one(tally, "little memory", reference, memory="15MiB", seqs=6)
    preempted = totals.get("preempted", 0)
    if job.LEVEL == "long":
        _, none = one(tally, "little memory, not shared", reference, memory="24MiB", seqs=6,
                      prefix=False)
        preempted += none.get("preempted", 0)
    tally.true("little memory: preempted", preempted > 0, str(totals))
    if job.has_ranks():
        one(tally, "shared, tensor 2 x pipeline 2, reverse order", reference, ranks=4, tensor=2,
            pipeline=2, reverse=True)
        one(tally, "shared, data 2", reference, ranks=2, data=2)
    with_methods(tally)
    tally.end()


def with_methods(tally):
    layout = {"ranks": 2, "pipeline": 2} if job.has_ranks() else {}
    edited, _ = one(tally, "methods, without sharing", None, prefix=False, stack="folding")
    _, totals = one(tally, "methods, shared, pipeline 2", edited, stack="folding", **layout)
    tally.true("methods, shared: reused", totals.get("reused_tokens", 0) > 0, str(totals))
    if job.LEVEL == "long":
        one(tally, "methods, shared", edited, stack="folding")
    # The second job has another order, other neighbours and, where there are ranks, another layout.
    layout = {"ranks": 4, "pipeline": 2, "tensor": 2} if job.has_ranks() else {}
    merged, totals = one(tally, "merging methods, without sharing", None, prefix=False,
                         stack="merging", only=16)
    tally.true("merging methods: merged", totals.get("slots_merged", 0) > 0, str(totals))
    tally.true("merging methods: they change answers",
               any(merged[name] != edited[name] for name in merged or {}))
    _, totals = one(tally, "merging methods, shared, tensor 2 x pipeline 2, reverse order", merged,
                    stack="merging", only=16, seqs=5, reverse=True, **layout)
    tally.true("merging methods, shared: most of the prompts", totals.get("reused_tokens", 0) * 10
               >= totals.get("prompt_tokens", 1) * 6, str(totals))


if __name__ == "__main__":
    sys.exit(main())
