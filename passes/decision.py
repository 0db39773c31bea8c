"""What the choice of a plan rests on: how far it may be from the best one, and what would change it.

Everything is computed from the plan and the objective values of its alternatives, so that an artifact accounts for
its choice without the cost table. Weights of energy are shares of what latency and energy weigh together; both count
relative to the best single placement, as in the objective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isclose, isfinite

from qeil_compile.passes.choice import Choice, parse_choice
from qeil_compile.passes.decision_text import decision_text
from qeil_compile.plan import Alternative, Objectives, Plan

#: Plans whose objectives differ by a smaller share are twins: no printed figure tells them apart.
_TWIN = 1e-6
#: A value is worse only by more than this, which rounding explains.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Rival:
    """Another plan beside the chosen one.

    `objectives` are its own; `value` is what the plan's objective says of it and `worse` the share by which that is
    above the chosen plan's (negative: below; None where the chosen plan's is 0). `latency` and `energy` are shares of
    the chosen plan's by which it needs more (None where that is 0), `under_utilisation` is a difference. Where energy
    weighs more (`flips` "above") or less ("below") than `weight`, it is the better one of the two; None and "" where
    no weight changes which is better.
    """

    strategy: str
    objectives: Objectives
    value: float
    worse: float | None
    latency: float | None
    energy: float | None
    under_utilisation: float
    weight: float | None
    flips: str


@dataclass(frozen=True, slots=True)
class Range:
    """Weights of energy at which the chosen plan stays the best of all that were considered.

    `below` and `above` name the plan that is better outside; "" where the range goes to 0 or to 1.
    """

    low: float
    high: float
    below: str
    above: str


@dataclass(frozen=True, slots=True)
class Relaxation:
    """The least that caps must give way for a better plan: `caps` in SI units by objective, as `rival` needs them."""

    caps: tuple[tuple[str, float], ...]
    rival: Rival


@dataclass(frozen=True, slots=True)
class Decision:
    """The choice of one plan.

    `value` is the objective's value of the chosen plan, `gap` the share by which it may be above the best possible
    plan's (None: no bound is known), `lower_bounds` what no plan can be below [s, J, 1], `weight` the share of energy
    in what the objective gives to latency and energy (None: it looks at neither). `nearest` is the other plan of the
    front, within the caps, whose value is nearest. `holds` is None where weights do not matter, or where another plan
    is better by the objective as it is (the clock decided). `relaxation` is None where no cap is in the way.
    """

    objective: str
    chosen: Alternative
    value: float
    gap: float | None
    lower_bounds: Mapping[str, float]
    weight: float | None
    nearest: Rival | None
    holds: Range | None
    relaxation: Relaxation | None

    def as_text(self) -> list[str]:
        """The chosen plan, its gap, the nearest other plan, and what would change the choice."""
        return decision_text(self)


def decide(plan: Plan) -> Decision:
    """Account for the choice of a plan. Raises `QeilError` for an objective that cannot be read."""
    wanted = parse_choice(plan.objective)
    itself = Alternative(plan.strategy, len(plan.stages), plan.objectives, True, True)
    chosen = next((a for a in plan.alternatives if a.chosen), itself)
    compare = _Comparison(wanted, chosen.objectives, _reference(plan.alternatives or (chosen,)))
    others = [a for a in plan.alternatives if not a.chosen and _differs(a.objectives, chosen.objectives)]
    allowed = [a for a in others if not wanted.excess(a.objectives)]
    front = [compare.rival(a) for a in allowed if a.on_front]
    nearest = min(front, key=lambda r: abs(r.value - compare.value), default=None)
    gap = plan.gap if plan.gap is not None and isfinite(plan.gap) else None
    return Decision(
        plan.objective, chosen, compare.value, gap, plan.lower_bounds, compare.weight, nearest, compare.holds(allowed),
        _relaxation(compare, [a for a in others if wanted.excess(a.objectives)]),
    )  # fmt: skip


def _reference(alternatives: Sequence[Alternative]) -> Objectives:
    """Objectives of the best single placement: the fastest plan with the fewest stages, as `Front.best_single`."""
    fewest = min(a.stages for a in alternatives)
    return min((a for a in alternatives if a.stages == fewest), key=lambda a: a.objectives.latency).objectives


def _differs(a: Objectives, b: Objectives) -> bool:
    """Whether `a` is no twin of `b`; what an artifact gives no number for is not compared at all."""
    pairs = ((a.latency, b.latency), (a.energy, b.energy), (a.under_utilisation, b.under_utilisation))
    return all(isfinite(x) for x, _ in pairs) and not all(isclose(x, y, rel_tol=_TWIN) for x, y in pairs)


class _Comparison:
    """The chosen plan's objectives against those of others, relative to a reference."""

    def __init__(self, wanted: Choice, mine: Objectives, reference: Objectives) -> None:
        self.wanted, self.mine, self.reference = wanted, mine, reference
        self.value = wanted.value(mine, reference)
        wl, we, wu = wanted.weights
        self.weight = we / (wl + we) if wl + we else None
        #: Weight of under-utilisation where latency and energy weigh 1 together.
        self.rest = wu / (wl + we) if wl + we else 0.0

    def rival(self, other: Alternative) -> Rival:
        """The other plan with its differences and the weight at which it takes over."""
        o, mine = other.objectives, self.mine
        value = self.wanted.value(o, self.reference)
        at, flips = self.crossing(o)
        return Rival(
            other.strategy, o, value, _share(value, self.value), _share(o.latency, mine.latency),
            _share(o.energy, mine.energy), o.under_utilisation - mine.under_utilisation, at, flips,
        )  # fmt: skip

    def excess(self, other: Objectives, energy_weight: float) -> float:
        """By how much the other plan's weighted sum is above the chosen one's, with another weight of energy."""
        moved = replace(self.wanted, weights=(1 - energy_weight, energy_weight, self.rest))
        return moved.value(other, self.reference) - moved.value(self.mine, self.reference)

    def crossing(self, other: Objectives) -> tuple[float | None, str]:
        """The weight of energy at which both are equal, and on which side the other plan is the better one."""
        start, end = self.excess(other, 0.0), self.excess(other, 1.0)
        if self.weight is None or not min(start, end) < 0 or not max(start, end) >= 0:
            return None, ""
        # The sum is linear in the weight.
        return start / (start - end), "above" if end < start else "below"

    def holds(self, others: Sequence[Alternative]) -> Range | None:
        """Where none of the others is better; None where one is at the weight that the objective has."""
        if self.weight is None or any(self.excess(a.objectives, self.weight) < -_ROUNDING for a in others):
            return None
        low, high = (0.0, ""), (1.0, "")
        for a in others:
            at, flips = self.crossing(a.objectives)
            if at is not None and flips == "above" and (at < high[0] or not high[1]):
                high = max(at, self.weight), a.strategy
            if at is not None and flips == "below" and (at > low[0] or not low[1]):
                low = min(at, self.weight), a.strategy
        return Range(low[0], high[0], low[1], high[1])


def _relaxation(compare: _Comparison, capped: Sequence[Alternative]) -> Relaxation | None:
    """Of the plans that are better but pass a cap, the one that passes the caps least."""
    caps = compare.wanted.caps
    better = [a for a in capped if compare.wanted.value(a.objectives, compare.reference) < compare.value]
    if not better:
        return None
    first = min(better, key=lambda a: compare.wanted.excess(a.objectives))
    needed = {name: float(getattr(first.objectives, name)) for name in caps}
    passed = tuple((name, value) for name, value in needed.items() if value > caps[name])
    return Relaxation(passed, compare.rival(first))


def _share(value: float, of: float) -> float | None:
    return value / of - 1 if 0 < of < inf else None
