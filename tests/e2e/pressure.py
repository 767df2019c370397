"""Memory pressure: caches are tightened instead of sequences losing their places.

Short answers first, so that the long ones that follow are a surprise and outgrow their promises in
a small cache.  With `tighten_under_pressure` receipts and totals say how often and when, fewer
sequences have to begin again than without it, every answer is whole, and at the end no page is
promised to anybody; on one rank and on two, which act alike.  A job that is told to stop in the
middle of it goes on and answers the rest.  Under run.deterministic it never happens.
"""
import csv
import json
import os
import signal
import subprocess
import time

import job
import tiny

END = 2                                 # the token that ends an answer
SEQS, SHORT, LONG, PROMPT, ANSWER = 8, 40, 12, 60, 400
BUDGET, SINKS, WINDOW, INTERVAL = 100, 4, 16, 16
SLOT = 4 * 2 * (2 * 16 * 4 + 8 + 4)     # 4 layers, 2 heads; 16 + 16 floats, 8 B, the count of ems


def make_records():
    bodies = [(f"short{i}", {"prompt": [3 + i, 7, 9], "max_tokens": ANSWER,
                             "logit_bias": {str(END): 100}}) for i in range(SHORT)]
    bodies += [(f"long{i}", {"prompt": [(3 + i * 7 + j * j) % 250 + 3 for j in range(PROMPT)],
                             "max_tokens": ANSWER, "logit_bias": {str(END): -100}})
               for i in range(LONG)]
    return job.records(bodies)


def config(model, memory, tighten=True, tensor=1, deterministic=False):
    method = (f"{{name: ems, budget_tokens: {BUDGET}, recent_tokens: {WINDOW}, num_sink_tokens: "
              f"{SINKS}, recompress_interval: {INTERVAL}, tighten_under_pressure: "
              f"{'true' if tighten else 'false'}}}")
    text = job.config("f32", tensor, 1, 1, deterministic, SEQS,
                      f"kv_cache: {{memory: {memory}, methods: [{method}]}}\n")
    return text.replace(job.MODEL, model).replace("max_model_len: 2048", "max_model_len: 512")


def totals_of(folder):
    name = next(name for name in os.listdir(folder.path) if name.endswith(".run"))
    with open(os.path.join(folder.path, name, "manifest.json"), encoding="utf-8") as file:
        totals = json.load(file)["totals"]
    with open(os.path.join(folder.path, name, "metrics.csv"), encoding="utf-8") as file:
        return totals, list(csv.DictReader(file))[-1]


def receipts_of(done):
    return {name: answer["response"]["body"]["sheaf"] for name, answer in done.answers.items()}


def check_answers(tally, what, done):
    """Everybody is answered, to the last token."""
    tokens = {name: answer["response"]["body"]["usage"]["completion_tokens"]
              for name, answer in done.answers.items() if answer["response"]}
    tally.check(f"{what}: answers", len(tokens), SHORT + LONG)
    tally.check(f"{what}: tokens of the long ones",
                {tokens.get(f"long{i}") for i in range(LONG)}, {ANSWER})


def one(tally, what, text, ranks=1):
    folder = job.Folder()
    done = job.run(ranks, text, make_records(), folder=folder)
    if not tally.check(f"{what}: exit code", done.code, 0):
        print(done.stderr[-2000:])
        tally.end()
    totals, last = totals_of(folder)
    folder.remove()
    check_answers(tally, what, done)
    tally.check(f"{what}: promised at the end", float(last["kv_use"]), 0.0)
    print(f"  figure: {what}: {done.seconds:.1f} s, tightened {totals['tightened']} times, "
          f"{totals['preempted']} preempted")
    return receipts_of(done), totals


def check_receipts(tally, what, receipts, totals):
    """Who was tightened says when, and has less than the budget; the others do not say so."""
    at = {name: receipt.get("tightened_at", []) for name, receipt in receipts.items()}
    tally.check(f"{what}: events in receipts", sum(map(len, at.values())), totals["tightened"])
    tally.true(f"{what}: tightened", totals["tightened"] > 0, str(totals))
    wrong = {name: list_ for name, list_ in at.items()
             if list_ != sorted(set(list_)) or
             not all(PROMPT < tokens < PROMPT + ANSWER for tokens in list_)}
    tally.check(f"{what}: moments that cannot be", wrong, {})
    # Whoever begins anew has the whole budget again; all others that were tightened have less.
    less = {name for name, receipt in receipts.items() if name.startswith("long") and
            receipt["kv_bytes_stored"] < BUDGET * SLOT}
    told = {name for name, list_ in at.items() if list_}
    tally.true(f"{what}: some hold less than the budget", less, str(at))
    tally.check(f"{what}: hold less, and say nothing", sorted(less - told), [])
    tally.true(f"{what}: told, and hold no less",
               len(told - less) <= totals["preempted"], f"{told - less}")


def check_resume(tally, text):
    """Told to stop while long answers run; --resume does the rest."""
    folder = job.Folder()
    given, output = folder.file("in.jsonl", make_records()), folder.file("out.jsonl")
    line = ["run", folder.file("job.yaml", text), "--input", given, "--output", output]
    with subprocess.Popen(job.command(1, line)[-len(line) - 1:], env=job.environment(),
                          stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        limit = time.monotonic() + 60
        while running.poll() is None and time.monotonic() < limit:
            metrics = folder.file("out.jsonl.run/metrics.csv")
            if os.path.exists(output):
                with open(output, encoding="utf-8") as lines:
                    if sum(1 for _ in lines) > SHORT:
                        break
            time.sleep(0.002)
        running.send_signal(signal.SIGUSR1)
        words = running.communicate(timeout=60)[1]
    if not tally.check("stopped: exit code", running.returncode, 75):
        print(words[-2000:])
    done = job.sheaf(1, line + ["--resume"])
    tally.check("resumed: exit code", done.code, 0)
    done = job.Done(done.code, done.stdout, done.stderr, done.seconds, output)
    check_answers(tally, "resumed", done)
    totals, last = totals_of(folder)
    tally.true("resumed: answers fed again", totals["replayed_tokens"] > 0, str(totals))
    tally.check("resumed: promised at the end", float(last["kv_use"]), 0.0)
    folder.remove()


def main():
    tally = job.Tally("pressure")
    if not os.access(job.SHEAF, os.X_OK):
        tally.true("there is a build", False, f"no {job.SHEAF}; SHEAF_BUILD names the folder")
        tally.end()
    models = job.Folder()
    model = models.file("llama.gguf")
    tiny.write_gguf(os.path.join(job.ROOT, "tests/data/tiny/llama"), model,
                    [tiny.key("tokenizer.ggml.eos_token_id", END)])
    memory = 960                        # KiB: 60 pages of each of 8 lanes
    _, without = one(tally, "not asked", config(model, f"{memory}KiB", tighten=False))
    tally.check("not asked: tightened", without["tightened"], 0)
    tally.true("not asked: preempted", without["preempted"] > 0, str(without))
    receipts, totals = one(tally, "pressure", config(model, f"{memory}KiB"))
    check_receipts(tally, "pressure", receipts, totals)
    tally.true("pressure: fewer are preempted", totals["preempted"] < without["preempted"],
               f"{totals}, {without}")
    if job.has_ranks():
        text = config(model, f"{memory // 2}KiB", tensor=2)
        receipts, totals = one(tally, "two ranks", text, ranks=2)
        check_receipts(tally, "two ranks", receipts, totals)
        tally.true("two ranks: fewer are preempted", totals["preempted"] < without["preempted"],
                   f"{totals}, {without}")
    _, totals = one(tally, "deterministic", config(model, f"{memory}KiB", deterministic=True))
    tally.check("deterministic: tightened", totals["tightened"], 0)
    check_resume(tally, config(model, f"{memory}KiB"))
    models.remove()
    tally.end()


if __name__ == "__main__":
    main()
