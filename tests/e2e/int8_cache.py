"""A raw tier in int8: one scale for each key and value, under runs, methods, lab, eval and plan.

Shown: through `lab`, every slot reads within half a step of what was recorded, outputs are those
of attention over the slots as they read, and near those of the exact ones; the real model: stored
bytes are 2 x 64 codes, two scales and 8 bytes a slot, as receipts and the plan say, and answers are
mostly those of a cache in bf16; a resumed job may not change the type; under window, ems and
razor_attention two tensor ranks say what one says, to the last token and byte; `eval` sets both
types beside each other; a basis of bf16 goes with it, values that stay exact do not.
"""
import json
import re
import sys

import job
import lab

LAYERS, HEADS, DIM = 30, 3, 64
SLOT = {"int8": 2 * DIM + 2 * 4 + 8, "bf16": 2 * DIM * 2 + 8}
PROMPTS = ["The capital of France is the city of", "Three colours of the rainbow are red,",
           "Once upon a time there was a small village by the sea, and in it lived a fisherman who"
           " had a boat and two sons. Every morning they went out before the sun, and"]
TEXT = ("The harbour of the old town lies between two hills, and in the morning the boats come home"
        " with what they have caught. The women wait on the quay with baskets and knives, and the"
        " children run between them and shout the names of the boats. When the sun stands above the"
        " church the fish is sold, the quay is washed, and the men sleep until the evening. ")


def cache(dtype, methods=""):
    return f"kv_cache: {{dtype: {dtype}{', ' if methods else ''}{methods}}}\n"


# ---- recorded tensors ----------------------------------------------------------------------------

def check_lab(tally, folder):
    shape = ([(6, 2, 16, 16), (4, 2, 16, 12)], 70, 45, 16, "10000", None)
    trace = lab.Trace(shape, 5)
    given, result = folder.file("int8.trace", trace.bytes()), folder.file("int8.result")
    done = job.sheaf(1, ["lab", folder.file("lab.yaml", lab.BASE + cache("int8")), "--trace", given,
                         "--output", result], 60)
    if not tally.check("lab: exit code", done.code, 0):
        print(done.stderr)
        return
    tensors, meta = lab.unpack(result)
    wanted = sum(heads * trace.rows * (k_dim + v_dim + 16)
                 for _, heads, k_dim, v_dim in trace.layers)
    stats = json.loads(meta["stats"])
    tally.check("lab: bytes", [stats[f"bytes_{name}"] for name in ("exact", "stored", "predicted")],
                [wanted] * 3)
    slack, near, far = 0.0, 0.0, 0.0
    for layer, (q_heads, heads, k_dim, v_dim) in enumerate(trace.layers):
        out = tensors[f"layers.{layer}.out"][1]
        for head in range(heads):
            lane, exact = [], []
            for row in range(trace.rows):
                true = (trace.turned(layer, "k", row, head), trace.row(layer, "v", row, head))
                read = tuple(list(tensors[f"lanes.{layer}.{head}.{name}"][1][row * dim:][:dim])
                             for name, dim in (("k", k_dim), ("v", v_dim)))
                for one, of in zip(read, true):
                    step = max(abs(x) for x in of) / 127
                    slack = max(slack, max(abs(a - b) for a, b in zip(one, of)) / step)
                lane.append((row, *read))
                exact.append((row, *true))
                for q_head in range(head * q_heads // heads, (head + 1) * q_heads // heads):
                    q = trace.turned(layer, "q", row, q_head)
                    at = (row * q_heads + q_head) * v_dim
                    is_ = out[at:at + v_dim]
                    near = max(near, *(abs(a - b) for a, b in
                                       zip(is_, lab.attend(q, lane, k_dim ** -0.5))))
                    far = max(far, *(abs(a - b) for a, b in
                                     zip(is_, lab.attend(q, exact, k_dim ** -0.5))))
    tally.true("lab: slots within half a step", 0.3 < slack <= 0.5001, slack)
    # Queries and weights are rounded to 16 bits where the processor multiplies codes by VNNI.
    tally.true("lab: attention over the slots as they read", near < 2e-4, near)
    tally.true("lab: near attention over the exact ones", 1e-4 < far < 0.06, far)


# ---- jobs ----------------------------------------------------------------------------------------

def bodies(count, tokens):
    return job.records([(f"r{i}", {"prompt": PROMPTS[i], "max_tokens": tokens, "temperature": 0,
                                   "ignore_eos": True, "return_token_ids": True})
                        for i in range(count)])


def receipts(done):
    keys = ["kv_bytes_exact", "kv_bytes_stored", "slots_evicted", "slots_merged"]
    return {name: [answer["response"]["body"]["sheaf"][key] for key in keys]
            for name, answer in done.answers.items()}


def run(tally, what, *arguments, **more):
    done = job.run(*arguments, **more)
    if not tally.check(f"{what}: exit code", done.code, 0):
        print(done.stderr[-2000:])
    return done


def check_run(tally, folder):
    """The exact cache: bytes, answers beside those of bf16, and a resumption."""
    done = {dtype: run(tally, dtype, 1, job.config("bf16", extra=cache(dtype)), bodies(3, 16),
                       folder=folder) for dtype in ("bf16", "int8")}
    if any(one.code for one in done.values()):
        return
    for dtype, one in done.items():
        for name, answer in one.answers.items():
            usage = answer["response"]["body"]["usage"]
            slots = usage["prompt_tokens"] + usage["completion_tokens"] - 1
            tally.check(f"{dtype}, {name}: bytes", receipts(one)[name],
                        [slots * LAYERS * HEADS * SLOT[dtype]] * 2 + [0, 0])
    same = [sum(1 for a, b in zip(done["bf16"].tokens()[name], tokens) if a == b)
            for name, tokens in done["int8"].tokens().items()]
    tally.true("answers are those of bf16 for the greater part", sum(same) >= 24, same)
    name = folder.file("plan.yaml", job.config("bf16", extra=cache("int8")))
    plan = json.loads(job.sheaf(1, ["plan", name, "--json"], 60).stdout)["ranks"][0]
    tally.check("plan: bytes of a token", plan["kv_bytes_per_token"],
                LAYERS * HEADS * SLOT["int8"])
    tally.check("plan: bytes of 1,024 tokens", plan["kv_bytes_at_len"]["1024"],
                [1024 * LAYERS * HEADS * SLOT["int8"]] * 2)
    output = folder.file("again.jsonl")
    for dtype, code in (("int8", 0), ("bf16", 2)):
        line = ["run", folder.file(f"again-{dtype}.yaml", job.config("bf16", extra=cache(dtype))),
                "--input", folder.file("again.in", bodies(1, 3)), "--output", output, "--resume"]
        again = job.sheaf(1, line, 60)
        tally.check(f"resumed in {dtype}: exit code", again.code, code)
    tally.true("the key is named", any("kv_cache.dtype" in line for line in again.own_lines()),
               again.stderr)


def check_methods(tally, folder):
    """Three methods, each on its layers, on one rank and on two."""
    text = job.config("f32", extra=cache("int8", job.stack(20)))
    one = run(tally, "methods", 1, text, bodies(3, 12), folder=folder)
    tally.true("methods: slots are evicted and merged",
               all(sum(r[i] for r in receipts(one).values()) > 0 for i in (2, 3)), receipts(one))
    of = receipts(one).get("r2", [0, 0])    # the others are too short for that
    tally.true("methods: less is stored", 0 < of[1] < 0.6 * of[0], of)
    if not job.has_ranks():
        return
    text = job.config("f32", tensor=2, extra=cache("int8", job.stack(20)))
    two = run(tally, "methods, tensor 2", 2, text, bodies(3, 12), folder=folder)
    tally.check("methods, tensor 2: tokens", two.tokens(), one.tokens())
    tally.check("methods, tensor 2: receipts", receipts(two), receipts(one))


def check_eval(tally, folder):
    names = [folder.file(f"eval-{dtype}.yaml", job.config("bf16", deterministic=False,
                                                          extra=cache(dtype)))
             for dtype in ("bf16", "int8")]
    names.append(folder.file("eval-window.yaml", job.config(
        "bf16", deterministic=False, extra=cache("int8", "methods: [{name: window, num_sink_tokens:"
                                                 " 4, recent_tokens: 2000}]"))))
    done = job.sheaf(1, ["eval", *names, "--text", folder.file("text", TEXT * 2), "--prompt-len",
                         "60", "--json", "-"], 120)
    if not tally.check("eval: exit code", done.code, 0):
        print(done.stderr[-2000:])
        return
    runs = json.loads(done.stdout)["runs"]
    tally.check("eval: names", [one["stack"] for one in runs], ["exact/int8", "window/int8"])
    for one in runs:
        what = one["stack"]
        tally.true(f"eval, {what}: agreement", one["top1_agreement"] >= 0.9,
                   one["top1_agreement"])
        tally.true(f"eval, {what}: divergence", 1e-7 < one["kl_mean"] < 0.01,
                   one["kl_mean"])
    tally.check("eval: a window that drops nothing changes nothing", runs[0]["kl_mean"],
                runs[1]["kl_mean"])


def check_xkv(tally, folder):
    for rank_v, code in ((48, 0), (0, 2)):
        name = folder.file(f"xkv{rank_v}.yaml", job.config("bf16", extra=cache(
            "int8", f"methods: [{{name: xkv, group_size: 2, rank_k: 32, rank_v: {rank_v}}}]")))
        done = job.sheaf(1, ["plan", name], 60)
        tally.check(f"xkv, rank_v {rank_v}: exit code", done.code, code)
    tally.true("xkv, rank_v 0: one line", len(done.error_lines()) == 1 and
               "rank_v: 0" in done.error_lines()[0], done.stderr)


def main():
    tally = job.Tally("int8_cache")
    job.need_model(tally)
    folder = job.Folder()
    check_lab(tally, folder)
    check_run(tally, folder)
    check_methods(tally, folder)
    check_eval(tally, folder)
    check_xkv(tally, folder)
    if tally.failed == 0:
        folder.remove()
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
