"""Time and memory to annotate a traced 8B decoder for every shipped target.

python benchmarks/annotate.py [--quick] [--repeat N] [--json FILE]

The decoder has the shape of Llama 3 8B (a two-layer one if quick) and lives on the meta device: no weight exists.
Tracing is torch's time and is shown apart; everything after it is in the sum.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from common import Report, options, publish

from qeil_compile.devices import Target, known_targets, load_target
from qeil_compile.frontends import Traced, trace
from qeil_compile.passes.annotate import annotate, kernel_tables
from qeil_compile.passes.count import count
from qeil_compile.passes.fuse import fuse

TOKENS = 128


def decoder(quick: bool) -> Traced:
    """A decoder without weights, traced for a prompt of 128 tokens."""
    import torch

    from qeil_compile.models.llama2c import LLAMA_3_8B, LlamaDecoder

    with torch.device("meta"):
        config = replace(LLAMA_3_8B, layers=2) if quick else LLAMA_3_8B
        model = LlamaDecoder(config, seed=None).to(torch.bfloat16).eval()
        return trace(model, (torch.zeros(1, TOKENS, dtype=torch.int64),))


def once(traced: Traced, targets: list[Target]) -> dict[str, float]:
    """Seconds of each step, for all targets together."""
    laps: dict[str, float] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        before = time.perf_counter()
        found = step()
        laps[name] = time.perf_counter() - before
        return found

    graph = traced.graph.priced()  # a new one: what an earlier round derived from its own would be cached
    counts = timed("count", lambda: count(graph))
    groups = timed("group", lambda: fuse(graph, counts))
    kernels = timed("kernels of each engine", lambda: kernel_tables(groups, counts, targets))
    timed("annotate, all targets", lambda: [annotate(groups, counts, t, kernels=kernels) for t in targets])
    return laps | {"sum": sum(laps.values())}


def main() -> None:
    """Run the benchmark."""

    def more(parser: Any) -> None:
        parser.add_argument("--repeat", type=int, default=None)

    args = options(__doc__ or "", more)
    traced = decoder(args.quick)
    targets = [load_target(name) for name in known_targets()]
    before = peak_rss()
    runs = []
    for _ in range(args.repeat or (1 if args.quick else 7)):
        gc.collect()
        runs.append(once(traced, targets))
    growth = peak_rss() - before
    report = Report(
        "annotate", "Annotating a decoder without weights", ("step", "median [s]", "least [s]", "most [s]")
    )
    for step in runs[0]:
        values = np.array([r[step] for r in runs])
        report.rows.append({"step": step, "median [s]": float(np.median(values)), "least [s]": float(values.min()),
                            "most [s]": float(values.max())})  # fmt: skip
    devices = {(t.name, d.name) for t in targets for d in t.devices}
    report.notes = [
        f"{len(traced.graph.ops)} operators, {traced.graph.weight_bytes / 1e9:.2f} GB of weights (none in memory), "
        f"{len(targets)} targets with {len(devices)} devices and {sum(len(t.placements) for t in targets)} placements",
        f"traced in {traced.seconds:.2f} s; peak memory of the process {peak_rss() / 1e6:.0f} MB with torch, "
        f"{growth / 1e6:.1f} MB of it since tracing",
    ]
    publish([report], args, "annotate", peak_growth_bytes=growth, weight_bytes=traced.graph.weight_bytes)


def peak_rss() -> int:
    """Most bytes that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
