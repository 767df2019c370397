#!/usr/bin/env python3
"""One run of llama.cpp for peers.py: prompts of drawn token ids, all at once, each answered
greedily to its length; prints one JSON object.

    peer_llama.py MODEL.gguf --seqs N --input I --output O --threads T [--kv f16|q8_0]

Sequences have parts of one cache (kv_unified off), prompts go in as batches of whole prompts, then
each call of llama_decode takes a token of every sequence.  Choosing the greatest logit is numpy's
work and counts, as it does for the others.
"""
import argparse
import ctypes
import json
import random
import resource
import time

import llama_cpp as ll
import numpy

BATCH, UBATCH = 2048, 512


def context_of(model, args):
    params = ll.llama_context_default_params()
    params.n_ctx = args.seqs * (args.input + args.output)
    params.n_batch, params.n_ubatch = max(BATCH, args.seqs), UBATCH
    params.n_seq_max = args.seqs
    params.n_threads = params.n_threads_batch = args.threads
    params.type_k = params.type_v = {"f16": 1, "q8_0": 8}[args.kv]      # enum ggml_type
    if hasattr(params, "flash_attn_type"):
        params.flash_attn_type = 1
    else:
        params.flash_attn = True
    if hasattr(params, "kv_unified"):
        params.kv_unified = False
    context = ll.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("llama.cpp made no context")
    return context


class Batch:
    def __init__(self, room):
        self.it = ll.llama_batch_init(room, 0, 1)
        self.it.n_tokens = 0

    def add(self, token, position, sequence, logits):
        at = self.it.n_tokens
        self.it.token[at], self.it.pos[at] = token, position
        self.it.n_seq_id[at], self.it.seq_id[at][0] = 1, sequence
        self.it.logits[at] = logits
        self.it.n_tokens = at + 1

    def run(self, context):
        """The greatest logit's token of every row that asked, in order."""
        if ll.llama_decode(context, self.it) != 0:
            raise SystemExit("llama_decode failed")
        asked = [i for i in range(self.it.n_tokens) if self.it.logits[i]]
        self.it.n_tokens = 0
        return [self.best(context, i) for i in asked]

    @staticmethod
    def best(context, row):
        logits = ll.llama_get_logits_ith(context, row)
        return int(numpy.ctypeslib.as_array(logits, shape=(VOCABULARY,)).argmax())


def answer(context, args, prompts):
    """Seconds until the last prompt's first token, and until the last token of all."""
    batch, tokens, start = Batch(max(BATCH, args.seqs, args.input)), [], time.monotonic()
    for sequence, prompt in enumerate(prompts):
        if batch.it.n_tokens + args.input > max(BATCH, args.input):
            tokens += batch.run(context)
        for position, token in enumerate(prompt):
            # More than n_batch tokens of one prompt go in pieces.
            if batch.it.n_tokens == BATCH:
                tokens += batch.run(context)
            batch.add(token, position, sequence, position == args.input - 1)
    tokens += batch.run(context)
    first = time.monotonic() - start
    for step in range(args.output - 1):
        for sequence, token in enumerate(tokens):
            batch.add(token, args.input + step, sequence, 1)
        tokens = batch.run(context)
    return first, time.monotonic() - start


def main():
    global VOCABULARY           # pylint: disable=global-variable-undefined
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("seqs", "input", "output", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--kv", choices=("f16", "q8_0"), default="f16")
    args = parser.parse_args()
    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    keep = silent(lambda level, text, arg: None)
    ll.llama_log_set(ctypes.cast(keep, ll.llama_log_callback), ctypes.c_void_p(0))
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(args.model.encode(), ll.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp does not load {args.model}")
    VOCABULARY = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
    draw = random.Random(0)
    prompts = [[draw.randrange(1000, 40000) for _ in range(args.input)] for _ in range(args.seqs)]
    context = context_of(model, args)
    first, last = answer(context, args, prompts)
    decoded = args.seqs * (args.output - 1)
    print(json.dumps({
        "prefill_tok_s": args.seqs * args.input / first,
        "decode_tok_s": decoded / (last - first) if decoded else None,
        "output_tok_s": args.seqs * args.output / last,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "version": "llama-cpp-python " + ll.__version__}))


if __name__ == "__main__":
    main()
