"""Where each tensor lies in one block of memory that tensors share over time.

Offsets are given greedily, largest tensor first, each into the smallest gap that it fits between the tensors that
live at the same time ["greedy by size": Pisarchyk, Lee, "Efficient memory management for deep neural net
inference", arXiv 2001.03288, 2020]. The most bytes that live at once are a lower bound for any assignment.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

import numpy as np

#: Engines align buffers to cache lines.
ALIGNMENT = 64


@dataclass(frozen=True)
class Arena:
    """Offsets [byte] int64[tensors], the size of the block, and the most bytes that live at once."""

    offsets: np.ndarray
    nbytes: int
    peak: int

    @property
    def fragmentation(self) -> float:
        """Share by which the block is larger than what lives at once."""
        return self.nbytes / self.peak - 1 if self.peak else 0.0


def aligned(sizes: np.ndarray, alignment: int = ALIGNMENT) -> np.ndarray:
    """Sizes rounded up to whole units of the alignment, int64."""
    return -(-np.asarray(sizes, dtype=np.int64) // alignment) * alignment


def allocate(sizes: np.ndarray, first: np.ndarray, last: np.ndarray) -> Arena:
    """Place tensors of `sizes` [byte] that live from step `first` to step `last`, both included (int64[tensors])."""
    count = len(sizes)
    offsets = np.zeros(count, dtype=np.int64)
    order = np.lexsort((first, -sizes))
    ends, begins, until = (np.zeros(count, dtype=np.int64) for _ in range(3))
    starts = np.zeros(count, dtype=np.int64)
    for k, i in enumerate(order):
        beside = (begins[:k] <= last[i]) & (until[:k] >= first[i])
        offsets[i] = _fit(starts[:k][beside], ends[:k][beside], int(sizes[i]))
        starts[k], ends[k], begins[k], until[k] = offsets[i], offsets[i] + sizes[i], first[i], last[i]
    return Arena(offsets, int(ends.max(initial=0)), peak(sizes, first, last))


def _fit(starts: np.ndarray, ends: np.ndarray, size: int) -> int:
    """Offset of the smallest gap between taken ranges that holds `size`; behind all of them if none does."""
    if not len(starts):
        return 0
    order = np.argsort(starts, kind="stable")
    reach = np.maximum.accumulate(ends[order])
    before = np.concatenate(([0], reach[:-1]))
    gaps = starts[order] - before
    fits = np.flatnonzero(gaps >= size)
    return int(before[fits[gaps[fits].argmin()]]) if len(fits) else int(reach[-1])


def peak(sizes: np.ndarray, first: np.ndarray, last: np.ndarray) -> int:
    """Most bytes that live at once: no assignment of offsets needs less."""
    if not len(sizes):
        return 0
    change = np.zeros(int(last.max()) + 2, dtype=np.int64)
    np.add.at(change, first, sizes)
    np.add.at(change, last + 1, -np.asarray(sizes))
    return int(change.cumsum().max())


def robson(live: float, largest: float, smallest: float) -> float:
    """Bytes that the best allocator needs which places blocks as they come and never moves them, at worst.

    With M the most live bytes and n the largest block, both in units of the smallest, and sizes that are powers
    of two: M (log2(n) / 2 + 1) - n + 1 [Robson, "Bounds for some functions concerning dynamic storage allocation",
    JACM 21(3), 1974]. Sizes in between are rounded up, which at most doubles M and n.
    """
    if live <= 0:
        return 0.0
    n = largest / smallest
    return smallest * (live / smallest * (log2(n) / 2 + 1) - n + 1)
