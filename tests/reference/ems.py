"""EMS (arXiv 2412.08521): evict, then merge, per KV head, down to budget_tokens slots.

    s_glo  column sums of the attention (mean over the group's query heads) over all rows; kept
    s_loc  the same over the last w rows of the prompt, in decode over the rows since the last event
    s      a * s_glo + s_loc, a = mean(s_loc) / mean(s_glo) over the candidates
    slots  [sinks N0 | candidates | window w]; C = budget - w - N0 candidates become centres, the
           next ones by s (to be merged) join the most similar centre if that is over tau, the rest
           goes
    merge  w_i = s_i / sum s; u = sum w_i k_i/|k_i|; k^ = rho u/|u|, rho = sum w_i |k_i|;
           v^ = sum w_i v_i; s_glo and the count m add up, pos stays the centre's

Choices where the description leaves one:
  - Sinks are the first N0 slots, the window the newest w, whatever they stand for.
  - global_norm count divides at scoring by tokens - pos; what is kept stays the plain sum.
  - combine local: s = s_loc; combine max: max(a s_glo, s_loc).  s_glo is kept all the same.
  - pool_kernel is odd; the maximum is taken over candidates alone, on s, before everything else
    (ranking, cover, weights).
  - Classes are numbered by slot, so an equal similarity goes to the older centre.
  - tau >= 1 merges nothing, whatever the rounding.
  - pre_rope compares and merges unrotated keys; a centre with members is turned back to its pos.
  - |u| < 1e-6: rho times the centre's unit key (0 for a zero key).
  - mass_bias log_count: bias = ln m from the event on.
  - The local mass starts at 0 after the prompt also where the prompt was not compressed.
  - recompress_interval is 32 whatever w is.
  - Evicted and merged count slots, not the tokens that they stand for.
  - sparsity: budgets of a layer are set once, at its first event (the prompt's end, if it is longer
    than budget_tokens, else the first full lane), and stay.  need = fewest candidates with 90 % of
    s; floor = w + max(1, (B - w) / 4) but at least w + N0 + 1; no need anywhere: equal shares.  A
    lane that is not longer than its budget keeps all, fills up to budget + interval, and its local
    mass starts anew all the same.
  - Bytes: payload and 8 a slot; s_glo, acc and m are not in them (stats: slots).

Gaps: `gaps[layer, head]` has the smallest distance of every decision from the other way, by kind:
cut (s at the C-th), border (where the tokens to be merged end: s, and with the mass rule the cover;
only where a token beside the border would merge, since otherwise it goes either way), tau, argmax,
need, zero (|u|).  s and mass relative to themselves, cosines as they are.  Each event has its own
smallest one, and first_tight() tells from which row on a lane is open to doubt.
"""
import attention
from attention import np

DEFAULTS = {"budget_tokens": 256, "recent_tokens": 32, "num_sink_tokens": 4, "global_norm": "none",
            "combine": "sum", "pool_kernel": 1, "tbm_rule": "mass", "tbm_mass": 0.95,
            "tbm_ratio": 1.0, "similarity_threshold": 0.5, "signed_guard": True,
            "key_norm": "weighted", "merge_space": "post_rope", "mass_bias": "none",
            "recompress_interval": 32, "head_budget": "uniform"}
VALUES = {"global_norm": ("none", "count"), "combine": ("sum", "max", "local"),
          "tbm_rule": ("mass", "fixed"), "key_norm": ("weighted", "center"),
          "merge_space": ("post_rope", "pre_rope"), "mass_bias": ("none", "log_count"),
          "head_budget": ("uniform", "sparsity")}
TINY = 1e-30


class Ems(attention.Method):
    columns = ("glo", "acc", "m")

    def __init__(self, options, theta=0.0):
        super().__init__()
        self.o, self.theta = checked(options), theta
        self.last_rows = options["recent_tokens"]
        self.budgets = {}               # layer: [budget of each lane]
        self.events, self.gaps = [], {}

    def prompt_end(self, layer, lanes, tokens, all_rows, last):
        for head, lane in enumerate(lanes):
            lane["glo"][:], lane["acc"][:], lane["m"][:] = all_rows[head], last[head], 1
        if self.o["head_budget"] == "uniform":
            self.budgets[layer] = [self.o["budget_tokens"]] * len(lanes)
        if tokens > self.o["budget_tokens"]:
            self.compress_layer(layer, lanes, tokens, range(len(lanes)))
        for lane in lanes:
            lane["acc"][:] = 0

    def after_row(self, layer, lanes, tokens, weights):
        for lane, given in zip(lanes, weights):
            lane["m"][-1] = 1
            lane["glo"][:] += given
            lane["acc"][:] += given
        budgets = self.budgets.get(layer, [self.o["budget_tokens"]] * len(lanes))
        full = [head for head, lane in enumerate(lanes)
                if lane.slots >= budgets[head] + self.o["recompress_interval"]]
        if full:
            self.compress_layer(layer, lanes, tokens, full)

    def compress_layer(self, layer, lanes, tokens, heads):
        if layer not in self.budgets:
            needs = []
            for head, lane in enumerate(lanes):
                gaps = self.gaps.setdefault((layer, head), {})
                needs.append(need(scored(lane, tokens, self.o)[0], gaps))
            self.budgets[layer] = sparsity_budgets(needs, self.o)
            # A share depends on the needs of all heads.
            tightest = min(self.gaps[layer, head].get("need", np.inf) for head in range(len(lanes)))
            for head in range(len(lanes)):
                self.gaps[layer, head]["need"] = tightest
        for head in heads:
            lane, budget = lanes[head], self.budgets[layer][head]
            if lane.slots <= budget:
                lane["acc"][:] = 0
                continue
            gaps, all_gaps = {}, self.gaps.setdefault((layer, head), {})
            event = compress(lane, budget, tokens, self.o, self.theta, gaps)
            event["gap"] = min([*gaps.values(), all_gaps.get("need", np.inf)])
            for kind, gap in gaps.items():
                closest(all_gaps, kind, gap)
            self.counts["slots_merged"] += event["merged"]
            self.counts["slots_evicted"] += event["zero"] + event["irrelevant"]
            self.events.append({"layer": layer, "head": head, "tokens": tokens, **event})

    def smallest_gap(self):
        return min((gap for kinds in self.gaps.values() for gap in kinds.values()),
                   default=np.inf)

    def first_tight(self, layer, head, below=1e-5):
        """Tokens seen when this lane first decided something by less than that; None if never."""
        return next((event["tokens"] for event in self.events if event["gap"] < below and
                     (event["layer"], event["head"]) == (layer, head)), None)

    def report(self):
        return {"events": len(self.events), "smallest_gap": float(min(self.smallest_gap(), 1e30)),
                "slots_zero": sum(event["zero"] for event in self.events)}


def run(trace, options=None, element_bytes=4):
    method = Ems(attention.filled(DEFAULTS, options), trace.theta)
    return attention.drive(trace, method, element_bytes)


def checked(o):
    for key, allowed in VALUES.items():
        if o[key] not in allowed:
            raise ValueError(f"{key}: {o[key]} is none of {', '.join(allowed)}")
    if o["budget_tokens"] - o["recent_tokens"] - o["num_sink_tokens"] < 1:
        raise ValueError("budget_tokens leaves no slot beside the window and the sinks")
    if o["recompress_interval"] < 1 or o["pool_kernel"] % 2 == 0:
        raise ValueError("recompress_interval is at least 1 and pool_kernel odd")
    return o


def slot_bytes(d, element_bytes):
    """As the method's description counts them: k, v, s_glo, acc, m and pos."""
    return 2 * d * element_bytes + 16


def closest(gaps, kind, gap):
    gaps[kind] = min(gaps.get(kind, np.inf), float(gap))


def apart(larger, smaller):
    """Distance of two scores relative to the larger; what f32 cannot hold is no distance."""
    return abs(larger - smaller) / max(abs(larger), abs(smaller), TINY)


# ---- one event -----------------------------------------------------------------------------------

def compress(lane, budget, tokens, o, theta, gaps):
    """The lane down to `budget` slots.  Returns the counts and the slots by their fate."""
    sinks, window = o["num_sink_tokens"], o["recent_tokens"]
    s, source = scored(lane, tokens, o)
    important, tbm, border = categories(s, source, budget - window - sinks, o, gaps)
    centres, members = important + sinks, tbm + sinks        # slots of the lane
    k, v, pos = lane["k"], lane["v"], lane["pos"]
    if o["merge_space"] == "pre_rope":
        k = attention.rotate(k, -pos, theta)
    classes = classify(k, v, centres, members, o, gaps)
    for candidates, gap in border:
        if classify(k, v, centres, candidates + sinks, o, {}).any():
            closest(gaps, "border", gap)
    new = {name: np.array(lane[name]) for name in ("pos", "k", "v", "glo", "m", "bias")}
    slots_s = np.concatenate([np.zeros(sinks), s, np.zeros(window)])
    merge(new, k, v, slots_s, centres, members, classes, o, theta, gaps)
    if o["mass_bias"] == "log_count":
        new["bias"] = np.log(new["m"])
    before, kept = lane.slots, np.concatenate(
        [np.arange(sinks), centres, np.arange(lane.slots - window, lane.slots)])
    lane.assign(**{name: column[kept] for name, column in new.items()})
    merged, zero = int((classes > 0).sum()), int((classes == 0).sum())
    return {"before": before, "after": lane.slots, "merged": merged, "zero": zero,
            "irrelevant": before - lane.slots - merged - zero, "centres": centres,
            "members": members, "classes": classes, "s": s}


def scored(lane, tokens, o):
    """Combined scores of the candidates, and from which candidate each comes (pooling)."""
    mine = slice(o["num_sink_tokens"], lane.slots - o["recent_tokens"])
    glo, loc = lane["glo"][mine], lane["acc"][mine]
    if o["global_norm"] == "count":
        glo = glo / (tokens - lane["pos"][mine])
    a = loc.mean() / glo.mean() if glo.mean() > 0 else 0.0
    s = {"sum": a * glo + loc, "max": np.maximum(a * glo, loc), "local": loc}[o["combine"]]
    reach = o["pool_kernel"] // 2
    source = np.arange(len(s))
    if reach:
        source = np.array([max(range(max(i - reach, 0), min(i + reach + 1, len(s))),
                               key=lambda j: s[j]) for i in range(len(s))])
    return np.array(s[source]), source


def categories(s, source, centres, o, gaps):
    """The important ones, ascending; those to be merged, from the highest score down; and how near
    the end of these is: (candidates that a rounding error would move, distance)."""
    order = np.argsort(-s, kind="stable")
    important, rest = order[:centres], order[centres:]
    if source[important[-1]] != source[rest[0]]:
        closest(gaps, "cut", apart(s[important[-1]], s[rest[0]]))
    border = []
    if o["tbm_rule"] == "fixed":
        count = min(int(np.floor(o["tbm_ratio"] * centres)), len(rest))
    else:
        covered, count, wanted = s[important].sum(), 0, o["tbm_mass"] * s.sum()
        before = 0.0
        while covered < wanted and count < len(rest):
            before, covered, count = covered, covered + s[rest[count]], count + 1
        if count > 0:
            border.append((rest[count - 1:count], apart(before, wanted)))
        if wanted > 0:
            border.append((rest[count:count + 1], apart(covered, wanted)))
    if 0 < count < len(rest) and source[rest[count - 1]] != source[rest[count]]:
        border.append((rest[count - 1:count + 1], apart(s[rest[count - 1]], s[rest[count]])))
    return np.sort(important), rest[:count], border


def cosines(x, y):
    """[len(x), len(y)]; 0 beside a zero vector."""
    return safe_unit(x) @ safe_unit(y).T


def safe_unit(x):
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


def classify(k, v, centres, members, o, gaps):
    """Class of each member: 0 the zero class, else 1 + the index of a centre."""
    tau = o["similarity_threshold"]
    if not len(members) or tau >= 1:
        return np.zeros(len(members), int)
    of_k, of_v = cosines(k[members], k[centres]), cosines(v[members], v[centres])
    beyond_guard = np.maximum(-of_k, -of_v).min(1)      # how far the nearest is from positive
    if o["signed_guard"]:
        of_k, of_v = np.maximum(of_k, 0), np.maximum(of_v, 0)
    all_sims = np.concatenate([np.full((len(members), 1), tau), of_k * of_v], 1)
    classes = all_sims.argmax(1)
    ranked = np.sort(all_sims[:, 1:], 1)
    to_tau = np.abs(ranked[:, -1] - tau)
    if o["signed_guard"] and tau == 0:
        to_tau = np.where(ranked[:, -1] == 0, beyond_guard, to_tau)
    closest(gaps, "tau", to_tau.min())
    chosen = ranked[classes > 0]
    if len(chosen) and len(centres) > 1:
        closest(gaps, "argmax", (chosen[:, -1] - chosen[:, -2]).min())
    return classes


def merge(new, k, v, s, centres, members, classes, o, theta, gaps):
    """Members into their centres' rows of `new`; k in the space where keys are merged.  All heads
    do the same: a sum into C + 1 classes, of which class 0 is dropped."""
    joined = np.concatenate([centres, members])
    of = np.concatenate([np.arange(1, len(centres) + 1), classes])
    into = (of[None, :] == np.arange(len(centres) + 1)[:, None])[1:].astype(float)
    touched = np.flatnonzero(into.sum(1) > 1)
    into = into[touched]
    weight = into * s[joined]
    flat = weight.sum(1) == 0
    weight[flat] = into[flat]
    weight /= weight.sum(1, keepdims=True)
    rows = centres[touched]
    norms = np.linalg.norm(k[joined], axis=1)
    u = weight @ safe_unit(k[joined])
    length = np.linalg.norm(u, axis=1, keepdims=True)
    if len(touched):
        closest(gaps, "zero", np.abs(length - 1e-6).min())
    direction = np.where(length < 1e-6, safe_unit(k[rows]), u / np.maximum(length, 1e-6))
    rho = weight @ norms if o["key_norm"] == "weighted" else np.linalg.norm(k[rows], axis=1)
    merged = rho[:, None] * direction
    if o["merge_space"] == "pre_rope":
        merged = attention.rotate(merged, new["pos"][rows], theta)
    new["k"][rows], new["v"][rows] = merged, weight @ v[joined]
    for name in ("glo", "m"):
        new[name][rows] = into @ new[name][joined]


# ---- budgets by head -----------------------------------------------------------------------------

def need(s, gaps):
    """How many candidates, from the highest score down, hold 90 % of s."""
    covered, wanted = np.cumsum(np.sort(s)[::-1]), 0.9 * s.sum()
    if wanted <= 0:
        return 0
    count = int(np.searchsorted(covered, wanted)) + 1
    closest(gaps, "need", np.min(np.abs(covered - wanted)) / wanted)
    return min(count, len(s))


def sparsity_budgets(needs, o):
    budget, window = o["budget_tokens"], o["recent_tokens"]
    floor = max(window + max(1, (budget - window) // 4), window + o["num_sink_tokens"] + 1)
    pool, total = len(needs) * (budget - floor), sum(needs)
    if total == 0:
        needs, total = [1] * len(needs), len(needs)
    budgets = [floor + pool * share // total for share in needs]
    left = len(needs) * budget - sum(budgets)
    by_remainder = sorted(range(len(needs)), key=lambda head: (-(pool * needs[head] % total), head))
    for head in by_remainder[:left]:
        budgets[head] += 1
    return budgets
