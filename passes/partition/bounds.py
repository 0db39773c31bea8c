"""Lower bounds of scalarised latency and energy: how far a plan may be from the best one.

Between two cuts a branch and bound looks at every assignment of the groups of a segment, valued as in `tables`; a
dynamic programme over the cuts joins the segments. It prunes by two bounds: the longest way to the end of the segment,
and the work that is left: for shares pi of the devices that sum to 1 the makespan is at least the sum of pi times what
each device still has to do, so that each group costs no less than its cheapest pi t (the dual of sharing work without
waiting; multiplicative steps choose pi). What is left out can only add: memory that is too small, leakage above that
at ambient temperature, and transfers of tensors that skip a segment. Where a segment has too many assignments to look
at, its bound is the better of the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from qeil_compile.passes.choice import SCALES
from qeil_compile.passes.partition.kernel import exponential, settle
from qeil_compile.passes.partition.tables import Tables

#: Partial assignments of one segment that are looked at, for each placement that it may be entered from.
_MOST = 20_000


def ambient_leakage(t: Tables) -> np.ndarray:
    """Leakage [W] of each device at ambient temperature: no plan has less."""
    return np.array([settle(row, 0.0, 0.0)[0] if row[0] > 0 else 0.0 for row in t.thermal])


@dataclass(frozen=True)
class LowerBounds:
    """Values below which no plan lies: of each scalarisation (relative), of latency [s], energy [J] and
    under-utilisation. `starts` are the assignments that came closest to the first ones."""

    scalar: Mapping[str, float]
    latency: float
    energy: float
    under_utilisation: float


def lower_bounds(
    t: Tables, scale: np.ndarray, seeds: Sequence[np.ndarray] = (), most: int = _MOST
) -> LowerBounds:
    """Bounds for all assignments; scalarisations are relative to `scale`.

    Good assignments in `seeds`, and more than `most` partial assignments per segment and placement before it, make
    them tighter, never wrong.
    """
    leakage = ambient_leakage(t)
    goals = {name: w for name, w in SCALES.items() if not w[2]}
    found = {n: _bound(t, leakage, w[0] / scale[0], w[1] / scale[1], seeds, most) for n, w in goals.items()}
    latency = found["latency"] * float(scale[0])
    useful = float(np.where(t.allowed > 0, t.useful, 0.0).max(axis=1) @ t.runs[t.phase])
    under = max(0.0, 1.0 - useful / (len(t.power_const) * latency)) if latency else 0.0
    return LowerBounds({**found, "utilisation": under}, latency, found["energy"] * float(scale[1]), under)


def weighted_bound(t: Tables, wl: float, we: float) -> float:
    """A value below which `wl` latency + `we` energy of no plan lies."""
    return _bound(t, ambient_leakage(t), wl, we)


def gap(value: float, bound: float) -> float | None:
    """By which share a value may be above the best one; None where the bound says nothing."""
    if bound > 0:
        return max(0.0, value / bound - 1.0)
    return 0.0 if value <= 0 else None


def _bound(
    t: Tables, leakage: np.ndarray, wl: float, we: float, seeds: Sequence[np.ndarray] = (), most: int = _MOST
) -> float:
    """The least `wl` latency + `we` energy over the segments, with memory left out; `seeds` are good assignments."""
    given = np.array(seeds, dtype=np.int64).reshape(-1, t.groups)
    known: dict[tuple[object, ...], np.ndarray] = {}
    local, total, lowest = _local(t), 0.0, np.zeros(t.placements)
    for seg in range(len(t.segment_start) - 1):
        low = int(t.segment_start[seg])
        begins = low == 0 or t.phase[low - 1] != t.phase[low]
        key = _key(t, seg, begins)
        if key not in known:
            known[key] = _segment(t, seg, begins, leakage, wl, we, local, most, given)
        if begins:
            total += float(lowest.min())
            lowest = known[key][0]
        else:
            lowest = (lowest[:, None] + known[key]).min(axis=0)
    return total + float(lowest.min())


def _key(t: Tables, seg: int, begins: bool) -> tuple[object, ...]:
    """Equal for segments with equal costs and equal structure."""
    low, high = int(t.segment_start[seg]), int(t.segment_start[seg + 1])
    reads = t.read[t.read_ptr[low] : t.read_ptr[high]]
    source = t.writer[reads]
    # Only where in the segment, or that it is the cut before it; all others count as arrived.
    where = np.where(source >= low - 1, source - low, -2)
    return (
        begins, int(t.phase[low]), t.seconds[low:high].tobytes(), t.dynamic[low:high].tobytes(),
        t.allowed[low:high].tobytes(), np.diff(t.read_ptr[low : high + 1]).tobytes(), where.tobytes(),
        np.where(where >= -1, t.nbytes[reads], 0.0).tobytes(),
    )  # fmt: skip


def _local(t: Tables) -> np.ndarray:
    """Whether all readers of a tensor are in one segment, uint8[tensors]."""
    rows = np.repeat(np.arange(t.groups), np.diff(t.read_ptr))
    segments = t.segment[rows]
    low, high = np.full(len(t.nbytes), 2**62), np.full(len(t.nbytes), -1)
    np.minimum.at(low, t.read, segments)
    np.maximum.at(high, t.read, segments)
    return (low == high).astype(np.uint8)


@njit(cache=True, nogil=True)
def _shares(t: Tables, low: int, high: int, own: np.ndarray, second: float) -> np.ndarray:
    """Shares of the devices, non-negative and of sum 1, for which the work bound of a segment is high."""
    devices, places = len(t.power_const), t.seconds.shape[1]
    share, best = np.full(devices, 1.0 / devices), np.full(devices, 1.0 / devices)
    highest = -np.inf
    for step in range(200):
        load, value = np.zeros(devices), 0.0
        for g in range(low, high):
            least, chosen = np.inf, 0
            for p in range(places):
                if t.allowed[g, p]:
                    cost = own[g - low, p] + second * share[t.device[p]] * t.seconds[g, p]
                    if cost < least:
                        least, chosen = cost, p
            value += least
            load[t.device[chosen]] += t.seconds[g, chosen]
        if value > highest:
            highest = value
            best[:] = share
        whole = load.sum()
        if whole <= 0:
            break
        # Multiplicative steps stay on the simplex: devices with more to do get a larger share.
        total = 0.0
        for d in range(devices):
            share[d] = max(share[d], 1e-9) * exponential(2.0 / (1.0 + 0.1 * step) * (load[d] / whole - share[d]))
            total += share[d]
        for d in range(devices):
            share[d] /= total
    return best


@njit(cache=True, nogil=True)
def _changes(t: Tables, low: int, high: int, work: np.ndarray, second: float, joule: float) -> np.ndarray:
    """How much more it can cost to go on from placement a than from b after a segment, at most, float64[P, P]."""
    places = t.seconds.shape[1]
    onward = np.zeros((places, places))
    ends = high == len(t.phase) or t.phase[high] != t.phase[low]
    if not ends:
        for a in range(places):
            for p in range(places):
                d, e = t.device[a], t.device[p]
                if a != p:
                    onward[a, p] = (second + work[p]) * t.boundary[a, p]
                for k in range(t.out_ptr[high - 1], t.out_ptr[high]):
                    size = t.nbytes[t.out[k]]
                    if d != e and size > 0:
                        onward[a, p] += second * (t.link_latency[d, e] + size * t.link_inverse[d, e])
                        onward[a, p] += joule * size * t.link_joules[d, e]
    change = np.zeros((places, places))
    for a in range(places):
        for b in range(places):
            for p in range(places):
                change[a, b] = max(change[a, b], onward[a, p] - onward[b, p])
    return change


@njit(cache=True, nogil=True)
def _close(found: np.ndarray, change: np.ndarray) -> float:
    """Lower each value to what another one and a change of placement come to; returns the largest.

    Whatever follows a plan that ends on b may follow one that ends on a for `change[a, b]` more: a plan that ends on b
    and costs as much is of no use.
    """
    largest = 0.0
    for b in range(len(found)):
        for a in range(len(found)):
            found[b] = min(found[b], found[a] + change[a, b])
        largest = max(largest, found[b])
    return largest


@njit(cache=True, nogil=True)
def _last(first: np.ndarray, i: int, depth: int) -> int:
    """The last group before `depth` that is in the stage of group i."""
    while i + 1 < depth and first[i + 1] == first[i]:
        i += 1
    return i


@njit(cache=True, nogil=True)
def _segment(
    t: Tables, seg: int, begins: bool, leakage: np.ndarray, wl: float, we: float, local: np.ndarray, most: int,
    seeds: np.ndarray,
) -> np.ndarray:
    """Least value of a segment by the placement before it and that of its last group, float64[P, P]."""
    low, high = t.segment_start[seg], t.segment_start[seg + 1]
    n, places, devices = high - low, t.seconds.shape[1], len(t.power_const)
    phase = t.phase[low]
    runs = t.runs[phase]
    idle = t.power_idle.sum()
    second = runs * (wl + we * idle)
    #: Cost of a second of work beside its share of the makespan.
    work = np.zeros(places)
    for p in range(places):
        d = t.device[p]
        work[p] = runs * we * (t.power_const[d] + leakage[d] - t.power_idle[d])
    own, cheapest = np.zeros((n, places)), np.zeros(n + 1)
    for i in range(n):
        least = np.inf
        for p in range(places):
            own[i, p] = work[p] * t.seconds[low + i, p] + runs * we * t.dynamic[low + i, p]
            if t.allowed[low + i, p]:
                least = min(least, own[i, p])
        cheapest[i] = least
    # A stage that is entered may cost less than nothing where a device draws less at work than at rest.
    entering = 0.0
    for p in range(places):
        for q in range(places):
            entering = min(entering, work[p] * t.boundary[q, p])
        entering = min(entering, work[p] * t.entry[phase, p])
    for i in range(n - 1, -1, -1):
        cheapest[i] += cheapest[i + 1] + entering
    # Longest way from the end of group i on p to the end of the segment: each reader where that is shortest.
    tail = np.zeros((n, places))
    for i in range(n - 1, -1, -1):
        for k in range(t.read_ptr[low + i], t.read_ptr[low + i + 1]):
            tensor = t.read[k]
            w = t.writer[tensor] - low
            if w < 0 or t.crossing[tensor]:
                continue
            for p in range(places):
                least, d = np.inf, t.device[p]
                for q in range(places):
                    e = t.device[q]
                    if t.allowed[low + i, q]:
                        way = t.seconds[low + i, q] + tail[i, q]
                        if d != e and t.nbytes[tensor] > 0:
                            way += t.link_latency[d, e] + t.nbytes[tensor] * t.link_inverse[d, e]
                        least = min(least, way)
                tail[w, p] = max(tail[w, p], least)
    share = _shares(t, low, high, own, second)
    # What groups i and later cost at least when the group before i is on p, boundaries included.
    left = np.zeros((n + 1, places))
    for i in range(n - 1, -1, -1):
        for p in range(places):
            least = np.inf
            for q in range(places):
                if t.allowed[low + i, q]:
                    weight = second * share[t.device[q]]
                    value = own[i, q] + weight * t.seconds[low + i, q] + left[i + 1, q]
                    if i == 0 and begins:
                        value += (work[q] + weight) * t.entry[phase, q]
                    elif q != p:
                        value += (work[q] + weight) * t.boundary[p, q]
                    least = min(least, value)
            left[i, p] = least
    found = np.full((places, places), np.inf)
    place, end, first = np.full(n, -1), np.zeros(n), np.zeros(n, np.int64)
    starts, lengths = np.zeros(n), np.zeros(n)
    # When each link is free again, and when what a read moved has arrived.
    base = t.read_ptr[low]
    road, got = np.zeros((n + 1, devices * devices)), np.zeros(t.read_ptr[high] - base + 1)
    free, cost, reach = np.zeros((n + 1, devices)), np.zeros(n + 1), np.zeros(n + 1)
    order = np.zeros((n, places), np.int64)
    for i in range(n):
        order[i] = np.argsort(own[i] + second * t.seconds[low + i])
    at = np.zeros(n, np.int64)
    change = _changes(t, low, high, work, second, runs * we)
    complete = True
    for before in range(1 if begins else places):
        looked, depth, worst = 0, 0, np.inf
        at[0] = 0
        seed = 0  # assignments that are given come first: they are likely good
        while depth >= 0:
            if at[depth] == places:
                depth -= 1
                if depth >= 0:
                    at[depth] += 1
                continue
            looked += 1
            if looked > most:
                complete = False
                break
            g = low + depth
            given = seed < len(seeds)
            # First where the group before is, then from the cheapest on.
            stay = before if depth == 0 else place[depth - 1]
            p = stay
            if at[depth] > 0 or (begins and depth == 0):
                k, seen = 0, 0
                while True:
                    p = order[depth, k]
                    k += 1
                    if p != stay or (begins and depth == 0):
                        seen += 1
                        if seen == at[depth] + (1 if begins and depth == 0 else 0):
                            break
            if given:
                p = seeds[seed, g]
            if not t.allowed[g, p]:
                if given:
                    seed, depth = seed + 1, 0
                    at[0] = 0
                else:
                    at[depth] += 1
                continue
            place[depth] = p
            d = t.device[p]
            # The stage that this group is in, and what it was before the group came.
            joins = depth > 0 and place[depth - 1] == p
            first[depth] = first[depth - 1] if joins else depth
            ready, length, more = 0.0, t.seconds[g, p], own[depth, p]
            for k in range(devices * devices):
                road[depth + 1, k] = road[depth, k]
            if joins:
                ready, length = starts[depth - 1], length + lengths[depth - 1]
            for k in range(t.read_ptr[g], t.read_ptr[g + 1]):
                tensor = t.read[k]
                w = t.writer[tensor]
                size = t.nbytes[tensor]
                if t.crossing[tensor] or w < low - 1 or (w == low - 1 and begins) or w - low >= first[depth]:
                    continue
                q = before if w == low - 1 else place[w - low]
                there = 0.0
                if w >= low:  # what a stage writes is there when the stage has ended
                    there = end[_last(first, w - low, depth)]
                elif place[0] == before and first[depth] > 0:
                    there = end[_last(first, 0, depth)]
                e = t.device[q]
                if e != d and size > 0:
                    known = -1  # the read that brought it here already
                    for j in range(depth):
                        if t.device[place[j]] == d and known < 0:
                            for m in range(t.read_ptr[low + j], t.read_ptr[low + j + 1]):
                                if t.read[m] == tensor:
                                    known = m - base
                    if known >= 0:
                        there = got[known]
                    else:
                        need = t.link_latency[e, d] + size * t.link_inverse[e, d]
                        if need > 0:
                            there = max(there, road[depth + 1, t.link[e, d]]) + need
                            road[depth + 1, t.link[e, d]] = there
                        if w >= low or local[tensor]:
                            more += runs * we * size * t.link_joules[e, d]
                    got[k - base] = there
                ready = max(ready, there)
            if depth == 0 and begins:
                length += t.entry[phase, p]
                more += work[p] * t.entry[phase, p]
            elif not joins:
                q = before if depth == 0 else place[depth - 1]
                if q != p:
                    length += t.boundary[q, p]
                    more += work[p] * t.boundary[q, p]
            starts[depth], lengths[depth] = ready, length
            end[depth] = max(ready, free[first[depth], d]) + length
            value = cost[depth] + more
            long = max(reach[depth], end[depth] + tail[depth, p])
            spread = 0.0
            for e in range(devices):
                spread += share[e] * (end[depth] if e == d else free[depth, e])
            bound = value + max(cheapest[depth + 1] + second * long, left[depth + 1, p] + second * spread)
            if depth == n - 1:
                if value + second * long < found[before, p]:
                    found[before, p] = value + second * long
                    worst = _close(found[before], change)
                if given:
                    seed, depth = seed + 1, 0
                    at[0] = 0
                else:
                    at[depth] += 1
                continue
            if bound >= worst and not given:
                at[depth] += 1
                continue
            for e in range(devices):
                free[depth + 1, e] = free[depth, e]
            free[depth + 1, d] = end[depth]
            cost[depth + 1], reach[depth + 1] = value, long
            depth += 1
            at[depth] = 0
        if not complete:
            break
    if not complete:
        found = np.full((places, places), np.inf)
        longest = 0.0
        for i in range(n):
            way = np.inf
            for p in range(places):
                if t.allowed[low + i, p]:
                    way = min(way, t.seconds[low + i, p] + tail[i, p])
            longest = max(longest, way)
        for p in range(places):
            found[p, :] = max(cheapest[0] + second * longest, left[0, p])
        for p in range(places):
            if not t.allowed[high - 1, p]:
                found[:, p] = np.inf
    return found
