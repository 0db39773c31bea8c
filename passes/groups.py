"""Sets of operators that grow by joining, and whether a join would close a cycle."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from qeil_compile.ir import GroupGraph, OpGraph, OpGroup, topological_order

#: The caller of a graph, as a follower.
CALLER = -1


class Groups:
    """Operators by group. A group is named by one of its members, its root.

    `readers` are the operators that read what each one writes; `escapes` marks those that write an output of the
    graph. `owner` maps an operator to its root, `members` a root to its operators.
    """

    def __init__(self, readers: Sequence[Sequence[int]], escapes: Sequence[bool]) -> None:
        self.readers, self.escapes = readers, escapes
        self.owner = list(range(len(readers)))
        self.members = {i: [i] for i in self.owner}

    def join(self, into: int, other: int) -> int:
        """One group of both groups; returns its root, that of `into`."""
        a, b = self.owner[into], self.owner[other]
        if a != b:
            moved = self.members.pop(b)
            self.members[a] += moved
            for m in moved:
                self.owner[m] = a
        return a

    def followers(self, root: int) -> set[int]:
        """Groups that read what this one writes; `CALLER` among them if the graph's caller does."""
        found: set[int] = set()
        for m in self.members[root]:
            if self.escapes[m]:
                found.add(CALLER)
            found.update(self.owner[r] for r in self.readers[m])
        found.discard(root)
        return found

    def safe(self, a: int, b: int) -> bool:
        """Whether no path leaves one of the two groups and enters the other through a third."""
        return not (self._detour(a, b) or self._detour(b, a))

    def _detour(self, a: int, b: int) -> bool:
        end = max(self.members[b])
        seen, queue = {a, b, CALLER}, [g for g in self.followers(a) if g != b]
        while queue:
            g = queue.pop()
            # Operators come in topological order: what starts after the end of b rarely leads there.
            if g in seen or min(self.members[g]) > end:
                continue
            seen.add(g)
            following = self.followers(g)
            if b in following:
                return True
            queue += following
        return False

    def cycles(self) -> list[set[int]]:
        """Roots of the groups that depend on one another, per cycle."""
        quotient = nx.DiGraph()
        quotient.add_nodes_from(self.members)
        for root in self.members:
            quotient.add_edges_from((root, f) for f in self.followers(root) if f != CALLER)
        return [c for c in nx.strongly_connected_components(quotient) if len(c) > 1]

    def graph(self, graph: OpGraph) -> GroupGraph:
        """The groups in topological order. They must have no cycle."""
        roots = sorted(self.members, key=lambda r: min(self.members[r]))
        position = {r: k for k, r in enumerate(roots)}
        edges = [(position[r], position[f]) for r in roots for f in self.followers(r) if f != CALLER]
        order = topological_order(len(roots), edges)
        found = (OpGroup(k, tuple(sorted(self.members[roots[r]]))) for k, r in enumerate(order))
        return GroupGraph(graph, tuple(found))
