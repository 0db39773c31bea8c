"""Assign every group to a placement: candidates by several strategies, a Pareto front, a choice.

Strategies: each single placement (with what it refuses on the cheapest other), greedy, the dynamic programme along the
order of groups, the minimum cut where there are two placements, and PGSAM, which starts from all of them. On request
also rules that know no price (random, the provider order of ONNX Runtime, that of OpenVINO's HETERO) and exact ones
(exhaustive, HiGHS). All candidates are scheduled, so that they are compared by
the same evaluator, and those that do not fit are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qeil_compile.errors import CapacityError, PinError, QeilError, ThermalError
from qeil_compile.passes.annotate import CostTable
from qeil_compile.passes.choice import SCALES
from qeil_compile.passes.partition.baselines import at_random, by_priority, engine_first, min_cut
from qeil_compile.passes.partition.bounds import ambient_leakage, lower_bounds
from qeil_compile.passes.partition.chain import chain
from qeil_compile.passes.partition.exact import Optimum, exhaustive, optimum
from qeil_compile.passes.partition.failover import assignment_of, phase_failovers, with_failovers
from qeil_compile.passes.partition.feasible import does_not_fit, overheats, thermal_note
from qeil_compile.passes.partition.front import Candidate, Front
from qeil_compile.passes.partition.greedy import greedy
from qeil_compile.passes.partition.joint import JointFront, JointPoint, partition_phases
from qeil_compile.passes.partition.pgsam import Found, Search, reference, search
from qeil_compile.passes.partition.settings import PartitionSettings, allowed_placements, pin_labels, tied_groups
from qeil_compile.passes.partition.single import single
from qeil_compile.passes.partition.stages import evaluate
from qeil_compile.passes.partition.tables import Phase, tables
from qeil_compile.plan import Plan

__all__ = [
    "SCALES",
    "Candidate",
    "Front",
    "JointFront",
    "JointPoint",
    "PartitionSettings",
    "Phase",
    "Search",
    "assign_plan",
    "assignment_of",
    "evaluate",
    "partition",
    "partition_phases",
    "phase_failovers",
    "pin_labels",
    "with_failovers",
]

#: Plans of the search that are scheduled, beside the best of each scalarisation.
_MOST_POINTS = 12


def partition(
    costs: CostTable,
    settings: PartitionSettings | None = None,
    known: Sequence[Candidate] = (),
    near: Sequence[int] = (),
) -> Front:
    """Candidates of all strategies that respect pins, ties, memory and thermal ceilings.

    `known` are candidates of the same cost table: those that these settings allow are considered as well. `near` is an
    assignment that these settings may not allow: plans that differ from it only where they must are considered.

    Raises `PinError` (a limit that no placement can honour), `CapacityError` (nothing fits: names pool, need
    and size), `ThermalError` (what fits would overheat a device: names it).
    """
    settings = settings or PartitionSettings()
    made = _Candidates(costs, settings)
    made.add_known(known)
    made.add_starts()
    if len(near):
        made.add_near(np.asarray(near, dtype=np.int64))
    made.add_search()
    return made.front()


class _Candidates:
    """Candidates as they come in, each assignment once, and why others do not fit."""

    def __init__(self, costs: CostTable, settings: PartitionSettings) -> None:
        self.costs, self.settings = costs, settings
        self.allowed = allowed_placements(costs, settings)
        self.tied = tied_groups(costs, settings.together, self.allowed)
        self.found: dict[tuple[int, ...], Candidate] = {}
        self.misfits: list[str] = []
        self.too_hot: list[str] = []
        self.starts: list[np.ndarray] = []
        self.problem = tables([Phase(costs.groups.graph.name, costs)], [self.allowed], self.tied)
        self.scale = np.ones(3)
        self.evaluations = 0

    def add_known(self, known: Sequence[Candidate]) -> None:
        """Candidates of another partition of the table that are allowed in this one, as they are."""
        for candidate in known:
            place = np.array(candidate.assignment, dtype=np.int64)
            if self.allowed[np.arange(len(place)), place].all() and (self._tie(place) == place).all():
                self.starts.append(place)
                if self._wants(candidate.strategy):
                    self.found.setdefault(candidate.assignment, candidate)

    def add_near(self, near: np.ndarray) -> None:
        """An assignment with all that is not allowed in it moved to one placement, for each placement."""
        costs, allowed = self.costs, self.allowed
        stays = allowed[np.arange(len(near)), near]
        for p in np.flatnonzero(allowed[~stays].any(axis=0)):
            place = self._tie(np.where(stays, near, single(costs, allowed, int(p))))
            self.starts.append(place)
            name = f"moved to {costs.placements[p].spec}"
            if self._wants(name):
                self.add(place, name)

    def _wants(self, name: str) -> bool:
        only = self.settings.only
        return not only or any(name.startswith(o) for o in only)

    def add_starts(self) -> None:
        """Single placements, greedy, and the dynamic programme. Raises `QeilError` for a strategy not known."""
        costs, allowed = self.costs, self.allowed
        usable = [p for p in range(len(costs.placements)) if allowed[:, p].any()]
        singles = [self._tie(single(costs, allowed, p)) for p in usable]
        self.scale = reference(self.problem, singles)
        makers: dict[str, Callable[[], np.ndarray]] = {
            f"single {costs.placements[p].spec}": (lambda s=s: s)  # type: ignore[misc]
            for p, s in zip(usable, singles, strict=True)
        }
        makers |= self._scalarised(usable)
        asked = self._on_request()
        wanted = [n for n in (*makers, *asked) if self._wants(n) and (n in makers or self.settings.only)]
        if not wanted and not self._wants("pgsam"):
            raise QeilError(
                f"strategy {self.settings.only[0]}: unknown; expected single, greedy, chain, cut or pgsam, or one of "
                f"{', '.join((*makers, *asked))}"
            )
        for name, make in (makers | asked).items():
            if name in wanted or (name in makers and self._wants("pgsam")):
                assignment = self._tie(make())
                self.starts.append(assignment)
                if name in wanted:
                    self.add(assignment, name)

    def _scalarised(self, usable: Sequence[int]) -> dict[str, Callable[[], np.ndarray]]:
        """Strategies that minimise a weighted sum of latency and energy."""
        found: dict[str, Callable[[], np.ndarray]] = {}
        t, leakage = self.problem, ambient_leakage(self.problem)
        for name, scale in SCALES.items():
            if scale[2]:
                continue
            wl, we = scale[0] / self.scale[0], scale[1] / self.scale[1]
            found[f"greedy {name}"] = lambda w=(wl, we): self._greedy_that_fits(w)  # type: ignore[misc]
            found[f"chain {name}"] = lambda w=(wl, we): chain(t, leakage, *w)  # type: ignore[misc]
            if len(usable) == 2:
                found[f"cut {name}"] = lambda w=(wl, we): min_cut(t, leakage, *w, *usable)  # type: ignore[misc]
        return found

    def _on_request(self) -> dict[str, Callable[[], np.ndarray]]:
        """Strategies for comparison: simple rules, and what takes long."""
        t, places, leakage = self.problem, self.costs.placements, ambient_leakage(self.problem)
        found: dict[str, Callable[[], np.ndarray]] = {
            "random": lambda: at_random(t, self.settings.search.seed),
            "provider order": lambda: by_priority(t, engine_first(places, "onnxruntime")),
            "hetero order": lambda: by_priority(t, engine_first(places, "openvino")),
        }
        for name, scale in SCALES.items():
            found[f"exhaustive {name}"] = lambda s=scale: _found(exhaustive(t, s, self.scale))  # type: ignore[misc]
            if not scale[2]:
                wl, we = scale[0] / self.scale[0], scale[1] / self.scale[1]
                found[f"highs {name}"] = lambda w=(wl, we): _found(  # type: ignore[misc]
                    optimum(t, w[0], w[1], leakage, self.settings.search.seconds or 60.0)
                )
        return found

    def add_search(self) -> None:
        """What the annealer finds, with room left for the activations that the starts need."""
        if not self._wants("pgsam") or len(self.costs.placements) < 2:
            return
        self.problem = tables(
            [Phase(self.costs.groups.graph.name, self.costs)], [self.allowed], self.tied, self._arenas()
        )
        result = search(self.problem, self.starts, self.settings.search, self.scale)
        self.evaluations = result.evaluations
        for name, (_, place) in result.best.items():
            self.add(place, f"pgsam {name}")
        for k, place in enumerate(_spread(result, _MOST_POINTS)):
            self.add(place, f"pgsam front {k + 1}")

    def _arenas(self) -> dict[str, float]:
        """Bytes of activations by pool, at most, over the candidates so far."""
        found: dict[str, float] = {}
        pools = {d.name: d.pool for d in self.costs.target.devices}
        for c in self.found.values():
            own: dict[str, float] = {}
            for state in c.schedule.devices:
                own[pools[state.device]] = own.get(pools[state.device], 0.0) + state.arena_bytes
            found = {pool: max(found.get(pool, 0.0), n) for pool, n in own.items()}
        return found

    def add(self, assignment: Sequence[int] | np.ndarray, name: str) -> None:
        """Schedule one assignment and keep it if it fits and is new."""
        fixed = tuple(int(p) for p in assignment)
        if fixed in self.found:
            return
        candidate = evaluate(self.costs, fixed, name)
        misfit, heat = does_not_fit(self.costs, candidate.schedule), overheats(self.costs, candidate.schedule)
        if misfit:
            self.misfits.append(f"{name}: {misfit}")
        elif heat:
            self.too_hot.append(f"{name}: {heat}")
        else:
            self.found[fixed] = candidate

    def front(self) -> Front:
        """All that fits. Raises `ThermalError` or `CapacityError` where nothing does."""
        costs = self.costs
        if not self.found and self.too_hot:
            raise ThermalError(
                f"target {costs.target.name} cannot sustain model {costs.groups.graph.name}: "
                f"{'; '.join(self.too_hot[:4])}; use a target with better cooling, or plan for a shorter duration"
            )
        if not self.found:
            raise CapacityError(
                f"model {costs.groups.graph.name} does not fit on target {costs.target.name}: "
                f"{'; '.join(self.misfits[:4])}; use a target with more memory or a smaller model"
            )
        seeds = [np.array(c.assignment, dtype=np.int64) for c in self.found.values()]
        bounds = lower_bounds(self.problem, self.scale, seeds)
        limits = {"latency": bounds.latency, "energy": bounds.energy, "under_utilisation": bounds.under_utilisation}
        for name in limits:
            # Stages that do not follow the order of the graph may save a boundary.
            limits[name] = min(limits[name], *(getattr(c.objectives, name) for c in self.found.values()))
        notes = (*self.misfits, *self.too_hot, *thermal_note(costs))
        return Front(costs, tuple(self.found.values()), limits, notes, self.problem, self.evaluations)

    def _tie(self, assignment: np.ndarray) -> np.ndarray:
        """The assignment with each class of tied groups on the allowed placement that most of it is on."""
        found = np.array(assignment, dtype=np.int64)
        for members in self.tied:
            able = self.allowed[members].all(axis=0)
            votes = np.where(able, np.bincount(found[members], minlength=self.allowed.shape[1]), -1)
            found[members] = int(votes.argmax())
        return found

    def _greedy_that_fits(self, weights: tuple[float, float]) -> np.ndarray:
        """Greedy counts weights only; where activations then lack room, it leaves what they took and tries again."""
        costs, kept = self.costs, dict[str, int]()
        for _ in range(3):
            assignment = self._tie(greedy(costs, self.allowed, weights, kept))
            result = evaluate(costs, assignment, "").schedule
            if not does_not_fit(costs, result):
                break
            pools = {d.name: d.pool for d in costs.target.devices}
            arenas: dict[str, int] = {}
            for state in result.devices:
                arenas[pools[state.device]] = arenas.get(pools[state.device], 0) + state.arena_bytes
            kept = {pool: max(n, kept.get(pool, 0)) for pool, n in arenas.items()}
        return assignment


def _found(best: Optimum) -> np.ndarray:
    if best.place is None:
        raise CapacityError("exact search: no assignment fits the memories; use a target with more memory")
    return best.place


def _spread(result: Found, most: int) -> list[np.ndarray]:
    """At most so many plans of the archive, from the fastest to the most frugal, as far apart as may be."""
    order = np.lexsort((result.values[:, 1], result.values[:, 0]))
    picked = sorted({round(k) for k in np.linspace(0, len(order) - 1, most)}) if len(order) else []
    return [result.places[order[k]] for k in picked]


def assign_plan(costs: CostTable, assignment: Sequence[int] | np.ndarray, objective: str = "latency") -> Plan:
    """A plan for an assignment made elsewhere (placement index per group), made legal and scheduled."""
    candidate = evaluate(costs, assignment, "given")
    refused = [g for g, p in enumerate(candidate.assignment) if not costs.supported[g, p]]
    if refused:
        g = refused[0]
        raise PinError(f"group {g} cannot run on {costs.placements[candidate.assignment[g]].spec}: "
                       f"{costs.reasons[(g, candidate.assignment[g])]}")  # fmt: skip
    return Front(costs, (candidate,), {}).plan(candidate, objective)
