"""The sensors of this machine, and why others are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil

from .counters import HWMON, PERF, POWERCAP, CounterSensor, hwmon, perf, rapl
from .host import HostSensor
from .hwmon import hwmon_sensors
from .nvml import nvml_sensors
from .snapshot import Missing, Sensor


def find_sensors(
    *, nvml: Any = None, powercap: Path = POWERCAP, events: Path = PERF, chips: Path = HWMON, host: Any = psutil
) -> tuple[list[Sensor], list[Missing]]:
    """Every sensor that can be read here, and a name and a reason for each that cannot.

    The arguments stand in for the module `pynvml`, the folders of powercap, of the perf event `power` and of hwmon,
    and the module `psutil`. Of several energy counters of the processor the first that can be read is taken.
    """
    boards, missing = nvml_sensors(nvml)
    found: list[Sensor] = [*boards]
    for name, (counter, reason) in (
        ("RAPL (powercap)", rapl(powercap)),
        ("RAPL (perf)", perf(events)),
        ("hwmon energy", hwmon(chips)),
    ):
        if counter is not None:
            found.append(CounterSensor(counter, "cpu"))
            break
        missing.append(Missing(name, reason))
    dram, reason = rapl(powercap, "dram")
    if dram is not None:
        found.append(CounterSensor(dram, "memory"))
    else:
        missing.append(Missing("RAPL of the memory", reason))
    board_chips, none = hwmon_sensors(chips)
    found += board_chips
    missing += none
    # psutil's temperatures are hwmon's again, and slower to read.
    known = any((c.device, c.quantity) == ("cpu", "temperature") for s in found for c in s.channels)
    system = HostSensor(not known, host)
    return [*found, system], [*missing, *system.missing]
