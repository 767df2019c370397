"""`sheaf calibrate` on tiny models, against attention worked out whole in plain Python.

The reference below shares nothing with the runtime: it draws the block with its own Philox, runs
the model of tests/data/tiny in f64 over lists, row by row, and reads both scores of every query
head off the whole matrix of attention.  Shown: the scores of the profile are those, on one rank,
with heads that two ranks hold (each sees its query heads of them), with stages and with groups;
layers with a sliding window have none and are never chosen.
"""
# cores: 1
import json
import math
import operator
import os
import re
import sys

import job
import tiny

BLOCK, COPIES, SEED = 9, 4, 5
ROW = re.compile(r"{layer: (\d+), head: (\d+), induction: \[(.*)\], echo: \[(.*)\]}")
LAYOUTS = [(1, 1, 1), (4, 1, 1), (2, 2, 1), (1, 1, 2)]


# ---- what is fed ---------------------------------------------------------------------------------

def uniform(key, stream, index):
    """Philox 4x32-10 of (key, stream, index) as a number in [0, 1)."""
    low, c = 0xffffffff, [index & 0xffffffff, index >> 32, stream & 0xffffffff, stream >> 32]
    k = [key & low, key >> 32]
    for _ in range(10):
        p, q = 0xd2511f53 * c[0], 0xcd9e8d57 * c[2]
        c = [q >> 32 ^ c[1] ^ k[0], q & low, p >> 32 ^ c[3] ^ k[1], p & low]
        k = [k[0] + 0x9e3779b9 & low, k[1] + 0xbb67ae85 & low]
    return ((c[0] | c[1] << 32) >> 11) / 2 ** 53


def tokens_of(vocab):
    deck, block = list(range(vocab)), []
    for i in range(BLOCK):
        j = i + int(uniform(SEED, 0, i) * (vocab - i))
        deck[i], deck[j] = deck[j], deck[i]
        block.append(deck[i])
    return block * COPIES


# ---- the model -----------------------------------------------------------------------------------

def dot(a, b):
    return sum(map(operator.mul, a, b))


class Model:
    def __init__(self, name):
        folder = os.path.join(job.ROOT, "tests/data/tiny", name)
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            self.config = json.load(file)
        self.found = tiny.read_safetensors(os.path.join(folder, "model.safetensors"))
        self.heads = self.config["num_attention_heads"]
        self.kv_heads = self.config["num_key_value_heads"]
        self.layers = self.config["num_hidden_layers"]
        self.dim = self.config.get("head_dim", self.config["hidden_size"] // self.heads)
        self.theta = self.config.get("rope_theta") or self.config["rope_parameters"]["rope_theta"]

    def times(self, name, x):
        (rows, cols), values = self.found[name + ".weight"]
        out = [dot(values[r * cols:(r + 1) * cols], x) for r in range(rows)]
        if name + ".bias" in self.found:
            out = [a + b for a, b in zip(out, self.found[name + ".bias"][1])]
        return out

    def normed(self, name, x):
        scale = 1 / math.sqrt(dot(x, x) / len(x) + self.config["rms_norm_eps"])
        return [scale * a * w for a, w in zip(x, self.found[name + ".weight"][1])]

    def turned(self, x, pos):
        out, half = [], self.dim // 2
        for at in range(0, len(x), self.dim):
            a, b = x[at:at + half], x[at + half:at + self.dim]
            turn = [pos * self.theta ** (-i / half) for i in range(half)]
            out += [p * math.cos(t) - q * math.sin(t) for p, q, t in zip(a, b, turn)]
            out += [q * math.cos(t) + p * math.sin(t) for p, q, t in zip(a, b, turn)]
        return out

    def attention(self, layer, rows):
        """Changes the rows of the residual; returns P[query head][row][column]."""
        at, group = f"model.layers.{layer}.self_attn.", self.heads // self.kv_heads
        window = self.config.get("sliding_window") or len(rows)
        q, k, v, p = [], [], [], [[] for _ in range(self.heads)]
        for pos, x in enumerate(rows):
            h = self.normed(f"model.layers.{layer}.input_layernorm", x)
            q.append(self.turned(self.times(at + "q_proj", h), pos))
            k.append(self.turned(self.times(at + "k_proj", h), pos))
            v.append(self.times(at + "v_proj", h))
        for i, x in enumerate(rows):
            out = []
            for head in range(self.heads):
                mine = slice(head * self.dim, (head + 1) * self.dim)
                kv = slice(head // group * self.dim, (head // group + 1) * self.dim)
                weight = [math.exp(dot(q[i][mine], k[j][kv]) / math.sqrt(self.dim))
                          if j > i - window else 0 for j in range(i + 1)]
                total = sum(weight)
                p[head].append([w / total for w in weight])
                out += [dot(p[head][i], column) for column in zip(*[v[j][kv]
                                                                    for j in range(i + 1)])]
            rows[i] = [a + b for a, b in zip(x, self.times(at + "o_proj", out))]
        return p

    def feed_forward(self, layer, rows):
        at = f"model.layers.{layer}."
        for i, x in enumerate(rows):
            h = self.normed(at + "post_attention_layernorm", x)
            gate = self.times(at + "mlp.gate_proj", h)
            both = [g / (1 + math.exp(-g)) * u
                    for g, u in zip(gate, self.times(at + "mlp.up_proj", h))]
            rows[i] = [a + b for a, b in zip(x, self.times(at + "mlp.down_proj", both))]

    def scores(self):
        """{(layer, query head): (induction, echo)}"""
        (vocab, width), table = self.found["model.embed_tokens.weight"]
        rows = [list(table[t * width:(t + 1) * width]) for t in tokens_of(vocab)]
        found = {}
        for layer in range(self.layers):
            for head, p in enumerate(self.attention(layer, rows)):
                sums = [sum(p[i][i - back + after] for i in range(BLOCK, len(rows))
                            for back in range(BLOCK, i + 1, BLOCK)) for after in (1, 0)]
                found[layer, head] = [s / (len(rows) - BLOCK) for s in sums]
            self.feed_forward(layer, rows)
        return found


# ---- the runtime ---------------------------------------------------------------------------------

def read(path):
    found = {}
    with open(path, encoding="utf-8") as file:
        text = file.read()
    for line in ROW.findall(text):
        induction, echo = [list(map(float, one.split(","))) for one in line[2:]]
        for j, pair in enumerate(zip(induction, echo)):
            found[int(line[0]), int(line[1]) * len(induction) + j] = list(pair)
    return found, re.findall(r"  - \[(\d+), (\d+)\]", text)


def check_model(tally, name, layouts):
    folder, model = job.Folder(), Model(name)
    path = folder.file(f"{name}.gguf")
    tiny.write_gguf(os.path.join(job.ROOT, "tests/data/tiny", name), path)
    windows = bool(model.config.get("sliding_window"))
    want = {} if windows else model.scores()
    for layout in layouts:
        what = f"{name}, tensor %d x pipeline %d x data %d" % layout
        extra = ("kv_cache: {methods: [{name: razor_attention, "
                 f"calibration_block_tokens: {BLOCK}, calibration_seed: {SEED}}}]}}\n")
        config = job.config("f32", *layout, deterministic=False, seqs=8, extra=extra)
        config = config.replace(job.MODEL, path).replace("max_model_len: 2048",
                                                         "max_model_len: 512")
        # chunks that end inside of blocks
        config = config.replace("max_num_seqs: 8", "max_num_seqs: 8, max_num_batched_tokens: 16")
        output = folder.file("profile")
        done = job.sheaf(layout[0] * layout[1] * layout[2],
                         ["calibrate", folder.file("job.yaml", config), "--output", output])
        if not tally.check(f"{what}: exit code", done.code, 0):
            print(done.stderr)
            continue
        scores, heads = read(output)
        tally.check(f"{what}: query heads", sorted(scores), sorted(want))
        far = max((abs(a - b) for lane, pair in want.items()
                   for a, b in zip(pair, scores.get(lane, [9, 9]))), default=0)
        tally.true(f"{what}: scores", far <= 2e-5, f"{far} apart")
        tally.check(f"{what}: chosen", len(heads), 0 if windows else 1)
    folder.remove()


def main():
    tally = job.Tally("calibrate_tiny")
    if not os.access(job.SHEAF, os.X_OK):
        tally.true("there is a build", False, f"no {job.SHEAF}; SHEAF_BUILD names the build folder")
        tally.end()
    layouts = LAYOUTS if job.has_ranks() else LAYOUTS[:1]
    if job.LEVEL == "quick":
        layouts = layouts[:2]
    check_model(tally, "llama", layouts)
    check_model(tally, "qwen2", layouts[:2])
    check_model(tally, "mistral", layouts[:1])
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
