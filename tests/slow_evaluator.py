"""The cost model once more, slow and plain: straight from the equations, with loops instead of passes.

It shares with the package only what it is given: the graph, the kernels, the target and the stage sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf
from typing import Any

from qeil_compile.devices import DeviceProfile, boundary_seconds, engine_constants
from qeil_compile.passes.annotate import CostTable


@dataclass
class Slow:
    """What `schedule` also says."""

    latency: float
    energy: float
    under_utilisation: float
    cpq: dict[str, float]
    temperature: dict[str, float | None]
    phi: dict[str, float]
    sustained: dict[str, bool]
    arena: dict[str, int]
    spilled: dict[str, float]


def slow(costs: CostTable, sequence: list[tuple[int, tuple[int, ...]]]) -> Slow:
    target, groups = costs.target, costs.groups
    where = {g: k for k, (_, members) in enumerate(sequence) for g in members}
    place = [costs.placements[p] for p, _ in sequence]
    entry = [
        boundary_seconds(place[k - 1].engine, x.engine).value if k else engine_constants()[x.engine].stage_seconds.value
        for k, x in enumerate(place)
    ]
    rows = {g: _rows(costs, g, place[k].engine) for g, k in where.items()}
    seconds = {g: sum(_kernel(place[where[g]], r, 0.0, inf) for r in rows[g]) for g in where}
    start, end = _run(costs, sequence, place, entry, rows, seconds)
    arena, resident = _memory(costs, sequence, place, entry, seconds, start, end)

    sigma, spilled, need = {}, {}, dict.fromkeys((d.pool for d in target.devices), 0.0)
    for d in target.devices:
        need[d.pool] += resident.get(d.name, 0)
    room = {d.pool: d.memory_bytes.value * (1 - costs.conditions.reserve) for d in target.devices}
    q = dict.fromkeys((d.name for d in target.devices), 0.0)
    for g, k in where.items():
        q[place[k].profile.name] += sum(r["q"] for r in rows[g])
    host: dict[str, str] = {}
    for pool, n in list(need.items()):
        workers = [d for d in target.devices if d.pool == pool and any(x.profile is d for x in place)]
        hosts = [d for d in target.devices if d.kind == "cpu" and d.pool != pool]
        traffic = sum(q[d.name] for d in workers)
        if n > room[pool] and hosts and traffic and all(d.may_spill for d in workers):
            sigma[pool], spilled[pool], host[pool] = (n - room[pool]) / traffic, n - room[pool], hosts[0].name
    for pool, n in spilled.items():
        need[target.device_of(host[pool]).pool] += int(n)
    if sigma:
        for g, k in where.items():
            d = place[k].profile
            if d.pool in sigma:
                link = target.link(host[d.pool], d.name).bandwidth.value
                seconds[g] = sum(_kernel(place[k], r, sigma[d.pool], link) for r in rows[g])
        start, end = _run(costs, sequence, place, entry, rows, seconds)

    latency, energy = max(end), 0.0
    useful = sum(
        max(sum(r["w"] / d.flops(r["dtype"]).value for r in rows[g]), sum(r["q"] for r in rows[g]) / bandwidth)
        for g, k in where.items() for d in [place[k].profile] for bandwidth in [d.memory_bandwidth.value]
    )  # fmt: skip
    under = 1 - useful / (len(target.devices) * latency)
    found = Slow(latency, 0.0, under, {p: n / room[p] for p, n in need.items()}, {}, {}, {}, arena, spilled)
    for d in target.devices:
        busy = sum(end[k] - start[k] for k in range(len(place)) if place[k].profile is d)
        dynamic = sum(
            r["w"] * d.energy(r["dtype"]).value + r["q"] * d.energy_per_byte.value
            for g, k in where.items() if place[k].profile is d for r in rows[g]
        )  # fmt: skip
        if d.pool in sigma:
            link = target.link(host[d.pool], d.name).energy_per_byte.value
            dynamic += sigma[d.pool] * q[d.name] * (d.energy_per_byte.value + link)
        power = (busy * d.power_const.value + dynamic + (latency - busy) * d.power_idle.value) / latency
        t, leak, ok = _settle(d, power, busy / latency, costs)
        energy += latency * power + busy * leak
        found.temperature[d.name], found.sustained[d.name] = t, ok
        found.phi[d.name] = dynamic / (dynamic + busy * leak) if dynamic + busy * leak else 1.0
    sent = set()
    for k, (_, members) in enumerate(sequence):
        for t in _reads(costs, members):
            writer = groups.graph.producer.get(t)
            source = where[groups.group_of[writer]] if writer is not None else k
            a, b = place[source].profile, place[k].profile
            if a is not b and (t, b.name) not in sent:
                sent.add((t, b.name))
                energy += groups.graph.tensors[t].nbytes * target.link(a.name, b.name).energy_per_byte.value
    found.energy = energy
    return found


def _rows(costs: CostTable, group: int, engine: str) -> list[dict[str, Any]]:
    t = costs.kernels[engine]
    return [
        {"w": float(t.flops[i]), "q": float(t.bytes_in[i] + t.bytes_weights[i] + t.bytes_out[i]),
         "kind": t.kinds[i], "dtype": t.dtypes[i]}
        for i in range(len(t)) if t.group[i] == group
    ]  # fmt: skip


def _roofs(d: DeviceProfile, r: dict[str, Any], sigma: float) -> tuple[float, float]:
    own = d.efficiencies.get(r["kind"])
    nc = own.compute.value if own else d.efficiency_compute.value
    nm = own.memory.value if own else d.efficiency_memory.value
    return r["w"] / (nc * d.flops(r["dtype"]).value), (1 + sigma) * r["q"] / (nm * d.memory_bandwidth.value)


def _kernel(place: Any, r: dict[str, Any], sigma: float, link: float) -> float:
    launch = place.profile.launch_seconds.value + engine_constants()[place.engine].kernel_seconds.value
    return launch + max(*_roofs(place.profile, r, sigma), sigma * r["q"] / link)


def _reads(costs: CostTable, members: tuple[int, ...]) -> list[str]:
    """Tensors that a stage reads from others, in order of first use."""
    graph = costs.groups.graph
    ops = sorted(i for g in members for i in costs.groups.groups[g].ops)
    own = {t for i in ops for t in graph.ops[i].outputs}
    read = [t for i in ops for t in graph.ops[i].inputs if t not in own and graph.tensors[t].role != "weight"]
    return list(dict.fromkeys(read))


def _run(costs: CostTable, sequence: Any, place: Any, entry: Any, rows: Any, seconds: Any) -> Any:
    """Start and end of every stage: all clocks advance together to the next thing that ends."""
    graph, n = costs.groups.graph, len(sequence)
    writer = {t: k for k, (_, m) in enumerate(sequence) for g in m for i in costs.groups.groups[g].ops
              for t in graph.ops[i].outputs}  # fmt: skip
    needs: list[set[int]] = [set() for _ in range(n)]
    waits: list[set[int]] = [set() for _ in range(n)]
    moves: list[dict[str, Any]] = []
    there: dict[tuple[str, str], int | None] = {}
    for k, (_, members) in enumerate(sequence):
        for t in _reads(costs, members):
            if t not in writer:
                continue
            a, b = place[writer[t]].profile, place[k].profile
            if a is b:
                needs[k].add(writer[t])
                continue
            if (t, b.name) not in there:
                link, size = costs.target.link(a.name, b.name), graph.tensors[t].nbytes
                time = link.latency.value + size / link.bandwidth.value if size else 0.0
                there[t, b.name] = len(moves) if time else None
                if time:
                    moves.append({"link": {a.name, b.name}, "source": writer[t], "left": time, "done": False})
            move = there[t, b.name]
            if move is None:
                needs[k].add(writer[t])
            else:
                waits[k].add(move)
    whole = [entry[k] + sum(seconds[g] for g in m) for k, (_, m) in enumerate(sequence)]
    bound, demand, limit = [], [], {}
    for k, (_, members) in enumerate(sequence):
        streaming = 0.0
        for g in members:
            for r in rows[g]:
                c, m = _roofs(place[k].profile, r, 0.0)
                streaming += min(m, _kernel(place[k], r, 0.0, inf)) if m >= c else 0.0
        bound.append(min(streaming, sum(seconds[g] for g in members)) / whole[k])
        demand.append(sum(r["q"] for g in members for r in rows[g]) / whole[k])
    for d in costs.target.devices:
        best = max([d.efficiency_memory.value, *(e.memory.value for e in d.efficiencies.values())])
        limit[d.pool] = max(limit.get(d.pool, 0.0), best * d.memory_bandwidth.value)
    left, start, end, now = list(whole), [-1.0] * n, [-1.0] * n, 0.0
    while any(e < 0 for e in end):
        running = []
        for k in range(n):
            mine = [j for j in range(k) if place[j].profile is place[k].profile]
            ready = all(end[j] >= 0 for j in [*needs[k], *mine]) and all(moves[m]["done"] for m in waits[k])
            if end[k] < 0 and ready:
                start[k] = now if start[k] < 0 else start[k]
                running.append(k)
        on_road = []
        for m, move in enumerate(moves):
            first = all(o["done"] for o in moves[:m] if o["link"] == move["link"])
            if not move["done"] and first and end[move["source"]] >= 0:
                on_road.append(move)
        speed = {}
        for k in running:
            pool = place[k].profile.pool
            asked = sum(min(demand[j], limit[pool]) for j in running if place[j].profile.pool == pool)
            speed[k] = 1 / (1 - bound[k] + bound[k] * max(1.0, asked / limit[pool]))
        step = min([left[k] / speed[k] for k in running] + [m["left"] for m in on_road])
        now += step
        for k in running:
            left[k] -= step * speed[k]
            if left[k] <= 1e-15 * whole[k]:
                end[k] = now
        for move in on_road:
            move["left"] -= step
            move["done"] = move["left"] <= 1e-18
    return start, end


def _memory(costs: CostTable, sequence: Any, place: Any, entry: Any, seconds: Any, start: Any, end: Any) -> Any:
    """Arena and resident bytes of each device."""
    graph, owner = costs.groups.graph, costs.groups.group_of
    runs: list[tuple[float, int, int, float]] = []
    for k, (_, members) in enumerate(sequence):
        stretch = (end[k] - start[k]) / (entry[k] + sum(seconds[g] for g in members))
        now = start[k] + stretch * entry[k]
        for g in members:
            runs.append((now, len(runs), g, now + stretch * seconds[g]))
            now += stretch * seconds[g]
    runs.sort()
    step = {g: i for i, (_, _, g, _) in enumerate(runs)}
    # A group that starts a rounding error before another one ends does not run beside it.
    beside = {g: max(i for i, (s, *_) in enumerate(runs) if s < e * (1 - 1e-12) or i == step[g])
              for _, _, g, e in runs}  # fmt: skip
    device = {g: place[k].profile for k, (_, m) in enumerate(sequence) for g in m}
    users: dict[str, list[int]] = {}
    for i, op in enumerate(graph.ops):
        for t in (*op.inputs, *op.outputs):
            if graph.tensors[t].role != "weight" and owner[i] not in users.setdefault(t, []):
                users[t].append(owner[i])
    blocks: dict[str, list[tuple[int, int, int]]] = {}
    for t, groups in users.items():
        writer = owner[graph.producer[t]] if t in graph.producer else None
        if writer is not None and groups == [writer] and t not in graph.outputs:
            continue
        for pool in {device[g].pool for g in groups}:
            here = sorted((g for g in groups if device[g].pool == pool), key=step.__getitem__)
            at_home = writer is not None and device[writer].pool == pool
            holder = device[writer] if at_home and writer is not None else device[here[0]]
            last = max(beside[g] for g in here)
            if t in graph.outputs and (at_home or writer is None):
                last = len(runs)
            size = -(-graph.tensors[t].nbytes // 64) * 64
            blocks.setdefault(holder.name, []).append((size, step[writer] if writer is not None else 0, last))
    arena = {name: _greedy(b) for name, b in blocks.items()}
    resident = {}
    for name in {d.name for d in device.values()}:
        weights = {t for g in device if device[g].name == name for i in costs.groups.groups[g].ops
                   for t in graph.ops[i].inputs if graph.tensors[t].role == "weight"}  # fmt: skip
        resident[name] = arena.get(name, 0) + sum(graph.tensors[t].nbytes for t in weights)
    return arena, resident


def _greedy(blocks: list[tuple[int, int, int]]) -> int:
    placed: list[tuple[int, int, int, int]] = []
    for size, first, last in sorted(blocks, key=lambda b: (-b[0], b[1])):
        best, gap, reach = None, inf, 0
        for offset, other, *_ in sorted(p for p in placed if p[2] <= last and first <= p[3]):
            if size <= offset - reach < gap:
                best, gap = reach, offset - reach
            reach = max(reach, offset + other)
        placed.append((reach if best is None else best, size, first, last))
    return max((o + s for o, s, _, _ in placed), default=0)


def _settle(d: DeviceProfile, power: float, share: float, costs: CostTable) -> tuple[float | None, float, bool]:
    """Temperature [C], leakage [W] and whether it is sustained: bisection left of the least gap."""
    if d.thermal is None:
        return None, 0.0, True
    th, c = d.thermal, costs.conditions
    ambient = th.ambient.value if c.ambient is None else c.ambient
    top = c.ceiling * d.t_max.value

    def leak(t: float) -> float:
        kelvin, base = t + 273.15, th.reference.value + 273.15
        return th.leakage.value * (kelvin / base) ** 2 * exp(th.slope.value * (1 / base - 1 / kelvin))

    def gap(t: float) -> float:
        z = th.resistance.value * (1 - exp(-c.duration / th.time_constant.value))
        return ambient + z * (power + share * leak(t)) - t

    low, high = ambient, top
    for _ in range(200):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if gap(a) < gap(b) else (a, high)
    if ambient >= top or gap(high) >= 0:
        return top, leak(top), False
    low = ambient
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if gap(middle) > 0 else (low, middle)
    return low, leak(low), True
