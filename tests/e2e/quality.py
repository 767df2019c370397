"""tests/quality/measure.py at its smallest: two short texts at a quarter of the bytes.

Shown: it ends with a document that names every method, with as many texts as were measured and
bytes within 2 % of the quarter; a second call measures nothing again and writes the same; with one
result gone, only that is measured; a profile with wrong lines is refused.  With --long the texts
have their real length.
"""
# cores: 1
# not with --quick
import glob
import os
import re
import subprocess
import sys

import job

MEASURE = os.path.join(job.ROOT, "tests/quality/measure.py")
LENGTH = "2000" if job.LEVEL == "long" else "320"
PROFILE = """retrieval_heads:
  - [3, 1]      # as sheaf calibrate writes it
  - [9, 0]
scores:
  - {layer: 3, head: 1, induction: [0.1, 0.2, 0.3], echo: [0.0, 0.1, 0.1]}
  - {layer: 9, head: 0, induction: [0.1, 0.2, 0.5], echo: [0.0, 0.1, 0.1]}
"""


def measure(folder, profile):
    done = subprocess.run([sys.executable, MEASURE, "--quick", "--sheaf", job.SHEAF, "--model",
                           job.MODEL, "--lengths", LENGTH, "--results", folder.file("kept"),
                           "--profile", profile, "--output", folder.file("quality.md")],
                          capture_output=True, text=True, env=job.environment(), check=False)
    page = ""
    if os.path.exists(folder.file("quality.md")):
        with open(folder.file("quality.md"), encoding="utf-8") as file:
            page = file.read()
    return done, page


def check_page(tally, page):
    for method in ("window", "ems", "razor_attention", "xkv(W=1)", "xkv(W=2)", "xkv(W=4)"):
        found = re.search(rf"^\| {re.escape(method)} \| 2 \| (0\.\d+) \| .*$", page, re.M)
        if tally.true(f"a row of {method}", found is not None, page):
            tally.true(f"{method}: bytes", abs(float(found[1]) - 0.25) < 0.005, found[1])
            tally.check(f"{method}: no verdict on two texts", "too few texts" in found[0],
                        method != "window")


def main():
    tally = job.Tally("quality")
    job.need_model(tally)
    folder = job.Folder()
    profile = folder.file("profile.yaml", PROFILE)
    done, page = measure(folder, profile)
    if "is installed" in done.stderr:
        tally.skip("all", done.stderr.strip())
        tally.end()
    if tally.check("exit code", done.returncode, 0):
        check_page(tally, page)
        kept = sorted(glob.glob(folder.file("kept/*.json")))
        tally.check("results", len(kept), 6)
        again, same = measure(folder, profile)
        tally.check("again: the same, without measuring",
                    (again.returncode, same, again.stdout.count(" s  ")), (0, page, 0))
        os.unlink(kept[0])
        again, _ = measure(folder, profile)
        tally.check("one is gone: one is measured",
                    (again.returncode, again.stdout.count(" s  ")), (0, 1))
        tally.check("the same names", sorted(glob.glob(folder.file("kept/*.json"))), kept)
        bad, _ = measure(folder, folder.file("bad.yaml", "retrieval_heads: none\n"))
        tally.true("a wrong profile", bad.returncode != 0 and "retrieval_heads" in bad.stderr,
                   bad.stderr)
    else:
        print(done.stderr[-2000:])
    folder.remove()
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
