"""The compiled inner loop: values of an assignment, and how a move changes them.

All functions take the arrays of `tables.Tables` and a `State`; none touches a Python object. A move costs what its
groups, their tensors and the segments around them cost, whatever the size of the graph.
"""

from __future__ import annotations

from math import floor, ldexp
from typing import NamedTuple

import numpy as np
from numba import njit

from qeil_compile.passes.partition.tables import Tables

#: Places in `State.total`.
LATENCY, USEFUL, MOVED, BETWEEN = range(4)
#: Newton steps of the temperature, as in `passes.thermal`.
_STEPS = 60


class State(NamedTuple):
    """An assignment with everything that its value is made of, and room to work in.

    `place` int64[n]; `makespan` [segments] per run; `busy` and `dynamic` [devices]; `total` as named above; counts of
    readers [tensors, devices] and of users of a weight [weights, devices]; `held` bytes [pools]. `tick` counts up the
    marks in `seen`, `mark_group` and `mark_segment`. `touched` segments of the last change had the makespans `old`, and
    all sums were `sums` before it.
    """

    place: np.ndarray
    makespan: np.ndarray
    busy: np.ndarray
    dynamic: np.ndarray
    total: np.ndarray
    readers: np.ndarray
    users: np.ndarray
    held: np.ndarray
    end: np.ndarray
    free: np.ndarray
    link_free: np.ndarray
    arrival: np.ndarray
    seen: np.ndarray
    mark_group: np.ndarray
    mark_segment: np.ndarray
    tick: np.ndarray
    touched: np.ndarray
    old: np.ndarray
    sums: np.ndarray


def new_state(t: Tables) -> State:
    """Room for an assignment; `load` fills it."""
    n, devices, tensors = t.groups, len(t.power_const), len(t.nbytes)
    segments = len(t.segment_start) - 1
    return State(
        np.zeros(n, np.int64), np.zeros(segments), np.zeros(devices), np.zeros(devices), np.zeros(4),
        np.zeros((tensors, devices), np.int32), np.zeros((len(t.weight_bytes), devices), np.int32),
        np.zeros(len(t.room)), np.zeros(n), np.zeros(devices), np.zeros(devices * devices),
        np.zeros((tensors, devices)), np.zeros((tensors, devices), np.int64), np.zeros(n + 1, np.int64),
        np.zeros(segments + 1, np.int64), np.zeros(2, np.int64), np.zeros(segments, np.int64), np.zeros(segments),
        np.zeros(2 * devices + 4 + len(t.room)),
    )  # fmt: skip


@njit(cache=True, nogil=True)
def exponential(x: float) -> float:
    """e^x by plain arithmetic: the same on every machine, which a library's `exp` is not."""
    if x < -700.0:
        return 0.0
    x = min(x, 700.0)
    k = floor(x * 1.4426950408889634 + 0.5)
    r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10
    term, total = 1.0, 1.0
    for i in range(1, 15):
        term *= r / i
        total += term
    return ldexp(total, int(k))


@njit(cache=True, nogil=True, inline="always")
def makespan(t: Tables, s: State, seg: int) -> float:
    """Time of one run of a segment [s]: its stages in order."""
    low, high = t.segment_start[seg], t.segment_start[seg + 1]
    phase = t.phase[low]
    begins = low == 0 or t.phase[low - 1] != phase
    s.free[:] = 0.0
    s.link_free[:] = 0.0
    s.tick[0] += 1
    tick = s.tick[0]
    last, available, i = 0.0, 0.0, low
    while i < high:
        p = s.place[i]
        d = t.device[p]
        length, ready = 0.0, 0.0
        j = i
        while j < high and s.place[j] == p:
            length += t.seconds[j, p]
            for k in range(t.read_ptr[j], t.read_ptr[j + 1]):
                tensor = t.read[k]
                w = t.writer[tensor]
                if t.crossing[tensor] or w >= i or t.segment[w] < seg - 1:
                    continue
                there = 0.0
                if t.segment[w] == seg:
                    there = s.end[w]
                elif s.place[w] == s.place[low - 1]:
                    there = available
                e = t.device[s.place[w]]
                if e != d and t.nbytes[tensor] > 0:
                    if s.seen[tensor, d] != tick:
                        s.seen[tensor, d] = tick
                        link = t.link[e, d]
                        begin = max(there, s.link_free[link])
                        need = t.link_latency[e, d] + t.nbytes[tensor] * t.link_inverse[e, d]
                        if need > 0:
                            s.link_free[link] = begin + need
                            s.arrival[tensor, d] = begin + need
                        else:
                            s.arrival[tensor, d] = there
                    there = s.arrival[tensor, d]
                ready = max(ready, there)
            j += 1
        if i == low and begins:
            length += t.entry[phase, p]
        elif s.place[i - 1] != p:
            length += t.boundary[s.place[i - 1], p]
        done = max(ready, s.free[d]) + length
        s.free[d] = done
        for k in range(i, j):
            s.end[k] = done
        last = max(last, done)
        if i == low and not begins and s.place[low - 1] == p:
            available = done
        i = j
    return last


@njit(cache=True, nogil=True, inline="always")
def _enter(t: Tables, s: State, g: int, sign: float) -> None:
    """Count (or discount) what entering a new stage at group g costs its device."""
    p, phase = s.place[g], t.phase[g]
    cost = 0.0
    if g == 0 or t.phase[g - 1] != phase:
        cost = t.entry[phase, p]
    elif s.place[g - 1] != p:
        cost = t.boundary[s.place[g - 1], p]
    s.busy[t.device[p]] += sign * t.runs[phase] * cost


@njit(cache=True, nogil=True, inline="always")
def _carry(t: Tables, s: State, tensor: int, a: int, b: int, sign: float) -> None:
    """Count (or discount) the transfer of a tensor from device a to b."""
    if a != b and t.nbytes[tensor] > 0:
        s.total[MOVED] += sign * t.tensor_runs[tensor] * t.nbytes[tensor] * t.link_joules[a, b]
        if t.crossing[tensor]:
            s.total[BETWEEN] += sign * (t.link_latency[a, b] + t.nbytes[tensor] * t.link_inverse[a, b])


@njit(cache=True, nogil=True, inline="always")
def _count(t: Tables, s: State, g: int, sign: int) -> None:
    """Count (or discount) the work, the weights and the reads of group g where it is."""
    p = s.place[g]
    d, runs = t.device[p], t.runs[t.phase[g]]
    s.busy[d] += sign * runs * t.seconds[g, p]
    s.dynamic[d] += sign * runs * t.dynamic[g, p]
    s.total[USEFUL] += sign * runs * t.useful[g, p]


@njit(cache=True, nogil=True, inline="always")
def _use(t: Tables, s: State, g: int, d: int, sign: int) -> None:
    """Count (or discount) that group g, on device d, keeps its weights and reads its tensors there."""
    for k in range(t.weight_ptr[g], t.weight_ptr[g + 1]):
        w = t.weight[k]
        before = s.users[w, d]
        s.users[w, d] += sign
        if (before == 0) != (s.users[w, d] == 0):
            s.held[t.pool[d]] += sign * t.weight_bytes[w]
    for k in range(t.read_ptr[g], t.read_ptr[g + 1]):
        tensor = t.read[k]
        before = s.readers[tensor, d]
        s.readers[tensor, d] += sign
        if (before == 0) != (s.readers[tensor, d] == 0):
            _carry(t, s, tensor, t.device[s.place[t.writer[tensor]]], d, sign)


@njit(cache=True, nogil=True, inline="always")
def _shift(t: Tables, s: State, g: int, q: int) -> None:
    """Put group g on placement q; stages and makespans are the caller's."""
    a, b = t.device[s.place[g]], t.device[q]
    _count(t, s, g, -1)
    if a != b:
        _use(t, s, g, a, -1)
        for k in range(t.out_ptr[g], t.out_ptr[g + 1]):
            tensor = t.out[k]
            for d in range(len(t.power_const)):
                if s.readers[tensor, d] > 0:
                    _carry(t, s, tensor, a, d, -1.0)
                    _carry(t, s, tensor, b, d, 1.0)
    s.place[g] = q
    if a != b:
        _use(t, s, g, b, 1)
    _count(t, s, g, 1)


@njit(cache=True, nogil=True)
def load(t: Tables, s: State, place: np.ndarray) -> None:
    """Take an assignment and work out everything anew."""
    n = len(place)
    s.place[:] = place
    s.busy[:] = 0.0
    s.dynamic[:] = 0.0
    s.total[:] = 0.0
    s.readers[:] = 0
    s.users[:] = 0
    s.held[:] = 0.0
    for g in range(n):
        _count(t, s, g, 1)
        _use(t, s, g, t.device[s.place[g]], 1)
        _enter(t, s, g, 1.0)
    for seg in range(len(t.segment_start) - 1):
        s.makespan[seg] = makespan(t, s, seg)
        s.total[LATENCY] += t.runs[t.phase[t.segment_start[seg]]] * s.makespan[seg]


@njit(cache=True, nogil=True)
def change(t: Tables, s: State, groups: np.ndarray, places: np.ndarray, count: int) -> None:
    """Put `groups[:count]` on `places[:count]` and bring all values up to date."""
    n = len(s.place)
    k = 0
    for sums in (s.busy, s.dynamic, s.total, s.held):
        for i in range(len(sums)):
            s.sums[k] = sums[i]
            k += 1
    s.tick[1] = 0
    s.tick[0] += 1
    tick = s.tick[0]
    for i in range(count):
        for g in (groups[i], groups[i] + 1):
            if g < n and s.mark_group[g] != tick:
                s.mark_group[g] = tick
                _enter(t, s, g, -1.0)
    for i in range(count):
        _shift(t, s, groups[i], places[i])
    s.tick[0] += 1
    again = s.tick[0]
    for i in range(count):
        for g in (groups[i], groups[i] + 1):
            if g < n and s.mark_group[g] != again:
                s.mark_group[g] = again
                _enter(t, s, g, 1.0)
    segments = len(t.segment_start) - 1
    for i in range(count):
        first = t.segment[groups[i]]
        for seg in (first, first + 1):
            # `makespan` counts the tick up as well: later marks of this change are never smaller.
            if seg < segments and s.mark_segment[seg] < again:
                s.mark_segment[seg] = s.tick[0] + 1
                runs = t.runs[t.phase[t.segment_start[seg]]]
                before = s.makespan[seg]
                s.touched[s.tick[1]], s.old[s.tick[1]] = seg, before
                s.tick[1] += 1
                s.makespan[seg] = makespan(t, s, seg)
                s.total[LATENCY] += runs * (s.makespan[seg] - before)


@njit(cache=True, nogil=True)
def undo(t: Tables, s: State, groups: np.ndarray, before: np.ndarray, count: int) -> None:
    """Take back the last change: `groups[:count]` to where they were before."""
    for i in range(count):
        g, p = groups[i], before[i]
        a, b = t.device[s.place[g]], t.device[p]
        s.place[g] = p
        if a != b:
            for k in range(t.weight_ptr[g], t.weight_ptr[g + 1]):
                s.users[t.weight[k], a] -= 1
                s.users[t.weight[k], b] += 1
            for k in range(t.read_ptr[g], t.read_ptr[g + 1]):
                s.readers[t.read[k], a] -= 1
                s.readers[t.read[k], b] += 1
    for i in range(s.tick[1]):
        s.makespan[s.touched[i]] = s.old[i]
    k = 0
    for sums in (s.busy, s.dynamic, s.total, s.held):
        for i in range(len(sums)):
            sums[i] = s.sums[k]
            k += 1


@njit(cache=True, nogil=True)
def settle(row: np.ndarray, power: float, share: float) -> tuple[float, bool]:
    """Leakage [W] at the temperature where the device settles, and whether it is below the ceiling."""
    leakage, base, slope, z, ambient, top = row[0], row[1], row[2], row[3], row[4], row[5]
    x, fine = ambient, ambient < top
    if fine:
        for _ in range(_STEPS):
            at = min(x, top)
            leak = leakage * (at / base) ** 2 * exponential(slope * (1 / base - 1 / at))
            rise = leak * (2 / at + slope / at**2)
            gap = ambient + z * (power + share * leak) - x
            fall = 1 - z * share * rise
            if not (fall > 0 or gap <= 0):
                fine = False
                break
            step = gap / fall if gap > 0 else 0.0
            x += step
            if x >= top:
                fine = False
                break
            if not step > 1e-13 * x:
                break
    at = x if fine else top
    return leakage * (at / base) ** 2 * exponential(slope * (1 / base - 1 / at)), fine


@njit(cache=True, nogil=True)
def objectives(t: Tables, s: State, out: np.ndarray) -> None:
    """Latency [s], energy [J], under-utilisation and violation (0: feasible) of the state, into `out`."""
    devices = len(t.power_const)
    latency = s.total[LATENCY] + s.total[BETWEEN]
    energy, wrong = s.total[MOVED], 0.0
    for d in range(devices):
        busy = s.busy[d]
        fixed = busy * t.power_const[d] + s.dynamic[d] + max(latency - busy, 0.0) * t.power_idle[d]
        if t.thermal[d, 5] < np.inf and latency > 0:
            leak, fine = settle(t.thermal[d], fixed / latency, min(busy / latency, 1.0))
            fixed += busy * leak
            wrong += 0.0 if fine else 1.0
        if t.room[t.pool[d]] < 0 and busy > 1e-12 * latency:
            wrong += 1.0  # not even the activations fit
        energy += fixed
    for k in range(len(t.room)):
        # Nothing held needs no room; sums of bytes that came and went may leave a rounding error.
        if s.held[k] > max(t.room[k], 0.0) + 0.5:
            wrong += (s.held[k] - t.room[k]) / max(t.room[k], 1.0)
    out[0] = latency
    out[1] = energy
    out[2] = min(max(1.0 - s.total[USEFUL] / (devices * latency), 0.0), 1.0) if latency > 0 else 0.0
    out[3] = wrong


@njit(cache=True, nogil=True)
def evaluate_all(t: Tables, s: State, places: np.ndarray, out: np.ndarray) -> None:
    """Values of many assignments int64[k, n], each worked out anew, into float64[k, 4]."""
    for k in range(len(places)):
        load(t, s, places[k])
        objectives(t, s, out[k])
