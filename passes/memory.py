"""What a plan keeps in each memory: weights, an arena for activations, and how full that makes it (CPQ).

CPQ = resident / (capacity (1 - reserve)), over all devices of a memory pool, since they share its capacity. Resident
are the weights of every operator placed on a device, each once per device, and an arena that holds what stages read
and write while it lives. A tensor that stays inside a kernel takes no room; a view takes that of what it looks at; a
tensor that goes to another pool takes room in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qeil_compile.devices import Target
from qeil_compile.ir import GroupGraph
from qeil_compile.passes.arena import aligned, allocate, peak, robson
from qeil_compile.passes.conditions import Conditions
from qeil_compile.passes.count.traffic import VIEWS


@dataclass(frozen=True, slots=True)
class Resident:
    """Bytes that one device keeps: weights, its arena, the most live bytes in it.

    `bound` is what an engine that allocates as it goes and never moves a block may need instead of the arena, at
    worst (Robson).
    """

    weights: int
    arena: int
    peak: int
    bound: int

    @property
    def nbytes(self) -> int:
        """All of it."""
        return self.weights + self.arena


@dataclass(frozen=True)
class Storage:
    """One tensor with its views: `size` [byte], the groups that write it (-1: given from outside) and touch it."""

    size: int
    writer: int
    touched: tuple[int, ...]
    kept: bool


def storages(groups: GroupGraph) -> tuple[Storage, ...]:
    """All activations that outlive a kernel."""
    graph, owner = groups.graph, groups.group_of
    root: dict[str, str] = {}
    for op in graph.ops:
        if op.type in VIEWS and op.inputs and op.inputs[0]:
            root.update((o, root.get(op.inputs[0], op.inputs[0])) for o in op.outputs if o)
    touched: dict[str, dict[int, None]] = {}
    for i, op in enumerate(graph.ops):
        for t in (*op.inputs, *op.outputs):
            if t:
                touched.setdefault(root.get(t, t), {})[owner[i]] = None
    kept = {root.get(t, t) for t in graph.outputs}
    found = []
    for t, where in touched.items():
        spec = graph.tensors[t]
        writer = owner[graph.producer[t]] if t in graph.producer else -1
        inside = writer >= 0 and len(where) == 1 and t not in kept
        if spec.role != "weight" and spec.nbytes and not inside:
            found.append(Storage(spec.nbytes, writer, tuple(where), t in kept))
    return tuple(found)


def resident(
    groups: GroupGraph,
    parts: Sequence[Storage],
    devices: Sequence[str],
    pool_of: Mapping[str, str],
    times: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> dict[str, Resident]:
    """What each device keeps, when group g runs on `devices[g]`.

    `times` are start [s], end [s] and place in the order of execution of each group.
    """
    lives = _lifetimes(parts, devices, pool_of, times)
    found = {}
    for device in dict.fromkeys(devices):
        ops = [i for g in groups.groups if devices[g.index] == device for i in g.ops]
        weights = sum(groups.graph.tensors[w].nbytes for w in groups.weights_of(ops))
        rows = np.array(lives.get(device, []), dtype=np.int64).reshape(-1, 3)
        sizes, first, last = aligned(rows[:, 0]), rows[:, 1], rows[:, 2]
        arena = allocate(sizes, first, last)
        found[device] = Resident(weights, arena.nbytes, arena.peak, _online(sizes, first, last))
    return found


def _lifetimes(
    parts: Sequence[Storage],
    devices: Sequence[str],
    pool_of: Mapping[str, str],
    times: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> dict[str, list[tuple[int, int, int]]]:
    """Device -> (size, first step, last step) of every tensor in its arena; a step is a group in order of start."""
    start, end, position = times
    order = np.lexsort((position, start))
    step = np.empty(len(start), dtype=np.int64)
    step[order] = np.arange(len(start))
    # What starts before a group ends may run beside it, on another device.
    until = np.maximum(np.searchsorted(start[order], end, side="left") - 1, step)
    lives: dict[str, list[tuple[int, int, int]]] = {}
    for part in parts:
        pools: dict[str, list[int]] = {}
        for g in sorted(part.touched, key=step.__getitem__):
            pools.setdefault(pool_of[devices[g]], []).append(g)
        home = pool_of[devices[part.writer]] if part.writer >= 0 else ""
        for pool, members in pools.items():
            # The room for a copy is taken when the original is made: the copy may arrive at once.
            first = int(step[part.writer]) if part.writer >= 0 else 0
            last = max(int(until[g]) for g in members)
            kept = part.kept and pool == (home or pool)
            holder = devices[part.writer] if pool == home else devices[members[0]]
            lives.setdefault(holder, []).append((part.size, first, len(start) if kept else last))
    return lives


def _online(sizes: np.ndarray, first: np.ndarray, last: np.ndarray) -> int:
    """Robson's bound for these tensors, their sizes rounded up to powers of two."""
    if not len(sizes):
        return 0
    rounded = (2 ** np.ceil(np.log2(sizes))).astype(np.int64)
    return int(robson(peak(rounded, first, last), float(rounded.max()), float(rounded.min())))


@dataclass(frozen=True, slots=True)
class Spill:
    """What a pool keeps at the device `host`, and the share sigma by which that raises its traffic."""

    nbytes: float
    host: str
    sigma: float


def usable(target: Target, pool: str, conditions: Conditions) -> float:
    """Bytes of a pool that a plan may fill."""
    capacity = next(d.memory_bytes.value for d in target.devices if d.pool == pool)
    return capacity * (1 - conditions.reserve)


def spills(
    target: Target, kept: Mapping[str, Resident], traffic: Mapping[str, float], conditions: Conditions
) -> dict[str, Spill]:
    """Pool -> what must stay at the host, for pools that are too small and whose working devices may all spill.

    `traffic` is Q [byte] of each device that works.
    """
    found: dict[str, Spill] = {}
    for pool in dict.fromkeys(d.pool for d in target.devices):
        workers = [d for d in target.devices if d.pool == pool and d.name in traffic]
        surplus = sum(kept[d.name].nbytes for d in workers) - usable(target, pool, conditions)
        moved = sum(traffic[d.name] for d in workers)
        host = next((d.name for d in target.devices if d.kind == "cpu" and d.pool != pool), "")
        if surplus > 0 and moved > 0 and host and all(d.may_spill for d in workers):
            found[pool] = Spill(surplus, host, surplus / moved)
    return found


def pressure(
    target: Target, kept: Mapping[str, Resident], spilled: Mapping[str, Spill], conditions: Conditions
) -> tuple[dict[str, int], dict[str, float]]:
    """Resident bytes and CPQ of each pool; what one pool spills is resident in the host's."""
    pools = {d.pool: 0 for d in target.devices}
    for d in target.devices:
        pools[d.pool] += kept[d.name].nbytes if d.name in kept else 0
    for spill in spilled.values():
        pools[target.device_of(spill.host).pool] += int(spill.nbytes)
    return pools, {pool: n / usable(target, pool, conditions) for pool, n in pools.items()}
