"""Temperatures and powers of the chips below a hwmon folder [Linux, Documentation/hwmon/sysfs-interface.rst]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path

from .snapshot import Channel, Missing, SensorLost, channel

#: Chips that measure the processor; every other chip is a device of its own.
_CPU = ("coretemp", "k10temp", "zenpower", "fam15h_power", "cpu_thermal", "amd_energy")
#: Labels that stand for the whole chip, best first. Without one the hottest input counts.
_WHOLE = ("package id", "tdie", "tctl", "edge", "composite")


@dataclass(frozen=True)
class _Input:
    """Files of one channel: of temperatures the hottest counts, powers add up; in units of `scale`."""

    channel: Channel
    files: tuple[Path, ...]
    scale: float

    def value(self) -> float:
        """NaN where no file gives a number."""
        values = [v for f in self.files if (v := _number(f)) is not None]
        if not values:
            return nan
        return self.scale * (sum(values) if self.channel.unit == "W" else max(values))


class HwmonSensor:
    """The chips of one device: temperature [C], where it slows down [C], power [W]."""

    def __init__(self, chips: Sequence[Path], inputs: Sequence[_Input]) -> None:
        self.name = "hwmon " + ", ".join(f"{c.name} ({_text(c / 'name')})" for c in chips)
        self.channels: Sequence[Channel] = tuple(i.channel for i in inputs)
        self._chips, self._inputs = chips, inputs

    def read(self) -> Sequence[float]:
        """One value per channel. Raises `SensorLost` when the chips have gone."""
        values = [i.value() for i in self._inputs]
        if all(isnan(v) for v in values) and not any(c.exists() for c in self._chips):
            raise SensorLost(f"{self._chips[0]} has gone")
        return values


def hwmon_sensors(folder: Path) -> tuple[list[HwmonSensor], list[Missing]]:
    """A sensor per device whose chips give a temperature or a power, and why there is none."""
    if not folder.is_dir():
        return [], [Missing("hwmon", f"no folder {folder}")]
    devices: dict[str, list[Path]] = {}
    for chip in sorted(folder.glob("hwmon*")):
        name = _text(chip / "name") or chip.name
        # The sockets of one machine are one device; two cards with chips of one name are not.
        device = "cpu" if name.startswith(_CPU) else name if name not in devices else f"{name} {chip.name}"
        devices.setdefault(device, []).append(chip)
    found = [HwmonSensor(chips, inputs) for d, chips in devices.items() if (inputs := _inputs(d, chips))]
    return found, [] if found else [Missing("hwmon", f"no chip with a temperature or a power below {folder}")]


def _inputs(device: str, chips: Sequence[Path]) -> list[_Input]:
    names = ", ".join(dict.fromkeys(_text(c / "name") for c in chips))
    hot = tuple(f for c in chips for f in _whole(c))
    crit = tuple(c for f in hot if (c := f.with_name(f.name.replace("_input", "_crit"))).exists())
    powers = tuple(p for c in chips if (p := _power(c)) is not None)
    label = _label(hot[0]) if len(hot) == 1 else f"hottest of {len(hot)}"
    candidates = (
        _Input(channel(device, "temperature", f"hwmon {names}, {label}"), hot, 1e-3),
        _Input(channel(device, "slowdown", f"hwmon {names}, critical temperature"), crit, 1e-3),
        _Input(channel(device, "power", f"hwmon {names}"), powers, 1e-6),
    )
    return [i for i in candidates if i.files]


def _power(chip: Path) -> Path | None:
    files = (f for kind in ("input", "average") for f in sorted(chip.glob(f"power*_{kind}")))
    return next((f for f in files if _reads(f)), None)


def _whole(chip: Path) -> tuple[Path, ...]:
    """Inputs that stand for the chip: those with the best label, or all that can be read."""
    inputs = [f for f in sorted(chip.glob("temp*_input")) if _reads(f)]
    for label in _WHOLE:
        labelled = tuple(f for f in inputs if _label(f).lower().startswith(label))
        if labelled:
            return labelled
    return tuple(inputs)


def _label(file: Path) -> str:
    return _text(file.with_name(file.name.replace("_input", "_label"))) or file.name


def _reads(file: Path) -> bool:
    return _number(file) is not None


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except OSError:
        return ""
