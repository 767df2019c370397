#!/usr/bin/env python3
"""A trace through a reference: what `sheaf lab` does, in the same layout of files.

    lab.py METHOD --trace IN.safetensors --output OUT.safetensors [KEY=VALUE ...]
    lab.py make   --output IN.safetensors seed=1 prompt=200 decode=50 [KEY=VALUE ...]

METHOD: none, window, razor_attention, ems, xkv.  Values are JSON, or else strings; keys are the
method's options and element_bytes (of the cache's type), for `make` those of attention.make_trace.
"""
import argparse
import json
import sys

import attention
import ems
import razor_attention
import window
import xkv

RUN = {"none": lambda trace, options, element_bytes: attention.run_exact(trace, element_bytes),
       "window": window.run, "razor_attention": razor_attention.run, "ems": ems.run,
       "xkv": xkv.run}


def value_of(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def main(words):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["make", *RUN])
    parser.add_argument("--trace")
    parser.add_argument("--output", required=True)
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE")
    told = parser.parse_intermixed_args(words)
    options = {key: value_of(text) for key, _, text in (word.partition("=")
                                                        for word in told.options)}
    if told.method == "make":
        attention.save_trace(told.output, attention.make_trace(**options))
        return 0
    if not told.trace:
        parser.error("--trace is missing")
    element_bytes = options.pop("element_bytes", 4)
    try:
        result = RUN[told.method](attention.load_trace(told.trace), options, element_bytes)
    except ValueError as error:
        print(f"lab.py: error: {error}", file=sys.stderr)
        return 2
    result.save(told.output)
    print(json.dumps(result.stats))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
