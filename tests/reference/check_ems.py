"""Properties of ems.py; run by selfcheck.py."""
import attention
import ems
from attention import np

SMALL = {"budget_tokens": 40, "recent_tokens": 12, "num_sink_tokens": 3, "recompress_interval": 12}


def lane_of(k, v, glo, loc, pos=None):
    lane = attention.Lane(len(k[0]), len(v[0]), ems.Ems.columns)
    lane.assign(pos=np.arange(len(k)) if pos is None else pos, k=np.array(k, float),
                v=np.array(v, float), glo=np.array(glo, float), acc=np.array(loc, float),
                m=np.ones(len(k)))
    return lane


def squeeze(lane, budget, tokens=None, theta=0.0, gaps=None, **options):
    """compress() on a lane made by hand; no sinks and a window of 2 unless told."""
    o = {**ems.DEFAULTS, "recent_tokens": 2, "num_sink_tokens": 0, "budget_tokens": budget,
         **options}
    return ems.compress(lane, budget, tokens or lane.slots, o, theta, {} if gaps is None else gaps)


def random_lane(seed, n=60, d=6, kinds=8):
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, kinds, n)
    k = rng.standard_normal((kinds, d))[kind] + 0.3 * rng.standard_normal((n, d))
    v = rng.standard_normal((kinds, d))[kind] + 0.3 * rng.standard_normal((n, d))
    return lane_of(k, v, 5 * rng.random(n), rng.random(n) ** 3)


def case_worked_example(t):
    lane = lane_of([(2, 0), (0, 2), (4, 0), (0, 1), (-1, 0), (1, 1), (1, 0)],
                   [(1, 0), (0, 1), (3, 0), (0, 3), (-1, 0), (5, 5), (7, 7)],
                   [4, 2, 1, 1, 0, .5, .5], [.2, .6, .2, .2, 0, .5, .3])
    t.printed("a", lane["acc"][:5].mean() / lane["glo"][:5].mean(), "0.15")
    event = squeeze(lane, 4)
    t.printed("s", event["s"], "0.80 0.90 0.35 0.35 0.00")
    t.equal("important", list(event["centres"]), [0, 1])
    t.equal("to be merged", list(event["members"]), [2, 3])
    t.equal("classes", list(event["classes"]), [1, 2])
    t.equal("counts", [event[key] for key in ("merged", "zero", "irrelevant")], [2, 0, 1])
    t.printed("k^", lane["k"][:2], "2.6087 0.0000 0.0000 1.7200")
    t.printed("v^", lane["v"][:2], "1.6087 0.0000 0.0000 1.5600")
    t.equal("m", list(lane["m"]), [2, 2, 1, 1])
    t.equal("pos", list(lane["pos"]), [0, 1, 5, 6])
    t.equal("the window is untouched", lane["k"][2:].tolist() + lane["v"][2:].tolist(),
            [[1, 1], [1, 0], [5, 5], [7, 7]])
    t.equal("s_glo adds up, not s", list(lane["glo"]), [5, 3, .5, .5])
    t.equal("the local mass starts anew", list(lane["acc"]), [0] * 4)


def case_large_budget_is_exact(t):
    trace = attention.make_trace(1, 50, 20, layers=2)
    exact = attention.run_exact(trace)
    result = ems.run(trace, {**SMALL, "budget_tokens": 59})     # 59 + 12: one more than there are
    for layer in range(2):
        t.equal("outputs", result.out[layer], exact.out[layer])
        t.equal("values", result.lanes[layer][1]["v"], exact.lanes[layer][1]["v"])
    fuller = ems.run(trace, {**SMALL, "budget_tokens": 58})
    t.equal("one less: the last row fills the lanes", fuller.lanes[0][0].slots, 58)
    t.equal("its own output is still exact", fuller.out[0], exact.out[0])
    wide = ems.run(trace, {**SMALL, "budget_tokens": 50, "recompress_interval": 21})
    t.equal("a prompt of the budget's length stays", wide.out[1], exact.out[1])


def case_column_sums(t):
    trace = attention.make_trace(2, 120, 15)
    method = ems.Ems(ems.checked({**ems.DEFAULTS, **SMALL, "budget_tokens": 200}), trace.theta)
    seen = {}
    method.compress_layer = None
    prompt_end = method.prompt_end

    def listen(layer, lanes, tokens, all_rows, last):
        seen["all"], seen["last"] = all_rows, last
        prompt_end(layer, lanes, tokens, all_rows, last)

    method.prompt_end = listen
    lane = attention.drive(trace, method).lanes[0][1]
    t.close("s_glo adds up to n", seen["all"].sum(1), [120, 120], 1e-10)
    t.close("s_loc to w", seen["last"].sum(1), [12, 12], 1e-11)
    t.close("short prompt: to n", attention.attend_causal(
        *(part[:5] for part in trace.turned(0)), 0.25, 12)[2].sum(1), [5, 5], 1e-12)
    t.close("decode rows add to s_glo", lane["glo"].sum(), 135, 1e-10)
    t.close("and to the local mass, which starts at the prompt's end", lane["acc"].sum(), 15, 1e-11)
    q, k, v = trace.turned(0)
    _, whole, last = attention.attend_causal(q, k, v, trace.scale_of(0), 15)
    t.close("it is the local score of the decode rows", lane["acc"], last[1], 1e-12)
    t.close("s_glo is that of all rows", lane["glo"], whole[1], 1e-12)


def case_scores(t):
    lane = random_lane(3)
    o = {**ems.DEFAULTS, "recent_tokens": 8, "num_sink_tokens": 2}
    mine = slice(2, 52)
    glo, loc = lane["glo"][mine].copy(), lane["acc"][mine].copy()
    s = ems.scored(lane, 60, o)[0]
    t.close("mean of s is twice that of s_loc", s.mean(), 2 * loc.mean(), 1e-14)
    lane["glo"][:] *= 37.0
    t.close("the scale of s_glo does not matter", ems.scored(lane, 60, o)[0], s, 1e-13)
    t.equal("local", ems.scored(lane, 60, {**o, "combine": "local"})[0], loc)
    a = loc.mean() / glo.mean()
    t.close("max", ems.scored(lane, 60, {**o, "combine": "max"})[0], np.maximum(a * glo, loc),
            1e-13)
    counted = glo / (60 - np.arange(2, 52))
    t.close("count", ems.scored(lane, 60, {**o, "global_norm": "count"})[0],
            loc.mean() / counted.mean() * counted + loc, 1e-13)
    pooled = [s[max(i - 2, 0):i + 3].max() for i in range(50)]
    t.close("pooling over neighbours", ems.scored(lane, 60, {**o, "pool_kernel": 5})[0], pooled,
            1e-13)
    lane["glo"][:] = 0
    t.equal("no global mass: s_loc", ems.scored(lane, 60, o)[0], loc)


def case_counts(t):
    for seed in range(4, 10):
        lane = random_lane(seed)
        event = squeeze(lane, 20, recent_tokens=5, num_sink_tokens=2, similarity_threshold=0.8)
        merged, zero, gone = (event[key] for key in ("merged", "zero", "irrelevant"))
        t.equal("merged + zero + irrelevant = n - B", merged + zero + gone, 40)
        t.equal("sum of m = B + merged", lane["m"].sum(), 20 + merged)
        t.true("all three happen", min(merged, zero, gone) > 0, f"{merged} {zero} {gone}")
        t.equal("slots", lane.slots, 20)


def case_mass_is_kept(t):
    lane, before = random_lane(10), random_lane(10)
    event = squeeze(lane, 20, recent_tokens=5, num_sink_tokens=2, similarity_threshold=0.3)
    s = np.concatenate([[0, 0], event["s"], [0] * 5])
    mine = np.concatenate([event["centres"], event["members"][event["classes"] > 0]])
    of = np.concatenate([np.arange(1, 14), event["classes"][event["classes"] > 0]])
    class_s = np.array([s[mine[of == c]].sum() for c in range(1, 14)])
    t.close("sum of s v", class_s @ lane["v"][2:15], s[mine] @ before["v"][mine], 1e-13)
    t.close("s_glo", lane["glo"][2:15].sum(), before["glo"][mine].sum(), 1e-13)
    for c in range(1, 14):
        with_it, slot = mine[of == c], 1 + c
        if len(with_it) == 1:
            t.equal("a class without members is bit-identical",
                    np.concatenate([lane["k"][slot], lane["v"][slot]]),
                    np.concatenate([before["k"][with_it[0]], before["v"][with_it[0]]]))
        else:
            norms = np.linalg.norm(before["k"][with_it], axis=1)
            t.close("|k^| is the mean of the norms", np.linalg.norm(lane["k"][slot]),
                    s[with_it] @ norms / s[with_it].sum(), 1e-13)
    t.equal("sinks and window", np.delete(lane["k"], slice(2, 15), 0),
            before["k"][[0, 1, 55, 56, 57, 58, 59]])


def case_pure_eviction(t):
    plain = random_lane(11)
    s = ems.scored(plain, 60, {**ems.DEFAULTS, "recent_tokens": 5, "num_sink_tokens": 2})[0]
    kept = np.concatenate([[0, 1], np.sort(np.argsort(-s, kind="stable")[:13]) + 2,
                           np.arange(55, 60)])
    for options in ({"similarity_threshold": 1.0}, {"similarity_threshold": 1.5},
                    {"tbm_mass": 0.0}, {"tbm_rule": "fixed", "tbm_ratio": 0.0}):
        lane = random_lane(11)
        lane["k"][30:40], lane["v"][30:40] = lane["k"][20:30], lane["v"][20:30]   # duplicates
        same = lane["k"][kept].copy()
        event = squeeze(lane, 20, recent_tokens=5, num_sink_tokens=2, **options)
        t.equal(f"{options}: top-k and window", list(lane["pos"]), list(kept))
        t.equal(f"{options}: bit-identical", lane["k"], same)
        t.equal(f"{options}: nothing merged", event["merged"], 0)


def case_fixed_rule(t):
    lane = random_lane(12)
    event = squeeze(lane, 20, recent_tokens=5, num_sink_tokens=2, tbm_rule="fixed", tbm_ratio=0.7)
    t.equal("floor(ratio * C) tokens", len(event["members"]), 9)
    order = np.argsort(-event["s"], kind="stable") + 2
    t.equal("the next ones by s", list(event["members"]), list(order[13:22]))


def case_cover_stops_at_its_mass(t):
    for tbm_mass, members in ((0.875, 0), (0.876, 1), (1.0, 1)):
        lane = lane_of([(1, 0)] * 5, [(1, 0)] * 5, [4, 3, 1, 1, 1], [4, 3, 1, 1, 1])
        event = squeeze(lane, 4, tbm_mass=tbm_mass)
        t.equal(f"7 of 8 are covered, {tbm_mass} wanted", len(event["members"]), members)


def case_merges_fall_with_tau(t):
    merged = [squeeze(random_lane(13), 20, similarity_threshold=tau)["merged"]
              for tau in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)]
    t.true("monotone", merged == sorted(merged, reverse=True), str(merged))
    t.true("from many to none", merged[0] > merged[3] > merged[-1], str(merged))


def case_duplicates_are_exact(t):
    rng = np.random.default_rng(14)
    kinds_k, kinds_v = rng.standard_normal((2, 6, 4))
    kind = np.concatenate([np.arange(6), rng.integers(0, 6, 30), [0, 1]])
    glo = np.concatenate([[100] * 6, rng.random(32)])
    q = rng.standard_normal((3, 4))
    full = attention.attend(q, lane_of(kinds_k[kind], kinds_v[kind], glo, glo), 1.0)[0]
    outs = {}
    for bias in ("none", "log_count"):
        lane = lane_of(kinds_k[kind], kinds_v[kind], glo, glo)
        event = squeeze(lane, 8, tbm_mass=1.0, similarity_threshold=0.9, mass_bias=bias)
        t.equal(f"{bias}: all duplicates merge", event["merged"], 30)
        outs[bias] = attention.attend(q, lane, 1.0)[0]
    t.close("log_count: exact", outs["log_count"], full, 1e-13)
    t.true("none: not so", np.abs(outs["none"] - full).max() > 1e-3)


def loop_compress(lane, budget, o):
    """2.1 to 2.4 for one head, token by token (mass rule, post_rope)."""
    sinks, window, n = o["num_sink_tokens"], o["recent_tokens"], lane.slots
    cand = range(sinks, n - window)
    glo, loc = lane["glo"], lane["acc"]
    a = sum(loc[j] for j in cand) / sum(glo[j] for j in cand)
    s = {j: a * glo[j] + loc[j] for j in cand}
    order = sorted(cand, key=lambda j: (-s[j], j))
    important = order[:budget - window - sinks]
    members = {c: [c] for c in sorted(important)}
    covered, count = sum(s[j] for j in important), len(important)
    while covered < o["tbm_mass"] * sum(s.values()) and count < len(order):
        i = order[count]
        covered, count = covered + s[i], count + 1
        best, best_sim = None, o["similarity_threshold"]
        for c in sorted(important):
            of_k, of_v = (x[i] @ x[c] / np.sqrt((x[i] @ x[i]) * (x[c] @ x[c]))
                          for x in (lane["k"], lane["v"]))
            if o["signed_guard"]:
                of_k, of_v = max(of_k, 0), max(of_v, 0)
            if of_k * of_v > best_sim:
                best, best_sim = c, of_k * of_v
        if best is not None:
            members[best].append(i)
    pos, ks, vs, ms = [], [], [], []
    for slot in list(range(sinks)) + sorted(important) + list(range(n - window, n)):
        mine = members.get(slot, [slot])
        k, v = lane["k"][slot], lane["v"][slot]
        if len(mine) > 1:
            w = np.array([s[i] for i in mine]) / sum(s[i] for i in mine)
            norms = [np.linalg.norm(lane["k"][i]) for i in mine]
            u = sum(w[j] * lane["k"][i] / norms[j] for j, i in enumerate(mine))
            rho = w @ norms if o["key_norm"] == "weighted" else np.linalg.norm(k)
            k, v = rho * u / np.linalg.norm(u), sum(w[j] * lane["v"][i] for j, i in enumerate(mine))
        pos, ks, vs, ms = pos + [slot], ks + [k], vs + [v], ms + [sum(lane["m"][i] for i in mine)]
    return pos, np.array(ks), np.array(vs), ms


def case_scatter_is_the_loop(t):
    for seed, options in enumerate(({}, {"signed_guard": False}, {"key_norm": "center"},
                                    {"similarity_threshold": 0.2, "tbm_mass": 0.8}), 15):
        o = {**ems.DEFAULTS, "recent_tokens": 5, "num_sink_tokens": 2, **options}
        lane = random_lane(seed)
        lane["m"][:] = np.arange(60) % 4 + 1
        pos, k, v, m = loop_compress(lane, 20, o)
        event = ems.compress(lane, 20, 60, o, 0.0, {})
        t.true(f"{options}: something merges", event["merged"] > 3, str(event["merged"]))
        t.equal(f"{options}: positions", list(lane["pos"]), pos)
        t.close(f"{options}: keys", lane["k"], k, 1e-12)
        t.close(f"{options}: values", lane["v"], v, 1e-12)
        t.equal(f"{options}: m", list(lane["m"]), m)


def case_guard_and_zero_vectors(t):
    k, v = [(1, 2), (-1, -2), (3, 0), (0, 3)], [(2, 1), (-2, -1), (4, 0), (0, 4)]
    for guard, merged in ((True, 0), (False, 1)):
        lane = lane_of(k, v, [2, 1, 1, 1], [2, 1, 1, 1])
        event = squeeze(lane, 3, tbm_mass=1.0, signed_guard=guard, similarity_threshold=0.99)
        t.equal(f"opposite keys and values, guard {guard}", event["merged"], merged)
    lane = lane_of(k, v, [1] * 4, [1] * 4)
    squeeze(lane, 3, tbm_mass=1.0, signed_guard=False, similarity_threshold=0.9)
    t.close("keys that cancel: the centre's direction", lane["k"][0], [1, 2], 1e-15)
    zero = lane_of([(0, 0), (0, 0), (1, 0), (1, 0)], [(1, 1)] * 4, [2, 1, 1, 1], [2, 1, 1, 1])
    event = squeeze(zero, 3, tbm_mass=1.0, similarity_threshold=0.0)
    t.equal("zero keys resemble nothing", (event["merged"], event["zero"]), (0, 1))
    t.true("and give no NaN", np.isfinite(zero["k"]).all())
    negative = squeeze(lane_of([(1, 0), (-1, 0), (1, 1), (1, 1)], [(1, 0)] * 4, [1] * 4, [1] * 4),
                       3, tbm_mass=1.0, similarity_threshold=-0.5)
    t.equal("clamped to 0 is over a tau of -0.5", negative["merged"], 1)


def case_ties(t):
    lane = lane_of([(1, 0)] * 6, [(1, 0)] * 6, [1] * 6, [1] * 6)
    event = squeeze(lane, 4, tbm_mass=1.0)
    t.equal("equal scores: the lower index", list(event["centres"]), [0, 1])
    t.equal("equal similarity: the lower class", list(event["classes"]), [1, 1])
    half = lane_of([(1, 0), (1, 1), (1, 0), (1, 0)], [(1, 0), (1, 0), (1, 0), (1, 0)], [2, 1, 1, 1],
                   [2, 1, 1, 1])
    sim = ems.cosines(half["k"][:1], half["k"][1:2])[0, 0]
    t.equal("similarity must be over tau", squeeze(half, 3, tbm_mass=1.0,
                                                   similarity_threshold=sim)["zero"], 1)
    silent = lane_of([(1, 0), (1, 0), (2, 0), (1, 0), (1, 0)], [(1, 0), (3, 0), (2, 0), (1, 0),
                                                                (1, 0)], [0] * 5, [0] * 5)
    event = squeeze(silent, 3, tbm_rule="fixed", tbm_ratio=2.0)
    t.close("no score at all: plain means", [silent["k"][0, 0], silent["v"][0, 0]], [4 / 3, 2],
            1e-15)


def case_pre_rope(t):
    lane, theta = random_lane(19), 50.0
    plain_k = lane["k"].copy()
    plain = random_lane(19)
    lane["k"][:] = attention.rotate(plain_k, lane["pos"], theta)
    event = squeeze(lane, 20, theta=theta, merge_space="pre_rope", num_sink_tokens=2)
    other = squeeze(plain, 20, num_sink_tokens=2)
    t.equal("the choices are those without RoPE", list(event["classes"]), list(other["classes"]))
    t.close("the keys too, turned to the centre's position", lane["k"],
            attention.rotate(plain["k"], plain["pos"], theta), 1e-12)
    t.equal("values too", lane["v"], plain["v"])
    turned = random_lane(19)
    turned["k"][:] = attention.rotate(plain_k, turned["pos"], theta)
    t.true("post_rope is another thing",
           squeeze(turned, 20, theta=theta, num_sink_tokens=2)["merged"] != event["merged"])


def case_decode(t):
    trace = attention.make_trace(20, 100, 80, layers=2, q_heads=6)
    result = ems.run(trace, SMALL)
    events = result.method.events
    at = sorted({event["tokens"] for event in events})
    t.equal("events: at the prompt's end, then every T rows", at, [100] + list(range(112, 181, 12)))
    t.equal("each from B + T to B", {(event["before"], event["after"]) for event in events
                                     if event["tokens"] > 100}, {(52, 40)})
    t.equal("peak", result.stats["slots_peak_in_decode"], 52)
    t.equal("slots at the end", [lane.slots for lane in result.lanes[0] + result.lanes[1]],
            [48] * 4)
    t.true("merges happen in decode", any(event["merged"] for event in events
                                          if event["tokens"] > 100))
    for layer in range(2):
        for head, lane in enumerate(result.lanes[layer]):
            t.true("positions increase", (np.diff(lane["pos"]) > 0).all())
            gone = sum(event["zero"] + event["irrelevant"] + event["merged"] for event in events
                       if (event["layer"], event["head"]) == (layer, head))
            t.equal("slots + merged + evicted = tokens", lane.slots + gone, 180)
            t.true("m counts no token twice", lane.slots <= lane["m"].sum() <= 180)
            t.close("the local mass is that of the rows since the event", lane["acc"].sum(), 8,
                    1e-12)
    t.equal("counts", result.stats["slots_merged"], sum(event["merged"] for event in events))
    t.equal("the prompt is exact", result.out[1][:100],
            attention.run_exact(trace).out[1][:100])
    same = ems.run(trace, {**SMALL, "tbm_mass": 0.0})
    _, k, v = trace.turned(1)
    lane = same.lanes[1][0]
    t.equal("without merging slots stay bit-identical", lane["k"], k[lane["pos"], 0])
    t.equal("values", lane["v"], v[lane["pos"], 0])
    t.equal("bytes", same.stats["bytes_stored"], 4 * 48 * (32 * 4 + 8))


def case_event_at_the_end_of_the_prompt(t):
    trace = attention.make_trace(29, 41, 4)
    q, k, v = trace.turned(0)
    _, glo, loc = attention.attend_causal(q[:41], k[:41], v[:41], trace.scale_of(0), 12)
    s = (glo * loc[:, 3:29].mean(1, keepdims=True) / glo[:, 3:29].mean(1, keepdims=True)
         + loc)[:, 3:29]
    result = ems.run(trace, {**SMALL, "tbm_mass": 0.0})
    for head, lane in enumerate(result.lanes[0]):
        kept = np.sort(np.argsort(-s[head])[:25]) + 3
        t.equal("the last w rows are s_loc", list(lane["pos"]),
                [0, 1, 2] + list(kept) + list(range(29, 45)))
        t.equal("which is what remains local", lane["acc"].sum().round(12), 4.0)
    t.equal("one token too many goes", result.stats["slots_evicted"], 2)
    far = ems.run(trace, {**SMALL, "budget_tokens": 20})
    t.equal("evicted and merged", far.stats["slots_evicted"] + far.stats["slots_merged"], 2 * 21)


def case_first_event_in_decode(t):
    trace = attention.make_trace(21, 30, 30)
    result = ems.run(trace, {**SMALL, "tbm_mass": 0.0})
    lane = result.lanes[0][1]
    q, k, v = trace.turned(0)
    _, glo, loc = attention.attend_causal(q[:52], k[:52], v[:52], trace.scale_of(0), 22)
    s = (glo * loc[:, 3:40].mean(1, keepdims=True) / glo[:, 3:40].mean(1, keepdims=True)
         + loc)[1, 3:40]
    kept = [0, 1, 2] + list(np.sort(np.argsort(-s)[:25]) + 3) + list(range(40, 60))
    t.equal("scores: all rows, and those since the prompt's end", list(lane["pos"]), kept)


def case_sparsity(t):
    o = {**ems.DEFAULTS, "budget_tokens": 40, "recent_tokens": 12, "num_sink_tokens": 3}
    t.equal("shares by need", ems.sparsity_budgets([10, 30, 5], o),
            [19 + 14, 19 + 42, 19 + 7])
    t.equal("remainder ties: the lower head", ems.sparsity_budgets([1, 3], o), [30, 50])
    t.equal("the largest remainder first", [ems.sparsity_budgets(needs, o) for needs in
                                            ([2, 3], [3, 2])], [[36, 44], [44, 36]])
    t.equal("no need at all", ems.sparsity_budgets([0, 0], o), [40, 40])
    tight = {**o, "budget_tokens": 17}
    t.equal("every head has a centre", ems.sparsity_budgets([1, 0], tight), [18, 16])
    t.equal("need: fewest that hold 90 %", [ems.need(np.array(s, float), {}) for s in
                                            ([1, 8.5, 0.5], [0, 1, 0], [1] * 20, [0, 0])],
            [2, 1, 18, 0])
    trace = attention.make_trace(22, 150, 60, q_heads=6, kv_heads=3)
    result = ems.run(trace, {**SMALL, "head_budget": "sparsity"})
    budgets = result.method.budgets[0]
    t.equal("budgets add up", sum(budgets), 120)
    t.true("and differ", len(set(budgets)) > 1, str(budgets))
    t.equal("lanes end with theirs", [lane.slots for lane in result.lanes[0]], budgets)
    late = ems.run(attention.make_trace(22, 20, 40, q_heads=6, kv_heads=3),
                   {**SMALL, "head_budget": "sparsity"})
    t.equal("a short prompt: set by the first full lane", late.method.events[0]["tokens"], 52)
    t.equal("for good", sum(late.method.budgets[0]), 120)


def case_gaps(t):
    def gaps_of(glo, k=None, **options):
        lane = lane_of(k or [(1, 0), (0, 1), (1, 1), (1, 0), (1, 0)], [(1, 1)] * 5, glo, [0.0] * 5)
        gaps = {}
        lane["acc"][:] = glo
        squeeze(lane, 4, gaps=gaps, tbm_mass=1.0, **options)
        return gaps

    t.close("cut", gaps_of([3, 2, 2 - 2e-6, 1, 1])["cut"], 1e-6, 1e-9)
    t.close("a tie at the cut is a gap of 0", gaps_of([3, 2, 2, 1, 1])["cut"], 0, 0)
    t.close("argmax", gaps_of([3, 2, 1, 1, 1])["argmax"], 0, 1e-15)
    t.close("tau", gaps_of([3, 2, 1, 1, 1], similarity_threshold=0.5)["tau"], 0.5 ** 0.5 - 0.5,
            1e-15)
    near = gaps_of([3, 2, 1, 1, 1], [(1, 0), (0, 1), (1, 1 - 1e-6), (1, 0), (1, 0)])
    t.close("argmax, nearly", near["argmax"], 1e-6 * 0.5 ** 0.5, 1e-9)
    mass = [4, 3, 2, 1, 1, 1]
    for what, k, tbm_mass, gap in (("one more", (1, 0), 0.9 - 1e-6, 1e-6 / 0.9),
                                   ("one less", (1, 0), 0.7 + 1e-6, 1e-6 / 0.7),
                                   ("which goes anyway", (-1, 0), 0.9 - 1e-6, None)):
        lane, gaps = lane_of([(1, 0), (1, 0), k, k, k, k], [(1, 0)] * 6, mass, mass), {}
        squeeze(lane, 4, gaps=gaps, tbm_mass=tbm_mass)
        t.close(f"border of the cover: {what}", gaps.get("border", 0), gap or 0, 1e-9)
    lane, gaps = lane_of([(1, 0)] * 6, [(1, 0)] * 6, [4, 3, 2, 2 - 2e-6, 1, 1], [0] * 6), {}
    lane["acc"][:] = lane["glo"]
    squeeze(lane, 4, gaps=gaps, tbm_rule="fixed", tbm_ratio=0.5)
    t.close("border: two scores", gaps["border"], 1e-6, 1e-9)
    gaps = {}
    ems.need(np.array([9.0, 1.0]), gaps)
    t.close("need", gaps["need"], 0, 1e-15)
    result = ems.run(attention.make_trace(23, 100, 20), SMALL)
    t.equal("a run tells its smallest", result.stats["smallest_gap"],
            min(min(kinds.values()) for kinds in result.method.gaps.values()))
    tight, event = result.stats["smallest_gap"] * 1.01, result.method.events
    at = [result.method.first_tight(0, head, tight) for head in range(2)]
    t.equal("and where", at, [next((e["tokens"] for e in event if e["head"] == head and
                                    e["gap"] < tight), None) for head in range(2)])
    t.true("somewhere", at != [None, None])
    t.true("which is usable", 1e-7 < result.stats["smallest_gap"] < 0.1,
           str(result.stats["smallest_gap"]))


def case_rounding_cannot_turn_a_decision(t):
    compared = 0
    for seed in range(25, 28):
        trace = attention.make_trace(seed, 150, 60, q_heads=6, kv_heads=3, d=12)
        rng = np.random.default_rng(seed)
        noisy = attention.Trace([tuple(part * (1 + 1e-7 * rng.uniform(-1, 1, part.shape))
                                       for part in trace.layers[0])], 150, trace.theta)
        result, other = ems.run(trace, SMALL), ems.run(noisy, SMALL)
        for head in range(3):
            if result.method.first_tight(0, head) is None:
                compared += 1
                t.equal("positions", result.lanes[0][head]["pos"], other.lanes[0][head]["pos"])
                t.equal("m", result.lanes[0][head]["m"], other.lanes[0][head]["m"])
        exact = attention.run_exact(trace).out[0]
        t.true("the method is felt", np.abs(result.out[0] - exact).max() > 1e-3)
    t.true("most lanes can be compared", compared >= 6, f"{compared} of 9")


def case_refusals(t):
    for what, options in (("no centre", {"budget_tokens": 36}), ("no interval",
                          {"recompress_interval": 0}), ("even pool", {"pool_kernel": 2}),
                          ("unknown value", {"combine": "mean"}), ("unknown key", {"tau": 1})):
        try:
            ems.run(attention.make_trace(24, 5, 0), options)
            t.true(what, False)
        except ValueError:
            t.true(what, True)


def case_bytes_as_described(t):
    slot, lanes = ems.slot_bytes(128, 2), 32 * 8
    exact = lanes * 32768 * 2 * 128 * 2
    t.equal("at rest", lanes * 256 * slot, 34603008)
    t.equal("peak", lanes * (256 + 32) * slot, 38928384)
    t.printed("share in %", 100 * lanes * slot * np.array([256, 288]) / exact, "0.81 0.91")
    t.printed("one part in", exact / (lanes * 256 * slot), "124")
