#!/usr/bin/env python3
"""tests/walkthrough/extract.py PAGE ROOT OUT: the files that a page of docs/ shows, as files.

A fenced block goes to OUT/PATH when its first line names PATH:

    ```c      /* PATH: ...          the file
    ```yaml   # PATH                the file
    ```diff   --- PATH              the file of that name under ROOT, changed so; each hunk must fit
                                    at exactly one place
    ```console $ COMMAND            all of them, in one file: OUT/console

A page that shows nothing, or a hunk that does not fit, is an error.
"""
import os
import re
import sys

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
PATH = {"c": r"/\* (\S+?):", "yaml": r"# (\S+)", "diff": r"--- (\S+)"}


def patched(root, path, block):
    with open(os.path.join(root, path), encoding="utf-8") as file:
        text = file.read()
    for hunk in block.split("@@\n")[1:]:
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] != "+")
        new = "".join(line[1:] for line in lines if line[0] != "-")
        if text.count(old) != 1:
            sys.exit(f"extract.py: error: {path} has {text.count(old)} places for\n{old}")
        text = text.replace(old, new)
    return text


def files_of(page, root):
    found = {}
    for kind, block in BLOCK.findall(page):
        if kind == "console":
            found["console"] = found.get("console", "") + block
            continue
        name = re.match(PATH[kind], block) if kind in PATH else None
        if name is None or name[1] in found:
            sys.exit(f"extract.py: error: a {kind} block that names no file of its own:\n{block}")
        found[name[1]] = patched(root, name[1], block) if kind == "diff" else block
    return found


def main(page, root, out):
    with open(page, encoding="utf-8") as file:
        found = files_of(file.read(), root)
    if not found:
        sys.exit(f"extract.py: error: {page} shows no file")
    for path, text in found.items():
        name = os.path.join(out, path)
        os.makedirs(os.path.dirname(name), exist_ok=True)
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
