"""Assignments by simpler rules: for comparison, and as starts of the search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from qeil_compile.devices import Placement
from qeil_compile.passes.partition.tables import Tables

#: Resolution of capacities, which the flow solver wants as integers: the largest cost in these steps.
_STEPS = 2**28


def at_random(t: Tables, seed: int = 0) -> np.ndarray:
    """A random allowed placement per group, int64[n], that changes every eight groups on average."""
    rng = np.random.default_rng(seed)
    place, p = np.zeros(t.groups, dtype=np.int64), 0
    for g in range(t.groups):
        able = np.flatnonzero(t.allowed[g])
        if p not in able or rng.random() < 1 / 8:
            p = int(rng.choice(able))
        place[g] = p
    return place


def by_priority(t: Tables, order: Sequence[int] | None = None) -> np.ndarray:
    """The first placement, in an order (default: the target's), that takes the group, int64[n].

    This is how ONNX Runtime assigns nodes to execution providers, and OpenVINO's HETERO to devices: by capability, in
    the order in which the user lists them, never by price.
    """
    listed = np.arange(t.placements) if order is None else np.array(order, dtype=np.int64)
    return listed[t.allowed[:, listed].argmax(axis=1)]


def engine_first(places: Sequence[Placement], engine: str) -> list[int]:
    """Placements in the order that users of an engine list them: its accelerators, its CPU, then all others."""
    kinds = {"gpu": 0, "npu": 1}
    rank = [(p.engine != engine, kinds.get(p.profile.kind, 2), k) for k, p in enumerate(places)]
    return [k for *_, k in sorted(rank)]


def min_cut(t: Tables, leakage: np.ndarray, wl: float, we: float, a: int, b: int) -> np.ndarray:
    """The best assignment to placements a and b by a minimum cut, int64[n], for `wl` latency and `we` energy.

    Groups run one after another; each tensor pays its transfer once if any reader is on the other device, and each
    reader on another placement than its writer pays a boundary (Stone, "Multiprocessor scheduling with the aid of
    network flow algorithms", IEEE TSE SE-3(1), 1977). Groups that only another placement takes go to the first that
    does.
    """
    n, tensors = t.groups, len(t.nbytes)
    idle = float(t.power_idle.sum())
    runs = t.runs[t.phase]
    price = np.zeros((n, 2))
    for k, p in enumerate((a, b)):
        d = int(t.device[p])
        second = wl + we * (t.power_const[d] + leakage[d] + idle - t.power_idle[d])
        price[:, k] = runs * (second * t.seconds[:, p] + we * t.dynamic[:, p])
    both = (t.allowed[:, a] > 0) & (t.allowed[:, b] > 0)
    large = float(price.sum()) * 10 + 1.0
    price[:, 0] = np.where(t.allowed[:, a] > 0, price[:, 0], large)
    price[:, 1] = np.where(t.allowed[:, b] > 0, price[:, 1], large)
    price[~both & (t.allowed[:, a] == 0) & (t.allowed[:, b] == 0)] = 0.0
    rows = np.repeat(np.arange(n), np.diff(t.read_ptr))
    d, e = int(t.device[a]), int(t.device[b])
    moved = np.where(t.nbytes > 0, t.link_latency[d, e] + t.nbytes * t.link_inverse[d, e], 0.0) if d != e else 0.0
    joules = t.nbytes * t.link_joules[d, e]
    cross = t.tensor_runs * ((wl + we * idle) * moved + we * joules)
    boundary = (wl + we * idle) * (t.boundary[a, b] + t.boundary[b, a]) / 2 * t.runs[t.phase[rows]]
    # Nodes: source, sink, groups, then two per tensor (readers on the far side of either kind pay once).
    source, sink, first = 0, 1, 2
    out, into = first + n, first + n + tensors
    heads = [np.full(n, source), first + np.arange(n), first + t.writer, out + t.read, first + rows, into + t.read,
             first + t.writer[t.read], first + rows]  # fmt: skip
    tails = [first + np.arange(n), np.full(n, sink), out + np.arange(tensors), first + rows, into + t.read,
             first + t.writer[t.read], first + rows, first + t.writer[t.read]]  # fmt: skip
    infinite = np.full(len(rows), np.inf)
    caps = [price[:, 1], price[:, 0], cross, infinite, infinite, cross[t.read] / _readers(t), boundary, boundary]
    u, v, c = np.concatenate(heads), np.concatenate(tails), np.concatenate(caps)
    top = float(c[np.isfinite(c)].max()) or 1.0
    whole = np.minimum(np.where(np.isfinite(c), c / top, 4.0) * _STEPS, 2**30).astype(np.int32)
    size = first + n + 2 * tensors
    graph = csr_array((whole, (u, v)), shape=(size, size), dtype=np.int32)
    graph.sum_duplicates()
    flow = maximum_flow(graph, source, sink).flow
    residual = (graph - flow).tocsr()
    residual.data = np.maximum(residual.data, 0)
    residual.eliminate_zeros()
    reached = np.zeros(size, dtype=bool)
    reached[breadth_first_order(residual, source, return_predecessors=False)] = True
    place = np.where(reached[first : first + n], a, b).astype(np.int64)
    fits = t.allowed[np.arange(n), place] > 0
    return np.where(fits, place, by_priority(t))


def _readers(t: Tables) -> np.ndarray:
    """How many groups read each tensor, per read."""
    return np.bincount(t.read, minlength=len(t.nbytes))[t.read].astype(float)
