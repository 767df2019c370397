"""xkv in real jobs: what it stores whatever the layout, answers that do not depend on the batch or
on the pipeline, also where a job is killed and resumed, and stacks that are legal or refused.

With the real model, f32, deterministic.  Every record's stored bytes are those of the method's
formula, group by group, and prompts that are too short stay exact; with refactor_every so are
those of the segments of each answer; the plan foretells bytes, groups and ranks.  Where stages end
between groups, texts are those of one rank; tensor ranks have bases of their own, so there only
bytes are compared.  Dense, and the prompt read by chunks with segments behind it.
"""
# not with --quick
import json
import os
import signal
import subprocess
import sys
import time

import job
import methods
from memory import ranks_below

LAYERS, HEADS, DIM = 30, 3, 64
GROUP, RANK_K, RANK_V, LEAST = 4, 24, 36, 16
CHUNK, PICKS, LOCAL, OUTLIERS = 4, 3, 1, 2
SELECTIVE = (f", reconstruction: selective, chunk_size: {CHUNK}, budget_tokens: {CHUNK * PICKS}, "
             f"local_chunks: {LOCAL}, outlier_chunks: {OUTLIERS}")
EVERY, EVERY_RANKS = 8, (6, 9)            # fewer than there are rows
SEALED = f", refactor_every: {EVERY}"
REPLICATED = ", tp_mode: replicated_basis"
RAZOR = ("{name: razor_attention, retrieval_heads: [[3, 1], [12, 0], [20, 2]], on: other, "
         "min_window_tokens: 24, window_divisor: 50, min_dropped_tokens: 2}")


def xkv(more="", before="", least=LEAST, ranks=(RANK_K, RANK_V)):
    return (f"kv_cache: {{methods: [{before}{{name: xkv, group_size: {GROUP}, rank_k: {ranks[0]}, "
            f"rank_v: {ranks[1]}, min_prompt_tokens: {least}{more}}}]}}\n")


def groups_of(stages):
    """Numbers of layers of each group."""
    return [min(GROUP, count - i) for count in stages for i in range(0, count, GROUP)]


def chunks_of(prompt, selective):
    """Chunks of the basis that are picked from; 0: it is dense."""
    chunks = prompt // CHUNK - LOCAL
    return chunks if selective and chunks >= OUTLIERS + PICKS else 0


def encoded(rows, stages, tensor, ranks_of, copies):
    """Bytes of basis and factors of so many tokens, in all groups; with rank_v 0 values stay as
    they are, with copies each tensor rank has all bases."""
    total = 0
    for layers in groups_of(stages):
        for heads in [HEADS // tensor + (rank < HEADS % tensor) for rank in range(tensor)]:
            parts, whole = (1, HEADS) if copies else (tensor, heads)
            ranks = [min(-(-(-(-rank * layers // GROUP)) // parts), rows, layers * whole * DIM)
                     for rank in ranks_of]
            total += (rows * sum(ranks) + layers * heads * DIM * sum(ranks)) * 4
            total += layers * heads * DIM * rows * 4 if ranks_of[1] == 0 else 0
    return total


def stored(prompt, fed, stages=(LAYERS,), tensor=1, ranks=(RANK_K, RANK_V), more=""):
    """Bytes of one sequence by the formula."""
    chunks = chunks_of(prompt, SELECTIVE in more) if prompt >= LEAST else 0
    segments = (fed - prompt) // EVERY if SEALED in more else 0
    rows, raw = (chunks * CHUNK, OUTLIERS * CHUNK) if chunks else (prompt, 0)
    if prompt < LEAST:
        rows = 0
    copies = REPLICATED in more
    total = segments * encoded(EVERY, stages, tensor, ranks, copies)
    total += encoded(rows, stages, tensor, ranks, copies) if rows else 0
    rows += segments * EVERY
    marks = max(0, chunks - OUTLIERS) * (DIM * 4 + 8)
    return total + LAYERS * HEADS * ((fed - rows + raw) * (2 * DIM * 4 + 8) + rows * 8 + marks)


def check_receipts(tally, what, done, tensor=1, ranks=(RANK_K, RANK_V), more=""):
    short = picked = 0
    for name, answer in sorted(done.answers.items()):
        body = answer["response"]["body"]
        prompt, made = body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]
        short += prompt < LEAST
        picked += chunks_of(prompt, SELECTIVE in more) > 0
        tally.check(f"{what}, {name}: stored bytes", body["sheaf"]["kv_bytes_stored"],
                    stored(prompt, prompt + made - 1, tensor=tensor, ranks=ranks, more=more))
    tally.true(f"{what}: some prompts are too short", 0 < short < len(done.answers), str(short))
    if SELECTIVE in more:
        tally.true(f"{what}: some are read by chunks", picked > 1, str(picked))
    tally.true(f"{what}: no warning that it did nothing", "changed nothing" not in done.stderr)


def pipelined(extra, more=""):
    """Two stages that end where groups do."""
    return job.config("f32", 1, 2, seqs=3, extra=extra).replace(
        "parallel:\n", "parallel:\n  pipeline_layers: [16, 14]\n").replace(
            "run: {", "run: {" + more)


def layouts(tally, given, what, more="", ranks=(RANK_K, RANK_V)):
    first = job.run(1, job.config("f32", extra=xkv(more, ranks=ranks)), given)
    if not tally.check(f"{what}: exit code", first.code, 0):
        print(first.stderr[-2000:])
        return {}
    check_receipts(tally, what, first, ranks=ranks, more=more)
    tokens = first.tokens()
    if not job.has_ranks():
        tally.skip(f"{what}, tensor ranks", "no ranks")
        return tokens
    done = job.run(2, job.config("f32", 2, extra=xkv(more, ranks=ranks)), given)
    tally.check(f"{what}, tensor: exit code", done.code, 0)
    check_receipts(tally, f"{what}, tensor", done, 2, ranks, more)
    if SEALED not in more:
        text = job.config("f32", 2, extra=xkv(more + REPLICATED, ranks=ranks))
        done = job.run(2, text, given)
        tally.check(f"{what}, replicated: exit code", done.code, 0)
        check_receipts(tally, f"{what}, replicated", done, 2, ranks, more + REPLICATED)
    return tokens


def exact_values(tally, given):
    """rank_v 0, plan and run."""
    folder, keys = job.Folder(), (RANK_K, 0)
    text = job.config("f32", extra=xkv(ranks=keys))
    name, wanted = folder.file("keys.yaml", text), stored(2048, 2048, ranks=keys)
    plan = json.loads(job.sheaf(1, ["plan", name, "--json"]).stdout)
    tally.check("exact values: bytes at 2048", plan["ranks"][0]["kv_bytes_at_len"]["2048"],
                [wanted, wanted])
    tally.check("exact values: ranks", [plan["groups"][0][key] for key in ("rank_k", "rank_v")],
                [RANK_K, 0])
    tally.true("exact values: the plan says so",
               f"ranks K {RANK_K}, V exact" in job.sheaf(1, ["plan", name]).stdout)
    folder.remove()
    done = job.run(1, text, given)
    tally.check("exact values: exit code", done.code, 0)
    check_receipts(tally, "exact values", done, ranks=keys)


def survives(tally, given, tokens, more):
    """Two stages and another batch; kill -9 after some answers, then --resume, with half-finished
    records fed again."""
    if not job.has_mpi():
        tally.skip("pipeline, kill and resume", "no mpirun")
        return
    folder = job.Folder()
    name = folder.file("job.yaml", pipelined(xkv(more, ranks=EVERY_RANKS),
                                             "checkpoint_interval_s: 0.1, "))
    taken, output = folder.file("in.jsonl", given), folder.file("out.jsonl")
    line = job.command(2, ["run", name, "--input", taken, "--output", output])
    with subprocess.Popen(line, env=job.environment(), stderr=subprocess.PIPE,
                          stdin=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with open(output, "rb") as file:
                    if file.read().count(b"\n") >= 2:
                        break
            except OSError:
                pass
            time.sleep(0.01)
        for pid in list(ranks_below(process.pid).values())[:1]:
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    with open(output, "rb") as file:
        tally.true("killed before its end", file.read().count(b"\n") < given.count("\n"))
    done = job.sheaf(2, ["run", name, "--input", taken, "--output", output, "--resume"])
    tally.check("resumed: exit code", done.code, 0)
    resumed = job.Done(done.code, "", "", 0, output)
    tally.check("resumed: texts", resumed.tokens() == tokens, True)
    check_receipts(tally, "resumed", resumed, ranks=EVERY_RANKS, more=more)
    folder.remove()


def listed(tally, folder, ranks):
    """Groups that the user lists: as they are, with stages cut between them, and refused where that
    cannot be."""
    for groups, most, words in (
            ('["0-3", "4-5", "8-17", 18, "20-29"]', 10, None),
            ('["0-29"]', 30, "between layers"),
            ('["0-3", "3-7"]', 0, "ascending and without a number twice"),
            ('["28-30"]', 0, "has 28-30, but the model has layers 0 to 29")):
        text = job.config("f32", 1, 2, extra=xkv(f",\n      layer_groups: {groups}, "
                                                 "pp_imbalance_tolerance: 0.05"))
        name = folder.file("listed.yaml", text)
        done = job.sheaf(1, ["plan", name, "--json", *ranks])
        tally.check(f"{groups}: exit code", done.code, 2 if words else 0)
        if words:
            line = text[:text.index("layer_groups")].count("\n") + 1
            tally.true(f"{groups}: words", done.stderr.startswith(f"{name}:{line}:21: error: ") and
                       words in done.stderr and done.stderr.count("\n") == 1, done.stderr)
            continue
        plan = json.loads(done.stdout)
        tally.check(f"{groups}: groups",
                    [[g["layers"][0], g["layers"][-1]] for g in plan["groups"]],
                    [[0, 3], [4, 5], [8, 17], [18, 18], [20, 29]])
        tally.check(f"{groups}: ranks", [[g["rank_k"], g["rank_v"]] for g in plan["groups"]],
                    [[24, 36], [12, 18], [60, 90], [6, 9], [60, 90]])
        tally.check(f"{groups}: longest", max(len(g["layers"]) for g in plan["groups"]), most)


def copied(tally, folder):
    """One basis of several tensor ranks: bytes, ranks and words of the plan."""
    for tensor in (2, 3):
        name = folder.file("copied.yaml",
                           job.config("f32", tensor, extra=xkv(", tp_mode: replicated_basis")))
        line = ["plan", name, "--ranks-per-node", str(tensor)]
        plan = json.loads(job.sheaf(1, [*line, "--json"]).stdout)
        wanted = stored(2048, 2048, tensor=tensor, more=REPLICATED)
        tally.check(f"copied {tensor}: bytes at 2048", sum(
            rank["kv_bytes_at_len"]["2048"][0] for rank in plan["ranks"]), wanted)
        tally.check(f"copied {tensor}: group", [plan["groups"][0][key] for key in
                                                ("rank_k", "rank_v", "replicated")],
                    [RANK_K, RANK_V, True])
        text = job.sheaf(1, line).stdout
        tally.true(f"copied {tensor}: words", "in full on each tensor rank" in text, text)
        tally.check(f"copied {tensor}: warning", f"{tensor} copies of each basis" in text,
                    tensor > 2)
        done = job.sheaf(1, [*line, "--json", "--set", "device=cuda-emulated"])
        tally.check(f"copied {tensor}: a device's exit code", done.code, 0)
        ranks = [[rank["kv_bytes_at_len"] for rank in one["ranks"]]
                 for one in (plan, json.loads(done.stdout))]
        tally.check(f"copied {tensor}: a device's bytes", ranks[1], ranks[0])


def too_wide(tally, folder):
    """More columns than attention has room for."""
    wide = ("kv_cache: {methods: [{name: xkv, group_size: 30, rank_k: 4096, rank_v: 96, "
            "min_prompt_tokens: 64}]}\n")
    name = folder.file("wide.yaml", job.config("f32", extra=wide).replace(
        "max_model_len: 2048", "max_model_len: 8192"))
    done = job.sheaf(1, ["plan", name])
    tally.check("too wide: exit code", done.code, 2)
    tally.true("too wide: words", "attention takes at most 3072" in done.stderr and
               done.stderr.count("\n") == 1, done.stderr)


def planned(tally):
    folder = job.Folder()
    too_wide(tally, folder)
    ranks = ["--ranks-per-node", "2"]
    wanted = stored(2048, 2048)
    one = folder.file("one.yaml", job.config("f32", extra=xkv()))
    plan = json.loads(job.sheaf(1, ["plan", one, "--json"]).stdout)
    tally.check("plan: bytes at 2048", plan["ranks"][0]["kv_bytes_at_len"]["2048"],
                [wanted, wanted])
    for sinks in (0, 4):
        text = job.sheaf(1, ["plan", one, "--set",
                             f"kv_cache.methods.0.num_sink_tokens={sinks}"]).stdout
        tally.check(f"plan: warns of {sinks} first tokens raw", "first tokens are in the bases"
                    in text, sinks == 0)
    ten = ["--set", "parallel.pipeline_layers=[15,15]"]
    two = folder.file("two.yaml", job.config("f32", 1, 2, extra=xkv()))
    plan = json.loads(job.sheaf(1, ["plan", two, "--json", *ranks, *ten]).stdout)
    tally.check("plan: groups begin with each stage", [group["layers"] for group in plan["groups"]],
                [list(range(first, min(first + GROUP, end)))
                 for start, end in ((0, 15), (15, 30)) for first in range(start, end, GROUP)])
    tally.check("plan: a short group's ranks", [plan["groups"][3][key] for key in
                                                ("rank_k", "rank_v", "stage", "node")],
                [18, 27, 0, 0])
    for tolerance, whole in ((0.25, True), (0.01, False)):
        text = job.config("f32", 1, 2, extra=xkv(f", pp_imbalance_tolerance: {tolerance}"))
        plan = json.loads(job.sheaf(1, ["plan", folder.file("cut.yaml", text), "--json",
                                        *ranks]).stdout)
        first = plan["ranks"][0]["layers"][1] + 1
        tally.check(f"plan: stages end between groups, tolerance {tolerance}",
                    first % GROUP == 0, whole)
    listed(tally, folder, ranks)
    copied(tally, folder)
    picking = folder.file("picking.yaml", job.config("f32", extra=xkv(SELECTIVE)))
    plan = json.loads(job.sheaf(1, ["plan", picking, "--json"]).stdout)
    wanted = stored(2048, 2048, more=SELECTIVE)
    tally.check("plan: bytes at 2048, selective", plan["ranks"][0]["kv_bytes_at_len"]["2048"],
                [wanted, wanted])
    done = job.sheaf(1, ["plan", picking, "--json", "--set", "device=cuda-emulated"])
    tally.check("plan: bytes at 2048, selective on a device",
                json.loads(done.stdout)["ranks"][0]["kv_bytes_at_len"]["2048"], [wanted, wanted])
    refused = [(", reconstruction: selective, budget_tokens: 7", "",
                "budget_tokens 7 is less than a chunk_size of 8"),
               (", factor_dtype: int4", "", "factor_dtype: int4 is not built yet"),
               (", svd: {rounds: 3}", "", "unknown option 'svd.rounds'"),
               (", refactor_every: 31", "", "from 32 on"),
               (", start_layer: 40", "", "takes layers 40 to 29 of a model that has 30"),
               ("", "{name: ems}, ", "gone from all heads and layers of the group"),
               (", on: retrieval", RAZOR + ", ", None)]
    for number, (more, before, words) in enumerate(refused):
        least = "auto" if "refactor" in more else LEAST
        name = folder.file(f"refused{number}.yaml",
                           job.config("f32", extra=xkv(more, before, least)))
        done = job.sheaf(1, ["plan", name])
        tally.check(f"plan {number}: exit code", done.code, 2 if words else 0)
        tally.true(f"plan {number}: words", words is None or words in done.stderr, done.stderr)
    folder.remove()


def stacked(tally, given):
    """RazorAttention's window on the other heads, a basis for the retrieval heads."""
    done = job.run(1, job.config("f32", extra=xkv(", on: retrieval", RAZOR + ", ")), given)
    tally.check("stack: exit code", done.code, 0)
    folded = [answer["response"]["body"]["sheaf"] for answer in done.answers.values()]
    tally.true("stack: slots go and others are encoded", any(
        0 < one["slots_evicted"] and 0 < one["slots_requantised"] for one in folded), str(folded))


def main():
    tally = job.Tally("xkv")
    job.need_model(tally)
    given = methods.make_records(7, 2, 6, 4)
    planned(tally)
    layouts(tally, given, "dense")
    more = SELECTIVE + SEALED
    tokens = layouts(tally, given, "chunks and segments", more, EVERY_RANKS)
    survives(tally, given, tokens, more)
    exact_values(tally, given)
    stacked(tally, given)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
