"""Whole runs and a throughput on a real GPU, see accept.sh.

    python3 tests/gpu/accept.py REPORT [DEVICE]

DEVICE is cuda; with cuda-emulated the script itself can be tried without a GPU, with a small model
in the bench.  Ranks share the GPUs that are there.
"""
import array
import json
import os
import random
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../e2e"))
# pylint: disable=wrong-import-position
import emulated
import job
import tiny

LIMIT_S = 150
# Of the bench: a llama with grouped heads.
LARGE = {"layers": 24, "d": 1024, "ffn": 2816, "q": 16, "kv": 4, "head": 64, "vocab": 32000}
SMALL = {"layers": 2, "d": 64, "ffn": 96, "q": 4, "kv": 2, "head": 16, "vocab": 256}
F32, F16 = 0, 1                                 # types of GGUF tensors


def shapes_of(size):
    """Name -> (rows, columns); a vector has 0 rows."""
    d, ffn, head = size["d"], size["ffn"], size["head"]
    found = {"token_embd": (size["vocab"], d), "output_norm": (0, d)}
    for layer in range(size["layers"]):
        name = f"blk.{layer}"
        found.update({
            f"{name}.attn_norm": (0, d), f"{name}.ffn_norm": (0, d),
            f"{name}.attn_q": (size["q"] * head, d), f"{name}.attn_k": (size["kv"] * head, d),
            f"{name}.attn_v": (size["kv"] * head, d), f"{name}.attn_output": (d, size["q"] * head),
            f"{name}.ffn_gate": (ffn, d), f"{name}.ffn_up": (ffn, d), f"{name}.ffn_down": (d, ffn)})
    return found


def write_model(path, size):
    """Random weights: one block of them over and over, from another place for each tensor."""
    rng = random.Random(5)
    block = struct.pack("<65536e", *(rng.gauss(0, 0.03) for _ in range(65536)))
    keys = [("general.architecture", "llama"), ("llama.block_count", size["layers"]),
            ("llama.embedding_length", size["d"]), ("llama.context_length", 4096),
            ("llama.feed_forward_length", size["ffn"]), ("llama.attention.head_count", size["q"]),
            ("llama.attention.head_count_kv", size["kv"]),
            ("llama.attention.key_length", size["head"]),
            ("llama.attention.value_length", size["head"]),
            ("llama.attention.layer_norm_rms_epsilon", 1e-5), ("llama.rope.freq_base", 10000.0),
            ("llama.vocab_size", size["vocab"])]
    shapes = shapes_of(size)
    head, at, bytes_of = b"", 0, {}
    for name, (rows, cols) in shapes.items():
        dims = (cols, rows) if rows else (cols,)
        bytes_of[name] = rows * cols * 2 if rows else cols * 4
        head += tiny.text(f"{name}.weight") + struct.pack(
            f"<I{len(dims)}QIQ", len(dims), *dims, F16 if rows else F32, at)
        at += -(-bytes_of[name] // tiny.ALIGN) * tiny.ALIGN
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(keys)) + b"".join(
        tiny.key(*entry) for entry in keys) + head
    with open(path, "wb") as file:
        file.write(head + bytes(-len(head) % tiny.ALIGN))
        for number, (name, (rows, cols)) in enumerate(shapes.items()):
            begin = number * 7919 * 2 % len(block)
            left = bytes_of[name]
            if not rows:
                file.write(array.array("f", [1.0] * cols).tobytes())
            while rows and left > 0:
                part = block[begin:begin + left]
                file.write(part)
                left, begin = left - len(part), 0
            file.write(bytes(-bytes_of[name] % tiny.ALIGN))


def bench(tally, folder, device, report):
    small = device != "cuda"
    path, output = folder.file("bench.gguf"), folder.file("bench.json")
    write_model(path, SMALL if small else LARGE)
    names = []
    for methods in ("", ", methods: [{name: window, num_sink_tokens: 4, recent_tokens: 128}]"):
        text = job.config("f32" if small else "bf16", 1, 1, 1, False, 64, f"device: {device}\n"
                          f"kv_cache: {{memory: {'8MiB' if small else '4GiB'}{methods}}}\n")
        names.append(folder.file(f"bench{len(names)}.yaml", text.replace(job.MODEL, path)))
    sizes = ["--max-num-seqs", "2", "--input-len", "12", "--output-len", "4"] if small else \
        ["--max-num-seqs", "1,16,64", "--input-len", "256", "--output-len", "64"]
    start = time.monotonic()
    done = job.sheaf(1, ["bench", *names, *sizes, "--json", output], LIMIT_S)
    report["bench_seconds"] = time.monotonic() - start
    if not tally.check("bench: exit code", done.code, 0):
        print(done.stderr[-3000:])
        report["bench_stderr"] = done.stderr[-3000:]
    if os.path.exists(output):
        with open(output, encoding="utf-8") as file:
            report["bench"] = json.load(file)
        for run in report["bench"]["runs"]:
            print(f"  bench {run['methods']}, {run['max_num_seqs']} at once: "
                  f"{run['prefill_tok_s']:.0f} prompt tok/s, {run['decode_tok_s']:.0f} tok/s, "
                  f"step {run['step_ms']:.3f} ms")


def phase(tally, report, name, work, *arguments):
    """One part; what goes wrong in it is a failure of it alone."""
    start, failed = time.monotonic(), tally.failed
    try:
        work(tally, *arguments)
    except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError) as error:
        tally.true(name, False, repr(error))
    report["parts"][name] = {"seconds": time.monotonic() - start, "failed": tally.failed - failed}
    print(f"  {name}: {time.monotonic() - start:.1f} s, {tally.failed - failed} failed", flush=True)


def main():
    where = sys.argv[1] if len(sys.argv) > 1 else "accept.json"
    device = sys.argv[2] if len(sys.argv) > 2 else "cuda"
    tally, report = job.Tally("accept"), {"device": device, "parts": {}}
    doctor = job.sheaf(1, ["doctor"], 60)
    report["doctor"] = doctor.stdout
    print(doctor.stdout, end="")
    if device == "cuda":
        tally.true("doctor: lists a GPU", any(
            line.startswith("GPUs") and "none" not in line for line in doctor.stdout.splitlines()))
    folder = job.Folder()
    for name in ("llama", "qwen2", "mistral") if device == "cuda" else ("llama",):
        rig = emulated.Rig(name)
        phase(tally, report, f"{name}: layouts", emulated.check_exact, rig, device)
        if name == "llama":             # the others differ in what a layer is, not in these
            phase(tally, report, "methods", emulated.check_methods, rig, device)
            phase(tally, report, "deterministic", emulated.check_fixed, rig, device)
        rig.folder.remove()
    rig = emulated.Rig()
    phase(tally, report, "resume", emulated.check_resume, rig, device)
    phase(tally, report, "bench", bench, folder, device, report)
    rig.folder.remove()
    folder.remove()
    report["passed"], report["failed"], report["skipped"] = (tally.passed, tally.failed,
                                                             tally.skipped)
    with open(where, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
