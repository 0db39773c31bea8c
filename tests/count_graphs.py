"""Small operator graphs for the tests of the counts, built without the frontends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from qeil_compile.ir import Op, OpGraph, TensorSpec
from qeil_compile.passes.count import OpCount, count

Spec = tuple[str, Sequence[int | None] | None] | tuple[str, Sequence[int | None] | None, str]


def one(
    op_type: str,
    inputs: Mapping[str, Spec | None],
    outputs: Sequence[Spec],
    attributes: Mapping[str, Any] | None = None,
    *,
    weights: Sequence[str] = (),
    opset: int = 25,
    body: tuple[OpGraph, ...] = (),
) -> OpGraph:
    """A graph of one operator; a spec is (dtype, shape), None an omitted input."""
    tensors = {
        name: TensorSpec(name, shape_of(spec), spec[0], "weight" if name in weights else "input")
        for name, spec in inputs.items()
        if spec
    }
    for i, spec in enumerate(outputs):
        tensors[f"out{i}"] = TensorSpec(f"out{i}", shape_of(spec), spec[0], "activation")
    op = Op(
        "op",
        op_type,
        tuple(name if spec else "" for name, spec in inputs.items()),
        tuple(f"out{i}" for i in range(len(outputs))),
        attributes or {},
        body=body,
    )
    dialect = "fx" if op_type.startswith(("aten.", "quantized_decomposed.", "higher_order.")) else "onnx"
    names = tuple(n for n, spec in inputs.items() if spec)
    return OpGraph("one", dialect, (op,), tensors, names, op.outputs, {"": opset})


def shape_of(spec: Spec) -> tuple[int | None, ...] | None:
    """The shape of a spec."""
    return None if spec[1] is None else tuple(spec[1])


def count_one(*args: Any, **kwargs: Any) -> OpCount:
    """The count of `one(...)`."""
    return count(one(*args, **kwargs))[0]


def from_export(module: torch.nn.Module, args: tuple[Any, ...], *, decompose: bool = False) -> OpGraph:
    """An operator graph of `torch.export`'s graph; tuples become several outputs."""
    program = torch.export.export(module.eval(), args)
    if decompose:
        program = program.run_decompositions()
    signature = program.graph_signature
    stored = {*signature.inputs_to_parameters, *signature.inputs_to_buffers}
    tensors: dict[str, TensorSpec] = {}
    ops: list[Op] = []
    inputs: list[str] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            role = "weight" if node.name in stored else "input"
            tensors[node.name] = _describe(node.name, node.meta["val"], role)
            if role == "input":
                inputs.append(node.name)
        elif node.op == "call_function" and "getitem" not in str(node.target):
            outputs = _outputs(node, tensors)
            ops.append(_operator(node, outputs))
    results = tuple(n.name for n in program.graph.output_node().args[0] if isinstance(n, Node))
    return OpGraph("exported", "fx", tuple(ops), tensors, tuple(inputs), results)


def _describe(name: str, value: Any, role: str) -> TensorSpec:
    if not isinstance(value, torch.Tensor):
        return TensorSpec(name, (), "opaque", role)  # type: ignore[arg-type]
    dtype = str(value.dtype).removeprefix("torch.")
    return TensorSpec(name, tuple(int(d) for d in value.shape), dtype, role)  # type: ignore[arg-type]


def _outputs(node: Node, tensors: dict[str, TensorSpec]) -> tuple[str, ...]:
    value = node.meta.get("val")
    if not isinstance(value, list | tuple):
        tensors[node.name] = _describe(node.name, value, "activation")
        return (node.name,)
    users = {u.args[1]: u.name for u in node.users if "getitem" in str(u.target)}
    names = tuple(users.get(i, f"{node.name}#{i}") for i in range(len(value)))
    for name, part in zip(names, value, strict=True):
        tensors[name] = _describe(name, part, "activation")
    return names


def _operator(node: Node, outputs: tuple[str, ...]) -> Op:
    given = {
        argument.name: value
        for argument, value in zip(node.target._schema.arguments, node.args, strict=False)  # type: ignore[union-attr]
    } | dict(node.kwargs)
    names: list[str] = []
    labels: list[str] = []
    attributes: dict[str, Any] = {}
    for label, value in given.items():
        listed = list(value) if isinstance(value, list | tuple) else [value]
        if any(isinstance(v, Node) for v in listed):
            names += [v.name if isinstance(v, Node) else "" for v in listed]
            labels += [label] * len(listed)
        else:
            attributes[label] = value
    return Op(node.name, str(node.target), tuple(names), outputs, {**attributes, "#inputs": labels})
