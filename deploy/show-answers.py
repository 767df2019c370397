#!/usr/bin/env python3
"""deploy/show-answers.py INPUT.jsonl OUTPUT.jsonl: prints each question with its answer, then sums.

Reads the OpenAI batch form and what sheaf adds to it (body.sheaf, the receipt).  Exit code 1 when
a record of the input has no answer.
"""
import json
import os
import sys
import textwrap


def read_lines(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def show(label, text):
    lines = [part for line in text.strip().split("\n") for part in textwrap.wrap(line, 88) or [""]]
    for number, line in enumerate(lines or [""]):
        print(f"{label if number == 0 else '':>3} {line}".rstrip())


def question(record):
    body = record["body"]
    return body["messages"][-1]["content"] if "messages" in body else str(body["prompt"])


def main(input_path, output_path):
    answers = {record["custom_id"]: record for record in read_lines(output_path)}
    prompt_tokens = output_tokens = exact = stored = missing = 0
    for record in read_lines(input_path):
        answer = answers.get(record["custom_id"])
        show("Q:", question(record))
        if answer is None or answer["response"] is None:
            missing += 1
            error = (answer or {}).get("error") or {"message": "no record in the output"}
            show("!:", error["message"])
        else:
            body = answer["response"]["body"]
            choice = body["choices"][0]
            show("A:", choice["message"]["content"] if "message" in choice else choice["text"])
            prompt_tokens += body["usage"]["prompt_tokens"]
            output_tokens += body["usage"]["completion_tokens"]
            exact += body.get("sheaf", {}).get("kv_bytes_exact", 0)
            stored += body.get("sheaf", {}).get("kv_bytes_stored", 0)
        print()
    print(f"{len(answers) - missing} answers, {missing} without one; "
          f"{prompt_tokens} prompt tokens, {output_tokens} output tokens")
    print(f"KV cache of all records: {exact} bytes exact, {stored} bytes stored")
    print(f"answers: {output_path}\nreceipt of the run: {os.path.join(output_path + '.run', '')}")
    return 1 if missing else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__.split("\n", maxsplit=1)[0])
    sys.exit(main(*sys.argv[1:]))
