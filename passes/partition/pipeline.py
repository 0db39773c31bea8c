"""Smallest largest load: placement for pipelined execution, where throughput is one over the largest load of a device.

The model is that of Tarnawski, Phanishayee, Devanur, Mahajan, Paravecino, "Efficient Algorithms for Device Placement of
DNN Graph Operators", NeurIPS 2020, as their published programs compute it (`throughput-dp/dp.cpp`,
`throughput-ip/ip.py` of msr-fiddle/dnn-partitioning):

- The load of a device is computation *plus* communication, not the larger of the two.
- An accelerator pays the transfer of an output once when the output leaves it, however many others read it, and once
  when it enters, however many of its nodes read it. A CPU pays nothing, but an output that an accelerator exchanges
  with a CPU costs the accelerator. So a device pays for an output exactly when some, but not all, of the output's
  producer and readers lie on it.
- The memory limit is on the sum of the node sizes of an accelerator; there is none on CPUs.
- Nodes of one colour class share a device.
- Training: backward nodes load their device like all others, and the objective is the largest sum of forward and
  backward load. *Contiguity* is asked of the forward nodes alone: a device's forward nodes are convex (no path leaves
  them and comes back). The integer programme asks just that, of CPUs too; the dynamic programme also asks that the
  devices can be put in an order (nested ideals). A class without a forward node gets an artificial one there, tied by
  its backward edges reversed. `Split.contiguous` is the former; the *ordered* search here keeps the latter.

Cost: a move costs the outputs that its units touch. Memory is O(nodes + edges + outputs x devices).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qeil_compile.errors import CapacityError, QeilError
from qeil_compile.passes.partition.anneal import draw
from qeil_compile.passes.partition.pipeline_bound import bound
from qeil_compile.passes.partition.pipeline_kernel import Tables, excess, load, new_state, walk
from qeil_compile.passes.partition.pipeline_orders import split, topological
from qeil_compile.passes.partition.pipeline_problem import Problem, contiguous, problem

__all__ = ["Problem", "Result", "Split", "bound", "contiguous", "evaluate", "problem", "search"]

#: Temperatures at which walks start, relative to the largest load, in turn.
_HOT = (0.0003, 0.03, 0.001, 0.01)
#: How readily an order follows one branch, in turn.
_DEEP = (0.5, 0.9, 0.97, 1.0)


@dataclass(frozen=True)
class Split:
    """A placement: `place` int64[nodes], `loads` [devices] and the largest of them, `load`, in seconds."""

    place: np.ndarray
    load: float
    loads: np.ndarray
    contiguous: bool


@dataclass(frozen=True)
class Result:
    """The best split of any kind, and the best that is cut from an order of the nodes (None if none was found)."""

    best: Split
    ordered: Split | None


def evaluate(p: Problem, place: np.ndarray) -> Split:
    """The value of a placement [nodes]. Errors: QeilError if it parts nodes that belong together, puts one where it may
    not run, names no device, or does not fit into memory."""
    place, devices = np.asarray(place, np.int64), len(p.free.room)
    if place.shape != p.unit.shape or place.min() < 0 or place.max() >= devices:
        raise QeilError(
            f"the placement has shape {place.shape} and devices {place.min()} to {place.max()}; give one of devices "
            f"0 to {devices - 1} for each of {len(p.unit)} nodes"
        )
    by_unit = np.zeros(len(p.free.size), np.int64)
    by_unit[p.unit] = place
    if (by_unit[p.unit] != place).any():
        node = int(np.flatnonzero(by_unit[p.unit] != place)[0])
        other = by_unit[p.unit[node]]
        raise QeilError(f"node {node} is on device {place[node]} and its class on {other}; keep them together")
    s = new_state(p.free)
    load(p.free, s, by_unit)
    if excess(p.free, s) > 0:
        d = int((s.held - p.free.room).argmax())
        room = p.free.room[d]
        raise QeilError(f"device {d} would hold {s.held[d]:.0f} B and has room for {room:.0f} B; move nodes off it")
    if not np.isfinite(s.load).all():
        d = int(s.load.argmax())
        raise QeilError(f"device {d} may not run all of its nodes; place them where `seconds` is finite")
    return Split(place, float(s.load.max()), s.load.copy(), contiguous(place, p.edges, p.forward))


class _Start(NamedTuple):
    """A cut of an order: its largest load, place and order by row of `Problem.ordered`, and rank of the devices."""

    load: float
    place: np.ndarray
    order: np.ndarray
    rank: np.ndarray


def _starts(t: Tables, r: np.ndarray, orders: int) -> list[_Start]:
    """The best cuts of random orders with random orders of the devices that fit into memory, best first."""
    n, devices = t.seconds.shape
    found = []
    for k in range(orders):
        order = topological(t, r, _DEEP[k % len(_DEEP)])
        by_rank = np.array(sorted(range(devices), key=lambda _: draw(r)), np.int64)
        place, rank = np.zeros(n, np.int64), np.zeros(devices, np.int64)
        rank[by_rank] = np.arange(devices)
        value = float(split(t, order, by_rank, place))
        if value < np.inf:
            found.append(_Start(value, place, order, rank))
    return sorted(found, key=lambda x: x.load)


def _fallback(t: Tables, r: np.ndarray) -> _Start:
    """Where no order can be cut: units from the largest on the device that then has most room, or where they may be."""
    n, devices = t.seconds.shape
    place, left = np.zeros(n, np.int64), t.room.copy()
    for u in np.argsort(-t.size, kind="stable"):
        able = np.flatnonzero(np.isfinite(t.seconds[u]))
        place[u] = able[left[able].argmax()]
        left[place[u]] -= t.size[u]
    return _Start(np.inf, place, topological(t, r, 1.0), np.arange(devices))


def search(p: Problem, seed: int = 0, orders: int = 200, chains: int = 12, moves: int = 100_000) -> Result:
    """The splits with the least largest load that were found: the same for the same arguments on every machine.

    `orders` orders of the nodes are cut exactly; the best cut is annealed as an ordered split with half of `moves`
    moves. `chains` free walks of `moves` moves start from different cuts, and half as many, of twice the moves, from
    the best split so far. Errors: QeilError if a node may run nowhere, CapacityError if no split was found that fits.
    """
    nowhere = ~np.isfinite(p.free.seconds).any(axis=1)
    if nowhere.any():
        node = int(np.flatnonzero(nowhere[p.unit])[0])
        raise QeilError(f"no device may run node {node} and all nodes of its class; allow one in `seconds`")
    r = np.array([(2 * seed + 1) * 0x9E3779B97F4A7C15 % 2**64], np.uint64)
    cuttable = bool(np.isfinite(p.ordered.seconds).any(axis=1).all())
    starts = _starts(p.ordered, r, orders) if cuttable else []
    ordered = _walk_ordered(p, r, starts[0], moves // 2) if starts else None
    best, least = _walk_free(p, r, starts, ordered, chains, moves)
    if not least < np.inf:
        raise CapacityError("no split that fits into memory was found: give devices more room, or search more moves")
    return Result(evaluate(p, best[p.unit]), evaluate(p, ordered[p.stage]) if ordered is not None else None)


def _walk_ordered(p: Problem, r: np.ndarray, start: _Start, moves: int) -> np.ndarray:
    """The best ordered split [stages] of a walk from a cut."""
    t, best = p.ordered, np.zeros(len(p.ordered.size), np.int64)
    s = new_state(t)
    load(t, s, start.place)
    walk(t, s, r, start.order, start.rank, True, _HOT[1], moves, best)
    return best


def _walk_free(
    p: Problem, r: np.ndarray, starts: list[_Start], ordered: np.ndarray | None, chains: int, moves: int
) -> tuple[np.ndarray, float]:
    """The best split [units] of all walks, and its largest load."""
    t = p.free
    s, fresh, first = new_state(t), np.zeros(len(t.size), np.int64), np.zeros(len(t.size), np.int64)
    first[p.unit] = np.arange(len(p.unit))  # one node of each unit
    from_stage = p.stage[first]
    if starts:
        places = [x.place[from_stage] for x in starts]
        orders = [np.argsort(np.argsort(x.order)[from_stage], kind="stable") for x in starts]
    else:
        plain = _fallback(t, r)
        places, orders = [plain.place], [plain.order]
    best, least = places[0].copy(), np.inf
    if ordered is not None:
        best = ordered[from_stage]
        load(t, s, best)
        least = float(s.load.max())
    rank = np.arange(t.seconds.shape[1])
    for k in range(chains + chains // 2):
        again, i = k >= chains, k % len(orders)
        load(t, s, best if again else places[i])
        value = float(walk(t, s, r, orders[i], rank, False, _HOT[k % 2 * 2 if again else k % len(_HOT)],
                           2 * moves if again else moves, fresh))  # fmt: skip
        if value < least:
            best, least = fresh.copy(), value
    return best, least
