"""xKV (arXiv 2503.18893): adjacent layers keep the keys and values of a prompt as low-rank factors
with one token basis.

    X_K [n, m]  keys before RoPE of all heads of all layers of a group, side by side; X_V values
    X ~ A B     the best product of rank r = min(r, n, m); A [n, r] of the group, B [r, d] of a head
    k_j = RoPE_j(A_K[j] B_K), v_j = A_V[j] B_V, and one softmax with what was generated since

Choices where the description leaves one:
  - Layers are cut into groups of group_size within each stage, from start_layer or the stage's
    first one on.
  - A short group has the rank ceil(r * layers / group_size); with local_heads each of `tensor`
    ranks has ceil of that / tensor columns for its own heads, here consecutive ones.
  - min_prompt_tokens auto: the least n at which the factors of the whole group, on one rank, have
    no more elements than its prompt.
  - With rank_v 0 the values stay as they are, and count neither for nor against a basis.
  - exact_first_tokens stay raw and outside of X.
  - Factors are not rounded.  A slot costs its 8 bytes in every lane.
"""
import math

import attention
from attention import np

DEFAULTS = {"group_size": 4, "start_layer": 0, "end_layer": -1, "rank_k": 384, "rank_v": 576,
            "min_prompt_tokens": "auto", "num_sink_tokens": 0, "layer_groups": "auto",
            "stages": None, "tensor": 1, "svd": "exact"}


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


def least_tokens(m_k, m_v, r_k, r_v):
    """The break-even length of a group; None: its factors never win."""
    m_v = m_v if r_v > 0 else 0
    r_k, r_v = min(r_k, m_k), min(r_v, m_v)
    won = m_k + m_v - r_k - r_v
    return -(-(m_k * r_k + m_v * r_v) // won) if won > 0 else None


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


class Xkv(attention.Method):
    """Layers do not see each other in a trace, so a group is encoded before any of them runs."""

    def __init__(self, options, trace):
        super().__init__()
        self.o, self.trace, self.prompt = options, trace, trace.prompt
        self.rebuilt = {}               # (layer, head): k before RoPE, v [n, d] of the encoded
        self.elements = {}              # (layer, head): of the factors; a basis with its first lane
        self.groups = groups_of(len(trace.layers), options)
        for group in self.groups:
            if self.pays(group):
                self.encode(group)

    def pays(self, group):
        least, o = self.o["min_prompt_tokens"], self.o
        if least == "auto":
            _, k, v = self.trace.layers[group[0]]
            least = least_tokens(len(group) * k[0].size, len(group) * v[0].size,
                                 rank_of(o["rank_k"], len(group), o),
                                 rank_of(o["rank_v"], len(group), o))
        return least is not None and self.prompt >= max(least, o["num_sink_tokens"] + 1)

    def encode(self, group):
        o = self.o
        tokens = slice(o["num_sink_tokens"], self.prompt)
        kv_heads = self.trace.layers[group[0]][1].shape[1]
        step = kv_heads // o["tensor"]
        for heads in (range(i, i + step) for i in range(0, kv_heads, step)):
            lanes = [(layer, head) for layer in group for head in heads]
            parts = []
            for kind, rank in ((1, o["rank_k"]), (2, o["rank_v"])):
                x = [np.float64(self.trace.layers[layer][kind][tokens, head])
                     for layer, head in lanes]
                rank = -(-rank_of(rank, len(group), o) // o["tensor"])
                d, x = x[0].shape[1], np.concatenate(x, 1)
                a, b = factors(x, rank)
                # rows that a lane has of its own: of B, or its exact values
                parts.append((a @ b if rank else x, b.shape[0] if rank else len(x), d, a.size))
            for i, lane in enumerate(lanes):
                self.rebuilt[lane] = [product[:, i * d:(i + 1) * d] for product, _, d, _ in parts]
                self.elements[lane] = sum(rows * d for _, rows, d, _ in parts)
            self.elements[lanes[0]] += sum(size for _, _, _, size in parts)

    def prompt_end(self, layer, lanes, tokens, all_rows, last):
        first = self.o["num_sink_tokens"]
        for head, lane in enumerate(lanes):
            if (layer, head) not in self.rebuilt:
                continue
            k, v = self.rebuilt[layer, head]
            lane["k"][first:] = attention.rotate(k, np.arange(first, tokens), self.trace.theta)
            lane["v"][first:] = v

    def payload(self, layer, head, lane, element_bytes):
        if (layer, head) not in self.elements:
            return super().payload(layer, head, lane, element_bytes)
        raw = lane.slots - (self.prompt - self.o["num_sink_tokens"])
        width = lane["k"].shape[1] + lane["v"].shape[1]
        return (self.elements[layer, head] + raw * width) * element_bytes


def run(trace, options=None, element_bytes=4):
    return attention.drive(trace, Xkv(attention.filled(DEFAULTS, options), trace), element_bytes)
