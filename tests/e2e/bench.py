"""`sheaf bench`: what it says is there, adds up, and means what --help says.

Shown, with the real model on one rank, on two stages and on two data-parallel groups: the exact
cache runs first and once, then each stack, without the weights being loaded again; the JSON has
exactly the members that are documented; throughputs times duration are the tokens; the time of
prompts and the time of answers make up the run; the phases of a decode step, as the workers book
them, sum to the step that the coordinator sees; percentiles rise; the cache's bytes follow the
formula (lanes x tokens fed x bytes of a slot); a window stores what it keeps, and reads less; a
pool that is too small for the batch is called so; the table's figures are the JSON's.  Refusals
come before any weight is loaded, with one line.  A signal ends it with what is finished.

With SHEAF_TEST_LEVEL=long also the figures of docs/measured.md: how full the batch is, how long
stages and coordinator wait or work.  Quick: refusals, one rank, and what goes to stdout.
"""
import json
import os
import re
import signal
import subprocess
import sys

import job

LANES, SLOT = 90, 264                           # 30 layers x 3 heads; 64 + 64 in bf16 and 8 B
PARTS = ("mean", "p50", "p90", "p99")
SPREADS = ("ttft", "tpot", "itl", "e2el", "queue")
PHASES = ("gemm_ms", "decode_attention_ms", "statistics_ms", "edit_ms", "comm_ms", "wait_ms",
          "sample_ms", "other_ms")
SHARES = ("share_of_roof", "prefill_share_of_roof", "decode_share_of_roof")
ROOFS = ("roof_output_tok_s", "roof_prefill_tok_s", "roof_decode_tok_s")
COSTS = ("tok_s_per_rank", "tok_s_per_core", "core_days_per_1e9_tokens",
         "gpu_days_per_1e9_tokens")
TOP = {"machine", "version", "config", "roof", "runs"}
MACHINE = {"processor", "device", "cores_per_node", "threads_per_rank", "threads_beside", "isa",
           "compute", "memory_per_rank_bytes", "ranks", "nodes", "hosts"}
RUN = {"methods", "stack", "config_file", "max_num_seqs", "num_prompts", "input_len", "output_len",
       "duration_s", "input_tokens", "output_tokens", "request_throughput", "output_throughput",
       "total_token_throughput", "prefill_tok_s", "decode_tok_s", "step_ms", "schedule_ms",
       "schedule_share", "prefill_edit_share", "prefill_factor_share",
       "prefill_factor_hidden", "bubble_share", "batch_full", "steps",
       "decode_steps", "rows_per_step", "step_bytes_per_step", "running_max",
       "preempted", "tightened", "reused_tokens",
       "kv_bytes_exact", "kv_bytes_stored", "kv_bytes_peak", "slots_evicted", "slots_merged",
       "slots_requantised", "peak_rss_bytes", "kv_bound", *PHASES, *COSTS, *ROOFS, *SHARES,
       *(f"{name}_ms_{part}" for name in SPREADS for part in PARTS)}
FOM = re.compile(r"^FOM (\S+)\.(\d+)\.(\w+): (\S+)$", re.M)


def config_of(pipeline=1, data=1, recent=0, memory="64MiB", length=512, seqs=8):
    methods = f", methods: [{{name: window, recent_tokens: {recent}}}]" if recent else ""
    return job.config("bf16", 1, pipeline, data, False, seqs,
                      f"kv_cache: {{memory: {memory}{methods}}}\n").replace(
                          "max_model_len: 2048", f"max_model_len: {length}")


def bench(tally, what, ranks, configs, arguments):
    """(the object, stdout) of a bench of these configurations that succeeds."""
    folder = job.Folder()
    names = [folder.file(f"c{i}.yaml", text) for i, text in enumerate(configs)]
    output = folder.file("bench.json")
    done = job.sheaf(ranks, ["bench", *names, *arguments, "--json", output])
    found = None
    if tally.check(f"{what}: exit code", done.code, 0):
        with open(output, encoding="utf-8") as file:
            found = json.load(file)
    else:
        print(done.stderr)
    folder.remove()
    return found, done.stdout


def near(tally, what, actual, expected, share, floor=0.0):
    tally.true(what, abs(actual - expected) <= share * abs(expected) + floor,
               f"is {actual:.6g}, expected {expected:.6g}")


def check_speed(tally, what, run, groups):
    seconds, answers = run["duration_s"], run["output_tokens"]
    near(tally, f"{what}: requests", run["request_throughput"] * seconds, run["num_prompts"], 1e-9)
    near(tally, f"{what}: output", run["output_throughput"] * seconds, answers, 1e-9)
    near(tally, f"{what}: all tokens", run["total_token_throughput"] * seconds,
         run["input_tokens"] + answers, 1e-9)
    fed = answers - run["num_prompts"]          # the last token of an answer is never fed
    near(tally, f"{what}: rows", run["rows_per_step"] * run["steps"], run["input_tokens"] + fed,
         1e-9)
    spent = run["input_tokens"] / run["prefill_tok_s"] + fed / run["decode_tok_s"]
    # Of two groups one may be done before the other.
    near(tally, f"{what}: prompts and answers fill the run", spent, seconds,
         0.05 if groups == 1 else 0.5, 0.05)
    for name in SPREADS:
        part = [run[f"{name}_ms_{p}"] for p in PARTS]
        tally.true(f"{what}: {name} rises", 0 <= part[1] <= part[2] <= part[3], str(part))
    tally.true(f"{what}: queue, first, last token",
               run["queue_ms_mean"] < run["ttft_ms_mean"] < run["e2el_ms_mean"] <= seconds * 1e3)
    tally.true(f"{what}: a place stays no longer empty than a step",
               run["batch_full"] is None or 0.2 < run["batch_full"] <= 1, str(run["batch_full"]))


def check_step(tally, what, run, ranks, stages):
    tally.true(f"{what}: phases", all(run[key] >= 0 for key in PHASES), str(run))
    # Both ends of a step are seen by two threads that may have to wait for a core.
    near(tally, f"{what}: the phases of a step", sum(run[key] for key in PHASES), run["step_ms"],
         0.2, 1.0)
    tally.true(f"{what}: decode steps", 0 < run["decode_steps"] < run["steps"])
    tally.true(f"{what}: the coordinator's share", 0 < run["schedule_share"] < 0.2,
               str(run["schedule_share"]))
    near(tally, f"{what}: its time", run["schedule_ms"] * run["steps"],
         run["schedule_share"] * run["duration_s"] * 1e3, 1e-9)
    tally.true(f"{what}: the share of edits in prefill",
               0 <= run["prefill_edit_share"] < 1, str(run["prefill_edit_share"]))
    tally.true(f"{what}: no factors", run["prefill_factor_share"] is None and
               run["prefill_factor_hidden"] is None)
    tally.check(f"{what}: a bubble for each stage", len(run["bubble_share"]), stages)
    tally.true(f"{what}: bubbles", all(0 <= b < 1 for b in run["bubble_share"]))
    tally.check(f"{what}: a peak for each rank", len(run["peak_rss_bytes"]), ranks)
    tally.true(f"{what}: peaks", min(run["peak_rss_bytes"]) > 64 << 20, str(run["peak_rss_bytes"]))


def check_table(tally, what, found, stdout):
    figures = {(m[1], int(m[2]), m[3]): float(m[4]) for m in FOM.finditer(stdout)}
    for run in found["runs"]:
        at = (run["stack"], run["max_num_seqs"])
        row = re.findall(rf"^{at[0]} +{at[1]} .*$", stdout, re.M)
        tally.check(f"{what}: rows of {at}, one under the roof", len(row), 2)
        for key in ("output_throughput", "prefill_tok_s", "ttft_ms_p50", "decode_attention_ms"):
            near(tally, f"{what}: FOM {key}", figures.get((*at, key), -1), run[key], 1e-5)
        for key in SHARES[::2]:
            near(tally, f"{what}: FOM {key}", figures.get((*at, key), -1), run[key], 1e-5)
        near(tally, f"{what}: FOM kv_ratio", figures.get((*at, "kv_ratio"), -1),
             run["kv_bytes_exact"] / run["kv_bytes_stored"], 1e-5)


def layouts(tally):
    """Exact and window in three layouts, short prompts of mixed lengths."""
    seqs, prompts = (1, 4), 12
    for pipeline, data in ((1, 1),) if job.LEVEL == "quick" else ((1, 1), (2, 1), (1, 2)):
        what, ranks = f"pipeline {pipeline}, data {data}", pipeline * data
        if ranks > 1 and not job.has_ranks():
            tally.skip(what, "no ranks here")
            continue
        found, stdout = bench(tally, what, ranks, [config_of(pipeline, data, recent=20)],
                              ["--input-len", "16:48", "--output-len", "8:16", "--num-prompts",
                               str(prompts), "--max-num-seqs", ",".join(map(str, seqs))])
        if found is None:
            continue
        tally.check(f"{what}: top", set(found), TOP)
        tally.check(f"{what}: machine", set(found["machine"]), MACHINE)
        tally.check(f"{what}: hosts", len(found["machine"]["hosts"]), ranks)
        tally.check(f"{what}: configurations", list(found["config"]), ["exact", "window"])
        tally.check(f"{what}: order", [(r["stack"], r["methods"], r["max_num_seqs"])
                                       for r in found["runs"]],
                    [("exact", [], s) for s in seqs] + [("window", ["window"], s) for s in seqs])
        check_table(tally, what, found, stdout)
        for run in found["runs"]:
            name = f"{what}, {run['stack']} {run['max_num_seqs']}"
            tally.check(f"{name}: members", set(run), RUN)
            check_speed(tally, name, run, data)
            check_step(tally, name, run, ranks, pipeline)
            fed = run["input_tokens"] + run["output_tokens"] - prompts
            tally.check(f"{name}: prompts", run["num_prompts"], prompts)
            tally.check(f"{name}: lengths", [run["input_len"], run["output_len"]],
                        [[16, 48], [8, 16]])
            tally.check(f"{name}: exact bytes", run["kv_bytes_exact"], LANES * fed * SLOT)
            tally.true(f"{name}: at once", run["running_max"] <= -(-run["max_num_seqs"] // data) *
                       data, str(run["running_max"]))
            tally.check(f"{name}: bound, reused", [run["kv_bound"], run["reused_tokens"]],
                        [False, 0])
            check_roof(tally, name, run, ranks)
        check_rates(tally, what, found, stdout)
        tokens = {(r["input_tokens"], r["output_tokens"]) for r in found["runs"]}
        tally.check(f"{what}: every run has the same prompts", len(tokens), 1)


def check_roof(tally, what, run, ranks):
    reached = ("output_throughput", "prefill_tok_s", "decode_tok_s")
    for roof, share, rate in zip(ROOFS, SHARES, reached):
        near(tally, f"{what}: {share}", run[share] * run[roof], run[rate], 1e-9)
        # What is measured in two different moments of a machine with other work may be above it.
        tally.true(f"{what}: {share} is one", 0 < run[share] < 3, str(run[share]))
    tokens = run["input_tokens"] + run["output_tokens"]
    near(tally, f"{what}: a rank", run["tok_s_per_rank"] * ranks,
         run["total_token_throughput"], 1e-9)
    near(tally, f"{what}: days", run["core_days_per_1e9_tokens"] * 86400 * tokens / 1e9,
         run["duration_s"] * run["total_token_throughput"] / run["tok_s_per_core"], 1e-9)
    tally.check(f"{what}: no GPU", run["gpu_days_per_1e9_tokens"], None)


def check_rates(tally, what, found, stdout):
    roof, compute = found["roof"], found["machine"]["compute"]
    tally.check(f"{what}: roof", [set(roof), list(roof["gemm_gflops"])],
                [{"memory_gb_s", "gemm_gflops", "output_tok_s"}, [compute]])
    tally.true(f"{what}: rates", 0.1 < roof["memory_gb_s"] < 1e4 and
               1 < roof["gemm_gflops"][compute] < 1e6, str(roof))
    tally.check(f"{what}: the greatest", roof["output_tok_s"],
                max(run["roof_output_tok_s"] for run in found["runs"]))
    tally.true(f"{what}: it is told", f"roof of {roof['memory_gb_s']:.1f} GB/s" in stdout)


def stacks(tally):
    """Two windows; one configuration is exact already; answers long enough to tell them apart."""
    prompts, tokens, window = 16, 24 + 40 - 1, 16
    found, _ = bench(tally, "stacks", 1, [config_of(recent=12, length=128), config_of(length=128),
                                          config_of(recent=28, length=128)],
                     ["--input-len", "24", "--output-len", "40", "--max-num-seqs", "16"])
    if found is None:
        return
    runs = found["runs"]
    tally.check("stacks: order", [(r["stack"], os.path.basename(r["config_file"])) for r in runs],
                [("exact", "c1.yaml"), ("window", "c0.yaml"), ("window#2", "c2.yaml")])
    tally.check("stacks: lengths", [runs[0]["input_len"], runs[0]["output_len"]], [24, 40])
    tally.check("stacks: prompts", runs[0]["num_prompts"], 2 * prompts)
    for run, kept in zip(runs, (tokens, window, 2 * window)):
        name = run["stack"]
        tally.check(f"{name}: exact bytes", run["kv_bytes_exact"],
                    2 * prompts * LANES * tokens * SLOT)
        tally.check(f"{name}: stored bytes", run["kv_bytes_stored"],
                    2 * prompts * LANES * kept * SLOT)
        tally.check(f"{name}: evicted", run["slots_evicted"],
                    2 * prompts * LANES * (tokens - kept))
        tally.true(f"{name}: pages", run["kv_bytes_peak"] >= run["kv_bytes_stored"])


def attention(tally):
    """Long prompts: what a window leaves of them is read in less time.  A step in which a thread
    waited for a core tells nothing, and there are eleven: so once out of three times."""
    found = []
    for _ in range(3):
        one, _ = bench(tally, "attention", 1, [config_of(recent=12)],
                       ["--input-len", "480", "--output-len", "12", "--max-num-seqs", "6",
                        "--num-prompts", "6"])
        if one is None:
            return
        found.append([run["decode_attention_ms"] for run in one["runs"]])
        if found[-1][1] < found[-1][0]:
            break
    tally.true("less attention", found[-1][1] < found[-1][0], str(found))


def bound(tally):
    """A pool of eight exact sequences, or eleven with a window that is cut in each step."""
    found, _ = bench(tally, "bound", 1, [config_of(recent=12, memory="16MiB", length=96)],
                     ["--input-len", "16", "--output-len", "64", "--max-num-seqs", "10,2",
                      "--num-prompts", "10"])
    if found is not None:
        tally.check("bound", [(r["stack"], r["max_num_seqs"], r["kv_bound"], r["running_max"])
                              for r in found["runs"]],
                    [("exact", 10, True, 8), ("exact", 2, False, 2),
                     ("window", 10, False, 10), ("window", 2, False, 2)])


def alone(tally):
    """More ranks than sequences at once, which does not keep the roof from being measured."""
    if not job.has_ranks():
        tally.skip("alone", "no ranks")
        return
    found, stdout = bench(tally, "alone", 2, [config_of(pipeline=2, seqs=1)],
                          ["--input-len", "16", "--output-len", "4", "--num-prompts", "2"])
    if found is not None:
        tally.check("alone", [(r["max_num_seqs"], r["share_of_roof"] > 0) for r in found["runs"]],
                    [(1, True)])
        check_rates(tally, "alone", found, stdout)


def output(tally):
    """--json - takes the place of the table; --no-exact; another seed; one token answers."""
    folder = job.Folder()
    name = folder.file("c.yaml", config_of(recent=12))
    found = []
    for seed in (0, 0, 1):
        done = job.sheaf(1, ["bench", name, "--no-exact", "--num-prompts", "3", "--input-len",
                             "4:90", "--output-len", "1", "--max-num-seqs", "2", "--json", "-",
                             "--set", f"sampling.seed={seed}"])
        tally.check(f"seed {seed}: exit code", done.code, 0)
        found.append(json.loads(done.stdout)["runs"])
    tally.check("no exact: stacks", [run["stack"] for run in found[0]], ["window"])
    lengths = [runs[0]["input_tokens"] for runs in found]
    tally.check("equal seeds", lengths[0], lengths[1])
    tally.true("other seeds", lengths[0] != lengths[2], str(lengths))
    missing = {key for key, value in found[0][0].items() if value is None}
    tally.check("nothing decodes: null", missing, {"decode_share_of_roof", "roof_decode_tok_s",
                "gpu_days_per_1e9_tokens", "decode_tok_s", "step_ms", "prefill_factor_share",
                "prefill_factor_hidden", *PHASES,
                *(f"{s}_ms_{p}" for s in ("tpot", "itl") for p in PARTS)})
    folder.remove()


def refusals(tally):
    folder = job.Folder()
    good = folder.file("good.yaml", config_of(recent=12))
    wide = folder.file("wide.yaml", config_of(pipeline=2))
    copy = folder.file("copy.gguf", "not a model")
    other = folder.file("other.yaml", config_of().replace(job.MODEL, copy))
    cases = [
        ([], ["CONFIG is missing"]),
        ([good, "--input-len", "0"], ["--input-len", "'0'"]),
        ([good, "--output-len", "9:3"], ["--output-len", "'9:3'"]),
        ([good, "--max-num-seqs", "1,,2"], ["--max-num-seqs", "'1,,2'"]),
        ([good, "--num-prompts", "none"], ["--num-prompts"]),
        ([good, "--prompts", "3"], ["unknown option '--prompts'"]),
        ([good, "--input-len", "400:500", "--output-len", "20"],
         [good, "500", "20", "520 tokens", "max_model_len is 512"]),
        ([good, other], [good, other, "different models"]),
        ([folder.file("none.yaml")], ["none.yaml", "cannot open"]),
        ([good, "--json", folder.file("no/folder.json")], ["--json", "no/folder.json"]),
        ([good, "--set", "scheduler.max_num_sqs=3"], ["'max_num_sqs'", "'max_num_seqs'"]),
    ]
    if not job.ranks_are_threads():
        cases.append(([good, wide], ["pipeline_parallel_size 2", "1 ranks"]))
    for arguments, words in cases:
        what = f"refused: {' '.join(map(os.path.basename, arguments))}"
        done = job.sheaf(1, ["bench", *arguments], 60)
        tally.check(f"{what}: exit code", done.code, 2)
        tally.check(f"{what}: stdout", done.stdout, "")
        lines = done.error_lines()
        tally.true(f"{what}: one line with {words}", len(lines) == 1 and
                   all(word in lines[0] for word in words), done.stderr)
    done = job.sheaf(1, ["bench", "--help"], 60)
    tally.true("help", done.code == 0 and "usage: sheaf bench CONFIG..." in done.stdout)
    folder.remove()


def signals(tally):
    """TERM in the second run: the first one is told."""
    folder = job.Folder()
    name, written = folder.file("c.yaml", config_of()), folder.file("bench.json")
    line = job.command(1, ["bench", name, "--input-len", "8", "--output-len", "120",
                           "--num-prompts", "4", "--max-num-seqs", "4,1", "--json", written])
    # pylint: disable=consider-using-with
    process = subprocess.Popen(line[line.index(job.SHEAF):], stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, env=job.environment())
    for text in process.stderr:
        if "run 2 of 2" in text:
            process.send_signal(signal.SIGTERM)
            break
    stdout, stderr = process.communicate(timeout=60)
    tally.check("signal: exit code", process.returncode, 1)
    tally.true("signal: says so", "stopped by a signal after 1 of 2 runs" in stderr, stderr)
    tally.true("signal: figures of the first run", "FOM exact.4." in stdout and
               "FOM exact.1." not in stdout, stdout)
    with open(written, encoding="utf-8") as file:
        tally.check("signal: runs", [r["max_num_seqs"] for r in json.load(file)["runs"]], [4])
    folder.remove()


def figure(tally, what, ranks, config, arguments):
    found, _ = bench(tally, what, ranks, [config], arguments)
    return found["runs"][0] if found is not None else None


def figures(tally):
    """Of the exact cache; none of them decides anything here."""
    run = figure(tally, "batch", 1, config_of(memory="auto", length=2048),
                 ["--input-len", "16:2000", "--output-len", "32", "--max-num-seqs", "32"])
    if run is not None:
        print(f"  figure: prompts of 16 to 2000 tokens, 32 at once: {run['batch_full']:.3f} of the "
              f"places taken while something waits, {run['output_throughput']:.0f} output tok/s")
    if job.has_ranks():
        run = figure(tally, "bubble", 2, config_of(pipeline=2, memory="auto"),
                     ["--input-len", "64", "--output-len", "64", "--max-num-seqs", "64"])
        if run is not None:
            shares = ", ".join(f"{b:.3f}" for b in run["bubble_share"])
            print(f"  figure: pipeline 2, 64 at once: stages wait {shares} of a decode step of "
                  f"{run['step_ms']:.1f} ms")
    run = figure(tally, "schedule", 1, config_of(memory="auto"),
                 ["--input-len", "16", "--output-len", "16", "--max-num-seqs", "256"])
    if run is not None:
        print(f"  figure: 256 at once: scheduling takes {run['schedule_share']:.4f} of the time, "
              f"{run['schedule_ms']:.3f} ms and {run['step_bytes_per_step']:.0f} B a step")


def main():
    tally = job.Tally("bench")
    job.need_model(tally)
    refusals(tally)
    layouts(tally)
    alone(tally)
    output(tally)
    if job.LEVEL != "quick":
        stacks(tally)
        attention(tally)
        bound(tally)
        signals(tally)
    if job.LEVEL == "long":
        figures(tally)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
