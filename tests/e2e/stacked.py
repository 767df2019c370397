"""Two methods over six ranks: a window for most heads, a shared basis for the retrieval heads.

razor_attention (on: other) and xkv (on: retrieval), with the head set of the model's own profile,
under tensor 3 x pipeline 2; the real model, f32, deterministic.  Shown: a job whose rank is killed
and that is resumed says what an undisturbed one says, token by token; every record's stored bytes,
evicted and encoded slots are those of the two definitions, from its tokens and from the heads that
the plan gives to each rank, summed over methods and ranks; and the plan foretells the bytes of a
sequence of a length that it names, and the groups.
"""
# not with --quick
import json
import os
import re
import signal
import subprocess
import sys
import time

import job
import methods
from memory import ranks_below

TENSOR, PIPELINE, VICTIM = 3, 2, 4
GROUP, RANK_K, RANK_V, LEAST, DIM = 4, 24, 36, 48, 64
PROFILE = os.path.join(job.ROOT, "configs/profiles/smollm2-135m-instruct.razor_attention.yaml")
WHOLE = 1024                            # a length of the plan
STACK = (f"kv_cache: {{methods: [{{name: razor_attention, on: other, profile: {PROFILE}, "
         f"num_sink_tokens: {methods.SINKS}, min_window_tokens: {methods.WINDOW}, "
         f"window_divisor: {methods.DIVISOR}, min_dropped_tokens: {methods.DROPPED}, "
         f"fold_tokens: {methods.FOLD}}}, {{name: xkv, on: retrieval, group_size: {GROUP}, "
         f"rank_k: {RANK_K}, rank_v: {RANK_V}, min_prompt_tokens: {LEAST}}}]}}\n")


def retrieval_heads():
    with open(PROFILE, encoding="utf-8") as file:
        return {(int(layer), int(head)) for layer, head in
                re.findall(r"^  - \[(\d+), (\d+)\]", file.read(), re.MULTILINE)}


def groups_of(plan):
    """Layers of each group: GROUP of each stage at a time, whichever heads are in it."""
    groups = []
    for stage in range(PIPELINE):
        first, last = plan["ranks"][stage * TENSOR]["layers"]
        groups += [list(range(layer, min(layer + GROUP, last + 1)))
                   for layer in range(first, last + 1, GROUP)]
    return groups


def lanes_of(plan, group, heads):
    """Retrieval heads of the group on each rank that has some."""
    counts = []
    for rank in plan["ranks"]:
        first, last = rank["layers"]
        mine = sum((layer, head) in heads for layer in group if first <= layer <= last
                   for head in rank["kv_heads"][layer - first])
        counts += [mine] if mine else []
    return counts


def receipt_of(plan, heads, prompt, fed):
    """(stored bytes, slots evicted, slots encoded) of one sequence, by the definitions."""
    slot = 2 * DIM * 4 + 8
    others = methods.LAYERS * methods.HEADS - len(heads)
    dropped = methods.dropped_of(prompt, fed)
    stored = others * (fed - dropped + (dropped > 0)) * slot
    if prompt < LEAST:
        return stored + len(heads) * fed * slot, others * dropped, 0
    stored += len(heads) * ((fed - prompt) * slot + prompt * 8)
    for group in groups_of(plan):
        shares = lanes_of(plan, group, heads)
        for lanes in shares:            # columns in proportion to the lanes of the whole group
            columns = [-(-rank * sum(shares) // (GROUP * methods.HEADS))
                       for rank in (RANK_K, RANK_V)]
            width = sum(min(-(-one // TENSOR), prompt, lanes * DIM) for one in columns)
            stored += (prompt + lanes * DIM) * width * 4
    return stored, others * dropped, len(heads) * prompt


def check_receipts(tally, what, answers, plan, heads):
    short = some = 0
    for name, answer in sorted(answers.items()):
        body = answer["response"]["body"]
        prompt, made = body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]
        got, wanted = body["sheaf"], receipt_of(plan, heads, prompt, prompt + made - 1)
        tally.check(f"{what}, {name}: stored, evicted, encoded",
                    (got["kv_bytes_stored"], got["slots_evicted"], got["slots_requantised"]),
                    wanted)
        short, some = short + (wanted[2] == 0), some + (wanted[1] > 0)
    tally.true(f"{what}: both methods act on some records, not on all",
               0 < short < len(answers) and 0 < some < len(answers), f"{short}, {some}")


def check_plan(tally, plan, answers):
    layers = {layer for layer, _ in retrieval_heads()}
    tally.check("plan: groups, those with heads alone",
                [group["layers"] for group in plan["groups"]],
                [group for group in groups_of(plan) if layers & set(group)])
    bytes_at = [rank["kv_bytes_at_len"][str(WHOLE)] for rank in plan["ranks"]]
    tally.true("plan: nothing depends on the data", all(lo == hi for lo, hi in bytes_at))
    tally.check("plan: bytes of a record of that length, over all ranks",
                sum(hi for _, hi in bytes_at),
                answers["whole"]["response"]["body"]["sheaf"]["kv_bytes_stored"])
    tally.true("plan: each rank has some of them", all(hi > 0 for _, hi in bytes_at))


def make_records():
    whole = job.records([("whole", {"prompt": [(11 * i + i * i) % 40000 + 10 for i in range(WHOLE)],
                                    "max_tokens": 1, "return_token_ids": True})])
    return methods.make_records(12, 2, 8, 4) + whole


def finished(output):
    try:
        with open(output, "rb") as file:
            return file.read().count(b"\n")
    except OSError:
        return 0


def killed(line, output):
    """Starts the job and kills a rank of the last stage when two records are there."""
    with subprocess.Popen(line, env=job.environment(), stderr=subprocess.PIPE,
                          stdin=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while finished(output) < 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        pid = ranks_below(process.pid).get(VICTIM)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        process.communicate()
        return process.returncode


def main():
    tally = job.Tally("stacked")
    job.need_model(tally)
    if not job.has_mpi():
        tally.skip("all", "needs mpirun")
        tally.end()
    heads, given, ranks = retrieval_heads(), make_records(), TENSOR * PIPELINE
    folder = job.Folder()
    text = job.config("f32", TENSOR, PIPELINE, seqs=4, extra=STACK)
    name = folder.file("job.yaml", text.replace("run: {", "run: {checkpoint_interval_s: 0.1, "))
    taken, output = folder.file("in.jsonl", given), folder.file("out.jsonl")
    plan = json.loads(job.sheaf(1, ["plan", name, "--json"]).stdout)
    reference = job.run(ranks, text, given)
    if not tally.check("undisturbed: exit code", reference.code, 0):
        print(reference.stderr[-2000:])
        tally.end()
    check_receipts(tally, "undisturbed", reference.answers, plan, heads)
    check_plan(tally, plan, reference.answers)
    arguments = ["run", name, "--input", taken, "--output", output]
    code = killed(job.command(ranks, arguments), output)
    tally.true("killed", code in (1, 137), f"exit code {code}")
    kept = finished(output)
    tally.true("killed: between the first and the last answer", 2 <= kept < given.count("\n"),
               f"{kept} answers")
    done = job.sheaf(ranks, [*arguments, "--resume"])
    tally.check("resumed: exit code", done.code, 0)
    resumed = job.Done(done.code, "", done.stderr, 0, output)
    tally.check("resumed: tokens", resumed.tokens(), reference.tokens())
    check_receipts(tally, "resumed", resumed.answers, plan, heads)
    folder.remove()
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
