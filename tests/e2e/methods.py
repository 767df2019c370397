"""Compression methods in real jobs: what they keep, whatever the layout, and what they refuse.

ems, with the real model, f32, deterministic: every record's stored bytes follow from its tokens
alone, what leaves its lanes is evicted or merged, and texts are equal in every layout, alone and in
a batch; what is not built and what makes no sense is refused in one line.

razor_attention, with the real model, f32, deterministic; greedy and sampled records, some shorter
and some longer than what a head keeps.  Shown: every record's stored bytes and evicted slots are
those of the definition, from its tokens alone, and the plan foretells the sum; texts are equal in
every layout, alone, in a batch and with shared prompts; the head set of a profile does what the
same set written inline does; a profile of another model is refused, one that does not say its
model is a warning.
"""
# not with --quick
import hashlib
import json
import os
import sys

import job

LAYERS, HEADS, SLOT = 30, 3, 2 * 64 * 4 + 8     # f32
SINKS, WINDOW, DIVISOR, DROPPED, FOLD = 4, 24, 6, 8, 4
RETRIEVAL = [[layer, layer % HEADS] for layer in range(0, LAYERS, 5)]
LAYOUTS = [(3, 1, 1), (2, 2, 1), (1, 1, 2)]
BUDGET, RECENT, INTERVAL = 40, 12, 7
COMMON = "The lighthouse keeper wrote in his log every evening what he had seen from the tower. "


def razor(more="", heads=None):
    heads = f", retrieval_heads: {json.dumps(RETRIEVAL if heads is None else heads)}" \
        if heads != "" else ""
    return (f"kv_cache: {{methods: [{{name: razor_attention{heads}, num_sink_tokens: {SINKS}, "
            f"min_window_tokens: {WINDOW}, window_divisor: {DIVISOR}, "
            f"min_dropped_tokens: {DROPPED}, fold_tokens: {FOLD}{more}}}]}}\n")


def make_records():
    bodies = []
    for i in range(12):
        body = {"prompt": COMMON * (i // 3) + "Tell me about the sea and the ships.",
                "max_tokens": 12 + 5 * (i % 4), "ignore_eos": True, "return_token_ids": True}
        if i % 2:
            body.update(temperature=0.8)
        bodies.append((f"r{i}", body))
    return job.records(bodies)


def dropped_of(prompt, fed):
    """Slots of one head that are gone when `fed` tokens are in the cache."""
    window, dropped = max(WINDOW, -(-prompt // DIVISOR)), 0
    for tokens in range(prompt, fed + 1):
        outside = tokens - SINKS - window
        if dropped == 0:
            dropped = outside if outside >= DROPPED else 0
        elif tokens - SINKS - dropped >= window + FOLD:
            dropped += FOLD
    return dropped


def check_receipts(tally, what, done):
    """Each record against the definition; the sum of stored bytes."""
    lanes, total, some = LAYERS * HEADS - len(RETRIEVAL), 0, 0
    for name, answer in sorted(done.answers.items()):
        body = answer["response"]["body"]
        prompt, made = body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]
        fed = prompt + made - 1
        dropped = dropped_of(prompt, fed)
        stored = (LAYERS * HEADS * fed - lanes * (dropped - (dropped > 0))) * SLOT
        tally.check(f"{what}, {name}: stored bytes", body["sheaf"]["kv_bytes_stored"], stored)
        tally.check(f"{what}, {name}: evicted", body["sheaf"]["slots_evicted"], lanes * dropped)
        total, some = total + stored, some + (dropped > 0)
    tally.true(f"{what}: some records are compressed, some not",
               0 < some < len(done.answers), str(some))
    return total


def layouts(tally, given):
    first = job.run(1, job.config("f32", extra=razor()), given)
    if not tally.check("one rank: exit code", first.code, 0):
        print(first.stderr[-2000:])
        return
    check_receipts(tally, "one rank", first)
    tokens = first.tokens()
    exact = job.run(1, job.config("f32"), given).tokens()
    tally.true("the method changes some text", tokens != exact)
    alone = job.run(1, job.config("f32", seqs=1, extra=razor()), given)
    tally.check("alone: texts", alone.tokens(), tokens)
    for tensor, pipeline, data in LAYOUTS if job.has_ranks() else []:
        what = f"tensor {tensor} x pipeline {pipeline} x data {data}"
        done = job.run(tensor * pipeline * data,
                       job.config("f32", tensor, pipeline, data, extra=razor()), given)
        tally.check(f"{what}: texts", done.tokens() == tokens, True)
        check_receipts(tally, what, done)


def predicted(tally):
    """`plan` knows the bytes of a length, and the lowest is the highest."""
    folder = job.Folder()
    name = folder.file("job.yaml", job.config("f32", extra=razor()))
    plan = json.loads(job.sheaf(1, ["plan", name, "--json"]).stdout)
    dropped = dropped_of(2048, 2048)
    lanes = LAYERS * HEADS - len(RETRIEVAL)
    stored = (LAYERS * HEADS * 2048 - lanes * (dropped - 1)) * SLOT
    tally.check("plan: bytes at 2048", plan["ranks"][0]["kv_bytes_at_len"]["2048"],
                [stored, stored])
    ratio = stored / (LAYERS * HEADS * 2048 * SLOT)
    tally.true("plan: ratio", abs(plan["kv_ratio"] - ratio) < 1e-9, str(plan["kv_ratio"]))
    folder.remove()


def profiles(tally, given):
    folder = job.Folder()
    with open(job.MODEL, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    inline = job.run(1, job.config("f32", extra=razor()), given).tokens()
    heads = f"retrieval_heads: {json.dumps(RETRIEVAL)}\n"
    good = folder.file("good.yaml", f"model_sha256: {digest}\nseed: 0\n{heads}")
    vague = folder.file("vague.yaml", heads)
    other = folder.file("other.yaml", f"model_sha256: {'0' * 64}\n{heads}")
    wide = folder.file("wide.yaml", "retrieval_heads: [[0, 3]]\n")
    empty = folder.file("empty.yaml", "seed: 3\n")
    for profile, warns in [(good, False), (vague, True)]:
        done = job.run(1, job.config("f32", extra=razor(f", profile: {profile}", "")), given)
        what = os.path.basename(profile)
        tally.check(f"{what}: exit code", done.code, 0)
        tally.check(f"{what}: texts as inline", done.tokens() == inline, True)
        tally.check(f"{what}: warns", "does not say which model" in done.stderr, warns)
    for profile, words in [(other, ["SHA-256", "other.yaml", digest]), (wide, ["[0, 3]"]),
                           (empty, ["no head set"]),
                           (folder.file("none.yaml"), ["no such file", "none.yaml"])]:
        done = job.run(1, job.config("f32", extra=razor(f", profile: {profile}", "")), given)
        what = f"refused: {os.path.basename(profile)}"
        tally.check(f"{what}: exit code", done.code, 2)
        tally.check(f"{what}: one line", len(done.error_lines()), 1)
        tally.true(f"{what}: words", all(word in done.stderr for word in words), done.stderr)
        tally.check(f"{what}: no answers", done.answers, {})
    folder.remove()


def ems(more=""):
    return (f"kv_cache: {{methods: [{{name: ems, budget_tokens: {BUDGET}, window_size: {RECENT}, "
            f"recompress_interval: {INTERVAL}, similarity_threshold: 0.3{more}}}]}}\n")


def ems_slots(prompt, fed):
    """Slots of one head when `fed` tokens are in the cache."""
    slots = min(prompt, BUDGET)
    for _ in range(prompt, fed):
        slots = BUDGET if slots + 1 == BUDGET + INTERVAL else slots + 1
    return slots


def check_ems(tally, what, done):
    """Each record against the definition: bytes, and where its slots went."""
    short, merged = 0, 0
    for name, answer in sorted(done.answers.items()):
        body = answer["response"]["body"]
        fed = body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"] - 1
        slots = ems_slots(body["usage"]["prompt_tokens"], fed)
        receipt = body["sheaf"]
        tally.check(f"{what}, {name}: stored bytes", receipt["kv_bytes_stored"],
                    LAYERS * HEADS * slots * (SLOT + 4))
        tally.check(f"{what}, {name}: evicted and merged",
                    receipt["slots_evicted"] + receipt["slots_merged"],
                    LAYERS * HEADS * (fed - slots))
        short, merged = short + (slots == fed), merged + receipt["slots_merged"]
    tally.true(f"{what}: some records are compressed, some not", 0 < short < len(done.answers),
               str(short))
    tally.true(f"{what}: some slots are merged", merged > 0)


def ems_layouts(tally, given):
    first = job.run(1, job.config("f32", extra=ems()), given)
    if not tally.check("ems, one rank: exit code", first.code, 0):
        print(first.stderr[-2000:])
        return
    check_ems(tally, "ems, one rank", first)
    tokens = first.tokens()
    tally.true("ems changes some text", tokens != job.run(1, job.config("f32"), given).tokens())
    tally.true("ems: merging changes some text", tokens != job.run(
        1, job.config("f32", extra=ems().replace("0.3", "1")), given).tokens())
    alone = job.run(1, job.config("f32", seqs=1, extra=ems()), given)
    tally.check("ems, alone: texts", alone.tokens(), tokens)
    for tensor, pipeline in [(3, 1), (1, 2)] if job.has_ranks() else []:
        what = f"ems, tensor {tensor} x pipeline {pipeline}"
        done = job.run(tensor * pipeline, job.config("f32", tensor, pipeline, extra=ems()), given)
        tally.check(f"{what}: texts", done.tokens() == tokens, True)
        check_ems(tally, what, done)


def ems_predicted(tally):
    folder = job.Folder()
    name = folder.file("job.yaml", job.config("f32", extra=ems()))
    plan = json.loads(job.sheaf(1, ["plan", name, "--json"]).stdout)
    tally.check("ems, plan: bytes at 2048", plan["ranks"][0]["kv_bytes_at_len"]["2048"],
                [LAYERS * HEADS * BUDGET * (SLOT + 4)] * 2)
    folder.remove()


def ems_refused(tally, given):
    for more, word in [(", merge_space: pre_rope", "keys before rotation"),
                       (", head_budget: sparsity", "head_budget sparsity"),
                       (", head_budget: profile", "head_budget profile"),
                       (", num_sink_tokens: 28", "budget_tokens 40 leaves no slot"),
                       (", pool_kernel: 4", "pool_kernel 4"), (", tbm_rule: most", "tbm_rule")]:
        done = job.run(1, job.config("f32", extra=ems(more)), given)
        tally.check(f"ems{more}: exit code", done.code, 2)
        tally.check(f"ems{more}: one line", len(done.error_lines()), 1)
        tally.true(f"ems{more}: words", word in done.stderr, done.stderr)


def main():
    tally = job.Tally("methods")
    job.need_model(tally)
    given = make_records()
    ems_layouts(tally, given)
    ems_predicted(tally)
    ems_refused(tally, given)
    layouts(tally, given)
    predicted(tally)
    profiles(tally, given)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
