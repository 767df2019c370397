"""Whole runs on a device whose memory the host cannot touch, against the CPU: `device:
cuda-emulated`, the sources of kernels/cuda run thread by thread on this machine.  Its checks are
on: the process ends where host code touches the device's memory, a kernel is given the host's, or
anything is out of bounds or left behind.

The tiny Llama with random weights, in f32.  Shown: on one rank, on two and four (tensor, pipeline,
both) the greedy tokens are the CPU's, with free and with fixed products, exact and with every
method that the device's kernels serve; where a method drops slots, up to the first step whose two
likeliest tokens are within TIE; so where prompts share their beginnings.  With every filter,
penalty and bias, drawn or greedy, the tokens are the CPU's too, chosen on the device or, where
tensor ranks share a row, on the host; a rerun of one layout gives the same bytes; a job that is
killed is finished by --resume; `sheaf lab` gives attention in plain Python; a rank takes the GPU of
its number on the node, of those that it sees; nobody sees one: one line, exit 2.

tests/gpu/accept.py asks the same of a real GPU.
"""
# cores: 1
# not with --quick
import json
import os
import signal
import subprocess
import sys
import time

import job
import lab
import tiny

TIE = 0.01
METHODS = {
    "window": "{name: window, num_sink_tokens: 2, recent_tokens: 12}",
    "ems": "{name: ems, budget_tokens: 20, recent_tokens: 8, num_sink_tokens: 2, "
           "recompress_interval: 5, similarity_threshold: 0.3}",
    "ems before rotation": "{name: ems, budget_tokens: 20, recent_tokens: 8, num_sink_tokens: 2, "
                           "recompress_interval: 5, similarity_threshold: 0.3, "
                           "merge_space: pre_rope}",
    "razor_attention": "{name: razor_attention, retrieval_heads: [[0, 1], [1, 0]], "
                       "min_window_tokens: 8, window_divisor: 50, min_dropped_tokens: 2, "
                       "fold_tokens: 3}",
}
XKV = "{name: xkv, group_size: 2, rank_k: 12, rank_v: 18, min_prompt_tokens: 8"
METHODS["xkv"] = XKV + ", num_sink_tokens: 2}"
METHODS["xkv, exact values"] = XKV.replace("rank_v: 18", "rank_v: 0") + ", refactor_every: 6}"
METHODS["razor_attention + xkv"] = (METHODS["razor_attention"].replace("}", ", on: other}") +
                                    ", " + XKV + ", on: retrieval}")
PICKED = (", reconstruction: selective, chunk_size: 4, budget_tokens: 8, local_chunks: 1, "
          "outlier_chunks: 1")
METHODS["xkv, selective"] = XKV + PICKED + ", refactor_every: 6}"
METHODS["xkv, replicated"] = XKV + ", tp_mode: replicated_basis}"
METHODS["xkv, replicated, selective"] = (XKV + PICKED + ", svd: {oversample: 3}, "
                                         "tp_mode: replicated_basis}")
ON_TWO = [name for name in METHODS if "selective" in name or "replicated" in name]
SLOT_BYTES = 4 * 2 * (2 * 16 * 4 + 8)   # of a token, exact: layers, heads, key and value, pos, bias
PROMPTS = (40, 17, 3)
EXACT = [(1, 1), (2, 1), (1, 2), (2, 2)]


class Rig:
    """One model in a folder, and jobs with it."""

    def __init__(self, name="llama", answer=16):
        self.folder, self.golden = job.Folder(), tiny.golden_of(name)
        self.path = self.folder.file("model.gguf")
        tiny.write_gguf(os.path.join(job.ROOT, "tests/data/tiny", name), self.path)
        ids = self.golden["input_ids"]
        self.body = {"max_tokens": answer, "ignore_eos": True, "return_token_ids": True}
        self.given = job.records(
            [(f"p{n}", dict(self.body, prompt=ids[:n], temperature=0, logprobs=2))
             for n in PROMPTS] + [("drawn", dict(self.body, prompt=ids[:9], temperature=0.8))])
        self.plain = job.records([(f"p{n}", dict(self.body, prompt=ids[:n], temperature=0))
                                  for n in PROMPTS])

    def config(self, device, layout=(1, 1), fixed=False, method=None):
        tensor, pipeline = layout
        methods = f", methods: [{METHODS[method]}]" if method else ""
        extra = f"device: {device}\nkv_cache: {{memory: 4MiB{methods}}}\n"
        text = job.config("f32", tensor, pipeline, 1, fixed, 8, extra)
        return text.replace(job.MODEL, self.path).replace("max_model_len: 2048",
                                                          "max_model_len: 128")

    def run(self, device, layout=(1, 1), fixed=False, method=None, given=None):
        return job.run(layout[0] * layout[1], self.config(device, layout, fixed, method),
                       given or self.given, limit_s=120)


def sure(answer):
    """Steps before the first whose two likeliest tokens are too close."""
    steps = answer["response"]["body"]["choices"][0]["logprobs"]["top_logprobs"]
    for number, step in enumerate(steps):
        best, second = sorted(step.values(), reverse=True)[:2]
        if best - second < TIE:
            return number
    return len(steps)


def compare(tally, what, done, reference, lossy):
    """Tokens of a job against those of the CPU's."""
    if not tally.check(f"{what}: exit code", done.code, 0):
        print(done.stderr[-3000:])
        return
    compared, steps, expected, actual = 0, 0, reference.tokens(), done.tokens()
    for name, answer in reference.answers.items():
        if name == "drawn":             # one rounding may move a draw; its scores are compared
            tally.check(f"{what}, {name}: tokens", len(actual[name]), len(expected[name]))
            continue
        until = sure(answer) if lossy else len(expected[name])
        compared, steps = compared + until, steps + len(expected[name])
        tally.check(f"{what}, {name}: tokens", actual[name][:until], expected[name][:until])
    tally.true(f"{what}: most steps are compared", compared * 2 > steps, f"{compared} of {steps}")


def compare_scores(tally, what, done, reference):
    for name in reference.answers:
        if name == "drawn":
            continue
        mine, theirs = (found.answers[name]["response"]["body"]["choices"][0]["logprobs"]
                        ["token_logprobs"] for found in (done, reference))
        worst = max(abs(a - b) for a, b in zip(mine, theirs))
        tally.true(f"{what}, {name}: scores", worst < 1e-3, f"{worst} apart")


def layouts_of(wanted):
    return wanted if job.has_ranks() else [layout for layout in wanted if layout == (1, 1)]


def check_exact(tally, rig, device):
    reference = rig.run("cpu")
    tally.check("cpu: exit code", reference.code, 0)
    for layout in layouts_of(EXACT):
        done = rig.run(device, layout)
        what = f"{device}, tensor {layout[0]} x pipeline {layout[1]}"
        compare(tally, what, done, reference, False)
        if done.code == 0:
            compare_scores(tally, what, done, reference)
            tally.check(f"{what}: reference implementation", done.tokens()["p40"],
                        rig.golden["greedy"][:len(done.tokens()["p40"])])
    return reference


def choices(ids):
    """Records with filters, penalties, biases and scores, alone and together."""
    ways = {"plain": {}, "top_k": {"top_k": 12}, "top_p": {"top_p": 0.7}, "min_p": {"min_p": 0.08},
            "all": {"top_k": 40, "top_p": 0.9, "min_p": 0.02},
            "penalties": {"presence_penalty": 0.7, "frequency_penalty": 0.4,
                          "repetition_penalty": 1.3},
            "biases": {"logit_bias": {"7": 6, "40": -3, "183": -100}},
            "everything": {"top_k": 30, "top_p": 0.95, "frequency_penalty": 0.8,
                           "repetition_penalty": 1.1, "logit_bias": {"12": 5}}}
    found = []
    for number, (name, way) in enumerate(ways.items()):
        body = dict(way, prompt=ids[:11 + number], max_tokens=14, ignore_eos=True,
                    return_token_ids=True, seed=number)
        if number % 2:
            body["logprobs"] = number
        if number % 3 == 0:
            body["prompt_logprobs"] = 2
        for temperature in (0, 0.9):
            found.append((f"{name}, {temperature}", dict(body, temperature=temperature)))
    return job.records(found)


def numbers_in(value):
    """Every number of a JSON value, in order; names of its tokens are not among them."""
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in numbers_in(value[key])]
    if isinstance(value, list):
        return [number for item in value for number in numbers_in(item)]
    return [value] if isinstance(value, float) else []


def check_choices(tally, rig, device):
    """Tokens of all ways to choose, and their scores."""
    given = choices(rig.golden["input_ids"])
    reference = rig.run("cpu", given=given)
    tally.check("choices on the cpu: exit code", reference.code, 0)
    for layout in layouts_of([(1, 1), (1, 2), (2, 1)]):
        what = f"choices, {device}, tensor {layout[0]} x pipeline {layout[1]}"
        done = rig.run(device, layout, given=given)
        if not tally.check(f"{what}: exit code", done.code, 0):
            print(done.stderr[-3000:])
            continue
        tally.check(f"{what}: tokens", done.tokens(), reference.tokens())
        for name, answer in reference.answers.items():
            theirs, mine = (numbers_in(found["response"]["body"]["choices"])
                            for found in (answer, done.answers[name]))
            tally.check(f"{what}, {name}: scores", len(mine), len(theirs))
            worst = max((abs(a - b) for a, b in zip(mine, theirs)), default=0)
            tally.true(f"{what}, {name}: scores", worst < 1e-3, f"{worst} apart")


def check_fixed(tally, rig, device):
    """Deterministic: the CPU's tokens, and the same bytes each time."""
    reference = rig.run("cpu", fixed=True, given=rig.plain)
    for layout in layouts_of([(1, 1), (2, 1)]):
        what = f"{device}, fixed, tensor {layout[0]}"
        first, second = (rig.run(device, layout, True, given=rig.plain) for _ in range(2))
        compare(tally, what, first, reference, False)
        tally.check(f"{what}: again", second.tokens(), first.tokens())


def check_methods(tally, rig, device, names=None):
    for name in names or METHODS:
        reference = rig.run("cpu", method=name)
        tally.check(f"{name} on the cpu: exit code", reference.code, 0)
        body = reference.answers["p40"]["response"]["body"]
        fed = body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"] - 1
        tally.true(f"{name}: stores less", body["sheaf"]["kv_bytes_stored"] < SLOT_BYTES * fed)
        for layout in layouts_of([(1, 1), (2, 1) if name in ON_TWO else (2, 2)]):
            what = f"{device}, {name}, tensor {layout[0]} x pipeline {layout[1]}"
            if "xkv" in name and layout[0] > 1:     # tensor ranks have bases of their own
                reference = rig.run("cpu", layout, method=name)
            compare(tally, what, rig.run(device, layout, method=name), reference, True)


def check_shared(tally, rig, device):
    """Prompts that begin alike, one after the other: blocks bring the masses of their slots."""
    ids, answers = rig.golden["input_ids"], {}
    given = job.records([(f"s{i}", dict(rig.body, prompt=ids[:36] + ids[i:2 * i + 4],
                                        temperature=0, logprobs=2)) for i in range(5)])
    for name in ("cpu", device):
        folder = job.Folder()
        config = rig.config(name, method="ems").replace("max_num_seqs: 8", "max_num_seqs: 1")
        config = config.replace("kv_cache: {", "kv_cache: {block_size: 16, ")
        done = answers[name] = job.run(1, config, given, folder=folder)
        tally.check(f"{name}, shared: exit code", done.code, 0)
        manifest = [run for run in os.listdir(folder.path) if run.endswith(".run")][0]
        with open(os.path.join(folder.path, manifest, "manifest.json"), encoding="utf-8") as file:
            reused = json.load(file)["totals"]["reused_tokens"]
        tally.check(f"{name}, shared: tokens reused", reused, 4 * 32)
        folder.remove()
    compare(tally, f"{device}, shared", answers[device], answers["cpu"], True)


def check_resume(tally, rig, device):
    """kill -9 once there is an answer, then --resume."""
    ids = rig.golden["input_ids"]
    given = job.records([(f"r{i}", dict(rig.body, prompt=ids[i:i + 8], temperature=0,
                                        max_tokens=4 + 4 * (i % 5))) for i in range(20)])
    expected = rig.run("cpu", given=given).tokens()
    config = rig.config(device).replace("run: {", "run: {checkpoint_interval_s: 0.1, ")
    name, output = rig.folder.file("k.yaml", config), rig.folder.file("k.out")
    line = [job.SHEAF, "run", name, "--input", rig.folder.file("k.jsonl", given), "--output",
            output]
    with subprocess.Popen(line, env=job.environment(), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if os.path.exists(output) and os.path.getsize(output) > 0:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    tally.check("killed: exit code", process.returncode, -signal.SIGKILL)
    again = subprocess.run(line + ["--resume"], env=job.environment(), capture_output=True,
                           text=True, check=False)
    tally.check("resumed: exit code", again.returncode, 0)
    found = job.Done(again.returncode, "", again.stderr, 0, output)
    tally.check("resumed: tokens", found.tokens(), expected)


def check_gpus(tally, rig, device):
    """Which GPU a rank takes, as the debug log says; none is one line."""
    name = rig.folder.file("g.yaml", rig.config(device, (2, 1)))
    given = rig.folder.file("g.jsonl", rig.plain)
    for visible, expected in (("0,1", {"GPU 0 of 2", "GPU 1 of 2"}), ("0", {"GPU 0 of 1"}),
                              ("", set())):
        if not job.has_ranks():
            break
        done = job.sheaf(2, ["run", name, "--input", given, "--output",
                             rig.folder.file(f"g{len(visible)}.out"), "--log-level", "debug"],
                         extra_env={"CUDA_VISIBLE_DEVICES": visible})
        seen = {text for text in ("GPU 0 of 1", "GPU 0 of 2", "GPU 1 of 2") if text in done.stderr}
        tally.check(f"GPUs '{visible}': taken", seen, expected)
        tally.check(f"GPUs '{visible}': exit code", done.code, 0 if expected else 2)
        if not expected:
            tally.check("no GPU: lines", len(done.error_lines()), 1)


def check_lab(tally, device):
    """A trace on one rank and on two: outputs and lanes of attention in plain Python."""
    trace = lab.Trace(lab.SHAPES["3:1, chunks"], 1)
    for ranks, window in ((1, (4, 9)), (2, None)) if job.has_ranks() else ((1, (4, 9)),):
        what = f"lab on {ranks}"
        config = lab.BASE + f"device: {device}\n" + (lab.method(*window) if window else "")
        if ranks > 1:
            config += f"parallel: {{tensor_parallel_size: {ranks}}}\n"
        found = lab.lab(tally, what, trace, config, ranks)
        if found is not None:
            outs, lanes = lab.reference(trace, [window] * len(trace.layers))
            lab.check_outputs(tally, what, trace, found[0], outs, 1e-4)
            lab.check_lanes(tally, what, trace, found[0], lanes, 1e-4)


def main():
    tally, device = job.Tally("emulated"), "cuda-emulated"
    if not os.path.exists(os.path.join(os.path.dirname(job.SHEAF), "libsheaf_cuda_emulated.so")):
        tally.skip("all", "this build has no emulation")
        tally.end()
    rig = Rig()
    check_exact(tally, rig, device)
    check_choices(tally, rig, device)
    check_methods(tally, rig, device)
    check_shared(tally, rig, device)
    rig.folder.remove()
    rig = Rig(answer=6)
    check_fixed(tally, rig, device)
    check_gpus(tally, rig, device)
    check_resume(tally, rig, device)
    check_lab(tally, device)
    rig.folder.remove()
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
