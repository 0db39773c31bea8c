"""Placement groups: the finest groups whose borders cut no kernel of any engine, as far as they stay small.

What an engine runs as one kernel is told by `passes.match`. Here the kernels of all engines are joined, so that a
plan may put any group on any engine and the engine still fuses what it would fuse in the whole model. Three rules
besides: values that are no tensors (sequences, optionals, symbolic sizes) bind writer and readers, because
only tensors cross a stage boundary; what costs no engine anything (views, constants) joins what it belongs to;
and a chain of overlapping kernels is cut at its smallest tensors when it would grow past `max_ops`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qeil_compile.ir import GroupGraph, OpGraph
from qeil_compile.passes.count import OpCount
from qeil_compile.passes.facts import Facts
from qeil_compile.passes.fusion_rules import RULES
from qeil_compile.passes.groups import Groups
from qeil_compile.passes.match import Kernel, kernels, kernels_of

__all__ = ["FuseSettings", "Kernel", "fuse", "kernels"]

Link = tuple[int, int, int]


@dataclass(frozen=True)
class FuseSettings:
    """`enabled` False keeps every operator alone, save for values that are no tensors.

    `max_ops` bounds the operators of a group, not counting those that cost nothing.
    """

    enabled: bool = True
    max_ops: int = 12


def fuse(
    graph: OpGraph,
    counts: Sequence[OpCount],
    labels: Sequence[str] | None = None,
    settings: FuseSettings | None = None,
) -> GroupGraph:
    """Groups in topological order. Operators with different `labels` (pins) never share a group by fusion."""
    settings = settings or FuseSettings()
    groups = _bound(graph)
    if not settings.enabled:
        return groups.graph(graph)
    labels = labels or [""] * len(graph.ops)
    facts = Facts(graph, counts)
    weight = [int(c.nbytes > 0 or c.flops > 0) for c in counts]
    for a, b, _ in sorted(_links(facts), key=lambda link: -link[2]):
        _try_join(groups, a, b, labels, weight, settings.max_ops)
    for i in range(len(graph.ops)):
        if not weight[i] or facts.constant[i]:
            _attach(graph, groups, i, labels)
    return _acyclic(graph, groups).graph(graph)


def _edges(graph: OpGraph) -> tuple[list[list[int]], list[bool]]:
    readers = [
        list(dict.fromkeys(r for t in op.outputs if t for r in graph.consumers.get(t, ()))) for op in graph.ops
    ]
    final = set(graph.outputs)
    return readers, [any(t in final for t in op.outputs) for op in graph.ops]


def _bound(graph: OpGraph) -> Groups:
    """Writers and readers of values that are no tensors, and what lies between them, as one group each."""
    groups = Groups(*_edges(graph))
    bound = False
    for name, writer in graph.producer.items():
        if not graph.tensors[name].is_tensor:
            for reader in graph.consumers.get(name, ()):
                groups.join(writer, reader)
                bound = True
    # Binding may have closed cycles through other operators: those belong to the group as well.
    for cycle in groups.cycles() if bound else ():
        first, *rest = cycle
        for other in rest:
            groups.join(first, other)
    return groups


def _links(facts: Facts) -> Iterator[Link]:
    """Pairs of operators that some engine runs in one kernel, with the bytes that they exchange there."""
    tensors = facts.graph.tensors
    for rules in RULES.values():
        for kernel in kernels_of(facts, rules):
            inside = set(kernel.ops)
            if len(inside) == 1:
                continue
            for i in kernel.ops:
                writers = [(t, p) for t, p in facts.sources[i] if p in inside]
                yield from ((p, i, tensors[t].nbytes) for t, p in writers)
                if not writers and i != kernel.ops[0]:
                    yield kernel.ops[0], i, 0


def _try_join(groups: Groups, a: int, b: int, labels: Sequence[str], weight: Sequence[int], most: int) -> None:
    x, y = groups.owner[a], groups.owner[b]
    if x == y or labels[a] != labels[b]:
        return
    size = sum(weight[m] for root in (x, y) for m in groups.members[root])
    if size <= most and groups.safe(x, y):
        groups.join(x, y)


def _attach(graph: OpGraph, groups: Groups, i: int, labels: Sequence[str]) -> None:
    """Put an operator that costs nothing to its writer, or else to its first reader."""
    writers = [graph.producer[t] for t in graph.ops[i].inputs[:1] if t in graph.producer]
    for other in (*writers, *groups.readers[i]):
        x, y = groups.owner[i], groups.owner[other]
        if x == y or (labels[i] == labels[other] and groups.safe(x, y)):
            groups.join(y, x)
            return


def _acyclic(graph: OpGraph, groups: Groups) -> Groups:
    """The same groups, those on cycles taken apart again."""
    while cycles := groups.cycles():
        apart = {r for cycle in cycles for r in cycle}
        fresh = _bound(graph)
        for root, members in groups.members.items():
            if root not in apart:
                for m in members:
                    fresh.join(root, m)
        groups = fresh
    return groups
