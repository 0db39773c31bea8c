"""Whether a conclusion holds over the ranges of energy coefficients that nobody published exactly.

Plans stay as they were chosen; only joules change. One coefficient moves to the ends of its range at a time, then all
of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qeil_compile.devices import Target
from qeil_compile.devices.ranges import uncertain, vary, vary_all

#: Energy of each method over that of the standard, one entry per instance, for a target whose energies changed.
Ratios = Callable[[Target], Mapping[str, Sequence[float]]]
#: Device and field of the rows that move all coefficients at once.
ALL = "all coefficients"


@dataclass(frozen=True)
class Headline:
    """Mean saving of energy of one method over all instances, at the value and at both ends of one coefficient.

    `value`, `low` and `high` are 1 - E / E(standard). `flips`: the sign at an end is not that at the value.
    """

    device: str
    field: str
    unit: str
    method: str
    at: tuple[float, float, float]
    value: float
    low: float
    high: float

    @property
    def flips(self) -> bool:
        """Whether the conclusion changes somewhere in the range."""
        return min(self.value, self.low, self.high) < 0 < max(self.value, self.low, self.high)


def headlines(target: Target, ratios: Ratios, progress: Callable[[int, int], None]) -> list[Headline]:
    """One row per coefficient and method."""
    known = uncertain(target)
    middle = _savings(ratios(target))
    found = []
    for k, (device, name, c) in enumerate(known):
        ends = [_savings(ratios(vary(target, device, name, float(v or 0.0)))) for v in (c.low, c.high)]
        at = (c.value, float(c.low or 0.0), float(c.high or 0.0))
        found += [Headline(device, name, c.unit, m, at, middle[m], ends[0][m], ends[1][m]) for m in middle]
        progress(k + 1, len(known) + 1)
    if known:
        ends = [_savings(ratios(vary_all(target, share))) for share in (-1, 1)]
        found += [Headline(ALL, "", "1", m, (0.0, -1.0, 1.0), middle[m], ends[0][m], ends[1][m]) for m in middle]
    progress(1, 1)
    return found


def _savings(ratios: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {method: 1 - float(np.mean(of)) for method, of in ratios.items()}
