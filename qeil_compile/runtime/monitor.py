"""A safety monitor above the optimiser: how much of its load each device may take now.

    monitor = SafetyMonitor(limits_of(target, conditions), DecisionLog(path))
    sampler.listen("monitor", lambda snapshot: apply(monitor.update(snapshot)))

The share of a device falls before its temperature reaches the ceiling, in proportion to what is left at the
temperature that it will have some seconds ahead:

    T_ahead = T + max(dT/dt, 0) horizon,     share <= (ceiling - T_ahead) / band

dT/dt is the median of the slopes between all pairs of medians of a second each [Theil 1950, Sen 1968]: neither a
reading that is off nor steps of whole degrees move it far. A device at or above its ceiling is taken out at once. Power
(its mean since the share last changed) and memory (its capacity pressure, CPQ) shed in proportion to how far they are
over.

A share falls at any time and rises only in steps, `dwell` seconds after its last change: it cannot swing faster. A
device that was taken out returns with half its load when it has been cool, and within its other limits, for a while.

**Without readings.** A device whose temperature was read and is read no more is taken out after `blind` seconds:
nothing else would stop it from overheating with a broken fan, and a driver that no longer answers is often the
first sign of a board that fails. It returns like any other. Lost readings of power or memory only keep the share
from rising: the device and its driver enforce those limits themselves. A device that never had a reading is not
watched, and the log says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isnan, nan
from statistics import median

from qeil_compile.devices import DeviceProfile, Target
from qeil_compile.passes.conditions import Conditions
from qeil_compile.passes.thermal import ceiling
from qeil_compile.telemetry import Snapshot

from .decisions import DecisionLog


@dataclass(frozen=True, slots=True)
class Limits:
    """What a device must stay below: `ceiling` [C], `memory` [B], `power` [W]; None: no limit.

    `sensor` is the device in snapshots whose temperature and power count, `memory_sensor` the one whose memory does.
    """

    ceiling: float | None = None
    memory: float | None = None
    power: float | None = None
    sensor: str = ""
    memory_sensor: str = ""


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """Temperatures in degrees, times in seconds.

    `horizon` is how far ahead temperatures are predicted from `window` seconds; the share falls from 1 to 0 over the
    last `band` degrees below the ceiling. A device returns with the share `restart` when it has been `hysteresis`
    degrees below its ceiling for `rest` seconds, and rises by `step` every `dwell`. `blind`: see above.
    """

    horizon: float = 5.0
    window: float = 8.0
    band: float = 4.0
    hysteresis: float = 6.0
    rest: float = 5.0
    dwell: float = 3.0
    step: float = 0.1
    restart: float = 0.5
    blind: float = 1.0


#: A share changes by no less than this, and a device with less than this is taken out: the log stays readable.
_LEAST = 0.05
#: Parts of a limit of power or memory: below the first a share may rise, above the second it falls. Boards hold their
#: own power limit to a percent or two.
_EASED, _OVER = 0.95, 1.02


def sensor_of(profile: DeviceProfile) -> str:
    """The device in snapshots that measures a device of a target: "cpu", "gpu0" for "torch:cuda:0", else its own name.

    CUDA and NVML are taken to number boards alike; where `CUDA_VISIBLE_DEVICES` says otherwise, state limits by hand.
    """
    for spec in profile.engines:
        device = spec.partition(":")[2].lower()
        if device.startswith(("cuda", "tensorrt", "nvtensorrt")):
            number = re.search(r"\d+$", device)
            return f"gpu{number[0] if number else 0}"
    return "cpu" if profile.kind == "cpu" else profile.name


def limits_of(target: Target, conditions: Conditions) -> dict[str, Limits]:
    """The limits of each device of a target, by name.

    The ceiling is `conditions.ceiling` of T_max, the power limit the TDP, the memory limit what may be used at CPQ 1:
    capacity x (1 - reserve). Devices that share the processor's memory are measured by that of the host.
    """
    host = {d.pool for d in target.devices if d.kind == "cpu"}
    return {
        d.name: Limits(
            ceiling(d, conditions),
            d.memory_bytes.value * (1 - conditions.reserve),
            d.tdp.value,
            sensor_of(d),
            "memory" if d.pool in host else sensor_of(d),
        )
        for d in target.devices
    }


class SafetyMonitor:
    """Shares of load by device, from one snapshot to the next. Deterministic: time is that of the snapshots."""

    def __init__(
        self, limits: Mapping[str, Limits], log: DecisionLog, settings: MonitorSettings | None = None
    ) -> None:
        self._watches = {n: _Watch(n, x, log, settings or MonitorSettings()) for n, x in limits.items()}

    def update(self, snapshot: Snapshot) -> Mapping[str, float]:
        """The share of its load in [0, 1] that each device may take now: 1 all of it, 0 none."""
        return {name: watch.update(snapshot) for name, watch in self._watches.items()}


@dataclass(frozen=True, slots=True)
class _Wish:
    """The share that one limit allows, and why; `rest` where it would let a device return."""

    share: float
    reason: str
    reading: float = nan
    limit: float = nan
    rest: bool = False


class _Watch:
    """One device."""

    def __init__(self, name: str, limits: Limits, log: DecisionLog, settings: MonitorSettings) -> None:
        self.name, self.limits, self.log, self.settings = name, limits, log, settings
        self.sensor = limits.sensor or name
        self.share, self.changed = 1.0, -inf
        self.trend = _Trend(settings.window)
        self.seen: float | None = None
        self.rested: float | None = None
        self.drawn: list[tuple[float, float]] = []
        self.known: set[str] = set()
        self.told = False

    def update(self, snapshot: Snapshot) -> float:
        """The share from now on."""
        now = snapshot.time
        wishes = [self._thermal(snapshot), *self._others(snapshot)]
        wish = min(wishes, key=lambda w: w.share)
        allowed = wish.share if wish.share >= _LEAST else 0.0
        settled = now - self.changed >= self.settings.dwell
        if self.share == 0.0:
            self._rest(now, all(w.rest for w in wishes))
            if self.rested is not None and now - self.rested >= self.settings.rest and settled and allowed:
                self._set(now, min(self.settings.restart, allowed), "return", wish)
        elif allowed == 0.0:
            self._set(now, 0.0, "out", wish)
        elif allowed <= self.share - _LEAST:
            self._set(now, allowed, "shed", wish)
        elif allowed >= min(self.share + _LEAST, 1.0) > self.share and settled:
            self._set(now, min(allowed, self.share + self.settings.step), "recover", wish)
        return self.share

    def _rest(self, now: float, good: bool) -> None:
        if not good:
            self.rested = None
        elif self.rested is None:
            self.rested = now

    def _set(self, now: float, share: float, kind: str, wish: _Wish) -> None:
        share = round(share, 6)  # ten steps of a tenth are 1
        facts = {n: v for n, v in (("reading", wish.reading), ("limit", wish.limit)) if not isnan(v)}
        self.log.record(kind, self.name, share=share, before=self.share, **facts, reason=wish.reason, at=now)
        self.share, self.changed, self.rested, self.drawn = share, now, None, []

    def _thermal(self, snapshot: Snapshot) -> _Wish:
        top, s, now = self.limits.ceiling, self.settings, snapshot.time
        if top is None:
            return _Wish(1.0, "no ceiling", rest=True)
        value = snapshot.of(self.sensor, "temperature")
        if value is None:
            return self._unseen(now)
        self.seen = now
        self.trend.add(now, value)
        ahead = value + max(self.trend.slope(), 0.0) * s.horizon
        if value >= top:
            return _Wish(0.0, "temperature is at its ceiling", value, top)
        share = min(max((top - ahead) / s.band, 0.0), 1.0)
        reason = f"temperature will be {ahead:.1f} C in {s.horizon:g} s" if share < 1 else "temperature is well below"
        return _Wish(share, reason, value, top, value <= top - s.hysteresis)

    def _unseen(self, now: float) -> _Wish:
        if self.seen is None:
            if not self.told:
                self.told = True
                self.log.record("unwatched", self.name, reason="it has no temperature sensor", at=now)
            return _Wish(1.0, "no temperature sensor", rest=True)
        if now - self.seen < self.settings.blind:
            return _Wish(self.share, "one reading of temperature is missing")
        return _Wish(0.0, f"temperature is not read since {now - self.seen:.1f} s")

    def _others(self, snapshot: Snapshot) -> list[_Wish]:
        """What power and memory allow."""
        found = []
        if self.limits.power is not None:
            found.append(self._wish("power", self._mean_power(snapshot), self.limits.power, snapshot.time))
        if self.limits.memory is not None:
            used = snapshot.of(self.limits.memory_sensor or self.sensor, "memory")
            found.append(self._wish("memory", used, self.limits.memory, snapshot.time))
        return found

    def _mean_power(self, snapshot: Snapshot) -> float | None:
        """Mean over what was drawn with the present share; NaN while that is too short to judge."""
        value, s = snapshot.of(self.sensor, "power"), self.settings
        if value is None:
            return None
        self.drawn.append((snapshot.time, value))
        while len(self.drawn) > 2 and snapshot.time - self.drawn[0][0] > s.window:
            del self.drawn[0]
        if snapshot.time - self.drawn[0][0] < s.dwell:
            return nan
        return sum(v for _, v in self.drawn) / len(self.drawn)

    def _wish(self, name: str, value: float | None, limit: float, now: float) -> _Wish:
        """In proportion to how far a reading is over its limit; once per `dwell`, since readings follow loads late."""
        # Near a limit, or without readings, a device keeps its share; one that is out may return.
        held = self.share or self.settings.restart
        if value is None:
            return _Wish(held if name in self.known else 1.0, f"{name} is not read", limit=limit, rest=True)
        self.known.add(name)
        ratio = value / limit
        if ratio <= _EASED:
            return _Wish(1.0, f"{name} is well below its limit", value, limit, rest=True)
        if isnan(ratio):
            return _Wish(self.share, f"{name} is not judged yet", limit=limit)
        if ratio <= _OVER or now - self.changed < self.settings.dwell:
            return _Wish(held, f"{name} is near its limit", value, limit, rest=ratio <= _OVER)
        share = max(min(self.share / ratio, self.share - self.settings.step), 0.0)
        return _Wish(share, f"{name} is over its limit", value, limit)


class _Trend:
    """The slope of readings over a window, by Theil and Sen on medians of an eighth of it each."""

    def __init__(self, window: float) -> None:
        self._window, self._length = window, window / 8
        self._bins: list[tuple[float, float]] = []
        self._times: list[float] = []
        self._values: list[float] = []

    def add(self, time: float, value: float) -> None:
        """A reading; times do not go back."""
        if self._times and time - self._times[0] >= self._length:
            self._bins.append((median(self._times), median(self._values)))
            self._times, self._values = [], []
        self._times.append(time)
        self._values.append(value)
        # Of sensors that are slower than the window some readings stay all the same.
        while len(self._bins) > 2 and time - self._bins[0][0] > self._window:
            del self._bins[0]

    def slope(self) -> float:
        """Units per second; 0 while half the window is not full: a die jumps by degrees when its load begins."""
        points = [*self._bins, (median(self._times), median(self._values))]
        if points[-1][0] - points[0][0] < self._window / 2:
            return 0.0
        slopes = [(v - u) / (t - s) for k, (s, u) in enumerate(points) for t, v in points[k + 1 :] if t > s]
        return median(slopes) if slopes else 0.0
