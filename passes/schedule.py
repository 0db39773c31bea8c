"""Time, energy and memory of a stage sequence.

Stages run one at a time per device and transfers one at a time per link, in order (`timeline`). Activations get
offsets in an arena (`memory`); what does not fit a memory whose devices may spill crosses the link from the host
in every run, as sigma = spilled bytes / Q of those devices, and the times are taken again with it. The temperature of
each device follows from its mean power over the plan, and its energy from the temperature (`energy`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from qeil_compile.devices import DeviceProfile
from qeil_compile.passes.costs import CostTable
from qeil_compile.passes.energy import DeviceEnergy, Usage, plan_energy, spill_joules
from qeil_compile.passes.memory import Resident, Spill, pressure, resident, spills
from qeil_compile.passes.sequence import Layout, Sequence_
from qeil_compile.passes.timeline import Job, Timeline, simulate
from qeil_compile.plan import DeviceState, Objectives, Stage, Transfer


@dataclass(frozen=True)
class Schedule:
    """Stages with start times, transfers, objective values, and the state of each device of the target.

    `resident` are the bytes per memory pool, `cpq` their share of what is usable; a pool of `spilled` keeps that
    many bytes at the host. `usage` is what the plan asks of devices and links.
    """

    stages: tuple[Stage, ...]
    transfers: tuple[Transfer, ...]
    objectives: Objectives
    devices: tuple[DeviceState, ...]
    resident: Mapping[str, int]
    cpq: Mapping[str, float]
    spilled: Mapping[str, Spill]
    usage: Usage


def schedule(costs: CostTable, sequence: Sequence_) -> Schedule:
    """Times, energy and memory of a legal stage sequence (see `legalise`).

    Latency is the makespan. Energy is that of all devices of the target, which draw their idle power while they
    wait, and of the transfers. Under-utilisation is 1 minus the attained share of the binding roofs over the makespan
    of all devices.
    """
    layout = Layout(costs, sequence)
    seconds = layout.pick(costs.seconds)
    timeline = _simulate(layout, seconds)
    kept = _resident(layout, seconds, timeline)
    spilled = spills(costs.target, kept, _per_device(layout, layout.pick(costs.nbytes)), costs.conditions)
    if spilled:
        seconds = _with_spills(layout, seconds, spilled)
        timeline = _simulate(layout, seconds)
    usage = _usage(layout, timeline, spilled)
    dynamic = _per_device(layout, layout.pick(costs.dynamic))
    energy, states = plan_energy(costs.target, usage, dynamic, costs.conditions)
    objectives = Objectives(timeline.latency, energy, _under_utilisation(layout, timeline.latency))
    pools, cpq = pressure(costs.target, kept, spilled, costs.conditions)
    devices = tuple(_state(d, usage, states[d.name], kept, cpq[d.pool]) for d in costs.target.devices)
    stages = _stages(layout, timeline, states, usage)
    return Schedule(stages, layout.transfers, objectives, devices, pools, cpq, spilled, usage)


def _simulate(layout: Layout, seconds: np.ndarray) -> Timeline:
    """Run the stages when group g takes `seconds[g]`."""
    costs = layout.costs
    work = layout.per_stage(seconds)
    bound = np.minimum(layout.per_stage(layout.pick(costs.streaming)), work)
    traffic = layout.per_stage(layout.pick(costs.nbytes))
    jobs = []
    for k, (p, _) in enumerate(layout.sequence):
        profile, alone = costs.placements[p].profile, float(work[k] + layout.boundary[k])
        whole = alone or 1.0
        jobs.append(
            Job(profile.name, profile.pool, alone, float(bound[k]) / whole, float(traffic[k]) / whole,
                layout.after[k], layout.arrivals[k])
        )  # fmt: skip
    return simulate(jobs, layout.moves, _bandwidths(costs.target.devices))


def _bandwidths(devices: Iterable[DeviceProfile]) -> dict[str, float]:
    """Pool -> the most that any of its devices can attain [B/s]."""
    found: dict[str, float] = {}
    for d in devices:
        share = max([d.efficiency_memory.value, *(e.memory.value for e in d.efficiencies.values())])
        found[d.pool] = max(found.get(d.pool, 0.0), share * d.memory_bandwidth.value)
    return found


def _resident(layout: Layout, seconds: np.ndarray, timeline: Timeline) -> dict[str, Resident]:
    """What each device keeps; a stage's groups follow one another, stretched as the stage is."""
    start, end, position = np.zeros(len(seconds)), np.zeros(len(seconds)), np.zeros(len(seconds), dtype=np.int64)
    done = 0
    for k, (_, members) in enumerate(layout.sequence):
        rows = list(members)
        ticks = np.concatenate(([layout.boundary[k]], seconds[rows])).cumsum()
        stretch = (timeline.end[k] - timeline.start[k]) / ticks[-1] if ticks[-1] else 0.0
        ticks = timeline.start[k] + stretch * ticks
        ticks[-1] = timeline.end[k]  # to the last bit, or the stage behind would seem to run beside this one
        start[rows], end[rows] = ticks[:-1], ticks[1:]
        position[rows] = np.arange(done, done + len(rows))
        done += len(rows)
    costs = layout.costs
    pools = {d.name: d.pool for d in costs.target.devices}
    return resident(costs.groups, costs.storages, layout.device_of_group, pools, (start, end, position))


def _with_spills(layout: Layout, seconds: np.ndarray, spilled: Mapping[str, Spill]) -> np.ndarray:
    """Seconds of each group when the pools that spill read from the host besides."""
    costs, found = layout.costs, seconds.copy()
    for p in dict.fromkeys(int(p) for p in layout.place):
        spill = spilled.get(costs.placements[p].profile.pool)
        if spill is not None:
            link = costs.target.link(spill.host, costs.placements[p].profile.name)
            here = layout.place == p
            found[here] = costs.spilled(p, spill.sigma, link.bandwidth.value)[here]
    return found


def _usage(layout: Layout, timeline: Timeline, spilled: Mapping[str, Spill]) -> Usage:
    costs = layout.costs
    busy: dict[str, float] = {}
    for device, length in zip(layout.device, timeline.end - timeline.start, strict=True):
        busy[device] = busy.get(device, 0.0) + float(length)
    moved: dict[tuple[str, str], float] = {}
    for t in layout.transfers:
        ends = layout.device[t.source], layout.device[t.target]
        moved[ends] = moved.get(ends, 0.0) + t.nbytes
    traffic = _per_device(layout, layout.pick(costs.nbytes))
    over = {
        d.name: (spilled[d.pool].sigma * traffic[d.name], spilled[d.pool].host)
        for d in costs.target.devices
        if d.pool in spilled and d.name in traffic
    }
    return Usage(timeline.latency, busy, over, moved)


def _per_device(layout: Layout, values: np.ndarray) -> dict[str, float]:
    """Sums of a value per group by device, for the devices that work."""
    found: dict[str, float] = {}
    for device, value in zip(layout.device, layout.per_stage(values), strict=True):
        found[device] = found.get(device, 0.0) + float(value)
    return found


def _under_utilisation(layout: Layout, latency: float) -> float:
    costs = layout.costs
    work = float((layout.pick(costs.share) * layout.pick(costs.seconds)).sum())
    under = 1.0 - work / (len(costs.target.devices) * latency) if latency else 0.0
    return min(max(under, 0.0), 1.0)


def _state(
    profile: DeviceProfile, usage: Usage, energy: DeviceEnergy, kept: Mapping[str, Resident], cpq: float
) -> DeviceState:
    mine = kept.get(profile.name, Resident(0, 0, 0, 0))
    return DeviceState(
        device=profile.name, busy=usage.busy.get(profile.name, 0.0), joules=energy.joules,
        temperature=energy.temperature, phi=energy.phi, sustained=energy.sustained, cpq=cpq,
        weight_bytes=mine.weights, arena_bytes=mine.arena, peak_bytes=mine.peak, online_bytes=mine.bound,
        spill_bytes=int(usage.spilled[profile.name][0]) if profile.name in usage.spilled else 0,
    )  # fmt: skip


def _stages(
    layout: Layout, timeline: Timeline, states: Mapping[str, DeviceEnergy], usage: Usage
) -> tuple[Stage, ...]:
    costs, graph = layout.costs, layout.costs.groups.graph
    flops, nbytes = layout.per_stage(layout.pick(costs.flops)), layout.per_stage(layout.pick(costs.nbytes))
    dynamic, traffic = layout.per_stage(layout.pick(costs.dynamic)), _per_device(layout, layout.pick(costs.nbytes))
    found = []
    for k, (p, _) in enumerate(layout.sequence):
        profile, length = costs.placements[p].profile, float(timeline.end[k] - timeline.start[k])
        power = profile.power_const.value + states[profile.name].leakage
        whole = traffic[profile.name]
        spill = spill_joules(costs.target, profile, usage) * float(nbytes[k]) / whole if whole else 0.0
        found.append(
            Stage(
                k, costs.placements[p].spec, profile.name, tuple(graph.ops[i].name for i in layout.ops[k]),
                tuple(layout.inputs[k]), tuple(layout.outputs[k]), float(timeline.start[k]),
                length - float(layout.boundary[k]), length * power + float(dynamic[k]) + spill,
                float(layout.boundary[k]), float(flops[k]), int(nbytes[k]),
                sum(graph.tensors[w].nbytes for w in costs.groups.weights_of(layout.ops[k])),
            )
        )  # fmt: skip
    return tuple(found)
