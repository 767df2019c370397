"""`sheaf lab`: recorded tensors through the store, against attention in plain Python.

The reference below shares nothing with the runtime: it turns keys and queries, attends in f64 over
lists, and applies the sentence of interface.md 3.1 about `window`.  Shown, in f32: outputs of every
row, kept positions element for element, keys and values of the lanes, bytes stored as predicted and
by the formula, for heads 1:1, 3:1 and 8:1, values of another size than keys, odd sizes, layers that
differ, with and without RoPE, prompts whole, in chunks and of one token, a lane longer than
attention's splits, a window in one layer only; a cache in bf16.  On two and three ranks, with heads
that do not divide and heads that are held twice: equal positions and statistics, values to 1e-5.
Bad traces, configurations and places for the result are refused with one line, exit 2, and nothing
left behind.
"""
# cores: 1
import array
import json
import math
import os
import random
import struct
import sys

import job

TYPES = {"F32": "f", "I32": "i", "U8": "B", "F64": "d"}
BASE = "schema_version: 1\nmodel: {dtype: f32}\n"
# name: layers as (q heads, KV heads, k_dim, v_dim), rows, prompt, chunk, theta, scale
SHAPES = {
    "1:1, no RoPE": ([(2, 2, 8, 8)], 40, 30, 0, "0", None),
    "3:1, chunks": ([(6, 2, 16, 16)] * 2, 75, 50, 16, "10000.0", None),
    "8:1, wide values": ([(8, 1, 16, 24)], 60, 33, 7, "500000", None),
    "one token, then decode": ([(3, 1, 8, 8)], 37, 1, 4, "1e4", "0.05"),
    "prompt only": ([(4, 2, 32, 32)], 48, 48, 48, "10000", None),
    "odd sizes": ([(5, 5, 7, 5), (4, 2, 9, 3)], 35, 20, 6, "0", "1"),
    "layers differ": ([(4, 2, 8, 8), (6, 3, 8, 12)], 40, 25, 10, "100.5", None),
    "past a split": ([(1, 1, 8, 8)], 600, 560, 100, "10000", None),
}
WINDOWS = [(4, 9), (0, 16), (2, 1000)]


def method(sinks, recent, layers=""):
    words = f", layers: \"{layers}\"" if layers else ""
    return (f"kv_cache: {{methods: [{{name: window, num_sink_tokens: {sinks}, recent_tokens: "
            f"{recent}{words}}}]}}\n")


# ---- safetensors ---------------------------------------------------------------------------------

def pack(tensors, meta):
    """{name: (type, shape, values)}"""
    header, data = {"__metadata__": meta}, b""
    for name, (kind, shape, values) in tensors.items():
        raw = array.array(TYPES[kind], values).tobytes()
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data),
                                                                        len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def unpack(path):
    with open(path, "rb") as file:
        raw = file.read()
    length, = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8:8 + length]), raw[8 + length:]
    meta = header.pop("__metadata__")
    return {name: (t["shape"], array.array(TYPES[t["dtype"]], data[slice(*t["data_offsets"])]))
            for name, t in header.items()}, meta


class Trace:
    def __init__(self, shape, seed):
        self.layers, self.rows, self.prompt, self.chunk, self.theta, self.scale = shape
        chance, self.tensors = random.Random(seed), {}
        for number, (q_heads, kv_heads, k_dim, v_dim) in enumerate(self.layers):
            for name, heads, dim in (("q", q_heads, k_dim), ("k", kv_heads, k_dim),
                                     ("v", kv_heads, v_dim)):
                values = [chance.gauss(0, 1.2) for _ in range(self.rows * heads * dim)]
                self.tensors[f"layers.{number}.{name}"] = ("F32", [self.rows, heads, dim],
                                                           array.array("f", values))
        self.tensors["tokens"] = ("I32", [self.rows], range(self.rows))
        self.tensors["sentence_end"] = ("U8", [self.rows], [0] * self.rows)
        self.meta = {"prompt_tokens": str(self.prompt), "chunk_tokens": str(self.chunk),
                     "rope_theta": self.theta}
        if self.scale:
            self.meta["softmax_scale"] = self.scale

    def row(self, layer, name, row, head):
        _, (_, heads, dim), values = self.tensors[f"layers.{layer}.{name}"]
        at = (row * heads + head) * dim
        return list(values[at:at + dim])

    def turned(self, layer, name, row, head):
        x, theta = self.row(layer, name, row, head), float(self.theta)
        if theta == 0:
            return x
        half = len(x) // 2
        for i in range(half):
            angle = row * theta ** (-i / half)
            a, b = x[i], x[i + half]
            x[i] = a * math.cos(angle) - b * math.sin(angle)
            x[i + half] = b * math.cos(angle) + a * math.sin(angle)
        return x

    def bytes(self):
        return pack(self.tensors, self.meta)


# ---- the reference -------------------------------------------------------------------------------

def attend(q, lane, scale):
    logits = [scale * sum(a * b for a, b in zip(q, k)) for _, k, _ in lane]
    most = max(logits)
    weights = [math.exp(x - most) for x in logits]
    total = sum(weights)
    return [sum(w * v[i] for w, (_, _, v) in zip(weights, lane)) / total
            for i in range(len(lane[0][2]))]


def reference(trace, windows):
    """(out[layer][row][q head], lanes[layer][KV head] of (pos, k, v)); windows: by layer or None"""
    outs, lanes = [], []
    for layer, (q_heads, kv_heads, k_dim, _) in enumerate(trace.layers):
        scale = float(trace.scale) if trace.scale else k_dim ** -0.5
        out, kept = [[None] * q_heads for _ in range(trace.rows)], []
        for head in range(kv_heads):
            lane = []
            for row in range(trace.rows):
                lane.append((row, trace.turned(layer, "k", row, head),
                             trace.row(layer, "v", row, head)))
                group = q_heads // kv_heads
                for q_head in range(head * group, (head + 1) * group):
                    out[row][q_head] = attend(trace.turned(layer, "q", row, q_head), lane, scale)
                if windows[layer] and row + 1 >= trace.prompt:
                    sinks, recent = windows[layer]
                    lane = lane[:sinks] + lane[sinks:][-recent:]
            kept.append(lane)
        outs.append(out)
        lanes.append(kept)
    return outs, lanes


# ---- one trace -----------------------------------------------------------------------------------

def lab(tally, what, trace, config, ranks=1, arguments=()):
    """(tensors, stats) of a lab that succeeds, else None."""
    folder = job.Folder()
    output = folder.file("out.safetensors")
    done = job.sheaf(ranks, ["lab", folder.file("lab.yaml", config), "--trace",
                             folder.file("in.safetensors", trace.bytes()), "--output", output,
                             *arguments], 120)
    found = None
    if (tally.check(f"{what}: exit code", done.code, 0) and
            tally.check(f"{what}: output", (done.stdout, done.own_lines()), ("", []))):
        tensors, meta = unpack(output)
        found = tensors, json.loads(meta["stats"])
        tally.check(f"{what}: files", sorted(os.listdir(folder.path)),
                    ["in.safetensors", "lab.yaml", "out.safetensors"])
    else:
        print(done.stderr)
    folder.remove()
    return found


def farthest(actual, expected):
    """Largest difference relative to the largest of what is expected."""
    size = max((abs(x) for x in expected), default=0) or 1
    return max((abs(a - b) for a, b in zip(actual, expected)), default=0) / size


def check_outputs(tally, what, trace, tensors, expected, bound):
    worst = 0.0
    for layer, (q_heads, _, _, v_dim) in enumerate(trace.layers):
        shape, values = tensors[f"layers.{layer}.out"]
        tally.check(f"{what}: shape of layer {layer}", shape, [trace.rows, q_heads, v_dim])
        for row in range(trace.rows):
            for head in range(q_heads):
                at = (row * q_heads + head) * v_dim
                worst = max(worst, farthest(values[at:at + v_dim], expected[layer][row][head]))
    tally.true(f"{what}: outputs", worst <= bound, f"off by {worst:.3g}")


def check_lanes(tally, what, trace, tensors, expected, bound):
    names = {f"layers.{layer}.out" for layer in range(len(trace.layers))}
    for layer, (_, kv_heads, k_dim, v_dim) in enumerate(trace.layers):
        for head in range(kv_heads):
            lane, name = expected[layer][head], f"lanes.{layer}.{head}"
            got = {part: tensors.get(f"{name}.{part}", (None, [])) for part in
                   ("pos", "tier", "bias", "k", "v")}
            names |= {f"{name}.{part}" for part in got}
            n = len(lane)
            tally.check(f"{what}: shapes of {name}", [shape for shape, _ in got.values()],
                        [[n], [n], [n], [n, k_dim], [n, v_dim]])
            tally.check(f"{what}: {name}.pos", list(got["pos"][1]), [pos for pos, _, _ in lane])
            tally.check(f"{what}: {name}.tier and bias", set(got["tier"][1]) | set(got["bias"][1]),
                        {0})
            for part, index in (("k", 1), ("v", 2)):
                flat = [x for slot in lane for x in slot[index]]
                worst = farthest(got[part][1], flat)
                tally.true(f"{what}: {name}.{part}", worst <= bound, f"off by {worst:.3g}")
    tally.check(f"{what}: tensors", set(tensors), names)


def check_stats(tally, what, trace, stats, expected, element=4):
    exact = stored = evicted = 0
    for layer, (_, kv_heads, k_dim, v_dim) in enumerate(trace.layers):
        slot = (k_dim + v_dim) * element + 8
        exact += kv_heads * trace.rows * slot
        stored += sum(len(lane) for lane in expected[layer]) * slot
        evicted += sum(trace.rows - len(lane) for lane in expected[layer])
    tally.check(f"{what}: stats", stats, {
        "bytes_exact": exact, "bytes_stored": stored, "bytes_predicted": stored,
        "slots_evicted": evicted, "slots_merged": 0})


def against_reference(tally):
    names = list(SHAPES) if job.LEVEL != "quick" else list(SHAPES)[:3]
    for number, name in enumerate(names):
        trace = Trace(SHAPES[name], number)
        for window in [None, *WINDOWS[:1 if job.LEVEL == "quick" else 3]]:
            what = f"{name}, {'exact' if window is None else 'window %d + %d' % window}"
            config = BASE + (method(*window) if window else "")
            found = lab(tally, what, trace, config)
            if found is None:
                continue
            outs, lanes = reference(trace, [window] * len(trace.layers))
            check_outputs(tally, what, trace, found[0], outs, 1e-4)
            check_lanes(tally, what, trace, found[0], lanes, 1e-4)
            check_stats(tally, what, trace, found[1], lanes)


def other_settings(tally):
    trace = Trace(SHAPES["3:1, chunks"], 31)
    window = (3, 12)
    outs, lanes = reference(trace, [None, window])
    found = lab(tally, "window in layer 1", trace, BASE + method(*window, "1"))
    if found:
        check_outputs(tally, "window in layer 1", trace, found[0], outs, 1e-4)
        check_lanes(tally, "window in layer 1", trace, found[0], lanes, 1e-4)
        check_stats(tally, "window in layer 1", trace, found[1], lanes)
    found = lab(tally, "bf16", trace, BASE + method(*window, "1"), arguments=[
        "--set", "kv_cache.dtype=bf16", "--set", "kv_cache.block_size=64", "--set",
        "parallel.threads_per_rank=2"])
    if found:
        check_outputs(tally, "bf16", trace, found[0], outs, 3e-2)
        check_lanes(tally, "bf16", trace, found[0], lanes, 2 ** -8)
        check_stats(tally, "bf16", trace, found[1], lanes, 2)
    trace.meta.pop("chunk_tokens")
    del trace.tensors["tokens"], trace.tensors["sentence_end"]
    found = lab(tally, "only what is needed", trace, "schema_version: 1\n", arguments=[
        "--set", "model.dtype=f32"])
    if found:
        outs, lanes = reference(trace, [None, None])
        check_outputs(tally, "only what is needed", trace, found[0], outs, 1e-4)
        check_stats(tally, "only what is needed", trace, found[1], lanes)


def on_ranks(tally):
    if not job.has_ranks():
        tally.skip("several ranks", "no mpirun")
        return
    shapes = {"3 heads": ([(6, 3, 16, 16)] * 3, 60, 45, 20, "10000", None),
              "2 heads": ([(6, 2, 8, 12)] * 2, 50, 37, 0, "10000", None),
              "1 head": ([(8, 1, 16, 16)] * 2, 50, 37, 9, "0", None),
              "heads by layer": ([(5, 1, 8, 8), (4, 4, 8, 8)], 40, 30, 0, "10000", None)}
    for number, (name, shape) in enumerate(shapes.items()):
        trace = Trace(shape, 50 + number)
        config = BASE + method(2, 11)
        alone = lab(tally, f"{name} on 1 rank", trace, config)
        for ranks in (2, 3):
            what = f"{name} on {ranks} ranks"
            placement = "identity" if (number + ranks) % 2 else "balanced"
            found = lab(tally, what, trace, config, ranks, [
                "--set", f"parallel.tensor_parallel_size={ranks}", "--set",
                f"parallel.head_placement={placement}"])
            if found is None or alone is None:
                continue
            tally.check(f"{what}: stats", found[1], alone[1])
            tally.check(f"{what}: tensors", set(found[0]), set(alone[0]))
            worst = 0.0
            for tensor, (dims, values) in alone[0].items():
                tally.check(f"{what}: shape of {tensor}", found[0][tensor][0], dims)
                if tensor.endswith((".pos", ".tier")):
                    tally.check(f"{what}: {tensor}", found[0][tensor][1], values)
                worst = max(worst, farthest(found[0][tensor][1], values))
            tally.true(f"{what}: values", worst <= 1e-5, f"off by {worst:.3g}")


# ---- refusals ------------------------------------------------------------------------------------

def refused(tally, what, raw, words, config=BASE, arguments=(), ranks=1, output="out.safetensors"):
    folder = job.Folder()
    line = ["lab", folder.file("lab.yaml", config), "--trace",
            folder.file("in.safetensors", raw), "--output", folder.file(output), *arguments]
    done = job.sheaf(ranks, line, 60)
    tally.check(f"{what}: exit code", done.code, 2)
    lines = done.error_lines()
    tally.true(f"{what}: one line with {words}", len(lines) == 1 and len(done.own_lines()) == 1 and
               all(word in lines[0] for word in words), f"stderr is:\n{done.stderr}")
    tally.check(f"{what}: stdout", done.stdout, "")
    tally.check(f"{what}: nothing left behind", sorted(os.listdir(folder.path)),
                ["in.safetensors", "lab.yaml"][raw is None:])
    folder.remove()


SMALL = ([(4, 2, 8, 8)] * 2, 6, 4, 0, "10000", None)


def changed(tensors=None, meta=None, drop=()):
    """A small trace, with these tensors and metadata (None: gone) in place of its own."""
    trace = Trace(SMALL, 9)
    trace.tensors.update(tensors or {})
    for name in drop:
        del trace.tensors[name]
    trace.meta.update(meta or {})
    trace.meta = {key: text for key, text in trace.meta.items() if text is not None}
    return trace.bytes()


def bad_traces(tally):
    good = changed()
    some = [0.5] * 600
    cases = [
        ("no trace", None, ["in.safetensors", "No such file"]),
        ("a text", "this is no trace, it is a text\n" * 3, ["in.safetensors", "not a safetensors"]),
        ("an empty file", "", ["in.safetensors", "0 bytes"]),
        ("a torn file", good[:-9], ["in.safetensors"]),
        ("a torn header", good[:100], ["in.safetensors", "header"]),
        ("bytes at the end", good + b"xx", ["2 bytes lie behind"]),
        ("no tensors", pack({}, {}), ["'layers.0.q' is missing"]),
        ("no keys", changed(drop=["layers.1.k"]), ["'layers.1.k' is missing"]),
        ("a layer is missing", changed(drop=["layers.0.q"]), ["'layers.0.q' is missing"]),
        ("a gap of layers", changed({"layers.3.q": ("F32", [6, 4, 8], some[:192])}),
         ["'layers.2.q' is missing", "'layers.3.q'"]),
        ("f64", changed({"layers.1.v": ("F64", [6, 2, 8], some[:96])}), ["'layers.1.v'", "F64"]),
        ("two dimensions", changed({"layers.1.v": ("F32", [6, 16], some[:96])}),
         ["'layers.1.v'", "2 dimensions"]),
        ("other rows", changed({"layers.1.v": ("F32", [5, 2, 8], some[:80])}),
         ["'layers.1.v' has 5 rows"]),
        ("no rows", changed({"layers.0.q": ("F32", [0, 4, 8], [])}), ["'layers.0.q'", "[0, 4, 8]"]),
        ("other keys", changed({"layers.0.k": ("F32", [6, 2, 6], some[:72])}),
         ["layers.0.k", "6 elements"]),
        ("3 heads on 2", changed({"layers.1.q": ("F32", [6, 3, 8], some[:144])}),
         ["layers.1.q", "3 heads"]),
        ("more heads of values", changed({"layers.1.v": ("F32", [6, 4, 8], some[:192])}),
         ["layers.1.v", "4"]),
        ("not a number", changed({"layers.1.k": ("F32", [6, 2, 8], [math.nan] * 96)}),
         ["'layers.1.k'", "not finite", "row 0"]),
        ("infinite", changed({"layers.0.q": ("F32", [6, 4, 8], some[:191] + [math.inf])}),
         ["'layers.0.q'", "row 5"]),
        ("few tokens", changed({"tokens": ("I32", [5], range(5))}), ["'tokens' has 5"]),
        ("tokens in f32", changed({"tokens": ("F32", [6], range(6))}), ["'tokens'", "F32"]),
        ("odd heads with RoPE", Trace(([(1, 1, 7, 4)], 3, 2, 0, "100", None), 1).bytes(),
         ["RoPE", "7 elements"]),
    ]
    for key, texts in (("prompt_tokens", [None, "0", "7", "-1", "four", "", "4.0", " 4"]),
                       ("chunk_tokens", ["-1", "x", "99999999999"]),
                       ("rope_theta", [None, "-1", "inf", "nan", "0x10", "ten", "", "1e-38",
                                       "1e-400", "0.5", "1e31"]),
                       ("softmax_scale", ["0", "-1", "nan", "1e99", "."])):
        cases += [(f"{key} {text}", changed(meta={key: text}),
                   [key] + ([text] if text and text[0] in "0123456789" and key != "softmax_scale"
                            else [])) for text in texts]
    for what, raw, words in cases:
        refused(tally, what, raw, words)
    if job.has_ranks():
        refused(tally, "a torn file on 2 ranks", good[:-9], ["in.safetensors"], ranks=2,
                config=BASE + "parallel: {tensor_parallel_size: 2}\n")


def bad_settings(tally):
    good = changed()
    refused(tally, "unknown key", good, ["lab.yaml:3:1: error:", "nonsense"],
            BASE + "nonsense: 1\n")
    refused(tally, "method's option", good, ["lab.yaml:3:", "recent_tokns", "recent_tokens"],
            BASE + "kv_cache: {methods: [{name: window, recent_tokns: 5}]}\n")
    refused(tally, "layers that are not there", good, ["0-9", "0 to 1"], BASE + method(1, 2, "0-9"))
    refused(tally, "--set", good, ["kv_cache.block_size"],
            arguments=["--set", "kv_cache.block_size=17"])
    refused(tally, "two stages", good, ["pipeline_parallel_size"], ranks=2,
            config=BASE + "parallel: {pipeline_parallel_size: 2}\n")
    refused(tally, "little memory", good, ["kv_cache.memory"],
            arguments=["--set", "kv_cache.memory=64"])
    refused(tally, "odd heads in bf16", Trace(([(1, 1, 7, 4)], 3, 2, 0, "0", None), 1).bytes(),
            ["bf16", "7"], arguments=["--set", "kv_cache.dtype=bf16"])
    refused(tally, "no folder", good, ["nowhere", "No such file"], output="nowhere/out.st")
    refused(tally, "output over the trace", good, ["would take the place of", "in.safetensors"],
            output="in.safetensors")
    refused(tally, "output over CONFIG", good, ["would take the place of", "lab.yaml"],
            output="lab.yaml")
    refused(tally, "no second CONFIG", good, ["CONFIG"], arguments=["x.yaml"])
    refused(tally, "no such option", good, ["--trce", "sheaf lab --help"],
            arguments=["--trce", "x"])
    if not job.ranks_are_threads():
        refused(tally, "2 ranks asked, 1 there", good, ["tensor_parallel_size is 2", "1 ranks"],
                BASE + "parallel: {tensor_parallel_size: 2}\n")
    if job.has_ranks():
        refused(tally, "more ranks than heads", Trace(([(1, 1, 8, 8)], 3, 2, 0, "0", None),
                                                      1).bytes(),
                ["tensor_parallel_size 2", "1 query heads"], ranks=2,
                config=BASE + "parallel: {tensor_parallel_size: 2}\n")


def others(tally):
    """A tensor that means nothing is named and left; an old result gives way to the new one."""
    folder = job.Folder()
    output = folder.file("out.safetensors", "an old result\n")
    line = ["lab", folder.file("lab.yaml", BASE), "--trace", folder.file(
        "in.safetensors", changed({"layers.0.w": ("F32", [1], [1])})), "--output", output]
    done = job.sheaf(1, line, 60)
    tally.check("a strange tensor: exit code", done.code, 0)
    tally.true("a strange tensor: named", len(done.own_lines()) == 1 and
               "'layers.0.w'" in done.stderr and "error" not in done.stderr, done.stderr)
    tally.true("an old result: replaced", "layers.1.out" in unpack(output)[0])
    for missing in ("--trace", "--output"):
        at = line.index(missing)
        done = job.sheaf(1, line[:at] + line[at + 2:], 60)
        tally.true(f"no {missing}", done.code == 2 and missing in done.stderr, done.stderr)
    done = job.sheaf(1, ["lab", "--help"], 60)
    tally.true("--help", done.code == 0 and "usage: sheaf lab CONFIG" in done.stdout, done.stdout)
    folder.remove()


def main():
    tally = job.Tally("lab")
    if not os.access(job.SHEAF, os.X_OK):
        tally.true("there is a build", False, f"no {job.SHEAF}; SHEAF_BUILD names the folder")
        tally.end()
    against_reference(tally)
    other_settings(tally)
    on_ranks(tally)
    bad_traces(tally)
    bad_settings(tally)
    others(tally)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
