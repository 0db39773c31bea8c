"""How the choice of a plan depends on energy coefficients that are only known as ranges.

Energy coefficients change neither times nor memory, so a candidate is priced again from what it asks of devices and
links. Each coefficient moves over its range alone, then all of them together; where another candidate of the front
becomes the better choice, bisection finds the value at which it does. Candidates that only another coefficient would
have brought forth are not looked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from qeil_compile.devices import Target
from qeil_compile.devices.ranges import uncertain, vary, vary_all
from qeil_compile.passes.choice import parse_choice
from qeil_compile.passes.energy import plan_energy
from qeil_compile.plan import ALL, Sensitivity

if TYPE_CHECKING:
    from qeil_compile.passes.partition.front import Candidate, Front

#: Halvings of a range: to a ten-millionth of it.
_HALVINGS = 24


def sensitivity(front: Front, candidate: Candidate, objective: str) -> tuple[Sensitivity, ...]:
    """One row per uncertain coefficient of the target, and one for all of them together.

    Flips are only told for the candidate that the objective chooses: another one was chosen for other reasons.
    """
    prices = _Prices(front, candidate, objective)
    target = front.costs.target
    known = uncertain(target)
    rows = []
    for device, name, c in known:
        span = c.value, float(c.low or 0.0), float(c.high or 0.0)  # `uncertain` lists those that have both
        rows.append(prices.row(device, name, c.unit, span, partial(vary, target, device, name)))

    return (*rows, prices.row(ALL, ALL, "1", (0.0, -1.0, 1.0), partial(vary_all, target))) if rows else ()


class _Prices:
    """Energies of all candidates of a front on a changed target."""

    def __init__(self, front: Front, candidate: Candidate, objective: str) -> None:
        self.front, self.wanted = front, parse_choice(objective)
        self.costs = front.costs
        self.mine = next(i for i, c in enumerate(front.candidates) if c is candidate)
        names = [d.name for d in self.costs.target.devices]
        #: Device (number) of each placement, and of each group by candidate.
        owner = np.array([names.index(p.profile.name) for p in self.costs.placements])
        self.names = names
        self.places = [np.array(c.assignment, dtype=np.int64) for c in front.candidates]
        self.owners = [owner[p] for p in self.places]
        self.chosen = self._best(self.costs.target) == self.mine

    def row(
        self, device: str, name: str, unit: str, span: tuple[float, float, float], at: Callable[[float], Target]
    ) -> Sensitivity:
        """`span` is value, low, high; `at` gives the target for a value between low and high."""
        value, low, high = span
        below, rival_below = self._flip(value, low, at)
        above, rival_above = self._flip(value, high, at)
        joules_low, joules_high = (self._energies(at(v))[0][self.mine] for v in (low, high))
        return Sensitivity(
            device, name, unit, value, low, high, joules_low, joules_high, below, rival_below, above, rival_above
        )

    def _flip(self, value: float, end: float, at: Callable[[float], Target]) -> tuple[float | None, str]:
        """Where between `value` and `end` another candidate becomes the choice, and which."""
        if value == end or not self.chosen or self._best(at(end)) == self.mine:
            return None, ""
        holds, fails = value, end
        for _ in range(_HALVINGS):
            middle = (holds + fails) / 2
            if self._best(at(middle)) == self.mine:
                holds = middle
            else:
                fails = middle
        best = self._best(at(fails))
        return fails, "" if best is None else self.front.candidates[best].strategy

    def _best(self, target: Target) -> int | None:
        """Number of the candidate that the objective chooses; None where no candidate can be sustained."""
        found = []
        for i, (c, joules, fine) in enumerate(zip(self.front.candidates, *self._energies(target), strict=True)):
            priced = replace(c.objectives, energy=joules)
            if fine and not self.wanted.excess(priced):
                found.append((self.wanted.value(priced, self.front.reference), len(c.sequence), i))
        return min(found)[2] if found else None

    def _energies(self, target: Target) -> tuple[list[float], list[bool]]:
        """Energy [J] of each candidate, and whether its devices stay below their ceilings."""
        dynamic = self.costs.dynamic_on(target)
        energies, sustained = [], []
        for c, place, owner in zip(self.front.candidates, self.places, self.owners, strict=True):
            sums = np.bincount(owner, dynamic[np.arange(len(place)), place], len(self.names))
            by_device = dict(zip(self.names, sums.tolist(), strict=True))
            joules, states = plan_energy(target, c.schedule.usage, by_device, self.costs.conditions)
            energies.append(joules)
            sustained.append(all(s.sustained for s in states.values()))
        return energies, sustained
