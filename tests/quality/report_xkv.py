"""The part of docs/quality.md about xkv: how wide a basis should be, where it beats eviction, what
it loses of keys and values; and the plot of the first of these, by gnuplot.
"""
import fractions
import math
import re
import shutil
import subprocess

import report
import stacks_xkv

XKV = f"xkv(W={stacks_xkv.GROUPS[0]})"
EVICTION = ["window", "ems", "razor_attention"]
WIDTHS = sorted(stacks_xkv.GROUPS)
MEASURED = {"xkv", "widths", "between", "evict", "basis", "ways", "bare", "first",
            "ending"}


def count_of(names):
    few = "" if len(names) >= report.TEXTS_MIN else ", too few for a verdict"
    return f"{len(names)} text{'s' if len(names) > 1 else ''}{few}"


def widths_table(of, title, named):
    """named: {W: stack}; ln ppl on the texts that all of them were measured on."""
    names = of.having("exact", *named.values())
    if not names:
        return ""
    text = (f"\n{title}; {count_of(names)}:\n\n" +
            report.head("W", "bytes kept", "ln ppl - exact", "ln ppl - that of W/2", "mean KL, nat",
                        "same top-1"))
    for width, stack in sorted(named.items()):
        narrower = named.get(width // 2)
        text += report.row(str(width), f"{of.fraction(stack, names, ''):.4f}",
                           report.signed(report.apart(of, stack, "exact", names)),
                           report.signed(report.apart(of, stack, narrower, names))
                           if narrower else "", f"{of.mean(stack, 'kl', names):.4f}",
                           f"{of.mean(stack, 'agree', names):.4f}")
    return text


def widths_part(of):
    equal = stacks_xkv.label_of(stacks_xkv.RANKS)
    text = widths_table(of, f"Equal ranks of a layer ({equal}), so equal bytes of the basis alone",
                        {width: f"xkv(W={width}) {equal}" for width in WIDTHS})
    for label in ("1/2", "1/4"):
        text += widths_table(of, f"{label} of the bytes in all",
                             {width: f"xkv(W={width}) {label}" for width in WIDTHS})
    return text or "\nNot measured yet.\n"


# ---- where the curves cross -------------------------------------------------------------------
def labels_of(of, stack):
    found = [name.split()[-1] for name in of.stacks() if name.startswith(stack + " ")]
    return sorted((label for label in found if re.fullmatch(r"1/\d|2/3", label)),
                  key=fractions.Fraction, reverse=True)


def curves_of(of):
    """({stack: {label: stack's name}}, [texts]): xkv and window at all labels that both have, on
    the texts that have these; the others at the labels that all of these texts have."""
    labels = [label for label in labels_of(of, XKV) if f"window {label}" in of.stacks()]
    names = of.having("exact", *[f"{stack} {label}" for label in labels
                                 for stack in (XKV, "window")])
    curves = {stack: {label: f"{stack} {label}" for label in labels
                      if set(names) <= set(of.having(f"{stack} {label}"))}
              for stack in [XKV, *EVICTION]}
    return curves, names if labels else []


def crossing(of, one, two, names):
    """Ratios at which curve `one` comes to lie above or below `two`, on a line between points."""
    found, before = [], None
    for label in sorted(set(one) & set(two), key=fractions.Fraction, reverse=True):
        at = math.log(1 / fractions.Fraction(label))
        apart = report.apart(of, one[label], two[label], names)[0]
        if before is not None and apart * before[1] < 0:
            share = before[1] / (before[1] - apart)
            found.append((math.exp(before[0] + share * (at - before[0])), apart > 0))
        before = at, apart
    return found, before[1] > 0


def measured_curves(of):
    """Those that have points, and the texts; None where there is nothing to hold them against."""
    curves, names = curves_of(of)
    curves = {stack: curve for stack, curve in curves.items() if curve}
    return (curves, names) if names and len(curves) > 1 else None


def table_of(of, curves, names):
    """By bytes kept, one curve beside the other."""
    text = f"{count_of(names)}:\n\n" + report.head("bytes kept", *curves, "xkv - window",
                                                   "mean KL, nat: xkv", "window")
    for label in sorted(curves[XKV], key=fractions.Fraction, reverse=True):
        cells = [report.signed(report.apart(of, curve[label], "exact", names))
                 if label in curve else "" for curve in curves.values()]
        pair = (curves[XKV][label], curves["window"][label])
        text += report.row(label, *cells, report.signed(report.apart(of, *pair, names)),
                           *[f"{of.mean(stack, 'kl', names):.4f}" for stack in pair])
    return text


def crossover_part(of, image):
    measured = measured_curves(of)
    if measured is None:
        return "\nNot measured yet.\n"
    curves, names = measured
    text = "\nln ppl - exact, of the texts that have all of these; " + table_of(of, curves, names)
    text += f"\n![ln ppl over the ratio]({image})\n"
    for stack in EVICTION:
        if stack not in curves:
            continue
        found, above = crossing(of, curves[XKV], curves[stack], names)
        text += f"\nAgainst `{stack}`: " + ("; ".join(
            f"the curves cross at a ratio of {ratio:.2f}, behind which xkv is "
            f"{'worse' if worse else 'better'}" for ratio, worse in found) if found else
            f"xkv is {'worse' if above else 'better'} at all of these ratios") + ".\n"
    return text


def longer_part(results):
    """The same table of longer texts."""
    text = ""
    for length in (4000, 8000):
        of = report.Texts(results, length, {"plain", "razor", *MEASURED})
        measured = measured_curves(of)
        if measured:
            text += f"\nThe same at texts of {length:,} tokens; " + table_of(of, *measured)
    return text


def ending_part(of):
    """Against windows that hold as much at the end of the text."""
    text = ""
    for label in ("1/2", "1/4", "1/8"):
        pair = f"{XKV} {label}", f"window-at-end {label}"
        names = of.having("exact", *pair)
        if names:
            text += report.row(label, str(len(names)), *[
                f"{of.fraction(stack, names, '_end'):.4f}" for stack in pair], *[
                    report.signed(report.apart(of, *two, names)) for two in (
                        (pair[0], "exact"), (pair[1], "exact"), pair)],
                *[f"{of.mean(stack, 'kl', names):.4f}" for stack in pair])
    return ENDING_TEXT + "\n" + report.head(
        "bytes of the prompt kept", "texts", "at the end: xkv", "window", "ln ppl - exact, xkv",
        "window", "difference", "mean KL, nat: xkv", "window") + text if text else ""


def plot(of, path):
    """SVG; where there is no gnuplot the file stays as it was."""
    curves, names = curves_of(of)
    if not names or shutil.which("gnuplot") is None:
        return
    lines, drawn = [], []
    for stack, curve in curves.items():
        rows = []
        for label, name in curve.items():
            value = report.apart(of, name, "exact", names)
            low, high = value[:1] * 2 if math.isnan(value[1]) else value[1:]
            rows.append(f"{1 / fractions.Fraction(label)!s:.6} {value[0]:.5f} {low:.5f} {high:.5f}"
                        .replace("3/2", "1.5"))
        block = f"$data{len(lines)}"
        lines.append(f"{block} << EOD\n" + "\n".join(rows) + "\nEOD\n")
        drawn.append(f"{block} using 1:2:3:4 with yerrorlines pt 7 ps 0.5 lw 1.5 title "
                     f"'{stack.replace('_', ' ')}'")
    script = ("set terminal svg size 720,420 dynamic background 'white' noenhanced\n"
              "set encoding utf8\nset logscale x\nset xtics (1.5,2,3,4,6,8)\nset grid\n"
              "set xrange [1.4:8.6]\nset key left top\nset xlabel 'exact bytes / stored bytes at "
              f"the end of the prompt'\nset ylabel 'ln ppl - exact'\nset title '{len(names)} text"
              f"{'s' if len(names) > 1 else ''} of 2,000 tokens; 95 % intervals over texts'\n" +
              "".join(lines) + "plot " + ", ".join(drawn) + "\n")
    done = subprocess.run(["gnuplot"], input=script, capture_output=True, text=True, check=False)
    if done.returncode != 0 or "<svg" not in done.stdout:
        raise SystemExit(f"quality: error: gnuplot draws nothing: {done.stderr}")
    with open(path, "w", encoding="utf-8") as file:
        file.write(done.stdout)


# ---- sinks, factors, and other types ---------------------------------------------------------
def sinks_part(of):
    text = ""
    for label in ("1/2", "1/4", "1/8"):
        kept = f"{XKV} {label}"
        for sinks in (0, 1):
            stack = f"{XKV[:-1]},sinks={sinks}) {label}"
            names = of.having("exact", kept, stack)
            if names:
                text += report.row(label, str(sinks), str(len(names)), *[
                    report.signed(report.apart(of, *pair, names)) for pair in (
                        (stack, "exact"), (kept, "exact"), (stack, kept))])
    return "\n" + report.head("bytes kept", "sinks", "texts", "ln ppl - exact", "with 4 sinks",
                              "difference") + text if text else "\nNot measured yet.\n"


def ways_part(of):
    randomized = f"xkv(W=4) {stacks_xkv.label_of(stacks_xkv.RANKS)}"
    ways = [f"xkv(W=4) {name}" for name, _ in stacks_xkv.WAYS]
    names = of.having("exact", randomized, *ways)
    if not names:
        return "\nNot measured yet.\n"
    text = f"\n{count_of(names)}:\n\n" + report.head(
        "svd.method", "ln ppl - exact", "ln ppl - randomized", "mean KL, nat")
    for stack in [randomized, *ways]:
        label = "randomized" if stack == randomized else stack.split()[1]
        if "=" in label:
            label = f"randomized, {label}"
        text += report.row(label, report.signed(report.apart(of, stack, "exact", names)),
                           "" if stack == randomized else
                           report.signed(report.apart(of, stack, randomized, names)),
                           f"{of.mean(stack, 'kl', names):.4f}")
    return text


def stored(of, names, stack):
    """Bytes at the end of the prompts."""
    return sum(of.runs[name][stack]["kv_bytes_stored"] for name in names)


def half_part(of):
    stacks = [stack for stack in of.stacks() if "-bit " in stack]
    names = of.having("exact", *stacks)
    if not stacks or not names:
        return "\nNot measured yet.\n"
    text = f"\n{count_of(names)}:\n\n" + report.head(
        "stack", "bytes kept, of 16 bits", "ln ppl - exact in 16 bits", "mean KL, nat")
    wide = stored(of, names, "16-bit window 1/2") / of.fraction("16-bit window 1/2", names,
                                                                        "")
    kept = {stack: stored(of, names, stack) / wide for stack in stacks}
    for stack in sorted(stacks, key=lambda name: (-round(kept[name], 2), name)):
        text += report.row(stack, f"{kept[stack]:.4f}",
                           report.signed(report.apart(of, stack, "exact", names)),
                           f"{of.mean(stack, 'kl', names):.4f}")
    return text


def rounding_part(plain, half):
    """What 16 bits alone cost: both exact caches on one text."""
    names = [name for name in half.having("exact") if name in plain.having("exact")]
    if not names:
        return ""
    pairs = [half.sums("exact", "nll", names), plain.sums("exact", "nll", names)]
    values = report.interval([one - two for one, two in zip(*pairs)],
                             plain.sums("exact", "scored_tokens", names))
    return f"\nThe exact cache in 16 bits less that in f32: {report.signed(values)}.\n"


def square_sums(layers):
    """(of x, of what is left) over [[norm, part]] of the layers"""
    return (sum(norm ** 2 for norm, _ in layers),
            sum((norm * part) ** 2 for norm, part in layers))


def error_of(results, stack, kind):
    """Of all layers and texts together."""
    sums = [square_sums(one["loss"][stack][kind]) for one in results]
    return math.sqrt(sum(left for _, left in sums) / sum(all_of_it for all_of_it, _ in sums))


def layers_won(results, stack, other, kind):
    """Share of layers, over all texts, of which `stack` leaves less than `other`."""
    won = [one[1] < two[1] for result in results
           for one, two in zip(result["loss"][stack][kind], result["loss"][other][kind])]
    return sum(won) / len(won)


def compared(results, stack, kind):
    """The error, and in how many layers it is below that of W=1 at the same label."""
    text = f"{error_of(results, stack, kind):.4f}"
    width, label = stack.split()
    alone = [f"xkv(W=1) {label}", f"xkv(W=1) ={label}"]
    if width != "xkv(W=1)" and label[0] != "=" and alone[0] in results[0]["loss"]:
        text += " (" + ", ".join(f"{100 * layers_won(results, stack, one, kind):.0f} %"
                                 for one in alone if one in results[0]["loss"]) + ")"
    return text


def loss_table(results):
    runs = {stack: [one["eval"]["runs"][one["stacks"].index(stack)] for one in results]
            for stack in results[0]["stacks"]}
    text = report.head("stack", "bytes kept", "error of keys", "error of values")
    for stack, of in runs.items():
        kept = (sum(run["kv_bytes_stored"] for run in of) /
                sum(run["kv_bytes_exact"] for run in of))
        text += report.row(stack, f"{kept:.4f}", *[compared(results, stack, kind)
                                                  for kind in ("keys", "values")])
    return text


def loss_part(results):
    text = ""
    for length in sorted({one["length"] for one in results if one["kind"] == "loss"}):
        some = [one for one in results if one["kind"] == "loss" and one["length"] == length]
        text += f"\nPrompts of {length:,} tokens, {len(some)} of them:\n\n" + loss_table(some)
    return text or "\nNot measured yet.\n"


def page(results, image):
    """Markdown, and the plot at `image`'s path."""
    of = report.Texts(results, 2000, {"plain", "razor", *MEASURED})
    half = report.Texts(results, 2000, {"half"})
    text = "\n## xKV\n\n" + INTRODUCTION + FINDINGS + "\n### Against eviction\n"
    text += crossover_part(of, image.split("/")[-1])
    text += longer_part(results)
    text += ending_part(of)
    plot(of, image)
    text += "\n### The first tokens\n\n" + SINKS_TEXT + sinks_part(of)
    text += "\n### How many layers should share a basis\n\n" + WIDTHS_TEXT + widths_part(of)
    for length in (4000, 8000):
        longer = report.Texts(results, length, {"plain", "razor", *MEASURED})
        if longer.having(f"{XKV} {stacks_xkv.label_of(stacks_xkv.RANKS)}"):
            text += f"\n#### Texts of {length:,} tokens\n" + widths_part(longer)
    text += "\n### What factors lose of keys and values\n\n" + LOSS_TEXT + loss_part(results)
    text += "\n### Ways to factors\n\n" + WAYS_TEXT + ways_part(of)
    text += "\n### In 16 bits\n\n" + HALF_TEXT + half_part(half)
    return text + rounding_part(of, half)


INTRODUCTION = """`xkv` with dense reconstruction on the same texts. W is `group_size`: the layers
that share a basis; ranks stand as 2 to 3, keys to values. *Bytes kept* include bases, factors and 8
bytes a slot, at the end of the prompt; what is generated stays raw, so that later xkv keeps more
than a window does.
"""

# By hand; to be read again when the tables below stand on more texts.
FINDINGS = """
### What was found, on one to eight texts

- *A joint basis loses less*: at equal bytes in all W=4 leaves 0.148 of the keys' norm and 0.361 of
  the values' at 2,000 tokens, bases of single layers 0.206 and 0.503, W=2 in between; so it is in
  29 of 30 layers, and with 4,000 tokens likewise (0.153 and 0.379 against 0.220 and 0.537; the
  share of the bytes is smaller there). At twice the ranks the lead is larger: 0.090 and 0.199 for
  0.133 and 0.299.
- *Perplexity follows W*, 1 < 2 < 4, at 2,000, 4,000 and 8,000 tokens: at equal bytes of the basis
  each step is worth 0.009 to 0.013 nat, on every text at 4,000 (three) and 8,000 (two), and on
  eight at 2,000 with intervals that leave out zero. At 1/4 of the bytes in all the means stand in
  that order at all lengths, as they do by KL, but at 2,000 from one to the next the interval
  includes zero. All that with the first tokens kept raw.
- *The first token decides*: with none kept raw, the loss at 1/2 of the bytes is 0.10 and 0.26 nat
  where it is under 0.01 with four, and four times the bytes of 1/8 take off little. On the text
  where it was tried one token does as much as four. W does not order then. The method's own default
  is none: set `num_sink_tokens` (docs/decisions/0012).
- *At equal bytes at the end of the prompt* xkv is better than a window on eight texts at 1/2, 1/4
  and 1/8, and than `window`, `ems` and `razor_attention` at ratios of 1.5 to 8 on two to four, at
  4,000 and 8,000 tokens too (`razor_attention` not at 8,000): no curves cross in perplexity.
- *Needles cross*: at 1/2 of the bytes xkv finds what the exact cache finds, at 1/4 more than a
  window and `ems` and no less than `razor_attention` (and W=4 more than 2, 2 more than 1); at
  1/8 it finds none, where `razor_attention` finds 30 and 50 %. At 512 and 1,024 tokens factors take
  much of 1/8: ranks of 26/39 and 38/58 for four layers are left.
- *At equal bytes at the end of the text* a window is nearer to the exact cache at all three points
  by KL, on one text; perplexity does not tell them apart. Prose asks little of what a window has
  forgotten; needles ask for it.
- *Ways to factors*: `exact` and `gram` agree to four digits; `randomized`, the default, leaves
  2.5 % more of the keys' norm and 2.8 % more of the values', which neither perplexity nor KL shows.
  Without power iterations it leaves 46 % more, and KL is nearly three times as large.
- *In 16 bits* xkv and a window lose what they lose in f32, against an exact cache that loses
  nothing by its 16 bits: all ratios double. *In int8* the exact cache keeps 0.545 of the bytes of
  16 bits and loses 0.0006 nat, which no method gets near at that place; xkv in 16 bits has a loss
  as small at 1/2. A window of int8 slots holds twice the slots and loses about half as much as one
  of 16 bits, and more than xkv in 16 bits at 1/2, 1/4 and 1/8: no crossing there either.
- *Not measured yet*: more than one to four texts where the tables say so.
  `tests/quality/measure.py` goes on where it was.
"""

ENDING_TEXT = """
That is not equal bytes in the answer: what is generated stays raw with xkv, while a window lets as
much go. So also against windows of as many bytes as xkv has at the end of the text. These flatter
the window in turn, as it then holds the whole prompt at first and more than xkv until the end:
"""

SINKS_TEXT = """`num_sink_tokens` of xkv: the first tokens that stay raw and outside of the bases; 0
by default, 4 in all other measurements here, which is what the window and the other methods keep.
The usual explanation, not measured here: attention with nothing to look for goes to the first
token, which has next to no value; what a basis leaves of that one is then added everywhere.
"""

WIDTHS_TEXT = """At equal ranks of a layer a wider group has the same basis but W times the factors
(192 (r_K + r_V) elements for each layer, with the ranks of the whole group); at equal bytes in all
it pays for these with rank, the more so the shorter the prompt is.
"""

LOSS_TEXT = """The relative error of the product, |X - A B| / |X| (Frobenius) over all layers and
texts, of keys before RoPE and of values of whole prompts without their first 4 tokens, as `sheaf
eval --log-level debug` tells of each layer before basis and factors are rounded. 24/36: ranks a
layer, of keys and of values. =24/36: as many bytes in all as W=4 has with 24/36. In brackets: the
share of layers whose error is below that of W=1 with equal ranks a layer, and with equal bytes in
all.
"""

WAYS_TEXT = """W=4 with 24/36 a layer; `randomized` has two power iterations and no oversampling,
as by default.
"""

HALF_TEXT = """`kv_cache.dtype: f16`: the raw slots, basis and factors of these stacks in 16 bits;
and `int8`, for the raw slots of exact caches and windows (a scale for each key and each value).
Factors of int8 or int4 are not built: nothing is said of these.
"""
