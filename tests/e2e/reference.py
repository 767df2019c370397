"""The references of the methods (tests/reference) against their descriptions.

Runs tests/reference/selfcheck.py, which needs numpy, with the first interpreter that has it: this
one, the system's, the one in PATH.  Needs neither ranks nor a model nor a build.
"""
# cores: 1
import os
import shutil
import subprocess
import sys

import job

SELFCHECK = os.path.join(job.ROOT, "tests/reference/selfcheck.py")


def with_numpy():
    """An interpreter that can import numpy, or None."""
    for python in (sys.executable, "/usr/bin/python3", shutil.which("python3")):
        if python and os.access(python, os.X_OK) and subprocess.run(
                [python, "-c", "import numpy"], stderr=subprocess.DEVNULL,
                check=False).returncode == 0:
            return python
    return None


def need_numpy(tally):
    """Such an interpreter; without one the script ends here, skipped."""
    python = with_numpy()
    if python is None:
        tally.skip("all", "no Python here has numpy (Debian: python3-numpy)")
        tally.end()
    return python


def run_with_numpy(tally):
    """Goes on only in an interpreter that can import numpy."""
    python = need_numpy(tally)
    if python != sys.executable:
        sys.stdout.flush()
        os.execv(python, [python, *sys.argv])


def main():
    python = need_numpy(job.Tally("reference"))
    sys.stdout.flush()
    sys.exit(subprocess.run([python, "-B", SELFCHECK], check=False).returncode)


if __name__ == "__main__":
    main()
