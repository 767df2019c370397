"""Properties of xkv.py; run by selfcheck.py."""
import attention
import xkv
from attention import np

SMALL = {"group_size": 2, "rank_k": 6, "rank_v": 10, "min_prompt_tokens": 1}


def case_worked_example(t):
    x0 = np.array([[2, 0], [0, 1], [2, 0], [0, 1]], float)
    x1 = np.array([[0, 2], [1, 0], [0, 2], [1, 0]], float)
    both = np.concatenate([x0, x1], 1)
    t.close("sigma^2", np.linalg.svd(both)[1] ** 2, [16, 4, 0, 0], 1e-12)
    a, b = xkv.factors(both, 1)
    t.close("X0^", a @ b[:, :2], [[2, 0], [0, 0], [2, 0], [0, 0]], 1e-12)
    t.close("X1^", a @ b[:, 2:], [[0, 2], [0, 0], [0, 2], [0, 0]], 1e-12)
    t.close("error", np.linalg.norm(both - a @ b), 2, 1e-12)
    a, b = xkv.factors(both, 2)
    t.close("rank 2 is exact", a @ b, both, 1e-12)
    alone = [np.linalg.norm(x - np.matmul(*xkv.factors(x, 1))) ** 2 for x in (x0, x1)]
    t.close("each layer alone loses", alone, [2, 2], 1e-12)


def case_groups(t):
    o = xkv.DEFAULTS
    t.equal("two stages of 5", xkv.groups_of(10, {**o, "stages": [5, 5]}),
            [[0, 1, 2, 3], [4], [5, 6, 7, 8], [9]])
    t.equal("one stage", xkv.groups_of(10, o), [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]])
    t.equal("a range", xkv.groups_of(10, {**o, "start_layer": 3, "end_layer": 7}),
            [[3, 4, 5, 6], [7]])
    t.equal("rank of one layer", xkv.rank_of(384, 1, o), 96)
    t.equal("it is rounded up", xkv.rank_of(6, 1, {**o, "group_size": 4}), 2)


def case_sizes(t):
    exact = 2 * 32 * 8 * 128 * 65536
    t.close("4 layers, 384 and 576", exact / xkv.elements(65536, 32, 4, 8, 128, 384, 576), 8.03,
            5e-3)
    t.close("1 layer, 96 and 144", exact / xkv.elements(65536, 32, 1, 8, 128, 96, 144), 8.40, 5e-3)
    t.equal("break-even", xkv.least_tokens(4096, 4096, 384, 576), 544)
    t.equal("never", xkv.least_tokens(64, 64, 64, 64), None)
    t.equal("break-even of keys alone", xkv.least_tokens(4096, 4096, 384, 0), 424)
    for chunks, pays in ((127, False), (128, True)):
        t.equal(f"{chunks} chunks with their landmarks",
                xkv.pays_by_chunks(chunks, 8, 48, 4096, 4096, 384, 576), pays)
    keys = xkv.elements(65536, 32, 4, 8, 128, 384, 0)
    t.close("keys alone, 384", exact / keys, 1.8188, 5e-5)
    t.close("with a landmark for 8 tokens", exact / (keys + exact / 2 / 8), 1.63, 5e-3)


def case_full_rank_is_exact(t):
    trace = attention.make_trace(1, 60, 12, layers=3)
    exact = attention.run_exact(trace)
    result = xkv.run(trace, {**SMALL, "rank_k": 64, "rank_v": 64, "group_size": 3})
    for layer in range(3):
        t.close("outputs", result.out[layer], exact.out[layer], 1e-10)
    t.equal("the prompt is exact", result.out[1][:60], exact.out[1][:60])


def case_exact_values(t):
    trace = attention.make_trace(6, 50, 8, layers=2)
    result = xkv.run(trace, {**SMALL, "rank_v": 0})
    t.equal("values", all(np.array_equal(lane["v"][:50], trace.layers[layer][2][:50, head])
                          for layer, lanes in enumerate(result.lanes)
                          for head, lane in enumerate(lanes)), True)
    t.equal("bytes", result.stats["bytes_stored"],
            4 * (xkv.elements(50, 2, 2, 2, 16, 6, 0) + 4 * 8 * 32) + 8 * 4 * 58)
    whole = xkv.run(trace, {**SMALL, "rank_k": 64, "rank_v": 0})
    for layer, out in enumerate(attention.run_exact(trace).out):
        t.close("full rank of keys", whole.out[layer], out, 1e-10)


def case_below_break_even_is_exact(t):
    trace = attention.make_trace(2, 23, 9, layers=2)
    options = {**SMALL, "min_prompt_tokens": "auto"}
    t.equal("break-even", xkv.least_tokens(64, 64, 6, 10), 10)
    t.equal("bytes at 23", xkv.run(trace, {**options, "min_prompt_tokens": 24}).stats
            ["bytes_stored"], attention.run_exact(trace).stats["bytes_exact"])
    encoded = xkv.run(trace, options)
    t.equal("bytes encoded", encoded.stats["bytes_stored"],
            4 * (xkv.elements(23, 2, 2, 2, 16, 6, 10) + 4 * 9 * 32) + 8 * 4 * 32)


def case_fused_order(t):
    trace = attention.make_trace(3, 70, 1, layers=2, q_heads=2, kv_heads=1, d=8)
    x = [np.float64(np.concatenate([layer[kind][:70, 0] for layer in trace.layers], 1))
         for kind in (1, 2)]
    (a_k, b_k), (a_v, b_v) = xkv.factors(x[0], 6), xkv.factors(x[1], 10)
    q = trace.turned(1)[0][70, 0]
    scale, pos = trace.scale_of(1), np.arange(70)
    mine = xkv.fused(q, a_k, b_k[:, 8:], a_v, b_v[:, 8:], pos, trace.theta, scale)
    k = attention.rotate((a_k @ b_k)[:, 8:], pos, trace.theta)
    p = np.exp(scale * (k @ q))
    t.close("naive order", mine, (p / p.sum()) @ (a_v @ b_v)[:, 8:], 1e-12)
    gone = np.delete(np.arange(70), 30)
    t.equal("a row that goes leaves the others", (a_k[gone] @ b_k), np.delete(a_k @ b_k, 30, 0))


def case_error_is_what_is_discarded(t):
    x = np.random.default_rng(4).standard_normal((50, 20))
    sigma = np.linalg.svd(x)[1]
    for rank in (1, 5, 19, 20, 30):
        t.close(f"rank {rank}", np.linalg.norm(x - np.matmul(*xkv.factors(x, rank))),
                np.sqrt((sigma[rank:] ** 2).sum()), 1e-12)


def case_local_heads(t):
    trace = attention.make_trace(5, 60, 5, layers=2)
    one, two = xkv.run(trace, SMALL), xkv.run(trace, {**SMALL, "tensor": 2})
    t.equal("the same bytes", one.stats["bytes_stored"] - two.stats["bytes_stored"],
            4 * 4 * 16 * (6 + 10 - 3 - 5))
    alone = attention.Trace([tuple(part[:, first:first + step] for part, first, step in
                                   zip(layer, (2, 1, 1), (2, 1, 1))) for layer in trace.layers],
                            60, trace.theta)
    halved = xkv.run(alone, {**SMALL, "rank_k": 3, "rank_v": 5})
    t.close("each rank for itself", two.out[1][:, 2:], halved.out[1], 1e-12)


def case_segments(t):
    trace = attention.make_trace(7, 40, 50, layers=2)
    options = {**SMALL, "refactor_every": 16}
    exact, result = attention.run_exact(trace), xkv.run(trace, options)
    t.equal("bytes", result.stats["bytes_stored"],
            4 * (xkv.elements(40 + 3 * 16, 2, 2, 2, 16, 6, 10) + 3 * 4 * 16 * 16 + 4 * 2 * 32) +
            8 * 4 * 90)
    t.equal("the newest are raw", result.lanes[1][0]["k"][88:], exact.lanes[1][0]["k"][88:])
    once = xkv.run(trace, SMALL)
    t.close("nothing changes before the first event", result.out[1][:56], once.out[1][:56], 0)
    t.true("and from it on", np.abs(result.out[1][56] - once.out[1][56]).max() > 1e-6)
    full = xkv.run(trace, {**options, "rank_k": 64, "rank_v": 64})
    t.close("full rank", full.out[1], exact.out[1], 1e-10)


def case_first_tokens_stay(t):
    trace = attention.make_trace(6, 50, 4, layers=2)
    result = xkv.run(trace, {**SMALL, "num_sink_tokens": 3})
    exact = attention.run_exact(trace)
    t.equal("keys", result.lanes[1][0]["k"][:3], exact.lanes[1][0]["k"][:3])
    t.true("others are not", np.abs(result.lanes[1][0]["k"][3:50] -
                                    exact.lanes[1][0]["k"][3:50]).max() > 1e-3)
