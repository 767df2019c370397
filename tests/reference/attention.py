"""Exact attention, traces and their files: what the references of the methods share.

Written from the description of `sheaf lab` alone (float64 inside), to be compared with what sheaf
itself computes.  A trace is one safetensors file with q and k before RoPE; the first
`prompt_tokens` rows are attended causally, the others one at a time: the new token is appended to
its lane, attends over the lane with itself, and then a method may change the lane.

  Lane    slots of one (layer, KV head), oldest first: pos, bias, k (after RoPE), v and what a
          method adds; a column has one entry a slot
  Method  the exact cache, and the hooks that a method overrides
  drive   a trace through a method; gives a Result

RoPE turns pairs (i, i + d/2) by pos * theta^(-2i/d), theta 0: not at all.  Choices: all query heads
of a group are neighbours (query head j belongs to KV head j / G); values and keys are not rounded
to the cache's type; bytes are payload (elements times `element_bytes`) and 8 a slot, what a method
keeps beside a slot is not in them.
"""
import json
import math
import struct
import sys

try:
    import numpy as np
except ImportError:
    sys.exit("tests/reference: error: this Python has no numpy "
             "(Debian: python3-numpy, for /usr/bin/python3)")

ELEMENT = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1"}
TILE_ROWS = 128


def read_safetensors(path):
    """({name: array}, {metadata key: string})"""
    with open(path, "rb") as file:
        size, = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        body = file.read()
    metadata, tensors = header.pop("__metadata__", {}), {}
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        flat = np.frombuffer(body[first:end] or bytearray(), ELEMENT[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors, metadata


def write_safetensors(path, tensors, metadata):
    kinds = {np.dtype(code): name for name, code in ELEMENT.items()}
    header, offset = {"__metadata__": {key: str(value) for key, value in metadata.items()}}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).tobytes())


class Trace:
    """layers: [(q [n, Hq, d], k [n, Hkv, d], v [n, Hkv, dv])], q and k before RoPE."""

    def __init__(self, layers, prompt, theta=0.0, scale=None, chunk=0, more=None):
        self.layers, self.prompt, self.theta, self.scale = layers, int(prompt), float(theta), scale
        self.chunk, self.more = int(chunk), more or {}

    @property
    def tokens(self):
        return len(self.layers[0][0])

    def scale_of(self, layer):
        return self.scale or self.layers[layer][0].shape[2] ** -0.5

    def turned(self, layer):
        """q, k after RoPE and v, in float64."""
        q, k, v = (part.astype(np.float64) for part in self.layers[layer])
        pos = np.arange(self.tokens)[:, None]
        return rotate(q, pos, self.theta), rotate(k, pos, self.theta), v


def load_trace(path):
    tensors, metadata = read_safetensors(path)
    layers = []
    while f"layers.{len(layers)}.q" in tensors:
        layers.append(tuple(tensors[f"layers.{len(layers)}.{part}"] for part in "qkv"))
    more = {name: tensors[name] for name in ("tokens", "sentence_end", "turn_end")
            if name in tensors}
    scale = metadata.get("softmax_scale")
    return Trace(layers, metadata.get("prompt_tokens", len(layers[0][0])),
                 metadata.get("rope_theta", 0), float(scale) if scale else None,
                 metadata.get("chunk_tokens", 0), more)


def save_trace(path, trace):
    tensors = {f"layers.{number}.{name}": np.asarray(part, np.float32)
               for number, layer in enumerate(trace.layers) for name, part in zip("qkv", layer)}
    metadata = {"prompt_tokens": trace.prompt, "chunk_tokens": trace.chunk,
                "rope_theta": repr(trace.theta) if trace.theta else "0"}
    if trace.scale:
        metadata["softmax_scale"] = repr(trace.scale)
    write_safetensors(path, {**tensors, **trace.more}, metadata)


def rotate(x, pos, theta):
    """x [..., d] turned to position pos, which broadcasts against x's leading dimensions."""
    if not theta:
        return np.array(x, np.float64)
    half = x.shape[-1] // 2
    angle = np.asarray(pos, np.float64)[..., None] * theta ** (-np.arange(half) / half)
    cos, sin, low, high = np.cos(angle), np.sin(angle), x[..., :half], x[..., half:]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)


class Lane:
    """Columns of slots that grow; `more` names a method's own, one number a slot."""

    def __init__(self, k_dim, v_dim, more=()):
        shapes = {"pos": (), "k": (k_dim,), "v": (v_dim,), "bias": (), **{key: () for key in more}}
        self.slots = 0
        self.room = {name: np.zeros((64, *shape), np.int64 if name == "pos" else np.float64)
                     for name, shape in shapes.items()}

    def __getitem__(self, name):
        return self.room[name][:self.slots]

    def append(self, **row):
        if self.slots == len(self.room["pos"]):
            self.room = {name: np.concatenate([column, np.zeros_like(column)])
                         for name, column in self.room.items()}
        for name, column in self.room.items():
            column[self.slots] = row.get(name, 0)
        self.slots += 1

    def assign(self, **columns):
        """All slots anew; a column that is not given is 0."""
        slots = len(columns["pos"])
        for name, column in self.room.items():
            fresh = np.zeros((max(slots, 64), *column.shape[1:]), column.dtype)
            fresh[:slots] = columns.get(name, 0)
            self.room[name] = fresh
        self.slots = slots

    def keep(self, index):
        self.assign(**{name: self[name][index] for name in self.room})


def attend(q, lane, scale):
    """q [G, d] over a lane: outputs [G, dv] and weights [G, slots]."""
    logits = scale * (q @ lane["k"].T) + lane["bias"]
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return weights @ lane["v"], weights


def attend_causal(q, k, v, scale, last_rows=0):
    """Outputs [n, Hq, dv] and, as means over a group's query heads, the column sums [Hkv, n] over
    all rows and over the last_rows last ones.  Tile by tile: no n x n matrix."""
    n, q_heads, d = q.shape
    kv_heads, v_dim = v.shape[1:]
    group = q_heads // kv_heads
    out, all_rows = np.empty((n, q_heads, v_dim)), np.zeros((kv_heads, n))
    last = np.zeros((kv_heads, n))
    for head in range(kv_heads):
        mine = slice(head * group, (head + 1) * group)
        k_columns, values = np.ascontiguousarray(k[:, head].T), np.ascontiguousarray(v[:, head])
        for first in range(0, n, TILE_ROWS):
            end = min(n, first + TILE_ROWS)
            rows = q[first:end, mine].transpose(1, 0, 2).reshape(-1, d)
            p = (scale * (rows @ k_columns[:, :end])).reshape(group, end - first, end)
            p[:, :, first:] += np.triu(np.full((end - first, end - first), -np.inf), 1)
            p -= p.max(2, keepdims=True)
            np.exp(p, out=p)
            p /= p.sum(2, keepdims=True)
            out[first:end, mine] = (p.reshape(-1, end) @ values[:end]).reshape(
                group, end - first, v_dim).transpose(1, 0, 2)
            mean = p.mean(0)
            all_rows[head, :end] += mean.sum(0)
            last[head, :end] += mean[max(n - last_rows - first, 0):].sum(0)
    return out, all_rows, last


def filled(defaults, options):
    """The defaults with the options over them; a name that is not there is an error."""
    unknown = set(options or {}) - set(defaults)
    if unknown:
        raise ValueError(f"unknown options: {', '.join(sorted(unknown))}")
    return {**defaults, **(options or {})}


class Method:
    """The exact cache.  Hooks get all lanes of one layer; `tokens` counts those seen so far."""
    columns, last_rows = (), 0

    def __init__(self):
        self.counts = {"slots_evicted": 0, "slots_merged": 0}

    def prompt_end(self, layer, lanes, tokens, all_rows, last):
        """all_rows, last [Hkv, tokens]: column sums of the prompt, see attend_causal."""

    def after_row(self, layer, lanes, tokens, weights):
        """weights [Hkv][slots]: what the new row gave each slot, mean over the query heads."""

    def reads(self, layer, head, lane, q, scale):
        """Slots that the new row's q [G, d] reads of its lane; None: all."""

    def payload(self, layer, head, lane, element_bytes):
        del layer, head
        return lane.slots * (lane["k"].shape[1] + lane["v"].shape[1]) * element_bytes

    def report(self):
        return {}


class Result:
    """out[l] [n, Hq, dv]; lanes[l][h]; stats: counts and bytes; method: with its own report."""

    def __init__(self, out, lanes, stats, method):
        self.out, self.lanes, self.stats, self.method = out, lanes, stats, method

    def save(self, path):
        """The layout of `sheaf lab`'s result; all tiers are 0."""
        tensors = {f"layers.{layer}.out": np.float32(out) for layer, out in enumerate(self.out)}
        for layer, lanes in enumerate(self.lanes):
            for head, lane in enumerate(lanes):
                name = f"lanes.{layer}.{head}."
                tensors[name + "pos"] = np.int32(lane["pos"])
                tensors[name + "tier"] = np.zeros(lane.slots, np.uint8)
                tensors.update({name + part: np.float32(lane[part]) for part in ("bias", "k", "v")})
        write_safetensors(path, tensors, {"stats": json.dumps(self.stats)})


def drive(trace, method, element_bytes=4):
    """Every row of the trace through the method; layers do not see each other."""
    outs, all_lanes, exact, stored, peak = [], [], 0, 0, 0
    for layer in range(len(trace.layers)):
        q, k, v = trace.turned(layer)
        scale, prompt = trace.scale_of(layer), trace.prompt
        kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
        out = np.empty((trace.tokens, q.shape[1], v.shape[2]))
        out[:prompt], all_rows, last = attend_causal(q[:prompt], k[:prompt], v[:prompt], scale,
                                                     method.last_rows)
        lanes = [Lane(k.shape[2], v.shape[2], method.columns) for _ in range(kv_heads)]
        for head, lane in enumerate(lanes):
            lane.assign(pos=np.arange(prompt), k=k[:prompt, head], v=v[:prompt, head])
        method.prompt_end(layer, lanes, prompt, all_rows, last)
        for row in range(prompt, trace.tokens):
            weights = []
            for head, lane in enumerate(lanes):
                mine = slice(head * group, (head + 1) * group)
                lane.append(pos=row, k=k[row, head], v=v[row, head])
                read = method.reads(layer, head, lane, q[row, mine], scale)
                seen = lane if read is None else {name: lane[name][read]
                                                  for name in ("k", "v", "bias")}
                out[row, mine], given = attend(q[row, mine], seen, scale)
                weights.append(given.mean(0))
                peak = max(peak, lane.slots)
            method.after_row(layer, lanes, row + 1, weights)
        outs.append(out)
        all_lanes.append(lanes)
        slot_elements = k.shape[2] + v.shape[2]
        exact += kv_heads * trace.tokens * (slot_elements * element_bytes + 8)
        stored += sum(method.payload(layer, head, lane, element_bytes) + 8 * lane.slots
                      for head, lane in enumerate(lanes))
    slots = sum(lane.slots for lanes in all_lanes for lane in lanes)
    stats = {"bytes_exact": exact, "bytes_stored": stored, **method.counts, "slots": slots,
             "slots_peak_in_decode": peak, **method.report()}
    return Result(outs, all_lanes, stats, method)


def run_exact(trace, element_bytes=4):
    return drive(trace, Method(), element_bytes)


def make_trace(seed, prompt, decode, layers=1, q_heads=4, kv_heads=2, d=16, v_dim=None,
               theta=10000.0, vocab=48, gain=8.0):
    """A random trace whose attention is not flat.  Heads take turns: near tokens, tokens of equal
    content, some of both; the first four keys are sinks with small values; blocks of tokens come
    again, and values of one topic resemble each other, so that merging has something to find."""
    rng = np.random.default_rng(seed)
    n, v_dim, half = prompt + decode, v_dim or d, d // 2
    tokens = repeating_tokens(rng, n, vocab)
    slow = np.tile(np.arange(1, half + 1) / half, 2) if theta else np.ones(d)
    fast = np.tile(np.arange(half) < (half + 1) // 2, 2)
    made = []
    for layer in range(layers):
        q, k = np.empty((n, q_heads, d)), np.empty((n, kv_heads, d))
        v = np.empty((n, kv_heads, v_dim))
        for head in range(kv_heads):
            near_share, same_share = ((1.0, 0.3), (0.3, 1.0), (0.7, 0.7))[(layer + head) % 3]
            content = unit(rng.standard_normal((vocab, d)) * slow)[tokens]
            near = unit(np.tile(fast * 1.0, (n, 1))) if theta else wander(rng, n, d)
            sink = unit(rng.standard_normal(d) * slow ** 4)
            base = near_share * near + same_share * content
            key = base + 0.25 * unit(rng.standard_normal((n, d)))
            key[:4] += 0.8 * sink
            k[:, head] = key * np.exp(0.15 * rng.standard_normal((n, 1)))
            group = q_heads // kv_heads
            for query in range(head * group, (head + 1) * group):
                wanted = base + sink + 0.25 * unit(rng.standard_normal((n, d)))
                q[:, query] = gain * math.sqrt(d) * rng.uniform(0.7, 1.1) * wanted
            topic = rng.standard_normal((5, v_dim))[np.arange(vocab) % 5]
            own = rng.standard_normal((vocab, v_dim))
            v[:, head] = (topic + 0.6 * own)[tokens] + 0.2 * rng.standard_normal((n, v_dim))
            v[:4, head] *= 0.05
        made.append((np.float32(q), np.float32(k), np.float32(v)))
    more = {"tokens": np.int32(tokens), "sentence_end": np.uint8(tokens == 0)}
    return Trace(made, prompt, theta, more=more)


def repeating_tokens(rng, n, vocab):
    """Blocks of 5..40 tokens, every other one a copy from before, near its start."""
    tokens = list(rng.integers(0, vocab, 8))
    while len(tokens) < n:
        length = int(rng.integers(5, 41))
        start = int(rng.integers(0, max(len(tokens) - length, 1)))
        tokens += list(rng.integers(0, vocab, length)) + tokens[start:start + length]
    return np.array(tokens[:n])


def wander(rng, n, d):
    """Unit vectors that turn slowly: neighbours look alike without RoPE."""
    at, path = rng.standard_normal(d), np.empty((n, d))
    for row in range(n):
        at = 0.9 * at + math.sqrt(1 - 0.9 ** 2) * rng.standard_normal(d)
        path[row] = at
    return unit(path)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
