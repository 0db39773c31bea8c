"""Orders of units, and the exact best cut of an order into one run per device."""

from __future__ import annotations

import numpy as np
from numba import njit

from qeil_compile.passes.partition.anneal import draw
from qeil_compile.passes.partition.pipeline_kernel import Tables, below


@njit(cache=True, nogil=True)
def topological(t: Tables, r: np.ndarray, deep: float) -> np.ndarray:
    """A random topological order of the units, int64[units]; `deep` is how often the newest ready unit comes next
    rather than any: near 1, one branch after the other."""
    n = len(t.size)
    order, ready, waits, count = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64), 0
    for u in range(n):
        waits[u] = t.before_ptr[u + 1] - t.before_ptr[u]
        if waits[u] == 0:
            ready[count] = u
            count += 1
    for i in range(n):
        k = count - 1 if draw(r) < deep else below(r, count)
        u = ready[k]
        for j in range(k, count - 1):  # keeps the others in the order in which they became ready
            ready[j] = ready[j + 1]
        count -= 1
        order[i] = u
        first = count
        for j in range(t.after_ptr[u], t.after_ptr[u + 1]):
            v = t.after[j]
            waits[v] -= 1
            if waits[v] == 0:
                ready[count] = v
                count += 1
        if count > first + 1:  # any of the new ones may be the newest
            j = first + below(r, count - first)
            ready[j], ready[count - 1] = ready[count - 1], ready[j]
    return order


@njit(cache=True, nogil=True)
def split(t: Tables, order: np.ndarray, by_rank: np.ndarray, place: np.ndarray) -> float:
    """The best cut of `order` into one run per device, devices in the order `by_rank`, into `place` [units].

    Returns its largest load [s], infinite if no cut fits into memory. O(devices x units x (units + nets)) at most.
    """
    n, devices = len(order), len(by_rank)
    best, came = np.full((devices + 1, n + 1), np.inf), np.zeros((devices + 1, n + 1), np.int64)
    inside, best[0, 0] = np.zeros(len(t.cost), np.int64), 0.0
    for k in range(devices):
        d = by_rank[k]
        for i in range(n + 1):
            if best[k, i] < best[k + 1, i]:
                best[k + 1, i], came[k + 1, i] = best[k, i], i
            if best[k, i] == np.inf:
                continue
            inside[:] = 0
            work, comm, held = 0.0, 0.0, 0.0
            for j in range(i, n):
                u = order[j]
                work += t.seconds[u, d]
                held += t.size[u]
                if held > t.room[d] or work >= best[k + 1, n]:
                    break
                for m in range(t.net_ptr[u], t.net_ptr[u + 1]):
                    x = t.net[m]
                    inside[x] += 1
                    if inside[x] == 1:
                        comm += t.cost[x] * t.pays[d]
                    if inside[x] == t.pin_ptr[x + 1] - t.pin_ptr[x]:
                        comm -= t.cost[x] * t.pays[d]
                value = max(best[k, i], work + comm)
                if value < best[k + 1, j + 1]:
                    best[k + 1, j + 1], came[k + 1, j + 1] = value, i
    if best[devices, n] < np.inf:
        j = n
        for k in range(devices, 0, -1):
            i = came[k, j]
            for m in range(i, j):
                place[order[m]] = by_rank[k - 1]
            j = i
    return best[devices, n]
