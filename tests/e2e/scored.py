"""Choices and log probabilities through real jobs.

On one rank, on tensor 2 and on pipeline 2, deterministic in f32, with steps so short that prompts
are cut: echo with logprobs and max_tokens 0 gives the numbers that prompt_logprobs gives; texts and
offsets fit; a greedy token is its own likeliest; a prompt that is a prompt and its answer scores
the answer as it was scored when it was sampled; n greedy choices are equal and n sampled ones are
not; biases and penalties change the choice and not the scores.  All layouts say the same.
"""
import json
import sys

import job

PROMPT = "The old sailor looked at the sea and told his three sons about the long night"


def completion(**more):
    return {"prompt": PROMPT, "max_tokens": 6, "ignore_eos": True, "return_token_ids": True, **more}


def first_records():
    return job.records([
        ("echo", completion(echo=True, logprobs=2, max_tokens=0)),
        ("prompt", completion(prompt_logprobs=2)),
        ("greedy", completion(logprobs=3)),
        ("biased", completion(logprobs=3, logit_bias={"42": 50.0}, repetition_penalty=1.3)),
        ("three", completion(n=3)),
        ("drawn", completion(n=3, temperature=1.0, seed=7))])


def answers_of(done):
    return {name: answer["response"]["body"] for name, answer in done.answers.items()}


def check_forms(tally, what, bodies):
    echo = bodies["echo"]["choices"][0]
    logprobs, offsets = echo["logprobs"], echo["logprobs"]["text_offset"]
    tally.check(f"{what}: an echo alone is the prompt", echo["text"], PROMPT)
    tally.check(f"{what}: nothing is completed", bodies["echo"]["usage"]["completion_tokens"], 0)
    pieces = [PROMPT[a:b] for a, b in zip(offsets, offsets[1:] + [len(PROMPT)])]
    tally.check(f"{what}: tokens and offsets", logprobs["tokens"], pieces)
    told = [None if entry is None else entry[str(token)]["logprob"] for entry, token in
            zip(bodies["prompt"]["choices"][0]["prompt_logprobs"],
                bodies["prompt"]["prompt_token_ids"])]
    tally.check(f"{what}: echo and prompt_logprobs", logprobs["token_logprobs"], told)
    greedy = bodies["greedy"]["choices"][0]["logprobs"]
    for token, value, tops in zip(greedy["tokens"], greedy["token_logprobs"],
                                  greedy["top_logprobs"]):
        tally.check(f"{what}: the greedy token is the likeliest", max(tops.values()), value)
        tally.true(f"{what}: it is among the likeliest", token in tops, f"{token} {tops}")
    biased = bodies["biased"]["choices"][0]["logprobs"]
    tally.check(f"{what}: scores are the model's", biased["top_logprobs"][0],
                dict(greedy["top_logprobs"][0], **{biased["tokens"][0]:
                                                   biased["token_logprobs"][0]}))
    tally.true(f"{what}: a bias is felt", biased["tokens"] != greedy["tokens"])
    three = [choice["token_ids"] for choice in bodies["three"]["choices"]]
    tally.check(f"{what}: greedy choices", three, [three[0]] * 3)
    drawn = [choice["token_ids"] for choice in bodies["drawn"]["choices"]]
    tally.true(f"{what}: drawn choices differ", len({str(tokens) for tokens in drawn}) > 1)
    tally.check(f"{what}: usage", bodies["drawn"]["usage"]["completion_tokens"],
                sum(len(tokens) for tokens in drawn))
    tally.check(f"{what}: numbers", [c["index"] for c in bodies["drawn"]["choices"]], [0, 1, 2])


def check_again(tally, what, ranks, config, bodies):
    """The answer as a part of a prompt scores as it did when it was sampled."""
    prompt = bodies["greedy"]["prompt_token_ids"]
    answer = bodies["greedy"]["choices"][0]["token_ids"]
    done = job.run(ranks, config, job.records([("again", completion(
        prompt=prompt + answer, prompt_logprobs=0, max_tokens=1))]))
    body = answers_of(done)["again"]
    entries = body["choices"][0]["prompt_logprobs"][len(prompt):]
    tally.check(f"{what}: sampled or given", [entry[str(token)]["logprob"] for entry, token in
                                              zip(entries, answer)],
                bodies["greedy"]["choices"][0]["logprobs"]["token_logprobs"])


def main():
    tally = job.Tally("scored")
    job.need_model(tally)
    layouts = [(1, 1), (2, 1), (1, 2)] if job.has_ranks() else [(1, 1)]
    if job.LEVEL == "quick":
        layouts = layouts[:1]
    first = None
    for tensor, pipeline in layouts:
        what = f"tensor {tensor} x pipeline {pipeline}"
        config = job.config("f32", tensor, pipeline, 1, True, 8).replace(
            "scheduler: {", "scheduler: {max_num_batched_tokens: 32, ")
        done = job.run(tensor * pipeline, config, first_records())
        if not tally.check(f"{what}: exit code", done.code, 0):
            print(done.stderr[-2000:])
            continue
        bodies = answers_of(done)
        check_forms(tally, what, bodies)
        check_again(tally, what, tensor * pipeline, config, bodies)
        said = json.dumps({name: body["choices"] for name, body in bodies.items()}, sort_keys=True)
        first = first or said
        tally.true(f"{what}: says what the first layout says", said == first)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
