"""Cost of each added boundary between stages, for every ordered pair of engines.

python benchmarks/boundary.py [--quick] [--json FILE]

A chain of cheap operators is cut into 1, 2, 4, ... stages that change between two placements. One run is timed
for each number of stages, all of them in turns; the slope of time over boundaries (Theil-Sen, the median of all
pairwise slopes) is what a boundary costs. OpenVINO beside OpenVINO is one HETERO model, as the compiler lowers
it. The boundary from A to B and back from B to A are taken alike: a chain has as many of one as of the other,
plus or minus one.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from common import Report, four_placements, options, publish, thousands

from qeil_compile.api import Settings, lower_plan, price
from qeil_compile.devices.engines import boundary_seconds
from qeil_compile.frontends import Traced, trace
from qeil_compile.passes.partition import assign_plan

#: Low and high of the design's figures [us]; pairs of different engines have none.
DESIGN = {
    ("torch:cpu", "torch:cpu"): "16",
    ("onnxruntime:CPU", "onnxruntime:CPU"): "14-22",
    ("openvino:CPU", "openvino:NPU"): "3-6",
    ("openvino:NPU", "openvino:CPU"): "3-6",
    ("openvino:CPU", "openvino:CPU"): "32-39",
}
PLACEMENTS = ("torch:cpu", "onnxruntime:CPU", "openvino:CPU", "openvino:NPU")


def chain(length: int) -> Traced:
    """`length` operators that no engine fuses away, on a tensor of 4 kB."""
    import onnx
    from onnx import helper

    kinds = ("Sin", "Cos")
    nodes = [helper.make_node(kinds[i % 2], [f"t{i}"], [f"t{i + 1}"], f"n{i}") for i in range(length)]
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 1024]) for n in ("t0", f"t{length}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    return trace(helper.make_model(graph, opset_imports=[helper.make_operatorsetid("", 17)], ir_version=10))


def executors(traced: Traced, costs: Any, pair: tuple[str, str], stages: list[int]) -> dict[str, Any]:
    """Number of boundaries -> a call that runs the chain once."""
    specs = [p.spec for p in costs.placements]
    length = len(traced.graph.ops)
    calls = {}
    for count in stages:
        assignment = [specs.index(pair[(i * count // length) % 2]) for i in range(length)]
        plan = split(assign_plan(costs, assignment), traced, count, pair)
        compiled = lower_plan(traced, plan, golden=False)
        arrays = [traced.samples[n] for n in traced.graph.inputs]
        calls[str(count - 1)] = lambda run=compiled.executor, a=arrays: run(a)
    return calls


def split(plan: Any, traced: Traced, count: int, pair: tuple[str, str]) -> Any:
    """One placement beside itself: neighbouring stages would be one, so they are cut by hand."""
    if pair[0] != pair[1] or count == 1:
        return plan
    from dataclasses import replace

    ops, whole = traced.graph.ops, plan.stages[0]
    size = len(ops) // count
    stages = tuple(
        replace(whole, index=k, ops=tuple(o.name for o in ops[k * size : (k + 1) * size]),
                inputs=ops[k * size].inputs, outputs=ops[(k + 1) * size - 1].outputs)
        for k in range(count)
    )  # fmt: skip
    return replace(plan, stages=stages, units=tuple((k,) for k in range(count)))


def slope(samples: dict[str, np.ndarray], quantile: float = 0.5) -> float:
    """Theil-Sen slope [s per boundary] of a quantile of the samples: the median of all pairwise slopes."""
    points = [(int(k), float(np.quantile(v, quantile))) for k, v in samples.items()]
    return float(np.median([(y - b) / (x - a) for (a, b), (x, y) in combinations(points, 2)]))


def slopes(samples: dict[str, np.ndarray], parts: int = 5) -> tuple[float, float, float]:
    """The slope of the medians, and the quartiles of the slopes of `parts` parts of the samples."""
    each = [slope({k: v[i::parts] for k, v in samples.items()}) for i in range(parts)]
    low, high = np.quantile(each, [0.25, 0.75])
    return slope(samples), float(low), float(high)


def verdict(value: float, constant: Any) -> str:
    """How the measured boundary [s] stands to the constant that plans are priced with."""
    low, high = constant.low or constant.value, constant.high or constant.value
    if low <= value <= high:
        return "within its bounds"
    factor = value / constant.value
    if 0.5 <= factor <= 2.0:
        return f"{factor:.2f}x of it"
    return f"OFF: {factor:.2f}x of it"


def main() -> None:
    """Run the benchmark."""
    args = options(__doc__ or "")
    length, rounds = (8, 10) if args.quick else (32, 400)
    stages = [2**k for k in range(length.bit_length()) if 2**k <= length]
    traced = chain(length)
    costs = price(traced, four_placements(), Settings(fuse=False))
    columns = ("pair", "us per boundary", "quartiles", "of the fastest 5 %", "design", "engines.toml", "verdict",
               "one stage [us]", f"{stages[-1]} stages [us]")  # fmt: skip
    report = Report("boundary", "Cost of one more boundary [us]", columns)
    for a in PLACEMENTS:
        for b in PLACEMENTS:
            if a == b == "openvino:NPU":
                continue
            samples = thousands(executors(traced, costs, (a, b), stages), rounds)
            value, low, high = slopes(samples)
            fastest = slope(samples, 0.05)
            constant = boundary_seconds(a.split(":")[0], b.split(":")[0])
            if a == b and a.startswith("openvino"):
                from qeil_compile.devices.engines import engine_constants

                constant = engine_constants()["openvino"].boundary_outside
            report.rows.append({
                "pair": f"{a} -> {b}", "us per boundary": value * 1e6,
                "quartiles": f"{low * 1e6:.1f}-{high * 1e6:.1f}", "of the fastest 5 %": fastest * 1e6,
                "design": DESIGN.get((a, b), "-"),
                "engines.toml": constant.value * 1e6, "verdict": verdict(fastest, constant),
                "one stage [us]": float(np.median(samples["0"])) * 1e6,
                f"{stages[-1]} stages [us]": float(np.median(samples[str(stages[-1] - 1)])) * 1e6,
                "medians": {k: float(np.median(v)) for k, v in samples.items()},
            })  # fmt: skip
    report.notes = [
        "openvino:CPU -> openvino:CPU: separate requests (forced). openvino:CPU and openvino:NPU: one HETERO model, "
        "the NPU emulated by the CPU plugin under a second name where there is none.",
        "The verdict is about the fastest 5 %, which a busy machine disturbs least.",
    ]
    publish([report], args, "boundary")


if __name__ == "__main__":
    main()
