"""Runs of MLPerf inference with wall power, each with the device that ran it and that device's data-sheet figures.

The device of a run is found in `devices_mlperf.toml`; peak, bandwidth and idle power of boards come from the device
table `devices/devices.csv`. Idle power of a system that has no row there is what its meter showed before its runs
(column `spl_first_W`): a fact of the idle machine, as the table's own idle figures are.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any, Literal

from qeil_compile.errors import QeilError
from qeil_compile.validation.networks import model_name, precision_of

INT8_OVER_FP32 = 2.0  # a SIMD unit without a figure for int8 holds twice as many 16-bit products as fp32 ones
Kind = Literal["board", "mobile_gpu", "accelerator"]


@dataclass(frozen=True, slots=True)
class Device:
    """Data-sheet figures: `rate` [op/s] at the run's precision, `base` [op/s] at fp32 (boards), `bandwidth` [B/s],
    `ghz` of the serial part, `nm` of the process, `tdp` and `idle` [W] of the whole, `units` in the system."""

    name: str
    kind: Kind
    rate: float
    base: float
    bandwidth: float
    ghz: float
    nm: float
    tdp: float
    idle: float
    units: int = 1


@dataclass(frozen=True, slots=True)
class Run:
    """One submission: `energy` [J] and `seconds` of one sample, mean wall power `watts`.

    `system` is the system without its engine's version; `exact` also says round, submitter and version.
    """

    exact: str
    system: str
    benchmark: str
    model: str
    precision: str
    scenario: str
    engine: str
    device: Device
    energy: float
    seconds: float
    watts: float

    @property
    def label(self) -> str:
        """Name of the point in a report."""
        return f"{self.exact} {self.benchmark} {self.scenario}"


@cache
def _table() -> dict[str, list[dict[str, Any]]]:
    text = files("qeil_compile.validation").joinpath("devices_mlperf.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Rows of a CSV file, gzipped or not.

    Raises:
        QeilError: the file is no text, or lacks a column.
    """
    open_text = gzip.open if path.suffix == ".gz" else open
    try:
        with open_text(path, "rt", newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if missing := [c for c in columns if c not in (reader.fieldnames or ())]:
                raise QeilError(f"{path}: no column {', '.join(missing)}; found {reader.fieldnames}")
            yield from reader
    except FileNotFoundError:
        raise
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise QeilError(f"{path}: not a readable table: {error}") from None


def _number(row: Mapping[str, str], column: str, path: Path) -> float:
    try:
        return float(row[column])
    except (TypeError, ValueError):
        where = f"{path}: column {column} of {row.get('system')}"
        raise QeilError(f"{where}: expected a number, found {row[column]!r}") from None


def _find(kind: Kind, text: str) -> Mapping[str, Any] | None:
    return next((entry for entry in _table()[kind] if re.search(entry["match"], text)), None)


def _board(entry: Mapping[str, Any], catalogue: Mapping[str, Mapping[str, str]], precision: str) -> Device | None:
    row = catalogue.get(entry["device"])
    if row is None or not row["idle_W"]:
        return None
    peaks = json.loads(row["peak_flops_by_dtype"])
    base = float(peaks["fp32"])
    rate = float(peaks.get("int8", INT8_OVER_FP32 * base)) if precision == "int8" else base
    idle, bandwidth = float(row["idle_W"]), float(row["mem_bw_GBs"]) * 1e9
    tdp = float(row["tdp_W"] or idle)
    return Device(entry["device"], "board", rate, base, bandwidth, entry["ghz"], entry["nm"], tdp, idle)


def find_device(
    system: Mapping[str, str], catalogue: Mapping[str, Mapping[str, str]], precision: str, idle: float | None
) -> Device | None:
    """The device of a row of `systems.csv`, or None if no table describes it. `idle`: measured idle power [W]."""
    text = f"{system['system']} | {system['accelerator_model_name']} | {system['host_processor_model_name']}"
    if entry := _find("accelerator", text):
        if idle is None:
            return None
        units = int(re.sub(r"\D.*", "", system["accelerators_per_node"]) or 1)
        tdp = idle + units * entry["tdp"]
        return Device(
            entry["name"], "accelerator", entry["int8"], entry["int8"], entry["bandwidth"], 1.0, 1.0, tdp, idle, units
        )
    board = _find("board", text)
    found = _board(board, catalogue, precision) if board else None
    if found is None or "opencl" not in text.lower():
        return found
    gpu = _find("mobile_gpu", text)
    if gpu is None:
        return None
    rate = gpu["fp32"] * (INT8_OVER_FP32 if precision == "int8" else 1.0)
    return Device(gpu["name"], "mobile_gpu", rate, gpu["fp32"], found.bandwidth, 1.0, found.nm, found.tdp, found.idle)


def _engine(system: str) -> str:
    """'armnn-neon' of 'rpi4-armnn-v21.11-neon': the system's name without board and version."""
    match = re.search(r"(armnn|tflite)-v[\d.]+-(\w+)", system)
    return f"{match[1]}-{match[2]}" if match else ""


def read_runs(data: Path, split: Mapping[str, Any], catalogue_data: Path) -> tuple[list[Run], int]:
    """Runs that obey the split's rules and whose device a table describes, and how many had no such device.

    Raises:
        QeilError: a file is malformed.
        FileNotFoundError: `data` lacks a file.
    """
    path = data / split["runs"]
    need = (*split["require"], "round", "division", "org", "system", "benchmark", "scenario", "avg_power_W")
    need += ("n_power_samples", "energy_J_per_sample", "spl_first_W")
    rows = list(_rows(path, need))
    systems: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in _rows(data / split["systems"], ("round", "org", "system", "accelerator_model_name")):
        systems.setdefault((row["round"], row["org"], row["system"]), row)
    catalogue = {row["name"]: row for row in _rows(catalogue_data / split["devices"], ("name", "idle_W"))}
    idle: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["spl_first_W"] and (watts := _number(row, "spl_first_W", path)) > 0:  # meters glitch below 0
            idle[row["round"], row["org"], row["system"]].append(watts)
    runs, unknown = [], 0
    for row in rows:
        if any(row[column] != value for column, value in split["require"].items()):
            continue
        if row["scenario"] not in split["scenarios"] or not row["energy_J_per_sample"]:
            continue
        if _number(row, "n_power_samples", path) < split["min_power_samples"]:
            continue
        key = (row["round"], row["org"], row["system"])
        precision = precision_of(row["benchmark"])
        measured = median(idle[key]) if idle[key] else None
        device = find_device(systems[key], catalogue, precision, measured) if key in systems else None
        if device is None:
            unknown += 1
            continue
        energy, watts = _number(row, "energy_J_per_sample", path), _number(row, "avg_power_W", path)
        if energy <= 0 or watts <= 0:
            where = f"{path}: {row['system']} {row['benchmark']}"
            raise QeilError(f"{where}: expected energy and power above 0, found {energy} J and {watts} W")
        name = re.sub(r"-v[\d.]+", "", row["system"])
        exact = " ".join((*key, row["division"]))
        model = model_name(row["benchmark"])
        run = Run(
            exact, name, row["benchmark"], model, precision, row["scenario"], _engine(row["system"]), device,
            energy, energy / watts, watts,
        )  # fmt: skip
        runs.append(run)
    return runs, unknown
