"""Row 2: latency of whole models on GPUs whose measurements were left out of the fit.

A model's time is the sum over its kernels, each priced alone: eager PyTorch runs them one after the other, and the
host keeps ahead of the GPU. The kernels' shapes come from an operator trace of the same model, of any device;
labels of models without a trace are not reported, and the note says how many.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qeil_compile.devices.gpu import gpu_seconds
from qeil_compile.devices.gpu_spec import GpuSpec
from qeil_compile.errors import InputError

from .gpu_data import Samples, as_json, read_samples, spec_of, table_of
from .gpu_fit import WIDE, Fitted
from .gpu_latency import CHOSEN, family_of, held_out, roofline
from .report import Claim, Point, claim
from .traces import Traced, read_trace

GOAL = 12.0
#: Launch of a kernel in a queue that is never empty [s]; the host's own time is hidden behind the GPU.
_LAUNCH = 5e-6


def evaluate(data: Path, splits: Mapping[str, Any], fit_data: Path) -> list[Claim]:
    """One claim over every (device, model) with a label and a trace; [] where there are none."""
    family = family_of(splits["gpu_latency"])
    labels, traces = read_labels(data), _traces(data)
    # No traced model convolves: groups are fitted one by one, so that leaving this one out changes no other.
    fitting = [s for s in all_samples(fit_data, splits["gpu_latency"]) if s.op != "conv"]
    fits: dict[str, Fitted] = {}
    points, without = [], []
    for (device, model), label in sorted(labels.items()):
        path = traces.get((device, model)) or next((p for (_, m), p in traces.items() if m == model), None)
        spec = _spec(device, data, fit_data)
        if not path or not spec:
            without.append(f"{device} {model}")
            continue
        left_out = family(spec.name)
        if left_out not in fits:
            fits[left_out] = held_out(fitting, family, left_out, fit_data)
        points.append(_point(spec, model, label, read_trace(path), fits[left_out], left_out))
    return [_claim(points, without)] if points else []


def all_samples(folder: Path, latency: Mapping[str, Any]) -> list[Samples]:
    """Everything that the kernel model is fitted on: the per-kernel sets and the products of `trace_samples`."""
    return read_samples(folder, latency["fit"], latency.get("stride", {})) + trace_samples(folder)


def read_labels(folder: Path) -> dict[tuple[str, str], dict[str, float]]:
    """NeuSight's labels by (device with underscores, model): num_layer, fw_latency [ms]. Raises `InputError`."""
    path = folder / "neusight" / "label_e2e.txt"
    found: dict[tuple[str, str], dict[str, float]] = {}
    if not path.is_file():
        return found
    for number, line in enumerate(path.read_text("utf-8").splitlines()):
        try:
            device, model, text = line.strip().split(",", 2)
            label = json.loads(text.replace(";", ","))
            needed = {k: label[k] for k in ("num_layer", "fw_latency")}
            # Some models have no one kind of layer: nothing can be said of them.
            if None not in needed.values():
                found[device, model] = {k: float(v) for k, v in needed.items()}
        except (KeyError, TypeError, ValueError) as exc:
            raise InputError(
                f"{path}: line {number + 1}: found {exc!r}, expected device,model,{{label with num_layer, fw_latency}}"
            ) from exc
    return found


def trace_samples(folder: Path) -> list[Samples]:
    """Products from the traces of boards that run fp32 on matrix units: no other set times those."""
    found = []
    for (device, model), path in sorted(_traces(folder).items()):
        spec = _spec(device, folder, folder)
        if not spec or "fp32" not in spec.matrix:
            continue
        products = [t for t in read_trace(path) if t.kernel[0] == "gemm" and t.seconds > 0]
        if products:
            seconds = np.array([t.seconds for t in products])
            table = table_of([t.kernel for t in products])
            found.append(Samples(f"neusight/label {model}", spec.name, WIDE, "launch_operator", table, seconds))
    return found


def _traces(folder: Path) -> dict[tuple[str, str], Path]:
    paths = sorted((folder / "neusight" / "label").glob("*__*.csv.gz"))
    return {(p.name.partition("__")[0], p.name.partition("__")[2].removesuffix(".csv.gz")): p for p in paths}


def _spec(device: str, data: Path, fit_data: Path) -> GpuSpec | None:
    """Labels write a device's name as its file is called."""
    for folder in (data, fit_data):
        path = folder / "neusight" / "device_configs" / f"{device}.json"
        if path.is_file():
            return spec_of(json.loads(path.read_text())["Device"], folder)
    return None


def _point(
    spec: GpuSpec, model: str, label: Mapping[str, float], trace: list[Traced], fitted: Fitted, left_out: str
) -> Point:
    times = np.array([label["num_layer"] if t.layered else 1.0 for t in trace])
    table = table_of([t.kernel for t in trace])
    sustained = replace(spec, sustained=True, launch=_LAUNCH)
    seconds = float(np.sum(times * gpu_seconds(sustained, table, fitted.coefficients)))
    naive = float(np.sum(times * roofline(spec, table)))
    return Point(f"{spec.name} {model}", left_out, label["fw_latency"] * 1e-3, seconds, {"roofline": naive})


def _claim(points: list[Point], without: list[str]) -> Claim:
    errors: dict[str, list[float]] = {}
    for p in points:
        errors.setdefault(p.name.rpartition(" ")[0], []).append((p.model / p.measured - 1) * 100)
    by_device = {d: [round(float(np.mean(np.abs(e))), 1), round(float(np.mean(e)), 1)] for d, e in errors.items()}
    note = (
        f"each chip left out of the fit with all its boards; {CHOSEN}; "
        f"by device [MAPE, mean error] {as_json(by_device)}; "
        f"{len(without)} labels without a trace (training, fused and distributed runs, gpt3_27, switch) not reported"
    )
    return claim("end-to-end latency, GPU left out", "neusight", GOAL, points, note=note)
