"""What tests/quality tells of xkv, from results that are made up, so that the figures are known.

Shown: lines of the log come to the stack and layer that they are of; errors of layers and texts add
up by squares; the ratio at which two curves cross; the order of widths; one text has no interval.
Needs no build, no model.
"""
# cores: 1
import os
import sys

import job

sys.path.insert(0, os.path.join(job.ROOT, "tests/quality"))
import measure  # pylint: disable=import-error,wrong-import-position
import report  # pylint: disable=import-error,wrong-import-position
import report_xkv  # pylint: disable=import-error,wrong-import-position

TOKENS = 1000


def run_of(nat, fraction=0.5):
    """A run whose ln ppl is so much above the exact cache's 3 nat."""
    return {"kv_bytes_stored": fraction * 1e6, "kv_bytes_exact": 1e6, "kv_bytes_stored_end": 1e6,
            "kv_bytes_exact_end": 2e6, "sequences": [{
                "nll": TOKENS * (3 + nat), "kl": TOKENS * abs(nat), "agree": 900,
                "scored_tokens": TOKENS}]}


def result(kind, text, lost, length=2000):
    return {"kind": kind, "length": length, "name": text, "package": "some", "stacks": list(lost),
            "eval": {"exact": run_of(0, 1), "runs": [run_of(nat) for nat in lost.values()]}}


def check_log(tally):
    lines = "".join(f"sheaf: debug: sequence {256 + stack}, layer {layer}, {kind}: rank 3 of 9 "
                    f"tokens x 8 columns leaves 0.{stack}{layer}0000 of the norm {10 * stack}\n"
                    for kind in ("keys", "values") for layer in (1, 0) for stack in (2, 1))
    found = measure.losses(lines + "sheaf: info: nothing\n", {"one": "", "two": ""})
    tally.check("losses of two stacks", found, {
        "one": {kind: [[10, 0.10], [10, 0.11]] for kind in ("keys", "values")},
        "two": {kind: [[20, 0.20], [20, 0.21]] for kind in ("keys", "values")}})


def check_errors(tally):
    def of(keys):
        return {"loss": {"xkv(W=4) 1/1": {"keys": keys},
                         "xkv(W=1) 1/1": {"keys": [[norm, 0.55] for norm, _ in keys]}}}
    results = [of([[3, 0.5], [4, 0.5]]), of([[5, 0.5], [10, 0.6]])]
    wanted = ((9 + 16 + 25) * 0.25 + 36) / (9 + 16 + 25 + 100)
    tally.true("errors add up by squares", abs(
        report_xkv.error_of(results, "xkv(W=4) 1/1", "keys") ** 2 - wanted) < 1e-12)
    tally.check("layers that lose less", report_xkv.layers_won(
        results, "xkv(W=4) 1/1", "xkv(W=1) 1/1", "keys"), 0.75)


def check_crossing(tally):
    """xkv at 0.01 everywhere and a window that loses 0 at 2 and 0.02 at 8: they cross at 4."""
    results = []
    for text in ("a", "b"):
        results.append(result("xkv", text, {"xkv(W=4) 1/2": 0.01, "xkv(W=4) 1/8": 0.01}))
        results.append(result("plain", text, {"window 1/2": 0, "window 1/8": 0.02}))
    of = report.Texts(results, 2000, {"xkv", "plain"})
    curves, names = report_xkv.curves_of(of)
    tally.check("texts of the curves", names, ["a", "b"])
    found, above = report_xkv.crossing(of, curves["xkv(W=4)"], curves["window"], names)
    tally.true("they cross once, at 4, behind which xkv is better",
               len(found) == 1 and abs(found[0][0] - 4) < 1e-9 and not found[0][1] and not above,
               str(found))
    part = report_xkv.crossover_part(of, "picture.svg")
    tally.true("and the page says so", "cross at a ratio of 4.00, behind which xkv is better" in
               part and "too few for a verdict" in part and "picture.svg" in part, part)


def check_widths(tally):
    lost = {f"xkv(W={width}) 1/4": nat for width, nat in ((1, 0.3), (2, 0.2), (4, 0.15))}
    one = report_xkv.widths_part(report.Texts([result("xkv", "a", lost)], 2000, {"xkv"}))
    tally.true("one text: differences without intervals", all(
        words in one for words in ("-0.1000 [-]", "-0.0500 [-]", "+0.3000 [-]")), one)
    many = [result("xkv", str(i), lost) for i in range(8)]
    part = report_xkv.widths_part(report.Texts(many, 2000, {"xkv"}))
    tally.true("eight texts: with them, and no word of too few",
               "-0.1000 [-0.1000, -0.1000]" in part and "too few" not in part, part)
    empty = report.Texts([], 2000, {"xkv"})
    tally.true("nothing is measured", "Not measured yet" in report_xkv.widths_part(empty) and
               "Not measured yet" in report_xkv.crossover_part(empty, "p"))


def main():
    tally = job.Tally("quality_xkv")
    check_log(tally)
    check_errors(tally)
    check_crossing(tally)
    check_widths(tally)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
