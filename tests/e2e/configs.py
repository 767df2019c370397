"""Every shipped configuration does what its first comment says.

The comment block of each file under configs/ has a line
    # test: ranks N, input FILE, exit CODE, answers COUNT
and that is what is run here (paths relative to the repository).
"""
import glob
import json
import os
import re
import sys

import job

LINE = re.compile(r"^# test: ranks (\d+), input (\S+), exit (\d+), answers (\d+)$", re.M)


def main():
    tally = job.Tally("configs")
    if not os.path.exists(job.MODEL):
        tally.skip("all", "the real model is not there (deploy/fetch-model.sh)")
        tally.end()
    paths = sorted(glob.glob(os.path.join(job.ROOT, "configs/**/*.yaml"), recursive=True))
    tally.true("there are configurations", len(paths) > 0)
    for path in paths:
        name = os.path.relpath(path, job.ROOT)
        with open(path, encoding="utf-8") as file:
            found = LINE.search(file.read())
        if not tally.true(f"{name}: has a test line", found is not None, "no '# test:' line"):
            continue
        ranks, given, code, answers = found.groups()
        if int(ranks) > 1 and not job.has_mpi():
            tally.skip(name, "no mpirun")
            continue
        folder = job.Folder()
        output = folder.file("out.jsonl")
        done = job.sheaf(int(ranks), ["run", path, "--input", os.path.join(job.ROOT, given),
                                      "--output", output])
        good = tally.check(f"{name}: exit code", done.code, int(code))
        lines = []
        if os.path.exists(output):
            with open(output, encoding="utf-8") as file:
                lines = [json.loads(line) for line in file]
        good &= tally.check(f"{name}: answers", len(lines), int(answers))
        if not good:
            print(done.stderr)
        folder.remove()
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
