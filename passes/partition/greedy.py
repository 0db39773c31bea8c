"""Each group, in order, goes where it is cheapest given where its inputs are: time, energy, boundary, move.

Keeps account of weight bytes, so that a model larger than one memory spreads over several.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qeil_compile.passes.annotate import CostTable
from qeil_compile.passes.memory import usable


def greedy(
    costs: CostTable, allowed: np.ndarray, weights: tuple[float, float], kept: Mapping[str, int] | None = None
) -> np.ndarray:
    """Placement index per group, int64[groups], for a scalarisation of latency and energy.

    `kept` [B] by pool is room that weights leave to activations.
    """
    wl, we = weights
    graph, groups = costs.groups.graph, costs.groups
    pools = {
        d.pool: usable(costs.target, d.pool, costs.conditions) - (kept or {}).get(d.pool, 0)
        for d in costs.target.devices
    }
    placed: set[tuple[str, str]] = set()
    before: dict[int, dict[str, int]] = {}
    for a, b, tensor in groups.edges:
        before.setdefault(b, {})[tensor] = a
    price = wl * costs.seconds + we * (costs.joules + costs.idle_power * costs.seconds)
    chosen = np.zeros(len(groups.groups), dtype=np.int64)
    for g in range(len(chosen)):
        names = groups.weights_of(groups.groups[g].ops)
        best, best_price = -1, np.inf
        for p in np.flatnonzero(allowed[g]):
            profile = costs.placements[p].profile
            new = sum(graph.tensors[w].nbytes for w in names if (profile.name, w) not in placed)
            total = float(price[g, p])
            for tensor, a in before.get(g, {}).items():
                q = int(chosen[a])
                if q != p:
                    seconds, joules = costs.transfer(q, int(p), graph.tensors[tensor].nbytes)
                    total += wl * (seconds + costs.boundary(q, int(p))) + we * joules
            if new > pools[profile.pool]:
                total += 1e30  # only when nothing else has room; the caller rejects the candidate then
            if total < best_price:
                best, best_price = int(p), total
        chosen[g] = best
        profile = costs.placements[best].profile
        pools[profile.pool] -= sum(graph.tensors[w].nbytes for w in names if (profile.name, w) not in placed)
        placed |= {(profile.name, w) for w in names}
    return chosen
