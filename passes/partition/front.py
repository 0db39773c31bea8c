"""Plans that were considered, the front of those that no other dominates, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from qeil_compile.passes.annotate import CostTable
from qeil_compile.passes.choice import best_within, parse_choice, undominated
from qeil_compile.passes.partition.bounds import gap, weighted_bound
from qeil_compile.passes.partition.feasible import worst_case_notes
from qeil_compile.passes.partition.tables import Tables
from qeil_compile.passes.schedule import Schedule
from qeil_compile.passes.sensitivity import sensitivity
from qeil_compile.passes.sequence import Sequence_
from qeil_compile.plan import Alternative, Objectives, Plan


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
    """All candidates that fit; `points` are the non-dominated ones.

    `lower_bounds`, by objective, hold for every plan whose stages follow the order of the graph, as `tables` values
    plans; the schedule may come out below where it lets groups of two segments overlap. `problem` is what the search
    saw (None for an assignment made elsewhere), `evaluations` how many plans it valued. `unit` is what weighted sums
    are relative to; the best single placement if None.
    """

    costs: CostTable
    candidates: tuple[Candidate, ...]
    lower_bounds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    problem: Tables | None = field(default=None, repr=False, compare=False)
    evaluations: int = 0
    unit: Objectives | None = None

    @cached_property
    def points(self) -> tuple[Candidate, ...]:
        """Candidates that no other dominates."""
        return undominated(self.candidates)

    def choose(self, objective: str) -> Candidate:
        """The candidate with the smallest value of an objective (see `choice`) among those within its caps.

        Raises `QeilError` for an objective that cannot be read, `CapacityError` where no candidate keeps the caps.
        """
        return best_within(
            self.candidates, objective, lambda c: (self.value(objective, c.objectives), len(c.sequence))
        )

    def value(self, objective: str, objectives: Objectives) -> float:
        """Weighted sum of the objectives, latency and energy relative to those of `reference`."""
        return parse_choice(objective).value(objectives, self.reference)

    def gap(self, candidate: Candidate, objective: str) -> float | None:
        """By which share the candidate's value may be above the best of any plan; None where no bound is known."""
        wanted = parse_choice(objective)
        wl, we, wu = wanted.weights
        if self.problem is None:
            return None
        best = self.reference
        bound = wu * self.lower_bounds["under_utilisation"]
        if wl or we:
            bound += weighted_bound(self.problem, wl / max(best.latency, 1e-30), we / max(best.energy, 1e-30))
        return gap(self.value(objective, candidate.objectives), bound)

    @property
    def reference(self) -> Objectives:
        """What latency and energy count relative to in weighted sums."""
        return self.unit or self.best_single.objectives

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
            "evaluations": self.evaluations,
            "candidates": [
                {"strategy": c.strategy, "assignment": list(c.assignment), "latency": c.objectives.latency,
                 "energy": c.objectives.energy, "under_utilisation": c.objectives.under_utilisation,
                 "on_front": c in self.points}
                for c in self.candidates
            ],
        }  # fmt: skip

    def plan(self, candidate: Candidate, objective: str, ranges: bool = True) -> Plan:
        """The candidate as a plan; the others as its alternatives.

        `ranges` prices all again over the ranges of energy coefficients, which may take longer than the search.
        """
        points = self.points
        alternatives = tuple(
            Alternative(
                c.strategy, len(c.sequence), c.objectives, c is candidate, c in points,
                self.difference(candidate, c) if c is not candidate else "",
            )
            for c in self.candidates
        )  # fmt: skip
        return Plan(
            self.costs.groups.graph.name, self.costs.target.name, candidate.strategy, objective, self.costs.label,
            candidate.schedule.stages, candidate.schedule.transfers, _units(self.costs, candidate.sequence),
            candidate.objectives, self.lower_bounds, alternatives,
            (*self.notes, *worst_case_notes(self.costs, candidate.schedule)), devices=candidate.schedule.devices,
            sensitivity=sensitivity(self, candidate, objective) if ranges else (), gap=self.gap(candidate, objective),
        )  # fmt: skip

    def difference(self, a: Candidate, b: Candidate) -> str:
        """How many groups stand elsewhere in b than in a."""
        count = int(np.count_nonzero(np.array(a.assignment) != np.array(b.assignment)))
        return f"{count} of {len(a.assignment)} groups elsewhere"


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
