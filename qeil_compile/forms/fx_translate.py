"""The ONNX translation of an exported program, cut at the names of its FX nodes.

An operator that torch's exporter cannot translate does not spoil the rest: it becomes a hole, its outputs
extra inputs of the translation and its inputs extra outputs, so that every other operator can still be cut
out. The hole itself can only run on an engine that takes FX.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from qeil_compile.errors import BackendError, first_line
from qeil_compile.ir import OpGraph

from .onnx_source import OnnxCutter, detach_weights
from .program import INLINE_BYTES

#: ONNX opset of the translation: 23 has Attention and RMSNormalization as operators.
ONNX_OPSET = 23
#: How the exporter names the node it failed at.
_FAILED_NODE = re.compile(r"translating node %(\w+)")


@dataclass(frozen=True)
class Translation:
    """The model to cut, its detached weights, and operators without a translation with the reason."""

    cutter: OnnxCutter
    arrays: Mapping[str, np.ndarray]
    holes: Mapping[str, str]


def translate(program: ExportedProgram, graph: OpGraph) -> Translation:
    """Translate a program. Raises `BackendError` when nothing of it has a translation."""
    import onnx_ir
    from onnxscript import optimizer

    with quiet("torch.onnx"):
        translated, holes = _export(program, graph)
        reads = {n.name: (n.op_type, [i and i.name for i in n.inputs]) for n in translated.model.graph}
        # As outputs, tensors that a stage may end at outlive the folding of what reads them.
        outputs = translated.model.graph.outputs
        own = len(outputs)
        values = [v for n in translated.model.graph for v in n.outputs if v.name in graph.tensors]
        outputs.extend(v for v in values if v not in set(outputs))
        # Shapes and axes become constants, which engines need while they read a model; weights stay as they are.
        optimizer.fold_constants(translated.model, should_fold=_fold_small)
        del outputs[own:]
    kept = _weights_by_reference(translated.model)
    model = onnx_ir.to_proto(translated.model)
    _keep_names(model, reads, graph)
    for node in model.graph.node:
        # Stack traces and module names of the machine that compiles have no place in an artifact.
        del node.metadata_props[:]
        node.doc_string = ""
    arrays = {**detach_weights(model), **kept}
    _declare(model, kept)
    return Translation(OnnxCutter(model), arrays, holes)


def _export(program: ExportedProgram, graph: OpGraph) -> tuple[Any, dict[str, str]]:
    """torch's ONNX program, and the operators that had to be left out."""
    holes: dict[str, str] = {}
    while True:
        try:
            whole = _tensors_only(program, holes)
            translated = torch.onnx.export(
                whole, dynamo=True, optimize=False, verbose=False, opset_version=ONNX_OPSET
            )
        except Exception as error:  # torch.onnx wraps every failure of its own in many types
            found = _FAILED_NODE.search(str(error))
            failed = found and next((op for op in graph.ops if op.name == found[1]), None)
            if not failed or failed.name in holes:
                raise BackendError(f"model {graph.name} has no ONNX translation: {first_line(error)}") from error
            reason = f"torch {torch.__version__} has no ONNX translation for it"
            holes |= {op.name: reason for op in graph.ops if op.type == failed.type}
            continue
        assert translated is not None
        return translated, holes


def _tensors_only(program: ExportedProgram, holes: Mapping[str, str]) -> ExportedProgram:
    """The program without `holes`, without what nothing reads (assertions), and without the numbers and Nones
    that it returns beside tensors."""
    signature = program.graph_signature
    unread = any(n.op == "call_function" and not n.users for n in program.graph.nodes)
    if not holes and not unread and not any(isinstance(s.arg, ConstantArgument) for s in signature.output_specs):
        return program
    graph = copy.deepcopy(program.graph)
    result = next(n for n in graph.nodes if n.op == "output")
    extra = _cut_holes(graph, holes)
    returned = [a for a in result.args[0] if isinstance(a, fx.Node)]
    returned += [n for n in extra.results if n not in returned and n.op != "placeholder"]
    result.args = (tuple(returned),)
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            graph.erase_node(node)
    old = {s.arg.name: s for s in signature.output_specs if not isinstance(s.arg, ConstantArgument)}
    outputs = [old.get(n.name) or OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(n.name), None) for n in returned]
    added = [InputSpec(InputKind.USER_INPUT, TensorArgument(n.name), None) for n in extra.inputs]
    inputs = [*signature.input_specs, *added]
    # The call signature still unpacks into the structures of the whole program, which have other leaves.
    graph.set_codegen(fx.graph.CodeGen())
    root, *inner = program.module_call_graph
    users = [s.arg for s in inputs if s.kind == InputKind.USER_INPUT]
    called = replace(
        root.signature, inputs=users, outputs=[s.arg for s in outputs],
        in_spec=pytree.tree_structure((tuple(u.name for u in users), {})),
        out_spec=pytree.tree_structure(tuple(n.name for n in returned)),
        # torch names inputs after these when it traces the program again.
        forward_arg_names=[u.name for u in users],
    )  # fmt: skip
    module = fx.GraphModule(program.graph_module, graph)
    module.meta.update(program.graph_module.meta)
    return ExportedProgram(
        module, graph, ExportGraphSignature(inputs, outputs), program.state_dict, program.range_constraints,
        [replace(root, signature=called), *inner], constants=program.constants,
    )  # fmt: skip


@dataclass(frozen=True)
class _Cut:
    inputs: Sequence[fx.Node]
    results: Sequence[fx.Node]


def _cut_holes(graph: fx.Graph, holes: Mapping[str, str]) -> _Cut:
    """Turn what the holes write into placeholders of the same names; what they read becomes a result."""
    inputs: list[fx.Node] = []
    results: dict[fx.Node, None] = {}
    first = next(n for n in graph.nodes if n.op != "placeholder")
    for node in [n for n in graph.nodes if n.name in holes]:
        results.update(dict.fromkeys(node.all_input_nodes))
        several = isinstance(node.meta.get("val"), (tuple, list))
        for written in list(node.users) if several else [node]:
            name = written.name
            written.name = f"{name}_hole"
            with graph.inserting_before(first):
                fresh = graph.placeholder(name)
            # The graph never gives a name twice by itself, though the old node is about to go.
            fresh.name = fresh.target = name
            fresh.meta = dict(written.meta)
            written.replace_all_uses_with(fresh)
            inputs.append(fresh)
            if several:
                graph.erase_node(written)
        graph.erase_node(node)
    erased = {n for n in results if n.op != "placeholder" and n not in set(graph.nodes)}
    return _Cut(inputs, [n for n in results if n not in erased])


def _keep_names(model: onnx.ModelProto, reads: Mapping[str | None, Any], graph: OpGraph) -> None:
    """Let every node read the tensors of the FX graph again that folding bypassed.

    The optimizer reads through Identity nodes; a stage that is handed the Identity's output would then ask
    for its input, which is not there.
    """
    written = {o for n in model.graph.node for o in n.output}
    for node in model.graph.node:
        kind, before = reads.get(node.name, ("", []))
        if kind == node.op_type and len(before) == len(node.input):
            for i, name in enumerate(before):
                if name in written and name in graph.tensors:
                    node.input[i] = name


def _fold_small(node: Any) -> bool | None:
    sizes = [i.const_value.size for i in node.inputs if i is not None and i.const_value is not None]
    return False if any(s * 4 > INLINE_BYTES for s in sizes) else None


def _weights_by_reference(model: Any) -> dict[str, np.ndarray]:
    """Take the tensors that torch owns out of the IR model, sharing their memory."""
    import onnx_ir

    kept: dict[str, np.ndarray] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        packed = (onnx_ir.DataType.INT4, onnx_ir.DataType.UINT4)
        if tensor is None or tensor.nbytes <= INLINE_BYTES or tensor.dtype in packed:
            continue
        kept[name] = np.ascontiguousarray(tensor.numpy())
        value.const_value = onnx_ir.ExternalTensor(
            name, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name, base_dir=""
        )
    return kept


def _declare(model: onnx.ModelProto, kept: Mapping[str, np.ndarray]) -> None:
    for tensor in model.graph.initializer:
        if tensor.name in kept:
            tensor.data_location = onnx.TensorProto.EXTERNAL


@contextlib.contextmanager
def quiet(name: str) -> Iterator[None]:
    """torch logs optional packages and whole tracebacks, and warns about its own internals; errors still raise."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
