"""Row 1: latency of single kernels on GPUs whose measurements were left out of the fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qeil_compile.devices.gpu_spec import GpuSpec
from qeil_compile.devices.work import KernelTable

from .gpu_data import Samples, as_json, describe, gemm_like, read_samples, spec_of
from .gpu_fit import Fitted, fit
from .report import Claim, Point, claim

GOAL_GEMM, GOAL_ALL = 15.0, 25.0
#: What a reader must know of every claim on these few boards.
CHOSEN = (
    "coefficients saw nothing of the chip; the model's form and the weights of the fit were chosen looking at these "
    "same leave-one-out errors, so that only sets kept aside test them cleanly"
)
_DATASETS = "neusight, vidur, llmservingsim"


def roofline(spec: GpuSpec, table: KernelTable) -> np.ndarray:
    """Naive roofline time [s] of every kernel: the larger of FLOPs over peak and bytes over bandwidth."""
    wide = spec.peak.get("fp16", spec.peak["fp32"])
    peak = np.array([spec.peak["fp32"] if d == "float32" else wide for d in table.dtypes])
    return np.asarray(np.maximum(table.flops / peak, table.nbytes / spec.bandwidth))


def family_of(splits: Mapping[str, Any]) -> Callable[[str], str]:
    """The family of a device: all boards of one chip; a device that no family names is its own."""
    families = {device: name for name, devices in splits.get("families", {}).items() for device in devices}
    return lambda device: families.get(device, device)


def held_out(fitting: list[Samples], family: Callable[[str], str], left_out: str, folder: Path) -> Fitted:
    """A fit that saw nothing of a family."""
    return fit([s for s in fitting if family(s.device) != left_out], folder)


def evaluate(data: Path, splits: Mapping[str, Any], fit_data: Path) -> list[Claim]:
    """Claims for products and for all kinds, over every point of `data`; [] where none of the sets is there."""
    table = splits["gpu_latency"]
    stride, family = table.get("stride", {}), family_of(table)
    reported = read_samples(data, table["report"], stride)
    fitting = read_samples(fit_data, table["fit"], stride)
    points: list[tuple[Samples, list[Point]]] = []
    unknown = sorted({s.device for s in reported if not _spec(s.device, data, fit_data)})
    for left_out in sorted({family(s.device) for s in reported if s.device not in unknown}):
        fitted = held_out(fitting, family, left_out, fit_data)
        for samples in reported:
            spec = _spec(samples.device, data, fit_data)
            if spec and family(samples.device) == left_out:
                points.append((samples, _points(samples, spec, fitted, left_out)))
    return _claims(points, unknown) if points else []


def _spec(device: str, data: Path, fit_data: Path) -> GpuSpec | None:
    return spec_of(device, data) or spec_of(device, fit_data)


def _points(samples: Samples, spec: GpuSpec, fitted: Fitted, left_out: str) -> list[Point]:
    model, naive = fitted.seconds(samples, spec), roofline(spec, samples.table)
    return [
        Point(f"{samples.device} {describe(samples, i)}", left_out, float(y), float(t), {"roofline": float(n)})
        for i, (y, t, n) in enumerate(zip(samples.seconds, model, naive, strict=True))
    ]


def _claims(points: list[tuple[Samples, list[Point]]], unknown: list[str]) -> list[Claim]:
    products = [(s, p) for s, p in points if gemm_like(s.table.kinds[0])]
    skipped = f"; no data sheet, left out: {', '.join(unknown)}" if unknown else ""
    split = f"each chip left out of the fit with all its boards{skipped}; {CHOSEN}. "
    rows = []
    for name, goal, chosen in (
        ("GEMM latency, GPU left out", GOAL_GEMM, products),
        ("latency of all kinds, GPU left out", GOAL_ALL, points),
    ):
        if chosen:
            note = split + _breakdown(chosen)
            rows.append(claim(name, _DATASETS, goal, [q for _, p in chosen for q in p], note=note))
    return rows


def _breakdown(points: list[tuple[Samples, list[Point]]]) -> str:
    by_kind = _mape_by(points, lambda s: s.table.kinds[0])
    even = float(np.mean(list(by_kind.values())))
    by_device = _mape_by(points, lambda s: s.device)
    return f"MAPE [%] by kind {as_json(by_kind)} (kinds weighted evenly: {even:.1f}); by device {as_json(by_device)}"


def _mape_by(points: list[tuple[Samples, list[Point]]], key: Callable[[Samples], str]) -> dict[str, float]:
    errors: dict[str, list[float]] = {}
    for samples, group in points:
        errors.setdefault(key(samples), []).extend(abs(p.model / p.measured - 1) * 100 for p in group)
    return {k: round(float(np.mean(v)), 1) for k, v in sorted(errors.items())}
