"""A long input costs next to nothing.

Jobs over 1,000 and over 1,000,000 records run with a tiny model until some are answered and are
then told to stop (USR1): exit code 75.  Shown: the long one gives its first answers in seconds; its
peak of memory is at most 32 bytes a line above the short one's, which includes the check for equal
ids; resuming it keeps within that too; and a custom_id that stands first and last of a million is
refused before the start, with both lines.
"""
# not with --quick
import json
import os
import signal
import subprocess
import sys
import time

import job
from memory import ranks_below
from tiny import write_gguf

SHORT, LONG, BYTES_A_LINE, FIRST_S = 1000, 1000000, 32, 60


def write_input(path, records, last_id=None):
    with open(path, "w", encoding="ascii") as file:
        for i in range(records):
            name = last_id if last_id and i == records - 1 else f"record-{i:08d}"
            file.write(f'{{"custom_id":"{name}","method":"POST","url":"/v1/completions","body":'
                       f'{{"prompt":[5,6,{7 + i % 50}],"max_tokens":2}}}}\n')


def peak_bytes(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def until_answered(config, given, output, resume):
    """Seconds to the first new answers, peak memory then, exit code after USR1."""
    line = job.command(1, ["run", config, "--input", given, "--output", output] +
                       (["--resume"] if resume else []), 300)
    before = os.path.getsize(output) if os.path.exists(output) else 0
    began = time.monotonic()
    # pylint: disable=consider-using-with
    process = subprocess.Popen(line, env=job.environment(), stderr=subprocess.PIPE, text=True,
                               stdin=subprocess.DEVNULL)
    while process.poll() is None and time.monotonic() - began < 200:
        if os.path.exists(output) and os.path.getsize(output) > before + 20000:
            break
        time.sleep(0.02)
    took = time.monotonic() - began
    pid = ranks_below(process.pid).get(0)
    peak = peak_bytes(pid) if pid else 0
    if pid:
        os.kill(pid, signal.SIGUSR1)
    _, stderr = process.communicate(timeout=60)
    return took, peak, process.returncode, stderr


def main():
    tally = job.Tally("million")
    if not os.access(job.SHEAF, os.X_OK):
        tally.true("there is a build", False, f"no {job.SHEAF}")
        tally.end()
    folder = job.Folder()
    model = folder.file("llama.gguf")
    write_gguf(os.path.join(job.ROOT, "tests/data/tiny/llama"), model)
    config = folder.file("job.yaml", job.config("f32", 1, 1, 1, False, 32).replace(
        job.MODEL, model).replace("max_model_len: 2048", "max_model_len: 512"))
    peaks = {}
    for records in (SHORT, LONG):
        given, output = folder.file(f"in{records}.jsonl"), folder.file(f"out{records}.jsonl")
        write_input(given, records)
        for resume in (False, True):
            what = f"{records} records{', resumed' if resume else ''}"
            took, peak, code, stderr = until_answered(config, given, output, resume)
            print(f"  figure: {what}: first answers after {took:.1f} s, "
                  f"peak {peak / 2 ** 20:.1f} MiB")
            tally.true(f"{what}: stopped or done", code in (0, 75), f"{code}: {stderr[-500:]}")
            tally.true(f"{what}: first answers", took < FIRST_S, f"after {took:.1f} s")
            peaks[records, resume] = peak
            with open(output, encoding="utf-8") as file:
                tally.true(f"{what}: whole lines", all(json.loads(line) for line in file))
    for resume in (False, True):
        more = (peaks[LONG, resume] - peaks[SHORT, resume]) / (LONG - SHORT)
        print(f"  figure: memory{' of a resume' if resume else ''}: {more:.1f} bytes a line")
        tally.true(f"memory a line{', resumed' if resume else ''}", more <= BYTES_A_LINE,
                   f"{more:.1f} bytes")
    twice = folder.file("twice.jsonl")
    write_input(twice, LONG, "record-00000000")
    began = time.monotonic()
    done = job.sheaf(1, ["run", config, "--input", twice, "--output", folder.file("none.jsonl")])
    print(f"  figure: two equal ids of {LONG} found after {time.monotonic() - began:.1f} s")
    tally.check("equal ids: exit code", done.code, 2)
    lines = done.error_lines()
    tally.true("equal ids: one line with both", len(lines) == 1 and str(LONG) in lines[0],
               done.stderr[-500:])
    folder.remove()
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
