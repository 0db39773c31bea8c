"""List-schedule a stage sequence: one stage at a time per device, one transfer at a time per link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qeil_compile.passes.annotate import CostTable
from qeil_compile.plan import Objectives, Stage, Transfer


@dataclass(frozen=True)
class Schedule:
    """Stages with start times, transfers, objective values, and resident bytes per memory pool."""

    stages: tuple[Stage, ...]
    transfers: tuple[Transfer, ...]
    objectives: Objectives
    resident: dict[str, int]


def schedule(costs: CostTable, sequence: Sequence[tuple[int, tuple[int, ...]]]) -> Schedule:
    """Times, energy and memory of a legal stage sequence (see `legalise`).

    Latency is the makespan. Energy adds to the working energy of each stage and transfer the idle power of
    every device of the target while it waits. Under-utilisation is 1 minus the attained share of the roofs
    over the makespan of all devices that work.
    """
    return _Scheduler(costs, sequence).run()


class _Scheduler:
    def __init__(self, costs: CostTable, sequence: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        self.costs, self.sequence = costs, sequence
        self.groups = costs.groups
        self.writer: dict[str, int] = {}
        self.finish: list[float] = []
        self.device_free: dict[str, float] = {}
        self.link_free: dict[tuple[str, str], float] = {}
        self.busy: dict[str, float] = {}
        self.stages: list[Stage] = []
        self.transfers: list[Transfer] = []

    def run(self) -> Schedule:
        for k, (p, members) in enumerate(self.sequence):
            self._place(k, p, members)
        latency = max(self.finish, default=0.0)
        used = {s.device for s in self.stages}
        energy = sum(s.joules for s in self.stages) + sum(t.joules for t in self.transfers)
        for device in self.costs.target.devices:
            energy += device.power_idle.value * max(latency - self.busy.get(device.name, 0.0), 0.0)
        work = sum(
            float(self.costs.share[g, p] * self.costs.seconds[g, p]) for p, members in self.sequence for g in members
        )
        under = 1.0 - work / (len(used) * latency) if latency else 0.0
        objectives = Objectives(latency, energy, min(max(under, 0.0), 1.0))
        return Schedule(tuple(self.stages), tuple(self.transfers), objectives, self._resident())

    def _place(self, k: int, p: int, members: tuple[int, ...]) -> None:
        costs, graph = self.costs, self.groups.graph
        place = costs.placements[p]
        ops = sorted(i for g in members for i in self.groups.groups[g].ops)
        inputs, outputs = self.groups.inputs_of(ops), self.groups.outputs_of(ops)
        ready = self.device_free.get(place.profile.name, 0.0)
        for t in inputs:
            ready = max(ready, self._arrival(t, k, p))
        boundary = costs.boundary(self.sequence[k - 1][0], p) if k else costs.entry(p)
        seconds = float(sum(costs.seconds[g, p] for g in members))
        end = ready + boundary + seconds
        joules = float(sum(costs.joules[g, p] for g in members)) + boundary * place.profile.power_const.value
        self.stages.append(
            Stage(
                k, place.spec, place.profile.name, tuple(graph.ops[i].name for i in ops), tuple(inputs),
                tuple(outputs), ready, seconds, joules, boundary, float(sum(costs.flops[g] for g in members)),
                int(sum(costs.nbytes[g] for g in members)),
                sum(graph.tensors[w].nbytes for w in self.groups.weights_of(ops)),
            )
        )  # fmt: skip
        self.finish.append(end)
        self.device_free[place.profile.name] = end
        self.busy[place.profile.name] = self.busy.get(place.profile.name, 0.0) + boundary + seconds
        self.writer.update((t, k) for t in outputs)

    def _arrival(self, tensor: str, k: int, p: int) -> float:
        """When the tensor is in the memory of placement p; moves it if it is elsewhere."""
        source = self.writer.get(tensor, -1)
        if source < 0:
            return 0.0
        q = self.sequence[source][0]
        spec = self.groups.graph.tensors[tensor]
        seconds, joules = self.costs.transfer(q, p, spec.nbytes)
        a, b = self.costs.placements[q].profile.name, self.costs.placements[p].profile.name
        if a == b:
            return self.finish[source]
        self.transfers.append(Transfer(tensor, spec.nbytes, source, k, seconds, joules))
        if not seconds:
            return self.finish[source]
        link = (min(a, b), max(a, b))
        start = max(self.finish[source], self.link_free.get(link, 0.0))
        self.link_free[link] = start + seconds
        return start + seconds

    def _resident(self) -> dict[str, int]:
        """Bytes per memory pool: weights stored once per device, and the most live activation bytes."""
        graph = self.groups.graph
        weights: dict[tuple[str, str], set[str]] = {}
        last: dict[str, int] = {}
        for stage in self.stages:
            pool = self.costs.target.device_of(stage.placement).pool
            ops = [graph.index[o] for o in stage.ops]
            weights.setdefault((pool, stage.device), set()).update(self.groups.weights_of(ops))
            for t in stage.inputs:
                last[t] = stage.index
        total: dict[str, int] = {}
        for (pool, _), names in weights.items():
            total[pool] = total.get(pool, 0) + sum(graph.tensors[w].nbytes for w in names)
        live: set[str] = set(graph.inputs)
        peak: dict[str, int] = {}
        for stage in self.stages:
            pool = self.costs.target.device_of(stage.placement).pool
            live |= set(stage.outputs)
            peak[pool] = max(peak.get(pool, 0), sum(graph.tensors[t].nbytes for t in live))
            live -= {t for t in live if last.get(t, -1) <= stage.index and t not in graph.outputs}
        return {pool: n + peak.get(pool, 0) for pool, n in total.items()}
