#!/usr/bin/env python3
"""tests/record.py LOGS: writes docs/measured.md from the figures that tests have printed.

A test prints what it measured in lines that begin with 'figure: ' (after blanks); tests/run.sh
--long calls this at its end.  LOGS is the folder of their logs; what ran under a sanitizer is left
out.
"""
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = os.path.join(ROOT, "docs/measured.md")
HEAD = """# Measured

<!-- Written by `tests/run.sh --long`; edit the tests, not this page. -->

Figures that tests printed in one run on one machine. Speeds and times are of that machine, which
other work may have shared; what a test demands is in its first comment.

"""


def machine():
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        model = re.search(r"^model name\s*: (.*)$", file.read(), re.M)
    doctor = subprocess.run([os.path.join(ROOT, "build/dev/sheaf"), "--version"], check=False,
                            stdout=subprocess.PIPE, text=True).stdout.strip()
    return (f"- processor: {model[1] if model else 'unknown'}, {len(os.sched_getaffinity(0))} "
            f"cores for the tests\n- {doctor}\n")


def figures(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return [m[1].strip() for m in re.finditer(r"^ *figure: (.*)$", file.read(), re.M)]


def main(folder):
    text = HEAD + machine()
    for name in sorted(os.listdir(folder)):
        wanted = name.endswith(".log") and not name.startswith(("asan-", "tsan-"))
        lines = figures(os.path.join(folder, name)) if wanted else []
        if lines:
            text += f"\n## {name[:-4]}\n\n" + "".join(f"- {line}\n" for line in lines)
    with open(TARGET, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main(sys.argv[1])
