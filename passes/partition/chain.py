"""Exact dynamic programme along the chain of groups in topological order.

On a graph that is a chain (each group reads only the one before) the assignment minimises the
scalarisation exactly, boundaries, transfers and idle power included. On other graphs tensors that skip
groups are priced as if they moved when they are read, between the writer's neighbour in the order and the
reader; the result is then a good candidate without a promise. O(groups x placements^2).
"""

from __future__ import annotations

import numpy as np

from qeil_compile.passes.annotate import CostTable


def chain(costs: CostTable, allowed: np.ndarray, weights: tuple[float, float]) -> np.ndarray:
    """Placement index per group, int64[groups], for a scalarisation of latency and energy."""
    wl, we = weights
    count, places = costs.seconds.shape
    # Waiting devices draw idle power for as long as the run takes; a working one draws its own instead.
    idle = np.array([costs.idle_power - p.profile.power_idle.value for p in costs.placements])
    price = wl * costs.seconds + we * (costs.joules + idle * costs.seconds)
    price = np.where(allowed, price, np.inf)
    entry = np.array([costs.entry(p) for p in range(places)])
    const = costs.working_power
    best = price[0] + wl * entry + we * entry * (const + idle) if count else np.zeros(places)
    came = np.zeros((count, places), dtype=np.int64)
    incoming = _incoming_bytes(costs)
    for g in range(1, count):
        step = best[:, None] + _move(costs, incoming[g], wl, we, idle, const)
        came[g] = step.argmin(axis=0)
        best = step.min(axis=0) + price[g]
    chosen = np.zeros(count, dtype=np.int64)
    if count:
        chosen[-1] = int(best.argmin())
    for g in range(count - 1, 0, -1):
        chosen[g - 1] = came[g, chosen[g]]
    return chosen


def _incoming_bytes(costs: CostTable) -> list[list[int]]:
    """Sizes of the tensors that each group reads from other groups, each tensor once."""
    reads: list[dict[str, None]] = [{} for _ in costs.groups.groups]
    for _, b, tensor in costs.groups.edges:
        reads[b][tensor] = None
    return [[costs.groups.graph.tensors[t].nbytes for t in r] for r in reads]


def _move(
    costs: CostTable, sizes: list[int], wl: float, we: float, idle: np.ndarray, const: np.ndarray
) -> np.ndarray:
    places = len(costs.placements)
    total = np.zeros((places, places))
    for p in range(places):
        for q in range(places):
            if p == q:
                continue
            boundary = costs.boundary(p, q)
            moved = [costs.transfer(p, q, n) for n in sizes]
            seconds, joules = sum(s for s, _ in moved), sum(j for _, j in moved)
            total[p, q] = wl * (boundary + seconds)
            total[p, q] += we * (boundary * (const[q] + idle[q]) + joules + costs.idle_power * seconds)
    return total
