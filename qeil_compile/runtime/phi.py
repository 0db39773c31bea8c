"""Which plan should be in force, by temperatures that are measured in place of those that were solved.

A plan was priced at the temperatures that its own mean power brings about. At run time the temperature T of a device
is read, and with it what leaks [passes.thermal]; where the device is throttled its stages take 1 / speed as long:

    E(d) = busy (P_const + P_leak(T)) + dynamic + (L - busy) P_idle        [passes.energy]

`dynamic`, what arithmetic and memory traffic take, is as it was planned: lower voltages of lower clocks are not
credited. The latency L is the makespan of the same stages and transfers in the same order [passes.timeline].

    chooser = PlanChooser([compiled.plan, *others], target, DecisionLog(path))
    index = chooser.choose({"gpu": 81.0}, now)       # at a token boundary; whoever asks switches
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf

from qeil_compile.devices import Target
from qeil_compile.errors import InputError
from qeil_compile.passes.choice import parse_choice
from qeil_compile.passes.conditions import Conditions
from qeil_compile.passes.thermal import leakage
from qeil_compile.passes.timeline import Job, Move, simulate
from qeil_compile.plan import DeviceState, Objectives, Plan

from .decisions import DecisionLog


class PlanChooser:
    """Stays with a plan until another is better by more than `hysteresis`, and `dwell` seconds after a switch.

    "Better": it costs less by the objective; or it is no worse in latency and energy, and better in one; or the plan
    in force passes a cap of the objective, and the other keeps it with room to spare. A plan with a device that may
    take no load at all (speed 0) is left at once.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        target: Target,
        log: DecisionLog,
        *,
        conditions: Conditions | None = None,
        hysteresis: float = 0.05,
        dwell: float = 2.0,
    ) -> None:
        """The first of `plans` is in force; its objective counts, relative to its own values.

        `target` is the one that they were priced for. Raises `InputError` for plans of different targets,
        `QeilError` for an objective that cannot be read.
        """
        if not plans:
            raise InputError("plans: found none, expected the plan in force and others of its archive")
        other = next((p.target for p in plans if p.target != target.name), None)
        if other is not None:
            raise InputError(f"plans: found one for target {other}, expected all for {target.name}")
        self.plans, self.index = tuple(plans), 0
        self._profiles = {d.name: d for d in target.devices}
        self._log, self._hysteresis, self._dwell = log, hysteresis, dwell
        self._wanted, self._reference = parse_choice(plans[0].objective), plans[0].objectives
        self._makespans = [_makespan(p, {}) for p in plans]
        self._switched = -inf

    def price(self, k: int, temperatures: Mapping[str, float], speeds: Mapping[str, float] | None = None) -> Objectives:
        """Plan `k` at measured temperatures [C] and speeds (clock over full clock, in [0, 1]), by device of the target.

        A device without a temperature keeps the solved one, without a speed runs at full speed. Under-utilisation is
        as it was planned. A plan that needs a device of speed 0 costs infinitely much.
        """
        plan, rates = self.plans[k], speeds or {}
        if any(rates.get(s.device, 1.0) <= 0 for s in plan.stages):
            return replace(plan.objectives, latency=inf, energy=inf)
        latency = plan.objectives.latency
        if any(r < 1.0 for r in rates.values()) and self._makespans[k]:
            latency *= _makespan(plan, rates) / self._makespans[k]
        energy = plan.objectives.energy + sum(
            self._change(d, plan.objectives.latency, latency, temperatures.get(d.device), rates.get(d.device, 1.0))
            for d in plan.devices
        )
        return replace(plan.objectives, latency=latency, energy=energy)

    def choose(
        self, temperatures: Mapping[str, float], now: float, speeds: Mapping[str, float] | None = None
    ) -> int:
        """Number of the plan that should be in force at `now` [s]; see `price` for temperatures and speeds."""
        prices = [self.price(k, temperatures, speeds) for k in range(len(self.plans))]
        stuck = prices[self.index].latency == inf
        found = self._better(prices) if stuck or now - self._switched >= self._dwell else None
        if found is not None:
            best, reason = found
            mine, its = prices[self.index], prices[best]
            self._log.record(
                "prefer", self.plans[best].strategy, before=self.plans[self.index].strategy, reason=reason,
                latency=its.latency, energy=its.energy, latency_before=mine.latency, energy_before=mine.energy,
                temperatures=dict(temperatures), at=now,
            )  # fmt: skip
            self.index, self._switched = best, now
        return self.index

    def _change(
        self, state: DeviceState, planned: float, latency: float, temperature: float | None, speed: float
    ) -> float:
        """By how much a device's energy [J] per run differs from what was planned."""
        profile, busy = self._profiles[state.device], state.busy / max(speed, 1e-9) if state.busy else 0.0
        waits = max(latency - busy, 0.0) - max(planned - state.busy, 0.0)
        change = (busy - state.busy) * profile.power_const.value + waits * profile.power_idle.value
        if profile.thermal is None or state.temperature is None:
            return change
        solved = float(leakage(profile.thermal, state.temperature))
        measured = solved if temperature is None else float(leakage(profile.thermal, temperature))
        return change + busy * measured - state.busy * solved

    def _better(self, prices: Sequence[Objectives]) -> tuple[int, str] | None:
        """A plan to switch to, and why."""
        mine, room = prices[self.index], 1.0 + self._hysteresis
        rivals = [k for k, p in enumerate(prices) if k != self.index and p.latency < inf]
        kept = [k for k in rivals if not self._wanted.excess(_times(prices[k], room))]
        if mine.latency == inf:
            rest = kept or sorted(rivals, key=lambda k: self._wanted.excess(prices[k]))[:1]
            return (min(rest, key=lambda k: self._value(prices[k])), "a device may take no load") if rest else None
        if not kept:
            return None
        best = min(kept, key=lambda k: self._value(prices[k]))
        if self._wanted.excess(mine):
            return best, "passes a cap of the objective"
        if self._value(mine) > room * self._value(prices[best]):
            return best, f"worse by the objective by more than {self._hysteresis:.0%}"
        above = [k for k in kept if _dominates(prices[k], mine, room) and self._value(prices[k]) <= self._value(mine)]
        return (min(above, key=lambda k: self._value(prices[k])), "has left the front") if above else None

    def _value(self, price: Objectives) -> float:
        return self._wanted.value(price, self._reference)


def _dominates(its: Objectives, mine: Objectives, room: float) -> bool:
    """No worse in latency and energy, and better in one by more than the hysteresis."""
    no_worse = its.latency <= mine.latency and its.energy <= mine.energy
    return no_worse and (its.latency * room < mine.latency or its.energy * room < mine.energy)


def _times(price: Objectives, factor: float) -> Objectives:
    return replace(price, latency=price.latency * factor, energy=price.energy * factor)


def _makespan(plan: Plan, speeds: Mapping[str, float]) -> float:
    """When the last stage ends [s] if each takes 1 / speed as long, transfers as long as planned."""
    after: list[set[int]] = [set() for _ in plan.stages]
    arrivals: list[list[int]] = [[] for _ in plan.stages]
    moves: list[Move] = []
    for t in plan.transfers:
        if t.source >= 0 and t.seconds:
            a, b = sorted((plan.stages[t.source].device, plan.stages[t.target].device))
            arrivals[t.target].append(len(moves))
            moves.append(Move((a, b), t.source, t.seconds))
        elif t.source >= 0:
            after[t.target].add(t.source)
    writer: dict[str, int] = {}
    for k, stage in enumerate(plan.stages):
        wrote = (writer[t] for t in stage.inputs if t in writer)
        after[k].update(w for w in wrote if plan.stages[w].device == stage.device)
        writer.update(dict.fromkeys(stage.outputs, k))
    jobs = [
        # What devices of one memory take from one another is in the planned seconds.
        Job(s.device, "", (s.seconds + s.boundary) / speeds.get(s.device, 1.0), 0.0, 0.0, tuple(before), tuple(moved))
        for s, before, moved in zip(plan.stages, after, arrivals, strict=True)
    ]
    return simulate(jobs, moves, {"": inf}).latency
