"""FLOPs and bytes of every operator of a graph.

`count` gives one `OpCount` per operator, as if each ran alone: what a fused group moves is the business of
the pass that forms groups. What an operator computes is told by the tables in `aten` and `onnx`, with the
conventions of `formulas`; what it moves by `traffic`; what nested graphs cost by `control`. An operator
without a rule counts its bytes and no FLOPs, is marked `known=False`, and appears in `unknown_report`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qeil_compile.ir import DTYPE_BYTES, Op, OpGraph
from qeil_compile.passes.count import aten, onnx
from qeil_compile.passes.count.base import Kind, OpCount, int_of, tensor
from qeil_compile.passes.count.control import branches as _branches
from qeil_compile.passes.count.control import count_body, nested
from qeil_compile.passes.count.traffic import is_view, sources, traffic

__all__ = ["Kind", "OpCount", "branches", "count", "unknown_report"]

#: MatMulNBits: the type that `accuracy_level` lets the kernel compute in (0: that of the activations).
ACCURACY = {1: "float32", 2: "float16", 3: "bfloat16", 4: "int8"}

#: Kernels that compute in the type of their first operand, though scales beside it are floats.
INTEGER = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "QAttention", "_int_mm")


def count(graph: OpGraph) -> tuple[OpCount, ...]:
    """Work and traffic of each operator, in the order of `graph.ops`."""
    source = sources(graph, [is_view(op, graph) for op in graph.ops])
    return tuple(_count(op, graph, source) for op in graph.ops)


def branches(graph: OpGraph) -> dict[str, tuple[OpCount, ...]]:
    """Operator with nested graphs -> what each of them costs, run once; `count` takes the declared or dearest one."""
    return {op.name: _branches(op, graph, count) for op in graph.ops if op.body}


def unknown_report(graph: OpGraph, counts: Sequence[OpCount]) -> list[tuple[str, int, float]]:
    """(operator type, how many, share of all bytes) of what is not known, largest share first.

    An operator with nested graphs is replaced by the unknown ones inside it, if there are any.
    """
    found: dict[str, tuple[int, int]] = {}
    for op, c in zip(graph.ops, counts, strict=True):
        for name, size in _unknown(op, c, graph):
            times, so_far = found.get(name, (0, 0))
            found[name] = times + 1, so_far + size
    total = max(1, sum(c.nbytes for c in counts))
    rows = [(name, times, size / total) for name, (times, size) in found.items()]
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def _unknown(op: Op, c: OpCount, graph: OpGraph) -> list[tuple[str, int]]:
    if c.known:
        return []
    inner = [
        found
        for body in nested(op, graph)
        for o, n in zip(body.ops, count(body), strict=True)
        for found in _unknown(o, n, body)
    ]
    return inner or [(op.type, c.nbytes)]


def _count(op: Op, graph: OpGraph, source: Mapping[str, str]) -> OpCount:
    if op.body and not op.type.endswith("FlexAttention"):
        return count_body(op, graph, count)
    found = aten.work(op, graph) if graph.dialect == "fx" else onnx.work(op, graph)
    work = found if found else (0.0, "other")
    extents = work[2] if len(work) > 2 else ()
    read, weights, written = traffic(op, graph, source)
    return OpCount(
        float(work[0]), read, weights, written, work[1], found is not None, _dtype(op, graph), tuple(extents)
    )


def _dtype(op: Op, graph: OpGraph) -> str:
    """The dtype of the arithmetic.

    Integer kernels name their operand's type; otherwise it is the first floating input, then the first
    floating output, then the first input that is no condition.
    """
    name = op.short_type
    if name.startswith("MatMulNBits") and (level := int_of(op, "accuracy_level")) in ACCURACY:
        return ACCURACY[level]
    inputs = [t.dtype for i in range(len(op.inputs)) if (t := tensor(graph, op.inputs, i))]
    outputs = [t.dtype for i in range(len(op.outputs)) if (t := tensor(graph, op.outputs, i))]
    if inputs and name.startswith(INTEGER):
        return inputs[0]
    if name == "DynamicQuantizeMatMul" and len(inputs) > 1:
        return inputs[1]
    candidates = [d for d in (*inputs, *outputs) if d.startswith(("float", "bfloat", "complex"))]
    candidates += [d for d in (*inputs, *outputs) if d not in ("bool", "opaque") and DTYPE_BYTES[d]]
    return (candidates + inputs + outputs + ["float32"])[0]
