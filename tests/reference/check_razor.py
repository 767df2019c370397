"""Properties of razor_attention.py; run by selfcheck.py."""
import attention
import razor_attention as razor
from attention import np

SMALL = {"num_sink_tokens": 3, "min_window_tokens": 20, "window_divisor": 4,
         "min_dropped_tokens": 5, "fold_tokens": 7}


def case_worked_example(t):
    k = np.array([(1, 0), (0, 1), (2, 0), (0, 2), (1, 1), (0, 0)], float)
    v = np.array([(1, 0), (0, 1), (2, 0), (0, 4), (1, 1), (3, 0)], float)
    q = np.array([[1.0, 0.0]])
    trace = attention.Trace([(k[:, None], k[:, None], v[:, None])], 6, scale=1.0)
    options = {"num_sink_tokens": 1, "min_window_tokens": 2, "window_divisor": 3,
               "min_dropped_tokens": 1}
    lane = razor.run(trace, options).lanes[0][0]
    t.equal("positions: sink, compensation, window", list(lane["pos"]), [0, 1, 4, 5])
    t.close("k^", lane["k"][1], [2 / 3, 1], 1e-15)
    t.close("v^", lane["v"][1], [2 / 3, 5 / 3], 1e-15)
    weights = np.exp(lane["k"] @ q[0] + lane["bias"])
    t.printed("weights", weights[[0, 2, 3, 1]], "2.718282 2.718282 1.000000 5.843202")
    t.printed("output", attention.attend(q, lane, 1.0)[0], "1.004256 1.014429")
    full = attention.run_exact(trace).lanes[0][0]
    t.printed("full attention", attention.attend(q, full, 1.0)[0], "1.466905 0.487708")
    lane["bias"][:] = 0
    t.printed("without N_d", attention.attend(q, lane, 1.0)[0], "1.161105 0.711390")


def case_nothing_to_drop_is_exact(t):
    trace = attention.make_trace(1, 60, 12, layers=2)
    exact = attention.run_exact(trace)
    everything = [(layer, head) for layer in range(2) for head in range(2)]
    for what, options in (("N <= N0 + L_h", {**SMALL, "min_window_tokens": 69}),
                          ("rho = 1", {**SMALL, "retrieval_heads": everything}),
                          ("fewer than min_dropped_tokens", {**SMALL, "min_dropped_tokens": 50})):
        result = razor.run(trace, options)
        for layer in range(2):
            t.equal(f"{what}: outputs", result.out[layer], exact.out[layer])
            t.equal(f"{what}: keys", result.lanes[layer][1]["k"], exact.lanes[layer][1]["k"])
        t.equal(f"{what}: bytes", result.stats["bytes_stored"], exact.stats["bytes_exact"])
        t.equal(f"{what}: evicted", result.stats["slots_evicted"], 0)


def case_one_dropped_token(t):
    trace = attention.make_trace(2, 24, 6)
    result = razor.run(trace, {**SMALL, "min_dropped_tokens": 1})
    t.equal("a slot stands for it", (result.lanes[0][0].slots, result.lanes[0][0]["pos"][3]),
            (30, 3))
    t.close("full attention", result.out[0], attention.run_exact(trace).out[0], 1e-13)


def case_equal_keys_are_exact(t):
    trace = attention.make_trace(3, 80, 6, theta=0.0)
    trace.layers[0][1][3:80] = trace.layers[0][1][3]
    result = razor.run(trace, SMALL)
    t.equal("57 tokens are one slot", result.lanes[0][0].slots, 86 - 57 + 1)
    t.close("full attention", result.out[0], attention.run_exact(trace).out[0], 1e-12)


def literal_output(q, k, v, scale, dropped):
    """The formula as it stands, N_d as a factor, and the log-sum-exp merge of two splits."""
    kept = np.setdiff1d(np.arange(len(k)), dropped)
    mean_k, mean_v, count = k[dropped].mean(0), v[dropped].mean(0), len(dropped)
    e, e_mean = np.exp(scale * (k[kept] @ q)), np.exp(scale * (mean_k @ q))
    formula = (count * e_mean * mean_v + e @ v[kept]) / (count * e_mean + e.sum())
    lse = np.array([scale * (mean_k @ q) + np.log(count), np.log(e.sum())])
    share = np.exp(lse - np.logaddexp(*lse))
    return formula, share[0] * mean_v + share[1] * (e @ v[kept]) / e.sum()


def case_biased_softmax_is_the_formula(t):
    trace = attention.make_trace(4, 100, 1, q_heads=4, kv_heads=2, d=8, v_dim=6)
    result = razor.run(trace, {**SMALL, "retrieval_heads": [[0, 1]]})
    q, k, v = trace.turned(0)
    dropped = np.arange(3, 100 - 25)
    formula, merged = literal_output(q[100, 1], k[:, 0], v[:, 0], trace.scale_of(0), dropped)
    t.close("literal formula", result.out[0][100, 1], formula, 1e-13)
    t.close("split and merge", result.out[0][100, 1], merged, 1e-13)
    t.close("the bias", result.lanes[0][0]["bias"][3], np.log(72), 1e-15)
    exact = attention.run_exact(trace)
    t.equal("the retrieval head", result.out[0][:, 2:], exact.out[0][:, 2:])
    t.equal("it keeps all", result.lanes[0][1].slots, 101)
    deep = razor.run(attention.make_trace(4, 100, 1, layers=2), {**SMALL,
                                                                 "retrieval_heads": [[1, 0]]})
    t.equal("a head set names layers", [lane.slots for lanes in deep.lanes for lane in lanes],
            [30, 30, 101, 30])
    t.equal("the prompt is exact", result.out[0][:100], exact.out[0][:100])


def case_rolling_is_compressing_once(t):
    trace = attention.make_trace(5, 90, 7 * 9 + 3)
    _, k, v = trace.turned(0)
    for options in (SMALL, {**SMALL, "min_dropped_tokens": 70}):      # at once, and later
        result = razor.run(trace, options)
        lane, gone = result.lanes[0][1], result.stats["slots_evicted"] // 2
        t.equal("where the window starts", lane["pos"][4], 3 + gone)
        t.close("k^", lane["k"][3], k[3:3 + gone, 1].mean(0), 1e-12)
        t.close("v^", lane["v"][3], v[3:3 + gone, 1].mean(0), 1e-12)
        t.close("ln N_d", lane["bias"][3], np.log(gone), 1e-15)
        t.equal("kept slots are untouched", lane["k"][4:], k[3 + gone:, 1])
        t.equal("sinks are untouched", lane["v"][:3], v[:3, 1])
        t.equal("no other bias", np.count_nonzero(lane["bias"]), 1)


def case_when_tokens_fold(t):
    trace = attention.make_trace(6, 60, 100, q_heads=2, kv_heads=1, d=4)

    def slots(rows, **more):
        cut = attention.Trace([tuple(part[:60 + rows] for part in trace.layers[0])], 60,
                              trace.theta)
        return razor.run(cut, {**SMALL, **more}).lanes[0][0].slots

    t.equal("at the prompt's end", slots(0), 3 + 1 + 20)
    t.equal("not before fold_tokens", slots(6), 24 + 6)
    t.equal("at fold_tokens", slots(7), 24)
    t.equal("and again", slots(14), 24)
    t.equal("freeze", slots(100, decode_update="freeze"), 124)
    t.equal("late: all is kept", slots(12, min_dropped_tokens=50), 72)
    t.equal("late: then all at once", slots(13, min_dropped_tokens=50), 24)
    t.equal("late: then by fold_tokens", slots(19, min_dropped_tokens=50), 24 + 6)
    t.equal("late and freeze: all", slots(100, min_dropped_tokens=50, decode_update="freeze"), 160)
    t.equal("late: the window is the prompt's", slots(93, min_dropped_tokens=70, fold_tokens=60,
                                                      window_divisor=2), 3 + 1 + 30 + 50)
    for more in ({}, {"min_dropped_tokens": 50}, {"use_compensation_token": False},
                 {"decode_update": "freeze"}, {"fold_tokens": 1}, {"min_dropped_tokens": 0}):
        told = [razor.slots_at(60, 60 + rows, {**razor.DEFAULTS, **SMALL, **more})
                for rows in range(0, 100, 9)]
        t.equal(f"closed form, {more}", [slots(rows, **more) for rows in range(0, 100, 9)], told)


def case_window_length(t):
    o = razor.DEFAULTS
    t.equal("max(S0, ceil(N / C))", [razor.window_length(n, o) for n in (100, 20001, 32768)],
            [4000, 4001, 6554])
    t.equal("defaults at 4004 and 4067: all stays", [razor.slots_at(n, n, o) for n in (4004, 4067)],
            [4004, 4067])
    t.equal("defaults at 4068", razor.slots_at(4068, 4068, o), 4005)


def case_without_compensation(t):
    trace = attention.make_trace(7, 70, 20)
    result = razor.run(trace, {**SMALL, "use_compensation_token": False})
    lane = result.lanes[0][0]
    t.equal("positions", list(lane["pos"]), [0, 1, 2] + list(range(64, 90)))
    t.equal("no bias", np.count_nonzero(lane["bias"]), 0)
    t.equal("evicted", result.stats["slots_evicted"], 2 * 61)
    with_one = razor.run(trace, SMALL)
    t.equal("the same tokens go", with_one.stats["slots_evicted"], 2 * 61)
    t.equal("the slot costs its bytes",
            with_one.stats["bytes_stored"] - result.stats["bytes_stored"], 2 * (32 * 4 + 8))
    half = razor.run(trace, SMALL, element_bytes=2)
    t.equal("in f32 where the rest is not", half.stats["bytes_stored"],
            2 * (29 * (32 * 2 + 8) + 32 * 4 + 8))


def case_kept_tokens_are_never_under_weighted(t):
    rng = np.random.default_rng(8)
    k = rng.standard_normal((50, 16))
    lane = razor.run(attention.Trace([(k[:, None], k[:, None], k[:, None])], 50, scale=0.7),
                     SMALL).lanes[0][0]
    q = 3 * rng.standard_normal((200, 16))
    gone = np.exp(0.7 * q @ k[3:30].T).sum(1)
    stands = np.exp(0.7 * q @ lane["k"][3] + lane["bias"][3])
    t.true("N_d e^(a q.k^) <= sum of e^(a q.k)", (stands <= gone * (1 + 1e-12)).all())
    t.true("and much less at times", (stands < 0.5 * gone).any())


def case_permuted_heads(t):
    trace = attention.make_trace(9, 100, 30, q_heads=8, kv_heads=4)
    heads = np.array([2, 0, 3, 1])
    queries = np.ravel(heads[:, None] * 2 + [0, 1])
    q, k, v = trace.layers[0]
    moved = attention.Trace([(q[:, queries], k[:, heads], v[:, heads])], 100, trace.theta)
    result = razor.run(trace, {**SMALL, "retrieval_heads": [[0, 3], [0, 0]]})
    other = razor.run(moved, {**SMALL, "retrieval_heads": [[0, 2], [0, 1]]})
    t.close("outputs move with their heads", other.out[0], result.out[0][:, queries], 1e-12)
    t.equal("lanes too", [lane.slots for lane in other.lanes[0]],
            [result.lanes[0][head].slots for head in heads])


def case_hand_made_scores(t):
    block, copies = 6, 4
    n = block * copies + 1
    for back, expected in ((block, (1, 0)), (block - 1, (0, 1)), (0, (0, 0))):
        p = np.eye(n)
        for i in range(block, n - 1):
            p[i + 1] = 0
            p[i + 1, i - back + 1] = 1
        t.equal(f"all weight {back} back", razor.scores(p, block), expected)
    p = np.tril(np.ones((n, n)))
    p /= p.sum(1, keepdims=True)
    wanted = sum((i // block) / (i + 2) for i in range(block, n - 1)) / (n - 1 - block)
    t.close("even weights: every copy counts, BOS does not", razor.scores(p, block),
            (wanted, wanted), 1e-15)


def case_streaming_scores(t):
    trace = attention.make_trace(10, 4 * 60 + 1, 0, q_heads=2, kv_heads=1, d=8)
    q, k, _ = trace.turned(0)
    scale = trace.scale_of(0)
    logits = scale * q[:, 0] @ k[:, 0].T + np.triu(np.full((241, 241), -np.inf), 1)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    t.close("as from the whole matrix", razor.scores_streaming(q[:, 0], k[:, 0], scale, 60, 32),
            razor.scores(p, 60), 1e-13)


def case_selection(t):
    rng = np.random.default_rng(11)
    echo, induction = rng.random((2, 32, 32))
    chosen = razor.select(echo, induction, 8)
    t.true("36 and 3 of 256: 36 to 39", 36 <= len(chosen) <= 39, str(len(chosen)))
    t.equal("36 induction heads", len(razor.select(echo, induction, 8, echo_ratio=0)), 36)
    t.equal("3 echo heads", len(razor.select(echo, induction, 8, induction_ratio=0)), 3)
    best = induction.reshape(32, 8, 4).max(2)
    last = np.sort(best.ravel())[-36]
    t.equal("the best of all layers together", razor.select(echo, induction, 8, echo_ratio=0),
            sorted(zip(*(index.tolist() for index in np.nonzero(best >= last)))))
    apart = np.zeros((2, 32, 32))
    apart.reshape(2, -1, 4)[0, :10, 0] = 1
    apart.reshape(2, -1, 4)[1, 100:243, 2] = 1
    t.equal("promote can take 153", len(razor.select(apart[0], apart[1], 8, rule="promote")), 153)
    t.equal("promote: heads, not groups, are counted", len(razor.select(
        np.zeros((2, 8)), np.tile([1.0, 1, 0, 0, 0, 0, 0, 0], (2, 1)), 2, rule="promote",
        induction_ratio=0.25)), 2)
    t.equal("ties: layer, then head", razor.select(np.zeros((3, 4)), np.ones((3, 4)), 2,
                                                   induction_ratio=0.5),
            [(0, 0), (0, 1), (1, 0)])
    t.equal("an empty set", razor.select(echo, induction, 8, 0.001, 0.001), [])
    t.equal("all heads", [len(razor.select(echo, induction, 8, *ratios)) for ratios in
                          ((1.0, 0.0), (0.0, 1.0))], [256, 256])


def case_bytes_as_described(t):
    def total(tokens, retrieval):
        window = razor.window_length(tokens, razor.DEFAULTS)
        lanes = [razor.lane_bytes(tokens, window, 4, 128, 2, lane < retrieval)
                 for lane in range(256)]
        return sum(lanes), sum(lanes) / (256 * 2 * tokens * 128 * 2)

    t.equal("32768 tokens", total(32768, 39)[0], 1383154532)
    t.equal("full", total(32768, 256)[0], 4294967296)
    t.printed("kept", [total(n, 39)[1] for n in (8192, 20000, 32768)], "0.567 0.322 0.322")
    t.printed("half the heads", total(32768, 128)[1], "0.60")
    t.equal("4004 tokens: full", total(4004, 39)[1], 1.0)
