"""Plans for what may be lost: the same problem with placements forbidden, so that a loss at run time needs no compiler.

Lost can be each placement that a plan uses (an engine's session dies), each of its devices and each of its engines (all
their placements), and all placements but one: whatever is lost one after the other, what is left has a plan. The
objective stays the same, relative to the same reference plan; a lost device counts on as one that is idle. Limits of
the user that need what is lost are given up, and the plan's entry says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from qeil_compile.devices import Placement
from qeil_compile.errors import CapacityError, PinError, QeilError, ThermalError
from qeil_compile.passes.choice import Valued, nearest_to_caps, parse_choice
from qeil_compile.passes.costs import CostTable
from qeil_compile.passes.partition.front import Front
from qeil_compile.passes.partition.joint import JointFront, JointPoint, partition_phases
from qeil_compile.passes.partition.settings import PartitionSettings, allowed_placements, tied_groups
from qeil_compile.plan import Failover, Plan

#: The search starts from what was found with nothing lost, so a part of its epochs is enough.
_SHARE_OF_EPOCHS = 4
#: Name of the loss of all placements but one, before the one.
ALL_BUT = "all but"
#: Pins that are listed one by one when they are dropped.
_LISTED = 2


@dataclass(frozen=True)
class Loss:
    """Placements `lost` together, and the `names` of that loss: placement, device or engine."""

    names: tuple[str, ...]
    lost: tuple[str, ...]


def losses(placements: Sequence[Placement], used: Collection[str]) -> tuple[Loss, ...]:
    """What can be lost of the placements in `used`: each of them, each of their devices, each of their engines, and all
    placements but one."""
    found: dict[tuple[str, ...], list[str]] = {}
    taken: set[str] = set()
    kinds: tuple[Callable[[Placement], str], ...] = (lambda p: p.spec, lambda p: p.profile.name, lambda p: p.engine)
    for kind in kinds:
        for name in dict.fromkeys(kind(p) for p in placements if p.spec in used):
            if name not in taken:  # a device may have the name of an engine
                taken.add(name)
                found.setdefault(tuple(p.spec for p in placements if kind(p) == name), []).append(name)
    for alone in (p.spec for p in placements if set(used) != {p.spec}):
        others = tuple(p.spec for p in placements if p.spec != alone)
        if others and others not in found:
            found[others] = [f"{ALL_BUT} {alone}"]
    return tuple(Loss(tuple(names), lost) for lost, names in found.items())


@dataclass(frozen=True)
class _Spare:
    """What takes over: placement index per group and phase, a plan per phase, and the limits that were given up."""

    places: tuple[tuple[int, ...], ...]
    plans: tuple[Plan, ...]
    notes: tuple[str, ...]


_Again = Callable[[PartitionSettings], _Spare]


def with_failovers(front: Front, plan: Plan, settings: PartitionSettings | None = None) -> Plan:
    """A plan of the front with a spare for all that it may lose, or the reason why there is none.

    `settings` are those of the front.
    """
    # The package imports this module, and only this function needs the package.
    from qeil_compile.passes.partition import partition

    costs, near = front.costs, assignment_of(front.costs, plan)

    def again(limits: PartitionSettings) -> _Spare:
        found = replace(partition(costs, limits, front.candidates, near), unit=front.reference)
        point, notes = _choose(found, plan.objective)
        alone = replace(found, candidates=(point,), notes=()).plan(point, plan.objective, ranges=False)
        return _Spare((point.assignment,), (replace(alone, pins=dict(limits.pins)),), notes)

    failovers, spares = _solve([costs], [near], settings or PartitionSettings(), again)
    return replace(plan, failovers=failovers, spares=tuple(s.plans[0] for s in spares))


def phase_failovers(
    front: JointFront, point: JointPoint, objective: str, settings: PartitionSettings | None = None
) -> dict[str, Plan]:
    """`front.plans(point, objective)` with failovers, which are the same in each phase.

    Spare k of one phase belongs to spare k of the others: after a loss all phases go on with the same number.
    """
    costs = [p.costs for p in front.phases]

    def again(limits: PartitionSettings) -> _Spare:
        joint = partition_phases(front.phases, limits, front.candidates, point.assignments)
        found = replace(joint, unit=front.reference)
        best, notes = _choose(found, objective)
        plans = found.plans(best, objective, ranges=False).values()
        return _Spare(best.assignments, tuple(replace(p, pins=dict(limits.pins)) for p in plans), notes)

    failovers, spares = _solve(costs, point.assignments, settings or PartitionSettings(), again)
    return {
        name: replace(plan, failovers=failovers, spares=tuple(s.plans[k] for s in spares))
        for k, (name, plan) in enumerate(front.plans(point, objective).items())
    }


def assignment_of(costs: CostTable, plan: Plan) -> tuple[int, ...]:
    """Placement index per group."""
    specs = [p.spec for p in costs.placements]
    at = {name: specs.index(s.placement) for s in plan.stages for name in s.ops}
    return tuple(at[costs.groups.graph.ops[g.ops[0]].name] for g in costs.groups.groups)


def _solve(
    costs: Sequence[CostTable], places: Sequence[Sequence[int]], settings: PartitionSettings, again: _Again
) -> tuple[tuple[Failover, ...], list[_Spare]]:
    """One entry per loss, and the different spares that they name."""
    placements = costs[0].placements
    specs = [p.spec for p in placements]
    every = losses(placements, {specs[p] for phase in places for p in phase})
    found: dict[Loss, _Spare | str] = {}
    for loss in sorted(every, key=lambda o: len(o.lost)):
        lost = {specs.index(s) for s in loss.lost}
        # The best plan without less is the best without more, if it does not use the rest.
        found[loss] = next(
            (s for other, s in found.items() if isinstance(s, _Spare) and set(other.lost) <= set(loss.lost)
             and not any(lost & set(phase) for phase in s.places)),
            None,
        ) or _spare(costs, settings, loss, again)  # fmt: skip
    spares: list[_Spare] = []
    entries = []
    for loss in every:
        spare = found[loss]
        if isinstance(spare, str):
            if loss.names[0].startswith(ALL_BUT):
                continue  # that a placement cannot do everything is no news
            entries.append(Failover(loss.names, loss.lost, None, spare))
            continue
        same = next((k for k, s in enumerate(spares) if _key(s) == _key(spare)), len(spares))
        spares[same : same + 1] = [_joined(spares[same], spare) if same < len(spares) else spare]
        entries.append(Failover(loss.names, loss.lost, same, notes=spare.notes))
    return tuple(entries), spares


def _key(spare: _Spare) -> tuple[object, ...]:
    return spare.places, [p.pins for p in spare.plans]


def _joined(one: _Spare, other: _Spare) -> _Spare:
    """The same plan for two losses, with a gap and bounds that hold for both."""

    def weaker(a: Plan, b: Plan) -> Plan:
        gap = None if a.gap is None or b.gap is None else max(a.gap, b.gap)
        bounds = {n: min(v, b.lower_bounds[n]) for n, v in a.lower_bounds.items() if n in b.lower_bounds}
        return replace(a, gap=gap, lower_bounds=bounds)

    return replace(one, plans=tuple(weaker(a, b) for a, b in zip(one.plans, other.plans, strict=True)))


def _spare(costs: Sequence[CostTable], settings: PartitionSettings, loss: Loss, again: _Again) -> _Spare | str:
    """The best plan without what is lost, or why there is none."""
    try:
        limits, notes = _limits(costs, settings, loss)
        try:
            spare = again(limits)
        except (PinError, CapacityError, ThermalError):
            raise
        except QeilError:
            # A strategy by the name of what is lost, for example.
            if not limits.only:
                raise
            notes += (f"all strategies are considered: {', '.join(limits.only)} finds no plan",)
            spare = again(replace(limits, only=()))
    except QeilError as error:
        return str(error)
    return replace(spare, notes=notes + spare.notes)


def _limits(
    costs: Sequence[CostTable], settings: PartitionSettings, loss: Loss
) -> tuple[PartitionSettings, tuple[str, ...]]:
    """Settings under which what is lost is not used, and the limits of the user that do not hold without it.

    Raises `PinError` naming an operator that runs nowhere else.
    """
    for table in costs:
        _check_runs_elsewhere(table, settings, loss)
    search = replace(settings.search, epochs=-(-settings.search.epochs // _SHARE_OF_EPOCHS))
    pins = {pattern: spec for pattern, spec in settings.pins.items() if spec not in loss.lost}
    dropped = [f"{pattern}={spec}" for pattern, spec in settings.pins.items() if pattern not in pins]
    notes = [f"pin {pin} is dropped" for pin in dropped]
    if len(dropped) > _LISTED:
        notes = [f"each of {len(dropped)} pins is dropped"]
    forbidden = (*settings.forbidden, *loss.lost)
    limits = replace(settings, pins=pins, together=(), forbidden=forbidden, search=search)
    allowed = [allowed_placements(table, limits) for table in costs]
    for pattern in settings.together:
        try:
            for table, able in zip(costs, allowed, strict=True):
                tied_groups(table, (*limits.together, pattern), able)
        except PinError:
            notes.append(f"together {pattern} is dropped: no placement that is left takes all of it")
            continue
        limits = replace(limits, together=(*limits.together, pattern))
    return limits, tuple(notes)


def _check_runs_elsewhere(costs: CostTable, settings: PartitionSettings, loss: Loss) -> None:
    left = [
        p.spec not in loss.lost and not {p.spec, p.profile.name} & set(settings.forbidden) for p in costs.placements
    ]
    forbidden = f" ({', '.join(settings.forbidden)} forbidden)" if settings.forbidden else ""
    if not any(left):
        raise PinError(f"target {costs.target.name} has no other placement{forbidden}")
    stuck = np.flatnonzero(~costs.supported[:, left].any(axis=1))
    if len(stuck):
        op = costs.groups.graph.ops[costs.groups.groups[int(stuck[0])].ops[0]]
        raise PinError(f"operator {op.name} ({op.type}) runs nowhere else{forbidden}")


PointT = TypeVar("PointT", bound=Valued)
PointT_co = TypeVar("PointT_co", bound=Valued, covariant=True)


class _Choosable(Protocol[PointT_co]):
    """A front, of one phase or of several."""

    @property
    def candidates(self) -> tuple[PointT_co, ...]:
        """All plans."""

    def choose(self, objective: str) -> PointT_co:
        """The best within the caps."""


def _choose(front: _Choosable[PointT], objective: str) -> tuple[PointT, tuple[str, ...]]:
    """The choice, or the plan that is nearest to the caps where none keeps them, with a note that says so."""
    wanted = parse_choice(objective)
    if any(not wanted.excess(p.objectives) for p in front.candidates):
        return front.choose(objective), ()
    nearest, missed = nearest_to_caps(front.candidates, wanted)
    return nearest, (f"no plan that is left keeps the caps; this is the nearest, with {missed} (SI units)",)
