"""A model that is only described: a Hugging Face directory's config.json, and no weights.

Shown: `plan` for 126 layers and 8 KV heads on 1,024 ranks takes under a second, gives every layer
and head to one rank of each copy, and equal numbers to all copies; the plan of a directory is that
of the same model as a GGUF file, to the last byte; `inspect` says what it is; `run` and `bench`
refuse it in one line before anything is written; what is not built is refused by name.
"""
import json
import os
import sys

import job
from tiny import write_gguf

TENSOR, PIPELINE, DATA, NODES = 8, 16, 8, 128
LAYERS, KV_HEADS, HEAD_DIM, WIDTH, FFN, VOCAB, CONTEXT = 126, 8, 128, 16384, 53248, 128256, 131072
LIMIT_S = 1.0
LARGE = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH,
         "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": 128,
         "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB, "rms_norm_eps": 1e-5,
         "max_position_embeddings": CONTEXT, "rope_theta": 5e5, "torch_dtype": "bfloat16",
         "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                          "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}
TINY = os.path.join(job.ROOT, "tests/data/tiny")


def model_folder(folder, name, config):
    os.mkdir(os.path.join(folder.path, name))
    folder.file(f"{name}/config.json", json.dumps(config))
    return os.path.join(folder.path, name)


def plan(path, arguments):
    return job.sheaf(1, ["plan", path, "--json", *arguments], 120)


def check_large(tally, folder):
    model_folder(folder, "large", LARGE)
    name = folder.file("large.yaml", f"""schema_version: 1
model: {{path: large}}
parallel: {{tensor_parallel_size: {TENSOR}, pipeline_parallel_size: {PIPELINE},
            data_parallel_size: {DATA}}}
kv_cache: {{methods: [{{name: window}}]}}
""")
    layout = ["--nodes", str(NODES), "--memory-per-rank"]
    runs = [plan(name, [*layout, "64GiB"]) for _ in range(3)]
    fastest = min(done.seconds for done in runs)
    print(f"figure: plan of {LAYERS} layers on {TENSOR * PIPELINE * DATA} ranks: {fastest:.2f} s")
    if not job.ranks_are_threads():             # not for builds with sanitizers
        tally.true("large: time", fastest < LIMIT_S, f"{fastest:.2f} s")
    tally.check("large: exit code", [done.code for done in runs], [0, 0, 0])
    tally.check("large: the same each time", len({done.stdout for done in runs}), 1)
    made = json.loads(runs[0].stdout)
    check_ranks(tally, made)
    tally.check("large: ratio", made["kv_ratio"], 1028 / CONTEXT)
    lengths = [str(1 << bit) for bit in range(10, 18)]
    tally.check("large: lengths", list(made["capacity"]["max_num_seqs_at_len"]), lengths)
    tight = [plan(name, [*layout, "3GiB"]) for _ in range(2)]
    fastest = min(done.seconds for done in tight)
    print(f"figure: the same in too little memory: {fastest:.2f} s")
    tally.check("too little: exit code", tight[0].code, 2)
    tally.true("too little: words", "would fit" in json.loads(tight[0].stdout)["reason"])
    if not job.ranks_are_threads():
        tally.true("too little: time", fastest < LIMIT_S, f"{fastest:.2f} s")


def check_ranks(tally, made):
    ranks = made["ranks"]
    tally.check("large: ranks", len(ranks), TENSOR * PIPELINE * DATA)
    tally.check("large: nodes", {rank["node"] for rank in ranks}, set(range(NODES)))
    lanes = [(layer, head) for rank in ranks if rank["dp_rank"] == 0
             for layer, heads in enumerate(rank["kv_heads"], rank["layers"][0]) for head in heads]
    tally.check("large: every head once", sorted(lanes),
                [(layer, head) for layer in range(LAYERS) for head in range(KV_HEADS)])
    own = {"rank", "node", "dp_rank"}
    parts = [[{key: rank[key] for key in rank if key not in own} for rank in ranks
              if rank["dp_rank"] == copy] for copy in range(DATA)]
    tally.true("large: copies are alike", all(part == parts[0] for part in parts))
    weights = sum(rank["weight_bytes"] for rank in parts[0])
    layer = 2 * WIDTH * WIDTH + 2 * KV_HEADS * HEAD_DIM * WIDTH + 3 * FFN * WIDTH
    expected = 2 * (LAYERS * layer + VOCAB * WIDTH)         # the embedding stays in its file
    tally.true("large: weights", 1 <= weights / expected < 1.01, f"{weights} of {expected}")
    tally.check("large: cache", sum(rank["kv_bytes_per_token"] for rank in parts[0]),
                LAYERS * KV_HEADS * (2 * HEAD_DIM * 2 + 8))


def check_tiny(tally, folder):
    for model in ("llama", "mistral", "qwen2"):
        path = folder.file(f"{model}.gguf")
        write_gguf(os.path.join(TINY, model), path)
        name = folder.file(f"{model}.yaml", f"schema_version: 1\nmodel: {{path: {path}}}\n")
        for sets in ([], ["--set", "parallel.tensor_parallel_size=3", "--set",
                          "run.deterministic=true", "--set", "model.dtype=f32"]):
            limit = ["--memory-per-rank", "1GiB", *sets]
            from_file = plan(name, limit)
            described = plan(name, [*limit, "--set", f"model.path={TINY}/{model}"])
            tally.check(f"{model}: exit codes", (from_file.code, described.code), (0, 0))
            tally.check(f"{model}: one plan", json.loads(described.stdout),
                        json.loads(from_file.stdout))
        done = job.sheaf(1, ["inspect", os.path.join(TINY, model)], 60)
        tally.check(f"{model}: inspect", (done.code, done.stderr), (0, ""))
        for words in (f"architecture       {model}", "layers             4", "KV heads           2",
                      "by config.json, F32", "not read"):
            tally.true(f"{model}: inspect says {words!r}", words in done.stdout, done.stdout)


def check_refused(tally, what, done, words):
    tally.check(f"{what}: exit code", done.code, 2)
    tally.true(f"{what}: one line with {words!r}", len(done.error_lines()) == 1 and
               words in done.error_lines()[0], done.stderr)
    tally.check(f"{what}: stdout", done.stdout, "")


def check_refusals(tally, folder):
    text = f"schema_version: 1\nmodel: {{path: {TINY}/llama}}\n"
    name = folder.file("job.yaml", text)
    given = folder.file("in.jsonl", job.records([("a", {"prompt": [1, 2], "max_tokens": 2})]))
    output = folder.file("out.jsonl")
    arguments = ["run", name, "--input", given, "--output", output]
    words = "weights in safetensors are not read yet"
    check_refused(tally, "run", job.sheaf(1, arguments, 60), words)
    if job.has_mpi():
        wide = [*arguments, "--set", "parallel.tensor_parallel_size=2"]
        check_refused(tally, "run on 2 ranks", job.sheaf(2, wide, 60), words)
    check_refused(tally, "bench", job.sheaf(1, ["bench", name], 60), words)
    tally.check("nothing was written", [os.path.exists(output), os.path.exists(output + ".run")],
                [False, False])
    for model, words in [("mixtral", "architecture 'MixtralForCausalLM' is not built"),
                         ("qwen3", "'Qwen3ForCausalLM'"), ("gemma3", "'Gemma3ForCausalLM'")]:
        path = os.path.join(TINY, model)
        check_refused(tally, model, job.sheaf(1, ["inspect", path], 60), words)
        check_refused(tally, model, job.sheaf(1, ["plan", name, "--set", f"model.path={path}"],
                                              60), words)
    empty = os.path.join(folder.path, "empty")
    os.mkdir(empty)
    check_refused(tally, "empty", job.sheaf(1, ["inspect", empty], 60), "config.json: No such file")
    missing = model_folder(folder, "missing", {**LARGE, "vocab_size": None})
    check_refused(tally, "missing", job.sheaf(1, ["inspect", missing], 60),
                  "missing/config.json: key 'vocab_size' is missing")


def main():
    tally = job.Tally("described")
    if not os.access(job.SHEAF, os.X_OK):
        tally.true("there is a build", False, f"no {job.SHEAF}; SHEAF_BUILD names the folder")
        tally.end()
    folder = job.Folder()
    check_large(tally, folder)
    check_tiny(tally, folder)
    check_refusals(tally, folder)
    folder.remove()
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
