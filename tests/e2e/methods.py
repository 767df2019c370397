"""Compression methods in real jobs: what they keep, whatever the layout, and what they refuse.

ems, with the real model, f32, deterministic: every record's stored bytes follow from its tokens
alone, what leaves its lanes is evicted or merged, and texts are equal in every layout, alone and in
a batch, in order and in reverse; what is not built and what makes no sense is refused in one line.

razor_attention, with the real model, f32, deterministic; greedy and sampled records, some shorter
and some longer than what a head keeps.  Shown: every record's stored bytes and evicted slots are
those of the definition, from its tokens alone, and the plan foretells the sum; texts are equal in
every layout, alone, in a batch and with shared prompts, whichever rank the planner gives a head
to; the head set of a profile does what the same set written inline does; a profile of another
model is refused, one that does not say its model is a warning; another method takes the retrieval
heads by `on:`.
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
# Many in the first head of a layer, so that blocks of heads are not level.
SPREAD = [[layer, 0] for layer in range(0, LAYERS, 2)] + [[layer, 2] for layer in (4, 5, 13, 20)]
COMMON = "The lighthouse keeper wrote in his log every evening what he had seen from the tower. "


def razor(more="", heads=None):
    heads = f", retrieval_heads: {json.dumps(RETRIEVAL if heads is None else heads)}" \
        if heads != "" else ""
    return (f"kv_cache: {{methods: [{{name: razor_attention{heads}, num_sink_tokens: {SINKS}, "
            f"min_window_tokens: {WINDOW}, window_divisor: {DIVISOR}, "
            f"min_dropped_tokens: {DROPPED}, fold_tokens: {FOLD}{more}}}]}}\n")


def make_records(count=12, alike=3, least=12, step=5):
    """Prompts of growing length, `alike` of each, with answers of `least` tokens and more; every
    other one is drawn."""
    bodies = []
    for i in range(count):
        body = {"prompt": COMMON * (i // alike) + "Tell me about the sea and the ships.",
                "max_tokens": least + step * (i % 4), "ignore_eos": True,
                "return_token_ids": True}
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


def layouts(tally, given, exact):
    """Tokens of one rank."""
    first = job.run(1, job.config("f32", extra=razor()), given)
    if not tally.check("one rank: exit code", first.code, 0):
        print(first.stderr[-2000:])
        return {}
    check_receipts(tally, "one rank", first)
    tokens = first.tokens()
    tally.true("the method changes some text", tokens != exact)
    alone = job.run(1, job.config("f32", seqs=1, extra=razor()), given)
    tally.check("alone: texts", alone.tokens(), tokens)
    for tensor, pipeline, data in LAYOUTS if job.has_ranks() else []:
        what = f"tensor {tensor} x pipeline {pipeline} x data {data}"
        done = job.run(tensor * pipeline * data,
                       job.config("f32", tensor, pipeline, data, extra=razor()), given)
        tally.check(f"{what}: texts", done.tokens() == tokens, True)
        check_receipts(tally, what, done)
    return tokens


def heads_of(plan):
    """For each tensor rank: its KV heads, layer by layer."""
    return [rank["kv_heads"] for rank in plan["ranks"]]


def placed(tally, given):
    """Heads that keep all are spread over the ranks, and nothing in the answers tells."""
    if not job.has_ranks():
        tally.skip("placement", "no ranks")
        return
    first = job.run(1, job.config("f32", extra=razor(heads=SPREAD)), given)
    folder = job.Folder()
    for tensor in (2, 3):
        plans = []
        for rule in ("balanced", "identity"):
            # One parallel: section, so the rule goes into the one that job.config writes.
            text = job.config("f32", tensor, extra=razor(heads=SPREAD)).replace(
                "parallel:\n", f"parallel:\n  head_placement: {rule}\n")
            what = f"tensor {tensor}, {rule}"
            name = folder.file(f"{tensor}-{rule}.yaml", text)
            options = ["--ranks-per-node", str(tensor)]
            plan = json.loads(job.sheaf(1, ["plan", name, "--json", *options]).stdout)
            plans.append(plan)
            tally.true(f"{what}: every head once", all(
                sorted(sum(layer, [])) == list(range(HEADS)) for layer in zip(*heads_of(plan))))
            done = job.run(tensor, text, given)
            tally.check(f"{what}: exit code", done.code, 0)
            tally.check(f"{what}: texts", done.tokens() == first.tokens(), True)
            tally.check(f"{what}: receipts", receipts(done) == receipts(first), True)
            levels = [line.split(": ")[1] for line in job.sheaf(
                1, ["plan", name, *options]).stdout.splitlines() if "as placed" in line]
            tally.check(f"{what}: lines on placement", len(levels), 2)
            before, after = (float(word.split()[0]) for word in levels[0].split(", "))
            tally.true(f"{what}: level", after < 1.06 and before > 1.2 if rule == "balanced"
                       else before == after, f"{before}, then {after}")
        full = [[rank["kv_bytes_at_len"]["2048"][1] for rank in plan["ranks"]] for plan in plans]
        tally.true(f"tensor {tensor}: the fullest rank holds less", max(full[0]) < max(full[1]),
                   str(full))
        tally.check(f"tensor {tensor}: bytes in all", sum(full[0]), sum(full[1]))
        tally.true(f"tensor {tensor}: heads are permuted", any(
            list(layer) != sorted(layer) for layer in zip(*heads_of(plans[0]))))
        if tensor == 2:
            tally.true("a rank has heads that are not neighbours",
                       any([0, 2] in rank for rank in heads_of(plans[0])))
    folder.remove()


def receipts(done):
    return {name: {key: answer["response"]["body"]["sheaf"][key]
                   for key in ("kv_bytes_stored", "slots_evicted")}
            for name, answer in done.answers.items()}


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


def profiles(tally, given, inline):
    folder = job.Folder()
    with open(job.MODEL, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
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
        tally.check(f"{what}: texts as inline", done.tokens(), {
            name: inline.get(name) for name in done.tokens()})
        tally.check(f"{what}: answers", len(done.answers), given.count("\n"))
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


def classes(tally, given):
    """`on:` takes the heads that razor_attention tells: each method keeps what it keeps alone."""
    keep = 12
    kept = f"{{name: window, num_sink_tokens: 2, recent_tokens: {keep - 2}, on: retrieval}}"
    text = razor(", on: other").replace("methods: [", f"methods: [{kept}, ")
    first = job.run(1, job.config("f32", extra=text), given)
    tally.check("classes: exit code", first.code, 0)
    lanes = LAYERS * HEADS - len(RETRIEVAL)
    for name, answer in sorted(first.answers.items()):
        body = answer["response"]["body"]
        fed = body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"] - 1
        dropped = dropped_of(body["usage"]["prompt_tokens"], fed)
        slots = lanes * (fed - dropped + (dropped > 0)) + len(RETRIEVAL) * min(fed, keep)
        tally.check(f"classes, {name}: stored bytes", body["sheaf"]["kv_bytes_stored"],
                    slots * SLOT)
    if job.has_ranks():
        done = job.run(6, job.config("f32", 3, 2, extra=text), given)
        tally.check("classes, tensor 3 x pipeline 2: texts", done.tokens() == first.tokens(), True)
        tally.check("classes, tensor 3 x pipeline 2: receipts", receipts(done) == receipts(first),
                    True)
    done = job.run(1, job.config("f32", extra=f"kv_cache: {{methods: [{kept}]}}\n"), given)
    tally.check("no classes: exit code", done.code, 2)
    tally.check("no classes: one line", len(done.error_lines()), 1)
    tally.true("no classes: words", "no method of the stack tells retrieval heads" in done.stderr,
               done.stderr)


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


def ems_layouts(tally, given, some, exact):
    first = job.run(1, job.config("f32", extra=ems()), given)
    if not tally.check("ems, one rank: exit code", first.code, 0):
        print(first.stderr[-2000:])
        return
    check_ems(tally, "ems, one rank", first)
    tokens = first.tokens()
    tally.true("ems changes some text", tokens != exact)
    dropped = job.run(1, job.config("f32", extra=ems().replace("0.3", "1")), some).tokens()
    tally.true("ems: merging changes some text", len(dropped) > 0 and
               any(tokens[name] != dropped[name] for name in dropped))
    alone = job.run(1, job.config("f32", seqs=1, extra=ems()), given)
    tally.check("ems, alone: texts", alone.tokens(), tokens)
    for tensor, pipeline in [(3, 1), (1, 2), (4, 1)] if job.has_ranks() else []:
        what = f"ems, tensor {tensor} x pipeline {pipeline}, reverse order"
        done = job.run(tensor * pipeline, job.config("f32", tensor, pipeline, extra=ems()),
                       "".join(given.splitlines(keepends=True)[::-1]))
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
    for more, word in [(", head_budget: profile", "head_budget profile"),
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
    some = "".join(given.splitlines(keepends=True)[5:8])
    exact = job.run(1, job.config("f32"), given).tokens()
    tally.check("exact: answers", len(exact), given.count("\n"))
    inline = layouts(tally, given, exact)
    predicted(tally)
    placed(tally, some)
    profiles(tally, some, inline)
    classes(tally, some)
    ems_layouts(tally, given, some, exact)
    ems_predicted(tally)
    ems_refused(tally, some)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
