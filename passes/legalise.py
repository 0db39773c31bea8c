"""Any assignment, however scattered, becomes a sequence of stages whose graph is acyclic.

Groups are drained in topological order, staying on one placement as long as it has groups whose inputs
are ready. A stage then only reads what earlier stages (or the stage itself) wrote, so the stage graph
follows the sequence and has no cycle, whatever the assignment. Linear in groups and edges.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from qeil_compile.ir import GroupGraph


def legalise(groups: GroupGraph, assignment: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """(placement, group indices in order) for each stage, in an order of execution."""
    count = len(groups.groups)
    waiting = [0] * count
    after: list[list[int]] = [[] for _ in range(count)]
    for a, b in dict.fromkeys((a, b) for a, b, _ in groups.edges):
        after[a].append(b)
        waiting[b] += 1
    ready: dict[int, list[int]] = {}
    for g in range(count):
        if not waiting[g]:
            heapq.heappush(ready.setdefault(int(assignment[g]), []), g)
    stages: list[tuple[int, tuple[int, ...]]] = []
    while ready:
        # The placement with most ready work gives the longest stages; ties go to the earliest group.
        placement = max(ready, key=lambda p: (len(ready[p]), -ready[p][0]))
        queue = ready.pop(placement)
        drained: list[int] = []
        while queue:
            g = heapq.heappop(queue)
            drained.append(g)
            for b in after[g]:
                waiting[b] -= 1
                if not waiting[b]:
                    p = int(assignment[b])
                    heapq.heappush(queue if p == placement else ready.setdefault(p, []), b)
        stages.append((placement, tuple(drained)))
    return stages
