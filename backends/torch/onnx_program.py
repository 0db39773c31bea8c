"""Run an ONNX stage in torch: every node becomes a Python callable once, a run is a list of calls.

Values live in numbered slots and are dropped after their last use. Small integer tensors (shapes,
axes, indices into shapes) stay on the host, so that reading them never waits for an accelerator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from qeil_compile.backends.torch import FAILURES
from qeil_compile.backends.torch.onnx_expand import (
    expand_functions,
    function_operators,
    opset_versions,
    plain_domain,
    value_types,
)
from qeil_compile.backends.torch.onnx_ops import find_rule
from qeil_compile.backends.torch.onnx_ops.dtypes import from_numpy, from_proto
from qeil_compile.backends.torch.onnx_ops.shape import HOST_ELEMENTS
from qeil_compile.backends.torch.onnx_ops.table import Body, Kernel, Node, Rule, Shared, parse_attributes, refusal
from qeil_compile.errors import BackendError

#: Constants computed from constants are kept up to this size; larger ones are computed in each run.
_FOLD_BYTES = 4096
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_STRING = onnx.TensorProto.STRING

def _has_text(node: onnx.NodeProto) -> bool:
    lists = ("value_strings", "keys_strings", "values_strings")
    return any(a.type == onnx.AttributeProto.STRINGS and a.name in lists for a in node.attribute)


def unsupported_reason(op_type: str, domain: str, version: int, node: onnx.NodeProto | None) -> str | None:
    """Why the torch backend cannot run an operator; None if it can.

    `version` is the opset version of the operator's domain in its model. With `node`, its attributes
    and nested graphs are judged too.
    """
    domain = plain_domain(domain)
    name = f"{domain or 'onnx'}.{op_type}"
    rule = find_rule(op_type, domain)
    if rule is None:
        inner = function_operators(op_type, domain, version)
        if inner is None:
            return f"torch backend has no rule for {name}"
        for part, part_domain in inner:
            reason = unsupported_reason(part, part_domain, version, None)
            if reason:
                return f"{name} expands to what it cannot run: {reason}"
    if node is None:
        return None
    if _has_text(node):
        return "torch backend has no string tensors"
    attrs = parse_attributes(node)
    reason = refusal(op_type, attrs)
    if reason:
        return f"{name}: {reason}"
    for value in attrs.values():
        if isinstance(value, onnx.GraphProto):
            for child in value.node:
                # A nested node of another domain has another version: its own newest one serves.
                same = plain_domain(child.domain) == domain
                reason = unsupported_reason(child.op_type, child.domain, version if same else 1000, child)
                if reason:
                    return f"nested graph of {name}: {reason}"
    return _rule_refuses(rule, node, version, attrs) if rule else None


def _rule_refuses(rule: Rule, proto: onnx.NodeProto, version: int, attrs: Mapping[str, Any]) -> str | None:
    """What the rule itself says to a node whose inputs are all unknown."""
    unknown: list[Tensor | None] = [None] * len(proto.input)
    node = Node(
        proto.op_type,
        plain_domain(proto.domain),
        version,
        attrs,
        list(proto.input),
        list(proto.output),
        unknown,
        [0] * len(unknown),
        torch.device("cpu"),
        lambda _graph: lambda _inputs, _captured: [],
    )
    try:
        rule(node)
    except BackendError as error:
        return str(error)
    except FAILURES as error:
        return f"{node.domain or 'onnx'}.{node.op_type}: malformed node: {error}"
    return None


def _stays_on_host(value: Any) -> bool:
    """True for what may be a shape, an axis or an index: small integer tensors."""
    if not isinstance(value, torch.Tensor) or value.numel() > HOST_ELEMENTS:
        return False
    return not value.is_floating_point() and not value.is_complex()


def _placed(
    kernel: Kernel, host: frozenset[int], constants: Sequence[Tensor | None], device: torch.device
) -> Kernel:
    """Run where the data is: host inputs follow to the device as soon as one input lives there."""
    copies = {
        i: c.to(device)
        for i, c in enumerate(constants)
        if c is not None and i not in host and c.device != device
    }

    def run(*values: Any) -> Any:
        if any(
            isinstance(v, torch.Tensor) and v.device == device and i not in host for i, v in enumerate(values)
        ):
            values = tuple(
                v
                if i in host or not isinstance(v, torch.Tensor) or v.device == device
                else copies[i]
                if i in copies
                else v.to(device)
                for i, v in enumerate(values)
            )
        return kernel(*values)

    return run


@dataclass(frozen=True)
class _Step:
    kernel: Kernel
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    label: str
    frees: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Settings:
    """What all graphs of one program share."""

    device: torch.device
    versions: Mapping[str, int]
    elems: Mapping[str, int]
    weights: Mapping[str, np.ndarray]
    in_place: bool
    shared: Shared = field(default_factory=Shared)


class _Graph:
    """One graph compiled to steps over slots; slot 0 always holds None, for omitted inputs."""

    def __init__(
        self,
        proto: onnx.GraphProto,
        settings: _Settings,
        inputs: Sequence[str],
        outputs: Sequence[str],
        outer: _Graph | None = None,
    ) -> None:
        self.settings = settings
        self.outer = outer
        self.slots: dict[str, int] = {"": 0}
        self.template: list[Any] = [None]
        self.constants: dict[int, Tensor] = {}
        self.captures: dict[str, int] = {}
        self.inputs = [self._slot(name) for name in inputs]
        for initializer in proto.initializer:
            if initializer.name not in inputs:
                self._set_constant(self._slot(initializer.name), self._load(initializer))
        steps: list[_Step] = []
        for node in proto.node:
            step = self._compile(node)
            if step is not None:
                steps.append(step)
        self.outputs = [self._resolve(name) for name in outputs]
        self.steps = self._with_frees(steps)

    def _slot(self, name: str) -> int:
        if name not in self.slots or not name:
            self.slots[name] = len(self.template)
            self.template.append(None)
        return self.slots[name]

    def _set_constant(self, slot: int, value: Tensor) -> None:
        if not _stays_on_host(value):
            value = value.to(self.settings.device)
        self.template[slot] = self.constants[slot] = value

    def _load(self, initializer: onnx.TensorProto) -> Tensor:
        if initializer.data_location != onnx.TensorProto.EXTERNAL:
            return from_proto(initializer)
        array = self.settings.weights.get(initializer.name)
        if array is None:
            raise BackendError(
                f"weight {initializer.name} of an ONNX stage is missing; hand it over with the stage"
            )
        return from_numpy(array)

    def _knows(self, name: str) -> bool:
        return name in self.slots or (self.outer is not None and self.outer._knows(name))

    def _resolve(self, name: str) -> int:
        """Slot of a name; names of outer graphs become constants or captures here."""
        if name in self.slots:
            return self.slots[name]
        if self.outer is None or not self.outer._knows(name):
            raise BackendError(
                f"tensor {name} of an ONNX stage is read but never written; the stage is cut wrongly"
            )
        slot = self._slot(name)
        outer_slot = self.outer._resolve(name)
        if outer_slot in self.outer.constants:
            self.template[slot] = self.constants[slot] = self.outer.constants[outer_slot]
        else:
            self.captures[name] = slot
        return slot

    def _compile(self, proto: onnx.NodeProto) -> _Step | None:
        settings = self.settings
        domain = plain_domain(proto.domain)
        rule = find_rule(proto.op_type, domain)
        label = f"{domain or 'onnx'}.{proto.op_type} {proto.name or next(iter(proto.output), '')}".rstrip()
        if rule is None:
            raise BackendError(
                f"operator {label}: torch backend has no rule for it; place it on another engine"
            )
        inputs = [self._resolve(name) for name in proto.input]
        implicit: list[str] = []
        constants = [self.constants.get(i) for i in inputs]
        node = Node(
            proto.op_type,
            domain,
            settings.versions.get(domain, 1),
            parse_attributes(proto),
            list(proto.input),
            list(proto.output),
            constants,
            [settings.elems.get(name, 0) for name in proto.input],
            settings.device,
            lambda body: self._body(body, implicit),
            in_place=settings.in_place,
            shared=settings.shared,
        )
        reason = refusal(proto.op_type, node.attrs)
        if reason:
            raise BackendError(f"operator {label}: {reason}; place it on another engine")
        kernel = _call(rule, [node], label)
        if settings.device.type != "cpu" and not node.keeps_devices:
            kernel = _placed(kernel, frozenset(node.host), constants, settings.device)
        known = all(c is not None for c, i in zip(constants, inputs, strict=True) if i)
        if known and not implicit and proto.op_type not in _RANDOM and not node.keeps_devices:
            folded = self._fold(kernel, constants, proto, label)
            if folded is not None:
                for name, value in zip(proto.output, folded, strict=False):
                    if name:
                        self._set_constant(self._slot(name), value)
                return None
        every = (*inputs, *(self._resolve(name) for name in implicit))
        outputs = tuple(self._slot(name) if name else -1 for name in proto.output)
        return _Step(kernel, every, outputs, label)

    def _fold(
        self, kernel: Kernel, constants: Sequence[Tensor | None], proto: onnx.NodeProto, label: str
    ) -> list[Tensor] | None:
        """Results of a node with constant inputs, if they are small tensors (or a Constant's own value)."""
        sizes = [c.numel() * c.element_size() for c in constants if c is not None]
        if sum(sizes) > _FOLD_BYTES:
            return None
        results = _as_list(_call(kernel, constants, label), len(proto.output))
        for value in results:
            if not isinstance(value, torch.Tensor):
                return None
            if proto.op_type != "Constant" and value.numel() * value.element_size() > _FOLD_BYTES:
                return None
        return results

    def _body(self, proto: onnx.GraphProto, implicit: list[str]) -> Body:
        """Compile a nested graph; the names it captures become implicit inputs of its node."""
        graph = _Graph(
            proto, self.settings, [i.name for i in proto.input], [o.name for o in proto.output], self
        )
        for name in graph.captures:
            if name not in implicit:
                implicit.append(name)
        places = [(slot, implicit.index(name)) for name, slot in graph.captures.items()]

        def run(inputs: Sequence[Any], captured: Sequence[Any]) -> list[Any]:
            return graph.run(inputs, [(slot, captured[place]) for slot, place in places])

        return run

    def _with_frees(self, steps: list[_Step]) -> list[_Step]:
        kept = {0, *self.outputs, *self.constants}
        seen: set[int] = set()
        found: list[_Step] = []
        for step in reversed(steps):
            touched = {s for s in (*step.inputs, *step.outputs) if s > 0} - kept - seen
            seen |= touched
            found.append(_Step(step.kernel, step.inputs, step.outputs, step.label, tuple(sorted(touched))))
        return found[::-1]

    def run(self, inputs: Sequence[Any], captured: Iterable[tuple[int, Any]] = ()) -> list[Any]:
        """Values of the outputs."""
        slots = self.template.copy()
        for slot, value in zip(self.inputs, inputs, strict=True):
            slots[slot] = value
        for slot, value in captured:
            slots[slot] = value
        for step in self.steps:
            result = _call(step.kernel, [slots[i] for i in step.inputs], step.label)
            if len(step.outputs) == 1 and not isinstance(result, tuple):
                slots[step.outputs[0]] = result
            else:
                for slot, value in zip(step.outputs, result, strict=False):
                    if slot > 0:
                        slots[slot] = value
            for slot in step.frees:
                slots[slot] = None
        return [slots[i] for i in self.outputs]


def _as_list(result: Any, count: int) -> list[Any]:
    return list(result)[:count] if isinstance(result, tuple) else [result]


def _call(kernel: Callable[..., Any], values: Sequence[Any], label: str) -> Any:
    try:
        return kernel(*values)
    except FAILURES as error:
        raise BackendError(f"operator {label}: torch cannot run it: {error}") from error


class OnnxProgram:
    """An ONNX model compiled for one torch device.

    `inputs` and `outputs` fix the calling order. Initializers declared as external data are taken from
    `weights` by name and never from a file. A call gives tensors on `device` that may share memory
    with the inputs, the weights and each other. With `in_place` past keys and values are buffers with
    room, which GroupQueryAttention writes.
    """

    def __init__(
        self,
        program_payload: bytes,
        weights: Mapping[str, np.ndarray],
        inputs: Sequence[str],
        outputs: Sequence[str],
        device: torch.device,
        in_place: bool = False,
    ) -> None:
        model = onnx.ModelProto.FromString(program_payload)
        model = expand_functions(model)
        self.device = _exact_device(device)
        elems = {name: kind.tensor_type.elem_type for name, kind in value_types(model).items()}
        for name in inputs:
            if elems.get(name, 1) == _STRING:
                raise BackendError(
                    f"input {name}: torch backend has no string tensors; place its readers elsewhere"
                )
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        settings = _Settings(self.device, opset_versions(model), elems, weights, in_place)
        self._shared = settings.shared
        with torch.inference_mode():
            self._graph = _Graph(model.graph, settings, inputs, outputs)

    def __call__(self, tensors: Sequence[Any]) -> list[Any]:
        """Run once. Raises `BackendError`."""
        if len(tensors) != len(self.inputs):
            raise BackendError(f"an ONNX stage got {len(tensors)} tensors, expected {len(self.inputs)}")
        with torch.inference_mode():
            placed = [
                t if _stays_on_host(t) or not isinstance(t, torch.Tensor) else t.to(self.device)
                for t in tensors
            ]
            self._shared.clear()
            results = self._graph.run(placed)
            return [r.to(self.device) if isinstance(r, torch.Tensor) else r for r in results]


def _exact_device(device: torch.device) -> torch.device:
    """The device with its index, as tensors report it: `cuda` and `cuda:0` compare unequal."""
    if device.type == "cpu" or device.index is not None:
        return torch.device(device.type) if device.type == "cpu" else device
    return torch.empty(0, device=device).device
