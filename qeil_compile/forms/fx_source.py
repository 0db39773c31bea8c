"""Exported programs (`torch.export`) as sources: build the operator graph, cut FX sub-graphs.

Engines other than torch receive the ONNX translation of the whole program (`fx_translate`), made once on
first need; it keeps the names of the FX nodes, so it is cut at the same tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from qeil_compile.errors import BackendError, ModelError
from qeil_compile.ir import Op, OpGraph, TensorSpec

from . import fx_json
from .fx_translate import Translation, translate
from .program import Form, StageProgram

#: numpy has no bfloat16 and 8-bit floats; torch's buffers are viewed through these integer types.
_CARRIERS = {
    torch.bfloat16: (torch.int16, "bfloat16"),
    torch.float8_e4m3fn: (torch.uint8, "float8_e4m3fn"),
    torch.float8_e5m2: (torch.uint8, "float8_e5m2"),
}


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's buffer as a numpy array without a copy where it is dense on the CPU."""
    if tensor.requires_grad or not tensor.is_cpu or not tensor.is_contiguous():
        tensor = tensor.detach().cpu().contiguous()
    carrier = _CARRIERS.get(tensor.dtype)
    if carrier is None:
        return tensor.numpy()
    import ml_dtypes

    return tensor.view(carrier[0]).numpy().view(getattr(ml_dtypes, carrier[1]))


def from_numpy(array: np.ndarray) -> torch.Tensor:
    """The array's buffer as a torch tensor without a copy; read-only arrays are shared, not written."""
    if array.dtype.isbuiltin == 1:  # `dtype.name` is slow, and this is asked in every call
        return _share(array)
    for dtype, (carrier, name) in _CARRIERS.items():
        if array.dtype.name == name:
            return _share(array.view(np.dtype(str(carrier).removeprefix("torch.")))).view(dtype)
    return _share(array)


def _share(array: np.ndarray) -> torch.Tensor:
    if not array.flags.c_contiguous and any(s < 0 for s in array.strides):
        array = np.ascontiguousarray(array)
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def dtype_name(dtype: torch.dtype) -> str:
    """torch dtype -> name of `ir.DTYPE_BYTES`."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class FxSource:
    """An exported program with its operator graph."""

    graph: OpGraph
    program: ExportedProgram
    #: placeholder name -> name of the parameter, buffer or constant.
    weight_names: Mapping[str, str] = field(default_factory=dict)

    def forms(self) -> tuple[Form, ...]:
        """FX first; ONNX by translation."""
        return ("fx", "onnx")

    def cut(self, form: Form, ops: Sequence[int], inputs: Sequence[str], outputs: Sequence[str]) -> StageProgram:
        """Cut a stage in either form. Raises `BackendError` when the translation to ONNX is impossible."""
        return self._cut_fx(ops, inputs, outputs) if form == "fx" else self._cut_onnx(ops, inputs, outputs)

    def weight(self, key: str) -> np.ndarray:
        """Array of a parameter, buffer or constant, or of a constant that the translation folded."""
        tensor = self.program.state_dict.get(key)
        if tensor is None:
            tensor = self.program.constants.get(key)
        if tensor is None:
            return self._translated().arrays[key]
        if tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor):
            raise ModelError(
                f"weight {key} is on the meta device: the model can be planned (qeil_compile.trace, annotate, "
                "partition) but not lowered; load its weights first"
            )
        return to_numpy(tensor)

    def _cut_fx(self, ops: Sequence[int], inputs: Sequence[str], outputs: Sequence[str]) -> StageProgram:
        names = {self.graph.ops[i].name for i in ops}
        written = {t for i in ops for t in self.graph.ops[i].outputs if t}
        nodes = self._nodes
        wanted = names | written
        chosen = [n for n in nodes.values() if n.name in wanted or self._is_helper(n, names)]
        reads = {a.name for n in chosen for a in n.all_input_nodes} | set(outputs)
        weights = {w: key for w, key in self.weight_names.items() if w in reads and w not in inputs}
        graph = fx_json.encode(chosen, inputs, [nodes[o] for o in outputs], self.program.graph_module)
        return StageProgram("fx", fx_json.dumps(graph), tuple(inputs), tuple(outputs), weights)

    def _is_helper(self, node: fx.Node, names: set[str]) -> bool:
        """Nested graphs (`get_attr`) travel with the operators that call them."""
        return node.op == "get_attr" and any(u.name in names for u in node.users)

    def _cut_onnx(self, ops: Sequence[int], inputs: Sequence[str], outputs: Sequence[str]) -> StageProgram:
        tensors = self.graph.tensors
        translation = self._translated()
        for i in ops:
            if self.graph.ops[i].name in translation.holes:
                raise BackendError(translation.holes[self.graph.ops[i].name])
        cutter = translation.cutter
        rename = {w: key for w, key in self.weight_names.items() if w in outputs}
        model, external = cutter.cut([tensors[t] for t in inputs], [tensors[t] for t in outputs], rename)
        return StageProgram(
            "onnx", model.SerializeToString(), tuple(inputs), tuple(outputs), {name: name for name in external}
        )

    @cached_property
    def _nodes(self) -> dict[str, fx.Node]:
        return {n.name: n for n in self.program.graph.nodes}

    @cached_property
    def _translation(self) -> Translation | BackendError:
        # An error is kept like a result: engines ask operator by operator, and each attempt takes seconds.
        try:
            return translate(self.program, self.graph)
        except BackendError as error:
            return error

    def _translated(self) -> Translation:
        if isinstance(self._translation, BackendError):
            raise self._translation
        return self._translation


def build_graph(program: ExportedProgram, name: str) -> tuple[OpGraph, dict[str, str]]:
    """Operator graph of a functional exported program, and placeholder -> weight name.

    Raises `ModelError` if the program mutates buffers or inputs.
    """
    signature = program.graph_signature
    kinds = {s.arg.name: s for s in signature.input_specs if not isinstance(s.arg, ConstantArgument)}
    for out in signature.output_specs:
        if out.kind not in (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT):
            raise ModelError(
                f"model {name} changes {out.target} while it runs ({out.kind.name.lower()}); "
                "expected a pure function: call .eval(), or pass the state in and return it"
            )
    tensors: dict[str, TensorSpec] = {}
    weights: dict[str, str] = {}
    inputs: list[str] = []
    ops: list[Op] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = kinds.get(node.name)
            if spec is None:
                continue
            is_input = spec.kind == InputKind.USER_INPUT
            tensors[node.name] = _spec(node.name, node.meta.get("val"), "input" if is_input else "weight")
            if is_input:
                inputs.append(node.name)
            else:
                weights[node.name] = str(spec.target)
        elif node.op == "call_function" and not _is_getitem_of_op(node):
            if _is_random(node):
                raise ModelError(
                    f"model {name} draws random numbers ({fx_json.target_name(node.target)} {node.name}), so that no "
                    "run can be checked against another; call .eval(), or pass the numbers in"
                )
            ops.append(_op(node, tensors))
    outputs = [
        o.arg.name for o in signature.output_specs if not isinstance(o.arg, ConstantArgument) and o.arg.name in tensors
    ]
    ops = _live(ops, outputs)
    graph = OpGraph(
        name, "fx", tuple(ops), tensors, tuple(inputs), tuple(dict.fromkeys(outputs)), results=tuple(outputs)
    )
    return graph, weights


def _live(ops: list[Op], outputs: list[str]) -> list[Op]:
    """Without operators that nothing reads: the exporter's assertions, and what decomposition left over.

    Assertions on values go as well: a plan computes where eager torch might have raised.
    """
    needed = set(outputs)
    kept: list[Op] = []
    for op in reversed(ops):
        if needed & set(op.outputs):
            needed |= set(op.inputs)
            kept.append(op)
    return kept[::-1]


def _is_random(node: fx.Node) -> bool:
    """True for operators that read the random state; dropout that is switched off reads none."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    given = dict(zip((a.name for a in target._schema.arguments), node.args, strict=False)) | node.kwargs
    values = {a.name: given.get(a.name, a.default_value) for a in target._schema.arguments}
    rates = [values[k] for k in ("dropout_p", "dropout", "p") if k in values]
    switches = [values[k] for k in ("train", "training") if k in values]
    return not (rates and rates[0] == 0) and not (switches and switches[0] is False)


def _is_getitem_of_op(node: fx.Node) -> bool:
    """`getitem` nodes name the outputs of a multi-output operator; they are no operators of their own."""
    return fx_json.target_name(node.target) == "operator.getitem" and node.args[0].meta.get("val").__class__ in (
        tuple,
        list,
    )


def _spec(name: str, value: Any, role: Any) -> TensorSpec:
    if not isinstance(value, torch.Tensor):
        return TensorSpec(name, (), "opaque", role)
    shape = tuple(d if isinstance(d, int) else None for d in value.shape)
    return TensorSpec(name, shape, dtype_name(value.dtype), role)


def _op(node: fx.Node, tensors: dict[str, TensorSpec]) -> Op:
    value = node.meta.get("val")
    outputs: list[str] = []
    if isinstance(value, (tuple, list)):
        users = {u.args[1]: u for u in node.users if _is_getitem_of_op(u)}
        for i in range(len(value)):
            outputs.append(users[i].name if i in users else "")
            if i in users:
                tensors[users[i].name] = _spec(users[i].name, value[i], "activation")
    else:
        outputs.append(node.name)
        tensors[node.name] = _spec(node.name, value, "activation")
    inputs, names, literals = _arguments(node)
    stack = node.meta.get("nn_module_stack") or {}
    scope = next(reversed([path for path, _ in stack.values()]), "") if stack else ""
    return Op(
        node.name, fx_json.target_name(node.target), tuple(inputs), tuple(outputs),
        {**literals, "#inputs": names}, str(scope).removeprefix("L['self'].").strip("."),
    )  # fmt: skip


def _arguments(node: fx.Node) -> tuple[list[str], list[str], dict[str, Any]]:
    """Tensor inputs, the schema names of those, and all other arguments by schema name."""
    schema = node.target._schema.arguments if isinstance(node.target, torch._ops.OpOverload) else []
    named = [(schema[i].name if i < len(schema) else str(i), a) for i, a in enumerate(node.args)]
    inputs: list[str] = []
    names: list[str] = []
    literals: dict[str, Any] = {}
    for key, value in [*named, *node.kwargs.items()]:
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        nodes = [v for v in items if isinstance(v, fx.Node)]
        if nodes:
            for v in items:
                if isinstance(v, fx.Node) and v.op != "get_attr":
                    inputs.append(v.name)
                    names.append(key)
                elif v is None:
                    inputs.append("")
                    names.append(key)
        else:
            literals[key] = _literal(value)
    return inputs, names, literals


def _literal(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_literal(v) for v in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
