"""Models of odd shapes and random weights, through real jobs, against a forward pass in Python.

What the shipped model does not have: head sizes that are no multiple of 16 or of a register, values
of another size than keys, partial rotation, llama3 divisors, biases everywhere, odd widths, an FFN
with fewer chunks than ranks, a vocabulary of a few tokens, head counts that differ by layer.

The reference below shares no code with the runtime: it reads the weights in the order of the file
(rotated pairs side by side) and sums in f64.  Shown: in f32 the greedy tokens are the reference's,
in every layout, with free and with fixed products; in bf16 or f16 with fixed products all layouts
give the same tokens.  A step whose margin is under TIE ends the comparison of its prompt.  The
normal level runs each layout once a shape, free and fixed by turns, and one of the two short types;
--long runs all.
"""
# cores: 1
import array
import math
import operator
import random
import struct
import sys

import job
from tiny import ALIGN, LAYOUTS, key, text

TIE, ANSWER, PROMPTS = 1e-3, 6, (1, 17, 50)
DEFAULT = {"layers": 2, "d": 64, "ffn": 96, "vocab": 300, "q": 4, "kv": 2, "k": 16, "v": None,
           "rope": None, "theta": 10000.0, "untied": False, "bias": False, "window": 0,
           "divisors": None, "linear": None}
SHAPES = {
    "heads of 48, 5 on 5": {"d": 96, "q": 5, "kv": 5, "k": 48, "ffn": 100},
    "heads of 80, 6 on 2": {"d": 72, "q": 6, "kv": 2, "k": 80, "ffn": 101, "untied": True,
                            "bias": True},
    "v wider than k, partial rotation": {"layers": 3, "kv": 1, "k": 32, "v": 48, "rope": 20,
                                         "vocab": 1030},
    "llama3 divisors, heads of 128": {"d": 40, "k": 128, "ffn": 50, "theta": 500000.0,
                                      "divisors": [1.0] * 20 + [1.5, 3.25, 6.0] + [8.0] * 41,
                                      "bias": True, "untied": True},
    "heads of 256, one chunk, 7 tokens": {"d": 40, "k": 256, "ffn": 16, "vocab": 7,
                                          "untied": True},
    "heads by layer, window": {"q": [4, 6, 8], "kv": [2, 3, 1], "layers": 3, "v": 24, "window": 9,
                               "ffn": 300},
    "odd everything": {"d": 33, "q": 7, "kv": 7, "k": 34, "v": 17, "ffn": 1025, "linear": 4.0,
                       "vocab": 301},
    "one layer, tiny": {"layers": 1, "d": 6, "k": 2, "v": 1, "ffn": 3, "vocab": 5, "untied": True},
}


def per_layer(value, layer):
    return value[layer] if isinstance(value, list) else value


class Model:
    """Random weights of one shape: name -> (rows, columns, f32 values); a vector has 0 rows."""

    def __init__(self, shape, seed):
        self.__dict__.update(DEFAULT, **shape)
        self.v = self.v or self.k
        self.rope = self.rope or self.k
        self.tensors, self.random = {}, random.Random(seed)
        self.matrix("token_embd.weight", self.vocab, self.d, 1)
        self.vector("output_norm.weight", self.d, 1)
        if self.untied:
            self.matrix("output.weight", self.vocab, self.d, 1.5)
        if self.divisors:
            self.tensors["rope_freqs.weight"] = (0, self.rope // 2, array.array("f", self.divisors))
        for layer in range(self.layers):
            q, kv = per_layer(self.q, layer), per_layer(self.kv, layer)
            self.vector(f"blk.{layer}.attn_norm.weight", self.d, 1)
            self.vector(f"blk.{layer}.ffn_norm.weight", self.d, 1)
            for name, rows, cols, gain in (("attn_q", q * self.k, self.d, 2),
                                           ("attn_k", kv * self.k, self.d, 2),
                                           ("attn_v", kv * self.v, self.d, 1),
                                           ("attn_output", self.d, q * self.v, 1),
                                           ("ffn_gate", self.ffn, self.d, 1),
                                           ("ffn_up", self.ffn, self.d, 1),
                                           ("ffn_down", self.d, self.ffn, 1)):
                self.matrix(f"blk.{layer}.{name}.weight", rows, cols, gain)
                if self.bias:
                    self.vector(f"blk.{layer}.{name}.bias", rows, 0)

    def matrix(self, name, rows, cols, gain):
        scale = gain / math.sqrt(cols)
        self.tensors[name] = (rows, cols, array.array("f", (
            self.random.gauss(0, scale) for _ in range(rows * cols))))

    def vector(self, name, cols, middle):
        self.tensors[name] = (0, cols, array.array("f", (
            self.random.gauss(middle, 0.3) for _ in range(cols))))

    def write(self, path):
        keys = [("general.architecture", "llama"), ("llama.block_count", self.layers),
                ("llama.embedding_length", self.d), ("llama.context_length", 256),
                ("llama.feed_forward_length", self.ffn), ("llama.attention.key_length", self.k),
                ("llama.attention.value_length", self.v),
                ("llama.attention.layer_norm_rms_epsilon", 1e-5),
                ("llama.rope.freq_base", self.theta), ("llama.rope.dimension_count", self.rope)]
        if self.window:
            keys.append(("llama.attention.sliding_window", self.window))
        if self.linear:
            keys += [("llama.rope.scaling.type", "linear"),
                     ("llama.rope.scaling.factor", self.linear)]
        head = b"".join(key(*entry) for entry in keys)
        for name, count in (("head_count", self.q), ("head_count_kv", self.kv)):
            counts = [per_layer(count, layer) for layer in range(self.layers)]
            head += text(f"llama.attention.{name}") + struct.pack(
                f"<IIQ{self.layers}I", 9, 4, self.layers, *counts)
        tensors, data = b"", b""
        for name, (rows, cols, values) in self.tensors.items():
            dims = (cols, rows) if rows else (cols,)
            tensors += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, len(data))
            data += values.tobytes()
            data += bytes(-len(data) % ALIGN)
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(keys) + 2) + head + tensors
        with open(path, "wb") as file:
            file.write(head + bytes(-len(head) % ALIGN) + data)


def dot(a, b):
    return sum(map(operator.mul, a, b))


class Reference:
    """One sequence through a model, token by token."""

    def __init__(self, model):
        self.model, self.tokens = model, 0
        self.cache = [[] for _ in range(model.layers)]      # of each layer: (keys, values) by token
        self.rows = {name: [values[r * cols:(r + 1) * cols] for r in range(rows)] if rows
                     else list(values) for name, (rows, cols, values) in model.tensors.items()}
        self.frequency = [model.theta ** (-2 * i / model.rope) / (model.linear or 1) /
                          (model.divisors[i] if model.divisors else 1)
                          for i in range(model.rope // 2)]

    def linear(self, name, x):
        y = [dot(row, x) for row in self.rows[f"{name}.weight"]]
        bias = self.rows.get(f"{name}.bias")
        return [a + b for a, b in zip(y, bias)] if bias else y

    def norm(self, name, x):
        scale = 1 / math.sqrt(dot(x, x) / len(x) + 1e-5)
        return [a * scale * w for a, w in zip(x, self.rows[f"{name}.weight"])]

    def heads(self, x, size, rotate):
        """Heads of a row; the file has rotated pairs side by side."""
        out = [list(x[at:at + size]) for at in range(0, len(x), size)]
        for head in out if rotate else []:
            for i, frequency in enumerate(self.frequency):
                cos, sin = math.cos(self.tokens * frequency), math.sin(self.tokens * frequency)
                a, b = head[2 * i], head[2 * i + 1]
                head[2 * i], head[2 * i + 1] = a * cos - b * sin, b * cos + a * sin
        return out

    def attend(self, layer, x):
        model, name = self.model, f"blk.{layer}.attn"
        queries = self.heads(self.linear(f"{name}_q", x), model.k, True)
        self.cache[layer].append((self.heads(self.linear(f"{name}_k", x), model.k, True),
                                  self.heads(self.linear(f"{name}_v", x), model.v, False)))
        seen = self.cache[layer][-model.window:] if model.window else self.cache[layer]
        group, out = len(queries) // len(seen[0][0]), []
        for h, query in enumerate(queries):
            logits = [dot(query, keys[h // group]) / math.sqrt(model.k) for keys, _ in seen]
            weights = [math.exp(logit - max(logits)) for logit in logits]
            total = sum(weights)
            out += [sum(w * values[h // group][e] for w, (_, values) in zip(weights, seen)) / total
                    for e in range(model.v)]
        return self.linear(f"{name}_output", out)

    def feed(self, token):
        """The logits after one more token."""
        x = list(self.rows["token_embd.weight"][token])
        for layer in range(self.model.layers):
            name = f"blk.{layer}"
            x = [a + b for a, b in zip(x, self.attend(layer, self.norm(f"{name}.attn_norm", x)))]
            normed = self.norm(f"{name}.ffn_norm", x)
            hidden = [g / (1 + math.exp(-g)) * u
                      for g, u in zip(self.linear(f"{name}.ffn_gate", normed),
                                      self.linear(f"{name}.ffn_up", normed))]
            x = [a + b for a, b in zip(x, self.linear(f"{name}.ffn_down", hidden))]
        self.tokens += 1
        return self.linear("output" if self.model.untied else "token_embd",
                           self.norm("output_norm", x))

    def greedy(self, prompt):
        """Tokens up to the first whose margin is too small to be sure."""
        for token in prompt:
            logits = self.feed(token)
        answer = []
        while len(answer) < ANSWER:
            best, second = sorted(logits, reverse=True)[:2]
            if best - second < TIE:
                break
            answer.append(logits.index(best))
            logits = self.feed(answer[-1])
        return answer


def layouts_of(model):
    if not job.has_ranks():
        return LAYOUTS[:1]
    wanted = [(1, 1), (2, 2)] if job.LEVEL == "quick" else LAYOUTS
    heads = min(per_layer(model.q, layer) for layer in range(model.layers))
    return [(t, p) for t, p in wanted if p <= model.layers and t <= heads]


def run(tally, what, path, layout, dtype, fixed, given):
    """Tokens of each prompt, or None."""
    tensor, pipeline = layout
    what += f", {dtype}, tensor {tensor} x pipeline {pipeline}{', fixed' if fixed else ''}"
    config = job.config(dtype, tensor, pipeline, 1, fixed, 8).replace(job.MODEL, path)
    done = job.run(tensor * pipeline, config.replace("max_model_len: 2048", "max_model_len: 256"),
                   given)
    if tally.check(f"{what}: exit code", done.code, 0):
        return done.tokens()
    print(done.stderr)
    return None


def check_shape(tally, name, seed):
    model, folder = Model(SHAPES[name], seed), job.Folder()
    path = folder.file("shape.gguf")
    model.write(path)
    prompts = {f"{n} tokens": [model.random.randrange(model.vocab) for _ in range(n)]
               for n in PROMPTS}
    given = job.records([(prompt, {"prompt": ids, "max_tokens": ANSWER, "temperature": 0,
                                   "ignore_eos": True, "return_token_ids": True})
                         for prompt, ids in prompts.items()])
    expected = {prompt: Reference(model).greedy(ids) for prompt, ids in prompts.items()}
    tally.true(f"{name}: the reference is sure of most tokens",
               sum(map(len, expected.values())) > ANSWER * len(prompts) // 2, str(expected))
    short = {}
    for number, layout in enumerate(layouts_of(model)):
        for fixed in (False, True) if job.LEVEL == "long" else (number % 2 == 1,):
            tokens = run(tally, name, path, layout, "f32", fixed, given)
            for prompt in prompts if tokens else ():
                tally.check(f"{name}, {layout}, fixed {fixed}, {prompt}",
                            tokens.get(prompt, [])[:len(expected[prompt])], expected[prompt])
        if number % 2 == 1 and job.LEVEL == "normal":
            continue
        for dtype in ("bf16", "f16") if job.LEVEL == "long" else (("bf16", "f16")[seed % 2],):
            tokens = run(tally, name, path, layout, dtype, True, given)
            tally.check(f"{name}, {layout}: {dtype} as in the first layout", tokens,
                        short.setdefault(dtype, tokens))
    if model.layers == 1 and job.has_ranks():
        config = job.config("f32", 1, 2, 1, True, 8).replace(job.MODEL, path)
        tally.check(f"{name}: more stages than layers", job.run(2, config, given).code, 2)
    folder.remove()


def check_not_finite(tally):
    """A NaN or an infinity anywhere in the weights ends the job with its tensor's name."""
    folder = job.Folder()
    given = job.records([("a", {"prompt": [0], "max_tokens": 2, "temperature": 0.5})])
    names = ["token_embd.weight", "output.weight", "output_norm.weight", "blk.0.attn_norm.weight",
             "blk.0.attn_q.bias", "blk.0.ffn_down.weight", "blk.0.ffn_norm.weight"]
    for name in names if job.LEVEL != "quick" else names[:3]:
        model = Model({"layers": 1, "d": 6, "ffn": 3, "vocab": 5, "untied": True, "bias": True}, 0)
        model.tensors[name][2][0] = math.inf if name.endswith("norm.weight") else math.nan
        path = folder.file("wrong.gguf")
        model.write(path)
        done = job.run(1, job.config("f32", 1, 1, 1, False, 8).replace(job.MODEL, path)
                       .replace("max_model_len: 2048", "max_model_len: 256"), given)
        lines = done.error_lines()
        tally.true(f"not finite, {name}", done.code != 0 and len(lines) == 1 and name in lines[0]
                   and "not finite" in lines[0], f"exit {done.code}\n{done.stderr}")
    folder.remove()


def main():
    tally = job.Tally("shapes")
    check_not_finite(tally)
    for seed, name in enumerate(SHAPES):
        check_shape(tally, name, seed)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
