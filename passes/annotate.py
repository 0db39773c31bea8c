"""Price every group on every placement: time by a roofline, energy by one equation, support by the engine.

    t(g,d) = t_launch + max(W / (n_c P), Q / (n_m B))
    E(g,d) = t P_const + W e_f + Q e_m

with W [FLOP] and Q [byte] of the group (tensors inside a group do not count), P the device's rate for the
group's dtype, B its bandwidth, n_c and n_m its efficiencies (docs/cost-model.md; energy roofline of Choi et
al. 2013). DASI = min(1, I B / P) with I = W / Q is the share of the compute roof that the roofline allows.
This pass holds no temperature term: Phi is 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from qeil_compile.devices import Placement, Target, boundary_seconds, engine_constants
from qeil_compile.errors import UnsupportedOperatorError
from qeil_compile.ir import GroupGraph
from qeil_compile.passes.count import OpCount
from qeil_compile.plan import Label


@dataclass(frozen=True)
class CostTable:
    """Prices of all groups (rows) on all placements (columns).

    `seconds`, `joules` (while working, without idle power of the rest), `dasi` and `share` (attained share
    of the roof that binds) are float64[groups, placements]; `supported` is bool of the same shape.
    `reasons` says, for an unsupported pair, why. `flops` and `nbytes` are W and Q per group.
    """

    groups: GroupGraph
    target: Target
    placements: tuple[Placement, ...]
    seconds: np.ndarray
    joules: np.ndarray
    dasi: np.ndarray
    share: np.ndarray
    supported: np.ndarray
    flops: np.ndarray
    nbytes: np.ndarray
    label: Label
    reasons: Mapping[tuple[int, int], str] = field(default_factory=dict)
    #: Operators without a count rule: (type, how many, share of all bytes).
    unknown: Sequence[tuple[str, int, float]] = ()

    @cached_property
    def idle_power(self) -> float:
        """Power [W] of all devices of the target together while they wait."""
        return sum(d.power_idle.value for d in self.target.devices)

    @cached_property
    def _boundaries(self) -> np.ndarray:
        names = [p.engine for p in self.placements]
        return np.array([[boundary_seconds(a, b).value for b in names] for a in names])

    def boundary(self, p: int, q: int) -> float:
        """Seconds that entering a stage on placement q after one on placement p costs, beside transfers."""
        return float(self._boundaries[p, q])

    def entry(self, q: int) -> float:
        """Seconds of the first stage's call."""
        return engine_constants()[self.placements[q].engine].stage_seconds.value

    def transfer(self, p: int, q: int, nbytes: float) -> tuple[float, float]:
        """Seconds and joules for moving a tensor between the devices of two placements; 0 in one memory."""
        a, b = self.placements[p].profile, self.placements[q].profile
        if a is b or nbytes == 0:
            return 0.0, 0.0
        link = self.target.link(a.name, b.name)
        return link.seconds(nbytes), link.joules(nbytes)

    def as_text(self) -> str:
        """One line per group: W, Q, and milliseconds per placement."""
        head = "group  operators  MFLOP  kB  " + "  ".join(p.spec for p in self.placements)
        rows = []
        for g in self.groups.groups:
            cells = [
                f"{self.seconds[g.index, p] * 1e3:.4f}" if self.supported[g.index, p] else "-"
                for p in range(len(self.placements))
            ]
            names = "+".join(self.groups.graph.ops[i].short_type for i in g.ops)
            size = f"{self.flops[g.index] / 1e6:.3f}  {self.nbytes[g.index] / 1e3:.1f}"
            rows.append(f"{g.index}  {names}  {size}  " + "  ".join(cells))
        return "\n".join([f"{head}  (ms, {self.label})", *rows])

    def to_json(self) -> dict[str, Any]:
        """Stable JSON form."""
        return {
            "label": self.label,
            "target": self.target.name,
            "placements": [p.spec for p in self.placements],
            "devices": [p.profile.name for p in self.placements],
            "power_const": [p.profile.power_const.value for p in self.placements],
            "boundary": self._boundaries.tolist(),
            "groups": [[self.groups.graph.ops[i].name for i in g.ops] for g in self.groups.groups],
            "flops": self.flops.tolist(),
            "nbytes": self.nbytes.tolist(),
            "seconds": np.where(self.supported, self.seconds, -1.0).tolist(),
            "joules": np.where(self.supported, self.joules, -1.0).tolist(),
            "dasi": self.dasi.tolist(),
            "unsupported": [
                {"group": g, "placement": self.placements[p].spec, "reason": r} for (g, p), r in self.reasons.items()
            ],
            "unknown": [list(u) for u in self.unknown],
        }


def annotate(
    groups: GroupGraph,
    counts: Sequence[OpCount],
    target: Target,
    refusals: Mapping[str, Mapping[int, str]] | None = None,
    unknown: Sequence[tuple[str, int, float]] = (),
) -> CostTable:
    """Build the cost table. `refusals` maps a placement's spec to {operator index: reason}.

    Raises `UnsupportedOperatorError` when some operator runs nowhere, naming it and each reason.
    """
    placements = target.placements
    flops, nbytes, dtypes = _totals(groups, counts)
    shape = (len(groups.groups), len(placements))
    seconds, joules, dasi, share = (np.zeros(shape) for _ in range(4))
    supported = np.ones(shape, dtype=bool)
    reasons: dict[tuple[int, int], str] = {}
    engines = engine_constants()
    for p, place in enumerate(placements):
        profile = place.profile
        launch = profile.launch_seconds.value + engines[place.engine].kernel_seconds.value
        bandwidth = profile.memory_bandwidth.value
        peak = np.array([profile.flops(d).value for d in dtypes])
        per_flop = np.array([profile.energy(d).value for d in dtypes])
        compute = flops / (peak * profile.efficiency_compute.value)
        memory = nbytes / (bandwidth * profile.efficiency_memory.value)
        seconds[:, p] = launch + np.maximum(compute, memory)
        dynamic = flops * per_flop + nbytes * profile.energy_per_byte.value
        joules[:, p] = seconds[:, p] * profile.power_const.value + dynamic
        with np.errstate(divide="ignore", invalid="ignore"):
            dasi[:, p] = np.where(nbytes > 0, np.minimum(1.0, flops / nbytes * bandwidth / peak), flops > 0)
        share[:, p] = np.maximum(flops / peak, nbytes / bandwidth) / seconds[:, p]
        for g, reason in _refused(groups, (refusals or {}).get(place.spec, {})).items():
            supported[g, p] = False
            reasons[(g, p)] = reason
    table = CostTable(
        groups, target, placements, seconds, joules, dasi, share, supported, flops, nbytes, "modelled", reasons, unknown
    )
    _check_supported(table)
    return table


def _totals(groups: GroupGraph, counts: Sequence[OpCount]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    graph = groups.graph
    flops = np.array([sum(counts[i].flops for i in g.ops) for g in groups.groups], dtype=float)
    nbytes = np.array([_traffic(groups, counts, g.ops) for g in groups.groups], dtype=float)
    heaviest = [max(g.ops, key=lambda i: counts[i].flops) for g in groups.groups]
    assert len(graph.ops) == len(counts)
    return flops, nbytes, [counts[i].dtype for i in heaviest]


def _traffic(groups: GroupGraph, counts: Sequence[OpCount], ops: Sequence[int]) -> int:
    """Bytes that cross the group's border; what its operators hand to one another inside does not count."""
    total = sum(counts[i].bytes_in + counts[i].bytes_weights + counts[i].bytes_out for i in ops)
    if len(ops) == 1:
        return total
    graph, inside = groups.graph, set(ops)
    outputs = set(groups.outputs_of(ops))
    for i in ops:
        for t in graph.ops[i].outputs:
            if not t:
                continue
            size = graph.tensors[t].nbytes
            readers = [c for c in graph.consumers.get(t, ()) if c in inside]
            total -= sum(min(size, counts[c].bytes_in) for c in readers)
            if t not in outputs:
                total -= min(size, counts[i].bytes_out)
    return max(total, 0)


def _refused(groups: GroupGraph, refused: Mapping[int, str]) -> dict[int, str]:
    owner = groups.group_of
    return {owner[i]: f"{groups.graph.ops[i].type}: {reason}" for i, reason in sorted(refused.items(), reverse=True)}


def _check_supported(table: CostTable) -> None:
    nowhere = np.flatnonzero(~table.supported.any(axis=1))
    if not len(nowhere):
        return
    g = int(nowhere[0])
    graph = table.groups.graph
    op = graph.ops[table.groups.groups[g].ops[0]]
    why = "; ".join(f"{p.spec}: {table.reasons[(g, i)]}" for i, p in enumerate(table.placements))
    raise UnsupportedOperatorError(
        f"operator {op.name} ({op.type}) runs on no allowed device of target {table.target.name}: {why}; "
        "allow another device with --target"
    )
