"""Calibrations of this machine on disk: one file per processor, engine, version, device and number of threads."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from qeil_compile.errors import QeilError
from qeil_compile.untrusted import JSON_LIMIT, parse_json, read_file

from .calibrated import Calibration
from .cpuinfo import cpu_facts
from .profile import Coefficient, DeviceProfile, Target
from .work import KernelTable


@dataclass(frozen=True)
class Calibrations:
    """What is known of this machine's placements, by `engine:DEVICE`, at one number of threads."""

    found: Mapping[str, Calibration] = field(default_factory=dict)

    def seconds(self, spec: str, kernels: KernelTable) -> np.ndarray | None:
        """Time of each kernel [s], float64[kernels]; None for a placement that is not calibrated."""
        calibration = self.found.get(spec)
        return None if calibration is None else calibration.seconds(kernels)

    def entry(self, spec: str, tensors: int) -> float | None:
        """What a call of a stage with so many inputs and outputs costs [s]; None for what is not calibrated."""
        return self.found[spec].call(tensors) if spec in self.found else None

    def boundary(self, spec: str) -> float | None:
        """What a boundary between two calls of this engine costs [s]; None where it was not measured."""
        return self.found[spec].boundary if spec in self.found else None


def applied(target: Target, calibrations: Calibrations) -> Target:
    """The target with what was measured in place of what was estimated.

    Roofs become the best that an engine reached; energy coefficients are replaced where a counter was read.
    """
    return replace(target, devices=tuple(_applied(d, calibrations) for d in target.devices))


def _applied(device: DeviceProfile, calibrations: Calibrations) -> DeviceProfile:
    mine = [calibrations.found[s] for s in device.engines if s in calibrations.found]
    if not mine:
        return device
    source = f"measured by qeil calibrate with {', '.join(f'{c.engine} {c.version}' for c in mine)}"
    bandwidth = max(c.memory.memory for c in mine)
    rates = [p[2] for c in mine for f, p in c.families.items() if f in ("gemm", "conv pointwise", "conv dense")]
    old = device.flops("fp32").value
    scale = max(rates, default=old) / old
    changed: dict[str, Any] = {
        "memory_bandwidth": Coefficient(bandwidth, "B/s", source),
        "peak_flops": _scaled(device.peak_flops, scale, source),
    }
    energy = next((c.energy for c in mine if c.energy), None)
    if energy:
        share = energy["energy_per_flop"] / device.energy("fp32").value
        changed["power_const"] = Coefficient(energy["power_const"], "W", source)
        changed["energy_per_byte"] = Coefficient(energy["energy_per_byte"], "J/B", source)
        changed["energy_per_flop"] = _scaled(device.energy_per_flop, share, source)
    return replace(device, **changed)


def _scaled(table: Mapping[str, Coefficient], factor: float, source: str) -> dict[str, Coefficient]:
    """What was measured for fp32, and other dtypes by the ratio that the profile gives."""
    return {
        d: replace(c, value=c.value * factor, low=None, high=None, source=f"{source}; {d} by ratio to fp32: {c.source}")
        for d, c in table.items()
    }


def folder() -> Path:
    """Where calibrations live: `$QEIL_CALIBRATIONS`, or the user's cache folder."""
    own = os.environ.get("QEIL_CALIBRATIONS")
    if own:
        return Path(own)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "qeil" / "calibrations"


def _file(engine: str, version: str, device: str, threads: int) -> Path:
    facts = cpu_facts()
    parts = (facts.model, f"{facts.cores} cores", engine, version, device, f"{threads} threads")
    return folder() / ("_".join(re.sub(r"[^A-Za-z0-9.]+", "-", p).strip("-") for p in parts) + ".json")


def check_folder() -> None:
    """Raise `QeilError` where calibrations cannot be stored: before minutes are spent on measuring."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder(), os.W_OK | os.X_OK) else "not writable"
    except OSError as error:
        reason = str(error)
    if reason:
        raise QeilError(f"calibrations {folder()}: cannot be stored ({reason}); set QEIL_CALIBRATIONS to another")


def save(calibration: Calibration) -> Path:
    """Write a calibration, whole or not at all. Raises `QeilError` where the folder cannot be written."""
    path = _file(calibration.engine, calibration.version, calibration.device, calibration.threads)
    # A name of its own: threads and processes may store the same calibration at once.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(calibration.to_json(), indent=1))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise QeilError(
            f"calibration {path}: cannot be written ({error}); set QEIL_CALIBRATIONS to a folder that can"
        ) from error
    return path


def load(placements: Sequence[tuple[str, str, str]], threads: int) -> Calibrations:
    """Calibrations for (engine, version, device) at a number of threads; those that are not there are left out.

    Raises `QeilError` for a file that is there and holds something else.
    """
    found: dict[str, Calibration] = {}
    for engine, version, device in placements:
        path = _file(engine, version, device, threads)
        try:
            data = read_file(path, JSON_LIMIT)
        except OSError:
            continue
        try:
            found[f"{engine}:{device}"] = Calibration.from_json(parse_json(data))
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise QeilError(f"calibration {path}: malformed ({error!r:.80}); run `qeil calibrate` again") from error
    return Calibrations(found)
