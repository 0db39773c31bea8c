"""Fusion: what the rules say against what ONNX Runtime and OpenVINO run, the tables to price, and the groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeil_compile.devices.cpuinfo import cpu_facts
from qeil_compile.ir import GroupGraph, Op, OpGraph, OpGroup, TensorSpec
from qeil_compile.passes import fusion_rules
from qeil_compile.passes.count import OpCount, count
from qeil_compile.passes.fuse import FuseSettings, fuse, kernels
from qeil_compile.passes.fusion_rules import ONNXRUNTIME, RULES
from qeil_compile.passes.kernels import kernel_table, kernel_tables
from tests.engine_kernels import agreement, kernels_of
from tests.fusion_models import SEEN, UNSEEN

ENGINES = ("torch", "onnxruntime", "openvino")
F = "float32"


Shape = tuple[int, ...]


def graph_of(*rows: tuple[str, str, str, Shape], weights: Mapping[str, Shape] | None = None) -> OpGraph:
    """Operators as (type, inputs, output, shape of the output); x is [1, 16, 8, 8], outputs are what nobody reads."""
    tensors = {"x": TensorSpec("x", (1, 16, 8, 8), F, "input")}
    tensors |= {n: TensorSpec(n, shape, F, "weight") for n, shape in (weights or {}).items()}
    ops, read = [], set()
    for i, (kind, reads, out, shape) in enumerate(rows):
        inputs = tuple(reads.split())
        read |= set(inputs)
        tensors[out] = TensorSpec(out, shape, F, "activation")
        ops.append(Op(f"op{i}", f"onnx.{kind}", inputs, (out,)))
    outputs = tuple(r[2] for r in rows if r[2] not in read)
    return OpGraph("hand", "onnx", tuple(ops), tensors, ("x",), outputs, {"": 20})


IMAGE = (1, 16, 8, 8)
RESIDUAL = graph_of(
    ("Conv", "x w", "a", IMAGE),
    ("BatchNormalization", "a s s s s", "b", IMAGE),
    ("Relu", "b", "c", IMAGE),
    ("Conv", "c w", "d", IMAGE),
    ("Add", "d x", "e", IMAGE),
    ("Relu", "e", "f", IMAGE),
    weights={"w": (16, 16, 3, 3), "s": (16,)},
)
WRITTEN_NORM = graph_of(
    ("ReduceMean", "x", "m", (1, 16, 8, 1)),
    ("Sub", "x m", "d", IMAGE),
    ("Pow", "d two", "p", IMAGE),
    ("ReduceMean", "p", "v", (1, 16, 8, 1)),
    ("Add", "v eps", "e", (1, 16, 8, 1)),
    ("Sqrt", "e", "r", (1, 16, 8, 1)),
    ("Div", "d r", "n", IMAGE),
    ("Mul", "n g", "h", IMAGE),
    ("Add", "h g", "y", IMAGE),
    weights={"two": (), "eps": (), "g": (8,)},
)


def parts(graph: OpGraph, engine: str) -> list[tuple[int, ...]]:
    return [k.ops for k in kernels(graph, count(graph), engine)]


def singles(graph: OpGraph) -> GroupGraph:
    return GroupGraph(graph, tuple(OpGroup(i, (i,)) for i in range(len(graph.ops))))


# Against the engines themselves.


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["ultraface", "silero_vad_16k_op15", "written-out encoder"])
def test_known_models_run_as_predicted(name: str, engine: str) -> None:
    found = agreement(SEEN[name](), engine)
    assert found.predicted == pytest.approx(found.executed, rel=0.03)
    assert found.precision > 0.95 and found.recall > 0.8


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["U-Net", "gated decoder with cache", "mixer with GRU"])
def test_models_that_shaped_no_rule_run_nearly_as_predicted(name: str, engine: str) -> None:
    found = agreement(UNSEEN[name](), engine)
    assert found.predicted == pytest.approx(found.executed, rel=0.2, abs=3)
    assert found.both >= 0.8 * found.predicted_together


def test_a_wrong_rule_would_show() -> None:
    """The comparison tells operators apart: run by themselves they agree with torch's rules, not with OpenVINO's."""
    traced = SEEN["ultraface"]()
    graph = traced.graph.priced()
    eager = [k for k in kernels(graph, count(graph), "torch") if not k.free]
    assert len(eager) > 2 * len(kernels_of(traced, "openvino"))


def test_engines_name_the_fusions() -> None:
    ran = {(r.type, len(r.ops)) for r in kernels_of(SEEN["ultraface"](), "openvino")}
    assert ("Convolution", 3) in ran  # convolution, batch norm, activation
    ran = {(r.type, len(r.ops)) for r in kernels_of(SEEN["ultraface"](), "onnxruntime")}
    assert ("Conv", 3) in ran and ("ReorderOutput", 0) in ran


# Rules on small graphs.


def test_a_convolution_takes_up_norm_sum_and_activation() -> None:
    assert parts(RESIDUAL, "openvino") == [(0, 1, 2), (3, 4, 5)]
    # The sum's other operand, an input, is not in blocks of channels: ONNX Runtime leaves the sum alone.
    assert parts(RESIDUAL, "onnxruntime") == [(0, 1, 2), (3,), (4,), (5,)]
    blocks = graph_of(
        ("Conv", "x w", "a", IMAGE), ("Conv", "a w", "b", IMAGE), ("Add", "b a", "c", IMAGE), ("Relu", "c", "d", IMAGE),
        weights={"w": (16, 16, 3, 3)},
    )  # fmt: skip
    assert parts(blocks, "onnxruntime") == [(0,), (1, 2, 3)]
    assert len(parts(RESIDUAL, "torch")) == 6


def test_a_written_out_norm_is_one_kernel() -> None:
    for engine in ("onnxruntime", "openvino"):
        assert parts(WRITTEN_NORM, engine) == [tuple(range(9))]
    assert len(parts(WRITTEN_NORM, "torch")) == 9


def test_a_pattern_whose_inside_is_read_elsewhere_is_none() -> None:
    leaking = graph_of(
        ("Sigmoid", "x", "a", IMAGE), ("Mul", "x a", "b", IMAGE), ("MatMul", "a b", "c", (1, 16, 8, 8))
    )
    assert parts(leaking, "onnxruntime") == [(0,), (1,), (2,)]


def test_weights_alone_are_folded_and_equal_operators_run_once() -> None:
    graph = graph_of(
        ("Transpose", "w", "t", (8, 8)),
        ("MatMul", "x t", "a", IMAGE),
        ("Exp", "a", "b", IMAGE),
        ("Exp", "a", "c", IMAGE),
        ("MatMul", "b c", "d", IMAGE),
        weights={"w": (8, 8)},
    )
    found = {k.ops: k for k in kernels(graph, count(graph), "onnxruntime")}
    assert found[(0,)].free and (2, 3) in found
    table = kernel_table(singles(graph), count(graph), "onnxruntime")
    product = table.types.index("MatMul")
    assert table.bytes_weights[product] == 8 * 8 * 4  # the folded transposition is read as a weight
    assert [k.free for k in kernels(graph, count(graph), "torch")] == [False] * 5


@pytest.mark.parametrize("engine", [*ENGINES, "another"])
def test_kernels_are_a_partition(engine: str) -> None:
    for graph in (RESIDUAL, WRITTEN_NORM):
        found = kernels(graph, count(graph), engine)
        assert sorted(i for k in found for i in k.ops) == list(range(len(graph.ops)))
        assert all(k.anchor in k.ops for k in found)


# Tables to price.


def test_bytes_inside_a_kernel_do_not_count_and_weights_count_once() -> None:
    counts = count(RESIDUAL)
    size, weight = 16 * 64 * 4, 16 * 16 * 9 * 4
    table = kernel_table(fuse(RESIDUAL, counts), counts, "openvino")
    own = [i for i, t in enumerate(table.types) if t == "Conv"]
    assert [table.bytes_in[i] for i in own] == [size, 2 * size]
    assert [table.bytes_weights[i] for i in own] == [weight + 16 * 4, weight]
    assert [table.bytes_out[i] for i in own] == [size, size]
    assert table.flops.sum() == sum(c.flops for c in counts)
    assert [table.kinds[i] for i in own] == ["conv", "conv"]
    assert table.dims[own[0]] == (1, 1, 16, 16, 64, 9, 1, 8, 2)


def test_a_border_between_groups_cuts_a_kernel() -> None:
    counts = count(RESIDUAL)
    table = kernel_table(singles(RESIDUAL), counts, "openvino")
    rows = [i for i, t in enumerate(table.types) if t != "Reorder"]
    assert [int(table.group[i]) for i in rows] == list(range(6))
    alone = [(c.bytes_in, c.bytes_weights, c.bytes_out) for c in counts]
    columns = (table.bytes_in, table.bytes_weights, table.bytes_out)
    assert [tuple(int(column[i]) for column in columns) for i in rows] == alone


def test_what_one_engine_copies_another_renames() -> None:
    rows = ("Transpose", "x", "t", (1, 8, 8, 16)), ("MatMul", "t w", "y", (1, 8, 8, 4))
    graph = graph_of(*rows, weights={"w": (16, 4)})
    ops = list(graph.ops)
    ops[0] = Op("op0", "onnx.Transpose", ("x",), ("t",), {"perm": [0, 2, 3, 1]})
    graph = OpGraph("hand", "onnx", tuple(ops), graph.tensors, ("x",), graph.outputs, {"": 20})
    tables = kernel_tables(singles(graph), count(graph), ENGINES)
    size = 16 * 64 * 4
    assert tables["torch"].bytes_out[0] == 0
    assert (tables["openvino"].bytes_in[0], tables["openvino"].bytes_out[0]) == (size, size)


def test_views_cost_a_launch_where_the_engine_runs_them() -> None:
    graph = graph_of(("Reshape", "x s", "a", (16, 64)), ("Relu", "a", "b", (16, 64)), weights={"s": (2,)})
    tables = kernel_tables(singles(graph), count(graph), ENGINES)
    assert tables["onnxruntime"].types == tables["torch"].types == ("Reshape", "Relu")
    assert tables["onnxruntime"].nbytes[0] == 0
    assert tables["openvino"].types == ("Relu",)
    assert tables["openvino"].nbytes[0] == 2 * 16 * 64 * 4


def test_a_branch_is_a_launch_and_the_kernels_inside() -> None:
    graph = SEEN["silero_vad"]().graph.priced()
    counts = count(graph)
    table = kernel_table(fuse(graph, counts), counts, "onnxruntime")
    # The profile of ONNX Runtime 1.32 lists 57 nodes, those inside the branch among them.
    assert 46 <= len(table) <= 68
    assert {"If", "LSTM"} < set(table.types) and table.kinds.count("conv") == 6
    # The branch reorders the weights of its LSTM, constants around it: the engine does so once, before it runs.
    assert max(n for k, n in zip(table.kinds, table.nbytes, strict=True) if k == "movement") < 1e5
    branch = next(c for op, c in zip(graph.ops, counts, strict=True) if op.body)
    assert table.flops.sum() == pytest.approx(branch.flops, rel=1e-3)


@st.composite
def random_graphs(draw: st.DrawFn) -> OpGraph:
    kinds = ["Relu", "Add", "Mul", "Sigmoid", "MatMul", "Softmax", "Reshape", "Transpose", "Conv", "Slice", "Concat"]
    rows: list[tuple[str, str, str, tuple[int, ...]]] = []
    for i in range(draw(st.integers(1, 16))):
        kind = draw(st.sampled_from(kinds))
        reads = draw(st.lists(st.sampled_from(["x", "w", *(r[2] for r in rows)]), min_size=1, max_size=2))
        rows.append((kind, " ".join(reads), f"t{i}", IMAGE))
    return graph_of(*rows, weights={"w": IMAGE})


@given(random_graphs())
@settings(deadline=None, max_examples=120)
def test_tables_of_any_graph_are_sound(graph: OpGraph) -> None:
    """Groups are acyclic, every kernel's traffic is at most what its operators move apart, FLOPs are kept."""
    counts = count(graph)
    groups = fuse(graph, counts)
    assert sorted(i for g in groups.groups for i in g.ops) == list(range(len(graph.ops)))
    assert all(a < b for a, b, _ in groups.edges)
    for engine, table in kernel_tables(groups, counts, ENGINES).items():
        free = {i for k in kernels(graph, counts, engine) if k.free for i in k.ops}
        assert table.flops.sum() == sum(c.flops for i, c in enumerate(counts) if i not in free)
        assert np.all(table.nbytes >= 0) and np.all(np.diff(table.group) >= 0)
        assert set(table.group) <= set(range(len(groups.groups)))


# Groups.


def test_no_kernel_of_any_engine_is_cut_in_known_models() -> None:
    graph = SEEN["silero_vad_16k_op15"]().graph.priced()
    counts = count(graph)
    owner = fuse(graph, counts).group_of
    for engine in RULES:
        for kernel in kernels(graph, counts, engine):
            assert kernel.free or len({owner[i] for i in kernel.ops}) == 1, (engine, kernel)


def test_pins_and_the_bound_limit_a_group() -> None:
    counts = count(WRITTEN_NORM)
    assert len(fuse(WRITTEN_NORM, counts).groups) == 1
    pinned = fuse(WRITTEN_NORM, counts, ["", "", "", "p", "", "", "", "", ""])
    assert (3,) in [g.ops for g in pinned.groups]
    small = fuse(WRITTEN_NORM, counts, settings=FuseSettings(max_ops=4))
    assert max(len(g.ops) for g in small.groups) <= 4


def test_a_chain_is_cut_at_its_smallest_tensor() -> None:
    """Element-wise operators without end: OpenVINO would run all in one kernel."""
    shapes = [IMAGE] * 6 + [(1, 1, 1, 1)] + [IMAGE] * 6
    rows = [("Exp", "x" if not i else f"t{i - 1}", f"t{i}", shape) for i, shape in enumerate(shapes)]
    graph = graph_of(*rows)
    groups = fuse(graph, count(graph), settings=FuseSettings(max_ops=8))
    owner = groups.group_of
    assert owner[6] != owner[7]
    assert len(groups.groups) == 2


def test_an_empty_group_of_free_operators_has_no_row() -> None:
    graph = graph_of(("Identity", "x", "a", IMAGE), ("Relu", "a", "y", IMAGE))
    table = kernel_table(singles(graph), count(graph), "openvino")
    assert len(table) == 1 and isinstance(count(graph)[0], OpCount)


def test_channels_that_lie_together_go_by_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = cpu_facts()
    for flags, block in ({"avx", "avx2"}, 8), ({"avx", "avx2", "avx512f"}, 16), ({"asimd"}, 16):
        monkeypatch.setattr(fusion_rules, "cpu_facts", lambda f=flags: replace(facts, flags=frozenset(f)))
        assert fusion_rules.channel_block() == block
    assert ONNXRUNTIME.layout is not None and ONNXRUNTIME.layout.block in (8, 16)
