#!/usr/bin/env python3
"""tests/emulation/nvcc.py [--write] TABLE REPORT...: registers and shared memory of every kernel,
as ptxas reports them, against the table of limits.

A kernel that takes more registers than its limit, other shared memory than its line says, or has no
line, fails; so does a line of a compiled architecture that no kernel answers to.  --write makes the
table from the reports."""
import re
import subprocess
import sys


def kernels_of(paths):
    """{(arch, kernel): (registers, shared bytes)}"""
    found, key = {}, None
    for path in paths:
        with open(path, encoding="utf-8") as report:
            for line in report:
                entry = re.search(r"Compiling entry function '(\S+)' for 'sm_(\w+)'", line)
                if entry:
                    key = (entry[2], entry[1])
                used = re.search(r"Used (\d+) registers", line)
                if used and key:
                    shared = re.search(r"(\d+) bytes smem", line)
                    found[key] = (int(used[1]), int(shared[1]) if shared else 0)
    names = sorted({kernel for _, kernel in found})
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True,
                           check=True).stdout.split("\n")
    short = {}
    for name, text in zip(names, plain):
        text = re.sub(r"\(sf_dtype\)|^void ", "", text)
        short[name] = text.split("(")[0].replace(" ", "")
    return {(arch, short[kernel]): value for (arch, kernel), value in found.items()}


def main():
    arguments = sys.argv[1:]
    write = arguments[:1] == ["--write"]
    table, reports = arguments[write], arguments[write + 1:]
    found = kernels_of(reports)
    if not found:
        sys.exit("no report of a kernel")
    if write:
        with open(table, "w", encoding="utf-8") as out:
            out.write("# arch kernel registers shared: limits of nvcc.py, which wrote them\n")
            for (arch, kernel), (registers, shared) in sorted(found.items()):
                out.write(f"{arch} {kernel} {registers} {shared}\n")
        return
    limits = {}
    with open(table, encoding="utf-8") as lines:
        for line in lines:
            if not line.startswith("#"):
                arch, kernel, registers, shared = line.split()
                limits[arch, kernel] = (int(registers), int(shared))
    wrong = 0
    archs = {arch for arch, _ in found}
    for key in sorted(set(found) | {k for k in limits if k[0] in archs}):
        is_, limit = found.get(key), limits.get(key)
        if is_ is None or limit is None or is_[0] > limit[0] or is_[1] != limit[1]:
            print(f"  sm_{key[0]} {key[1]}: registers and shared bytes {is_}, limits {limit}")
            wrong += 1
    sys.exit(1 if wrong else 0)


main()
