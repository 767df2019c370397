#!/usr/bin/env python3
"""A model file with random weights of a real size, to measure speed with where none is at hand.

    python3 tests/gpu/made_model.py --shape 1b OUT.gguf

The shapes are those of Llama 3: 1b (3.2-1B, tied head) and 8b (3.1-8B); tiny is for trying things.
Weights are f16, normal, scaled by 1 / sqrt(inputs), from one block of random numbers that is used
again at another place for each tensor; so the answers mean nothing, but every product and every
cache is of the real size.
No tokenizer: prompts are token ids.
"""
import argparse
import os
import struct
import sys

import numpy

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../e2e"))
from tiny import ALIGN, key, text

SHAPES = {"1b": {"layers": 16, "d": 2048, "ffn": 8192, "q": 32, "kv": 8, "head": 64,
                 "vocab": 128256, "tied": True},
          "8b": {"layers": 32, "d": 4096, "ffn": 14336, "q": 32, "kv": 8, "head": 128,
                 "vocab": 128256, "tied": False},
          "tiny": {"layers": 2, "d": 64, "ffn": 96, "q": 4, "kv": 2, "head": 16, "vocab": 256,
                   "tied": True}}
BLOCK, F32, F16 = 1 << 24, 0, 1


def tensors_of(shape):
    """(name, rows or 0 for a vector, columns) of every tensor."""
    d, head = shape["d"], shape["head"]
    yield "token_embd.weight", shape["vocab"], d
    yield "output_norm.weight", 0, d
    if not shape["tied"]:
        yield "output.weight", shape["vocab"], d
    for layer in range(shape["layers"]):
        prefix = f"blk.{layer}."
        yield prefix + "attn_norm.weight", 0, d
        yield prefix + "ffn_norm.weight", 0, d
        yield prefix + "attn_q.weight", shape["q"] * head, d
        yield prefix + "attn_k.weight", shape["kv"] * head, d
        yield prefix + "attn_v.weight", shape["kv"] * head, d
        yield prefix + "attn_output.weight", d, shape["q"] * head
        yield prefix + "ffn_gate.weight", shape["ffn"], d
        yield prefix + "ffn_up.weight", shape["ffn"], d
        yield prefix + "ffn_down.weight", d, shape["ffn"]


def header_of(shape, tensors):
    keys = [("general.architecture", "llama"), ("llama.block_count", shape["layers"]),
            ("llama.embedding_length", shape["d"]), ("llama.context_length", 131072),
            ("llama.feed_forward_length", shape["ffn"]),
            ("llama.attention.head_count", shape["q"]),
            ("llama.attention.head_count_kv", shape["kv"]),
            ("llama.attention.key_length", shape["head"]),
            ("llama.attention.value_length", shape["head"]),
            ("llama.attention.layer_norm_rms_epsilon", 1e-5),
            ("llama.rope.freq_base", 500000.0), ("llama.rope.dimension_count", shape["head"])]
    table, at = b"", 0
    for name, rows, cols in tensors:
        dims = (cols, rows) if rows else (cols,)
        table += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims,
                                          F16 if rows else F32, at)
        at += (rows * cols * 2 if rows else cols * 4) + ALIGN - 1
        at -= at % ALIGN
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    head += b"".join(key(*entry) for entry in keys) + table
    return head + bytes(-len(head) % ALIGN)


def write_matrix(file, block, place, rows, cols):
    scaled, left = (block / numpy.float32(cols ** 0.5)).astype(numpy.float16), rows * cols
    while left > 0:
        part = scaled[place:place + left]
        file.write(part.tobytes())
        left, place = left - len(part), 0


def write(path, name):
    """The model of that shape, whole, at `path`."""
    tensors = list(tensors_of(SHAPES[name]))
    block = numpy.random.default_rng(7).standard_normal(BLOCK, dtype=numpy.float32)
    with open(path, "wb") as file:
        file.write(header_of(SHAPES[name], tensors))
        for number, (_, rows, cols) in enumerate(tensors):
            if rows:
                write_matrix(file, block, number * 7919, rows, cols)
            else:
                file.write(numpy.ones(cols, dtype="<f4").tobytes())
            file.write(bytes(-file.tell() % ALIGN))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("output")
    options = parser.parse_args()
    write(options.output, options.shape)


if __name__ == "__main__":
    main()
