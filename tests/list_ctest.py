#!/usr/bin/env python3
"""tests/list_ctest.py BUILD: ctest's list of tests, one a line, for a shell loop.

    name TAB time limit in seconds TAB cores TAB labels (- for none) TAB command for bash -c

Cores: how many a test needs that may run beside others (PROCESSORS), or `all` where it has to run
alone (RUN_SERIAL).  First come those that run alone, then the others, the longest of them (COST)
first, so that none of these is left for the end.

The command changes to the test's folder and sets its environment, as ctest would.  A test whose
program was not built gets a command that says so and fails.
"""
import json
import shlex
import subprocess
import sys


def properties_of(test):
    return {entry["name"]: entry["value"] for entry in test.get("properties", [])}


def turn(test):
    properties = properties_of(test)
    alone = properties.get("RUN_SERIAL", False)
    return (not alone, 0 if alone else -properties.get("COST", 0))


def line(test):
    properties = properties_of(test)
    if "command" in test:
        words = ["env", *properties.get("ENVIRONMENT", []), *test["command"]]
        command = f"cd {shlex.quote(properties['WORKING_DIRECTORY'])} && exec {shlex.join(words)}"
    else:
        command = "echo 'the program was not built'; exit 1"
    limit = str(int(properties.get("TIMEOUT", 600)))
    cores = "all" if properties.get("RUN_SERIAL") else str(int(properties.get("PROCESSORS", 1)))
    labels = " ".join(properties.get("LABELS", [])) or "-"    # `read` takes two TABs as one
    return "\t".join([test["name"], limit, cores, labels, command])


def main(build):
    asked = subprocess.run(["ctest", "--test-dir", build, "--show-only=json-v1"], check=True,
                           stdout=subprocess.PIPE)
    tests = json.loads(asked.stdout)["tests"]
    for test in sorted(tests, key=turn):
        print(line(test))
    return 0 if tests else "list_ctest.py: error: no tests in " + build


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
