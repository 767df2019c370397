"""Properties of attention.py and window.py; run by selfcheck.py."""
import contextlib
import io
import json
import os
import tempfile

import attention
import lab
import window
from attention import np


def literal(trace, layer=0):
    """Causal attention written out, head by head."""
    q, k, v = trace.turned(layer)
    group = q.shape[1] // k.shape[1]
    out, p_all = np.empty((*q.shape[:2], v.shape[2])), []
    for head in range(q.shape[1]):
        p = np.zeros((len(q), len(q)))
        for i in range(len(q)):
            e = np.exp(trace.scale_of(layer) * (k[:i + 1, head // group] @ q[i, head]))
            p[i, :i + 1] = e / e.sum()
        out[:, head] = p @ v[:, head // group]
        p_all.append(p)
    return out, np.array(p_all)


def case_causal_attention(t):
    trace = attention.make_trace(1, 300, 20, q_heads=6, kv_heads=2, d=8, v_dim=5)
    expected, p = literal(trace)
    result = attention.run_exact(trace)
    t.close("prompt and decode rows are the written-out sum", result.out[0], expected, 1e-12)
    q, k, v = trace.turned(0)
    n = trace.tokens
    _, all_rows, last = attention.attend_causal(q, k, v, trace.scale_of(0), 40)
    mean = p.reshape(2, 3, n, n).mean(1)
    t.close("column sums over all rows", all_rows, mean.sum(1), 1e-12)
    t.close("column sums over the last rows", last, mean[:, -40:].sum(1), 1e-12)
    t.close("column sums add up to the rows", all_rows.sum(1), [n, n], 1e-9)
    t.close("so do those of the last rows", last.sum(1), [40, 40], 1e-9)
    t.equal("bytes of the exact cache", result.stats["bytes_exact"], 2 * 320 * (13 * 4 + 8))
    t.equal("an exact cache stores them", result.stats["bytes_stored"], 2 * 320 * (13 * 4 + 8))


def case_traces_are_not_flat(t):
    for theta in (0.0, 10000.0):
        _, p = literal(attention.make_trace(2, 400, 0, q_heads=4, kv_heads=2, d=32, theta=theta))
        late = p[:, 200:]
        top = np.sort(late, 2)[:, :, -20:].sum(2).mean(1)
        t.true(f"theta {theta:g}: 20 of 400 keys hold much, not all", (top > 0.2).all() and
               (top < 0.999).all(), str(top))
        t.true(f"theta {theta:g}: heads differ", np.abs(late[0] - late[2]).sum(1).mean() > 0.2)
    same, other = attention.make_trace(2, 9, 1), attention.make_trace(3, 9, 1)
    t.equal("a seed gives one trace", attention.make_trace(2, 9, 1).layers[0][0], same.layers[0][0])
    t.true("another seed another", not np.array_equal(same.layers[0][0], other.layers[0][0]))


def case_rope(t):
    x, y = np.random.default_rng(0).standard_normal((2, 8))
    dots = [attention.rotate(x, p + 7, 100.0) @ attention.rotate(y, p, 100.0) for p in (0, 5, 900)]
    t.close("a dot product sees the distance alone", dots, [dots[0]] * 3, 1e-12)
    turned = attention.rotate(np.eye(4), 1, 100.0)
    cos, sin = np.cos([1, 0.1]), np.sin([1, 0.1])
    t.close("pairs are (i, i + d/2), angles theta^(-2i/d)", turned,
            [[cos[0], 0, sin[0], 0], [0, cos[1], 0, sin[1]], [-sin[0], 0, cos[0], 0],
             [0, -sin[1], 0, cos[1]]], 1e-15)
    t.equal("theta 0 turns nothing", attention.rotate(x, 5, 0), x)


def case_files(t):
    trace = attention.make_trace(4, 20, 5, layers=2, theta=500.0)
    trace.scale, trace.chunk = 0.3, 7
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.safetensors")
        attention.save_trace(path, trace)
        again = attention.load_trace(path)
        t.equal("numbers", (again.prompt, again.theta, again.scale, again.chunk),
                (20, 500.0, 0.3, 7))
        for layer in range(2):
            for part in range(3):
                t.equal("tensors", again.layers[layer][part], trace.layers[layer][part])
        t.equal("tokens", again.more["tokens"], trace.more["tokens"])
        result = window.run(trace, {"num_sink_tokens": 2, "recent_tokens": 6})
        lane = result.lanes[1][1]
        lane["bias"][2] = 0.5
        result.save(path)
        tensors, metadata = attention.read_safetensors(path)
        for part in ("k", "v", "bias"):
            t.equal(f"result: {part} of a lane", tensors[f"lanes.1.1.{part}"],
                    np.float32(lane[part]))
        t.equal("result: metadata", sorted(metadata), ["stats"])
        t.equal("result: shapes", (tensors["layers.1.out"].shape, tensors["lanes.0.0.pos"].dtype),
                ((25, 4, 16), np.dtype("int32")))
        attention.write_safetensors(path, {"none": np.zeros((0, 3), np.float32)}, {})
        t.equal("an empty tensor", attention.read_safetensors(path)[0]["none"].shape, (0, 3))


def case_command(t):
    with tempfile.TemporaryDirectory() as folder:
        trace, output = (os.path.join(folder, name) for name in ("trace", "output"))
        lab.main(["make", "--output", trace, "seed=6", "prompt=50", "decode=20", "theta=0"])
        made = attention.load_trace(trace)
        t.equal("make", made.layers[0][1], attention.make_trace(6, 50, 20, theta=0).layers[0][1])
        for method, options in (("none", []), ("window", ["recent_tokens=8"]),
                                ("razor_attention", ["min_window_tokens=8", "fold_tokens=3",
                                                     "min_dropped_tokens=1",
                                                     "retrieval_heads=[[0, 1]]"]),
                                ("ems", ["budget_tokens=40", "combine=max"])):
            with contextlib.redirect_stdout(io.StringIO()) as told:
                code = lab.main([method, "--trace", trace, "--output", output, *options])
            tensors, metadata = attention.read_safetensors(output)
            t.equal(f"{method}: exit code and stats", (code, json.loads(told.getvalue())),
                    (0, json.loads(metadata["stats"])))
            t.equal(f"{method}: slots", sum(len(tensors[f"lanes.0.{head}.pos"]) for head in (0, 1)),
                    {"none": 140, "window": 24, "razor_attention": 4 + 1 + 10 + 2 + 70,
                     "ems": 80 + 40}[method])
        with contextlib.redirect_stderr(io.StringIO()) as told:
            code = lab.main(["ems", "--trace", trace, "--output", output, "budgets=1"])
        t.equal("an unknown option", (code, told.getvalue()),
                (2, "lab.py: error: unknown options: budgets\n"))


def case_window(t):
    trace = attention.make_trace(5, 50, 30)
    options = {"num_sink_tokens": 3, "recent_tokens": 10}
    result = window.run(trace, options)
    lane = result.lanes[0][0]
    t.equal("positions", list(lane["pos"]), [0, 1, 2] + list(range(70, 80)))
    t.equal("evicted", result.stats["slots_evicted"], 2 * (80 - 13))
    t.equal("a row sees the window and itself", result.stats["slots_peak_in_decode"], 14)
    q, k, v = trace.turned(0)
    seen = [0, 1, 2] + list(range(69 - 10, 70))
    e = np.exp(trace.scale_of(0) * (k[seen, 1] @ q[69, 3]))
    t.close("a decode row", result.out[0][69, 3], e @ v[seen, 1] / e.sum(), 1e-12)
    exact = attention.run_exact(trace)
    t.equal("the prompt is exact", result.out[0][:50], exact.out[0][:50])
    wide = window.run(trace, {"num_sink_tokens": 0, "recent_tokens": 80})
    t.equal("wide enough: exact", wide.out[0], exact.out[0])
