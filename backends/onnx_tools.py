"""What the engines that read ONNX share: asking about operators one by one, external weights as inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection

import onnx
from onnx import helper

from qeil_compile.backends.base import Support
from qeil_compile.errors import BackendError, QeilError
from qeil_compile.forms.program import Source, StageProgram
from qeil_compile.ir import GroupGraph, Op, OpGraph, OpGroup


def whole_program(source: Source) -> StageProgram:
    """The whole model as one ONNX stage. Raises `BackendError` when it has no ONNX form."""
    graph = source.graph
    return source.cut("onnx", range(len(graph.ops)), graph.inputs, graph.outputs)


def ask_one_by_one(source: Source, accepts: Callable[[StageProgram], str]) -> list[Support]:
    """Ask about each operator alone. `accepts` returns "" or the engine's reason to refuse.

    Operators with equal type, attributes, dtypes and shapes are asked once.
    """
    graph = source.graph
    groups = GroupGraph(graph, tuple(OpGroup(i, (i,)) for i in range(len(graph.ops))))
    known: dict[str, Support] = {}
    answers: list[Support] = []
    for i, op in enumerate(graph.ops):
        key = _signature(graph, op)
        if key not in known:
            known[key] = _ask(source, groups, i, accepts)
        answers.append(known[key])
    return answers


def _ask(source: Source, groups: GroupGraph, i: int, accepts: Callable[[StageProgram], str]) -> Support:
    graph = groups.graph
    outputs = [o for o in graph.ops[i].outputs if o]
    tensors = [*groups.inputs_of([i]), *outputs]
    if any(not graph.tensors[t].is_tensor for t in tensors):
        return Support(True, "runs together with its neighbours: it exchanges values that are no tensors")
    try:
        reason = accepts(source.cut("onnx", [i], groups.inputs_of([i]), outputs))
        if graph.ops[i].body and not reason:
            # With what comes before it, an engine knows more sizes, by which it judges the branches too.
            reason = accepts(source.cut("onnx", range(i + 1), graph.inputs, outputs))
    except QeilError as error:
        reason = str(error)
    return Support(not reason, reason)


def _signature(graph: OpGraph, op: Op) -> str:
    if op.body:
        return op.name
    tensors = [graph.tensors[t] if t else None for t in (*op.inputs, *op.outputs)]
    shapes = [(t.dtype, t.shape, t.role == "weight") if t else None for t in tensors]
    return json.dumps([op.type, sorted(op.attributes.items()), shapes], default=str)


def appends_by_itself(graph: onnx.GraphProto, states: Collection[str]) -> bool:
    """Whether the model hands out grown keys or values: those that no operator of attention owns, which writes them in
    place. States with three axes keep their length."""
    owned = {name for node in graph.node if node.op_type == "GroupQueryAttention" for name in node.input}
    return any(len(i.type.tensor_type.shape.dim) == 4 for i in graph.input if i.name in states and i.name not in owned)


def weights_as_inputs(program: StageProgram) -> bytes:
    """The stage's model with its external weights declared as graph inputs instead of initializers."""
    try:
        model = onnx.load_model_from_string(program.payload)
    except Exception as error:  # protobuf raises types of its own
        raise BackendError(f"stage: payload is no ONNX model ({error}); compile the model again") from error
    kept = [t for t in model.graph.initializer if t.name not in program.weights]
    for t in model.graph.initializer:
        if t.name in program.weights:
            model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model.SerializeToString()
