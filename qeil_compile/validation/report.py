"""What a validation says: one `Claim` per row of the table, with every point behind it.

A point is one measurement that somebody else published (or this machine's clock), with the model's value for it
and those of three baselines: `roofline` (naive roofline time), `constant_power` (a constant power x time) and
`tdp` (roofline time x TDP). A baseline that has no meaning for a claim is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

BASELINES = ("roofline", "constant_power", "tdp")


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement and what was said of it. `left_out` names what the fit did not see for this point."""

    name: str
    left_out: str
    measured: float
    model: float
    baselines: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """One row. `metric` says how `points` become `value`; a goal is met when the value is on the good side.

    `note` says by how much and why, where a goal is missed, and what the reader must know of the split.
    """

    name: str
    dataset: str
    metric: str
    unit: str
    goal: float
    value: float
    baselines: Mapping[str, float]
    points: tuple[Point, ...]
    note: str = ""
    higher_is_better: bool = False

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.value >= self.goal if self.higher_is_better else self.value <= self.goal

    def to_json(self) -> dict[str, Any]:
        """Stable JSON form."""
        return asdict(self) | {"met": self.met}


Metric = Callable[[np.ndarray, np.ndarray], float]


def mape(measured: np.ndarray, model: np.ndarray) -> float:
    """Mean absolute percentage error [%] of `model` against `measured`."""
    return float(np.mean(np.abs(model - measured) / np.abs(measured)) * 100)


def claim(
    name: str,
    dataset: str,
    goal: float,
    points: Sequence[Point],
    *,
    metric: Metric = mape,
    metric_name: str = "MAPE",
    unit: str = "%",
    note: str = "",
    higher_is_better: bool = False,
) -> Claim:
    """A row whose value, and that of each baseline that all points have, is `metric` over the points."""
    measured = np.array([p.measured for p in points])
    value = metric(measured, np.array([p.model for p in points]))
    baselines = {
        b: metric(measured, np.array([p.baselines[b] for p in points]))
        for b in BASELINES
        if points and all(b in p.baselines for p in points)
    }
    return Claim(name, dataset, metric_name, unit, goal, value, baselines, tuple(points), note, higher_is_better)
