"""One small operator graph for FX and ONNX models.

An `OpGraph` lists operators in topological order, with the shape, dtype and byte count of every
tensor. An `Op` keeps the name of its source node, so that lowering can cut the *source's own* form
(FX sub-graph, ONNX sub-model): the graph itself is never executed and needs no code generator.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, Literal, get_args

from .errors import InputError, ModelError
from .untrusted import elements

#: More than any dimension of a tensor that fits into a memory.
_LARGEST_DIM = 1 << 40
Role = Literal["input", "weight", "activation"]
Dialect = Literal["fx", "onnx"]

#: Stored width of one element in bytes. "opaque" values (sequences, optionals, symbolic integers)
#: have no tensor form: they never cross a stage boundary.
DTYPE_BYTES: Mapping[str, float] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn": 0.5,
    "complex64": 8,
    "complex128": 16,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "int4": 0.5,
    "int2": 0.25,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "uint4": 0.5,
    "uint2": 0.25,
    "bool": 1,
    "string": 16,
    "opaque": 0,
}


def text(value: Any) -> str:
    """The value, if it is a string; `TypeError` otherwise. For what `from_json` methods read."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    return value


def strings(values: Any) -> list[str]:
    """The values, if they are a list of strings; `TypeError` otherwise."""
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{values!r:.60} is no list")
    return [text(v) for v in values]


def mapping(value: Any) -> Mapping[str, Any]:
    """The value, if it is a JSON object; `TypeError` otherwise."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{value!r:.60} is no object")
    return value


def _dims(values: Any) -> tuple[int | None, ...] | None:
    if values is None:
        return None
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{values!r:.60} is no shape")
    elements([1 if d is None else d for d in values])
    return tuple(values)


def _one_of(value: Any, known: Iterable[Any]) -> Any:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{value!r:.60} is none of {', '.join(known)}")
    return value


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape, dtype and role of one tensor.

    A dimension of `None` is known only at run time (data-dependent); `shape` itself is `None` when
    not even the rank is known. `seen` is then the shape that the sample run had: it prices the tensor
    and is never promised to an engine.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str
    role: Role
    seen: tuple[int, ...] | None = None

    @property
    def is_static(self) -> bool:
        """True when every dimension is a number."""
        return self.shape is not None and None not in self.shape

    @property
    def is_tensor(self) -> bool:
        """False for sequences, optionals and symbolic integers: they cannot cross a stage boundary."""
        return self.dtype != "opaque"

    @property
    def elements(self) -> int:
        """Number of elements; an unknown dimension counts as seen, or else as 1."""
        return prod(d if d is not None else 1 for d in (self.seen if self.seen is not None else self.shape) or ())

    @property
    def nbytes(self) -> int:
        """Stored size [byte]; packed 4-bit types take half a byte an element, rounded up."""
        return -int(-self.elements * DTYPE_BYTES[self.dtype] // 1)


@dataclass(frozen=True, slots=True)
class Op:
    """One operator.

    `type` is the source's own name: `aten.linear.default`, `onnx.Conv`, `com.microsoft.MatMulNBits`.
    `inputs` are tensor names in the order of the source (an omitted optional input is ""); `attributes`
    holds everything that is not a tensor, in JSON types. For FX operators `attributes` maps the
    schema's argument names to literals, and `attributes["#inputs"]` lists the argument names of `inputs`.
    `body` lists the operators of nested graphs (both branches of an If) for counting and reporting.
    """

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    scope: str = ""
    body: tuple[OpGraph, ...] = ()

    @property
    def short_type(self) -> str:
        """The type without its name space and overload: `linear`, `Conv`."""
        parts = self.type.split(".")
        return parts[1] if parts[0] == "aten" and len(parts) > 1 else parts[-1]


@dataclass(frozen=True)
class OpGraph:
    """Operators in topological order over named tensors."""

    name: str
    dialect: Dialect
    ops: tuple[Op, ...]
    tensors: Mapping[str, TensorSpec]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    #: Opset version of each operator domain (ONNX), for count rules and op tables.
    opsets: Mapping[str, int] = field(default_factory=dict)
    #: One tensor name per returned value, in order; differs from `outputs` when a tensor is returned twice.
    results: tuple[str, ...] = ()
    #: Inputs and outputs that stay on the device that runs them from one run to the next: a decoder's cache.
    states: frozenset[str] = frozenset()

    @cached_property
    def producer(self) -> dict[str, int]:
        """Tensor name -> index of the operator that writes it."""
        return {t: i for i, op in enumerate(self.ops) for t in op.outputs if t}

    @cached_property
    def consumers(self) -> dict[str, list[int]]:
        """Tensor name -> indices of the operators that read it, each once, in order."""
        found: dict[str, list[int]] = {}
        for i, op in enumerate(self.ops):
            for t in dict.fromkeys(op.inputs):
                if t:
                    found.setdefault(t, []).append(i)
        return found

    @cached_property
    def index(self) -> dict[str, int]:
        """Operator name -> position."""
        return {op.name: i for i, op in enumerate(self.ops)}

    def priced(self) -> OpGraph:
        """The same graph with unknown shapes replaced by the seen ones, for counting."""
        tensors = {n: t if t.seen is None else replace(t, shape=t.seen) for n, t in self.tensors.items()}
        return replace(self, tensors=tensors)

    @property
    def result_names(self) -> tuple[str, ...]:
        """One tensor name per returned value, in order."""
        return self.results or self.outputs

    @property
    def weights(self) -> list[str]:
        """Names of the weight tensors, in order of declaration."""
        return [n for n, t in self.tensors.items() if t.role == "weight"]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, each counted once."""
        return sum(self.tensors[n].nbytes for n in self.weights)

    def check(self) -> None:
        """Raise `ModelError` if the graph breaks an invariant (order, names, producers)."""
        seen = {n for n, t in self.tensors.items() if t.role != "activation"}
        if not self.ops or not self.outputs:
            missing = "operator" if not self.ops else "output tensor"
            raise ModelError(f"graph {self.name}: has no {missing}; there is nothing to compile")
        if len(self.index) != len(self.ops):
            raise ModelError(f"graph {self.name}: two operators share one name")
        for kind, names in (("input", self.inputs), ("output", self.outputs)):
            if len(set(names)) != len(names):
                raise ModelError(f"graph {self.name}: lists {len(names)} {kind}s by {len(set(names))} names")
        for op in self.ops:
            for t in op.inputs:
                if t and t not in seen:
                    raise ModelError(f"graph {self.name}: operator {op.name} reads {t} before it is written")
            for t in op.outputs:
                if not t:
                    continue
                if t in seen:
                    raise ModelError(f"graph {self.name}: operator {op.name} writes {t} a second time")
                if t not in self.tensors:
                    raise ModelError(f"graph {self.name}: tensor {t} of operator {op.name} has no description")
                seen.add(t)
        for t in self.inputs:
            if t not in self.tensors or self.tensors[t].role != "input":
                raise ModelError(f"graph {self.name}: input {t} is not described as one")
        if not set(self.results) <= set(self.outputs):
            raise ModelError(f"graph {self.name}: returns {set(self.results) - set(self.outputs)}, which is no output")
        for t in self.outputs:
            if t not in seen:
                raise ModelError(f"graph {self.name}: output {t} is written by no operator")

    def as_text(self) -> str:
        """A readable listing: one line per operator."""
        show = self._show
        lines = [f"graph {self.name} ({self.dialect}), {len(self.ops)} operators, {self.weight_bytes} weight bytes"]
        lines += [f"  input  {show(t)}" for t in self.inputs]
        for op in self.ops:
            outs = ", ".join(show(t) for t in op.outputs if t)
            lines.append(f"  {op.name}: {outs} = {op.type}({', '.join(op.inputs)})")
        lines += [f"  output {show(t)}" for t in self.outputs]
        return "\n".join(lines)

    def _show(self, name: str) -> str:
        t = self.tensors[name]
        dims = "?" if t.shape is None else "x".join("?" if d is None else str(d) for d in t.shape)
        return f"{name}:{t.dtype}[{dims}]"

    def to_json(self) -> dict[str, Any]:
        """Stable JSON form, read back by `from_json`."""
        return {
            "name": self.name,
            "dialect": self.dialect,
            "opsets": dict(self.opsets),
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "results": list(self.results),
            "tensors": [
                {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(t).items()}
                for t in self.tensors.values()
            ],
            "ops": [
                {
                    "name": op.name,
                    "type": op.type,
                    "inputs": list(op.inputs),
                    "outputs": list(op.outputs),
                    "attributes": json.loads(json.dumps(dict(op.attributes), default=str)),
                    "scope": op.scope,
                    "body": [b.to_json() for b in op.body],
                }
                for op in self.ops
            ],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> OpGraph:
        """Rebuild a graph from `to_json`. Raises `KeyError`, `TypeError` or `ValueError` on anything else."""
        tensors = {
            t["name"]: TensorSpec(
                text(t["name"]),
                _dims(t["shape"]),
                _one_of(t["dtype"], DTYPE_BYTES),
                _one_of(t["role"], get_args(Role)),
                _dims(t["seen"]),  # type: ignore[arg-type]
            )
            for t in data["tensors"]
        }
        ops = tuple(
            Op(
                text(o["name"]),
                text(o["type"]),
                tuple(strings(o["inputs"])),
                tuple(strings(o["outputs"])),
                mapping(o["attributes"]),
                text(o["scope"]),
                tuple(OpGraph.from_json(b) for b in o["body"]),
            )
            for o in data["ops"]
        )
        return OpGraph(
            text(data["name"]),
            _one_of(data["dialect"], get_args(Dialect)),
            ops,
            tensors,
            tuple(strings(data["inputs"])),
            tuple(strings(data["outputs"])),
            mapping(data["opsets"]),
            tuple(strings(data["results"])),
        )


@dataclass(frozen=True, slots=True)
class OpGroup:
    """Operators that one engine runs as one kernel: the unit of pricing and placement.

    `ops` are indices into `OpGraph.ops`, ascending.
    """

    index: int
    ops: tuple[int, ...]


@dataclass(frozen=True)
class GroupGraph:
    """Groups in topological order; every operator is in exactly one group, and the quotient is acyclic."""

    graph: OpGraph
    groups: tuple[OpGroup, ...]

    @cached_property
    def group_of(self) -> list[int]:
        """Operator index -> group index."""
        owner = [-1] * len(self.graph.ops)
        for g in self.groups:
            for i in g.ops:
                owner[i] = g.index
        return owner

    def inputs_of(self, ops: Iterable[int]) -> list[str]:
        """Tensors (not weights) read by these operators and not written by them, in order of first use."""
        chosen = set(ops)
        found: dict[str, None] = {}
        for i in sorted(chosen):
            for t in self.graph.ops[i].inputs:
                if t and self.graph.tensors[t].role != "weight" and self.graph.producer.get(t) not in chosen:
                    found[t] = None
        return list(found)

    def weights_of(self, ops: Iterable[int]) -> list[str]:
        """Weight tensors read by these operators, each once."""
        found: dict[str, None] = {}
        for i in sorted(set(ops)):
            for t in self.graph.ops[i].inputs:
                if t and self.graph.tensors[t].role == "weight":
                    found[t] = None
        return list(found)

    def outputs_of(self, ops: Iterable[int]) -> list[str]:
        """Tensors written by these operators and read outside them, or outputs of the graph."""
        chosen = set(ops)
        final = set(self.graph.outputs)
        return [
            t
            for i in sorted(chosen)
            for t in self.graph.ops[i].outputs
            if t and (t in final or any(c not in chosen for c in self.graph.consumers.get(t, ())))
        ]

    @cached_property
    def edges(self) -> list[tuple[int, int, str]]:
        """(producer group, consumer group, tensor), for tensors that cross groups; each triple once."""
        owner, graph = self.group_of, self.graph
        found: dict[tuple[int, int, str], None] = {}
        for t, i in graph.producer.items():
            for c in graph.consumers.get(t, ()):
                if owner[i] != owner[c]:
                    found[(owner[i], owner[c], t)] = None
        return list(found)


@dataclass(frozen=True)
class Workload:
    """What one run looks like: numbers for the dynamic dimensions, by symbol (`batch`) or `input.axis` (`x.0`)."""

    dims: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.dims.items():
            if not 1 <= value <= _LARGEST_DIM:
                raise InputError(
                    f"dimension {name}: found {value}, expected a number from 1 to {_LARGEST_DIM}; correct --dim"
                )

    def bind(self, tensor: str, axis: int, symbol: str | None) -> int | None:
        """The number bound to axis `axis` of input `tensor`, by its symbol or by position; None if unbound."""
        by_axis = self.dims.get(f"{tensor}.{axis}")
        return by_axis if by_axis is not None else self.dims.get(symbol) if symbol else None

    def to_json(self) -> dict[str, Any]:
        """Stable JSON form."""
        return {"dims": dict(sorted(self.dims.items()))}


def topological_order(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Kahn's order of `count` nodes, smallest index first among the ready ones; raises `ModelError` on a cycle."""
    import heapq

    waiting = [0] * count
    after: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:
        after[a].append(b)
        waiting[b] += 1
    ready = [i for i in range(count) if not waiting[i]]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for j in after[i]:
            waiting[j] -= 1
            if not waiting[j]:
                heapq.heappush(ready, j)
    if len(order) != count:
        raise ModelError(f"a graph of {count} nodes has a cycle through {count - len(order)} of them")
    return order
