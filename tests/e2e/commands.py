"""The subcommands that need no ranks: data on stdout, words on stderr, and the right exit code.

Shown: help and version of every subcommand; `plan` as text and as JSON with exactly the keys of
interface.md section 7 and numbers that agree with each other, for one rank, uneven heads and a plan
that does not fit; `inspect`, `methods`, `doctor`; wrong names with the nearest right one; settings
by the environment and by --set, in that order; output that cannot be written is no success; a run
prints nothing on stdout, and its log follows --log-level, --log-json and stderr being no terminal.
"""
# cores: 1
import json
import os
import re
import subprocess
import sys

import job

LAYERS, KV_HEADS, TOKENS = 30, 3, 8192          # of SmolLM2-135M
RANK_KEYS = {"rank", "node", "stage", "tp_rank", "dp_rank", "layers", "kv_heads", "weight_bytes",
             "kv_bytes_per_token", "kv_bytes_at_len", "kv_peak_bytes_at_len", "max_kv_tokens",
             "workspace_bytes", "library_bytes", "kv_beside_bytes"}
PLAN_KEYS = {"fits", "reason", "ranks", "groups", "comm", "capacity", "kv_ratio", "kv_bound",
             "imbalance", "compute"}
COMM_KEYS = {"tp_bytes_per_token", "pp_bytes_per_token", "cross_node_bytes_per_token",
             "per_method", "tp_bytes_per_layer", "bytes_per"}
COMMANDS = ["run", "bench", "eval", "calibrate", "lab", "plan", "merge", "inspect", "methods",
            "doctor"]


def says(tally, what, arguments, code, stdout=(), error=(), env=None):
    """Runs it; words on stdout, or one line with error and these words on stderr."""
    done = job.sheaf(1, arguments, 60, extra_env=env)
    tally.check(f"{what}: exit code", done.code, code)
    for word in stdout:
        tally.true(f"{what}: says {word!r}", word in done.stdout, done.stdout[:400] + done.stderr)
    if error:
        lines = done.error_lines()
        tally.true(f"{what}: one line with {error}", len(lines) == 1 and
                   all(word in lines[0] for word in error), done.stderr)
    elif code == 0:
        tally.check(f"{what}: stderr", done.stderr, "")
    return done


def helps(tally):
    says(tally, "--help", ["--help"], 0, COMMANDS)
    says(tally, "--version", ["--version"], 0, ["sheaf 0.", "git "])
    for name in COMMANDS:
        says(tally, f"{name} --help", [name, "--help"], 0, [f"usage: sheaf {name}"])
        says(tally, f"{name} -h", [name, "-h"], 0, [f"usage: sheaf {name}"])
        says(tally, f"{name} -Z", [name, "-Z"], 2, error=["-Z", f"sheaf {name} --help"])
    says(tally, "nothing", [], 2, error=["no command", "sheaf --help"])
    says(tally, "misspelt", ["pln"], 2, error=["'pln'", "did you mean 'plan'?"])
    says(tally, "plan of nothing", ["plan"], 2, error=["CONFIG is missing"])
    says(tally, "inspect of nothing", ["inspect"], 2, error=["MODEL is missing"])


def plan_json(tally, what, name, arguments, code):
    done = job.sheaf(1, ["plan", name, "--json", *arguments], 60)
    tally.check(f"{what}: exit code", done.code, code)
    plan = json.loads(done.stdout)
    tally.check(f"{what}: keys", set(plan), PLAN_KEYS)
    tally.check(f"{what}: keys of comm", set(plan["comm"]), COMM_KEYS)
    tally.check(f"{what}: keys of ranks", {frozenset(rank) for rank in plan["ranks"]},
                {frozenset(RANK_KEYS)})
    tally.check(f"{what}: fits or says why", plan["reason"] is None, plan["fits"])
    lengths = ["1024", "2048", "4096", "8192"]
    tally.check(f"{what}: lengths", list(plan["capacity"]["max_num_seqs_at_len"]), lengths)
    for rank in plan["ranks"]:
        tally.check(f"{what}: lengths of a rank", list(rank["kv_bytes_at_len"]), lengths)
        tally.check(f"{what}: layers of a rank", len(rank["kv_heads"]),
                    rank["layers"][1] - rank["layers"][0] + 1)
    return plan, done


def heads_by_layer(plan):
    """{layer: sorted KV heads, with copies} over the ranks of one model copy."""
    heads = {}
    for rank in plan["ranks"]:
        for i, mine in enumerate(rank["kv_heads"]):
            heads.setdefault(rank["layers"][0] + i, []).extend(mine)
    return {layer: sorted(all_of) for layer, all_of in heads.items()}


def plans(tally, name):
    sets = [word for key in ("tensor", "pipeline") for word in
            ("--set", f"parallel.{key}_parallel_size=%d")]
    for tensor, pipeline in [(1, 1), (2, 1), (3, 1), (2, 2), (4, 1)]:
        what = f"plan of {tensor} x {pipeline}"
        values = iter((tensor, pipeline))
        layout = [word % next(values) if "%" in word else word for word in sets]
        plan, done = plan_json(tally, what, name, layout, 0)
        tally.check(f"{what}: stderr", done.stderr, "")
        tally.check(f"{what}: ranks", len(plan["ranks"]), tensor * pipeline)
        heads = heads_by_layer(plan)
        tally.check(f"{what}: every layer", sorted(heads), list(range(LAYERS)))
        tally.true(f"{what}: every head", all(set(h) == set(range(KV_HEADS)) and len(h) == max(
            tensor, KV_HEADS) for h in heads.values()), str(heads))
        tally.true(f"{what}: exact", plan["kv_ratio"] == 1 and all(
            rank["kv_bytes_at_len"]["4096"][0] == rank["kv_bytes_at_len"]["4096"][1]
            for rank in plan["ranks"]), str(plan["kv_ratio"]))
        level = plan["imbalance"]
        tally.true(f"{what}: one rank of a stage is level", tensor > 1 or all(
            value == 1 for part in level.values() for value in part.values()), str(level))
        tally.true(f"{what}: placed as level as in blocks, or more", all(
            1 <= part["placed"] <= part["identity"] for part in level.values()), str(level))
        if tensor <= KV_HEADS:                  # no copies: 90 lanes of 64 + 64 bf16 and 8 bytes
            per_token = sum(rank["kv_bytes_per_token"] for rank in plan["ranks"])
            tally.check(f"{what}: KV bytes", per_token, LAYERS * KV_HEADS * (128 * 2 + 8))
            stored = sum(rank["kv_bytes_at_len"]["2048"][1] for rank in plan["ranks"])
            tally.check(f"{what}: KV bytes at 2,048 tokens", stored, 2048 * per_token)
        tally.check(f"{what}: talk inside", plan["comm"]["tp_bytes_per_token"] > 0, tensor > 1)
        tally.check(f"{what}: talk between", plan["comm"]["pp_bytes_per_token"] > 0, pipeline > 1)
    plan, _ = plan_json(tally, "window", name, ["--set", "kv_cache.methods.0.name=window"], 0)
    tally.check("window: ratio", plan["kv_ratio"], 1028 / TOKENS)
    plan, done = plan_json(tally, "too little", name, ["--memory-per-rank", "64MiB"], 2)
    tally.true("too little: the way out", "would fit" in plan["reason"], plan["reason"])
    tally.true("too little: one line with error", len(done.error_lines()) == 1, done.stderr)
    limits = ["--memory-per-rank", "5GiB", "--set"]
    plan, _ = plan_json(tally, "a pool too large", name, [*limits, "kv_cache.memory=20GiB"], 2)
    pool = re.search(r"or kv_cache.memory of (\d+MiB)", plan["reason"])
    if tally.true("a pool too large: the way out", pool is not None, plan["reason"]):
        plan_json(tally, "that pool", name, [*limits, f"kv_cache.memory={pool[1]}"], 0)
    plan, _ = plan_json(tally, "two nodes", name, ["--nodes", "2", "--set",
                                                   "parallel.pipeline_parallel_size=2"], 0)
    tally.check("two nodes: nodes", [rank["node"] for rank in plan["ranks"]], [0, 1])
    tally.true("two nodes: talk", plan["comm"]["cross_node_bytes_per_token"] > 0)
    says(tally, "plan as text", ["plan", name], 0, ["30 layers", "fits       yes", "traffic"])
    says(tally, "nodes 0", ["plan", name, "--nodes", "0"], 2, error=["--nodes is '0'"])
    says(tally, "memory", ["plan", name, "--memory-per-rank", "x"], 2, error=["--memory-per-rank"])


def settings(tally, name):
    """file < environment < --set"""
    env = {"SHEAF_SCHEDULER__MAX_MODEL_LEN": "2048"}
    says(tally, "environment", ["plan", name], 0, ["2048 tokens planned"], env=env)
    says(tally, "--set", ["plan", name, "--set", "scheduler.max_model_len=1024"], 0,
         ["1024 tokens planned"], env=env)
    says(tally, "environment, wrong", ["plan", name], 2, error=["SHEAF_MODEL__DTYPE: error:",
                                                                 "'f33'", "f32, f16, bf16"],
         env={"SHEAF_MODEL__DTYPE": "f33"})
    says(tally, "environment, unknown", ["plan", name], 2, error=["'modl'", "'model'"],
         env={"SHEAF_MODL__DTYPE": "f32"})


def others(tally, name):
    says(tally, "inspect", ["inspect", job.MODEL], 0,
         ["llama", "30", "49152", "token_embd.weight", "Q8_0", "576 x 49152", "ChatML"])
    says(tally, "inspect a text", ["inspect", name], 2, error=[name])
    says(tally, "inspect nothing", ["inspect", "/nonexistent.gguf"], 2, error=["nonexistent"])
    says(tally, "methods", ["methods"], 0, ["none", "window", "not built yet", "sub_moe", "xkv"])
    says(tally, "methods window", ["methods", "window"], 0,
         ["num_sink_tokens: 4", "recent_tokens: 1024", "2309.17453", "window_size"])
    says(tally, "methods windov", ["methods", "windov"], 2, error=["did you mean 'window'?"])
    says(tally, "methods sub_moe", ["methods", "sub_moe"], 2,
         error=["'sub_moe' is not built yet"])
    says(tally, "doctor", ["doctor"], 0, ["sheaf", "MPI", "memory", "cores", "instructions"])


def unwritable(tally, name):
    for arguments in (["plan", name], ["methods"], ["--help"], ["inspect", job.MODEL]):
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run([job.SHEAF, *arguments], stdout=full, stderr=subprocess.PIPE,
                                  text=True, env=job.environment(), check=False)
        tally.check(f"{arguments[0]} to a full disk: exit code", done.returncode, 1)
        tally.true(f"{arguments[0]} to a full disk: words", "standard output" in done.stderr and
                   "error" in done.stderr, done.stderr)


def logs(tally, folder, name):
    given = folder.file("in.jsonl", job.records([("a", {"prompt": [504, 3575], "max_tokens": 2})]))
    for number, arguments in enumerate([[], ["--log-json"], ["--log-level", "error"]]):
        what = "run " + " ".join(arguments)
        output = folder.file(f"out{number}.jsonl")
        done = job.sheaf(1, ["run", name, "--input", given, "--output", output, *arguments], 120,
                         extra_env={"TERM": "xterm", "NO_COLOR": "1"})
        tally.check(f"{what}: exit code", done.code, 0)
        tally.check(f"{what}: stdout", done.stdout, "")
        tally.true(f"{what}: no terminal's codes", "\r" not in done.stderr and
                   "\033" not in done.stderr, done.stderr)
        lines = done.own_lines()
        tally.check(f"{what}: lines", len(lines), 0 if "error" in arguments else 3)
        if arguments == ["--log-json"]:
            tally.check(f"{what}: levels", {json.loads(line)["level"] for line in lines}, {"info"})
        with open(output + ".run/manifest.json", encoding="utf-8") as file:
            manifest = json.load(file)
        tally.check(f"{what}: manifest", (manifest["totals"]["answered"], manifest["ranks"],
                                          len(manifest["hosts"])), (1, 1, 1))


def main():
    tally = job.Tally("commands")
    job.need_model(tally)
    folder = job.Folder()
    name = folder.file("job.yaml", f"schema_version: 1\nmodel: {{path: {job.MODEL}}}\n")
    helps(tally)
    plans(tally, name)
    settings(tally, name)
    others(tally, name)
    if os.path.exists("/dev/full"):
        unwritable(tally, name)
    logs(tally, folder, name)
    folder.remove()
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
