"""Sensors, safety monitor and choice of plan for one model that runs.

    with Supervisor(plans, target, log) as supervisor:
        session = ResilientSession(model, log=log, supervisor=supervisor)

The sampling thread hands each snapshot to the monitor. At the boundaries between tokens the session asks which devices
should rest, which plan should be in force, and after each stage which share of the time its device may work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf, isnan
from typing import Protocol

from qeil_compile.devices import Target
from qeil_compile.errors import InputError
from qeil_compile.passes.conditions import Conditions
from qeil_compile.plan import Objectives, Plan
from qeil_compile.telemetry import Sampler, Sensor, Snapshot, find_sensors

from .decisions import DecisionLog
from .guard import Where
from .monitor import Limits, SafetyMonitor, limits_of
from .phi import PlanChooser

#: Seconds between two looks at which plan should be in force.
_INTERVAL = 0.5
#: What goes into a trace.
_TRACED = frozenset({"power", "temperature", "clock", "memory", "load"})


class Oversight(Protocol):
    """What a session asks between tokens, and after each call of a stage."""

    def share(self, where: Where) -> float:
        """The share of the time in which the stages on these placements may work, in [0, 1]."""
        ...

    def avoided(self) -> Sequence[str]:
        """Devices and placements that should rest."""
        ...

    def preferred(self) -> int:
        """Number of the plan that should be in force: 0 the model's own, k its spare k - 1."""
        ...


class Unwatched:
    """No sensors: nothing rests, and the plan stays."""

    def share(self, where: Where) -> float:
        """All of the time."""
        return 1.0

    def avoided(self) -> Sequence[str]:
        """Nothing."""
        return ()

    def preferred(self) -> int:
        """The model's own plan."""
        return 0


class Counters(Protocol):
    """What is told of each sensor; `runtime.trace.Trace` is one."""

    def counter(self, name: str, moment: float, value: float) -> None:
        """The value of a sensor at a moment."""
        ...


class Supervisor:
    """An `Oversight` by the sensors of this machine.

    `plans` are the model's own and its spares, `target` the machine that they were priced for, which has to be this
    one. `limits` (by device, default: those of the target) are what the safety monitor keeps. `sensors` stand in for
    those that are found.
    """

    def __init__(
        self, plans: Sequence[Plan], target: Target, log: DecisionLog, *, conditions: Conditions | None = None,
        limits: Mapping[str, Limits] | None = None, sensors: Sequence[Sensor] | None = None, hertz: float = 20.0,
        counters: Counters | None = None, clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        """Raises `InputError` for limits of devices that the target does not have, and as `PlanChooser` does."""
        known = [d.name for d in target.devices]
        unknown = next((n for n in limits or () if n not in known), None)
        if unknown is not None:
            raise InputError(f"limits: found {unknown}, expected devices of {target.name}: {', '.join(known)}")
        conditions = conditions or Conditions()
        self._limits = dict(limits) if limits is not None else limits_of(target, conditions)
        # A spare that gives up the user's pins is for losses only.
        self._numbers = [k for k, p in enumerate(plans) if p.pins == plans[0].pins]
        rivals = [_no_cheaper(plans[k], plans[0].objectives) for k in self._numbers]
        self._chooser = PlanChooser(rivals, target, log, conditions=conditions)
        self._monitor = SafetyMonitor(self._limits, log)
        self._devices = {s.placement: s.device for p in plans for s in p.stages}
        self._shares: Mapping[str, float] = {}
        self._counters = counters
        self._clock, self._looked = clock, -inf
        self.sampler = Sampler(find_sensors()[0] if sensors is None else sensors, hertz, clock=clock)
        self.sampler.listen("safety monitor", self._heard)

    def __enter__(self) -> Supervisor:
        self.sampler.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.sampler.stop()

    def share(self, where: Where) -> float:
        """The least of the placements' devices."""
        return min((self._shares.get(self._devices.get(p, ""), 1.0) for p in where), default=1.0)

    def avoided(self) -> Sequence[str]:
        """Devices whose share is 0."""
        return tuple(sorted(n for n, share in self._shares.items() if share <= 0.0))

    def preferred(self) -> int:
        """By the temperatures that were read last."""
        now, snapshot = self._clock(), self.sampler.latest()
        if snapshot is not None and now - self._looked >= _INTERVAL:
            self._looked = now
            self._chooser.choose(self._temperatures(snapshot), now, self._shares)
        return self._numbers[self._chooser.index]

    def _temperatures(self, snapshot: Snapshot) -> dict[str, float]:
        read = {n: snapshot.of(limits.sensor or n, "temperature") for n, limits in self._limits.items()}
        return {n: t for n, t in read.items() if t is not None}

    def _heard(self, snapshot: Snapshot) -> None:
        self._shares = self._monitor.update(snapshot)
        if self._counters is not None:
            write_counters(self._counters, snapshot)


def write_counters(counters: Counters, snapshot: Snapshot) -> None:
    """Power, temperature, clock, memory and load of a snapshot, as far as they were read."""
    for channel, value in snapshot.values.items():
        if channel.quantity in _TRACED and not isnan(value):
            counters.counter(f"{channel.device} {channel.quantity} [{channel.unit}]", snapshot.time, value)


def _no_cheaper(plan: Plan, chosen: Objectives) -> Plan:
    """The plan, with prices that are not below those of the chosen one.

    That was chosen although another may have been priced lower: the clock decided, or a limit of the user. Only what
    changes at run time may lead away from it.
    """
    own = plan.objectives
    held = replace(own, latency=max(own.latency, chosen.latency), energy=max(own.energy, chosen.energy))
    return replace(plan, objectives=held)
