"""Stacks of methods that keep a given part of a prompt's bytes: options found by `sheaf plan`.

One whole-number option of each method decides how much it keeps; `sheaf plan` says the ratio of
bytes for a prompt of so many tokens, and the option is closed in on the value that comes nearest.
RazorAttention also has its set of heads: the profile's, where that takes at most two thirds of the
bytes, else those of it with the highest scores that take half of them.
"""
import json
import os
import random
import subprocess

LAYERS, KV_HEADS = 30, 3                # of the model that is measured
FRACTIONS = [("1/2", 0.5), ("1/4", 0.25), ("1/8", 0.125)]
RANDOM_SETS, RANDOM_FRACTION = 10, ("1/4", 0.25)


class Planner:
    """Asks `sheaf plan`, and writes configurations into one folder."""

    def __init__(self, sheaf, model, folder, prompt, kv_dtype=None):
        self.sheaf, self.model, self.folder, self.prompt = sheaf, model, folder, prompt
        self.kv_dtype = kv_dtype                # None: model.dtype
        os.makedirs(folder, exist_ok=True)

    def text(self, *methods):
        dtype = f"  dtype: {self.kv_dtype}\n" if self.kv_dtype else ""
        return (f"schema_version: 1\nmodel: {{path: {json.dumps(self.model)}, dtype: f32}}\n"
                f"kv_cache:\n{dtype}  methods: [{', '.join(map(json.dumps, methods))}]\n")

    def write(self, name, *methods):
        path = os.path.join(self.folder, name + ".yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.text(*methods))
        return path

    def ratio(self, method):
        path = self.write(f"planned-{os.getpid()}", method)
        done = subprocess.run([self.sheaf, "plan", path, "--json", "--set",
                               f"scheduler.max_model_len={self.prompt}"],
                              capture_output=True, text=True, check=False)
        os.unlink(path)
        if done.returncode != 0:
            raise SystemExit(f"quality: error: sheaf plan refuses {method}:\n{done.stderr}")
        return json.loads(done.stdout)["kv_ratio"]

    def fit(self, method, option, least, fraction):
        """The method with the option that comes nearest to the fraction."""
        return self.nearest(lambda value: {**method, option: value}, least, self.prompt, fraction)

    def nearest(self, method_of, least, most, fraction):
        """Of method_of(least) to method_of(most) the one that comes nearest to the fraction."""
        at = {value: self.ratio(method_of(value)) for value in (least, most)}
        low, high = least, most                 # the ratio rises with the value, mostly evenly
        while high - low > 1 and at[low] < fraction < at[high]:
            middle = low + round((high - low) * (fraction - at[low]) / (at[high] - at[low]))
            middle = min(max(middle, low + 1), high - 1)
            at[middle] = self.ratio(method_of(middle))
            low, high = (middle, high) if at[middle] <= fraction else (low, middle)
        return method_of(min(at, key=lambda value: (abs(at[value] - fraction), value)))


def window(planner, fraction):
    return planner.fit({"name": "window", "num_sink_tokens": 4}, "recent_tokens", 1, fraction)


def ems(planner, fraction):
    """The window is the method's own 32 tokens, or half of a budget that is less than 64."""
    recent = max(min(int(planner.prompt * fraction) // 2, 32), 1)
    return planner.fit({"name": "ems", "num_sink_tokens": 4, "recent_tokens": recent},
                       "budget_tokens", recent + 5, fraction)


def razor(planner, fraction, heads, **more):
    """heads: retrieval heads, best first; cut where they would take too much."""
    total = LAYERS * KV_HEADS
    if len(heads) / total > fraction * 2 / 3:
        heads = heads[:max(int(total * fraction / 2), 1)]
    return planner.fit({"name": "razor_attention", "retrieval_heads": sorted(heads),
                        "num_sink_tokens": 4, "window_divisor": 1 << 20, "min_dropped_tokens": 1,
                        **more},
                       "min_window_tokens", 1, fraction)


def random_heads(count, seed):
    every = [[layer, head] for layer in range(LAYERS) for head in range(KV_HEADS)]
    return random.Random(seed).sample(every, count)


def plain_stacks(planner):
    """{name: path}: the baseline and what needs no profile."""
    return {f"{method.__name__} {label}":
            planner.write(f"{method.__name__}-{label.replace('/', '.')}",
                          method(planner, fraction))
            for label, fraction in FRACTIONS for method in (window, ems)}


def razor_stacks(planner, heads):
    return {f"razor_attention {label}": planner.write(f"razor-{label.replace('/', '.')}",
                                                      razor(planner, fraction, heads))
            for label, fraction in FRACTIONS}


def dropping_stacks(planner, heads):
    """The same heads, and nothing that stands for what is dropped."""
    return {f"razor_attention(no_compensation) {label}": planner.write(
        f"dropping-{label.replace('/', '.')}",
        razor(planner, fraction, heads, use_compensation_token=False))
            for label, fraction in FRACTIONS}


def later_stacks(planner, heads):
    """The same from layer 1 on, and in layer 0 a plain window of as many slots."""
    named = {}
    for label, fraction in FRACTIONS:
        folds = razor(planner, fraction, heads)
        named[f"razor_attention(1-29)+window(0) {label}"] = planner.write(
            f"later-{label.replace('/', '.')}", {**folds, "layers": f"1-{LAYERS - 1}"},
            {"name": "window", "num_sink_tokens": 4, "layers": "0",
             "recent_tokens": folds["min_window_tokens"] + 1})
    return named


def random_stacks(planner, heads):
    """The profile's set at one fraction has as many heads as each of these."""
    label, fraction = RANDOM_FRACTION
    count = len(razor(planner, fraction, heads)["retrieval_heads"])
    return {f"random {seed} {label}": planner.write(
        f"random-{seed}", razor(planner, fraction, random_heads(count, seed)))
            for seed in range(RANDOM_SETS)}
