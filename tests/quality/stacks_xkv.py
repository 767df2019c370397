"""Stacks with xkv: by bytes stored, by bytes of the token basis alone, by the way of factoring.

W is group_size, the layers that share a token basis.  Ranks are those of a whole group and stand as
2 to 3, keys to values, as in the method's defaults.  Of a layer the basis takes n (r_K + r_V) / W
elements for n tokens, the factors d (r_K + r_V), d = 192 columns here: with equal ranks per layer
(r / W) a wider group has the same basis and W times the factors, so that at equal bytes in all it
has a smaller rank per layer, the more so the shorter the prompt is.
"""
import stacks

SINKS = 4
COLUMNS = stacks.KV_HEADS * 64          # of one layer
GROUPS = [4, 2, 1]
BETWEEN = [("2/3", 2 / 3), ("1/3", 1 / 3), ("1/6", 1 / 6)]
RANKS = (96, 144)                       # of four layers
NARROW = (2 * 64 + 2 * 4 + 8) / (2 * 2 * 64 + 8)    # bytes of a slot: codes, scales; 16 bits
MORE_RANKS = (192, 288)                 # likewise; for errors alone
WAYS = [("exact", {"method": "exact"}), ("gram", {"method": "gram"}),
        ("power_iterations=0", {"method": "randomized", "power_iterations": 0}),
        ("oversample=16", {"method": "randomized", "oversample": 16})]


def xkv(group_size, rank_k, rank_v, sinks=SINKS, **more):
    found = {"name": "xkv", "group_size": group_size, "rank_k": rank_k, "rank_v": rank_v, **more}
    return {**found, "num_sink_tokens": sinks} if sinks else found


def fitted(planner, group_size, fraction, sinks=SINKS):
    """By the sum of both ranks; values can have no more columns than a group has."""
    def of_sum(ranks):
        return xkv(group_size, 2 * ranks // 5, ranks - 2 * ranks // 5, sinks)
    most = group_size * COLUMNS * 8 // 5
    return planner.nearest(of_sum, 3, most, fraction)


def named(planner, group_size, label, fraction, sinks=SINKS):
    name = f"xkv(W={group_size}" + ("" if sinks == SINKS else f",sinks={sinks}") + ")"
    return {f"{name} {label}": planner.write(
        f"xkv-{group_size}-{sinks}-{label.replace('/', '.')}",
        fitted(planner, group_size, fraction, sinks))}


def equal_bytes_stacks(planner):
    """All widths at 1/4, and four layers at the other fractions."""
    found = {}
    for label, fraction in stacks.FRACTIONS:
        for group_size in GROUPS if label == "1/4" else GROUPS[:1]:
            found.update(named(planner, group_size, label, fraction))
    return found


def width_stacks(planner):
    """The other widths at 1/2."""
    found = {}
    for group_size in GROUPS[1:]:
        found.update(named(planner, group_size, *stacks.FRACTIONS[0]))
    return found


def bare_stacks(planner):
    """Without sinks: all widths at 1/2 and 1/4, and four layers at 1/8."""
    found = {}
    for label, fraction in stacks.FRACTIONS:
        for group_size in GROUPS if label != "1/8" else GROUPS[:1]:
            found.update(named(planner, group_size, label, fraction, 0))
    return found


def first_stacks(planner):
    """The first token alone."""
    return named(planner, GROUPS[0], *stacks.FRACTIONS[0], 1)


def ending_stacks(planner):
    """Windows that hold at the end of the text, twice the prompt, as much as xkv with what has been
    generated raw: (1 + fraction) prompts."""
    return {f"window-at-end {label}": planner.write(
        f"ending-{label.replace('/', '.')}",
        {"name": "window", "num_sink_tokens": SINKS,
         "recent_tokens": round(planner.prompt * (1 + fraction)) - SINKS})
            for label, fraction in stacks.FRACTIONS}


def between_stacks(planner):
    """Between the fractions, to see where the curves of xkv and window cross."""
    found = {}
    for label, fraction in BETWEEN:
        found[f"window {label}"] = planner.write(f"between-window-{label.replace('/', '.')}",
                                                 stacks.window(planner, fraction))
        found.update(named(planner, GROUPS[0], label, fraction))
    return found


def evict_stacks(planner, heads):
    """The other methods there; heads None: no profile."""
    found = {}
    for label, fraction in BETWEEN:
        methods = {"ems": stacks.ems(planner, fraction)}
        if heads is not None:
            methods["razor_attention"] = stacks.razor(planner, fraction, heads)
        for name, method in methods.items():
            found[f"{name} {label}"] = planner.write(
                f"between-{name}-{label.replace('/', '.')}", method)
    return found


def of_width(ranks, group_size):
    return xkv(group_size, *[rank * group_size // 4 for rank in ranks])


def label_of(ranks):
    return "/".join(str(rank // 4) for rank in ranks)


def equal_basis_stacks(planner):
    """Equal ranks per layer: the same bytes of token basis, whatever the factors take."""
    return {f"xkv(W={group}) {label_of(RANKS)}": planner.write(
        f"basis-{group}", of_width(RANKS, group)) for group in GROUPS}


def way_stacks(planner):
    """Other ways to the same factors; the first of all is in equal_basis_stacks."""
    return {f"xkv(W=4) {name}": planner.write(f"way-{name}", xkv(4, *RANKS, svd=svd))
            for name, svd in WAYS}


def half_width_stacks(planner, narrow):
    """Planners of caches in 16 bits and in int8; all fractions are of the exact cache in 16 bits,
    of which that in int8 keeps NARROW, and it is what all are held against."""
    found = {"exact": planner.write("half-exact")}
    for label, fraction in stacks.FRACTIONS:
        at = label.replace("/", ".")
        for name, method in (("window", stacks.window(planner, fraction)),
                             ("xkv(W=4)", fitted(planner, GROUPS[0], fraction))):
            found[f"16-bit {name} {label}"] = planner.write(f"half-{name}-{at}", method)
        found[f"8-bit window {label}"] = narrow.write(
            f"half-window-{at}", stacks.window(narrow, fraction / NARROW))
    return {**found, "8-bit exact": narrow.write("half-exact")}


def loss_stacks(planner):
    """Whose factors are held against what they stand for: by equal basis, "=" by equal bytes in
    all, and the other ways to factors."""
    found = {}
    for ranks in (RANKS, MORE_RANKS):
        label, widest = label_of(ranks), of_width(ranks, GROUPS[0])
        least = planner.ratio(widest)
        for group in GROUPS:
            found[f"xkv(W={group}) {label}"] = planner.write(
                f"loss-{group}-{ranks[0]}", of_width(ranks, group))
        for group in GROUPS[1:]:
            found[f"xkv(W={group}) ={label}"] = planner.write(
                f"loss-{group}-{ranks[0]}-bytes", fitted(planner, group, least))
    for name, svd in WAYS:
        found[f"xkv(W=4) {name}"] = planner.write(f"loss-{name}", xkv(4, *RANKS, svd=svd))
    return found
