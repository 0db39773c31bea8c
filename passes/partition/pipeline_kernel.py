"""Compiled moves of the search for the smallest largest load, and one annealed walk; the model is in `pipeline`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from qeil_compile.passes.partition.anneal import draw
from qeil_compile.passes.partition.kernel import exponential

#: Kinds of moves: a unit anywhere, a unit to a neighbour's device, two units change places, a run of the order, a
#: connected piece of a device.
_ANY, _NEAR, _SWAP, _RUN, _PIECE = range(5)
_KINDS = 5
#: ln(end / start) of the temperature of a walk.
_COOLING = -9.210340371976182
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


def new_state(t: Tables) -> State:
    """Room for a placement; `load` fills it."""
    units, devices = t.seconds.shape
    return State(
        np.zeros(units, np.int64), np.zeros(devices), np.zeros(devices), np.zeros((len(t.cost), devices), np.int64),
        np.zeros(units, np.int64), np.zeros(units, np.int64), np.zeros(units, np.int64), np.zeros(units + 1, np.int64),
    )  # fmt: skip


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
def below(r: np.ndarray, n: int) -> int:
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
    k = t.net[t.net_ptr[u] + below(r, degree)]
    return t.pin[t.pin_ptr[k] + below(r, t.pin_ptr[k + 1] - t.pin_ptr[k])]


@njit(cache=True, nogil=True)
def _length(r: np.ndarray, most: int) -> int:
    """A length up to `most`, short ones more often."""
    base = 2
    while base < most and draw(r) < 0.5:
        base *= 2
    return min(1 + below(r, base), most)


@njit(cache=True, nogil=True)
def _propose(t: Tables, s: State, r: np.ndarray, order: np.ndarray, at: np.ndarray) -> int:
    """A free move; returns how many units it moves."""
    n, devices, count = len(order), len(s.load), 0
    s.mark[-1] += 1
    u = below(r, n)
    if draw(r) < 0.5:  # what relieves the busiest device helps at once
        busiest = s.load.argmax()
        for _ in range(16):
            if s.place[u] == busiest:
                break
            u = below(r, n)
    d, kind = s.place[u], below(r, _KINDS)
    e = s.place[_neighbour(t, r, u)]
    if kind == _ANY or e == d:
        e = below(r, devices)
    if kind == _SWAP:
        v = _neighbour(t, r, u) if draw(r) < 0.3 else below(r, n)
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
    u = below(r, len(s.place))
    d = s.place[u]
    e = by_rank[below(r, len(rank))]
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
