"""xKV (arXiv 2503.18893): adjacent layers keep the keys and values of a prompt as low-rank factors
with one token basis.

    X_K [n, m]  keys before RoPE of all heads of all layers of a group, side by side; X_V values
    X ~ A B     the best product of rank r = min(r, n, m); A [n, r] of the group, B [r, d] of a head
    k_j = RoPE_j(A_K[j] B_K), v_j = A_V[j] B_V, and one softmax with what was generated since

Choices where the description leaves one:
  - Layers are cut into groups of group_size within each stage, from start_layer or the stage's
    first one on.
  - A short group has the rank ceil(r * layers / group_size); with local_heads each of `tensor`
    ranks has ceil of that / tensor columns for its own heads, here consecutive ones; with
    replicated_basis each has the whole bases, as many as share the heads out.
  - min_prompt_tokens auto: the least n at which the factors of the whole group, on one rank, have
    no more elements than its prompt; read by chunks, with landmarks and what is raw as well.
  - With rank_v 0 the values stay as they are, and count neither for nor against a basis.
  - exact_first_tokens stay raw and outside of X.
  - refactor_every: behind the prompt each so many generated tokens are a segment, once the last of
    them has attended: they get factors of their own, like a prompt's.  Whether the prompt has some
    does not matter, and what begins before the last exact first token is never sealed.
  - Factors are not rounded.  A slot costs its 8 bytes in every lane.

Selective: the tokens behind the sinks are cut into chunks of chunk_size; the last local_chunks and
what is left over stay raw and outside of X.  Of each lane, with keys after RoPE,

    m_c = mean key of chunk c,  e_c = least cos(key of c, m_c)
    outliers = the outlier_chunks chunks of least e, raw in this lane; m_c of the others are kept
    a step reads what is raw and the budget_tokens / chunk_size chunks of greatest
    max over query heads h of softmax over kept c of scale q_h . m_c

A prompt of fewer chunks than outliers and budget need is dense as it is.  An outlier costs its raw
slot and its 8 bytes in the basis, a landmark a key and 8 bytes.
"""
import math

import attention
from attention import np

DEFAULTS = {"group_size": 4, "start_layer": 0, "end_layer": -1, "rank_k": 384, "rank_v": 576,
            "min_prompt_tokens": "auto", "num_sink_tokens": 0, "layer_groups": "auto",
            "stages": None, "tensor": 1, "tp_mode": "local_heads", "svd": "exact",
            "reconstruction": "dense",
            "budget_tokens": 2048, "chunk_size": 8, "local_chunks": 4, "outlier_chunks": 48,
            "refactor_every": 0}


def groups_of(layers, o):
    """[[layers]] of each group; layers that are in none stay exact."""
    if o["layer_groups"] != "auto":
        return [list(range(first, last + 1)) for first, last in o["layer_groups"]]
    last = layers - 1 if o["end_layer"] < 0 else o["end_layer"]
    groups, first = [], 0
    for count in o["stages"] or [layers]:
        mine = [l for l in range(first, first + count) if o["start_layer"] <= l <= last]
        groups += [mine[i:i + o["group_size"]] for i in range(0, len(mine), o["group_size"])]
        first += count
    return groups


def rank_of(rank, layers, o):
    return -(-rank * layers // o["group_size"])


def least_tokens(m_k, m_v, r_k, r_v, copies=1):
    """The break-even length of a group; None: its factors never win."""
    m_v = m_v if r_v > 0 else 0
    r_k, r_v = min(r_k, m_k), min(r_v, m_v)
    won = m_k + m_v - copies * (r_k + r_v)
    return -(-(m_k * r_k + m_v * r_v) // won) if won > 0 else None


def pays_by_chunks(chunks, size, outliers, m_k, m_v, r_k, r_v, copies=1):
    """Whether a group read by chunks has no more elements than what is encoded of the prompt."""
    replaced = m_k + (m_v if r_v > 0 else 0)
    r_k, r_v = min(r_k, m_k), min(r_v, m_v)
    kept = chunks * size * copies * (r_k + r_v) + m_k * r_k + m_v * r_v
    return kept + outliers * size * (m_k + m_v) + (chunks - outliers) * m_k \
        <= chunks * size * replaced


def elements(n, layers, group_size, kv_heads, d, r_k, r_v):
    """The description's formula, dense."""
    exact = layers * kv_heads * d * n if r_v == 0 else 0
    return -(-layers // group_size) * n * (r_k + r_v) + layers * kv_heads * d * (r_k + r_v) + exact


def factors(x, rank):
    """The best product of the rank, its singular values split evenly; error = what is left."""
    u, s, v = np.linalg.svd(x, full_matrices=False)
    rank = min(rank, len(s))
    root = np.sqrt(s[:rank])
    return u[:, :rank] * root, root[:, None] * v[:rank]


def fused(q, a_k, b_k, a_v, b_v, pos, theta, scale):
    """One query head in the order of the kernels: keys are rebuilt, values stay in latent space."""
    logits = scale * (attention.rotate(a_k @ b_k, pos, theta) @ q)
    p = np.exp(logits - logits.max())
    return (p @ a_v / p.sum()) @ b_v


def chosen(score, count):
    """Places of the greatest, ties to the lower one, ascending."""
    return np.sort(np.argsort(-score, kind="stable")[:count])


def landmarks(keys, size):
    """Mean key of each chunk, and the least cosine of a key of it with that."""
    chunks = keys.reshape(-1, size, keys.shape[1])
    means = chunks.mean(1)
    norms = np.linalg.norm(chunks, axis=2) * np.linalg.norm(means, axis=1)[:, None]
    dots = np.einsum("cjd,cd->cj", chunks, means)
    return means, np.where(norms > 0, dots / np.where(norms > 0, norms, 1), 0).min(1)


class Xkv(attention.Method):
    """Layers do not see each other in a trace, so a group is encoded before any of them runs."""

    def __init__(self, options, trace):
        super().__init__()
        self.o, self.trace, self.prompt = options, trace, trace.prompt
        self.segments = {}              # (layer, head): [(first, end, k before RoPE, v)]
        self.elements = {}              # (layer, head): of the factors; a basis with its first lane
        self.marks, self.outliers = {}, {}  # (layer, head): chunks and their m; chunks
        o = options
        self.first = o["num_sink_tokens"]
        self.chunks = (self.prompt - self.first) // o["chunk_size"] - o["local_chunks"]
        self.picks = o["budget_tokens"] // o["chunk_size"]
        self.selects = o["reconstruction"] == "selective" and \
            self.chunks >= o["outlier_chunks"] + self.picks
        self.end = self.first + self.chunks * o["chunk_size"] if self.selects else self.prompt
        self.copies = 1                 # of a basis; heads that ranks share stand on one
        if options["tp_mode"] == "replicated_basis":
            self.copies = min(options["tensor"], trace.layers[0][1].shape[1])
        self.groups = groups_of(len(trace.layers), options)
        every = options["refactor_every"]
        for group in self.groups:
            if self.pays(group):
                self.encode(group, self.first, self.end)
            for end in range(self.prompt + every, trace.tokens + 1, every) if every else ():
                if end - every >= self.first:
                    self.encode(group, end - every, end)

    def pays(self, group):
        least, o = self.o["min_prompt_tokens"], self.o
        if least == "auto":
            _, k, v = self.trace.layers[group[0]]
            sizes = (len(group) * k[0].size, len(group) * v[0].size,
                     rank_of(o["rank_k"], len(group), o), rank_of(o["rank_v"], len(group), o),
                     self.copies)
            if self.selects:
                return pays_by_chunks(self.chunks, o["chunk_size"], o["outlier_chunks"], *sizes)
            least = least_tokens(*sizes)
        return least is not None and self.prompt >= max(least, o["num_sink_tokens"] + 1)

    def encode(self, group, first, end):
        o = self.o
        kv_heads = self.trace.layers[group[0]][1].shape[1]
        ranks = 1 if o["tp_mode"] == "replicated_basis" else o["tensor"]
        step = kv_heads // ranks
        for heads in (range(i, i + step) for i in range(0, kv_heads, step)):
            lanes = [(layer, head) for layer in group for head in heads]
            parts = []
            for kind, rank in ((1, o["rank_k"]), (2, o["rank_v"])):
                x = [np.float64(self.trace.layers[layer][kind][first:end, head])
                     for layer, head in lanes]
                rank = -(-rank_of(rank, len(group), o) // ranks)
                d, x = x[0].shape[1], np.concatenate(x, 1)
                a, b = factors(x, rank)
                # rows that a lane has of its own: of B, or its exact values
                parts.append((a @ b if rank else x, b.shape[0] if rank else len(x), d, a.size))
            for i, lane in enumerate(lanes):
                self.segments.setdefault(lane, []).append(
                    (first, end, *(product[:, i * d:(i + 1) * d] for product, _, d, _ in parts)))
                self.elements[lane] = self.elements.get(lane, 0) + sum(
                    rows * d for _, rows, d, _ in parts)
            self.elements[lanes[0]] += self.copies * sum(size for _, _, _, size in parts)

    def seal(self, layer, lanes, tokens):
        """What ends with the newest token."""
        for head, lane in enumerate(lanes):
            for first, end, k, v in self.segments.get((layer, head), ()):
                if max(end, self.prompt) != tokens:
                    continue
                keep = np.zeros(end - first, bool)
                if self.selects and end <= self.prompt:
                    keep = self.mark(layer, head, lane)
                k = attention.rotate(k, np.arange(first, end), self.trace.theta)
                lane["k"][first:end] = np.where(keep[:, None], lane["k"][first:end], k)
                lane["v"][first:end] = np.where(keep[:, None], lane["v"][first:end], v)

    def prompt_end(self, layer, lanes, tokens, all_rows, last):
        self.seal(layer, lanes, tokens)

    def after_row(self, layer, lanes, tokens, weights):
        self.seal(layer, lanes, tokens)

    def mark(self, layer, head, lane):
        """Landmarks of a lane that is still raw; which of its encoded tokens stay raw as well."""
        size = self.o["chunk_size"]
        means, even = landmarks(lane["k"][self.first:self.end], size)
        out = chosen(-even, self.o["outlier_chunks"])
        rest = np.setdiff1d(np.arange(self.chunks), out)
        self.outliers[layer, head], self.marks[layer, head] = out, (rest, means[rest])
        return np.isin(np.arange(self.chunks), out).repeat(size)

    def reads(self, layer, head, lane, q, scale):
        if (layer, head) not in self.marks:
            return None
        rest, means = self.marks[layer, head]
        logits = scale * (q @ means.T)
        p = np.exp(logits - logits.max(1, keepdims=True))
        best = chosen((p / p.sum(1, keepdims=True)).max(0), self.picks)
        read = np.ones(lane.slots, bool)
        for chunk in np.setdiff1d(rest, rest[best]):
            at = self.first + chunk * self.o["chunk_size"]
            read[at:at + self.o["chunk_size"]] = False
        return np.flatnonzero(read)

    def tiers(self, layer, head, lane):
        """Of each slot: 1 where it is read from a basis."""
        pos = lane["pos"]
        tiers = np.zeros_like(pos)
        for first, end, *_ in self.segments.get((layer, head), ()):
            tiers[(pos >= first) & (pos < end)] = 1
        chunk = (pos - self.first) // self.o["chunk_size"]
        tiers[np.isin(chunk, self.outliers.get((layer, head), ()))] = 0
        return tiers

    def payload(self, layer, head, lane, element_bytes):
        segments = self.segments.get((layer, head), ())
        hidden = len(self.outliers.get((layer, head), ())) * self.o["chunk_size"]
        raw = lane.slots - sum(end - first for first, end, *_ in segments) + hidden
        width = lane["k"].shape[1] + lane["v"].shape[1]
        rest, means = self.marks.get((layer, head), ((), np.zeros(0)))
        elements_here = self.elements.get((layer, head), 0) + raw * width + means.size
        return elements_here * element_bytes + 8 * (hidden + len(rest))


def run(trace, options=None, element_bytes=4):
    return attention.drive(trace, Xkv(attention.filled(DEFAULTS, options), trace), element_bytes)
