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
from numba import njit
from scipy.optimize import linprog
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from qeil_compile.errors import CapacityError, QeilError
from qeil_compile.passes.partition.anneal import draw
from qeil_compile.passes.partition.kernel import exponential

#: Kinds of moves: a unit anywhere, a unit to a neighbour's device, two units change places, a run of the order, a
#: connected piece of a device.
_ANY, _NEAR, _SWAP, _RUN, _PIECE = range(5)
_KINDS = 5
#: Temperatures at which walks start, relative to the largest load, in turn; ln(end / start) of each.
_HOT = (0.0003, 0.03, 0.001, 0.01)
_COOLING = -9.210340371976182
#: How readily an order follows one branch, in turn.
_DEEP = (0.5, 0.9, 0.97, 1.0)
#: Share of the power mean in what a walk minimises: without it a move that does not touch the busiest device is blind.
_SMOOTH = 0.1


class Tables(NamedTuple):
    """Units (nodes that move together), devices and nets (outputs with producer and readers, merged where equal).

    `seconds` float64[units, devices], infinite where a unit may not run; `size` [units] and `room` [devices] in bytes;
    `pays` [devices] multiplies transfer costs; `cost` [nets]; units of net k are `pin[pin_ptr[k]:pin_ptr[k + 1]]`, nets
    of unit u `net[net_ptr[u]:net_ptr[u + 1]]`. `after` and `before`, with their pointers, are the units that an ordered
    split may not put on an earlier, or later, device than u.
    """

    seconds: np.ndarray
    size: np.ndarray
    room: np.ndarray
    pays: np.ndarray
    cost: np.ndarray
    pin_ptr: np.ndarray
    pin: np.ndarray
    net_ptr: np.ndarray
    net: np.ndarray
    after_ptr: np.ndarray
    after: np.ndarray
    before_ptr: np.ndarray
    before: np.ndarray


class State(NamedTuple):
    """A placement: `place` int64[units], `load` [devices], `held` bytes [devices], `pins` of each net [nets, devices];
    `units`, `goal` and `old` [units] of the move at hand, and `mark` of what it has (last: the current mark)."""

    place: np.ndarray
    load: np.ndarray
    held: np.ndarray
    pins: np.ndarray
    units: np.ndarray
    goal: np.ndarray
    old: np.ndarray
    mark: np.ndarray


@njit(cache=True, nogil=True)
def move(t: Tables, s: State, u: int, e: int) -> None:
    """Put unit u on device e, which it is not on yet."""
    d = s.place[u]
    s.place[u] = e
    s.load[d] -= t.seconds[u, d]
    s.load[e] += t.seconds[u, e]
    s.held[d] -= t.size[u]
    s.held[e] += t.size[u]
    for i in range(t.net_ptr[u], t.net_ptr[u + 1]):
        k = t.net[i]
        whole = t.pin_ptr[k + 1] - t.pin_ptr[k]  # at least two
        s.pins[k, d] -= 1
        s.pins[k, e] += 1
        if s.pins[k, d] == whole - 1:
            s.load[d] += t.cost[k] * t.pays[d]
        if s.pins[k, d] == 0:
            s.load[d] -= t.cost[k] * t.pays[d]
        if s.pins[k, e] == 1:
            s.load[e] += t.cost[k] * t.pays[e]
        if s.pins[k, e] == whole:
            s.load[e] -= t.cost[k] * t.pays[e]


@njit(cache=True, nogil=True)
def load(t: Tables, s: State, place: np.ndarray) -> None:
    """Value a placement [units] from scratch."""
    s.place[:] = place
    s.load[:] = 0.0
    s.held[:] = 0.0
    s.pins[:] = 0
    for u in range(len(place)):
        s.load[place[u]] += t.seconds[u, place[u]]
        s.held[place[u]] += t.size[u]
    for k in range(len(t.cost)):
        for i in range(t.pin_ptr[k], t.pin_ptr[k + 1]):
            s.pins[k, place[t.pin[i]]] += 1
        for d in range(len(s.load)):
            if 0 < s.pins[k, d] < t.pin_ptr[k + 1] - t.pin_ptr[k]:
                s.load[d] += t.cost[k] * t.pays[d]


@njit(cache=True, nogil=True)
def excess(t: Tables, s: State) -> float:
    """Bytes that do not fit, over all devices. Sums that moves have changed are rounded: a part in 10^12 is allowed."""
    total = 0.0
    for d in range(len(s.held)):
        if s.held[d] > t.room[d] * (1.0 + 1e-12):
            total += s.held[d] - t.room[d]
    return total


@njit(cache=True, nogil=True)
def _smooth(s: State) -> float:
    """What a walk minimises: the largest load and a little of the 8th power mean of all."""
    top = s.load.max()
    total = 0.0
    for x in s.load:
        y = x / top if top > 0.0 else 0.0
        y *= y
        y *= y
        total += y * y
    return top * (1.0 + _SMOOTH * (total / len(s.load)) ** 0.125)


@njit(cache=True, nogil=True)
def _below(r: np.ndarray, n: int) -> int:
    return min(int(draw(r) * n), n - 1)


@njit(cache=True, nogil=True)
def _take(t: Tables, s: State, u: int, e: int, count: int) -> int:
    """Add unit u -> device e to the move at hand, if it may; returns the new count."""
    if s.place[u] == e or s.mark[u] == s.mark[-1] or t.seconds[u, e] == np.inf:
        return count
    s.mark[u] = s.mark[-1]
    s.units[count], s.goal[count], s.old[count] = u, e, s.place[u]
    return count + 1


@njit(cache=True, nogil=True)
def _neighbour(t: Tables, r: np.ndarray, u: int) -> int:
    """A unit that shares a net with u, or u."""
    degree = t.net_ptr[u + 1] - t.net_ptr[u]
    if degree == 0:
        return u
    k = t.net[t.net_ptr[u] + _below(r, degree)]
    return t.pin[t.pin_ptr[k] + _below(r, t.pin_ptr[k + 1] - t.pin_ptr[k])]


@njit(cache=True, nogil=True)
def _length(r: np.ndarray, most: int) -> int:
    """A length up to `most`, short ones more often."""
    base = 2
    while base < most and draw(r) < 0.5:
        base *= 2
    return min(1 + _below(r, base), most)


@njit(cache=True, nogil=True)
def _propose(t: Tables, s: State, r: np.ndarray, order: np.ndarray, at: np.ndarray) -> int:
    """A free move; returns how many units it moves."""
    n, devices, count = len(order), len(s.load), 0
    s.mark[-1] += 1
    u = _below(r, n)
    if draw(r) < 0.5:  # what relieves the busiest device helps at once
        busiest = s.load.argmax()
        for _ in range(16):
            if s.place[u] == busiest:
                break
            u = _below(r, n)
    d, kind = s.place[u], _below(r, _KINDS)
    e = s.place[_neighbour(t, r, u)]
    if kind == _ANY or e == d:
        e = _below(r, devices)
    if kind == _SWAP:
        v = _neighbour(t, r, u) if draw(r) < 0.3 else _below(r, n)
        e = s.place[v]
        count = _take(t, s, u, e, count)
        return _take(t, s, v, d, count) if e != d else 0
    if kind == _RUN:
        far = _length(r, n // 2 + 1)
        first = at[u] if draw(r) < 0.5 else at[u] - far + 1
        for i in range(max(first, 0), min(first + far, n)):
            count = _take(t, s, order[i], e, count)
        return count
    count = _take(t, s, u, e, count)
    if kind == _PIECE and count == 1:
        far, i = _length(r, n // 2 + 1), 0
        while i < count < far:
            v = s.units[i]
            i += 1
            for j in range(t.net_ptr[v], t.net_ptr[v + 1]):
                k = t.net[j]
                if s.pins[k, d] > 1:
                    for m in range(t.pin_ptr[k], t.pin_ptr[k + 1]):
                        if s.place[t.pin[m]] == d and count < far and draw(r) < 0.8:
                            count = _take(t, s, t.pin[m], e, count)
    return count


@njit(cache=True, nogil=True)
def _propose_ordered(t: Tables, s: State, r: np.ndarray, rank: np.ndarray, by_rank: np.ndarray) -> int:
    """A move that keeps the split ordered: a unit goes to a device up or down the pipeline, and with it whatever would
    otherwise end up on the wrong side. 0 if a unit among them may not run there."""
    count = 0
    s.mark[-1] += 1
    u = _below(r, len(s.place))
    d = s.place[u]
    e = by_rank[_below(r, len(rank))]
    if draw(r) < 0.7:
        e = by_rank[min(max(rank[d] + (1 if draw(r) < 0.5 else -1), 0), len(rank) - 1)]
    if e == d:
        return 0
    up = rank[e] > rank[d]
    count = _take(t, s, u, e, count)
    i = 0
    while i < count:
        v = s.units[i]
        i += 1
        for j in range(t.after_ptr[v] if up else t.before_ptr[v], t.after_ptr[v + 1] if up else t.before_ptr[v + 1]):
            w = t.after[j] if up else t.before[j]
            wrong = rank[s.place[w]] < rank[e] if up else rank[s.place[w]] > rank[e]
            if wrong and s.mark[w] != s.mark[-1]:
                before = count
                count = _take(t, s, w, e, count)
                if count == before:
                    return 0
    return count


@njit(cache=True, nogil=True)
def walk(
    t: Tables, s: State, r: np.ndarray, order: np.ndarray, rank: np.ndarray, ordered: bool, hot: float, moves: int,
    best: np.ndarray,
) -> float:
    """Anneal `moves` moves from the placement loaded in `s`; the best placement that fits goes to `best` [units].

    Returns its largest load [s], infinite if none fits. `order` is a permutation of the units, `rank` of the devices.
    """
    devices, at, by_rank = len(rank), np.empty_like(order), np.empty_like(rank)
    at[order] = np.arange(len(order))
    by_rank[rank] = np.arange(devices)
    saved, held = np.zeros(devices), np.zeros(devices)
    over, now = excess(t, s), _smooth(s)
    least = s.load.max() if over == 0.0 else np.inf
    best[:] = s.place
    heat, cooling = hot * now, exponential(_COOLING / max(moves, 1))
    for _ in range(moves):
        heat *= cooling
        count = _propose_ordered(t, s, r, rank, by_rank) if ordered else _propose(t, s, r, order, at)
        if count == 0:
            continue
        saved[:] = s.load
        held[:] = s.held
        for i in range(count):
            move(t, s, s.units[i], s.goal[i])
        fresh, spilt = _smooth(s), excess(t, s)
        if spilt < over or (spilt == over and (fresh <= now or draw(r) < exponential((now - fresh) / heat))):
            now, over = fresh, spilt
            if over == 0.0 and s.load.max() < least:
                least = s.load.max()
                best[:] = s.place
        else:
            for i in range(count):
                move(t, s, s.units[i], s.old[i])
            s.load[:] = saved  # exactly as before: sums do not drift with refused moves
            s.held[:] = held
    return least


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
        k = count - 1 if draw(r) < deep else _below(r, count)
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
            j = first + _below(r, count - first)
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


def new_state(t: Tables) -> State:
    """Room for a placement; `load` fills it."""
    units, devices = t.seconds.shape
    return State(
        np.zeros(units, np.int64), np.zeros(devices), np.zeros(devices), np.zeros((len(t.cost), devices), np.int64),
        np.zeros(units, np.int64), np.zeros(units, np.int64), np.zeros(units, np.int64), np.zeros(units + 1, np.int64),
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


def evaluate(p: Problem, place: np.ndarray) -> Split:
    """The value of a placement [nodes]. Errors: QeilError if it parts nodes that belong together, puts one where it may
    not run, or does not fit into memory."""
    place = np.asarray(place, np.int64)
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


def bound(p: Problem) -> float:
    """No split has a smaller largest load [s]. Transfers are left out; a time is too short by one of two arguments.

    - Work shared perfectly (linear relaxation: units are divided), where no unit uses a device on which it alone takes
      longer than that time. So the longest unit bounds it too.
    - Pigeonholes: of the k m + 1 longest units that only m devices can run in time, k + 1 meet on one device.
    """
    low, high = 0.0, float(p.free.seconds.min(axis=1).sum())
    for _ in range(40):  # what is too short stays so for any shorter time
        middle = (low + high) / 2
        if _crowded(p.free.seconds, middle) or _shared(p.free.seconds, middle) > middle * (1 + 1e-9):
            low = middle
        else:
            high = middle
    return low


def _crowded(seconds: np.ndarray, time: float) -> bool:
    """Whether pigeonholes show that units do not finish by `time`."""
    able = seconds <= time
    if not able.any(axis=1).all():
        return True
    for devices in np.unique(able, axis=0):
        m = int(devices.sum())
        within = ~(able & ~devices).any(axis=1)
        least = np.sort(np.where(devices, seconds, np.inf)[within].min(axis=1))[::-1]
        for k in range(1, (len(least) - 1) // m + 1):
            if least[k * m - k : k * m + 1].sum() > time:
                return True
    return False


def _shared(seconds: np.ndarray, time: float) -> float:
    """Least time to share the work, where no unit uses a device that takes longer than `time` for it; 0 if the solver
    gives no answer."""
    units, devices = seconds.shape
    u, d = np.nonzero(seconds <= time)
    n = len(u)
    whole = coo_matrix((np.ones(n), (u, np.arange(n))), shape=(units, n + 1))
    work = coo_matrix(
        (np.append(seconds[u, d], np.full(devices, -1.0)),
         (np.append(d, np.arange(devices)), np.append(np.arange(n), np.full(devices, n)))), shape=(devices, n + 1)
    )  # fmt: skip
    aim = np.zeros(n + 1)
    aim[n] = 1.0
    done = linprog(
        aim, A_ub=work.tocsr(), b_ub=np.zeros(devices), A_eq=whole.tocsr(), b_eq=np.ones(units), method="highs"
    )
    return float(done.fun) if done.status == 0 else 0.0
