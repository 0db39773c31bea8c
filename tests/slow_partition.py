"""The partitioner's value of an assignment once more, slow and plain: from its equations, with loops.

It shares with the package only what it is given: phases with their cost tables, and a placement per group.
"""

from __future__ import annotations

from math import exp
from typing import Any

import networkx as nx

from qeil_compile.passes.partition.tables import Phase


def slow_value(phases: list[Phase], place: list[int]) -> tuple[float, float, float]:
    """Latency [s], energy [J], under-utilisation of a feasible assignment of all groups, phase after phase."""
    first = phases[0].costs
    devices = {d.name: d for d in first.target.devices}
    base, bases = 0, []
    for phase in phases:
        bases.append(base)
        base += len(phase.costs.groups.groups)
    busy = dict.fromkeys(devices, 0.0)
    dynamic = dict.fromkeys(devices, 0.0)
    latency, moved, useful = 0.0, 0.0, 0.0
    sent: set[Any] = set()
    for phase, start in zip(phases, bases, strict=True):
        costs, n = phase.costs, len(phase.costs.groups.groups)
        own = [int(p) for p in place[start : start + n]]
        on = [costs.placements[p].profile.name for p in own]
        for g in range(n):
            busy[on[g]] += phase.runs * costs.seconds[g, own[g]]
            dynamic[on[g]] += phase.runs * costs.dynamic[g, own[g]]
            useful += phase.runs * costs.share[g, own[g]] * costs.seconds[g, own[g]]
            if g == 0:
                busy[on[g]] += phase.runs * costs.entry(own[g])
            elif own[g] != own[g - 1]:
                busy[on[g]] += phase.runs * costs.boundary(own[g - 1], own[g])
        latency += phase.runs * sum(_makespan(costs, own, on, s, segments) for segments in [_segments(costs)]
                                    for s in range(len(segments)))  # fmt: skip
        for a, b, t in costs.groups.edges:
            if on[a] != on[b] and (start, t, on[b]) not in sent:
                sent.add((start, t, on[b]))
                moved += phase.runs * costs.transfer(own[a], own[b], costs.groups.graph.tensors[t].nbytes)[1]
        for inside, source in phase.carried.items():
            k, before = next(
                (k, p) for k, p in reversed(list(enumerate(phases[: phases.index(phase)])))
                if source in p.costs.groups.graph.producer and source in p.costs.groups.graph.outputs
            )  # fmt: skip
            w = int(place[bases[k] + before.costs.groups.group_of[before.costs.groups.graph.producer[source]]])
            size = before.costs.groups.graph.tensors[source].nbytes
            for i in costs.groups.graph.consumers.get(inside, ()):
                q = own[costs.groups.group_of[i]]
                key = (phase.name, source, costs.placements[q].profile.name)
                if key not in sent and costs.placements[w].profile is not costs.placements[q].profile:
                    sent.add(key)
                    seconds, joules = costs.transfer(w, q, size)
                    latency, moved = latency + seconds, moved + joules
    energy = moved
    for name, d in devices.items():
        fixed = busy[name] * d.power_const.value + dynamic[name] + (latency - busy[name]) * d.power_idle.value
        energy += fixed + busy[name] * _leak(d, fixed / latency, busy[name] / latency, first.conditions)
    return latency, energy, min(max(1 - useful / (len(devices) * latency), 0.0), 1.0)


def _segments(costs: Any) -> list[list[int]]:
    """Groups between cuts: a cut is ordered with every group that has a reader, and with a source that has a source."""
    n = len(costs.groups.groups)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from((a, b) for a, b, _ in costs.groups.edges)
    deep = {g for g in range(n) if any(graph.in_degree(a) for a in graph.predecessors(g))}
    segments: list[list[int]] = [[]]
    for c in range(n):
        segments[-1].append(c)
        # Before c every group with a reader must be read by c's past or c; after it every one that is deep reads
        # from c's future or c.
        past = all(any(b <= c for b in graph.successors(g)) for g in range(c) if graph.out_degree(g))
        future = all(any(a >= c for a in graph.predecessors(g)) for g in range(c + 1, n) if g in deep)
        if past and future and c + 1 < n:
            segments.append([])
    return segments


def _makespan(costs: Any, own: list[int], on: list[str], s: int, segments: list[list[int]]) -> float:
    members = segments[s]
    stages: list[list[int]] = []
    for g in members:
        if stages and own[stages[-1][-1]] == own[g]:
            stages[-1].append(g)
        else:
            stages.append([g])
    free: dict[str, float] = {}
    road: dict[frozenset[str], float] = {}
    end: dict[int, float] = {}
    arrived: dict[tuple[str, str], float] = {}
    continues = bool(s) and own[members[0] - 1] == own[members[0]]
    available = 0.0
    for k, stage in enumerate(stages):
        d = on[stage[0]]
        ready = 0.0
        for g in stage:
            for a, b, t in sorted(costs.groups.edges, key=lambda e: _order(costs, e)):
                if b != g or a in stage or (a < members[0] and (not s or a not in segments[s - 1])):
                    continue
                if a in end:
                    there = end[a]
                else:
                    there = available if own[a] == own[members[0] - 1] else 0.0
                size = costs.groups.graph.tensors[t].nbytes
                if on[a] != d and size:
                    if (t, d) not in arrived:
                        seconds = costs.transfer(own[a], own[g], size)[0]
                        link = frozenset((on[a], d))
                        arrived[t, d] = there
                        if seconds:
                            arrived[t, d] = road[link] = max(there, road.get(link, 0.0)) + seconds
                    there = arrived[t, d]
                ready = max(ready, there)
        before = stage[0] - 1
        cost = costs.entry(own[stage[0]]) if before < 0 else 0.0
        if before >= 0 and own[before] != own[stage[0]]:
            cost = costs.boundary(own[before], own[stage[0]])
        done = max(ready, free.get(d, 0.0)) + cost + sum(costs.seconds[g, own[g]] for g in stage)
        free[d] = done
        end.update(dict.fromkeys(stage, done))
        if k == 0 and continues:
            available = done
    return max(end.values())


def _order(costs: Any, edge: tuple[int, int, str]) -> int:
    return list(costs.groups.edges).index(edge)


def _leak(d: Any, power: float, share: float, conditions: Any) -> float:
    if d.thermal is None:
        return 0.0
    th = d.thermal
    ambient = th.ambient.value if conditions.ambient is None else conditions.ambient
    z = th.resistance.value * (1 - exp(-conditions.duration / th.time_constant.value))
    top = conditions.ceiling * d.t_max.value

    def leak(t: float) -> float:
        kelvin, base = t + 273.15, th.reference.value + 273.15
        return th.leakage.value * (kelvin / base) ** 2 * exp(th.slope.value * (1 / base - 1 / kelvin))

    t = ambient
    for _ in range(100000):
        following = ambient + z * (power + share * leak(min(t, top)))
        if following >= top:
            return leak(top)
        if abs(following - t) < 1e-14 * abs(t) + 1e-300:
            break
        t = following
    return leak(t)
