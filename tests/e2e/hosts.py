"""What leaves a host: as much as the plan says, and nothing of a cache.

Two hosts (network namespaces, two_hosts.py), tensor 2 inside each, pipeline 2 over them, the real
model: stage 0 on host 0, stage 1 on host 1.  At least 64 MiB of activations cross, once with the
exact cache, once with xkv, whose layer groups share a basis.  Shown, for both:

    between   what the interface of the data has carried, and what MPI says its ranks have sent from
              host to host, is what `sheaf plan` foretells for this many tokens, steps, sequences
              and seconds (counts of the run's manifest), within 2 % + 64 KiB
    inside    sums of tensor groups and bases do not cross: with xkv no more goes over than without
              it, beyond what is foretold, though one group's factors of one record would show

The interface counts frames.  Those of the kernel's TCP over veth are as large as a segment handed
down (up to 64 KiB), and their heads are 14 (Ethernet) + 20 (IP) + 32 (TCP with time stamps) bytes
for each packet counted; what is left are the bytes that Open MPI wrote, which are its messages and
some tens of bytes of headers for each.  Open MPI's own matrix (pml_monitoring) counts the messages
without headers.

Layouts that would send a cache or a tensor group over the border are refused, with the line to
change.  --long: four times as much.
"""
# not with --quick
import json
import os
import sys

import job
import two_hosts

FRAME_BYTES = 14 + 20 + 32
SLACK = 64 * 1024
LEAST_BYTES = 64 << 20
STAGES = [16, 14]
RECORDS, PROMPT, ANSWER = 44, 640, 24
if job.LEVEL == "long":
    RECORDS *= 4
GROUP, RANK_K, RANK_V = 4, 64, 96
XKV = (f"kv_cache: {{methods: [{{name: xkv, group_size: {GROUP}, rank_k: {RANK_K}, "
       f"rank_v: {RANK_V}, min_prompt_tokens: 64}}]}}\n")
MONITOR = ["--mca", "osc", "^monitoring", "--mca", "pml_monitoring_enable", "2",
           "--mca", "pml_monitoring_enable_output", "3", "--mca", "pml_monitoring_filename"]


def config(extra, tensor=2, pipeline=2, stages=None):
    text = job.config("bf16", tensor, pipeline, deterministic=False, extra=extra)
    text = text.replace("scheduler: {", "scheduler: {enable_prefix_caching: false, ")
    return text.replace("parallel:\n", f"parallel:\n  pipeline_layers: {stages or STAGES}\n")


def records():
    bodies = [(f"r{i}", {"prompt": [(7 * i + 11 * j + i * j * j) % 40000 + 10
                                    for j in range(PROMPT + i)],
                         "max_tokens": ANSWER, "ignore_eos": True}) for i in range(RECORDS)]
    return job.records(bodies)


def sent_between(folder, slots):
    """Bytes of messages from host to host, by Open MPI's count: of sheaf's own (E) and of what the
    library's collective calls send inside (I)."""
    host = [number for number, count in enumerate(slots) for _ in range(count)]
    total = 0
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), encoding="utf-8") as lines:
            for line in lines:
                words = line.split()
                if words and words[0] in ("E", "I") and host[int(words[1])] != host[int(words[2])]:
                    total += int(words[3])
    return total


def foretold(comm, totals):
    """Bytes between hosts by the plan's figures and the run's counts."""
    counts = {"prompt_token": totals["prompt_rows"],
              "answer_token": totals["rows"] - totals["prompt_rows"], "step": totals["steps"],
              "sequence": totals["records"], "second": totals["seconds"]}
    assert set(counts) == set(comm["bytes_per"])
    return round(sum(count * sum(comm["bytes_per"][per]["cross_node"].values())
                     for per, count in counts.items()))


def near(tally, what, actual, wanted):
    note = f"{actual} bytes, foretold {wanted}"
    print(f"  figure: hosts {what}: {note}")
    return tally.true(what, abs(actual - wanted) <= 0.02 * wanted + SLACK, note)


def measured(tally, hosts, what, extra):
    """One job over the border: {"excess": bytes of messages between hosts beyond what is foretold,
    "totals"}; None: it failed."""
    folder = job.Folder()
    name = folder.file("job.yaml", config(extra))
    taken, output = folder.file("in.jsonl", records()), folder.file("out.jsonl")
    matrix = folder.file("matrix")
    os.mkdir(matrix)
    plan = json.loads(job.sheaf(1, ["plan", name, "--nodes", "2", "--json"]).stdout)
    tally.check(f"{what}: hosts of the plan", [rank["node"] for rank in plan["ranks"]],
                [0, 0, 1, 1])
    before = hosts.counters()
    done = hosts.run([2, 2], ["run", name, "--input", taken, "--output", output],
                     options=[*MONITOR, f"{matrix}/of"])
    after = hosts.counters()
    if not tally.check(f"{what}: exit code", done.code, 0):
        print(done.stderr[-2000:])
        return None
    with open(f"{output}.run/manifest.json", encoding="utf-8") as file:
        manifest = json.load(file)
    tally.check(f"{what}: hosts", manifest["hosts"], [hosts.host(n) for n in (0, 0, 1, 1)])
    totals, moved = manifest["totals"], {key: after[key] - before[key] for key in after}
    tally.check(f"{what}: answered", totals["answered"], RECORDS)
    wire = moved["data0", "bytes"] - FRAME_BYTES * moved["data0", "packets"]
    sent, wanted = sent_between(matrix, [2, 2]), foretold(plan["comm"], totals)
    tally.true(f"{what}: enough to tell", sent >= LEAST_BYTES, f"{sent} bytes")
    near(tally, f"{what}: messages between hosts", sent, wanted)
    near(tally, f"{what}: bytes on the wire", wire, wanted)
    tally.true(f"{what}: nothing but messages on the wire", sent <= wire <= 1.02 * sent + SLACK,
               f"{wire} bytes, of them messages {sent}")
    tally.true(f"{what}: nothing but the launcher on its own", moved["mgmt0", "bytes"] <= SLACK,
               f"{moved['mgmt0', 'bytes']} bytes")
    near(tally, f"{what}: by the token", wire,
         plan["comm"]["cross_node_bytes_per_token"] * totals["rows"])
    folder.remove()
    return {"excess": sent - wanted, "totals": totals}


def locality(tally, hosts):
    exact = measured(tally, hosts, "exact", "")
    basis = measured(tally, hosts, "xkv", XKV)
    if exact is None or basis is None:
        return
    for done in (exact, basis):
        tally.check("tokens fed", done["totals"]["rows"], exact["totals"]["rows"])
    tally.true("xkv has encoded", basis["totals"]["slots_requantised"] > 0 and
               basis["totals"]["kv_bytes_stored"] < 0.5 * exact["totals"]["kv_bytes_stored"],
               str(basis["totals"]))
    # a group's smallest factors: one tensor rank's share of the basis of one prompt's keys, bf16
    factors = PROMPT * (RANK_K // 2) * 2
    more = basis["excess"] - exact["excess"]
    print(f"  figure: hosts: {more} bytes more with xkv, the smallest factors have {factors}")
    tally.true("xkv: nothing of a subspace crosses", more < factors / 2,
               f"{more} bytes more, of {basis['totals']['kv_bytes_stored']} stored")


def refused(tally, hosts, what, slots, text, words):
    """Exit code 2 and one line with these words, from the job itself on these hosts."""
    folder = job.Folder()
    name = folder.file("job.yaml", text)
    given = folder.file("in.jsonl", job.records([("a", {"prompt": [504], "max_tokens": 1})]))
    output = folder.file("out.jsonl")
    done = hosts.run(slots, ["run", name, "--input", given, "--output", output])
    lines = done.error_lines()
    tally.check(f"{what}: exit code", done.code, 2)
    tally.check(f"{what}: lines with error", len(lines), 1)
    for part in words:
        tally.true(f"{what}: says {part!r}", len(lines) == 1 and part in lines[0], str(lines))
    tally.true(f"{what}: no output", not os.path.exists(output))
    folder.remove()


def refusals(tally, hosts):
    listed = XKV.replace("{name: xkv, ", "{name: xkv, layer_groups: [[12, 13, 14], [15, 16]], ")
    refused(tally, hosts, "a group over two hosts", [2, 2], config(listed),
            ["stages 0 and 1 meet between layers 15 and 16", "change parallel.pipeline_layers"])
    refused(tally, hosts, "a tensor group over two hosts", [3, 1], config(XKV),
            ["ranks 2 to 3 share the layers of stage 1, but sit on nodes 0 and 1",
             "parallel.allow_cross_node_tensor_parallel: true"])
    refused(tally, hosts, "tensor ranks on both hosts", [1, 1],
            config("", pipeline=1, stages="auto"), ["ranks 0 to 1", "multiple of "
                                                    "parallel.tensor_parallel_size = 2"])


def main():
    tally = job.Tally("hosts")
    job.need_model(tally)
    reason = two_hosts.missing()
    if reason:
        tally.skip("two hosts", reason)
        tally.end()
    with two_hosts.Hosts() as hosts:
        refusals(tally, hosts)
        locality(tally, hosts)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
