#!/usr/bin/env python3
"""tests/list_ctest.py BUILD: ctest's list of tests, one a line, for a shell loop.

    name TAB time limit in seconds TAB labels (- for none) TAB command for bash -c

The command changes to the test's folder and sets its environment, as ctest would.  A test whose
program was not built gets a command that says so and fails.
"""
import json
import shlex
import subprocess
import sys


def line(test):
    properties = {entry["name"]: entry["value"] for entry in test.get("properties", [])}
    if "command" in test:
        words = ["env", *properties.get("ENVIRONMENT", []), *test["command"]]
        command = f"cd {shlex.quote(properties['WORKING_DIRECTORY'])} && exec {shlex.join(words)}"
    else:
        command = "echo 'the program was not built'; exit 1"
    limit = str(int(properties.get("TIMEOUT", 600)))
    labels = " ".join(properties.get("LABELS", [])) or "-"    # `read` takes two TABs as one
    return "\t".join([test["name"], limit, labels, command])


def main(build):
    asked = subprocess.run(["ctest", "--test-dir", build, "--show-only=json-v1"], check=True,
                           stdout=subprocess.PIPE)
    tests = json.loads(asked.stdout)["tests"]
    for test in tests:
        print(line(test))
    return 0 if tests else "list_ctest.py: error: no tests in " + build


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
