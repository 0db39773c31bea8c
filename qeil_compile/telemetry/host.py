"""The host as psutil sees it: load and clock of the processor, memory, and this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import isnan, nan
from typing import Any

import psutil

from .snapshot import Channel, Missing, Rate, channel

#: Seconds for which all but the load is kept: each is a file or more of the system's to open and parse.
_SLOW = 1.0
#: Chips of psutil that measure the processor.
_CPU = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal")


class HostSensor:
    """Load [1], clock [Hz] and, if `temperature`, temperature [C] of the processor; memory of host and process [B]."""

    name = "psutil"

    def __init__(
        self, temperature: bool = True, module: Any = psutil, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._psutil, self._clock = module, clock
        self._process, self._cores = module.Process(), module.cpu_count() or 1
        self._idle = Rate()
        slow: list[tuple[str, str, str, Callable[[], float]]] = [
            ("memory", "memory", "total less available", self._used),
            ("memory", "capacity", "total", lambda: module.virtual_memory().total),
            ("process", "memory", "resident set", lambda: self._process.memory_info().rss),
            ("cpu", "clock", "mean of the cores", self._frequency),
        ]
        if temperature:
            slow.append(("cpu", "temperature", "hottest of the processor", self._temperature))
        self.missing: list[Missing] = []
        self._slow: list[Callable[[], float]] = []
        channels = [channel("cpu", "load", "psutil, share of all cores' time over the last quarter of a second")]
        for device, quantity, source, call in slow:
            if isnan(call()):
                self.missing.append(Missing(f"psutil {device} {quantity}", "this system does not tell it"))
            else:
                self._slow.append(call)
                channels.append(channel(device, quantity, f"psutil, {source}, read once a second"))
        self.channels: Sequence[Channel] = tuple(channels)
        self._kept: Sequence[float] = ()
        self._kept_at = nan

    def read(self) -> Sequence[float]:
        """One value per channel."""
        now = self._clock()
        if not now - self._kept_at < _SLOW:
            self._kept, self._kept_at = [float(call()) for call in self._slow], now
        times = self._psutil.cpu_times()
        # What waits for a disk is free for others.
        rate = self._idle.of(now, times.idle + getattr(times, "iowait", 0.0))
        return nan if isnan(rate) else min(max(1.0 - rate / self._cores, 0.0), 1.0), *self._kept

    def _used(self) -> float:
        memory = self._psutil.virtual_memory()
        return float(memory.total - memory.available)

    def _frequency(self) -> float:
        try:
            found = self._psutil.cpu_freq()
        except (OSError, NotImplementedError, AttributeError):
            return nan
        return found.current * 1e6 if found is not None and found.current else nan

    def _temperature(self) -> float:
        try:
            chips = self._psutil.sensors_temperatures()
        except (OSError, AttributeError):  # neither Windows nor macOS have it
            return nan
        return max((float(t.current) for n, ts in chips.items() if n.startswith(_CPU) for t in ts), default=nan)
