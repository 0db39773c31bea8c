"""Calibrations of this machine on disk: one file per processor, engine, version, device and number of threads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qeil_compile.errors import QeilError

from .calibrated import Calibration
from .cpuinfo import cpu_facts
from .work import KernelTable


@dataclass(frozen=True)
class Calibrations:
    """What is known of this machine's placements, by `engine:DEVICE`, at one number of threads."""

    found: Mapping[str, Calibration] = field(default_factory=dict)

    def seconds(self, spec: str, kernels: KernelTable) -> np.ndarray | None:
        """Time of each kernel [s], float64[kernels]; None for a placement that is not calibrated."""
        calibration = self.found.get(spec)
        return None if calibration is None else calibration.seconds(kernels)

    def entry(self, spec: str) -> float | None:
        """What a call of a stage costs [s]; None for a placement that is not calibrated."""
        return self.found[spec].entry if spec in self.found else None

    def boundary(self, spec: str) -> float | None:
        """What a boundary between two calls of this engine costs [s]; None where it was not measured."""
        return self.found[spec].boundary if spec in self.found else None


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


def save(calibration: Calibration) -> Path:
    """Write a calibration, whole or not at all. Raises `QeilError` where the folder cannot be written."""
    path = _file(calibration.engine, calibration.version, calibration.device, calibration.threads)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(calibration.to_json(), indent=1), "utf-8")
        temporary.replace(path)
    except OSError as error:
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
            text = path.read_text("utf-8")
        except OSError:
            continue
        try:
            found[f"{engine}:{device}"] = Calibration.from_json(json.loads(text))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise QeilError(f"calibration {path}: malformed ({error!r:.80}); run `qeil calibrate` again") from error
    return Calibrations(found)
