"""One phase of a plan as the figures see it: every operator on its placement, the roofs, and where energy goes.

Everything comes from the plan and its cost table as artifacts hold it (`CostTable.to_json()`), so that a report needs
neither the model nor the target's profile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from qeil_compile.plan import Plan

from .roles import roles, short_type

#: Name of the device that transfers between devices count for.
LINKS = "links"
#: A peak that fewer of a placement's operations have is that of a mixture of types, no roof.
_LEAST_SHARE = 0.05


@dataclass(frozen=True)
class OpPoint:
    """Operators that are placed as one (a group of the cost table), on the placement that the plan chose.

    `seconds`, `joules`, `flops` [FLOP] and `nbytes` [byte] are those of one run of the phase. `dasi` and `beta` are the
    shares of the compute and the memory roof that the roofline allows, `dasi_eff` and `beta_eff` the attained ones,
    `phi` the thermal yield. Times are those of the operators alone, without what spilling or a neighbour on the same
    memory adds. `layer` is None outside of any layer.
    """

    ops: tuple[str, ...]
    types: tuple[str, ...]
    layer: int | None
    role: str
    stage: int
    placement: str
    device: str
    seconds: float
    joules: float
    flops: float
    nbytes: float
    dasi: float
    beta: float
    dasi_eff: float
    beta_eff: float
    phi: float


@dataclass(frozen=True)
class Roof:
    """What a device can do at most: `peak` [FLOP/s] for one type of numbers, `bandwidth` [B/s] of its memory."""

    device: str
    placement: str
    peak: float
    bandwidth: float


@dataclass(frozen=True)
class Energy:
    """Where a device's energy [J] goes in one run: `dynamic` (W e_f + Q e_m, and what is spilled), `constant`
    (busy x (P_const + P_leak)), `idle` (waiting). The device "links" holds all transfers in `dynamic`."""

    device: str
    dynamic: float
    constant: float
    idle: float

    @property
    def joules(self) -> float:
        """All of it [J]."""
        return self.dynamic + self.constant + self.idle


@dataclass(frozen=True)
class PhaseView:
    """One phase. `label` says how far its figures can be believed (docs/honest-words.md)."""

    name: str
    label: str
    plan: Plan
    points: tuple[OpPoint, ...]
    roofs: tuple[Roof, ...]
    energy: tuple[Energy, ...]

    @property
    def devices(self) -> tuple[str, ...]:
        """All devices of the target in its order, then what else the table names; each once."""
        known = [d.device for d in self.plan.devices] + [r.device for r in self.roofs]
        return tuple(dict.fromkeys([*known, *(s.device for s in self.plan.stages)]))


def view(name: str, plan: Plan, costs: Mapping[str, Any], scopes: Mapping[str, str] | None = None) -> PhaseView:
    """See `plan` through its cost table.

    `costs` is what `CostTable.to_json()` gives, `scopes` the module path of each operator by its name, where names are
    no paths themselves. Operators that no stage runs are left out. Without a table (`{}`) there are neither points nor
    roofs, and the energy of stages counts as constant.

    The roofs follow from the table: its attained shares are DASI_eff = W / (P t) and beta_eff = Q / (B t), so that
    P = W / (DASI_eff t) and B = Q / (beta_eff t) exactly. P is that of the types a group computes in; a group that
    mixes types lies between their peaks. A peak that at least 5 % of all operations of the table have counts as a roof
    of its own, the highest one always.
    """
    points = _points(plan, costs, scopes or {})
    return PhaseView(name, plan.label, plan, points, _roofs(costs), _energies(plan, costs, points))


def _points(plan: Plan, costs: Mapping[str, Any], scopes: Mapping[str, str]) -> tuple[OpPoint, ...]:
    if not costs:
        return ()
    groups: Sequence[Sequence[str]] = costs["groups"]
    # Tables written by earlier versions have no types.
    types: Sequence[Sequence[str]] = costs.get("types") or [()] * len(groups)
    column = {spec: p for p, spec in enumerate(costs["placements"])}
    stage_of = {o: s for s in plan.stages for o in s.ops}
    names = ("seconds", "joules", "flops", "nbytes", "dasi", "beta", "dasi_eff", "beta_eff", "phi")
    found = []
    for g, (ops, kinds, role) in enumerate(zip(groups, types, roles(groups, types, scopes), strict=True)):
        stage = next((stage_of[o] for o in ops if o in stage_of), None)
        if stage is None or stage.placement not in column:
            continue
        p = column[stage.placement]
        values = [float(costs[n][g][p]) for n in names]
        found.append(
            OpPoint(tuple(ops), tuple(map(short_type, kinds)), role.layer, role.role, stage.index, stage.placement,
                    stage.device, *values)
        )  # fmt: skip
    return tuple(found)


def _roofs(costs: Mapping[str, Any]) -> tuple[Roof, ...]:
    if not costs:
        return ()
    found = []
    for p, (spec, device) in enumerate(zip(costs["placements"], costs["devices"], strict=True)):
        work: dict[float, float] = defaultdict(float)
        bandwidth = 0.0
        for g, row in enumerate(costs["seconds"]):
            w, q, t = float(costs["flops"][g][p]), float(costs["nbytes"][g][p]), float(row[p])
            peak = _quotient(w, float(costs["dasi_eff"][g][p]) * t)
            bandwidth = max(bandwidth, _quotient(q, float(costs["beta_eff"][g][p]) * t))
            if peak:
                # Tables are written with nine digits: equal peaks agree in six.
                work[float(f"{peak:.6g}")] += w
        whole = sum(work.values())
        peaks = sorted((v for v, w in work.items() if w >= _LEAST_SHARE * whole or v == max(work)), reverse=True)
        found += [Roof(device, spec, peak, bandwidth) for peak in peaks]
    return tuple(found)


def _quotient(part: float, whole: float) -> float:
    """0 where there is no such number; times of what an engine refuses are below 0."""
    found = part / whole if part > 0 and whole > 0 else 0.0
    return found if isfinite(found) else 0.0


def _energies(plan: Plan, costs: Mapping[str, Any], points: Sequence[OpPoint]) -> tuple[Energy, ...]:
    power = dict(zip(costs.get("placements", ()), costs.get("working_power", ()), strict=True))
    dynamic: dict[str, float] = defaultdict(float)
    for o in points:
        dynamic[o.device] += _dynamic(o, power)
    active: dict[str, float] = defaultdict(float)
    for s in plan.stages:
        active[s.device] += s.joules
    found = []
    for d in plan.devices:
        whole, working = active[d.device], dynamic[d.device]
        if d.spill_bytes:
            working = max(working, d.phi * (whole - d.busy * _constant_power(points, power, d.device)))
        # A stage's energy is its dynamic part and what the device draws while it works; the rest is waiting.
        working = min(working, whole)
        found.append(Energy(d.device, working, whole - working, max(d.joules - whole, 0.0)))
    if not plan.devices:
        found += [Energy(n, dynamic[n], max(whole - dynamic[n], 0.0), 0.0) for n, whole in active.items()]
    if plan.transfers:
        found.append(Energy(LINKS, sum(t.joules for t in plan.transfers), 0.0, 0.0))
    return tuple(found)


def _dynamic(o: OpPoint, power: Mapping[str, Any]) -> float:
    """W e_f + Q e_m [J]: what is left of an operator's energy without what the device draws whatever it does."""
    return o.joules - o.seconds * float(power[o.placement])


def _constant_power(points: Sequence[OpPoint], power: Mapping[str, Any], device: str) -> float:
    """P_const [W] of a device: its working power without the leakage that the operators' phi tells."""
    mine = [o for o in points if o.device == device and 0 < o.phi <= 1 and o.seconds > 0]
    if not mine:
        return 0.0
    o = max(mine, key=lambda o: o.joules)
    return float(power[o.placement]) - _dynamic(o, power) * (1 / o.phi - 1) / o.seconds
