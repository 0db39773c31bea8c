"""From an assignment to scheduled stages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qeil_compile.passes.costs import CostTable
from qeil_compile.passes.legalise import legalise
from qeil_compile.passes.partition.front import Candidate
from qeil_compile.passes.schedule import Schedule, schedule
from qeil_compile.passes.sequence import Sequence_


def evaluate(costs: CostTable, assignment: Sequence[int] | np.ndarray, strategy: str) -> Candidate:
    """Schedule one assignment: in the order of the graph, or with fewer stages where that is faster."""
    fixed = tuple(int(p) for p in assignment)
    straight, merged = _in_order(fixed), legalise(costs.groups, fixed)
    best: tuple[Sequence_, Schedule] = merged, schedule(costs, merged)
    if _stages(straight) != _stages(merged):
        other = schedule(costs, straight)
        if other.objectives.latency < best[1].objectives.latency:
            best = straight, other
    return Candidate(strategy, fixed, *best)


def _in_order(assignment: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """Neighbours in the order of the graph on one placement are a stage."""
    stages: list[tuple[int, list[int]]] = []
    for g, p in enumerate(assignment):
        if stages and stages[-1][0] == p:
            stages[-1][1].append(g)
        else:
            stages.append((p, [g]))
    return [(p, tuple(members)) for p, members in stages]


def _stages(sequence: Sequence_) -> list[tuple[int, ...]]:
    return [members for _, members in sequence]
