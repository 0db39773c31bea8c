"""The partitioning problem as flat arrays, which the compiled search reads.

Groups stand in one fixed topological order, phase after phase. Neighbours in the order on one placement are a stage.
A *cut* is a group with which every other group of its phase is ordered: everything before it is its ancestor,
everything after it its descendant. The groups up to a cut and after the one before are a *segment*; nothing of two
segments overlaps in time, except transfers that started long ago. The value of an assignment x is

    M(s)     makespan of segment s: stages one at a time per device, transfers one at a time per link, both in order
    L        = sum_s runs(s) M(s) + what moves between phases
    busy(d)  = sum of runs (t + boundary) over the stages of device d
    E        = sum_d [ busy (P_const + P_leak(T)) + sum runs (W e_f + Q e_m) + (L - busy) P_idle ] + transfers
    U        = 1 - sum runs s t / (devices L)

with t, W, Q, s, T as in `passes.costs` and `passes.energy`. Inside a segment a stage starts when its device is free
and what it reads is there; what a stage writes is there for others when it ends. A tensor crosses to a device once
(per segment in time, once in all in energy), and one that was written more than one segment ago has already arrived.
Bytes of a pool are the weights of its devices, each once per device over all phases, and room for activations.

This is `passes.schedule` with three simplifications that make a move's price independent of the size of the graph:
devices that share a memory do not slow one another down, a link is free again at each cut, and a group on the side
runs within its segment: one that nothing reads, that reads nothing, or only groups that read nothing (the indices that
a decoder's layers make of their inputs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from qeil_compile.devices import Target
from qeil_compile.errors import InputError
from qeil_compile.passes.conditions import KELVIN, Conditions
from qeil_compile.passes.costs import CostTable
from qeil_compile.passes.memory import usable
from qeil_compile.passes.thermal import ceiling, impedance

_I = np.int64
#: Rows of `Tables.thermal`.
THERMAL = ("leakage", "reference", "slope", "impedance", "ambient", "top")


@dataclass(frozen=True)
class Phase:
    """One graph of a joint plan: `runs` times per use; `carried` maps an input to the output of an earlier phase that
    it holds (a cache)."""

    name: str
    costs: CostTable
    runs: float = 1.0
    carried: Mapping[str, str] = field(default_factory=dict)


class Tables(NamedTuple):
    """Arrays of one problem: n groups, P placements, D devices, T tensors that cross groups, S segments.

    `seconds`, `dynamic`, `useful` (share of the binding roof times seconds) are [n, P] for one run; `allowed` is
    uint8[n, P]. `boundary` [P, P] and `entry` [phases, P] are seconds. `read_*` and `out_*` list, per group, the
    tensors that it reads and writes; `reader_*` the groups that read a tensor. `weight_*` list the weights of a group.
    `tied_*` list groups that must share a placement. Sizes are bytes; `room` [pools] is what weights may fill.
    """

    seconds: np.ndarray
    dynamic: np.ndarray
    useful: np.ndarray
    allowed: np.ndarray
    boundary: np.ndarray
    entry: np.ndarray
    device: np.ndarray
    pool: np.ndarray
    phase: np.ndarray
    runs: np.ndarray
    segment: np.ndarray
    segment_start: np.ndarray
    read_ptr: np.ndarray
    read: np.ndarray
    out_ptr: np.ndarray
    out: np.ndarray
    writer: np.ndarray
    nbytes: np.ndarray
    crossing: np.ndarray
    tensor_runs: np.ndarray
    link_latency: np.ndarray
    link_inverse: np.ndarray
    link_joules: np.ndarray
    link: np.ndarray
    weight_ptr: np.ndarray
    weight: np.ndarray
    weight_bytes: np.ndarray
    room: np.ndarray
    power_const: np.ndarray
    power_idle: np.ndarray
    thermal: np.ndarray
    twin: np.ndarray
    tied_ptr: np.ndarray
    tied: np.ndarray

    @property
    def groups(self) -> int:
        """n."""
        return int(self.seconds.shape[0])

    @property
    def placements(self) -> int:
        """P."""
        return int(self.seconds.shape[1])


def tables(
    phases: Sequence[Phase],
    allowed: Sequence[np.ndarray] | None = None,
    together: Sequence[Sequence[int]] = (),
    arenas: Mapping[str, float] | None = None,
) -> Tables:
    """The arrays of a problem.

    `allowed` are bool[groups, placements] per phase (default: what engines support); `together` lists groups (numbers
    over all phases) that share a placement; `arenas` [byte] by pool is room that activations take. Raises `InputError`
    where phases are for different targets.
    """
    first = phases[0].costs
    for phase in phases[1:]:
        if [p.spec for p in phase.costs.placements] != [p.spec for p in first.placements]:
            raise InputError(f"phase {phase.name}: its placements differ from those of {phases[0].name}; price both "
                             "for one target")  # fmt: skip
    target, conditions = first.target, first.conditions
    places = first.placements
    names = [d.name for d in target.devices]
    pools = list(dict.fromkeys(d.pool for d in target.devices))
    graph = _Graph(phases)
    limits = [p.costs.supported for p in phases] if allowed is None else allowed
    lat, inv, joules, link = _links(target)
    room = np.array([usable(target, p, conditions) - (arenas or {}).get(p, 0.0) for p in pools])
    tied_ptr, tied = _classes(together, graph.count)
    return Tables(
        seconds=np.concatenate([p.costs.seconds for p in phases]),
        dynamic=np.concatenate([p.costs.dynamic for p in phases]),
        useful=np.concatenate([p.costs.share * p.costs.seconds for p in phases]),
        allowed=np.concatenate(limits).astype(np.uint8),
        boundary=np.array([[first.boundary(a, b) for b in range(len(places))] for a in range(len(places))]),
        entry=np.array([[p.costs.entry(a) for a in range(len(places))] for p in phases]),
        device=np.array([names.index(p.profile.name) for p in places], dtype=_I),
        pool=np.array([pools.index(d.pool) for d in target.devices], dtype=_I),
        phase=graph.phase,
        runs=np.array([p.runs for p in phases], dtype=float),
        segment=graph.segment,
        segment_start=graph.segment_start,
        read_ptr=graph.read_ptr,
        read=graph.read,
        out_ptr=graph.out_ptr,
        out=graph.out,
        writer=graph.writer,
        nbytes=graph.nbytes,
        crossing=graph.crossing,
        tensor_runs=graph.tensor_runs,
        link_latency=lat,
        link_inverse=inv,
        link_joules=joules,
        link=link,
        weight_ptr=graph.weight_ptr,
        weight=graph.weight,
        weight_bytes=graph.weight_bytes,
        room=room,
        power_const=np.array([d.power_const.value for d in target.devices]),
        power_idle=np.array([d.power_idle.value for d in target.devices]),
        thermal=_thermal(target, conditions),
        twin=graph.twin,
        tied_ptr=tied_ptr,
        tied=tied,
    )


def with_energies(t: Tables, phases: Sequence[Phase], target: Target) -> Tables:
    """The problem of `phases` with the energies of another target of the same devices; times stay as they are."""
    return t._replace(
        dynamic=np.concatenate([p.costs.dynamic_on(target) for p in phases]),
        link_joules=_links(target)[2],
        power_const=np.array([d.power_const.value for d in target.devices]),
        power_idle=np.array([d.power_idle.value for d in target.devices]),
        thermal=_thermal(target, phases[0].costs.conditions),
    )


def _thermal(target: Target, conditions: Conditions) -> np.ndarray:
    """float64[devices, 6]: see `THERMAL`; kelvins. No thermal data: leakage 0 and no ceiling."""
    rows = []
    for d in target.devices:
        if d.thermal is None:
            rows.append([0.0, 300.0, 0.0, 0.0, 300.0, np.inf])
            continue
        t = d.thermal
        ambient = t.ambient.value if conditions.ambient is None else conditions.ambient
        rows.append([t.leakage.value, t.reference.value + KELVIN, t.slope.value, impedance(t, conditions.duration),
                     ambient + KELVIN, ceiling(d, conditions) + KELVIN])  # fmt: skip
    return np.array(rows)


def _links(target: Target) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Latency [s], seconds per byte, joules per byte and number of the link between two devices, [D, D] each."""
    n = len(target.devices)
    lat, inv, joules = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n))
    number = np.zeros((n, n), dtype=_I)
    for i, a in enumerate(target.devices):
        for j, b in enumerate(target.devices):
            if i == j:
                continue
            link = target.link(a.name, b.name)
            lat[i, j] = link.latency.value
            inv[i, j] = 1.0 / link.bandwidth.value
            joules[i, j] = link.energy_per_byte.value
            number[i, j] = min(i, j) * n + max(i, j)
    return lat, inv, joules, number


def _pointers(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as one array with the place where each begins."""
    ptr = np.concatenate([[0], np.cumsum([len(r) for r in rows], dtype=_I)]).astype(_I)
    return ptr, np.array([v for r in rows for v in r], dtype=_I)


def _classes(together: Sequence[Sequence[int]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """For each group the others that share its placement."""
    rows: list[list[int]] = [[] for _ in range(count)]
    for members in together:
        for g in members:
            rows[g] = [m for m in members if m != g]
    return _pointers(rows)


class _Graph:
    """Groups, tensors, weights and segments of all phases, numbered through."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.phases = phases
        sizes = [len(p.costs.groups.groups) for p in phases]
        self.first = np.concatenate([[0], np.cumsum(sizes)]).astype(_I)
        self.count = int(self.first[-1])
        self.phase = np.repeat(np.arange(len(phases), dtype=_I), sizes)
        self._tensors()
        self._weights()
        self._segments()
        self.twin = self._twins()

    def _tensors(self) -> None:
        reads: list[dict[int, None]] = [{} for _ in range(self.count)]
        outs: list[list[int]] = [[] for _ in range(self.count)]
        writer: list[int] = []
        nbytes: list[float] = []
        crossing: list[int] = []
        runs: list[float] = []
        number: dict[tuple[int, str], int] = {}
        written: dict[str, tuple[int, int]] = {}
        for k, phase in enumerate(self.phases):
            graph, owner, base = phase.costs.groups.graph, phase.costs.groups.group_of, int(self.first[k])

            def add(key: tuple[int, str], by: int, size: float, across: bool, times: float) -> int:
                if key not in number:
                    number[key] = len(writer)
                    writer.append(by)
                    nbytes.append(size)
                    crossing.append(across)
                    runs.append(times)
                    outs[by].append(number[key])
                return number[key]

            for a, b, t in phase.costs.groups.edges:
                reads[base + b][add((k, t), base + a, graph.tensors[t].nbytes, False, phase.runs)] = None
            for inside, source in phase.carried.items():
                if source not in written:
                    raise InputError(f"phase {phase.name}: input {inside} holds {source}, which no earlier phase "
                                     "writes; correct `carried`")  # fmt: skip
                earlier, by = written[source]
                size = self.phases[earlier].costs.groups.graph.tensors[source].nbytes
                for i in graph.consumers.get(inside, ()):
                    reads[base + owner[i]][add((-1 - k, source), by, size, True, 1.0)] = None
            for t in graph.outputs:
                if t in graph.producer:
                    written[t] = k, base + owner[graph.producer[t]]
        self.read_ptr, self.read = _pointers([list(r) for r in reads])
        self.out_ptr, self.out = _pointers(outs)
        self.writer, self.nbytes = np.array(writer, dtype=_I), np.array(nbytes, dtype=float)
        self.crossing, self.tensor_runs = np.array(crossing, dtype=np.uint8), np.array(runs, dtype=float)

    def _weights(self) -> None:
        number: dict[str, int] = {}
        sizes: list[float] = []
        rows: list[list[int]] = []
        for phase in self.phases:
            graph = phase.costs.groups.graph
            for g in phase.costs.groups.groups:
                rows.append([])
                for w in phase.costs.groups.weights_of(g.ops):
                    if w not in number:
                        number[w] = len(sizes)
                        sizes.append(graph.tensors[w].nbytes)
                    rows[-1].append(number[w])
        self.weight_ptr, self.weight = _pointers(rows)
        self.weight_bytes = np.array(sizes, dtype=float)

    def _segments(self) -> None:
        starts: list[int] = []
        for k in range(len(self.phases)):
            low, high = int(self.first[k]), int(self.first[k + 1])
            starts.append(low)
            starts += [int(g) + 1 for g in self._cuts(low, high) if g + 1 < high]
        self.segment_start = np.array([*starts, self.count], dtype=_I)
        self.segment = np.repeat(np.arange(len(starts), dtype=_I), np.diff(self.segment_start))

    def _cuts(self, low: int, high: int) -> np.ndarray:
        """Groups of a phase with which all others are ordered.

        All groups before c reach it if c is the only one among them and itself that none of these reads: each has its
        first reader no later than c. Likewise each group after c has its last source no earlier than c. Groups on the
        side, and those that nothing reads, end with their segment (a barrier), and hide no cut.
        """
        n = high - low
        # Tensors that are carried between phases order nothing inside one.
        rows = np.repeat(np.arange(self.count), np.diff(self.read_ptr))
        source = self.writer[self.read]
        inside = (rows >= low) & (rows < high) & (source >= low)
        a, b = source[inside] - low, rows[inside] - low
        reader = np.full(n, n, dtype=_I)
        np.minimum.at(reader, a, b)
        first = np.where(reader < n, reader, -1)
        origin = np.full(n, -1, dtype=_I)
        np.maximum.at(origin, b, a)
        deep = np.zeros(n, dtype=bool)
        np.logical_or.at(deep, b, origin[a] >= 0)
        last = np.where(deep, origin, n)
        latest = np.concatenate([[-1], np.maximum.accumulate(first)[:-1]])
        earliest = np.concatenate([np.minimum.accumulate(last[::-1])[::-1][1:], [n]])
        here = np.arange(n)
        return low + here[(latest <= here) & (earliest >= here)]

    def _twins(self) -> np.ndarray:
        """The group of another phase that does the same: by a shared weight, else by the name of its first operator."""
        twin = np.full(self.count, -1, dtype=_I)
        for k in range(len(self.phases) - 1):
            known: dict[object, int] = {}
            for g in range(int(self.first[k]), int(self.first[k + 1])):
                for key in self._keys(g):
                    known.setdefault(key, g)
            for g in range(int(self.first[k + 1]), int(self.first[k + 2])):
                other = next((known[key] for key in self._keys(g) if key in known), -1)
                if other >= 0 and twin[other] < 0:
                    twin[g], twin[other] = other, g
        return twin

    def _keys(self, g: int) -> list[object]:
        k = int(self.phase[g])
        groups = self.phases[k].costs.groups
        members = groups.groups[g - int(self.first[k])].ops
        own: list[object] = [int(w) for w in self.weight[self.weight_ptr[g] : self.weight_ptr[g + 1]][-1:]]
        return [*own, groups.graph.ops[members[0]].name]
