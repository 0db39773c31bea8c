"""A stage sequence over a cost table: what each stage reads and writes, and what moves between devices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qeil_compile.passes.costs import CostTable
from qeil_compile.passes.timeline import Move
from qeil_compile.plan import Transfer

#: (placement, groups in order) of each stage, in an order of execution.
Sequence_ = Sequence[tuple[int, tuple[int, ...]]]


class Layout:
    """The sequence, seen by stage: operators, tensors that enter and leave, boundary [s], device.

    `transfers` with their `moves` are one per tensor and device that reads it from another one's memory.
    `after[k]` are the stages that stage k reads from without a transfer, `arrivals[k]` the moves that it waits for.
    """

    def __init__(self, costs: CostTable, sequence: Sequence_) -> None:
        self.costs, self.sequence = costs, sequence
        groups, places = costs.groups, costs.placements
        self.place = np.zeros(len(groups.groups), dtype=np.int64)
        self.stage = np.zeros(len(groups.groups), dtype=np.int64)
        for k, (p, members) in enumerate(sequence):
            self.place[list(members)], self.stage[list(members)] = p, k
        self.ops = [sorted(i for g in members for i in groups.groups[g].ops) for _, members in sequence]
        self.inputs = [groups.inputs_of(ops) for ops in self.ops]
        self.outputs = [groups.outputs_of(ops) for ops in self.ops]
        self.device = [places[p].profile.name for p, _ in sequence]
        self.device_of_group = [places[p].profile.name for p in self.place]
        self.boundary = [
            costs.boundary(sequence[k - 1][0], p) if k else costs.entry(p) for k, (p, _) in enumerate(sequence)
        ]
        self.moves: list[Move] = []
        self.after: list[tuple[int, ...]] = []
        self.arrivals: list[tuple[int, ...]] = []
        self.transfers = self._wire()

    def pick(self, table: np.ndarray) -> np.ndarray:
        """The entry of each group where it is placed, float64[groups]."""
        return table[np.arange(len(self.place)), self.place]

    def per_stage(self, values: np.ndarray) -> np.ndarray:
        """Sums of a value per group by stage, float64[stages]."""
        return np.bincount(self.stage, values, len(self.sequence))

    def _wire(self) -> tuple[Transfer, ...]:
        writer: dict[str, int] = {}
        there: dict[tuple[str, str], int] = {}
        transfers: list[Transfer] = []
        for k in range(len(self.sequence)):
            sources: dict[int, None] = {}
            arrivals: list[int] = []
            for t in self.inputs[k]:
                source = writer.get(t, -1)
                if source < 0:
                    continue
                if self.device[source] == self.device[k]:
                    sources[source] = None
                    continue
                key = t, self.device[k]
                if key not in there:
                    there[key] = self._transfer(t, source, k, transfers)
                if there[key] < 0:
                    sources[source] = None
                else:
                    arrivals.append(there[key])
            self.after.append(tuple(sources))
            self.arrivals.append(tuple(arrivals))
            writer.update((t, k) for t in self.outputs[k])
        return tuple(transfers)

    def _transfer(self, tensor: str, source: int, target: int, transfers: list[Transfer]) -> int:
        """Number of the move, or -1 where it takes no time: in one memory."""
        nbytes = self.costs.groups.graph.tensors[tensor].nbytes
        seconds, joules = self.costs.transfer(self.sequence[source][0], self.sequence[target][0], nbytes)
        transfers.append(Transfer(tensor, nbytes, source, target, seconds, joules))
        if not seconds:
            return -1
        a, b = self.device[source], self.device[target]
        self.moves.append(Move((min(a, b), max(a, b)), source, seconds))
        return len(self.moves) - 1
