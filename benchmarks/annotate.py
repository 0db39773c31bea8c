"""Time and memory to annotate a traced 8B decoder for every shipped target.

python benchmarks/annotate.py [--quick] [--repeat N] [--json FILE]

The decoder has the shape of Llama 3 8B (a two-layer one if quick) and lives on the meta device: no weight exists.
Tracing is torch's time and is shown apart; everything after it is in the sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import Report, options, publish

from qeil_compile.validation.annotation import measure


def main() -> None:
    """Run the benchmark."""

    def more(parser: Any) -> None:
        parser.add_argument("--repeat", type=int, default=None)

    args = options(__doc__ or "", more)
    laps = measure(2 if args.quick else 32, args.repeat or (1 if args.quick else 7))
    report = Report(
        "annotate", "Annotating a decoder without weights", ("step", "median [s]", "least [s]", "most [s]")
    )
    for step in laps.rounds[0]:
        values = np.array([r[step] for r in laps.rounds])
        report.rows.append({"step": step, "median [s]": float(np.median(values)), "least [s]": float(values.min()),
                            "most [s]": float(values.max())})  # fmt: skip
    devices = {(t.name, d.name) for t in laps.targets for d in t.devices}
    graph = laps.traced.graph
    report.notes = [
        f"{len(graph.ops)} operators, {graph.weight_bytes / 1e9:.2f} GB of weights (none in memory), "
        f"{len(laps.targets)} targets with {len(devices)} devices and "
        f"{sum(len(t.placements) for t in laps.targets)} placements",
        f"traced in {laps.traced.seconds:.2f} s; peak memory of the process grew by {laps.growth / 1e6:.1f} MB",
    ]
    publish([report], args, "annotate", peak_growth_bytes=laps.growth, weight_bytes=graph.weight_bytes)


if __name__ == "__main__":
    main()
