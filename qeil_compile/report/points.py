"""The plans that were considered as points of latency and energy, for every plot of them: pictures and terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from qeil_compile.runtime import Explanation

#: What a point is, from the least to the most important: the later one is drawn over the earlier.
Kind = Literal["dominated", "front", "nearest", "chosen"]
KINDS: dict[Kind, str] = {
    "dominated": "dominated", "front": "front", "nearest": "nearest other plan of the front", "chosen": "chosen",
}  # fmt: skip
_PREFIXES = ((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"))
#: An axis that spans more than this is logarithmic.
_DECADE = 10.0
#: A front that takes a smaller share of an axis is looked at from nearby.
_CRUSHED = 0.2
#: Room around such a front: shares of its span, and at least of its values.
_AROUND, _AT_LEAST = 0.5, 0.005


@dataclass(frozen=True, slots=True)
class Point:
    """One plan: latency [s], energy [J], under-utilisation [1]."""

    strategy: str
    latency: float
    energy: float
    under_utilisation: float
    stages: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Axis:
    """`factor` turns SI units into `unit`; `low` and `high` are the ends, in that unit."""

    unit: str
    factor: float
    low: float
    high: float
    logarithmic: bool


def points_of(found: Explanation) -> list[Point]:
    """Every plan that was considered, the important ones last."""
    nearest = found.decision.nearest
    points = []
    for a in found.alternatives:
        o = a.objectives
        is_nearest = nearest is not None and (a.strategy, a.objectives) == (nearest.strategy, nearest.objectives)
        kind: Kind = "chosen" if a.chosen else "nearest" if is_nearest else "front" if a.on_front else "dominated"
        # An artifact comes from anywhere: what has no place on a plot is left out of it.
        if isfinite(o.latency) and isfinite(o.energy) and isfinite(o.under_utilisation):
            points.append(Point(a.strategy, o.latency, o.energy, o.under_utilisation, a.stages, kind))
    return sorted(points, key=lambda p: list(KINDS).index(p.kind))


def close_up(points: Sequence[Point]) -> list[Point]:
    """The points in and around the front where the others leave it little room on an axis; else all of them."""
    front = [p for p in points if p.kind != "dominated"]
    if len(front) < 2:
        return list(points)
    spans = [_span([getattr(p, n) for p in points], [getattr(p, n) for p in front]) for n in ("latency", "energy")]
    if not any(crushed for *_, crushed in spans):
        return list(points)
    (left, right, _), (low, high, _) = spans
    return [p for p in points if left <= p.latency <= right and low <= p.energy <= high]


def _span(values: Sequence[float], front: Sequence[float]) -> tuple[float, float, bool]:
    """Both ends of the front with some room, and whether it takes too little of all values."""
    low, high = min(front), max(front)
    room = max(_AROUND * (high - low), _AT_LEAST * high)
    return low - room, high + room, high - low < _CRUSHED * (max(values) - min(values))


def axis(values: Sequence[float], unit: str) -> Axis:
    """The axis that holds all values [s or J], with some room at its ends."""
    low, high = min(values), max(values)
    factor, prefix = next(((1 / f, p) for f, p in _PREFIXES if high >= f), (1e9, "n"))
    low, high = low * factor, high * factor
    if low > 0 and high / low > _DECADE:
        room = (high / low) ** 0.04
        return Axis(prefix + unit, factor, low / room, high * room, True)
    room = (high - low or abs(high) or 1.0) * 0.06
    return Axis(prefix + unit, factor, low - room, high + room, False)
