"""ONNX models as sources: build the operator graph, cut sub-models by tensor names.

A stage's sub-model is found by walking back from its outputs to its inputs, so it needs no map from
operators to nodes; that is what lets the ONNX translation of an FX graph be cut by FX tensor names.
Large initializers leave the model and stay in `arrays`; the cut model declares them as external data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qeil_compile.errors import BackendError, ModelError
from qeil_compile.ir import Op, OpGraph, TensorSpec

from .program import INLINE_BYTES, Form, StageProgram

_DTYPES: dict[int, str] = {
    value: name.lower() if name != "DOUBLE" else "float64"
    for name, value in onnx.TensorProto.DataType.items()
    if name != "UNDEFINED"
} | {onnx.TensorProto.FLOAT: "float32"}
_CODES = {name: code for code, name in _DTYPES.items()}
#: Packed and variable-width types have no plain numpy buffer; they stay inside the model.
_INLINE_TYPES = frozenset(
    code for code, name in _DTYPES.items() if name in {"string", "int4", "uint4", "int2", "uint2", "float4e2m1"}
)
_RENAMED = {"float8e4m3fn": "float8_e4m3fn", "float8e4m3fnuz": "float8_e4m3fnuz", "float8e5m2": "float8_e5m2",
            "float8e5m2fnuz": "float8_e5m2fnuz", "float8e8m0": "float8_e8m0fnu",
            "float4e2m1": "float4_e2m1fn"}  # fmt: skip
_BACK = {new: old for old, new in _RENAMED.items()}


def dtype_name(code: int) -> str:
    """ONNX element type -> name of `ir.DTYPE_BYTES`."""
    name = _DTYPES.get(code, "opaque")
    return _RENAMED.get(name, name)


def dtype_code(name: str) -> int:
    """Name of `ir.DTYPE_BYTES` -> ONNX element type. Raises `ModelError`."""
    code = _CODES.get(_BACK.get(name, name))
    if code is None:
        raise ModelError(f"dtype {name} has no ONNX element type")
    return code


def captured_names(node: onnx.NodeProto) -> list[str]:
    """Names that the node's nested graphs read from outside, in order of first use."""
    found: dict[str, None] = {}
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            local = {i.name for i in graph.input} | {t.name for t in graph.initializer}
            local |= {o for n in graph.node for o in n.output}
            reads = [i for n in graph.node for i in [*n.input, *captured_names(n)]]
            reads += [o.name for o in graph.output]
            found.update(dict.fromkeys(r for r in reads if r and r not in local))
    return list(found)


def detach_weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Move large initializers of the main graph out of `model`; returns them by name."""
    arrays: dict[str, np.ndarray] = {}
    for tensor in model.graph.initializer:
        if tensor.data_type in _INLINE_TYPES or (len(tensor.raw_data) <= INLINE_BYTES and not _unpacked(tensor)):
            continue
        arrays[tensor.name] = numpy_helper.to_array(tensor)
        declare_external(tensor, tensor.name)
    return arrays


def _unpacked(tensor: onnx.TensorProto) -> bool:
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    return any(len(f) * 4 > INLINE_BYTES for f in fields)


def declare_external(tensor: onnx.TensorProto, location: str) -> None:
    """Drop the tensor's data and mark it as external under `location`."""
    for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(name)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location


class OnnxCutter:
    """Cuts sub-models out of one ONNX model by tensor names. Weights are detached already."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        nodes = model.graph.node
        self._producer = {o: i for i, n in enumerate(nodes) for o in n.output if o}
        self._captured = {i: c for i, n in enumerate(nodes) if (c := captured_names(n))}
        self._initializers = {t.name: t for t in model.graph.initializer}

    def cut(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        rename: Mapping[str, str],
        name: str = "stage",
    ) -> tuple[onnx.ModelProto, list[str]]:
        """Sub-model from `inputs` to `outputs`, and the names of the detached weights it uses.

        `rename` maps tensor names of the operator graph to names in the model where they differ.
        Raises `BackendError` when an output needs a tensor that is not among the inputs.
        """
        stop = {rename.get(t.name, t.name) for t in inputs}
        needed, constants = self._walk([rename.get(t.name, t.name) for t in outputs], stop)
        nodes = [self.model.graph.node[i] for i in sorted(needed)]
        written = {o for n in nodes for o in n.output}
        graph = onnx.GraphProto(name=name)
        graph.node.extend(nodes)
        for spec in inputs:
            graph.input.append(value_info(spec, rename.get(spec.name, spec.name)))
        for spec in outputs:
            value = rename.get(spec.name, spec.name)
            if value not in written:
                # A constant or an input handed straight on: engines want a node behind every output.
                graph.node.append(helper.make_node("Identity", [value], [f"{value}/out"], f"{value}/out"))
                value = f"{value}/out"
            graph.output.append(value_info(spec, value))
        graph.initializer.extend(self._initializers[c] for c in constants)
        model = onnx.ModelProto(ir_version=self.model.ir_version, producer_name="qeil_compile", graph=graph)
        model.opset_import.extend(self.model.opset_import)
        model.functions.extend(self.model.functions)
        external = [c for c in constants if self._initializers[c].data_location == onnx.TensorProto.EXTERNAL]
        return model, external

    def _walk(self, outputs: Iterable[str], stop: set[str]) -> tuple[set[int], list[str]]:
        needed: set[int] = set()
        constants: dict[str, None] = {}
        todo = [o for o in outputs if o not in stop]
        while todo:
            value = todo.pop()
            if value in self._initializers:
                constants[value] = None
                continue
            i = self._producer.get(value)
            if i is None:
                raise BackendError(f"cannot cut the ONNX model: {value} is neither computed nor an input of the stage")
            if i not in needed:
                needed.add(i)
                reads = [*self.model.graph.node[i].input, *self._captured.get(i, ())]
                todo += [r for r in reads if r and r not in stop]
        return needed, list(constants)


def value_info(spec: TensorSpec, name: str) -> onnx.ValueInfoProto:
    """Type of a stage's input or output; dimensions that are unknown get a symbol."""
    # Engines want a rank; where inference found none, the sample run's is the best that is known.
    shape = spec.shape if spec.shape is not None or spec.seen is None else (None,) * len(spec.seen)
    dims = None if shape is None else [d if d is not None else f"{name}.{i}" for i, d in enumerate(shape)]
    return helper.make_tensor_value_info(name, dtype_code(spec.dtype), dims)


@dataclass(frozen=True)
class OnnxSource:
    """An ONNX model with its operator graph; weights detached into `arrays`."""

    graph: OpGraph
    model: onnx.ModelProto
    arrays: Mapping[str, np.ndarray]
    #: False: stages declare ranks but no dimensions, because the engine's own inference contradicts the real ones.
    promises: bool = True

    def forms(self) -> tuple[Form, ...]:
        """Only its own form."""
        return ("onnx",)

    def cut(self, form: Form, ops: Sequence[int], inputs: Sequence[str], outputs: Sequence[str]) -> StageProgram:
        """Cut a stage. `ops` is implied by inputs and outputs."""
        if form != "onnx":
            raise BackendError(f"model {self.graph.name} is ONNX; it cannot be cut into form {form}")
        specs = [self._spec(t) for t in inputs], [self._spec(t) for t in outputs]
        model, external = self._cutter.cut(*specs, {})
        return StageProgram(
            "onnx", model.SerializeToString(), tuple(inputs), tuple(outputs), {name: name for name in external}
        )

    def weight(self, key: str) -> np.ndarray:
        """Array of a detached initializer."""
        return self.arrays[key]

    def _spec(self, name: str) -> TensorSpec:
        spec = self.graph.tensors[name]
        if self.promises:
            return spec
        rank = spec.shape if spec.shape is not None else spec.seen
        return replace(spec, shape=None if rank is None else (None,) * len(rank))

    @cached_property
    def _cutter(self) -> OnnxCutter:
        return OnnxCutter(self.model)


def build_graph(model: onnx.ModelProto, name: str, seen: Mapping[str, tuple[int, ...]] | None = None) -> OpGraph:
    """Operator graph of a model whose value infos are inferred and whose nodes are named."""
    return _GraphBuilder(model.graph, {o.domain: o.version for o in model.opset_import}, name, seen or {}).build({})


class _GraphBuilder:
    def __init__(
        self, graph: onnx.GraphProto, opsets: dict[str, int], name: str, seen: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.proto, self.opsets, self.name, self.seen = graph, opsets, name, seen

    def build(self, outer: Mapping[str, TensorSpec]) -> OpGraph:
        g = self.proto
        tensors: dict[str, TensorSpec] = dict(outer)
        for t in g.initializer:
            tensors[t.name] = TensorSpec(t.name, tuple(t.dims), dtype_name(t.data_type), "weight")
        inputs = [i for i in g.input if i.name not in {t.name for t in g.initializer}]
        for i in inputs:
            tensors[i.name] = self._spec(i, "input")
        known = {v.name: v for v in [*g.value_info, *g.output]}
        for node in g.node:
            for o in node.output:
                if o:
                    info = known.get(o)
                    tensors[o] = self._spec(info, "activation") if info else self._unknown(o)
        ops = tuple(self._op(n, tensors) for n in g.node)
        return OpGraph(
            self.name, "onnx", ops, tensors, tuple(i.name for i in inputs),
            tuple(o.name for o in g.output), self.opsets,
        )  # fmt: skip

    def _spec(self, info: onnx.ValueInfoProto, role: Any) -> TensorSpec:
        if not info.type.HasField("tensor_type"):
            kind = info.type.WhichOneof("value")
            return TensorSpec(info.name, (), "opaque", role) if kind else self._unknown(info.name)
        t = info.type.tensor_type
        shape: tuple[int | None, ...] | None = None
        if t.HasField("shape"):
            shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in t.shape.dim)
        seen = self.seen.get(info.name) if shape is None or None in shape else None
        return TensorSpec(info.name, shape, dtype_name(t.elem_type), role, seen)

    def _unknown(self, name: str) -> TensorSpec:
        # Without a type nothing can be promised to an engine: the value must stay inside one stage.
        return TensorSpec(name, None, "opaque", "activation", self.seen.get(name))

    def _op(self, node: onnx.NodeProto, tensors: Mapping[str, TensorSpec]) -> Op:
        bodies = tuple(
            _GraphBuilder(a.g, self.opsets, f"{node.name}.{a.name}", self.seen).build(tensors)
            for a in node.attribute
            if a.HasField("g")
        )
        captured = [c for c in captured_names(node) if c in tensors and c not in node.input]
        return Op(
            node.name,
            f"{'onnx' if node.domain in ('', 'ai.onnx') else node.domain}.{node.op_type}",
            (*node.input, *captured),
            tuple(node.output),
            {a.name: _attribute(a) for a in node.attribute if not a.HasField("g")},
            node.name.rpartition("/")[0].strip("/").replace("/", "."),
            bodies,
        )


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, onnx.TensorProto):
        array = numpy_helper.to_array(value)
        return {"dtype": dtype_name(value.data_type), "shape": list(array.shape), "values": array.ravel()[:16].tolist()}
    if isinstance(value, (list, tuple)) or (hasattr(value, "__len__") and not isinstance(value, str)):
        return [v.decode(errors="replace") if isinstance(v, bytes) else v for v in value]
    return value if isinstance(value, (int, float, str)) else str(value)


