"""A pipeline placement problem from plain arrays: nodes contracted to units, outputs to nets; contiguity of a split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from qeil_compile.errors import QeilError
from qeil_compile.passes.partition.pipeline_kernel import Tables


@dataclass(frozen=True)
class Problem:
    """Nodes, as given to `problem`, contracted: `unit` int64[nodes] is a node's row in `free`, `stage` in `ordered`
    where also units that lie on a cycle of units are one. `edges` int64[m, 2] and `forward` bool[nodes] as given."""

    free: Tables
    ordered: Tables
    unit: np.ndarray
    stage: np.ndarray
    edges: np.ndarray
    forward: np.ndarray


def problem(
    seconds: np.ndarray, size: np.ndarray, room: np.ndarray, pays: np.ndarray, edges: np.ndarray, cost: np.ndarray,
    together: np.ndarray | None = None, forward: np.ndarray | None = None,
) -> Problem:
    """A problem from plain arrays.

    `seconds` [nodes, devices], infinite where a node may not run; `size` [nodes] and `room` [devices] in bytes, `room`
    infinite without a limit; `pays` [devices]: what a device multiplies transfer times by (accelerators 1, CPUs 0);
    `edges` [m, 2]: (producer, reader); `cost` [nodes]: time [s] to move a node's output; `together` [nodes]: nodes with
    equal labels share a device; `forward` [nodes]: false for backward nodes. Errors: QeilError.
    """
    seconds, size = np.asarray(seconds, float), np.asarray(size, float)
    edges = np.asarray(edges, np.int64).reshape(-1, 2)
    n = len(seconds)
    labels = np.arange(n) if together is None else np.asarray(together)
    ahead = np.ones(n, bool) if forward is None else np.asarray(forward, bool)
    cost, room, pays = np.asarray(cost, float), np.asarray(room, float), np.asarray(pays, float)
    _check(seconds, size, room, pays, edges, cost, labels, ahead)
    unit = np.unique(labels, return_inverse=True)[1].astype(np.int64).reshape(-1)
    arcs = _arcs(unit, edges, ahead)
    units = int(unit.max()) + 1
    graph = coo_matrix((np.ones(len(arcs)), (arcs[:, 0], arcs[:, 1])), shape=(units, units))
    component = connected_components(graph, connection="strong")[1].astype(np.int64)
    stage = component[unit]
    tables = [_tables(seconds, size, room, pays, edges, cost, where, ahead) for where in (unit, stage)]
    return Problem(tables[0], tables[1], unit, stage, edges, ahead)


def _check(
    seconds: np.ndarray, size: np.ndarray, room: np.ndarray, pays: np.ndarray, edges: np.ndarray, cost: np.ndarray,
    labels: np.ndarray, forward: np.ndarray,
) -> None:
    """Shapes, signs and ranges."""
    if seconds.ndim != 2 or not seconds.size:
        raise QeilError(f"seconds has shape {seconds.shape}; give one row per node and one column per device")
    n, devices = seconds.shape
    for name, array, length in (
        ("size", size, n), ("cost", cost, n), ("together", labels, n), ("forward", forward, n),
        ("room", room, devices), ("pays", pays, devices),
    ):  # fmt: skip
        if array.shape != (length,):
            raise QeilError(f"{name} has shape {array.shape}, expected ({length},): give one value for each")
    for name, array in (("seconds", seconds), ("size", size), ("cost", cost), ("room", room), ("pays", pays)):
        if not (array >= 0).all():
            raise QeilError(f"{name} holds {array[~(array >= 0)][0]}; times, sizes and factors are 0 or more")
    if len(edges) and (edges.min() < 0 or edges.max() >= n):
        wrong = edges[(edges < 0) | (edges >= n)][0]
        raise QeilError(f"an edge names node {wrong}; nodes are 0 to {n - 1}: name nodes by their row")
    contiguous(np.zeros(n, np.int64), edges, forward)  # finds cycles


def _arcs(where: np.ndarray, edges: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """Pairs of units (first, then) that an ordered split respects: forward edges, and for units without a forward node
    their backward edges reversed. int64[k, 2], sorted, each once."""
    has_forward = np.zeros(int(where.max()) + 1, bool)
    has_forward[where[forward]] = True
    a, b = edges[:, 0], edges[:, 1]
    both, neither = forward[a] & forward[b], ~forward[a] & ~forward[b]
    orphan = neither & (~has_forward[where[a]] | ~has_forward[where[b]])
    pairs = np.concatenate([where[edges[both]], where[edges[orphan][:, ::-1]]])
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0).reshape(-1, 2)


def _rows(owners: np.ndarray, items: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Items by owner: pointers int64[count + 1], and the items sorted by owner."""
    sort = np.argsort(owners, kind="stable")
    pointers = np.zeros(count + 1, np.int64)
    pointers[1:] = np.cumsum(np.bincount(owners, minlength=count))
    return pointers, items[sort].astype(np.int64)


def _tables(
    seconds: np.ndarray, size: np.ndarray, room: np.ndarray, pays: np.ndarray, edges: np.ndarray, cost: np.ndarray,
    where: np.ndarray, forward: np.ndarray,
) -> Tables:
    """Tables of nodes contracted to `where` [nodes]."""
    units = int(where.max()) + 1
    work, bytes_ = np.zeros((units, seconds.shape[1])), np.zeros(units)
    np.add.at(work, where, seconds)
    np.add.at(bytes_, where, size)
    members: dict[int, set[int]] = {}
    for a, b in edges.tolist():
        members.setdefault(a, {int(where[a])}).add(int(where[b]))
    merged: dict[tuple[int, ...], float] = {}
    for node, touched in sorted(members.items()):
        if len(touched) > 1 and cost[node] > 0:
            key = tuple(sorted(touched))
            merged[key] = merged.get(key, 0.0) + float(cost[node])
    nets = np.repeat(np.arange(len(merged)), [len(k) for k in merged]).astype(np.int64)
    pins = np.array([u for key in merged for u in key], np.int64)
    arcs = _arcs(where, edges, forward)
    return Tables(
        work, bytes_, room, pays, np.array(list(merged.values()), float), *_rows(nets, pins, len(merged)),
        *_rows(pins, nets, units), *_rows(arcs[:, 0], arcs[:, 1], units), *_rows(arcs[:, 1], arcs[:, 0], units),
    )  # fmt: skip


def contiguous(place: np.ndarray, edges: np.ndarray, forward: np.ndarray) -> bool:
    """Whether no path of forward nodes leaves a device and comes back to it.

    `place` [nodes], `edges` [m, 2], `forward` [nodes]; the forward edges must be acyclic.
    """
    inner = edges[forward[edges[:, 0]] & forward[edges[:, 1]]]
    n, devices = len(place), int(place.max()) + 1
    readers: list[list[int]] = [[] for _ in range(n)]
    waits = np.zeros(n, np.int64)
    for a, b in inner.tolist():
        readers[a].append(b)
        waits[b] += 1
    left = np.zeros((n, devices), bool)  # devices that a path to the node has left
    ready, done = [int(v) for v in np.flatnonzero(waits == 0)], 0
    while ready:
        a = ready.pop()
        done += 1
        for b in readers[a]:
            left[b] |= left[a]
            if place[a] != place[b]:
                left[b, place[a]] = True
            waits[b] -= 1
            if waits[b] == 0:
                if left[b, place[b]]:
                    return False
                ready.append(b)
    if done < n:
        raise QeilError(f"{n - done} nodes lie on a cycle of forward edges or behind one; give an acyclic graph")
    return True
