"""Assign every group to a placement: candidates by several strategies, a Pareto front, a choice.

Strategies of this module: each single placement (with what it refuses on the cheapest other), greedy, and
the exact dynamic programme along the chain for each scalarisation. All candidates are legalised and
scheduled, so that they are compared by the same evaluator, and those that do not fit are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np

from qeil_compile.errors import CapacityError, PinError, QeilError, ThermalError
from qeil_compile.ir import OpGraph
from qeil_compile.passes.annotate import CostTable
from qeil_compile.passes.legalise import legalise
from qeil_compile.passes.partition.chain import chain
from qeil_compile.passes.partition.feasible import does_not_fit, overheats, thermal_note, worst_case_notes
from qeil_compile.passes.partition.greedy import greedy
from qeil_compile.passes.partition.single import single
from qeil_compile.passes.schedule import Schedule, schedule
from qeil_compile.passes.sensitivity import sensitivity
from qeil_compile.passes.sequence import Sequence_
from qeil_compile.plan import Alternative, Objectives, Plan

__all__ = ["Candidate", "Front", "PartitionSettings", "assign_plan", "partition", "pin_labels"]

#: Scalarisations: weight of latency and of energy, each relative to the best single placement's.
SCALES: Mapping[str, tuple[float, float]] = {"latency": (1.0, 0.0), "energy": (0.0, 1.0), "balanced": (0.5, 0.5)}


@dataclass(frozen=True)
class PartitionSettings:
    """`pins` maps a pattern (operator name, scope or type, with * and ?) to a placement. `only` names strategies to
    consider (all by default)."""

    pins: Mapping[str, str] = None  # type: ignore[assignment]
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "pins", dict(self.pins or {}))


@dataclass(frozen=True)
class Candidate:
    """One assignment (placement index per group) with its stages and objective values."""

    strategy: str
    assignment: tuple[int, ...]
    sequence: Sequence_
    schedule: Schedule

    @property
    def objectives(self) -> Objectives:
        """Latency, energy, under-utilisation."""
        return self.schedule.objectives


@dataclass(frozen=True)
class Front:
    """All candidates that fit; `points` are the non-dominated ones."""

    costs: CostTable
    candidates: tuple[Candidate, ...]
    lower_bounds: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def points(self) -> tuple[Candidate, ...]:
        """Candidates that no other dominates."""
        return tuple(
            c
            for c in self.candidates
            if not any(o.objectives.dominates(c.objectives) for o in self.candidates if o is not c)
        )

    def choose(self, objective: str) -> Candidate:
        """The candidate with the smallest value of a scalarisation: latency, energy or balanced."""
        values = [self.value(objective, c.objectives.latency, c.objectives.energy) for c in self.candidates]
        return self.candidates[min(range(len(values)), key=lambda i: (values[i], len(self.candidates[i].sequence)))]

    def value(self, objective: str, latency: float, energy: float) -> float:
        """A scalarisation of latency [s] and energy [J], each relative to the best single placement's."""
        wl, we = _scale(objective)
        best = self.best_single.objectives
        return wl * latency / best.latency + we * energy / max(best.energy, 1e-30)

    @cached_property
    def best_single(self) -> Candidate:
        """The fastest candidate with the fewest stages: on one placement wherever one takes all operators."""
        fewest = min(len(c.sequence) for c in self.candidates)
        return min((c for c in self.candidates if len(c.sequence) == fewest), key=lambda c: c.objectives.latency)

    def as_text(self) -> str:
        """One line per candidate; those on the front are marked."""
        points = self.points
        return "\n".join(
            f"{'*' if c in points else ' '} {c.strategy}: {len(c.sequence)} stages, "
            f"{c.objectives.latency * 1e3:.3f} ms, {c.objectives.energy * 1e3:.3f} mJ, "
            f"under-utilisation {c.objectives.under_utilisation:.3f} ({self.costs.label})"
            for c in self.candidates
        )

    def to_json(self) -> dict[str, object]:
        """Stable JSON form of the candidates."""
        return {
            "lower_bounds": dict(self.lower_bounds),
            "candidates": [
                {"strategy": c.strategy, "assignment": list(c.assignment), "latency": c.objectives.latency,
                 "energy": c.objectives.energy, "under_utilisation": c.objectives.under_utilisation,
                 "on_front": c in self.points}
                for c in self.candidates
            ],
        }  # fmt: skip

    def plan(self, candidate: Candidate, objective: str) -> Plan:
        """The candidate as a plan; the others as its alternatives."""
        points = self.points
        alternatives = tuple(
            Alternative(c.strategy, len(c.sequence), c.objectives, c is candidate, c in points) for c in self.candidates
        )
        return Plan(
            self.costs.groups.graph.name, self.costs.target.name, candidate.strategy, objective, self.costs.label,
            candidate.schedule.stages, candidate.schedule.transfers, _units(self.costs, candidate.sequence),
            candidate.objectives, self.lower_bounds, alternatives,
            (*self.notes, *worst_case_notes(self.costs, candidate.schedule)), devices=candidate.schedule.devices,
            sensitivity=sensitivity(self, candidate, objective),
        )  # fmt: skip


def partition(costs: CostTable, settings: PartitionSettings | None = None) -> Front:
    """Candidates of all strategies that respect pins, memory and thermal ceilings.

    Raises `PinError` (a pin that no placement can honour), `CapacityError` (nothing fits: names pool, need
    and size), `ThermalError` (what fits would overheat a device: names it).
    """
    settings = settings or PartitionSettings()
    allowed = _allowed(costs, settings.pins)
    strategies: dict[str, Callable[[], np.ndarray]] = {
        f"single {p.spec}": (lambda i=i: single(costs, allowed, i))  # type: ignore[misc]
        for i, p in enumerate(costs.placements)
        if allowed[:, i].any()
    }
    reference = _reference(costs, allowed)
    for name, scale in SCALES.items():
        weights = (scale[0] / reference[0], scale[1] / reference[1])
        strategies[f"greedy {name}"] = lambda w=weights: _greedy_that_fits(costs, allowed, w)  # type: ignore[misc]
        strategies[f"chain {name}"] = lambda w=weights: chain(costs, allowed, w)  # type: ignore[misc]
    chosen = [n for n in strategies if not settings.only or any(n.startswith(o) for o in settings.only)]
    if not chosen:
        raise QeilError(f"strategy {settings.only[0]}: unknown; expected single, greedy or chain, or one of "
                        f"{', '.join(strategies)}")  # fmt: skip
    found: dict[tuple[int, ...], Candidate] = {}
    misfits: list[str] = []
    too_hot: list[str] = []
    for name in chosen:
        candidate = evaluate(costs, strategies[name](), name)
        misfit, heat = does_not_fit(costs, candidate.schedule), overheats(costs, candidate.schedule)
        if misfit:
            misfits.append(f"{name}: {misfit}")
        elif heat:
            too_hot.append(f"{name}: {heat}")
        elif candidate.assignment not in found:
            found[candidate.assignment] = candidate
    if not found and too_hot:
        raise ThermalError(
            f"target {costs.target.name} cannot sustain model {costs.groups.graph.name}: {'; '.join(too_hot[:4])}; "
            "use a target with better cooling, or plan for a shorter duration"
        )
    if not found:
        raise CapacityError(
            f"model {costs.groups.graph.name} does not fit on target {costs.target.name}: {'; '.join(misfits[:4])}; "
            "use a target with more memory or a smaller model"
        )
    notes = (*misfits, *too_hot, *thermal_note(costs))
    return Front(costs, tuple(found.values()), _lower_bounds(costs, allowed), notes)


def _greedy_that_fits(costs: CostTable, allowed: np.ndarray, weights: tuple[float, float]) -> np.ndarray:
    """Greedy counts weights only; where activations then lack room, it leaves what they took and tries again."""
    kept: dict[str, int] = {}
    for _ in range(3):
        assignment = greedy(costs, allowed, weights, kept)
        result = evaluate(costs, assignment, "").schedule
        if not does_not_fit(costs, result):
            break
        pools = {d.name: d.pool for d in costs.target.devices}
        arenas: dict[str, int] = {}
        for state in result.devices:
            arenas[pools[state.device]] = arenas.get(pools[state.device], 0) + state.arena_bytes
        kept = {pool: max(n, kept.get(pool, 0)) for pool, n in arenas.items()}
    return assignment


def evaluate(costs: CostTable, assignment: Sequence[int] | np.ndarray, strategy: str) -> Candidate:
    """Legalise and schedule one assignment."""
    fixed = tuple(int(p) for p in assignment)
    sequence = legalise(costs.groups, fixed)
    return Candidate(strategy, fixed, sequence, schedule(costs, sequence))


def assign_plan(costs: CostTable, assignment: Sequence[int] | np.ndarray, objective: str = "latency") -> Plan:
    """A plan for an assignment made elsewhere (placement index per group), legalised and scheduled."""
    candidate = evaluate(costs, assignment, "given")
    refused = [g for g, p in enumerate(candidate.assignment) if not costs.supported[g, p]]
    if refused:
        g = refused[0]
        raise PinError(f"group {g} cannot run on {costs.placements[candidate.assignment[g]].spec}: "
                       f"{costs.reasons[(g, candidate.assignment[g])]}")  # fmt: skip
    return Front(costs, (candidate,), {}).plan(candidate, objective)


def pin_labels(graph: OpGraph, pins: Mapping[str, str]) -> list[str]:
    """The placement to which each operator is pinned, or "".

    Raises `PinError` when a pattern matches nothing, or two patterns want different placements.
    """
    labels, by = [""] * len(graph.ops), [""] * len(graph.ops)
    for pattern, placement in pins.items():
        hits = [i for i, op in enumerate(graph.ops) if _matches(pattern, op.name, op.scope, op.type, op.short_type)]
        if not hits:
            raise PinError(f"pin {pattern}={placement}: matches no operator; qeil explain lists names and scopes")
        for i in hits:
            if labels[i] and labels[i] != placement:
                raise PinError(
                    f"pins contradict for operator {graph.ops[i].name}: {by[i]}={labels[i]} and {pattern}={placement}; "
                    "remove one"
                )
            labels[i], by[i] = placement, pattern
    return labels


def _matches(pattern: str, *names: str) -> bool:
    return any(n and fnmatchcase(n, pattern) for n in names) or fnmatchcase(names[1], f"{pattern}.*")


def _allowed(costs: CostTable, pins: Mapping[str, str]) -> np.ndarray:
    allowed = costs.supported.copy()
    if not pins:
        return allowed
    specs = [p.spec for p in costs.placements]
    labels = pin_labels(costs.groups.graph, pins)
    for g in costs.groups.groups:
        wanted = {labels[i]: i for i in g.ops if labels[i]}
        if len(wanted) > 1:
            (a, i), (b, j) = list(wanted.items())[:2]
            ops = costs.groups.graph.ops
            raise PinError(
                f"pins contradict: {ops[i].name} on {a} and {ops[j].name} on {b} must run together, because they "
                "exchange values that are no tensors"
            )
        for spec, i in wanted.items():
            if spec not in specs:
                raise PinError(f"pin to {spec}: target {costs.target.name} has only {', '.join(specs)}")
            p = specs.index(spec)
            if not costs.supported[g.index, p]:
                raise PinError(
                    f"pin of operator {costs.groups.graph.ops[i].name} to {spec}: the engine refuses it "
                    f"({costs.reasons[(g.index, p)]})"
                )
            allowed[g.index] = False
            allowed[g.index, p] = True
    return allowed


def _reference(costs: CostTable, allowed: np.ndarray) -> tuple[float, float]:
    """Latency and energy of the fastest single placement: the unit of scalarisations."""
    usable = [p for p in range(len(costs.placements)) if allowed[:, p].any()]
    found = [evaluate(costs, single(costs, allowed, p), "") for p in usable]
    best = min(found, key=lambda c: c.objectives.latency).objectives
    return max(best.latency, 1e-12), max(best.energy, 1e-12)


def _lower_bounds(costs: CostTable, allowed: np.ndarray) -> dict[str, float]:
    """Bounds that hold for every assignment: each group at its cheapest, cold; boundaries and waiting free.

    Latency is bounded by the critical path and by the work shared evenly among the devices.
    """
    const = np.array([p.profile.power_const.value for p in costs.placements])
    seconds = np.where(allowed, costs.seconds, np.inf).min(axis=1)
    joules = np.where(allowed, costs.seconds * const + costs.dynamic, np.inf).min(axis=1)
    finish = np.zeros(len(seconds))
    before: dict[int, set[int]] = {}
    for a, b, _ in costs.groups.edges:
        before.setdefault(b, set()).add(a)
    for g in range(len(seconds)):
        finish[g] = seconds[g] + max((finish[a] for a in before.get(g, ())), default=0.0)
    path = float(finish.max(initial=0.0))
    return {
        "latency": max(path, float(seconds.sum()) / len(costs.target.devices)),
        "energy": float(joules.sum()),
        "under_utilisation": 0.0,
    }


def _scale(objective: str) -> tuple[float, float]:
    if objective not in SCALES:
        raise QeilError(f"objective {objective}: unknown; expected one of {', '.join(SCALES)}")
    return SCALES[objective]


def _units(costs: CostTable, sequence: Sequence_) -> tuple[tuple[int, ...], ...]:
    """Neighbouring stages of OpenVINO on different devices are lowered as one HETERO model."""
    units: list[list[int]] = []
    for k, (p, _) in enumerate(sequence):
        engine = costs.placements[p].engine
        if units and engine == "openvino" == costs.placements[sequence[k - 1][0]].engine:
            units[-1].append(k)
        else:
            units.append([k])
    return tuple(tuple(u) for u in units)


