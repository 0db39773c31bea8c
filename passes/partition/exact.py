"""Certain answers for small problems: every assignment looked at, and a mixed-integer programme solved by HiGHS.

The programme lets a group start as soon as its device is free and its inputs are there; stages and busy links, which
`tables` prices on top, can only make it later. Its optimum is a lower bound, and the optimum itself wherever its
assignment is worth as much there.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from qeil_compile.errors import InputError
from qeil_compile.passes.partition.kernel import load, new_state, objectives
from qeil_compile.passes.partition.tables import Tables

#: Assignments that `exhaustive` looks at, at most.
_MOST = 5_000_000


@dataclass(frozen=True)
class Optimum:
    """The least value found, a value that none is below, and the assignment (None: no feasible one was found)."""

    value: float
    bound: float
    place: np.ndarray | None

    @property
    def proven(self) -> bool:
        """Whether the solver closed the gap."""
        return self.value <= self.bound * (1 + 1e-6) + 1e-12


def exhaustive(t: Tables, weights: tuple[float, float, float], scale: np.ndarray) -> Optimum:
    """The best feasible assignment of all, by a weighted sum of relative objectives; exact.

    Raises `InputError` where there are more than five million.
    """
    choices = [np.flatnonzero(row) for row in t.allowed]
    count = float(np.prod([float(len(c)) for c in choices]))
    if count > _MOST:
        raise InputError(f"exhaustive search: {count:.3g} assignments, expected at most {_MOST}; use another strategy")
    state, f = new_state(t), np.zeros(4)
    best, found = np.inf, None
    for combination in itertools.product(*choices):
        place = np.array(combination, dtype=np.int64)
        if any(place[g] != place[t.tied[t.tied_ptr[g]]] for g in range(t.groups) if t.tied_ptr[g] < t.tied_ptr[g + 1]):
            continue
        load(t, state, place)
        objectives(t, state, f)
        value = float(np.dot(weights, f[:3] / scale))
        if f[3] == 0 and value < best:
            best, found = value, place
    return Optimum(best, best, found)


def optimum(t: Tables, wl: float, we: float, leakage: np.ndarray, seconds: float = 60.0) -> Optimum:
    """HiGHS on `wl` latency [1/s] + `we` energy [1/J], with `leakage` [W] by device held constant."""
    return _Programme(t, wl, we, leakage).solve(seconds)


class _Programme:
    """Variables by name, rows by constraint; all variables are non-negative."""

    def __init__(self, t: Tables, wl: float, we: float, leakage: np.ndarray) -> None:
        self.t, self.wl, self.we = t, wl, we
        self.idle = float(t.power_idle.sum())
        self.work = we * (t.power_const + leakage - t.power_idle)[t.device]
        self.cost: list[float] = []
        self.whole: list[int] = []
        self.top: list[float] = []
        self.rows: list[dict[int, float]] = []
        self.low: list[float] = []
        self.high: list[float] = []
        self.on: dict[tuple[int, int], dict[int, float]] = {}
        self._assign()
        self._memory()
        for seg in range(len(t.segment_start) - 1):
            self._segment(seg)
        self._transfers()

    def _variable(self, cost: float = 0.0, whole: bool = False, top: float = np.inf) -> int:
        self.cost.append(cost)
        self.whole.append(int(whole))
        self.top.append(top)
        return len(self.cost) - 1

    def _row(self, terms: dict[int, float], low: float = 0.0, high: float = np.inf) -> None:
        self.rows.append(terms)
        self.low.append(low)
        self.high.append(high)

    def _assign(self) -> None:
        t = self.t
        n, places = t.seconds.shape
        self.x = np.zeros((n, places), dtype=np.int64)
        self.enter: list[dict[int, float]] = [{} for _ in range(n)]
        for g in range(n):
            runs, phase = float(t.runs[t.phase[g]]), int(t.phase[g])
            begins = g == 0 or t.phase[g - 1] != phase
            for p in range(places):
                length = float(t.seconds[g, p]) + (float(t.entry[phase, p]) if begins else 0.0)
                self.x[g, p] = self._variable(
                    runs * (self.work[p] * length + self.we * t.dynamic[g, p]), True, float(t.allowed[g, p])
                )
            self._row({int(v): 1.0 for v in self.x[g]}, 1.0, 1.0)
            for d in range(len(t.power_const)):
                self.on[g, d] = {int(self.x[g, p]): 1.0 for p in range(places) if t.device[p] == d}
            if not begins:
                self._pairs(g, runs)
            for h in t.tied[t.tied_ptr[g] : t.tied_ptr[g + 1]]:
                if h < g:
                    for p in range(places):
                        self._row({int(self.x[g, p]): 1.0, int(self.x[h, p]): -1.0}, 0.0, 0.0)

    def _pairs(self, g: int, runs: float) -> None:
        """Both placements of neighbours in the order, for the boundary between them."""
        t, places = self.t, self.t.placements
        z = np.array([[self._variable(runs * self.work[p] * t.boundary[q, p] * (p != q)) for p in range(places)]
                      for q in range(places)])  # fmt: skip
        for p in range(places):
            self._row({**{int(z[q, p]): 1.0 for q in range(places)}, int(self.x[g, p]): -1.0}, 0.0, 0.0)
            self._row({**{int(z[p, q]): 1.0 for q in range(places)}, int(self.x[g - 1, p]): -1.0}, 0.0, 0.0)
        self.enter[g] = {
            int(z[q, p]): float(t.boundary[q, p]) for q in range(places) for p in range(places) if p != q
        }

    def _memory(self) -> None:
        t = self.t
        for k in range(len(t.room)):
            total: dict[int, float] = {}
            for d in np.flatnonzero(t.pool == k):
                for w in range(len(t.weight_bytes)):
                    total[self._kept(w, int(d))] = float(t.weight_bytes[w]) / 1e6
            if total:
                self._row(total, -np.inf, max(float(t.room[k]), 0.0) / 1e6)

    def _kept(self, w: int, d: int) -> int:
        """Whether device d keeps weight w."""
        v = self._variable(top=1.0)
        rows = np.repeat(np.arange(self.t.groups), np.diff(self.t.weight_ptr))
        for g in rows[self.t.weight == w]:
            self._row({v: 1.0, **{k: -c for k, c in self.on[int(g), d].items()}})
        return v

    def _segment(self, seg: int) -> None:
        t = self.t
        low, high = int(t.segment_start[seg]), int(t.segment_start[seg + 1])
        runs, phase = float(t.runs[t.phase[low]]), int(t.phase[low])
        begins = low == 0 or t.phase[low - 1] != phase
        span = self._variable(runs * (self.wl + self.we * self.idle))
        end = {g: self._variable() for g in range(low, high)}
        large = self._large(low, high)
        past: dict[int, set[int]] = {}
        for g in range(low, high):
            past[g] = set()
            length = {int(self.x[g, p]): float(t.seconds[g, p]) for p in range(t.placements)}
            if g == low and begins:
                length = {int(self.x[g, p]): float(t.seconds[g, p] + t.entry[phase, p]) for p in range(t.placements)}
            length |= self.enter[g]
            self._row({end[g]: 1.0, **{k: -c for k, c in length.items()}})
            self._row({span: 1.0, end[g]: -1.0})
            for tensor in t.read[t.read_ptr[g] : t.read_ptr[g + 1]]:
                w = int(t.writer[tensor])
                if t.crossing[tensor] or w < low - 1 or (w < low and begins):
                    continue
                if w >= low:
                    past[g] |= past[w] | {w}
                self._arrives(int(tensor), w, g, end, length)
            for h in range(low, g):
                if h not in past[g]:
                    self._one_at_a_time(h, g, end, length, large)

    def _arrives(self, tensor: int, w: int, g: int, end: dict[int, int], length: dict[int, float]) -> None:
        """A group ends no earlier than its input is there plus its own length, for each pair of devices."""
        t = self.t
        before = {end[w]: -1.0} if w in end else {}
        self._row({end[g]: 1.0, **before, **{k: -c for k, c in length.items()}})
        for a in range(len(t.power_const)):
            for b in range(len(t.power_const)):
                need = float(t.link_latency[a, b] + t.nbytes[tensor] * t.link_inverse[a, b]) if a != b else 0.0
                if need and t.nbytes[tensor]:
                    terms = {end[g]: 1.0, **before, **{k: -c for k, c in length.items()}}
                    for k in (*self.on[w, a], *self.on[g, b]):
                        terms[k] = terms.get(k, 0.0) - need
                    self._row(terms, -need)

    def _one_at_a_time(
        self, h: int, g: int, end: dict[int, int], length: dict[int, float], large: float
    ) -> None:
        for d in range(len(self.t.power_const)):
            terms = {end[g]: 1.0, end[h]: -1.0, **{k: -c for k, c in length.items()}}
            for k in (*self.on[h, d], *self.on[g, d]):
                terms[k] = terms.get(k, 0.0) - large
            self._row(terms, -2 * large)

    def _large(self, low: int, high: int) -> float:
        """No segment of a sensible plan takes longer."""
        t = self.t
        longest = np.where(t.allowed[low:high] > 0, t.seconds[low:high], 0.0).max(axis=1).sum()
        reads = t.read[t.read_ptr[low] : t.read_ptr[high]]
        moves = t.link_latency.max() * len(reads) + float(t.nbytes[reads].sum()) * t.link_inverse.max()
        return float(longest + moves + (high - low) * max(t.boundary.max(), t.entry.max()))

    def _transfers(self) -> None:
        """Each tensor to each other device once: energy, and time between phases."""
        t = self.t
        devices = range(len(t.power_const))
        rows = np.repeat(np.arange(t.groups), np.diff(t.read_ptr))
        for tensor in range(len(t.nbytes)):
            size, w = float(t.nbytes[tensor]), int(t.writer[tensor])
            readers = [int(g) for g in rows[t.read == tensor]]
            for a, b in itertools.permutations(devices, 2):
                price = self.we * float(t.tensor_runs[tensor]) * size * float(t.link_joules[a, b])
                if t.crossing[tensor] and size:
                    need = float(t.link_latency[a, b] + size * t.link_inverse[a, b])
                    price += (self.wl + self.we * self.idle) * need
                if not price:
                    continue
                v = self._variable(price)
                for g in readers:
                    terms = {v: 1.0}
                    for k in (*self.on[w, a], *self.on[g, b]):
                        terms[k] = terms.get(k, 0.0) - 1.0
                    self._row(terms, -1.0)

    def solve(self, seconds: float) -> Optimum:
        """Run HiGHS for at most so long."""
        at = [(r, c, v) for r, row in enumerate(self.rows) for c, v in row.items()]
        r, c, v = (np.array(column) for column in zip(*at, strict=True))
        matrix = coo_array((v, (r, c)), shape=(len(self.rows), len(self.cost))).tocsr()
        result = milp(
            np.array(self.cost),
            constraints=LinearConstraint(matrix, np.array(self.low), np.array(self.high)),
            integrality=np.array(self.whole),
            bounds=Bounds(0.0, np.array(self.top)),
            options={"time_limit": seconds, "mip_rel_gap": 1e-7},
        )
        if result.x is None:
            return Optimum(np.inf, -np.inf if result.mip_dual_bound is None else float(result.mip_dual_bound), None)
        place = np.array([int(np.argmax(result.x[row])) for row in self.x], dtype=np.int64)
        return Optimum(float(result.fun), float(result.mip_dual_bound), place)
