"""Group operators that an engine runs as one kernel: the units of pricing and placement.

Two rules. Values that are no tensors (sequences, optionals, symbolic sizes) bind writer and readers into
one group, because only tensors cross a stage boundary. A group whose outputs all go to one other group
joins it when the reader is an epilogue (element-wise, view, normalisation of what was just computed) or
the group itself only prepares operands (views, constants). Joining along such an edge cannot close a
cycle: every path that leaves the group enters that one reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx

from qeil_compile.ir import GroupGraph, OpGraph, OpGroup, topological_order
from qeil_compile.passes.count import OpCount

#: Kinds (see `count`) that engines compute inside the kernel of their producer.
_EPILOGUE = frozenset({"elementwise", "movement"})
#: Kinds that start a kernel of their own.
_ANCHOR = frozenset({"gemm", "gemv", "conv", "attention", "recurrent", "control", "sort", "other"})


@dataclass(frozen=True)
class FuseSettings:
    """`enabled` False keeps every operator alone, save for values that are no tensors."""

    enabled: bool = True
    #: Engines rarely keep longer runs in one kernel.
    max_ops: int = 12


def fuse(
    graph: OpGraph,
    counts: Sequence[OpCount],
    labels: Sequence[str] | None = None,
    settings: FuseSettings | None = None,
) -> GroupGraph:
    """Groups in topological order. Operators with different `labels` (pins) never share a group by fusion."""
    settings = settings or FuseSettings()
    labels = labels or [""] * len(graph.ops)
    groups = _Groups(graph)
    _bind_opaque(graph, groups)
    if settings.enabled:
        _join_epilogues(graph, counts, labels, groups, settings.max_ops)
    return _ordered(graph, groups)


class _Groups:
    """Union-find over operators with the group's members."""

    def __init__(self, graph: OpGraph) -> None:
        self.parent = list(range(len(graph.ops)))
        self.members = {i: [i] for i in range(len(graph.ops))}

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def join(self, a: int, b: int) -> int:
        a, b = self.find(a), self.find(b)
        if a != b:
            self.parent[a] = b
            self.members[b] += self.members.pop(a)
        return b


def _bind_opaque(graph: OpGraph, groups: _Groups) -> None:
    bound = False
    for tensor, writer in graph.producer.items():
        if not graph.tensors[tensor].is_tensor:
            for reader in graph.consumers.get(tensor, ()):
                groups.join(writer, reader)
                bound = True
    if not bound:
        return
    # Binding may have closed cycles through other operators: those belong to the group as well.
    quotient = nx.DiGraph()
    quotient.add_nodes_from(groups.members)
    for tensor, writer in graph.producer.items():
        for reader in graph.consumers.get(tensor, ()):
            quotient.add_edge(groups.find(writer), groups.find(reader))
    for component in nx.strongly_connected_components(quotient):
        first, *rest = component
        for other in rest:
            groups.join(other, first)


def _join_epilogues(
    graph: OpGraph, counts: Sequence[OpCount], labels: Sequence[str], groups: _Groups, max_ops: int
) -> None:
    final = set(graph.outputs)
    for i in range(len(graph.ops)):
        group = groups.find(i)
        outside: set[int] = set()
        escapes = False
        for member in groups.members[group]:
            for t in graph.ops[member].outputs:
                escapes |= t in final
                outside |= {groups.find(c) for c in graph.consumers.get(t, ()) if groups.find(c) != group}
        if escapes or len(outside) != 1:
            continue
        (reader,) = outside
        if len(groups.members[group]) + len(groups.members[reader]) > max_ops or labels[i] != labels[reader]:
            continue
        head = min(groups.members[reader])
        prepares = counts[i].kind == "movement" and len(groups.members[group]) == 1
        follows = counts[head].kind in _EPILOGUE and len(groups.members[reader]) == 1
        if (prepares or follows) and not _two_anchors(counts, groups, group, reader):
            groups.join(group, reader)


def _two_anchors(counts: Sequence[OpCount], groups: _Groups, a: int, b: int) -> bool:
    return all(any(counts[m].kind in _ANCHOR for m in groups.members[g]) for g in (a, b))


def _ordered(graph: OpGraph, groups: _Groups) -> GroupGraph:
    roots = sorted(groups.members, key=lambda r: min(groups.members[r]))
    position = {r: k for k, r in enumerate(roots)}
    edges = {
        (position[groups.find(w)], position[groups.find(c)])
        for t, w in graph.producer.items()
        for c in graph.consumers.get(t, ())
    }
    order = topological_order(len(roots), [(a, b) for a, b in edges if a != b])
    return GroupGraph(
        graph, tuple(OpGroup(k, tuple(sorted(groups.members[roots[r]]))) for k, r in enumerate(order))
    )
