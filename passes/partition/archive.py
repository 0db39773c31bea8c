"""The archive of plans that none of it dominates, random numbers, and where an epoch of the search aims.

The archive holds plans that none of it dominates by more than a factor of 1 + epsilon; when it is full the most crowded
one goes. The best plan of each named scalarisation is kept beside it without epsilon.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from qeil_compile.passes.partition.tables import Tables

#: Plans closer than this, relatively, count as one point of the front.
EPSILON = 1e-3


class Archive(NamedTuple):
    """Objective values float64[size, 3] of `filled[0]` plans; the assignment of plan i is `places[slot[i]]`, int16[n].

    `best_*` are those of the named scalarisations, whose weights [names, 3] (of relative values) are `weights`. `scale`
    [3] makes values relative; `span` [3] is how far the front reached in each objective at the last look. Once the
    archive is full, `crowded` holds the plan nearest to another one, and how near.
    """

    values: np.ndarray
    places: np.ndarray
    slot: np.ndarray
    filled: np.ndarray
    best_values: np.ndarray
    best_places: np.ndarray
    weights: np.ndarray
    scale: np.ndarray
    span: np.ndarray
    crowded: np.ndarray


def new_archive(t: Tables, size: int, weights: np.ndarray, scale: np.ndarray) -> Archive:
    """An empty archive."""
    names = len(weights)
    return Archive(
        np.zeros((size, 3)), np.zeros((size, t.groups), np.int16), np.arange(size), np.zeros(1, np.int64),
        np.full((names, 3), np.inf), np.zeros((names, t.groups), np.int16), weights, scale, scale.copy(), np.zeros(2),
    )  # fmt: skip


@njit(cache=True, nogil=True)
def draw(r: np.ndarray) -> float:
    """A number in [0, 1): xorshift64*, state in r[0]."""
    x = r[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    r[0] = x
    return float((x * np.uint64(2685821657736338717)) >> np.uint64(11)) * 1.1102230246251565e-16


@njit(cache=True, nogil=True)
def below(r: np.ndarray, n: int) -> int:
    return min(int(draw(r) * n), n - 1)


@njit(cache=True, nogil=True)
def scalar(f: np.ndarray, weights: np.ndarray, scale: np.ndarray) -> float:
    """Weighted sum of relative objective values."""
    return weights[0] * f[0] / scale[0] + weights[1] * f[1] / scale[1] + weights[2] * f[2] / scale[2]


@njit(cache=True, nogil=True)
def offer(a: Archive, f: np.ndarray, place: np.ndarray) -> bool:
    """Put a feasible plan into the archive if it belongs there."""
    for k in range(len(a.weights)):
        old = a.best_values[k]
        if old[0] == np.inf or scalar(f, a.weights[k], a.scale) < scalar(old, a.weights[k], a.scale):
            a.best_values[k, 0], a.best_values[k, 1], a.best_values[k, 2] = f[0], f[1], f[2]
            for g in range(len(place)):
                a.best_places[k, g] = place[g]
    n, grown = a.filled[0], 1.0 + EPSILON
    for i in range(n):
        v = a.values[i]
        if v[0] <= f[0] * grown and v[1] <= f[1] * grown and v[2] <= f[2] * grown:
            return False
    kept = 0
    for i in range(n):
        v = a.values[i]
        if f[0] <= v[0] and f[1] <= v[1] and f[2] <= v[2]:
            continue
        if kept != i:
            a.values[kept] = a.values[i]
            a.slot[kept], a.slot[i] = a.slot[i], a.slot[kept]
        kept += 1
    if kept == len(a.values):
        # Full: the newcomer has to stand farther from the others than the most crowded plan does.
        near = np.inf
        for i in range(kept):
            near = min(near, _distance(a, i, f))
        if near <= a.crowded[1]:
            return False
        kept = int(a.crowded[0])
    else:
        a.filled[0] = kept + 1
    a.values[kept, 0], a.values[kept, 1], a.values[kept, 2] = f[0], f[1], f[2]
    row = a.slot[kept]
    for g in range(len(place)):
        a.places[row, g] = place[g]
    if a.filled[0] == len(a.values):
        _find_crowded(a)
    return True


@njit(cache=True, nogil=True)
def _distance(a: Archive, i: int, f: np.ndarray) -> float:
    """Square of the relative distance of plan i to values f."""
    total = 0.0
    for k in range(3):
        x = (a.values[i, k] - f[k]) / a.span[k]
        total += x * x
    return total


@njit(cache=True, nogil=True)
def _find_crowded(a: Archive) -> None:
    """The plan of a full archive that is nearest to another one; one that is best in an objective never is."""
    n = len(a.values)
    low = np.zeros(3, np.int64)
    for k in range(3):
        for i in range(n):
            if a.values[i, k] < a.values[low[k], k]:
                low[k] = i
    a.crowded[0], a.crowded[1] = n - 1, np.inf
    for i in range(n):
        if i != low[0] and i != low[1] and i != low[2]:
            for j in range(n):
                if j != i:
                    near = _distance(a, i, a.values[j])
                    if near < a.crowded[1]:
                        a.crowded[0], a.crowded[1] = i, near


@njit(cache=True, nogil=True)
def any_weights(r: np.ndarray, weights: np.ndarray) -> None:
    total = 1e-12
    for k in range(3):
        weights[k] = draw(r)
        total += weights[k]
    for k in range(3):
        weights[k] /= total


@njit(cache=True, nogil=True)
def look(a: Archive) -> None:
    """Take the measure of the front."""
    for k in range(3):
        low, high = np.inf, -np.inf
        for i in range(a.filled[0]):
            low, high = min(low, a.values[i, k]), max(high, a.values[i, k])
        a.span[k] = max(high - low, 1e-3 * a.scale[k])
    if a.filled[0] == len(a.values):
        _find_crowded(a)


@njit(cache=True, nogil=True)
def aim(a: Archive, r: np.ndarray, weights: np.ndarray) -> tuple[int, int]:
    """Choose a member of the archive to start from, another at the far end of a gap beside it, and weights (of values
    over `span`) that point into the gap."""
    n = a.filled[0]
    if n == 1 or draw(r) < 0.5:
        any_weights(r, weights)
        return below(r, n), below(r, n)
    by = below(r, 3)
    order = np.zeros(n, np.int64)
    for i in range(n):  # along one objective; few, and nearly in order
        j = i
        while j > 0 and a.values[order[j - 1], by] > a.values[i, by]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = i
    total = 0.0
    for i in range(n - 1):
        total += _distance(a, order[i], a.values[order[i + 1]]) ** 0.5
    left, chosen = draw(r) * total, n - 2
    for i in range(n - 1):
        left -= _distance(a, order[i], a.values[order[i + 1]]) ** 0.5
        if left <= 0:
            chosen = i
            break
    i, j = order[chosen], order[chosen + 1]
    # Both ends get one value: what is better in some objectives weighs as much as what is worse in others.
    better, worse = 0, 0
    for k in range(3):
        if a.values[i, k] < a.values[j, k]:
            better += 1
        else:
            worse += 1
    whole = 0.0
    for k in range(3):
        apart = abs(a.values[i, k] - a.values[j, k]) / a.span[k]
        side = better if a.values[i, k] < a.values[j, k] else worse
        weights[k] = 1.0 / (max(apart, 1e-3) * side)
        whole += weights[k]
    for k in range(3):
        weights[k] /= whole
    return (i, j) if draw(r) < 0.5 else (j, i)
