"""`calibrate`: measure every engine and device of this machine, fit, and store what was found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from qeil_compile.backends import backend, found_devices
from qeil_compile.devices import calibrations
from qeil_compile.devices.calibrated import Calibration, Rows, recorded
from qeil_compile.devices.cpuinfo import cache_bytes, cpu_facts, vector_lanes
from qeil_compile.devices.work import KernelTable
from qeil_compile.errors import BackendError, QeilError
from qeil_compile.frontends import trace
from qeil_compile.ir import OpGraph
from qeil_compile.passes.count import OpCount, count
from qeil_compile.passes.fuse import fuse
from qeil_compile.passes.kernels import kernel_table

from .fit import COMPOSITE, Fitted, Sample, fit
from .rounds import typical

#: Graph, counts and kind of a network.
Counted = tuple[OpGraph, Sequence[OpCount], str]
#: Called with the placement and the share of its measurements that is done.
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Outcome:
    """One placement at one number of threads: its calibration and where it is stored, or why there is none."""

    spec: str
    threads: int
    calibration: Calibration | None = None
    path: str = ""
    reason: str = ""


def default_specs() -> list[str]:
    """Every placement that works on this machine."""
    return [d.spec for d in found_devices() if d.available]


def calibrate(
    specs: Sequence[str], threads: Sequence[int], seconds: float, progress: Progress = lambda spec, share: None
) -> list[Outcome]:
    """Measure, fit and store each placement at each number of threads, in `seconds` in all (never fewer than two
    rounds each). Devices that are no CPU are measured once. Raises `QeilError` where results cannot be stored.
    """
    jobs = [(s, t) for s in specs for t in (threads if _is_cpu(s) else (0,))]
    calibrations.check_folder()
    graphs = _graphs()
    outcomes: list[Outcome] = []
    for spec, n in jobs:
        engine, _, device = spec.partition(":")
        try:
            measured = _measure(engine, device, n, seconds / len(jobs), lambda share, s=spec: progress(s, share))  # type: ignore[misc]
        except BackendError as error:
            outcomes.append(Outcome(spec, n, reason=str(error)))
            continue
        found = _fitted(engine, device, n, measured, graphs)
        outcomes.append(Outcome(spec, n, found, str(calibrations.save(found))))
    return outcomes


def stored(specs: Sequence[str], threads: int) -> calibrations.Calibrations:
    """What earlier calibrations left for these placements, at today's engine versions (0 threads: one per core)."""
    wanted = []
    for spec in specs:
        engine, _, device = spec.partition(":")
        wanted.append((engine, _version(engine, device), device))
    return calibrations.load(wanted, threads or cpu_facts().cores)


def _version(engine: str, device: str) -> str:
    """Of the engine, and on what board: folders of users are shared by machines whose processors alone are the same."""
    spec, version = f"{engine}:{device}", backend(engine).version()
    if _is_cpu(spec):
        return version
    board = next((d.description for d in found_devices([engine]) if d.spec == spec and d.available), "")
    return f"{version} on {board}" if board else version


def _is_cpu(spec: str) -> bool:
    return spec.partition(":")[2].lower().startswith("cpu")


def _measure(
    engine: str, device: str, threads: int, seconds: float, progress: Callable[[float], None]
) -> Mapping[str, Any]:
    """The worker's result. Raises `BackendError` when it fails."""
    command = [sys.executable, "-m", f"{__package__}.worker", engine, device, str(threads), f"{seconds:.1f}"]
    # A process of its own: an engine's spinning threads must not disturb the next engine.
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        last: Mapping[str, Any] = {}
        for line in process.stdout:
            if line.startswith("{"):  # engines print on standard output as well
                last = json.loads(line)
            if "done" in last:
                progress(float(last["done"]))
        noise = process.stderr.read()
    if process.returncode or "seconds" not in last:
        reason = next((x for x in reversed(noise.splitlines()) if x.strip()), f"exit status {process.returncode}")
        raise BackendError(f"{engine}:{device}: the measuring process failed ({reason.strip()[:200]})")
    return last


def _fitted(
    engine: str, device: str, threads: int, measured: Mapping[str, Any], graphs: Mapping[str, Counted]
) -> Calibration:
    rounds = typical(measured["seconds"])
    tables = {n: kernel_table(fuse(g, c), c, engine) for n, (g, c, _) in graphs.items() if n in rounds}
    tensors = {n: len(g.inputs) + len(g.outputs) for n, (g, _, _) in graphs.items()}
    composite = {n: kind == COMPOSITE for n, (_, _, kind) in graphs.items()}
    facts = cpu_facts()
    # A GPU's vectors are warps: its kernels fill up to them in the same way.
    board = not device.lower().startswith("cpu")
    lanes = 32 if board else vector_lanes(facts.flags)
    launches = tables
    if measured["launched"]:  # the engine records
        kept = {n: recorded(t) for n, t in tables.items()}
        tables = {n: t if (k := kept[n]) is None else t.only(k) for n, t in tables.items()}
    samples = [
        Sample(n, Rows.of(tables[n], lanes), float(np.median(rounds[n])), composite[n], tensors[n]) for n in tables
    ]
    if not samples:
        reason = next(iter(measured["refused"].values()), "no network ran")
        raise QeilError(f"{engine}:{device}: nothing could be measured ({reason}); see `qeil devices`")
    found = fit(samples, 0.0 if board else cache_bytes(), board)
    noise = np.median([np.subtract(*np.quantile(r, [0.75, 0.25])) / np.median(r) for r in rounds.values()])
    missing: dict[str, str] = dict(measured["refused"])
    energy = _energy(measured["energy"], tables)
    if not energy:
        missing["energy"] = "no energy counter can be read here: energies stay modelled"
    return Calibration(
        engine, device, threads or facts.cores, _version(engine, device), lanes, found.entry, found.memory,
        found.families, found.residuals, found.spread, missing, _boundary(measured["stages"]), float(noise), energy,
        found.per_tensor, _launched(measured["launched"], found, launches),
    )  # fmt: skip


def _launched(
    rounds: Mapping[str, Sequence[float]], found: Fitted, tables: Mapping[str, KernelTable]
) -> float | None:
    """Seconds that the host takes to launch a kernel, in the middle of the networks that ran so; None: none did."""
    each = [(float(np.median(r)) - found.entry) / len(tables[n]) for n, r in rounds.items() if n in tables]
    return max(float(np.median(each)), 0.0) or None if each else None


def _graphs() -> dict[str, Counted]:
    """Graph and counts of every network; the models themselves hold a gigabyte of weights and are let go."""
    # The networks need onnx: whoever only imports the ways in must not load it.
    from .suite import suite

    found: dict[str, Counted] = {}
    for build in suite():
        network = build()
        graph = trace(network.model).graph.priced()
        found[network.name] = graph, count(graph), network.kind
    return found


def _boundary(stages: Mapping[str, Sequence[float]]) -> float | None:
    """Slope between a chain in one call and the same chain cut at every operator."""
    cut = next((n for n in stages if n.startswith("cut ")), "")
    if not cut or "whole" not in stages:
        return None
    pieces = int(cut.split()[1])
    difference = float(np.median(np.array(stages[cut]) - np.array(stages["whole"])))
    return max(difference, 0.0) / (pieces - 1)


def _energy(readings: Mapping[str, Mapping[str, float]], tables: Mapping[str, KernelTable]) -> dict[str, float]:
    """E = t P_const + W e_f + Q e_m over what was read, all coefficients non-negative; nothing without readings."""
    if len(readings) < 3:
        return {}
    rows, joules = [], []
    for name, r in readings.items():
        kernels = tables[name]
        rows.append([r["seconds"], r["calls"] * kernels.flops.sum(), r["calls"] * kernels.nbytes.sum()])
        joules.append(r["joules"])
    # Columns differ by many orders of magnitude: solve for their shares of the energy.
    matrix, right = np.array(rows), np.array(joules)
    scale = matrix.max(axis=0)
    solution, _ = nnls(matrix / scale / right[:, None], np.ones(len(right)))
    return dict(zip(("power_const", "energy_per_flop", "energy_per_byte"), (solution / scale).tolist(), strict=True))
