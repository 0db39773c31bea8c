"""What runs inside the branches of an ONNX model: shapes of inner tensors, and which branch a sample run takes.

Shape inference stops at an If whose branches disagree, so that nothing inside could be counted. One profiled run of
ONNX Runtime without optimisation tells the type and shape of every inner tensor of the branch that it takes. These
are facts of one run: they price the model and are never promised to an engine.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from qeil_compile.forms.onnx_source import build_graph
from qeil_compile.ir import Op, OpGraph

from .traced import Arrays

#: ONNX Runtime's names of element types where they are not the C types of `onnx.TensorProto`.
_TYPES = {"float": onnx.TensorProto.FLOAT, "double": onnx.TensorProto.DOUBLE}
#: Node name -> (type, shape) of each output.
Events = Mapping[str, list[tuple[str, list[int]]]]


def see_branches(graph: OpGraph, model: onnx.ModelProto, arrays: Arrays, samples: Arrays) -> OpGraph:
    """The graph with bodies as one run sees them; `attributes["#taken"]` of an If is the index of the body that ran.

    The graph itself when it has no bodies or the model cannot be run that way.
    """
    if not any(op.body for op in graph.ops):
        return graph
    named = onnx.ModelProto()
    named.CopyFrom(model)
    for k, node in enumerate(_inner(named.graph)):
        node.name = f"{node.op_type}#{k}"
    try:
        events = _profile(named, arrays, samples)
    except Exception:  # ONNX Runtime raises types of its own; without a run the bodies stay as they are
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


def _profile(model: onnx.ModelProto, arrays: Arrays, samples: Arrays) -> Events:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "run")
        values = {n: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a)) for n, a in arrays.items()}
        if values:
            options.add_external_initializers(list(values), list(values.values()))
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        session.run(None, dict(samples))
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: dict[str, list[tuple[str, list[int]]]] = {}
    for event in events:
        name = event["name"]
        if name.endswith("_kernel_time"):
            shapes = event["args"].get("output_type_shape", [])
            found.setdefault(name.removesuffix("_kernel_time"), [kv for s in shapes for kv in s.items()])
    return found


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
