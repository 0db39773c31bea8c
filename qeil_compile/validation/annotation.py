"""How long it takes to annotate a decoder of 8 billion weights for every device of the catalogue, without weights."""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qeil_compile.devices import Target
from qeil_compile.devices.loader import known_devices, known_targets, load_target
from qeil_compile.frontends import Traced, trace
from qeil_compile.passes.annotate import annotate, kernel_tables
from qeil_compile.passes.count import count
from qeil_compile.passes.fuse import fuse

from .report import Claim, Point

_TOKENS = 128


@dataclass(frozen=True)
class Laps:
    """Seconds of each step for all targets, round by round, and growth of the process's peak memory [B]."""

    traced: Traced
    targets: Sequence[Target]
    rounds: Sequence[dict[str, float]]
    growth: int


def measure(layers: int = 32, rounds: int = 5) -> Laps:
    """Trace a decoder of the shape of Llama 3 8B on the meta device, then count, group and price it in rounds."""
    import torch

    from qeil_compile.models.llama2c import LLAMA_3_8B, LlamaDecoder

    with torch.device("meta"):
        model = LlamaDecoder(replace(LLAMA_3_8B, layers=layers), seed=None).to(torch.bfloat16).eval()
        traced = trace(model, (torch.zeros(1, _TOKENS, dtype=torch.int64),))
    targets = [load_target(name) for name in (*known_targets(), *known_devices())]
    before, found = _peak_memory(), []
    for _ in range(rounds):
        gc.collect()
        found.append(_once(traced, targets))
    return Laps(traced, targets, found, _peak_memory() - before)


def _once(traced: Traced, targets: Sequence[Target]) -> dict[str, float]:
    laps: dict[str, float] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        before = time.perf_counter()
        found = step()
        laps[name] = time.perf_counter() - before
        return found

    # A fresh graph: what an earlier round derived from it would be cached.
    graph = replace(traced.graph).priced()
    counts = timed("count", lambda: count(graph))
    groups = timed("group", lambda: fuse(graph, counts))
    kernels = timed("kernels of each engine", lambda: kernel_tables(groups, counts, targets))
    timed("annotate, all targets", lambda: [annotate(groups, counts, t, kernels=kernels) for t in targets])
    return laps | {"sum": sum(laps.values())}


def _peak_memory() -> int:
    """Most bytes that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def evaluate() -> list[Claim]:
    """The median time of all steps together, in seconds."""
    laps = measure()
    seconds = float(np.median([r["sum"] for r in laps.rounds]))
    devices = {(t.name, d.name) for t in laps.targets for d in t.devices}
    graph = laps.traced.graph
    note = (
        f"{len(graph.ops)} operators, {graph.weight_bytes / 1e9:.1f} GB of weights of which none is in memory (peak "
        f"grew by {laps.growth / 1e6:.0f} MB), {len(laps.targets)} targets with {len(devices)} devices and "
        f"{sum(len(t.placements) for t in laps.targets)} placements; tracing takes {laps.traced.seconds:.1f} s more"
    )
    points = tuple(Point(f"round {i}", "", r["sum"], r["sum"]) for i, r in enumerate(laps.rounds))
    return [
        Claim(
            "annotating a traced 8B model for every device",
            "this machine",
            "median",
            "s",
            1.0,
            seconds,
            {},
            points[:1],
            note,
        )
    ]
