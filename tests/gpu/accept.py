"""Whole runs and a throughput on a real GPU, see accept.sh.

    python3 tests/gpu/accept.py REPORT [DEVICE]

DEVICE is cuda; with cuda-emulated the script itself can be tried without a GPU, with a small model
in the bench.  Ranks share the GPUs that are there.
"""
import json
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../e2e"))
# pylint: disable=wrong-import-position
import emulated
import job
import made_model

LIMIT_S = 150


def bench(tally, folder, device, report):
    small = device != "cuda"
    path, output = folder.file("bench.gguf"), folder.file("bench.json")
    made_model.write(path, "tiny" if small else "1b")
    names = []
    for methods in ("", ", methods: [{name: window, num_sink_tokens: 4, recent_tokens: 124}]"):
        text = job.config("f32" if small else "bf16", 1, 1, 1, False, 64, f"device: {device}\n"
                          f"kv_cache: {{memory: {'8MiB' if small else '16GiB'}{methods}}}\n")
        names.append(folder.file(f"bench{len(names)}.yaml", text.replace(job.MODEL, path)))
    sizes = ["--max-num-seqs", "2", "--input-len", "12", "--output-len", "4"] if small else \
        ["--max-num-seqs", "64,256", "--num-prompts", "256", "--input-len", "1024",
         "--output-len", "64"]
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
            phase(tally, report, "choices", emulated.check_choices, rig, device)
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
