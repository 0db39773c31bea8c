"""What one count says, and small readers of shapes and attributes that never raise.

A dimension that is not known counts as 1, and so does the size of a tensor of unknown rank; a missing or
ill-typed attribute takes its default. Counting a strange graph gives a small number, not a crash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from math import prod

from qeil_compile.devices.work import OperatorKind as Kind
from qeil_compile.ir import Op, OpGraph, TensorSpec

Shape = tuple[int, ...]
#: FLOPs, kind and extents, for the kinds of `devices.work.DIMS`.
Extent = tuple[float, Kind, Shape]
Work = tuple[float, Kind] | Extent
Rule = Callable[[Op, OpGraph], Work]

MOVE: Work = (0.0, "movement")


@dataclass(frozen=True, slots=True)
class OpCount:
    """Work and traffic of one operator that runs alone.

    `flops` [FLOP]: a multiply-add counts 2. `bytes_in`, `bytes_weights`, `bytes_out` [byte]: activations
    read, weights read at their stored width, results written. `known` is False where no rule exists or a trip
    count is not static: the bytes still count, and `unknown_report` names the operator. `dtype` is the type
    that the arithmetic runs in. `dims` are the extents that `devices.work.DIMS` names, () where it names none.
    """

    flops: float
    bytes_in: int
    bytes_weights: int
    bytes_out: int
    kind: Kind
    known: bool = True
    dtype: str = "float32"
    dims: Shape = ()

    @property
    def nbytes(self) -> int:
        """All bytes moved."""
        return self.bytes_in + self.bytes_weights + self.bytes_out

    def __add__(self, other: OpCount) -> OpCount:
        """Both one after the other; kind and dtype are those of the one with more FLOPs, then more bytes."""
        first = (self.flops, self.nbytes) >= (other.flops, other.nbytes)
        return OpCount(
            self.flops + other.flops,
            self.bytes_in + other.bytes_in,
            self.bytes_weights + other.bytes_weights,
            self.bytes_out + other.bytes_out,
            self.kind if first else other.kind,
            self.known and other.known,
            self.dtype if first else other.dtype,
            self.dims if first else other.dims,
        )

    def times(self, n: int) -> OpCount:
        """The same, n times over."""
        return OpCount(
            self.flops * n,
            self.bytes_in * n,
            self.bytes_weights * n,
            self.bytes_out * n,
            self.kind,
            self.known,
            self.dtype,
            self.dims,
        )


#: Start value for `sum`.
ZERO = OpCount(0.0, 0, 0, 0, "control")


def tensor(graph: OpGraph, names: tuple[str, ...], i: int) -> TensorSpec | None:
    """Description of the i-th name; None when it is omitted, out of range or not described."""
    return graph.tensors.get(names[i]) if -len(names) <= i < len(names) and names[i] else None


def dims(spec: TensorSpec | None) -> Shape:
    """The shape, with 1 for what is not known."""
    return tuple(1 if d is None else d for d in spec.shape or ()) if spec else ()


def ishape(op: Op, graph: OpGraph, i: int = 0) -> Shape:
    """Shape of input i."""
    return dims(tensor(graph, op.inputs, i))


def oshape(op: Op, graph: OpGraph, i: int = 0) -> Shape:
    """Shape of output i."""
    return dims(tensor(graph, op.outputs, i))


def isize(op: Op, graph: OpGraph, i: int = 0) -> int:
    """Elements of input i; 0 when it is omitted."""
    spec = tensor(graph, op.inputs, i)
    return spec.elements if spec else 0


def osize(op: Op, graph: OpGraph, i: int = 0) -> int:
    """Elements of output i; 0 when it is omitted."""
    spec = tensor(graph, op.outputs, i)
    return spec.elements if spec else 0


def at(shape: Shape, i: int, default: int = 1) -> int:
    """Dimension i, or the default when the rank is too small."""
    return shape[i] if -len(shape) <= i < len(shape) else default


def has(op: Op, graph: OpGraph, i: int) -> bool:
    """True when input i is given."""
    return tensor(graph, op.inputs, i) is not None


def int_of(op: Op, name: str, default: int = 0) -> int:
    """An integer attribute."""
    value = op.attributes.get(name)
    return int(value) if isinstance(value, int | float) else default


def positive(op: Op, name: str, default: int = 1) -> int:
    """An attribute that is a size: the default also stands for what is no size."""
    value = int_of(op, name)
    return value if value > 0 else default


def ints_of(op: Op, name: str) -> Shape:
    """A list of integers; a single number is a list of one."""
    value = op.attributes.get(name)
    if isinstance(value, int):
        return (value,)
    return tuple(v for v in value if isinstance(v, int)) if isinstance(value, list | tuple) else ()


def str_of(op: Op, name: str, default: str = "") -> str:
    """A text attribute."""
    value = op.attributes.get(name)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else default


def list_len(op: Op, name: str) -> int:
    """Length of a list attribute; 0 when it is missing."""
    value = op.attributes.get(name)
    return len(value) if isinstance(value, list | tuple) else 0


def nothing(kind: Kind) -> Rule:
    """No arithmetic at all."""
    return lambda op, graph: (0.0, kind)


def per_output(cost: float, kind: Kind = "elementwise") -> Rule:
    """`cost` FLOP per element of the first output."""
    return lambda op, graph: (cost * osize(op, graph), kind)


def per_input(cost: float, per_result: float = 0.0, kind: Kind = "reduce") -> Rule:
    """`cost` FLOP per element of the first input and `per_result` per element of the first output."""

    def rule(op: Op, graph: OpGraph) -> Work:
        flops = cost * isize(op, graph) + per_result * osize(op, graph)
        return (flops, kind, reduced(ishape(op, graph), oshape(op, graph))) if kind == "reduce" else (flops, kind)

    return rule


def runs(op: Op, graph: OpGraph) -> Work:
    """A copy that keeps the order of the elements along its last axes: Concat, Slice, Split, Pad.

    Runs are counted on the smaller side, up to the last axis in which the two differ.
    """
    sides = [s for s in (ishape(op, graph), oshape(op, graph)) if s]
    small, large = min(sides, key=prod, default=()), max(sides, key=prod, default=())
    if len(small) != len(large):
        return MOVE
    last = max((i for i, (a, b) in enumerate(zip(small, large, strict=True)) if a != b), default=0)
    return 0.0, "movement", (prod(small[:last]), prod(small[last:]))


def transposed(op: Op, graph: OpGraph) -> Work:
    """A copy that moves axes: those at the end that keep their place are copied as one run."""
    data = ishape(op, graph)
    order = ints_of(op, "perm") or ints_of(op, "dims") or tuple(reversed(range(len(data))))
    run = 1
    for axis in reversed(range(len(data))):
        if at(order, axis, -1) % max(1, len(data)) != axis:
            break
        run *= data[axis]
    return 0.0, "movement", (prod(data) // max(1, run), run)


def reduced(data: Shape, result: Shape) -> Shape:
    """Elements before, along and after the reduced axes, read off the shapes: those axes are kept as 1, or dropped.

    Axes between two reduced ones count as reduced. Where several axes may have been dropped the last ones are taken.
    """
    if len(data) == len(result):
        axes = [i for i, (a, b) in enumerate(zip(data, result, strict=True)) if a != b]
    else:
        choices = list(combinations(range(len(data)), max(0, len(data) - len(result))))
        fits = (c for c in reversed(choices) if tuple(d for i, d in enumerate(data) if i not in c) == result)
        axes = list(next(fits, ()))
    if not axes:
        return prod(data), 1, 1
    first, last = axes[0], axes[-1] + 1
    return prod(data[:first]), prod(data[first:last]), prod(data[last:])


def table(prefix: str, *rows: tuple[Rule, str]) -> dict[str, Rule]:
    """Rows of (rule, names) as "PREFIX.NAME" -> rule."""
    return {f"{prefix}.{name}": rule for rule, names in rows for name in names.split()}


def spread(*rows: tuple[float, str]) -> dict[str, float]:
    """Rows of (cost, names) as name -> cost."""
    return {name: cost for cost, names in rows for name in names.split()}
