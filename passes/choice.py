"""What an objective asks for: a goal, and caps that the plan must keep.

    latency | energy | balanced | utilisation
    latency:0.7,energy:0.3                       weights of relative values
    energy; latency<=50ms; under_utilisation<=0.6
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from qeil_compile.errors import CapacityError, QeilError
from qeil_compile.plan import Objectives

#: Scalarisations by name: weights of latency, energy and under-utilisation, the first two relative to a reference plan.
SCALES: Mapping[str, tuple[float, float, float]] = {
    "latency": (1.0, 0.0, 0.0),
    "energy": (0.0, 1.0, 0.0),
    "balanced": (0.5, 0.5, 0.0),
    "utilisation": (0.0, 0.0, 1.0),
}
#: Objective -> units and what they are in SI; under-utilisation has none.
_UNITS: Mapping[str, Mapping[str, float]] = {
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "energy": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "kJ": 1e3},
    "under_utilisation": {"": 1.0},
}
_CAP = re.compile(r"\s*(\w+)\s*<=\s*([0-9.eE+-]+)\s*(\w*)\s*")


@dataclass(frozen=True)
class Choice:
    """`weights` of latency, energy and under-utilisation, relative to a reference; `caps` in SI units by objective."""

    weights: tuple[float, float, float]
    caps: Mapping[str, float]

    def value(self, objectives: Objectives, reference: Objectives) -> float:
        """Weighted sum of the objectives, latency and energy relative to those of the reference."""
        wl, we, wu = self.weights
        return (
            wl * objectives.latency / max(reference.latency, 1e-30)
            + we * objectives.energy / max(reference.energy, 1e-30)
            + wu * objectives.under_utilisation
        )

    def excess(self, objectives: Objectives) -> float:
        """By which share the objectives pass the caps, at worst; 0 where all hold."""
        return max([0.0, *(getattr(objectives, name) / top - 1 for name, top in self.caps.items())])


class Valued(Protocol):
    """A plan, of one phase or of several."""

    @property
    def strategy(self) -> str:
        """What made it."""

    @property
    def objectives(self) -> Objectives:
        """Its values."""


PlanT = TypeVar("PlanT", bound=Valued)


def undominated(plans: Sequence[PlanT]) -> tuple[PlanT, ...]:
    """Plans that no other dominates, in their order."""
    return tuple(p for p in plans if not any(o.objectives.dominates(p.objectives) for o in plans if o is not p))


def best_within(plans: Iterable[PlanT], objective: str, order: Callable[[PlanT], Any]) -> PlanT:
    """The first plan by `order` among those within the caps of an objective.

    Raises `QeilError` for an objective that cannot be read, `CapacityError` naming the nearest plan where none keeps
    the caps.
    """
    wanted, every = parse_choice(objective), list(plans)
    within = [p for p in every if not wanted.excess(p.objectives)]
    if within:
        return min(within, key=order)
    nearest, missed = nearest_to_caps(every, wanted)
    raise CapacityError(
        f"objective {objective}: no plan keeps all caps; the nearest is {nearest.strategy} with {missed} (SI units); "
        "raise a cap or use another target"
    )


def nearest_to_caps(plans: Iterable[PlanT], wanted: Choice) -> tuple[PlanT, str]:
    """The plan that passes the caps least, and which it passes: `latency 0.07 of at most 0.05`, in SI units."""
    nearest = min(plans, key=lambda p: wanted.excess(p.objectives))
    missed = ", ".join(
        f"{name} {getattr(nearest.objectives, name):.4g} of at most {top:.4g}"
        for name, top in wanted.caps.items()
        if getattr(nearest.objectives, name) > top
    )
    return nearest, missed


def parse_choice(text: str) -> Choice:
    """Read an objective. Raises `QeilError` naming what cannot be read."""
    goal, *caps = text.split(";")
    found: dict[str, float] = {}
    for cap in caps:
        match = _CAP.fullmatch(cap)
        name, number, unit = match.groups() if match else ("", "", "")
        if name not in _UNITS or unit not in _UNITS[name] or not _positive(number):
            raise QeilError(
                f"objective {text}: cap {cap.strip()!r} cannot be read; expected latency<=50ms (s, ms, us), energy<=2J "
                "(J, mJ, uJ, kJ) or under_utilisation<=0.5"
            )
        found[name] = float(number) * _UNITS[name][unit]
    return Choice(_weights(goal.strip(), text), found)


def _weights(goal: str, text: str) -> tuple[float, float, float]:
    if goal in SCALES:
        return SCALES[goal]
    values = dict.fromkeys(("latency", "energy", "utilisation"), 0.0)
    for part in goal.split(","):
        name, _, number = (x.strip() for x in part.partition(":"))
        if name not in values or not _positive(number):
            raise QeilError(
                f"objective {text}: unknown; expected one of {', '.join(SCALES)}, or weights such as "
                "latency:0.7,energy:0.3"
            )
        values[name] = float(number)
    return values["latency"], values["energy"], values["utilisation"]


def _positive(number: str) -> bool:
    try:
        return 0 < float(number) < float("inf")
    except ValueError:
        return False
