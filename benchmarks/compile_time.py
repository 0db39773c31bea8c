"""Time from the start of a compilation to the artifact on disk, and back, by step.

python benchmarks/compile_time.py [--quick] [--repeat N] [--target T] [--json FILE]

GPT-2 125M with random weights (the small MLP of the tests if quick), compiled for the host as
`qeil compile` does it, measured against each single device, saved, and loaded again with all hashes checked.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import Report, options, publish, zoo

from qeil_compile.api import Settings, aot_compile, load


def once(target: str, quick: bool, length: int) -> tuple[dict[str, float], int]:
    """Seconds of each step, and the size of the artifact."""
    import torch

    from qeil_compile.models.gpt2 import GPT2

    if quick:
        model, inputs = zoo().mlp(), zoo().EXAMPLES["mlp"]()
    else:
        tokens = torch.randint(0, 50257, (1, length), generator=torch.Generator().manual_seed(0))
        model, inputs = GPT2().eval(), (tokens,)
    compiled = aot_compile(model, inputs, settings=Settings(target=target))
    seconds = dict(compiled.seconds)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.qeil"
        seconds["write"] = _timed(lambda: compiled.save(path))
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        loaded: list[Any] = []
        seconds["load (hashes checked)"] = _timed(lambda: loaded.append(load(path)))
        seconds["start engines after load"] = _timed(lambda: loaded[0].start())
        seconds["first run after load"] = _timed(lambda: loaded[0].run(compiled.golden.inputs))
    return seconds, size


def _timed(call: Any) -> float:
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def main() -> None:
    """Run the benchmark."""

    def more(parser: Any) -> None:
        parser.add_argument("--repeat", type=int, default=None)
        parser.add_argument("--target", default="host")
        parser.add_argument("--length", type=int, default=64, help="tokens of the sample input")

    args = options(__doc__ or "", more)
    runs = [once(args.target, args.quick, args.length) for _ in range(args.repeat or (1 if args.quick else 3))]
    title = f"From model to artifact: {'MLP' if args.quick else 'GPT-2 125M'} on {args.target}, {len(runs)} runs"
    report = Report("compile_time", title, ("step", "median [s]", "least [s]", "most [s]"))
    last = "write"
    steps = list(runs[0][0])
    for step in steps:
        values = np.array([r[0][step] for r in runs])
        report.rows.append(_row(step, values))
        if step == last:
            total = [sum(r[0][s] for s in steps[: steps.index(last) + 1]) for r in runs]
            report.rows.append(_row("compile to artifact, in all", np.array(total)))
    report.notes = [f"artifact: {runs[0][1] / 1e6:.1f} MB"]
    publish([report], args, "compile_time")


def _row(step: str, values: np.ndarray) -> dict[str, Any]:
    return {"step": step, "median [s]": float(np.median(values)), "least [s]": float(values.min()),
            "most [s]": float(values.max())}  # fmt: skip


if __name__ == "__main__":
    main()
