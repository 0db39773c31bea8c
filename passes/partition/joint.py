"""Several graphs planned as one: the prompt and the steps of a language model, for example.

Phases share weights (by name): a weight that two phases use on one device is kept there once, on two devices in both.
A cache that a later phase reads on another device moves there once. Values are those of `tables`, with each phase as
often as it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from qeil_compile.errors import CapacityError
from qeil_compile.passes.choice import SCALES, best_within, parse_choice, undominated
from qeil_compile.passes.partition.bounds import gap, lower_bounds, weighted_bound
from qeil_compile.passes.partition.front import Candidate, Front
from qeil_compile.passes.partition.pgsam import reference, search, value_of
from qeil_compile.passes.partition.settings import PartitionSettings, allowed_placements, tied_groups
from qeil_compile.passes.partition.single import single
from qeil_compile.passes.partition.stages import evaluate
from qeil_compile.passes.partition.tables import Phase, Tables, tables
from qeil_compile.plan import Objectives, Plan


@dataclass(frozen=True)
class JointPoint:
    """One plan of all phases: a placement per group of each phase, and its value per use of all phases."""

    strategy: str
    assignments: tuple[tuple[int, ...], ...]
    objectives: Objectives


@dataclass(frozen=True)
class JointFront:
    """Plans of several phases. `lower_bounds` are by objective, and hold for all plans as the search values them.

    `unit` is what weighted sums are relative to; the fastest plan on one placement if None.
    """

    phases: tuple[Phase, ...]
    candidates: tuple[JointPoint, ...]
    lower_bounds: Mapping[str, float]
    problem: Tables
    evaluations: int
    unit: Objectives | None = None

    @cached_property
    def points(self) -> tuple[JointPoint, ...]:
        """Candidates that no other dominates."""
        return undominated(self.candidates)

    @cached_property
    def reference(self) -> Objectives:
        """What latency and energy count relative to in weighted sums."""
        if self.unit is not None:
            return self.unit
        singles = [c for c in self.candidates if c.strategy.startswith("single ")] or list(self.candidates)
        return min((c.objectives for c in singles), key=lambda o: o.latency)

    def choose(self, objective: str) -> JointPoint:
        """The candidate with the smallest value of an objective (see `choice`) among those within its caps.

        Raises `QeilError` for an objective that cannot be read, `CapacityError` where no candidate keeps the caps.
        """
        wanted = parse_choice(objective)
        return best_within(self.candidates, objective, lambda c: wanted.value(c.objectives, self.reference))

    def gap(self, point: JointPoint, objective: str) -> float | None:
        """By which share the point's value may be above the best of any plan; None where no bound is known."""
        wanted = parse_choice(objective)
        wl, we, wu = wanted.weights
        bound = wu * self.lower_bounds["under_utilisation"]
        if wl or we:
            bound += weighted_bound(self.problem, wl / self.reference.latency, we / max(self.reference.energy, 1e-30))
        return gap(wanted.value(point.objectives, self.reference), bound)

    def as_text(self) -> str:
        """One line per candidate; those on the front are marked."""
        return "\n".join(
            f"{'*' if c in self.points else ' '} {c.strategy}: {c.objectives.latency * 1e3:.3f} ms, "
            f"{c.objectives.energy * 1e3:.3f} mJ, under-utilisation {c.objectives.under_utilisation:.3f} "
            f"({self.phases[0].costs.label})"
            for c in self.candidates
        )

    def to_json(self) -> dict[str, object]:
        """Stable JSON form of the candidates."""
        return {
            "phases": {p.name: p.runs for p in self.phases},
            "lower_bounds": dict(self.lower_bounds),
            "evaluations": self.evaluations,
            "candidates": [
                {"strategy": c.strategy, "assignments": [list(a) for a in c.assignments], **asdict(c.objectives),
                 "on_front": c in self.points}
                for c in self.candidates
            ],
        }  # fmt: skip

    def plans(self, point: JointPoint, objective: str, ranges: bool = True) -> dict[str, Plan]:
        """An executable plan per phase, by its name; its objective values are those of one run of the phase.

        `ranges` as in `Front.plan`.
        """
        found = {}
        for phase, assignment in zip(self.phases, point.assignments, strict=True):
            candidate: Candidate = evaluate(phase.costs, assignment, point.strategy)
            found[phase.name] = Front(phase.costs, (candidate,), {}).plan(candidate, objective, ranges)
        return found


def partition_phases(
    phases: Sequence[Phase],
    settings: PartitionSettings | None = None,
    known: Sequence[JointPoint] = (),
    near: Sequence[Sequence[int]] = (),
) -> JointFront:
    """Plan several phases as one, under the limits of `settings`, which hold in every phase.

    `known` and `near` as in `partition`, with an assignment per phase.

    Raises `PinError` for a limit that no placement can honour, `CapacityError` where nothing fits, `InputError` where
    phases do not belong together.
    """
    settings = settings or PartitionSettings()
    allowed = [allowed_placements(p.costs, settings) for p in phases]
    first = np.cumsum([0, *(len(a) for a in allowed)])
    tied = [
        [g + int(low) for g in members]
        for p, a, low in zip(phases, allowed, first, strict=False)
        for members in tied_groups(p.costs, settings.together, a)
    ]
    names = [p.spec for p in phases[0].costs.placements]
    usable = [k for k in range(len(names)) if all(a[:, k].any() for a in allowed)]
    singles = {k: [single(p.costs, a, k) for p, a in zip(phases, allowed, strict=True)] for k in usable}
    problem = tables(phases, allowed, tied, _arenas(phases, singles))
    able = np.concatenate(allowed)
    starts = [(f"single {names[k]}", _tied(np.concatenate(parts), tied, able)) for k, parts in singles.items()]
    scale = reference(problem, [place for _, place in starts])
    starts += [(p.strategy, place) for p in known if (place := _if_allowed(p.assignments, able, tied)) is not None]
    if near:
        place = np.concatenate([np.array(a, dtype=np.int64) for a in near])
        stays = able[np.arange(len(place)), place]
        starts += [
            (f"moved to {names[k]}", _tied(np.where(stays, place, np.concatenate(parts)), tied, able))
            for k, parts in singles.items()
        ]
    result = search(problem, [place for _, place in starts], settings.search, scale)
    found = [
        *starts,
        *((f"pgsam {name}", place) for name, (_, place) in result.best.items()),
        *((f"pgsam front {k + 1}", place) for k, place in enumerate(result.places)),
    ]
    unique: dict[bytes, JointPoint] = {}
    for name, place in found:
        value = value_of(problem, place)
        if value[3] == 0:
            parts = tuple(tuple(int(p) for p in part) for part in np.split(place, first[1:-1]))
            unique.setdefault(place.tobytes(), JointPoint(name, parts, Objectives(*(float(v) for v in value[:3]))))
    if not unique:
        raise CapacityError(
            f"phases {', '.join(p.name for p in phases)}: no joint plan found fits the memories of target "
            f"{phases[0].costs.target.name}; use a target with more memory or a smaller model"
        )
    seeds = [place for _, place in found[: len(starts) + len(SCALES)]]
    bounds = lower_bounds(problem, scale, seeds)
    limits = {"latency": bounds.latency, "energy": bounds.energy, "under_utilisation": bounds.under_utilisation}
    return JointFront(tuple(phases), tuple(unique.values()), limits, problem, result.evaluations)


def _arenas(phases: Sequence[Phase], singles: Mapping[int, Sequence[np.ndarray]]) -> dict[str, float]:
    """Bytes of activations by pool, at most, over the phases and the single placements: phases take turns."""
    found: dict[str, float] = {}
    for parts in singles.values():
        for phase, assignment in zip(phases, parts, strict=True):
            pools = {d.name: d.pool for d in phase.costs.target.devices}
            for state in evaluate(phase.costs, assignment, "").schedule.devices:
                pool = pools[state.device]
                found[pool] = max(found.get(pool, 0.0), float(state.arena_bytes))
    return found


def _if_allowed(
    assignments: Sequence[Sequence[int]], allowed: np.ndarray, tied: Sequence[Sequence[int]]
) -> np.ndarray | None:
    """Assignments of all phases as one, or None where they break a limit."""
    place = np.concatenate([np.array(a, dtype=np.int64) for a in assignments])
    together = all(len(set(place[list(members)])) == 1 for members in tied)
    return place if together and allowed[np.arange(len(place)), place].all() else None


def _tied(place: np.ndarray, tied: Sequence[Sequence[int]], allowed: np.ndarray) -> np.ndarray:
    """Each class of tied groups on the allowed placement that most of it is on."""
    for members in map(list, tied):
        votes = np.bincount(place[members], minlength=allowed.shape[1])
        place[members] = np.where(allowed[members].all(axis=0), votes, -1).argmax()
    return place
