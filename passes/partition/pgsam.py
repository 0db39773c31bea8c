"""PGSAM: several annealing chains over one problem, their archives joined.

Chains are independent and joined in their order, so that neither the number of cores nor their speed changes the
result, unless a time budget cuts the search short.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from qeil_compile.passes.choice import SCALES
from qeil_compile.passes.partition.anneal import anneal, new_walk
from qeil_compile.passes.partition.archive import Archive, new_archive, offer
from qeil_compile.passes.partition.bounds import ambient_leakage
from qeil_compile.passes.partition.chain import front_of_chains
from qeil_compile.passes.partition.kernel import evaluate_all, load, new_state, objectives
from qeil_compile.passes.partition.tables import Tables


@dataclass(frozen=True)
class Search:
    """How long and how the annealer searches.

    Each of `chains` runs `epochs` in which `moves` plans are valued (0: by the size of the problem); `archive` plans
    are kept at most.
    `seconds` cuts the search short after a whole epoch; results are repeatable only without it. `guidance`,
    `momentum` and `repetition` switch parts off for comparison. `jobs` chains run at once (0: one per core).
    """

    seed: int = 0
    chains: int = 1
    epochs: int = 32
    moves: int = 0
    archive: int = 100
    seconds: float | None = None
    guidance: bool = True
    momentum: bool = True
    repetition: bool = True
    jobs: int = 0

    def moves_of(self, t: Tables) -> int:
        """Moves of an epoch."""
        return self.moves or min(max(1200, 3 * t.groups // 2), 10_000)


@dataclass(frozen=True)
class Found:
    """Plans of the archive, and the best of each scalarisation: values float64[plans, 3], places int64[plans, n]."""

    values: np.ndarray
    places: np.ndarray
    best: Mapping[str, tuple[np.ndarray, np.ndarray]]
    evaluations: int


def value_of(t: Tables, place: Sequence[int] | np.ndarray) -> np.ndarray:
    """Latency [s], energy [J], under-utilisation, and violation (0: feasible) of one assignment, float64[4]."""
    return values_of(t, np.asarray(place)[None])[0]


def values_of(t: Tables, places: np.ndarray) -> np.ndarray:
    """The same of assignments [k, n], float64[k, 4]."""
    out = np.zeros((len(places), 4))
    evaluate_all(t, new_state(t), np.asarray(places, dtype=np.int64), out)
    return out


def reference(t: Tables, starts: Sequence[np.ndarray]) -> np.ndarray:
    """Latency and energy of the fastest start, and 1: the units of scalarisations."""
    values = [value_of(t, s) for s in starts]
    best = min(values, key=lambda v: (v[3], v[0]))
    return np.array([max(best[0], 1e-12), max(best[1], 1e-12), 1.0])


def search(t: Tables, starts: Sequence[np.ndarray], settings: Search, scale: np.ndarray | None = None) -> Found:
    """Anneal from some assignments, and from the front of the dynamic programme; those that are not feasible are left
    out. Nothing is found where none is."""
    scale = reference(t, starts) if scale is None else scale
    starts = [*starts, *(_with_ties(t, p) for p in front_of_chains(t, ambient_leakage(t), scale))]
    began = time.perf_counter()
    jobs = min(settings.jobs or os.cpu_count() or 1, settings.chains)
    run = _Chains(t, starts, settings, scale, began)
    if jobs == 1:
        results = [run(k) for k in range(settings.chains)]
    else:
        with ThreadPoolExecutor(jobs) as pool:
            results = list(pool.map(run, range(settings.chains)))
    joined, evaluations = results[0]
    for archive, more in results[1:]:
        evaluations += more
        for k in range(int(archive.filled[0])):
            offer(joined, archive.values[k], archive.places[archive.slot[k]].astype(np.int64))
        for k in range(len(SCALES)):
            if np.isfinite(archive.best_values[k, 0]):
                offer(joined, archive.best_values[k], archive.best_places[k].astype(np.int64))
    n = int(joined.filled[0])
    best = {
        name: (joined.best_values[k].copy(), joined.best_places[k].astype(np.int64))
        for k, name in enumerate(SCALES)
        if np.isfinite(joined.best_values[k, 0])
    }
    return Found(joined.values[:n].copy(), joined.places[joined.slot[:n]].astype(np.int64), best, evaluations)


def _with_ties(t: Tables, place: np.ndarray) -> np.ndarray:
    """Each class of tied groups where its first member is, or else on the first placement that takes all."""
    for g in range(t.groups):
        tied = t.tied[t.tied_ptr[g] : t.tied_ptr[g + 1]]
        if len(tied) and g < tied.min():
            able = t.allowed[[g, *tied]].min(axis=0)
            place[[g, *tied]] = place[g] if able[place[g]] else able.argmax()
    return place


class _Chains:
    """One chain per call."""

    def __init__(
        self, t: Tables, starts: Sequence[np.ndarray], settings: Search, scale: np.ndarray, began: float
    ) -> None:
        self.t, self.starts, self.settings, self.scale, self.began = t, starts, settings, scale, began

    def __call__(self, chain: int) -> tuple[Archive, int]:
        t, settings = self.t, self.settings
        archive = new_archive(t, settings.archive, np.array(list(SCALES.values())), self.scale)
        state, walk, f = new_state(t), new_walk(t), np.zeros(4)
        for start in self.starts:
            load(t, state, np.asarray(start, dtype=np.int64))
            objectives(t, state, f)
            if f[3] == 0:
                offer(archive, f, state.place)
        # splitmix64 of the seed and the chain's number: neighbouring seeds share nothing.
        random = np.array([_scrambled(settings.seed, chain)], dtype=np.uint64)
        if not archive.filled[0]:
            return archive, 0
        evaluations = 0
        for epoch in range(settings.epochs):
            if settings.seconds is not None and time.perf_counter() - self.began > settings.seconds and epoch:
                break
            evaluations += anneal(
                t, state, archive, walk, random, 1, settings.moves_of(t), epoch, settings.guidance, settings.momentum,
                settings.repetition,
            )
        return archive, evaluations


def _scrambled(seed: int, chain: int) -> int:
    mask = 2**64 - 1
    x = (seed * 0x9E3779B97F4A7C15 + chain * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return (x ^ (x >> 31)) or 1
