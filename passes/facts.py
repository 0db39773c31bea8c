"""What the fusion rules ask about a graph, worked out once for all engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qeil_compile.ir import OpGraph
from qeil_compile.passes.count import OpCount
from qeil_compile.passes.count.base import dims, ints_of, tensor
from qeil_compile.passes.count.traffic import is_view
from qeil_compile.passes.fusion_rules import family, names

#: Families with another result in each run: never folded.
_RANDOM = names(
    """rand randn rand_like randn_like randint randint_like randperm bernoulli normal uniform exponential multinomial
    randomnormal randomnormallike randomuniform randomuniformlike native_dropout"""
)


class Facts:
    """Families, readers, and what hangs on weights alone.

    Per operator: `families`; `sources` and `live`, the (tensor, writer) pairs that it reads, without weights and also
    without what hangs on weights alone (writer -1: an input of the graph); `readers` of what it computes in a run;
    `constant`, `views`, `escapes` (writes an output of the graph). `twin` maps an operator to an equal one.
    """

    def __init__(self, graph: OpGraph, counts: Sequence[OpCount]) -> None:
        self.graph, self.counts = graph, counts
        producer, tensors = graph.producer, graph.tensors
        self.sources = [
            [(t, producer.get(t, -1)) for t in dict.fromkeys(op.inputs) if t and tensors[t].role != "weight"]
            for op in graph.ops
        ]
        #: What the dialect itself calls a view.
        self.views = [is_view(op, graph) for op in graph.ops]
        self.constant: list[bool] = []
        self.families: list[str] = []
        for i, op in enumerate(graph.ops):
            name = family(op)
            hangs = all(p >= 0 and self.constant[p] for _, p in self.sources[i])
            self.constant.append(hangs and name not in _RANDOM and not op.body)
            self.families.append(self._refined(i, name))
        #: The tensors that are computed in a run, with the operators that write them (-1: an input).
        self.live = [[(t, p) for t, p in s if p < 0 or not self.constant[p]] for s in self.sources]
        self.readers: list[list[int]] = [[] for _ in graph.ops]
        for i, live in enumerate(self.live):
            for p in dict.fromkeys(p for _, p in live if p >= 0):
                self.readers[p].append(i)
        self.twin = self._twins()
        final = set(graph.outputs)
        self.escapes = [any(t in final for t in op.outputs) for op in graph.ops]

    def _twins(self) -> dict[int, int]:
        """Operator -> an earlier one that computes the same."""
        first: dict[Any, int] = {}
        found: dict[int, int] = {}
        consumers, producer = self.graph.consumers, self.graph.producer
        doubled: set[int] = set()
        for i, op in enumerate(self.graph.ops):
            if not any(t and (len(consumers[t]) > 1 or producer.get(t) in doubled) for t in op.inputs):
                continue
            if op.body or self.families[i] in _RANDOM or op.type.endswith("_") or not op.outputs:
                continue
            inputs = tuple(self._value(t, found) for t in op.inputs)
            key = (op.type, inputs, len(op.outputs), repr(op.attributes))
            if first.setdefault(key, i) != i:
                found[i] = first[key]
                doubled |= {i, first[key]}
        return found

    def _value(self, name: str, twins: dict[int, int]) -> str:
        """The name under which a tensor was computed first."""
        i = self.graph.producer.get(name, -1)
        if i not in twins:
            return name
        return self.graph.ops[twins[i]].outputs[self.graph.ops[i].outputs.index(name)]

    def _refined(self, i: int, name: str) -> str:
        """Families that depend on shapes: what changes nothing is an identity, what moves no element a reshape."""
        op, graph = self.graph.ops[i], self.graph
        if name in ("slice", "expand", "cast", "transpose"):
            before, after = tensor(graph, op.inputs, 0), tensor(graph, op.outputs, 0)
            same = before is not None and after is not None and before.dtype == after.dtype
            if same and name != "transpose" and dims(before) == dims(after):
                # Whether the end of a slice is open cannot be seen here; over several axes it rarely is.
                several = name == "slice" and dims(tensor(graph, op.inputs, 2)) not in ((), (1,))
                return "slice" if several else "identity"
            if name == "transpose" and self._keeps_order(i):
                return "reshape"
        if name == "gather" and (index := tensor(graph, op.inputs, 1)) and index.role == "weight":
            return "select" if index.shape == () else name
        if name == "linear" and len(op.inputs) > 2 and len(self.shape(i)) == 2:
            return "gemm"
        return name

    def shape(self, i: int) -> tuple[int, ...]:
        """Shape of the first input of operator i."""
        return dims(tensor(self.graph, self.graph.ops[i].inputs, 0))

    def out_bytes(self, i: int) -> int:
        """Bytes of what operator i writes."""
        return sum(self.graph.tensors[t].nbytes for t in self.graph.ops[i].outputs if t)

    def order(self, i: int) -> tuple[int, ...]:
        """The permutation of a transpose; () where it is not known."""
        op, rank = self.graph.ops[i], len(self.shape(i))
        given = ints_of(op, "perm") or ints_of(op, "dims")
        if not given and op.type.startswith("onnx."):
            return tuple(reversed(range(rank)))
        if not given and (dim := ints_of(op, "dim0")) and rank:
            a, b = dim[0] % rank, (ints_of(op, "dim1") or (0,))[0] % rank
            given = tuple(b if k == a else a if k == b else k for k in range(rank))
        return tuple(g % rank for g in given) if len(given) == rank else ()

    def outermost(self, i: int) -> bool:
        """Whether operator i works along the first axis that is longer than 1: its parts lie side by side."""
        op, shape = self.graph.ops[i], self.shape(i)
        axis = (ints_of(op, "axis") or ints_of(op, "dim") or (0,))[0]
        return all(d == 1 for d in shape[: axis % max(1, len(shape))])

    def _keeps_order(self, i: int) -> bool:
        shape, order = self.shape(i), self.order(i)
        moved = [d for d in order if shape[d] != 1]
        return bool(order) and moved == sorted(moved)
