"""Counts of ONNX operators: against brute-force loops, by hand, and of nested graphs."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from qeil_compile.ir import Op, OpGraph, TensorSpec
from qeil_compile.passes.count import OpCount, branches, count, unknown_report
from qeil_compile.passes.count.formulas import GRU_CELL, LSTM_CELL, SOFTMAX, live_scores
from tests.count_graphs import count_one, one

F = "float32"

# Brute force: walk the definition on a tiny shape and count multiply-adds one by one.


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_conv_against_loops(groups: int, stride: int, dilation: int) -> None:
    batch, channels, filters, size, kernel = 2, 4, 8, 7, 3
    out = (size - dilation * (kernel - 1) - 1) // stride + 1
    multiplies = 0
    for _n, m, _y, _x in itertools.product(range(batch), range(filters), range(out), range(out)):
        group = m * groups // filters
        for c, _ky, _kx in itertools.product(range(channels), range(kernel), range(kernel)):
            multiplies += c * groups // channels == group
    c = count_one(
        "onnx.Conv",
        {
            "x": (F, (batch, channels, size, size)),
            "w": (F, (filters, channels // groups, kernel, kernel)),
            "b": (F, (filters,)),
        },
        [(F, (batch, filters, out, out))],
        {"group": groups, "strides": [stride] * 2, "dilations": [dilation] * 2},
    )
    assert (c.flops, c.kind) == (2 * multiplies, "conv")


@pytest.mark.parametrize("groups", [1, 2])
def test_conv_transpose_against_loops(groups: int) -> None:
    channels, filters, size, kernel = 4, 6, 5, 3
    multiplies = 0
    for c, _x, m, _k in itertools.product(range(channels), range(size), range(filters), range(kernel)):
        multiplies += c * groups // channels == m * groups // filters
    inputs = {"x": (F, (1, channels, size)), "w": (F, (channels, filters // groups, kernel))}
    got = count_one("onnx.ConvTranspose", inputs, [(F, (1, filters, 2 * size + 1))], {"group": groups})
    assert got.flops == 2 * multiplies


@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm_against_loops(trans_a: int, trans_b: int) -> None:
    m, k, n = 3, 5, 7
    multiplies = sum(1 for _ in itertools.product(range(m), range(n), range(k)))
    inputs = {
        "a": (F, (k, m) if trans_a else (m, k)),
        "b": (F, (n, k) if trans_b else (k, n)),
        "c": (F, (n,)),
    }
    got = count_one("onnx.Gemm", inputs, [(F, (m, n))], {"transA": trans_a, "transB": trans_b})
    assert (got.flops, got.kind) == (2 * multiplies, "gemm")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((2, 1, 3, 4), (6, 4, 5)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((4,), (4,)),
    ],
)
def test_matmul_against_loops(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """numpy tells the number of results; each is a sum over the inner dimension."""
    import numpy as np

    result = np.matmul(np.zeros(a), np.zeros(b)).shape
    multiplies = int(np.prod(result, dtype=int)) * a[-1]
    assert count_one("onnx.MatMul", {"a": (F, a), "b": (F, b)}, [(F, result)]).flops == 2 * multiplies


@pytest.mark.parametrize(
    ("equation", "shapes", "multiplies"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)], 24),
        ("bij,bjk->bik", [(5, 2, 3), (5, 3, 4)], 120),
        ("...ij,...jk->...ik", [(5, 2, 3), (5, 3, 4)], 120),
        ("ij,jk", [(2, 3), (3, 4)], 24),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)], 24 + 40),
    ],
)
def test_einsum_against_its_loops(equation: str, shapes: list[tuple[int, ...]], multiplies: int) -> None:
    inputs = {f"x{i}": (F, s) for i, s in enumerate(shapes)}
    c = count_one("onnx.Einsum", inputs, [(F, None)], {"equation": equation})
    assert (c.flops, c.kind) == (2 * multiplies, "gemm")


@pytest.mark.parametrize(
    ("name", "gates", "cell"), [("LSTM", 4, LSTM_CELL), ("GRU", 3, GRU_CELL), ("RNN", 1, 8.0)]
)
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_against_loops(name: str, gates: int, cell: float, directions: int) -> None:
    steps, batch, width, hidden = 5, 2, 3, 4
    flops = 0.0
    for _d, _t, _b, _h in itertools.product(range(directions), range(steps), range(batch), range(hidden)):
        flops += sum(2 * (width + hidden) for _gate in range(gates)) + cell
    c = count_one(
        f"onnx.{name}",
        {
            "X": (F, (steps, batch, width)),
            "W": (F, (directions, gates * hidden, width)),
            "R": (F, (directions, gates * hidden, hidden)),
        },
        [(F, (steps, directions, batch, hidden))],
        {"hidden_size": hidden},
    )
    assert (c.flops, c.kind) == (flops, "recurrent")


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("packed", [False, True])
def test_attention_against_loops(past: int, causal: int, packed: bool) -> None:
    batch, heads, kv_heads, rows, width, value_width = 2, 4, 2, 5, 8, 6
    flops = 0.0
    for _b, _h, i, j in itertools.product(range(batch), range(heads), range(rows), range(rows + past)):
        if not causal or j <= i + past:
            flops += 2 * width + 2 * value_width + 1 + SOFTMAX

    def shape(n: int, d: int) -> tuple[int, ...]:
        return (batch, rows, n * d) if packed else (batch, n, rows, d)

    inputs: dict[str, Any] = {
        "q": (F, shape(heads, width)),
        "k": (F, shape(kv_heads, width)),
        "v": (F, shape(kv_heads, value_width)),
        "mask": None,
    }
    if past:
        inputs["pk"] = (F, (batch, kv_heads, past, width))
        inputs["pv"] = (F, (batch, kv_heads, past, value_width))
    attributes = {"is_causal": causal} | ({"q_num_heads": heads, "kv_num_heads": kv_heads} if packed else {})
    c = count_one("onnx.Attention", inputs, [(F, shape(heads, value_width))], attributes)
    assert (c.flops, c.kind) == (flops, "attention")


@pytest.mark.parametrize("window", [-1, 0, 1, 3, 100])
def test_live_scores_against_loops(window: int) -> None:
    for rows, keys, offset in itertools.product(range(1, 6), range(1, 9), range(4)):
        seen = 0
        for i, j in itertools.product(range(rows), range(keys)):
            # With a window, query i sees keys i + offset - window + 1 .. i + offset.
            seen += j <= i + offset and (window < 0 or j > i + offset - window)
        assert live_scores(rows, keys, offset, window) == seen


# Values derived by hand.


@pytest.mark.parametrize(("rows", "kind"), [(1, "gemv"), (16, "gemm")])
def test_four_bit_weights_count_half_a_byte_and_their_scales(rows: int, kind: str) -> None:
    n, k, block = 256, 512, 32
    c = count_one(
        "com.microsoft.MatMulNBits",
        {
            "a": ("float16", (1, rows, k)),
            "b": ("uint8", (n, k // block, block // 2)),
            "scales": ("float16", (n * k // block,)),
            "zeros": ("uint8", (n * k // block // 2,)),
        },
        [("float16", (1, rows, n))],
        {"K": k, "N": n, "bits": 4, "block_size": block},
        weights=["b", "scales", "zeros"],
    )
    weights = n * k // 2 + 2 * n * k // block + n * k // block // 2
    assert c == OpCount(2.0 * rows * n * k, rows * k * 2, weights, rows * n * 2, kind, True, "float16", (1, rows, n, k))


def test_accuracy_level_names_the_dtype_of_the_arithmetic() -> None:
    inputs = {"a": (F, (1, 8)), "b": ("uint8", (4, 1, 4))}
    c = count_one("com.microsoft.MatMulNBits", inputs, [(F, (1, 4))], {"K": 8, "N": 4, "accuracy_level": 4})
    assert c.dtype == "int8"
    assert (
        count_one(
            "onnx.MatMulInteger", {"a": ("uint8", (2, 3)), "b": ("int8", (3, 4))}, [("int32", (2, 4))]
        ).dtype
        == "uint8"
    )


def test_decoding_with_a_shared_cache_reads_all_of_it_and_writes_one_row() -> None:
    heads, kv_heads, width, capacity = 8, 2, 16, 128
    cache = ("float16", (1, kv_heads, capacity, width))
    c = count_one(
        "com.microsoft.GroupQueryAttention",
        {
            "q": ("float16", (1, 1, heads * width)),
            "k": ("float16", (1, 1, kv_heads * width)),
            "v": ("float16", (1, 1, kv_heads * width)),
            "pk": cache,
            "pv": cache,
        },
        [("float16", (1, 1, heads * width)), cache, cache],
        {"num_heads": heads, "kv_num_heads": kv_heads},
    )
    row = kv_heads * width * 2
    assert c.flops == heads * capacity * (4 * width + 1 + SOFTMAX)
    assert c.bytes_in == heads * width * 2 + 2 * row + 2 * capacity * row
    assert c.bytes_out == heads * width * 2 + 2 * row


def test_gather_slice_and_shape_read_what_they_need() -> None:
    table = ("float16", (1000, 64))
    c = count_one("onnx.Gather", {"t": table, "i": ("int64", (5,))}, [("float16", (5, 64))], weights=["t"])
    assert (c.bytes_in, c.bytes_weights, c.bytes_out) == (40, 640, 640)
    c = count_one("onnx.Slice", {"t": table, "s": ("int64", (2,))}, [("float16", (10, 64))])
    assert (c.bytes_in, c.bytes_out) == (10 * 64 * 2 + 16, 10 * 64 * 2)
    c = count_one("onnx.Shape", {"t": table}, [("int64", (2,))])
    assert (c.bytes_in, c.bytes_out) == (0, 16)
    c = count_one("onnx.Reshape", {"t": table, "s": ("int64", (1,))}, [("float16", (64000,))])
    assert c.nbytes == 0
    c = count_one("onnx.Transpose", {"t": table}, [("float16", (64, 1000))])
    assert c.nbytes == 2 * 128000


def test_packed_embedding_reads_the_rows_of_all_its_tables() -> None:
    c = count_one(
        "com.microsoft.GatherBlockQuantized",
        {"t": ("uint8", (1000, 32)), "i": ("int64", (5,)), "s": ("float16", (1000, 2))},
        [("float16", (5, 64))],
        {"bits": 4, "block_size": 32},
        weights=["t", "s"],
    )
    assert c.bytes_weights == 5 * 32 + 5 * 2 * 2


def test_experts_read_and_compute_only_what_is_routed() -> None:
    experts, tokens, width, hidden, k = 8, 3, 16, 32, 2
    c = count_one(
        "com.microsoft.MoE",
        {
            "x": (F, (tokens, width)),
            "router": (F, (tokens, experts)),
            "fc1": (F, (experts, width, hidden)),
            "b1": None,
            "fc2": (F, (experts, hidden, width)),
        },
        [(F, (tokens, width))],
        {"k": k},
        weights=["fc1", "fc2"],
    )
    assert c.flops == tokens * k * 2 * (2 * width * hidden)
    assert c.bytes_weights == tokens * k * (2 * width * hidden) * 4


def test_old_softmax_takes_all_axes_after_its_own_as_one_row() -> None:
    x = {"x": (F, (2, 3, 4))}
    for opset in (11, 13):
        assert count_one("onnx.Softmax", x, [(F, (2, 3, 4))], opset=opset).flops == 24 * SOFTMAX
    old = count_one("onnx.LogSoftmax", x, [(F, (2, 3, 4))], opset=11).flops
    new = count_one("onnx.LogSoftmax", x, [(F, (2, 3, 4))], opset=13).flops
    assert (old, new) == (24 * 12 + 2 * 8, 24 * 12 + 6 * 8)


# Nested graphs.


def body(*ops: tuple[str, float], reads: int = 10) -> OpGraph:
    """A graph whose operators each map ten numbers to ten numbers, the first from the outer tensor `x`."""
    tensors = {f"t{i}": TensorSpec(f"t{i}", (reads,), F, "activation") for i in range(len(ops))}
    nodes = tuple(
        Op(f"n{i}", name, ("x" if i == 0 else f"t{i - 1}",), (f"t{i}",)) for i, (name, _) in enumerate(ops)
    )
    return OpGraph("body", "onnx", nodes, tensors, (), (f"t{len(ops) - 1}",), {"": 25})


def test_a_branch_counts_its_dearest_side() -> None:
    sides = (body(("onnx.Relu", 1)), body(("onnx.Exp", 8), ("onnx.Sigmoid", 14)))
    graph = one("onnx.If", {"c": ("bool", ()), "x": (F, (10,))}, [(F, (10,))], body=sides)
    (c,) = count(graph)
    assert (c.flops, c.bytes_in, c.bytes_out, c.kind, c.known) == (220, 80, 80, "control", True)


def named(name: str, graph: OpGraph) -> OpGraph:
    return replace(graph, name=name)


def test_all_branches_are_priced_and_the_declared_one_counts() -> None:
    cheap, dear = named("if.then_branch", body(("onnx.Relu", 1))), named("if.else_branch", body(("onnx.Exp", 8)))
    inputs = {"c": ("bool", ()), "x": (F, (10,))}
    for taken, flops in ((0, 80), (1, 10), (7, 80)):
        graph = one("onnx.If", inputs, [(F, (10,))], {"#taken": taken}, body=(dear, cheap))
        assert count(graph)[0].flops == flops
        assert [c.flops for c in branches(graph)["op"]] == [80, 10]


@pytest.mark.parametrize(("value", "flops"), [(True, 10), (False, 80)])
def test_a_constant_condition_declares_its_branch(value: bool, flops: int) -> None:
    cheap, dear = named("if.then_branch", body(("onnx.Relu", 1))), named("if.else_branch", body(("onnx.Exp", 8)))
    graph = one("onnx.If", {"c": ("bool", ()), "x": (F, (10,))}, [(F, (10,))], body=(dear, cheap))
    constant = Op("k", "onnx.Constant", (), ("c",), {"value": {"dtype": "bool", "shape": [], "values": [value]}})
    condition = TensorSpec("c", (), "bool", "activation")
    graph = replace(graph, ops=(constant, *graph.ops), tensors={**graph.tensors, "c": condition}, inputs=("x",))
    assert count(graph)[1].flops == flops


def test_constants_inside_a_branch_are_weights() -> None:
    inner = body(("onnx.Relu", 1))
    w = Op("w", "onnx.Constant", (), ("w",), {})
    add = Op("add", "onnx.Add", ("t0", "w"), ("t1",))
    tensors = {**inner.tensors, **{n: TensorSpec(n, (10,), F, "activation") for n in ("w", "t1")}}
    inner = replace(inner, ops=(*inner.ops, w, add), tensors=tensors, outputs=("t1",))
    c = count_one("onnx.If", {"c": ("bool", ()), "x": (F, (10,))}, [(F, (10,))], body=(inner,))
    assert (c.bytes_in, c.bytes_weights) == (80, 40)


def test_a_loop_multiplies_by_a_static_trip_count() -> None:
    inner = body(("onnx.Exp", 8))
    loop = OpGraph(
        "body", "onnx", inner.ops, inner.tensors, ("i", "cond", "state"), inner.outputs, inner.opsets
    )
    inputs = {"m": ("int64", ()), "go": ("bool", ()), "s": (F, (10,)), "x": (F, (10,))}
    stacked = count_one("onnx.Loop", inputs, [(F, (10,)), (F, (7, 10))], body=(loop,))
    assert (stacked.flops, stacked.known) == (7 * 80, True)
    endless = one("onnx.Loop", inputs, [(F, (10,))], body=(loop,))
    (c,) = count(endless)
    assert (c.flops, c.known) == (80, False)
    assert unknown_report(endless, (c,)) == [("onnx.Loop", 1, 1.0)]


def test_a_scan_runs_once_per_element_of_what_it_scans() -> None:
    inner = body(("onnx.Exp", 8))
    scan = OpGraph("body", "onnx", inner.ops, inner.tensors, ("state", "row"), inner.outputs, inner.opsets)
    inputs = {"s": (F, (10,)), "rows": (F, (4, 6, 10)), "x": (F, (10,))}
    for axis, trips in (([], 4), ([1], 6)):
        attributes = {"num_scan_inputs": 1, "scan_input_axes": axis}
        c = count_one("onnx.Scan", inputs, [(F, (10,))], attributes, body=(scan,))
        assert (c.flops, c.known) == (trips * 80, True)


def test_an_unknown_operator_inside_a_branch_is_reported_by_its_own_name() -> None:
    sides = (body(("onnx.Relu", 1)), body(("my.domain.Magic", 0)))
    graph = one("onnx.If", {"c": ("bool", ()), "x": (F, (10,))}, [(F, (10,))], body=sides)
    counts = count(graph)
    assert not counts[0].known
    assert [(name, n) for name, n, _ in unknown_report(graph, counts)] == [("my.domain.Magic", 1)]
