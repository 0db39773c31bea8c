"""The kernels of one engine as a table to price: work, bytes across each border, extents of the main operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from qeil_compile.devices.work import KernelTable, OperatorKind
from qeil_compile.ir import GroupGraph, Op
from qeil_compile.passes.count import OpCount, count
from qeil_compile.passes.count.control import BRANCHES, branches, chosen, control_name, nested
from qeil_compile.passes.count.traffic import is_weight, reads, sources
from qeil_compile.passes.facts import Facts
from qeil_compile.passes.fusion_rules import DEFAULT, RULES, FusionRules
from qeil_compile.passes.match import Match

#: kind, extents, dtype, type, FLOP, bytes in, of weights, out, of the graph's inputs and outputs (all, from the caller,
#: to the caller), FLOP of the main operator's type, group.
Row = tuple[
    OperatorKind, tuple[int, ...], str, str, float, float, float, float, tuple[float, float, float], float, int
]  # fmt: skip
#: No input and no output of the graph.
_NO_ENDS = (0.0, 0.0, 0.0)


def kernel_table(groups: GroupGraph, counts: Sequence[OpCount], engine: str) -> KernelTable:
    """The kernels that `engine` runs for the whole graph, each within one group (a border cuts what it crosses).

    FLOPs are summed; bytes are those that cross the kernel's border, weights once. What costs the engine nothing has
    no row. A view that an engine runs as a kernel of its own has a row without bytes, and so have the copies
    that it adds (reorders between layouts) with theirs. A branch is a launch and the kernels of the graph inside that
    counts. Rows are ordered by group.
    """
    return kernel_tables(groups, counts, (engine,))[engine]


def kernel_tables(groups: GroupGraph, counts: Sequence[OpCount], engines: Iterable[str]) -> dict[str, KernelTable]:
    """`kernel_table` of several engines by name; what they share is worked out once."""
    facts = Facts(groups.graph, counts)
    return {engine: _kernel_table(groups, facts, RULES.get(engine, DEFAULT)) for engine in engines}


def _kernel_table(groups: GroupGraph, facts: Facts, rules: FusionRules) -> KernelTable:
    rows = _rows(facts, rules, groups.group_of)
    rows.sort(key=lambda row: row[-1])
    return _table(rows)


def _rows(facts: Facts, rules: FusionRules, owner: Sequence[int]) -> list[Row]:
    match = Match(facts, rules)
    match.run()
    border, counts = _Border(match), facts.counts
    rows: list[Row] = []
    for kernel in match.kernels():
        if kernel.free:
            continue
        for part in _parts(kernel.ops, owner):
            branch = next((i for i in part if _is_branch(facts.graph.ops[i])), None)
            if branch is None:
                rows.append(border.row(part, owner[part[0]]))
            else:
                rows += _inside(facts, rules, branch, owner[branch])
        group = owner[kernel.anchor]
        rows += [_added(*extra, counts[kernel.anchor].dtype, group) for extra in kernel.extra]
    return rows


def _is_branch(op: Op) -> bool:
    return bool(op.body) and control_name(op) in BRANCHES


def _inside(facts: Facts, rules: FusionRules, i: int, group: int) -> list[Row]:
    """A branch is a launch, and the kernels of the graph that counts; loops stay one row."""
    op, graph = facts.graph.ops[i], facts.graph
    body = nested(op, graph)[chosen(op, graph, branches(op, graph, count))]
    launch: Row = ("control", (), facts.counts[i].dtype, op.short_type, 0.0, 0.0, 0.0, 0.0, _NO_ENDS, 0.0, group)
    inner = _rows(Facts(body, count(body)), rules, [group] * len(body.ops))
    # What goes in and out of a branch is no input or output of the whole.
    return [launch, *((*row[:8], _NO_ENDS, *row[9:]) for row in inner)]


def _parts(ops: Sequence[int], owner: Sequence[int]) -> Iterable[list[int]]:
    parts: dict[int, list[int]] = {}
    for i in ops:
        parts.setdefault(owner[i], []).append(i)
    return parts.values()


def _added(name: str, size: int, run: int, dtype: str, group: int) -> Row:
    # An added transpose swaps the last two axes: no two elements stay neighbours.
    run = 1 if name == "Transpose" else run
    extents = (size // (4 * run), run) if run else ()
    return "movement", extents, dtype, name, 0.0, float(size), 0.0, float(size), _NO_ENDS, 0.0, group


def _table(rows: Sequence[Row]) -> KernelTable:
    def numbers(k: int) -> np.ndarray:
        return np.array([row[k] for row in rows], dtype=float)

    ends, entering, leaving = np.array([row[8] for row in rows], dtype=float).reshape(-1, 3).T
    return KernelTable(
        tuple(row[0] for row in rows),
        tuple(row[1] for row in rows),
        tuple(row[2] for row in rows),
        tuple(row[3] for row in rows),
        numbers(4),
        numbers(5),
        numbers(6),
        numbers(7),
        np.array([row[10] for row in rows], dtype=np.int64),
        ends,
        entering,
        leaving,
        numbers(9),
    )


class _Border:
    """What crosses the border of a set of operators, in the eyes of one engine."""

    def __init__(self, match: Match) -> None:
        self.graph, self.counts = match.facts.graph, match.facts.counts
        every = range(len(self.graph.ops))
        self.entering = {t for t in self.graph.inputs if not is_weight(self.graph, t)}
        self.views = [match.is_view(i) for i in every]
        self.source = sources(self.graph, self.views)
        self.folded = [match.folded(i) for i in every]
        # What the dialect calls a view, this engine copies.
        self.copies = [own and not view for own, view in zip(match.facts.views, self.views, strict=True)]
        self.readers: dict[str, set[int]] = {}
        self.reads = [self._reads(i) for i in every]
        for i, found in enumerate(self.reads):
            for name, _ in found:
                self.readers.setdefault(name, set()).add(i)
        # Who reads an input after another finds what that one left behind.
        self.first = {name: min(found) for name, found in self.readers.items() if name in self.entering}
        self.leaving = {self.source.get(name, name) for name in self.graph.outputs}
        for name in self.leaving:
            self.readers.setdefault(name, set()).add(-1)

    def _reads(self, i: int) -> list[tuple[str, int]]:
        if self.views[i]:
            return []
        op = self.graph.ops[i]
        found = reads(op, self.graph, self.source)
        if self.copies[i] and found:
            found = [(found[0][0], min(found[0][1], self._size(i)))]
        return found

    def _size(self, i: int) -> int:
        return sum(self.graph.tensors[t].nbytes for t in self.graph.ops[i].outputs if t)

    def row(self, ops: Sequence[int], group: int) -> Row:
        """The row of these operators as one kernel."""
        inside = set(ops)
        read: dict[str, int] = {}
        for i in ops:
            for name, size in self.reads[i]:
                if self.graph.producer.get(name) not in inside:
                    read[name] = max(size, read.get(name, 0))
        weights = sum(size for name, size in read.items() if self._held(name))
        written = sum(self._written(i, inside) for i in ops)
        entering = {n: size for n, size in read.items() if self.first.get(n, -1) in inside}
        leaving = {
            t: self.graph.tensors[t].nbytes for i in ops for t in self.graph.ops[i].outputs if t in self.leaving
        }
        # An update in place writes less than the whole.
        ends = (
            float(sum(entering.values()) + min(written, sum(leaving.values()))), self._moved(entering),
            min(float(written), self._moved(leaving)),
        )  # fmt: skip
        main = max(ops, key=lambda i: (self.counts[i].flops, self.counts[i].nbytes, -i))
        count = self.counts[main]
        flops = sum(self.counts[i].flops for i in ops)
        kind = self.graph.ops[main].short_type
        alike = sum(self.counts[i].flops for i in ops if self.graph.ops[i].short_type == kind)
        return (
            count.kind, count.dims, count.dtype, kind, flops,
            float(sum(read.values()) - weights), float(weights), float(written), ends, alike, group,
        )  # fmt: skip

    def _moved(self, ends: Mapping[str, int]) -> float:
        """Bytes from or to the caller; states stay where they are."""
        return float(sum(size for name, size in ends.items() if name not in self.graph.states))

    def _held(self, name: str) -> bool:
        """A weight, or what the engine computed from weights before the run."""
        producer = self.graph.producer.get(name, -1)
        return is_weight(self.graph, name) or (producer >= 0 and self.folded[producer])

    def _written(self, i: int, inside: set[int]) -> int:
        if self.views[i]:
            return 0
        names = [t for t in self.graph.ops[i].outputs if t]
        leaving = [t for t in names if not (r := self.readers.get(t)) or not r <= inside]
        total = self._size(i) if self.copies[i] else self.counts[i].bytes_out
        if len(leaving) == len(names):
            return total
        return min(total, sum(self.graph.tensors[t].nbytes for t in leaving))
