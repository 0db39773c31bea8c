"""Energy counters of this machine: NVML's total energy, RAPL through powercap or perf, and hwmon.

A counter only ever counts up, in joules; where none can be read there is a reason, `counter_for` gives None and
energies stay modelled.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qeil_compile.devices.nvml import total_energy

from .snapshot import Channel, Rate, channel

POWERCAP = Path("/sys/class/powercap")
HWMON = Path("/sys/class/hwmon")
PERF = Path("/sys/bus/event_source/devices/power")
#: Number of `perf_event_open` by machine; it has no wrapper in the C library.
_PERF_EVENT_OPEN = {"x86_64": 298, "AMD64": 298}


@dataclass(frozen=True)
class Counter:
    """`read()` gives joules since some time in the past."""

    name: str
    read: Callable[[], float]


#: A counter, or None and why there is none.
Found = tuple[Counter | None, str]


def counter_for(engine: str, device: str) -> Counter | None:
    """The counter of the device behind `engine:device`, if this machine lets it be read."""
    lowered = device.lower()
    if lowered.startswith(("cuda", "tensorrt")):
        index = int(lowered.rpartition(":")[2]) if ":" in lowered else 0
        try:
            total_energy(index)
        except OSError:
            return None
        return Counter(f"NVML total energy of GPU {index}", lambda: total_energy(index))
    if lowered.startswith("cpu"):
        return rapl(POWERCAP)[0] or perf(PERF)[0] or hwmon(HWMON)[0]
    return None


def rapl(folder: Path, domain: str = "package") -> Found:
    """Sum of the domains of one name below a powercap folder: "package" or "dram"."""
    if not folder.is_dir():
        return None, f"no folder {folder}"
    domains = [p for p in sorted(folder.glob("*-rapl:*")) if _text(p / "name").startswith(domain)]
    if not domains:
        return None, f"no RAPL domain {domain} below {folder}"
    try:
        ranges = [p / "max_energy_range_uj" for p in domains]
        parts = [_Unwrapped(p / "energy_uj", _micro(r) if r.exists() else 0.0)
                 for p, r in zip(domains, ranges, strict=True)]  # fmt: skip
        sum(p.read() for p in parts)
    except (OSError, ValueError) as error:
        return None, _refused(error, "reading it needs root, or a rule that lets users read energy_uj")
    return Counter(f"RAPL {domain} energy (powercap)", lambda: sum(p.read() for p in parts)), ""


class _Unwrapped:
    """A counter in microjoules that starts again from 0 at `wraps` [J] (0: never), as one that does not.

    RAPL's do so every few minutes to hours: it must be read more often than that.
    """

    def __init__(self, file: Path, wraps: float) -> None:
        self._file, self._wraps = file, wraps
        self._last, self._turns = 0.0, 0

    def read(self) -> float:
        """Joules."""
        value = _micro(self._file)
        self._turns += value < self._last
        self._last = value
        return value + self._turns * self._wraps


def perf(folder: Path) -> Found:
    """RAPL's package energy as a perf event of the first processor; reading it needs a right that few users have."""
    number = _PERF_EVENT_OPEN.get(platform.machine())
    event = re.fullmatch(r"event=(0x[0-9a-f]+)", _text(folder / "events" / "energy-pkg"))
    scale, kind = _text(folder / "events" / "energy-pkg.scale"), _text(folder / "type")
    if number is None or event is None or not kind.isdigit() or not scale:
        return None, f"no event energy-pkg below {folder}"
    # perf_event_attr: type, size, config, and zeros: a plain counter.
    attributes = struct.pack("=IIQ", int(kind), 112, int(event[1], 16)).ljust(112, b"\0")
    descriptor = ctypes.CDLL(None, use_errno=True).syscall(number, attributes, -1, 0, -1, 0)
    if descriptor < 0:
        error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return None, _refused(error, "it needs CAP_PERFMON or a lower kernel.perf_event_paranoid")
    unit, file = float(scale), os.fdopen(descriptor, "rb", buffering=0)
    return Counter("RAPL package energy (perf)", lambda: struct.unpack("Q", file.read(8))[0] * unit), ""


def hwmon(folder: Path) -> Found:
    """The first hwmon chip with an energy counter (`amd_energy`, board monitors)."""
    # Chips list cores first and the socket last.
    sockets = [files[-1] for chip in sorted(folder.glob("hwmon*")) if (files := sorted(chip.glob("energy*_input")))]
    if not sockets:
        return None, f"no chip with an energy counter below {folder}"
    try:
        _micro(sockets[0])
    except (OSError, ValueError) as error:
        return None, _refused(error, f"{sockets[0]} cannot be read")
    return Counter(f"hwmon energy of {_text(sockets[0].parent / 'name')}", lambda: _micro(sockets[0])), ""


class CounterSensor:
    """A counter as a sensor: energy [J] as it is read, power [W] as its derivative over a quarter of a second."""

    def __init__(self, counter: Counter, device: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self.name = counter.name
        self.channels: Sequence[Channel] = (
            channel(device, "energy", counter.name),
            channel(device, "power", f"derivative of {counter.name}"),
        )
        self._counter, self._clock, self._rate = counter, clock, Rate()

    def read(self) -> Sequence[float]:
        """Energy and power."""
        value = self._counter.read()
        return value, self._rate.of(self._clock(), value)


def joules(counter: Counter, call: Callable[[], object], seconds: float) -> dict[str, float]:
    """Run for about `seconds`: joules, seconds and calls."""
    calls, started, before = 0, time.perf_counter(), counter.read()
    while time.perf_counter() - started < seconds:
        call()
        calls += 1
    spent, elapsed = counter.read() - before, time.perf_counter() - started
    return {"joules": spent, "seconds": elapsed, "calls": float(calls)}


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except OSError:
        return ""


def _micro(file: Path) -> float:
    return int(file.read_text("utf-8")) * 1e-6


def _refused(error: Exception, hint: str) -> str:
    return f"{error.strerror if isinstance(error, OSError) else error}: {hint}"
