"""Any assignment, however scattered, gives the whole model's outputs; and its stages keep what `legalise` promises."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from qeil_compile.api import Settings, lower_plan, price
from qeil_compile.devices import Target, load_target
from qeil_compile.frontends import Traced, trace
from qeil_compile.ir import Workload
from qeil_compile.passes.annotate import CostTable
from qeil_compile.passes.partition import assign_plan
from qeil_compile.plan import Plan
from qeil_compile.runtime.compare import compare
from tests import zoo

MODELS = Path(__file__).parent / "data" / "models"
FEW = settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
RATE = {"sr": np.array(16000, np.int64)}
BYTES = {"bytes": np.random.default_rng(0).integers(0, 256, (1, 2048), np.int32)}

NETWORKS = ("mlp", "conditional", "lstm", "two_branches", "bag_classifier", "bf16_mlp")
FILES: dict[str, Callable[[], Traced]] = {
    "silero_vad": lambda: trace(
        MODELS / "silero_vad/silero_vad.onnx", inputs=RATE,
        workload=Workload({"input.0": 1, "input.1": 576, "state.1": 1}),
    ),
    "silero_vad_16k_op15": lambda: trace(
        MODELS / "silero_vad/silero_vad_16k_op15.onnx", inputs=RATE, workload=Workload({"batch": 1, "sequence": 576})
    ),
    "magika": lambda: trace(MODELS / "magika/standard_v3_3.onnx", inputs=BYTES),
    "ultraface": lambda: trace(MODELS / "ultraface/version-RFB-320.onnx"),
}  # fmt: skip


@cache
def target() -> Target:
    """openvino:CPU, onnxruntime:CPU, torch:cpu, and openvino:NPU, which is emulated where there is none."""
    return load_target("lunar-lake-258v")


@cache
def prepared(name: str, fuse: bool) -> tuple[Traced, CostTable, dict[str, np.ndarray]]:
    traced = FILES[name]() if name in FILES else trace(getattr(zoo, name)(), zoo.EXAMPLES[name]())
    return priced(traced, fuse)


def priced(traced: Traced, fuse: bool) -> tuple[Traced, CostTable, dict[str, np.ndarray]]:
    expected = dict(zip(traced.graph.outputs, traced.run_reference(traced.samples), strict=True))
    return traced, price(traced, target(), Settings(fuse=fuse)), expected


def drawn(data: st.DataObject, costs: CostTable) -> list[int]:
    """A placement per group among 2 to 4, in runs of a drawn length; where refused, the first that can."""
    places = list(range(len(costs.placements)))
    chosen = data.draw(st.permutations(places), "order")[: data.draw(st.integers(2, 4), "placements")]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    run = data.draw(st.sampled_from([1, 2, 5, 20]), "run length")
    current, assignment = chosen[0], []
    for g in range(len(costs.groups.groups)):
        if rng.random() * run < 1:
            current = int(rng.choice(chosen))
        assignment.append(next(p for p in (current, *chosen, *places) if costs.supported[g, p]))
    return assignment


def check_stages(plan: Plan, costs: CostTable) -> None:
    """Every operator once; a stage reads only inputs of the model, weights, and what stages before it wrote."""
    graph = costs.groups.graph
    placed = [o for s in plan.stages for o in s.ops]
    assert sorted(placed) == sorted(op.name for op in graph.ops)
    assert sorted(i for unit in plan.units for i in unit) == list(range(len(plan.stages)))
    known = {n for n, t in graph.tensors.items() if t.role != "activation"}
    for stage in plan.stages:
        own = {t for o in stage.ops for t in graph.ops[graph.index[o]].outputs}
        for o in stage.ops:
            assert {t for t in graph.ops[graph.index[o]].inputs if t} <= known | own
        known |= own


def check_outputs(traced: Traced, plan: Plan, expected: dict[str, np.ndarray]) -> None:
    found = lower_plan(traced, plan, golden=False).run(traced.samples)
    differences = [compare(n, found[n], e) for n, e in expected.items()]
    assert all(d.ok for d in differences), [d.as_text() for d in differences if not d.ok]


def run_scattered(data: st.DataObject, case: tuple[Traced, CostTable, dict[str, np.ndarray]]) -> None:
    traced, costs, expected = case
    plan = assign_plan(costs, drawn(data, costs))
    check_stages(plan, costs)
    check_outputs(traced, plan, expected)


@pytest.mark.parametrize("name", [*NETWORKS, "silero_vad", "silero_vad_16k_op15"])
@FEW
@given(data=st.data())
def test_scattered_plans_equal_the_model(name: str, data: st.DataObject) -> None:
    run_scattered(data, prepared(name, data.draw(st.booleans(), "fuse")))


@pytest.mark.parametrize("name", ["magika", "ultraface"])
@settings(FEW, max_examples=2)
@given(data=st.data())
def test_scattered_plans_of_networks_equal_the_model(name: str, data: st.DataObject) -> None:
    run_scattered(data, prepared(name, data.draw(st.booleans(), "fuse")))


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A random graph of matrix products, element-wise operators, splits, shapes and comparisons on [4, 6]."""
    kinds = ("Add", "Mul", "Sub", "Relu", "Tanh", "Neg", "MatMul", "Split", "Concat", "Where", "Identity", "Shape")
    live, nodes, weights = ["x", "z"], [], []
    for i in range(draw(st.integers(3, 14))):
        kind = draw(st.sampled_from(kinds))
        a, b = draw(st.sampled_from(live)), draw(st.sampled_from(live))
        out = f"t{i}"
        if kind in ("Add", "Mul", "Sub"):
            # Halved, so that values stay near one.
            nodes += [helper.make_node(kind, [a, b], [f"{out}.w"]), helper.make_node("Tanh", [f"{out}.w"], [out])]
        elif kind == "MatMul":
            values = np.random.default_rng(i).standard_normal((6, 6)).astype(np.float32) / 3
            weights.append(onnx.numpy_helper.from_array(values, f"w{i}"))
            nodes.append(helper.make_node("MatMul", [a, f"w{i}"], [out]))
        elif kind == "Split":
            nodes += [helper.make_node("Split", [a], [f"{out}.l", f"{out}.r"], axis=1, num_outputs=2),
                      helper.make_node("Concat", [f"{out}.r", f"{out}.l"], [out], axis=1)]  # fmt: skip
        elif kind == "Concat":
            nodes += [helper.make_node("Concat", [a, b], [f"{out}.c"], axis=0),
                      helper.make_node("ReduceMean", [f"{out}.c"], [f"{out}.m"], keepdims=0),
                      helper.make_node("Add", [a, f"{out}.m"], [out])]  # fmt: skip
        elif kind == "Where":
            nodes += [helper.make_node("Less", [a, b], [f"{out}.b"]),
                      helper.make_node("Where", [f"{out}.b", a, b], [out])]  # fmt: skip
        elif kind == "Shape":
            nodes += [helper.make_node("Shape", [b], [f"{out}.s"]), helper.make_node("Expand", [a, f"{out}.s"], [out])]
        else:
            nodes.append(helper.make_node(kind, [a], [out]))
        live.append(out)
    outputs = dict.fromkeys([live[-1], draw(st.sampled_from(live[2:]))])
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [4, 6]) for n in ("x", "z", *outputs)]
    graph = helper.make_graph(nodes, "random", infos[:2], infos[2:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_operatorsetid("", 18)], ir_version=10)


@settings(FEW, max_examples=12)
@given(model=graphs(), data=st.data())
def test_scattered_plans_of_random_graphs(model: onnx.ModelProto, data: st.DataObject) -> None:
    run_scattered(data, priced(trace(model), data.draw(st.booleans(), "fuse")))


class Copies(torch.nn.Module):
    """Copies and casts that change nothing: the exporter's optimizer reads through them."""

    def forward(self, x: torch.Tensor) -> tuple[Any, ...]:
        y = x.transpose(0, 1).clone().reshape(-1).float()
        return y * 2, y.reshape(3, 2).contiguous().clone() + 1


@settings(FEW, max_examples=6)
@given(data=st.data())
def test_scattered_plans_through_copies(data: st.DataObject) -> None:
    run_scattered(data, priced(trace(Copies(), (torch.arange(6.0).reshape(2, 3),)), False))
