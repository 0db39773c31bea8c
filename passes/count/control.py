"""Counts of operators that hold nested graphs (`Op.body`).

- All branches of an If or `cond` are priced (`branches`). The one counted is the one that is declared: by the
  sample run of the frontend (`attributes["#taken"]`), or by a condition that is a constant. Where neither says it,
  the dearest counts: the one with most FLOPs, then most bytes.
- A loop (Loop, Scan, SequenceMap, `while_loop`, `scan`) counts its body times the trip count. The count is
  static for Scan and `scan` (length of what they scan) and for a Loop that stacks results of known length or
  whose limit is a constant; otherwise the body counts once and the operator is marked as not known.
- Any other wrapper counts the sum of its graphs.

A nested graph may read tensors of the outer graph, so these are put in scope. The bytes are those that the
inner operators move; what crosses the outer boundary is among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from qeil_compile.ir import Op, OpGraph
from qeil_compile.passes.count.base import ZERO, OpCount, int_of, ints_of
from qeil_compile.passes.count.traffic import is_weight

Counter = Callable[[OpGraph], tuple[OpCount, ...]]

BRANCHES = frozenset(("If", "cond"))
LOOPS = frozenset(("Loop", "Scan", "SequenceMap", "while_loop", "scan", "map_impl"))


def nested(op: Op, graph: OpGraph) -> list[OpGraph]:
    """The nested graphs with the tensors of the outer one in scope; its constants are weights inside.

    Names of ONNX are unique over all levels, and the outer graph knows most about its own; arguments of FX bodies
    may be called like outer values.
    """
    outer = {t: replace(s, role="weight") if is_weight(graph, t) else s for t, s in graph.tensors.items()}
    if graph.dialect == "onnx":
        return [replace(b, tensors={**b.tensors, **outer}) for b in op.body]
    return [replace(b, tensors={**outer, **b.tensors}) for b in op.body]


def branches(op: Op, graph: OpGraph, counter: Counter) -> tuple[OpCount, ...]:
    """What each nested graph costs, run once, in the order of `Op.body`."""
    return tuple(sum(counter(b), ZERO) for b in nested(op, graph))


def declared(op: Op, graph: OpGraph) -> int | None:
    """Index of the branch that is known to run, if any is."""
    taken = op.attributes.get("#taken")
    if isinstance(taken, int) and 0 <= taken < len(op.body):
        return taken
    condition = graph.producer.get(op.inputs[0], -1) if op.inputs else -1
    if condition < 0 or graph.ops[condition].type != "onnx.Constant" or len(op.body) != 2:
        return None
    value = graph.ops[condition].attributes.get("value")
    values = value.get("values") if isinstance(value, Mapping) else None
    if not values:
        return None
    # ONNX lists attributes by name in no fixed order: the bodies say themselves which one they are.
    wanted = "then_branch" if values[0] else "else_branch"
    return next((k for k, b in enumerate(op.body) if b.name.endswith(wanted)), None)


def count_body(op: Op, graph: OpGraph, counter: Counter) -> OpCount:
    """Count of an operator with nested graphs: kind "control", dtype of its dearest operator."""
    totals = branches(op, graph, counter)
    name = control_name(op)
    if name in BRANCHES:
        total = totals[chosen(op, graph, totals)]
        if declared(op, graph) is None:
            total = replace(total, known=all(c.known for c in totals))
    else:
        total = sum(totals, ZERO)
    if name in LOOPS:
        trips = trip_count(op, graph, name)
        total = total.times(trips) if trips is not None else replace(total, known=False)
    return replace(total, kind="control")


def control_name(op: Op) -> str:
    """Which of `BRANCHES` or `LOOPS` the operator is, or ""; an FX type may carry name spaces around the name."""
    return next((p for p in op.type.split(".") if p in BRANCHES or p in LOOPS), "")


def chosen(op: Op, graph: OpGraph, totals: Sequence[OpCount]) -> int:
    """Index of the branch that counts: the declared one, else the dearest."""
    taken = declared(op, graph)
    return max(range(len(totals)), key=lambda k: (totals[k].flops, totals[k].nbytes)) if taken is None else taken


def trip_count(op: Op, graph: OpGraph, name: str) -> int | None:
    """How often the body runs, if that is static."""
    if name == "Loop":
        return _loop_trips(op, graph)
    if name == "Scan":
        scanned = int_of(op, "num_scan_inputs")
        # From opset 9; before it a batch axis and an input of lengths came first.
        formal = min(len(op.inputs), len(op.body[0].inputs))
        if not scanned or scanned > formal:
            return None
        axes = ints_of(op, "scan_input_axes")
        return _length(op.inputs[formal - scanned], graph, axes[0] if axes else 0)
    if name in ("scan", "map_impl"):
        known = op.attributes.get("#inputs")
        named = zip(op.inputs, known, strict=False) if isinstance(known, list | tuple) else ()
        first = next((t for t, given in named if given == "xs"), None)
        return _length(first, graph, int_of(op, "dim")) if first else None
    return None


def _loop_trips(op: Op, graph: OpGraph) -> int | None:
    carried = len(op.body[0].inputs) - 2  # after the iteration number and the condition
    for stacked in op.outputs[max(0, carried) :]:
        if (length := _length(stacked, graph, 0)) is not None:
            return length
    limit = graph.producer.get(op.inputs[0]) if op.inputs else None
    if limit is not None and graph.ops[limit].type == "onnx.Constant" and not (len(op.inputs) > 1 and op.inputs[1]):
        values = ints_of(graph.ops[limit], "value_int") or ints_of(graph.ops[limit], "value_ints")
        return max(0, values[0]) if len(values) == 1 else None
    return None


def _length(name: str, graph: OpGraph, axis: int) -> int | None:
    """Length of one axis, None when it is not static."""
    spec = graph.tensors.get(name)
    shape = spec.shape if spec else None
    return shape[axis] if shape and -len(shape) <= axis < len(shape) else None
