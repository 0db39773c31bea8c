"""The same rows on this machine's clock, and on its energy counters where there are some.

Every plan of the host runs with random weights: time does not depend on their values. Plans take turns, round by round,
so that what else runs on the machine falls on all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil

from qeil_compile.artifact.decoder import PhaseUnits
from qeil_compile.asking.source import meter_of
from qeil_compile.frontends.decoder import PROMPT, Generation, TracedDecoder, step_phase, trace_decoder
from qeil_compile.language import CompiledDecoder
from qeil_compile.language.planning import lower_phase
from qeil_compile.passes.partition.front import Front
from qeil_compile.passes.partition.stages import evaluate
from qeil_compile.plan import Plan

from . import rows
from .plans import CASCADE, PGSAM, STANDARD
from .prices import STEPS
from .run import Instance, Progress

#: Rounds of turns, of which the medians count.
ROUNDS = 5
#: Bytes that a model takes when it is started, over those of its weights: engines pack a copy while they read one.
_COPIES = 3.0
#: Share of the free memory that models may take.
_SHARE = 0.6
_SEED = 0


@dataclass(frozen=True)
class Measured:
    """One plan of one model: prompt and all steps of a fixed batch, median and 10 to 90 % quantiles [s] over rounds.

    `modelled` [s] is what the cost model says of the same; `joules` are None where no counter can be read, and `meter`
    says which counter, or why there is none. `ratio` is the median over rounds of its time over the first plan's.
    """

    model: str
    task: str
    plan: str
    seconds: tuple[float, float, float]
    ratio: float
    modelled: float
    joules: float | None
    meter: str
    rounds: int


def measure(instances: Sequence[Instance], progress: Progress) -> tuple[list[Measured], list[str]]:
    """Rows of the instances that are planned for this machine and fit its memory, and why others are left out."""
    found: list[Measured] = []
    left: list[str] = []
    here = [i for i in instances if i.target.host and not i.extra]
    for k, i in enumerate(here):
        progress("measure", k, len(here))
        plans = _distinct(i)
        need = _COPIES * sum(t.nbytes for t in i.mean.costs[STEPS].groups.graph.tensors.values() if t.role == "weight")
        free = _SHARE * psutil.virtual_memory().available
        fit = int(free / need)
        if fit < len(plans):
            left.append(
                f"{i.model.name}, {i.task.name}: {fit} of {len(plans)} different plans measured, each takes about "
                f"{need / 1e9:.1f} GB, and {free / 1e9:.1f} GB may be used"
            )
        if fit:
            found += _Turns(i).rows(list(plans)[:fit])
    progress("measure", len(here), len(here))
    return found, left


def _distinct(i: Instance) -> dict[bytes, list[str]]:
    """Different plans of a fixed batch with all their names, those of interest first."""
    order = [STANDARD, *PGSAM.values(), *i.planned.plans]
    found: dict[bytes, list[str]] = {}
    for name in dict.fromkeys(order):
        if name in i.planned.plans and name not in CASCADE.values():
            found.setdefault(i.planned.plans[name].tobytes(), []).append(name)
    return found


class _Turns:
    """All plans of one instance that differ, started, and run in turns."""

    def __init__(self, instance: Instance) -> None:
        self.i, part, task = instance, instance.mean.part, instance.task
        self.tokens, self.samples = part.answer, task.samples
        workload = Generation(part.prompt, part.answer, task.samples)
        bits = instance.model.whole.bits
        self.traced = trace_decoder(
            instance.model.decoder, workload, "float32", bits if bits < 16 else None, seed=_SEED
        )  # fmt: skip
        rng = np.random.default_rng(_SEED)
        self.prompt = rng.integers(0, instance.model.decoder.config.vocab, part.prompt).tolist()

    def rows(self, plans: Sequence[bytes]) -> list[Measured]:
        """Rows of some of the different plans."""
        started: dict[bytes, tuple[Any, CompiledDecoder]] = {}
        for key in plans:
            compiled = self._compiled(np.frombuffer(key, np.int64))
            started[key] = compiled.start(), compiled
        times: dict[bytes, list[float]] = {key: [] for key in started}
        joules: dict[bytes, list[float]] = {key: [] for key in started}
        meters = {key: meter_of(compiled) for key, (_, compiled) in started.items()}
        for n in range(ROUNDS + 1):
            for key, (session, _) in started.items():
                before, meter = time.perf_counter(), meters[key]
                energy = meter() if meter is not None else 0.0
                self._job(session)
                if n:  # the first round warms up
                    times[key].append(time.perf_counter() - before)
                    joules[key].append(meter() - energy if meter is not None else float("nan"))
        first = np.array(times[next(iter(started))])
        names = _distinct(self.i)
        return [self._row(plan, times[key], joules[key], first) for key in plans for plan in names[key]]

    def _row(self, plan: str, times: Sequence[float], joules: Sequence[float], first: np.ndarray) -> Measured:
        low, middle, high = (float(q) for q in np.quantile(times, [0.1, 0.5, 0.9]))
        modelled = rows.batch([self.i.mean], self.i.task, self.i.planned.plans[plan]).latency
        energy = float(np.median(joules))
        return Measured(
            self.i.model.name, self.i.task.name, plan, (middle, low, high), float(np.median(np.array(times) / first)),
            modelled, None if np.isnan(energy) else energy,
            "energy counter" if not np.isnan(energy) else "no energy counter of the devices in use can be read",
            len(times),
        )  # fmt: skip

    def _job(self, session: Any) -> None:
        session.prefill([self.prompt])
        session.select(np.zeros(self.samples, np.int64))
        token = np.zeros(self.samples, np.int64)
        for _ in range(self.tokens):
            session.step(token)

    def _compiled(self, place: np.ndarray) -> CompiledDecoder:
        i, traced = self.i, self.traced
        units = {}
        for phase, name in ((PROMPT, PROMPT), (STEPS, step_phase(self.samples))):
            plan = _plan(i, phase, place)
            units[name] = PhaseUnits(plan, lower_phase(traced, plan), traced.whole.bits)
        decoder = i.model.decoder
        return CompiledDecoder(
            decoder.name, traced.whole.facts, traced.workload, units, traced.whole.states, _weight(traced), {}
        )  # fmt: skip


def _weight(traced: TracedDecoder) -> Callable[[int, str], np.ndarray]:
    return lambda bits, name: traced.source.weight(name)


def _plan(i: Instance, phase: str, place: np.ndarray) -> Plan:
    costs = i.mean.costs[phase]
    candidate = evaluate(costs, i.mean.place(phase, place), "measured")
    return replace(Front(costs, (candidate,), {}).plan(candidate, "latency", ranges=False), target=i.target.name)

