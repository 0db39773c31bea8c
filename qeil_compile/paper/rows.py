"""What a plan costs on a workload: joules, seconds and the state of the devices, from the tables of its parts.

With a fixed batch a question costs the prompt once and the steps of all its samples together. In rounds it costs
`e1 + (b - 1) s` per round of b samples, where e1 is what one sample's steps cost and s what each further one adds: both
are differences of two joint plans of the cost model, so that R rounds of S samples in all cost R (e1 - s) + S s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qeil_compile.frontends.decoder import PROMPT
from qeil_compile.passes.costs import CostTable
from qeil_compile.passes.partition.stages import evaluate
from qeil_compile.passes.thermal import ceiling
from qeil_compile.plan import DeviceState

from .prices import CHOICES, STEP, STEPS, Job
from .tasks import Task


@dataclass(frozen=True)
class Spent:
    """One question, on average: energy [J], latency [s], tokens written (or scored), under-utilisation, and whether
    all limits hold."""

    energy: float
    latency: float
    tokens: float
    under_utilisation: float
    feasible: bool

    @property
    def power(self) -> float:
        """Mean power [W]."""
        return self.energy / self.latency

    @property
    def tokens_per_joule(self) -> float:
        """[1/J]."""
        return self.tokens / self.energy


@dataclass(frozen=True)
class PhaseState:
    """One phase under a plan: time of one run [s], shares in [0, 1], and the distance of the hottest device from its
    ceiling if the phase ran for ever [K] (None: no thermal data).

    `dasi` is the mean over the time of the groups, `phi` over all dynamic and leaked energy, `cpq` that of the fullest
    memory.
    """

    seconds: float
    dasi: float
    cpq: float
    phi: float
    margin: float | None


def batch(jobs: Sequence[Job], task: Task, plan: np.ndarray) -> Spent:
    """All samples in one batch."""
    return _mean(jobs, lambda j: (*_value(j, STEPS, plan), task.samples * j.part.answer))


def rounds(jobs: Sequence[Job], task: Task, plan: np.ndarray, count: float, samples: float) -> Spent:
    """`count` rounds with `samples` samples in all, each a mean over questions."""

    def one(j: Job) -> tuple[float, float, float, bool, float]:
        first, alone, every = (np.array(_value(j, n, plan)) for n in (PROMPT, STEP, STEPS))
        more = (every - alone) / max(task.samples - 1, 1)
        latency, energy = (first + count * (alone - first - more) + samples * more)[:2]
        return latency, energy, float(every[2]), bool(every[3]), samples * j.part.answer

    return _mean(jobs, one)


def choices(jobs: Sequence[Job], task: Task, plan: np.ndarray) -> Spent:
    """The listed options scored in one pass behind the prompt; nothing is sampled."""
    return _mean(jobs, lambda j: (*_value(j, CHOICES, plan), task.options * j.part.answer))


def rho(jobs: Sequence[Job], task: Task, plan: np.ndarray) -> float:
    """What each further sample adds, as a share of a pass, in energy."""
    first, alone, every = (
        sum(j.part.share * j.value(n, plan)[1] for j in jobs) for n in (PROMPT, STEP, STEPS)
    )
    return max(0.0, (every - alone) / max(task.samples - 1, 1) / max(alone - first, 1e-30))


def _value(j: Job, problem: str, plan: np.ndarray) -> tuple[float, float, float, bool]:
    latency, energy, under, wrong = (float(v) for v in j.value(problem, plan))
    return latency, energy, under, wrong == 0


def _mean(jobs: Sequence[Job], one: Callable[[Job], tuple[float, ...]]) -> Spent:
    """`one` gives latency, energy, under-utilisation, feasibility and tokens of a part."""
    rows = np.array([one(j) for j in jobs], dtype=float)
    share = np.array([j.part.share for j in jobs])
    latency, energy, under, _, tokens = share @ rows
    return Spent(float(energy), float(latency), float(tokens), float(under), bool(rows[:, 3].all()))


def states(job: Job, plan: np.ndarray) -> dict[str, PhaseState]:
    """The prompt and the steps of all samples."""
    return {name: _state(job.costs[name], job.place(name, plan)) for name in (PROMPT, STEPS)}


def _state(costs: CostTable, place: np.ndarray) -> PhaseState:
    schedule = evaluate(costs, place, "").schedule
    here = np.arange(len(place)), place
    seconds, dynamic = costs.seconds[here], costs.dynamic[here]
    profiles = {d.name: d for d in costs.target.devices}
    owner = np.array([p.profile.name for p in costs.placements])[place]
    working: dict[str, float] = {d: float(dynamic[owner == d].sum()) for d in set(owner)}
    leaked = sum(_leaked(s, working[s.device]) for s in schedule.devices if s.device in working)
    total = sum(working.values())
    margins = [
        ceiling(profiles[s.device], costs.conditions) - s.temperature
        for s in schedule.devices if s.temperature is not None
    ]  # fmt: skip
    return PhaseState(
        schedule.objectives.latency, float(costs.dasi[here] @ seconds / seconds.sum()),
        max(schedule.cpq.values()), total / (total + leaked) if total + leaked > 0 else 1.0,
        min(margins) if margins else None,
    )  # fmt: skip


def _leaked(state: DeviceState, dynamic: float) -> float:
    """Phi is dynamic / (dynamic + leaked)."""
    return dynamic * (1 / state.phi - 1) if state.phi > 0 else 0.0
