"""docs/quality.md out of kept results: tables, intervals and what they do not say.

Differences are paired by text.  For stack A against B over texts t,
    d = sum_t (nll_A(t) - nll_B(t)) / sum_t tokens(t)           the difference of log-perplexities
and its 95 % interval is between the 2.5th and the 97.5th percentile of DRAWS draws of as many texts
with replacement, from a fixed seed.
"""
import collections
import fractions
import glob
import json
import math
import os
import random
import re

# whose stacks stand in the tables of their fraction of the bytes
TABLED = {"plain", "razor", "later", "dropping", "random", "xkv", "widths",
          "bare", "first"}
DRAWS, SEED, TEXTS_MIN = 10000, 1, 8    # fewer texts: an interval, but no verdict
WINDOW = "window"


def heads_of(path):
    """[[layer, head]] of a profile, those with the best score, echo or induction, first; None if
    there is no such file."""
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        text = file.read()
    chosen = re.search(r"^retrieval_heads:\n((?: *- \[.*\n)+)", text, re.M)
    scores = re.findall(r"\{layer: (\d+), head: (\d+), induction: \[(.*?)\], echo: \[(.*?)\]\}",
                        text)
    if chosen is None or not scores:
        raise SystemExit(f"quality: error: {path} has no retrieval_heads, or no scores")
    best = {(int(layer), int(head)): max(map(float, f"{induction},{echo}".split(",")))
            for layer, head, induction, echo in scores}
    heads = [[int(layer), int(head)]
             for layer, head in re.findall(r"\[(\d+), *(\d+)\]", chosen[1])]
    return sorted(heads, key=lambda head: -best[tuple(head)])


# ---- results -----------------------------------------------------------------------------------
def results_of(folder):
    """The kept results, without those of stacks that were measured otherwise later."""
    found = []
    for path in sorted(glob.glob(os.path.join(folder, "*.json")), key=os.path.getmtime):
        with open(path, encoding="utf-8") as file:
            found.append(json.load(file))
    newest = {(one["kind"], one["length"]): one["configs"] for one in found}
    latest = {(one["kind"], one["length"], one.get("name")): one for one in found
              if one["configs"] == newest[one["kind"], one["length"]]}
    return list(latest.values())


class Texts:
    """What each stack did to each text, of one length."""

    def __init__(self, results, length, kinds):
        self.runs = collections.defaultdict(dict)       # text -> stack -> run of eval
        self.package = {}
        for one in results:
            if one["kind"] not in kinds or one["length"] != length:
                continue
            runs = self.runs[one["name"]]
            runs["exact"] = one["eval"]["exact"]
            runs.update(zip(one["stacks"], one["eval"]["runs"]))
            self.package[one["name"]] = one["package"]

    def having(self, *stacks):
        return sorted(name for name, runs in self.runs.items()
                      if all(stack in runs for stack in stacks))

    def stacks(self):
        return sorted({stack for runs in self.runs.values() for stack in runs})

    def sums(self, stack, key, names):
        """[texts] of one member of the sequences"""
        return [sum(sequence[key] for sequence in self.runs[name][stack]["sequences"])
                for name in names]

    def mean(self, stack, key, names):
        return sum(self.sums(stack, key, names)) / sum(self.sums(stack, "scored_tokens", names))

    def fraction(self, stack, names, end):
        stored, exact = ([self.runs[name][stack][f"kv_bytes_{what}{end}"] for name in names]
                         for what in ("stored", "exact"))
        return sum(stored) / sum(exact)


def interval(difference, tokens):
    """(d, low, high); difference, tokens: [texts]; of one text without an interval, nan"""
    count, generator, drawn = len(difference), random.Random(SEED), []
    if count < 2:
        return (sum(difference) / sum(tokens), math.nan, math.nan)
    for _ in range(DRAWS):
        picks = generator.choices(range(count), k=count)
        drawn.append(sum(difference[pick] for pick in picks) / sum(tokens[pick] for pick in picks))
    drawn.sort()
    return (sum(difference) / sum(tokens), drawn[int(0.025 * DRAWS)], drawn[int(0.975 * DRAWS)])


def apart(of, stack, other, names):
    pairs = zip(of.sums(stack, "nll", names), of.sums(other, "nll", names))
    return interval([one - two for one, two in pairs], of.sums(stack, "scored_tokens", names))


def verdict(texts, low, high):
    if texts < TEXTS_MIN:
        return "too few texts"
    if low > 0:
        return "**worse: a bug until proven otherwise**"
    return "better" if high < 0 else "interval includes zero"


def signed(values):
    if math.isnan(values[1]):
        return f"{values[0]:+.4f} [-]"
    return f"{values[0]:+.4f} [{values[1]:+.4f}, {values[2]:+.4f}]"


# ---- parts of the page -------------------------------------------------------------------------
def row(*cells):
    return "| " + " | ".join(cells) + " |\n"


def head(*cells):
    return row(*cells) + "|---" * len(cells) + "|\n"


def fractions_of(of):
    return sorted({stack.split()[-1] for stack in of.stacks() if stack.startswith(WINDOW)},
                  key=fractions.Fraction, reverse=True)


def methods_of(of, label):
    """window first, then the others at this fraction"""
    named = [stack for stack in of.stacks() if stack.endswith(" " + label) and
             not stack.startswith("random")]
    return sorted(named, key=lambda stack: (not stack.startswith(WINDOW), stack))


def table(of, label):
    """One fraction: a row for each method, over all texts that it and window were measured on."""
    text = head("stack", "texts", "bytes kept", "at the end of the text", "perplexity (exact)",
                "ln ppl - exact", "ln ppl - window of equal bytes", "mean KL, nat", "same top-1",
                "against window")
    for stack in methods_of(of, label):
        base = f"{WINDOW} {label}"
        names = of.having("exact", stack, base)
        if not names:
            continue
        against = apart(of, stack, base, names)
        text += row(stack.split()[0], str(len(names)), f"{of.fraction(stack, names, ''):.4f}",
                    f"{of.fraction(stack, names, '_end'):.4f}",
                    f"{math.exp(of.mean(stack, 'nll', names)):.2f} "
                    f"({math.exp(of.mean('exact', 'nll', names)):.2f})",
                    signed(apart(of, stack, "exact", names)),
                    "" if stack == base else signed(against),
                    f"{of.mean(stack, 'kl', names):.4f}", f"{of.mean(stack, 'agree', names):.4f}",
                    "" if stack == base else verdict(len(names), *against[1:]))
    return text


def random_part(of):
    """The profile's heads against random sets of as many, on the texts that have both."""
    sets = [stack for stack in of.stacks() if stack.startswith("random ")]
    if not sets:
        return "Not measured yet.\n"
    stack = "razor_attention " + sets[0].split()[-1]
    names = of.having(stack, *sets)
    if not names:
        return "Not measured yet.\n"
    each = [of.sums(one, "nll", names) for one in sets]
    tokens = of.sums(stack, "scored_tokens", names)
    mean = [sum(nll) / len(sets) for nll in zip(*each)]
    values = interval([own - other for own, other in zip(of.sums(stack, "nll", names), mean)],
                      tokens)
    ppl = [math.exp(sum(nll) / sum(tokens)) for nll in each]
    means = {"exact": of.mean("exact", "nll", names), stack: of.mean(stack, "nll", names)}
    return (f"On {len(names)} texts at {stack.split()[-1]} of the bytes: perplexity "
            f"{math.exp(means[stack]):.2f} with the profile's heads (exact "
            f"{math.exp(means['exact']):.2f}); with {len(sets)} random sets of as many heads "
            f"{sum(ppl) / len(ppl):.2f} on average, {min(ppl):.2f} to {max(ppl):.2f}. Difference "
            f"of ln ppl to the mean of the random sets: {signed(values)}: "
            f"{verdict(len(names), *values[1:])}.\n")


def needle_part(results):
    text = ""
    more = {one["length"]: one for one in results if one["kind"] == "needle-xkv"}
    for one in sorted((one for one in results if one["kind"] == "needle"),
                      key=lambda one: one["length"]):
        runs = [("exact", one["eval"]["exact"]), *zip(one["stacks"], one["eval"]["runs"])]
        if one["length"] in more:       # the same needles: exact caches find as many
            other = more[one["length"]]
            runs += zip(other["stacks"], other["eval"]["runs"])
        exact = runs[0][1]["needle_recall"]
        text += f"Prompts of {one['length']} tokens, {exact['trials']} needles: the exact cache "
        text += f"finds {100 * exact['recall']:.0f} %. "
        if exact["recall"] < 0.8:
            text += "That is less than 80 %, so nothing is said of the methods.\n\n"
            continue
        depths = [cell["depth"] for cell in exact["cells"]]
        text += "Found, in percent [95 %, Wilson], and by depth:\n\n"
        text += head("stack", "bytes kept", "all", *[f"at {depth} %" for depth in depths])
        for name, run in runs:
            recall = run["needle_recall"]
            text += row(name, f"{run['kv_fraction']:.4f}" if run["kv_fraction"] else "",
                        f"{100 * recall['recall']:.0f} [{100 * recall['ci'][0]:.0f}, "
                        f"{100 * recall['ci'][1]:.0f}]",
                        *[f"{100 * cell['recall']:.0f}" for cell in recall["cells"]])
        text += "\n"
    return text or "Not measured yet.\n"


MARKS = """Perplexity that a widely used library of cache compression gives for the same model (f32)
at 1,024 tokens of context, on one small text (exact cache 18.20), at 50 % / 25 % kept. Another text
and another protocol: marks to see the order of things by, not to compare digits with.

| method | 50 % kept | 25 % kept |
|---|---|---|
| SnapKV | 18.27 | 18.63 |
| StreamingLLM (as `window`) | 18.94 | 19.11 |
| TOVA | 18.87 | 19.44 |
| random | 30.9 | 36.0 |
"""

METHOD = """Each text is a sequence of which the first half is the prompt, compressed at its end as
`sheaf run` does; the second half is forced token by token, and scored. *Bytes kept* are stored /
exact bytes at the end of the prompt, by the receipts; options were found by `sheaf plan`, so that
all methods of one table keep the same bytes there. They need not do so later: `window` stays as it
is, `ems` grows by up to `recompress_interval` slots between two compressions, and the retrieval
heads of `razor_attention` go on growing with the text, as the column *at the end of the text* shows
(of the exact bytes there). Intervals are 95 %, of 10,000 draws of whole texts with replacement; ln
ppl is the logarithm of the perplexity, differences are paired by text, and below zero is better.
`ems` has `recent_tokens` 32 (or half of a smaller budget); `razor_attention` takes the heads of its
profile, or where these would take more than two thirds of the bytes those that take half of them.
Where it is worse than a window, docs/decisions/0010 says why: in this model's first layer the mean
slot does harm, in the others good; `razor_attention(1-29)+window(0)` leaves that layer to a window.
"""


def where(results):
    machines = sorted({f"{one['processor']}, {one['cores']} cores" for one in results})
    dates = sorted({one["date"] for one in results})
    versions = sorted({one["eval"]["version"] for one in results})
    mixed = (f" ({len(versions)} versions are mixed: what an unchanged stack got from an earlier "
             "one was not measured again)" if len(versions) > 1 else "")
    return (f"Measured {dates[0]}" + (f" to {dates[-1]}" if dates[-1] != dates[0] else "") +
            f" on {'; '.join(machines)}; sheaf {', '.join(versions)}{mixed}; "
            f"{sum(one['seconds'] for one in results) / 60:.0f} minutes in all. Model "
            f"{os.path.basename(results[0]['eval']['model'])}, weights and caches f32.\n")


def sources(of):
    counts = collections.Counter(of.package.values())
    return (f"{len(of.runs)} texts, of the Debian packages " +
            ", ".join(f"{package} ({count})" for package, count in sorted(counts.items())) + ".\n")


def page(folder, left, more):
    """The document, as text; left: pieces of work that were not done; more(results): a section."""
    results = results_of(folder)
    text = ("# Quality of the methods\n\nWritten by `python3 tests/quality/measure.py`; "
            "do not edit.\n\n")
    if not results:
        return text + "Nothing is measured yet.\n"
    text += where(results)
    if left:
        text += f"\n{left} pieces of work were left; the tables say on how many texts they stand.\n"
    for length in sorted({one["length"] for one in results if one["kind"] in TABLED}):
        of = Texts(results, length, TABLED)
        text += f"\n## Texts of {length:,} tokens, {length // 2:,} of them prompt\n\n"
        text += sources(of)
        for label in fractions_of(of):
            text += f"\n### {label} of the bytes\n\n" + table(of, label)
        text += "\n### Retrieval heads against random heads\n\n" + random_part(of)
    text += more(results)
    text += "\n## Needles\n\n" + needle_part(results)
    return text + "\n## Marks from outside\n\n" + MARKS + "\n## How\n\n" + METHOD
