"""Energy counters of this machine: NVML's total energy, RAPL through powercap or perf, and hwmon.

A counter only ever counts up, in joules; where none can be read, `counter_for` gives None and energies stay modelled.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qeil_compile.devices.nvml import total_energy

POWERCAP = Path("/sys/class/powercap")
HWMON = Path("/sys/class/hwmon")
PERF = Path("/sys/bus/event_source/devices/power")
#: Number of `perf_event_open` by machine; it has no wrapper in the C library.
_PERF_EVENT_OPEN = {"x86_64": 298, "AMD64": 298}


@dataclass(frozen=True)
class Counter:
    """`read()` gives joules since some time in the past; `wraps` [J] is where it starts again from 0 (0: never)."""

    name: str
    read: Callable[[], float]
    wraps: float = 0.0


def counter_for(engine: str, device: str) -> Counter | None:
    """The counter of the device behind `engine:device`, if this machine lets it be read."""
    lowered = device.lower()
    if lowered.startswith(("cuda", "tensorrt")):
        index = int(lowered.rpartition(":")[2]) if ":" in lowered else 0
        return (
            Counter(f"NVML total energy of GPU {index}", lambda: total_energy(index))
            if _works(lambda: total_energy(index))
            else None
        )
    if lowered.startswith("cpu"):
        return rapl(POWERCAP) or perf(PERF) or hwmon(HWMON)
    return None


def rapl(folder: Path) -> Counter | None:
    """Sum of the package domains below a powercap folder."""
    packages = [p for p in sorted(folder.glob("*-rapl:*")) if p.name.count(":") == 1 and _named(p, "package")]
    files = [p / "energy_uj" for p in packages]
    if not files or not all(_works(lambda f=f: _micro(f)) for f in files):  # type: ignore[misc]
        return None
    limit = min(
        (_micro(p / "max_energy_range_uj") for p in packages if (p / "max_energy_range_uj").exists()), default=0
    )
    return Counter("RAPL package energy (powercap)", lambda: sum(map(_micro, files)), limit if len(files) == 1 else 0.0)


def perf(folder: Path) -> Counter | None:
    """RAPL's package energy as a perf event of the first processor; reading it needs a right that few users have."""
    number = _PERF_EVENT_OPEN.get(platform.machine())
    event = re.fullmatch(r"event=(0x[0-9a-f]+)", _text(folder / "events" / "energy-pkg"))
    scale, kind = _text(folder / "events" / "energy-pkg.scale"), _text(folder / "type")
    if number is None or event is None or not kind.isdigit() or not scale:
        return None
    # perf_event_attr: type, size, config, and zeros: a plain counter.
    attributes = struct.pack("=IIQ", int(kind), 112, int(event[1], 16)).ljust(112, b"\0")
    descriptor = ctypes.CDLL(None, use_errno=True).syscall(number, attributes, -1, 0, -1, 0)
    if descriptor < 0:
        return None
    unit = float(scale)
    return Counter("RAPL package energy (perf)", lambda: struct.unpack("Q", os.read(descriptor, 8))[0] * unit)


def hwmon(folder: Path) -> Counter | None:
    """The first hwmon chip with an energy counter (`amd_energy`, board monitors)."""
    for chip in sorted(folder.glob("hwmon*")):
        files = sorted(chip.glob("energy*_input"))
        if files and _works(lambda f=files[-1]: _micro(f)):  # type: ignore[misc]
            # Chips list cores first and the socket last.
            return Counter(f"hwmon energy of {_text(chip / 'name')}", lambda f=files[-1]: _micro(f))  # type: ignore[misc]
    return None


def joules(counter: Counter, call: Callable[[], object], seconds: float) -> dict[str, float]:
    """Run for about `seconds`: joules, seconds and calls."""
    calls, started, before = 0, time.perf_counter(), counter.read()
    while time.perf_counter() - started < seconds:
        call()
        calls += 1
    spent, elapsed = counter.read() - before, time.perf_counter() - started
    return {"joules": spent + (counter.wraps if spent < 0 else 0.0), "seconds": elapsed, "calls": float(calls)}


def _named(package: Path, word: str) -> bool:
    return _text(package / "name").startswith(word)


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except OSError:
        return ""


def _micro(file: Path) -> float:
    return int(file.read_text("utf-8")) * 1e-6


def _works(read: Callable[[], float]) -> bool:
    try:
        return read() >= 0
    except (OSError, ValueError):
        return False
