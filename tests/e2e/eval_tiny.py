"""`sheaf eval` on a tiny model, small enough for the sanitizers.

The llama of tests/data/tiny gets a tokenizer of 256 byte tokens without merges, so a text of n
bytes has n tokens.  Shown: the exact cache, a window that is never reached and one that is, on one
rank and on two that share out the heads: the wide window is the exact cache to the last digit, the
narrow one stores what its window says and differs; two ranks find what one finds.
"""
# cores: 1
import json
import os
import struct
import sys

import job
import tiny

TEXT = "the boat left the harbour at dawn and came back with the tide, "
TOKENS, PROMPT, KEPT = 60, 40, 12


def spelling():
    """The 256 bytes as a byte-level vocabulary spells them: what prints is itself."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names, next_free = {}, 256
    for byte in range(256):
        names[byte] = chr(byte) if byte in plain else chr(next_free)
        next_free += byte not in plain
    return [names[byte] for byte in range(256)]


def array_of(name, values):
    if values and isinstance(values[0], int):
        return tiny.text(name) + struct.pack(f"<IIQ{len(values)}i", 9, 5, len(values), *values)
    words = b"".join(struct.pack("<Q", len(word.encode())) + word.encode() for word in values)
    return tiny.text(name) + struct.pack("<IIQ", 9, 8, len(values)) + words


def tokenizer():
    return [tiny.key("tokenizer.ggml.model", "gpt2"), tiny.key("tokenizer.ggml.pre", "smollm"),
            tiny.key("tokenizer.ggml.bos_token_id", 1), tiny.key("tokenizer.ggml.eos_token_id", 2),
            array_of("tokenizer.ggml.tokens", spelling()),
            array_of("tokenizer.ggml.token_type", [1] * 256),
            array_of("tokenizer.ggml.merges", [])]


def evaluate(tally, folder, model, ranks):
    names = []
    for recent in [None, 100, KEPT - 2]:
        extra = "" if recent is None else ("kv_cache: {methods: [{name: window, num_sink_tokens: "
                                           f"2, recent_tokens: {recent}}}]}}\n")
        config = job.config("f32", ranks, 1, 1, True, 4, extra).replace(job.MODEL, model)
        config = config.replace("max_model_len: 2048", "max_model_len: 128")
        names.append(folder.file(f"job{ranks}-{recent}.yaml", config))
    text = folder.file("text.txt", TEXT * 4)
    done = job.sheaf(ranks, ["eval", *names, "--text", text, "--len", str(TOKENS), "--count", "3",
                             "--prompt-len", str(PROMPT), "--json", "-"], 120)
    if not tally.check(f"{ranks} ranks: exit code", done.code, 0):
        print(done.stderr)
        return None
    return json.loads(done.stdout)


def main():
    tally = job.Tally("eval_tiny")
    if not os.access(job.SHEAF, os.X_OK):
        tally.true("there is a build", False, f"no {job.SHEAF}; SHEAF_BUILD names the build folder")
        tally.end()
    folder = job.Folder()
    model = folder.file("llama.gguf")
    tiny.write_gguf(os.path.join(job.ROOT, "tests/data/tiny/llama"), model, tokenizer())
    found = {ranks: evaluate(tally, folder, model, ranks)
             for ranks in ([1, 2] if job.has_ranks() else [1])}
    folder.remove()
    for ranks, measured in found.items():
        if measured is None:
            continue
        what, exact = f"{ranks} ranks", measured["exact"]
        wide, narrow = measured["runs"][-2:]
        tally.check(f"{what}: tokens", measured["tokens"], 3 * TOKENS)
        tally.true(f"{what}: a model that knows nothing", exact["perplexity"] > 50, str(exact))
        tally.check(f"{what}: the wide window is exact", (wide["perplexity"], wide["kl_mean"],
                                                          wide["kv_fraction"]),
                    (exact["perplexity"], 0, 1))
        tally.true(f"{what}: the narrow one differs", narrow["kl_mean"] > 0, str(narrow))
        tally.check(f"{what}: it stores its window", narrow["kv_fraction"], KEPT / PROMPT)
    if found.get(2) and found[1]:
        for one, two in zip(found[1]["runs"], found[2]["runs"]):
            tally.check(f"two ranks as one: {one['methods']}", two["perplexity"], one["perplexity"])
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
