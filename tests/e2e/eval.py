"""Real evals: what stacks of methods do to the predictions of the real model.

Shown, in f32: the exact cache's log probabilities of whole texts are those that `run` gives with
prompt_logprobs; a window that drops nothing differs in nothing, to the last bit; a short one stores
exactly its share and is worse; tokens that are forced score as they did when `run` chose them under
the same two methods, and those stored what the receipt says; six ranks say what one says, one
sequence at a time and steps of 16 rows what all at once; sums of the sequences make the means, the
intervals hold them; starts are spread over the text; needles: the exact cache finds them where a
short window that has dropped them does not; every refusal is one line.
"""
# cores: 1
import json
import math
import os
import re
import sys

import job

TEXTS = [
    "The harbour of the old town lies between two hills, and in the morning the boats come home "
    "with what they have caught. The women wait on the quay with baskets and knives, and the "
    "children run between them and shout the names of the boats. When the sun stands above the "
    "church the fish is sold, the quay is washed, and the men sleep until the evening.",
    "A pipeline of stages is as fast as its slowest stage. If one of them takes twice as long as "
    "the others, these wait half of the time, however many there are. So the work is cut where "
    "the cuts are level, and not where they look nice; and what cannot be cut is done twice, if "
    "doing it twice costs less than to wait for it."]
PROFILE = "configs/profiles/smollm2-135m-instruct.razor_attention.yaml"
KEYS = {"methods", "stack", "config_file", "kv_fraction", "kv_fraction_end", "kv_bytes_exact",
        "kv_bytes_stored", "kv_bytes_exact_end", "kv_bytes_stored_end", "tokens", "sequences",
        "needle_recall"}
FIGURES = ["perplexity", "kl_mean", "top1_agreement", "log_ppl_diff"]
TOP = {"text", "tokens", "files", "filler", "model", "version", "machine", "config", "intervals",
       "sequences_at_once", "kept_bytes", "duration_s", "exact", "runs"}


def near(tally, what, actual, expected, bound=1e-4):
    tally.true(what, abs(actual - expected) <= bound * max(abs(expected), 1e-3),
               f"{actual} is not {expected}")


def window(recent, sinks=4):
    return "kv_cache: {methods: [{name: window, num_sink_tokens: %d, recent_tokens: %d}]}" % (
        sinks, recent)


def config(extra="", **more):
    return job.config("f32", deterministic=False, extra=extra, **more)


def evaluate(tally, what, folder, names, arguments, ranks=1):
    """The JSON, or None."""
    done = job.sheaf(ranks, ["eval", *names, *arguments, "--json", "-"], 300)
    if not tally.check(f"{what}: exit code", done.code, 0):
        print(done.stderr[-2000:])
        return None
    return json.loads(done.stdout)


def check_run(tally, what, run):
    """Means, sums and intervals of one stack fit each other."""
    tally.check(f"{what}: keys", set(run), KEYS | set(FIGURES) | {f"{k}_ci" for k in FIGURES})
    sequences = run["sequences"]
    total = {key: sum(s[key] for s in sequences) for key in ("scored_tokens", "nll", "kl", "agree")}
    n = total["scored_tokens"]
    tally.check(f"{what}: tokens", run["tokens"], n)
    near(tally, f"{what}: perplexity", run["perplexity"], math.exp(total["nll"] / n), 1e-12)
    near(tally, f"{what}: divergence", run["kl_mean"], total["kl"] / n, 1e-12)
    near(tally, f"{what}: agreement", run["top1_agreement"], total["agree"] / n, 1e-12)
    for key in FIGURES:
        low, high = run[f"{key}_ci"]
        tally.true(f"{what}: interval of {key}", low <= run[key] <= high,
                   f"{run[key]} in [{low}, {high}]")
    near(tally, f"{what}: fraction", run["kv_fraction"],
         run["kv_bytes_stored"] / run["kv_bytes_exact"], 1e-12)


def of_sequences(found):
    return [[(s["nll"], s["kl"], s["agree"]) for s in run["sequences"]]
            for run in [found["exact"], *found["runs"]]]


def compare(tally, what, found, other, bound):
    for name, mine, theirs in (("exact", found["exact"], other["exact"]),
                               *((r["stack"], r, o) for r, o in zip(found["runs"], other["runs"]))):
        tally.check(f"{what}: {name} bytes", [mine[k] for k in KEYS if "bytes" in k],
                    [theirs[k] for k in KEYS if "bytes" in k])
        for a, b in zip(mine["sequences"], theirs["sequences"]):
            near(tally, f"{what}: {name} nll", a["nll"], b["nll"], bound)
            near(tally, f"{what}: {name} kl", a["kl"], b["kl"], max(bound, 1e-3))
            tally.true(f"{what}: {name} agree", abs(a["agree"] - b["agree"]) <= 1,
                       f"{a['agree']} and {b['agree']}")


# ---- texts ---------------------------------------------------------------------------------------

def texts_of(folder):
    paths = [folder.file(f"text{i}.txt", text) for i, text in enumerate(TEXTS)]
    return [word for path in paths for word in ("--text", path)]


def against_run(tally, found):
    """perplexity of the exact cache from `run` with prompt_logprobs of the same texts."""
    done = job.run(1, config(), job.records([
        (str(i), {"prompt": text, "max_tokens": 1, "prompt_logprobs": 0, "return_token_ids": True})
        for i, text in enumerate(TEXTS)]))
    tally.check("run: exit code", done.code, 0)
    nll, tokens = 0.0, 0
    for i, sequence in enumerate(found["exact"]["sequences"]):
        body = done.answers[str(i)]["response"]["body"]
        pairs = list(zip(body["choices"][0]["prompt_logprobs"], body["prompt_token_ids"]))
        scores = [entry[str(token)]["logprob"]
                  for entry, token in pairs[sequence["prompt_tokens"]:]]
        tally.check(f"text {i}: tokens", sequence["scored_tokens"], len(scores))
        near(tally, f"text {i}: nll", sequence["nll"], -sum(scores), 1e-4)
        nll, tokens = nll - sum(scores), tokens + len(scores)
    near(tally, "perplexity of run", found["exact"]["perplexity"], math.exp(nll / tokens), 1e-4)


def whole_texts(tally):
    """Two texts, a window over all of them and a short one, beside `run` and on six ranks."""
    folder = job.Folder()
    names = [folder.file("wide.yaml", config(window(600))),
             folder.file("short.yaml", config(window(16)))]
    arguments = texts_of(folder) + ["--prompt-len", "40"]
    found = evaluate(tally, "texts", folder, names, arguments)
    if found is None:
        return
    tally.check("keys", set(found), TOP)
    tally.check("text", found["text"], arguments[1:4:2])
    tally.check("stacks", [(r["stack"], r["methods"], r["config_file"]) for r in
                           [found["exact"], *found["runs"]]],
                [("exact", [], names[0]), ("window", ["window"], names[0]),
                 ("window#2", ["window"], names[1])])
    for run in [found["exact"], *found["runs"]]:
        check_run(tally, run["stack"], run)
    exact, (wide, short) = found["exact"], found["runs"]
    tally.check("tokens", found["tokens"], sum(f["tokens"] for f in found["files"]))
    tally.check("a wide window", [(s["nll"], s["kl"], s["agree"], s["kv_bytes_stored"])
                                  for s in wide["sequences"]],
                [(s["nll"], 0.0, s["scored_tokens"], s["kv_bytes_exact"])
                 for s in exact["sequences"]])
    tally.check("exact", (exact["kl_mean"], exact["top1_agreement"], exact["kv_fraction"]),
                (0.0, 1.0, 1.0))
    near(tally, "short: fraction", short["kv_fraction"], 20 / 40, 1e-12)
    tally.true("short: worse", short["perplexity"] > 1.02 * exact["perplexity"] and
               short["kl_mean"] > 0.01 and short["top1_agreement"] < 1 and
               short["log_ppl_diff_ci"][0] > 0, str({k: short[k] for k in FIGURES}))
    near(tally, "short: difference", short["log_ppl_diff"],
         math.log(short["perplexity"] / exact["perplexity"]), 1e-9)
    against_run(tally, found)
    if job.LEVEL != "quick" and job.has_ranks():
        sets = ["--set", "parallel.tensor_parallel_size=3", "--set",
                "parallel.pipeline_parallel_size=2"]
        other = evaluate(tally, "6 ranks", folder, names, arguments + sets, 6)
        if other is not None:
            compare(tally, "6 ranks", other, found, 1e-4)
    folder.remove()


def forced_as_chosen(tally):
    """An answer of `run` under two methods that both drop slots, given again as a text."""
    folder, text = job.Folder(), TEXTS[0][:180]
    methods = "kv_cache: {%s}" % job.stack(20)
    done = job.run(1, config(methods), job.records([("a", {
        "prompt": text, "max_tokens": 40, "ignore_eos": True, "logprobs": 0,
        "return_token_ids": True})]))
    tally.check("chosen: exit code", done.code, 0)
    body = done.answers["a"]["response"]["body"]
    choice, prompt = body["choices"][0], body["usage"]["prompt_tokens"]
    given = folder.file("given.txt", text + choice["text"])
    found = evaluate(tally, "forced", folder, [folder.file("two.yaml", config(methods))],
                     ["--text", given, "--prompt-len", str(prompt)])
    if found is not None and tally.check("forced: tokens", found["tokens"], prompt + 40):
        run = found["runs"][0]
        near(tally, "forced: nll", run["sequences"][0]["nll"],
             -sum(choice["logprobs"]["token_logprobs"]), 1e-4)
        tally.true("forced: it has an effect", run["kl_mean"] > 1e-3, str(run["kl_mean"]))
        tally.check("forced: bytes", (run["kv_bytes_exact_end"], run["kv_bytes_stored_end"]),
                    (body["sheaf"]["kv_bytes_exact"], body["sheaf"]["kv_bytes_stored"]))
    folder.remove()


def spread(tally):
    """Eight sequences: where they begin, what is drawn again, and however they are batched."""
    folder = job.Folder()
    text = folder.file("text.txt", "\n".join(TEXTS * 3))
    names = [folder.file("short.yaml", config(window(8)))]
    arguments = ["--text", text, "--len", "40", "--count", "8"]
    found = evaluate(tally, "spread", folder, names, arguments)
    few = evaluate(tally, "two at once", folder, names, arguments + [
        "--set", "scheduler.max_num_batched_tokens=16", "--set", "scheduler.max_model_len=64",
        "--set", "kv_cache.memory=9MiB"])
    if found is None or few is None:
        folder.remove()
        return
    for run in [found["exact"], *found["runs"]]:
        check_run(tally, f"spread {run['stack']}", run)
        starts = [s["start"] for s in run["sequences"]]
        steps = [b - a for a, b in zip(starts, starts[1:])]
        tally.true("spread: starts", starts[0] == 0 and min(steps) >= 40 and
                   max(steps) - min(steps) <= 1 and starts[-1] + 40 == found["files"][0]["tokens"],
                   str(starts))
        tally.check("spread: prompts", {(s["prompt_tokens"], s["scored_tokens"])
                                        for s in run["sequences"]}, {(20, 20)})
    tally.check("spread: drawn again", found["intervals"]["resampled"], "sequences")
    tally.check("spread: at once", (found["sequences_at_once"], few["sequences_at_once"]), (8, 2))
    compare(tally, "two at once", few, found, 1e-5)
    folder.remove()


def one_cut(tally):
    """A stack by itself would be cut into stages elsewhere than the exact cache; a given cut that
    is not the other's is refused."""
    folder = job.Folder()
    name = folder.file("short.yaml", config(window(16), pipeline=2))
    exact = folder.file("exact.yaml", config(pipeline=2))
    more = folder.file("more.yaml", config(window(16), pipeline=2).replace(
        "  pipe", "  pipeline_layers: [9, 21]\n  pipe"))
    text = texts_of(folder)[:2]
    layers, other = [re.search(r": (\d+) layers", job.sheaf(1, [
        "plan", path, "--memory-per-rank", "4GiB"]).stdout.split("\nstages ")[1]).group(1)
                     for path in (exact, name)]
    tally.true("one cut: the stack moves it", layers != other, f"{layers}, {other}")
    found = evaluate(tally, "one cut", folder, [name], text, 2)
    if found is not None:
        tally.true("one cut: that of the exact cache", re.search(
            rf"pipeline_layers: \[{layers}, ", found["config"]["window"]),
            found["config"]["window"])
    done = job.sheaf(2, ["eval", exact, more, *text], 60)
    tally.check("two cuts: exit code", done.code, 2)
    tally.true("two cuts: one line", len(done.error_lines()) == 1 and
               f"exact of {exact} and window of {more} differ in parallel.pipeline_layers"
               in done.stderr, done.stderr)
    folder.remove()


def own_pages(tally):
    """A stack whose f32 tier wants larger pages than the exact cache has in bf16."""
    folder, root = job.Folder(), job.ROOT
    done = job.sheaf(1, [
        "eval", os.path.join(root, "configs/methods/razor_attention.yaml"),
        *texts_of(folder)[:2], "--json", "-", "--set", f"model.path={job.MODEL}",
        "--set", "scheduler.max_model_len=256", "--set", "kv_cache.memory=64MiB",
        "--set", f"kv_cache.methods.0.profile={os.path.join(root, PROFILE)}",
        "--set", "kv_cache.methods.0.min_window_tokens=8",
        "--set", "kv_cache.methods.0.window_divisor=50",
        "--set", "kv_cache.methods.0.min_dropped_tokens=1"], 120)
    if tally.check("own pages: exit code", done.code, 0):
        run = json.loads(done.stdout)["runs"][0]
        tally.true("own pages: it has an effect", run["kl_mean"] > 1e-3 and
                   run["kv_fraction"] < 0.8, str((run["kl_mean"], run["kv_fraction"])))
    else:
        print(done.stderr[-2000:])
    folder.remove()


# ---- needles -------------------------------------------------------------------------------------

def needles(tally):
    folder = job.Folder()
    filler = folder.file("filler.txt", " ".join(TEXTS * 4))
    names = [folder.file("short.yaml", config(window(48)))]
    found = evaluate(tally, "needles", folder, names, [
        "--needle", "--filler", filler, "--needle-lengths", "200", "--needle-depths", "10,60",
        "--needle-trials", "4"])
    if found is None:
        return
    tally.check("needles: text", (found["text"], found["tokens"], found["filler"]),
                (None, 0, filler))
    for run in [found["exact"], *found["runs"]]:
        what, recall = f"needles {run['stack']}", run["needle_recall"]
        tally.check(f"{what}: keys", set(run), KEYS - {"tokens", "sequences"})
        tally.check(f"{what}: cells", [(c["length"], c["depth"], c["trials"])
                                       for c in recall["cells"]], [(200, 10, 4), (200, 60, 4)])
        tally.check(f"{what}: sums", (recall["trials"], recall["hits"]),
                    (8, sum(c["hits"] for c in recall["cells"])))
        tally.check(f"{what}: each", sum(n["found"] for n in recall["needles"]), recall["hits"])
        tally.true(f"{what}: prompts", all(180 <= n["prompt_tokens"] <= 200
                                           for n in recall["needles"]), str(recall["needles"]))
        for cell in [recall, *recall["cells"]]:
            tally.true(f"{what}: interval", 0 <= cell["ci"][0] <= cell["recall"] <= cell["ci"][1]
                       <= 1, str(cell))
    exact, short = found["exact"]["needle_recall"], found["runs"][0]["needle_recall"]
    tally.true("needles: found in the exact cache", exact["hits"] >= 5, str(exact["hits"]))
    tally.check("needles: gone from a short window", short["hits"], 0)
    folder.remove()


# ---- the outside ---------------------------------------------------------------------------------

def table(tally):
    """For people, beside a file that takes the place of another one."""
    folder = job.Folder()
    names = [folder.file("none.yaml", config())]
    written = folder.file("eval.json", "what was there before")
    done = job.sheaf(1, ["eval", *names, *texts_of(folder)[:2], "--len", "12", "--json", written])
    tally.check("table: exit code", done.code, 0)
    with open(written, encoding="utf-8") as file:
        found = json.load(file)
    tally.check("table: no other stacks", found["runs"], [])
    tally.check("table: prompt", found["exact"]["sequences"][0]["prompt_tokens"], 6)
    tally.true("table: row", "exact" in done.stdout and
               f"FOM exact.perplexity: {found['exact']['perplexity']:.9g}\n" in done.stdout,
               done.stdout)
    tally.check("table: nothing is left", sorted(os.listdir(folder.path)),
                ["eval.json", "none.yaml", "text0.txt", "text1.txt"])
    folder.remove()


def refusals(tally):
    folder = job.Folder()
    good = folder.file("good.yaml", config())
    half = folder.file("half.yaml", config().replace("f32", "bf16"))
    other = folder.file("other.yaml", config().replace(job.MODEL, folder.file("copy.gguf", "no")))
    text, empty = folder.file("text.txt", TEXTS[0]), folder.file("empty.txt", "")
    needle = ["--needle", "--filler", text]
    fresh, linked = folder.file("out.new", TEXTS[0]), folder.file("linked")
    os.symlink(job.MODEL, linked)
    pipe = folder.file("pipe")
    os.mkfifo(pipe)
    cases = [
        ([], ["CONFIG is missing"]),
        ([good], ["--text or --needle is missing"]),
        ([good, "--txt", text], ["unknown option '--txt'"]),
        ([good, "--text", text, "--len", "0"], ["--len '0'"]),
        ([good, "--text", text, "--len", "20", "--prompt-len", "20"], ["--prompt-len", "--len"]),
        ([good, "--text", text, "--prompt-len", "500"], ["--prompt-len 500", text]),
        ([good, "--text", text, "--len", "400"], [text, "400"]),
        ([good, "--text", text, "--len", "30", "--count", "9"], [text, "9 sequences of 30"]),
        ([good, "--text", text, "--text", text, "--count", "1"], ["--count"]),
        ([good, "--text", text, "--len", "9999"], ["9999", "max_model_len, 2048"]),
        ([good, "--text", empty], [empty, "0 tokens"]),
        ([good, "--text", folder.file("none.txt")], ["none.txt", "No such file"]),
        ([good, "--text", folder.path], [folder.path, "no regular file"]),
        ([good, "--text", pipe], [pipe, "no regular file"]),
        ([good, "--needle", "--filler", pipe], [pipe, "no regular file"]),
        ([good, "--needle"], ["--needle needs --filler"]),
        ([good, "--text", text, "--filler", text], ["--filler", "--needle"]),
        ([good, *needle, "--needle-depths", "0,101"], ["--needle-depths '0,101'"]),
        ([good, *needle, "--needle-depths", "0,50,0"], ["--needle-depths has 0 twice"]),
        ([good, *needle, "--needle-lengths", "64,64"], ["--needle-lengths has 64 twice"]),
        ([good, *needle, "--needle-lengths", "20"], ["--needle-lengths 20"]),
        ([good, *needle, "--needle-lengths", "1000"], ["too short", "1000 tokens"]),
        ([good, *needle, "--needle-lengths", "2048"], ["2048", "max_model_len"]),
        ([good, half, "--text", text], [good, half, "model.dtype"]),
        ([good, other, "--text", text], [good, other, "different models"]),
        ([good, "--text", text, "--json", folder.file("no/folder.json")], ["no/folder.json"]),
        ([good, "--text", text, "--json", text], [text, "would take the place"]),
        ([good, "--text", fresh, "--json", folder.file("out")], [fresh, "would take the place"]),
        ([good, "--text", text, "--html", linked], [linked, job.MODEL, "would take the place"]),
        ([good, *needle, "--html", text], [text, "would take the place"]),
        ([good, "--text", text, "--json", good], [good, "would take the place"]),
        ([good, "--text", text, "--json", folder.file("same"), "--html", folder.file("./same")],
         ["--html and --json name the same file"]),
        ([good, "--text", text, "--json", folder.file("page.new"), "--html", folder.file("page")],
         ["page.new", "--json"]),
        ([good, "--text", text, "--json", "/dev/full"], ["/dev/full", "no regular file"]),
        ([good, "--text", text, "--set", "scheduler.max_num_sqs=3"], ["'max_num_seqs'"]),
    ]
    if job.LEVEL == "quick":
        cases = cases[::3]
    for arguments, words in cases:
        what = f"refused: {' '.join(map(os.path.basename, arguments))}"
        done = job.sheaf(1, ["eval", *arguments], 60)
        tally.check(f"{what}: exit code", done.code, 2)
        tally.check(f"{what}: stdout", done.stdout, "")
        lines = done.error_lines()
        tally.true(f"{what}: one line with {words}", len(lines) == 1 and
                   all(word in lines[0] for word in words), done.stderr)
    if job.has_ranks() and job.LEVEL != "quick":
        done = job.sheaf(2, ["eval", good, "--text", text, "--set",
                             "parallel.data_parallel_size=2"], 60)
        tally.check("two copies: exit code", done.code, 2)
        tally.true("two copies: one line", len(done.error_lines()) == 1 and
                   "data_parallel_size is 2" in done.stderr, done.stderr)
    folder.remove()


def main():
    tally = job.Tally("eval")
    job.need_model(tally)
    refusals(tally)
    whole_texts(tally)
    own_pages(tally)
    table(tally)
    if job.LEVEL != "quick":
        forced_as_chosen(tally)
        spread(tally)
        needles(tally)
        if job.has_ranks():
            one_cut(tally)
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
