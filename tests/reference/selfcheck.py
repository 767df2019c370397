"""The references against their descriptions: worked examples to the last printed digit, and the
properties that the descriptions promise.  Run by hand or by tests/e2e/reference.py."""
import sys
import traceback

import check_attention
import check_ems
import check_razor
import check_xkv
from attention import np


class Checks:
    def __init__(self):
        self.passed, self.failed, self.case = 0, 0, ""

    def true(self, what, condition, note="it is not so"):
        if condition:
            self.passed += 1
        else:
            self.failed += 1
            print(f"  FAILED {self.case}: {what}: {note}")

    def equal(self, what, actual, expected):
        """Same shape and bits (arrays) or equal (anything else)."""
        if isinstance(actual, np.ndarray) or isinstance(expected, np.ndarray):
            same = np.array_equal(actual, expected)
        else:
            same = actual == expected
        self.true(what, same, f"is {actual!r}, expected {expected!r}")

    def close(self, what, actual, expected, bound):
        actual, expected = np.asarray(actual), np.asarray(expected)
        if actual.shape != expected.shape:
            self.true(what, False, f"shape {actual.shape}, expected {expected.shape}")
            return
        error = float(np.max(np.abs(actual - expected), initial=0))
        self.true(what, error <= bound, f"off by {error:.3g}, at most {bound:.3g}")

    def printed(self, what, actual, expected):
        """`expected` is a string of numbers; each must be `actual` rounded to its digits."""
        words = expected.split()
        told = [f"{value:.{len(word.partition('.')[2])}f}"
                for value, word in zip(np.ravel(actual), words)]
        self.equal(what, told + [""] * (np.size(actual) - len(told)), words)


def main():
    checks = Checks()
    for module in (check_attention, check_razor, check_ems, check_xkv):
        for name, case in sorted(vars(module).items()):
            if not name.startswith("case_"):
                continue
            checks.case = f"{module.__name__[6:]}: {name[5:].replace('_', ' ')}"
            try:
                case(checks)
            except Exception:  # a broken reference must not hide the checks behind it
                checks.true("runs", False, traceback.format_exc())
    print(f"selfcheck: {checks.passed} passed, {checks.failed} failed, 0 skipped")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
