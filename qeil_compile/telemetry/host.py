"""The host as psutil sees it: load and clock of the processor, memory, and this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import nan
from typing import Any

import psutil

from .snapshot import Channel, Missing, Rate, channel

#: Seconds for which slow readings are kept: clocks and temperatures take a file per core each.
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
        self._busy = Rate()
        self.missing: list[Missing] = []
        slow = [("clock", "psutil, mean of the cores, read once a second", self._frequency)]
        if temperature:
            slow.append(("temperature", "psutil, hottest of the processor, read once a second", self._temperature))
        self._slow: list[tuple[Channel, Callable[[], float]]] = []
        for quantity, source, call in slow:
            if call() == call():  # NaN: not on this platform
                self._slow.append((channel("cpu", quantity, source), call))
            else:
                self.missing.append(Missing(f"psutil cpu {quantity}", "this system does not tell it"))
        self._kept: Sequence[float] = [nan] * len(self._slow)
        self._kept_at = -float("inf")
        self.channels: Sequence[Channel] = (
            channel("cpu", "load", "psutil, share of all cores' time over the last quarter of a second"),
            channel("memory", "memory", "psutil, total less available"),
            channel("memory", "capacity", "psutil"),
            channel("process", "memory", "psutil, resident set"),
            *(c for c, _ in self._slow),
        )

    def read(self) -> Sequence[float]:
        """One value per channel."""
        now = self._clock()
        if now - self._kept_at >= _SLOW:
            self._kept, self._kept_at = [call() for _, call in self._slow], now
        times, memory = self._psutil.cpu_times(), self._psutil.virtual_memory()
        # `guest` is inside `user`; what waits for a disk is free for others.
        idle = times.idle + getattr(times, "iowait", 0.0)
        load = 1.0 - self._busy.of(now, idle) / self._cores
        return (
            min(max(load, 0.0), 1.0) if load == load else nan,
            float(memory.total - memory.available),
            float(memory.total),
            float(self._process.memory_info().rss),
            *self._kept,
        )

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
