"""The whole bench: every family on every workload and target under every plan, ablation, sensitivity, headline."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TypeVar

import numpy as np

from qeil_compile.devices import Target
from qeil_compile.errors import CapacityError, InputError, TargetError, ThermalError
from qeil_compile.passes.conditions import Conditions
from qeil_compile.passes.partition import Search
from qeil_compile.sampling import Interval, bootstrap

from . import ablation, plans, rows, sensitivity
from .cascade import FULL, RULES, Drawn, Log
from .plans import CASCADE, OBJECTIVES, PGSAM, STANDARD, Planned
from .prices import MODELS, STEPS, Job, Model, Shapes, job, open_model, wide, with_target
from .rows import PhaseState, Spent
from .tasks import Task

Progress = Callable[[str, int, int], None]
T = TypeVar("T")
U = TypeVar("U")
#: What is published for the same columns, as shares of the standard: energy, latency; and the gain of IPW.
GOALS = {"energy": 1 - 0.756, "latency": 1 - 0.383, "ipw": 2.86}
#: The target of the headline: the platform that the published results name, as real parts.
PLATFORM = "intel-285hx-rtx-pro-5000"
TARGETS = (PLATFORM, "lunar-lake-258v", "jetson-agx-orin", "rtx-4090-workstation", "host")


@dataclass(frozen=True)
class Settings:
    """`quick`: one part of mean lengths per task, a shorter search, ablation and sensitivity on one task of the first
    target only. `quantised` adds every family at 4 bits, for the split of the headline (not with `quick`). `families`
    are titles or names of those to look at, all by default.
    """

    quick: bool = False
    seed: int = 0
    quantised: bool = True
    families: tuple[str, ...] = ()

    @property
    def search(self) -> Search:
        """How long PGSAM searches."""
        return Search(seed=self.seed, epochs=12) if self.quick else Search(seed=self.seed)


@dataclass(frozen=True)
class Row:
    """One line of the table: a model on a task and a target under one plan. `label` is that of the prices.

    `problem` says why there are no figures, or which limit the plan breaks. `rounds` and `samples` are per question;
    0 rounds: options were scored. `extra` marks models that are not one of the seven.
    """

    target: str
    task: str
    model: str
    plan: str
    label: str
    spent: Spent | None = None
    phases: Mapping[str, PhaseState] = field(default_factory=dict)
    gap: float | None = None
    rounds: float = 1.0
    samples: float = 0.0
    problem: str = ""
    extra: bool = False


@dataclass(frozen=True)
class Instance:
    """One model on one task and target: priced parts, the plan of the mean, plans, and what the cascade draws."""

    target: Target
    task: Task
    model: Model
    mean: Job
    jobs: tuple[Job, ...]
    planned: Planned
    drawn: Mapping[str, Drawn]
    extra: bool

    def spent(self, plan: str, jobs: Sequence[Job] | None = None) -> Spent:
        """What a plan costs per question; `jobs` in place of its own."""
        jobs, place = jobs or self.jobs, self.planned.plans[plan]
        if plan not in CASCADE.values() or self.task.kind == "text":
            return rows.batch(jobs, self.task, place)
        if self.task.kind == "options":
            return rows.choices(jobs, self.task, place)
        d = self.drawn[plan]
        return rows.rounds(jobs, self.task, place, d.rounds, d.samples)


@dataclass(frozen=True)
class Share:
    """A plan over the standard on one target: geometric means over instances with 95 % intervals; `instances`."""

    target: str
    task: str
    plan: str
    energy: Interval
    latency: Interval
    ipw: Interval
    instances: int


@dataclass
class Paper:
    """Everything that the report shows. `instances` stay in memory for the figures; the rest is plain data."""

    settings: Settings
    targets: Sequence[Target]
    rows: list[Row] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    split: list[tuple[str, Share]] = field(default_factory=list)
    drawn: dict[tuple[str, float], Drawn] = field(default_factory=dict)
    ablation: dict[str, list[ablation.Worth]] = field(default_factory=dict)
    sensitivity: dict[str, list[sensitivity.Headline]] = field(default_factory=dict)
    instances: list[Instance] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def run(
    targets: Sequence[Target], tasks: Sequence[Task], log: Log, settings: Settings,
    progress: Progress = lambda step, done, total: None,
) -> Paper:  # fmt: skip
    """Price, plan and compare; a target that cannot hold a model gets a row that says so. Raises as `open_model`."""
    paper = Paper(settings, targets)
    began = time.perf_counter()
    wanted = list(_models(targets, settings))
    for k, (title, name, bits, dtype, theirs, extra) in enumerate(wanted):
        progress("plans", k, len(wanted))
        model = open_model(name, bits, dtype, theirs, title)
        for task in tasks:
            _plan_task(paper, model, task, theirs, log, extra)
    progress("plans", len(wanted), len(wanted))
    paper.seconds["plans"] = time.perf_counter() - began
    paper.shares = list(_shares(paper))
    paper.split = list(_split(paper))
    _ablate(paper, log, progress)
    _sensitivity(paper, progress)
    return paper


def _models(
    targets: Sequence[Target], settings: Settings
) -> Iterator[tuple[str, str, int | None, str, list[Target], bool]]:  # fmt: skip
    """Title, family, bits, type of numbers, targets that compute so, and whether it is beside the seven."""
    for title, (name, bits) in _chosen_models(settings.families).items():
        for is_wide, dtype in ((False, "float16"), (True, "float32")):
            theirs = [t for t in targets if wide(t) == is_wide]
            if theirs:
                yield title, name, bits, dtype, theirs, False
                if settings.quantised and bits is None and not settings.quick and not any(
                    other == (name, 4) for other in MODELS.values()
                ):  # fmt: skip
                    yield f"{title}, 4 bit", name, 4, dtype, theirs, True


def _chosen_models(wanted: Sequence[str]) -> Mapping[str, tuple[str, int | None]]:
    known = {*MODELS, *(name for name, _ in MODELS.values())}
    for name in wanted:
        if name not in known:
            raise InputError(f"family {name}: unknown, expected one of {', '.join(MODELS)}")
    return {t: m for t, m in MODELS.items() if not wanted or t in wanted or m[0] in wanted}


def _plan_task(
    paper: Paper, model: Model, task: Task, targets: Sequence[Target], log: Log, extra: bool
) -> None:  # fmt: skip
    shapes = Shapes(model)

    def one(target: Target) -> tuple[Instance | None, list[Row]]:
        try:
            instance = _instance(paper, model, shapes, task, target, log, extra)
        except (CapacityError, TargetError, ThermalError) as error:
            return None, [
                Row(target.name, task.name, model.name, plan, "modelled", problem=str(error), extra=extra)
                for plan in plans.MEANING
            ]
        return instance, list(_rows(instance))

    for instance, found in _at_once(one, targets):
        paper.instances += [instance] if instance is not None else []
        paper.rows += found


def _at_once(call: Callable[[T], U], of: Sequence[T]) -> list[U]:
    """`call` of each, in their order; the compiled search lets several run at once."""
    with ThreadPoolExecutor(min(len(of), os.cpu_count() or 1) or 1) as pool:
        return list(pool.map(call, of))


def _instance(
    paper: Paper, model: Model, shapes: Shapes, task: Task, target: Target, log: Log, extra: bool
) -> Instance:  # fmt: skip
    conditions, settings = Conditions(), paper.settings
    make = partial(job, model, target=target, conditions=conditions)
    mean = make(shapes.of(task, task.mean), part=task.mean)
    planned = plans.plan_all(mean, settings.search)
    parts = [mean] if len(task.parts) == 1 else [make(shapes.of(task, p), part=p) for p in task.parts]
    drawn = {}
    if task.kind == "vote":
        for o in OBJECTIVES:
            share = rows.rho(parts, task, planned.plans[PGSAM[o]])
            drawn[CASCADE[o]] = log.drawn(FULL, share)
            paper.drawn |= {(rule, log.price(share)): log.drawn(rule, share) for rule in RULES}
    return Instance(target, task, model, mean, tuple(parts), planned, drawn, extra)


def _rows(i: Instance) -> Iterator[Row]:
    known: dict[bytes, Mapping[str, PhaseState]] = {}
    for plan, place in i.planned.plans.items():
        key = place.tobytes()
        if key not in known:
            known[key] = rows.states(i.mean, place)
        spent = i.spent(plan)
        cascade = plan in CASCADE.values()
        d = i.drawn.get(plan)
        times = d.rounds if d else 0.0 if cascade and i.task.options else 1.0
        samples = d.samples if d else 0.0 if cascade and i.task.options else float(i.task.samples)
        yield Row(
            i.target.name, i.task.name, i.model.name, plan, i.mean.costs[STEPS].label, spent, known[key],
            i.planned.gaps[plan], times, samples,
            "" if spent.feasible else "breaks a limit: memory, or the temperature of a device", i.extra,
        )  # fmt: skip


def _of(paper: Paper, target: str, task: str, extra: bool | None = False) -> dict[str, dict[tuple[str, str], Spent]]:
    """Feasible values by plan and (task, model)."""
    found: dict[str, dict[tuple[str, str], Spent]] = {}
    for r in paper.rows:
        if r.target == target and task in (r.task, "") and r.spent is not None and r.spent.feasible and (
            extra in (None, r.extra)
        ):  # fmt: skip
            found.setdefault(r.plan, {})[r.task, r.model] = r.spent
    return found


def _shares(paper: Paper) -> Iterator[Share]:
    tasks = list(dict.fromkeys(r.task for r in paper.rows))
    for target in paper.targets:
        for task in ("", *tasks):
            values = _of(paper, target.name, task)
            for plan in values:
                found = _share(target.name, task, plan, values[plan], values.get(STANDARD, {}))
                if found is not None:
                    yield found


def _share(
    target: str, task: str, plan: str, mine: Mapping[tuple[str, str], Spent], base: Mapping[tuple[str, str], Spent]
) -> Share | None:  # fmt: skip
    both = [key for key in mine if key in base]
    if not both:
        return None
    return Share(
        target, task, plan,
        _mean([mine[k].energy / base[k].energy for k in both]),
        _mean([mine[k].latency / base[k].latency for k in both]),
        _mean([base[k].power / mine[k].power for k in both]), len(both),
    )  # fmt: skip


def _mean(ratios: Sequence[float]) -> Interval:
    """The mean over instances: the published figures are means of savings."""
    return bootstrap(np.array(ratios), rounds=2000)


def _split(paper: Paper) -> Iterator[tuple[str, Share]]:
    """Where a saving comes from: each step over the one before, per target and for all tasks."""
    for target in paper.targets:
        values = _of(paper, target.name, "", None)
        seven = {p: {k: v for k, v in of.items() if k[1] in MODELS} for p, of in values.items()}
        if STANDARD not in seven:
            continue
        for o in OBJECTIVES:
            steps = [("placement", seven.get(PGSAM[o], {}), seven[STANDARD]),
                     ("sampling", seven.get(CASCADE[o], {}), seven.get(PGSAM[o], {}))]  # fmt: skip
            narrow = {
                (t, m.removesuffix(", 4 bit")): v for (t, m), v in values.get(CASCADE[o], {}).items()
                if m.endswith(", 4 bit")
            }  # fmt: skip
            steps.append(("4-bit weights (quality not equal)", narrow, seven.get(CASCADE[o], {})))
            for name, mine, base in steps:
                found = _share(target.name, "", PGSAM[o], mine, base)
                if found is not None:
                    yield name, found


def _chosen(paper: Paper) -> list[Instance]:
    """Instances of ablation and sensitivity: all of the seven; with `quick` one task of the first target."""
    found = [i for i in paper.instances if not i.extra]
    if paper.settings.quick and found:
        first = paper.targets[0].name
        task = "GSM8K" if any(i.task.name == "GSM8K" for i in found) else found[0].task.name
        found = [i for i in found if i.target.name == first and i.task.name == task]
    return found


def _sampling(chosen: Sequence[Instance], target: str, log: Log) -> dict[str, list[tuple[float, float]]]:
    """Rule -> energy and latency over the cascade's, per instance whose answers are voted on."""
    found: dict[str, list[tuple[float, float]]] = {}
    for i in chosen:
        if i.target.name != target or i.task.kind != "vote":
            continue
        place = i.planned.plans[PGSAM["energy"]]
        share = rows.rho(i.jobs, i.task, place)
        spent = {}
        for rule in RULES:
            d = log.drawn(rule, share)
            spent[rule] = rows.rounds(i.jobs, i.task, place, d.rounds, d.samples)
        full = spent.pop(FULL)
        for rule, s in spent.items():
            found.setdefault(rule, []).append((s.energy / full.energy, s.latency / full.latency))
    return found


def _ablate(paper: Paper, log: Log, progress: Progress) -> None:
    began, chosen = time.perf_counter(), _chosen(paper)
    found: dict[str, list[ablation.Ablated]] = {}
    done = count(1)

    def one(i: Instance) -> list[ablation.Ablated]:
        rows_ = ablation.ablate(i.planned, i.mean, i.task, i.mean.part, Shapes(i.model), i.target, Conditions(),
                                paper.settings.search)  # fmt: skip
        progress("ablation", next(done), len(chosen))
        return rows_

    for i, of in zip(chosen, _at_once(one, chosen), strict=True):
        found.setdefault(i.target.name, []).extend(of)
    progress("ablation", len(chosen), len(chosen))
    seed = paper.settings.seed
    paper.ablation = {
        target: ablation.worths(of, seed) + ablation.sampling_worths(_sampling(chosen, target, log), seed)
        for target, of in found.items()
    }
    paper.seconds["ablation"] = time.perf_counter() - began


def _sensitivity(paper: Paper, progress: Progress) -> None:
    began, chosen = time.perf_counter(), _chosen(paper)
    for target in paper.targets:
        mine = [i for i in chosen if i.target.name == target.name and STANDARD in i.planned.plans]
        if not mine:
            continue
        # The costs know the target as it was priced: calibrated, where that is this machine.
        priced = mine[0].mean.costs[STEPS].target

        def ratios(changed: Target, mine: Sequence[Instance] = mine) -> dict[str, list[float]]:
            found: dict[str, list[float]] = {}
            for i in mine:
                jobs = [with_target(i.mean, changed)]
                base = i.spent(STANDARD, jobs).energy
                for plan in (*PGSAM.values(), *CASCADE.values()):
                    found.setdefault(plan, []).append(i.spent(plan, jobs).energy / base)
            return found

        paper.sensitivity[target.name] = sensitivity.headlines(
            priced, ratios, lambda done, total, name=target.name: progress(f"sensitivity of {name}", done, total)  # type: ignore[misc]
        )
    paper.seconds["sensitivity"] = time.perf_counter() - began


def quick(tasks: Sequence[Task]) -> list[Task]:
    """Tasks with one part of mean lengths."""
    return [t.coarse() for t in tasks]

