"""What each part of the cost model and of the search is worth: plan without it, price the plan with it.

A plan made under wrong prices is valued under the right ones. Where that plan breaks a limit (memory, temperature) it
does not run; it is counted, and left out of the ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qeil_compile.devices import Target
from qeil_compile.frontends.decoder import PROMPT
from qeil_compile.passes.choice import SCALES
from qeil_compile.passes.conditions import Conditions
from qeil_compile.passes.partition import Search
from qeil_compile.passes.partition.greedy import greedy
from qeil_compile.passes.partition.pgsam import reference, search
from qeil_compile.passes.partition.tables import Tables
from qeil_compile.sampling import Interval, bootstrap

from .plans import OBJECTIVES, PGSAM, Planned
from .prices import STEPS, Job, Shapes, job, projected
from .tasks import Part, Task

#: Names of the parts, in the order of the table.
DASI, CPQ, PHI, FUSION, SEARCH = (
    "without DASI (time from peak FLOP/s)", "without CPQ (no memory limit)", "without Phi (no leakage, no ceiling)",
    "without fusion-aware counting", "greedy for PGSAM",
)  # fmt: skip
PARTS = (DASI, CPQ, PHI, FUSION, SEARCH)
#: What stands for an objective where a rule of sampling is changed and not a plan.
SAMPLING = "energy of PGSAM's plan for energy"


@dataclass(frozen=True)
class Ablated:
    """One instance without one part: value of the objective, energy and latency over those of the full plan (NaN where
    the plan does not run)."""

    part: str
    objective: str
    family: str
    task: str
    value: float
    energy: float
    latency: float
    feasible: bool


@dataclass(frozen=True)
class Worth:
    """All instances of a part and an objective: geometric means over the full plan's with 95 % intervals over
    instances; `broken` of `instances` plans do not run."""

    part: str
    objective: str
    value: Interval
    energy: Interval
    latency: Interval
    instances: int
    broken: int


def ablate(
    planned: Planned, j: Job, task: Task, part: Part, shapes: Shapes, target: Target, conditions: Conditions,
    settings: Search,
) -> list[Ablated]:  # fmt: skip
    """Every part taken out of one instance. `planned` is the full plan of the same job."""
    true = planned.front.problem
    starts = [np.concatenate([np.array(a, dtype=np.int64) for a in c.assignments]) for c in planned.front.candidates
              if c.strategy.startswith("single ")]  # fmt: skip
    plans: dict[str, Mapping[str, np.ndarray]] = {}
    for name, change in _CHANGES.items():
        plans[name] = _best(change(true, j), starts, settings)
    plans[FUSION] = _unfused(j, task, part, shapes, target, conditions, settings)
    unit = reference(true, starts)
    plans[SEARCH] = {o: _greedy(j, o, unit) for o in OBJECTIVES}
    found = []
    for name in PARTS:
        for o in OBJECTIVES:
            plan = plans[name].get(o)
            full = j.value(STEPS, planned.plans[PGSAM[o]])
            mine = None if plan is None else j.value(STEPS, plan)
            # The search's own problem also leaves room for activations.
            good = mine is not None and mine[3] == 0
            ratios = (np.nan, np.nan, np.nan)
            if mine is not None and good:
                weights = np.array(SCALES[o][:2])
                value = (weights @ (mine[:2] / unit[:2])) / (weights @ (full[:2] / unit[:2]))
                ratios = (float(value), float(mine[1] / full[1]), float(mine[0] / full[0]))
            found.append(Ablated(name, o, shapes.model.name, task.name, *ratios, bool(good)))
    return found


def _without_dasi(t: Tables, j: Job) -> Tables:
    """Arithmetic at the peak of its type of numbers is all that takes time.

    The same joules in less time would look too hot for any device: the ceiling is left to the true prices.
    """
    thermal = t.thermal.copy()
    thermal[:, 5] = np.inf
    costs = [j.costs[PROMPT], j.costs[STEPS]]
    return t._replace(seconds=np.concatenate([c.dasi_eff * c.seconds for c in costs]), thermal=thermal)


def _without_cpq(t: Tables, j: Job) -> Tables:
    return t._replace(room=np.full_like(t.room, np.inf))


def _without_phi(t: Tables, j: Job) -> Tables:
    thermal = t.thermal.copy()
    thermal[:, 0], thermal[:, 5] = 0.0, np.inf
    return t._replace(thermal=thermal)


_CHANGES: Mapping[str, Callable[[Tables, Job], Tables]] = {
    DASI: _without_dasi, CPQ: _without_cpq, PHI: _without_phi,
}  # fmt: skip


def _best(t: Tables, starts: Sequence[np.ndarray], settings: Search) -> dict[str, np.ndarray]:
    """The best plan for each objective under some prices."""
    found = search(t, starts, settings)
    return {o: found.best[o][1] for o in OBJECTIVES if o in found.best}


def _unfused(
    j: Job, task: Task, part: Part, shapes: Shapes, target: Target, conditions: Conditions, settings: Search
) -> dict[str, np.ndarray]:  # fmt: skip
    """Every operator priced as a kernel of its own."""
    other = job(shapes.model, Shapes(shapes.model, fused=False).of(task, part), target, part, conditions)
    t = other.problems[STEPS]
    allowed = [c.supported for c in (other.costs[PROMPT], other.costs[STEPS])]
    both = np.concatenate(allowed)
    starts = [np.full(len(both), p, dtype=np.int64) for p in range(both.shape[1]) if both[:, p].all()]
    plans = _best(t, starts, settings)
    return {
        o: np.concatenate([
            projected(other.place(PROMPT, p), other.costs[PROMPT].groups, j.costs[PROMPT].groups),
            projected(other.place(STEPS, p), other.costs[STEPS].groups, j.costs[STEPS].groups),
        ])
        for o, p in plans.items()
    }  # fmt: skip


def _greedy(j: Job, objective: str, unit: np.ndarray) -> np.ndarray:
    """Each group in order where it is cheapest, phase by phase."""
    wl, we, _ = SCALES[objective]
    weights = wl / float(unit[0]), we / float(unit[1])
    return np.concatenate([greedy(c, c.supported, weights) for c in (j.costs[PROMPT], j.costs[STEPS])])


def worths(rows: Sequence[Ablated], seed: int = 0) -> list[Worth]:
    """Each part and objective over all instances."""
    found = []
    for part in PARTS:
        for o in OBJECTIVES:
            mine = [r for r in rows if (r.part, r.objective) == (part, o)]
            good = [r for r in mine if r.feasible]
            value, energy, latency = (_geometric([getattr(r, n) for r in good], seed) for n in (
                "value", "energy", "latency"))  # fmt: skip
            if mine:
                found.append(Worth(part, o, value, energy, latency, len(mine), len(mine) - len(good)))
    return found


def sampling_worths(ratios: Mapping[str, Sequence[tuple[float, float]]], seed: int = 0) -> list[Worth]:
    """Rules of sampling with one part of the cascade taken out: energy and latency over the cascade's, by rule."""
    found = []
    for rule, of in ratios.items():
        energy, latency = (_geometric([r[k] for r in of], seed) for k in (0, 1))
        found.append(Worth(rule, SAMPLING, energy, energy, latency, len(of), 0))
    return found


def _geometric(ratios: Sequence[float], seed: int) -> Interval:
    if not ratios:
        return Interval(*[float("nan")] * 3)
    logs = bootstrap(np.log(np.array(ratios)), rounds=2000, seed=seed)
    return Interval(*(float(np.exp(v)) for v in logs))

