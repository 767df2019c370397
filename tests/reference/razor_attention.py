"""RazorAttention (arXiv 2407.15891): retrieval heads keep all; the others keep sinks, a window and
one compensation slot.

    N    tokens of the prompt             L_h  max(min_window_tokens, ceil(N / window_divisor))
    N0   num_sink_tokens                  D    positions N0 .. N - L_h - 1, N_d of them
    k^   mean of the keys of D after RoPE, v^ of the values; in logits with the bias ln N_d

Choices where the description leaves one:
  - L_h of a lane that drops nothing at the end of the prompt is that of the prompt as well.
  - Such a lane folds when max(min_dropped_tokens, 1) tokens lie outside; with `freeze` never.
  - Without a compensation token the same positions go at the same times, and are gone.
  - The compensation slot's pos is its lowest position, N0; it stands after the sinks.
  - N_d is not stored apart (the bias holds it): the slot costs (d + dv) * 4 + 8 bytes.
  - window_divisor is an integer; prefill_mode streaming is not covered.
  - `promote`: k = floor(ratio * L * Hq + 0.5) query heads, ties by layer, then query head.
  - The mean over rows divides by the rows i >= R of each head.
"""
import attention
from attention import np

DEFAULTS = {"retrieval_heads": (), "num_sink_tokens": 4, "min_window_tokens": 4000,
            "window_divisor": 5, "use_compensation_token": True, "min_dropped_tokens": 64,
            "decode_update": "rolling", "fold_tokens": 16, "prefill_mode": "exact"}


class Razor(attention.Method):
    def __init__(self, options):
        super().__init__()
        self.o = options
        self.retrieval = {tuple(pair) for pair in options["retrieval_heads"]}
        self.stands_for = {}            # (layer, head): N_d of a lane that has dropped tokens
        self.length = 0                 # L_h
        if options["prefill_mode"] != "exact":
            raise ValueError("the reference covers prefill_mode exact alone")

    def outside(self, layer, head, lane):
        """Slots between what stays at the front and the window."""
        return lane.slots - self.front(layer, head) - self.length

    def front(self, layer, head):
        has_one = self.o["use_compensation_token"] and (layer, head) in self.stands_for
        return self.o["num_sink_tokens"] + has_one

    def prompt_end(self, layer, lanes, tokens, all_rows, last):
        self.length = window_length(tokens, self.o)
        for head, lane in self.others(layer, lanes):
            self.fold_first(layer, head, lane)

    def after_row(self, layer, lanes, tokens, weights):
        if self.o["decode_update"] == "freeze":
            return
        for head, lane in self.others(layer, lanes):
            if (layer, head) not in self.stands_for:
                self.fold_first(layer, head, lane)
            elif self.outside(layer, head, lane) >= self.o["fold_tokens"]:
                self.fold(layer, head, lane, self.o["fold_tokens"])

    def others(self, layer, lanes):
        return [(head, lane) for head, lane in enumerate(lanes)
                if (layer, head) not in self.retrieval]

    def fold_first(self, layer, head, lane):
        outside = self.outside(layer, head, lane)
        if outside >= max(self.o["min_dropped_tokens"], 1):
            self.fold(layer, head, lane, outside)

    def fold(self, layer, head, lane, count):
        """The oldest `count` slots behind the front go into the compensation slot."""
        sinks, front = self.o["num_sink_tokens"], self.front(layer, head)
        old = self.stands_for.get((layer, head), 0)
        self.stands_for[layer, head] = old + count
        self.counts["slots_evicted"] += count
        columns = {}
        for name in ("pos", "bias", "k", "v"):
            column = lane[name]
            gone = column[front:front + count]
            middle = column[:0]
            if self.o["use_compensation_token"]:
                middle = {"pos": [sinks], "bias": [np.log(old + count)]}.get(name)
                if middle is None:
                    before = old * column[sinks] if old else 0.0
                    middle = [(before + gone.sum(0)) / (old + count)]
            columns[name] = np.concatenate([column[:sinks], middle, column[front + count:]])
        lane.assign(**columns)

    def payload(self, layer, head, lane, element_bytes):
        bytes_raw = super().payload(layer, head, lane, element_bytes)
        if self.front(layer, head) > self.o["num_sink_tokens"]:
            bytes_raw += (lane["k"].shape[1] + lane["v"].shape[1]) * (4 - element_bytes)
        return bytes_raw

    def report(self):
        return {"retrieval_heads": len(self.retrieval), "window": self.length}


def run(trace, options=None, element_bytes=4):
    return attention.drive(trace, Razor(attention.filled(DEFAULTS, options)), element_bytes)


def window_length(tokens, o):
    return max(o["min_window_tokens"], -(-tokens // o["window_divisor"]))


def slots_at(prompt, tokens, o):
    """Slots of a non-retrieval lane in closed form, compensation slot included."""
    sinks, length, fold = o["num_sink_tokens"], window_length(prompt, o), o["fold_tokens"]
    start = max(prompt, sinks + length + max(o["min_dropped_tokens"], 1))
    if o["decode_update"] == "freeze" and start > prompt or tokens < start:
        return tokens
    grown = tokens - start
    if o["decode_update"] == "rolling":
        grown %= fold
    return sinks + o["use_compensation_token"] + length + grown


# ---- calibration ---------------------------------------------------------------------------------

def scores(p, block):
    """Echo and induction of one head from its probabilities [n + 1, n + 1], BOS at row and column
    0, for a block of `block` tokens that comes again and again."""
    p = p[1:, 1:]
    echo = induction = 0.0
    rows = np.arange(block, len(p))
    for row in rows:
        for earlier in range(row - block, -1, -block):
            echo += p[row, earlier]
            induction += p[row, earlier + 1]
    return echo / len(rows), induction / len(rows)


def scores_streaming(q, k, scale, block, tile=256):
    """The same from q, k [n + 1, d] after RoPE: row log-sum-exps tile by tile, then only the dot
    products that count."""
    lse = np.empty(len(q))
    for first in range(0, len(q), tile):
        end = min(first + tile, len(q))
        logits = scale * (q[first:end] @ k[:end].T)
        logits[:, first:] += np.triu(np.full((end - first, end - first), -np.inf), 1)
        top = logits.max(1)
        lse[first:end] = top + np.log(np.exp(logits - top[:, None]).sum(1))
    echo = induction = 0.0
    for back in range(block, len(q) - 1, block):
        rows = np.arange(back, len(q) - 1) + 1
        for_echo = (q[rows] * k[rows - back]).sum(1)
        for_induction = (q[rows] * k[rows - back + 1]).sum(1)
        echo += np.exp(scale * for_echo - lse[rows]).sum()
        induction += np.exp(scale * for_induction - lse[rows]).sum()
    count = len(q) - 1 - block
    return echo / count, induction / count


def select(echo, induction, kv_heads, echo_ratio=0.01, induction_ratio=0.14, rule="group_max"):
    """Scores [L, Hq] of all query heads to the sorted list of retrieval heads [layer, KV head]."""
    chosen = set()
    for table, ratio in ((echo, echo_ratio), (induction, induction_ratio)):
        table = np.asarray(table, np.float64)
        layers, q_heads = table.shape
        group = q_heads // kv_heads
        if rule == "group_max":
            table = table.reshape(layers, kv_heads, group).max(2)
        count = int(np.floor(ratio * table.size + 0.5))
        ranked = sorted((-score, layer, head) for (layer, head), score in np.ndenumerate(table))
        for _, layer, head in ranked[:count]:
            chosen.add((layer, head if rule == "group_max" else head // group))
    return sorted(chosen)


def lane_bytes(tokens, window, sinks, d, element_bytes, retrieval):
    """Bytes of one lane as the method's description counts them (no pos, N_d in 4 bytes)."""
    if retrieval or tokens <= sinks + window:
        return 2 * tokens * d * element_bytes
    return 2 * (sinks + window) * d * element_bytes + 8 * d + 4
