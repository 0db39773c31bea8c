"""Power modes: the same device at another power limit, clock or number of units.

Rates go with the clock and with the units that stay on. Energy per FLOP, leakage and constant power go with the square
of the voltage that the clock needs (`voltage` in rules.toml); constant power never falls below the idle power. A mode
that only names a power limit runs at the highest clock whose modelled full load, as a share of the full load at the
full clock, stays within the limit's share of the rated power.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qeil_compile.errors import TargetError

from .profile import PROFILE_DTYPES, Coefficient, DeviceProfile
from .reader import Table

#: (share of the full clock, share of the full voltage), rising.
Voltage = Sequence[tuple[float, float]]

#: What a mode may set outright, with units; `units` counts what stays on. A clock below the full one may be held
#: where the full one is not: that is a better `efficiency_compute`.
_SETTABLE: Mapping[str, str] = {
    "tdp": "W",
    "power_const": "W",
    "power_idle": "W",
    "memory_bandwidth": "B/s",
    "energy_per_byte": "J/B",
    "units": "1",
    "efficiency_compute": "1",
}


@dataclass(frozen=True)
class Mode:
    """A power mode. `clock` is the share of the full clock in (0, 1], None where only the power limit is known."""

    name: str
    source: str
    clock: float | None
    changed: Mapping[str, Any]


def read_modes(t: Table) -> tuple[Mode, ...]:
    """The `[[mode]]` tables of a device."""
    modes = tuple(_mode(m) for m in t.tables("mode", required=False))
    for i, mode in enumerate(modes):
        if mode.name in [m.name for m in modes[:i]]:
            raise t.error("mode", mode.name, "a name that no other mode of the device has")
    return modes


def _mode(t: Table) -> Mode:
    name = t.text("name")
    if not name.replace(".", "").replace("-", "").isalnum():
        raise t.error("name", name, "letters, digits, '.' and '-', such as 15W")
    t.source = t.text("source")
    clock = t.number("clock") if "clock" in t.data else None
    if clock is not None and not 0 < clock <= 1:
        raise t.error("clock", clock, "a share of the full clock, above 0 and at most 1")
    changed: dict[str, Any] = {
        k: t.coefficient(k, unit, positive=True, share=k.startswith("efficiency"))
        for k, unit in _SETTABLE.items()
        if k in t.data
    }
    if "peak_flops" in t.data:
        inner = t.table("peak_flops")
        changed["peak_flops"] = {
            d: inner.coefficient(d, "FLOP/s", positive=True) for d in PROFILE_DTYPES if d in inner.data
        }
        inner.close(PROFILE_DTYPES)
    t.close((*_SETTABLE, "clock", "peak_flops"))
    if not changed and clock is None:
        raise t.error("", "a mode that changes nothing", f"clock or one of {', '.join((*_SETTABLE, 'peak_flops'))}")
    return Mode(name, t.source, clock, changed)


def apply(device: DeviceProfile, mode: Mode, voltage: Voltage) -> DeviceProfile:
    """The device in a power mode. Raises `TargetError` for a limit that its constant power alone exceeds."""
    changed = dict(mode.changed)
    tdp = changed.get("tdp", device.tdp)
    capped = mode.clock is None and "peak_flops" not in changed and tdp.value < device.tdp.value
    share = tdp.value / device.tdp.value
    clock = _capped_clock(device, share, voltage) if capped else 1.0 if mode.clock is None else mode.clock
    width = changed["units"].value / device.units.value if device.units and "units" in changed else 1.0
    square = volts(clock, voltage) ** 2
    on = f" on {changed['units'].value:g} of {device.units.value:g} units" if width < 1 and device.units else ""
    what = f"{mode.name}: {clock:.3g} of the full clock{on} ({mode.source})"

    def scaled(c: Coefficient, by: float, why: str) -> Coefficient:
        low, high = (None if x is None else x * by for x in (c.low, c.high))
        return Coefficient(c.value * by, c.unit, f"{why}; at the full clock: {c.source}", low, high, c.assumed)

    def rate(c: Coefficient) -> Coefficient:
        at = scaled(c, clock * width, what)
        if not capped:
            return at
        # Between power that goes with the clock alone and with its cube.
        low, high = (c.value * width * x for x in (min(share, clock), max(share ** (1 / 3), clock)))
        source = f"highest clock within {tdp.value:g} W, {at.source}"
        return replace(at, low=low, high=high, assumed=True, source=source)

    why = f"{what}, {square:.3g} of the square of the voltage"
    peaks = {d: rate(c) for d, c in device.peak_flops.items()} | changed.pop("peak_flops", {})
    const = scaled(device.power_const, square, why)
    floor = changed.get("power_idle", device.power_idle).value
    changed.setdefault("power_const", const if const.value >= floor else _raised(const, floor))
    if changed["power_const"].value >= tdp.value:
        raise TargetError(
            f"device {device.name}, mode {mode.name}: found power_const {changed['power_const'].value:.3g} W, "
            f"expected less than the limit of {tdp.value:g} W"
        )
    return replace(
        device,
        **changed,
        peak_flops=peaks,
        energy_per_flop={d: scaled(c, square, why) for d, c in device.energy_per_flop.items()},
        thermal=device.thermal
        and replace(device.thermal, leakage=scaled(device.thermal.leakage, square * width, why)),
    )


def volts(clock: float, voltage: Voltage) -> float:
    """Share of the full voltage at a share of the full clock: linear between the points, flat below the first."""
    low, low_volts = voltage[0]
    if clock <= low:
        return low_volts
    for high, high_volts in voltage[1:]:
        if clock <= high:
            return low_volts + (high_volts - low_volts) * (clock - low) / (high - low)
        low, low_volts = high, high_volts
    return low_volts


def _raised(c: Coefficient, floor: float) -> Coefficient:
    high = None if c.high is None else max(c.high, floor)
    return replace(c, value=floor, high=high, source=f"no less than power_idle; {c.source}")


def _capped_clock(device: DeviceProfile, share: float, voltage: Voltage) -> float:
    """The highest clock at which the full load takes at most `share` of what it takes at the full clock."""
    leakage = device.thermal.leakage.value if device.thermal else 0.0
    dynamic = max(c.value * device.energy_per_flop[d].value for d, c in device.peak_flops.items())
    const, idle = device.power_const.value, device.power_idle.value

    def load(clock: float) -> float:
        square = volts(clock, voltage) ** 2
        return max(const * square, idle) + (leakage + dynamic * clock) * square

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if load(middle) <= share * load(1.0) else (low, middle)
    if low == 0.0:
        raise TargetError(
            f"device {device.name}: found a limit of {share * device.tdp.value:.3g} W, expected more than the "
            f"{load(0.0) / load(1.0) * device.tdp.value:.3g} W that it takes without work"
        )
    return low
