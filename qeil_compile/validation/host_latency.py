"""Whole-model latency on this machine, from a calibration that never saw the models.

For each engine and number of threads: time the models in another process, calibrate, and time them again. The
prediction is the calibrated price of the model's kernels plus the call of the engine. Measured is the median over
the quiet rounds (`calibration.rounds`) of the fastest call in a round, for both: what a neighbour on a shared machine
takes away is in neither.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from qeil_compile.calibration import calibrate, stored
from qeil_compile.calibration.rounds import typical
from qeil_compile.devices.calibrated import Calibration
from qeil_compile.errors import BackendError, QeilError
from qeil_compile.passes.count import count
from qeil_compile.passes.fuse import fuse
from qeil_compile.passes.kernels import kernel_table

from .host_models import host_models
from .report import Claim, Point, claim

ENGINES = ("onnxruntime:CPU", "openvino:CPU")
Progress = Callable[[str, float], None]


def evaluate(
    folder: Path,
    threads: Sequence[int] = (1, 2),
    seconds: float = 60.0,
    rounds: int = 5,
    progress: Progress = lambda spec, share: None,
    specs: Sequence[str] = ENGINES,
) -> list[Claim]:
    """Median and worst error over models, placements and numbers of threads; `seconds` calibrates one of them once.

    `seconds` 0 takes the calibrations that are stored. Raises `QeilError` where there is none.
    """
    graphs = {}
    for name, build in host_models(folder).items():
        graph = build().graph.priced()
        graphs[name] = graph, count(graph)
    points: list[Point] = []
    notes: list[str] = []
    for spec in specs:
        engine, _, device = spec.partition(":")
        for n in threads:
            # Before and after, so that both see the machine in the same state: a neighbour stays for a minute.
            before = _measure(folder, engine, device, n, rounds)
            calibration = _calibration(spec, n, seconds, progress)
            measured = _measure(folder, engine, device, n, rounds)
            notes += [f"{spec} does not run {m}: {reason}" for m, reason in measured["refused"].items()]
            both = {m: [*before["seconds"][m], *times] for m, times in measured["seconds"].items()}
            for name, times in typical(both).items():
                graph, counts = graphs[name]
                kernels = kernel_table(fuse(graph, counts), counts, engine)
                model = calibration.call(len(graph.inputs) + len(graph.outputs)) + float(
                    calibration.seconds(kernels).sum()
                )
                label = f"{name}, {spec}, {n} thread{'s' * (n > 1)}"
                roofline = _roofline(calibration, kernels.flops, kernels.nbytes)
                points.append(Point(label, name, float(np.median(times)), model, {"roofline": roofline}))
    note = "; ".join(dict.fromkeys(notes))
    common = {"unit": "%", "note": note}
    return [
        claim("latency of whole models on this host, median error", "this machine", 5.0, points,
              metric=_median_error, metric_name="median absolute error", **common),  # type: ignore[arg-type]
        claim("latency of whole models on this host, worst error", "this machine", 15.0, points,
              metric=_worst_error, metric_name="largest absolute error", **common),  # type: ignore[arg-type]
    ]  # fmt: skip


def _calibration(spec: str, threads: int, seconds: float, progress: Progress) -> Calibration:
    if seconds:
        found = calibrate([spec], [threads], seconds, progress)[0]
        if found.calibration is None:
            raise QeilError(f"{spec}: cannot be calibrated ({found.reason})")
        return found.calibration
    kept = stored([spec], threads).found.get(spec)
    if kept is None:
        raise QeilError(f"{spec} at {threads} threads: no calibration is stored; run `qeil calibrate` first")
    return kept


def _measure(
    folder: Path, engine: str, device: str, threads: int, rounds: int
) -> Mapping[str, Mapping[str, list[float]]]:
    command = [
        sys.executable, "-m", f"{__package__}.host_worker", str(folder), engine, device, str(threads), str(rounds)
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [x for x in done.stdout.splitlines() if x.startswith("{")]
    if done.returncode or not lines:
        reason = next((x for x in reversed(done.stderr.splitlines()) if x.strip()), f"exit status {done.returncode}")
        raise BackendError(f"{engine}:{device}: the measuring process failed ({reason.strip()[:200]})")
    return json.loads(lines[-1])


def _roofline(calibration: Calibration, flops: np.ndarray, nbytes: np.ndarray) -> float:
    """The naive roofline with this machine's own best rates: no launches, no shapes, no caches."""
    rate = max(p[2] for f, p in calibration.families.items() if f.startswith(("gemm", "conv")))
    return float(np.maximum(flops / rate, nbytes / calibration.memory.memory).sum())


def _errors(measured: np.ndarray, model: np.ndarray) -> np.ndarray:
    return np.abs(model - measured) / measured * 100.0


def _median_error(measured: np.ndarray, model: np.ndarray) -> float:
    return float(np.median(_errors(measured, model)))


def _worst_error(measured: np.ndarray, model: np.ndarray) -> float:
    return float(np.max(_errors(measured, model)))
