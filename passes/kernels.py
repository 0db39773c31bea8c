"""The kernels that an engine runs for each group: one kernel per group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qeil_compile.devices.work import KernelTable
from qeil_compile.ir import GroupGraph
from qeil_compile.passes.count import OpCount


def kernel_table(groups: GroupGraph, counts: Sequence[OpCount], engine: str) -> KernelTable:
    """Kernels of `engine` in the order of the groups; bytes inside a kernel do not count."""
    rows = [_row(groups, counts, g.ops) for g in groups.groups]
    heads = [max(g.ops, key=lambda i: counts[i].flops) for g in groups.groups]
    numbers = np.array(rows, dtype=float).reshape(len(rows), 4)
    return KernelTable(
        tuple(counts[i].kind for i in heads),
        tuple(counts[i].dims for i in heads),
        tuple(counts[i].dtype for i in heads),
        tuple(groups.graph.ops[i].short_type for i in heads),
        numbers[:, 0],
        numbers[:, 1],
        numbers[:, 2],
        numbers[:, 3],
        np.arange(len(rows), dtype=np.int64),
    )


def _row(groups: GroupGraph, counts: Sequence[OpCount], ops: Sequence[int]) -> tuple[float, int, int, int]:
    """FLOPs, bytes read, weight bytes, bytes written: what operators hand to one another inside does not count."""
    flops = sum(counts[i].flops for i in ops)
    read, written = sum(counts[i].bytes_in for i in ops), sum(counts[i].bytes_out for i in ops)
    weights = sum(counts[i].bytes_weights for i in ops)
    if len(ops) == 1:
        return flops, read, weights, written
    graph, inside = groups.graph, set(ops)
    outputs = set(groups.outputs_of(ops))
    for i in ops:
        for t in graph.ops[i].outputs:
            if not t:
                continue
            size = graph.tensors[t].nbytes
            read -= sum(min(size, counts[c].bytes_in) for c in graph.consumers.get(t, ()) if c in inside)
            if t not in outputs:
                written -= min(size, counts[i].bytes_out)
    return flops, max(read, 0), weights, max(written, 0)
