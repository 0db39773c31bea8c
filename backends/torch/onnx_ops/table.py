"""The operator table: which rule compiles which ONNX operator, and what a rule is told about its node.

A rule is a factory: it reads the node's attributes once and returns the kernel, a callable that gets
the node's inputs in order (None for an omitted one) and returns a tensor, a list (an ONNX sequence),
None (an empty optional), or a tuple when the operator has several outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import onnx
import torch

from qeil_compile.backends.torch.onnx_ops.dtypes import TORCH_DTYPES
from qeil_compile.errors import BackendError

Kernel = Callable[..., Any]
Reader = Callable[[torch.Tensor | None], Any]


class Body(Protocol):
    """A nested graph, compiled. `captured` are the values of the node's implicit inputs."""

    def __call__(self, inputs: Sequence[Any], captured: Sequence[Any]) -> list[Any]:
        """The outputs of the nested graph for `inputs`."""
        ...


class Shared:
    """What the layers of a network work out of the same tensors in each pass: masks, rotations. The first one does."""

    def __init__(self) -> None:
        self._found: dict[Hashable, tuple[tuple[torch.Tensor, ...], Any]] = {}

    def clear(self) -> None:
        """A new pass begins."""
        self._found.clear()

    def of(self, key: Hashable, tensors: tuple[torch.Tensor, ...], make: Callable[[], Any]) -> Any:
        """What `make` gives for these very tensors and `key`."""
        known = self._found.get(key)
        if known is None or any(a is not b for a, b in zip(known[0], tensors, strict=True)):
            known = self._found[key] = (tensors, make())
        return known[1]


@dataclass
class Node:
    """One node while it is compiled.

    `constants` holds the inputs known at construction, `elems` the ONNX element type of every input
    (0 where inference has none), `version` the opset version of the node's domain. A rule adds to
    `host` the inputs that its kernel reads as Python numbers, so that these stay off an accelerator.
    Keys and values that are states are written where they lie with `in_place`, else handed out anew. `shared`
    belongs to all nodes of a program, and to one pass: see `Shared`.
    """

    op_type: str
    domain: str
    version: int
    attrs: Mapping[str, Any]
    input_names: Sequence[str]
    output_names: Sequence[str]
    constants: Sequence[torch.Tensor | None]
    elems: Sequence[int]
    device: torch.device
    body: Callable[[onnx.GraphProto], Body]
    host: set[int] = field(default_factory=set)
    keeps_devices: bool = False
    in_place: bool = False
    shared: Shared = field(default_factory=lambda: Shared())

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's value, or `default`."""
        return self.attrs.get(name, default)

    def has_input(self, index: int) -> bool:
        """Whether input `index` is given."""
        return index < len(self.input_names) and bool(self.input_names[index])

    def wants(self, index: int) -> bool:
        """Whether output `index` is asked for."""
        return index < len(self.output_names) and bool(self.output_names[index])

    def constant(self, index: int) -> torch.Tensor | None:
        """Input `index` where it is known at construction."""
        return self.constants[index] if index < len(self.constants) else None

    def elem(self, index: int) -> int:
        """ONNX element type of input `index`, 0 if unknown."""
        return self.elems[index] if index < len(self.elems) else 0

    def numbers(self, index: int) -> Reader:
        """A reader of input `index` as a flat list of Python numbers; a constant is read once, here."""
        self.host.add(index)
        known = self.constant(index)
        if known is not None:
            values = known.reshape(-1).tolist()
            return lambda _value: values
        return lambda value: None if value is None else value.reshape(-1).tolist()

    def number(self, index: int, default: Any = None) -> Reader:
        """A reader of input `index` as one Python number; `default` where it is omitted."""
        read = self.numbers(index)

        def one(value: torch.Tensor | None) -> Any:
            values = read(value)
            return values[0] if values else default

        return one

    def axes(self, index: int, attribute: str = "axes") -> Reader:
        """A reader of axes that older opsets give as an attribute and newer ones as input `index`."""
        if attribute in self.attrs:
            fixed = list(self.attrs[attribute])
            return lambda _value: fixed
        return self.numbers(index)


Rule = Callable[[Node], Kernel]
_RULES: dict[tuple[str, str], Rule] = {}


def rule(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a rule for operators of one domain."""

    def register(factory: Rule) -> Rule:
        for op_type in op_types:
            _RULES[(domain, op_type)] = factory
        return factory

    return register


def plain(kernels: Mapping[str, Kernel], domain: str = "") -> None:
    """Register operators without attributes by their kernels."""

    def fixed(kernel: Kernel) -> Rule:
        return lambda _node: kernel

    for op_type, kernel in kernels.items():
        _RULES[(domain, op_type)] = fixed(kernel)


def find_rule(op_type: str, domain: str) -> Rule | None:
    """The rule of an operator, if the table has one."""
    return _RULES.get(("" if domain == "ai.onnx" else domain, op_type))


def known_operators() -> list[tuple[str, str]]:
    """(domain, operator) of every rule, sorted."""
    return sorted(_RULES)


def refusal(op_type: str, attrs: Mapping[str, Any]) -> str | None:
    """Why a node that has a rule still cannot run here, as far as its attributes tell."""
    to = attrs.get("to") or attrs.get("dtype") or attrs.get("output_dtype")
    if isinstance(to, int) and to not in TORCH_DTYPES:
        return f"torch backend has no tensors of ONNX type {onnx.TensorProto.DataType.Name(to)}"
    if op_type == "Constant":
        value = attrs.get("value")
        text = isinstance(value, onnx.TensorProto) and value.data_type == onnx.TensorProto.STRING
        if text or "value_string" in attrs or "value_strings" in attrs:
            return "torch backend has no string tensors"
        if "sparse_value" in attrs:
            return "torch backend has no sparse constants"
    return None


def parse_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes as Python values: text decoded, tensors and graphs left as protos."""
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.type == onnx.AttributeProto.STRING:
            value = value.decode("utf-8", "replace")
        elif attribute.type == onnx.AttributeProto.STRINGS:
            value = [v.decode("utf-8", "replace") for v in value]
        elif attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
            value = list(value)
        found[attribute.name] = value
    return found


def fail(node: Node, problem: str) -> BackendError:
    """An error that names the operator and its first output."""
    where = next((n for n in node.output_names if n), "?")
    name = f"{node.domain or 'onnx'}.{node.op_type}"
    return BackendError(f"operator {name} writing {where}: {problem}; place it on another engine")
