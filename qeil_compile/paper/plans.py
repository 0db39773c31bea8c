"""The plans that a table compares: what people do by default, the earlier system's rule, and PGSAM's.

A plan is a placement per group of the prompt and of the steps, int64 [groups of both].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qeil_compile.devices import DeviceProfile, Placement, Target
from qeil_compile.errors import CapacityError
from qeil_compile.passes.partition import JointFront, JointPoint, PartitionSettings, Search, partition_phases
from qeil_compile.passes.partition.baselines import by_priority, engine_first
from qeil_compile.passes.partition.pgsam import value_of
from qeil_compile.plan import Objectives

from .prices import STEPS, Job, phases

#: Names of the plans, in the order of the table.
STANDARD, SINGLE, GREEDY, PROVIDERS = "standard", "best single device", "greedy (earlier system)", "provider order"
OBJECTIVES = ("latency", "balanced", "energy")
PGSAM = {objective: f"PGSAM {objective}" for objective in OBJECTIVES}
CASCADE = {objective: f"PGSAM {objective} + cascade" for objective in OBJECTIVES}
#: What each is, for the report.
MEANING: Mapping[str, str] = {
    STANDARD: "everything on the device of the highest peak on which the model fits, all samples in one fixed batch",
    SINGLE: "everything on the one device with the best balance of energy and latency",
    GREEDY: "prompt on the device of the highest peak, steps on that of the highest bandwidth; no price is known",
    PROVIDERS: "the first of ONNX Runtime's providers that takes an operator, accelerators first",
    **{PGSAM[o]: f"PGSAM's plan for {o}, all samples in one fixed batch" for o in OBJECTIVES},
    **{CASCADE[o]: "the same plan; EAC, ARDE and CSVET decide how many samples are drawn" for o in OBJECTIVES},
}


@dataclass(frozen=True)
class Planned:
    """All plans of one model on one task and target. `gaps` to the proven bound, by plan; None where there is none."""

    front: JointFront
    plans: Mapping[str, np.ndarray]
    gaps: Mapping[str, float | None]


def plan_all(job: Job, search: Search) -> Planned:
    """Every plan for a job of mean lengths. Raises `CapacityError` where the model fits nowhere."""
    known = phases(job.costs, job.part, STEPS, job.states)
    front = partition_phases(known, PartitionSettings(search=search))
    target = front.phases[0].costs.target
    singles = {c.strategy.removeprefix("single "): c for c in front.candidates if c.strategy.startswith("single ")}
    best = [front.choose(o) for o in OBJECTIVES]
    points = {PGSAM[o]: c for o, c in zip(OBJECTIVES, best, strict=True)}
    if singles:
        points[STANDARD] = _strongest(target, singles)
        points[SINGLE] = min(singles.values(), key=lambda c: _balanced(front, c))
    plans = {n: np.concatenate([np.array(a, dtype=np.int64) for a in p.assignments]) for n, p in points.items()}
    places = list(target.placements)
    plans[PROVIDERS] = by_priority(front.problem, engine_first(places, "onnxruntime"))
    plans[GREEDY] = _by_phase(front, places)
    plans |= {CASCADE[o]: plans[PGSAM[o]] for o in OBJECTIVES}
    goals = {PGSAM[o]: o for o in OBJECTIVES} | {CASCADE[o]: o for o in OBJECTIVES}
    proven: dict[tuple[str, bytes], float | None] = {}
    gaps = {}
    for n, chosen in plans.items():
        key = goals.get(n, "balanced"), chosen.tobytes()
        if key not in proven:
            proven[key] = front.gap(_point(front, chosen, n), key[0])
        gaps[n] = proven[key]
    return Planned(front, {n: plans[n] for n in MEANING if n in plans}, gaps)


def _point(front: JointFront, plan: np.ndarray, name: str) -> JointPoint:
    values = value_of(front.problem, plan)
    return JointPoint(name, (), Objectives(*(float(v) for v in values[:3])))


def _balanced(front: JointFront, point: JointPoint) -> float:
    o, unit = point.objectives, front.reference
    return o.latency / unit.latency + o.energy / unit.energy


def peak(profile: DeviceProfile) -> float:
    """The highest rate for any type of number that models here are computed in [FLOP/s]."""
    return max(c.value for n, c in profile.peak_flops.items() if n in ("fp32", "fp16", "bf16"))


def _strongest(target: Target, singles: Mapping[str, JointPoint]) -> JointPoint:
    """Of the device of the highest peak where everything fits, the fastest engine."""
    devices = sorted(target.devices, key=peak, reverse=True)
    for device in devices:
        mine = [singles[e] for e in device.engines if e in singles]
        if mine:
            return min(mine, key=lambda c: c.objectives.latency)
    raise CapacityError(f"target {target.name}: no single device holds the model")


def _by_phase(front: JointFront, places: Sequence[Placement]) -> np.ndarray:
    """Prompt on the device of the highest peak, steps on that of the highest bandwidth; what it refuses elsewhere."""
    t = front.problem
    found = np.zeros(t.groups, dtype=np.int64)
    rate = [[peak(p.profile) for p in places], [p.profile.memory_bandwidth.value for p in places]]
    for phase in (0, 1):
        mine = t.phase == phase
        # Of the engines on that device the one that is fastest there.
        seconds = np.where(t.allowed[mine] > 0, t.seconds[mine], np.inf).sum(axis=0)
        order = sorted(range(len(places)), key=lambda k: (-rate[phase][k], seconds[k], k))
        found[mine] = by_priority(t, order)[mine]
    return found
