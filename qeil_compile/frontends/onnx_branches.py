"""What runs inside the branches of an ONNX model: shapes of inner tensors, and which branch a sample run takes.

Shape inference stops at an If whose branches disagree, so that nothing inside could be counted. One profiled run of
ONNX Runtime without optimisation tells the type and shape of every inner tensor of the branch that it takes. These
are facts of one run: they price the model and are never promised to an engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import onnx
from onnx import helper

from qeil_compile.errors import ModelError
from qeil_compile.forms.onnx_source import build_graph
from qeil_compile.ir import Op, OpGraph

from .onnx_reference import Events, OverrunError, Runs
from .traced import Arrays

#: ONNX Runtime's names of element types where they are not the C types of `onnx.TensorProto`.
_TYPES = {"float": onnx.TensorProto.FLOAT, "double": onnx.TensorProto.DOUBLE}


def see_branches(graph: OpGraph, model: onnx.ModelProto, arrays: Arrays, samples: Arrays, runs: Runs) -> OpGraph:
    """The graph with bodies as one run sees them; `attributes["#taken"]` of an If is the index of the body that ran.

    The graph itself when it has no bodies or the model cannot be run that way. Raises `OverrunError`.
    """
    if not any(op.body for op in graph.ops):
        return graph
    named = onnx.ModelProto()
    named.CopyFrom(model)
    for k, node in enumerate(_inner(named.graph)):
        node.name = f"{node.op_type}#{k}"
    try:
        events = runs(named, arrays).profile(samples)
    except OverrunError:
        raise
    except ModelError:  # without a run the bodies stay as they are
        return graph
    for nested in _nested(named.graph):
        _describe(nested, events)
    seen = {op.name: op for op in build_graph(named, graph.name).ops}
    return replace(graph, ops=tuple(_declared(op, seen.get(op.name, op), events) for op in graph.ops))


def _nested(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
                yield from _nested(attribute.g)


def _inner(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    return (node for nested in _nested(graph) for node in nested.node)


def _describe(graph: onnx.GraphProto, events: Events) -> None:
    """Write what was seen over what was inferred."""
    seen: dict[str, onnx.ValueInfoProto] = {}
    for node in graph.node:
        outputs = [o for o in node.output if o]
        for name, (kind, shape) in zip(outputs, events.get(node.name, []), strict=False):
            code = _TYPES.get(kind) or onnx.TensorProto.DataType.Value(kind.upper())
            seen[name] = helper.make_tensor_value_info(name, code, shape)
    kept = [v for v in graph.value_info if v.name not in seen]
    del graph.value_info[:]
    graph.value_info.extend([*kept, *seen.values()])
    for output in graph.output:
        if output.name in seen:
            output.CopyFrom(seen[output.name])


def _declared(op: Op, seen: Op, events: Events) -> Op:
    if not op.body or len(op.body) != len(seen.body):
        return op
    bodies = tuple(replace(b, ops=tuple(_declared(o, o, events) for o in b.ops)) for b in seen.body)
    if not op.type.endswith(".If"):
        return replace(op, body=bodies)
    ran = [k for k, b in enumerate(bodies) if any(o.name in events for o in b.ops)]
    ran = ran or [k for k, b in enumerate(bodies) if not b.ops]  # a branch may only hand values on
    taken = {"#taken": ran[0]} if len(ran) == 1 else {}
    return replace(op, body=bodies, attributes={**op.attributes, **taken})
