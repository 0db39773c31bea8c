"""What is read: channels, snapshots of them, and the sensors behind them.

A channel is one quantity of one device, always in SI units (temperatures in degrees Celsius):

    power W   energy J   temperature C   clock Hz   memory B   capacity B   load 1   limit W   slowdown C

`energy` only ever counts up; `memory` is what is used of `capacity`; `load` is a share in [0, 1]; `limit` is the power
that the device keeps to by itself; `slowdown` is the temperature at which it slows itself down. Devices are named
"cpu", "memory" (the host's), "process" (this one), "gpu0", ...; board sensors carry the names of their chips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Protocol

#: Quantity -> its unit.
UNITS: Mapping[str, str] = {
    "power": "W",
    "energy": "J",
    "temperature": "C",
    "clock": "Hz",
    "memory": "B",
    "capacity": "B",
    "load": "1",
    "limit": "W",
    "slowdown": "C",
}


@dataclass(frozen=True, slots=True)
class Channel:
    """One quantity of one device; `source` says what it is read from, and how where it is not read as it is."""

    device: str
    quantity: str
    unit: str
    source: str


def channel(device: str, quantity: str, source: str) -> Channel:
    """A channel in the unit of its quantity."""
    return Channel(device, quantity, UNITS[quantity], source)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Values of channels at `time` [s], which counts as `time.perf_counter` does; NaN where a sensor gave none."""

    time: float
    values: Mapping[Channel, float]

    def of(self, device: str, quantity: str) -> float | None:
        """The value of a quantity; None where no channel has it or none gave a value. The first channel wins."""
        for c, value in self.values.items():
            if c.device == device and c.quantity == quantity and not isnan(value):
                return value
        return None


class SensorLost(OSError):
    """The device behind a sensor has gone: it fell off the bus, or its recording is over."""


class Sensor(Protocol):
    """Something that can be read again and again."""

    @property
    def name(self) -> str:
        """What it is called in reports; unique within a sampler."""

    @property
    def channels(self) -> Sequence[Channel]:
        """What it reads; never changes."""

    def read(self) -> Sequence[float]:
        """One value per channel, NaN where there is none at the moment. Raises `SensorLost`."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A sensor, or a channel of one, that this machine does not have, and why."""

    name: str
    reason: str

    def as_text(self) -> str:
        """`RAPL (powercap): no folder /sys/class/powercap`."""
        return f"{self.name}: {self.reason}"


class Rate:
    """The derivative of a reading, over at least `span` seconds: counters tick in steps of milliseconds.

    A derivative needs two readings: the first is NaN.
    """

    def __init__(self, span: float = 0.25) -> None:
        self._span = span
        self._past: list[tuple[float, float]] = []

    def of(self, time: float, value: float) -> float:
        """Units of `value` per second, from the latest earlier reading that is `span` old (else the oldest)."""
        while len(self._past) > 1 and time - self._past[1][0] >= self._span:
            del self._past[0]
        self._past.append((time, value))
        then, before = self._past[0]
        return (value - before) / (time - then) if time > then else float("nan")
