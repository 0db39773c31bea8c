"""A thread that reads sensors at a steady rate, and keeps what it costs below a bound.

    with Sampler(sensors, hertz=20.0) as sampler:
        ...
        sampler.latest().of("gpu0", "temperature")

Whoever wants each snapshot adds a listener. Listeners run in the thread, and what they take counts as its cost.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np

from .snapshot import Channel, Sensor, Snapshot

Listener = Callable[[Snapshot], object]

#: Share of a core above which the rate is halved; seconds over which it is looked at.
MOST_COST, COST_SECONDS = 0.01, 2.0
#: Seconds after which a lost sensor is asked again: drivers come back, some boards too.
RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Lost:
    """A sensor or listener that failed, why, and when (`time` as in snapshots)."""

    name: str
    reason: str
    time: float


@dataclass(frozen=True, slots=True)
class Slowed:
    """The rate was halved to `hertz`, since sampling took `share` of a core; `time` as in snapshots."""

    time: float
    share: float
    hertz: float


class Sampler:
    """Snapshots of sensors, `hertz` times a second, the last `keep_seconds` of them kept.

    A sensor that raises anything is lost: its channels are NaN until it answers again. `clock` and `cpu` stand in for
    `time.perf_counter` and `time.thread_time`.
    """

    def __init__(
        self,
        sensors: Sequence[Sensor],
        hertz: float = 20.0,
        keep_seconds: float = 60.0,
        *,
        clock: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self.hertz = hertz
        self.channels: tuple[Channel, ...] = tuple(c for s in sensors for c in s.channels)
        self.slowed: list[Slowed] = []
        self._lost: dict[str, Lost] = {}
        self._sensors, self._clock, self._cpu = tuple(sensors), clock, cpu
        self._keep, self._kept = keep_seconds, deque[Snapshot]()
        self._listeners: dict[str, Listener] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        # Time and CPU time [s] at the first snapshot, at the last, and where the present look at the cost began.
        self._first = self._last = self._window = (nan, nan)

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to sample; nothing happens where it does already."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="qeil telemetry", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread; snapshots stay."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def listen(self, name: str, listener: Listener) -> None:
        """Call `listener` with every snapshot from now on. One that raises is dropped, and `lost` says why."""
        with self._lock:
            self._listeners[name] = listener

    @property
    def lost(self) -> dict[str, Lost]:
        """Sensors that do not answer, and listeners that were dropped, by name."""
        with self._lock:
            return dict(self._lost)

    @property
    def cost(self) -> float:
        """Share of a core that sampling has taken so far; NaN before the second snapshot."""
        return _share(self._first, self._last)

    def latest(self) -> Snapshot | None:
        """The last snapshot; None before the first."""
        with self._lock:
            return self._kept[-1] if self._kept else None

    def history(self, device: str, quantity: str) -> tuple[np.ndarray, np.ndarray]:
        """Times [s] and values of what is kept, float64[n] each; snapshots without a value are left out."""
        with self._lock:
            kept = list(self._kept)
        pairs = [(s.time, v) for s in kept if (v := s.of(device, quantity)) is not None]
        times, values = np.array(pairs, dtype=float).reshape(-1, 2).T
        return times, values

    def joules(self, device: str, since: float) -> float | None:
        """Energy [J] that a device has drawn from `since` (as in snapshots) to the last snapshot.

        By its energy counter, else the integral of its power; None where it has neither, or `since` is kept no more.
        """
        times, counted = self.history(device, "energy")
        if not len(times):
            times, power = self.history(device, "power")
            counted = np.concatenate(([0.0], np.cumsum(np.diff(times) * (power[1:] + power[:-1]) / 2)))
        if len(times) < 2 or not times[0] <= since <= times[-1]:
            return None
        return float(counted[-1] - np.interp(since, times, counted))

    def sample(self) -> Snapshot:
        """Read every sensor once and tell the listeners: what the thread does, for whoever has a clock of his own."""
        values = [v for s in self._sensors for v in self._read(s)]
        now = self._clock()
        snapshot = Snapshot(now, dict(zip(self.channels, values, strict=True)))
        with self._lock:
            self._kept.append(snapshot)
            while now - self._kept[0].time > self._keep:
                self._kept.popleft()
            listeners = list(self._listeners.items())
        for name, listener in listeners:
            try:
                listener(snapshot)
            except Exception as error:
                self._lose(name, error, now)
                with self._lock:
                    self._listeners.pop(name, None)
        self._account(now)
        return snapshot

    def _read(self, sensor: Sensor) -> Sequence[float]:
        lost, now = self._lost.get(sensor.name), self._clock()
        if lost is None or now - lost.time >= RETRY_SECONDS:
            try:
                values = sensor.read()
                if len(values) != len(sensor.channels):
                    raise ValueError(f"{len(values)} values for {len(sensor.channels)} channels")
                if lost is not None:
                    with self._lock:
                        del self._lost[sensor.name]
                return values
            except Exception as error:
                self._lose(sensor.name, error, now)
        return [nan] * len(sensor.channels)

    def _lose(self, name: str, error: Exception, now: float) -> None:
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        with self._lock:
            self._lost[name] = Lost(name, f"{kind}{error}", now)

    def _account(self, now: float) -> None:
        """Halve the rate where sampling took more than its share over the last seconds."""
        self._last = now, self._cpu()
        if isnan(self._first[0]):
            self._first = self._window = self._last
        elif now - self._window[0] >= COST_SECONDS:
            share = _share(self._window, self._last)
            if share > MOST_COST:
                self.hertz /= 2
                self.slowed.append(Slowed(now, share, self.hertz))
            self._window = self._last

    def _run(self) -> None:
        self._first = (nan, nan)  # CPU time is counted by thread
        due = time.perf_counter()
        while not self._stop.is_set():
            self.sample()
            # What was missed is not made up for.
            due = max(due + 1.0 / self.hertz, time.perf_counter())
            self._stop.wait(due - time.perf_counter())


def _share(begin: tuple[float, float], end: tuple[float, float]) -> float:
    """CPU time over time between two readings of both; NaN where no time has passed."""
    return (end[1] - begin[1]) / (end[0] - begin[0]) if end[0] > begin[0] else nan
