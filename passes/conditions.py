"""Under what conditions a plan runs: how long, how hot, and how much memory engines keep for themselves."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from qeil_compile.errors import InputError


@dataclass(frozen=True, slots=True)
class Conditions:
    """`reserve` is the share of each memory that engines keep for themselves.

    `duration` [s] is how long the runs go on without a pause (infinite: until temperatures are steady).
    `ceiling` is the share of a device's `t_max` [C] that it must stay below. `ambient` [C] replaces the ambient
    temperature of every profile. Raises `InputError` for values outside their range.
    """

    reserve: float = 0.1
    duration: float = inf
    ceiling: float = 0.85
    ambient: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.reserve < 1:
            raise InputError(f"reserve: found {self.reserve}, expected a share from 0 to below 1")
        if not self.duration >= 0:
            raise InputError(f"duration: found {self.duration} s, expected a time from 0")
        if not 0 < self.ceiling <= 1:
            raise InputError(f"ceiling: found {self.ceiling}, expected a share of the device's limit above 0, up to 1")
        if self.ambient is not None and not -KELVIN < self.ambient < 200:
            raise InputError(f"ambient: found {self.ambient} C, expected a temperature above -{KELVIN} C, below 200 C")


#: 0 C in kelvin.
KELVIN = 273.15
