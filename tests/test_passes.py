"""Fuse, annotate, legalise, schedule and the executor on graphs made by hand."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeil_compile.devices import Coefficient, DeviceProfile, Link, Target
from qeil_compile.errors import BackendError, CapacityError, UnsupportedOperatorError
from qeil_compile.ir import GroupGraph, Op, OpGraph, TensorSpec
from qeil_compile.passes.annotate import annotate
from qeil_compile.passes.count import OpCount, count
from qeil_compile.passes.fuse import FuseSettings, fuse
from qeil_compile.passes.kernels import kernel_table
from qeil_compile.passes.legalise import legalise
from qeil_compile.passes.partition import partition
from qeil_compile.passes.schedule import schedule
from qeil_compile.runtime.executor import Executor, _Step
from tests.cost_problems import one_kernel_each, singles


def graph_of(edges: list[list[int]], types: list[str] | None = None, opaque: frozenset[int] = frozenset()) -> OpGraph:
    """Operator i reads the outputs of edges[i] (or the input x) and writes t<i>."""
    tensors = {"x": TensorSpec("x", (4, 4), "float32", "input")}
    ops = []
    for i, reads in enumerate(edges):
        dtype = "opaque" if i in opaque else "float32"
        tensors[f"t{i}"] = TensorSpec(f"t{i}", (4, 4), dtype, "activation")
        inputs = tuple(f"t{r}" for r in reads) or ("x",)
        ops.append(Op(f"op{i}", types[i] if types else "onnx.Relu", inputs, (f"t{i}",)))
    read = {r for reads in edges for r in reads}
    outputs = tuple(f"t{i}" for i in range(len(edges)) if i not in read and i not in opaque)
    return OpGraph("hand", "onnx", tuple(ops), tensors, ("x",), outputs, {"": 17})


@st.composite
def dags(draw: st.DrawFn) -> list[list[int]]:
    count_ = draw(st.integers(1, 14))
    return [sorted(draw(st.sets(st.integers(0, i - 1), max_size=3))) if i else [] for i in range(count_)]


def value(v: float, unit: str = "1") -> Coefficient:
    return Coefficient(v, unit, "test")


def device(name: str, spec: str, speed: float = 1e9, memory: float = 1e9) -> DeviceProfile:
    return DeviceProfile(
        name=name, kind="cpu", title=name, engines=(spec,), pool=name, peak_flops={"fp32": value(speed, "FLOP/s")},
        energy_per_flop={"fp32": value(1e-10, "J/FLOP")}, memory_bandwidth=value(1e9, "B/s"),
        memory_bytes=value(memory, "B"), launch_seconds=value(1e-6, "s"), power_const=value(1.0, "W"),
        power_idle=value(0.5, "W"), tdp=value(10.0, "W"), energy_per_byte=value(1e-9, "J/B"), t_max=value(90.0, "C"),
        efficiency_compute=value(1.0), efficiency_memory=value(1.0),
    )  # fmt: skip


def two_devices(memory: float = 1e9) -> Target:
    link = Link("a", "b", value(1e9, "B/s"), value(1e-5, "s"), value(1e-9, "J/B"))
    return Target("two", "two", (device("a", "torch:cpu", memory=memory),
                                 device("b", "onnxruntime:CPU", 2e9, memory)), (link,))  # fmt: skip


def assert_acyclic(groups: GroupGraph) -> None:
    assert sorted(i for g in groups.groups for i in g.ops) == list(range(len(groups.graph.ops)))
    for a, b, _ in groups.edges:
        assert a < b


@given(dags(), st.data())
@settings(deadline=None, max_examples=150)
def test_fused_groups_are_acyclic_and_complete(edges: list[list[int]], data: st.DataObject) -> None:
    kinds = ["onnx.Relu", "onnx.Add", "onnx.MatMul", "onnx.Softmax", "onnx.Reshape"]
    types = [data.draw(st.sampled_from(kinds)) for _ in edges]
    opaque = frozenset(data.draw(st.sets(st.integers(0, len(edges) - 1), max_size=3)))
    graph = graph_of(edges, types, opaque)
    groups = fuse(graph, count(graph))
    assert_acyclic(groups)
    owner = groups.group_of
    for i in opaque:  # values that are no tensors stay inside one group
        assert all(owner[c] == owner[i] for c in graph.consumers.get(f"t{i}", ()))


def test_fuse_joins_an_epilogue_and_respects_pins() -> None:
    graph = graph_of([[], [0], [1]], ["onnx.MatMul", "onnx.Relu", "onnx.MatMul"])
    counts = count(graph)
    assert [g.ops for g in fuse(graph, counts).groups] == [(0, 1), (2,)]
    assert len(fuse(graph, counts, ["p", "", ""]).groups) == 3
    assert len(fuse(graph, counts, settings=FuseSettings(enabled=False)).groups) == 3


@given(dags(), st.data())
@settings(deadline=None, max_examples=150)
def test_any_assignment_becomes_an_order_of_execution(edges: list[list[int]], data: st.DataObject) -> None:
    groups = singles(graph_of(edges))
    assignment = [data.draw(st.integers(0, 3)) for _ in edges]
    sequence = legalise(groups, assignment)
    seen: set[int] = set()
    for placement, members in sequence:
        for g in members:
            assert assignment[g] == placement
            assert set(edges[g]) <= seen
            seen.add(g)
    assert seen == set(range(len(edges)))
    assert all(a[0] != b[0] for a, b in itertools.pairwise(sequence))


def test_price_follows_the_equations() -> None:
    graph = graph_of([[]], ["onnx.MatMul"])
    counts = (OpCount(1e6, 1000, 2000, 3000, "gemm", True, "float32"),)
    table = annotate(singles(graph), counts, two_devices(), kernels=one_kernel_each(counts, two_devices()))
    a = table.target.devices[0]
    seconds = table.seconds[0, 0]
    assert seconds > a.launch_seconds.value + 1e-3 * (1 - 1e-12)  # 1 MFLOP at 1 GFLOP/s, plus launches
    assert seconds < 1e-3 + 1e-4
    assert table.joules[0, 0] == pytest.approx(seconds * 1.0 + 1e6 * 1e-10 + 6000 * 1e-9)
    assert table.dasi[0, 0] == pytest.approx(min(1.0, 1e6 / 6000 * 1e9 / 1e9))


def test_bytes_inside_a_group_do_not_count() -> None:
    graph = graph_of([[], [0]], ["onnx.MatMul", "onnx.Relu"])
    counts = count(graph)
    apart = kernel_table(singles(graph), counts, "openvino").nbytes.sum()
    groups = fuse(graph, counts)
    assert len(groups.groups) == 1
    assert kernel_table(groups, counts, "openvino").nbytes.sum() == apart - 2 * 64


def test_an_operator_that_runs_nowhere_is_named_with_every_reason() -> None:
    graph = graph_of([[], [0]])
    refusals = {"torch:cpu": {1: "no rule"}, "onnxruntime:CPU": {1: "no kernel"}}
    with pytest.raises(UnsupportedOperatorError, match=r"op1.*no rule.*no kernel"):
        annotate(singles(graph), count(graph), two_devices(), refusals)


def test_independent_stages_overlap_on_two_devices() -> None:
    graph = graph_of([[], [], [0, 1]])
    costs = annotate(singles(graph), count(graph), two_devices())
    both = schedule(costs, [(0, (0,)), (1, (1,)), (0, (2,))])
    first, second, _ = both.stages
    assert second.start < first.start + first.seconds
    one = schedule(costs, [(0, (0, 1, 2))])
    assert one.transfers == ()
    assert {t.tensor for t in both.transfers} == {"t1"}


def test_energy_counts_waiting_devices() -> None:
    graph = graph_of([[]])
    costs = annotate(singles(graph), count(graph), two_devices())
    result = schedule(costs, [(0, (0,))])
    latency = result.objectives.latency
    boundary = result.stages[0].boundary
    assert result.objectives.energy == pytest.approx(costs.joules[0, 0] + boundary * 1.0 + latency * 0.5)


def test_a_target_that_is_too_small_is_refused_with_numbers() -> None:
    graph = graph_of([[], [0]])
    costs = annotate(singles(graph), count(graph), two_devices(memory=100.0))
    with pytest.raises(CapacityError, match=r"memory \w+ needs .* GB of .* GB"):
        partition(costs)


def step(run: object, reads: tuple[int, ...], writes: tuple[int, ...], device_: str) -> _Step:
    return _Step(run, reads, writes, (), frozenset({device_}), False, device_)  # type: ignore[arg-type]


def test_independent_units_on_two_devices_run_at_the_same_time() -> None:
    meet = threading.Barrier(2, timeout=20)

    def wait(inputs: list[np.ndarray]) -> list[np.ndarray]:
        meet.wait()  # passes only if the other unit is running now
        return [inputs[0] + 1]

    def add(inputs: list[np.ndarray]) -> list[np.ndarray]:
        return [inputs[0] + inputs[1]]

    steps = [step(wait, (0,), (1,), "a"), step(wait, (0,), (2,), "b"), step(add, (1, 2), (3,), "a")]
    (result,) = Executor(steps, 1, 4, [3], [False])([np.ones(2)])
    assert result.tolist() == [4.0, 4.0]


def test_a_failing_unit_is_named() -> None:
    def fail(inputs: list[np.ndarray]) -> list[np.ndarray]:
        raise BackendError("boom")

    steps = [step(lambda inputs: [inputs[0]], (0,), (1,), "a"), step(fail, (1,), (2,), "b")]
    with pytest.raises(BackendError, match="unit 1 on b: boom"):
        Executor(steps, 1, 3, [2], [False])([np.ones(1)])
