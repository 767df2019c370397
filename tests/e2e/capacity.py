"""The same memory for the cache holds more sequences when a method cuts it: as many as planned.

Shown with the real model and `sheaf bench`, the exact cache beside window and razor_attention in
one run: the most sequences that ran at once are those that `sheaf plan` says for the pool, within
10 % (and one), nobody loses its place, and the growth over the exact cache is the planned one.
"""
# not with --quick
import json
import sys

import job

PROMPT, ANSWER = 352, 32
LENGTH = PROMPT + ANSWER
SLOT = 30 * 3 * (2 * 64 * 2 + 8)
MEMORY = 8 * LENGTH * SLOT + (1 << 18)  # eight sequences in the exact cache
RETRIEVAL = [[layer, layer % 3] for layer in range(0, 30, 5)]
METHODS = {"window": "{name: window, num_sink_tokens: 4, recent_tokens: 60}",
           "razor_attention": "{name: razor_attention, num_sink_tokens: 4, min_window_tokens: 28, "
                              "window_divisor: 20, min_dropped_tokens: 16, fold_tokens: 16, "
                              f"retrieval_heads: {json.dumps(RETRIEVAL)}}}"}


def main():
    tally = job.Tally("capacity")
    job.need_model(tally)
    folder = job.Folder()
    configs, planned = [], {}
    for name, method in METHODS.items():
        text = job.config("bf16", deterministic=False, seqs=32,
                          extra=f"kv_cache: {{memory: {MEMORY}, block_size: 32, "
                                f"methods: [{method}]}}\n")
        configs.append(folder.file(f"{name}.yaml", text.replace("max_model_len: 2048",
                                                                f"max_model_len: {LENGTH}")))
        done = job.sheaf(1, ["plan", configs[-1], "--json"])
        if not tally.check(f"plan {name}: exit code", done.code, 0):
            print(done.stderr[-2000:])
            tally.end()
        capacity = json.loads(done.stdout)["capacity"]
        planned[name] = capacity["max_num_seqs_at_len"][str(LENGTH)]
        planned[""] = capacity["exact_max_num_seqs_at_len"][str(LENGTH)]
    report = folder.file("bench.json", "")
    done = job.sheaf(1, ["bench", *configs, "--num-prompts", "22", "--input-len", str(PROMPT),
                         "--output-len", str(ANSWER), "--json", report])
    if not tally.check("bench: exit code", done.code, 0):
        print(done.stderr[-2000:])
        tally.end()
    ran = {}
    with open(report, encoding="utf-8") as file:
        for run in json.load(file)["runs"]:
            name = "".join(run["methods"])
            ran[name] = run["running_max"]
            print(f"  figure: {name or 'exact'}: planned {planned[name]}, ran {ran[name]} at once")
            tally.true(f"{name or 'exact'}: as many as planned",
                       abs(ran[name] - planned[name]) <= max(1, planned[name] / 10),
                       f"{ran[name]}, planned {planned[name]}")
            tally.check(f"{name or 'exact'}: lost their places", run["preempted"], 0)
    tally.check("exact: planned", planned[""], 8)
    for name in METHODS:
        growth, wanted = ran[name] / ran[""], planned[name] / planned[""]
        tally.true(f"{name}: the batch grows as planned",
                   wanted > 1.8 and 0.9 <= growth / wanted <= 1.1, f"{growth:.2f}, {wanted:.2f}")
    folder.remove()
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
